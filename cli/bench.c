/* bench.c -- baton bench engine: how fast the engine runs a model here, and how fast the machine could; baton
 * bench transfer: the same of KV on its way to another process; baton bench route: a coordinator's choice; baton
 * bench load (bench_load.c): what a cluster takes. What is measured and how it is shown stands in bench/. */
#include "cli/cli.h"
#include "bench/bench.h"
#include "bench/route.h"
#include "bench/transfer.h"
#include "engine/cpus.h"
#include <errno.h>
#include <string.h>

static cli_exit bench(const cli_options *o, const char *const *words, int count);

static const config_row bench_rows[] = {
    CLI_MODEL,
    CLI_TP,
    CLI_RANK,
    CLI_ENGINE,
    CLI_KV_DTYPE,
    CLI_TEXT("only", only, NULL, "LIST",
             "some of limits, prefill, decode, attention, ops, or one size as prefill:512"),
    CLI_SWITCH("quick", quick, NULL, "every other size, shorter runs"),
    CLI_JSON,
    CLI_TEXT("svg", svg, NULL, "FILE", "gets a plot"),
    CLI_TEXT("server", server, NULL, "HOST:PORT,...",
             "load: the coordinator to ask, default 127.0.0.1:50051; with --model a cluster is started instead, with "
             "--prefill, --decode, --tp, the engine's flags, and BATON_ variables for what else `baton up` has"),
    CLI_CREDENTIAL,
    CLI_INT("prefill", prefill, "1", 0, 64, "N", "load --model: prefill nodes"),
    CLI_INT("decode", decode, "1", 1, 64, "N", "load --model: decode nodes"),
    CLI_REAL("rate", rate, "0", "X", "load: requests a second, Poisson; 0: 1, or a trace's own"),
    CLI_INT("burst", burst, "1", 1, 65536, "N", "load: arrivals come N at once"),
    CLI_TEXT("trace", trace, NULL, "FILE",
             "load: arrivals, lengths and shared blocks from JSON lines as Mooncake's traces have them"),
    CLI_INT("requests", requests, "0", 0, 1048576, "N", "load: ends after N arrivals"),
    CLI_REAL("duration", duration, "0", "S", "load: arrivals for S seconds; 30 without --requests and --trace"),
    CLI_TEXT("prompt-lengths", prompt_lengths, "list:64,128,256,512,1024,2048", "SHAPE",
             "load: fixed:N, uniform:A-B, lognormal:MEDIAN,SIGMA,A-B or list:N,N,..., in tokens"),
    CLI_TEXT("answer-lengths", answer_lengths, "uniform:32-128", "SHAPE", "load: the same, of answers; end tokens are ignored"),
    CLI_INT("shared-tokens", shared_tokens, "0", 0, 1048576, "N", "load: first tokens that all prompts have in common"),
    CLI_REAL("temperature", temperature, "0", "X", "load: 0: always the likeliest token"),
    CLI_TEXT("seed", seed, NULL, "N", "load: of arrivals, lengths, prompts and sampling; default 0"),
    CLI_INT("streams", streams, "4096", 1, 8192, "N", "load: most streams at once; what would be one more is counted as not sent"),
    CLI_INT("timeout-ms", timeout_ms, "0", 0, 2147483647, "MS", "load: deadline of a request, from its arrival; 0: none"),
    CLI_INT("wait-ms", wait_ms, "60000", 0, 3600000, "MS",
            "load: after the last arrival; what is open then is counted as not finished"),
    CLI_REAL("slo-ttft", slo_ttft, "2000", "MS", "load: goodput counts answers whose first token came within MS"),
    CLI_REAL("slo-itl", slo_itl, "100", "MS", "load: and whose mean gap between tokens (TPOT) is at most MS"),
    CLI_INT("slow-readers", slow_readers, "0", 0, 8192, "N",
            "load: beside it N streams with long answers, read once a second; in none of the figures but their own"),
    CLI_SWITCH("dry-run", dry_run, NULL, "load: print the plan as JSON and send nothing (--model for the vocabulary)"),
};

const cli_command cli_bench = {
    "bench", "engine|transfer|route|load",
    "Measures a model alone (engine), KV to another process (transfer), a coordinator's choice of nodes (route), or how "
    "a cluster answers (load). Of the flags transfer and route have --quick and --json.",
    CLI_ROWS(bench_rows), 1, 1, bench};

