/* svg.c -- bars as SVG, and the engine's report as such a plot: its bars are medians, the thin line over a bar's end goes
 * from the least to the most of the repeats. */
#include "bench/svg.h"
#include "bench/bench.h"

enum { ROW = 22, TOP = 74, LABEL = 84, BAR = 210, VALUE = 76, PANEL = LABEL + BAR + VALUE };

static void write_text(FILE *out, int x, int y, const char *style, const char *text) {
    fprintf(out, "<text x=\"%d\" y=\"%d\" %s>", x, y, style);
    for (const char *c = text; *c; c++) {
        if (*c == '<') fputs("&lt;", out);
        else if (*c == '>') fputs("&gt;", out);
        else if (*c == '&') fputs("&amp;", out);
        else if ((unsigned char)*c >= ' ') fputc(*c, out);
    }
    fputs("</text>\n", out);
}

void bench_svg_panel(FILE *out, int column, const char *title, const char *color, const bench_svg_bar *bars, int count) {
    int left = 20 + column * PANEL;
    double most = 0;
    for (int i = 0; i < count; i++) {
        double end = bars[i].max > bars[i].size ? bars[i].max : bars[i].size;
        if (end > most) most = end;
    }
    double scale = most > 0 ? BAR / most : 0;
    write_text(out, left, TOP - 12, "font-weight=\"bold\"", title);
    for (int i = 0; i < count; i++) {
        int y = TOP + i * ROW, middle = y + (ROW - 6) / 2;
        double end = bars[i].max > bars[i].size ? bars[i].max : bars[i].size;
        write_text(out, left + LABEL - 8, y + 12, "text-anchor=\"end\"", bars[i].label);
        fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", left + LABEL, y,
                bars[i].size * scale, ROW - 6, color);
        if (bars[i].max > 0)
            fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#222\"/>\n",
                    left + LABEL + bars[i].min * scale, left + LABEL + bars[i].max * scale, middle, middle);
        write_text(out, left + LABEL + (int)(end * scale) + 6, y + 12, "fill=\"#555\"", bars[i].value);
    }
}

void bench_svg_open(FILE *out, const char *head, int panels, int rows) {
    fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" "
            "fill=\"#fff\"/>\n", 40 + panels * PANEL, TOP + rows * ROW + 20);
    write_text(out, 20, 28, "font-size=\"14\"", head);
}

void bench_svg_close(FILE *out) { fputs("</svg>\n", out); }

/* ---- the engine's report ---------------------------------------------------------------------------- */

static int speed_bars(const bench_report *r, bench_svg_bar *bars) {
    int count = 0;
    for (int i = 0; i < r->points_count; i++) {
        const bench_point *p = &r->points[i];
        if (p->part != BENCH_PREFILL && p->part != BENCH_DECODE) continue;
        bench_svg_bar *b = &bars[count++];
        *b = (bench_svg_bar){.size = p->tok_s.median, .min = p->tok_s.min, .max = p->tok_s.max};
        snprintf(b->label, sizeof b->label, "%s %d", bench_part_names[p->part], p->size);
        snprintf(b->value, sizeof b->value, "%.0f", p->tok_s.median);
    }
    return count;
}

static int op_bars(const bench_report *r, bool decode, bench_svg_bar *bars) {
    double total = 0;
    for (int i = 0; i < r->ops_count; i++) total += decode ? r->ops[i].decode_ms : r->ops[i].prefill_ms;
    for (int i = 0; i < r->ops_count; i++) {
        double ms = decode ? r->ops[i].decode_ms : r->ops[i].prefill_ms;
        bars[i] = (bench_svg_bar){.size = total > 0 ? ms / total : 0};
        snprintf(bars[i].label, sizeof bars[i].label, "%s", r->ops[i].name);
        snprintf(bars[i].value, sizeof bars[i].value, "%.1f %%", bars[i].size * 100);
    }
    return r->ops_count;
}

void bench_svg_write(const bench_report *r, FILE *out) {
    bench_svg_bar speed[BENCH_POINTS_MAX], many[BENCH_OPS_MAX], one[BENCH_OPS_MAX];
    int speeds = speed_bars(r, speed), ops = op_bars(r, false, many);
    int rows = speeds > ops ? speeds : ops;
    char head[320];
    op_bars(r, true, one);
    snprintf(head, sizeof head, "%.80s, %s, %d thread%s, KV %s; %s", r->model, r->numerics, r->threads,
             r->threads == 1 ? "" : "s", r->kv_type, r->cpu);
    bench_svg_open(out, head, 3, rows);
    bench_svg_panel(out, 0, "tokens per second (decode at context 128)", "#4878a8", speed, speeds);
    bench_svg_panel(out, 1, "time by op, prefill of 512", "#c8803c", many, ops);
    bench_svg_panel(out, 2, "time by op, decode of 1", "#c8803c", one, ops);
    bench_svg_close(out);
}
