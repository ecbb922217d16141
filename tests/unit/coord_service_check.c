/* coordinator/check.c: every refusal by its field, every limit from both sides, and what a good request
 * becomes. */
#include "coordinator/service.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static coord_model model;

static int setup(void **state) {
    (void)state;
    error err = {0};
    if (coord_model_open(BATON_MODEL, &model, &err) == ST_OK) return 0;
    fprintf(stderr, "%s\n", err.text);
    return -1;
}

static int teardown(void **state) {
    (void)state;
    coord_model_close(&model);
    return 0;
}

/* One request and everything it may point to, changed by a row's function. */
typedef struct built {
    Baton__V1__GenerateRequest r;
    Baton__V1__Sampling s;
    Baton__V1__Tokens tokens;
    Baton__V1__Chat chat;
    Baton__V1__ChatMessage message, *messages[1];
    Baton__V1__TokenBias bias, *biases[COORD_BIAS_MAX + 1];
    int32_t ids[9000];
    char *stops[COORD_STOPS_MAX + 1];
    Baton__V1__Seen seen[COORD_N_MAX + 1], *seens[COORD_N_MAX + 1];
    int32_t stop_tokens[COORD_STOP_TOKENS_MAX + 1];
    char text[400];
} built;

#define TEXT(t) ((char *)(uintptr_t)(t))

static void use_prompt(built *b, const char *text) {
    b->r.input_case = BATON__V1__GENERATE_REQUEST__INPUT_PROMPT;
    b->r.prompt = TEXT(text);
}
static void use_ids(built *b, size_t count) {
    b->r.input_case = BATON__V1__GENERATE_REQUEST__INPUT_TOKENS;
    b->tokens.ids = b->ids;
    b->tokens.n_ids = count;
    b->r.tokens = &b->tokens;
}
static void use_max_tokens(built *b, int32_t n) {
    b->r.max_tokens_set_case = BATON__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS;
    b->r.max_tokens = n;
}
static void use_n(built *b, int32_t n) {
    b->r.n_set_case = BATON__V1__GENERATE_REQUEST__N_SET_N;
    b->r.n = n;
}
static void use_logprobs(built *b, int32_t n) {
    b->r.logprobs_set_case = BATON__V1__GENERATE_REQUEST__LOGPROBS_SET_LOGPROBS;
    b->r.logprobs = n;
}
static void use_prompt_logprobs(built *b, int32_t n) {
    b->r.prompt_logprobs_set_case = BATON__V1__GENERATE_REQUEST__PROMPT_LOGPROBS_SET_PROMPT_LOGPROBS;
    b->r.prompt_logprobs = n;
}
static void use_stops(built *b, size_t count, const char *text) {
    for (size_t i = 0; i < count; i++) b->stops[i] = TEXT(text);
    b->r.stop = b->stops;
    b->r.n_stop = count;
}
static void use_stop_tokens(built *b, size_t count, int32_t id) {
    for (size_t i = 0; i < count; i++) b->stop_tokens[i] = id;
    b->r.stop_tokens = b->stop_tokens;
    b->r.n_stop_tokens = count;
}
static void use_biases(built *b, size_t count, int32_t id) {
    b->bias.token = id;
    for (size_t i = 0; i < count; i++) b->biases[i] = &b->bias;
    b->s.logit_bias = b->biases;
    b->s.n_logit_bias = count;
}
static const char *repeat(built *b, char c, size_t count) {
    memset(b->text, c, count);
    b->text[count] = 0;
    return b->text;
}
static void use_chat(built *b, size_t count, const char *role, const char *content) {
    b->message.role = TEXT(role);
    b->message.content = TEXT(content);
    b->messages[0] = &b->message;
    b->chat.messages = b->messages;
    b->chat.n_messages = count;
    b->r.input_case = BATON__V1__GENERATE_REQUEST__INPUT_CHAT;
    b->r.chat = &b->chat;
}

/* One more entry; its tokens are b->ids. */
static void use_seen(built *b, int32_t index, size_t count) {
    Baton__V1__Seen *s = b->seens[b->r.n_seen] = &b->seen[b->r.n_seen];
    baton__v1__seen__init(s);
    s->index = index;
    s->tokens = b->ids;
    s->n_tokens = count;
    b->r.seen = b->seens;
    b->r.n_seen++;
}
static void use_seed(built *b, float temperature, uint64_t seed) {
    b->s.temperature = temperature;
    b->s.seed_set_case = BATON__V1__SAMPLING__SEED_SET_SEED;
    b->s.seed = seed;
}

