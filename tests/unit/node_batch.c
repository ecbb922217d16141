/* Tests node/batch.c: the batch former as a table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "node/batch.h"

typedef struct row {
    const char *what;
    node_budget budget;          /* step_tokens_max, chunk_tokens, logits_max */
    int count;
    node_want wants[6];
    node_share shares[6];
} row;

/* Wants: a decode entry with k proposed rows after its own, a prompt's rows. */
#define D(k, last) {1 + (k), 1 + (k), true, last}
#define C(rows, last) {rows, 1, false, last}

static const row table[] = {
    {"nothing wanted", {64, 16, 8}, 0, {{0}}, {{0}}},
    {"one decode row", {64, 16, 8}, 1, {D(0, 0)}, {{1, 1}}},
    {"a whole prompt", {64, 16, 8}, 1, {C(12, 0)}, {{12, 1}}},
    {"first chunk", {64, 16, 8}, 1, {C(40, 0)}, {{16, 0}}},
    {"decode before an older prompt", {8, 16, 8}, 2, {C(40, 0), D(0, 0)}, {{7, 0}, {1, 1}}},
    {"prompts by age", {24, 16, 8}, 3, {C(20, 0), C(30, 0), C(30, 0)}, {{16, 0}, {8, 0}, {0, 0}}},
    {"short prompts fill up", {24, 16, 8}, 3, {C(5, 0), C(6, 0), C(30, 0)}, {{5, 1}, {6, 1}, {13, 0}}},
    {"longest waiting go first", {2, 16, 8}, 4, {D(0, 9), D(0, 7), D(0, 8), D(0, 7)},
     {{0, 0}, {1, 1}, {0, 0}, {1, 1}}},
    {"ties by age", {2, 16, 8}, 3, {D(0, 3), D(0, 3), D(0, 3)}, {{1, 1}, {1, 1}, {0, 0}}},
    {"decoders leave half to a prompt", {4, 16, 8}, 5, {D(0, 1), D(0, 2), D(0, 3), D(0, 4), C(9, 0)},
     {{1, 1}, {1, 1}, {0, 0}, {0, 0}, {2, 0}}},
    {"or one chunk", {8, 2, 8}, 5, {D(0, 1), D(0, 2), D(0, 3), D(0, 4), C(9, 0)},
     {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {2, 0}}},
    {"logits bound decoders", {64, 16, 2}, 3, {D(0, 1), D(0, 2), D(0, 3)}, {{1, 1}, {1, 1}, {0, 0}}},
    {"a prompt stops short without logits", {64, 16, 1}, 2, {D(0, 1), C(5, 2)}, {{1, 1}, {4, 0}}},
    {"logits go to the older prompt", {64, 16, 1}, 2, {C(5, 1), C(5, 2)}, {{5, 1}, {4, 0}}},
    {"one row a step", {1, 16, 1}, 2, {C(5, 1), D(0, 2)}, {{0, 0}, {1, 1}}},
    {"proposed rows", {64, 16, 8}, 2, {D(3, 0), D(0, 0)}, {{4, 4}, {1, 1}}},
    {"one row each, then proposed ones by age", {6, 16, 8}, 3, {D(3, 5), D(2, 0), D(0, 0)}, {{4, 4}, {1, 1}, {1, 1}}},
    {"logits bound proposed rows", {64, 16, 5}, 2, {D(3, 0), D(3, 0)}, {{4, 4}, {1, 1}}},
    {"which leave a prompt its logits", {64, 16, 5}, 2, {D(7, 0), C(9, 0)}, {{4, 4}, {9, 1}}},
    {"and a chunk", {8, 4, 8}, 2, {D(7, 0), C(9, 0)}, {{4, 4}, {4, 0}}},
    {"no room for a row, none for its proposals", {2, 16, 8}, 3, {D(4, 3), D(4, 1), D(4, 2)}, {{0, 0}, {1, 1}, {1, 1}}},
};

static void shares_as_the_table_says(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        node_share got[6];
        int32_t rows = 0;
        for (int j = 0; j < table[i].count; j++) rows += table[i].shares[j].rows;
        print_message("  %s\n", table[i].what);
        assert_int_equal(node_batch_form(&table[i].budget, table[i].wants, table[i].count, got), rows);
        for (int j = 0; j < table[i].count; j++) {
            assert_int_equal(got[j].rows, table[i].shares[j].rows);
            assert_int_equal(got[j].logits, table[i].shares[j].logits);
        }
    }
}

/* A sequence that has so many rows to go, and so many proposed ones when it decodes. */
static node_want wanted(int32_t rows, int32_t proposed, int64_t last_step) {
    return rows > 1 ? (node_want)C(rows, last_step) : (node_want)D(proposed, last_step);
}

static void check_share(const node_budget *b, const node_want *w, const node_share *s) {
    assert_true(s->rows <= w->rows);
    if (w->decode) {
        assert_int_equal(s->logits, s->rows);
    } else {
        assert_true(s->rows <= b->chunk_tokens);
        assert_int_equal(s->logits, s->rows && s->rows == w->rows);
    }
}

/* Whatever is wanted: within the budget, nothing starves. */
static void every_one_comes_round(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int round = 0; round < 2000; round++) {
        node_want wants[40];
        node_share shares[40];
        int32_t given[40] = {0};
        int count = 0;
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        node_budget b = {(int32_t)(seed >> 60) + 2, (int32_t)(seed >> 56 & 7) + 1, (int32_t)(seed >> 52 & 7) + 1};
        count = (int)(seed >> 40 & 31) + 1;
        for (int i = 0; i < count; i++) wants[i] = wanted((int32_t)(seed >> (i % 32) & 3) * 5 + 1, i % 4, 0);
        for (int step = 1; step <= 400; step++) {
            int32_t rows = 0, logits = 0;
            int32_t said = node_batch_form(&b, wants, count, shares);
            for (int i = 0; i < count; i++) {
                check_share(&b, &wants[i], &shares[i]);
                rows += shares[i].rows;
                logits += shares[i].logits;
                given[i] += shares[i].rows;
                int64_t last_step = shares[i].rows ? step : wants[i].last_step;
                wants[i] = wanted(wants[i].decode ? 1 : wants[i].rows - shares[i].rows, i % 4, last_step);
            }
            assert_int_equal(rows, said);
            assert_true(rows > 0 && rows <= b.step_tokens_max && logits <= b.logits_max);
        }
        for (int i = 0; i < count; i++) assert_true(given[i] > 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(shares_as_the_table_says),
                                       cmocka_unit_test(every_one_comes_round)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
