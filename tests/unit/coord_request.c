/* coord_request.c -- tests coordinator/request.c: every arrow of a request's life, as stories. */
#include "coord_story.h"

static coord_limits limits;

static int setup(void **state) {
    (void)state;
    limits = story_limits();
    limits.local_tokens_max = 4;
    limits.avoid_ms = 100;
    return 0;
}

#define NODES {"node 0 D", ""}, {"node 1 P", ""}

static void remote_prefill_to_the_end(void **state) {
    (void)state;
    STORY(&limits, NODES,
          {"submit 1 max=3", "D1.1>0:10,L4"},
          {"reserved 1.1 0/9", "P1.1>1:0-9"},
          {"first 1.1 @10 7", "E1@10:7"},
          {"sent 1.1", ""},
          {"landed 1.1", ""},
          {"pend 1.1 ST_OK", ""},
          {"tokens 1.1 @10 7", ""},
          {"tokens 1.1 @11 8,9", "E1@11:8,9"},
          {"dend 1.1 done", "F1:ST_OK/2"},
          {"tokens 1.1 @13 5", ""});
}

static void local_prefill(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D", ""},
          {"submit 1", "D1.1>0:10,L*"}, /* no prefill node: all of it here */
          {"reserved 1.1 3/3", ""},
          {"tokens 1.1 @10 7", "E1@10:7"},
          {"dend 1.1 done", "F1:ST_OK/2"});
}

static void policies(void **state) {
    (void)state;
    limits.prefill = COORD_PREFILL_LOCAL;
    STORY(&limits, NODES, {"submit 1", "D1.1>0:10,L*"});
    limits.prefill = COORD_PREFILL_REMOTE;
    STORY(&limits, NODES, {"submit 1", "D1.1>0:10,L0"});
}

/* Rule 7: until the answer begins, whatever the policy. */
static void prompts_read_here(void **state) {
    (void)state;
    limits.prefill = COORD_PREFILL_REMOTE;
    STORY(&limits, NODES, {"node 2 D", ""},
          {"submit 1 here", "D1.1>0:10,L*"},
          {"reserved 1.1 0/0", ""},
          {"lost 0", "xD1.1>0 D1.2>2:10,L*"},
          {"reserved 1.2 4/4", ""},
          {"tokens 1.2 @10 7", "E1@10:7"},
          {"node 0 D epoch=2", ""},
          {"lost 2", "xD1.2>2 D1.3>0:11,L0"});   /* all of the prompt was told */
    STORY(&limits, {"node 0 D num=1", ""}, {"node 1 P num=2", ""},
          {"submit 1 here", "F1:ST_UNSUPPORTED/0"},
          {"submit 2", "D2.1>0:10,L0A"});
    limits.prefill = COORD_PREFILL_LOCAL;
    STORY(&limits, {"node 0 D num=1", ""}, {"node 1 P num=2", ""},
          {"submit 1 here", "D1.1>0:10,L*"});
    for (int here = 0; here < 2; here++) {       /* no prefill node is compared */
        told t = story_begin(&coord_limits_default);
        coord_event e = {0};
        coord_actions out;
        tell(&t, "node 0 D");
        tell(&t, "node 1 P");
        tell_submit(&e, here ? "submit 1 here" : "submit 1");
        e.submit.explain = true;
        coord_core_step(t.core, &e, 0, &out);
        assert_int_equal(out.at[0].decode.costs_count, here ? 1 : 2);
        coord_core_destroy(t.core);
    }
}

static void full_decode_node_is_asked_again(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D", ""},
          {"submit 1", "D1.1>0:10,L*"},
          {"dend 1.1 ST_AGAIN", ""},
          {"at 49", ""},
          {"at 50", "D1.2>0:10,L*"},             /* after 50 ms */
          {"dend 1.2 ST_AGAIN", ""},
          {"node 0 D", "D1.3>0:10,L*"},          /* after its state changed */
          {"submit 2", "D2.1>0:10,L*"},
          {"dend 1.3 ST_AGAIN", ""},
          {"dend 2.1 ST_BAD_INPUT", "F2:ST_BAD_INPUT/0 D1.4>0:10,L*"}); /* after one of its requests ended */
}

