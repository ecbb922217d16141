/* panel.c -- weights put into panels. */
#include "engine/cpu/panel.h"
#include "engine/cpu/cpu.h"

size_t panel_own_bytes(const eng_context *c, const eng_matrix *m) {
    size_t bytes = 0;
    (void)c;
    for (int i = 0; i < m->parts; i++)
        if (panel_has(m->part[i].type))
            bytes += (size_t)panel_count(m->part[i].rows) * panel_bytes(m->part[i].type, m->C);
    return bytes;
}

typedef struct packing {
    eng_type type;
    int C, rows;
    size_t row_bytes;
    const uint8_t *from;
    uint8_t *to;
} packing;

/* One block of one output: ggml's block is its scales, then 16 or 32 bytes of weights in column order. */
static void pack_block(const packing *p, const uint8_t *block, int output, uint8_t *scales, uint8_t *lines) {
    size_t halves = p->type == ENG_Q4_1 ? 2 : 1, weights = p->type == ENG_Q8_0 ? 32 : 16;
    for (size_t i = 0; i < halves; i++)
        memcpy(scales + 32 * i + 2 * (size_t)output, block + 2 * i, 2);
    for (size_t j = 0; j < weights / 4; j++)
        memcpy(lines + j * PANEL_LINE + 4 * (size_t)output, block + 2 * halves + 4 * j, 4);
}

static void pack_panel(void *ctx, int task, int thread) {
    const packing *p = ctx;
    (void)thread;
    int blocks = p->C / 32, first = task * PANEL_OUTPUTS;
    int outputs = p->rows - first < PANEL_OUTPUTS ? p->rows - first : PANEL_OUTPUTS;
    size_t bytes = panel_bytes(p->type, p->C), block_bytes = p->row_bytes / (size_t)blocks;
    uint8_t *panel = p->to + (size_t)task * bytes;
    memset(panel, 0, bytes);
    for (int o = 0; o < outputs; o++)
        for (int b = 0; b < blocks; b++)
            pack_block(p, p->from + (size_t)(first + o) * p->row_bytes + (size_t)b * block_bytes, o,
                       panel + (size_t)b * panel_scale_bytes(p->type),
                       panel + panel_lines_at(p->type, p->C) + (size_t)b * panel_line_bytes(p->type));
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
