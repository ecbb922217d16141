/* vocab.c -- a model's vocabulary: byte-level BPE, as Hugging Face tokenizers and llama.cpp do it.
 *
 *   text -> spellings of special tokens, leftmost and longest first      [special_at]
 *        -> words between them                                           [pretok.c]
 *        -> a token a byte                                               [word_begin]
 *        -> the pair of neighbours with the lowest rank becomes one      [word_merge]
 *           token, leftmost first, until no pair has a rank
 *
 * A byte without a token (SmolLM2 lacks control characters 4, 6, 19, 20, 22, 29 and the lead bytes
 * of planes 4 to 15) adds nothing and its neighbours meet, as in Hugging Face tokenizers. No
 * Unicode normalization is done, whatever the model's tokenizer.json says: text comes back byte for
 * byte.
 *
 * Reading one from a file is vocab_read.c, the words are pretok.c, tokens back to text is detok.c.
 */
#include "engine/vocab.h"
#include "engine/utf8.h"
#include <assert.h>
#include <string.h>

enum { TEXT_BYTES_MAX = 1 << 28 }; /* of one text: indices stay within 31 bits */

status eng_vocab_open(const eng_gguf *g, eng_vocab **out, error *err) {
    eng_vocab *v = mem_zalloc(1, sizeof *v);
    if (!v) return error_set(err, ST_NO_MEMORY, "vocabulary: no memory");
    status s = eng_vocab_read(g, v, err);
    if (s == ST_OK)
        *out = v;
    else
        eng_vocab_close(v);
    return s;
}

void eng_vocab_close(eng_vocab *v) {
    if (!v) return;
    mem_free(v->bytes);
    mem_free(v->start);
    mem_free(v->flags);
    mem_free(v->pairs);
    mem_free(v->words);
    mem_free(v->specials);
    eng_pretok_close(v->pretok);
    mem_free(v);
}

/* ---- asking ---------------------------------------------------------------------------------- */

static size_t token_length(const eng_vocab *v, int32_t t) { return v->start[t + 1] - v->start[t]; }
static bool is_token(const eng_vocab *v, int32_t t) { return t >= 0 && t < v->count; }

int32_t eng_vocab_count(const eng_vocab *v) { return v->count; }
int32_t eng_vocab_bos(const eng_vocab *v) { return v->bos; }
int32_t eng_vocab_eos(const eng_vocab *v) { return v->eos; }
bool eng_vocab_adds_bos(const eng_vocab *v) { return v->adds_bos; }

bool eng_vocab_is_stop(const eng_vocab *v, int32_t token) {
    return is_token(v, token) && (v->flags[token] & ENG_TOKEN_STOP);
}

bool eng_vocab_is_control(const eng_vocab *v, int32_t token) {
    return is_token(v, token) && (v->flags[token] & ENG_TOKEN_TYPE) == ENG_TOKEN_CONTROL;
}

const char *eng_vocab_bytes(const eng_vocab *v, int32_t token, size_t *bytes) {
    assert(is_token(v, token));
    *bytes = token_length(v, token);
    return v->bytes + v->start[token];
}

/* Three bytes before the token may be held; each byte that is no character becomes three. */
size_t eng_detok_max(const eng_vocab *v) { return 3 * (v->bytes_max + 3); }

/* ---- lookup ---------------------------------------------------------------------------------- */

static uint32_t word_hash(const char *text, size_t bytes) {
    uint32_t h = 2166136261u; /* FNV-1a: tokens are short */
    for (size_t i = 0; i < bytes; i++) h = (h ^ (unsigned char)text[i]) * 16777619u;
    return h ^ h >> 15;
}

uint32_t eng_vocab_word_slot(const eng_vocab *v, const char *text, size_t bytes) {
    uint32_t at = word_hash(text, bytes) & v->word_mask;
    for (int32_t t; (t = v->words[at]) >= 0; at = (at + 1) & v->word_mask) {
        size_t have = v->start[t + 1] - v->start[t];
        if (have == bytes && !memcmp(v->bytes + v->start[t], text, bytes)) break;
    }
    return at;
}

uint32_t eng_vocab_pair_slot(const eng_vocab *v, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t at = (uint32_t)(key * 0x9E3779B97F4A7C15u >> 32) & v->pair_mask;
    for (const eng_vocab_pair *p; (p = &v->pairs[at])->rank; at = (at + 1) & v->pair_mask)
        if (p->left == left && p->right == right) break;
    return at;
}

