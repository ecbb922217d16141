/* ask.c -- what the router is asked for a request: gathers what a choice depends on (route.c is pure and takes values),
 * and remembers, for a request that wants to know, what was compared. */
#include "coordinator/core_internal.h"
#include <math.h>
#include <string.h>

/* ---- under which numbers nodes cache a prompt ---------------------------------------------------------- */

static const coord_node *any_prefill_node(const coord_core *c) {
    for (int i = 0; i < c->nodes_end; i++)
        if (c->nodes[i].known && c->nodes[i].state.role == COORD_PREFILL) return &c->nodes[i].state;
    return NULL;
}

static uint64_t apart_salt(const coord_node *p, uint64_t salt) { return salt ^ (p->numerics | 1); }

uint64_t coord_ask_apart_salt(const coord_core *c, uint64_t salt) { return apart_salt(any_prefill_node(c), salt); }

int32_t coord_ask_marks(const coord_core *c, uint64_t salt, int32_t P[COORD_MARKS_MAX], uint64_t salts[COORD_MARKS_MAX]) {
    int32_t count = 0;
    const coord_node *p = c->limits.prefill == COORD_PREFILL_LOCAL ? NULL : any_prefill_node(c);
    if (c->limits.route != COORD_ROUTE_COST) return 0;
    for (int i = 0; i < c->nodes_end; i++) {
        const coord_node *n = &c->nodes[i].state;
        bool apart = p && n->role == COORD_DECODE && n->numerics != p->numerics;
        uint64_t its = apart ? apart_salt(p, salt) : salt;
        int32_t k = 0;
        if (!c->nodes[i].alive || n->page_tokens <= 0) continue;
        while (k < count && (P[k] != n->page_tokens || salts[k] != its)) k++;
        if (k < count || count == COORD_MARKS_MAX) continue;
        P[count] = n->page_tokens;
        salts[count++] = its;
    }
    return count;
}

/* ---- the two questions --------------------------------------------------------------------------------- */

double coord_ask_answer(const coord_core *c, const coord_request *r) {
    int32_t most = r->prompt_count + r->max_tokens - r->count;
    return c->answer_tokens < most ? c->answer_tokens : most;
}

static coord_ask ask_for(coord_core *c, const coord_request *r) {
    enum { KEY_TOKENS = 128 };   /* as much of a prompt's beginning as makes two prompts alike */
    coord_ask a = {.limits = &c->limits, .nodes = c->nodes, .count = c->nodes_end, .links = &c->links, .cached = c->cached,
                   .tokens = r->count, .answer = coord_ask_answer(c, r), .turn = c->turn, .now_ms = c->now_ms, .to = -1};
    if (c->limits.route == COORD_ROUTE_PREFIX_HASH)
        a.key = prefix_number(r->salt, r->tokens, r->prompt_count < KEY_TOKENS ? r->prompt_count : KEY_TOKENS);
    return a;
}

/* The prefill node that read of the prompt last, if it is still there. */
static int reader_of(const coord_core *c, const coord_request *r) {
    const coord_entry *n = r->reader < 0 ? NULL : &c->nodes[r->reader];
    return n && n->alive && n->state.epoch == r->reader_epoch ? r->reader : -1;
}

/* What was measured, and what nodes cache of this prompt (in c->cached): asked only once somebody has room. Who has just
 * read it, or holds it, caches it whatever the view says yet. */
static void look_up(coord_core *c, const coord_request *r, coord_ask *a) {
    enum { VIEW_MS = 1000 };     /* the view is no further behind */
    if (c->limits.route == COORD_ROUTE_COST) coord_route_average(a);
    memset(c->cached, 0, (size_t)c->nodes_end * sizeof *c->cached);
    if (coord_request_prompt_here(r)) return;
    for (int32_t i = 0; i < r->marks_count; i++) coord_cache_match(c->cache, &r->marks[i], c->cached);
    if (r->prefer_node >= 0 && r->prefer_node < c->nodes_end && c->cached[r->prefer_node] < r->prompt_count)
        c->cached[r->prefer_node] = r->prompt_count;
    int reader = reader_of(c, r);
    bool sure = r->seat[SIDE_HOLD].node >= 0 || c->now_ms - r->read_ms < VIEW_MS;
    if (reader >= 0 && sure && c->cached[reader] < r->prompt_count) c->cached[reader] = r->prompt_count;
}

