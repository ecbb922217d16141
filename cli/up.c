/* up.c -- baton up: a whole cluster on this machine, as real processes under one supervisor.
 *
 *   ports are taken first  [reserve]   a socket bound to each, never listening: nobody else gets the
 *                                      port, while a child that binds it with SO_REUSEADDR, as gRPC
 *                                      does, may; so all children start at once and come back at the
 *                                      same address
 *   STARTING -> RUNNING    [hear]      the coordinator says that every node is there: `ready grpc=H:P`
 *   STARTING -> FAILED     [mourn]     a child ended before that: its own line says why; exit code 1
 *   RUNNING                [mourn]     a child that ends is started again after a pause of 0.2 to 5 s
 *   any      -> DRAINING   [stop]      SIGTERM, SIGINT: the coordinator first, so that nothing new
 *                                      comes, then the nodes; exit code 0. A second one ends
 *                                      everything at once
 *
 * Children are this same executable (child.c) and die with the supervisor. A node of several ranks is
 * one child, which starts its ranks itself (ranks.c). */
#include "cli/cli.h"
#include "decode-node/decode.h"
#include "engine/cpus.h"
#include "engine/engine.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static cli_exit up(const cli_options *o, const char *const *words, int count);

static const config_row rows[] = {
    CLI_MODEL,
    CLI_INT("prefill", prefill, "1", 0, 64, "N",
            "prefill nodes; 0: decode nodes read every prompt"),
    CLI_INT("decode", decode, "1", 1, 64, "N", "decode nodes"),
    CLI_TP,
    CLI_INT("prefill-tp", prefill_tp, "0", 0, 16, "N", "ranks of a prefill node; 0: as --tp says"),
    CLI_INT("decode-tp", decode_tp, "0", 0, 16, "N", "ranks of a decode node; 0: as --tp says"),
    CLI_TEXT("listen", listen, "127.0.0.1:50051", "HOST:PORT",
             "where clients connect; port 0 takes a free one"),
    CLI_HTTP_AUTO,
    CLI_ENGINE,
    CLI_PAGES,
    CLI_SPECULATE,
    CLI_TLS,
    CLI_TOKENS,
    CLI_COORDINATOR,
    CLI_GRACE,
    CLI_TEXT("log-dir", log_dir, NULL, "DIR",
             "logs of the processes go to DIR/NAME.log instead of stderr"),
    CLI_LOG_LEVEL,
};

const cli_command cli_up = {"up", "", "A whole cluster on this machine.", CLI_ROWS(rows), 0, 0, up};

enum {
    CHILDREN_MAX = 129,
    PAUSE_FIRST_MS = 200,
    PAUSE_MAX_MS = 5000,
    HEALTHY_MS = 10000
};

typedef struct child {
    const cli_command *command;
    char id[32], address[300];
    int tp;                         /* its ranks */
    char cpus[ENG_CPUS_TEXT];       /* where all their threads stay; "": nowhere */
    int reserved;                   /* the socket that keeps its port */
    pid_t pid;                      /* 0: not running */
    int64_t started_ms, restart_ms; /* restart_ms 0: none is due */
    int pause_ms;
} child;

typedef enum up_state { UP_STARTING, UP_RUNNING, UP_FAILED, UP_DRAINING } up_state;

typedef struct supervisor {
    const cli_options *o;
    up_state state;
    child children[CHILDREN_MAX]; /* the coordinator is the first */
    int count;
    char nodes[CHILDREN_MAX * 32]; /* the coordinator's --nodes */
    int threads;                      /* of each rank */
    int cores_taken;                  /* a socket whose name says so to other clusters */
    int signals;                   /* signalfd */
    int ready;                     /* read end of the coordinator's --ready-fd, -1: said */
    int ready_write;               /* the other end, until the coordinator has it */
    char line[400];
    size_t line_bytes;
    int64_t kill_ms; /* when draining turns to killing */
} supervisor;

/* ---- ports ----------------------------------------------------------------------------------- */

