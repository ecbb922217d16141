/* transfer.c -- pages on their way: what kvtransfer/send.c and receive.c do, over simulated links.
 *
 * The judge (kvt_promises) and the frame codec are the shipped ones. A frame is packed at its turn, when
 * the pages must still be pinned, and lands in what its ticket was promised, or the run fails: each page
 * of a promise is marked with the ticket until the core has been told of the fence. */
#include "tests/sim/sim.h"
#include "engine/pool_internal.h"
#include <assert.h>
#include <string.h>

enum { FRAME_TOKENS = 24, SEND_TIMEOUT_US = 150000, CELL_BYTES = 8 };

static const kvt_geometry geometry = {.layers = SIM_LAYERS, .heads = 1, .row_bytes = CELL_BYTES / 2, .type = 1};

typedef struct wire_frame {
    unsigned char header[KVT_FRAME_BYTES];
    uint64_t payload[SIM_LAYERS * FRAME_TOKENS];
    sim_send *from;
    uint32_t epoch;              /* the sender's own, whatever the header says */
} wire_frame;

/* ---- receiving: promises ------------------------------------------------------------------------- */

static void expire(sim *s, sim_event *e);

static void await_expiry(sim *s, sim_node *n) {
    int64_t next_ms = kvt_promises_next_expiry(n->promises);
    if (next_ms == INT64_MAX || s->bug == BUG_NO_LEASE) return;
    int64_t at_us = next_ms * 1000 > s->now_us ? next_ms * 1000 : s->now_us + 1000;
    if (n->lease_event_us > s->now_us && n->lease_event_us <= at_us) return;
    n->lease_event_us = at_us;
    sim_at_node(s, at_us, n->slot, n->life, expire);
}

status sim_transfer_promise(void *ctx, node_seq *seq, uint64_t ticket, uint32_t epoch, int32_t first,
                            int32_t end, uint32_t lease_ms, const int32_t *blocks) {
    sim_node *n = ctx;
    sim *s = n->s;
    sim_receipt *r = sim_alloc(sizeof *r);
    status st = kvt_promises_add(n->promises, ticket, epoch, &geometry, (uint32_t)first, (uint32_t)end,
                                 lease_ms, s->now_us / 1000, r);
    if (st != ST_OK) {
        mem_free(r);
        return st;
    }
    *r = (sim_receipt){.next = n->receipts, .ticket = ticket, .handle = seq->request->handle,
                       .epoch = epoch, .token_first = first, .token_end = end,
                       .renewed_us = s->now_us};
    int32_t pages = (end + n->P - 1) / n->P;
    memcpy(r->blocks, blocks, (size_t)pages * sizeof *blocks);
    if (s->bug == BUG_WRONG_BLOCKS && pages > 1) r->blocks[pages - 1] = blocks[0];
    n->receipts = r;
    for (int32_t i = first / n->P; i < pages; i++) {
        if (n->page_ticket[blocks[i]])
            sim_fail(s, "node %d: page %d is promised twice", n->slot, blocks[i]);
        n->page_ticket[blocks[i]] = ticket;
    }
    await_expiry(s, n);
    return ST_OK;
}

/* The core learns that the fence stands: from here on the pages are its own. */
static void core_landed(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->node];
    sim_receipt *r = e->data;
    for (int32_t i = r->token_first / n->P; i < (r->token_end + n->P - 1) / n->P; i++)
        if (n->page_ticket[r->blocks[i]] == r->ticket) n->page_ticket[r->blocks[i]] = 0;
    sim_trace(s, "node %d: handle %llu landed %lld (%s)", n->slot, (unsigned long long)r->handle,
              (long long)e->a, status_name((status)e->b));
    s->seen[SEEN_LEASE] += e->b == ST_DEADLINE;
    node_core_landed(n->core, r->handle, (status)e->b, (int32_t)e->a, s->now_us);
    sim_node_awake(s, n);
}

static void core_landing(sim *s, sim_event *e) {
    node_core_landing(s->nodes[e->node].core, (uint64_t)e->a);
}

/* The end of a promise: out of the table, then told. */
static void end_receipt(sim *s, sim_node *n, sim_receipt *r, status st, uint32_t landed) {
    sim_receipt **at = &n->receipts;
    while (*at != r) at = &(*at)->next;
    *at = r->next;
    kvt_promises_remove(n->promises, r->ticket);
    if (s->bug == BUG_LANDED_TOO_MUCH) landed = (uint32_t)(r->token_end - r->token_first);
    sim_event *e = sim_node_post(s, n, core_landed);
    e->a = landed;
    e->b = st;
    e->data = r;
}

