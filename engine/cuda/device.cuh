/* device.cuh -- what kernels use instead of bare CUDA where a test has to see through it.
 *
 * A .cu file is compiled by nvcc for the device, and by a host compiler for the tests (tests/cuda/emu): this header
 * is the only place that knows. Rules for kernels:
 *   1. A launch is launch(): no <<<>>>.
 *   2. Shared memory is SHARED_ARRAY or SHARED_DYN, never a bare __shared__.
 *   3. Kernels are KERNEL (static); parameters are trivially copyable.
 *   4. Inline PTX stands here, one wrapper an instruction, with an emulated twin.
 *   5. No thread leaves before a block barrier; masks are explicit, never __activemask(); nobody spins on memory.
 *   6. Offsets are size_t; streams are explicit. */
#ifndef BATON_ENGINE_CUDA_DEVICE_CUH
#define BATON_ENGINE_CUDA_DEVICE_CUH

#include <stddef.h>
#include <stdint.h>
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#define KERNEL static __global__ void
#define DEVICE static __device__ __forceinline__

#ifdef EMU_CUDA
/* SHARED_ARRAY(float, sums, 32); a block's array, once a function. */
#define SHARED_ARRAY(T, name, n)                                                                                       \
    static const char name##_key_ = 0;                                                                                 \
    T(&name)[n] = *(T(*)[n])emu_smem_static(&name##_key_, sizeof(T) * (n), alignof(T), #name)
/* SHARED_DYN(float, row); as many bytes as the launch gave, 16-byte aligned. */
#define SHARED_DYN(T, name) T *name = (T *)emu_smem_dyn(16)
#else
#define SHARED_ARRAY(T, name, n) __shared__ T name[n]
#define SHARED_DYN(T, name)                                                                                            \
    extern __shared__ __align__(16) unsigned char smem_raw_[];                                                         \
    T *name = (T *)smem_raw_
#endif

/* Queues k<<<grid, block, shared>>>(args...) on st. */
template <class... P, class... A>
static inline cudaError_t launch(void (*k)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t st, A &&...args) {
    cudaLaunchConfig_t c = {};
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = shared;
    c.stream = st;
    return cudaLaunchKernelEx(&c, k, static_cast<A &&>(args)...);
}

/* d (16,8) += a (16,16) b (16,8), f16 in, f32 out, over a warp. Lane 4g+t has of a the pairs of columns 2t of rows
 * g and g+8, then of columns 2t+8; of b the pairs of rows 2t and 2t+8 of column g; of d columns 2t, 2t+1 of rows g
 * and g+8 (PTX ISA, mma.m16n8k16). */
DEVICE void mma_f16(float d[4], const unsigned a[4], const unsigned b[2]) {
#ifdef EMU_CUDA
    emu_mma_m16n8k16_f16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* The same, bfloat16 in. */
DEVICE void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]) {
#ifdef EMU_CUDA
    emu_mma_m16n8k16_bf16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* d (16,8) += a (16,32) b (32,8), int8 in, int32 out, over a warp. Lane 4g+t has of a columns 4t .. 4t+3 of rows g and
 * g+8, then columns 16+4t ..; of b rows 4t .. 4t+3 and 16+4t .. of column g; of d columns 2t, 2t+1 of rows g and g+8
 * (PTX ISA, mma.m16n8k32). */
DEVICE void mma_s8(int d[4], const unsigned a[4], const unsigned b[2]) {
#ifdef EMU_CUDA
    emu_mma_m16n8k32_s8(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#endif
