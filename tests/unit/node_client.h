/* node_client.h -- requests to a prefill and a decode node of this process, driven as a coordinator drives them, for
 * tests of node/'s processes. The test's own thread runs the clients' loop. */
#ifndef BATON_TESTS_NODE_CLIENT_H
#define BATON_TESTS_NODE_CLIENT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "decode-node/decode.h"
#include "node/service.h"
#include "prefill-node/prefill.h"

enum { ANSWER_MAX = 1500 };

static const rpc_method decode_method = {"/baton.node.v1.Node/Decode", RPC_SERVER_STREAM,
                                         &baton__node__v1__decode_request__descriptor,
                                         &baton__node__v1__decode_event__descriptor, NULL};
static const rpc_method prefill_method = {"/baton.node.v1.Node/Prefill", RPC_SERVER_STREAM,
                                          &baton__node__v1__prefill_request__descriptor,
                                          &baton__node__v1__prefill_event__descriptor, NULL};
static const rpc_method watch_method = {"/baton.node.v1.Node/Watch", RPC_SERVER_STREAM,
                                        &baton__node__v1__watch_request__descriptor,
                                        &baton__node__v1__node_state__descriptor, NULL};

/* A node's state, as it last told it. */
typedef struct node_told {
    char digest[40], numerics[200], layout[48], kv_type[8];
} node_told;

static rpc_loop *loop;           /* the clients' loop: run by the test's own thread */
static node_process *nodes[2];   /* prefill, decode */
static rpc_channel *channels[2];
static int32_t pages_of[2];
static node_told told_by[2];

/* ---- one request, driven as a coordinator drives it --------------------------------------------------- */

typedef struct request {
    int32_t prompt[128], count, max_tokens, local_tokens_max;
    eng_sampling sampling;
    bool no_prefill;             /* the prefill node never comes */
    bool apart;                  /* the decode node reads nothing of the prompt */
    bool moved;                  /* its Prefill is for an answer that ran on the node it is sent to */
    int cancel_after;            /* events; 0: never */
    int32_t prompt_first, prompt_top;        /* logprobs of the prompt from that position on; 0: none */
    uint32_t lease_ms;
    /* what happened */
    rpc_stream *decode, *prefill;
    int events;
    int32_t answer[ANSWER_MAX], answered;
    float prompt_logprob[128];
    int32_t prompt_told;         /* tokens of the prompt */
    int32_t first_token, reason, landed_status, wanted, cached, prefill_cached;
    uint64_t sent_bytes;
    status end, prefill_end;
    char text[300];
} request;

static int running;              /* streams open */

static inline void stream_over(void) {
    if (--running == 0) rpc_loop_stop(loop);
}

static inline void fill_pairing(int node, Baton__Node__V1__Pairing *out) {
    baton__node__v1__pairing__init(out);
    out->protocol = 1;
    out->model_digest = told_by[node].digest;
    out->numerics = told_by[node].numerics;
    out->kv_layout = told_by[1].layout;
    out->kv_type = told_by[1].kv_type;
}

static inline void fill_sampling(const eng_sampling *s, Baton__Node__V1__SamplingParams *out) {
    baton__node__v1__sampling_params__init(out);
    out->temperature = s->temperature;
    out->top_p = s->top_p;
    out->repetition = s->repetition;
    out->seed = s->seed;
    out->logprobs = s->logprobs;
}

static inline void maybe_cancel(request *r) {
    if (++r->events != r->cancel_after) return;
    if (r->decode) rpc_stream_cancel(r->decode);
    if (r->prefill) rpc_stream_cancel(r->prefill);
}

static inline void prefill_message(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    (void)s;
    request *r = user;
    const Baton__Node__V1__PrefillEvent *e = (const Baton__Node__V1__PrefillEvent *)m;
    if (e->event_case == BATON__NODE__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN) {
        r->first_token = e->first_token->token->token;
        r->prefill_cached = e->first_token->cached_tokens;
    }
    if (e->event_case == BATON__NODE__V1__PREFILL_EVENT__EVENT_SENT) r->sent_bytes = e->sent->bytes;
    maybe_cancel(r);
}

