/* coord_route.c -- tests coordinator/route.c: tables of clusters, and who is chosen by which policy. */
#include "coordinator/core_internal.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { NODES = 4 };

/* One node in a few letters. */
typedef struct n {
    char role;                   /* D, P; small: dead */
    int placed, capacity;        /* of P: tokens outstanding */
    int avoid_ms, busy_ms;
    bool draining;
    int cached, computing;
    double rate, steps;          /* prefill tokens a second, decode steps a second */
} n;

static coord_links links;

static coord_ask ask_of(const n *from, coord_entry *nodes, int32_t *cached, const coord_limits *limits) {
    memset(nodes, 0, NODES * sizeof *nodes);
    for (int k = 0; k < NODES; k++) {
        nodes[k] = (coord_entry){.known = from[k].role, .alive = from[k].role == 'D' || from[k].role == 'P',
                                 .placed = from[k].placed, .prefilling = from[k].placed, .computing = from[k].computing,
                                 .avoid_ms = from[k].avoid_ms, .busy_ms = from[k].busy_ms,
                                 .light_steps_per_s = from[k].steps};
        nodes[k].state = (coord_node){.role = from[k].role == 'D' || from[k].role == 'd' ? COORD_DECODE : COORD_PREFILL,
                                      .capacity = from[k].capacity, .draining = from[k].draining,
                                      .prefill_tokens_per_s = from[k].rate, .name = 1000 + (uint64_t)k};
        cached[k] = from[k].cached;
    }
    coord_ask a = {.limits = limits, .nodes = nodes, .count = NODES, .links = &links, .cached = cached,
                   .tokens = 1001, .answer = 10, .now_ms = 100, .to = -1};
    coord_route_average(&a);
    return a;
}

static int decode_for(coord_ask *a, int32_t *local_tokens, coord_cost *why) {
    coord_cost p[NODES], d[NODES];
    int prefill = coord_route_choose(a, p, coord_route_candidates(a, COORD_PREFILL, p));
    a->prefill = prefill < 0 ? NULL : &p[prefill];
    int decode = coord_route_choose(a, d, coord_route_candidates(a, COORD_DECODE, d));
    if (decode < 0) return -1;
    if (local_tokens) *local_tokens = coord_route_local_tokens(a, d[decode].node);
    if (why) *why = d[decode];
    return d[decode].node;
}

static int prefill_for(coord_ask *a) {
    coord_cost p[NODES];
    int i = coord_route_choose(a, p, coord_route_candidates(a, COORD_PREFILL, p));
    return i < 0 ? -1 : p[i].node;
}

/* ---- who may, and by load -------------------------------------------------------------------------------- */

typedef struct row {
    const char *what;
    n nodes[NODES];
    int decode, prefill;         /* expected at time 100 */
} row;

#define D(placed_, capacity_, ...) {.role = 'D', .placed = placed_, .capacity = capacity_, __VA_ARGS__}
#define P(tokens_, ...) {.role = 'P', .placed = tokens_, __VA_ARGS__}
#define DEAD_D(placed_, capacity_) {.role = 'd', .placed = placed_, .capacity = capacity_}
#define DEAD_P(tokens_) {.role = 'p', .placed = tokens_}

static const row rows[] = {
    {"nobody", {{.role = 0}}, -1, -1},
    {"one of each", {D(0, 4), P(0)}, 0, 1},
    {"dead ones are nobody", {DEAD_D(0, 4), DEAD_P(0)}, -1, -1},
    {"draining ones get nothing new", {D(0, 4, .draining = true), P(0, .draining = true)}, -1, -1},
    {"least loaded", {D(3, 4), D(1, 4), P(90), P(20)}, 1, 3},
    {"load is a share of capacity", {D(3, 4), D(6, 16)}, 1, -1},
    {"full by our own count", {D(4, 4), D(4, 4)}, -1, -1},
    {"no capacity", {D(0, 0)}, -1, -1},
    {"said it is full", {D(0, 4, .busy_ms = 101), P(0, .busy_ms = 101)}, -1, -1},
    {"no longer full", {D(0, 4, .busy_ms = 100), P(0, .busy_ms = 100)}, 0, 1},
    {"avoided while others are there", {D(0, 4, .avoid_ms = 101), D(3, 4)}, 1, -1},
    {"others are there, though full", {D(0, 4, .avoid_ms = 101), D(4, 4)}, -1, -1},
    {"avoided but alone", {D(0, 4, .avoid_ms = 101), P(0, .avoid_ms = 101)}, 0, -1},
    {"huge figures do not overflow", {D(INT32_MAX - 1, INT32_MAX), D(1, INT32_MAX)}, 1, -1},
};

