/* batch.h -- who gets how many rows of the next step. Pure: values in, values out. */
#ifndef BATON_NODE_BATCH_H
#define BATON_NODE_BATCH_H

#include <stdint.h>

/* What one sequence wants. One row: a decode row (or the last row of a prompt: the same work). More: a
 * prefill chunk. */
typedef struct node_want {
    int32_t rows;                /* 1 or more */
    int64_t last_step;           /* when it last had a row */
} node_want;

typedef struct node_share {
    int32_t rows;                /* 0: not in this step */
    int32_t logits;              /* 1: these rows reach its target, so it samples */
} node_share;

typedef struct node_budget {
    int32_t step_tokens_max, chunk_tokens, logits_max;
} node_budget;

/* wants stand in order of age, oldest first. Returns how many rows were shared out. */
int32_t node_batch_form(const node_budget *b, const node_want *wants, int32_t count, node_share *shares);

#endif
