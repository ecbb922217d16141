/* rpc_client.c -- tests rpc/client.c: nobody there, waiting for a peer, pause and resume, close; and how
 * many calls a second one loop carries. */
#include "rpc_fixture.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static void nobody_there(void **state) {
    (void)state;
    fixture f;
    answer a = {0};
    error err;
    rpc_channel *none;
    fixture_open(&f);
    rpc_channel *ours = f.channel;
    assert_int_equal(rpc_channel_open(f.loop, "127.0.0.1:1", &none, &err), ST_OK);
    f.channel = none;
    assert_int_equal(ask(&f, UNARY, "echo", 0, false, &a), ST_OK);
    assert_true(run_until(&f, is_true, &a.ended, 20000));
    assert_int_equal(a.st, ST_PEER_LOST);
    a = (answer){0};
    assert_int_equal(ask(&f, UNARY, "echo", 150, true, &a), ST_OK);
    assert_true(run_until(&f, is_true, &a.ended, 20000));
    assert_int_equal(a.st, ST_DEADLINE);
    rpc_channel_close(none);
    f.channel = ours;
    fixture_close(&f);
}

static void a_peer_that_comes_back_is_found(void **state) {
    (void)state;
    fixture f;
    answer a = {0};
    error err;
    char address[100];
    bool done = false;
    /* An address of this process alone: its port is free for a while, and another test may listen at one of its own. */
    snprintf(address, sizeof address, "127.%d.%d.%d:0", 1 + (getpid() >> 16 & 127), getpid() >> 8 & 255, 1 + (getpid() & 127));
    fixture_open_at(&f, address);
    ask_and_wait(&f, UNARY, "echo", &a);
    snprintf(address, sizeof address, "%s", rpc_server_address(f.server));
    rpc_server_close(f.server, set_true, &done);
    assert_true(run_until(&f, is_true, &done, 20000));
    a = (answer){0};
    assert_int_equal(ask(&f, UNARY, "echo", 0, true, &a), ST_OK);
    run_until(&f, never, NULL, 700);
    assert_false(a.ended);
    assert_int_equal(rpc_server_open(f.loop, address, methods, 3, &f, &f.server, &err), ST_OK);
    rpc_server_start(f.server);
    assert_true(run_until(&f, is_true, &a.ended, 20000));
    assert_int_equal(a.st, ST_OK);
    fixture_close(&f);
}

static void paused_streams_hold_still_and_can_be_canceled(void **state) {
    (void)state;
    fixture f;
    answer a = {.pause_after = 2}, b = {.pause_after = 3}, c;
    fixture_open(&f);
    assert_int_equal(ask(&f, STREAM, "count 10", 0, true, &a), ST_OK);
    assert_int_equal(ask(&f, STREAM, "flood 50", 0, true, &b), ST_OK);
    rpc_stream_pause(a.stream); /* before its first message: that one is held */
    run_until(&f, never, NULL, 200);
    assert_int_equal(a.messages, 0);
    assert_int_equal(b.messages, 3);
    rpc_stream_resume(a.stream);
    run_until(&f, never, NULL, 100);
    assert_int_equal(a.messages, 2);
    rpc_stream_resume(a.stream);
    assert_true(run_until(&f, is_true, &a.ended, 20000));
    assert_int_equal(a.messages, 10);
    assert_int_equal(a.st, ST_OK);
    ask_and_wait(&f, STREAM, "flood 50", &c); /* others are not held up by b */
    assert_int_equal(c.messages, 50);
    rpc_stream_cancel(b.stream);
    assert_true(run_until(&f, is_true, &b.ended, 20000));
    assert_int_equal(b.st, ST_CANCELED);
    assert_int_equal(b.messages, 3);
    fixture_close(&f);
}

static void closing_a_channel_ends_its_streams(void **state) {
    (void)state;
    fixture f;
    answer a[3];
    memset(a, 0, sizeof a);
    fixture_open(&f);
    for (int i = 0; i < 3; i++) {
        a[i].pause_after = i;
        assert_int_equal(ask(&f, STREAM, i ? "flood 300" : "hang", 0, true, &a[i]), ST_OK);
    }
    run_until(&f, never, NULL, 100);
    rpc_channel_close(f.channel);
    f.channel = NULL;
    for (int i = 0; i < 3; i++) {
        assert_true(run_until(&f, is_true, &a[i].ended, 20000));
        assert_int_equal(a[i].st, ST_CANCELED);
    }
    assert_true(run_until(&f, all_freed, &f, 20000));
    fixture_close(&f);
}

static void close_at_end(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user) {
    (void)s, (void)st, (void)text, (void)retry_after_ms;
    fixture *f = user;
    rpc_channel_close(f->channel);
    f->channel = NULL;
}

static bool is_closed(void *arg) { return ((fixture *)arg)->channel == NULL; }

static void on_end_may_close_the_channel(void **state) {
    (void)state;
    static const rpc_stream_events events = {on_message, close_at_end};
    fixture f;
    rpc_stream *s;
    Baton__V1__TokenizeRequest q = BATON__V1__TOKENIZE_REQUEST__INIT;
    fixture_open(&f);
    q.input_case = BATON__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    q.text = (char *)(uintptr_t)"refuse";                  /* no message: user is no answer */
    assert_int_equal(rpc_stream_start(f.channel, &methods[UNARY], &q.base, 0, true, &events, &f, &s), ST_OK);
    assert_true(run_until(&f, is_closed, &f, 20000));
    fixture_close(&f);
    assert_int_equal(mem_live(), 0);
}

