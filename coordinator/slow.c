/* slow.c -- pages that move slowly are left for another link.
 *
 * The client has the first token, from the prefill node, and waits for the next one, which waits for the pages. A link that has
 * become slow, or that carries nothing from this node to that one, would let it wait as long as the decode node's lease. So
 * there is a limit, by what the best other link would take: not by what this one is known for, because then the first
 * requests to find it slow would make those that are on it already wait longer. When it has passed the attempt is ended, which
 * is no failure; what was seen of the link is learned at once (route.c). Nobody knows which end of it is slow, so the next
 * attempt has neither end in it where others can be asked (ask.c); where not, the decode node reads the prompt again if that
 * takes at most twice as long as was waited. Else the same request has twice the time, so a cluster with nothing but slow links
 * gets there. */
#include "coordinator/core_internal.h"
#include <inttypes.h>

/* A token, by the best link there is from this prefill node or to this decode node. */
static double best_ms(const coord_core *c, int prefill, int decode, bool tries) {
    double best = coord_link_ms(&c->links, prefill, decode, tries, c->now_ms);
    for (int i = 0; i < c->nodes_end; i++) {
        coord_role role = c->nodes[i].state.role;
        if (!coord_route_serves(&c->nodes[i], role)) continue;
        double ms = role == COORD_PREFILL ? coord_link_ms(&c->links, i, decode, false, c->now_ms)
                                          : coord_link_ms(&c->links, prefill, i, false, c->now_ms);
        if (ms < best) best = ms;
    }
    return best;
}

static int64_t limit_ms(const coord_core *c, const coord_request *r) {
    enum { LEAST_MS = 2000, TIMES = 2, DOUBLED_MAX = 8 };
    double ms = r->moving * best_ms(c, r->seat[SIDE_PREFILL].node, r->seat[SIDE_DECODE].node, r->tries);
    return (int64_t)(LEAST_MS + TIMES * ms) << (r->slow_moves < DOUBLED_MAX ? r->slow_moves : DOUBLED_MAX);
}

void coord_slow_begin(coord_core *c, coord_request *r) {
    r->moving_ms = c->now_ms;
    coord_core_watch(c, r, c->now_ms + limit_ms(c, r));
}

void coord_slow_due(coord_core *c, coord_request *r) {
    int prefill = r->seat[SIDE_PREFILL].node, decode = r->seat[SIDE_DECODE].node;
    int64_t took_ms = c->now_ms - r->moving_ms;
    if (r->state != REQUEST_MOVING || prefill < 0) { /* they came in time */
        coord_core_watch(c, r, INT64_MAX);
        return;
    }
    coord_link_gave_up(&c->links, prefill, decode, (double)took_ms / r->moving, c->now_ms);
    log_write(LOG_WARN, r->id, "request.moves.slowly", "attempt=%u prefill=%d decode=%d tokens=%d ms=%" PRId64, r->attempt, prefill,
              decode, r->moving, took_ms);
    r->slow_moves++;
    r->slow_from = prefill;
    r->slow_to = decode;
    r->reader = r->holder = -1;
    coord_request_again(c, r, COORD_AGAIN_SLOW);
}
