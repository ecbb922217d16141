/* engine/cuda as a whole, steps: against the specification within a bound, the same bits however rows come, and the tokens that are
 * drawn from them. */
#include "tests/cuda/model_rig.h"
#include <math.h>

enum { COUNT = 50 };

static float whole[COUNT * RIG_V], other[COUNT * RIG_V];

/* The bound, of the largest logit. What differs from the specification, whose sums are floats in another order:
 *   F32          that order, 2e-4 as for the CPU's back ends (tests/unit/eng_step.c)
 *   Q8_0, Q4_*   activations are integers of 14 bits for each 32 columns: 2^-14 of the largest of them, 2e-3
 *   F16, BF16    activations are rounded to the weights' type, 2^-12 and 2^-9 at most of each; nine products follow
 *                each other, and errors of a row's columns are independent: 8 of those units */
static float bound_of(eng_type type) {
    switch (type) {
    case ENG_F32: return 2e-4f;
    case ENG_F16: return 8 * 0x1p-12f;
    case ENG_BF16: return 8 * 0x1p-9f;
    default: return 2e-3f;
    }
}

static void agrees_with_the_specification(void **state) {
    (void)state;
    int32_t tokens[COUNT];
    rig_prompt(tokens, COUNT, 3);
    for (int t = 0; t < RIG_TYPES; t++) {
        rig spec = rig_of(&(rig_options){.type = rig_types[t]}), cuda = rig_of(&(rig_options){.device = "cuda", .type = rig_types[t]});
        float worst = 0, largest = 0;
        rig_run(&spec, tokens, COUNT, COUNT, whole);
        rig_run(&cuda, tokens, COUNT, COUNT, other);
        for (int i = 0; i < COUNT * RIG_V; i++) {
            worst = fmaxf(worst, fabsf(whole[i] - other[i]));
            largest = fmaxf(largest, fabsf(whole[i]));
        }
        rig_close(&spec);
        rig_close(&cuda);
        print_message("%s: %.2g of the largest logit, bound %.2g\n", eng_gguf_type_name(rig_types[t]), (double)(worst / largest),
                      (double)bound_of(rig_types[t]));
        assert_true(largest > 0.1f);
        if (!(worst <= bound_of(rig_types[t]) * largest)) fail_msg("%s", eng_gguf_type_name(rig_types[t]));
    }
}

/* Whole, in chunks, row by row (captured and replayed), in small pages. */
static void chunks_graphs_and_pages_change_no_bit(void **state) {
    (void)state;
    static const struct { int chunk, P; } runs[] = {{1, 16}, {7, 16}, {33, 5}};
    int32_t tokens[COUNT];
    rig_prompt(tokens, COUNT, 0);
    for (int t = 0; t < RIG_TYPES; t++) {
        rig r = rig_of(&(rig_options){.device = "cuda", .type = rig_types[t], .kv = ENG_KV_F16});
        rig_run(&r, tokens, COUNT, COUNT, whole);
        for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
            assert_int_equal(rig_pages(&r, runs[i].P, ENG_KV_F16, NULL), ST_OK);
            uint64_t before = cuda_graph_launches();
            rig_run(&r, tokens, COUNT, runs[i].chunk, other);
            uint64_t launches = cuda_graph_launches() - before;
            if (memcmp(whole, other, sizeof whole))
                fail_msg("%s: chunks of %d, pages of %d differ", eng_gguf_type_name(rig_types[t]), runs[i].chunk, runs[i].P);
            if (runs[i].chunk == 1) assert_int_equal(launches, COUNT - 1);     /* all but the first of its bucket */
        }
        rig_close(&r);
    }
}

