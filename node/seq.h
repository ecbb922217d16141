/* seq.h -- the verbs of a sequence, for the roles (prefill-node/, decode-node/) and node/core.c.
 *
 * All of them belong to the engine thread. struct node_seq is in node.h. */
#ifndef BATON_NODE_SEQ_H
#define BATON_NODE_SEQ_H

#include "node/node.h"

const node_limits *node_core_limits(const node_core *c);   /* context: cut to what the pool can hold */
const node_io *node_core_io(const node_core *c);
void node_core_emit(node_core *c, const node_event *e);
node_seq *node_core_first(const node_core *c);             /* of the sequences, in the order of the schedule; NULL: none */
/* A sequence in front of s waits for pages: s must not pass it. */
bool node_core_waits(const node_seq *s);
/* Text for a refusal with numbers in it, valid until the next one. */
const char *node_core_text(node_core *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

int32_t node_seq_pages(const node_core *c, int32_t tokens);          /* how many hold so many tokens */

void node_seq_show(void);                                  /* its metrics are there from now on, as 0 */
/* Its prompt's logprobs are not all said: the rows from s->told - 1 on are needed with their logits. */
bool node_seq_tells(const node_seq *s);
/* So many leading tokens may come from the prefix cache: of the others logits are needed. */
int32_t node_seq_cacheable(const node_seq *s);
/* Fills s->blocks with `pages` pages: those the prefix index knows of the cacheable tokens, a copy of a page that agrees
 * in part, fresh ones for the rest, and what was swapped out. s->ready says how many leading tokens they hold. Where too few are free those
 * of lower level or priority behind s are preempted, if that is enough. All or nothing: ST_AGAIN. */
status node_seq_take(node_core *c, node_seq *s, int32_t pages, eng_page_state state);
/* One page more. ST_AGAIN: none is free. */
status node_seq_grow(node_core *c, node_seq *s);
/* Makes someone who can do without give pages back for s: the last sequence behind s, or one
 * whose reader is slow; in the end s itself when nobody else holds a page. false: nobody. */
bool node_seq_make_room(node_core *c, node_seq *s);
void node_seq_mark(node_core *c, node_seq *s, int32_t first, int32_t end, eng_page_state state);
/* Offers the full pages of s->tokens[0, ready) to the prefix index. */
void node_seq_publish(node_core *c, node_seq *s);
/* Before its pages are given up: keeps their KV in host memory where that is cheaper than to compute it again. */
void node_seq_swap_out(node_core *c, node_seq *s);
void node_seq_give(node_core *c, node_seq *s);             /* all pages; nothing is ready any more */
/* What is to be said of the prompt's token at s->told, from the row before it. */
status node_seq_score(node_core *c, node_seq *s, const float *logits, eng_sampled *out);
/* The token after s->tokens[0, count), and appends it when there is room. */
status node_seq_sample(node_core *c, node_seq *s, const float *logits, eng_sampled *out);
/* NODE_END, gives every page back, frees s. */
void node_seq_end(node_core *c, node_seq *s, status st, const char *text);

#endif
