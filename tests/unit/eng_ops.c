/* Tests engine/ops.h's back ends op by op: number formats, products and norms against the scalar
 * specification. tests/unit/eng_step.c tests them together. */
#include "engine/cpu/panel.h"
#include "engine/cpu/cpu.h"
#include "tests/golden/dequantize.h"
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>
#include <math.h>

static void weights_are_what_gguf_py_reads(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof dequantized / sizeof *dequantized; i++) {
        float out[64];
        eng_cpu_dequantize((eng_type)dequantized[i].type, dequantized[i].bytes, 64, out);
        assert_memory_equal(out, dequantized[i].bits, sizeof out);
    }
}

static void halves_are_exact_and_round_to_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = eng_half_to_float((uint16_t)h);
        bool nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        assert_int_equal(isnan(f) != 0, nan);
        if (nan) continue;
        double exact = ldexp((h & 0x3ff) + ((h & 0x7c00) ? 1024 : 0), (int)((h & 0x7c00) ? h >> 10 & 31 : 1) - 25);
        if ((h & 0x7fff) == 0x7c00) exact = INFINITY;
        assert_true(fabs((double)f) == exact && (signbit(f) != 0) == (h >> 15));
        assert_int_equal(eng_float_to_half(f), h);
        if ((h & 0x7fff) >= 0x7bff) continue;
        /* Halfway to the next: to the even one; a hair beyond: up. */
        float next = eng_half_to_float((uint16_t)(h + 1)), middle = f / 2 + next / 2;
        assert_int_equal(eng_float_to_half(middle), (h & 1) ? h + 1 : h);
        assert_int_equal(eng_float_to_half(nextafterf(middle, next)), h + 1);
        assert_int_equal(eng_float_to_half(nextafterf(middle, f)), h);
    }
    assert_int_equal(eng_float_to_half(65520), 0x7c00);
    assert_int_equal(eng_float_to_half(65519.99f), 0x7bff);
}

static void exp_is_within_its_error(void **state) {
    (void)state;
    double worst = 0;
    for (float x = -87.2f; x < 88; x += 0.00137f) worst = fmax(worst, fabs(eng_exp(x) / exp(x) - 1));
    print_message("eng_exp: relative error %.3g\n", worst);
    assert_true(worst < 0x1p-22);
    assert_true(eng_exp(0) == 1 && eng_exp(-INFINITY) == 0 && eng_exp(-100) == 0 && isnan(eng_exp(NAN)));
}

static void fill(float *x, int count, unsigned seed) {
    for (int i = 0; i < count; i++) {
        seed = seed * 1664525 + 1013904223;
        x[i] = (float)(int)(seed >> 8 & 0xffff) / 32768 - 1;
    }
}

enum { C = 1504, T = 37, N = 53 };          /* C: the last slab is half, the last segment shorter */

static eng_context *open_ops(const eng_ops *op, int threads) {
    eng_shape shape = {.L = 1, .D = C, .H = 24, .K = 8, .h = 64, .F = C, .V = 64};
    eng_context *c;
    error err = {.text = ""};
    if (op->open(&(eng_options){.threads = threads}, &shape, &c, &err) != ST_OK) fail_msg("%s", err.text);
    return c;
}

/* ---- products ---------------------------------------------------------------------------------- */

/* A matrix of one type in a back end's own form. */
typedef struct weights {
    eng_matrix m;
    void *own;
} weights;

#define X(name, number, block, bytes, file) ENG_##name,
static const eng_type types[] = {ENG_TYPES(X)};
#undef X
enum { TYPES = sizeof types / sizeof *types };

/* Rows of random weights around 1/16; returns the bytes of one. */
static size_t fill_rows(eng_type type, uint8_t *rows, int count) {
    static float w[N * C];
    size_t row_bytes = eng_gguf_type_bytes(type, C);
    fill(w, (size_t)(count * C), 7);
    for (int i = 0; i < count * C; i++) w[i] = 0.0625f + w[i] / 2;
    for (int n = 0; n < count; n++) eng_quantize_row(type, w + n * C, C, rows + (size_t)n * row_bytes);
    return row_bytes;
}

