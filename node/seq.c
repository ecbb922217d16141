/* seq.c -- one sequence: its tokens, its pages, its end.
 *
 * Rules
 *   1. s->blocks[0, blocks_count) are pages of the pool with one pin each, taken by node_seq_take() and
 *      node_seq_grow(), given by node_seq_give() and nowhere else (node_seq_take()
 *      itself gives back what it pinned and did not keep).
 *   2. Pages found in the prefix index are shared: they hold only tokens below `ready` and are never
 *      written. A page that agrees in part is copied, and the copy is written: copy on write.
 *   3. What another thread may still write (a transfer landing) or read (a transfer leaving) is not given
 *      back: the role waits for node_core_landed() or node_core_sent(), the fence, before it calls
 *      node_seq_end() or node_seq_give(). The core can not see links, so the role answers for it.
 *   4. Where the prompt is computed apart (node_request), only pages of those positions are offered to the index and
 *      looked for in it: what is prompt to one request is answer to another.
 *   5. The request's arena holds the request, the sequence, tokens and block table. It is dropped last,
 *      in node_seq_end(), after NODE_END was emitted.
 *   6. s->slots[0, slots_count) are pages of host memory with the KV of tokens [0, swapped): taken by
 *      node_seq_swap_out(), given back when s has pages again or ends. */
#include "node/core.h"
#include <assert.h>
#include <math.h>
#include <string.h>

#define PREEMPTED "times a request gave its pages to another one, by what becomes of its KV: computed again, or kept in host memory (swap)"
METRIC(metric_recomputed, "baton_node_preemptions_total", "by=\"recompute\"", METRIC_COUNTER,
       PREEMPTED);
METRIC(metric_swapped, "baton_node_preemptions_total", "by=\"swap\"", METRIC_COUNTER,
       PREEMPTED);

#define LOOKED_UP "tokens looked up in the prefix cache, by whether their KV was there"
METRIC(metric_hit, "baton_node_prefix_tokens_total", "result=\"hit\"", METRIC_COUNTER,
       LOOKED_UP);
METRIC(metric_miss, "baton_node_prefix_tokens_total", "result=\"miss\"", METRIC_COUNTER,
       LOOKED_UP);

void node_seq_show(void) {
    metric *const all[] = {&metric_recomputed, &metric_swapped, &metric_hit, &metric_miss};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) metric_show(all[i]);
}

node_seq *node_seq_create(node_core *c, const node_role *role, node_request *r, int64_t now_us) {
    int64_t room = (int64_t)r->prompt_count + (r->max_tokens > 0 ? r->max_tokens : 0);
    if (room > c->limits.context) room = c->limits.context;
    int32_t tokens_max = room > r->count ? (int32_t)room : r->count;
    node_seq *s = arena_alloc(r->memory, sizeof *s);
    int32_t *tokens = arena_alloc(r->memory, (size_t)tokens_max * sizeof *tokens);
    /* The last token that fits is never computed, so its page may be one that is never needed. */
    int32_t held = tokens_max - 1 > r->count ? tokens_max - 1 : r->count;
    int32_t blocks_max = node_seq_pages(c, held);
    bool swaps = role->preempt && c->limits.swap_pages > 0;
    int32_t *blocks = arena_alloc(r->memory, (size_t)blocks_max * sizeof *blocks);
    int32_t *slots = swaps ? arena_alloc(r->memory, (size_t)blocks_max * sizeof *slots) : NULL;
    if (!s || !tokens || !blocks || (swaps && !slots)) return NULL;
    memcpy(tokens, r->tokens, (size_t)r->count * sizeof *tokens);
    *s = (node_seq){.role = role,
                    .request = r,
                    .tokens = tokens,
                    .count = r->count,
                    .target = r->count,
                    .tokens_max = tokens_max,
                    .blocks = blocks,
                    .blocks_max = blocks_max,
                    .slots = slots,
                    .place = {.since_us = node_schedule_since(now_us, r->priority), .number = ++c->numbers},
                    .began_us = now_us,
                    .served_us = now_us,
                    .told = r->prompt_logprobs && r->prompt_first < r->prompt_count ? r->prompt_first : r->prompt_count,
                    .prev = c->last};
    *(c->last ? &c->last->next : &c->first) = s;
    c->last = s;
    c->count++;
    return s;
}

int32_t node_seq_pages(const node_core *c, int32_t tokens) {
    return (int32_t)(((int64_t)tokens + c->limits.page_tokens - 1) / c->limits.page_tokens);
}

bool node_seq_tells(const node_seq *s) { return s->told < s->request->prompt_count; }

