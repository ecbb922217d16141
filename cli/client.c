/* client.c -- connections to coordinators, one call at a time, and Ctrl-C.
 *
 * Of several coordinators none is special: a call goes to the current one, and to the next when that one is lost before it
 * said anything. A connection is made by its first call. An answer that broke off is resume.c's.
 *
 * SIGINT and SIGTERM are blocked in every thread; one thread waits for them and posts a cancel to
 * the loop. So an interrupted call ends like any other: the coordinator hears of it, and with it
 * every node. */
#include "cli/cli.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { SERVERS_MAX = 16, SERVER_BYTES = 300 };

struct cli_client {
    pthread_mutex_t lock; /* guards open: is there a loop to post to? */
    bool open;
    rpc_loop *loop;
    rpc_channel *channels[SERVERS_MAX];
    char servers[SERVERS_MAX][SERVER_BYTES];
    int count, at;      /* at: the one to be asked */
    rpc_stream *stream; /* of the call in hand, NULL: none */
    bool heard;         /* of it a message came */
    bool interrupted;
    void (*on_message)(const ProtobufCMessage *m, void *user);
    void *user;
    void (*on_interrupt)(void *arg);
    void *interrupt_arg;
    status st;
    error *err;
    int64_t retry_after_ms;
};

static void interrupt(void *arg) {
    cli_client *c = arg;
    c->interrupted = true;
    if (c->on_interrupt)
        c->on_interrupt(c->interrupt_arg);
    else if (c->stream)
        rpc_stream_cancel(c->stream);
    else
        exit(CLI_FAILED); /* between two calls nothing is to be undone */
}

static void signal_set(sigset_t *set) {
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
}

static void *wait_signals(void *arg) {
    cli_client *c = arg;
    sigset_t set;
    int which;
    signal_set(&set);
    while (sigwait(&set, &which) == 0) {
        pthread_mutex_lock(&c->lock);
        if (c->open) rpc_loop_post(c->loop, interrupt, c);
        pthread_mutex_unlock(&c->lock);
    }
    return NULL;
}

