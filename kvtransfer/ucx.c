/* ucx.c -- streams over UCX active messages: RDMA where hosts have it, else whatever UCX finds between them.
 *
 * For trusted fabrics only: nothing is encrypted, nobody is asked who he is, and UCX believes its peers (over its own
 * TCP it writes where a message tells it to). It listens on ports of its own on all devices that it uses: on lo where the
 * node listens there, else on all; UCX_NET_DEVICES and UCX_TLS say which. Library and settings: ucx_load.c.
 *
 * A worker takes milliseconds and a dozen descriptors to make, so a node has one, for all its streams: ucx_context.
 * A stream is an endpoint. What is written to it goes as messages, each with a header of 8 bytes, little endian:
 *
 *   0  u32  kind      WELCOME, BYTES, BYE
 *   4  u32  sequence  from 0 in each direction: UCX may hand messages over in another order
 *
 *   connect  makes an endpoint to the address; the stream is up when WELCOME has come
 *   accept   makes one for a request, and says WELCOME
 *   BYTES    up to EAGER_BYTES are sent at once and kept by the receiver until they are read. More are a rendezvous:
 *            the receiver fetches them into a place of its own, of which it has UCX_WINDOW; a sender has as many. So who
 *            does not read stops who writes
 *   close    UCX drops what is under way when an endpoint is closed. So BYE is said first, behind all bytes, and the
 *            endpoint closed when the peer's BYE has come, the peer is lost, or LINGER_MS are over         [part]
 *
 * Callbacks of UCX come out of ucx_turn() only and do no more than write down what happened; the turn then does it. */
#include "kvtransfer/ucx.h"
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum {
    STEPS_A_TURN = 64,
    LINGER_MS = 2000,            /* for the peer's BYE; when the node closes: */
    LAST_WORDS_MS = 200,
};

static ucx_stream *of(kvt_stream *s) { return (ucx_stream *)s; }
static ucx_context *context_of(kvt_context *c) { return (ucx_context *)c; }

/* ---- context --------------------------------------------------------------------------------- */

static void on_parted(void *request, ucs_status_t s, void *ctx) {
    ucx_stream *x = ctx;
    (void)s;
    x->pending--;
    x->context->ucx->request_free(request);
}

/* force: without waiting for the peer, and what has not left never does. */
static void close_endpoint(ucx_stream *x, bool force) {
    ucp_request_param_t how = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .flags = force ? UCP_EP_CLOSE_FLAG_FORCE : 0,
        .cb.send = on_parted,
        .user_data = x,
    };
    x->parting = true;
    if (UCS_PTR_IS_PTR(x->context->ucx->ep_close(x->ep, &how))) x->pending++;
}

/* A step on the way out of a closed stream; true: UCX knows it no more. */
static bool part(ucx_stream *x, int64_t now_ms) {
    if (!x->parting && (x->error || x->ended || now_ms >= x->linger_ms)) close_endpoint(x, x->error || !x->ended);
    return x->parting && !x->pending;
}

static int64_t ucx_turn(kvt_context *context, int64_t now_ms) {
    ucx_context *c = context_of(context);
    int64_t due_ms = INT64_MAX;
    for (int i = 0; i < STEPS_A_TURN && c->ucx->worker_progress(c->worker); i++) {}
    for (ucx_stream **at = &c->streams, *x; (x = *at);) {
        if (!x->closed) {
            kvt_ucx_settle(x);
        } else if (part(x, now_ms)) {
            *at = x->next;
            kvt_ucx_stream_destroy(x);
            continue;
        } else if (!x->parting && x->linger_ms < due_ms) {
            due_ms = x->linger_ms;
        }
        at = &x->next;
    }
    return due_ms;
}

static bool ucx_sleep(kvt_context *context) {
    ucx_context *c = context_of(context);
    return c->ucx->worker_arm(c->worker) != UCS_ERR_BUSY;
}

/* UCX listens on every device that it uses. A node that is for this machine only is that for UCX too, unless its user
 * has said otherwise. */
