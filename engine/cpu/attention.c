/* attention.c -- attention over pages, the softmax online. */
#include "engine/cpu/lanes.h"
#include <math.h>

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

void ISA_NAME(attention)(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,
                               const eng_batch *b, int H, float scale) {
    attend a = {c, out, qkv, kv, b, l, H, scale};
    eng_team_run(c->team, b->tiles_count * kv->K, attend_task, &a);
}

/* What attend_task() lays out. */
size_t ISA_NAME(attention_scratch)(const eng_shape *shape) {
    size_t width = (size_t)(shape->h + LANES - 1) / LANES * LANES, G = (size_t)(shape->H / shape->K);
    return 2 * LANES * width + ENG_TILE_ROWS * G * (width + 2);
}
