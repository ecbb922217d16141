/* tenant.c -- who may wait, and who goes first.
 *
 * Limits. What can not be placed at once waits, within queue_max requests and queue_tokens_max prompt tokens; beyond them
 * a request is refused at the door, with the time after which to come back: what waits now, at the rate of the last
 * answers. A tenant has caps of its own. And of tenants that have a name none may take more of the queue than it leaves
 * free (dynamic thresholds, Choudhury and Hahne 1998): one that floods gets half, two get a third each, and there is always
 * a place for the next one.
 *
 * Deadlines. One that will have passed before its turn comes is refused at once: what waits before it, by the tags, at the
 * rate at which those that waited were placed. That is measured only while somebody waits, so it is what the nodes can do
 * and not what was asked of them; of the estimates by requests and by prompt tokens the lesser one counts.
 *
 * Order. Start-time fair queueing (Goyal, Vin, Cheng 1997) over tokens, prompt and expected answer:
 *
 *   start tag  = the later of the start tag placed last and the tenant's last finish tag
 *   finish tag = start tag + tokens
 *
 * and the queue goes by start tags. A lone tenant's requests keep their order of arrival; of several each gets the same
 * tokens a second, however many requests it has waiting. A request that comes back to the queue keeps its tag.
 *
 * Pages. What a tenant's placed requests may come to hold, prompt and all the answer they may write, is counted in pages of
 * the decode node. Whose turn it is when its tenant would have more than tenant_pages_max is held back, in the order of the
 * tags, and other tenants go past; one whose tenant has none is never held. Whenever one of the tenant's is placed, gives its
 * pages back or ends, the first of those held stands in the queue again. */
#include "coordinator/core_internal.h"
#include <assert.h>
#include <inttypes.h>

static void try_held(coord_core *c, coord_tenant *t);

static coord_tenant *find(coord_core *c, uint64_t number) {
    for (int i = 0; i < c->tenants_end; i++)
        if (c->tenants[i].alive && c->tenants[i].number == number) return &c->tenants[i];
    return NULL;
}

int coord_tenant_join(coord_core *c, uint64_t number) {
    coord_tenant *t = find(c, number);
    if (!t) {
        int i = 0;
        while (i < c->tenants_end && c->tenants[i].alive) i++;
        if (i == COORD_TENANTS_MAX) return -1;
        if (i == c->tenants_end) c->tenants_end++;
        t = &c->tenants[i];
        *t = (coord_tenant){.number = number};
    }
    t->alive++;
    return (int)(t - c->tenants);
}

void coord_tenant_leave(coord_core *c, int tenant) {
    assert(c->tenants[tenant].alive > 0);
    try_held(c, &c->tenants[tenant]);            /* who ended may have stood in the queue for those behind it */
    c->tenants[tenant].alive--;
    while (c->tenants_end > 0 && c->tenants[c->tenants_end - 1].alive == 0) c->tenants_end--;
}

int64_t coord_tenant_start_tag(coord_core *c, int tenant, int64_t tokens) {
    coord_tenant *t = &c->tenants[tenant];
    int64_t start = t->finish_tag > c->virtual_tag ? t->finish_tag : c->virtual_tag;
    t->finish_tag = start + tokens;
    return start;
}

void coord_tenant_wait(coord_core *c, const coord_request *r, int sign) {
    coord_tenant *t = &c->tenants[r->tenant];
    t->waiting += sign;
    t->waiting_tokens += sign * (int64_t)r->prompt_count;
    c->waiting_tokens += sign * (int64_t)r->prompt_count;
    assert(t->waiting >= 0 && t->waiting_tokens >= 0 && c->waiting_tokens >= 0);
}

/* ---- pages --------------------------------------------------------------------------------------------- */

static int64_t pages_of(const coord_core *c, int32_t prompt, int32_t answer, int node) {
    int32_t P = c->nodes[node].state.page_tokens;
    return P > 0 ? ((int64_t)prompt + answer + P - 1) / P : 0;
}

/* On the decode node where they are the fewest. */
static int64_t least_pages(const coord_core *c, int32_t prompt, int32_t answer) {
    int64_t least = INT64_MAX;
    for (int i = 0; i < c->nodes_end; i++) {
        int64_t pages = pages_of(c, prompt, answer, i);
        if (c->nodes[i].alive && c->nodes[i].state.role == COORD_DECODE && pages < least) least = pages;
    }
    return least;
}

const char *coord_tenant_too_large(coord_core *c, int32_t prompt, int32_t answer) {
    int64_t max = c->limits.tenant_pages_max, least;
    if ((int64_t)prompt + answer <= max) return NULL;    /* pages are not more than tokens */
    if ((least = least_pages(c, prompt, answer)) <= max) return NULL;
    snprintf(c->text, sizeof c->text, "a prompt of %d tokens and %d of answer (max_tokens) take %" PRId64 " KV pages: expected at "
             "most %" PRId64 ", all that a tenant may hold", prompt, answer, least, max);
    return c->text;
}

