/* relay.c -- a relay on gRPC's C core that forwards messages by their number, as bytes: what three streams a request cost at
 * least. The same options of channel and server as rpc/ has (rpc/internal.h), one thread, one completion queue.
 *
 *   a call arrives     its one message goes to D as it is                                     [asked]
 *   D's message 0      (Reserved) the same bytes go to P                                       [received]
 *   P's message 0      (FirstToken) to the client; P's others are dropped
 *   D's messages 1, 2  (Landed, the first token again) are dropped, all others go to the client
 *   both have ended    the call gets its status                                                [settle]
 *
 * What is in flight to the client is one message; a side reads its next one when the last has been sent. */
#include "bench/coordinator/middle.h"
#include "rpc/internal.h"
#include <assert.h>
#include <grpc/grpc_security.h>
#include <stdlib.h>
#include <string.h>

enum { ARMED = 64, D = 0, PRE = 1 };

typedef struct relayed relayed;

/* A stream to a node. */
typedef struct side {
    relayed *owner;
    grpc_call *grpc;             /* NULL: not started */
    grpc_byte_buffer *request;   /* what was sent to it */
    grpc_byte_buffer *message;   /* being received, or waiting to be sent on */
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice text;
    rpc_tag received, ended;
    int seen;
    bool held, over;
} side;

struct relayed {
    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *request;
    side sides[2];
    side *flying;                /* whose message is being sent */
    rpc_tag arrived, asked, sent, closed;
    int canceled;
    int batches;                 /* in flight */
    bool opened, finished;
};

static grpc_completion_queue *queue;
static grpc_server *server;
static grpc_channel *channels[2];
static grpc_slice paths[2];

static void batch(relayed *r, grpc_call *call, const grpc_op *ops, size_t count, rpc_tag *tag) {
    grpc_call_error rc = grpc_call_start_batch(call, ops, count, tag, NULL);
    assert(rc == GRPC_CALL_OK);
    r->batches++;
}

/* ---- to the client ---------------------------------------------------------------------------------------- */

static void send_on(relayed *r, side *s) {
    grpc_op ops[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_SEND_MESSAGE}};
    ops[1].data.send_message.send_message = s->message;
    r->flying = s;
    batch(r, r->grpc, r->opened ? ops + 1 : ops, r->opened ? 1 : 2, &r->sent);
    r->opened = true;
}

static void finish(relayed *r) {
    grpc_op ops[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_SEND_STATUS_FROM_SERVER}};
    ops[1].data.send_status_from_server.status = r->sides[D].code;
    ops[1].data.send_status_from_server.status_details = &r->sides[D].text;
    r->finished = true;
    batch(r, r->grpc, r->opened ? ops + 1 : ops, r->opened ? 1 : 2, &r->sent);
}

static void release(relayed *r) {
    for (int i = 0; i < 2; i++) {
        side *s = &r->sides[i];
        if (!s->grpc) continue;
        grpc_byte_buffer_destroy(s->request);
        grpc_slice_unref(s->text);
        grpc_metadata_array_destroy(&s->initial);
        grpc_metadata_array_destroy(&s->trailing);
        grpc_call_unref(s->grpc);
    }
    grpc_byte_buffer_destroy(r->request);
    grpc_metadata_array_destroy(&r->metadata);
    grpc_call_details_destroy(&r->details);
    grpc_call_unref(r->grpc);
    free(r);
}

/* Last thing in every handler. What is in flight besides the close is some side's. */
static void settle(relayed *r) {
    const side *d = &r->sides[D], *p = &r->sides[PRE];
    bool over = (d->over || !d->grpc) && (p->over || !p->grpc) && !d->held && !p->held && !r->flying;
    if (r->batches == 0) release(r);
    else if (over && !r->finished && r->batches == 1) finish(r);
}

/* ---- from the nodes --------------------------------------------------------------------------------------- */

static void receive(side *s) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->message};
    batch(s->owner, s->grpc, &op, 1, &s->received);
}

static void start(relayed *r, int which) {
    side *s = &r->sides[which];
    grpc_op ops[5] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_SEND_MESSAGE}, {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA}, {.op = GRPC_OP_RECV_MESSAGE}},
            end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    s->grpc = grpc_channel_create_call(channels[which], NULL, 0, queue, paths[which], NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_metadata_array_init(&s->initial);
    grpc_metadata_array_init(&s->trailing);
    s->request = grpc_byte_buffer_copy(r->request);        /* of its slices' references; sending empties it */
    ops[1].data.send_message.send_message = s->request;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &s->initial;
    ops[4].data.recv_message.recv_message = &s->message;
    end.data.recv_status_on_client.trailing_metadata = &s->trailing;
    end.data.recv_status_on_client.status = &s->code;
    end.data.recv_status_on_client.status_details = &s->text;
    batch(r, s->grpc, ops, 5, &s->received);
    batch(r, s->grpc, &end, 1, &s->ended);
}

