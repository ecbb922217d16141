/* answer.c -- what baton generate prints: text as it comes, or the JSON object; what goes beside it, on stderr: the prompt's
 * log probabilities, the nodes that were compared. */
#include "cli/cli.h"
#include <float.h>
#include <jansson.h>
#include <string.h>

enum { ANSWERS_MAX = 16 };

/* An answer in JSON as it grows: open_answer() and cli_answers_take() set its keys. */
struct cli_answers {
    bool json;
    bool stream; /* print text as it comes */
    bool explain; /* on stderr */
    bool started;
    json_t *prompt; /* its tokens, with --json; NULL: their logprobs are not wanted */
    int prompt_count;
    json_t *at[ANSWERS_MAX];
    int count;
    char *text[ANSWERS_MAX];
    size_t bytes[ANSWERS_MAX];
    bool failed;
};

cli_answers *cli_answers_create(const cli_options *o) {
    cli_answers *w = mem_zalloc(1, sizeof *w);
    if (!w) return NULL;
    w->json = o->json;
    w->stream = !o->json && o->n == 1;
    w->explain = !o->json && o->explain;
    return w;
}

bool cli_answers_started(const cli_answers *w) { return w->started; }

/* JSON has no infinity. */
static double finite_of(float x) { return x < -FLT_MAX ? -FLT_MAX : x; }

static json_t *logprob_json(const Baton__V1__TokenInfo *t) {
    json_t *top = json_array();
    for (size_t i = 0; i < t->n_top; i++)
        json_array_append_new(top,
                              json_pack("{s:i, s:f, s:s}", "token", t->top[i]->token, "logprob",
                                        finite_of(t->top[i]->logprob), "text", t->top[i]->text));
    return json_pack("{s:i, s:f, s:o}", "token", t->token, "logprob", finite_of(t->logprob), "top",
                     top);
}

static bool has_logprob(const Baton__V1__TokenInfo *t) {
    return t->logprob_set_case == BATON__V1__TOKEN_INFO__LOGPROB_SET_LOGPROB;
}

/* The prompt's first token has no logprob. */
static json_t *prompt_json(const Baton__V1__TokenInfo *t) {
    json_t *j = logprob_json(t);
    if (!has_logprob(t)) json_object_set_new(j, "logprob", json_null());
    json_object_set_new(j, "text", json_string(t->text));
    return j;
}

/* In quotes, and so that it stays on its line. */
static void print_quoted(const char *text) {
    json_t *j = json_string(text);
    json_dumpf(j, stderr, JSON_ENCODE_ANY);
    json_decref(j);
}

static void print_prompt(int position, const Baton__V1__TokenInfo *t) {
    if (position == 0) fprintf(stderr, "%8s %8s %10s  %s\n", "position", "token", "logprob", "text, and what was likeliest there");
    fprintf(stderr, "%8d %8d ", position, t->token);
    if (has_logprob(t)) fprintf(stderr, "%10.4f  ", t->logprob);
    else fprintf(stderr, "%10s  ", "");
    print_quoted(t->text);
    for (size_t i = 0; i < t->n_top; i++) {
        fprintf(stderr, "%s", i ? ", " : "   ");
        print_quoted(t->top[i]->text);
        fprintf(stderr, " %.4f", t->top[i]->logprob);
    }
    fputc('\n', stderr);
}

static void take_prompt(cli_answers *w, const Baton__V1__GenerateChunk *c) {
    for (size_t i = 0; i < c->n_prompt; i++, w->prompt_count++) {
        if (!w->json) print_prompt(w->prompt_count, c->prompt[i]);
        else if (!w->prompt) w->prompt = json_pack("[o]", prompt_json(c->prompt[i]));
        else json_array_append_new(w->prompt, prompt_json(c->prompt[i]));
    }
}

static json_t *costs_json(const Baton__V1__Finish *f) {
    json_t *list = json_array();
    for (size_t i = 0; i < f->n_costs; i++) {
        const Baton__V1__RouteCost *c = f->costs[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:i, s:f, s:f, s:f, s:f, s:f}", "node", c->node, "role", c->role,
                                               "chosen", c->chosen, "cached_tokens", c->cached_tokens, "queue_ms", c->queue,
                                               "prefill_ms", c->prefill, "transfer_ms", c->transfer, "decode_ms", c->decode,
                                               "total_ms", c->total));
    }
    return list;
}

/* Beside an answer that is text. */
static void print_costs(const Baton__V1__GenerateChunk *chunk) {
    const Baton__V1__Finish *f = chunk->finish;
    fprintf(stderr, "\nanswer %d: route by %s, in ms; > is where it went\n", chunk->index + 1, f->policy);
    fprintf(stderr, "  %-16s %-8s %8s %10s %10s %10s %10s %10s\n", "node", "role", "cached", "queue", "prefill", "transfer",
            "decode", "total");
    for (size_t i = 0; i < f->n_costs; i++) {
        const Baton__V1__RouteCost *c = f->costs[i];
        fprintf(stderr, "%c %-16s %-8s %8d %10.2f %10.2f %10.2f %10.2f %10.2f\n", c->chosen ? '>' : ' ', c->node, c->role,
                c->cached_tokens, c->queue, c->prefill, c->transfer, c->decode, c->total);
    }
}

