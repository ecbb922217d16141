/* etcd_registry.c -- who is registered in etcd: a list, then a watch from the list's revision on.
 *
 *   AWAY -> LISTING    [list]       etcd can be reached
 *   LISTING -> WATCHING [on_list]   entries are compared with those we know; nothing is missed between the two calls
 *   WATCHING -> LISTING [on_watch]  the watch fell behind a compaction
 *   any -> AWAY        [on_lost]    what we know stays as it is: nobody leaves because etcd does
 *
 * After each break it lists again instead of resuming the watch where it ended: an etcd that came back with an empty
 * store counts its revisions from 1 again, and once they have passed ours nothing tells it from the old one.
 *
 * An entry that is gone (drained, lease run out, etcd wiped) stays GRACE_MS longer, if etcd can be reached all that
 * time. A node that really is gone has broken its Watch stream to us long before (view.c); one that lives and only
 * lost its lease, as all do when etcd was stopped for longer than leases last, has registered again by then. */
#include "cluster/etcd.h"
#include <string.h>

enum { GRACE_MS = 10000 };

typedef struct entry {
    struct entry *next;
    cluster_etcd_registry *registry;
    char *id, *address;
    rpc_timer *leaving;          /* its key is gone; NULL: it is there */
    bool listed;
} entry;

/* The loop's. */
struct cluster_etcd_registry {
    rpc_loop *loop;
    cluster_etcd *etcd;
    const cluster_registry_events *events;
    void *ctx;
    entry *entries;
    char range_end[CLUSTER_ETCD_PREFIX_MAX + 16];
    bool watching;
};

static void on_connected(void *ctx);
static void on_lost(void *ctx);

static const cluster_etcd_events etcd_events = {.connected = on_connected, .lost = on_lost};

status cluster_etcd_registry_open(rpc_loop *l, const char *rest, const cluster_registry_events *events, void *ctx,
                                  cluster_etcd_registry **out, error *err) {
    cluster_etcd_address address;
    TRY(cluster_etcd_address_parse(rest, &address, err));
    cluster_etcd_registry *r = mem_zalloc(1, sizeof *r);
    status st = r ? ST_OK : error_set(err, ST_NO_MEMORY, "registry: no memory");
    if (st == ST_OK) {
        *r = (cluster_etcd_registry){.loop = l, .events = events, .ctx = ctx};
        st = cluster_etcd_open(l, &address, &etcd_events, r, &r->etcd, err);
    }
    if (st != ST_OK) {
        mem_free(r);
        mem_free(address.text);
        return st;
    }
    /* All keys that begin with the prefix: up to the prefix with its last character, a slash, one higher. */
    snprintf(r->range_end, sizeof r->range_end, "%s", cluster_etcd_prefix(r->etcd));
    r->range_end[strlen(r->range_end) - 1]++;
    *out = r;
    return ST_OK;
}

/* ---- entries --------------------------------------------------------------------------------------- */

static entry *find(const cluster_etcd_registry *r, const char *id, size_t bytes) {
    for (entry *e = r->entries; e; e = e->next)
        if (strlen(e->id) == bytes && memcmp(e->id, id, bytes) == 0) return e;
    return NULL;
}

static void set_leaving(entry *e, rpc_timer *t) {
    if (e->leaving) rpc_timer_cancel(e->leaving);
    e->leaving = t;
}

static void free_entry(entry *e) {
    set_leaving(e, NULL);
    mem_free(e->id);
    mem_free(e->address);
    mem_free(e);
}

void cluster_etcd_registry_close(cluster_etcd_registry *r) {
    if (!r) return;
    cluster_etcd_close(r->etcd);
    for (entry *e; (e = r->entries);) {
        r->entries = e->next;
        free_entry(e);
    }
    mem_free(r);
}

/* A process may have been started anew under another id where the old one listened. */
static void tell_left(cluster_etcd_registry *r, const char *address) {
    for (const entry *e = r->entries; e; e = e->next)
        if (strcmp(e->address, address) == 0) return;
    r->events->left(r->ctx, address);
}

static entry *add(cluster_etcd_registry *r, const char *id) {
    entry *e = mem_zalloc(1, sizeof *e);
    if (!e) return NULL;
    e->registry = r;
    e->id = mem_strdup(id);
    e->address = mem_strdup("");
    if (!e->id || !e->address) {
        free_entry(e);
        return NULL;
    }
    e->next = r->entries;
    r->entries = e;
    return e;
}

static void move(entry *e, const char *address) {
    char *old = e->address, *copy = mem_strdup(address);
    if (!copy) return;                       /* the node is not seen until its record changes or etcd is listed again */
    e->address = copy;
    if (*old) tell_left(e->registry, old);
    mem_free(old);
    e->registry->events->joined(e->registry->ctx, address);
}

