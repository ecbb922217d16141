/* Tests engine/cuda/product.cu. The float of a product is a fixed sequence of roundings: it is computed here once more,
 * in plain C from the rows as the file has them, and compared to the bit; and with a bound that is argued, to the
 * product in double. */
#include "engine/cpu/cpu.h"
#include "engine/cuda/kernels.h"
#include "tests/cuda/act_row.h"
#include "tests/cuda/memory.h"
#include <math.h>

enum { T_MAX = 40, C_MAX = 1536, N_MAX = 200 };

static cudaStream_t st;
static const eng_type quantised[] = {ENG_Q8_0, ENG_Q4_0, ENG_Q4_1};
#define X(name, number, block, bytes, file) ENG_##name,
static const eng_type types[] = {ENG_TYPES(X)};
#undef X
#define EACH(i, list) (size_t i = 0; i < sizeof(list) / sizeof *(list); i++)

/* ---- weights ------------------------------------------------------------------------------------------------- */

/* A matrix as the file has it, and on the device; a gap between rows, wild bytes behind the last. */
typedef struct weights {
    cuda_matrix m;
    size_t row_bytes;
    uint8_t *rows;
    void *file;
} weights;

static unsigned random_byte(unsigned *seed) {
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 16 & 0xff;
}

/* Any bytes as quants (-128 of Q8_0 too), scales in [1/64, 1/32), minima of either sign. */
static void fill_weights(weights *w, unsigned seed) {
    for (size_t i = 0; i < (size_t)w->m.N * w->row_bytes; i++) w->rows[i] = (uint8_t)random_byte(&seed);
    size_t block = eng_gguf_type_bytes(w->m.type, 32);
    for (int n = 0; n < w->m.N; n++)
        for (int b = 0; b < w->m.C / 32; b++) {
            uint8_t *at = w->rows + (size_t)n * w->row_bytes + (size_t)b * block;
            at[1] = 0x24 | (at[1] & 3);
            if (w->m.type == ENG_Q4_1) at[3] = 0x28 | (at[3] & 0x83);
        }
}

/* Rows to the device's form; the memory behind it stays as it is. */
static void put_weights(weights *w) {
    size_t bytes = cuda_repack_bytes(w->m.type, w->m.N, w->m.C);
    uint8_t behind[64];
    w->file = upload(w->rows, (size_t)w->m.N * w->row_bytes);
    void *data = wild(bytes + sizeof behind);
    OK(cuda_repack(st, data, w->m.type, w->file, w->row_bytes, w->m.N, w->m.C));
    download(st, behind, (char *)data + bytes, sizeof behind);
    for (size_t i = 0; i < sizeof behind; i++) assert_int_equal(behind[i], 0xff);
    w->m.data = data;
}

static weights make_weights(eng_type type, int N, int C) {
    weights w = {.m = {.type = type, .N = N, .C = C}, .row_bytes = eng_gguf_type_bytes(type, C) + 6};
    w.rows = malloc((size_t)N * w.row_bytes);
    fill_weights(&w, (unsigned)(N * 31 + C));
    put_weights(&w);
    return w;
}

static void free_weights(weights *w) {
    cudaFree(w->file);
    cudaFree((void *)(uintptr_t)w->m.data);
    free(w->rows);
}

/* act(T,C) of floats; read back to *out if that is not NULL. */
static void *make_act(const float *x, int T, int C, char *out) {
    size_t bytes = (size_t)T * cuda_act_bytes(C);
    void *dx = upload(x, (size_t)(T * C) * 4), *act = wild(bytes);
    OK(cuda_activate(st, act, dx, T, C));
    OK(cudaStreamSynchronize(st));
    if (out) download(st, out, act, bytes);
    cudaFree(dx);
    return act;
}

/* ---- products --------------------------------------------------------------------------------------------------- */

/* One block of an output: the integer product of the row's 14-bit integers, and the scales as floats. */
static int32_t block_dot(eng_type type, const uint8_t *at, const char *row, int C, int b) {
    const uint8_t *q = at + (type == ENG_Q4_1 ? 4 : 2);
    int32_t sum = 0;
    for (int i = 0; i < 32; i++) {
        int w = type == ENG_Q8_0 ? (int8_t)q[i] : q[i % 16] >> (i < 16 ? 0 : 4) & 15;
        sum += (type == ENG_Q4_0 ? w - 8 : w) * act_row_integer(row, C, b * 32 + i);
    }
    return sum;
}

