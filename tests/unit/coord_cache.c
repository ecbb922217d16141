/* coord_cache.c -- tests coordinator/cache.c: examples, then random changes and matches against a naive model that
 * keeps what each page of each node holds and looks at all of them. */
#include "coordinator/core_internal.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { P = 4 };

static int32_t cached[COORD_NODES_MAX];

static int32_t *match(const coord_cache *x, uint64_t salt, const int32_t *tokens, int32_t count) {
    coord_marks marks;
    memset(cached, 0, sizeof cached);
    coord_cache_mark(salt, tokens, count, P, &marks);
    coord_cache_match(x, &marks, cached);
    return cached;
}

/* Pages first .. first + pages - 1 of node hold the first pages of tokens. */
static void hold(coord_cache *x, int node, int32_t first, uint64_t salt, const int32_t *tokens, int32_t pages) {
    int32_t at[512];
    uint64_t numbers[512], number = salt;
    for (int32_t i = 0; i < pages; i++) {
        at[i] = first + i;
        numbers[i] = number = prefix_number(number, tokens + i * P, P);
    }
    coord_cache_change(x, node, at, numbers, pages);
}

static void drop(coord_cache *x, int node, int32_t page) {
    uint64_t nothing = 0;
    coord_cache_change(x, node, &page, &nothing, 1);
}

