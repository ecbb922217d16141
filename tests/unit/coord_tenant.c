/* coord_tenant.c -- tests coordinator/tenant.c: what is refused, when to come back, and whose turn it is. Prompts of the
 * story have 10 tokens, and four of answer are expected (max). */
#include "coord_story.h"

static void queue_is_bounded_by_tokens(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.queue_tokens_max = 20;
    STORY(&limits, {"node 0 D cap=1", ""},
          {"submit 1", "D1.1>0:10,L*"},
          {"submit 2", ""}, {"submit 3", ""},
          {"submit 4", "F4:ST_AGAIN/0"},
          {"cancel 2", "F2:ST_CANCELED/0"},
          {"submit 5", ""}, {"submit 6", "F6:ST_AGAIN/0"},
          {"dend 1.1 ST_AGAIN", ""},             /* it was accepted: it waits whatever waits already */
          {"submit 7", "F7:ST_AGAIN/0"},
          {"at 50", "D1.2>0:10,L*"},
          {"dend 1.2 done", "F1:ST_OK/2 D3.1>0:10,L*"},
          {"submit 8", ""});
    limits.queue_tokens_max = 5;                 /* less than a prompt: it may wait alone */
    STORY(&limits, {"node 0 D cap=1", ""},
          {"submit 1", "D1.1>0:10,L*"}, {"submit 2", ""}, {"submit 3", "F3:ST_AGAIN/0"});
}

static void a_tenant_has_caps(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.tenant_requests_max = 2;
    STORY(&limits, {"node 0 D cap=9", ""},
          {"submit 1 tenant=5", "D1.1>0:10,L*"}, {"submit 2 tenant=5", "D2.1>0:10,L*"},
          {"submit 3 tenant=5", "F3:ST_AGAIN/0"},
          {"submit 4 tenant=6", "D4.1>0:10,L*"}, {"submit 5", "D5.1>0:10,L*"},
          {"dend 2.1 done", "F2:ST_OK/2"},
          {"submit 6 tenant=5", "D6.1>0:10,L*"}, {"submit 7 tenant=5", "F7:ST_AGAIN/0"});
    limits = story_limits();
    limits.tenant_queue_tokens_max = 25;
    STORY(&limits, {"node 0 D cap=1", ""},
          {"submit 1 tenant=5", "D1.1>0:10,L*"}, {"submit 2 tenant=5", ""}, {"submit 3 tenant=5", ""},
          {"submit 4 tenant=5", "F4:ST_AGAIN/0"}, {"submit 5 tenant=6", ""}, {"submit 6", ""});
}

/* Named tenants take at most as many places as they leave; who names none may take them all. */
static void a_flood_leaves_room(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.queue_max = 6;
    STORY(&limits, {"node 0 D cap=1", ""},
          {"submit 1 tenant=5", "D1.1>0:10,L*"},
          {"submit 2 tenant=5", ""}, {"submit 3 tenant=5", ""}, {"submit 4 tenant=5", ""},
          {"submit 5 tenant=5", "F5:ST_AGAIN/0"},
          {"submit 6 tenant=6", ""}, {"submit 7 tenant=6", ""}, {"submit 8 tenant=6", "F8:ST_AGAIN/0"},
          {"submit 9 tenant=7", ""}, {"submit 10 tenant=8", "F10:ST_AGAIN/0"});
    STORY(&limits, {"node 0 D cap=1", ""},
          {"submit 1", "D1.1>0:10,L*"}, {"submit 2", ""}, {"submit 3", ""}, {"submit 4", ""}, {"submit 5", ""},
          {"submit 6", ""}, {"submit 7", ""}, {"submit 8", "F8:ST_AGAIN/0"});
}

