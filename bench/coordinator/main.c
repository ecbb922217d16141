/* main.c -- bench_coordinator: one part a process (middle.h); bench/coordinator.py starts them.
 *     bench_coordinator stub MODEL
 *     bench_coordinator relay DECODE PREFILL
 *     bench_coordinator load coordinator|relay|none ADDRESS PREFILL|- REQUESTS CONCURRENCY RATE PROMPT ANSWER
 * Addresses are HOST:PORT. stub and relay print where they serve and end by a signal; load prints one JSON object. */
#include "bench/coordinator/middle.h"
#include "engine/engine.h"
#include <stdlib.h>
#include <string.h>

static int complain(const error *err) {
    fprintf(stderr, "bench_coordinator: %s\n", err->text);
    return 1;
}

static int run_stub(const char *model) {
    error err = {0};
    eng_gguf *g;
    rpc_loop *loop;
    stub_nodes *nodes;
    if (eng_gguf_open(model, &g, &err) != ST_OK || rpc_loop_create(&loop, &err) != ST_OK ||
        stub_nodes_open(loop, eng_gguf_digest(g), &nodes, &err) != ST_OK)
        return complain(&err);
    printf("ready decode=%s prefill=%s\n", stub_nodes_decode(nodes), stub_nodes_prefill(nodes));
    fflush(stdout);
    rpc_loop_run(loop);
    return 0;
}

static void print_times(const char *name, const bench_histogram *h) {
    printf(", \"%s\": {\"p50\": %lld, \"p99\": %lld, \"max\": %lld}", name, (long long)bench_histogram_at(h, 0.5),
           (long long)bench_histogram_at(h, 0.99), (long long)h->max_us);
}

static int run_load(char **word) {
    static const char *const kinds[] = {"coordinator", "relay", "none"};
    static middle_report r;
    error err = {0};
    rpc_loop *loop;
    middle_options o = {.kind = (middle_kind)-1, .address = word[1], .prefill = strcmp(word[2], "-") ? word[2] : NULL,
                        .requests = atoll(word[3]), .concurrency = atoi(word[4]), .rate = atof(word[5]), .prompt = atoi(word[6]),
                        .answer = atoi(word[7])};
    for (int i = 0; i < 3; i++)
        if (strcmp(word[0], kinds[i]) == 0) o.kind = (middle_kind)i;
    if ((int)o.kind < 0 || (o.kind == MIDDLE_NONE) != (o.prefill != NULL)) {
        fprintf(stderr, "bench_coordinator load: expected coordinator, relay or none; PREFILL with none only\n");
        return 2;
    }
    if (rpc_loop_create(&loop, &err) != ST_OK || middle_client_run(loop, &o, &r, &err) != ST_OK) return complain(&err);
    rpc_loop_destroy(loop);
    printf("{\"requests\": %lld, \"seconds\": %.3f", (long long)r.answered, r.seconds);
    print_times("ttft_us", &r.ttft);
    print_times("whole_us", &r.whole);
    printf("}\n");
    return 0;
}

int main(int argc, char **argv) {
    error err = {0};
    log_setup("bench", LOG_ERROR);
    if (argc == 3 && strcmp(argv[1], "stub") == 0) return run_stub(argv[2]);
    if (argc == 4 && strcmp(argv[1], "relay") == 0) return relay_run(argv[2], argv[3], &err), complain(&err);
    if (argc == 10 && strcmp(argv[1], "load") == 0) return run_load(argv + 2);
    fprintf(stderr, "usage: bench_coordinator stub MODEL | relay DECODE PREFILL | load KIND ADDRESS PREFILL|- REQUESTS CONCURRENCY RATE PROMPT ANSWER\n");
    return 2;
}
