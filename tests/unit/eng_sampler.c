/* eng_sampler.c -- tests engine/sampler.c and engine/random.c: known answers, rules by hand, and
 * 100,000 draws against the exact distribution. */
#include "engine/engine.h"
#include "engine/random.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { V = 12 };
static const float row[V] = {0.5f, 2, -1, 2, 0, 1.25f, -3, 0.75f, 3, -0.5f, 1, -INFINITY};
static eng_sampler *sampler;

static eng_sampled sample(const eng_sampling *p, const float *logits) {
    eng_sampled out;
    assert_int_equal(eng_sample(sampler, p, logits, NULL, 0, 0, &out), ST_OK);
    return out;
}

/* The vectors of Random123 (kat_vectors, philox4x32 10). */
static void philox_known_answers(void **state) {
    (void)state;
    static const uint32_t known[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        eng_random_philox(known[i], known[i] + 4, out);
        assert_memory_equal(out, known[i] + 6, sizeof out);
    }
    assert_true(eng_random_uniform(0, 0) == (double)(0xe169c58d6627e8d5u >> 11) * 0x1p-53);
    assert_true(eng_random_uniform(1, 1ull << 32) != eng_random_uniform(1, 0));
    assert_true(eng_random_uniform(1ull << 32, 0) != eng_random_uniform(0, 0));
}

static void greedy_takes_the_greatest(void **state) {
    (void)state;
    eng_sampling p = eng_sampling_default;
    assert_int_equal(sample(&p, row).token, 8);
    p.bias = &(eng_bias){8, -1}, p.bias_count = 1;         /* 1, 3 and 8 tie: the smallest id */
    assert_int_equal(sample(&p, row).token, 1);
    p.bias = (eng_bias[]){{6, 5}, {6, 5}}, p.bias_count = 2;
    assert_int_equal(sample(&p, row).token, 6);
    p.bias = &(eng_bias){11, 100}, p.bias_count = 1;       /* -inf stays forbidden */
    assert_int_equal(sample(&p, row).token, 8);
}

static void penalties_by_hand(void **state) {
    (void)state;
    const float two[V] = {4, 3.5f, -1, -1.5f, -9, -9, -9, -9, -9, -9, -9, -9};
    const int32_t history[] = {0, 2, 1, 1, 1};
    eng_sampling p = eng_sampling_default;
    eng_sampled out;
    p.logprobs = ENG_LOGPROBS_MAX;
    p.repetition = 2;                                      /* 2, 1.75, -2, -1.5 */
    assert_int_equal(eng_sample(sampler, &p, two, history, 2, 5, &out), ST_OK);
    assert_int_equal(out.token, 0);
    assert_float_equal(out.top_logprob[0] - out.top_logprob[1], 0.25f, 1e-6);
    assert_int_equal(out.top_token[2], 3);
    assert_float_equal(out.top_logprob[2] - out.top_logprob[3], 0.5f, 1e-6);
    p.repetition = 1, p.presence = 0.5f, p.frequency = 0.25f;     /* token 1: 3.5 - 0.5 - 0.75 */
    assert_int_equal(eng_sample(sampler, &p, two, history, 2, 5, &out), ST_OK);
    assert_float_equal(out.top_logprob[0] - out.top_logprob[1], 4 - 2.25f, 1e-6);
    assert_int_equal(eng_sample(sampler, &p, two, history, 0, 5, &out), ST_OK);
    assert_float_equal(out.top_logprob[0] - out.top_logprob[1], 3.25f - 2.25f, 1e-6);
    p.presence = p.frequency = 0;                          /* nothing of the former calls is left */
    assert_int_equal(eng_sample(sampler, &p, two, history, 2, 5, &out), ST_OK);
    assert_float_equal(out.top_logprob[0] - out.top_logprob[1], 0.5f, 1e-6);
    p.repetition = 1e-44f;                                 /* legal; must stay finite */
    assert_int_equal(eng_sample(sampler, &p, two, history, 2, 5, &out), ST_OK);
    assert_int_equal(out.token, 0);
}

