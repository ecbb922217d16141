/* rows.c -- what is done row by row: residual sum and RMSNorm, SiLU times up; and how an activation row gets
 * its integers (act.h). */
#include "engine/cpu/act.h"
#include "engine/cpu/dot.h"
#include <math.h>

/* ---- integers of an activation row --------------------------------------------------------------- */

typedef int8_t small __attribute__((vector_size(W), aligned(1), may_alias));

INLINE lanes negative(lanes x) {
    UNROLL for (int i = 0; i < PARTS; i++) x.v[i] = -x.v[i];
    return x;
}

/* Sixteen columns: X = x * inverse to the nearest integer, ties to even; its planes; 65536 hi + lo of each
 * is added to sum. */
INLINE ints put_planes(int8_t *hi_plane, size_t lo_after, lanes x, float inverse, ints sum) {
    const float magic = 12582912.f;              /* 1.5 * 2^23: the unit of such a float is 1 */
    UNROLL for (int i = 0; i < PARTS; i++) {
        ivec X = (ivec)(x.v[i] * inverse + magic) - (int32_t)eng_float_bits(magic);
        ivec hi = (X + 64) >> 7, lo = X - hi * 128;
        *(small *)(hi_plane + i * W) = __builtin_convertvector(hi, small);
        *(small *)(hi_plane + lo_after + i * W) = __builtin_convertvector(lo, small);
        sum.v[i] = plus(sum.v[i], plus((ivec)((uvec)hi << 16), lo));
    }
    return sum;
}

/* The integers of row t of T, whose floats stand there. */
static void finish_row(void *out, int T, int C, int t) {
    const float *x = (const float *)out + (size_t)t * (size_t)C;
    act_group g = act_group_of(out, T, C, t);
    int row = t % ACT_ROWS;
    size_t lo_after = act_lo_after(&g);
    for (int s = 0; s < act_segments(C); s++) {
        int end = (s + 1) * ACT_SEGMENT < C ? (s + 1) * ACT_SEGMENT : C;
        lanes largest = spread(0);
        for (int i = s * ACT_SEGMENT; i < end; i += LANES) largest = greater(largest, magnitude(load(x + i)));
        float most = greatest(largest), inverse = most > 0 ? ACT_LARGEST / most : 0;
        act_scales(&g, s)[row] = most / ACT_LARGEST;
        for (int i = s * ACT_SEGMENT; i < end; i += ACT_BLOCK) {
            int8_t *hi = act_hi(&g, row, i / ACT_BLOCK);
            ints sum = put_planes(hi, lo_after, load(x + i), inverse, spread_int(0));
            sum = put_planes(hi + LANES, lo_after, load(x + i + LANES), inverse, sum);
            uint32_t both = (uint32_t)total_int(sum);
            int32_t *totals = act_totals(&g, i / ACT_BLOCK) + row;
            totals[0] = (int32_t)((both + 0x8000) & 0xffff0000);
            totals[g.height] = (int32_t)(both << 16);
        }
    }
    if (C % ACT_SLAB) {
        int8_t *hi = act_hi(&g, row, C / ACT_BLOCK);
        memset(hi, 0, ACT_BLOCK);
        memset(hi + lo_after, 0, ACT_BLOCK);
    }
}

/* ---- the ops ------------------------------------------------------------------------------------ */

typedef struct row_work {
    float *out;
    const float *in;
    const eng_norm *norm;
    int T, width, first, end, rows_a_task;
} row_work;

static void run_rows(eng_context *c, row_work *w, void (*task)(void *, int, int)) {
    int rows = w->end - w->first;
    w->rows_a_task = isa_rows_a_task(c, rows);
    eng_team_run(c->team, (rows + w->rows_a_task - 1) / w->rows_a_task, task, w);
}

static int first_row(const row_work *w, int task) { return w->first + task * w->rows_a_task; }

static int last_row(const row_work *w, int task) {
    int end = first_row(w, task + 1);
    return end < w->end ? end : w->end;
}

/* Columns i .. of the sum over the ranks, row at floats from their begin. */
INLINE lanes add_parts(const eng_norm *n, size_t at, int i) {
    lanes v = load(n->y[0] + at + i);
    for (int p = 1; p < n->parts; p++) v = add_lanes(v, load(n->y[p] + at + i));
    return v;
}

static void rmsnorm_task(void *ctx, int task, int thread) {
    const row_work *w = ctx;
    (void)thread;
    for (int t = first_row(w, task); t < last_row(w, task); t++) {
        size_t at = (size_t)t * (size_t)w->width;
        const eng_norm *n = w->norm;
        float *x = n->x + at, *out = w->out + at;
        lanes sum = spread(0);
        for (int i = 0; i < w->width; i += LANES) {
            lanes v = load(x + i);
            if (n->parts) store(x + i, v = add_lanes(v, add_parts(n, at, i)));
            sum = add_product(sum, v, v);
        }
        float scale = 1 / sqrtf(total(sum) / (float)w->width + n->eps);
        for (int i = 0; i < w->width; i++) out[i] = x[i] * scale * n->weight[i];
        finish_row(w->out, w->T, w->width, t);
    }
}

void ISA_NAME(rmsnorm)(eng_context *c, void *out, const eng_norm *n) {
    row_work w = {.out = out, .norm = n, .T = n->T, .width = n->D, .first = n->first, .end = n->end};
    run_rows(c, &w, rmsnorm_task);
}

static void silu_task(void *ctx, int task, int thread) {
    const row_work *w = ctx;
    (void)thread;
    for (int t = first_row(w, task); t < last_row(w, task); t++) {
        const float *gate = w->in + (size_t)t * 2 * (size_t)w->width, *up = gate + w->width;
        float *out = w->out + (size_t)t * (size_t)w->width;
        for (int i = 0; i < w->width; i += LANES) {
            lanes g = load(gate + i), u = load(up + i), e = exp_lanes(negative(g));
            UNROLL for (int k = 0; k < PARTS; k++) u.v[k] *= g.v[k] / (1 + e.v[k]);
            store(out + i, u);
        }
        finish_row(w->out, w->T, w->width, t);
    }
}

void ISA_NAME(silu_mul)(eng_context *c, void *out, const float *gu, int T, int F) {
    row_work w = {.out = out, .in = gu, .T = T, .width = F, .end = T};
    run_rows(c, &w, silu_task);
}

static void act_task(void *ctx, int task, int thread) {
    const row_work *w = ctx;
    (void)thread;
    for (int t = first_row(w, task); t < last_row(w, task); t++) {
        size_t at = (size_t)t * (size_t)w->width;
        if (w->in) memcpy(w->out + at, w->in + at, (size_t)w->width * sizeof *w->in);
        finish_row(w->out, w->T, w->width, t);
    }
}

void ISA_NAME(activate)(eng_context *c, void *out, const float *x, int T, int C) {
    row_work w = {.out = out, .in = x, .T = T, .width = C, .end = T};
    run_rows(c, &w, act_task);
}
