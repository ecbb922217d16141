/* rpc_call.c -- tests rpc/call.c: kinds, refusals, cancel, deadline, flow control, want of memory. */
#include "rpc_fixture.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static void unary_stream_and_bidi_answer(void **state) {
    (void)state;
    fixture f;
    answer a;
    fixture_open(&f);
    ask_and_wait(&f, UNARY, "echo", &a);
    assert_int_equal(a.st, ST_OK);
    assert_int_equal(a.messages, 1);
    assert_int_equal(a.retry_after_ms, -1);
    assert_true(f.time_left_ms == INT64_MAX);
    assert_non_null(strstr(f.header, "grpc-c"));
    ask_and_wait(&f, STREAM, "count 5", &a);
    assert_int_equal(a.st, ST_OK);
    assert_int_equal(a.messages, 5);
    for (int i = 0; i < 5; i++) assert_int_equal(a.tokens[i], i);
    ask_and_wait(&f, STREAM, "count 0", &a);
    assert_int_equal(a.st, ST_OK);
    assert_int_equal(a.messages, 0);
    ask_and_wait(&f, BIDI, "hang", &a); /* finished when the client has sent its last */
    assert_int_equal(a.st, ST_OK);
    assert_true(run_until(&f, all_freed, &f, 20000));
    assert_int_equal(f.freed, f.served);
    fixture_close(&f);
}

static void refusal_carries_text_and_pushback(void **state) {
    (void)state;
    fixture f;
    answer a;
    fixture_open(&f);
    ask_and_wait(&f, STREAM, "refuse", &a);
    assert_int_equal(a.st, ST_AGAIN);
    assert_string_equal(a.text, "queue is full");
    assert_int_equal(a.retry_after_ms, 1500);
    assert_int_equal(a.messages, 0);
    fixture_close(&f);
}

static void cancel_reaches_a_quiet_server(void **state) {
    (void)state;
    fixture f;
    answer a = {0};
    fixture_open(&f);
    assert_int_equal(ask(&f, STREAM, "hang", 0, true, &a), ST_OK);
    assert_true(run_until(&f, was_served, &f, 20000));
    run_until(&f, never, NULL, 50);
    int64_t asked = clock_now_us();
    rpc_stream_cancel(a.stream);
    assert_true(run_until(&f, is_true, &a.ended, 20000));
    assert_true(run_until(&f, all_freed, &f, 20000));
    assert_int_equal(a.st, ST_CANCELED);
    assert_int_equal(f.canceled, 1);
    assert_int_equal(f.freed, 1);
    print_message("on_cancel after %lld us\n", (long long)(f.canceled_us - asked));
    assert_true(f.canceled_us - asked < 2000000);
    fixture_close(&f);
}

static void deadline_ends_both_sides(void **state) {
    (void)state;
    fixture f;
    answer a = {0};
    fixture_open(&f);
    assert_int_equal(ask(&f, STREAM, "hang", 200, true, &a), ST_OK);
    assert_true(run_until(&f, is_true, &a.ended, 20000));
    assert_true(run_until(&f, all_freed, &f, 20000));
    assert_int_equal(a.st, ST_DEADLINE);
    assert_int_equal(f.canceled, 1);
    assert_in_range(f.time_left_ms, 1, 200);
    fixture_close(&f);
}

static void slow_reader_is_not_buffered_for(void **state) {
    (void)state;
    fixture f;
    answer a = {.pause_after = 1};
    fixture_open(&f);
    assert_int_equal(ask(&f, STREAM, "flood 400", 0, true, &a), ST_OK);
    run_until(&f, never, NULL, 300);
    int writable = f.writable;
    assert_int_equal(a.messages, 1);
    assert_true(f.again > 0);
    assert_in_range(f.waiting_max, RPC_WINDOW, RPC_WINDOW + 9000);
    run_until(&f, never, NULL, 200);
    assert_int_equal(f.writable, writable); /* nothing moves while the client pauses */
    rpc_stream_resume(a.stream);
    assert_true(run_until(&f, is_true, &a.ended, 10000));
    assert_int_equal(a.messages, 400);
    assert_int_equal(a.st, ST_OK);
    assert_true(f.writable > writable);
    print_message("most waiting %zu bytes; %d times full\n", f.waiting_max, f.again);
    fixture_close(&f);
}

