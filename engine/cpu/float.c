/* float.c -- products with weights that are multiplied as floats: F32, F16 and BF16.
 *
 *   one row     widen 32 weights in registers, multiply, add                      (memory speed)
 *   more rows   widen PANEL rows of weights to float once, then small tiles of
 *               TILE_T rows x TILE_N outputs with all their lanes in registers     (arithmetic speed)
 */
#include "engine/cpu/lanes.h"
#include <assert.h>

#if defined(__AVX512F__)
enum { TILE_T = 6, TILE_N = 4 };
#elif defined(__AVX__)
enum { TILE_T = 2, TILE_N = 2 };
#else
enum { TILE_T = 1, TILE_N = 2 };
#endif
enum { PANEL = 16 };

/* ---- weights: 32 of a row at a time ------------------------------------------------------------- */

/* The conversions take a value that was just masked: from memory GCC 12 would convert byte by byte. */
INLINE lanes unpack_low(const uint8_t *q, int minus) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) {
        bvec b = *(const bvec *)(q + i * W) & 0x0f;
        a.v[i] = __builtin_convertvector(__builtin_convertvector(b, ivec) - minus, vec);
    }
    return a;
}

INLINE lanes unpack_high(const uint8_t *q, int minus) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) {
        bvec b = *(const bvec *)(q + i * W) & 0xf0;
        a.v[i] = __builtin_convertvector((__builtin_convertvector(b, ivec) >> 4) - minus, vec);
    }
    return a;
}

INLINE lanes unpack_bytes(const uint8_t *q) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) {
        bvec b = *(const bvec *)(q + i * W) ^ 0x80;
        a.v[i] = __builtin_convertvector(__builtin_convertvector(b, ivec) - 128, vec);
    }
    return a;
}

/* Columns [32 b, 32 b + 16) and the 16 after them. `type` is a constant wherever this is inlined. */
INLINE void weights(eng_type type, const uint8_t *row, int b, lanes *first, lanes *second) {
    const uint8_t *p;
    switch (type) {
    case ENG_Q8_0:
        p = row + b * 34;
        *first = times(unpack_bytes(p + 2), half_at(p));
        *second = times(unpack_bytes(p + 18), half_at(p));
        return;
    case ENG_Q4_0:
        p = row + b * 18;
        *first = times(unpack_low(p + 2, 8), half_at(p));
        *second = times(unpack_high(p + 2, 8), half_at(p));
        return;
    case ENG_Q4_1:
        p = row + b * 20;
        *first = add_product(spread(half_at(p + 2)), unpack_low(p + 4, 0), spread(half_at(p)));
        *second = add_product(spread(half_at(p + 2)), unpack_high(p + 4, 0), spread(half_at(p)));
        return;
    case ENG_F16:
    case ENG_BF16:
        *first = widen(type, row + b * 64);
        *second = widen(type, row + b * 64 + 32);
        return;
    default:
        *first = load((const float *)row + b * BLOCK);
        *second = load((const float *)row + b * BLOCK + LANES);
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
    size_t step = (size_t)count * row_bytes / (size_t)(C / BLOCK);
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
INLINE void tile(float *y, int N, const float *x, const float *panel, int C, int rows, int columns) {
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
        UNROLL for (int n = 0; n < columns; n++) y[(size_t)t * (size_t)N + n] = total(sum[t][n]);
}

/* All T rows times one panel of `outputs` weights. */
static void panel_times(float *y, int N, const float *x, const float *panel, int C, int T, int outputs) {
    int t = 0;
    for (; t + TILE_T <= T; t += TILE_T) {
        int n = 0;
        const float *rows = x + (size_t)t * (size_t)C;
        float *to = y + (size_t)t * (size_t)N;
        for (; n + TILE_N <= outputs; n += TILE_N)
            tile(to + n, N, rows, panel + (size_t)n * (size_t)C, C, TILE_T, TILE_N);
        for (; n < outputs; n++) tile(to + n, N, rows, panel + (size_t)n * (size_t)C, C, TILE_T, 1);
    }
    for (; t < T; t++) {
        int n = 0;
        const float *row = x + (size_t)t * (size_t)C;
        float *to = y + (size_t)t * (size_t)N;
        for (; n + TILE_N <= outputs; n += TILE_N)
            tile(to + n, N, row, panel + (size_t)n * (size_t)C, C, 1, TILE_N);
        for (; n < outputs; n++) tile(to + n, N, row, panel + (size_t)n * (size_t)C, C, 1, 1);
    }
}

/* One function a weight type: `rows` outputs from the row at data. */
#define WEIGHT_TYPES(X) X(ENG_F32) X(ENG_F16) X(ENG_BF16) X(ENG_Q8_0) X(ENG_Q4_0) X(ENG_Q4_1)
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

typedef struct product {
    eng_context *c;
    float *y;
    const float *x;
    const eng_matrix *w;
    int T, outputs;              /* outputs of one task */
} product;

/* Outputs [n, n + outputs) of one part of the stack, `data` being row n. */
static void product_part(const product *p, eng_type type, const uint8_t *data, size_t row_bytes, int n,
                         int outputs, float *panel) {
    int C = p->w->C, N = p->w->N;
    if (p->T == 1) {
        products[type].dots(p->y + n, p->x, data, row_bytes, C, outputs);
        return;
    }
    for (int done = 0; done < outputs; done += PANEL) {
        int count = outputs - done < PANEL ? outputs - done : PANEL;
        products[type].expand(panel, data + (size_t)done * row_bytes, row_bytes, C, count);
        panel_times(p->y + n + done, N, p->x, panel, C, p->T, count);
    }
}

static void product_task(void *ctx, int task, int thread) {
    const product *p = ctx;
    float *panel = p->c->panel + (size_t)thread * p->c->panel_floats;
    int first = task * p->outputs, end = first + p->outputs, part_first = 0;
    for (int i = 0; i < p->w->parts; i++) {
        int part_end = part_first + p->w->part[i].rows;
        int from = first > part_first ? first : part_first, to = end < part_end ? end : part_end;
        size_t row_bytes = p->w->part[i].row_bytes;
        if (from < to)
            product_part(p, p->w->part[i].type,
                         (const uint8_t *)p->w->part[i].data + (size_t)(from - part_first) * row_bytes,
                         row_bytes, from, to - from, panel);
        part_first = part_end;
    }
}

void ISA_NAME(matmul)(eng_context *c, float *y, const void *x, const eng_matrix *w, int T) {
    enum { TASKS_A_THREAD = 8 };
    if (T == 0) return;
    int share = w->N / (eng_team_threads(c->team) * TASKS_A_THREAD);
    product p = {c, y, x, w, T, (share / PANEL + 1) * PANEL};
    eng_team_run(c->team, (w->N + p.outputs - 1) / p.outputs, product_task, &p);
}

size_t ISA_NAME(product_scratch)(const eng_shape *shape) {
    return (size_t)PANEL * (size_t)eng_cpu_widest(shape);
}
