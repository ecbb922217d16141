/* rpc_fixture.h -- one loop with a server and a channel to it over loopback, for the tests of rpc/.
 *
 * The loop runs on the test's own thread, inside run_until(). Messages are baton.v1's Tokenize pair; what
 * the server does stands in the request's text:
 *   "echo"      one reply {1,2,3}, OK
 *   "refuse"    no reply, ST_AGAIN "queue is full", back in 1500 ms
 *   "count N"   N replies {i}, OK
 *   "flood N"   N replies of about 8 KB as fast as the window allows, OK
 *   "hang"      nothing, until canceled
 *   "big"       one reply above the message limit
 *   "held ..."  count or flood after rpc_call_hold(); a count is finished by the test */
#ifndef BATON_TESTS_RPC_FIXTURE_H
#define BATON_TESTS_RPC_FIXTURE_H

#include "proto/baton.pb-c.h"
#include "rpc/rpc.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct fixture {
    rpc_loop *loop;
    rpc_server *server;
    rpc_channel *channel;
    int served, canceled, freed;     /* callbacks seen by the server's side */
    size_t waiting_max;              /* of rpc_call_waiting() */
    int again, writable;
    rpc_call *held;                  /* the last "held count" */
    int64_t canceled_us;             /* when on_cancel last came */
    int64_t time_left_ms;
    char header[100];                /* the last call's user-agent */
    char token[20];                  /* and its "token", "" if it had none */
    char tenant[RPC_NAME_MAX];       /* and whose it was */
    char credential[RPC_NAME_MAX];   /* by a credential; "none" */
} fixture;

typedef struct flood { fixture *f; int left; } flood;

static void send_tokens(rpc_call *c, int32_t *ids, size_t n, status *st) {
    Baton__V1__TokenizeResult r = BATON__V1__TOKENIZE_RESULT__INIT;
    r.tokens = ids;
    r.n_tokens = n;
    *st = rpc_call_send(c, &r.base);
}

static void on_cancel(rpc_call *c, void *user) {
    fixture *f = user;
    f->canceled++;
    f->canceled_us = clock_now_us();
    assert_true(rpc_call_canceled(c));
    rpc_call_finish(c, ST_CANCELED, NULL, -1);
}

static void on_free(rpc_call *c, void *user) {
    assert_ptr_equal(rpc_call_user(c), user);
    ((fixture *)user)->freed++;
}

static const rpc_call_events hang_events = {on_cancel, NULL, on_free};

static void flood_on(rpc_call *c, void *user) {
    flood *fl = user;
    static int32_t ids[4096];
    status st = ST_OK;
    for (int i = 0; i < 4096; i++) ids[i] = 128 + i;
    while (fl->left > 0 && st == ST_OK) {
        send_tokens(c, ids, 4096, &st);
        assert_true(st == ST_OK || st == ST_AGAIN);
        fl->left--;
        if (rpc_call_waiting(c) > fl->f->waiting_max) fl->f->waiting_max = rpc_call_waiting(c);
    }
    if (st == ST_AGAIN) fl->f->again++;
    if (st == ST_OK) rpc_call_finish(c, ST_OK, NULL, -1);
}

static void flood_writable(rpc_call *c, void *user) {
    ((flood *)user)->f->writable++;
    flood_on(c, user);
}

static void flood_cancel(rpc_call *c, void *user) { on_cancel(c, ((flood *)user)->f); }

static void flood_free(rpc_call *c, void *user) {
    (void)c;
    ((flood *)user)->f->freed++;
    free(user);
}

static const rpc_call_events flood_events = {flood_cancel, flood_writable, flood_free};

static inline void serve(rpc_call *c, const ProtobufCMessage *request, void *ctx) {
    fixture *f = ctx;
    status st = ST_OK;
    if (!request) { /* bidi: the client sent its last */
        rpc_call_finish(c, ST_OK, NULL, -1);
        return;
    }
    const char *text = ((const Baton__V1__TokenizeRequest *)request)->text;
    int32_t ids[3] = {1, 2, 3};
    f->served++;
    f->time_left_ms = rpc_call_time_left_ms(c);
    const char *agent = rpc_call_header(c, "user-agent");
    if (agent) snprintf(f->header, sizeof f->header, "%s", agent);
    const char *token = rpc_call_header(c, "token");
    snprintf(f->token, sizeof f->token, "%s", token ? token : "");
    const char *credential = rpc_call_credential(c);
    snprintf(f->tenant, sizeof f->tenant, "%s", rpc_call_tenant(c));
    snprintf(f->credential, sizeof f->credential, "%s", credential ? credential : "none");
    rpc_call_watch(c, &hang_events, f);
    if (strcmp(text, "hang") == 0) return;
    bool held = strncmp(text, "held ", 5) == 0;
    if (held) rpc_call_hold(c), text += 5;
    if (strncmp(text, "flood ", 6) == 0) {
        flood *fl = malloc(sizeof *fl);
        *fl = (flood){f, atoi(text + 6)};
        rpc_call_watch(c, &flood_events, fl);
        flood_on(c, fl);
        return;
    }
    if (strcmp(text, "refuse") == 0) {
        rpc_call_finish(c, ST_AGAIN, "queue is full", 1500);
        return;
    }
    if (strncmp(text, "count ", 6) == 0) {
        for (int32_t i = 0, n = atoi(text + 6); i < n && st == ST_OK; i++) send_tokens(c, &i, 1, &st);
    } else if (strcmp(text, "big") == 0) {
        int32_t *many = calloc(RPC_MESSAGE_MAX + 1, sizeof *many);
        send_tokens(c, many, RPC_MESSAGE_MAX + 1, &st);
        free(many);
        st = ST_OK;
    } else {
        send_tokens(c, ids, 3, &st);
    }
    if (held) f->held = c;
    else rpc_call_finish(c, st, NULL, -1);
}

