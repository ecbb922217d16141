/* top.c -- baton top: the cluster as it works, a screen a second: what each node runs, its pages, and what it did a second
 * since the screen before (differences of its counters).
 *
 * One WatchTopology stream; the last message before a screen is due is drawn. On a terminal the screen is drawn over itself
 * in the alternate buffer, elsewhere screens follow each other, so that `baton top --count 2 | cat` is a measurement. */
#include "cli/cli.h"
#include <string.h>
#include <time.h>
#include <unistd.h>

static cli_exit top(const cli_options *o, const char *const *words, int count);

static const config_row rows[] = {
    CLI_SERVER,
    CLI_CREDENTIAL,
    CLI_INT("interval-ms", interval_ms, "1000", 100, 3600000, "MS", "from one screen to the next"),
    CLI_INT("count", count, "0", 0, 1000000000, "N", "so many screens, then the end; 0: until Ctrl-C"),
};

const cli_command cli_top = {"top", "", "What each process of a cluster does, live.", CLI_ROWS(rows), 0, 0, top};

enum { NODES_MAX = 1024, BAR = 10 };

/* What rates are made of. */
typedef enum sample_kind { TIME, IDLE, PREFILL, DECODE, KV_IN, KV_OUT, HIT, MISS, PROPOSED, ACCEPTED, REQUESTS, TOKENS, FAILED, SAMPLES } sample_kind;

static const struct { const char *name, *labels; } sources[SAMPLES] = {
    [TIME] = {"baton_node_engine_seconds_total", ""},                  /* in microseconds: Counter */
    [IDLE] = {"baton_node_engine_seconds_total", "part=\"idle\""},
    [PREFILL] = {"baton_node_tokens_total", "kind=\"prefill\""},
    [DECODE] = {"baton_node_tokens_total", "kind=\"decode\""},
    [KV_IN] = {"baton_kv_bytes_received_total", ""},
    [KV_OUT] = {"baton_kv_bytes_sent_total", ""},
    [HIT] = {"baton_node_prefix_tokens_total", "result=\"hit\""},
    [MISS] = {"baton_node_prefix_tokens_total", "result=\"miss\""},
    [PROPOSED] = {"baton_node_proposed_tokens_total", ""},
    [ACCEPTED] = {"baton_node_accepted_tokens_total", ""},
    [REQUESTS] = {"baton_requests_total", ""},
    [TOKENS] = {"baton_tokens_total", ""},
    [FAILED] = {"baton_requests_finished_total", "status=\"failed\""},
};

/* One process as of the last screen; of a new epoch: another process. */
typedef struct seen {
    char id[64];
    uint64_t epoch;
    int64_t at_ms, values[SAMPLES];
} seen;

typedef struct screen {
    const cli_options *o;
    bool terminal;
    int drawn;
    int64_t due_ms;
    cli_client *client;
    seen nodes[NODES_MAX];
    int count;
} screen;

static int64_t value_of(const Baton__V1__Node *n, const char *name, const char *labels) {
    int64_t sum = 0;
    for (size_t i = 0; i < n->n_counters; i++)
        if (strcmp(n->counters[i]->name, name) == 0 && strstr(n->counters[i]->labels, labels)) sum += n->counters[i]->value;
    return sum;
}

/* The place of a node's last figures; NULL: there are too many nodes. */
static seen *find(screen *s, const Baton__V1__Node *n) {
    for (int i = 0; i < s->count; i++)
        if (strcmp(s->nodes[i].id, n->id) == 0) return &s->nodes[i];
    if (s->count == NODES_MAX) return NULL;
    seen *fresh = &s->nodes[s->count++];
    *fresh = (seen){.at_ms = 0};
    snprintf(fresh->id, sizeof fresh->id, "%s", n->id);
    return fresh;
}

/* Since the last screen, in all and a second. */
typedef struct change {
    int64_t of[SAMPLES];
    double a_second[SAMPLES];
} change;

static change take(screen *s, const Baton__V1__Node *n, int64_t now_ms) {
    change c = {.of = {0}};
    seen *last = find(s, n);
    if (!last) return c;
    bool known = last->at_ms > 0 && last->epoch == n->epoch;
    double seconds = known && now_ms > last->at_ms ? (double)(now_ms - last->at_ms) / 1e3 : 1;
    for (int k = 0; k < SAMPLES; k++) {
        int64_t value = value_of(n, sources[k].name, sources[k].labels);
        c.of[k] = known ? value - last->values[k] : 0;
        c.a_second[k] = (double)c.of[k] / seconds;
        last->values[k] = value;
    }
    last->epoch = n->epoch;
    last->at_ms = now_ms;
    return c;
}

/* ---- drawing --------------------------------------------------------------------------------------- */

static const char *share(int64_t part, int64_t all, char out[8]) {
    if (all <= 0) snprintf(out, 8, "-");
    else snprintf(out, 8, "%.0f %%", 100.0 * (double)part / (double)all);
    return out;
}

