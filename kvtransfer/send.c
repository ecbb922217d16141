/* send.c -- one ticket's rows on their way: pushed by any thread, cut into frames, ended by an ACK.
 *
 *   open -> linked     [begin]           the node's thread found or opened a link
 *   linked <-> ready  [make_ready, kvt_send_fill]   it has something to send and waits for its turn
 *   linked -> END sent [kvt_send_fill]   nothing pushed is left and kvt_send_end() was called
 *   any -> ended      [finish]           ACK, refusal, abort, deadline, link lost; ended() is called
 *   ended and closed -> freed            in either order [kvt_send_dirty]; when the node closed between
 *                                        the two, by kvt_send_close() itself
 *
 * Other threads only leave wishes in the send (under the lock) and put it on node->dirty; the node's
 * thread carries them out. So push, end, abort and close never wait and never fail.
 *
 * Cutting: pushed token ranges are taken as slabs of at most a frame's worth of tokens of one layer; a
 * slab goes out layer after layer, as many layers a frame as fit, in equal parts. A frame is packed
 * only at its turn. Sends of one link take turns frame by frame. Sealed frames are shorter: the first is encrypted
 * before a byte leaves and the last decrypted after all have come, and in between both ends do it at once. */
#include "kvtransfer/internal.h"
#include <assert.h>
#include <errno.h>
#include <string.h>

enum { SEALED_BYTES = 256 << 10 };       /* of 64 to 512 KiB the quickest from 1 MiB on (bench/README.md) */

METRIC(sent_bytes, "baton_kv_bytes_sent_total", NULL, METRIC_COUNTER, "KV payload bytes packed for sending");
METRIC(sent_frames, "baton_kv_frames_sent_total", NULL, METRIC_COUNTER, "KV data frames packed for sending");

void kvt_send_show(void) {
    metric_show(&sent_bytes);
    metric_show(&sent_frames);
}

/* ---- any thread ------------------------------------------------------------------------------ */

/* What promise.c asks of a geometry, as far as the sender depends on it: a token of a layer fits. */
static bool geometry_ok(const kvt_geometry *g) {
    return g->layers && g->heads && g->row_bytes &&
           g->head_first <= UINT32_MAX - g->heads &&
           (uint64_t)g->heads * g->row_bytes <= KVT_PAYLOAD_MAX / 2;
}

/* [lock] */
static void mark_dirty(kvt_send *s) {
    if (s->dirty) return;
    s->dirty = true;
    s->dirty_next = s->node->dirty;
    s->node->dirty = s;
    kvt_node_wake(s->node);
}

status kvt_send_open(kvt_node *n, const char *address, uint64_t ticket, uint32_t epoch,
                     const kvt_geometry *g, uint32_t timeout_ms, const unsigned char *key,
                     const kvt_source *source, void *ctx, kvt_send **out) {
    kvt_address peer;
    error why;
    if (!geometry_ok(g)) return ST_BAD_INPUT;
    if (n->transport->resolve(address, &peer, &why)) return why.code;
    kvt_send *s = mem_zalloc(1, sizeof *s);
    if (!s) return ST_NO_MEMORY;
    s->node = n;
    s->ticket = ticket;
    s->epoch = epoch;
    s->g = *g;
    s->timeout_ms = timeout_ms;
    s->source = source;
    s->ctx = ctx;
    s->peer = peer;
    snprintf(s->address, sizeof s->address, "%s", address);
    s->sealed = key != NULL;
    status st = !key || kvt_sealing_begin(&s->sealing, key) ? ST_OK : ST_INTERNAL;
    pthread_mutex_lock(&n->lock);
    if (n->closing) st = ST_CANCELED;
    if (st == ST_OK) st = kvt_node_takes_key(n, key);
    if (st == ST_OK) {
        *out = s; /* before the thread sees it: ended() may be quicker than our return */
        mark_dirty(s);
    }
    pthread_mutex_unlock(&n->lock);
    if (st == ST_OK) return ST_OK;
    kvt_key_wipe(&s->sealing, sizeof s->sealing);
    mem_free(s);
    return st;
}

