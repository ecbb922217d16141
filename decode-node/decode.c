/* decode.c -- the life of an answer on the decode node, the only source of its tokens.
 *
 *               admit                                  landing
 *   (request) --+--> RUNNING <---------+   PROMISED ------------> LANDING
 *               |     |    ^  resume   |      |         landed       |
 *               |     |    +-------WAITING    +----------+-----------+--> RUNNING
 *               |     +--------------^        |          stop        |
 *               |         preempt             +----------+-----------+--> ENDING --landed--> end
 *               +--> PROMISED
 *               +--> end
 *
 *   (request) -> end              [admit], [promise]  already complete, no room, or no promise
 *   (request) -> RUNNING          [admit]     few tokens are uncached: they are computed here
 *   (request) -> PROMISED         [admit]     room for the others was promised under a ticket
 *   PROMISED  -> LANDING          [landing]   the first frame has come
 *   PROMISED, LANDING -> RUNNING  [landed]    the transfer is over, however it went
 *   RUNNING   -> WAITING          [preempt]   a sequence in front of it needed the pages
 *   WAITING   -> RUNNING          [resume]    pages again: what neither cache nor host memory has is computed again
 *   RUNNING, WAITING -> end       [answer], [stop]
 *   LANDING, WAITING -> end       [landed], [resume]  a prompt computed apart is not whole: rule 4
 *   PROMISED, LANDING -> ENDING   [stop]      revoked; pages stay pinned until the fence stands
 *   ENDING    -> end              [landed]    the fence
 *
 * Rules
 *   1. A lost transfer costs time, not the request: what has landed is used, the rest is computed here.
 *   2. The last token of the request is always computed here, so its logits, and with them every token of
 *      the answer, are this node's own. The prefill node's first token is a hint to the client, equal by
 *      construction.
 *   3. Pages of a promise are given back only in RUNNING or on the way out of ENDING: after
 *      node_core_landed() no frame can write to them. (Or at once, if the promise could not be made.)
 *   4. Where the prompt is computed apart, this node computes none of its positions but the last: what does not come,
 *      or is lost again, ends the request, and the coordinator places it anew. Then wanted is the prompt's part only.
 *   5. End tokens and stop tokens are part of the token stream (reason stop): the coordinator withholds
 *      their text.
 *   6. A step may have rows of proposed tokens (node_speculator) behind the last one. At each position the token is drawn
 *      from the target's logits as ever, its randomness being the position's; while it is the proposed one, the row
 *      behind it had the right token, so its KV and logits are good and the next token is drawn from them. The first that
 *      differs ends it, as does a token that ends the answer. So answers are those of no speculation, whoever proposes.
 *      What was not accepted is written over: s->ready, and with it what is published, ends before it.
 *   7. Where the prompt's logprobs are wanted, its rows are computed here, each with its logits: nothing of what is still to
 *      be told is taken from the prefix cache or promised to a prefill node. s->told outlives a preemption, and the next
 *      attempt begins where it was: each is said once.
 *   8. What a canceled sequence has computed stays as cache: its coordinator may have died, and the client goes on with it
 *      through another one. An answer's pages are published as they fill, so this is for a prompt that is read in chunks. */
#include "decode-node/decode.h"
#include "node/seq.h"
#include <assert.h>

enum { DECODE_RUNNING, DECODE_WAITING, DECODE_PROMISED, DECODE_LANDING, DECODE_ENDING };
enum { REASON_NONE = 0, REASON_STOP = 1, REASON_LENGTH = 2 };       /* baton.v1.FinishReason */

/* ---- the answer ----------------------------------------------------------------------------------- */

static bool ends_answer(const node_core *c, const node_request *r, int32_t token) {
    for (int32_t i = 0; i < r->stop_count; i++)
        if (r->stop_tokens[i] == token) return true;
    return !r->ignore_eos && node_core_io(c)->is_end_token(node_core_io(c)->ctx, token);
}

/* Whether the answer is complete as it stands in s->tokens. */
static int finished(const node_core *c, const node_seq *s) {
    const node_request *r = s->request;
    if (s->count > r->prompt_count && ends_answer(c, r, s->tokens[s->count - 1])) return REASON_STOP;
    bool full = s->count - r->prompt_count >= r->max_tokens || s->count >= node_core_limits(c)->context;
    return full ? REASON_LENGTH : REASON_NONE;
}

