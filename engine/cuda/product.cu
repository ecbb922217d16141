/* product.cu -- products with quantised weights (Q8_0, Q4_0, Q4_1), in the form of panel.cuh; and weights as floats: rows
 * looked up for the embedding, activations as cuBLAS reads them for F32, F16 and BF16.
 *
 * The order of operations, the same in all three kernels, so that a row gets the same bits in each:
 *   1. of a block, in integers, exact:  dot = 128 sum(w*hi) + sum(w*lo);  |dot| < 2^26
 *   2. in floats:                       acc = fma(d, dot * scale, acc), for Q4_1 then acc = fma(m, total, acc)
 *                                       scale and total are the activation's (act.cuh); dot is rounded to float
 *   3. columns are cut into 8 segments of ceil(B/8) blocks; acc starts at 0 in each and takes its blocks in rising order
 *   4. y = ((0 + segment 0) + segment 1) + ... of those that have blocks
 *
 *   one_row    a block is a panel and a row, a warp a segment: dp4a, then the four lanes of an output add up
 *   few_rows   a block is a panel and 8, 16 or 32 rows, a warp a segment: tensor cores, the rows are operand b
 *   many_rows  a block is 4 panels and 32 rows; a warp walks all columns of its panel, activations in shared memory
 *
 * The first two have warps enough to keep memory busy where the matrix is all there is to read; few_rows reads the
 * activations once a panel, many_rows once every four.
 *
 * Roofline, by arithmetic, not measured: a token in decode reads every weight once. Bytes of weights, and 8-bit
 * multiply-adds of the two planes, a token:
 *
 *     SmolLM2-135M  layer 576->960, 576->576, 576->3072, 1536->576: 3.54 M weights, 30 layers, Q4_1   66.4 MB   212 M
 *                   output 576->49152, Q8_0                          28.3 M weights                    30.1 MB    57 M
 *     8B (Llama 3)  layer 4096->6144, 4096->4096, 4096->28672, 14336->4096: 218 M, 32 layers, Q4_1   4362 MB   13.96 G
 *                   output 4096->128256, Q8_0                        525 M weights                    558 MB    1.05 G
 *
 * At 3.35 TB/s and 132 multiprocessors of 4 instructions a clock at 1.75 GHz (H100 SXM's data sheet) that is 0.029 ms and
 * 1.47 ms a token at least, and the 640 bytes of a tile of Q4_1 arrive at a multiprocessor in 44 clocks. In PTX a tile is 60
 * instructions of one_row, 15 clocks; of few_rows 88 for 8 rows, 145 for 16, 270 for 32: 22, 36 and 68. So up to 16 rows
 * wait for memory, more for arithmetic. */
#include "engine/cuda/act.cuh"
#include "engine/cuda/kernels.h"
#include "engine/cuda/panel.cuh"

enum {
    PANEL = CUDA_PANEL,          /* outputs */
    SEGMENTS = 8,
    MANY_ROWS = 32, MANY_PANELS = 4,
    MANY_BLOCKS = 128,           /* fewer would leave multiprocessors idle */
    STAGE = 4,                   /* blocks of activations in shared memory */
};

/* ---- panels ---------------------------------------------------------------------------------------------------- */

static bool is_quantised(eng_type type) { return type == ENG_Q8_0 || type == ENG_Q4_0 || type == ENG_Q4_1; }
static bool is_whole(int C) { return C > 0 && C % ACT_BLOCK == 0; }
static int panels_of(int N) { return (N + PANEL - 1) / PANEL; }

size_t cuda_repack_bytes(eng_type type, int N, int C) {
    return is_quantised(type) ? (size_t)panels_of(N) * (size_t)(C / ACT_BLOCK) * (size_t)tile_bytes(type) : 0;
}

