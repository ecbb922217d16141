/* route.c -- baton bench route: one decision of the coordinator's core, with 1,000 nodes and prompts of 100,000 tokens.
 *
 * The core is the shipped one, driven by events as the service drives it. Half of the nodes are prefill nodes, half are
 * decode nodes; each caches as many pages as --quick leaves it, of prompts of its own, so that the view does not fit
 * the processor's caches. What is timed is the step that says "that decode node is full": it takes the request back,
 * numbers its 6,250 pages, looks them up, and compares all nodes of both roles: a placement without the copy of the
 * prompt that comes with its submit. A few requests take turns, so that each decision meets another prompt.
 *
 *   nobody has it           the first look-up says so
 *   1,000 tokens by all     a system prompt
 *   parts by 20 nodes       of different length, up to all of it
 *   parts by all nodes      each another length: the most that the view can be asked */
#include "bench/route.h"
#include "coordinator/coord.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    NODES = 1000, TOKENS = 100000, P = 16, PAGES = TOKENS / P, PROMPTS = 8,
    EACH = 4096, EACH_QUICK = 256, DECISIONS = 2000, DECISIONS_QUICK = 300,
    BUSY_MS = 60,                /* until a node that was full is asked again */
};

typedef struct cluster {
    coord_core *core;
    int64_t now_ms;
    int32_t *prompts;            /* (PROMPTS, TOKENS) */
    int32_t at[PAGES];
    uint64_t numbers[PAGES];
    uint64_t random;
} cluster;

/* What of its prompts a case puts where: pages of prompt on node. */
typedef struct layout {
    const char *name;
    int32_t (*pages)(int prompt, int node);
} layout;

static int32_t none(int prompt, int node) { return (void)prompt, (void)node, 0; }
static int32_t system_prompt(int prompt, int node) { return (void)prompt, (void)node, 1000 / P; }
static int32_t some(int prompt, int node) { return (node + prompt) % 50 ? 0 : PAGES * (node / 50 + 1) / (NODES / 50 + 1); }
static int32_t all(int prompt, int node) { return (int32_t)((int64_t)PAGES * ((node * 7 + prompt) % NODES) / NODES); }

static const layout layouts[BENCH_ROUTE_CASES] = {
    {"nobody has it", none},
    {"1,000 tokens by all", system_prompt},
    {"parts by 20 nodes", some},
    {"parts by all nodes", all},
};

/* ---- the cluster ------------------------------------------------------------------------------------------- */

static uint64_t random_next(cluster *c) { return mix64(c->random += 0x9E3779B97F4A7C15ull); }    /* splitmix64 */

static const coord_action *step(cluster *c, const coord_event *e) {
    coord_actions out;
    coord_core_step(c->core, e, c->now_ms, &out);
    for (int i = 0; i < out.count; i++)
        if (out.at[i].kind == COORD_DO_DECODE) return &out.at[i];
    return NULL;
}

static void add_node(cluster *c, int node) {
    coord_event e = {.kind = COORD_NODE_STATE, .node = node};
    e.node_state = (coord_node){.role = node % 2 ? COORD_PREFILL : COORD_DECODE, .epoch = 1, .capacity = 64,
                                .page_tokens = P, .name = random_next(c),
                                .prefill_tokens_per_s = 5000 + (double)(random_next(c) % 5000),
                                .decode_steps_per_s = 50 + (double)(random_next(c) % 50)};
    step(c, &e);
}

/* Pages [first, first + count) of node hold numbers[0..count). */
static void hold(cluster *c, int node, int32_t first, int32_t count) {
    coord_event e = {.kind = COORD_NODE_CACHE, .node = node};
    for (int32_t i = 0; i < count; i++) c->at[i] = first + i;
    e.cache.at = c->at;
    e.cache.numbers = c->numbers;
    e.cache.count = count;
    step(c, &e);
}

static void hold_others(cluster *c, int node, int32_t count) {
    for (int32_t i = 0; i < count; i++) c->numbers[i] = random_next(c) | 1;
    hold(c, node, PAGES, count);
}

static void hold_prompt(cluster *c, int prompt, const layout *l) {
    static uint64_t number[PAGES];
    const int32_t *tokens = c->prompts + (size_t)prompt * TOKENS;
    for (int32_t i = 0; i < PAGES; i++) number[i] = prefix_number(i ? number[i - 1] : 0, tokens + i * P, P);
    for (int node = 0; node < NODES; node++) {
        int32_t pages = l->pages(prompt, node);
        memcpy(c->numbers, number, (size_t)pages * sizeof *number);
        hold(c, node, PAGES + EACH + prompt * PAGES, pages);
    }
}

