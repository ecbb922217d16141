/* tiny_gguf.h -- writes a small random llama model as GGUF, in memory or to a file, for tests that
 * need a model and not that model. The same options give the same bytes.
 *
 *     tiny_gguf t = tiny_gguf_build(&(tiny_options){.type = ENG_Q4_1});
 *     eng_gguf_open_memory(t.data, t.bytes, "tiny", &g, &err);  ...  tiny_gguf_free(&t);
 *
 * With .vocab the file also has a byte-level vocabulary: token 0 is "<|endoftext|>", 1 "<|im_start|>",
 * 2 "<|im_end|>" (control), 3 to 258 the bytes 0 to 255 in gpt-2's spelling; V is then at least 288.
 * `skip`, `rename_from/to` and `extra` make files that a loader must refuse. */
#ifndef BATON_TESTS_TINY_GGUF_H
#define BATON_TESTS_TINY_GGUF_H

#include "engine/engine.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef struct tiny_options {
    int L, D, H, K, F, V;        /* 0: 2, 64, 4, 2, 96, 128 */
    int context;                 /* 0: 2048 */
    eng_type type;               /* of the matrices; ENG_F32 when left out */
    bool own_output;             /* output.weight; else tied to token_embd */
    bool vocab;
    uint64_t seed;
    const char *architecture;    /* NULL: "llama" */
    const char *chat;            /* NULL: no chat template */
    const char *rope_scaling;    /* NULL: no llama.rope.scaling.* keys; else the type, factor 4 */
    bool rope_freqs;             /* rope_freqs.weight */
    const char *skip;            /* leave out this key or tensor */
    const char *extra;           /* one more tensor of this name */
    const char *odd_shape;       /* this tensor gets a row more (a vector an element more) */
    const char *odd_type;        /* this tensor is written as F16 (vectors: refused; matrices: fine) */
} tiny_options;

typedef struct tiny_gguf {
    unsigned char *data;
    size_t bytes, room;
    uint64_t random;
    size_t keys_at;              /* where the counts stand */
    uint64_t keys, tensors;
    struct { char name[64]; int dims; int64_t dim[2]; eng_type type; } table[256];
} tiny_gguf;

static inline void tiny_put(tiny_gguf *t, const void *p, size_t bytes) {
    if (t->bytes + bytes > t->room) {
        t->room = (t->bytes + bytes) * 2;
        t->data = realloc(t->data, t->room);
        if (!t->data) abort();
    }
    if (p) memcpy(t->data + t->bytes, p, bytes);
    else memset(t->data + t->bytes, 0, bytes);
    t->bytes += bytes;
}

static inline void tiny_u32(tiny_gguf *t, uint32_t v) { tiny_put(t, &v, 4); }
static inline void tiny_u64(tiny_gguf *t, uint64_t v) { tiny_put(t, &v, 8); }
static inline void tiny_f32(tiny_gguf *t, float v) { tiny_put(t, &v, 4); }

static inline void tiny_text(tiny_gguf *t, const char *s) {
    tiny_u64(t, strlen(s));
    tiny_put(t, s, strlen(s));
}

/* Uniform in [-1, 1): xorshift64* (Vigna 2016). */
static inline float tiny_random(tiny_gguf *t) {
    t->random ^= t->random >> 12;
    t->random ^= t->random << 25;
    t->random ^= t->random >> 27;
    return (float)((t->random * 0x2545f4914f6cdd1du) >> 40) / (float)(1 << 23) - 1;
}

static inline bool tiny_key(tiny_gguf *t, const tiny_options *o, const char *name, uint32_t type) {
    if (o->skip && !strcmp(o->skip, name)) return false;
    tiny_text(t, name);
    tiny_u32(t, type);
    t->keys++;
    return true;
}

static inline void tiny_key_int(tiny_gguf *t, const tiny_options *o, const char *name, int v) {
    if (tiny_key(t, o, name, 4)) tiny_u32(t, (uint32_t)v);
}
static inline void tiny_key_real(tiny_gguf *t, const tiny_options *o, const char *name, float v) {
    if (tiny_key(t, o, name, 6)) tiny_f32(t, v);
}
static inline void tiny_key_text(tiny_gguf *t, const tiny_options *o, const char *name, const char *v) {
    if (tiny_key(t, o, name, 8)) tiny_text(t, v);
}

/* gpt-2's spelling of a byte as UTF-8: printable Latin-1 stands for itself, the rest for U+0100 on. */
static inline void tiny_byte_spelling(int byte, char out[8]) {
    int code = 256;
    for (int b = 0; b <= byte; b++) {
        bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte && plain) code = b;
        else if (b < byte && !plain) code++;
    }
    if (code < 128) snprintf(out, 8, "%c", code);
    else snprintf(out, 8, "%c%c", 0xc0 | code >> 6, 0x80 | (code & 63));
}

