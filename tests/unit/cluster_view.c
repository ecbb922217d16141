/* cluster/view.c against a Node server of the test's own: a node is seen, goes quiet, comes back, restarts
 * under a new epoch, and dies. Everything runs on one loop on the test's thread. */
#include "cluster/cluster.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

enum { HEARTBEAT_MS = 60, PATIENCE_MS = 10000 };

/* ---- a node that says what the test wants ----------------------------------------------------------- */

static rpc_loop *loop;
static rpc_call *watcher;        /* the Watch call being served, NULL: none */
static rpc_timer *beat;
static uint64_t epoch;
static bool quiet;
static int watches;
static uint64_t change;          /* number of the next change of its cache; 0: it tells none */
static int skip_after;           /* once: the change after this one is lost on the way */

static void add_change(Baton__Node__V1__NodeState *state) {
    static Baton__Node__V1__CacheChange c;
    static int32_t page;
    static uint64_t number;
    if (!change) return;
    baton__node__v1__cache_change__init(&c);
    c.number = change;
    c.whole = change == 1;
    page = (int32_t)change;
    number = 100 + change;
    c.pages = &page;
    c.numbers = &number;
    c.n_pages = c.n_numbers = 1;
    state->cache = &c;
    change += change == (uint64_t)skip_after ? 2 : 1;
    if (change == (uint64_t)skip_after + 2) skip_after = 0;
}

static void say(void) {
    Baton__Node__V1__NodeState state = BATON__NODE__V1__NODE_STATE__INIT;
    state.id = (char *)(uintptr_t)"decode-1";
    state.role = (char *)(uintptr_t)"decode";
    state.epoch = epoch;
    add_change(&state);
    rpc_call_send(watcher, &state.base);
}

static void on_beat(void *arg) {
    (void)arg;
    beat = NULL;
    if (watcher && !quiet) say();
    rpc_timer_start(loop, HEARTBEAT_MS, on_beat, NULL, &beat);
}

static void on_cancel(rpc_call *call, void *user) {
    (void)user;
    if (watcher == call) watcher = NULL;
    rpc_call_finish(call, ST_CANCELED, NULL, -1);
}

static void on_watch(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    static const rpc_call_events events = {on_cancel, NULL, NULL};
    (void)ctx;
    assert_int_equal(((const Baton__Node__V1__WatchRequest *)request)->heartbeat_ms, HEARTBEAT_MS);
    rpc_call_watch(call, &events, NULL);
    watches++;
    if (((const Baton__Node__V1__WatchRequest *)request)->cache) change = 1;
    watcher = call;
    if (!quiet) say();
}

static const rpc_method methods[] = {{"/baton.node.v1.Node/Watch", RPC_SERVER_STREAM,
                                      &baton__node__v1__watch_request__descriptor,
                                      &baton__node__v1__node_state__descriptor, on_watch}};

static rpc_server *open_node(const char *listen) {
    rpc_server *s;
    error err = {0};
    if (rpc_server_open(loop, listen, methods, 1, NULL, &s, &err) != ST_OK) fail_msg("%s", err.text);
    rpc_server_start(s);
    return s;
}

static bool closed;
static void on_closed(void *arg) {
    (void)arg;
    closed = true;
}

/* ---- what the view tells ------------------------------------------------------------------------------ */

static int states, losses;
static uint64_t heard_epoch;
static char lost_why[200];

static void on_state(void *ctx, int node, const Baton__Node__V1__NodeState *state) {
    (void)ctx;
    assert_int_equal(node, 0);
    assert_string_equal(state->id, "decode-1");
    heard_epoch = state->epoch;
    states++;
}
static void on_lost(void *ctx, int node, const char *why) {
    (void)ctx;
    assert_int_equal(node, 0);
    snprintf(lost_why, sizeof lost_why, "%s", why);
    losses++;
}
static const cluster_view_events view_events = {.state = on_state, .lost = on_lost};