static built *fresh(void) {
    static built b;
    memset(&b, 0, sizeof b);
    baton__v1__generate_request__init(&b.r);
    baton__v1__sampling__init(&b.s);
    baton__v1__tokens__init(&b.tokens);
    baton__v1__chat__init(&b.chat);
    baton__v1__chat_message__init(&b.message);
    baton__v1__token_bias__init(&b.bias);
    b.r.sampling = &b.s;
    use_prompt(&b, "Hello");
    return &b;
}

static status check(const built *b, coord_job *job, error *err) {
    static arena *a;
    arena_destroy(a);
    a = NULL;
    if (!b) return ST_OK;
    a = arena_create(4096);
    memset(err, 0, sizeof *err);
    return coord_check_generate(&model, &b->r, a, job, err);
}

#define REFUSED(change, code, part)                                                                 \
    do {                                                                                            \
        built *b = fresh();                                                                         \
        coord_job job;                                                                              \
        error err;                                                                                  \
        change;                                                                                     \
        assert_int_equal(check(b, &job, &err), code);                                               \
        if (!strstr(err.text, part)) fail_msg("'%s' is not in '%s'", part, err.text);               \
    } while (0)
#define TAKEN(change, fact)                                                                         \
    do {                                                                                            \
        built *b = fresh();                                                                         \
        coord_job job;                                                                              \
        error err;                                                                                  \
        change;                                                                                     \
        if (check(b, &job, &err) != ST_OK) fail_msg("%s", err.text);                                \
        assert_true(fact);                                                                          \
    } while (0)

static void prompts(void **state) {
    (void)state;
    int32_t context = model.context, V = eng_vocab_count(model.vocab);
    REFUSED(b->r.input_case = BATON__V1__GENERATE_REQUEST__INPUT__NOT_SET, ST_BAD_INPUT, "prompt, tokens, chat");
    REFUSED(use_prompt(b, ""), ST_BAD_INPUT, "prompt is empty");
    REFUSED(use_prompt(b, "ab\xc3\x28"), ST_BAD_INPUT, "prompt is not valid UTF-8 at byte 2");
    REFUSED(use_prompt(b, "\xed\xa0\x80"), ST_BAD_INPUT, "UTF-8 at byte 0"); /* a surrogate */
    REFUSED(use_ids(b, 0), ST_BAD_INPUT, "no tokens");
    REFUSED((use_ids(b, 3), b->ids[2] = V), ST_BAD_INPUT, "tokens.ids[2] is 49152: expected a token id from 0 to 49151");
    REFUSED((use_ids(b, 1), b->ids[0] = -1), ST_BAD_INPUT, "tokens.ids[0] is -1");
    REFUSED(use_ids(b, (size_t)context), ST_BAD_INPUT, "8192 tokens: expected at most 8191");
    REFUSED(use_ids(b, 9000), ST_BAD_INPUT, "9000 tokens: expected at most 8191");
    REFUSED(use_chat(b, 0, "", ""), ST_BAD_INPUT, "chat has no messages");
    REFUSED(use_chat(b, 1, "", "hi"), ST_BAD_INPUT, "message 0 of the chat has no role");
    REFUSED(use_chat(b, 1, "user", "\xff"), ST_BAD_INPUT, "chat.messages[0]");
    TAKEN(use_prompt(b, "The capital of France is"), job.count == 5 && job.tokens[0] == 504);
    TAKEN(use_ids(b, (size_t)context - 1), job.count == context - 1 && job.max_tokens == 1);
    TAKEN(use_chat(b, 1, "user", "Hi"), job.tokens[0] == 1); /* <|im_start|> */
}