/* A decoded row among 0 to 32 others, at several places, and beside a prompt's chunk. */
static void company_changes_no_bit(void **state) {
    (void)state;
    enum { OTHERS = 20, AT = 9 };
    static const eng_type types[] = {ENG_Q4_1, ENG_BF16};
    int32_t mine[COUNT], theirs[COUNT], block[OTHERS + 3];
    rig_prompt(mine, COUNT, 0);
    rig_prompt(theirs, COUNT, 5);
    for (int i = 0; i < OTHERS + 3; i++) block[i] = i;
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        rig r = rig_of(&(rig_options){.device = "cuda", .type = types[k], .kv = ENG_KV_Q8_0});
        float alone[RIG_V];
        for (int i = 0; i <= OTHERS; i++) rig_step(&r, &(eng_rows){i ? theirs + i : mine, AT, 0, &block[i], 0}, 1);
        memcpy(alone, rig_step(&r, &(eng_rows){mine + AT, 1, AT, block, 1}, 1), sizeof alone);
        for (int T = 1; T <= OTHERS + 1; T += T < 5 ? 1 : 8)
            for (int place = 0; place < T; place += T > 4 ? 7 : 1) {
                eng_rows rows[OTHERS + 1];
                for (int i = 0, them = 1; i < T; i++)
                    rows[i] = i == place ? (eng_rows){mine + AT, 1, AT, block, 1} : (eng_rows){theirs, 1, AT, &block[them++], i % 3 == 0};
                const float *logits = rig_step(&r, rows, T);
                for (int i = 0; i < place; i++) logits += rows[i].logits * RIG_V;
                if (memcmp(alone, logits, sizeof alone)) fail_msg("type %d: row %d of %d differs", types[k], place, T);
            }
        eng_rows mixed[] = {{theirs, 30, 0, &block[OTHERS + 1], 1}, {mine + AT, 1, AT, block, 1}};
        assert_memory_equal(alone, rig_step(&r, mixed, 2) + RIG_V, sizeof alone);
        rig_close(&r);
    }
}

/* A graph of one wanted row does not serve a step that wants two. */
static void wanted_rows_have_their_graph(void **state) {
    (void)state;
    int32_t tokens[2] = {5, 9}, block[2] = {0, 1};
    float alone[2][RIG_V];
    rig r = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q4_0});
    for (int i = 0; i < 2; i++)
        memcpy(alone[i], rig_step(&r, &(eng_rows){&tokens[i], 1, 0, &block[i], 1}, 1), sizeof alone[i]);
    for (int step = 0; step < 8; step++) {
        bool both = step > 3;
        eng_rows rows[] = {{&tokens[0], 1, 0, &block[0], both}, {&tokens[1], 1, 0, &block[1], 1}};
        const float *logits = rig_step(&r, rows, 2);
        if (both) assert_memory_equal(logits, alone[0], sizeof alone[0]);
        assert_memory_equal(logits + both * RIG_V, alone[1], sizeof alone[1]);
    }
    rig_close(&r);
}

/* Graphs belong to the pages they read: two kv of one model take turns. */
static void graphs_go_with_their_pages(void **state) {
    (void)state;
    enum { STEPS = 12 };
    int32_t tokens[2][STEPS], block[1] = {3};
    rig r = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q4_0});
    eng_kv *kv[2] = {r.kv, NULL};
    error err = {.text = ""};
    if (eng_kv_create(r.m, 8, RIG_P, ENG_KV_F16, &kv[1], &err) != ST_OK) fail_msg("%s", err.text);
    for (int k = 0; k < 2; k++) {
        rig_prompt(tokens[k], STEPS, k);
        eng_rows all = {tokens[k], STEPS, 0, block, STEPS};
        const float *logits;
        assert_int_equal(eng_step(r.m, kv[k], &all, 1, &logits, &err), ST_OK);
        memcpy(whole + k * STEPS * RIG_V, logits, STEPS * RIG_V * sizeof *logits);
    }
    uint64_t before = cuda_graph_launches();
    for (int i = 0; i < STEPS; i++)
        for (int k = 0; k < 2; k++) {
            eng_rows row = {tokens[k] + i, 1, i, block, 1};
            const float *logits;
            assert_int_equal(eng_step(r.m, kv[k], &row, 1, &logits, &err), ST_OK);
            assert_memory_equal(logits, whole + (k * STEPS + i) * RIG_V, RIG_V * sizeof *logits);
        }
    assert_int_equal(cuda_graph_launches() - before, 2 * (STEPS - 1));
    const int64_t *spent = eng_model_spent_us(r.m);           /* ops are queued: nobody knows more */
    assert_true(spent[ENG_SPENT_DEVICE] > 0 && spent[ENG_SPENT_ATTENTION] == 0 && spent[ENG_SPENT_FFN] == 0);
    eng_kv_destroy(kv[1]);
    rig_close(&r);
}

