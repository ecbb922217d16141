/* propose_draft.c -- a smaller model of the same vocabulary writes on, and what it writes is proposed.
 *
 * It draws with the request's own sampling and each position's own randomness, so it agrees with the target as often as the
 * two distributions do, greedy or not. It has pages of its own, in its own pool with its own prefix index:
 *
 *   tokens   0 ........ ready ........ count ...... count + k - 1
 *            |  in its KV  |  to be read  |  drawn, all but the last fed again
 *
 *   read     [work]     what it is behind by more than BEHIND_MAX, in chunks over all sequences that it pays for: also while
 *                       the target's pages are still in flight, which need not wait for it nor it for them
 *   draw     [propose]  k steps over all sequences at once; the first reads what is left
 *   keep     [learn]    the KV of what was accepted; the rest is written over
 *
 * No pages, too far behind, beyond its context, or failed: then nothing is proposed, and the sequence decodes without. */
#include "decode-node/draft.h"
#include <assert.h>

METRIC(metric_time, "baton_node_draft_seconds_total", NULL, METRIC_SECONDS, "time that the draft model (--draft) computed");

enum { BEHIND_MAX = 8, CHUNK = 64, ENTRIES = 64 };

typedef struct reader {
    int32_t ready;               /* positions [0, ready) are in its KV, and those tokens are final */
    int32_t published;           /* leading pages that were found in its prefix index */
    bool begun;                  /* the index was asked */
    int32_t blocks_count;
    int32_t blocks[];
} reader;

static int32_t pages_of(const decode_draft *d, int32_t tokens) { return (tokens + d->page_tokens - 1) / d->page_tokens; }
static reader *reader_of(const node_seq *s) { return ((decode_guess *)s->speculation)->own; }

static size_t bytes(const decode_speculator *x, int32_t tokens_max) {
    return sizeof(reader) + (size_t)pages_of(x->draft, tokens_max) * sizeof(int32_t);
}

/* Once: what the index knows of its tokens. */
static void begin(decode_draft *d, const node_seq *s) {
    reader *r = reader_of(s);
    int32_t tail, tail_tokens;
    if (r->begun) return;
    r->begun = true;
    r->blocks_count = r->published = eng_pool_match(d->pool, s->request->salt, s->tokens, s->count - 1, r->blocks, &tail, &tail_tokens);
    r->ready = r->blocks_count * d->page_tokens;
    if (tail >= 0) eng_pool_give(d->pool, tail);
}

/* Pages for so many tokens; false: there are not enough. */
static bool hold(decode_draft *d, const node_seq *s, int32_t tokens) {
    reader *r = reader_of(s);
    int32_t more = pages_of(d, min32(tokens, s->tokens_max)) - r->blocks_count;
    if (more <= 0) return true;
    if (eng_pool_take(d->pool, more, ENG_PAGE_RUNNING, r->blocks + r->blocks_count) != ST_OK) return false;
    r->blocks_count += more;
    return true;
}

/* What `count` entries took belongs to their sequences alike. */
static bool step(decode_draft *d, decode_draft_rows *rows, int count, int64_t *us) {
    if (d->io.step(d->io.ctx, rows, count) != ST_OK) {
        d->failed = true;
        return false;
    }
    *us = d->io.step_us(d->io.ctx);
    metric_add(&metric_time, *us);
    for (int i = 0; i < count; i++) rows[i].seq->draft_us += *us / count;
    return true;
}

/* ---- reading ------------------------------------------------------------------------------------------ */

/* Whether it should catch up: what comes of it is worth the time, or a probe is due. */
static bool is_wanted(decode_speculator *x, decode_guess *g) {
    decode_outlook o = decode_speculate_outlook(x, g, g->seq->tokens_max - g->seq->count - 1);
    o.behind = g->seq->count - reader_of(g->seq)->ready;
    bool measured = decode_curve_at(&x->step, 1) > 0;
    return o.most > 0 && (x->fixed || !measured || decode_adapt_length(&o) > 0);
}

static bool work(decode_speculator *x) {
    decode_draft *d = x->draft;
    int32_t left = CHUNK, n = 0;
    int64_t us;
    for (decode_guess *g = x->first; g && left > 0 && n < ENTRIES && !d->failed; g = g->next) {
        node_seq *s = g->seq;
        reader *r = g->own;
        begin(d, s);
        if (s->paused || s->count - r->ready <= BEHIND_MAX || s->count > d->context) continue;
        if (!is_wanted(x, g) || !hold(d, s, s->count)) continue;
        int32_t now = min32(left, s->count - 1 - r->ready);
        d->rows[n++] = (decode_draft_rows){
            .rows = {.tokens = s->tokens + r->ready, .count = now, .position = r->ready, .blocks = r->blocks}, .seq = s};
        left -= now;
    }
    if (n == 0 || !step(d, d->rows, n, &us)) return false;
    decode_curve_add(&d->read, CHUNK - left, us);
    for (int32_t i = 0; i < n; i++) reader_of(d->rows[i].seq)->ready += d->rows[i].rows.count;
    return true;
}