bool coord_tenant_would_hold(coord_core *c, const coord_event *e) {
    const coord_tenant *t = find(c, e->submit.tenant);
    if (!t || t->held_first) return t;
    return t->pages > 0 && c->limits.tenant_pages_max < INT64_MAX &&
           t->pages + least_pages(c, e->submit.prompt_count, e->submit.max_tokens) > c->limits.tenant_pages_max;
}

/* Its turn comes before that of b. */
static bool goes_before(const coord_request *a, const coord_request *b) {
    return a->key[HEAP_QUEUE] != b->key[HEAP_QUEUE] ? a->key[HEAP_QUEUE] < b->key[HEAP_QUEUE] : a->arrival < b->arrival;
}

static void insert_held(coord_tenant *t, coord_request *r) {
    coord_request *p = t->held_last, *next = NULL;
    if (t->held_first && goes_before(r, t->held_first)) p = NULL, next = t->held_first;    /* most often one of the two ends */
    while (p && goes_before(r, p)) next = p, p = p->held_prev;
    r->held_prev = p;
    r->held_next = next;
    *(p ? &p->held_next : &t->held_first) = r;
    *(next ? &next->held_prev : &t->held_last) = r;
}

bool coord_tenant_hold(coord_core *c, coord_request *r, int node) {
    coord_tenant *t = &c->tenants[r->tenant];
    int64_t pages = pages_of(c, r->prompt_count, r->max_tokens, node);
    bool over = t->pages > 0 && t->pages + pages > c->limits.tenant_pages_max;
    if (!over && !(t->held_first && goes_before(t->held_first, r))) return false;
    coord_core_dequeue(c, r);
    coord_tenant_wait(c, r, +1);
    insert_held(t, r);
    r->held = true;
    c->held++;
    log_write(LOG_INFO, r->id, "request.held", "pages=%" PRId64 " tenant_pages=%" PRId64, pages, t->pages);
    return true;
}

void coord_tenant_unhold(coord_core *c, coord_request *r) {
    coord_tenant *t = &c->tenants[r->tenant];
    if (!r->held) return;
    *(r->held_prev ? &r->held_prev->held_next : &t->held_first) = r->held_next;
    *(r->held_next ? &r->held_next->held_prev : &t->held_last) = r->held_prev;
    r->held = false;
    c->held--;
}

static void try_held(coord_core *c, coord_tenant *t) {
    coord_request *r = t->held_first;
    if (!r) return;
    coord_core_dequeue(c, r);
    coord_core_enqueue(c, r, 0);
}

void coord_tenant_take(coord_core *c, coord_request *r, int node) {
    coord_tenant *t = &c->tenants[r->tenant];
    r->pages = pages_of(c, r->prompt_count, r->max_tokens, node);
    t->pages += r->pages;
    try_held(c, t);
}

void coord_tenant_give(coord_core *c, coord_request *r) {
    coord_tenant *t = &c->tenants[r->tenant];
    t->pages -= r->pages;
    r->pages = 0;
    assert(t->pages >= 0);
    try_held(c, t);
}

/* ---- refusals ------------------------------------------------------------------------------------------ */

/* How long until so many requests, or prompts of so many tokens, have been answered, at the rate of the last. */
static int64_t drain_ms(const coord_core *c, int64_t requests, int64_t tokens) {
    enum { LEAST_MS = 50, MOST_MS = 10000, UNKNOWN_MS = 1000 };
    int64_t n = c->finishes < COORD_FINISHES ? c->finishes : COORD_FINISHES, answered = 0;
    if (n == 0) return UNKNOWN_MS;
    int64_t span_ms = c->now_ms - c->finish_ms[(c->finishes - n) % COORD_FINISHES];
    for (int64_t i = 0; i < n; i++) answered += c->finish_tokens[i];
    double by_requests = (double)span_ms * (double)requests / (double)n;
    double by_tokens = (double)span_ms * (double)tokens / (double)answered;
    double ms = by_requests > by_tokens ? by_requests : by_tokens;
    return ms < LEAST_MS ? LEAST_MS : ms > MOST_MS ? MOST_MS : (int64_t)ms;
}

/* One of the tenant's own requests has to end first. */
static int64_t own_ms(const coord_core *c, const coord_tenant *t) {
    return drain_ms(c, (c->requests + t->alive - 1) / t->alive, 0);
}

void coord_tenant_turn(coord_core *c, const coord_request *r) {
    int64_t since_ms = r->queued_ms > c->turn_at_ms ? r->queued_ms : c->turn_at_ms;
    if (r->queued_ms < c->now_ms) {              /* else it did not wait */
        double share = c->turns++ ? 0.1 : 1;
        c->turn_ms += share * ((double)(c->now_ms - since_ms) - c->turn_ms);
        c->turn_tokens += share * (r->prompt_count - c->turn_tokens);
    }
    c->turn_at_ms = c->now_ms;
}

