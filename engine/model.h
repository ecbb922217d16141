/* model.h -- what model.c, kv.c and step.c share. Internal to engine/. */
#ifndef BATON_ENGINE_MODEL_H
#define BATON_ENGINE_MODEL_H

#include "collective/collective.h"
#include "engine/cache.h"
#include <stdatomic.h>

/* What one rank of a group has (share.c). */
typedef struct eng_share {
    int rank;
    int heads_first, heads;      /* of H */
    int kv_first, kv;            /* of K; ranks may have the same */
    int ffn_first, ffn;          /* of F */
    int vocab_first, vocab;      /* of V */
} eng_share;

/* all (ranks). ST_BAD_INPUT, ST_UNSUPPORTED: the model cannot be split so. */
status eng_share_all(const eng_shape *s, int ranks, eng_share *all, error *err);

/* One transformer block. Matrices are (outputs, inputs); H, K, F and V are this rank's. */
typedef struct eng_layer {
    float *norm_attn;            /* (D)        memory */
    eng_matrix qkv;              /* ((H+2K)h, D) */
    eng_matrix attn_out;         /* (D, H*h)   */
    float *norm_ffn;             /* (D)        memory */
    eng_matrix gate_up;          /* (2F, D)    */
    eng_matrix down;             /* (D, F)     */
} eng_layer;

/* Everything a step writes besides pages, sized once at open. The first part is memory of the back
 * end, the second the host's. */
typedef struct eng_scratch {
    float *x;                    /* (T,D)       the residual stream       */
    void *xn;                    /* act (T,D)   normed                    */
    float *shared_x;             /* the same of all ranks, see eng_ranks; NULL: not shared */
    void *shared_xn;
    float *qkv;                  /* (T,(H+2K)h)                           */
    void *att;                   /* act (T,H*h)                           */
    float *y[2][COLL_RANKS_MAX]; /* (T,D)       output of attention, of the FFN: this rank's, or each rank's */
    float *gu;                   /* (T,2F)      gate and up               */
    void *ff;                    /* act (T,F)                             */
    float *last, *last_y[COLL_RANKS_MAX];    /* (wanted,D)  rows whose logits are asked */
    void *lastn;                 /* act (wanted,D)                        */
    float *logits;               /* (wanted,V)  of this rank              */
    float *theirs[COLL_RANKS_MAX];           /* of each rank              */
    float *gathered;             /* the ranks' logits one after the other */
    float *whole;                /* (wanted,V)  of all, rank 0's          */

    int32_t *token, *position, *rows_index, *wanted;
    eng_tile *tiles;
    float *angles;               /* (T, h/2, {cos, sin}) */
} eng_scratch;

/* What rank 0 tells the others (lead.c). */
typedef struct eng_lead {
    int32_t *plan;
    size_t room;                 /* of plan, in numbers */
    eng_rows *rows;              /* (tokens_max) of a follower */
} eng_lead;

struct eng_model {
    const eng_gguf *g;
    eng_shape shape;             /* of the whole model */
    eng_shape own;               /* of this rank's share */
    coll *group;                 /* NULL: it is alone */
    bool windows;                /* ranks see each other's y, logits and one x: ranks.c */
    eng_lead lead;
    eng_share share[COLL_RANKS_MAX];     /* of every rank */
    const eng_share *own_share;          /* this rank's of them */
    const eng_ops *op;
    eng_context *c;
    float eps;                   /* of every RMSNorm */
    double *inv_freq;            /* (h/2) radians a position; 0: this pair is not turned */
    double angle_scale;          /* cos and sin are multiplied by it (YaRN); 1 otherwise */
    eng_matrix embed, output;    /* (V, D); the same tensor when tied */
    float *norm_out;             /* (D) */
    eng_layer *layer;            /* (L) */
    eng_cache cache;             /* where own of the matrices points */
    int tokens_max, logits_max;
    eng_draw *draws;             /* what the next step draws */
    eng_scratch s;
    size_t scratch_bytes;
    atomic_uint_fast64_t layers_done;
    int64_t spent_us[ENG_SPENTS];
};

/* Rank 0 tells the others what it is about to do. */
status eng_lead_step(eng_model *m, const eng_rows *rows, int count, int32_t page_tokens, error *err);
void eng_lead_copy(coll *group, int32_t dst, int32_t src, int32_t tokens);
/* ST_BAD_INPUT: a token that is none. Wrong positions and pages are the caller's bug: asserted. */
status eng_check_rows(const eng_model *m, const eng_kv *kv, const eng_rows *r, error *err);
/* eng_step() of this rank alone: rows are checked, the others have been told. */
status eng_step_here(eng_model *m, eng_kv *kv, const eng_rows *rows, int count, const float **logits, error *err);

/* Rows are read and written by tiles, the last one past its end (cpu/act.h, cuda/matmul.c). */
static inline size_t eng_whole_rows(const eng_model *m, int rows) {
    size_t unit = (size_t)m->op->rows_whole;
    return ((size_t)rows + unit - 1) / unit * unit;
}

/* ranks.c: what stands between the ops where the model is shared. Alone they do nothing but their op. */
enum { ENG_Y_ATTENTION, ENG_Y_FFN, ENG_Y_NONE };
/* What the ranks have in common in a step of T rows. */
typedef struct eng_step_ranks {
    float *x;                    /* (T,D) */
    void *xn;                    /* act (T,D) */
    int first, end;              /* rows that this rank norms */
} eng_step_ranks;

status eng_ranks_open(eng_model *m, error *err);
void eng_ranks_close(eng_model *m);
eng_step_ranks eng_ranks_begin(const eng_model *m, int T);
void eng_ranks_embed(eng_model *m, const eng_step_ranks *r, const eng_batch *b);     /* the rows that this rank norms */
float *eng_ranks_y(const eng_model *m, int which);                   /* where this rank's goes */
/* Every rank's y is there: one by one, or added up. */
status eng_ranks_sum(eng_model *m, int which, int T, error *err);
/* x += y, xn = normed x, all T rows. */
status eng_ranks_norm(eng_model *m, const eng_step_ranks *r, int which, const float *weight, int T, error *err);
/* The last layer's sum, and logits of the rows asked for: of the whole vocabulary, on rank 0. */
status eng_ranks_logits(eng_model *m, const eng_step_ranks *r, const eng_batch *b, const float **logits, error *err);

struct eng_kv {
    const eng_model *m;
    eng_pages pages;
};

#endif
