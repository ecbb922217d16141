/* node_fake.h -- a node_core with a fake engine and a fake link, for tests of node/, prefill-node/ and
 * decode-node/.
 *
 * The fake KV of a token is a hash of all tokens up to it, kept in the page and slot the core chose; the
 * next row reads its predecessor's hash from there, and its logits are a function of the new one. So a
 * page mixed up, not copied, not computed or given too early changes the answer. A row's hash depends on the numerics of
 * the node that computed it. fake_expect() and fake_expect_apart() say what the answer must be. */
#ifndef BATON_TESTS_NODE_FAKE_H
#define BATON_TESTS_NODE_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "decode-node/decode.h"
#include "node/node.h"
#include "prefill-node/prefill.h"

enum { FAKE_V = 64, FAKE_END = 63, FAKE_LOGITS = 64, FAKE_EVENTS = 1 << 16, FAKE_LINKS = 4096 };

typedef struct fake_promise {
    bool open, revoked;
    uint64_t handle, ticket;
    int32_t first, end;
    const int32_t *blocks;
} fake_promise;

typedef struct fake_send {
    bool open, ended, aborted;
    uint64_t handle, ticket;
    const int32_t *blocks;
    int32_t pushed_first, pushed_end;
    int pushes;
} fake_send;

typedef struct fake_node {
    node_core *core;
    node_limits limits;
    uint64_t *kv;                /* (pages, page_tokens) */
    uint64_t *host;              /* (swap_pages, page_tokens) */
    int64_t step_us, row_us, swap_us;        /* a step takes, each of its rows, a token's swap */
    int64_t took_us;             /* the last step */
    float logits[FAKE_LOGITS * FAKE_V];
    node_event *events;
    int events_count;
    fake_promise promises[FAKE_LINKS];
    fake_send sends[FAKE_LINKS];
    int promises_count, sends_count;
    uint64_t tickets, sender;    /* sender: numerics of who computes what lands; this node's are 0 */
    int end_token;               /* -1: none */
    int rows_most, entries_most; /* seen in one step */
    eng_sampler *sampler;        /* not NULL: the fake engine draws for who is not greedy */
    eng_draw *draws;             /* what it was asked to */
    bool draws_fail;             /* its logits are no numbers then */
    status step_fails, promise_fails, send_fails;
    int64_t now_us;
} fake_node;

static inline uint64_t fake_mix(uint64_t a, uint64_t b) {
    a ^= b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2);
    a *= 0xff51afd7ed558ccdu;
    return a ^ (a >> 33);
}

static inline uint64_t fake_row(uint64_t before, int32_t token, uint64_t numerics) {
    return fake_mix(before, numerics << 32 | (uint64_t)token);
}

static inline void fake_logits(uint64_t hash, float *out) {
    for (int i = 0; i < FAKE_V; i++) out[i] = (float)(fake_mix(hash, (uint64_t)i) >> 40) / (1 << 22);
}

static inline uint64_t *fake_slot(fake_node *f, const int32_t *blocks, int32_t position) {
    int32_t page = blocks[position / f->limits.page_tokens];
    assert_in_range(page, 0, f->limits.pages - 1);
    return &f->kv[(int64_t)page * f->limits.page_tokens + position % f->limits.page_tokens];
}

static inline bool fake_draws(void *ctx, eng_draw *d) {
    fake_node *f = ctx;
    if (!f->sampler || d->sampling->temperature <= 0) return false;
    d->next = f->draws;
    f->draws = d;
    return true;
}

/* As the engine does; logits that were drawn from and are not shown are worth nothing afterwards. */
static inline void fake_draw(fake_node *f) {
    for (eng_draw *d = f->draws; d; d = d->next) {
        float *logits = f->logits + (size_t)d->row * FAKE_V;
        eng_sampled got = {.token = -1};
        if (!f->draws_fail) (void)eng_sample(f->sampler, d->sampling, logits, NULL, 0, d->count, &got);
        d->token = got.token;
        if (!d->shown) memset(logits, 0xff, FAKE_V * sizeof *logits);
    }
    f->draws = NULL;
}