static void by_load(void **state) {
    (void)state;
    coord_limits l = {.route = COORD_ROUTE_LEAST_LOADED, .local_tokens_max = 32};
    coord_entry nodes[NODES];
    int32_t cached[NODES];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        coord_ask a = ask_of(rows[i].nodes, nodes, cached, &l);
        int decode = decode_for(&a, NULL, NULL), prefill = prefill_for(&a);
        if (decode != rows[i].decode || prefill != rows[i].prefill)
            fail_msg("%s: got %d and %d, expected %d and %d", rows[i].what, decode, prefill, rows[i].decode,
                     rows[i].prefill);
    }
}

/* ---- by cost --------------------------------------------------------------------------------------------- */

/* 1001 tokens, 10 of them answered, P reads 10 a ms, D 10 a ms and takes 5 ms a step, if nothing else is said. */
#define RATES .rate = 10000, .steps = 200

typedef struct cost_row {
    const char *what;
    n nodes[NODES];
    double link_ms;              /* a token, from node 1 to node 0 */
    int decode;
    int local_least, local_most; /* local_tokens_max it is told */
    double total;                /* of its row; 0: whatever */
} cost_row;

static const cost_row cost_rows[] = {
    /* remote: 100.1 + answer 50; local: 100 + 1 * 95 */
    {"a long prompt is read elsewhere", {D(0, 4, RATES), P(0, RATES)}, 0, 0, 500, 600, 150.1},
    {"local is told in full when it is cheaper", {D(0, 4, RATES), P(5000, RATES)}, 0, 0, INT32_MAX, INT32_MAX, 245},
    {"who runs there is hurt", {D(3, 4, RATES), P(0, RATES)}, 0, 0, 150, 250, 187.6},
    {"a slow link is worse than reading here", {D(0, 4, RATES), P(0, RATES)}, 1, 0, INT32_MAX, INT32_MAX, 245},
    {"no prefill node", {D(0, 4, RATES)}, 0, 0, INT32_MAX, INT32_MAX, 245},
    {"cached prompts are read here", {D(0, 4, RATES, .cached = 960), P(0, RATES)}, 0, 0, 500, 600, 54},
    {"the cache is worth a detour", {D(0, 4, RATES), P(0, RATES), D(2, 4, RATES, .cached = 960)}, 0, 2, 0, INT32_MAX, 79},
    {"but not to a far slower node", {D(0, 4, RATES), P(0, RATES), D(0, 4, .rate = 10000, .steps = 20, .cached = 960)},
     0, 0, 0, INT32_MAX, 150.1},
    {"nor to one that is reading another's long prompt",
     {D(0, 4, RATES), P(0, RATES), D(1, 4, RATES, .cached = 960, .computing = 100000)}, 0, 0, 0, INT32_MAX, 150.1},
    {"the faster one", {D(0, 4, RATES), P(0, RATES), D(0, 4, .rate = 10000, .steps = 400)}, 0, 2, 0, INT32_MAX, 125.1},
    {"an unmeasured one is taken for the average", {D(1, 4, RATES), P(0, RATES), D(0, 4)}, 0, 2, 0, INT32_MAX, 150.1},
    {"nothing was measured: a step is local_tokens_max tokens", {D(0, 4), P(0)}, 0, 0, 500, 600, 0},
};

static void by_cost(void **state) {
    (void)state;
    coord_limits l = {.route = COORD_ROUTE_COST, .local_tokens_max = 32};
    coord_entry nodes[NODES];
    int32_t cached[NODES], local;
    for (size_t i = 0; i < sizeof cost_rows / sizeof *cost_rows; i++) {
        const cost_row *r = &cost_rows[i];
        coord_cost why;
        memset(&links, 0, sizeof links);
        coord_link_learn(&links, 1, 0, r->link_ms, 100);
        coord_ask a = ask_of(r->nodes, nodes, cached, &l);
        int decode = decode_for(&a, &local, &why);
        if (decode != r->decode || local < r->local_least || local > r->local_most ||
            (r->total > 0 && fabs(why.total - r->total) > 0.1))
            fail_msg("%s: got node %d, %d tokens here, %.2f ms; expected node %d, %d to %d, %.2f ms", r->what, decode, local,
                     (double)why.total, r->decode, r->local_least, r->local_most, r->total);
    }
}

