/* main.c -- baton: one executable, many commands.
 *
 *   baton COMMAND [words] [--flags]     a row of cli_commands, its options by the config table
 *
 * Exit codes are a contract: 0 ok, 1 failed, 2 wrong usage, 3 not reachable, 4 refused. Answers go
 * to stdout; everything said about them goes to stderr, one line a fact. */
#include "cli/cli.h"
#include <sys/prctl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

const cli_command *const cli_commands[] = {
    &cli_up,       &cli_generate,   &cli_chat,        &cli_nodes, &cli_top,   &cli_drain,
    &cli_undrain,  &cli_role,       &cli_coordinator, &cli_prefill, &cli_decode,
    &cli_certs,    &cli_tokenize,   &cli_perplexity,  &cli_logits,  &cli_quantize,
    &cli_bench,
};
const int cli_commands_count = sizeof cli_commands / sizeof *cli_commands;

static void complain(const char *fmt, va_list list, const char *more) {
    char text[700];
    vsnprintf(text, sizeof text, fmt, list);
    fprintf(stderr, "baton: %s%s\n", text, more);
}

cli_exit cli_complain(cli_exit code, const char *fmt, ...) {
    va_list list;
    va_start(list, fmt);
    complain(fmt, list, "");
    va_end(list);
    return code;
}

cli_exit cli_usage(const char *command, const char *fmt, ...) {
    char more[100];
    snprintf(more, sizeof more, " (see baton %s --help)", command);
    va_list list;
    va_start(list, fmt);
    complain(fmt, list, more);
    va_end(list);
    return CLI_USAGE;
}

status cli_kv_type(const char *flag, const char *name, eng_kv_type *out, error *err) {
    if (eng_kv_type_find(name, out)) return ST_OK;
    return error_set(err, ST_BAD_INPUT, "%s '%.40s': expected f32, f16, bf16 or q8_0", flag, name);
}

cli_exit cli_log_setup(const cli_options *o, const char *command, const char *process) {
    log_level level;
    if (!log_level_parse(o->log_level, &level))
        return cli_usage(command, "--log-level '%.40s': expected error, warn, info or debug",
                         o->log_level);
    log_setup(process, level);
    prctl(PR_SET_NAME, process); /* started as /proc/self/exe: ps and top shall not say "exe" */
    return CLI_OK;
}

static cli_exit run(const cli_command *c, int argc, char **argv, arena *a) {
    enum { WORDS_MAX = 4 };
    const char *words[WORDS_MAX];
    int count = 0;
    cli_options options;
    error err = {0};
    memset(&options, 0, sizeof options);
    status st = config_parse(c->rows, c->rows_count, argc, argv, a, &options, words, c->words_max,
                             &count, &err);
    if (st == ST_CANCELED) {
        cli_help_command(stdout, c);
        return CLI_OK;
    }
    if (st != ST_OK) return cli_usage(c->name, "%s", err.text);
    if (count < c->words_min) return cli_usage(c->name, "%s expects %s", c->name, c->words);
    return c->run(&options, words, count);
}

static cli_exit help(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--markdown") == 0) {
        cli_help_markdown(stdout);
        return CLI_OK;
    }
    for (int i = 0; argc > 1 && i < cli_commands_count; i++)
        if (strcmp(argv[1], cli_commands[i]->name) == 0) {
            cli_help_command(stdout, cli_commands[i]);
            return CLI_OK;
        }
    cli_help_all(stdout);
    return CLI_OK;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        cli_help_all(stderr);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0)
        return (int)help(argc - 1, argv + 1);
    if (strcmp(name, "version") == 0 || strcmp(name, "--version") == 0)
        return puts("baton " BATON_VERSION) < 0 ? CLI_FAILED : CLI_OK;
    for (int i = 0; i < cli_commands_count; i++) {
        if (strcmp(name, cli_commands[i]->name) != 0) continue;
        arena *a = arena_create(4096);
        if (!a) return (int)cli_complain(CLI_FAILED, "no memory");
        cli_exit code = run(cli_commands[i], argc - 1, argv + 1, a);
        arena_destroy(a);
        if ((fflush(stdout) != 0 || ferror(stdout)) && code == CLI_OK)
            return (int)cli_complain(CLI_FAILED, "stdout cannot be written");
        return (int)code;
    }
    return (int)cli_complain(CLI_USAGE, "unknown command '%.80s' (see baton --help)", name);
}
