/* engine.c -- measures one model: prompts, decode batches, attention, ops.
 *
 * What stands in the pages does not change how long a step takes, so the first BENCH_CONTEXT positions
 * are computed and copied into every other page: a context of 8,192 costs nothing to set up. Sequences
 * of a batch have pages of their own. Tokens are made up; nothing is sampled. */
#include "bench/bench.h"
#include "bench/timing.h"
#include "engine/team.h"
#include <assert.h>
#include <string.h>

enum { PAGE_TOKENS = 16, DECODE_STEPS = 64, DECODE_STEPS_QUICK = 8 };

typedef struct bench {
    const bench_options *o;
    bench_report *r;
    eng_model *m;
    eng_kv *kv;
    int32_t *blocks;             /* 0, 1, 2 ...: sequence s begins at s * pages_each */
    int32_t pages;
    int steps;                   /* of one decode repeat */
    int32_t tokens[BENCH_STEP_TOKENS];
} bench;

bench_spread bench_spread_of(double *samples, int count) {
    for (int i = 1; i < count; i++) /* insertion sort: a handful */
        for (int k = i; k > 0 && samples[k] < samples[k - 1]; k--) {
            double t = samples[k];
            samples[k] = samples[k - 1];
            samples[k - 1] = t;
        }
    double median = (samples[(count - 1) / 2] + samples[count / 2]) / 2;
    return (bench_spread){median, samples[0], samples[count - 1]};
}

/* ---- steps --------------------------------------------------------------------------------------- */

/* Reads a prompt of count tokens from position at on; logits of its last row. */
static status prefill(bench *b, int32_t at, int32_t count, error *err) {
    for (int32_t done = 0; done < count;) {
        int32_t now = count - done < BENCH_STEP_TOKENS ? count - done : BENCH_STEP_TOKENS;
        const float *logits;
        eng_rows rows = {.tokens = b->tokens, .count = now, .position = at + done, .blocks = b->blocks};
        rows.logits = done + now == count;
        TRY(eng_step(b->m, b->kv, &rows, 1, &logits, err));
        done += now;
    }
    return ST_OK;
}

/* One token of each of batch sequences, from position at on, steps times. */
static status decode(bench *b, int batch, int32_t at, int steps, error *err) {
    enum { BATCH_MAX = 32 };
    eng_rows rows[BATCH_MAX];
    int32_t pages_each = batch > 1 ? b->pages / batch : 0;
    for (int i = 0; i < steps; i++) {
        const float *logits;
        for (int s = 0; s < batch; s++)
            rows[s] = (eng_rows){.tokens = b->tokens + s, .count = 1, .position = at + i,
                                 .blocks = b->blocks + s * pages_each, .logits = 1};
        TRY(eng_step(b->m, b->kv, rows, batch, &logits, err));
    }
    return ST_OK;
}

/* ---- points -------------------------------------------------------------------------------------- */

/* What a point repeats: `steps` steps of one kind; ms and tok_s are those of one. */
typedef struct work {
    bool decodes;
    int batch_or_count;
    int32_t at;
    int steps;
} work;

static status run_once(bench *b, const work *w, double *ms, error *err) {
    int64_t from = clock_now_us();
    if (w->decodes) TRY(decode(b, w->batch_or_count, w->at, w->steps, err));
    else TRY(prefill(b, w->at, w->batch_or_count, err));
    *ms = (double)(clock_now_us() - from) / 1e3 / w->steps;
    return ST_OK;
}