/* Keeps a port of host:port (0: a free one) and writes the address with the port taken. */
static status reserve(const char *listen, child *c, error *err) {
    char host[256];
    const char *colon = strrchr(listen, ':');
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
    if (!colon || colon == listen || (size_t)(colon - listen) >= sizeof host)
        return error_set(err, ST_BAD_INPUT, "--listen '%.100s': expected HOST:PORT", listen);
    bool bracketed = listen[0] == '[' && colon[-1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(colon - listen) - 2 * bracketed, listen + bracketed);
    char *end;
    long number = strtol(colon + 1, &end, 10);
    if (end == colon + 1 || *end || number < 0 || number > 65535 ||
        getaddrinfo(host, colon + 1, &hints, &found) != 0)
        return error_set(err, ST_BAD_INPUT, "--listen '%.100s': expected HOST:PORT", listen);
    struct sockaddr_storage bound;
    socklen_t bytes = sizeof bound;
    int one = 1;
    char port[8];
    status st = ST_OK;
    c->reserved = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->reserved < 0 ||
        setsockopt(c->reserved, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(c->reserved, found->ai_addr, found->ai_addrlen) != 0 ||
        getsockname(c->reserved, (struct sockaddr *)&bound, &bytes) != 0 ||
        getnameinfo((struct sockaddr *)&bound, bytes, NULL, 0, port, sizeof port, NI_NUMERICSERV) !=
            0)
        st = error_set(err, ST_IO, "cannot listen on %.200s: %s", listen, strerror(errno));
    else
        snprintf(c->address, sizeof c->address, "%.*s:%s", (int)(colon - listen), listen, port);
    freeaddrinfo(found);
    return st;
}

/* ---- children -------------------------------------------------------------------------------- */

/* What the child is told: what this process was, but for its name, address and place. */
static cli_options options_of(const supervisor *u, const child *c) {
    cli_options o = *u->o;
    o.id = c->id;
    o.listen = c->address;
    o.ready_fd = -1;
    if (c == &u->children[0]) {
        o.nodes = u->nodes;
        o.expect_prefill = u->o->prefill;
        o.expect_decode = u->o->decode;
        o.ready_fd = u->ready_write;
        return o;
    }
    o.kv_listen = "127.0.0.1:0";
    if (strcmp(o.http, "off") != 0) o.http = "127.0.0.1:0";      /* the flag is the coordinator's */
    o.tp = c->tp;
    o.threads = u->threads;
    o.pin = c->cpus[0] ? c->cpus : "off";
    return o;
}

static void start(supervisor *u, child *c) {
    char log[CLI_PATH_MAX];
    cli_options options = options_of(u, c);
    if (u->o->log_dir) snprintf(log, sizeof log, "%s/%s.log", u->o->log_dir, c->id);
    cli_child spec = {.command = c->command,
                      .options = &options,
                      .log = u->o->log_dir ? log : NULL,
                      .keep_fd = (int)options.ready_fd};
    pid_t pid = cli_child_start(&spec);
    c->started_ms = clock_now_ms();
    c->restart_ms = 0;
    c->pid = pid > 0 ? pid : 0;
    if (pid < 0) {
        c->restart_ms = c->started_ms + c->pause_ms;
        log_write(LOG_ERROR, NULL, "child.not.started", "%s: %s", c->id, strerror(errno));
    } else {
        log_write(LOG_INFO, NULL, "child.started", "%s pid=%d address=%s", c->id, (int)pid,
                  c->address);
    }
}

/* A child has ended: again, or that was it. */
static void mourn(supervisor *u, child *c, int how) {
    char why[60];
    if (WIFSIGNALED(how))
        snprintf(why, sizeof why, "signal %d", WTERMSIG(how));
    else
        snprintf(why, sizeof why, "exit code %d", WEXITSTATUS(how));
    bool wanted = u->state == UP_DRAINING && WIFEXITED(how) && WEXITSTATUS(how) == 0;
    log_write(wanted ? LOG_INFO : LOG_WARN, NULL, "child.ended", "%s pid=%d %s", c->id, (int)c->pid,
              why);
    c->pid = 0;
    if (u->state == UP_STARTING) u->state = UP_FAILED;
    if (u->state != UP_RUNNING) return;
    int64_t now = clock_now_ms();
    if (now - c->started_ms >= HEALTHY_MS) c->pause_ms = PAUSE_FIRST_MS;
    c->restart_ms = now + c->pause_ms;
    c->pause_ms = c->pause_ms * 2 < PAUSE_MAX_MS ? c->pause_ms * 2 : PAUSE_MAX_MS;
}

static void reap(supervisor *u) {
    int how;
    for (pid_t pid; (pid = waitpid(-1, &how, WNOHANG)) > 0;)
        for (int i = 0; i < u->count; i++)
            if (u->children[i].pid == pid) mourn(u, &u->children[i], how);
}

/* ---- readiness ------------------------------------------------------------------------------- */

