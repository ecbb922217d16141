/* kernels.h -- the kernels of the CUDA back end, as their callers in C see them.
 *
 * Every function queues work on a stream and returns what queuing said; nothing waits. Pointers are device
 * memory unless a line says otherwise. Names and shapes as in engine/ops.h: T rows, D width, H heads, K kv heads,
 * h head width, F FFN width, C columns, N outputs, P tokens a page.
 *
 * Same bytes: what is computed for a row is the same sequence of roundings whatever T is, wherever the row stands,
 * and whichever of two kernels for the same job was taken (one row or many, one split or many): the orders are
 * written down beside the kernels, and the tests compare bits.
 *
 * Rows whose position is -1 are nobody's: a captured graph has as many rows as its bucket, more than the step. They
 * write no page, read no block table, and what stands in their rows of an output is not read. */
#ifndef BATON_ENGINE_CUDA_KERNELS_H
#define BATON_ENGINE_CUDA_KERNELS_H

#include "engine/engine.h"
#include "engine/ops.h"
#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The rows of a step, padded to the bucket. */
typedef struct cuda_rows {
    int T, wanted;
    const int32_t *token;        /* (T) */
    const int32_t *position;     /* (T) -1: nobody's */
    const int32_t *blocks_at;    /* (T) where the block table of the row's sequence begins in blocks */
    const int32_t *blocks;
    const float *angles;         /* (T, h/2, {cos, sin}) */
    const int32_t *wanted_row;   /* (wanted) */
} cuda_rows;

/* A part of an eng_matrix on the device. Quantised types are repacked there by cuda_repack(); F32, F16 and BF16
 * are rows as the file has them. */
typedef struct cuda_matrix {
    eng_type type;
    int N, C;
    const void *data;
} cuda_matrix;

/* ---- product.cu: weights ----------------------------------------------------------------------------- */

/* Outputs of a panel, the unit of the device's form. */
enum { CUDA_PANEL = 32 };
/* Bytes of the device's form of (N,C) of that type; 0: rows as the file has them. */
size_t cuda_repack_bytes(eng_type type, int N, int C);
/* out (16-aligned) = rows (N, row_bytes apart, as the file has them) in the device's form. A matrix may come in pieces
 * of whole panels: output n, a multiple of CUDA_PANEL, stands at out + cuda_repack_bytes(type, n, C). */
cudaError_t cuda_repack(cudaStream_t st, void *out, eng_type type, const void *rows, size_t row_bytes, int N, int C);
/* y (T,N), rows ldy floats apart = x act(T,C) * w^T, w quantised. */
cudaError_t cuda_matmul_quantised(cudaStream_t st, float *y, int ldy, const void *x, const cuda_matrix *w, int T);
/* By which kernel is a matter of speed alone: all give the same bits, for any T. What is chosen, and that one. */
typedef enum cuda_product { CUDA_PRODUCT_ONE, CUDA_PRODUCT_FEW, CUDA_PRODUCT_MANY } cuda_product;
cuda_product cuda_product_choose(int N, int T);
cudaError_t cuda_matmul_quantised_by(cudaStream_t st, cuda_product which, float *y, int ldy, const void *x, const cuda_matrix *w,
                                     int T);
/* out (T,C) of that type (F32, F16, BF16) = x act(T,C): what cuBLAS reads. */
cudaError_t cuda_act_floats(cudaStream_t st, void *out, eng_type type, const void *x, int T, int C);
/* x (T,D) = rows of w, as the file has them row_bytes apart, of the batch's tokens. */
cudaError_t cuda_embed(cudaStream_t st, float *x, eng_type type, const void *w, size_t row_bytes, const cuda_rows *b, int D);

/* ---- rows.cu: what is done row by row ------------------------------------------------------------------ */

/* An activation row: the floats, and for integer products the same as 14-bit integers with a scale for each 32
 * columns (act.cuh). Rows follow each other; C is a multiple of 32. */
