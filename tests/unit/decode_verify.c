/* Tests the verifier in decode-node/decode.c and the rows for it in node/core.c: whatever is proposed, however much of it
 * is right and wherever the answer ends, the answer is that of no speculation. The proposer here is told the answer. */
#include "tests/unit/chi_square.h"

static const node_limits limits = {.V = FAKE_V, .context = 256, .pages = 64, .page_tokens = 4, .sequences_max = 8,
                                   .step_tokens_max = 64, .chunk_tokens = 8, .logits_max = 64, .prefix_cache = true};

enum { HANDLES = 16, TOKENS = 256 };

typedef struct oracle {
    node_speculator table;
    int32_t tokens[HANDLES][TOKENS];         /* prompt and right answer, by handle */
    int32_t propose, right;      /* so many tokens, the first of them right; right < 0: by chance */
    uint64_t chance;
    int joined, left;
    int32_t rows_most;           /* of a step, as told */
    int64_t judged, accepted;
} oracle;

static void join(void *ctx, node_seq *s) {
    ((oracle *)ctx)->joined++;
    s->speculation = ctx;
}

static void leave(void *ctx, node_seq *s) {
    (void)s;
    ((oracle *)ctx)->left++;
}

static bool work(void *ctx) { return (void)ctx, false; }

static int32_t plan(void *ctx, node_seq *s, int32_t most, int32_t decoding) {
    const oracle *o = ctx;
    assert_true(most > 0 && decoding > 0 && s->target - s->ready == 1);
    return o->propose < most ? o->propose : most;
}

static void propose(void *ctx, node_seq *const *seqs, int32_t *counts, int n) {
    oracle *o = ctx;
    for (int i = 0; i < n; i++) {
        node_seq *s = seqs[i];
        const int32_t *right = o->tokens[s->request->handle] + s->count;
        o->chance = fake_mix(o->chance, 1);
        int32_t good = o->right >= 0 ? o->right : (int32_t)(o->chance % (uint64_t)(o->propose + 1));
        assert_true(counts[i] > 0 && s->count + counts[i] < s->tokens_max);
        if (o->right < 0 && o->chance >> 60 == 0) counts[i] = 0;       /* after all */
        for (int32_t k = 0; k < counts[i]; k++) s->tokens[s->count + k] = k < good ? right[k] : fake_wrong(right[k]);
    }
}

static void judge(void *ctx, node_seq *s, int32_t proposed, int32_t accepted, const float *rest) {
    oracle *o = ctx;
    assert_true(!rest || accepted == proposed || rest[0] == rest[0]);  /* a number: shown even where the model draws */
    assert_true(accepted <= proposed && s->count <= s->tokens_max);
    if (rest && o->right >= 0) assert_int_equal(accepted, proposed < o->right ? proposed : o->right);
    o->judged += proposed;
    o->accepted += accepted;
}

static void stepped(void *ctx, int32_t rows, int64_t took_us) {
    oracle *o = ctx;
    assert_true(took_us > 0);
    if (rows > o->rows_most) o->rows_most = rows;
}

static oracle *oracle_create(int32_t count, int32_t right) {
    oracle *o = calloc(1, sizeof *o);
    o->table = (node_speculator){.ctx = o, .join = join, .leave = leave, .work = work, .plan = plan, .propose = propose,
                                 .judge = judge, .stepped = stepped};
    o->propose = count;
    o->right = right;
    return o;
}

static const eng_sampling warm = {.temperature = 1, .top_p = 1, .repetition = 1.2f, .frequency = 0.3f, .logprobs = 0, .seed = 77};
/* What a model may draw itself (node_fake.h). */
static const eng_sampling drawn = {.temperature = 1, .top_p = 1, .repetition = 1, .logprobs = -1, .seed = 5};

/* Submits under `handle` and tells the oracle what is right. Returns how long the answer must be. */
static int32_t ask(fake_node *f, oracle *o, uint64_t handle, const eng_sampling *how, int32_t count, int32_t max_tokens) {
    int32_t *all = o->tokens[handle];
    fake_prompt(all, count, 2, handle);
    node_request *r = fake_request(handle, all, count, max_tokens);
    r->sampling = *how;
    node_core_submit(f->core, &decode_role, r, f->now_us);
    return fake_expect(how, f->end_token, all, count, max_tokens, all + count);
}