static float half_at(const uint8_t *p) { return eng_half_to_float((uint16_t)(p[0] | p[1] << 8)); }

/* y[n] of a row, in the order that product.cu writes down. */
static float product_expected(const weights *w, const char *row, int n) {
    int C = w->m.C, blocks = C / 32, length = (blocks + 7) / 8;
    size_t block = eng_gguf_type_bytes(w->m.type, 32);
    float y = 0;
    for (int first = 0; first < blocks; first += length) {
        float acc = 0;
        for (int b = first; b < blocks && b < first + length; b++) {
            const uint8_t *at = w->rows + (size_t)n * w->row_bytes + (size_t)b * block;
            float dot = (float)block_dot(w->m.type, at, row, C, b) * act_row_unit(row, C, b, 0);
            acc = fmaf(half_at(at), dot, acc);
            if (w->m.type == ENG_Q4_1) acc = fmaf(half_at(at + 2), act_row_unit(row, C, b, 1), acc);
        }
        y += acc;
    }
    return y;
}

/* Bound of y[n] against the product of the floats in double: rounding x to integers, half a unit and a little
 * (tests/cuda/kernels_rows.c) for each |w|; and of every block the roundings of dot, of dot * scale, of total, and those
 * of at most C/32/8 + 1 fused adds for each of d and m and 8 sums of segments, each 2^-24 of the terms' sizes. */
static void assert_near(const weights *w, const char *row, const float *x, int n, float y) {
    static float dense[C_MAX];
    int C = w->m.C;
    size_t block = eng_gguf_type_bytes(w->m.type, 32);
    double sum = 0, size = 0, bound = 0;
    eng_cpu_dequantize(w->m.type, w->rows + (size_t)n * w->row_bytes, C, dense);
    for (int i = 0; i < C; i++) {
        const uint8_t *at = w->rows + (size_t)n * w->row_bytes + (size_t)(i / 32) * block;
        double m = w->m.type == ENG_Q4_1 ? fabs((double)half_at(at + 2)) : 0;
        sum += (double)x[i] * (double)dense[i];
        size += fabs((double)x[i]) * (fabs((double)dense[i]) + 2 * m);
        bound += 0.501 * fabs((double)dense[i]) * (double)act_row_unit(row, C, i / 32, 0);
    }
    bound += (3 + 2 * (C / 256 + 1) + 8) * 0x1p-24 * (size + bound);
    assert_true(fabs((double)y - sum) <= bound);
}

/* Outputs: a panel, one, just over, more than a block of the grid has. Columns: one block, fewer than a stage of many_rows
 * has, segments of unlike length, the model's. T is at most rows: the emulator is slow. */
static const struct {
    int N, C, rows;
} shapes[] = {{70, 288, 40}, {32, 32, 17}, {161, 96, 40}, {1, 576, 17}, {33, 1536, 9}};

/* Around where a kernel has groups of rows, and its last group full or not. */
static const struct {
    cuda_product kernel;
    int heights[9];
} kernels[] = {
    {CUDA_PRODUCT_ONE, {1, 3}},
    {CUDA_PRODUCT_FEW, {1, 2, 7, 8, 9, 16, 17, 40}},
    {CUDA_PRODUCT_MANY, {1, 17, 33, 40}},
};

/* Against what rows, the activations of x, have to give. */
static void check_product(const weights *w, cuda_product kernel, const void *act, const char *rows, const float *x, int T) {
    static float y[T_MAX * (N_MAX + 3)];
    int N = w->m.N, C = w->m.C, ldy = N + 3;
    void *dy = wild((size_t)(T * ldy) * 4);
    OK(cuda_matmul_quantised_by(st, kernel, dy, ldy, act, &w->m, T));
    download(st, y, dy, (size_t)(T * ldy) * 4);
    for (int t = 0; t < T; t++) {
        const char *row = rows + (size_t)t * cuda_act_bytes(C);
        for (int n = 0; n < N; n++) {
            float expected = product_expected(w, row, n), got = y[t * ldy + n];
            if (memcmp(&expected, &got, 4) != 0)
                fail_msg("kernel %d, type %d, (%d,%d), %d rows: row %d output %d is %a, expected %a", kernel, w->m.type, N, C, T,
                         t, n, (double)got, (double)expected);
            assert_near(w, row, x + t * C, n, got);
        }
        for (int n = N; n < ldy; n++) assert_true(isnan(y[t * ldy + n]));
    }
    cudaFree(dy);
}

