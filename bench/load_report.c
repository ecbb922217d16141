/* load_report.c -- a load's figures as text for people, as one JSON object for programs, and as a plot. */
#include "bench/load.h"
#include "bench/svg.h"
#include <jansson.h>

static const double shares[] = {0.5, 0.9, 0.99, 1};
static const char *const share_names[] = {"p50", "p90", "p99", "max"};
enum { SHARES = sizeof shares / sizeof *shares };

typedef struct latency {
    const char *key, *title;
    const bench_histogram *h;
} latency;

enum { LATENCIES = 7 };

static void list_latencies(const bench_load_figures *f, latency out[LATENCIES]) {
    const latency all[LATENCIES] = {
        {"ttft_ms", "TTFT", &f->ttft},           {"itl_ms", "ITL (gap between chunks)", &f->gap},
        {"tpot_ms", "TPOT (mean gap)", &f->tpot}, {"e2e_ms", "E2E", &f->e2e},
        {"queue_ms", "queue, as told", &f->queue}, {"refusal_ms", "refusal", &f->refusal},
        {"late_ms", "sent late", &f->late},
    };
    for (int i = 0; i < LATENCIES; i++) out[i] = all[i];
}

static double at_ms(const bench_histogram *h, double share) { return (double)bench_histogram_at(h, share) / 1000; }

static double per_second(const bench_load_figures *f, int64_t count) {
    return f->seconds > 0 ? (double)count / f->seconds : 0;
}

static double share_met(const bench_load_figures *f) {
    return f->planned > 0 ? (double)f->met / (double)f->planned : 0;
}

/* ---- text ------------------------------------------------------------------------------------------- */

static void print_counts(const bench_load_figures *f, FILE *out) {
    fprintf(out, "%lld requests in %.1f s: %lld answered, %lld refused", (long long)f->planned, f->seconds,
            (long long)f->answered, (long long)f->refused);
    if (f->refused) fprintf(out, " (%lld with a hint when to come back)", (long long)f->refused_with_hint);
    fprintf(out, ", %lld failed", (long long)f->failed_count);
    if (f->not_sent) fprintf(out, ", %lld NOT SENT (too many streams were open)", (long long)f->not_sent);
    if (f->unfinished) fprintf(out, ", %lld not finished", (long long)f->unfinished);
    if (f->planned > f->sent + f->not_sent)
        fprintf(out, ", %lld never arrived (ended early)", (long long)(f->planned - f->sent - f->not_sent));
    fputc('\n', out);
    for (int i = 0; i < ST_COUNT; i++)
        if (f->failed[i]) fprintf(out, "  failed: %lld %s\n", (long long)f->failed[i], status_text((status)i));
    if (f->short_answers) fprintf(out, "  %lld answers shorter than asked for\n", (long long)f->short_answers);
    if (f->retried) fprintf(out, "  %lld answers were placed again on the way\n", (long long)f->retried);
    if (f->slow)
        fprintf(out, "  beside them %lld slow readers: %lld tokens read, %lld read to the end\n", (long long)f->slow,
                (long long)f->slow_tokens, (long long)f->slow_answered);
}

static void print_latencies(const bench_load_figures *f, FILE *out) {
    latency list[LATENCIES];
    list_latencies(f, list);
    fprintf(out, "\n%-26s %10s %10s %10s %10s %10s\n", "ms", "p50", "p90", "p99", "max", "mean");
    for (int i = 0; i < LATENCIES; i++) {
        if (list[i].h->count == 0) continue;
        fprintf(out, "%-26s", list[i].title);
        for (int k = 0; k < SHARES; k++) fprintf(out, " %10.1f", at_ms(list[i].h, shares[k]));
        fprintf(out, " %10.1f\n", bench_histogram_mean(list[i].h) / 1000);
    }
}

/* Answers to random prompts soon repeat themselves and are easily guessed, more so than answers to real ones. */
static void print_guessed(const bench_load_figures *f, FILE *out) {
    static const double much = 0.2;
    fprintf(out, "speculation guessed %lld of %lld tokens of whole answers (%.1f %%)\n", (long long)f->accepted_tokens,
            (long long)f->whole_tokens, bench_load_guessed(f) * 100);
    if (bench_load_guessed(f) > much)
        fprintf(out, "  answers to random prompts soon repeat themselves, so ITL and TPOT flatter:\n"
                     "  compare with nodes of --speculate off (with --model: BATON_SPECULATE=off)\n");
}

