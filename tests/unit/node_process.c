/* Tests node/process.c, session.c, watch.c, link.c and both roles' service.c: a prefill and a decode node in
 * one process, over loopback, with a tiny model, driven by client streams as a coordinator would. */
#include "tests/unit/node_client.h"
#include "tests/unit/tiny_gguf.h"

enum { PAGES = 192, P = 8 };

static const rpc_method control_method = {"/baton.node.v1.Node/Control", RPC_UNARY,
                                          &baton__node__v1__control_request__descriptor,
                                          &baton__node__v1__node_state__descriptor, NULL};

static char model_path[] = "/tmp/baton-node-XXXXXX";

/* ---- what is right: the engine by itself ---------------------------------------------------------------- */

static void assert_answer(const request *r) {
    eng_gguf *g;
    eng_model *m;
    eng_kv *kv;
    error err;
    eng_options options = {.threads = 1};
    assert_int_equal(eng_gguf_open(model_path, &g, &err), ST_OK);
    assert_int_equal(eng_model_open(g, &options, &m, &err), ST_OK);
    assert_int_equal(eng_kv_create(m, PAGES, P, ENG_KV_F16, &kv, &err), ST_OK);
    eng_sampler *sampler = eng_sampler_create(eng_model_shape(m)->V);
    int32_t blocks[PAGES], all[128 + ANSWER_MAX];
    for (int32_t i = 0; i < PAGES; i++) blocks[i] = PAGES - 1 - i;
    memcpy(all, r->prompt, sizeof r->prompt);
    assert_int_equal(r->end, ST_OK);
    assert_int_equal(r->answered, r->max_tokens);
    assert_int_equal(r->reason, 2);
    for (int32_t n = 0; n < r->count + r->max_tokens - 1; n++) {
        const float *logits;
        eng_sampled sampled;
        eng_rows row = {.tokens = all + n, .count = 1, .position = n, .blocks = blocks, .logits = 1};
        assert_int_equal(eng_step(m, kv, &row, 1, &logits, &err), ST_OK);
        if (n < r->count - 1) continue;
        assert_int_equal(eng_sample(sampler, &r->sampling, logits, all, r->count, n + 1, &sampled), ST_OK);
        all[n + 1] = sampled.token;
    }
    assert_memory_equal(r->answer, all + r->count, (size_t)r->answered * sizeof *all);
    if (r->first_token >= 0) assert_int_equal(r->first_token, r->answer[0]);
    eng_sampler_destroy(sampler);
    eng_kv_destroy(kv);
    eng_model_close(m);
    eng_gguf_close(g);
}

/* ---- control ----------------------------------------------------------------------------------------------- */

static watching control(int node, int action, const char *role) {
    static const rpc_stream_events events = {state_message, state_ended};
    Baton__Node__V1__ControlRequest m = BATON__NODE__V1__CONTROL_REQUEST__INIT;
    watching w = {.node = node};
    m.action = (Baton__Node__V1__ControlRequest__Action)action;
    m.role = (char *)(uintptr_t)role;
    assert_int_equal(rpc_stream_start(channels[node], &control_method, &m.base, 10000, true, &events, &w, &w.stream),
                     ST_OK);
    running++;
    rpc_loop_run(loop);
    return w;
}

/* ---- tests -------------------------------------------------------------------------------------------------- */

static void open_node(int i) {
    static const node_service *const services[] = {&prefill_service, &decode_service};
    node_options o = {.id = i ? "decode-1" : "prefill-1", .role = i ? "decode" : "prefill", .model = model_path,
                      .listen = "127.0.0.1:0", .kv_listen = "127.0.0.1:0", .threads = 1, .kv_pages = PAGES,
                      .page_tokens = P, .kv_type = ENG_KV_F16, .sequences_max = 16, .step_tokens_max = 32,
                      .chunk_tokens = 16, .prefix_cache = true};
    error err;
    pages_of[i] = PAGES;
    if (node_process_open(&o, services, 2, &nodes[i], &err) != ST_OK) fail_msg("%s", err.text);
    assert_int_equal(rpc_channel_open(loop, node_process_address(nodes[i]), &channels[i], &err), ST_OK);
}

