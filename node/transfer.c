/* transfer.c -- one rank's end of a transfer: engine and kvtransfer introduced to each other.
 *
 * Receiving is one promise of the heads this rank has. Sending is one kvt_send to each rank of the other node that
 * wants a head this rank sends; where several ranks here have the same head, the first of them sends it. Heads are
 * numbered over the whole model on the wire, and from this rank's first in its pages.
 *
 * A transfer is made, told and forgotten on the engine thread; its callbacks come on the kvt thread, which only
 * reads it, copies rows, and fills in the reports. Its pages are pinned until every rank's report reached rank 0's
 * core: the fence. Nothing here locks: what the kvt thread writes it writes before it reports. Of several sends the
 * last to end reports for all, and one that fails ends the others. */
#include "node/rank.h"
#include <string.h>

enum { SEND_TIMEOUT_MS = 5000 };

/* One kvt_send of a transfer. */
typedef struct part {
    node_transfer *t;
    kvt_send *send;              /* engine thread's */
    status st;
    uint64_t bytes;
    int64_t wire_us;
} part;

struct node_transfer {
    node_transfer *next;
    uint64_t number;
    node_rank *k;
    node_report first, over;
    const char *id;
    const int32_t *blocks;
    bool began;                  /* kvt thread's */
    part part[COLL_RANKS_MAX];
    int parts;                   /* of which were opened, or tried */
    atomic_int left;             /* of which have not ended */
    atomic_bool opened, failed;  /* all were opened; one has failed */
};

/* ---- life ------------------------------------------------------------------------------------------ */

static node_transfer *create(node_rank *k, const node_order *o, node_heard_kind ends_as) {
    node_transfer *t = mem_zalloc(1, sizeof *t);
    if (!t) return NULL;
    t->number = o->transfer;
    t->k = k;
    t->id = o->id;
    t->blocks = o->blocks;
    t->first.heard = (node_heard){.transfer = o->transfer, .kind = NODE_HEARD_FIRST};
    t->over.heard = (node_heard){.transfer = o->transfer, .kind = (int32_t)ends_as};
    t->next = k->transfers;
    k->transfers = t;
    return t;
}

static node_transfer **find(node_rank *k, uint64_t number) {
    node_transfer **at = &k->transfers;
    while (*at && (*at)->number != number) at = &(*at)->next;
    return at;
}

void node_transfer_forget(node_rank *k, uint64_t number) {
    node_transfer **at = find(k, number), *t = *at;
    if (!t) return;
    *at = t->next;
    for (int i = 0; i < t->parts; i++)
        if (t->part[i].send) kvt_send_close(t->part[i].send);
    mem_free(t);
}

void node_transfer_forget_all(node_rank *k) {
    while (k->transfers) node_transfer_forget(k, k->transfers->number);
}

static eng_kv_box box_of(const node_transfer *t, const kvt_frame *f) {
    return (eng_kv_box){.layer_first = (int32_t)f->layer_first,
                        .layers = (int32_t)f->layers,
                        .head_first = (int32_t)f->head_first - t->k->head_first,
                        .heads = (int32_t)f->heads,
                        .token_first = (int32_t)f->token_first,
                        .tokens = (int32_t)f->tokens,
                        .type = (eng_kv_type)f->type};
}

static kvt_geometry geometry_of(const node_rank *k, int head_first, int heads, eng_kv_type type) {
    const eng_shape *s = eng_model_shape(k->model);
    return (kvt_geometry){.layers = (uint32_t)s->L,
                          .head_first = (uint32_t)head_first,
                          .heads = (uint32_t)heads,
                          .row_bytes = (uint32_t)eng_kv_row_bytes(type, s->h),
                          .type = (uint32_t)type};
}

/* ---- receiving ------------------------------------------------------------------------------------- */

