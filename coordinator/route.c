/* route.c -- which node gets a request. Pure: values in, a node's number out.
 *
 *   1. who may: serves, was not heard to be full, did not just fail, does not flap   [coord_route_candidates]
 *   2. what each would cost, by the policy                                       [coord_route_choose]
 *   3. the least wins. Of several as good as that two are drawn and the less loaded one is taken (the power of two
 *      choices, Mitzenmacher 2001): who all follow the same figures do not all run to the same node
 *
 * Decode nodes: a node that just failed is avoided while others are there; when it is the only one left it is asked
 * again. Prefill nodes that failed or are full are never asked: the decode node can always compute the prompt itself.
 *
 * By cost everything is in milliseconds, of this request and of those it delays:
 *
 *   prefill node   queue + uncached tokens / its rate + uncached tokens of the decode node * the link's ms a token
 *   decode node    the prompt, where that is cheaper:
 *                    by the best prefill node, as above, or
 *                    here:  queue + t + (requests here + 1) * (t - a step),  t = uncached tokens / its rate
 *                  + the answer: expected tokens * a step * (1 + requests here / capacity)
 *
 * What a prompt here costs beyond one step is time in which every answer of that node stands still; the + 1 is the next
 * one to come. So a short or mostly cached prompt, which fits into a step that is taken anyway, is read where it is
 * answered, and a long one is not. A node's rates are its own measurements; one without any is taken for the average of its
 * role, at first for NOMINAL. A step is measured where a node is a quarter full at most: the formula adds the crowd itself. */
#include "coordinator/core_internal.h"
#include <string.h>

static const double NOMINAL_PREFILL_MS = 1.0;                /* a token, until anything was measured */

/* ---- who may ------------------------------------------------------------------------------------------- */

static bool serves(const coord_entry *n, coord_role role) {
    return n->alive && !n->state.draining && n->state.role == role;
}

bool coord_route_has_room(const coord_entry *n, coord_role role, int64_t now_ms) {
    return serves(n, role) && n->busy_ms <= now_ms && (role == COORD_PREFILL || n->placed < n->state.capacity);
}

/* Held out in favour of others: but for half of those that serve at most. */
static bool others_first(const coord_ask *a, coord_role role) {
    int there = 0, fit = 0;
    for (int i = 0; i < a->count; i++) {
        const coord_entry *n = &a->nodes[i];
        if (!serves(n, role)) continue;
        there++;
        fit += n->held_out_ms <= a->now_ms && n->avoid_ms <= a->now_ms;
    }
    return fit > 0 && 2 * fit >= there;
}

coord_outlook coord_route_outlook(const coord_entry *nodes, int count, int64_t now_ms) {
    coord_outlook outlook = OUTLOOK_NONE;
    for (int i = 0; i < count && outlook != OUTLOOK_GOOD; i++)
        if (serves(&nodes[i], COORD_DECODE))
            outlook = nodes[i].avoid_ms <= now_ms ? OUTLOOK_GOOD : OUTLOOK_AVOIDED;
    return outlook;
}

int coord_route_candidates(const coord_ask *a, coord_role role, coord_cost *rows) {
    bool avoided_too = role == COORD_DECODE && coord_route_outlook(a->nodes, a->count, a->now_ms) == OUTLOOK_AVOIDED;
    int found = 0, held_out = 0, kept = 0;
    for (int i = 0; i < a->count; i++) {
        const coord_entry *n = &a->nodes[i];
        if (!coord_route_has_room(n, role, a->now_ms) || (n->avoid_ms > a->now_ms && !avoided_too)) continue;
        held_out += n->held_out_ms > a->now_ms;
        rows[found++] = (coord_cost){.node = i, .role = role};
    }
    if (held_out == 0 || !others_first(a, role)) return found;
    for (int i = 0; i < found; i++)
        if (a->nodes[rows[i].node].held_out_ms <= a->now_ms) rows[kept++] = rows[i];
    return kept;
}

bool coord_route_apart(const coord_limits *limits, const coord_entry *nodes, int count, int decode_node) {
    if (limits->prefill == COORD_PREFILL_LOCAL) return false;
    for (int i = 0; i < count; i++)
        if (nodes[i].known && nodes[i].state.role == COORD_PREFILL &&
            nodes[i].state.numerics != nodes[decode_node].state.numerics)
            return true;
    return false;
}

/* ---- what was measured --------------------------------------------------------------------------------- */

static coord_link *link_at(const coord_links *l, int from, int to) {
    return (coord_link *)(uintptr_t)&l->at[((unsigned)from * 37 + (unsigned)to) % COORD_LINKS];
}

