/* eng_vocab.c -- engine/vocab.c, vocab_read.c, pretok.c: what is refused and how it is said,
 * specials, merges against the plain definition, long words in bounded time, every allocation that
 * can fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include "engine/engine.h"
#include "engine/vocab.h"
#include "tests/vocab_file.h"

static vocab_file file; /* 64 KiB: too much for a stack frame that tests share */

static status open_file(const vocab_file *f, eng_vocab **v, error *err) {
    eng_gguf *g;
    status s = eng_gguf_open_memory(f->bytes, f->used, "test", &g, err);
    if (s != ST_OK) return s;
    s = eng_vocab_open(g, v, err);
    eng_gguf_close(g);
    return s;
}

static eng_vocab *open_pre(const char *pre) {
    eng_vocab *v;
    error err = {0};
    vocab_file_make(&file, pre);
    if (open_file(&file, &v, &err)) fail_msg("%s", err.text);
    return v;
}

static void check(const eng_vocab *v, const char *text, size_t bytes, bool special, int count,
                  ...) {
    arena *a = arena_create(256);
    int32_t *tokens, found;
    error err = {0};
    va_list args;
    if (eng_vocab_tokenize(v, text, bytes, special, a, &tokens, &found, &err))
        fail_msg("%s", err.text);
    va_start(args, count);
    for (int i = 0; i < count && i < found; i++) assert_int_equal(tokens[i], va_arg(args, int));
    va_end(args);
    assert_int_equal(found, count);
    arena_destroy(a);
}
#define CHECK(v, text, special, ...) check(v, text, sizeof(text) - 1, special, __VA_ARGS__)

static void test_merges_and_specials(void **state) {
    (void)state;
    eng_vocab *v = open_pre("smollm");
    CHECK(v, "", true, 0);
    CHECK(v, "the", true, 1, 257);
    CHECK(v, "the the", true, 2, 257, 258);
    CHECK(v, "thing", true, 2, 256, 260);
    CHECK(v, "hehe", true, 2, 264, 264);
    CHECK(v, "aaa", true, 2, 261, 'a'); /* leftmost first */
    CHECK(v, "aaaaa", true, 2, 262, 'a');
    CHECK(v, "\xC3\xA9", true, 1, 263);
    CHECK(v,
          "1\0"
          "2",
          true, 3, '1', 0, '2');
    CHECK(v, "a<|end|>the", true, 3, 'a', 265, 257);
    CHECK(v, "<|end|>x<|end|>", true, 2, 266, 265); /* the longest */
    CHECK(v, "<|end|", true, 6, '<', '|', 'e', 'n', 'd', '|');
    CHECK(v, "<|end<tool>", true, 6, '<', '|', 'e', 'n', 'd', 268);
    CHECK(v, "\xE2\x96\x81s\xC3\xA9.", true, 2, 269, '.');
    CHECK(v, "<tool>", false, 6, '<', 't', 'o', 'o', 'l', '>');
    eng_vocab_close(v);
}

static void test_asking(void **state) {
    (void)state;
    eng_vocab *v = open_pre("llama-bpe");
    size_t bytes;
    assert_int_equal(eng_vocab_count(v), 256 + VOCAB_FILE_TOKEN_COUNT);
    assert_int_equal(eng_vocab_bos(v), 265);
    assert_int_equal(eng_vocab_eos(v), 265);
    assert_true(eng_vocab_adds_bos(v)); /* llama-bpe: unless the file says otherwise */
    assert_true(eng_vocab_is_stop(v, 265) && eng_vocab_is_stop(v, 267));
    assert_false(eng_vocab_is_stop(v, 266) || eng_vocab_is_stop(v, -1) ||
                 eng_vocab_is_stop(v, 9999));
    assert_true(eng_vocab_is_control(v, 265));
    assert_false(eng_vocab_is_control(v, 268) || eng_vocab_is_control(v, 'a') ||
                 eng_vocab_is_control(v, -1));
    assert_memory_equal(eng_vocab_bytes(v, 258, &bytes), " the", 4);
    assert_int_equal(bytes, 4);
    assert_memory_equal(eng_vocab_bytes(v, '\n', &bytes), "\n", 1);
    eng_vocab_close(v);
}

