/* bench_load.c -- baton bench load: what a running cluster takes, or one that is started for it (--model). Plan, run and
 * figures stand in bench/load*.c. */
#include "cli/cli.h"
#include "bench/load.h"
#include <errno.h>
#include <string.h>

static const rpc_method list_models_method = {
    .path = "/baton.v1.Inference/ListModels",
    .kind = RPC_UNARY,
    .request = &baton__v1__list_models_request__descriptor,
    .reply = &baton__v1__list_models_result__descriptor,
};

/* ---- the plan --------------------------------------------------------------------------------------- */

static status make_plan(const cli_options *o, bench_load_plan *out, error *err) {
    enum { DURATION_DEFAULT_S = 30 };
    bench_load_options l = {.rate = o->rate, .burst = o->burst, .requests = o->requests, .duration_s = o->duration,
                            .shared = o->shared_tokens, .slow_readers = o->slow_readers};
    TRY(cli_parse_seed(o->seed, &l.seed, err));
    TRY(bench_load_shape_parse("--prompt-lengths", o->prompt_lengths, &l.prompt, err));
    TRY(bench_load_shape_parse("--answer-lengths", o->answer_lengths, &l.answer, err));
    if (!o->trace) {
        if (l.rate == 0) l.rate = 1;
        if (l.requests == 0 && l.duration_s == 0) l.duration_s = DURATION_DEFAULT_S;
        return bench_load_plan_make(&l, out, err);
    }
    if (l.burst > 1 || l.slow_readers > 0)
        return error_set(err, ST_BAD_INPUT, "--trace says who arrives when: expected no --burst and no --slow-readers");
    FILE *in = fopen(o->trace, "re");
    if (!in) return error_set(err, ST_IO, "--trace '%.200s': %s", o->trace, strerror(errno));
    status st = bench_load_plan_trace(in, o->trace, &l, out, err);
    fclose(in);
    return st;
}

/* Nothing is sent: the plan itself is printed. The vocabulary is the model file's. */
static status print_plan(const cli_options *o, const bench_load_plan *p, error *err) {
    eng_gguf *g = NULL;
    eng_vocab *v = NULL;
    if (!o->model) return error_set(err, ST_BAD_INPUT, "--dry-run makes token ids: --model FILE is missing");
    status st = eng_gguf_open(o->model, &g, err);
    if (st == ST_OK) st = eng_vocab_open(g, &v, err);
    if (st == ST_OK) st = bench_load_plan_json(p, eng_vocab_count(v), stdout, err);
    eng_vocab_close(v);
    eng_gguf_close(g);
    return st;
}

/* ---- the run ---------------------------------------------------------------------------------------- */

static void on_models(const ProtobufCMessage *m, void *user) {
    const Baton__V1__ListModelsResult *r = (const Baton__V1__ListModelsResult *)m;
    if (r->n_models > 0) *(int32_t *)user = r->models[0]->vocabulary;
}

/* The connection is there when it has answered, so that the first request does not pay for it. */
static status ask_vocabulary(cli_client *c, int32_t *out, error *err) {
    Baton__V1__ListModelsRequest request = BATON__V1__LIST_MODELS_REQUEST__INIT;
    enum { TIMEOUT_MS = 10000 };
    *out = 0;
    TRY(cli_client_call(c, &list_models_method, &request.base, TIMEOUT_MS, on_models, out, err, NULL));
    return *out > 0 ? ST_OK : error_set(err, ST_NOT_FOUND, "no model is served");
}

typedef struct nodes_count {
    bench_load_nodes *nodes;
    int sign;
} nodes_count;

static void on_topology(const ProtobufCMessage *m, void *user) {
    const nodes_count *c = user;
    bench_load_nodes_count(c->nodes, (const Baton__V1__TopologyResult *)m, c->sign);
}

/* Before or after the load. A cluster that does not tell this caller is measured all the same. */
static bool count_nodes(cli_client *c, bench_load_nodes *nodes, int sign) {
    enum { TIMEOUT_MS = 10000 };
    Baton__V1__TopologyRequest r = BATON__V1__TOPOLOGY_REQUEST__INIT;
    error err = {0};
    status st = cli_client_call(c, &cli_topology_method, &r.base, TIMEOUT_MS, on_topology, &(nodes_count){nodes, sign}, &err, NULL);
    if (st != ST_OK) fprintf(stderr, "where the nodes' time goes is not told: %s\n", err.text);
    return st == ST_OK;
}

static status run_on(cli_client *c, const cli_options *o, const bench_load_plan *p, bench_load_figures *f, error *err) {
    bench_load *b;
    bench_load_nodes nodes = {.parts = 0};
    bench_load_settings s = {.temperature = o->temperature, .streams_max = o->streams, .timeout_ms = o->timeout_ms,
                             .wait_ms = o->wait_ms, .progress = true};
    TRY(ask_vocabulary(c, &s.vocabulary, err));
    TRY(bench_load_create(p, &s, &b, err));
    bool told = count_nodes(c, &nodes, -1);
    cli_client_on_interrupt(c, bench_load_stop, b);
    status st = bench_load_run(b, cli_client_loop(c), cli_client_channel(c), err);
    cli_client_on_interrupt(c, NULL, NULL);
    if (st == ST_OK) {
        bench_load_take(b, (bench_load_slo){o->slo_ttft, o->slo_itl}, f);
        if (told && count_nodes(c, &nodes, 1)) f->nodes = nodes;
    }
    bench_load_destroy(b);
    return st;
}

static status show(const cli_options *o, const bench_load_figures *f, error *err) {
    if (o->svg) {
        FILE *out;
        TRY(cli_svg_open(o->svg, &out, err));
        bench_load_svg(f, out);
        TRY(cli_svg_close(out, o->svg, err));
    }
    if (o->json) return bench_load_json(f, stdout, err);
    bench_load_text(f, stdout);
    return ST_OK;
}

static cli_exit run(const cli_options *o, const bench_load_plan *p) {
    static bench_load_figures figures;
    error err = {0};
    cli_client *c = NULL;
    cli_local local = {.pid = -1};
    const char *server = o->model ? local.server : o->server ? o->server : "127.0.0.1:50051";
    if (o->model && cli_local_start(&local, o, &err) != ST_OK) return cli_complain(CLI_FAILED, "%s", err.text);
    status st = cli_client_open(o->model ? NULL : o, server, &c, &err);
    if (st != ST_OK) {
        cli_local_stop(&local);
        return cli_client_unopened(st, "bench", &err);
    }
    st = run_on(c, o, p, &figures, &err);
    cli_client_close(c);
    cli_local_stop(&local);
    if (st == ST_OK) st = show(o, &figures, &err);
    return cli_client_report(st, &err, server, -1, false);
}

cli_exit cli_bench_load(const cli_options *o) {
    bench_load_plan plan = {0};
    error err = {0};
    if (o->model && o->server) return cli_usage("bench", "expected --server or --model, which starts one, not both");
    status st = make_plan(o, &plan, &err);
    cli_exit code = CLI_OK;
    if (st == ST_OK && !o->dry_run) code = run(o, &plan);
    else if (st == ST_OK) st = print_plan(o, &plan, &err);
    bench_load_plan_free(&plan);
    if (st == ST_BAD_INPUT) return cli_usage("bench", "%s", err.text);
    return st == ST_OK ? code : cli_complain(CLI_FAILED, "bench: %s", err.text);
}
