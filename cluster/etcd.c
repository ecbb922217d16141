/* etcd.c -- a client of etcd's v3 API: one connection to one endpoint, one call at a time.
 *
 *   PAUSED -> CONNECTING    [connect]        a channel to the next endpoint; with a user, Authenticate is asked
 *   CONNECTING -> CONNECTED [connected]      the owner starts its first call
 *   any -> PAUSED           [lose]           a call failed or was not answered; the pause doubles from PAUSE_FIRST_MS
 *                                            to PAUSE_MAX_MS, half of it by chance, so that nodes do not come at once
 *
 * There is one way for all that can go wrong (endpoint dead, stopped, cut off from its leader, token expired, key
 * denied): another endpoint, from the beginning. The first is chosen by chance: nodes spread over endpoints.
 *
 * Watch and LeaseKeepAlive are streams of requests in etcd's API. We send one request and close our side: etcd answers
 * a keep-alive once and ends; a watch goes on (its own JSON gateway uses it so). Dead peers: calls have CALL_MS, a
 * watch has gRPC's pings. With "hasleader" an endpoint that lost its leader ends the watch instead of falling silent. */
#include "cluster/etcd.h"
#include <assert.h>
#include <string.h>

enum { CALL_MS = 2000, PAUSE_FIRST_MS = 50, PAUSE_MAX_MS = 1000, STEADY_MS = 5000 };

/* The loop's, from open until it is closed and its last stream has ended. */
struct cluster_etcd {
    rpc_loop *loop;
    cluster_etcd_address address;
    const cluster_etcd_events *events;
    void *ctx;
    int at;                      /* index of the endpoint */
    rpc_channel *channel;        /* NULL: paused */
    rpc_stream *stream;          /* the call in hand; what others still say is not listened to */
    cluster_etcd_reply reply;
    void *reply_ctx;
    bool replied, endless;       /* endless: its end is a loss, however it ends */
    rpc_timer *pause;
    int pause_ms;
    int64_t connected_ms;
    bool connected;              /* the owner was told */
    bool away, closing;          /* away: it was said that etcd cannot be reached */
    int streams;                 /* not ended yet */
};

#define ETCD_METHOD(name, service, kind_, in, out)                                                                     \
    {                                                                                                                  \
        .path = "/etcdserverpb." service "/" name, .kind = kind_, .request = &etcdserverpb__##in##__descriptor,        \
        .reply = &etcdserverpb__##out##__descriptor                                                                    \
    }

const rpc_method cluster_etcd_range = ETCD_METHOD("Range", "KV", RPC_UNARY, range_request, range_response);
const rpc_method cluster_etcd_txn = ETCD_METHOD("Txn", "KV", RPC_UNARY, txn_request, txn_response);
const rpc_method cluster_etcd_watch = ETCD_METHOD("Watch", "Watch", RPC_SERVER_STREAM, watch_request, watch_response);
const rpc_method cluster_etcd_lease_grant =
    ETCD_METHOD("LeaseGrant", "Lease", RPC_UNARY, lease_grant_request, lease_grant_response);
const rpc_method cluster_etcd_lease_revoke =
    ETCD_METHOD("LeaseRevoke", "Lease", RPC_UNARY, lease_revoke_request, lease_revoke_response);
const rpc_method cluster_etcd_lease_keep_alive =
    ETCD_METHOD("LeaseKeepAlive", "Lease", RPC_UNARY, lease_keep_alive_request, lease_keep_alive_response);
static const rpc_method authenticate =
    ETCD_METHOD("Authenticate", "Auth", RPC_UNARY, authenticate_request, authenticate_response);

METRIC(registry_up, "baton_registry_up", NULL, METRIC_GAUGE, "1: etcd answers; 0: it does not, and what it said last is gone by");

static void connect(void *arg);
static void start_call(cluster_etcd *c, const rpc_method *method, const ProtobufCMessage *request, cluster_etcd_reply reply,
                       void *ctx);
static void lose(cluster_etcd *c, const char *why);

status cluster_etcd_open(rpc_loop *l, cluster_etcd_address *address, const cluster_etcd_events *events, void *ctx,
                         cluster_etcd **out, error *err) {
    cluster_etcd *c = mem_zalloc(1, sizeof *c);
    if (!c || rpc_timer_start(l, 0, connect, c, &c->pause) != ST_OK) {
        mem_free(c);
        return error_set(err, ST_NO_MEMORY, "etcd client: no memory");
    }
    c->loop = l;
    c->address = *address;
    c->events = events;
    c->ctx = ctx;
    c->pause_ms = PAUSE_FIRST_MS;
    metric_show(&registry_up);
    c->at = (int)(random_number() % (uint64_t)c->address.count);
    *address = (cluster_etcd_address){.text = NULL};
    *out = c;
    return ST_OK;
}

static void free_if_over(cluster_etcd *c) {
    if (!c->closing || c->streams > 0) return;
    mem_free(c->address.text);
    mem_free(c);
}

static void disconnect(cluster_etcd *c) {
    c->stream = NULL;
    c->connected = false;
    if (c->channel) rpc_channel_close(c->channel);
    c->channel = NULL;
}

void cluster_etcd_close(cluster_etcd *c) {
    if (!c) return;
    c->closing = true;
    if (c->pause) rpc_timer_cancel(c->pause);
    disconnect(c);
    free_if_over(c);
}

bool cluster_etcd_connected(const cluster_etcd *c) { return c->connected; }
const char *cluster_etcd_prefix(const cluster_etcd *c) { return c->address.prefix; }