static void logprobs_are_of_the_whole_distribution(void **state) {
    (void)state;
    double mass = 0;
    for (int i = 0; i < V; i++) mass += exp((double)row[i]);
    eng_sampling p = eng_sampling_default;
    p.temperature = 0.1f, p.top_k = 1, p.logprobs = 4;
    eng_sampled out = sample(&p, row);
    const int32_t top[] = {8, 1, 3, 5};
    assert_int_equal(out.token, 8);
    assert_int_equal(out.top_count, 4);
    assert_memory_equal(out.top_token, top, sizeof top);
    for (int i = 0; i < 4; i++)
        assert_float_equal(out.top_logprob[i], row[top[i]] - log(mass), 1e-6);
    assert_float_equal(out.logprob, 3 - log(mass), 1e-6);
    p.logprobs = 0;
    out = sample(&p, row);
    assert_int_equal(out.top_count, 0);
    assert_float_equal(out.logprob, 3 - log(mass), 1e-6);
    p.logprobs = ENG_LOGPROBS_MAX;
    assert_int_equal(sample(&p, row).top_count, V - 1);    /* the forbidden one is no alternative */
}

/* As of a token that was drawn, but for penalties and bias, which have no say. */
static void a_given_token_is_scored(void **state) {
    (void)state;
    double mass = 0;
    for (int i = 0; i < V; i++) mass += exp((double)row[i]);
    for (int token = 0; token < V; token++) {
        eng_sampled out;
        assert_int_equal(eng_sample_given(sampler, row, token, 3, &out), ST_OK);
        assert_int_equal(out.token, token);
        assert_true(out.top_count == 3 && out.top_token[0] == 8 && out.top_token[1] == 1 && out.top_token[2] == 3);
        if (token == 11) assert_true(out.logprob == -INFINITY);
        else assert_float_equal(out.logprob, row[token] - log(mass), 1e-6);
    }
    eng_sampling p = eng_sampling_default;
    eng_sampled drawn = {0}, given = {0};
    p.logprobs = ENG_LOGPROBS_MAX;
    drawn = sample(&p, row);
    assert_int_equal(eng_sample_given(sampler, row, drawn.token, ENG_LOGPROBS_MAX, &given), ST_OK);
    assert_memory_equal(&given, &drawn, sizeof given);     /* the same bits */
    assert_int_equal(eng_sample_given(sampler, row, 2, 0, &given), ST_OK);
    assert_int_equal(given.top_count, 0);
    float broken[V];
    memcpy(broken, row, sizeof broken);
    broken[4] = NAN;
    assert_int_equal(eng_sample_given(sampler, broken, 2, 0, &given), ST_DEVICE);
}

/* ---- the draw against the exact distribution --------------------------------------------------------- */

static int descending(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return row[x] > row[y] ? -1 : row[x] < row[y] ? 1 : x - y;
}

/* By the definitions, with a full sort; returns how many tokens are left. */
static int exact(const eng_sampling *p, double probability[V]) {
    int order[V], n = V;
    double w[V], mass = 0, head = 0;
    for (int i = 0; i < V; i++) order[i] = i;
    qsort(order, V, sizeof order[0], descending);
    for (int i = 0; i < V; i++) w[i] = exp((double)row[order[i]] / p->temperature);
    if (p->top_k > 0 && p->top_k < n) n = p->top_k;
    for (int i = 0; i < n; i++) mass += w[i];
    int kept = 0;
    while (kept < n && (kept == 0 || head < p->top_p * mass)) head += w[kept++];
    while (kept > 1 && w[kept - 1] < p->min_p * w[0]) kept--;
    while (kept > 1 && w[kept - 1] == 0) kept--;
    mass = 0;
    for (int i = 0; i < kept; i++) mass += w[i];
    for (int i = 0; i < V; i++) probability[order[i]] = i < kept ? w[i] / mass : 0;
    return kept;
}

