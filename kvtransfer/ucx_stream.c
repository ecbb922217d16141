/* ucx_stream.c -- bytes as active messages: cut and posted on one side, put in order and read on the other.
 *
 * The format stands at the head of ucx.c. Callbacks of UCX come out of the context's turn only and do no more than write
 * down what happened. */
#include "kvtransfer/ucx.h"
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

enum {
    EAGER_BYTES = 16 << 10,      /* more are a rendezvous */
    EAGER_HELD_MAX = 8 << 20,    /* unread on one stream, with their bookkeeping */
};

static ucx_stream *of(kvt_stream *s) { return (ucx_stream *)s; }

int kvt_ucx_errno(ucs_status_t s) {
    switch (s) {
    case UCS_ERR_REJECTED:
    case UCS_ERR_UNREACHABLE: return ECONNREFUSED;
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_CONNECTION_RESET: return ECONNRESET;
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_TIMED_OUT: return ETIMEDOUT;
    case UCS_ERR_NO_MEMORY: return ENOMEM;
    case UCS_ERR_BUSY: return EADDRINUSE;
    default: return EIO;
    }
}

/* The first error is the stream's. */
void kvt_ucx_fail(ucx_stream *x, int why) {
    if (!x->error) x->error = why;
}

/* ---- out ------------------------------------------------------------------------------------- */

static void on_sent(void *request, ucs_status_t s, void *ctx) {
    ucx_outgoing *o = ctx;
    o->busy = false;
    o->stream->pending--;
    if (s != UCS_OK) kvt_ucx_fail(o->stream, kvt_ucx_errno(s));
    o->stream->context->ucx->request_free(request);
}

void kvt_ucx_post(ucx_stream *x, ucx_outgoing *o, ucx_kind kind, const void *data, size_t bytes) {
    ucp_request_param_t how = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .flags = UCP_AM_SEND_FLAG_REPLY | (bytes > EAGER_BYTES ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER),
        .cb.send = on_sent,
        .user_data = o,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    *o = (ucx_outgoing){.stream = x, .head = {htole32(kind), htole32(x->sent++)}, .bytes = bytes, .busy = true};
    ucs_status_ptr_t request = x->context->ucx->am_send(x->ep, UCX_MESSAGE_ID, &o->head, sizeof o->head, data, bytes, &how);
    if (UCS_PTR_IS_PTR(request)) {
        x->pending++;
        return;
    }
    o->busy = false;
    if (UCS_PTR_IS_ERR(request)) kvt_ucx_fail(x, kvt_ucx_errno(UCS_PTR_STATUS(request)));
}

static ucx_outgoing *free_outgoing(ucx_stream *x) {
    for (int i = 0; i < UCX_WINDOW; i++)
        if (!x->out[i].busy) return &x->out[i];
    return NULL;
}

/* As much as fits is copied into one message. */
static size_t gather(unsigned char *at, const struct iovec *iov, int count) {
    size_t done = 0;
    for (int i = 0; i < count && done < UCX_MESSAGE_BYTES; i++) {
        size_t n = iov[i].iov_len < UCX_MESSAGE_BYTES - done ? iov[i].iov_len : UCX_MESSAGE_BYTES - done;
        memcpy(at + done, iov[i].iov_base, n);
        done += n;
    }
    return done;
}

ssize_t kvt_ucx_write(kvt_stream *s, const struct iovec *iov, int count) {
    ucx_stream *x = of(s);
    ucx_outgoing *o = free_outgoing(x);
    errno = x->error ? x->error : x->ended ? EPIPE : EAGAIN;
    if (errno != EAGAIN || x->connecting || !o) return -1;
    if (!x->out_room) x->out_room = mem_alloc((size_t)UCX_WINDOW * UCX_MESSAGE_BYTES);
    if (!x->out_room) {
        errno = ENOMEM;
        return -1;
    }
    unsigned char *at = x->out_room + (o - x->out) * UCX_MESSAGE_BYTES;
    size_t bytes = gather(at, iov, count);
    kvt_ucx_post(x, o, UCX_BYTES, at, bytes);
    return (ssize_t)bytes;
}