/* Tenant 5 has six waiting when 6 comes with two and 7 with one: they take turns. */
static void tenants_take_turns(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    STORY(&limits, {"node 0 D cap=1", ""},
          {"submit 1 tenant=5", "D1.1>0:10,L*"}, {"submit 2 tenant=5", ""}, {"submit 3 tenant=5", ""},
          {"submit 4 tenant=5", ""}, {"submit 5 tenant=5", ""}, {"submit 6 tenant=5", ""},
          {"submit 11 tenant=6", ""}, {"submit 12 tenant=6", ""}, {"submit 21 tenant=7", ""},
          {"dend 1.1 done", "F1:ST_OK/2 D11.1>0:10,L*"},
          {"dend 11.1 done", "F11:ST_OK/2 D21.1>0:10,L*"},
          {"dend 21.1 done", "F21:ST_OK/2 D2.1>0:10,L*"},
          {"dend 2.1 ST_AGAIN", ""}, {"at 50", "D2.2>0:10,L*"},  /* it keeps its turn */
          {"dend 2.2 done", "F2:ST_OK/2 D12.1>0:10,L*"},
          {"dend 12.1 done", "F12:ST_OK/2 D3.1>0:10,L*"},
          {"submit 22 tenant=7", ""},                            /* who was away has saved nothing up */
          {"submit 23 tenant=7", ""},
          {"dend 3.1 done", "F3:ST_OK/2 D22.1>0:10,L*"},
          {"dend 22.1 done", "F22:ST_OK/2 D4.1>0:10,L*"},
          {"dend 4.1 done", "F4:ST_OK/2 D23.1>0:10,L*"},
          {"dend 23.1 done", "F23:ST_OK/2 D5.1>0:10,L*"});
}

/* Requests of 14 tokens, and pages of 4: four each. Two of a tenant's go at once; the others wait, other tenants do not. */
static void a_tenant_has_pages(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.tenant_pages_max = 10;
    STORY(&limits, {"node 0 D cap=9 page=4", ""},
          {"submit 1 tenant=5", "D1.1>0:10,L*"}, {"submit 2 tenant=5", "D2.1>0:10,L*"},
          {"submit 3 tenant=5", ""}, {"submit 4 tenant=5", ""}, {"submit 5 tenant=5 max=1", ""},
          {"submit 6 tenant=6", "D6.1>0:10,L*"},
          {"dend 2.1 ST_AGAIN", ""},             /* it keeps its turn, before those that came after it */
          {"at 50", "D2.2>0:10,L*"},
          {"cancel 3", "F3:ST_CANCELED/0"},
          {"dend 2.2 done", "F2:ST_OK/2 D4.1>0:10,L*"},
          {"submit 7 tenant=6", "D7.1>0:10,L*"},
          {"dend 4.1 done", "F4:ST_OK/2 D5.1>0:10,L*"},
          {"submit 8 tenant=5 max=1", "D8.1>0:10,L*"},           /* 4 + 3 + 3 pages */
          {"submit 9 tenant=5 deadline=90", ""},
          {"submit 10 tenant=5 max=1", ""},                      /* not past the one before it */
          {"at 90", "F9:ST_DEADLINE/0"},
          {"dend 8.1 done", "F8:ST_OK/2 D10.1>0:10,L*"});
    STORY(&limits, {"node 0 D cap=1 page=4", ""},
          {"submit 1 tenant=6", "D1.1>0:10,L*"},
          {"node 1 D cap=9 page=2", ""},
          {"submit 2 max=30 tenant=5", "D2.1>1:10,L*"},          /* 20 pages there, and it has no other */
          {"submit 3 max=1 tenant=5", ""});
    limits.tenant_pages_max = 11;
    STORY(&limits, {"node 0 D cap=9 page=4", ""},
          {"submit 1", "D1.1>0:10,L*"}, {"submit 2", "D2.1>0:10,L*"},
          {"submit 3", ""}, {"submit 4 max=1", ""},              /* it would fit, but another one stands before it */
          {"dend 1.1 done", "F1:ST_OK/2 D3.1>0:10,L* D4.1>0:10,L*"});
    limits.queue_max = 2;                        /* those held are in the queue, for their tenant */
    STORY(&limits, {"node 0 D cap=9 page=4", ""},
          {"submit 1", "D1.1>0:10,L*"}, {"submit 2", "D2.1>0:10,L*"},
          {"submit 3", ""}, {"submit 4", ""}, {"submit 5", "F5:ST_AGAIN/0"},
          {"submit 6 tenant=6", "D6.1>0:10,L*"});
    limits.tenant_pages_max = 10;
    STORY(&limits, {"node 0 D cap=9 page=4", ""},
          {"submit 1 max=35 tenant=5", "F1:ST_BAD_INPUT/0"},     /* 12 pages, whoever waits */
          {"submit 2 max=30 tenant=5", "D2.1>0:10,L*"},
          {"node 1 D cap=9 page=16", ""},
          {"submit 3 max=35 tenant=6", "D3.1>1:10,L*"});         /* 3 of that node's */
    STORY(&limits, {"node 0 D cap=9 page=4", ""},
          {"submit 1 max=30 seen=4 tenant=5", "D1.1>0:14,L*"},   /* what was seen is of the 30 */
          {"submit 2 max=31 seen=4 tenant=6", "F2:ST_BAD_INPUT/0"});
}

