/* prefill.c -- the life of a prompt on the prefill node: computed in chunks, each on its way to the decode
 * node while the next is computed.
 *
 *              admit             last row                sent
 *   (request) --+--> COMPUTING --+---------> SENDING -----------> end
 *               |       ^    |   |              |
 *               |       |    +------ stop ------+--> ENDING --sent--> end
 *               +--> WAITING     +--> HELD --stop--> end
 *                      resume
 *
 *   (request) -> COMPUTING        [admit]     pages were there
 *   (request) -> WAITING          [admit]     they were not: first come, first served
 *   WAITING   -> COMPUTING        [resume]
 *   COMPUTING -> SENDING          [computed]  the first token is out, every row was pushed
 *   COMPUTING -> end              [computed]  nothing was to be sent
 *   COMPUTING -> HELD             [computed]  nor was it: the pages are kept until a decode node has room
 *   SENDING   -> end              [sent]      the receiver has every page, or it never will
 *   COMPUTING -> end              [sent]      the transfer broke: no use in computing on
 *   WAITING, HELD, COMPUTING -> end  [stop]   no transfer was begun
 *   COMPUTING, SENDING -> ENDING  [stop]      aborted; pages stay pinned until the fence stands
 *   ENDING    -> end              [sent]      the fence
 *
 * Rules
 *   1. From send_open() to node_core_sent() the link may read the pages: until then they are not given back.
 *      sent() comes exactly once for every send that was opened.
 *   2. Rows are pushed once, in order, when they are final: after the step that computed them, or at once
 *      where the prefix cache held them.
 *   3. The row after the last one sent is computed too, for the first token: D computes it again, so that a
 *      broken hint can not change the answer.
 *   4. A prompt read ahead (node_request's hold) stays in the prefix cache, as any does, and its pages stay pinned, so
 *      that nobody evicts them. The Prefill that sends them finds them there; the cancel of the first one unpins them. Held
 *      pages are at most half of the pool, of at most half of the sequences. No hold waits for pages. When a prompt that
 *      is to be sent lacks pages, those held last are unpinned first: they are cached like others from then on.
 *   5. What was read of a prompt that is canceled, or whose transfer broke, is offered to the prefix cache: it
 *      may be asked for again, for another decode node. */
#include "prefill-node/prefill.h"
#include "node/seq.h"
#include <assert.h>

METRIC(metric_held, "baton_prefill_held_total", NULL, METRIC_COUNTER, "prompts read ahead because no decode node had room");
METRIC(metric_unpinned, "baton_prefill_unpinned_total", NULL, METRIC_COUNTER,
       "prompts read ahead whose pages are only cached now, because a prompt to be sent needed room");

void prefill_show(void) {
    metric_show(&metric_held);
    metric_show(&metric_unpinned);
}

enum { PREFILL_COMPUTING, PREFILL_WAITING, PREFILL_SENDING, PREFILL_HELD, PREFILL_ENDING };

/* Pushes what of [skip, send_end) became final. */
static void push(node_core *c, node_seq *s) {
    const node_io *io = node_core_io(c);
    int32_t first = s->request->skip + s->pushed, end = min32(s->ready, s->request->send_end);
    if (!s->send || end <= first) return;
    s->pushed += end - first;
    io->send_push(io->ctx, s->send, first, end - first);
}

/* ---- held prompts: rule 4 --------------------------------------------------------------------------- */

/* NULL: s may be held. */
static const char *hold_refusal(node_core *c, const node_seq *s) {
    const node_limits *l = node_core_limits(c);
    int32_t pages = node_seq_pages(c, s->count), held = 0;
    if (!l->prefix_cache) return "it keeps no prefix cache";
    for (const node_seq *v = node_core_first(c); v; v = v->next)
        if (v != s && v->role == s->role && v->request->hold) pages += v->blocks_count, held++;
    if (pages > l->pages / 2 || held >= l->sequences_max / 2)
        return node_core_text(c, "it would hold %d pages of %d prompts, of %d and %d at most", pages, held + 1, l->pages / 2,
                              l->sequences_max / 2);
    return NULL;
}

/* false: no pages are held. */
static bool unpin_last(node_core *c, const node_seq *s) {
    node_seq *last = NULL;
    for (node_seq *v = node_core_first(c); v; v = v->next)
        if (v->role == s->role && v->state == PREFILL_HELD && v->blocks_count > 0 && (!last || v->computed_us >= last->computed_us))
            last = v;
    if (!last) return false;
    metric_add(&metric_unpinned, 1);
    node_seq_give(c, last);
    return true;
}

static void hold(node_core *c, node_seq *s) {
    metric_add(&metric_held, 1);
    node_seq_mark(c, s, 0, s->blocks_count, ENG_PAGE_HELD);
}

/* ---- admission ------------------------------------------------------------------------------------- */