static void limits(void **state) {
    (void)state;
    REFUSED(use_max_tokens(b, 0), ST_BAD_INPUT, "max_tokens is 0: expected at least 1");
    REFUSED(use_max_tokens(b, -3), ST_BAD_INPUT, "max_tokens is -3");
    TAKEN(use_max_tokens(b, 1), job.max_tokens == 1);
    TAKEN(use_max_tokens(b, INT32_MAX), job.max_tokens == model.context - job.count);
    TAKEN((void)b, job.max_tokens == model.context - job.count && job.n == 1 && !job.has_seed);
    REFUSED(use_n(b, 0), ST_BAD_INPUT, "n is 0: expected 1 to 16");
    REFUSED(use_n(b, 17), ST_BAD_INPUT, "n is 17");
    TAKEN(use_n(b, 16), job.n == 16);
    REFUSED(b->r.priority = 101, ST_BAD_INPUT, "priority is 101: expected -100 to 100");
    REFUSED(b->r.priority = -101, ST_BAD_INPUT, "priority is -101");
    TAKEN(b->r.priority = -100, job.priority == -100);
    TAKEN((void)b, job.priority == 0);
    REFUSED(use_logprobs(b, -1), ST_BAD_INPUT, "logprobs is -1: expected 0 to 20");
    REFUSED(use_logprobs(b, 21), ST_BAD_INPUT, "logprobs is 21");
    TAKEN(use_logprobs(b, 20), job.sampling.logprobs == 20);
    TAKEN((void)b, job.sampling.logprobs == -1);
    REFUSED(use_prompt_logprobs(b, -1), ST_BAD_INPUT, "prompt_logprobs is -1: expected 0 to 20");
    REFUSED(use_prompt_logprobs(b, 21), ST_BAD_INPUT, "prompt_logprobs is 21");
    TAKEN(use_prompt_logprobs(b, 0), job.prompt_logprobs == 0 && job.sampling.logprobs == -1);
    TAKEN(use_prompt_logprobs(b, 20), job.prompt_logprobs == 20);
    TAKEN((void)b, job.prompt_logprobs == -1);
    REFUSED(use_stops(b, 17, "x"), ST_BAD_INPUT, "number of stop strings is 17");
    REFUSED(use_stops(b, 1, ""), ST_BAD_INPUT, "stop[0] has 0 bytes: expected 1 to 256");
    REFUSED(use_stops(b, 1, repeat(b, 'x', 257)), ST_BAD_INPUT, "stop[0] has 257 bytes");
    REFUSED(use_stops(b, 2, "\xc3"), ST_BAD_INPUT, "stop[0] is not valid UTF-8");
    TAKEN(use_stops(b, 16, repeat(b, 'x', 256)), job.stops_count == 16);
    REFUSED(use_stop_tokens(b, 65, 1), ST_BAD_INPUT, "number of stop_tokens is 65");
    REFUSED(use_stop_tokens(b, 1, 1 << 30), ST_BAD_INPUT, "stop_tokens[0]");
    TAKEN(use_stop_tokens(b, 64, 1), job.stop_tokens_count == 64 && job.stop_tokens[63] == 1);
    REFUSED(use_biases(b, 1025, 1), ST_BAD_INPUT, "logit_bias");
    REFUSED(use_biases(b, 1, 1 << 20), ST_BAD_INPUT, "logit_bias");
    TAKEN(use_biases(b, 1024, 1), job.sampling.bias_count == 1024);
}

static void names(void **state) {
    (void)state;
    REFUSED(b->r.model = TEXT("gpt"), ST_NOT_FOUND, "expected 'SmolLM2-135M-Instruct.Q4_1'");
    TAKEN(b->r.model = model.id, job.count > 0);
    REFUSED(b->r.request_id = TEXT(repeat(b, 'x', 65)), ST_BAD_INPUT, "request_id has 65 bytes");
    REFUSED(b->r.request_id = TEXT("a b"), ST_BAD_INPUT, "request_id has byte 0x20 at 1");
    REFUSED(b->r.request_id = TEXT("a\n"), ST_BAD_INPUT, "0x0a at 1");
    TAKEN(b->r.request_id = TEXT(repeat(b, 'x', 64)), strlen(job.id) == 64);
}

static void sampling(void **state) {
    (void)state;
    REFUSED(b->s.temperature = NAN, ST_BAD_INPUT, "temperature");
    REFUSED(b->s.temperature = -1, ST_BAD_INPUT, "temperature");
    REFUSED(b->s.top_k = -1, ST_BAD_INPUT, "top_k");
    REFUSED(b->s.min_p = NAN, ST_BAD_INPUT, "min_p");
    REFUSED(b->s.presence_penalty = NAN, ST_BAD_INPUT, "presence");
    REFUSED(b->s.frequency_penalty = INFINITY, ST_BAD_INPUT, "frequency");
    REFUSED((b->s.top_p_set_case = BATON__V1__SAMPLING__TOP_P_SET_TOP_P, b->s.top_p = -0.1f), ST_BAD_INPUT, "top_p");
    REFUSED((b->s.repetition_set_case = BATON__V1__SAMPLING__REPETITION_SET_REPETITION_PENALTY,
             b->s.repetition_penalty = 0), ST_BAD_INPUT, "repetition");
    TAKEN((void)b, job.sampling.top_p == 1 && job.sampling.repetition == 1);
    TAKEN((b->s.seed_set_case = BATON__V1__SAMPLING__SEED_SET_SEED, b->s.seed = 9), job.has_seed && job.sampling.seed == 9);
    TAKEN(b->r.sampling = NULL, job.sampling.temperature == 0);
}