/* Those who stood before it in the queue are gone, and none was placed. */
static void who_is_held_is_not_forgotten(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.tenant_pages_max = 8;
    STORY(&limits, {"node 0 D cap=9 page=4", ""},
          {"submit 1", "D1.1>0:10,L*"}, {"submit 2", "D2.1>0:10,L*"},
          {"submit 3", ""}, {"submit 4", ""}, {"submit 5", ""},
          {"node 0 D cap=9 page=4 drain", ""},
          {"dend 1.1 done", "F1:ST_OK/2"}, {"dend 2.1 done", "F2:ST_OK/2"},
          {"cancel 3", "F3:ST_CANCELED/0"}, {"cancel 4", "F4:ST_CANCELED/0"},
          {"node 0 D cap=9 page=4", "D5.1>0:10,L*"});
}

/* However many are held and whatever becomes of them, at the end all were answered and nothing is counted. */
static void held_requests_all_come_round(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.tenant_pages_max = 20;
    told t = story_begin(&limits);
    char event[80];
    tell(&t, "node 0 D cap=7 page=4");
    for (int i = 1; i <= 60; i++) {
        snprintf(event, sizeof event, "submit %d tenant=%d max=%d", i, i % 3 + 1, i * 7 % 30 + 1);
        tell(&t, event);
    }
    for (int i = 1; i <= 60; i += 5) {
        snprintf(event, sizeof event, "cancel %d", i);
        tell(&t, event);
    }
    for (int round = 0; round < 60 && coord_core_counts(t.core).waiting + coord_core_counts(t.core).placed > 0; round++)
        for (int i = 1; i <= 60; i++) {
            snprintf(event, sizeof event, "dend %d.1 done", i);
            tell(&t, event);
        }
    coord_counts counts = coord_core_counts(t.core);
    assert_int_equal(counts.waiting + counts.placed, 0);
    assert_int_equal(counts.waiting_tokens, 0);
    coord_core_destroy(t.core);
}

/* ---- shares under a flood ---------------------------------------------------------------------------------- */

typedef struct source {
    uint64_t tenant;
    int32_t tokens, answers;     /* of a prompt; answered */
} source;

static coord_action act(coord_core *c, coord_event *e, int64_t now_ms) {
    coord_actions out;
    coord_core_step(c, e, now_ms, &out);
    for (int i = 0; i < out.count; i++)
        if (out.at[i].kind == COORD_DO_DECODE) return out.at[i];
    return out.count ? out.at[0] : (coord_action){0};
}

static bool submit(coord_core *c, uint64_t number, const source *from, int64_t now_ms, uint64_t *placed) {
    static int32_t prompt[4096];
    coord_event e = {.kind = COORD_SUBMIT, .request = number};
    e.submit.id = "flood";
    e.submit.tokens = prompt;
    e.submit.count = e.submit.prompt_count = from->tokens;
    e.submit.max_tokens = 1;
    e.submit.deadline_ms = INT64_MAX;
    e.submit.prefer_node = -1;
    e.submit.tenant = from->tenant;
    coord_action a = act(c, &e, now_ms);
    if (a.request && a.kind == COORD_DO_DECODE) *placed = a.request;
    return a.request == 0 || a.kind == COORD_DO_DECODE;
}

/* A node answers one request at a time, a token a ms. Tenant 1 submits ten times as much as fits, 2 always has two
 * requests waiting: it is to have half of all tokens, of which 90 % are asked for. */
static void a_flood_leaves_the_other_its_share(void **state) {
    (void)state;
    static const int32_t sizes[][2] = {{100, 100}, {100, 1000}, {1000, 100}, {2000, 10}};
    log_setup("story", LOG_ERROR);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        coord_limits limits = story_limits();
        limits.queue_max = 64;
        coord_core *c = coord_core_create(&limits);
        source from[2] = {{.tenant = 1, .tokens = sizes[k][0]}, {.tenant = 2, .tokens = sizes[k][1]}};
        int waiting = 0;
        uint64_t number = 0, placed = 0, owner[200000] = {0};
        coord_event e = {.kind = COORD_NODE_STATE, .node = 0};
        e.node_state = (coord_node){.role = COORD_DECODE, .epoch = 1, .capacity = 1};
        act(c, &e, 0);
        for (int64_t now_ms = 1; number < 190000 && now_ms < 400000;) {
            for (int i = 0; i < 10; i++) owner[++number] = 0, submit(c, number, &from[0], now_ms, &placed);
            for (; waiting < 2; waiting++) {
                owner[++number] = 1;
                assert_true(submit(c, number, &from[1], now_ms, &placed));
            }
            assert_true(placed != 0);
            source *served = &from[owner[placed]];
            served->answers++;
            waiting -= owner[placed] == 1;
            now_ms += served->tokens;
            e = (coord_event){.kind = COORD_DECODE_END, .request = placed, .attempt = 1};
            e.end.done = true;
            coord_action a = act(c, &e, now_ms);
            placed = a.kind == COORD_DO_DECODE ? a.request : 0;
        }
        double mine = (double)from[1].answers * from[1].tokens, all = mine + (double)from[0].answers * from[0].tokens;
        if (mine / all < 0.45) fail_msg("prompts of %d and %d: %.3f of all", sizes[k][0], sizes[k][1], mine / all);
        coord_core_destroy(c);
    }
}

