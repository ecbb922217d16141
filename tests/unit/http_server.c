/* http_server.c -- tests http/: each path and its answer, what is no request, an address that is taken, vLLM's names. */
#include "http/http.h"
#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

static const double seconds[] = {.5, 1};
METRIC(pages_free, "baton_node_pages", "state=\"free\"", METRIC_GAUGE, "KV pages by state");
METRIC(pages_running, "baton_node_pages", "state=\"running\"", METRIC_GAUGE, "KV pages by state");
METRIC(pages_landing, "baton_node_pages", "state=\"landing\"", METRIC_GAUGE, "KV pages by state");
METRIC(stop, "baton_answers_total", "reason=\"stop\"", METRIC_COUNTER, "answers");
METRIC(length, "baton_answers_total", "reason=\"length\"", METRIC_COUNTER, "answers");
METRIC_BUCKETS(whole, "baton_request_seconds", NULL, seconds, "time");

typedef struct fixture {
    http_service *http;
    int port;
    bool ready;                  /* atomic: HTTP's thread reads it */
} fixture;

static bool is_ready(void *ctx, char why[HTTP_WHY_MAX]) {
    fixture *f = ctx;
    snprintf(why, HTTP_WHY_MAX, "no decode node is ready");
    return __atomic_load_n(&f->ready, __ATOMIC_SEQ_CST);
}

static int set_up(void **state) {
    static fixture f;
    error err = {0};
    http_options o = {.listen = "127.0.0.1:0", .model = "a\"b", .ready = is_ready, .ctx = &f};
    f.ready = true;
    assert_int_equal(http_open(&o, &f.http, &err), ST_OK);
    f.port = atoi(strrchr(http_address(f.http), ':') + 1);
    assert_true(f.port > 0);
    *state = &f;
    return 0;
}

static int tear_down(void **state) {
    http_close(((fixture *)*state)->http);
    return 0;
}

/* All that comes back for these bytes, until the server closes or, with a whole answer, until that has come. */
static char *ask(const fixture *f, const char *bytes) {
    static char heard[65536];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)f->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t used = 0;
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(send(fd, bytes, strlen(bytes), MSG_NOSIGNAL), (ssize_t)strlen(bytes));
    for (ssize_t n; used < sizeof heard - 1 && (n = recv(fd, heard + used, sizeof heard - 1 - used, 0)) > 0;) used += (size_t)n;
    close(fd);
    heard[used] = 0;
    return heard;
}

static char *get(const fixture *f, const char *path) {
    char text[200];
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path);
    return ask(f, text);
}

static void assert_has(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("'%s' is not in:\n%s", part, text);
}

static void answers_each_path(void **state) {
    fixture *f = *state;
    assert_has(get(f, "/healthz"), "HTTP/1.1 200 OK");
    assert_has(get(f, "/readyz"), "\r\n\r\nready\n");
    __atomic_store_n(&f->ready, false, __ATOMIC_SEQ_CST);
    char *text = get(f, "/readyz");
    assert_has(text, "HTTP/1.1 503 ");
    assert_has(text, "no decode node is ready\n");
    assert_has(get(f, "/healthz"), "HTTP/1.1 200 OK");
    assert_has(get(f, "/metric"), "HTTP/1.1 404 ");
}

static void refuses_what_is_no_request(void **state) {
    fixture *f = *state;
    static char long_header[40000];
    snprintf(long_header, sizeof long_header, "GET /healthz HTTP/1.1\r\nHost: x\r\nA: %030000d\r\n\r\n", 7);
    assert_has(ask(f, long_header), "HTTP/1.1 400 ");
    assert_has(ask(f, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"), "HTTP/1.1 501 ");
    assert_has(ask(f, "nonsense\r\n\r\n"), "HTTP/1.1 400 ");
    assert_has(get(f, "/healthz"), "HTTP/1.1 200 OK");
}

static void gives_vllm_names(void **state) {
    fixture *f = *state;
    metric_set(&pages_free, 5);
    metric_set(&pages_running, 2);
    metric_set(&pages_landing, 1);
    metric_add(&stop, 3);
    metric_add(&length, 4);
    metric_observe(&whole, 0.7);
    char *text = get(f, "/metrics");
    assert_has(text, "Content-Type: text/plain; version=0.0.4");
    assert_has(text, "\nbaton_node_pages{state=\"free\"} 5\n");
    assert_has(text, "\n# HELP baton_node_pages KV pages by state\n");
    assert_has(text, "\n# HELP vllm:kv_cache_usage_perc share of the KV pages that requests hold, 0 to 1;");
    assert_has(text, "\nvllm:kv_cache_usage_perc{model_name=\"a\\\"b\"} 0.375\n");
    assert_has(text, "\nvllm:request_success_total{model_name=\"a\\\"b\",finished_reason=\"stop\"} 3\n");
    assert_has(text, "\nvllm:request_success_total{model_name=\"a\\\"b\",finished_reason=\"length\"} 4\n");
    assert_has(text, "\nvllm:e2e_request_latency_seconds_bucket{model_name=\"a\\\"b\",le=\"1\"} 1\n");
    assert_null(strstr(text, "vllm:num_preemptions_total"));       /* this process has none */
    const char *first = strstr(text, "# TYPE vllm:request_success_total counter\n");
    assert_non_null(first);
    assert_null(strstr(first + 1, "# TYPE vllm:request_success_total"));
}

static void leaves_vllm_names_out(void **state) {
    fixture *f = *state;
    error err = {0};
    http_close(f->http);
    http_options o = {.listen = "127.0.0.1:0", .ready = is_ready, .ctx = f};
    assert_int_equal(http_open(&o, &f->http, &err), ST_OK);
    f->port = atoi(strrchr(http_address(f->http), ':') + 1);
    metric_add(&stop, 1);
    char *text = get(f, "/metrics");
    assert_has(text, "baton_answers_total");
    assert_null(strstr(text, "vllm:"));
}

static void says_which_address_is_wrong(void **state) {
    fixture *f = *state;
    error err = {0};
    http_service *second = NULL;
    http_options o = {.listen = "127.0.0.1", .ready = is_ready, .ctx = f};
    assert_int_equal(http_open(&o, &second, &err), ST_BAD_INPUT);
    assert_string_equal(err.text, "'127.0.0.1': expected HOST:PORT");
    o.listen = http_address(f->http);
    assert_int_equal(http_open(&o, &second, &err), ST_IO);
    assert_has(err.text, o.listen);
    assert_null(second);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(answers_each_path, set_up, tear_down),
        cmocka_unit_test_setup_teardown(refuses_what_is_no_request, set_up, tear_down),
        cmocka_unit_test_setup_teardown(gives_vllm_names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(leaves_vllm_names_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(says_which_address_is_wrong, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