static void refusals_never_exhaust_attempts(void **state) {
    (void)state;
    told t = story_begin(&limits);
    tell(&t, "node 0 D");
    tell(&t, "submit 1");
    for (int i = 1; i <= 3 * COORD_ATTEMPTS_MAX; i++) {
        char event[40];
        snprintf(event, sizeof event, "dend 1.%d ST_AGAIN", i);
        tell(&t, event);
        assert_string_equal(t.actions, "");
        tell(&t, "node 0 D");
        assert_string_not_equal(t.actions, "");
    }
    coord_counts counts = coord_core_counts(t.core);
    story_counted(counts.again, COORD_AGAIN_CAUSES, ST_AGAIN, 3 * COORD_ATTEMPTS_MAX);
    assert_int_equal(counts.retries, 0);
    coord_core_destroy(t.core);
}

static void pages_that_move_slowly(void **state) {
    (void)state;
    coord_counts counts;
    limits.prefill = COORD_PREFILL_REMOTE;
    STORY_COUNTS(&limits, &counts, NODES,        /* one link, and nobody else may read it: twice the time */
          {"submit 1", "D1.1>0:10,L0"},
          {"reserved 1.1 0/10", "P1.1>1:0-10"},
          {"at 500", ""},
          {"first 1.1 @10 7", "E1@10:7"},
          {"at 2499", ""},
          {"at 2500", "xD1.1>0 xP1.1>1 D1.2>0:11,L0"},
          {"landed 1.1", ""},
          {"reserved 1.2 0/10", "P1.2>1:0-10+1"},
          {"first 1.2 @11 8", "E1@11:8"},
          {"at 22499", ""},                      /* 2 * (2000 + 2 * 10 tokens * 400 ms): twice what was waited */
          {"at 22500", "xD1.2>0 xP1.2>1 D1.3>0:12,L0"},
          {"lost 0", "xD1.3>0"});
    assert_int_equal(counts.again[COORD_AGAIN_SLOW], 2);
    assert_int_equal(counts.again[ST_PEER_LOST], 1);
    assert_int_equal(counts.retries, 1);
    limits.prefill = COORD_PREFILL_AUTO;
    STORY(&limits, NODES,                        /* one link: the decode node reads it */
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 0/10", "P1.1>1:0-10"},
          {"first 1.1 @10 7", "E1@10:7"},
          {"at 2000", "xD1.1>0 xP1.1>1 D1.2>0:11,L*"},
          {"reserved 1.2 0/0", ""},
          {"lost 0", "xD1.2>0"},
          {"node 0 D epoch=2", "D1.3>0:11,L4"}); /* that it was slow is forgotten once it had its pages */
    STORY(&limits, NODES,                        /* neither end again, though both have less to do */
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 0/10", "P1.1>1:0-10"},
          {"node 2 D", ""},
          {"node 3 P", ""},
          {"submit 2", "D2.1>2:10,L4"},
          {"reserved 2.1 0/10", "P2.1>3:0-10"},
          {"first 1.1 @10 7", "E1@10:7"},
          {"at 2000", "xD1.1>0 xP1.1>1 D1.2>2:11,L4"},
          {"reserved 1.2 0/11", "P1.2>3:0-11+1"});
    STORY(&limits, NODES,                        /* who finds a link slow makes nobody else wait longer */
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 0/10", "P1.1>1:0-10"},
          {"sent 1.1", ""},
          {"submit 2", "D2.1>0:10,L4"},
          {"reserved 2.1 0/10", "P2.1>1:0-10"},
          {"submit 3", "D3.1>0:10,L4"},
          {"reserved 3.1 0/10", "P3.1>1:0-10"},
          {"node 2 D", ""},
          {"first 2.1 @10 7", "E2@10:7"},
          {"at 2000", "xD2.1>0 xP2.1>1 D2.2>2:11,L*"},
          {"first 3.1 @10 7", "E3@10:7"},
          {"at 3999", ""},
          {"at 4000", "xD3.1>0 xP3.1>1 D3.2>2:11,L*"});
    STORY(&limits, NODES,                        /* that they are there is not yet known: nobody else can say so sooner */
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 0/10", "P1.1>1:0-10"},
          {"first 1.1 @10 7", "E1@10:7"},
          {"pend 1.1 ST_OK", ""},
          {"at 2000", ""},
          {"landed 1.1", ""},
          {"submit 2", "D2.1>0:10,L4"},
          {"reserved 2.1 0/10", "P2.1>1:0-10"},
          {"first 2.1 @10 7", "E2@10:7"},
          {"landed 2.1", ""},
          {"at 9000", ""});
}