static void test_bad_text(void **state) {
    (void)state;
    eng_vocab *v = open_pre("qwen2");
    static const char *const texts[] = {
        "ok\xFF", "ok\xC3", "ok\xC0\x80", "ok\xED\xA0\x80", "ok\xF4\x90\x80\x80", "ok\x80"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        arena *a = arena_create(256);
        int32_t *tokens, count;
        error err = {0};
        assert_int_equal(
            eng_vocab_tokenize(v, texts[i], strlen(texts[i]), true, a, &tokens, &count, &err),
            ST_BAD_INPUT);
        assert_string_equal(err.text, "text at byte 2: not UTF-8");
        arena_destroy(a);
    }
    eng_vocab_close(v);
}

/* ---- files that are refused: one builder a fault --------------------------------------------- */

static void begin(const char *model, const char *pre) {
    vocab_file_begin(&file);
    vocab_file_string(&file, "tokenizer.ggml.model", model);
    if (pre) vocab_file_string(&file, "tokenizer.ggml.pre", pre);
}

static void no_pre(void) { begin("gpt2", NULL); }
static void other_model(void) { begin("llama", "default"); }
static void other_pre(void) { begin("gpt2", "falcon"); }
static void no_tokens(void) { begin("gpt2", "gpt-2"); }

static void no_merges(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
}

static void lacks_a_byte(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, 'q');
    vocab_file_types(&file);
    vocab_file_merges(&file, NULL);
}

static void unknown_merge(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
    vocab_file_merges(&file, "in zzz");
}

static void unmade_merge(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
    vocab_file_merges(&file, "in in");
}

static void merge_of_one(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
    vocab_file_merges(&file, "in ");
}

static void too_few_types(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
    vocab_file_array(&file, "tokenizer.ggml.token_type", VOCAB_FILE_I32, 1);
    vocab_file_u32(&file, 1);
}

static void type_7(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
    vocab_file_types(&file);
    uint32_t seven = 7;
    memcpy(file.bytes + file.used - 4, &seven, 4);
}

static void types_are_text(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
    vocab_file_string(&file, "tokenizer.ggml.token_type", "x");
}

static void not_utf8(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
    file.bytes[file.used - 1] = 0xC3; /* the last token's last byte */
}

static void eos_outside(void) {
    begin("gpt2", "gpt-2");
    vocab_file_tokens(&file, -1);
    vocab_file_merges(&file, NULL);
    vocab_file_number(&file, "tokenizer.ggml.eos_token_id", 256 + VOCAB_FILE_TOKEN_COUNT);
}

