/* cli/bench.c, bench/: a short run over a tiny model prints one JSON object with every figure in it, and a
 * plot; selections are understood or refused. No figure is judged. Runs the executable. */
#include "bench/bench.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>

static json_t *run(const char *flags) {
    char line[1000];
    snprintf(line, sizeof line, "'%s' bench %s --json 2>/dev/null", BATON, flags);
    FILE *out = popen(line, "r");
    json_error_t why;
    json_t *all = json_loadf(out, 0, &why);
    if (!all) fail_msg("baton bench %s: %s", flags, why.text);
    assert_int_equal(pclose(out), 0);
    return all;
}

static json_t *measure(const char *flags) {
    char all[900];
    snprintf(all, sizeof all, "engine --no-cache --threads 2 --model '%s' %s", TINY, flags);
    return run(all);
}

static void assert_positive(const json_t *value, const char *key) {
    if (!json_is_number(value) || !isfinite(json_number_value(value)) || json_number_value(value) <= 0)
        fail_msg("%s: expected a number above 0", key);
}

static void assert_spread(const json_t *point, const char *key) {
    const json_t *s = json_object_get(point, key);
    double median = json_number_value(json_object_get(s, "median"));
    assert_positive(json_object_get(s, "min"), key);
    assert_true(median >= json_number_value(json_object_get(s, "min")));
    assert_true(median <= json_number_value(json_object_get(s, "max")));
}

/* Every entry has its size, its spreads and, where limits were measured, its share. */
static void assert_points(const json_t *all, const char *part, const char *size, size_t count, bool limits) {
    const json_t *list = json_object_get(all, part), *point;
    size_t i;
    assert_int_equal(json_array_size(list), count);
    json_array_foreach(list, i, point) {
        assert_positive(json_object_get(point, size), size);
        assert_positive(json_object_get(point, "rows"), "rows");
        assert_positive(json_object_get(point, "rate"), "rate");
        assert_true(json_is_string(json_object_get(point, "unit")));
        assert_spread(point, "tok_s");
        assert_spread(point, "ms");
        if (strcmp(part, "attention") == 0) assert_spread(point, "op_ms");
        if (limits) assert_positive(json_object_get(point, "share"), "share");
        else assert_true(json_is_null(json_object_get(point, "share")));
    }
}

static void quick_run(void **state) {
    (void)state;
    char svg[] = "/tmp/baton-bench-XXXXXX", flags[100], text[64] = "";
    int fd = mkstemp(svg);
    assert_true(fd >= 0);
    snprintf(flags, sizeof flags, "--quick --svg %s", svg);
    json_t *all = measure(flags);
    static const char *const texts[] = {"model", "digest", "numerics", "cpu", "kv_dtype"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        assert_true(json_string_length(json_object_get(all, texts[i])) > 0);
    assert_int_equal(json_integer_value(json_object_get(all, "threads")), 2);
    assert_int_equal(json_integer_value(json_object_get(all, "repeats")), BENCH_REPEATS);
    assert_true(json_is_true(json_object_get(all, "quick")));
    assert_positive(json_object_get(all, "weights_bytes"), "weights_bytes");
    assert_positive(json_object_get(all, "weights_macs"), "weights_macs");
    const json_t *limits = json_object_get(all, "limits"), *limit;
    unsigned kinds = 0;
    size_t i;
    json_array_foreach(limits, i, limit) {
        assert_spread(limit, "rate");
        for (int k = 0; k < BENCH_KINDS; k++)
            if (strcmp(json_string_value(json_object_get(limit, "kind")), bench_kind_names[k]) == 0) kinds |= 1u << k;
    }
    assert_int_equal(kinds, (1 << BENCH_KINDS) - 1);
    assert_points(all, "prefill", "tokens", 2, true);
    assert_points(all, "decode", "batch", 3, true);
    assert_points(all, "attention", "context", 4, true);
    assert_int_equal(json_array_size(json_object_get(all, "ops")), 12);
    json_decref(all);
    assert_true(read(fd, text, sizeof text - 1) > 0 && strncmp(text, "<svg ", 5) == 0);
    close(fd);
    unlink(svg);
}

static void one_point(void **state) {
    (void)state;
    json_t *all = measure("--only prefill:128,decode:16");
    assert_points(all, "prefill", "tokens", 1, false);
    assert_points(all, "decode", "batch", 1, false);
    assert_points(all, "attention", "context", 0, false);
    assert_int_equal(json_array_size(json_object_get(all, "limits")), 0);
    json_decref(all);
}

static void selections(void **state) {
    (void)state;
    static const struct { const char *only; bool good; } rows[] = {
        {"prefill", true}, {"prefill:2048", true}, {"limits,ops,decode:32", true}, {"", false},
        {"prefill:", false}, {"prefill:51", false}, {"prefill:5120", false}, {"limits:1", false},
        {"pre", false}, {"prefill,", false}, {"decode:1:2", false},
    };
    bench_selection s;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        error err = {0};
        status st = bench_select_parse(rows[i].only, false, &s, &err);
        if (st != (rows[i].good ? ST_OK : ST_BAD_INPUT)) fail_msg("'%s': %s %s", rows[i].only, status_name(st), err.text);
    }
    assert_int_equal(bench_select_parse("decode:16", false, &s, NULL), ST_OK);
    for (int i = 0; bench_sizes[BENCH_DECODE][i]; i++)
        assert_int_equal(bench_select_has(&s, BENCH_DECODE, i), bench_sizes[BENCH_DECODE][i] == 16);
}