static void print_nodes(const bench_load_figures *f, FILE *out) {
    for (int role = 0; role < BENCH_LOAD_ROLES; role++) {
        int64_t all_us = bench_load_nodes_us(&f->nodes, role);
        if (all_us == 0) continue;
        fprintf(out, "%s nodes' time:", bench_load_roles[role]);
        for (int i = 0; i < f->nodes.parts; i++) {
            int64_t us = f->nodes.part[i].us[role];
            if (us > 0) fprintf(out, " %s %.1f %%", f->nodes.part[i].name, 100.0 * (double)us / (double)all_us);
        }
        fputc('\n', out);
    }
}

void bench_load_text(const bench_load_figures *f, FILE *out) {
    print_counts(f, out);
    print_latencies(f, out);
    fprintf(out, "\ngoodput %.2f requests/s: %lld of %lld (%.1f %%) within TTFT %g ms and mean TPOT %g ms\n",
            bench_load_goodput(f), (long long)f->met, (long long)f->planned, share_met(f) * 100, f->slo.ttft_ms,
            f->slo.tpot_ms);
    fprintf(out, "tokens/s: %.1f of answers, %.1f of prompts (%.1f %% of them cached)\n", per_second(f, f->answer_tokens),
            per_second(f, f->prompt_tokens),
            f->prompt_tokens ? 100.0 * (double)f->cached_tokens / (double)f->prompt_tokens : 0);
    print_guessed(f, out);
    if (f->told) {
        fprintf(out, "mean ms by stage:");
        for (int i = 0; i < STAGES; i++) fprintf(out, " %s %.1f", bench_load_stage_names[i], f->stage_ms[i]);
        fputc('\n', out);
    }
    print_nodes(f, out);
    fprintf(out, "client: %.1f %% of a core\n", f->client_cpu * 100);
}

/* ---- JSON ------------------------------------------------------------------------------------------- */

static json_t *counts_json(const bench_load_figures *f) {
    json_t *failed = json_object();
    for (int i = 0; i < ST_COUNT; i++)
        if (f->failed[i]) json_object_set_new(failed, status_name((status)i), json_integer(f->failed[i]));
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I}", "planned", (json_int_t)f->planned, "sent",
                     (json_int_t)f->sent, "answered", (json_int_t)f->answered, "refused", (json_int_t)f->refused,
                     "refused_with_hint", (json_int_t)f->refused_with_hint, "failed", failed, "not_sent",
                     (json_int_t)f->not_sent, "unfinished", (json_int_t)f->unfinished, "short_answers",
                     (json_int_t)f->short_answers, "placed_again", (json_int_t)f->retried);
}

static json_t *latencies_json(const bench_load_figures *f, json_t *all) {
    latency list[LATENCIES];
    list_latencies(f, list);
    for (int i = 0; i < LATENCIES; i++) {
        json_t *one = json_pack("{s:I, s:f}", "count", (json_int_t)list[i].h->count, "mean",
                                bench_histogram_mean(list[i].h) / 1000);
        for (int k = 0; k < SHARES; k++) json_object_set_new(one, share_names[k], json_real(at_ms(list[i].h, shares[k])));
        json_object_set_new(all, list[i].key, one);
    }
    return all;
}

static json_t *pieces_json(const bench_load_figures *f) {
    json_t *list = json_array();
    for (int i = 0; i < f->pieces; i++)
        json_array_append_new(list, json_pack("{s:f, s:I, s:I, s:I}", "from_s", i * f->piece_s, "arrived",
                                              (json_int_t)f->piece[i].arrived, "answered",
                                              (json_int_t)f->piece[i].answered, "met", (json_int_t)f->piece[i].met));
    return list;
}

static json_t *stages_json(const bench_load_figures *f) {
    json_t *stages = json_object();
    for (int i = 0; i < STAGES && f->told; i++)
        json_object_set_new(stages, bench_load_stage_names[i], json_real(f->stage_ms[i]));
    return stages;
}

/* Seconds. */
static json_t *nodes_json(const bench_load_figures *f) {
    json_t *roles = json_object();
    for (int role = 0; role < BENCH_LOAD_ROLES; role++) {
        if (bench_load_nodes_us(&f->nodes, role) == 0) continue;
        json_t *parts = json_object();
        for (int i = 0; i < f->nodes.parts; i++)
            json_object_set_new(parts, f->nodes.part[i].name, json_real((double)f->nodes.part[i].us[role] / 1e6));
        json_object_set_new(roles, bench_load_roles[role], parts);
    }
    return roles;
}