static void hear(supervisor *u) {
    ssize_t n = read(u->ready, u->line + u->line_bytes, sizeof u->line - 1 - u->line_bytes);
    if (n < 0 && errno == EINTR) return;
    if (n > 0) u->line_bytes += (size_t)n;
    u->line[u->line_bytes] = 0;
    bool whole = strchr(u->line, '\n') != NULL;
    if (n > 0 && !whole) return;
    close(u->ready); /* without a line its process has ended: reap() says so */
    u->ready = -1;
    if (!whole || u->state != UP_STARTING) return;
    fputs(u->line, stdout);
    fflush(stdout);
    cli_notify("READY=1");
    u->state = UP_RUNNING;
}

/* ---- the end --------------------------------------------------------------------------------- */

static void signal_children(const supervisor *u, int first, int end, int which) {
    for (int i = first; i < end; i++)
        if (u->children[i].pid > 0) kill(u->children[i].pid, which);
}

static void stop(supervisor *u, int which) {
    enum { KILL_EXTRA_MS = 5000 };
    if (u->state == UP_DRAINING) {
        log_write(LOG_WARN, NULL, "up.killed", "signal %d came again: everything ends now", which);
        u->kill_ms = clock_now_ms();
        return;
    }
    log_write(LOG_INFO, NULL, "up.draining", "signal=%d grace_ms=%lld", which,
              (long long)u->o->grace_ms);
    cli_notify("STOPPING=1");
    u->state = UP_DRAINING;
    u->kill_ms = clock_now_ms() + 2 * u->o->grace_ms + KILL_EXTRA_MS;
    signal_children(u, 0, 1, SIGTERM);
}

static int living(const supervisor *u) {
    int n = 0;
    for (int i = 0; i < u->count; i++) n += u->children[i].pid > 0;
    return n;
}

/* ---- loop
 * ------------------------------------------------------------------------------------------------
 */

