/* draft.h -- the draft: how propose_draft.c sees the model, and the model itself. Internal to decode-node/. */
#ifndef BATON_DECODE_DRAFT_H
#define BATON_DECODE_DRAFT_H

#include "decode-node/speculate.h"

/* Rows of one sequence; with a token the one behind them is drawn as the sequence's request says, from
 * seq->tokens[0, position + count). */
typedef struct decode_draft_rows {
    eng_rows rows;               /* logits: 1 with a token, else 0 */
    node_seq *seq;
    int32_t *token;              /* gets it; NULL: none is drawn */
} decode_draft_rows;

/* One step of the model; tests have another one. */
typedef struct decode_draft_io {
    void *ctx;
    status (*step)(void *ctx, const decode_draft_rows *rows, int count);
    int64_t (*step_us)(void *ctx);           /* how long the last one took */
} decode_draft_io;

struct decode_draft {
    decode_draft_io io;
    eng_pool *pool;
    int32_t page_tokens, context;
    decode_curve draw, read;     /* by sequences, by rows */
    decode_draft_rows *rows;     /* of a step */
    bool failed;                 /* for good */
};

status decode_draft_create(const decode_draft_io *io, int32_t pages, int32_t page_tokens, int32_t context, decode_draft **out,
                           error *err);
void decode_draft_destroy(decode_draft *d);      /* NULL is fine */

/* draft_model.c */
/* Opens o->draft, compares its vocabulary with o->model's, and makes *draft of it. */
status decode_draft_model_open(const decode_speculate_options *o, decode_draft_model **out, decode_draft **draft, error *err);
void decode_draft_model_close(decode_draft_model *m);            /* after the draft; NULL is fine */

#endif
