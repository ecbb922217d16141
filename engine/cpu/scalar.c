/* scalar.c -- the specification. One thread, plain loops, every sum in rising index, each operation
 * rounded to float. A fast back end is right when it agrees with this file within its stated bound. */
#include "engine/cpu/pages.h"
#include <assert.h>
#include <math.h>

static status scalar_open(const eng_options *o, const eng_shape *shape, eng_context **out, error *err) {
    (void)o;
    return eng_cpu_open(1, (size_t)eng_cpu_widest(shape), "scalar-1", out, err);
}

/* Weights are used as the file has them, activations are floats. */
static size_t scalar_own_bytes(const eng_context *c, const eng_matrix *m) {
    (void)c, (void)m;
    return 0;
}

static size_t scalar_act_bytes(const eng_context *c, int columns) {
    (void)c;
    return (size_t)columns * sizeof(float);
}

static void scalar_activate(eng_context *c, void *out, const float *x, int T, int C) {
    (void)c;
    memcpy(out, x, (size_t)T * (size_t)C * sizeof *x);
}

/* x[t][i] += (y0[t][i] + y1[t][i]) + ..., then
 * out[t][i] = x[t][i] / sqrt(mean_i(x[t][i]^2) + eps) * weight[i]          (Zhang and Sennrich 2019)
 * x, y, out: (T,D), of which rows [first, end); weight: (D). */
static void scalar_rmsnorm(eng_context *c, void *out, const eng_norm *n) {
    int D = n->D;
    (void)c;
    for (int t = n->first; t < n->end; t++) {
        size_t at = (size_t)t * (size_t)D;
        float *row = n->x + at, *to = (float *)out + at;
        float sum = 0;
        for (int i = 0; n->parts && i < D; i++) {
            float all = n->y[0][at + (size_t)i];
            for (int p = 1; p < n->parts; p++) all += n->y[p][at + (size_t)i];
            row[i] += all;
        }
        for (int i = 0; i < D; i++) sum += row[i] * row[i];
        float scale = 1 / sqrtf(sum / (float)D + n->eps);
        for (int i = 0; i < D; i++) to[i] = row[i] * scale * n->weight[i];
    }
}

/* y[t][n] = sum_i x[t][i] * w[n][i]
 * x: (T,C); w: (N,C), dequantised; y: (T,N). */
static void scalar_matmul(eng_context *c, float *y, const void *x, const eng_matrix *w, int T) {
    for (int n = 0; n < w->N; n++) {
        eng_type type;
        const void *data = eng_cpu_row(w, n, &type);
        eng_cpu_dequantize(type, data, w->C, c->panel);
        for (int t = 0; t < T; t++) {
            const float *row = (const float *)x + (size_t)t * (size_t)w->C;
            float sum = 0;
            for (int i = 0; i < w->C; i++) sum += row[i] * c->panel[i];
            y[(size_t)t * (size_t)w->N + (size_t)n] = sum;
        }
    }
}

/* (a, b) of each pair becomes (a cos - b sin, a sin + b cos)                  (RoFormer, Su et al. 2021). */
static void rotate(float *v, const float *angles, int h) {
    for (int i = 0; i < h; i += 2) {
        float a = v[i], b = v[i + 1], cosine = angles[i], sine = angles[i + 1];
        v[i] = a * cosine - b * sine;
        v[i + 1] = a * sine + b * cosine;
    }
}

/* q and k are turned, k and v go into the pages of layer l, rounded to their type. */
static void scalar_rope_append(eng_context *c, float *qkv, const eng_pages *kv, int l, const eng_batch *b,
                               int H) {
    (void)c;
    int K = kv->K, h = kv->h;
    char row[ENG_ROW_BYTES_MAX];
    for (int t = 0; t < b->T; t++) {
        eng_append r = eng_append_row(qkv, kv, b, H, t);
        for (int head = 0; head < H; head++) rotate(r.q + head * h, r.angles, h);
        for (int head = 0; head < K; head++) {
            rotate(r.k + head * h, r.angles, h);
            eng_quantize_row(eng_row_type(kv->type), r.k + head * h, h, row);
            eng_row_write(kv, eng_page_block(kv, r.page, l, 0, head), 0, r.slot, row);
            eng_quantize_row(eng_row_type(kv->type), r.v + head * h, h, row);
            eng_row_write(kv, eng_page_block(kv, r.page, l, 1, head), 1, r.slot, row);
        }
    }
}

