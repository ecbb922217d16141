/* generate.c -- baton generate: one prompt, one answer (or n). What it prints: answer.c. */
#include "cli/cli.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static cli_exit generate(const cli_options *o, const char *const *words, int count);

static const config_row rows[] = {
    CLI_SERVER,
    CLI_CREDENTIAL,
    CLI_TEXT("prompt", prompt, NULL, "TEXT", "the prompt as text"),
    CLI_TEXT("prompt-file", prompt_file, NULL, "FILE", "the prompt from a file; - reads stdin"),
    CLI_TEXT("tokens", tokens, NULL, "1,2,3", "the prompt as token ids"),
    CLI_SWITCH("chat", chat, NULL,
               "wrap the prompt as a user's message in the model's chat template"),
    CLI_INT("max-tokens", max_tokens, "256", -2147483647, 2147483647, "N",
            "most tokens of the answer"),
    CLI_REAL("temperature", temperature, "0", "X", "0: always the likeliest token"),
    CLI_INT("top-k", top_k, "0", -2147483647, 2147483647, "N",
            "only the N likeliest tokens; 0: off"),
    CLI_REAL("top-p", top_p, "1", "X", "only the likeliest tokens that sum up to X; 1: off"),
    CLI_REAL("min-p", min_p, "0", "X",
             "only tokens at least X times as likely as the likeliest; 0: off"),
    CLI_REAL("repetition-penalty", repetition_penalty, "1", "X",
             "divides logits of tokens seen; 1: off"),
    CLI_REAL("presence-penalty", presence_penalty, "0", "X",
             "subtracted once from tokens of the answer"),
    CLI_REAL("frequency-penalty", frequency_penalty, "0", "X",
             "subtracted for each time a token was answered"),
    CLI_TEXT("seed", seed, NULL, "N",
             "of the randomness; without, one is chosen and told in --json"),
    CLI_TEXT("stop", stop, NULL, "TEXT", "the answer ends before this text"),
    CLI_INT("n", n, "1", -2147483647, 2147483647, "N", "how many answers"),
    CLI_INT("logprobs", logprobs, "-1", -1, 2147483647, "N",
            "--json: log probabilities, N alternatives a token; -1: none"),
    CLI_INT("prompt-logprobs", prompt_logprobs, "-1", -1, 2147483647, "N",
            "log probabilities of the prompt's tokens, N alternatives each: on stderr, or in --json; -1: none"),
    CLI_SWITCH("ignore-eos", ignore_eos, NULL, "go on after an end token"),
    CLI_TEXT("request-id", request_id, NULL, "ID",
             "shown in every node's log; without, the server makes one"),
    CLI_INT("priority", priority, "0", -PRIORITY_MAX, PRIORITY_MAX, "N", "higher goes first: a step is worth a second of waiting"),
    CLI_TENANT,
    CLI_INT("timeout-ms", timeout_ms, "0", 0, 2147483647, "MS", "deadline of the call; 0: none"),
    CLI_SWITCH("explain", explain, NULL, "tell which nodes were compared and what each would cost: on stderr, or in --json"),
    CLI_JSON,
};

const cli_command cli_generate = {"generate", "", "Writes on from a prompt.", CLI_ROWS(rows), 0, 0,
                                  generate};

const rpc_method cli_generate_method = {
    .path = "/baton.v1.Inference/Generate",
    .kind = RPC_SERVER_STREAM,
    .request = &baton__v1__generate_request__descriptor,
    .reply = &baton__v1__generate_chunk__descriptor,
};

/* ---- the request ----------------------------------------------------------------------------- */

