/* cluster/member.c against an etcd of the test's own: who gets an entry, and what becomes of it. The lease's life (kept
 * alive, run out, revoked, etcd away or wiped) is tests/cluster/etcd.py's, with the real one. */
#include "cluster_etcd_fake.h"

static cluster_member *member;
static int displaced;
static bool left;

static void on_displaced(void *ctx, const char *why) {
    (void)ctx;
    assert_non_null(strstr(why, "later process"));
    displaced++;
}
static void on_left(void *arg) {
    (void)arg;
    left = true;
}

static bool has_put(void) { return fake.puts > 0; }
static bool is_displaced(void) { return displaced > 0; }
static bool is_left(void) { return left; }

static status open_member(const char *spec, const char *id, error *err) {
    Baton__Node__V1__NodeRecord r = BATON__NODE__V1__NODE_RECORD__INIT;
    r.id = (char *)(uintptr_t)id;
    r.epoch = 100;
    r.address = (char *)(uintptr_t)"here:1";
    displaced = 0;
    left = false;
    memset(err, 0, sizeof *err);
    return cluster_member_open(fake.loop, spec, &r, on_displaced, NULL, &member, err);
}

static void start(void) {
    char spec[200];
    error err;
    fake_open(spec, sizeof spec);
    if (open_member(spec, "d", &err) != ST_OK) fail_msg("%s", err.text);
}

static void leave(void) {
    cluster_member_leave(member, on_left, NULL);
    run_until(is_left, "it has left");
}

static const char *entry_address(void) {
    static char address[40];
    const fake_key *k = fake_find("/t/nodes/d", 10);
    Baton__Node__V1__NodeRecord *r = k ? baton__node__v1__node_record__unpack(NULL, k->bytes, k->value) : NULL;
    snprintf(address, sizeof address, "%s", r ? r->address : "none");
    if (r) baton__node__v1__node_record__free_unpacked(r, NULL);
    return address;
}

static void an_entry_of_its_own(void **state) {
    (void)state;
    start();
    run_until(has_put, "it is registered");
    assert_string_equal(entry_address(), "here:1");
    assert_int_equal(fake_find("/t/nodes/d", 10)->lease, fake.leases);
    leave();
    assert_int_equal(fake.revoked, fake.leases);
    fake_close();
}

static void over_an_older_process(void **state) {
    (void)state;
    start();
    fake_put_record("d", 99, "there:1", 55);
    run_until(has_put, "it is registered");
    assert_string_equal(entry_address(), "here:1");
    leave();
    fake_close();
}

static void a_later_process(void) { fake_put_record("d", 101, "there:1", 55); }
static void an_older_process(void) { fake_put_record("d", 99, "there:1", 55); }

static void never_over_a_later_process(void **state) {
    (void)state;
    for (int race = 0; race < 3; race++) {
        start();
        if (race == 0) a_later_process();              /* there from the beginning */
        else fake.before_txn = a_later_process;        /* comes between look and claim, which saw nobody, or an older one */
        if (race == 2) an_older_process();
        run_until(is_displaced, "it is displaced");
        assert_int_equal(fake.puts, 0);
        assert_string_equal(entry_address(), "there:1");
        leave();
        assert_int_equal(fake.revoked, 0);
        fake_close();
    }
}

static void an_older_process_is_faster(void **state) {
    (void)state;
    start();
    fake.before_txn = an_older_process;
    run_until(has_put, "it is registered");
    assert_string_equal(entry_address(), "here:1");
    leave();
    fake_close();
}

static void bad_ids_and_registries(void **state) {
    (void)state;
    static const struct { const char *spec, *id, *part; } bad[] = {
        {NULL, "", "id ''"},
        {NULL, "a/b", "without '/'"},
        {NULL, "0123456789012345678901234567890123456789012345678901234567890123", "63"},
        {"embedded:a:1", "d", "etcd://"},
        {"etcd://a", "d", "'a'"},
    };
    char spec[200];
    error err;
    fake_open(spec, sizeof spec);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_not_equal(open_member(bad[i].spec ? bad[i].spec : spec, bad[i].id, &err), ST_OK);
        assert_non_null(strstr(err.text, bad[i].part));
    }
    fake_close();
}

/* Every allocation of opening fails once; afterwards nothing is held. */
static void no_memory(void **state) {
    (void)state;
    char spec[200];
    error err;
    rpc_timer *first;            /* the loop's table of timers is made with it, and stays */
    fake_open(spec, sizeof spec);
    assert_int_equal(rpc_timer_start(fake.loop, 0, on_left, NULL, &first), ST_OK);
    rpc_timer_cancel(first);
    status st = ST_NO_MEMORY;
    int64_t before = mem_live();
    for (int n = 1; st != ST_OK; n++) {
        assert_true(n < 100);
        mem_fail_at(n);
        st = open_member(spec, "d", &err);
        mem_fail_at(0);
        if (st != ST_OK) assert_int_equal(mem_live(), before);
    }
    leave();
    fake_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_entry_of_its_own),        cmocka_unit_test(over_an_older_process),
        cmocka_unit_test(never_over_a_later_process), cmocka_unit_test(an_older_process_is_faster),
        cmocka_unit_test(bad_ids_and_registries),     cmocka_unit_test(no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
