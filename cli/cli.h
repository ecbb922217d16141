/* cli.h -- what the files of the executable share: the table of commands and the struct that every option
 * lands in. A command is a row in main.c, its options are rows beside its code. */
#ifndef BATON_CLI_H
#define BATON_CLI_H

#include "base/base.h"
#include "engine/engine.h"
#include "proto/baton.pb-c.h"
#include "rpc/rpc.h"
#include <sys/types.h>

typedef enum cli_exit {
    CLI_OK = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_UNREACHABLE = 3,
    CLI_REFUSED = 4,
} cli_exit;

enum { CLI_PATH_MAX = 4096 };

/* Every option of every command has its place here; each command fills those of its rows. */
typedef struct cli_options {
    const char *model, *listen, *kv_listen, *nodes, *server, *id, *isa, *device, *pin, *kv_dtype, *prompt_kv_dtype, *kv_transport, *prefill_policy, *group, *registry, *http;
    const char *schedule, *preemption;
    const char *log_level, *log_dir, *prompt, *prompt_file, *tokens, *stop, *request_id, *text, *file;
    const char *out, *system, *type, *cache_dir, *only, *svg, *trace, *prompt_lengths, *answer_lengths, *speculate, *draft, *route, *tenant;
    int64_t prefill, decode, tp, prefill_tp, decode_tp, rank, threads, kv_pages, page_tokens, sequences, chunk, step_tokens;
    int64_t itl_target, swap_bytes, priority, speculate_tokens, draft_pages;
    int64_t queue, requests, queue_tokens, tenant_requests, tenant_queue_tokens, tenant_pages, local_tokens, heartbeat_ms, grace_ms, ready_fd, expect_prefill, expect_decode;
    int64_t interval_ms, count;
    int64_t max_tokens, top_k, n, logprobs, prompt_logprobs, timeout_ms, context;
    int64_t burst, shared_tokens, slow_readers, streams, wait_ms;
    const char *seed;
    const char *tls_ca, *tls_cert, *tls_key, *tokens_file, *token_file, *etcd_ca, *etcd_cert, *etcd_key, *dir, *hosts;
    int64_t days;
    double rate, duration, slo_ttft, slo_itl;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    bool insecure, vllm_metrics, prefix_cache, cache, speculate_adapt, json, ignore_eos, explain, chat, special, force, quick, dry_run;
} cli_options;

typedef struct cli_command {
    const char *name;
    const char *words;           /* "NODE ROLE": what follows beside flags */
    const char *about;
    const config_row *rows;
    int rows_count;
    int words_min, words_max;
    cli_exit (*run)(const cli_options *o, const char *const *words, int words_count);
} cli_command;

#define CLI_TEXT(name, field, fallback, value, help) \
    {name, CONFIG_TEXT, CONFIG_AT(const char *, cli_options, field), fallback, 0, 0, value, help}
#define CLI_INT(name, field, fallback, min, max, value, help) \
    {name, CONFIG_INT, CONFIG_AT(int64_t, cli_options, field), fallback, min, max, value, help}
#define CLI_REAL(name, field, fallback, value, help) \
    {name, CONFIG_REAL, CONFIG_AT(double, cli_options, field), fallback, 0, 0, value, help}
#define CLI_SWITCH(name, field, fallback, help) \
    {name, CONFIG_SWITCH, CONFIG_AT(bool, cli_options, field), fallback, 0, 0, NULL, help}

/* Rows that several commands have. */
#define CLI_MODEL CLI_TEXT("model", model, NULL, "FILE", "model file, GGUF")
#define CLI_SERVER                                                                                   \
    CLI_TEXT("server", server, "127.0.0.1:50051", "HOST:PORT,...",                                   \
             "the coordinator to ask; of several, the first that answers, and when it is lost the next goes on with the answer")
#define CLI_TENANT CLI_TEXT("tenant", tenant, NULL, "NAME", "whose request it is: tenants share what there is evenly, and no cached page")
#define CLI_JSON CLI_SWITCH("json", json, NULL, "print one JSON object instead of text")
#define CLI_LOG_LEVEL CLI_TEXT("log-level", log_level, "info", "LEVEL", "error, warn, info or debug; lines go to stderr")
#define CLI_REGISTRY(embedded)                                                                      \
    CLI_TEXT("registry", registry, "embedded", "WHERE",                                             \
             embedded "; or etcd://[USER:PASSWORD@]HOST:PORT,...[/PREFIX]: nodes register there and " \
             "coordinators find them"),                                                             \
    CLI_TEXT("etcd-ca", etcd_ca, NULL, "FILE", "certificates (PEM) of the CA that etcd's must come from, with its host name: TLS"), \
    CLI_TEXT("etcd-cert", etcd_cert, NULL, "FILE", "the certificate that etcd may ask for"),        \
    CLI_TEXT("etcd-key", etcd_key, NULL, "FILE", "its private key")