/* A thread is a lane of a tile. */
template <eng_type type>
KERNEL __launch_bounds__(256) repack(char *out, const uint8_t *rows, size_t row_bytes, int N, int blocks, int tiles) {
    const int tile = (int)(blockIdx.x * 8 + threadIdx.x / 32), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (tile >= tiles) return;
    const int words = type == ENG_Q8_0 ? 2 : 1, n0 = tile / blocks * PANEL + g;
    const uint8_t *const column = rows + (size_t)(tile % blocks) * block_bytes(type);
    char *const to = out + (size_t)tile * tile_bytes(type);
    for (int r = 0; r < 4; r++) {
        const int n = n0 + 8 * r;
        const uint8_t *const block = column + (size_t)n * row_bytes;
        for (int half = 0; half < words; half++) {
            const int word = r * words + half;
            unsigned *const at = (unsigned *)(to + word / 4 * 512 + lane * 16) + word % 4;
            *at = n < N ? tile_word<type>(block, t, half) : 0;
        }
        if (r != t) continue;
        uint16_t *const scales = (uint16_t *)(to + quant_bytes(type)) + lane * quants_at(type) / 2;
        for (int i = 0; i < quants_at(type) / 2; i++) scales[i] = n < N ? *(const uint16_t *)(block + 2 * i) : 0;
    }
}

cudaError_t cuda_repack(cudaStream_t st, void *out, eng_type type, const void *rows, size_t row_bytes, int N, int C) {
    if (!is_quantised(type) || !is_whole(C)) return cudaErrorInvalidValue;
    const int blocks = C / ACT_BLOCK, tiles = panels_of(N) * blocks;
    if (tiles == 0) return cudaSuccess;
    const auto kernel = type == ENG_Q8_0 ? repack<ENG_Q8_0> : type == ENG_Q4_0 ? repack<ENG_Q4_0> : repack<ENG_Q4_1>;
    return launch(kernel, dim3((tiles + 7) / 8), dim3(256), 0, st, (char *)out, (const uint8_t *)rows, row_bytes, N, blocks,
                  tiles);
}

/* ---- what the three kernels share ------------------------------------------------------------------------- */

DEVICE int segment_blocks(int blocks) { return (blocks + SEGMENTS - 1) / SEGMENTS; }

/* Step 2: w = (d, m), a = (scale, total). */
template <eng_type type> DEVICE float add_block(float acc, int dot, float2 w, float2 a) {
    acc = __fmaf_rn(w.x, __fmul_rn((float)dot, a.x), acc);
    return type == ENG_Q4_1 ? __fmaf_rn(w.y, a.y, acc) : acc;
}

/* A lane's 8 columns of a block of a row, both planes: x, y are hi, z, w are lo. */
DEVICE uint4 load_planes(const char *row, int C, int block, int t) {
    return *((const uint4 *)(row + act_planes_at(C)) + (size_t)block * 4 + t);
}
DEVICE float2 load_unit(const char *row, int C, int block) { return ((const float2 *)(row + act_scales_at(C)))[block]; }

/* ---- a row a block, by dp4a ---------------------------------------------------------------------------------- */

/* v[r] is a part of four outputs in each of four lanes: adds up, lane t keeps output t. */
DEVICE int add_quad(const int v[4], int t) {
    const bool upper = t & 2, odd = t & 1;
    int a = upper ? v[2] : v[0], b = upper ? v[3] : v[1];
    a += __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[2], 2);
    b += __shfl_xor_sync(0xffffffffu, upper ? v[1] : v[3], 2);
    return (odd ? b : a) + __shfl_xor_sync(0xffffffffu, odd ? a : b, 1);
}

