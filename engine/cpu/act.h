/* act.h -- an activation row: what the products of this back end read.
 *
 * Each block of 32 columns is held as floats and as 12-bit integers X with a scale of their own:
 *
 *     x ~ scale * X,   X = 16 hi + lo,   |X| <= 2032,  -127 <= hi <= 127,  -8 <= lo <= 7
 *
 * Integer weights w of 4 or 8 bits are multiplied as sum(w*hi)*16 + sum(w*lo): 8-bit dot products of any
 * instruction set, exact, so the order in which an instruction adds does not show. Twelve bits, not the
 * eight that others use, because eight lose more than the weights do: the top logits of the test model
 * move by 0.31 on average with eight, by 0.02 with twelve. On AMX the second plane costs nothing.
 *
 *     float x[C] | per block: int8 hi[32], int8 lo[32] | float scale[C/32] | float sum[C/32] = scale * total
 *     | int32 total[C/32] = sum of X | up to a multiple of 64 bytes
 *
 * Buffers hold a multiple of 16 rows: a tile may read past the last one. */
#ifndef BATON_ENGINE_CPU_ACT_H
#define BATON_ENGINE_CPU_ACT_H

#include <stddef.h>
#include <stdint.h>

enum { ACT_BLOCK = 32, ACT_BLOCK_BYTES = 64, ACT_LARGEST = 2032, ACT_ROWS = 16 };

static inline size_t act_bytes(int C) {
    size_t columns = (size_t)C, blocks = columns / ACT_BLOCK;
    return (columns * sizeof(float) + blocks * (ACT_BLOCK_BYTES + 12) + 63) & ~(size_t)63;
}

static inline const int8_t *act_planes(const void *row, int C) {
    return (const int8_t *)row + (size_t)C * sizeof(float);
}

static inline const float *act_scales(const void *row, int C) {
    return (const float *)(const void *)(act_planes(row, C) + C / ACT_BLOCK * ACT_BLOCK_BYTES);
}

static inline const float *act_sums(const void *row, int C) { return act_scales(row, C) + C / ACT_BLOCK; }

static inline const int32_t *act_totals(const void *row, int C) {
    return (const int32_t *)(const void *)(act_sums(row, C) + C / ACT_BLOCK);
}

#endif