static void test_bad_files(void **state) {
    (void)state;
    static const struct {
        void (*make)(void);
        status expected;
        const char *text;
    } cases[] = {
        {no_pre, ST_NOT_FOUND, "tokenizer.ggml.pre"},
        {other_model, ST_UNSUPPORTED,
         "tokenizer.ggml.model: 'llama' is not supported, expected gpt2"},
        {other_pre, ST_UNSUPPORTED,
         "'falcon' is not supported, expected one of smollm, gpt-2, llama-bpe"},
        {no_tokens, ST_NOT_FOUND, "tokenizer.ggml.tokens"},
        {no_merges, ST_NOT_FOUND, "tokenizer.ggml.merges"},
        {lacks_a_byte, ST_BAD_INPUT, "no token for byte 0x71"},
        {unknown_merge, ST_BAD_INPUT, "tokenizer.ggml.merges[9]: its right half is not in"},
        {unmade_merge, ST_BAD_INPUT, "tokenizer.ggml.merges[9]: what it makes is not in"},
        {merge_of_one, ST_BAD_INPUT, "tokenizer.ggml.merges[9]: expected two tokens"},
        {too_few_types, ST_BAD_INPUT, "tokenizer.ggml.token_type: 1 entries, expected 270"},
        {type_7, ST_BAD_INPUT, "tokenizer.ggml.token_type[269]: 7, expected 1 to 6"},
        {types_are_text, ST_BAD_INPUT, "tokenizer.ggml.token_type"},
        {not_utf8, ST_BAD_INPUT, "tokenizer.ggml.tokens[269]: not UTF-8 at byte 4"},
        {eos_outside, ST_BAD_INPUT, "tokenizer.ggml.eos_token_id: 270, expected a token, 0 to 269"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        eng_vocab *v = NULL;
        error err = {0};
        int64_t live = mem_live();
        cases[i].make();
        vocab_file_end(&file);
        status s = open_file(&file, &v, &err);
        if (s != cases[i].expected || !strstr(err.text, cases[i].text))
            fail_msg("case %zu: %s: %s", i, status_name(s), err.text);
        assert_int_equal(mem_live(), live);
    }
}

/* ---- merging --------------------------------------------------------------------------------- */

/* The definition: as long as a pair has a rank, the leftmost of the lowest becomes one. */
static int32_t merge_plainly(const eng_vocab *v, int32_t *t, int32_t count) {
    for (;;) {
        int32_t best = -1;
        const eng_vocab_pair *p, *best_pair = NULL;
        for (int32_t i = 0; i + 1 < count; i++) {
            p = &v->pairs[eng_vocab_pair_slot(v, t[i], t[i + 1])];
            if (p->rank && (!best_pair || p->rank < best_pair->rank)) {
                best = i;
                best_pair = p;
            }
        }
        if (best < 0) return count;
        t[best] = best_pair->result;
        memmove(t + best + 1, t + best + 2, (size_t)(count - best - 2) * sizeof *t);
        count--;
    }
}

static void test_merges_as_defined(void **state) {
    (void)state;
    eng_vocab *v = open_pre("gpt-2");
    uint32_t seed = 7;
    for (int round = 0; round < 20000; round++) {
        char word[24];
        int32_t expected[24], *tokens, count, n = 1 + round % 24;
        for (int i = 0; i < n; i++) {
            seed = seed * 1664525u + 1013904223u;
            word[i] = "theinga"[(seed >> 16) % 7];
            expected[i] = word[i];
        }
        arena *a = arena_create(256);
        assert_int_equal(eng_vocab_tokenize(v, word, (size_t)n, false, a, &tokens, &count, NULL),
                         ST_OK);
        assert_int_equal(count, merge_plainly(v, expected, n));
        assert_memory_equal(tokens, expected, (size_t)count * sizeof *tokens);
        arena_destroy(a);
    }
    eng_vocab_close(v);
}

static void check_long(const eng_vocab *v, const char *part, bool special) {
    enum { BYTES = 256 << 10 };
    size_t part_bytes = strlen(part), times = BYTES / part_bytes;
    char *text = test_malloc(BYTES);
    for (size_t i = 0; i < times; i++) memcpy(text + i * part_bytes, part, part_bytes);
    arena *a = arena_create(4096);
    int32_t *tokens, count;
    error err = {0};
    if (eng_vocab_tokenize(v, text, times * part_bytes, special, a, &tokens, &count, &err))
        fail_msg("%s", err.text);
    arena_destroy(a);
    test_free(text);
}

/* A quadratic step would run into the test's time-out. */
static void test_long_words(void **state) {
    (void)state;
    static const char *const pres[] = {"smollm", "gpt-2", "llama-bpe", "qwen2"};
    static const char *const parts[] = {"a", "theing",  " ",    "\n",           " \n", "=",
                                        "1", "<|end|>", "<|en", "\xE6\x97\xA5", "'"};
    for (size_t p = 0; p < sizeof pres / sizeof *pres; p++) {
        eng_vocab *v = open_pre(pres[p]);
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) check_long(v, parts[i], true);
        eng_vocab_close(v);
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

static status open_and_tokenize(const eng_gguf *g, error *err) {
    static const char text[] = "the thing <|end|> in the \xC3\xA9 theing "
                               "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 12345";
    eng_vocab *v;
    int32_t *tokens, count;
    TRY(eng_vocab_open(g, &v, err));
    arena *a = arena_create(64);
    status s = a ? eng_vocab_tokenize(v, text, sizeof text - 1, true, a, &tokens, &count, err)
                 : ST_NO_MEMORY;
    arena_destroy(a);
    eng_vocab_close(v);
    return s;
}

static void test_every_allocation_may_fail(void **state) {
    (void)state;
    eng_gguf *g;
    vocab_file_make(&file, "smollm");
    assert_int_equal(eng_gguf_open_memory(file.bytes, file.used, "test", &g, NULL), ST_OK);
    for (int64_t n = 1;; n++) {
        int64_t live = mem_live();
        error err = {0};
        mem_fail_at(n);
        status s = open_and_tokenize(g, &err);
        mem_fail_at(0);
        assert_int_equal(mem_live(), live);
        if (s == ST_OK && n > 10) break;
        if (s != ST_OK) assert_int_equal(s, ST_NO_MEMORY);
        assert_true(n < 1000);
    }
    eng_gguf_close(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges_and_specials),
        cmocka_unit_test(test_asking),
        cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_merges_as_defined),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
