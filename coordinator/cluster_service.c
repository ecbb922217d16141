/* cluster_service.c -- what operators see and order: topology, drain, undrain, roles.
 *
 * An order is one Control call to the node it names; the node's next state tells everybody else. A
 * watcher gets the topology at once and again after changes, at most every WATCH_MS; one that reads
 * slowly skips versions, never queues them. */
#include "coordinator/service.h"
#include <string.h>
#include <unistd.h>

enum { WATCH_MS = 100, CONTROL_TIMEOUT_MS = 5000, COUNTERS_MAX = 256 };

static void topology(rpc_call *call, const ProtobufCMessage *request, void *ctx);
static void watch(rpc_call *call, const ProtobufCMessage *request, void *ctx);
static void drain(rpc_call *call, const ProtobufCMessage *request, void *ctx);
static void undrain(rpc_call *call, const ProtobufCMessage *request, void *ctx);
static void set_role(rpc_call *call, const ProtobufCMessage *request, void *ctx);

const rpc_method coord_cluster_methods[] = {
    {"/baton.v1.Cluster/Topology", RPC_UNARY, &baton__v1__topology_request__descriptor,
     &baton__v1__topology_result__descriptor, topology},
    {"/baton.v1.Cluster/WatchTopology", RPC_SERVER_STREAM, &baton__v1__topology_request__descriptor,
     &baton__v1__topology_result__descriptor, watch},
    {"/baton.v1.Cluster/Drain", RPC_UNARY, &baton__v1__node_request__descriptor,
     &baton__v1__node_result__descriptor, drain},
    {"/baton.v1.Cluster/Undrain", RPC_UNARY, &baton__v1__node_request__descriptor,
     &baton__v1__node_result__descriptor, undrain},
    {"/baton.v1.Cluster/SetRole", RPC_UNARY, &baton__v1__set_role_request__descriptor,
     &baton__v1__node_result__descriptor, set_role},
};
const int coord_cluster_methods_count =
    sizeof coord_cluster_methods / sizeof *coord_cluster_methods;

/* ---- a node as a message --------------------------------------------------------------------- */

static char *text_of(const char *text) { return (char *)(uintptr_t)text; }

static Baton__V1__Counter *counter(arena *a, const char *name, const char *labels, int64_t value) {
    Baton__V1__Counter *c = arena_alloc(a, sizeof *c);
    if (!c) return NULL;
    baton__v1__counter__init(c);
    c->name = text_of(name);
    c->labels = text_of(labels ? labels : "");
    c->value = value;
    return c;
}

static Baton__V1__PageCounts *page_counts(const Baton__Node__V1__NodeState *state, arena *a) {
    Baton__V1__PageCounts *p = arena_alloc(a, sizeof *p);
    int32_t n[ENG_PAGE_STATES] = {0};
    if (!p) return NULL;
    baton__v1__page_counts__init(p);
    for (size_t i = 0; i < state->n_pages && i < ENG_PAGE_STATES; i++) n[i] = state->pages[i];
    p->free = n[ENG_PAGE_FREE];
    p->cached = n[ENG_PAGE_CACHED];
    p->promised = n[ENG_PAGE_PROMISED];
    p->landing = n[ENG_PAGE_LANDING];
    p->running = n[ENG_PAGE_RUNNING];
    p->sending = n[ENG_PAGE_SENDING];
    p->held = n[ENG_PAGE_HELD];
    p->pinned = p->promised + p->landing + p->running + p->sending + p->held;
    p->total = p->free + p->cached + p->pinned;
    return p;
}

static const char *state_name(const coord_service *s, bool alive,
                              const Baton__Node__V1__NodeState *state) {
    if (!state) return "joining";
    if (!alive) return "lost";
    if (!coord_service_matches(s, state)) return "mismatch";
    if (!state->draining) return "ready";
    return state->running == 0 && state->waiting == 0 ? "drained" : "draining";
}

static Baton__V1__Node *new_node(const char *address, arena *a) {
    Baton__V1__Node *n = arena_alloc(a, sizeof *n);
    if (!n) return NULL;
    baton__v1__node__init(n);
    n->id = n->address = arena_strndup(a, address, strlen(address));
    return n->id ? n : NULL;
}

static Baton__V1__Rank *rank_of(arena *a, const Baton__Node__V1__RankState *from) {
    Baton__V1__Rank *to = arena_alloc(a, sizeof *to);
    if (!to) return NULL;
    baton__v1__rank__init(to);
    to->pid = from->pid;
    to->group_ms = from->group_ms;
    to->kv_bytes_in = from->kv_bytes_in;
    to->kv_bytes_out = from->kv_bytes_out;
    return to;
}

