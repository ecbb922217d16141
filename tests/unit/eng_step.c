/* Tests engine/step.c: the same bytes whatever else is computed, on every back end. */
#include "engine/ops.h"
#include "tests/unit/tiny_gguf.h"
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>

enum { PAGES = 64, P = 16, COUNT = 150, V = 128, ROWS_MAX = 192 };

typedef struct rig {
    tiny_gguf file;
    eng_gguf *g;
    eng_model *m;
    eng_kv *kv;
} rig;

static rig open_rig(const tiny_options *o, const char *isa, int threads, int page, eng_kv_type type) {
    rig r = {.file = tiny_gguf_build(o)};
    error err = {.text = ""};
    eng_options options = {.isa = isa, .threads = threads, .tokens_max = ROWS_MAX,
                           .logits_max = ROWS_MAX};
    if (eng_gguf_open_memory(r.file.data, r.file.bytes, "tiny", &r.g, &err) != ST_OK ||
        eng_model_open(r.g, &options, &r.m, &err) != ST_OK ||
        eng_kv_create(r.m, PAGES * P / page, page, type, &r.kv, &err) != ST_OK)
        fail_msg("%s", err.text);
    return r;
}

static void close_rig(rig *r) {
    eng_kv_destroy(r->kv);
    eng_model_close(r->m);
    eng_gguf_close(r->g);
    tiny_gguf_free(&r->file);
}

static const float *step(rig *r, const eng_rows *rows, int count) {
    error err = {.text = ""};
    const float *logits;
    if (eng_step(r->m, r->kv, rows, count, &logits, &err) != ST_OK) fail_msg("%s", err.text);
    return logits;
}

static void make_prompt(int32_t *tokens, int salt) {
    for (int i = 0; i < COUNT; i++) tokens[i] = (i * 37 + salt * 11 + i * i % 7) % V;
}

/* Logits of every row of the prompt, `chunk` rows a step, pages of `page` tokens. */
static void run_chunked(rig *r, const int32_t *tokens, int chunk, int page, float *out) {
    int32_t blocks[COUNT];
    int pages = (COUNT + page - 1) / page;
    for (int i = 0; i < pages; i++) blocks[i] = pages - 1 - i;
    for (int at = 0; at < COUNT; at += chunk) {
        int n = COUNT - at < chunk ? COUNT - at : chunk;
        eng_rows rows = {tokens + at, n, at, blocks, n};
        memcpy(out + (size_t)at * V, step(r, &rows, 1), (size_t)n * V * sizeof *out);
    }
}

#define X(name, number, block, bytes, file) ENG_##name,
static const eng_type types[] = {ENG_TYPES(X)};
#undef X
static float whole[COUNT * V], other[COUNT * V];

static void chunks_threads_and_pages_change_no_bit(void **state) {
    (void)state;
    static const struct { int chunk, threads, page; } runs[] = {
        {1, 1, 16}, {7, 2, 16}, {16, 3, 16}, {64, 1, 16}, {COUNT, 3, 16}, {33, 2, 4}, {16, 1, 5}, {COUNT, 2, 32},
    };
    int32_t tokens[COUNT];
    make_prompt(tokens, 0);
    for (int b = 0; eng_ops_at(b); b++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            tiny_options o = {.type = types[t], .own_output = t & 1};
            rig r = open_rig(&o, eng_ops_at(b)->name, 1, P, ENG_KV_F16);
            run_chunked(&r, tokens, COUNT, P, whole);
            close_rig(&r);
            for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
                rig again = open_rig(&o, eng_ops_at(b)->name, runs[i].threads, runs[i].page, ENG_KV_F16);
                run_chunked(&again, tokens, runs[i].chunk, runs[i].page, other);
                close_rig(&again);
                if (memcmp(whole, other, sizeof whole))
                    fail_msg("%s type %d: chunk %d, threads %d, page %d differ", eng_ops_at(b)->name,
                             types[t], runs[i].chunk, runs[i].threads, runs[i].page);
            }
        }
}

