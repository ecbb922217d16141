/* attention.c -- attention over pages, the softmax online, in tiles (FlashAttention, Dao et al. 2022).
 *
 * A pair is a tile of rows of one sequence and one kv head: its queries are the rows times the query
 * heads of that head's group. Positions go by in spans of 64, counted from 0 whatever the page size is:
 * a span's K and V become floats once, then up to six queries at a time take them, so that each loaded
 * line is multiplied six times.
 *
 * Every 512 positions the running softmax begins anew, and what the splits give is merged in rising
 * order. One thread may do all splits of a pair, or each its own (FlashDecoding, Dao et al. 2023): the
 * operations on a row are the same. A row takes only positions up to its own, so what follows them
 * (other rows of the chunk, bytes of an older owner) cannot matter.
 *
 * Exponents are in base 2: the queries are multiplied by scale * log2 e beforehand. */
#include "engine/cpu/lanes.h"
#include "engine/cpu/pages.h"
#include <math.h>

enum {
    SPAN = 64, SPLIT = 512,
#if defined(__AVX512F__) || defined(__aarch64__)
    QUERIES = 6, SUMS = 24,                  /* at a time; registers that hold sums */
#elif defined(__AVX__)
    QUERIES = 6, SUMS = 12,
#else
    QUERIES = 3, SUMS = 12,
#endif
    SLOTS = 4,                               /* of a thread, for splits and as many for pairs */
    SLOT_QUERIES = 32                        /* pairs with more queries are not split among threads */
};

typedef struct attend {
    eng_context *c;
    float *out;                              /* (T,H*h) */
    const float *qkv;
    const eng_pages *kv;
    const eng_batch *b;
    int l, H, G, width;                      /* G = H/K; width: h rounded up to lanes, the rest is 0 */
    float scale;
    int first;                               /* of the splits that are under way */
} attend;

/* The softmax so far of n queries: largest exponent, sum of 2^(exponent - max), values weighted so. */
typedef struct state {
    float *max, *sum;                        /* (n) */
    float *acc;                              /* (n,width) */
} state;

/* What a thread works with. */
typedef struct work {
    float *k;                                /* (h,SPAN) */
    float *v;                                /* (SPAN,width) */
    float *e;                                /* (QUERIES,SPAN) exponents, then weights */
    float *q;                                /* (n,width) scaled */
    state whole, part;
} work;

static int least(int a, int b) { return a < b ? a : b; }

/* ---- lanes ------------------------------------------------------------------------------------- */

/* W int8 as integers; compilers do not find these instructions by themselves. */
#if defined(__AVX512F__)
INLINE ivec bytes(const char *p) { return (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)); }
#elif defined(__F16C__)
INLINE ivec bytes(const char *p) { return (ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)); }
#elif defined(__aarch64__)
INLINE ivec bytes(const char *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return (ivec)vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
}
#else
INLINE ivec bytes(const char *p) {
    int32_t q[W];
    for (int i = 0; i < W; i++) q[i] = (int8_t)p[i];
    ivec all;
    memcpy(&all, q, sizeof all);
    return all;
}
#endif

/* 2^x for x <= 0: x = n + r, |r| <= 1/2, times 2^n a polynomial of degree 5 that is exact at 0, relative
 * error below 2^-22. What is below -126 counts as -126: nothing beside the largest weight, which is 1. */
INLINE lanes power(lanes x) {
    x = greater(spread(-126), x);            /* in this order a NaN stays one */
    UNROLL for (int i = 0; i < PARTS; i++) {
        vec shifted = x.v[i] + 12582912.f, r = x.v[i] - (shifted - 12582912.f);
        vec p = 1.326472731e-3f * r + 9.671512991e-3f;
        p = p * r + 5.550733581e-2f;
        p = p * r + 2.402224243e-1f;
        p = p * r + 6.931470037e-1f;
        p = p * r + 1;
        x.v[i] = p * (vec)(((ivec)shifted << 23) + 0x3f800000);
    }
    return x;
}

/* Sixteen elements of a page as floats, without their scale. Every conversion is exact. */
INLINE lanes element(eng_kv_type type, const char *p) {
    lanes x;
    UNROLL for (int i = 0; i < PARTS; i++, p += W * (int)eng_element_bytes(type)) {
        if (type == ENG_KV_F32) x.v[i] = *(const vec *)(const void *)p;
        if (type == ENG_KV_F16) x.v[i] = from_halves(p);
        if (type == ENG_KV_BF16) x.v[i] = from_bf16(p);
        if (type == ENG_KV_Q8_0) x.v[i] = __builtin_convertvector(bytes(p), vec);
    }
    return x;
}

