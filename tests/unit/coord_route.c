/* coord_route.c -- tests coordinator/route.c: a table of clusters, and who is chosen. */
#include "coordinator/core_internal.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* One node in a few letters. */
typedef struct n {
    char role;                   /* D, P; small: dead */
    int placed, capacity;        /* of P: tokens outstanding */
    int avoid_ms, busy_ms;
    bool draining;
} n;

typedef struct row {
    const char *what;
    n nodes[4];
    int prefer;
    unsigned turn;
    int decode, prefill;         /* expected at time 100 */
} row;

#define D(placed_, capacity_, ...) {.role = 'D', .placed = placed_, .capacity = capacity_, __VA_ARGS__}
#define P(tokens_, ...) {.role = 'P', .placed = tokens_, __VA_ARGS__}
#define DEAD_D(placed_, capacity_) {.role = 'd', .placed = placed_, .capacity = capacity_}
#define DEAD_P(tokens_) {.role = 'p', .placed = tokens_}

static const row rows[] = {
    {"nobody", {{.role = 0}}, -1, 0, -1, -1},
    {"one of each", {D(0, 4), P(0)}, -1, 0, 0, 1},
    {"dead ones are nobody", {DEAD_D(0, 4), DEAD_P(0)}, -1, 0, -1, -1},
    {"draining ones get nothing new", {D(0, 4, .draining = true), P(0, .draining = true)}, -1, 0, -1, -1},
    {"least loaded", {D(3, 4), D(1, 4), P(90), P(20)}, -1, 0, 1, 3},
    {"load is a share of capacity", {D(3, 4), D(6, 16)}, -1, 0, 1, -1},
    {"full by our own count", {D(4, 4), D(4, 4)}, -1, 0, -1, -1},
    {"no capacity", {D(0, 0)}, -1, 0, -1, -1},
    {"said it is full", {D(0, 4, .busy_ms = 101), P(0, .busy_ms = 101)}, -1, 0, -1, -1},
    {"no longer full", {D(0, 4, .busy_ms = 100), P(0, .busy_ms = 100)}, -1, 0, 0, 1},
    {"avoided while others are there", {D(0, 4, .avoid_ms = 101), D(3, 4)}, -1, 0, 1, -1},
    {"others are there, though full", {D(0, 4, .avoid_ms = 101), D(4, 4)}, -1, 0, -1, -1},
    {"avoided but alone", {D(0, 4, .avoid_ms = 101), P(0, .avoid_ms = 101)}, -1, 0, 0, -1},
    {"the cache is worth a detour", {D(0, 4), D(2, 4)}, 1, 0, 1, -1},
    {"but not to a crowded node", {D(0, 4), D(3, 4)}, 1, 0, 0, -1},
    {"nor to one that is gone", {D(0, 4), DEAD_D(0, 4)}, 1, 0, 0, -1},
    {"nor to one that failed", {D(3, 4), D(0, 4, .avoid_ms = 101)}, 1, 0, 0, -1},
    {"a number out of range is no preference", {D(0, 4)}, 77, 0, 0, -1},
    {"ties rotate 0", {D(1, 4), D(1, 4), P(5), P(5)}, -1, 0, 0, 2},
    {"ties rotate 1", {D(1, 4), D(1, 4), P(5), P(5)}, -1, 1, 1, 2},
    {"ties rotate 3", {D(1, 4), D(1, 4), P(5), P(5)}, -1, 3, 0, 3},
    {"huge figures do not overflow", {D(INT32_MAX - 1, INT32_MAX), D(1, INT32_MAX)}, -1, 0, 1, -1},
};

static void chooses(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        coord_entry nodes[4];
        memset(nodes, 0, sizeof nodes);
        for (int k = 0; k < 4; k++) {
            const n *from = &rows[i].nodes[k];
            nodes[k] = (coord_entry){.known = from->role, .alive = from->role == 'D' || from->role == 'P',
                                     .placed = from->placed, .prefilling = from->placed,
                                     .avoid_ms = from->avoid_ms, .busy_ms = from->busy_ms};
            nodes[k].state.role = from->role == 'D' || from->role == 'd' ? COORD_DECODE : COORD_PREFILL;
            nodes[k].state.capacity = from->capacity;
            nodes[k].state.draining = from->draining;
        }
        int decode = coord_route_decode(nodes, 4, rows[i].prefer, rows[i].turn, 100);
        int prefill = coord_route_prefill(nodes, 4, rows[i].turn, 100);
        if (decode != rows[i].decode || prefill != rows[i].prefill)
            fail_msg("%s: got %d and %d, expected %d and %d", rows[i].what, decode, prefill, rows[i].decode,
                     rows[i].prefill);
    }
    assert_int_equal(coord_route_decode(NULL, 0, -1, 0, 0), -1);
    assert_int_equal(coord_route_prefill(NULL, 0, 5, 0), -1);
}

static void local_tokens(void **state) {
    (void)state;
    coord_limits l = {.local_tokens_max = 32};
    assert_int_equal(coord_route_local_tokens(&l, 0), 32);
    assert_int_equal(coord_route_local_tokens(&l, -1), INT32_MAX);
    l.prefill = COORD_PREFILL_LOCAL;
    assert_int_equal(coord_route_local_tokens(&l, 0), INT32_MAX);
    l.prefill = COORD_PREFILL_REMOTE;
    assert_int_equal(coord_route_local_tokens(&l, 0), 0);
    assert_int_equal(coord_route_local_tokens(&l, -1), INT32_MAX);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(chooses), cmocka_unit_test(local_tokens),
                                       cmocka_unit_test(apart)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
