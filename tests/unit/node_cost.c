/* Tests node/cost.c: what steps and swaps teach, and the chunk that follows from it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "node/cost.h"

/* A machine: a step takes step_us and so much for each decode row, each tile of prompt rows, and for each tile and 1,000
 * positions before it. */
typedef struct machine {
    double step_us, decode_row_us, tile_us, kilo_us;
} machine;

static double tiles(int32_t rows) { return (rows + NODE_TILE_ROWS - 1) / NODE_TILE_ROWS; }

static int64_t take(const machine *m, int32_t decode, int32_t rows, int32_t position) {
    return (int64_t)(m->step_us + decode * m->decode_row_us + tiles(rows) * (m->tile_us + m->kilo_us * position / 1000));
}

/* A prompt beside `decode` rows, each chunk as long as what was measured until then says. The slowest step; *steps: how
 * many it took. */
static int64_t read_beside(node_cost *c, const machine *m, int64_t target_us, int32_t decode, int32_t prompt, int *steps) {
    int64_t slowest_us = 0;
    *steps = 0;
    for (int32_t at = 0; at < prompt; ++*steps) {
        int32_t rows = node_cost_prompt_rows(c, target_us, decode, at);
        assert_true(rows >= NODE_TILE_ROWS && rows % NODE_TILE_ROWS == 0);
        if (rows > prompt - at) rows = prompt - at;
        int64_t took_us = take(m, decode, rows, at + rows / 2);
        node_cost_step(c, decode, rows, at + rows / 2, took_us);
        if (took_us > slowest_us) slowest_us = took_us;
        at += rows;
    }
    return slowest_us;
}

static const machine machines[] = {{10000, 500, 1000, 500}, {10000, 10, 300, 400}, {3000, 50, 10, 1}, {50000, 5000, 2000, 2000}};
enum { MACHINES = sizeof machines / sizeof *machines };

/* After one prompt each machine is known: the next keeps to the target, and uses most of it. */
static void chunks_meet_the_target(void **state) {
    (void)state;
    for (int i = 0; i < MACHINES; i++)
        for (int32_t decode = 1; decode <= 64; decode *= 4) {
            const machine *m = &machines[i];
            node_cost c = {0};
            int64_t alone_us = take(m, decode, 0, 0), target_us = alone_us * 2 + (int64_t)(8 * m->tile_us);
            int steps, least = 0;
            for (int n = 0; n < 20; n++) node_cost_step(&c, decode, 0, 0, alone_us);
            for (int n = 0; n < 20; n++) read_beside(&c, m, target_us, decode, 3000, &steps);
            int64_t slowest_us = read_beside(&c, m, target_us, decode, 3000, &steps);
            /* What is exact: as many steps as a former would need that knew the machine. */
            for (int32_t at = 0; at < 3000; least++) {
                double tile_us = m->tile_us + m->kilo_us * at / 1000;
                at += (int32_t)((double)(target_us - alone_us) / tile_us) * NODE_TILE_ROWS;
            }
            print_message("  target %lld us, slowest step %lld us, %d steps (%d at best)\n", (long long)target_us,
                          (long long)slowest_us, steps, least);
            assert_true(slowest_us <= target_us + target_us * 3 / 10);
            assert_true(steps <= least + least * 3 / 10 + 2);
        }
}

static void without_a_target_by_what_decoding_takes(void **state) {
    (void)state;
    const machine m = {10000, 500, 1000, 0};
    node_cost c = {0};
    int steps;
    for (int n = 0; n < 20; n++) node_cost_step(&c, 8, 0, 0, take(&m, 8, 0, 0));   /* 14 ms */
    for (int n = 0; n < 5; n++) read_beside(&c, &m, 0, 8, 2000, &steps);
    assert_int_equal(node_cost_prompt_rows(&c, 0, 8, 0), 5 * 16);                  /* 5.6 ms, a tile takes 1 */
    assert_int_equal(node_cost_prompt_rows(&c, 50500, 8, 0), 36 * 16);
    assert_int_equal(node_cost_prompt_rows(&c, 5000, 8, 0), 16);                   /* too much asked: still a tile */
}

static void what_is_not_known_yet(void **state) {
    (void)state;
    node_cost c = {0};
    assert_int_equal(node_cost_prompt_rows(&c, 0, 4, 100), 16);
    assert_int_equal(node_cost_prompt_rows(&c, 50000, 4, 100), 16);
    assert_true(node_cost_swap_pays(&c, 100));
    node_cost_step(&c, 0, 160, 50, 100000);                /* a prompt alone, and what a step takes is not known */
    assert_int_equal(node_cost_prompt_rows(&c, 50000, 4, 100), 16);
    node_cost_step(&c, 2, 0, 0, 10000);
    assert_int_equal(node_cost_prompt_rows(&c, 50000, 4, 100), 16);
    node_cost_step(&c, 0, 160, 50, 110000);
    assert_int_equal(node_cost_prompt_rows(&c, 50000, 40, 100), 64);       /* by the nearest batch that was measured */
    assert_int_equal(node_cost_prompt_rows(&c, 50000, 1, 100000), 64);
}

/* A step that was disturbed by others for ten times as long moves the figures and does not stay. */
static void one_disturbed_step_is_forgotten(void **state) {
    (void)state;
    const machine m = {10000, 0, 1000, 0};
    node_cost c = {0};
    int steps;
    for (int n = 0; n < 20; n++) node_cost_step(&c, 1, 0, 0, 10000);
    read_beside(&c, &m, 20000, 1, 3000, &steps);
    int32_t before = node_cost_prompt_rows(&c, 20000, 1, 500);
    node_cost_step(&c, 1, 160, 580, 200000);
    assert_true(node_cost_prompt_rows(&c, 20000, 1, 500) < before);
    for (int n = 0; n < 40; n++) read_beside(&c, &m, 20000, 1, 3000, &steps);
    assert_true(node_cost_prompt_rows(&c, 20000, 1, 500) >= before - 16);
    node_cost_step(&c, 1, 100, 500, 1);                    /* faster than possible: no more rows than fit a number */
    node_cost_step(&c, 1, 0, 0, 0);
    assert_true(node_cost_prompt_rows(&c, 1LL << 60, 1, 500) > 0);
}

static void the_cheaper_preemption(void **state) {
    (void)state;
    node_cost c = {0};
    node_cost_step(&c, 1, 0, 0, 5000);
    node_cost_step(&c, 0, 160, 50, 165000);                /* a row: 1 ms */
    node_cost_swap(&c, 100, 40000);                        /* a token out, or in: 0.4 ms */
    assert_true(node_cost_swap_pays(&c, 100));
    for (int n = 0; n < 40; n++) node_cost_swap(&c, 100, 60000);
    assert_false(node_cost_swap_pays(&c, 100));
    node_cost_step(&c, 0, 160, 4000, 645000);              /* late rows cost more: the longer the answer, the sooner it pays */
    assert_false(node_cost_swap_pays(&c, 100));
    assert_true(node_cost_swap_pays(&c, 8000));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(chunks_meet_the_target), cmocka_unit_test(without_a_target_by_what_decoding_takes),
                                       cmocka_unit_test(what_is_not_known_yet), cmocka_unit_test(one_disturbed_step_is_forgotten),
                                       cmocka_unit_test(the_cheaper_preemption)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