template <eng_type type>
KERNEL __launch_bounds__(SEGMENTS * 32) one_row(float *y, int ldy, const char *x, const char *w, int N, int C) {
    SHARED_ARRAY(float, part, SEGMENTS *PANEL);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, segment = threadIdx.x / 32, blocks = C / ACT_BLOCK;
    const int first = segment * segment_blocks(blocks), last = min(first + segment_blocks(blocks), blocks);
    const char *tile = w + ((size_t)blockIdx.x * blocks + first) * tile_bytes(type);
    const char *const row = x + blockIdx.y * act_row_bytes(C);
    float acc = 0;
#pragma unroll 4
    for (int j = first; j < last; j++, tile += tile_bytes(type)) {
        const lane_tile<type> a = load_tile<type>(tile, lane);
        const uint4 b = load_planes(row, C, j, t);
        int dot[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            unsigned v[2];
            unpack<type>(a, r, v);
            const int hi = __dp4a((int)v[1], (int)b.y, __dp4a((int)v[0], (int)b.x, 0));
            dot[r] = __dp4a((int)v[1], (int)b.w, __dp4a((int)v[0], (int)b.z, 128 * hi));
        }
        acc = add_block<type>(acc, add_quad(dot, t), load_scale<type>(tile, lane), load_unit(row, C, j));
    }
    part[segment * PANEL + g + 8 * t] = acc;
    __syncthreads();
    const int n = (int)blockIdx.x * PANEL + (int)threadIdx.x;
    if (threadIdx.x >= PANEL || n >= N) return;
    float sum = 0;
#pragma unroll
    for (int s = 0; s < SEGMENTS; s++) sum = __fadd_rn(sum, part[s * PANEL + threadIdx.x]);
    y[(size_t)blockIdx.y * ldy + n] = sum;
}

/* ---- rows by tensor cores ----------------------------------------------------------------------------------- */

/* One tile times 8 rows: acc[r][k] of output g + 8r, row 2t+k. b: the lane's columns of row g; unit of rows 2t, 2t+1. */
template <eng_type type>
DEVICE void add_tile(float acc[4][2], const lane_tile<type> &a, const float2 scale[4], const uint4 &b, const float2 unit[2]) {
    const unsigned hi_rows[2] = {b.x, b.y}, lo_rows[2] = {b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        unsigned w[4], upper[2], lower[2];
        unpack<type>(a, i, upper);
        unpack<type>(a, i + 1, lower);
        w[0] = upper[0], w[1] = lower[0], w[2] = upper[1], w[3] = lower[1];
        int hi[4] = {0, 0, 0, 0}, lo[4] = {0, 0, 0, 0};
        mma_s8(hi, w, hi_rows);
        mma_s8(lo, w, lo_rows);
#pragma unroll
        for (int k = 0; k < 4; k++)
            acc[i + k / 2][k % 2] =
                add_block<type>(acc[i + k / 2][k % 2], 128 * hi[k] + lo[k], scale[i + k / 2], unit[k % 2]);
    }
}

/* Rows past the last are the last once more: read, not written. Blocks of the grid are (panel, ROWS rows). */
template <eng_type type, int ROWS>
KERNEL __launch_bounds__(SEGMENTS * 32, ROWS == 8 ? 3 : 2)
few_rows(float *y, int ldy, const char *x, const char *w, int N, int C, int T) {
    enum { GROUPS = ROWS / 8, PITCH = PANEL + 4 };       /* a pitch that spreads t over the banks */
    SHARED_ARRAY(float, part, SEGMENTS *ROWS *PITCH);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, segment = threadIdx.x / 32, blocks = C / ACT_BLOCK;
    const int first = segment * segment_blocks(blocks), last = min(first + segment_blocks(blocks), blocks);
    const char *tile = w + ((size_t)blockIdx.x * blocks + first) * tile_bytes(type);
    const size_t row_bytes = act_row_bytes(C);
    x += blockIdx.y * ROWS * row_bytes;
    y += (size_t)blockIdx.y * ROWS * ldy;
    T = min(T - (int)blockIdx.y * ROWS, ROWS);
    float acc[GROUPS][4][2] = {};
#pragma unroll(ROWS == 32 ? 1 : 2)
    for (int j = first; j < last; j++, tile += tile_bytes(type)) {
        const lane_tile<type> a = load_tile<type>(tile, lane);
        float2 scale[4];
        load_scales<type>(scale, tile, g);
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            float2 unit[2];
            for (int k = 0; k < 2; k++) unit[k] = load_unit(x + (size_t)min(8 * i + 2 * t + k, T - 1) * row_bytes, C, j);
            const uint4 b = load_planes(x + (size_t)min(8 * i + g, T - 1) * row_bytes, C, j, t);
            add_tile<type>(acc[i], a, scale, b, unit);
        }
    }
