/* leg.c -- one Decode or Prefill stream to a node: the core's request out, the node's events back
 * in.
 *
 * A leg speaks with the request's number and its attempt, so the core drops what an older attempt
 * says late. It finds its branch by that number and outlives it: after coord_leg_drop() or a cancel
 * the stream ends whenever gRPC says so, and the leg is freed there. */
#include "coordinator/service.h"
#include <stdlib.h>

/* Longest wait for the first and between two frames of a hand-off. The coordinator ends attempts
 * whose nodes die; the lease is for pages that nobody is left to ask for. */
enum { LEASE_MS = 30000, PROTOCOL = 1 };

/* On the loop, from coord_leg_start() to its stream's end. */
struct coord_leg {
    coord_service *service;
    coord_leg_kind kind;
    uint64_t number;
    uint32_t attempt;
    int node;
    rpc_stream *stream;
    bool silent; /* dropped or canceled: what it still says is not listened to */
    bool done;   /* Done was heard */
    bool hold;   /* LEG_PREFILL: of a prompt that is read ahead */
    bool read;   /* its node has every row of what it was told */
    int32_t count;       /* tokens that is */
    int64_t has;         /* rows of them that a decode node need not compute, as far as it said */
    int32_t reason;
    coord_leg *next; /* of the same branch */
};

static const rpc_method methods[] = {
    [LEG_DECODE] = {.path = "/baton.node.v1.Node/Decode",
                    .kind = RPC_SERVER_STREAM,
                    .request = &baton__node__v1__decode_request__descriptor,
                    .reply = &baton__node__v1__decode_event__descriptor},
    [LEG_PREFILL] = {.path = "/baton.node.v1.Node/Prefill",
                     .kind = RPC_SERVER_STREAM,
                     .request = &baton__node__v1__prefill_request__descriptor,
                     .reply = &baton__node__v1__prefill_event__descriptor},
};

/* ---- events -------------------------------------------------------------------------------------
 */

static void feed(coord_leg *leg, coord_event *e) {
    e->request = leg->number;
    e->attempt = leg->attempt;
    e->node = leg->node;
    coord_service_feed(leg->service, e);
}

/* While the core looks at these tokens, EMIT may ask what was said with them. */
static void feed_tokens(coord_leg *leg, coord_branch *b, coord_event_kind kind,
                        Baton__Node__V1__Token *const *tokens, size_t count) {
    int32_t few[16], *ids = few;
    if (count == 0) return;
    if (count > 16) ids = mem_alloc(count * sizeof *ids);
    bool usable = ids && count < INT32_MAX;
    for (size_t i = 0; i < count && usable; i++) {
        ids[i] = tokens[i]->token;
        usable = (int64_t)tokens[i]->index == (int64_t)tokens[0]->index + (int64_t)i;
    }
    if (usable) {
        coord_event e = {.kind = kind};
        e.tokens.index = tokens[0]->index;
        e.tokens.tokens = ids;
        e.tokens.count = (int32_t)count;
        b->heard = (const Baton__Node__V1__Token *const *)tokens;
        b->heard_count = count;
        feed(leg, &e);
        b = coord_service_branch(leg->service, leg->number);
        if (b) b->heard_count = 0;
    } else {
        coord_generate_cancel(b->client, ids ? ST_INTERNAL : ST_NO_MEMORY,
                              ids ? "a node sent tokens out of order" : "no memory for tokens");
        coord_service_settle(leg->service);
    }
    if (ids != few) mem_free(ids);
}

/* Its node has every row of what it was told; those from `from` on it computed. */
static void count_rows(coord_leg *leg, coord_branch *b, int64_t from) {
    if (!leg->read) coord_figures_computed(b, leg->kind == LEG_PREFILL ? leg->node : -1, leg->hold, from, leg->count);
    leg->read = true;
}

static void on_reserved(coord_leg *leg, coord_branch *b, const Baton__Node__V1__Reserved *m) {
    coord_event e = {.kind = COORD_RESERVED};
    b->wanted = m->wanted_tokens - m->cached_tokens;
    if (!b->moved) b->cached = m->cached_tokens;
    leg->has = m->cached_tokens;
    e.reserved.ticket = m->ticket;
    e.reserved.kv_address = m->kv_address;
    e.reserved.kv_key = m->kv_key.data;
    e.reserved.kv_key_bytes = m->kv_key.len;
    e.reserved.cached = m->cached_tokens;
    e.reserved.wanted = m->wanted_tokens;
    feed(leg, &e);
}