static void add_finish(json_t *j, const Baton__V1__Finish *f) {
    const Baton__V1__Usage *u = f->usage;
    const Baton__V1__Timings *t = f->timings;
    const char *reason =
        f->reason == BATON__V1__FINISH_REASON__FINISH_REASON_LENGTH ? "length" : "stop";
    json_object_set_new(j, "finish_reason", json_string(reason));
    if (u)
        json_object_set_new(j, "usage",
                            json_pack("{s:i, s:i, s:i}", "prompt_tokens", u->prompt_tokens,
                                      "completion_tokens", u->completion_tokens, "cached_tokens",
                                      u->cached_tokens));
    if (t)
        json_object_set_new(j, "timings_ms",
                            json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "tokenise", t->tokenise, "queue", t->queue, "prefill",
                                      t->prefill, "kv_transfer", t->kv_transfer, "ttft", t->ttft,
                                      "decode", t->decode));
    if (t && t->held > 0) json_object_set_new(json_object_get(j, "timings_ms"), "held", json_real(t->held));
    if (u && t)
        json_object_set_new(j, "speculation",
                            json_pack("{s:i, s:i, s:f}", "proposed_tokens", u->proposed_tokens, "accepted_tokens",
                                      u->accepted_tokens, "draft_ms", t->draft));
    json_object_set_new(
        j, "nodes", json_pack("{s:s, s:s}", "prefill", f->prefill_node, "decode", f->decode_node));
    json_object_set_new(j, "attempts", json_integer(f->attempts));
    if (!*f->policy) return;
    json_object_set_new(j, "policy", json_string(f->policy));
    json_object_set_new(j, "route", costs_json(f));
}

static void open_answer(cli_answers *w, const Baton__V1__GenerateChunk *c) {
    w->at[c->index] = json_pack("{s:s, s:[], s:s, s:s}", "text", "", "tokens", "request_id",
                                c->request_id, "seed", "");
    char seed[24];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)c->seed); /* JSON numbers end at 2^53 */
    json_object_set_new(w->at[c->index], "seed", json_string(seed));
    if (c->index >= w->count) w->count = c->index + 1;
}

static bool keep_text(cli_answers *w, int k, const char *text) {
    size_t bytes = strlen(text);
    char *more = mem_realloc(w->text[k], w->bytes[k] + bytes + 1);
    if (!more) return false;
    memcpy(more + w->bytes[k], text, bytes + 1);
    w->text[k] = more;
    w->bytes[k] += bytes;
    return true;
}

void cli_answers_take(const ProtobufCMessage *m, void *user) {
    const Baton__V1__GenerateChunk *c = (const Baton__V1__GenerateChunk *)m;
    cli_answers *w = user;
    if (c->index < 0 || c->index >= ANSWERS_MAX) return;
    w->started = true;
    take_prompt(w, c);
    if (w->explain && c->finish) print_costs(c);
    if (w->stream) {
        fputs(c->text, stdout);
        fflush(stdout);
        return;
    }
    if (!w->at[c->index]) open_answer(w, c);
    json_t *j = w->at[c->index];
    if (!j || !keep_text(w, c->index, c->text)) {
        w->failed = true;
        return;
    }
    for (size_t i = 0; i < c->n_tokens; i++) {
        const Baton__V1__TokenInfo *t = c->tokens[i];
        json_array_append_new(json_object_get(j, "tokens"), json_integer(t->token));
        if (!has_logprob(t)) continue;
        if (!json_object_get(j, "logprobs")) json_object_set_new(j, "logprobs", json_array());
        json_array_append_new(json_object_get(j, "logprobs"), logprob_json(t));
    }
    if (c->finish) add_finish(j, c->finish);
}

/* One answer is one object; several are the list `choices`. */
static void print_json(cli_answers *w) {
    json_t *whole = w->count == 1 ? w->at[0] : json_pack("{s:[]}", "choices");
    for (int i = 0; i < w->count; i++) {
        json_object_set_new(w->at[i], "text",
                            json_stringn(w->text[i] ? w->text[i] : "", w->bytes[i]));
        if (w->count > 1) json_array_append(json_object_get(whole, "choices"), w->at[i]);
    }
    if (w->prompt) json_object_set(whole, "prompt_logprobs", w->prompt);
    json_dumpf(whole, stdout, JSON_PRESERVE_ORDER | JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    if (w->count > 1) json_decref(whole);
}

status cli_answers_print(cli_answers *w, status st, error *err) {
    if (st == ST_OK && w->failed) st = error_set(err, ST_NO_MEMORY, "no memory for the answer");
    if (st == ST_OK && w->json)
        print_json(w);
    else if (w->stream && (w->started || st == ST_OK))
        putchar('\n');
    else if (st == ST_OK)
        for (int i = 0; i < w->count; i++) printf("[%d] %s\n", i + 1, w->text[i] ? w->text[i] : "");
    fflush(stdout);
    return st;
}

void cli_answers_destroy(cli_answers *w) {
    if (!w) return;
    json_decref(w->prompt);
    for (int i = 0; i < ANSWERS_MAX; i++) {
        json_decref(w->at[i]);
        mem_free(w->text[i]);
    }
    mem_free(w);
}
