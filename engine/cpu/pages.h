/* pages.h -- where an element of a page stands. Internal to engine/cpu/.
 *
 * A page of P tokens is laid out so that attention reads it along its vectors: sixteen tokens of K at
 * one dim, or all dims of V at one token.
 *
 *     [layer][kv head][K then V]   K: [dim][token]   V: [token][dim]
 *
 * An element is a float, half, bfloat16 or, in a page of Q8_0, an int8; there the P*h elements of a
 * block are followed by its scales, one half for each token and 32 dims:
 *
 *                                  K: [dim/32][token]   V: [token][dim/32]
 *
 * What is stored of a token depends on that token's row alone, so it does not matter with which others
 * it arrives. A row by itself, dense, is a row of a GGUF tensor of the same type: that is how it goes
 * over the wire, and what eng_quantize_row() and eng_cpu_dequantize() speak. */
#ifndef BATON_ENGINE_CPU_PAGES_H
#define BATON_ENGINE_CPU_PAGES_H

#include "engine/cpu/cpu.h"

enum { ENG_SCALE_DIMS = 32, ENG_ROW_BYTES_MAX = ENG_HEAD_MAX * 4 };

static inline eng_type eng_row_type(eng_kv_type type) {
    static const eng_type types[] = {ENG_F32, ENG_F16, ENG_BF16, ENG_Q8_0};
    return types[type];
}

static inline size_t eng_element_bytes(eng_kv_type type) {
    static const uint8_t bytes[] = {4, 2, 2, 1};
    return bytes[type];
}

/* K or V of one layer and head of a page. */
static inline char *eng_page_block(const eng_pages *kv, int32_t page, int l, int is_v, int head) {
    size_t block = ((size_t)l * (size_t)kv->K + (size_t)head) * 2 + (size_t)is_v;
    return (char *)kv->data + (size_t)page * kv->page_bytes +
           block * (kv->page_bytes / (2 * (size_t)kv->L * (size_t)kv->K));
}

/* Of a block of Q8_0: where scale number b of a token is. */
static inline char *eng_page_scale(const eng_pages *kv, char *block, int is_v, int slot, int b) {
    int at = is_v ? slot * (kv->h / ENG_SCALE_DIMS) + b : b * kv->P + slot;
    return block + kv->P * kv->h + 2 * at;
}

/* One token's row between a block and dense bytes, as they are. */
void eng_row_read(const eng_pages *kv, char *block, int is_v, int slot, char *row);
void eng_row_write(const eng_pages *kv, char *block, int is_v, int slot, const char *row);

/* A row of a step on its way into the pages. */
typedef struct eng_append {
    float *q, *k, *v;            /* (H,h), (K,h), (K,h) */
    const float *angles;         /* (h/2, {cos, sin}) */
    int32_t page;
    int slot;
} eng_append;

static inline eng_append eng_append_row(float *qkv, const eng_pages *kv, const eng_batch *b, int H, int t) {
    int K = kv->K, h = kv->h;
    float *q = qkv + (size_t)t * (size_t)((H + 2 * K) * h);
    return (eng_append){.q = q, .k = q + H * h, .v = q + (H + K) * h,
                        .angles = b->angles + (size_t)t * (size_t)h,
                        .page = b->rows[b->rows_index[t]].blocks[b->position[t] / kv->P],
                        .slot = b->position[t] % kv->P};
}

#endif
