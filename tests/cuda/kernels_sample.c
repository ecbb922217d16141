/* Tests engine/cuda/sample.cu: the token is the one that eng_sample() chooses. Its sums are in double, the device's in
 * integers; sample.cu argues that they differ with a chance below 1e-7 a draw, so a difference here is an error. */
#include "engine/cuda/kernels.h"
#include "engine/engine.h"
#include "tests/cuda/memory.h"
#include <math.h>

enum { V = 3001, ROWS_MAX = 160 };

static cudaStream_t stream;
static eng_sampler *sampler;

static unsigned hash(unsigned at) {
    at = (at ^ at >> 15) * 0x2c1b3c6d;
    at = (at ^ at >> 12) * 0x297a2d39;
    return at ^ at >> 15;
}
static float noise(unsigned at) { return (float)(int)(hash(at) >> 8 & 0xffff) / 16384 - 2; }

/* Rows of v logits. */
static void device_sample(int32_t *token, const float *logits, const cuda_draw *draw, int rows, int v) {
    size_t n = (size_t)rows;
    void *p[] = {upload(logits, n * (size_t)v * sizeof *logits), upload(draw, n * sizeof *draw), wild(n * sizeof *token),
                 wild(cuda_sample_scratch(rows, v))};
    OK(cuda_sample(stream, p[2], p[0], p[1], rows, v, p[3]));
    download(stream, token, p[2], n * sizeof *token);
    for (int i = 0; i < 4; i++) OK(cudaFree(p[i]));
}

static int32_t host_sample(const float *logits, const cuda_draw *d) {
    eng_sampling p = eng_sampling_default;
    eng_sampled out;
    p.temperature = d->temperature, p.top_k = d->top_k, p.top_p = d->top_p, p.min_p = d->min_p, p.seed = d->seed;
    return eng_sample(sampler, &p, logits, NULL, 0, d->position, &out) == ST_OK ? out.token : -1;
}

static void compare(const float *logits, const cuda_draw *draw, int rows) {
    int32_t token[ROWS_MAX];
    device_sample(token, logits, draw, rows, V);
    for (int i = 0; i < rows; i++) {
        int32_t want = host_sample(logits + (size_t)draw[i].row * V, &draw[i]);
        if (token[i] != want)
            fail_msg("row %d, temperature %g, top-k %d, top-p %g, min-p %g: token %d, expected %d", i,
                     (double)draw[i].temperature, draw[i].top_k, (double)draw[i].top_p, (double)draw[i].min_p, token[i], want);
    }
}

/* ---- logits ------------------------------------------------------------------------------------------------ */

enum { SPREAD, FLAT, TIES, FORBIDDEN, SPIKE, TAIL, KINDS };

/* TAIL: one likely token, the others below the weight at which the device begins: 0.08 of the mass together. */
static void fill_row(float *logits, int kind, unsigned seed) {
    for (unsigned i = 0; i < V; i++) {
        float x = noise(seed * V + i);
        switch (kind) {
        case SPREAD: logits[i] = 5 * x; break;
        case FLAT: logits[i] = -3.25f; break;
        case TIES: logits[i] = floorf(2 * x) * 0.5f * (i % 3 ? 1 : -1); break;       /* -0 among them */
        case FORBIDDEN: logits[i] = i % 2 ? -INFINITY : 3 * x; break;
        case SPIKE: logits[i] = i == seed % V ? 60 : x; break;
        case TAIL: logits[i] = i == seed % V ? 10.5f : x * 0x1p-8f; break;
        }
    }
}

