/* link.c -- introduces engine and kvtransfer to each other: frames into pages, pages into frames.
 *
 * A landing (one promise) and a sending (one ticket's pages on their way) are made by the engine thread,
 * read by the kvt thread, and freed by the engine thread when it runs their last message: kvtransfer has
 * promised that no callback comes after ended(). The pages they name are pinned by the sequence until
 * that message told the core: the fence. Nothing here locks: what the kvt thread writes into the object
 * it writes before it posts, and the mailbox orders the two. */
#include "node/internal.h"
#include <sys/random.h>

enum { SEND_TIMEOUT_MS = 5000 };

typedef struct landing {
    node_message first, over;    /* posted once each, in this order */
    node_process *p;
    uint64_t handle;
    const char *id;              /* in the request's arena, as are the */
    const int32_t *blocks;
    bool began;                  /* kvt thread's */
    status st;
    uint32_t tokens;
} landing;

typedef struct sending {
    node_message over;
    node_process *p;
    uint64_t handle;
    const char *id;              /* in the request's arena */
    const int32_t *blocks;
    kvt_send *send;              /* engine thread's */
    status st;
    uint64_t bytes;
    int64_t wire_us;
} sending;

static eng_kv_box box_of(const kvt_frame *f) {
    return (eng_kv_box){.layer_first = (int32_t)f->layer_first,
                        .layers = (int32_t)f->layers,
                        .head_first = (int32_t)f->head_first,
                        .heads = (int32_t)f->heads,
                        .token_first = (int32_t)f->token_first,
                        .tokens = (int32_t)f->tokens,
                        .type = (eng_kv_type)f->type};
}

/* ---- receiving -------------------------------------------------------------------------------------- */

static void run_first(node_process *p, node_message *m) {
    landing *l = (landing *)((char *)m - offsetof(landing, first));
    node_core_landing(p->core, l->handle);
}

static void run_landed(node_process *p, node_message *m) {
    landing *l = (landing *)((char *)m - offsetof(landing, over));
    node_core_landed(p->core, l->handle, l->st, (int32_t)l->tokens, clock_now_us());
    mem_free(l);
}

static void land(void *ctx, const kvt_frame *f, const void *payload) {
    landing *l = ctx;
    eng_kv_box box = box_of(f);
    eng_kv_unpack(l->p->kv, l->blocks, &box, payload);
    if (l->began) return;
    l->began = true;
    log_write(LOG_INFO, l->id, "kv.landing", "first_token=%u tokens=%u", f->token_first, f->tokens);
    node_process_post(l->p, &l->first);
}

static void landing_ended(void *ctx, status s, uint32_t landed) {
    landing *l = ctx;
    l->st = s;
    l->tokens = landed;
    node_process_post(l->p, &l->over);
}

static status promise(void *ctx, node_seq *s, uint64_t ticket, uint32_t epoch, int32_t token_first,
                      int32_t token_end, uint32_t lease_ms, const int32_t *blocks) {
    static const kvt_sink sink = {.land = land, .ended = landing_ended};
    node_process *p = ctx;
    landing *l = mem_zalloc(1, sizeof *l);
    if (!l) return ST_NO_MEMORY;
    *l = (landing){.first = {run_first},
                   .over = {run_landed},
                   .p = p,
                   .handle = s->request->handle,
                   .id = s->request->id,
                   .blocks = blocks};
    status st = kvt_promise(p->kvt, ticket, epoch, &p->geometry, (uint32_t)token_first, (uint32_t)token_end,
                            lease_ms, &sink, l);
    if (st != ST_OK) mem_free(l);
    return st;
}

static void revoke(void *ctx, uint64_t ticket) { kvt_revoke(((node_process *)ctx)->kvt, ticket); }

/* Whoever knows a ticket may write to its pages, so it must not be guessed. */
static uint64_t random_ticket(void *ctx) {
    (void)ctx;
    uint64_t ticket = 0;
    while (ticket == 0) {
        ssize_t got = getrandom(&ticket, sizeof ticket, 0);
        if (got != (ssize_t)sizeof ticket) ticket = 0;     /* interrupted */
    }
    return ticket;
}

/* ---- sending ---------------------------------------------------------------------------------------- */

static void run_sent(node_process *p, node_message *m) {
    sending *x = (sending *)m;
    node_core_sent(p->core, x->handle, x->st, x->bytes, x->wire_us, clock_now_us());
    kvt_send_close(x->send);
    mem_free(x);
}

static void pack(void *ctx, const kvt_frame *f, void *out) {
    sending *x = ctx;
    eng_kv_box box = box_of(f);
    eng_kv_pack(x->p->kv, x->blocks, &box, out);
}

static void sending_ended(void *ctx, status s, uint64_t bytes, int64_t wire_us, const char *why) {
    sending *x = ctx;
    /* Stale: the receiver has left, as one does that was canceled. */
    log_level level = s == ST_PEER_STALE ? LOG_INFO : LOG_WARN;
    if (s != ST_OK && s != ST_CANCELED) log_write(level, x->id, "prefill.unsent", "why=\"%s\"", why);
    x->st = s;
    x->bytes = bytes;
    x->wire_us = wire_us;
    node_process_post(x->p, &x->over);
}

static status send_open(void *ctx, node_seq *s, const char *kv_address, uint64_t ticket, uint32_t epoch,
                        const int32_t *blocks, void **send) {
    static const kvt_source source = {.pack = pack, .ended = sending_ended};
    node_process *p = ctx;
    sending *x = mem_zalloc(1, sizeof *x);
    if (!x) return ST_NO_MEMORY;
    *x = (sending){.over = {run_sent},
                   .p = p,
                   .handle = s->request->handle,
                   .id = s->request->id,
                   .blocks = blocks};
    status st = kvt_send_open(p->kvt, kv_address, ticket, epoch, &p->geometry, SEND_TIMEOUT_MS, &source, x,
                              &x->send);
    if (st == ST_OK)
        *send = x;
    else
        mem_free(x);
    return st;
}

static void send_push(void *ctx, void *send, int32_t token_first, int32_t tokens) {
    (void)ctx;
    kvt_send_push(((sending *)send)->send, (uint32_t)token_first, (uint32_t)tokens);
}
static void send_end(void *ctx, void *send) { (void)ctx, kvt_send_end(((sending *)send)->send); }
static void send_abort(void *ctx, void *send) { (void)ctx, kvt_send_abort(((sending *)send)->send); }

void node_link_fill(node_process *p, node_io *io) {
    eng_shape shape = *eng_model_shape(p->model);
    p->geometry = (kvt_geometry){.layers = (uint32_t)shape.L,
                                 .head_first = 0,
                                 .heads = (uint32_t)shape.K,
                                 .row_bytes = (uint32_t)eng_kv_row_bytes(eng_kv_element(p->kv), shape.h),
                                 .type = (uint32_t)eng_kv_element(p->kv)};
    io->promise = promise;
    io->revoke = revoke;
    io->random_ticket = random_ticket;
    io->send_open = send_open;
    io->send_push = send_push;
    io->send_end = send_end;
    io->send_abort = send_abort;
}
