/* follow.c -- a rank of a node that is not rank 0: does what that one tells it until it is dismissed or the group
 * is lost.
 *
 * The calling thread is this rank's engine thread. The kvt thread leaves its reports in a list; rank 0 asks for
 * them (asked). A transfer's block table is copied from its note and lives until its last report was given. */
#include "node/note.h"
#include <assert.h>
#include <pthread.h>
#include <string.h>

/* A transfer that is not over, with the memory its order points into. */
typedef struct held {
    struct held *next;
    uint64_t transfer;
    node_report refused;
    node_note note;
} held;

typedef struct follower {
    node_rank rank;
    held *held;                  /* engine thread's */
    pthread_mutex_t lock;
    node_report *first, **last;  /* [lock] */
} follower;

/* ---- reports --------------------------------------------------------------------------------------- */

static void report(void *ctx, node_report *r) {
    follower *f = ctx;
    r->next = NULL;
    pthread_mutex_lock(&f->lock);
    *f->last = r;
    f->last = &r->next;
    pthread_mutex_unlock(&f->lock);
}

static void forget(follower *f, uint64_t transfer) {
    held **at = &f->held;
    while (*at && (*at)->transfer != transfer) at = &(*at)->next;
    held *h = *at;
    node_transfer_forget(&f->rank, transfer);
    if (h) *at = h->next;
    mem_free(h);
}

static bool take_report(follower *f, node_heard *out) {
    pthread_mutex_lock(&f->lock);
    node_report *r = f->first;
    if (r) {
        *out = r->heard;
        f->first = r->next;
        if (!f->first) f->last = &f->first;
    }
    pthread_mutex_unlock(&f->lock);
    return r != NULL;
}

static void asked(void *ctx, void *answer, size_t bytes) {
    follower *f = ctx;
    node_answer *a = answer;
    if (bytes == 0) return;                  /* rank 0 waits for us to have heard its notes */
    assert(bytes == sizeof *a);
    while (a->count < NODE_ANSWER_HEARD && take_report(f, &a->heard[a->count])) {
        const node_heard *h = &a->heard[a->count++];
        if (h->kind != NODE_HEARD_FIRST) forget(f, h->transfer);
    }
    a->figures = node_rank_count(&f->rank);
}

/* ---- notes ----------------------------------------------------------------------------------------- */

/* A transfer that could not begin is over: rank 0 hears it like any other end. */
static void refuse(follower *f, held *h, node_heard_kind kind, status st) {
    node_report *r = &h->refused;
    r->heard = (node_heard){.transfer = h->transfer, .kind = (int32_t)kind, .st = (int32_t)st};
    report(f, r);
}

static void begin(follower *f, const node_note *n, size_t bytes) {
    held *h = mem_alloc(offsetof(held, note) + bytes);
    error err = {.code = ST_NO_MEMORY, .text = "no memory for a transfer"};
    if (!h) node_rank_lost(&err);            /* rank 0 would wait for ever */
    h->transfer = n->transfer;
    h->next = f->held;
    f->held = h;
    memcpy(&h->note, n, bytes);
    n = &h->note;
    node_order o = {.transfer = n->transfer, .ticket = n->ticket, .epoch = n->epoch, .id = n->id, .blocks = n->blocks,
                    .token_first = n->token_first, .token_end = n->token_end, .lease_ms = n->lease_ms,
                    .key = n->sealed ? n->key : NULL, .addresses = n->addresses, .type = (eng_kv_type)n->type};
    bool receives = n->kind == NODE_NOTE_PROMISE;
    status st = receives ? node_transfer_promise(&f->rank, &o) : node_transfer_send(&f->rank, &o, &err);
    kvt_key_wipe(h->note.key, sizeof h->note.key);
    if (st != ST_OK) refuse(f, h, receives ? NODE_HEARD_LANDED : NODE_HEARD_SENT, st);
}

static void told(void *ctx, const void *note, size_t bytes) {
    follower *f = ctx;
    const node_note *n = note;
    error err;
    if (bytes < sizeof *n || bytes != sizeof *n + (size_t)n->blocks_count * sizeof *n->blocks) {
        error_set(&err, ST_INTERNAL, "rank 0's note of %zu bytes is not one of this version", bytes);
        node_rank_lost(&err);
    }
    switch ((node_note_kind)n->kind) {
    case NODE_NOTE_PROMISE:
    case NODE_NOTE_SEND: begin(f, n, bytes); return;
    case NODE_NOTE_REVOKE: node_transfer_revoke(&f->rank, n->ticket); return;
    case NODE_NOTE_PUSH: node_transfer_push(&f->rank, n->transfer, n->token_first, n->token_end - n->token_first); return;
    case NODE_NOTE_END: node_transfer_end(&f->rank, n->transfer); return;
    case NODE_NOTE_ABORT: node_transfer_abort(&f->rank, n->transfer); return;
    case NODE_NOTE_SWAP_OUT:
    case NODE_NOTE_SWAP_IN:
        node_swap_move(&f->rank, n->kind == NODE_NOTE_SWAP_OUT, n->blocks, n->blocks + n->blocks_count / 2, n->token_first,
                       n->token_end);
        return;
    }
    error_set(&err, ST_INTERNAL, "rank 0's note of kind %d is not one of this version", n->kind);
    node_rank_lost(&err);
}

/* ---- life ------------------------------------------------------------------------------------------ */

status node_follow(const node_options *o, error *err) {
    follower *f = mem_zalloc(1, sizeof *f);
    if (!f) return error_set(err, ST_NO_MEMORY, "no memory for a rank");
    node_limits limits;
    node_limits_set(&limits, o);
    f->rank.report = report;
    f->rank.ctx = f;
    f->last = &f->first;
    pthread_mutex_init(&f->lock, NULL);
    status st = node_rank_open(&f->rank, o, &limits, err);
    if (st == ST_OK) {
        eng_ear ear = {.ctx = f, .told = told, .asked = asked};
        node_rank_log_memory(&f->rank, o, &limits, NULL, 0);
        log_write(LOG_INFO, NULL, "rank.ready", "rank=%d of %d kv=%s", o->rank, o->ranks, kvt_node_address(f->rank.kvt));
        st = eng_follow(f->rank.model, f->rank.kv, &ear, err);
    }
    node_rank_close(&f->rank);
    while (f->held) forget(f, f->held->transfer);
    pthread_mutex_destroy(&f->lock);
    mem_free(f);
    return st;
}
