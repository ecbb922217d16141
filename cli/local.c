/* local.c -- a cluster for the length of one command: `baton up` as a child, which starts the nodes.
 *
 * What the command's own flags do not say is what `baton up` would take: its defaults, BATON_ variables, --config's file
 * by BATON_CONFIG. The child's stdout is a pipe on which its ready line is awaited. */
#include "cli/cli.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* up's options without a command line, then what both commands know from o. */
static status fill_options(const cli_options *o, arena *a, cli_options *up, error *err) {
    char name[] = "baton", *argv[] = {name, NULL};
    const char *words[1];
    int count;
    memset(up, 0, sizeof *up);
    TRY(config_parse(cli_up.rows, cli_up.rows_count, 1, argv, a, up, words, 0, &count, err));
    up->model = o->model;
    up->listen = "127.0.0.1:0";
    up->tls_ca = up->tls_cert = up->tls_key = up->tokens_file = NULL; /* its only client is the command */
    up->log_level = "warn";
    up->prefill = o->prefill;
    up->decode = o->decode;
    up->tp = o->tp;
    up->threads = o->threads;
    up->pin = o->pin;
    up->device = o->device;
    up->isa = o->isa;
    up->cache = o->cache;
    up->cache_dir = o->cache_dir;
    up->kv_dtype = o->kv_dtype;
    return ST_OK;
}

/* "ready grpc=H:P ...": H:P. */
static status await_ready(cli_local *l, int fd, error *err) {
    static const char word[] = "ready grpc=";
    char line[400];
    size_t used = 0;
    while (used < sizeof line - 1 && !memchr(line, '\n', used)) {
        ssize_t n = read(fd, line + used, sizeof line - 1 - used);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return error_set(err, ST_IO, "the cluster ended before it was ready");
        used += (size_t)n;
    }
    line[used] = 0;
    if (strncmp(line, word, sizeof word - 1) != 0)
        return error_set(err, ST_IO, "the cluster said '%.100s': expected its ready line", line);
    snprintf(l->server, sizeof l->server, "%.*s", (int)strcspn(line + sizeof word - 1, " \n"), line + sizeof word - 1);
    return ST_OK;
}

status cli_local_start(cli_local *l, const cli_options *o, error *err) {
    int ends[2];
    cli_options up;
    eng_gguf *g;
    *l = (cli_local){.pid = -1};
    arena *a = arena_create(4096);
    if (!a) return error_set(err, ST_NO_MEMORY, "no memory");
    status st = eng_gguf_open(o->model, &g, err); /* a file that is no model is said once, and not by the child */
    if (st == ST_OK) eng_gguf_close(g);
    if (st == ST_OK) st = fill_options(o, a, &up, err);
    if (st == ST_OK && pipe2(ends, O_CLOEXEC) != 0) st = error_set(err, ST_IO, "pipe: %s", strerror(errno));
    if (st == ST_OK) {
        cli_child child = {.command = &cli_up, .options = &up, .keep_fd = -1, .stdout_fd = ends[1]};
        l->pid = cli_child_start(&child);
        if (l->pid < 0) st = error_set(err, ST_IO, "baton up: %s", strerror(errno));
        close(ends[1]);
        if (st == ST_OK) st = await_ready(l, ends[0], err);
        close(ends[0]);
    }
    arena_destroy(a);
    if (st != ST_OK) cli_local_stop(l);
    return st;
}

void cli_local_stop(cli_local *l) {
    if (l->pid <= 0) return;
    kill(l->pid, SIGTERM);
    while (waitpid(l->pid, NULL, 0) < 0 && errno == EINTR) {}
    l->pid = -1;
}
