/* cuda.h -- what the host side of the CUDA back end shares. Internal to engine/cuda/.
 *
 * Host code is C; .cu files hold kernels and their launches only (kernels.h). The pieces:
 *
 *   table.c     the op table, and the ops that are one launch
 *   device.c    which GPU, and what is said when there is none
 *   context.c   open, close, memory, errors
 *   weights.c   matrices brought to the device
 *   matmul.c    products, cuBLAS's
 *   batch.c     the rows of a step on their way to the device
 *   graph.c     begin and finish: decode steps captured once and replayed
 *   pages.c     KV from and to the host
 *   ranks.c     sums over ranks, NCCL's
 *   load.c      cuBLAS and NCCL, opened when they are needed
 *
 * Streams. `compute` has the steps. `in` has what comes to the device beside them (weights, unpacked pages), `out`
 * what leaves it (packed pages). Three events order them, and nothing else does:
 *
 *   computed   recorded on compute at the end of a step and after a page was copied; in and out wait for it before
 *              they touch pages: what the step writes is there, what it reads is read
 *   unpacked   recorded on in after pages were written; compute waits for it when a step begins or a page is copied,
 *              and out before it packs
 *   (packing returns when the bytes are on the host, so nothing has to wait for it)
 *
 * Threads. All of it belongs to the engine thread, but packing and unpacking, which have a lock each.
 *
 * Errors. A CUDA error is the end of the context: the first one is kept (cuda_fine) and finish() or ready() tells it;
 * after it no op does anything. */
#ifndef BATON_ENGINE_CUDA_H
#define BATON_ENGINE_CUDA_H

#include "collective/collective.h"
#include "engine/cuda/kernels.h"
#include "engine/cuda/load.h"
#include <pthread.h>
#include <stdatomic.h>

enum {
    CUDA_SLAB = 64,              /* rows of a cuBLAS product; what rows of scratch are a multiple of */
    CUDA_DECODE_ROWS = 64,       /* most rows of a step that is treated as decoding, and captured */
    CUDA_GRAPHS = 64,            /* kept for each kv */
    CUDA_STAGE_BYTES = 8 << 20,
    CUDA_STAGE_BLOCKS = 4096,    /* entries of a block table beside packed rows */
    CUDA_SUM_FEW = 1 << 16,      /* floats that a sum over ranks gathers whole */
    CUDA_ALIGN = 256,            /* of cudaMalloc, and of each part of a matrix */
    CUDA_SLACK = 256,            /* bytes beyond what alloc() was asked: a sum's last share reaches there */
};

/* One way between host and device, two pieces under way at a time. */
typedef struct cuda_stage {
    cudaStream_t stream;
    pthread_mutex_t lock;
    char *host[2];               /* pinned, CUDA_STAGE_BYTES each */
    char *device[2];
    cudaEvent_t done[2];         /* the piece is where it was to go */
    int turn;                    /* which of the two is next */
} cuda_stage;

/* The rows of a step, laid out once: host is pinned, two of them, so that one may be filled while the other is
 * still being read; device has always the same addresses, for graphs. */
typedef struct cuda_batch {
    cuda_rows rows;              /* as the ops see them: device memory, T and wanted padded */
    const eng_tile *tiles;       /* device memory */
    int tiles_count;
    bool decodes;                /* one row a sequence, few enough: rows are padded to their bucket */
    int context;                 /* no row's position is as large; rounded up to its bucket */
    char *host[2];
    char *device;
    cudaEvent_t copied[2];       /* host[i] may be written again */
    int turn;
} cuda_batch;

typedef struct cuda_graph {
    int T, wanted, context;
    int64_t used;                /* the step that used it last */
    cudaGraphExec_t exec;        /* NULL: seen once, not captured yet */
} cuda_graph;

/* What pages need besides themselves: eng_pages.own. */
typedef struct cuda_pages {
    int32_t *blocks;             /* device: the tables of a step's sequences, one after the other */
    int32_t *blocks_host[2];     /* pinned; same turn as the batch */
    size_t blocks_room;
    void *scratch;               /* of attention's splits */
    int context;                 /* positions that scratch is for */
    cuda_graph graph[CUDA_GRAPHS];
} cuda_pages;

/* Tokens that a step draws (draws.c). Arrays of logits_max; none in a group of ranks. */
typedef struct cuda_draws {
    int count, hidden;           /* hidden: so many whose logits stay there */
    eng_draw **of;               /* of[i] asked, and gets token[i] */
    cuda_draw *ask, *ask_there;  /* pinned, device */
    int32_t *token, *token_there;
    void *scratch;
} cuda_draws;

typedef enum cuda_mode { CUDA_QUEUE, CUDA_CAPTURE, CUDA_REPLAY } cuda_mode;

struct eng_context {
    int device;
    char place[120], numerics[48];
    int tokens_max, logits_max;
    eng_shape shape;             /* of the whole model: bounds of this rank's */
    cudaStream_t compute;
    cudaEvent_t computed, unpacked, finished;
    cuda_stage in, out;
    size_t stage_bytes;          /* of a piece in them: CUDA_STAGE_BYTES, less in tests */
    size_t taken;                /* bytes of device memory */

