/* Tests node/batch.c: the batch formers as tables. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "node/batch.h"

typedef int32_t former(const node_budget *b, const node_want *wants, int32_t count, node_share *shares);

typedef struct row {
    const char *what;
    node_budget budget;          /* step_tokens_max, chunk_tokens, logits_max, prefill_tokens */
    int count;
    node_want wants[10];
    node_share shares[10];
} row;

/* Wants: a decode entry with k proposed rows after its own, a prompt's rows. */
#define D(k, last) {1 + (k), 1 + (k), true, last, 0}
#define C(rows, last) {rows, 1, false, last, 0}
#define S(rows, last) {rows, rows, false, last, 0}         /* with the logits of all */
#define ON(level, last) {1, 1, true, last, level}

static const row decode_first[] = {
    {"nothing wanted", {64, 16, 8, 64}, 0, {{0}}, {{0}}},
    {"one decode row", {64, 16, 8, 64}, 1, {D(0, 0)}, {{1, 1}}},
    {"a whole prompt", {64, 16, 8, 64}, 1, {C(12, 0)}, {{12, 1}}},
    {"first chunk", {64, 16, 8, 64}, 1, {C(40, 0)}, {{16, 0}}},
    {"alone it takes the step", {64, 64, 8, 64}, 1, {C(100, 0)}, {{64, 0}}},
    {"decode before an older prompt", {8, 16, 8, 64}, 2, {C(40, 0), D(0, 0)}, {{7, 0}, {1, 1}}},
    {"prompts in order", {200, 99, 8, 999}, 3, {C(120, 0), C(130, 0), C(130, 0)}, {{99, 0}, {51, 0}, {50, 0}}},
    {"a tile each", {40, 99, 8, 999}, 3, {C(120, 0), C(130, 0), C(130, 0)}, {{16, 0}, {16, 0}, {8, 0}}},
    {"short prompts fill up", {24, 16, 8, 64}, 3, {C(5, 0), C(6, 0), C(30, 0)}, {{5, 1}, {6, 1}, {13, 0}}},
    {"a short prompt does not wait for a long one", {64, 64, 8, 64}, 2, {C(900, 0), C(16, 0)}, {{48, 0}, {16, 1}}},
    {"longest waiting go first", {2, 16, 8, 64}, 4, {D(0, 9), D(0, 7), D(0, 8), D(0, 7)},
     {{0, 0}, {1, 1}, {0, 0}, {1, 1}}},
    {"ties in order", {2, 16, 8, 64}, 3, {D(0, 3), D(0, 3), D(0, 3)}, {{1, 1}, {1, 1}, {0, 0}}},
    {"lower levels go first", {2, 16, 8, 64}, 4, {ON(1, 0), ON(0, 9), ON(2, 0), ON(0, 8)}, {{0, 0}, {1, 1}, {0, 0}, {1, 1}}},
    {"then the longest waiting", {2, 16, 8, 64}, 3, {ON(1, 9), ON(0, 9), ON(1, 8)}, {{0, 0}, {1, 1}, {1, 1}}},
    {"decoders leave half to a prompt", {4, 16, 8, 64}, 5, {D(0, 1), D(0, 2), D(0, 3), D(0, 4), C(9, 0)},
     {{1, 1}, {1, 1}, {0, 0}, {0, 0}, {2, 0}}},
    {"or one chunk", {8, 2, 8, 64}, 5, {D(0, 1), D(0, 2), D(0, 3), D(0, 4), C(9, 0)},
     {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {2, 0}}},
    {"or what the target leaves", {8, 64, 8, 1}, 9,
     {D(0, 1), D(0, 2), D(0, 3), D(0, 4), D(0, 5), D(0, 6), D(0, 7), D(0, 8), C(9, 0)},
     {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 0}}},
    {"the target cuts a chunk", {64, 64, 8, 5}, 2, {D(0, 0), C(40, 0)}, {{1, 1}, {5, 0}}},
    {"the target is for all prompts together", {64, 64, 8, 8}, 3, {D(0, 0), C(40, 0), C(2, 0)}, {{1, 1}, {8, 0}, {0, 0}}},
    {"of which a short one has its part", {64, 64, 8, 32}, 3, {D(0, 0), C(40, 0), C(2, 0)}, {{1, 1}, {30, 0}, {2, 1}}},
    {"nobody decodes, nothing is cut", {64, 64, 8, 5}, 1, {C(40, 0)}, {{40, 1}}},
    {"logits bound decoders", {64, 16, 2, 64}, 3, {D(0, 1), D(0, 2), D(0, 3)}, {{1, 1}, {1, 1}, {0, 0}}},
    {"a prompt stops short without logits", {64, 16, 1, 64}, 2, {D(0, 1), C(5, 2)}, {{1, 1}, {4, 0}}},
    {"logits go to the older prompt", {64, 16, 1, 64}, 2, {C(5, 1), C(5, 2)}, {{5, 1}, {4, 0}}},
    {"one row a step", {1, 16, 1, 64}, 2, {C(5, 1), D(0, 2)}, {{0, 0}, {1, 1}}},
    {"proposed rows", {64, 16, 8, 64}, 2, {D(3, 0), D(0, 0)}, {{4, 4}, {1, 1}}},
    {"one row each, then proposed ones in order", {6, 16, 8, 64}, 3, {D(3, 5), D(2, 0), D(0, 0)}, {{4, 4}, {1, 1}, {1, 1}}},
    {"logits bound proposed rows", {64, 16, 5, 64}, 2, {D(3, 0), D(3, 0)}, {{4, 4}, {1, 1}}},
    {"which leave a prompt its logits", {64, 16, 5, 64}, 2, {D(7, 0), C(9, 0)}, {{4, 4}, {9, 1}}},
    {"and a chunk", {8, 4, 8, 64}, 2, {D(7, 0), C(9, 0)}, {{4, 4}, {4, 0}}},
    {"logits of every row", {64, 16, 8, 64}, 1, {S(40, 0)}, {{8, 8}}},
    {"of a prompt's last rows", {64, 16, 8, 64}, 1, {S(5, 0)}, {{5, 5}}},
    {"decoders leave it those of one", {64, 16, 4, 64}, 5, {D(0, 1), D(0, 2), D(0, 3), D(0, 4), S(9, 0)},
     {{1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}}},
    {"who wants one is left none", {64, 16, 8, 64}, 2, {S(9, 0), C(5, 0)}, {{8, 8}, {4, 0}}},
    {"or is in front", {64, 16, 8, 64}, 2, {C(5, 0), S(9, 0)}, {{5, 1}, {7, 7}}},
    {"no room for a row, none for its proposals", {2, 16, 8, 64}, 3, {D(4, 3), D(4, 1), D(4, 2)}, {{0, 0}, {1, 1}, {1, 1}}},
};

