/* figures.c -- what a coordinator counts of its requests, for /metrics. Times are the client's: from the request's arrival
 * here. The buckets are those that vLLM has, so that http/aliases.c can give them its names. A branch of n counts as a
 * request of its own. */
#include "coordinator/service.h"

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
METRIC(placed_again, "baton_placed_again_total", NULL, METRIC_COUNTER, "times that a request was placed another time");
METRIC(moves, "baton_migrations_total", NULL, METRIC_COUNTER, "answers that were moved off a decode node while they ran");
METRIC(waiting, "baton_requests_waiting", NULL, METRIC_GAUGE, "requests that wait for a place");
METRIC(waiting_tokens, "baton_requests_waiting_tokens", NULL, METRIC_GAUGE, "prompt tokens that wait for a place");
METRIC(placed, "baton_requests_placed", NULL, METRIC_GAUGE, "requests that nodes work on");
METRIC(held_out, "baton_nodes_held_out_total", NULL, METRIC_COUNTER, "times that a node was held out because it flaps");

#define ANSWERS(var, reason_) METRIC(var, "baton_answers_total", "reason=\"" reason_ "\"", METRIC_COUNTER, "answers that ended, by reason")
ANSWERS(answers_stop, "stop");
ANSWERS(answers_length, "length");
ANSWERS(answers_abort, "abort");
ANSWERS(answers_refused, "refused");
ANSWERS(answers_error, "error");

static double seconds(int64_t from_us, int64_t to_us) { return to_us > from_us ? (double)(to_us - from_us) / 1e6 : 0; }

void coord_figures_piece(const coord_branch *b, int64_t now_us) {
    if (b->first_us == 0) metric_observe(&first, seconds(b->submitted_us, now_us));
    else metric_observe(&between, seconds(b->last_us, now_us));
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
    if (b->attempts > 1) metric_add(&placed_again, b->attempts - 1);
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

void coord_figures_open(void) {
    metric *const all[] = {&first, &between, &mean, &whole, &queue, &prefill, &transfer, &decode, &prompt_tokens, &placed_again, &moves,
                           &waiting, &waiting_tokens, &placed, &held_out, &answers_stop, &answers_length, &answers_abort, &answers_refused,
                           &answers_error};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) metric_show(all[i]);
}

void coord_figures_load(const coord_core *core) {
    coord_counts now = coord_core_counts(core);
    metric_set(&waiting, now.waiting);
    metric_set(&waiting_tokens, now.waiting_tokens);
    metric_set(&placed, now.placed);
    metric_set(&moves, now.moves);
    metric_set(&held_out, now.held_out);
}