/* What is sent after rpc_call_hold() leaves with the status; but not more than a window waits for that. */
static void held_messages_leave_with_the_status(void **state) {
    (void)state;
    fixture f;
    answer a = {0};
    fixture_open(&f);
    assert_int_equal(ask(&f, STREAM, "held count 3", 0, true, &a), ST_OK);
    assert_true(run_until(&f, was_served, &f, 20000));
    run_until(&f, never, NULL, 50);
    assert_int_equal(a.messages, 0);
    assert_true(rpc_call_waiting(f.held) > 0);
    rpc_call_finish(f.held, ST_OK, NULL, -1);
    assert_true(run_until(&f, is_true, &a.ended, 20000));
    assert_int_equal(a.messages, 3);
    for (int i = 0; i < 3; i++) assert_int_equal(a.tokens[i], i);
    ask_and_wait(&f, STREAM, "held flood 100", &a);
    assert_int_equal(a.messages, 100);
    assert_true(f.again > 0);
    assert_in_range(f.waiting_max, RPC_WINDOW, RPC_WINDOW + 9000);
    fixture_close(&f);
}

static void too_big_a_message_is_refused(void **state) {
    (void)state;
    fixture f;
    answer a;
    fixture_open(&f);
    ask_and_wait(&f, UNARY, "big", &a);
    assert_int_equal(a.st, ST_AGAIN); /* RESOURCE_EXHAUSTED */
    assert_int_equal(a.messages, 0);
    char *text = malloc(RPC_MESSAGE_MAX + 100);
    memset(text, 'x', RPC_MESSAGE_MAX + 99);
    text[RPC_MESSAGE_MAX + 99] = 0;
    int served = f.served;
    ask_and_wait(&f, UNARY, text, &a);
    assert_int_equal(a.st, ST_AGAIN);
    assert_int_equal(f.served, served);
    free(text);
    ask_and_wait(&f, UNARY, "echo", &a); /* and nothing else is disturbed */
    assert_int_equal(a.st, ST_OK);
    fixture_close(&f);
}

static void stop_loop(void *arg) { rpc_loop_stop(arg); }

/* The N-th allocation fails, for N = 1, 2, 3 …: a clean end each time, and nothing is kept. */
static void no_memory_fails_one_call(void **state) {
    (void)state;
    fixture f;
    answer a;
    fixture_open(&f);
    ask_and_wait(&f, UNARY, "echo", &a);
    int failed = 0, ok_in_a_row = 0;
    for (int64_t n = 1; ok_in_a_row < 20 && n < 500; n++) {
        a = (answer){0};
        rpc_timer *stop;
        assert_int_equal(rpc_timer_start(f.loop, 20, stop_loop, f.loop, &stop), ST_OK);
        mem_fail_at(n);
        status st = ask(&f, STREAM, "echo", 5000, true, &a);
        rpc_loop_run(f.loop);
        mem_fail_at(0);
        if (st == ST_OK) assert_true(run_until(&f, is_true, &a.ended, 20000));
        bool fine = st == ST_OK && a.st == ST_OK;
        if (!fine) assert_true(st == ST_NO_MEMORY || a.st == ST_AGAIN || a.st == ST_NO_MEMORY);
        failed += !fine;
        ok_in_a_row = fine ? ok_in_a_row + 1 : 0;
    }
    print_message("%d exchanges failed for want of memory\n", failed);
    assert_true(failed >= 4);
    ask_and_wait(&f, UNARY, "echo", &a);
    assert_int_equal(a.st, ST_OK);
    assert_true(run_until(&f, all_freed, &f, 20000));
    fixture_close(&f);
}

/* ---- on the wire: raw HTTP/2, so that no client library stands between ------------------------------ */

static int dial(const char *address) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1));
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static size_t literal(unsigned char *out, const char *name, const char *value) {
    size_t n = strlen(name), v = strlen(value), at = 0; /* HPACK: literal, never indexed, no Huffman */
    out[at++] = 0x10;
    out[at++] = (unsigned char)n;
    memcpy(out + at, name, n), at += n;
    out[at++] = (unsigned char)v;
    memcpy(out + at, value, v);
    return at + v;
}

static size_t frame(unsigned char *out, int type, int flags, int stream, const void *payload, size_t bytes) {
    unsigned char head[9] = {(unsigned char)(bytes >> 16), (unsigned char)(bytes >> 8), (unsigned char)bytes,
                             (unsigned char)type, (unsigned char)flags, 0, 0, 0, (unsigned char)stream};
    memcpy(out, head, 9);
    if (bytes) memcpy(out + 9, payload, bytes);
    return 9 + bytes;
}