/* sender: who is chosen if it is a candidate; -1: as the costs say. reason: may be NULL. */
static const coord_cost *choose(coord_core *c, coord_request *r, const coord_ask *a, coord_role role, int candidates,
                                int sender, coord_reason *reason) {
    coord_cost *rows = c->rows[role];
    int chosen = coord_route_choose(a, rows, candidates);
    if (reason) *reason = coord_route_reason(&c->limits, rows, candidates, chosen);
    for (int i = 0; i < candidates; i++)
        if (rows[i].node == sender) {
            rows[chosen].chosen = false;
            rows[chosen = i].chosen = true;
            if (reason) *reason = COORD_REASON_HOLDER;
            break;
        }
    if (r->costs) coord_route_explain(rows, candidates, role, r->costs, &r->costs_count);
    return chosen < 0 ? NULL : &rows[chosen];
}

/* A prompt that is read already is sent by who has its pages, after a failover too: the costs are the time of this request
 * alone, and not what others wait while it is read once more. Looked up. -1: nobody has. */
static int sender_of(const coord_core *c, const coord_request *r) {
    int reader = reader_of(c, r);
    if (r->seat[SIDE_HOLD].node >= 0 || reader < 0) return reader;
    bool known = c->limits.route == COORD_ROUTE_COST;        /* what nodes cache */
    return !known || c->cached[reader] + c->nodes[reader].state.page_tokens >= r->prompt_count ? reader : -1;
}

/* A decode node that can send the pages, all but the last ones: who ran the answer that moves; else one that caches the
 * prompt, where the prefill node does not (reader). Rule 6 of request.c forbids it where numerics differ. -1: none. */
static int holder_of(coord_core *c, const coord_request *r, int to, const coord_cost *reader) {
    const coord_entry *n = r->holder < 0 ? NULL : &c->nodes[r->holder];
    if (n && n->alive && n->state.epoch == r->holder_epoch) {
        c->cached[r->holder] = r->count - 1;
        return r->holder;
    }
    int best = -1;
    if (r->apart || c->limits.prefill == COORD_PREFILL_LOCAL || coord_request_prompt_here(r)) return -1;
    for (int i = 0; i < c->nodes_end; i++) {
        n = &c->nodes[i];
        if (c->cached[i] <= (best < 0 ? 0 : c->cached[best]) || c->cached[i] + n->state.page_tokens < r->prompt_count) continue;
        if (i != to && i != r->slow_to && coord_route_has_room(n, COORD_DECODE, c->now_ms) && n->avoid_ms <= c->now_ms) best = i;
    }
    return best >= 0 && (!reader || reader->cached + c->nodes[best].state.page_tokens < c->cached[best]) ? best : -1;
}

/* Who may be asked in that role, in c->rows; the end of a link that was too slow for it only if there is no other: slow.c. */
static int candidates_for(coord_core *c, const coord_request *r, const coord_ask *a, coord_role role) {
    coord_cost *rows = c->rows[role];
    int count = coord_route_candidates(a, role, rows), kept = 0, slow = role == COORD_PREFILL ? r->slow_from : r->slow_to;
    if (count == 1 || slow < 0) return count;
    for (int i = 0; i < count; i++)
        if (rows[i].node != slow) rows[kept++] = rows[i];
    return kept;
}

/* Its pages were too slow on a link that has an end in common with this one, and it has waited for longer than half of what
 * reading them here takes. */
static bool better_here(const coord_core *c, const coord_request *r, const coord_ask *a, int decode) {
    if (r->slow_to < 0 || c->limits.prefill == COORD_PREFILL_REMOTE) return false;
    bool slow_again = decode == r->slow_to || (a->prefill && a->prefill->node == r->slow_from);
    return slow_again && coord_route_here_ms(a, decode, c->cached[decode]) <= 2 * (double)(c->now_ms - r->moving_ms);
}