static inline void tiny_vocab(tiny_gguf *t, const tiny_options *o, int V) {
    static const char *const control[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    static const char *const pairs[][2] = {{"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}};
    tiny_key_text(t, o, "tokenizer.ggml.model", "gpt2");
    tiny_key_text(t, o, "tokenizer.ggml.pre", "smollm");
    tiny_key_int(t, o, "tokenizer.ggml.eos_token_id", 2);
    if (tiny_key(t, o, "tokenizer.ggml.tokens", 9)) {
        tiny_u32(t, 8);
        tiny_u64(t, (uint64_t)V);
        for (int i = 0; i < V; i++) {
            char s[32];
            if (i < 3) snprintf(s, sizeof s, "%s", control[i]);
            else if (i < 259) tiny_byte_spelling(i - 3, s);
            else if (i < 263) snprintf(s, sizeof s, "%s%s", pairs[i - 259][0], pairs[i - 259][1]);
            else snprintf(s, sizeof s, "<unused%d>", i);
            tiny_text(t, s);
        }
    }
    if (tiny_key(t, o, "tokenizer.ggml.token_type", 9)) {
        tiny_u32(t, 5);
        tiny_u64(t, (uint64_t)V);
        for (int i = 0; i < V; i++) tiny_u32(t, i < 3 ? 3 : i < 263 ? 1 : 5); /* control, normal, unused */
    }
    if (tiny_key(t, o, "tokenizer.ggml.merges", 9)) {
        tiny_u32(t, 8);
        tiny_u64(t, 4);
        for (int i = 0; i < 4; i++) {
            char s[32];
            snprintf(s, sizeof s, "%s %s", pairs[i][0], pairs[i][1]);
            tiny_text(t, s);
        }
    }
}

/* Lists a tensor: rows 0 makes a vector of cols. */
static inline void tiny_tensor(tiny_gguf *t, const tiny_options *o, const char *name, int64_t cols,
                               int64_t rows, eng_type type) {
    if (o->skip && !strcmp(o->skip, name)) return;
    bool odd = o->odd_shape && !strcmp(o->odd_shape, name);
    if (o->odd_type && !strcmp(o->odd_type, name)) type = ENG_F16;
    if (t->tensors == 256) abort();
    int i = (int)t->tensors++;
    snprintf(t->table[i].name, sizeof t->table[i].name, "%s", name);
    t->table[i].dims = rows ? 2 : 1;
    t->table[i].dim[0] = cols + (odd && !rows);
    t->table[i].dim[1] = rows + (odd && rows);
    t->table[i].type = type;
}

static inline void tiny_table(tiny_gguf *t, const tiny_options *o) {
    int64_t D = o->D, F = o->F, h = D / o->H;
    tiny_tensor(t, o, "token_embd.weight", D, o->V, o->type);
    tiny_tensor(t, o, "output_norm.weight", D, 0, ENG_F32);
    if (o->own_output) tiny_tensor(t, o, "output.weight", D, o->V, o->type);
    if (o->rope_freqs) tiny_tensor(t, o, "rope_freqs.weight", h / 2, 0, ENG_F32);
    if (o->extra) tiny_tensor(t, o, o->extra, D, 0, ENG_F32);
    for (int l = 0; l < o->L; l++) {
        const struct { const char *name; int64_t cols, rows; } list[] = {
            {"attn_norm", D, 0},  {"attn_q", D, o->H * h},      {"attn_k", D, o->K * h},
            {"attn_v", D, o->K * h}, {"attn_output", o->H * h, D}, {"ffn_norm", D, 0},
            {"ffn_gate", D, F},   {"ffn_up", D, F},             {"ffn_down", F, D},
        };
        for (int i = 0; i < 9; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, list[i].name);
            tiny_tensor(t, o, name, list[i].cols, list[i].rows, list[i].rows ? o->type : ENG_F32);
        }
    }
}

static inline size_t tiny_row_bytes(eng_type type, int64_t n) {
    switch (type) {
#define X(name, number, block, bytes, file) case ENG_##name: return (size_t)n / block * bytes;
        ENG_TYPES(X)
#undef X
    }
    abort();
}

/* A float as F16; only for normal numbers, which is all this file makes. */
static inline uint16_t tiny_half(float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    int e = (int)(u >> 23 & 255) - 112;
    if (e <= 0) return (uint16_t)(u >> 16 & 0x8000);
    return (uint16_t)((u >> 16 & 0x8000) | (uint32_t)e << 10 | (u >> 13 & 0x3ff));
}

/* One row of random weights: around 1 for vectors (norms), of size 0.15 for matrices. */
static inline void tiny_row(tiny_gguf *t, eng_type type, int64_t n, bool vector) {
    size_t end = t->bytes + tiny_row_bytes(type, n);
    if (type == ENG_F32 || type == ENG_F16 || type == ENG_BF16) {
        for (int64_t i = 0; i < n; i++) {
            float v = vector ? 1 + 0.25f * tiny_random(t) : 0.15f * tiny_random(t);
            uint32_t u;
            memcpy(&u, &v, 4);
            uint16_t half = type == ENG_F16 ? tiny_half(v) : (uint16_t)(u >> 16);
            tiny_put(t, type == ENG_F32 ? (void *)&u : (void *)&half, type == ENG_F32 ? 4 : 2);
        }
        return;
    }
    for (int64_t i = 0; i < n; i += 32) {
        float step = (0.15f + 0.05f * tiny_random(t)) / (type == ENG_Q8_0 ? 127 : 8);
        uint16_t d = tiny_half(step), m = tiny_half(-8 * step);
        tiny_put(t, &d, 2);
        if (type == ENG_Q4_1) tiny_put(t, &m, 2);
        for (int j = 0; j < (type == ENG_Q8_0 ? 32 : 16); j++) {
            uint8_t q = (uint8_t)(int)(127 * tiny_random(t));
            tiny_put(t, &q, 1);
        }
    }
    assert(t->bytes == end && "tiny_row() writes this type");
}

static inline void tiny_keys(tiny_gguf *t, const tiny_options *o) {
    tiny_key_text(t, o, "general.architecture", o->architecture ? o->architecture : "llama");
    tiny_key_text(t, o, "general.name", "tiny");
    tiny_key_int(t, o, "llama.block_count", o->L);
    tiny_key_int(t, o, "llama.context_length", o->context ? o->context : 2048);
    tiny_key_int(t, o, "llama.embedding_length", o->D);
    tiny_key_int(t, o, "llama.feed_forward_length", o->F);
    tiny_key_int(t, o, "llama.attention.head_count", o->H);
    tiny_key_int(t, o, "llama.attention.head_count_kv", o->K);
    tiny_key_int(t, o, "llama.rope.dimension_count", o->D / o->H);
    tiny_key_real(t, o, "llama.rope.freq_base", 10000);
    tiny_key_real(t, o, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (o->chat) tiny_key_text(t, o, "tokenizer.chat_template", o->chat);
    if (o->rope_scaling) {
        tiny_key_text(t, o, "llama.rope.scaling.type", o->rope_scaling);
        tiny_key_real(t, o, "llama.rope.scaling.factor", 4);
        tiny_key_int(t, o, "llama.rope.scaling.original_context_length", 512);
    }
    if (o->vocab) tiny_vocab(t, o, o->V);
}

static inline tiny_gguf tiny_gguf_build(const tiny_options *options) {
    tiny_options o = *options;
    if (!o.L) o.L = 2;
    if (!o.D) o.D = 64;
    if (!o.H) o.H = 4;
    if (!o.K) o.K = 2;
    if (!o.F) o.F = 96;
    if (!o.V) o.V = o.vocab ? 288 : 128;
    tiny_gguf t = {.random = 0x9e3779b97f4a7c15u ^ o.seed * 0xd1342543de82ef95u};
    tiny_put(&t, "GGUF\3\0\0\0", 8);
    tiny_u64(&t, 0); /* both counts are filled in below */
    tiny_u64(&t, 0);
    tiny_keys(&t, &o);
    tiny_table(&t, &o);
    uint64_t offset = 0;
    for (uint64_t i = 0; i < t.tensors; i++) {
        tiny_text(&t, t.table[i].name);
        tiny_u32(&t, (uint32_t)t.table[i].dims);
        for (int d = 0; d < t.table[i].dims; d++) tiny_u64(&t, (uint64_t)t.table[i].dim[d]);
        tiny_u32(&t, t.table[i].type);
        tiny_u64(&t, offset);
        size_t rows = t.table[i].dims == 2 ? (size_t)t.table[i].dim[1] : 1;
        offset += (tiny_row_bytes(t.table[i].type, t.table[i].dim[0]) * rows + 31) & ~(uint64_t)31;
    }
    for (uint64_t i = 0; i < t.tensors; i++) {
        bool vector = t.table[i].dims == 1;
        tiny_put(&t, NULL, (32 - t.bytes % 32) % 32);
        for (int64_t row = 0; row < (vector ? 1 : t.table[i].dim[1]); row++)
            tiny_row(&t, t.table[i].type, t.table[i].dim[0], vector);
    }
    memcpy(t.data + 8, &t.tensors, 8);
    memcpy(t.data + 16, &t.keys, 8);
    return t;
}

static inline void tiny_gguf_free(tiny_gguf *t) {
    free(t->data);
    t->data = NULL;
}

/* Writes the model to path (for tests that start processes). */
static inline bool tiny_gguf_write(const tiny_options *options, const char *path) {
    tiny_gguf t = tiny_gguf_build(options);
    FILE *f = fopen(path, "wb");
    bool fine = f && fwrite(t.data, 1, t.bytes, f) == t.bytes;
    if (f && fclose(f) != 0) fine = false;
    tiny_gguf_free(&t);
    return fine;
}

#endif
