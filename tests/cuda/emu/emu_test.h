/* emu_test.h -- what a test may ask of the emulated device. */
#ifndef BATON_TESTS_CUDA_EMU_TEST_H
#define BATON_TESTS_CUDA_EMU_TEST_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The runtime call after so many more (0: the next) answers error instead of doing its work; those that free or
 * destroy are neither counted nor failed. after < 0: none does. */
void emu_test_fail_call(long after, cudaError_t error);
/* Whether it has come to that. */
int emu_test_failed(void);
/* The device has so many bytes. */
void emu_test_memory(int device, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
