/* base_metrics.c -- tests base/metrics.c: what the Prometheus text says, and many threads at once. */
#include "base/base.h"
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

METRIC(crc, "baton_test_refused_total", "reason=\"crc\"", METRIC_COUNTER, "Frames\nrefused \\ why.");
METRIC(other, "baton_test_between", NULL, METRIC_GAUGE, "Stands between two of one family.");
METRIC(epoch, "baton_test_refused_total", "reason=\"epoch\"", METRIC_COUNTER,
       "Frames\nrefused \\ why.");
METRIC(spent, "baton_test_spent_seconds_total", NULL, METRIC_SECONDS, "Counted in microseconds.");
METRIC(shown, "baton_test_shown_total", NULL, METRIC_COUNTER, "Nothing yet.");
static const double bounds[] = {0.01, 0.5, 2};
static metric seconds = {.name = "baton_test_seconds", .labels = "node=\"p1\"", .help = "Time.",
                         .kind = METRIC_HISTOGRAM, .bounds = bounds, .bounds_count = 3};

static char *written(void) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    metrics_write(out);
    fclose(out);
    return text;
}

static void writes_families_and_buckets(void **state) {
    (void)state;
    metric_add(&crc, 2);
    metric_set(&other, -7);
    metric_add(&epoch, 3);
    metric_observe(&seconds, 0.01);      /* a bound belongs to its bucket */
    metric_observe(&seconds, 1);
    metric_observe(&seconds, 100);
    metric_observe(&seconds, NAN);       /* not counted */
    metric_add(&spent, 1500000);
    metric_show(&shown);
    assert_int_equal(metric_get(&crc), 2);
    assert_int_equal(metric_get(&seconds), 3);
    assert_true(metric_sum(&seconds) == 0.01 + 1 + 100);
    char *text = written();
    assert_string_equal(text,
        "# HELP baton_test_shown_total Nothing yet.\n# TYPE baton_test_shown_total counter\nbaton_test_shown_total 0\n"
        "# HELP baton_test_spent_seconds_total Counted in microseconds.\n# TYPE baton_test_spent_seconds_total counter\n"
        "baton_test_spent_seconds_total 1.500000\n"
        "# HELP baton_test_seconds Time.\n# TYPE baton_test_seconds histogram\n"
        "baton_test_seconds_bucket{node=\"p1\",le=\"0.01\"} 1\n"
        "baton_test_seconds_bucket{node=\"p1\",le=\"0.5\"} 1\n"
        "baton_test_seconds_bucket{node=\"p1\",le=\"2\"} 2\n"
        "baton_test_seconds_bucket{node=\"p1\",le=\"+Inf\"} 3\n"
        "baton_test_seconds_sum{node=\"p1\"} 101.01000000000001\n"
        "baton_test_seconds_count{node=\"p1\"} 3\n"
        "# HELP baton_test_refused_total Frames\\nrefused \\\\ why.\n"
        "# TYPE baton_test_refused_total counter\n"
        "baton_test_refused_total{reason=\"epoch\"} 3\n"
        "baton_test_refused_total{reason=\"crc\"} 2\n"
        "# HELP baton_test_between Stands between two of one family.\n"
        "# TYPE baton_test_between gauge\n"
        "baton_test_between -7\n");
    free(text);
}

METRIC(shared_count, "baton_test_shared_total", NULL, METRIC_COUNTER, "Many threads.");
static metric shared_time = {.name = "baton_test_shared_seconds", .help = "Many threads.",
                             .kind = METRIC_HISTOGRAM, .bounds = bounds, .bounds_count = 3};
enum { THREADS = 4, ROUNDS = 5000 };

static void *count_many(void *ctx) {
    (void)ctx;
    for (int i = 0; i < ROUNDS; i++) {
        metric_add(&shared_count, 1);
        metric_observe(&shared_time, i % 3);
        if (i % 1000 == 0) free(written());
    }
    return NULL;
}

static void count_listed(const metric *m, void *ctx) {
    if (m == &shared_count || m == &shared_time) (*(int *)ctx)++;
}

static void counts_from_many_threads(void **state) {
    (void)state;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count_many, NULL), 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    int listed = 0;
    metrics_each(count_listed, &listed);
    assert_int_equal(listed, 2);         /* each once, however many threads came first */
    assert_int_equal(metric_get(&shared_count), THREADS * ROUNDS);
    assert_int_equal(metric_get(&shared_time), THREADS * ROUNDS);
    int64_t sum = 0;
    for (int i = 0; i < 4; i++) sum += shared_time.buckets[i];
    assert_int_equal(sum, THREADS * ROUNDS);
    int once = 0;
    for (int i = 0; i < ROUNDS; i++) once += i % 3;
    assert_true(shared_time.sum == (double)THREADS * once);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_families_and_buckets),
        cmocka_unit_test(counts_from_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
