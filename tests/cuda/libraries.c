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

enum { T = 5, C = 24, ROWS = 7 };

static int x_at(int t, int k) { return (t * C + k) % 13 - 6; }
static int w_at(int n, int k) { return (n * C + k) % 11 - 5; }

typedef struct operands {
    uint16_t *x, *w, *x_turned, *w_turned; /* (T,C), (ROWS,C), (C,T), (C,ROWS) */
    float *y;                              /* (T,ROWS) */
    cublasHandle_t h;
    cudaStream_t st;
} operands;

static uint16_t *upload(int rows, int columns, int (*at)(int, int), int turned) {
    uint16_t all[T * C + ROWS * C], *p;
    for (int i = 0; i < rows * columns; i++)
        all[i] = bfloat16((float)(turned ? at(i % columns, i / columns) : at(i / columns, i % columns)));
    OK(cudaMalloc((void **)&p, (size_t)(rows * columns) * sizeof *p));
    OK(cudaMemcpy(p, all, (size_t)(rows * columns) * sizeof *p, cudaMemcpyHostToDevice));
    return p;
}

static int operands_open(void **state) {
    operands *o = calloc(1, sizeof *o);
    *state = o;
    OK(cudaStreamCreateWithFlags(&o->st, cudaStreamNonBlocking));
    o->x = upload(T, C, x_at, 0);
    o->w = upload(ROWS, C, w_at, 0);
    o->x_turned = upload(C, T, x_at, 1);
    o->w_turned = upload(C, ROWS, w_at, 1);
    OK(cudaMalloc((void **)&o->y, T * ROWS * sizeof(float)));
    OK(CUBLAS(cublasCreate_v2)(&o->h));
    OK(CUBLAS(cublasSetStream_v2)(o->h, o->st));
    return 0;
}

static int operands_close(void **state) {
    operands *o = *state;
    OK(CUBLAS(cublasDestroy_v2)(o->h));
    cudaFree(o->x);
    cudaFree(o->w);
    cudaFree(o->x_turned);
    cudaFree(o->w_turned);
    cudaFree(o->y);
    OK(cudaStreamDestroy(o->st));
    free(o);
    return 0;
}

/* y = x w^T by any layout of the two. */
static cublasStatus_t multiply(operands *o, int turned, cudaDataType type, int ld) {
    float one = 1, zero = 0;
    if (turned)
        return CUBLAS(cublasGemmEx)(o->h, CUBLAS_OP_N, CUBLAS_OP_T, ROWS, T, C, &one, o->w_turned, type, ld, o->x_turned,
                                    CUDA_R_16BF, T, &zero, o->y, CUDA_R_32F, ROWS, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    return CUBLAS(cublasGemmEx)(o->h, CUBLAS_OP_T, CUBLAS_OP_N, ROWS, T, C, &one, o->w, type, ld, o->x, CUDA_R_16BF, C, &zero,
                                o->y, CUDA_R_32F, ROWS, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

/* Small whole numbers: exact in any order. */
static void gemm_is_the_product(void **state) {
    operands *o = *state;
    float y[T * ROWS];
    for (int turned = 0; turned < 2; turned++) {
        OK(cudaMemsetAsync(o->y, 0xff, sizeof y, o->st));
        OK(multiply(o, turned, CUDA_R_16BF, turned ? ROWS : C));
        OK(cudaMemcpyAsync(y, o->y, sizeof y, cudaMemcpyDeviceToHost, o->st));
        OK(cudaStreamSynchronize(o->st));
        for (int i = 0; i < T * ROWS; i++) {
            int sum = 0;
            for (int k = 0; k < C; k++)
                sum += x_at(i / ROWS, k) * w_at(i % ROWS, k);
            assert_int_equal((int)y[i], sum);
        }
    }
    assert_int_equal(multiply(o, 0, CUDA_R_16BF, C - 1), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(multiply(o, 0, CUDA_R_16F, C), CUBLAS_STATUS_NOT_SUPPORTED);
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
        cmocka_unit_test_setup_teardown(gemm_is_the_product, operands_open, operands_close),
        cmocka_unit_test(collectives),
        cmocka_unit_test(abort_ends_a_wait),
        cmocka_unit_test(non_blocking_communicators),
        cmocka_unit_test(two_ranks_on_a_device_are_refused),
    };
    setenv("EMU_DEVICES", "3", 1);
    return cmocka_run_group_tests(tests, open_both, NULL);
}
