/* coord_lapse.c -- tests coordinator/lapse.c: who flaps is held out, for ever longer, and is taken back. */
#include "coord_story.h"

static coord_limits limits;

static int setup(void **state) {
    (void)state;
    limits = story_limits();
    limits.avoid_ms = 100;
    return 0;
}

static void at(told *t, int64_t ms) {
    t->now_ms = ms;
    coord_event e = {.kind = COORD_TICK};
    step(t, &e);
}

/* The node that a new request goes to; it is canceled again. */
static int asked(told *t) {
    static int number = 100;
    char event[40], decode[40];
    int node = -1;
    snprintf(event, sizeof event, "submit %d", ++number);
    tell(t, event);
    snprintf(decode, sizeof decode, "D%d.1>%%d:", number);
    sscanf(t->actions, decode, &node);
    snprintf(event, sizeof event, "cancel %d", number);
    tell(t, event);
    return node;
}

/* Node 0 is the less loaded one. */
static told pair(void) {
    told t = story_begin(&limits);
    tell(&t, "node 1 D cap=9");
    for (int i = 1; i <= 3; i++) {
        char event[40];
        snprintf(event, sizeof event, "submit %d", i);
        tell(&t, event);
    }
    tell(&t, "node 0 D cap=9");
    return t;
}

static void flap(told *t, int epoch) {
    char event[40];
    tell(t, "lost 0");
    snprintf(event, sizeof event, "node 0 D cap=9 epoch=%d", epoch);
    tell(t, event);
}

/* 0, 200, 400, ... 51200, 60000, 60000 ms, each a process of its own that is lost as soon as it is asked again. */
static void held_out_for_ever_longer(void **state) {
    (void)state;
    told t = pair();
    int64_t held[] = {0, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) {
        assert_int_equal(asked(&t), 0);
        flap(&t, 2 + (int)i);
        if (held[i]) {
            assert_int_equal(asked(&t), 1);
            at(&t, t.now_ms + held[i] - 1);
            assert_int_equal(asked(&t), 1);
            at(&t, t.now_ms + 1);
        }
    }
    assert_int_equal(asked(&t), 0);
    assert_int_equal(coord_core_counts(t.core).held_out, 11);
    coord_core_destroy(t.core);
}

/* What another node did, whose number it has, is not held against it. */
static void a_number_is_another_nodes(void **state) {
    (void)state;
    told t = pair();
    flap(&t, 2);
    flap(&t, 3);
    assert_int_equal(asked(&t), 1);
    tell(&t, "lost 0");
    tell(&t, "forgotten 0");
    assert_string_equal(t.actions, "");
    assert_int_equal(asked(&t), 1);
    tell(&t, "node 0 D cap=9 epoch=1");                      /* its clock may be an earlier one, too */
    assert_int_equal(asked(&t), 0);
    assert_int_equal(coord_core_counts(t.core).held_out, 1);
    coord_core_destroy(t.core);
}

/* After as long in service as it was held out before, and 10 s at least, the next lapse is a first one. */
static void a_steady_while_is_enough(void **state) {
    (void)state;
    static const struct { int lapses; int64_t held_ms, steady_ms; } rows[] = {{2, 200, 10000}, {9, 25600, 25600}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int early = 0; early < 2; early++) {
            told t = pair();
            for (int k = 1; k <= rows[i].lapses; k++) flap(&t, 1 + k);
            at(&t, t.now_ms + rows[i].held_ms + rows[i].steady_ms - early);
            flap(&t, 100);
            assert_int_equal(asked(&t), early);
            coord_core_destroy(t.core);
        }
}

/* Attempts that fail are lapses, too; those that fail together, and the loss that follows, are one. */
static void failures_are_lapses(void **state) {
    (void)state;
    told t = pair();
    tell(&t, "submit 4");
    tell(&t, "submit 5");
    assert_string_equal(t.actions, "D5.1>0:10,L*");
    tell(&t, "dend 4.1 ST_IO");
    tell(&t, "dend 5.1 ST_IO");
    flap(&t, 2);
    assert_int_equal(coord_core_counts(t.core).held_out, 0);
    assert_int_equal(asked(&t), 0);
    at(&t, 100);
    tell(&t, "submit 6");
    tell(&t, "submit 7");
    tell(&t, "dend 6.1 ST_DEVICE");              /* the second */
    assert_string_equal(t.actions, "D6.2>1:10,L*");
    tell(&t, "dend 7.1 ST_DEVICE");
    at(&t, 299);
    assert_int_equal(asked(&t), 1);
    at(&t, 300);
    assert_int_equal(asked(&t), 0);
    assert_int_equal(coord_core_counts(t.core).held_out, 1);
    coord_core_destroy(t.core);
}

