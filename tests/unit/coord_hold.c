/* coord_hold.c -- tests coordinator/hold.c: prompts read ahead while no decode node has room, as stories. */
#include "coord_story.h"

static coord_limits limits;

static int setup(void **state) {
    (void)state;
    limits = story_limits();
    limits.local_tokens_max = 4;
    limits.avoid_ms = 100;
    return 0;
}

/* A prompt of 10 tokens has 3 pages; half of 20 are 10, half of 4 requests are 2. */
#define FULL {"node 0 D cap=1", ""}, {"node 1 P pages=20", ""}, {"submit 1", "D1.1>0:10,L4"}, {"reserved 1.1 9/9", ""}

static void read_ahead_then_only_moved(void **state) {
    (void)state;
    coord_counts counts;
    STORY_COUNTS(&limits, &counts, FULL,
          {"submit 2", "H2.1>1:10"},
          {"submit 3", ""},                      /* one prompt at a time */
          {"first 2.1 @10 7", "E2@10:7 H3.1>1:10"},          /* said at once */
          {"first 3.1 @10 8", "E3@10:8"},
          {"tokens 1.1 @10 5", "E1@10:5"},
          {"dend 1.1 done", "F1:ST_OK/2 D2.2>0:11,L4"},      /* in the order of the queue */
          {"reserved 2.2 0/10", "xP2.1>1 P2.2>1:0-10+1"},    /* the holder; and what it held is let go */
          {"first 2.2 @11 9", "E2@11:9"},
          {"landed 2.2", ""},
          {"pend 2.2 ST_OK", ""},
          {"tokens 2.2 @11 9", ""},
          {"dend 2.2 done", "F2:ST_OK/2 D3.2>0:11,L4"},
          {"reserved 3.2 10/10", "xP3.1>1"},     /* it had all of it */
          {"pend 3.1 ST_CANCELED", ""});
    const int64_t *read = counts.chosen[COORD_PREFILL];
    assert_int_equal(read[COORD_REASON_ONLY], 2);            /* the two holds */
    assert_int_equal(read[COORD_REASON_HOLDER], 1);
    assert_int_equal(read[COORD_REASON_LOCAL], 2);
    story_counted(counts.chosen[COORD_DECODE], COORD_REASONS, COORD_REASON_ONLY, 3);
    story_counted(counts.again, COORD_AGAIN_CAUSES, -1, 0);
}

static void taken_while_it_is_read(void **state) {
    (void)state;
    STORY(&limits, FULL,
          {"submit 2", "H2.1>1:10"},
          {"dend 1.1 ST_BAD_INPUT", "F1:ST_BAD_INPUT/0 D2.2>0:10,L4"},
          {"first 2.1 @10 7", "E2@10:7"},        /* meanwhile */
          {"reserved 2.2 0/9", "xP2.1>1 P2.2>1:0-9"},    /* as the decode node was asked */
          {"first 2.1 @10 6", ""},               /* late: not listened to */
          {"tokens 2.2 @10 7,8", "E2@11:8"});
}

static void bounded(void **state) {
    (void)state;
    STORY(&limits, FULL,
          {"submit 2", "H2.1>1:10"}, {"submit 3", ""}, {"submit 4", ""},
          {"first 2.1 @10 7", "E2@10:7 H3.1>1:10"},
          {"first 3.1 @10 7", "E3@10:7"},        /* 2 of 4 requests are held */
          {"cancel 2", "xP2.1>1 F2:ST_CANCELED/0 H4.1>1:10"});
    STORY(&limits, {"node 0 D cap=1", ""}, {"node 1 P cap=40 pages=12", ""},
          {"submit 1", "D1.1>0:10,L4"}, {"submit 2", "H2.1>1:10"}, {"first 2.1 @10 7", "E2@10:7"},
          {"submit 3", "H3.1>1:10"}, {"first 3.1 @10 7", "E3@10:7"},
          {"submit 4", ""},                      /* 6 of 12 pages are */
          {"node 2 P pages=4", ""},              /* never has room for one */
          {"node 3 P pages=6", "H4.1>3:10"});
    STORY(&limits, {"node 0 D cap=1", ""}, {"node 1 P pages=4", ""}, {"submit 1", "D1.1>0:10,L4"}, {"submit 2", ""});
    limits.local_tokens_max = 9;                 /* the decode node is to read it, then */
    STORY(&limits, {"node 0 D cap=1", ""}, {"node 1 P pages=20", ""}, {"submit 1", "D1.1>0:10,L9"}, {"submit 2", ""});
    limits.prefill = COORD_PREFILL_LOCAL;
    STORY(&limits, {"node 0 D cap=1", ""}, {"node 1 P pages=20", ""}, {"submit 1", "D1.1>0:10,L*"}, {"submit 2", ""});
}

/* Who sends is not kept waiting. */
static void only_by_who_is_free(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D cap=1", ""}, {"node 1 P pages=20", ""},
          {"submit 1", "D1.1>0:10,L4"}, {"reserved 1.1 0/9", "P1.1>1:0-9"},
          {"submit 2", ""},
          {"pend 1.1 ST_OK", "H2.1>1:10"});
}