/* Warms up, repeats, and fills the times of *p. With op_ms the attention is timed by itself, too. */
static status repeat(bench *b, const work *w, bool times_op, bench_point *p, error *err) {
    double ms[BENCH_REPEATS], rate[BENCH_REPEATS], op[BENCH_REPEATS], unused;
    TRY(run_once(b, w, &unused, err));
    for (int i = 0; i < BENCH_REPEATS; i++) {
        if (times_op) bench_timing_clear();
        TRY(run_once(b, w, &ms[i], err));
        rate[i] = ms[i] > 0 ? w->batch_or_count * 1e3 / ms[i] : 0;
        op[i] = times_op ? (double)bench_timing_ns(BENCH_OP_ATTENTION) / 1e6 / w->steps : 0;
    }
    p->ms = bench_spread_of(ms, BENCH_REPEATS);
    p->tok_s = bench_spread_of(rate, BENCH_REPEATS);
    p->op_ms = bench_spread_of(op, BENCH_REPEATS);
    return ST_OK;
}

static void add_point(bench *b, bench_point p) { b->r->points[b->r->points_count++] = p; }

static void say(const bench *b, bench_part part, int size) {
    if (b->o->progress) b->o->progress(bench_part_names[part], size);
}

static double matrix_macs(const eng_matrix *w) { return (double)w->N * w->C; }

static status measure_prefill(bench *b, int size, error *err) {
    double output = matrix_macs(&b->m->output);            /* for the last row only */
    bench_point p = {.part = BENCH_PREFILL, .size = size, .rows = size, .limit = BENCH_INT8,
                     .work = (b->r->weights_macs - output) * size + output};
    say(b, BENCH_PREFILL, size);
    TRY(repeat(b, &(work){false, size, 0, 1}, false, &p, err));
    add_point(b, p);
    return ST_OK;
}

static status measure_decode(bench *b, int batch, error *err) {
    bench_point p = {.part = BENCH_DECODE, .size = batch, .rows = batch, .limit = BENCH_READ,
                     .work = b->r->weights_bytes};
    say(b, BENCH_DECODE, batch);
    TRY(repeat(b, &(work){true, batch, BENCH_CONTEXT, b->steps}, false, &p, err));
    add_point(b, p);
    return ST_OK;
}

/* One row at the context's end, whose limit is reading K and V once; then a chunk that ends there, whose
 * limit is two products with every position at or before each row's own. */
static status measure_attention(bench *b, int context, error *err) {
    const eng_shape *s = eng_model_shape(b->m);
    double page_bytes = (double)eng_kv_page_bytes(b->kv), chunk = BENCH_CONTEXT;
    bench_point row = {.part = BENCH_ATTENTION, .size = context, .rows = 1, .limit = BENCH_READ,
                       .work = page_bytes / PAGE_TOKENS * context};
    bench_point many = {.part = BENCH_ATTENTION, .size = context, .rows = BENCH_CONTEXT,
                        .limit = BENCH_FLOAT};
    many.work = 2.0 * s->L * s->H * s->h * chunk * (context - (chunk - 1) / 2);
    say(b, BENCH_ATTENTION, context);
    bench_timing_start(b->m);
    /* decode steps go on to the last position, context - 1 */
    int steps = DECODE_STEPS_QUICK;
    status st = repeat(b, &(work){true, 1, context - steps, steps}, true, &row, err);
    if (st == ST_OK)
        st = repeat(b, &(work){false, BENCH_CONTEXT, context - BENCH_CONTEXT, 1}, true, &many, err);
    bench_timing_stop();
    if (st != ST_OK) return st;
    add_point(b, row);
    add_point(b, many);
    return ST_OK;
}

/* Mean time by op over the repeats; the last line is what lies between ops. */
static status time_ops(bench *b, const work *w, double ms[BENCH_OP_COUNT + 1], error *err) {
    double total = 0, one;
    TRY(run_once(b, w, &one, err));
    bench_timing_clear();
    for (int i = 0; i < BENCH_REPEATS; i++) {
        TRY(run_once(b, w, &one, err));
        total += one / BENCH_REPEATS;
    }
    for (int i = 0; i < BENCH_OP_COUNT; i++) {
        ms[i] = (double)bench_timing_ns((bench_op_index)i) / 1e6 / BENCH_REPEATS / w->steps;
        total -= ms[i];
    }
    ms[BENCH_OP_COUNT] = total > 0 ? total : 0;
    return ST_OK;
}