static inline void prefill_ended(rpc_stream *s, status st, const char *text, int64_t retry_ms, void *user) {
    (void)s, (void)text, (void)retry_ms;
    request *r = user;
    r->prefill = NULL;
    r->prefill_end = st;
    stream_over();
}

static inline void start_prefill(int node, request *r, const Baton__Node__V1__Reserved *reserved) {
    static const rpc_stream_events events = {prefill_message, prefill_ended};
    Baton__Node__V1__Pairing pairing;
    Baton__Node__V1__SamplingParams sampling;
    Baton__Node__V1__PrefillRequest m = BATON__NODE__V1__PREFILL_REQUEST__INIT;
    fill_pairing(node, &pairing);
    fill_sampling(&r->sampling, &sampling);
    m.pairing = &pairing;
    m.sampling = &sampling;
    m.request_id = (char *)(uintptr_t)"test";
    m.epoch = 1;
    m.tokens = r->prompt;
    m.n_tokens = (size_t)r->count;
    m.prompt_count = r->count;
    m.ticket = reserved->ticket;
    m.kv_address = reserved->kv_address;
    m.kv_key = reserved->kv_key;
    m.skip = reserved->cached_tokens;
    m.send_end = reserved->wanted_tokens;
    m.moved = r->moved;
    status st = rpc_stream_start(channels[node], &prefill_method, &m.base, 0, true, &events, r, &r->prefill);
    running += st == ST_OK;
    if (st != ST_OK) assert_int_equal(st, ST_NO_MEMORY);   /* where a test took it; D goes on alone */
}

static inline void decode_message(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    (void)s;
    request *r = user;
    const Baton__Node__V1__DecodeEvent *e = (const Baton__Node__V1__DecodeEvent *)m;
    switch (e->event_case) {
    case BATON__NODE__V1__DECODE_EVENT__EVENT_RESERVED:
        r->cached = e->reserved->cached_tokens;
        r->wanted = e->reserved->wanted_tokens;
        if (r->wanted > r->cached && !r->no_prefill) start_prefill(0, r, e->reserved);
        break;
    case BATON__NODE__V1__DECODE_EVENT__EVENT_LANDED: r->landed_status = e->landed->status; break;
    case BATON__NODE__V1__DECODE_EVENT__EVENT_PROMPT:
        for (size_t i = 0; i < e->prompt->n_tokens; i++) {
            const Baton__Node__V1__Token *t = e->prompt->tokens[i];
            assert_int_equal(t->index, r->prompt_first + r->prompt_told++);
            assert_int_equal(t->token, r->prompt[t->index]);
            assert_int_equal(t->n_top, r->prompt_top);
            assert_int_equal(r->answered, 0);
            r->prompt_logprob[t->index] = t->logprob;
        }
        break;
    case BATON__NODE__V1__DECODE_EVENT__EVENT_TOKENS:
        for (size_t i = 0; i < e->tokens->n_tokens; i++) {
            assert_int_equal(e->tokens->tokens[i]->index, r->count + r->answered);
            assert_int_equal(e->tokens->tokens[i]->n_top, r->sampling.logprobs > 0 ? r->sampling.logprobs : 0);
            r->answer[r->answered++] = e->tokens->tokens[i]->token;
        }
        break;
    case BATON__NODE__V1__DECODE_EVENT__EVENT_DONE: r->reason = e->done->reason; break;
    default: fail();
    }
    maybe_cancel(r);
}

static inline void decode_ended(rpc_stream *s, status st, const char *text, int64_t retry_ms, void *user) {
    (void)s, (void)retry_ms;
    request *r = user;
    r->decode = NULL;
    r->end = st;
    snprintf(r->text, sizeof r->text, "%s", text);
    stream_over();
}