static void prefill_by_cost(void **state) {
    (void)state;
    coord_limits l = {.route = COORD_ROUTE_COST, .local_tokens_max = 32};
    coord_entry nodes[NODES];
    int32_t cached[NODES];
    static const n idle[NODES] = {D(0, 4, RATES), P(0, RATES, .cached = 900), P(0, RATES), P(0, .rate = 40000)};
    memset(&links, 0, sizeof links);
    coord_ask a = ask_of(idle, nodes, cached, &l);
    assert_int_equal(prefill_for(&a), 1);                    /* it has most of it */
    nodes[1].prefilling = 5000;
    assert_int_equal(prefill_for(&a), 3);                    /* the faster one */
    nodes[3].prefilling = 20000;
    nodes[1].prefilling = 20000;
    assert_int_equal(prefill_for(&a), 2);
    nodes[1].prefilling = nodes[3].prefilling = 0;
    coord_link_learn(&links, 1, 0, 1, 100);                  /* on a link of 1 ms a token */
    coord_link_learn(&links, 2, 0, 0, 100);
    coord_link_learn(&links, 3, 0, 0.5, 100);
    a.to = 0;
    a.moved = 1000;
    assert_int_equal(prefill_for(&a), 2);
    a.moved = 10;                                            /* with little to move the cache wins again */
    assert_int_equal(prefill_for(&a), 1);
}

static double at(int64_t now_ms) { return coord_link_ms(&links, 1, 0, false, now_ms); }

/* Nobody uses a slow link, so it is tried now and then: by one request, more and more seldom as long as it stays slow. */
static void slow_links(void **state) {
    (void)state;
    memset(&links, 0, sizeof links);
    for (int i = 0; i < 100; i++) coord_link_learn(&links, 2, 0, 0.5, 0);
    coord_link_learn(&links, 1, 0, 8, 0);
    double mean = links.mean_ms;
    assert_true(mean < 1);
    assert_float_equal(at(2999), 8, 0);
    assert_false(coord_link_try(&links, 1, 0, 2999));
    assert_float_equal(at(3000), mean, 0);                  /* too old: as good as any */
    assert_true(coord_link_try(&links, 1, 0, 3000));
    assert_false(coord_link_try(&links, 1, 0, 3001));
    assert_float_equal(at(3001), 8, 0);                     /* for the others */
    assert_float_equal(coord_link_ms(&links, 1, 0, true, 3001), 0, 0);
    coord_link_learn(&links, 1, 0, 7, 5000);
    assert_float_equal(at(5000 + 5999), 7, 0);               /* what was found counts in full, and twice as long */
    assert_true(coord_link_try(&links, 1, 0, 5000 + 6000));
    coord_link_learn(&links, 1, 0, 0.25, 12000);
    assert_float_equal(at(12000), 0.25, 0);
    coord_link_learn(&links, 1, 0, 8.25, 12000);
    assert_float_equal(at(12000), 1.85, 1e-6);               /* one of many: a fifth */
    assert_true(at(12000 + 3000) < 1.85);                   /* soon again as at first */
    mean = links.mean_ms;
    coord_link_gave_up(&links, 1, 0, 20, 13000);
    assert_float_equal(links.mean_ms, mean, 0);
    assert_float_equal(at(13000 + 2999), 20, 0);             /* in full, whatever it was before; and soon tried */
    assert_true(coord_link_try(&links, 1, 0, 16000));
    coord_link_gave_up(&links, 1, 0, 20, 18000);
    assert_float_equal(at(18000 + 5999), 20, 0);             /* a trial */
    coord_link_gave_up(&links, 1, 0, 5, 18500);
    assert_float_equal(at(18500), 20, 0);                    /* as slow as that at least says nothing against slower */
    coord_link_learn(&links, 2, 0, 0.5, 0);
    assert_float_equal(coord_link_ms(&links, 2, 0, false, 1 << 30), 0.5, 1e-6);      /* a fast one is asked anyway */
}