static void prefill_node_vanishes_before_it_is_needed(void **state) {
    (void)state;
    coord_counts counts;
    STORY_COUNTS(&limits, &counts, NODES,
          {"submit 1", "D1.1>0:10,L4"},
          {"lost 1", ""},
          {"reserved 1.1 0/9", "xD1.1>0 D1.2>0:10,L*"},
          {"reserved 1.2 0/0", ""});
    story_counted(counts.again, COORD_AGAIN_CAUSES, COORD_AGAIN_NO_PREFILL, 1);
    story_counted(counts.chosen[COORD_PREFILL], COORD_REASONS, COORD_REASON_LOCAL, 1);
    story_counted(counts.chosen[COORD_DECODE], COORD_REASONS, COORD_REASON_ONLY, 2);
}

static void prefill_fails_before_landing(void **state) {
    (void)state;
    STORY(&limits, NODES, {"node 2 P", ""},
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 2/9", "P1.1>2:2-9"},
          {"pend 1.1 ST_DEVICE", "xD1.1>0 D1.2>0:10,L4"},
          {"reserved 1.2 2/9", "P1.2>1:2-9"},    /* node 2 is avoided */
          {"pend 1.2 ST_AGAIN", "xD1.2>0 D1.3>0:10,L*"}, /* and node 1 is full: locally, then */
          {"pend 1.2 ST_DEVICE", ""},
          {"at 120", ""});
}

static void prefill_fails_after_landing(void **state) {
    (void)state;
    STORY(&limits, NODES,
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 0/9", "P1.1>1:0-9"},
          {"landed 1.1", ""},
          {"pend 1.1 ST_PEER_LOST", ""},
          {"tokens 1.1 @10 7", "E1@10:7"},
          {"dend 1.1 done", "F1:ST_OK/2"});
    STORY(&limits, NODES,
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 0/9", "P1.1>1:0-9"},
          {"landed 1.1", ""},
          {"lost 1", "xP1.1>1"});
}

static void decode_dies_and_the_answer_goes_on(void **state) {
    (void)state;
    STORY(&limits, NODES, {"node 2 D", ""},
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 0/9", "P1.1>1:0-9"},
          {"first 1.1 @10 7", "E1@10:7"},
          {"tokens 1.1 @10 7,8", "E1@11:8"},
          {"dend 1.1 ST_PEER_LOST", "xP1.1>1 D1.2>2:12,L4"},
          {"tokens 1.1 @12 5", ""},              /* a zombie's */
          {"first 1.1 @12 5", ""},
          {"reserved 1.2 0/11", "P1.2>1:0-11+2"},
          {"first 1.2 @12 9", "E1@12:9"},
          {"landed 1.2", ""},
          {"tokens 1.2 @12 9,6", "E1@13:6"},
          {"dend 1.2 done", "xP1.2>1 F1:ST_OK/2"});
}

