/* bench/load_shape.c, load_plan.c, load_trace.c, load_figures.c, histogram.c: the parts of `baton bench load` that are
 * functions of their inputs. What it sends and hears is tests/cluster/bench_load.py's. */
#include "bench/load.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Against a sorted array: never below the true value, at most 1/128 above it. */
static void histogram_against_sorted(void **state) {
    (void)state;
    enum { N = 5000 };
    static int64_t all[N];
    static const double shares[] = {0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1};
    static bench_histogram h;
    uint64_t x = 1;
    double sum = 0;
    for (int i = 0; i < N; i++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        all[i] = (int64_t)(x >> 40 >> (i % 24)); /* from 0 to 2^24, each power of two as often */
        sum += (double)all[i];
        bench_histogram_add(&h, all[i]);
    }
    qsort(all, N, sizeof *all, by_size);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        int64_t want = all[(int)ceil(shares[i] * N) - 1], got = bench_histogram_at(&h, shares[i]);
        if (got < want || (double)got > (double)want * (1 + 1.0 / 128))
            fail_msg("p%g: %lld, expected %lld", shares[i] * 100, (long long)got, (long long)want);
    }
    assert_true(h.max_us == all[N - 1] && h.count == N && bench_histogram_mean(&h) == sum / N);
}

static void histogram_edges(void **state) {
    (void)state;
    static bench_histogram h;
    assert_int_equal(bench_histogram_at(&h, 0.5), 0);
    bench_histogram_add(&h, -5);
    assert_int_equal(bench_histogram_at(&h, 1), 0);
    bench_histogram_add(&h, INT64_MAX);
    assert_true(bench_histogram_at(&h, 1) >= (int64_t)1 << 40);
    assert_int_equal(bench_histogram_at(&h, 0.5), 0);
}

