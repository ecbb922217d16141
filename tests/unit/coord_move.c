/* coord_move.c -- tests coordinator/move.c: answers that leave a node which is to have no work, as stories. */
#include "coord_story.h"

static coord_limits limits;

static int setup(void **state) {
    (void)state;
    limits = story_limits();
    limits.local_tokens_max = 4;
    limits.avoid_ms = 100;
    return 0;
}

/* Request 1 runs on node 0 and has said a token. */
#define RUNS {"node 0 D", ""}, {"submit 1", "D1.1>0:10,L*"}, {"reserved 1.1 9/9", ""}, {"tokens 1.1 @10 7", "E1@10:7"}

/* The same beside node 2, which has read its prompt. */
#define RUNS_WITH_P                                                                                              \
    {"node 2 P", ""}, {"node 0 D", ""}, {"submit 1", "D1.1>0:10,L4"}, {"reserved 1.1 0/9", "P1.1>2:0-9"},         \
        {"pend 1.1 ST_OK", ""}, {"tokens 1.1 @10 7", "E1@10:7"}, {"node 1 D", ""}

static void its_pages_come_from_where_it_ran(void **state) {
    (void)state;
    coord_counts counts;
    STORY_COUNTS(&limits, &counts, RUNS, {"node 1 D", ""},
          {"node 0 D drain", "xD1.1>0 D1.2>1:11,L4"},
          {"tokens 1.1 @11 8", ""},              /* late: the next attempt says it */
          {"reserved 1.2 0/10", "P1.2>0:0-10+1m"},
          {"first 1.2 @11 8", "E1@11:8"},
          {"landed 1.2", ""}, {"pend 1.2 ST_OK", ""},
          {"tokens 1.2 @11 8,9,10", "E1@12:9,10"},
          {"dend 1.2 done", "F1:ST_OK/2"});
    story_counted(counts.again, COORD_AGAIN_CAUSES, COORD_AGAIN_MOVED, 1);
    assert_int_equal(counts.chosen[COORD_PREFILL][COORD_REASON_LOCAL], 1);
    assert_int_equal(counts.chosen[COORD_PREFILL][COORD_REASON_HOLDER], 1);
    assert_int_equal(counts.chosen[COORD_DECODE][COORD_REASON_ONLY], 2);
    assert_int_equal(counts.moves, 1);
    assert_int_equal(counts.retries, 0);
    STORY(&limits, RUNS, {"node 1 D", ""},
          {"node 0 P", "xD1.1>0 D1.2>1:11,L4"},  /* another role is as good a reason */
          {"reserved 1.2 8/10", "P1.2>0:8-10+1m"});
}

static void a_prefill_node_is_not_asked(void **state) {
    (void)state;
    STORY(&limits, RUNS_WITH_P,
          {"node 0 D drain", "xD1.1>0 D1.2>1:11,L4"},
          {"reserved 1.2 0/10", "P1.2>0:0-10+1m"});
}

static void runs_on_until_there_is_room(void **state) {
    (void)state;
    STORY(&limits, RUNS,
          {"node 0 D drain", ""},
          {"tokens 1.1 @11 8", "E1@11:8"},
          {"node 1 D cap=1", "xD1.1>0 D1.2>1:12,L4"});
    STORY(&limits, {"node 0 D cap=2", ""}, {"submit 1", "D1.1>0:10,L*"}, {"reserved 1.1 9/9", ""},
          {"submit 2", "D2.1>0:10,L*"}, {"reserved 2.1 9/9", ""},
          {"tokens 1.1 @10 7", "E1@10:7"}, {"tokens 2.1 @10 7", "E2@10:7"},
          {"node 1 D cap=1", ""},
          {"node 0 D drain", "xD2.1>0 D2.2>1:11,L4"},        /* one; the other runs on */
          {"submit 3", ""},
          {"tokens 1.1 @11 8", "E1@11:8"},
          {"dend 2.2 done", "F2:ST_OK/2 xD1.1>0 D1.2>1:12,L4"});       /* and goes before who waits */
}

static void lands_first(void **state) {
    (void)state;
    STORY(&limits, {"node 2 P", ""}, {"node 0 D", ""}, {"submit 1", "D1.1>0:10,L4"}, {"reserved 1.1 0/9", "P1.1>2:0-9"},
          {"node 1 D", ""},
          {"node 0 D drain", ""},
          {"first 1.1 @10 7", "E1@10:7"},
          {"landed 1.1", "xD1.1>0 xP1.1>2 D1.2>1:11,L4"},
          {"reserved 1.2 0/10", "P1.2>0:0-10+1m"});
}

