/* decode.h -- pages in, tokens out: what the decode role adds to a node. */
#ifndef BATON_DECODE_H
#define BATON_DECODE_H

#include "node/node.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const node_role decode_role;          /* decode.c: a sequence's states, pure */
extern const node_service decode_service;    /* service.c: the Decode method */

/* ---- speculation: speculate.c ---------------------------------------------------------------------- */

typedef struct decode_speculator decode_speculator;

typedef struct decode_speculate_options {
    const char *mode;            /* off, ngram, draft, lookahead, or auto: draft with a draft, else ngram; NULL: off */
    int32_t tokens_max;          /* proposed in one step to one sequence; 1 .. DECODE_PROPOSED_MAX, 0: that */
    bool fixed;                  /* always so many, if they can be proposed, whether that gains or not */
    const char *model;           /* the target, for its vocabulary */
    const char *draft;           /* the draft model; NULL: none */
    /* Of the draft, as in node_options. */
    const char *isa, *device, *cache_dir;
    int threads;
    int32_t kv_pages, page_tokens;
    eng_kv_type kv_type;
} decode_speculate_options;

/* ST_BAD_INPUT: no such mode, or it does not go with the draft. */
status decode_speculate_check(const decode_speculate_options *o, error *err);
/* *out is NULL where mode is off. ST_REFUSED: the draft has another vocabulary; the first difference is named. */
status decode_speculator_open(const decode_speculate_options *o, decode_speculator **out, error *err);
void decode_speculator_close(decode_speculator *x);              /* NULL is fine */
/* For node_options and node_io; of NULL NULL. */
const node_speculator *decode_speculator_table(const decode_speculator *x);

#ifdef __cplusplus
}
#endif
#endif