int32_t node_seq_cacheable(const node_seq *s) {
    if (node_seq_tells(s)) return s->told - 1;
    return (s->request->apart ? s->request->prompt_count : s->count) - 1;
}

/* ---- host memory --------------------------------------------------------------------------------- */

static void give_slots(node_core *c, node_seq *s) {
    while (s->slots_count > 0) c->slots[c->slots_free++] = s->slots[--s->slots_count];
    s->swapped = 0;
}

void node_seq_swap_out(node_core *c, node_seq *s) {
    int32_t pages = node_seq_pages(c, s->ready);
    node_preemption how = c->limits.preemption;
    assert(s->slots_count == 0);
    if (!s->slots || pages == 0 || pages > c->slots_free || how == NODE_PREEMPT_RECOMPUTE) return;
    if (how == NODE_PREEMPT_AUTO && !node_cost_swap_pays(&c->cost, s->ready)) return;
    while (s->slots_count < pages) s->slots[s->slots_count++] = c->slots[--c->slots_free];
    int64_t took_us = c->io.swap(c->io.ctx, true, s->blocks, s->slots, 0, s->ready);
    node_cost_swap(&c->cost, s->ready, took_us);
    s->swapped = s->ready;
}

/* What the prefix cache did not have. A page that it had in part is s's own copy: rule 2. */
static void swap_in(node_core *c, node_seq *s) {
    if (s->swapped > s->ready) {
        int32_t first = s->ready / c->limits.page_tokens * c->limits.page_tokens;
        int64_t took_us = c->io.swap(c->io.ctx, false, s->blocks, s->slots, first, s->swapped);
        node_cost_swap(&c->cost, s->swapped - first, took_us);
        s->ready = s->swapped;
    }
    give_slots(c, s);
}

/* ---- who gives pages up -------------------------------------------------------------------------- */

static bool preempt(node_core *c, node_seq *s) {
    if (!s->role->preempt || s->blocks_count == 0 || !s->role->preempt(c, s)) return false;
    assert(s->blocks_count == 0 && s->waiting && !s->runnable);
    c->figures.preemptions++;
    c->figures.swaps += s->swapped > 0;
    metric_add(s->swapped ? &metric_swapped : &metric_recomputed, 1);
    return true;
}

/* v is to give its pages to s before s has any. */
static bool is_lower(const node_seq *s, const node_seq *v) {
    bool lower = s->place.level != v->place.level ? s->place.level < v->place.level
                                                  : s->request->priority > v->request->priority;
    return lower && v->runnable && v->role->preempt && node_schedule_before(&s->place, &v->place);
}

/* Nothing is computed for v until its reader has read: its pages are anyone's, wherever it stands. */
static bool is_idle(const node_seq *s, const node_seq *v) { return v != s && v->paused && v->runnable && v->role->preempt; }

/* Before anyone is preempted in vain. */
static bool suffices(const node_core *c, const node_seq *s, int32_t pages) {
    int32_t found = eng_pool_available(c->pool);
    for (const node_seq *v = c->first; v; v = v->next)
        if (is_idle(s, v)) found += v->blocks_count;
    for (const node_seq *v = s->next; v; v = v->next)
        if (!v->paused && is_lower(s, v)) found += v->blocks_count;
    return found >= pages;
}

/* ---- pages --------------------------------------------------------------------------------------- */

static status take_free(node_core *c, node_seq *s, int32_t pages, eng_page_state state) {
    assert(s->blocks_count == 0 && pages <= s->blocks_max && pages >= node_seq_pages(c, s->count));
    int32_t found = 0, tail = -1, tail_tokens = 0;
    int32_t most = node_seq_cacheable(s);
    if (c->limits.prefix_cache && most > 0)
        found = eng_pool_match(c->pool, s->request->salt, s->tokens, most, s->blocks, &tail, &tail_tokens);
    status st = eng_pool_take(c->pool, pages - found, state, s->blocks + found);
    if (st != ST_OK && tail >= 0) {                        /* the page to copy from may be the one we need */
        eng_pool_give(c->pool, tail);
        tail = -1;
        st = eng_pool_take(c->pool, pages - found, state, s->blocks + found);
    }
    if (st != ST_OK) {
        while (found > 0) eng_pool_give(c->pool, s->blocks[--found]);
        return st;
    }
    s->blocks_count = pages;
    s->published = found;
    s->ready = found * c->limits.page_tokens;
    if (tail >= 0) {
        c->io.copy_page(c->io.ctx, s->blocks[found], tail, tail_tokens);
        eng_pool_give(c->pool, tail);
        s->ready += tail_tokens;
    }
    metric_add(&metric_hit, s->ready);
    metric_add(&metric_miss, s->count - s->ready);
    swap_in(c, s);
    return ST_OK;
}

