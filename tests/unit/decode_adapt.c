/* Tests decode-node/adapt.c: curves, odds, and the decision as a table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include "decode-node/adapt.h"

static void assert_near(double got, double want, double share) {
    if (fabs(got - want) > share * fabs(want)) fail_msg("%g, expected %g", got, want);
}

static void curve_is_measured_between_or_guessed(void **state) {
    (void)state;
    decode_curve c = {0};
    assert_true(decode_curve_at(&c, 3) == 0);
    decode_curve_add(&c, 4, 1000);
    assert_near(decode_curve_at(&c, 4), 1000, 0);
    assert_true(decode_curve_at(&c, 8) > 1000 && decode_curve_at(&c, 8) < 1500);
    assert_true(decode_curve_at(&c, 1) < 1000 && decode_curve_at(&c, 1) > 700);
    decode_curve_add(&c, 8, 1400);
    assert_near(decode_curve_at(&c, 6), 1200, 1e-9);
    decode_curve_add(&c, 200, 9000);                       /* counts as the most there is */
    assert_true(decode_curve_at(&c, DECODE_ROWS_MAX) > 4000 && decode_curve_at(&c, 500) == decode_curve_at(&c, DECODE_ROWS_MAX));
    decode_curve_add(&c, 0, 5);
    decode_curve_add(&c, 4, 0);                            /* no time was measured */
    assert_near(decode_curve_at(&c, 4), 1000, 0);
}

/* One step in three takes five times as long because of others: what it takes alone is still found. */
static void curve_stands_noise_and_follows(void **state) {
    (void)state;
    decode_curve c = {0};
    for (int i = 0; i < 200; i++) decode_curve_add(&c, 2, i % 3 ? 1000 : 5000);
    assert_true(decode_curve_at(&c, 2) < 1400);
    for (int i = 0; i < 200; i++) decode_curve_add(&c, 2, 3000);
    assert_near(decode_curve_at(&c, 2), 3000, 0.01);
    for (int i = 0; i < 20; i++) decode_curve_add(&c, 2, 1000);
    assert_near(decode_curve_at(&c, 2), 1000, 0.01);
    decode_curve first = {0};
    decode_curve_add(&first, 1, 1000);
    decode_curve_add(&first, 3, 100000);                   /* an accident the first time must not decide for ever */
    assert_true(decode_curve_at(&first, 3) < 4000);
}

static void odds_follow_what_is_accepted(void **state) {
    (void)state;
    decode_odds o;
    decode_odds_begin(&o, 0.5);
    assert_near(decode_odds_of(&o), 0.5, 1e-9);
    for (int i = 0; i < 20; i++) decode_odds_add(&o, 4, 4);
    assert_true(decode_odds_of(&o) > 0.95);
    for (int i = 0; i < 30; i++) decode_odds_add(&o, 4, 0);
    assert_true(decode_odds_of(&o) < 0.2);
    for (int i = 0; i < 100; i++) decode_odds_add(&o, 4, 3);       /* three of the four that were tried */
    assert_near(decode_odds_of(&o), 0.75, 0.01);
}

/* A target that takes `row` more of its time for each row, a draft that takes `draft` of a step. */
typedef struct machine { double row, draft; } machine;

static void fill(decode_curve *c, double first, double row) {
    for (int32_t i = 1; i <= DECODE_ROWS_MAX; i++) decode_curve_add(c, i, (int64_t)(first * (1 + row * (i - 1))));
}

typedef struct row {
    const char *what;
    machine m;
    double odds;
    int32_t decoding, most, behind, remaining, plain;
    int32_t least, greatest;     /* the length */
} row;

