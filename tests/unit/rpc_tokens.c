/* rpc_tokens.c -- tests rpc/tokens.c: whose a token is, and that no error says one. */
#include "rpc/internal.h"
#include "rpc_certs.h"

#define PLAIN "correct-horse-battery"
/* printf %s hashed-token-of-team-b | sha256sum */
#define HASHED "hashed-token-of-team-b"
#define DIGEST "6274121a439f174384c71b671407e6b682cde960f8991f99d9506477a12a00b2"

static void tokens_are_found(void **state) {
    (void)state;
    error err;
    rpc_tokens *t;
    rpc_caller who;
    const char *path = certs_path("tokens", "");
    certs_write(path, "# comment\n\n  " PLAIN "\tteam-a # its note\r\nsha256:" DIGEST " team-b admin", 0640);
    assert_int_equal(rpc_tokens_load(path, &t, &err), ST_OK);
    assert_true(rpc_tokens_find(t, PLAIN, &who));
    assert_string_equal(who.name, "team-a");
    assert_int_equal(who.roles, RPC_CLIENT);
    assert_true(rpc_tokens_find(t, HASHED, &who));
    assert_string_equal(who.name, "team-b");
    assert_int_equal(who.roles, RPC_CLIENT | RPC_ADMIN);
    static const char *const wrong[] = {"", PLAIN "x", "orrect-horse-battery", DIGEST, ("sha256:" DIGEST), "# comment", "team-a"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) assert_false(rpc_tokens_find(t, wrong[i], &who));
    rpc_tokens_free(t);
}

static void bad_lines_are_named(void **state) {
    (void)state;
    static const struct { const char *text; status st; const char *part; } rows[] = {
        {"\n" PLAIN, ST_BAD_INPUT, "line 2: expected TOKEN TENANT"},
        {PLAIN " team-a root", ST_BAD_INPUT, "line 1"},
        {PLAIN " team-a admin more", ST_BAD_INPUT, "line 1"},
        {PLAIN " team/a", ST_BAD_INPUT, "line 1"},
        {"short-token-15c a", ST_BAD_INPUT, "at least 16"},
        {"sha256:0123 a", ST_BAD_INPUT, "64 hexadecimal"},
        {PLAIN " a\n" PLAIN " b\n", ST_BAD_INPUT, "line 2: an earlier line"},
        {"sha256:" DIGEST " a\n" HASHED " b\n", ST_BAD_INPUT, "line 2: an earlier line"},
    };
    const char *path = certs_path("bad", "");
    error err;
    rpc_tokens *t = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        certs_write(path, rows[i].text, 0600);
        status st = rpc_tokens_load(path, &t, &err);
        if (st != rows[i].st || !strstr(err.text, rows[i].part)) fail_msg("row %zu: %s", i, err.text);
        if (strstr(err.text, PLAIN) || strstr(err.text, HASHED) || strstr(err.text, "short-token")) fail_msg("a secret in: %s", err.text);
    }
    certs_write(path, PLAIN " a", 0604);
    assert_int_equal(rpc_tokens_load(path, &t, &err), ST_DENIED);
    assert_non_null(strstr(err.text, "0604"));
    assert_int_equal(rpc_tokens_load(certs_path("none", ""), &t, &err), ST_NOT_FOUND);
    assert_null(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tokens_are_found), cmocka_unit_test(bad_lines_are_named)};
    return cmocka_run_group_tests(tests, certs_setup, certs_teardown);
}
