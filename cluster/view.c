/* view.c -- one Watch stream to every node of the registry, and what each last said.
 *
 *   UNSEEN -> ALIVE     [on_state]   its first state came
 *   ALIVE  -> LOST      [lose]       its stream ended, or CLUSTER_HEARTBEATS_MISSED are overdue
 *   LOST   -> ALIVE     [on_state]   a new stream brought a state: of the same process or a new one
 *   any    -> DEPARTED  [left]       the registry took it away; it may join again under its number, as long as numbers
 *                                    are left for others: then who left first loses its own [reuse]
 *
 * A stream that ended is opened again after a pause that doubles from BACKOFF_FIRST_MS to
 * BACKOFF_MAX_MS; a node never heard of is tried at the short pause for UNSEEN_MS first, because at
 * a cluster's start everything comes up at once. A node whose heartbeats are overdue gets its
 * stream canceled, so that a stopped process costs one open stream at most and cannot speak late:
 * what an old stream still says is never listened to.
 *
 * The changes of a node's prefix cache are numbered by its stream. When one is missing, or there was no memory to hear one, the
 * stream is opened anew, which begins with the whole [resync]; the node is not lost by that.
 *
 * Each node has one timer, which either waits for a heartbeat or for the pause to end. When it fires
 * late, the loop was held up (a long prompt, a stopped process) and heartbeats may wait unread: then
 * nobody is lost before they had time to be read. */
#include "cluster/cluster.h"
#include <assert.h>
#include <string.h>

enum { BACKOFF_FIRST_MS = 50, BACKOFF_MAX_MS = 1000, UNSEEN_MS = 3000 };

typedef struct watched {
    cluster_view *view;
    int number;
    char *address;
    rpc_channel *channel; /* NULL: departed */
    rpc_stream *stream;   /* NULL between two streams */
    rpc_timer *timer;
    int64_t due_ms; /* of the timer */
    int64_t joined_ms, left_ms, heard_ms;
    int backoff_ms;
    bool alive;
    char why[200];        /* its last stream is over; "": one brought a state since */
    uint64_t changes;     /* of its prefix cache that this stream brought */
    Baton__Node__V1__NodeState *state;
} watched;

struct cluster_view {
    rpc_loop *loop;
    cluster_registry *registry;
    const cluster_view_events *events;
    void *ctx;
    int heartbeat_ms;
    bool closing;
    int streams; /* not ended yet: the view is freed after the last one */
    watched *nodes[CLUSTER_NODES_MAX];
    int count;
};

static const rpc_method watch_method = {
    .path = "/baton.node.v1.Node/Watch",
    .kind = RPC_SERVER_STREAM,
    .request = &baton__node__v1__watch_request__descriptor,
    .reply = &baton__node__v1__node_state__descriptor,
};

static void joined(void *ctx, const char *address);
static void left(void *ctx, const char *address);
static void watch(void *arg);
static void free_if_over(cluster_view *v);

static const cluster_registry_events registry_events = {.joined = joined, .left = left};

status cluster_view_open(rpc_loop *l, const char *registry, int heartbeat_ms,
                         const cluster_view_events *events, void *ctx, cluster_view **out,
                         error *err) {
    cluster_view *v = mem_zalloc(1, sizeof *v);
    if (!v) return error_set(err, ST_NO_MEMORY, "cluster view: no memory");
    v->loop = l;
    v->events = events;
    v->ctx = ctx;
    v->heartbeat_ms = heartbeat_ms;
    status st = cluster_registry_open(l, registry, &registry_events, v, &v->registry, err);
    if (st != ST_OK) {
        cluster_view_close(v);
        return st;
    }
    *out = v;
    return ST_OK;
}

void cluster_view_close(cluster_view *v) {
    if (!v) return;
    v->closing = true;
    cluster_registry_close(v->registry);
    for (int i = 0; i < v->count; i++) {
        watched *n = v->nodes[i];
        if (n->timer) rpc_timer_cancel(n->timer);
        n->timer = NULL;
        if (n->channel) rpc_channel_close(n->channel);
        n->channel = NULL;
    }
    free_if_over(v);
}

int cluster_view_count(const cluster_view *v) { return v->count; }

const char *cluster_view_address(const cluster_view *v, int node) {
    assert(node >= 0 && node < v->count);
    return v->nodes[node]->address;
}

rpc_channel *cluster_view_channel(const cluster_view *v, int node) {
    assert(node >= 0 && node < v->count);
    return v->nodes[node]->channel;
}

bool cluster_view_alive(const cluster_view *v, int node) {
    assert(node >= 0 && node < v->count);
    return v->nodes[node]->alive;
}

bool cluster_view_listed(const cluster_view *v, int node, int64_t now_ms) {
    assert(node >= 0 && node < v->count);
    const watched *n = v->nodes[node];
    return n->channel || (n->state && !n->state->draining && now_ms - n->left_ms < CLUSTER_LISTED_MS);
}

