/* Tests engine/cuda/rows.cu: against the scalar specification (engine/cpu/scalar.c), and to the bit against the
 * orders of operations that are written down there. */
#include "engine/cpu/cpu.h"
#include "engine/cuda/kernels.h"
#include "tests/cuda/act_row.h"
#include "tests/cuda/memory.h"
#include <math.h>

enum { T_MAX = 40, C_MAX = 1536 };

static cudaStream_t st;
static const int widths[] = {32, 96, 576, 1536}, heights[] = {1, 2, 3, 7, 16, 17, 40};
#define EACH(i, list) (size_t i = 0; i < sizeof(list) / sizeof *(list); i++)

/* ---- activations ----------------------------------------------------------------------------------------- */

/* A row of activations, all bytes of it, as act.cuh says it: those between the parts stay as they are. */
static void act_expected(char *row, const float *x, int C) {
    memset(row, 0xff, cuda_act_bytes(C));
    memcpy(row, x, (size_t)C * sizeof *x);
    for (int b = 0; b < C / 32; b++) {
        float most = 0;
        int32_t sum = 0;
        for (int i = 0; i < 32; i++)
            if (isnan(x[b * 32 + i]) || fabsf(x[b * 32 + i]) > most) most = fabsf(x[b * 32 + i]);
        float inverse = most >= 0x1p-100f && most < INFINITY ? 8191 / most : 0, unit[2] = {most / 8191};
        for (int i = 0; i < 32; i++) {
            int32_t X = inverse > 0 ? (int32_t)nearbyintf(x[b * 32 + i] * inverse) : 0, hi = (X + 64) >> 7;
            int8_t *group = (int8_t *)row + C * 4 + b * 64 + i / 8 * 16 + i % 8;
            group[0] = (int8_t)hi;
            group[8] = (int8_t)(X - 128 * hi);
            sum += X;
        }
        unit[1] = unit[0] * (float)sum;
        memcpy(row + C * 6 + b * 8, unit, sizeof unit);
    }
}

/* The rows of act(T,C) hold exactly what becomes of the floats of each. */
static void assert_activations(const char *act, const float *x, int T, int C) {
    static char expected[C_MAX * 8];
    size_t bytes = cuda_act_bytes(C);
    for (int t = 0; t < T; t++) {
        act_expected(expected, x + t * C, C);
        for (size_t i = 0; i < bytes; i++)
            if (act[(size_t)t * bytes + i] != expected[i])
                fail_msg("row %d of %d, %d columns: byte %zu is %d, expected %d", t, T, C, i, act[(size_t)t * bytes + i],
                         expected[i]);
    }
}

static void activations_are_fourteen_bits(void **state) {
    (void)state;
    static float x[T_MAX * C_MAX];
    static char out[(T_MAX + 1) * C_MAX * 8];
    for EACH (i, widths)
        for EACH (k, heights) {
            int C = widths[i], T = heights[k];
            size_t bytes = cuda_act_bytes(C);
            fill(x, T * C, 1);
            void *dx = upload(x, (size_t)(T * C) * 4), *act = wild((size_t)(T + 1) * bytes);
            OK(cuda_activate(st, act, dx, T, C));
            download(st, out, act, (size_t)(T + 1) * bytes);
            assert_activations(out, x, T, C);
            for (size_t b = 0; b < bytes; b++) assert_int_equal(out[(size_t)T * bytes + b], -1);
            cudaFree(act);
            cudaFree(dx);
        }
}

/* Each integer is the nearest to x / scale, the planes are in their ranges, the largest is 8191; blocks that are
 * 0, tiny or not finite. Bound: half a unit, and the roundings of 8191/most, of the product and of the scale. */
static void activations_are_near(void **state) {
    enum { C = 224 };
    (void)state;
    float x[C], unit;
    fill(x, C, 2);
    for (int i = 0; i < 32; i++) x[i] *= 1e-20f, x[32 + i] = 0, x[64 + i] *= 1e-36f, x[96 + i] *= 1e30f;
    x[130] = NAN, x[170] = -INFINITY, x[200] = -1000;
    char *row = malloc(cuda_act_bytes(C));
    void *dx = upload(x, sizeof x), *act = wild(cuda_act_bytes(C));
    OK(cuda_activate(st, act, dx, 1, C));
    download(st, row, act, cuda_act_bytes(C));
    for (int i = 0; i < C; i++) {
        int block = i / 32, hi = act_row_plane(row, C, i, 0), lo = act_row_plane(row, C, i, 1);
        unit = act_row_unit(row, C, block, 0);
        assert_memory_equal(row + 4 * i, &x[i], 4);
        assert_in_range(hi + 64, 0, 128);
        assert_in_range(lo + 64, 0, 127);
        if (block == 1 || block == 2 || block == 4 || block == 5) assert_true(hi == 0 && lo == 0);
        else assert_true(fabsf(x[i] - unit * (float)(128 * hi + lo)) <= 0.501f * unit);
    }
    assert_int_equal(act_row_integer(row, C, 200), -8191);
    assert_true(isnan(act_row_unit(row, C, 4, 0)) && isnan(act_row_unit(row, C, 4, 1)));
    assert_true(isinf(act_row_unit(row, C, 5, 0)));
    free(row);
    cudaFree(act);
    cudaFree(dx);
    assert_int_equal(cuda_activate(st, NULL, NULL, 1, 48), cudaErrorInvalidValue);
    OK(cuda_activate(st, NULL, NULL, 0, C));
}

