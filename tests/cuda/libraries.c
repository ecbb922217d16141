/* The emulated cuBLAS and NCCL, opened as the product opens the real ones: libcublas.so.13, libnccl.so.2. */
#include <cublas_v2.h>
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define OK(call) assert_int_equal(call, 0)

static void *library, *cublas;
#define NCCL(name) ((typeof(&name))dlsym(library, #name))
#define CUBLAS(name) ((typeof(&name))dlsym(cublas, #name))

static int open_both(void **state) {
    (void)state;
    library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    cublas = dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL);
    return !library || !cublas;
}

/* ---- cuBLAS ---------------------------------------------------------------------------------------------------------- */

static uint16_t bfloat16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)(u >> 16);
}

/* y (T,N) = x (T,C) w (N,C)^T, small whole numbers: exact in any order. */
static void gemm_is_the_product(void **state) {
    (void)state;
    enum { T = 5, C = 24, ROWS = 7 };
    uint16_t x[T * C], w[ROWS * C], *dx, *dw;
    float y[T * ROWS], one = 1, zero = 0, *dy;
    cublasHandle_t h;
    cudaStream_t st;
    for (int i = 0; i < T * C; i++)
        x[i] = bfloat16((float)(i % 13 - 6));
    for (int i = 0; i < ROWS * C; i++)
        w[i] = bfloat16((float)(i % 11 - 5));
    OK(cudaStreamCreateWithFlags(&st, cudaStreamNonBlocking));
    OK(cudaMalloc((void **)&dx, sizeof x));
    OK(cudaMalloc((void **)&dw, sizeof w));
    OK(cudaMalloc((void **)&dy, sizeof y));
    OK(cudaMemcpyAsync(dx, x, sizeof x, cudaMemcpyHostToDevice, st));
    OK(cudaMemcpyAsync(dw, w, sizeof w, cudaMemcpyHostToDevice, st));
    OK(CUBLAS(cublasCreate_v2)(&h));
    OK(CUBLAS(cublasSetStream_v2)(h, st));
    OK(CUBLAS(cublasGemmEx)(h, CUBLAS_OP_T, CUBLAS_OP_N, ROWS, T, C, &one, dw, CUDA_R_16BF, C, dx, CUDA_R_16BF, C, &zero,
                            dy, CUDA_R_32F, ROWS, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    OK(cudaMemcpyAsync(y, dy, sizeof y, cudaMemcpyDeviceToHost, st));
    OK(cudaStreamSynchronize(st));
    for (int i = 0; i < T * ROWS; i++) {
        int sum = 0;
        for (int k = 0; k < C; k++)
            sum += ((i / ROWS * C + k) % 13 - 6) * ((i % ROWS * C + k) % 11 - 5);
        assert_int_equal((int)y[i], sum);
    }
    /* a leading dimension smaller than the rows, and types that do not go together */
    assert_int_equal(CUBLAS(cublasGemmEx)(h, CUBLAS_OP_T, CUBLAS_OP_N, ROWS, T, C, &one, dw, CUDA_R_16BF, C - 1, dx,
                                          CUDA_R_16BF, C, &zero, dy, CUDA_R_32F, ROWS, CUBLAS_COMPUTE_32F,
                                          CUBLAS_GEMM_DEFAULT), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(CUBLAS(cublasGemmEx)(h, CUBLAS_OP_T, CUBLAS_OP_N, ROWS, T, C, &one, dw, CUDA_R_16F, C, dx, CUDA_R_16BF,
                                          C, &zero, dy, CUDA_R_32F, ROWS, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                     CUBLAS_STATUS_NOT_SUPPORTED);
    OK(CUBLAS(cublasDestroy_v2)(h));
    cudaFree(dx);
    cudaFree(dw);
    cudaFree(dy);
    OK(cudaStreamDestroy(st));
}

/* ---- NCCL: ranks are threads, each with a device --------------------------------------------------------------------- */

enum { RANKS = 3, COUNT = 5000 };

typedef struct rank {
    int rank, ranks, bad;                  /* bad: a check's number; 0: none */
    ncclUniqueId id;
    ncclComm_t comm;
    cudaStream_t st;
    float *in, *out, host[RANKS * COUNT];
} rank;

#define CHECK(condition)                                                                                               \
    if (!(condition)) {                                                                                                \
        r->bad = __LINE__;                                                                                             \
        return NULL;                                                                                                   \
    }

static void *rank_open(rank *r) {
    CHECK(!cudaSetDevice(r->rank));
    CHECK(!cudaStreamCreateWithFlags(&r->st, cudaStreamNonBlocking));
    CHECK(!cudaMalloc((void **)&r->in, RANKS * COUNT * sizeof(float)));
    CHECK(!cudaMalloc((void **)&r->out, RANKS * COUNT * sizeof(float)));
    for (int i = 0; i < COUNT; i++)
        r->host[i] = (float)(r->rank * 10000 + i);
    CHECK(!cudaMemcpyAsync(r->in, r->host, COUNT * sizeof(float), cudaMemcpyHostToDevice, r->st));
    return r;
}

static void rank_close(rank *r) {
    cudaFree(r->in);
    cudaFree(r->out);
    cudaStreamDestroy(r->st);
}

static void *fetch(rank *r, size_t count) {
    CHECK(!cudaMemcpyAsync(r->host, r->out, count * sizeof(float), cudaMemcpyDeviceToHost, r->st));
    CHECK(!cudaStreamSynchronize(r->st));
    return r;
}

static void *everything(void *arg) {
    rank *r = arg;
    CHECK(rank_open(r) && !NCCL(ncclCommInitRank)(&r->comm, r->ranks, r->id, r->rank));
    CHECK(!NCCL(ncclAllReduce)(r->in, r->out, COUNT, ncclFloat32, ncclSum, r->comm, r->st) && fetch(r, COUNT));
    for (int i = 0; i < COUNT; i++)
        CHECK(r->host[i] == (float)(30000 + 3 * i));
    CHECK(!NCCL(ncclAllGather)(r->in, r->out, COUNT, ncclFloat32, r->comm, r->st) && fetch(r, RANKS * COUNT));
    for (int i = 0; i < RANKS * COUNT; i++)
        CHECK(r->host[i] == (float)(i / COUNT * 10000 + i % COUNT));
    CHECK(!NCCL(ncclBroadcast)(r->in, r->out, COUNT, ncclFloat32, 1, r->comm, r->st) && fetch(r, COUNT));
    for (int i = 0; i < COUNT; i++)
        CHECK(r->host[i] == (float)(10000 + i));
    CHECK(!NCCL(ncclGroupStart)());                        /* a ring: would deadlock without the group */
    CHECK(!NCCL(ncclSend)(r->in, COUNT, ncclFloat32, (r->rank + 1) % RANKS, r->comm, r->st));
    CHECK(!NCCL(ncclRecv)(r->out, COUNT, ncclFloat32, (r->rank + RANKS - 1) % RANKS, r->comm, r->st));
    CHECK(!NCCL(ncclGroupEnd)() && fetch(r, COUNT));
    for (int i = 0; i < COUNT; i++)
        CHECK(r->host[i] == (float)((r->rank + RANKS - 1) % RANKS * 10000 + i));
    CHECK(!NCCL(ncclCommDestroy)(r->comm));
    rank_close(r);
    return r;
}

/* Rank 2 never calls; the others ask instead of waiting, and abort. */
static void *a_rank_is_missing(void *arg) {
    rank *r = arg;
    CHECK(rank_open(r) && !NCCL(ncclCommInitRank)(&r->comm, r->ranks, r->id, r->rank));
    if (r->rank < 2) {
        CHECK(!NCCL(ncclAllReduce)(r->in, r->out, COUNT, ncclFloat32, ncclSum, r->comm, r->st));
        for (int asked = 0; asked < 50; asked++)
            CHECK(cudaStreamQuery(r->st) == cudaErrorNotReady);
    }
    CHECK(!NCCL(ncclCommAbort)(r->comm));
    CHECK(!cudaStreamSynchronize(r->st));
    rank_close(r);
    return r;
}

/* Never waits inside a call. */
static void *without_blocking(void *arg) {
    rank *r = arg;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t e = ncclInProgress;
    config.blocking = 0;
    CHECK(rank_open(r) && NCCL(ncclCommInitRankConfig)(&r->comm, r->ranks, r->id, r->rank, &config) == ncclInProgress);
    while (e == ncclInProgress)
        CHECK(!NCCL(ncclCommGetAsyncError)(r->comm, &e));
    CHECK(e == ncclSuccess);
    CHECK(NCCL(ncclAllReduce)(r->in, r->out, COUNT, ncclFloat32, ncclSum, r->comm, r->st) == ncclInProgress);
    for (e = ncclInProgress; e == ncclInProgress;)
        CHECK(!NCCL(ncclCommGetAsyncError)(r->comm, &e));
    CHECK(e == ncclSuccess && fetch(r, 1) && r->host[0] == 30000);
    CHECK(!NCCL(ncclCommDestroy)(r->comm));
    rank_close(r);
    return r;
}

static void *on_one_device(void *arg) {
    rank *r = arg;
    CHECK(NCCL(ncclCommInitRank)(&r->comm, r->ranks, r->id, r->rank) == ncclInvalidUsage);
    CHECK(!NCCL(ncclCommAbort)(r->comm));
    return r;
}

static void ranks_run(void *(*run)(void *)) {
    static rank ranks[RANKS];
    pthread_t thread[RANKS];
    ncclUniqueId id;
    OK(NCCL(ncclGetUniqueId)(&id));
    for (int i = 0; i < RANKS; i++) {
        ranks[i] = (rank){.rank = i, .ranks = RANKS, .id = id};
        assert_int_equal(pthread_create(&thread[i], NULL, run, &ranks[i]), 0);
    }
    for (int i = 0; i < RANKS; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(ranks[i].bad, 0);
}

static void collectives(void **state) {
    (void)state;
    ranks_run(everything);
}
static void abort_ends_a_wait(void **state) {
    (void)state;
    ranks_run(a_rank_is_missing);
}
static void non_blocking_communicators(void **state) {
    (void)state;
    ranks_run(without_blocking);
}
static void two_ranks_on_a_device_are_refused(void **state) {
    (void)state;
    ranks_run(on_one_device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_is_the_product),
        cmocka_unit_test(collectives),
        cmocka_unit_test(abort_ends_a_wait),
        cmocka_unit_test(non_blocking_communicators),
        cmocka_unit_test(two_ranks_on_a_device_are_refused),
    };
    setenv("EMU_DEVICES", "3", 1);
    return cmocka_run_group_tests(tests, open_both, NULL);
}
