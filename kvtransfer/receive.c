/* receive.c -- promises kept: a frame is judged, landed, answered; a promise ends exactly once.
 *
 * The fence. ended() is called once per receipt, on the node's thread, after its promise has left the
 * table (promise.c). Landing is: judge under the lock, then sink->land() without it, both on this same
 * thread. So when ended() runs, no land() of that ticket is running, and no later frame can pass the
 * judge: the pages may have a new owner.
 *
 *   OPEN -> ended  [kvt_receive_frame]     the last END (ST_OK), one that came short (ST_CORRUPT) or an
 *                                          ABORT (ST_CANCELED) came
 *   OPEN -> ended  [kvt_receive_corrupt]   payload damaged: ST_CORRUPT, the link goes too. Of a promise with a key it
 *                                          is a wrong tag, which ends the link alone [distrust]
 *   OPEN -> ended  [kvt_receive_link_lost] a link that carried rows died before its END: ST_PEER_LOST;
 *                                          without one it waits for its lease
 *   OPEN -> ended  [kvt_receive_expire]    lease over: ST_DEADLINE
 *   OPEN -> ended  [kvt_receive_close]     the node closes: ST_CANCELED
 *   OPEN -> REVOKED [kvt_revoke]           any thread: out of the table at once ...
 *   REVOKED -> ended [kvt_receive_revoked] ... and told on the node's thread: ST_CANCELED
 *
 * A frame is judged twice: by its header alone before a payload byte is read, and again when the payload
 * is whole, for the promise may be gone by then. In between a sealed one is opened with the key of the very promise
 * that it is judged by; before that nothing it says is believed, not even that its link owes an END. */
#include "kvtransfer/internal.h"
#include <assert.h>
#include <string.h>

#define REFUSED(var, reason)                                                                        \
    METRIC(var, "baton_kv_frames_refused_total", "reason=\"" reason "\"", METRIC_COUNTER,           \
           "KV frames that did not land, by reason")
REFUSED(refused_crc, "crc");
REFUSED(refused_epoch, "epoch");
REFUSED(refused_ticket, "ticket");
REFUSED(refused_bounds, "bounds");
REFUSED(refused_type, "type");
REFUSED(refused_duplicate, "duplicate");
REFUSED(refused_header, "header");
REFUSED(refused_sealing, "sealing");
REFUSED(refused_tag, "tag");
REFUSED(refused_replay, "replay");
METRIC(received_bytes, "baton_kv_bytes_received_total", NULL, METRIC_COUNTER,
       "KV payload bytes received and checked");

void kvt_receive_show(void) {
    metric *const all[] = {&refused_crc,    &refused_epoch,   &refused_ticket, &refused_bounds, &refused_type,  &refused_duplicate,
                           &refused_header, &refused_sealing, &refused_tag,    &refused_replay, &received_bytes};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) metric_show(all[i]);
}

/* ---- any thread ------------------------------------------------------------------------------ */

static void list_add(kvt_receipt **head, kvt_receipt *r) {
    r->prev = NULL;
    r->next = *head;
    if (*head) (*head)->prev = r;
    *head = r;
}

static void list_remove(kvt_receipt **head, kvt_receipt *r) {
    if (r->prev)
        r->prev->next = r->next;
    else
        *head = r->next;
    if (r->next) r->next->prev = r->prev;
}

static void destroy(kvt_receipt *r) {
    kvt_key_wipe(r->key, sizeof r->key);
    mem_free(r);
}

