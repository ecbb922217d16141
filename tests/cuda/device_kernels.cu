/* Kernels of tests/cuda/device.c: one a wrapper of engine/cuda/device.cuh. */
#include "engine/cuda/device.cuh"
#include "tests/cuda/device_kernels.h"

/* One tile: a (16,16), b (8,16) by columns, d (16,8). */
KERNEL mma_f16_tile(float *d, const unsigned *a, const unsigned *b) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const unsigned ra[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
    const unsigned rb[2] = {b[g * 8 + t], b[g * 8 + t + 4]};
    float c[4] = {0, 0, 0, 0};
    mma_f16(c, ra, rb);
    d[g * 8 + 2 * t] = c[0];
    d[g * 8 + 2 * t + 1] = c[1];
    d[(g + 8) * 8 + 2 * t] = c[2];
    d[(g + 8) * 8 + 2 * t + 1] = c[3];
}

cudaError_t device_mma_f16(cudaStream_t st, float *d, const void *a, const void *b) {
    return launch(mma_f16_tile, dim3(1), dim3(32), 0, st, d, (const unsigned *)a, (const unsigned *)b);
}

/* out[i] = sum of x[0..n), every thread's the same: warps by shuffles, the block by shared memory. */
KERNEL block_sum(float *out, const float *x, int n) {
    SHARED_ARRAY(float, warps, 8);
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        sum += x[i];
    for (int o = 16; o; o >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++)
        sum += warps[w];
    out[threadIdx.x] = sum;
}

cudaError_t device_block_sum(cudaStream_t st, float *out, const float *x, int n) {
    return launch(block_sum, dim3(1), dim3(256), 0, st, out, x, n);
}