static void a_quiet_call_outlives_keepalive(void **state) {
    (void)state;
    fixture f;
    answer a = {0};
    fixture_open(&f);
    assert_int_equal(ask(&f, STREAM, "hang", 0, true, &a), ST_OK);
    run_until(&f, never, NULL, 9000); /* four pings each way, and their time-outs */
    assert_false(a.ended);
    assert_int_equal(f.canceled, 0);
    rpc_stream_cancel(a.stream);
    fixture_close(&f);
}

/* A stopped process: the kernel completes its handshakes and takes its data, nobody answers. greeted: it
 * stopped after HTTP/2 was set up, so that only keepalive can tell. */
static void stopped_peer(bool greeted) {
    fixture f;
    answer a = {0};
    error err;
    rpc_channel *ours, *stopped;
    char address[60];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof at;
    int peer = -1, listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &bytes), 0);
    snprintf(address, sizeof address, "127.0.0.1:%d", ntohs(at.sin_port));
    fixture_open(&f);
    ours = f.channel;
    assert_int_equal(rpc_channel_open(f.loop, address, &stopped, &err), ST_OK);
    f.channel = stopped;
    int64_t began = clock_now_ms();
    assert_int_equal(ask(&f, STREAM, "hang", 0, false, &a), ST_OK);
    run_until(&f, never, NULL, 100);
    if (greeted) {
        static const char settings[] = "\0\0\0\4\0\0\0\0\0" "\0\0\0\4\1\0\0\0\0";
        peer = accept(listener, NULL, NULL);
        assert_int_equal(write(peer, settings, 18), 18);
    }
    assert_true(run_until(&f, is_true, &a.ended, 15000));
    print_message("%s peer given up after %lld ms: %s\n", greeted ? "greeted" : "silent",
                  (long long)(clock_now_ms() - began), a.text);
    assert_int_equal(a.st, ST_PEER_LOST);
    assert_in_range(clock_now_ms() - began, 0, 60000);
    rpc_channel_close(stopped);
    f.channel = ours;
    fixture_close(&f);
    if (peer >= 0) close(peer);
    close(listener);
}

static void a_stopped_peer_is_given_up_in_seconds(void **state) {
    (void)state;
    stopped_peer(false);
    stopped_peer(true);
}

/* ---- speed --------------------------------------------------------------------------------------- */

typedef struct race {
    fixture f;
    int left, running, messages;
    bool over;
} race;

static void again(race *r);

static void raced_message(rpc_stream *s, const ProtobufCMessage *m, void *user) { 
    (void)s;
    assert_int_equal(((const Baton__V1__TokenizeResult *)m)->n_tokens, 3);
    ((race *)user)->messages++;
}

static void raced(rpc_stream *s, status st, const char *text, int64_t retry, void *user) {
    (void)s, (void)text, (void)retry;
    race *r = user;
    assert_int_equal(st, ST_OK);
    r->running--;
    again(r);
    r->over = r->running == 0;
}

static void again(race *r) {
    static const rpc_stream_events events = {raced_message, raced};
    if (r->left-- <= 0) return;
    Baton__V1__TokenizeRequest q = BATON__V1__TOKENIZE_REQUEST__INIT;
    q.input_case = BATON__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    q.text = (char *)(uintptr_t)"echo";
    rpc_stream *s;
    assert_int_equal(rpc_stream_start(r->f.channel, &methods[UNARY], &q.base, 10000, true, &events, r, &s), ST_OK);
    r->running++;
}

static void calls_a_second(void **state) {
    (void)state;
    enum { CALLS = 20000 };
    race r = {.left = CALLS};
    fixture_open(&r.f);
    int64_t began = clock_now_us();
    for (int i = 0; i < 64; i++) again(&r);
    assert_true(run_until(&r.f, is_true, &r.over, 60000));
    double seconds = (double)(clock_now_us() - began) / 1e6;
    assert_int_equal(r.messages, CALLS);
    assert_int_equal(r.f.served, CALLS);
    print_message("%d unary calls in %.3f s: %.0f a second, client and server on one loop\n", CALLS, seconds,
                  CALLS / seconds);
    fixture_close(&r.f);
}

static void a_channel_sends_its_headers(void **state) {
    (void)state;
    fixture f;
    answer a;
    error err;
    fixture_open(&f);
    ask_and_wait(&f, UNARY, "echo", &a);
    assert_string_equal(f.token, "");
    rpc_channel_close(f.channel);
    assert_int_equal(rpc_channel_open_foreign(f.loop, rpc_server_address(f.server), &f.channel, &err), ST_OK);
    char name[] = "token", value[] = "let me in";
    assert_int_equal(rpc_channel_add_header(f.channel, name, value), ST_OK);
    name[0] = value[0] = 'X';
    for (int i = 0; i < 2; i++) {
        f.token[0] = 0;
        ask_and_wait(&f, i ? STREAM : UNARY, i ? "count 2" : "echo", &a);
        assert_int_equal(a.st, ST_OK);
        assert_string_equal(f.token, "let me in");
    }
    for (int i = 1; i < RPC_HEADERS_MAX; i++) assert_int_equal(rpc_channel_add_header(f.channel, "more", "x"), ST_OK);
    assert_int_equal(rpc_channel_add_header(f.channel, "more", "x"), ST_NO_MEMORY);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_there),
        cmocka_unit_test(a_peer_that_comes_back_is_found),
        cmocka_unit_test(paused_streams_hold_still_and_can_be_canceled),
        cmocka_unit_test(closing_a_channel_ends_its_streams),
        cmocka_unit_test(on_end_may_close_the_channel),
        cmocka_unit_test(a_quiet_call_outlives_keepalive),
        cmocka_unit_test(a_stopped_peer_is_given_up_in_seconds),
        cmocka_unit_test(a_channel_sends_its_headers),
        cmocka_unit_test(calls_a_second),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