static const rpc_method methods[] = {
    {"/test.Echo/Unary", RPC_UNARY, &baton__v1__tokenize_request__descriptor,
     &baton__v1__tokenize_result__descriptor, serve},
    {"/test.Echo/Stream", RPC_SERVER_STREAM, &baton__v1__tokenize_request__descriptor,
     &baton__v1__tokenize_result__descriptor, serve},
    {"/test.Echo/Bidi", RPC_BIDI, &baton__v1__tokenize_request__descriptor,
     &baton__v1__tokenize_result__descriptor, serve},
};
enum { UNARY, STREAM, BIDI };

/* ---- the client's side -------------------------------------------------------------------------- */

typedef struct answer {
    rpc_stream *stream;
    int messages, pause_after;       /* pauses itself after so many; 0: never */
    int cancel_after;
    int32_t tokens[16];              /* first token of each message */
    bool ended;
    status st;
    char text[300];
    int64_t retry_after_ms;
} answer;

static inline void on_message(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    answer *a = user;
    const Baton__V1__TokenizeResult *r = (const Baton__V1__TokenizeResult *)m;
    assert_false(a->ended);
    if (a->messages < 16 && r->n_tokens) a->tokens[a->messages] = r->tokens[0];
    a->messages++;
    if (a->messages == a->pause_after) rpc_stream_pause(s);
    if (a->messages == a->cancel_after) rpc_stream_cancel(s);
}

static void on_end(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user) {
    (void)s;
    answer *a = user;
    assert_false(a->ended);
    a->ended = true;
    a->st = st;
    snprintf(a->text, sizeof a->text, "%s", text);
    a->retry_after_ms = retry_after_ms;
}

static const rpc_stream_events answer_events = {on_message, on_end};

static status ask(fixture *f, int method, const char *text, int64_t timeout_ms, bool wait, answer *a) {
    Baton__V1__TokenizeRequest r = BATON__V1__TOKENIZE_REQUEST__INIT;
    r.input_case = BATON__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    r.text = (char *)(uintptr_t)text;
    return rpc_stream_start(f->channel, &methods[method], &r.base, timeout_ms, wait, &answer_events, a,
                            &a->stream);
}

/* ---- running ------------------------------------------------------------------------------------ */

typedef struct waiting { fixture *f; bool (*done)(void *arg); void *arg; int64_t until; bool met; } waiting;

static void tick(void *arg) {
    waiting *w = arg;
    rpc_timer *t;
    w->met = w->done(w->arg);
    if (w->met || clock_now_ms() > w->until) rpc_loop_stop(w->f->loop);
    else assert_int_equal(rpc_timer_start(w->f->loop, 1, tick, w, &t), ST_OK);
}

/* Runs the loop until done(arg) or for timeout_ms; says which. */
static inline bool run_until(fixture *f, bool (*done)(void *arg), void *arg, int64_t timeout_ms) {
    waiting w = {f, done, arg, clock_now_ms() + timeout_ms, false};
    rpc_timer *t;
    assert_int_equal(rpc_timer_start(f->loop, 0, tick, &w, &t), ST_OK);
    rpc_loop_run(f->loop);
    return w.met;
}

static inline bool is_true(void *arg) { return *(bool *)arg; }
static inline bool never(void *arg) { return (void)arg, false; }
static inline bool all_freed(void *arg) { return rpc_server_calls(((fixture *)arg)->server) == 0; }
static inline bool was_served(void *arg) { return ((fixture *)arg)->served > 0; }

static inline void set_true(void *arg) { *(bool *)arg = true; }

/* One call, to its end. */
static inline void ask_and_wait(fixture *f, int method, const char *text, answer *a) {
    *a = (answer){0};
    assert_int_equal(ask(f, method, text, 0, true, a), ST_OK);
    assert_true(run_until(f, is_true, &a->ended, 20000));
}

static inline void fixture_open_at(fixture *f, const char *listen) {
    error err;
    *f = (fixture){0};
    assert_int_equal(rpc_loop_create(&f->loop, &err), ST_OK);
    assert_int_equal(rpc_server_open(f->loop, listen, methods, 3, f, &f->server, &err), ST_OK);
    rpc_server_start(f->server);
    assert_int_equal(rpc_channel_open(f->loop, rpc_server_address(f->server), &f->channel, &err), ST_OK);
}

static inline void fixture_open(fixture *f) { fixture_open_at(f, "127.0.0.1:0"); }

static inline void fixture_close(fixture *f) {
    bool done = false;
    if (f->channel) rpc_channel_close(f->channel);
    rpc_server_close(f->server, set_true, &done);
    assert_true(run_until(f, is_true, &done, 20000));
    rpc_loop_destroy(f->loop);
}

#endif
