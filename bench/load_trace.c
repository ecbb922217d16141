/* load_trace.c -- a plan from a trace file: one JSON object a line. */
#include "bench/load.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct trace {
    const char *name;
    int64_t line;
    const bench_load_options *o;
    bench_load_plan *plan;
    double first_ms, last_ms;
    error *err;
} trace;

static status bad(const trace *t, const char *what) {
    return error_set(t->err, ST_BAD_INPUT, "%.200s:%lld: %s", t->name, (long long)t->line, what);
}

static status add_hash(bench_load_plan *p, uint64_t hash, error *err) {
    if (p->hashes_count == p->hashes_max) {
        int64_t more = p->hashes_max ? 2 * p->hashes_max : 1024;
        uint64_t *grown = mem_realloc(p->hashes, (size_t)more * sizeof *grown);
        if (!grown) return error_set(err, ST_NO_MEMORY, "no memory for %lld hash ids", (long long)more);
        p->hashes = grown;
        p->hashes_max = more;
    }
    p->hashes[p->hashes_count++] = hash;
    return ST_OK;
}

static status take_hashes(trace *t, const json_t *ids, int32_t prompt, bench_load_request *r) {
    size_t wanted = ((size_t)prompt + BENCH_LOAD_BLOCK - 1) / BENCH_LOAD_BLOCK;
    if (!ids) return ST_OK;
    if (json_array_size(ids) < wanted) return bad(t, "hash_ids: expected one for each 512 tokens of input_length");
    r->hashes = t->plan->hashes_count;
    for (size_t i = 0; i < wanted; i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0) return bad(t, "hash_ids: expected whole numbers from 0 on");
        TRY(add_hash(t->plan, (uint64_t)json_integer_value(id), t->err));
    }
    return ST_OK;
}

static bool take_length(const json_t *line, const char *key, int32_t *out) {
    const json_t *value = json_object_get(line, key);
    json_int_t n = json_integer_value(value);
    if (!json_is_integer(value) || n < 1 || n > BENCH_LOAD_LENGTH_MAX) return false;
    *out = (int32_t)n;
    return true;
}

static status take_request(trace *t, const json_t *line) {
    const json_t *at = json_object_get(line, "timestamp");
    double ms = json_number_value(at);
    bench_load_request r = {.hashes = -1};
    if (!json_is_number(at) || !(ms >= 0 && ms < 1e12)) return bad(t, "timestamp: expected milliseconds from 0 on");
    if (!take_length(line, "input_length", &r.prompt) || !take_length(line, "output_length", &r.answer))
        return bad(t, "input_length, output_length: expected whole numbers from 1 to 1048576");
    TRY(take_hashes(t, json_object_get(line, "hash_ids"), r.prompt, &r));
    if (t->plan->count == 0) t->first_ms = t->last_ms = ms;
    if (ms < t->last_ms) return bad(t, "timestamp: expected none before that of the line above");
    t->last_ms = ms;
    r.at_us = (int64_t)((ms - t->first_ms) * 1000);
    return bench_load_plan_add(t->plan, r, t->err);
}

static status read_lines(trace *t, FILE *in) {
    char *text = NULL;
    size_t bytes = 0;
    status st = ST_OK;
    while (st == ST_OK && getline(&text, &bytes, in) >= 0) {
        t->line++;
        if (text[strspn(text, " \t\r\n")] == 0) continue;
        json_t *line = json_loads(text, 0, NULL);
        st = json_is_object(line) ? take_request(t, line) : bad(t, "expected a JSON object");
        json_decref(line);
    }
    free(text);
    if (st == ST_OK && ferror(in)) st = error_set(t->err, ST_IO, "%.200s cannot be read", t->name);
    if (st == ST_OK && t->plan->count == 0) st = error_set(t->err, ST_BAD_INPUT, "%.200s has no requests", t->name);
    return st;
}

/* Changes the speed so that the mean rate is the one asked for, then cuts the end off. */
static void fit(bench_load_plan *p, const bench_load_options *o) {
    double span_s = (double)p->requests[p->count - 1].at_us / 1e6;
    double stretch = o->rate > 0 && span_s > 0 ? (double)(p->count - 1) / o->rate / span_s : 1;
    int64_t kept = 0;
    for (; kept < p->count && (!o->requests || kept < o->requests); kept++) {
        int64_t at_us = (int64_t)((double)p->requests[kept].at_us * stretch);
        if (o->duration_s > 0 && (double)at_us >= o->duration_s * 1e6) break;
        p->requests[kept].at_us = p->end_us = at_us;
    }
    p->count = kept;
}

status bench_load_plan_trace(FILE *in, const char *name, const bench_load_options *o, bench_load_plan *out, error *err) {
    bench_load_plan p = {.seed = o->seed, .shared = o->shared};
    trace t = {.name = name, .o = o, .plan = &p, .err = err};
    status st = read_lines(&t, in);
    if (st == ST_OK) fit(&p, o);
    if (st == ST_OK) *out = p;
    else bench_load_plan_free(&p);
    return st;
}