static void any_request_any_logits(void **state) {
    (void)state;
    static const float temperature[] = {1, 0.7f, 0, 2.5f, 0.05f, 100}, top_p[] = {1, 0.9f, 1, 0.5f, 1e-6f, 0.95f, 0.9999f};
    static const float min_p[] = {0, 0.05f, 0, 1e-5f, 1}, off = 0;
    static const int32_t top_k[] = {0, 40, 0, 1, 2, 1500, V, V + 9, 2999};
    float *logits = malloc((size_t)ROWS_MAX * V * sizeof *logits);
    cuda_draw draw[ROWS_MAX];
    for (unsigned i = 0; i < ROWS_MAX; i++) {
        unsigned n = hash(i + 1);
        fill_row(logits + (size_t)i * V, (int)(i % KINDS), i);
        draw[i] = (cuda_draw){.temperature = temperature[n % 6], .top_p = top_p[n / 8 % 7], .min_p = min_p[n / 64 % 5],
                              .top_k = top_k[n / 512 % 9], .seed = (uint64_t)n << 32 | i, .position = (int32_t)(i * 977),
                              .row = (int32_t)(i * 7 % ROWS_MAX)};
        if (i % 4 == 0) draw[i].top_k = 0, draw[i].min_p = off, draw[i].top_p = 1;    /* no cut at all */
    }
    compare(logits, draw, ROWS_MAX);
    free(logits);
}

/* Of equal logits the draw is floor(u V): the counter's bits show. */
static void the_random_number_is_the_same(void **state) {
    (void)state;
    enum { ROWS = 100 };
    float *logits = malloc((size_t)ROWS * V * sizeof *logits);
    cuda_draw draw[ROWS];
    for (unsigned i = 0; i < ROWS; i++) {
        fill_row(logits + (size_t)i * V, FLAT, 0);
        draw[i] = (cuda_draw){.temperature = 1, .top_p = 1, .seed = i < 50 ? i : ~0ull << (i % 64),
                              .position = i % 2 ? (int32_t)i : (int32_t)(INT32_MAX - i), .row = (int32_t)i};
    }
    compare(logits, draw, ROWS);
    free(logits);
}

static void what_is_no_number_is_refused(void **state) {
    (void)state;
    static const float odd[][2] = {{NAN, 1}, {INFINITY, 1}, {-INFINITY, -INFINITY}, {-INFINITY, NAN}, {-INFINITY, 1}, {-0.f, 0}};
    enum { ROWS = sizeof odd / sizeof *odd };
    float *logits = malloc((size_t)ROWS * 2 * V * sizeof *logits);
    cuda_draw draw[2 * ROWS];
    for (int i = 0; i < 2 * ROWS; i++) {
        for (int n = 0; n < V; n++) logits[i * V + n] = odd[i / 2][1];
        logits[i * V + 2 + i * 200] = odd[i / 2][0];
        draw[i] = (cuda_draw){.temperature = (float)(i % 2), .top_p = 1, .position = i, .row = i};
    }
    compare(logits, draw, 2 * ROWS);
    int32_t token[2 * ROWS];
    device_sample(token, logits, draw, 2 * ROWS, V);
    for (int i = 0; i < 2 * ROWS; i++) assert_int_equal(token[i] == -1, i < 8);
    free(logits);
}

static void small_vocabularies(void **state) {
    (void)state;
    static const float logits[] = {-1, 2, 2};
    cuda_draw draw[] = {{.temperature = 0, .top_p = 1},
                        {.temperature = 1, .top_p = 0.5f, .min_p = 0.9f, .row = 1},
                        {.temperature = 1, .top_p = 1, .top_k = 1, .row = 2}};
    int32_t token[3];
    device_sample(token, logits, draw, 3, 1);              /* one token: it */
    for (int i = 0; i < 3; i++) assert_int_equal(token[i], 0);
    device_sample(token, logits, draw, 1, 3);
    assert_int_equal(token[0], 1);
    draw[2].row = 0;
    device_sample(token, logits, draw + 2, 1, 3);
    assert_int_equal(token[0], 1);
}

static int open_all(void **state) {
    (void)state;
    sampler = eng_sampler_create(V);
    return !sampler || cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess;
}

static int close_all(void **state) {
    (void)state;
    eng_sampler_destroy(sampler);
    return cudaStreamDestroy(stream) != cudaSuccess;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_request_any_logits),
        cmocka_unit_test(the_random_number_is_the_same),
        cmocka_unit_test(what_is_no_number_is_refused),
        cmocka_unit_test(small_vocabularies),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
