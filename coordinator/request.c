/* request.c -- the life of one request, from the client's call to its last token.
 *
 *   QUEUED -> RESERVING -> PREFILLING -> MOVING -> DECODING -> (finished)
 *
 *   QUEUED     -> RESERVING    [coord_request_place]  a decode node has room: its Decode starts. Until then a prefill node
 *                                                     may read its prompt ahead and hold it (coordinator/hold.c)
 *   RESERVING  -> PREFILLING   [reserved]             pages are promised: Prefill starts elsewhere
 *   RESERVING  -> DECODING     [reserved]             nothing to send: the decode node computes alone
 *   PREFILLING -> MOVING       [prefill_event]        the prompt is read, its last pages are moving
 *   any placed -> DECODING     [decode_event]         the decode node has what it will get
 *   any placed -> QUEUED       [coord_request_again]  a node failed, is full or was lost (coordinator/core.c, lose_node);
 *                                                     emitted tokens are kept
 *   DECODING   -> QUEUED       [coord_request_again]  its node is to have no work any more (coordinator/move.c)
 *   MOVING     -> QUEUED       [coord_slow_due]       its pages move for far longer than they should
 *   QUEUED stays QUEUED        while no decode node serves: until one does, or the deadline passes; and while its tenant
 *                              has too many pages [coord_tenant_hold]
 *   any        -> finished     [finish]               answered, canceled, too late, or given up
 *
 * Rules:
 *  1. A placement is an attempt with its own number. What a stream of an older attempt says, or one
 *     that was canceled, is dropped: see decode_event() and prefill_event().
 *  2. A token is emitted once, at the index after the last one, whichever node says it first. Who
 *     says a known index again must say the same token; the same bytes are a promise, so a
 *     difference ends the request rather than the client reading either.
 *  3. A new attempt starts from prompt + emitted tokens. The sampler's randomness is a function of
 *     the position, so it goes on as if nothing had happened. The first one of a request that another coordinator had
 *     begun starts from what the client has of its answer, in the same way.
 *  4. A failed prefill matters only until the decode node has landed: from then on it needs nobody.
 *  5. "Full" (ST_AGAIN) is an answer, not a failure: it costs no attempt and bans no node.
 *  6. Where prefill and decode nodes have different numerics (ranks, KV types, back ends) the prompt's positions are
 *     computed by prefill nodes only, all but the last, and everything after by decode nodes only, in each attempt
 *     alike: so the bytes stay the same. The prefill node's first token is not said then, and with no prefill node
 *     at hand the request waits for one for apart_ms before a decode node reads the prompt after all; it also does
 *     after COORD_APART_FAILURES attempts that failed: the two may not reach each other.
 *  7. Log probabilities of the prompt come from the decode node, which computes all of it for them; what was told is
 *     the service's to remember. Where rule 6 holds there are none: the request ends. */
#include "coordinator/core_internal.h"
#include <assert.h>
#include <inttypes.h>
#include <string.h>

static const char *const side_names[SIDES] = {"decode", "prefill", "prefill"};

/* ---- birth -------------------------------------------------------------------------------------- */

static coord_request *create(const coord_core *c, const coord_event *e) {
    int32_t seen = e->submit.count - e->submit.prompt_count;
    assert(e->request != 0 && e->submit.prompt_count > 0 && seen >= 0 && seen < e->submit.max_tokens);
    size_t tokens = (size_t)e->submit.prompt_count + (size_t)e->submit.max_tokens;
    size_t id_bytes = strlen(e->submit.id) + 1, costs = e->submit.explain ? COORD_COSTS_MAX : 0;
    int32_t P[COORD_MARKS_MAX];
    uint64_t salts[COORD_MARKS_MAX];
    size_t marks = (size_t)coord_ask_marks(c, e->submit.salt, P, salts);
    coord_request *r = mem_alloc(sizeof *r + marks * sizeof *r->marks + costs * sizeof *r->costs + tokens * sizeof(int32_t) +
                                 id_bytes);
    if (!r) return NULL;
    coord_marks *its_marks = (coord_marks *)(r + 1);
    coord_cost *its_costs = (coord_cost *)(its_marks + marks);
    *r = (coord_request){.number = e->request,
                         .marks = its_marks,
                         .marks_count = (int32_t)marks,
                         .costs = costs ? its_costs : NULL,
                         .tokens = (int32_t *)(its_costs + costs),
                         .count = e->submit.count,
                         .prompt_count = e->submit.prompt_count,
                         .max_tokens = e->submit.max_tokens,
                         .prefer_node = e->submit.prefer_node,
                         .salt = e->submit.salt,
                         .prompt_here = e->submit.prompt_here,
                         .deadline_ms = e->submit.deadline_ms,
                         .retry_ms = INT64_MAX,
                         .slow_ms = INT64_MAX,
                         .slow_from = -1,
                         .slow_to = -1,
                         .reader = -1,
                         .holder = -1,
                         .seat = {{.node = -1}, {.node = -1}, {.node = -1}},
                         .place = {-1, -1, -1}};
    memcpy(r->tokens, e->submit.tokens, (size_t)r->count * sizeof(int32_t));
    r->id = memcpy(r->tokens + tokens, e->submit.id, id_bytes);
    for (size_t i = 0; i < marks; i++) coord_cache_mark(salts[i], r->tokens, r->count, P[i], &its_marks[i]);
    return r;
}

