/* ask.c -- what the router is asked for a request: gathers what a choice depends on (route.c is pure and takes values),
 * and remembers, for a request that wants to know, what was compared. */
#include "coordinator/core_internal.h"
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

/* What was measured, and what nodes cache of this prompt (in c->cached): asked only once somebody has room. */
static void look_up(coord_core *c, const coord_request *r, coord_ask *a) {
    if (c->limits.route == COORD_ROUTE_COST) coord_route_average(a);
    memset(c->cached, 0, (size_t)c->nodes_end * sizeof *c->cached);
    if (coord_request_prompt_here(r)) return;
    for (int32_t i = 0; i < r->marks_count; i++) coord_cache_match(c->cache, &r->marks[i], c->cached);
    if (r->prefer_node >= 0 && r->prefer_node < c->nodes_end) c->cached[r->prefer_node] = r->count;
}

static const coord_cost *choose(coord_core *c, coord_request *r, const coord_ask *a, coord_role role, int candidates) {
    coord_cost *rows = c->rows[role];
    int chosen = coord_route_choose(a, rows, candidates);
    if (r->costs) coord_route_explain(rows, candidates, role, r->costs, &r->costs_count);
    return chosen < 0 ? NULL : &rows[chosen];
}

bool coord_ask_decode(coord_core *c, coord_request *r, coord_placement *out) {
    coord_ask ask = ask_for(c, r);
    int decodes = coord_route_candidates(&ask, COORD_DECODE, c->rows[COORD_DECODE]);
    if (decodes == 0) return false;
    int prefills = coord_request_prompt_here(r) ? 0 : coord_route_candidates(&ask, COORD_PREFILL, c->rows[COORD_PREFILL]);
    int any = c->rows[COORD_DECODE][0].node;
    ask.apart = coord_route_apart(&c->limits, c->nodes, c->nodes_end, any) && r->failures < COORD_APART_FAILURES;
    look_up(c, r, &ask);
    r->costs_count = 0;
    ask.prefill = choose(c, r, &ask, COORD_PREFILL, prefills);
    int node = choose(c, r, &ask, COORD_DECODE, decodes)->node;
    *out = (coord_placement){.node = node, .prefill_nodes = prefills > 0,
                             .differ = coord_route_apart(&c->limits, c->nodes, c->nodes_end, node),
                             .local_tokens_max = coord_route_local_tokens(&ask, node)};
    return true;
}

int coord_ask_prefill(coord_core *c, coord_request *r, int to, int32_t moved) {
    coord_ask a = ask_for(c, r);
    a.to = to;
    a.moved = moved;
    int candidates = coord_route_candidates(&a, COORD_PREFILL, c->rows[COORD_PREFILL]);
    if (candidates == 0) return -1;
    look_up(c, r, &a);
    return choose(c, r, &a, COORD_PREFILL, candidates)->node;
}
