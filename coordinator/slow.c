/* slow.c -- pages that move slowly are left for another link.
 *
 * The client has the first token, from the prefill node, and waits for the next one, which waits for the pages. A link that has
 * become slow, or that carries nothing from this node to that one, would let it wait as long as the decode node's lease. So
 * there is a limit, by what the link is known for. When it has passed the attempt is ended, which is no failure; what was seen
 * of the link is learned at once (route.c); and who has the pages is not asked first, as it does not get them to where they
 * are needed. The same request has twice the time then, so a cluster with nothing but slow links gets there. */
#include "coordinator/core_internal.h"
#include <inttypes.h>

static int64_t limit_ms(const coord_core *c, const coord_request *r) {
    enum { LEAST_MS = 2000, TIMES = 4, DOUBLED_MAX = 8 };
    double ms = r->moving * coord_link_ms(&c->links, r->seat[SIDE_PREFILL].node, r->seat[SIDE_DECODE].node, r->tries, c->now_ms);
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
    r->reader = r->holder = -1;
    coord_request_again(c, r, COORD_AGAIN_SLOW);
}
