/* lapse.c -- nodes that flap: lost, or failing, again and again. Each time costs what runs there another attempt, so such a
 * node is held out for ever longer, and a while in which nothing happens makes it one like any other.
 *
 *   lapse        1    2              3              4   ...   until HELD_OUT_MAX_MS
 *   held out     -    2 * avoid_ms   4 * avoid_ms   8 * avoid_ms
 *
 * Rules
 *   1. A node lapses when it is lost, and when an attempt fails on it; what happens within avoid_ms of a failure is the same
 *      lapse: a process that dies is seen by its streams first. A drained node does not lapse, it goes.
 *   2. Who was lost is held out from when it is heard again, whatever process that is: one that dies at its start is a node
 *      that flaps, and the next one's epoch is another.
 *   3. Lapses are forgotten by the first one that comes after as long in service as it was held out before, and no sooner
 *      than STEADY_MS.
 *   4. Held out is: others of its role are asked, as long as they are half of it at least [coord_route_candidates]. So a
 *      node that is alone is asked all the same, and a fault that most nodes have does not put all the load on the rest. */
#include "coordinator/core_internal.h"

enum { HELD_OUT_MAX_MS = 60000, STEADY_MS = 10000, LAPSES_MAX = 30 };

static int64_t held_out_ms(const coord_core *c, int32_t lapses) {
    int64_t ms = lapses < 2 ? 0 : (int64_t)c->limits.avoid_ms << (lapses - 1);
    return ms < HELD_OUT_MAX_MS ? ms : HELD_OUT_MAX_MS;
}

static void hold_out(coord_core *c, coord_entry *n) {
    int64_t ms = held_out_ms(c, n->lapses);
    n->held_out_ms = c->now_ms + ms;
    if (ms == 0) return;
    c->counts.held_out++;
    log_write(LOG_WARN, NULL, "node.held_out", "node=%d lapses=%d ms=%lld", (int)(n - c->nodes), n->lapses, (long long)ms);
}

static void lapse(coord_core *c, coord_entry *n) {
    int64_t steady = held_out_ms(c, n->lapses);
    if (steady < STEADY_MS) steady = STEADY_MS;
    if (n->lapses && c->now_ms >= n->held_out_ms + steady) n->lapses = 0;
    if (n->lapses < LAPSES_MAX && !n->state.draining && n->avoid_ms <= c->now_ms) n->lapses++; /* rule 1 */
}

void coord_lapse_lost(coord_core *c, coord_entry *n) { lapse(c, n); }

void coord_lapse_heard(coord_core *c, coord_entry *n) {
    if (n->lapses) hold_out(c, n);
}

void coord_lapse_failed(coord_core *c, coord_entry *n) {
    if (n->avoid_ms <= c->now_ms) {
        lapse(c, n);
        hold_out(c, n);
    }
    n->avoid_ms = c->now_ms + c->limits.avoid_ms;
}