status cli_parse_tokens(const char *text, arena *a, int32_t **ids, size_t *count, error *err) {
    size_t most = 1, found = 0;
    for (const char *c = text; *c; c++) most += *c == ',';
    int32_t *out = arena_alloc(a, most * sizeof *out);
    if (!out) return error_set(err, ST_NO_MEMORY, "no memory for %zu tokens", most);
    for (const char *at = text; *at;) {
        char *end;
        errno = 0;
        long long id = strtoll(at, &end, 10);
        if (end == at || errno || id < INT32_MIN || id > INT32_MAX ||
            (*end && (*end != ',' || !end[1])))
            return error_set(err, ST_BAD_INPUT,
                             "--tokens: '%.40s' at byte %td: expected token ids, 1,2,3", at,
                             at - text);
        out[found++] = (int32_t)id;
        at = *end ? end + 1 : end;
    }
    if (found == 0)
        return error_set(err, ST_BAD_INPUT, "--tokens is empty: expected token ids, 1,2,3");
    *ids = out;
    *count = found;
    return ST_OK;
}

status cli_read_file(const char *path, arena *a, char **text, size_t *bytes, error *err) {
    enum { FIRST_BYTES = 64 * 1024, FILE_BYTES_MAX = 256 * 1024 * 1024 };
    FILE *in = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (!in) return error_set(err, ST_IO, "'%.200s': %s", path, strerror(errno));
    size_t used = 0, max = FIRST_BYTES;
    char *data = mem_alloc(max);
    while (data && used < FILE_BYTES_MAX) {
        size_t n = fread(data + used, 1, max - used, in);
        used += n;
        if (n == 0) break;
        if (used < max) continue;
        char *more = mem_realloc(data, max *= 2);
        if (!more) mem_free(data);
        data = more;
    }
    status st = ST_OK;
    if (!data)
        st = error_set(err, ST_NO_MEMORY, "'%.200s': no memory to read it", path);
    else if (ferror(in))
        st = error_set(err, ST_IO, "'%.200s': %s", path, strerror(errno));
    else if (used >= FILE_BYTES_MAX)
        st = error_set(err, ST_BAD_INPUT, "'%.200s' is too large: expected less than %d bytes",
                       path, FILE_BYTES_MAX);
    else if (!(*text = arena_strndup(a, data, used)))
        st = error_set(err, ST_NO_MEMORY, "'%.200s': no memory", path);
    else
        *bytes = used;
    mem_free(data);
    if (in != stdin) fclose(in);
    return st;
}

typedef struct request_message {
    Baton__V1__GenerateRequest request;
    Baton__V1__Sampling sampling;
    Baton__V1__Tokens tokens;
    Baton__V1__Chat chat;
    Baton__V1__ChatMessage message, *messages[1];
    char *stop[1];
} request_message;

static char *text_of(const char *text) { return (char *)(uintptr_t)text; }

static status fill_input(const cli_options *o, arena *a, request_message *m, error *err) {
    Baton__V1__GenerateRequest *r = &m->request;
    char *prompt = text_of(o->prompt);
    size_t bytes;
    if (o->prompt_file) {
        TRY(cli_read_file(o->prompt_file, a, &prompt, &bytes, err));
        if (strlen(prompt) < bytes)
            return error_set(err, ST_BAD_INPUT, "--prompt-file: byte %zu is NUL: expected text",
                             strlen(prompt));
    }
    if (o->tokens) {
        baton__v1__tokens__init(&m->tokens);
        TRY(cli_parse_tokens(o->tokens, a, &m->tokens.ids, &m->tokens.n_ids, err));
        r->input_case = BATON__V1__GENERATE_REQUEST__INPUT_TOKENS;
        r->tokens = &m->tokens;
    } else if (o->chat) {
        baton__v1__chat__init(&m->chat);
        baton__v1__chat_message__init(&m->message);
        m->message.role = text_of("user");
        m->message.content = prompt;
        m->messages[0] = &m->message;
        m->chat.messages = m->messages;
        m->chat.n_messages = 1;
        r->input_case = BATON__V1__GENERATE_REQUEST__INPUT_CHAT;
        r->chat = &m->chat;
    } else {
        r->input_case = BATON__V1__GENERATE_REQUEST__INPUT_PROMPT;
        r->prompt = prompt;
    }
    return ST_OK;
}

status cli_parse_seed(const char *text, uint64_t *out, error *err) {
    char *end;
    if (!text) return ST_OK;
    errno = 0;
    uint64_t seed = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno)
        return error_set(err, ST_BAD_INPUT,
                         "--seed: '%.40s': expected a whole number from 0 to 18446744073709551615",
                         text);
    *out = seed;
    return ST_OK;
}