static void who_drains_and_goes_has_not_lapsed(void **state) {
    (void)state;
    told t = pair();
    for (int epoch = 1; epoch < 6; epoch++) {
        char event[40];
        snprintf(event, sizeof event, "node 0 D cap=9 epoch=%d drain", epoch);
        tell(&t, event);
        flap(&t, epoch + 1);
        assert_int_equal(asked(&t), 0);
    }
    coord_core_destroy(t.core);
}

/* Alone, or when most of its role flap: nobody waits for the end of it. */
static void never_the_last_ones(void **state) {
    (void)state;
    told t = story_begin(&limits);
    tell(&t, "node 0 D");
    for (int epoch = 2; epoch < 8; epoch++) flap(&t, epoch);
    assert_int_equal(asked(&t), 0);
    tell(&t, "node 1 D cap=1");
    assert_int_equal(asked(&t), 1);              /* one of two */
    tell(&t, "node 2 D");
    for (int epoch = 2; epoch < 5; epoch++) {
        char event[40];
        tell(&t, "lost 2");
        snprintf(event, sizeof event, "node 2 D epoch=%d", epoch);
        tell(&t, event);
    }
    tell(&t, "submit 1");
    tell(&t, "submit 2");                        /* two of three: as if it were none */
    tell(&t, "submit 3");
    assert_string_equal(strrchr(t.actions, 'D') ? "placed" : t.actions, "placed");
    assert_int_equal(coord_core_counts(t.core).waiting, 0);
    coord_core_destroy(t.core);
}

/* A prompt that prefill nodes alone may read goes to the one there is, though it flaps. */
static void prefill_nodes_too(void **state) {
    (void)state;
    told t = story_begin(&limits);
    tell(&t, "node 9 D num=1");
    tell(&t, "node 0 P num=2");
    for (int epoch = 2; epoch < 6; epoch++) {
        char event[40];
        tell(&t, "lost 0");
        snprintf(event, sizeof event, "node 0 P num=2 epoch=%d", epoch);
        tell(&t, event);
    }
    tell(&t, "submit 1");
    tell(&t, "reserved 1.1 0/9");
    assert_string_equal(t.actions, "P1.1>0:0-9");
    tell(&t, "node 1 P num=2");
    tell(&t, "submit 2");
    tell(&t, "reserved 2.1 0/9");
    assert_string_equal(t.actions, "P2.1>1:0-9");
    coord_core_destroy(t.core);
}

/* Somebody waits because the other one is full: he is placed when the time is over, without another event. */
static void a_tick_is_due_then(void **state) {
    (void)state;
    told t = story_begin(&limits);
    tell(&t, "node 1 D cap=1");
    tell(&t, "submit 1");
    tell(&t, "node 0 D cap=9");
    flap(&t, 2);
    flap(&t, 3);
    tell(&t, "submit 2");
    assert_string_equal(t.actions, "");
    assert_int_equal(coord_core_next_tick_ms(t.core), 200);
    at(&t, 200);
    assert_string_equal(t.actions, "D2.1>0:10,L*");
    coord_core_destroy(t.core);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(held_out_for_ever_longer, setup),
        cmocka_unit_test_setup(a_number_is_another_nodes, setup),
        cmocka_unit_test_setup(a_steady_while_is_enough, setup),
        cmocka_unit_test_setup(failures_are_lapses, setup),
        cmocka_unit_test_setup(who_drains_and_goes_has_not_lapsed, setup),
        cmocka_unit_test_setup(never_the_last_ones, setup),
        cmocka_unit_test_setup(prefill_nodes_too, setup),
        cmocka_unit_test_setup(a_tick_is_due_then, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
