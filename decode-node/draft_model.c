/* draft_model.c -- the draft's model and the memory of its pages: on rank 0 alone, on its engine thread. */
#include "decode-node/draft.h"
#include <string.h>

enum { STEP_TOKENS = 512, STEP_LOGITS = 64 };

struct decode_draft_model {
    eng_gguf *gguf;
    eng_model *model;
    eng_kv *kv;
    eng_sampler *sampler;
    int64_t step_us;
};

/* ---- steps ---------------------------------------------------------------------------------------------- */

static status draw(decode_draft_model *m, const decode_draft_rows *r, const float *logits) {
    const node_request *q = r->seq->request;
    eng_sampling how = q->sampling;
    eng_sampled got;
    how.logprobs = -1;
    TRY(eng_sample(m->sampler, &how, logits, r->seq->tokens, q->prompt_count, r->rows.position + r->rows.count, &got));
    *r->token = got.token;
    return ST_OK;
}

static status step(void *ctx, const decode_draft_rows *rows, int count) {
    decode_draft_model *m = ctx;
    eng_rows plain[STEP_LOGITS];
    const float *logits = NULL;
    error err;
    int64_t began_us = clock_now_us();
    for (int i = 0; i < count; i++) plain[i] = rows[i].rows;
    status st = eng_step(m->model, m->kv, plain, count, &logits, &err);
    if (st != ST_OK) log_write(LOG_ERROR, NULL, "draft.failed", "no more drafts: %s", err.text);
    for (int i = 0; i < count && st == ST_OK; i++) {
        if (!rows[i].token) continue;
        st = draw(m, &rows[i], logits);
        logits += eng_model_shape(m->model)->V;
        if (st != ST_OK) log_write(LOG_ERROR, rows[i].seq->request->id, "draft.failed", "no more drafts: the logits are not numbers");
    }
    m->step_us = clock_now_us() - began_us;
    return st;
}

static int64_t step_us(void *ctx) { return ((decode_draft_model *)ctx)->step_us; }

/* ---- the vocabulary ------------------------------------------------------------------------------------- */

static status compare_token(const eng_vocab *a, const eng_vocab *b, int32_t i, const decode_speculate_options *o, error *err) {
    size_t na, nb;
    const char *ta = eng_vocab_bytes(a, i, &na), *tb = eng_vocab_bytes(b, i, &nb);
    if (na != nb || memcmp(ta, tb, na) != 0)
        return error_set(err, ST_REFUSED, "--draft '%.100s': token %d is '%.*s', and '%.*s' in '%.100s': expected the same vocabulary",
                         o->draft, i, (int)(nb < 30 ? nb : 30), tb, (int)(na < 30 ? na : 30), ta, o->model);
    if (eng_vocab_is_control(a, i) != eng_vocab_is_control(b, i))
        return error_set(err, ST_REFUSED, "--draft '%.100s': token %d is %s control token, other than in '%.100s': expected the same vocabulary",
                         o->draft, i, eng_vocab_is_control(b, i) ? "a" : "no", o->model);
    return ST_OK;
}

static status compare(const eng_vocab *a, const eng_vocab *b, const decode_speculate_options *o, error *err) {
    if (eng_vocab_count(a) != eng_vocab_count(b))
        return error_set(err, ST_REFUSED, "--draft '%.100s': %d tokens, and %d in '%.100s': expected the same vocabulary", o->draft,
                         eng_vocab_count(b), eng_vocab_count(a), o->model);
    for (int32_t i = 0; i < eng_vocab_count(a); i++) TRY(compare_token(a, b, i, o, err));
    return ST_OK;
}

static status compare_files(const eng_gguf *draft, const decode_speculate_options *o, error *err) {
    eng_gguf *target = NULL;
    eng_vocab *a = NULL, *b = NULL;
    status st = eng_gguf_open(o->model, &target, err);
    if (st == ST_OK) st = eng_vocab_open(target, &a, err);
    if (st == ST_OK) st = eng_vocab_open(draft, &b, err);
    if (st == ST_OK) st = compare(a, b, o, err);
    if (a) eng_vocab_close(a);
    if (b) eng_vocab_close(b);
    eng_gguf_close(target);
    return st;
}

/* ---- open, close ---------------------------------------------------------------------------------------- */

static void log_memory(const decode_draft_model *m, int32_t pages) {
    bool is_private;
    size_t panels = eng_model_panel_bytes(m->model, &is_private), kv = eng_kv_page_bytes(m->kv) * (size_t)pages;
    log_write(LOG_INFO, NULL, "memory.draft", "mib=%.1f repacked weights %.1f (%s), pages %.1f, scratch %.1f",
              (double)(panels + kv + eng_model_scratch_bytes(m->model)) / (1 << 20), (double)panels / (1 << 20),
              is_private ? "private" : "shared between processes", (double)kv / (1 << 20),
              (double)eng_model_scratch_bytes(m->model) / (1 << 20));
}

static status open_model(decode_draft_model *m, const decode_speculate_options *o, decode_draft **draft, error *err) {
    TRY(eng_gguf_open(o->draft, &m->gguf, err));
    TRY(compare_files(m->gguf, o, err));
    eng_options options = {.isa = o->isa, .device = o->device, .threads = o->threads, .tokens_max = STEP_TOKENS,
                           .logits_max = STEP_LOGITS, .cache_dir = o->cache_dir};
    TRY(eng_model_open(m->gguf, &options, &m->model, err));
    TRY(eng_kv_create(m->model, o->kv_pages, o->page_tokens, o->kv_type, &m->kv, err));
    m->sampler = eng_sampler_create(eng_model_shape(m->model)->V);
    if (!m->sampler) return error_set(err, ST_NO_MEMORY, "no memory for the draft's sampler");
    decode_draft_io io = {.ctx = m, .step = step, .step_us = step_us};
    TRY(decode_draft_create(&io, o->kv_pages, o->page_tokens, eng_model_shape(m->model)->context, draft, err));
    log_memory(m, o->kv_pages);
    return ST_OK;
}

status decode_draft_model_open(const decode_speculate_options *o, decode_draft_model **out, decode_draft **draft, error *err) {
    decode_draft_model *m = mem_zalloc(1, sizeof *m);
    if (!m) return error_set(err, ST_NO_MEMORY, "no memory for a draft");
    status st = open_model(m, o, draft, err);
    if (st == ST_OK) *out = m;
    else decode_draft_model_close(m);
    return st;
}

void decode_draft_model_close(decode_draft_model *m) {
    if (!m) return;
    eng_sampler_destroy(m->sampler);
    eng_kv_destroy(m->kv);
    eng_model_close(m->model);
    eng_gguf_close(m->gguf);
    mem_free(m);
}