static void draws_follow_the_distribution(void **state) {
    (void)state;
    static const struct {
        float temperature;
        int32_t top_k;
        float top_p, min_p;
        int left;
    } cases[] = {
        {1, 0, 1, 0, 11},      {0.5f, 0, 1, 0, 11},  {2.5f, 0, 1, 0, 11}, {1, 4, 1, 0, 4},
        {1, 2, 1, 0, 2},       {1, 0, 0.8f, 0, 4},   {1, 0, 0.01f, 0, 1}, {1, 0, 1, 0.1f, 6},
        {1, 0, 1, 1, 1},       {1, 5, 0.9f, 0.2f, 3}, {1, 99, 1, 0, 11},  {1.5f, 8, 0.95f, 0.05f, 7},
        {100, 0, 0.5f, 0, 6},
    };
    enum { DRAWS = 100000 };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        eng_sampling p = eng_sampling_default;
        p.temperature = cases[c].temperature, p.top_k = cases[c].top_k;
        p.top_p = cases[c].top_p, p.min_p = cases[c].min_p;
        double probability[V], chi = 0;
        int seen[V] = {0}, left = exact(&p, probability);
        assert_int_equal(left, cases[c].left);
        for (int i = 0; i < DRAWS; i++) {
            p.seed = 1000003u * (unsigned)c + (unsigned)i;
            seen[sample(&p, row).token]++;
        }
        for (int i = 0; i < V; i++) {
            double expected = probability[i] * DRAWS;
            if (expected == 0) assert_int_equal(seen[i], 0);
            if (expected > 0) chi += (seen[i] - expected) * (seen[i] - expected) / expected;
        }
        /* Mean n, variance 2n: n + 5 sqrt(2n) is passed by chance once in thousands; seeds are fixed. */
        int freedom = left - 1;
        assert_true(chi <= freedom + 5 * sqrt(2.0 * freedom));
    }
}

/* A vocabulary with a long tail: every token drawn is the one a full sort's cumulative sum says. */
enum { MANY = 3000 };
static float many[MANY];

static int many_descending(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return many[x] > many[y] ? -1 : many[x] < many[y] ? 1 : x - y;
}

static void draws_equal_a_full_sort(void **state) {
    (void)state;
    static int order[MANY], rank[MANY];
    static double sum[MANY + 1];
    static const float temperatures[] = {0.01f, 0.3f, 1, 3, 100};
    static const int32_t ks[] = {0, 40, 2500};
    eng_sampler *big = eng_sampler_create(MANY);
    for (int i = 0; i < MANY; i++) {
        many[i] = (float)((eng_random_uniform(5, (uint64_t)i) - 0.5) * 30);
        if (i % 7 == 0) many[i] = roundf(many[i]);         /* ties */
        order[i] = i;
    }
    qsort(order, MANY, sizeof order[0], many_descending);
    for (int i = 0; i < MANY; i++) rank[order[i]] = i;
    for (int t = 0; t < 5; t++)
        for (int k = 0; k < 3; k++) {
            eng_sampling p = eng_sampling_default;
            p.temperature = temperatures[t], p.top_k = ks[k];
            int kept = ks[k] ? ks[k] : MANY;
            for (int i = 0; i < kept; i++)
                sum[i + 1] = sum[i] + exp(((double)many[order[i]] - many[order[0]]) / p.temperature);
            for (int i = 0; i < 500; i++) {
                p.seed = (uint64_t)i;
                eng_sampled out;
                assert_int_equal(eng_sample(big, &p, many, NULL, 0, 0, &out), ST_OK);
                double at = eng_random_uniform(p.seed, 0) * sum[kept], slack = 1e-9 * sum[kept];
                int r = rank[out.token];
                assert_true(r < kept && sum[r] <= at + slack && at <= sum[r + 1] + slack);
            }
        }
    eng_sampler_destroy(big);
}

/* One seed over many positions is as good as many seeds, and a position gives the same token again. */
static void randomness_is_seed_and_position(void **state) {
    (void)state;
    enum { COUNT = 2000 };
    static int32_t history[COUNT];
    eng_sampling p = eng_sampling_default;
    p.temperature = 1, p.seed = 42;
    int changes = 0;
    for (int i = 1; i < COUNT; i++) {
        eng_sampled a, b;
        assert_int_equal(eng_sample(sampler, &p, row, history, i, i, &a), ST_OK);
        assert_int_equal(eng_sample(sampler, &p, row, history, 0, i, &b), ST_OK);
        assert_int_equal(a.token, b.token);                /* no penalty: the prompt's end is nothing */
        changes += a.token != history[i - 1];
        history[i] = a.token;
    }
    assert_true(changes > COUNT / 2);
}

/* ---- bad values --------------------------------------------------------------------------------------- */

