/* coordinator.c -- the shipped coordinator core and its glue: streams, heartbeats, the clock.
 *
 * A stream keeps its order in each direction; different streams overtake one another. What a canceled
 * stream still says is delivered: the core must drop it. */
#include "tests/sim/sim.h"
#include <string.h>

/* ---- from a node to the coordinator ---------------------------------------------------------------- */

typedef struct message {
    coord_event e;
    uint64_t handle;
    int32_t token;
    char text[80], address[24];
} message;

static void hear_message(sim *s, sim_event *at) {
    message *m = at->data;
    const sim_stream *st = s->streams[m->handle - 1];
    if (m->e.kind == COORD_TOKENS || m->e.kind == COORD_FIRST_TOKEN) m->e.tokens.tokens = &m->token;
    if (m->e.kind == COORD_RESERVED) m->e.reserved.kv_address = m->address;
    if (m->e.kind == COORD_DECODE_END || m->e.kind == COORD_PREFILL_END) m->e.end.text = m->text;
    if (s->bug == BUG_ATTEMPT_MIXED)
        for (int i = 0; i < s->streams_count; i++)
            if (s->streams[i]->request == st->request) m->e.attempt = s->streams[i]->attempt;
    if (s->bug == BUG_END_LOST && m->e.kind == COORD_DECODE_END && sim_chance(s, 0.1)) return;
    sim_coordinator_step(s, &m->e);
}

static void say(sim *s, sim_stream *st, message *m) {
    if (st->broken) return;
    int64_t at_us = s->now_us + sim_delay(s);
    st->to_coord_us = at_us > st->to_coord_us ? at_us : st->to_coord_us + 1;
    m->handle = st->handle;
    m->e.request = (uint64_t)st->request + 1;
    m->e.attempt = st->attempt;
    sim_event *e = sim_at(s, st->to_coord_us, hear_message);
    e->data = sim_alloc(sizeof *m);
    memcpy(e->data, m, sizeof *m);
}

static void say_end(sim *s, sim_stream *st, status code, const char *text) {
    message m = {.e = {.kind = st->prefill ? COORD_PREFILL_END : COORD_DECODE_END}};
    m.e.end.st = code;
    m.e.end.done = st->done;
    m.e.end.reason = st->reason;
    snprintf(m.text, sizeof m.text, "%s", text ? text : "");
    say(s, st, &m);
}

/* What a prompt that was read ahead saves. */
static void see_held(sim *s, const sim_node *n, const sim_stream *st, const node_event *e) {
    sim_request *q = &s->requests[st->request];
    if (st->hold) {
        s->seen[SEEN_HELD]++;
        s->seen[SEEN_APART_HELD] += s->apart;
        q->holder = n->slot;
    } else if (st->moved) {
        s->seen[SEEN_MOVED_FOUND] += (uint64_t)e->token.cached;
    } else if (q->holder == n->slot) {
        s->seen[SEEN_HELD_FOUND] += (uint64_t)e->token.cached;
    }
}

static void say_token(sim *s, sim_stream *st, const node_event *e) {
    message m = {.e = {.kind = st->prefill ? COORD_FIRST_TOKEN : COORD_TOKENS}};
    if (s->bug == BUG_HINT_SAID) m.e.kind = COORD_TOKENS;
    if (!st->prefill) st->said++;
    m.token = e->token.sampled.token;
    m.e.tokens.index = e->token.index;
    m.e.tokens.count = 1;
    if (s->bug == BUG_WRONG_HINT && st->prefill) m.token ^= 1;
    if (s->bug == BUG_TOKEN_LOST && sim_chance(s, 0.01)) return;
    say(s, st, &m);
    if (s->bug != BUG_TOKEN_TWICE || !sim_chance(s, 0.05)) return;
    m.e.tokens.index++;
    say(s, st, &m);
}

/* A canceled stream must fall silent, unless its node slept in between. */
static void check_silence(sim *s, const sim_node *n, const sim_stream *st) {
    if (st->cancel_us && s->now_us > st->cancel_us + 500 && n->paused_us <= st->cancel_us)
        sim_fail(s, "node %d: still works for request %d, canceled %.1f ms ago", n->slot, st->request,
                 (double)(s->now_us - st->cancel_us) / 1000);
}