static status create(cluster *c, error *err) {
    *c = (cluster){.prompts = mem_alloc((size_t)PROMPTS * TOKENS * sizeof(int32_t))};
    coord_limits limits = coord_limits_default;
    limits.requests_max = 2 * PROMPTS;
    c->core = coord_core_create(&limits);
    if (!c->prompts || !c->core) return error_set(err, ST_NO_MEMORY, "bench route: no memory");
    for (int node = 0; node < NODES; node++) add_node(c, node);
    return ST_OK;
}

static void submit_all(cluster *c, int *node) {
    for (int i = 0; i < PROMPTS; i++) {
        coord_event e = {.kind = COORD_SUBMIT, .request = (uint64_t)i + 1};
        e.submit.id = "bench";
        e.submit.tokens = c->prompts + (size_t)i * TOKENS;
        e.submit.count = e.submit.prompt_count = TOKENS;
        e.submit.max_tokens = 64;
        e.submit.deadline_ms = INT64_MAX;
        e.submit.prefer_node = -1;
        node[i] = step(c, &e)->node;
    }
}

/* ---- timing ------------------------------------------------------------------------------------------------ */

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static status measure(const layout *l, int32_t each, int decisions, bench_route_row *out, error *err) {
    static double took[DECISIONS];
    cluster c;
    int node[PROMPTS];
    status st = create(&c, err);
    for (int i = 0; st == ST_OK && i < NODES; i++) hold_others(&c, i, each);
    for (size_t i = 0; st == ST_OK && i < (size_t)PROMPTS * TOKENS; i++) c.prompts[i] = (int32_t)(random_next(&c) % 50000);
    for (int i = 0; st == ST_OK && i < PROMPTS; i++) hold_prompt(&c, i, l);
    if (st == ST_OK) submit_all(&c, node);
    for (int i = 0; st == ST_OK && i < decisions; i++) {
        coord_event e = {.kind = COORD_DECODE_END, .request = (uint64_t)(i % PROMPTS) + 1,
                         .attempt = (uint32_t)(i / PROMPTS) + 1};
        e.end.st = ST_AGAIN;
        c.now_ms += BUSY_MS;
        double began = now_us();
        const coord_action *a = step(&c, &e);
        took[i] = now_us() - began;
        if (!a) st = error_set(err, ST_INTERNAL, "bench route: decision %d placed nothing", i);
    }
    coord_core_destroy(c.core);
    mem_free(c.prompts);
    TRY(st);
    qsort(took, (size_t)decisions, sizeof *took, by_size);
    *out = (bench_route_row){l->name, took[decisions / 2], took[decisions * 99 / 100], took[decisions - 1]};
    return ST_OK;
}

status bench_route_run(bool quick, bench_route_report *out, error *err) {
    bench_route_report r = {.nodes = NODES, .tokens = TOKENS, .page_tokens = P, .pages_each = quick ? EACH_QUICK : EACH,
                            .decisions = quick ? DECISIONS_QUICK : DECISIONS};
    log_setup("bench", LOG_WARN);
    for (int i = 0; i < BENCH_ROUTE_CASES; i++) TRY(measure(&layouts[i], r.pages_each, r.decisions, &r.rows[i], err));
    *out = r;
    return ST_OK;
}

/* ---- report ------------------------------------------------------------------------------------------------- */

void bench_route_text(const bench_route_report *r, FILE *out) {
    fprintf(out, "one decision of %d: %d nodes with %d other pages each, a prompt of %d tokens in pages of %d\n",
            r->decisions, r->nodes, r->pages_each, r->tokens, r->page_tokens);
    fprintf(out, "%-24s %10s %10s %10s\n", "the prompt is cached", "p50 us", "p99 us", "most us");
    for (int i = 0; i < BENCH_ROUTE_CASES; i++)
        fprintf(out, "%-24s %10.1f %10.1f %10.1f\n", r->rows[i].name, r->rows[i].p50_us, r->rows[i].p99_us, r->rows[i].max_us);
}

status bench_route_json(const bench_route_report *r, FILE *out, error *err) {
    json_t *rows = json_array();
    for (int i = 0; i < BENCH_ROUTE_CASES; i++)
        json_array_append_new(rows, json_pack("{s:s, s:f, s:f, s:f}", "cached", r->rows[i].name, "p50_us", r->rows[i].p50_us,
                                              "p99_us", r->rows[i].p99_us, "max_us", r->rows[i].max_us));
    json_t *whole = json_pack("{s:i, s:i, s:i, s:i, s:i, s:o}", "nodes", r->nodes, "tokens", r->tokens, "page_tokens",
                             r->page_tokens, "pages_each", r->pages_each, "decisions", r->decisions, "rows", rows);
    if (!whole) return error_set(err, ST_NO_MEMORY, "bench route: no memory for JSON");
    json_dumpf(whole, out, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
    fputc('\n', out);
    json_decref(whole);
    return ST_OK;
}
