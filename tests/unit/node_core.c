/* Tests node/core.c and node/seq.c with both roles on one pool: random work, random cancels, failing
 * allocations; afterwards every page is back. */
#include "tests/unit/node_fake.h"

static const node_limits limits = {.V = FAKE_V, .context = 128, .pages = 40, .page_tokens = 4,
                                   .sequences_max = 16, .step_tokens_max = 24, .chunk_tokens = 8,
                                   .logits_max = 6, .prefix_cache = true};

static uint64_t seed_state;
static uint32_t dice(uint32_t sides) {
    seed_state = seed_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed_state >> 33) % sides;
}

/* Moves the fake link by one event: a landing, an end of a transfer, an answer to an abort. */
static void link_moves(fake_node *f, int32_t (*prompts)[60]) {
    for (int i = 0; i < f->promises_count; i++) {
        fake_promise *p = &f->promises[i];
        if (!p->open || dice(3)) continue;
        if (!dice(2)) node_core_landing(f->core, p->handle);
        int32_t landed = (int32_t)dice((uint32_t)(p->end - p->first) + 1);
        if (p->revoked || !dice(3))
            fake_land(f, p->handle, prompts[p->handle % 64], landed,
                      p->revoked ? ST_CANCELED : landed == p->end - p->first ? ST_OK : ST_PEER_LOST);
    }
    for (int i = 0; i < f->sends_count; i++) {
        fake_send *x = &f->sends[i];
        if (!x->open || dice(3)) continue;
        if (x->ended || x->aborted || !dice(20))
            fake_sent(f, x->handle, x->aborted ? ST_CANCELED : x->ended ? ST_OK : ST_PEER_LOST);
    }
}

static node_request *any_request(uint64_t handle, const int32_t *prompt, int32_t count, const node_role **role) {
    node_request *r = fake_request(handle, prompt, count, (int32_t)dice(40) + 1);
    if (!r) return NULL;
    *role = dice(3) ? &decode_role : &prefill_role;
    r->priority = dice(4) ? 0 : (int32_t)dice(7) - 3;
    if (*role == &decode_role) {
        r->local_tokens_max = (int32_t)dice(2) * 60;
    } else {
        r->send_end = (int32_t)dice((uint32_t)count);
        r->skip = (int32_t)dice((uint32_t)r->send_end + 1);
        r->max_tokens = 0;
    }
    return r;
}

/* Whoever was not canceled and is a decode request that was accepted has its lone answer. */
static void check_answers(const fake_node *f, int32_t (*prompts)[60], const int32_t *counts,
                          const int32_t *max_tokens, uint64_t first, uint64_t end) {
    for (uint64_t h = first; h < end; h++) {
        int st = fake_end(f, h);
        assert_true(st == ST_OK || st == ST_CANCELED || st == ST_AGAIN || st == ST_PEER_LOST);
        if (st == ST_OK && max_tokens[h % 64])
            fake_assert_answer(f, h, prompts[h % 64], counts[h % 64], max_tokens[h % 64]);
    }
}