/* Once: then the pages come as after any failure. */
static void a_holder_fails(void **state) {
    (void)state;
    STORY(&limits, RUNS_WITH_P,
          {"node 0 D drain", "xD1.1>0 D1.2>1:11,L4"}, {"reserved 1.2 0/10", "P1.2>0:0-10+1m"},
          {"pend 1.2 ST_AGAIN", "xD1.2>1 D1.3>1:11,L4"}, {"reserved 1.3 0/10", "P1.3>2:0-10+1"});
    STORY(&limits, RUNS_WITH_P,
          {"node 0 D drain", "xD1.1>0 D1.2>1:11,L4"},
          {"lost 0", ""}, {"reserved 1.2 0/10", "P1.2>2:0-10+1"});
}

static void no_room_after_all(void **state) {
    (void)state;
    STORY(&limits, RUNS, {"node 1 D", ""},
          {"node 0 D drain", "xD1.1>0 D1.2>1:11,L4"},
          {"dend 1.2 ST_AGAIN", ""},
          {"at 50", "D1.3>1:11,L4"},             /* still from where it ran */
          {"reserved 1.3 0/10", "P1.3>0:0-10+1m"});
}

static void stays(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D num=1", ""}, {"node 2 P num=2", ""},           /* roles of other numerics */
          {"submit 1", "D1.1>0:10,L0A"}, {"reserved 1.1 0/9", "P1.1>2:0-9"}, {"pend 1.1 ST_OK", ""},
          {"tokens 1.1 @10 7", "E1@10:7"}, {"node 1 D num=1", ""},
          {"node 0 D num=1 drain", ""});
    STORY(&limits, {"node 0 D", ""}, {"node 1 D", ""}, {"submit 1 here", "D1.1>0:10,L*"}, {"reserved 1.1 0/0", ""},
          {"node 0 D drain", ""},                /* its prompt's log probabilities are still being told */
          {"tokens 1.1 @10 7", "E1@10:7"},
          {"node 0 D drain", "xD1.1>0 D1.2>1:11,L4"});
}

/* Who caches a prompt sends it, where no prefill node does. */
static void any_that_caches_it(void **state) {
    (void)state;
    static const line before[] = {{"node 0 D page=4", ""},         {"submit 1", "D1.1>0:10,L*"}, {"reserved 1.1 9/9", ""},
                                  {"submit 2", "D2.1>0:10,L*"},    {"reserved 2.1 9/9", ""},     {"submit 3", "D3.1>0:10,L*"},
                                  {"reserved 3.1 9/9", ""},        {"node 1 D page=4", ""},      {"node 2 P page=4", ""}};
    static const line after[] = {{"submit 4 max=99", "D4.1>1:10,L0"}, {"reserved 4.1 0/9", "P4.1>0:0-9"},
                                 {"pend 4.1 ST_DEVICE", "xD4.1>1 D4.2>1:10,L0"},         /* it is avoided now */
                                 {"reserved 4.2 0/9", "P4.2>2:0-9"}};
    static const int32_t prompt[] = {100, 101, 102, 103, 104, 105, 106, 107}, at[] = {5, 6};
    uint64_t first = prefix_number(0, prompt, 4), numbers[] = {first, prefix_number(first, prompt + 4, 4)};
    limits.route = COORD_ROUTE_COST;
    limits.prefill = COORD_PREFILL_REMOTE;
    told t = story_begin(&limits);
    story_tell(&t, before, sizeof before / sizeof *before);
    coord_event e = {.kind = COORD_NODE_CACHE, .node = 0, .cache = {.whole = true, .at = at, .numbers = numbers, .count = 2}};
    step(&t, &e);
    story_tell(&t, after, sizeof after / sizeof *after);
    coord_counts counts = coord_core_counts(t.core);
    assert_int_equal(counts.chosen[COORD_DECODE][COORD_REASON_LOAD], 1);     /* node 0 caches it and was passed over */
    assert_int_equal(counts.chosen[COORD_DECODE][COORD_REASON_ONLY], 4);     /* at first, and while node 0 is avoided */
    assert_int_equal(counts.chosen[COORD_PREFILL][COORD_REASON_HOLDER], 1);
    assert_int_equal(counts.chosen[COORD_PREFILL][COORD_REASON_ONLY], 1);
    coord_core_destroy(t.core);
}

/* A prompt of less than a page is in no prefix cache: another decode node would have to compute all of it. */
static void who_caches_nothing_is_not_asked(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D page=16", ""}, {"node 1 D page=16", ""}, {"submit 1", "D1.1>0:10,L*"});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(its_pages_come_from_where_it_ran, setup), cmocka_unit_test_setup(a_prefill_node_is_not_asked, setup),
        cmocka_unit_test_setup(runs_on_until_there_is_room, setup),      cmocka_unit_test_setup(lands_first, setup),
        cmocka_unit_test_setup(a_holder_fails, setup),                   cmocka_unit_test_setup(no_room_after_all, setup),
        cmocka_unit_test_setup(stays, setup),                            cmocka_unit_test_setup(any_that_caches_it, setup),
        cmocka_unit_test_setup(who_caches_nothing_is_not_asked, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