status kvt_promise(kvt_node *n, uint64_t ticket, uint32_t epoch, const kvt_geometry *g,
                   uint32_t token_first, uint32_t token_end, uint32_t lease_ms, const unsigned char *key,
                   const kvt_sink *sink, void *ctx) {
    kvt_receipt *r = mem_zalloc(1, sizeof *r);
    if (!r) return ST_NO_MEMORY;
    r->ticket = ticket;
    r->sink = sink;
    r->ctx = ctx;
    r->sealed = key != NULL;
    if (key) memcpy(r->key, key, sizeof r->key);
    pthread_mutex_lock(&n->lock);
    status s = n->closing ? ST_CANCELED : kvt_node_takes_key(n, key);
    if (s == ST_OK)
        s = kvt_promises_add(n->promises, ticket, epoch, g, token_first, token_end, lease_ms, clock_now_ms(), r);
    if (s == ST_OK) {
        list_add(&n->receipts, r);
        kvt_node_wake(n); /* the loop may sleep past this lease */
    }
    pthread_mutex_unlock(&n->lock);
    if (s != ST_OK) destroy(r);
    return s;
}

/* [lock] Out of the table: from here on nothing lands. */
static void withdraw(kvt_node *n, kvt_receipt *r) {
    r->landed = kvt_promises_landed(n->promises, r->ticket);
    bool known = kvt_promises_remove(n->promises, r->ticket);
    assert(known);
    list_remove(&n->receipts, r);
}

void kvt_revoke(kvt_node *n, uint64_t ticket) {
    pthread_mutex_lock(&n->lock);
    kvt_receipt *r = kvt_promises_owner(n->promises, ticket);
    if (r) {
        withdraw(n, r);
        r->revoked = true;
        list_add(&n->revoked, r);
        kvt_node_wake(n);
    }
    pthread_mutex_unlock(&n->lock);
}

/* ---- the node's thread ----------------------------------------------------------------------- */

/* Ends a receipt, unless kvt_revoke() was quicker: then kvt_receive_revoked() does. */
static void end(kvt_node *n, kvt_receipt *r, status s) {
    pthread_mutex_lock(&n->lock);
    bool ours = !r->revoked;
    if (ours) withdraw(n, r);
    pthread_mutex_unlock(&n->lock);
    if (!ours) return;
    r->sink->ended(r->ctx, s, r->landed);
    destroy(r);
}

void kvt_receive_revoked(kvt_node *n) {
    for (;;) {
        pthread_mutex_lock(&n->lock);
        kvt_receipt *r = n->revoked;
        if (r) list_remove(&n->revoked, r);
        pthread_mutex_unlock(&n->lock);
        if (!r) return;
        r->sink->ended(r->ctx, ST_CANCELED, r->landed);
        destroy(r);
    }
}

void kvt_receive_count_header(void) { metric_add(&refused_header, 1); }

static void count_refused(kvt_verdict v) {
    switch (v) {
    case KVT_REFUSE_TICKET: metric_add(&refused_ticket, 1); break;
    case KVT_REFUSE_EPOCH: metric_add(&refused_epoch, 1); break;
    case KVT_REFUSE_BOUNDS: metric_add(&refused_bounds, 1); break;
    case KVT_REFUSE_TYPE: metric_add(&refused_type, 1); break;
    case KVT_REFUSE_SEALING: metric_add(&refused_sealing, 1); break;
    case KVT_REFUSE_TAG: metric_add(&refused_tag, 1); break;
    case KVT_REFUSE_REPLAY: metric_add(&refused_replay, 1); break;
    default: metric_add(&refused_duplicate, 1); break;
    }
}

static void answer(kvt_link *l, const kvt_frame *f, status code) {
    kvt_link_say(l, &(kvt_frame){.kind = KVT_ACK, .ticket = f->ticket, .epoch = f->epoch, .code = (uint32_t)code}, NULL);
}

/* Counts a frame that will not land and tells its sender, once for a run of the same ticket, so that a
 * sender in full flow cannot make us queue an answer a frame. A duplicate needs no answer; an ABORT of
 * what is gone already asks for nothing. */