static bool is_for_client(const relayed *r, const side *s, int number) {
    return s == &r->sides[PRE] ? number == 0 : number > 2;
}

static void received(void *owner, bool ok) {
    (void)ok;
    side *s = owner;
    relayed *r = s->owner;
    r->batches--;
    if (s->message) {
        int number = s->seen++;
        if (s == &r->sides[D] && number == 0) start(r, PRE);
        if (!is_for_client(r, s, number)) {
            grpc_byte_buffer_destroy(s->message);
            receive(s);
        } else if (r->flying) {
            s->held = true;
        } else {
            send_on(r, s);
        }
    }
    settle(r);
}

static void ended(void *owner, bool ok) {
    (void)ok;
    side *s = owner;
    s->owner->batches--;
    s->over = true;
    settle(s->owner);
}

/* ---- from the client -------------------------------------------------------------------------------------- */

static void sent(void *owner, bool ok) {
    (void)ok;
    relayed *r = owner;
    side *s = r->flying;
    r->batches--;
    r->flying = NULL;
    if (s) {
        grpc_byte_buffer_destroy(s->message);
        receive(s);
        for (int i = 0; i < 2 && !r->flying; i++) {
            if (!r->sides[i].held) continue;
            r->sides[i].held = false;
            send_on(r, &r->sides[i]);
        }
    }
    settle(r);
}

static void asked(void *owner, bool ok) {
    (void)ok;
    relayed *r = owner;
    r->batches--;
    if (r->request) start(r, D);
    settle(r);
}

static void closed(void *owner, bool ok) {
    (void)ok;
    relayed *r = owner;
    r->batches--;
    for (int i = 0; i < 2 && r->canceled; i++)
        if (r->sides[i].grpc) grpc_call_cancel(r->sides[i].grpc, NULL);
    settle(r);
}

static void arm(void);

static void arrived(void *owner, bool ok) {
    relayed *r = owner;
    if (!ok) abort();                            /* the server is never shut down */
    arm();
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER, .data.recv_close_on_server.cancelled = &r->canceled};
    grpc_op ask = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &r->request};
    batch(r, r->grpc, &close, 1, &r->closed);
    batch(r, r->grpc, &ask, 1, &r->asked);
}

static void arm(void) {
    relayed *r = calloc(1, sizeof *r);
    if (!r) abort();
    r->arrived = (rpc_tag){arrived, r};
    r->asked = (rpc_tag){asked, r};
    r->sent = (rpc_tag){sent, r};
    r->closed = (rpc_tag){closed, r};
    for (int i = 0; i < 2; i++) {
        side *s = &r->sides[i];
        *s = (side){.owner = r, .received = {received, s}, .ended = {ended, s}};
    }
    grpc_call_details_init(&r->details);
    grpc_metadata_array_init(&r->metadata);
    grpc_call_error rc = grpc_server_request_call(server, &r->grpc, &r->details, &r->metadata, queue, queue, &r->arrived);
    assert(rc == GRPC_CALL_OK);
}

/* ---- the process ------------------------------------------------------------------------------------------ */

static grpc_channel *open_channel(const char *address) {
    char target[100];
    snprintf(target, sizeof target, "ipv4:%s", address);
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    grpc_channel *c = grpc_channel_create(target, credentials, rpc_options_client());
    grpc_channel_credentials_release(credentials);
    return c;
}

status relay_run(const char *decode, const char *prefill, error *err) {
    rpc_options_quiet();
    grpc_init();
    queue = grpc_completion_queue_create_for_next(NULL);
    server = grpc_server_create(rpc_options_server(), NULL);
    grpc_server_register_completion_queue(server, queue, NULL);
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(server, "127.0.0.1:0", credentials);
    grpc_server_credentials_release(credentials);
    if (port <= 0) return error_set(err, ST_IO, "the relay has no port");
    channels[D] = open_channel(decode);
    channels[PRE] = open_channel(prefill);
    paths[D] = grpc_slice_from_static_string("/baton.node.v1.Node/Decode");
    paths[PRE] = grpc_slice_from_static_string(stub_prefill_method.path);
    grpc_server_start(server);
    for (int i = 0; i < ARMED; i++) arm();
    printf("ready grpc=127.0.0.1:%d\n", port);
    fflush(stdout);
    for (;;) {
        grpc_event e = grpc_completion_queue_next(queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (e.type != GRPC_OP_COMPLETE) continue;
        rpc_tag *tag = e.tag;
        tag->fn(tag->owner, e.success != 0);
    }
}
