/* caller.c -- who makes a call, and whether it may.
 *
 *   header `authorization: Bearer TOKEN`   the tokens file says who it is; a token that is not there is refused, whatever
 *                                          certificate comes with it
 *   else the connection's certificate      its roles and name (rpc/pem.c)
 *   neither                                refused
 *
 * Then the table of rpc_access: a method that is not in it may be called by nobody. A client that names a tenant by the
 * header baton-tenant must name its own. */
#include "rpc/internal.h"
#include <string.h>
#include <strings.h>

METRIC(unknown_total, "baton_calls_refused_total", "reason=\"no_credential\"", METRIC_COUNTER, "calls refused for who made them");
METRIC(denied_total, "baton_calls_refused_total", "reason=\"not_allowed\"", METRIC_COUNTER, "calls refused for who made them");

static void read_certificate(grpc_call *call, rpc_caller *out) {
    grpc_auth_context *context = grpc_call_auth_context(call);
    if (!context) return;
    grpc_auth_property_iterator it = grpc_auth_context_find_properties_by_name(context, GRPC_PEER_URI_PROPERTY_NAME);
    for (const grpc_auth_property *p; (p = grpc_auth_property_iterator_next(&it));) {
        char name[RPC_NAME_MAX];
        unsigned role = strlen(p->value) == p->value_length ? rpc_role_read(p->value, name) : 0;
        if (!role) continue;
        if (!out->roles) memcpy(out->name, name, sizeof name);
        out->roles |= role;
    }
    grpc_auth_context_release(context);
}

static status find(rpc_security *s, grpc_call *call, const char *authorization, rpc_caller *out, error *err) {
    static const char scheme[] = "Bearer ";
    if (authorization) {
        if (strncasecmp(authorization, scheme, sizeof scheme - 1) == 0 &&
            rpc_security_token(s, authorization + sizeof scheme - 1, out))
            return ST_OK;
        return error_set(err, ST_UNAUTHENTICATED, "header authorization: expected Bearer and a token that is known here");
    }
    read_certificate(call, out);
    if (out->roles) return ST_OK;
    return error_set(err, ST_UNAUTHENTICATED,
                     "no credential: expected a client certificate with a role, or header authorization: Bearer TOKEN");
}

status rpc_caller_find(rpc_security *s, grpc_call *call, const char *authorization, rpc_caller *out, error *err) {
    *out = (rpc_caller){0};
    status st = find(s, call, authorization, out, err);
    if (st != ST_OK) metric_add(&unknown_total, 1);
    return st;
}

status rpc_caller_check(const rpc_security *s, const rpc_caller *c, const char *path, const char *tenant, error *err) {
    unsigned may = rpc_security_access(s, path);
    char has[64], wanted[64];
    status st = ST_OK;
    if (!(c->roles & may))
        st = error_set(err, ST_DENIED, "%s '%s' may not call %s: expected %s", rpc_role_text(c->roles, has, sizeof has), c->name, path,
                       may ? rpc_role_text(may, wanted, sizeof wanted) : "nobody");
    else if (tenant && *tenant && strcmp(tenant, c->name) != 0)
        st = error_set(err, ST_DENIED, "header baton-tenant names another tenant than the credential, which is '%s'", c->name);
    if (st == ST_OK) return ST_OK;
    metric_add(&denied_total, 1);
    log_write(LOG_WARN, NULL, "call.denied", "%s", err->text);
    return st;
}
