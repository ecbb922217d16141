/* server.c -- see http.h. */
#include "http/http.h"
#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <event2/thread.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct http_service {
    http_options options;
    struct event_base *base;
    struct evhttp *http;
    pthread_t thread;
    bool running;
    char address[300], model[200];
};

/* ---- answers --------------------------------------------------------------------------------------- */

static void answer(struct evhttp_request *q, int code, const char *reason, const char *text, size_t bytes) {
    struct evbuffer *body = evbuffer_new();
    if (!body || evbuffer_add(body, text, bytes) != 0) {
        if (body) evbuffer_free(body);
        evhttp_send_error(q, 500, "no memory");
        return;
    }
    evhttp_send_reply(q, code, reason, body);
    evbuffer_free(body);
}

static void say_type(struct evhttp_request *q, const char *type) {
    evhttp_add_header(evhttp_request_get_output_headers(q), "Content-Type", type);
}

static void on_metrics(struct evhttp_request *q, void *arg) {
    http_service *s = arg;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) {
        evhttp_send_error(q, 500, "no memory");
        return;
    }
    metrics_write(out);
    if (*s->model) http_aliases_write(out, s->model);
    bool whole = fclose(out) == 0;
    say_type(q, "text/plain; version=0.0.4; charset=utf-8");
    if (whole) answer(q, HTTP_OK, "OK", text, bytes);
    else evhttp_send_error(q, 500, "no memory");
    free(text);
}

static void on_healthz(struct evhttp_request *q, void *arg) {
    (void)arg;
    say_type(q, "text/plain");
    answer(q, HTTP_OK, "OK", "ok\n", 3);
}

static void on_readyz(struct evhttp_request *q, void *arg) {
    http_service *s = arg;
    char why[HTTP_WHY_MAX] = "", line[HTTP_WHY_MAX + 2];
    bool ready = s->options.ready(s->options.ctx, why);
    int bytes = snprintf(line, sizeof line, "%s\n", ready ? "ready" : why);
    say_type(q, "text/plain");
    answer(q, ready ? HTTP_OK : HTTP_SERVUNAVAIL, ready ? "OK" : "Service Unavailable", line, (size_t)bytes);
}

static void on_other(struct evhttp_request *q, void *arg) {
    static const char text[] = "not found; there are /metrics, /healthz and /readyz\n";
    (void)arg;
    say_type(q, "text/plain");
    answer(q, HTTP_NOTFOUND, "Not Found", text, sizeof text - 1);
}

/* ---- open, close ----------------------------------------------------------------------------------- */

static void *run(void *arg) {
    event_base_loop(((http_service *)arg)->base, EVLOOP_NO_EXIT_ON_EMPTY);
    return NULL;
}

static status listen_at(http_service *s, error *err) {
    char host[256];
    const char *port;
    const char *at = s->options.listen;
    if (!address_split(at, host, sizeof host, &port))
        return error_set(err, ST_BAD_INPUT, "'%.100s': expected HOST:PORT", at);
    struct evhttp_bound_socket *bound = evhttp_bind_socket_with_handle(s->http, host, (uint16_t)atoi(port));
    if (!bound) return error_set(err, ST_IO, "cannot listen on %.100s: %s", at, strerror(errno));
    struct sockaddr_storage name;
    socklen_t bytes = sizeof name;
    if (getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&name, &bytes) != 0)
        return error_set(err, ST_IO, "%.100s: %s", at, strerror(errno));
    int taken = ntohs(name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port
                                                 : ((struct sockaddr_in *)&name)->sin_port);
    snprintf(s->address, sizeof s->address, strchr(host, ':') ? "[%s]:%d" : "%s:%d", host, taken);
    return ST_OK;
}

/* Locks exist, because close speaks to the loop from another thread. */
static status create(http_service *s, error *err) {
    if (evthread_use_pthreads() != 0 || !(s->base = event_base_new()) || !(s->http = evhttp_new(s->base)))
        return error_set(err, ST_NO_MEMORY, "no memory for an HTTP server");
    evhttp_set_timeout(s->http, HTTP_IDLE_S);
    evhttp_set_max_headers_size(s->http, HTTP_HEADERS_MAX);
    evhttp_set_max_body_size(s->http, 0);
    evhttp_set_allowed_methods(s->http, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD);
    evhttp_set_cb(s->http, "/metrics", on_metrics, s);
    evhttp_set_cb(s->http, "/healthz", on_healthz, s);
    evhttp_set_cb(s->http, "/readyz", on_readyz, s);
    evhttp_set_gencb(s->http, on_other, s);
    TRY(listen_at(s, err));
    if (pthread_create(&s->thread, NULL, run, s) != 0) return error_set(err, ST_NO_MEMORY, "no memory for a thread");
    s->running = true;
    pthread_setname_np(s->thread, "http");
    return ST_OK;
}

status http_open(const http_options *o, http_service **out, error *err) {
    http_service *s = mem_zalloc(1, sizeof *s);
    if (!s) return error_set(err, ST_NO_MEMORY, "no memory for an HTTP server");
    s->options = *o;
    if (o->model) snprintf(s->model, sizeof s->model, "%s", o->model);
    status st = create(s, err);
    if (st != ST_OK) {
        http_close(s);
        return st;
    }
    *out = s;
    return ST_OK;
}

const char *http_address(const http_service *s) { return s->address; }

void http_close(http_service *s) {
    if (!s) return;
    if (s->running) {
        event_base_loopexit(s->base, NULL);              /* an event: heard also by a loop that has not begun */
        pthread_join(s->thread, NULL);
    }
    if (s->http) evhttp_free(s->http);
    if (s->base) event_base_free(s->base);
    mem_free(s);
}