static status fill_request(const cli_options *o, arena *a, request_message *m, error *err) {
    Baton__V1__GenerateRequest *r = &m->request;
    Baton__V1__Sampling *s = &m->sampling;
    baton__v1__generate_request__init(r);
    baton__v1__sampling__init(s);
    TRY(fill_input(o, a, m, err));
    TRY(cli_parse_seed(o->seed, &s->seed, err));
    if (o->seed) s->seed_set_case = BATON__V1__SAMPLING__SEED_SET_SEED;
    s->temperature = (float)o->temperature;
    s->top_k = (int32_t)o->top_k;
    s->top_p_set_case = BATON__V1__SAMPLING__TOP_P_SET_TOP_P;
    s->top_p = (float)o->top_p;
    s->min_p = (float)o->min_p;
    s->repetition_set_case = BATON__V1__SAMPLING__REPETITION_SET_REPETITION_PENALTY;
    s->repetition_penalty = (float)o->repetition_penalty;
    s->presence_penalty = (float)o->presence_penalty;
    s->frequency_penalty = (float)o->frequency_penalty;
    r->sampling = s;
    r->max_tokens_set_case = BATON__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS;
    r->max_tokens = (int32_t)o->max_tokens;
    r->n_set_case = BATON__V1__GENERATE_REQUEST__N_SET_N;
    r->n = (int32_t)o->n;
    r->ignore_eos = o->ignore_eos;
    r->priority = (int32_t)o->priority;
    r->explain = o->explain;
    if (o->logprobs >= 0) {
        r->logprobs_set_case = BATON__V1__GENERATE_REQUEST__LOGPROBS_SET_LOGPROBS;
        r->logprobs = (int32_t)o->logprobs;
    }
    if (o->prompt_logprobs >= 0) {
        r->prompt_logprobs_set_case = BATON__V1__GENERATE_REQUEST__PROMPT_LOGPROBS_SET_PROMPT_LOGPROBS;
        r->prompt_logprobs = (int32_t)o->prompt_logprobs;
    }
    if (o->request_id) r->request_id = text_of(o->request_id);
    m->stop[0] = text_of(o->stop);
    if (o->stop) r->n_stop = 1, r->stop = m->stop;
    return ST_OK;
}

static cli_exit ask(const cli_options *o, const Baton__V1__GenerateRequest *request) {
    error err = {0};
    cli_client *c = NULL;
    int64_t retry_ms = -1;
    status st = cli_client_open(o, o->server, &c, &err);
    if (st != ST_OK) return cli_client_unopened(st, "generate", &err);
    cli_answers *w = cli_answers_create(o);
    if (!w) st = error_set(&err, ST_NO_MEMORY, "no memory for the answer");
    if (st == ST_OK)
        st = cli_resume_call(c, request, o->timeout_ms, cli_answers_take, w, &err, &retry_ms);
    cli_client_close(c);
    bool started = w && cli_answers_started(w);
    if (w) st = cli_answers_print(w, st, &err);
    cli_answers_destroy(w);
    return cli_client_report(st, &err, o->server, retry_ms, started);
}

static cli_exit generate(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    error err = {0};
    request_message m;
    if (!!o->prompt + !!o->prompt_file + !!o->tokens != 1)
        return cli_usage("generate", "expected one of --prompt, --prompt-file, --tokens");
    if (o->tokens && o->chat)
        return cli_usage("generate", "--chat needs text: expected --prompt or --prompt-file");
    arena *a = arena_create(4096);
    if (!a) return cli_complain(CLI_FAILED, "no memory");
    status st = fill_request(o, a, &m, &err);
    cli_exit code = st == ST_OK          ? ask(o, &m.request)
                    : st == ST_BAD_INPUT ? cli_usage("generate", "%s", err.text)
                                         : cli_complain(CLI_FAILED, "%s", err.text);
    arena_destroy(a);
    return code;
}
