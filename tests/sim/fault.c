/* fault.c -- what goes wrong in phase 1, and how all of it ends with phase 2.
 *
 * Frames hurt or doubled on the wire, refusals and device errors are dealt by chance where they happen
 * (transfer.c, coordinator.c, node.c). */
#include "tests/sim/sim.h"

/* In the order of SIM_SEEN. */
typedef enum fault_kind {
    FAULT_KILL,                  /* a process is gone; a new one comes up later */
    FAULT_PAUSE,                 /* a process stops, and goes on later as if nothing had been: a zombie */
    FAULT_STREAM,                /* a stream breaks */
    FAULT_LINK,                  /* a link between nodes breaks, at both ends or at one */
    FAULT_DEAF,                  /* heartbeats are lost */
    FAULT_DRAIN,
    FAULT_READER,                /* a client reads slowly: its sequence is paused */
    FAULT_ROLE,                  /* a node takes the other role, and its own again */
    FAULT_LEAVE,                 /* a process drains and ends, as by SIGTERM; a new one comes up later */
    FAULT_KINDS
} fault_kind;

static void restart(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->a];
    if (!n->alive) sim_node_create(s, n);
}

static void resume(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->a];
    if (!n->alive || !n->paused) return;
    sim_trace(s, "node %d goes on", n->slot);
    n->paused_us = s->now_us + 1000;
    sim_node_resume(s, n);
}

static void undrain(sim *s, sim_event *e) { s->nodes[e->a].draining = false; }

static void take_role(sim *s, sim_node *n, bool prefill) {
    sim_trace(s, "node %d is to %s", n->slot, prefill ? "prefill" : "decode");
    n->prefill = prefill;
    for (int i = 0; s->bug == BUG_ROLE_DROPS && i < s->streams_count; i++) {
        sim_stream *st = s->streams[i];
        if (st->node != n->slot || st->life != n->life) continue;
        st->broken = true;
        node_core_cancel(n->core, st->handle);
    }
}

static void own_role(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->node];
    take_role(s, n, n->starts_prefill);
}

static void read_on(sim *s, sim_event *e) {
    node_core_pause(s->nodes[e->node].core, (uint64_t)e->a, false);
    sim_node_awake(s, &s->nodes[e->node]);
}

static void kill_node(sim *s, sim_node *n) {
    sim_trace(s, "node %d is killed", n->slot);
    sim_coordinator_gone(s, n);
    sim_node_destroy(s, n);
    sim_at(s, s->now_us + sim_range(s, 1000, 200000), restart)->a = n->slot;
}

/* With nothing left to do it ends; else it is looked at again, and ends anyhow when its time is over. */
static void leave(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->node];
    bool drained = n->core->count == 0;
    if (s->healed) return; /* it is told to stay */
    if (drained || s->now_us >= e->a) {
        s->seen[SEEN_LEFT] += drained;
        kill_node(s, n);
    } else {
        sim_at_node(s, s->now_us + 2000, n->slot, n->life, leave)->a = e->a;
    }
}

static void stop_node(sim *s, sim_node *n) {
    sim_trace(s, "node %d stops", n->slot);
    n->paused = true;
    sim_at(s, s->now_us + sim_range(s, 500, 300000), resume)->a = n->slot;
}

static sim_stream *any_stream(sim *s) {
    if (s->streams_count == 0) return NULL;
    int last = s->streams_count < 8 ? s->streams_count : 8;
    return s->streams[s->streams_count - sim_range(s, 1, last)];
}

static bool strike(sim *s, fault_kind kind, sim_node *n) {
    sim_stream *st = any_stream(s);
    switch (kind) {
    case FAULT_KILL:
        if (n->alive) kill_node(s, n);
        return true;
    case FAULT_PAUSE:
        if (n->alive && !n->paused) stop_node(s, n);
        return true;
    case FAULT_STREAM:
        if (st) sim_coordinator_break(s, st);
        return st != NULL;
    case FAULT_LINK:
        if (s->links_count == 0) return false;
        sim_transfer_break(s, (int)sim_range(s, 0, s->links_count - 1), sim_chance(s, 0.8), sim_chance(s, 0.8));
        return true;
    case FAULT_DEAF: n->deaf_us = s->now_us + sim_range(s, 50000, 200000); return true;
    case FAULT_DRAIN:
        n->draining = true;
        sim_at(s, s->now_us + sim_range(s, 10000, 200000), undrain)->a = n->slot;
        return true;
    case FAULT_ROLE:
        if (s->mixed || !n->alive) return false; /* of other numerics the coordinator would not take it */
        take_role(s, n, !n->prefill);
        sim_at_node(s, s->now_us + sim_range(s, 10000, 300000), n->slot, n->life, own_role);
        return true;
    case FAULT_LEAVE:
        if (!n->alive) return false;
        n->draining = true;
        sim_at_node(s, s->now_us + SIM_HEARTBEAT_US, n->slot, n->life, leave)->a = s->now_us + 300000;
        return true;
    case FAULT_READER:
        if (!st || !s->nodes[st->node].alive || s->nodes[st->node].life != st->life) return false;
        node_core_pause(s->nodes[st->node].core, st->handle, true);
        sim_at_node(s, s->now_us + sim_range(s, 1000, 100000), st->node, st->life, read_on)->a = (int64_t)st->handle;
        return true;
    default: return false;
    }
}

static void fault(sim *s, sim_event *e) {
    if (strike(s, (fault_kind)e->a, &s->nodes[sim_range(s, 0, s->nodes_count - 1)])) s->seen[e->a]++;
}

static void heal(sim *s, sim_event *e) {
    (void)e;
    s->healed = true;
    sim_trace(s, "the cluster heals");
    for (int i = 0; i < s->nodes_count; i++) {
        sim_node *n = &s->nodes[i];
        sim_event at = {.a = i};
        resume(s, &at);
        restart(s, &at);
        n->draining = false;
        n->prefill = n->starts_prefill;
        n->deaf_us = 0;
    }
}

void sim_fault_create(sim *s) {
    int count = (int)sim_range(s, 0, sim_chance(s, 0.1) ? 40 : 12);
    for (int i = 0; i < count; i++)
        sim_at(s, sim_range(s, 1000, s->heal_us - 1), fault)->a = sim_range(s, 0, FAULT_KINDS - 1);
    sim_at(s, s->heal_us, heal);
}