static void two_thousand_random_cancels(void **state) {
    (void)state;
    static int32_t prompts[64][60];
    static int32_t counts[64], max_tokens[64];
    int canceled = 0, finished = 0;
    uint64_t handle = 0;
    for (int round = 0; canceled < 2000; round++) {
        seed_state = (uint64_t)round + 1;
        node_limits l = limits;
        l.schedule = &node_schedules[round % node_schedules_count];
        l.preemption = (node_preemption)dice(3);
        l.swap_pages = (int32_t)dice(3) * 10;
        fake_node *f = fake_create(&l);
        f->step_us = 1000 << dice(10);
        f->swap_us = 1 + dice(1000);
        uint64_t first = handle;
        while (handle < first + 60) {
            if (!dice(2)) {
                uint64_t slot = handle % 64;
                counts[slot] = (int32_t)dice(50) + 1;
                fake_prompt(prompts[slot], counts[slot], (int32_t)dice(30), dice(5));
                const node_role *role = NULL;
                node_request *r = any_request(handle, prompts[slot], counts[slot], &role);
                max_tokens[slot] = r->max_tokens;
                node_core_submit(f->core, role, r, f->now_us);
                handle++;
            }
            if (!dice(3)) node_core_cancel(f->core, first + dice((uint32_t)(handle - first) + 1));
            if (!dice(8)) node_core_pause(f->core, first + dice(60), dice(2));
            link_moves(f, prompts);
            fake_run(f, (int)dice(6));
        }
        for (uint64_t h = first; h < handle; h++) node_core_pause(f->core, h, false);
        for (int i = 0; i < 400; i++) {
            link_moves(f, prompts);
            fake_run(f, 1000);
        }
        fake_assert_pages_back(f);
        check_answers(f, prompts, counts, max_tokens, first, handle);
        for (uint64_t h = first; h < handle; h++) {
            canceled += fake_end(f, h) == ST_CANCELED;
            finished += fake_end(f, h) == ST_OK;
        }
        fake_destroy(f);
    }
    print_message("  %d canceled, %d finished\n", canceled, finished);
    assert_true(finished > 500);
}

/* A decode and a prefill request; what an allocation's failure leaves of them. */
static void both_roles_once(const int32_t *prompt) {
    fake_node *f = fake_create(&limits);
    for (uint64_t h = 0; f->core && h < 2; h++) {
        node_request *r = fake_request(h, prompt, 50, 10);
        if (!r) continue;
        if (h) r->send_end = 49, r->max_tokens = 0;
        node_core_submit(f->core, h ? &prefill_role : &decode_role, r, 0);
    }
    if (f->core) {
        fake_run(f, 100);
        if (fake_send_of(f, 1)) fake_sent(f, 1, ST_OK);
        for (uint64_t h = 0; h < 2; h++)
            assert_true(fake_end(f, h) == ST_OK || fake_end(f, h) == ST_NO_MEMORY || fake_end(f, h) == -1);
        fake_assert_pages_back(f);
    }
    fake_destroy(f);
}

/* The N-th allocation fails, for each N: an answer or a refusal, never a leak. */
static void every_allocation_may_fail(void **state) {
    (void)state;
    int32_t prompt[60];
    fake_prompt(prompt, 60, 0, 1);
    int64_t live = mem_live(), before = mem_count();
    both_roles_once(prompt);
    int64_t total = mem_count() - before;
    assert_true(total > 10);
    for (int64_t n = 1; n <= total; n++) {
        mem_fail_at(n);
        both_roles_once(prompt);
        mem_fail_at(0);
        assert_int_equal(mem_live(), live);
    }
    print_message("  %d allocations failed\n", (int)total);
}

