/* memory.h -- device memory for the tests of kernels: what is not written is NaN as a float, -1 as an integer. */
#ifndef BATON_TESTS_CUDA_MEMORY_H
#define BATON_TESTS_CUDA_MEMORY_H

#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

#define OK(call) assert_int_equal((int)(call), (int)cudaSuccess)

/* Memory of that many bytes, all ones. */
static inline void *wild(size_t bytes) {
    void *p = NULL;
    OK(cudaMalloc(&p, bytes));
    OK(cudaMemset(p, 0xff, bytes));
    return p;
}

static inline void *upload(const void *from, size_t bytes) {
    void *p = wild(bytes);
    OK(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
    return p;
}

/* When all that was queued is done. */
static inline void download(cudaStream_t st, void *to, const void *from, size_t bytes) {
    OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, st));
    OK(cudaStreamSynchronize(st));
}

/* Numbers in [-1, 1). */
static inline void fill(float *x, int count, unsigned seed) {
    for (int i = 0; i < count; i++) {
        seed = seed * 1664525 + 1013904223;
        x[i] = (float)(int)(seed >> 8 & 0xffff) / 32768 - 1;
    }
}

#endif
