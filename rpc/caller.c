/* caller.c -- who makes a call, and whether it may.
 *
 *   header `authorization: Bearer TOKEN`   the tokens file says who it is; a token that is not there is refused, whatever
 *                                          certificate comes with it
 *   else the connection's certificate      its roles and name (rpc/pem.c)
 *   neither                                refused
 *
 * Then the table of rpc_access: a method that is not in it may be called by nobody. A client that names a tenant by the
 * header baton-tenant must name its own.
 *
 * Every refusal is counted. One a second is a log line, with how many before it had none: who is refused must not be able
 * to fill a disk. */
#include "rpc/internal.h"
#include <grpc/support/alloc.h>
#include <stdatomic.h>
#include <string.h>
#include <strings.h>

#define REFUSED(reason_) {.name = "baton_calls_refused_total", .labels = "reason=\"" reason_ "\"", .kind = METRIC_COUNTER,     \
                          .help = "calls refused because they came without a credential, with a token that is not known here, " \
                                  "or with a credential that may not make them"}
enum { NO_CREDENTIAL, WRONG_CREDENTIAL, NOT_ALLOWED, REASONS };
static metric refused[REASONS] = {
    [NO_CREDENTIAL] = REFUSED("no_credential"), [WRONG_CREDENTIAL] = REFUSED("wrong_credential"), [NOT_ALLOWED] = REFUSED("not_allowed")};

enum { TELL_MS = 1000, PATH_SAID = 100 };
static _Atomic int64_t told_ms = -TELL_MS;
static atomic_int untold;        /* refusals without a line since then */

void rpc_caller_open(void) {
    for (int i = 0; i < REASONS; i++) metric_show(&refused[i]);
}

/* err says why. Calls arrive on any loop's thread. */
static void tell(grpc_call *call, grpc_slice path, int reason, const error *err) {
    int64_t now = clock_now_ms(), then = atomic_load(&told_ms);
    metric_add(&refused[reason], 1);
    if (now - then < TELL_MS || !atomic_compare_exchange_strong(&told_ms, &then, now)) {
        atomic_fetch_add(&untold, 1);
        return;
    }
    char *peer = grpc_call_get_peer(call);
    int bytes = (int)(GRPC_SLICE_LENGTH(path) < PATH_SAID ? GRPC_SLICE_LENGTH(path) : PATH_SAID);
    log_write(LOG_WARN, NULL, "call.refused", "peer=%.80s method=%.*s %s left_out=%d: %s", peer, bytes,
              (const char *)GRPC_SLICE_START_PTR(path), refused[reason].labels, atomic_exchange(&untold, 0), err->text);
    gpr_free(peer);
}

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

status rpc_caller_find(rpc_security *s, grpc_call *call, grpc_slice path, const char *authorization, rpc_caller *out, error *err) {
    *out = (rpc_caller){0};
    rpc_security_look(s);
    status st = find(s, call, authorization, out, err);
    if (st != ST_OK) tell(call, path, authorization ? WRONG_CREDENTIAL : NO_CREDENTIAL, err);
    return st;
}

status rpc_caller_check(const rpc_security *s, grpc_call *call, const rpc_caller *c, const rpc_method *m, const char *tenant, error *err) {
    unsigned may = rpc_security_access(s, m->path);
    char has[64], wanted[64];
    status st = ST_OK;
    if (!(c->roles & may))
        st = error_set(err, ST_DENIED, "%s '%s' may not call %s: expected %s", rpc_role_text(c->roles, has, sizeof has), c->name, m->path,
                       may ? rpc_role_text(may, wanted, sizeof wanted) : "nobody");
    else if (tenant && *tenant && strcmp(tenant, c->name) != 0)
        st = error_set(err, ST_DENIED, "header baton-tenant names another tenant than the credential, which is '%s'", c->name);
    if (st != ST_OK) tell(call, grpc_slice_from_static_string(m->path), NOT_ALLOWED, err);
    return st;
}