static bool is_of(const coord_link *k, int from, int to) { return k->known && k->from == from && k->to == to; }

/* A slow link is avoided, so nothing would ever tell that it is slow no more. It is believed to be for a while only; then one
 * request tries it, and the others wait for what that finds. Found slow again it is believed twice as long. */
enum { TRUST_MS = 3000, TRUST_MAX_MS = 320000 };

static bool is_stale(const coord_links *l, const coord_link *k, int64_t now_ms) {
    return k->ms > l->mean_ms && now_ms - k->since_ms >= k->trust_ms;
}

/* A pair that was not measured, or whose place another took, is an average one. */
double coord_link_ms(const coord_links *l, int from, int to, bool tries, int64_t now_ms) {
    const coord_link *k = link_at(l, from, to);
    if (!is_of(k, from, to) || is_stale(l, k, now_ms)) return l->mean_ms;
    return tries && k->tried ? 0 : k->ms;
}

bool coord_link_try(coord_links *l, int from, int to, int64_t now_ms) {
    coord_link *k = link_at(l, from, to);
    if (!is_of(k, from, to) || !is_stale(l, k, now_ms)) return false;
    k->since_ms = now_ms;
    return k->tried = true;
}

static void learn(coord_links *l, int from, int to, double ms, int64_t now_ms) {
    coord_link *k = link_at(l, from, to);
    bool known = is_of(k, from, to), still = known && k->tried && ms > k->ms / 2 && ms > l->mean_ms;
    int32_t trust_ms = !still ? TRUST_MS : k->trust_ms < TRUST_MAX_MS ? 2 * k->trust_ms : TRUST_MAX_MS;
    if (known && !k->tried) ms = k->ms + 0.2 * (ms - k->ms), trust_ms = k->trust_ms;
    *k = (coord_link){.from = (int16_t)from, .to = (int16_t)to, .known = true, .ms = (float)ms, .trust_ms = trust_ms, .since_ms = now_ms};
}

void coord_link_learn(coord_links *l, int from, int to, double ms, int64_t now_ms) {
    l->mean_ms = l->learned ? l->mean_ms + 0.05 * (ms - l->mean_ms) : ms;
    l->learned = true;
    learn(l, from, to, ms, now_ms);
}

void coord_link_gave_up(coord_links *l, int from, int to, double ms, int64_t now_ms) {
    coord_link *k = link_at(l, from, to);
    bool known = is_of(k, from, to);
    if (known && ms < k->ms) ms = k->ms;
    if (known && !k->tried) k->known = false;
    learn(l, from, to, ms, now_ms);
}

void coord_link_forget(coord_links *l, int node) {
    for (int i = 0; i < COORD_LINKS; i++)
        if (l->at[i].from == node || l->at[i].to == node) l->at[i].known = false;
}

/* What stands for nodes without a measurement. */
void coord_route_average(coord_ask *a) {
    double prefill[3] = {0}, step = 0;
    int prefills[3] = {0}, steps = 0;
    for (int i = 0; i < a->count; i++) {
        const coord_entry *n = &a->nodes[i];
        if (!n->alive) continue;
        if (n->state.prefill_tokens_per_s > 0) {
            prefill[n->state.role] += 1000 / n->state.prefill_tokens_per_s;
            prefills[n->state.role]++;
        }
        if (n->light_steps_per_s > 0) step += 1000 / n->light_steps_per_s, steps++;
    }
    int any = prefills[COORD_PREFILL] + prefills[COORD_DECODE];
    double all = any ? (prefill[COORD_PREFILL] + prefill[COORD_DECODE]) / any : NOMINAL_PREFILL_MS;
    for (int role = COORD_PREFILL; role <= COORD_DECODE; role++)
        a->prefill_ms[role] = prefills[role] ? prefill[role] / prefills[role] : all;
    a->step_ms = steps ? step / steps : a->limits->local_tokens_max * a->prefill_ms[COORD_DECODE];
}

static double prefill_ms(const coord_ask *a, int node) {
    const coord_node *n = &a->nodes[node].state;
    return n->prefill_tokens_per_s > 0 ? 1000 / n->prefill_tokens_per_s : a->prefill_ms[n->role];
}

static double step_ms(const coord_ask *a, int node) {
    double steps_per_s = a->nodes[node].light_steps_per_s;
    return steps_per_s > 0 ? 1000 / steps_per_s : a->step_ms;
}

/* ---- by cost ------------------------------------------------------------------------------------------- */