static void land(void *ctx, const kvt_frame *f, const void *payload) {
    node_transfer *t = ctx;
    eng_kv_box box = box_of(t, f);
    eng_kv_unpack(t->k->kv, t->blocks, &box, payload);
    atomic_fetch_add_explicit(&t->k->bytes_in, f->payload_bytes, memory_order_relaxed);
    if (t->began) return;
    t->began = true;
    log_write(LOG_INFO, t->id, "kv.landing", "first_token=%u tokens=%u heads=%u+%u", f->token_first, f->tokens, f->head_first,
              f->heads);
    t->k->report(t->k->ctx, &t->first);
}

static void landing_ended(void *ctx, status s, uint32_t landed) {
    node_transfer *t = ctx;
    t->over.heard.st = (int32_t)s;
    t->over.heard.tokens = landed;
    t->k->report(t->k->ctx, &t->over);
}

status node_transfer_promise(node_rank *k, const node_order *o) {
    static const kvt_sink sink = {.land = land, .ended = landing_ended};
    node_transfer *t = create(k, o, NODE_HEARD_LANDED);
    if (!t) return ST_NO_MEMORY;
    kvt_geometry g = geometry_of(k, k->head_first, k->heads, eng_kv_element(k->kv));
    status st = kvt_promise(k->kvt, o->ticket, o->epoch, &g, (uint32_t)o->token_first, (uint32_t)o->token_end, o->lease_ms, o->key, &sink, t);
    if (st != ST_OK) node_transfer_forget(k, o->transfer);
    return st;
}

void node_transfer_revoke(node_rank *k, uint64_t ticket) { kvt_revoke(k->kvt, ticket); }

/* ---- sending --------------------------------------------------------------------------------------- */

bool node_transfer_next_address(const char **list, char out[NODE_ADDRESS_MAX]) {
    size_t bytes = strcspn(*list, ",");
    if (bytes == 0 || bytes >= NODE_ADDRESS_MAX) return false;
    memcpy(out, *list, bytes);
    out[bytes] = 0;
    *list += bytes + ((*list)[bytes] == ',');
    return true;
}

static void pack(void *ctx, const kvt_frame *f, void *out) {
    part *x = ctx;
    eng_kv_box box = box_of(x->t, f);
    eng_kv_pack(x->t->k->kv, x->t->blocks, &box, out);
    atomic_fetch_add_explicit(&x->t->k->bytes_out, f->payload_bytes, memory_order_relaxed);
}

static int runs(void *ctx, const kvt_frame *f, void *scratch, struct iovec *out) {
    part *x = ctx;
    eng_kv_box box = box_of(x->t, f);
    int count = eng_kv_runs(x->t->k->kv, x->t->blocks, &box, scratch, out, KVT_RUNS_MAX);
    if (count) atomic_fetch_add_explicit(&x->t->k->bytes_out, f->payload_bytes, memory_order_relaxed);
    return count;
}

/* The last one speaks for all: a failure, if there was one (rather than what was aborted because of it), the sum of
 * bytes, the longest time. */
static void part_ended(node_transfer *t) {
    node_heard *h = &t->over.heard;
    if (atomic_fetch_sub(&t->left, 1) > 1) return;
    for (int i = 0; i < t->parts; i++) {
        const part *x = &t->part[i];
        if (h->st == ST_OK || (h->st == ST_CANCELED && x->st != ST_OK)) h->st = (int32_t)x->st;
        if (h->wire_us < x->wire_us) h->wire_us = x->wire_us;
        h->bytes += x->bytes;
    }
    t->k->report(t->k->ctx, &t->over);
}

static void each_send(node_transfer *t, void (*what)(kvt_send *s)) {
    for (int i = 0; t && i < t->parts; i++)
        if (t->part[i].send) what(t->part[i].send);
}

/* One part has failed: the others are of no use. Before all are open the engine thread sees to it. */
static void give_up(node_transfer *t) {
    atomic_store(&t->failed, true);
    if (atomic_load(&t->opened)) each_send(t, kvt_send_abort);
}

