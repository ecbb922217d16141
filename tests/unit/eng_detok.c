/* eng_detok.c -- engine/detok.c: pieces joined are the whole decoded at once, for every cut; one
 * U+FFFD for each maximal subpart; tokens back to the text they came from. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "engine/engine.h"
#include "tests/vocab_file.h"

#define BAD "\xEF\xBF\xBD" /* U+FFFD */

static eng_vocab *vocab;

static int open_vocab(void **state) {
    (void)state;
    static vocab_file file;
    eng_gguf *g;
    vocab_file_make(&file, "smollm");
    if (eng_gguf_open_memory(file.bytes, file.used, "test", &g, NULL)) return -1;
    status s = eng_vocab_open(g, &vocab, NULL);
    eng_gguf_close(g);
    return s == ST_OK ? 0 : -1;
}

static int close_vocab(void **state) {
    (void)state;
    eng_vocab_close(vocab);
    return 0;
}

/* Bytes as tokens: token b is byte b. Returns the length of the text in out. */
static size_t decode(const char *bytes, size_t count, char *out) {
    eng_detok d = {0};
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        n += eng_detok_push(&d, vocab, (unsigned char)bytes[i], false, out + n);
    return n + eng_detok_end(&d, out + n);
}

/* The examples of The Unicode Standard 3.9 (tables 3-8 to 3-11), and others. */
static void test_maximal_subparts(void **state) {
    (void)state;
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"A\xC3\xA9\xE6\x97\xA5\xF0\x9F\x98\x80z", "A\xC3\xA9\xE6\x97\xA5\xF0\x9F\x98\x80z"},
        {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", BAD BAD BAD BAD BAD BAD BAD BAD "A"},
        {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", BAD BAD BAD BAD BAD BAD BAD BAD "A"},
        {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", BAD BAD BAD BAD BAD "A" BAD BAD "B"},
        {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", BAD BAD BAD BAD "A"},
        {"\xF0\x9F\x98", BAD},
        {"\xF0\x9F\x98\xF0\x9F\x98\x80", BAD "\xF0\x9F\x98\x80"},
        {"\xC3\xC3\xA9\x80", BAD "\xC3\xA9" BAD},
        {"\xF8\x88\xFE", BAD BAD BAD},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[64];
        size_t n = decode(cases[i].bytes, strlen(cases[i].bytes), out);
        assert_int_equal(n, strlen(cases[i].text));
        assert_memory_equal(out, cases[i].text, n);
    }
}

/* A vocabulary token of several bytes and its bytes one by one come to the same text, wherever it
 * stands. */
static void test_every_cut(void **state) {
    (void)state;
    static const int32_t pieces[] = {
        0xC3, 0xA9, 263 /* e acute */, 0xF0, 0x9F, 256 /* th */, 0x98, 0x80, 0xE6, 0x97, 0xA5,
        0xFF, 269 /* control */};
    uint32_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        char joined[64], expected[256], found[256];
        size_t joined_bytes = 0, n = 0;
        eng_detok d = {0};
        for (int i = 0; i < 8; i++) {
            seed = seed * 1664525u + 1013904223u;
            int32_t token = pieces[(seed >> 16) % (sizeof pieces / sizeof *pieces)];
            bool special = seed >> 8 & 1;
            size_t bytes, got = eng_detok_push(&d, vocab, token, special, found + n);
            const char *text = eng_vocab_bytes(vocab, token, &bytes);
            assert_true(got <= eng_detok_max(vocab));
            n += got;
            if (token == 269 && !special) continue;
            memcpy(joined + joined_bytes, text, bytes);
            joined_bytes += bytes;
        }
        n += eng_detok_end(&d, found + n);
        assert_int_equal(n, decode(joined, joined_bytes, expected));
        assert_memory_equal(found, expected, n);
    }
}

static void test_control_and_unknown_tokens(void **state) {
    (void)state;
    eng_detok d = {0};
    char out[128];
    assert_int_equal(eng_detok_push(&d, vocab, 265, false, out), 0);
    assert_int_equal(eng_detok_push(&d, vocab, 265, true, out), 7);
    assert_memory_equal(out, "<|end|>", 7);
    assert_int_equal(eng_detok_push(&d, vocab, 268, false, out), 6); /* user-defined: text */
    assert_int_equal(eng_detok_push(&d, vocab, 0xE6, false, out), 0);
    assert_int_equal(eng_detok_push(&d, vocab, 265, false, out),
                     0); /* skipped: the character goes on */
    assert_int_equal(eng_detok_push(&d, vocab, 0x97, false, out), 0);
    assert_int_equal(eng_detok_push(&d, vocab, 0xA5, false, out), 3);
    assert_int_equal(eng_detok_push(&d, vocab, 0xE6, false, out), 0);
    assert_int_equal(eng_detok_push(&d, vocab, eng_vocab_count(vocab), false, out),
                     6); /* held, and this */
    assert_int_equal(eng_detok_push(&d, vocab, -1, false, out), 3);
    assert_memory_equal(out, BAD, 3);
    assert_int_equal(eng_detok_end(&d, out), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maximal_subparts),
        cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_control_and_unknown_tokens),
    };
    return cmocka_run_group_tests(tests, open_vocab, close_vocab);
}
