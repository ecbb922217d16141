/* check.c -- a GenerateRequest from anywhere becomes a job that every node can serve, or one line
 * saying which field is wrong, what it said and what was expected. Pure: nothing is started here,
 * so a refused request has cost its tokenising at most.
 *
 * protobuf-c does not look into strings, so UTF-8 is checked here; numbers are checked before any
 * is narrowed or used as an index. */
#include "coordinator/service.h"
#include <string.h>
#include <utf8proc.h>

/* Offset of the first byte that is not UTF-8, -1: all of it is. */
static int64_t utf8_wrong_at(const char *text) {
    utf8proc_int32_t character;
    const utf8proc_uint8_t *at = (const utf8proc_uint8_t *)text;
    while (*at) {
        utf8proc_ssize_t n = utf8proc_iterate(at, -1, &character);
        if (n <= 0) return (const char *)at - text;
        at += n;
    }
    return -1;
}

static status check_utf8(const char *what, const char *text, error *err) {
    int64_t at = utf8_wrong_at(text);
    if (at < 0) return ST_OK;
    return error_set(err, ST_BAD_INPUT, "%s is not valid UTF-8 at byte %lld", what, (long long)at);
}

static status check_range(const char *what, int64_t value, int64_t min, int64_t max, error *err) {
    if (value >= min && value <= max) return ST_OK;
    return error_set(err, ST_BAD_INPUT, "%s is %lld: expected %lld to %lld", what, (long long)value,
                     (long long)min, (long long)max);
}

status coord_check_tokens(const coord_model *m, const char *what, const int32_t *tokens,
                          size_t count, error *err) {
    int32_t V = eng_vocab_count(m->vocab);
    for (size_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= V)
            return error_set(err, ST_BAD_INPUT, "%s[%zu] is %d: expected a token id from 0 to %d",
                             what, i, tokens[i], V - 1);
    return ST_OK;
}

static status check_id(const char *id, error *err) {
    size_t bytes = strlen(id);
    if (bytes > COORD_ID_BYTES_MAX)
        return error_set(err, ST_BAD_INPUT, "request_id has %zu bytes: expected at most %d", bytes,
                         COORD_ID_BYTES_MAX);
    for (size_t i = 0; i < bytes; i++)
        if (id[i] <= ' ' || id[i] > '~')
            return error_set(err, ST_BAD_INPUT,
                             "request_id has byte 0x%02x at %zu: expected "
                             "printable ASCII without spaces",
                             (unsigned char)id[i], i);
    return ST_OK;
}

/* ---- prompt -------------------------------------------------------------------------------------
 */

static status take_ids(const coord_model *m, const Baton__V1__Tokens *t, arena *a, coord_job *out,
                       error *err) {
    TRY(coord_check_tokens(m, "tokens.ids", t->ids, t->n_ids, err));
    if (t->n_ids >= (size_t)m->context) { /* said below; here it bounds the copy */
        out->count = (int32_t)(t->n_ids < INT32_MAX ? t->n_ids : INT32_MAX);
        return ST_OK;
    }
    out->tokens = arena_alloc(a, (t->n_ids + 1) * sizeof *out->tokens);
    if (!out->tokens) return error_set(err, ST_NO_MEMORY, "no memory for the prompt");
    if (t->n_ids) memcpy(out->tokens, t->ids, t->n_ids * sizeof *out->tokens);
    out->count = (int32_t)t->n_ids;
    return ST_OK;
}

static status take_chat(const coord_model *m, const Baton__V1__Chat *chat, arena *a, coord_job *out,
                        error *err) {
    for (size_t i = 0; i < chat->n_messages; i++) {
        char what[64];
        snprintf(what, sizeof what, "chat.messages[%zu]", i);
        TRY(check_utf8(what, chat->messages[i]->role, err));
        TRY(check_utf8(what, chat->messages[i]->content, err));
    }
    return coord_model_tokenize_chat(m, chat, a, &out->tokens, &out->count, err);
}

static status take_prompt(const coord_model *m, const Baton__V1__GenerateRequest *r, arena *a,
                          coord_job *out, error *err) {
    switch (r->input_case) {
    case BATON__V1__GENERATE_REQUEST__INPUT_PROMPT:
        if (!*r->prompt) return error_set(err, ST_BAD_INPUT, "prompt is empty: expected some text");
        TRY(check_utf8("prompt", r->prompt, err));
        TRY(coord_model_tokenize(m, r->prompt, a, &out->tokens, &out->count, err));
        break;
    case BATON__V1__GENERATE_REQUEST__INPUT_TOKENS:
        TRY(take_ids(m, r->tokens, a, out, err));
        break;
    case BATON__V1__GENERATE_REQUEST__INPUT_CHAT:
        TRY(take_chat(m, r->chat, a, out, err));
        break;
    default:
        return error_set(err, ST_BAD_INPUT, "no input: expected one of prompt, tokens, chat");
    }
    if (out->count == 0)
        return error_set(err, ST_BAD_INPUT, "the prompt has no tokens: expected at least one");
    if (out->count >= m->context)
        return error_set(err, ST_BAD_INPUT,
                         "the prompt has %d tokens: expected at most %d, one less "
                         "than the model's context of %d",
                         out->count, m->context - 1, m->context);
    return ST_OK;
}