int kvt_ucx_unsent(kvt_stream *s) {
    size_t bytes = 0;
    for (int i = 0; i < UCX_WINDOW; i++) bytes += of(s)->out[i].busy ? of(s)->out[i].bytes : 0;
    return (int)bytes;
}

/* ---- in -------------------------------------------------------------------------------------- */

static ucx_stream *stream_of(const ucx_context *c, const ucp_am_recv_param_t *from) {
    if (!(from->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP)) return NULL;
    ucx_stream *x = c->streams;
    while (x && x->ep != from->reply_ep) x = x->next;
    return x;
}

/* Into its place in the order, at the end as a rule. false: that one has been there. */
static bool keep(ucx_stream *x, ucx_message *m) {
    bool last = x->in && (int32_t)(x->in_last->sequence - m->sequence) < 0;
    ucx_message **at = last ? &x->in_last->next : &x->in;
    if ((int32_t)(m->sequence - x->taken) < 0) return false;
    while (*at && (int32_t)((*at)->sequence - m->sequence) < 0) at = &(*at)->next;
    if (*at && (*at)->sequence == m->sequence) return false;
    m->next = *at;
    *at = m;
    if (!m->next) x->in_last = m;
    return true;
}

static bool sound(const ucx_stream *x, size_t head_bytes, ucx_kind kind, size_t bytes, bool rendezvous) {
    if (head_bytes != sizeof(ucx_header)) return false;
    if (kind != UCX_BYTES) return !bytes && (kind == UCX_WELCOME ? x->connecting : kind == UCX_BYE);
    return bytes && bytes <= UCX_MESSAGE_BYTES && (rendezvous || x->eager_held + sizeof(ucx_message) + bytes <= EAGER_HELD_MAX);
}

ucs_status_t kvt_ucx_on_message(void *ctx, const void *head, size_t head_bytes, void *data, size_t bytes,
                               const ucp_am_recv_param_t *param) {
    ucx_stream *x = stream_of(ctx, param);
    bool rendezvous = param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV;
    ucx_header h = {0};
    if (!x || x->error) return UCS_OK; /* dropped, here and below */
    if (head_bytes == sizeof h) memcpy(&h, head, sizeof h);
    ucx_kind kind = (ucx_kind)le32toh(h.kind);
    if (!sound(x, head_bytes, kind, bytes, rendezvous)) {
        kvt_ucx_fail(x, EPROTO);
        return UCS_OK;
    }
    if (x->closed) {
        x->ended |= kind == UCX_BYE;
        return UCS_OK;
    }
    ucx_message *m = mem_alloc(sizeof *m + (rendezvous ? 0 : bytes));
    if (!m) {
        kvt_ucx_fail(x, ENOMEM);
        return UCS_OK;
    }
    *m = (ucx_message){.stream = x, .kind = kind, .sequence = le32toh(h.sequence), .place = -1, .bytes = bytes};
    if (!keep(x, m)) {
        mem_free(m);
        kvt_ucx_fail(x, EPROTO);
        return UCS_OK;
    }
    if (rendezvous) {
        m->descriptor = data;
        return UCS_INPROGRESS; /* the descriptor is ours: ucx_turn() begins it */
    }
    m->data = (unsigned char *)(m + 1);
    m->here = true;
    x->eager_held += sizeof *m + bytes;
    if (bytes) memcpy(m->data, data, bytes);
    return UCS_OK;
}

static void on_fetched(void *request, ucs_status_t s, size_t bytes, void *ctx) {
    ucx_message *m = ctx;
    (void)bytes;
    m->here = s == UCS_OK;
    m->stream->pending--;
    if (s != UCS_OK) kvt_ucx_fail(m->stream, kvt_ucx_errno(s));
    m->stream->context->ucx->request_free(request);
}