#define CLI_HTTP(fallback, about)                                                                   \
    CLI_TEXT("http", http, fallback, "HOST:PORT", "where /metrics, /healthz and /readyz are; port 0 takes a free one; " about), \
    CLI_SWITCH("vllm-metrics", vllm_metrics, "true", "/metrics has the vllm:* names, too")
#define CLI_HTTP_AUTO CLI_HTTP("auto", "off: nowhere; auto: " CLI_HTTP_DEFAULT ", or nowhere while another process has that")
#define CLI_HTTP_DEFAULT "127.0.0.1:8000"
#define CLI_GRACE CLI_INT("grace-ms", grace_ms, "10000", 0, 3600000, "MS", "how long accepted work may run on after SIGTERM")
#define CLI_ENGINE                                                                                  \
    CLI_INT("threads", threads, "0", 0, 1024, "N", "threads of a node's engine; 0: its share of the cores"), \
    CLI_TEXT("pin", pin, "auto", "CPUS",                                                            \
             "CPUs that the engine's threads stay on, as 0-3,8; auto: `up` gives its nodes cores of "\
             "their own if they are alone to use the machine; off: wherever the system puts them"), \
    CLI_TEXT("device", device, "cpu", "DEVICE",                                                     \
             "what computes: cpu, cuda (a GPU), or GPUs by index as cuda:0,1: rank r of a node takes its entry r"), \
    CLI_TEXT("isa", isa, "auto", "NAME", "instruction set: auto, amx, avx512, avx2, neon, base or scalar"), \
    CLI_SWITCH("cache", cache, "true", "keep prepared weights in a file that all nodes of the machine map"), \
    CLI_TEXT("cache-dir", cache_dir, NULL, "DIR",                                                   \
             "where that file is; default $XDG_CACHE_HOME/baton, else ~/.cache/baton")
#define CLI_RANK                                                                                    \
    CLI_INT("rank", rank, "0", 0, 15, "R", "with --group: which of the --tp ranks this process is"), \
    CLI_TEXT("group", group, NULL, "HOST:PORT",                                                     \
             "ranks on several machines: each is started by hand, rank 0 listens there; "           \
             "without it a process starts its ranks itself")
#define CLI_TP CLI_INT("tp", tp, "1", 1, 16, "N", "ranks of a node: processes that share the model (tensor parallelism)")
#define CLI_KV_DTYPE                                                                                \
    CLI_TEXT("kv-dtype", kv_dtype, "f16", "TYPE", "element of a page: f32, f16, bf16 or q8_0")
#define CLI_PAGES                                                                                   \
    CLI_INT("kv-pages", kv_pages, "1024", 1, 2147483647, "N", "KV pages of a node"),                \
    CLI_INT("page-tokens", page_tokens, "16", 1, 4096, "N", "tokens a page holds"),                 \
    CLI_KV_DTYPE,                                                                                   \
    CLI_TEXT("kv-transport", kv_transport, "tcp", "NAME",                                            \
             "how KV pages travel, the same on all nodes: tcp; shm, between processes of one machine; ucx, over RDMA " \
             "or what else UCX finds, for trusted networks only: any peer is believed. With --tls-cert pages are sealed over tcp and ucx"),   \
    CLI_SWITCH("prefix-cache", prefix_cache, "true", "keep prompts' pages for later requests"),     \
    CLI_INT("sequences", sequences, "64", 1, 65536, "N", "requests a node takes at once; more are refused"), \
    CLI_INT("step-tokens", step_tokens, "512", 1, 65536, "N", "most rows of one step"),             \
    CLI_INT("chunk", chunk, "0", 0, 65536, "N", "most prompt tokens of one request in a step; 0: what the step takes"), \
    CLI_TEXT("schedule", schedule, "decode-first", "NAME",                                          \
             "who goes first: fcfs, decode-first (answers' tokens, then prompts in chunks) or mlfq (short answers)"), \
    CLI_INT("itl-target", itl_target, "0", 0, 3600000, "MS",                                        \
            "decode-first, mlfq: chunks are cut so that a step with answers' tokens in it takes no longer; "\
            "0: 1.4 times what it takes without prompts"),                                          \
    CLI_TEXT("preemption", preemption, "auto", "HOW",                                               \
             "KV of a preempted answer: recompute, swap (to host memory) or auto (what measured cheaper)"), \
    CLI_INT("swap-bytes", swap_bytes, "0", 0, 1LL << 50, "N",                                       \
            "host memory of a node for KV of preempted answers; 0: none, they are computed again")
