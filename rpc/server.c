/* server.c -- a listening port, its table of methods, and the calls waiting to arrive.
 *
 *   open -> started -> closing -> freed
 *   open    -> started  [rpc_server_start]   ARMED_CALLS calls are handed to gRPC, to be filled
 *   any     -> closing  [rpc_server_close]   no new calls; those that run are canceled (on_cancel)
 *   closing -> freed    [rpc_server_settle]  gRPC reported the shutdown and the last call is freed
 *
 * Calls are taken with gRPC's generic request, so that the table decides what exists; a path that is
 * not in it is answered UNIMPLEMENTED by call.c. */
#include "rpc/internal.h"
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ARMED_CALLS = 64 };       /* calls gRPC can hand over before our thread must act */

static void free_server(rpc_server *s) {
    for (rpc_owned *o; (o = s->owned);) {
        s->owned = o->next;
        o->destroy(o->thing);
        mem_free(o);
    }
    for (rpc_table *t; (t = s->tables);) {
        s->tables = t->next;
        mem_free(t);
    }
    if (s->grpc) grpc_server_destroy(s->grpc);
    rpc_security_close(s->security);
    mem_free(s);
}

/* gRPC does not say why it could not listen: binding once ourselves does. */
static status listen_error(const char *listen, const char *host, int port, error *err) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
    char service[8];
    snprintf(service, sizeof service, "%d", port);
    int rc = getaddrinfo(host, service, &hints, &found);
    if (rc != 0)
        return error_set(err, ST_BAD_INPUT, "listen address '%.100s': %s", listen, gai_strerror(rc));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    int cause = fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0 ? errno : 0;
    if (fd >= 0) close(fd);
    freeaddrinfo(found);
    const char *text = cause == EADDRINUSE ? "address in use" : strerror(cause);
    return error_set(err, ST_IO, "cannot listen on %.100s: %s", listen,
                     cause ? text : "refused by gRPC (address in use a moment ago)");
}

static void shut(void *owner, bool ok) {
    (void)ok;
    rpc_server *s = owner;
    s->shut = true;
    rpc_server_settle(s);
}

status rpc_server_open(rpc_loop *l, const char *listen, const rpc_method *methods, int count,
                       void *ctx, rpc_server **out, error *err) {
    char host[RPC_HOST_MAX];
    int port;
    TRY(rpc_options_address("listen address", listen, host, &port, err));
    TRY(rpc_security_check_listen(listen, err));
    rpc_server *s = mem_zalloc(1, sizeof *s);
    if (!s || (s->loop = l, rpc_server_add(s, methods, count, ctx)) != ST_OK) {
        mem_free(s);
        return error_set(err, ST_NO_MEMORY, "no memory for a server on %.100s", listen);
    }
    s->shutdown = (rpc_tag){shut, s};
    s->security = rpc_security_take(rpc_security_current());
    s->grpc = grpc_server_create(rpc_options_server(), NULL);
    grpc_server_register_completion_queue(s->grpc, rpc_loop_queue(l), NULL);
    grpc_server_credentials *credentials = rpc_security_server_credentials(s);
    int bound = grpc_server_add_http2_port(s->grpc, listen, credentials);
    grpc_server_credentials_release(credentials);
    if (bound <= 0) {
        free_server(s);
        return listen_error(listen, host, port, err);
    }
    bool v6 = strchr(host, ':') != NULL;
    snprintf(s->address, sizeof s->address, v6 ? "[%s]:%d" : "%s:%d", host, bound);
    rpc_loop_join(l);
    rpc_caller_open();
    *out = s;
    return ST_OK;
}

status rpc_server_add(rpc_server *s, const rpc_method *methods, int count, void *ctx) {
    assert(!s->started);
    rpc_table *t = mem_alloc(sizeof *t);
    if (!t) return ST_NO_MEMORY;
    *t = (rpc_table){methods, count, ctx, s->tables};
    s->tables = t;
    return ST_OK;
}

status rpc_server_own(rpc_server *s, void *thing, void (*destroy)(void *thing)) {
    rpc_owned *o = mem_alloc(sizeof *o);
    if (!o) return ST_NO_MEMORY;
    *o = (rpc_owned){destroy, thing, s->owned};
    s->owned = o;
    return ST_OK;
}

const rpc_method *rpc_server_find(const rpc_server *s, grpc_slice path, void **ctx) {
    const char *text = (const char *)GRPC_SLICE_START_PTR(path);
    size_t bytes = GRPC_SLICE_LENGTH(path);
    for (const rpc_table *t = s->tables; t; t = t->next) {
        for (int i = 0; i < t->count; i++) {
            const rpc_method *m = &t->methods[i];
            if (strlen(m->path) != bytes || memcmp(m->path, text, bytes) != 0) continue;
            *ctx = t->ctx;
            return m;
        }
    }
    return NULL;
}

bool rpc_server_arm(rpc_server *s) {
    if (s->closing) return true;
    while (s->armed < ARMED_CALLS)
        if (rpc_call_arm(s) != ST_OK) return s->armed > 0;
    return true;
}

void rpc_server_start(rpc_server *s) {
    assert(!s->started);
    s->started = true;
    grpc_server_start(s->grpc);
    rpc_server_arm(s);
}

const char *rpc_server_address(const rpc_server *s) { return s->address; }
int rpc_server_calls(const rpc_server *s) { return s->calls; }

void rpc_server_settle(rpc_server *s) {
    if (!s->closing) {
        rpc_server_arm(s);
        return;
    }
    if (!s->shut || s->calls > 0 || s->armed > 0) return;
    void (*done)(void *) = s->done;
    void *arg = s->done_arg;
    rpc_loop_leave(s->loop);
    free_server(s);
    if (done) done(arg);
}

void rpc_server_close(rpc_server *s, void (*done)(void *arg), void *arg) {
    assert(!s->closing);
    s->closing = true;
    s->done = done;
    s->done_arg = arg;
    grpc_server_shutdown_and_notify(s->grpc, rpc_loop_queue(s->loop), &s->shutdown);
    grpc_server_cancel_all_calls(s->grpc);
}