void sim_coordinator_node_event(sim *s, sim_node *n, const node_event *e) {
    static const char *const names[] = {"reserved", "landed", "prompt", "token", "done", "first token", "sent", "end"};
    sim_stream *st = s->streams[e->handle - 1];
    message m = {{0}, 0, 0, "", ""};
    sim_trace(s, "node %d: request %d attempt %u: %s", n->slot, st->request, st->attempt, names[e->kind]);
    if (st->ended) sim_fail(s, "node %d: request %d: an event after the end", n->slot, st->request);
    switch (e->kind) {
    case NODE_RESERVED:
        if (e->reserved.wanted >= (st->apart ? s->requests[st->request].prompt_count : s->requests[st->request].asked))
            sim_fail(s, "node %d: request %d: wants %d tokens of a prefill node", n->slot, st->request, e->reserved.wanted);
        m.e.kind = COORD_RESERVED;
        m.e.reserved.ticket = e->reserved.ticket;
        m.e.reserved.cached = e->reserved.cached;
        m.e.reserved.wanted = e->reserved.wanted;
        s->seen[SEEN_APART_HIT] += st->apart && e->reserved.cached > 0;
        snprintf(m.address, sizeof m.address, "%d:%u", n->slot, n->life);
        say(s, st, &m);
        break;
    case NODE_LANDED:
        m.e.kind = COORD_LANDED;
        m.e.landed.tokens = e->landed.tokens;
        say(s, st, &m);
        break;
    case NODE_SENT:
        m.e.kind = COORD_SENT;
        say(s, st, &m);
        break;
    case NODE_PROMPT: sim_fail(s, "node %d: request %d: nobody asked for the prompt's logprobs", n->slot, st->request); break;
    case NODE_TOKEN:
    case NODE_FIRST_TOKEN:
        check_silence(s, n, st);
        if (st->prefill) see_held(s, n, st, e);
        say_token(s, st, e);
        break;
    case NODE_DONE:
        st->done = true;
        st->reason = e->done.reason;
        break;
    case NODE_END:
        st->ended = true;
        s->seen[SEEN_APART_SHORT] += st->apart && e->end.st == ST_PEER_STALE;
        s->seen[SEEN_UNHELD] += st->hold && e->end.st == ST_AGAIN;
        s->seen[SEEN_APART_PREEMPTED] += st->apart && e->end.st == ST_AGAIN && st->said > 0;
        say_end(s, st, e->end.st, e->end.text);
        break;
    }
}

/* ---- from the coordinator to a node ---------------------------------------------------------------- */

typedef struct start {
    node_request r;
    uint64_t handle;
    char address[24];
    int32_t tokens[SIM_TOKENS_MAX];
} start;

static void no_answer(sim *s, sim_event *at) {
    const start *m = at->data;
    if (s->bug != BUG_NODE_LOST_LOST) say_end(s, s->streams[m->handle - 1], ST_PEER_LOST, "connection refused");
}

static void begin(sim *s, sim_event *at) {
    sim_node *n = &s->nodes[at->node];
    start *m = at->data;
    sim_stream *st = s->streams[m->handle - 1];
    if (!s->healed && sim_chance(s, s->refusal)) {
        st->ended = true;
        say_end(s, st, sim_chance(s, 0.8) ? ST_AGAIN : ST_NO_MEMORY, "refused by chance");
        return;
    }
    arena *memory = arena_create(4096);
    node_request *r = arena_alloc(memory, sizeof *r);
    *r = m->r;
    r->memory = memory;
    r->tokens = memcpy(arena_alloc(memory, sizeof m->tokens), m->tokens, sizeof m->tokens);
    r->kv_address = arena_strndup(memory, m->address, sizeof m->address - 1);
    n->begins = st->request;
    node_core_submit(n->core, st->prefill ? &prefill_role : &decode_role, r, s->now_us);
    sim_node_awake(s, n);
}

static void cancel(sim *s, sim_event *at) {
    sim_node *n = &s->nodes[at->node];
    node_core_cancel(n->core, (uint64_t)at->a);
    sim_node_awake(s, n);
}

static int64_t to_node(sim *s, sim_stream *st) {
    int64_t at_us = s->now_us + sim_delay(s);
    return st->to_node_us = at_us > st->to_node_us ? at_us : st->to_node_us + 1;
}

/* A prompt is read apart in every attempt, unless no prefill node came for apart_ms: then the answer goes on from
 * another reading of it. */