static void products_are_what_is_written_down(void **state) {
    (void)state;
    static float x[T_MAX * C_MAX];
    static char rows[T_MAX * C_MAX * 8];
    fill(x, T_MAX * C_MAX, 1);
    for EACH (k, quantised)
        for EACH (i, shapes) {
            int C = shapes[i].C;
            weights w = make_weights(quantised[k], shapes[i].N, C);
            void *act = make_act(x, shapes[i].rows, C, rows);
            for EACH (l, kernels)
                for (const int *T = kernels[l].heights; *T && *T <= shapes[i].rows; T++)
                    check_product(&w, kernels[l].kernel, act, rows, x, *T);
            cudaFree(act);
            free_weights(&w);
        }
}

/* One row alone; rows enough for a block of many_rows, and blocks for every multiprocessor, or not. */
static void a_kernel_is_chosen(void **state) {
    (void)state;
    assert_int_equal(cuda_product_choose(49152, 1), CUDA_PRODUCT_ONE);
    assert_int_equal(cuda_product_choose(1, 2), CUDA_PRODUCT_FEW);
    assert_int_equal(cuda_product_choose(4096, 96), CUDA_PRODUCT_FEW);
    assert_int_equal(cuda_product_choose(4096, 97), CUDA_PRODUCT_MANY);
    assert_int_equal(cuda_product_choose(5376, 96), CUDA_PRODUCT_FEW);
    assert_int_equal(cuda_product_choose(5377, 96), CUDA_PRODUCT_MANY);
    assert_int_equal(cuda_product_choose(49152, 16), CUDA_PRODUCT_FEW);
    assert_int_equal(cuda_product_choose(49152, 17), CUDA_PRODUCT_MANY);
}

/* The last T of 40 rows, T = 1 to 40, so that a row stands at any place: the bits are those of the row alone. */
static void rows_are_the_same_anywhere(void **state) {
    enum { N = 33, C = 96 };
    (void)state;
    static float x[T_MAX * C], alone[T_MAX * N], y[T_MAX * N];
    fill(x, T_MAX * C, 2);
    for EACH (k, quantised) {
        weights w = make_weights(quantised[k], N, C);
        void *dy = wild(sizeof y);
        char *act = make_act(x, T_MAX, C, NULL);
        for (int t = 0; t < T_MAX; t++)
            OK(cuda_matmul_quantised(st, (float *)dy + t * N, N, act + (size_t)t * cuda_act_bytes(C), &w.m, 1));
        download(st, alone, dy, sizeof alone);
        for (int T = 1; T <= T_MAX; T++)
            for EACH (l, kernels) {
                int first = T_MAX - T;
                if (kernels[l].kernel == CUDA_PRODUCT_ONE) continue;
                OK(cuda_matmul_quantised_by(st, kernels[l].kernel, dy, N, act + (size_t)first * cuda_act_bytes(C), &w.m, T));
                download(st, y, dy, (size_t)(T * N) * 4);
                if (memcmp(y, alone + first * N, (size_t)(T * N) * 4) != 0)
                    fail_msg("kernel %d, type %d: the last %d rows differ from the same rows alone", kernels[l].kernel,
                             w.m.type, T);
            }
        cudaFree(dy), cudaFree(act);
        free_weights(&w);
    }
}

/* The largest integers there are: all -128 by all 8191; all -8; all 15 with a minimum. */
static void the_largest_integers_fit(void **state) {
    enum { N = 33, C = 64, T = 18 };
    (void)state;
    static float x[T * C];
    static char rows[T * C * 8];
    for (int i = 0; i < T * C; i++) x[i] = i / C % 2 ? 3 : -3;
    for EACH (k, quantised) {
        weights w = make_weights(quantised[k], N, C);
        size_t block = eng_gguf_type_bytes(w.m.type, 32), head = w.m.type == ENG_Q4_1 ? 4 : 2;
        int fills[] = {[ENG_Q8_0] = 0x80, [ENG_Q4_0] = 0, [ENG_Q4_1] = 0xff};
        for (int n = 0; n < N; n++)
            for (int b = 0; b < C / 32; b++)
                memset(w.rows + (size_t)n * w.row_bytes + (size_t)b * block + head, fills[w.m.type], block - head);
        cudaFree(w.file), cudaFree((void *)(uintptr_t)w.m.data);
        put_weights(&w);
        void *act = make_act(x, T, C, rows);
        for EACH (i, kernels) check_product(&w, kernels[i].kernel, act, rows, x, T);
        cudaFree(act);
        free_weights(&w);
    }
}