INLINE lanes scaled(lanes x, lanes scale) {
    UNROLL for (int i = 0; i < PARTS; i++) x.v[i] *= scale.v[i];
    return x;
}

/* ---- a span as floats -------------------------------------------------------------------------- */

/* Sixteen positions: their K and V in a page, from slot on. */
typedef struct place {
    char *k, *v;                             /* of the layer and head */
    int slot;
} place;

static place place_of(const attend *a, const int32_t *blocks, int head, int position) {
    int32_t page = blocks[position / a->kv->P];
    return (place){.k = eng_page_block(a->kv, page, a->l, 0, head),
                   .v = eng_page_block(a->kv, page, a->l, 1, head),
                   .slot = position % a->kv->P};
}

/* To column or row j; those of the next span, where each is wanted in turn, come nearer meanwhile. */
INLINE void load_vectors(eng_kv_type type, const attend *a, const work *w, int j, place at, place next) {
    const eng_pages kv = *a->kv;
    const int size = (int)eng_element_bytes(type), h = kv.h, width = a->width;
    float *to = w->k + j;
    lanes scale = spread(1);
    for (int d = 0; d < h; d++) {
        if (type == ENG_KV_Q8_0 && d % ENG_SCALE_DIMS == 0)
            scale = element(ENG_KV_F16, eng_page_scale(&kv, at.k, 0, at.slot, d / ENG_SCALE_DIMS));
        lanes x = element(type, at.k + (d * kv.P + at.slot) * size);
        store(to + d * SPAN, type == ENG_KV_Q8_0 ? scaled(x, scale) : x);
        if (d * kv.P * size % 64 == 0) __builtin_prefetch(next.k + (d * kv.P + next.slot) * size, 0, 2);
    }
    to = w->v + j * width;
    for (int i = 0; i < LANES; i++)
        for (int d = 0; d < h; d += LANES) {
            if (type == ENG_KV_Q8_0 && d % ENG_SCALE_DIMS == 0)
                scale = spread(half_at(eng_page_scale(&kv, at.v, 1, at.slot + i, d / ENG_SCALE_DIMS)));
            lanes x = element(type, at.v + ((at.slot + i) * h + d) * size);
            store(to + i * width + d, type == ENG_KV_Q8_0 ? scaled(x, scale) : x);
            if (d * size % 64 == 0) __builtin_prefetch(next.v + ((next.slot + i) * h + d) * size, 0, 2);
        }
}

/* One position, whatever page size and head width are. */
static void load_position(const attend *a, const work *w, int j, char *k, char *v, int slot) {
    const eng_pages *kv = a->kv;
    float values[ENG_HEAD_MAX];
    char row[ENG_ROW_BYTES_MAX];
    eng_row_read(kv, k, 0, slot, row);
    eng_cpu_dequantize(eng_row_type(kv->type), row, kv->h, values);
    for (int d = 0; d < kv->h; d++) w->k[d * SPAN + j] = values[d];
    eng_row_read(kv, v, 1, slot, row);
    eng_cpu_dequantize(eng_row_type(kv->type), row, kv->h, w->v + j * a->width);
}

/* Positions [first, first + count) of one kv head; end: how far the sequence reaches. */
static void load_span(const attend *a, const work *w, const int32_t *blocks, int head, int first, int count,
                      int end) {
    const eng_pages *kv = a->kv;
    int step = kv->P % LANES || kv->h % LANES ? 1 : LANES;
    for (int j = 0; j < count; j += step) {
        place at = place_of(a, blocks, head, first + j);
        place next = first + j + SPAN < end ? place_of(a, blocks, head, first + j + SPAN) : at;
        if (step == 1) load_position(a, w, j, at.k, at.v, at.slot);
        else if (kv->type == ENG_KV_F32) load_vectors(ENG_KV_F32, a, w, j, at, next);
        else if (kv->type == ENG_KV_F16) load_vectors(ENG_KV_F16, a, w, j, at, next);
        else if (kv->type == ENG_KV_BF16) load_vectors(ENG_KV_BF16, a, w, j, at, next);
        else load_vectors(ENG_KV_Q8_0, a, w, j, at, next);
    }
}

/* ---- queries against a span -------------------------------------------------------------------- */

/* M rows, S times sixteen columns: c = a b, or c = c keep + a b. a: (M,n), b: (n,S*16), c: (M,S*16), rows
 * of each so many floats apart. Both products of attention: exponents = q k and values = weights v. */
