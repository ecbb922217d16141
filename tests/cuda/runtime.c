/* The emulated runtime itself: what the CUDA back end counts on, and what it must not count on. */
#include "tests/cuda/device_kernels.h"
#include "tests/cuda/emu/emu_test.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { N = 256 };

#define OK(call) assert_int_equal(call, cudaSuccess)

/* x (N) of ones and twos and so on; out (N) gets their sum, from a kernel on st. */
typedef struct rig {
    float *x, *out, *host;                 /* host: pinned */
    cudaStream_t st, other, blocking;
    cudaEvent_t event;
} rig;

static int rig_open(void **state) {
    rig *r = calloc(1, sizeof *r);
    *state = r;
    OK(cudaMalloc((void **)&r->x, N * sizeof(float)));
    OK(cudaMalloc((void **)&r->out, N * sizeof(float)));
    OK(cudaMallocHost((void **)&r->host, N * sizeof(float)));
    OK(cudaStreamCreateWithFlags(&r->st, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithPriority(&r->other, cudaStreamNonBlocking, -1));
    OK(cudaStreamCreate(&r->blocking));
    OK(cudaEventCreateWithFlags(&r->event, cudaEventDisableTiming));
    OK(cudaMemset(r->x, 0, N * sizeof(float)));
    return 0;
}

static int rig_close(void **state) {
    rig *r = *state;
    cudaFree(r->x);
    cudaFree(r->out);
    cudaFreeHost(r->host);
    cudaStreamDestroy(r->st);
    cudaStreamDestroy(r->other);
    cudaStreamDestroy(r->blocking);
    cudaEventDestroy(r->event);
    free(r);
    return 0;
}

/* Queues: x = value in all places (by way of the pinned buffer). */
static void fill(rig *r, float value, cudaStream_t st) {
    for (int i = 0; i < N; i++)
        r->host[i] = value;
    OK(cudaMemcpyAsync(r->x, r->host, N * sizeof(float), cudaMemcpyHostToDevice, st));
    OK(cudaStreamSynchronize(st));
}

static float result(rig *r) {
    float v;
    OK(cudaDeviceSynchronize());
    OK(cudaMemcpy(&v, r->out, sizeof v, cudaMemcpyDeviceToHost));
    return v;
}

static void an_event_orders_two_streams(void **state) {
    rig *r = *state;
    for (int i = 0; i < N; i++)
        r->host[i] = 2;
    OK(cudaMemcpyAsync(r->x, r->host, N * sizeof(float), cudaMemcpyHostToDevice, r->other));
    OK(cudaEventRecord(r->event, r->other));
    OK(cudaStreamWaitEvent(r->st, r->event, 0));
    OK(device_block_sum(r->st, r->out, r->x, N));
    OK(cudaStreamSynchronize(r->st));
    OK(cudaEventQuery(r->event));
    assert_int_equal((int)result(r), 2 * N);
}

static void query_makes_progress(void **state) {
    rig *r = *state;
    fill(r, 3, r->st);
    OK(device_block_sum(r->st, r->out, r->x, N));
    OK(cudaEventRecord(r->event, r->st));
    int asked = 0;
    while (cudaEventQuery(r->event) == cudaErrorNotReady && asked < 100)
        asked++;
    assert_true(asked < 100);
    OK(cudaStreamQuery(r->st));
    assert_int_equal((int)result(r), 3 * N);
}

static void the_null_stream_orders_blocking_streams(void **state) {
    rig *r = *state;
    fill(r, 4, r->st);
    OK(device_block_sum(r->blocking, r->out, r->x, N));
    float v;
    OK(cudaMemcpy(&v, r->out, sizeof v, cudaMemcpyDeviceToHost));
    assert_int_equal((int)v, 4 * N);
}

static void a_graph_is_replayed(void **state) {
    rig *r = *state;
    cudaGraph_t g;
    cudaGraphExec_t x;
    OK(cudaStreamBeginCapture(r->st, cudaStreamCaptureModeThreadLocal));
    OK(device_block_sum(r->st, r->out, r->x, N));
    OK(cudaEventRecord(r->event, r->st));                  /* another stream joins, and comes back */
    OK(cudaStreamWaitEvent(r->other, r->event, 0));
    OK(cudaMemcpyAsync(r->x, r->out, N * sizeof(float), cudaMemcpyDeviceToDevice, r->other));
    OK(cudaEventRecord(r->event, r->other));
    OK(cudaStreamWaitEvent(r->st, r->event, 0));
    OK(cudaStreamEndCapture(r->st, &g));
    size_t nodes;
    OK(cudaGraphGetNodes(g, NULL, &nodes));
    assert_int_equal(nodes, 2);
    OK(cudaGraphInstantiate(&x, g, 0));
    OK(cudaGraphDestroy(g));
    fill(r, 1, r->st);
    OK(cudaGraphLaunch(x, r->st));                         /* each x becomes the sum: N, then N * N */
    OK(cudaGraphLaunch(x, r->st));
    OK(cudaGraphExecDestroy(x));
    assert_int_equal((int)result(r), N * N);
}

static void what_breaks_a_capture(void **state) {
    rig *r = *state;
    cudaGraph_t g;
    void *p;
    OK(cudaStreamBeginCapture(r->st, cudaStreamCaptureModeGlobal));
    assert_int_equal(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(r->st, &g), cudaErrorStreamCaptureInvalidated);
    assert_null(g);
    OK(cudaStreamBeginCapture(r->st, cudaStreamCaptureModeRelaxed));
    OK(cudaMalloc(&p, 16));
    OK(cudaStreamEndCapture(r->st, &g));
    OK(cudaGraphDestroy(g));
    OK(cudaFree(p));
    assert_int_equal(cudaGetLastError(), cudaErrorStreamCaptureInvalidated);
}

static void memory_is_limited(void **state) {
    (void)state;
    void *p, *q;
    size_t free_before, free_now, total;
    emu_test_memory(0, 1 << 20);
    OK(cudaMemGetInfo(&free_before, &total));
    assert_int_equal(total, 1 << 20);
    OK(cudaMalloc(&p, 600 << 10));
    OK(cudaMemGetInfo(&free_now, &total));
    assert_int_equal(free_before - free_now, 600 << 10);
    assert_int_equal(cudaMalloc(&q, 600 << 10), cudaErrorMemoryAllocation);
    assert_string_equal(cudaGetErrorName(cudaGetLastError()), "cudaErrorMemoryAllocation");
    OK(cudaFree(p));
    OK(cudaMalloc(&q, 600 << 10));
    OK(cudaFree(q));
    emu_test_memory(0, 0);
}

static void the_nth_call_fails(void **state) {
    rig *r = *state;
    int n = 0;
    for (; n < 10; n++) {
        emu_test_fail_call(n, cudaErrorLaunchFailure);
        cudaError_t e = device_block_sum(r->st, r->out, r->x, N);
        e = e ? e : cudaStreamSynchronize(r->st);
        assert_int_equal(e != cudaSuccess, emu_test_failed());
        if (!emu_test_failed())
            break;
    }
    emu_test_fail_call(-1, cudaSuccess);
    assert_int_equal(n, 2);
    cudaGetLastError();
}

static void note(void *count) { ++*(int *)count; }

static void a_host_function_runs_in_its_turn(void **state) {
    rig *r = *state;
    int count = 0;
    OK(cudaLaunchHostFunc(r->st, note, &count));
    OK(cudaStreamSynchronize(r->st));
    assert_int_equal(count, 1);
}

static void rows_are_copied(void **state) {
    rig *r = *state;
    float from[4][8], to[4][3];
    for (int i = 0; i < 32; i++)
        from[i / 8][i % 8] = (float)i;
    OK(cudaMemcpy2DAsync(r->x, 3 * sizeof(float), from, 8 * sizeof(float), 3 * sizeof(float), 4, cudaMemcpyHostToDevice,
                         r->st));
    OK(cudaMemcpyAsync(to, r->x, sizeof to, cudaMemcpyDeviceToHost, r->st));
    OK(cudaStreamSynchronize(r->st));
    for (int i = 0; i < 12; i++)
        assert_int_equal((int)to[i / 3][i % 3], i / 3 * 8 + i % 3);
}

static void a_device_has_its_own_streams(void **state) {
    rig *r = *state;
    int n;
    OK(cudaGetDeviceCount(&n));
    assert_int_equal(n, 2);
    OK(cudaSetDevice(1));
    assert_int_equal(device_block_sum(r->st, r->out, r->x, N), cudaErrorInvalidResourceHandle);
    OK(cudaSetDevice(0));
    assert_int_equal(cudaSetDevice(2), cudaErrorInvalidDevice);
    cudaGetLastError();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_event_orders_two_streams, rig_open, rig_close),
        cmocka_unit_test_setup_teardown(query_makes_progress, rig_open, rig_close),
        cmocka_unit_test_setup_teardown(the_null_stream_orders_blocking_streams, rig_open, rig_close),
        cmocka_unit_test_setup_teardown(a_graph_is_replayed, rig_open, rig_close),
        cmocka_unit_test_setup_teardown(what_breaks_a_capture, rig_open, rig_close),
        cmocka_unit_test(memory_is_limited),
        cmocka_unit_test_setup_teardown(the_nth_call_fails, rig_open, rig_close),
        cmocka_unit_test_setup_teardown(a_host_function_runs_in_its_turn, rig_open, rig_close),
        cmocka_unit_test_setup_teardown(rows_are_copied, rig_open, rig_close),
        cmocka_unit_test_setup_teardown(a_device_has_its_own_streams, rig_open, rig_close),
    };
    setenv("EMU_DEVICES", "2", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
