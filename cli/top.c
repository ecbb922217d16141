/* top.c -- baton top: the cluster as it works, a screen a second: what each node runs, its pages, and what it did a second
 * since the screen before (differences of its counters).
 *
 * One WatchTopology stream; the last message before a screen is due is drawn. On a terminal the screen is drawn over itself
 * in the alternate buffer, elsewhere screens follow each other, so that `baton top --count 2 | cat` is a measurement.
 *
 * The first screen, and the first with a new process, has "-" for what is a difference. It does not wait for a second
 * sample: that would leave the terminal empty for an interval, and for ever where there is no node, since the next message
 * comes when a node says something.
 *
 * Lines are never longer than the terminal: all columns take 100, a narrower one goes without those on the right. */
#include "cli/cli.h"
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static cli_exit top(const cli_options *o, const char *const *words, int count);

static const config_row rows[] = {
    CLI_SERVER,
    CLI_CREDENTIAL,
    CLI_INT("interval-ms", interval_ms, "1000", 100, 3600000, "MS", "from one screen to the next"),
    CLI_INT("count", count, "0", 0, 1000000000, "N", "so many screens, then the end; 0: until Ctrl-C. The first has no rates yet"),
};

const cli_command cli_top = {
    "top", "",
    "What each node of a cluster does, and of its coordinators the one that was asked, live. As wide as the terminal "
    "(elsewhere COLUMNS, or 100): a narrow one goes without the last columns.",
    CLI_ROWS(rows), 0, 0, top};

enum { NODES_MAX = 1024, WIDTH = 100, WIDTH_MIN = 20, CELL = 24, BAR = 6 };

/* What rates are made of. */
typedef enum sample_kind {
    TIME, IDLE, PREFILL, DECODE, KV_IN, KV_OUT, HIT, MISS, PROPOSED, ACCEPTED,      /* a node's */
    REQUESTS, TOKENS, FAILED, FIRST_TIME, FIRST_COUNT, GAP_TIME, GAP_COUNT,         /* a coordinator's */
    SAMPLES
} sample_kind;

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
    [FIRST_TIME] = {"baton_time_to_first_token_seconds_sum", ""},
    [FIRST_COUNT] = {"baton_time_to_first_token_seconds_count", ""},
    [GAP_TIME] = {"baton_inter_token_latency_seconds_sum", ""},
    [GAP_COUNT] = {"baton_inter_token_latency_seconds_count", ""},
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
    bool known;                  /* there was one with this process */
    int64_t of[SAMPLES];
    double a_second[SAMPLES];
} change;

static change take(screen *s, const Baton__V1__Node *n, int64_t now_ms) {
    change c = {.of = {0}};
    seen *last = find(s, n);
    if (!last) return c;
    c.known = last->at_ms > 0 && last->epoch == n->epoch;
    double seconds = c.known && now_ms > last->at_ms ? (double)(now_ms - last->at_ms) / 1e3 : 1;
    for (int k = 0; k < SAMPLES; k++) {
        int64_t value = value_of(n, sources[k].name, sources[k].labels);
        c.of[k] = c.known ? value - last->values[k] : 0;
        c.a_second[k] = (double)c.of[k] / seconds;
        last->values[k] = value;
    }
    last->epoch = n->epoch;
    last->at_ms = now_ms;
    return c;
}

/* ---- cells ----------------------------------------------------------------------------------------- */

typedef enum column { NODE, ROLE, STATE, BUSY, RUN, WAIT, PAGES, READ, WRITE, CACHED, GUESSED, IN, OUT, COLUMNS } column;

/* The least important ones last: those go first where there is no room. */
static const struct { const char *head; int width; const char *meaning; } columns[COLUMNS] = {
    [NODE] = {"NODE", 10, NULL},                 /* at least */
    [ROLE] = {"ROLE", 7, NULL},
    [STATE] = {"STATE", 8, NULL},
    [BUSY] = {"BUSY", 4, "of the engine's time"},
    [RUN] = {"RUN", 3, "requests in the batch"},
    [WAIT] = {"WAIT", 4, "admitted, not yet in it"},
    [PAGES] = {"PAGES HELD", BAR + 10, "KV pages, # that requests hold, + only cached, . free; held/all"},
    [READ] = {"READ/s", 6, "tokens of prompts computed"},
    [WRITE] = {"WRITE/s", 7, "tokens of answers"},
    [CACHED] = {"CACHED", 6, "of new prompts' tokens"},
    [GUESSED] = {"GUESSED", 7, "proposed tokens that were right"},
    [IN] = {"IN", 5, "MB/s of KV received"},
    [OUT] = {"OUT", 5, "MB/s of KV sent"},
};