/* The largest number of tokens that is as cheap here as there, by the two costs themselves. */
static void local_tokens(void **state) {
    (void)state;
    coord_limits l = {.route = COORD_ROUTE_LEAST_LOADED, .local_tokens_max = 32};
    coord_entry nodes[NODES];
    int32_t cached[NODES];
    static const n some[NODES] = {D(0, 4, RATES), P(0, RATES)};
    coord_cost p = {.node = 1, .prefill = 30};
    memset(&links, 0, sizeof links);
    coord_ask a = ask_of(some, nodes, cached, &l);
    assert_int_equal(coord_route_local_tokens(&a, 0), INT32_MAX);        /* no prefill node */
    a.prefill = &p;
    assert_int_equal(coord_route_local_tokens(&a, 0), 32);
    l.prefill = COORD_PREFILL_LOCAL;
    assert_int_equal(coord_route_local_tokens(&a, 0), INT32_MAX);
    l.prefill = COORD_PREFILL_REMOTE;
    assert_int_equal(coord_route_local_tokens(&a, 0), 0);
    l.prefill = COORD_PREFILL_AUTO;
    l.route = COORD_ROUTE_COST;
    assert_int_equal(coord_route_local_tokens(&a, 0), 175);              /* 17.5 + 12.5 = 30 */
    nodes[0].placed = 3;
    assert_int_equal(coord_route_local_tokens(&a, 0), 100);              /* 10 + 4 * 5 = 30 */
    nodes[0].computing = 100;
    assert_int_equal(coord_route_local_tokens(&a, 0), 80);               /* 10 + 8 + 4 * 3 = 30 */
    nodes[0].computing = 1000;
    assert_int_equal(coord_route_local_tokens(&a, 0), 0);
}

/* ---- the others -------------------------------------------------------------------------------------------- */

static void by_turn(void **state) {
    (void)state;
    coord_limits l = {.route = COORD_ROUTE_ROUND_ROBIN};
    coord_entry nodes[NODES];
    int32_t cached[NODES];
    static const n some[NODES] = {D(3, 4), P(0), D(0, 4), D(1, 4)};
    static const int expected[] = {0, 2, 3, 0, 2, 3};
    coord_ask a = ask_of(some, nodes, cached, &l);
    for (int i = 0; i < 6; i++, a.turn++) assert_int_equal(decode_for(&a, NULL, NULL), expected[i]);
}

static void by_prefix(void **state) {
    (void)state;
    coord_limits l = {.route = COORD_ROUTE_PREFIX_HASH};
    coord_entry nodes[NODES];
    int32_t cached[NODES];
    static const n some[NODES] = {D(1, 64), D(1, 64), D(1, 64), D(1, 64)};
    coord_ask a = ask_of(some, nodes, cached, &l);
    int count[NODES] = {0}, moved = 0, before[400];
    for (int i = 0; i < 400; i++, a.turn++) {
        a.key = 7777 * (uint64_t)i;
        before[i] = decode_for(&a, NULL, NULL);
        a.turn += 3;                                         /* nothing but the prompt decides */
        assert_int_equal(decode_for(&a, NULL, NULL), before[i]);
        count[before[i]]++;
    }
    for (int i = 0; i < NODES; i++) assert_in_range(count[i], 60, 140);
    nodes[2].alive = false;
    for (int i = 0; i < 400; i++) {
        a.key = 7777 * (uint64_t)i;
        moved += decode_for(&a, NULL, NULL) != before[i];
    }
    assert_int_equal(moved, count[2]);                       /* only those of the node that went */
    nodes[2].alive = true;
    a.key = 0;
    nodes[before[0]].placed = 8;                             /* more than 5/4 of the average */
    assert_int_not_equal(decode_for(&a, NULL, NULL), before[0]);
}

/* Of equals two are drawn, and the less loaded one is taken: none is left out, the most loaded is never taken. */
static void two_choices(void **state) {
    (void)state;
    coord_limits l = {.route = COORD_ROUTE_COST, .local_tokens_max = 32};
    coord_entry nodes[NODES];
    int32_t cached[NODES];
    static const n some[NODES] = {D(0, 64, RATES), D(0, 64, RATES), D(0, 64, RATES), D(1, 6400, RATES)};
    coord_ask a = ask_of(some, nodes, cached, &l);
    a.tokens = 2;                                            /* so little that only crowding makes a difference */
    int count[NODES] = {0};
    for (int i = 0; i < 3000; i++, a.turn++) count[decode_for(&a, NULL, NULL)]++;
    for (int i = 0; i < 3; i++) assert_in_range(count[i], 800, 1200);
    assert_int_equal(count[3], 0);
    a.turn = 17;                                             /* the same inputs, the same choice */
    int again = decode_for(&a, NULL, NULL);
    for (int i = 0; i < 10; i++) assert_int_equal(decode_for(&a, NULL, NULL), again);
}

static void names(void **state) {
    (void)state;
    coord_route found;
    for (int i = 0; i < COORD_ROUTES; i++) {
        assert_true(coord_route_find(coord_route_name((coord_route)i), &found));
        assert_int_equal(found, i);
    }
    assert_false(coord_route_find("fastest", &found));
}

