/* aliases.c -- vLLM's names for what baton counts: autoscalers, dashboards and load tools know those. Each is made from
 * metrics of baton's own at the time it is asked for, so the two cannot disagree. promtool objects to the colon. */
#include "http/http.h"
#include <string.h>

enum { LABELS_MAX = 5 };

typedef struct alias {
    const char *name, *help;
    const char *labels;                  /* labels beside model_name; NULL: none */
    metric_kind kind;
    const char *of;                      /* baton's name: sums what has it and one of of_labels (none given: all) */
    const char *of_labels[LABELS_MAX];
    enum { SUM, SHARE, EACH } how;       /* SHARE: of all that have that name, 0 to 1; EACH: a series for each, with its own labels */
} alias;

#define COUNT(name_, help_, of_) {"vllm:" name_, help_, NULL, METRIC_COUNTER, of_, {NULL}, SUM}
#define TIMES(name_, help_, of_) {"vllm:" name_, help_, NULL, METRIC_HISTOGRAM, of_, {NULL}, SUM}
#define RUNNING "vllm:num_requests_running", "requests that are worked on", NULL, METRIC_GAUGE
#define WAITING "vllm:num_requests_waiting", "requests that wait until they are worked on", NULL, METRIC_GAUGE
#define SOURCE(s) "vllm:prompt_tokens_by_source_total", "prompt tokens by where their KV came from", "source=\"" s "\"", METRIC_COUNTER
#define REASON(r) {"vllm:request_success_total", "answers that ended, by reason", "finished_reason=\"" r "\"", METRIC_COUNTER, \
                   "baton_answers_total", {"reason=\"" r "\""}, SUM}
static const alias aliases[] = {
    {RUNNING, "baton_requests_placed", {NULL}, SUM},
    {RUNNING, "baton_node_requests", {"state=\"running\""}, SUM},
    {WAITING, "baton_requests_waiting", {NULL}, SUM},
    {WAITING, "baton_node_requests", {"state=\"waiting\""}, SUM},
    {"vllm:kv_cache_usage_perc", "share of the KV pages that requests hold, 0 to 1; cached ones are as good as free", NULL, METRIC_GAUGE,
     "baton_node_pages",
     {"state=\"promised\"", "state=\"landing\"", "state=\"running\"", "state=\"sending\"", "state=\"held\""}, SHARE},
    COUNT("prompt_tokens_total", "prompt tokens of answered requests", "baton_prompt_tokens_total"),
    COUNT("generation_tokens_total", "answer tokens given to clients", "baton_tokens_total"),
    {SOURCE("local_compute"), "baton_node_tokens_total", {"kind=\"prefill\""}, SUM},
    {SOURCE("local_cache_hit"), "baton_node_prefix_tokens_total", {"result=\"hit\""}, SUM},
    {SOURCE("external_kv_transfer"), "baton_node_landed_tokens_total", {NULL}, SUM},
    COUNT("prefix_cache_queries_total", "tokens looked up in the prefix cache", "baton_node_prefix_tokens_total"),
    {"vllm:prefix_cache_hits_total", "tokens whose KV was found in the prefix cache", NULL, METRIC_COUNTER, "baton_node_prefix_tokens_total",
     {"result=\"hit\""}, SUM},
    REASON("stop"),
    REASON("length"),
    REASON("abort"),
    REASON("error"),
    COUNT("num_preemptions_total", "times a request gave its pages to another one", "baton_node_preemptions_total"),
    COUNT("spec_decode_num_drafts_total", "times that proposed tokens of a request were checked", "baton_node_speculated_steps_total"),
    COUNT("spec_decode_num_draft_tokens_total", "tokens that speculation proposed and the model checked", "baton_node_proposed_tokens_total"),
    COUNT("spec_decode_num_accepted_tokens_total", "proposed tokens that the model chose, too", "baton_node_accepted_tokens_total"),
    {"vllm:spec_decode_num_accepted_tokens_per_pos_total", "proposed tokens that the model chose, too, by their place among the proposed",
     NULL, METRIC_COUNTER, "baton_node_accepted_tokens_at_total", {NULL}, EACH},
    TIMES("time_to_first_token_seconds", "from a request's arrival to its first token", "baton_time_to_first_token_seconds"),
    TIMES("inter_token_latency_seconds", "between two tokens of an answer", "baton_inter_token_latency_seconds"),
    TIMES("request_time_per_output_token_seconds", "a request's mean time between tokens", "baton_time_per_output_token_seconds"),
    TIMES("e2e_request_latency_seconds", "from a request's arrival to the end of its answer", "baton_request_seconds"),
    TIMES("request_queue_time_seconds", "a request's wait for a place", "baton_request_queue_seconds"),
    TIMES("request_prefill_time_seconds", "reading a request's prompt", "baton_request_prefill_seconds"),
    TIMES("request_decode_time_seconds", "from a request's first token to its last", "baton_request_decode_seconds"),
    TIMES("iteration_tokens_total", "tokens computed in one forward pass", "baton_node_step_tokens"),
};
enum { ALIASES = sizeof aliases / sizeof *aliases };

