/* model.c -- baton tokenize, perplexity, logits: the engine alone, in this process, without a
 * cluster. */
#include "cli/cli.h"
#include "engine/cpus.h"
#include "engine/engine.h"
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static cli_exit tokenize(const cli_options *o, const char *const *words, int count);
static cli_exit perplexity(const cli_options *o, const char *const *words, int count);
static cli_exit logits(const cli_options *o, const char *const *words, int count);

static const config_row tokenize_rows[] = {
    CLI_MODEL,
    CLI_TEXT("text", text, NULL, "TEXT", "what to tokenise"),
    CLI_TEXT("file", file, NULL, "FILE", "the same from a file; - reads stdin"),
    CLI_SWITCH("special", special, NULL, "spellings of control tokens become those tokens"),
    CLI_JSON,
};
static const config_row perplexity_rows[] = {
    CLI_MODEL,
    CLI_TEXT("file", file, NULL, "FILE", "the text; - reads stdin"),
    CLI_INT("context", context, "512", 4, 1048576, "N", "tokens of one chunk"),
    CLI_ENGINE,
    CLI_KV_DTYPE,
    CLI_TEXT("prompt-kv-dtype", prompt_kv_dtype, NULL, "TYPE",
             "the first half of each chunk is read into pages of this type and handed to the others: a prefill node's"),
    CLI_JSON,
};
static const config_row logits_rows[] = {
    CLI_MODEL,
    CLI_TEXT("tokens", tokens, NULL, "1,2,3", "the prompt as token ids"),
    CLI_TEXT("out", out, NULL, "FILE", "gets one row of V little-endian floats"),
    CLI_ENGINE,
    CLI_KV_DTYPE,
};

const cli_command cli_tokenize = {
    "tokenize", "", "Text to token ids.", CLI_ROWS(tokenize_rows), 0, 0, tokenize};
const cli_command cli_perplexity = {
    "perplexity",
    "",
    "How well the model predicts a text (llama-perplexity's definition).",
    CLI_ROWS(perplexity_rows),
    0,
    0,
    perplexity};
const cli_command cli_logits = {
    "logits", "", "The logits after a prompt.", CLI_ROWS(logits_rows), 0, 0, logits};

/* ---- a model and pages for one sequence ------------------------------------------------------ */

enum { STEP_TOKENS = 128, PAGE_TOKENS = 16 };

typedef struct loaded {
    arena *memory;
    eng_gguf *gguf;
    eng_vocab *vocab;
    eng_model *model;
    eng_kv *kv, *prompt_kv;      /* the second: of --prompt-kv-dtype */
    int32_t *blocks;
} loaded;

static status open_vocab(const cli_options *o, loaded *l, error *err) {
    if (!(l->memory = arena_create(4096))) return error_set(err, ST_NO_MEMORY, "no memory");
    TRY(eng_gguf_open(o->model, &l->gguf, err));
    return eng_vocab_open(l->gguf, &l->vocab, err);
}

const char *cli_cache_dir(const cli_options *o, char out[CLI_PATH_MAX]) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (!o->cache || o->cache_dir) return o->cache ? o->cache_dir : NULL;
    bool absolute = xdg && xdg[0] == '/'; /* others are to be ignored (XDG Base Directory) */
    if (!absolute && !home) return NULL;
    int bytes = snprintf(out, CLI_PATH_MAX, "%s%s/baton", absolute ? xdg : home,
                         absolute ? "" : "/.cache");
    return bytes < CLI_PATH_MAX ? out : NULL;
}

/* Pages for positions [0, tokens), in order. */
static status open_model(const cli_options *o, int64_t tokens, loaded *l, error *err) {
    char cache_dir[CLI_PATH_MAX];
    eng_options options = {.isa = o->isa,
                           .device = o->device,
                           .cache_dir = cli_cache_dir(o, cache_dir),
                           .threads = (int)o->threads,
                           .tokens_max = STEP_TOKENS,
                           .logits_max = STEP_TOKENS};
    TRY(eng_cpus_pin(o->pin, err));
    TRY(eng_model_open(l->gguf, &options, &l->model, err));
    int context = eng_model_shape(l->model)->context;
    if (tokens > context)
        return error_set(err, ST_BAD_INPUT,
                         "%lld tokens: expected at most the model's context of %d",
                         (long long)tokens, context);
    int32_t pages = (int32_t)((tokens + PAGE_TOKENS - 1) / PAGE_TOKENS);
    eng_kv_type kv_type;
    TRY(cli_kv_type("--kv-dtype", o->kv_dtype, &kv_type, err));
    TRY(eng_kv_create(l->model, pages, PAGE_TOKENS, kv_type, &l->kv, err));
    if (o->prompt_kv_dtype) {
        TRY(cli_kv_type("--prompt-kv-dtype", o->prompt_kv_dtype, &kv_type, err));
        TRY(eng_kv_create(l->model, pages, PAGE_TOKENS, kv_type, &l->prompt_kv, err));
    }
    l->blocks = arena_alloc(l->memory, (size_t)pages * sizeof *l->blocks);
    if (!l->blocks) return error_set(err, ST_NO_MEMORY, "no memory for %d pages", pages);
    for (int32_t i = 0; i < pages; i++) l->blocks[i] = i;
    return ST_OK;
}

