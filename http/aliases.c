/* aliases.c -- vLLM's names for what baton counts: autoscalers, dashboards and load tools know those. Each is made from
 * metrics of baton's own at the time it is asked for, so the two cannot disagree. promtool objects to the colon. */
#include "http/http.h"
#include <string.h>

enum { LABELS_MAX = 5 };

typedef struct alias {
    const char *name, *labels;           /* labels beside model_name; NULL: none */
    metric_kind kind;
    const char *of;                      /* baton's name: sums what has it and one of of_labels (none given: all) */
    const char *of_labels[LABELS_MAX];
    enum { SUM, SHARE, EACH } how;       /* SHARE: of all that have that name, 0 to 1; EACH: a series for each, with its own labels */
} alias;

#define REASON(r) "vllm:request_success_total", "finished_reason=\"" r "\"", METRIC_COUNTER, "baton_answers_total", {"reason=\"" r "\""}
#define SOURCE(s) "vllm:prompt_tokens_by_source_total", "source=\"" s "\"", METRIC_COUNTER
static const alias aliases[] = {
    {"vllm:num_requests_running", NULL, METRIC_GAUGE, "baton_requests_placed", {NULL}, SUM},
    {"vllm:num_requests_running", NULL, METRIC_GAUGE, "baton_node_requests", {"state=\"running\""}, SUM},
    {"vllm:num_requests_waiting", NULL, METRIC_GAUGE, "baton_requests_waiting", {NULL}, SUM},
    {"vllm:num_requests_waiting", NULL, METRIC_GAUGE, "baton_node_requests", {"state=\"waiting\""}, SUM},
    {"vllm:kv_cache_usage_perc", NULL, METRIC_GAUGE, "baton_node_pages",
     {"state=\"promised\"", "state=\"landing\"", "state=\"running\"", "state=\"sending\"", "state=\"held\""}, SHARE},
    {"vllm:prompt_tokens_total", NULL, METRIC_COUNTER, "baton_prompt_tokens_total", {NULL}, SUM},
    {"vllm:generation_tokens_total", NULL, METRIC_COUNTER, "baton_tokens_total", {NULL}, SUM},
    {SOURCE("local_compute"), "baton_node_tokens_total", {"kind=\"prefill\""}, SUM},
    {SOURCE("local_cache_hit"), "baton_node_prefix_tokens_total", {"result=\"hit\""}, SUM},
    {SOURCE("external_kv_transfer"), "baton_node_landed_tokens_total", {NULL}, SUM},
    {"vllm:prefix_cache_queries_total", NULL, METRIC_COUNTER, "baton_node_prefix_tokens_total", {NULL}, SUM},
    {"vllm:prefix_cache_hits_total", NULL, METRIC_COUNTER, "baton_node_prefix_tokens_total", {"result=\"hit\""}, SUM},
    {REASON("stop"), SUM},
    {REASON("length"), SUM},
    {REASON("abort"), SUM},
    {REASON("error"), SUM},
    {"vllm:num_preemptions_total", NULL, METRIC_COUNTER, "baton_node_preemptions_total", {NULL}, SUM},
    {"vllm:spec_decode_num_drafts_total", NULL, METRIC_COUNTER, "baton_node_speculated_steps_total", {NULL}, SUM},
    {"vllm:spec_decode_num_draft_tokens_total", NULL, METRIC_COUNTER, "baton_node_proposed_tokens_total", {NULL}, SUM},
    {"vllm:spec_decode_num_accepted_tokens_total", NULL, METRIC_COUNTER, "baton_node_accepted_tokens_total", {NULL}, SUM},
    {"vllm:spec_decode_num_accepted_tokens_per_pos_total", NULL, METRIC_COUNTER, "baton_node_accepted_tokens_at_total", {NULL}, EACH},
    {"vllm:time_to_first_token_seconds", NULL, METRIC_HISTOGRAM, "baton_time_to_first_token_seconds", {NULL}, SUM},
    {"vllm:inter_token_latency_seconds", NULL, METRIC_HISTOGRAM, "baton_inter_token_latency_seconds", {NULL}, SUM},
    {"vllm:request_time_per_output_token_seconds", NULL, METRIC_HISTOGRAM, "baton_time_per_output_token_seconds", {NULL}, SUM},
    {"vllm:e2e_request_latency_seconds", NULL, METRIC_HISTOGRAM, "baton_request_seconds", {NULL}, SUM},
    {"vllm:request_queue_time_seconds", NULL, METRIC_HISTOGRAM, "baton_request_queue_seconds", {NULL}, SUM},
    {"vllm:request_prefill_time_seconds", NULL, METRIC_HISTOGRAM, "baton_request_prefill_seconds", {NULL}, SUM},
    {"vllm:request_decode_time_seconds", NULL, METRIC_HISTOGRAM, "baton_request_decode_seconds", {NULL}, SUM},
    {"vllm:iteration_tokens_total", NULL, METRIC_HISTOGRAM, "baton_node_step_tokens", {NULL}, SUM},
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
        if (strcmp(last, f.a->name) != 0) metric_write_head(out, f.a->name, f.a->kind, f.any->help);
        last = f.a->name;
        write_one(out, &f, model);
    }
}
