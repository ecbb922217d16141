/* context.c -- open and close, memory, errors.
 *
 * All memory is taken before the first step: cudaMalloc and cudaHostAlloc wait for the device and are slow, and what
 * a graph reads must stay where it is. Memory is zeroed, as everywhere in the engine. */
#include "engine/cuda/cuda.h"
#include <stdarg.h>
#include <string.h>

/* Heads as pages.cu and attention.cu take them; a panel of F32 rows has to fit staging. */
enum { HEAD_UNIT = 32, HEAD_MOST = 128, WIDTH_MOST = CUDA_STAGE_BYTES / CUDA_PANEL / 4 };

static bool stage_open(eng_context *c, cuda_stage *s);
static void stage_close(cuda_stage *s);

/* ---- errors -------------------------------------------------------------------------------------- */

bool cuda_fail(eng_context *c, status s, const char *fmt, ...) {
    char text[200];
    va_list list;
    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    pthread_mutex_lock(&c->lock);
    if (!c->broken) {
        error_set(&c->failed, s, "%s: %s", c->place, text);
        log_write(LOG_ERROR, NULL, "device.failed", "%s", c->failed.text);
        c->broken = true;
    }
    pthread_mutex_unlock(&c->lock);
    return false;
}

bool cuda_fine(eng_context *c, cudaError_t e, const char *what) {
    if (e != cudaSuccess) return cuda_fail(c, ST_DEVICE, "%s: %s", what, cudaGetErrorString(e));
    return !c->broken;
}

status cuda_status(eng_context *c, error *err) {
    return c->broken ? error_set(err, c->failed.code, "%s", c->failed.text) : ST_OK;
}

/* ---- memory -------------------------------------------------------------------------------------- */

void *cuda_alloc(eng_context *c, size_t bytes) {
    void *memory = NULL;
    if (bytes > SIZE_MAX - CUDA_SLACK) return NULL;
    size_t all = bytes + CUDA_SLACK;
    cudaError_t e = cudaMalloc(&memory, all);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();                /* too little memory is no error of the context */
        return NULL;
    }
    e = cudaMemsetAsync(memory, 0, all, c->compute);
    if (e == cudaSuccess) e = cudaStreamSynchronize(c->compute);
    if (!cuda_fine(c, e, "zeroing memory")) {
        cudaFree(memory);
        return NULL;
    }
    c->taken += all;
    return memory;
}

void cuda_free(eng_context *c, void *memory) {
    (void)c;
    cudaFree(memory);                            /* waits for what is under way; NULL is fine */
}

void *cuda_alloc_pinned(eng_context *c, size_t bytes) {
    void *memory = NULL;
    (void)c;
    if (cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocPortable) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    memset(memory, 0, bytes);
    return memory;
}

void cuda_copy_in(eng_context *c, void *memory, const void *from, size_t bytes) {
    cudaError_t e = cudaMemcpyAsync(memory, from, bytes, cudaMemcpyHostToDevice, c->compute);
    if (e == cudaSuccess) e = cudaStreamSynchronize(c->compute);
    cuda_fine(c, e, "copying to the device");
}

const char *cuda_room(eng_context *c, char out[ENG_ROOM_BYTES]) {
    size_t unused = 0, all = 0;
    if (c->broken) {
        snprintf(out, ENG_ROOM_BYTES, "%.230s", c->failed.text);
        return out;
    }
    (void)cudaMemGetInfo(&unused, &all);
    snprintf(out, ENG_ROOM_BYTES, "%s has %zu of %zu MiB free, %zu MiB are taken by this process", c->place, unused >> 20,
             all >> 20, c->taken >> 20);
    return out;
}

/* ---- open and close ------------------------------------------------------------------------------ */

static bool open_streams(eng_context *c) {
    cudaEvent_t *events[] = {&c->computed, &c->unpacked, &c->finished};
    bool fine = cuda_fine(c, cudaStreamCreateWithFlags(&c->compute, cudaStreamNonBlocking), "a stream");
    for (size_t i = 0; i < sizeof events / sizeof *events && fine; i++)
        fine = cuda_fine(c, cudaEventCreateWithFlags(events[i], cudaEventDisableTiming), "an event");
    return fine;
}