/* A scale that is not finite makes its output NaN and no other; a NaN or an infinity of a row its outputs, no other
 * row's. */
static void what_is_not_finite(void **state) {
    enum { N = 40, C = 96, T = 20 };
    (void)state;
    static float x[T * C], y[T * N];
    for EACH (k, quantised) {
        weights w = make_weights(quantised[k], N, C);
        size_t block = eng_gguf_type_bytes(w.m.type, 32);
        memcpy(w.rows + 3 * w.row_bytes + 2 * block, &(uint16_t){0x7c00}, 2);
        memcpy(w.rows + 37 * w.row_bytes + block, &(uint16_t){0x7e00}, 2);
        cudaFree(w.file), cudaFree((void *)(uintptr_t)w.m.data);
        put_weights(&w);
        fill(x, T * C, 3);
        x[9 * C + 40] = NAN;
        x[19 * C + 70] = INFINITY;
        void *act = make_act(x, T, C, NULL), *dy = wild(sizeof y);
        for EACH (l, kernels) {
            OK(cuda_matmul_quantised_by(st, kernels[l].kernel, dy, N, act, &w.m, T));
            download(st, y, dy, sizeof y);
            for (int i = 0; i < T * N; i++) {
                int t = i / N, n = i % N;
                if (t == 9 || t == 19 || n == 37) assert_true(isnan(y[i]));
                else assert_int_equal(isfinite(y[i]) != 0, n != 3);
            }
        }
        cudaFree(act), cudaFree(dy);
        free_weights(&w);
    }
}

/* In pieces of whole panels, the same bytes; what is not asked for is refused. */
static void matrices_come_in_pieces(void **state) {
    enum { N = 130, C = 96 };
    (void)state;
    for EACH (k, quantised) {
        weights w = make_weights(quantised[k], N, C);
        size_t bytes = cuda_repack_bytes(w.m.type, N, C);
        char *whole = malloc(bytes), *pieces = malloc(bytes);
        char *data = wild(bytes);
        for (int n = 0; n < N; n += 64)
            OK(cuda_repack(st, data + cuda_repack_bytes(w.m.type, n, C), w.m.type, (char *)w.file + (size_t)n * w.row_bytes,
                           w.row_bytes, N - n < 64 ? N - n : 64, C));
        download(st, whole, w.m.data, bytes);
        download(st, pieces, data, bytes);
        assert_memory_equal(whole, pieces, bytes);
        assert_int_equal(bytes, 5 * 32 * eng_gguf_type_bytes(w.m.type, C));
        assert_int_equal(cuda_repack(st, data, w.m.type, w.file, w.row_bytes, N, 48), cudaErrorInvalidValue);
        OK(cuda_repack(st, data, w.m.type, w.file, w.row_bytes, 0, C));
        OK(cuda_matmul_quantised(st, NULL, N, NULL, &w.m, 0));
        w.m.C = 48;
        assert_int_equal(cuda_matmul_quantised(st, NULL, N, NULL, &w.m, 1), cudaErrorInvalidValue);
        w.m.C = C;
        free(whole), free(pieces), cudaFree(data);
        free_weights(&w);
    }
    const eng_type floats[] = {ENG_F32, ENG_F16, ENG_BF16};
    for EACH (k, floats) {
        cuda_matrix m = {.type = floats[k], .N = N, .C = C};
        assert_int_equal(cuda_repack_bytes(floats[k], N, C), 0);
        assert_int_equal(cuda_repack(st, NULL, floats[k], NULL, 0, N, C), cudaErrorInvalidValue);
        assert_int_equal(cuda_matmul_quantised(st, NULL, N, NULL, &m, 1), cudaErrorInvalidValue);
    }
}

