/* propose_ngram.c -- prompt lookup: where the last N tokens stood before, what followed then is proposed.
 *
 * An index over the sequence's own tokens, prompt and answer: a slot for each n-gram, by its hash, holds the position
 * behind its latest occurrence. Two n-grams of one slot: the later one stays; tokens are compared on every hit. Each token
 * is entered once, when the one behind it is known, so a step costs as many entries as it has tokens.
 *
 * What is proposed may reach into what is proposed: a text that repeats itself goes on repeating. */
#include "decode-node/speculate.h"

enum { N = 3 };

typedef struct index {
    int32_t entered;             /* n-grams that end before this position are in */
    int32_t from;                /* what ready() found: the position to copy from */
    int32_t mask;
    int32_t slot[];              /* position behind an n-gram; 0: none */
} index;

/* A power of two, at least twice the tokens. */
static int32_t slots_of(int32_t tokens_max) {
    int32_t slots = 64;
    while (slots < tokens_max && slots < 1 << 29) slots *= 2;
    return 2 * slots;
}

static size_t bytes(const decode_speculator *speculator, int32_t tokens_max) {
    (void)speculator;
    return sizeof(index) + (size_t)slots_of(tokens_max) * sizeof(int32_t);
}

/* Of the n-gram that ends before position end. */
static int32_t *slot_of(index *x, const int32_t *tokens, int32_t end) {
    uint64_t hash = 0;
    for (int32_t i = end - N; i < end; i++) hash = (hash ^ (uint64_t)tokens[i]) * 0x9e3779b97f4a7c15u;
    return &x->slot[(int32_t)(hash >> 32) & x->mask];
}

static bool are_equal(const int32_t *tokens, int32_t a, int32_t b) {
    for (int32_t i = 1; i <= N; i++)
        if (tokens[a - i] != tokens[b - i]) return false;
    return true;
}

static int32_t ready(decode_speculator *speculator, decode_guess *g, int32_t most) {
    (void)speculator;
    const node_seq *s = g->seq;
    index *x = g->own;
    if (x->mask == 0) x->mask = slots_of(s->tokens_max) - 1, x->entered = N;
    for (; x->entered < s->count; x->entered++) *slot_of(x, s->tokens, x->entered) = x->entered;
    if (s->count <= N) return 0;
    int32_t from = *slot_of(x, s->tokens, s->count);
    if (from == 0 || !are_equal(s->tokens, from, s->count)) return 0;
    x->from = from;
    return most;
}

static void propose(decode_speculator *speculator, node_seq *const *seqs, int32_t *counts, int n) {
    (void)speculator;
    for (int i = 0; i < n; i++) {
        node_seq *s = seqs[i];
        int32_t from = ((index *)((decode_guess *)s->speculation)->own)->from;
        for (int32_t j = 0; j < counts[i]; j++) s->tokens[s->count + j] = s->tokens[from + j];
    }
}

const decode_proposer decode_propose_ngram = {.name = "ngram", .odds = 0.5, .bytes = bytes, .ready = ready, .propose = propose};