static const row in_order[] = {
    {"nothing wanted", {64, 16, 8, 64}, 0, {{0}}, {{0}}},
    {"a long prompt holds up who is behind it", {16, 64, 8, 64}, 3, {D(0, 9), C(40, 0), D(0, 0)}, {{1, 1}, {15, 0}, {0, 0}}},
    {"who is in front has all it wants", {16, 64, 8, 64}, 2, {C(10, 0), D(7, 0)}, {{10, 1}, {6, 6}}},
    {"logits", {64, 64, 2, 64}, 3, {D(0, 0), D(3, 0), C(5, 0)}, {{1, 1}, {1, 1}, {4, 0}}},
    {"a chunk", {64, 4, 8, 64}, 2, {C(40, 0), C(40, 0)}, {{4, 0}, {4, 0}}},
    {"logits of every row", {64, 64, 4, 64}, 3, {D(0, 0), S(9, 0), C(5, 0)}, {{1, 1}, {3, 3}, {4, 0}}},
    {"no target", {64, 64, 8, 1}, 2, {D(0, 0), C(40, 0)}, {{1, 1}, {40, 1}}},
};

static void check_table(former *form, const row *table, size_t rows_count) {
    for (size_t i = 0; i < rows_count; i++) {
        node_share got[10];
        int32_t rows = 0;
        for (int j = 0; j < table[i].count; j++) rows += table[i].shares[j].rows;
        print_message("  %s\n", table[i].what);
        assert_int_equal(form(&table[i].budget, table[i].wants, table[i].count, got), rows);
        for (int j = 0; j < table[i].count; j++) {
            assert_int_equal(got[j].rows, table[i].shares[j].rows);
            assert_int_equal(got[j].logits, table[i].shares[j].logits);
        }
    }
}

