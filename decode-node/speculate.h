/* speculate.h -- the table of proposers and what they share. Internal to decode-node/.
 *
 *   speculate.c           which proposer, how many tokens, what became of them
 *   adapt.c               how many: pure
 *   propose_ngram.c       what followed the same words before: prompt lookup
 *   propose_draft.c       what a smaller model says; draft_model.c has the model
 *   propose_lookahead.c   what the target itself said behind wrong guesses */
#ifndef BATON_DECODE_SPECULATE_H
#define BATON_DECODE_SPECULATE_H

#include "decode-node/adapt.h"
#include "decode-node/decode.h"

typedef struct decode_guess decode_guess;
typedef struct decode_proposer decode_proposer;
typedef struct decode_draft decode_draft;
typedef struct decode_draft_model decode_draft_model;

/* One sequence to which tokens are proposed: node_seq.speculation. In its arena. */
struct decode_guess {
    decode_guess *next, *prev;   /* oldest first */
    node_seq *seq;
    decode_odds odds;
    int32_t plain;               /* steps since one with proposed tokens */
    int32_t accepted;            /* in that one */
    int32_t unsaid, unsaid_at;   /* what would have been proposed for this position; 0: nothing */
    void *own;                   /* the proposer's */
};

struct decode_proposer {
    const char *name;
    double odds;                 /* expected before anything was measured */
    size_t (*bytes)(const decode_speculator *x, int32_t tokens_max);         /* of its own state, zeroed when a sequence joins */
    bool (*work)(decode_speculator *x);          /* as node_speculator's; NULL: none */
    /* How many tokens it could propose to g, at most `most`. */
    int32_t (*ready)(decode_speculator *x, decode_guess *g, int32_t most);
    /* As node_speculator's. */
    void (*propose)(decode_speculator *x, node_seq *const *seqs, int32_t *counts, int n);
    /* As node_speculator's judge. NULL: nothing to learn. */
    void (*learn)(decode_speculator *x, decode_guess *g, int32_t proposed, int32_t accepted, const float *rest);
    void (*leave)(decode_speculator *x, decode_guess *g);        /* NULL: nothing to give back */
};

extern const decode_proposer decode_propose_ngram, decode_propose_draft, decode_propose_lookahead;

/* Belongs to the engine thread between open and close. */
struct decode_speculator {
    node_speculator table;
    const decode_proposer *proposer;
    int32_t tokens_max;
    bool fixed;                  /* nothing is asked of adapt.c */
    decode_curve step;           /* of the target */
    double expected;             /* odds of a sequence that joins: what others' were, at most the proposer's */
    int32_t decoding;            /* sequences in the last step */
    int32_t eager;               /* steps in a row that had proposed tokens */
    decode_guess *first, *last;
    decode_draft *draft;         /* the draft's: NULL with another proposer */
    decode_draft_model *draft_model;
    eng_sampler *sampler;        /* lookahead's, for V tokens */
    int32_t V;
};

/* What adapt.c decides from; most as in node_speculator.plan. */
decode_outlook decode_speculate_outlook(const decode_speculator *x, const decode_guess *g, int32_t most);

/* A speculator without a model, for whoever brings its own proposer: open() and tests. */
status decode_speculator_create(const decode_proposer *proposer, int32_t tokens_max, decode_speculator **out, error *err);

#endif