/* The prompt's last token is always the decode node's. */
static int32_t uncached(const coord_ask *a, int32_t cached) {
    return cached < a->tokens - 1 ? a->tokens - 1 - cached : 0;
}

static double local_ms(const coord_ask *a, int node, int32_t tokens) {
    double t = tokens * prefill_ms(a, node), beyond = t - step_ms(a, node);
    return t + (beyond > 0 ? beyond * (a->nodes[node].placed + 1) : 0);
}

static double local_queue_ms(const coord_ask *a, int node) {
    return (double)a->nodes[node].computing * prefill_ms(a, node);
}

double coord_route_here_ms(const coord_ask *a, int node, int32_t cached) {
    return local_queue_ms(a, node) + uncached(a, cached) * prefill_ms(a, node);
}

static void cost_prefill(const coord_ask *a, coord_cost *r) {
    double ms = prefill_ms(a, r->node);
    int32_t left = r->cached < a->tokens ? a->tokens - r->cached : 1;
    r->queue = (float)((double)a->nodes[r->node].prefilling * ms);
    r->prefill = (float)(left * ms);
    r->transfer = a->to < 0 ? 0 : (float)(a->moved * coord_link_ms(a->links, r->node, a->to, a->tries, a->now_ms));
    r->total = r->queue + r->prefill + r->transfer;
}

static void cost_decode(const coord_ask *a, coord_cost *r) {
    const coord_entry *n = &a->nodes[r->node];
    int32_t tokens = uncached(a, r->cached);
    const coord_cost *p = a->prefill;
    r->queue = (float)local_queue_ms(a, r->node);
    r->prefill = (float)local_ms(a, r->node, tokens);
    double moving = p ? tokens * coord_link_ms(a->links, p->node, r->node, a->tries, a->now_ms) : 0;
    bool remote = p && tokens > 0 && a->limits->prefill != COORD_PREFILL_LOCAL;
    if (remote && (a->apart || a->limits->prefill == COORD_PREFILL_REMOTE ||
                   p->queue + p->prefill + moving < r->queue + r->prefill)) {
        r->queue = p->queue;
        r->prefill = p->prefill;
        r->transfer = (float)moving;
    }
    r->decode = (float)(a->answer * step_ms(a, r->node) * (1 + (double)n->placed / n->state.capacity));
    r->total = r->queue + r->prefill + r->transfer + r->decode;
}

static void by_cost(const coord_ask *a, coord_cost *rows, int count) {
    for (int i = 0; i < count; i++) (rows[i].role == COORD_PREFILL ? cost_prefill : cost_decode)(a, &rows[i]);
}

/* ---- by something else --------------------------------------------------------------------------------- */

static double load(const coord_ask *a, const coord_cost *r) {
    const coord_entry *n = &a->nodes[r->node];
    return r->role == COORD_PREFILL ? (double)n->prefilling : (double)n->placed / n->state.capacity;
}

static void by_turn(const coord_ask *a, coord_cost *rows, int count) {
    int next = (int)(a->turn % (unsigned)count);
    for (int i = 0; i < count; i++) rows[i].total = (float)((i - next + count) % count);
}

static void by_load(const coord_ask *a, coord_cost *rows, int count) {
    for (int i = 0; i < count; i++) rows[i].total = (float)load(a, &rows[i]);
}

/* Rendezvous hashing (Thaler, Ravishankar 1998): a node that goes or comes moves only its own prompts. With bounded
 * loads (Mirrokni et al. 2018): a node with over 5/4 of the average load comes after all others. */
static void by_prefix(const coord_ask *a, coord_cost *rows, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += load(a, &rows[i]);
    double most = 1.25 * sum / count;
    for (int i = 0; i < count; i++) {
        uint64_t x = mix64(a->key ^ mix64(a->nodes[rows[i].node].state.name));
        bool crowded = load(a, &rows[i]) > most;
        rows[i].total = (float)((double)(x >> 11) / (1ull << 53)) + crowded;
    }
}

/* ---- the table, and the choice ------------------------------------------------------------------------- */

static const struct policy {
    const char *name;
    void (*score)(const coord_ask *a, coord_cost *rows, int count);
    float tie;                   /* within this share of the least a cost counts as equal */
} policies[COORD_ROUTES] = {
    [COORD_ROUTE_COST] = {"cost", by_cost, 0.01f},
    [COORD_ROUTE_ROUND_ROBIN] = {"round-robin", by_turn, 0},
    [COORD_ROUTE_LEAST_LOADED] = {"least-loaded", by_load, 0},
    [COORD_ROUTE_PREFIX_HASH] = {"prefix-hash", by_prefix, 0},
};

