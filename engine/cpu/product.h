/* product.h -- y (T,N) = x (T,C) * w (N,C)^T: how a product is cut into tasks, for product.c and amx.c.
 *
 * Every output is one sum over segments of 256 columns in rising order, in sixteen lanes of outputs:
 *
 *     integer weights   acc += ((128 hi + lo) * unit) * scale     hi, lo the segment's exact dot products
 *     float weights     lanes over columns, see lanes.h
 *
 * so it does not depend on how many rows come with it, on the kernel that takes them, or on threads. */
#ifndef BATON_ENGINE_CPU_PRODUCT_H
#define BATON_ENGINE_CPU_PRODUCT_H

#include "engine/cpu/act.h"
#include "engine/cpu/isa.h"
#include "engine/cpu/panel.h"

enum { PRODUCT_ROWS = 512 };     /* that a kernel is given at most */

/* Rows [t, t + T) of activations, t a multiple of 16, times panels of one part: what a kernel is given. */
typedef struct eng_product {
    eng_type type;
    int C, T;
    const float *x;              /* row t, C floats a row */
    act_group x_group;           /* of row t; others follow, group_bytes apart */
    size_t group_bytes;
    const uint8_t *panels;       /* the first panel */
    int outputs;                 /* that are wanted: the last panel may be partly empty */
    float *y;                    /* y[i*N + n]: row t + i, n from the first panel's first output */
    size_t N;
    void *scratch;               /* the thread's */
} eng_product;

/* Of row i, counted from t. */
static inline act_group eng_product_group(const eng_product *p, int i) {
    act_group g = p->x_group;
    g.planes += (size_t)(i / ACT_ROWS) * p->group_bytes;
    return g;
}

typedef void (*eng_panels_times)(const eng_product *p);

/* The product of an op table, integer parts done by kernel. */
#define PRODUCT_FUNCTIONS(isa)                                                                        \
    void product_run_##isa(eng_context *c, float *y, const void *x, const eng_matrix *w, int T,       \
                           eng_panels_times kernel);                                                 \
    void panels_times_##isa(const eng_product *p);                                                   \
    void float_times_##isa(const eng_product *p, const uint8_t *rows, size_t row_bytes);
PRODUCT_FUNCTIONS(base)
PRODUCT_FUNCTIONS(avx2)
PRODUCT_FUNCTIONS(avx512)
PRODUCT_FUNCTIONS(neon)

#endif
