/* serve.c -- one process of a cluster: baton coordinator, baton prefill, baton decode.
 *
 * SIGTERM and SIGINT drain: nothing new is taken on, accepted work runs on for --grace-ms, exit
 * code 0.
 * --ready-fd FD gets one line once the process serves (a coordinator: once the nodes it was told to
 * expect are there); `baton up` reads it. */
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "coordinator/coord.h"
#include "decode-node/decode.h"
#include "engine/cpus.h"
#include "http/http.h"
#include "node/node.h"
#include "prefill-node/prefill.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define READY_ROW                                                                                  \
    CLI_INT("ready-fd", ready_fd, "-1", -1, 1048576, "FD",                                         \
            "file descriptor that gets one line once it serves; -1: none")

static cli_exit coordinator(const cli_options *o, const char *const *words, int count);
static cli_exit prefill(const cli_options *o, const char *const *words, int count);
static cli_exit decode(const cli_options *o, const char *const *words, int count);

static const config_row coordinator_rows[] = {
    CLI_MODEL,
    CLI_TEXT("listen", listen, "127.0.0.1:50051", "HOST:PORT",
             "where clients connect; port 0 takes a free one"),
    CLI_HTTP_AUTO,
    CLI_TEXT("nodes", nodes, NULL, "HOST:PORT,...", "addresses of the prefill and decode nodes"),
    CLI_REGISTRY("embedded: the nodes are those of --nodes"),
    CLI_TEXT("id", id, "coordinator-1", "NAME", "its name in logs and `baton nodes`"),
    CLI_TLS,
    CLI_TOKENS,
    CLI_COORDINATOR,
    CLI_GRACE,
    CLI_INT("expect-prefill", expect_prefill, "0", 0, 1024, "N",
            "prefill nodes to wait for before it says ready"),
    CLI_INT("expect-decode", expect_decode, "0", 0, 1024, "N",
            "decode nodes to wait for before it says ready"),
    READY_ROW,
    CLI_LOG_LEVEL,
};

#define NODE_ROWS(role)                                                                            \
    CLI_MODEL,                                                                                     \
        CLI_TEXT("listen", listen, "127.0.0.1:0", "HOST:PORT",                                     \
                 "where coordinators connect; port 0 takes a free one"),                           \
        CLI_TEXT("kv-listen", kv_listen, "127.0.0.1:0", "HOST:PORT", "where KV pages arrive"),     \
        CLI_HTTP("off", "off: nowhere"),                                                           \
        CLI_TLS,                                                                                   \
        CLI_REGISTRY("embedded: coordinators know it by --nodes"),                                 \
        CLI_TEXT("id", id, role "-1", "NAME", "its name in logs and `baton nodes`"), CLI_TP,       \
        CLI_RANK, CLI_ENGINE,                                                                      \
        CLI_PAGES, CLI_GRACE, READY_ROW, CLI_LOG_LEVEL

static const config_row prefill_rows[] = {NODE_ROWS("prefill")};
static const config_row decode_rows[] = {NODE_ROWS("decode"), CLI_SPECULATE};

const cli_command cli_coordinator = {"coordinator",
                                     "",
                                     "One coordinator: clients ask it, it asks the nodes.",
                                     CLI_ROWS(coordinator_rows),
                                     0,
                                     0,
                                     coordinator};
const cli_command cli_prefill = {
    "prefill", "",     "One prefill node: tokens in, KV pages out.", CLI_ROWS(prefill_rows), 0,
    0,         prefill};
const cli_command cli_decode = {
    "decode", "", "One decode node: KV pages in, tokens out.", CLI_ROWS(decode_rows), 0, 0, decode};

/* ---- signals and readiness ------------------------------------------------------------------- */

/* SIGTERM or SIGINT within timeout_ms (-1: however long it takes). Blocked before threads exist. */
static bool asked_to_stop(int64_t timeout_ms) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    struct timespec limit = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000};
    int which;
    do which = timeout_ms < 0 ? sigwaitinfo(&set, NULL) : sigtimedwait(&set, NULL, &limit);
    while (which < 0 && errno == EINTR);
    return which > 0;
}

/* To whoever started the process: `up` on the descriptor it gave, a user on stdout. kv, http: NULL for none. */
static void say_ready(const cli_options *o, const char *address, const char *kv, const http_service *http) {
    char line[900];
    int fd = o->ready_fd < 0 ? STDOUT_FILENO : (int)o->ready_fd;
    int bytes = snprintf(line, sizeof line, "ready grpc=%s%s%s%s%s\n", address, kv ? " kv=" : "", kv ? kv : "",
                         http ? " http=" : "", http ? http_address(http) : "");
    if (write(fd, line, (size_t)bytes) != bytes)
        log_write(LOG_WARN, NULL, "ready.unheard", "descriptor %d: %s", fd, strerror(errno));
    if (fd != STDOUT_FILENO) close(fd);
    cli_notify("READY=1");
}