static const row table[] = {
    {"rows for nothing: all of them", {0.001, 0}, 0.9, 1, 15, 0, 999, 0, 15, 15},
    {"no more than there is room for", {0.001, 0}, 0.9, 1, 3, 0, 999, 0, 3, 3},
    {"no room", {0.001, 0}, 0.9, 1, 0, 0, 999, 999, 0, 0},
    {"rows as dear as steps: none", {1, 0}, 0.9, 1, 15, 0, 999, 0, 0, 0},
    {"a row for a tenth of a step", {0.1, 0}, 0.8, 1, 15, 0, 999, 0, 3, 9},
    {"poor odds: short", {0.1, 0}, 0.4, 1, 15, 0, 999, 0, 1, 2},
    {"poorer ones: none", {0.1, 0}, 0.1, 1, 15, 0, 999, 0, 0, 0},
    {"a crowd fills the step itself: none", {0.5, 0}, 0.6, 16, 15, 0, 999, 0, 0, 0},
    {"a draft at a fifth of a step", {0.06, 0.2}, 0.9, 1, 15, 0, 999, 0, 3, 7},
    {"a draft as dear as the target", {0.06, 1}, 0.99, 1, 15, 0, 999, 0, 0, 0},
    {"the prompt to read for a long answer", {0.06, 0.2}, 0.9, 1, 15, 256, 999, 0, 3, 7},
    {"but not for a short one", {0.06, 0.2}, 0.9, 1, 15, 256, 4, 0, 0, 0},
    {"a probe when it was long ago", {0.1, 0}, 0.01, 1, 15, 0, 999, 50, 2, 2},
    {"not sooner", {0.1, 0}, 0.01, 1, 15, 0, 999, 10, 0, 0},
    {"later where rows are dear", {1, 0}, 0.01, 1, 15, 0, 999, 50, 0, 0},
    {"much later where a draft has to read", {0.1, 0.2}, 0.01, 1, 15, 50, 999, 50, 0, 0},
};

static void length_as_the_table_says(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const row *r = &table[i];
        decode_curve step = {0}, draft = {0};
        fill(&step, 10000, r->m.row);
        fill(&draft, 10000 * r->m.draft, r->m.row);
        decode_outlook o = {.step = &step, .draft = r->m.draft > 0 ? &draft : NULL, .read = r->m.draft > 0 ? &draft : NULL,
                            .odds = r->odds, .decoding = r->decoding, .most = r->most, .behind = r->behind,
                            .remaining = r->remaining, .plain = r->plain};
        print_message("  %s\n", r->what);
        assert_in_range(decode_adapt_length(&o), r->least, r->greatest);
    }
}

static void nothing_measured_nothing_proposed(void **state) {
    (void)state;
    decode_curve none = {0};
    decode_outlook o = {.step = &none, .odds = 1, .decoding = 1, .most = 15, .remaining = 999, .plain = 1000};
    assert_int_equal(decode_adapt_length(&o), 0);
}

static uint64_t next(uint64_t *seed) { return (*seed = *seed * 6364136223846793005u + 1442695040888963407u) >> 33; }

/* Runs whole answers against a machine: never below 0.97 of no speculation, whatever odds, rows and crowd; and close to
 * the best fixed length where that is worth something. */
static void never_much_below_plain(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int32_t decoding = 1; decoding <= 16; decoding *= 4)
        for (int rows = 0; rows < 4; rows++)
            for (int p = 0; p <= 10; p++) {
                const double per_row[] = {0.02, 0.07, 0.3, 1};
                double truth = p / 10.0, spent = 0, tokens = 0;
                decode_curve step = {0};
                decode_odds odds;
                decode_odds_begin(&odds, truth < 0.5 ? 0.3 : 0.6);
                int32_t plain = 0;
                for (int i = 0; i < 600; i++) {
                    decode_outlook o = {.step = &step, .odds = decode_odds_of(&odds), .decoding = decoding, .most = 15,
                                        .remaining = 600 - i, .plain = plain};
                    int32_t k = i % 128 ? decode_adapt_length(&o) : 0, right = 0;
                    while (right < k && (double)(next(&seed) % 1000) < truth * 1000) right++;
                    int64_t took = (int64_t)(1000 * (1 + per_row[rows] * (decoding * (1 + k) - 1)));
                    decode_curve_add(&step, decoding * (1 + k), took);
                    if (k > 0) decode_odds_add(&odds, k, right);
                    plain = k > 0 ? 0 : plain + 1;
                    spent += (double)took;
                    tokens += 1 + right;
                }
                double alone = 1000 * (1 + per_row[rows] * (decoding - 1));
                double gain = tokens / 600 * alone / (spent / 600);
                if (gain < 0.97) fail_msg("%d sequences, odds %g, row %g: %g of no speculation", decoding, truth, per_row[rows], gain);
                if (decoding == 1 && rows < 2 && p >= 9 && gain < 2) fail_msg("odds %g, row %g: only %g", truth, per_row[rows], gain);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(curve_is_measured_between_or_guessed), cmocka_unit_test(curve_stands_noise_and_follows),
        cmocka_unit_test(odds_follow_what_is_accepted),         cmocka_unit_test(length_as_the_table_says),
        cmocka_unit_test(nothing_measured_nothing_proposed),    cmocka_unit_test(never_much_below_plain)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