/* state: NULL for a node that has said nothing yet; borrowed as long as the message. */
static Baton__V1__Node *describe(const coord_service *s, const char *address, bool alive,
                                 const Baton__Node__V1__NodeState *state, arena *a) {
    Baton__V1__Node *n = new_node(address, a);
    if (!n) return NULL;
    n->state = text_of(state_name(s, alive, state));
    if (!state) return n;
    n->id = state->id;
    n->role = state->role;
    n->pid = state->pid;
    n->kv_address = state->kv_address;
    n->running = state->running;
    n->waiting = state->waiting;
    n->epoch = state->epoch;
    if (state->pairing) n->numerics = state->pairing->numerics;
    n->pages = page_counts(state, a);
    n->counters = arena_alloc(a, (state->n_counters + 1) * sizeof *n->counters);
    if (!n->pages || !n->counters) return NULL;
    for (size_t i = 0; i < state->n_counters; i++) {
        const Baton__Node__V1__StateCounter *c = state->counters[i];
        if (!(n->counters[i] = counter(a, c->name, c->labels, c->value))) return NULL;
    }
    n->n_counters = state->n_counters;
    n->ranks = arena_alloc(a, (state->n_ranks + 1) * sizeof *n->ranks);
    for (size_t i = 0; i < state->n_ranks; i++)
        if (!n->ranks || !(n->ranks[i] = rank_of(a, state->ranks[i]))) return NULL;
    n->n_ranks = n->ranks ? state->n_ranks : 0;
    return n;
}

typedef struct collect {
    Baton__V1__Node *node;
    arena *a;
} collect;

/* name: lives as long as the message. */
static void collect_value(collect *c, const char *name, const char *labels, int64_t value) {
    if (!name || c->node->n_counters == COUNTERS_MAX) return;
    Baton__V1__Counter *one = counter(c->a, name, labels, value);
    if (one) c->node->counters[c->node->n_counters++] = one;
}

static const char *joined(arena *a, const char *name, const char *suffix) {
    char text[128];
    int bytes = snprintf(text, sizeof text, "%s%s", name, suffix);
    return arena_strndup(a, text, (size_t)bytes);
}

/* Those that `baton top` makes means of; the others are on /metrics. */
static void collect_histogram(collect *c, const metric *m) {
    if (strcmp(m->name, "baton_time_to_first_token_seconds") != 0 && strcmp(m->name, "baton_inter_token_latency_seconds") != 0) return;
    collect_value(c, joined(c->a, m->name, "_count"), m->labels, metric_get(m));
    collect_value(c, joined(c->a, m->name, "_sum"), m->labels, (int64_t)(metric_sum(m) * 1e6));
}

static void collect_metric(const metric *m, void *ctx) {
    if (m->kind == METRIC_HISTOGRAM) collect_histogram(ctx, m);
    else if (!coord_figures_many(m)) collect_value(ctx, m->name, m->labels, metric_get(m));
}

static Baton__V1__Node *describe_self(const coord_service *s, arena *a) {
    Baton__V1__Node *n = new_node(coord_service_address(s), a);
    if (!n) return NULL;
    coord_counts counts = coord_core_counts(s->core);
    n->id = text_of(s->options.id);
    n->role = text_of("coordinator");
    n->state = text_of(s->draining ? "draining" : "ready");
    n->pid = getpid();
    n->running = counts.placed;
    n->waiting = counts.waiting;
    n->counters = arena_alloc(a, (COUNTERS_MAX + 1) * sizeof *n->counters);
    if (!n->counters) return NULL;
    metrics_each(collect_metric, &(collect){n, a});
    Baton__V1__Counter *retries = counter(a, "baton_retries_total", NULL, counts.retries);
    if (!retries) return NULL;
    n->counters[n->n_counters++] = retries;
    return n;
}

/* The coordinator first, then every node that is, or was a while ago. NULL: no memory. */
static Baton__V1__TopologyResult *describe_all(const coord_service *s, arena *a) {
    int count = cluster_view_count(s->view);
    int64_t now_ms = clock_now_ms();
    Baton__V1__TopologyResult *t = arena_alloc(a, sizeof *t);
    if (!t) return NULL;
    baton__v1__topology_result__init(t);
    t->nodes = arena_alloc(a, ((size_t)count + 1) * sizeof *t->nodes);
    if (!t->nodes || !(t->nodes[t->n_nodes++] = describe_self(s, a))) return NULL;
    for (int i = 0; i < count; i++) {
        if (!cluster_view_listed(s->view, i, now_ms)) continue;
        Baton__V1__Node *n =
            describe(s, cluster_view_address(s->view, i), cluster_view_alive(s->view, i),
                     cluster_view_state(s->view, i), a);
        if (!n) return NULL;
        n->why = text_of(cluster_view_why(s->view, i));
        t->nodes[t->n_nodes++] = n;
    }
    return t;
}