static status measure_ops(bench *b, error *err) {
    double many[BENCH_OP_COUNT + 1], one[BENCH_OP_COUNT + 1];
    static_assert((int)BENCH_OP_COUNT < (int)BENCH_OPS_MAX, "a report holds them all");
    say(b, BENCH_OPS, 0);
    bench_timing_start(b->m);
    status st = time_ops(b, &(work){false, BENCH_STEP_TOKENS, 0, 1}, many, err);
    if (st == ST_OK) st = time_ops(b, &(work){true, 1, BENCH_CONTEXT, b->steps}, one, err);
    bench_timing_stop();
    if (st != ST_OK) return st;
    for (int i = 0; i <= BENCH_OP_COUNT; i++)
        b->r->ops[i] = (bench_op){i < BENCH_OP_COUNT ? bench_op_names[i] : "between", many[i], one[i]};
    b->r->ops_count = BENCH_OP_COUNT + 1;
    return ST_OK;
}

/* ---- setting up ------------------------------------------------------------------------------------ */

/* Positions that a size of a part needs, in all sequences together; 0: more than the model was made for. */
static int32_t positions_of(const bench *b, bench_part part, int size) {
    int32_t each = part == BENCH_DECODE ? BENCH_CONTEXT + DECODE_STEPS : size;
    if (each > eng_model_shape(b->m)->context) return 0;
    return part == BENCH_DECODE ? each * size : each;
}

/* Room for the greatest of what is wanted; never less than ops need. */
static status create_pages(bench *b, error *err) {
    int32_t positions = BENCH_STEP_TOKENS;
    for (int part = 0; part < BENCH_PARTS; part++)
        for (int i = 0; bench_sizes[part][i]; i++) {
            int32_t needs = positions_of(b, (bench_part)part, bench_sizes[part][i]);
            if (bench_select_has(&b->o->selection, (bench_part)part, i) && needs > positions)
                positions = needs;
        }
    b->pages = positions / PAGE_TOKENS;
    return eng_kv_create(b->m, b->pages, PAGE_TOKENS, b->o->kv_type, &b->kv, err);
}

static status open_pages(bench *b, error *err) {
    TRY(create_pages(b, err));
    b->blocks = mem_zalloc((size_t)b->pages, sizeof *b->blocks);
    if (!b->blocks) return error_set(err, ST_NO_MEMORY, "no memory for %d pages", b->pages);
    for (int32_t i = 0; i < b->pages; i++) b->blocks[i] = i;
    TRY(prefill(b, 0, BENCH_CONTEXT, err));
    for (int32_t i = BENCH_CONTEXT / PAGE_TOKENS; i < b->pages; i++)
        eng_kv_copy(b->kv, i, i % (BENCH_CONTEXT / PAGE_TOKENS), PAGE_TOKENS);
    return ST_OK;
}

static void add_weights(bench_report *r, const eng_matrix *w) {
    for (int i = 0; i < w->parts; i++)
        r->weights_bytes += (double)w->part[i].rows * (double)w->part[i].row_bytes;
    r->weights_macs += matrix_macs(w);
}

/* "model name" of /proc/cpuinfo; some machines have none. */
static void read_cpu(char out[96]) {
    char line[256];
    snprintf(out, 96, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        snprintf(out, 96, "%.90s", colon + 2);
        out[strcspn(out, "\n")] = 0;
        break;
    }
    if (f) fclose(f);
}

