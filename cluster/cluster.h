/* cluster.h -- who is alive.
 *
 * A registry tells which nodes are said to exist; a view keeps one Watch stream to each and knows what
 * it last said. A node is lost when its stream breaks, when it leaves the registry, or when three
 * heartbeats are overdue (a stopped process keeps its connections open). It does not decide what a
 * lost node means: its reader does. A member is a node's own entry in the registry.
 *
 * One thread: the rpc loop given at open. */
#ifndef BATON_CLUSTER_H
#define BATON_CLUSTER_H

#include "base/base.h"
#include "proto/node.pb-c.h"
#include "rpc/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- registry: the table of ways to learn which nodes exist ------------------------------------- */

typedef struct cluster_registry_events {
    void (*joined)(void *ctx, const char *address);
    void (*left)(void *ctx, const char *address);
} cluster_registry_events;

typedef struct cluster_registry cluster_registry;

/* spec: "embedded:host:port,host:port" is a fixed list; "etcd://USER:PASSWORD@host:port,host:port/prefix" (user and
 * prefix may be left out: etcd_address.c) is who registered there. Other schemes are refused by name. Events may come
 * before it returns. */
status cluster_registry_open(rpc_loop *l, const char *spec, const cluster_registry_events *events,
                             void *ctx, cluster_registry **out, error *err);
void cluster_registry_close(cluster_registry *r);
/* What --registry says: "embedded" or etcd's address, checked for syntax. No text in err has a password. */
status cluster_registry_check(const char *spec, bool *etcd, error *err);

/* ---- member: a node's own entry, as long as it lives --------------------------------------------- */

typedef struct cluster_member cluster_member;

/* A later process (by epoch) has this one's id: it is not registered any more and never will be again. */
typedef void (*cluster_member_displaced)(void *ctx, const char *why);

/* registry: "etcd://...". Registers when etcd can be reached, and again whenever the entry is gone. The record is
 * copied; its id and epoch are the claim. displaced comes from the loop, once at most. */
status cluster_member_open(rpc_loop *l, const char *registry, const Baton__Node__V1__NodeRecord *record,
                           cluster_member_displaced displaced, void *ctx, cluster_member **out, error *err);
/* Takes the entry away, if etcd can be reached within two seconds, then calls done(arg). m is gone after it. */
void cluster_member_leave(cluster_member *m, void (*done)(void *arg), void *arg);

/* ---- access: who may call what ------------------------------------------------------------------ */

extern const rpc_access cluster_access[];        /* every method of proto/ that baton serves */
extern const int cluster_access_count;

/* ---- view --------------------------------------------------------------------------------------- */

enum { CLUSTER_NODES_MAX = 1024, CLUSTER_HEARTBEATS_MISSED = 3, CLUSTER_LISTED_MS = 600000 };

typedef struct cluster_view cluster_view;

typedef struct cluster_view_events {
    /* A node said something; state is borrowed until return. node stays its number, until forgotten(). */
    void (*state)(void *ctx, int node, const Baton__Node__V1__NodeState *state);
    void (*lost)(void *ctx, int node, const char *why);
    /* What its prefix cache holds changed; after its state, borrowed until return. NULL: nobody asks. Changes come in order and
     * none is missing: where one was, the node is asked for the whole again. */
    void (*cache)(void *ctx, int node, const Baton__Node__V1__CacheChange *change);
    /* It left the registry long ago, and its number is another node's from now on: every number was in use. */
    void (*forgotten)(void *ctx, int node);
} cluster_view_events;

/* Keeps a Watch stream to every node of the registry, opens it again after it broke. */
status cluster_view_open(rpc_loop *l, const char *registry, int heartbeat_ms,
                         const cluster_view_events *events, void *ctx, cluster_view **out, error *err);
void cluster_view_close(cluster_view *v);            /* no event after it */
int cluster_view_count(const cluster_view *v);       /* nodes seen, those that left among them: numbers 0 .. count-1 */
/* Of use to who looks at the cluster: it is registered, or died less than CLUSTER_LISTED_MS before now_ms. Who drained and
 * went, or never was heard of, is not missed. */
bool cluster_view_listed(const cluster_view *v, int node, int64_t now_ms);
const char *cluster_view_why(const cluster_view *v, int node);       /* it is not alive, as far as is known; "": it is, or never was */
const char *cluster_view_address(const cluster_view *v, int node);
rpc_channel *cluster_view_channel(const cluster_view *v, int node);
bool cluster_view_alive(const cluster_view *v, int node);
/* Last state heard, NULL: none yet. Valid until the loop's next event. */
const Baton__Node__V1__NodeState *cluster_view_state(const cluster_view *v, int node);

#ifdef __cplusplus
}
#endif
#endif
