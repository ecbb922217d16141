/* load.c -- cuBLAS and NCCL opened at run time, by the names their versions have. */
#include "engine/cuda/load.h"
#include <dlfcn.h>
#include <pthread.h>

#define CUBLAS_NAME "libcublas.so.13"
#define NCCL_NAME "libnccl.so.2"

typedef struct symbol {
    const char *name;
    void **at;
} symbol;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cuda_blas blas;
static cuda_nccl nccl;

static status open_library(const char *name, const char *why, const symbol *symbols, size_t count, error *err) {
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) return error_set(err, ST_UNSUPPORTED, "%s is needed for %s and cannot be opened: %s", name, why, dlerror());
    for (size_t i = 0; i < count; i++) {
        *symbols[i].at = dlsym(library, symbols[i].name);
        if (*symbols[i].at) continue;
        dlclose(library);
        return error_set(err, ST_UNSUPPORTED, "%s has no function %s: another version is expected", name, symbols[i].name);
    }
    return ST_OK;
}

#define X(field, function) {#function, (void **)&table->field},
static status open_blas(cuda_blas *table, error *err) {
    const symbol symbols[] = {CUDA_BLAS_FUNCTIONS(X)};
    return open_library(CUBLAS_NAME, "weights of type F32, F16 or BF16", symbols, sizeof symbols / sizeof *symbols, err);
}

static status open_nccl(cuda_nccl *table, error *err) {
    const symbol symbols[] = {CUDA_NCCL_FUNCTIONS(X)};
    return open_library(NCCL_NAME, "several ranks", symbols, sizeof symbols / sizeof *symbols, err);
}
#undef X

status cuda_load_blas(const cuda_blas **out, error *err) {
    pthread_mutex_lock(&lock);
    status s = blas.gemm_ex ? ST_OK : open_blas(&blas, err);
    if (s != ST_OK) blas = (cuda_blas){0};
    *out = &blas;
    pthread_mutex_unlock(&lock);
    return s;
}

status cuda_load_nccl(const cuda_nccl **out, error *err) {
    pthread_mutex_lock(&lock);
    status s = nccl.all_gather ? ST_OK : open_nccl(&nccl, err);
    if (s != ST_OK) nccl = (cuda_nccl){0};
    *out = &nccl;
    pthread_mutex_unlock(&lock);
    return s;
}