static void shapes(void **state) {
    (void)state;
    static const struct { const char *text; bool good; int32_t first, last; } rows[] = {
        {"fixed:7", true, 7, 7}, {"uniform:3-9", true, 3, 9}, {"list:64,128", true, 64, 128},
        {"lognormal:200,1,20-2000", true, 20, 2000}, {"lognormal:200,0,20-2000", true, 200, 200},
        {"uniform:9-3", false, 0, 0}, {"fixed:0", false, 0, 0}, {"fixed:7,8", false, 0, 0}, {"list:", false, 0, 0},
        {"list:1,", false, 0, 0}, {"uniform:1", false, 0, 0}, {"lognormal:200", false, 0, 0}, {"7", false, 0, 0},
        {"fixed:2000000", false, 0, 0}, {"fixed:-7", false, 0, 0}, {"lognormal:200,nan,1-2", false, 0, 0}, {"", false, 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bench_load_shape s;
        error err = {0};
        status st = bench_load_shape_parse("--x", rows[i].text, &s, &err);
        if (st != (rows[i].good ? ST_OK : ST_BAD_INPUT)) fail_msg("'%s': %s", rows[i].text, status_name(st));
        if (st != ST_OK) {
            assert_true(strstr(err.text, rows[i].text) && strstr(err.text, "--x"));
            continue;
        }
        assert_int_equal(bench_load_shape_draw(&s, 0), rows[i].first);
        assert_int_equal(bench_load_shape_draw(&s, 1 - 0x1p-53), rows[i].last);
    }
    bench_load_shape s;
    assert_int_equal(bench_load_shape_parse("--x", "lognormal:200,1,1-100000", &s, NULL), ST_OK);
    assert_int_equal(bench_load_shape_draw(&s, 0.5), 200);
    assert_int_equal(bench_load_shape_draw(&s, 0.8413447460685429), 544); /* one sigma: 200 e */
}

static bench_load_options options(void) {
    bench_load_options o = {.rate = 50, .requests = 4000, .seed = 3};
    bench_load_shape_parse("", "uniform:1-1024", &o.prompt, NULL);
    bench_load_shape_parse("", "fixed:8", &o.answer, NULL);
    return o;
}

/* The gaps' mean and spread are an exponential distribution's, within five standard errors. */
static void poisson(void **state) {
    (void)state;
    bench_load_options o = options();
    bench_load_plan p, again;
    assert_int_equal(bench_load_plan_make(&o, &p, NULL), ST_OK);
    assert_int_equal(p.count, 4000);
    double sum = 0, squares = 0, prompts = 0;
    for (int64_t i = 0; i < p.count; i++) {
        double gap_s = (double)(p.requests[i].at_us - (i ? p.requests[i - 1].at_us : 0)) / 1e6;
        assert_true(gap_s >= 0);
        sum += gap_s;
        squares += gap_s * gap_s;
        prompts += p.requests[i].prompt;
    }
    double mean = sum / 4000, deviation = sqrt(squares / 4000 - mean * mean);
    assert_true(fabs(mean - 0.02) < 5 * 0.02 / sqrt(4000));
    assert_true(fabs(deviation - 0.02) < 0.003);
    assert_true(fabs(prompts / 4000 - 512.5) < 5 * 296 / sqrt(4000));
    assert_int_equal(bench_load_plan_make(&o, &again, NULL), ST_OK);
    assert_memory_equal(p.requests, again.requests, (size_t)p.count * sizeof *p.requests);
    bench_load_plan_free(&again);
    o.seed++;
    assert_int_equal(bench_load_plan_make(&o, &again, NULL), ST_OK);
    assert_true(p.requests[0].at_us != again.requests[0].at_us);
    bench_load_plan_free(&again);
    bench_load_plan_free(&p);
}

static void bursts_and_ends(void **state) {
    (void)state;
    bench_load_options o = options();
    bench_load_plan p;
    o.burst = 10;
    assert_int_equal(bench_load_plan_make(&o, &p, NULL), ST_OK);
    for (int64_t i = 0; i < p.count; i++) assert_int_equal(p.requests[i].at_us, p.requests[i - i % 10].at_us);
    assert_true(p.requests[9].at_us < p.requests[10].at_us);
    assert_true(fabs((double)p.end_us / 1e6 - 80) < 5 * 80 / sqrt(400));
    bench_load_plan_free(&p);
    o.requests = 0;
    o.duration_s = 2;
    assert_int_equal(bench_load_plan_make(&o, &p, NULL), ST_OK);
    assert_true(p.count > 0 && p.requests[p.count - 1].at_us < 2000000 && p.end_us == 2000000);
    bench_load_plan_free(&p);
    o.slow_readers = 5;
    assert_int_equal(bench_load_plan_make(&o, &p, NULL), ST_OK);
    for (int i = 0; i < 6; i++) assert_int_equal(p.requests[i].slow, i < 5);
    bench_load_plan_free(&p);
    o.duration_s = 0;
    assert_int_equal(bench_load_plan_make(&o, &p, NULL), ST_BAD_INPUT); /* without end */
    o.requests = 1, o.rate = 0;
    assert_int_equal(bench_load_plan_make(&o, &p, NULL), ST_BAD_INPUT);
}

static status trace(const char *text, const bench_load_options *o, bench_load_plan *out, error *err) {
    FILE *in = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    status st = bench_load_plan_trace(in, "t.jsonl", o, out, err);
    fclose(in);
    return st;
}

static const char *const lines =
    "{\"timestamp\": 1000, \"input_length\": 1100, \"output_length\": 5, \"hash_ids\": [7, 8, 9]}\n"
    "{\"timestamp\": 1000, \"input_length\": 600, \"output_length\": 6, \"hash_ids\": [7, 4]}\n\n"
    "{\"timestamp\": 3000.5, \"input_length\": 300, \"output_length\": 7, \"hash_ids\": [9]}\n"
    "{\"timestamp\": 5000, \"input_length\": 600, \"output_length\": 8}\n";

static void traces(void **state) {
    (void)state;
    bench_load_options o = {.seed = 1};
    bench_load_plan p;
    error err = {0};
    static const int64_t at_us[] = {0, 0, 2000500, 4000000};
    if (trace(lines, &o, &p, &err) != ST_OK) fail_msg("%s", err.text);
    assert_int_equal(p.count, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(p.requests[i].at_us, at_us[i]);
        assert_int_equal(p.requests[i].answer, 5 + i);
    }
    bench_load_plan_free(&p);
    o.rate = 3;                  /* four in four seconds become three gaps in one */
    assert_int_equal(trace(lines, &o, &p, NULL), ST_OK);
    assert_true(p.requests[2].at_us == 500125 && p.end_us == 1000000);
    bench_load_plan_free(&p);
    o = (bench_load_options){.duration_s = 3};
    assert_int_equal(trace(lines, &o, &p, NULL), ST_OK);
    assert_int_equal(p.count, 3);
    bench_load_plan_free(&p);
}

/* Equal ids are equal blocks, different ones are not, and a request without has blocks of its own. */
static void prompts(void **state) {
    (void)state;
    bench_load_options o = {.seed = 1};
    bench_load_plan p;
    static int32_t t[4][1200];
    assert_int_equal(trace(lines, &o, &p, NULL), ST_OK);
    for (int i = 0; i < 4; i++) {
        bench_load_plan_tokens(&p, i, 5000, t[i]);
        for (int k = 0; k < p.requests[i].prompt; k++) assert_in_range(t[i][k], 0, 4999);
    }
    assert_memory_equal(t[0], t[1], 512 * sizeof(int32_t));
    assert_memory_not_equal(t[0] + 512, t[1] + 512, 80 * sizeof(int32_t));
    assert_memory_equal(t[0] + 1024, t[2], 76 * sizeof(int32_t));
    assert_memory_not_equal(t[3], t[1], 80 * sizeof(int32_t));
    assert_memory_not_equal(t[3], t[3] + 512, 80 * sizeof(int32_t));
    p.shared = 100;              /* then all begin alike, and go on as before */
    static int32_t shared[2][1200];
    for (int i = 0; i < 2; i++) bench_load_plan_tokens(&p, 2 + i, 5000, shared[i]);
    assert_memory_equal(shared[0], shared[1], 100 * sizeof(int32_t));
    assert_memory_equal(shared[0] + 100, t[2] + 100, 200 * sizeof(int32_t));
    bench_load_plan_free(&p);
}

static void bad_traces(void **state) {
    (void)state;
    static const char *const rows[] = {
        "", "[]", "{\"timestamp\": 1", "{\"input_length\": 5, \"output_length\": 5}",
        "{\"timestamp\": -1, \"input_length\": 5, \"output_length\": 5}",
        "{\"timestamp\": 1, \"input_length\": 0, \"output_length\": 5}",
        "{\"timestamp\": 1, \"input_length\": 5.5, \"output_length\": 5}",
        "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 9999999}",
        "{\"timestamp\": 1, \"input_length\": 513, \"output_length\": 5, \"hash_ids\": [1]}",
        "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [-1]}",
        "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": 3}",
        "{\"timestamp\": 2, \"input_length\": 5, \"output_length\": 5}\n{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 5}",
    };
    bench_load_options o = {.seed = 1};
    int64_t live = mem_live();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bench_load_plan p;
        error err = {0};
        assert_int_equal(trace(*rows[i] ? rows[i] : "\n", &o, &p, &err), ST_BAD_INPUT);
        assert_non_null(strstr(err.text, "t.jsonl"));
    }
    assert_int_equal(mem_live(), live);
}