static ucs_status_t init(ucx_context *c, const char *listen) {
    ucp_params_t how = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP};
    kvt_address at;
    ucp_config_t *config;
    ucs_status_t s = c->ucx->config_read(NULL, NULL, &config);
    if (s != UCS_OK) return s;
    if (listen && kvt_tcp_resolve(listen, &at, NULL) == ST_OK && kvt_tcp_is_loopback(&at) && !getenv("UCX_NET_DEVICES"))
        s = c->ucx->config_modify(config, "NET_DEVICES", "lo");
    if (s == UCS_OK) s = c->ucx->init(UCP_API_MAJOR, UCP_API_MINOR, &how, config, &c->context);
    c->ucx->config_release(config);
    return s;
}

/* UCX starts a thread of its own for the first worker: it takes no signals. */
static ucs_status_t make_worker(ucx_context *c, const char *listen) {
    ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG |
                      UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
        .id = UCX_MESSAGE_ID, .cb = kvt_ucx_on_message, .arg = c, .flags = UCP_AM_FLAG_WHOLE_MSG,
    };
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    ucs_status_t s = init(c, listen);
    if (s == UCS_OK) s = c->ucx->worker_create(c->context, &worker, &c->worker);
    if (s == UCS_OK) s = c->ucx->am_handler(c->worker, &handler);
    if (s == UCS_OK) s = c->ucx->worker_get_efd(c->worker, &c->c.fd);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return s;
}

static void context_free(ucx_context *c) {
    if (c->worker) c->ucx->worker_destroy(c->worker);
    for (ucx_stream *x; (x = c->streams);) {
        c->streams = x->next;
        kvt_ucx_stream_destroy(x);
    }
    if (c->context) c->ucx->cleanup(c->context);
    mem_free(c);
}

static status ucx_context_create(const char *listen, kvt_context **out, error *err) {
    const ucx_functions *ucx;
    TRY(kvt_ucx_load(&ucx, err));
    ucx_context *c = mem_zalloc(1, sizeof *c);
    if (!c) return error_set(err, ST_NO_MEMORY, "no memory for UCX");
    c->ucx = ucx;
    ucs_status_t s = make_worker(c, listen);
    if (s != UCS_OK) {
        error_set(err, ST_IO, "UCX cannot start: %s (UCX_LOG_LEVEL=info says more)", ucx->status_text(s));
        context_free(c);
        return ST_IO;
    }
    *out = &c->c;
    return ST_OK;
}

static void ucx_context_destroy(kvt_context *context) {
    ucx_context *c = context_of(context);
    int64_t now_ms = clock_now_ms(), until_ms = now_ms + LAST_WORDS_MS;
    for (ucx_stream *x = c->streams; x; x = x->next) {
        assert(x->closed);
        if (x->linger_ms > until_ms) x->linger_ms = until_ms;
    }
    while (ucx_turn(context, now_ms), c->streams && now_ms < until_ms + LAST_WORDS_MS) {
        struct pollfd p = {.fd = c->c.fd, .events = POLLIN};
        if (ucx_sleep(context)) poll(&p, 1, 10);
        now_ms = clock_now_ms();
    }
    context_free(c);
}

/* ---- open, close ----------------------------------------------------------------------------- */

/* UCX tells a reset where nobody listens. */
static void on_lost(void *ctx, ucp_ep_h ep, ucs_status_t s) {
    ucx_stream *x = ctx;
    int why = kvt_ucx_errno(s);
    (void)ep;
    kvt_ucx_fail(x, x->connecting && why == ECONNRESET ? ECONNREFUSED : why);
}

/* How: a peer's address or its request. NULL: errno. */
static ucx_stream *open_endpoint(ucx_context *c, ucp_ep_params_t *how) {
    ucx_stream *x = mem_zalloc(1, sizeof *x);
    if (!x) {
        errno = ENOMEM;
        return NULL;
    }
    x->s.fd = -1;
    x->context = c;
    how->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    how->err_mode = UCP_ERR_HANDLING_MODE_PEER;
    how->err_handler = (ucp_err_handler_t){on_lost, x};
    ucs_status_t s = c->ucx->ep_create(c->worker, how, &x->ep);
    if (s != UCS_OK) {
        mem_free(x);
        errno = kvt_ucx_errno(s);
        return NULL;
    }
    x->next = c->streams;
    c->streams = x;
    return x;
}

static kvt_stream *ucx_connect(kvt_context *c, const kvt_address *to) {
    ucp_ep_params_t how = {
        .field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
        .sockaddr = {(const struct sockaddr *)&to->sa, to->bytes},
    };
    ucx_stream *x = open_endpoint(context_of(c), &how);
    if (!x) return NULL;
    x->connecting = true;
    return &x->s;
}

