/* cluster_etcd_fake.h -- an etcd of the test's own, as far as cluster/ speaks with it: keys with revisions and leases,
 * one watch. It runs on the test's loop and thread, inside run_until(). The real one: tests/cluster/etcd.py. */
#ifndef BATON_TESTS_CLUSTER_ETCD_FAKE_H
#define BATON_TESTS_CLUSTER_ETCD_FAKE_H

#include "cluster/cluster.h"
#include "proto/etcd.pb-c.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

enum { FAKE_KEYS = 4, PATIENCE_MS = 20000 };

typedef struct fake_key {
    char key[80];
    uint8_t value[400];
    size_t bytes;
    int64_t created, changed, lease;
} fake_key;

static struct {
    rpc_loop *loop;
    rpc_server *server;
    fake_key keys[FAKE_KEYS];
    int count;
    int64_t revision, leases, revoked, watched_from;
    rpc_call *watch;
    int lists, watches, puts;
    char token[20];              /* of the last Range, "" : none */
    void (*before_txn)(void);    /* called once: another client is faster */
} fake;

static ProtobufCBinaryData fake_bytes(const void *data, size_t bytes) {
    return (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)(uintptr_t)data};
}

static fake_key *fake_find(const char *key, size_t bytes) {
    for (int i = 0; i < fake.count; i++)
        if (strlen(fake.keys[i].key) == bytes && memcmp(fake.keys[i].key, key, bytes) == 0) return &fake.keys[i];
    return NULL;
}

static fake_key *fake_put(const char *key, size_t key_bytes, const void *value, size_t bytes, int64_t lease) {
    fake_key *k = fake_find(key, key_bytes);
    assert_true(k || fake.count < FAKE_KEYS);
    assert_true(bytes <= sizeof k->value);
    fake.revision++;
    if (!k) {
        k = &fake.keys[fake.count++];
        *k = (fake_key){.created = fake.revision};
        memcpy(k->key, key, key_bytes);
    }
    memcpy(k->value, value, bytes);
    k->bytes = bytes;
    k->changed = fake.revision;
    k->lease = lease;
    return k;
}

static fake_key *fake_put_record(const char *id, uint64_t epoch, const char *address, int64_t lease) {
    Baton__Node__V1__NodeRecord r = BATON__NODE__V1__NODE_RECORD__INIT;
    uint8_t packed[400];
    char key[80];
    r.id = (char *)(uintptr_t)id;
    r.epoch = epoch;
    r.address = (char *)(uintptr_t)address;
    size_t bytes = baton__node__v1__node_record__pack(&r, packed);
    int n = snprintf(key, sizeof key, "/t/nodes/%s", id);
    return fake_put(key, (size_t)n, packed, bytes, lease);
}

static Etcdserverpb__KeyValue fake_kv(const fake_key *k) {
    Etcdserverpb__KeyValue kv = ETCDSERVERPB__KEY_VALUE__INIT;
    kv.key = fake_bytes(k->key, strlen(k->key));
    kv.value = fake_bytes(k->value, k->bytes);
    kv.create_revision = k->created;
    kv.mod_revision = k->changed;
    kv.lease = k->lease;
    return kv;
}

static void fake_answer(rpc_call *call, const ProtobufCMessage *m) {
    assert_int_equal(rpc_call_send(call, m), ST_OK);
    rpc_call_finish(call, ST_OK, NULL, -1);
}

static bool fake_in_range(const fake_key *k, const Etcdserverpb__RangeRequest *q) {
    size_t bytes = strlen(k->key);
    if (q->range_end.len == 0) return bytes == q->key.len && memcmp(k->key, q->key.data, bytes) == 0;
    return memcmp(k->key, q->key.data, q->key.len) >= 0 && memcmp(k->key, q->range_end.data, q->range_end.len) < 0;
}

typedef struct fake_range_reply {
    Etcdserverpb__RangeResponse m;
    Etcdserverpb__ResponseHeader header;
    Etcdserverpb__KeyValue kvs[FAKE_KEYS], *list[FAKE_KEYS];
} fake_range_reply;