/* Ten requests, one a second, each answered with 11 tokens; the server stalls for 5 s while the third is on its way. */
static void no_coordinated_omission(void **state) {
    (void)state;
    enum { N = 10, MS = 1000 };
    bench_load_request requests[N] = {{0}};
    bench_load_record records[N] = {{.outcome = LOAD_PLANNED}};
    bench_load_plan p = {.requests = requests, .count = N, .end_us = 10000 * MS};
    static bench_load_figures f;
    for (int i = 0; i < N; i++) {
        int64_t at = i * 1000 * MS, free_at = 7000 * MS, began = i >= 2 && i < 7 ? free_at : at;
        requests[i] = (bench_load_request){.at_us = at, .prompt = 20, .answer = 11};
        records[i] = (bench_load_record){.outcome = LOAD_ANSWERED, .sent_us = began, .first_us = began + 100 * MS,
                                         .last_us = began + 600 * MS, .end_us = began + 601 * MS, .tokens = 11,
                                         .told = true, .tokenise = 2, .queue = 10, .prefill = 58, .transfer = 5, .ttft = 90, .decode = 500};
    }
    bench_load_figures_of(&p, records, NULL, (bench_load_slo){2500, 50}, 10000 * MS, 1, &f);
    assert_true(bench_histogram_at(&f.ttft, 1) == 5100 * MS && bench_histogram_at(&f.late, 1) == 5000 * MS);
    assert_true(bench_histogram_at(&f.ttft, 0.5) == 100 * MS + 700 || bench_histogram_at(&f.ttft, 0.5) < 101 * MS);
    assert_int_equal(f.met, 7);  /* those of second 2, 3 and 4 waited 5.1, 4.1 and 3.1 s; of 5 and 6: 2.1 and 1.1 */
    assert_true(bench_histogram_at(&f.tpot, 1) == 50 * MS);
    assert_true(f.stage_ms[STAGE_WAIT] == 20 && f.stage_ms[STAGE_TOKENISE] == 2 && f.stage_ms[STAGE_QUEUE] == 10);
    assert_true(fabs(f.stage_ms[STAGE_NETWORK] - 11) < 1e-6 && fabs(f.stage_ms[STAGE_LATE] - 1500) < 1e-6);
    assert_true(f.client_cpu == 0.1 && f.seconds == 10 && bench_load_goodput(&f) == 0.7);
    bench_load_figures_of(&p, records, NULL, (bench_load_slo){2500, 49}, 10000 * MS, 1, &f);
    assert_int_equal(f.met, 0);
}

