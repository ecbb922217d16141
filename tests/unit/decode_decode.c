/* Tests decode-node/decode.c: each arrow of its picture, with a fake engine and a fake link. */
#include "tests/unit/node_fake.h"

static const node_limits limits = {.V = FAKE_V, .context = 256, .pages = 32, .page_tokens = 4,
                                   .sequences_max = 8, .step_tokens_max = 16, .chunk_tokens = 8,
                                   .logits_max = 8, .prefix_cache = true};

static node_request *remote(uint64_t handle, const int32_t *prompt, int32_t count, int32_t max_tokens) {
    node_request *r = fake_request(handle, prompt, count, max_tokens);
    r->local_tokens_max = 0;
    return r;
}

static void local_prefill_answers(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompt[21];
    fake_prompt(prompt, 21, 0, 1);
    node_core_submit(f->core, &decode_role, fake_request(1, prompt, 21, 30), 0);
    const node_event *e = fake_event(f, 1, NODE_RESERVED);
    assert_true(e && e->reserved.ticket == 0 && e->reserved.cached == e->reserved.wanted);
    fake_run(f, 1000);
    fake_assert_answer(f, 1, prompt, 21, 30);
    e = fake_event(f, 1, NODE_DONE);
    assert_int_equal(e->done.reason, 2);
    assert_int_equal(e->done.computed, 21);
    assert_true(e->done.prefill_us >= 3000);               /* three chunks of a millisecond each */
    fake_assert_pages_back(f);
    fake_destroy(f);
}