static int ucx_connected(kvt_stream *s) { return of(s)->error; }

static kvt_stream *ucx_accept(kvt_stream *listener) {
    ucx_context *c = of(listener)->context;
    errno = EAGAIN;
    if (!c->requests_count) return NULL;
    ucp_conn_request_h request = c->requests[0];
    memmove(c->requests, c->requests + 1, (size_t)--c->requests_count * sizeof request);
    ucp_ep_params_t how = {.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST, .conn_request = request};
    ucx_stream *x = open_endpoint(c, &how);
    if (!x) {
        if (errno == ENOMEM) c->ucx->listener_reject(c->listener, request);
        else errno = ECONNABORTED;
        return NULL;
    }
    kvt_ucx_post(x, &x->out[0], UCX_WELCOME, NULL, 0);
    return &x->s;
}

static void on_request(ucp_conn_request_h request, void *ctx) {
    ucx_context *c = ctx;
    if (c->requests_count < UCX_REQUESTS_MAX) c->requests[c->requests_count++] = request;
    else c->ucx->listener_reject(c->listener, request);
}

static status ucx_listen(kvt_context *context, const char *text, kvt_stream **out, char bound[KVT_ADDRESS_MAX], error *err) {
    ucx_context *c = context_of(context);
    kvt_address at;
    TRY(kvt_tcp_resolve(text, &at, err));
    ucx_stream *x = mem_zalloc(1, sizeof *x);
    if (!x) return error_set(err, ST_NO_MEMORY, "KV listen address \"%.80s\": no memory", text);
    *x = (ucx_stream){.s.fd = -1, .context = c, .listens = true};
    ucp_listener_params_t how = {
        .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {(const struct sockaddr *)&at.sa, at.bytes},
        .conn_handler = {on_request, c},
    };
    ucp_listener_attr_t is = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    assert(!c->listener);
    ucs_status_t s = c->ucx->listener_create(c->worker, &how, &c->listener);
    if (s == UCS_OK) s = c->ucx->listener_query(c->listener, &is);
    at.sa = is.sockaddr;
    if (s == UCS_OK && kvt_tcp_name(&at, bound)) {
        *out = &x->s;
        return ST_OK;
    }
    error_set(err, ST_IO, "KV listen address \"%.80s\" over ucx: %s", text, s == UCS_ERR_BUSY ? strerror(EADDRINUSE) : c->ucx->status_text(s));
    if (c->listener) c->ucx->listener_destroy(c->listener);
    c->listener = NULL;
    mem_free(x);
    return ST_IO;
}

static void close_listener(ucx_stream *x) {
    ucx_context *c = x->context;
    while (c->requests_count) c->ucx->listener_reject(c->listener, c->requests[--c->requests_count]);
    c->ucx->listener_destroy(c->listener);
    c->listener = NULL;
    mem_free(x);
}

static void ucx_close(kvt_stream *s) {
    ucx_stream *x = of(s);
    if (x->listens) {
        close_listener(x);
        return;
    }
    kvt_ucx_forget(x);
    if (x->connecting) kvt_ucx_fail(x, ECANCELED);
    if (!x->error) kvt_ucx_post(x, &x->bye, UCX_BYE, NULL, 0);
    x->closed = true;
    x->linger_ms = clock_now_ms() + LINGER_MS;
}

static status ucx_load(error *err) {
    const ucx_functions *ucx;
    return kvt_ucx_load(&ucx, err);
}

const kvt_transport kvt_ucx = {
    .name = "ucx",
    .frame_bytes = UCX_FRAME_BYTES,
    .load = ucx_load,
    .context_create = ucx_context_create,
    .context_destroy = ucx_context_destroy,
    .context_turn = ucx_turn,
    .context_sleep = ucx_sleep,
    .resolve = kvt_tcp_resolve,
    .listen = ucx_listen,
    .accept = ucx_accept,
    .connect = ucx_connect,
    .connected = ucx_connected,
    .close = ucx_close,
    .read = kvt_ucx_read,
    .write = kvt_ucx_write,
    .unsent = kvt_ucx_unsent,
    .ready = kvt_ucx_ready,
};
