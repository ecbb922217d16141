/* panel.h -- integer weights (Q4_0, Q4_1, Q8_0) as the products read them.
 *
 * Sixteen outputs (rows of the matrix) stand side by side in a *panel*, one format for every instruction
 * set. Within a segment of 256 columns (act.h) an output's weights are multiples of one unit:
 *
 *     w ~ unit * W,   W = d q + m,   |W| <= 32767          d, m: 16-bit integers of each block of 32 columns
 *
 * so that a dot product over the segment is a sum of integers: exact, in any order, and tiles of W need no
 * scales. q stays as the file has it. What is rounded are the file's scales, to the unit: by at most half
 * a unit, 1/65,534 of the segment's largest weight (and so 15/65,534 in a weight of 4 bits, 127/65,534 in one of 8). Other
 * formats' scales of blocks are rounded to 6 and 8 bits (ggml's Q4_K, Q6_K).
 *
 *     Q4_1   d and m as the file's, rounded         Q4_0   m = -8 d            Q8_0   m = 0
 *
 * A *line* is 64 bytes: four neighbouring columns of each of the sixteen outputs, what one 8-bit dot
 * product instruction takes; a block of 32 columns has
 *
 *     Q8_0         8 lines: line j holds columns 4j .. 4j+3
 *     Q4_0, Q4_1   4 lines: the low half of each byte is column 4j+i, the high half column 16+4j+i
 *
 *     panel:  per segment: bf16 unit[16] | per block: int16 d[16], Q4_1: (int16 d, m)[16]
 *             | up to a multiple of 64 bytes | lines
 *
 * The last panel of a part is filled up with outputs of zeros. A segment whose scales are not finite has
 * NaN for its unit. */
#ifndef BATON_ENGINE_CPU_PANEL_H
#define BATON_ENGINE_CPU_PANEL_H

#include "engine/cpu/act.h"
#include "engine/ops.h"

enum { PANEL_OUTPUTS = 16, PANEL_LINE = 64, PANEL_UNITS = 32 };

/* Float weights have no panels. */
static inline bool panel_has(eng_type type) {
    switch (type) {
    case ENG_Q8_0: case ENG_Q4_0: case ENG_Q4_1: return true;
    case ENG_F32: case ENG_F16: case ENG_BF16: return false;
    }
    return false;
}

static inline bool panel_is_wide(eng_type type) { return type == ENG_Q8_0; }   /* a byte a weight, signed */
static inline bool panel_has_offset(eng_type type) { return type == ENG_Q4_1; } /* m stands in the panel */
/* q - panel_zero() is what d multiplies. */
static inline int panel_zero(eng_type type) { return type == ENG_Q4_0 ? 8 : 0; }

/* Of one block. */
static inline size_t panel_scale_bytes(eng_type type) { return panel_has_offset(type) ? 64 : 32; }
static inline size_t panel_line_bytes(eng_type type) { return (size_t)(panel_is_wide(type) ? 8 : 4) * PANEL_LINE; }

static inline size_t panel_scales_at(int C) { return (size_t)act_segments(C) * PANEL_UNITS; }

static inline size_t panel_lines_at(eng_type type, int C) {
    return (panel_scales_at(C) + (size_t)(C / 32) * panel_scale_bytes(type) + 63) & ~(size_t)63;
}

static inline size_t panel_bytes(eng_type type, int C) {
    return panel_lines_at(type, C) + (size_t)(C / 32) * panel_line_bytes(type);
}

static inline int panel_count(int rows) { return (rows + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS; }

/* Entries of the op table. */
size_t panel_own_bytes(const eng_context *c, const eng_matrix *m);
void panel_prepare(eng_context *c, const eng_matrix *m, void *own);

#endif
