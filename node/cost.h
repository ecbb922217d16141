/* cost.h -- what rows and swapped pages cost on this node, from what steps took. Pure: values in, values out; the
 * same steps give the same figures.
 *
 *   step = decode entries (by how many rows, in powers of two) + tiles of prompt rows (each by its position, in powers
 *          of two: attention grows with what is before it)
 *
 * Chunks are whole tiles (batch.h; Agrawal et al., "Sarathi-Serve", call it tile quantisation), at least one: less would
 * hardly be faster, and the prompt would take so much longer. So a target that a tile does not fit in is passed by that.
 *
 * Every figure is a moving average of its own; one that was never measured is taken from its nearest neighbour. It
 * corrects itself at the place where it is used: the chunk chosen by it is the next one measured. */
#ifndef BATON_NODE_COST_H
#define BATON_NODE_COST_H

#include "node/batch.h"

enum { NODE_COST_BATCHES = 12, NODE_COST_POSITIONS = 16 };

/* Starts zeroed; 0 in a figure: not measured. */
typedef struct node_cost {
    double decode_us[NODE_COST_BATCHES];     /* a step of [2^i, 2^(i+1)) decode rows */
    double tile_us[NODE_COST_POSITIONS];     /* a prompt's tile at a position of [32 * 2^i, 32 * 2^(i+1)), [0] from 0 on */
    double swap_us;                          /* a token's KV to host memory, or back */
} node_cost;

/* Takes a tenth of the sample in: a step that was disturbed moves the figure little, ten steps move it most of the way.
 * 0: it was not measured. */
void node_cost_average(double *figure, double sample);

/* One step took so long. position: mean of the prompt rows'. */
void node_cost_step(node_cost *c, int32_t decode_rows, int32_t prompt_rows, int32_t position, int64_t took_us);
void node_cost_swap(node_cost *c, int32_t tokens, int64_t took_us);

double node_cost_decode_us(const node_cost *c, int32_t rows);                          /* 0: not known */
double node_cost_prompt_us(const node_cost *c, int32_t position, int32_t rows);        /* rows from position on */

/* How many prompt rows, whole tiles and at least one, a step may have beside so many decode rows to end within
 * target_us. target_us 0: within 1.4 times what those decode rows take alone. */
int32_t node_cost_prompt_rows(const node_cost *c, int64_t target_us, int32_t decode_rows, int32_t position);
/* Whether so many tokens' KV is sooner swapped out and in again than computed again. What was not measured yet is
 * tried. */
bool node_cost_swap_pays(const node_cost *c, int32_t tokens);

#endif