static void check_apart(sim *s, sim_request *q, const coord_action *a) {
    bool apart = a->decode.apart;
    bool waited = s->limits.apart_ms < SIM_PATIENT_MS && s->now_us / 1000 >= q->submit_us / 1000 + s->limits.apart_ms;
    bool tried = a->attempt > COORD_APART_FAILURES;         /* and so many have failed: attempts are at least as many */
    if (apart != s->apart && !(s->apart && (waited || tried)) && s->bug != BUG_NUMERICS_LOST)
        sim_fail(s, "request %d: attempt %u reads its prompt %s", (int)a->request - 1, a->attempt,
                 apart ? "apart" : "on the decode node");
    if (s->bug != BUG_NUMERICS_LOST) sim_client_reread(s, q, apart);
    s->seen[SEEN_APART] += apart;
    s->seen[SEEN_APART_GAVE_UP] += s->apart && !apart;
    s->seen[SEEN_APART_FAILOVER] += apart && q->emitted && q->decode_node != a->node;
    s->seen[SEEN_APART_WAITED] += apart && a->attempt == 1 && s->now_us - q->submit_us >= 100000;
    q->decode_node = a->node;
}

static void send_start(sim *s, const coord_action *a, bool prefill) {
    sim_request *q = &s->requests[a->request - 1];
    if (!prefill) check_apart(s, q, a);
    sim_stream *st = sim_alloc(sizeof *st);
    if (s->streams_count == s->streams_room) {
        s->streams_room = s->streams_room ? 2 * s->streams_room : 64;
        s->streams = mem_realloc(s->streams, (size_t)s->streams_room * sizeof *s->streams);
    }
    s->streams[s->streams_count++] = st;
    *st = (sim_stream){.handle = (uint64_t)s->streams_count, .request = (int)a->request - 1,
                       .node = a->node, .attempt = a->attempt, .life = s->nodes[a->node].life,
                       .prefill = prefill, .apart = !prefill && a->decode.apart};
    start *m = sim_alloc(sizeof *m);
    const int32_t *tokens = prefill ? a->prefill.tokens : a->decode.tokens;
    int32_t count = prefill ? a->prefill.count : a->decode.count;
    bool hold = prefill && a->prefill.hold;
    int32_t whole = q->prompt_count + (prefill && (hold ? s->apart : q->apart) ? 0 : q->emitted);
    if (hold && s->apart && count != whole) whole = q->prompt_count + q->emitted;   /* after it was read by a decode node */
    if (prefill && !hold && !q->apart) whole = q->asked;   /* a hold may have said a token since */
    if (!prefill) q->asked = whole;
    if (count != whole || memcmp(tokens, q->tokens, (size_t)count * sizeof *tokens) != 0)
        sim_fail(s, "request %d: attempt %u begins with %d tokens, expected the %d of prompt and answer so far",
                 st->request, st->attempt, count, whole);
    st->hold = hold;
    if (hold) q->hold_attempt = a->attempt, q->holder = -1;
    m->handle = st->handle;
    m->r = (node_request){.handle = st->handle, .id = "sim", .epoch = a->attempt, .count = count,
                          .prompt_count = q->prompt_count, .sampling = q->sampling, .salt = q->salt, .priority = q->priority,
                          .ignore_eos = q->ignore_eos, .lease_ms = s->lease_ms};
    memcpy(m->tokens, tokens, (size_t)count * sizeof *tokens);
    if (s->bug == BUG_SEED_LOST && a->attempt > 1) m->r.sampling.seed++;
    if (s->bug != BUG_SALT_LOST) m->r.salt = prefill ? a->prefill.salt : a->decode.salt;
    if (prefill) {
        s->seen[hold ? SEEN_AHEAD : SEEN_REMOTE]++;
        st->moved = a->prefill.moved;
        s->seen[SEEN_MOVED] += st->moved;
        s->seen[SEEN_OTHER_HOLDER] += !st->moved && !s->nodes[a->node].prefill;
        m->r.hold = hold;
        m->r.ticket = a->prefill.ticket;
        m->r.skip = a->prefill.skip;
        m->r.send_end = a->prefill.send_end;
        if (!hold) snprintf(m->address, sizeof m->address, "%s", a->prefill.kv_address);
    } else {
        m->r.max_tokens = a->decode.max_tokens;
        m->r.local_tokens_max = a->decode.local_tokens_max;
        m->r.apart = st->apart && s->bug != BUG_APART_LOST;
    }
    sim_event *e = sim_at_node(s, to_node(s, st), st->node, st->life, begin);
    e->dropped = no_answer;
    e->data = m;
}