#pragma unroll
    for (int i = 0; i < GROUPS * 8; i++)
        part[(segment * ROWS + i / 8 * 8 + 2 * t + i % 2) * PITCH + g + i / 2 % 4 * 8] = acc[i / 8][i / 2 % 4][i % 2];
    __syncthreads();
    const int n = (int)blockIdx.x * PANEL + lane;
    for (int row = segment; row < T && n < N; row += SEGMENTS) {
        float sum = 0;
#pragma unroll
        for (int s = 0; s < SEGMENTS; s++) sum = __fadd_rn(sum, part[(s * ROWS + row) * PITCH + lane]);
        y[(size_t)row * ldy + n] = sum;
    }
}

/* What a thread carries of the next STAGE blocks of 32 rows, on its way to shared memory. */
enum {
    MANY_THREADS = MANY_PANELS * 32,
    STAGE_PIECES = MANY_ROWS * STAGE * 4 / MANY_THREADS,
    STAGE_PITCH = STAGE * 4 + 4,                         /* in uint4, of a row: two rows meet no bank twice */
};
typedef struct stage {
    uint4 planes[STAGE_PIECES];
    float2 unit;
} stage;
static_assert(MANY_ROWS * STAGE == MANY_THREADS, "a thread carries one unit");

/* Rows [row, row + 32), blocks [block, block + STAGE) as far as they exist. */
DEVICE void load_stage(stage *s, const char *x, int C, int row, int T, int block) {
    const int blocks = C / ACT_BLOCK;
    const size_t row_bytes = act_row_bytes(C);
#pragma unroll
    for (int i = 0; i < STAGE_PIECES; i++) {
        const int piece = i * MANY_THREADS + (int)threadIdx.x, from = row + piece / (STAGE * 4), at = piece % (STAGE * 4);
        s->planes[i] = load_planes(x + (size_t)min(from, T - 1) * row_bytes, C, min(block + at / 4, blocks - 1), at % 4);
    }
    const int from = row + (int)threadIdx.x / STAGE, at = threadIdx.x % STAGE;
    s->unit = load_unit(x + (size_t)min(from, T - 1) * row_bytes, C, min(block + at, blocks - 1));
}

DEVICE void put_stage(uint4 *planes, float2 *units, const stage &s) {
#pragma unroll
    for (int i = 0; i < STAGE_PIECES; i++) {
        const int piece = i * MANY_THREADS + (int)threadIdx.x;
        planes[piece / (STAGE * 4) * STAGE_PITCH + piece % (STAGE * 4)] = s.planes[i];
    }
    units[threadIdx.x] = s.unit;
}

template <eng_type type>
KERNEL __launch_bounds__(MANY_THREADS, 3) many_rows(float *y, int ldy, const char *x, const char *w, int N, int C, int T) {
    enum { GROUPS = MANY_ROWS / 8 };
    SHARED_ARRAY(uint4, planes, MANY_ROWS *STAGE_PITCH);
    SHARED_ARRAY(float2, units, MANY_ROWS *STAGE);
    SHARED_ARRAY(float, sums, GROUPS * 8 * MANY_THREADS); /* each thread its own; registers are short */
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, blocks = C / ACT_BLOCK, length = segment_blocks(blocks);
    const int panel = (int)blockIdx.y * MANY_PANELS + (int)threadIdx.x / 32, row = (int)blockIdx.x * MANY_ROWS;
    const char *const tiles = w + (size_t)min(panel, (N - 1) / PANEL) * blocks * tile_bytes(type);
    float acc[GROUPS][4][2] = {}, *const sum = sums + threadIdx.x;
#pragma unroll
    for (int i = 0; i < GROUPS * 8; i++) sum[i * MANY_THREADS] = 0;
    stage s;
    load_stage(&s, x, C, row, T, 0);
    lane_tile<type> next = load_tile<type>(tiles, lane);
    for (int j = 0; j < blocks; j++) {
        const int at = j % STAGE;
        if (at == 0) {
            __syncthreads();                             /* the blocks before are multiplied */
            put_stage(planes, units, s);
            __syncthreads();
            load_stage(&s, x, C, row, T, j + STAGE);
        }
        const lane_tile<type> a = next;
        float2 scale[4];
        load_scales<type>(scale, tiles + (size_t)j * tile_bytes(type), g);
        next = load_tile<type>(tiles + (size_t)min(j + 1, blocks - 1) * tile_bytes(type), lane);
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            const float2 unit[2] = {units[(8 * i + 2 * t) * STAGE + at], units[(8 * i + 2 * t + 1) * STAGE + at]};
            add_tile<type>(acc[i], a, scale, planes[(8 * i + g) * STAGE_PITCH + at * 4 + t], unit);
        }
        if ((j + 1) % length != 0 && j + 1 < blocks) continue;
#pragma unroll
        for (int i = 0; i < GROUPS * 8; i++) {
            sum[i * MANY_THREADS] = __fadd_rn(sum[i * MANY_THREADS], acc[i / 8][i / 2 % 4][i % 2]);
            acc[i / 8][i / 2 % 4][i % 2] = 0;
        }
    }