static uint64_t heard_changes[40];
static int heard_count;

static void on_cache(void *ctx, int node, const Baton__Node__V1__CacheChange *c) {
    (void)ctx;
    assert_int_equal(node, 0);
    assert_int_equal(c->n_pages, 1);
    assert_int_equal(c->numbers[0], 100 + c->number);
    assert_int_equal(c->whole, c->number == 1);
    if (heard_count < 40) heard_changes[heard_count++] = c->number;
}

/* ---- running the loop until something is so ------------------------------------------------------------ */

static bool (*awaited)(void);
static int64_t give_up_ms;

static void look(void *arg) {
    (void)arg;
    rpc_timer *t;
    if (awaited() || clock_now_ms() > give_up_ms) rpc_loop_stop(loop);
    else rpc_timer_start(loop, 2, look, NULL, &t);
}

static void run_until(bool (*so)(void), const char *what) {
    rpc_timer *t;
    awaited = so;
    give_up_ms = clock_now_ms() + PATIENCE_MS;
    rpc_timer_start(loop, 0, look, NULL, &t);
    rpc_loop_run(loop);
    if (!so()) fail_msg("not within %d ms: %s", PATIENCE_MS, what);
}

static bool is_seen(void) { return states > 0; }
static bool is_seen_thrice(void) { return states > 2; }
static bool is_lost(void) { return losses > 0; }
static bool is_closed(void) { return closed; }
static bool has_left(void) { return watcher == NULL; }
static int64_t wake_ms;
static bool is_later(void) { return clock_now_ms() >= wake_ms; }

static void forget(void) { states = losses = 0; }

static void life(void **state) {
    (void)state;
    error err = {0};
    cluster_view *v;
    char spec[100], address[80];
    epoch = 7;
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    rpc_server *node = open_node("127.0.0.1:0");
    snprintf(address, sizeof address, "%s", rpc_server_address(node));
    snprintf(spec, sizeof spec, "embedded:%s", address);
    rpc_timer_start(loop, HEARTBEAT_MS, on_beat, NULL, &beat);
    assert_int_equal(cluster_view_open(loop, spec, HEARTBEAT_MS, &view_events, NULL, &v, &err), ST_OK);
    assert_int_equal(cluster_view_count(v), 1);
    assert_string_equal(cluster_view_address(v, 0), address);
    assert_false(cluster_view_alive(v, 0));
    assert_null(cluster_view_state(v, 0));

    run_until(is_seen_thrice, "heartbeats");
    assert_true(cluster_view_alive(v, 0));
    assert_int_equal(cluster_view_state(v, 0)->epoch, 7);
    assert_int_equal(losses, 0);

    forget(); /* a loop held up for long finds everyone silent, and loses nobody */
    usleep(2 * CLUSTER_HEARTBEATS_MISSED * HEARTBEAT_MS * 1000);
    run_until(is_seen, "what was said meanwhile is heard");
    assert_int_equal(losses, 0);

    forget(); /* a stopped process: the connection stays, heartbeats do not come */
    quiet = true;
    int64_t since_ms = clock_now_ms();
    run_until(is_lost, "a quiet node is lost");
    assert_true(clock_now_ms() - since_ms >= (CLUSTER_HEARTBEATS_MISSED - 1) * HEARTBEAT_MS);
    assert_string_equal(lost_why, "heartbeats overdue");
    assert_string_equal(cluster_view_why(v, 0), lost_why);
    assert_false(cluster_view_alive(v, 0));
    assert_non_null(cluster_view_state(v, 0));
    run_until(has_left, "its stream is canceled");

    quiet = false; /* it goes on: a new stream is opened, the same epoch is there again */
    forget();
    run_until(is_seen, "a node that goes on is seen again");
    assert_string_equal(cluster_view_why(v, 0), "");
    assert_int_equal(losses, 0);
    assert_true(watches > 1);

    forget(); /* killed and started again on its port */
    rpc_server_close(node, on_closed, NULL);
    run_until(is_lost, "a dead node is lost");
    run_until(is_closed, "the server is closed");
    wake_ms = clock_now_ms() + 300;
    run_until(is_later, "a pause");
    assert_int_equal(losses, 1); /* lost once, however often it is tried */
    assert_non_null(strstr(cluster_view_why(v, 0), "Connection refused"));
    epoch = 8;
    forget();
    node = open_node(address);
    run_until(is_seen, "a restarted node is seen");
    assert_int_equal(heard_epoch, 8);

    forget(); /* no event after close */
    cluster_view_close(v);
    closed = false;
    rpc_server_close(node, on_closed, NULL);
    run_until(is_closed, "the server is closed");
    assert_int_equal(states + losses, 0);
    rpc_timer_cancel(beat);
    rpc_loop_destroy(loop);
    assert_int_equal(mem_live(), 0);
}

