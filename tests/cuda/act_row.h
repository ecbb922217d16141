/* act_row.h -- a reader of activation rows in host memory, as engine/cuda/act.cuh lays them out. */
#ifndef BATON_TESTS_CUDA_ACT_ROW_H
#define BATON_TESTS_CUDA_ACT_ROW_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline float act_row_float(const void *row, int column) {
    float x;
    memcpy(&x, (const char *)row + (size_t)column * 4, 4);
    return x;
}

/* The planes of a column: 0 hi, 1 lo. */
static inline int act_row_plane(const void *row, int C, int column, int plane) {
    return ((const int8_t *)row)[(size_t)C * 4 + (size_t)(column / 8 * 16 + plane * 8 + column % 8)];
}

static inline int act_row_integer(const void *row, int C, int column) {
    return 128 * act_row_plane(row, C, column, 0) + act_row_plane(row, C, column, 1);
}

/* Of a block of 32 columns: 0 its scale, 1 its total. */
static inline float act_row_unit(const void *row, int C, int block, int which) {
    float x;
    memcpy(&x, (const char *)row + (size_t)C * 6 + (size_t)(block * 8 + which * 4), 4);
    return x;
}

#endif