static void fake_read(const Etcdserverpb__RangeRequest *q, fake_range_reply *r) {
    etcdserverpb__range_response__init(&r->m);
    etcdserverpb__response_header__init(&r->header);
    r->header.revision = fake.revision;
    r->m.header = &r->header;
    r->m.kvs = r->list;
    for (int i = 0; i < fake.count; i++) {
        if (!fake_in_range(&fake.keys[i], q)) continue;
        r->kvs[i] = fake_kv(&fake.keys[i]);
        r->list[r->m.n_kvs++] = &r->kvs[i];
    }
}

static void fake_range(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    (void)ctx;
    const Etcdserverpb__RangeRequest *q = (const Etcdserverpb__RangeRequest *)message;
    fake_range_reply r;
    const char *token = rpc_call_header(call, "token");
    snprintf(fake.token, sizeof fake.token, "%s", token ? token : "");
    assert_string_equal(rpc_call_header(call, "hasleader"), "true");
    if (q->range_end.len) fake.lists++;
    fake_read(q, &r);
    fake_answer(call, &r.m.base);
}

static void fake_txn(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    (void)ctx;
    const Etcdserverpb__TxnRequest *q = (const Etcdserverpb__TxnRequest *)message;
    Etcdserverpb__TxnResponse r = ETCDSERVERPB__TXN_RESPONSE__INIT;
    Etcdserverpb__ResponseOp op = ETCDSERVERPB__RESPONSE_OP__INIT, *ops[] = {&op};
    fake_range_reply read;
    void (*hook)(void) = fake.before_txn;
    fake.before_txn = NULL;
    if (hook) hook();
    assert_true(q->n_compare == 1 && q->n_success == 1 && q->n_failure == 1);
    const Etcdserverpb__Compare *c = q->compare[0];
    const fake_key *k = fake_find((const char *)c->key.data, c->key.len);
    bool created = c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
    assert_true(created || c->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD);
    r.succeeded = (created ? k ? k->created : 0 : k ? k->changed : 0) == (created ? c->create_revision : c->mod_revision);
    if (r.succeeded) {
        const Etcdserverpb__PutRequest *put = q->success[0]->request_put;
        fake_put((const char *)put->key.data, put->key.len, put->value.data, put->value.len, put->lease);
        fake.puts++;
    } else {
        fake_read(q->failure[0]->request_range, &read);
        op.response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE;
        op.response_range = &read.m;
        r.responses = ops;
        r.n_responses = 1;
    }
    fake_answer(call, &r.base);
}

static void fake_grant(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    (void)message, (void)ctx;
    Etcdserverpb__LeaseGrantResponse r = ETCDSERVERPB__LEASE_GRANT_RESPONSE__INIT;
    r.id = ++fake.leases;
    fake_answer(call, &r.base);
}

static void fake_revoke(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    (void)ctx;
    Etcdserverpb__LeaseRevokeResponse r = ETCDSERVERPB__LEASE_REVOKE_RESPONSE__INIT;
    fake.revoked = ((const Etcdserverpb__LeaseRevokeRequest *)message)->id;
    fake_answer(call, &r.base);
}

static void fake_authenticate(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    (void)ctx;
    const Etcdserverpb__AuthenticateRequest *q = (const Etcdserverpb__AuthenticateRequest *)message;
    Etcdserverpb__AuthenticateResponse r = ETCDSERVERPB__AUTHENTICATE_RESPONSE__INIT;
    assert_string_equal(q->name, "me");
    assert_string_equal(q->password, "p@ss");
    r.token = (char *)(uintptr_t)"open";
    fake_answer(call, &r.base);
}

static void fake_watch_over(rpc_call *call, void *user) {
    (void)user;
    if (fake.watch == call) fake.watch = NULL;
    rpc_call_finish(call, ST_CANCELED, NULL, -1);
}

static void fake_watch_say(Etcdserverpb__WatchResponse *r) { assert_int_equal(rpc_call_send(fake.watch, &r->base), ST_OK); }

