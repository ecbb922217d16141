/* stub.c -- a prefill and a decode node that compute nothing: what is measured stands between a client and them.
 *
 *   D: Decode    -> Reserved; the call waits in a seat until its prompt was "read"
 *   P: Prefill   -> FirstToken, Sent, end; then D goes on: Landed, the tokens, Done, end
 *
 * Both are told of each other by the request's id, whose number is the seat. */
#include "bench/coordinator/middle.h"
#include "engine/engine.h"
#include "proto/node.pb-c.h"
#include <stdlib.h>
#include <unistd.h>

enum { SEATS = 1 << 14, TOKEN = 100, LENGTH = 2, P = 16, PAGES = 1 << 24, CAPACITY = 8192, CONTEXT = 8192 };

/* A Decode call that waits for its prefill. */
typedef struct seat {
    rpc_call *call;              /* NULL: free */
    int32_t prompt, answer;
} seat;

typedef struct role {
    stub_nodes *nodes;
    const char *name;            /* "decode" */
    rpc_server *server;
} role;

struct stub_nodes {
    rpc_loop *loop;
    const char *digest;
    role decode, prefill;
    seat seats[SEATS];
    int open;                    /* servers */
    void (*done)(void *arg);
    void *arg;
};

/* One Watch call, freed with it. */
typedef struct watcher {
    role *role;
    rpc_call *call;
    rpc_timer *timer;
    int64_t heartbeat_ms;
} watcher;

static seat *seat_of(stub_nodes *s, const char *id) { return &s->seats[strtoull(id + (*id == 'r'), NULL, 10) % SEATS]; }

/* ---- Watch ------------------------------------------------------------------------------------------------ */

static void beat(void *arg) {
    watcher *w = arg;
    Baton__Node__V1__NodeState m = BATON__NODE__V1__NODE_STATE__INIT;
    Baton__Node__V1__Pairing pairing = BATON__NODE__V1__PAIRING__INIT;
    int32_t pages[ENG_PAGE_STATES] = {[ENG_PAGE_FREE] = PAGES};
    char *stub = (char *)(uintptr_t)"stub";
    w->timer = NULL;
    pairing.protocol = 1;
    pairing.model_digest = (char *)(uintptr_t)w->role->nodes->digest;
    pairing.numerics = pairing.kv_layout = stub;
    pairing.kv_type = (char *)(uintptr_t)"f16";
    m.pairing = &pairing;
    m.id = m.role = (char *)(uintptr_t)w->role->name;
    m.pid = getpid();
    m.epoch = 1;
    m.kv_address = (char *)(uintptr_t)"127.0.0.1:1";
    m.page_tokens = P;
    m.context = CONTEXT;
    m.pages = pages;
    m.n_pages = ENG_PAGE_STATES;
    m.capacity = CAPACITY;
    m.prefill_tokens_per_s = 1e6;
    m.decode_steps_per_s = 1e4;
    if (rpc_call_send(w->call, &m.base) == ST_OK)
        (void)rpc_timer_start(w->role->nodes->loop, w->heartbeat_ms, beat, w, &w->timer);
}

static void watch_canceled(rpc_call *call, void *user) {
    watcher *w = user;
    rpc_timer_cancel(w->timer);
    w->timer = NULL;
    rpc_call_finish(call, ST_CANCELED, NULL, -1);
}

static void watch_freed(rpc_call *call, void *user) { (void)call, mem_free(user); }

static void on_watch(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    static const rpc_call_events events = {.on_cancel = watch_canceled, .on_free = watch_freed};
    watcher *w = mem_alloc(sizeof *w);
    if (!w) {
        rpc_call_finish(call, ST_NO_MEMORY, NULL, -1);
        return;
    }
    *w = (watcher){.role = ctx, .call = call, .heartbeat_ms = ((const Baton__Node__V1__WatchRequest *)message)->heartbeat_ms};
    rpc_call_watch(call, &events, w);
    beat(w);
}

/* ---- Decode ----------------------------------------------------------------------------------------------- */

static void decode_canceled(rpc_call *call, void *user) {
    ((seat *)user)->call = NULL;
    rpc_call_finish(call, ST_CANCELED, NULL, -1);
}

static void on_decode(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    static const rpc_call_events events = {.on_cancel = decode_canceled};
    const Baton__Node__V1__DecodeRequest *m = (const Baton__Node__V1__DecodeRequest *)message;
    stub_nodes *s = ((role *)ctx)->nodes;
    seat *at = seat_of(s, m->request_id);
    if (at->call || m->max_tokens < 1 || m->max_tokens > MIDDLE_ANSWER_MAX || m->prompt_count < 2) {
        rpc_call_finish(call, ST_BAD_INPUT, "stub: this seat is taken, or not 2 prompt tokens or more and 1 to 256 answer tokens", -1);
        return;
    }
    *at = (seat){.call = call, .prompt = m->prompt_count, .answer = m->max_tokens};
    rpc_call_watch(call, &events, at);
    Baton__Node__V1__Reserved reserved = BATON__NODE__V1__RESERVED__INIT;
    Baton__Node__V1__DecodeEvent out = BATON__NODE__V1__DECODE_EVENT__INIT;
    reserved.ticket = (uint64_t)(at - s->seats) + 1;
    reserved.kv_address = (char *)(uintptr_t)"127.0.0.1:1";
    reserved.wanted_tokens = m->prompt_count - 1;
    out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_RESERVED;
    out.reserved = &reserved;
    (void)rpc_call_send(call, &out.base);
}

