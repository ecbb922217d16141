/* pages.cu -- KV on its way into pages, between pages and wire, and from page to page.
 *
 * All of it moves memory: a warp takes 32 dims of one row at a time, a lane each, whatever the types. Angles are turned
 * with each product and sum rounded, as the CPU does: the same floats give the same bytes in a page. */
#include "engine/cuda/kernels.h"
#include "engine/cuda/pages.cuh"

enum { WARPS = 8 };

/* As many blocks as give each of n items a warp. */
static dim3 warps_for(size_t n) { return dim3((unsigned)((n + WARPS - 1) / WARPS)); }

/* Which item a thread's warp has. */
DEVICE size_t warp_index() { return (size_t)blockIdx.x * WARPS + threadIdx.x / 32; }

size_t cuda_page_bytes(const eng_pages *kv) {
    return 2 * (size_t)kv->L * (size_t)kv->K * (size_t)kv->P * kv_bytes(kv->type, kv->h);
}

/* ---- the rows of a step ------------------------------------------------------------------------------------ */

/* An item is 32 columns of a row of qkv, in the row's order: a part of a head of q, k or v. */
KERNEL __launch_bounds__(WARPS * 32) rope_append(float *qkv, char *pages, size_t page_bytes, int type, int P, int K, int h,
                                                 int l, int H, int T, const int32_t *position, const int32_t *blocks_at,
                                                 const int32_t *blocks, const float *angles) {
    const int heads = H + 2 * K, parts = heads * (h / KV_BLOCK), lane = threadIdx.x % 32;
    const size_t item = warp_index(), t = item / (size_t)parts;
    if (t >= (size_t)T || position[t] < 0) return;
    const int part = (int)(item % (size_t)parts), head = part / (h / KV_BLOCK), d = part % (h / KV_BLOCK) * KV_BLOCK + lane;
    float *const at = qkv + (t * (size_t)heads + (size_t)head) * (size_t)h + d;
    float x = *at;
    if (head < H + K) {
        const float other = __shfl_xor_sync(0xffffffffu, x, 1);
        const float cosine = angles[t * (size_t)h + (d & ~1)], sine = angles[t * (size_t)h + (d | 1)];
        const float own = __fmul_rn(x, cosine), cross = __fmul_rn(other, sine);
        x = d & 1 ? __fadd_rn(cross, own) : __fsub_rn(own, cross);
    }
    if (head < H) {
        *at = x;
        return;
    }
    const int32_t slot = position[t] % P, page = blocks[(size_t)blocks_at[t] + position[t] / P];
    const int is_v = head >= H + K, kv_head = head - H - is_v * K;
    char *const row = pages + (size_t)page * page_bytes + kv_at(type, h, P, K, l, kv_head, is_v) +
                      (size_t)slot * kv_bytes(type, h);
    kv_store(type, row, d, x);
}

cudaError_t cuda_rope_append(cudaStream_t st, float *qkv, const eng_pages *kv, int l, const cuda_rows *b, int H) {
    const size_t items = (size_t)b->T * (size_t)(H + 2 * kv->K) * (size_t)(kv->h / KV_BLOCK);
    if (items == 0) return cudaSuccess;
    return launch(rope_append, warps_for(items), dim3(WARPS * 32), 0, st, qkv, (char *)kv->data, kv->page_bytes,
                  (int)kv->type, (int)kv->P, kv->K, kv->h, l, H, b->T, b->position, b->blocks_at, b->blocks, b->angles);
}

/* ---- page to page ------------------------------------------------------------------------------------------ */

/* An item is a layer's and head's K or V, of which the first `count` 16-bit words are copied. */
KERNEL __launch_bounds__(WARPS * 32) copy(char *dst, const char *src, size_t item_bytes, int items, size_t count) {
    const size_t item = warp_index();
    if (item >= (size_t)items) return;
    uint16_t *const to = (uint16_t *)(dst + item * item_bytes);
    const uint16_t *const from = (const uint16_t *)(src + item * item_bytes);
    for (size_t i = threadIdx.x % 32; i < count; i += 32) to[i] = from[i];
}

cudaError_t cuda_kv_copy(cudaStream_t st, const eng_pages *kv, int32_t dst, int32_t src, int32_t tokens) {
    const size_t row = kv_bytes(kv->type, kv->h), items = 2 * (size_t)kv->L * (size_t)kv->K;
    char *const data = (char *)kv->data;
    return launch(copy, warps_for(items), dim3(WARPS * 32), 0, st, data + (size_t)dst * kv->page_bytes,
                  (const char *)data + (size_t)src * kv->page_bytes, (size_t)kv->P * row, (int)items,
                  (size_t)tokens * row / 2);
}

/* ---- wire -------------------------------------------------------------------------------------------------- */

/* An item is 32 dims of a row of the box, rows in canonical order. Of unlike types, a value is rounded anew. */
template <bool unpack>
KERNEL __launch_bounds__(WARPS * 32) move_box(char *pages, size_t page_bytes, int type, int P, int K, int h,
                                              const int32_t *blocks, int layer_first, int head_first, int heads,
                                              int token_first, int tokens, int wire_type, char *wire, size_t items) {
    const size_t item = warp_index();
    if (item >= items) return;
    size_t row = item / (size_t)(h / KV_BLOCK), at = row;
    const int d = (int)(item % (size_t)(h / KV_BLOCK)) * KV_BLOCK + (int)(threadIdx.x % 32);
    const int token = token_first + (int)(at % (size_t)tokens);
    at /= (size_t)tokens;
    const int head = head_first + (int)(at % (size_t)heads);
    at /= (size_t)heads;
    char *const in_page = pages + (size_t)blocks[token / P] * page_bytes +
                          kv_at(type, h, P, K, layer_first + (int)(at / 2), head, (int)(at % 2)) +
                          (size_t)(token % P) * kv_bytes(type, h);
    char *const on_wire = wire + row * kv_bytes(wire_type, h);
    if (type == wire_type) kv_move(type, unpack ? in_page : on_wire, unpack ? on_wire : in_page, d);
    else if (unpack) kv_store(type, in_page, d, kv_load(wire_type, on_wire, d));
    else kv_store(wire_type, on_wire, d, kv_load(type, in_page, d));
}

template <bool unpack>
static cudaError_t move(cudaStream_t st, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, char *wire) {
    const size_t items = 2 * (size_t)box->layers * (size_t)box->heads * (size_t)box->tokens * (size_t)(kv->h / KV_BLOCK);
    if (items == 0) return cudaSuccess;
    return launch(move_box<unpack>, warps_for(items), dim3(WARPS * 32), 0, st, (char *)kv->data, kv->page_bytes,
                  (int)kv->type, (int)kv->P, kv->K, kv->h, blocks, (int)box->layer_first, (int)box->head_first,
                  (int)box->heads, (int)box->token_first, (int)box->tokens, (int)box->type, wire, items);
}

cudaError_t cuda_kv_pack(cudaStream_t st, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, void *out) {
    return move<false>(st, kv, blocks, box, (char *)out);
}

cudaError_t cuda_kv_unpack(cudaStream_t st, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box,
                           const void *in) {
    return move<true>(st, kv, blocks, box, (char *)(uintptr_t)in);
}
