/* load.h -- cuBLAS and NCCL as tables of functions. Internal to engine/cuda/.
 *
 * The executable is linked to neither, so that it starts on machines without them; the library is opened by the first
 * who needs it: a model with float weights, a group of ranks. The CUDA runtime itself is linked statically. */
#ifndef BATON_ENGINE_CUDA_LOAD_H
#define BATON_ENGINE_CUDA_LOAD_H

#include "base/base.h"
#include <cublas_v2.h>
#include <nccl.h>

#define CUDA_BLAS_FUNCTIONS(X) \
    X(create, cublasCreate_v2) \
    X(destroy, cublasDestroy_v2) \
    X(get_version, cublasGetVersion_v2) \
    X(set_stream, cublasSetStream_v2) \
    X(set_workspace, cublasSetWorkspace_v2) \
    X(set_math_mode, cublasSetMathMode) \
    X(set_atomics_mode, cublasSetAtomicsMode) \
    X(gemm_ex, cublasGemmEx) \
    X(status_text, cublasGetStatusString)

#define CUDA_NCCL_FUNCTIONS(X) \
    X(get_unique_id, ncclGetUniqueId) \
    X(init_rank, ncclCommInitRankConfig) \
    X(finalize, ncclCommFinalize) \
    X(destroy, ncclCommDestroy) \
    X(abort, ncclCommAbort) \
    X(async_error, ncclCommGetAsyncError) \
    X(group_start, ncclGroupStart) \
    X(group_end, ncclGroupEnd) \
    X(send, ncclSend) \
    X(recv, ncclRecv) \
    X(all_gather, ncclAllGather) \
    X(error_text, ncclGetErrorString)

#define X(field, function) __typeof__(function) *field;
typedef struct cuda_blas { CUDA_BLAS_FUNCTIONS(X) } cuda_blas;
typedef struct cuda_nccl { CUDA_NCCL_FUNCTIONS(X) } cuda_nccl;
#undef X

/* Opened once, never closed. ST_UNSUPPORTED names the library and the reason, or the function it does not have. */
status cuda_load_blas(const cuda_blas **out, error *err);
status cuda_load_nccl(const cuda_nccl **out, error *err);

#endif