static void whole_changes_and_forgets(void **state) {
    (void)state;
    coord_cache *x = coord_cache_create();
    const int32_t prompt[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, other[] = {1, 2, 3, 4, 5, 6, 7, 9};
    hold(x, 3, 0, 7, prompt, 3);
    hold(x, 5, 40, 7, prompt, 1);
    hold(x, 9, 0, 8, prompt, 3);                             /* another tenant */
    assert_int_equal(match(x, 7, prompt, 13)[3], 12);
    assert_int_equal(cached[5], 4);
    assert_int_equal(cached[9], 0);
    assert_int_equal(match(x, 8, prompt, 11)[9], 8);         /* full pages only */
    assert_int_equal(match(x, 7, prompt, 3)[3], 0);
    assert_int_equal(match(x, 7, other, 8)[3], 4);
    assert_int_equal(match(x, 7, prompt + 4, 4)[3], 0);      /* the same tokens at another place */
    drop(x, 3, 2);
    assert_int_equal(match(x, 7, prompt, 13)[3], 8);
    drop(x, 3, 2);                                           /* once more, and one that never was */
    drop(x, 3, 100000);
    hold(x, 3, 1, 7, other, 1);                              /* page 1 now holds what page 0 does */
    assert_int_equal(match(x, 7, prompt, 13)[3], 4);
    drop(x, 3, 0);                                           /* the twin that was told late */
    assert_int_equal(match(x, 7, prompt, 13)[3], 4);
    assert_int_equal(coord_cache_pages(x, 3), 1);
    coord_cache_forget(x, 3);
    assert_int_equal(coord_cache_pages(x, 3), 0);
    assert_int_equal(match(x, 7, prompt, 13)[3], 0);
    assert_int_equal(cached[5], 4);
    coord_cache_destroy(x);
}

static void pages_out_of_range_are_nothing(void **state) {
    (void)state;
    coord_cache *x = coord_cache_create();
    const int32_t at[] = {-1, COORD_CACHE_PAGES_MAX, INT32_MAX, INT32_MIN};
    const uint64_t numbers[] = {1, 2, 3, 4};
    int64_t live = mem_live();
    coord_cache_change(x, 0, at, numbers, 4);
    assert_int_equal(coord_cache_pages(x, 0), 0);
    assert_int_equal(mem_live(), live);
    coord_cache_destroy(x);
}

/* Of a prompt of more pages than it looks at, the depth is known to one part in 128, and never too much. */
static void long_prompts_are_looked_at_in_places(void **state) {
    (void)state;
    enum { PAGES = 3000 };
    static int32_t prompt[PAGES * P];
    coord_cache *x = coord_cache_create();
    for (int i = 0; i < PAGES * P; i++) prompt[i] = i * 7;
    for (int node = 0; node < 1000; node++) {
        int32_t depth = node * 3, at[PAGES];
        uint64_t numbers[PAGES], number = 0;
        for (int32_t i = 0; i < depth; i++) at[i] = i, numbers[i] = number = prefix_number(number, prompt + i * P, P);
        coord_cache_change(x, node, at, numbers, depth);
    }
    hold(x, 1001, 0, 0, prompt, 500);
    match(x, 0, prompt, PAGES * P);
    for (int node = 0; node < 1000; node++) {
        int32_t most = node * 3 * P, step = (PAGES + 127) / 128 * P;
        assert_in_range(cached[node], most > step ? most - step + 1 : 0, most);
    }
    for (int node = 0; node < 1000; node++) coord_cache_forget(x, node);
    match(x, 0, prompt, PAGES * P);
    for (int node = 0; node < 1000; node++) assert_int_equal(cached[node], 0);
    assert_in_range(cached[1001], 476 * P, 500 * P);
    coord_cache_destroy(x);
}

/* ---- random ------------------------------------------------------------------------------------------------ */

enum { NODES = 12, NODE_PAGES = 24, CHAINS = 30, DEPTH = 6, OPS = 60000 };

static uint64_t dice;
static int roll(int sides) { return (int)(mix64(dice += 0x9E3779B97F4A7C15u) % (uint64_t)sides); }     /* splitmix64 */

static uint64_t naive[NODES][NODE_PAGES];

static bool naive_holds(int node, uint64_t number) {
    for (int i = 0; i < NODE_PAGES; i++)
        if (naive[node][i] == number) return true;
    return false;
}

static void change_some(coord_cache *x, const uint64_t numbers[CHAINS][DEPTH]) {
    int node = roll(NODES), count = 1 + roll(5);
    int32_t at[5];
    uint64_t to[5];
    for (int i = 0; i < count; i++) {
        uint64_t number = roll(3) ? numbers[roll(CHAINS)][roll(DEPTH)] : 0;
        at[i] = roll(NODE_PAGES);
        for (int k = 0; k < i; k++)
            if (at[k] == at[i]) number = to[k];
        for (int k = 0; k < NODE_PAGES; k++)                 /* a prefix is held once, as in a node's index */
            if (number && naive[node][k] == number && k != at[i]) number = 0;
        to[i] = number;
        naive[node][at[i]] = number;
    }
    coord_cache_change(x, node, at, to, count);
    if (roll(500) == 0) {
        coord_cache_forget(x, node);
        memset(naive[node], 0, sizeof naive[node]);
    }
}

static void agrees_with_a_naive_view(void **state) {
    (void)state;
    static int32_t tokens[CHAINS][DEPTH * P];
    static uint64_t numbers[CHAINS][DEPTH];
    coord_cache *x = coord_cache_create();
    for (int c = 0; c < CHAINS; c++) {
        int shared = c ? roll(DEPTH) * P : 0;
        for (int i = 0; i < DEPTH * P; i++) tokens[c][i] = i < shared ? tokens[c / 2][i] : roll(1000);
        for (int d = 0; d < DEPTH; d++) numbers[c][d] = prefix_number(d ? numbers[c][d - 1] : 1, tokens[c] + d * P, P);
    }
    for (int op = 0; op < OPS; op++) {
        change_some(x, (const uint64_t (*)[DEPTH])numbers);
        int c = roll(CHAINS);
        match(x, 1, tokens[c], DEPTH * P);
        for (int node = 0; node < NODES; node++) {
            int depth = 0;
            while (depth < DEPTH && naive_holds(node, numbers[c][depth])) depth++;
            assert_int_equal(cached[node], depth * P);
        }
    }
    for (int node = 0; node < NODES; node++) {
        int held = 0;
        for (int i = 0; i < NODE_PAGES; i++) held += naive[node][i] != 0;
        assert_int_equal(coord_cache_pages(x, node), held);
    }
    coord_cache_destroy(x);
}

/* Whichever allocation fails, a change is not known of, and nothing else is wrong. */
static void no_memory(void **state) {
    (void)state;
    const int32_t prompt[] = {1, 2, 3, 4, 5, 6, 7, 8};
    int64_t live = mem_live();
    for (int64_t nth = 1; nth < 12; nth++) {
        coord_cache *x = coord_cache_create();
        mem_fail_at(nth);
        for (int node = 0; node < 9; node++) hold(x, node, 0, 0, prompt, 2);
        mem_fail_at(0);
        for (int node = 0; node < 9; node++) hold(x, node, 0, 0, prompt, 2);
        match(x, 0, prompt, 8);
        for (int node = 0; node < 9; node++) assert_int_equal(cached[node], 8);
        for (int node = 0; node < 9; node++) coord_cache_forget(x, node);
        match(x, 0, prompt, 8);
        for (int node = 0; node < 9; node++) assert_int_equal(cached[node], 0);
        coord_cache_destroy(x);
    }
    assert_int_equal(mem_live(), live);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_changes_and_forgets),        cmocka_unit_test(pages_out_of_range_are_nothing),
        cmocka_unit_test(long_prompts_are_looked_at_in_places), cmocka_unit_test(agrees_with_a_naive_view),
        cmocka_unit_test(no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
