/* draws.c -- tokens drawn on the device, so that a step's logits need not come to the host.
 *
 * What is asked goes there behind the step, the tokens come back: 36 bytes a row instead of its V floats. It is queued
 * after the step's graph, not in it: one launch, and who asks for what is no part of a graph's bucket (graph.c). Ranks
 * have a part of each row of logits only; in a group rank 0's host has them all, and draws. */
#include "engine/cuda/cuda.h"
#include <assert.h>

bool cuda_draws_open(eng_context *c) {
    cuda_draws *d = &c->draws;
    size_t n = (size_t)c->logits_max;
    if (c->group) return true;
    return (d->of = mem_zalloc(n, sizeof(eng_draw *))) && (d->ask = cuda_alloc_pinned(c, n * sizeof *d->ask)) &&
           (d->token = cuda_alloc_pinned(c, n * sizeof *d->token)) && (d->ask_there = cuda_alloc(c, n * sizeof *d->ask)) &&
           (d->token_there = cuda_alloc(c, n * sizeof *d->token)) &&
           (d->scratch = cuda_alloc(c, cuda_sample_scratch(c->logits_max, c->shape.V)));
}

void cuda_draws_close(eng_context *c) {
    cuda_draws *d = &c->draws;
    mem_free(d->of);
    cudaFreeHost(d->ask);
    cudaFreeHost(d->token);
    cuda_free(c, d->ask_there);
    cuda_free(c, d->token_there);
    cuda_free(c, d->scratch);
}

/* The arrays are free: a step that draws was waited for. */
void cuda_draws_list(eng_context *c, eng_draw *first) {
    cuda_draws *d = &c->draws;
    d->count = d->hidden = 0;
    for (eng_draw *e = first; e; e = e->next) {
        const eng_sampling *p = e->sampling;
        assert(d->count < c->logits_max);
        d->ask[d->count] = (cuda_draw){.temperature = p->temperature, .top_p = p->top_p, .min_p = p->min_p, .top_k = p->top_k,
                                       .seed = p->seed, .position = e->count, .row = e->row};
        d->of[d->count++] = e;
        d->hidden += !e->shown;
    }
}

bool cuda_draws_queue(eng_context *c, const float *logits) {
    cuda_draws *d = &c->draws;
    size_t n = (size_t)d->count;
    if (n == 0) return true;
    return cuda_fine(c, cudaMemcpyAsync(d->ask_there, d->ask, n * sizeof *d->ask, cudaMemcpyHostToDevice, c->compute), "drawing") &&
           cuda_fine(c, cuda_sample(c->compute, d->token_there, logits, d->ask_there, d->count, c->shape.V, d->scratch), "drawing") &&
           cuda_fine(c, cudaMemcpyAsync(d->token, d->token_there, n * sizeof *d->token, cudaMemcpyDeviceToHost, c->compute),
                     "drawing");
}

void cuda_draws_tell(const eng_context *c) {
    for (int i = 0; i < c->draws.count; i++) c->draws.of[i]->token = c->draws.token[i];
}