static void read_row(const eng_pages *kv, int32_t page, int l, int is_v, int head, int slot, float *out) {
    char row[ENG_ROW_BYTES_MAX];
    eng_row_read(kv, eng_page_block(kv, page, l, is_v, head), is_v, slot, row);
    eng_cpu_dequantize(eng_row_type(kv->type), row, kv->h, out);
}

/* One head of one row: out = sum_j p_j v_j / sum_j p_j, p_j = exp(q . k_j * scale - m), m = max_j of
 * the exponents; j from 0 to position. The softmax is online: when a larger exponent is met, what was
 * summed so far is scaled down (Milakov and Gimelshein 2018). q, out: (h). */
static void scalar_attend(float *out, const float *q, const eng_pages *kv, int l, int head,
                          const int32_t *blocks, int position, float scale) {
    int h = kv->h, P = kv->P;
    float m = -INFINITY, sum = 0, k[ENG_HEAD_MAX], v[ENG_HEAD_MAX];
    for (int d = 0; d < h; d++) out[d] = 0;
    for (int j = 0; j <= position; j++) {
        read_row(kv, blocks[j / P], l, 0, head, j % P, k);
        read_row(kv, blocks[j / P], l, 1, head, j % P, v);
        float s = 0;
        for (int d = 0; d < h; d++) s += q[d] * k[d];
        s *= scale;
        float larger = s > m ? s : m, keep = eng_exp(m - larger), p = eng_exp(s - larger);
        m = larger;
        sum = sum * keep + p;
        for (int d = 0; d < h; d++) out[d] = out[d] * keep + p * v[d];
    }
    for (int d = 0; d < h; d++) out[d] /= sum;
}

/* Query head i reads kv head i / (H/K), of the whole model     (GQA, Ainslie et al. 2023).
 * qkv: (T,(H+2K)h) with q turned; out: (T,H*h). */
static void scalar_attention(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,
                             const eng_batch *b, int H, float scale) {
    (void)c;
    int h = kv->h, K = kv->K;
    for (int t = 0; t < b->T; t++)
        for (int i = 0, k = 0; i < H; i++) {
            while (i >= eng_pages_head(kv, k + 1, H)) k++;
            scalar_attend((float *)out + ((size_t)t * (size_t)H + (size_t)i) * (size_t)h,
                          qkv + (size_t)t * (size_t)((H + 2 * K) * h) + (size_t)(i * h), kv, l,
                          k, b->rows[b->rows_index[t]].blocks, b->position[t], scale);
        }
}

/* out[t][i] = silu(gate[t][i]) * up[t][i]                              (SwiGLU, Shazeer 2020)
 * gu: (T,2F), gate then up; out: (T,F). */
static void scalar_silu_mul(eng_context *c, void *out, const float *gu, int T, int F) {
    (void)c;
    for (int t = 0; t < T; t++) {
        const float *gate = gu + (size_t)t * 2 * (size_t)F, *up = gate + F;
        float *to = (float *)out + (size_t)t * (size_t)F;
        for (int i = 0; i < F; i++) to[i] = eng_silu(gate[i]) * up[i];
    }
}

extern const eng_ops eng_cpu_scalar;
const eng_ops eng_cpu_scalar = {
    .name = "scalar",
    .open = scalar_open,
    ENG_CPU_SHARED_OPS,
    .own_bytes = scalar_own_bytes,
    .act_bytes = scalar_act_bytes,
    .activate = scalar_activate,
    .rmsnorm = scalar_rmsnorm,
    .matmul = scalar_matmul,
    .rope_append = scalar_rope_append,
    .attention = scalar_attention,
    .silu_mul = scalar_silu_mul,
};
