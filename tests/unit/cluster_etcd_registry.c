/* cluster/etcd_registry.c and etcd.c against an etcd of the test's own, of whose two endpoints one is dead: list, watch,
 * a compacted and a broken watch, records that are none, a password. */
#include "cluster_etcd_fake.h"

static char seen[400];
static cluster_registry *registry;

static void joined(void *ctx, const char *address) {
    (void)ctx;
    strcat(strcat(strcat(seen, "+"), address), " ");
}
static void left(void *ctx, const char *address) {
    (void)ctx;
    strcat(strcat(strcat(seen, "-"), address), " ");
}
static const cluster_registry_events events = {joined, left};

static int watches;
static bool is_watching_anew(void) { return fake.watch && fake.watches > watches; }
static const char *part;
static bool is_seen(void) { return strstr(seen, part) != NULL; }

static void open_registry(char *spec, size_t bytes) {
    error err = {0};
    seen[0] = 0;
    watches = 0;
    if (cluster_registry_open(fake.loop, spec, &events, NULL, &registry, &err) != ST_OK) fail_msg("%s", err.text);
    memset(spec, 'X', bytes);                /* it was copied */
    run_until(is_watching_anew, "it watches");
}

static void wait_for(const char *text) {
    part = text;
    run_until(is_seen, text);
}

static void close_all(void) {
    cluster_registry_close(registry);
    fake_close();
}

static void list_then_watch(void **state) {
    (void)state;
    char spec[200];
    fake_open(spec, sizeof spec);
    fake_put_record("p", 1, "a:1", 7);
    fake_put_record("d", 1, "a:2", 8);
    fake_put("/t/nodes/x", 10, "\xff\xff", 2, 0);          /* no record */
    fake_put_record("y", 1, "nowhere", 9);                 /* no address */
    open_registry(spec, sizeof spec);
    assert_string_equal(seen, "+a:1 +a:2 ");
    assert_int_equal(fake.watched_from, fake.revision + 1);
    assert_string_equal(fake.token, "open");
    fake_tell(false, fake_put_record("d", 2, "a:3", 10));       /* started anew elsewhere */
    wait_for("+a:3");
    assert_string_equal(seen, "+a:1 +a:2 -a:2 +a:3 ");
    fake_tell(true, fake_find("/t/nodes/p", 10));               /* its lease is gone; it comes again before the grace is over */
    fake_tell(false, fake_put_record("p", 1, "a:1", 11));
    fake_tell(false, fake_put_record("y", 2, "a:4", 12));
    wait_for("+a:4");
    assert_string_equal(seen, "+a:1 +a:2 -a:2 +a:3 +a:4 ");
    close_all();
}

static void a_compacted_watch_lists_again(void **state) {
    (void)state;
    char spec[200];
    Etcdserverpb__WatchResponse r = ETCDSERVERPB__WATCH_RESPONSE__INIT;
    fake_open(spec, sizeof spec);
    fake_put_record("p", 1, "a:1", 7);
    open_registry(spec, sizeof spec);
    fake_put_record("d", 1, "a:2", 8);                     /* its event is forgotten */
    watches = fake.watches;
    r.canceled = true;
    r.compact_revision = fake.revision;
    fake_watch_say(&r);
    run_until(is_watching_anew, "it watches again");
    assert_string_equal(seen, "+a:1 +a:2 ");
    assert_int_equal(fake.watched_from, fake.revision + 1);
    assert_int_equal(fake.lists, 2);
    close_all();
}

/* Of the other endpoint's silence nobody leaves; a store that is empty then has every entry leave, but not at once. */
static void a_broken_watch_lists_again(void **state) {
    (void)state;
    char spec[200];
    fake_open(spec, sizeof spec);
    fake_put_record("p", 1, "a:1", 7);
    open_registry(spec, sizeof spec);
    fake.count = 0;
    fake.revision = 0;
    fake_put_record("d", 1, "a:2", 1);
    watches = fake.watches;
    rpc_call *broken = fake.watch;
    fake.watch = NULL;
    rpc_call_finish(broken, ST_PEER_LOST, "no leader", -1);
    run_until(is_watching_anew, "it watches again");
    assert_string_equal(seen, "+a:1 +a:2 ");
    assert_int_equal(fake.watched_from, 2);
    close_all();
}

static void a_refused_watch_is_tried_again(void **state) {
    (void)state;
    char spec[200];
    Etcdserverpb__WatchResponse r = ETCDSERVERPB__WATCH_RESPONSE__INIT;
    fake_open(spec, sizeof spec);
    open_registry(spec, sizeof spec);
    watches = fake.watches;
    r.canceled = true;
    r.cancel_reason = (char *)(uintptr_t)"permission denied";
    fake_watch_say(&r);
    run_until(is_watching_anew, "it watches again");
    close_all();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(list_then_watch), cmocka_unit_test(a_compacted_watch_lists_again),
                                       cmocka_unit_test(a_broken_watch_lists_again),
                                       cmocka_unit_test(a_refused_watch_is_tried_again)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