static inline status fake_step(void *ctx, const eng_rows *rows, int count, const float **logits) {
    fake_node *f = ctx;
    int total = 0, wanted = 0;
    if (f->step_fails != ST_OK) return f->step_fails;
    for (int i = 0; i < count; i++) {
        total += rows[i].count;
        for (int32_t j = 0; j < rows[i].count; j++) {
            int32_t p = rows[i].position + j;
            uint64_t before = p ? *fake_slot(f, rows[i].blocks, p - 1) : 1;
            uint64_t hash = fake_row(before, rows[i].tokens[j], 0);
            *fake_slot(f, rows[i].blocks, p) = hash;
            if (j >= rows[i].count - rows[i].logits) fake_logits(hash, f->logits + wanted++ * FAKE_V);
        }
    }
    assert_true(total <= f->limits.step_tokens_max && wanted <= f->limits.logits_max);
    if (total > f->rows_most) f->rows_most = total;
    if (count > f->entries_most) f->entries_most = count;
    f->took_us = f->step_us + total * f->row_us;
    if (f->draws) fake_draw(f);
    *logits = f->logits;
    return ST_OK;
}

static inline int64_t fake_step_us(void *ctx) { return ((fake_node *)ctx)->took_us; }

static inline void fake_copy(void *ctx, int32_t dst, int32_t src, int32_t tokens) {
    fake_node *f = ctx;
    int32_t P = f->limits.page_tokens;
    memcpy(f->kv + (int64_t)dst * P, f->kv + (int64_t)src * P, (size_t)tokens * sizeof *f->kv);
}

/* What a slot held before is overwritten, and what left a page can not be read there any more. */
static inline int64_t fake_swap(void *ctx, bool out, const int32_t *blocks, const int32_t *slots, int32_t first,
                                int32_t end) {
    fake_node *f = ctx;
    int32_t P = f->limits.page_tokens;
    assert_true(first % P == 0 && first < end);
    for (int32_t i = first; i < end; i++) {
        assert_in_range(slots[i / P], 0, f->limits.swap_pages - 1);
        uint64_t *host = &f->host[(int64_t)slots[i / P] * P + i % P], *page = fake_slot(f, blocks, i);
        *(out ? host : page) = *(out ? page : host);
    }
    return f->swap_us * (end - first);
}

static inline status fake_promise_open(void *ctx, node_seq *s, uint64_t ticket, uint32_t epoch,
                                       int32_t first, int32_t end, uint32_t lease_ms,
                                       const int32_t *blocks) {
    fake_node *f = ctx;
    (void)epoch, (void)lease_ms;
    if (f->promise_fails != ST_OK) return f->promise_fails;
    assert_true(f->promises_count < FAKE_LINKS && first < end);
    f->promises[f->promises_count++] = (fake_promise){.open = true, .handle = s->request->handle,
        .ticket = ticket, .first = first, .end = end, .blocks = blocks};
    return ST_OK;
}

static inline fake_promise *fake_promise_of(fake_node *f, uint64_t handle) {
    for (int i = f->promises_count - 1; i >= 0; i--)
        if (f->promises[i].handle == handle) return &f->promises[i];
    return NULL;
}

static inline void fake_revoke(void *ctx, uint64_t ticket) {
    fake_node *f = ctx;
    for (int i = 0; i < f->promises_count; i++)
        if (f->promises[i].ticket == ticket) f->promises[i].revoked = true;
}

static inline status fake_send_open(void *ctx, node_seq *s, const char *address, uint64_t ticket,
                                    uint32_t epoch, const int32_t *blocks, void **send) {
    fake_node *f = ctx;
    (void)address, (void)epoch;
    if (f->send_fails != ST_OK) return f->send_fails;
    assert_true(f->sends_count < FAKE_LINKS);
    fake_send *x = &f->sends[f->sends_count++];
    *x = (fake_send){.open = true, .handle = s->request->handle, .ticket = ticket, .blocks = blocks,
                     .pushed_first = -1};
    *send = x;
    return ST_OK;
}

static inline void fake_push(void *ctx, void *send, int32_t first, int32_t tokens) {
    fake_send *x = send;
    (void)ctx;
    assert_true(x->open && !x->ended && !x->aborted && tokens > 0);
    if (x->pushed_first < 0) x->pushed_first = x->pushed_end = first;
    assert_int_equal(first, x->pushed_end);                /* in order, once */
    x->pushed_end += tokens;
    x->pushes++;
}

static inline void fake_send_end(void *ctx, void *send) {
    fake_send *x = send;
    (void)ctx;
    assert_true(x->open && !x->ended && !x->aborted);
    x->ended = true;
}

