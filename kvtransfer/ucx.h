/* ucx.h -- what the files of the transport over UCX share. Internal to kvtransfer/.
 *
 *   ucx.c         the transport: contexts, endpoints, their birth and end
 *   ucx_stream.c  bytes: messages out, messages in
 *   ucx_load.c    the library
 *
 * The executable is not linked to UCX, so that it starts on machines without it; the library is opened by the first
 * node that is told to use it. */
#ifndef KVTRANSFER_UCX_H
#define KVTRANSFER_UCX_H

#include "kvtransfer/internal.h"
#include <ucp/api/ucp.h>

#define UCX_FUNCTIONS(X) \
    X(config_read, ucp_config_read) \
    X(config_modify, ucp_config_modify) \
    X(config_release, ucp_config_release) \
    X(init, ucp_init_version) \
    X(cleanup, ucp_cleanup) \
    X(worker_create, ucp_worker_create) \
    X(worker_destroy, ucp_worker_destroy) \
    X(worker_progress, ucp_worker_progress) \
    X(worker_get_efd, ucp_worker_get_efd) \
    X(worker_arm, ucp_worker_arm) \
    X(listener_create, ucp_listener_create) \
    X(listener_query, ucp_listener_query) \
    X(listener_reject, ucp_listener_reject) \
    X(listener_destroy, ucp_listener_destroy) \
    X(ep_create, ucp_ep_create) \
    X(ep_close, ucp_ep_close_nbx) \
    X(am_handler, ucp_worker_set_am_recv_handler) \
    X(am_send, ucp_am_send_nbx) \
    X(am_receive, ucp_am_recv_data_nbx) \
    X(am_release, ucp_am_data_release) \
    X(request_free, ucp_request_free) \
    X(status_text, ucs_status_string)

#define X(field, function) __typeof__(function) *field;
typedef struct ucx_functions { UCX_FUNCTIONS(X) } ucx_functions;
#undef X

/* Opened once, never closed. ST_UNSUPPORTED names the library, or the function that it does not have. */
status kvt_ucx_load(const ucx_functions **out, error *err);

enum {
    UCX_MESSAGE_ID = 1,          /* of all our active messages */
    UCX_FRAME_BYTES = 256 << 10,
    UCX_MESSAGE_BYTES = UCX_FRAME_BYTES + KVT_FRAME_BYTES,     /* a frame leaves as one message */
    UCX_WINDOW = 4,              /* messages under way: out of a stream, and by rendezvous into it */
    UCX_REQUESTS_MAX = 128,      /* that wait to be accepted */
};

typedef enum ucx_kind { UCX_WELCOME = 1, UCX_BYTES = 2, UCX_BYE = 3 } ucx_kind;

typedef struct ucx_header {
    uint32_t kind, sequence;
} ucx_header;

typedef struct ucx_stream ucx_stream;

/* A message that came, from ucx_turn() until it has been read. */
typedef struct ucx_message {
    struct ucx_message *next;        /* by sequence */
    ucx_stream *stream;
    ucx_kind kind;
    uint32_t sequence;
    void *descriptor;            /* a rendezvous that was not begun; else NULL */
    bool here;                   /* all bytes are */
    int place;                   /* of a rendezvous, in stream->in_room; -1: none */
    unsigned char *data;
    size_t bytes, read;
} ucx_message;

/* A message on its way out; header and bytes are UCX's until it has left. */
typedef struct ucx_outgoing {
    ucx_stream *stream;
    ucx_header head;
    size_t bytes;
    bool busy;
} ucx_outgoing;

typedef struct ucx_context ucx_context;

/* From ucx_connect(), ucx_accept() or ucx_listen() on; after ucx_close() the context's, until UCX has let go of it. */
struct ucx_stream {
    kvt_stream s;
    ucx_context *context;
    bool listens;                /* the context's listener, and nothing of the following */
    ucx_stream *next;            /* context->streams */
    ucp_ep_h ep;
    bool connecting, closed, parting;
    bool ended;                  /* the peer's BYE is all that is left, or nobody reads any more */
    int error;                   /* errno; 0: none */
    int pending;                 /* requests that UCX has not completed */
    int64_t linger_ms;           /* closed: until when */
    uint32_t sent, taken;        /* next sequence out, in */
    ucx_message *in, *in_last;   /* in_last: if there is any */
    size_t eager_held;
    bool in_busy[UCX_WINDOW];
    unsigned char *in_room, *out_room;    /* UCX_WINDOW messages each, made for the first */
    ucx_outgoing out[UCX_WINDOW], bye;
};

struct ucx_context {
    kvt_context c;
    const ucx_functions *ucx;
    ucp_context_h context;
    ucp_worker_h worker;
    ucx_stream *streams;
    ucp_listener_h listener;
    ucp_conn_request_h requests[UCX_REQUESTS_MAX];
    int requests_count;
};

/* Errors are errno's; the first is the stream's. */
int kvt_ucx_errno(ucs_status_t s);
void kvt_ucx_fail(ucx_stream *x, int why);

/* ---- ucx_stream.c ---------------------------------------------------------------------------- */

void kvt_ucx_post(ucx_stream *x, ucx_outgoing *o, ucx_kind kind, const void *data, size_t bytes);
ucs_status_t kvt_ucx_on_message(void *context, const void *head, size_t head_bytes, void *data, size_t bytes,
                                const ucp_am_recv_param_t *param);
void kvt_ucx_settle(ucx_stream *x);       /* does what callbacks have written down since the last turn */
void kvt_ucx_forget(ucx_stream *x);       /* what has come, but what UCX is still fetching */
void kvt_ucx_stream_destroy(ucx_stream *x);
ssize_t kvt_ucx_read(kvt_stream *s, void *out, size_t bytes);
ssize_t kvt_ucx_write(kvt_stream *s, const struct iovec *iov, int count);
int kvt_ucx_unsent(kvt_stream *s);
uint32_t kvt_ucx_ready(kvt_stream *s, uint32_t want);

#endif
