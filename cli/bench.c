/* bench.c -- baton bench engine: how fast the engine runs a model here, and how fast the machine could; baton
 * bench transfer: the same of KV on its way to another process. What is measured and how it is shown stands in
 * bench/. */
#include "cli/cli.h"
#include "bench/bench.h"
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
};

const cli_command cli_bench = {
    "bench", "engine|transfer",
    "How fast a model runs (engine) or KV gets to another process (transfer: --quick, --json only) here.",
    CLI_ROWS(bench_rows), 1, 1, bench};

static void say(const char *what, int size) {
    if (size) fprintf(stderr, "measuring %s %d\n", what, size);
    else fprintf(stderr, "measuring %s\n", what);
}

static status write_svg(const bench_report *r, const char *path, error *err) {
    FILE *out = fopen(path, "we");
    if (!out) return error_set(err, ST_IO, "--svg '%.200s': %s", path, strerror(errno));
    bench_svg_write(r, out);
    bool whole = !ferror(out);
    if (fclose(out) != 0 || !whole)
        return error_set(err, ST_IO, "--svg '%.200s' cannot be written: %s", path, strerror(errno));
    return ST_OK;
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
    if (strcmp(words[0], "engine") != 0)
        return cli_usage("bench", "'%.40s' is nothing to measure: expected engine or transfer", words[0]);
    if (!o->model) return cli_usage("bench", "--model FILE is missing");
    cli_exit code = cli_ranks_check(o, "bench");
    if (code != CLI_OK) return code;
    if (o->tp > 1 && !o->group && cli_ranks_start(&others, &cli_bench, words[0], &mine, &err) != ST_OK)
        return cli_complain(CLI_FAILED, "%s", err.text);
    code = bench_rank(&mine);
    cli_ranks_end(&others);
    return code;
}