/* ---- drawing ------------------------------------------------------------------------------------------ */

static int32_t ready(decode_speculator *x, decode_guess *g, int32_t most) {
    decode_draft *d = x->draft;
    const node_seq *s = g->seq;
    reader *r = g->own;
    begin(d, s);
    most = min32(most, d->context - s->count);
    if (d->failed || most < 1 || s->count - r->ready > BEHIND_MAX || !hold(d, s, s->count)) return 0;
    hold(d, s, s->count + most - 1);                       /* or fewer */
    return min32(most, r->blocks_count * d->page_tokens - s->count + 1);
}

/* The entries of draw j: what is left to read, or the token drawn before. Returns how many. */
static int fill(decode_draft *d, node_seq *const *seqs, const int32_t *counts, int n, int32_t j) {
    int entries = 0;
    for (int i = 0; i < n; i++) {
        node_seq *s = seqs[i];
        reader *r = reader_of(s);
        if (counts[i] <= j) continue;
        int32_t from = j == 0 ? r->ready : s->count + j - 1, end = s->count + j;
        d->rows[entries++] = (decode_draft_rows){
            .rows = {.tokens = s->tokens + from, .count = end - from, .position = from, .blocks = r->blocks, .logits = 1},
            .seq = s, .token = &s->tokens[end]};
    }
    return entries;
}

static void propose(decode_speculator *x, node_seq *const *seqs, int32_t *counts, int n) {
    decode_draft *d = x->draft;
    int32_t longest = 0;
    int64_t us;
    assert(n <= ENTRIES);
    for (int i = 0; i < n; i++) longest = counts[i] > longest ? counts[i] : longest;
    for (int32_t j = 0; j < longest; j++) {
        int entries = fill(d, seqs, counts, n, j);
        if (!step(d, d->rows, entries, &us)) {             /* what was drawn before is good */
            for (int i = 0; i < n; i++) counts[i] = min32(counts[i], j);
            break;
        }
        decode_curve_add(&d->draw, entries, us);
    }
    for (int i = 0; i < n; i++)
        if (counts[i] > 0) reader_of(seqs[i])->ready = seqs[i]->count;
}

/* All but the last proposed token were fed. */
static void learn(decode_speculator *x, decode_guess *g, int32_t proposed, int32_t accepted, const float *rest) {
    (void)x, (void)rest;
    ((reader *)g->own)->ready += min32(accepted, proposed - 1);
}

static void leave(decode_speculator *x, decode_guess *g) {
    const node_seq *s = g->seq;
    eng_pool *pool = x->draft->pool;
    reader *r = g->own;
    int32_t full = min32(r->ready, s->count) / x->draft->page_tokens;
    if (full > r->published) eng_pool_publish(pool, s->request->salt, s->tokens, full * x->draft->page_tokens, r->blocks);
    while (r->blocks_count > 0) eng_pool_give(pool, r->blocks[--r->blocks_count]);
}

const decode_proposer decode_propose_draft = {.name = "draft", .odds = 0.8, .bytes = bytes, .work = work, .ready = ready,
                                              .propose = propose, .learn = learn, .leave = leave};

/* ---- create, destroy ---------------------------------------------------------------------------------- */

status decode_draft_create(const decode_draft_io *io, int32_t pages, int32_t page_tokens, int32_t context, decode_draft **out,
                           error *err) {
    decode_draft *d = mem_zalloc(1, sizeof *d);
    if (d) d->rows = mem_zalloc(ENTRIES, sizeof *d->rows);
    if (d) d->pool = eng_pool_create(pages, page_tokens);
    if (!d || !d->rows || !d->pool) {
        decode_draft_destroy(d);
        return error_set(err, ST_NO_MEMORY, "no memory for %d pages of the draft", pages);
    }
    d->io = *io;
    d->page_tokens = page_tokens;
    d->context = context;
    metric_show(&metric_time);
    *out = d;
    return ST_OK;
}

void decode_draft_destroy(decode_draft *d) {
    if (!d) return;
    eng_pool_destroy(d->pool);
    mem_free(d->rows);
    mem_free(d);
}
