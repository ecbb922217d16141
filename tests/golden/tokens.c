/* tokens.c -- token ids and word cuts against Hugging Face tokenizers'.
 *
 *   smollm2-q4_1.json   the golden cases: text and ids
 *   tokens_extra.json   odd texts: ids, and words by pre-tokenizer (make_tokens.py)
 *
 * With a file as argument, that one is checked in place of tokens_extra.json. Every text must also
 * come back byte for byte, but for bytes the vocabulary has no token for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <string.h>
#include <unistd.h>
#include "engine/engine.h"
#include "engine/pretok.h"

static const char *extra_path = BATON_TESTS_DIR "/golden/tokens_extra.json";
static eng_gguf *file;
static eng_vocab *vocab;

static int open_model(void **state) {
    (void)state;
    error err = {0};
    if (access(BATON_MODEL, R_OK)) return 0; /* each test skips */
    if (eng_gguf_open(BATON_MODEL, &file, &err) || eng_vocab_open(file, &vocab, &err)) {
        print_error("%s\n", err.text);
        return -1;
    }
    return 0;
}

static int close_model(void **state) {
    (void)state;
    eng_vocab_close(vocab);
    eng_gguf_close(file);
    return 0;
}

static json_t *load(const char *path) {
    json_error_t e;
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &e);
    if (!root) fail_msg("%s:%d: %s", path, e.line, e.text);
    return root;
}

static bool has_every_byte(const char *text, size_t bytes) {
    static const char lacking[] = "\x04\x06\x13\x14\x16\x1d\xf1\xf2\xf4";
    for (size_t i = 0; i < bytes; i++)
        if (text[i] && strchr(lacking, text[i])) return false;
    return true;
}

static void check_round_trip(const char *text, size_t bytes, const int32_t *tokens, int32_t count) {
    if (!has_every_byte(text, bytes)) return;
    eng_detok d = {0};
    char *back = test_malloc(bytes + eng_detok_max(vocab) + 16);
    size_t n = 0;
    for (int32_t i = 0; i < count; i++) n += eng_detok_push(&d, vocab, tokens[i], true, back + n);
    n += eng_detok_end(&d, back + n);
    assert_int_equal(n, bytes);
    assert_memory_equal(back, text, bytes);
    test_free(back);
}

static void check_tokens(const json_t *text, const json_t *expected) {
    arena *a = arena_create(4096);
    error err = {0};
    int32_t *tokens, count;
    const char *bytes = json_string_value(text);
    size_t length = json_string_length(text);
    if (eng_vocab_tokenize(vocab, bytes, length, true, a, &tokens, &count, &err))
        fail_msg("%s", err.text);
    for (int32_t i = 0; i < count && i < (int32_t)json_array_size(expected); i++)
        if (tokens[i] != json_integer_value(json_array_get(expected, (size_t)i)))
            fail_msg("token %d of '%s' is %d", i, bytes, tokens[i]);
    if (count != (int32_t)json_array_size(expected))
        fail_msg("'%s': %d tokens, expected %zu", bytes, count, json_array_size(expected));
    check_round_trip(bytes, length, tokens, count);
    arena_destroy(a);
}

static void test_golden_cases(void **state) {
    (void)state;
    if (!vocab) skip();
    json_t *root = load(BATON_TESTS_DIR "/golden/smollm2-q4_1.json"), *c;
    size_t i;
    json_array_foreach(json_object_get(root, "cases"), i, c)
        check_tokens(json_object_get(c, "prompt"), json_object_get(c, "tokens"));
    assert_true(i > 0);
    json_decref(root);
}

static void test_odd_texts(void **state) {
    (void)state;
    if (!vocab) skip();
    json_t *root = load(extra_path), *c;
    size_t i;
    json_array_foreach(json_object_get(root, "tokens"), i, c)
        check_tokens(json_object_get(c, "text"), json_object_get(c, "tokens"));
    assert_true(i > 0);
    print_message("%zu texts\n", i);
    json_decref(root);
}

static void check_words(eng_cut *cut, const json_t *text, const json_t *expected) {
    const char *word;
    size_t bytes, i;
    const json_t *w;
    error err = {0};
    eng_cut_begin(cut, json_string_value(text), json_string_length(text));
    json_array_foreach(expected, i, w) {
        if (eng_cut_next(cut, &word, &bytes, &err)) fail_msg("%s", err.text);
        if (bytes != json_string_length(w) || memcmp(word, json_string_value(w), bytes))
            fail_msg("%s, word %zu: '%.*s', expected '%s'", json_string_value(text), i, (int)bytes,
                     word, json_string_value(w));
    }
    assert_int_equal(eng_cut_next(cut, &word, &bytes, &err), ST_OK);
    assert_int_equal(bytes, 0);
}

static void test_words(void **state) {
    (void)state;
    json_t *root = load(extra_path), *cases, *c;
    const char *name;
    size_t i;
    json_object_foreach(json_object_get(root, "splits"), name, cases) {
        eng_pretok *p;
        eng_cut cut;
        error err = {0};
        if (eng_pretok_open(name, strlen(name), &p, &err)) fail_msg("%s", err.text);
        assert_int_equal(eng_cut_open(p, &cut), ST_OK);
        json_array_foreach(cases, i, c)
            check_words(&cut, json_object_get(c, "text"), json_object_get(c, "words"));
        print_message("%s: %zu texts\n", name, i);
        eng_cut_close(&cut);
        eng_pretok_close(p);
    }
    json_decref(root);
}

int main(int argc, char **argv) {
    if (argc > 1) extra_path = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_cases),
        cmocka_unit_test(test_odd_texts),
        cmocka_unit_test(test_words),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
