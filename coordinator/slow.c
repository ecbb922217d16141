/* slow.c -- pages that move slowly are left for another link.
 *
 * The client has the first token, from the prefill node, and waits for the next one, which waits for the pages. A link that has
 * become slow, or that carries nothing from this node to that one, would let it wait as long as the decode node's lease. So
 * there is a limit, by what the link was known for when the decode node was chosen: who finds it slow meanwhile shall not make
 * those that are on it already wait longer. When it has passed the attempt is ended, which is no failure; that it would have
 * taken as long again is learned of the link at once (route.c). Nobody knows which end of it is slow, so the next attempt has
 * neither end in it where others can be asked (ask.c); where not, the decode node reads the prompt again if that takes at most
 * twice as long as was waited. Else the same request has twice the time, so a cluster with nothing but slow links gets there. */
#include "coordinator/core_internal.h"
#include <inttypes.h>

static int64_t limit_ms(const coord_core *c, const coord_request *r) {
    enum { LEAST_MS = 2000, TIMES = 2, DOUBLED_MAX = 8 };
    double ms = coord_link_ms(&c->links, r->seat[SIDE_PREFILL].node, r->seat[SIDE_DECODE].node, r->tries, c->now_ms);
    if (r->link_ms < ms) ms = r->link_ms;
    return (int64_t)(LEAST_MS + TIMES * ms * r->moving) << (r->slow_moves < DOUBLED_MAX ? r->slow_moves : DOUBLED_MAX);
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
    coord_link_gave_up(&c->links, prefill, decode, 2 * (double)took_ms / r->moving, c->now_ms);
    log_write(LOG_WARN, r->id, "request.moves.slowly", "attempt=%u prefill=%d decode=%d tokens=%d ms=%" PRId64, r->attempt, prefill,
              decode, r->moving, took_ms);
    r->slow_moves++;
    r->slow_from = prefill;
    r->slow_to = decode;
    r->reader = r->holder = -1;
    coord_request_again(c, r, COORD_AGAIN_SLOW);
}