/* ---- topology -------------------------------------------------------------------------------- */

static status send_topology(coord_service *s, rpc_call *call) {
    if (s->closed) return ST_PEER_LOST;
    arena *a = arena_create(8192);
    Baton__V1__TopologyResult *t = a ? describe_all(s, a) : NULL;
    status st = t ? rpc_call_send(call, &t->base) : ST_NO_MEMORY;
    arena_destroy(a);
    return st;
}

static void topology(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    (void)request;
    status st = send_topology(ctx, call);
    bool sent = st == ST_OK || st == ST_AGAIN;
    rpc_call_finish(call, sent ? ST_OK : st, sent ? NULL : status_text(st), -1);
}

/* One WatchTopology call; on the loop from its request to its on_free. */
struct coord_watcher {
    coord_service *service;
    rpc_call *call;
    bool blocked, stale, ended;
    coord_watcher *next;
};

static void end_watcher(coord_watcher *w, status st, const char *text) {
    if (w->ended) return;
    w->ended = true;
    rpc_call_finish(w->call, st, text, -1);
}

static void tell_watcher(coord_watcher *w) {
    if (w->ended) return;
    w->stale = w->blocked;
    if (w->blocked) return;
    status st = send_topology(w->service, w->call);
    w->blocked = st == ST_AGAIN;
    if (st == ST_NO_MEMORY || st == ST_PEER_LOST) end_watcher(w, st, "no topology to be had");
}

static void watcher_cancel(rpc_call *call, void *user) {
    (void)call;
    end_watcher(user, ST_CANCELED, NULL);
}

static void watcher_writable(rpc_call *call, void *user) {
    (void)call;
    coord_watcher *w = user;
    w->blocked = false;
    if (w->stale) tell_watcher(w);
}

static void watcher_free(rpc_call *call, void *user) {
    (void)call;
    coord_watcher *w = user;
    coord_watcher **at = &w->service->watchers;
    while (*at != w) at = &(*at)->next;
    *at = w->next;
    mem_free(w);
}

static void watch(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    static const rpc_call_events events = {watcher_cancel, watcher_writable, watcher_free};
    (void)request;
    coord_service *s = ctx;
    coord_watcher *w = mem_zalloc(1, sizeof *w);
    if (!w) {
        rpc_call_finish(call, ST_NO_MEMORY, "no memory for a watcher", 1000);
        return;
    }
    *w = (coord_watcher){.service = s, .call = call, .next = s->watchers};
    s->watchers = w;
    rpc_call_watch(call, &events, w);
    tell_watcher(w);
}

static void tell_watchers(void *arg) {
    coord_service *s = arg;
    s->watch_timer = NULL;
    for (coord_watcher *w = s->watchers; w; w = w->next) tell_watcher(w);
}

void coord_cluster_changed(coord_service *s) {
    if (!s->watchers || s->watch_timer) return;
    if (rpc_timer_start(s->loop, WATCH_MS, tell_watchers, s, &s->watch_timer) != ST_OK)
        s->watch_timer = NULL; /* the next change tries again */
}

void coord_cluster_close(coord_service *s) {
    if (s->watch_timer) rpc_timer_cancel(s->watch_timer);
    s->watch_timer = NULL;
    for (coord_watcher *w = s->watchers; w; w = w->next)
        end_watcher(w, ST_PEER_LOST, "the coordinator was shut down");
}

/* ---- orders ---------------------------------------------------------------------------------- */

static const rpc_method control_method = {
    .path = "/baton.node.v1.Node/Control",
    .kind = RPC_UNARY,
    .request = &baton__node__v1__control_request__descriptor,
    .reply = &baton__node__v1__node_state__descriptor,
};

/* One order under way: the operator's call and the node's. Freed when the node's has ended. */
typedef struct order {
    coord_service *service;
    rpc_call *call; /* NULL: answered */
    bool told;      /* the node's state was passed on */
    char address[256];
} order;

static void answer_order(order *o, status st, const char *text) {
    if (!o->call) return;
    rpc_call *call = o->call;
    o->call = NULL;
    rpc_call_finish(call, st, text, -1);
}

static void order_cancel(rpc_call *call, void *user) {
    (void)call;
    answer_order(user, ST_CANCELED, NULL);
}