static bool has_heard_nine(void) { return heard_count >= 9; }

/* A change that is missing: the node is asked for the whole again, and is not lost by that. */
static void a_gap_asks_for_the_whole(void **state) {
    (void)state;
    static const cluster_view_events events = {.state = on_state, .lost = on_lost, .cache = on_cache};
    static const uint64_t expected[] = {1, 2, 3, 1, 2, 3, 4, 5, 6};
    error err = {0};
    cluster_view *v;
    char spec[100];
    epoch = 7;
    skip_after = 3;
    forget();
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    rpc_server *node = open_node("127.0.0.1:0");
    snprintf(spec, sizeof spec, "embedded:%s", rpc_server_address(node));
    rpc_timer_start(loop, HEARTBEAT_MS, on_beat, NULL, &beat);
    int before = watches;
    assert_int_equal(cluster_view_open(loop, spec, HEARTBEAT_MS, &events, NULL, &v, &err), ST_OK);
    run_until(has_heard_nine, "changes");
    assert_memory_equal(heard_changes, expected, sizeof expected);
    assert_int_equal(watches, before + 2);
    assert_int_equal(losses, 0);
    assert_null(cluster_view_state(v, 0)->cache);            /* it is not kept */
    change = 0;
    cluster_view_close(v);
    closed = false;
    rpc_server_close(node, on_closed, NULL);
    run_until(is_closed, "the server is closed");
    rpc_timer_cancel(beat);
    rpc_loop_destroy(loop);
    assert_int_equal(mem_live(), 0);
}

static void unknown_registry(void **state) {
    (void)state;
    error err = {0};
    cluster_view *v = NULL;
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    assert_int_equal(cluster_view_open(loop, "zk://a:1/x", 100, &view_events, NULL, &v, &err), ST_UNSUPPORTED);
    assert_null(v);
    rpc_loop_destroy(loop);
    assert_int_equal(mem_live(), 0);
}

/* Whichever allocation fails while a view is opened, nothing is left and nothing falls over. */
static void no_memory(void **state) {
    (void)state;
    error err = {0};
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    wake_ms = 0;
    run_until(is_later, "nothing: the loop has made room for its timers");
    int64_t before = mem_live();
    for (int64_t n = 1; n <= 30; n++) {
        cluster_view *v = NULL;
        mem_fail_at(n);
        status st = cluster_view_open(loop, "embedded:127.0.0.1:1", 100, &view_events, NULL, &v, &err);
        mem_fail_at(0);
        if (st == ST_OK) cluster_view_close(v);
        wake_ms = clock_now_ms() + 20;
        run_until(is_later, "the stream has ended");
        assert_int_equal(mem_live(), before);
    }
    rpc_loop_destroy(loop);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(life), cmocka_unit_test(a_gap_asks_for_the_whole), cmocka_unit_test(unknown_registry),
                                       cmocka_unit_test(no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
