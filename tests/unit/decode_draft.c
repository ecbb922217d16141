/* Tests decode-node/propose_draft.c with a draft that is the fake engine again, over pages of its own: with right KV it draws
 * exactly what the target draws, so each token it is not made to get wrong must be right. */
#include "decode-node/draft.h"
#include "tests/unit/chi_square.h"

static const node_limits limits = {.V = FAKE_V, .context = 256, .pages = 64, .page_tokens = 4, .sequences_max = 8,
                                   .step_tokens_max = 64, .chunk_tokens = 8, .logits_max = 64, .prefix_cache = true};

enum { HANDLES = 8, TOKENS = 256, P = 4, PAGES = 128 };

typedef struct fake_draft {
    decode_draft_io io;
    decode_speculator *x;
    eng_sampler *sampler;
    uint64_t kv[PAGES * P];
    int32_t tokens[HANDLES][TOKENS];         /* prompt and right answer, by handle */
    int wrong_of_16;             /* so many of 16 tokens it draws are made wrong */
    uint64_t chance;
    int steps, entries_most, fails_at;
    int64_t rows, drawn, right_history;
} fake_draft;

static void draw(fake_draft *m, const decode_draft_rows *r, uint64_t hash) {
    const node_request *q = r->seq->request;
    int32_t count = r->rows.position + r->rows.count;
    const int32_t *right = m->tokens[q->handle];
    float logits[FAKE_V];
    eng_sampled got;
    fake_logits(hash, logits);
    assert_int_equal(eng_sample(m->sampler, &q->sampling, logits, r->seq->tokens, q->prompt_count, count, &got), ST_OK);
    if (memcmp(r->seq->tokens, right, (size_t)count * sizeof *right) == 0) {
        assert_int_equal(got.token, right[count]);
        m->right_history++;
    }
    m->drawn++;
    m->chance = fake_mix(m->chance, 5);
    *r->token = (int)(m->chance >> 60) < m->wrong_of_16 ? fake_wrong(got.token) : got.token;
}

static status step(void *ctx, const decode_draft_rows *rows, int count) {
    fake_draft *m = ctx;
    if (++m->steps == m->fails_at) return ST_DEVICE;
    if (count > m->entries_most) m->entries_most = count;
    for (int i = 0; i < count; i++) {
        const eng_rows *r = &rows[i].rows;
        uint64_t hash = 1;
        assert_true(r->count > 0 && r->logits == (rows[i].token != NULL));
        for (int32_t j = 0; j < r->count; j++) {
            int32_t at = r->position + j;
            if (at > 0) hash = m->kv[r->blocks[(at - 1) / P] * P + (at - 1) % P];
            hash = fake_row(hash, r->tokens[j], 0);
            m->kv[r->blocks[at / P] * P + at % P] = hash;
        }
        m->rows += r->count;
        if (rows[i].token) draw(m, &rows[i], hash);
    }
    return ST_OK;
}

static int64_t step_us(void *ctx) { return (void)ctx, 10; }

static fake_draft *draft_create(int32_t pages, int wrong_of_16) {
    fake_draft *m = calloc(1, sizeof *m);
    m->io = (decode_draft_io){.ctx = m, .step = step, .step_us = step_us};
    m->sampler = eng_sampler_create(FAKE_V);
    m->wrong_of_16 = wrong_of_16;
    assert_int_equal(decode_speculator_create(&decode_propose_draft, 0, &m->x, NULL), ST_OK);
    assert_int_equal(decode_draft_create(&m->io, pages, P, 250, &m->x->draft, NULL), ST_OK);
    return m;
}

/* Every page of both pools is back. */
static void finish(fake_node *f, fake_draft *m) {
    assert_int_equal(eng_pool_available(m->x->draft->pool), eng_pool_total(m->x->draft->pool));
    assert_null(m->x->first);
    fake_assert_pages_back(f);
    fake_destroy(f);
    decode_speculator_close(m->x);
    eng_sampler_destroy(m->sampler);
    free(m);
}

static const eng_sampling warm = {.temperature = 1, .top_p = 0.9f, .repetition = 1.1f, .logprobs = -1, .seed = 5};

static int32_t ask(fake_node *f, fake_draft *m, uint64_t handle, int32_t count, int32_t max_tokens, bool remote) {
    int32_t *all = m->tokens[handle];
    fake_prompt(all, count, 6, handle);
    node_request *r = fake_request(handle, all, count, max_tokens);
    r->sampling = handle % 2 ? warm : eng_sampling_default;
    if (remote) r->local_tokens_max = 0;
    int32_t n = fake_expect(&r->sampling, f->end_token, all, count, max_tokens, all + count);
    node_core_submit(f->core, &decode_role, r, f->now_us);
    return n;
}

static void check(const fake_node *f, const fake_draft *m, uint64_t handle, int32_t count, int32_t answer) {
    int32_t got[TOKENS];
    assert_int_equal(fake_tokens(f, handle, count, got), answer);
    assert_memory_equal(got, m->tokens[handle] + count, (size_t)answer * sizeof *got);
    assert_int_equal(fake_end(f, handle), ST_OK);
}