/* ---- text to tokens -------------------------------------------------------------------------- */

/* A word while it is merged: nodes in a list over its bytes. A node that was merged into its left
 * neighbour has token -1. */
typedef struct node {
    int32_t token, prev, next; /* -1: none */
} node;

/* One call's working memory. It grows to the longest word and is freed at the end. */
typedef struct encoder {
    const eng_vocab *v;
    error *err;
    node *nodes;
    size_t nodes_room;
    uint64_t *heap; /* rank << 32 | index of the left node: the lowest rank, leftmost first */
    size_t heap_count, heap_room;
    int32_t *tokens;
    size_t count, room;
} encoder;

/* Makes *p hold count elements of size bytes. Grows by half more than asked, so that it is rare. */
static status grow(encoder *e, void **p, size_t *room, size_t count, size_t size) {
    if (count <= *room) return ST_OK;
    size_t wanted = count + count / 2 + 64;
    void *more = mem_realloc(*p, wanted * size);
    if (!more) return error_set(e->err, ST_NO_MEMORY, "tokenize: no memory");
    *p = more;
    *room = wanted;
    return ST_OK;
}

static status token_add(encoder *e, int32_t token) {
    TRY(grow(e, (void **)&e->tokens, &e->room, e->count + 1, sizeof *e->tokens));
    e->tokens[e->count++] = token;
    return ST_OK;
}

static void heap_push(encoder *e, uint64_t key) {
    size_t i = e->heap_count++;
    for (; i && e->heap[(i - 1) / 2] > key; i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = key;
}

static uint64_t heap_pop(encoder *e) {
    uint64_t top = e->heap[0], last = e->heap[--e->heap_count];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < e->heap_count; i = child) {
        if (child + 1 < e->heap_count && e->heap[child + 1] < e->heap[child]) child++;
        if (e->heap[child] >= last) break;
        e->heap[i] = e->heap[child];
    }
    e->heap[i] = last;
    return top;
}

/* The merge of node i with its right neighbour; its rank is 0 when there is none. */
static const eng_vocab_pair *pair_at(const encoder *e, int32_t i) {
    static const eng_vocab_pair none;
    const node *n = &e->nodes[i];
    if (n->token < 0 || n->next < 0) return &none;
    return &e->v->pairs[eng_vocab_pair_slot(e->v, n->token, e->nodes[n->next].token)];
}

static void pair_offer(encoder *e, int32_t i) {
    uint32_t rank = i < 0 ? 0 : pair_at(e, i)->rank;
    if (rank) heap_push(e, (uint64_t)rank << 32 | (uint32_t)i);
}

/* Lays out the word's bytes as nodes; returns how many there are. */
static int32_t word_begin(encoder *e, const char *word, size_t bytes) {
    int32_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        int32_t token = e->v->byte_token[(unsigned char)word[i]];
        if (token < 0) continue;
        e->nodes[count] = (node){token, count - 1, count + 1};
        count++;
    }
    if (count) e->nodes[count - 1].next = -1;
    return count;
}

/* A key whose pair has changed since it was offered is passed over: what stands there now was
 * offered when it came about. Each merge takes one key and offers at most two, so a word of n bytes
 * has at most 2n keys and costs O(n log n). */
static void word_merge(encoder *e) {
    while (e->heap_count) {
        uint64_t key = heap_pop(e);
        int32_t i = (int32_t)(uint32_t)key;
        const eng_vocab_pair *p = pair_at(e, i);
        if (p->rank != key >> 32) continue;
        node *left = &e->nodes[i], *right = &e->nodes[left->next];
        left->token = p->result;
        left->next = right->next;
        right->token = -1;
        if (left->next >= 0) e->nodes[left->next].prev = i;
        pair_offer(e, left->prev);
        pair_offer(e, i);
    }
}

