/* rpc_pem.c -- tests rpc/pem.c and rpc/issue.c: what is issued is read, and of what cannot be used the file and its fault
 * are named. */
#include "rpc/internal.h"
#include "rpc_certs.h"

static void roles_are_read(void **state) {
    (void)state;
    static const struct { const char *uri; unsigned role; const char *name; } rows[] = {
        {"baton://node/n-1", RPC_NODE, "n-1"},     {"baton://admin/ops.x_y", RPC_ADMIN, "ops.x_y"},
        {"baton://node/", 0, ""},                  {"baton://node", 0, ""},
        {"baton:///x", 0, ""},                     {"baton://prefill/x", 0, ""},
        {"baton://node/x/y", 0, ""},               {"baton://node/.x", 0, ""},
        {"baton://nodes/x", 0, ""},                {"http://node/x", 0, ""},
        {"baton://node/x y", 0, ""},               {"baton://coordinatorcoordinator/x", 0, ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char name[RPC_NAME_MAX] = "";
        unsigned role = rpc_role_read(rows[i].uri, name);
        if (role != rows[i].role || (role && strcmp(name, rows[i].name) != 0)) fail_msg("%s: role %u, name '%s'", rows[i].uri, role, name);
    }
    char longest[100] = "baton://node/", text[64], name[RPC_NAME_MAX];
    memset(longest + 13, 'a', RPC_NAME_MAX - 1);
    assert_int_equal(rpc_role_read(longest, name), RPC_NODE);
    longest[13 + RPC_NAME_MAX - 1] = 'a';
    assert_int_equal(rpc_role_read(longest, name), 0);
    assert_string_equal(rpc_role_text(RPC_COORDINATOR | RPC_NODE, text, sizeof text), "coordinator,node");
}

static void issued_is_loaded(void **state) {
    (void)state;
    error err;
    struct stat s;
    rpc_pem *p;
    certs_make(NULL, "ca", 0, -1, 48);
    certs_make("ca", "both", RPC_COORDINATOR | RPC_NODE, -1, 1);
    rpc_pem_files f = {certs_path("ca", ".crt"), certs_path("both", ".crt"), certs_path("both", ".key")};
    for (unsigned wanted = 0; wanted < 4; wanted++) {
        assert_int_equal(rpc_pem_load(&f, wanted, &p, &err), ST_OK);
        assert_non_null(strstr(p->key, "PRIVATE KEY"));
        rpc_pem_free(p);
    }
    assert_int_equal(stat(f.key, &s), 0);
    assert_int_equal(s.st_mode & 07777, 0600);
}

/* Nothing is written over, and a half that was written goes away again. */
static void nothing_is_overwritten(void **state) {
    (void)state;
    error err;
    rpc_issue_options o = {.cert = certs_path("ca", ".crt"), .key = certs_path("new", ".key"), .name = "x", .ends_s = time(NULL) + HOUR_S};
    assert_int_equal(rpc_issue(&o, &err), ST_REFUSED);
    assert_non_null(strstr(err.text, "ca.crt' is there already"));
    assert_int_equal(access(o.key, F_OK), -1);
    o.cert = certs_path("new", ".crt");
    o.key = certs_path("ca", ".key");
    assert_int_equal(rpc_issue(&o, &err), ST_REFUSED);
    assert_int_equal(access(o.cert, F_OK), -1);
    o.cert = "/no/such/folder/x.crt";
    o.key = certs_path("new", ".key");
    assert_int_equal(rpc_issue(&o, &err), ST_IO);
    assert_int_equal(access(o.key, F_OK), -1);
}

static void what_cannot_be_issued(void **state) {
    (void)state;
    error err;
    rpc_issue_options good = {.ca_cert = certs_path("ca", ".crt"), .ca_key = certs_path("ca", ".key"), .cert = certs_path("x", ".crt"),
                              .key = certs_path("x", ".key"), .roles = RPC_NODE, .name = "x", .hosts = "10.0.0.1,a.example,::1",
                              .ends_s = time(NULL) + HOUR_S};
    static const char *const names[] = {"", "a/b", "a b", "..", "-x", "\xc3\xbc"}, *const hosts[] = {"a b", "a,,b", ",", "-a", "x:y", "URI:z"};
    rpc_issue_options o = good;
    for (size_t i = 0; i < 6; i++) {
        o.name = names[i];
        assert_int_equal(rpc_issue(&o, &err), ST_BAD_INPUT);
        o = good;
        o.hosts = hosts[i];
        assert_int_equal(rpc_issue(&o, &err), ST_BAD_INPUT);
        o = good;
    }
    o.ends_s += 100 * HOUR_S;
    assert_int_equal(rpc_issue(&o, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "ends before"));
    o = good;
    o.ca_cert = certs_path("both", ".crt");
    assert_int_equal(rpc_issue(&o, &err), ST_DENIED);    /* the key of another */
    o.ca_key = certs_path("both", ".key");
    o.ends_s -= HOUR_S / 2;
    assert_int_equal(rpc_issue(&o, &err), ST_DENIED);
    assert_non_null(strstr(err.text, "no CA"));
    assert_int_equal(access(good.key, F_OK), -1);
    assert_int_equal(rpc_issue(&good, &err), ST_OK);
}

static void faults_are_named(void **state) {
    (void)state;
    certs_make(NULL, "ca2", 0, -1, 48);
    certs_make(NULL, "old-ca", 0, -9, -1);
    certs_make("ca", "expired", RPC_NODE, -2, -1);
    certs_make("ca", "early", RPC_NODE, 1, 2);
    certs_make("ca", "client", RPC_CLIENT, -1, 1);
    certs_make("ca", "open", RPC_NODE, -1, 1);
    assert_int_equal(chmod(certs_path("open", ".key"), 0644), 0);
    certs_write(certs_path("text", ".crt"), "no certificate", 0600);
    certs_write(certs_path("locked", ".key"), "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n", 0600);
    static const struct { const char *ca, *cert, *key; status st; const char *file, *fault; } rows[] = {
        {"none", "both", "both", ST_NOT_FOUND, "none.crt", "No such file"},
        {"text", "both", "both", ST_BAD_INPUT, "text.crt", "expected certificates in PEM"},
        {"old-ca", "both", "both", ST_DENIED, "old-ca.crt", "expired on 2"},
        {"ca", "none", "both", ST_NOT_FOUND, "none.crt", "No such file"},
        {"ca", "text", "both", ST_BAD_INPUT, "text.crt", "expected a certificate in PEM"},
        {"ca", "both", "none", ST_NOT_FOUND, "none.key", "No such file"},
        {"ca", "both", "client", ST_DENIED, "client.key", "is not the key of"},
        {"ca", "both", "locked", ST_BAD_INPUT, "locked.key", "not encrypted"},
        {"ca", "open", "open", ST_DENIED, "open.key", "mode 0644"},
        {"ca", "expired", "expired", ST_DENIED, "expired.crt", "expired on 2"},
        {"ca", "early", "early", ST_DENIED, "early.crt", "not valid before 2"},
        {"ca2", "both", "both", ST_DENIED, "both.crt", "does not come from the CA"},
        {"ca", "client", "client", ST_DENIED, "client.crt", "has role 'client', and not node"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        error err = {0};
        rpc_pem *p = NULL;
        rpc_pem_files f = {certs_path(rows[i].ca, ".crt"), certs_path(rows[i].cert, ".crt"), certs_path(rows[i].key, ".key")};
        status st = rpc_pem_load(&f, RPC_NODE, &p, &err);
        if (st != rows[i].st || !strstr(err.text, rows[i].file) || !strstr(err.text, rows[i].fault) || p)
            fail_msg("row %zu: %s, '%s'", i, status_name(st), err.text);
    }
}

/* Whichever allocation fails: an error, and nothing kept. */
static void memory_runs_out(void **state) {
    (void)state;
    rpc_pem_files f = {certs_path("ca", ".crt"), certs_path("both", ".crt"), certs_path("both", ".key")};
    int64_t before = mem_live();
    status st = ST_NO_MEMORY;
    for (int n = 1; st != ST_OK; n++) {
        error err;
        rpc_pem *p = NULL;
        assert_true(n < 20);
        mem_fail_at(n);
        st = rpc_pem_load(&f, RPC_NODE, &p, &err);
        mem_fail_at(0);
        assert_true(st == ST_OK || st == ST_NO_MEMORY);
        if (st == ST_OK) rpc_pem_free(p);
        assert_int_equal(mem_live(), before);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(roles_are_read),        cmocka_unit_test(issued_is_loaded), cmocka_unit_test(nothing_is_overwritten),
        cmocka_unit_test(what_cannot_be_issued), cmocka_unit_test(faults_are_named), cmocka_unit_test(memory_runs_out),
    };
    return cmocka_run_group_tests(tests, certs_setup, certs_teardown);
}