/* ---- the rest -------------------------------------------------------------------------------- */

static status take_sampling(const coord_model *m, const Baton__V1__GenerateRequest *r, arena *a,
                            coord_job *out, error *err) {
    eng_sampling *p = &out->sampling;
    *p = eng_sampling_default;
    if (r->logprobs_set_case == BATON__V1__GENERATE_REQUEST__LOGPROBS_SET_LOGPROBS) {
        TRY(check_range("logprobs", r->logprobs, 0, ENG_LOGPROBS_MAX, err));
        p->logprobs = r->logprobs;
    }
    const Baton__V1__Sampling *s = r->sampling;
    if (!s) return ST_OK;
    p->temperature = s->temperature;
    p->top_k = s->top_k;
    p->min_p = s->min_p;
    p->presence = s->presence_penalty;
    p->frequency = s->frequency_penalty;
    if (s->top_p_set_case == BATON__V1__SAMPLING__TOP_P_SET_TOP_P) p->top_p = s->top_p;
    if (s->repetition_set_case == BATON__V1__SAMPLING__REPETITION_SET_REPETITION_PENALTY)
        p->repetition = s->repetition_penalty;
    out->has_seed = s->seed_set_case == BATON__V1__SAMPLING__SEED_SET_SEED;
    if (out->has_seed) p->seed = s->seed;
    TRY(check_range("number of logit_bias entries", (int64_t)s->n_logit_bias, 0, COORD_BIAS_MAX,
                    err));
    eng_bias *bias = arena_alloc(a, (s->n_logit_bias + 1) * sizeof *bias);
    if (!bias) return error_set(err, ST_NO_MEMORY, "no memory for logit_bias");
    for (size_t i = 0; i < s->n_logit_bias; i++)
        bias[i] = (eng_bias){s->logit_bias[i]->token, s->logit_bias[i]->bias};
    p->bias = bias;
    p->bias_count = (int32_t)s->n_logit_bias;
    return eng_sampling_check(p, eng_vocab_count(m->vocab), err);
}

static status take_stops(const coord_model *m, const Baton__V1__GenerateRequest *r, arena *a,
                         coord_job *out, error *err) {
    TRY(check_range("number of stop strings", (int64_t)r->n_stop, 0, COORD_STOPS_MAX, err));
    TRY(check_range("number of stop_tokens", (int64_t)r->n_stop_tokens, 0, COORD_STOP_TOKENS_MAX,
                    err));
    TRY(coord_check_tokens(m, "stop_tokens", r->stop_tokens, r->n_stop_tokens, err));
    out->stops = arena_alloc(a, (r->n_stop + 1) * sizeof *out->stops);
    out->stop_tokens = arena_alloc(a, (r->n_stop_tokens + 1) * sizeof *out->stop_tokens);
    if (!out->stops || !out->stop_tokens) goto no_memory;
    for (size_t i = 0; i < r->n_stop; i++) {
        char what[32];
        snprintf(what, sizeof what, "stop[%zu]", i);
        size_t bytes = strlen(r->stop[i]);
        if (bytes == 0 || bytes > COORD_STOP_BYTES_MAX)
            return error_set(err, ST_BAD_INPUT, "%s has %zu bytes: expected 1 to %d", what, bytes,
                             COORD_STOP_BYTES_MAX);
        TRY(check_utf8(what, r->stop[i], err));
        if (!(out->stops[i] = arena_strndup(a, r->stop[i], bytes))) goto no_memory;
    }
    out->stops_count = (int32_t)r->n_stop;
    for (size_t i = 0; i < r->n_stop_tokens; i++) out->stop_tokens[i] = r->stop_tokens[i];
    out->stop_tokens_count = (int32_t)r->n_stop_tokens;
    return ST_OK;
no_memory:
    return error_set(err, ST_NO_MEMORY, "no memory for stop strings");
}

/* More than fits is not an error: the answer ends where the context does. */
static status take_max_tokens(const coord_model *m, const Baton__V1__GenerateRequest *r,
                              coord_job *out, error *err) {
    int32_t room = m->context - out->count;
    out->max_tokens = room;
    if (r->max_tokens_set_case != BATON__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS)
        return ST_OK;
    if (r->max_tokens <= 0)
        return error_set(err, ST_BAD_INPUT, "max_tokens is %d: expected at least 1", r->max_tokens);
    if (r->max_tokens < room) out->max_tokens = r->max_tokens;
    return ST_OK;
}

