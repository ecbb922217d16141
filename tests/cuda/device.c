/* engine/cuda/device.cuh: warp and block operations, tensor cores. */
#include "tests/cuda/device_kernels.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

static cudaStream_t stream;

static void *upload(const void *from, size_t bytes) {
    void *p = NULL;
    assert_int_equal(cudaMalloc(&p, bytes), cudaSuccess);
    if (from)
        assert_int_equal(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return p;
}

static void download(void *to, void *from, size_t bytes) {
    assert_int_equal(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
}

static void mma_is_the_product(void **state) {
    (void)state;
    _Float16 a[16 * 16], b[8 * 16];
    float d[16 * 8];
    for (int i = 0; i < 256; i++)
        a[i] = (_Float16)((i * 37 % 29) - 14);
    for (int i = 0; i < 128; i++)
        b[i] = (_Float16)((i * 53 % 31) - 15);
    void *da = upload(a, sizeof a), *db = upload(b, sizeof b), *dd = upload(NULL, sizeof d);
    assert_int_equal(device_mma_f16(stream, dd, da, db), cudaSuccess);
    download(d, dd, sizeof d);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            int sum = 0;
            for (int k = 0; k < 16; k++)
                sum += (int)a[i * 16 + k] * (int)b[j * 16 + k];
            assert_int_equal((int)d[i * 8 + j], sum);
        }
    cudaFree(da);
    cudaFree(db);
    cudaFree(dd);
}

static void block_sums(void **state) {
    (void)state;
    enum { N = 1000 };
    float x[N], out[256];
    for (int i = 0; i < N; i++)
        x[i] = (float)i;
    void *dx = upload(x, sizeof x), *dout = upload(NULL, sizeof out);
    assert_int_equal(device_block_sum(stream, dout, dx, N), cudaSuccess);
    download(out, dout, sizeof out);
    for (int i = 0; i < 256; i++)
        assert_int_equal((int)out[i], N * (N - 1) / 2);
    cudaFree(dx);
    cudaFree(dout);
}

static int open_stream(void **state) {
    (void)state;
    return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess;
}

static int close_stream(void **state) {
    (void)state;
    return cudaStreamDestroy(stream) != cudaSuccess;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(mma_is_the_product), cmocka_unit_test(block_sums)};
    return cmocka_run_group_tests(tests, open_stream, close_stream);
}