/* ---- HTTP --------------------------------------------------------------------------------------- */

/* Whom /readyz speaks of, one of the two, until SIGTERM: HTTP answers longer than they live. */
typedef struct readiness {
    pthread_mutex_t lock;
    const coord_service *coordinator;
    const node_process *node;
    bool stopping;
} readiness;

static bool is_ready(void *ctx, char why[HTTP_WHY_MAX]) {
    readiness *r = ctx;
    const char *text = NULL;
    pthread_mutex_lock(&r->lock);
    if (r->stopping) text = "shutting down";
    else if (r->coordinator && coord_service_ready(r->coordinator, COORD_DECODE) == 0) text = "no decode node is ready";
    else if (r->node && node_process_draining(r->node)) text = "draining: no new requests";
    pthread_mutex_unlock(&r->lock);
    if (text) snprintf(why, HTTP_WHY_MAX, "%s", text);
    return !text;
}

static void say_stopping(readiness *r) {
    pthread_mutex_lock(&r->lock);
    r->stopping = true;
    pthread_mutex_unlock(&r->lock);
    cli_notify("STOPPING=1");
}

/* *out is NULL where there shall be none. auto: the port may be another process'; then this one goes without. */
static status open_http(const cli_options *o, readiness *r, http_service **out, error *err) {
    char model[COORD_MODEL_NAME_MAX];
    error cause = {0};
    bool is_auto = strcmp(o->http, "auto") == 0;
    const char *listen = is_auto ? CLI_HTTP_DEFAULT : o->http;
    *out = NULL;
    if (strcmp(o->http, "off") == 0) return ST_OK;
    coord_model_name(o->model, model);
    http_options options = {.listen = listen, .model = o->vllm_metrics ? model : NULL, .ready = is_ready, .ctx = r};
    status st = http_open(&options, out, &cause);
    if (st != ST_OK && !is_auto) return error_set(err, st, "--http: %s", cause.text);
    if (st != ST_OK) log_write(LOG_WARN, NULL, "http.none", "%s: no /metrics; --http HOST:PORT names another address", cause.text);
    else log_write(LOG_INFO, NULL, "http.listening", "address=%s", http_address(*out));
    return ST_OK;
}

/* ---- coordinator ----------------------------------------------------------------------------- */

static bool read_policy(const char *text, coord_prefill_policy *out) {
    static const char *const names[] = {[COORD_PREFILL_AUTO] = "auto",
                                        [COORD_PREFILL_LOCAL] = "local",
                                        [COORD_PREFILL_REMOTE] = "remote"};
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (coord_prefill_policy)i;
            return true;
        }
    return false;
}

static cli_exit read_coordinator_options(const cli_options *o, coord_options *out) {
    error err = {0};
    coord_options options = {.id = o->id,
                             .model = o->model,
                             .listen = o->listen,
                             .nodes = o->nodes,
                             .heartbeat_ms = (int)o->heartbeat_ms,
                             .limits = coord_limits_default};
    bool etcd;
    if (!o->model) return cli_usage("coordinator", "--model FILE is missing");
    if (cluster_registry_check(o->registry, &etcd, &err) != ST_OK) return cli_usage("coordinator", "--registry: %s", err.text);
    if (etcd && o->nodes) return cli_usage("coordinator", "--nodes with --registry etcd://...: expected one of them");
    if (!etcd && !o->nodes) return cli_usage("coordinator", "--nodes HOST:PORT,... is missing");
    if (etcd) options.nodes = o->registry;
    options.limits.queue_max = (int32_t)o->queue;
    options.limits.requests_max = (int32_t)o->requests;
    options.limits.queue_tokens_max = o->queue_tokens;
    options.limits.tenant_requests_max = (int32_t)o->tenant_requests;
    options.limits.tenant_queue_tokens_max = o->tenant_queue_tokens;
    options.limits.tenant_pages_max = o->tenant_pages;
    options.limits.local_tokens_max = (int32_t)o->local_tokens;
    if (!coord_route_find(o->route, &options.limits.route))
        return cli_usage("coordinator", "--route '%.40s': expected cost, round-robin, least-loaded or prefix-hash", o->route);
    if (!read_policy(o->prefill_policy, &options.limits.prefill))
        return cli_usage("coordinator", "--prefill-policy '%.40s': expected auto, local or remote",
                         o->prefill_policy);
    *out = options;
    return CLI_OK;
}

