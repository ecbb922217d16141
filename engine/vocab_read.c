/* vocab_read.c -- a vocabulary from a model file, every entry checked.
 *
 * The file spells bytes that are no printable Latin-1 characters as U+0100 and up (GPT-2's table),
 * so that a token is a word without blanks. In memory a token is its bytes; the table is used here
 * only. Tokens that are not normal (control, user-defined, ...) stand in the file as they are
 * spelled.
 *
 * A file may lack a token for a byte that text seldom holds; a vocabulary without the others is
 * refused (byte_is_needed). Of two tokens with the same bytes the later is the one that text
 * becomes (as in Hugging Face tokenizers and llama.cpp), of two equal merges the earlier counts (as
 * in llama.cpp). */
#include "engine/vocab.h"
#include "engine/utf8.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    TOKENS_MAX = 1 << 22, /* of a vocabulary, and merges of it */
    TOKEN_BYTES_MAX = 4096,
    UNMAP_COUNT = 0x144, /* GPT-2's table ends at U+0143 */
};

static const char TOKENS[] = "tokenizer.ggml.tokens", TYPES[] = "tokenizer.ggml.token_type",
                  MERGES[] = "tokenizer.ggml.merges";

/* What is needed only while the file is read. */
typedef struct reader {
    const eng_gguf *g;
    eng_vocab *v;
    int16_t unmap[UNMAP_COUNT]; /* byte of a character of GPT-2's table; -1: not in it */
    error *err;
} reader;

static void unmap_fill(int16_t unmap[UNMAP_COUNT]) {
    int next = 0x100;
    for (int c = 0; c < UNMAP_COUNT; c++) unmap[c] = -1;
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
        unmap[printable ? b : next++] = (int16_t)b;
    }
    assert(next == UNMAP_COUNT);
}

/* Bytes that the characters of text (valid UTF-8, at most TOKEN_BYTES_MAX) stand for. False: one
 * stands for none. */
static bool unmap_text(const int16_t *unmap, const char *text, size_t bytes, char *out,
                       size_t *out_bytes) {
    size_t n = 0;
    for (size_t i = 0; i < bytes; n++) {
        unsigned char c = (unsigned char)text[i++];
        int point = c;
        if (c >= 0x80) {
            if (c > 0xC5) return false;
            point = (c & 0x1F) << 6 | (text[i++] & 0x3F);
        }
        if (point >= UNMAP_COUNT || unmap[point] < 0) return false;
        out[n] = (char)unmap[point];
    }
    *out_bytes = n;
    return true;
}

/* Slots for count entries at a load of at most one half; a power of two. */
static uint32_t slots_for(int64_t count) {
    uint32_t slots = 16;
    while (slots < 2 * (uint64_t)count) slots *= 2;
    return slots;
}

static status no_memory(error *err) {
    return error_set(err, ST_NO_MEMORY, "vocabulary: no memory");
}

/* The length of an array, which must be there and within the bound. */
static status count_read(reader *r, const char *key, int64_t *count) {
    TRY(eng_gguf_array_count(r->g, key, count, r->err));
    if (*count > TOKENS_MAX)
        return error_set(r->err, ST_BAD_INPUT, "%s: %lld entries, at most %d are read", key,
                         (long long)*count, TOKENS_MAX);
    return ST_OK;
}

static status text_read(reader *r, const char *key, int64_t i, size_t max, const char **text,
                        size_t *bytes) {
    TRY(eng_gguf_array_text(r->g, key, i, text, bytes, r->err));
    if (*bytes > max)
        return error_set(r->err, ST_BAD_INPUT, "%s[%lld]: %zu bytes, at most %zu are read", key,
                         (long long)i, *bytes, max);
    size_t bad = eng_utf8_check(*text, *bytes);
    if (bad < *bytes)
        return error_set(r->err, ST_BAD_INPUT, "%s[%lld]: not UTF-8 at byte %zu", key, (long long)i,
                         bad);
    return ST_OK;
}