static int64_t hint(told *t, uint64_t tenant) {
    static const source none = {.tokens = 10};
    source from = none;
    from.tenant = tenant;
    static const int32_t prompt[10];
    coord_event e = {.kind = COORD_SUBMIT, .request = 9999};
    e.submit.id = "hint";
    e.submit.tokens = prompt;
    e.submit.count = e.submit.prompt_count = from.tokens;
    e.submit.max_tokens = 1;
    e.submit.deadline_ms = INT64_MAX;
    e.submit.prefer_node = -1;
    e.submit.tenant = from.tenant;
    coord_action a = act(t->core, &e, t->now_ms);
    assert_int_equal(a.finish.st, ST_AGAIN);
    return a.finish.retry_after_ms;
}

/* 40 answers of 10 tokens took 100 ms each. */
static void hints_follow_the_measured_rate(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.queue_max = 8;
    limits.tenant_requests_max = 3;
    told t = story_begin(&limits);
    tell(&t, "node 0 D cap=1");
    for (int i = 1; i <= 40; i++) {
        char event[60];
        snprintf(event, sizeof event, "submit %d", i);
        tell(&t, event);
        t.now_ms += 100;
        snprintf(event, sizeof event, "dend %d.1 done", i);
        tell(&t, event);
    }
    tell(&t, "submit 101 tenant=1");
    tell(&t, "submit 102 tenant=1");
    tell(&t, "submit 103 tenant=1");
    assert_in_range(hint(&t, 1), 90, 110);       /* any answer is one of this tenant's */
    tell(&t, "submit 104");
    tell(&t, "submit 105");
    tell(&t, "submit 106");
    assert_in_range(hint(&t, 1), 180, 220);      /* every other one */
    tell(&t, "submit 107 tenant=2");
    tell(&t, "submit 108 tenant=2");
    tell(&t, "submit 109 tenant=3");
    assert_in_range(hint(&t, 0), 810, 990);      /* the queue is full: eight, and itself */
    coord_core_destroy(t.core);
}

/* One answer at a time, 100 ms each. What counts is who stands before it, and only what was measured while someone waited. */
static void deadlines_that_can_not_be_met(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    told t = story_begin(&limits);
    char event[80];
    tell(&t, "node 0 D cap=1");
    for (int i = 1; i <= 40; i++) {              /* nobody waits: nothing is known of a queue */
        snprintf(event, sizeof event, "submit %d deadline=1000000", i);
        tell(&t, event);
        t.now_ms += 100;
        snprintf(event, sizeof event, "dend %d.1 done", i);
        tell(&t, event);
    }
    for (int i = 101; i <= 110; i++) {
        snprintf(event, sizeof event, "submit %d tenant=1", i);
        tell(&t, event);
    }
    tell(&t, "submit 200 tenant=1 deadline=4001");               /* taken, for it is not known that it is too late */
    assert_string_equal(t.actions, "");
    t.now_ms = 4010;
    tell(&t, "at 4010");
    assert_string_equal(t.actions, "F200:ST_DEADLINE/0");
    for (int i = 101, last = 111; i <= 120; i++, last++) {       /* nine wait, always */
        t.now_ms += 100;
        snprintf(event, sizeof event, "dend %d.1 done", i);
        tell(&t, event);
        snprintf(event, sizeof event, "submit %d tenant=1", last);
        tell(&t, event);
    }
    int64_t now = t.now_ms;
    snprintf(event, sizeof event, "submit 300 tenant=1 deadline=%d", (int)now + 800);
    tell(&t, event);
    assert_string_equal(t.actions, "F300:ST_AGAIN/0");           /* 900 ms are before it */
    snprintf(event, sizeof event, "submit 301 tenant=1 deadline=%d", (int)now + 1000);
    tell(&t, event);
    assert_string_equal(t.actions, "");
    snprintf(event, sizeof event, "submit 302 tenant=2 deadline=%d", (int)now + 150);
    tell(&t, event);
    assert_string_equal(t.actions, "");                          /* another tenant's turn comes first */
    snprintf(event, sizeof event, "submit 303 tenant=2 deadline=%d", (int)now + 150);
    tell(&t, event);
    assert_string_equal(t.actions, "F303:ST_AGAIN/0");           /* after its first one: two are before it */
    tell(&t, "submit 304 tenant=1");
    assert_string_equal(t.actions, "");
    t.now_ms += 1000000;                         /* the nodes were slow for a while; the queue is empty again */
    for (int i = 121; i <= 400; i++) {
        snprintf(event, sizeof event, "cancel %d", i);
        tell(&t, event);
    }
    assert_int_equal(coord_core_counts(t.core).waiting, 0);
    snprintf(event, sizeof event, "submit 500 tenant=1 deadline=%d", (int)t.now_ms + 1);
    tell(&t, event);
    assert_string_not_equal(t.actions, "F500:ST_AGAIN/0");       /* with nobody before it it is never refused */
    coord_core_destroy(t.core);
}