/* Two parts stacked, the first of 20 outputs: a panel is partly empty in the middle. */
static weights make_weights(const eng_ops *op, eng_context *c, eng_type type, uint8_t *rows) {
    weights w = {.m = {.N = N, .C = C, .parts = 2}};
    size_t row_bytes = fill_rows(type, rows, N);
    for (int i = 0; i < 2; i++) {
        w.m.part[i].type = type;
        w.m.part[i].rows = i ? N - 20 : 20;
        w.m.part[i].row_bytes = row_bytes;
        w.m.part[i].data = rows + (i ? 20 * row_bytes : 0);
    }
    size_t bytes = op->own_bytes(c, &w.m);
    if (bytes) {
        w.own = op->alloc(c, bytes);
        op->prepare(c, &w.m, w.own);
        w.m.own = w.own;
    }
    return w;
}

static void exact_product(const eng_matrix *m, const float *x, float *y, float *size) {
    static float row[C];
    for (int n = 0; n < N; n++) {
        eng_type type;
        const void *data = eng_cpu_row(m, n, &type);
        eng_cpu_dequantize(type, data, C, row);
        for (int t = 0; t < T; t++) {
            double sum = 0, all = 0;
            for (int i = 0; i < C; i++) {
                sum += (double)x[t * C + i] * (double)row[i];
                all += fabs((double)x[t * C + i] * (double)row[i]);
            }
            y[t * N + n] = (float)sum;
            size[t * N + n] = (float)all;
        }
    }
}

/* Each back end and type against the exact product. Bound: 3e-4 of the sum of |x w| (what rounding Q8_0's
 * scales to 8 bits may do; found: a third), far above float rounding. A row alone, and any number
 * of rows, give the same bits as those rows among all; so do all back ends that say they compute alike. */
static void products_agree(void **state) {
    (void)state;
    static float x[T * C], y[T * N], one[T * N], expected[T * N], size[T * N], first[TYPES][T * N];
    static uint8_t rows[N * C * 4];
    const char *numerics = NULL;
    fill(x, T * C, 1);
    for (int b = 0; eng_ops_at(b); b++) {
        const eng_ops *op = eng_ops_at(b);
        eng_context *c = open_ops(op, 2);
        void *act = op->alloc(c, op->act_bytes(c, C) * (T + 16));
        bool same = numerics && strcmp(numerics, op->numerics(c)) == 0;
        for (int k = 0; k < TYPES; k++) {
            weights w = make_weights(op, c, types[k], rows);
            exact_product(&w.m, x, expected, size);
            op->activate(c, act, x, T, C);
            op->matmul(c, y, act, &w.m, T);
            for (int i = 0; i < T * N; i++)
                if (fabsf(y[i] - expected[i]) > 3e-4f * size[i])
                    fail_msg("%s, type %d, row %d output %d: %g, expected %g", op->name, types[k], i / N, i % N,
                             (double)y[i], (double)expected[i]);
            for (int count = 1; count < T; count += count < 18 ? 1 : 5)
                for (int t = 0; t + count <= T; t += count) {
                    op->activate(c, act, x + t * C, count, C);
                    op->matmul(c, one, act, &w.m, count);
                    if (memcmp(one, y + t * N, (size_t)(count * N) * sizeof *y) != 0)
                        fail_msg("%s, type %d: %d rows from row %d differ from the same rows among %d", op->name,
                                 types[k], count, t, T);
                }
            if (!numerics) memcpy(first[k], y, sizeof y);
            for (int i = 0; i < T * N && same; i++)
                if (memcmp(&first[k][i], &y[i], sizeof *y) != 0)
                    fail_msg("%s, type %d, row %d output %d: %a, but %a by %s, which has the same numerics",
                             op->name, types[k], i / N, i % N, (double)y[i], (double)first[k][i], eng_ops_at(0)->name);
            if (w.own) op->free(c, w.own);
        }
        print_message("%s: %s\n", op->name, !numerics ? "first" : same ? "same bits as the first" : "numerics of its own");
        if (!numerics) numerics = op->numerics(c);
        op->free(c, act);
        op->close(c);
    }
}