/* A decode row among 0 to 32 others, at every place of the batch, has the same logits. */
static void company_changes_no_bit(void **state) {
    (void)state;
    enum { OTHERS = 32, AT = 9 };
    int32_t mine[COUNT], theirs[COUNT], block[OTHERS + 1];
    make_prompt(mine, 0);
    make_prompt(theirs, 5);
    for (int b = 0; eng_ops_at(b); b++) {
        rig r = open_rig(&(tiny_options){.type = ENG_Q4_1}, eng_ops_at(b)->name, 2, P, ENG_KV_F16);
        for (int i = 0; i <= OTHERS; i++) block[i] = i;
        for (int i = 0; i <= OTHERS; i++) /* page 0 is mine */
            step(&r, &(eng_rows){i ? theirs + i : mine, AT, 0, &block[i], 0}, 1);
        float alone[V];
        memcpy(alone, step(&r, &(eng_rows){mine + AT, 1, AT, block, 1}, 1), sizeof alone);
        for (int T = 1; T <= OTHERS + 1; T++)
            for (int place = 0; place < T; place += T > 8 ? 5 : 1) {
                eng_rows rows[OTHERS + 1];
                for (int i = 0, them = 1; i < T; i++)
                    rows[i] = i == place ? (eng_rows){mine + AT, 1, AT, block, 1}
                                         : (eng_rows){theirs, 1, AT, &block[them++], 1};
                const float *logits = step(&r, rows, T);
                if (memcmp(alone, logits + (size_t)place * V, sizeof alone))
                    fail_msg("%s: row %d of %d differs", eng_ops_at(b)->name, place, T);
            }
        close_rig(&r);
    }
}

/* Every back end agrees with the specification. Bound: 2e-4 of the largest logit where weights are floats,
 * where weights are integers 2e-3, with Q8_0, whose scales are rounded to 8 bits, 8e-3 (found: half of each). */
static void agrees_with_scalar(void **state) {
    (void)state;
    int32_t tokens[COUNT];
    make_prompt(tokens, 3);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int b = 0; eng_ops_at(b); b++) {
            tiny_options o = {.type = types[t], .rope_scaling = t == 1 ? "linear" : t == 2 ? "yarn" : NULL,
                              .rope_freqs = t == 3};
            rig spec = open_rig(&o, "scalar", 1, P, ENG_KV_F32);
            rig fast = open_rig(&o, eng_ops_at(b)->name, 2, P, ENG_KV_F32);
            run_chunked(&spec, tokens, COUNT, P, whole);
            run_chunked(&fast, tokens, COUNT, P, other);
            close_rig(&spec);
            close_rig(&fast);
            float worst = 0, largest = 0;
            for (int i = 0; i < COUNT * V; i++) {
                worst = fmaxf(worst, fabsf(whole[i] - other[i]));
                largest = fmaxf(largest, fabsf(whole[i]));
            }
            assert_true(largest > 0.1f);
            bool floats = tiny_row_bytes(types[t], 1) > 0;
            float bound = floats ? 2e-4f : types[t] == ENG_Q8_0 ? 8e-3f : 2e-3f;
            if (!(worst <= bound * largest))
                fail_msg("%s type %d: %g of %g", eng_ops_at(b)->name, types[t], (double)worst, (double)largest);
        }
}

/* Back ends that say they compute alike do: every logit, bit for bit. */
static void equal_numerics_are_equal_bits(void **state) {
    (void)state;
    int32_t tokens[COUNT];
    make_prompt(tokens, 7);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        char numerics[64] = "";
        for (int b = 0; eng_ops_at(b); b++) {
            rig r = open_rig(&(tiny_options){.type = types[t]}, eng_ops_at(b)->name, 1, P, ENG_KV_F16);
            bool first = !numerics[0], same = strcmp(numerics, eng_model_numerics(r.m)) == 0;
            if (first) snprintf(numerics, sizeof numerics, "%s", eng_model_numerics(r.m));
            run_chunked(&r, tokens, b % 2 ? 9 : COUNT, P, first ? whole : other);
            close_rig(&r);
            if (same && memcmp(whole, other, sizeof whole))
                fail_msg("%s and %s say %s, but differ for type %d", eng_ops_at(0)->name, eng_ops_at(b)->name,
                         numerics, types[t]);
        }
    }
}

