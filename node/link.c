/* link.c -- the core's transfers and swapped pages, on all ranks of the node.
 *
 * A passage is one of the core's promises or sends: this rank's part (transfer.c) and, in a group, the same on
 * every other rank, told by notes. The core hears of its end once all ranks have said theirs: what has landed is
 * what has landed everywhere, and pages are given back when nobody can touch them any more. One rank's failure ends
 * the others' parts.
 *
 * All on the engine thread: this rank's reports come by the mailbox, the others' are asked for (node_link_turn). */
#include "node/internal.h"
#include "node/note.h"
#include "node/seq.h"
#include <assert.h>
#include <string.h>

typedef struct passage {
    struct passage *next;
    uint64_t number, ticket, handle;
    bool receives, began, ended_early;
    int left;                    /* ranks that have not said its end */
    status st;                   /* ST_OK of all, or a failure, rather than what was aborted because of it */
    int64_t tokens, wire_us;
    uint64_t bytes;
    bool sealed;                 /* receives: with */
    unsigned char key[KVT_KEY_BYTES];
} passage;

struct node_link {
    passage *first;
    uint64_t made;               /* passages, for their numbers */
    int64_t told_ms;             /* when the group last had a call of ours */
    bool seals;                  /* what is promised here has a key */
    node_answer answers[COLL_RANKS_MAX];
};

/* ---- telling --------------------------------------------------------------------------------------- */

/* blocks and more_blocks (NULL: none) are n->blocks_count together, half of them each. */
static void tell_both(node_process *p, const node_note *n, const int32_t *blocks, const int32_t *more_blocks) {
    error err;
    if (!p->rank.group) return;
    size_t bytes = sizeof *n + (size_t)n->blocks_count * sizeof *blocks;
    size_t count = (size_t)n->blocks_count / (more_blocks ? 2 : 1);
    node_note *whole = mem_alloc(bytes);
    if (!whole) {
        error_set(&err, ST_NO_MEMORY, "no memory for a note of %zu bytes", bytes);
        node_rank_lost(&err);                /* the ranks would not hold the same any more */
    }
    memcpy(whole, n, sizeof *n);
    if (count) memcpy(whole->blocks, blocks, count * sizeof *blocks);
    if (more_blocks) memcpy(whole->blocks + count, more_blocks, count * sizeof *blocks);
    status st = eng_tell(p->rank.model, whole, bytes, &err);
    kvt_key_wipe(whole->key, sizeof whole->key);
    mem_free(whole);
    if (st != ST_OK) node_rank_lost(&err);
    p->link->told_ms = clock_now_ms();
}

static void tell(node_process *p, const node_note *n, const int32_t *blocks) { tell_both(p, n, blocks, NULL); }

static void tell_short(node_process *p, node_note_kind kind, const passage *x) {
    node_note n = {.kind = (int32_t)kind, .transfer = x->number, .ticket = x->ticket};
    tell(p, &n, NULL);
}

/* ---- hearing --------------------------------------------------------------------------------------- */

static passage *find(const node_process *p, uint64_t number) {
    passage *x = p->link->first;
    while (x && x->number != number) x = x->next;
    return x;
}

static void drop(node_process *p, passage *x) {
    passage **at = &p->link->first;
    while (*at != x) at = &(*at)->next;
    *at = x->next;
    node_transfer_forget(&p->rank, x->number);
    kvt_key_wipe(x->key, sizeof x->key);
    mem_free(x);
}

static void give_up(node_process *p, passage *x) {
    if (x->ended_early || x->left == 0) return;
    x->ended_early = true;
    if (x->receives) node_transfer_revoke(&p->rank, x->ticket);
    else node_transfer_abort(&p->rank, x->number);
    tell_short(p, x->receives ? NODE_NOTE_REVOKE : NODE_NOTE_ABORT, x);
}

static void ended(node_process *p, passage *x) {
    int64_t now_us = clock_now_us();
    passage was = *x;
    drop(p, x);
    if (was.receives) node_core_landed(p->core, was.handle, was.st, (int32_t)was.tokens, now_us);
    else node_core_sent(p->core, was.handle, was.st, was.bytes, was.wire_us, now_us);
}

