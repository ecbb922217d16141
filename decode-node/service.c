/* service.c -- the Decode method: DecodeRequest into a node_request, events into DecodeEvents. */
#include "decode-node/decode.h"
#include "node/service.h"

enum { STOP_TOKENS_MAX = 1024, LEASE_MS_MAX = 600000 };

static status read_prompt_logprobs(const Baton__Node__V1__DecodeRequest *m, node_request *r, error *err) {
    const Baton__Node__V1__PromptLogprobs *p = m->prompt_logprobs;
    if (!p) return ST_OK;
    if (m->prompt_apart)
        return error_set(err, ST_BAD_INPUT, "prompt_logprobs: expected none of a prompt that prefill nodes compute");
    if (p->first < 1 || p->first > m->prompt_count)
        return error_set(err, ST_BAD_INPUT, "prompt_logprobs.first is %d, expected 1 to %d (prompt_count)", p->first, m->prompt_count);
    if (p->top < 0 || p->top > ENG_LOGPROBS_MAX)
        return error_set(err, ST_BAD_INPUT, "prompt_logprobs.top is %d, expected 0 to %d", p->top, ENG_LOGPROBS_MAX);
    r->prompt_logprobs = true;
    r->prompt_first = p->first;
    r->prompt_tops = p->top;
    return ST_OK;
}

static status read_request(const node_facts *facts, const ProtobufCMessage *message, node_request *r,
                           error *err) {
    const Baton__Node__V1__DecodeRequest *m = (const Baton__Node__V1__DecodeRequest *)message;
    TRY(node_service_pairing(facts, m->pairing, err));
    TRY(node_service_id(m->request_id, r, err));
    TRY(node_service_tokens(facts, m->tokens, m->n_tokens, m->prompt_count, r, err));
    TRY(node_service_sampling(facts, m->sampling, r, err));
    if (m->n_stop_tokens > STOP_TOKENS_MAX)
        return error_set(err, ST_BAD_INPUT, "stop_tokens: %zu, expected at most %d", m->n_stop_tokens,
                         STOP_TOKENS_MAX);
    TRY(node_service_ids(facts, "stop_tokens", m->stop_tokens, m->n_stop_tokens, r->memory, &r->stop_tokens,
                         err));
    if (m->max_tokens < 0)
        return error_set(err, ST_BAD_INPUT, "max_tokens is %d, expected 0 or more", m->max_tokens);
    if (m->lease_ms < 1 || m->lease_ms > LEASE_MS_MAX)
        return error_set(err, ST_BAD_INPUT, "lease_ms is %u, expected 1 to %d", m->lease_ms, LEASE_MS_MAX);
    TRY(node_service_priority(m->priority, r, err));
    TRY(read_prompt_logprobs(m, r, err));
    r->epoch = m->epoch;
    r->salt = m->salt;
    r->max_tokens = m->max_tokens;
    r->stop_count = (int32_t)m->n_stop_tokens;
    r->ignore_eos = m->ignore_eos;
    r->local_tokens_max = m->local_tokens_max;
    r->apart = m->prompt_apart;
    r->lease_ms = m->lease_ms;
    return ST_OK;
}

static status write_reserved(const node_facts *facts, const node_event *e, rpc_call *call) {
    Baton__Node__V1__Reserved m = BATON__NODE__V1__RESERVED__INIT;
    Baton__Node__V1__DecodeEvent out = BATON__NODE__V1__DECODE_EVENT__INIT;
    m.ticket = e->reserved.ticket;
    m.kv_address = (char *)facts->kv_address;
    m.cached_tokens = e->reserved.cached;
    m.wanted_tokens = e->reserved.wanted;
    if (e->reserved.sealed) m.kv_key = (ProtobufCBinaryData){KVT_KEY_BYTES, (uint8_t *)(uintptr_t)e->reserved.key};
    out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_RESERVED;
    out.reserved = &m;
    return rpc_call_send(call, &out.base);
}

static status write_landed(const node_event *e, rpc_call *call) {
    Baton__Node__V1__Landed m = BATON__NODE__V1__LANDED__INIT;
    Baton__Node__V1__DecodeEvent out = BATON__NODE__V1__DECODE_EVENT__INIT;
    m.tokens = e->landed.tokens;
    m.wait_ms = (double)e->landed.wait_us / 1000;
    m.status = (int32_t)e->landed.st;
    out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_LANDED;
    out.landed = &m;
    return rpc_call_send(call, &out.base);
}

/* Of the answer or of the prompt. */
static status write_token(const node_event *e, rpc_call *call) {
    node_token_message token;
    Baton__Node__V1__Token *tokens[] = {&token.token};
    Baton__Node__V1__Tokens m = BATON__NODE__V1__TOKENS__INIT;
    Baton__Node__V1__DecodeEvent out = BATON__NODE__V1__DECODE_EVENT__INIT;
    node_service_token(e, &token);
    m.n_tokens = 1;
    m.tokens = tokens;
    if (e->kind == NODE_PROMPT) {
        out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_PROMPT;
        out.prompt = &m;
    } else {
        out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_TOKENS;
        out.tokens = &m;
    }
    return rpc_call_send(call, &out.base);
}

static status write_done(const node_event *e, rpc_call *call) {
    Baton__Node__V1__Done m = BATON__NODE__V1__DONE__INIT;
    Baton__Node__V1__DecodeEvent out = BATON__NODE__V1__DECODE_EVENT__INIT;
    m.reason = e->done.reason;
    m.computed_tokens = e->done.computed;
    m.prefill_ms = (double)e->done.prefill_us / 1000;
    m.proposed_tokens = e->done.proposed;
    m.accepted_tokens = e->done.accepted;
    m.draft_ms = (double)e->done.draft_us / 1000;
    out.event_case = BATON__NODE__V1__DECODE_EVENT__EVENT_DONE;
    out.done = &m;
    return rpc_call_send(call, &out.base);
}

static status write_event(const node_facts *facts, const node_event *e, rpc_call *call) {
    switch (e->kind) {
    case NODE_RESERVED: return write_reserved(facts, e, call);
    case NODE_LANDED: return write_landed(e, call);
    case NODE_PROMPT:
    case NODE_TOKEN: return write_token(e, call);
    case NODE_DONE: return write_done(e, call);
    default: return ST_INTERNAL; /* no such event of this role */
    }
}

const node_service decode_service = {.path = "/baton.node.v1.Node/Decode",
                                     .request = &baton__node__v1__decode_request__descriptor,
                                     .reply = &baton__node__v1__decode_event__descriptor,
                                     .role = &decode_role,
                                     .read = read_request,
                                     .write = write_event};
