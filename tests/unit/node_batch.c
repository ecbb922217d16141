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

static const row table[] = {
    {"nothing wanted", {64, 16, 8}, 0, {{0}}, {{0}}},
    {"one decode row", {64, 16, 8}, 1, {{1, 0}}, {{1, 1}}},
    {"a whole prompt", {64, 16, 8}, 1, {{12, 0}}, {{12, 1}}},
    {"first chunk", {64, 16, 8}, 1, {{40, 0}}, {{16, 0}}},
    {"decode before an older prompt", {8, 16, 8}, 2, {{40, 0}, {1, 0}}, {{7, 0}, {1, 1}}},
    {"prompts by age", {24, 16, 8}, 3, {{20, 0}, {30, 0}, {30, 0}}, {{16, 0}, {8, 0}, {0, 0}}},
    {"short prompts fill up", {24, 16, 8}, 3, {{5, 0}, {6, 0}, {30, 0}}, {{5, 1}, {6, 1}, {13, 0}}},
    {"longest waiting go first", {2, 16, 8}, 4, {{1, 9}, {1, 7}, {1, 8}, {1, 7}},
     {{0, 0}, {1, 1}, {0, 0}, {1, 1}}},
    {"ties by age", {2, 16, 8}, 3, {{1, 3}, {1, 3}, {1, 3}}, {{1, 1}, {1, 1}, {0, 0}}},
    {"decoders leave half to a prompt", {4, 16, 8}, 5, {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {9, 0}},
     {{1, 1}, {1, 1}, {0, 0}, {0, 0}, {2, 0}}},
    {"or one chunk", {8, 2, 8}, 5, {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {9, 0}},
     {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {2, 0}}},
    {"logits bound decoders", {64, 16, 2}, 3, {{1, 1}, {1, 2}, {1, 3}}, {{1, 1}, {1, 1}, {0, 0}}},
    {"a prompt stops short without logits", {64, 16, 1}, 2, {{1, 1}, {5, 2}}, {{1, 1}, {4, 0}}},
    {"logits go to the older prompt", {64, 16, 1}, 2, {{5, 1}, {5, 2}}, {{5, 1}, {4, 0}}},
    {"one row a step", {1, 16, 1}, 2, {{5, 1}, {1, 2}}, {{0, 0}, {1, 1}}},
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
        for (int i = 0; i < count; i++) wants[i] = (node_want){(int32_t)(seed >> (i % 32) & 3) * 5 + 1, 0};
        for (int step = 1; step <= 400; step++) {
            int32_t rows = 0, logits = 0;
            int32_t said = node_batch_form(&b, wants, count, shares);
            for (int i = 0; i < count; i++) {
                assert_true(shares[i].rows <= wants[i].rows && shares[i].logits <= shares[i].rows);
                assert_true(shares[i].rows <= b.chunk_tokens || shares[i].rows == 1);
                assert_int_equal(shares[i].logits, shares[i].rows && shares[i].rows == wants[i].rows);
                rows += shares[i].rows;
                logits += shares[i].logits;
                given[i] += shares[i].rows;
                if (shares[i].rows) wants[i].last_step = step;
                wants[i].rows -= shares[i].rows;
                if (wants[i].rows == 0) wants[i].rows = 1; /* the next token */
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