static int set_up(void **state) {
    (void)state;
    tiny_gguf t = tiny_gguf_build(&(tiny_options){.type = ENG_Q4_1, .vocab = true});
    int fd = mkstemp(model_path);
    bool written = fd >= 0 && write(fd, t.data, t.bytes) == (ssize_t)t.bytes;
    close(fd);
    tiny_gguf_free(&t);
    log_setup("test", LOG_WARN);
    error err;
    if (!written || rpc_loop_create(&loop, &err) != ST_OK) return 1;
    for (int i = 0; i < 2; i++) open_node(i);
    for (int i = 0; i < 2; i++) watch(i, false);           /* learns the pairing */
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        rpc_channel_close(channels[i]);
        node_process_close(nodes[i], 1000);
    }
    rpc_loop_destroy(loop);
    unlink(model_path);
    return 0;
}

static void remote_and_local_give_the_same_bytes(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 6; seed++) {
        request r = make_request(seed, 50 + (int32_t)seed * 5, 40);
        r.local_tokens_max = seed >= 4 ? 1000 : 0;
        start_decode(&r);
        rpc_loop_run(loop);
        assert_int_equal(r.landed_status, seed >= 4 ? -1 : ST_OK);
        if (seed < 4) assert_true(r.sent_bytes > 0 && r.prefill_end == ST_OK && r.first_token >= 0);
        assert_answer(&r);
        request again = make_request(seed, r.count, 40);   /* now it is cached */
        start_decode(&again);
        rpc_loop_run(loop);
        assert_int_equal(again.cached, r.count - 1);
        assert_answer(&again);
    }
    assert_quiet();
}

/* A watcher of what is cached, until the prefix numbered `wanted` is. */
typedef struct cache_watching {
    rpc_stream *stream;
    uint64_t numbers[PAGES], wanted, changes;
    bool all_at_once;            /* its first message had what is wanted */
    status end;
} cache_watching;

static int page_holding(const cache_watching *w, uint64_t number) {
    for (int i = 0; i < PAGES; i++)
        if (w->numbers[i] == number) return i;
    return -1;
}

static void cache_message(rpc_stream *s, const ProtobufCMessage *message, void *user) {
    cache_watching *w = user;
    const Baton__Node__V1__CacheChange *c = ((const Baton__Node__V1__NodeState *)message)->cache;
    if (!c) return;
    assert_int_equal(c->number, ++w->changes);
    assert_int_equal(c->whole, w->changes == 1);
    assert_int_equal(c->n_pages, c->n_numbers);
    for (size_t i = 0; i < c->n_pages; i++) {
        assert_in_range(c->pages[i], 0, PAGES - 1);
        w->numbers[c->pages[i]] = c->numbers[i];
    }
    if (page_holding(w, w->wanted) < 0) return;
    w->all_at_once = w->changes == 1;
    rpc_stream_cancel(s);
}

static void cache_ended(rpc_stream *s, status st, const char *text, int64_t retry_ms, void *user) {
    (void)s, (void)text, (void)retry_ms;
    ((cache_watching *)user)->end = st;
    stream_over();
}

static void watch_cache(cache_watching *w, int node, uint64_t wanted) {
    static const rpc_stream_events events = {cache_message, cache_ended};
    Baton__Node__V1__WatchRequest m = BATON__NODE__V1__WATCH_REQUEST__INIT;
    *w = (cache_watching){.wanted = wanted};
    m.protocol = 1;
    m.heartbeat_ms = 50;
    m.cache = true;
    assert_int_equal(rpc_stream_start(channels[node], &watch_method, &m.base, 20000, true, &events, w, &w->stream), ST_OK);
    running++;
}

