/* service.c -- the parts of Prefill and Decode requests that are alike: pairing, tokens, sampling.
 *
 * Nothing from the wire is believed: counts, ids and numbers are checked here against the model and the
 * context before the core sees them. What depends on pages and load is the core's to refuse. */
#include "node/service.h"
#include <math.h>
#include <string.h>

enum { ID_BYTES_MAX = 200 };

/* ---- pairing ---------------------------------------------------------------------------------------- */

static status compare(const char *field, const char *ours, const char *theirs, error *err) {
    if (strcmp(ours, theirs) == 0) return ST_OK;
    return error_set(err, ST_REFUSED, "pairing: %s is %.90s on this node and %.90s in the request", field,
                     ours, theirs);
}

status node_service_pairing(const node_facts *facts, const Baton__Node__V1__Pairing *theirs, error *err) {
    if (!theirs) return error_set(err, ST_REFUSED, "pairing: missing, expected in the first message");
    if (theirs->protocol != 1)
        return error_set(err, ST_REFUSED, "pairing: protocol is 1 on this node and %u in the request",
                         theirs->protocol);
    TRY(compare("model_digest", facts->digest, theirs->model_digest, err));
    TRY(compare("numerics", facts->numerics, theirs->numerics, err));
    return compare("kv_layout", facts->kv_layout, theirs->kv_layout, err);
}

status node_service_kv_type(const node_facts *facts, const Baton__Node__V1__Pairing *theirs, eng_kv_type *out, error *err) {
    if (eng_kv_type_find(theirs->kv_type, out) && eng_kv_type_fits(*out, facts->h)) return ST_OK;
    return error_set(err, ST_REFUSED, "pairing: kv_type is '%.20s', expected f32, f16, bf16 or (heads are a multiple of 32 wide) q8_0",
                     theirs->kv_type);
}

/* ---- tokens ----------------------------------------------------------------------------------------- */

status node_service_ids(const node_facts *facts, const char *field, const int32_t *ids, size_t count,
                        arena *a, const int32_t **out, error *err) {
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= facts->V)
            return error_set(err, ST_BAD_INPUT, "%s[%zu] is %d, expected 0 to %d", field, i, ids[i],
                             facts->V - 1);
    int32_t *copy = arena_alloc(a, count * sizeof *copy + sizeof *copy);
    if (!copy) return error_set(err, ST_NO_MEMORY, "no memory for %zu %s", count, field);
    if (count) memcpy(copy, ids, count * sizeof *copy);
    *out = copy;
    return ST_OK;
}

status node_service_tokens(const node_facts *facts, const int32_t *tokens, size_t count, int32_t prompt_count,
                           node_request *r, error *err) {
    if (count == 0 || count > (size_t)facts->context)
        return error_set(err, ST_BAD_INPUT, "tokens: %zu, expected 1 to %d (the context)", count,
                         facts->context);
    if (prompt_count < 1 || (size_t)prompt_count > count)
        return error_set(err, ST_BAD_INPUT, "prompt_count is %d, expected 1 to %zu (tokens)", prompt_count,
                         count);
    TRY(node_service_ids(facts, "tokens", tokens, count, r->memory, &r->tokens, err));
    r->count = (int32_t)count;
    r->prompt_count = prompt_count;
    return ST_OK;
}

/* ---- sampling --------------------------------------------------------------------------------------- */

status node_service_sampling(const node_facts *facts, const Baton__Node__V1__SamplingParams *m,
                             node_request *r, error *err) {
    if (!m) return error_set(err, ST_BAD_INPUT, "sampling: missing");
    if (m->n_bias > (size_t)facts->V)
        return error_set(err, ST_BAD_INPUT, "sampling.bias: %zu entries, expected at most %d", m->n_bias,
                         facts->V);
    eng_bias *bias = arena_alloc(r->memory, (m->n_bias + 1) * sizeof *bias);
    if (!bias) return error_set(err, ST_NO_MEMORY, "no memory for %zu biases", m->n_bias);
    for (size_t i = 0; i < m->n_bias; i++) bias[i] = (eng_bias){m->bias[i]->token, m->bias[i]->bias};
    r->sampling = (eng_sampling){.temperature = m->temperature,
                                 .top_k = m->top_k,
                                 .top_p = m->top_p,
                                 .min_p = m->min_p,
                                 .repetition = m->repetition,
                                 .presence = m->presence,
                                 .frequency = m->frequency,
                                 .seed = m->seed,
                                 .logprobs = m->logprobs,
                                 .bias = bias,
                                 .bias_count = (int32_t)m->n_bias};
    return eng_sampling_check(&r->sampling, facts->V, err);
}

status node_service_priority(int32_t priority, node_request *r, error *err) {
    if (priority < -PRIORITY_MAX || priority > PRIORITY_MAX)
        return error_set(err, ST_BAD_INPUT, "priority is %d, expected %d to %d", priority, -PRIORITY_MAX, PRIORITY_MAX);
    r->priority = priority;
    return ST_OK;
}

status node_service_id(const char *id, node_request *r, error *err) {
    size_t bytes = strlen(id);
    if (bytes == 0 || bytes > ID_BYTES_MAX)
        return error_set(err, ST_BAD_INPUT, "request_id: %zu bytes, expected 1 to %d", bytes, ID_BYTES_MAX);
    for (size_t i = 0; i < bytes; i++)                     /* it goes into log lines */
        if (id[i] <= ' ' || id[i] == 127)
            return error_set(err, ST_BAD_INPUT, "request_id: byte %zu is not printable", i);
    r->id = arena_strndup(r->memory, id, bytes);
    return r->id ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory for the request_id");
}

/* ---- events ----------------------------------------------------------------------------------------- */

void node_service_token(const node_event *e, node_token_message *out) {
    const eng_sampled *s = &e->token.sampled;
    baton__node__v1__token__init(&out->token);
    out->token.index = e->token.index;
    out->token.token = s->token;
    if (!isnan(s->logprob)) {
        out->token.logprob_set_case = BATON__NODE__V1__TOKEN__LOGPROB_SET_LOGPROB;
        out->token.logprob = s->logprob;
    }
    for (int32_t i = 0; i < s->top_count; i++) {
        baton__node__v1__alternative__init(&out->top[i]);
        out->top[i].token = s->top_token[i];
        out->top[i].logprob = s->top_logprob[i];
        out->tops[i] = &out->top[i];
    }
    out->token.n_top = (size_t)s->top_count;
    out->token.top = out->tops;
}