#pragma unroll
    for (int i = 0; i < GROUPS * 8; i++) {
        const int to = row + i / 8 * 8 + 2 * t + i % 2, n = panel * PANEL + g + i / 2 % 4 * 8;
        if (to < T && n < N) y[(size_t)to * ldy + n] = sum[i * MANY_THREADS];
    }
}

/* ---- which of the three ------------------------------------------------------------------------------------------ */

static dim3 many_grid(int N, int T) {
    return dim3((T + MANY_ROWS - 1) / MANY_ROWS, (panels_of(N) + MANY_PANELS - 1) / MANY_PANELS);
}

cuda_product cuda_product_choose(int N, int T) {
    const dim3 grid = many_grid(N, T);
    if (T == 1) return CUDA_PRODUCT_ONE;
    return T <= MANY_ROWS / 2 || (size_t)grid.x * grid.y < MANY_BLOCKS ? CUDA_PRODUCT_FEW : CUDA_PRODUCT_MANY;
}

template <eng_type type>
static cudaError_t matmul(cudaStream_t st, cuda_product which, float *y, int ldy, const char *x, const char *w, int N, int C, int T) {
    const int rows = T <= 8 ? 8 : T <= 16 ? 16 : 32;
    const dim3 threads(SEGMENTS * 32), grid(panels_of(N), which == CUDA_PRODUCT_ONE ? T : (T + rows - 1) / rows);
    if (which == CUDA_PRODUCT_ONE) return launch(one_row<type>, grid, threads, 0, st, y, ldy, x, w, N, C);
    if (which == CUDA_PRODUCT_MANY)
        return launch(many_rows<type>, many_grid(N, T), dim3(MANY_THREADS), 0, st, y, ldy, x, w, N, C, T);
    const auto kernel = rows == 8 ? few_rows<type, 8> : rows == 16 ? few_rows<type, 16> : few_rows<type, 32>;
    return launch(kernel, grid, threads, 0, st, y, ldy, x, w, N, C, T);
}

cudaError_t cuda_matmul_quantised_by(cudaStream_t st, cuda_product which, float *y, int ldy, const void *x, const cuda_matrix *w,
                                     int T) {
    if (!is_whole(w->C)) return cudaErrorInvalidValue;
    if (T == 0 || w->N == 0) return cudaSuccess;
    const char *const rows = (const char *)x, *const data = (const char *)w->data;
    switch (w->type) {
    case ENG_Q8_0: return matmul<ENG_Q8_0>(st, which, y, ldy, rows, data, w->N, w->C, T);
    case ENG_Q4_0: return matmul<ENG_Q4_0>(st, which, y, ldy, rows, data, w->N, w->C, T);
    case ENG_Q4_1: return matmul<ENG_Q4_1>(st, which, y, ldy, rows, data, w->N, w->C, T);
    default: return cudaErrorInvalidValue;
    }
}

cudaError_t cuda_matmul_quantised(cudaStream_t st, float *y, int ldy, const void *x, const cuda_matrix *w, int T) {
    return cuda_matmul_quantised_by(st, cuda_product_choose(w->N, T), y, ldy, x, w, T);
}

/* ---- weights as floats --------------------------------------------------------------------------------------- */