/* One who watched while a prompt was read, and one who comes later, know of all its full pages, on both nodes. */
static void watchers_know_what_is_cached(void **state) {
    (void)state;
    static cache_watching early[2], late[2];
    request r = make_request(77, 60, 3);
    uint64_t numbers[60 / P], number = 0;
    for (int i = 0; i < 60 / P; i++) numbers[i] = number = prefix_number(number, r.prompt + i * P, P);
    for (int node = 0; node < 2; node++) watch_cache(&early[node], node, number);
    start_decode(&r);
    rpc_loop_run(loop);
    assert_answer(&r);
    for (int node = 0; node < 2; node++) watch_cache(&late[node], node, number);
    rpc_loop_run(loop);
    for (int node = 0; node < 2; node++) {
        assert_int_equal(early[node].end, ST_CANCELED);
        assert_int_equal(late[node].end, ST_CANCELED);
        assert_false(early[node].all_at_once);
        assert_true(late[node].all_at_once);
        for (int i = 0; i < 60 / P; i++) {
            assert_true(page_holding(&late[node], numbers[i]) >= 0);
            assert_int_equal(page_holding(&early[node], numbers[i]), page_holding(&late[node], numbers[i]));
        }
    }
}

static void a_crowd_changes_nothing(void **state) {
    (void)state;
    static request r[12];
    for (uint64_t i = 0; i < 12; i++) {
        r[i] = make_request(100 + i, 20 + (int32_t)i * 5, 20);
        r[i].local_tokens_max = i % 3 ? 0 : 30;
        start_decode(&r[i]);
    }
    rpc_loop_run(loop);
    int answered = 0;
    for (int i = 0; i < 12; i++) {
        assert_true(r[i].end == ST_OK || r[i].end == ST_AGAIN);
        if (r[i].end != ST_OK) continue;
        answered++;
        assert_answer(&r[i]);
    }
    assert_true(answered >= 6);
    assert_quiet();
}

static void a_lost_prefill_node_costs_only_time(void **state) {
    (void)state;
    request r = make_request(200, 60, 20);
    r.no_prefill = true;
    r.lease_ms = 100;
    start_decode(&r);
    rpc_loop_run(loop);
    assert_int_equal(r.landed_status, ST_DEADLINE);
    assert_answer(&r);
    assert_quiet();
}

static void canceled_at_any_event(void **state) {
    (void)state;
    static request r[40];
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 10; i++) {
            request *x = &r[round * 10 + i];
            *x = make_request((uint64_t)(300 + round * 10 + i), 60, 60);
            x->cancel_after = 1 + i;
            x->no_prefill = i % 5 == 4;
            x->lease_ms = x->no_prefill ? 100 : 5000;
            start_decode(x);
        }
        rpc_loop_run(loop);
    }
    int canceled = 0;
    for (int i = 0; i < 40; i++) {
        assert_true(r[i].end == ST_CANCELED || r[i].end == ST_AGAIN);
        canceled += r[i].end == ST_CANCELED;
    }
    assert_true(canceled > 10);
    assert_quiet();
    request after = make_request(400, 50, 10);
    start_decode(&after);
    rpc_loop_run(loop);
    assert_answer(&after);
}

static void find_slow(const metric *m, void *ctx) {
    if (strcmp(m->name, "baton_node_readers_slow_total") == 0) *(int64_t *)ctx = metric_get(m);
}

static int64_t slow_readers(void) {
    int64_t n = 0;
    metrics_each(find_slow, &n);
    return n;
}

/* Reads on once the node has seen that it is slow. */
static void resume_when_seen(void *stream) {
    rpc_timer *timer;
    if (slow_readers() > 0)
        rpc_stream_resume(stream);
    else
        assert_int_equal(rpc_timer_start(loop, 20, resume_when_seen, stream, &timer), ST_OK);
}

/* A reader that stops for a while: the node stops too, and nothing is lost. */
static void a_slow_reader_gets_every_token(void **state) {
    (void)state;
    request r = make_request(500, 20, 1480);
    r.local_tokens_max = 1000;
    r.sampling.logprobs = 20;
    start_decode(&r);
    rpc_stream_pause(r.decode);
    resume_when_seen(r.decode);
    rpc_loop_run(loop);
    assert_answer(&r);
    assert_quiet();
}