static inline void fake_send_abort(void *ctx, void *send) {
    fake_send *x = send;
    (void)ctx;
    assert_true(x->open && !x->aborted);
    x->aborted = true;
}

static inline fake_send *fake_send_of(fake_node *f, uint64_t handle) {
    for (int i = f->sends_count - 1; i >= 0; i--)
        if (f->sends[i].handle == handle) return &f->sends[i];
    return NULL;
}

static inline uint64_t fake_ticket(void *ctx) { return ++((fake_node *)ctx)->tickets; }
static inline bool fake_is_end(void *ctx, int32_t token) { return token == ((fake_node *)ctx)->end_token; }

static inline void fake_emit(void *ctx, const node_event *e) {
    fake_node *f = ctx;
    assert_true(f->events_count < FAKE_EVENTS);
    f->events[f->events_count++] = *e;
}

static inline fake_node *fake_create_with(const node_limits *l, const node_speculator *speculator) {
    fake_node *f = calloc(1, sizeof *f);
    f->limits = *l;
    f->end_token = -1;
    f->step_us = 1000;
    f->swap_us = 1;
    f->host = calloc((size_t)l->swap_pages + 1, (size_t)l->page_tokens * sizeof *f->host);
    f->kv = calloc((size_t)l->pages * (size_t)l->page_tokens, sizeof *f->kv);
    f->events = calloc(FAKE_EVENTS, sizeof *f->events);
    node_io io = {.ctx = f, .step = fake_step, .draws = fake_draws, .step_us = fake_step_us, .copy_page = fake_copy, .swap = fake_swap,
                  .promise = fake_promise_open, .revoke = fake_revoke, .send_open = fake_send_open,
                  .send_push = fake_push, .send_end = fake_send_end, .send_abort = fake_send_abort,
                  .random_ticket = fake_ticket, .is_end_token = fake_is_end, .emit = fake_emit,
                  .speculator = speculator};
    f->core = node_core_create(l, &io);
    return f;
}

static inline fake_node *fake_create(const node_limits *l) { return fake_create_with(l, NULL); }

static inline void fake_destroy(fake_node *f) {
    node_core_destroy(f->core);
    eng_sampler_destroy(f->sampler);
    free(f->kv);
    free(f->host);
    free(f->events);
    free(f);
}

/* ---- requests -------------------------------------------------------------------------------------- */

/* NULL: no memory (when a test makes an allocation fail). tokens are copied. */
static inline node_request *fake_request(uint64_t handle, const int32_t *tokens, int32_t count,
                                         int32_t max_tokens) {
    arena *a = arena_create(1024);
    node_request *r = a ? arena_alloc(a, sizeof *r) : NULL;
    int32_t *copy = r ? arena_alloc(a, (size_t)count * sizeof *copy) : NULL;
    if (!copy) {
        arena_destroy(a);
        return NULL;
    }
    memcpy(copy, tokens, (size_t)count * sizeof *copy);
    *r = (node_request){.memory = a, .handle = handle, .id = "test", .epoch = 1, .tokens = copy,
                        .count = count, .prompt_count = count, .sampling = eng_sampling_default,
                        .max_tokens = max_tokens, .local_tokens_max = INT32_MAX, .lease_ms = 1000,
                        .kv_address = "fake"};
    return r;
}

/* A prompt that begins like others with the same `shared` and goes on by its own seed. */
static inline void fake_prompt(int32_t *out, int32_t count, int32_t shared, uint64_t seed) {
    for (int32_t i = 0; i < count; i++)
        out[i] = (int32_t)(fake_mix(i < shared ? 7 : seed + 100, (uint64_t)i) % (FAKE_V - 1));
}

/* A token other than the right one: nearly always the same, so that a verifier which takes it would say it too often. */
static inline int32_t fake_wrong(int32_t right) { return right == 7 ? 8 : 7; }

/* The answer that is right: what a lone sequence with fresh pages gives, its prompt but for the last token computed by
 * `reader`. Returns how many tokens. */
