/* cluster_view_numbers.c -- tests cluster/view.c: more nodes come and go, each at an address of its own, than there are numbers. */
#include "cluster_etcd_fake.h"

enum { STAYS = 0, COME_AND_GO = CLUSTER_NODES_MAX + 5 };

static cluster_view *view;
static int forgotten[COME_AND_GO], forgotten_count;

static void on_state(void *ctx, int node, const Baton__Node__V1__NodeState *state) { (void)ctx, (void)node, (void)state; }
static void on_lost(void *ctx, int node, const char *why) { (void)ctx, (void)node, (void)why; }
static void on_forgotten(void *ctx, int node) {
    (void)ctx;
    forgotten[forgotten_count++] = node;
}

static char newest[40];
static bool is_watching(void) { return fake.watch != NULL; }
static bool has_come(void) {
    for (int i = 0; i < cluster_view_count(view); i++)
        if (strcmp(cluster_view_address(view, i), newest) == 0) return true;
    return false;
}

static bool is_told(void) { return *cluster_view_why(view, STAYS); }

/* One entry of the registry says another address each time: who was there before has left. */
static void come(int i) {
    snprintf(newest, sizeof newest, "127.9.%d.%d:1", i / 250, 1 + i % 250);     /* nobody listens there */
    fake_tell(false, fake_put_record("moves", (uint64_t)i + 1, newest, 8));
    run_until(has_come, newest);
}

static void who_left_first_makes_room(void **state) {
    (void)state;
    static const cluster_view_events events = {.state = on_state, .lost = on_lost, .forgotten = on_forgotten};
    error err = {0};
    char spec[200];
    fake_open(spec, sizeof spec);
    fake_put_record("stays", 1, "127.8.0.1:1", 7);
    assert_int_equal(cluster_view_open(fake.loop, spec, 100, &events, NULL, &view, &err), ST_OK);
    run_until(is_watching, "it watches");
    for (int i = 0; i < COME_AND_GO; i++) come(i);

    assert_int_equal(cluster_view_count(view), CLUSTER_NODES_MAX);
    assert_string_equal(cluster_view_address(view, STAYS), "127.8.0.1:1");
    assert_int_equal(forgotten_count, COME_AND_GO + 1 - CLUSTER_NODES_MAX);
    for (int i = 0; i < forgotten_count; i++) assert_int_equal(forgotten[i], i + 1);
    assert_string_equal(cluster_view_address(view, forgotten_count), newest);

    int64_t now_ms = clock_now_ms(), later_ms = now_ms + CLUSTER_LISTED_MS;
    assert_true(cluster_view_listed(view, STAYS, later_ms) && cluster_view_listed(view, forgotten_count, later_ms));
    assert_false(cluster_view_listed(view, forgotten_count - 1, now_ms));       /* nobody ever heard of it */
    assert_string_equal(cluster_view_why(view, forgotten_count), "");          /* it may just be starting */
    run_until(is_told, "why nobody hears of it");
    assert_non_null(strstr(cluster_view_why(view, STAYS), "Connection refused"));
    cluster_view_close(view);
    fake_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(who_left_first_makes_room)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
