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
        n->deaf_us = 0;
    }
}

void sim_fault_create(sim *s) {
    int count = (int)sim_range(s, 0, sim_chance(s, 0.1) ? 40 : 12);
    for (int i = 0; i < count; i++)
        sim_at(s, sim_range(s, 1000, s->heal_us - 1), fault)->a = sim_range(s, 0, FAULT_KINDS - 1);
    sim_at(s, s->heal_us, heal);
}