static void decode_first_as_the_table_says(void **state) {
    (void)state;
    check_table(node_batch_decode_first, decode_first, sizeof decode_first / sizeof *decode_first);
}

static void in_order_as_the_table_says(void **state) {
    (void)state;
    check_table(node_batch_in_order, in_order, sizeof in_order / sizeof *in_order);
}

/* A sequence that has so many rows to go, and so many proposed ones when it decodes. */
static node_want wanted(int32_t rows, int32_t proposed, bool all, int64_t last_step) {
    return rows > 1 && all ? (node_want)S(rows, last_step) : rows > 1 ? (node_want)C(rows, last_step) : (node_want)D(proposed, last_step);
}

static void check_share(const node_budget *b, const node_want *w, const node_share *s) {
    assert_true(s->rows <= w->rows);
    if (w->logits == w->rows) {
        assert_int_equal(s->logits, s->rows);
        assert_true(w->decode || s->rows <= b->chunk_tokens);
    } else {
        assert_true(s->rows <= b->chunk_tokens);
        assert_int_equal(s->logits, s->rows && s->rows == w->rows);
    }
}

/* The whole of a step within every bound. Returns rows. */
static int32_t check_step(former *form, const node_budget *b, const node_want *wants, int count, node_share *shares) {
    int32_t rows = 0, logits = 0, prompts = 0, decoding = 0, said = form(b, wants, count, shares);
    for (int i = 0; i < count; i++) {
        check_share(b, &wants[i], &shares[i]);
        rows += shares[i].rows;
        logits += shares[i].logits;
        decoding += wants[i].decode;
        if (!wants[i].decode) prompts += shares[i].rows;
    }
    assert_int_equal(rows, said);
    assert_true(rows > 0 && rows <= b->step_tokens_max && logits <= b->logits_max);
    assert_true(!decoding || prompts <= b->prefill_tokens || form == node_batch_in_order);
    return rows;
}

/* Whatever is wanted: within the budget, and in decode-first nothing starves; in order the first gets on. */
static void budgets_hold_and_every_one_comes_round(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int round = 0; round < 4000; round++) {
        former *form = round % 2 ? node_batch_in_order : node_batch_decode_first;
        node_want wants[40];
        node_share shares[40];
        int32_t given[40] = {0};
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        node_budget b = {(int32_t)(seed >> 60) + 2, (int32_t)(seed >> 56 & 7) + 1, (int32_t)(seed >> 52 & 7) + 2,
                         (int32_t)(seed >> 49 & 7) + 1};
        int count = (int)(seed >> 40 & 31) + 1;
        for (int i = 0; i < count; i++) wants[i] = wanted((int32_t)(seed >> (i % 32) & 3) * 5 + 1, i % 4, i % 5 == 3, 0);
        for (int step = 1; step <= 400; step++) {
            check_step(form, &b, wants, count, shares);
            for (int i = 0; i < count; i++) {
                given[i] += shares[i].rows;
                int64_t last_step = shares[i].rows ? step : wants[i].last_step;
                wants[i] = wanted(wants[i].decode ? 1 : wants[i].rows - shares[i].rows, i % 4, i % 5 == 3, last_step);
            }
        }
        for (int i = 0; i < count; i++) assert_true(given[i] > 0 || (i > 0 && form == node_batch_in_order));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(decode_first_as_the_table_says),
                                       cmocka_unit_test(in_order_as_the_table_says),
                                       cmocka_unit_test(budgets_hold_and_every_one_comes_round)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
