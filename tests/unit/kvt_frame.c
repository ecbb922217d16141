/* kvt_frame.c -- the 64 bytes on the wire and their CRC. */
#include "kvtransfer/internal.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static kvt_frame sample(void) {
    return (kvt_frame){.kind = KVT_DATA, .ticket = 0x1122334455667788, .epoch = 7, .layer_first = 1,
                       .layers = 2, .head_first = 3, .heads = 4, .token_first = 5, .tokens = 6,
                       .type = 8, .code = 9, .payload_bytes = KVT_PAYLOAD_MAX, .payload_crc = 10};
}

/* RFC 3720 appendix B.4 and the check value of the CRC catalogue. */
static void crc_known(void **state) {
    (void)state;
    unsigned char bytes[32] = {0};
    assert_int_equal(kvt_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(kvt_crc32c(0, bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, 32);
    assert_int_equal(kvt_crc32c(0, bytes, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) bytes[i] = (unsigned char)i;
    assert_int_equal(kvt_crc32c(0, bytes, 32), 0x46dd794e);
    assert_int_equal(kvt_crc32c(0, NULL, 0), 0);
}

/* All ways agree for every length around their lanes and folds, whole and in two pieces. */
static void crc_ways_agree(void **state) {
    (void)state;
    enum { BYTES = 7000 };
    static unsigned char bytes[BYTES + 8];
    srand(1);
    for (int i = 0; i < BYTES + 8; i++) bytes[i] = (unsigned char)rand();
    for (size_t n = 0; n <= BYTES; n += n < 100 ? 1 : 37) {
        const unsigned char *from = bytes + n % 8;
        uint32_t whole = kvt_crc32c(0, from, n);
        uint32_t by_way, ways = 0;
        for (int way = 0; kvt_crc32c_way(way, 0, from, n, &by_way); way++, ways++) assert_int_equal(by_way, whole);
        assert_true(ways >= 1);
        size_t cut = n ? (size_t)rand() % n : 0;
        assert_int_equal(whole, kvt_crc32c(kvt_crc32c(0, from, cut), from + cut, n - cut));
        for (int way = 0; kvt_crc32c_way(way, 0, from, cut, &by_way); way++) {
            assert_true(kvt_crc32c_way(way, by_way, from + cut, n - cut, &by_way));
            assert_int_equal(by_way, whole);
        }
    }
}

static void round_trip(void **state) {
    (void)state;
    unsigned char wire[KVT_FRAME_BYTES];
    kvt_frame in = sample(), out;
    kvt_frame_encode(&in, wire);
    assert_int_equal(kvt_frame_decode(wire, &out, NULL), ST_OK);
    assert_int_equal(out.kind, in.kind);
    assert_true(out.ticket == in.ticket);
    assert_int_equal(out.epoch, in.epoch);
    assert_int_equal(out.layer_first, in.layer_first);
    assert_int_equal(out.layers, in.layers);
    assert_int_equal(out.head_first, in.head_first);
    assert_int_equal(out.heads, in.heads);
    assert_int_equal(out.token_first, in.token_first);
    assert_int_equal(out.tokens, in.tokens);
    assert_int_equal(out.type, in.type);
    assert_int_equal(out.code, in.code);
    assert_int_equal(out.payload_bytes, in.payload_bytes);
    assert_int_equal(out.payload_crc, in.payload_crc);
}

/* The layout is a promise to other builds: these bytes may not change under version 2. */
static void layout_is_fixed(void **state) {
    (void)state;
    static const unsigned char expected[60] = {
        'B', 'K', 'V', '1', 2, 2, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
        7, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0,
        8, 0, 0, 0, 9, 0, 0, 0, 0, 0, 16, 0, 10, 0, 0, 0};
    unsigned char wire[KVT_FRAME_BYTES];
    kvt_frame in = sample();
    kvt_frame_encode(&in, wire);
    assert_memory_equal(wire, expected, sizeof expected);
}

static void every_flipped_bit_is_seen(void **state) {
    (void)state;
    unsigned char wire[KVT_FRAME_BYTES];
    kvt_frame in = sample(), out;
    for (int bit = 0; bit < KVT_FRAME_BYTES * 8; bit++) {
        error err = {0};
        kvt_frame_encode(&in, wire);
        wire[bit / 8] ^= (unsigned char)(1 << bit % 8);
        assert_int_equal(kvt_frame_decode(wire, &out, &err), ST_CORRUPT);
        assert_non_null(strstr(err.text, bit < 32   ? "magic"
                                         : bit < 40 ? "version"
                                                    : "header CRC"));
    }
}

static void put_crc(unsigned char wire[KVT_FRAME_BYTES]) {
    uint32_t crc = kvt_crc32c(0, wire, 60);
    for (int b = 0; b < 4; b++) wire[60 + b] = (unsigned char)(crc >> 8 * b);
}

/* A header whose CRC is right all the same: lies are named. */
static void lies_are_named(void **state) {
    (void)state;
    static const struct {
        int at;
        unsigned char value;
        const char *named;
    } lies[] = {
        {5, 0, "kind"}, {5, 6, "kind"}, {6, 2, "kind"}, {7, 1, "kind"}, {55, 0x80, "length"}, {52, 1, "length"},
        {5, KVT_END, "length"}, {5, KVT_HELLO, "length"}, {5, KVT_ACK, "length"},
        {54, 0, "length"}, /* DATA without payload */
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        unsigned char wire[KVT_FRAME_BYTES];
        kvt_frame in = sample(), out;
        error err = {0};
        kvt_frame_encode(&in, wire);
        wire[lies[i].at] = lies[i].value;
        put_crc(wire);
        assert_int_equal(kvt_frame_decode(wire, &out, &err), ST_CORRUPT);
        assert_non_null(strstr(err.text, lies[i].named));
    }
}

/* The flag stands for the number in the CRC's place; ACK and HELLO can not have it. */
static void sealed_frames(void **state) {
    (void)state;
    unsigned char wire[KVT_FRAME_BYTES];
    kvt_frame in = sample(), out;
    error err = {0};
    in.sealed = true;
    in.number = 0x04030201;
    kvt_frame_encode(&in, wire);
    assert_memory_equal(wire + 4, "\2\2\1\0", 4);
    assert_memory_equal(wire + 56, "\1\2\3\4", 4);
    assert_int_equal(kvt_frame_decode(wire, &out, &err), ST_OK);
    assert_true(out.sealed && out.number == in.number && out.payload_crc == 0);
    for (int kind = KVT_HELLO; kind <= KVT_ACK; kind++) {
        bool may = kind != KVT_HELLO && kind != KVT_ACK;
        in = (kvt_frame){.kind = (kvt_frame_kind)kind, .payload_bytes = kind == KVT_DATA};
        kvt_frame_encode(&in, wire);
        wire[6] = 1;
        put_crc(wire);
        assert_int_equal(kvt_frame_decode(wire, &out, &err), may ? ST_OK : ST_CORRUPT);
        if (!may) assert_non_null(strstr(err.text, "sealed"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc_known),       cmocka_unit_test(crc_ways_agree),
        cmocka_unit_test(round_trip),      cmocka_unit_test(layout_is_fixed),
        cmocka_unit_test(lies_are_named),  cmocka_unit_test(every_flipped_bit_is_seen),
        cmocka_unit_test(sealed_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