/* Rule 3: begun by another coordinator. */
static void goes_on_behind_what_was_seen(void **state) {
    (void)state;
    STORY(&limits, NODES, {"node 2 D", ""},
          {"submit 1 max=4 seen=2", "D1.1>0:12,L4"},
          {"reserved 1.1 0/11", "P1.1>1:0-11+2"},
          {"first 1.1 @12 3", "E1@12:3"},
          {"landed 1.1", ""},
          {"pend 1.1 ST_OK", ""},
          {"lost 0", "xD1.1>0 D1.2>2:13,L4"},
          {"reserved 1.2 0/0", ""},
          {"tokens 1.2 @13 4", "E1@13:4"},
          {"dend 1.2 done", "F1:ST_OK/2"});
    STORY(&limits, NODES,
          {"submit 1 max=4 seen=2", "D1.1>0:12,L4"},
          {"reserved 1.1 12/12", ""},
          {"tokens 1.1 @11 9", "xD1.1>0 F1:ST_INTERNAL/0"});     /* rule 2 holds for what was seen, too */
    STORY(&limits, {"node 0 D", ""},
          {"submit 1 max=4 seen=3", "D1.1>0:13,L*"},
          {"reserved 1.1 13/13", ""},
          {"tokens 1.1 @13 4,5", "xD1.1>0 F1:ST_INTERNAL/0"});   /* so does max_tokens */
    STORY(&limits, NODES,
          {"submit 1 here seen=1", "D1.1>0:11,L4"});              /* rule 7: the prompt was told */
}

static void every_retryable_status(void **state) {
    (void)state;
    static const char *const names[] = {"ST_PEER_LOST", "ST_PEER_STALE", "ST_DEVICE", "ST_IO", "ST_NO_MEMORY",
                                        "ST_INTERNAL", "ST_CORRUPT", "ST_CANCELED", "ST_OK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        told t = story_begin(&limits);
        char event[60];
        tell(&t, "node 0 D");
        tell(&t, "node 1 D");
        tell(&t, "submit 1");
        snprintf(event, sizeof event, "dend 1.1 %s", names[i]);
        tell(&t, event);
        assert_string_equal(t.actions, "D1.2>1:10,L*");
        coord_counts counts = coord_core_counts(t.core);
        status st = status_named(names[i]);      /* a stream that ends too soon, with ST_OK, is a bug of its node */
        assert_int_equal(counts.retries, 1);
        story_counted(counts.again, COORD_AGAIN_CAUSES, st == ST_OK ? ST_INTERNAL : (int)st, 1);
        coord_core_destroy(t.core);
    }
}

static void every_final_status(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D", ""}, {"submit 1", "D1.1>0:10,L*"}, {"dend 1.1 ST_BAD_INPUT", "F1:ST_BAD_INPUT/0"},
          {"submit 2", "D2.1>0:10,L*"}, {"dend 2.1 ST_REFUSED", "F2:ST_REFUSED/0"},
          {"submit 3", "D3.1>0:10,L*"}, {"dend 3.1 ST_UNSUPPORTED", "F3:ST_UNSUPPORTED/0"});
}

static void gives_up_after_its_attempts(void **state) {
    (void)state;
    told t = story_begin(&limits);
    tell(&t, "node 0 D");
    tell(&t, "submit 1");
    for (int i = 1; i < COORD_ATTEMPTS_MAX; i++) {
        char event[60];
        snprintf(event, sizeof event, "dend 1.%d ST_DEVICE", i);
        tell(&t, event);
        assert_string_equal(t.actions, "");       /* its only node is avoided: it waits */
        assert_int_equal(coord_core_next_tick_ms(t.core), t.now_ms + limits.avoid_ms);
        snprintf(event, sizeof event, "at %d", (int)t.now_ms + limits.avoid_ms);
        tell(&t, event);
        assert_string_not_equal(t.actions, "");
    }
    coord_event e = {.kind = COORD_DECODE_END, .request = 1, .attempt = COORD_ATTEMPTS_MAX};
    e.end.st = ST_DEVICE;
    e.end.text = "the device burns";
    coord_actions out;
    coord_core_step(t.core, &e, t.now_ms, &out);
    assert_int_equal(out.count, 1);
    assert_int_equal(out.at[0].finish.st, ST_PEER_LOST);
    assert_int_equal(out.at[0].finish.attempts, COORD_ATTEMPTS_MAX);
    assert_non_null(strstr(out.at[0].finish.text, "16 attempts"));
    assert_non_null(strstr(out.at[0].finish.text, "the device burns"));
    coord_core_destroy(t.core);
}