/* Logprobs of the prompt, all and the rest of them, to a reader that stops for a while: the same numbers. */
static void a_prompt_is_told(void **state) {
    (void)state;
    request r = make_request(502, 120, 20);
    r.prompt_first = 1;
    r.prompt_top = 20;
    start_decode(&r);
    rpc_stream_pause(r.decode);
    resume_when_seen(r.decode);
    rpc_loop_run(loop);
    assert_int_equal(r.prompt_told, 119);
    assert_answer(&r);
    request rest = make_request(502, 120, 20);
    rest.prompt_first = 100;
    start_decode(&rest);
    rpc_loop_run(loop);
    assert_int_equal(rest.prompt_told, 20);
    assert_memory_equal(rest.prompt_logprob + 100, r.prompt_logprob + 100, 20 * sizeof(float));
    assert_answer(&rest);
    assert_quiet();
}

static void refusals_name_the_field(void **state) {
    (void)state;
    request r = make_request(600, 20, 5);
    told_by[1].digest[0] ^= 1;
    start_decode(&r);
    rpc_loop_run(loop);
    told_by[1].digest[0] ^= 1;
    assert_int_equal(r.end, ST_REFUSED);
    assert_non_null(strstr(r.text, "model_digest"));
    r = make_request(600, 20, 5);
    r.prompt[7] = 100000;
    start_decode(&r);
    rpc_loop_run(loop);
    assert_int_equal(r.end, ST_BAD_INPUT);
    assert_non_null(strstr(r.text, "tokens[7] is 100000"));
    r = make_request(600, 20, 5);
    r.sampling.temperature = -1;
    start_decode(&r);
    rpc_loop_run(loop);
    assert_int_equal(r.end, ST_BAD_INPUT);
    r = make_request(600, 20, -5);
    start_decode(&r);
    rpc_loop_run(loop);
    assert_int_equal(r.end, ST_BAD_INPUT);
    assert_non_null(strstr(r.text, "max_tokens"));
    r = make_request(600, 20, 5);
    r.lease_ms = 0;
    start_decode(&r);
    rpc_loop_run(loop);
    assert_int_equal(r.end, ST_BAD_INPUT);
    static const struct { int32_t first, top; bool apart; const char *part; } prompts[] = {
        {-1, 0, false, "prompt_logprobs.first is -1"}, {21, 0, false, "prompt_logprobs.first is 21"},
        {1, 21, false, "prompt_logprobs.top is 21"}, {1, -1, false, "prompt_logprobs.top is -1"},
        {1, 0, true, "prefill nodes compute"}};
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        r = make_request(600, 20, 5);
        r.prompt_first = prompts[i].first;
        r.prompt_top = prompts[i].top;
        r.apart = prompts[i].apart;
        start_decode(&r);
        rpc_loop_run(loop);
        assert_int_equal(r.end, ST_BAD_INPUT);
        assert_non_null(strstr(r.text, prompts[i].part));
    }
    static const char *const unusable[] = {"localhost:1", "127.0.0.1", ":1", "[]:1", "a:b:1", "127.0.0.1:1,192.0.2.1:1"};
    for (size_t i = 0; i < sizeof unusable / sizeof *unusable; i++) {  /* a name would need a lookup */
        Baton__Node__V1__Reserved room = BATON__NODE__V1__RESERVED__INIT;
        r = make_request(600, 20, 5);
        room.ticket = 1;
        room.kv_address = (char *)(uintptr_t)unusable[i];
        room.wanted_tokens = 19;
        start_prefill(0, &r, &room);
        rpc_loop_run(loop);
        bool beyond = strstr(unusable[i], "192.0.2.1") != NULL;        /* and there, pages would travel unencrypted */
        assert_int_equal(r.prefill_end, beyond ? ST_DENIED : ST_BAD_INPUT);
    }
    static uint8_t key[KVT_KEY_BYTES + 1];
    for (size_t bytes = KVT_KEY_BYTES - 1; bytes <= KVT_KEY_BYTES + 1; bytes += 2) {
        Baton__Node__V1__Reserved room = BATON__NODE__V1__RESERVED__INIT;
        r = make_request(600, 20, 5);
        room.ticket = 1;
        room.kv_address = (char *)(uintptr_t)"127.0.0.1:1";
        room.kv_key = (ProtobufCBinaryData){bytes, key};
        room.wanted_tokens = 19;
        start_prefill(0, &r, &room);
        rpc_loop_run(loop);
        assert_int_equal(r.prefill_end, ST_BAD_INPUT);
    }
}

