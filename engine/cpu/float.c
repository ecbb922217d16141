/* float.c -- products with weights that are multiplied as floats: F32, F16 and BF16.
 *
 *   one row     widen 32 weights in registers, multiply, add                      (memory speed)
 *   more rows   widen PANEL_OUTPUTS rows of weights to float once, then small tiles of
 *               TILE_T rows x TILE_N outputs with all their lanes in registers     (arithmetic speed)
 */
#include "engine/cpu/lanes.h"
#include "engine/cpu/product.h"
#include <assert.h>

#if defined(__AVX512F__)
enum { TILE_T = 6, TILE_N = 4 };
#elif defined(__AVX__) || defined(__aarch64__)
enum { TILE_T = 2, TILE_N = 2 };
#else
enum { TILE_T = 1, TILE_N = 2 };
#endif

/* ---- weights: 32 of a row at a time ------------------------------------------------------------- */

/* Columns [32 b, 32 b + 16) and the 16 after them. `type` is a constant wherever this is inlined. */
INLINE void weights(eng_type type, const uint8_t *row, int b, lanes *first, lanes *second) {
    switch (type) {
    case ENG_F16:
        *first = halves(row + b * 64);
        *second = halves(row + b * 64 + 32);
        return;
    case ENG_BF16:
        *first = bf16s(row + b * 64);
        *second = bf16s(row + b * 64 + 32);
        return;
    case ENG_F32:
        *first = load((const float *)row + b * BLOCK);
        *second = load((const float *)row + b * BLOCK + LANES);
        return;
    case ENG_Q8_0: case ENG_Q4_0: case ENG_Q4_1: assert(!"a type of WEIGHT_TYPES");
    }
}

/* ---- products ---------------------------------------------------------------------------------- */

/* y[n] = x . row n, n in [0, count): one row of activations. The weights come from memory once and
 * are asked for two groups of rows ahead: a row ends before the hardware has learned where it goes. */
INLINE void dot(eng_type type, float *y, const float *x, const uint8_t *data, size_t row_bytes, int C,
                int count) {
    lanes sum[4], w0, w1;
    UNROLL for (int n = 0; n < count; n++) sum[n] = spread(0);
    const uint8_t *ahead = data + 2 * (size_t)count * row_bytes;
    size_t step = (size_t)count * eng_gguf_type_bytes(type, BLOCK);
    for (int b = 0; b < C / BLOCK; b++, ahead += step) {
        lanes x0 = load(x + b * BLOCK), x1 = load(x + b * BLOCK + LANES);
        for (size_t line = 0; line < step; line += 64) __builtin_prefetch(ahead + line);
        UNROLL for (int n = 0; n < count; n++) {
            weights(type, data + (size_t)n * row_bytes, b, &w0, &w1);
            sum[n] = add_product(sum[n], w0, x0);
            sum[n] = add_product(sum[n], w1, x1);
        }
    }
    UNROLL for (int n = 0; n < count; n++) y[n] = total(sum[n]);
}

INLINE void dots(eng_type type, float *y, const float *x, const uint8_t *data, size_t row_bytes, int C,
                 int rows) {
    for (; rows >= 4; rows -= 4, y += 4, data += 4 * row_bytes) dot(type, y, x, data, row_bytes, C, 4);
    for (; rows; rows--, y++, data += row_bytes) dot(type, y, x, data, row_bytes, C, 1);
}

INLINE void expand(eng_type type, float *panel, const uint8_t *data, size_t row_bytes, int C, int rows) {
    for (int n = 0; n < rows; n++, data += row_bytes, panel += C)
        for (int b = 0; b < C / BLOCK; b++) {
            lanes w0, w1;
            weights(type, data, b, &w0, &w1);
            store(panel + b * BLOCK, w0);
            store(panel + b * BLOCK + LANES, w1);
        }
}

