/* act.h -- activations: what the products of this back end read.
 *
 * Each block of 32 columns of a row is held as floats and as 12-bit integers X with a scale of their own:
 *
 *     x ~ scale * X,   X = 16 hi + lo,   |X| <= 2032,  -127 <= hi <= 127,  -8 <= lo <= 7
 *
 * Integer weights w of 4 or 8 bits are multiplied as sum(w*hi)*16 + sum(w*lo): 8-bit dot products of any
 * instruction set, exact, so the order in which an instruction adds does not show. Twelve bits, not the
 * eight that others use, because eight lose more than the weights do: the top logits of the test model
 * move by 0.31 on average with eight, by 0.02 with twelve. On AMX the second plane costs nothing.
 *
 * The floats of all rows come first. The integers follow by groups of `height` rows, the 16 of an AMX tile,
 * or T when there are fewer, in the order in which a product walks along the columns:
 *
 *     float x[T][C] | per group: per block: per row: int8 hi[32], lo[32]
 *                   |            float scale[block][row], float sum[block][row] = scale * total,
 *                   |            int32 total[block][row] = the sum of X
 *
 * The last group is as high as the others: its unused rows are read, never used. */
#ifndef BATON_ENGINE_CPU_ACT_H
#define BATON_ENGINE_CPU_ACT_H

#include <stddef.h>
#include <stdint.h>

enum { ACT_BLOCK = 32, ACT_BLOCK_BYTES = 64, ACT_LARGEST = 2032, ACT_ROWS = 16 };

/* Bytes a row needs, if the buffer has a multiple of 16 rows. */
static inline size_t act_bytes(int C) {
    size_t columns = (size_t)C, blocks = columns / ACT_BLOCK;
    return (columns * sizeof(float) + blocks * (ACT_BLOCK_BYTES + 12) + 63) & ~(size_t)63;
}

typedef struct act_group {
    int height, blocks;
    int8_t *planes;
} act_group;

static inline size_t act_group_bytes(int height, int C) {
    return ((size_t)(C / ACT_BLOCK) * (size_t)height * (ACT_BLOCK_BYTES + 12) + 63) & ~(size_t)63;
}

/* The group of row t of T; buffer is 64-aligned. */
static inline act_group act_group_of(const void *buffer, int T, int C, int t) {
    int height = T < ACT_ROWS ? T : ACT_ROWS;
    size_t floats = ((size_t)T * (size_t)C * sizeof(float) + 63) & ~(size_t)63;
    return (act_group){height, C / ACT_BLOCK, (int8_t *)(uintptr_t)buffer + floats +
                       (size_t)(t / ACT_ROWS) * act_group_bytes(height, C)};
}

/* hi[32], then lo[32]. */
static inline int8_t *act_planes(const act_group *g, int row, int block) {
    return g->planes + ((size_t)block * (size_t)g->height + (size_t)row) * ACT_BLOCK_BYTES;
}

static inline float *act_scales(const act_group *g, int block) {
    return (float *)(void *)act_planes(g, 0, g->blocks) + (size_t)block * (size_t)g->height;
}

static inline float *act_sums(const act_group *g, int block) { return act_scales(g, g->blocks + block); }

static inline int32_t *act_totals(const act_group *g, int block) {
    return (int32_t *)(void *)act_scales(g, 2 * g->blocks + block);
}

#endif
