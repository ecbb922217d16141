/* Tests node/schedule.c, and by it node/core.c and node/seq.c: the order as tables; then crowds that share too few pages
 * under each schedule, their KV swapped or computed again: right answers, bounded waits, every page back. */
#include "node/core.h"
#include "tests/unit/node_fake.h"

static const node_limits limits = {.V = FAKE_V, .context = 256, .pages = 24, .page_tokens = 4, .sequences_max = 8,
                                   .step_tokens_max = 16, .chunk_tokens = 16, .logits_max = 8, .prefix_cache = true};

static uint64_t seed_state;
static uint32_t dice(uint32_t sides) {
    seed_state = seed_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed_state >> 33) % sides;
}

/* ---- tables ------------------------------------------------------------------------------------------ */

static void found_by_name(void **state) {
    (void)state;
    assert_ptr_equal(node_schedule_find("decode-first")->form, node_batch_decode_first);
    assert_ptr_equal(node_schedule_find("fcfs")->form, node_batch_in_order);
    assert_true(node_schedule_find("mlfq")->levels && !node_schedule_find("fcfs")->levels);
    assert_null(node_schedule_find("lifo"));
}

static void levels_double(void **state) {
    (void)state;
    const int64_t q = NODE_QUANTUM_US;
    const struct { int64_t service; int32_t priority; bool promoted; int32_t level; } table[] = {
        {0, 0, false, 0}, {q - 1, 0, false, 0}, {q, 0, false, 1}, {3 * q - 1, 0, false, 1}, {3 * q, 0, false, 2},
        {7 * q, 0, false, 3}, {q << 40, 0, false, NODE_LEVELS - 1},
        {0, 3, false, 0}, {7 * q, 2, false, 1}, {0, -2, false, 2}, {q, -2, false, 3}, {q << 40, -5, false, NODE_LEVELS - 1},
        {0, -100, false, NODE_LEVELS - 1}, {0, -100, true, 0}, {q - 1, -3, true, 0}, {q, -3, true, 4}, {3 * q, 1, true, 1}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        assert_int_equal(node_schedule_level(table[i].service, table[i].priority, table[i].promoted), table[i].level);
}

static void order(void **state) {
    (void)state;
    const node_place first = {0, 100, 7}, table[] = {{0, 100, 8}, {0, 101, 6}, {1, 0, 1}};    /* each behind the one before */
    const node_place *before = &first;
    for (size_t i = 0; i < sizeof table / sizeof *table; before = &table[i++]) {
        assert_true(node_schedule_before(before, &table[i]));
        assert_false(node_schedule_before(&table[i], before));
    }
    assert_false(node_schedule_before(&first, &first));
    /* Priority 5 passes who came up to five seconds before. */
    assert_true(node_schedule_since(4999999, 5) < node_schedule_since(0, 0));
    assert_true(node_schedule_since(5000001, 5) > node_schedule_since(0, 0));
}

/* ---- crowds ------------------------------------------------------------------------------------------ */

enum { JOBS = 40, PROMPT_MAX = 40 };

typedef struct job {
    int32_t prompt[PROMPT_MAX], count, max_tokens, priority;
    uint64_t handle;             /* of the last try; 0: none */
    int64_t due_us;
} job;

typedef struct crowd {
    fake_node *f;
    job jobs[JOBS];
    uint64_t handles;
    int64_t longest_us;          /* wait for a row of who wanted one */
} crowd;

static void set_up(crowd *w, const node_limits *l, uint64_t seed) {
    seed_state = seed;
    *w = (crowd){.f = fake_create(l)};
    w->f->step_us = 20000;
    for (int i = 0; i < JOBS; i++) {
        job *j = &w->jobs[i];
        j->count = (int32_t)dice(PROMPT_MAX) + 1;
        j->max_tokens = 1 + (int32_t)dice(dice(4) ? 12 : 48);
        j->priority = dice(3) ? 0 : (int32_t)dice(5) - 2;
        j->due_us = dice(4000000);
        fake_prompt(j->prompt, j->count, (int32_t)dice(10), (uint64_t)i);
    }
}

/* Who is due and has not been taken is tried (again). false: all have ended well. */
static bool submit_due(crowd *w) {
    bool open = false;
    for (int i = 0; i < JOBS; i++) {
        job *j = &w->jobs[i];
        int end = j->handle ? fake_end(w->f, j->handle) : ST_AGAIN;
        open = open || end != ST_OK;
        if (end != ST_AGAIN || j->due_us > w->f->now_us) continue;
        node_request *r = fake_request(j->handle = ++w->handles, j->prompt, j->count, j->max_tokens);
        r->priority = j->priority;
        j->due_us = w->f->now_us + 50000;
        node_core_submit(w->f->core, &decode_role, r, w->f->now_us);
    }
    return open;
}

static void note_waits(crowd *w) {
    for (const node_seq *s = w->f->core->first; s; s = s->next)
        if (w->f->now_us - s->served_us > w->longest_us) w->longest_us = w->f->now_us - s->served_us;
}

static void run(crowd *w) {
    for (int steps = 0; submit_due(w); steps++) {
        assert_true(steps < 20000);
        node_core_step(w->f->core, w->f->now_us);
        w->f->now_us += w->f->step_us;
        note_waits(w);
    }
}

static void crowds_of_each_schedule(void **state) {
    (void)state;
    for (int s = 0; s < node_schedules_count; s++)
        for (int how = NODE_PREEMPT_AUTO; how <= NODE_PREEMPT_SWAP; how++) {
            node_counts counts = {0}, now;
            int64_t longest_us = 0;
            for (uint64_t seed = 1; seed <= 20; seed++) {
                node_limits l = limits;
                l.schedule = &node_schedules[s];
                l.preemption = (node_preemption)how;
                l.swap_pages = 12;
                crowd w;
                set_up(&w, &l, seed);
                bool dear = how == NODE_PREEMPT_AUTO && seed % 2;      /* tried once, then computed again */
                w.f->swap_us = dear ? 1000000 : 10;
                run(&w);
                for (int i = 0; i < JOBS; i++)
                    fake_assert_answer(w.f, w.jobs[i].handle, w.jobs[i].prompt, w.jobs[i].count, w.jobs[i].max_tokens);
                fake_assert_pages_back(w.f);
                node_core_counts(w.f->core, &now);
                assert_true(!dear || now.swaps <= 1);
                counts.preemptions += now.preemptions;
                counts.swaps += now.swaps;
                if (w.longest_us > longest_us) longest_us = w.longest_us;
                fake_destroy(w.f);
            }
            print_message("  %s, %s: %d preempted, %d of them swapped, longest wait %.2f s\n", node_schedules[s].name,
                          (const char *[]){"auto", "recompute", "swap"}[how], (int)counts.preemptions, (int)counts.swaps,
                          (double)longest_us / 1e6);
            assert_true(counts.preemptions > 20);
            assert_true(how == NODE_PREEMPT_RECOMPUTE ? counts.swaps == 0 : counts.swaps > 10);
            if (how == NODE_PREEMPT_AUTO) assert_true(counts.swaps < counts.preemptions);
        }
}

/* One long answer, and a stream of short ones of that priority that always want more pages than there are. How long
 * the long one was without a row at most. */
static int64_t beside_a_stream(const char *schedule, int32_t priority) {
    enum { CLIENTS = 7, LONG = 1 };
    node_limits l = limits;
    l.schedule = node_schedule_find(schedule);
    fake_node *f = fake_create(&l);
    int32_t prompt[9];
    uint64_t handles = LONG, client[CLIENTS] = {0};
    int64_t longest_us = 0;
    int ended = 0;
    f->step_us = 20000;
    fake_prompt(prompt, 9, 0, LONG);
    node_core_submit(f->core, &decode_role, fake_request(LONG, prompt, 9, 80), 0);
    for (int steps = 0; fake_end(f, LONG) < 0; steps++, f->now_us += f->step_us) {
        assert_true(steps < 5000);
        for (int i = 0; i < CLIENTS; i++) {
            if (client[i] && fake_end(f, client[i]) < 0) continue;
            ended += client[i] && fake_end(f, client[i]) == ST_OK;
            int32_t words[9];
            fake_prompt(words, 9, 0, client[i] = ++handles);
            node_request *r = fake_request(handles, words, 9, 12 + (int32_t)handles % 7);
            r->priority = priority;
            node_core_submit(f->core, &decode_role, r, f->now_us);
        }
        node_core_step(f->core, f->now_us);
        for (const node_seq *s = f->core->first; s; s = s->next)
            if (s->request->handle == LONG && f->now_us - s->served_us > longest_us) longest_us = f->now_us - s->served_us;
    }
    node_counts counts;
    node_core_counts(f->core, &counts);
    print_message("  %s, priority %d: longest wait %.2f s, %d preempted, %d short answers\n", schedule, priority,
                  (double)longest_us / 1e6, (int)counts.preemptions, ended);
    fake_assert_answer(f, LONG, prompt, 9, 80);
    node_core_cancel_all(f->core);
    fake_assert_pages_back(f);
    fake_destroy(f);
    assert_true(ended > 5);
    return longest_us;
}

/* Nobody starves: by aging, and because priority is worth so much age and no more. */
static void waits_are_bounded(void **state) {
    (void)state;
    int64_t first_us = beside_a_stream("decode-first", 0), passed_us = beside_a_stream("decode-first", 3);
    assert_true(first_us < 100000);
    assert_in_range(passed_us, 500000, 3 * NODE_PRIORITY_US + 500000);
    assert_in_range(beside_a_stream("mlfq", 0), NODE_AGE_US, NODE_AGE_US + 5 * NODE_QUANTUM_US);
    assert_in_range(beside_a_stream("mlfq", 4), NODE_AGE_US, NODE_AGE_US + 4 * NODE_PRIORITY_US + 5 * NODE_QUANTUM_US);
}

/* Room for two: of two that run the one of lower priority gives its pages to a third of a higher one, never to an
 * equal. */
static void pages_go_to_the_higher_priority(void **state) {
    (void)state;
    for (int32_t priority = 0; priority <= 2; priority++) {
        fake_node *f = fake_create(&limits);
        int32_t prompts[3][38];
        for (uint64_t h = 0; h < 3; h++) {
            fake_prompt(prompts[h], 38, 0, h);
            node_request *r = fake_request(h, prompts[h], 38, 5);
            r->priority = h == 0 ? 1 : h == 1 ? 0 : priority;
            node_core_submit(f->core, &decode_role, r, f->now_us);
            if (h == 1) fake_run(f, 6);                    /* both have read and begun to answer */
        }
        node_counts counts;
        node_core_counts(f->core, &counts);
        assert_int_equal(counts.preemptions, priority > 0);
        assert_int_equal(fake_end(f, 2), priority > 0 ? -1 : ST_AGAIN);
        fake_run(f, 1000);
        for (uint64_t h = 0; h < (priority > 0 ? 3 : 2); h++) fake_assert_answer(f, h, prompts[h], 38, 5);
        fake_assert_pages_back(f);
        fake_destroy(f);
    }
}

/* Two answers whose readers are slow hold all pages; who comes then, local or remote, has theirs. When their readers
 * go on, so do they, with the same bytes. */
static void slow_readers_hold_up_nobody(void **state) {
    (void)state;
    enum { COUNT = 8, SLOW = 2, LONG = 60, NEW = 12 };
    for (int remote = 0; remote < 2; remote++)
        for (int swap = 0; swap < 2; swap++) {
            node_limits l = limits;
            l.prefix_cache = false;
            l.pages = 20;
            l.swap_pages = swap ? l.pages : 0;
            l.preemption = swap ? NODE_PREEMPT_SWAP : NODE_PREEMPT_RECOMPUTE;
            fake_node *f = fake_create(&l);
            node_counts counts;
            int32_t prompt[SLOW + 1][COUNT];
            for (uint64_t i = 0; i < SLOW + 1; i++) fake_prompt(prompt[i], COUNT, 0, i);
            for (uint64_t i = 0; i < SLOW; i++)
                node_core_submit(f->core, &decode_role, fake_request(i, prompt[i], COUNT, LONG), f->now_us);
            fake_run(f, 30);                                           /* 8 + 30 tokens each: 10 pages */
            for (uint64_t i = 0; i < SLOW; i++) node_core_pause(f->core, i, true);
            assert_int_equal(fake_run(f, 5), 0);
            node_core_counts(f->core, &counts);
            assert_int_equal(counts.pages[ENG_PAGE_FREE], 0);
            node_request *r = fake_request(SLOW, prompt[SLOW], COUNT, NEW);
            if (remote) r->local_tokens_max = 0;
            node_core_submit(f->core, &decode_role, r, f->now_us);
            if (remote) fake_land(f, SLOW, prompt[SLOW], COUNT - 1, ST_OK);
            fake_run(f, 100);
            fake_assert_answer(f, SLOW, prompt[SLOW], COUNT, NEW);
            node_core_counts(f->core, &counts);
            assert_true(counts.preemptions > 0 && (counts.swaps > 0) == (swap == 1));
            for (uint64_t i = 0; i < SLOW; i++) assert_int_equal(fake_end(f, i), -1);
            for (uint64_t i = 0; i < SLOW; i++) node_core_pause(f->core, i, false);
            fake_run(f, 500);
            for (uint64_t i = 0; i < SLOW; i++) fake_assert_answer(f, i, prompt[i], COUNT, LONG);
            fake_assert_pages_back(f);
            fake_destroy(f);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(found_by_name), cmocka_unit_test(levels_double), cmocka_unit_test(order),
                                       cmocka_unit_test(crowds_of_each_schedule), cmocka_unit_test(waits_are_bounded),
                                       cmocka_unit_test(pages_go_to_the_higher_priority),
                                       cmocka_unit_test(slow_readers_hold_up_nobody)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
