/* member.c -- a node's own entry in etcd: PREFIX/nodes/ID, a NodeRecord under a lease.
 *
 *   ABSENT -> LEASED     [on_granted]     there is a lease of LEASE_S; the entry is looked at
 *   LEASED -> HELD       [judge]          the entry is ours: it bears our lease
 *   HELD   -> HELD       [renew]          every RENEW_MS: the lease is kept alive, then the entry is looked at
 *   HELD   -> ABSENT     [on_kept_alive]  etcd knows no such lease: it ran out, or etcd was wiped
 *   any    -> waiting    [on_lost]        etcd is away; the node serves on, and goes on here when it is back
 *   any    -> DISPLACED  [judge]          the entry is a later process's
 *   any    -> gone       [leave_now]      drained: the lease is revoked, the entry with it
 *
 * Who holds the entry: claim() writes it only if it has not changed since it was looked at, and only over nobody or
 * over an epoch that is not above ours. So of two processes with one id the later started wins, and the earlier one,
 * stopped and continued at any moment, can not take it back. The lease only cleans up after the dead; nothing that a
 * node owns rests on it (pages know epochs: kvtransfer/promise.c). */
#include "cluster/etcd.h"
#include <assert.h>
#include <string.h>

enum { LEASE_S = 10, RENEW_MS = 2000 };

/* The loop's, from open to leave. */
struct cluster_member {
    rpc_loop *loop;
    cluster_etcd *etcd;          /* NULL: displaced */
    cluster_member_displaced displaced;
    void *ctx;
    ProtobufCBinaryData value;   /* the record, packed */
    uint64_t epoch;
    char id[64], key[CLUSTER_ETCD_PREFIX_MAX + 80];
    int64_t lease;               /* 0: none */
    bool held;                   /* it was said that we are registered */
    rpc_timer *timer;            /* until the next renew */
    bool leaving;
    void (*done)(void *arg);
    void *arg;
};

static void on_connected(void *ctx);
static void on_lost(void *ctx);
static void free_member(cluster_member *m);

static const cluster_etcd_events etcd_events = {.connected = on_connected, .lost = on_lost};

static status fill(cluster_member *m, const Baton__Node__V1__NodeRecord *record, const cluster_etcd_address *a, error *err) {
    if (!*record->id || strlen(record->id) >= sizeof m->id || strchr(record->id, '/'))
        return error_set(err, ST_BAD_INPUT, "id '%.80s': expected 1 to %zu characters without '/'", record->id, sizeof m->id - 1);
    snprintf(m->id, sizeof m->id, "%s", record->id);
    snprintf(m->key, sizeof m->key, "%s%s", a->prefix, record->id);
    m->epoch = record->epoch;
    m->value.len = baton__node__v1__node_record__get_packed_size(record);
    m->value.data = mem_alloc(m->value.len);
    if (!m->value.data) return error_set(err, ST_NO_MEMORY, "registration: no memory");
    baton__node__v1__node_record__pack(record, m->value.data);
    return ST_OK;
}

status cluster_member_open(rpc_loop *l, const char *registry, const Baton__Node__V1__NodeRecord *record,
                           cluster_member_displaced displaced, void *ctx, cluster_member **out, error *err) {
    cluster_etcd_address address = {.text = NULL};
    if (strncmp(registry, "etcd:", 5) != 0)
        return error_set(err, ST_UNSUPPORTED, "a node registers with etcd://HOST:PORT,...[/PREFIX]");
    TRY(cluster_etcd_address_parse(registry + 5, &address, err));
    cluster_member *m = mem_zalloc(1, sizeof *m);
    status st = m ? ST_OK : error_set(err, ST_NO_MEMORY, "registration: no memory");
    if (st == ST_OK) {
        *m = (cluster_member){.loop = l, .displaced = displaced, .ctx = ctx};
        st = fill(m, record, &address, err);
    }
    if (st == ST_OK) st = cluster_etcd_open(l, &address, &etcd_events, m, &m->etcd, err);
    if (st == ST_OK) *out = m;
    else free_member(m);
    mem_free(address.text);
    return st;
}

static void stop_timer(cluster_member *m) {
    if (m->timer) rpc_timer_cancel(m->timer);
    m->timer = NULL;
}

static void free_member(cluster_member *m) {
    if (!m) return;
    stop_timer(m);
    cluster_etcd_close(m->etcd);
    mem_free(m->value.data);
    mem_free(m);
}

/* ---- leaving ----------------------------------------------------------------------------------------- */

static void leave_now(cluster_member *m) {
    void (*done)(void *arg) = m->done;
    void *arg = m->arg;
    free_member(m);
    if (done) done(arg);
}

static void on_revoked(void *ctx, const ProtobufCMessage *message) {
    (void)message;
    cluster_member *m = ctx;
    log_write(LOG_INFO, NULL, "member.left", "id=%s", m->id);
    leave_now(m);
}

/* Without a lease in hand (etcd is away, or a grant is under way) the entry, if any, ends with its lease. */
void cluster_member_leave(cluster_member *m, void (*done)(void *arg), void *arg) {
    assert(!m->leaving);
    stop_timer(m);
    m->leaving = true;
    m->done = done;
    m->arg = arg;
    if (!m->etcd || !cluster_etcd_connected(m->etcd) || !m->lease) {
        leave_now(m);
        return;
    }
    Etcdserverpb__LeaseRevokeRequest q = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    q.id = m->lease;
    cluster_etcd_call(m->etcd, &cluster_etcd_lease_revoke, &q.base, on_revoked);
}

/* ---- whose is the entry? -------------------------------------------------------------------------------- */

static void renew(void *arg);
static void look(cluster_member *m);
static void claim(cluster_member *m, int64_t seen_revision);

