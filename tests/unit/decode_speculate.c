/* Tests decode-node/speculate.c with the proposers that need no model of their own, in front of the fake engine: whatever
 * they propose, the answers are distributed as without them. The draft's: decode_draft.c. */
#include "decode-node/speculate.h"
#include "tests/unit/chi_square.h"

static const node_limits limits = {.V = FAKE_V, .context = 256, .pages = 64, .page_tokens = 4, .sequences_max = 8,
                                   .step_tokens_max = 64, .chunk_tokens = 64, .logits_max = 64, .prefix_cache = true};

enum { UNIT = 4, UNITS = 16, COUNT = UNIT * UNITS + 2, HANDLE = 1 };

/* "a b x y" for several x, then "a b": behind most first tokens of an answer prompt lookup has something to say, and
 * lookahead behind all of them. */
static void repeating_prompt(int32_t *out) {
    for (int32_t i = 0; i < COUNT; i++) {
        int32_t unit = i / UNIT, word[UNIT] = {5, 6, unit * (FAKE_V / UNITS), unit * 3 + 1};
        out[i] = word[i % UNIT];
    }
}

/* Chi-square over 100,000 answers at temperature 1 (chi_square.h). Of 64 tokens few guesses are right, and enough of 100,000. */
static void keeps_the_distribution(const decode_proposer *proposer) {
    decode_speculator *x;
    int32_t prompt[COUNT], seen[FAKE_V] = {0};
    int64_t proposed = 0, accepted = 0;
    assert_int_equal(decode_speculator_create(proposer, 3, &x, NULL), ST_OK);
    x->fixed = true;
    x->V = FAKE_V;
    x->sampler = eng_sampler_create(FAKE_V);
    fake_node *f = fake_create_with(&limits, &x->table);
    repeating_prompt(prompt);
    for (int32_t i = 0; i < CHI_SAMPLES; i++) {
        chi_count(f, chi_request(HANDLE, prompt, COUNT, i), seen, &proposed, &accepted);
    }
    chi_assert_kept(seen, prompt, COUNT, proposed, accepted);
    assert_true(proposed > CHI_SAMPLES / 5 && accepted > CHI_SAMPLES / 1500 && accepted < proposed);
    fake_assert_pages_back(f);
    fake_destroy(f);
    decode_speculator_close(x);
}

static void ngram_keeps_the_distribution(void **state) {
    (void)state;
    keeps_the_distribution(&decode_propose_ngram);
}

static void lookahead_keeps_the_distribution(void **state) {
    (void)state;
    keeps_the_distribution(&decode_propose_lookahead);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(ngram_keeps_the_distribution),
                                       cmocka_unit_test(lookahead_keeps_the_distribution)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