INLINE void multiply_strip(int M, int S, float *c, int c_row, const float *a, int a_row, const float *b,
                           int b_row, int n, const float *keep) {
    lanes sum[QUERIES][4];
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int s = 0; s < S; s++) sum[m][s] = spread(0);
    for (int i = 0; i < n; i++) {
        lanes line[4];
        UNROLL for (int s = 0; s < S; s++) line[s] = load(b + i * b_row + s * LANES);
        UNROLL for (int m = 0; m < M; m++) {
            lanes factor = spread(a[m * a_row + i]);
            UNROLL for (int s = 0; s < S; s++) sum[m][s] = add_product(sum[m][s], factor, line[s]);
        }
    }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int s = 0; s < S; s++) {
            float *to = c + m * c_row + s * LANES;
            store(to, keep ? add_product(sum[m][s], load(to), spread(keep[m])) : sum[m][s]);
        }
}

/* Columns in strips as wide as the registers allow. */
INLINE void multiply_rows(int M, float *c, int c_row, const float *a, int a_row, const float *b, int b_row,
                          int n, int columns, const float *keep) {
    const int S = M * PARTS * 4 <= SUMS ? 4 : M * PARTS * 2 <= SUMS ? 2 : 1;
    int at = 0;
    for (; at + S * LANES <= columns; at += S * LANES)
        multiply_strip(M, S, c + at, c_row, a, a_row, b + at, b_row, n, keep);
    for (; at < columns; at += LANES) multiply_strip(M, 1, c + at, c_row, a, a_row, b + at, b_row, n, keep);
}

static void multiply(int M, float *c, int c_row, const float *a, int a_row, const float *b, int b_row, int n,
                     int columns, const float *keep) {
    switch (M) {
    case 1: multiply_rows(1, c, c_row, a, a_row, b, b_row, n, columns, keep); return;
    case 2: multiply_rows(2, c, c_row, a, a_row, b, b_row, n, columns, keep); return;
    case 3: multiply_rows(3, c, c_row, a, a_row, b, b_row, n, columns, keep); return;
#if defined(__AVX__) || defined(__aarch64__)
    case 4: multiply_rows(4, c, c_row, a, a_row, b, b_row, n, columns, keep); return;
    case 5: multiply_rows(5, c, c_row, a, a_row, b, b_row, n, columns, keep); return;
    case 6: multiply_rows(6, c, c_row, a, a_row, b, b_row, n, columns, keep); return;
#endif
    }
}

/* Exponents of M queries become weights; keep: by how much what was summed before shrinks (Milakov and
 * Gimelshein 2018). */
INLINE void weigh(float *exponents, float *max, float *sum, int M, int count, float *keep) {
    int columns = (count + LANES - 1) / LANES * LANES;
    for (int m = 0; m < M; m++) {
        float *e = exponents + m * SPAN, old = max[m];
        for (int j = count; j < columns; j++) e[j] = -INFINITY;
        lanes top = load(e);
        for (int j = LANES; j < columns; j += LANES) top = greater(top, load(e + j));
        max[m] = greatest(top);
        if (old > max[m]) max[m] = old;
        keep[m] = old - max[m];
    }
    store(keep, power(load(keep)));
    for (int m = 0; m < M; m++) {
        float *e = exponents + m * SPAN;
        lanes all = spread(0);
        for (int j = 0; j < columns; j += LANES) store(e + j, power(add_lanes(load(e + j), spread(-max[m]))));
        for (int j = count; j < columns; j++) e[j] = 0;
        for (int j = 0; j < columns; j += LANES) all = add_lanes(all, load(e + j));
        sum[m] = sum[m] * keep[m] + total(all);
    }
}

/* Queries [first, end) take the span's first count positions. */
static void take_span(const attend *a, const work *w, int first, int end, int count) {
    int columns = (count + LANES - 1) / LANES * LANES;
    for (int i = first, M; i < end; i += M) {
        float keep[LANES] = {0};
        M = least(end - i, QUERIES);
        multiply(M, w->e, SPAN, w->q + i * a->width, a->width, w->k, SPAN, a->kv->h, columns, NULL);
        if (count == SPAN) weigh(w->e, w->part.max + i, w->part.sum + i, M, SPAN, keep);
        else weigh(w->e, w->part.max + i, w->part.sum + i, M, count, keep);
        multiply(M, w->part.acc + i * a->width, a->width, w->e, SPAN, w->v, a->width, count, a->width, keep);
    }
}

/* ---- a pair's splits --------------------------------------------------------------------------- */

static const eng_tile *tile_of(const attend *a, int pair) { return &a->b->tiles[pair / a->kv->K]; }