static void end_promise(sim *s, sim_node *n, sim_receipt *r, status st) {
    end_receipt(s, n, r, st, kvt_promises_landed(n->promises, r->ticket));
}

static void expire(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->node];
    uint64_t ticket;
    uint32_t landed;
    void *owner;
    n->lease_event_us = 0;
    while (kvt_promises_expire(n->promises, s->now_us / 1000, &ticket, &owner, &landed))
        end_receipt(s, n, owner, ST_DEADLINE, landed);
    await_expiry(s, n);
}

/* BUG_FREE_IN_FLIGHT: the promise stays open after the core was told. */
static void revoke_carelessly(sim *s, sim_node *n, const sim_receipt *r) {
    sim_receipt *copy = sim_alloc(sizeof *copy);
    *copy = *r;
    sim_event *e = sim_node_post(s, n, core_landed);
    e->b = ST_CANCELED;
    e->data = copy;
}

void sim_transfer_revoke(void *ctx, uint64_t ticket) {
    sim_node *n = ctx;
    sim_receipt *r = kvt_promises_owner(n->promises, ticket);
    if (!r) return;
    if (n->s->bug == BUG_FREE_IN_FLIGHT && !n->dying)
        revoke_carelessly(n->s, n, r);
    else
        end_promise(n->s, n, r, ST_CANCELED);
}

/* ---- sending ------------------------------------------------------------------------------------- */

static void core_sent(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->node];
    node_core_sent(n->core, (uint64_t)e->a, (status)e->b, 0, 0, s->now_us);
    sim_node_awake(s, n);
}

static void end_send(sim *s, sim_send *d, status st) {
    if (d->ended) return;
    d->ended = true;
    sim_trace(s, "node %d: handle %llu sent (%s)", d->node, (unsigned long long)d->handle, status_name(st));
    sim_event *e = sim_node_post(s, &s->nodes[d->node], core_sent);
    e->a = (int64_t)d->handle;
    e->b = st;
}

static void ack(sim *s, sim_event *e) {
    sim_send *d = s->nodes[e->node].sends;
    while (d && d->handle != (uint64_t)e->a) d = d->next;
    if (!d || d->ended) return;
    status st = (status)e->b;
    if (st == ST_OK && !d->end_sent) st = ST_CORRUPT;
    end_send(s, d, st);
}

static void answer(sim *s, int link, sim_send *d, status st) {
    sim_link *l = &s->links[link];
    int64_t at_us = s->now_us + sim_delay(s);
    l->back_us = at_us > l->back_us ? at_us : l->back_us + 1;
    if (l->send_closed) return;
    sim_event *e = sim_at_node(s, l->back_us, l->from, l->from_life, ack);
    e->a = (int64_t)d->handle;
    e->b = st;
}

/* ---- links --------------------------------------------------------------------------------------- */

static void sender_lost(sim *s, sim_event *e) {
    s->links[e->a].send_closed = true;
    for (sim_send *d = s->nodes[e->node].sends; d; d = d->next)
        if (d->link == (int)e->a) end_send(s, d, ST_PEER_LOST);
}

static void close_receiver(sim *s, sim_node *n, int64_t link) {
    s->links[link].recv_closed = true;
    for (sim_receipt *r = n->receipts, *next; r; r = next) {
        next = r->next;
        if (r->links >> link & 1) end_promise(s, n, r, ST_PEER_LOST);
    }
}

static void receiver_lost(sim *s, sim_event *e) { close_receiver(s, &s->nodes[e->node], e->a); }

void sim_transfer_break(sim *s, int link, bool sender_told, bool receiver_told) {
    sim_link *l = &s->links[link];
    sim_trace(s, "link %d: %d to %d breaks", link, l->from, l->to);
    if (sender_told)
        sim_at_node(s, s->now_us + sim_delay(s), l->from, l->from_life, sender_lost)->a = link;
    if (receiver_told)
        sim_at_node(s, s->now_us + sim_delay(s), l->to, l->to_life, receiver_lost)->a = link;
}

static int link_to(sim *s, sim_node *from, int to, uint32_t to_life) {
    for (int i = 0; i < s->links_count; i++) {
        const sim_link *l = &s->links[i];
        if (l->from == from->slot && l->from_life == from->life && l->to == to && l->to_life == to_life &&
            !l->send_closed)
            return i;
    }
    if (s->links_count == 64) return -1;
    s->links[s->links_count] = (sim_link){.from = from->slot, .to = to, .from_life = from->life, .to_life = to_life};
    return s->links_count++;
}