static void draws_what_the_target_draws(void **state) {
    (void)state;
    for (int wrong = 0; wrong <= 16; wrong += 4) {
        fake_draft *m = draft_create(PAGES, wrong);
        fake_node *f = fake_create_with(&limits, &m->x->table);
        int32_t n[HANDLES];
        for (uint64_t i = 0; i < 3; i++) n[i] = ask(f, m, i, 13 + 11 * (int32_t)i, 100, false);
        int steps = fake_run(f, 5000);
        for (uint64_t i = 0; i < 3; i++) check(f, m, i, 13 + 11 * (int32_t)i, n[i]);
        const node_event *e = fake_event(f, 1, NODE_DONE);
        assert_true(m->right_history > 0 && m->entries_most == 3 && e->done.draft_us > 0);
        if (wrong == 0) assert_true(e->done.accepted == e->done.proposed && e->done.accepted > 70 && steps < 40);
        if (wrong == 16) assert_true(e->done.accepted == 0 && e->done.proposed > 0);
        finish(f, m);
    }
}

/* The prompt is read while the target's pages are in flight. */
static void reads_while_pages_land(void **state) {
    (void)state;
    fake_draft *m = draft_create(PAGES, 0);
    fake_node *f = fake_create_with(&limits, &m->x->table);
    int32_t n = ask(f, m, 1, 150, 40, true);
    assert_int_equal(fake_run(f, 10), 3);                  /* chunks of 64, and not the last token */
    assert_int_equal(m->rows, 149);
    assert_int_equal(m->drawn, 0);
    fake_land(f, 1, m->tokens[1], 149, ST_OK);
    fake_run(f, 1000);
    check(f, m, 1, 150, n);
    assert_true(fake_event(f, 1, NODE_DONE)->done.accepted > 25);
    m->rows = 0;
    ask(f, m, 3, 150, 1, true);                            /* another one; its first page is in the draft's index */
    fake_run(f, 10);
    node_core_cancel(f->core, 3);
    fake_land(f, 3, m->tokens[3], 0, ST_CANCELED);
    finish(f, m);
}

/* Too few pages for the target, for the draft, or a draft that fails: the same bytes, and all comes back. */
static void does_without(void **state) {
    (void)state;
    int64_t preemptions = 0;
    for (int round = 0; round < 40; round++) {
        node_limits small = limits;
        small.pages = round % 2 ? 30 : 64;
        fake_draft *m = draft_create(round % 4 < 2 ? 20 : PAGES, round % 8);
        m->fails_at = round % 5 ? 0 : 1 + round / 2;
        m->chance = (uint64_t)round;
        fake_node *f = fake_create_with(&small, &m->x->table);
        int32_t n[HANDLES];
        node_counts counts;
        for (uint64_t i = 0; i < 5; i++) n[i] = ask(f, m, i, 10 + 3 * (int32_t)i, 60, false);
        fake_run(f, 5000);
        node_core_counts(f->core, &counts);
        preemptions += counts.preemptions;
        for (uint64_t i = 0; i < 5; i++) check(f, m, i, 10 + 3 * (int32_t)i, n[i]);
        finish(f, m);
    }
    assert_true(preemptions > 10);
}

/* Chi-square over 100,000 answers at temperature 1 (chi_square.h); half of what the draft draws is made wrong. */
static void keeps_the_distribution(void **state) {
    (void)state;
    enum { COUNT = 13, HANDLE = 1 };
    fake_draft *m = draft_create(PAGES, 8);
    fake_node *f = fake_create_with(&limits, &m->x->table);
    int32_t *all = m->tokens[HANDLE], seen[FAKE_V] = {0};
    int64_t proposed = 0, accepted = 0;
    m->x->fixed = true;
    fake_prompt(all, COUNT, 0, HANDLE);
    for (int32_t i = 0; i < CHI_SAMPLES; i++) {
        node_request *r = chi_request(HANDLE, all, COUNT, i);
        fake_expect(&r->sampling, -1, all, COUNT, CHI_ANSWER, all + COUNT);
        chi_count(f, r, seen, &proposed, &accepted);
    }
    chi_assert_kept(seen, all, COUNT, proposed, accepted);
    assert_true(proposed > CHI_SAMPLES && accepted * 4 > proposed && accepted * 4 < 3 * proposed);
    finish(f, m);
}

static void modes_and_drafts_that_do_not_fit(void **state) {
    (void)state;
    decode_speculator *x;
    error err;
    decode_speculate_options o = {.mode = "guess"};
    assert_int_equal(decode_speculator_open(&o, &x, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "expected off, ngram"));
    o.mode = "draft";
    assert_int_equal(decode_speculator_open(&o, &x, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "--draft FILE is missing"));
    o = (decode_speculate_options){.mode = "ngram", .draft = "x.gguf"};
    assert_int_equal(decode_speculator_open(&o, &x, &err), ST_BAD_INPUT);
    o.mode = "auto";
    assert_int_not_equal(decode_speculator_open(&o, &x, &err), ST_OK);
    assert_null(x);
    o = (decode_speculate_options){.mode = "off"};
    assert_int_equal(decode_speculator_open(&o, &x, &err), ST_OK);
    assert_null(decode_speculator_table(x));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(draws_what_the_target_draws), cmocka_unit_test(reads_while_pages_land),
                                       cmocka_unit_test(does_without), cmocka_unit_test(keeps_the_distribution),
                                       cmocka_unit_test(modes_and_drafts_that_do_not_fit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