#define CLI_SPECULATE                                                                               \
    CLI_TEXT("draft", draft, NULL, "FILE",                                                          \
             "a smaller model with the same vocabulary, GGUF: decode nodes let it write ahead and check its tokens together"), \
    CLI_INT("draft-pages", draft_pages, "0", 0, 2147483647, "N", "KV pages of the draft model; 0: as --kv-pages says"), \
    CLI_TEXT("speculate", speculate, "auto", "MODE",                                                \
             "who proposes tokens that the model checks together, same bytes: off, ngram (prompt lookup: what followed " \
             "the same words before), draft (the model of --draft), lookahead (Jacobi: the model's own guesses), or "    \
             "auto: draft if there is one, else ngram"), \
    CLI_INT("speculate-tokens", speculate_tokens, "15", 1, 15, "N",                                 \
            "most tokens proposed to a request in a step"),                                                 \
    CLI_SWITCH("speculate-adapt", speculate_adapt, "true",                                          \
               "propose as many as measured times and acceptance say, and none where that gains nothing; "  \
               "without it always as many as can be")
#define CLI_COORDINATOR                                                                             \
    CLI_TEXT("prefill-policy", prefill_policy, "auto", "POLICY",                                    \
             "where prompts are read: auto, local (decode node) or remote (prefill node)"),         \
    CLI_TEXT("route", route, "cost", "POLICY",                                                      \
             "which nodes a request goes to: cost (the least expected time, by measured rates and what nodes " \
             "cache), round-robin, least-loaded or prefix-hash (prompts that begin alike together)"), \
    CLI_INT("local-tokens", local_tokens, "32", 0, 2147483647, "N",                                 \
            "auto: so few uncached tokens are read on the decode node; --route cost works the number out "  \
            "and needs this one only until rates were measured"),                                   \
    CLI_INT("queue", queue, "1024", 0, 1048576, "N", "requests that may wait for a place; more are refused"), \
    CLI_INT("queue-tokens", queue_tokens, "4194304", 1, 1e15, "N",                                  \
            "prompt tokens that may wait for a place; more are refused"),                           \
    CLI_INT("requests", requests, "4096", 1, 1048576, "N", "requests alive at once"),               \
    CLI_INT("tenant-requests", tenant_requests, "1048576", 1, 1048576, "N",                         \
            "requests of one tenant (header baton-tenant) alive at once"),                          \
    CLI_INT("tenant-queue-tokens", tenant_queue_tokens, "4194304", 1, 1e15, "N",                    \
            "prompt tokens of one tenant that may wait for a place"),                               \
    CLI_INT("tenant-pages", tenant_pages, "1000000000", 1, 1e15, "N",                               \
            "KV pages that one tenant's requests may take together, prompt and --max-tokens; more wait until some end"), \
    CLI_INT("heartbeat-ms", heartbeat_ms, "500", 10, 60000, "MS", "a node silent for three of these is lost")

/* Of processes that listen. */
#define CLI_TLS                                                                                     \
    CLI_TEXT("tls-ca", tls_ca, NULL, "FILE", "certificates (PEM) of the CA that others' must come from; `baton certs` makes one"), \
    CLI_TEXT("tls-cert", tls_cert, NULL, "FILE", "this process's certificate: TLS, and nobody is let in without a credential"), \
    CLI_TEXT("tls-key", tls_key, NULL, "FILE", "its private key; new files are taken up while it runs"), \
    CLI_SWITCH("insecure", insecure, NULL,                                                          \
               "lets what is not protected be beyond loopback: --http, ranks' sums, --kv-transport ucx and, without --tls-cert, calls " \
               "and KV pages, which with --tls-cert stay encrypted; only on a network that nobody else reaches")