/* Begins a rendezvous; m waits on while no place is free. */
static void fetch(ucx_stream *x, ucx_message *m) {
    int place = 0;
    while (place < UCX_WINDOW && x->in_busy[place]) place++;
    if (place == UCX_WINDOW) return;
    if (!x->in_room) x->in_room = mem_alloc((size_t)UCX_WINDOW * UCX_MESSAGE_BYTES);
    if (!x->in_room) {
        kvt_ucx_fail(x, ENOMEM);
        return;
    }
    ucp_request_param_t how = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.recv_am = on_fetched,
        .user_data = m,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    m->data = x->in_room + (size_t)place * UCX_MESSAGE_BYTES;
    m->place = place;
    x->in_busy[place] = true;
    ucs_status_ptr_t request = x->context->ucx->am_receive(x->context->worker, m->descriptor, m->data, m->bytes, &how);
    m->descriptor = NULL;
    m->here = request == NULL;
    if (UCS_PTR_IS_PTR(request)) x->pending++;
    else if (UCS_PTR_IS_ERR(request)) kvt_ucx_fail(x, kvt_ucx_errno(UCS_PTR_STATUS(request)));
}

static void drop(ucx_stream *x, ucx_message *m) {
    if (m->descriptor) x->context->ucx->am_release(x->context->worker, m->descriptor);
    if (m->place >= 0) x->in_busy[m->place] = false;
    else if (m->here) x->eager_held -= sizeof *m + m->bytes;
    mem_free(m);
}

/* The first message, if it is the next of the stream. */
static ucx_message *next_in(const ucx_stream *x) {
    return x->in && x->in->sequence == x->taken ? x->in : NULL;
}

static void take(ucx_stream *x) {
    ucx_message *m = x->in;
    x->in = m->next;
    x->taken++;
    drop(x, m);
}

/* What has come since the last turn. */
void kvt_ucx_settle(ucx_stream *x) {
    for (ucx_message *m = x->in; m && !x->error; m = m->next)
        if (m->descriptor) fetch(x, m);
    for (ucx_message *m; (m = next_in(x)) && m->kind != UCX_BYTES; take(x)) {
        if (m->kind == UCX_WELCOME) x->connecting = false;
        else x->ended = true;
    }
}

ssize_t kvt_ucx_read(kvt_stream *s, void *out, size_t bytes) {
    ucx_stream *x = of(s);
    ucx_message *m = next_in(x);
    if (m && m->kind == UCX_BYTES && m->here) {
        if (bytes > m->bytes - m->read) bytes = m->bytes - m->read;
        memcpy(out, m->data + m->read, bytes);
        m->read += bytes;
        if (m->read == m->bytes) {
            take(x);
            kvt_ucx_settle(x);
        }
        return (ssize_t)bytes;
    }
    if (x->ended) return 0;
    errno = x->error ? x->error : EAGAIN;
    return -1;
}

/* A listener: requests wait. A stream that is on its way to its peer: only that it failed. */
uint32_t kvt_ucx_ready(kvt_stream *s, uint32_t want) {
    ucx_stream *x = of(s);
    if (x->listens) return x->context->requests_count ? want & EPOLLIN : 0;
    if (x->error) return want;
    if (x->connecting) return 0;
    const ucx_message *m = next_in(x);
    uint32_t events = x->ended || (m && m->here) ? EPOLLIN : 0;
    if (x->ended || free_outgoing(x)) events |= EPOLLOUT;
    return events & want;
}

/* The rest goes with the stream. */
void kvt_ucx_forget(ucx_stream *x) {
    for (ucx_message **at = &x->in, *m; (m = *at);) {
        if (m->place >= 0 && !m->here) {
            at = &m->next;
            continue;
        }
        *at = m->next;
        x->ended |= m->kind == UCX_BYE;
        drop(x, m);
    }
}

void kvt_ucx_stream_destroy(ucx_stream *x) {
    for (ucx_message *m; (m = x->in); drop(x, m)) x->in = m->next;
    mem_free(x->in_room);
    mem_free(x->out_room);
    mem_free(x);
}