/* The chosen one first, then the cheapest, as many as there is room for; rows of the other role stay. */
static void explains(void **state) {
    (void)state;
    coord_cost rows_[20], out[COORD_COSTS_MAX] = {{.node = 99, .role = COORD_PREFILL}};
    int32_t count = 1;
    for (int i = 0; i < 20; i++)
        rows_[i] = (coord_cost){.node = i, .role = COORD_DECODE, .total = (float)((i * 7) % 20), .chosen = i == 5};
    for (int again = 0; again < 2; again++) {
        coord_route_explain(rows_, 20, COORD_DECODE, out, &count);
        assert_int_equal(count, 1 + COORD_COSTS_MAX / 2);
        assert_int_equal(out[0].node, 99);
        assert_int_equal(out[1].node, 5);
        for (int i = 2; i < count; i++) assert_int_equal((int)out[i].total, i - 2);
    }
    coord_route_explain(rows_, 0, COORD_DECODE, out, &count);
    assert_int_equal(count, 1);
}

static void reasons(void **state) {
    (void)state;
    static const struct {
        const char *what;
        coord_route route;
        int count;
        int32_t cached[3];
        int chosen;
        coord_reason reason;
    } cases[] = {
        {"nobody else is there", COORD_ROUTE_COST, 1, {900}, 0, COORD_REASON_ONLY},
        {"whatever the policy", COORD_ROUTE_ROUND_ROBIN, 1, {0}, 0, COORD_REASON_ONLY},
        {"it was its turn", COORD_ROUTE_ROUND_ROBIN, 3, {0, 900, 0}, 1, COORD_REASON_POLICY},
        {"nobody has any of it", COORD_ROUTE_COST, 3, {0, 0, 0}, 2, COORD_REASON_LOAD},
        {"all have the same of it", COORD_ROUTE_COST, 3, {64, 64, 64}, 1, COORD_REASON_LOAD},
        {"it has most", COORD_ROUTE_COST, 3, {64, 0, 900}, 2, COORD_REASON_CACHE},
        {"nobody has more", COORD_ROUTE_COST, 3, {900, 0, 900}, 0, COORD_REASON_CACHE},
        {"who has most was passed over", COORD_ROUTE_COST, 3, {64, 0, 900}, 0, COORD_REASON_LOAD},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        coord_limits l = {.route = cases[i].route};
        coord_cost rows_[3] = {{.cached = cases[i].cached[0]}, {.cached = cases[i].cached[1]}, {.cached = cases[i].cached[2]}};
        coord_reason got = coord_route_reason(&l, rows_, cases[i].count, cases[i].chosen);
        if (got != cases[i].reason) fail_msg("%s: got %d, expected %d", cases[i].what, got, cases[i].reason);
    }
}

/* A border is there as long as a prefill node of other numerics is known, lost or not. */
static void apart(void **state) {
    (void)state;
    coord_limits l = {.prefill = COORD_PREFILL_AUTO};
    coord_entry nodes[4] = {{.known = true, .alive = true, .state = {.role = COORD_DECODE, .numerics = 1}},
                            {.known = true, .alive = true, .state = {.role = COORD_PREFILL, .numerics = 1}},
                            {.known = true, .alive = true, .state = {.role = COORD_DECODE, .numerics = 2}}};
    assert_false(coord_route_apart(&l, nodes, 4, 0));      /* other decode nodes do not matter, nor do unknown ones */
    assert_true(coord_route_apart(&l, nodes, 4, 2));
    nodes[3] = (coord_entry){.known = true, .alive = true, .state = {.role = COORD_PREFILL, .numerics = 3}};
    assert_true(coord_route_apart(&l, nodes, 4, 0));
    assert_false(coord_route_apart(&l, nodes, 3, 0));
    nodes[3].alive = false;
    assert_true(coord_route_apart(&l, nodes, 4, 0));
    l.prefill = COORD_PREFILL_LOCAL;
    assert_false(coord_route_apart(&l, nodes, 4, 0));
    l.prefill = COORD_PREFILL_REMOTE;
    assert_true(coord_route_apart(&l, nodes, 4, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_load),      cmocka_unit_test(by_cost),     cmocka_unit_test(prefill_by_cost),
        cmocka_unit_test(local_tokens), cmocka_unit_test(by_turn),     cmocka_unit_test(by_prefix),
        cmocka_unit_test(two_choices),  cmocka_unit_test(names),       cmocka_unit_test(explains),
        cmocka_unit_test(apart),        cmocka_unit_test(slow_links),  cmocka_unit_test(reasons),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
