/* model.c -- what the coordinator knows of the model file: names, figures, vocabulary, chat
 * template. It maps the file but reads no weights; digest and context are compared with what nodes
 * report. */
#include "coordinator/service.h"
#include <string.h>

void coord_model_name(const char *path, char out[COORD_MODEL_NAME_MAX]) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t bytes = strlen(name), suffix = strlen(".gguf");
    if (bytes > suffix && strcmp(name + bytes - suffix, ".gguf") == 0) bytes -= suffix;
    snprintf(out, COORD_MODEL_NAME_MAX, "%.*s", (int)(bytes < COORD_MODEL_NAME_MAX ? bytes : COORD_MODEL_NAME_MAX - 1), name);
}

static status read_context(coord_model *m, error *err) {
    const char *architecture;
    size_t bytes;
    int64_t context;
    char key[100];
    TRY(eng_gguf_text(m->gguf, "general.architecture", &architecture, &bytes, err));
    snprintf(key, sizeof key, "%.*s.context_length", (int)(bytes < 60 ? bytes : 60), architecture);
    TRY(eng_gguf_int(m->gguf, key, &context, err));
    if (context < 2 || context > INT32_MAX)
        return error_set(err, ST_BAD_INPUT, "%s: %s is %lld, expected 2 to %d", m->id, key,
                         (long long)context, INT32_MAX);
    m->context = (int32_t)context;
    return ST_OK;
}

/* A model without a template, or with one outside our subset of Jinja, serves all but chats. */
static status read_template(coord_model *m, error *err) {
    const char *source = "";
    size_t bytes = 0;
    status st = eng_gguf_text(m->gguf, "tokenizer.chat_template", &source, &bytes, NULL);
    if (st != ST_OK) bytes = 0;
    m->chat_source = mem_alloc(bytes + 1);
    if (!m->chat_source) return error_set(err, ST_NO_MEMORY, "%s: no memory", m->id);
    memcpy(m->chat_source, source, bytes);
    m->chat_source[bytes] = 0;
    if (bytes == 0)
        error_set(&m->chat_why, ST_REFUSED,
                  "model %s has no chat template: expected prompt or tokens", m->id);
    else if (eng_template_open(source, bytes, &m->chat, &m->chat_why) != ST_OK)
        log_write(LOG_WARN, NULL, "model.template", "chats are refused: %s", m->chat_why.text);
    return ST_OK;
}

status coord_model_open(const char *path, coord_model *out, error *err) {
    coord_model m = {0};
    TRY(eng_gguf_open(path, &m.gguf, err));
    coord_model_name(path, m.id);
    m.digest = eng_gguf_digest(m.gguf);
    status st = read_context(&m, err);
    if (st == ST_OK) st = eng_vocab_open(m.gguf, &m.vocab, err);
    if (st == ST_OK) st = read_template(&m, err);
    if (st != ST_OK) {
        coord_model_close(&m);
        return st;
    }
    *out = m;
    return ST_OK;
}

void coord_model_close(coord_model *m) {
    if (m->chat) eng_template_close(m->chat);
    if (m->vocab) eng_vocab_close(m->vocab);
    if (m->gguf) eng_gguf_close(m->gguf);
    mem_free(m->chat_source);
    *m = (coord_model){0};
}

status coord_model_find(const coord_model *m, const char *id, error *err) {
    if (!*id || strcmp(id, m->id) == 0) return ST_OK;
    return error_set(err, ST_NOT_FOUND, "model '%.100s' is not served here: expected '%s' or none",
                     id, m->id);
}

status coord_model_tokenize(const coord_model *m, const char *text, arena *a, int32_t **tokens,
                            int32_t *count, error *err) {
    int32_t *plain, plain_count, bos = eng_vocab_bos(m->vocab);
    size_t bytes = strlen(text), most = (size_t)m->context * eng_detok_max(m->vocab);
    if (bytes > most) /* said before the work, which everyone on this loop would wait for */
        return error_set(err, ST_BAD_INPUT, "prompt of %zu bytes: no %d tokens, the context, can hold it",
                         bytes, m->context);
    TRY(eng_vocab_tokenize(m->vocab, text, bytes, true, a, &plain, &plain_count, err));
    bool has_bos = plain_count > 0 && plain[0] == bos;
    if (!eng_vocab_adds_bos(m->vocab) || bos < 0 || has_bos) {
        *tokens = plain;
        *count = plain_count;
        return ST_OK;
    }
    int32_t *whole = arena_alloc(a, ((size_t)plain_count + 1) * sizeof *whole);
    if (!whole) return error_set(err, ST_NO_MEMORY, "no memory for the prompt");
    whole[0] = bos;
    memcpy(whole + 1, plain, (size_t)plain_count * sizeof *whole);
    *tokens = whole;
    *count = plain_count + 1;
    return ST_OK;
}

/* NUL-terminated spelling of a token, "" when there is none. */
static const char *spelling(const coord_model *m, int32_t token, arena *a) {
    size_t bytes;
    if (token < 0) return "";
    const char *text = eng_vocab_bytes(m->vocab, token, &bytes);
    return arena_strndup(a, text, bytes);
}

status coord_model_tokenize_chat(const coord_model *m, const Baton__V1__Chat *chat, arena *a,
                                 int32_t **tokens, int32_t *count, error *err) {
    if (!m->chat) return error_set(err, m->chat_why.code, "%s", m->chat_why.text);
    if (chat->n_messages == 0)
        return error_set(err, ST_BAD_INPUT, "chat has no messages: expected at least one");
    eng_message *messages = arena_alloc(a, chat->n_messages * sizeof *messages);
    const char *bos = spelling(m, eng_vocab_bos(m->vocab), a);
    const char *eos = spelling(m, eng_vocab_eos(m->vocab), a);
    if (!messages || !bos || !eos) return error_set(err, ST_NO_MEMORY, "no memory for the chat");
    for (size_t i = 0; i < chat->n_messages; i++) {
        if (!*chat->messages[i]->role)
            return error_set(
                err, ST_BAD_INPUT,
                "message %zu of the chat has no role: expected system, user or assistant", i);
        messages[i] = (eng_message){chat->messages[i]->role, chat->messages[i]->content};
    }
    char *text;
    TRY(eng_template_render(m->chat, messages, (int)chat->n_messages, true, bos, eos, a, &text,
                            err));
    return coord_model_tokenize(m, text, a, tokens, count, err);
}
