/* transfer_report.c -- a transfer report as tables for people and as one JSON object for programs. */
#include "bench/transfer.h"
#include <jansson.h>

static bool is_way(const bench_transfer_report *r, int row) { return row < r->rows_count - 2; }

static void print_sizes(const bench_transfer_report *r, FILE *out) {
    fprintf(out, "%-10s %10s %8s %8s %8s %10s %10s %22s\n", "", "KiB", "GB/s", "min", "max", "of socket", "of memcpy",
            "CPU ns a byte: out, in");
    for (int row = 0; row < r->rows_count; row++)
        for (int i = 0; i < r->sizes; i++) {
            const bench_transfer_point *p = &r->rows[row].size[i];
            fprintf(out, "%-10s %10llu %8.2f %8.2f %8.2f %10.2f %10.2f %15.3f %6.3f\n", i ? "" : r->rows[row].name,
                    (unsigned long long)(bench_transfer_sizes[i] >> 10), p->rate.median / 1e9, p->rate.min / 1e9,
                    p->rate.max / 1e9, p->of_raw.median, p->of_copy.median, p->cpu_out, p->cpu_in);
        }
}

/* What sealing leaves of the speed, round by round. */
static void print_sealed(const bench_transfer_report *r, FILE *out) {
    fprintf(out, "\nsealed, of the same in the clear\n%-10s", "KiB");
    for (int i = 0; i < r->sizes; i++) fprintf(out, " %8llu", (unsigned long long)(bench_transfer_sizes[i] >> 10));
    fprintf(out, " %8s\n", "hand-off");
    for (int row = 0; row < r->rows_count; row++) {
        if (!r->rows[row].sealed) continue;
        fprintf(out, "%-10s", r->rows[row].name);
        for (int i = 0; i < r->sizes; i++) fprintf(out, " %8.2f", r->rows[row].size[i].of_clear.median);
        fprintf(out, " %8.2f\n", r->rows[row].handoff_clear.median);
    }
}

static void print_handoff(const bench_transfer_report *r, FILE *out) {
    double bytes = (double)bench_transfer_token_bytes(&bench_transfer_smollm) * TRANSFER_HANDOFF_TOKENS;
    fprintf(out, "\nhand-off of %d tokens of SmolLM2-135M in f16 (%.2f MB), from the last row pushed to the ACK\n",
            TRANSFER_HANDOFF_TOKENS, bytes / 1e6);
    fprintf(out, "%-10s %8s %8s %8s %12s %12s %28s\n", "", "ms", "min", "max", "of socket", "of memcpy",
            "one token, new link, ms");
    for (int row = 0; row < r->rows_count; row++) {
        const bench_transfer_row *x = &r->rows[row];
        fprintf(out, "%-10s %8.3f %8.3f %8.3f %12.2f %12.2f", x->name, x->handoff_ms.median, x->handoff_ms.min,
                x->handoff_ms.max, x->handoff_share.median, x->handoff_copy.median);
        if (is_way(r, row)) fprintf(out, " %28.3f", x->first_ms.median);
        fputc('\n', out);
    }
}

void bench_transfer_text(const bench_transfer_report *r, FILE *out) {
    print_sizes(r, out);
    print_handoff(r, out);
    print_sealed(r, out);
    if (r->missing.code != ST_OK) fprintf(out, "\nnot measured: %s\n", r->missing.text);
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static json_t *spread_json(bench_spread s) {
    return json_pack("{s:f, s:f, s:f}", "median", s.median, "min", s.min, "max", s.max);
}

static json_t *size_json(uint64_t bytes, const bench_transfer_point *p, bool sealed) {
    json_t *one = json_pack("{s:I, s:o, s:o, s:o, s:f, s:f}", "bytes", (json_int_t)bytes, "bytes_s", spread_json(p->rate),
                     "of_socket", spread_json(p->of_raw), "of_memcpy", spread_json(p->of_copy), "cpu_ns_byte_out",
                     p->cpu_out, "cpu_ns_byte_in", p->cpu_in);
    if (sealed) json_object_set_new(one, "of_clear", spread_json(p->of_clear));
    return one;
}

static json_t *row_json(const bench_transfer_report *r, int row) {
    const bench_transfer_row *x = &r->rows[row];
    json_t *sizes = json_array();
    for (int i = 0; i < r->sizes; i++)
        json_array_append_new(sizes, size_json(bench_transfer_sizes[i], &x->size[i], x->sealed));
    json_t *one = json_pack("{s:s, s:o, s:o, s:o, s:o}", "name", x->name, "sizes", sizes, "handoff_ms",
                            spread_json(x->handoff_ms), "handoff_of_socket", spread_json(x->handoff_share),
                            "handoff_of_memcpy", spread_json(x->handoff_copy));
    if (x->sealed) json_object_set_new(one, "handoff_of_clear", spread_json(x->handoff_clear));
    if (is_way(r, row)) json_object_set_new(one, "first_token_new_link_ms", spread_json(x->first_ms));
    return one;
}

status bench_transfer_json(const bench_transfer_report *r, FILE *out, error *err) {
    json_t *rows = json_array();
    for (int row = 0; row < r->rows_count; row++) json_array_append_new(rows, row_json(r, row));
    json_t *all = json_pack("{s:i, s:o}", "handoff_tokens", TRANSFER_HANDOFF_TOKENS, "rows", rows);
    if (!all) return error_set(err, ST_NO_MEMORY, "no memory for the report");
    bool written = json_dumpf(all, out, JSON_COMPACT) == 0 && fputc('\n', out) != EOF;
    json_decref(all);
    return written ? ST_OK : error_set(err, ST_IO, "the report cannot be written");
}
