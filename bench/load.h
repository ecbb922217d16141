/* load.h -- an open loop load on a running cluster: what `baton bench load` sends, measures and shows.
 *
 *   load_shape.c    how long a prompt or an answer is: fixed, uniform, lognormal, a list
 *   load_plan.c     when each request is meant to arrive, and what its prompt is made of; load_trace.c: from a file
 *   load_run.c      sends each at its time and records what comes back
 *   load_figures.c  records become figures
 *   load_nodes.c    where the nodes' time went meanwhile
 *   load_report.c   figures as text, JSON and a plot
 *
 * The whole plan is made before the first request leaves, and it is a function of its options: the same seed gives the
 * same load. A request leaves at its time whatever became of those before it (open loop), and every latency counts from
 * that intended time, not from when it was sent. So a server that stalls, or a client that comes late, is charged for
 * everyone who had to wait meanwhile, and not only for the one it stalled on (coordinated omission). */
#ifndef BATON_BENCH_LOAD_H
#define BATON_BENCH_LOAD_H

#include "bench/histogram.h"
#include "proto/baton.pb-c.h"
#include "rpc/rpc.h"

enum {
    BENCH_LOAD_BLOCK = 512,      /* prompt tokens that one hash id of a trace stands for (Mooncake's) */
    BENCH_LOAD_LIST_MAX = 32,
    BENCH_LOAD_LENGTH_MAX = 1 << 20,
    BENCH_LOAD_REQUESTS_MAX = 1 << 20,
    BENCH_LOAD_PIECES_MAX = 24,  /* of a run, for the plot over time */
    BENCH_LOAD_PARTS_MAX = 16,   /* of an engine thread's time */
};

/* ---- load_shape.c: a distribution of lengths ---------------------------------------------------------- */

typedef enum bench_load_shape_kind { SHAPE_LIST, SHAPE_UNIFORM, SHAPE_LOGNORMAL } bench_load_shape_kind;

typedef struct bench_load_shape {
    bench_load_shape_kind kind;
    int32_t list[BENCH_LOAD_LIST_MAX], list_count;  /* each as likely; fixed: a list of one */
    int32_t min, max;            /* both included; lognormal: what is drawn beyond is cut to them */
    double median, sigma;
} bench_load_shape;

/* "fixed:N", "uniform:A-B", "lognormal:MEDIAN,SIGMA,A-B" or "list:N,N,...". ST_BAD_INPUT names flag and text. */
status bench_load_shape_parse(const char *flag, const char *text, bench_load_shape *out, error *err);
/* uniform: in [0, 1). */
int32_t bench_load_shape_draw(const bench_load_shape *s, double uniform);

/* ---- load_plan.c, load_trace.c: what is sent, and when -------------------------------------------------- */

typedef struct bench_load_options {
    double rate;                 /* requests a second; with a trace 0: as the trace has it */
    int64_t burst;               /* so many arrive at once, as often as the rate then asks for */
    int64_t requests;            /* 0: as many as the duration has room for */
    double duration_s;           /* 0: as long as the requests take */
    bench_load_shape prompt, answer;
    int64_t shared;              /* first tokens of each prompt that are the same in all */
    uint64_t seed;
    int64_t slow_readers;        /* streams beside the load, opened at its start and read once a second */
} bench_load_options;

typedef struct bench_load_request {
    int64_t at_us;               /* intended arrival, from the start */
    int32_t prompt, answer;      /* tokens */
    int64_t hashes;              /* trace: index of its first hash id in the plan's; -1: blocks of its own */
    bool slow;                   /* a slow reader: not part of the figures */
} bench_load_request;

typedef struct bench_load_plan {
    bench_load_request *requests;    /* by arrival */
    int64_t count, requests_max;
    uint64_t *hashes;
    int64_t hashes_count, hashes_max;
    int64_t end_us;              /* when the arrivals are over */
    int64_t shared;
    uint64_t seed;
} bench_load_plan;

/* Poisson arrivals, or bursts whose starts are. */
status bench_load_plan_make(const bench_load_options *o, bench_load_plan *out, error *err);
/* JSON lines of {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}, ascending in time: the form
 * of Mooncake's traces (Qin et al., FAST 2025). Equal ids are equal blocks of 512 tokens. o: rate changes the speed so
 * that the mean is it; requests and duration end it early. name: said in errors, with the line. */
status bench_load_plan_trace(FILE *in, const char *name, const bench_load_options *o, bench_load_plan *out, error *err);
/* One more request, not before the last one. */
status bench_load_plan_add(bench_load_plan *p, bench_load_request r, error *err);
/* Writes the prompt's token ids, each below vocabulary. */
void bench_load_plan_tokens(const bench_load_plan *p, int64_t index, int32_t vocabulary, int32_t *out);
/* One object: every request with time, lengths and token ids. */
status bench_load_plan_json(const bench_load_plan *p, int32_t vocabulary, FILE *out, error *err);
void bench_load_plan_free(bench_load_plan *p);

/* ---- load_run.c -------------------------------------------------------------------------------------------- */

typedef enum bench_load_outcome {
    LOAD_PLANNED,                /* its time never came: the run was ended early */
    LOAD_OPEN,
    LOAD_ANSWERED,
    LOAD_REFUSED,                /* RESOURCE_EXHAUSTED */
    LOAD_FAILED,
    LOAD_NOT_SENT,               /* too many streams were open */
    LOAD_UNFINISHED,             /* given up by us when the run ended */
} bench_load_outcome;

