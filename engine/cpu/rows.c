/* rows.c -- what is done row by row: RMSNorm, SiLU times up, the residual sum. */
#include "engine/cpu/lanes.h"
#include <math.h>

enum { ROWS_A_TASK = 8 };

typedef struct row_work {
    float *out;
    const float *in, *weight;
    float eps;
    int T, width;
} row_work;

static void run_rows(eng_context *c, row_work *w, void (*task)(void *, int, int)) {
    eng_team_run(c->team, (w->T + ROWS_A_TASK - 1) / ROWS_A_TASK, task, w);
}

static int last_row(const row_work *w, int task) {
    int end = (task + 1) * ROWS_A_TASK;
    return end < w->T ? end : w->T;
}

static void rmsnorm_task(void *ctx, int task, int thread) {
    const row_work *w = ctx;
    (void)thread;
    for (int t = task * ROWS_A_TASK; t < last_row(w, task); t++) {
        const float *x = w->in + (size_t)t * (size_t)w->width;
        float *out = w->out + (size_t)t * (size_t)w->width;
        lanes sum = spread(0);
        for (int i = 0; i < w->width; i += LANES) sum = add_product(sum, load(x + i), load(x + i));
        float scale = 1 / sqrtf(total(sum) / (float)w->width + w->eps);
        for (int i = 0; i < w->width; i++) out[i] = x[i] * scale * w->weight[i];
    }
}

void ISA_NAME(rmsnorm)(eng_context *c, void *out, const float *x, const float *weight, float eps,
                             int T, int D) {
    row_work w = {.out = out, .in = x, .weight = weight, .eps = eps, .T = T, .width = D};
    run_rows(c, &w, rmsnorm_task);
}

static void silu_task(void *ctx, int task, int thread) {
    const row_work *w = ctx;
    (void)thread;
    for (int t = task * ROWS_A_TASK; t < last_row(w, task); t++) {
        const float *gate = w->in + (size_t)t * 2 * (size_t)w->width, *up = gate + w->width;
        float *out = w->out + (size_t)t * (size_t)w->width;
        for (int i = 0; i < w->width; i++) out[i] = eng_silu(gate[i]) * up[i];
    }
}

void ISA_NAME(silu_mul)(eng_context *c, void *out, const float *gu, int T, int F) {
    row_work w = {.out = out, .in = gu, .T = T, .width = F};
    run_rows(c, &w, silu_task);
}

void ISA_NAME(add)(eng_context *c, float *x, const float *y, int T, int D) {
    (void)c;
    for (size_t i = 0; i < (size_t)T * (size_t)D; i++) x[i] += y[i];
}
