/* cluster/etcd_address.c: what --registry takes and what it refuses, without ever showing a password. */
#include "cluster/etcd.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static void addresses(void **state) {
    (void)state;
    static const struct { const char *rest; int count; const char *first, *last, *user, *password, *prefix; } good[] = {
        {"//h:2379", 1, "h:2379", "h:2379", NULL, NULL, "/baton/nodes/"},
        {"//h:1/", 1, "h:1", "h:1", NULL, NULL, "/baton/nodes/"},
        {"//a:1,b.c:65535,[::1]:3/x/y//", 3, "a:1", "[::1]:3", NULL, NULL, "/x/y/nodes/"},
        {"//me:secret@h:1,i:2/p", 2, "h:1", "i:2", "me", "secret", "/p/nodes/"},
        {"//m%40e:s%2Fe%3ac%25@h:1", 1, "h:1", "h:1", "m@e", "s/e:c%", "/baton/nodes/"},
        {"//me:@h:1", 1, "h:1", "h:1", "me", "", "/baton/nodes/"},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cluster_etcd_address a;
        error err = {0};
        if (cluster_etcd_address_parse(good[i].rest, &a, &err) != ST_OK) fail_msg("%s: %s", good[i].rest, err.text);
        assert_int_equal(a.count, good[i].count);
        assert_string_equal(a.endpoints[0], good[i].first);
        assert_string_equal(a.endpoints[a.count - 1], good[i].last);
        assert_string_equal(a.prefix, good[i].prefix);
        assert_int_equal(a.user == NULL, good[i].user == NULL);
        if (a.user) {
            assert_string_equal(a.user, good[i].user);
            assert_string_equal(a.password, good[i].password);
        }
        mem_free(a.text);
    }
}

static void refusals(void **state) {
    (void)state;
    static char long_prefix[300] = "//h:1/", many[200] = "//";
    memset(long_prefix + 6, 'p', CLUSTER_ETCD_PREFIX_MAX + 1);
    for (int i = 0; i <= CLUSTER_ETCD_ENDPOINTS_MAX; i++) strcat(strcat(many, i ? "," : ""), "h:1");
    const struct { const char *rest; status st; const char *part; } bad[] = {
        {"", ST_BAD_INPUT, "etcd://HOST:PORT"},           {"h:1", ST_BAD_INPUT, "etcd://HOST:PORT"},
        {"//", ST_BAD_INPUT, "''"},                       {"//h", ST_BAD_INPUT, "'h'"},
        {"//h:0", ST_BAD_INPUT, "h:0"},                   {"//h:1,", ST_BAD_INPUT, "''"},
        {"//h:65536/p", ST_BAD_INPUT, "65536"},           {"//https://h:1", ST_UNSUPPORTED, "TLS"},
        {"//SECRET@h:1", ST_BAD_INPUT, "USER:PASSWORD"},  {"//:SECRET@h:1", ST_BAD_INPUT, "USER:PASSWORD"},
        {"//me:SECRET%4@h:1", ST_BAD_INPUT, "%"},         {"//me:SECRET%00@h:1", ST_BAD_INPUT, "%"},
        {"//me:SECRET@h", ST_BAD_INPUT, "'h'"},           {long_prefix, ST_BAD_INPUT, "201"},
        {many, ST_BAD_INPUT, "16"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cluster_etcd_address a;
        error err = {0};
        assert_int_equal(cluster_etcd_address_parse(bad[i].rest, &a, &err), bad[i].st);
        assert_non_null(strstr(err.text, bad[i].part));
        assert_null(strstr(err.text, "SECRET"));
    }
    assert_int_equal(mem_live(), 0);
}

/* What --registry says. */
static void checks(void **state) {
    (void)state;
    static const struct { const char *spec; status st; bool etcd; const char *part; } rows[] = {
        {"embedded", ST_OK, false, ""},                       {"etcd://h:1/p", ST_OK, true, ""},
        {"embedded:a:1", ST_BAD_INPUT, false, "--nodes"},     {"zookeeper://h:1", ST_UNSUPPORTED, false, "zookeeper"},
        {"https://me:SECRET@h:1", ST_UNSUPPORTED, false, "--etcd-ca"}, {"etcd:h:1", ST_BAD_INPUT, false, "etcd://"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        error err = {0};
        bool etcd;
        assert_int_equal(cluster_registry_check(rows[i].spec, &etcd, &err), rows[i].st);
        assert_int_equal(etcd, rows[i].etcd);
        assert_non_null(strstr(err.text, rows[i].part));
        assert_null(strstr(err.text, "SECRET"));
    }
    assert_int_equal(mem_live(), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(addresses), cmocka_unit_test(refusals), cmocka_unit_test(checks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