static void tokens_that_disagree(void **state) {
    (void)state;
    log_setup("story", LOG_ERROR);
    STORY(&limits, NODES,
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 0/9", "P1.1>1:0-9"},
          {"first 1.1 @10 7", "E1@10:7"},
          {"tokens 1.1 @10 8", "xD1.1>0 xP1.1>1 F1:ST_INTERNAL/0"},
          {"submit 2", "D2.1>0:10,L4"},          /* a gap */
          {"tokens 2.1 @11 8", "xD2.1>0 F2:ST_INTERNAL/0"},
          {"submit 3", "D3.1>0:10,L4"},          /* into the prompt */
          {"tokens 3.1 @9 8", "xD3.1>0 F3:ST_INTERNAL/0"},
          {"submit 4 max=1", "D4.1>0:10,L4"},    /* more than asked */
          {"tokens 4.1 @10 8,9", "xD4.1>0 F4:ST_INTERNAL/0"},
          {"submit 5", "D5.1>0:10,L4"},          /* ended before what the prefill node said */
          {"reserved 5.1 0/9", "P5.1>1:0-9"},
          {"first 5.1 @10 7", "E5@10:7"},
          {"dend 5.1 done", "xP5.1>1 F5:ST_INTERNAL/0"});
}

static void impossible_reservation(void **state) {
    (void)state;
    STORY(&limits, NODES, {"node 2 D", ""},
          {"submit 1", "D1.1>0:10,L4"},
          {"reserved 1.1 9/11", "xD1.1>0 D1.2>2:10,L4"});
}

static void cancel_at_every_stage(void **state) {
    (void)state;
    STORY(&limits, NODES,
          {"submit 1", "D1.1>0:10,L4"}, {"cancel 1", "xD1.1>0 F1:ST_CANCELED/0"},
          {"submit 2", "D2.1>0:10,L4"}, {"reserved 2.1 0/9", "P2.1>1:0-9"},
          {"cancel 2", "xD2.1>0 xP2.1>1 F2:ST_CANCELED/0"},
          {"submit 3", "D3.1>0:10,L4"}, {"reserved 3.1 0/9", "P3.1>1:0-9"}, {"landed 3.1", ""},
          {"pend 3.1 ST_OK", ""}, {"cancel 3", "xD3.1>0 F3:ST_CANCELED/0"},
          {"submit 4", "D4.1>0:10,L4"}, {"dend 4.1 ST_AGAIN", ""}, {"cancel 4", "F4:ST_CANCELED/0"},
          {"cancel 4", ""}, {"dend 3.1 ST_CANCELED", ""});
}

static void stop_and_deadline(void **state) {
    (void)state;
    STORY(&limits, NODES,
          {"submit 1", "D1.1>0:10,L4"}, {"tokens 1.1 @10 7", "E1@10:7"}, {"stop 1", "xD1.1>0 F1:ST_OK/1"},
          {"submit 2 deadline=30", "D2.1>0:10,L4"}, {"reserved 2.1 0/9", "P2.1>1:0-9"},
          {"at 29", ""}, {"at 30", "xD2.1>0 xP2.1>1 F2:ST_DEADLINE/0"},
          {"submit 3 deadline=40", "D3.1>0:10,L4"}, {"dend 3.1 ST_AGAIN", ""}, {"at 45", "F3:ST_DEADLINE/0"});
}

static void node_lost_and_restarted(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D", ""}, {"node 1 D", ""},
          {"submit 1", "D1.1>0:10,L*"}, {"submit 2", "D2.1>1:10,L*"},
          {"tokens 1.1 @10 7", "E1@10:7"},
          {"lost 0", "xD1.1>0 D1.2>1:11,L*"},
          {"lost 0", ""},
          {"node 0 D epoch=2", ""},
          {"submit 3", "D3.1>0:10,L*"},
          {"node 0 D epoch=1", ""},              /* a late word of the old process */
          {"at 10000", ""},                      /* so long that it does not flap */
          {"node 0 D epoch=3", "xD3.1>0 D3.2>0:10,L*"});
}

