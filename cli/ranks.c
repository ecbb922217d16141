/* ranks.c -- a node of several ranks on one machine: `--tp N` starts ranks 1 to N-1 as children of rank 0.
 *
 * They meet in shared memory whose number is drawn here, and end when rank 0 dismisses them; if it dies they are
 * killed by the kernel (child.c). A rank that dies ends the node: rank 0 notices by itself (node/rank.h). Ranks on
 * several machines are started by hand instead, each with --rank and --group. */
#include "cli/cli.h"
#include "engine/cpus.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { END_MS = 3000, LOOK_MS = 10 };

static status start(cli_ranks *r, const cli_command *command, const char *word, const cli_options *o, const eng_cpus_list *cpus, error *err) {
    char id[64], kv_listen[300], host[256];
    const char *port;
    cli_options mine = *o;
    if (o->kv_listen && !address_split(o->kv_listen, host, sizeof host, &port))
        return error_set(err, ST_BAD_INPUT, "--kv-listen '%.100s': expected HOST:PORT", o->kv_listen);
    if (o->kv_listen) snprintf(kv_listen, sizeof kv_listen, strchr(host, ':') ? "[%s]:0" : "%s:0", host);      /* a port of its own */
    snprintf(id, sizeof id, "%.50s.%d", o->id ? o->id : command->name, r->count + 1);
    mine.id = id;
    mine.rank = r->count + 1;
    mine.pin = cpus->text[0] ? cpus->text : "off";
    mine.kv_listen = o->kv_listen ? kv_listen : NULL;
    mine.ready_fd = -1;
    if (o->registry) mine.registry = "embedded";     /* rank 0 registers the node; a password is not for everyone's `ps` */
    mine.etcd_ca = mine.etcd_cert = mine.etcd_key = NULL;
    cli_child child = {.command = command, .word = word, .options = &mine, .keep_fd = -1};
    pid_t pid = cli_child_start(&child);
    if (pid < 0) return error_set(err, ST_IO, "rank %lld: %s", (long long)mine.rank, strerror(errno));
    r->pid[r->count++] = pid;
    log_write(LOG_INFO, NULL, "rank.started", "%s pid=%d cpus=%s", id, (int)pid, mine.pin);
    return ST_OK;
}

cli_exit cli_ranks_check(const cli_options *o, const char *command) {
    if (o->rank >= o->tp)
        return cli_usage(command, "--rank is %lld: expected below --tp, %lld", (long long)o->rank, (long long)o->tp);
    if (o->rank > 0 && !o->group) return cli_usage(command, "--rank without --group HOST:PORT");
    return CLI_OK;
}

status cli_ranks_start(cli_ranks *r, const cli_command *command, const char *word, cli_options *o, error *err) {
    static eng_cpus_list cpus[16];
    int threads = (int)o->threads;
    *r = (cli_ranks){.count = 0};
    snprintf(r->group, sizeof r->group, "%016llx", (unsigned long long)random_number());
    TRY(eng_cpus_share(o->pin, (int)o->tp, &threads, cpus, err));
    o->threads = threads;
    o->group = r->group;
    status st = ST_OK;
    for (int i = 1; i < o->tp && st == ST_OK; i++) st = start(r, command, word, o, &cpus[i], err);
    o->pin = cpus[0].text[0] ? cpus[0].text : "off";
    if (st != ST_OK) cli_ranks_end(r);
    return st;
}

void cli_ranks_end(cli_ranks *r) {
    int64_t until_ms = clock_now_ms() + END_MS;
    for (int i = 0; i < r->count; i++) {
        while (waitpid(r->pid[i], NULL, WNOHANG) == 0) {
            if (clock_now_ms() >= until_ms) kill(r->pid[i], SIGKILL);
            nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000}, NULL);
        }
    }
    r->count = 0;
}
