/* rpc_server.c -- tests rpc/server.c: addresses, strangers on the port, close, and that nothing is kept. */
#include "rpc_fixture.h"
#include "rpc/internal.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static int entries(const char *folder) {
    DIR *d = opendir(folder);
    int n = 0;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static void port_in_use_and_bad_addresses(void **state) {
    (void)state;
    fixture f;
    error err;
    rpc_server *s = NULL;
    fixture_open(&f);
    char wanted[200];
    snprintf(wanted, sizeof wanted, "cannot listen on %s: address in use", rpc_server_address(f.server));
    assert_int_equal(rpc_server_open(f.loop, rpc_server_address(f.server), methods, 3, &f, &s, &err), ST_IO);
    assert_string_equal(err.text, wanted);
    static const char *const bad[] = {"", ":1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
                                      "127.0.0.1:1x", "::1:80", "[::1", "a b:1", "unix:/tmp/x", "[]:1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(rpc_server_open(f.loop, bad[i], methods, 3, &f, &s, &err), ST_BAD_INPUT);
        assert_non_null(strstr(err.text, "expected HOST:PORT"));
        rpc_channel *c;
        assert_int_equal(rpc_channel_open(f.loop, bad[i], &c, &err), ST_BAD_INPUT);
    }
    rpc_security *insecure;
    assert_int_equal(rpc_security_open(&(rpc_security_options){.insecure = true}, &insecure, &err), ST_OK);
    rpc_security_use(insecure);
    assert_int_equal(rpc_server_open(f.loop, "no.such.host.invalid:0", methods, 3, &f, &s, &err), ST_BAD_INPUT);
    assert_int_equal(rpc_server_open(f.loop, "192.0.2.1:0", methods, 3, &f, &s, &err), ST_IO);
    rpc_security_use(NULL);
    rpc_security_close(insecure);
    assert_null(s);
    fixture_close(&f);
}

/* A path from the wire is bytes: one that only begins like ours, up to a NUL, is another. */
static void paths_are_compared_as_bytes(void **state) {
    (void)state;
    fixture f;
    void *ctx = NULL;
    static const char unary[] = "/test.Echo/Unary", longer[] = "/test.Echo/Unary\0and a great deal more";
    fixture_open(&f);
    assert_ptr_equal(rpc_server_find(f.server, grpc_slice_from_static_buffer(unary, sizeof unary - 1), &ctx),
                     &methods[UNARY]);
    assert_ptr_equal(ctx, &f);
    for (size_t bytes = 0; bytes < sizeof longer; bytes++)
        if (bytes != sizeof unary - 1)
            assert_null(rpc_server_find(f.server, grpc_slice_from_static_buffer(longer, bytes), &ctx));
    fixture_close(&f);
}

static void closes_unstarted(void **state) {
    (void)state;
    fixture f;
    error err;
    rpc_server *s;
    bool done = false;
    fixture_open(&f);
    assert_int_equal(rpc_server_open(f.loop, "127.0.0.1:0", methods, 3, &f, &s, &err), ST_OK);
    rpc_server_close(s, set_true, &done);
    assert_true(run_until(&f, is_true, &done, 20000));
    fixture_close(&f);
}

static void close_cancels_and_waits(void **state) {
    (void)state;
    fixture f;
    answer a[20];
    bool done = false;
    memset(a, 0, sizeof a);
    fixture_open(&f);
    for (int i = 0; i < 20; i++)
        assert_int_equal(ask(&f, STREAM, i % 2 ? "hang" : "flood 10000", 0, true, &a[i]), ST_OK);
    while (f.served < 20) run_until(&f, never, NULL, 10);
    rpc_server_close(f.server, set_true, &done);
    assert_true(run_until(&f, is_true, &done, 20000));
    assert_int_equal(f.canceled, 20);
    assert_int_equal(f.freed, 20);
    for (int i = 0; i < 20; i++) {
        assert_true(run_until(&f, is_true, &a[i].ended, 20000));
        assert_true(a[i].st != ST_OK);
    }
    rpc_channel_close(f.channel);
    rpc_loop_destroy(f.loop);
}