/* Until the turn of a request that comes now; t: its tenant, NULL if it has none alive. 0: not measured yet. Those held back
 * do not stand before another tenant's. */
static double turn_comes_ms(const coord_core *c, const coord_tenant *t) {
    if (c->turns < COORD_TURNS) return 0;
    double ahead = t && t->finish_tag > c->virtual_tag ? (double)(t->finish_tag - c->virtual_tag) : 0, requests = 0, tokens = 0;
    for (int i = 0; i < c->tenants_end; i++) {
        const coord_tenant *u = &c->tenants[i];
        if (u->waiting == 0 || (u != t && u->held_first)) continue;
        double tags = (double)u->waiting_tokens + u->waiting * c->answer_tokens, part = u == t || ahead >= tags ? 1 : ahead / tags;
        requests += part * u->waiting;
        tokens += part * (double)u->waiting_tokens;
    }
    double by_requests = requests * c->turn_ms, by_tokens = tokens * c->turn_ms / c->turn_tokens;
    return by_requests < by_tokens ? by_requests : by_tokens;
}

/* NULL: it may be in time. */
static const char *deadline_refusal(coord_core *c, const coord_tenant *t, int64_t deadline_ms, int64_t *retry_after_ms) {
    enum { LEAST_MS = 50, MOST_MS = 10000 };
    if (deadline_ms == INT64_MAX) return NULL;
    double wait_ms = turn_comes_ms(c, t), late_ms = wait_ms - (double)(deadline_ms - c->now_ms);
    if (wait_ms == 0 || late_ms <= 0) return NULL;
    *retry_after_ms = late_ms < LEAST_MS ? LEAST_MS : late_ms > MOST_MS ? MOST_MS : (int64_t)late_ms;
    snprintf(c->text, sizeof c->text, "full: about %.0f ms of others' work are before it, and its deadline is %" PRId64 " ms away",
             wait_ms, deadline_ms - c->now_ms);
    return c->text;
}

static const char *tenant_refusal(coord_core *c, const coord_tenant *t, int32_t tokens, bool waits, int64_t *retry_after_ms) {
    const coord_limits *l = &c->limits;
    int64_t free_requests = l->queue_max - coord_core_counts(c).waiting, free_tokens = l->queue_tokens_max - c->waiting_tokens;
    *retry_after_ms = own_ms(c, t);
    if (t->alive >= l->tenant_requests_max)
        snprintf(c->text, sizeof c->text, "full: %d requests of this tenant are alive (at most %d)", t->alive,
                 l->tenant_requests_max);
    else if (waits && t->waiting > 0 && t->waiting_tokens + tokens > l->tenant_queue_tokens_max)
        snprintf(c->text, sizeof c->text, "full: %" PRId64 " prompt tokens of this tenant are waiting (at most %" PRId64
                 " with this one's %d)", t->waiting_tokens, l->tenant_queue_tokens_max, tokens);
    else if (waits && t->number && t->waiting > 0 && (t->waiting >= free_requests || t->waiting_tokens >= free_tokens))
        snprintf(c->text, sizeof c->text, "full: this tenant has %d requests of %" PRId64 " tokens waiting, and leaves %" PRId64
                 " and %" PRId64 " to all others", t->waiting, t->waiting_tokens, free_requests, free_tokens);
    else
        return NULL;
    return c->text;
}

const char *coord_tenant_refusal(coord_core *c, const coord_event *e, bool room, int64_t *retry_after_ms) {
    const coord_limits *l = &c->limits;
    const coord_tenant *t = find(c, e->submit.tenant);
    int32_t tokens = e->submit.prompt_count;
    int32_t waiting = coord_core_counts(c).waiting;
    bool no_seat = !t && c->tenants_end == COORD_TENANTS_MAX;
    for (int i = 0; no_seat && i < COORD_TENANTS_MAX; i++) no_seat = c->tenants[i].alive > 0;
    *retry_after_ms = drain_ms(c, waiting + 1, c->waiting_tokens);
    if (c->requests == l->requests_max || no_seat || (!room && waiting >= l->queue_max)) {
        snprintf(c->text, sizeof c->text, "full: %d requests are waiting (at most %d), %d are alive (at most %d)", waiting,
                 l->queue_max, c->requests, l->requests_max);
        return c->text;
    }
    if (!room && waiting > 0 && c->waiting_tokens + tokens > l->queue_tokens_max) {
        snprintf(c->text, sizeof c->text, "full: %" PRId64 " prompt tokens are waiting (at most %" PRId64 " with this one's %d)",
                 c->waiting_tokens, l->queue_tokens_max, tokens);
        return c->text;
    }
    const char *why = t ? tenant_refusal(c, t, tokens, !room, retry_after_ms) : NULL;
    return why || room ? why : deadline_refusal(c, t, e->submit.deadline_ms, retry_after_ms);
}