/* [lock] Chunks follow one another, so most pushes only lengthen the last range. */
static bool keep_range(kvt_send *s, kvt_range r) {
    if (s->ranges_count && s->ranges[s->ranges_count - 1].end == r.first) {
        s->ranges[s->ranges_count - 1].end = r.end;
        return true;
    }
    if (s->ranges_count == s->ranges_room) {
        size_t room = s->ranges_room ? 2 * s->ranges_room : 8;
        kvt_range *grown = mem_realloc(s->ranges, room * sizeof *grown);
        if (!grown) return false;
        s->ranges = grown;
        s->ranges_room = room;
    }
    s->ranges[s->ranges_count++] = r;
    return true;
}

void kvt_send_push(kvt_send *s, uint32_t token_first, uint32_t tokens) {
    if (!s->node) return;
    pthread_mutex_lock(&s->node->lock);
    assert(s->ended || !s->end_asked);
    assert(token_first <= UINT32_MAX - tokens);
    if (!s->ended && tokens) {
        if (!s->pushed_us) s->pushed_us = clock_now_us();
        if (!keep_range(s, (kvt_range){token_first, token_first + tokens})) s->out_of_memory = true;
        mark_dirty(s);
    }
    pthread_mutex_unlock(&s->node->lock);
}

/* What is asked of a send that has ended is kept nowhere but for the close. */
static void ask(kvt_send *s, bool *wish) {
    kvt_node *n = s->node;
    if (!n) return;
    pthread_mutex_lock(&n->lock);
    *wish = true;
    mark_dirty(s);
    pthread_mutex_unlock(&n->lock);
}

void kvt_send_end(kvt_send *s) { ask(s, &s->end_asked); }
void kvt_send_abort(kvt_send *s) { ask(s, &s->abort_asked); }

void kvt_send_close(kvt_send *s) {
    if (s->node)
        ask(s, &s->closed);
    else
        mem_free(s); /* its node closed before it */
}

/* ---- the node's thread: begin and end -------------------------------------------------------- */

static void list_remove(kvt_node *n, kvt_send *s) {
    if (s->prev)
        s->prev->next = s->next;
    else
        n->sends = s->next;
    if (s->next) s->next->prev = s->prev;
}

static void destroy(kvt_send *s) {
    list_remove(s->node, s);
    mem_free(s->ranges);
    mem_free(s);
}

static void leave_turns(kvt_link *l, kvt_send *s) {
    kvt_send *before = NULL;
    for (kvt_send *at = l->ready_head; at != s; at = at->ready_next) before = at;
    if (before)
        before->ready_next = s->ready_next;
    else
        l->ready_head = s->ready_next;
    if (l->ready_tail == s) l->ready_tail = before;
    s->ready = false;
}

/* An END or ABORT names the heads it speaks of. */
static void say(kvt_send *s, kvt_link *l, kvt_frame_kind kind, status code) {
    kvt_link_say(l, &(kvt_frame){.kind = kind, .ticket = s->ticket, .epoch = s->epoch, .code = (uint32_t)code,
                                 .head_first = s->g.head_first, .heads = s->g.heads},
                 s->sealed ? &s->sealing : NULL);
}

/* The send's one end. A receiver that is still there is told to stop waiting, but after ST_OK and
 * ST_PEER_STALE: then it does not wait. Nothing reads its pages any more: what is staged on the link is a copy. */
static void finish(kvt_send *s, status code, const char *why) {
    kvt_node *n = s->node;
    kvt_link *l = s->link;
    assert(!s->ended);
    s->link = NULL;
    if (l) {
        if (s->ready) leave_turns(l, s);
        l->sends--;
        if (l->gathered == s) kvt_link_keep(l);
        l->progress_ms = n->now_ms; /* idle from now on, if it was the last */
        kvt_node_due(n, n->now_ms + KVT_IDLE_MS);
        if (l->state == LINK_READY && code != ST_OK && code != ST_PEER_STALE)
            say(s, l, KVT_ABORT, code);
        kvt_link_arm(l);
    }
    kvt_key_wipe(&s->sealing, sizeof s->sealing);
    pthread_mutex_lock(&n->lock);
    s->ended = true; /* pushes from here on are dropped */
    int64_t wire_us = s->pushed_us ? clock_now_us() - s->pushed_us : 0;
    pthread_mutex_unlock(&n->lock);
    s->source->ended(s->ctx, code, s->bytes, wire_us, why);
}