static void random_bytes_leave_nothing(void **state) {
    (void)state;
    fixture f;
    answer a;
    fixture_open(&f);
    ask_and_wait(&f, UNARY, "echo", &a);
    int files = entries("/proc/self/fd");
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)atoi(strchr(rpc_server_address(f.server), ':') + 1));
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    srand(7);
    for (int i = 0; i < 50; i++) {
        char junk[3000] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        size_t start = i % 2 ? 24 : 0, bytes = 100 + (size_t)(rand() % 2900);
        for (size_t k = start; k < bytes; k++) junk[k] = (char)rand();
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
        assert_int_equal(send(fd, junk, bytes, MSG_NOSIGNAL), bytes);
        run_until(&f, never, NULL, 20);
        ssize_t got;
        if (i % 2 == 0) while ((got = recv(fd, junk, sizeof junk, MSG_DONTWAIT)) > 0) {}
        close(fd);
    }
    run_until(&f, never, NULL, 200);
    assert_int_equal(rpc_server_calls(f.server), 0);
    assert_int_equal(f.served, 1);
    assert_int_equal(entries("/proc/self/fd"), files);
    ask_and_wait(&f, UNARY, "echo", &a);
    assert_int_equal(a.st, ST_OK);
    fixture_close(&f);
}

static void rounds_leave_no_file_thread_or_memory(void **state) {
    enum { ROUNDS = 200, LOST = ROUNDS / 10 };
    (void)state;
    fixture f;
    answer a;
    error err;
    rpc_channel *first;
    fixture_open(&f);
    ask_and_wait(&f, UNARY, "echo", &a);
    first = f.channel;
    run_until(&f, never, NULL, 100);
    int files = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    int64_t held = mem_live();
    for (int i = 0; i < ROUNDS; i++) {
        assert_int_equal(rpc_channel_open(f.loop, rpc_server_address(f.server), &f.channel, &err), ST_OK);
        a = (answer){.cancel_after = 1 + i % 3};
        assert_int_equal(ask(&f, STREAM, i % 2 ? "flood 100" : "hang", 0, true, &a), ST_OK);
        if (i % 2 == 0) {
            run_until(&f, never, NULL, i % 7);
            rpc_stream_cancel(a.stream);
        }
        assert_true(run_until(&f, is_true, &a.ended, 20000));
        assert_int_equal(a.st, ST_CANCELED);
        rpc_channel_close(f.channel);
    }
    assert_true(run_until(&f, all_freed, &f, 20000));
    /* gRPC gives an attempt to connect that nobody waits for any more up to 20 s before it closes it; on a machine with ten
     * times the work that its cores can do, gRPC 1.51 forgets one now and then. */
    for (int i = 0; i < 300 && entries("/proc/self/fd") > files; i++) run_until(&f, never, NULL, 100);
    assert_in_range(entries("/proc/self/fd"), files, files + LOST);
    assert_in_range(entries("/proc/self/task"), 1, threads + 2); /* gRPC's own pool breathes */
    assert_in_range(mem_live(), held - 4, held + 64);
    f.channel = first;
    fixture_close(&f);
}

static void everything_ends_with_the_last_loop(void **state) {
    (void)state;
    int files = 0, threads = 0;
    int64_t held = mem_live();
    for (int i = 0; i < 4; i++) {
        fixture f;
        answer a;
        fixture_open(&f);
        ask_and_wait(&f, STREAM, "count 3", &a);
        fixture_close(&f);
        if (i == 0) files = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    }
    assert_int_equal(mem_live(), held);
    assert_in_range(entries("/proc/self/task"), 1, threads);
    assert_in_range(entries("/proc/self/fd"), 1, files);         /* fewer: gRPC was not done with the first yet */
}