template <eng_type type> struct float_form;
template <> struct float_form<ENG_F32> {
    typedef float one;
    static __device__ __forceinline__ float of(float x) { return x; }
    static __device__ __forceinline__ float wide(float x) { return x; }
};
template <> struct float_form<ENG_F16> {
    typedef __half one;
    static __device__ __forceinline__ __half of(float x) { return __float2half_rn(x); }
    static __device__ __forceinline__ float wide(__half x) { return __half2float(x); }
};
template <> struct float_form<ENG_BF16> {
    typedef __nv_bfloat16 one;
    static __device__ __forceinline__ __nv_bfloat16 of(float x) { return __float2bfloat16_rn(x); }
    static __device__ __forceinline__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
};

/* A thread is 4 columns. */
template <eng_type type> KERNEL __launch_bounds__(256) act_floats(void *out, const char *x, int T, int C) {
    typedef typename float_form<type>::one one;
    struct __align__(4 * sizeof(one)) four {
        one v[4];
    };
    const size_t i = (size_t)blockIdx.x * 256 + threadIdx.x, row = i / (C / 4);
    if (row >= (size_t)T) return;
    const float4 from = ((const float4 *)(x + row * act_row_bytes(C)))[i % (C / 4)];
    ((four *)out)[i] = {{float_form<type>::of(from.x), float_form<type>::of(from.y), float_form<type>::of(from.z),
                         float_form<type>::of(from.w)}};
}

cudaError_t cuda_act_floats(cudaStream_t st, void *out, eng_type type, const void *x, int T, int C) {
    if (is_quantised(type) || !is_whole(C)) return cudaErrorInvalidValue;
    if (T == 0) return cudaSuccess;
    const auto kernel = type == ENG_F32 ? act_floats<ENG_F32> : type == ENG_F16 ? act_floats<ENG_F16> : act_floats<ENG_BF16>;
    const size_t threads = (size_t)T * (size_t)(C / 4);
    return launch(kernel, dim3((unsigned)((threads + 255) / 256)), dim3(256), 0, st, out, (const char *)x, T, C);
}

/* Weight c of a row of the file, as the scalar back end reads it. */
template <eng_type type> DEVICE float weight(const uint8_t *row, int c) {
    if constexpr (type == ENG_F32 || type == ENG_F16 || type == ENG_BF16) {
        return float_form<type>::wide(((const typename float_form<type>::one *)row)[c]);
    } else {
        const uint8_t *const block = row + (size_t)(c / ACT_BLOCK) * block_bytes(type), *const quants = block + quants_at(type);
        const int i = c % ACT_BLOCK;
        const float d = __half2float(*(const __half *)block);
        if (type == ENG_Q8_0) return __fmul_rn(d, (float)(int8_t)quants[i]);
        if (type == ENG_Q4_0) return __fmul_rn(d, (float)((int)nibble(quants, i) - 8));
        return __fadd_rn(__fmul_rn(d, (float)nibble(quants, i)), __half2float(*(const __half *)(block + 2)));
    }
}

/* A block is a row; nobody's are 0. */
template <eng_type type>
KERNEL __launch_bounds__(128) embed(float *x, const uint8_t *w, size_t row_bytes, const int32_t *token, const int32_t *position,
                                    int D) {
    const size_t t = blockIdx.x;
    const bool live = position[t] >= 0;
    const uint8_t *const row = w + (size_t)token[t] * row_bytes;
    for (int c = threadIdx.x; c < D; c += 128) x[t * D + c] = live ? weight<type>(row, c) : 0;
}

cudaError_t cuda_embed(cudaStream_t st, float *x, eng_type type, const void *w, size_t row_bytes, const cuda_rows *b, int D) {
    if (b->T == 0) return cudaSuccess;
    const auto kernel = type == ENG_F32   ? embed<ENG_F32>
                        : type == ENG_F16  ? embed<ENG_F16>
                        : type == ENG_BF16 ? embed<ENG_BF16>
                        : type == ENG_Q8_0 ? embed<ENG_Q8_0>
                        : type == ENG_Q4_0 ? embed<ENG_Q4_0>
                                           : embed<ENG_Q4_1>;
    return launch(kernel, dim3(b->T), dim3(128), 0, st, x, (const uint8_t *)w, row_bytes, b->token, b->position, D);
}
