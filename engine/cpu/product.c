/* product.c -- products with integer weights by 8-bit dot products, and how any product is shared out.
 *
 *   one row      several panels at once, so that memory is read in several streams: one alone gets half
 *                of what a core can read                                             (memory speed)
 *   more rows    a panel's block unpacked into registers, then rows by eight          (arithmetic speed)
 */
#include "engine/cpu/product.h"
#include "engine/cpu/dot.h"
#include <assert.h>

#if defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
enum { STREAMS = 4, ROWS = W / 2 };
#else
enum { STREAMS = 1, ROWS = 1 };              /* no instruction of its own: short code, not speed */
#endif

enum { AHEAD = 32 << 10 };                   /* bytes asked for before they are used: into the next matrix, too */

/* The eight lines of block b. */
INLINE void unpack(eng_type type, const uint8_t *lines, int b, line w[8]) {
    const uint8_t *at = lines + (size_t)b * panel_line_bytes(type);
    UNROLL for (int j = 0; j < 4; j++) {
        if (panel_is_wide(type)) {
            w[j] = wide_line(load_line(at + j * PANEL_LINE));
            w[j + 4] = wide_line(load_line(at + (j + 4) * PANEL_LINE));
        } else {
            line both = load_line(at + j * PANEL_LINE);
            w[j] = low_half(both);
            w[j + 4] = high_half(both);
        }
    }
}

/* acc + W . x over one block; x is one plane of a row. */
INLINE ints add_block(eng_type type, ints acc, const line w[8], const uint8_t *scales, const int8_t *x, int32_t total) {
    const bool wide = panel_is_wide(type);
    ints sum = dot_block(wide, w, x, -(wide ? WIDE_OFFSET : panel_zero(type)) * (total >> 16));
    return panel_has_offset(type) ? add_scaled_offset(acc, sum, scales, total) : add_scaled(wide, acc, sum, scales);
}

INLINE void put(const eng_product *p, int t, int panel, lanes sum) {
    int n = panel * PANEL_OUTPUTS;
    store_some(p->y + (size_t)t * p->N + n, sum, p->outputs - n);
}