static void order_message(rpc_stream *stream, const ProtobufCMessage *message, void *user) {
    (void)stream;
    order *o = user;
    if (!o->call || o->told) return; /* a node that says two states to one order said one too many */
    o->told = true;
    Baton__V1__NodeResult result = BATON__V1__NODE_RESULT__INIT;
    arena *a = arena_create(4096);
    if (a)
        result.node =
            describe(o->service, o->address, true, (const Baton__Node__V1__NodeState *)message, a);
    status st = result.node ? rpc_call_send(o->call, &result.base) : ST_NO_MEMORY;
    arena_destroy(a);
    if (st == ST_NO_MEMORY) answer_order(o, st, "no memory for the answer");
}

static void order_end(rpc_stream *stream, status st, const char *text, int64_t retry_after_ms,
                      void *user) {
    (void)stream;
    (void)retry_after_ms;
    order *o = user;
    /* The operator's call forgets the order before it is freed. */
    if (o->call) rpc_call_watch(o->call, NULL, NULL);
    answer_order(o, st, text);
    mem_free(o);
}

static int find_node(const coord_service *s, const char *id) {
    int count = cluster_view_count(s->view);
    for (int pass = 0; pass < 2; pass++) /* a live node of that name before a lost one */
        for (int i = 0; i < count; i++)
            if ((pass || cluster_view_alive(s->view, i)) && cluster_view_listed(s->view, i, clock_now_ms()) &&
                strcmp(coord_service_node_name(s, i), id) == 0)
                return i;
    return -1;
}

static void refuse_unknown(const coord_service *s, rpc_call *call, const char *id) {
    error err = {0};
    char known[300] = "";
    size_t used = 0;
    for (int i = 0; i < cluster_view_count(s->view) && used < sizeof known; i++)
        if (cluster_view_listed(s->view, i, clock_now_ms()))
            used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", coord_service_node_name(s, i));
    error_set(&err, ST_NOT_FOUND, "no node '%.80s': expected one of %.290s", id, known);
    rpc_call_finish(call, ST_NOT_FOUND, err.text, -1);
}

static void give_order(coord_service *s, rpc_call *call, const char *id,
                       Baton__Node__V1__ControlRequest__Action action, const char *role) {
    static const rpc_call_events call_events = {order_cancel, NULL, NULL};
    static const rpc_stream_events stream_events = {order_message, order_end};
    int node = s->closed ? -1 : find_node(s, id);
    if (s->closed) {
        rpc_call_finish(call, ST_PEER_LOST, "this coordinator is shutting down", -1);
        return;
    }
    if (node < 0) {
        refuse_unknown(s, call, id);
        return;
    }
    Baton__Node__V1__ControlRequest request = BATON__NODE__V1__CONTROL_REQUEST__INIT;
    request.action = action;
    request.role = text_of(role);
    order *o = mem_zalloc(1, sizeof *o);
    rpc_channel *channel = cluster_view_channel(s->view, node);
    rpc_stream *stream;
    if (o) {
        *o = (order){.service = s, .call = call};
        snprintf(o->address, sizeof o->address, "%s", cluster_view_address(s->view, node));
    }
    if (!o || !channel ||
        rpc_stream_start(channel, &control_method, &request.base, CONTROL_TIMEOUT_MS, false,
                         &stream_events, o, &stream) != ST_OK) {
        mem_free(o);
        rpc_call_finish(call, ST_PEER_LOST, "the node cannot be reached", -1);
        return;
    }
    rpc_call_watch(call, &call_events, o);
}

static void drain(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    give_order(ctx, call, ((const Baton__V1__NodeRequest *)request)->id,
               BATON__NODE__V1__CONTROL_REQUEST__ACTION__DRAIN, "");
}

static void undrain(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    give_order(ctx, call, ((const Baton__V1__NodeRequest *)request)->id,
               BATON__NODE__V1__CONTROL_REQUEST__ACTION__UNDRAIN, "");
}

static void set_role(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    const Baton__V1__SetRoleRequest *r = (const Baton__V1__SetRoleRequest *)request;
    if (strcmp(r->role, "prefill") != 0 && strcmp(r->role, "decode") != 0) {
        error err = {0};
        error_set(&err, ST_BAD_INPUT, "role '%.80s': expected prefill or decode", r->role);
        rpc_call_finish(call, ST_BAD_INPUT, err.text, -1);
        return;
    }
    give_order(ctx, call, r->id, BATON__NODE__V1__CONTROL_REQUEST__ACTION__ROLE, r->role);
}