static void refuse(kvt_link *l, const kvt_frame *f, kvt_verdict v) {
    if (f->kind == KVT_ABORT && v != KVT_REFUSE_SEALING) return;
    count_refused(v);
    if (v == KVT_DUPLICATE || f->kind == KVT_ABORT) return;
    if (f->kind == KVT_DATA && l->told && l->told_ticket == f->ticket && l->told_epoch == f->epoch)
        return;
    l->told = true;
    l->told_ticket = f->ticket;
    l->told_epoch = f->epoch;
    bool stale = v == KVT_REFUSE_TICKET || v == KVT_REFUSE_EPOCH;
    answer(l, f, stale ? ST_PEER_STALE : v == KVT_REFUSE_SEALING ? ST_REFUSED : ST_BAD_INPUT);
}

/* Whether this link owes the promise an END: from its first box until the END. */
static void touch(const kvt_link *l, kvt_receipt *r, bool owes) {
    uint64_t bit = UINT64_C(1) << (l->slot % 64), *word = &r->links[l->slot / 64];
    *word = owes ? *word | bit : *word & ~bit;
}

static bool touched(const kvt_link *l, const kvt_receipt *r) {
    return r->links[l->slot / 64] >> (l->slot % 64) & 1;
}

/* By the header alone. *r lives until this thread frees it; NULL: unknown, or another epoch's. */
static kvt_verdict check(kvt_node *n, const kvt_frame *f, kvt_receipt **r) {
    void *owner;
    pthread_mutex_lock(&n->lock);
    kvt_verdict v = kvt_promises_check(n->promises, f, &owner);
    pthread_mutex_unlock(&n->lock);
    *r = owner;
    return *r && (*r)->sealed != f->sealed ? KVT_REFUSE_SEALING : v;
}

kvt_verdict kvt_receive_check(kvt_link *l, const kvt_frame *f) {
    kvt_receipt *r;
    kvt_verdict v = check(l->node, f, &r);
    if (v != KVT_TAKE) refuse(l, f, v);
    else if (!f->sealed) touch(l, r, true);
    return v;
}

/* NULL: there have been too many. */
static kvt_sender *sender_of(kvt_receipt *r, const unsigned char *salt) {
    for (int i = 0; i < r->senders_count; i++)
        if (!memcmp(r->senders[i].salt, salt, KVT_SALT_BYTES)) return &r->senders[i];
    if (r->senders_count == KVT_SENDERS_MAX) return NULL;
    kvt_sender *x = &r->senders[r->senders_count++];
    memcpy(x->salt, salt, KVT_SALT_BYTES);
    return x;
}

/* KVT_TAKE: it was sealed with the promise's key and is new. Senders are told apart only after the tag was found
 * right, so that nobody else fills the table. */
static kvt_verdict unseal(kvt_link *l, const kvt_frame *f, kvt_receipt *r, void *payload) {
    if (!kvt_unseal(l->node->cipher, r->key, f, l->header, l->seal, payload)) return KVT_REFUSE_TAG;
    kvt_sender *x = sender_of(r, l->seal);
    if (!x || f->number < x->next) return KVT_REFUSE_REPLAY;
    x->next = (uint64_t)f->number + 1;
    return KVT_TAKE;
}

/* Whoever writes such frames, or changes them on their way, is not listened to any further. */
static void distrust(kvt_link *l, const kvt_frame *f, kvt_verdict v) {
    const char *why = v == KVT_REFUSE_TAG ? "a frame's tag is wrong" : "a frame came again";
    count_refused(v);
    log_write(LOG_WARN, NULL, "kv.link", "closed: %s ticket=%llu epoch=%u number=%u bytes=%u", why,
              (unsigned long long)f->ticket, f->epoch, f->number, f->payload_bytes);
    kvt_link_fail(l, ST_PEER_LOST, why);
}

/* Judges f by r's promise and no other that may have its ticket by now. */
static kvt_verdict judge(kvt_node *n, const kvt_frame *f, const kvt_receipt *r) {
    void *owner;
    pthread_mutex_lock(&n->lock);
    kvt_verdict v = KVT_REFUSE_TICKET;
    if (kvt_promises_owner(n->promises, f->ticket) == r) v = kvt_promises_judge(n->promises, f, clock_now_ms(), &owner);
    pthread_mutex_unlock(&n->lock);
    return v;
}