static void put(cluster_etcd_registry *r, const Etcdserverpb__KeyValue *kv) {
    size_t prefix = strlen(cluster_etcd_prefix(r->etcd)), bytes = kv->key.len > prefix ? kv->key.len - prefix : 0;
    const char *id = (const char *)kv->key.data + (kv->key.len - bytes), *port;
    char host[256];
    Baton__Node__V1__NodeRecord *record = cluster_etcd_record(&kv->value);
    if (bytes == 0 || !record || strlen(record->id) != bytes || memcmp(record->id, id, bytes) != 0 ||
        !address_split(record->address, host, sizeof host, &port)) {
        log_write(LOG_WARN, NULL, "registry.unread", "key=%.*s: no record of that node, or its address is not HOST:PORT",
                  (int)kv->key.len, (const char *)kv->key.data);
    } else {
        entry *e = find(r, record->id, strlen(record->id));
        if (!e) e = add(r, record->id);
        if (e) {
            e->listed = true;
            set_leaving(e, NULL);
            if (strcmp(e->address, record->address) != 0) move(e, record->address);
        }
    }
    cluster_etcd_record_free(record);
}

static void leave(void *arg);

static void start_grace(entry *e) {
    rpc_timer *t = NULL;
    if (rpc_timer_start(e->registry->loop, GRACE_MS, leave, e, &t) == ST_OK) set_leaving(e, t);
}

/* The grace is over. */
static void leave(void *arg) {
    entry *e = arg, **at = &e->registry->entries;
    e->leaving = NULL;
    if (!e->registry->watching) return start_grace(e);
    while (*at != e) at = &(*at)->next;
    *at = e->next;
    log_write(LOG_INFO, NULL, "registry.left", "node=%s address=%s", e->id, e->address);
    tell_left(e->registry, e->address);
    free_entry(e);
}

/* ---- list and watch ---------------------------------------------------------------------------------- */

static void on_list(void *ctx, const ProtobufCMessage *message);

static void list(cluster_etcd_registry *r) {
    Etcdserverpb__RangeRequest q = ETCDSERVERPB__RANGE_REQUEST__INIT;
    r->watching = false;
    q.key = cluster_etcd_bytes(cluster_etcd_prefix(r->etcd));
    q.range_end = cluster_etcd_bytes(r->range_end);
    cluster_etcd_call(r->etcd, &cluster_etcd_range, &q.base, on_list);
}

static void on_watch(void *ctx, const ProtobufCMessage *message) {
    cluster_etcd_registry *r = ctx;
    const Etcdserverpb__WatchResponse *m = (const Etcdserverpb__WatchResponse *)message;
    if (m->canceled) {
        log_write(LOG_INFO, NULL, "registry.unwatched", "compacted=%lld why=\"%s\"", (long long)m->compact_revision,
                  m->cancel_reason);
        if (m->compact_revision > 0) list(r);
        else cluster_etcd_give_up(r->etcd, *m->cancel_reason ? m->cancel_reason : "watch canceled");
        return;
    }
    size_t prefix = strlen(cluster_etcd_prefix(r->etcd));
    for (size_t i = 0; i < m->n_events; i++) {
        const Etcdserverpb__KeyValue *kv = m->events[i]->kv;
        if (!kv || kv->key.len <= prefix) continue;
        entry *e = find(r, (const char *)kv->key.data + prefix, kv->key.len - prefix);
        if (m->events[i]->type == ETCDSERVERPB__EVENT__EVENT_TYPE__PUT) put(r, kv);
        else if (e) start_grace(e);
    }
}

static void on_list(void *ctx, const ProtobufCMessage *message) {
    cluster_etcd_registry *r = ctx;
    const Etcdserverpb__RangeResponse *m = (const Etcdserverpb__RangeResponse *)message;
    if (!m->header) return cluster_etcd_give_up(r->etcd, "a list without a revision");
    for (entry *e = r->entries; e; e = e->next) e->listed = false;
    for (size_t i = 0; i < m->n_kvs; i++) put(r, m->kvs[i]);
    for (entry *e = r->entries; e; e = e->next)
        if (!e->listed) start_grace(e);      /* anew: etcd may have been away until now */
    log_write(LOG_INFO, NULL, "registry.listed", "nodes=%zu revision=%lld", m->n_kvs, (long long)m->header->revision);
    Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    Etcdserverpb__WatchRequest q = ETCDSERVERPB__WATCH_REQUEST__INIT;
    create.key = cluster_etcd_bytes(cluster_etcd_prefix(r->etcd));
    create.range_end = cluster_etcd_bytes(r->range_end);
    create.start_revision = m->header->revision + 1;
    q.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    q.create_request = &create;
    r->watching = true;
    cluster_etcd_call(r->etcd, &cluster_etcd_watch, &q.base, on_watch);
}

static void on_connected(void *ctx) { list(ctx); }
static void on_lost(void *ctx) { ((cluster_etcd_registry *)ctx)->watching = false; }