static void send_token(rpc_call *call, int32_t index) {
    Baton__Node__V1__Token token = BATON__NODE__V1__TOKEN__INIT, *tokens[] = {&token};
    Baton__Node__V1__Tokens m = BATON__NODE__V1__TOKENS__INIT;
    Baton__Node__V1__DecodeEvent out = BATON__NODE__V1__DECODE_EVENT__INIT;
    token.index = index;
    token.token = TOKEN;
    m.n_tokens = 1;
    m.tokens = tokens;
    out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_TOKENS;
    out.tokens = &m;
    (void)rpc_call_send(call, &out.base);
}

/* The rest of an answer: its prompt was read. Far below the call's window. */
static void go_on(seat *at) {
    rpc_call *call = at->call;
    Baton__Node__V1__Landed landed = BATON__NODE__V1__LANDED__INIT;
    Baton__Node__V1__Done done = BATON__NODE__V1__DONE__INIT;
    Baton__Node__V1__DecodeEvent out = BATON__NODE__V1__DECODE_EVENT__INIT;
    at->call = NULL;
    landed.tokens = at->prompt - 1;
    out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_LANDED;
    out.landed = &landed;
    (void)rpc_call_send(call, &out.base);
    for (int32_t i = 0; i < at->answer; i++) send_token(call, at->prompt + i);
    done.reason = LENGTH;
    out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_DONE;
    out.done = &done;
    (void)rpc_call_send(call, &out.base);
    rpc_call_finish(call, ST_OK, NULL, -1);
}

/* ---- Prefill ---------------------------------------------------------------------------------------------- */

static void prefill(stub_nodes *s, rpc_call *call, const char *id) {
    seat *at = seat_of(s, id);
    if (!at->call) {
        rpc_call_finish(call, ST_PEER_LOST, "stub: its Decode call is gone", -1);
        return;
    }
    Baton__Node__V1__Token token = BATON__NODE__V1__TOKEN__INIT;
    Baton__Node__V1__FirstToken first = BATON__NODE__V1__FIRST_TOKEN__INIT;
    Baton__Node__V1__Sent sent = BATON__NODE__V1__SENT__INIT;
    Baton__Node__V1__PrefillEvent out = BATON__NODE__V1__PREFILL_EVENT__INIT;
    token.index = at->prompt;
    token.token = TOKEN;
    first.token = &token;
    out.event_case = BATON__NODE__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    out.first_token = &first;
    (void)rpc_call_send(call, &out.base);
    sent.bytes = 1000;
    out.event_case = BATON__NODE__V1__PREFILL_EVENT__EVENT_SENT;
    out.sent = &sent;
    (void)rpc_call_send(call, &out.base);
    rpc_call_finish(call, ST_OK, NULL, -1);
    go_on(at);
}

static void on_prefill(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    prefill(((role *)ctx)->nodes, call, ((const Baton__Node__V1__PrefillRequest *)message)->request_id);
}

static void on_bare_prefill(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    prefill(((role *)ctx)->nodes, call, ((const Baton__Node__V1__DecodeRequest *)message)->request_id);
}

/* ---- open, close ------------------------------------------------------------------------------------------ */

const rpc_method stub_prefill_method = {"/bench.Stub/Prefill", RPC_SERVER_STREAM, &baton__node__v1__decode_request__descriptor,
                                        &baton__node__v1__prefill_event__descriptor, on_bare_prefill};

static const rpc_method methods[] = {
    {"/baton.node.v1.Node/Watch", RPC_SERVER_STREAM, &baton__node__v1__watch_request__descriptor,
     &baton__node__v1__node_state__descriptor, on_watch},
    {"/baton.node.v1.Node/Decode", RPC_SERVER_STREAM, &baton__node__v1__decode_request__descriptor,
     &baton__node__v1__decode_event__descriptor, on_decode},
    {"/baton.node.v1.Node/Prefill", RPC_SERVER_STREAM, &baton__node__v1__prefill_request__descriptor,
     &baton__node__v1__prefill_event__descriptor, on_prefill},
};

static status open_role(stub_nodes *s, role *r, const char *name, error *err) {
    *r = (role){.nodes = s, .name = name};
    TRY(rpc_server_open(s->loop, "127.0.0.1:0", methods, sizeof methods / sizeof *methods, r, &r->server, err));
    s->open++;
    TRY(rpc_server_add(r->server, &stub_prefill_method, 1, r));
    rpc_server_start(r->server);
    return ST_OK;
}

status stub_nodes_open(rpc_loop *l, const char *digest, stub_nodes **out, error *err) {
    stub_nodes *s = mem_zalloc(1, sizeof *s);
    if (!s) return error_set(err, ST_NO_MEMORY, "no memory for stub nodes");
    s->loop = l;
    s->digest = digest;
    status st = open_role(s, &s->decode, "decode", err);
    if (st == ST_OK) st = open_role(s, &s->prefill, "prefill", err);
    if (st != ST_OK) {
        stub_nodes_close(s, NULL, NULL);
        return st;
    }
    *out = s;
    return ST_OK;
}

const char *stub_nodes_decode(const stub_nodes *s) { return rpc_server_address(s->decode.server); }
const char *stub_nodes_prefill(const stub_nodes *s) { return rpc_server_address(s->prefill.server); }

static void closed(void *arg) {
    stub_nodes *s = arg;
    if (--s->open > 0) return;
    if (s->done) s->done(s->arg);
    mem_free(s);
}

void stub_nodes_close(stub_nodes *s, void (*done)(void *arg), void *arg) {
    s->done = done;
    s->arg = arg;
    s->open++;                                   /* ours, until both were told */
    if (s->decode.server) rpc_server_close(s->decode.server, closed, s);
    if (s->prefill.server) rpc_server_close(s->prefill.server, closed, s);
    closed(s);
}