static void heard(node_process *p, const node_heard *h) {
    passage *x = find(p, h->transfer);
    if (!x) return;
    if (h->kind == NODE_HEARD_FIRST) {
        if (!x->began) node_core_landing(p->core, x->handle);
        x->began = true;
        return;
    }
    if (h->tokens < x->tokens) x->tokens = h->tokens;
    if (h->wire_us > x->wire_us) x->wire_us = h->wire_us;
    x->bytes += h->bytes;
    if (x->st == ST_OK || (x->st == ST_CANCELED && h->st != ST_OK)) x->st = (status)h->st;
    x->left--;
    if (h->st != ST_OK) give_up(p, x);
    if (x->left == 0) ended(p, x);
}

static void run_report(node_process *p, node_message *m) {
    node_heard h = ((node_report *)m)->heard;    /* it stands in the transfer, which may go now */
    heard(p, &h);
}

static void report(void *process, node_report *r) {
    r->message.run = run_report;
    node_process_post(process, &r->message);
}

/* ---- the core's orders ----------------------------------------------------------------------------- */

/* Tells the other ranks what this one has begun. */
static void tell_order(node_process *p, node_note_kind kind, const node_order *o, int32_t blocks_count) {
    node_note n = {.kind = (int32_t)kind,
                   .blocks_count = blocks_count,
                   .transfer = o->transfer,
                   .ticket = o->ticket,
                   .epoch = o->epoch,
                   .lease_ms = o->lease_ms,
                   .token_first = o->token_first,
                   .token_end = o->token_end,
                   .type = (int32_t)o->type};
    snprintf(n.id, sizeof n.id, "%s", o->id);
    snprintf(n.addresses, sizeof n.addresses, "%s", o->addresses ? o->addresses : "");
    n.sealed = o->key != NULL;
    if (o->key) memcpy(n.key, o->key, sizeof n.key);
    tell(p, &n, o->blocks);
    kvt_key_wipe(n.key, sizeof n.key);
}

/* Notes are not waited for. Whoever is told a ticket may use it at once, so first every rank has its promise. */
static void await_promises(node_process *p) {
    error err;
    if (eng_ask(p->rank.model, p->link->answers, 0, &err) != ST_OK) node_rank_lost(&err);
}

static passage *create(node_process *p, const node_seq *s, const node_order *o, bool receives) {
    passage *x = mem_zalloc(1, sizeof *x);
    if (!x) return NULL;
    *x = (passage){.next = p->link->first,
                   .number = o->transfer,
                   .ticket = o->ticket,
                   .handle = s->request->handle,
                   .receives = receives,
                   .left = p->rank.count,
                   .tokens = INT32_MAX};
    p->link->first = x;
    return x;
}

static status promise(void *ctx, node_seq *s, uint64_t ticket, uint32_t epoch, int32_t token_first,
                      int32_t token_end, uint32_t lease_ms, const int32_t *blocks) {
    node_process *p = ctx;
    node_order o = {.transfer = ++p->link->made, .ticket = ticket, .epoch = epoch, .id = s->request->id, .blocks = blocks,
                    .token_first = token_first, .token_end = token_end, .lease_ms = lease_ms};
    passage *x = create(p, s, &o, true);
    if (!x) return ST_NO_MEMORY;
    x->sealed = p->link->seals;
    if (x->sealed) o.key = x->key;
    status st = x->sealed && !kvt_key_make(x->key) ? ST_INTERNAL : node_transfer_promise(&p->rank, &o);
    if (st != ST_OK) {
        drop(p, x);
        return st;
    }
    tell_order(p, NODE_NOTE_PROMISE, &o, s->blocks_count);
    await_promises(p);
    return ST_OK;
}

bool node_link_key(const node_process *p, uint64_t ticket, unsigned char key[KVT_KEY_BYTES]) {
    const passage *x = p->link->first;
    while (x && !(x->receives && x->ticket == ticket)) x = x->next;
    if (!x || !x->sealed) return false;
    memcpy(key, x->key, KVT_KEY_BYTES);
    return true;
}

static void revoke(void *ctx, uint64_t ticket) {
    node_process *p = ctx;
    for (passage *x = p->link->first; x; x = x->next)
        if (x->receives && x->ticket == ticket) {
            give_up(p, x);
            return;
        }
}

/* Whoever knows a ticket may write to its pages, so it must not be guessed. */
static uint64_t random_ticket(void *ctx) {
    (void)ctx;
    uint64_t ticket = 0;
    while (ticket == 0) ticket = random_number();
    return ticket;
}