/* What a step draws is what eng_sample() draws from the logits that the same step shows: queued, captured and replayed; of
 * all its rows or of some; of rows of several sequences. What asks for more than the device knows is left to the host. */
static void draws_are_the_samplers(void **state) {
    (void)state;
    enum { SEQUENCES = 5, STEPS = 8 };
    static const eng_sampling kinds[SEQUENCES] = {
        {.temperature = 0, .top_p = 1, .repetition = 1, .logprobs = -1},
        {.temperature = 1, .top_p = 1, .repetition = 1, .seed = 7, .logprobs = -1},
        {.temperature = 1.5f, .top_p = 0.8f, .top_k = 20, .repetition = 1, .seed = 1ull << 40, .logprobs = -1},
        {.temperature = 2, .top_p = 1, .min_p = 0.2f, .repetition = 1, .seed = 3, .logprobs = -1},
        {.temperature = 0.7f, .top_p = 1, .repetition = 1, .logprobs = 2}};
    rig r = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q4_1});
    eng_sampler *sampler = eng_sampler_create(RIG_V);
    uint64_t before = cuda_graph_launches();
    for (int i = 0; i < STEPS; i++) {
        static float shown[SEQUENCES * RIG_V];
        int32_t token[SEQUENCES], block[SEQUENCES];
        eng_rows rows[SEQUENCES];
        for (int k = 0; k < SEQUENCES; k++) {
            token[k] = (i * 31 + k * 17) % RIG_V, block[k] = k;
            rows[k] = (eng_rows){.tokens = &token[k], .count = 1, .position = i, .blocks = &block[k], .logits = 1};
        }
        int used = i % 2 ? SEQUENCES : SEQUENCES - 1;        /* where the last one shows its logits all do */
        memcpy(shown, rig_step(&r, rows, used), (size_t)used * RIG_V * sizeof *shown);
        eng_draw draw[SEQUENCES];
        for (int k = 0; k < used; k++) {
            draw[k] = (eng_draw){.row = k, .count = 1000 + i, .sampling = &kinds[k], .token = -2, .shown = i == 4 && k == 2};
            assert_int_equal(eng_step_draws(r.m, &draw[k]), k < SEQUENCES - 1);
        }
        memset(r.m->c->logits, 0xff, sizeof shown);
        const float *again = rig_step(&r, rows, used);
        if (used == SEQUENCES || i == 4) assert_memory_equal(again, shown, (size_t)used * RIG_V * sizeof *shown);
        else assert_true(isnan(again[0]));                   /* they stayed where they are */
        for (int k = 0; k < SEQUENCES - 1; k++) {
            eng_sampled want;
            assert_int_equal(eng_sample(sampler, &kinds[k], shown + k * RIG_V, NULL, 0, 1000 + i, &want), ST_OK);
            if (draw[k].token != want.token) fail_msg("step %d, row %d: token %d, expected %d", i, k, draw[k].token, want.token);
        }
    }
    assert_true(cuda_graph_launches() - before > STEPS);
    eng_sampler_destroy(sampler);
    rig_close(&r);
}

/* A step that is refused draws nothing, and the next one not what was asked of it. */
static void a_refused_step_forgets_its_draws(void **state) {
    (void)state;
    int32_t token = RIG_V, block = 0;
    const float *logits;
    rig r = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q4_1});
    eng_draw draw = {.sampling = &eng_sampling_default, .token = -2};
    eng_rows row = {.tokens = &token, .count = 1, .blocks = &block, .logits = 1};
    assert_true(eng_step_draws(r.m, &draw));
    assert_int_equal(eng_step(r.m, r.kv, &row, 1, &logits, NULL), ST_BAD_INPUT);
    token = 1;
    rig_step(&r, &row, 1);
    assert_int_equal(draw.token, -2);
    rig_close(&r);
}

int main(void) {
    log_setup("test", LOG_WARN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_specification), cmocka_unit_test(chunks_graphs_and_pages_change_no_bit),
        cmocka_unit_test(company_changes_no_bit), cmocka_unit_test(wanted_rows_have_their_graph),
        cmocka_unit_test(graphs_go_with_their_pages), cmocka_unit_test(draws_are_the_samplers),
        cmocka_unit_test(a_refused_step_forgets_its_draws)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
