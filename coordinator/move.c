/* move.c -- running answers are moved off a decode node that is to have no work any more: it drains, or takes another role.
 *
 * A move is an attempt that is ended and the next one, placed in the same step; the rest is the life of any request
 * (request.c). What makes it cheap is who sends the pages: the node that ran it still has them in its prefix cache, so it is
 * asked for a Prefill, which it takes though it drains. The client sees a pause as long as that transfer.
 *
 * Rules
 *   1. It moves only while another decode node has room; until then it runs on where it is.
 *   2. It moves when it runs (REQUEST_DECODING): what is still on its way to the node lands there first.
 *   3. It stays where the roles have different numerics (request.c, rule 6), because a decode node must compute none of the
 *      prompt's rows, and as long as its prompt's log probabilities are not all told (rule 7).
 *   4. A move is no failure: it costs no attempt and bans no node. The holder is asked until its pages have landed, or it has
 *      failed once; after that the pages come as after any failure. */
#include "coordinator/core_internal.h"

bool coord_move_leaves(const coord_entry *n) {
    return n->alive && n->first[SIDE_DECODE] && (n->state.draining || n->state.role != COORD_DECODE);
}

/* false: nobody has room for it now. */
static bool move(coord_core *c, coord_request *r, int from) {
    coord_placement p;
    if (!coord_ask_decode(c, r, &p)) return false;
    if (p.differ) return true; /* rule 3 */
    r->holder = from;
    r->holder_epoch = c->nodes[from].state.epoch;
    c->counts.moves++;
    log_write(LOG_INFO, r->id, "request.move", "attempt=%u from=%d to=%d tokens=%d", r->attempt, from, p.node, r->count);
    coord_request_again(c, r, COORD_AGAIN_MOVED);
    coord_request_place(c, r);
    return true;
}

void coord_move_away(coord_core *c) {
    bool left = false;
    for (int i = 0; i < c->nodes_end && c->leaving; i++) {
        if (!coord_move_leaves(&c->nodes[i])) continue;
        for (coord_request *r = c->nodes[i].first[SIDE_DECODE], *next; r; r = next) {
            next = r->seat[SIDE_DECODE].next;
            if (r->state != REQUEST_DECODING || r->apart || coord_request_prompt_here(r)) continue; /* rules 2, 3 */
            if (!move(c, r, i)) return;
        }
        left = left || coord_move_leaves(&c->nodes[i]);
    }
    c->leaving = left;
}
