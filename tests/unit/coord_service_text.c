/* coordinator/text.c: stop strings split over tokens, characters split over tokens, and nothing given that
 * would have to be taken back. Tokens are those of the test model: single characters and whole words. */
#include "coordinator/service.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static coord_model model;

static int setup(void **state) {
    (void)state;
    error err = {0};
    if (coord_model_open(BATON_MODEL, &model, &err) == ST_OK) return 0;
    fprintf(stderr, "%s\n", err.text);
    return -1;
}

static int teardown(void **state) {
    (void)state;
    coord_model_close(&model);
    return 0;
}

/* Each character of text as its own token, so that every string is split everywhere. */
static int32_t character_token(char c) {
    arena *a = arena_create(256);
    int32_t *tokens, count;
    assert_int_equal(eng_vocab_tokenize(model.vocab, &c, 1, false, a, &tokens, &count, NULL), ST_OK);
    assert_int_equal(count, 1);
    int32_t token = tokens[0];
    arena_destroy(a);
    return token;
}

static void characters(void **state) {
    (void)state;
    static const struct { const char *stops[3], *text, *answer; bool stopped; const char *early; } rows[] = {
        {{NULL}, "hello", "hello", false, "hello"},
        {{"END"}, "wordENDmore", "word", true, "word"},
        {{"END"}, "wordEN", "wordEN", false, "word"},       /* held back, then it was none */
        {{"END"}, "wordENxEND", "wordENx", true, "wordENx"},
        {{"aab"}, "aaab!", "a", true, "a"},                 /* the second a begins it */
        {{"abcd", "bc"}, "xabcd", "xa", true, "xa"},        /* the one that is whole first */
        {{"\n\n"}, "a\n\nb", "a", true, "a"},
        {{"x"}, "x", "", true, ""},
        {{"ab", "abc"}, "zabc", "z", true, "z"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        coord_text t = {.vocab = model.vocab, .stops = rows[i].stops};
        while (t.stops_count < 3 && rows[i].stops[t.stops_count]) t.stops_count++;
        for (const char *c = rows[i].text; *c; c++)
            assert_int_equal(coord_text_push(&t, character_token(*c), false), ST_OK);
        assert_int_equal(t.ready, strlen(rows[i].early));
        assert_memory_equal(t.data, rows[i].early, t.ready);
        assert_int_equal(coord_text_end(&t), ST_OK);
        assert_int_equal(t.ready, strlen(rows[i].answer));
        assert_memory_equal(t.data, rows[i].answer, t.ready);
        assert_int_equal(t.stopped, rows[i].stopped);
        coord_text_free(&t);
    }
}

/* Taking what is ready after every token gives the same text as taking it at the end. */
static void streaming(void **state) {
    (void)state;
    static const char text[] = "smile \xF0\x9F\x98\x80 and \xE6\x97\xA5\xE6\x9C\xAC go ST on STOP never";
    static const char *const stops[] = {"STOP"};
    arena *a = arena_create(1024);
    int32_t *tokens, count;
    char out[200];
    size_t used = 0;
    assert_int_equal(eng_vocab_tokenize(model.vocab, text, strlen(text), false, a, &tokens, &count, NULL), ST_OK);
    coord_text t = {.vocab = model.vocab, .stops = stops, .stops_count = 1};
    for (int32_t i = 0; i < count && !t.stopped; i++) {
        assert_int_equal(coord_text_push(&t, tokens[i], false), ST_OK);
        memcpy(out + used, t.data, t.ready);
        used += t.ready;
        assert_false(t.ready && ((unsigned char)out[used - t.ready] & 0xC0) == 0x80); /* whole characters */
        coord_text_drop(&t, t.ready);
    }
    size_t expected = (size_t)(strstr(text, "STOP") - text);
    assert_true(t.stopped);
    assert_int_equal(used, expected);
    assert_memory_equal(out, text, used);
    coord_text_free(&t);
    arena_destroy(a);
}

/* Cut after any token: what a client of the first text has and what the replayed one still gives are the whole text. */
static void replayed(void **state) {
    (void)state;
    static const char text[] = "smile \xF0\x9F\x98\x80 and \xE6\x97\xA5\xE6\x9C\xAC go ST on STOP";
    static const char *const stops[] = {"STOP"};
    arena *a = arena_create(1024);
    int32_t *tokens, count, halves = 0;
    assert_int_equal(eng_vocab_tokenize(model.vocab, text, strlen(text), false, a, &tokens, &count, NULL), ST_OK);
    size_t expected = (size_t)(strstr(text, "STOP") - text);
    for (int32_t cut = 0; cut <= count; cut++) {
        coord_text whole = {.vocab = model.vocab, .stops = stops, .stops_count = 1}, rest = whole;
        for (int32_t i = 0; i < cut; i++) assert_int_equal(coord_text_push(&whole, tokens[i], false), ST_OK);
        assert_int_equal(coord_text_replay(&rest, tokens, cut, false), ST_OK);
        halves += whole.count > whole.ready;
        assert_int_equal(rest.ready, 0);
        assert_int_equal(rest.count, whole.count - whole.ready);
        for (int32_t i = cut; i < count; i++) assert_int_equal(coord_text_push(&rest, tokens[i], false), ST_OK);
        assert_int_equal(coord_text_end(&rest), ST_OK);
        assert_int_equal(whole.ready + rest.ready, expected);
        assert_memory_equal(whole.data ? whole.data : "", text, whole.ready);
        assert_memory_equal(rest.data ? rest.data : "", text + whole.ready, rest.ready);
        assert_true(rest.stopped);
        coord_text_free(&whole);
        coord_text_free(&rest);
    }
    assert_true(halves > 1); /* some were cut where text was held back */
    arena_destroy(a);
}

static void replayed_beyond_its_end(void **state) {
    (void)state;
    static const char *const stops[] = {"b"};
    int32_t tokens[] = {character_token('a'), character_token('b'), character_token('c')};
    coord_text t = {.vocab = model.vocab, .stops = stops, .stops_count = 1};
    assert_int_equal(coord_text_replay(&t, tokens, 3, false), ST_BAD_INPUT);
    t = (coord_text){.vocab = model.vocab, .stops = stops, .stops_count = 1, .data = t.data, .max = t.max};
    assert_int_equal(coord_text_replay(&t, tokens, 2, false), ST_OK);
    assert_true(t.stopped && t.count == 0);
    t = (coord_text){.vocab = model.vocab, .stops = stops, .stops_count = 1, .data = t.data, .max = t.max};
    assert_int_equal(coord_text_replay(&t, tokens, 2, true), ST_OK); /* as a stop token it has no text */
    assert_false(t.stopped);
    coord_text_free(&t);
    mem_fail_at(1);
    assert_int_equal(coord_text_replay(&t, tokens, 1, false), ST_NO_MEMORY);
    mem_fail_at(0);
}

static void control_tokens_and_silence(void **state) {
    (void)state;
    coord_text t = {.vocab = model.vocab};
    assert_int_equal(coord_text_push(&t, eng_vocab_eos(model.vocab), false), ST_OK);
    assert_int_equal(t.count, 0);
    assert_int_equal(coord_text_push(&t, character_token('a'), true), ST_OK);
    assert_int_equal(t.count, 0);
    coord_text_free(&t);
}

static void no_memory(void **state) {
    (void)state;
    int32_t token = character_token('a');
    coord_text t = {.vocab = model.vocab};
    mem_fail_at(1);
    assert_int_equal(coord_text_push(&t, token, false), ST_NO_MEMORY);
    mem_fail_at(0);
    assert_int_equal(coord_text_push(&t, token, false), ST_OK);
    assert_int_equal(t.count, 1);
    coord_text_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(characters), cmocka_unit_test(streaming),
                                       cmocka_unit_test(replayed), cmocka_unit_test(replayed_beyond_its_end),
                                       cmocka_unit_test(control_tokens_and_silence),
                                       cmocka_unit_test(no_memory)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
