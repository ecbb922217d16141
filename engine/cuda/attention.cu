/* attention.cu -- attention over pages on tensor cores, the softmax online (FlashAttention, Dao et al. 2022).
 *
 * One order of arithmetic for both kernels. Positions go by in spans of 64, counted from 0. A warp takes one span of one
 * kv head for 16 queries:
 *
 *     s = q k                     (16,64)   queries were multiplied by scale * log2 e
 *     m = max s, p = 2^(s - m)              keys after the query's own position: s = -inf, p = 0
 *     l = sum p, o = p v          (16,h)
 *
 * and spans are merged into what came before in rising order, M the greater maximum:
 *
 *     L = L 2^(old - M) + l 2^(m - M),  O alike; at the end O / L
 *
 * Prefill: the 16 queries are rows of a tile, one head; a warp walks the spans and merges as it goes; the heads of a
 * group are warps of one block, so that K and V come from L2 once. Decode: the 16 queries are heads of the group, one
 * row; each span has a warp of its own (FlashDecoding, Dao et al. 2023) and a second kernel merges. A query's numbers do
 * not depend on those beside it, so both give the same bits; nor does an address enter, so any page size does. What is
 * done for a span is in span.cuh.
 *
 * A key after the last query's position is not read. One before it but after its row's own is multiplied by 0, so a V
 * that is not finite shows in the rows of its tile before it. */
#include "engine/cuda/act.cuh"
#include "engine/cuda/span.cuh"
#include <type_traits>

/* ---- merging --------------------------------------------------------------------------------------------------- */

/* By how much what came before and what is new shrink; max becomes the greater. */
DEVICE void shares(float &max, float span_max, float *before, float *span) {
    const float most = fmaxf(max, span_max);
    *before = power(__fsub_rn(max, most));
    *span = power(__fsub_rn(span_max, most));
    max = most;
}

DEVICE float merged(float whole, float before, float part, float span) {
    return fmaf(whole, before, __fmul_rn(part, span));
}

DEVICE float normalised(float out, float sum) { return out / __fmul_rn(sum, WEIGHT_SCALE); }

/* ---- prefill --------------------------------------------------------------------------------------------------- */

/* A block of 32 columns of two activation rows by the four lanes that have them, 8 each; NULL: no row. All lanes of the
 * warp call it. */
DEVICE void store_block(char *const row[2], int C, int column, const float (&x)[2][8]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        unsigned most = 0;
        int sum = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) most = max(most, act_magnitude(x[r][i]));
        most = max(most, __shfl_xor_sync(ALL, most, 1));
        most = max(most, __shfl_xor_sync(ALL, most, 2));
        if (row[r])
            sum = act_put<4>(row[r], C, column, x[r], act_inverse(most)) +
                  act_put<4>(row[r], C, column + 4, x[r] + 4, act_inverse(most));
        sum += __shfl_xor_sync(ALL, sum, 1);
        sum += __shfl_xor_sync(ALL, sum, 2);
        if (row[r] && column % ACT_BLOCK == 0) act_finish(row[r], C, column / ACT_BLOCK, most, sum);
    }
}

/* The spans of one tile and head: o (16,h), to be divided by sum. */
template <int TYPE, int B>
DEVICE void attend(float (&o)[B][4][4], float sum[2], scratch<TYPE, B> &w, const float back[2], const head_pages &kv,
                   const int limit[2], int last) {
    float max[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < B * 16; i++) o[i / 16][i / 4 % 4][i % 4] = 0;
    sum[0] = sum[1] = 0;
    for (int first = 0; first <= last; first += SPAN) {
        const span keys = find_rows<TYPE, B>(kv, first, last);
        float s[TILES][4], span_max[2], span_sum[2], before[2], of_span[2];
        score(s, w, keys);
        weigh(w, s, span_max, span_sum, back, first, limit);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            shares(max[r], span_max[r], &before[r], &of_span[r]);
            sum[r] = merged(sum[r], before[r], span_sum[r], of_span[r]);
        }
#pragma unroll
        for (int b = 0; b < B; b++) {
            float part[4][4];
            weighted_values(part, w, keys, (size_t)kv.P * kv_bytes(TYPE, B * KV_BLOCK), b);
#pragma unroll
            for (int i = 0; i < 16; i++) {
                float &x = o[b][i / 4][i % 4];
                x = merged(x, before[i % 4 / 2], part[i / 4][i % 4], of_span[i % 4 / 2]);
            }
        }
    }
}

/* Query heads [first, end), of H, that read a kv head: of the first kv head's group another rank may have the first `skip`,
 * of the last one's the rest (eng_pages_head()). */
DEVICE int heads_from(int kv_head, int group, int skip, int H) {
    const int at = kv_head * group - skip;
    return at < 0 ? 0 : at > H ? H : at;
}