/* token_type may be absent: every token is normal then. */
static status types_read(reader *r) {
    eng_vocab *v = r->v;
    memset(v->flags, ENG_TOKEN_NORMAL, (size_t)v->count);
    int64_t count, type;
    status s = eng_gguf_array_count(r->g, TYPES, &count, NULL);
    if (s == ST_NOT_FOUND) return ST_OK;
    TRY(eng_gguf_array_count(r->g, TYPES, &count, r->err));
    if (count != v->count)
        return error_set(r->err, ST_BAD_INPUT, "%s: %lld entries, expected %d, one a token", TYPES,
                         (long long)count, v->count);
    for (int32_t t = 0; t < v->count; t++) {
        TRY(eng_gguf_array_int(r->g, TYPES, t, &type, r->err));
        if (type < ENG_TOKEN_NORMAL || type > ENG_TOKEN_TYPES)
            return error_set(r->err, ST_BAD_INPUT, "%s[%d]: %lld, expected %d to %d", TYPES, t,
                             (long long)type, ENG_TOKEN_NORMAL, ENG_TOKEN_TYPES);
        v->flags[t] = (uint8_t)type;
    }
    return ST_OK;
}

/* Whether merges may name a token: its text, read by GPT-2's table, is its bytes. */
static bool is_word(const eng_vocab *v, int32_t t, bool mapped) {
    if ((v->flags[t] & ENG_TOKEN_TYPE) == ENG_TOKEN_NORMAL) return mapped;
    for (uint32_t i = v->start[t]; i < v->start[t + 1]; i++)
        if (v->bytes[i] < 0x21 || v->bytes[i] > 0x7E) return false;
    return true;
}

static status token_read(reader *r, int32_t t, size_t *room) {
    eng_vocab *v = r->v;
    const char *text;
    size_t bytes, used = v->start[t];
    TRY(text_read(r, TOKENS, t, TOKEN_BYTES_MAX, &text, &bytes));
    if (*room - used < TOKEN_BYTES_MAX) {
        char *more =
            *room > UINT32_MAX / 2 - TOKEN_BYTES_MAX ? NULL : mem_realloc(v->bytes, *room * 2);
        if (!more) return no_memory(r->err);
        v->bytes = more;
        *room *= 2;
    }
    bool mapped = false;
    if ((v->flags[t] & ENG_TOKEN_TYPE) == ENG_TOKEN_NORMAL)
        mapped = unmap_text(r->unmap, text, bytes, v->bytes + used, &bytes);
    if (!mapped) memcpy(v->bytes + used, text, bytes);
    v->start[t + 1] = (uint32_t)(used + bytes);
    if (bytes > v->bytes_max) v->bytes_max = bytes;
    if (bytes == 0 || !is_word(v, t, mapped)) return ST_OK;
    v->words[eng_vocab_word_slot(v, v->bytes + used, bytes)] = t;
    if (bytes == 1) v->byte_token[(unsigned char)v->bytes[used]] = t;
    return ST_OK;
}

/* Bytes a vocabulary may not lack: printable ASCII, tab, newline, and what characters up to U+3FFFF
 * are written with. */
static bool byte_is_needed(int b) {
    return b == '\t' || b == '\n' || (b >= 0x20 && b < 0x7F) || (b >= 0x80 && b <= 0xBF) ||
           (b >= 0xC2 && b <= 0xF0);
}

