/* hold.c -- prompts read ahead: while no decode node has room, prefill nodes with nothing else to do read the prompts of
 * the requests that wait, in the order of the queue, and hold their pages. What is left for later is the transfer.
 *
 *   (waiting) --[coord_hold_start]--> being read --[coord_hold_read]--> held --[coord_hold_release]--> (its pages are cached)
 *                                         |                              |
 *                                         +------ [coord_hold_lost] -----+--> (waiting, unread)
 *
 * Rules
 *   1. A hold is a Prefill stream that sends nothing, beside the request's life (request.c): it says the answer's first
 *      token, which is the client's at once, and then stays open. It has an attempt number of its own. A later token it does
 *      not say, because it can not know whether the answer is complete; nor any where roles differ (request.c, rule 6).
 *   2. It ends with the stream: when a decode node has reserved pages, and a Prefill to it finds what was read in the
 *      prefix cache; and when the request is canceled, too late, or answered.
 *   3. A prefill node reads one prompt ahead at a time, when it has none of ours to send, and holds at most half of its
 *      pages, in half of its sequences. It may refuse more (others may ask it, too): then it is not asked for HOLD_MS.
 *   4. A hold that ends by itself, with its node or not, costs no attempt: the prompt is read again, here or there.
 *   5. A prompt that a decode node would read itself is not read ahead, nor one that is longer than what may be held. */
#include "coordinator/core_internal.h"
#include <assert.h>

bool coord_hold_start(coord_core *c, coord_request *r) {
    coord_holding h;
    assert(r->state == REQUEST_QUEUED && r->seat[SIDE_HOLD].node < 0);
    if (!coord_ask_hold(c, r, &h)) return false;
    coord_core_read_ahead(c, r, false);
    if (h.node < 0) return true; /* rule 5 */
    r->hold_attempt = ++r->attempt;
    r->hold_silent = h.apart || r->count > r->prompt_count;
    r->hold_tokens = h.apart ? r->prompt_count : r->count;
    r->hold_pages = coord_ask_pages(&c->nodes[h.node].state, r->hold_tokens);
    coord_core_sit(c, r, SIDE_HOLD, h.node);
    c->counts.chosen[COORD_PREFILL][h.reason]++;
    coord_core_prefill(c, r, h.node, r->hold_tokens)->prefill.hold = true;
    log_write(LOG_INFO, r->id, "request.reading", "attempt=%u prefill=%d tokens=%d ahead", r->hold_attempt, h.node, r->hold_tokens);
    return true;
}

void coord_hold_read(coord_core *c, coord_request *r) {
    c->nodes[r->seat[SIDE_HOLD].node].prefilling -= r->hold_tokens;
    r->hold_tokens = 0;
    c->changed = true; /* it may read the next one */
    log_write(LOG_INFO, r->id, "request.read", "attempt=%u prefill=%d", r->hold_attempt, r->seat[SIDE_HOLD].node);
}

void coord_hold_release(coord_core *c, coord_request *r) {
    int node = r->seat[SIDE_HOLD].node;
    if (node < 0) return;
    coord_core_act(c, COORD_DO_CANCEL_PREFILL, r, node)->attempt = r->hold_attempt;
    coord_core_leave(c, r, SIDE_HOLD);
}

void coord_hold_lost(coord_core *c, coord_request *r, bool full, bool again) {
    enum { HOLD_MS = 200 };
    coord_entry *n = &c->nodes[r->seat[SIDE_HOLD].node];
    coord_core_leave(c, r, SIDE_HOLD);
    if (full) n->hold_ms = c->now_ms + HOLD_MS;
    coord_core_read_ahead(c, r, again);
}