static void spreads(void **state) {
    (void)state;
    bench_spread s = bench_spread_of((double[]){5, 1, 4, 2}, 4);
    assert_true(s.median == 3 && s.min == 1 && s.max == 5);
    s = bench_spread_of((double[]){7, 9, 8}, 3);
    assert_true(s.median == 8 && s.min == 7 && s.max == 9);
}

/* Every transport (ucx: where UCX is), sealed too where it may be, the plain socket and memcpy, at every size. */
static void transfers(void **state) {
    (void)state;
    static const char *const with_ucx[] = {"tcp", "tcp sealed", "shm", "ucx", "ucx sealed", "socket", "memcpy"};
    static const char *const without[] = {"tcp", "tcp sealed", "shm", "socket", "memcpy"};
    json_t *all = run("transfer --quick");
    const json_t *rows = json_object_get(all, "rows"), *row, *size;
    size_t i, k;
    const char *const *names = json_array_size(rows) == 7 ? with_ucx : without;
    size_t transports = names == with_ucx ? 5 : 3;
    assert_int_equal(json_array_size(rows), transports + 2);
    json_array_foreach(rows, i, row) {
        assert_string_equal(json_string_value(json_object_get(row, "name")), names[i]);
        bool sealed = strstr(names[i], "sealed") != NULL;
        assert_int_equal(json_array_size(json_object_get(row, "sizes")), 5);
        json_array_foreach(json_object_get(row, "sizes"), k, size) {
            assert_int_equal(json_integer_value(json_object_get(size, "bytes")), (64 << 10) << 2 * k);
            assert_spread(size, "bytes_s");
            assert_spread(size, "of_socket");
            assert_spread(size, "of_memcpy");
            if (sealed) assert_spread(size, "of_clear");
            assert_positive(json_object_get(size, "cpu_ns_byte_out"), "cpu_ns_byte_out");
            assert_positive(json_object_get(size, "cpu_ns_byte_in"), "cpu_ns_byte_in");
        }
        assert_spread(row, "handoff_ms");
        assert_spread(row, "handoff_of_socket");
        assert_spread(row, "handoff_of_memcpy");
        if (i < transports) assert_spread(row, "first_token_new_link_ms");
    }
    json_decref(all);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(quick_run), cmocka_unit_test(one_point),
                                       cmocka_unit_test(selections), cmocka_unit_test(spreads),
                                       cmocka_unit_test(transfers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