/* ---- 1,000 calls canceled at random points, server and client on threads of their own --------------- */

typedef struct storm {
    fixture f;                   /* the client's loop is driven by the test */
    rpc_loop *server_loop;
    answer answers[1000];
    bool closed;
    rpc_server *server;
    int calls;
} storm;

static void open_there(void *arg) {
    storm *s = arg;
    error err;
    rpc_server_open(s->server_loop, "127.0.0.1:0", methods, 3, &s->f, &s->server, &err);
    rpc_server_start(s->server);
}

static void count_there(void *arg) {
    storm *s = arg;
    __atomic_store_n(&s->calls, rpc_server_calls(s->server), __ATOMIC_RELEASE);
}

static void closed_there(void *arg) { __atomic_store_n(&((storm *)arg)->closed, true, __ATOMIC_RELEASE); }
static void close_there(void *arg) { rpc_server_close(((storm *)arg)->server, closed_there, arg); }

static void cancel_one(void *arg) {
    answer *a = arg;
    if (!a->ended) rpc_stream_cancel(a->stream);
}

static bool storm_over(void *arg) {
    storm *s = arg;
    for (int i = 0; i < 1000; i++)
        if (!s->answers[i].ended) return false;
    return true;
}

static bool calls_zero(void *arg) {
    storm *s = arg;
    rpc_loop_post(s->server_loop, count_there, s);
    return __atomic_load_n(&s->calls, __ATOMIC_ACQUIRE) == 0;
}

static bool storm_closed(void *arg) { return __atomic_load_n(&((storm *)arg)->closed, __ATOMIC_ACQUIRE); }

static void thousand_calls_canceled_at_random(void **state) {
    (void)state;
    static storm s;
    error err;
    static const char *const texts[] = {"hang", "flood 200", "echo", "count 50"};
    assert_int_equal(rpc_loop_create(&s.f.loop, &err), ST_OK);
    assert_int_equal(rpc_loop_create(&s.server_loop, &err), ST_OK);
    open_there(&s);
    assert_int_equal(rpc_loop_start(s.server_loop, "server"), ST_OK);
    assert_int_equal(rpc_channel_open(s.f.loop, rpc_server_address(s.server), &s.f.channel, &err), ST_OK);
    srand(11);
    for (int i = 0; i < 1000; i++) {
        rpc_timer *t;
        assert_int_equal(ask(&s.f, 1 + i % 2, texts[rand() % 4], 0, true, &s.answers[i]), ST_OK);
        assert_int_equal(rpc_timer_start(s.f.loop, rand() % 60, cancel_one, &s.answers[i], &t), ST_OK);
        if (i % 20 == 0) run_until(&s.f, never, NULL, 2);
    }
    assert_true(run_until(&s.f, storm_over, &s, 20000));
    int canceled = 0;
    for (int i = 0; i < 1000; i++) canceled += s.answers[i].st == ST_CANCELED;
    print_message("%d of 1000 canceled\n", canceled);
    assert_true(canceled > 200);
    s.calls = -1;
    assert_true(run_until(&s.f, calls_zero, &s, 20000));
    rpc_channel_close(s.f.channel);
    rpc_loop_post(s.server_loop, close_there, &s);
    assert_true(run_until(&s.f, storm_closed, &s, 20000));
    rpc_loop_destroy(s.server_loop);
    rpc_loop_destroy(s.f.loop);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_ends_with_the_last_loop),
        cmocka_unit_test(port_in_use_and_bad_addresses),
        cmocka_unit_test(closes_unstarted),
        cmocka_unit_test(paths_are_compared_as_bytes),
        cmocka_unit_test(close_cancels_and_waits),
        cmocka_unit_test(random_bytes_leave_nothing),
        cmocka_unit_test(rounds_leave_no_file_thread_or_memory),
        cmocka_unit_test(thousand_calls_canceled_at_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