/* ---- RMSNorm ----------------------------------------------------------------------------------------------- */

static float fma_four(float sum, const float v[4]) {
    for (int i = 0; i < 4; i++) sum = fmaf(v[i], v[i], sum);
    return sum;
}

/* In the order of rows.cu. */
static void norm_expected(float *out, const float *x, const float *weight, float eps, int D) {
    float sum[256] = {0}, all = 0;
    for (int i = 0; i < D / 4; i++) sum[i % 256] = fma_four(sum[i % 256], x + 4 * i);
    for (int o = 16; o; o /= 2) {
        float halves[256];
        for (int i = 0; i < 256; i++) halves[i] = sum[i] + sum[i ^ o];
        memcpy(sum, halves, sizeof sum);
    }
    for (int i = 0; i < 256; i += 32) all = i ? all + sum[i] : sum[i];
    float scale = 1 / sqrtf(all / (float)D + eps);
    for (int i = 0; i < D; i++) out[i] = x[i] * scale * weight[i];
}

/* Against double. Roundings of a square on its way into the sum: at most 4 ceil(D/1024) in its thread, 5 in the warp, 7
 * over warps; halved by the root, then the mean, eps, root, division and two products: with D = 1536 less than 17
 * of 2^-24, 1.02e-6. */
static void assert_normed(const float *out, const float *x, const float *weight, float eps, int D) {
    double sum = 0;
    for (int i = 0; i < D; i++) sum += (double)x[i] * (double)x[i];
    double scale = 1 / sqrt(sum / D + (double)eps);
    for (int i = 0; i < D; i++) {
        double exact = (double)x[i] * scale * (double)weight[i];
        assert_true(fabs((double)out[i] - exact) <= 1.02e-6 * fabs(exact));
    }
}

static void norms_agree(void **state) {
    (void)state;
    static float x[T_MAX * C_MAX], y[T_MAX * C_MAX], weight[C_MAX], sum[(T_MAX + 1) * C_MAX], normed[T_MAX * C_MAX];
    static char out[T_MAX * C_MAX * 8];
    const float eps = 1e-5f;
    fill(weight, C_MAX, 3);
    for EACH (i, widths)
        for EACH (k, heights)
            for (int add = 0; add < 2; add++) {
                int D = widths[i], T = heights[k];
                size_t floats = (size_t)(T * D) * 4, bytes = (size_t)T * cuda_act_bytes(D);
                fill(x, T * D, 4);
                fill(y, T * D, 5);
                memset(sum, 0xff, sizeof sum);
                memcpy(sum, x, floats);
                void *dx = upload(sum, floats + (size_t)D * 4), *dy = upload(y, floats), *dw = upload(weight, (size_t)D * 4),
                     *act = wild(bytes);
                OK(cuda_rmsnorm(st, act, dx, add ? dy : NULL, dw, eps, T, D));
                for (int n = 0; n < T * D; n++) x[n] = add ? x[n] + y[n] : x[n];
                for (int t = 0; t < T; t++) norm_expected(normed + t * D, x + t * D, weight, eps, D);
                for (int t = 0; t < T; t++) assert_normed(normed + t * D, x + t * D, weight, eps, D);
                download(st, out, act, bytes);
                assert_activations(out, normed, T, D);
                download(st, sum, dx, floats + (size_t)D * 4);
                assert_memory_equal(sum, x, floats);
                for (int n = 0; n < D; n++) assert_true(isnan(sum[T * D + n]));
                cudaFree(dx), cudaFree(dy), cudaFree(dw), cudaFree(act);
            }
    assert_int_equal(cuda_rmsnorm(st, NULL, NULL, NULL, NULL, eps, 1, 16), cudaErrorInvalidValue);
    OK(cuda_rmsnorm(st, NULL, NULL, NULL, NULL, eps, 0, 32));
}

/* ---- SiLU times up ------------------------------------------------------------------------------------------- */

