/* rows.cu -- what is done row by row: residual sum and RMSNorm, SiLU times up, the integers of activations (act.cuh);
 * and the sum over the ranks of a group.
 *
 * All of it waits for memory: a thread takes 4 columns at a time, 16 bytes. Each result is a fixed sequence of roundings,
 * whatever T is. silu_mul is the scalar back end's to the bit; rmsnorm adds its squares in another order:
 *     thread i of 256 adds columns 4i .. 4i+3, then those 1024 further, ... in rising order, a fused multiply-add each;
 *     the lanes of a warp add up by halves (xor 16, 8, 4, 2, 1); the 8 warps' sums are added in rising order. */
#include "engine/cuda/act.cuh"
#include "engine/cuda/kernels.h"

enum { THREADS = 256 };

static bool is_whole(int C) { return C > 0 && C % ACT_BLOCK == 0; }

/* ---- activations -------------------------------------------------------------------------------------------- */

size_t cuda_act_bytes(int C) { return act_row_bytes(C); }

/* Columns [4i, 4i+4) of a row that begins at p. */
DEVICE float4 load_four(const float *p, int i) { return __ldg((const float4 *)p + i); }

/* Blocks of the grid are (1024 columns, row). */
KERNEL __launch_bounds__(THREADS) activate(char *out, const float *x, int C) {
    const int i = (int)(blockIdx.y * THREADS + threadIdx.x);
    const size_t t = blockIdx.x;
    const bool live = i < C / 4;
    const float4 v = live ? load_four(x + t * C, i) : float4{};
    const float four[4] = {v.x, v.y, v.z, v.w};
    act_store<4>(out + t * act_row_bytes(C), C, 4 * i, four, live);
}

/* A thread is 4 columns; rows beside each other, so that T may be large. */
static dim3 grid_of(int T, int C) { return dim3(T, (C / 4 + THREADS - 1) / THREADS); }

cudaError_t cuda_activate(cudaStream_t st, void *out, const float *x, int T, int C) {
    if (!is_whole(C)) return cudaErrorInvalidValue;
    if (T == 0) return cudaSuccess;
    return launch(activate, grid_of(T, C), dim3(THREADS), 0, st, (char *)out, x, C);
}

/* e^x by the operations of eng_exp() (engine/cpu/cpu.h), each rounded: its bits. */
DEVICE float exp_rounded(float x) {
    float clamped = x < -87.3f ? -87.3f : x;
    clamped = clamped > 88.3f ? 88.3f : clamped;
    const float shifted = __fadd_rn(__fmul_rn(clamped, 1.44269504f), 12582912.f), n = __fadd_rn(shifted, -12582912.f);
    float r = __fadd_rn(clamped, -__fmul_rn(n, 0.693359375f));
    r = __fadd_rn(r, __fmul_rn(n, 2.12194440e-4f));
    float p = 1.9875691500e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
    p = __fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), __fadd_rn(r, 1));
    const float power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x < -87.3f ? 0 : __fmul_rn(p, power);
}

DEVICE float silu(float g) { return g / __fadd_rn(1, exp_rounded(-g)); }

KERNEL __launch_bounds__(THREADS) silu_mul(char *out, const float *gu, int F) {
    const int i = (int)(blockIdx.y * THREADS + threadIdx.x);
    const size_t t = blockIdx.x;
    const bool live = i < F / 4;
    const float4 g = live ? load_four(gu + t * 2 * F, i) : float4{}, u = live ? load_four(gu + t * 2 * F + F, i) : float4{};
    const float four[4] = {__fmul_rn(silu(g.x), u.x), __fmul_rn(silu(g.y), u.y), __fmul_rn(silu(g.z), u.z),
                           __fmul_rn(silu(g.w), u.w)};
    act_store<4>(out + t * act_row_bytes(F), F, 4 * i, four, live);
}

cudaError_t cuda_silu_mul(cudaStream_t st, void *out, const float *gu, int T, int F) {
    if (!is_whole(F)) return cudaErrorInvalidValue;
    if (T == 0) return cudaSuccess;
    return launch(silu_mul, grid_of(T, F), dim3(THREADS), 0, st, (char *)out, gu, F);
}