static status tokens_read(reader *r) {
    eng_vocab *v = r->v;
    int64_t count;
    TRY(count_read(r, TOKENS, &count));
    v->count = (int32_t)count;
    v->word_mask = slots_for(count) - 1;
    size_t room = 2 * TOKEN_BYTES_MAX;
    v->bytes = mem_alloc(room);
    v->start = mem_zalloc((size_t)count + 1, sizeof *v->start);
    v->flags = mem_alloc((size_t)count);
    v->words = mem_alloc((v->word_mask + (size_t)1) * sizeof *v->words);
    if (!v->bytes || !v->start || !v->flags || !v->words) return no_memory(r->err);
    memset(v->words, 0xFF, (v->word_mask + (size_t)1) * sizeof *v->words);
    memset(v->byte_token, 0xFF, sizeof v->byte_token);
    TRY(types_read(r));
    for (int32_t t = 0; t < v->count; t++) TRY(token_read(r, t, &room));
    for (int b = 0; b < 256; b++)
        if (byte_is_needed(b) && v->byte_token[b] < 0)
            return error_set(r->err, ST_BAD_INPUT,
                             "%s: no token for byte 0x%02x, expected one a byte of text", TOKENS,
                             b);
    return ST_OK;
}

/* The token that text, spelled by GPT-2's table, names; -1: none. */
static int32_t token_named(const reader *r, const char *text, size_t bytes) {
    char word[2 * TOKEN_BYTES_MAX + 1];
    if (!unmap_text(r->unmap, text, bytes, word, &bytes)) return -1;
    return r->v->words[eng_vocab_word_slot(r->v, word, bytes)];
}

static status merge_read(reader *r, int64_t i) {
    const char *text;
    size_t bytes;
    TRY(text_read(r, MERGES, i, 2 * TOKEN_BYTES_MAX + 1, &text, &bytes));
    const char *blank = bytes > 1 ? memchr(text + 1, ' ', bytes - 1) : NULL;
    if (!blank || blank + 1 == text + bytes)
        return error_set(r->err, ST_BAD_INPUT, "%s[%lld]: expected two tokens with a blank between",
                         MERGES, (long long)i);
    size_t left_bytes = (size_t)(blank - text), right_bytes = bytes - left_bytes - 1;
    char joined[2 * TOKEN_BYTES_MAX];
    memcpy(joined, text, left_bytes);
    memcpy(joined + left_bytes, blank + 1, right_bytes);
    int32_t left = token_named(r, text, left_bytes), right = token_named(r, blank + 1, right_bytes),
            result = token_named(r, joined, bytes - 1);
    if (left < 0 || right < 0 || result < 0)
        return error_set(r->err, ST_BAD_INPUT, "%s[%lld]: %s is not in %s", MERGES, (long long)i,
                         left < 0    ? "its left half"
                         : right < 0 ? "its right half"
                                     : "what it makes",
                         TOKENS);
    eng_vocab_pair *p = &r->v->pairs[eng_vocab_pair_slot(r->v, left, right)];
    if (!p->rank) *p = (eng_vocab_pair){left, right, (uint32_t)i + 1, result};
    return ST_OK;
}

static status merges_read(reader *r) {
    int64_t count;
    TRY(count_read(r, MERGES, &count));
    r->v->pair_mask = slots_for(count) - 1;
    r->v->pairs = mem_zalloc(r->v->pair_mask + (size_t)1, sizeof *r->v->pairs);
    if (!r->v->pairs) return no_memory(r->err);
    for (int64_t i = 0; i < count; i++) TRY(merge_read(r, i));
    return ST_OK;
}

/* A key that names a token; absent: -1. */
static status id_read(reader *r, const char *key, int32_t *out) {
    int64_t id = -1;
    status s = eng_gguf_int(r->g, key, &id, r->err);
    *out = -1;
    if (s == ST_NOT_FOUND) return ST_OK;
    TRY(s);
    if (id < 0 || id >= r->v->count)
        return error_set(r->err, ST_BAD_INPUT, "%s: %lld, expected a token, 0 to %d", key,
                         (long long)id, r->v->count - 1);
    *out = (int32_t)id;
    return ST_OK;
}

static void stop_mark(eng_vocab *v, const char *spelling) {
    int32_t t = v->words[eng_vocab_word_slot(v, spelling, strlen(spelling))];
    if (t >= 0 && eng_vocab_is_control(v, t)) v->flags[t] |= ENG_TOKEN_STOP;
}