static status describe(bench *b, const eng_gguf *g, error *err) {
    const eng_model *m = b->m;
    bench_report *r = b->r;
    if (m->shape.context < BENCH_CONTEXT + DECODE_STEPS || m->shape.context < BENCH_STEP_TOKENS)
        return error_set(err, ST_BAD_INPUT, "the model's context is %d: expected at least %d",
                         m->shape.context, BENCH_STEP_TOKENS);
    *r = (bench_report){.model = eng_gguf_name(g), .digest = eng_gguf_digest(g),
                        .kv_type = b->o->kv_type_name, .quick = b->o->quick,
                        .threads = b->o->threads ? b->o->threads : eng_cpus_allowed(), .ranks = b->o->ranks};
    snprintf(r->numerics, sizeof r->numerics, "%s", eng_model_numerics(m));
    read_cpu(r->cpu);
    for (int l = 0; l < m->shape.L; l++) {
        const eng_layer *w = &m->layer[l];
        const eng_matrix *all[] = {&w->qkv, &w->attn_out, &w->gate_up, &w->down};
        for (int i = 0; i < 4; i++) add_weights(r, all[i]);
    }
    add_weights(r, &m->output);
    return ST_OK;
}

static status measure_all(bench *b, error *err) {
    static status (*const measure[BENCH_PARTS])(bench *, int, error *) = {
        [BENCH_PREFILL] = measure_prefill,
        [BENCH_DECODE] = measure_decode,
        [BENCH_ATTENTION] = measure_attention,
    };
    const bench_selection *s = &b->o->selection;
    if (bench_select_has(s, BENCH_LIMITS, 0)) {
        say(b, BENCH_LIMITS, 0);
        TRY(bench_probe_all(b->r->threads, b->o->quick ? 5 : 100, b->r->limits, &b->r->limits_count, err));
    }
    bool by_op = b->m->op->shares;          /* a device's ops are queued: their calls' times say nothing */
    for (int part = 0; part < BENCH_PARTS; part++)
        for (int i = 0; bench_sizes[part][i]; i++)
            if (bench_select_has(s, (bench_part)part, i) && (by_op || part != BENCH_ATTENTION) &&
                positions_of(b, (bench_part)part, bench_sizes[part][i]))
                TRY(measure[part](b, bench_sizes[part][i], err));
    return by_op && bench_select_has(s, BENCH_OPS, 0) ? measure_ops(b, err) : ST_OK;
}

static status lead(bench *b, const eng_gguf *g, error *err) {
    int V = eng_model_shape(b->m)->V;
    for (int i = 0; i < BENCH_STEP_TOKENS; i++) b->tokens[i] = (i * 7919 + 13) % V;
    TRY(describe(b, g, err));
    TRY(open_pages(b, err));
    TRY(measure_all(b, err));
    return eng_dismiss(b->m, err);
}

/* The same pages and steps as rank 0, as its plans say. */
static status follow(bench *b, error *err) {
    TRY(create_pages(b, err));
    return eng_follow(b->m, b->kv, NULL, err);
}

status bench_engine_run(const eng_gguf *g, const bench_options *options, bench_report *out, error *err) {
    enum { MEET_MS = 30000, CALL_MS = 600000 };
    coll_options group = {.rank = options->rank, .ranks = options->ranks, .open_ms = MEET_MS, .timeout_ms = CALL_MS};
    eng_options engine = {.isa = options->isa, .device = options->device, .threads = options->threads,
                          .cache_dir = options->cache_dir,
                          .tokens_max = BENCH_STEP_TOKENS, .logits_max = 64};
    bench b = {.o = options, .r = out, .steps = options->quick ? DECODE_STEPS_QUICK : DECODE_STEPS};
    if (options->ranks > 1) TRY(coll_meet_at(options->group, &group, err));
    if (options->ranks > 1) TRY(coll_open(&group, &engine.group, err));
    status st = eng_model_open(g, &engine, &b.m, err);
    if (st == ST_OK) st = options->rank ? follow(&b, err) : lead(&b, g, err);
    mem_free(b.blocks);
    eng_kv_destroy(b.kv);
    if (b.m) eng_model_close(b.m);
    coll_close(engine.group);
    return st;
}
