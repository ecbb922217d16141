/* Tests rule 7 of decode-node/decode.c: the prompt's logprobs, with a fake engine and a fake link. */
#include "tests/unit/node_fake.h"

static const node_limits limits = {.V = FAKE_V, .context = 256, .pages = 32, .page_tokens = 4,
                                   .sequences_max = 8, .step_tokens_max = 16, .chunk_tokens = 8,
                                   .logits_max = 8, .prefix_cache = true};

enum { TOPS = 3 };

static node_request *told(uint64_t handle, const int32_t *prompt, int32_t count, int32_t max_tokens, int32_t first) {
    node_request *r = fake_request(handle, prompt, count, max_tokens);
    r->local_tokens_max = 0;                               /* it is read here whatever this says */
    r->prompt_logprobs = true;
    r->prompt_first = first;
    r->prompt_tops = TOPS;
    return r;
}

/* Positions [first, count) of the prompt were said, in order, each once and before the answer; and what is right. */
static void assert_told(const fake_node *f, uint64_t handle, const int32_t *prompt, int32_t count, int32_t first) {
    eng_sampler *sampler = eng_sampler_create(FAKE_V);
    float logits[FAKE_V];
    uint64_t hash = 1;
    int32_t at = first, hashed = 0;
    for (int i = 0; i < f->events_count; i++) {
        const node_event *e = &f->events[i];
        if (e->handle != handle || (e->kind != NODE_PROMPT && e->kind != NODE_TOKEN)) continue;
        if (e->kind == NODE_TOKEN) {
            assert_int_equal(at, count);
            continue;
        }
        eng_sampled want;
        for (; hashed < at; hashed++) hash = fake_row(hash, prompt[hashed], 0);
        fake_logits(hash, logits);
        assert_int_equal(eng_sample_given(sampler, logits, prompt[at], TOPS, &want), ST_OK);
        assert_int_equal(e->token.index, at++);
        assert_memory_equal(&e->token.sampled, &want, sizeof want);
    }
    assert_int_equal(at, count);
    eng_sampler_destroy(sampler);
}

