/* tokens_service.c -- the methods that need only the model file: Tokenize, Detokenize, ListModels,
 * GetModel. Each answers at once, on the loop. */
#include "coordinator/service.h"
#include <string.h>

static void answer(rpc_call *call, status st, const ProtobufCMessage *reply, const error *err) {
    if (st == ST_OK && rpc_call_send(call, reply) == ST_NO_MEMORY) {
        rpc_call_finish(call, ST_NO_MEMORY, "no memory for the answer", 1000);
        return;
    }
    rpc_call_finish(call, st, st == ST_OK ? NULL : err->text, -1);
}

static status tokenize(const coord_model *m, const Baton__V1__TokenizeRequest *r, arena *a,
                       int32_t **tokens, int32_t *count, error *err) {
    TRY(coord_model_find(m, r->model, err));
    switch (r->input_case) {
    case BATON__V1__TOKENIZE_REQUEST__INPUT_TEXT:
        return eng_vocab_tokenize(m->vocab, r->text, strlen(r->text), r->special, a, tokens, count,
                                  err);
    case BATON__V1__TOKENIZE_REQUEST__INPUT_CHAT:
        return coord_model_tokenize_chat(m, r->chat, a, tokens, count, err);
    default:
        return error_set(err, ST_BAD_INPUT, "no input: expected one of text, chat");
    }
}

void coord_tokens_tokenize(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    coord_service *s = ctx;
    error err = {0};
    int32_t *tokens = NULL, count = 0;
    Baton__V1__TokenizeResult result = BATON__V1__TOKENIZE_RESULT__INIT;
    arena *a = arena_create(4096);
    status st = a ? tokenize(&s->model, (const Baton__V1__TokenizeRequest *)request, a, &tokens,
                             &count, &err)
                  : error_set(&err, ST_NO_MEMORY, "no memory to tokenise");
    result.tokens = tokens;
    result.n_tokens = (size_t)count;
    answer(call, st, &result.base, &err);
    arena_destroy(a);
}

static status detokenize(const coord_model *m, const Baton__V1__DetokenizeRequest *r, arena *a,
                         char **text, error *err) {
    TRY(coord_model_find(m, r->model, err));
    TRY(coord_check_tokens(m, "tokens", r->tokens, r->n_tokens, err));
    size_t bytes = 32, used = 0;
    for (size_t i = 0; i < r->n_tokens; i++) { /* a broken byte may become U+FFFD: three for one */
        size_t one;
        eng_vocab_bytes(m->vocab, r->tokens[i], &one);
        bytes += 3 * one;
    }
    char *out = arena_alloc(a, bytes + eng_detok_max(m->vocab));
    if (!out) return error_set(err, ST_NO_MEMORY, "no memory for %zu tokens of text", r->n_tokens);
    eng_detok d = {0};
    for (size_t i = 0; i < r->n_tokens; i++)
        used += eng_detok_push(&d, m->vocab, r->tokens[i], r->special, out + used);
    used += eng_detok_end(&d, out + used);
    out[used] = 0;
    *text = out;
    return ST_OK;
}

void coord_tokens_detokenize(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    coord_service *s = ctx;
    error err = {0};
    Baton__V1__DetokenizeResult result = BATON__V1__DETOKENIZE_RESULT__INIT;
    arena *a = arena_create(4096);
    status st = a ? detokenize(&s->model, (const Baton__V1__DetokenizeRequest *)request, a,
                               &result.text, &err)
                  : error_set(&err, ST_NO_MEMORY, "no memory for text");
    answer(call, st, &result.base, &err);
    arena_destroy(a);
}

static void fill_model(const coord_model *m, Baton__V1__Model *out) {
    baton__v1__model__init(out);
    out->id = (char *)(uintptr_t)m->id;
    out->digest = (char *)(uintptr_t)m->digest;
    out->context = m->context;
    out->vocabulary = eng_vocab_count(m->vocab);
    out->chat_template = m->chat_source;
}

void coord_tokens_list_models(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    (void)request;
    coord_service *s = ctx;
    Baton__V1__Model model, *models[] = {&model};
    Baton__V1__ListModelsResult result = BATON__V1__LIST_MODELS_RESULT__INIT;
    fill_model(&s->model, &model);
    result.models = models;
    result.n_models = 1;
    answer(call, ST_OK, &result.base, NULL);
}

void coord_tokens_get_model(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    coord_service *s = ctx;
    error err = {0};
    Baton__V1__Model model;
    status st =
        coord_model_find(&s->model, ((const Baton__V1__GetModelRequest *)request)->id, &err);
    fill_model(&s->model, &model);
    answer(call, st, &model.base, &err);
}