/* Any allocation after the call was made fails, on a node or in its client: the request ends, with its
 * answer or a refusal, and every page is back. */
static void every_allocation_may_fail(void **state) {
    (void)state;
    int64_t total = 1;
    int answered = 0;
    for (int64_t n = 0; n <= total; n++) {                 /* 0: none, to count them */
        request r = make_request((uint64_t)(900 + n), 40, 3);
        r.lease_ms = 100;
        start_decode(&r);
        int64_t before = mem_count();
        mem_fail_at(n);
        rpc_loop_run(loop);
        mem_fail_at(0);
        if (n == 0) total = mem_count() - before;
        answered += r.end == ST_OK;
        if (r.end == ST_OK) assert_answer(&r);
        else assert_true(r.end == ST_NO_MEMORY || r.end == ST_AGAIN || r.end == ST_CANCELED);
    }
    print_message("  %d allocations failed, %d answered all the same\n", (int)total, answered - 1);
    assert_true(total > 20);
    assert_quiet();
}

static void drained_and_back(void **state) {
    (void)state;
    assert_true(control(1, 1, "").draining);
    request r = make_request(700, 20, 5);
    start_decode(&r);
    rpc_loop_run(loop);
    assert_int_equal(r.end, ST_AGAIN);
    assert_non_null(strstr(r.text, "draining"));
    assert_true(watch(1, false).draining);
    r = make_request(700, 20, 5);
    Baton__Node__V1__Reserved nowhere = BATON__NODE__V1__RESERVED__INIT;
    start_prefill(1, &r, &nowhere);
    rpc_loop_run(loop);
    assert_int_equal(r.prefill_end, ST_AGAIN);
    r.moved = true;                              /* pages of an answer that ran here are still to be had */
    start_prefill(1, &r, &nowhere);
    rpc_loop_run(loop);
    assert_int_equal(r.prefill_end, ST_OK);
    assert_false(control(1, 2, "").draining);
    assert_string_equal(control(1, 3, "prefill").role, "prefill");
    assert_string_equal(control(1, 3, "decode").role, "decode");
    assert_int_equal(control(1, 3, "king").end, ST_BAD_INPUT);
    r = make_request(700, 20, 5);
    start_decode(&r);
    rpc_loop_run(loop);
    assert_answer(&r);
    assert_true(watch(1, false).counters > 5);
}

/* SIGTERM with work running: it is ended, and close returns. */
static void closed_while_it_works(void **state) {
    (void)state;
    static request r[6];
    for (uint64_t i = 0; i < 6; i++) {
        r[i] = make_request(800 + i, 30, 700);
        r[i].local_tokens_max = i % 2 ? 1000 : 0;
        r[i].no_prefill = i % 4 == 0;
        start_decode(&r[i]);
    }
    rpc_timer *timer;
    assert_int_equal(rpc_timer_start(loop, 50, (void (*)(void *))(void (*)(void))rpc_loop_stop, loop, &timer), ST_OK);
    rpc_loop_run(loop);
    node_process_close(nodes[1], 0);
    if (running) rpc_loop_run(loop);
    for (int i = 0; i < 6; i++) assert_int_not_equal(r[i].end, ST_OK);
    rpc_channel_close(channels[1]);
    open_node(1);
    assert_quiet();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(remote_and_local_give_the_same_bytes), cmocka_unit_test(watchers_know_what_is_cached), cmocka_unit_test(a_crowd_changes_nothing),
        cmocka_unit_test(a_lost_prefill_node_costs_only_time),  cmocka_unit_test(canceled_at_any_event),
        cmocka_unit_test(a_slow_reader_gets_every_token),       cmocka_unit_test(a_prompt_is_told), cmocka_unit_test(refusals_name_the_field),
        cmocka_unit_test(every_allocation_may_fail),            cmocka_unit_test(drained_and_back),
        cmocka_unit_test(closed_while_it_works)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