/* In so many characters: thousands and millions are cut off where there are more. */
static const char *brief(int64_t n, int width, char out[CELL]) {
    const char *unit = " kMGT";
    snprintf(out, CELL, "%lld", (long long)n);
    while ((int)strlen(out) > width && unit[1]) snprintf(out, CELL, "%lld%c", (long long)(n /= 1000), *++unit);
    return out;
}

static void fill_share(int64_t part, int64_t all, char out[CELL]) {
    if (all <= 0) snprintf(out, CELL, "-");
    else snprintf(out, CELL, "%.0f%%", 100.0 * (double)part / (double)all);
}

static void fill_megabytes(double bytes, char out[CELL]) {
    if (bytes < 999.95e6) snprintf(out, CELL, "%.1f", bytes / 1e6);
    else brief((int64_t)(bytes / 1e6), columns[IN].width, out);
}

static void fill_pages(const Baton__V1__PageCounts *p, char out[CELL]) {
    char bar[BAR + 1], held[CELL], all[CELL];
    int total = p && p->total > 0 ? p->total : 1;
    int pinned = p ? (int)(((int64_t)p->pinned * BAR + total - 1) / total) : 0;
    int kept = p ? (int)(((int64_t)p->cached * BAR + total - 1) / total) : 0;
    for (int i = 0; i < BAR; i++) bar[i] = i < pinned ? '#' : i < pinned + kept ? '+' : '.';
    bar[BAR] = 0;
    snprintf(out, CELL, "%s %4.4s/%-4.4s", bar, brief(p ? p->pinned : 0, 4, held), brief(p ? p->total : 0, 4, all));
}

/* The end of a name tells nodes apart. */
static void fill_name(const char *id, int width, char out[CELL]) {
    int bytes = (int)strlen(id);
    if (bytes <= width) snprintf(out, CELL, "%s", id);
    else snprintf(out, CELL, "~%s", id + bytes - width + 1);
}

static void fill_cell(column k, int width, const Baton__V1__Node *n, const change *c, char out[CELL]) {
    snprintf(out, CELL, "-");
    switch (k) {
    case NODE: fill_name(n->id, width, out); break;
    case ROLE: snprintf(out, CELL, "%.*s", width, *n->role ? n->role : "-"); break;
    case STATE: snprintf(out, CELL, "%.*s", width, n->state); break;
    case BUSY: fill_share(c->of[TIME] - c->of[IDLE], c->of[TIME], out); break;
    case RUN: brief(n->running, width, out); break;
    case WAIT: brief(n->waiting, width, out); break;
    case PAGES: fill_pages(n->pages, out); break;
    case CACHED: fill_share(c->of[HIT], c->of[HIT] + c->of[MISS], out); break;
    case GUESSED: fill_share(c->of[ACCEPTED], c->of[PROPOSED], out); break;
    case READ: if (c->known) brief((int64_t)(c->a_second[PREFILL] + 0.5), width, out); break;
    case WRITE: if (c->known) brief((int64_t)(c->a_second[DECODE] + 0.5), width, out); break;
    case IN: if (c->known) fill_megabytes(c->a_second[KV_IN], out); break;
    case OUT: if (c->known) fill_megabytes(c->a_second[KV_OUT], out); break;
    case COLUMNS: break;
    }
}

/* ---- lines ----------------------------------------------------------------------------------------- */

/* What fits into a line: the first columns, and names as long as the room that is left. */
typedef struct layout {
    int width, name;
    column shown;
} layout;

static bool is_coordinator(const Baton__V1__Node *n) { return strcmp(n->role, "coordinator") == 0; }

static int screen_width(void) {
    struct winsize size = {.ws_col = 0};
    const char *variable = getenv("COLUMNS");
    int width = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
    if (width == 0 && variable) width = atoi(variable);
    if (width <= 0) width = WIDTH;
    return width < WIDTH_MIN ? WIDTH_MIN : width;
}

static layout fit(const Baton__V1__TopologyResult *t, int width) {
    layout l = {.width = width, .shown = ROLE, .name = columns[NODE].width};
    int longest = 0, left = width - l.name;
    for (; l.shown < COLUMNS && left > columns[l.shown].width; l.shown++) left -= 1 + columns[l.shown].width;
    for (size_t i = 0; i < t->n_nodes; i++)
        if (!is_coordinator(t->nodes[i]) && (int)strlen(t->nodes[i]->id) > longest) longest = (int)strlen(t->nodes[i]->id);
    if (longest >= CELL) longest = CELL - 1;
    if (longest > l.name) l.name = longest < l.name + left ? longest : l.name + left;
    return l;
}