static void on_decode(coord_leg *leg, coord_branch *b, const Baton__Node__V1__DecodeEvent *m) {
    coord_event e = {0};
    switch (m->event_case) {
    case BATON__NODE__V1__DECODE_EVENT__EVENT_RESERVED: on_reserved(leg, b, m->reserved); break;
    case BATON__NODE__V1__DECODE_EVENT__EVENT_LANDED:
        if (b->transfer_ms == 0) b->transfer_ms = m->landed->wait_ms;
        leg->has += m->landed->tokens;
        e.kind = COORD_LANDED;
        e.landed.tokens = m->landed->tokens;
        feed(leg, &e);
        break;
    case BATON__NODE__V1__DECODE_EVENT__EVENT_TOKENS: {
        coord_client *c = b->client;
        count_rows(leg, b, leg->has);
        feed_tokens(leg, b, COORD_TOKENS, m->tokens->tokens, m->tokens->n_tokens);
        if (coord_service_branch(leg->service, leg->number)) coord_generate_fan_out(c, leg->node);
        break;
    }
    case BATON__NODE__V1__DECODE_EVENT__EVENT_PROMPT:
        coord_generate_prompt(b, m->prompt->tokens, m->prompt->n_tokens);
        break;
    case BATON__NODE__V1__DECODE_EVENT__EVENT_DONE:
        leg->done = true;
        leg->reason = m->done->reason;
        b->proposed = m->done->proposed_tokens;
        b->accepted = m->done->accepted_tokens;
        b->draft_ms = m->done->draft_ms;
        if (b->prefill_node < 0 && !b->moved) {
            b->prefill_ms = m->done->prefill_ms;
            /* What came from a prefill node whose first token is still on its way was not cached. */
            int64_t cached = (int64_t)b->count - m->done->computed_tokens - b->wanted;
            b->cached = cached < 0 ? 0 : cached > INT32_MAX ? INT32_MAX : (int32_t)cached;
        }
        break;
    default:
        break; /* of a newer node: nothing to us */
    }
}

/* What was read ahead is not cached but read, as far as the client is concerned; and nothing was read for a move. */
static void count_prefill(const coord_leg *leg, coord_branch *b, const Baton__Node__V1__FirstToken *m) {
    if (b->moved) return;
    if (leg->hold) {
        b->held_us = clock_now_us();
        b->ahead_ms = m->prefill_ms;
        b->ahead_cached = m->cached_tokens;
        return;
    }
    b->prefill_node = leg->node;
    b->prefill_ms = b->ahead_ms + m->prefill_ms;
    b->cached = b->held_us && b->ahead_cached < m->cached_tokens ? b->ahead_cached : m->cached_tokens;
}

static void on_prefill(coord_leg *leg, coord_branch *b, const Baton__Node__V1__PrefillEvent *m) {
    coord_event e = {.kind = COORD_SENT};
    switch (m->event_case) {
    case BATON__NODE__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN:
        count_prefill(leg, b, m->first_token);
        count_rows(leg, b, m->first_token->cached_tokens);
        if (m->first_token->token)
            feed_tokens(leg, b, COORD_FIRST_TOKEN, &m->first_token->token, 1);
        break;
    case BATON__NODE__V1__PREFILL_EVENT__EVENT_SENT:
        b->transfer_ms = m->sent->transfer_ms;
        coord_figures_sent(coord_service_node_name(leg->service, leg->node),
                           coord_service_node_name(leg->service, b->decode_node), m->sent);
        e.sent.exposed_ms = m->sent->transfer_ms - m->sent->hidden_ms;
        if (!(e.sent.exposed_ms >= 0)) e.sent.exposed_ms = 0;
        feed(leg, &e);
        break;
    default:
        break;
    }
}

static void on_message(rpc_stream *s, const ProtobufCMessage *message, void *user) {
    (void)s;
    coord_leg *leg = user;
    coord_branch *b = leg->silent ? NULL : coord_service_branch(leg->service, leg->number);
    if (!b) return;
    if (leg->kind == LEG_DECODE)
        on_decode(leg, b, (const Baton__Node__V1__DecodeEvent *)message);
    else
        on_prefill(leg, b, (const Baton__Node__V1__PrefillEvent *)message);
}

