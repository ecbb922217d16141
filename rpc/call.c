/* call.c -- one call being served, from the moment gRPC may fill it until both sides are done with it.
 *
 *   ARMED -> READING -> SERVING -> FINISHING -> freed
 *   ARMED     -> READING     [arrived]            path found; its first message is being read
 *   READING   -> SERVING     [received]           on_request ran, or will run again (bidi)
 *   any       -> FINISHING   [rpc_call_finish]    what waits is sent, then the status
 *   FINISHING -> freed       [settle]             status out (or call canceled), gRPC reported the close,
 *                                                 no operation in flight: on_free
 *   ARMED     -> freed       [arrived]            the server was closed
 * Beside them stands `canceled`: gRPC's close event said the client is gone. It drops what waits; the
 * one who serves is told once (on_cancel) and still has to finish.
 *
 * Operations in flight, at most one of each: close (from arrival to the end), receive, and one batch of
 * sends: [initial metadata] [message] [status]. Initial metadata travels with the first message, and
 * with the status if there is none: such an answer is "trailers only", which clients may retry.
 * A unary reply waits for its status, so that both leave in one batch.
 *
 * Calls are freed only at the end of the handlers of their own operations, never inside a function that
 * the serving side calls. */
#include "rpc/internal.h"
#include <assert.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>

enum {
    FRAME_BYTES = 5,             /* gRPC's prefix; counted, so that empty messages weigh something */
    TEXT_MAX = 1024,             /* status text; it travels in a header */
};

typedef struct outgoing {
    grpc_byte_buffer *buffer;
    size_t bytes;
    struct outgoing *next;
} outgoing;

typedef struct header {
    struct header *next;
    const char *value;           /* points behind this struct */
    char name[];
} header;

/* On its server's loop. Made by rpc_call_arm(), freed by settle(). */
struct rpc_call {
    rpc_server *server;
    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
    const rpc_method *method;
    void *ctx;
    const rpc_call_events *events;
    void *user;
    rpc_tag arrived, received, sent, closed;
    grpc_byte_buffer *request;   /* filled by the receive in flight */
    outgoing *head, **tail;      /* waiting to be sent */
    outgoing *flying;            /* in the send in flight */
    size_t waiting;              /* bytes of both */
    int close_canceled;          /* filled by the close in flight */
    bool receiving, sending, close_seen, canceled;
    bool drained;                /* the client has sent its last */
    bool known;                  /* on_request ran: whoever serves knows this call */
    bool full;                   /* ST_AGAIN was said and on_writable not yet */
    bool holding;                /* what is sent waits for the status */
    bool initial_sent, finished, status_sent;
    grpc_status_code code;
    grpc_slice text;
    grpc_metadata pushback;
    bool has_pushback;
    rpc_caller caller;           /* empty where calls need no credential */
    header *headers;
    char *peer;
};

static void arrived(void *owner, bool ok);
static void received(void *owner, bool ok);
static void sent(void *owner, bool ok);
static void closed(void *owner, bool ok);

static void start(rpc_call *c, const grpc_op *ops, size_t count, rpc_tag *tag) {
    grpc_call_error rc = grpc_call_start_batch(c->grpc, ops, count, tag, NULL);
    assert(rc == GRPC_CALL_OK);
}

/* ---- birth and death ---------------------------------------------------------------------------- */

status rpc_call_arm(rpc_server *s) {
    rpc_call *c = mem_zalloc(1, sizeof *c);
    if (!c) return ST_NO_MEMORY;
    c->server = s;
    c->tail = &c->head;
    c->arrived = (rpc_tag){arrived, c};
    c->received = (rpc_tag){received, c};
    c->sent = (rpc_tag){sent, c};
    c->closed = (rpc_tag){closed, c};
    c->text = grpc_empty_slice();
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->metadata);
    grpc_completion_queue *queue = rpc_loop_queue(s->loop);
    grpc_call_error rc = grpc_server_request_call(s->grpc, &c->grpc, &c->details, &c->metadata, queue,
                                                  queue, &c->arrived);
    assert(rc == GRPC_CALL_OK);
    s->armed++;
    return ST_OK;
}

static void drop(outgoing *o) {
    grpc_byte_buffer_destroy(o->buffer);
    mem_free(o);
}

static void drop_waiting(rpc_call *c) {
    for (outgoing *o; (o = c->head);) {
        c->head = o->next;
        c->waiting -= o->bytes;
        drop(o);
    }
    c->tail = &c->head;
}

static void release(rpc_call *c) {
    for (header *h; (h = c->headers);) {
        c->headers = h->next;
        mem_free(h);
    }
    gpr_free(c->peer);
    grpc_slice_unref(c->text);
    if (c->has_pushback) grpc_slice_unref(c->pushback.value);
    grpc_metadata_array_destroy(&c->metadata);
    grpc_call_details_destroy(&c->details);
    if (c->grpc) grpc_call_unref(c->grpc);
    mem_free(c);
}