/* Alone, in chunks, among others, with the prompt cached and without: nothing of it is read from the cache. */
static void the_prompt_is_told(void **state) {
    (void)state;
    for (int logits_max = 1; logits_max <= 16; logits_max *= 2) {
        node_limits l = limits;
        l.logits_max = logits_max;
        l.pages = 64;
        fake_node *f = fake_create(&l);
        int32_t prompt[40], other[30];
        fake_prompt(prompt, 40, 0, 1);
        fake_prompt(other, 30, 20, 2);
        node_core_submit(f->core, &decode_role, told(1, prompt, 40, 9, 1), 0);
        assert_int_equal(fake_run(f, 1000) > 40 / logits_max, 1);
        node_core_submit(f->core, &decode_role, fake_request(2, other, 30, 20), 0);
        node_core_submit(f->core, &decode_role, told(3, prompt, 40, 9, 1), 0);
        node_core_submit(f->core, &decode_role, told(4, prompt, 1, 5, 1), 0);
        node_core_submit(f->core, &decode_role, told(5, other, 30, 5, 1), 0);
        assert_int_equal(fake_event(f, 3, NODE_RESERVED)->reserved.cached, 0);
        fake_run(f, 1000);
        assert_told(f, 1, prompt, 40, 1);
        assert_told(f, 3, prompt, 40, 1);
        assert_told(f, 4, prompt, 1, 1);
        assert_told(f, 5, other, 30, 1);
        fake_assert_answer(f, 1, prompt, 40, 9);
        fake_assert_answer(f, 2, other, 30, 20);
        fake_assert_answer(f, 3, prompt, 40, 9);
        fake_assert_answer(f, 4, prompt, 1, 5);
        assert_int_equal(fake_event(f, 3, NODE_DONE)->done.computed, 40);
        assert_null(fake_event(f, 2, NODE_PROMPT));
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* Where the model draws tokens it is not asked to: all logits are looked at. */
static void a_told_prompt_is_not_drawn_elsewhere(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompt[20], got[9], want[9];
    eng_sampling warm = eng_sampling_default;
    warm.temperature = 1, warm.seed = 5;
    f->sampler = eng_sampler_create(FAKE_V);
    fake_prompt(prompt, 20, 0, 1);
    node_request *r = told(1, prompt, 20, 9, 1);
    r->sampling = warm;
    node_core_submit(f->core, &decode_role, r, 0);
    fake_run(f, 100);
    assert_told(f, 1, prompt, 20, 1);
    assert_int_equal(fake_expect(&warm, -1, prompt, 20, 9, want), 9);
    assert_int_equal(fake_tokens(f, 1, 20, got), 9);
    assert_memory_equal(got, want, sizeof got);
    fake_destroy(f);
}

/* What an earlier attempt said is not said again, and may come from the cache; all of it said, the prompt may be moved. */
static void a_told_prompt_goes_on(void **state) {
    (void)state;
    int32_t prompt[24];
    fake_prompt(prompt, 24, 0, 1);
    for (int32_t first = 1; first <= 24; first++) {
        fake_node *f = fake_create(&limits);
        node_core_submit(f->core, &decode_role, fake_request(1, prompt, 24, 3), 0);
        fake_run(f, 100);
        node_core_submit(f->core, &decode_role, told(2, prompt, 24, 9, first), 0);
        assert_int_equal(fake_event(f, 2, NODE_RESERVED)->reserved.cached, first - 1);
        fake_run(f, 100);
        assert_told(f, 2, prompt, 24, first);
        fake_assert_answer(f, 2, prompt, 24, 9);
        node_core_cancel(f->core, 2);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
    fake_node *f = fake_create(&limits);
    node_core_submit(f->core, &decode_role, told(1, prompt, 24, 9, 24), 0);
    assert_true(fake_event(f, 1, NODE_RESERVED)->reserved.ticket != 0);
    fake_land(f, 1, prompt, 23, ST_OK);
    fake_run(f, 100);
    assert_null(fake_event(f, 1, NODE_PROMPT));
    fake_assert_answer(f, 1, prompt, 24, 9);
    fake_destroy(f);
}

/* Its pages are taken from it in mid-prompt, with and without host memory and cache: it goes on where it was. */
static void a_told_prompt_is_preempted(void **state) {
    (void)state;
    for (int way = 0; way < 8; way++) {
        node_limits small = limits;
        small.pages = 16;
        small.prefix_cache = way & 1;
        small.swap_pages = way & 2 ? 16 : 0;
        small.preemption = way & 2 ? NODE_PREEMPT_SWAP : NODE_PREEMPT_RECOMPUTE;
        fake_node *f = fake_create(&small);
        int32_t prompt[40], urgent[40];
        node_counts counts;
        fake_prompt(prompt, 40, 0, 1);
        fake_prompt(urgent, 40, 30, 2);
        node_core_submit(f->core, &decode_role, told(1, prompt, 40, 9, 1), 0);
        fake_run(f, 2);
        node_request *r = way & 4 ? told(2, urgent, 40, 9, 1) : fake_request(2, urgent, 40, 9);
        r->priority = 5;
        node_core_submit(f->core, &decode_role, r, f->now_us);
        node_core_counts(f->core, &counts);
        assert_int_equal(counts.preemptions, 1);
        assert_int_equal(counts.swaps, (way & 2) != 0);
        assert_true(fake_event(f, 1, NODE_PROMPT) && !fake_event(f, 1, NODE_TOKEN));
        fake_run(f, 1000);
        assert_told(f, 1, prompt, 40, 1);
        fake_assert_answer(f, 1, prompt, 40, 9);
        fake_assert_answer(f, 2, urgent, 40, 9);
        if (way & 4) assert_told(f, 2, urgent, 40, 1);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* A slow reader in mid-prompt. */
static void a_told_prompt_rests(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompt[40];
    fake_prompt(prompt, 40, 0, 1);
    node_core_submit(f->core, &decode_role, told(1, prompt, 40, 9, 1), 0);
    fake_run(f, 2);
    int events = f->events_count;
    node_core_pause(f->core, 1, true);
    fake_run(f, 10);
    assert_int_equal(f->events_count, events);
    node_core_pause(f->core, 1, false);
    fake_run(f, 100);
    assert_told(f, 1, prompt, 40, 1);
    fake_destroy(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_prompt_is_told),         cmocka_unit_test(a_told_prompt_is_not_drawn_elsewhere),
        cmocka_unit_test(a_told_prompt_goes_on),      cmocka_unit_test(a_told_prompt_is_preempted),
        cmocka_unit_test(a_told_prompt_rests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