/* ---- connecting --------------------------------------------------------------------------------- */

static void connected(cluster_etcd *c) {
    c->connected = true;
    c->connected_ms = clock_now_ms();
    c->events->connected(c->ctx);
}

static void on_token(void *ctx, const ProtobufCMessage *message) {
    cluster_etcd *c = ctx;
    const Etcdserverpb__AuthenticateResponse *m = (const Etcdserverpb__AuthenticateResponse *)message;
    if (rpc_channel_add_header(c->channel, "token", m->token) == ST_OK) connected(c);
    else lose(c, "no memory for a token");
}

static void connect(void *arg) {
    cluster_etcd *c = arg;
    error err = {0};
    c->pause = NULL;
    if (rpc_channel_open_foreign(c->loop, c->address.endpoints[c->at], &c->channel, &err) != ST_OK) {
        lose(c, err.text);
    } else if (rpc_channel_add_header(c->channel, "hasleader", "true") != ST_OK) {
        lose(c, "no memory for a header");
    } else if (c->address.user) {
        Etcdserverpb__AuthenticateRequest r = ETCDSERVERPB__AUTHENTICATE_REQUEST__INIT;
        r.name = (char *)(uintptr_t)c->address.user;
        r.password = (char *)(uintptr_t)c->address.password;
        start_call(c, &authenticate, &r.base, on_token, c);
    } else {
        connected(c);
    }
}

/* The cause is said once, when it begins: an etcd that stays away fills no log. */
static void lose(cluster_etcd *c, const char *why) {
    assert(!c->pause);
    bool was_connected = c->connected;
    log_write(c->away ? LOG_DEBUG : LOG_WARN, NULL, "registry.away", "endpoint=%s why=\"%s\"",
              c->address.endpoints[c->at], why);
    c->away = true;
    metric_set(&registry_up, 0);
    disconnect(c);
    if (was_connected && clock_now_ms() - c->connected_ms > STEADY_MS) c->pause_ms = PAUSE_FIRST_MS;
    c->at = (c->at + 1) % c->address.count;
    int delay_ms = c->pause_ms / 2 + (int)(random_number() % (uint64_t)(c->pause_ms / 2 + 1));
    c->pause_ms = c->pause_ms * 2 < PAUSE_MAX_MS ? c->pause_ms * 2 : PAUSE_MAX_MS;
    if (rpc_timer_start(c->loop, delay_ms, connect, c, &c->pause) != ST_OK)
        log_write(LOG_ERROR, NULL, "registry.abandoned", "no memory for a timer: etcd is not asked any more");
    if (was_connected) c->events->lost(c->ctx);
}

/* ---- calls -------------------------------------------------------------------------------------- */

static void on_message(rpc_stream *s, const ProtobufCMessage *message, void *user) {
    cluster_etcd *c = user;
    if (s != c->stream || c->closing) return;
    c->replied = true;
    if (c->away && c->connected) log_write(LOG_INFO, NULL, "registry.found", "endpoint=%s", c->address.endpoints[c->at]);
    if (c->connected) c->away = false;
    metric_set(&registry_up, !c->away);
    c->reply(c->reply_ctx, message);
}

static void on_end(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user) {
    (void)retry_after_ms;
    cluster_etcd *c = user;
    c->streams--;
    if (c->closing) {
        free_if_over(c);
        return;
    }
    if (s != c->stream) return;
    c->stream = NULL;
    if (st != ST_OK || !c->replied || c->endless) lose(c, *text ? text : st == ST_OK ? "it ended the call" : status_text(st));
}

static void start_call(cluster_etcd *c, const rpc_method *method, const ProtobufCMessage *request, cluster_etcd_reply reply,
                       void *ctx) {
    static const rpc_stream_events events = {.on_message = on_message, .on_end = on_end};
    rpc_stream *old = c->stream;
    c->stream = NULL;
    if (old) rpc_stream_cancel(old);
    c->reply = reply;
    c->reply_ctx = ctx;
    c->replied = false;
    c->endless = method->kind == RPC_SERVER_STREAM;
    if (rpc_stream_start(c->channel, method, request, c->endless ? 0 : CALL_MS, false, &events, c, &c->stream) != ST_OK) {
        c->stream = NULL;
        lose(c, "no memory for a call");
        return;
    }
    c->streams++;
}

void cluster_etcd_call(cluster_etcd *c, const rpc_method *method, const ProtobufCMessage *request,
                       cluster_etcd_reply reply) {
    assert(c->connected);
    start_call(c, method, request, reply, c->ctx);
}

void cluster_etcd_give_up(cluster_etcd *c, const char *why) {
    assert(c->connected);
    lose(c, why);
}

/* ---- records -------------------------------------------------------------------------------------- */

Baton__Node__V1__NodeRecord *cluster_etcd_record(const ProtobufCBinaryData *value) {
    ProtobufCMessage *m;
    status st = rpc_message_read(&baton__node__v1__node_record__descriptor, value->data, value->len, &m);
    return st == ST_OK ? (Baton__Node__V1__NodeRecord *)m : NULL;
}

void cluster_etcd_record_free(Baton__Node__V1__NodeRecord *r) {
    if (r) rpc_message_free(&r->base);
}

ProtobufCBinaryData cluster_etcd_bytes(const char *text) {
    return (ProtobufCBinaryData){.len = strlen(text), .data = (uint8_t *)(uintptr_t)text};
}