/* ---- rule 6: prefill and decode nodes have different numerics ------------------------------------- */

#define APART {"node 0 D num=1", ""}, {"node 1 P num=2", ""}

static void apart_each_side_computes_its_own(void **state) {
    (void)state;
    STORY(&limits, APART,
          {"submit 1", "D1.1>0:10,L0A"},
          {"reserved 1.1 0/9", "P1.1>1:0-9"},
          {"first 1.1 @10 7", ""},               /* the prefill node's own numerics, so not the answer's */
          {"sent 1.1", ""}, {"landed 1.1", ""}, {"pend 1.1 ST_OK", ""},
          {"tokens 1.1 @10 8,9", "E1@10:8,9"},   /* and no disagreement */
          {"dend 1.1 done", "F1:ST_OK/2"},
          {"submit 2", "D2.1>0:10,L0A"},
          {"reserved 2.1 9/9", ""},              /* all of it was cached */
          {"tokens 2.1 @10 8", "E2@10:8"});
    STORY(&limits, {"node 0 D num=1", ""}, {"node 1 P num=1", ""},
          {"submit 1", "D1.1>0:10,L4"}, {"reserved 1.1 0/9", "P1.1>1:0-9"}, {"first 1.1 @10 7", "E1@10:7"});
    limits.prefill = COORD_PREFILL_LOCAL;        /* then decode nodes read every prompt */
    STORY(&limits, APART, {"submit 1", "D1.1>0:10,L*"}, {"lost 1", ""}, {"submit 2", "D2.1>0:10,L*"});
}

static void apart_after_a_failover(void **state) {
    (void)state;
    STORY(&limits, APART, {"node 2 D num=1", ""},
          {"submit 1 max=9", "D1.1>0:10,L0A"},
          {"reserved 1.1 0/9", "P1.1>1:0-9"},
          {"landed 1.1", ""}, {"pend 1.1 ST_OK", ""},
          {"tokens 1.1 @10 7,8", "E1@10:7,8"},
          {"dend 1.1 ST_PEER_LOST", "D1.2>2:12,L0A"},
          {"reserved 1.2 0/9", "P1.2>1:0-9"},    /* the prompt, not the answer so far */
          {"dend 1.2 ST_PEER_STALE", "xP1.2>1 D1.3>2:12,L0A"},       /* it landed short */
          {"reserved 1.3 3/9", "P1.3>1:3-9"},
          {"landed 1.3", ""}, {"pend 1.3 ST_OK", ""},
          {"tokens 1.3 @12 9", "E1@12:9"},
          {"dend 1.3 ST_AGAIN", ""},             /* its prompt went to an older request */
          {"at 50", "D1.4>2:13,L0A"},
          {"reserved 1.4 0/11", "xD1.4>2"},               /* answer positions: not what was asked */
          {"at 150", "D1.5>0:13,L0A"});
}

static void apart_waits_for_a_prefill_node(void **state) {
    (void)state;
    limits.apart_ms = 300;
    STORY(&limits, APART, {"lost 1", ""},
          {"submit 1", ""},
          {"at 100", ""}, {"node 1 P num=2", ""},
          {"at 200", "D1.1>0:10,L0A"},           /* waiting requests look again every 100 ms */
          {"lost 1", ""},                        /* it is lost before it is asked: the next wait is a new one */
          {"reserved 1.1 0/9", "xD1.1>0"},
          {"at 300", ""}, {"at 400", ""}, {"at 499", ""}, {"node 1 P num=2", ""},
          {"at 500", "D1.2>0:10,L0A"},
          {"reserved 1.2 0/9", "P1.2>1:0-9"},
          {"pend 1.2 ST_DEVICE", "xD1.2>0"},     /* the only one, and it is avoided for 100 ms */
          {"at 600", "D1.3>0:10,L0A"},
          {"cancel 1", "xD1.3>0 F1:ST_CANCELED/0"});
    STORY(&limits, APART, {"node 1 P num=2 drain", ""},
          {"submit 1", ""}, {"submit 2 deadline=150", ""}, {"submit 3", ""}, {"cancel 3", "F3:ST_CANCELED/0"},
          {"at 100", ""}, {"at 150", "F2:ST_DEADLINE/0"}, {"at 200", ""}, {"at 299", ""},
          {"at 300", "D1.1>0:10,L*"},            /* nobody came: the decode node reads it after all */
          {"reserved 1.1 0/0", ""}, {"tokens 1.1 @10 7", "E1@10:7"},
          {"dend 1.1 ST_AGAIN", ""},
          {"at 350", "D1.2>0:11,L*"},            /* and does not wait once more */
          {"dend 1.2 ST_AGAIN", ""}, {"node 1 P num=2", ""}, {"at 400", "D1.3>0:11,L0A"});
}

