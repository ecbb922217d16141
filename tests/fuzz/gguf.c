/* Fuzzes engine/gguf.c: whatever opens can be read to its last byte. */
#include "engine/engine.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static uint8_t sum;

static void read_all(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) sum ^= ((const uint8_t *)p)[i];
}

static void read_key(const eng_gguf *g, const char *key) {
    const char *text;
    size_t bytes;
    int64_t count, i64;
    double real;
    bool flag;
    error err;
    (void)eng_gguf_int(g, key, &i64, &err);
    (void)eng_gguf_real(g, key, &real, &err);
    (void)eng_gguf_bool(g, key, &flag, &err);
    if (eng_gguf_text(g, key, &text, &bytes, &err) == ST_OK) read_all(text, bytes);
    if (eng_gguf_array_count(g, key, &count, &err) != ST_OK) return;
    for (int64_t i = -1; i <= count && i < 1000; i++) {
        if (eng_gguf_array_text(g, key, i, &text, &bytes, &err) == ST_OK) read_all(text, bytes);
        (void)eng_gguf_array_int(g, key, i, &i64, &err);
        (void)eng_gguf_array_real(g, key, i, &real, &err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char *const keys[] = {"general.name", "flag", "llama.rope.freq_base", "a",
                                       "general.alignment", "tokenizer.ggml.tokens",
                                       "tokenizer.ggml.token_type", "general.architecture"};
    eng_gguf *g;
    eng_model *m;
    error err;
    if (eng_gguf_open_memory(data, bytes, "fuzz", &g, &err) != ST_OK) return 0;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) read_key(g, keys[i]);
    for (int64_t i = 0; i < eng_gguf_tensor_count(g); i++) {
        const eng_tensor *t = eng_gguf_tensor_at(g, i);
        if (eng_gguf_tensor(g, t->name) != t) __builtin_trap();
        read_all(t->data, t->bytes);
    }
    read_all(eng_gguf_digest(g), strlen(eng_gguf_digest(g)));
    if (eng_model_open(g, &(eng_options){.isa = "scalar", .threads = 1, .tokens_max = 4}, &m, &err) == ST_OK)
        eng_model_close(m);
    eng_gguf_close(g);
    return 0;
}
