/* cost.c -- see cost.h. */
#include "node/cost.h"

void node_cost_average(double *figure, double sample) { *figure = *figure == 0 ? sample : *figure + 0.1 * (sample - *figure); }

static int log2_of(int32_t n) { return 31 - __builtin_clz((unsigned)n); }

static int bucket(int32_t n, int count) {
    int i = n > 0 ? log2_of(n) : 0;
    return i < count ? i : count - 1;
}

static int batch_of(int32_t rows) { return bucket(rows, NODE_COST_BATCHES); }
static double tiles_of(int32_t rows) { return (rows + NODE_TILE_ROWS - 1) / NODE_TILE_ROWS; }
static int place_of(int32_t position) { return bucket(position / 32, NODE_COST_POSITIONS); }

/* The figure at i or, where that was never measured, the nearest one below, else above. */
static double nearest(const double *figures, int count, int i) {
    for (int at = i; at >= 0; at--)
        if (figures[at] > 0) return figures[at];
    for (int at = i + 1; at < count; at++)
        if (figures[at] > 0) return figures[at];
    return 0;
}

/* ---- what was measured ------------------------------------------------------------------------------ */

void node_cost_step(node_cost *c, int32_t decode_rows, int32_t prompt_rows, int32_t position, int64_t took_us) {
    if (took_us <= 0) return;
    if (prompt_rows == 0) {
        node_cost_average(&c->decode_us[batch_of(decode_rows)], (double)took_us);
        return;
    }
    /* What any step takes must be known first: a prompt alone says little of what it adds to others. */
    double beside_us = node_cost_decode_us(c, decode_rows ? decode_rows : 1);
    if (beside_us == 0) return;
    double us = ((double)took_us - beside_us) / tiles_of(prompt_rows);
    /* Never for nothing: a step that took less than decoding alone was expected to says that rows are cheap. */
    double least_us = (double)took_us / (decode_rows + prompt_rows);
    node_cost_average(&c->tile_us[place_of(position)], us > least_us ? us : least_us);
}

void node_cost_swap(node_cost *c, int32_t tokens, int64_t took_us) {
    if (tokens > 0 && took_us > 0) node_cost_average(&c->swap_us, (double)took_us / tokens);
}

/* ---- what is to be expected ------------------------------------------------------------------------- */

double node_cost_decode_us(const node_cost *c, int32_t rows) { return nearest(c->decode_us, NODE_COST_BATCHES, batch_of(rows)); }

double node_cost_prompt_us(const node_cost *c, int32_t position, int32_t rows) {
    return tiles_of(rows) * nearest(c->tile_us, NODE_COST_POSITIONS, place_of(position + rows / 2));
}

int32_t node_cost_prompt_rows(const node_cost *c, int64_t target_us, int32_t decode_rows, int32_t position) {
    const double SLOWER = 1.4;
    double decode_us = node_cost_decode_us(c, decode_rows);
    double left_us = (target_us ? (double)target_us : SLOWER * decode_us) - decode_us;
    if (node_cost_prompt_us(c, position, 1) == 0 || (decode_us == 0 && target_us == 0)) return NODE_TILE_ROWS;
    int32_t least = 1, most = 1 << 16;                     /* tiles */
    while (least < most) {
        int32_t tiles = (least + most + 1) / 2;
        if (node_cost_prompt_us(c, position, tiles * NODE_TILE_ROWS) <= left_us) least = tiles;
        else most = tiles - 1;
    }
    return least * NODE_TILE_ROWS;
}

bool node_cost_swap_pays(const node_cost *c, int32_t tokens) {
    double again_us = node_cost_prompt_us(c, 0, tokens);
    return c->swap_us == 0 || again_us == 0 || 2 * c->swap_us * tokens < again_us;
}