void cli_client_hold_signals(void) {
    sigset_t set;
    signal_set(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* Of --tenant: a header that every call carries. */
static status add_tenant(cli_client *c, const char *name, error *err) {
    if (!name) return ST_OK;
    for (const char *at = name; !*name || *at; at++)
        if (*at <= ' ' || *at > '~')
            return error_set(err, ST_BAD_INPUT, "--tenant: '%.40s' at byte %td: expected printable ASCII without spaces", name, at - name);
    for (int i = 0; i < c->count; i++)
        if (rpc_channel_add_header(c->channels[i], "baton-tenant", name) != ST_OK)
            return error_set(err, ST_NO_MEMORY, "no memory for --tenant");
    return ST_OK;
}

static status open_channel(cli_client *c, const char *server, size_t bytes, error *err) {
    error cause;
    if (c->count == SERVERS_MAX) return error_set(err, ST_BAD_INPUT, "--server: more than %d addresses", SERVERS_MAX);
    snprintf(c->servers[c->count], SERVER_BYTES, "%.*s", (int)bytes, server);
    status st = rpc_channel_open(c->loop, c->servers[c->count], &c->channels[c->count], &cause);
    if (st != ST_OK) return error_set(err, st, "--server: %s", cause.text);
    c->count++;
    return ST_OK;
}

/* "HOST:PORT,HOST:PORT" */
static status open_channels(cli_client *c, const char *servers, error *err) {
    for (;; servers++) {
        size_t bytes = strcspn(servers, ",");
        TRY(open_channel(c, servers, bytes, err));
        servers += bytes;
        if (!*servers) return ST_OK;
    }
}

static void close_all(cli_client *c) {
    while (c->count > 0) rpc_channel_close(c->channels[--c->count]);
    rpc_loop_destroy(c->loop);
}

/* One client a process: the signal thread is never joined and ends with it. */
status cli_client_open(const cli_options *o, const char *servers, cli_client **out, error *err) {
    static cli_client client = {.lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t thread;
    if (o) TRY(cli_security_call(o, err));
    cli_client_hold_signals();
    TRY(rpc_loop_create(&client.loop, err));
    status st = open_channels(&client, servers, err);
    if (st == ST_OK && o) st = add_tenant(&client, o->tenant, err);
    if (st == ST_OK && pthread_create(&thread, NULL, wait_signals, &client) != 0)
        st = error_set(err, ST_NO_MEMORY, "no thread for signals");
    if (st != ST_OK) {
        close_all(&client);
        return st;
    }
    pthread_detach(thread);
    pthread_mutex_lock(&client.lock);
    client.open = true;
    pthread_mutex_unlock(&client.lock);
    *out = &client;
    return ST_OK;
}

cli_exit cli_client_unopened(status st, const char *command, const error *err) {
    return st == ST_BAD_INPUT ? cli_usage(command, "%s", err->text) : cli_complain(CLI_FAILED, "%s", err->text);
}

void cli_client_close(cli_client *c) {
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    c->open = false;
    pthread_mutex_unlock(&c->lock);
    close_all(c);
}

void cli_client_on_interrupt(cli_client *c, void (*fn)(void *arg), void *arg) {
    c->on_interrupt = fn;
    c->interrupt_arg = arg;
}

void cli_client_stop(cli_client *c) { interrupt(c); }
rpc_loop *cli_client_loop(cli_client *c) { return c->loop; }
rpc_channel *cli_client_channel(cli_client *c) { return c->channels[c->at]; }
const char *cli_client_server(const cli_client *c) { return c->servers[c->at]; }
bool cli_client_interrupted(const cli_client *c) { return c->interrupted; }
void cli_client_next(cli_client *c) { c->at = (c->at + 1) % c->count; }

static void on_message(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    (void)s;
    cli_client *c = user;
    c->heard = true;
    if (!c->interrupted) c->on_message(m, c->user);
    if (!c->interrupted && ferror(stdout)) interrupt(c); /* nobody reads the answer any more */
}

static void on_end(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user) {
    (void)s;
    cli_client *c = user;
    c->stream = NULL;
    c->st = st;
    if (st != ST_OK) error_set(c->err, st, "%s", text && *text ? text : status_text(st));
    c->retry_after_ms = retry_after_ms;
    rpc_loop_stop(c->loop);
}

/* To the current server. */
static status call(cli_client *c, const rpc_method *method, const ProtobufCMessage *request, int64_t timeout_ms) {
    static const rpc_stream_events events = {on_message, on_end};
    c->retry_after_ms = -1;
    status st = rpc_stream_start(c->channels[c->at], method, request, timeout_ms, false, &events, c, &c->stream);
    if (st != ST_OK) return error_set(c->err, st, "the call did not start: %s", status_text(st));
    rpc_loop_run(c->loop);
    return c->interrupted && c->st != ST_OK ? ST_CANCELED : c->st;
}

status cli_client_call(cli_client *c, const rpc_method *method, const ProtobufCMessage *request,
                       int64_t timeout_ms, void (*message)(const ProtobufCMessage *m, void *user),
                       void *user, error *err, int64_t *retry_after_ms) {
    status st = ST_PEER_LOST;
    c->on_message = message;
    c->user = user;
    c->err = err;
    c->interrupted = c->heard = false;
    for (int tries = 0; st == ST_PEER_LOST && tries < c->count && !c->heard; tries++) {
        st = call(c, method, request, timeout_ms);
        if (st == ST_PEER_LOST) cli_client_next(c);
    }
    if (retry_after_ms) *retry_after_ms = c->retry_after_ms;
    return st;
}

cli_exit cli_client_report(status st, const error *err, const char *server, int64_t retry_after_ms,
                           bool started) {
    switch (st) {
    case ST_OK:
        return CLI_OK;
    case ST_PEER_LOST:
        if (started) return cli_complain(CLI_FAILED, "%s broke off: %s", server, err->text);
        return cli_complain(CLI_UNREACHABLE, "%s is not available: %s%s", server, err->text,
                            strstr(err->text, "Socket closed") ? " (if it expects TLS: --tls-ca FILE)" : "");
    case ST_AGAIN:
        if (retry_after_ms >= 0)
            return cli_complain(CLI_REFUSED, "refused by %s: %s (retry after %lld ms)", server,
                                err->text, (long long)retry_after_ms);
        return cli_complain(CLI_REFUSED, "refused by %s: %s", server, err->text);
    case ST_BAD_INPUT:
    case ST_NOT_FOUND:
    case ST_DENIED:
    case ST_UNAUTHENTICATED:
    case ST_REFUSED:
    case ST_UNSUPPORTED:
        return cli_complain(CLI_REFUSED, "refused by %s: %s", server, err->text);
    case ST_CANCELED:
        return cli_complain(CLI_FAILED, ferror(stdout) ? "stdout cannot be written" : "canceled");
    default:
        return cli_complain(CLI_FAILED, "%s: %s", server, err->text);
    }
}