/* Words, each behind a space; lines but the first are indented. at: where the first one begins. */
static void print_wrapped(const char *text, int at, int indent, int width) {
    printf("%*s", at, "");
    for (const char *gap = ""; *text; gap = " ") {
        int bytes = (int)strcspn(text, " ");
        bool breaks = *gap && at + 1 + bytes > width;
        if (breaks) printf("\n%*s", indent, "");
        at = bytes + (breaks ? indent : at + (int)strlen(gap));
        printf("%s%.*s", breaks ? "" : gap, bytes, text);
        text += bytes;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_cell(const layout *l, column k, const char *text) {
    bool words = k == NODE || k == ROLE || k == STATE || k == PAGES;
    int width = k == NODE ? l->name : columns[k].width;
    printf("%*s%s", words ? -width : width, text, k + 1 < l->shown ? " " : "\n");
}

static void draw_node(const layout *l, const Baton__V1__Node *n, const change *c) {
    char cell[CELL];
    for (column k = 0; k < l->shown; k++) {
        fill_cell(k, k == NODE ? l->name : columns[k].width, n, c, cell);
        print_cell(l, k, cell);
    }
}

static void fill_mean(int64_t us, int64_t count, char out[CELL]) {
    if (count <= 0) snprintf(out, CELL, "-");
    else snprintf(out, CELL, "%.1f ms", (double)us / (double)count / 1e3);
}

/* What is, with a total; then what happened since the last screen. */
static void draw_coordinator(const layout *l, const Baton__V1__Node *n, const change *c) {
    char line[256], requests[CELL] = "-", tokens[CELL] = "-", first[CELL], gap[CELL];
    snprintf(line, sizeof line, "%.64s %s: %lld requests waiting, %lld placed; %lld failed since its start", n->id, n->state,
             (long long)value_of(n, "baton_requests_waiting", ""), (long long)value_of(n, "baton_requests_placed", ""),
             (long long)value_of(n, sources[FAILED].name, sources[FAILED].labels));
    print_wrapped(line, 0, 2, l->width);
    if (c->known) {
        snprintf(requests, CELL, "%.1f", c->a_second[REQUESTS]);
        snprintf(tokens, CELL, "%.0f", c->a_second[TOKENS]);
    }
    fill_mean(c->of[FIRST_TIME], c->of[FIRST_COUNT], first);
    fill_mean(c->of[GAP_TIME], c->of[GAP_COUNT], gap);
    snprintf(line, sizeof line, "%s requests/s in, %s tokens/s out, mean TTFT %s, mean ITL %s", requests, tokens, first, gap);
    print_wrapped(line, 2, 2, l->width);
}

static void draw_legend(const screen *s, const layout *l) {
    char text[1024] = "";
    FILE *out = fmemopen(text, sizeof text, "w");
    if (!out) return;
    for (column k = 0; k < l->shown; k++)
        if (columns[k].meaning) fprintf(out, "%s: %s. ", columns[k].head, columns[k].meaning);
    if (l->shown < COLUMNS) fputs("Left out, too narrow for:", out);
    for (column k = l->shown; k < COLUMNS; k++) fprintf(out, " %s%s", columns[k].head, k + 1 < COLUMNS ? "," : ". ");
    fprintf(out, "-: nothing to tell.%s", s->terminal ? " Ctrl-C ends." : "");
    fclose(out);
    print_wrapped(text, 0, 0, l->width);
}

static void draw(screen *s, const Baton__V1__TopologyResult *t, int64_t now_ms) {
    char clock[16];
    time_t now = time(NULL);
    layout l = fit(t, screen_width());
    strftime(clock, sizeof clock, "%H:%M:%S", localtime(&now));
    if (s->terminal) fputs("\033[H\033[J", stdout);
    printf("baton top  %.*s  %s\n\n", l.width > 40 ? l.width - 21 : 0, cli_client_server(s->client), clock);
    for (size_t i = 0; i < t->n_nodes; i++) {
        if (!is_coordinator(t->nodes[i])) continue;
        change c = take(s, t->nodes[i], now_ms);
        draw_coordinator(&l, t->nodes[i], &c);
    }
    putchar('\n');
    for (column k = 0; k < l.shown; k++) print_cell(&l, k, columns[k].head);
    for (size_t i = 0; i < t->n_nodes; i++) {
        if (is_coordinator(t->nodes[i])) continue;
        change c = take(s, t->nodes[i], now_ms);
        draw_node(&l, t->nodes[i], &c);
    }
    putchar('\n');
    draw_legend(s, &l);
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