static void refused_connection(sim *s, sim_event *e) {
    for (sim_send *d = s->nodes[e->node].sends; d; d = d->next)
        if (d->handle == (uint64_t)e->a) end_send(s, d, ST_PEER_LOST);
}

/* Nobody took anything for too long. */
static void time_out(sim *s, sim_event *e) {
    for (sim_send *d = s->nodes[e->node].sends; d; d = d->next) {
        if (d->handle != (uint64_t)e->a || d->ended) continue;
        bool waits = d->end_asked || d->next_token < d->pushed_end;
        int64_t left = d->active_us + SEND_TIMEOUT_US - s->now_us;
        if (waits && left <= 0)
            end_send(s, d, ST_DEADLINE);
        else
            sim_at_node(s, s->now_us + (left > 0 ? left : SEND_TIMEOUT_US), e->node, e->life, time_out)->a = e->a;
        return;
    }
}

status sim_transfer_open(void *ctx, node_seq *seq, const char *address, uint64_t ticket, uint32_t epoch,
                         const int32_t *blocks, void **send) {
    sim_node *n = ctx;
    sim *s = n->s;
    int to = 0;
    unsigned to_life = 0;
    if (sscanf(address, "%d:%u", &to, &to_life) != 2) return ST_BAD_INPUT;
    sim_send *d = sim_alloc(sizeof *d);
    *d = (sim_send){.next = n->sends, .handle = seq->request->handle, .ticket = ticket, .epoch = epoch,
                    .node = n->slot, .link = link_to(s, n, to, to_life),
                    .next_token = seq->request->skip, .pushed_end = seq->request->skip,
                    .active_us = s->now_us};
    memcpy(d->blocks, blocks, (size_t)seq->blocks_count * sizeof *blocks);
    n->sends = d;
    if (d->link < 0)
        sim_at_node(s, s->now_us + sim_delay(s), n->slot, n->life, refused_connection)->a = (int64_t)d->handle;
    sim_at_node(s, s->now_us + SEND_TIMEOUT_US, n->slot, n->life, time_out)->a = (int64_t)d->handle;
    *send = d;
    return ST_OK;
}

/* ---- frames -------------------------------------------------------------------------------------- */

static void arrive(sim *s, sim_event *e);

/* The process at the other end is gone: its host says so, or nobody does. */
static void bounce(sim *s, sim_event *e) {
    if (!sim_chance(s, 0.75)) return;
    sim_link *l = &s->links[e->a];
    sim_at_node(s, s->now_us + sim_delay(s), l->from, l->from_life, sender_lost)->a = e->a;
}

static void transmit(sim *s, sim_send *d, wire_frame *w) {
    sim_link *l = &s->links[d->link];
    bool hurt = !s->healed && sim_chance(s, s->loss / 4);
    if (hurt) ((unsigned char *)w)[sim_range(s, 0, KVT_FRAME_BYTES + CELL_BYTES - 1)] ^= 4;
    int64_t at_us = s->now_us + sim_delay(s);
    l->last_us = at_us > l->last_us ? at_us : l->last_us + 1;
    int copies = !s->healed && sim_chance(s, s->loss) ? 2 : 1;
    for (int i = 0; i < copies; i++) {
        sim_event *e = sim_at_node(s, l->last_us + i, l->to, l->to_life, arrive);
        e->a = d->link;
        e->dropped = bounce;
        e->data = sim_alloc(sizeof *w);
        memcpy(e->data, w, sizeof *w);
    }
    l->last_us += copies - 1;
}

static void say(sim *s, sim_send *d, kvt_frame_kind kind) {
    if (d->link < 0 || s->links[d->link].send_closed) return;
    wire_frame w = {.from = d, .epoch = d->epoch};
    kvt_frame f = {.kind = kind, .ticket = d->ticket, .epoch = d->epoch, .heads = geometry.heads};
    kvt_frame_encode(&f, w.header);
    transmit(s, d, &w);
}

