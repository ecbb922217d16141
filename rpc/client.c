/* client.c -- a channel to one peer and the calls made on it.
 *
 *   STARTED -> READING <-> HELD -> ENDED
 *   STARTED/READING -> HELD   [received]           a message came while paused: it waits for resume
 *   HELD    -> READING        [rpc_stream_resume]  it is handed over and the next one is read
 *   any     -> ENDED          [settle]             status is in and no message is left: on_end, freed
 *
 * A stream has three operations in flight at most: the first batch (request out, first message in), one
 * receive after that, and the status, which gRPC reports after the last message was read or at once
 * when the call broke. Not receiving is all that a pause is: HTTP/2's window does the rest.
 * After rpc_stream_cancel() no message is handed over any more. */
#include "rpc/internal.h"
#include <arpa/inet.h>
#include <assert.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>

/* On its loop; freed when it is closed and its last stream has ended. */
struct rpc_channel {
    rpc_loop *loop;
    grpc_channel *grpc;
    rpc_security *security;
    uint64_t generation;         /* of the certificates it was made with */
    const grpc_channel_args *args;
    char target[RPC_HOST_MAX + 32];
    rpc_stream *streams;
    grpc_metadata headers[RPC_HEADERS_MAX];
    size_t headers_count;
    bool closed;
};

/* On its channel's loop, from rpc_stream_start() until on_end returned. */
struct rpc_stream {
    rpc_channel *channel;
    rpc_stream *next, **link;    /* in the channel's list */
    grpc_call *grpc;
    const rpc_method *method;
    const rpc_stream_events *events;
    void *user;
    rpc_tag received, ended;
    grpc_byte_buffer *request;   /* until the first batch is done */
    grpc_byte_buffer *message;   /* filled by the receive in flight, or held */
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice text;
    bool receiving, paused, held, status_in, handing;
    status failed;               /* what we end with ourselves; ST_OK: the peer's status counts */
};

/* ---- channel ------------------------------------------------------------------------------------ */

/* Literal addresses need no resolver; anything else is a DNS name. */
static void write_target(char *target, size_t bytes, const char *host, int port) {
    unsigned char binary[16];
    if (inet_pton(AF_INET, host, binary) == 1) snprintf(target, bytes, "ipv4:%s:%d", host, port);
    else if (strchr(host, ':')) snprintf(target, bytes, "ipv6:[%s]:%d", host, port);
    else snprintf(target, bytes, "dns:///%s:%d", host, port);
}

static void make_grpc(rpc_channel *c) {
    grpc_channel_credentials *credentials = rpc_security_channel_credentials(c->security, &c->generation);
    c->grpc = grpc_channel_create(c->target, credentials, c->args);
    grpc_channel_credentials_release(credentials);
}

static status open_channel(rpc_loop *l, rpc_security *security, const char *address, const grpc_channel_args *args, rpc_channel **out,
                           error *err) {
    char host[RPC_HOST_MAX];
    int port;
    TRY(rpc_options_address("server address", address, host, &port, err));
    TRY(rpc_security_check_dial(security, address, host, err));
    rpc_channel *c = mem_zalloc(1, sizeof *c);
    if (!c) return error_set(err, ST_NO_MEMORY, "no memory for a channel to %.100s", address);
    c->loop = l;
    c->security = security;
    c->args = args;
    write_target(c->target, sizeof c->target, host, port);
    make_grpc(c);
    rpc_security_take(security);
    rpc_loop_join(l);
    *out = c;
    return ST_OK;
}

status rpc_channel_open(rpc_loop *l, const char *address, rpc_channel **out, error *err) {
    return open_channel(l, rpc_security_current(), address, rpc_options_client(), out, err);
}

status rpc_channel_open_foreign(rpc_loop *l, const char *address, rpc_channel **out, error *err) {
    return open_channel(l, rpc_security_foreign(), address, rpc_options_foreign(), out, err);
}

/* Certificates were renewed: what runs goes on over its connection, new calls get another one. */
static void renew(rpc_channel *c) {
    if (rpc_security_generation(c->security) == c->generation) return;
    grpc_channel *before = c->grpc;
    make_grpc(c);
    grpc_channel_destroy(before);
}

