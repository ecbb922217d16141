/* security.c -- --tls-ca, --tls-cert, --tls-key, --tokens-file, --token-file, --insecure and --etcd-ca with its like: what
 * a process's servers and channels get of them. What they mean stands in rpc/security.c. */
#include "cli/cli.h"
#include "cluster/cluster.h"
#include <string.h>

static status use(const cli_options *o, unsigned roles, unsigned peers, error *err) {
    rpc_security *s;
    rpc_security_options options = {.ca = o->tls_ca,
                                    .cert = o->tls_cert,
                                    .key = o->tls_key,
                                    .roles = roles,
                                    .peers = peers,
                                    .tokens = o->tokens_file,
                                    .token = o->token_file,
                                    .access = cluster_access,
                                    .access_count = cluster_access_count,
                                    .insecure = o->insecure,
                                    .look_ms = -1};
    TRY(rpc_security_open(&options, &s, err));
    rpc_security_use(s);
    rpc_security_close(s);
    return ST_OK;
}

static status use_etcd(const cli_options *o, error *err) {
    rpc_security *s;
    rpc_security_options options = {.ca = o->etcd_ca, .cert = o->etcd_cert, .key = o->etcd_key, .look_ms = -1};
    if (!o->etcd_ca && !o->etcd_cert && !o->etcd_key) return ST_OK;
    if (strncmp(o->registry, "etcd:", 5) != 0)
        return error_set(err, ST_BAD_INPUT, "--etcd-ca, --etcd-cert, --etcd-key: expected --registry etcd://...");
    if (!o->etcd_ca) return error_set(err, ST_BAD_INPUT, "--etcd-cert without --etcd-ca");
    TRY(rpc_security_open(&options, &s, err));
    rpc_security_use_foreign(s);
    rpc_security_close(s);
    return ST_OK;
}

/* Where gRPC has TLS, no promise of this node takes a frame that is not sealed. UCX is another matter: it reads what any
 * peer sends before a frame of ours begins. */
static status check_kv_listen(const cli_options *o, error *err) {
    bool ucx = o->kv_transport && strcmp(o->kv_transport, "ucx") == 0;
    if (!o->kv_listen || (o->tls_cert && !ucx)) return ST_OK;
    status st = rpc_security_check_clear("--kv-listen", o->kv_listen, err);
    if (st != ST_OK && o->tls_cert)
        error_set(err, st, "--kv-listen %.100s over ucx: UCX believes every peer: expected a loopback address, or --insecure on a "
                  "network that nobody else reaches", o->kv_listen);
    return st;
}

cli_exit cli_security_serve(const cli_options *o, const char *command, unsigned roles) {
    error err = {0};
    status st = use(o, roles, RPC_NODE, &err);
    if (st == ST_OK) st = use_etcd(o, &err);
    if (st == ST_BAD_INPUT) return cli_usage(command, "%s", err.text);
    if (st != ST_OK) return cli_complain(CLI_FAILED, "%s", err.text);
    st = rpc_security_check_listen(o->listen, &err);
    if (st == ST_OK) st = check_kv_listen(o, &err);
    if (st == ST_OK && o->http) st = rpc_security_check_clear("--http", o->http, &err);
    if (st == ST_OK && o->group) st = rpc_security_check_clear("--group", o->group, &err);
    return st == ST_OK ? CLI_OK : cli_usage(command, "%s", err.text);
}

status cli_security_call(const cli_options *o, error *err) { return use(o, 0, RPC_COORDINATOR, err); }
