/* core.h -- struct node_core, shared by core.c (messages and steps) and seq.c (one sequence's pages). */
#ifndef BATON_NODE_CORE_H
#define BATON_NODE_CORE_H

#include "node/cost.h"
#include "node/seq.h"

/* Belongs to the engine thread while that runs; before and after, to who opens and closes the node. */
struct node_core {
    node_limits limits;
    node_io io;
    eng_pool *pool;
    eng_sampler *sampler;
    node_seq *first, *last;      /* in the order of the schedule */
    int32_t count;
    int64_t numbers;             /* sequences taken so far */
    node_cost cost;
    int32_t *slots;              /* (swap_pages) free pages of host memory */
    int32_t slots_free;
    int64_t given, given_seen;   /* times pages came back; as of the last try to resume */
    node_counts figures;         /* steps, tokens, preemptions, rates */
    int64_t said;                /* answer tokens */
    char text[200];
    /* One step's batch, (sequences_max) each. */
    node_seq **batch;
    node_want *wants;
    node_share *shares;
    eng_rows *rows;
    node_seq **guessing;         /* who has room for proposed tokens, and how many */
    int32_t *guesses;
    eng_draw *draws;             /* (logits_max), by row of the step's logits */
};

node_seq *node_seq_create(node_core *c, const node_role *role, node_request *r, int64_t now_us);
void node_core_count_end(status st);      /* the metric of ended requests */

#endif