/* Last thing in every handler: frees the call once nothing refers to it. */
static void settle(rpc_call *c) {
    if (!c->finished || c->sending || c->receiving || !c->close_seen) return;
    assert(!c->head && !c->flying && c->waiting == 0);
    if (c->known && c->events && c->events->on_free) c->events->on_free(c, c->user);
    rpc_server *s = c->server;
    release(c);
    s->calls--;
    rpc_server_settle(s);
}

/* ---- what gRPC reports -------------------------------------------------------------------------- */

static void receive(rpc_call *c) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->request};
    c->receiving = true;
    start(c, &op, 1, &c->received);
}

/* Before the method hears of it. Nobody without a credential learns which methods there are. */
static status admit(rpc_call *c, error *err) {
    rpc_security *security = c->server->security;
    bool guarded = rpc_security_guards(security);
    if (guarded) TRY(rpc_caller_find(security, c->grpc, c->details.method, rpc_call_header(c, "authorization"), &c->caller, err));
    if (!c->method) return error_set(err, ST_UNSUPPORTED, "no such method");
    if (!guarded) return ST_OK;
    return rpc_caller_check(security, c->grpc, &c->caller, c->method, rpc_call_header(c, "baton-tenant"), err);
}

static void arrived(void *owner, bool ok) {
    rpc_call *c = owner;
    rpc_server *s = c->server;
    s->armed--;
    if (!ok) { /* the server is closed */
        release(c);
        rpc_server_settle(s);
        return;
    }
    s->calls++;
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                  .data.recv_close_on_server.cancelled = &c->close_canceled};
    start(c, &op, 1, &c->closed);
    c->method = rpc_server_find(s, c->details.method, &c->ctx);
    error err;
    status st;
    if (!rpc_server_arm(s))
        rpc_call_finish(c, ST_NO_MEMORY, "no memory for another call", 1000);
    else if (s->calls > RPC_CALLS_MAX)
        rpc_call_finish(c, ST_AGAIN, "too many calls at once", 1000);
    else if ((st = admit(c, &err)) != ST_OK)
        rpc_call_finish(c, st, err.text, -1);
    else
        receive(c);
    settle(c);
}

/* Decodes one request and hands it to the method. */
static void deliver(rpc_call *c, grpc_byte_buffer *buffer) {
    ProtobufCMessage *m;
    status st = rpc_message_unpack(c->method->request, buffer, &m);
    if (st == ST_OK) {
        c->known = true;
        c->method->on_request(c, m, c->ctx);
        rpc_message_free(m);
    } else if (st == ST_NO_MEMORY) {
        rpc_call_finish(c, st, "no memory to read the request", 1000);
    } else {
        char text[200];
        snprintf(text, sizeof text, "request does not decode as %s (no string may have a NUL in it)", c->method->request->name);
        rpc_call_finish(c, ST_BAD_INPUT, text, -1);
    }
}

/* A bidi client is read on while it reads us. */
static void receive_next(rpc_call *c) {
    if (c->method->kind != RPC_BIDI || c->drained || c->full) return;
    if (!c->finished && !c->canceled) receive(c);
}

static void received(void *owner, bool ok) {
    rpc_call *c = owner;
    grpc_byte_buffer *buffer = c->request;
    c->receiving = false;
    c->request = NULL;
    if (buffer && !c->finished && !c->canceled) {
        deliver(c, buffer);
        receive_next(c);
    } else if (!buffer && ok && !c->finished && !c->canceled) {
        c->drained = true;
        c->known = c->known || c->method->kind == RPC_BIDI;
        if (c->method->kind == RPC_BIDI) c->method->on_request(c, NULL, c->ctx);
        else rpc_call_finish(c, ST_BAD_INPUT, "expected one request message, got none", -1);
    }
    grpc_byte_buffer_destroy(buffer);
    settle(c);
}

static void closed(void *owner, bool ok) {
    (void)ok;
    rpc_call *c = owner;
    c->close_seen = true;
    c->canceled = c->close_canceled != 0;
    if (c->canceled) {
        drop_waiting(c);
        if (!c->known) c->finished = true; /* nobody else would */
        else if (!c->finished && c->events && c->events->on_cancel) c->events->on_cancel(c, c->user);
    }
    settle(c);
}

/* ---- sending ------------------------------------------------------------------------------------ */

static void add_status(rpc_call *c, grpc_op *op) {
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status = c->code;
    op->data.send_status_from_server.status_details = &c->text;
    op->data.send_status_from_server.trailing_metadata = &c->pushback;
    op->data.send_status_from_server.trailing_metadata_count = c->has_pushback;
    c->status_sent = true;
}

