/* panel.c -- weights put into panels. */
#include "engine/cpu/panel.h"
#include "engine/cpu/cpu.h"
#include <math.h>

size_t panel_own_bytes(const eng_context *c, const eng_matrix *m) {
    size_t bytes = 0;
    (void)c;
    for (int i = 0; i < m->parts; i++)
        if (panel_has(m->part[i].type))
            bytes += (size_t)panel_count(m->part[i].rows) * panel_bytes(m->part[i].type, m->C);
    return bytes;
}

enum { TRIED = 32 };

typedef struct packing {
    eng_type type;
    int C, rows;
    size_t row_bytes;
    const uint8_t *from;
    uint8_t *to;
} packing;

/* What the file says of a block: w = d q + m, before rounding. */
static void scales_of(eng_type type, const uint8_t *block, float *d, float *m) {
    uint16_t half[2];
    memcpy(half, block, sizeof half);
    *d = eng_half_to_float(half[0]);
    *m = panel_has_offset(type) ? eng_half_to_float(half[1]) : (float)-panel_zero(type) * *d;
}

/* The largest |w| that a block's scales allow. */
static float largest(eng_type type, float d, float m) {
    if (panel_is_wide(type)) return 128 * fabsf(d);
    float low = fabsf(m), high = fabsf(m + 15 * d);
    return low > high ? low : high;                  /* NaN if either is */
}

/* The segment's unit as bfloat16: rounded up, so that W stays within 16 bits after d and m are rounded. */
static uint16_t unit_of(eng_type type, float most) {
    const float units = 32767 - (panel_is_wide(type) ? 64 : 8);
    if (!isfinite(most)) return 0x7fc0;
    float unit = fmaxf(most / units, 0x1p-126f);
    return (uint16_t)((eng_float_bits(unit) + 0xffff) >> 16);
}

/* Sum of the squares of what rounding d of blocks [from, to) to multiples of unit takes from them. */
static float lost(eng_type type, const uint8_t *blocks, size_t block_bytes, int from, int to, float unit) {
    float all = 0, d, m;
    for (int b = from; b < to; b++) {
        scales_of(type, blocks + (size_t)b * block_bytes, &d, &m);
        float less = d - rintf(d / unit) * unit;
        all += less * less;
    }
    return all;
}

/* d of wide weights has 8 bits only, so their unit is chosen: the best of the next TRIED bfloat16. */
static uint16_t better_unit(eng_type type, const uint8_t *blocks, size_t block_bytes, int from, int to, uint16_t unit) {
    uint16_t best = unit;
    float least = INFINITY;
    for (uint16_t u = unit; u < unit + TRIED; u++) {
        float here = lost(type, blocks, block_bytes, from, to, eng_bf16_to_float(u));
        if (here < least) least = here, best = u;
    }
    return best;
}

/* Blocks [from, to) of one output, a segment. ggml's block is its scales, then 16 or 32 bytes of weights in
 * column order. */
static void pack_segment(const packing *p, const uint8_t *blocks, size_t block_bytes, int from, int to, int output,
                         uint8_t *panel) {
    size_t heads = panel_has_offset(p->type) ? 4 : 2, weights = panel_is_wide(p->type) ? 32 : 16;
    float most = 0, d, m;
    for (int b = from; b < to && isfinite(most); b++) {
        scales_of(p->type, blocks + (size_t)b * block_bytes, &d, &m);
        float here = largest(p->type, d, m);
        if (!(here <= most)) most = here;            /* a NaN, too */
    }
    uint16_t unit = unit_of(p->type, most);
    if (panel_is_wide(p->type) && isfinite(most)) unit = better_unit(p->type, blocks, block_bytes, from, to, unit);
    memcpy(panel + (size_t)(from * ACT_BLOCK / ACT_SEGMENT) * PANEL_UNITS + 2 * (size_t)output, &unit, 2);
    for (int b = from; b < to; b++) {
        const uint8_t *block = blocks + (size_t)b * block_bytes;
        uint8_t *scales = panel + panel_scales_at(p->C) + (size_t)b * panel_scale_bytes(p->type);
        uint8_t *lines = panel + panel_lines_at(p->type, p->C) + (size_t)b * panel_line_bytes(p->type);
        scales_of(p->type, block, &d, &m);
        int16_t whole[2] = {0, 0};
        if (isfinite(most)) {
            whole[0] = (int16_t)rintf(d / eng_bf16_to_float(unit));
            whole[1] = (int16_t)rintf(m / eng_bf16_to_float(unit));
        }
        memcpy(scales + heads * (size_t)output, whole, heads);
        for (size_t j = 0; j < weights / 4; j++)
            memcpy(lines + j * PANEL_LINE + 4 * (size_t)output, block + heads + 4 * j, 4);
    }
}

static void pack_panel(void *ctx, int task, int thread) {
    const packing *p = ctx;
    (void)thread;
    int blocks = p->C / ACT_BLOCK, step = ACT_SEGMENT / ACT_BLOCK, first = task * PANEL_OUTPUTS;
    int outputs = p->rows - first < PANEL_OUTPUTS ? p->rows - first : PANEL_OUTPUTS;
    size_t bytes = panel_bytes(p->type, p->C), block_bytes = eng_gguf_type_bytes(p->type, ACT_BLOCK);
    uint8_t *panel = p->to + (size_t)task * bytes;
    memset(panel, 0, bytes);
    for (int o = 0; o < outputs; o++)
        for (int b = 0; b < blocks; b += step)
            pack_segment(p, p->from + (size_t)(first + o) * p->row_bytes, block_bytes, b,
                         b + step < blocks ? b + step : blocks, o, panel);
}

void panel_prepare(eng_context *c, const eng_matrix *m, void *own) {
    uint8_t *to = own;
    for (int i = 0; i < m->parts; i++) {
        packing p = {m->part[i].type, m->C, m->part[i].rows, m->part[i].row_bytes, m->part[i].data, to};
        if (!panel_has(p.type)) continue;
        eng_team_run(c->team, panel_count(p.rows), pack_panel, &p);
        to += (size_t)panel_count(p.rows) * panel_bytes(p.type, p.C);
    }
}
