/* chi_square.h -- whether answers of the fake engine (node_fake.h) at temperature 1 are distributed as its logits say.
 *
 * Looked at is the third token of an answer: with speculation it is drawn behind accepted and behind refused tokens. How it
 * must be distributed is worked out exactly, over all first and second ones. */
#ifndef BATON_TESTS_CHI_SQUARE_H
#define BATON_TESTS_CHI_SQUARE_H

#include "decode-node/decode.h"
#include "tests/unit/node_fake.h"
#include <math.h>

#ifdef __SANITIZE_ADDRESS__
enum { CHI_SAMPLES = 10000 };    /* there it is about memory */
#else
enum { CHI_SAMPLES = 100000 };
#endif
enum { CHI_ANSWER = 4 };
/* 63 degrees of freedom: exceeded once in 1,000. */
#define CHI_MOST 103.4

/* Without penalties; each answer has a seed of its own. */
static const eng_sampling chi_sampling = {.temperature = 1, .top_p = 1, .repetition = 1, .logprobs = 0};

/* P(token) behind hash at temperature 1. */
static inline void chi_probabilities(uint64_t hash, double *p) {
    float logits[FAKE_V];
    double mass = 0;
    fake_logits(hash, logits);
    for (int i = 0; i < FAKE_V; i++) mass += p[i] = exp((double)logits[i]);
    for (int i = 0; i < FAKE_V; i++) p[i] /= mass;
}

static inline void chi_third_token(const int32_t *prompt, int32_t count, double *out) {
    static double first[FAKE_V], second[FAKE_V], third[FAKE_V];
    uint64_t hash = 1;
    for (int32_t i = 0; i < count; i++) hash = fake_row(hash, prompt[i], 0);
    chi_probabilities(hash, first);
    memset(out, 0, FAKE_V * sizeof *out);
    for (int32_t a = 0; a < FAKE_V; a++) {
        uint64_t at = fake_row(hash, a, 0);
        chi_probabilities(at, second);
        for (int32_t b = 0; b < FAKE_V; b++) {
            chi_probabilities(fake_row(at, b, 0), third);
            for (int i = 0; i < FAKE_V; i++) out[i] += first[a] * second[b] * third[i];
        }
    }
}

/* The i-th request for an answer to the prompt. */
static inline node_request *chi_request(uint64_t handle, const int32_t *prompt, int32_t count, int32_t i) {
    node_request *r = fake_request(handle, prompt, count, CHI_ANSWER);
    r->sampling = chi_sampling;
    r->sampling.seed = (uint64_t)i;
    return r;
}

/* Has it answered, and counts the third token and what was proposed. */
static inline void chi_count(fake_node *f, node_request *r, int32_t *seen, int64_t *proposed, int64_t *accepted) {
    uint64_t handle = r->handle;
    int32_t count = r->prompt_count, got[CHI_ANSWER];
    f->events_count = 0;
    node_core_submit(f->core, &decode_role, r, f->now_us);
    fake_run(f, 20);
    assert_int_equal(fake_tokens(f, handle, count, got), CHI_ANSWER);
    seen[got[2]]++;
    const node_event *e = fake_event(f, handle, NODE_DONE);
    *proposed += e->done.proposed;
    *accepted += e->done.accepted;
}

/* seen: how often each token was the third of CHI_SAMPLES answers to the prompt. */
static inline void chi_assert_kept(const int32_t *seen, const int32_t *prompt, int32_t count, int64_t proposed, int64_t accepted) {
    double want[FAKE_V], chi = 0;
    chi_third_token(prompt, count, want);
    for (int i = 0; i < FAKE_V; i++) chi += pow(seen[i] - CHI_SAMPLES * want[i], 2) / (CHI_SAMPLES * want[i]);
    print_message("  chi-square %.1f, %lld of %lld proposed tokens accepted\n", chi, (long long)accepted, (long long)proposed);
    assert_true(chi < CHI_MOST);
}

#endif
