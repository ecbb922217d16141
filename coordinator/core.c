/* core.c -- one step of the coordinator: an event in, actions out, and the tables behind it.
 *
 * A step is: free what the last step forgot, let the event change its request or node, then place
 * waiting requests in the order of the queue as long as a node has room, and let prompts of the others be read ahead (only
 * when something changed that could make room). Requests are found by number in an open-addressing table; the queue and the
 * timers are binary heaps with the index kept in the request: each event costs O(log n), plus a look
 * at every node for a placement.
 *
 * No step can fail in the middle: every table and the action list are sized at creation, and only
 * coord_request_submit() allocates, for its own request. Most actions of one step: a request gives
 * at most three cancels, one emit and then one of decode, prefill or finish, since only an event can
 * undo what a step began and a step has one event; so five for each of requests_max requests, and
 * one finish for a request refused at the door. */
#include "coordinator/core_internal.h"
#include <assert.h>
#include <string.h>

const coord_limits coord_limits_default = {
    .queue_max = 1024,
    .requests_max = 4096,
    .queue_tokens_max = 4 << 20,
    .tenant_requests_max = 1 << 20,
    .tenant_queue_tokens_max = INT64_MAX,
    .tenant_pages_max = INT64_MAX,
    .route = COORD_ROUTE_COST,
    .local_tokens_max = 32,
    .avoid_ms = 500,
    .apart_ms = 10000,
    .prefill = COORD_PREFILL_AUTO,
};

coord_core *coord_core_create(const coord_limits *limits) {
    assert(limits->requests_max > 0 && limits->requests_max <= 1 << 20 && limits->queue_max >= 0);
    coord_core *c = mem_zalloc(1, sizeof *c);
    if (!c) return NULL;
    c->limits = *limits;
    c->now_ms = INT64_MIN;
    uint32_t slots = 16;
    while (slots < 2u * (uint32_t)limits->requests_max) slots *= 2;
    c->slots_mask = slots - 1;
    c->slots = mem_zalloc(slots, sizeof(coord_request *));
    c->answer_tokens = 64;
    c->cache = coord_cache_create();
    c->actions_max = 5 * limits->requests_max + 1;
    c->actions = mem_zalloc((size_t)c->actions_max, sizeof *c->actions);
    bool whole = c->slots && c->actions && c->cache;
    for (int h = 0; h < HEAPS; h++) {
        c->heap[h].at = mem_zalloc((size_t)limits->requests_max, sizeof(coord_request *));
        whole = whole && c->heap[h].at;
    }
    if (whole) return c;
    coord_core_destroy(c);
    return NULL;
}

static void free_forgotten(coord_core *c) {
    for (coord_request *r = c->forgotten, *next; r; r = next) {
        next = r->forgotten;
        mem_free(r);
    }
    c->forgotten = NULL;
}

void coord_core_destroy(coord_core *c) {
    if (!c) return;
    free_forgotten(c);
    for (uint32_t i = 0; c->slots && i <= c->slots_mask; i++) mem_free(c->slots[i]);
    for (int h = 0; h < HEAPS; h++) mem_free(c->heap[h].at);
    coord_cache_destroy(c->cache);
    mem_free(c->slots);
    mem_free(c->actions);
    mem_free(c);
}

coord_counts coord_core_counts(const coord_core *c) {
    coord_counts counts = c->counts;
    counts.waiting = c->heap[HEAP_QUEUE].count + c->delayed + c->held;
    counts.placed = c->requests - counts.waiting;
    counts.waiting_tokens = c->waiting_tokens;
    return counts;
}

/* ---- heaps ------------------------------------------------------------------------------------ */

static void heap_set(coord_heap *h, coord_heap_kind kind, int32_t i, coord_request *r) {
    h->at[i] = r;
    r->place[kind] = i;
}

static bool before(const coord_request *a, const coord_request *b, coord_heap_kind kind) {
    return a->key[kind] != b->key[kind] ? a->key[kind] < b->key[kind] : a->arrival < b->arrival;
}