static void let_go_with_its_request(void **state) {
    (void)state;
    STORY(&limits, FULL,
          {"submit 2 deadline=50", "H2.1>1:10"}, {"first 2.1 @10 7", "E2@10:7"},
          {"at 50", "xP2.1>1 F2:ST_DEADLINE/0"},
          {"submit 3", "H3.1>1:10"}, {"cancel 3", "xP3.1>1 F3:ST_CANCELED/0"},
          {"submit 4", "H4.1>1:10"}, {"first 4.1 @10 7", "E4@10:7"}, {"stop 4", "xP4.1>1 F4:ST_OK/1"});
}

static void a_holder_is_lost(void **state) {
    (void)state;
    STORY(&limits, FULL,
          {"submit 2", "H2.1>1:10"}, {"first 2.1 @10 7", "E2@10:7"},
          {"node 3 P pages=20", ""},
          {"lost 1", "xP2.1>1 H2.2>3:11"},       /* read again elsewhere, with what was said */
          {"pend 2.2 ST_DEVICE", ""},            /* a node that failed is avoided */
          {"at 100", "H2.3>3:11"},
          {"node 3 P pages=20 drain", "xP2.3>3"},
          {"node 3 P pages=20", "H2.4>3:11"},
          {"pend 2.4 ST_BAD_INPUT", ""},         /* not worth another try */
          {"dend 1.1 ST_BAD_INPUT", "F1:ST_BAD_INPUT/0 D2.5>0:11,L*"});      /* it was avoided: to be read here */
}

static void a_full_holder_is_asked_later(void **state) {
    (void)state;
    STORY(&limits, FULL,
          {"submit 2", "H2.1>1:10"}, {"pend 2.1 ST_AGAIN", ""},
          {"at 199", ""}, {"at 200", "H2.2>1:10"},
          {"first 2.2 @10 7", "E2@10:7"},
          {"dend 1.1 ST_BAD_INPUT", "F1:ST_BAD_INPUT/0 D2.3>0:11,L4"},
          {"dend 2.3 ST_AGAIN", ""},             /* no room after all: still held */
          {"at 250", "D2.4>0:11,L4"},
          {"reserved 2.4 0/10", "xP2.2>1 P2.4>1:0-10+1"});
}

/* Its logprobs are the decode node's to tell. */
static void not_what_the_decode_node_reads(void **state) {
    (void)state;
    STORY(&limits, FULL, {"submit 2 here", ""}, {"submit 3", "H3.1>1:10"});
}

/* Roles of other numerics: its first token is not the answer's. */
static void apart_says_nothing(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D cap=1 num=1", ""}, {"node 1 P num=2 pages=20", ""},
          {"submit 1", "D1.1>0:10,L0A"}, {"reserved 1.1 9/9", ""},
          {"submit 2", "H2.1>1:10"}, {"first 2.1 @10 7", ""},
          {"dend 1.1 ST_BAD_INPUT", "F1:ST_BAD_INPUT/0 D2.2>0:10,L0A"},
          {"reserved 2.2 0/9", "xP2.1>1 P2.2>1:0-9"});
}

/* After a failover the prompt is asked of who has read it, though it is another's turn. */
static void the_reader_is_asked_again(void **state) {
    (void)state;
    coord_counts counts;
    limits.route = COORD_ROUTE_ROUND_ROBIN;
    STORY_COUNTS(&limits, &counts, {"node 0 D", ""}, {"node 1 P", ""}, {"node 2 P", ""}, {"node 3 D", ""},
          {"submit 1", "D1.1>0:10,L4"}, {"reserved 1.1 0/9", "P1.1>2:0-9"},
          {"pend 1.1 ST_OK", ""}, {"tokens 1.1 @10 7", "E1@10:7"},
          {"lost 0", "xD1.1>0 D1.2>3:11,L4"}, {"reserved 1.2 0/10", "P1.2>2:0-10+1"});
    assert_int_equal(counts.chosen[COORD_PREFILL][COORD_REASON_POLICY], 1);
    assert_int_equal(counts.chosen[COORD_PREFILL][COORD_REASON_HOLDER], 1);
    assert_int_equal(counts.chosen[COORD_DECODE][COORD_REASON_POLICY], 1);
    assert_int_equal(counts.chosen[COORD_DECODE][COORD_REASON_ONLY], 1);
    story_counted(counts.again, COORD_AGAIN_CAUSES, ST_PEER_LOST, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(read_ahead_then_only_moved, setup), cmocka_unit_test_setup(taken_while_it_is_read, setup),
        cmocka_unit_test_setup(bounded, setup),                    cmocka_unit_test_setup(only_by_who_is_free, setup),
        cmocka_unit_test_setup(let_go_with_its_request, setup),    cmocka_unit_test_setup(a_holder_is_lost, setup),
        cmocka_unit_test_setup(a_full_holder_is_asked_later, setup), cmocka_unit_test_setup(apart_says_nothing, setup),
        cmocka_unit_test_setup(the_reader_is_asked_again, setup),  cmocka_unit_test_setup(not_what_the_decode_node_reads, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
