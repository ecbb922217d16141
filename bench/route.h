/* route.h -- how long the coordinator takes to decide: what `baton bench route` measures and how it is shown. */
#ifndef BATON_BENCH_ROUTE_H
#define BATON_BENCH_ROUTE_H

#include "base/base.h"

typedef struct bench_route_row {
    const char *name;            /* "half cached by 20 nodes" */
    double p50_us, p99_us, max_us;
} bench_route_row;

enum { BENCH_ROUTE_CASES = 4 };

typedef struct bench_route_report {
    int nodes, tokens, page_tokens, pages_each, decisions;
    bench_route_row rows[BENCH_ROUTE_CASES];
} bench_route_report;

/* quick: fewer pages a node and fewer decisions. */
status bench_route_run(bool quick, bench_route_report *out, error *err);
void bench_route_text(const bench_route_report *r, FILE *out);
status bench_route_json(const bench_route_report *r, FILE *out, error *err);

#endif