static void finish(node_core *c, node_seq *s, int reason) {
    node_event e = {.kind = NODE_DONE,
                    .handle = s->request->handle,
                    .done = {.reason = reason,
                             .computed = s->computed,
                             .prefill_us = s->prefill_us,
                             .proposed = s->proposed,
                             .accepted = s->accepted,
                             .draft_us = s->draft_us}};
    node_seq_publish(c, s);
    node_core_emit(c, &e);
    node_seq_end(c, s, ST_OK, NULL);
}

/* Draws the next token and says it. *reason: whether the answer is complete with it. false: s has ended. */
static bool say_token(node_core *c, node_seq *s, const float *logits, int *reason) {
    node_event e = {.kind = NODE_TOKEN,
                    .handle = s->request->handle,
                    .token = {.index = s->count, .cached = s->cached, .prefill_us = s->prefill_us}};
    status st = node_seq_sample(c, s, logits, &e.token.sampled);
    if (st != ST_OK) {
        node_seq_end(c, s, st, "the logits are not numbers");
        return false;
    }
    node_core_emit(c, &e);
    *reason = finished(c, s);
    return true;
}

/* Rule 7. logits: of the last r->logits rows. false: s has ended. */
static bool say_prompt(node_core *c, node_seq *s, const eng_rows *r, const float *logits) {
    int32_t row = r->position + r->count - r->logits, V = node_core_limits(c)->V;
    for (; row < s->ready && node_seq_tells(s); row++, logits += V) {
        if (row + 1 < s->told) continue;                   /* it was said before the pages were given up */
        assert(row + 1 == s->told);
        node_event e = {.kind = NODE_PROMPT, .handle = s->request->handle, .token = {.index = s->told}};
        status st = node_seq_score(c, s, logits, &e.token.sampled);
        if (st != ST_OK) {
            node_seq_end(c, s, st, "the logits are not numbers");
            return false;
        }
        node_core_emit(c, &e);
    }
    return true;
}

/* The verifier: rule 6. Each token drawn takes the place in s->tokens of the one that was proposed there. */
static void answer(node_core *c, node_seq *s, const eng_rows *r, const float *logits, int64_t now_us) {
    const node_speculator *x = node_core_io(c)->speculator;
    int32_t proposed = r->position + r->count - s->target, accepted = 0;
    int reason = REASON_NONE;
    if (!say_prompt(c, s, r, logits) || proposed < 0) return;          /* more of the prompt is to be computed */
    logits += (int64_t)(r->logits - 1 - proposed) * node_core_limits(c)->V;
    if (s->count == s->request->count) s->prefill_us = now_us - s->first_us;
    for (;; accepted++, s->ready++, logits += node_core_limits(c)->V) {
        int32_t guess = accepted < proposed ? s->tokens[s->count] : -1;
        if (!say_token(c, s, logits, &reason)) return;
        if (reason != REASON_NONE || s->tokens[s->count - 1] != guess) break;
    }
    s->proposed += proposed;
    s->accepted += accepted;
    if (proposed > 0)
        x->judge(x->ctx, s, proposed, accepted, reason == REASON_NONE ? logits + node_core_limits(c)->V : NULL);
    node_seq_publish(c, s);
    if (reason != REASON_NONE) finish(c, s, reason);
}

/* ---- admission ------------------------------------------------------------------------------------ */

/* For every token and one page to grow into, so that the first tokens need no second admission. */
static int32_t pages_wanted(const node_core *c, const node_seq *s) {
    int32_t pages = node_seq_pages(c, s->count) + 1;
    return pages < s->blocks_max ? pages : s->blocks_max;
}

static void run(node_core *c, node_seq *s) {
    node_seq_mark(c, s, s->ready / node_core_limits(c)->page_tokens, s->blocks_count, ENG_PAGE_RUNNING);
    s->state = DECODE_RUNNING;
    s->runnable = true;
}

/* Positions [0, this) may come from elsewhere; rule 2 keeps the last one here. */
static int32_t wanted_end(const node_seq *s) { return (s->request->apart ? s->request->prompt_count : s->count) - 1; }

/* Rule 4. */
static bool lacks_prompt(const node_seq *s) { return s->request->apart && s->ready < wanted_end(s); }

static void emit_reserved(node_core *c, const node_seq *s, int32_t wanted) {
    node_event e = {.kind = NODE_RESERVED,
                    .handle = s->request->handle,
                    .reserved = {.ticket = s->ticket, .cached = s->cached, .wanted = wanted}};
    node_core_emit(c, &e);
}