#define CLI_TOKENS                                                                                  \
    CLI_TEXT("tokens-file", tokens_file, NULL, "FILE",                                              \
             "who is let in by a bearer token: lines of TOKEN TENANT [admin]; TOKEN may be sha256:HEX")
/* Of those that call a coordinator. */
#define CLI_CREDENTIAL                                                                              \
    CLI_TEXT("tls-ca", tls_ca, NULL, "FILE", "certificates (PEM) of the CA that the coordinator's must come from: TLS"), \
    CLI_TEXT("tls-cert", tls_cert, NULL, "FILE", "the caller's certificate, a client's or an admin's"), \
    CLI_TEXT("tls-key", tls_key, NULL, "FILE", "its private key"),                                  \
    CLI_TEXT("token-file", token_file, NULL, "FILE", "a file with the caller's bearer token, instead of a certificate")

#define CLI_ROWS(rows) rows, (int)(sizeof rows / sizeof *rows)

extern const cli_command cli_up, cli_coordinator, cli_prefill, cli_decode, cli_generate, cli_chat;
extern const cli_command cli_nodes, cli_top, cli_drain, cli_undrain, cli_role, cli_certs;
extern const cli_command cli_bench, cli_tokenize, cli_perplexity, cli_logits, cli_quantize;
extern const cli_command *const cli_commands[];
extern const int cli_commands_count;

/* ---- child.c -------------------------------------------------------------------------------------- */

typedef struct cli_child {
    const cli_command *command;
    const char *word;            /* beside its flags; NULL: none */
    const cli_options *options;  /* its flags: every row of the command whose value is not NULL */
    const char *log;             /* file that gets its stderr; NULL: this process's */
    int keep_fd;                 /* a descriptor it gets beside 0, 1 and 2; -1: none */
    int stdout_fd;               /* what its stdout is; 0: its stderr */
} cli_child;

/* This same executable as a child that dies with the calling thread. -1: errno says why. */
pid_t cli_child_start(const cli_child *c);

/* ---- ranks.c -------------------------------------------------------------------------------------- */

/* The other ranks of this node, started by it: `--tp N` without --group. */
typedef struct cli_ranks {
    pid_t pid[16];
    int count;
    char group[20];
} cli_ranks;

/* word: what follows the command, NULL: nothing. Shares threads and CPUs out (--threads, --pin), starts ranks 1 and up,
 * and makes *o rank 0's. */
status cli_ranks_start(cli_ranks *r, const cli_command *command, const char *word, cli_options *o, error *err);
/* --tp, --rank and --group fit each other. */
cli_exit cli_ranks_check(const cli_options *o, const char *command);
/* They were dismissed: waits a moment, then kills. */
void cli_ranks_end(cli_ranks *r);

/* ---- local.c -------------------------------------------------------------------------------------- */

/* A cluster that lives as long as the command: `baton up` as a child. */
typedef struct cli_local {
    pid_t pid;                   /* -1: none */
    char server[300];            /* where its coordinator listens */
} cli_local;

/* --model and what else the command shares with `baton up`; returns when the cluster serves. */
status cli_local_start(cli_local *l, const cli_options *o, error *err);
void cli_local_stop(cli_local *l);           /* drains it and waits */

/* ---- model.c ------------------------------------------------------------------------------------- */

/* Where prepared weights are kept, by --cache and --cache-dir; NULL: nowhere. The text may be in out. */
const char *cli_cache_dir(const cli_options *o, char out[CLI_PATH_MAX]);

/* ---- help.c -------------------------------------------------------------------------------------- */

void cli_help_all(FILE *out);
void cli_help_command(FILE *out, const cli_command *c);
/* The README's tables of flags. */
void cli_help_markdown(FILE *out);

/* ---- main.c -------------------------------------------------------------------------------------- */