status rpc_channel_add_header(rpc_channel *c, const char *name, const char *value) {
    if (c->headers_count == RPC_HEADERS_MAX) return ST_NO_MEMORY;
    grpc_metadata *h = &c->headers[c->headers_count++];
    memset(h, 0, sizeof *h);
    h->key = grpc_slice_from_copied_string(name);
    h->value = grpc_slice_from_copied_string(value);
    return ST_OK;
}

static void free_if_idle(rpc_channel *c) {
    if (!c->closed || c->streams) return;
    for (size_t i = 0; i < c->headers_count; i++) {
        grpc_slice_unref(c->headers[i].key);
        grpc_slice_unref(c->headers[i].value);
    }
    rpc_security_close(c->security);
    rpc_loop_leave(c->loop);
    mem_free(c);
}

void rpc_channel_close(rpc_channel *c) {
    assert(!c->closed);
    for (rpc_stream *s = c->streams; s; s = s->next) rpc_stream_cancel(s);
    grpc_channel_destroy(c->grpc); /* calls keep what they need of it */
    c->closed = true;
    free_if_idle(c);
}

/* ---- a stream's end ----------------------------------------------------------------------------- */

static int64_t pushback(const grpc_metadata_array *trailing) {
    for (size_t i = 0; i < trailing->count; i++) {
        const grpc_metadata *m = &trailing->metadata[i];
        if (grpc_slice_str_cmp(m->key, "grpc-retry-pushback-ms") != 0) continue;
        char text[16] = "", *end;
        size_t bytes = GRPC_SLICE_LENGTH(m->value);
        if (bytes >= sizeof text) return -1;
        memcpy(text, GRPC_SLICE_START_PTR(m->value), bytes);
        long long ms = strtoll(text, &end, 10);
        return end == text || *end || ms < 0 ? -1 : ms;
    }
    return -1;
}

static void copy_text(char *out, size_t bytes, grpc_slice text) {
    size_t n = GRPC_SLICE_LENGTH(text) < bytes - 1 ? GRPC_SLICE_LENGTH(text) : bytes - 1;
    memcpy(out, GRPC_SLICE_START_PTR(text), n);
    out[n] = 0;
}

static void end_stream(rpc_stream *s) {
    rpc_channel *c = s->channel;
    char text[1100];
    copy_text(text, sizeof text, s->text);
    status st = s->failed != ST_OK ? s->failed : status_from_grpc((int)s->code);
    s->paused = false; /* a cancel from on_end starts nothing */
    s->events->on_end(s, st, text, pushback(&s->trailing), s->user);
    /* Listed until here, so that an on_end that closes the channel does not free it under us. */
    if ((*s->link = s->next)) s->next->link = s->link;
    grpc_slice_unref(s->text);
    grpc_metadata_array_destroy(&s->initial);
    grpc_metadata_array_destroy(&s->trailing);
    grpc_call_unref(s->grpc);
    mem_free(s);
    free_if_idle(c);
}

/* Last thing in every handler. */
static void settle(rpc_stream *s) {
    if (s->status_in && !s->receiving && !s->held) end_stream(s);
}

/* Ends the stream from our side with st, unless its end is known already. */
static void break_off(rpc_stream *s, status st, const char *text) {
    if (s->failed != ST_OK) return;
    s->failed = st;
    grpc_call_cancel_with_status(s->grpc, (grpc_status_code)status_to_grpc(st), text, NULL);
}

/* ---- messages ----------------------------------------------------------------------------------- */

static void start(rpc_stream *s, const grpc_op *ops, size_t count, rpc_tag *tag) {
    grpc_call_error rc = grpc_call_start_batch(s->grpc, ops, count, tag, NULL);
    assert(rc == GRPC_CALL_OK);
}

static grpc_op receive_op(rpc_stream *s) {
    s->receiving = true;
    return (grpc_op){.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->message};
}

