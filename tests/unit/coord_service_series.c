/* coord_service_series.c -- tests coordinator/series.c: what the metrics of links and tenants are called, and how many there may be. */
#include "coordinator/service.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const metric pair[] = {
    {.name = "baton_test_bytes_total", .kind = METRIC_COUNTER, .help = "Bytes."},
    {.name = "baton_test_seconds_total", .labels = "part=\"hidden\"", .kind = METRIC_SECONDS, .help = "Seconds."},
};

/* Is there such a line among all? */
static bool says(const char *line) {
    char *text = NULL, wanted[400];
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    metrics_write(out);
    fclose(out);
    snprintf(wanted, sizeof wanted, "\n%s\n", line);
    bool found = strstr(text, wanted) != NULL;
    free(text);
    return found;
}

static metric *row_of(coord_series *s, const char *from) {
    char labels[COORD_LABELS_BYTES] = "";
    coord_series_label(labels, "from", from);
    return coord_series_row(s, labels);
}

static void one_row_for_the_same_labels(void **state) {
    (void)state;
    static coord_series s = {.metrics = pair, .count = 2, .rows_max = 10, .rest_labels = "from=\"other\""};
    metric *a = row_of(&s, "a"), *b = row_of(&s, "b");
    assert_ptr_not_equal(a, b);
    assert_ptr_equal(row_of(&s, "a"), a);
    assert_ptr_not_equal(row_of(&s, "ab"), a);
    metric_add(&a[0], 7);
    metric_add(&a[1], 1500000);
    assert_true(says("baton_test_bytes_total{from=\"a\"} 7"));
    assert_true(says("baton_test_seconds_total{from=\"a\",part=\"hidden\"} 1.500000"));
    assert_true(says("baton_test_bytes_total{from=\"b\"} 0"));
    assert_false(says("baton_test_bytes_total{from=\"other\"} 0"));
    assert_ptr_equal(coord_series_row(&s, NULL), row_of(&s, "other"));       /* a node of that name is one of them */
    assert_true(says("baton_test_bytes_total{from=\"other\"} 0"));
}

/* A name is what a node or a certificate says: it can end no label and no line, and is no longer than there is room for. */
static void any_name(void **state) {
    (void)state;
    char labels[COORD_LABELS_BYTES] = "", name[300];
    coord_series_label(labels, "from", "a\"b\\c\nd\xc3\xa4");
    assert_string_equal(labels, "from=\"a\\\"b\\\\c?d??\"");
    coord_series_label(labels, "to", "");
    assert_string_equal(labels, "from=\"a\\\"b\\\\c?d??\",to=\"\"");
    memset(name, '"', sizeof name - 1);
    name[sizeof name - 1] = 0;
    labels[0] = 0;
    for (int i = 0; i < 5; i++) coord_series_label(labels, "name", name);    /* there is room for two */
    size_t each = strlen("name=\"\"") + 2 * 63;
    assert_int_equal(strlen(labels), 2 * each + 1);
    assert_int_equal(labels[each], ',');
    assert_int_equal(labels[2 * each], '"');
}

static void bounded(void **state) {
    (void)state;
    static coord_series s = {.metrics = pair, .count = 2, .rows_max = COORD_ROWS_MAX, .rest_labels = "from=\"rest\""};
    static metric *rows[COORD_ROWS_MAX];
    char name[20];
    for (int i = 0; i < COORD_ROWS_MAX; i++) {
        snprintf(name, sizeof name, "node-%d", i);
        rows[i] = row_of(&s, name);
        metric_add(rows[i], i);
    }
    metric *rest = coord_series_row(&s, NULL);
    for (int i = 0; i < 10; i++) {
        snprintf(name, sizeof name, "late-%d", i);
        assert_ptr_equal(row_of(&s, name), rest);
    }
    for (int i = 0; i < COORD_ROWS_MAX; i++) {               /* whoever was there stays */
        snprintf(name, sizeof name, "node-%d", i);
        assert_ptr_equal(row_of(&s, name), rows[i]);
        assert_int_equal(metric_get(rows[i]), i);
    }
    assert_true(says("baton_test_bytes_total{from=\"node-1023\"} 1023"));
    assert_false(says("baton_test_bytes_total{from=\"late-0\"} 0"));
}

static void no_memory(void **state) {
    (void)state;
    static coord_series s = {.metrics = pair, .count = 2, .rows_max = 10, .rest_labels = "from=\"poor\""};
    mem_fail_at(1);
    metric *row = row_of(&s, "x");
    mem_fail_at(0);
    assert_ptr_equal(row, coord_series_row(&s, NULL));
    assert_ptr_not_equal(row_of(&s, "x"), row);              /* there is some again */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_row_for_the_same_labels), cmocka_unit_test(any_name), cmocka_unit_test(bounded),
                                       cmocka_unit_test(no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