static cli_exit coordinator(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    error err = {0};
    coord_service *s;
    coord_options options;
    cli_exit code = read_coordinator_options(o, &options);
    if (code == CLI_OK) code = cli_log_setup(o, "coordinator", o->id);
    if (code == CLI_OK) code = cli_security_serve(o, "coordinator", RPC_COORDINATOR);
    if (code != CLI_OK) return code;
    cli_client_hold_signals();
    if (coord_service_open(&options, &s, &err) != ST_OK)
        return cli_complain(CLI_FAILED, "%s", err.text);
    readiness about = {.coordinator = s, .lock = PTHREAD_MUTEX_INITIALIZER};
    http_service *http = NULL;
    if (open_http(o, &about, &http, &err) != ST_OK) {
        coord_service_close(s, 0);
        return cli_complain(CLI_FAILED, "%s", err.text);
    }
    bool stop = false;
    while (!stop && (coord_service_ready(s, COORD_PREFILL) < o->expect_prefill ||
                     coord_service_ready(s, COORD_DECODE) < o->expect_decode))
        stop = asked_to_stop(5);
    if (!stop) say_ready(o, coord_service_address(s), NULL, http);
    if (!stop) asked_to_stop(-1);
    say_stopping(&about);
    coord_service_close(s, (int)o->grace_ms);
    http_close(http);
    return CLI_OK;
}

/* ---- nodes ----------------------------------------------------------------------------------- */

/* Loading that takes long is said on a terminal, a line a quarter second. */
typedef struct progress {
    const char *id;
    int64_t said_ms;
} progress;

static void show_progress(double share, void *ctx) {
    progress *p = ctx;
    int64_t now = clock_now_ms();
    if (now - p->said_ms < 250) return;
    p->said_ms = now;
    fprintf(stderr, "%s: loading, %d %%\n", p->id, (int)(share * 100));
}

static bool read_preemption(const cli_options *o, node_preemption *out) {
    static const char *const names[] = {[NODE_PREEMPT_AUTO] = "auto", [NODE_PREEMPT_RECOMPUTE] = "recompute", [NODE_PREEMPT_SWAP] = "swap"};
    for (int i = 0; i < 3; i++)
        if (strcmp(o->preemption, names[i]) == 0) {
            *out = (node_preemption)i;
            return *out != NODE_PREEMPT_SWAP || o->swap_bytes > 0;
        }
    return false;
}

/* A decode node's; a prefill node, which has no such flags, gets none. */
static status open_speculator(const cli_options *o, const node_options *n, decode_speculator **out, error *err) {
    decode_speculate_options options = {.mode = o->speculate,
                                        .tokens_max = (int32_t)o->speculate_tokens,
                                        .fixed = !o->speculate_adapt,
                                        .model = n->model,
                                        .draft = o->draft,
                                        .isa = n->isa,
                                        .device = n->device,
                                        .cache_dir = n->cache_dir,
                                        .threads = n->threads,
                                        .kv_pages = o->draft_pages > 0 ? (int32_t)o->draft_pages : n->kv_pages,
                                        .page_tokens = n->page_tokens,
                                        .kv_type = n->kv_type};
    return decode_speculator_open(&options, out, err);
}

/* Another process has this node's id: it drains as if it had been told to. */
static void drain_displaced(void *ctx, const char *why) {
    (void)why;
    atomic_store((atomic_bool *)ctx, true);
    kill(getpid(), SIGTERM);
}

/* Coordinators on other machines must be able to connect to what is registered. */
static cli_exit check_registry(const cli_options *o, const char *role, bool *etcd) {
    error err = {0};
    char host[256] = "";
    const char *port;
    if (cluster_registry_check(o->registry, etcd, &err) != ST_OK) return cli_usage(role, "--registry: %s", err.text);
    if (*etcd && address_split(o->listen, host, sizeof host, &port) && (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0))
        return cli_usage(role, "--listen '%.60s' with --registry etcd://...: expected an address that others can connect to", o->listen);
    return CLI_OK;
}