/* Decodes s->message and hands it over; then reads the next one. */
static void hand_over(rpc_stream *s) {
    grpc_byte_buffer *buffer = s->message;
    ProtobufCMessage *m = NULL;
    s->message = NULL;
    s->handing = true;
    status st = s->failed != ST_OK ? ST_OK : rpc_message_unpack(s->method->reply, buffer, &m);
    grpc_byte_buffer_destroy(buffer);
    if (st != ST_OK)
        break_off(s, st, st == ST_CORRUPT ? "reply does not decode" : "no memory to read the reply");
    else if (m)
        s->events->on_message(s, m, s->user);
    rpc_message_free(m);
    s->handing = false;
    if (s->paused && s->failed == ST_OK) return;
    grpc_op op = receive_op(s);
    start(s, &op, 1, &s->received);
}

static void received(void *owner, bool ok) {
    (void)ok; /* a call that broke has no message, which is what counts */
    rpc_stream *s = owner;
    s->receiving = false;
    grpc_byte_buffer_destroy(s->request);
    s->request = NULL;
    if (s->message) {
        s->held = s->paused && s->failed == ST_OK;
        if (!s->held) hand_over(s);
    }
    settle(s);
}

static void ended(void *owner, bool ok) {
    (void)ok;
    rpc_stream *s = owner;
    s->status_in = true;
    settle(s);
}

/* ---- a stream's start and what its caller may do ------------------------------------------------- */

static void start_batches(rpc_stream *s, bool wait_for_ready) {
    grpc_op ops[5], end;
    grpc_metadata headers[RPC_HEADERS_MAX + 1];
    size_t count = s->channel->headers_count;
    memcpy(headers, s->channel->headers, count * sizeof *headers);
    bool token = rpc_security_header(s->channel->security, &headers[count]);
    memset(ops, 0, sizeof ops);
    memset(&end, 0, sizeof end);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].data.send_initial_metadata.metadata = headers;
    ops[0].data.send_initial_metadata.count = count + token;
    if (wait_for_ready)
        ops[0].flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY |
                       GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = s->request;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &s->initial;
    ops[4] = receive_op(s);
    start(s, ops, 5, &s->received);
    if (token) grpc_slice_unref(headers[count].value);   /* gRPC has its own reference */
    end.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    end.data.recv_status_on_client.trailing_metadata = &s->trailing;
    end.data.recv_status_on_client.status = &s->code;
    end.data.recv_status_on_client.status_details = &s->text;
    start(s, &end, 1, &s->ended);
}

status rpc_stream_start(rpc_channel *c, const rpc_method *method, const ProtobufCMessage *request,
                        int64_t timeout_ms, bool wait_for_ready, const rpc_stream_events *events,
                        void *user, rpc_stream **out) {
    assert(!c->closed && request->descriptor == method->request);
    rpc_stream *s = mem_zalloc(1, sizeof *s);
    if (!s) return ST_NO_MEMORY;
    if (rpc_message_pack(request, &s->request) != ST_OK) {
        mem_free(s);
        return ST_NO_MEMORY;
    }
    renew(c);
    s->channel = c;
    s->method = method;
    s->events = events;
    s->user = user;
    s->received = (rpc_tag){received, s};
    s->ended = (rpc_tag){ended, s};
    grpc_metadata_array_init(&s->initial);
    grpc_metadata_array_init(&s->trailing);
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (timeout_ms > 0)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    s->grpc = grpc_channel_create_call(c->grpc, NULL, 0, rpc_loop_queue(c->loop),
                                       grpc_slice_from_static_string(method->path), NULL, deadline,
                                       NULL);
    if ((s->next = c->streams)) s->next->link = &s->next;
    s->link = &c->streams;
    c->streams = s;
    *out = s;
    start_batches(s, wait_for_ready);
    return ST_OK;
}

void rpc_stream_cancel(rpc_stream *s) {
    break_off(s, ST_CANCELED, "canceled");
    rpc_stream_resume(s); /* a held message is dropped there, and the end can come */
}

void rpc_stream_pause(rpc_stream *s) { s->paused = true; }

void rpc_stream_resume(rpc_stream *s) {
    if (!s->paused) return;
    s->paused = false;
    if (s->handing || s->receiving) return; /* hand_over() or received() goes on */
    if (s->held) { /* on_message must not run inside this call: an empty batch leads to received() */
        s->held = false;
        s->receiving = true;
        start(s, NULL, 0, &s->received);
    } else {
        grpc_op op = receive_op(s);
        start(s, &op, 1, &s->received);
    }
}
