/* report.c -- a report as a table for people and as one JSON object for programs. Both show the same
 * numbers: medians with the least and the most of the repeats. */
#include "bench/bench.h"
#include <jansson.h>

const char *const bench_kind_names[BENCH_KINDS] = {"int8", "float", "read"};
static const char *const units[BENCH_KINDS] = {"GMAC/s", "GMAC/s", "GB/s"};

double bench_report_limit(const bench_report *r, bench_kind kind) {
    double best = 0;
    for (int i = 0; i < r->limits_count; i++)
        if (r->limits[i].kind == kind && r->limits[i].rate.median > best) best = r->limits[i].rate.median;
    return best;
}

double bench_report_rate(const bench_point *p) {
    double ms = p->part == BENCH_ATTENTION ? p->op_ms.median : p->ms.median;
    return ms > 0 ? p->work / ms / 1e6 : 0;
}

/* Of the limit; below 0: the limit was not measured. */
static double share(const bench_report *r, const bench_point *p) {
    double limit = bench_report_limit(r, p->limit);
    return limit > 0 ? bench_report_rate(p) / limit : -1;
}

/* ---- text ---------------------------------------------------------------------------------------- */

static void print_share(FILE *out, double value) {
    if (value < 0) fprintf(out, "%9s\n", "-");
    else fprintf(out, "%7.1f %%\n", value * 100);
}

static void print_limits(const bench_report *r, FILE *out) {
    fprintf(out, "\nlimit  %-22s %10s %10s %10s\n", "probe", "median", "min", "max");
    for (int i = 0; i < r->limits_count; i++) {
        const bench_limit *l = &r->limits[i];
        fprintf(out, "%-6s %-22s %10.1f %10.1f %10.1f %s\n", bench_kind_names[l->kind], l->name,
                l->rate.median, l->rate.min, l->rate.max, units[l->kind]);
    }
}

/* Prefill and decode: tok/s first. */
static void print_points(const bench_report *r, bench_part part, FILE *out) {
    const char *size = part == BENCH_PREFILL ? "tokens" : "batch";
    bool begun = false;
    for (int i = 0; i < r->points_count; i++) {
        const bench_point *p = &r->points[i];
        if (p->part != part) continue;
        if (!begun)
            fprintf(out, "\n%-9s %6s %10s %10s %10s %10s %10s %-7s %8s\n", bench_part_names[part], size,
                    "tok/s", "min", "max", "ms", "rate", "", "of limit");
        begun = true;
        fprintf(out, "%-9s %6d %10.1f %10.1f %10.1f %10.3f %10.1f %-7s", "", p->size, p->tok_s.median,
                p->tok_s.min, p->tok_s.max, p->ms.median, bench_report_rate(p), units[p->limit]);
        print_share(out, share(r, p));
    }
}

static void print_attention(const bench_report *r, FILE *out) {
    bool begun = false;
    for (int i = 0; i < r->points_count; i++) {
        const bench_point *p = &r->points[i];
        if (p->part != BENCH_ATTENTION) continue;
        if (!begun)
            fprintf(out, "\n%-9s %6s %10s %10s %10s %10s %10s %-7s %8s\n", "attention", "rows", "context",
                    "step ms", "op ms", "of step", "rate", "", "of limit");
        begun = true;
        fprintf(out, "%-9s %6d %10d %10.3f %10.3f %8.1f %% %10.1f %-7s", "", p->rows, p->size,
                p->ms.median, p->op_ms.median, p->ms.median > 0 ? p->op_ms.median / p->ms.median * 100 : 0,
                bench_report_rate(p), units[p->limit]);
        print_share(out, share(r, p));
    }
}

