/* rpc_certs.h -- a folder with CAs, certificates and token files, for the tests of who may call whom. */
#ifndef BATON_TESTS_RPC_CERTS_H
#define BATON_TESTS_RPC_CERTS_H

#include "rpc/rpc.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

enum { HOUR_S = 3600 };

static char certs_folder[] = "/tmp/baton-certs-XXXXXX";

static inline int certs_setup(void **state) {
    (void)state;
    return mkdtemp(certs_folder) ? 0 : -1;
}

static inline int certs_teardown(void **state) {
    (void)state;
    char line[100];
    snprintf(line, sizeof line, "rm -r '%s'", certs_folder);
    return system(line);
}

/* The path of a file in the folder; the eight last ones stay valid. */
static inline const char *certs_path(const char *name, const char *ending) {
    static char paths[8][128];
    static int at;
    char *path = paths[at++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s%s", certs_folder, name, ending);
    return path;
}

/* name.crt and name.key, from the CA of that name (NULL: one of its own), valid from and to so many hours from now. */
static inline void certs_make_for(const char *hosts, const char *ca, const char *name, unsigned roles, int from_h, int to_h) {
    error err = {0};
    rpc_issue_options o = {.ca_cert = ca ? certs_path(ca, ".crt") : NULL, .ca_key = ca ? certs_path(ca, ".key") : NULL,
                           .cert = certs_path(name, ".crt"), .key = certs_path(name, ".key"), .roles = roles, .name = name, .hosts = hosts,
                           .begins_s = (int64_t)time(NULL) + from_h * HOUR_S, .ends_s = (int64_t)time(NULL) + to_h * HOUR_S};
    if (rpc_issue(&o, &err) != ST_OK) fail_msg("%s: %s", name, err.text);
}

static inline void certs_make(const char *ca, const char *name, unsigned roles, int from_h, int to_h) {
    certs_make_for(NULL, ca, name, roles, from_h, to_h);
}

static inline void certs_write(const char *path, const char *text, mode_t mode) {
    unlink(path);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, mode), 0);
}

/* "" for ca, name or tokens: none. */
static inline rpc_security_options certs_options(const char *ca, const char *name, unsigned roles, unsigned peers) {
    return (rpc_security_options){.ca = *ca ? certs_path(ca, ".crt") : NULL, .cert = *name ? certs_path(name, ".crt") : NULL,
                                  .key = *name ? certs_path(name, ".key") : NULL, .roles = roles, .peers = peers};
}

#endif