/* Staging, the batch, logits: what does not depend on weights or pages. */
static status open_memory(eng_context *c, error *err) {
    size_t logits = (size_t)c->logits_max * (size_t)c->shape.V * sizeof(float);
    bool fine = stage_open(c, &c->in) && stage_open(c, &c->out) && cuda_batch_open(c) && cuda_draws_open(c) &&
                (c->logits = cuda_alloc_pinned(c, logits));
    TRY(cuda_status(c, err));
    return fine ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory for steps of %d tokens and %zu MiB of logits on the host: %s",
                                    c->tokens_max, logits >> 20, cuda_room(c, (char[ENG_ROOM_BYTES]){0}));
}

static status open_context(eng_context *c, const eng_options *o, error *err) {
    c->group = o->group;
    c->rank = o->group ? coll_rank(o->group) : 0;
    c->ranks = o->group ? coll_ranks(o->group) : 1;
    TRY(cuda_device_choose(o->device, c->rank, c, err));
    if (!open_streams(c)) return cuda_status(c, err);
    TRY(open_memory(c, err));
    return c->group ? cuda_ranks_open(c, err) : ST_OK;
}

/* What the kernels and the staging are made for. */
static status check_shape(const eng_shape *s, error *err) {
    int widest = cuda_widest(s);
    if (s->h % HEAD_UNIT || s->h > HEAD_MOST)
        return error_set(err, ST_UNSUPPORTED, "device cuda: heads are %d wide, expected a multiple of %d up to %d", s->h, HEAD_UNIT,
                         HEAD_MOST);
    if (widest > WIDTH_MOST)
        return error_set(err, ST_UNSUPPORTED, "device cuda: rows are %d wide, expected at most %d", widest, WIDTH_MOST);
    return ST_OK;
}

status cuda_open(const eng_options *o, const eng_shape *shape, eng_context **out, error *err) {
    TRY(check_shape(shape, err));
    eng_context *c = mem_zalloc(1, sizeof *c);
    if (!c) return error_set(err, ST_NO_MEMORY, "no memory for a back end");
    c->shape = *shape;
    c->tokens_max = o->tokens_max;
    c->logits_max = o->logits_max;
    c->stage_bytes = CUDA_STAGE_BYTES;
    c->sum_few = CUDA_SUM_FEW;
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->in.lock, NULL);
    pthread_mutex_init(&c->out.lock, NULL);
    status s = open_context(c, o, err);
    if (s != ST_OK) {
        cuda_close(c);
        return s;
    }
    *out = c;
    return ST_OK;
}

void cuda_close(eng_context *c) {
    if (!c) return;
    cudaEvent_t events[] = {c->computed, c->unpacked, c->finished};
    cuda_ranks_close(c);                         /* first: a stream that waits for another rank never ends */
    if (c->compute) cudaStreamSynchronize(c->compute);
    stage_close(&c->in);
    stage_close(&c->out);
    cuda_gemm_close(c);
    cuda_batch_close(c);
    cuda_draws_close(c);
    cudaFreeHost(c->logits);
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        if (events[i]) cudaEventDestroy(events[i]);
    if (c->compute) cudaStreamDestroy(c->compute);
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

/* Weights that are queued are there before anything reads them. */
status cuda_ready(eng_context *c, error *err) {
    cuda_fine(c, cudaStreamSynchronize(c->in.stream), "bringing weights");
    return cuda_status(c, err);
}

/* ---- staging ------------------------------------------------------------------------------------- */

static bool stage_open(eng_context *c, cuda_stage *s) {
    if (!cuda_fine(c, cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "a stream")) return false;
    for (int i = 0; i < 2; i++) {
        if (!cuda_fine(c, cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming), "an event")) return false;
        s->host[i] = cuda_alloc_pinned(c, CUDA_STAGE_BYTES);
        s->device[i] = cuda_alloc(c, CUDA_STAGE_BYTES);
        if (!s->host[i] || !s->device[i]) return false;
    }
    return true;
}

static void stage_close(cuda_stage *s) {
    if (s->stream) cudaStreamSynchronize(s->stream);
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(s->host[i]);
        cudaFree(s->device[i]);
        if (s->done[i]) cudaEventDestroy(s->done[i]);
    }
    if (s->stream) cudaStreamDestroy(s->stream);
    pthread_mutex_destroy(&s->lock);
}