/* What an older owner left in a page, even NaN, cannot be seen. */
static void old_bytes_of_a_page_are_not_read(void **state) {
    (void)state;
    int32_t tokens[COUNT], blocks[PAGES];
    make_prompt(tokens, 1);
    for (int i = 0; i < PAGES; i++) blocks[i] = i;
    for (int b = 0; eng_ops_at(b); b++) {
        rig r = open_rig(&(tiny_options){.type = ENG_F16}, eng_ops_at(b)->name, 1, P, ENG_KV_F16);
        run_chunked(&r, tokens, 16, P, whole);
        eng_kv_box all = {0, 2, 0, 2, 0, COUNT, ENG_KV_F16};
        size_t bytes = eng_kv_box_bytes(r.kv, &all);
        void *nan = malloc(bytes);
        assert_non_null(nan);
        memset(nan, 0xff, bytes);
        eng_kv_unpack(r.kv, blocks, &all, nan);
        free(nan);
        run_chunked(&r, tokens, 7, P, other);
        assert_memory_equal(whole, other, sizeof whole);
        close_rig(&r);
    }
}

static void a_token_outside_the_vocabulary_is_refused(void **state) {
    (void)state;
    rig r = open_rig(&(tiny_options){.type = ENG_F32}, "scalar", 1, P, ENG_KV_F16);
    static const int32_t wrong[] = {-1, V, INT32_MAX};
    for (int i = 0; i < 3; i++) {
        int32_t tokens[2] = {5, wrong[i]}, block = 0;
        error err = {.text = ""};
        const float *logits = NULL;
        assert_int_equal(eng_step(r.m, r.kv, &(eng_rows){tokens, 2, 0, &block, 1}, 1, &logits, &err),
                         ST_BAD_INPUT);
        assert_non_null(strstr(err.text, "position 1"));
        assert_null(logits);
    }
    close_rig(&r);
}

/* How a node knows a slow step from one that hangs. */
static void layers_are_counted_as_they_are_done(void **state) {
    (void)state;
    tiny_options o = {.seed = 3};
    rig r = open_rig(&o, "auto", 1, P, ENG_KV_F16);
    int32_t tokens[COUNT], blocks[] = {0};
    make_prompt(tokens, 1);
    assert_int_equal(eng_model_layers_done(r.m), 0);
    for (uint64_t i = 1; i <= 3; i++) {
        eng_rows rows = {tokens, 4, 0, blocks, 1};
        step(&r, &rows, 1);
        assert_int_equal(eng_model_layers_done(r.m), i * (uint64_t)eng_model_shape(r.m)->L);
    }
    close_rig(&r);
}

static void time_is_told_by_part(void **state) {
    (void)state;
    int32_t tokens[COUNT];
    int64_t sum = 0, began_us = clock_now_us();
    make_prompt(tokens, 1);
    rig r = open_rig(&(tiny_options){.seed = 3}, "auto", 1, P, ENG_KV_F16);
    for (int i = 0; i < 20; i++) run_chunked(&r, tokens, 50, P, whole);
    const int64_t *spent = eng_model_spent_us(r.m);
    for (int i = 0; i < ENG_SPENTS; i++) sum += spent[i];
    assert_true(spent[ENG_SPENT_ATTENTION] > 0 && spent[ENG_SPENT_FFN] > 0 && spent[ENG_SPENT_ENDS] > 0);
    assert_true(spent[ENG_SPENT_GROUP] == 0 && spent[ENG_SPENT_DEVICE] == 0);
    assert_true(sum <= clock_now_us() - began_us);
    close_rig(&r);
}

static void a_step_allocates_nothing(void **state) {
    (void)state;
    int32_t tokens[COUNT];
    make_prompt(tokens, 0);
    for (int b = 0; eng_ops_at(b); b++) {
        rig r = open_rig(&(tiny_options){.type = ENG_Q8_0}, eng_ops_at(b)->name, 2, P, ENG_KV_F16);
        int64_t before = mem_count();
        run_chunked(&r, tokens, 50, P, whole);
        assert_int_equal(mem_count(), before);
        close_rig(&r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_threads_and_pages_change_no_bit),
        cmocka_unit_test(company_changes_no_bit),
        cmocka_unit_test(agrees_with_scalar),
        cmocka_unit_test(equal_numerics_are_equal_bits),
        cmocka_unit_test(old_bytes_of_a_page_are_not_read),
        cmocka_unit_test(a_token_outside_the_vocabulary_is_refused),
        cmocka_unit_test(layers_are_counted_as_they_are_done),
        cmocka_unit_test(time_is_told_by_part),
        cmocka_unit_test(a_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