/* '#' what requests hold, '+' what is only cached, '.' what is free. */
static void draw_pages(const Baton__V1__PageCounts *p) {
    char bar[BAR + 1];
    int total = p && p->total > 0 ? p->total : 1;
    int held = p ? (int)(((int64_t)p->pinned * BAR + total - 1) / total) : 0;
    int kept = p ? (int)(((int64_t)p->cached * BAR + total - 1) / total) : 0;
    for (int i = 0; i < BAR; i++) bar[i] = i < held ? '#' : i < held + kept ? '+' : '.';
    bar[BAR] = 0;
    printf("%s %6d/%-6d", bar, p ? p->pinned : 0, p ? p->total : 0);
}

static void draw_node(const Baton__V1__Node *n, const change *c) {
    char busy[8], hits[8], accepted[8];
    printf("%-14.14s %-8.8s %-9.9s %5s %4d %4d  ", n->id, n->role, n->state, share(c->of[TIME] - c->of[IDLE], c->of[TIME], busy),
           n->running, n->waiting);
    draw_pages(n->pages);
    printf(" %8.0f %8.0f %7.1f %7.1f %6s %6s\n", c->a_second[PREFILL], c->a_second[DECODE], c->a_second[KV_IN] / 1e6,
           c->a_second[KV_OUT] / 1e6, share(c->of[HIT], c->of[HIT] + c->of[MISS], hits),
           share(c->of[ACCEPTED], c->of[PROPOSED], accepted));
}

static void draw_coordinator(const Baton__V1__Node *n, const change *c) {
    printf("%-14.14s %-9.9s %.1f requests/s, %.0f tokens/s, %lld waiting, %lld placed, %lld failed\n", n->id, n->state,
           c->a_second[REQUESTS], c->a_second[TOKENS], (long long)value_of(n, "baton_requests_waiting", ""),
           (long long)value_of(n, "baton_requests_placed", ""), (long long)value_of(n, sources[FAILED].name, sources[FAILED].labels));
}

static void draw(screen *s, const Baton__V1__TopologyResult *t, int64_t now_ms) {
    char clock[16];
    time_t now = time(NULL);
    strftime(clock, sizeof clock, "%H:%M:%S", localtime(&now));
    if (s->terminal) fputs("\033[H\033[J", stdout);
    printf("baton top  %s  %s\n\n", cli_client_server(s->client), clock);
    for (size_t i = 0; i < t->n_nodes; i++) {
        if (strcmp(t->nodes[i]->role, "coordinator") != 0) continue;
        change c = take(s, t->nodes[i], now_ms);
        draw_coordinator(t->nodes[i], &c);
    }
    printf("\n%-14s %-8s %-9s %5s %4s %4s  %-*s %8s %8s %7s %7s %6s %6s\n", "NODE", "ROLE", "STATE", "BUSY", "RUN", "WAIT", BAR + 14, "PAGES HELD",
           "READ/s", "WRITE/s", "MB IN/s", "OUT/s", "CACHED", "GUESSED");
    for (size_t i = 0; i < t->n_nodes; i++) {
        if (strcmp(t->nodes[i]->role, "coordinator") == 0) continue;
        change c = take(s, t->nodes[i], now_ms);
        draw_node(t->nodes[i], &c);
    }
    printf("\nBUSY: of the engine's time. READ, WRITE: tokens of prompts, of answers. CACHED: of new prompts' tokens. GUESSED: proposed tokens that were right.%s\n",
           s->terminal ? "  Ctrl-C ends." : "");
    fflush(stdout);
}

static void on_topology(const ProtobufCMessage *m, void *user) {
    screen *s = user;
    int64_t now_ms = clock_now_ms();
    if (now_ms < s->due_ms) return;
    s->due_ms = now_ms + s->o->interval_ms;
    draw(s, (const Baton__V1__TopologyResult *)m, now_ms);
    if (++s->drawn == s->o->count) cli_client_stop(s->client);
}

static cli_exit top(const cli_options *o, const char *const *words, int count) {
    static const rpc_method watch = {.path = "/baton.v1.Cluster/WatchTopology", .kind = RPC_SERVER_STREAM,
                                     .request = &baton__v1__topology_request__descriptor,
                                     .reply = &baton__v1__topology_result__descriptor};
    (void)words;
    (void)count;
    error err = {0};
    int64_t retry_ms = -1;
    Baton__V1__TopologyRequest r = BATON__V1__TOPOLOGY_REQUEST__INIT;
    screen *s = mem_zalloc(1, sizeof *s);
    if (!s) return cli_complain(CLI_FAILED, "no memory");
    s->o = o;
    s->terminal = isatty(STDOUT_FILENO);
    status st = cli_client_open(o, o->server, &s->client, &err);
    if (st != ST_OK) {
        mem_free(s);
        return cli_client_unopened(st, "top", &err);
    }
    if (s->terminal) fputs("\033[?1049h\033[?25l", stdout);          /* alternate buffer, no cursor */
    st = cli_client_call(s->client, &watch, &r.base, 0, on_topology, s, &err, &retry_ms);
    if (s->terminal) fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    cli_client_close(s->client);
    bool ended = st == ST_CANCELED && s->drawn > 0;                 /* by --count or Ctrl-C */
    mem_free(s);
    return ended ? CLI_OK : cli_client_report(st, &err, o->server, retry_ms, false);
}