static void say(const char *what, int size) {
    if (size) fprintf(stderr, "measuring %s %d\n", what, size);
    else fprintf(stderr, "measuring %s\n", what);
}

status cli_svg_open(const char *path, FILE **out, error *err) {
    *out = fopen(path, "we");
    return *out ? ST_OK : error_set(err, ST_IO, "--svg '%.200s': %s", path, strerror(errno));
}

status cli_svg_close(FILE *out, const char *path, error *err) {
    bool whole = !ferror(out);
    if (fclose(out) != 0 || !whole)
        return error_set(err, ST_IO, "--svg '%.200s' cannot be written: %s", path, strerror(errno));
    return ST_OK;
}

static status write_svg(const bench_report *r, const char *path, error *err) {
    FILE *out;
    TRY(cli_svg_open(path, &out, err));
    bench_svg_write(r, out);
    return cli_svg_close(out, path, err);
}

static status bench_all(const cli_options *o, const eng_gguf *g, const bench_options *options,
                        error *err) {
    bench_report r;
    TRY(bench_engine_run(g, options, &r, err));
    if (options->rank) return ST_OK;
    if (o->svg) TRY(write_svg(&r, o->svg, err));
    if (o->json) return bench_report_json(&r, stdout, err);
    bench_report_text(&r, stdout);
    return ST_OK;
}

static cli_exit transfer(const cli_options *o) {
    static bench_transfer_report r;
    error err = {0};
    status st = bench_transfer_run(o->quick, say, &r, &err);
    if (st == ST_OK && o->json) st = bench_transfer_json(&r, stdout, &err);
    else if (st == ST_OK) bench_transfer_text(&r, stdout);
    return st == ST_OK ? CLI_OK : cli_complain(CLI_FAILED, "bench: %s", err.text);
}

static cli_exit route(const cli_options *o) {
    bench_route_report r;
    error err = {0};
    status st = bench_route_run(o->quick, &r, &err);
    if (st == ST_OK && o->json) st = bench_route_json(&r, stdout, &err);
    else if (st == ST_OK) bench_route_text(&r, stdout);
    return st == ST_OK ? CLI_OK : cli_complain(CLI_FAILED, "bench: %s", err.text);
}

static cli_exit bench_rank(const cli_options *o) {
    error err = {0};
    char cache_dir[CLI_PATH_MAX];
    eng_kv_type kv_type;
    if (cli_kv_type("--kv-dtype", o->kv_dtype, &kv_type, &err) != ST_OK) return cli_usage("bench", "%s", err.text);
    bench_options options = {.isa = o->isa, .device = o->device, .cache_dir = cli_cache_dir(o, cache_dir),
                             .threads = (int)o->threads, .rank = (int)o->rank, .ranks = (int)o->tp,
                             .group = o->group, .quick = o->quick,
                             .kv_type = kv_type, .kv_type_name = o->kv_dtype,
                             .progress = say};
    if (bench_select_parse(o->only, o->quick, &options.selection, &err) != ST_OK)
        return cli_usage("bench", "%s", err.text);
    eng_gguf *g = NULL;
    status st = eng_cpus_pin(o->pin, &err);
    if (st == ST_OK) st = eng_gguf_open(o->model, &g, &err);
    if (st == ST_OK) st = bench_all(o, g, &options, &err);
    eng_gguf_close(g);
    return st == ST_OK ? CLI_OK : cli_complain(CLI_FAILED, "bench: %s", err.text);
}

static cli_exit bench(const cli_options *o, const char *const *words, int count) {
    (void)count;
    error err = {0};
    cli_options mine = *o;
    cli_ranks others = {.count = 0};
    if (strcmp(words[0], "transfer") == 0) return transfer(o);
    if (strcmp(words[0], "route") == 0) return route(o);
    if (strcmp(words[0], "load") == 0) return cli_bench_load(o);
    if (strcmp(words[0], "engine") != 0)
        return cli_usage("bench", "'%.40s' is nothing to measure: expected engine, transfer, route or load", words[0]);
    if (!o->model) return cli_usage("bench", "--model FILE is missing");
    cli_exit code = cli_ranks_check(o, "bench");
    if (code != CLI_OK) return code;
    if (o->tp > 1 && !o->group && cli_ranks_start(&others, &cli_bench, words[0], &mine, &err) != ST_OK)
        return cli_complain(CLI_FAILED, "%s", err.text);
    code = bench_rank(&mine);
    cli_ranks_end(&others);
    return code;
}
