/* figures.c -- what a coordinator counts of its requests, for /metrics. Times are the client's: from the request's arrival
 * here. The buckets are those that vLLM has, so that http/aliases.c can give them its names. A branch of n counts as a
 * request of its own. */
#include "coordinator/service.h"
#include <string.h>

static const double first_s[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560};
static const double token_s[] = {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
static const double request_s[] = {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};

METRIC_BUCKETS(first, "baton_time_to_first_token_seconds", NULL, first_s, "arrival to the first token");
METRIC_BUCKETS(between, "baton_inter_token_latency_seconds", NULL, token_s, "between two pieces of an answer");
METRIC_BUCKETS(mean, "baton_time_per_output_token_seconds", NULL, token_s, "mean time between an answer's tokens");
METRIC_BUCKETS(whole, "baton_request_seconds", NULL, request_s, "arrival to the last token");
METRIC_BUCKETS(queue, "baton_request_queue_seconds", NULL, request_s, "arrival to its placing");
METRIC_BUCKETS(prefill, "baton_request_prefill_seconds", NULL, request_s, "reading the prompt");
METRIC_BUCKETS(transfer, "baton_request_kv_transfer_seconds", NULL, request_s, "first KV page sent to last one held, where a prefill node read the prompt");
METRIC_BUCKETS(decode, "baton_request_decode_seconds", NULL, request_s, "first token to the last");
METRIC(prompt_tokens, "baton_prompt_tokens_total", NULL, METRIC_COUNTER, "prompt tokens of answered requests");
METRIC(moves, "baton_migrations_total", NULL, METRIC_COUNTER, "answers that were moved off a decode node while they ran");
METRIC(waiting, "baton_requests_waiting", NULL, METRIC_GAUGE, "requests that wait for a place");
METRIC(waiting_tokens, "baton_requests_waiting_tokens", NULL, METRIC_GAUGE, "prompt tokens that wait for a place");
METRIC(placed, "baton_requests_placed", NULL, METRIC_GAUGE, "requests that nodes work on");
METRIC(disagreements, "baton_disagreements_total", NULL, METRIC_COUNTER,
       "answers given up because two nodes said different tokens for one place: never, while all is well");
METRIC(ready_prefill, "baton_nodes_ready", "role=\"prefill\"", METRIC_GAUGE, "nodes that take requests");
METRIC(ready_decode, "baton_nodes_ready", "role=\"decode\"", METRIC_GAUGE, "nodes that take requests");
METRIC(held_out, "baton_nodes_held_out_total", NULL, METRIC_COUNTER, "times that a node was held out because it flaps");

#define ANSWERS(var, reason_) METRIC(var, "baton_answers_total", "reason=\"" reason_ "\"", METRIC_COUNTER, "answers that ended, by reason")
ANSWERS(answers_stop, "stop");
ANSWERS(answers_length, "length");
ANSWERS(answers_abort, "abort");
ANSWERS(answers_refused, "refused");
ANSWERS(answers_error, "error");

/* ---- placed another time, and what that cost --------------------------------------------------------------- */

#define AGAIN(cause_) {.name = "baton_placed_again_total", .labels = "cause=\"" cause_ "\"", .kind = METRIC_COUNTER,    \
                       .help = "times that a request went back to be placed another time: its attempt failed with "     \
                               "that status (again: the node was full), it was moved, its pages were slow, or no "      \
                               "prefill node was left"}
/* What a node calls device or io comes over gRPC as internal. */
static metric again[COORD_AGAIN_CAUSES] = {
    [ST_AGAIN] = AGAIN("again"),
    [ST_CANCELED] = AGAIN("canceled"),
    [ST_PEER_LOST] = AGAIN("peer_lost"),
    [ST_PEER_STALE] = AGAIN("peer_stale"),
    [ST_CORRUPT] = AGAIN("corrupt"),
    [ST_NO_MEMORY] = AGAIN("no_memory"),
    [ST_INTERNAL] = AGAIN("internal"),
    [COORD_AGAIN_MOVED] = AGAIN("moved"),
    [COORD_AGAIN_SLOW] = AGAIN("slow"),
    [COORD_AGAIN_NO_PREFILL] = AGAIN("no_prefill"),
};

static const double gap_s[] = {.005, .01, .025, .05, .1, .25, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60};
#define GAP(var, after_)                                                                                                \
    METRIC_BUCKETS(var, "baton_failover_gap_seconds", "after=\"" after_ "\"", gap_s,                                    \
                   "between two pieces of an answer of different attempts: what its client saw of a failover or a move")
GAP(gap_failure, "failure");
GAP(gap_move, "move");

#define COMPUTED_AGAIN(var, of_)                                                                                        \
    METRIC(var, "baton_tokens_computed_again_total", "of=\"" of_ "\"", METRIC_COUNTER,                                  \
           "tokens of prompts and of answers whose KV a node computed though an earlier attempt had")
