/* etcd_address.c -- where etcd is, as a user writes it.
 *
 *   etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT ...][/PREFIX]
 *
 * User and password may have %XX for what would be read as '@', ':', '/' or '%'. Without a prefix it is /baton;
 * clusters that share an etcd have prefixes of their own. The nodes' keys are PREFIX/nodes/ID. */
#include "cluster/etcd.h"
#include <string.h>

static int hex(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* In place. false: a % without two digits, or %00. */
static bool decode_percent(char *text) {
    char *to = text;
    for (const char *at = text; *at; at++) {
        char c = *at;
        if (c == '%') {
            int high = hex(at[1]), low = high < 0 ? -1 : hex(at[2]);
            if (low < 0 || high + low == 0) return false;
            c = (char)(high * 16 + low);
            at += 2;
        }
        *to++ = c;
    }
    *to = 0;
    return true;
}

/* "USER:PASSWORD", ended by a NUL where '@' was. */
static status read_user(char *text, cluster_etcd_address *a, error *err) {
    char *colon = strchr(text, ':');
    if (!colon || colon == text)
        return error_set(err, ST_BAD_INPUT, "etcd address: before '@' expected USER:PASSWORD");
    *colon = 0;
    if (!decode_percent(text) || !decode_percent(colon + 1))
        return error_set(err, ST_BAD_INPUT, "etcd address: in user or password, '%%' needs two hexadecimal digits");
    a->user = text;
    a->password = colon + 1;
    return ST_OK;
}

static status read_endpoints(char *text, cluster_etcd_address *a, error *err) {
    for (char *at = text, *end = NULL; at; at = end) {
        char host[256];
        const char *port;
        end = strchr(at, ',');
        if (end) *end++ = 0;
        if (strstr(at, "://"))
            return error_set(err, ST_UNSUPPORTED, "etcd endpoint '%.100s': expected HOST:PORT; TLS to etcd is --etcd-ca FILE", at);
        if (!address_split(at, host, sizeof host, &port) || strcmp(port, "0") == 0)
            return error_set(err, ST_BAD_INPUT, "etcd endpoint '%.100s': expected HOST:PORT, PORT 1 to 65535", at);
        if (a->count == CLUSTER_ETCD_ENDPOINTS_MAX)
            return error_set(err, ST_BAD_INPUT, "etcd address: more than %d endpoints", CLUSTER_ETCD_ENDPOINTS_MAX);
        a->endpoints[a->count++] = at;
    }
    return ST_OK;
}

/* text: after the endpoints, "" or what follows their '/'. Slashes at its end are dropped. */
static status read_prefix(const char *text, cluster_etcd_address *a, error *err) {
    size_t bytes = strlen(text);
    while (bytes > 0 && text[bytes - 1] == '/') bytes--;
    if (bytes > CLUSTER_ETCD_PREFIX_MAX)
        return error_set(err, ST_BAD_INPUT, "etcd prefix of %zu characters: expected at most %d", bytes, CLUSTER_ETCD_PREFIX_MAX);
    if (bytes == 0) text = "baton", bytes = 5;
    snprintf(a->prefix, sizeof a->prefix, "/%.*s/nodes/", (int)bytes, text);
    return ST_OK;
}

static status parse(cluster_etcd_address *a, error *err) {
    if (strncmp(a->text, "//", 2) != 0)
        return error_set(err, ST_BAD_INPUT, "etcd address: expected etcd://HOST:PORT,...[/PREFIX]");
    char *hosts = a->text + 2, *at = strchr(hosts, '@');
    if (at) {
        *at = 0;
        TRY(read_user(hosts, a, err));
        hosts = at + 1;
    }
    char *slash = strstr(hosts, "://") ? NULL : strchr(hosts, '/');
    if (slash) *slash = 0;
    TRY(read_endpoints(hosts, a, err));
    return read_prefix(slash ? slash + 1 : "", a, err);
}

status cluster_etcd_address_parse(const char *rest, cluster_etcd_address *out, error *err) {
    cluster_etcd_address a = {.text = mem_strdup(rest)};
    if (!a.text) return error_set(err, ST_NO_MEMORY, "etcd address: no memory");
    status st = parse(&a, err);
    if (st == ST_OK) *out = a;
    else mem_free(a.text);
    return st;
}
