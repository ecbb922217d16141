/* generate.c -- one client's call: checked, branched n times (branch.c), streamed back, ended once.
 *
 *   one call, job.n branches; a branch is one request of the core
 *   branch 0      submitted at once
 *   branches 1..  submitted when the decode node of branch 0 said its first token, and to the same
 *                 node: the prompt's pages are in its prefix cache by then [coord_generate_fan_out];
 *                 at once, if branch 0 was complete when the call came
 *   a branch      finished by the core [coord_generate_finish], told to the client [flush]
 *   the call      ended when every branch is both, or one has failed and the others are canceled [end]
 *
 * Flow control: a chunk that fills the client's window blocks the call. Then the Decode streams of
 * its branches are paused, so that each node soon stops computing for it, and the few tokens
 * already under way wait in the branches' answers until the client has read. */
#include "coordinator/service.h"
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

static void flush(coord_client *c);
static void end(coord_client *c);

METRIC(requests_total, "baton_requests_total", NULL, METRIC_COUNTER, "Generate calls taken on");
METRIC(requests_ok, "baton_requests_finished_total", "status=\"ok\"", METRIC_COUNTER,
       "Generate calls ended, by status");
METRIC(requests_canceled, "baton_requests_finished_total", "status=\"canceled\"", METRIC_COUNTER,
       "Generate calls ended, by status");
METRIC(requests_failed, "baton_requests_finished_total", "status=\"failed\"", METRIC_COUNTER,
       "Generate calls ended, by status");
METRIC(tokens_total, "baton_tokens_total", NULL, METRIC_COUNTER, "answer tokens given to clients");

static double span_ms(int64_t from_us, int64_t to_us) {
    return from_us > 0 && to_us > from_us ? (double)(to_us - from_us) / 1000 : 0;
}

/* ---- birth and death ------------------------------------------------------------------------- */