typedef struct bench_load_record {
    bench_load_outcome outcome;
    status st;                   /* FAILED: with what */
    int64_t sent_us, first_us, last_us, end_us;     /* from the start; first and last token, 0: none came */
    int64_t retry_after_ms;      /* REFUSED: -1: no hint came */
    int32_t tokens, cached, accepted, attempts;     /* accepted: guessed by speculation, by the last attempt */
    bool told;                   /* the server's timings came, ms */
    double tokenise, queue, prefill, transfer, ttft, decode;
} bench_load_record;

typedef struct bench_load_settings {
    int32_t vocabulary;
    double temperature;
    int64_t streams_max;         /* most at once */
    int64_t timeout_ms;          /* of a call, 0: none */
    int64_t wait_ms;             /* after the last arrival; then what is open is given up */
    bool progress;               /* a line on stderr each second */
} bench_load_settings;

typedef struct bench_load bench_load;        /* on its loop's thread */

status bench_load_create(const bench_load_plan *p, const bench_load_settings *s, bench_load **out, error *err);
/* Runs the loop until the last answer is in, or bench_load_stop() was called and all streams have ended. */
status bench_load_run(bench_load *b, rpc_loop *loop, rpc_channel *channel, error *err);
void bench_load_stop(void *b);               /* what is open is given up */
void bench_load_destroy(bench_load *b);

/* ---- load_nodes.c: where the nodes' time went -------------------------------------------------------------------- */

enum { BENCH_LOAD_PREFILL, BENCH_LOAD_DECODE, BENCH_LOAD_ROLES };

/* Of the nodes' engine threads, by part of their work ("attention", "idle", ...), all nodes of a role together. */
typedef struct bench_load_nodes {
    struct {
        char name[24];
        int64_t us[BENCH_LOAD_ROLES];
    } part[BENCH_LOAD_PARTS_MAX];
    int parts;
} bench_load_nodes;

/* sign: -1 before the load, 1 after it. */
void bench_load_nodes_count(bench_load_nodes *n, const Baton__V1__TopologyResult *t, int sign);
/* That role's time in all; 0: there is no such node, or it did not tell. */
int64_t bench_load_nodes_us(const bench_load_nodes *n, int role);
extern const char *const bench_load_roles[BENCH_LOAD_ROLES];

/* ---- load_figures.c ------------------------------------------------------------------------------------------ */

typedef struct bench_load_slo { double ttft_ms, tpot_ms; } bench_load_slo;

enum { STAGE_LATE, STAGE_NETWORK, STAGE_TOKENISE, STAGE_QUEUE, STAGE_WAIT, STAGE_PREFILL, STAGE_TRANSFER, STAGE_DECODE, STAGES };
extern const char *const bench_load_stage_names[STAGES];

/* Arrivals of one piece of the run and what became of them. */
typedef struct bench_load_piece { int64_t arrived, answered, met; } bench_load_piece;

typedef struct bench_load_figures {
    int64_t planned, sent, answered, refused, refused_with_hint, not_sent, unfinished, failed_count, short_answers;
    int64_t failed[ST_COUNT];
    int64_t prompt_tokens, cached_tokens, answer_tokens, retried;
    int64_t whole_tokens, accepted_tokens;          /* of the answered; of them those that speculation guessed right */
    int64_t slow, slow_answered, slow_tokens;       /* slow readers, in nothing else */
    double seconds, good_seconds;    /* from the start to the end of the arrivals or the last answer, the later one; to
                                      * that of the last answer that met the SLO */
    double client_cpu;           /* of one core */
    bench_load_slo slo;
    int64_t met;                 /* answered, TTFT and mean TPOT within the SLO */
    /* ttft, e2e, refusal: from the intended arrival; gap: between chunks, also of answers that did not end; tpot: the
     * mean of an answer's own gaps; queue: at the coordinator, as it says; late: sent after its time */
    bench_histogram ttft, gap, tpot, e2e, queue, refusal, late;
    double stage_ms[STAGES];     /* means over the answered */
    int64_t told;                /* those whose server told */
    bench_load_piece piece[BENCH_LOAD_PIECES_MAX];
    int pieces;
    double piece_s;              /* how long each is */
    bench_load_nodes nodes;
} bench_load_figures;

/* gaps: collected while it ran, may be NULL. client_cpu_s: CPU time of the client. */
void bench_load_figures_of(const bench_load_plan *p, const bench_load_record *records, const bench_histogram *gaps,
                           bench_load_slo slo, int64_t ran_us, double client_cpu_s, bench_load_figures *out);
/* Of a run that has ended. */
void bench_load_take(const bench_load *b, bench_load_slo slo, bench_load_figures *out);

/* Requests a second that met the SLO. */
double bench_load_goodput(const bench_load_figures *f);
/* Share of the answered tokens that speculation had guessed. */
double bench_load_guessed(const bench_load_figures *f);

/* ---- load_report.c -------------------------------------------------------------------------------------------- */

void bench_load_text(const bench_load_figures *f, FILE *out);
status bench_load_json(const bench_load_figures *f, FILE *out, error *err);
void bench_load_svg(const bench_load_figures *f, FILE *out);

#endif
