/* certs.c -- baton certs: a CA for a cluster, and certificates for its processes and clients (rpc/issue.c).
 *
 *   baton certs ca                                       DIR/ca.crt, DIR/ca.key
 *   baton certs coordinator c1 --hosts llm.example.org   DIR/c1.crt, DIR/c1.key
 *   baton certs node n1 | client TENANT | admin NAME
 *
 * One certificate may have several roles, as coordinator,node for `baton up`. What is there is never written over: a
 * renewed certificate is made in another folder and moved. */
#include "cli/cli.h"
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static cli_exit certs(const cli_options *o, const char *const *words, int count);

static const config_row rows[] = {
    CLI_TEXT("dir", dir, "certs", "DIR", "where the files are; made if it is not there"),
    CLI_TEXT("hosts", hosts, NULL, "HOST,...",
             "DNS names and IP addresses of a coordinator, which clients other than baton check"),
    CLI_INT("days", days, "0", 0, 36500, "N", "how long it is valid; 0: 365, a CA 3650"),
};
const cli_command cli_certs = {"certs", "ca | ROLE[,ROLE] NAME",
                               "Makes a CA, or a certificate from it for a coordinator, node, client or admin; a client's name is its "
                               "tenant.",
                               CLI_ROWS(rows), 1, 2, certs};

static status read_roles(const char *text, unsigned *out, error *err) {
    *out = 0;
    while (*text) {
        char one[32];
        size_t bytes = strcspn(text, ",");
        snprintf(one, sizeof one, "%.*s", (int)bytes, text);
        unsigned role = rpc_role_find(one);
        if (!role) return error_set(err, ST_BAD_INPUT, "role '%.30s': expected coordinator, node, client or admin, or ca alone", one);
        *out |= role;
        text += bytes + (text[bytes] == ',');
    }
    return *out ? ST_OK : error_set(err, ST_BAD_INPUT, "no role: expected coordinator, node, client or admin, or ca alone");
}

static status make_dir(const char *dir, error *err) {
    if (mkdir(dir, 0755) == 0 || errno == EEXIST) return ST_OK;
    return error_set(err, ST_IO, "--dir '%.200s': %s", dir, strerror(errno));
}

static cli_exit certs(const cli_options *o, const char *const *words, int count) {
    enum { DAY_S = 24 * 60 * 60, SKEW_S = 5 * 60, DAYS = 365, CA_DAYS = 3650 };
    char path[4][CLI_PATH_MAX];
    const char *name = count > 1 ? words[1] : "ca";
    bool ca = strcmp(words[0], "ca") == 0;
    error err = {0};
    unsigned roles = 0;
    if (ca && (count > 1 || o->hosts)) return cli_usage("certs", "ca: expected no name and no --hosts");
    if (!ca && read_roles(words[0], &roles, &err) != ST_OK) return cli_usage("certs", "%s", err.text);
    if (!ca && count < 2) return cli_usage("certs", "%s: NAME is missing", words[0]);
    if (!rpc_name_valid(name) || (!ca && strcmp(name, "ca") == 0))
        return cli_usage("certs", "name '%.80s': expected letters, digits, '.', '_' and '-', and not ca", name);
    for (int i = 0; i < 4; i++)
        snprintf(path[i], sizeof path[i], "%.4000s/%s.%s", o->dir, i < 2 ? "ca" : name, i % 2 ? "key" : "crt");
    int64_t now = (int64_t)time(NULL), days = o->days ? o->days : ca ? CA_DAYS : DAYS;
    rpc_issue_options options = {.ca_cert = ca ? NULL : path[0], .ca_key = ca ? NULL : path[1], .cert = path[2], .key = path[3],
                                 .roles = roles, .name = name, .hosts = o->hosts,
                                 .begins_s = now - SKEW_S, .ends_s = now + days * DAY_S};
    status st = make_dir(o->dir, &err);
    if (st == ST_OK) st = rpc_issue(&options, &err);
    if (st == ST_BAD_INPUT) return cli_usage("certs", "%s", err.text);
    if (st != ST_OK) return cli_complain(CLI_FAILED, "%s", err.text);
    printf("%s\n%s\n", path[2], path[3]);
    return CLI_OK;
}