const char *cluster_view_why(const cluster_view *v, int node) {
    assert(node >= 0 && node < v->count);
    return v->nodes[node]->why;
}

const Baton__Node__V1__NodeState *cluster_view_state(const cluster_view *v, int node) {
    assert(node >= 0 && node < v->count);
    return v->nodes[node]->state;
}

/* ---- memory of messages ---------------------------------------------------------------------- */

static void forget_state(watched *n) {
    if (n->state) rpc_message_free(&n->state->base);
    n->state = NULL;
}

/* The message is the stream's until its callback returns; a copy is kept, without the changes of its cache. Without
 * memory for one the old state stays: the next heartbeat brings another. */
static bool keep_state(watched *n, const Baton__Node__V1__NodeState *heard) {
    Baton__Node__V1__NodeState bare = *heard, *state = &bare;
    bare.cache = NULL;
    size_t bytes = baton__node__v1__node_state__get_packed_size(state);
    uint8_t *packed = mem_alloc(bytes ? bytes : 1);
    if (!packed) return false;
    baton__node__v1__node_state__pack(state, packed);
    ProtobufCMessage *copy;
    status st = rpc_message_read(&baton__node__v1__node_state__descriptor, packed, bytes, &copy);
    mem_free(packed);
    if (st != ST_OK) return false;
    forget_state(n);
    n->state = (Baton__Node__V1__NodeState *)copy;
    return true;
}

static void free_if_over(cluster_view *v) {
    if (!v->closing || v->streams > 0) return;
    for (int i = 0; i < v->count; i++) {
        forget_state(v->nodes[i]);
        mem_free(v->nodes[i]->address);
        mem_free(v->nodes[i]);
    }
    mem_free(v);
}

/* ---- a node's stream ------------------------------------------------------------------------- */

static void lose(watched *n, const char *why) {
    if (!n->alive) return;
    n->alive = false;
    log_write(n->state->draining ? LOG_INFO : LOG_WARN, NULL, "node.lost", "node=%s address=%s why=\"%s\"", n->state->id,
              n->address, why);
    n->view->events->lost(n->view->ctx, n->number, why);
}

/* A stream is over. Why it was, is said once: of a node that just starts not at all, of one that was lost by lose(). */
static void failed(watched *n, const char *why) {
    bool said = n->alive || strcmp(n->why, why) == 0, starts = !n->state && clock_now_ms() - n->joined_ms < UNSEEN_MS;
    if (!starts) snprintf(n->why, sizeof n->why, "%s", why);
    if (!said && !starts)
        log_write(LOG_WARN, NULL, "node.unreachable", "node=%s address=%s why=\"%s\"", n->state ? n->state->id : "-", n->address, n->why);
    lose(n, why);
}

static void set_timer(watched *n, int64_t delay_ms, void (*fn)(void *arg)) {
    if (n->timer) rpc_timer_cancel(n->timer);
    n->timer = NULL;
    n->due_ms = clock_now_ms() + delay_ms;
    if (rpc_timer_start(n->view->loop, delay_ms, fn, n, &n->timer) != ST_OK)
        log_write(LOG_ERROR, NULL, "node.unwatched", "address=%s: no memory for a timer",
                  n->address);
}

static void watch_later(watched *n) {
    set_timer(n, n->backoff_ms, watch);
    if (!n->state && clock_now_ms() - n->joined_ms < UNSEEN_MS) return;
    n->backoff_ms = n->backoff_ms * 2 < BACKOFF_MAX_MS ? n->backoff_ms * 2 : BACKOFF_MAX_MS;
}

/* Due when the last heartbeat allowed is overdue, unless one came meanwhile. */
static void heartbeat_due(void *arg) {
    watched *n = arg;
    n->timer = NULL;
    int64_t now_ms = clock_now_ms(), silence_ms = now_ms - n->heard_ms;
    int64_t allowed_ms = (int64_t)n->view->heartbeat_ms * CLUSTER_HEARTBEATS_MISSED;
    bool held_up = now_ms - n->due_ms >= n->view->heartbeat_ms;
    if (silence_ms < allowed_ms || held_up) {
        set_timer(n, held_up ? n->view->heartbeat_ms : allowed_ms - silence_ms, heartbeat_due);
        return;
    }
    rpc_stream *stream = n->stream;
    n->stream = NULL; /* from here on nobody listens to it */
    rpc_stream_cancel(stream);
    watch_later(n);
    failed(n, "heartbeats overdue");
}

static void resync(watched *n) {
    rpc_stream *stream = n->stream;
    log_write(LOG_WARN, NULL, "node.cache.gap", "node=%s changes=%llu: asking for the whole again", n->state->id,
              (unsigned long long)n->changes);
    n->stream = NULL; /* from here on nobody listens to it */
    rpc_stream_cancel(stream);
    set_timer(n, n->backoff_ms, watch);
}

static void hear_cache(watched *n, const Baton__Node__V1__CacheChange *c) {
    cluster_view *v = n->view;
    if (!c || !v->events->cache) return;
    if (c->number != n->changes + 1 || c->n_pages != c->n_numbers || c->n_pages > INT32_MAX || (c->whole != (c->number == 1))) {
        resync(n);
        return;
    }
    n->changes++;
    v->events->cache(v->ctx, n->number, c);
}