/* Grid: tiles, kv heads, heads of the group by warps: a warp a head. */
template <int TYPE, int B>
KERNEL __launch_bounds__(scratch<TYPE, B>::warps * 32, scratch<TYPE, B>::blocks)
prefill(char *out, const float *qkv, const char *pages, size_t page_bytes, int P, int K, int l, int H, int group, int skip, float scale,
        const int32_t *position, const int32_t *blocks_at, const int32_t *blocks, const eng_tile *tiles) {
    enum { warps = scratch<TYPE, B>::warps, h = B * KV_BLOCK };
    typedef scratch<TYPE, B> warp_scratch;
    SHARED_ARRAY(warp_scratch, memory, warps);
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, kv_head = blockIdx.y;
    const int row = tiles[blockIdx.x].row, count = tiles[blockIdx.x].count;
    const int head = heads_from(kv_head, group, skip, H) + (int)(blockIdx.z * warps) + warp;
    if (head >= heads_from(kv_head + 1, group, skip, H) || position[row] < 0) return;
    const head_pages kv = {pages + kv_at(TYPE, h, P, K, l, kv_head, 0), page_bytes,
                           blocks + blocks_at[row], P};
    warp_scratch &w = memory[warp];
    const int last = position[row + count - 1];
    const float *q[2];
    char *to[2];
    int limit[2];
    float back[2], sum[2], o[B][4][4], x[2][8];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const bool live = g + 8 * r < count;
        q[r] = live ? qkv + ((size_t)(row + g + 8 * r) * (size_t)(H + 2 * K) + (size_t)head) * h : NULL;
        limit[r] = live ? last - (count - 1) + g + 8 * r : -1;
    }
    load_queries(w, back, q, __fmul_rn(scale, LOG2E));
    attend(o, sum, w, back, kv, limit, last);
#pragma unroll
    for (int r = 0; r < 2; r++)
        to[r] = limit[r] >= 0 ? out + (size_t)(row + g + 8 * r) * act_row_bytes(H * h) : NULL;
#pragma unroll
    for (int b = 0; b < B; b++) {
#pragma unroll
        for (int i = 0; i < 16; i++) x[i % 4 / 2][i % 2 * 4 + i / 4] = normalised(o[b][i / 4][i % 4], sum[i % 4 / 2]);
        store_block(to, H * h, head * h + b * KV_BLOCK + t * 8, x);
    }
}

/* ---- decode ---------------------------------------------------------------------------------------------------- */

static int splits_of(int context) { return (context + SPAN - 1) / SPAN; }