static void transfer_that_lands_whole_or_in_part(void **state) {
    (void)state;
    int32_t prompt[40];
    fake_prompt(prompt, 40, 0, 2);
    static const status ends[] = {ST_OK, ST_PEER_LOST, ST_DEADLINE, ST_CORRUPT, ST_CANCELED};
    for (int32_t landed = 0; landed <= 39; landed++) {
        fake_node *f = fake_create(&limits);
        node_core_submit(f->core, &decode_role, remote(1, prompt, 40, 9), 0);
        const node_event *e = fake_event(f, 1, NODE_RESERVED);
        assert_true(e->reserved.ticket != 0 && e->reserved.cached == 0 && e->reserved.wanted == 39);
        assert_false(node_core_step(f->core, 0));          /* nothing to do before it is over */
        node_counts counts;
        node_core_counts(f->core, &counts);
        assert_int_equal(counts.pages[ENG_PAGE_PROMISED], 11);
        node_core_landing(f->core, 1);
        node_core_counts(f->core, &counts);
        assert_int_equal(counts.pages[ENG_PAGE_LANDING], 11);
        fake_land(f, 1, prompt, landed, landed == 39 ? ST_OK : ends[landed % 5]);
        e = fake_event(f, 1, NODE_LANDED);
        assert_int_equal(e->landed.tokens, landed);
        fake_run(f, 1000);
        fake_assert_answer(f, 1, prompt, 40, 9);
        assert_int_equal(fake_event(f, 1, NODE_DONE)->done.computed, 40 - landed);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* A second request finds full pages and part of a page of the first, and asks for the rest only. */
static void cached_prefix_is_not_asked_for(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t one[40], two[40];
    fake_prompt(one, 40, 22, 1);
    fake_prompt(two, 40, 22, 2);
    node_core_submit(f->core, &decode_role, fake_request(1, one, 40, 5), 0);
    fake_run(f, 100);
    node_core_submit(f->core, &decode_role, remote(2, two, 40, 9), 0);
    assert_int_equal(fake_event(f, 2, NODE_RESERVED)->reserved.cached, 22);
    assert_int_equal(fake_promise_of(f, 2)->first, 22);
    fake_land(f, 2, two, 17, ST_OK);
    fake_run(f, 100);
    fake_assert_answer(f, 2, two, 40, 9);
    node_core_submit(f->core, &decode_role, remote(3, two, 40, 9), 0);     /* all but the last is there */
    const node_event *e = fake_event(f, 3, NODE_RESERVED);
    assert_true(e->reserved.cached == 39 && e->reserved.wanted == 39 && e->reserved.ticket == 0);
    fake_run(f, 100);
    fake_assert_answer(f, 3, two, 40, 9);
    node_request *other = fake_request(4, two, 40, 9);                     /* another tenant finds nothing */
    other->salt = 5;
    node_core_submit(f->core, &decode_role, other, 0);
    assert_int_equal(fake_event(f, 4, NODE_RESERVED)->reserved.cached, 0);
    fake_run(f, 100);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

static void ends_where_it_should(void **state) {
    (void)state;
    int32_t prompt[10], answer[250];
    fake_prompt(prompt, 10, 0, 3);
    fake_expect(&eng_sampling_default, -1, prompt, 10, 246, answer);
    int32_t at = 12, first = at;                           /* first place of that token in the answer */
    for (int32_t i = at; i >= 0; i--) if (answer[i] == answer[at]) first = i;
    int32_t stops[2] = {-5, answer[at]};
    struct { int end; bool ignore; int stop_count; int32_t max; int reason; int32_t tokens; } cases[] = {
        {answer[at], false, 0, 100, 1, first + 1}, {answer[at], true, 0, 30, 2, 30},
        {-1, false, 2, 100, 1, first + 1},         {-1, true, 2, 100, 1, first + 1},
        {-1, false, 0, 1, 2, 1},                   {-1, false, 0, 0, 2, 0},
        {-1, false, 0, 9999, 2, 128 - 10}};        /* context: what 32 pages of 4 tokens hold */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fake_node *f = fake_create(&limits);
        int32_t got[256];
        f->end_token = cases[i].end;
        node_request *r = fake_request(1, prompt, 10, cases[i].max);
        r->ignore_eos = cases[i].ignore;
        r->stop_tokens = stops;
        r->stop_count = cases[i].stop_count;
        node_core_submit(f->core, &decode_role, r, 0);
        fake_run(f, 1000);
        assert_int_equal(fake_event(f, 1, NODE_DONE)->done.reason, cases[i].reason);
        assert_int_equal(fake_tokens(f, 1, 10, got), cases[i].tokens);
        assert_memory_equal(got, answer, (size_t)cases[i].tokens * sizeof *got);
        assert_int_equal(fake_end(f, 1), ST_OK);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* Failover: after any number of tokens, another node goes on with the same bytes. */
static void goes_on_from_answer_tokens(void **state) {
    (void)state;
    int32_t all[40], got[40];
    fake_prompt(all, 10, 0, 3);
    eng_sampling warm = eng_sampling_default;
    warm.temperature = 0.8f;
    warm.seed = 99;
    int32_t n = fake_expect(&warm, -1, all, 10, 30, all + 10);
    for (int32_t k = 0; k <= n; k++) {
        fake_node *f = fake_create(&limits);
        node_request *r = remote(1, all, 10 + k, 30);
        r->prompt_count = 10;
        r->sampling = warm;
        node_core_submit(f->core, &decode_role, r, 0);
        if (k < n) fake_land(f, 1, all, 5, ST_PEER_LOST);
        fake_run(f, 100);
        assert_int_equal(fake_tokens(f, 1, 10 + k, got), n - k);
        assert_memory_equal(got, all + 10 + k, (size_t)(n - k) * sizeof *got);
        assert_int_equal(fake_end(f, 1), ST_OK);
        assert_non_null(fake_event(f, 1, NODE_RESERVED));
        fake_destroy(f);
    }
}

/* The last attempt's answer ended with an end token, and only its Done was lost. */
static void an_ended_answer_is_not_continued(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t tokens[5] = {1, 2, 3, 4, 9};
    f->end_token = 9;
    node_request *r = fake_request(1, tokens, 5, 10);
    r->prompt_count = 4;
    node_core_submit(f->core, &decode_role, r, 0);
    assert_int_equal(fake_event(f, 1, NODE_DONE)->done.reason, 1);
    assert_int_equal(fake_end(f, 1), ST_OK);
    fake_destroy(f);
}

static void cancel_at_every_state(void **state) {
    (void)state;
    int32_t prompt[40];
    fake_prompt(prompt, 40, 0, 2);
    for (int when = 0; when < 5; when++) {
        fake_node *f = fake_create(&limits);
        node_core_submit(f->core, &decode_role, when < 3 ? remote(1, prompt, 40, 50)
                                                         : fake_request(1, prompt, 40, 50), 0);
        if (when >= 1) node_core_landing(f->core, 1);
        if (when == 2) fake_land(f, 1, prompt, 39, ST_OK);
        fake_run(f, when == 3 ? 2 : when == 4 ? 12 : 0);   /* in mid-prompt, in mid-answer */
        node_core_cancel(f->core, 1);
        node_core_cancel(f->core, 1);                      /* twice does nothing more */
        if (when < 2) {
            node_counts counts;
            assert_int_equal(fake_end(f, 1), -1);          /* pages stay until the fence stands */
            assert_true(fake_promise_of(f, 1)->revoked);
            node_core_landing(f->core, 1);
            node_core_counts(f->core, &counts);
            assert_int_equal(counts.pages[ENG_PAGE_PROMISED] + counts.pages[ENG_PAGE_LANDING], 11);
            fake_land(f, 1, prompt, when ? 39 : 7, when ? ST_OK : ST_CANCELED);
        }
        assert_int_equal(fake_end(f, 1), ST_CANCELED);
        assert_null(fake_event(f, 1, NODE_DONE));
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* Rule 8: as another coordinator asks for it again, in mid-prompt and in mid-answer. */
static void canceled_and_continued(void **state) {
    (void)state;
    int32_t prompt[90], answer[50], got[50];
    fake_prompt(prompt, 40, 0, 2);
    fake_expect(&eng_sampling_default, -1, prompt, 40, 50, answer);
    memcpy(prompt + 40, answer, sizeof answer);
    static const struct { int steps; int32_t seen, cached; } cases[] = {{1, 0, 8}, {3, 0, 24}, {5, 1, 40}, {13, 9, 48}, {16, 12, 48}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fake_node *f = fake_create(&limits);
        node_core_submit(f->core, &decode_role, fake_request(1, prompt, 40, 50), 0);
        fake_run(f, cases[i].steps);
        node_core_cancel(f->core, 1);
        assert_int_equal(fake_end(f, 1), ST_CANCELED);
        fake_assert_pages_back(f);
        node_request *r = fake_request(2, prompt, 40 + cases[i].seen, 50);
        r->prompt_count = 40;
        node_core_submit(f->core, &decode_role, r, 0);
        assert_int_equal(fake_event(f, 2, NODE_RESERVED)->reserved.cached, cases[i].cached);
        fake_run(f, 1000);
        assert_int_equal(fake_event(f, 2, NODE_DONE)->done.computed, 40 + cases[i].seen - cases[i].cached);
        assert_int_equal(fake_tokens(f, 2, 40 + cases[i].seen, got), 50 - cases[i].seen);
        assert_memory_equal(got, answer + cases[i].seen, (size_t)(50 - cases[i].seen) * sizeof *got);
        assert_int_equal(fake_end(f, 2), ST_OK);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

static void refusals_say_numbers(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompt[300];
    fake_prompt(prompt, 300, 0, 2);
    node_core_submit(f->core, &decode_role, fake_request(1, prompt, 128, 5), 0);
    assert_int_equal(fake_end(f, 1), ST_BAD_INPUT);
    assert_non_null(strstr(fake_event(f, 1, NODE_END)->end.text, "32 pages of 4 tokens"));
    node_core_submit(f->core, &decode_role, remote(2, prompt, 100, 5), 0);
    node_core_submit(f->core, &decode_role, fake_request(3, prompt + 1, 40, 5), 0);
    assert_int_equal(fake_end(f, 3), ST_AGAIN);            /* 26 of 32 pages are promised */
    fake_land(f, 2, prompt, 99, ST_OK);
    fake_run(f, 100);
    f->promise_fails = ST_AGAIN;
    node_core_submit(f->core, &decode_role, remote(4, prompt + 2, 60, 5), 0);
    assert_int_equal(fake_end(f, 4), ST_AGAIN);
    fake_assert_pages_back(f);
    for (uint64_t h = 10; h < 19; h++)
        node_core_submit(f->core, &decode_role, fake_request(h, prompt + h, 3, 5), 0);
    assert_int_equal(fake_end(f, 18), ST_AGAIN);           /* sequences_max is 8 */
    fake_run(f, 100);
    f->step_fails = ST_DEVICE;
    node_core_submit(f->core, &decode_role, fake_request(20, prompt, 3, 5), 0);
    fake_run(f, 1);
    assert_int_equal(fake_end(f, 20), ST_DEVICE);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

/* Pool for less than all of them: they preempt one another and still give the same bytes. */
static void preempted_and_the_same_bytes(void **state) {
    (void)state;
    for (int cache = 0; cache < 2; cache++) {
        node_limits small = limits;
        small.pages = 24;
        small.prefix_cache = cache;
        fake_node *f = fake_create(&small);
        int32_t prompts[6][9];
        for (uint64_t i = 0; i < 6; i++) {
            fake_prompt(prompts[i], 9, 4, i);
            node_core_submit(f->core, &decode_role, fake_request(i, prompts[i], 9, 60), 0);
        }
        fake_run(f, 10000);
        node_counts counts;
        node_core_counts(f->core, &counts);
        assert_true(counts.preemptions > 0);
        for (uint64_t i = 0; i < 6; i++) fake_assert_answer(f, i, prompts[i], 9, 60);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* Someone was preempted and waits: newcomers do not take the pages it waits for. */
static void newcomers_do_not_pass_who_waits(void **state) {
    (void)state;
    node_limits small = limits;
    small.pages = 16;
    fake_node *f = fake_create(&small);
    int32_t prompts[3][9];
    node_counts counts;
    for (uint64_t i = 0; i < 3; i++) fake_prompt(prompts[i], 9, 0, i);
    for (uint64_t i = 0; i < 2; i++)
        node_core_submit(f->core, &decode_role, fake_request(i, prompts[i], 9, 50), 0);
    do {
        assert_int_equal(fake_run(f, 1), 1);
        node_core_counts(f->core, &counts);
    } while (counts.waiting == 0);
    node_core_submit(f->core, &decode_role, fake_request(2, prompts[2], 2, 1), 0);
    assert_int_equal(fake_end(f, 2), ST_AGAIN);
    fake_run(f, 1000);
    for (uint64_t i = 0; i < 2; i++) fake_assert_answer(f, i, prompts[i], 9, 50);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

/* Twins compute the same prompt at once: only one's pages are indexed, and they are above the other's. The
 * survivor still gets the whole pool. */
static void twins_do_not_block_each_other(void **state) {
    (void)state;
    node_limits small = limits;
    small.pages = 8;
    fake_node *f = fake_create(&small);
    int32_t prompt[9];
    fake_prompt(prompt, 9, 0, 1);
    node_core_submit(f->core, &decode_role, fake_request(1, prompt, 9, 3), 0);
    node_core_submit(f->core, &decode_role, fake_request(2, prompt, 9, 23), 0);
    fake_run(f, 1000);
    fake_assert_answer(f, 1, prompt, 9, 3);
    fake_assert_answer(f, 2, prompt, 9, 23);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

/* A reader that does not read: its rows rest, and its pages go to whoever needs them. */
static void a_slow_reader_holds_nobody_up(void **state) {
    (void)state;
    node_limits small = limits;
    small.pages = 16;
    fake_node *f = fake_create(&small);
    int32_t one[9], two[9], got[64];
    fake_prompt(one, 9, 0, 1);
    fake_prompt(two, 9, 0, 2);
    node_core_submit(f->core, &decode_role, fake_request(1, one, 9, 40), 0);
    node_core_submit(f->core, &decode_role, fake_request(2, two, 9, 50), 0);
    fake_run(f, 20);
    node_core_pause(f->core, 1, true);
    int32_t before = fake_tokens(f, 1, 9, got);
    fake_run(f, 1000);
    assert_int_equal(fake_tokens(f, 1, 9, got), before);
    fake_assert_answer(f, 2, two, 9, 50);
    node_core_pause(f->core, 1, false);
    fake_run(f, 1000);
    fake_assert_answer(f, 1, one, 9, 40);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

/* ---- rule 4: the prompt is computed apart ---------------------------------------------------------- */

enum { READER = 5 };             /* the prefill node's numerics */

/* tokens: a prompt of prompt_count and what of the answer is known. */
static void submit_apart(fake_node *f, uint64_t handle, const int32_t *tokens, int32_t count, int32_t prompt_count,
                         int32_t max_tokens) {
    node_request *r = fake_request(handle, tokens, count, max_tokens);
    r->apart = true;
    r->prompt_count = prompt_count;
    f->sender = READER;
    node_core_submit(f->core, &decode_role, r, f->now_us);
}

/* The prompt comes whole. */
static void read_apart(fake_node *f, uint64_t handle, const int32_t *tokens, int32_t prompt_count, int32_t max_tokens) {
    submit_apart(f, handle, tokens, prompt_count, prompt_count, max_tokens);
    const fake_promise *p = fake_promise_of(f, handle);
    assert_non_null(p);
    assert_int_equal(p->end, prompt_count - 1);
    fake_land(f, handle, tokens, p->end - p->first, ST_OK);
}

/* prompt (count) is followed by its right answer (max_tokens), of which `known` were given. */
static void assert_apart_answer(const fake_node *f, uint64_t handle, const int32_t *prompt, int32_t count, int32_t known,
                                int32_t max_tokens) {
    int32_t got[256];
    assert_int_equal(fake_tokens(f, handle, count + known, got), max_tokens - known);
    assert_memory_equal(got, prompt + count + known, (size_t)(max_tokens - known) * sizeof *got);
    assert_int_equal(fake_end(f, handle), ST_OK);
}

static void expect_apart(int32_t *prompt, int32_t count, int32_t max_tokens) {
    int32_t n = fake_expect_apart(&eng_sampling_default, -1, prompt, count, max_tokens, READER, prompt + count);
    assert_int_equal(n, max_tokens);
}

/* However much of the answer is known, the prompt and no more is wanted; the rest is computed here. */
static void apart_wants_the_prompt_alone(void **state) {
    (void)state;
    int32_t all[60];
    fake_prompt(all, 40, 0, 2);
    expect_apart(all, 40, 9);
    for (int32_t known = 0; known < 9; known++) {
        fake_node *f = fake_create(&limits);
        submit_apart(f, 1, all, 40 + known, 40, 9);        /* local_tokens_max does not matter */
        const node_event *e = fake_event(f, 1, NODE_RESERVED);
        assert_true(e->reserved.ticket != 0 && e->reserved.cached == 0);
        assert_int_equal(e->reserved.wanted, 39);
        assert_int_equal(fake_promise_of(f, 1)->end, 39);
        fake_land(f, 1, all, 39, known % 2 ? ST_PEER_LOST : ST_OK);    /* all of it came: how it ended is no matter */
        fake_run(f, 100);
        assert_apart_answer(f, 1, all, 40, known, 9);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
    fake_node *f = fake_create(&limits);                   /* a prompt of one token has nothing to come */
    expect_apart(all, 1, 9);
    submit_apart(f, 1, all, 1, 1, 9);
    assert_int_equal(fake_event(f, 1, NODE_RESERVED)->reserved.ticket, 0);
    fake_run(f, 100);
    assert_apart_answer(f, 1, all, 1, 0, 9);
    fake_destroy(f);
}

static void apart_landed_short_is_the_end(void **state) {
    (void)state;
    int32_t prompt[40];
    fake_prompt(prompt, 40, 0, 2);
    for (int32_t landed = 0; landed < 39; landed++) {
        fake_node *f = fake_create(&limits);
        submit_apart(f, 1, prompt, 40, 40, 9);
        if (landed % 2) node_core_landing(f->core, 1);
        fake_land(f, 1, prompt, landed, ST_PEER_LOST);
        assert_int_equal(fake_end(f, 1), ST_PEER_STALE);
        assert_null(fake_event(f, 1, NODE_LANDED));
        assert_int_equal(fake_run(f, 100), 0);
        fake_assert_pages_back(f);
        submit_apart(f, 2, prompt, 40, 40, 9);             /* and nothing of it is found again */
        assert_int_equal(fake_event(f, 2, NODE_RESERVED)->reserved.cached, 0);
        node_core_cancel(f->core, 2);
        fake_land(f, 2, prompt, 0, ST_CANCELED);
        fake_destroy(f);
    }
}

/* Preempted, one whose prompt is still cached goes on, and one whose prompt is not ends. The cache keeps full pages, so
 * a prompt of 10 tokens in pages of 4 always lacks its ninth. */
static void apart_preempted(void **state) {
    (void)state;
    for (int32_t count = 9; count <= 10; count++) {
        node_limits small = limits;
        small.pages = 24;
        fake_node *f = fake_create(&small);
        int32_t prompts[6][70];
        node_counts counts;
        int finished = 0;
        for (uint64_t i = 0; i < 6; i++) {
            fake_prompt(prompts[i], count, 0, i);
            expect_apart(prompts[i], count, 60);
            read_apart(f, i, prompts[i], count, 60);
        }
        fake_run(f, 10000);
        node_core_counts(f->core, &counts);
        assert_true(counts.preemptions > 0);
        for (uint64_t i = 0; i < 6; i++) {
            bool whole = fake_end(f, i) == ST_OK;
            finished += whole;
            if (whole) assert_apart_answer(f, i, prompts[i], count, 0, 60);
            else assert_int_equal(fake_end(f, i), ST_AGAIN);
        }
        assert_true(count == 10 ? finished + counts.preemptions == 6 : finished + counts.preemptions > 6);
        assert_true(finished < 6);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* An answer's pages are not for those to whom the same tokens are prompt, nor a prompt's for whom they are answer. */
static void apart_prompts_and_answers_share_no_page(void **state) {
    (void)state;
    int32_t all[80], copy[80];
    fake_node *f = fake_create(&limits);
    fake_prompt(all, 10, 0, 4);
    expect_apart(all, 10, 20);
    read_apart(f, 1, all, 10, 20);
    fake_run(f, 100);
    assert_apart_answer(f, 1, all, 10, 0, 20);
    memcpy(copy, all, sizeof copy);
    expect_apart(copy, 30, 9);                             /* the conversation goes on */
    read_apart(f, 2, copy, 30, 9);
    assert_int_equal(fake_event(f, 2, NODE_RESERVED)->reserved.cached, 8);         /* two full pages of the first prompt */
    fake_run(f, 100);
    assert_apart_answer(f, 2, copy, 30, 0, 9);
    submit_apart(f, 3, all, 25, 10, 20);                   /* the first one's failover: pages of all 25 are there */
    const node_event *e = fake_event(f, 3, NODE_RESERVED);
    assert_true(e->reserved.ticket == 0 && e->reserved.cached == 9 && e->reserved.wanted == 9);
    fake_run(f, 100);
    assert_apart_answer(f, 3, all, 10, 15, 20);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(local_prefill_answers), cmocka_unit_test(transfer_that_lands_whole_or_in_part),
        cmocka_unit_test(cached_prefix_is_not_asked_for), cmocka_unit_test(ends_where_it_should),
        cmocka_unit_test(goes_on_from_answer_tokens), cmocka_unit_test(an_ended_answer_is_not_continued),
        cmocka_unit_test(cancel_at_every_state), cmocka_unit_test(canceled_and_continued),
        cmocka_unit_test(refusals_say_numbers),
        cmocka_unit_test(preempted_and_the_same_bytes),
        cmocka_unit_test(newcomers_do_not_pass_who_waits), cmocka_unit_test(twins_do_not_block_each_other),
        cmocka_unit_test(a_slow_reader_holds_nobody_up),
        cmocka_unit_test(apart_wants_the_prompt_alone), cmocka_unit_test(apart_landed_short_is_the_end),
        cmocka_unit_test(apart_preempted), cmocka_unit_test(apart_prompts_and_answers_share_no_page)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
