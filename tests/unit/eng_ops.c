/* Tests engine/ops.h's back ends op by op: number formats, products and norms against the scalar
 * specification. tests/unit/eng_step.c tests them together. */
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

enum { C = 1536, T = 19, N = 37 };

static eng_context *open_ops(const eng_ops *op, int threads) {
    eng_shape shape = {.L = 1, .D = C, .H = 24, .K = 8, .h = 64, .F = C, .V = 64};
    eng_context *c;
    error err = {.text = ""};
    if (op->open(threads, &shape, &c, &err) != ST_OK) fail_msg("%s", err.text);
    return c;
}

/* Bound: 1e-5 of the sum of |x w|, far above rounding of 1,536 products. A row alone is the same bits
 * as that row among nineteen; a matrix stacked of two parts is the two one after the other. */
static void products_agree(void **state) {
    (void)state;
    static float x[T * C], w[N * C], y[T * N], one[N], expected[T * N];
    fill(x, T * C, 1);
    fill(w, N * C, 2);
    eng_matrix m = {.N = N, .C = C, .parts = 2};
    m.part[0].rows = 20;
    m.part[1].rows = N - 20;
    m.part[0].type = m.part[1].type = ENG_F32;
    m.part[0].row_bytes = m.part[1].row_bytes = C * sizeof *w;
    m.part[0].data = w;
    m.part[1].data = w + 20 * C;
    for (int t = 0; t < T; t++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int i = 0; i < C; i++) sum += (double)x[t * C + i] * (double)w[n * C + i];
            expected[t * N + n] = (float)sum;
        }
    for (int b = 0; eng_ops_at(b); b++) {
        const eng_ops *op = eng_ops_at(b);
        eng_context *c = open_ops(op, 2);
        op->matmul(c, y, x, &m, T);
        for (int i = 0; i < T * N; i++)
            if (fabsf(y[i] - expected[i]) > 1e-5f * C / 4)
                fail_msg("%s: %g, expected %g", op->name, (double)y[i], (double)expected[i]);
        for (int t = 0; t < T; t++) {
            op->matmul(c, one, x + t * C, &m, 1);
            assert_memory_equal(one, y + t * N, sizeof one);
        }
        op->close(c);
    }
}

static void norms_and_gates_agree(void **state) {
    (void)state;
    static float x[T * C], weight[C], a[T * C], b[T * C], gu[2 * T * C];
    fill(x, T * C, 3);
    fill(weight, C, 4);
    fill(gu, 2 * T * C, 5);
    const eng_ops *spec = eng_ops_find("scalar");
    eng_context *s = open_ops(spec, 1);
    for (int i = 0; eng_ops_at(i); i++) {
        const eng_ops *op = eng_ops_at(i);
        eng_context *c = open_ops(op, 3);
        spec->rmsnorm(s, a, x, weight, 1e-5f, T, C);
        op->rmsnorm(c, b, x, weight, 1e-5f, T, C);
        for (int j = 0; j < T * C; j++) assert_true(fabsf(a[j] - b[j]) < 1e-5f);
        spec->silu_mul(s, a, gu, T, C);
        op->silu_mul(c, b, gu, T, C);
        for (int j = 0; j < T * C; j++) assert_true(fabsf(a[j] - b[j]) < 1e-6f);
        op->close(c);
    }
    spec->close(s);
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
    assert_true(eng_team_threads_allowed() >= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_what_gguf_py_reads), cmocka_unit_test(halves_are_exact_and_round_to_even),
        cmocka_unit_test(exp_is_within_its_error),        cmocka_unit_test(products_agree),
        cmocka_unit_test(norms_and_gates_agree),          cmocka_unit_test(names_are_found),
        cmocka_unit_test(the_team_does_each_task_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