/* Starts the next batch of sends if there is one to start and none is in flight. */
static void pump(rpc_call *c) {
    if (c->sending || c->canceled || c->status_sent) return;
    if (c->method && c->method->kind == RPC_UNARY && !c->finished) return;
    if (c->holding && !c->finished && !c->full) return;
    outgoing *o = c->head;
    bool last = c->finished && (!o || !o->next);
    if (!o && !last) return;
    grpc_op ops[3];
    memset(ops, 0, sizeof ops);
    size_t count = 0;
    if (!c->initial_sent) ops[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
    c->initial_sent = true;
    if (o) {
        if (!(c->head = o->next)) c->tail = &c->head;
        c->flying = o;
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        ops[count++].data.send_message.send_message = o->buffer;
    }
    if (last) add_status(c, &ops[count++]);
    c->sending = true;
    start(c, ops, count, &c->sent);
}

static void sent(void *owner, bool ok) {
    rpc_call *c = owner;
    c->sending = false;
    if (c->flying) {
        c->waiting -= c->flying->bytes;
        drop(c->flying);
        c->flying = NULL;
    }
    if (!ok) drop_waiting(c); /* the call is broken; its close event says so */
    if (ok && c->full && c->waiting <= RPC_WINDOW / 2 && !c->finished && !c->canceled) {
        c->full = false;
        if (c->events && c->events->on_writable) c->events->on_writable(c, c->user);
        if (!c->receiving) receive_next(c);
    }
    pump(c);
    settle(c);
}

status rpc_call_send(rpc_call *c, const ProtobufCMessage *reply) {
    assert(!c->finished && !c->full);
    assert(reply->descriptor == c->method->reply);
    if (c->canceled) return ST_CANCELED;
    outgoing *o = mem_zalloc(1, sizeof *o);
    if (!o) return ST_NO_MEMORY;
    if (rpc_message_pack(reply, &o->buffer) != ST_OK) {
        mem_free(o);
        return ST_NO_MEMORY;
    }
    o->bytes = grpc_byte_buffer_length(o->buffer) + FRAME_BYTES;
    *c->tail = o;
    c->tail = &o->next;
    c->waiting += o->bytes;
    c->full = c->waiting >= RPC_WINDOW;
    pump(c);
    return c->full ? ST_AGAIN : ST_OK;
}

void rpc_call_hold(rpc_call *c) { c->holding = true; }

void rpc_call_finish(rpc_call *c, status s, const char *text, int64_t retry_after_ms) {
    assert(!c->finished);
    c->finished = true;
    if (c->canceled) { /* nobody listens; an empty batch brings us to settle() from outside */
        if (!c->sending) {
            c->sending = true;
            start(c, NULL, 0, &c->sent);
        }
        return;
    }
    c->code = (grpc_status_code)status_to_grpc(s);
    if (text) c->text = grpc_slice_from_copied_buffer(text, strnlen(text, TEXT_MAX));
    if (retry_after_ms >= 0) {
        char ms[24];
        snprintf(ms, sizeof ms, "%lld", (long long)retry_after_ms);
        c->pushback.key = grpc_slice_from_static_string("grpc-retry-pushback-ms");
        c->pushback.value = grpc_slice_from_copied_string(ms);
        c->has_pushback = true;
    }
    pump(c);
}

/* ---- what the serving side asks ----------------------------------------------------------------- */

void rpc_call_watch(rpc_call *c, const rpc_call_events *events, void *user) {
    c->events = events;
    c->user = user;
}

void *rpc_call_user(const rpc_call *c) { return c->user; }
size_t rpc_call_waiting(const rpc_call *c) { return c->waiting; }
bool rpc_call_canceled(const rpc_call *c) { return c->canceled; }

const char *rpc_call_peer(const rpc_call *c) {
    if (!c->peer) ((rpc_call *)(uintptr_t)c)->peer = grpc_call_get_peer(c->grpc); /* kept for later */
    return c->peer;
}

const char *rpc_call_credential(const rpc_call *c) { return c->caller.roles ? c->caller.name : NULL; }

const char *rpc_call_tenant(const rpc_call *c) {
    const char *its = rpc_call_credential(c), *named = its ? its : rpc_call_header(c, "baton-tenant");
    return named ? named : "";
}

int64_t rpc_call_time_left_ms(const rpc_call *c) {
    gpr_timespec inf = gpr_inf_future(c->details.deadline.clock_type);
    if (gpr_time_cmp(c->details.deadline, inf) == 0) return INT64_MAX;
    gpr_timespec now = gpr_now(GPR_CLOCK_MONOTONIC);
    gpr_timespec due = gpr_convert_clock_type(c->details.deadline, GPR_CLOCK_MONOTONIC);
    gpr_timespec left = gpr_time_sub(due, now);
    return left.tv_sec * INT64_C(1000) + left.tv_nsec / 1000000;
}

/* gRPC's values end in no NUL: a value asked for is copied once and kept with the call. */
const char *rpc_call_header(const rpc_call *c, const char *name) {
    for (const header *h = c->headers; h; h = h->next)
        if (strcmp(h->name, name) == 0) return h->value;
    for (size_t i = 0; i < c->metadata.count; i++) {
        const grpc_metadata *m = &c->metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, name) != 0) continue;
        size_t key = strlen(name) + 1, bytes = GRPC_SLICE_LENGTH(m->value);
        header *h = mem_alloc(sizeof *h + key + bytes + 1);
        if (!h) return NULL;
        memcpy(h->name, name, key);
        memcpy(h->name + key, GRPC_SLICE_START_PTR(m->value), bytes);
        h->name[key + bytes] = 0;
        h->value = h->name + key;
        h->next = c->headers;
        ((rpc_call *)(uintptr_t)c)->headers = h;
        return h->value;
    }
    return NULL;
}
