/* etcd.h -- what the files of cluster/ that speak with etcd share. Not for other folders.
 *
 *   etcd_address.c   "//USER:PASSWORD@HOST:PORT,HOST:PORT/PREFIX"
 *   etcd.c           a client: one connection to one endpoint, one call at a time, fail-over
 *   etcd_registry.c  the coordinators' side: who is registered
 *   member.c         a node's side: its own entry */
#ifndef BATON_CLUSTER_ETCD_H
#define BATON_CLUSTER_ETCD_H

#include "cluster/cluster.h"
#include "proto/etcd.pb-c.h"

/* ---- etcd_address.c ------------------------------------------------------------------------------- */

enum { CLUSTER_ETCD_ENDPOINTS_MAX = 16, CLUSTER_ETCD_PREFIX_MAX = 200 };

/* One allocation: close with mem_free(text). */
typedef struct cluster_etcd_address {
    char *text;                  /* what the others point into */
    const char *endpoints[CLUSTER_ETCD_ENDPOINTS_MAX];
    int count;
    const char *user, *password; /* NULL: none */
    char prefix[CLUSTER_ETCD_PREFIX_MAX + 16];   /* of the nodes' keys: "/baton/nodes/" */
} cluster_etcd_address;

/* rest: what follows "etcd:". ST_BAD_INPUT says what is wrong with it, never the password. */
status cluster_etcd_address_parse(const char *rest, cluster_etcd_address *out, error *err);

/* ---- etcd.c --------------------------------------------------------------------------------------- */

typedef struct cluster_etcd cluster_etcd;

typedef struct cluster_etcd_events {
    void (*connected)(void *ctx);    /* start the first call; the endpoint may yet prove dead */
    /* What was under way is void. Another endpoint is tried after a pause: connected comes again. */
    void (*lost)(void *ctx);
} cluster_etcd_events;

/* A reply of the call in hand; borrowed until return. */
typedef void (*cluster_etcd_reply)(void *ctx, const ProtobufCMessage *reply);

extern const rpc_method cluster_etcd_range, cluster_etcd_txn, cluster_etcd_watch, cluster_etcd_lease_grant,
    cluster_etcd_lease_revoke, cluster_etcd_lease_keep_alive;

/* Takes address over. Events come from the loop, not before return. */
status cluster_etcd_open(rpc_loop *l, cluster_etcd_address *address, const cluster_etcd_events *events, void *ctx,
                         cluster_etcd **out, error *err);
/* No event after it. NULL is fine. */
void cluster_etcd_close(cluster_etcd *c);
/* While connected. Ends the call in hand, if there is one: nothing more is heard of it. A call that fails, or is not
 * answered in time, leads to lost, perhaps before it returns. */
void cluster_etcd_call(cluster_etcd *c, const rpc_method *method, const ProtobufCMessage *request,
                       cluster_etcd_reply reply);
/* The endpoint answered what no good one would: lost. */
void cluster_etcd_give_up(cluster_etcd *c, const char *why);
bool cluster_etcd_connected(const cluster_etcd *c);
const char *cluster_etcd_prefix(const cluster_etcd *c);
/* An entry's value. NULL: it is none, or there is no memory. */
Baton__Node__V1__NodeRecord *cluster_etcd_record(const ProtobufCBinaryData *value);
void cluster_etcd_record_free(Baton__Node__V1__NodeRecord *r);
ProtobufCBinaryData cluster_etcd_bytes(const char *text);      /* borrows text */

/* ---- etcd_registry.c ------------------------------------------------------------------------------ */

typedef struct cluster_etcd_registry cluster_etcd_registry;
status cluster_etcd_registry_open(rpc_loop *l, const char *rest, const cluster_registry_events *events, void *ctx,
                                  cluster_etcd_registry **out, error *err);
void cluster_etcd_registry_close(cluster_etcd_registry *r);

#endif