static void on_state(rpc_stream *s, const ProtobufCMessage *message, void *user) {
    watched *n = user;
    const Baton__Node__V1__NodeState *state = (const Baton__Node__V1__NodeState *)message;
    if (s != n->stream || n->view->closing) return;
    if (n->alive && n->state->epoch != state->epoch) lose(n, "it started anew");
    n->heard_ms = clock_now_ms();
    n->backoff_ms = BACKOFF_FIRST_MS;
    if (!keep_state(n, state)) return; /* a change it had is missed, then, and the next one shows the gap */
    if (!n->alive)
        log_write(LOG_INFO, NULL, "node.alive", "node=%s number=%d role=%s address=%s pid=%lld epoch=%llu", n->state->id, n->number,
                  n->state->role, n->address, (long long)n->state->pid, (unsigned long long)n->state->epoch);
    n->alive = true;
    n->why[0] = 0;
    n->view->events->state(n->view->ctx, n->number, n->state);
    if (s == n->stream) hear_cache(n, state->cache);
}

static void on_end(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user) {
    (void)retry_after_ms;
    watched *n = user;
    cluster_view *v = n->view;
    v->streams--;
    if (v->closing) {
        free_if_over(v);
        return;
    }
    if (s != n->stream) return;
    n->stream = NULL;
    if (n->channel) watch_later(n);
    failed(n, text && *text ? text : status_text(st));
}

/* The pause is over, or the node is new: opens its stream. */
static void watch(void *arg) {
    static const rpc_stream_events events = {.on_message = on_state, .on_end = on_end};
    watched *n = arg;
    cluster_view *v = n->view;
    n->timer = NULL;
    Baton__Node__V1__WatchRequest request = BATON__NODE__V1__WATCH_REQUEST__INIT;
    request.protocol = 1;
    request.heartbeat_ms = (uint32_t)v->heartbeat_ms;
    request.cache = v->events->cache != NULL;
    n->changes = 0;
    status st = rpc_stream_start(n->channel, &watch_method, &request.base, 0, false, &events, n,
                                 &n->stream);
    if (st != ST_OK) {
        n->stream = NULL;
        watch_later(n);
        return;
    }
    v->streams++;
    n->heard_ms = clock_now_ms();
    set_timer(n, (int64_t)v->heartbeat_ms * CLUSTER_HEARTBEATS_MISSED, heartbeat_due);
}

/* ---- registry -------------------------------------------------------------------------------- */

static watched *find(cluster_view *v, const char *address) {
    for (int i = 0; i < v->count; i++)
        if (strcmp(v->nodes[i]->address, address) == 0) return v->nodes[i];
    return NULL;
}

/* What an old stream of it still says is not listened to, whoever has the number. NULL: all are registered. */
static watched *reuse(cluster_view *v, const char *address) {
    watched *n = NULL;
    for (int i = 0; i < v->count; i++)
        if (!v->nodes[i]->channel && (!n || v->nodes[i]->left_ms < n->left_ms)) n = v->nodes[i];
    char *copy = n ? mem_strdup(address) : NULL;
    if (!copy) return NULL;
    log_write(LOG_INFO, NULL, "node.forgotten", "address=%s: its number is that of %s now", n->address, address);
    mem_free(n->address);
    n->address = copy;
    forget_state(n);
    n->why[0] = 0;
    v->events->forgotten(v->ctx, n->number);
    return n;
}

static watched *add(cluster_view *v, const char *address) {
    if (v->count == CLUSTER_NODES_MAX) return reuse(v, address);
    watched *n = mem_zalloc(1, sizeof *n);
    if (!n) return NULL;
    n->address = mem_strdup(address);
    if (!n->address) {
        mem_free(n);
        return NULL;
    }
    n->view = v;
    n->number = v->count;
    return v->nodes[v->count++] = n;
}

static void joined(void *ctx, const char *address) {
    cluster_view *v = ctx;
    watched *n = find(v, address);
    if (n && n->channel) return;
    error err = {0};
    if (!n) n = add(v, address);
    if (!n || rpc_channel_open(v->loop, address, &n->channel, &err) != ST_OK) {
        log_write(LOG_ERROR, NULL, "node.unwatched", "address=%s: %s", address,
                  n ? err.text : "no room for another node");
        return;
    }
    n->joined_ms = clock_now_ms();
    n->backoff_ms = BACKOFF_FIRST_MS;
    watch(n);
}

static void left(void *ctx, const char *address) {
    watched *n = find(ctx, address);
    if (!n || !n->channel) return;
    if (n->timer) rpc_timer_cancel(n->timer);
    n->timer = NULL;
    n->stream = NULL;
    lose(n, "left the registry");
    rpc_channel_close(n->channel);
    n->channel = NULL;
    n->left_ms = clock_now_ms();
}
