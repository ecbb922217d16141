/* portable.c -- the fast back end in GNU C vectors, no intrinsics. CMake compiles this file once for
 * each instruction set (PORTABLE_ISA names it, PORTABLE_NAME is "portable/..."); ops.c picks one.
 *
 * Every output of a product is summed the same way, whatever the number of rows, threads or the other
 * rows are: sixteen lanes, lane i adds up columns i, i+16, i+32 ... in rising order, each with one
 * fused multiply-add where the instruction set has it; then the lanes are added as a tree (i and i+8,
 * i+4, i+2, i+1). Both ways to get there use the same dequantising and adding functions:
 *
 *   one row     dequantise 32 weights in registers, multiply, add                 (memory speed)
 *   more rows   dequantise PANEL rows of weights to float once, then small tiles of
 *               TILE_T rows x TILE_N outputs with all their lanes in registers    (arithmetic speed)
 *
 * -ffp-contract=fast lets the compiler fuse a*b+c. Every such expression here has exactly one product,
 * so there is only one way to fuse it. */
#include "engine/cpu/cpu.h"
#include <assert.h>
#include <math.h>

#if defined(__AVX512F__)
enum { W = 16, TILE_T = 6, TILE_N = 4 };     /* W: floats of a register; 32 registers */
#elif defined(__AVX__)
enum { W = 8, TILE_T = 2, TILE_N = 2 };      /* 16 registers */
#else
enum { W = 4, TILE_T = 1, TILE_N = 2 };
#endif
enum { LANES = 16, PARTS = LANES / W, PANEL = 16, BLOCK = 32 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef uint8_t bvec __attribute__((vector_size(W), aligned(1), may_alias));
typedef struct lanes { vec v[PARTS]; } lanes;

INLINE lanes load(const float *p) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = *(const vec *)(p + i * W);
    return a;
}

INLINE void store(float *p, lanes a) {
    UNROLL for (int i = 0; i < PARTS; i++) *(vec *)(p + i * W) = a.v[i];
}

INLINE lanes spread(float f) {
    lanes a;
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] = f - (vec){};
    return a;
}

/* sum + a * b, fused where the instruction set can. */
INLINE lanes add_product(lanes sum, lanes a, lanes b) {
    UNROLL for (int i = 0; i < PARTS; i++) sum.v[i] = a.v[i] * b.v[i] + sum.v[i];
    return sum;
}

INLINE lanes add_lanes(lanes a, lanes b) {
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] += b.v[i];
    return a;
}

/* The tree: lane i and i+8, then i+4, i+2, i+1, whatever the width of a register. */
typedef float quad __attribute__((vector_size(16)));
typedef float oct __attribute__((vector_size(32)));

INLINE float total(lanes a) {
#if defined(__AVX512F__)
    oct o = __builtin_shufflevector(a.v[0], a.v[0], 0, 1, 2, 3, 4, 5, 6, 7) +
            __builtin_shufflevector(a.v[0], a.v[0], 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX__)
    oct o = a.v[0] + a.v[1];
#endif
#if defined(__AVX__)
    quad q = __builtin_shufflevector(o, o, 0, 1, 2, 3) + __builtin_shufflevector(o, o, 4, 5, 6, 7);
#else
    quad q = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
#endif
    q = q + __builtin_shufflevector(q, q, 2, 3, 0, 1);
    return q[0] + q[1];
}

/* ---- weights: 32 of a row at a time ------------------------------------------------------------- */

INLINE float half_at(const void *p) {
#if defined(__F16C__) && !defined(__clang__) /* clang 14 knows the type on aarch64 only; same value */
    _Float16 half;
    memcpy(&half, p, 2);
    return (float)half;
#else
    uint16_t half;
    memcpy(&half, p, 2);
    return eng_half_to_float(half);
#endif
}

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

INLINE lanes times(lanes a, float d) {
    UNROLL for (int i = 0; i < PARTS; i++) a.v[i] *= d;
    return a;
}