static void check(const fake_node *f, const oracle *o, uint64_t handle, int32_t count, int32_t answer, int reason) {
    int32_t got[TOKENS];
    assert_int_equal(fake_tokens(f, handle, count, got), answer);
    assert_memory_equal(got, o->tokens[handle] + count, (size_t)answer * sizeof *got);
    assert_int_equal(fake_end(f, handle), ST_OK);
    assert_int_equal(fake_event(f, handle, NODE_DONE)->done.reason, reason);
}

static void finish(fake_node *f, oracle *o) {
    assert_int_equal(o->joined, o->left);
    fake_assert_pages_back(f);
    fake_destroy(f);
    free(o);
}

/* Every length and every number of right ones, greedy, sampled and drawn by the model: the bytes, and as few steps as that allows. */
static void every_accept_length(void **state) {
    (void)state;
    const eng_sampling *const how[] = {&eng_sampling_default, &warm, &drawn};
    for (int kind = 0; kind < 3; kind++)
        for (int32_t k = 0; k <= 9; k++)
            for (int32_t right = 0; right <= k; right++) {
                oracle *o = oracle_create(k, right);
                fake_node *f = fake_create_with(&limits, &o->table);
                if (kind == 2) f->sampler = eng_sampler_create(FAKE_V);
                int32_t n = ask(f, o, 1, how[kind], 8, 60);
                int steps = fake_run(f, 1000);
                check(f, o, 1, 8, n, 2);
                /* The prompt's step gives one token, each other 1 + right; the last ones have room for fewer. */
                assert_in_range(steps, 1 + (n - 1) / (1 + right), 2 + (n - 1) / (1 + right));
                const node_event *e = fake_event(f, 1, NODE_DONE);
                assert_int_equal(e->done.proposed, o->judged);
                assert_int_equal(e->done.accepted, o->accepted);
                assert_int_equal(e->done.computed, 8);     /* proposed rows are no prompt's */
                finish(f, o);
            }
}

/* A token that ends the answer, at each place of an accepted run. */
static void ends_in_the_middle(void **state) {
    (void)state;
    for (int32_t at = 1; at < 30; at++)
        for (int by_stop = 0; by_stop < 2; by_stop++) {
            oracle *o = oracle_create(7, 7);
            fake_node *f = fake_create_with(&limits, &o->table);
            int32_t *all = o->tokens[3];
            fake_prompt(all, 8, 0, 5);
            int32_t n = fake_expect(&eng_sampling_default, -1, all, 8, 60, all + 8);
            int32_t stop = all[8 + at], first = 0;
            while (all[8 + first] != stop) first++;
            node_request *r = fake_request(3, all, 8, 60);
            if (by_stop) r->stop_tokens = &stop, r->stop_count = 1;
            else f->end_token = stop;
            node_core_submit(f->core, &decode_role, r, 0);
            fake_run(f, 1000);
            assert_true(n == 60);
            check(f, o, 3, 8, first + 1, 1);
            finish(f, o);
        }
}

/* max_tokens and the context, for every remainder of the run's length: no row or token is beyond. */
static void ends_where_it_is_full(void **state) {
    (void)state;
    for (int32_t max = 1; max < 24; max++) {
        oracle *o = oracle_create(6, 6);
        fake_node *f = fake_create_with(&limits, &o->table);
        ask(f, o, 1, &eng_sampling_default, 5, max);
        fake_run(f, 1000);
        check(f, o, 1, 5, max, 2);
        finish(f, o);
        node_limits small = limits;
        small.context = 8 + max;
        o = oracle_create(6, 6);
        f = fake_create_with(&small, &o->table);
        ask(f, o, 2, &eng_sampling_default, 8, 100);
        fake_run(f, 1000);
        check(f, o, 2, 8, max, 2);
        finish(f, o);
    }
}

/* Steps with fewer rows or logits than are wanted; more sequences than rows. */
static void shares_below_wants(void **state) {
    (void)state;
    for (int32_t logits = 1; logits < 12; logits++) {
        node_limits small = limits;
        small.logits_max = logits;
        small.step_tokens_max = logits + logits % 3;
        oracle *o = oracle_create(5, -1);
        fake_node *f = fake_create_with(&small, &o->table);
        int32_t n[HANDLES];
        for (uint64_t i = 0; i < 6; i++) n[i] = ask(f, o, i, i % 2 ? &warm : &eng_sampling_default, 3 + (int32_t)i * 4, 30);
        fake_run(f, 5000);
        for (uint64_t i = 0; i < 6; i++) check(f, o, i, 3 + (int32_t)i * 4, n[i], 2);
        assert_true(o->rows_most <= logits);
        finish(f, o);
    }
}