static void promise(node_core *c, node_seq *s) {
    const node_io *io = node_core_io(c);
    const node_request *r = s->request;
    s->state = DECODE_PROMISED;
    s->ticket = io->random_ticket(io->ctx);
    status st = io->promise(io->ctx, s, s->ticket, r->epoch, s->cached, wanted_end(s), r->lease_ms, s->blocks);
    if (st == ST_OK)
        emit_reserved(c, s, wanted_end(s));
    else
        node_seq_end(c, s, st, "room for the pages could not be promised");
}

static void admit(node_core *c, node_seq *s, int64_t now_us) {
    const node_speculator *x = node_core_io(c)->speculator;
    (void)now_us;
    int reason = finished(c, s);                           /* an earlier attempt had got to the end */
    if (reason != REASON_NONE) {
        emit_reserved(c, s, 0);
        finish(c, s, reason);
        return;
    }
    if (node_core_waits(s) || node_seq_take(c, s, pages_wanted(c, s), ENG_PAGE_PROMISED) != ST_OK) {
        node_seq_end(c, s, ST_AGAIN,
                     node_core_text(c, "no room for %d pages now", pages_wanted(c, s)));
        return;
    }
    s->cached = s->ready;
    if (x) x->join(x->ctx, s);
    int32_t uncached = node_seq_tells(s) ? 0 : wanted_end(s) - s->cached;                  /* rule 7 */
    if (uncached > 0 && (s->request->apart || uncached > s->request->local_tokens_max)) {
        promise(c, s);
        return;
    }
    run(c, s);
    emit_reserved(c, s, s->cached);
}

/* ---- the transfer ---------------------------------------------------------------------------------- */

static void landing(node_core *c, node_seq *s) {
    if (s->state != DECODE_PROMISED) return;               /* revoked meanwhile */
    s->state = DECODE_LANDING;
    node_seq_mark(c, s, s->cached / node_core_limits(c)->page_tokens, s->blocks_count, ENG_PAGE_LANDING);
}

static void landed(node_core *c, node_seq *s, status st, int32_t tokens, int64_t now_us) {
    assert(tokens >= 0 && s->cached + tokens < s->count);
    if (s->state == DECODE_ENDING) {
        node_seq_end(c, s, s->ending, s->ending_text);
        return;
    }
    assert(s->state == DECODE_PROMISED || s->state == DECODE_LANDING);
    run(c, s);
    s->ready = s->cached + tokens;
    node_event e = {.kind = NODE_LANDED,
                    .handle = s->request->handle,
                    .landed = {.tokens = tokens, .wait_us = now_us - s->began_us, .st = st}};
    if (lacks_prompt(s)) node_seq_end(c, s, ST_PEER_STALE, "the prompt's pages did not come");
    else node_core_emit(c, &e);
}

static void stop(node_core *c, node_seq *s, status st, const char *text) {
    if (s->state == DECODE_RUNNING || s->state == DECODE_WAITING) {
        if (st == ST_CANCELED) node_seq_publish(c, s);     /* rule 8 */
        node_seq_end(c, s, st, text);
    } else if (s->state != DECODE_ENDING) {
        s->state = DECODE_ENDING;
        s->ending = st;
        s->ending_text = text;
        node_core_io(c)->revoke(node_core_io(c)->ctx, s->ticket);
    }
}

/* ---- pages while it runs ---------------------------------------------------------------------------- */

static bool prepare(node_core *c, node_seq *s) {
    while (s->blocks_count < node_seq_pages(c, s->target)) {
        if (node_seq_grow(c, s) == ST_OK) continue;
        if (!node_seq_make_room(c, s) || !s->runnable) return false;
    }
    return true;
}

/* Its full pages stay as cache until someone needs them; what is gone comes from host memory or is computed again,
 * same bytes. */
static bool preempt(node_core *c, node_seq *s) {
    if (s->state != DECODE_RUNNING) return false;
    node_seq_publish(c, s);
    node_seq_swap_out(c, s);
    node_seq_give(c, s);
    s->state = DECODE_WAITING;
    s->runnable = false;
    s->waiting = true;
    return true;
}

static bool resume(node_core *c, node_seq *s, int64_t now_us) {
    (void)now_us;
    if (node_seq_take(c, s, pages_wanted(c, s), ENG_PAGE_RUNNING) != ST_OK) return false;
    s->waiting = false;
    run(c, s);
    if (lacks_prompt(s)) node_seq_end(c, s, ST_AGAIN, "its prompt's pages went to another request");
    return true;
}

const node_role decode_role = {.name = "decode",
                               .admit = admit,
                               .resume = resume,
                               .prepare = prepare,
                               .computed = answer,
                               .landing = landing,
                               .landed = landed,
                               .stop = stop,
                               .preempt = preempt};