/* The floats of activations come first, with every back end. */
static void norms_and_gates_agree(void **state) {
    (void)state;
    static float x[T * C], y[3 * T * C], weight[C], gu[2 * T * C], sum[2][T * C];
    const float *const parts[3] = {y, y + T * C, y + 2 * T * C};
    fill(x, T * C, 3);
    fill(weight, C, 4);
    fill(gu, 2 * T * C, 5);
    fill(y, 3 * T * C, 6);
    const eng_ops *spec = eng_ops_find("scalar");
    eng_context *s = open_ops(spec, 1);
    for (int k = 0; eng_ops_at(k); k++) {
        const eng_ops *op = eng_ops_at(k);
        eng_context *c = open_ops(op, 3);
        float *a = spec->alloc(s, T * spec->act_bytes(s, C)), *b = op->alloc(c, (T + 16) * op->act_bytes(c, C));
        for (int which = 0; which < 4; which++) {            /* norms with 0, 1 and 3 parts; silu_mul */
            for (int i = 0; i < 2; i++) memcpy(sum[i], x, sizeof x);
            eng_norm n = {.x = sum[0], .y = parts, .parts = which == 2 ? 3 : which, .weight = weight, .eps = 1e-5f, .T = T, .D = C, .end = T};
            if (which == 3) spec->silu_mul(s, a, gu, T, C);
            else spec->rmsnorm(s, a, &n);
            if (which == 3) op->silu_mul(c, b, gu, T, C);
            n.x = sum[1];
            for (int first = 0; first < T && which < 3; first = n.end) {     /* row by row, from one rank and another */
                n.first = first;
                n.end = first + 1 + first % 2 < T ? first + 1 + first % 2 : T;
                op->rmsnorm(c, b, &n);
            }
            for (int i = 0; i < T * C; i++) assert_true(fabsf(a[i] - b[i]) < 1e-5f);
            assert_memory_equal(sum[0], sum[1], sizeof x);
            assert_true((which == 1 || which == 2) == (memcmp(sum[1], x, sizeof x) != 0));
        }
        spec->free(s, a);
        op->free(c, b);
        op->close(c);
    }
    spec->close(s);
}

/* A scale that is not finite makes its output NaN, and no other. */
static void scales_that_are_not_finite(void **state) {
    (void)state;
    static float x[T * C], y[T * N];
    static uint8_t rows[N * C * 4];
    const uint16_t infinite = 0x7c00, nan = 0x7e00;
    fill(x, T * C, 5);
    for (int b = 0; eng_ops_at(b); b++)
        for (int k = 0; k < TYPES; k++) {
            const eng_ops *op = eng_ops_at(b);
            if (!op->form || !panel_has(types[k])) continue;
            eng_context *c = open_ops(op, 1);
            weights w = make_weights(op, c, types[k], rows);
            size_t row_bytes = w.m.part[0].row_bytes, block_bytes = row_bytes / (C / 32);
            memcpy(rows + 3 * row_bytes + 2 * block_bytes, &infinite, 2);
            memcpy(rows + 30 * row_bytes + 40 * block_bytes, &nan, 2);
            op->prepare(c, &w.m, w.own);
            void *act = op->alloc(c, op->act_bytes(c, C) * (T + 16));
            for (int count = 1; count <= T; count += T - 1) {
                op->activate(c, act, x, count, C);
                op->matmul(c, y, act, &w.m, count);
                for (int i = 0; i < count * N; i++) assert_int_equal(isnan(y[i]) != 0, i % N == 3 || i % N == 30);
            }
            op->free(c, act);
            op->free(c, w.own);
            op->close(c);
        }
}

/* The integers of a row: the nearest to x / scale, the planes put together again, the sums; what is left of
 * the last slab is 0. */