/* `rows` rows from t times `panels` panels from `panel`; one of the two counts is 1. */
INLINE void tile(eng_type type, const eng_product *p, int t, int rows, int panel, int panels) {
    enum { MOST = ROWS > STREAMS ? ROWS : STREAMS };
    int blocks = p->C / ACT_BLOCK;
    size_t bytes = panel_bytes(type, p->C), scales_at = panel_scales_at(p->C), lines_at = panel_lines_at(type, p->C);
    const uint8_t *at = p->panels + (size_t)panel * bytes;
    act_group x = eng_product_group(p, t);
    int first = t % ACT_ROWS;
    size_t lo_after = act_lo_after(&x);
    lanes y[MOST];
    UNROLL for (int i = 0; i < rows + panels - 1; i++) y[i] = spread(0);
    for (int s = 0, b = 0; b < blocks; s++) {
        ints hi[MOST], lo[MOST];
        UNROLL for (int i = 0; i < rows + panels - 1; i++) hi[i] = lo[i] = spread_int(0);
        for (int end = b + ACT_SEGMENT / ACT_BLOCK; b < end && b < blocks; b++)
            UNROLL for (int q = 0; q < panels; q++) {
                const uint8_t *scales = at + (size_t)q * bytes + scales_at + (size_t)b * panel_scale_bytes(type);
                const uint8_t *lines = at + (size_t)q * bytes + lines_at;
                line w[8];
                unpack(type, lines, b, w);
                if (t == 0) {
                    const uint8_t *next = lines + AHEAD + (size_t)b * panel_line_bytes(type);
                    for (size_t i = 0; i < panel_line_bytes(type); i += 64) __builtin_prefetch(next + i);
                }
                UNROLL for (int r = 0; r < rows; r++) {
                    const int8_t *plane = act_hi(&x, first + r, b);
                    const int32_t *totals = act_totals(&x, b) + first + r;
                    hi[r + q] = add_block(type, hi[r + q], w, scales, plane, totals[0]);
                    lo[r + q] = add_block(type, lo[r + q], w, scales, plane + lo_after, totals[x.height]);
                }
            }
        UNROLL for (int q = 0; q < panels; q++) {
            lanes unit = bf16s(at + (size_t)q * bytes + (size_t)s * PANEL_UNITS);
            UNROLL for (int r = 0; r < rows; r++)
                y[r + q] = add_segment(y[r + q], hi[r + q], lo[r + q], unit, act_scales(&x, s)[first + r]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int q = 0; q < panels; q++) put(p, t + r, panel + q, y[r + q]);
}

INLINE void times_type(eng_type type, const eng_product *p) {
    int panel = 0, count = panel_count(p->outputs);
    if (p->T == 1)
        for (; panel + STREAMS <= count; panel += STREAMS) tile(type, p, 0, 1, panel, STREAMS);
    for (; panel < count; panel++) {
        int t = 0;
        for (; t + ROWS <= p->T; t += ROWS) tile(type, p, t, ROWS, panel, 1);
        if (ROWS > 4)
            for (; t + 4 <= p->T; t += 4) tile(type, p, t, 4, panel, 1);
        if (ROWS > 2)
            for (; t + 2 <= p->T; t += 2) tile(type, p, t, 2, panel, 1);
        for (; t < p->T; t++) tile(type, p, t, 1, panel, 1);
    }
}

void ISA_NAME(panels_times)(const eng_product *p) {
    switch (p->type) {
    case ENG_Q8_0: times_type(ENG_Q8_0, p); return;
    case ENG_Q4_0: times_type(ENG_Q4_0, p); return;
    case ENG_Q4_1: times_type(ENG_Q4_1, p); return;
    case ENG_F32: case ENG_F16: case ENG_BF16: assert(!"a type that panel_has()");
    }
}

/* ---- shared out --------------------------------------------------------------------------------- */

/* Groups of sixteen outputs, all parts of the stack one after the other, and rows in chunks. */
typedef struct sharing {
    eng_context *c;
    float *y;
    const void *x;
    const eng_matrix *w;
    int T, groups, groups_a_task, group_tasks, rows_a_task;
    eng_panels_times kernel;
} sharing;

/* Groups [from, to) of part i, which begins at output n of the stack and at `own` of its panels. */
static void do_part(const sharing *s, int i, int n, const uint8_t *own, int from, int to, int t, int T,
                    void *scratch) {
    eng_type type = s->w->part[i].type;
    int first = from * PANEL_OUTPUTS, rows = s->w->part[i].rows, end = to * PANEL_OUTPUTS;
    eng_product p = {.type = type, .C = s->w->C, .T = T,
                     .x = (const float *)s->x + (size_t)t * (size_t)s->w->C,
                     .x_group = act_group_of(s->x, s->T, s->w->C, t),
                     .outputs = (end < rows ? end : rows) - first, .N = (size_t)s->w->N,
                     .y = s->y + (size_t)t * (size_t)s->w->N + n + first, .scratch = scratch};
    p.group_bytes = act_group_bytes(p.x_group.height, p.C);
    if (panel_has(type)) {
        p.panels = own + (size_t)from * panel_bytes(type, p.C);
        s->kernel(&p);
    } else {
        size_t row_bytes = s->w->part[i].row_bytes;
        ISA_NAME(float_times)(&p, (const uint8_t *)s->w->part[i].data + (size_t)first * row_bytes, row_bytes);
    }
}

static void do_task(void *ctx, int task, int thread) {
    const sharing *s = ctx;
    int from = task % s->group_tasks * s->groups_a_task, to = from + s->groups_a_task, group = 0, n = 0;
    int t = task / s->group_tasks * s->rows_a_task, T = s->T - t < s->rows_a_task ? s->T - t : s->rows_a_task;
    void *scratch = s->c->panel + (size_t)thread * s->c->panel_floats;
    const uint8_t *own = s->w->own;
    for (int i = 0; i < s->w->parts; i++) {
        int groups = panel_count(s->w->part[i].rows);
        int a = from > group ? from - group : 0, b = to < group + groups ? to - group : groups;
        if (a < b) do_part(s, i, n, own, a, b, t, T, scratch);
        group += groups;
        n += s->w->part[i].rows;
        if (panel_has(s->w->part[i].type)) own += (size_t)groups * panel_bytes(s->w->part[i].type, s->w->C);
    }
}

static int at_least(int n, int least) { return n < least ? least : n; }
static int shares(int n, int of) { return (n + of - 1) / of; }

/* Rows go to threads in contiguous shares if those are large enough to be worth unpacking a panel for, so
 * that a thread finds in its own cache what it wrote; else each thread takes some of the outputs. */
void ISA_NAME(product_run)(eng_context *c, float *y, const void *x, const eng_matrix *w, int T,
                           eng_panels_times kernel) {
    enum { TASKS_A_THREAD = 4, ROWS_A_TASK = 64, SHARE = 128, NEAR = 512 << 10 };
    sharing s = {.c = c, .y = y, .x = x, .w = w, .T = T, .kernel = kernel};
    if (T == 0) return;
    int threads = eng_team_threads(c->team), tasks = threads * TASKS_A_THREAD, rows = T;
    for (int i = 0; i < w->parts; i++) s.groups += panel_count(w->part[i].rows);
    bool by_rows = shares(T, threads) >= SHARE;
    int parts = threads == 1 ? 1 : by_rows ? TASKS_A_THREAD : tasks;
    s.groups_a_task = at_least(s.groups / parts, T == 1 ? STREAMS : 1);
    if (by_rows) rows = shares(T, threads);
    else if (s.groups < tasks && T >= 2 * ROWS_A_TASK) rows = at_least(T * s.groups / tasks, ROWS_A_TASK);
    int near = at_least((int)(NEAR / act_integer_bytes(w->C)), ROWS_A_TASK);
    if (near > PRODUCT_ROWS) near = PRODUCT_ROWS;
    rows = shares(rows, shares(rows, near));             /* a chunk's integers stay in the L2 cache */
    s.rows_a_task = shares(rows, ACT_ROWS) * ACT_ROWS;
    s.group_tasks = shares(s.groups, s.groups_a_task);
    eng_team_run(c->team, s.group_tasks * shares(T, s.rows_a_task), do_task, &s);
}

void ISA_NAME(matmul)(eng_context *c, float *y, const void *x, const eng_matrix *w, int T) {
    ISA_NAME(product_run)(c, y, x, w, T, ISA_NAME(panels_times));
}