static void begin(kvt_send *s) {
    kvt_node *n = s->node;
    error why;
    s->next = n->sends;
    if (n->sends) n->sends->prev = s;
    n->sends = s;
    s->begun = true;
    s->since_ms = n->now_ms;
    kvt_link *l = kvt_link_to(n, s->address, &s->peer, &why);
    if (!l) {
        finish(s, why.code, why.text);
        return;
    }
    s->link = l;
    l->sends++;
}

static bool has_rows(const kvt_send *s) { return s->slab.first < s->slab.end || s->ranges_count; }

/* Takes its place at the end of the turns, if there is something to send. */
static void make_ready(kvt_send *s) {
    kvt_link *l = s->link;
    if (!l || l->state != LINK_READY || s->ready || s->end_sent) return;
    pthread_mutex_lock(&s->node->lock);
    bool wants = has_rows(s) || s->end_asked;
    pthread_mutex_unlock(&s->node->lock);
    if (!wants) return;
    s->ready = true;
    s->ready_next = NULL;
    if (l->ready_tail)
        l->ready_tail->ready_next = s;
    else
        l->ready_head = s;
    l->ready_tail = s;
}

/* Carries out what was asked of one send; true: it may be freed. */
static bool carry_out(kvt_send *s, bool abort, bool out_of_memory) {
    if (s->ended) return true;
    if (!s->begun) begin(s);
    if (!s->ended && abort) finish(s, ST_CANCELED, "aborted");
    if (!s->ended && out_of_memory) finish(s, ST_NO_MEMORY, "no memory to keep pushed rows in mind");
    if (s->ended) return true;
    if (!s->ready && !s->end_sent) {
        s->since_ms = s->node->now_ms;
        kvt_node_due(s->node, s->since_ms + s->timeout_ms);
    }
    make_ready(s);
    kvt_link_arm(s->link);
    return false;
}

void kvt_send_dirty(kvt_node *n) {
    for (;;) {
        pthread_mutex_lock(&n->lock);
        kvt_send *s = n->dirty;
        bool abort = false, out_of_memory = false, closed = false;
        if (s) {
            n->dirty = s->dirty_next;
            s->dirty = false;
            closed = s->closed;
            abort = s->abort_asked || closed;
            out_of_memory = s->out_of_memory;
        }
        pthread_mutex_unlock(&n->lock);
        if (!s) return;
        /* A close that comes from now on, in ended() perhaps, makes it dirty again. */
        if (carry_out(s, abort, out_of_memory) && closed) destroy(s);
    }
}

void kvt_send_link_ready(kvt_link *l) {
    for (kvt_send *s = l->node->sends; s; s = s->next)
        if (s->link == l) make_ready(s);
    kvt_link_arm(l);
}

static kvt_send *first_on(const kvt_link *l) {
    kvt_send *s = l->node->sends;
    while (s && s->link != l) s = s->next;
    return s;
}

void kvt_send_link_lost(kvt_link *l, status code, const char *why) {
    for (kvt_send *s; (s = first_on(l));) finish(s, code, why);
}

void kvt_send_acked(kvt_link *l, const kvt_frame *ack) {
    kvt_send *s = l->node->sends;
    while (s && !(s->link == l && s->ticket == ack->ticket && s->epoch == ack->epoch)) s = s->next;
    if (!s) return; /* answers to an ABORT, or crossed with one */
    status code = ack->code < ST_COUNT ? (status)ack->code : ST_INTERNAL;
    if (code == ST_OK && !s->end_sent) code = ST_CORRUPT;
    char why[KVT_ADDRESS_MAX + 60];
    snprintf(why, sizeof why, "receiver %s: %s", s->address, status_text(code));
    finish(s, code, why);
}

/* ---- the node's thread: frames --------------------------------------------------------------- */

/* One token of one layer, K and V. */
static uint32_t token_bytes(const kvt_send *s) { return 2 * s->g.heads * s->g.row_bytes; }

/* What its frames are cut to. */
static uint32_t frame_bytes_of(const kvt_send *s) {
    uint32_t bytes = s->node->transport->frame_bytes;
    return s->sealed && bytes > SEALED_BYTES ? SEALED_BYTES : bytes;
}