/* The answer to a request that was never accepted. */
static void refuse(coord_core *c, const coord_event *e, status st, const char *text, int64_t retry_after_ms) {
    log_write(LOG_INFO, e->submit.id, "request.refused", "status=%s %s", status_name(st), text);
    coord_action *a = coord_core_act(c, COORD_DO_FINISH, NULL, -1);
    a->request = e->request;
    a->finish.st = st;
    a->finish.text = text;
    a->finish.retry_after_ms = retry_after_ms;
}

/* Nobody waits before it, and some node has room. */
static bool goes_at_once(coord_core *c, const coord_event *e) {
    coord_ask ask = {.nodes = c->nodes, .count = c->nodes_end, .now_ms = c->now_ms};
    return c->heap[HEAP_QUEUE].count == 0 && coord_route_candidates(&ask, COORD_DECODE, c->rows[COORD_DECODE]) > 0 &&
           !coord_tenant_would_hold(c, e);
}

void coord_request_submit(coord_core *c, const coord_event *e) {
    enum { MEMORY_MS = 1000 };
    int64_t retry_after_ms;
    if (coord_route_outlook(c->nodes, c->nodes_end, c->now_ms) == OUTLOOK_NONE) {
        refuse(c, e, ST_PEER_LOST, "no decode node is ready", -1);
        return;
    }
    const char *why = coord_tenant_refusal(c, e, false, &retry_after_ms);
    if (why && goes_at_once(c, e)) why = coord_tenant_refusal(c, e, true, &retry_after_ms);
    if (why) {
        refuse(c, e, ST_AGAIN, why, retry_after_ms);
        return;
    }
    if ((why = coord_tenant_too_large(c, e->submit.prompt_count, e->submit.max_tokens))) {
        refuse(c, e, ST_BAD_INPUT, why, -1);
        return;
    }
    coord_request *r = create(c, e);
    if (!r) {
        refuse(c, e, ST_NO_MEMORY, "the coordinator has no memory for the request", MEMORY_MS);
        return;
    }
    r->tenant = coord_tenant_join(c, e->submit.tenant);
    r->key[HEAP_QUEUE] = coord_tenant_start_tag(c, r->tenant, r->count + (int64_t)coord_ask_answer(c, r));
    coord_core_insert(c, r);
    log_write(LOG_INFO, r->id, "request.queued", "tokens=%d max_tokens=%d", r->count, r->max_tokens);
    coord_core_enqueue(c, r, 0);
}

/* ---- ends --------------------------------------------------------------------------------------- */

/* Cancels what is still open of this attempt. A hold is not of it. */
static void cancel_streams(coord_core *c, coord_request *r) {
    static const coord_action_kind cancel[] = {COORD_DO_CANCEL_DECODE, COORD_DO_CANCEL_PREFILL};
    for (int side = SIDE_DECODE; side <= SIDE_PREFILL; side++) {
        if (r->seat[side].node < 0) continue;
        coord_core_act(c, cancel[side], r, r->seat[side].node);
        coord_core_leave(c, r, side);
    }
}