/* A step allocates nothing. */
static void steps_do_not_allocate(void **state) {
    (void)state;
    fake_node *f = fake_create(&limits);
    int32_t prompt[60];
    fake_prompt(prompt, 60, 0, 1);
    for (uint64_t h = 0; h < 3; h++)
        node_core_submit(f->core, &decode_role, fake_request(h, prompt + h, 40, 60), 0);
    int64_t before = mem_count();
    while (f->events_count < 150) fake_run(f, 1);
    assert_int_equal(mem_count(), before);
    node_core_cancel_all(f->core);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

/* Alone or in a crowd, greedy or warm, drawn here or by the model, any chunk and step size: the same bytes. */
static void company_changes_nothing(void **state) {
    (void)state;
    int32_t want[40], got[40];
    for (int variant = 0; variant < 12; variant++) {
        node_limits l = limits;
        static const int32_t chunks[] = {1, 3, 8, 64}, steps[] = {2, 24, 200};
        l.chunk_tokens = chunks[variant % 4];
        l.step_tokens_max = steps[variant / 4];
        l.pages = 400;
        l.logits_max = 1 + variant;
        fake_node *f = fake_create(&l);
        if (variant % 2) f->sampler = eng_sampler_create(FAKE_V);
        int32_t prompts[16][60];
        for (uint64_t h = 0; h < 16; h++) {
            fake_prompt(prompts[h], 60, 20, h);
            node_request *r = fake_request(h, prompts[h], 20 + (int32_t)h, 40);
            r->sampling.temperature = h % 2 ? 1.0f : 0.0f;
            r->sampling.seed = h;
            node_core_submit(f->core, &decode_role, r, 0);
            fake_run(f, (int)h);
        }
        fake_run(f, 100000);
        for (uint64_t h = 0; h < 16; h++) {
            eng_sampling p = eng_sampling_default;
            p.temperature = h % 2 ? 1.0f : 0.0f;
            p.seed = h;
            fake_expect(&p, -1, prompts[h], 20 + (int32_t)h, 40, want);
            assert_int_equal(fake_tokens(f, h, 20 + (int32_t)h, got), 40);
            assert_memory_equal(got, want, sizeof want);
        }
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* What a step takes is learnt, and chunks are cut by it while someone reads along; alone a prompt has whole steps. */
static void chunks_keep_to_the_itl_target(void **state) {
    (void)state;
    static const node_limits roomy = {.V = FAKE_V, .context = 4096, .pages = 1000, .page_tokens = 4, .sequences_max = 8,
                                      .step_tokens_max = 256, .chunk_tokens = 256, .logits_max = 6};
    static int32_t prompt[2000];
    for (int64_t target_us = 0; target_us <= 7000; target_us += target_us ? 1000 : 6000) {
        node_limits l = roomy;
        l.itl_target_us = target_us;
        fake_node *f = fake_create(&l);
        int64_t most_us = target_us ? target_us : 5000 * 14 / 10, slowest_us = 0;
        f->step_us = 5000;
        f->row_us = 10;                                    /* a tile: 160 */
        fake_prompt(prompt, 2000, 0, 1);
        node_core_submit(f->core, &decode_role, fake_request(1, prompt, 600, 1), 0);
        fake_run(f, 3);
        assert_int_equal(fake_end(f, 1), ST_OK);
        assert_int_equal(f->rows_most, 256);
        node_core_submit(f->core, &decode_role, fake_request(2, prompt, 5, 60), f->now_us);
        fake_run(f, 6);                                    /* it answers */
        node_core_submit(f->core, &decode_role, fake_request(3, prompt + 7, 1500, 1), f->now_us);
        int rows = 0;
        for (int i = 0; i < 6; i++) {
            fake_run(f, 1);
            if (i > 1 && f->took_us > slowest_us) slowest_us = f->took_us;
            rows += (int)((f->took_us - f->step_us) / f->row_us) - 1;
        }
        assert_true(slowest_us <= most_us + 200 && slowest_us >= most_us - 400);
        assert_true(rows < 1500);
        node_core_cancel_all(f->core);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* Logits that are no numbers end the request that the model was to draw for, and no other. */
static void what_cannot_be_drawn_ends_its_request(void **state) {
    (void)state;
    int32_t prompt[20];
    fake_prompt(prompt, 20, 0, 1);
    fake_node *f = fake_create(&limits);
    f->sampler = eng_sampler_create(FAKE_V);
    f->draws_fail = true;
    for (uint64_t h = 0; h < 3; h++) {
        node_request *r = fake_request(h, prompt, 20, 5);
        r->sampling.temperature = h == 1 ? 1.0f : 0.0f;
        if (h == 2) r->send_end = 19, r->max_tokens = 0;
        node_core_submit(f->core, h == 2 ? &prefill_role : &decode_role, r, 0);
    }
    fake_run(f, 100);
    assert_int_equal(fake_end(f, 1), ST_DEVICE);
    fake_assert_answer(f, 0, prompt, 20, 5);
    fake_sent(f, 2, ST_OK);
    fake_assert_pages_back(f);
    fake_destroy(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_thousand_random_cancels), cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(steps_do_not_allocate), cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(chunks_keep_to_the_itl_target), cmocka_unit_test(what_cannot_be_drawn_ends_its_request)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