static status ids_read(reader *r) {
    static const char *const STOPS[] = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>",
                                        "<|end_of_text|>"};
    eng_vocab *v = r->v;
    int32_t eot;
    TRY(id_read(r, "tokenizer.ggml.bos_token_id", &v->bos));
    TRY(id_read(r, "tokenizer.ggml.eos_token_id", &v->eos));
    TRY(id_read(r, "tokenizer.ggml.eot_token_id", &eot));
    if (v->eos >= 0) v->flags[v->eos] |= ENG_TOKEN_STOP;
    if (eot >= 0) v->flags[eot] |= ENG_TOKEN_STOP;
    for (size_t i = 0; i < sizeof STOPS / sizeof *STOPS; i++) stop_mark(v, STOPS[i]);
    bool adds = eng_pretok_adds_bos(v->pretok);
    status s = eng_gguf_bool(r->g, "tokenizer.ggml.add_bos_token", &adds, r->err);
    if (s != ST_NOT_FOUND) TRY(s);
    v->adds_bos = adds && v->bos >= 0;
    return ST_OK;
}

/* qsort_r wants the vocabulary beside the two tokens. */
static int special_order(const void *a, const void *b, void *vocab) {
    const eng_vocab *v = vocab;
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    size_t nx = v->start[x + 1] - v->start[x], ny = v->start[y + 1] - v->start[y];
    int order = memcmp(v->bytes + v->start[x], v->bytes + v->start[y], nx < ny ? nx : ny);
    if (order) return order;
    return nx != ny ? (nx < ny ? -1 : 1) : (x < y ? -1 : 1);
}

static bool is_special(const eng_vocab *v, int32_t t) {
    int type = v->flags[t] & ENG_TOKEN_TYPE;
    return (type == ENG_TOKEN_CONTROL || type == ENG_TOKEN_USER) && v->start[t + 1] > v->start[t];
}

static status specials_sort(eng_vocab *v, error *err) {
    int32_t count = 0;
    for (int32_t t = 0; t < v->count; t++) count += is_special(v, t);
    v->specials = mem_alloc((size_t)count * sizeof *v->specials);
    if (!v->specials) return no_memory(err);
    count = 0;
    for (int32_t t = 0; t < v->count; t++)
        if (is_special(v, t)) v->specials[count++] = t;
    qsort_r(v->specials, (size_t)count, sizeof *v->specials, special_order, v);
    int32_t i = 0;
    for (int b = 0; b < 256; b++) {
        while (i < count && (unsigned char)v->bytes[v->start[v->specials[i]]] < b) i++;
        v->first[b] = i;
    }
    v->first[256] = count;
    return ST_OK;
}

static status model_check(reader *r) {
    const char *model;
    size_t bytes;
    TRY(eng_gguf_text(r->g, "tokenizer.ggml.model", &model, &bytes, r->err));
    if (bytes == 4 && !memcmp(model, "gpt2", 4)) return ST_OK;
    return error_set(
        r->err, ST_UNSUPPORTED,
        "tokenizer.ggml.model: '%.*s' is not supported, expected gpt2 (byte-level BPE)",
        bytes > 64 ? 64 : (int)bytes, model);
}

static status vocab_read(reader *r) {
    const char *pre;
    size_t bytes;
    TRY(model_check(r));
    TRY(eng_gguf_text(r->g, "tokenizer.ggml.pre", &pre, &bytes, r->err));
    TRY(eng_pretok_open(pre, bytes, &r->v->pretok, r->err));
    TRY(tokens_read(r));
    TRY(merges_read(r));
    TRY(ids_read(r));
    return specials_sort(r->v, r->err);
}

status eng_vocab_read(const eng_gguf *g, eng_vocab *v, error *err) {
    reader r = {.g = g, .v = v, .err = err};
    unmap_fill(r.unmap);
    return vocab_read(&r);
}