static void close_all(loaded *l) {
    eng_kv_destroy(l->kv);
    eng_kv_destroy(l->prompt_kv);
    eng_model_close(l->model);
    eng_vocab_close(l->vocab);
    eng_gguf_close(l->gguf);
    arena_destroy(l->memory);
}

/* Positions [from, end) of tokens in steps; seen gets each step's logits, all rows when it is
 * given, the last row of all otherwise left in *last. */
static status compute(loaded *l, const int32_t *tokens, int32_t from, int32_t end,
                      void (*seen)(void *ctx, int32_t position, int32_t rows, const float *logits),
                      void *ctx, const float **last, error *err) {
    for (int32_t at = from; at < end; at += STEP_TOKENS) {
        int32_t count = end - at < STEP_TOKENS ? end - at : STEP_TOKENS;
        eng_rows rows = {
            .tokens = tokens + at, .count = count, .position = at, .blocks = l->blocks};
        const float *logits;
        rows.logits = seen ? count : last && at + count == end ? 1 : 0;
        TRY(eng_step(l->model, l->kv, &rows, 1, &logits, err));
        if (seen)
            seen(ctx, at, count, logits);
        else if (rows.logits)
            *last = logits;
    }
    return ST_OK;
}

static cli_exit report(status st, const error *err, const char *command) {
    if (st == ST_OK) return CLI_OK;
    return cli_complain(CLI_FAILED, "%s: %s", command, err->text);
}

/* ---- tokenize -------------------------------------------------------------------------------- */

static status print_tokens(const int32_t *tokens, int32_t count, bool json) {
    if (json) fputs("{\"tokens\":[", stdout);
    for (int32_t i = 0; i < count; i++) printf("%s%d", i ? "," : "", tokens[i]);
    fputs(json ? "]}\n" : "\n", stdout);
    return ferror(stdout) ? ST_IO : ST_OK;
}

static status read_text(const cli_options *o, loaded *l, const char **text, size_t *bytes,
                        error *err) {
    char *read = NULL;
    *text = o->text;
    if (o->text) *bytes = strlen(o->text);
    if (!o->file) return ST_OK;
    TRY(cli_read_file(o->file, l->memory, &read, bytes, err));
    *text = read;
    return ST_OK;
}

static status tokenize_all(const cli_options *o, loaded *l, error *err) {
    const char *text = NULL;
    size_t bytes = 0;
    int32_t *tokens, count;
    TRY(open_vocab(o, l, err));
    TRY(read_text(o, l, &text, &bytes, err));
    TRY(eng_vocab_tokenize(l->vocab, text, bytes, o->special, l->memory, &tokens, &count, err));
    return print_tokens(tokens, count, o->json);
}

static cli_exit tokenize(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    loaded l = {0};
    error err = {0};
    if (!o->model) return cli_usage("tokenize", "--model FILE is missing");
    if (!o->text == !o->file) return cli_usage("tokenize", "expected one of --text, --file");
    status st = tokenize_all(o, &l, &err);
    close_all(&l);
    return report(st, &err, "tokenize");
}

/* ---- perplexity ------------------------------------------------------------------------------ */

typedef struct sum {
    const int32_t *tokens; /* of the chunk */
    int V;
    double nll;
    int64_t count;
} sum;

/* -log softmax of the token that really follows, in double. */
static void add_rows(void *ctx, int32_t position, int32_t rows, const float *logits) {
    sum *s = ctx;
    for (int32_t r = 0; r < rows; r++, logits += s->V) {
        double max = logits[0], total = 0;
        for (int i = 1; i < s->V; i++) max = logits[i] > max ? logits[i] : max;
        for (int i = 0; i < s->V; i++) total += exp(logits[i] - max);
        s->nll += log(total) - (logits[s->tokens[position + r + 1]] - max);
        s->count++;
    }
}