/* Query heads [first, end) of the pair's kv head; a rank may have a part of a group. */
typedef struct heads {
    int first, count;
} heads;

static heads heads_of(const attend *a, int pair) {
    int k = pair % a->kv->K, first = eng_pages_head(a->kv, k, a->H);
    return (heads){first, eng_pages_head(a->kv, k + 1, a->H) - first};
}

static int queries_of(const attend *a, int pair) { return tile_of(a, pair)->count * heads_of(a, pair).count; }

static int splits_of(const attend *a, int pair) {
    const eng_tile *tile = tile_of(a, pair);
    return (a->b->position[tile->row] + tile->count - 1) / SPLIT + 1;
}

static void reset(const attend *a, const state *s, int n) {
    for (int i = 0; i < n; i++) s->max[i] = -INFINITY, s->sum[i] = 0;
    memset(s->acc, 0, (size_t)(n * a->width) * sizeof *s->acc);
}

/* w->q: the pair's queries in the order row, head of the group. */
static void load_queries(const attend *a, const work *w, int pair) {
    const eng_tile *tile = tile_of(a, pair);
    int h = a->kv->h, row = (a->H + 2 * a->kv->K) * h;
    heads g = heads_of(a, pair);
    for (int i = 0; i < tile->count * g.count; i++) {
        const float *q = a->qkv + (size_t)(tile->row + i / g.count) * (size_t)row + (g.first + i % g.count) * h;
        for (int d = 0; d < h; d++) w->q[i * a->width + d] = q[d] * a->scale;
    }
}

/* w->part: the softmax over the positions of one split. Of a span some rows see all, the others, before
 * them, as far as their own position. */
static void take_split(const attend *a, const work *w, int pair, int split) {
    const eng_tile *tile = tile_of(a, pair);
    int position = a->b->position[tile->row], all = position + tile->count, G = heads_of(a, pair).count;
    int end = least(all, (split + 1) * SPLIT);
    reset(a, &w->part, tile->count * G);
    for (int at = split * SPLIT; at < end; at += SPAN) {
        load_span(a, w, a->b->rows[tile->rows_index].blocks, pair % a->kv->K, at, least(end - at, SPAN), all);
        int r = at > position ? at - position : 0;
        for (; r < tile->count && position + r - at + 1 < SPAN; r++)
            take_span(a, w, r * G, (r + 1) * G, position + r - at + 1);
        take_span(a, w, r * G, tile->count * G, SPAN);
    }
}

/* to += from, n queries: the one with the smaller maximum shrinks. */
static void merge(const attend *a, const state *to, const state *from, int n) {
    for (int i = 0; i < n; i++) {
        bool shrink = from->max[i] > to->max[i];
        const state *small = shrink ? to : from, *large = shrink ? from : to;
        lanes keep = power(spread(small->max[i] - large->max[i]));
        float factor = keep.v[0][0];
        to->sum[i] = small->sum[i] * factor + large->sum[i];
        for (int d = i * a->width; d < (i + 1) * a->width; d += LANES)
            store(to->acc + d, add_product(load(large->acc + d), load(small->acc + d), keep));
        to->max[i] = large->max[i];
    }
}

static void write_out(const attend *a, const state *s, int pair) {
    const eng_tile *tile = tile_of(a, pair);
    int h = a->kv->h;
    heads g = heads_of(a, pair);
    for (int i = 0; i < tile->count * g.count; i++) {
        const float *from = s->acc + i * a->width;
        size_t row = (size_t)(tile->row + i / g.count), query = (size_t)(g.first + i % g.count);
        float *to = a->out + (row * (size_t)a->H + query) * (size_t)h;
        for (int d = 0; d < h; d++) to[d] = from[d] / s->sum[i];
    }
}

/* ---- scratch ----------------------------------------------------------------------------------- */

static size_t rounded(size_t n) { return (n + LANES - 1) / LANES * LANES; }
static size_t state_floats(size_t n, size_t width) { return 2 * rounded(n) + n * width; }
static size_t slot_queries(int G) { return G > SLOT_QUERIES ? (size_t)G : SLOT_QUERIES; }

static size_t work_floats(size_t h, size_t G) {
    size_t width = rounded(h), n = ENG_TILE_ROWS * G;
    return SPAN * (h + width + QUERIES) + n * width + 2 * state_floats(n, width);
}

size_t ISA_NAME(attention_scratch)(const eng_shape *shape) {
    size_t h = (size_t)shape->h, G = (size_t)(shape->H / shape->K);
    return work_floats(h, G) + 2 * SLOTS * state_floats(slot_queries((int)G), rounded(h));
}

