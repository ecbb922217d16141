/* load_plan.c -- when requests arrive, and what their prompts are made of.
 *
 * Everything drawn is a function of (seed, number of the draw): request i has draws 4 i to 4 i + 3. A prompt is a row of
 * blocks of 512 tokens, and a block's tokens are a function of (seed, block): a trace's hash id names a block; a request
 * without has blocks that nobody else has. Those are numbered from 2^63 on. */
#include "bench/load.h"
#include "engine/random.h"
#include <inttypes.h>
#include <math.h>

enum { DRAW_GAP, DRAW_PROMPT, DRAW_ANSWER, DRAWS = 4 };

static const uint64_t OWN_BLOCKS = 1ull << 63, SHARED_BLOCKS = 3ull << 62;

static double draw(const bench_load_options *o, int64_t request, int which) {
    return eng_random_uniform(o->seed, (uint64_t)request * DRAWS + (uint64_t)which);
}

status bench_load_plan_add(bench_load_plan *p, bench_load_request r, error *err) {
    if (p->count == BENCH_LOAD_REQUESTS_MAX)
        return error_set(err, ST_BAD_INPUT, "more than %d requests: expected a shorter run", BENCH_LOAD_REQUESTS_MAX);
    if (p->count == p->requests_max) {
        int64_t more = p->requests_max ? 2 * p->requests_max : 256;
        bench_load_request *grown = mem_realloc(p->requests, (size_t)more * sizeof *grown);
        if (!grown) return error_set(err, ST_NO_MEMORY, "no memory for %lld requests", (long long)more);
        p->requests = grown;
        p->requests_max = more;
    }
    p->requests[p->count++] = r;
    return ST_OK;
}

static bool wants_more(const bench_load_options *o, int64_t sent, double at_s) {
    if (o->requests && sent == o->requests) return false;
    return o->duration_s <= 0 || at_s < o->duration_s;
}

/* Slow readers ask for as much as they may, so that their answers outlast the load. */
static status add_slow_readers(bench_load_plan *p, const bench_load_options *o, error *err) {
    for (int64_t i = 0; i < o->slow_readers; i++) {
        bench_load_request r = {.prompt = bench_load_shape_draw(&o->prompt, draw(o, -1 - i, DRAW_PROMPT)),
                                .answer = BENCH_LOAD_LENGTH_MAX, .hashes = -1, .slow = true};
        TRY(bench_load_plan_add(p, r, err));
    }
    return ST_OK;
}

/* Gaps between bursts are exponential with a mean of burst / rate, the first one included. */
static status add_arrivals(bench_load_plan *p, const bench_load_options *o, error *err) {
    double at_s = 0;
    int64_t burst = o->burst > 1 ? o->burst : 1;
    for (int64_t i = 0;; i++) {
        if (i % burst == 0) at_s += -log(1 - draw(o, i, DRAW_GAP)) * (double)burst / o->rate;
        if (!wants_more(o, i, at_s)) break;
        bench_load_request r = {.at_us = (int64_t)(at_s * 1e6), .hashes = -1,
                                .prompt = bench_load_shape_draw(&o->prompt, draw(o, i, DRAW_PROMPT)),
                                .answer = bench_load_shape_draw(&o->answer, draw(o, i, DRAW_ANSWER))};
        TRY(bench_load_plan_add(p, r, err));
        p->end_us = r.at_us;
    }
    if (o->duration_s > 0 && !o->requests) p->end_us = (int64_t)(o->duration_s * 1e6);
    return ST_OK;
}

status bench_load_plan_make(const bench_load_options *o, bench_load_plan *out, error *err) {
    bench_load_plan p = {.seed = o->seed, .shared = o->shared};
    if (o->rate <= 0) return error_set(err, ST_BAD_INPUT, "--rate %g: expected requests a second, above 0", o->rate);
    if (o->requests <= 0 && o->duration_s <= 0)
        return error_set(err, ST_BAD_INPUT, "expected --requests or --duration: without both the load has no end");
    status st = add_slow_readers(&p, o, err);
    if (st == ST_OK) st = add_arrivals(&p, o, err);
    if (st == ST_OK && p.count == o->slow_readers)
        st = error_set(err, ST_BAD_INPUT, "--rate %g for %g s: no request arrives", o->rate, o->duration_s);
    if (st == ST_OK) *out = p;
    else bench_load_plan_free(&p);
    return st;
}

void bench_load_plan_free(bench_load_plan *p) {
    mem_free(p->requests);
    mem_free(p->hashes);
    *p = (bench_load_plan){0};
}

/* ---- prompts ---------------------------------------------------------------------------------------- */

static int32_t token_at(uint64_t seed, uint64_t block, int32_t place, int32_t vocabulary) {
    uint32_t out[4];
    const uint32_t counter[4] = {(uint32_t)place, (uint32_t)block, (uint32_t)(block >> 32), 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    eng_random_philox(counter, key, out);
    return (int32_t)(((uint64_t)out[0] * (uint64_t)vocabulary) >> 32);
}

void bench_load_plan_tokens(const bench_load_plan *p, int64_t index, int32_t vocabulary, int32_t *out) {
    const bench_load_request *r = &p->requests[index];
    for (int32_t i = 0; i < r->prompt; i++) {
        uint64_t k = (uint64_t)(i / BENCH_LOAD_BLOCK);
        uint64_t block = i < p->shared      ? SHARED_BLOCKS + k
                         : r->hashes >= 0   ? p->hashes[(uint64_t)r->hashes + k]
                                            : OWN_BLOCKS + ((uint64_t)index << 16) + k;
        out[i] = token_at(p->seed, block, i % BENCH_LOAD_BLOCK, vocabulary);
    }
}

static status write_request(const bench_load_plan *p, int64_t i, int32_t vocabulary, FILE *out, error *err) {
    const bench_load_request *r = &p->requests[i];
    int32_t *tokens = mem_alloc((size_t)r->prompt * sizeof *tokens);
    if (!tokens) return error_set(err, ST_NO_MEMORY, "no memory for a prompt of %d tokens", r->prompt);
    bench_load_plan_tokens(p, i, vocabulary, tokens);
    fprintf(out, "%s{\"at_ms\":%.3f,\"input_length\":%d,\"output_length\":%d,\"tokens\":[", i ? ",\n" : "",
            (double)r->at_us / 1000, r->prompt, r->answer);
    for (int32_t k = 0; k < r->prompt; k++) fprintf(out, "%s%d", k ? "," : "", tokens[k]);
    fputs("]}", out);
    mem_free(tokens);
    return ST_OK;
}

status bench_load_plan_json(const bench_load_plan *p, int32_t vocabulary, FILE *out, error *err) {
    fprintf(out, "{\"seed\":\"%" PRIu64 "\",\"end_ms\":%.3f,\"requests\":[", p->seed, (double)p->end_us / 1000);
    for (int64_t i = 0; i < p->count; i++) TRY(write_request(p, i, vocabulary, out, err));
    fputs("]}\n", out);
    return ferror(out) ? error_set(err, ST_IO, "the plan cannot be written") : ST_OK;
}