static void print_ops(const bench_report *r, FILE *out) {
    double many = 0, one = 0;
    if (!r->ops_count) return;
    for (int i = 0; i < r->ops_count; i++) many += r->ops[i].prefill_ms, one += r->ops[i].decode_ms;
    fprintf(out, "\nop           prefill 512, ms    share    decode 1, ms    share\n");
    for (int i = 0; i < r->ops_count; i++) {
        const bench_op *o = &r->ops[i];
        fprintf(out, "%-12s %15.3f %6.1f %% %15.3f %6.1f %%\n", o->name, o->prefill_ms,
                many > 0 ? o->prefill_ms / many * 100 : 0, o->decode_ms, one > 0 ? o->decode_ms / one * 100 : 0);
    }
}

void bench_report_text(const bench_report *r, FILE *out) {
    fprintf(out, "%s, %s, %d thread%s, KV %s\n%s\n%.1f MB of weights and %.1f M multiply-adds a token; "
            "median of %d\n", r->model, r->numerics, r->threads, r->threads == 1 ? "" : "s", r->kv_type,
            r->cpu, r->weights_bytes / 1e6, r->weights_macs / 1e6, BENCH_REPEATS);
    if (r->limits_count) print_limits(r, out);
    print_points(r, BENCH_PREFILL, out);
    print_points(r, BENCH_DECODE, out);
    print_attention(r, out);
    print_ops(r, out);
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static json_t *spread_json(bench_spread s) {
    return json_pack("{s:f, s:f, s:f}", "median", s.median, "min", s.min, "max", s.max);
}

static json_t *share_json(double value) { return value < 0 ? json_null() : json_real(value); }

static json_t *limits_json(const bench_report *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->limits_count; i++) {
        const bench_limit *l = &r->limits[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:o}", "kind", bench_kind_names[l->kind],
                                              "probe", l->name, "unit", units[l->kind], "rate",
                                              spread_json(l->rate)));
    }
    return list;
}

/* size: the key of p->size, which differs by part. */
static json_t *points_json(const bench_report *r, bench_part part, const char *size) {
    json_t *list = json_array();
    for (int i = 0; i < r->points_count; i++) {
        const bench_point *p = &r->points[i];
        if (p->part != part) continue;
        json_t *one = json_pack("{s:i, s:i, s:o, s:o, s:f, s:s, s:o}", size, p->size, "rows", p->rows,
                                "tok_s", spread_json(p->tok_s), "ms", spread_json(p->ms), "rate",
                                bench_report_rate(p), "unit", units[p->limit], "share",
                                share_json(share(r, p)));
        if (part == BENCH_ATTENTION) json_object_set_new(one, "op_ms", spread_json(p->op_ms));
        if (part == BENCH_DECODE) json_object_set_new(one, "context", json_integer(BENCH_CONTEXT));
        json_array_append_new(list, one);
    }
    return list;
}

static json_t *ops_json(const bench_report *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->ops_count; i++)
        json_array_append_new(list, json_pack("{s:s, s:f, s:f}", "op", r->ops[i].name, "prefill_512_ms",
                                              r->ops[i].prefill_ms, "decode_1_ms", r->ops[i].decode_ms));
    return list;
}

status bench_report_json(const bench_report *r, FILE *out, error *err) {
    json_t *all = json_pack(
        "{s:s, s:s, s:s, s:s, s:i, s:s, s:b, s:i, s:f, s:f, s:o, s:o, s:o, s:o, s:o}", "model", r->model,
        "digest", r->digest, "numerics", r->numerics, "cpu", r->cpu, "threads", r->threads, "kv_dtype",
        r->kv_type, "quick", r->quick, "repeats", BENCH_REPEATS, "weights_bytes", r->weights_bytes,
        "weights_macs", r->weights_macs, "limits", limits_json(r), "prefill",
        points_json(r, BENCH_PREFILL, "tokens"), "decode", points_json(r, BENCH_DECODE, "batch"), "attention",
        points_json(r, BENCH_ATTENTION, "context"), "ops", ops_json(r));
    if (!all) return error_set(err, ST_NO_MEMORY, "no memory for the report");
    bool written = json_dumpf(all, out, JSON_COMPACT) == 0 && fputc('\n', out) != EOF;
    json_decref(all);
    return written ? ST_OK : error_set(err, ST_IO, "the report cannot be written");
}