    pthread_mutex_t lock;        /* of failed */
    _Atomic bool broken;
    error failed;                /* the first error */

    const cuda_blas *blas;       /* NULL: no float weights so far */
    cublasHandle_t gemm;
    void *gemm_workspace, *gemm_x;           /* x: (CUDA_SLAB, widest) of the matrix's type */

    cuda_batch batch;
    float *logits;               /* pinned (logits_max, V) */
    cuda_draws draws;
    cuda_mode mode;
    cuda_graph *graph;           /* of the step under way, or NULL */
    int64_t steps;

    coll *group;                 /* NULL: alone */
    int rank, ranks;
    const cuda_nccl *nccl;
    ncclComm_t comm;             /* NULL: given up */
    float *parts;                /* the ranks' shares of a sum */
    size_t sum_few;              /* CUDA_SUM_FEW, less in tests */
};

/* ---- device.c ---- */

/* The device of this rank, made current. ST_UNSUPPORTED: no driver, one too old, no such device or too old a one. */
status cuda_device_choose(const char *device, int rank, eng_context *c, error *err);

/* ---- context.c ---- */

status cuda_open(const eng_options *o, const eng_shape *shape, eng_context **out, error *err);
void cuda_close(eng_context *c);
void *cuda_alloc(eng_context *c, size_t bytes);
void cuda_free(eng_context *c, void *memory);
void *cuda_alloc_pinned(eng_context *c, size_t bytes);
void cuda_copy_in(eng_context *c, void *memory, const void *from, size_t bytes);
const char *cuda_room(eng_context *c, char out[ENG_ROOM_BYTES]);
status cuda_ready(eng_context *c, error *err);
/* true: e is none, and nothing went wrong before. false: the first error is kept, and logged. */
bool cuda_fine(eng_context *c, cudaError_t e, const char *what);
bool cuda_fail(eng_context *c, status s, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
status cuda_status(eng_context *c, error *err);          /* what was kept */

/* ---- weights.c ---- */

size_t cuda_own_bytes(const eng_context *c, const eng_matrix *m);
void cuda_prepare(eng_context *c, const eng_matrix *m, void *own);
/* Bytes of part i in own. */
size_t cuda_part_bytes(const eng_matrix *m, int i);
bool cuda_is_float(eng_type type);
bool cuda_is_dense(const eng_matrix *m);                 /* all parts of one float type: rows of one matrix */

/* ---- matmul.c ---- */

int cuda_widest(const eng_shape *s);                     /* columns of the widest row that a product reads */

status cuda_gemm_open(eng_context *c, error *err);
void cuda_gemm_close(eng_context *c);
void cuda_matmul(eng_context *c, float *y, const void *x, const eng_matrix *w, int T);

/* ---- batch.c ---- */

bool cuda_batch_open(eng_context *c);
void cuda_batch_close(eng_context *c);
void cuda_batch_copy(eng_context *c, const eng_batch *b);
/* Rows as they are computed: padded to the bucket in a step that decodes. */
int cuda_batch_rows(const eng_context *c, int T);
/* The bucket of a step's largest position: some splits, doubled until it is enough. */
int cuda_batch_context(int positions);

/* ---- draws.c ---- */

bool cuda_draws_open(eng_context *c);
void cuda_draws_close(eng_context *c);
/* What the step that begins is to draw; from logits (wanted,V), behind what computes them; to who asked, when it is done. */
void cuda_draws_list(eng_context *c, eng_draw *first);
bool cuda_draws_queue(eng_context *c, const float *logits);
void cuda_draws_tell(const eng_context *c);

/* ---- graph.c ---- */

void cuda_begin(eng_context *c, const eng_batch *b);
status cuda_finish(eng_context *c, const float *logits, size_t count, const float **out, error *err);
/* Ops queue nothing while a graph has it all, or after an error. */
bool cuda_idle(const eng_context *c);
void cuda_graphs_close(cuda_pages *p);
/* Graph launches so far, of all contexts: for tests. */
uint64_t cuda_graph_launches(void);

/* ---- pages.c ---- */

status cuda_pages_open(eng_context *c, eng_pages *kv, error *err);
void cuda_pages_close(eng_context *c, eng_pages *kv);
void cuda_pages_copy(eng_context *c, const eng_pages *kv, int32_t dst, int32_t src, int32_t tokens);
void cuda_pages_pack(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, void *out);
void cuda_pages_unpack(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, const void *in);

/* ---- ranks.c ---- */

status cuda_ranks_open(eng_context *c, error *err);
void cuda_ranks_close(eng_context *c);
status cuda_sum(eng_context *c, coll *group, float *y, int T, int D, error *err);
/* Waits for an event of this context; with other ranks no longer than the group's time-out. */
bool cuda_ranks_wait(eng_context *c, cudaEvent_t e, const char *what);

#endif
