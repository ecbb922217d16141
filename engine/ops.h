/* ops.h -- the table a back end fills. step.c tells the story of the forward pass with these calls
 * and nothing else; it never looks at weights, activations or pages itself.
 *
 * Made to hold every back end without a second table:
 *  - A weight is an eng_matrix that the back end prepares once: it may point into the file, hold
 *    repacked panels for an instruction set, or a device pointer. Several tensors of the same width
 *    are stacked into one matrix (Q, K and V; gate and up), so that one product does them all.
 *  - What a product reads is an *activation* (void *): rows of the back end's own making, written by
 *    rmsnorm, attention and silu_mul, of act_bytes(columns) each. Plain float, or int8 with scales
 *    where weights are multiplied as integers: quantising is fused into the op that writes the row.
 *  - Every pointer marked "memory" comes from alloc() and may be device memory; only the back end
 *    follows it. Ops are queued in order (a stream); finish() waits and shows the logits to the host.
 *  - Tensor parallelism: a context is one rank and its matrices are the rank's share; sum() over the ranks
 *    stands between the ops (ranks.c). Where `shares` says so, memory that ops read and write may be the
 *    host's and other ranks' too.
 *  - The layout of a page is the back end's: kv_pack/kv_unpack speak the canonical order.
 *
 * Rule for every op: what is computed for a row is the same sequence of operations whatever T is,
 * whichever thread does it and whatever the other rows hold. */
#ifndef BATON_ENGINE_OPS_H
#define BATON_ENGINE_OPS_H

#include "engine/engine.h"

enum { ENG_STACK_MAX = 3, ENG_HEAD_MAX = 512, ENG_ROOM_BYTES = 240 };

typedef struct eng_context eng_context;      /* a back end's own: threads, stream, scratch */

typedef struct eng_matrix {
    int N, C;                                /* rows in all (outputs), columns (inputs) */
    int parts;
    struct {
        eng_type type;
        int rows;
        size_t row_bytes;
        const void *data;                    /* rows as the file has them */
    } part[ENG_STACK_MAX];
    bool by_row;                             /* looked up (embed), never multiplied */
    const void *own;                         /* the back end's form of it, or NULL */
} eng_matrix;

/* A run of rows of one sequence that attention treats together. */
typedef struct eng_tile {
    int row, count;                          /* rows [row, row + count) of the step */
    int rows_index;                          /* which eng_rows they belong to */
} eng_tile;

enum { ENG_TILE_ROWS = 16 };

/* The rows of a step, host memory, read-only for the ops. */
typedef struct eng_batch {
    int T;
    const eng_rows *rows;
    const int32_t *token;                    /* (T) */
    const int32_t *position;                 /* (T) */
    const int32_t *rows_index;               /* (T) which of rows[] */
    const eng_tile *tiles;
    int tiles_count;
    const float *angles;                     /* (T, h/2, {cos, sin}) */
    const int32_t *wanted;                   /* rows whose logits are asked, ascending */
    int wanted_count;
    eng_draw *draws;                         /* tokens that finish() draws, where the table says draws */
    const struct eng_pages *pages;           /* that the step reads and writes */
} eng_batch;

/* Rows [first, end) of T to be normed; y: what is added to x before, the parts of a sum over ranks in their order. */
typedef struct eng_norm {
    float *x;                                /* (T,D) */
    const float *const *y;                   /* parts of (T,D) */
    int parts;
    const float *weight;                     /* (D) */
    float eps;
    int T, D, first, end;
} eng_norm;

/* What an op must know of the pages. */
typedef struct eng_pages {
    void *data;                              /* memory: pages x page_bytes */
    void *own;                               /* what else the back end keeps for them, or NULL */
    int32_t pages, P;
    int L, K, h;
    int group, skip;                         /* query heads that read one kv head; of the first kv head's, those that
                                                another rank has. 0: as many as H/K */
    eng_kv_type type;
    size_t page_bytes;
} eng_pages;

/* The first query head, of H, that reads kv head k; of K: H. */
static inline int eng_pages_head(const eng_pages *kv, int k, int H) {
    int at = k * (kv->group ? kv->group : H / kv->K) - kv->skip;
    return at < 0 ? 0 : at > H ? H : at;
}