/* A tenant has twenty held back: they do not stand before another's. */
static void who_is_held_stands_before_nobody_else(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    limits.tenant_pages_max = 4;                 /* one request of each tenant at a time */
    told t = story_begin(&limits);
    char event[80];
    tell(&t, "node 0 D cap=2 page=4");
    for (int i = 1; i <= 30; i++) {
        snprintf(event, sizeof event, "submit %d tenant=%d", i, 100 + i);
        tell(&t, event);
    }
    for (int i = 1; i <= 30; i++) {
        t.now_ms += 100;
        snprintf(event, sizeof event, "dend %d.1 done", i);
        tell(&t, event);
    }
    for (int i = 201; i <= 220; i++) {
        snprintf(event, sizeof event, "submit %d tenant=5", i);
        tell(&t, event);
        assert_string_equal(t.actions, i == 201 ? "D201.1>0:10,L*" : "");
    }
    tell(&t, "submit 301 tenant=6");
    assert_string_equal(t.actions, "D301.1>0:10,L*");
    tell(&t, "submit 302 tenant=6");
    snprintf(event, sizeof event, "submit 303 tenant=6 deadline=%d", (int)t.now_ms + 101);
    tell(&t, event);
    assert_string_equal(t.actions, "");
    snprintf(event, sizeof event, "submit 304 tenant=6 deadline=%d", (int)t.now_ms + 101);
    tell(&t, event);
    assert_string_equal(t.actions, "F304:ST_AGAIN/0");
    coord_core_destroy(t.core);
}

static void more_tenants_than_seats(void **state) {
    (void)state;
    coord_limits limits = story_limits();
    told t = story_begin(&limits);
    char event[60];
    tell(&t, "node 0 D cap=5000");
    for (int i = 1; i <= COORD_TENANTS_MAX; i++) {
        snprintf(event, sizeof event, "submit %d tenant=%d", i, i);
        tell(&t, event);
        assert_int_equal(t.actions[0], 'D');
    }
    tell(&t, "submit 2000 tenant=2000");
    assert_string_equal(t.actions, "F2000:ST_AGAIN/0");
    tell(&t, "submit 2001 tenant=1");
    assert_int_equal(t.actions[0], 'D');
    tell(&t, "cancel 77");
    tell(&t, "submit 2002 tenant=2000");
    assert_int_equal(t.actions[0], 'D');
    coord_core_destroy(t.core);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queue_is_bounded_by_tokens),         cmocka_unit_test(a_tenant_has_caps),
        cmocka_unit_test(a_flood_leaves_room),                cmocka_unit_test(tenants_take_turns),
        cmocka_unit_test(a_flood_leaves_the_other_its_share), cmocka_unit_test(hints_follow_the_measured_rate),
        cmocka_unit_test(more_tenants_than_seats),
        cmocka_unit_test(deadlines_that_can_not_be_met),      cmocka_unit_test(who_is_held_stands_before_nobody_else),
        cmocka_unit_test(a_tenant_has_pages),                 cmocka_unit_test(held_requests_all_come_round),
        cmocka_unit_test(who_is_held_is_not_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