/* ---- RMSNorm --------------------------------------------------------------------------------------------------- */

/* The sum over the block, in every thread. warps: THREADS / 32 floats of shared memory. */
DEVICE float block_sum(float v, float *warps) {
#pragma unroll
    for (int o = 16; o; o /= 2) v = __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, o));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = warps[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++) sum = __fadd_rn(sum, warps[i]);
    return sum;
}

/* A block is a row. */
KERNEL __launch_bounds__(THREADS) rmsnorm(char *out, float *x, const float *y, const float *weight, float eps, int D) {
    SHARED_ARRAY(float, warps, THREADS / 32);
    const size_t t = blockIdx.x;
    float4 *const row = (float4 *)(x + t * D);
    float squares = 0;
    for (int i = threadIdx.x; i < D / 4; i += THREADS) {
        float4 v = row[i];
        if (y) {
            const float4 a = load_four(y + t * D, i);
            v = float4{__fadd_rn(v.x, a.x), __fadd_rn(v.y, a.y), __fadd_rn(v.z, a.z), __fadd_rn(v.w, a.w)};
            row[i] = v;
        }
        squares = __fmaf_rn(v.x, v.x, squares);
        squares = __fmaf_rn(v.y, v.y, squares);
        squares = __fmaf_rn(v.z, v.z, squares);
        squares = __fmaf_rn(v.w, v.w, squares);
    }
    const float scale = 1 / sqrtf(__fadd_rn(block_sum(squares, warps) / (float)D, eps));
    for (int first = 0; first < D / 4; first += THREADS) {       /* whole warps: act_store() */
        const int i = first + (int)threadIdx.x;
        const bool live = i < D / 4;
        const float4 v = live ? row[i] : float4{}, w = live ? load_four(weight, i) : float4{};
        const float four[4] = {__fmul_rn(__fmul_rn(v.x, scale), w.x), __fmul_rn(__fmul_rn(v.y, scale), w.y),
                               __fmul_rn(__fmul_rn(v.z, scale), w.z), __fmul_rn(__fmul_rn(v.w, scale), w.w)};
        act_store<4>(out + t * act_row_bytes(D), D, 4 * i, four, live);
    }
}

cudaError_t cuda_rmsnorm(cudaStream_t st, void *out, float *x, const float *y, const float *weight, float eps, int T, int D) {
    if (!is_whole(D)) return cudaErrorInvalidValue;
    if (T == 0) return cudaSuccess;
    return launch(rmsnorm, dim3(T), dim3(THREADS), 0, st, (char *)out, x, y, weight, eps, D);
}

/* ---- rows moved, ranks added -------------------------------------------------------------------------------------- */

KERNEL __launch_bounds__(THREADS) gather(float *out, const float *x, const int32_t *wanted_row, int D) {
    const size_t to = blockIdx.x, from = (size_t)wanted_row[to];
    const int i = (int)(blockIdx.y * THREADS + threadIdx.x);
    if (i < D / 4) ((float4 *)(out + to * D))[i] = load_four(x + from * D, i);
}

cudaError_t cuda_gather(cudaStream_t st, float *out, const float *x, const cuda_rows *b, int D) {
    if (!is_whole(D)) return cudaErrorInvalidValue;
    if (b->wanted == 0) return cudaSuccess;
    return launch(gather, grid_of(b->wanted, D), dim3(THREADS), 0, st, out, x, b->wanted_row, D);
}

/* A thread is one float: parts need not begin at a multiple of 16, and a warp's loads are whole lines all the same. */
KERNEL __launch_bounds__(THREADS) add_ranks(float *y, const float *parts, size_t stride, int ranks, size_t count) {
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    float sum = parts[i];
    for (int r = 1; r < ranks; r++) sum = __fadd_rn(sum, parts[(size_t)r * stride + i]);
    y[i] = sum;
}

cudaError_t cuda_add_ranks(cudaStream_t st, float *y, const float *parts, size_t stride, int ranks, size_t count) {
    if (ranks < 1) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    return launch(add_ranks, dim3((unsigned)((count + THREADS - 1) / THREADS)), dim3(THREADS), 0, st, y, parts, stride, ranks,
                  count);
}