status bench_load_json(const bench_load_figures *f, FILE *out, error *err) {
    json_t *all = json_pack(
        "{s:o, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:f}", "requests", counts_json(f), "seconds", f->seconds,
        "answered_s", per_second(f, f->answered), "answer_tokens_s", per_second(f, f->answer_tokens), "prompt_tokens_s",
        per_second(f, f->prompt_tokens), "cached_tokens_s", per_second(f, f->cached_tokens), "slo",
        json_pack("{s:f, s:f, s:I, s:f, s:f}", "ttft_ms", f->slo.ttft_ms, "tpot_ms", f->slo.tpot_ms, "met",
                  (json_int_t)f->met, "share_met", share_met(f), "goodput_s", bench_load_goodput(f)),
        "speculation", json_pack("{s:I, s:I, s:f}", "accepted_tokens", (json_int_t)f->accepted_tokens, "of_tokens",
                                 (json_int_t)f->whole_tokens, "share", bench_load_guessed(f)),
        "stages_ms", stages_json(f), "nodes_s", nodes_json(f), "pieces", pieces_json(f), "client_cpu", f->client_cpu);
    if (!all) return error_set(err, ST_NO_MEMORY, "no memory for the report");
    latencies_json(f, all);
    if (f->slow)
        json_object_set_new(all, "slow_readers", json_pack("{s:I, s:I, s:I}", "count", (json_int_t)f->slow, "answered",
                                                           (json_int_t)f->slow_answered, "tokens", (json_int_t)f->slow_tokens));
    bool written = json_dumpf(all, out, JSON_COMPACT | JSON_REAL_PRECISION(9)) == 0 && fputc('\n', out) != EOF;
    json_decref(all);
    return written ? ST_OK : error_set(err, ST_IO, "the report cannot be written");
}

/* ---- plot ------------------------------------------------------------------------------------------- */

static const double bar_shares[] = {0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1};
enum { BARS = sizeof bar_shares / sizeof *bar_shares };

static void latency_panel(FILE *out, int column, const char *title, const bench_histogram *h) {
    bench_svg_bar bars[BARS] = {{.size = 0}};
    for (int i = 0; i < BARS; i++) {
        bars[i].size = at_ms(h, bar_shares[i]);
        snprintf(bars[i].value, sizeof bars[i].value, "%.1f", bars[i].size);
        if (bar_shares[i] < 1) snprintf(bars[i].label, sizeof bars[i].label, "p%g", bar_shares[i] * 100);
        else snprintf(bars[i].label, sizeof bars[i].label, "max");
    }
    bench_svg_panel(out, column, title, "#4878a8", bars, BARS);
}

static void stage_panel(FILE *out, int column, const bench_load_figures *f) {
    bench_svg_bar bars[STAGES] = {{.size = 0}};
    for (int i = 0; i < STAGES; i++) {
        bars[i].size = f->stage_ms[i];
        snprintf(bars[i].label, sizeof bars[i].label, "%s", bench_load_stage_names[i]);
        snprintf(bars[i].value, sizeof bars[i].value, "%.1f", f->stage_ms[i]);
    }
    bench_svg_panel(out, column, "mean ms by stage", "#c8803c", bars, STAGES);
}

static void time_panel(FILE *out, int column, const bench_load_figures *f) {
    bench_svg_bar bars[BENCH_LOAD_PIECES_MAX] = {{.size = 0}};
    for (int i = 0; i < f->pieces; i++) {
        const bench_load_piece *p = &f->piece[i];
        bars[i].size = (double)p->met / f->piece_s;
        snprintf(bars[i].label, sizeof bars[i].label, "%.0f s", i * f->piece_s);
        snprintf(bars[i].value, sizeof bars[i].value, "%lld of %lld", (long long)p->met, (long long)p->arrived);
    }
    bench_svg_panel(out, column, "met the SLO, by arrival", "#5a9a5a", bars, f->pieces);
}

void bench_load_svg(const bench_load_figures *f, FILE *out) {
    char head[240];
    snprintf(head, sizeof head, "%lld requests, %lld answered, %lld refused; goodput %.2f requests/s (TTFT %g ms, TPOT "
             "%g ms: %.1f %%); %.0f answer tokens/s", (long long)f->planned, (long long)f->answered, (long long)f->refused,
             bench_load_goodput(f), f->slo.ttft_ms, f->slo.tpot_ms, share_met(f) * 100, per_second(f, f->answer_tokens));
    bench_svg_open(out, head, 5, f->pieces > BARS ? f->pieces : BARS);
    latency_panel(out, 0, "TTFT, ms", &f->ttft);
    latency_panel(out, 1, "gap between chunks, ms", &f->gap);
    latency_panel(out, 2, "E2E, ms", &f->e2e);
    stage_panel(out, 3, f);
    time_panel(out, 4, f);
    bench_svg_close(out);
}