COMPUTED_AGAIN(again_prompt, "prompt");
COMPUTED_AGAIN(again_answer, "answer");

/* ---- why a node was chosen ------------------------------------------------------------------------------------ */

#define CHOSEN(role_, reason_) {.name = "baton_placements_total", .kind = METRIC_COUNTER,                               \
                                .labels = "role=\"" role_ "\",reason=\"" reason_ "\"",                                  \
                                .help = "requests given to a node, by why to that one: nobody caches more of the "      \
                                        "prompt, its load, it was the only one, the route policy; to prefill nodes "    \
                                        "also: the decode node read it itself (local), it has the pages (holder)"}
static metric chosen[COORD_DECODE + 1][COORD_REASONS] = {
    [COORD_DECODE] = {[COORD_REASON_CACHE] = CHOSEN("decode", "cache"), [COORD_REASON_LOAD] = CHOSEN("decode", "load"),
                      [COORD_REASON_ONLY] = CHOSEN("decode", "only"), [COORD_REASON_POLICY] = CHOSEN("decode", "policy")},
    [COORD_PREFILL] = {[COORD_REASON_CACHE] = CHOSEN("prefill", "cache"), [COORD_REASON_LOAD] = CHOSEN("prefill", "load"),
                       [COORD_REASON_ONLY] = CHOSEN("prefill", "only"), [COORD_REASON_POLICY] = CHOSEN("prefill", "policy"),
                       [COORD_REASON_LOCAL] = CHOSEN("prefill", "local"), [COORD_REASON_HOLDER] = CHOSEN("prefill", "holder")},
};

/* ---- one for each link, one for each tenant --------------------------------------------------------------------- */

enum { LINK_BYTES, LINK_HIDDEN, LINK_EXPOSED, LINK_METRICS };
enum { TENANT_REQUESTS, TENANT_QUEUE, TENANT_METRICS, TENANTS_MAX = 256 };

static const char link_seconds_help[] = "how long KV pages moved from one node to another, hidden behind computing the prompt or not";
static const metric link_metrics[LINK_METRICS] = {
    {.name = "baton_link_kv_bytes_total", .kind = METRIC_COUNTER, .help = "bytes of KV pages moved from one node to another"},
    {.name = "baton_link_kv_seconds_total", .labels = "part=\"hidden\"", .kind = METRIC_SECONDS, .help = link_seconds_help},
    {.name = "baton_link_kv_seconds_total", .labels = "part=\"exposed\"", .kind = METRIC_SECONDS, .help = link_seconds_help},
};
static const metric tenant_metrics[TENANT_METRICS] = {
    {.name = "baton_tenant_requests_total", .kind = METRIC_COUNTER,
     .help = "requests that left the queue, by the name in their credential; none: without one, or too many names"},
    {.name = "baton_tenant_queue_seconds_total", .kind = METRIC_SECONDS, .help = "how long those had waited to be placed"},
};
static coord_series links = {.metrics = link_metrics, .count = LINK_METRICS, .rows_max = COORD_ROWS_MAX,
                             .rest_labels = "from=\"other\",to=\"other\""};
static coord_series tenants = {.metrics = tenant_metrics, .count = TENANT_METRICS, .rows_max = TENANTS_MAX,
                               .rest_labels = "tenant=\"\""};

bool coord_figures_many(const metric *m) {
    for (int i = 0; i < LINK_METRICS; i++)
        if (m->name == link_metrics[i].name) return true;
    for (int i = 0; i < TENANT_METRICS; i++)
        if (m->name == tenant_metrics[i].name) return true;
    return false;
}

metric *coord_figures_tenant(const char *credential) {
    char labels[COORD_LABELS_BYTES] = "";
    if (credential) coord_series_label(labels, "tenant", credential);
    return coord_series_row(&tenants, credential ? labels : NULL);
}

/* A node's word: whatever it says is a number. */
static int64_t us(double ms) { return ms > 0 && ms < 1e12 ? (int64_t)(ms * 1000) : 0; }

void coord_figures_sent(const char *from, const char *to, const Baton__Node__V1__Sent *sent) {
    char labels[COORD_LABELS_BYTES] = "";
    int64_t all_us = us(sent->transfer_ms), hidden_us = us(sent->hidden_ms);
    coord_series_label(labels, "from", from);
    coord_series_label(labels, "to", to);
    metric *row = coord_series_row(&links, labels);
    metric_add(&row[LINK_BYTES], sent->bytes < INT64_MAX ? (int64_t)sent->bytes : 0);
    metric_add(&row[LINK_HIDDEN], hidden_us < all_us ? hidden_us : all_us);
    metric_add(&row[LINK_EXPOSED], hidden_us < all_us ? all_us - hidden_us : 0);
}

/* ---- a request --------------------------------------------------------------------------------------------------- */

static double seconds(int64_t from_us, int64_t to_us) { return to_us > from_us ? (double)(to_us - from_us) / 1e6 : 0; }