static inline int32_t fake_expect_apart(const eng_sampling *p, int32_t end_token, const int32_t *prompt,
                                        int32_t count, int32_t max_tokens, uint64_t reader, int32_t *out) {
    int32_t all[4096];
    float logits[FAKE_V];
    eng_sampler *sampler = eng_sampler_create(FAKE_V);
    uint64_t hash = 1;
    memcpy(all, prompt, (size_t)count * sizeof *all);
    for (int32_t i = 0; i < count; i++) hash = fake_row(hash, all[i], i < count - 1 ? reader : 0);
    int32_t n = 0;
    while (n < max_tokens) {
        eng_sampled got;
        fake_logits(hash, logits);
        assert_int_equal(eng_sample(sampler, p, logits, all, count, count + n, &got), ST_OK);
        all[count + n] = out[n] = got.token;
        hash = fake_row(hash, got.token, 0);
        n++;
        if (got.token == end_token) break;
    }
    eng_sampler_destroy(sampler);
    return n;
}

static inline int32_t fake_expect(const eng_sampling *p, int32_t end_token, const int32_t *prompt,
                                  int32_t count, int32_t max_tokens, int32_t *out) {
    return fake_expect_apart(p, end_token, prompt, count, max_tokens, 0, out);
}

/* ---- looking ---------------------------------------------------------------------------------------- */

static inline int fake_run(fake_node *f, int steps_max) {
    int n = 0;
    while (n < steps_max && node_core_step(f->core, f->now_us += 1000)) n++;
    return n;
}

static inline const node_event *fake_event(const fake_node *f, uint64_t handle, node_event_kind kind) {
    for (int i = 0; i < f->events_count; i++)
        if (f->events[i].handle == handle && f->events[i].kind == kind) return &f->events[i];
    return NULL;
}

/* Status of the handle's NODE_END: exactly one, and nothing after it; -1: it has not ended. */
static inline int fake_end(const fake_node *f, uint64_t handle) {
    int st = -1;
    for (int i = 0; i < f->events_count; i++) {
        if (f->events[i].handle != handle) continue;
        assert_int_equal(st, -1);
        if (f->events[i].kind == NODE_END) st = (int)f->events[i].end.st;
    }
    return st;
}

/* The handle's answer tokens; their positions rise by one from `first`. */
static inline int32_t fake_tokens(const fake_node *f, uint64_t handle, int32_t first, int32_t *out) {
    int32_t n = 0;
    for (int i = 0; i < f->events_count; i++) {
        const node_event *e = &f->events[i];
        if (e->handle != handle || e->kind != NODE_TOKEN) continue;
        assert_int_equal(e->token.index, first + n);
        out[n++] = e->token.sampled.token;
    }
    return n;
}

static inline void fake_assert_answer(const fake_node *f, uint64_t handle, const int32_t *prompt,
                                      int32_t count, int32_t max_tokens) {
    int32_t want[4096], got[4096];
    int32_t n = fake_expect(&eng_sampling_default, f->end_token, prompt, count, max_tokens, want);
    assert_int_equal(fake_tokens(f, handle, count, got), n);
    assert_memory_equal(got, want, (size_t)n * sizeof *got);
    assert_int_equal(fake_end(f, handle), ST_OK);
}

/* Every page is free or cached: nothing is pinned. */
static inline void fake_assert_pages_back(const fake_node *f) {
    node_counts counts;
    node_core_counts(f->core, &counts);
    assert_int_equal(counts.pages[ENG_PAGE_FREE] + counts.pages[ENG_PAGE_CACHED], f->limits.pages);
    assert_int_equal(counts.running + counts.waiting + counts.swapped, 0);
}

/* The transfer ends with st after `tokens` tokens: writes the KV that a prefill node would send. */
static inline void fake_land(fake_node *f, uint64_t handle, const int32_t *tokens, int32_t landed,
                             status st) {
    fake_promise *p = fake_promise_of(f, handle);
    assert_true(p && p->open);
    uint64_t hash = 1;
    for (int32_t i = 0; i < p->first + landed; i++) {
        hash = fake_row(hash, tokens[i], f->sender);
        if (i >= p->first) *fake_slot(f, p->blocks, i) = hash;
    }
    p->open = false;
    node_core_landed(f->core, handle, st, landed, f->now_us);
}

static inline void fake_sent(fake_node *f, uint64_t handle, status st) {
    fake_send *x = fake_send_of(f, handle);
    assert_true(x && x->open);
    x->open = false;
    node_core_sent(f->core, handle, st, 100, 2000, f->now_us);
}

#endif