const char *coord_route_name(coord_route route) { return policies[route].name; }

bool coord_route_find(const char *name, coord_route *out) {
    for (int i = 0; i < COORD_ROUTES; i++)
        if (strcmp(policies[i].name, name) == 0) {
            *out = (coord_route)i;
            return true;
        }
    return false;
}

static int nth_within(const coord_cost *rows, int count, float limit, int nth) {
    for (int i = 0; i < count; i++)
        if (rows[i].total <= limit && nth-- == 0) return i;
    return 0;
}

int coord_route_choose(const coord_ask *a, coord_cost *rows, int count) {
    const struct policy *p = &policies[a->limits->route];
    if (count == 0) return -1;
    for (int i = 0; a->cached && i < count; i++) rows[i].cached = a->cached[rows[i].node];
    p->score(a, rows, count);
    float least = rows[0].total;
    for (int i = 1; i < count; i++)
        if (rows[i].total < least) least = rows[i].total;
    float limit = least + least * p->tie;
    int equal = 0;
    for (int i = 0; i < count; i++) equal += rows[i].total <= limit;
    uint64_t dice = mix64(a->turn);
    int first = nth_within(rows, count, limit, (int)(dice % (unsigned)equal));
    if (equal > 1) {
        int other = (int)(dice % (unsigned)equal + 1 + (dice >> 32) % (unsigned)(equal - 1)) % equal;
        other = nth_within(rows, count, limit, other);
        if (load(a, &rows[other]) < load(a, &rows[first])) first = other;
    }
    rows[first].chosen = true;
    return first;
}

/* By cost: the most tokens that are read as cheaply here as there. Local minus remote grows ever faster with the tokens
 * and begins at or below nothing, so it crosses zero once. */
int32_t coord_route_local_tokens(const coord_ask *a, int decode_node) {
    const coord_cost *p = a->prefill;
    if (!p || a->limits->prefill == COORD_PREFILL_LOCAL) return INT32_MAX;
    if (a->limits->prefill == COORD_PREFILL_REMOTE) return 0;
    if (a->limits->route != COORD_ROUTE_COST) return a->limits->local_tokens_max;
    double link_ms = coord_link_ms(a->links, p->node, decode_node, a->tries, a->now_ms), queue_ms = local_queue_ms(a, decode_node);
    int32_t least = -1, most = a->tokens;
    while (least < most) {
        int32_t tokens = least + (most - least + 1) / 2;
        bool here = queue_ms + local_ms(a, decode_node, tokens) <= p->queue + p->prefill + tokens * link_ms;
        if (here) least = tokens;
        else most = tokens - 1;
    }
    return least == a->tokens ? INT32_MAX : least < 0 ? 0 : least;
}

/* ---- why ------------------------------------------------------------------------------------------------ */

/*   only     no other might have been
 *   policy   the policy looks at no caches
 *   cache    nobody has more of the prompt than the chosen one, and somebody has less
 *   load     all have as much of it, or who has most was passed over: what else is in the costs told them apart */
coord_reason coord_route_reason(const coord_limits *limits, const coord_cost *rows, int count, int chosen) {
    int32_t least = INT32_MAX, most = 0;
    if (count <= 1) return COORD_REASON_ONLY;
    if (limits->route != COORD_ROUTE_COST) return COORD_REASON_POLICY;
    for (int i = 0; i < count; i++) {
        least = min32(least, rows[i].cached);
        most = max32(most, rows[i].cached);
    }
    return rows[chosen].cached == most && most > least ? COORD_REASON_CACHE : COORD_REASON_LOAD;
}

/* Replaces the rows of this role by the cheapest of rows, the chosen one among them. */
void coord_route_explain(const coord_cost *rows, int count, coord_role role, coord_cost *out, int32_t *out_count) {
    enum { EACH = COORD_COSTS_MAX / 2 };
    int32_t n = 0, first;
    for (int32_t i = 0; i < *out_count; i++)
        if (out[i].role != role) out[n++] = out[i];
    first = n;
    for (int i = 0; i < count; i++) {
        int32_t at = n;
        if (n - first < EACH) n++;
        else if (rows[i].chosen || (!out[n - 1].chosen && rows[i].total < out[n - 1].total)) at = n - 1;
        else continue;
        for (; at > first && !out[at - 1].chosen && (rows[i].chosen || rows[i].total < out[at - 1].total); at--)
            out[at] = out[at - 1];
        out[at] = rows[i];
    }
    *out_count = n;
}
