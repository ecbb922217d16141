/* table.c -- the op table of the CUDA back end, and the ops that are one launch. */
#include "engine/cuda/cuda.h"
#include <assert.h>

static const char *numerics(const eng_context *c) { return c->numerics; }
static const char *place(const eng_context *c) { return c->place; }

static size_t act_bytes(const eng_context *c, int columns) {
    (void)c;
    return cuda_act_bytes(columns);
}

/* Rows as they are computed; 0: the op has nothing to queue. */
static int rows_now(const eng_context *c, int T) { return cuda_idle(c) ? 0 : cuda_batch_rows(c, T); }

static void embed(eng_context *c, float *x, const eng_matrix *w, const eng_batch *b) {
    size_t row_bytes = eng_gguf_type_bytes(w->part[0].type, w->C);
    if (rows_now(c, b->T))
        cuda_fine(c, cuda_embed(c->compute, x, w->part[0].type, w->own, row_bytes, &c->batch.rows, w->C), "embed");
}

static void gather(eng_context *c, float *out, const float *x, const eng_batch *b, int D) {
    if (rows_now(c, b->wanted_count)) cuda_fine(c, cuda_gather(c->compute, out, x, &c->batch.rows, D), "gather");
}

static void activate(eng_context *c, void *out, const float *x, int T, int C) {
    int rows = rows_now(c, T);
    if (rows) cuda_fine(c, cuda_activate(c->compute, out, x, rows, C), "activate");
}

/* Ranks do not see each other's memory: what is added has been summed, and every rank norms all rows. */
static void rmsnorm(eng_context *c, void *out, const eng_norm *n) {
    int rows = rows_now(c, n->T);
    const float *y = n->parts ? n->y[0] : NULL;
    assert(n->parts <= 1 && n->first == 0 && n->end == n->T);
    if (rows) cuda_fine(c, cuda_rmsnorm(c->compute, out, n->x, y, n->weight, n->eps, rows, n->D), "rmsnorm");
}

static void rope_append(eng_context *c, float *qkv, const eng_pages *kv, int l, const eng_batch *b, int H) {
    if (rows_now(c, b->T)) cuda_fine(c, cuda_rope_append(c->compute, qkv, kv, l, &c->batch.rows, H), "rope_append");
}

static void attention(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l, const eng_batch *b, int H,
                      float scale) {
    const cuda_batch *now = &c->batch;
    const cuda_pages *p = kv->own;
    cudaError_t e;
    if (!rows_now(c, b->T)) return;
    if (now->decodes) e = cuda_attention_decode(c->compute, out, qkv, kv, l, &now->rows, H, scale, now->context, p->scratch);
    else e = cuda_attention_prefill(c->compute, out, qkv, kv, l, &now->rows, now->tiles, now->tiles_count, H, scale);
    cuda_fine(c, e, "attention");
}

static void silu_mul(eng_context *c, void *out, const float *gu, int T, int F) {
    int rows = rows_now(c, T);
    if (rows) cuda_fine(c, cuda_silu_mul(c->compute, out, gu, rows, F), "silu_mul");
}

extern const eng_ops eng_cuda;
const eng_ops eng_cuda = {
    .name = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .numerics = numerics,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .copy_in = cuda_copy_in,
    .room = cuda_room,
    .place = place,
    .rows_whole = CUDA_SLAB,
    .shares = false,
    .own_bytes = cuda_own_bytes,
    .prepare = cuda_prepare,
    .act_bytes = act_bytes,
    .ready = cuda_ready,
    .pages_open = cuda_pages_open,
    .pages_close = cuda_pages_close,
    .begin = cuda_begin,
    .finish = cuda_finish,
    .queued = true,
    .draws = true,
    .sum = cuda_sum,
    .embed = embed,
    .gather = gather,
    .activate = activate,
    .rmsnorm = rmsnorm,
    .matmul = cuda_matmul,
    .rope_append = rope_append,
    .attention = attention,
    .silu_mul = silu_mul,
    .kv_copy = cuda_pages_copy,
    .kv_pack = cuda_pages_pack,
    .kv_unpack = cuda_pages_unpack,
};
