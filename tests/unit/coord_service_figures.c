/* coord_service_figures.c -- tests coordinator/figures.c: what is counted of a request that is placed another time, of links and of
 * tenants. Who counts in a real cluster, and when: tests/cluster/metrics.py. */
#include "coordinator/service.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct wanted {
    const char *name, *labels;
    int64_t value;
    int found;
} wanted;

static void look(const metric *m, void *ctx) {
    wanted *w = ctx;
    if (strcmp(m->name, w->name) != 0 || strcmp(m->labels ? m->labels : "", w->labels) != 0) return;
    w->value = metric_get(m);
    w->found++;
}

/* -1: there is no such metric. */
static int64_t value_of(const char *name, const char *labels) {
    wanted w = {.name = name, .labels = labels, .value = -1};
    metrics_each(look, &w);
    assert_true(w.found <= 1);
    return w.value;
}

enum { PROMPT = 100 };

static coord_client client = {.job = {.count = PROMPT}};

static coord_branch branch_new(void) {
    client.figures = coord_figures_tenant(NULL);
    return (coord_branch){.client = &client, .held_node = -1, .prefill_node = -1, .submitted_us = 1};
}

static void listed_from_the_start(void **state) {
    (void)state;
    static const char *const expected[][2] = {
        {"baton_placed_again_total", "cause=\"peer_lost\""}, {"baton_placed_again_total", "cause=\"again\""},
        {"baton_placed_again_total", "cause=\"moved\""},     {"baton_placed_again_total", "cause=\"no_prefill\""},
        {"baton_failover_gap_seconds", "after=\"failure\""}, {"baton_failover_gap_seconds", "after=\"move\""},
        {"baton_tokens_computed_again_total", "of=\"prompt\""}, {"baton_tokens_computed_again_total", "of=\"answer\""},
        {"baton_placements_total", "role=\"decode\",reason=\"cache\""}, {"baton_placements_total", "role=\"prefill\",reason=\"holder\""},
        {"baton_link_kv_bytes_total", "from=\"other\",to=\"other\""}, {"baton_tenant_requests_total", "tenant=\"\""}};
    coord_core *core = coord_core_create(&coord_limits_default);
    coord_figures_open(core);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (value_of(expected[i][0], expected[i][1]) != 0) fail_msg("no %s{%s}", expected[i][0], expected[i][1]);
    coord_core_destroy(core);
}

/* A piece as coord_generate_emit() counts it. */
static void piece(coord_branch *b, uint32_t attempt, int64_t now_us) {
    coord_figures_piece(b, attempt, now_us);
    b->piece_attempt = attempt == b->decode_attempt ? attempt : 0;
    b->last_us = b->first_us = now_us;
}

static void gaps(int64_t failures, int64_t moves) {
    assert_int_equal(value_of("baton_failover_gap_seconds", "after=\"failure\""), failures);
    assert_int_equal(value_of("baton_failover_gap_seconds", "after=\"move\""), moves);
}

static void gap_between_attempts(void **state) {
    (void)state;
    coord_branch b = branch_new();
    coord_figures_attempt(&b, 1);                            /* its node was full */
    piece(&b, 2, 10);                                        /* the first token of a prompt that is read ahead */
    coord_figures_attempt(&b, 3);
    piece(&b, 3, 20);
    piece(&b, 3, 30);
    gaps(0, 0);
    coord_figures_attempt(&b, 4);                            /* says nothing before it fails */
    coord_figures_attempt(&b, 5);
    piece(&b, 5, 2000030);
    piece(&b, 5, 2000040);
    gaps(1, 0);
    b.moved = true;
    coord_figures_attempt(&b, 6);
    piece(&b, 6, 2000050);
    gaps(1, 1);
}

static int64_t prompt_before, answer_before;

static void since(int64_t prompt, int64_t answer) {
    int64_t prompt_now = value_of("baton_tokens_computed_again_total", "of=\"prompt\"");
    int64_t answer_now = value_of("baton_tokens_computed_again_total", "of=\"answer\"");
    assert_int_equal(prompt_now - prompt_before, prompt);
    assert_int_equal(answer_now - answer_before, answer);
    prompt_before = prompt_now, answer_before = answer_now;
}

enum { P1 = 7, P2 = 8, HERE = -1 };

static void rows_of_failovers(void **state) {
    (void)state;
    coord_branch b = branch_new();
    coord_figures_attempt(&b, 1);                            /* was refused: nothing was computed */
    coord_figures_attempt(&b, 2);
    coord_figures_computed(&b, P1, false, 0, PROMPT);
    b.tokens_count = 1;
    coord_figures_computed(&b, HERE, false, PROMPT - 1, PROMPT);     /* the last row is each side's own */
    since(0, 0);
    b.tokens_count = 11;                                     /* rows [0, 110) were computed */
    coord_figures_attempt(&b, 3);
    coord_figures_computed(&b, P1, false, 96, 111);
    coord_figures_computed(&b, HERE, false, 110, 111);
    since(4, 10);
    b.tokens_count = 21;
    coord_figures_attempt(&b, 4);                            /* all of it where nobody caches any */
    coord_figures_computed(&b, HERE, false, 0, 121);
    since(100, 20);
    coord_figures_attempt(&b, 5);                            /* everything is there; and what no node may say */
    coord_figures_computed(&b, HERE, false, 121, 121);
    coord_figures_computed(&b, HERE, false, INT64_MAX, 121);
    since(0, 0);
    coord_figures_computed(&b, HERE, false, INT64_MIN, 10);
    since(10, 0);
}

