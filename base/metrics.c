/* metrics.c -- the registry: a list that only grows, written in Prometheus text format 0.0.4.
 *
 * A metric enters the list at its first use, by compare-and-swap on the list's head, and never
 * leaves it; so a walk needs no lock: what hangs on the head it read does not change. Values are
 * relaxed atomics: a scrape is a set of single readings, not one moment.
 *
 * Buckets of histograms come from one fixed room, because the step loop may be the first to use a
 * metric, and the step loop allocates nothing. */
#include "base/base.h"
#include <assert.h>
#include <math.h>
#include <string.h>

#define BUCKETS_MAX 4096                   /* over all histograms; metrics are static, so is their sum */

static int64_t bucket_room[BUCKETS_MAX];
static int bucket_used;
static metric *newest;

static int64_t load(const int64_t *value) { return __atomic_load_n(value, __ATOMIC_RELAXED); }

static void increase(int64_t *value, int64_t n) { __atomic_fetch_add(value, n, __ATOMIC_RELAXED); }

/* Only the thread that turns `registered` from 0 to 1 pushes. */
void metric_show(metric *m) {
    int none = 0;
    if (__atomic_load_n(&m->registered, __ATOMIC_RELAXED)) return;
    if (!__atomic_compare_exchange_n(&m->registered, &none, 1, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED))
        return;
    m->next = __atomic_load_n(&newest, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&newest, &m->next, m, false, __ATOMIC_RELEASE,
                                        __ATOMIC_RELAXED)) {
    }
}

void metric_add(metric *m, int64_t n) {
    metric_show(m);
    increase(&m->value, n);
}

void metric_set(metric *m, int64_t value) {
    metric_show(m);
    __atomic_store_n(&m->value, value, __ATOMIC_RELAXED);
}

int64_t metric_get(const metric *m) { return load(&m->value); }

double metric_sum(const metric *m) {
    double sum;
    __atomic_load(&m->sum, &sum, __ATOMIC_RELAXED);
    return sum;
}

/* Two threads may both claim room for the same histogram; the loser's stays unused. */
static int64_t *buckets_of(metric *m) {
    int64_t *buckets = __atomic_load_n(&m->buckets, __ATOMIC_ACQUIRE);
    if (buckets) return buckets;
    int count = m->bounds_count + 1;                       /* the last is +Inf */
    int first = __atomic_fetch_add(&bucket_used, count, __ATOMIC_RELAXED);
    assert(first + count <= BUCKETS_MAX);
    int64_t *fresh = bucket_room + first;
    return __atomic_compare_exchange_n(&m->buckets, &buckets, fresh, false, __ATOMIC_ACQ_REL,
                                       __ATOMIC_ACQUIRE)
               ? fresh
               : buckets;
}

void metric_observe(metric *m, double value) {
    assert(m->kind == METRIC_HISTOGRAM);
    if (isnan(value)) return;                              /* would make the sum NaN for ever */
    int i = 0;
    while (i < m->bounds_count && value > m->bounds[i]) i++;
    increase(&buckets_of(m)[i], 1);
    increase(&m->value, 1);
    double sum, more;
    __atomic_load(&m->sum, &sum, __ATOMIC_RELAXED);
    do more = sum + value;
    while (!__atomic_compare_exchange(&m->sum, &sum, &more, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
    metric_show(m);
}

void metrics_each(void (*visit)(const metric *m, void *ctx), void *ctx) {
    for (metric *m = __atomic_load_n(&newest, __ATOMIC_ACQUIRE); m; m = m->next) visit(m, ctx);
}

/* ---- text format ------------------------------------------------------------------------------- */

/* HELP escapes backslash and line feed. Labels come quoted and escaped from their author, so that
 * only a raw line feed, which would start a line of its own, is left to escape. */
static void write_escaped(FILE *out, const char *text, bool backslash) {
    for (; *text; text++) {
        if (*text == '\n')
            fputs("\\n", out);
        else if (*text == '\\' && backslash)
            fputs("\\\\", out);
        else
            fputc(*text, out);
    }
}

/* name_suffix{labels,le="bound"} without the value; le NULL: no such label. */
static void write_series(FILE *out, const char *name, const char *suffix, const char *labels, const char *le) {
    bool some = labels && *labels;
    fprintf(out, "%s%s", name, suffix);
    if (some || le) fputc('{', out);
    if (some) write_escaped(out, labels, false);
    if (le) fprintf(out, "%sle=\"%s\"", some ? "," : "", le);
    if (some || le) fputc('}', out);
    fputc(' ', out);
}

/* The count is the sum of the buckets as read here, so that +Inf and _count always agree. */
static void write_histogram(FILE *out, const metric *m, const char *name, const char *labels) {
    const int64_t *buckets = __atomic_load_n(&m->buckets, __ATOMIC_ACQUIRE);
    int64_t count = 0;
    for (int i = 0; i <= m->bounds_count; i++) {
        char le[32] = "+Inf";
        if (i < m->bounds_count) snprintf(le, sizeof le, "%.15g", m->bounds[i]);
        if (buckets) count += load(&buckets[i]);
        write_series(out, name, "_bucket", labels, le);
        fprintf(out, "%lld\n", (long long)count);
    }
    double sum = metric_sum(m);
    write_series(out, name, "_sum", labels, NULL);
    if (isinf(sum))
        fprintf(out, "%s\n", sum > 0 ? "+Inf" : "-Inf");
    else
        fprintf(out, "%.17g\n", sum);
    write_series(out, name, "_count", labels, NULL);
    fprintf(out, "%lld\n", (long long)count);
}

void metric_write_as(FILE *out, const metric *m, const char *name, const char *labels) {
    if (m->kind == METRIC_HISTOGRAM) {
        write_histogram(out, m, name, labels);
        return;
    }
    write_series(out, name, "", labels, NULL);
    if (m->kind == METRIC_SECONDS) fprintf(out, "%.6f\n", (double)load(&m->value) / 1e6);
    else fprintf(out, "%lld\n", (long long)load(&m->value));
}

void metric_write_head(FILE *out, const char *name, metric_kind kind, const char *help) {
    static const char *const kinds[] = {"counter", "gauge", "histogram", "counter"};
    if (help) {
        fprintf(out, "# HELP %s ", name);
        write_escaped(out, help, true);
        fputc('\n', out);
    }
    fprintf(out, "# TYPE %s %s\n", name, kinds[kind]);
}

/* The format wants all series of one name together under one HELP and TYPE: the first of a name in
 * the list writes its whole family. Quadratic in some hundred metrics, once a scrape. */
void metrics_write(FILE *out) {
    const metric *head = __atomic_load_n(&newest, __ATOMIC_ACQUIRE);
    for (const metric *m = head; m; m = m->next) {
        const metric *first = head;
        while (strcmp(first->name, m->name) != 0) first = first->next;
        if (first != m) continue;
        metric_write_head(out, m->name, m->kind, m->help);
        for (const metric *same = m; same; same = same->next)
            if (strcmp(same->name, m->name) == 0) metric_write_as(out, same, same->name, same->labels);
    }
}