/* text: NULL with ST_OK; copied. */
static void finish(coord_core *c, coord_request *r, status st, int32_t reason, const char *text) {
    cancel_streams(c, r);
    coord_hold_release(c, r);
    coord_action *a = coord_core_act(c, COORD_DO_FINISH, r, -1);
    a->finish.st = st;
    a->finish.reason = reason;
    a->finish.retry_after_ms = -1;
    a->finish.attempts = r->attempt ? r->failures + 1 : 0;
    if (st == ST_OK) c->answer_tokens += 0.05 * (r->count - r->prompt_count - c->answer_tokens);
    if (text && text != r->text) snprintf(r->text, sizeof r->text, "%s", text);
    a->finish.text = text ? r->text : NULL;
    log_write(LOG_INFO, r->id, "request.finished", "status=%s tokens=%d attempts=%d%s%s", status_name(st),
              r->count - r->prompt_count, a->finish.attempts, text ? " " : "", text ? r->text : "");
    coord_core_forget(c, r);
}

/* A failed attempt whose only decode nodes have just failed waits out their ban, lest a node that is restarting eats every
 * attempt within a millisecond. */
void coord_request_again(coord_core *c, coord_request *r, int why) {
    bool failed = why < ST_COUNT && why != ST_AGAIN;
    cancel_streams(c, r);
    coord_core_watch(c, r, INT64_MAX);
    r->state = REQUEST_QUEUED;
    c->counts.again[why]++;
    int32_t wait_ms = failed && coord_route_outlook(c->nodes, c->nodes_end, c->now_ms) == OUTLOOK_AVOIDED ? c->limits.avoid_ms : 0;
    log_write(LOG_INFO, r->id, "request.queued", "tokens=%d failures=%d wait_ms=%d", r->count, r->failures, wait_ms);
    coord_core_enqueue(c, r, wait_ms ? c->now_ms + wait_ms : 0);
}

/* Its timer came: too late for the client, its pages move slowly, or time to try again. */
void coord_request_due(coord_core *c, coord_request *r) {
    if (r->deadline_ms <= c->now_ms) {
        finish(c, r, ST_DEADLINE, 0, "the deadline passed");
        return;
    }
    if (r->slow_ms <= c->now_ms) {
        coord_slow_due(c, r);
        return;
    }
    coord_core_dequeue(c, r);
    coord_core_enqueue(c, r, 0);
}

/* ---- placement ----------------------------------------------------------------------------------- */

/* Rule 6. true: it is delayed. */
static bool waits_for_prefill(coord_core *c, coord_request *r, bool prefill_nodes) {
    enum { AGAIN_MS = 100 };
    if (!r->apart || prefill_nodes) {
        r->apart_until_ms = 0;
        return false;
    }
    if (r->apart_until_ms == 0) r->apart_until_ms = c->now_ms + c->limits.apart_ms;
    if (c->now_ms >= r->apart_until_ms) {
        r->apart = false;
        return false;
    }
    coord_core_dequeue(c, r);
    coord_core_enqueue(c, r, c->now_ms + AGAIN_MS);
    return true;
}

static void begin_decode(coord_core *c, coord_request *r, const coord_placement *p, int32_t local_tokens_max) {
    coord_tenant_turn(c, r);
    coord_core_dequeue(c, r);
    coord_core_sit(c, r, SIDE_DECODE, p->node);
    c->counts.chosen[COORD_DECODE][p->reason]++;
    c->virtual_tag = r->key[HEAP_QUEUE] > c->virtual_tag ? r->key[HEAP_QUEUE] : c->virtual_tag;
    r->state = REQUEST_RESERVING;
    r->attempt++;
    r->confirmed = r->count;
    coord_action *a = coord_core_act(c, COORD_DO_DECODE, r, p->node);
    a->decode.tokens = r->tokens;
    a->decode.count = r->count;
    a->decode.prompt_count = r->prompt_count;
    a->decode.max_tokens = r->max_tokens;
    a->decode.local_tokens_max = local_tokens_max;
    a->decode.apart = r->apart;
    a->decode.moved = r->holder >= 0;
    a->decode.salt = r->apart ? coord_ask_apart_salt(c, r->salt) : r->salt;
    a->decode.costs = r->costs;
    a->decode.costs_count = r->costs_count;
    log_write(LOG_INFO, r->id, "request.reserving", "attempt=%u decode=%d tokens=%d local_tokens_max=%d%s", r->attempt, p->node,
              r->count, a->decode.local_tokens_max, r->apart ? " apart" : "");
}

bool coord_request_prompt_here(const coord_request *r) { return r->prompt_here && r->count == r->prompt_count; }

