/* pages.c -- KV from and to the host, beside the steps.
 *
 * A box (engine.h) is cut into pieces of whole layers, or of some tokens of one layer if that is too much, each as
 * large as half the staging. Packing piece i on the device, and its way to the host, run while the host copies piece
 * i - 1 out of the pinned half; unpacking is the same the other way round. A piece in staging:
 *
 *   block table of its tokens (BLOCKS entries)   |   rows in canonical order
 *
 * How it is ordered with steps stands at the head of cuda.h. Callers may be on other threads than the step; each
 * direction serves one at a time.
 *
 * There is no way to tell a transfer that the device is lost, and what it would send is garbage: the process ends. To
 * the cluster that is a node that died, which it knows how to live with. */
#include "engine/cuda/cuda.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = CUDA_STAGE_BLOCKS, ROWS_AT = BLOCKS * sizeof(int32_t) };

/* A piece of a box: which layers and tokens, from the box's first. */
typedef struct piece {
    int layer, layers, token, tokens;
} piece;

/* ---- open and close ------------------------------------------------------------------------------ */

static bool open_tables(eng_context *c, const eng_pages *kv, cuda_pages *p) {
    int64_t held = (int64_t)kv->pages * kv->P;
    int positions = held < c->shape.context ? (int)held : c->shape.context;
    size_t entries = (size_t)((positions + kv->P - 1) / kv->P);
    int rows = c->tokens_max < CUDA_DECODE_ROWS ? c->tokens_max : CUDA_DECODE_ROWS, padded = 1;
    while (padded < rows) padded *= 2;
    p->blocks_room = entries * (size_t)c->tokens_max;
    p->context = cuda_batch_context(positions);
    p->blocks = cuda_alloc(c, p->blocks_room * sizeof *p->blocks);
    for (int i = 0; i < 2; i++) p->blocks_host[i] = cuda_alloc_pinned(c, p->blocks_room * sizeof *p->blocks);
    p->scratch = cuda_alloc(c, cuda_attention_scratch(padded, c->shape.H, kv->h, p->context));
    return p->blocks && p->blocks_host[0] && p->blocks_host[1] && p->scratch;
}

status cuda_pages_open(eng_context *c, eng_pages *kv, error *err) {
    cuda_pages *p = mem_zalloc(1, sizeof *p);
    if (!p) return error_set(err, ST_NO_MEMORY, "no memory for KV pages");
    assert(cuda_page_bytes(kv) == kv->page_bytes);
    kv->own = p;
    kv->data = cuda_alloc(c, (size_t)kv->pages * kv->page_bytes);
    if (kv->data && open_tables(c, kv, p)) return ST_OK;
    status s = error_set(err, ST_NO_MEMORY, "no memory for %s: %s", kv->data ? "block tables and attention's scratch"
                         : "KV pages", cuda_room(c, (char[ENG_ROOM_BYTES]){0}));
    if (!kv->data)
        error_set(err, ST_NO_MEMORY, "no memory for %d KV pages of %zu bytes (%zu MiB): %s", kv->pages, kv->page_bytes,
                  (size_t)kv->pages * kv->page_bytes >> 20, cuda_room(c, (char[ENG_ROOM_BYTES]){0}));
    cuda_pages_close(c, kv);
    return s;
}

void cuda_pages_close(eng_context *c, eng_pages *kv) {
    cuda_pages *p = kv->own;
    cudaStreamSynchronize(c->compute);
    cuda_graphs_close(p);
    cuda_free(c, p->blocks);
    cuda_free(c, p->scratch);
    cuda_free(c, kv->data);
    for (int i = 0; i < 2; i++) cudaFreeHost(p->blocks_host[i]);
    mem_free(p);
}

/* ---- copy on write ------------------------------------------------------------------------------- */

void cuda_pages_copy(eng_context *c, const eng_pages *kv, int32_t dst, int32_t src, int32_t tokens) {
    if (tokens == 0 || !cuda_fine(c, cudaSetDevice(c->device), "the device")) return;
    if (cuda_fine(c, cudaStreamWaitEvent(c->compute, c->unpacked, 0), "copying a page") &&
        cuda_fine(c, cuda_kv_copy(c->compute, kv, dst, src, tokens), "copying a page"))
        cuda_fine(c, cudaEventRecord(c->computed, c->compute), "copying a page");
}

/* ---- pieces -------------------------------------------------------------------------------------- */

/* The largest piece: of so many layers and tokens. A row of every head of a layer fits by far. */
static piece largest(const eng_context *c, const eng_pages *kv, const eng_kv_box *box) {
    size_t token_bytes = 2 * (size_t)box->heads * eng_kv_row_bytes(box->type, kv->h), rows_bytes = c->stage_bytes - ROWS_AT;
    size_t room = rows_bytes / token_bytes;
    assert(room > 0);
    size_t paged = (size_t)(BLOCKS - 1) * (size_t)kv->P;         /* the first may begin within a page */
    if (room > paged) room = paged;
    size_t tokens = (size_t)box->tokens < room ? (size_t)box->tokens : room, layers = rows_bytes / (tokens * token_bytes);
    return (piece){.layers = layers < (size_t)box->layers ? (int)layers : box->layers, .tokens = (int)tokens};
}

/* Piece number i of at most `most` each, layers first; false: there is none. */
static bool piece_at(const eng_kv_box *box, const piece *most, int i, piece *out) {
    int across = (box->tokens + most->tokens - 1) / most->tokens;
    *out = (piece){.layer = i / across * most->layers, .token = i % across * most->tokens};
    if (out->layer >= box->layers) return false;
    out->layers = box->layers - out->layer < most->layers ? box->layers - out->layer : most->layers;
    out->tokens = box->tokens - out->token < most->tokens ? box->tokens - out->token : most->tokens;
    return true;
}

