/* coord_core.c -- tests coordinator/core.c: queue, limits, many requests, memory, speed. */
#include "coord_story.h"

static void refuses_when_there_is_nobody(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    STORY(&limits,
          {"submit 1", "F1:ST_PEER_LOST/0"},
          {"node 0 P", ""}, {"submit 1", "F1:ST_PEER_LOST/0"},
          {"node 1 D drain", ""}, {"submit 1", "F1:ST_PEER_LOST/0"},
          {"node 1 D", ""}, {"submit 1", "D1.1>1:10,L32"});
}

static void queue_is_bounded_and_in_order(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.queue_max = 2;
    STORY(&limits, {"node 0 D cap=1", ""},
          {"submit 1", "D1.1>0:10,L*"},
          {"submit 2", ""}, {"submit 3", ""},
          {"submit 4", "F4:ST_AGAIN/0"},
          {"cancel 2", "F2:ST_CANCELED/0"},
          {"submit 5", ""},
          {"dend 1.1 ST_AGAIN", ""},             /* back at the head, before 3 and 5 */
          {"submit 6", "F6:ST_AGAIN/0"},
          {"at 50", "D1.2>0:10,L*"},
          {"dend 1.2 done", "F1:ST_OK/2 D3.1>0:10,L*"},
          {"dend 3.1 done", "F3:ST_OK/2 D5.1>0:10,L*"});
}

static void alive_requests_are_bounded(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.requests_max = 2;
    STORY(&limits, {"node 0 D", ""}, {"submit 1", "D1.1>0:10,L*"}, {"submit 2", "D2.1>0:10,L*"},
          {"submit 3", "F3:ST_AGAIN/0"}, {"cancel 1", "xD1.1>0 F1:ST_CANCELED/0"},
          {"submit 3", "D3.1>0:10,L*"});
}

static int64_t refused_for_ms(told *t) {
    coord_event e = {.kind = COORD_SUBMIT, .request = 999};
    const int32_t token = 1;
    coord_actions out;
    e.submit.id = "hint";
    e.submit.tokens = &token;
    e.submit.count = e.submit.prompt_count = e.submit.max_tokens = 1;
    e.submit.deadline_ms = INT64_MAX;
    coord_core_step(t->core, &e, t->now_ms, &out);
    assert_int_equal(out.count, 1);
    assert_int_equal(out.at[0].finish.st, ST_AGAIN);
    assert_non_null(strstr(out.at[0].finish.text, "full"));
    return out.at[0].finish.retry_after_ms;
}

static void hint_follows_the_rate(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.queue_max = 0;
    told t = story_begin(&limits);
    tell(&t, "node 0 D cap=1");
    tell(&t, "submit 1");
    assert_int_equal(refused_for_ms(&t), 1000);              /* nothing is known yet */
    for (int i = 1; i <= 40; i++) {                          /* one answer in 200 ms */
        char event[60];
        t.now_ms += 200;
        snprintf(event, sizeof event, "dend %d.1 done", i);
        tell(&t, event);
        snprintf(event, sizeof event, "submit %d", i + 1);
        tell(&t, event);
    }
    assert_in_range(refused_for_ms(&t), 150, 250);
    t.now_ms += 100000000;
    assert_int_equal(refused_for_ms(&t), 10000);
    coord_core_destroy(t.core);
}

static void next_tick_is_the_earliest_need(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    told t = story_begin(&limits);
    tell(&t, "node 0 D");
    assert_true(coord_core_next_tick_ms(t.core) == INT64_MAX);
    tell(&t, "submit 1 deadline=500");
    tell(&t, "submit 2 deadline=300");
    assert_int_equal(coord_core_next_tick_ms(t.core), 300);
    tell(&t, "cancel 2");
    assert_int_equal(coord_core_next_tick_ms(t.core), 500);
    tell(&t, "dend 1.1 ST_AGAIN");
    assert_int_equal(coord_core_next_tick_ms(t.core), 50);
    coord_core_destroy(t.core);
}

static void no_memory_for_a_request(void **state) {
    (void)state;
    int64_t live = mem_live();
    coord_limits limits = story_limits();
    told t = story_begin(&limits);
    tell(&t, "node 0 D");
    int64_t before = mem_live();
    mem_fail_at(1);
    tell(&t, "submit 1");
    assert_string_equal(t.actions, "F1:ST_NO_MEMORY/0");
    assert_int_equal(mem_live(), before);
    tell(&t, "submit 1");
    assert_string_equal(t.actions, "D1.1>0:10,L*");
    mem_fail_at(1);                                          /* nothing else allocates */
    tell(&t, "tokens 1.1 @10 7");
    tell(&t, "dend 1.1 ST_IO");
    tell(&t, "at 1000");
    tell(&t, "dend 1.2 done");
    assert_string_equal(t.actions, "F1:ST_OK/2");
    mem_fail_at(0);
    coord_core_destroy(t.core);
    assert_int_equal(mem_live(), live);
}

static void no_memory_for_the_core(void **state) {
    (void)state;
    int64_t live = mem_live();
    coord_core *core = NULL;
    for (int64_t nth = 1; !core; nth++) {
        mem_fail_at(nth);
        core = coord_core_create(&coord_limits_default);
        mem_fail_at(0);
        if (!core) assert_int_equal(mem_live(), live);
        assert_true(nth < 20);
    }
    coord_core_destroy(core);
}