size_t cuda_act_bytes(int C);
/* out (wanted,D) = the rows of x whose logits are asked */
cudaError_t cuda_gather(cudaStream_t st, float *out, const float *x, const cuda_rows *b, int D);
/* out act(T,C) = x (T,C) */
cudaError_t cuda_activate(cudaStream_t st, void *out, const float *x, int T, int C);
/* x += y unless y is NULL; out act(T,D) = x / sqrt(mean(x^2) + eps) * weight */
cudaError_t cuda_rmsnorm(cudaStream_t st, void *out, float *x, const float *y, const float *weight, float eps, int T, int D);
/* out act(T,F) = silu(gate) * up, gu (T,2F) = gate, up */
cudaError_t cuda_silu_mul(cudaStream_t st, void *out, const float *gu, int T, int F);
/* y (count) = ((part0 + part1) + part2) + ..., part r at parts + r * stride; y may be a part. */
cudaError_t cuda_add_ranks(cudaStream_t st, float *y, const float *parts, size_t stride, int ranks, size_t count);

/* ---- pages.cu: KV, laid out [page][layer][kv head][K then V][token][dim] ---------------------------------- */

/* A row is as on the wire (eng_kv_box), and the same floats give the bytes that the CPU gives; heads are a multiple of
 * 32 wide. */
size_t cuda_page_bytes(const eng_pages *kv);
/* qkv (T,(H+2K)h): turns q in place, k on its way into the pages of layer l; v as it is. */
cudaError_t cuda_rope_append(cudaStream_t st, float *qkv, const eng_pages *kv, int l, const cuda_rows *b, int H);
cudaError_t cuda_kv_copy(cudaStream_t st, const eng_pages *kv, int32_t dst, int32_t src, int32_t tokens);
/* Canonical order (engine.h, eng_kv_box) from and to pages; blocks: the sequence's, device memory. */
cudaError_t cuda_kv_pack(cudaStream_t st, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, void *out);
cudaError_t cuda_kv_unpack(cudaStream_t st, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, const void *in);

/* ---- attention.cu ---------------------------------------------------------------------------------------- */

/* Positions are split every CUDA_SPLIT; a row's splits are added in rising order. Heads are 32, 64, 96 or 128 wide; of
 * others cudaErrorInvalidValue. */
enum { CUDA_SPLIT = 64 };
/* Scratch of cuda_attention_decode for T rows whose last position is below context. */
size_t cuda_attention_scratch(int T, int H, int h, int context);
/* out act(T,H*h) = softmax(q k^T * scale) v over positions 0 .. own. Many rows of a sequence: tiles[i] are up to 16
 * rows of one sequence at consecutive positions (device memory); none nobody's, or all. */
cudaError_t cuda_attention_prefill(cudaStream_t st, void *out, const float *qkv, const eng_pages *kv, int l,
                                   const cuda_rows *b, const eng_tile *tiles, int tiles_count, int H, float scale);
/* The same, one row a sequence, splits side by side; the same bits. context: no row's position is as large. */
cudaError_t cuda_attention_decode(cudaStream_t st, void *out, const float *qkv, const eng_pages *kv, int l,
                                  const cuda_rows *b, int H, float scale, int context, void *scratch);

/* ---- sample.cu: eng_sample() on the device ----------------------------------------------------------------- */

/* One row's request: what eng_sample() does without penalties, bias and logprobs. */
typedef struct cuda_draw {
    float temperature, top_p, min_p;
    int32_t top_k;
    uint64_t seed;
    int32_t position;            /* eng_sample()'s count */
    int32_t row;                 /* of logits */
} cuda_draw;

size_t cuda_sample_scratch(int draws, int V);
/* token (draws), -1: where eng_sample() says ST_DEVICE (a logit is NaN or +inf, or all are -inf); logits (rows,V); draw
 * (draws). The token is eng_sample()'s, but where the last bits of a sum decide (sample.cu says how often). */
cudaError_t cuda_sample(cudaStream_t st, int32_t *token, const float *logits, const cuda_draw *draw, int draws, int V,
                        void *scratch);

#ifdef __cplusplus
}
#endif

#endif