/* ---- weights as floats --------------------------------------------------------------------------------------------- */

/* To the nearest, ties to even. */
static uint16_t bf16_of(float x) {
    uint32_t u = eng_float_bits(x);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static void floats_are_rounded_once(void **state) {
    enum { T = 7, C = 288 };
    (void)state;
    static float x[T * C], y[(T + 1) * C];
    const float ties[] = {1 + 0x1p-11f, 1 + 0x3p-11f, 1 + 0x1p-8f, 1 + 0x3p-8f, 70000, 1e-7f, -0.f};
    const eng_type floats[] = {ENG_F32, ENG_F16, ENG_BF16};
    fill(x, T * C, 4);
    memcpy(x, ties, sizeof ties);
    void *act = make_act(x, T, C, NULL);
    for EACH (k, floats) {
        size_t one = eng_gguf_type_bytes(floats[k], 1);
        void *out = wild((T + 1) * C * one);
        OK(cuda_act_floats(st, out, floats[k], act, T, C));
        download(st, y, out, (T + 1) * C * one);
        for (int i = 0; i < (T + 1) * C; i++) {
            uint32_t bits = 0, expected = eng_float_bits(i < T * C ? x[i] : 0);
            memcpy(&bits, (char *)y + (size_t)i * one, one);
            if (floats[k] == ENG_F16) expected = eng_float_to_half(i < T * C ? x[i] : 0);
            if (floats[k] == ENG_BF16) expected = bf16_of(i < T * C ? x[i] : 0);
            assert_int_equal(bits, i < T * C ? expected : one == 4 ? 0xffffffff : 0xffff);
        }
        OK(cuda_act_floats(st, out, floats[k], NULL, 0, C));
        cudaFree(out);
    }
    assert_int_equal(cuda_act_floats(st, NULL, ENG_Q8_0, act, T, C), cudaErrorInvalidValue);
    cudaFree(act);
}

/* The scalar back end's bits; rows that are nobody's are 0, whatever their token. */
static void tokens_are_looked_up(void **state) {
    enum { V = 9, T = 5, D = 288 };
    (void)state;
    static float x[(T + 1) * D], expected[D];
    const int32_t token[T] = {8, 0, INT32_MAX, 3, 3}, position[T] = {5, 0, -1, 7, 1};
    void *dtoken = upload(token, sizeof token), *dposition = upload(position, sizeof position);
    for EACH (k, types) {
        size_t row_bytes = eng_gguf_type_bytes(types[k], D);
        uint8_t *table = malloc(V * row_bytes);
        float row[D];
        for (int n = 0; n < V; n++) {
            fill(row, D, (unsigned)(50 + n));
            eng_quantize_row(types[k], row, D, table + (size_t)n * row_bytes);
        }
        void *dtable = upload(table, V * row_bytes), *dx = wild(sizeof x);
        cuda_rows b = {.T = T, .token = dtoken, .position = dposition};
        OK(cuda_embed(st, dx, types[k], dtable, row_bytes, &b, D));
        download(st, x, dx, sizeof x);
        for (int t = 0; t < T; t++) {
            memset(expected, 0, sizeof expected);
            if (position[t] >= 0) eng_cpu_dequantize(types[k], table + (size_t)token[t] * row_bytes, D, expected);
            assert_memory_equal(x + t * D, expected, sizeof expected);
        }
        for (int i = 0; i < D; i++) assert_true(isnan(x[T * D + i]));
        b.T = 0;
        OK(cuda_embed(st, dx, types[k], dtable, row_bytes, &b, D));
        free(table);
        cudaFree(dtable), cudaFree(dx);
    }
    cudaFree(dtoken), cudaFree(dposition);
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
        cmocka_unit_test(products_are_what_is_written_down), cmocka_unit_test(rows_are_the_same_anywhere),
        cmocka_unit_test(a_kernel_is_chosen),
        cmocka_unit_test(the_largest_integers_fit),          cmocka_unit_test(what_is_not_finite),
        cmocka_unit_test(matrices_come_in_pieces),           cmocka_unit_test(floats_are_rounded_once),
        cmocka_unit_test(tokens_are_looked_up),
    };
    return cmocka_run_group_tests(tests, open_stream, close_stream);
}