static status word_encode(encoder *e, const char *word, size_t bytes) {
    if (bytes == 1) {
        int32_t token = e->v->byte_token[(unsigned char)*word];
        return token < 0 ? ST_OK : token_add(e, token);
    }
    if (eng_pretok_keeps_words(e->v->pretok)) {
        int32_t token = e->v->words[eng_vocab_word_slot(e->v, word, bytes)];
        if (token >= 0 && (e->v->flags[token] & ENG_TOKEN_TYPE) == ENG_TOKEN_NORMAL)
            return token_add(e, token);
    }
    TRY(grow(e, (void **)&e->nodes, &e->nodes_room, bytes, sizeof *e->nodes));
    TRY(grow(e, (void **)&e->heap, &e->heap_room, 2 * bytes, sizeof *e->heap));
    int32_t count = word_begin(e, word, bytes);
    for (int32_t i = 0; i < count; i++) pair_offer(e, i);
    word_merge(e);
    for (int32_t i = count ? 0 : -1; i >= 0; i = e->nodes[i].next)
        TRY(token_add(e, e->nodes[i].token));
    return ST_OK;
}

static status plain_encode(encoder *e, eng_cut *cut, const char *text, size_t bytes) {
    eng_cut_begin(cut, text, bytes);
    for (;;) {
        const char *word;
        size_t word_bytes;
        TRY(eng_cut_next(cut, &word, &word_bytes, e->err));
        if (!word_bytes) return ST_OK;
        TRY(word_encode(e, word, word_bytes));
    }
}

/* The first of specials[low..high) whose n-th byte is at least byte; they agree in the bytes
 * before. */
static int32_t special_bound(const eng_vocab *v, int32_t low, int32_t high, size_t n, int byte) {
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if ((unsigned char)v->bytes[v->start[v->specials[middle]] + n] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest special token that text begins with; -1: none. The sorted specials are narrowed byte
 * by byte; those that end where the narrowing stands are the first of what is left. */
static int32_t special_at(const eng_vocab *v, const char *text, size_t bytes) {
    int32_t low = v->first[(unsigned char)*text], high = v->first[(unsigned char)*text + 1],
            best = -1;
    for (size_t n = 1; low < high; n++) {
        for (; low < high && token_length(v, v->specials[low]) == n; low++) best = v->specials[low];
        if (n == bytes) break;
        int byte = (unsigned char)text[n];
        low = special_bound(v, low, high, n, byte);
        high = special_bound(v, low, high, n, byte + 1);
    }
    return best;
}

static status text_encode(encoder *e, eng_cut *cut, const char *text, size_t bytes, bool special) {
    size_t plain = 0; /* where the plain text not encoded yet begins */
    for (size_t i = 0; special && i < bytes;) {
        int32_t token = special_at(e->v, text + i, bytes - i);
        if (token < 0) {
            i++;
            continue;
        }
        TRY(plain_encode(e, cut, text + plain, i - plain));
        TRY(token_add(e, token));
        plain = i += token_length(e->v, token);
    }
    return plain_encode(e, cut, text + plain, bytes - plain);
}

static status tokens_hand_over(const encoder *e, arena *a, int32_t **tokens, int32_t *count) {
    int32_t *out = arena_alloc(a, e->count * sizeof *out);
    if (!out)
        return error_set(e->err, ST_NO_MEMORY, "tokenize: no memory for %zu tokens", e->count);
    if (e->count) memcpy(out, e->tokens, e->count * sizeof *out);
    *tokens = out;
    *count = (int32_t)e->count;
    return ST_OK;
}

status eng_vocab_tokenize(const eng_vocab *v, const char *text, size_t bytes, bool special,
                          arena *a, int32_t **tokens, int32_t *count, error *err) {
    if (bytes > TEXT_BYTES_MAX)
        return error_set(err, ST_BAD_INPUT, "text: %zu bytes, at most %d are read", bytes,
                         TEXT_BYTES_MAX);
    size_t bad = eng_utf8_check(text, bytes);
    if (bad < bytes) return error_set(err, ST_BAD_INPUT, "text at byte %zu: not UTF-8", bad);
    encoder e = {.v = v, .err = err};
    eng_cut cut;
    status s = eng_cut_open(v->pretok, &cut);
    if (s != ST_OK) return error_set(err, s, "tokenize: no memory");
    s = text_encode(&e, &cut, text, bytes, special);
    if (s == ST_OK) s = tokens_hand_over(&e, a, tokens, count);
    eng_cut_close(&cut);
    mem_free(e.tokens);
    mem_free(e.heap);
    mem_free(e.nodes);
    return s;
}