/* One line on stderr: `baton: text`. */
cli_exit cli_complain(cli_exit code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* What a missing or contradicting flag gets: the line, and where to read on. */
cli_exit cli_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* ST_BAD_INPUT names the flag and the types there are. */
status cli_kv_type(const char *flag, const char *name, eng_kv_type *out, error *err);
cli_exit cli_log_setup(const cli_options *o, const char *command, const char *process);

/* ---- notify.c ------------------------------------------------------------------------------------ */

void cli_notify(const char *state);          /* to systemd: "READY=1", "STOPPING=1" */

/* ---- security.c ---------------------------------------------------------------------------------- */

/* What --tls-ca and its like say, for every server and channel of this process. roles: what it is (RPC_NODE, ...). On
 * failure it has been said. */
cli_exit cli_security_serve(const cli_options *o, const char *command, unsigned roles);
/* The same for a client of a coordinator. */
status cli_security_call(const cli_options *o, error *err);

/* ---- client.c ------------------------------------------------------------------------------------ */

/* Connections to coordinators; the calling thread is their loop's. Ctrl-C cancels what runs. */
typedef struct cli_client cli_client;

/* servers: "HOST:PORT,HOST:PORT". o: the caller's credential and tenant; NULL: they are a cluster of this process's own. */
status cli_client_open(const cli_options *o, const char *servers, cli_client **out, error *err);
void cli_client_close(cli_client *c);
/* It did not open: said in one line, as a wrong flag's value or as a failure. */
cli_exit cli_client_unopened(status st, const char *command, const error *err);
/* One call, messages given to on_message as they come; returns when it has ended. ST_PEER_LOST: every server was asked, or
 * the one that had answered was lost; the next call asks the one behind it. ST_CANCELED: Ctrl-C. */
status cli_client_call(cli_client *c, const rpc_method *method, const ProtobufCMessage *request,
                       int64_t timeout_ms, void (*on_message)(const ProtobufCMessage *m, void *user),
                       void *user, error *err, int64_t *retry_after_ms);
const char *cli_client_server(const cli_client *c);      /* the one that the next call asks first */
void cli_client_next(cli_client *c);                     /* that is another one now */
bool cli_client_interrupted(const cli_client *c);        /* the last call, by Ctrl-C */
/* For a command that makes calls of its own: from now on Ctrl-C runs fn(arg) on the loop; NULL: as before. */
void cli_client_on_interrupt(cli_client *c, void (*fn)(void *arg), void *arg);
/* Ends the call in hand as Ctrl-C does. On the loop, while there is one. */
void cli_client_stop(cli_client *c);
rpc_loop *cli_client_loop(cli_client *c);
rpc_channel *cli_client_channel(cli_client *c);
/* The exit code for how a call ended, said on stderr in one line. started: part of the answer came. */
cli_exit cli_client_report(status st, const error *err, const char *server, int64_t retry_after_ms,
                           bool started);
/* From now on SIGINT and SIGTERM do not end the process by themselves. Before any thread is made. */
void cli_client_hold_signals(void);

/* ---- bench.c ------------------------------------------------------------------------------------- */

/* The file of --svg. */
status cli_svg_open(const char *path, FILE **out, error *err);
status cli_svg_close(FILE *out, const char *path, error *err);

/* ---- bench_load.c -------------------------------------------------------------------------------- */

cli_exit cli_bench_load(const cli_options *o);

/* ---- answer.c ------------------------------------------------------------------------------------ */

/* What came of a Generate call so far. */
typedef struct cli_answers cli_answers;

cli_answers *cli_answers_create(const cli_options *o);       /* NULL: no memory */
void cli_answers_take(const ProtobufCMessage *chunk, void *answers);         /* for cli_client_call() */
bool cli_answers_started(const cli_answers *w);
/* The call ended with st; gives how the command ends. */
status cli_answers_print(cli_answers *w, status st, error *err);
void cli_answers_destroy(cli_answers *w);

/* ---- resume.c ------------------------------------------------------------------------------------ */

/* A Generate call, as cli_client_call(); when its stream breaks it goes on at another coordinator, and on_message gets the
 * chunks that are missing. ST_PEER_LOST: none of them could go on with it. */
status cli_resume_call(cli_client *c, const Baton__V1__GenerateRequest *request, int64_t timeout_ms,
                       void (*on_message)(const ProtobufCMessage *m, void *user), void *user, error *err,
                       int64_t *retry_after_ms);

/* ---- nodes.c ------------------------------------------------------------------------------------- */

extern const rpc_method cli_topology_method;

/* ---- generate.c, chat.c -------------------------------------------------------------------------- */

extern const rpc_method cli_generate_method;
/* text NULL leaves *out alone. ST_BAD_INPUT names the flag. */
status cli_parse_seed(const char *text, uint64_t *out, error *err);
/* Comma-separated ids; *ids is from arena. ST_BAD_INPUT names the place. */
status cli_parse_tokens(const char *text, arena *a, int32_t **ids, size_t *count, error *err);
status cli_read_file(const char *path, arena *a, char **text, size_t *bytes, error *err);

#endif