/* Tokens 100 are words; the model's end token is 2. */
static void seen(void **state) {
    (void)state;
    int32_t eos = eng_vocab_eos(model.vocab);
#define SEEN(b, count) (use_seen(b, 0, count), (b)->ids[0] = (b)->ids[1] = (b)->ids[2] = 100)
    TAKEN((void)b, job.seen == NULL);
    TAKEN(SEEN(b, 2), job.seen[0].count == job.count + 2 && job.seen[0].tokens[0] == job.tokens[0] &&
                      job.seen[0].tokens[job.count + 1] == 100 && !job.seen[0].finished);
    TAKEN((use_n(b, 3), use_seen(b, 2, 1), b->ids[0] = 7, b->seen[0].finished = true),
          job.seen[2].finished && job.seen[2].tokens[job.count] == 7 && job.seen[0].count == 0 && job.seen[1].count == 0);
    TAKEN(use_seen(b, 0, 0), job.seen[0].count == job.count);
    REFUSED(use_seen(b, 1, 1), ST_BAD_INPUT, "index of an entry in seen is 1: expected 0 to 0");
    REFUSED(use_seen(b, -1, 1), ST_BAD_INPUT, "index of an entry in seen is -1");
    REFUSED((use_n(b, 2), use_seen(b, 1, 1), use_seen(b, 1, 1)), ST_BAD_INPUT, "seen has index 1 twice");
    REFUSED((use_n(b, 2), use_seen(b, 1, 0), use_seen(b, 1, 0)), ST_BAD_INPUT, "seen has index 1 twice");
    REFUSED((use_seen(b, 0, 1), use_seen(b, 0, 1)), ST_BAD_INPUT, "number of entries in seen is 2: expected 0 to 1");
    REFUSED((SEEN(b, 3), b->ids[1] = 1 << 20), ST_BAD_INPUT, "seen[index 0].tokens[1] is 1048576: expected a token id");
    REFUSED((SEEN(b, 3), b->ids[2] = -1), ST_BAD_INPUT, "seen[index 0].tokens[2] is -1");
    REFUSED((SEEN(b, 3), use_max_tokens(b, 2)), ST_BAD_INPUT, "3 tokens: expected at most 2");
    TAKEN((SEEN(b, 3), use_max_tokens(b, 3)), job.seen[0].count == job.count + 3);
    REFUSED((use_ids(b, (size_t)model.context - 2), use_seen(b, 0, 3)), ST_BAD_INPUT, "3 tokens: expected at most 2");
    REFUSED((use_seen(b, 0, 0), b->seen[0].finished = true), ST_BAD_INPUT, "at least one token");
    REFUSED((SEEN(b, 3), b->ids[1] = eos), ST_BAD_INPUT, "seen[index 0].tokens[1] is 2, which ends the answer: expected no token");
    TAKEN((SEEN(b, 3), b->ids[2] = eos), job.seen[0].tokens[job.count + 2] == eos);
    TAKEN((SEEN(b, 3), b->ids[1] = eos, b->r.ignore_eos = true), job.seen[0].count == job.count + 3);
    REFUSED((SEEN(b, 3), use_stop_tokens(b, 1, 100)), ST_BAD_INPUT, "seen[index 0].tokens[0] is 100, which ends the answer");
    REFUSED((SEEN(b, 1), b->s.temperature = 1), ST_BAD_INPUT, "sampling.seed is missing");
    TAKEN((SEEN(b, 1), use_seed(b, 1, 5)), job.sampling.seed == 5 && job.seen[0].count == job.count + 1);
}

static void no_memory(void **state) {
    (void)state;
    coord_job job;
    error err;
    built *b = fresh();
    use_stops(b, 2, "x");
    use_biases(b, 2, 1);
    use_seen(b, 0, 2000);
    for (int i = 0; i < 2000; i++) b->ids[i] = 100;
    arena *a = NULL;
    for (int64_t n = 1;; n++) {
        a = arena_create(64);
        mem_fail_at(n);
        status st = coord_check_generate(&model, &b->r, a, &job, &err);
        mem_fail_at(0);
        arena_destroy(a);
        if (st == ST_OK) break;
        assert_int_equal(st, ST_NO_MEMORY);
    }
}

static int close_arena(void **state) {
    check(NULL, NULL, NULL);
    return teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(prompts), cmocka_unit_test(limits),
                                       cmocka_unit_test(names), cmocka_unit_test(sampling), cmocka_unit_test(seen),
                                       cmocka_unit_test(no_memory)};
    return cmocka_run_group_tests(tests, setup, close_arena);
}
