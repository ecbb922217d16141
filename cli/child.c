/* child.c -- this same executable (/proc/self/exe) as a child process.
 *
 * A child dies with who started it (PR_SET_PDEATHSIG), is in a process group of its own, so that a terminal's Ctrl-C
 * does not reach it, sees no BATON_ variable, and gets as flags what its rows of the table have in the options: so
 * whatever a parent was told, the child is told the same, but for what the parent changed. */
#include "cli/cli.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { ROWS_MAX = 96, ARG_BYTES = CLI_PATH_MAX + 64 };

typedef struct arguments {
    char *at[ROWS_MAX + 4];      /* "baton", the command, its word, its flags, NULL */
    int count;
    char **environment;          /* this process's without BATON_ variables, whose values are in the flags, and without systemd's socket */
    arena *memory;
} arguments;

static bool add(arguments *a, const char *word) {
    return (a->at[a->count++] = arena_strndup(a->memory, word, strlen(word))) != NULL;
}

static bool add_row(arguments *a, const config_row *r, const cli_options *o) {
    const void *from = (const char *)o + r->offset;
    char flag[ARG_BYTES];
    const char *text = r->kind == CONFIG_TEXT ? *(const char *const *)from : "";
    if (!text) return true;
    switch (r->kind) {
    case CONFIG_TEXT: snprintf(flag, sizeof flag, "--%s=%s", r->name, text); break;
    case CONFIG_INT: snprintf(flag, sizeof flag, "--%s=%lld", r->name, (long long)*(const int64_t *)from); break;
    case CONFIG_REAL: snprintf(flag, sizeof flag, "--%s=%.17g", r->name, *(const double *)from); break;
    case CONFIG_SWITCH: snprintf(flag, sizeof flag, "--%s%s", *(const bool *)from ? "" : "no-", r->name); break;
    }
    return strlen(flag) < sizeof flag - 1 && add(a, flag);
}

static bool add_environment(arguments *a) {
    size_t count = 0, kept = 0;
    while (environ[count]) count++;
    a->environment = arena_alloc(a->memory, (count + 1) * sizeof *a->environment);
    for (size_t i = 0; a->environment && i < count; i++)
        if (strncmp(environ[i], "BATON_", 6) != 0 && strncmp(environ[i], "NOTIFY_SOCKET=", 14) != 0) a->environment[kept++] = environ[i];
    return a->environment != NULL;
}

static bool fill(arguments *a, const cli_child *c) {
    assert(c->command->rows_count <= ROWS_MAX);
    bool fine = (a->memory = arena_create(ARG_BYTES)) && add(a, "baton") && add(a, c->command->name);
    if (fine && c->word) fine = add(a, c->word);
    for (int i = 0; i < c->command->rows_count && fine; i++) fine = add_row(a, &c->command->rows[i], c->options);
    return fine && add_environment(a);
}

/* Moves fd to where the child expects it and leaves no second one open. */
static void move_fd(int fd, int to) {
    if (fd < 0 || fd == to) return;
    dup2(fd, to);
    close(fd);
}

/* In the child, between fork and exec. Returns only when something failed. */
static void become(const cli_child *c, const arguments *a, pid_t parent) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(CLI_FAILED);
    setpgid(0, 0);
    move_fd(open("/dev/null", O_RDONLY), STDIN_FILENO);
    if (c->log) {
        int log = open(c->log, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (log < 0) {
            dprintf(STDERR_FILENO, "baton: --log-dir: '%s': %s\n", c->log, strerror(errno));
            return;
        }
        move_fd(log, STDERR_FILENO);
    }
    dup2(c->stdout_fd > 0 ? c->stdout_fd : STDERR_FILENO, STDOUT_FILENO);
    if (c->keep_fd >= 0) fcntl(c->keep_fd, F_SETFD, 0);
    execve("/proc/self/exe", a->at, a->environment);
    dprintf(STDERR_FILENO, "baton: /proc/self/exe: %s\n", strerror(errno));
}

pid_t cli_child_start(const cli_child *c) {
    arguments a = {.count = 0};
    pid_t parent = getpid(), pid = -1;
    errno = E2BIG;
    if (fill(&a, c)) {
        fflush(NULL);
        pid = fork();
        if (pid == 0) {
            become(c, &a, parent);
            _exit(CLI_FAILED);
        }
    }
    arena_destroy(a.memory);
    return pid;
}