status node_seq_take(node_core *c, node_seq *s, int32_t pages, eng_page_state state) {
    status st = take_free(c, s, pages, state);
    if (st == ST_OK || !suffices(c, s, pages)) return st;
    for (node_seq *v = c->last; v && st != ST_OK; v = v->prev)
        if (is_idle(s, v) && preempt(c, v)) st = take_free(c, s, pages, state);
    for (node_seq *v = c->last; v != s && st != ST_OK; v = v->prev)
        if (is_lower(s, v) && preempt(c, v)) st = take_free(c, s, pages, state);
    return st;
}

status node_seq_grow(node_core *c, node_seq *s) {
    assert(s->blocks_count < s->blocks_max);
    TRY(eng_pool_take(c->pool, 1, ENG_PAGE_RUNNING, &s->blocks[s->blocks_count]));
    s->blocks_count++;
    return ST_OK;
}

/* Never someone in front of s whose reader is there, so the first always gets on. Who is the first changes in mlfq, but
 * a level is lost by tokens alone: so all finish. */
bool node_seq_make_room(node_core *c, node_seq *s) {
    bool alone = true;
    for (node_seq *v = c->last; v && v != s; v = v->prev)
        if (preempt(c, v)) return true;
    for (node_seq *v = c->first; v; v = v->next) {
        if (v == s) continue;
        if (v->paused && preempt(c, v)) return true;
        alone = alone && v->blocks_count == 0;
    }
    /* Alone, and yet too few: cached pages above its own in the index's chain can not be evicted (two
     * sequences computed the same prompt at the same time, and the other's pages are the indexed ones).
     * Starting again on those frees its own. */
    return alone && preempt(c, s);
}

void node_seq_mark(node_core *c, node_seq *s, int32_t first, int32_t end, eng_page_state state) {
    assert(first >= 0 && end <= s->blocks_count);
    for (int32_t i = first; i < end; i++) eng_pool_mark(c->pool, s->blocks[i], state);
}

void node_seq_publish(node_core *c, node_seq *s) {
    const node_request *r = s->request;
    int32_t known = r->apart && s->ready >= r->prompt_count ? r->prompt_count - 1 : s->ready;
    int32_t full = known / c->limits.page_tokens;
    if (!c->limits.prefix_cache || full <= s->published) return;
    eng_pool_publish(c->pool, r->salt, s->tokens, full * c->limits.page_tokens, s->blocks);
    s->published = full;
}

void node_seq_give(node_core *c, node_seq *s) {
    if (s->blocks_count) c->given++;
    /* Last page first: what a chain begins with is the last to be evicted. */
    while (s->blocks_count > 0) eng_pool_give(c->pool, s->blocks[--s->blocks_count]);
    s->ready = s->published = 0;
}

/* ---- tokens and the end -------------------------------------------------------------------------- */

status node_seq_score(node_core *c, node_seq *s, const float *logits, eng_sampled *out) {
    assert(s->told > 0 && node_seq_tells(s));
    TRY(eng_sample_given(c->sampler, logits, s->tokens[s->told], s->request->prompt_tops, out));
    s->told++;
    return ST_OK;
}

status node_seq_sample(node_core *c, node_seq *s, const float *logits, eng_sampled *out) {
    const node_request *r = s->request;
    if (s->draws) *out = (eng_sampled){.token = s->draws[s->count - s->draws[0].count].token};
    if (s->draws && out->token < 0) return ST_DEVICE;
    if (!s->draws) TRY(eng_sample(c->sampler, &r->sampling, logits, s->tokens, r->prompt_count, s->count, out));
    if (r->sampling.logprobs < 0) out->logprob = NAN;
    if (s->count < s->tokens_max) s->tokens[s->count++] = out->token;
    s->target = s->count;
    return ST_OK;
}

void node_seq_end(node_core *c, node_seq *s, status st, const char *text) {
    node_event e = {.kind = NODE_END, .handle = s->request->handle, .end = {st, text}};
    if (s->speculation) c->io.speculator->leave(c->io.speculator->ctx, s);
    node_seq_give(c, s);
    give_slots(c, s);
    *(s->prev ? &s->prev->next : &c->first) = s->next;
    *(s->next ? &s->next->prev : &c->last) = s->prev;
    c->count--;
    node_core_count_end(st);
    node_core_emit(c, &e);
    node_request_free(s->request);                         /* and s with it */
}
