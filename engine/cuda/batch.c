/* batch.c -- the rows of a step on their way to the device.
 *
 * One buffer, R = tokens_max rounded up to CUDA_SLAB rows, on the device at one address for good:
 *
 *   token (R)   position (R)   blocks_at (R)   wanted_row (R)   tiles (R)   |   angles (R, h floats)
 *
 * and the block tables, which are as long as the pages allow (eng_pages.own). The host's side of it is pinned and
 * there twice: a step without logits is not waited for, so the next may be written while this one is still read.
 *
 * A step of at most CUDA_DECODE_ROWS sequences with one row each decodes: its rows are padded to 1, 2, 4 .. 64, so
 * that few graphs serve all such steps (graph.c). Padding rows are nobody's: position -1. */
#include "engine/cuda/cuda.h"
#include <assert.h>
#include <string.h>

enum { CONTEXT_LEAST = 4 * CUDA_SPLIT };

static size_t rows_of(const eng_context *c) { return ((size_t)c->tokens_max + CUDA_SLAB - 1) / CUDA_SLAB * CUDA_SLAB; }
static size_t head_bytes(const eng_context *c) { return rows_of(c) * (4 * sizeof(int32_t) + sizeof(eng_tile)); }

/* Where each array begins. */
typedef struct layout {
    int32_t *token, *position, *blocks_at, *wanted_row;
    eng_tile *tiles;
    float *angles;
} layout;

static layout lay_out(const eng_context *c, char *memory) {
    size_t R = rows_of(c);
    int32_t *ints = (int32_t *)memory;
    return (layout){.token = ints, .position = ints + R, .blocks_at = ints + 2 * R, .wanted_row = ints + 3 * R,
                    .tiles = (eng_tile *)(ints + 4 * R), .angles = (float *)(memory + head_bytes(c))};
}

bool cuda_batch_open(eng_context *c) {
    cuda_batch *b = &c->batch;
    size_t bytes = head_bytes(c) + rows_of(c) * (size_t)c->shape.h * sizeof(float);
    if (!(b->device = cuda_alloc(c, bytes))) return false;
    for (int i = 0; i < 2; i++) {
        if (!(b->host[i] = cuda_alloc_pinned(c, bytes))) return false;
        if (!cuda_fine(c, cudaEventCreateWithFlags(&b->copied[i], cudaEventDisableTiming), "an event")) return false;
    }
    return true;
}

void cuda_batch_close(eng_context *c) {
    cuda_batch *b = &c->batch;
    cuda_free(c, b->device);
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(b->host[i]);
        if (b->copied[i]) cudaEventDestroy(b->copied[i]);
    }
}

/* ---- buckets ------------------------------------------------------------------------------------- */

static int bucket(int rows) {
    int padded = 1;
    while (padded < rows) padded *= 2;
    return rows ? padded : 0;
}

int cuda_batch_rows(const eng_context *c, int T) { return c->batch.decodes ? bucket(T) : T; }

int cuda_batch_context(int positions) {
    int context = CONTEXT_LEAST;
    while (context < positions) context *= 2;
    return context;
}

static int positions_of(const eng_batch *b) {
    int most = 0;
    for (int t = 0; t < b->T; t++)
        if (b->position[t] >= most) most = b->position[t] + 1;
    return most;
}

/* ---- a step -------------------------------------------------------------------------------------- */

/* The tables of b's sequences one after the other; returns how many entries. */
static size_t fill_blocks(eng_context *c, const eng_batch *b, const layout *to, int32_t *blocks) {
    const cuda_pages *p = b->pages->own;
    size_t used = 0;
    for (int t = 0; t < b->T;) {
        const eng_rows *r = &b->rows[b->rows_index[t]];
        size_t entries = (size_t)((r->position + r->count - 1) / b->pages->P) + 1;
        if (entries > p->blocks_room - used) {
            cuda_fail(c, ST_BAD_INPUT, "a step's block tables have more than %zu entries, the room for %d rows", p->blocks_room,
                      c->tokens_max);
            return 0;
        }
        memcpy(blocks + used, r->blocks, entries * sizeof *blocks);
        for (int end = t + r->count; t < end; t++) to->blocks_at[t] = (int32_t)used;
        used += entries;
    }
    return used;
}

static void fill_rows(const eng_context *c, const eng_batch *b, const layout *to) {
    size_t T = (size_t)b->T;
    memcpy(to->token, b->token, T * sizeof *to->token);
    memcpy(to->position, b->position, T * sizeof *to->position);
    memcpy(to->wanted_row, b->wanted, (size_t)b->wanted_count * sizeof *to->wanted_row);
    memcpy(to->tiles, b->tiles, (size_t)b->tiles_count * sizeof *to->tiles);
    memcpy(to->angles, b->angles, T * (size_t)c->shape.h * sizeof *to->angles);
    for (int t = b->T; t < cuda_batch_rows(c, b->T); t++) {
        to->token[t] = 0;
        to->position[t] = -1;
        to->blocks_at[t] = 0;
    }
    for (int i = b->wanted_count; i < cuda_batch_rows(c, b->wanted_count); i++) to->wanted_row[i] = 0;
}

static void describe(eng_context *c, const eng_batch *b) {
    cuda_batch *own = &c->batch;
    const cuda_pages *p = b->pages->own;
    layout at = lay_out(c, own->device);
    own->context = cuda_batch_context(positions_of(b));
    own->decodes = b->tiles_count == b->T && b->T <= CUDA_DECODE_ROWS && own->context <= p->context;
    own->tiles = at.tiles;
    own->tiles_count = b->tiles_count;
    own->rows = (cuda_rows){.T = cuda_batch_rows(c, b->T), .wanted = cuda_batch_rows(c, b->wanted_count), .token = at.token,
                            .position = at.position, .blocks_at = at.blocks_at, .blocks = p->blocks, .angles = at.angles,
                            .wanted_row = at.wanted_row};
}

static bool send(eng_context *c, void *to, const void *from, size_t bytes) {
    return cuda_fine(c, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, c->compute), "bringing a step's rows");
}

void cuda_batch_copy(eng_context *c, const eng_batch *b) {
    cuda_batch *own = &c->batch;
    cuda_pages *p = b->pages->own;
    int k = own->turn ^= 1;
    layout to = lay_out(c, own->host[k]);
    describe(c, b);
    if (!cuda_ranks_wait(c, own->copied[k], "an earlier step")) return;
    fill_rows(c, b, &to);
    size_t blocks = fill_blocks(c, b, &to, p->blocks_host[k]);
    if (blocks && send(c, own->device, own->host[k], head_bytes(c)) &&
        send(c, lay_out(c, own->device).angles, to.angles, (size_t)b->T * (size_t)c->shape.h * sizeof(float)) &&
        send(c, p->blocks, p->blocks_host[k], blocks * sizeof(int32_t)))
        cuda_fine(c, cudaEventRecord(own->copied[k], c->compute), "bringing a step's rows");
}