/* Takes the next slab out of what was pushed. false: nothing is left; *end: and nothing will come. */
static bool take_slab(kvt_send *s, bool *end) {
    uint32_t unit = token_bytes(s), frame_bytes = frame_bytes_of(s);
    uint32_t tokens_max = unit < frame_bytes ? frame_bytes / unit : 1;
    pthread_mutex_lock(&s->node->lock);
    bool any = s->ranges_count > 0;
    *end = s->end_asked;
    if (any) {
        kvt_range *r = &s->ranges[0];
        s->slab = *r;
        if (r->end - r->first > tokens_max) s->slab.end = r->first + tokens_max;
        r->first = s->slab.end;
        if (r->first == r->end) memmove(r, r + 1, --s->ranges_count * sizeof *r);
    }
    pthread_mutex_unlock(&s->node->lock);
    if (!any) return false;
    uint32_t slab_bytes = unit * (s->slab.end - s->slab.first);
    uint32_t fit = slab_bytes < frame_bytes ? frame_bytes / slab_bytes : 1;
    uint32_t parts = (s->g.layers + fit - 1) / fit;
    s->slab_layers = (s->g.layers + parts - 1) / parts;
    s->slab_layer = 0;
    return true;
}

static kvt_frame next_box(kvt_send *s) {
    uint32_t left = s->g.layers - s->slab_layer, tokens = s->slab.end - s->slab.first;
    kvt_frame f = {
        .kind = KVT_DATA,
        .ticket = s->ticket,
        .epoch = s->epoch,
        .layer_first = s->slab_layer,
        .layers = left < s->slab_layers ? left : s->slab_layers,
        .head_first = s->g.head_first,
        .heads = s->g.heads,
        .token_first = s->slab.first,
        .tokens = tokens,
        .type = s->g.type,
    };
    f.payload_bytes = f.layers * 2 * f.heads * tokens * s->g.row_bytes;
    s->slab_layer += f.layers;
    if (s->slab_layer == s->g.layers) s->slab = (kvt_range){0, 0};
    return f;
}

/* Where a frame is made: the transport's memory, or the link's one buffer. ST_AGAIN: no room yet; ST_PEER_LOST:
 * errno says why there will be none. */
static status frame_room(kvt_link *l, const kvt_send *s) {
    const kvt_transport *t = l->node->transport;
    uint32_t unit = token_bytes(s);
    if (t->reserve && l->stream) {
        l->out = t->reserve(l->stream, KVT_FRAME_BYTES + (unit < t->frame_bytes ? t->frame_bytes : unit));
        l->direct = l->out != NULL;
        return l->out ? ST_OK : errno == EAGAIN ? ST_AGAIN : ST_PEER_LOST;
    }
    if (!l->out) l->out = mem_alloc(KVT_FRAME_BYTES + KVT_SEAL_BYTES + KVT_PAYLOAD_MAX);
    return l->out ? ST_OK : ST_NO_MEMORY;
}

/* The payload as runs of memory, from run[1] on: the pages', or one where it has been packed. Summed over, it is in
 * the cache when the socket copies it. */
static void lay_out(kvt_link *l, kvt_send *s, const kvt_frame *f) {
    unsigned char *payload = l->out + KVT_FRAME_BYTES;
    int count = l->direct || !s->source->runs ? 0 : s->source->runs(s->ctx, f, payload, l->run + 1);
    assert(count >= 0 && count <= KVT_RUNS_MAX);
    l->gathered = count ? s : NULL;
    if (!count) {
        s->source->pack(s->ctx, f, payload);
        l->run[count++ + 1] = (struct iovec){payload, f->payload_bytes};
    }
    l->runs = count + 1;
}

static void stage_clear(kvt_link *l, kvt_send *s, kvt_frame *f) {
    lay_out(l, s, f);
    size_t bytes = 0;
    for (int i = 1; i < l->runs; bytes += l->run[i++].iov_len)
        f->payload_crc = kvt_crc32c(f->payload_crc, l->run[i].iov_base, l->run[i].iov_len);
    assert(bytes == f->payload_bytes);
    kvt_frame_encode(f, l->out);
    l->run[0] = (struct iovec){l->out, KVT_FRAME_BYTES};
    if (!l->gathered) { /* it follows its header: one run */
        l->run[0].iov_len += bytes;
        l->runs = 1;
    }
}

