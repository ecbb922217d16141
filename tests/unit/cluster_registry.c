/* cluster/registry.c: which specs are taken, who joins, and what others are told. */
#include "cluster/cluster.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static char seen[400];

static void joined(void *ctx, const char *address) {
    (void)ctx;
    strcat(strcat(seen, address), ";");
}
static void left(void *ctx, const char *address) {
    (void)ctx;
    strcat(strcat(seen, "-"), address);
}

static status open_spec(const char *spec, error *err) {
    static const cluster_registry_events events = {joined, left};
    cluster_registry *r = NULL;
    seen[0] = 0;
    memset(err, 0, sizeof *err);
    status st = cluster_registry_open(NULL, spec, &events, NULL, &r, err);
    assert_int_equal(st == ST_OK, r != NULL);
    cluster_registry_close(r);
    return st;
}

static void lists(void **state) {
    (void)state;
    static const struct { const char *spec, *joined; } good[] = {
        {"embedded:", ""},
        {"embedded:127.0.0.1:1", "127.0.0.1:1;"},
        {"embedded:a:1,b.c:65535,[::1]:77", "a:1;b.c:65535;[::1]:77;"},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        error err;
        assert_int_equal(open_spec(good[i].spec, &err), ST_OK);
        assert_string_equal(seen, good[i].joined);
    }
}

static void refusals(void **state) {
    (void)state;
    static const struct { const char *spec; status st; const char *part; } bad[] = {
        {"zk://h:1/p", ST_UNSUPPORTED, "zk"},          {"", ST_UNSUPPORTED, "embedded"},
        {"etcd://h", ST_BAD_INPUT, "'h'"},             {"etcds://u:p@h:1", ST_UNSUPPORTED, "--etcd-ca"},
        {"embedded:a:1,b", ST_BAD_INPUT, "'b'"},       {"embedded:a:0", ST_BAD_INPUT, "a:0"},
        {"embedded:a:65536", ST_BAD_INPUT, "65536"},   {"embedded::1", ST_BAD_INPUT, "host:port"},
        {"embedded:a:1,,b:2", ST_BAD_INPUT, "''"},     {"embedded:a:1x", ST_BAD_INPUT, "a:1x"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        error err;
        assert_int_equal(open_spec(bad[i].spec, &err), bad[i].st);
        assert_non_null(strstr(err.text, bad[i].part));
        assert_string_equal(seen, ""); /* a wrong list starts nothing */
    }
}

static void no_memory(void **state) {
    (void)state;
    error err;
    mem_fail_at(1);
    assert_int_equal(open_spec("embedded:a:1", &err), ST_NO_MEMORY);
    mem_fail_at(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(lists), cmocka_unit_test(refusals),
                                       cmocka_unit_test(no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
