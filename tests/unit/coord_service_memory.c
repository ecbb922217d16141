/* Tests coordinator/service.c for what a request leaves behind: nothing. A coordinator, stub nodes and a client in one process
 * (bench/coordinator/); after thousands of requests it holds as many allocations as after the first thousand.
 * bench/coordinator.py --memory shows the same of 1,000,000 requests, by RSS. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include "bench/coordinator/middle.h"
#include "coordinator/coord.h"
#include "engine/engine.h"
#include "tests/unit/tiny_gguf.h"
#include <unistd.h>

static void model_file(char *path) {
    tiny_gguf t = tiny_gguf_build(&(tiny_options){.vocab = true, .V = 288});
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, t.data, t.bytes) == (ssize_t)t.bytes);
    close(fd);
    tiny_gguf_free(&t);
}

static void nap(void) { nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL); }

static void ask(const char *address, int64_t requests) {
    static middle_report r;
    error err = {0};
    rpc_loop *loop;
    middle_options o = {.kind = MIDDLE_COORDINATOR, .address = address, .requests = requests, .concurrency = 32, .prompt = 40, .answer = 5};
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    status st = middle_client_run(loop, &o, &r, &err);
    if (st != ST_OK) fail_msg("%s", err.text);
    assert_int_equal(r.answered, requests);
    rpc_loop_destroy(loop);
}

/* A call is freed a moment after its client heard the end: the least of a while. */
static int64_t settled(int64_t enough) {
    int64_t least = INT64_MAX;
    for (int i = 0; i < 100 && least > enough; i++, nap())
        if (mem_live() < least) least = mem_live();
    return least;
}

static atomic_bool over;
static void say_over(void *arg) { (void)arg, atomic_store(&over, true); }

static void close_nodes(void *nodes) { stub_nodes_close(nodes, say_over, NULL); }

static void holds_nothing_of_a_request(void **state) {
    (void)state;
    char path[] = "/tmp/bt-tiny-XXXXXX", nodes_list[200];
    error err = {0};
    rpc_loop *loop;
    stub_nodes *nodes;
    eng_gguf *g;
    coord_service *s;
    model_file(path);
    assert_int_equal(eng_gguf_open(path, &g, &err), ST_OK);
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    assert_int_equal(stub_nodes_open(loop, eng_gguf_digest(g), &nodes, &err), ST_OK);
    snprintf(nodes_list, sizeof nodes_list, "%s,%s", stub_nodes_decode(nodes), stub_nodes_prefill(nodes));
    assert_int_equal(rpc_loop_start(loop, "stub"), ST_OK);
    coord_options o = {.id = "coordinator-1", .model = path, .listen = "127.0.0.1:0", .nodes = nodes_list, .heartbeat_ms = 500,
                       .limits = coord_limits_default};
    o.limits.prefill = COORD_PREFILL_REMOTE;
    assert_int_equal(coord_service_open(&o, &s, &err), ST_OK);
    for (int i = 0; i < 1000 && (!coord_service_ready(s, COORD_DECODE) || !coord_service_ready(s, COORD_PREFILL)); i++) nap();
    ask(coord_service_address(s), 1000);
    int64_t before = settled(0);
    ask(coord_service_address(s), 5000);
    int64_t after = settled(before);
    print_message("  %lld allocations after 1,000 requests, %lld after 6,000\n", (long long)before, (long long)after);
    assert_true(after <= before);
    coord_service_close(s, 0);
    while (rpc_loop_post(loop, close_nodes, nodes) != ST_OK) nap();
    while (!atomic_load(&over)) nap();
    rpc_loop_destroy(loop);
    eng_gguf_close(g);
    unlink(path);
}

int main(void) {
    log_setup("test", LOG_ERROR);
    const struct CMUnitTest tests[] = {cmocka_unit_test(holds_nothing_of_a_request)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