/* The most actions that one step can give: a node with every request on it is lost. */
static void loses_a_full_node_at_once(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.requests_max = 300;
    told t = story_begin(&limits);
    tell(&t, "node 0 D cap=300");
    tell(&t, "node 1 P");
    tell(&t, "node 2 D cap=300 drain");
    for (int i = 1; i <= 300; i++) {
        char event[60];
        snprintf(event, sizeof event, "submit %d", i * 64);  /* numbers that share low bits */
        tell(&t, event);
        snprintf(event, sizeof event, "reserved %d.1 0/9", i * 64);
        tell(&t, event);
    }
    coord_event e = {.kind = COORD_NODE_STATE, .node = 2};
    e.node_state = (coord_node){.role = COORD_DECODE, .epoch = 1, .capacity = 300};
    coord_actions out;
    coord_core_step(t.core, &e, 0, &out);
    assert_int_equal(out.count, 0);
    e = (coord_event){.kind = COORD_NODE_LOST, .node = 0};
    coord_core_step(t.core, &e, 0, &out);
    assert_int_equal(out.count, 900);                        /* two cancels and a new place each */
    assert_int_equal(out.at[600].kind, COORD_DO_DECODE);
    for (int i = 0; i < 300; i++) assert_int_equal(out.at[600 + i].request, (i + 1) * 64);
    assert_int_equal(coord_core_counts(t.core).placed, 300);
    coord_core_destroy(t.core);
}

static void hear(coord_core *c, uint64_t epoch, int64_t now_ms, coord_actions *out) {
    coord_event e = {.kind = COORD_NODE_STATE, .node = 0};
    e.node_state = (coord_node){.role = COORD_DECODE, .epoch = epoch, .capacity = 1};
    coord_core_step(c, &e, now_ms, out);
}

/* Epochs are the nodes' clocks, which may have been set back: a process heard after its node was lost is
 * believed; one that speaks late, while a newer one is there, is not. */
static void a_restart_with_an_earlier_clock(void **state) {
    (void)state;
    coord_actions out;
    coord_core *c = coord_core_create(&coord_limits_default);
    int32_t token = 1;
    hear(c, 9, 0, &out);
    coord_event e = {.kind = COORD_NODE_LOST, .node = 0};
    coord_core_step(c, &e, 0, &out);
    hear(c, 7, 1, &out);
    e = (coord_event){.kind = COORD_SUBMIT, .request = 1};
    e.submit.id = "back";
    e.submit.tokens = &token;
    e.submit.count = e.submit.prompt_count = e.submit.max_tokens = 1;
    e.submit.deadline_ms = INT64_MAX;
    e.submit.prefer_node = -1;
    coord_core_step(c, &e, 1, &out);
    assert_int_equal(out.count, 1);
    assert_int_equal(out.at[0].kind, COORD_DO_DECODE);
    hear(c, 6, 2, &out); /* late: nothing is given up for it */
    assert_int_equal(out.count, 0);
    e = (coord_event){.kind = COORD_CANCEL, .request = 1};
    coord_core_step(c, &e, 3, &out);
    coord_core_destroy(c);
}

/* 5,000 requests a second on one core leave 200 us for each; the core's share must be a small part. The
 * bound is loose, for slow machines and sanitizers; the figure printed is the one to read. */
static void is_quick(void **state) {
    (void)state;
    enum { REQUESTS = 20000, ALIVE = 256, TOKENS = 32 };
    coord_limits limits = story_limits();
    told t = story_begin(&limits);
    coord_actions out;
    for (int i = 0; i < 8; i++) {
        char event[60];
        snprintf(event, sizeof event, "node %d %c cap=64", i, i < 4 ? 'D' : 'P');
        tell(&t, event);
    }
    int32_t prompt[200] = {0}, token = 1;
    int64_t began_us = clock_now_us();
    for (uint64_t i = 1; i <= REQUESTS + ALIVE; i++) {
        coord_event e = {.kind = COORD_SUBMIT, .request = i};
        e.submit.id = "quick";
        e.submit.tokens = prompt;
        e.submit.count = e.submit.prompt_count = 200;
        e.submit.max_tokens = TOKENS;
        e.submit.deadline_ms = 1000000;
        e.submit.prefer_node = -1;
        if (i <= REQUESTS) coord_core_step(t.core, &e, 0, &out);
        if (i <= ALIVE) continue;
        for (int32_t k = 0; k < TOKENS; k++) {
            coord_event say = {.kind = COORD_TOKENS, .request = i - ALIVE, .attempt = 1};
            say.tokens.index = 200 + k;
            say.tokens.tokens = &token;
            say.tokens.count = 1;
            coord_core_step(t.core, &say, 0, &out);
            assert_true(out.count == 1 && out.at[0].kind == COORD_DO_EMIT);
        }
        coord_event end = {.kind = COORD_DECODE_END, .request = i - ALIVE, .attempt = 1};
        end.end.done = true;
        coord_core_step(t.core, &end, 0, &out);
        assert_int_equal(out.at[0].finish.st, ST_OK);
    }
    int64_t took_us = clock_now_us() - began_us;
    printf("%d requests of %d tokens in %lld us: %.0f requests/s\n", REQUESTS, TOKENS, (long long)took_us,
           REQUESTS * 1e6 / (double)took_us);
    assert_true(took_us / REQUESTS < 100);
    coord_core_destroy(t.core);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_when_there_is_nobody),
        cmocka_unit_test(queue_is_bounded_and_in_order),
        cmocka_unit_test(alive_requests_are_bounded),
        cmocka_unit_test(hint_follows_the_rate),
        cmocka_unit_test(next_tick_is_the_earliest_need),
        cmocka_unit_test(no_memory_for_a_request),
        cmocka_unit_test(no_memory_for_the_core),
        cmocka_unit_test(loses_a_full_node_at_once),
        cmocka_unit_test(a_restart_with_an_earlier_clock),
        cmocka_unit_test(is_quick),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
