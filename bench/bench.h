/* bench.h -- how fast a model runs on this machine, and how fast it could: what `baton bench engine`
 * measures and how it is shown.
 *
 * It drives the engine alone, in this process, from one thread: no cluster, no sampling, no tokenizer.
 * A measurement is warmed up once and repeated BENCH_REPEATS times; median and spread are kept. */
#ifndef BATON_BENCH_H
#define BATON_BENCH_H

#include "engine/engine.h"

enum {
    BENCH_REPEATS = 5,
    BENCH_STEP_TOKENS = 512,     /* most rows of a step: longer prompts are read in several */
    BENCH_CONTEXT = 128,         /* tokens before the first decoded one; also attention's prefill chunk */
    BENCH_SIZES_MAX = 8,
    BENCH_LIMITS_MAX = 16,
    BENCH_POINTS_MAX = 32,
    BENCH_OPS_MAX = 16,
};

typedef struct bench_spread {
    double median, min, max;
} bench_spread;

/* Sorts samples. */
bench_spread bench_spread_of(double *samples, int count);

/* ---- select.c: what is to be measured ------------------------------------------------------------- */

typedef enum bench_part {
    BENCH_LIMITS, BENCH_PREFILL, BENCH_DECODE, BENCH_ATTENTION, BENCH_OPS, BENCH_PARTS
} bench_part;

/* The sizes of a part, ending with 0: tokens, sequences or context. Those without sizes have {0}. */
extern const int bench_sizes[BENCH_PARTS][BENCH_SIZES_MAX];

typedef struct bench_selection {
    unsigned sizes[BENCH_PARTS]; /* bit i: bench_sizes[part][i]; parts without sizes: bit 0 */
} bench_selection;

/* only: "prefill:512,decode,limits", NULL: everything; quick: every other size, from the smallest.
 * ST_BAD_INPUT names the item that is none. */
status bench_select_parse(const char *only, bool quick, bench_selection *out, error *err);
bool bench_select_has(const bench_selection *s, bench_part part, int index);

/* ---- probe.c: the machine's limits ------------------------------------------------------------------ */

typedef enum bench_kind { BENCH_INT8, BENCH_FLOAT, BENCH_READ, BENCH_KINDS } bench_kind;

typedef struct bench_limit {
    bench_kind kind;
    const char *name;            /* "amx", "8 streams" */
    bench_spread rate;           /* 10^9 multiply-adds or bytes a second, all threads together */
} bench_limit;

/* Runs every probe that this machine can, on as many threads as the engine would have. out:
 * BENCH_LIMITS_MAX. ms: how long one repeat takes at least. */
status bench_probe_all(int threads, int ms, bench_limit *out, int *count, error *err);

/* ---- engine.c: the model ----------------------------------------------------------------------------- */

/* One line of the report. What `work` counts is the part's: multiply-adds of the matrices (prefill) or
 * bytes of them (decode); for attention multiply-adds of the op (many rows) or bytes of KV (one row). */
typedef struct bench_point {
    bench_part part;
    int size;                    /* prompt tokens, sequences or context */
    int rows;                    /* of one step: decode, attention */
    bench_spread ms;             /* prefill: the prompt; else a step */
    bench_spread op_ms;          /* attention: the op alone, all layers */
    bench_spread tok_s;
    double work;
    bench_kind limit;            /* what bounds that work */
} bench_point;

typedef struct bench_op {
    const char *name;
    double prefill_ms, decode_ms; /* in a prefill of 512, in a decode step of one row */
} bench_op;

typedef struct bench_report {
    const char *model, *digest, *kv_type;
    char numerics[64], cpu[96];
    int threads, ranks;
    bool quick;
    double weights_bytes;        /* of the matrices that every token meets, as the file has them */
    double weights_macs;         /* multiply-adds of a token in them, output matrix included */
    bench_limit limits[BENCH_LIMITS_MAX];
    int limits_count;
    bench_point points[BENCH_POINTS_MAX];
    int points_count;
    bench_op ops[BENCH_OPS_MAX];
    int ops_count;
} bench_report;

typedef struct bench_options {
    const char *isa, *device, *cache_dir; /* as in eng_options */
    int threads;                 /* of each rank */
    int rank, ranks;             /* of a group; rank 0 measures, the others follow */
    const char *group;           /* where its ranks meet: coll_meet_at() */
    eng_kv_type kv_type;
    const char *kv_type_name;
    bool quick;                  /* fewer sizes, shorter runs */
    bench_selection selection;
    void (*progress)(const char *what, int size);    /* before each measurement; may be NULL */
} bench_options;

/* A rank other than 0 returns when rank 0 is done and leaves *out alone.
 * Fills *out, whose texts point into g and the options. Sizes beyond the model's context are left out. */
status bench_engine_run(const eng_gguf *g, const bench_options *options, bench_report *out, error *err);

/* ---- report.c, svg.c ----------------------------------------------------------------------------------- */

extern const char *const bench_part_names[BENCH_PARTS], *const bench_kind_names[BENCH_KINDS];
/* The best of a kind, 0: not measured. */
double bench_report_limit(const bench_report *r, bench_kind kind);
/* 10^9 multiply-adds or bytes a second that the point reached. */
double bench_report_rate(const bench_point *p);
void bench_report_text(const bench_report *r, FILE *out);
status bench_report_json(const bench_report *r, FILE *out, error *err);
/* A plot: tokens per second by batch and prompt, time by op. */
void bench_svg_write(const bench_report *r, FILE *out);

#endif
