/* act.h -- activations: what the products of this back end read.
 *
 * A row is held as floats and as 14-bit integers X, with a scale for each *segment* of 256 columns:
 *
 *     x ~ scale * X,   X = 128 hi + lo,   |X| <= 8191,  -64 <= hi <= 64,  -64 <= lo <= 63
 *
 * Integer weights are multiplied as 128 * sum(w*hi) + sum(w*lo): 8-bit dot products of any instruction set,
 * exact over the whole segment, so the order in which an instruction adds does not show. Fourteen bits,
 * not the eight that others use, because eight lose more than the weights do: the top logits of the test
 * model move by 0.31 on average with eight of a block of 32, by 0.02 with these. Planes of 7 bits, because
 * 32 products with weights of 4 bits then fit 16 bits.
 *
 * The floats of all rows come first. The integers follow by groups of `height` rows, the 16 of an AMX tile,
 * or T when there are fewer; a *slab* is 64 columns, what a tile takes:
 *
 *     float x[T][C] | per group: per slab: int8 hi[row][64], int8 lo[row][64]
 *                   |            float scale[segment][row]
 *                   |            int32 totals[block][hi, lo][row]: 65536 * the sum of a plane's 32 columns
 *
 * Columns of the last slab that do not exist are 0. The last group is as high as the others: its unused rows
 * are read, never used. */
#ifndef BATON_ENGINE_CPU_ACT_H
#define BATON_ENGINE_CPU_ACT_H

#include <stddef.h>
#include <stdint.h>

enum { ACT_BLOCK = 32, ACT_SLAB = 64, ACT_SEGMENT = 256, ACT_LARGEST = 8191, ACT_ROWS = 16 };

static inline int act_slabs(int C) { return (C + ACT_SLAB - 1) / ACT_SLAB; }
static inline int act_segments(int C) { return (C + ACT_SEGMENT - 1) / ACT_SEGMENT; }

/* The integers of one row. */
static inline size_t act_integer_bytes(int C) {
    return (size_t)act_slabs(C) * 2 * ACT_SLAB + (size_t)act_segments(C) * 4 + (size_t)(C / ACT_BLOCK) * 8;
}

/* Bytes a row needs, if the buffer has a multiple of 16 rows. */
static inline size_t act_bytes(int C) {
    return ((size_t)C * sizeof(float) + act_integer_bytes(C) + 63) & ~(size_t)63;
}

typedef struct act_group {
    int height, C;
    int8_t *planes;
} act_group;

static inline size_t act_group_bytes(int height, int C) {
    return ((size_t)height * act_integer_bytes(C) + 63) & ~(size_t)63;
}

/* The group of row t of T; buffer is 64-aligned. */
static inline act_group act_group_of(const void *buffer, int T, int C, int t) {
    int height = T < ACT_ROWS ? T : ACT_ROWS;
    size_t floats = ((size_t)T * (size_t)C * sizeof(float) + 63) & ~(size_t)63;
    return (act_group){height, C, (int8_t *)(uintptr_t)buffer + floats +
                       (size_t)(t / ACT_ROWS) * act_group_bytes(height, C)};
}

/* The 32 columns of a block: hi, and lo as far behind it as act_lo_after() says. */
static inline int8_t *act_hi(const act_group *g, int row, int block) {
    return g->planes + (size_t)(block / 2) * 2 * ACT_SLAB * (size_t)g->height + (size_t)row * ACT_SLAB +
           (size_t)(block % 2) * ACT_BLOCK;
}
static inline size_t act_lo_after(const act_group *g) { return (size_t)g->height * ACT_SLAB; }

static inline float *act_scales(const act_group *g, int segment) {
    return (float *)(void *)(g->planes + (size_t)act_slabs(g->C) * 2 * ACT_SLAB * (size_t)g->height) +
           (size_t)segment * (size_t)g->height;
}

/* Of hi; those of lo are `height` further on. */
static inline int32_t *act_totals(const act_group *g, int block) {
    return (int32_t *)(void *)act_scales(g, act_segments(g->C)) + (size_t)block * 2 * (size_t)g->height;
}

#endif