/* One key was written, or is gone. */
static inline void fake_tell(bool deleted, const fake_key *k) {
    Etcdserverpb__WatchResponse r = ETCDSERVERPB__WATCH_RESPONSE__INIT;
    Etcdserverpb__Event e = ETCDSERVERPB__EVENT__INIT, *list[] = {&e};
    Etcdserverpb__KeyValue kv = fake_kv(k);
    if (deleted) kv.value.len = 0;
    e.type = deleted ? ETCDSERVERPB__EVENT__EVENT_TYPE__DELETE : ETCDSERVERPB__EVENT__EVENT_TYPE__PUT;
    e.kv = &kv;
    r.events = list;
    r.n_events = 1;
    fake_watch_say(&r);
}

static void fake_on_watch(rpc_call *call, const ProtobufCMessage *message, void *ctx) {
    static const rpc_call_events events = {fake_watch_over, NULL, NULL};
    (void)ctx;
    const Etcdserverpb__WatchRequest *q = (const Etcdserverpb__WatchRequest *)message;
    Etcdserverpb__WatchResponse r = ETCDSERVERPB__WATCH_RESPONSE__INIT;
    rpc_call_watch(call, &events, NULL);
    fake.watch = call;
    fake.watches++;
    fake.watched_from = q->create_request->start_revision;
    r.created = true;
    fake_watch_say(&r);
}

#define FAKE_METHOD(path_, kind_, in, out, fn)                                                                         \
    {"/etcdserverpb." path_, kind_, &etcdserverpb__##in##__descriptor, &etcdserverpb__##out##__descriptor, fn}

static const rpc_method fake_methods[] = {
    FAKE_METHOD("KV/Range", RPC_UNARY, range_request, range_response, fake_range),
    FAKE_METHOD("KV/Txn", RPC_UNARY, txn_request, txn_response, fake_txn),
    FAKE_METHOD("Lease/LeaseGrant", RPC_UNARY, lease_grant_request, lease_grant_response, fake_grant),
    FAKE_METHOD("Lease/LeaseRevoke", RPC_UNARY, lease_revoke_request, lease_revoke_response, fake_revoke),
    FAKE_METHOD("Auth/Authenticate", RPC_UNARY, authenticate_request, authenticate_response, fake_authenticate),
    FAKE_METHOD("Watch/Watch", RPC_SERVER_STREAM, watch_request, watch_response, fake_on_watch),
};

/* Fills spec with its address. One of the two endpoints there is nobody's. */
static void fake_open(char *spec, size_t bytes) {
    error err = {0};
    memset(&fake, 0, sizeof fake);
    assert_int_equal(rpc_loop_create(&fake.loop, &err), ST_OK);
    if (rpc_server_open(fake.loop, "127.0.0.1:0", fake_methods, sizeof fake_methods / sizeof *fake_methods, NULL,
                        &fake.server, &err) != ST_OK)
        fail_msg("%s", err.text);
    rpc_server_start(fake.server);
    snprintf(spec, bytes, "etcd://me:p%%40ss@127.0.0.1:1,%s/t/", rpc_server_address(fake.server));
}

static void fake_close(void) {
    rpc_server_close(fake.server, NULL, NULL);
    rpc_loop_destroy(fake.loop);
    assert_int_equal(mem_live(), 0);
}

static bool (*fake_awaited)(void);
static int64_t fake_give_up_ms;

static void fake_look(void *arg) {
    (void)arg;
    rpc_timer *t;
    if (fake_awaited() || clock_now_ms() > fake_give_up_ms) rpc_loop_stop(fake.loop);
    else rpc_timer_start(fake.loop, 2, fake_look, NULL, &t);
}

static void run_until(bool (*so)(void), const char *what) {
    rpc_timer *t;
    fake_awaited = so;
    fake_give_up_ms = clock_now_ms() + PATIENCE_MS;
    rpc_timer_start(fake.loop, 0, fake_look, NULL, &t);
    rpc_loop_run(fake.loop);
    if (!so()) fail_msg("not within %d ms: %s", PATIENCE_MS, what);
}

#endif