/* The piece as a box whose first token is in block 0 of its own table; writes that table. */
static eng_kv_box box_of(const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, const piece *p, int32_t *table) {
    eng_kv_box sub = *box;
    int32_t first = (box->token_first + p->token) / kv->P, last = (box->token_first + p->token + p->tokens - 1) / kv->P;
    assert(last - first < BLOCKS);
    memcpy(table, blocks + first, (size_t)(last - first + 1) * sizeof *table);
    sub.layer_first += p->layer;
    sub.layers = p->layers;
    sub.token_first += p->token - first * kv->P;
    sub.tokens = p->tokens;
    return sub;
}

static size_t piece_bytes(const eng_pages *kv, const eng_kv_box *box, const piece *p) {
    return 2 * (size_t)p->layers * (size_t)box->heads * (size_t)p->tokens * eng_kv_row_bytes(box->type, kv->h);
}

/* The piece's rows between staging, where they are dense, and the whole box, where other tokens are between. */
static void move_rows(const eng_pages *kv, const eng_kv_box *box, const piece *p, char *rows, char *whole, bool out) {
    size_t row = eng_kv_row_bytes(box->type, kv->h), run = (size_t)p->tokens * row, stride = (size_t)box->tokens * row;
    size_t heads = 2 * (size_t)box->heads, first = (size_t)p->layer * heads;
    char *to = whole + first * stride + (size_t)p->token * row;
    if (run == stride) run *= (size_t)p->layers * heads;
    for (size_t i = 0; i < piece_bytes(kv, box, p) / run; i++, rows += run, to += stride) {
        if (out) memcpy(to, rows, run);
        else memcpy(rows, to, run);
    }
}

/* ---- pack and unpack ----------------------------------------------------------------------------- */

static void must(eng_context *c, cudaError_t e, const char *what) {
    if (cuda_fine(c, e, what)) return;
    log_write(LOG_ERROR, NULL, "device.lost", "pages cannot be %s any more, the process ends", what);
    _Exit(1);
}

/* Queues a piece: its table to the device, its rows through the kernel to pinned memory. */
static void pack_piece(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, const piece *p, int k) {
    cuda_stage *s = &c->out;
    eng_kv_box sub = box_of(kv, blocks, box, p, (int32_t *)s->host[k]);
    must(c, cudaMemcpyAsync(s->device[k], s->host[k], ROWS_AT, cudaMemcpyHostToDevice, s->stream), "packed");
    must(c, cuda_kv_pack(s->stream, kv, (const int32_t *)s->device[k], &sub, s->device[k] + ROWS_AT), "packed");
    must(c, cudaMemcpyAsync(s->host[k] + ROWS_AT, s->device[k] + ROWS_AT, piece_bytes(kv, box, p), cudaMemcpyDeviceToHost,
                            s->stream), "packed");
    must(c, cudaEventRecord(s->done[k], s->stream), "packed");
}

void cuda_pages_pack(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, void *out) {
    cuda_stage *s = &c->out;
    if (box->layers == 0 || box->heads == 0 || box->tokens == 0) return;
    piece most = largest(c, kv, box), now, next;
    pthread_mutex_lock(&s->lock);
    must(c, cudaSetDevice(c->device), "packed");
    must(c, cudaStreamWaitEvent(s->stream, c->computed, 0), "packed");
    must(c, cudaStreamWaitEvent(s->stream, c->unpacked, 0), "packed");
    bool more = piece_at(box, &most, 0, &now);
    pack_piece(c, kv, blocks, box, &now, 0);
    for (int i = 0; more; i++, now = next) {
        more = piece_at(box, &most, i + 1, &next);
        if (more) pack_piece(c, kv, blocks, box, &next, (i + 1) % 2);
        must(c, cudaEventSynchronize(s->done[i % 2]), "packed");
        move_rows(kv, box, &now, s->host[i % 2] + ROWS_AT, out, true);
    }
    pthread_mutex_unlock(&s->lock);
}

/* The caller's bytes are in pinned memory when this returns; the device takes them from there. */
static void unpack_piece(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, const piece *p,
                         const void *in) {
    cuda_stage *s = &c->in;
    int k = s->turn ^= 1;
    must(c, cudaEventSynchronize(s->done[k]), "unpacked");
    eng_kv_box sub = box_of(kv, blocks, box, p, (int32_t *)s->host[k]);
    move_rows(kv, box, p, s->host[k] + ROWS_AT, (char *)(uintptr_t)in, false);
    must(c, cudaMemcpyAsync(s->device[k], s->host[k], ROWS_AT + piece_bytes(kv, box, p), cudaMemcpyHostToDevice, s->stream),
         "unpacked");
    must(c, cuda_kv_unpack(s->stream, kv, (const int32_t *)s->device[k], &sub, s->device[k] + ROWS_AT), "unpacked");
    must(c, cudaEventRecord(s->done[k], s->stream), "unpacked");
}

void cuda_pages_unpack(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, const void *in) {
    cuda_stage *s = &c->in;
    if (box->layers == 0 || box->heads == 0 || box->tokens == 0) return;
    piece most = largest(c, kv, box), p;
    pthread_mutex_lock(&s->lock);
    must(c, cudaSetDevice(c->device), "unpacked");
    must(c, cudaStreamWaitEvent(s->stream, c->computed, 0), "unpacked");
    for (int i = 0; piece_at(box, &most, i, &p); i++) unpack_piece(c, kv, blocks, box, &p, in);
    must(c, cudaEventRecord(c->unpacked, s->stream), "unpacked");
    pthread_mutex_unlock(&s->lock);
}