bool coord_request_place(coord_core *c, coord_request *r) {
    coord_placement p;
    if (!coord_ask_decode(c, r, &p)) return false;
    if (coord_tenant_hold(c, r, p.node)) return true;
    if (coord_request_prompt_here(r)) {
        if (p.differ)
            finish(c, r, ST_UNSUPPORTED, 0, "prompt_logprobs: decode nodes, which tell them, do not read prompts here: prefill "
                                            "nodes have other numerics (ranks, KV type or back end)");
        else
            begin_decode(c, r, &p, INT32_MAX);
        return true;
    }
    r->apart = p.differ && r->failures < COORD_APART_FAILURES;
    if (waits_for_prefill(c, r, p.prefill_nodes)) return true;
    begin_decode(c, r, &p, r->apart ? 0 : p.differ ? INT32_MAX : p.local_tokens_max);
    return true;
}

/* e: what the decode node has reserved. */
static void begin_prefill(coord_core *c, coord_request *r, int node, const coord_event *e) {
    int32_t cached = e->reserved.cached, wanted = e->reserved.wanted;
    int32_t count = r->apart ? r->prompt_count : r->confirmed;   /* a hold may have said the first token since */
    coord_hold_release(c, r);                                    /* what it held is found in the cache */
    r->moving = wanted - cached;
    r->prefilling = c->cached[node] < count ? count - c->cached[node] : 1;
    coord_core_sit(c, r, SIDE_PREFILL, node);
    r->state = REQUEST_PREFILLING;
    coord_action *a = coord_core_prefill(c, r, node, count);
    a->prefill.ticket = e->reserved.ticket;
    a->prefill.kv_address = e->reserved.kv_address;
    a->prefill.kv_key = e->reserved.kv_key;
    a->prefill.kv_key_bytes = e->reserved.kv_key_bytes;
    a->prefill.skip = cached;
    a->prefill.send_end = wanted;
    a->prefill.moved = node == r->holder;
    log_write(LOG_INFO, r->id, "request.prefilling", "attempt=%u prefill=%d cached=%d wanted=%d", r->attempt, node, cached, wanted);
}

/* Its node has what it will get. */
static void decoding(coord_core *c, coord_request *r) {
    r->state = REQUEST_DECODING;
    r->holder = r->slow_from = r->slow_to = -1;
    r->tries = false;
    c->changed = c->changed || coord_move_leaves(&c->nodes[r->seat[SIDE_DECODE].node]);
}

static void reserved(coord_core *c, coord_request *r, const coord_event *e) {
    int32_t cached = e->reserved.cached, wanted = e->reserved.wanted;
    if (r->state != REQUEST_RESERVING || cached < 0 || cached > wanted || wanted > (r->apart ? r->prompt_count - 1 : r->count)) {
        coord_request_side_failed(c, r, SIDE_DECODE, ST_CORRUPT, "it reserved what was not asked for");
        return;
    }
    if (wanted == cached) {
        coord_hold_release(c, r);
        decoding(c, r);
        r->computing = r->count - cached;
        c->nodes[r->seat[SIDE_DECODE].node].computing += r->computing;
        c->counts.chosen[COORD_PREFILL][COORD_REASON_LOCAL]++;
        log_write(LOG_INFO, r->id, "request.decoding", "attempt=%u cached=%d local", r->attempt, cached);
        return;
    }
    coord_reason reason;
    int node = coord_ask_prefill(c, r, r->seat[SIDE_DECODE].node, wanted - cached, &reason);
    if (node < 0) { /* none is left: this time the decode node is told to compute it all */
        coord_request_again(c, r, COORD_AGAIN_NO_PREFILL);
        return;
    }
    c->counts.chosen[COORD_PREFILL][reason]++;
    begin_prefill(c, r, node, e);
}

static void landed(coord_core *c, coord_request *r) {
    if (r->state == REQUEST_DECODING) return;
    decoding(c, r);
    log_write(LOG_INFO, r->id, "request.decoding", "attempt=%u", r->attempt);
}

static void moving(coord_request *r) {
    if (r->state >= REQUEST_MOVING) return;
    r->state = REQUEST_MOVING;
    log_write(LOG_INFO, r->id, "request.moving", "attempt=%u", r->attempt);
}

/* ---- tokens -------------------------------------------------------------------------------------- */

/* Its prompt is read. */
static void computed(coord_core *c, coord_request *r) {
    c->nodes[r->seat[SIDE_DECODE].node].computing -= r->computing;
    r->computing = 0;
}