/* The scalar back end's bits: rows.cu uses the same operations. */
static void gates_are_the_scalar_ones(void **state) {
    (void)state;
    static float gu[2 * T_MAX * C_MAX], floats[T_MAX * C_MAX];
    static char out[(T_MAX + 1) * C_MAX * 8];
    const float far[] = {-1000, 1000, -87.3f, -87.31f, 88.4f, -88.4f, 0, -0.f, INFINITY, -INFINITY, NAN, 1e-30f};
    const eng_ops *spec = eng_ops_find("scalar");
    for EACH (i, widths)
        for EACH (k, heights) {
            int F = widths[i], T = heights[k];
            size_t bytes = (size_t)(T + 1) * cuda_act_bytes(F);
            fill(gu, 2 * T * F, 6);
            for (int n = 0; n < 2 * T * F; n++) gu[n] *= 12;
            if (T > 1) memcpy(gu, far, sizeof far);
            spec->silu_mul(NULL, floats, gu, T, F);
            void *dgu = upload(gu, (size_t)(2 * T * F) * 4), *act = wild(bytes);
            OK(cuda_silu_mul(st, act, dgu, T, F));
            download(st, out, act, bytes);
            for (int n = 0; n < T * F; n++) {
                float x = act_row_float(out + (size_t)(n / F) * cuda_act_bytes(F), n % F);
                if (isnan(floats[n]) && isnan(x)) floats[n] = x;         /* which NaN is the machine's affair */
            }
            assert_activations(out, floats, T, F);
            for (size_t b = 0; b < cuda_act_bytes(F); b++) assert_int_equal(out[(size_t)T * cuda_act_bytes(F) + b], -1);
            cudaFree(act);
            cudaFree(dgu);
        }
    assert_int_equal(cuda_silu_mul(st, NULL, NULL, 1, 40), cudaErrorInvalidValue);
    OK(cuda_silu_mul(st, NULL, NULL, 0, 32));
}

/* ---- rows moved, ranks added ------------------------------------------------------------------------------------ */

static void rows_are_gathered(void **state) {
    enum { T = 9, WANTED = 4 };
    (void)state;
    static float x[T * C_MAX], out[(WANTED + 1) * C_MAX];
    const int32_t wanted[WANTED] = {8, 0, 3, 3};
    for EACH (i, widths) {
        int D = widths[i];
        fill(x, T * D, 7);
        void *dx = upload(x, (size_t)(T * D) * 4), *dout = wild((size_t)((WANTED + 1) * D) * 4), *rows = upload(wanted, sizeof wanted);
        cuda_rows b = {.T = T, .wanted = WANTED, .wanted_row = rows};
        OK(cuda_gather(st, dout, dx, &b, D));
        download(st, out, dout, (size_t)((WANTED + 1) * D) * 4);
        for (int t = 0; t < WANTED; t++) assert_memory_equal(out + t * D, x + wanted[t] * D, (size_t)D * 4);
        for (int n = 0; n < D; n++) assert_true(isnan(out[WANTED * D + n]));
        b.wanted = 0;
        OK(cuda_gather(st, dout, dx, &b, D));
        cudaFree(dx), cudaFree(dout), cudaFree(rows);
    }
}

/* ((a + b) + c) + ...: numbers for which another order has other bits. Parts lie anywhere, with a gap between them; the
 * sum goes beside them and over one of them. */
static void ranks_are_added_in_order(void **state) {
    enum { RANKS = 4, STRIDE = 1031 };
    (void)state;
    static float parts[RANKS * STRIDE], y[STRIDE + 1], all[RANKS * STRIDE];
    const int counts[] = {1, 255, 256, 1030};
    for (int ranks = 1; ranks <= RANKS; ranks++)
        for EACH (i, counts) {
            int count = counts[i], other = 0;
            memset(parts, 0xff, sizeof parts);
            for (int r = 0; r < ranks; r++) fill(parts + r * STRIDE, count, (unsigned)(8 + r));
            for (int n = 0; n < count; n++) parts[n] *= 1e5f;
            void *dparts = upload(parts, sizeof parts), *dy = wild(sizeof y);
            OK(cuda_add_ranks(st, dy, dparts, STRIDE, ranks, (size_t)count));
            download(st, y, dy, sizeof y);
            for (int n = 0; n < count; n++) {
                float sum = parts[n], back = parts[(ranks - 1) * STRIDE + n];
                for (int r = 1; r < ranks; r++) sum += parts[r * STRIDE + n], back += parts[(ranks - 1 - r) * STRIDE + n];
                assert_memory_equal(&y[n], &sum, 4);
                other += sum != back;
            }
            assert_true(isnan(y[count]) && (ranks < 3 || count < 255 || other > 0));
            OK(cuda_add_ranks(st, (float *)dparts + (ranks - 1) * STRIDE, dparts, STRIDE, ranks, (size_t)count));
            download(st, all, dparts, sizeof all);
            memcpy(parts + (ranks - 1) * STRIDE, y, (size_t)count * 4);
            assert_memory_equal(all, parts, sizeof parts);
            cudaFree(dparts), cudaFree(dy);
        }
    OK(cuda_add_ranks(st, NULL, NULL, 0, 2, 0));
    assert_int_equal(cuda_add_ranks(st, NULL, NULL, 0, 0, 1), cudaErrorInvalidValue);
}

static int open_stream(void **state) {
    (void)state;
    return cudaStreamCreateWithFlags(&st, cudaStreamNonBlocking) != cudaSuccess;
}

static int close_stream(void **state) {
    (void)state;
    return cudaStreamDestroy(st) != cudaSuccess;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(activations_are_fourteen_bits), cmocka_unit_test(activations_are_near),
        cmocka_unit_test(norms_agree),                   cmocka_unit_test(gates_are_the_scalar_ones),
        cmocka_unit_test(rows_are_gathered),             cmocka_unit_test(ranks_are_added_in_order),
    };
    return cmocka_run_group_tests(tests, open_stream, close_stream);
}
