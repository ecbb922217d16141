/* Tests prefill-node/prefill.c: chunks pushed while the next is computed, and each arrow of its picture. */
#include "tests/unit/node_fake.h"

static const node_limits limits = {.V = FAKE_V, .context = 256, .pages = 32, .page_tokens = 4,
                                   .sequences_max = 8, .step_tokens_max = 16, .chunk_tokens = 8,
                                   .logits_max = 8, .prefix_cache = true};

static node_request *request(uint64_t handle, const int32_t *prompt, int32_t count, int32_t skip,
                             int32_t send_end) {
    node_request *r = fake_request(handle, prompt, count, 0);
    r->ticket = 77;
    r->skip = skip;
    r->send_end = send_end;
    return r;
}

static void assert_first_token(const fake_node *f, uint64_t handle, const int32_t *prompt, int32_t count) {
    int32_t want;
    fake_expect(&eng_sampling_default, -1, prompt, count, 1, &want);
    const node_event *e = fake_event(f, handle, NODE_FIRST_TOKEN);
    assert_non_null(e);
    assert_int_equal(e->token.index, count);
    assert_int_equal(e->token.sampled.token, want);
}

static void chunks_leave_while_the_next_computes(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompt[30];
    fake_prompt(prompt, 30, 0, 1);
    node_core_submit(f->core, &prefill_role, request(1, prompt, 30, 5, 29), 0);
    fake_send *x = fake_send_of(f, 1);
    static const int32_t pushed[] = {8, 16, 24, 29};
    node_counts counts;
    for (int step = 0; step < 4; step++) {
        assert_int_equal(fake_run(f, 1), 1);
        assert_int_equal(x->pushed_first, 5);
        assert_int_equal(x->pushed_end, pushed[step]);
        assert_int_equal(x->ended, step == 3);
    }
    assert_first_token(f, 1, prompt, 30);
    assert_int_equal(fake_end(f, 1), -1);                  /* the link still reads the pages */
    node_core_counts(f->core, &counts);
    assert_int_equal(counts.pages[ENG_PAGE_SENDING], 7);
    fake_sent(f, 1, ST_OK);
    assert_int_equal(fake_event(f, 1, NODE_SENT)->sent.bytes, 100);
    assert_int_equal(fake_end(f, 1), ST_OK);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

static void cached_rows_leave_at_once(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t one[30], two[30];
    fake_prompt(one, 30, 22, 1);
    fake_prompt(two, 30, 22, 2);
    node_core_submit(f->core, &prefill_role, request(1, one, 30, 0, 29), 0);
    fake_run(f, 100);
    fake_sent(f, 1, ST_OK);
    node_core_submit(f->core, &prefill_role, request(2, two, 30, 4, 29), 0);
    fake_send *x = fake_send_of(f, 2);
    assert_true(x->pushed_first == 4 && x->pushed_end == 22);
    fake_run(f, 100);
    assert_int_equal(x->pushed_end, 29);
    assert_int_equal(fake_event(f, 2, NODE_FIRST_TOKEN)->token.cached, 22);
    assert_first_token(f, 2, two, 30);
    fake_sent(f, 2, ST_OK);
    node_core_submit(f->core, &prefill_role, request(3, two, 30, 29, 29), 0);   /* nothing to send */
    fake_run(f, 100);
    assert_null(fake_send_of(f, 3));
    assert_first_token(f, 3, two, 30);
    assert_int_equal(fake_end(f, 3), ST_OK);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

/* The KV that stands in the pages when it is pushed is what a lone computation gives. */
static void what_is_pushed_is_final(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompts[4][20];
    for (uint64_t i = 0; i < 4; i++) {
        fake_prompt(prompts[i], 20, 6, i);
        node_core_submit(f->core, &prefill_role, request(i, prompts[i], 20, 2, 19), 0);
    }
    while (fake_run(f, 1))
        for (uint64_t i = 0; i < 4; i++) {
            fake_send *x = fake_send_of(f, i);
            uint64_t hash = 1;
            for (int32_t t = 0; t < x->pushed_end; t++) {
                hash = fake_mix(hash, (uint64_t)prompts[i][t]);
                if (t >= x->pushed_first) assert_true(*fake_slot(f, x->blocks, t) == hash);
            }
        }
    for (uint64_t i = 0; i < 4; i++) {
        assert_first_token(f, i, prompts[i], 20);
        fake_sent(f, i, ST_OK);
    }
    fake_assert_pages_back(f);
    fake_destroy(f);
}

static void waits_for_pages_in_order(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompts[5][60];
    for (uint64_t i = 0; i < 5; i++) {
        fake_prompt(prompts[i], 60, 0, i);
        node_core_submit(f->core, &prefill_role, request(i, prompts[i], i == 4 ? 4 : 60, 0, i == 4 ? 3 : 59), 0);
    }
    node_counts counts;
    node_core_counts(f->core, &counts);
    assert_true(counts.running == 2 && counts.waiting == 3);   /* the small one does not pass by */
    fake_run(f, 100);
    assert_int_equal(f->sends_count, 2);
    fake_sent(f, 0, ST_OK);
    fake_run(f, 100);
    assert_int_equal(f->sends_count, 3);                   /* in order: room for one more, not for both */
    fake_sent(f, 1, ST_OK);
    fake_run(f, 100);
    assert_int_equal(f->sends_count, 5);
    for (uint64_t i = 0; i < 5; i++) {
        assert_first_token(f, i, prompts[i], i == 4 ? 4 : 60);
        if (fake_send_of(f, i)->open) fake_sent(f, i, ST_OK);
        assert_int_equal(fake_end(f, i), ST_OK);
    }
    fake_assert_pages_back(f);
    fake_destroy(f);
}

static void broken_transfers_end_it(void **state) {
    (void)state;
    int32_t prompt[30];
    fake_prompt(prompt, 30, 0, 1);
    for (int steps = 0; steps < 5; steps++) {
        fake_node *f = fake_create(&limits);
        node_core_submit(f->core, &prefill_role, request(1, prompt, 30, 0, 29), 0);
        fake_run(f, steps);
        fake_sent(f, 1, ST_PEER_STALE);
        assert_int_equal(fake_end(f, 1), ST_PEER_STALE);
        assert_false(node_core_step(f->core, 0));
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
    fake_node *f = fake_create(&limits);
    f->send_fails = ST_BAD_INPUT;
    node_core_submit(f->core, &prefill_role, request(1, prompt, 30, 0, 29), 0);
    assert_int_equal(fake_end(f, 1), ST_BAD_INPUT);
    f->send_fails = ST_OK;
    f->step_fails = ST_DEVICE;
    node_core_submit(f->core, &prefill_role, request(2, prompt, 30, 0, 29), 0);
    fake_run(f, 1);
    assert_int_equal(fake_end(f, 2), -1);
    fake_sent(f, 2, ST_CANCELED);
    assert_int_equal(fake_end(f, 2), ST_DEVICE);
    node_core_submit(f->core, &prefill_role, request(3, prompt, 30, 9, 8), 0);
    node_core_submit(f->core, &prefill_role, request(4, prompt, 30, 0, 31), 0);
    assert_int_equal(fake_end(f, 3), ST_BAD_INPUT);
    assert_int_equal(fake_end(f, 4), ST_BAD_INPUT);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

static void cancel_at_every_state(void **state) {
    (void)state;
    int32_t prompt[128];
    fake_prompt(prompt, 128, 0, 1);
    for (int steps = 0; steps < 5; steps++) {
        fake_node *f = fake_create(&limits);
        node_counts counts;
        node_core_submit(f->core, &prefill_role, request(1, prompt, 30, 0, 29), 0);
        fake_run(f, steps);
        node_core_cancel(f->core, 1);
        node_core_cancel(f->core, 1);
        assert_true(fake_send_of(f, 1)->aborted);
        assert_false(node_core_step(f->core, 0));          /* it computes no more */
        assert_int_equal(fake_end(f, 1), -1);
        node_core_counts(f->core, &counts);
        assert_int_equal(counts.pages[ENG_PAGE_SENDING], 8);
        fake_sent(f, 1, steps == 4 ? ST_OK : ST_CANCELED);
        assert_int_equal(fake_end(f, 1), ST_CANCELED);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
    fake_node *f = fake_create(&limits);
    node_core_submit(f->core, &prefill_role, request(1, prompt, 100, 0, 99), 0);
    node_core_submit(f->core, &prefill_role, request(2, prompt + 1, 100, 0, 99), 0);
    node_core_cancel(f->core, 2);                          /* still waiting */
    assert_int_equal(fake_end(f, 2), ST_CANCELED);
    node_core_cancel_all(f->core);
    fake_sent(f, 1, ST_CANCELED);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

/* ---- prompts read ahead: rule 4 --------------------------------------------------------------------- */

static node_request *hold(uint64_t handle, const int32_t *prompt, int32_t count) {
    node_request *r = request(handle, prompt, count, 0, 0);
    r->hold = true;
    return r;
}

static int32_t pages_in(const fake_node *f, eng_page_state state) {
    node_counts counts;
    node_core_counts(f->core, &counts);
    return counts.pages[state];
}

static void held_until_it_is_sent(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompt[31], other[60];
    fake_prompt(prompt, 31, 0, 1);
    fake_prompt(other, 60, 0, 2);
    node_core_submit(f->core, &prefill_role, hold(1, prompt, 30), 0);
    fake_run(f, 100);
    assert_first_token(f, 1, prompt, 30);
    assert_int_equal(fake_end(f, 1), -1);                  /* it is kept until it is canceled */
    assert_true(pages_in(f, ENG_PAGE_HELD) == 8 && !fake_send_of(f, 1));
    node_core_submit(f->core, &prefill_role, request(2, other, 60, 0, 59), 0);
    fake_run(f, 100);
    fake_sent(f, 2, ST_OK);
    node_core_submit(f->core, &prefill_role, request(3, other + 1, 59, 0, 58), 0);      /* evicts all that is cached */
    fake_run(f, 100);
    fake_sent(f, 3, ST_OK);
    prompt[30] = fake_event(f, 1, NODE_FIRST_TOKEN)->token.sampled.token;
    node_core_submit(f->core, &prefill_role, request(4, prompt, 31, 0, 30), 0);
    assert_int_equal(fake_send_of(f, 4)->pushed_end, 28);  /* its full pages leave at once */
    node_core_cancel(f->core, 1);
    assert_int_equal(fake_end(f, 1), ST_CANCELED);
    fake_run(f, 100);
    assert_int_equal(fake_send_of(f, 4)->pushed_end, 30);
    assert_int_equal(fake_event(f, 4, NODE_FIRST_TOKEN)->token.cached, 28);
    fake_sent(f, 4, ST_OK);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

static void holds_are_bounded(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompts[8][80];
    for (uint64_t i = 0; i < 8; i++) fake_prompt(prompts[i], 80, 0, i);
    node_core_submit(f->core, &prefill_role, hold(0, prompts[0], 65), 0);      /* 17 of 32 pages */
    assert_int_equal(fake_end(f, 0), ST_AGAIN);
    for (uint64_t i = 1; i < 7; i++) node_core_submit(f->core, &prefill_role, hold(i, prompts[i], 4), 0);
    for (uint64_t i = 1; i < 7; i++) assert_int_equal(fake_end(f, i), i < 5 ? -1 : ST_AGAIN);      /* 4 of 8 sequences */
    fake_run(f, 100);
    node_core_cancel(f->core, 4);
    node_core_submit(f->core, &prefill_role, hold(7, prompts[7], 53), 0);      /* 3 + 14 pages */
    assert_int_equal(fake_end(f, 7), ST_AGAIN);
    node_core_cancel_all(f->core);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

/* Nobody waits for held pages, and no hold waits for anybody's. */
static void holds_make_room(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompts[4][128];
    for (uint64_t i = 0; i < 4; i++) fake_prompt(prompts[i], 128, 0, i);
    node_core_submit(f->core, &prefill_role, hold(1, prompts[1], 32), 0);
    fake_run(f, 100);
    node_core_submit(f->core, &prefill_role, hold(2, prompts[2], 32), f->now_us);
    fake_run(f, 100);
    assert_int_equal(pages_in(f, ENG_PAGE_HELD), 16);
    node_core_submit(f->core, &prefill_role, request(3, prompts[3], 80, 0, 79), f->now_us);     /* 20 pages: 4 too few */
    assert_non_null(fake_send_of(f, 3));
    assert_int_equal(pages_in(f, ENG_PAGE_HELD), 8);       /* the last one's are cached now */
    assert_true(fake_end(f, 1) == -1 && fake_end(f, 2) == -1);
    node_core_submit(f->core, &prefill_role, hold(0, prompts[0], 32), f->now_us);
    assert_int_equal(fake_end(f, 0), ST_AGAIN);
    fake_run(f, 100);
    assert_first_token(f, 3, prompts[3], 80);
    fake_sent(f, 3, ST_OK);
    node_core_cancel_all(f->core);
    fake_assert_pages_back(f);
    node_core_submit(f->core, &prefill_role, request(4, prompts[1], 32, 0, 31), f->now_us);
    assert_int_equal(fake_send_of(f, 4)->pushed_end, 31);  /* never unpinned, never evicted; 3 tokens of its last page */
    node_core_cancel_all(f->core);
    fake_sent(f, 4, ST_CANCELED);
    fake_destroy(f);
}

/* Rule 5: a decode node dies while its prompt is read, and the next attempt finds what was. */
static void what_was_read_is_found_again(void **state) {
    (void)state;
    int32_t prompt[40];
    fake_prompt(prompt, 40, 0, 1);
    for (int how = 0; how < 3; how++) {
        fake_node *f = fake_create(&limits);
        node_core_submit(f->core, &prefill_role, how == 2 ? hold(1, prompt, 40) : request(1, prompt, 40, 0, 39), 0);
        fake_run(f, 3);                                    /* 24 rows */
        if (how != 1) node_core_cancel(f->core, 1);
        if (how == 0) assert_int_equal(fake_end(f, 1), -1);
        node_core_submit(f->core, &prefill_role, request(2, prompt, 40, 0, 39), 0);
        if (how == 0) fake_sent(f, 1, ST_CANCELED);        /* the fence comes later */
        if (how == 1) {
            assert_int_equal(fake_send_of(f, 2)->pushed_first, -1);
            node_core_cancel(f->core, 2);
            fake_sent(f, 2, ST_CANCELED);
            fake_sent(f, 1, ST_PEER_LOST);
            node_core_submit(f->core, &prefill_role, request(2, prompt, 40, 0, 39), 0);
        }
        assert_int_equal(fake_send_of(f, 2)->pushed_end, 24);
        fake_run(f, 100);
        fake_sent(f, 2, ST_OK);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_leave_while_the_next_computes), cmocka_unit_test(cached_rows_leave_at_once),
        cmocka_unit_test(what_is_pushed_is_final),              cmocka_unit_test(waits_for_pages_in_order),
        cmocka_unit_test(broken_transfers_end_it),              cmocka_unit_test(cancel_at_every_state),
        cmocka_unit_test(held_until_it_is_sent),                cmocka_unit_test(holds_are_bounded),
        cmocka_unit_test(holds_make_room),                      cmocka_unit_test(what_was_read_is_found_again)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