static void unlink_leg(coord_leg *leg) {
    coord_branch *b = coord_service_branch(leg->service, leg->number);
    if (!b || leg->silent) return;
    coord_leg **at = &b->legs;
    while (*at != leg) at = &(*at)->next;
    *at = leg->next;
}

static void on_end(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user) {
    (void)s;
    coord_leg *leg = user;
    coord_event e = {.kind = leg->kind == LEG_DECODE ? COORD_DECODE_END : COORD_PREFILL_END};
    e.end.st = st;
    e.end.text = text && *text ? text : NULL;
    e.end.done = leg->done;
    e.end.reason = leg->reason;
    e.end.retry_after_ms = retry_after_ms;
    unlink_leg(leg);
    if (!leg->silent) feed(leg, &e);
    mem_free(leg);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* The node's own numerics, so that it still has to be what it was heard to be; the KV of the decode node `to`. */
static void fill_pairing(const coord_branch *b, int node, int to, Baton__Node__V1__Pairing *p) {
    const coord_service *s = b->client->service;
    const Baton__Node__V1__NodeState *own = cluster_view_state(s->view, node), *d = cluster_view_state(s->view, to);
    baton__node__v1__pairing__init(p);
    p->protocol = PROTOCOL;
    p->model_digest = (char *)(uintptr_t)s->model.digest;
    p->numerics = own->pairing->numerics;
    p->kv_layout = d->pairing->kv_layout;
    p->kv_type = d->pairing->kv_type;
}

typedef struct sampling_message {
    Baton__Node__V1__SamplingParams params;
    Baton__Node__V1__Bias bias[COORD_BIAS_MAX], *bias_at[COORD_BIAS_MAX];
} sampling_message;

static Baton__Node__V1__SamplingParams *fill_sampling(const coord_branch *b, sampling_message *m) {
    const eng_sampling *from = &b->client->job.sampling;
    Baton__Node__V1__SamplingParams *p = &m->params;
    baton__node__v1__sampling_params__init(p);
    p->temperature = from->temperature;
    p->top_k = from->top_k;
    p->top_p = from->top_p;
    p->min_p = from->min_p;
    p->repetition = from->repetition;
    p->presence = from->presence;
    p->frequency = from->frequency;
    p->seed = b->seed;
    p->logprobs = from->logprobs;
    for (int32_t i = 0; i < from->bias_count; i++) {
        baton__node__v1__bias__init(&m->bias[i]);
        m->bias[i].token = from->bias[i].token;
        m->bias[i].bias = from->bias[i].bias;
        m->bias_at[i] = &m->bias[i];
    }
    p->n_bias = (size_t)from->bias_count;
    p->bias = m->bias_at;
    return p;
}

static status start_decode(coord_leg *leg, coord_branch *b, const coord_action *a,
                           Baton__Node__V1__Pairing *pairing, sampling_message *sampling,
                           const rpc_stream_events *events) {
    const coord_job *job = &b->client->job;
    Baton__Node__V1__DecodeRequest r = BATON__NODE__V1__DECODE_REQUEST__INIT;
    r.pairing = pairing;
    r.request_id = b->id;
    r.epoch = a->attempt;
    r.tokens = (int32_t *)(uintptr_t)a->decode.tokens;
    r.n_tokens = (size_t)a->decode.count;
    r.prompt_count = a->decode.prompt_count;
    r.max_tokens = a->decode.max_tokens;
    r.sampling = fill_sampling(b, sampling);
    r.stop_tokens = job->stop_tokens;
    r.n_stop_tokens = (size_t)job->stop_tokens_count;
    r.ignore_eos = job->ignore_eos;
    r.priority = job->priority;
    r.local_tokens_max = a->decode.local_tokens_max;
    r.lease_ms = LEASE_MS;
    r.prompt_apart = a->decode.apart;
    r.salt = a->decode.salt;
    Baton__Node__V1__PromptLogprobs prompt = BATON__NODE__V1__PROMPT_LOGPROBS__INIT;
    prompt.first = b->prompt_told;
    prompt.top = job->prompt_logprobs;
    if (coord_generate_wants_prompt(b)) r.prompt_logprobs = &prompt;
    return rpc_stream_start(cluster_view_channel(leg->service->view, leg->node),
                            &methods[LEG_DECODE], &r.base, 0, false, events, leg, &leg->stream);
}

static status start_prefill(coord_leg *leg, coord_branch *b, const coord_action *a,
                            Baton__Node__V1__Pairing *pairing, sampling_message *sampling,
                            const rpc_stream_events *events) {
    Baton__Node__V1__PrefillRequest r = BATON__NODE__V1__PREFILL_REQUEST__INIT;
    r.pairing = pairing;
    r.request_id = b->id;
    r.epoch = a->attempt;
    r.tokens = (int32_t *)(uintptr_t)a->prefill.tokens;
    r.n_tokens = (size_t)a->prefill.count;
    r.prompt_count = a->prefill.prompt_count;
    r.sampling = fill_sampling(b, sampling);
    r.ticket = a->prefill.ticket;
    if (!a->prefill.hold) r.kv_address = (char *)(uintptr_t)a->prefill.kv_address;
    r.kv_key = (ProtobufCBinaryData){a->prefill.kv_key_bytes, (uint8_t *)(uintptr_t)a->prefill.kv_key};
    r.hold = a->prefill.hold;
    r.moved = a->prefill.moved;
    r.skip = a->prefill.skip;
    r.send_end = a->prefill.send_end;
    r.priority = b->client->job.priority;
    r.salt = a->prefill.salt;
    return rpc_stream_start(cluster_view_channel(leg->service->view, leg->node),
                            &methods[LEG_PREFILL], &r.base, 0, false, events, leg, &leg->stream);
}

/* ---- life ------------------------------------------------------------------------------------ */

static status start(coord_leg *leg, coord_branch *b, const coord_action *a) {
    static const rpc_stream_events events = {.on_message = on_message, .on_end = on_end};
    if (!cluster_view_channel(leg->service->view, leg->node)) return ST_PEER_LOST;
    Baton__Node__V1__Pairing pairing;
    sampling_message *sampling = mem_alloc(sizeof *sampling);
    if (!sampling) return ST_NO_MEMORY;
    fill_pairing(b, leg->node, leg->hold ? leg->node : b->decode_node, &pairing);   /* what is held goes nowhere yet */
    status st = (leg->kind == LEG_DECODE ? start_decode : start_prefill)(leg, b, a, &pairing,
                                                                         sampling, &events);
    mem_free(sampling);
    return st;
}

void coord_leg_start(coord_branch *b, coord_leg_kind kind, const coord_action *action) {
    if (kind == LEG_DECODE) {
        b->decode_node = action->node;
        coord_figures_attempt(b, action->attempt);
        b->moved = action->decode.moved;
        if (!b->moved) b->prefill_node = -1;
    }
    coord_leg *leg = mem_zalloc(1, sizeof *leg);
    status st = ST_NO_MEMORY;
    if (leg) {
        *leg = (coord_leg){.service = b->client->service,
                           .kind = kind,
                           .number = b->number,
                           .attempt = action->attempt,
                           .node = action->node,
                           .count = kind == LEG_PREFILL ? action->prefill.count : action->decode.count,
                           .hold = kind == LEG_PREFILL && action->prefill.hold};
        st = start(leg, b, action);
    }
    if (st != ST_OK) { /* the core is told after its step: we are inside one */
        mem_free(leg);
        b->failed_attempt[kind] = action->attempt;
        b->failed_status[kind] = st;
        coord_service_due(b);
        return;
    }
    leg->next = b->legs;
    b->legs = leg;
    if (kind == LEG_DECODE && b->client->blocked) rpc_stream_pause(leg->stream);
}

void coord_leg_cancel(coord_branch *b, coord_leg_kind kind, uint32_t attempt) {
    for (coord_leg **at = &b->legs; *at; at = &(*at)->next) {
        coord_leg *leg = *at;
        if (leg->kind != kind || leg->attempt != attempt) continue;
        *at = leg->next;
        leg->silent = true;
        rpc_stream_cancel(leg->stream);
        return;
    }
}

void coord_leg_drop(coord_branch *b) {
    while (b->legs) coord_leg_cancel(b, b->legs->kind, b->legs->attempt);
}

void coord_leg_pause(coord_branch *b, bool paused) {
    for (coord_leg *leg = b->legs; leg; leg = leg->next)
        if (leg->kind == LEG_DECODE) (paused ? rpc_stream_pause : rpc_stream_resume)(leg->stream);
}
