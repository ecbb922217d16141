/* launch.h -- what device.h calls to launch. */
#pragma once
#include <cuda_runtime_api.h>
#include <cstddef>
/* args: a copy of the parameters, count of them, each at offset with so many bytes; run calls the kernel on a copy. */
cudaError_t emu_launch(const cudaLaunchConfig_t *c, const void *kernel, void (*run)(const void *, void *), const void *args,
                       size_t args_bytes, const int *offset, const int *bytes, int count);