static inline void start_decode(request *r) {
    static const rpc_stream_events events = {decode_message, decode_ended};
    Baton__Node__V1__Pairing pairing;
    Baton__Node__V1__SamplingParams sampling;
    Baton__Node__V1__DecodeRequest m = BATON__NODE__V1__DECODE_REQUEST__INIT;
    fill_pairing(1, &pairing);
    fill_sampling(&r->sampling, &sampling);
    m.pairing = &pairing;
    m.sampling = &sampling;
    m.request_id = (char *)(uintptr_t)"test";
    m.epoch = 1;
    m.tokens = r->prompt;
    m.n_tokens = (size_t)r->count;
    m.prompt_count = r->count;
    m.max_tokens = r->max_tokens;
    m.local_tokens_max = r->local_tokens_max;
    m.lease_ms = r->lease_ms;
    m.ignore_eos = true;
    m.prompt_apart = r->apart;
    Baton__Node__V1__PromptLogprobs prompt = BATON__NODE__V1__PROMPT_LOGPROBS__INIT;
    prompt.first = r->prompt_first;
    prompt.top = r->prompt_top;
    if (r->prompt_first) m.prompt_logprobs = &prompt;
    r->landed_status = r->first_token = -1;
    assert_int_equal(rpc_stream_start(channels[1], &decode_method, &m.base, 0, true, &events, r, &r->decode),
                     ST_OK);
    running++;
}

static inline request make_request(uint64_t seed, int32_t count, int32_t max_tokens) {
    request r = {.count = count, .max_tokens = max_tokens, .lease_ms = 5000, .sampling = eng_sampling_default};
    for (int32_t i = 0; i < count; i++) r.prompt[i] = (int32_t)((seed * 7919 + (uint64_t)i * 104729) % 250) + 3;
    r.sampling.temperature = seed % 2 ? 0.9f : 0;
    r.sampling.seed = seed;
    return r;
}

/* ---- state ------------------------------------------------------------------------------------ */

typedef struct watching {
    rpc_stream *stream;
    int node;
    bool until_quiet;            /* until every page is free or cached */
    int states;
    int32_t pages[ENG_PAGE_STATES], busy;
    size_t counters;
    bool draining;
    char role[16];
    status end;
} watching;

static inline void state_message(rpc_stream *s, const ProtobufCMessage *message, void *user) {
    watching *w = user;
    const Baton__Node__V1__NodeState *m = (const Baton__Node__V1__NodeState *)message;
    assert_int_equal(m->n_pages, ENG_PAGE_STATES);
    memcpy(w->pages, m->pages, sizeof w->pages);
    w->busy = m->running + m->waiting;
    w->counters = m->n_counters;
    w->draining = m->draining;
    snprintf(w->role, sizeof w->role, "%s", m->role);
    node_told *t = &told_by[w->node];
    snprintf(t->digest, sizeof t->digest, "%s", m->pairing->model_digest);
    snprintf(t->numerics, sizeof t->numerics, "%s", m->pairing->numerics);
    snprintf(t->layout, sizeof t->layout, "%s", m->pairing->kv_layout);
    snprintf(t->kv_type, sizeof t->kv_type, "%s", m->pairing->kv_type);
    bool quiet = !w->busy && w->pages[ENG_PAGE_FREE] + w->pages[ENG_PAGE_CACHED] == pages_of[w->node];
    if (++w->states >= 3 && (!w->until_quiet || quiet)) rpc_stream_cancel(s);
}

static inline void state_ended(rpc_stream *s, status st, const char *text, int64_t retry_ms, void *user) {
    (void)s, (void)text, (void)retry_ms;
    ((watching *)user)->end = st;
    stream_over();
}

static inline watching watch(int node, bool until_quiet) {
    static const rpc_stream_events events = {state_message, state_ended};
    Baton__Node__V1__WatchRequest m = BATON__NODE__V1__WATCH_REQUEST__INIT;
    watching w = {.node = node, .until_quiet = until_quiet};
    m.protocol = 1;
    m.heartbeat_ms = 50;
    assert_int_equal(rpc_stream_start(channels[node], &watch_method, &m.base, 10000, true, &events, &w, &w.stream),
                     ST_OK);
    running++;
    rpc_loop_run(loop);
    assert_int_equal(w.end, ST_CANCELED);
    return w;
}

/* No page is held on either node. */
static inline void assert_quiet(void) {
    for (int i = 0; i < 2; i++) {
        watching w = watch(i, true);
        assert_int_equal(w.pages[ENG_PAGE_FREE] + w.pages[ENG_PAGE_CACHED], pages_of[i]);
    }
}

#endif