/* Pages are here: opens the way to the decode node and begins. */
static void begin(node_core *c, node_seq *s) {
    const node_io *io = node_core_io(c);
    const node_request *r = s->request;
    s->cached = s->ready;
    s->waiting = false;
    s->state = PREFILL_COMPUTING;
    if (r->send_end > r->skip) {
        status st = io->send_open(io->ctx, s, r->kv_address, r->ticket, r->epoch, s->blocks, &s->send);
        if (st != ST_OK) {
            node_seq_end(c, s, st, "no way to the decode node's pages");
            return;
        }
        node_seq_mark(c, s, r->skip / node_core_limits(c)->page_tokens, node_seq_pages(c, r->send_end),
                      ENG_PAGE_SENDING);
    }
    s->runnable = true;
    push(c, s);
}

static bool resume(node_core *c, node_seq *s, int64_t now_us) {
    (void)now_us;
    while (node_seq_take(c, s, node_seq_pages(c, s->count), ENG_PAGE_RUNNING) != ST_OK)
        if (s->request->hold || !unpin_last(c, s)) return false;
    begin(c, s);
    return true;
}

static void admit(node_core *c, node_seq *s, int64_t now_us) {
    const node_request *r = s->request;
    if (r->skip < 0 || r->skip > r->send_end || r->send_end > s->count) {
        node_seq_end(c, s, ST_BAD_INPUT,
                     node_core_text(c, "skip %d, send_end %d: expected 0 <= skip <= send_end <= %d tokens",
                                    r->skip, r->send_end, s->count));
        return;
    }
    assert(!r->hold || r->send_end == 0);
    const char *refusal = r->hold ? hold_refusal(c, s) : NULL;
    if (!refusal && !node_core_waits(s) && resume(c, s, now_us)) return;
    if (r->hold) {
        node_seq_end(c, s, ST_AGAIN, refusal ? refusal : "no pages are free for a prompt to be held");
        return;
    }
    s->state = PREFILL_WAITING;
    s->waiting = true;
}

/* ---- computing and sending ------------------------------------------------------------------------- */

static void first_token(node_core *c, node_seq *s, const float *logits, int64_t now_us) {
    const node_io *io = node_core_io(c);
    s->runnable = false;
    s->state = s->request->hold ? PREFILL_HELD : PREFILL_SENDING;
    s->computed_us = now_us;
    s->prefill_us = now_us - s->first_us;
    node_seq_publish(c, s);
    node_event e = {.kind = NODE_FIRST_TOKEN,
                    .handle = s->request->handle,
                    .token = {.index = s->count, .cached = s->cached, .prefill_us = s->prefill_us}};
    status st = node_seq_sample(c, s, logits, &e.token.sampled);
    if (st == ST_OK) node_core_emit(c, &e);
    if (st == ST_OK && s->state == PREFILL_HELD)
        hold(c, s);
    else if (!s->send)
        node_seq_end(c, s, st, st == ST_OK ? NULL : "the logits are not numbers");
    else
        io->send_end(io->ctx, s->send);                    /* the pages are good without the hint, too */
}

static void computed(node_core *c, node_seq *s, const eng_rows *r, const float *logits, int64_t now_us) {
    (void)r;
    push(c, s);
    if (logits) first_token(c, s, logits, now_us);
}

static void sent(node_core *c, node_seq *s, status st, uint64_t bytes, int64_t wire_us, int64_t now_us) {
    assert(s->send);
    s->send = NULL;
    if (s->state == PREFILL_ENDING) {
        node_seq_end(c, s, s->ending, s->ending_text);
        return;
    }
    if (st != ST_OK) {
        node_seq_publish(c, s);
        node_seq_end(c, s, st, "the pages did not reach the decode node");
        return;
    }
    assert(s->state == PREFILL_SENDING);
    int64_t exposed_us = now_us - s->computed_us, hidden_us = wire_us - exposed_us;
    node_event e = {.kind = NODE_SENT,
                    .handle = s->request->handle,
                    .sent = {.bytes = bytes, .wire_us = wire_us, .hidden_us = hidden_us > 0 ? hidden_us : 0}};
    node_core_emit(c, &e);
    node_seq_end(c, s, ST_OK, NULL);
}

static void stop(node_core *c, node_seq *s, status st, const char *text) {
    const node_io *io = node_core_io(c);
    if (st == ST_CANCELED) node_seq_publish(c, s);
    if (!s->send) {
        node_seq_end(c, s, st, text);
    } else if (s->state != PREFILL_ENDING) {
        s->state = PREFILL_ENDING;
        s->runnable = false;
        s->ending = st;
        s->ending_text = text;
        io->send_abort(io->ctx, s->send);
    }
}

const node_role prefill_role = {.name = "prefill",
                                .admit = admit,
                                .resume = resume,
                                .computed = computed,
                                .sent = sent,
                                .stop = stop};