/* Who waits for a prefill node keeps no one else from a decode node that needs none. */
/* The two may not reach each other: in the end the decode node reads the prompt. */
static void apart_gives_up_after_failures(void **state) {
    (void)state;
    STORY(&limits, APART, {"submit 1", "D1.1>0:10,L0A"},
          {"dend 1.1 ST_PEER_STALE", "D1.2>0:10,L0A"},
          {"dend 1.2 ST_PEER_STALE", "D1.3>0:10,L0A"},
          {"dend 1.3 ST_PEER_STALE", "D1.4>0:10,L0A"},
          {"dend 1.4 ST_PEER_STALE", "D1.5>0:10,L0A"},
          {"dend 1.5 ST_PEER_STALE", "D1.6>0:10,L0A"},
          {"dend 1.6 ST_PEER_STALE", "D1.7>0:10,L0A"},
          {"dend 1.7 ST_PEER_STALE", "D1.8>0:10,L0A"},
          {"dend 1.8 ST_PEER_STALE", "D1.9>0:10,L*"},
          {"reserved 1.9 3/3", ""}, {"tokens 1.9 @10 7", "E1@10:7"});
}

static void apart_waiting_holds_nobody_up(void **state) {
    (void)state;
    STORY(&limits, {"node 0 D num=1", ""}, {"node 1 P num=2", ""}, {"lost 1", ""},
          {"submit 1", ""},
          {"node 2 D num=2", ""},
          {"submit 2 prefer=2", "D2.1>2:10,L*"});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(remote_prefill_to_the_end, setup),
        cmocka_unit_test_setup(local_prefill, setup),
        cmocka_unit_test_setup(policies, setup),
        cmocka_unit_test_setup(prompts_read_here, setup),
        cmocka_unit_test_setup(full_decode_node_is_asked_again, setup),
        cmocka_unit_test_setup(refusals_never_exhaust_attempts, setup),
        cmocka_unit_test_setup(pages_that_move_slowly, setup),
        cmocka_unit_test_setup(prefill_node_vanishes_before_it_is_needed, setup),
        cmocka_unit_test_setup(prefill_fails_before_landing, setup),
        cmocka_unit_test_setup(prefill_fails_after_landing, setup),
        cmocka_unit_test_setup(decode_dies_and_the_answer_goes_on, setup),
        cmocka_unit_test_setup(goes_on_behind_what_was_seen, setup),
        cmocka_unit_test_setup(every_retryable_status, setup),
        cmocka_unit_test_setup(every_final_status, setup),
        cmocka_unit_test_setup(gives_up_after_its_attempts, setup),
        cmocka_unit_test_setup(tokens_that_disagree, setup),
        cmocka_unit_test_setup(impossible_reservation, setup),
        cmocka_unit_test_setup(cancel_at_every_stage, setup),
        cmocka_unit_test_setup(stop_and_deadline, setup),
        cmocka_unit_test_setup(node_lost_and_restarted, setup),
        cmocka_unit_test_setup(apart_each_side_computes_its_own, setup),
        cmocka_unit_test_setup(apart_after_a_failover, setup),
        cmocka_unit_test_setup(apart_waits_for_a_prefill_node, setup),
        cmocka_unit_test_setup(apart_gives_up_after_failures, setup),
        cmocka_unit_test_setup(apart_waiting_holds_nobody_up, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