INLINE lanes widen(eng_type type, const uint8_t *p) {
    float f[LANES];
    uint16_t u[LANES];
    memcpy(u, p, sizeof u);
    for (int i = 0; i < LANES; i++)
        f[i] = type == ENG_F16 ? eng_half_to_float(u[i]) : eng_bf16_to_float(u[i]);
    return load(f);
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

static void portable_matmul(eng_context *c, float *y, const void *x, const eng_matrix *w, int T) {
    enum { TASKS_A_THREAD = 8 };
    if (T == 0) return;
    int share = w->N / (eng_team_threads(c->team) * TASKS_A_THREAD);
    product p = {c, y, x, w, T, (share / PANEL + 1) * PANEL};
    eng_team_run(c->team, (w->N + p.outputs - 1) / p.outputs, product_task, &p);
}

/* ---- row by row --------------------------------------------------------------------------------- */

enum { ROWS_A_TASK = 8 };

typedef struct row_work {
    float *out;
    const float *in, *weight;
    float eps;
    int T, width;
} row_work;

static void run_rows(eng_context *c, row_work *w, void (*task)(void *, int, int)) {
    eng_team_run(c->team, (w->T + ROWS_A_TASK - 1) / ROWS_A_TASK, task, w);
}

static int last_row(const row_work *w, int task) {
    int end = (task + 1) * ROWS_A_TASK;
    return end < w->T ? end : w->T;
}

static void rmsnorm_task(void *ctx, int task, int thread) {
    const row_work *w = ctx;
    (void)thread;
    for (int t = task * ROWS_A_TASK; t < last_row(w, task); t++) {
        const float *x = w->in + (size_t)t * (size_t)w->width;
        float *out = w->out + (size_t)t * (size_t)w->width;
        lanes sum = spread(0);
        for (int i = 0; i < w->width; i += LANES) sum = add_product(sum, load(x + i), load(x + i));
        float scale = 1 / sqrtf(total(sum) / (float)w->width + w->eps);
        for (int i = 0; i < w->width; i++) out[i] = x[i] * scale * w->weight[i];
    }
}

static void portable_rmsnorm(eng_context *c, void *out, const float *x, const float *weight, float eps,
                             int T, int D) {
    row_work w = {.out = out, .in = x, .weight = weight, .eps = eps, .T = T, .width = D};
    run_rows(c, &w, rmsnorm_task);
}

static void silu_task(void *ctx, int task, int thread) {
    const row_work *w = ctx;
    (void)thread;
    for (int t = task * ROWS_A_TASK; t < last_row(w, task); t++) {
        const float *gate = w->in + (size_t)t * 2 * (size_t)w->width, *up = gate + w->width;
        float *out = w->out + (size_t)t * (size_t)w->width;
        for (int i = 0; i < w->width; i++) out[i] = eng_silu(gate[i]) * up[i];
    }
}

static void portable_silu_mul(eng_context *c, void *out, const float *gu, int T, int F) {
    row_work w = {.out = out, .in = gu, .T = T, .width = F};
    run_rows(c, &w, silu_task);
}

static void portable_add(eng_context *c, float *x, const float *y, int T, int D) {
    (void)c;
    for (size_t i = 0; i < (size_t)T * (size_t)D; i++) x[i] += y[i];
}

/* ---- attention ---------------------------------------------------------------------------------- */

/* One task is one tile of rows of a sequence and one kv head. Positions go by in blocks of sixteen,
 * counted from 0 whatever the page size is: the block's K and V are converted to float once, then
 * every row and every query head of the group takes them. A row reads only positions up to its own,
 * so what follows them (other rows of the chunk, bytes of an older owner) cannot matter. */
typedef struct attend {
    eng_context *c;
    float *out;
    const float *qkv;
    const eng_pages *kv;
    const eng_batch *b;
    int l, H;
    float scale;
} attend;

typedef struct heads {
    float *k;                    /* [dim][16] */
    float *v;                    /* [16][width] */
    float *max, *sum;            /* per row of the tile and query head of the group */
    int width;                   /* h rounded up to lanes; the rest is 0 */
    float *acc;                  /* [row][query head][width] */
} heads;

static void to_float(eng_kv_type type, const void *base, size_t from, size_t count, float *out) {
    const uint16_t *half = (const uint16_t *)base + from;
    size_t i = 0;
    if (type == ENG_KV_F32) {
        memcpy(out, (const float *)base + from, count * sizeof *out);
        return;
    }
    for (; i + LANES <= count; i += LANES) store(out + i, widen(ENG_F16, (const uint8_t *)(half + i)));
    for (; i < count; i++) out[i] = eng_half_to_float(half[i]);
}

/* Positions [first, first + count) of one kv head, count <= 16. */
static void load_block(const attend *a, const heads *s, const int32_t *blocks, int head, int first,
                       int count) {
    const eng_pages *kv = a->kv;
    size_t P = (size_t)kv->P, h = (size_t)kv->h;
    size_t k = eng_page_block(kv, a->l, 0, head), v = eng_page_block(kv, a->l, 1, head);
    bool whole = P % LANES == 0;             /* then all sixteen stand side by side in one page */
    for (int j = 0; j < count; j++) {
        const char *page = eng_page(kv, blocks[(first + j) / kv->P]);
        size_t slot = (size_t)((first + j) % kv->P);
        to_float(kv->type, page, v + slot * h, h, s->v + j * s->width);
        for (size_t d = 0; d < h && !whole; d++)
            s->k[d * LANES + (size_t)j] = eng_element_get(kv->type, page, k + d * P + slot);
    }
    const char *page = eng_page(kv, blocks[first / kv->P]);
    for (size_t d = 0; d < h && whole; d++)
        to_float(kv->type, page, k + d * P + (size_t)(first % kv->P), LANES, s->k + d * LANES);
}

/* exponents[j] = q . k_j * scale; four sums over d so that they do not wait for each other. */
INLINE void scores(float *exponents, const float *q, const float *k, int h, float scale) {
    lanes sum[4];
    int d = 0;
    UNROLL for (int i = 0; i < 4; i++) sum[i] = spread(0);
    for (; d + 4 <= h; d += 4)
        UNROLL for (int i = 0; i < 4; i++)
            sum[i] = add_product(sum[i], load(k + (d + i) * LANES), spread(q[d + i]));
    for (; d < h; d++) sum[0] = add_product(sum[0], load(k + d * LANES), spread(q[d]));
    store(exponents, times(add_lanes(add_lanes(sum[0], sum[2]), add_lanes(sum[1], sum[3])), scale));
}

INLINE float largest(const float *e) {
    float m[8];
    for (int i = 0; i < 8; i++) m[i] = e[i] > e[i + 8] ? e[i] : e[i + 8];
    for (int i = 0; i < 4; i++) m[i] = m[i] > m[i + 4] ? m[i] : m[i + 4];
    float a = m[0] > m[2] ? m[0] : m[2], b = m[1] > m[3] ? m[1] : m[3];
    return a > b ? a : b;
}

/* Takes count positions into one head's running softmax (Milakov and Gimelshein 2018). */
static void attend_block(const heads *s, float *acc, float *max, float *sum, const float *q, int h,
                         int count, float scale) {
    float e[LANES], p[LANES];
    scores(e, q, s->k, h, scale);
    for (int j = 0; j < LANES; j++) e[j] = j < count ? e[j] : -INFINITY;
    float m = largest(e);
    if (*max > m) m = *max;
    float keep = eng_exp(*max - m);
    for (int j = 0; j < LANES; j++) p[j] = eng_exp(e[j] - m);
    *max = m;
    *sum = *sum * keep + total(load(p));
    for (int d = 0; d < s->width; d += LANES) {
        lanes part = spread(0);
        for (int j = 0; j < count; j++)
            part = add_product(part, load(s->v + j * s->width + d), spread(p[j]));
        store(acc + d, add_product(part, load(acc + d), spread(keep)));
    }
}

/* All rows of a tile against the blocks they may see. */
static void attend_tile(const attend *a, const heads *s, const eng_tile *tile_rows, int head) {
    int h = a->kv->h, G = a->H / a->kv->K, stride = (a->H + 2 * a->kv->K) * h;
    const int32_t *blocks = a->b->rows[tile_rows->rows_index].blocks;
    int position = a->b->position[tile_rows->row], last = position + tile_rows->count - 1;
    for (int first = 0; first <= last; first += LANES) {
        load_block(a, s, blocks, head, first, last - first + 1 < LANES ? last - first + 1 : LANES);
        for (int r = first > position ? first - position : 0; r < tile_rows->count; r++) {
            int count = position + r - first + 1;
            const float *q = a->qkv + (size_t)(tile_rows->row + r) * (size_t)stride + head * G * h;
            for (int g = 0; g < G; g++) {
                int i = r * G + g;
                attend_block(s, s->acc + (size_t)i * (size_t)s->width, &s->max[i], &s->sum[i], q + g * h,
                             h, count < LANES ? count : LANES, a->scale);
            }
        }
    }
}

static void attend_task(void *ctx, int task, int thread) {
    const attend *a = ctx;
    int h = a->kv->h, K = a->kv->K, G = a->H / K, head = task % K;
    const eng_tile *rows = &a->b->tiles[task / K];
    heads s = {.width = (h + LANES - 1) / LANES * LANES};
    s.k = a->c->panel + (size_t)thread * a->c->panel_floats;
    s.v = s.k + LANES * s.width;
    s.max = s.v + LANES * s.width;
    s.sum = s.max + rows->count * G;
    s.acc = s.sum + rows->count * G;
    memset(s.v, 0, (size_t)(LANES * s.width) * sizeof *s.v);
    memset(s.acc, 0, (size_t)(rows->count * G * s.width) * sizeof *s.acc);
    for (int i = 0; i < rows->count * G; i++) {
        s.max[i] = -INFINITY;
        s.sum[i] = 0;
    }
    attend_tile(a, &s, rows, head);
    for (int i = 0; i < rows->count * G; i++) {
        float *to = a->out + ((size_t)(rows->row + i / G) * (size_t)a->H + (size_t)(head * G + i % G)) * (size_t)h;
        for (int d = 0; d < h; d++) to[d] = s.acc[i * s.width + d] / s.sum[i];
    }
}

static void portable_attention(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,
                               const eng_batch *b, int H, float scale) {
    attend a = {c, out, qkv, kv, b, l, H, scale};
    eng_team_run(c->team, b->tiles_count * kv->K, attend_task, &a);
}

/* ---- the table ---------------------------------------------------------------------------------- */

/* A thread's scratch holds a panel of weights, or what attend_task() lays out. */
static status portable_open(int threads, const eng_shape *shape, eng_context **out, error *err) {
    size_t width = (size_t)(shape->h + LANES - 1) / LANES * LANES, G = (size_t)(shape->H / shape->K);
    size_t panel = (size_t)PANEL * (size_t)eng_cpu_widest(shape);
    size_t attention = 2 * LANES * width + ENG_TILE_ROWS * G * (width + 2);
    return eng_cpu_open(threads, panel > attention ? panel : attention, PORTABLE_NUMERICS, out, err);
}

extern const eng_ops PORTABLE_OPS;
const eng_ops PORTABLE_OPS = {
    .name = PORTABLE_NAME,
    .open = portable_open,
    ENG_CPU_SHARED_OPS,
    .rmsnorm = portable_rmsnorm,
    .matmul = portable_matmul,
    .attention = portable_attention,
    .silu_mul = portable_silu_mul,
    .add = portable_add,
};