bool coord_check_ends(const coord_model *m, const coord_job *job, int32_t token) {
    for (int32_t i = 0; i < job->stop_tokens_count; i++)
        if (job->stop_tokens[i] == token) return true;
    return !job->ignore_eos && eng_vocab_is_stop(m->vocab, token);
}

/* ---- what the client has already ------------------------------------------------------------- */

/* The answer's tokens could be these. */
static status check_seen(const coord_model *m, const coord_job *job, const Baton__V1__Seen *s, error *err) {
    char what[40];
    snprintf(what, sizeof what, "seen[index %d].tokens", s->index);
    TRY(coord_check_tokens(m, what, s->tokens, s->n_tokens, err));
    if (s->n_tokens > (size_t)job->max_tokens)
        return error_set(err, ST_BAD_INPUT, "%s: %zu tokens: expected at most %d, what max_tokens or the context allows", what,
                         s->n_tokens, job->max_tokens);
    if (s->finished && s->n_tokens == 0)
        return error_set(err, ST_BAD_INPUT, "%s: an answer that is finished has at least one token", what);
    for (size_t i = 0; i + 1 < s->n_tokens; i++)
        if (coord_check_ends(m, job, s->tokens[i]))
            return error_set(err, ST_BAD_INPUT, "%s[%zu] is %d, which ends the answer: expected no token after it", what, i,
                             s->tokens[i]);
    return ST_OK;
}

static status copy_seen(const coord_job *job, const Baton__V1__Seen *from, arena *a, coord_seen *to, error *err) {
    to->tokens = arena_alloc(a, ((size_t)job->count + from->n_tokens) * sizeof *to->tokens);
    if (!to->tokens) return error_set(err, ST_NO_MEMORY, "no memory for what was seen");
    memcpy(to->tokens, job->tokens, (size_t)job->count * sizeof *to->tokens);
    if (from->n_tokens) memcpy(to->tokens + job->count, from->tokens, from->n_tokens * sizeof *to->tokens);
    to->count = job->count + (int32_t)from->n_tokens;
    to->finished = from->finished;
    return ST_OK;
}

static status take_seen(const coord_model *m, const Baton__V1__GenerateRequest *r, arena *a, coord_job *out, error *err) {
    if (r->n_seen == 0) return ST_OK;
    if (out->sampling.temperature > 0 && !out->has_seed)
        return error_set(err, ST_BAD_INPUT, "sampling.seed is missing: with seen, and a temperature above 0, "
                                            "expected the one that the answer's first chunk told");
    TRY(check_range("number of entries in seen", (int64_t)r->n_seen, 0, out->n, err));
    out->seen = arena_alloc(a, (size_t)out->n * sizeof *out->seen);
    if (!out->seen) return error_set(err, ST_NO_MEMORY, "no memory for what was seen");
    for (size_t i = 0; i < r->n_seen; i++) {
        const Baton__V1__Seen *s = r->seen[i];
        TRY(check_range("index of an entry in seen", s->index, 0, out->n - 1, err));
        if (out->seen[s->index].count > 0)
            return error_set(err, ST_BAD_INPUT, "seen has index %d twice: expected one entry for each answer", s->index);
        TRY(check_seen(m, out, s, err));
        TRY(copy_seen(out, s, a, &out->seen[s->index], err));
    }
    return ST_OK;
}

status coord_check_generate(const coord_model *m, const Baton__V1__GenerateRequest *r, arena *a,
                            coord_job *out, error *err) {
    coord_job job = {.n = 1, .ignore_eos = r->ignore_eos, .explain = r->explain, .prompt_logprobs = -1};
    TRY(coord_model_find(m, r->model, err));
    TRY(check_id(r->request_id, err));
    if (r->n_set_case == BATON__V1__GENERATE_REQUEST__N_SET_N) job.n = r->n;
    TRY(check_range("n", job.n, 1, COORD_N_MAX, err));
    TRY(check_range("priority", r->priority, -PRIORITY_MAX, PRIORITY_MAX, err));
    job.priority = r->priority;
    if (r->prompt_logprobs_set_case == BATON__V1__GENERATE_REQUEST__PROMPT_LOGPROBS_SET_PROMPT_LOGPROBS) {
        TRY(check_range("prompt_logprobs", r->prompt_logprobs, 0, ENG_LOGPROBS_MAX, err));
        job.prompt_logprobs = r->prompt_logprobs;
    }
    TRY(take_sampling(m, r, a, &job, err));
    TRY(take_stops(m, r, a, &job, err));
    TRY(take_prompt(m, r, a, &job, err));
    TRY(take_max_tokens(m, r, &job, err));
    TRY(take_seen(m, r, a, &job, err));
    job.id = arena_strndup(a, r->request_id, strlen(r->request_id));
    if (!job.id) return error_set(err, ST_NO_MEMORY, "no memory for the request");
    *out = job;
    return ST_OK;
}
