/* device_kernels.h -- kernels that try what engine/cuda/device.cuh offers. */
#ifndef BATON_TESTS_CUDA_DEVICE_KERNELS_H
#define BATON_TESTS_CUDA_DEVICE_KERNELS_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* d (16,8) = a (16,16) f16 rows, b (8,16) f16 columns. */
cudaError_t device_mma_f16(cudaStream_t st, float *d, const void *a, const void *b);
/* out (256) = the sum of x (n), in every place. */
cudaError_t device_block_sum(cudaStream_t st, float *out, const float *x, int n);

#ifdef __cplusplus
}
#endif

#endif