/* Positions [0, tokens) from pages of one type into pages of the other, as frames of the latter's type bring them. */
static status hand_over(loaded *l, int32_t tokens, error *err) {
    const eng_shape *s = eng_model_shape(l->model);
    eng_kv_box box = {.layers = 1, .heads = s->K, .tokens = tokens, .type = eng_kv_element(l->kv)};
    void *frame = mem_alloc(eng_kv_box_bytes(l->kv, &box));
    if (!frame) return error_set(err, ST_NO_MEMORY, "no memory for the KV of %d tokens", tokens);
    for (; box.layer_first < s->L; box.layer_first++) {
        eng_kv_pack(l->prompt_kv, l->blocks, &box, frame);
        eng_kv_unpack(l->kv, l->blocks, &box, frame);
    }
    mem_free(frame);
    return ST_OK;
}

/* The part of a chunk whose predictions do not count. */
static status read_context(loaded *l, const int32_t *tokens, int32_t count, error *err) {
    eng_kv *own = l->kv;
    if (l->prompt_kv) l->kv = l->prompt_kv;
    status st = compute(l, tokens, 0, count, NULL, NULL, NULL, err);
    l->kv = own;
    return st == ST_OK && l->prompt_kv ? hand_over(l, count, err) : st;
}

/* Chunks of N tokens; predictions from position N/2 on count; the incomplete last chunk is dropped. */
static status perplexity_all(const cli_options *o, loaded *l, error *err) {
    const char *text;
    size_t bytes;
    int32_t *tokens, count, N = (int32_t)o->context;
    TRY(open_vocab(o, l, err));
    TRY(read_text(o, l, &text, &bytes, err));
    TRY(eng_vocab_tokenize(l->vocab, text, bytes, false, l->memory, &tokens, &count, err));
    if (count < N)
        return error_set(err, ST_BAD_INPUT, "%s has %d tokens: expected at least one chunk of %d",
                         o->file, count, N);
    TRY(open_model(o, N, l, err));
    sum s = {.V = eng_model_shape(l->model)->V};
    for (int32_t at = 0; at + N <= count; at += N) {
        s.tokens = tokens + at;
        TRY(read_context(l, s.tokens, N / 2, err));
        TRY(compute(l, s.tokens, N / 2, N - 1, add_rows, &s, NULL, err));
        if (!o->json)
            fprintf(stderr, "chunk %d of %d: %.4f\n", at / N + 1, count / N,
                    exp(s.nll / (double)s.count));
    }
    printf(o->json ? "{\"perplexity\":%.6f,\"tokens\":%lld}\n"
                   : "perplexity %.4f over %lld predictions\n",
           exp(s.nll / (double)s.count), (long long)s.count);
    return ST_OK;
}

static cli_exit perplexity(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    loaded l = {0};
    error err = {0};
    if (!o->model) return cli_usage("perplexity", "--model FILE is missing");
    if (!o->file) return cli_usage("perplexity", "--file FILE is missing");
    status st = perplexity_all(o, &l, &err);
    close_all(&l);
    return report(st, &err, "perplexity");
}

/* ---- logits ---------------------------------------------------------------------------------- */

static status write_row(const char *path, const float *row, int V, error *err) {
    FILE *out = fopen(path, "we");
    if (!out) return error_set(err, ST_IO, "--out '%.200s': %s", path, strerror(errno));
    bool whole = fwrite(row, sizeof *row, (size_t)V, out) == (size_t)V;
    if (fclose(out) != 0 || !whole)
        return error_set(err, ST_IO, "--out '%.200s' cannot be written: %s", path, strerror(errno));
    return ST_OK;
}

static status logits_all(const cli_options *o, loaded *l, error *err) {
    int32_t *tokens;
    size_t count;
    const float *row = NULL;
    TRY(open_vocab(o, l, err));
    TRY(cli_parse_tokens(o->tokens, l->memory, &tokens, &count, err));
    for (size_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= eng_vocab_count(l->vocab))
            return error_set(err, ST_BAD_INPUT, "--tokens: number %zu is %d: expected 0 to %d",
                             i + 1, tokens[i], eng_vocab_count(l->vocab) - 1);
    TRY(open_model(o, (int64_t)count, l, err));
    TRY(compute(l, tokens, 0, (int32_t)count, NULL, NULL, &row, err));
    return write_row(o->out, row, eng_model_shape(l->model)->V, err);
}

static cli_exit logits(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    loaded l = {0};
    error err = {0};
    if (!o->model) return cli_usage("logits", "--model FILE is missing");
    if (!o->tokens) return cli_usage("logits", "--tokens 1,2,3 is missing");
    if (!o->out) return cli_usage("logits", "--out FILE is missing");
    status st = logits_all(o, &l, &err);
    close_all(&l);
    return report(st, &err, "logits");
}