/* Grid: splits by warps, kv heads by 16 heads of the group, rows. values (T,H,splits,h), stats (T,H,splits,{max,sum}) */
template <int TYPE, int B>
KERNEL __launch_bounds__(scratch<TYPE, B>::warps * 32, scratch<TYPE, B>::blocks)
decode(float *values, float *stats, const float *qkv, const char *pages, size_t page_bytes, int P, int K, int l, int H,
       int group, int skip, float scale, int splits, const int32_t *position, const int32_t *blocks_at, const int32_t *blocks) {
    enum { warps = scratch<TYPE, B>::warps, h = B * KV_BLOCK };
    typedef scratch<TYPE, B> warp_scratch;
    SHARED_ARRAY(warp_scratch, memory, warps);
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, kv_head = blockIdx.y % K;
    const int head = heads_from(kv_head, group, skip, H) + (int)blockIdx.y / K * QUERIES;
    const int split = blockIdx.x * warps + warp;
    const size_t row = blockIdx.z;
    const int last = position[row], limit[2] = {last, last};
    if (split * SPAN > last) return;
    const head_pages kv = {pages + kv_at(TYPE, h, P, K, l, kv_head, 0), page_bytes,
                           blocks + blocks_at[row], P};
    const float *q[2];
    size_t to[2];
    float back[2], s[TILES][4], max[2], sum[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int mine = head + g + 8 * r;
        q[r] = mine < heads_from(kv_head + 1, group, skip, H) ? qkv + (row * (size_t)(H + 2 * K) + (size_t)mine) * h : NULL;
        to[r] = (row * (size_t)H + (size_t)mine) * (size_t)splits + (size_t)split;
    }
    warp_scratch &w = memory[warp];
    load_queries(w, back, q, __fmul_rn(scale, LOG2E));
    const span keys = find_rows<TYPE, B>(kv, split * SPAN, last);
    score(s, w, keys);
    weigh(w, s, max, sum, back, split * SPAN, limit);
#pragma unroll
    for (int b = 0; b < B; b++) {
        float part[4][4];
        weighted_values(part, w, keys, (size_t)kv.P * kv_bytes(TYPE, B * KV_BLOCK), b);
#pragma unroll
        for (int i = 0; i < 4; i++)      /* rows g and g+8, their dims by fours */
            if (q[i / 2])
                *(float4 *)(values + to[i / 2] * h + b * KV_BLOCK + t * 8 + i % 2 * 4) =
                    make_float4(part[0][i], part[1][i], part[2][i], part[3][i]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
        if (q[r] && t == 0) ((float2 *)stats)[to[r]] = make_float2(max[r], sum[r]);
}

/* A warp a block of 32 columns of a row; lane: column. */
KERNEL __launch_bounds__(WARPS * 32) merge(char *out, const float *values, const float *stats, int H, int h, int splits,
                                           const int32_t *position) {
    const int block = blockIdx.x * WARPS + threadIdx.x / 32, column = block * ACT_BLOCK + (int)(threadIdx.x % 32), C = H * h;
    const size_t row = blockIdx.y, at = (row * (size_t)H + (size_t)(column / h)) * (size_t)splits;
    if (block >= C / ACT_BLOCK || position[row] < 0) return;
    const float2 *const stat = (const float2 *)stats + at;
    const float *const value = values + at * (size_t)h + column % h;
    float max = -INFINITY, sum = 0, o = 0, before, of_span;
    for (int i = 0; i <= position[row] / SPAN; i++) {
        shares(max, stat[i].x, &before, &of_span);
        sum = merged(sum, before, stat[i].y, of_span);
        o = merged(o, before, value[(size_t)i * (size_t)h], of_span);
    }
    o = normalised(o, sum);
    act_store<1>(out + row * act_row_bytes(C), C, column, &o, true);
}

/* ---- launches -------------------------------------------------------------------------------------------------- */

/* run(type, h / 32) as constants. */
template <class F> static cudaError_t with_width(int h, F run) {
    switch (h) {
    case 32: return run(std::integral_constant<int, 1>());
    case 64: return run(std::integral_constant<int, 2>());
    case 96: return run(std::integral_constant<int, 3>());
    case 128: return run(std::integral_constant<int, 4>());
    }
    return cudaErrorInvalidValue;
}
template <class F> static cudaError_t with_kind(const eng_pages *kv, F run) {
    switch (kv->type) {
    case ENG_KV_F32: return with_width(kv->h, [&](auto B) { return run(std::integral_constant<int, ENG_KV_F32>(), B); });
    case ENG_KV_F16: return with_width(kv->h, [&](auto B) { return run(std::integral_constant<int, ENG_KV_F16>(), B); });
    case ENG_KV_BF16: return with_width(kv->h, [&](auto B) { return run(std::integral_constant<int, ENG_KV_BF16>(), B); });
    case ENG_KV_Q8_0: return with_width(kv->h, [&](auto B) { return run(std::integral_constant<int, ENG_KV_Q8_0>(), B); });
    }
    return cudaErrorInvalidValue;
}

static int group_of(const eng_pages *kv, int H) { return kv->group ? kv->group : H / kv->K; }

cudaError_t cuda_attention_prefill(cudaStream_t st, void *out, const float *qkv, const eng_pages *kv, int l,
                                   const cuda_rows *b, const eng_tile *tiles, int tiles_count, int H, float scale) {
    if (tiles_count == 0) return cudaSuccess;
    const unsigned group = (unsigned)group_of(kv, H);
    return with_kind(kv, [&](auto type, auto B) {
        const unsigned warps = scratch<decltype(type)::value, decltype(B)::value>::warps;
        const dim3 grid((unsigned)tiles_count, (unsigned)kv->K, (group + warps - 1) / warps);
        const dim3 block((group < warps ? group : warps) * 32);
        return launch(prefill<decltype(type)::value, decltype(B)::value>, grid, block, 0, st, (char *)out, qkv,
                      (const char *)kv->data, kv->page_bytes, (int)kv->P, kv->K, l, H, (int)group, kv->skip, scale, b->position, b->blocks_at,
                      b->blocks, tiles);
    });
}

size_t cuda_attention_scratch(int T, int H, int h, int context) {
    return (size_t)T * (size_t)H * (size_t)splits_of(context) * (size_t)(h + 2) * sizeof(float);
}

cudaError_t cuda_attention_decode(cudaStream_t st, void *out, const float *qkv, const eng_pages *kv, int l,
                                  const cuda_rows *b, int H, float scale, int context, void *memory) {
    if (b->T == 0) return cudaSuccess;
    const int splits = splits_of(context), group = group_of(kv, H), groups = (group + QUERIES - 1) / QUERIES, blocks = H * kv->h / ACT_BLOCK;
    float *const values = (float *)memory, *const stats = values + (size_t)b->T * (size_t)H * (size_t)splits * (size_t)kv->h;
    cudaError_t e = with_kind(kv, [&](auto type, auto B) {
        const unsigned warps = scratch<decltype(type)::value, decltype(B)::value>::warps;
        const dim3 grid(((unsigned)splits + warps - 1) / warps, (unsigned)(kv->K * groups), (unsigned)b->T);
        return launch(decode<decltype(type)::value, decltype(B)::value>, grid, dim3(warps * 32), 0, st, values, stats, qkv,
                      (const char *)kv->data, kv->page_bytes, (int)kv->P, kv->K, l, H, group, kv->skip, scale, splits, b->position,
                      b->blocks_at, b->blocks);
    });
    if (e != cudaSuccess) return e;
    return launch(merge, dim3((unsigned)(blocks + WARPS - 1) / WARPS, (unsigned)b->T), dim3(WARPS * 32), 0, st, (char *)out,
                  (const float *)values, (const float *)stats, H, kv->h, splits, b->position);
}
