/* template.c -- a chat template: compiled once, rendered for each chat.
 *
 * A bounded subset of Jinja2, set up as Hugging Face sets it up for chat templates:
 *   statements   if elif else, for (several targets, if, else), set (a name, a namespace's attribute),
 *                break, continue, {{ expression }}, {# comment #}, whitespace control
 *   expressions  strings, whole numbers, lists, dicts, true false none, names, .name [index] [a:b:c],
 *                or and not == != < <= > >= in, + - * // % ~, a if b else c, filters, tests, methods
 *   functions    namespace(), range(), raise_exception()
 *   given        messages (role, content), add_generation_prompt, bos_token, eos_token
 *
 * Whatever else a template names (tools, strftime_now, ...) is undefined. What is not supported fails
 * when it is reached, with its line and column: syntax at open, names at rendering.
 *
 * A template comes with a model from anywhere. It can neither call out nor run away: nesting,
 * steps, memory and output are bounded (template.h). It is read-only after open: threads may share
 * it. */
#include "engine/template_eval.h"
#include "engine/utf8.h"
#include <string.h>

/* Line ends as '\n', and without the last one, as Jinja2 reads a template. */
static status source_copy(eng_template *t, const char *source, size_t bytes, error *err) {
    char *copy = arena_alloc(t->memory, bytes + 1);
    if (!copy) return error_set(err, ST_NO_MEMORY, "template: no memory");
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (source[i] == '\r' && i + 1 < bytes && source[i + 1] == '\n') continue;
        copy[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n && copy[n - 1] == '\n') n--;
    t->source = copy;
    t->bytes = n;
    return ST_OK;
}

static status source_check(const char *source, size_t bytes, error *err) {
    if (bytes > ENG_TEMPLATE_SOURCE_MAX)
        return error_set(err, ST_BAD_INPUT, "template: %zu bytes, at most %d are read", bytes,
                         ENG_TEMPLATE_SOURCE_MAX);
    size_t bad = eng_utf8_check(source, bytes);
    if (bad < bytes) return error_set(err, ST_BAD_INPUT, "template: not UTF-8 at byte %zu", bad);
    if (bytes && memchr(source, 0, bytes))
        return error_set(err, ST_BAD_INPUT, "template: a NUL byte");
    return ST_OK;
}

static status compile(eng_template *t, const char *source, size_t bytes, error *err) {
    eng_token *tokens;
    if (!t->memory) return error_set(err, ST_NO_MEMORY, "template: no memory");
    TRY(source_copy(t, source, bytes, err));
    TRY(eng_template_lex(t->source, t->bytes, t->memory, &tokens, err));
    return eng_template_parse(t, tokens, err);
}

status eng_template_open(const char *source, size_t bytes, eng_template **out, error *err) {
    TRY(source_check(source, bytes, err));
    eng_template *t = mem_zalloc(1, sizeof *t);
    if (!t) return error_set(err, ST_NO_MEMORY, "template: no memory");
    t->memory = arena_create(16 << 10);
    status s = compile(t, source, bytes, err);
    if (s == ST_OK)
        *out = t;
    else
        eng_template_close(t);
    return s;
}

void eng_template_close(eng_template *t) {
    if (!t) return;
    arena_destroy(t->memory);
    mem_free(t);
}

status eng_template_render(const eng_template *t, const eng_message *messages, int count,
                           bool add_generation_prompt, const char *bos, const char *eos, arena *a,
                           char **text, error *err) {
    eng_run r = {.t = t, .scratch = arena_create(64 << 10), .err = err};
    eng_template_chat chat = {messages, count, add_generation_prompt, bos, eos};
    eng_builder b = {0};
    if (!r.scratch) return error_set(err, ST_NO_MEMORY, "template: no memory");
    status s = eng_template_eval(&r, &chat, &b);
    char *copy = s == ST_OK ? arena_strndup(a, b.text, b.bytes) : NULL;
    arena_destroy(r.scratch);
    if (s != ST_OK) return s;
    if (!copy)
        return error_set(err, ST_NO_MEMORY, "template: no memory for %zu bytes of text", b.bytes);
    *text = copy;
    return ST_OK;
}