/* Rule 2. false: the request was finished. */
static bool relay(coord_core *c, coord_request *r, const coord_event *e, coord_side side) {
    int32_t index = e->tokens.index, count = e->tokens.count, from = r->count;
    int64_t end = (int64_t)index + count;
    if (index < r->prompt_count || index > r->count || count < 0 ||
        end > (int64_t)r->prompt_count + r->max_tokens) {
        snprintf(r->text, sizeof r->text,
                 "%s node %d sent %d tokens at index %d, expected index %d of at most %d", side_names[side], r->seat[side].node, count, index, r->count,
                 r->prompt_count + r->max_tokens);
        finish(c, r, ST_INTERNAL, 0, r->text);
        return false;
    }
    for (int32_t i = 0; i < count; i++) {
        int32_t at = index + i, token = e->tokens.tokens[i];
        if (at == r->count) r->tokens[r->count++] = token;
        if (r->tokens[at] == token) continue;
        c->counts.disagreements++;
        snprintf(r->text, sizeof r->text,
                 "%s node %d says token %d at index %d, where token %d was said before", side_names[side], r->seat[side].node, token, at, r->tokens[at]);
        log_write(LOG_ERROR, r->id, "request.disagreement", "%s", r->text);
        finish(c, r, ST_INTERNAL, 0, r->text);
        return false;
    }
    if (side == SIDE_DECODE && r->confirmed < end) r->confirmed = (int32_t)end;
    if (r->count == from) return true;
    coord_action *a = coord_core_act(c, COORD_DO_EMIT, r, -1);
    a->emit.index = from;
    a->emit.tokens = r->tokens + from;
    a->emit.count = r->count - from;
    return true;
}

/* ---- streams end --------------------------------------------------------------------------------- */

/* Whether another node may do better with the same request. */
static bool worth_another_try(status st) {
    switch (st) {
    case ST_AGAIN:
    case ST_CANCELED: /* not by us: what we cancel is not heard any more */
    case ST_PEER_LOST:
    case ST_PEER_STALE:
    case ST_CORRUPT:
    case ST_NO_MEMORY:
    case ST_IO:
    case ST_DEVICE:
    case ST_INTERNAL: return true;
    default: return false;
    }
}

/* What a failure tells about the node: full, bad, or nothing (a stale ticket is the other end's). */
static void judge_node(coord_core *c, int node, status st) {
    coord_entry *n = &c->nodes[node];
    if (st == ST_AGAIN)
        n->busy_ms = c->now_ms + COORD_BUSY_MS;
    else if (n->alive && st != ST_PEER_STALE)
        coord_lapse_failed(c, n);
}

/* The stream of one side is over and did not do its work: the attempt with it. */
static void attempt_failed(coord_core *c, coord_request *r, int node, coord_side side, status st, const char *text) {
    judge_node(c, node, st);
    if (side == SIDE_PREFILL) r->holder = -1;
    if (st == ST_AGAIN) {
        coord_request_again(c, r, ST_AGAIN);
        return;
    }
    c->counts.retries++;
    log_write(LOG_WARN, r->id, "request.attempt.failed", "attempt=%u %s=%d status=%s %s", r->attempt,
              side_names[side], node, status_name(st), text ? text : status_text(st));
    if (++r->failures < COORD_ATTEMPTS_MAX) {
        coord_request_again(c, r, (int)st);
        return;
    }
    r->failures--; /* finish() counts this attempt */
    snprintf(r->text, sizeof r->text, "given up after %d attempts; the last one: %s node %d: %s",
             COORD_ATTEMPTS_MAX, side_names[side], node, text ? text : status_text(st));
    finish(c, r, ST_PEER_LOST, 0, r->text);
}

/* The stream broke, or its node is lost: we cancel what may be left of it. */
void coord_request_side_failed(coord_core *c, coord_request *r, coord_side side, status st, const char *text) {
    int node = r->seat[side].node;
    if (side == SIDE_HOLD) {
        coord_hold_release(c, r);
        coord_core_read_ahead(c, r, true);
        return;
    }
    if (side == SIDE_PREFILL && r->state == REQUEST_DECODING) { /* rule 4 */
        coord_core_act(c, COORD_DO_CANCEL_PREFILL, r, node);
        coord_core_leave(c, r, side);
        return;
    }
    cancel_streams(c, r);
    attempt_failed(c, r, node, side, st, text);
}