/* What there is of one alias at the moment. */
typedef struct found {
    const alias *a;
    const metric *any;           /* NULL: this process has none of it */
    int64_t sum, all;
} found;

static bool is_one(const alias *a, const metric *m) {
    if (!a->of_labels[0]) return true;
    for (int i = 0; i < LABELS_MAX && a->of_labels[i]; i++)
        if (m->labels && strcmp(m->labels, a->of_labels[i]) == 0) return true;
    return false;
}

static void look(const metric *m, void *ctx) {
    found *f = ctx;
    if (strcmp(m->name, f->a->of) != 0) return;
    f->all += metric_get(m);
    if (!is_one(f->a, m)) return;
    f->any = m;
    f->sum += metric_get(m);
}

/* model_name="...", then more if there are. A quote or backslash in a file's name is escaped. */
static void fill_labels(const char *model, const char *more, char *out, size_t bytes) {
    size_t used = (size_t)snprintf(out, bytes, "model_name=\"");
    for (const char *c = model; *c && used + 4 < bytes / 2; c++) {
        if (*c == '"' || *c == '\\') out[used++] = '\\';
        out[used++] = *c;
    }
    snprintf(out + used, bytes - used, "\"%s%s", more ? "," : "", more ? more : "");
}

static void write_series(FILE *out, const alias *a, const metric *m, const char *model, const char *labels) {
    char all[600];
    fill_labels(model, labels, all, sizeof all);
    metric_write_as(out, m, a->name, all);
}

typedef struct each {
    FILE *out;
    const alias *a;
    const char *model;
} each;

static void write_each(const metric *m, void *ctx) {
    each *e = ctx;
    if (strcmp(m->name, e->a->of) == 0) write_series(e->out, e->a, m, e->model, m->labels);
}

static void write_one(FILE *out, const found *f, const char *model) {
    char labels[600];
    if (f->a->how == EACH) {
        metrics_each(write_each, &(each){out, f->a, model});
    } else if (f->a->kind == METRIC_HISTOGRAM) {
        write_series(out, f->a, f->any, model, f->a->labels);
    } else {
        fill_labels(model, f->a->labels, labels, sizeof labels);
        fprintf(out, "%s{%s} ", f->a->name, labels);
        if (f->a->how == SHARE) fprintf(out, "%.6g\n", f->all ? (double)f->sum / (double)f->all : 0);
        else fprintf(out, "%lld\n", (long long)f->sum);
    }
}

/* Rows of one name stand together in the table. */
void http_aliases_write(FILE *out, const char *model) {
    const char *last = "";
    for (int i = 0; i < ALIASES; i++) {
        found f = {.a = &aliases[i]};
        metrics_each(look, &f);
        if (!f.any) continue;
        if (strcmp(last, f.a->name) != 0) metric_write_head(out, f.a->name, f.a->kind, f.a->help);
        last = f.a->name;
        write_one(out, &f, model);
    }
}