static void bad_logits_are_a_device_error(void **state) {
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++)
        for (int t = 0; t < 2; t++) {
            float logits[V];
            for (int j = 0; j < V; j++) logits[j] = i == 2 || j == 5 ? bad[i] : 0;
            eng_sampling p = eng_sampling_default;
            p.temperature = (float)t;
            eng_sampled out = {.token = -7};
            assert_int_equal(eng_sample(sampler, &p, logits, NULL, 0, 0, &out), ST_DEVICE);
            assert_int_equal(out.token, -7);
            p.bias = &(eng_bias){5, 1}, p.bias_count = 1, p.repetition = 2;
            assert_int_equal(eng_sample(sampler, &p, logits, (int32_t[]){5}, 1, 1, &out),
                             ST_DEVICE);                   /* a penalty hides none of them */
        }
    eng_sampling p = eng_sampling_default;                 /* and the next call is none the worse */
    assert_int_equal(sample(&p, row).token, 8);
    const float wide[V] = {-3e38f, 3e38f, -INFINITY, -INFINITY, 0, 0, 0, 0, 0, 0, 0, 0};
    p.temperature = 1e-45f, p.logprobs = 2;
    assert_int_equal(sample(&p, wide).token, 1);
}

static void check_names_field_value_and_expected(void **state) {
    (void)state;
    error err;
    eng_sampling ok = eng_sampling_default;
    assert_int_equal(eng_sampling_check(&ok, V, NULL), ST_OK);
#define BAD(field_, value_, text_)                                                                  \
    do {                                                                                            \
        eng_sampling p = ok;                                                                        \
        p.field_ = value_;                                                                          \
        assert_int_equal(eng_sampling_check(&p, V, &err), ST_BAD_INPUT);                            \
        assert_non_null(strstr(err.text, text_));                                                   \
    } while (0)
    BAD(temperature, -0.5f, "temperature is -0.5, expected a number from 0 and at most 100");
    BAD(temperature, NAN, "temperature is");
    BAD(temperature, INFINITY, "temperature is inf");
    BAD(top_k, -1, "top_k is -1");
    BAD(top_p, 0, "top_p is 0, expected a number above 0 and at most 1");
    BAD(top_p, 1.01f, "top_p is 1.01");
    BAD(top_p, NAN, "top_p is");
    BAD(min_p, -0.1f, "min_p is -0.1");
    BAD(repetition, 0, "repetition_penalty is 0");
    BAD(repetition, NAN, "repetition_penalty is");
    BAD(presence, 2.5f, "presence_penalty is 2.5");
    BAD(frequency, -2.5f, "frequency_penalty is -2.5");
    BAD(logprobs, 21, "logprobs is 21");
    BAD(logprobs, -2, "logprobs is -2");
    BAD(bias_count, -1, "logit_bias has -1 entries");
    BAD(bias_count, 1, "logit_bias has 1 entries");
    ok.bias_count = 1;
    BAD(bias, (&(eng_bias){V, 0}), "logit_bias names token 12, expected 0 to 11");
    BAD(bias, (&(eng_bias){-1, 0}), "logit_bias names token -1");
    BAD(bias, (&(eng_bias){0, NAN}), "logit_bias is");
    BAD(bias, (&(eng_bias){0, 100.5f}), "logit_bias is 100.5");
}

static void no_memory_is_answered_and_none_taken_later(void **state) {
    (void)state;
    int64_t live = mem_live();
    eng_sampler *s = NULL;
    int nth = 0;
    while (!s) {
        assert_int_equal(mem_live(), live);
        mem_fail_at(++nth);
        s = eng_sampler_create(V);
        mem_fail_at(0);
    }
    eng_sampler_destroy(s);
    assert_int_equal(mem_live(), live);
    int64_t made = mem_count();
    eng_sampling p = eng_sampling_default;
    p.temperature = 1, p.top_p = 0.5f, p.logprobs = 5, p.repetition = 1.1f;
    sample(&p, row);
    assert_int_equal(mem_count(), made);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(greedy_takes_the_greatest),
        cmocka_unit_test(penalties_by_hand),
        cmocka_unit_test(logprobs_are_of_the_whole_distribution),
        cmocka_unit_test(a_given_token_is_scored),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(draws_equal_a_full_sort),
        cmocka_unit_test(randomness_is_seed_and_position),
        cmocka_unit_test(bad_logits_are_a_device_error),
        cmocka_unit_test(check_names_field_value_and_expected),
        cmocka_unit_test(no_memory_is_answered_and_none_taken_later),
    };
    sampler = eng_sampler_create(V);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    eng_sampler_destroy(sampler);
    return failed;
}