bool coord_ask_decode(coord_core *c, coord_request *r, coord_placement *out) {
    coord_ask ask = ask_for(c, r);
    int decodes = candidates_for(c, r, &ask, COORD_DECODE);
    if (decodes == 0) return false;
    int prefills = coord_request_prompt_here(r) ? 0 : candidates_for(c, r, &ask, COORD_PREFILL);
    int any = c->rows[COORD_DECODE][0].node;
    ask.apart = coord_route_apart(&c->limits, c->nodes, c->nodes_end, any) && r->failures < COORD_APART_FAILURES;
    look_up(c, r, &ask);
    r->costs_count = 0;
    coord_reason reason;
    ask.prefill = choose(c, r, &ask, COORD_PREFILL, prefills, sender_of(c, r), NULL);
    int node = choose(c, r, &ask, COORD_DECODE, decodes, -1, &reason)->node;
    *out = (coord_placement){.node = node, .prefill_nodes = prefills > 0, .reason = reason,
                             .differ = coord_route_apart(&c->limits, c->nodes, c->nodes_end, node),
                             .local_tokens_max = coord_route_local_tokens(&ask, node)};
    if (out->local_tokens_max > c->limits.local_tokens_max && holder_of(c, r, node, ask.prefill) >= 0)
        out->local_tokens_max = c->limits.local_tokens_max;
    if (better_here(c, r, &ask, node)) out->local_tokens_max = INT32_MAX;
    r->link_ms = ask.prefill ? coord_link_ms(&c->links, ask.prefill->node, node, r->tries, c->now_ms) : INFINITY;
    r->tries = r->tries || (ask.prefill && coord_link_try(&c->links, ask.prefill->node, node, c->now_ms));
    return true;
}

int coord_ask_prefill(coord_core *c, coord_request *r, int to, int32_t moved, coord_reason *reason) {
    coord_ask a = ask_for(c, r);
    a.to = to;
    a.moved = moved;
    a.tries = r->tries;
    bool strange = !r->apart && coord_route_apart(&c->limits, c->nodes, c->nodes_end, to);  /* since it was placed */
    bool nobody = strange || c->limits.prefill == COORD_PREFILL_LOCAL;
    int candidates = nobody ? 0 : candidates_for(c, r, &a, COORD_PREFILL);
    look_up(c, r, &a);
    const coord_cost *reader = choose(c, r, &a, COORD_PREFILL, candidates, sender_of(c, r), reason);
    int holder = holder_of(c, r, to, reader), node = holder >= 0 ? holder : reader ? reader->node : -1;
    if (holder >= 0) *reason = COORD_REASON_HOLDER;
    if (node >= 0 && coord_link_try(&c->links, node, to, c->now_ms)) r->tries = true;
    return node;
}

/* ---- reading ahead: hold.c ------------------------------------------------------------------------------ */

int32_t coord_ask_pages(const coord_node *n, int32_t tokens) {
    int32_t P = n->page_tokens > 0 ? n->page_tokens : 1;
    return (int32_t)(((int64_t)tokens + P - 1) / P);
}

/* Keeps the rows of nodes that have nothing to read and room for so many tokens. *ever: some could have room. */
static int hold_candidates(const coord_ask *a, coord_cost *rows, int count, bool *ever) {
    int kept = 0;
    *ever = count == 0;
    for (int i = 0; i < count; i++) {
        const coord_entry *n = &a->nodes[rows[i].node];
        int32_t pages = coord_ask_pages(&n->state, a->tokens), most = n->state.pages_total / 2;
        *ever = *ever || pages <= most;
        if (n->prefilling == 0 && n->hold_ms <= a->now_ms && n->holds < n->state.capacity / 2 && n->held_pages + pages <= most)
            rows[kept++] = rows[i];
    }
    return kept;
}

/* The decode node that has most of it; full ones are asked, too. -1: none serves. */
static int likely_decode_node(const coord_core *c) {
    int best = -1;
    for (int i = 0; i < c->nodes_end; i++) {
        const coord_entry *n = &c->nodes[i];
        if (!n->alive || n->state.draining || n->state.role != COORD_DECODE) continue;
        if (best < 0 || c->cached[i] > c->cached[best]) best = i;
    }
    return best;
}

bool coord_ask_hold(coord_core *c, coord_request *r, coord_holding *out) {
    bool ever;
    coord_ask a = ask_for(c, r);
    int candidates = coord_route_candidates(&a, COORD_PREFILL, c->rows[COORD_PREFILL]);
    candidates = hold_candidates(&a, c->rows[COORD_PREFILL], candidates, &ever);
    *out = (coord_holding){.node = -1};
    if (candidates == 0) return !ever;
    look_up(c, r, &a);
    int to = likely_decode_node(c);
    if (to < 0) return false;
    r->costs_count = 0;
    a.prefill = choose(c, r, &a, COORD_PREFILL, candidates, -1, &out->reason);
    out->apart = coord_route_apart(&c->limits, c->nodes, c->nodes_end, to) && r->failures < COORD_APART_FAILURES;
    if (out->apart || r->count - 1 - c->cached[to] > coord_route_local_tokens(&a, to)) out->node = a.prefill->node;
    return true;
}