/* One frame of one layer: the same tokens of every layer first, then the next tokens. */
static void pack(sim *s, sim_node *n, sim_send *d) {
    int32_t left = d->pushed_end - d->next_token, count = left < FRAME_TOKENS ? left : FRAME_TOKENS;
    if (d->layer == 0) d->count = (int32_t)sim_range(s, 1, count);
    count = d->count;            /* every layer of the same tokens */
    wire_frame w = {.from = d, .epoch = d->epoch};
    kvt_frame f = {.kind = KVT_DATA, .ticket = d->ticket, .epoch = d->epoch,
                   .layer_first = (uint32_t)d->layer, .layers = 1, .heads = 1,
                   .token_first = (uint32_t)d->next_token, .tokens = (uint32_t)count, .type = 1,
                   .payload_bytes = (uint32_t)count * CELL_BYTES};
    for (int32_t i = 0; i < count; i++) {
        int32_t at = d->next_token + i, page = d->blocks[at / n->P];
        if (eng_pool_pins(n->core->pool, page) < 1)
            sim_fail(s, "node %d: page %d is sent without a pin", n->slot, page);
        w.payload[i] = *sim_node_cell(n, page, d->layer, at % n->P);
    }
    f.payload_crc = kvt_crc32c(0, w.payload, f.payload_bytes);
    kvt_frame_encode(&f, w.header);
    bool drop = !s->healed && sim_chance(s, s->loss / 8); /* a sender with a fault of its own */
    if (!drop) transmit(s, d, &w);
    if (++d->layer < SIM_LAYERS) return;
    d->layer = 0;
    d->next_token += count;
}

static void turn(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->node];
    sim_send *d = n->sends;
    while (d && d->handle != (uint64_t)e->a) d = d->next;
    if (!d) return;
    d->turn_due = false;
    bool careless = s->bug == BUG_SENT_TOO_EARLY && d->next_token < d->pushed_end;
    if ((d->ended && !careless) || s->links[d->link].send_closed) return;
    d->active_us = s->now_us;
    if (d->next_token < d->pushed_end) {
        pack(s, n, d);
    } else if (d->end_asked && !d->end_sent) {
        d->end_sent = true;
        say(s, d, KVT_END);
    }
    if (d->next_token == d->pushed_end && (!d->end_asked || d->end_sent)) return;
    d->turn_due = true;
    sim_at_node(s, s->now_us + sim_range(s, 5, s->turn_max_us), n->slot, n->life, turn)->a = e->a;
}

static void take_turn(sim_send *d, sim_node *n) {
    if (d->turn_due || d->link < 0) return;
    d->turn_due = true;
    sim_at_node(n->s, n->s->now_us + sim_range(n->s, 5, n->s->turn_max_us), n->slot, n->life, turn)->a = (int64_t)d->handle;
}

void sim_transfer_push(void *ctx, void *send, int32_t first, int32_t tokens) {
    sim_node *n = ctx;
    sim_send *d = send;
    if (first != d->pushed_end) sim_fail(n->s, "node %d: pushed token %d, expected %d", n->slot, first, d->pushed_end);
    d->pushed_end = first + tokens;
    d->active_us = n->s->now_us;
    take_turn(d, n);
}

void sim_transfer_end(void *ctx, void *send) {
    sim_send *d = send;
    d->end_asked = true;
    take_turn(d, ctx);
}

/* The link's own thread hears of it a little later, and reads pages until then. */
static void abort_now(sim *s, sim_event *e) {
    for (sim_send *d = s->nodes[e->node].sends; d; d = d->next) {
        if (d->handle != (uint64_t)e->a || d->ended) continue;
        say(s, d, KVT_ABORT);
        end_send(s, d, ST_CANCELED);
    }
}

void sim_transfer_abort(void *ctx, void *send) {
    sim_node *n = ctx;
    sim_send *d = send;
    if (d->ended || n->dying) return;
    if (n->s->bug == BUG_SENT_TOO_EARLY)
        end_send(n->s, d, ST_CANCELED);
    else
        sim_at_node(n->s, n->s->now_us + sim_range(n->s, 1, 100), n->slot, n->life, abort_now)->a = (int64_t)d->handle;
}

/* ---- landing ------------------------------------------------------------------------------------- */

static void land(sim *s, sim_node *n, sim_receipt *r, const kvt_frame *f, const wire_frame *w) {
    if (!r->landing) {
        r->landing = true;
        sim_node_post(s, n, core_landing)->a = (int64_t)r->handle;
    }
    r->renewed_us = s->now_us;
    if (w->epoch != r->epoch)
        sim_fail(s, "node %d: a frame of attempt %u lands in the promise of attempt %u", n->slot, w->epoch,
                 r->epoch);
    for (uint32_t i = 0; i < f->tokens; i++) {
        int32_t at = (int32_t)(f->token_first + i), page = r->blocks[at / n->P];
        eng_page_state state = n->core->pool->pages[page].state;
        if (n->page_ticket[page] != r->ticket)
            sim_fail(s, "node %d: page %d is written by ticket %llx, which was not promised it (any more)",
                     n->slot, page, (unsigned long long)r->ticket);
        if (state != ENG_PAGE_PROMISED && state != ENG_PAGE_LANDING)
            sim_fail(s, "node %d: page %d is written by a transfer in state %d", n->slot, page, (int)state);
        *sim_node_cell(n, page, (int)f->layer_first, at % n->P) = w->payload[i];
    }
}