void coord_figures_queued(const coord_branch *b, int64_t now_us) {
    metric_add(&b->client->figures[TENANT_REQUESTS], 1);
    metric_add(&b->client->figures[TENANT_QUEUE], now_us - b->submitted_us);
}

void coord_figures_piece(const coord_branch *b, uint32_t attempt, int64_t now_us) {
    if (b->first_us == 0) metric_observe(&first, seconds(b->submitted_us, now_us));
    else metric_observe(&between, seconds(b->last_us, now_us));
    if (b->piece_attempt && b->piece_attempt != attempt)
        metric_observe(b->moved ? &gap_move : &gap_failure, seconds(b->last_us, now_us));
}

/* Rows that attempts have computed, as far as they told: each token said implies the row before its own. */
static int32_t computed(const coord_branch *b) {
    return b->computed ? max32(b->computed, b->client->job.count + b->tokens_count - 1) : 0;
}

void coord_figures_attempt(coord_branch *b, uint32_t attempt) {
    b->decode_attempt = attempt;
    b->computed_before = computed(b);
}

/* Who has read a prompt ahead reads the rest of its last page once more when it sends it: that is how it works, and not
 * counted. Who reads it after a holder that was lost reads all of it again. */
void coord_figures_computed(coord_branch *b, int reader, bool hold, int64_t from, int32_t to) {
    int64_t prompt = b->client->job.count, before = hold ? computed(b) : b->computed_before;
    if (reader >= 0 && (hold || reader != b->held_node) && before < b->held_tokens) before = b->held_tokens;
    if (before > to) before = to;
    if (from < 0) from = 0;
    if (from < prompt && from < before) metric_add(&again_prompt, (before < prompt ? before : prompt) - from);
    if (before > prompt && from < before) metric_add(&again_answer, before - (from > prompt ? from : prompt));
    if (hold) b->held_tokens = to, b->held_node = reader;
    else b->computed = max32(b->computed, to);
}

static metric *answers(status st, int32_t reason) {
    switch (st) {
    case ST_OK: return reason == BATON__V1__FINISH_REASON__FINISH_REASON_LENGTH ? &answers_length : &answers_stop;
    case ST_CANCELED:
    case ST_DEADLINE: return &answers_abort;
    case ST_AGAIN: return &answers_refused;
    default: return &answers_error;
    }
}

void coord_figures_finish(const coord_branch *b, status st) {
    metric_add(answers(st, b->reason), 1);
    if (b->placed_us == 0) coord_figures_queued(b, clock_now_us());
    if (st != ST_OK) return;
    metric_add(&prompt_tokens, b->client->job.count);
    metric_observe(&whole, seconds(b->submitted_us, b->last_us));
    metric_observe(&queue, seconds(b->submitted_us, b->placed_us));
    metric_observe(&prefill, b->prefill_ms / 1e3);
    if (b->prefill_node >= 0) metric_observe(&transfer, b->transfer_ms / 1e3);
    metric_observe(&decode, seconds(b->first_us, b->last_us));
    int32_t given = b->tokens_count - (b->count - b->client->job.count);
    if (given > 1) metric_observe(&mean, seconds(b->first_us, b->last_us) / (given - 1));
}

void coord_figures_load(const coord_core *core, coord_counts *shown) {
    coord_counts now = coord_core_counts(core);
    if (memcmp(&now, shown, sizeof now) == 0) return;
    *shown = now;
    metric_set(&waiting, now.waiting);
    metric_set(&waiting_tokens, now.waiting_tokens);
    metric_set(&placed, now.placed);
    metric_set(&moves, now.moves);
    metric_set(&held_out, now.held_out);
    metric_set(&disagreements, now.disagreements);
    for (int i = 0; i < COORD_AGAIN_CAUSES; i++)
        if (again[i].name) metric_set(&again[i], now.again[i]);
    for (int role = COORD_PREFILL; role <= COORD_DECODE; role++)
        for (int i = 0; i < COORD_REASONS; i++)
            if (chosen[role][i].name) metric_set(&chosen[role][i], now.chosen[role][i]);
}

void coord_figures_ready(const int ready[COORD_DECODE + 1]) {
    metric_set(&ready_prefill, ready[COORD_PREFILL]);
    metric_set(&ready_decode, ready[COORD_DECODE]);
}

void coord_figures_open(const coord_core *core) {
    metric *const all[] = {&first, &between, &mean, &whole, &queue, &prefill, &transfer, &decode, &prompt_tokens, &gap_failure, &gap_move,
                           &again_prompt, &again_answer, &answers_stop, &answers_length, &answers_abort, &answers_refused, &answers_error};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) metric_show(all[i]);
    coord_series_row(&links, NULL);
    coord_series_row(&tenants, NULL);
    coord_figures_load(core, &(coord_counts){.waiting = -1});
}