static void sending_ended(void *ctx, status s, uint64_t bytes, int64_t wire_us, const char *why) {
    part *x = ctx;
    /* Stale: the receiver has left, as one does that was canceled. */
    log_level level = s == ST_PEER_STALE ? LOG_INFO : LOG_WARN;
    if (s != ST_OK && s != ST_CANCELED) log_write(level, x->t->id, "prefill.unsent", "why=\"%s\"", why);
    x->st = s;
    x->bytes = bytes;
    x->wire_us = wire_us;
    if (s != ST_OK) give_up(x->t);
    part_ended(x->t);
}

/* Heads [*first, *end) that this rank sends: those it has and no rank before it. */
static status sent_heads(const node_rank *k, int *first, int *end, error *err) {
    int before_first, before;
    *first = k->head_first;
    *end = *first + k->heads;
    if (k->index == 0) return ST_OK;
    TRY(eng_model_heads(k->model, k->count, k->index - 1, &before_first, &before, err));
    if (*first < before_first + before) *first = before_first + before;
    return ST_OK;
}

typedef struct target {
    char address[NODE_ADDRESS_MAX];
    int head_first, heads;
} target;

/* The ranks of the other node that want what this one sends. */
static status find_targets(const node_rank *k, const node_order *o, target *out, int *count, error *err) {
    char address[NODE_ADDRESS_MAX];
    int first, end, ranks = 0;
    TRY(sent_heads(k, &first, &end, err));
    for (const char *list = o->addresses; node_transfer_next_address(&list, address);) ranks++;
    const char *list = o->addresses;
    *count = 0;
    for (int r = 0; r < ranks && node_transfer_next_address(&list, address); r++) {
        int from, heads;
        TRY(eng_model_heads(k->model, ranks, r, &from, &heads, err));
        int to = from + heads < end ? from + heads : end;
        if (from < first) from = first;
        if (from >= to) continue;
        target *t = &out[(*count)++];
        *t = (target){.head_first = from, .heads = to - from};
        memcpy(t->address, address, sizeof address);
    }
    return ST_OK;
}

status node_transfer_send(node_rank *k, const node_order *o, error *err) {
    static const kvt_source source = {.pack = pack, .runs = runs, .ended = sending_ended};
    target targets[COLL_RANKS_MAX];
    int count;
    TRY(find_targets(k, o, targets, &count, err));
    node_transfer *t = create(k, o, NODE_HEARD_SENT);
    if (!t) return error_set(err, ST_NO_MEMORY, "no memory for a transfer");
    t->parts = count;
    atomic_init(&t->left, count + 1);            /* one more until all are open */
    for (int i = 0; i < count; i++) {
        kvt_geometry g = geometry_of(k, targets[i].head_first, targets[i].heads, o->type);
        part *x = &t->part[i];
        x->t = t;
        /* Its end may be told before this returns: x->st is the kvt thread's then. */
        status st = kvt_send_open(k->kvt, targets[i].address, o->ticket, o->epoch, &g, SEND_TIMEOUT_MS, o->key, &source, x, &x->send);
        if (st == ST_OK) continue;
        x->st = st;
        atomic_store(&t->failed, true);
        part_ended(t);
    }
    atomic_store(&t->opened, true);
    if (atomic_load(&t->failed)) give_up(t);
    part_ended(t);
    return ST_OK;
}

void node_transfer_push(node_rank *k, uint64_t number, int32_t token_first, int32_t tokens) {
    node_transfer *t = *find(k, number);
    for (int i = 0; t && i < t->parts; i++)
        if (t->part[i].send) kvt_send_push(t->part[i].send, (uint32_t)token_first, (uint32_t)tokens);
}

void node_transfer_end(node_rank *k, uint64_t number) { each_send(*find(k, number), kvt_send_end); }
void node_transfer_abort(node_rank *k, uint64_t number) { each_send(*find(k, number), kvt_send_abort); }