/* Packed and encrypted where it was packed to: that is as quick as encrypting run by run out of the pages, whose runs
 * of 2 KiB each cost a call. */
static void stage_sealed(kvt_link *l, kvt_send *s, kvt_frame *f) {
    s->source->pack(s->ctx, f, l->out + KVT_FRAME_BYTES + KVT_SEAL_BYTES);
    kvt_seal(l->node->cipher, &s->sealing, f, l->out);
    l->run[0] = (struct iovec){l->out, KVT_FRAME_BYTES + KVT_SEAL_BYTES + f->payload_bytes};
    l->runs = 1;
    l->gathered = NULL;
}

static void stage(kvt_link *l, kvt_send *s) {
    kvt_frame f = next_box(s);
    (s->sealed ? stage_sealed : stage_clear)(l, s, &f);
    s->bytes += f.payload_bytes;
    metric_add(&sent_frames, 1);
    metric_add(&sent_bytes, f.payload_bytes);
}

bool kvt_send_fill(kvt_link *l) {
    for (kvt_send *s; (s = l->ready_head);) {
        bool end = false;
        if (s->slab.first < s->slab.end || take_slab(s, &end)) {
            status room = frame_room(l, s);
            if (room == ST_AGAIN) return false; /* it keeps its turn */
            if (room == ST_PEER_LOST) {
                kvt_link_fail(l, ST_PEER_LOST, strerror(errno));
                return false;
            }
            if (room != ST_OK) {
                finish(s, room, "no memory for a frame buffer");
                continue;
            }
            leave_turns(l, s);
            stage(l, s);
            make_ready(s); /* behind the others */
            return true;
        }
        leave_turns(l, s);
        if (!end) continue;
        s->end_sent = true;
        s->since_ms = l->node->now_ms;
        kvt_node_due(l->node, s->since_ms + s->timeout_ms);
        say(s, l, KVT_END, ST_OK); /* may lose the link, and s with it */
        return true;
    }
    return false;
}

/* ---- the node's thread: time ----------------------------------------------------------------- */

/* A send waits while it has rows or an END that the peer does not take. One that was given nothing to
 * send waits for its caller, who has his own clock. */
static bool waits(kvt_send *s) {
    if (!s->link || s->ready || s->end_sent) return s->link != NULL;
    pthread_mutex_lock(&s->node->lock);
    bool wants = has_rows(s) || s->end_asked;
    pthread_mutex_unlock(&s->node->lock);
    return wants;
}

static void tick(kvt_send *s, int64_t now_ms, int64_t *due_ms) {
    if (!waits(s)) return;
    kvt_link *l = s->link;
    int64_t last = s->since_ms > l->progress_ms ? s->since_ms : l->progress_ms;
    if (now_ms >= last + s->timeout_ms) {
        char why[KVT_ADDRESS_MAX + 60];
        snprintf(why, sizeof why, "%s took nothing for %u ms", s->address, s->timeout_ms);
        finish(s, ST_DEADLINE, why);
    } else if (last + s->timeout_ms < *due_ms) {
        *due_ms = last + s->timeout_ms;
    }
}

void kvt_send_tick(kvt_node *n, int64_t now_ms, int64_t *due_ms) {
    for (kvt_send *s = n->sends; s; s = s->next) tick(s, now_ms, due_ms);
}

void kvt_send_close_all(kvt_node *n) {
    kvt_send_dirty(n); /* those that no turn of the loop has seen */
    for (kvt_send *s = n->sends, *next; s; s = next) {
        next = s->next;
        if (!s->ended) finish(s, ST_CANCELED, "node closes");
    }
    n->dirty = NULL; /* closes that came in the callbacks above */
    while (n->sends) {
        kvt_send *s = n->sends;
        if (s->closed) {
            destroy(s);
            continue;
        }
        list_remove(n, s); /* an orphan, until its caller closes it */
        mem_free(s->ranges);
        s->ranges = NULL;
        s->node = NULL;
    }
}