static void hold(cluster_member *m) {
    if (!m->held) log_write(LOG_INFO, NULL, "member.registered", "id=%s epoch=%llu", m->id, (unsigned long long)m->epoch);
    m->held = true;
    if (rpc_timer_start(m->loop, RENEW_MS, renew, m, &m->timer) != ST_OK)
        cluster_etcd_give_up(m->etcd, "no memory for a timer");
}

static void give_way(cluster_member *m, const Baton__Node__V1__NodeRecord *other) {
    char why[200];
    snprintf(why, sizeof why, "id '%s' is registered by a later process: address %.80s, pid %lld", m->id, other->address,
             (long long)other->pid);
    log_write(LOG_ERROR, NULL, "member.displaced", "%s", why);
    cluster_etcd_close(m->etcd);
    m->etcd = NULL;
    m->displaced(m->ctx, why);
}

/* kv: the entry as it stands, NULL: there is none. What can not be read as a record is never written over. */
static void judge(cluster_member *m, const Etcdserverpb__KeyValue *kv) {
    if (kv && kv->lease == m->lease) return hold(m);
    m->held = false;
    Baton__Node__V1__NodeRecord *other = kv ? cluster_etcd_record(&kv->value) : NULL;
    if (kv && !other) {
        cluster_etcd_give_up(m->etcd, "the entry of this id is no record");
    } else if (other && other->epoch > m->epoch) {
        give_way(m, other);
    } else {
        if (other && other->epoch < m->epoch)
            log_write(LOG_WARN, NULL, "member.takeover", "id=%s from address=%s pid=%lld", m->id, other->address,
                      (long long)other->pid);
        claim(m, kv ? kv->mod_revision : 0);
    }
    cluster_etcd_record_free(other);
}

static void on_look(void *ctx, const ProtobufCMessage *message) {
    const Etcdserverpb__RangeResponse *r = (const Etcdserverpb__RangeResponse *)message;
    judge(ctx, r->n_kvs ? r->kvs[0] : NULL);
}

static void look(cluster_member *m) {
    Etcdserverpb__RangeRequest q = ETCDSERVERPB__RANGE_REQUEST__INIT;
    q.key = cluster_etcd_bytes(m->key);
    cluster_etcd_call(m->etcd, &cluster_etcd_range, &q.base, on_look);
}

static void on_claim(void *ctx, const ProtobufCMessage *message) {
    cluster_member *m = ctx;
    const Etcdserverpb__TxnResponse *r = (const Etcdserverpb__TxnResponse *)message;
    if (r->succeeded) return hold(m);
    if (r->n_responses != 1 || r->responses[0]->response_case != ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE)
        return cluster_etcd_give_up(m->etcd, "a transaction without its answer");
    const Etcdserverpb__RangeResponse *now = r->responses[0]->response_range;
    judge(m, now->n_kvs ? now->kvs[0] : NULL);
}

/* Compare-and-swap: written if the entry is still as it was seen (0: absent), read again if not. */
static void claim(cluster_member *m, int64_t seen_revision) {
    Etcdserverpb__Compare compare = ETCDSERVERPB__COMPARE__INIT, *compares[] = {&compare};
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;
    Etcdserverpb__RangeRequest range = ETCDSERVERPB__RANGE_REQUEST__INIT;
    Etcdserverpb__RequestOp write = ETCDSERVERPB__REQUEST_OP__INIT, read = write, *writes[] = {&write}, *reads[] = {&read};
    Etcdserverpb__TxnRequest q = ETCDSERVERPB__TXN_REQUEST__INIT;
    compare.key = put.key = range.key = cluster_etcd_bytes(m->key);
    if (seen_revision > 0) {
        compare.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
        compare.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
        compare.mod_revision = seen_revision;
    } else {
        compare.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
        compare.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
    }
    put.value = m->value;
    put.lease = m->lease;
    write.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
    write.request_put = &put;
    read.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
    read.request_range = &range;
    q.compare = compares, q.success = writes, q.failure = reads;
    q.n_compare = q.n_success = q.n_failure = 1;
    cluster_etcd_call(m->etcd, &cluster_etcd_txn, &q.base, on_claim);
}

/* ---- the lease --------------------------------------------------------------------------------------- */

static void on_granted(void *ctx, const ProtobufCMessage *message) {
    cluster_member *m = ctx;
    m->lease = ((const Etcdserverpb__LeaseGrantResponse *)message)->id;
    if (m->lease == 0) cluster_etcd_give_up(m->etcd, "a lease without a number");
    else look(m);
}

static void grant(cluster_member *m) {
    Etcdserverpb__LeaseGrantRequest q = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    q.ttl = LEASE_S;
    cluster_etcd_call(m->etcd, &cluster_etcd_lease_grant, &q.base, on_granted);
}

static void on_kept_alive(void *ctx, const ProtobufCMessage *message) {
    cluster_member *m = ctx;
    if (((const Etcdserverpb__LeaseKeepAliveResponse *)message)->ttl > 0) {
        look(m);
        return;
    }
    log_write(LOG_WARN, NULL, "member.unregistered", "id=%s: etcd does not know its lease any more", m->id);
    m->lease = 0;
    m->held = false;
    grant(m);
}

static void renew(void *arg) {
    cluster_member *m = arg;
    Etcdserverpb__LeaseKeepAliveRequest q = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
    m->timer = NULL;
    q.id = m->lease;
    cluster_etcd_call(m->etcd, &cluster_etcd_lease_keep_alive, &q.base, on_kept_alive);
}

static void on_connected(void *ctx) {
    cluster_member *m = ctx;
    if (m->lease) renew(m);
    else grant(m);
}

static void on_lost(void *ctx) {
    cluster_member *m = ctx;
    stop_timer(m);
    if (m->leaving) leave_now(m);
}