/* Every outcome is counted once and met nothing. */
static void outcomes(void **state) {
    (void)state;
    enum { N = 7 };
    bench_load_request requests[N] = {{0}};
    bench_load_record records[N] = {
        {.outcome = LOAD_ANSWERED, .tokens = 4, .first_us = 10, .last_us = 40, .end_us = 41, .attempts = 2, .cached = 3},
        {.outcome = LOAD_REFUSED, .retry_after_ms = 100, .end_us = 7000},
        {.outcome = LOAD_REFUSED, .retry_after_ms = -1, .end_us = 8000},
        {.outcome = LOAD_FAILED, .st = ST_PEER_LOST},
        {.outcome = LOAD_NOT_SENT},
        {.outcome = LOAD_UNFINISHED, .tokens = 2},
        {.outcome = LOAD_ANSWERED, .tokens = 50},
    };
    bench_load_plan p = {.requests = requests, .count = N, .end_us = 1000000};
    static bench_load_figures f;
    for (int i = 0; i < N; i++) requests[i] = (bench_load_request){.prompt = 10, .answer = 5};
    requests[N - 1].slow = true;
    bench_load_figures_of(&p, records, NULL, (bench_load_slo){1000, 1000}, 1000000, 0, &f);
    assert_true(f.planned == 6 && f.sent == 5 && f.answered == 1 && f.met == 1 && f.short_answers == 1 && f.retried == 1);
    assert_true(f.refused == 2 && f.refused_with_hint == 1 && bench_histogram_at(&f.refusal, 1) == 8000);
    assert_true(f.failed_count == 1 && f.failed[ST_PEER_LOST] == 1 && f.not_sent == 1 && f.unfinished == 1);
    assert_true(f.slow == 1 && f.slow_answered == 1 && f.slow_tokens == 50 && f.answer_tokens == 6);
    assert_true(f.piece[0].arrived == 6 && f.piece[0].answered == 1 && f.piece[0].met == 1 && f.told == 0);
}

static char *text_of(const bench_load_figures *f) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    bench_load_text(f, out);
    fclose(out);
    return text;
}