void kvt_receive_frame(kvt_link *l, const kvt_frame *f, void *payload) {
    kvt_node *n = l->node;
    kvt_receipt *r;
    kvt_verdict v = check(n, f, &r);
    if (!r || v == KVT_REFUSE_SEALING) {
        refuse(l, f, v);
        return;
    }
    if (f->sealed && (v = unseal(l, f, r, payload)) != KVT_TAKE) {
        distrust(l, f, v);
        return;
    }
    switch (v = judge(n, f, r)) {
    case KVT_TAKE:
        if (f->sealed) touch(l, r, true);
        metric_add(&received_bytes, f->payload_bytes);
        r->sink->land(r->ctx, f, payload);
        break;
    case KVT_PART: /* this sender's pages are free; should its link close now, nobody minds */
        touch(l, r, false);
        answer(l, f, ST_OK);
        break;
    case KVT_DONE:
        end(n, r, ST_OK);
        answer(l, f, ST_OK);
        break;
    case KVT_SHORT:
        end(n, r, ST_CORRUPT);
        answer(l, f, ST_CORRUPT);
        break;
    case KVT_ABORTED:
        end(n, r, ST_CANCELED);
        answer(l, f, ST_CANCELED);
        break;
    default: refuse(l, f, v); break;
    }
}

/* The owner of a promise this very frame belongs to; NULL when it is gone or another epoch's. */
static kvt_receipt *owner_of(kvt_node *n, const kvt_frame *f) {
    void *owner;
    pthread_mutex_lock(&n->lock);
    kvt_promises_check(n->promises, f, &owner);
    pthread_mutex_unlock(&n->lock);
    return owner;
}

/* A path that flipped one bit may have flipped others that no check sees: the link goes as well. */
void kvt_receive_corrupt(kvt_link *l, const kvt_frame *f) {
    kvt_receipt *r = owner_of(l->node, f);
    metric_add(&refused_crc, 1);
    log_write(LOG_WARN, NULL, "kv.link", "closed: payload CRC differs ticket=%llu epoch=%u bytes=%u",
              (unsigned long long)f->ticket, f->epoch, f->payload_bytes);
    if (r) end(l->node, r, ST_CORRUPT);
    kvt_link_fail(l, ST_PEER_LOST, "payload CRC differs");
}

/* The first open receipt (l: that this link has touched). Asked anew after each end, because a callback
 * may change the list at will. */
static kvt_receipt *first_open(kvt_node *n, const kvt_link *l) {
    pthread_mutex_lock(&n->lock);
    kvt_receipt *r = n->receipts;
    while (r && l && !touched(l, r)) r = r->next;
    pthread_mutex_unlock(&n->lock);
    return r;
}

/* A promise that this link has not touched, or has brought all it had to, goes on: other senders may still
 * come, or its lease ends. */
void kvt_receive_link_lost(kvt_link *l) {
    for (kvt_receipt *r; (r = first_open(l->node, l));) end(l->node, r, ST_PEER_LOST);
}

void kvt_receive_close(kvt_node *n) {
    for (kvt_receipt *r; (r = first_open(n, NULL));) end(n, r, ST_CANCELED);
    kvt_receive_revoked(n);
}

void kvt_receive_expire(kvt_node *n, int64_t now_ms) {
    for (;;) {
        uint64_t ticket;
        void *owner;
        uint32_t landed;
        pthread_mutex_lock(&n->lock);
        bool any = kvt_promises_expire(n->promises, now_ms, &ticket, &owner, &landed);
        if (any) list_remove(&n->receipts, owner);
        pthread_mutex_unlock(&n->lock);
        if (!any) return;
        kvt_receipt *r = owner;
        r->sink->ended(r->ctx, ST_DEADLINE, landed);
        destroy(r);
    }
}