/* What the header says is a frame; its numbers are strangers until judged. */
static void judged(sim *s, sim_node *n, int link, const kvt_frame *f, wire_frame *w) {
    void *owner;
    kvt_verdict v = kvt_promises_judge(n->promises, f, s->now_us / 1000, &owner);
    if (s->bug == BUG_JUDGED_NOT && f->kind == KVT_DATA && n->receipts) {
        owner = owner ? owner : n->receipts;
        if (f->token_first + f->tokens <= (uint32_t)((sim_receipt *)owner)->token_end) v = KVT_TAKE;
    }
    sim_receipt *r = owner;
    if (r) r->links |= 1ull << link;
    switch (v) {
    case KVT_TAKE: land(s, n, r, f, w); break;
    case KVT_PART: sim_fail(s, "node %d: a part of one head", n->slot); break;
    case KVT_DONE:
        end_promise(s, n, r, ST_OK);
        answer(s, link, w->from, ST_OK);
        break;
    case KVT_SHORT:
        s->seen[SEEN_SHORT]++;
        if (s->bug == BUG_SHORT_IS_DONE)
            end_receipt(s, n, r, ST_OK, (uint32_t)(r->token_end - r->token_first));
        else
            end_promise(s, n, r, ST_CORRUPT);
        answer(s, link, w->from, s->bug == BUG_SHORT_IS_DONE ? ST_OK : ST_CORRUPT);
        break;
    case KVT_ABORTED:
        s->seen[SEEN_ABORT]++;
        end_promise(s, n, r, ST_CANCELED);
        break;
    case KVT_DUPLICATE: s->seen[SEEN_DUPLICATE]++; break;
    default:
        s->seen[v == KVT_REFUSE_EPOCH ? SEEN_STALE_EPOCH : SEEN_STALE_TICKET]++;
        sim_trace(s, "node %d: frame refused: %s", n->slot, kvt_verdict_name(v));
        if (f->kind != KVT_ABORT) answer(s, link, w->from, ST_PEER_STALE);
    }
}

static void arrive(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->node];
    wire_frame *w = e->data;
    kvt_frame f;
    void *owner;
    if (s->links[e->a].recv_closed) { /* the host answers that nobody listens */
        bounce(s, e);
        return;
    }
    if (kvt_frame_decode(w->header, &f, NULL) != ST_OK) {
        s->seen[SEEN_CORRUPT]++;
        close_receiver(s, n, e->a);
        sim_transfer_break(s, (int)e->a, true, false);
        return;
    }
    if (s->bug == BUG_NO_EPOCH_CHECK)
        for (sim_receipt *r = n->receipts; r; r = r->next)
            if (r->ticket == f.ticket) f.epoch = r->epoch;
    if (f.kind == KVT_DATA && s->bug != BUG_NO_CRC &&
        kvt_crc32c(0, w->payload, f.payload_bytes) != f.payload_crc) {
        s->seen[SEEN_CORRUPT]++;
        kvt_promises_check(n->promises, &f, &owner);
        if (owner) end_promise(s, n, owner, ST_CORRUPT);
        close_receiver(s, n, e->a);
        sim_transfer_break(s, (int)e->a, true, false);
        return;
    }
    judged(s, n, (int)e->a, &f, w);
}

/* ---- a process is gone ---------------------------------------------------------------------------- */

void sim_transfer_forget(sim *s, sim_node *n) {
    for (int i = 0; i < s->links_count; i++) {
        const sim_link *l = &s->links[i];
        bool sends = l->from == n->slot && l->from_life == n->life;
        bool receives = l->to == n->slot && l->to_life == n->life;
        if (sends || receives)
            sim_transfer_break(s, i, receives && sim_chance(s, 0.75), sends && sim_chance(s, 0.75));
    }
    for (sim_receipt *r = n->receipts, *next; r; r = next) {
        next = r->next;
        mem_free(r);
    }
    n->receipts = NULL;
    /* Frames still on the wire look at their send. They are freed with the run. */
    while (n->sends) {
        sim_send *d = n->sends;
        n->sends = d->next;
        d->next = s->sends_gone;
        s->sends_gone = d;
    }
}