/* Of answers that ended; many make the report say what that does to its figures. */
static void guessed_tokens(void **state) {
    (void)state;
    enum { N = 3 };
    bench_load_request requests[N] = {{.prompt = 10, .answer = 10}, {.prompt = 10, .answer = 10}, {.prompt = 10, .answer = 10}};
    bench_load_record records[N] = {
        {.outcome = LOAD_ANSWERED, .tokens = 10, .accepted = 4},
        {.outcome = LOAD_ANSWERED, .tokens = 10},
        {.outcome = LOAD_UNFINISHED, .tokens = 10},
    };
    bench_load_plan p = {.requests = requests, .count = N, .end_us = 1000000};
    static bench_load_figures f;
    for (int accepted = 4; accepted <= 5; accepted++) {
        records[0].accepted = accepted;
        bench_load_figures_of(&p, records, NULL, (bench_load_slo){1000, 1000}, 1000000, 0, &f);
        assert_true(f.accepted_tokens == accepted && f.whole_tokens == 20 && bench_load_guessed(&f) == accepted / 20.0);
        char *text = text_of(&f);
        assert_non_null(strstr(text, accepted == 5 ? "guessed 5 of 20 tokens of whole answers (25.0 %)" : "guessed 4 of 20 tokens"));
        assert_true((strstr(text, "--speculate off") != NULL) == (accepted == 5));
        free(text);
    }
    assert_true(bench_load_guessed(&(bench_load_figures){.planned = 1}) == 0);
}

/* Before and after; what is not an engine's time, or a coordinator's, is left out. */
static void nodes_time(void **state) {
    (void)state;
    bench_load_nodes n = {.parts = 0};
    char time[] = "baton_node_engine_seconds_total", steps[] = "baton_node_steps_total", attention[] = "part=\"attention\"";
    char idle[] = "part=\"idle\"", decode[] = "decode", coordinator[] = "coordinator";
    Baton__V1__Counter counter[4];
    Baton__V1__Counter *counters[] = {&counter[0], &counter[1], &counter[2]}, *others[] = {&counter[3]};
    Baton__V1__Node node[3];
    Baton__V1__Node *nodes[] = {&node[0], &node[1], &node[2]};
    Baton__V1__TopologyResult t = BATON__V1__TOPOLOGY_RESULT__INIT;
    for (int i = 0; i < 4; i++) baton__v1__counter__init(&counter[i]);
    for (int i = 0; i < 3; i++) baton__v1__node__init(&node[i]);
    counter[0].name = counter[1].name = counter[3].name = time;
    counter[0].labels = counter[3].labels = attention;
    counter[1].labels = idle;
    counter[2].name = steps;
    node[0].role = coordinator;
    node[1].role = node[2].role = decode;
    node[1].counters = counters;
    node[0].counters = node[2].counters = others;
    node[1].n_counters = 3;
    node[0].n_counters = node[2].n_counters = 1;
    t.nodes = nodes, t.n_nodes = 3;
    for (int i = 0; i < 4; i++) counter[i].value = 100 * i;
    bench_load_nodes_count(&n, &t, -1);
    for (int i = 0; i < 4; i++) counter[i].value = 1000 + 200 * i;
    bench_load_nodes_count(&n, &t, 1);
    assert_int_equal(n.parts, 2);
    assert_string_equal(n.part[0].name, "attention");
    assert_true(n.part[0].us[BENCH_LOAD_DECODE] == 1000 + 1300 && n.part[1].us[BENCH_LOAD_DECODE] == 1100);
    assert_true(bench_load_nodes_us(&n, BENCH_LOAD_DECODE) == 3400 && bench_load_nodes_us(&n, BENCH_LOAD_PREFILL) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(histogram_against_sorted), cmocka_unit_test(histogram_edges), cmocka_unit_test(shapes),
        cmocka_unit_test(poisson), cmocka_unit_test(bursts_and_ends), cmocka_unit_test(traces), cmocka_unit_test(prompts),
        cmocka_unit_test(bad_traces), cmocka_unit_test(no_coordinated_omission), cmocka_unit_test(outcomes),
        cmocka_unit_test(guessed_tokens), cmocka_unit_test(nodes_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
