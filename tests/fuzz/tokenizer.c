/* tokenizer.c -- fuzz entry: valid UTF-8 becomes tokens and comes back byte for byte, with every
 * pre-tokenizer, with and without specials, detokenized token by token; other bytes are refused. */
#include <stdlib.h>
#include "engine/engine.h"
#include "engine/utf8.h"
#include "tests/vocab_file.h"

enum { PRES = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const eng_vocab *vocab(int pre) {
    static const char *const names[PRES] = {"smollm", "gpt-2", "llama-bpe", "qwen2"};
    static eng_vocab *opened[PRES]; /* for the life of the process */
    static vocab_file file;
    if (opened[pre]) return opened[pre];
    eng_gguf *g;
    vocab_file_make(&file, names[pre]);
    if (eng_gguf_open_memory(file.bytes, file.used, "fuzz", &g, NULL)) abort();
    if (eng_vocab_open(g, &opened[pre], NULL)) abort();
    eng_gguf_close(g);
    return opened[pre];
}

static void round_trip(const eng_vocab *v, const char *text, size_t bytes, bool special) {
    arena *a = arena_create(4096);
    int32_t *tokens, count;
    eng_detok d = {0};
    size_t at = 0;
    char out[128];
    if (!a || eng_detok_max(v) > sizeof out) abort();
    if (eng_vocab_tokenize(v, text, bytes, special, a, &tokens, &count, NULL)) abort();
    for (int32_t i = 0; i < count; i++) {
        size_t n = eng_detok_push(&d, v, tokens[i], true, out);
        if (n > bytes - at || memcmp(out, text + at, n) || eng_utf8_check(out, n) != n) abort();
        at += n;
    }
    if (at != bytes || eng_detok_end(&d, out)) abort();
    arena_destroy(a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const char *text = (const char *)data;
    if (eng_utf8_check(text, bytes) < bytes) {
        arena *a = arena_create(64);
        int32_t *tokens, count;
        if (eng_vocab_tokenize(vocab(0), text, bytes, true, a, &tokens, &count, NULL) !=
            ST_BAD_INPUT)
            abort();
        arena_destroy(a);
        return 0;
    }
    for (int pre = 0; pre < PRES; pre++) {
        round_trip(vocab(pre), text, bytes, true);
        round_trip(vocab(pre), text, bytes, false);
    }
    return 0;
}