/* Sends one call with the given gRPC payload; flags of the frames of stream 1 that come back, in order. */
static int raw_call(fixture *f, const char *path, const void *message, size_t bytes, int *types, int *flags,
                    unsigned char *headers, size_t *headers_bytes) {
    unsigned char out[2000] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", block[600], data[300] = {0};
    size_t at = 24, b = 0;
    b += literal(block + b, ":method", "POST");
    b += literal(block + b, ":scheme", "http");
    b += literal(block + b, ":path", path);
    b += literal(block + b, ":authority", "test");
    b += literal(block + b, "te", "trailers");
    b += literal(block + b, "content-type", "application/grpc");
    data[4] = (unsigned char)bytes;
    memcpy(data + 5, message, bytes);
    at += frame(out + at, 4, 0, 0, NULL, 0);
    at += frame(out + at, 1, 4, 1, block, b);
    at += frame(out + at, 0, 1, 1, data, 5 + bytes);
    int fd = dial(rpc_server_address(f->server)), count = 0;
    assert_int_equal(write(fd, out, at), at);
    run_until(f, never, NULL, 200);
    unsigned char in[8192];
    ssize_t got = recv(fd, in, sizeof in, MSG_DONTWAIT);
    for (ssize_t i = 0; i + 9 <= got;) {
        size_t size = (size_t)in[i] << 16 | (size_t)in[i + 1] << 8 | in[i + 2];
        if (in[i + 8] == 1 && in[i + 3] <= 1 && count < 8) {
            types[count] = in[i + 3];
            flags[count++] = in[i + 4];
            if (in[i + 3] == 1) memcpy(headers, in + i + 9, size), *headers_bytes = size;
        }
        i += 9 + (ssize_t)size;
    }
    close(fd);
    return count;
}

static void refusal_is_trailers_only(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f);
    int types[8], flags[8];
    unsigned char h[8192];
    size_t hn = 0;
    int n = raw_call(&f, "/test.Echo/Stream", "\x12\x06refuse", 8, types, flags, h, &hn);
    assert_int_equal(n, 1);
    assert_int_equal(types[0], 1);
    assert_int_equal(flags[0] & 1, 1); /* END_STREAM on the first header block */
    assert_non_null(memmem(h, hn, "grpc-retry-pushback-ms", 22));
    n = raw_call(&f, "/test.Echo/Stream", "\x12\x04hang", 6, types, flags, h, &hn);
    assert_int_equal(n, 0); /* nothing at all before the first message */
    n = raw_call(&f, "/test.Echo/Unary", "\x12\x04" "echo", 6, types, flags, h, &hn);
    assert_int_equal(n, 3); /* headers, message, trailers */
    fixture_close(&f);
}

static void undecodable_request_is_answered(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f);
    int types[8], flags[8];
    unsigned char h[8192];
    size_t hn = 0;
    answer a;
    int n = raw_call(&f, "/test.Echo/Unary", "\x12\x7f" "cut", 5, types, flags, h, &hn);
    assert_int_equal(n, 1);
    assert_non_null(memmem(h, hn, "does not decode", 15));
    assert_int_equal(f.served, 0);
    n = raw_call(&f, "/test.Echo/None", "", 0, types, flags, h, &hn);
    assert_int_equal(n, 1);
    assert_non_null(memmem(h, hn, "no such method", 14));
    ask_and_wait(&f, UNARY, "echo", &a);
    assert_int_equal(a.st, ST_OK);
    assert_true(run_until(&f, all_freed, &f, 20000));
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unary_stream_and_bidi_answer),
        cmocka_unit_test(refusal_carries_text_and_pushback),
        cmocka_unit_test(cancel_reaches_a_quiet_server),
        cmocka_unit_test(deadline_ends_both_sides),
        cmocka_unit_test(slow_reader_is_not_buffered_for),
        cmocka_unit_test(held_messages_leave_with_the_status),
        cmocka_unit_test(too_big_a_message_is_refused),
        cmocka_unit_test(no_memory_fails_one_call),
        cmocka_unit_test(refusal_is_trailers_only),
        cmocka_unit_test(undecodable_request_is_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