static state state_at(float *memory, size_t n) {
    return (state){.max = memory, .sum = memory + rounded(n), .acc = memory + 2 * rounded(n)};
}

static work work_of(const attend *a, int thread) {
    size_t h = (size_t)a->kv->h, width = (size_t)a->width, n = (size_t)(ENG_TILE_ROWS * a->G);
    work w = {.k = a->c->panel + (size_t)thread * a->c->panel_floats};
    w.v = w.k + SPAN * h;
    w.e = w.v + SPAN * width;
    w.q = w.e + SPAN * QUERIES;
    w.whole = state_at(w.q + n * width, n);
    w.part = state_at(w.q + n * width + state_floats(n, width), n);
    for (size_t j = 0; j < SPAN && width > h; j++) memset(w.v + j * width + h, 0, (width - h) * sizeof *w.v);
    return w;
}

/* A pair's (part 0) or a split's (part 1) state while several threads do the splits: each thread's
 * scratch holds some of them. */
static state slot(const attend *a, int part, int index) {
    int threads = eng_team_threads(a->c->team);
    size_t n = slot_queries(a->G), width = (size_t)a->width;
    float *memory = a->c->panel + (size_t)(index % threads) * a->c->panel_floats;
    size_t at = (size_t)(part * SLOTS + index / threads);
    return state_at(memory + work_floats((size_t)a->kv->h, (size_t)a->G) + at * state_floats(n, width), n);
}

/* ---- the op ------------------------------------------------------------------------------------ */

static void pair_task(void *ctx, int pair, int thread) {
    const attend *a = ctx;
    work w = work_of(a, thread);
    int n = queries_of(a, pair);
    load_queries(a, &w, pair);
    reset(a, &w.whole, n);
    for (int split = 0; split < splits_of(a, pair); split++) {
        take_split(a, &w, pair, split);
        merge(a, &w.whole, &w.part, n);
    }
    write_out(a, &w.whole, pair);
}

/* Of all splits of all pairs, one after the other, number index. */
static int find_split(const attend *a, int index, int *pair) {
    for (*pair = 0; index >= splits_of(a, *pair); ++*pair) index -= splits_of(a, *pair);
    return index;
}

static void split_task(void *ctx, int task, int thread) {
    const attend *a = ctx;
    work w = work_of(a, thread);
    int pair, split = find_split(a, a->first + task, &pair);
    w.part = slot(a, 1, task);
    load_queries(a, &w, pair);
    take_split(a, &w, pair, split);
}

/* As many splits at a time as there are slots. */
static void run_splits(attend *a, int pairs) {
    int splits = 0, slots = SLOTS * eng_team_threads(a->c->team), pair;
    for (pair = 0; pair < pairs; pair++) {
        state whole = slot(a, 0, pair);
        reset(a, &whole, queries_of(a, pair));
        splits += splits_of(a, pair);
    }
    for (; a->first < splits; a->first += slots) {
        int count = least(splits - a->first, slots);
        eng_team_run(a->c->team, count, split_task, a);
        for (int i = 0; i < count; i++) {
            find_split(a, a->first + i, &pair);
            state whole = slot(a, 0, pair), part = slot(a, 1, i);
            merge(a, &whole, &part, queries_of(a, pair));
        }
    }
    for (pair = 0; pair < pairs; pair++) {
        state whole = slot(a, 0, pair);
        write_out(a, &whole, pair);
    }
}

/* Too few pairs to keep all threads busy, and splits to share. */
static bool shares_splits(const attend *a, int pairs) {
    int threads = eng_team_threads(a->c->team), splits = 0;
    if (threads == 1 || pairs > SLOTS * threads) return false;
    for (int pair = 0; pair < pairs; pair += a->kv->K) {
        if ((size_t)queries_of(a, pair) > slot_queries(a->G)) return false;
        if (splits_of(a, pair) > splits) splits = splits_of(a, pair);
    }
    return splits > 1;
}

void ISA_NAME(attention)(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,
                         const eng_batch *b, int H, float scale) {
    attend a = {.c = c, .out = out, .qkv = qkv, .kv = kv, .b = b, .l = l, .H = H, .G = kv->group ? kv->group : H / kv->K,
                .width = (int)rounded((size_t)kv->h), .scale = scale * 1.44269504f};
    int pairs = b->tiles_count * kv->K;
    if (shares_splits(&a, pairs)) run_splits(&a, pairs);
    else eng_team_run(c->team, pairs, pair_task, &a);
}