static void decode_end(coord_core *c, coord_request *r, const coord_event *e) {
    int node = r->seat[SIDE_DECODE].node;
    coord_core_leave(c, r, SIDE_DECODE);
    if (e->end.st == ST_OK && e->end.done && r->confirmed == r->count) {
        finish(c, r, ST_OK, e->end.reason, NULL);
    } else if (e->end.st == ST_OK && e->end.done) {
        c->counts.disagreements++;
        snprintf(r->text, sizeof r->text,
                 "decode node %d ended the answer before index %d, where a prefill node had a token",
                 node, r->confirmed);
        finish(c, r, ST_INTERNAL, 0, r->text);
    } else if (e->end.st == ST_OK) {
        attempt_failed(c, r, node, SIDE_DECODE, ST_INTERNAL, "its stream ended before the answer did");
    } else if (worth_another_try(e->end.st)) {
        attempt_failed(c, r, node, SIDE_DECODE, e->end.st, e->end.text);
    } else {
        finish(c, r, e->end.st, 0, e->end.text ? e->end.text : status_text(e->end.st));
    }
}

static void prefill_end(coord_core *c, coord_request *r, const coord_event *e) {
    int node = r->seat[SIDE_PREFILL].node;
    coord_core_leave(c, r, SIDE_PREFILL);
    if (e->end.st == ST_OK || r->state == REQUEST_DECODING) return; /* rule 4 */
    attempt_failed(c, r, node, SIDE_PREFILL, e->end.st, e->end.text);
}

/* ---- events -------------------------------------------------------------------------------------- */

static void decode_event(coord_core *c, coord_request *r, const coord_event *e) {
    if (e->attempt != r->attempt || r->seat[SIDE_DECODE].node < 0) return; /* rule 1 */
    switch (e->kind) {
    case COORD_RESERVED: reserved(c, r, e); break;
    case COORD_LANDED: landed(c, r); break;
    case COORD_TOKENS:
        computed(c, r);
        if (relay(c, r, e, SIDE_DECODE)) landed(c, r);
        break;
    default: decode_end(c, r, e);
    }
}

/* Of a prompt that is read ahead. */
static void hold_event(coord_core *c, coord_request *r, const coord_event *e) {
    if (e->kind == COORD_FIRST_TOKEN) {
        coord_hold_read(c, r);
        if (!r->hold_silent) relay(c, r, e, SIDE_HOLD);
    } else if (e->kind == COORD_PREFILL_END) {
        bool full = e->end.st == ST_AGAIN;
        if (!full && e->end.st != ST_OK) judge_node(c, r->seat[SIDE_HOLD].node, e->end.st);
        log_write(LOG_INFO, r->id, "request.unread", "attempt=%u status=%s %s", r->hold_attempt, status_name(e->end.st),
                  e->end.text ? e->end.text : status_text(e->end.st));
        coord_hold_lost(c, r, full, worth_another_try(e->end.st));
    }
}

static void prefill_event(coord_core *c, coord_request *r, const coord_event *e) {
    if (r->seat[SIDE_HOLD].node >= 0 && e->attempt == r->hold_attempt) {
        hold_event(c, r, e);
        return;
    }
    if (e->attempt != r->attempt || r->seat[SIDE_PREFILL].node < 0) return; /* rule 1 */
    switch (e->kind) {
    case COORD_FIRST_TOKEN:
        if (!r->apart && !relay(c, r, e, SIDE_PREFILL)) break;
        coord_slow_begin(c, r);
        moving(r);
        break;
    case COORD_SENT:
        if (r->moving > 0 && r->seat[SIDE_DECODE].node >= 0)
            coord_link_learn(&c->links, r->seat[SIDE_PREFILL].node, r->seat[SIDE_DECODE].node,
                             e->sent.exposed_ms / r->moving, c->now_ms);
        moving(r);
        break;
    default: prefill_end(c, r, e);
    }
}

void coord_request_event(coord_core *c, coord_request *r, const coord_event *e) {
    switch (e->kind) {
    case COORD_CANCEL: finish(c, r, ST_CANCELED, 0, "the client left"); break;
    case COORD_STOP: finish(c, r, ST_OK, 1, NULL); break;
    case COORD_RESERVED:
    case COORD_LANDED:
    case COORD_TOKENS:
    case COORD_DECODE_END: decode_event(c, r, e); break;
    case COORD_FIRST_TOKEN:
    case COORD_SENT:
    case COORD_PREFILL_END: prefill_event(c, r, e); break;
    default: assert(!"an event of a node, not of a request");
    }
}
