/* Tests the proposers of decode-node/, each by itself: what they propose against a plain search. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "decode-node/speculate.h"

enum { MOST = 400 };

static uint64_t next(uint64_t *seed) { return (*seed = *seed * 6364136223846793005u + 1442695040888963407u) >> 33; }

/* A sequence that stands alone. */
typedef struct lone {
    node_seq seq;
    node_request request;
    decode_guess guess;
    int32_t tokens[MOST];
} lone;

static lone *lone_create(const decode_proposer *p, const decode_speculator *x) {
    lone *l = calloc(1, sizeof *l);
    l->seq = (node_seq){.request = &l->request, .tokens = l->tokens, .tokens_max = MOST, .speculation = &l->guess};
    l->guess = (decode_guess){.seq = &l->seq, .own = calloc(1, p->bytes(x, MOST))};
    return l;
}

static void lone_free(lone *l) {
    free(l->guess.own);
    free(l);
}

/* Position behind the latest earlier occurrence of the last three tokens; 0: none. */
static int32_t search(const int32_t *tokens, int32_t count) {
    for (int32_t end = count - 1; end >= 3; end--)
        if (memcmp(tokens + end - 3, tokens + count - 3, 3 * sizeof *tokens) == 0) return end;
    return 0;
}

static void ngram_copies_what_followed(void **state) {
    (void)state;
    const decode_proposer *p = &decode_propose_ngram;
    uint64_t seed = 3;
    int found = 0, missed = 0;
    for (int round = 0; round < 30; round++) {
        lone *l = lone_create(p, NULL);
        node_seq *seqs[] = {&l->seq};
        int32_t *t = l->tokens, words = 2 + round % 5;
        while (l->seq.count < MOST - 20) {
            int32_t more = 1 + (int32_t)(next(&seed) % 7);         /* accepted together */
            while (more-- > 0) t[l->seq.count++] = (int32_t)(next(&seed) % (uint64_t)words) * 1000;
            int32_t count = l->seq.count, from = count > 3 ? search(t, count) : 0, k = p->ready(NULL, &l->guess, 6);
            missed += from > 0 && k == 0;                          /* another n-gram has its slot: allowed, seldom */
            if (k == 0) continue;
            found++;
            assert_true(k == 6 && from > 0);
            int32_t counts[] = {5};
            p->propose(NULL, seqs, counts, 1);
            assert_int_equal(counts[0], 5);
            for (int32_t j = 0; j < 5; j++) assert_int_equal(t[count + j], t[from + j]);
            assert_int_equal(l->seq.count, count);
        }
        lone_free(l);
    }
    assert_true(found > 500 && missed * 20 < found);
}

static void ngram_waits_for_three_tokens(void **state) {
    (void)state;
    lone *l = lone_create(&decode_propose_ngram, NULL);
    for (int32_t i = 0; i < 4; i++) {
        assert_int_equal(decode_propose_ngram.ready(NULL, &l->guess, 4), 0);
        l->tokens[l->seq.count++] = 9;
    }
    assert_int_equal(decode_propose_ngram.ready(NULL, &l->guess, 4), 4);   /* 9 9 9 stood before the last 9 */
    lone_free(l);
}

/* Rows are dear here, so nothing is proposed while odds are middling; that what would have been is right all the time is
 * noticed all the same, and then it is proposed. */
static void odds_are_measured_while_nothing_is_proposed(void **state) {
    (void)state;
    for (int repeats = 0; repeats < 2; repeats++) {
        decode_speculator *x;
        uint64_t seed = 9;
        assert_int_equal(decode_speculator_create(&decode_propose_ngram, 0, &x, NULL), ST_OK);
        decode_curve_add(&x->step, 1, 1000);
        decode_curve_add(&x->step, 2, 3000);
        lone *l = lone_create(&decode_propose_ngram, x);
        l->request.memory = arena_create(1 << 14);
        x->table.join(x, &l->seq);
        int first = 0;
        for (l->seq.count = 0; l->seq.count < 150; l->seq.count++) {
            int32_t count = l->seq.count;
            if (x->table.plan(x, &l->seq, 15, 1) > 0 && !first) first = count;
            l->tokens[count] = repeats ? count % 5 : (int32_t)(next(&seed) % 3);
        }
        if (repeats) assert_in_range(first, 15, 60);
        else assert_int_equal(first, 0);
        x->table.leave(x, &l->seq);
        arena_destroy(l->request.memory);
        decode_speculator_close(x);
        lone_free(l);
    }
}

/* ---- lookahead ---------------------------------------------------------------------------------------- */

enum { V = 64 };

/* Logits whose greatest is `token`. */
static void say(float *logits, int32_t token) {
    memset(logits, 0, V * sizeof *logits);
    logits[token] = 1;
}

/* What rejected rows said is guessed next, and 3-grams of it are known from then on. */
static void lookahead_feeds_what_rows_said(void **state) {
    (void)state;
    const decode_proposer *p = &decode_propose_lookahead;
    decode_speculator x = {.proposer = p, .V = V, .sampler = eng_sampler_create(V)};
    lone *l = lone_create(p, &x);
    node_seq *seqs[] = {&l->seq};
    int32_t *t = l->tokens, counts[] = {4};
    float rest[4 * V];
    l->request.sampling = eng_sampling_default;
    memcpy(t, (int32_t[]){5, 6, 7, 8}, 4 * sizeof *t);
    l->seq.count = l->request.prompt_count = 4;
    assert_int_equal(p->ready(&x, &l->guess, 4), 4);
    p->propose(&x, seqs, counts, 1);
    for (int i = 4; i < 8; i++) assert_int_equal(t[i], 8);         /* nothing is known: the last one again */
    t[l->seq.count++] = 9;                                         /* drawn instead of the first */
    for (int i = 0; i < 4; i++) say(rest + i * V, 20 + i);
    p->learn(&x, &l->guess, 4, 0, rest);
    assert_int_equal(p->ready(&x, &l->guess, 4), 4);
    p->propose(&x, seqs, counts, 1);
    assert_memory_equal(t + 5, ((int32_t[]){20, 21, 22, 23}), 4 * sizeof *t);
    t[5] = 20, t[6] = 50, l->seq.count = 7;                        /* one was right */
    for (int i = 0; i < 3; i++) say(rest + i * V, 30 + i);
    p->learn(&x, &l->guess, 4, 1, rest);
    memcpy(t + 7, (int32_t[]){8, 9, 5, 6}, 4 * sizeof *t);
    l->seq.count = 11;
    p->ready(&x, &l->guess, 4);
    p->propose(&x, seqs, counts, 1);
    assert_int_equal(t[11], 7);                                    /* 5 6 7 is in the prompt, 6 7 8 too */
    assert_int_equal(t[12], 8);
    memcpy(t + 11, (int32_t[]){20, 21}, 2 * sizeof *t);
    l->seq.count = 13;
    p->learn(&x, &l->guess, 4, 4, rest);                           /* no row is left of the step before */
    p->ready(&x, &l->guess, 4);
    p->propose(&x, seqs, counts, 1);
    assert_int_equal(t[13], 30);                                   /* a rejected row said: 20 21, then 30 */
    eng_sampler_destroy(x.sampler);
    lone_free(l);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(ngram_copies_what_followed), cmocka_unit_test(ngram_waits_for_three_tokens),
                                       cmocka_unit_test(lookahead_feeds_what_rows_said),
                                       cmocka_unit_test(odds_are_measured_while_nothing_is_proposed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