static status send_open(void *ctx, node_seq *s, const char *kv_address, uint64_t ticket, uint32_t epoch,
                        const int32_t *blocks, void **send) {
    node_process *p = ctx;
    error err;
    node_order o = {.transfer = ++p->link->made, .ticket = ticket, .epoch = epoch, .id = s->request->id, .blocks = blocks,
                    .key = s->request->sealed ? s->request->kv_key : NULL, .addresses = kv_address, .type = s->request->kv_type};
    passage *x = create(p, s, &o, false);
    if (!x) return ST_NO_MEMORY;
    status st = node_transfer_send(&p->rank, &o, &err);
    if (st != ST_OK) {
        drop(p, x);
        return st;
    }
    tell_order(p, NODE_NOTE_SEND, &o, s->blocks_count);
    *send = x;
    return ST_OK;
}

static void send_push(void *ctx, void *send, int32_t token_first, int32_t tokens) {
    node_process *p = ctx;
    const passage *x = send;
    node_note n = {.kind = NODE_NOTE_PUSH, .transfer = x->number, .token_first = token_first, .token_end = token_first + tokens};
    node_transfer_push(&p->rank, x->number, token_first, tokens);
    tell(p, &n, NULL);
}

static void send_end(void *ctx, void *send) {
    node_process *p = ctx;
    const passage *x = send;
    node_transfer_end(&p->rank, x->number);
    tell_short(p, NODE_NOTE_END, x);
}

static void send_abort(void *ctx, void *send) { give_up(ctx, send); }

/* ---- swapped pages --------------------------------------------------------------------------------- */

static int64_t swap(void *ctx, bool out, const int32_t *blocks, const int32_t *slots, int32_t token_first, int32_t token_end) {
    node_process *p = ctx;
    int32_t pages = node_seq_pages(p->core, token_end);
    node_note n = {.kind = out ? NODE_NOTE_SWAP_OUT : NODE_NOTE_SWAP_IN, .blocks_count = 2 * pages, .token_first = token_first,
                   .token_end = token_end};
    int64_t began_us = clock_now_us();
    tell_both(p, &n, blocks, slots);
    node_swap_move(&p->rank, out, blocks, slots, token_first, token_end);
    return clock_now_us() - began_us;
}

/* ---- the other ranks ------------------------------------------------------------------------------- */

static bool awaits_others(const node_process *p) {
    return p->rank.group && p->link->first;
}

static bool ask(node_process *p) {
    error err;
    node_link *l = p->link;
    int count = 0;
    if (eng_ask(p->rank.model, l->answers, sizeof *l->answers, &err) != ST_OK) node_rank_lost(&err);
    l->told_ms = clock_now_ms();
    for (int r = 1; r < p->rank.count; r++)
        for (int i = 0; i < l->answers[r].count && i < NODE_ANSWER_HEARD; i++, count++) heard(p, &l->answers[r].heard[i]);
    return count > 0;
}

bool node_link_turn(node_process *p) {
    bool due = awaits_others(p) || (p->rank.group && clock_now_ms() - p->link->told_ms >= NODE_BEAT_MS);
    return due && ask(p);
}

void node_link_figures(const node_process *p, node_rank_figures out[COLL_RANKS_MAX]) {
    out[0] = node_rank_count(&p->rank);
    for (int r = 1; r < p->rank.count; r++) out[r] = p->link->answers[r].figures;
}

int node_link_sleep_ms(const node_process *p) {
    enum { ASK_MS = 1 };
    return !p->rank.group ? -1 : awaits_others(p) ? ASK_MS : NODE_BEAT_MS;
}

/* ---- open, close ----------------------------------------------------------------------------------- */

status node_link_open(node_process *p, node_io *io, error *err) {
    if (!(p->link = mem_zalloc(1, sizeof *p->link))) return error_set(err, ST_NO_MEMORY, "no memory for transfers");
    p->rank.report = report;
    p->rank.ctx = p;
    p->link->told_ms = clock_now_ms();
    p->link->seals = rpc_security_encrypts() && kvt_node_leaves_machine(p->rank.kvt);
    io->promise = promise;
    io->revoke = revoke;
    io->random_ticket = random_ticket;
    io->send_open = send_open;
    io->send_push = send_push;
    io->send_end = send_end;
    io->send_abort = send_abort;
    io->swap = swap;
    return ST_OK;
}

void node_link_close(node_process *p) {
    assert(!p->link || !p->link->first);
    mem_free(p->link);
}