typedef struct eng_ops {
    const char *name;

    /* o: threads, device, group, tokens_max and logits_max, none of the last two left to a default. */
    status (*open)(const eng_options *o, const eng_shape *shape, eng_context **out, error *err);
    void (*close)(eng_context *c);
    const char *(*numerics)(const eng_context *c);       /* "cpu-2" */

    void *(*alloc)(eng_context *c, size_t bytes);        /* zeroed memory, 64-aligned; NULL: none left */
    void (*free)(eng_context *c, void *memory);
    void (*copy_in)(eng_context *c, void *memory, const void *from, size_t bytes);
    /* For who has to say that alloc() gave nothing: "device 0 (NAME): 512 of 24564 MiB are free". */
    const char *(*room)(eng_context *c, char out[ENG_ROOM_BYTES]);
    const char *(*place)(const eng_context *c);          /* "the host", "device 0 (NAME)" */
    int rows_whole;                                      /* alloc() for T rows has room for a multiple of it */
    /* The back end's own form of a matrix, made once by prepare() from the rows as the file has them.
     * own_bytes: what it needs, 0: none, the rows are used where they are. own is 64-aligned memory of
     * the caller; the bytes written depend on the matrix and on `form` alone, so that they can be kept
     * in a file and mapped by other processes (cache.c). */
    bool shares;                                         /* memory is the host's; else every matrix needs own, embed too */
    const char *form;                                    /* "panels-2"; NULL: own is never kept in a file */
    size_t (*own_bytes)(const eng_context *c, const eng_matrix *m);
    void (*prepare)(eng_context *c, const eng_matrix *m, void *own);
    size_t (*act_bytes)(const eng_context *c, int columns);
    /* After the last prepare(): what was queued is done. What went wrong since open, if anything did. */
    status (*ready)(eng_context *c, error *err);

    /* The memory of kv, whose other fields are filled but data and own. */
    status (*pages_open)(eng_context *c, eng_pages *kv, error *err);
    void (*pages_close)(eng_context *c, eng_pages *kv);

    /* A step is begin, ops, finish. begin may copy the batch to the device; what goes wrong after it is told by
     * finish. logits (count) may be memory, *out is the host's, valid until the next step. With count 0 the step
     * may still be under way when finish returns: what follows is ordered after it. */
    void (*begin)(eng_context *c, const eng_batch *b);
    status (*finish)(eng_context *c, const float *logits, size_t count, const float **out, error *err);
    bool queued;                                         /* an op may return before it is done: how long it takes only finish() knows */
    bool draws;                                          /* finish() draws the batch's tokens; what it shows of logits:
                                                            eng_step_draws() */
    /*                                        y (T,D) = sum over the ranks of y                      */
    status (*sum)(eng_context *c, coll *group, float *y, int T, int D, error *err);

    /*                                        x (T,D) = rows of w for the batch's tokens             */
    void (*embed)(eng_context *c, float *x, const eng_matrix *w, const eng_batch *b);
    /*                                        out (wanted,D) = the rows of x whose logits are asked  */
    void (*gather)(eng_context *c, float *out, const float *x, const eng_batch *b, int D);
    /*                                        out act(T,C) = x (T,C)                                 */
    void (*activate)(eng_context *c, void *out, const float *x, int T, int C);
    /* rows [first, end): x (T,D) += ((y0 + y1) + y2) + ..., nothing without parts;
     *                                        out act(T,D) = x / sqrt(mean(x^2) + eps) * weight      */
    void (*rmsnorm)(eng_context *c, void *out, const eng_norm *n);
    /*                                        y (T,N) = x act(T,C) * w(N,C)^T                        */
    void (*matmul)(eng_context *c, float *y, const void *x, const eng_matrix *w, int T);
    /* qkv (T,(H+2K)h): turns q in place and k on its way into the pages of layer l; v as it is.     */
    void (*rope_append)(eng_context *c, float *qkv, const eng_pages *kv, int l, const eng_batch *b,
                        int H);
    /*           out act(T,H*h) = softmax(q k^T * scale) v over positions 0 .. own, from the pages   */
    void (*attention)(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,
                      const eng_batch *b, int H, float scale);
    /*                                        out act(T,F) = silu(gate) * up, gu (T,2F) = gate, up   */
    void (*silu_mul)(eng_context *c, void *out, const float *gu, int T, int F);

    void (*kv_copy)(eng_context *c, const eng_pages *kv, int32_t dst, int32_t src, int32_t tokens);
    void (*kv_pack)(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box,
                    void *out);
    void (*kv_unpack)(eng_context *c, const eng_pages *kv, const int32_t *blocks,
                      const eng_kv_box *box, const void *in);
    /* As eng_kv_runs(); NULL: no part of a page lies as on the wire, in memory. */
    int (*kv_runs)(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, void *scratch,
                   struct iovec *runs, int runs_max);
} eng_ops;

/* The back end of o->device and, on the CPU, o->isa. ST_UNSUPPORTED names what is not here. */
status eng_ops_choose(const eng_options *o, const eng_ops **out, error *err);
/* The CPU's back end of that name if this machine can run it, else NULL; NULL and "auto": the fastest. */
const eng_ops *eng_ops_find(const char *name);
/* "amx, avx512, ...": those that this machine can run. */
const char *eng_ops_names(char out[80]);
/* Those of the CPU that this machine can run, by index from 0; NULL: past the last. */
const eng_ops *eng_ops_at(int index);

#endif