static void send_cancel(sim *s, const coord_action *a, bool prefill) {
    for (int i = s->streams_count - 1; i >= 0; i--) {
        sim_stream *st = s->streams[i];
        if (st->request + 1 != (int)a->request || st->attempt != a->attempt || st->prefill != prefill) continue;
        st->canceled = true;
        st->cancel_us = to_node(s, st);
        if (s->bug == BUG_CANCEL_LOST || (s->bug == BUG_HOLD_KEPT && st->hold)) return;
        sim_at_node(s, st->cancel_us, st->node, st->life, cancel)->a = (int64_t)st->handle;
        return;
    }
    sim_fail(s, "request %d: attempt %u has no such stream to cancel", (int)a->request - 1, a->attempt);
}

void sim_coordinator_break(sim *s, sim_stream *st) {
    if (st->broken) return;
    if (s->bug != BUG_NODE_LOST_LOST) say_end(s, st, ST_PEER_LOST, "the stream broke");
    st->broken = true;
    sim_at_node(s, to_node(s, st), st->node, st->life, cancel)->a = (int64_t)st->handle;
}

/* ---- steps ----------------------------------------------------------------------------------------- */

static void tick(sim *s, sim_event *at) {
    coord_event e = {.kind = COORD_TICK};
    if (at->at_us != s->tick_us) return;      /* an earlier one was set meanwhile */
    s->tick_us = INT64_MAX;
    sim_coordinator_step(s, &e);
}

static void set_tick(sim *s) {
    int64_t next_ms = coord_core_next_tick_ms(s->core);
    if (next_ms == INT64_MAX) return;
    int64_t at_us = next_ms * 1000 > s->now_us ? next_ms * 1000 : s->now_us + 1;
    if (at_us >= s->tick_us) return;
    s->tick_us = at_us;
    sim_at(s, at_us, tick);
}

void sim_coordinator_step(sim *s, coord_event *e) {
    coord_actions actions;
    coord_core_step(s->core, e, s->now_us / 1000, &actions);
    for (int i = 0; i < actions.count && !s->failed; i++) {
        const coord_action *a = &actions.at[i];
        switch (a->kind) {
        case COORD_DO_DECODE: send_start(s, a, false); break;
        case COORD_DO_PREFILL: send_start(s, a, true); break;
        case COORD_DO_CANCEL_DECODE: send_cancel(s, a, false); break;
        case COORD_DO_CANCEL_PREFILL: send_cancel(s, a, true); break;
        case COORD_DO_EMIT: sim_client_emit(s, a); break;
        case COORD_DO_FINISH: sim_client_finish(s, a); break;
        }
    }
    set_tick(s);
}

/* ---- who is alive ----------------------------------------------------------------------------------- */

/* A node's state, and what changed in its prefix cache. */
typedef struct heard {
    coord_node state;
    bool whole;
    int32_t count, at[40];
    uint64_t numbers[40];
} heard;

static void hear_state(sim *s, sim_event *at) {
    sim_node *n = &s->nodes[at->a];
    const heard *h = at->data;
    coord_event e = {.kind = COORD_NODE_STATE, .node = n->slot};
    e.node_state = h->state;
    n->heard_us = s->now_us;
    n->heard_life = (uint32_t)at->b;
    sim_coordinator_step(s, &e);
    e = (coord_event){.kind = COORD_NODE_CACHE, .node = n->slot};
    e.cache.whole = h->whole;
    e.cache.at = h->at;
    e.cache.numbers = h->numbers;
    e.cache.count = h->count;
    s->seen[SEEN_CACHE] += (uint64_t)h->count;
    sim_coordinator_step(s, &e);
}

static void beat(sim *s, sim_event *at) {
    sim_node *n = &s->nodes[at->node];
    sim_event *next = sim_at_node(s, s->now_us + SIM_HEARTBEAT_US, n->slot, n->life, beat);
    next->a = at->a;
    if (s->now_us < n->deaf_us) return;
    next->a = 1;                 /* of this life something was told */
    heard *h = sim_alloc(sizeof *h);
    h->count = node_core_cache_changes(n->core, 40, h->at, h->numbers);
    h->whole = at->a == 0;
    h->state = (coord_node){.role = n->prefill ? COORD_PREFILL : COORD_DECODE,
                          .draining = n->draining,
                          .epoch = s->bug == BUG_NODE_LOST_LOST ? 1 : n->life,
                          .numerics = s->bug == BUG_NUMERICS_LOST ? 1 : n->numerics,
                          .capacity = n->sequences_max,
                          .pages_total = n->pages,
                          .pages_available = eng_pool_available(n->core->pool),
                          .page_tokens = n->P};
    sim_event *e = sim_at(s, s->now_us + sim_delay(s), hear_state);
    e->a = n->slot;
    e->b = n->life;
    e->data = h;
}