/* y[t][n] = x[t] . panel[n] for t in [0, rows), n in [0, columns); y has rows of N. */
INLINE void tile(float *y, size_t N, const float *x, const float *panel, int C, int rows,
                 int columns) {
    lanes sum[TILE_T][TILE_N], w[TILE_N];
    UNROLL for (int t = 0; t < rows; t++)
        UNROLL for (int n = 0; n < columns; n++) sum[t][n] = spread(0);
    for (int i = 0; i < C; i += LANES) {
        UNROLL for (int n = 0; n < columns; n++) w[n] = load(panel + (size_t)n * (size_t)C + i);
        UNROLL for (int t = 0; t < rows; t++) {
            lanes a = load(x + (size_t)t * (size_t)C + i);
            UNROLL for (int n = 0; n < columns; n++) sum[t][n] = add_product(sum[t][n], w[n], a);
        }
    }
    UNROLL for (int t = 0; t < rows; t++)
        UNROLL for (int n = 0; n < columns; n++) y[(size_t)t * N + (size_t)n] = total(sum[t][n]);
}

/* All T rows times one panel of `outputs` weights. */
static void panel_times(float *y, size_t N, const float *x, const float *panel, int C, int T,
                        int outputs) {
    int t = 0;
    for (; t + TILE_T <= T; t += TILE_T) {
        int n = 0;
        const float *rows = x + (size_t)t * (size_t)C;
        float *to = y + (size_t)t * N;
        for (; n + TILE_N <= outputs; n += TILE_N)
            tile(to + n, N, rows, panel + (size_t)n * (size_t)C, C, TILE_T, TILE_N);
        for (; n < outputs; n++) tile(to + n, N, rows, panel + (size_t)n * (size_t)C, C, TILE_T, 1);
    }
    for (; t < T; t++) {
        int n = 0;
        const float *row = x + (size_t)t * (size_t)C;
        float *to = y + (size_t)t * N;
        for (; n + TILE_N <= outputs; n += TILE_N)
            tile(to + n, N, row, panel + (size_t)n * (size_t)C, C, 1, TILE_N);
        for (; n < outputs; n++) tile(to + n, N, row, panel + (size_t)n * (size_t)C, C, 1, 1);
    }
}

/* One function a weight type: `rows` outputs from the row at data. */
#define WEIGHT_TYPES(X) X(ENG_F32) X(ENG_F16) X(ENG_BF16)
#define PRODUCT(type)                                                                               \
    static void dots_##type(float *y, const float *x, const uint8_t *data, size_t row_bytes, int C, \
                            int rows) {                                                             \
        dots(type, y, x, data, row_bytes, C, rows);                                                 \
    }                                                                                               \
    static void expand_##type(float *panel, const uint8_t *data, size_t row_bytes, int C, int rows) { \
        expand(type, panel, data, row_bytes, C, rows);                                              \
    }
WEIGHT_TYPES(PRODUCT)

static const struct {
    void (*dots)(float *y, const float *x, const uint8_t *data, size_t row_bytes, int C, int rows);
    void (*expand)(float *panel, const uint8_t *data, size_t row_bytes, int C, int rows);
} products[] = {
#define ENTRY(type) [type] = {dots_##type, expand_##type},
    WEIGHT_TYPES(ENTRY)
};

void ISA_NAME(float_times)(const eng_product *p, const uint8_t *rows, size_t row_bytes) {
    assert(products[p->type].dots);
    if (p->T == 1) {
        products[p->type].dots(p->y, p->x, rows, row_bytes, p->C, p->outputs);
        return;
    }
    for (int done = 0; done < p->outputs; done += PANEL_OUTPUTS) {
        int count = p->outputs - done < PANEL_OUTPUTS ? p->outputs - done : PANEL_OUTPUTS;
        products[p->type].expand(p->scratch, rows + (size_t)done * row_bytes, row_bytes, p->C, count);
        panel_times(p->y + done, p->N, p->x, p->scratch, p->C, p->T, count);
    }
}