/* Begun at another coordinator: the first attempt here computes nothing again, as far as this one knows. */
static void rows_of_a_resumed_answer(void **state) {
    (void)state;
    coord_branch b = branch_new();
    b.tokens_count = 50;
    coord_figures_attempt(&b, 1);
    coord_figures_attempt(&b, 2);
    coord_figures_computed(&b, HERE, false, 0, 150);
    since(0, 0);
    b.tokens_count = 52;
    coord_figures_attempt(&b, 3);
    coord_figures_computed(&b, HERE, false, 0, 152);
    since(100, 51);
}

static void rows_read_ahead(void **state) {
    (void)state;
    coord_branch b = branch_new();
    coord_figures_computed(&b, P1, true, 0, PROMPT);
    b.tokens_count = 1;
    coord_figures_attempt(&b, 2);
    coord_figures_computed(&b, P1, false, 96, 101);          /* the holder sends it */
    coord_figures_computed(&b, HERE, false, 100, 101);
    since(0, 0);
    b = branch_new();
    coord_figures_computed(&b, P1, true, 0, PROMPT);         /* that one is lost: another one reads it ahead */
    coord_figures_computed(&b, P2, true, 16, PROMPT);
    since(84, 0);
    b.tokens_count = 1;
    coord_figures_attempt(&b, 3);
    coord_figures_computed(&b, P1, false, 0, 101);           /* that one, too */
    since(100, 0);
}

static void links(void **state) {
    (void)state;
    static const char of[] = "from=\"p\",to=\"d\"";
    Baton__Node__V1__Sent sent = BATON__NODE__V1__SENT__INIT;
    sent.bytes = 1000, sent.transfer_ms = 20, sent.hidden_ms = 5;
    coord_figures_sent("p", "d", &sent);
    assert_int_equal(value_of("baton_link_kv_bytes_total", of), 1000);
    assert_int_equal(value_of("baton_link_kv_seconds_total", "from=\"p\",to=\"d\",part=\"hidden\""), 5000);
    assert_int_equal(value_of("baton_link_kv_seconds_total", "from=\"p\",to=\"d\",part=\"exposed\""), 15000);
    sent.transfer_ms = NAN, sent.hidden_ms = -INFINITY;      /* it is a node's word */
    coord_figures_sent("p", "d", &sent);
    sent.transfer_ms = 1e300, sent.bytes = UINT64_MAX;
    coord_figures_sent("p", "d", &sent);
    sent.transfer_ms = 1, sent.hidden_ms = 2, sent.bytes = 1;
    coord_figures_sent("p", "d", &sent);
    assert_int_equal(value_of("baton_link_kv_bytes_total", of), 2001);
    assert_int_equal(value_of("baton_link_kv_seconds_total", "from=\"p\",to=\"d\",part=\"hidden\""), 6000);
    assert_int_equal(value_of("baton_link_kv_seconds_total", "from=\"p\",to=\"d\",part=\"exposed\""), 15000);
    coord_figures_sent("d", "p", &sent);                     /* a link has a direction */
    assert_int_equal(value_of("baton_link_kv_bytes_total", "from=\"d\",to=\"p\""), 1);
}

static void count_listed(const metric *m, void *ctx) { *(int *)ctx += coord_figures_many(m); }

static void tenants(void **state) {
    (void)state;
    int listed = 0;
    coord_branch b = branch_new();
    client.figures = coord_figures_tenant("team-a");
    coord_figures_queued(&b, 2000001);                       /* placed */
    b.placed_us = 2000001;
    b.first_us = b.last_us = 2000002;
    coord_figures_finish(&b, ST_OK);
    assert_int_equal(value_of("baton_tenant_requests_total", "tenant=\"team-a\""), 1);
    assert_int_equal(value_of("baton_tenant_queue_seconds_total", "tenant=\"team-a\""), 2000000);
    int64_t others = value_of("baton_tenant_requests_total", "tenant=\"\"");
    b = branch_new();
    b.submitted_us = clock_now_us() - 1000000;
    int64_t waited_us = value_of("baton_tenant_queue_seconds_total", "tenant=\"\"");
    coord_figures_finish(&b, ST_DEADLINE);                   /* never placed */
    assert_int_equal(value_of("baton_tenant_requests_total", "tenant=\"\""), others + 1);
    assert_true(value_of("baton_tenant_queue_seconds_total", "tenant=\"\"") >= waited_us + 1000000);
    for (int i = 0; i < 300; i++) {
        char name[20];
        snprintf(name, sizeof name, "t-%d", i);
        metric_add(coord_figures_tenant(name), 1);
    }
    assert_int_equal(value_of("baton_tenant_requests_total", "tenant=\"t-254\""), 1);
    assert_int_equal(value_of("baton_tenant_requests_total", "tenant=\"t-255\""), -1);
    assert_int_equal(value_of("baton_tenant_requests_total", "tenant=\"\""), others + 1 + 45);
    metrics_each(count_listed, &listed);
    assert_true(listed >= 2 * 257);                          /* both of their metrics */
}

int main(void) {
    log_setup("test", LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(listed_from_the_start), cmocka_unit_test(gap_between_attempts), cmocka_unit_test(rows_of_failovers),
        cmocka_unit_test(rows_of_a_resumed_answer), cmocka_unit_test(rows_read_ahead), cmocka_unit_test(links),
        cmocka_unit_test(tenants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