void sim_coordinator_hear(sim *s, sim_node *n) {
    sim_at_node(s, s->now_us + sim_delay(s), n->slot, n->life, beat);
}

static void lose(sim *s, sim_node *n) {
    coord_event e = {.kind = COORD_NODE_LOST, .node = n->slot};
    n->heard_us = -1;
    if (s->bug == BUG_NODE_LOST_LOST) return;
    sim_trace(s, "coordinator: node %d is lost", n->slot);
    s->seen[SEEN_LOST]++;
    sim_coordinator_step(s, &e);
}

static void watch(sim *s, sim_event *at) {
    (void)at;
    sim_at(s, s->now_us + SIM_HEARTBEAT_US, watch);
    for (int i = 0; i < s->nodes_count; i++)
        if (s->nodes[i].heard_us >= 0 && s->now_us - s->nodes[i].heard_us > 3 * SIM_HEARTBEAT_US)
            lose(s, &s->nodes[i]);
}

static void watch_broke(sim *s, sim_event *at) {
    sim_node *n = &s->nodes[at->a];
    if (n->heard_us >= 0 && n->heard_life == (uint32_t)at->b) lose(s, n);
}

/* Its host may say so on every stream; if not, its heartbeats are missed. */
void sim_coordinator_gone(sim *s, sim_node *n) {
    for (int i = 0; i < s->streams_count; i++) {
        sim_stream *st = s->streams[i];
        if (st->node == n->slot && st->life == n->life && !st->ended && sim_chance(s, 0.7))
            sim_coordinator_break(s, st);
    }
    if (!sim_chance(s, 0.5)) return;
    sim_event *e = sim_at(s, s->now_us + sim_delay(s), watch_broke);
    e->a = n->slot;
    e->b = n->life;
}

void sim_coordinator_create(sim *s) {
    s->limits.queue_max = (int32_t)sim_range(s, 0, 20);
    s->limits.queue_tokens_max = sim_chance(s, 0.5) ? 1 << 20 : sim_range(s, 1, 400);
    if (sim_chance(s, 0.3)) s->limits.tenant_requests_max = (int32_t)sim_range(s, 1, 8);
    if (sim_chance(s, 0.3)) s->limits.tenant_queue_tokens_max = sim_range(s, 1, 300);
    s->limits.route = (coord_route)sim_range(s, 0, COORD_ROUTES - 1);
    s->limits.requests_max = (int32_t)sim_range(s, 1, 40);
    s->limits.local_tokens_max = (int32_t)sim_range(s, 0, 32);
    s->limits.avoid_ms = (int32_t)sim_range(s, 20, 200);
    s->limits.apart_ms = sim_chance(s, 0.2) ? (int32_t)sim_range(s, 10, 150) : SIM_PATIENT_MS;
    s->core = coord_core_create(&s->limits);
    s->tick_us = INT64_MAX;
    s->nodes_count = (int)sim_range(s, 2, SIM_NODES_MAX);
    int32_t longest = 0;
    for (int i = 0; i < s->requests_count; i++) {
        int32_t tokens = s->requests[i].prompt_count + s->requests[i].max_tokens;
        if (tokens > longest) longest = tokens;
    }
    for (int i = 0; i < s->nodes_count; i++) {
        sim_node *n = &s->nodes[i];
        n->s = s;
        n->slot = i;
        n->starts_prefill = i > 0 && (i == 1 || sim_chance(s, 0.5));
        n->P = (int32_t)sim_range(s, 2, 16);
        n->pages = longest / n->P + 1 + (sim_chance(s, 0.5) ? 0 : (int32_t)sim_range(s, 0, 60));
        n->sequences_max = (int32_t)sim_range(s, 1, 12);
        n->heard_us = -1;
        sim_node_create(s, n);
    }
    sim_at(s, SIM_HEARTBEAT_US, watch);
}
