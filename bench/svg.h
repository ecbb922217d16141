/* svg.h -- plots as SVG written by hand: panels of horizontal bars side by side. */
#ifndef BATON_BENCH_SVG_H
#define BATON_BENCH_SVG_H

#include <stdio.h>

typedef struct bench_svg_bar {
    char label[24], value[24];
    double size, min, max;       /* a thin line from min to max lies over the bar's end; max 0: none */
} bench_svg_bar;

/* rows: of the longest panel. */
void bench_svg_open(FILE *out, const char *head, int panels, int rows);
/* One group with its title, the longest bar as wide as there is room. */
void bench_svg_panel(FILE *out, int column, const char *title, const char *color, const bench_svg_bar *bars, int count);
void bench_svg_close(FILE *out);

#endif