static void activations_are_fourteen_bits(void **state) {
    enum { COLUMNS = 352, TALL = 3 };            /* a segment, and one of a slab and a half */
    (void)state;
    float x[TALL * COLUMNS];
    fill(x, TALL * COLUMNS, 11);
    for (int i = 0; i < 256; i++) x[i] *= 1e-20f, x[COLUMNS + i] = 0;
    x[2 * COLUMNS + 300] = -1000;
    for (int k = 0; eng_ops_at(k); k++) {
        const eng_ops *op = eng_ops_at(k);
        if (!op->form) continue;
        eng_context *c = open_ops(op, 1);
        void *rows = op->alloc(c, 16 * op->act_bytes(c, COLUMNS));
        memset(rows, 1, 16 * op->act_bytes(c, COLUMNS));
        op->activate(c, rows, x, TALL, COLUMNS);
        assert_memory_equal(rows, x, sizeof x);
        act_group g = act_group_of(rows, TALL, COLUMNS, 0);
        assert_int_equal(g.height, TALL);
        for (int row = 0; row < TALL; row++)
            for (int b = 0; b < COLUMNS / 32; b++) {
                const int8_t *hi = act_hi(&g, row, b), *lo = hi + act_lo_after(&g);
                float scale = act_scales(&g, b / 8)[row];
                int total[2] = {0};
                for (int i = 0; i < 32; i++) {
                    int X = 128 * hi[i] + lo[i];
                    assert_in_range(hi[i] + 64, 0, 128);
                    assert_in_range(lo[i] + 64, 0, 127);
                    assert_true(fabsf(x[row * COLUMNS + b * 32 + i] - scale * (float)X) <= 0.501f * scale);
                    total[0] += hi[i];
                    total[1] += lo[i];
                }
                for (int i = 0; i < 2; i++) assert_int_equal(act_totals(&g, b)[i * TALL + row], total[i] * 65536);
            }
        for (int row = 0; row < TALL; row++)
            for (int i = 0; i < 32; i++) {
                const int8_t *hi = act_hi(&g, row, COLUMNS / 32) + i;
                assert_true(hi[0] == 0 && hi[act_lo_after(&g)] == 0);
            }
        const int8_t *least = act_hi(&g, 2, 9) + 12;
        assert_int_equal(128 * least[0] + least[act_lo_after(&g)], -ACT_LARGEST);
        op->free(c, rows);
        op->close(c);
    }
}

static void names_are_found(void **state) {
    (void)state;
    assert_string_equal(eng_ops_find("scalar")->name, "scalar");
    assert_string_equal(eng_ops_find("base")->name, "base");
    assert_ptr_equal(eng_ops_find("auto"), eng_ops_find(NULL));
    assert_ptr_equal(eng_ops_find("auto"), eng_ops_at(0));
    assert_null(eng_ops_find("port"));
    assert_null(eng_ops_find("abacus"));
}

static void count_task(void *ctx, int task, int thread) {
    assert_in_range(thread, 0, 3);
    __atomic_fetch_add((int *)ctx + task, 1, __ATOMIC_RELAXED);
}

/* Every task is done once, op after op, with pauses in which the team falls asleep. */
static void the_team_does_each_task_once(void **state) {
    (void)state;
    eng_team *team;
    assert_int_equal(eng_team_create(4, &team, NULL), ST_OK);
    for (int op = 0; op < 500; op++) {
        int done[64] = {0}, tasks = op % 64;
        eng_team_run(team, tasks, count_task, done);
        for (int i = 0; i < 64; i++) assert_int_equal(done[i], i < tasks);
        if (op % 100 == 0) {
            int64_t until = clock_now_us() + 2000;
            while (clock_now_us() < until) {
            }
        }
    }
    eng_team_destroy(team);
    error err;
    assert_int_equal(eng_team_create(-1, &team, &err), ST_BAD_INPUT);
    assert_true(eng_cpus_allowed() >= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_what_gguf_py_reads), cmocka_unit_test(halves_are_exact_and_round_to_even),
        cmocka_unit_test(exp_is_within_its_error),        cmocka_unit_test(products_agree),
        cmocka_unit_test(norms_and_gates_agree), cmocka_unit_test(activations_are_fourteen_bits),
        cmocka_unit_test(scales_that_are_not_finite), cmocka_unit_test(names_are_found),
        cmocka_unit_test(the_team_does_each_task_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
