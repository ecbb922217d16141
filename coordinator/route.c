/* route.c -- which node gets a request. Pure: values in, a node's number out.
 *
 * Decode: the least loaded by requests placed over capacity. The node that likely caches the prompt
 * wins while under three quarters of its capacity. A node that just failed is avoided while others
 * are there; when it is the only one left it is asked again. A node that said it is full is left
 * alone until something changes there.
 *
 * Prefill: the fewest prompt tokens outstanding. Nodes that failed or are full are never asked: the
 * decode node can always compute the prompt itself.
 *
 * Ties rotate with `turn`, so that equal nodes fill evenly and equal inputs give equal choices. */
#include "coordinator/core_internal.h"

static bool serves(const coord_entry *n, coord_role role) {
    return n->alive && !n->state.draining && n->state.role == role;
}

static bool has_room(const coord_entry *n, int64_t now_ms) {
    return n->busy_ms <= now_ms && n->placed < n->state.capacity;
}

coord_outlook coord_route_outlook(const coord_entry *nodes, int count, int64_t now_ms) {
    coord_outlook outlook = OUTLOOK_NONE;
    for (int i = 0; i < count && outlook != OUTLOOK_GOOD; i++)
        if (serves(&nodes[i], COORD_DECODE))
            outlook = nodes[i].avoid_ms <= now_ms ? OUTLOOK_GOOD : OUTLOOK_AVOIDED;
    return outlook;
}

int coord_route_decode(const coord_entry *nodes, int count, int prefer_node, unsigned turn,
                       int64_t now_ms) {
    bool avoided_too = coord_route_outlook(nodes, count, now_ms) == OUTLOOK_AVOIDED;
    int best = -1;
    for (int k = 0; k < count; k++) {
        int i = (int)((turn + (unsigned)k) % (unsigned)count);
        const coord_entry *n = &nodes[i];
        if (!serves(n, COORD_DECODE) || !has_room(n, now_ms)) continue;
        if (n->avoid_ms > now_ms && !avoided_too) continue;
        if (i == prefer_node && (int64_t)n->placed * 4 < (int64_t)n->state.capacity * 3) return i;
        /* placed / capacity, compared without dividing */
        if (best < 0 || (int64_t)n->placed * nodes[best].state.capacity <
                            (int64_t)nodes[best].placed * n->state.capacity)
            best = i;
    }
    return best;
}

int coord_route_prefill(const coord_entry *nodes, int count, unsigned turn, int64_t now_ms) {
    int best = -1;
    for (int k = 0; k < count; k++) {
        int i = (int)((turn + (unsigned)k) % (unsigned)count);
        const coord_entry *n = &nodes[i];
        if (!serves(n, COORD_PREFILL) || n->avoid_ms > now_ms || n->busy_ms > now_ms) continue;
        if (best < 0 || n->prefilling < nodes[best].prefilling) best = i;
    }
    return best;
}

bool coord_route_apart(const coord_limits *limits, const coord_entry *nodes, int count, int decode_node) {
    if (limits->prefill == COORD_PREFILL_LOCAL) return false;
    for (int i = 0; i < count; i++)
        if (nodes[i].known && nodes[i].state.role == COORD_PREFILL &&
            nodes[i].state.numerics != nodes[decode_node].state.numerics)
            return true;
    return false;
}

int32_t coord_route_local_tokens(const coord_limits *limits, int prefill_node) {
    if (prefill_node < 0 || limits->prefill == COORD_PREFILL_LOCAL) return INT32_MAX;
    return limits->prefill == COORD_PREFILL_REMOTE ? 0 : limits->local_tokens_max;
}
