/* propose_lookahead.c -- the target's own guesses: lookahead decoding (Fu et al. 2024) as far as one chain of rows carries it.
 *
 * Every row of a step gives a token, also the rows behind a wrong guess: it is what the target would say there if the
 * guesses were right. Fed again as the next guesses they come closer to the answer (Jacobi iteration). So:
 *
 *   W  the window: so many guesses are fed behind the last token, at most --speculate-tokens, as many as pay
 *   N  3: each row that is not accepted says "after these two tokens comes that one"; such 3-grams, and those of the answer
 *      itself, are kept in a pool, by hash, the latest of a slot
 *
 * A guess is what the pool says after the two tokens before it, else what the row there said in the last step, else the
 * token before it again. The paper's second dimension, several windows of different age in one step, needs rows that do
 * not see all rows before them; a step has none. */
#include "decode-node/speculate.h"
#include <string.h>

enum { SLOTS = 4096 };           /* a power of two */

typedef struct gram { int32_t a, b, next; } gram;            /* next is kept plus one: 0 is an empty slot */

typedef struct window {
    int32_t guess[DECODE_PROPOSED_MAX];      /* of positions count, count + 1, ... */
    int32_t guesses;
    int32_t fed[DECODE_PROPOSED_MAX];        /* in the last step */
    int32_t entered;             /* 3-grams of the sequence that end before this position are in the pool */
    gram pool[SLOTS];
} window;

static size_t bytes(const decode_speculator *x, int32_t tokens_max) { return (void)x, (void)tokens_max, sizeof(window); }

static gram *slot_of(window *w, int32_t a, int32_t b) {
    uint64_t hash = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) * 0x9e3779b97f4a7c15u;
    return &w->pool[hash >> 52 & (SLOTS - 1)];
}

static void enter(window *w, int32_t a, int32_t b, int32_t next) { *slot_of(w, a, b) = (gram){a, b, next + 1}; }

static int32_t ready(decode_speculator *x, decode_guess *g, int32_t most) {
    (void)x;
    const node_seq *s = g->seq;
    window *w = g->own;
    for (; w->entered < s->count; w->entered++)
        if (w->entered >= 2) enter(w, s->tokens[w->entered - 2], s->tokens[w->entered - 1], s->tokens[w->entered]);
    return s->count >= 2 ? most : 0;
}

static void propose(decode_speculator *x, node_seq *const *seqs, int32_t *counts, int n) {
    (void)x;
    for (int i = 0; i < n; i++) {
        node_seq *s = seqs[i];
        window *w = ((decode_guess *)s->speculation)->own;
        for (int32_t j = 0; j < counts[i]; j++) {
            const int32_t *before = s->tokens + s->count + j - 2;
            const gram *known = slot_of(w, before[0], before[1]);
            bool hit = known->next && known->a == before[0] && known->b == before[1];
            s->tokens[s->count + j] = w->fed[j] = hit ? known->next - 1 : j < w->guesses ? w->guess[j] : before[1];
        }
    }
}

/* The row of the first wrong guess stands where the token that was drawn instead stands now. */
static void learn(decode_speculator *x, decode_guess *g, int32_t proposed, int32_t accepted, const float *rest) {
    const node_seq *s = g->seq;
    const node_request *r = s->request;
    window *w = g->own;
    eng_sampling how = r->sampling;
    eng_sampled got;
    how.logprobs = -1;
    w->guesses = 0;
    for (int32_t i = 0; accepted + i < proposed; i++, rest += x->V) {
        if (eng_sample(x->sampler, &how, rest, s->tokens, r->prompt_count, s->count + i, &got) != ST_OK) return;
        int32_t before = i > 0 ? w->fed[accepted + i - 1] : s->tokens[s->count - 2];
        enter(w, before, w->fed[accepted + i], got.token);
        w->guess[w->guesses++] = got.token;
    }
}

const decode_proposer decode_propose_lookahead = {.name = "lookahead", .odds = 0.3, .bytes = bytes, .ready = ready,
                                                  .propose = propose, .learn = learn};
