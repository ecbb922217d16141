/* registry.c -- the table of ways to learn which nodes exist.
 *
 *   spec "scheme:rest"    a row of `kinds` by its scheme; what rest means is the row's own affair
 *   embedded:a,b,c        a fixed list of addresses: all join at open, none ever leaves
 *   etcd://...            who is registered there: etcd_registry.c, nodes register by member.c
 *
 * A registry says who is said to exist, never who is alive: that is view.c's. Any row may tell
 * joined and left later, from the loop's thread. */
#include "cluster/etcd.h"
#include <stdlib.h>
#include <string.h>

typedef struct registry_kind {
    const char *scheme;
    status (*open)(cluster_registry *r, const char *rest, error *err);
    void (*close)(cluster_registry *r);
} registry_kind;

struct cluster_registry {
    const registry_kind *kind;
    rpc_loop *loop;
    const cluster_registry_events *events;
    void *ctx;
    cluster_etcd_registry *etcd; /* of that row */
};

static status embedded_open(cluster_registry *r, const char *rest, error *err);
static void embedded_close(cluster_registry *r);
static status etcd_open(cluster_registry *r, const char *rest, error *err);
static void etcd_close(cluster_registry *r);

static const registry_kind kinds[] = {
    {"embedded", embedded_open, embedded_close},
    {"etcd", etcd_open, etcd_close},
};

/* What stands before the colon; of what follows only a kind knows which part may be shown. */
static const registry_kind *find_kind(const char *spec, error *err) {
    size_t scheme = strcspn(spec, ":");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strlen(kinds[i].scheme) == scheme && memcmp(kinds[i].scheme, spec, scheme) == 0) return &kinds[i];
    bool tls = strncmp(spec, "https:", 6) == 0 || strncmp(spec, "etcds:", 6) == 0;
    error_set(err, ST_UNSUPPORTED, "registry '%.*s%s': expected embedded or etcd://HOST:PORT,...[/PREFIX]%s",
              (int)(scheme < 40 ? scheme : 40), spec, spec[scheme] ? ":..." : "", tls ? "; TLS to etcd is --etcd-ca FILE" : "");
    return NULL;
}

status cluster_registry_check(const char *spec, bool *etcd, error *err) {
    *etcd = false;
    if (strcmp(spec, "embedded") == 0) return ST_OK;
    const registry_kind *kind = find_kind(spec, err);
    if (!kind) return ST_UNSUPPORTED;
    if (kind->open != etcd_open)
        return error_set(err, ST_BAD_INPUT, "registry 'embedded:...': nodes are listed by --nodes");
    cluster_etcd_address address;
    TRY(cluster_etcd_address_parse(spec + strlen("etcd:"), &address, err));
    mem_free(address.text);
    *etcd = true;
    return ST_OK;
}

status cluster_registry_open(rpc_loop *l, const char *spec, const cluster_registry_events *events,
                             void *ctx, cluster_registry **out, error *err) {
    size_t scheme = strcspn(spec, ":");
    const registry_kind *kind = find_kind(spec, err);
    if (!kind) return ST_UNSUPPORTED;
    cluster_registry *r = mem_zalloc(1, sizeof *r);
    if (!r) return error_set(err, ST_NO_MEMORY, "registry: no memory");
    *r = (cluster_registry){.kind = kind, .loop = l, .events = events, .ctx = ctx};
    status st = kind->open(r, spec[scheme] ? spec + scheme + 1 : "", err);
    if (st != ST_OK) {
        mem_free(r);
        return st;
    }
    *out = r;
    return ST_OK;
}

void cluster_registry_close(cluster_registry *r) {
    if (!r) return;
    r->kind->close(r);
    mem_free(r);
}

/* ---- embedded -----------------------------------------------------------------------------------
 */

enum { ADDRESS_MAX = 256 };

/* "host:port" with a port from 1 to 65535; an IPv6 host stands in brackets. */
static bool address_ok(const char *text, size_t bytes) {
    size_t digits = 0;
    while (digits < bytes && text[bytes - 1 - digits] >= '0' && text[bytes - 1 - digits] <= '9')
        digits++;
    bool shaped = digits >= 1 && digits <= 5 && bytes > digits + 1 && bytes < ADDRESS_MAX &&
                  text[bytes - 1 - digits] == ':';
    long port = shaped ? strtol(text + bytes - digits, NULL, 10) : 0;
    return port >= 1 && port <= 65535;
}

/* The whole list is checked before the first node joins, so that a wrong one starts nothing. */
static status embedded_open(cluster_registry *r, const char *rest, error *err) {
    for (int pass = 0; pass < 2; pass++)
        for (const char *at = rest; *at;) {
            size_t bytes = strcspn(at, ",");
            if (!address_ok(at, bytes))
                return error_set(err, ST_BAD_INPUT, "node address '%.*s': expected host:port",
                                 (int)(bytes < 100 ? bytes : 100), at);
            char address[ADDRESS_MAX];
            memcpy(address, at, bytes);
            address[bytes] = 0;
            if (pass == 1) r->events->joined(r->ctx, address);
            at += bytes + (at[bytes] == ',');
        }
    return ST_OK;
}

static void embedded_close(cluster_registry *r) { (void)r; }

/* ---- etcd ---------------------------------------------------------------------------------------- */

static status etcd_open(cluster_registry *r, const char *rest, error *err) {
    return cluster_etcd_registry_open(r->loop, rest, r->events, r->ctx, &r->etcd, err);
}

static void etcd_close(cluster_registry *r) { cluster_etcd_registry_close(r->etcd); }
