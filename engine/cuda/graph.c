/* graph.c -- begin and finish of a step, and decode steps as graphs.
 *
 * A decode step is some hundred launches of a few microseconds each; queued one by one the host would be the slower
 * part. A graph is those launches queued once:
 *
 *   first step of a bucket   queued one by one: kernels are loaded, NCCL connects          QUEUE
 *   second                   the same calls are captured, not run; then launched           CAPTURE
 *   from the third on        ops do nothing, finish() launches the graph                   REPLAY
 *
 * A bucket is (rows, wanted rows, context), each rounded up, of one kv: all addresses that a graph reads belong to the
 * model or to the kv, and the graphs go with the kv. What changes from step to step is in the batch, at fixed
 * addresses. All ranks run the same steps over the same buckets, so they capture and replay together, as NCCL asks.
 * CUDA_GRAPHS are kept; the one not used for longest makes room.
 *
 * Without wanted logits finish() does not wait (cuda.h, Streams): a prompt's chunks queue up behind each other. */
#include "engine/cuda/cuda.h"
#include <assert.h>

static atomic_uint_fast64_t launches;

uint64_t cuda_graph_launches(void) { return atomic_load(&launches); }

bool cuda_idle(const eng_context *c) { return c->broken || c->mode == CUDA_REPLAY; }

/* ---- which graph --------------------------------------------------------------------------------- */

static void drop(cuda_graph *g) {
    if (g->exec) cudaGraphExecDestroy(g->exec);
    *g = (cuda_graph){0};
}

void cuda_graphs_close(cuda_pages *p) {
    for (int i = 0; i < CUDA_GRAPHS; i++) drop(&p->graph[i]);
}

/* The step's bucket: the entry that has it, or a new one (T is 0 in an empty entry). */
static cuda_graph *find(eng_context *c, cuda_pages *p, bool *is_new) {
    const cuda_batch *b = &c->batch;
    cuda_graph *oldest = &p->graph[0];
    for (int i = 0; i < CUDA_GRAPHS; i++) {
        cuda_graph *g = &p->graph[i];
        *is_new = !(g->T == b->rows.T && g->wanted == b->rows.wanted && g->context == b->context);
        if (!*is_new) return g;
        if (g->used < oldest->used) oldest = g;
    }
    drop(oldest);
    *oldest = (cuda_graph){.T = b->rows.T, .wanted = b->rows.wanted, .context = b->context};
    return oldest;
}

/* ---- a step -------------------------------------------------------------------------------------- */

void cuda_begin(eng_context *c, const eng_batch *b) {
    bool is_new = true;
    c->mode = CUDA_QUEUE;
    c->graph = NULL;
    c->steps++;
    cuda_draws_list(c, b->draws);
    if (!cuda_fine(c, cudaSetDevice(c->device), "the device")) return;
    cuda_batch_copy(c, b);
    if (!cuda_fine(c, cudaStreamWaitEvent(c->compute, c->unpacked, 0), "waiting for pages") || !c->batch.decodes) return;
    c->graph = find(c, b->pages->own, &is_new);
    c->graph->used = c->steps;
    if (is_new) return;
    c->mode = c->graph->exec ? CUDA_REPLAY : CUDA_CAPTURE;
    if (c->mode == CUDA_CAPTURE)
        cuda_fine(c, cudaStreamBeginCapture(c->compute, cudaStreamCaptureModeThreadLocal), "capturing a step");
}

/* A capture is ended even when it went wrong: until then the stream is of no use. */
static bool end_capture(eng_context *c) {
    cudaGraph_t captured = NULL;
    bool fine = cuda_fine(c, cudaStreamEndCapture(c->compute, &captured), "capturing a step") &&
                cuda_fine(c, cudaGraphInstantiate(&c->graph->exec, captured, 0), "making a graph");
    if (captured) cudaGraphDestroy(captured);
    return fine;
}

static bool run_graph(eng_context *c) {
    if (c->mode == CUDA_QUEUE) return !c->broken;
    if (c->mode == CUDA_CAPTURE && !end_capture(c)) return false;
    c->mode = CUDA_QUEUE;
    atomic_fetch_add(&launches, 1);
    return cuda_fine(c, cudaGraphLaunch(c->graph->exec, c->compute), "launching a graph");
}

/* Not those of a step that draws from all of them and shows none: of that only the tokens come. */
static bool fetch_logits(eng_context *c, const float *logits, size_t count) {
    bool hidden = (size_t)c->draws.hidden * (size_t)c->shape.V == count;
    assert(count <= (size_t)c->logits_max * (size_t)c->shape.V);
    return (hidden || cuda_fine(c, cudaMemcpyAsync(c->logits, logits, count * sizeof *logits, cudaMemcpyDeviceToHost, c->compute),
                               "fetching logits")) &&
           cuda_fine(c, cudaEventRecord(c->finished, c->compute), "fetching logits") &&
           cuda_ranks_wait(c, c->finished, "a step");
}

status cuda_finish(eng_context *c, const float *logits, size_t count, const float **out, error *err) {
    bool fine = run_graph(c) && cuda_fine(c, cudaEventRecord(c->computed, c->compute), "ending a step") &&
                cuda_draws_queue(c, logits) && (count == 0 || fetch_logits(c, logits, count));
    if (!fine) return cuda_status(c, err);
    cuda_draws_tell(c);
    *out = c->logits;
    return ST_OK;
}
