/* vocab_file.h -- GGUF files in memory that hold a vocabulary and nothing else, for tests: all byte
 * tokens, a few words, merges and specials, or whatever a test puts in their place. */
#ifndef BATON_TESTS_VOCAB_FILE_H
#define BATON_TESTS_VOCAB_FILE_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

typedef struct vocab_file {
    unsigned char bytes[1 << 16];
    size_t used;
    uint64_t keys;
} vocab_file;

static inline void vocab_file_put(vocab_file *f, const void *data, size_t bytes) {
    assert(bytes <= sizeof f->bytes - f->used);
    memcpy(f->bytes + f->used, data, bytes);
    f->used += bytes;
}

static inline void vocab_file_u32(vocab_file *f, uint32_t n) { vocab_file_put(f, &n, 4); }
static inline void vocab_file_u64(vocab_file *f, uint64_t n) { vocab_file_put(f, &n, 8); }

static inline void vocab_file_text(vocab_file *f, const char *text, size_t bytes) {
    vocab_file_u64(f, bytes);
    vocab_file_put(f, text, bytes);
}

static inline void vocab_file_begin(vocab_file *f) {
    f->used = 0;
    f->keys = 0;
    vocab_file_put(f, "GGUF", 4);
    vocab_file_u32(f, 3);
    vocab_file_u64(f, 0); /* tensors */
    vocab_file_u64(f, 0); /* keys: vocab_file_end() */
}

static inline void vocab_file_end(vocab_file *f) { memcpy(f->bytes + 16, &f->keys, 8); }

/* GGUF's value types. */
enum {
    VOCAB_FILE_U32 = 4,
    VOCAB_FILE_I32 = 5,
    VOCAB_FILE_BOOL = 7,
    VOCAB_FILE_STRING = 8,
    VOCAB_FILE_ARRAY = 9
};

static inline void vocab_file_key(vocab_file *f, const char *key, uint32_t type) {
    vocab_file_text(f, key, strlen(key));
    vocab_file_u32(f, type);
    f->keys++;
}

static inline void vocab_file_string(vocab_file *f, const char *key, const char *text) {
    vocab_file_key(f, key, VOCAB_FILE_STRING);
    vocab_file_text(f, text, strlen(text));
}

static inline void vocab_file_number(vocab_file *f, const char *key, uint32_t n) {
    vocab_file_key(f, key, VOCAB_FILE_U32);
    vocab_file_u32(f, n);
}

static inline void vocab_file_array(vocab_file *f, const char *key, uint32_t type, uint64_t count) {
    vocab_file_key(f, key, VOCAB_FILE_ARRAY);
    vocab_file_u32(f, type);
    vocab_file_u64(f, count);
}

/* GPT-2's spelling of a byte. */
static inline size_t vocab_file_spell(int byte, char out[2]) {
    int point = byte, next = 0x100;
    for (int b = 0; b <= byte; b++) {
        int printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
        point = printable ? b : next++;
    }
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    out[0] = (char)(0xC0 | point >> 6);
    out[1] = (char)(0x80 | (point & 0x3F));
    return 2;
}

/* What comes after the 256 byte tokens, whose ids are their bytes. */
typedef struct vocab_file_token {
    const char *text;
    int type; /* 1 normal, 3 control, 4 user-defined */
} vocab_file_token;

/* Token ids from 256 on. */
static const vocab_file_token VOCAB_FILE_TOKENS[] = {
    {"th", 1},          {"the", 1},
    {"\xC4\xA0the", 1}, {"in", 1},
    {"ing", 1},         {"aa", 1},
    {"aaaa", 1},        {"\xC3\x83\xC2\xA9", 1},
    {"he", 1},          {"<|end|>", 3},
    {"<|end|>x", 3},    {"<|im_end|>", 3},
    {"<tool>", 4},      {"\xE2\x96\x81s\xC3\xA9", 3},
};
enum { VOCAB_FILE_TOKEN_COUNT = sizeof VOCAB_FILE_TOKENS / sizeof VOCAB_FILE_TOKENS[0] };

static const char *const VOCAB_FILE_MERGES[] = {
    "t h", "th e", "\xC4\xA0 the", "i n", "in g", "a a", "aa aa", "\xC3\x83 \xC2\xA9", "h e",
};
enum { VOCAB_FILE_MERGE_COUNT = sizeof VOCAB_FILE_MERGES / sizeof VOCAB_FILE_MERGES[0] };

static inline void vocab_file_tokens(vocab_file *f, int without_byte) {
    vocab_file_array(f, "tokenizer.ggml.tokens", VOCAB_FILE_STRING, 256 + VOCAB_FILE_TOKEN_COUNT);
    for (int b = 0; b < 256; b++) {
        char text[2];
        size_t bytes = vocab_file_spell(b, text);
        if (b == without_byte)
            vocab_file_text(f, "[none]", 6);
        else
            vocab_file_text(f, text, bytes);
    }
    for (int i = 0; i < VOCAB_FILE_TOKEN_COUNT; i++)
        vocab_file_text(f, VOCAB_FILE_TOKENS[i].text, strlen(VOCAB_FILE_TOKENS[i].text));
}

static inline void vocab_file_types(vocab_file *f) {
    vocab_file_array(f, "tokenizer.ggml.token_type", VOCAB_FILE_I32, 256 + VOCAB_FILE_TOKEN_COUNT);
    for (int b = 0; b < 256; b++) vocab_file_u32(f, 1);
    for (int i = 0; i < VOCAB_FILE_TOKEN_COUNT; i++)
        vocab_file_u32(f, (uint32_t)VOCAB_FILE_TOKENS[i].type);
}

static inline void vocab_file_merges(vocab_file *f, const char *extra) {
    vocab_file_array(f, "tokenizer.ggml.merges", VOCAB_FILE_STRING,
                     VOCAB_FILE_MERGE_COUNT + (extra != NULL));
    for (int i = 0; i < VOCAB_FILE_MERGE_COUNT; i++)
        vocab_file_text(f, VOCAB_FILE_MERGES[i], strlen(VOCAB_FILE_MERGES[i]));
    if (extra) vocab_file_text(f, extra, strlen(extra));
}

/* The whole file. */
static inline void vocab_file_make(vocab_file *f, const char *pre) {
    vocab_file_begin(f);
    vocab_file_string(f, "tokenizer.ggml.model", "gpt2");
    vocab_file_string(f, "tokenizer.ggml.pre", pre);
    vocab_file_tokens(f, -1);
    vocab_file_types(f);
    vocab_file_merges(f, NULL);
    vocab_file_number(f, "tokenizer.ggml.bos_token_id", 265);
    vocab_file_number(f, "tokenizer.ggml.eos_token_id", 265);
    vocab_file_end(f);
}

#endif
