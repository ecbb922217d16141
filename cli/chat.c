/* chat.c -- baton chat: lines from stdin, answers to stdout, the conversation so far sent each
 * time. Ctrl-C cancels the answer being written; at the prompt it leaves, as does the end of stdin.
 */
#include "cli/cli.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static cli_exit chat(const cli_options *o, const char *const *words, int count);

static const config_row rows[] = {
    CLI_SERVER,
    CLI_CREDENTIAL,
    CLI_TENANT,
    CLI_TEXT("system", system, NULL, "TEXT", "a system message before the first line"),
    CLI_INT("max-tokens", max_tokens, "512", 1, 2147483647, "N", "most tokens of an answer"),
    CLI_REAL("temperature", temperature, "0.7", "X", "0: always the likeliest token"),
    CLI_REAL("top-p", top_p, "0.95", "X", "only the likeliest tokens that sum up to X; 1: off"),
};

const cli_command cli_chat = {"chat", "",  "A conversation on the terminal.", CLI_ROWS(rows), 0,
                              0,      chat};

enum { MESSAGES_MAX = 512 };

typedef struct talk {
    Baton__V1__ChatMessage message[MESSAGES_MAX], *at[MESSAGES_MAX];
    size_t count;
    char *answer; /* grows while it streams */
    size_t bytes;
    bool failed;
} talk;

/* content becomes the talk's. */
static bool say(talk *t, const char *role, char *content) {
    if (!content || t->count == MESSAGES_MAX) {
        mem_free(content);
        return false;
    }
    Baton__V1__ChatMessage *m = &t->message[t->count];
    baton__v1__chat_message__init(m);
    m->role = (char *)(uintptr_t)role;
    m->content = content;
    t->at[t->count++] = m;
    return true;
}

static void on_chunk(const ProtobufCMessage *m, void *user) {
    talk *t = user;
    const char *text = ((const Baton__V1__GenerateChunk *)m)->text;
    size_t bytes = strlen(text);
    fputs(text, stdout);
    fflush(stdout);
    char *more = mem_realloc(t->answer, t->bytes + bytes + 1);
    if (!more) {
        t->failed = true;
        return;
    }
    memcpy(more + t->bytes, text, bytes + 1);
    t->answer = more;
    t->bytes += bytes;
}

static status answer(const cli_options *o, cli_client *c, talk *t, error *err, int64_t *retry_ms) {
    Baton__V1__GenerateRequest r = BATON__V1__GENERATE_REQUEST__INIT;
    Baton__V1__Sampling s = BATON__V1__SAMPLING__INIT;
    Baton__V1__Chat messages = BATON__V1__CHAT__INIT;
    messages.messages = t->at;
    messages.n_messages = t->count;
    s.temperature = (float)o->temperature;
    s.top_p_set_case = BATON__V1__SAMPLING__TOP_P_SET_TOP_P;
    s.top_p = (float)o->top_p;
    r.input_case = BATON__V1__GENERATE_REQUEST__INPUT_CHAT;
    r.chat = &messages;
    r.sampling = &s;
    r.max_tokens_set_case = BATON__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS;
    r.max_tokens = (int32_t)o->max_tokens;
    status st = cli_resume_call(c, &r, 0, on_chunk, t, err, retry_ms);
    putchar('\n');
    fflush(stdout);
    return st == ST_OK && t->failed ? error_set(err, ST_NO_MEMORY, "no memory for the answer") : st;
}

/* One line and its answer. What was heard before a Ctrl-C stays part of the conversation. */
static cli_exit turn(const cli_options *o, cli_client *c, talk *t, const char *line) {
    error err = {0};
    int64_t retry_ms = -1;
    if (!say(t, "user", mem_strdup(line)))
        return cli_complain(
            CLI_FAILED, "the conversation is too long: expected at most %d messages", MESSAGES_MAX);
    status st = answer(o, c, t, &err, &retry_ms);
    char *heard = t->answer ? t->answer : mem_strdup("");
    t->answer = NULL;
    t->bytes = 0;
    if (st != ST_OK && st != ST_CANCELED) {
        mem_free(heard);
        return cli_client_report(st, &err, o->server, retry_ms, false);
    }
    if (!say(t, "assistant", heard))
        return cli_complain(CLI_FAILED, "the conversation is too long");
    return CLI_OK;
}

static cli_exit talk_on(const cli_options *o, cli_client *c, talk *t) {
    char *line = NULL;
    size_t room = 0;
    cli_exit code = CLI_OK;
    bool terminal = isatty(STDIN_FILENO);
    while (code == CLI_OK) {
        if (terminal) fputs("> ", stderr);
        ssize_t bytes = getline(&line, &room, stdin);
        if (bytes < 0) break;
        while (bytes > 0 && (line[bytes - 1] == '\n' || line[bytes - 1] == '\r')) line[--bytes] = 0;
        if (bytes > 0) code = turn(o, c, t, line);
    }
    free(line); /* getline's own allocation */
    return code;
}

static cli_exit chat(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    error err = {0};
    cli_client *c;
    status st = cli_client_open(o, o->server, &c, &err);
    if (st != ST_OK) return cli_client_unopened(st, "chat", &err);
    talk *t = mem_zalloc(1, sizeof *t);
    cli_exit code = CLI_FAILED;
    if (t && (!o->system || say(t, "system", mem_strdup(o->system))))
        code = talk_on(o, c, t);
    else
        cli_complain(code, "no memory");
    for (size_t i = 0; t && i < t->count; i++) mem_free(t->message[i].content);
    if (t) mem_free(t->answer);
    mem_free(t);
    cli_client_close(c);
    return code;
}