/* Too few pages: sequences are preempted in between and go on; proposed rows take no page from anyone. */
static void preempted_in_between(void **state) {
    (void)state;
    int64_t preemptions = 0, accepted = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        node_limits small = limits;
        small.pages = 24;
        small.prefix_cache = seed % 2;
        oracle *o = oracle_create(1 + (int32_t)seed % 7, -1);
        o->chance = seed;
        fake_node *f = fake_create_with(&small, &o->table);
        int32_t n[HANDLES];
        node_counts counts;
        for (uint64_t i = 0; i < 5; i++) n[i] = ask(f, o, i, i % 2 ? &warm : &eng_sampling_default, 9, 60);
        fake_run(f, 5000);
        node_core_counts(f->core, &counts);
        preemptions += counts.preemptions;
        for (uint64_t i = 0; i < 5; i++) check(f, o, i, 9, n[i], 2);
        accepted += o->accepted;
        finish(f, o);
    }
    assert_true(preemptions > 20 && accepted > 100);
}

/* What was proposed and not accepted is in no page that others find: they go on from every token of an answer. */
static void cached_pages_hold_final_tokens(void **state) {
    (void)state;
    oracle *o = oracle_create(7, 2);
    fake_node *f = fake_create_with(&limits, &o->table);
    int32_t n = ask(f, o, 1, &eng_sampling_default, 8, 60), got[TOKENS], want[TOKENS];
    fake_run(f, 1000);
    for (int32_t more = 1; more <= n; more++) {
        int32_t count = 8 + more;
        o->propose = more % 8;
        o->right = -1;
        memcpy(o->tokens[2], o->tokens[1], sizeof o->tokens[2]);
        int32_t m = fake_expect(&eng_sampling_default, -1, o->tokens[1], count, 12, want);
        memcpy(o->tokens[2] + count, want, (size_t)m * sizeof *want);
        f->events_count = 0;
        node_core_submit(f->core, &decode_role, fake_request(2, o->tokens[1], count, 12), 0);
        const node_event *e = fake_event(f, 2, NODE_RESERVED);
        assert_true(e->reserved.cached >= (count - 1) / 4 * 4);
        fake_run(f, 1000);
        assert_int_equal(fake_tokens(f, 2, count, got), m);
        assert_memory_equal(got, want, (size_t)m * sizeof *got);
    }
    finish(f, o);
}

/* Canceled, or a step that fails, while rows are proposed: everything comes back. */
static void canceled_and_failed(void **state) {
    (void)state;
    for (int steps = 0; steps < 12; steps++) {
        oracle *o = oracle_create(5, 3);
        fake_node *f = fake_create_with(&limits, &o->table);
        ask(f, o, 1, &eng_sampling_default, 20, 60);
        ask(f, o, 2, &eng_sampling_default, 7, 60);
        fake_run(f, steps);
        node_core_cancel(f->core, 1);
        f->step_fails = ST_DEVICE;
        fake_run(f, 2);
        assert_true(fake_end(f, 1) == ST_CANCELED && fake_end(f, 2) == ST_DEVICE);
        finish(f, o);
    }
}

/* Chi-square over 100,000 answers at temperature 1, each with its own seed. Half of the proposals are the target's own draws,
 * as a draft with the same randomness makes them, half are wrong. What the proposers themselves propose: decode_speculate.c. */
static void keeps_the_distribution(void **state) {
    (void)state;
    enum { COUNT = 8 };
    oracle *o = oracle_create(3, -1);
    fake_node *f = fake_create_with(&limits, &o->table);
    eng_sampling how = chi_sampling;
    int32_t seen[FAKE_V] = {0};
    for (int32_t i = 0; i < CHI_SAMPLES; i++) {
        how.seed = (uint64_t)i;
        f->events_count = 0;
        ask(f, o, 1, &how, COUNT, CHI_ANSWER);
        fake_run(f, 10);
        int32_t got[TOKENS];
        assert_int_equal(fake_tokens(f, 1, COUNT, got), CHI_ANSWER);
        seen[got[2]]++;
    }
    chi_assert_kept(seen, o->tokens[1], COUNT, o->judged, o->accepted);
    assert_true(o->accepted * 4 > o->judged && o->accepted * 4 < 3 * o->judged);
    finish(f, o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_accept_length), cmocka_unit_test(ends_in_the_middle),
        cmocka_unit_test(ends_where_it_is_full), cmocka_unit_test(shares_below_wants),
        cmocka_unit_test(preempted_in_between), cmocka_unit_test(cached_pages_hold_final_tokens),
        cmocka_unit_test(canceled_and_failed), cmocka_unit_test(keeps_the_distribution)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