/* Moves the request at i to where its key belongs. */
static void heap_settle(coord_heap *h, coord_heap_kind kind, int32_t i) {
    coord_request *r = h->at[i];
    while (i > 0 && before(r, h->at[(i - 1) / 2], kind)) {
        heap_set(h, kind, i, h->at[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    for (int32_t child; (child = 2 * i + 1) < h->count; i = child) {
        if (child + 1 < h->count && before(h->at[child + 1], h->at[child], kind)) child++;
        if (!before(h->at[child], r, kind)) break;
        heap_set(h, kind, i, h->at[child]);
    }
    heap_set(h, kind, i, r);
}

static void heap_join(coord_core *c, coord_heap_kind kind, coord_request *r, int64_t key) {
    coord_heap *h = &c->heap[kind];
    r->key[kind] = key;
    if (r->place[kind] < 0) heap_set(h, kind, h->count++, r);
    heap_settle(h, kind, r->place[kind]);
}

static void heap_leave(coord_core *c, coord_heap_kind kind, coord_request *r) {
    coord_heap *h = &c->heap[kind];
    int32_t i = r->place[kind];
    if (i < 0) return;
    r->place[kind] = -1;
    coord_request *last = h->at[--h->count];
    if (last == r) return;
    heap_set(h, kind, i, last);
    heap_settle(h, kind, i);
}

static void set_timer(coord_core *c, coord_request *r) {
    int64_t key = r->retry_ms < r->deadline_ms ? r->retry_ms : r->deadline_ms;
    if (r->slow_ms < key) key = r->slow_ms;
    if (key == INT64_MAX)
        heap_leave(c, HEAP_TIMER, r);
    else
        heap_join(c, HEAP_TIMER, r, key);
}

void coord_core_watch(coord_core *c, coord_request *r, int64_t slow_ms) {
    r->slow_ms = slow_ms;
    set_timer(c, r);
}

/* Puts r where its tag says, at once or from retry_ms on (0: at once). */
void coord_core_enqueue(coord_core *c, coord_request *r, int64_t retry_ms) {
    assert(r->retry_ms == INT64_MAX && r->slow_ms == INT64_MAX && r->place[HEAP_QUEUE] < 0);
    coord_tenant_wait(c, r, +1);
    if (retry_ms > c->now_ms) {
        r->retry_ms = retry_ms;
        c->delayed++;
    } else {
        heap_join(c, HEAP_QUEUE, r, r->key[HEAP_QUEUE]);
        r->queued_ms = c->now_ms;
        coord_core_read_ahead(c, r, r->seat[SIDE_HOLD].node < 0);
        c->changed = true;
    }
    set_timer(c, r);
}

void coord_core_dequeue(coord_core *c, coord_request *r) {
    if (r->retry_ms != INT64_MAX || r->place[HEAP_QUEUE] >= 0 || r->held) coord_tenant_wait(c, r, -1);
    heap_leave(c, HEAP_QUEUE, r);
    heap_leave(c, HEAP_UNREAD, r);
    coord_tenant_unhold(c, r);
    if (r->retry_ms == INT64_MAX) return;
    r->retry_ms = INT64_MAX;
    c->delayed--;
    set_timer(c, r);
}

void coord_core_read_ahead(coord_core *c, coord_request *r, bool wanted) {
    bool may = r->place[HEAP_QUEUE] >= 0 && c->limits.prefill != COORD_PREFILL_LOCAL && !coord_request_prompt_here(r);
    if (wanted && may) heap_join(c, HEAP_UNREAD, r, r->key[HEAP_QUEUE]);
    else heap_leave(c, HEAP_UNREAD, r);
}

/* ---- requests by number ------------------------------------------------------------------------ */

static uint32_t slot_of(const coord_core *c, uint64_t number) {
    return (uint32_t)((number * 0x9E3779B97F4A7C15ull) >> 32) & c->slots_mask;
}

static coord_request *find(const coord_core *c, uint64_t number) {
    for (uint32_t i = slot_of(c, number); c->slots[i]; i = (i + 1) & c->slots_mask)
        if (c->slots[i]->number == number) return c->slots[i];
    return NULL;
}

/* false: requests_max are alive. */
bool coord_core_insert(coord_core *c, coord_request *r) {
    if (c->requests == c->limits.requests_max) return false;
    uint32_t i = slot_of(c, r->number);
    for (; c->slots[i]; i = (i + 1) & c->slots_mask)
        assert(c->slots[i]->number != r->number && "two live requests with one number");
    c->slots[i] = r;
    c->requests++;
    r->arrival = c->arrivals++;
    return true;
}

/* Takes r out of every table; its memory stays until the next step. */
void coord_core_forget(coord_core *c, coord_request *r) {
    assert(r->seat[SIDE_DECODE].node < 0 && r->seat[SIDE_PREFILL].node < 0 && r->seat[SIDE_HOLD].node < 0);
    coord_core_dequeue(c, r);
    heap_leave(c, HEAP_TIMER, r);
    uint32_t hole = slot_of(c, r->number);
    while (c->slots[hole] != r) hole = (hole + 1) & c->slots_mask;
    /* Backward shift: whoever sits after the hole and belongs at or before it moves into it. */
    for (uint32_t i = (hole + 1) & c->slots_mask; c->slots[i]; i = (i + 1) & c->slots_mask) {
        uint32_t home = slot_of(c, c->slots[i]->number);
        if (((i - home) & c->slots_mask) < ((i - hole) & c->slots_mask)) continue;
        c->slots[hole] = c->slots[i];
        hole = i;
    }
    c->slots[hole] = NULL;
    c->requests--;
    coord_tenant_leave(c, r->tenant);
    r->forgotten = c->forgotten;
    c->forgotten = r;
    c->finish_ms[c->finishes % COORD_FINISHES] = c->now_ms;
    c->finish_tokens[c->finishes++ % COORD_FINISHES] = r->prompt_count;
}

/* ---- nodes -------------------------------------------------------------------------------------- */

void coord_core_sit(coord_core *c, coord_request *r, coord_side side, int node) {
    coord_entry *n = &c->nodes[node];
    coord_seat *seat = &r->seat[side];
    assert(seat->node < 0);
    *seat = (coord_seat){.next = n->first[side], .node = node};
    if (seat->next) seat->next->seat[side].prev = r;
    n->first[side] = r;
    if (side == SIDE_DECODE) {
        n->placed++, coord_tenant_take(c, r, node);
        return;
    }
    n->prefilling += side == SIDE_HOLD ? r->hold_tokens : r->prefilling;
    if (n->state.role == COORD_PREFILL) r->reader = node, r->reader_epoch = n->state.epoch;
    if (side == SIDE_HOLD) n->holds++, n->held_pages += r->hold_pages;
}

void coord_core_leave(coord_core *c, coord_request *r, coord_side side) {
    coord_seat *seat = &r->seat[side];
    coord_entry *n = &c->nodes[seat->node];
    if (seat->prev)
        seat->prev->seat[side].next = seat->next;
    else
        n->first[side] = seat->next;
    if (seat->next) seat->next->seat[side].prev = seat->prev;
    *seat = (coord_seat){.node = -1};
    if (side == SIDE_DECODE)
        n->placed--, n->computing -= r->computing, r->computing = 0, coord_tenant_give(c, r);
    else
        n->prefilling -= side == SIDE_HOLD ? r->hold_tokens : r->prefilling, r->read_ms = c->now_ms;
    if (side == SIDE_HOLD) n->holds--, n->held_pages -= r->hold_pages, r->hold_tokens = 0;
    n->busy_ms = INT64_MIN; /* one of its requests ended: it may have room */
    c->changed = true;
}

static void lose_node(coord_core *c, coord_entry *n) {
    if (!n->alive) return;
    n->alive = false;
    coord_lapse_lost(c, n);
    for (int side = 0; side < SIDES; side++)
        while (n->first[side])
            coord_request_side_failed(c, n->first[side], side, ST_PEER_LOST, "the node was lost");
}

/* Figures come with every state, new or not. */
static void measure_steps(coord_entry *n, const coord_node *state) {
    double heard = state->decode_steps_per_s, known = n->light_steps_per_s;
    if (heard == n->state.decode_steps_per_s && known > 0) return;
    if (known == 0 || heard > known) n->light_steps_per_s = heard;
    else if (n->placed * 4 <= state->capacity) n->light_steps_per_s += 0.1 * (heard - known);
}

static void hear_node(coord_core *c, int node, const coord_node *state) {
    coord_entry *n = &c->nodes[node];
    if (n->alive && state->epoch < n->state.epoch) return; /* a process that is gone */
    if (n->known && state->epoch != n->state.epoch) { /* a lower one, too: clocks go back */
        lose_node(c, n);
        n->avoid_ms = n->hold_ms = INT64_MIN;
        n->light_steps_per_s = 0;
    }
    if (n->known && !n->alive) coord_lapse_heard(c, n);
    measure_steps(n, state);
    n->state = *state;
    n->known = n->alive = true;
    c->leaving = c->leaving || coord_move_leaves(n);
    while (n->first[SIDE_HOLD] && (state->draining || state->role != COORD_PREFILL)) /* it is to do something else */
        coord_request_side_failed(c, n->first[SIDE_HOLD], SIDE_HOLD, ST_AGAIN, NULL);
    n->busy_ms = INT64_MIN;
    c->changed = true;
    if (node >= c->nodes_end) c->nodes_end = node + 1;
}

/* ---- step --------------------------------------------------------------------------------------- */

coord_action *coord_core_act(coord_core *c, coord_action_kind kind, const coord_request *r, int node) {
    assert(c->actions_count < c->actions_max);
    coord_action *a = &c->actions[c->actions_count++];
    *a = (coord_action){.kind = kind, .request = r ? r->number : 0, .attempt = r ? r->attempt : 0,
                        .node = node};
    return a;
}

coord_action *coord_core_prefill(coord_core *c, const coord_request *r, int node, int32_t count) {
    coord_action *a = coord_core_act(c, COORD_DO_PREFILL, r, node);
    a->prefill.tokens = r->tokens;
    a->prefill.count = count;
    a->prefill.prompt_count = r->prompt_count;
    a->prefill.salt = r->salt;
    a->prefill.costs = r->costs;
    a->prefill.costs_count = r->costs_count;
    return a;
}

static void tick(coord_core *c) {
    c->changed = true; /* nodes may be free of a ban */
    coord_heap *timers = &c->heap[HEAP_TIMER];
    while (timers->count > 0 && timers->at[0]->key[HEAP_TIMER] <= c->now_ms)
        coord_request_due(c, timers->at[0]);
}

static void place_waiting(coord_core *c) {
    coord_heap *queue = &c->heap[HEAP_QUEUE], *unread = &c->heap[HEAP_UNREAD];
    coord_move_away(c);
    while (queue->count > 0 && coord_request_place(c, queue->at[0])) c->turn++;
    while (unread->count > 0 && coord_hold_start(c, unread->at[0])) {
    }
    c->changed = false;
}

void coord_core_step(coord_core *c, const coord_event *e, int64_t now_ms, coord_actions *out) {
    assert(now_ms >= c->now_ms);
    c->now_ms = now_ms;
    c->actions_count = 0;
    free_forgotten(c);
    coord_request *r = NULL;
    switch (e->kind) {
    case COORD_SUBMIT: coord_request_submit(c, e); break;
    case COORD_NODE_STATE:
        assert(e->node >= 0 && e->node < COORD_NODES_MAX);
        hear_node(c, e->node, &e->node_state);
        break;
    case COORD_NODE_LOST:
        assert(e->node >= 0 && e->node < COORD_NODES_MAX);
        lose_node(c, &c->nodes[e->node]);
        break;
    case COORD_NODE_FORGOTTEN:
        assert(e->node >= 0 && e->node < COORD_NODES_MAX);
        lose_node(c, &c->nodes[e->node]);
        c->nodes[e->node] = (coord_entry){.known = false};
        coord_link_forget(&c->links, e->node);
        coord_cache_forget(c->cache, e->node);
        break;
    case COORD_NODE_CACHE:
        assert(e->node >= 0 && e->node < COORD_NODES_MAX);
        if (e->cache.whole) coord_cache_forget(c->cache, e->node);
        coord_cache_change(c->cache, e->node, e->cache.at, e->cache.numbers, e->cache.count);
        break;
    case COORD_TICK: tick(c); break;
    default:
        if ((r = find(c, e->request))) coord_request_event(c, r, e); /* else: forgotten already */
    }
    if (c->changed) place_waiting(c);
    *out = (coord_actions){.at = c->actions, .count = c->actions_count};
}

int64_t coord_core_next_tick_ms(const coord_core *c) {
    int64_t next = c->heap[HEAP_TIMER].count ? c->heap[HEAP_TIMER].at[0]->key[HEAP_TIMER] : INT64_MAX;
    if (c->heap[HEAP_QUEUE].count == 0) return next;
    for (int i = 0; i < c->nodes_end; i++) {
        const coord_entry *n = &c->nodes[i];
        if (!n->alive) continue;
        if (n->busy_ms > c->now_ms && n->busy_ms < next) next = n->busy_ms;
        if (n->avoid_ms > c->now_ms && n->avoid_ms < next) next = n->avoid_ms;
        if (n->held_out_ms > c->now_ms && n->held_out_ms < next) next = n->held_out_ms;
        if (n->hold_ms > c->now_ms && n->hold_ms < next && c->heap[HEAP_UNREAD].count) next = n->hold_ms;
    }
    return next;
}
