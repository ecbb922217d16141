/* rpc_message.c -- tests rpc/message.c: there and back, damaged bytes, expansion, want of memory. */
#include "rpc/internal.h"
#include "proto/baton.pb-c.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define REQUEST &baton__v1__generate_request__descriptor

static void fill(Baton__V1__GenerateRequest *q, Baton__V1__Tokens *t, int32_t *ids, size_t n) {
    baton__v1__generate_request__init(q);
    baton__v1__tokens__init(t);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)i;
    t->ids = ids;
    t->n_ids = n;
    q->input_case = BATON__V1__GENERATE_REQUEST__INPUT_TOKENS;
    q->tokens = t;
    q->model = (char *)(uintptr_t)"m";
}

static void there_and_back(void **state) {
    (void)state;
    Baton__V1__GenerateRequest q;
    Baton__V1__Tokens t;
    static int32_t ids[5000];
    int64_t held = mem_live();
    for (size_t n = 0; n <= 5000; n = n * 2 + 1) {
        grpc_byte_buffer *b;
        ProtobufCMessage *m;
        fill(&q, &t, ids, n);
        assert_int_equal(rpc_message_pack(&q.base, &b), ST_OK);
        assert_int_equal(grpc_byte_buffer_length(b), protobuf_c_message_get_packed_size(&q.base));
        assert_int_equal(rpc_message_unpack(REQUEST, b, &m), ST_OK);
        const Baton__V1__GenerateRequest *r = (const Baton__V1__GenerateRequest *)m;
        assert_int_equal(r->tokens->n_ids, n);
        if (n) assert_memory_equal(r->tokens->ids, ids, n * sizeof *ids);
        rpc_message_free(m);
        grpc_byte_buffer_destroy(b);
    }
    assert_int_equal(mem_live(), held);
}

static void damaged_bytes_are_refused_or_read(void **state) {
    (void)state;
    Baton__V1__GenerateRequest q;
    Baton__V1__Tokens t;
    int32_t ids[50];
    uint8_t bytes[300];
    int64_t held = mem_live();
    fill(&q, &t, ids, 50);
    size_t n = protobuf_c_message_pack(&q.base, bytes);
    int refused = 0;
    for (size_t cut = 0; cut < n; cut++) {
        for (int flip = 0; flip < 8; flip++) {
            uint8_t copy[300];
            ProtobufCMessage *m = NULL;
            memcpy(copy, bytes, n);
            copy[cut] ^= (uint8_t)(1 << flip);
            status st = rpc_message_read(REQUEST, copy, flip % 2 ? n : cut, &m);
            assert_true(st == ST_OK || st == ST_CORRUPT);
            refused += st != ST_OK;
            rpc_message_free(m);
        }
    }
    assert_true(refused > 100);
    assert_int_equal(mem_live(), held);
}

/* 16 MB of empty submessages would become 700 MB of structs. */
static void expansion_is_bounded(void **state) {
    (void)state;
    int64_t held = mem_live();
    uint8_t *bytes = malloc(RPC_MESSAGE_MAX);
    ProtobufCMessage *m = NULL;
    for (size_t i = 0; i < RPC_MESSAGE_MAX; i += 2) bytes[i] = 0x0a, bytes[i + 1] = 0;
    assert_int_equal(rpc_message_read(&baton__v1__chat__descriptor, bytes, RPC_MESSAGE_MAX, &m), ST_CORRUPT);
    free(bytes);
    assert_null(m);
    assert_int_equal(mem_live(), held);
}

/* As protobuf allows, but a C string can not say. */
static void a_string_with_a_nul_is_refused(void **state) {
    (void)state;
    Baton__V1__GenerateRequest q;
    Baton__V1__Chat chat = BATON__V1__CHAT__INIT;
    Baton__V1__ChatMessage message = BATON__V1__CHAT_MESSAGE__INIT, *messages[] = {&message};
    uint8_t bytes[100];
    int64_t held = mem_live();
    message.content = (char *)(uintptr_t)"a?b";
    chat.messages = messages;
    chat.n_messages = 1;
    baton__v1__generate_request__init(&q);
    q.request_id = (char *)(uintptr_t)"r?1";
    q.input_case = BATON__V1__GENERATE_REQUEST__INPUT_CHAT;
    q.chat = &chat;
    size_t n = protobuf_c_message_pack(&q.base, bytes);
    int strings = 0;
    for (size_t at = 0; at <= n; at++) {
        ProtobufCMessage *m = NULL;
        bool inside = at < n && bytes[at] == '?';
        if (inside) bytes[at] = 0;
        assert_int_equal(rpc_message_read(REQUEST, bytes, n, &m), inside ? ST_CORRUPT : ST_OK);
        rpc_message_free(m);
        if (inside) bytes[at] = '?';
        strings += inside;
    }
    assert_int_equal(strings, 2);
    assert_int_equal(mem_live(), held);
}

static void no_memory_is_told_apart(void **state) {
    (void)state;
    Baton__V1__GenerateRequest q;
    Baton__V1__Tokens t;
    int32_t ids[50];
    uint8_t bytes[300];
    int64_t held = mem_live();
    fill(&q, &t, ids, 50);
    size_t n = protobuf_c_message_pack(&q.base, bytes);
    status st = ST_NO_MEMORY;
    for (int nth = 1; st != ST_OK; nth++) {
        ProtobufCMessage *m = NULL;
        mem_fail_at(nth);
        st = rpc_message_read(REQUEST, bytes, n, &m);
        mem_fail_at(0);
        assert_true(st == ST_OK || st == ST_NO_MEMORY);
        rpc_message_free(m);
        assert_true(nth < 20);
    }
    assert_int_equal(mem_live(), held);
}

static int begin(void **state) { (void)state; grpc_init(); return 0; }
static int end(void **state) { (void)state; grpc_shutdown_blocking(); return 0; }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(damaged_bytes_are_refused_or_read),
        cmocka_unit_test(expansion_is_bounded),
        cmocka_unit_test(a_string_with_a_nul_is_refused),
        cmocka_unit_test(no_memory_is_told_apart),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