/* What a rank's flags say, checked. cache_dir and said belong to the caller and live as long as out. */
static cli_exit read_node_options(const cli_options *o, const char *role, char cache_dir[CLI_PATH_MAX], progress *said, node_options *out) {
    error err = {0};
    eng_kv_type kv_type;
    node_preemption preemption;
    bool etcd;
    cli_exit code = check_registry(o, role, &etcd);
    if (code != CLI_OK) return code;
    const node_schedule *schedule = node_schedule_find(o->schedule);
    if (!schedule) return cli_usage(role, "--schedule '%.40s': expected fcfs, decode-first or mlfq", o->schedule);
    if (!read_preemption(o, &preemption)) return cli_usage(role, "--preemption '%.40s' with --swap-bytes %lld: expected auto, recompute, "
                                                           "or swap with --swap-bytes over 0", o->preemption, (long long)o->swap_bytes);
    if (cli_kv_type("--kv-dtype", o->kv_dtype, &kv_type, &err) != ST_OK) return cli_usage(role, "%s", err.text);
    if (eng_cpus_pin(o->pin, &err) != ST_OK) return cli_usage(role, "%s", err.text);
    *out = (node_options){.id = o->id,
                          .rank = (int)o->rank,
                          .ranks = (int)o->tp,
                          .group = o->group,
                          .role = role,
                          .model = o->model,
                          .listen = o->listen,
                          .kv_listen = o->kv_listen,
                          .kv_transport = o->kv_transport,
                          .isa = o->isa,
                          .device = o->device,
                          .threads = (int)o->threads,
                          .kv_pages = (int32_t)o->kv_pages,
                          .page_tokens = (int32_t)o->page_tokens,
                          .kv_type = kv_type,
                          .sequences_max = (int32_t)o->sequences,
                          .step_tokens_max = (int32_t)o->step_tokens,
                          .chunk_tokens = (int32_t)o->chunk,
                          .schedule = schedule,
                          .itl_target_ms = (int32_t)o->itl_target,
                          .preemption = preemption,
                          .swap_bytes = o->swap_bytes,
                          .prefix_cache = o->prefix_cache,
                          .cache_dir = cli_cache_dir(o, cache_dir),
                          .progress = isatty(STDERR_FILENO) ? show_progress : NULL,
                          .progress_ctx = said,
                          .registry = etcd ? o->registry : NULL};
    return CLI_OK;
}

/* Rank 0: the node's service, until it is asked to stop. */
static cli_exit serve_first(const cli_options *o, node_options *options) {
    static const node_service *const services[] = {&prefill_service, &decode_service};
    error err = {0};
    node_process *p = NULL;
    decode_speculator *speculator = NULL;
    atomic_bool displaced = false;
    options->displaced = drain_displaced;
    options->displaced_ctx = &displaced;
    status st = open_speculator(o, options, &speculator, &err);
    options->speculator = decode_speculator_table(speculator);
    if (st == ST_OK) st = node_process_open(options, services, 2, &p, &err);
    readiness about = {.node = p, .lock = PTHREAD_MUTEX_INITIALIZER};
    http_service *http = NULL;
    if (st == ST_OK) st = open_http(o, &about, &http, &err);
    if (st == ST_OK) {
        say_ready(o, node_process_address(p), node_process_kv_address(p), http);
        asked_to_stop(-1);
        say_stopping(&about);
    }
    if (p) node_process_close(p, st == ST_OK ? (int)o->grace_ms : 0);
    http_close(http);
    decode_speculator_close(speculator);
    if (st != ST_OK) return cli_complain(CLI_FAILED, "%s", err.text);
    if (atomic_load(&displaced)) return cli_complain(CLI_REFUSED, "%s: a later process has this id", o->id);
    return CLI_OK;
}

/* The work of one rank, from its options to the exit code. */
static cli_exit serve_rank(const cli_options *o, const char *role) {
    error err = {0};
    char cache_dir[CLI_PATH_MAX];
    progress said = {.id = o->id, .said_ms = clock_now_ms()};
    node_options options;
    cli_exit code = read_node_options(o, role, cache_dir, &said, &options);
    if (code != CLI_OK) return code;
    if (o->rank == 0) return serve_first(o, &options);
    /* SIGTERM ends it, and the group with it. */
    return node_follow(&options, &err) == ST_OK ? CLI_OK : cli_complain(CLI_FAILED, "%s", err.text);
}

static cli_exit serve_node(const cli_options *o, const cli_command *command) {
    error err = {0};
    cli_options mine = *o;
    cli_ranks others = {.count = 0};
    if (!o->model) return cli_usage(command->name, "--model FILE is missing");
    decode_speculate_options speculate = {.mode = o->speculate, .draft = o->draft};
    if (decode_speculate_check(&speculate, &err) != ST_OK) return cli_usage(command->name, "%s", err.text);
    cli_exit code = cli_ranks_check(o, command->name);
    if (code != CLI_OK) return code;
    code = cli_log_setup(o, command->name, o->id);
    if (code == CLI_OK) code = cli_security_serve(o, command->name, RPC_NODE);
    if (code != CLI_OK) return code;
    if (o->rank == 0) cli_client_hold_signals();
    if (o->tp > 1 && !o->group && cli_ranks_start(&others, command, NULL, &mine, &err) != ST_OK)
        return cli_complain(CLI_FAILED, "%s", err.text);
    code = serve_rank(&mine, command->name);
    cli_ranks_end(&others);
    return code;
}

static cli_exit prefill(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    return serve_node(o, &cli_prefill);
}

static cli_exit decode(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    return serve_node(o, &cli_decode);
}