static void on_free(rpc_call *call, void *user) {
    (void)call;
    coord_client *c = user;
    coord_service *s = c->service;
    coord_branch_free(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        s->clients = c->next;
    if (c->next) c->next->prev = c->prev;
    s->clients_count--;
    arena_destroy(c->memory);
    coord_service_client_left(s);
}

static void on_cancel(rpc_call *call, void *user) {
    (void)call;
    coord_client *c = user;
    coord_generate_cancel(c, ST_CANCELED, "the client left");
    coord_service_settle(c->service);
}

static void on_writable(rpc_call *call, void *user) {
    (void)call;
    coord_client *c = user;
    c->blocked = false;
    flush(c);
    for (int32_t i = 0; i < c->job.n && !c->blocked; i++) coord_leg_pause(&c->branches[i], false);
    end(c);
    coord_service_settle(c->service);
}

static void submit(coord_branch *b, int prefer_node) {
    b->want_submit = true;
    b->prefer_node = prefer_node;
    if (b->submitted_us == 0) b->submitted_us = b->index == 0 ? b->client->arrived_us : clock_now_us();
    coord_service_due(b);
}

/* The prompt's first token has nothing before it: no node says anything of it. Who has answer tokens has all of them. */
static void begin(coord_client *c) {
    coord_branch *b = &c->branches[0];
    bool tells = coord_generate_wants_prompt(b) && b->count == c->job.count && !b->finished;
    b->prompt_told = tells ? 1 : c->job.count;
    if (tells && coord_answer_push_prompt(&b->answer, c->job.tokens[0], NULL) != ST_OK)
        coord_generate_cancel(c, ST_NO_MEMORY, "no memory for the prompt's log probabilities");
    else if (b->finished)
        coord_generate_fan_out(c, -1);
    else
        submit(b, -1);
    if (!c->job.seen) return;
    flush(c); /* what is complete */
    end(c);
}

static void take_on(coord_service *s, coord_client *c) {
    static const rpc_call_events events = {on_cancel, on_writable, on_free};
    int64_t left_ms = rpc_call_time_left_ms(c->call);
    const char *tenant = rpc_call_tenant(c->call);
    c->service = s;
    c->tenant = *tenant ? coord_service_number(tenant) | 1 : 0;
    c->figures = coord_figures_tenant(rpc_call_credential(c->call));
    c->deadline_ms = left_ms == INT64_MAX ? INT64_MAX : clock_now_ms() + left_ms;
    c->next = s->clients;
    if (c->next) c->next->prev = c;
    s->clients = c;
    s->clients_count++;
    rpc_call_watch(c->call, &events, c);
    metric_add(&requests_total, 1);
    begin(c);
    coord_service_settle(s);
}

static status take_job(coord_client *c, const ProtobufCMessage *request, error *err) {
    TRY(coord_check_generate(&c->service->model, (const Baton__V1__GenerateRequest *)request, c->memory, &c->job, err));
    if (c->once && c->job.seen)
        return error_set(err, ST_BAD_INPUT, "seen: GenerateOnce has no stream that could break: expected none, or Generate");
    status st = coord_branch_make(c, err);
    if (st != ST_OK && c->branches) coord_branch_free(c);
    return st;
}

static void on_request(rpc_call *call, const ProtobufCMessage *request, coord_service *s,
                       bool once) {
    error err = {0};
    if (s->draining) {
        rpc_call_finish(call, ST_PEER_LOST, "this coordinator is shutting down", 1000);
        return;
    }
    arena *memory = arena_create(4096);
    coord_client *c = memory ? arena_alloc(memory, sizeof *c) : NULL;
    status st = c ? ST_OK : error_set(&err, ST_NO_MEMORY, "no memory for another request");
    if (st == ST_OK) {
        *c = (coord_client){
            .service = s, .call = call, .once = once, .memory = memory, .retry_after_ms = -1};
        c->arrived_us = clock_now_us();
        st = take_job(c, request, &err);
        c->tokenise_ms = span_ms(c->arrived_us, clock_now_us());
    }
    if (st != ST_OK) {
        log_write(LOG_INFO, NULL, "request.refused", "peer=%s: %s", rpc_call_peer(call), err.text);
        rpc_call_finish(call, st, err.text, st == ST_NO_MEMORY ? 1000 : -1);
        arena_destroy(memory);
        return;
    }
    take_on(s, c);
}

void coord_generate_on_request(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    on_request(call, request, ctx, false);
}

void coord_generate_once_on_request(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    on_request(call, request, ctx, true);
}

/* ---- messages to the client ------------------------------------------------------------------ */

typedef struct finish_message {
    Baton__V1__Finish finish;
    Baton__V1__Usage usage;
    Baton__V1__Timings timings;
    Baton__V1__RouteCost costs[COORD_COSTS_MAX], *costs_list[COORD_COSTS_MAX];
} finish_message;

static void fill_costs(const coord_branch *b, finish_message *m) {
    const coord_service *s = b->client->service;
    for (int32_t i = 0; i < b->costs_count; i++) {
        const coord_cost *from = &b->costs[i];
        Baton__V1__RouteCost *to = m->costs_list[i] = &m->costs[i];
        baton__v1__route_cost__init(to);
        to->node = (char *)(uintptr_t)coord_service_node_name(s, from->node);
        to->role = (char *)(uintptr_t)(from->role == COORD_PREFILL ? "prefill" : "decode");
        to->chosen = from->chosen && (from->role != COORD_PREFILL || from->node == b->prefill_node);  /* D may have needed none */
        to->cached_tokens = from->cached;
        to->queue = from->queue;
        to->prefill = from->prefill;
        to->transfer = from->transfer;
        to->decode = from->decode;
        to->total = from->total;
    }
    m->finish.costs = m->costs_list;
    m->finish.n_costs = (size_t)b->costs_count;
    m->finish.policy = (char *)(uintptr_t)coord_route_name(s->options.limits.route);
}

static Baton__V1__Finish *fill_finish(const coord_branch *b, finish_message *m) {
    const coord_service *s = b->client->service;
    baton__v1__finish__init(&m->finish);
    baton__v1__usage__init(&m->usage);
    baton__v1__timings__init(&m->timings);
    int32_t prompt = b->client->job.count;
    m->usage.prompt_tokens = prompt;
    m->usage.completion_tokens = b->tokens_count;
    m->usage.cached_tokens = b->cached < 0 ? 0 : b->cached > prompt ? prompt : b->cached;
    m->usage.proposed_tokens = b->proposed;
    m->usage.accepted_tokens = b->accepted;
    m->timings.tokenise = b->index == 0 ? b->client->tokenise_ms : 0;
    m->timings.queue = fmax(0, span_ms(b->submitted_us, b->placed_us) - m->timings.tokenise);
    m->timings.prefill = b->prefill_ms;
    m->timings.kv_transfer = b->prefill_node >= 0 ? b->transfer_ms : 0;
    m->timings.ttft = span_ms(b->submitted_us, b->first_us);
    m->timings.decode = span_ms(b->first_us, b->last_us);
    m->timings.draft = b->draft_ms;
    m->timings.held = span_ms(b->held_us, b->taken_us);
    m->finish.reason = (Baton__V1__FinishReason)b->reason;
    m->finish.usage = &m->usage;
    m->finish.timings = &m->timings;
    m->finish.attempts = b->attempts;
    int reader = b->prefill_node >= 0 ? b->prefill_node : b->decode_node;
    m->finish.prefill_node = (char *)(uintptr_t)coord_service_node_name(s, reader);
    m->finish.decode_node = (char *)(uintptr_t)coord_service_node_name(s, b->decode_node);
    if (b->costs) fill_costs(b, m);
    return &m->finish;
}

static status send_chunk(coord_branch *b) {
    coord_client *c = b->client;
    finish_message finish;
    Baton__V1__GenerateChunk chunk = BATON__V1__GENERATE_CHUNK__INIT;
    arena *memory = arena_create(1024);
    if (!memory) return ST_NO_MEMORY;
    chunk.index = b->index;
    chunk.text = coord_answer_text(&b->answer, memory);
    chunk.tokens = coord_answer_infos(&b->answer, &b->answer.tokens, memory);
    chunk.n_tokens = (size_t)b->answer.tokens.count;
    chunk.prompt = coord_answer_infos(&b->answer, &b->answer.prompt, memory);
    chunk.n_prompt = (size_t)b->answer.prompt.count;
    if (!b->opened) chunk.request_id = b->id;
    if (!b->opened) chunk.seed = b->seed;
    if (b->finished) chunk.finish = fill_finish(b, &finish);
    status st = ST_NO_MEMORY;
    if (chunk.text && chunk.tokens && chunk.prompt) st = rpc_call_send(c->call, &chunk.base);
    arena_destroy(memory);
    if (st != ST_OK && st != ST_AGAIN) return st;
    coord_answer_sent(&b->answer);
    b->opened = true;
    b->told = b->finished;
    c->blocked = st == ST_AGAIN;
    return ST_OK;
}

/* Gives the client what the branches hold, as far as it reads. */
static void flush(coord_client *c) {
    if (c->once || c->ended || c->st != ST_OK) return;
    bool was_blocked = c->blocked;
    for (int32_t i = 0; i < c->job.n && !c->blocked; i++) {
        coord_branch *b = &c->branches[i];
        if (b->told || (coord_answer_empty(&b->answer) && !b->finished)) continue;
        status st = send_chunk(b);
        if (st != ST_OK) {
            coord_generate_cancel(c, st, "no memory for a chunk of the answer");
            return;
        }
    }
    if (c->blocked && !was_blocked)
        for (int32_t i = 0; i < c->job.n; i++) coord_leg_pause(&c->branches[i], true);
}

static status send_result(coord_client *c) {
    Baton__V1__GenerateResult result = BATON__V1__GENERATE_RESULT__INIT;
    Baton__V1__Choice choices[COORD_N_MAX], *at[COORD_N_MAX];
    finish_message finishes[COORD_N_MAX];
    for (int32_t i = 0; i < c->job.n; i++) {
        coord_branch *b = &c->branches[i];
        baton__v1__choice__init(&choices[i]);
        choices[i].index = i;
        choices[i].text = coord_answer_text(&b->answer, c->memory);
        choices[i].tokens = coord_answer_infos(&b->answer, &b->answer.tokens, c->memory);
        choices[i].n_tokens = (size_t)b->answer.tokens.count;
        choices[i].finish = fill_finish(b, &finishes[i]);
        if (!choices[i].text || !choices[i].tokens) return ST_NO_MEMORY;
        at[i] = &choices[i];
    }
    result.request_id = c->branches[0].id;
    result.seed = c->branches[0].seed;
    result.prompt = coord_answer_infos(&c->branches[0].answer, &c->branches[0].answer.prompt, c->memory);
    result.n_prompt = (size_t)c->branches[0].answer.prompt.count;
    if (!result.prompt) return ST_NO_MEMORY;
    result.choices = at;
    result.n_choices = (size_t)c->job.n;
    status st = rpc_call_send(c->call, &result.base);
    return st == ST_AGAIN ? ST_OK : st;
}

/* Ends the call once nothing is left to be told. */
static void end(coord_client *c) {
    if (c->live > 0 || c->ended) return;
    if (c->st == ST_OK && !c->once)
        for (int32_t i = 0; i < c->job.n; i++)
            if (!c->branches[i].told) return;
    if (c->st == ST_OK && c->once && send_result(c) == ST_NO_MEMORY) {
        c->st = ST_NO_MEMORY;
        snprintf(c->text, sizeof c->text, "no memory for the answer");
    }
    c->ended = true;
    metric_add(c->st == ST_OK         ? &requests_ok
               : c->st == ST_CANCELED ? &requests_canceled
                                      : &requests_failed,
               1);
    rpc_call_finish(c->call, c->st, c->st == ST_OK ? NULL : c->text, c->retry_after_ms);
}

/* ---- the core's actions ---------------------------------------------------------------------- */

static const Baton__Node__V1__Token *info_at(const coord_branch *b, int32_t index) {
    for (size_t i = 0; i < b->heard_count; i++)
        if (b->heard[i]->index == index) return b->heard[i];
    return NULL;
}

void coord_generate_costs(coord_branch *b, const coord_cost *costs, int32_t count) {
    if (!b->costs || !costs) return;
    memcpy(b->costs, costs, (size_t)count * sizeof *costs);
    b->costs_count = count;
}

bool coord_generate_wants_prompt(const coord_branch *b) { return b->client->job.prompt_logprobs >= 0 && b->index == 0; }

/* ST_INTERNAL: the node said what was not to be said. */
static status hear_prompt(coord_branch *b, const Baton__Node__V1__Token *info) {
    const coord_job *job = &b->client->job;
    if (!coord_generate_wants_prompt(b) || info->index > b->prompt_told || info->index >= job->count ||
        info->index < 1 || info->token != job->tokens[info->index])
        return ST_INTERNAL;
    if (info->index < b->prompt_told) return ST_OK;
    b->prompt_told++;
    return coord_answer_push_prompt(&b->answer, info->token, info);
}

void coord_generate_prompt(coord_branch *b, Baton__Node__V1__Token *const *tokens, size_t count) {
    coord_client *c = b->client;
    if (c->st != ST_OK || c->ended) return;
    for (size_t i = 0; i < count; i++) {
        status st = hear_prompt(b, tokens[i]);
        if (st == ST_OK) continue;
        coord_generate_cancel(c, st, st == ST_NO_MEMORY ? "no memory for the prompt's log probabilities"
                                                        : "a decode node said log probabilities that were not asked for");
        coord_service_settle(c->service);
        return;
    }
    flush(c);
}

void coord_generate_emit(coord_branch *b, const coord_action *action) {
    coord_client *c = b->client;
    if (c->st != ST_OK || b->answer.text.stopped) return;
    for (int32_t i = 0; i < action->emit.count && !b->answer.text.stopped; i++) {
        int32_t token = action->emit.tokens[i];
        status st = coord_answer_push(&b->answer, token, info_at(b, action->emit.index + i),
                                      coord_check_ends(&c->service->model, &c->job, token));
        if (st != ST_OK) {
            coord_generate_cancel(c, st, "no memory for the answer");
            return;
        }
        b->tokens_count++;
        metric_add(&tokens_total, 1);
    }
    int64_t now_us = clock_now_us();
    coord_figures_piece(b, action->attempt, now_us);
    b->piece_attempt = action->attempt == b->decode_attempt ? action->attempt : 0;
    b->last_us = now_us;
    if (b->first_us == 0) b->first_us = now_us;
    if (b->answer.text.stopped) {
        b->want_stop = true;
        coord_service_due(b);
    }
    flush(c);
}

static void again(void *arg) {
    coord_branch *b = arg;
    b->again = NULL;
    submit(b, b->prefer_node);
    coord_service_settle(b->client->service);
}

/* A branch after the first belongs to a call that was accepted: a full queue delays it. */
static bool submit_again(coord_branch *b, const coord_action *a) {
    coord_client *c = b->client;
    if (a->finish.st != ST_AGAIN || b->index == 0 || c->st != ST_OK) return false;
    int64_t delay_ms = a->finish.retry_after_ms > 0 ? a->finish.retry_after_ms : 100;
    return rpc_timer_start(c->service->loop, delay_ms, again, b, &b->again) == ST_OK;
}

static void close_branch(coord_branch *b) {
    if (b->finished) return;
    if (b->again) rpc_timer_cancel(b->again);
    b->again = NULL;
    b->finished = true;
    b->client->live--;
}

void coord_generate_finish(coord_branch *b, const coord_action *a) {
    coord_client *c = b->client;
    coord_leg_drop(b);
    coord_service_leave(c->service, b);
    b->want_stop = b->want_cancel = false;
    b->failed_attempt[LEG_DECODE] = b->failed_attempt[LEG_PREFILL] = 0;
    if (submit_again(b, a)) return;
    b->reason = a->finish.reason;
    b->attempts = a->finish.attempts;
    close_branch(b);
    status st = a->finish.st;
    coord_figures_finish(b, st);
    if (st == ST_OK) st = coord_text_end(&b->answer.text);
    if (st == ST_OK) {
        coord_generate_fan_out(c, b->decode_node);
    } else {
        if (c->st == ST_OK && (st == ST_AGAIN || st == ST_NO_MEMORY))
            c->retry_after_ms = a->finish.retry_after_ms;
        coord_generate_cancel(c, st, a->finish.text ? a->finish.text : status_text(st));
    }
    if (c->live == 0 && !c->ended) rpc_call_hold(c->call);
    flush(c);
    end(c);
}

void coord_generate_fan_out(coord_client *c, int node) {
    if (c->fanned || c->st != ST_OK) return;
    c->fanned = true;
    for (int32_t i = 1; i < c->job.n; i++)
        if (!c->branches[i].finished) submit(&c->branches[i], node);
    coord_service_settle(c->service);
}

/* The call fails with st: what its branches still do is canceled. */
void coord_generate_cancel(coord_client *c, status st, const char *text) {
    if (c->st != ST_OK || c->ended) return;
    c->st = st;
    snprintf(c->text, sizeof c->text, "%s", text);
    for (int32_t i = 0; i < c->job.n; i++) {
        coord_branch *b = &c->branches[i];
        b->want_submit = false;
        if (b->number) {
            b->want_cancel = true;
            coord_service_due(b);
        } else {
            close_branch(b);
        }
    }
    end(c);
}