static void take_signals(supervisor *u) {
    struct signalfd_siginfo info;
    while (read(u->signals, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            reap(u);
        else
            stop(u, (int)info.ssi_signo);
    }
}

/* Starts children whose pause is over; returns how long poll may sleep, -1: for ever. */
static int work_off(supervisor *u) {
    int64_t now = clock_now_ms(), next = INT64_MAX;
    for (int i = 0; i < u->count && u->state == UP_RUNNING; i++) {
        child *c = &u->children[i];
        if (c->restart_ms && c->restart_ms <= now) start(u, c);
        if (c->restart_ms && c->restart_ms < next) next = c->restart_ms;
    }
    if (u->state == UP_DRAINING && now >= u->kill_ms)
        signal_children(u, 0, u->count, SIGKILL);
    else if (u->state == UP_DRAINING)
        next = u->kill_ms;
    if (next == INT64_MAX) return -1;
    return next > now ? (int)(next - now) : 0;
}

static cli_exit supervise(supervisor *u) {
    bool nodes_told = false;
    for (int i = 0; i < u->count; i++) start(u, &u->children[i]);
    close(u->ready_write);
    u->ready_write = -1;
    while (u->state != UP_FAILED && !(u->state == UP_DRAINING && living(u) == 0)) {
        if (u->state == UP_DRAINING && u->children[0].pid == 0 && !nodes_told) {
            nodes_told = true;
            signal_children(u, 1, u->count, SIGTERM);
        }
        struct pollfd fds[2] = {{.fd = u->signals, .events = POLLIN},
                                {.fd = u->ready, .events = POLLIN}};
        if (poll(fds, 2, work_off(u)) <= 0) continue;
        if (fds[1].revents) hear(u);
        if (fds[0].revents) take_signals(u);
    }
    signal_children(u, 0, u->count, SIGKILL);
    for (int i = 0; i < u->count; i++)
        if (u->children[i].pid > 0) waitpid(u->children[i].pid, NULL, 0);
    return u->state == UP_FAILED
               ? cli_complain(CLI_FAILED, "up: a process ended before the cluster was ready")
               : CLI_OK;
}

/* ---- setting up ------------------------------------------------------------------------------ */

static status add_child(supervisor *u, const cli_command *command, int64_t number, int64_t tp,
                        const char *listen, error *err) {
    child *c = &u->children[u->count];
    c->command = command;
    c->tp = (int)(tp ? tp : u->o->tp);
    c->reserved = -1;
    c->pause_ms = PAUSE_FIRST_MS;
    snprintf(c->id, sizeof c->id, "%s-%lld", command->name, (long long)number);
    u->count++;
    return reserve(listen, c, err);
}

static status add_children(supervisor *u, error *err) {
    size_t used = 0;
    TRY(add_child(u, &cli_coordinator, 1, 1, u->o->listen, err));
    for (int64_t i = 1; i <= u->o->prefill; i++)
        TRY(add_child(u, &cli_prefill, i, u->o->prefill_tp, "127.0.0.1:0", err));
    for (int64_t i = 1; i <= u->o->decode; i++)
        TRY(add_child(u, &cli_decode, i, u->o->decode_tp, "127.0.0.1:0", err));
    for (int i = 1; i < u->count; i++)
        used += (size_t)snprintf(u->nodes + used, sizeof u->nodes - used, "%s%s", i > 1 ? "," : "",
                                 u->children[i].address);
    return ST_OK;
}

/* False: another cluster of this machine has them. The name goes when the process does. */
static bool take_cores(supervisor *u) {
    static const struct sockaddr_un name = {AF_UNIX, "\0baton-up-cores"};
    u->cores_taken = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return u->cores_taken >= 0 && bind(u->cores_taken, (const struct sockaddr *)&name, sizeof name) == 0;
}

static status share_cores(supervisor *u, error *err) {
    bool taken = strcmp(u->o->pin, "auto") == 0 && !take_cores(u);
    int ranks = 0, at = 0;
    for (int i = 1; i < u->count; i++) ranks += u->children[i].tp;
    eng_cpus_list *lists = mem_zalloc((size_t)ranks, sizeof *lists);
    if (!lists) return error_set(err, ST_NO_MEMORY, "no memory");
    u->threads = (int)u->o->threads;
    status st = eng_cpus_share(taken ? "off" : u->o->pin, ranks, &u->threads, lists, err);
    for (int i = 1; i < u->count && st == ST_OK; i++) {
        child *c = &u->children[i];
        size_t used = 0;
        for (int r = 0; r < c->tp; r++, at++)
            if (lists[at].text[0] && used < sizeof c->cpus)
                used += (size_t)snprintf(c->cpus + used, sizeof c->cpus - used, "%s%s", used ? "," : "", lists[at].text);
        if (used >= sizeof c->cpus) c->cpus[0] = 0;
        log_write(LOG_INFO, NULL, "up.cores", "%s ranks=%d threads=%d cpus=%s", c->id, c->tp, u->threads,
                  c->cpus[0] ? c->cpus : "any");
    }
    mem_free(lists);
    return st;
}

/* A file that is no model is said once, here, and not by every process. */
static status check_model(const char *path, error *err) {
    eng_gguf *g;
    TRY(eng_gguf_open(path, &g, err));
    eng_gguf_close(g);
    return ST_OK;
}

static status watch_signals(supervisor *u, error *err) {
    sigset_t set;
    int ends[2];
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    u->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (u->signals < 0 || pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, ST_IO, "signals: %s", strerror(errno));
    u->ready = ends[0];
    u->ready_write = ends[1];
    return ST_OK;
}

static cli_exit up(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    error err = {0};
    decode_speculate_options speculate = {.mode = o->speculate, .draft = o->draft};
    if (!o->model) return cli_usage("up", "--model FILE is missing");
    if (decode_speculate_check(&speculate, &err) != ST_OK) return cli_usage("up", "%s", err.text);
    cli_exit code = cli_log_setup(o, "up", "up");
    if (code == CLI_OK) code = cli_security_serve(o, "up", RPC_COORDINATOR | RPC_NODE); /* of its children */
    if (code != CLI_OK) return code;
    supervisor *u = mem_zalloc(1, sizeof *u);
    if (!u) return cli_complain(CLI_FAILED, "no memory");
    u->o = o;
    u->signals = u->ready = u->ready_write = u->cores_taken = -1;
    status st = check_model(o->model, &err);
    if (st == ST_OK) st = watch_signals(u, &err);
    if (st == ST_OK) st = add_children(u, &err);
    if (st == ST_OK) st = share_cores(u, &err);
    code = st == ST_OK ? supervise(u) : cli_complain(CLI_FAILED, "%s", err.text);
    for (int i = 0; i < u->count; i++)
        if (u->children[i].reserved >= 0) close(u->children[i].reserved);
    if (u->cores_taken >= 0) close(u->cores_taken);
    mem_free(u);
    return code;
}
