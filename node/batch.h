/* batch.h -- who gets how many rows of the next step. Pure: values in, values out. */
#ifndef BATON_NODE_BATCH_H
#define BATON_NODE_BATCH_H

#include <stdbool.h>
#include <stdint.h>

/* Rows of a prompt that share one pass over the keys and values before them, in the engine's tiles: a chunk of fewer
 * takes about as long. */
enum { NODE_TILE_ROWS = 16 };

/* What one sequence wants. A decode entry is the last token (of an answer or of a prompt: the same work) and
 * the tokens proposed after it: 1 + k rows, all of them with logits. Anything else is a prefill chunk. */
typedef struct node_want {
    int32_t rows;                /* 1 or more */
    int32_t logits;              /* of so many of the last of them: of one, or of all if the prompt's logprobs are wanted */
    bool decode;
    int64_t last_step;           /* when it last had a row */
    int32_t level;               /* 0 is the first: node/schedule.h */
} node_want;

/* The first `rows` rows of those wanted. Of a decode entry at least 1: what is proposed after them is dropped. */
typedef struct node_share {
    int32_t rows;                /* 0: not in this step */
    int32_t logits;              /* of the last of these rows: of all where all are wanted; else, of a chunk, of one if it is
                                    the whole want, or none */
} node_share;

typedef struct node_budget {
    int32_t step_tokens_max;     /* rows of a step */
    int32_t chunk_tokens;        /* most rows of one prompt */
    int32_t logits_max;
    int32_t prefill_tokens;      /* most rows of all prompts beside decode entries: what the ITL target leaves */
} node_budget;

/* wants stand in the order of the schedule. Both return how many rows were shared out. */
int32_t node_batch_decode_first(const node_budget *b, const node_want *wants, int32_t count, node_share *shares);
int32_t node_batch_in_order(const node_budget *b, const node_want *wants, int32_t count, node_share *shares);

#endif
