/* quantize.c -- baton quantize: a model file written again in another weight type. */
#include "cli/cli.h"
#include "engine/engine.h"
#include <signal.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static cli_exit quantize(const cli_options *o, const char *const *words, int count);

static const config_row rows[] = {
    CLI_TEXT("type", type, NULL, "TYPE",
             "f32, f16, bf16, q8_0, q4_0 or q4_1 for every matrix, but q8_0 for token_embd and output where it "
             "is q4_0 or q4_1, and f16 where a q type meets rows that are no multiple of 32; vectors are f32"),
    CLI_SWITCH("force", force, NULL, "replace OUT if it exists"),
};
const cli_command cli_quantize = {
    "quantize", "IN OUT",
    "Writes a GGUF file again with its weights in another type, rounded as llama-quantize does.",
    CLI_ROWS(rows), 2, 2, quantize};

#define X(name, number, block, bytes, file) ENG_##name,
static const eng_type types[] = {ENG_TYPES(X)};
#undef X
enum { TYPES = sizeof types / sizeof *types };

static bool parse_type(const char *text, eng_type *out) {
    for (int i = 0; i < TYPES; i++)
        if (strcasecmp(text, eng_gguf_type_name(types[i])) == 0) {
            *out = types[i];
            return true;
        }
    return false;
}

/* ---- while it runs --------------------------------------------------------------------------- */

static volatile sig_atomic_t stopped;

static void stop(int signal_number) {
    (void)signal_number;
    stopped = 1;
}

typedef struct progress {
    bool shown; /* on a terminal */
    int percent;
} progress;

static bool go_on(double share, void *ctx) {
    progress *p = ctx;
    int percent = (int)(share * 100);
    if (p->shown && percent != p->percent)
        fprintf(stderr, "\r%3d %%%s", percent, percent == 100 ? "\n" : "");
    p->percent = percent;
    return !stopped;
}

/* ---- what there is to say about it ----------------------------------------------------------- */

static bool is_rounded(eng_type type) { return eng_gguf_type_bytes(type, 1) == 0; }

/* Rounding what was rounded loses twice: told once, with the first such tensor. */
static void warn_of_rounding(const eng_gguf *g, eng_type type) {
    const eng_tensor *t;
    for (int64_t i = 0; (t = eng_gguf_tensor_at(g, i)); i++) {
        eng_type to = eng_quantize_type(t, type);
        if (!is_rounded(t->type) || !is_rounded(to) || t->type == to) continue;
        cli_complain(CLI_OK, "warning: %s: tensor %s is rounded to %s already, %s loses again; better start from F16 or F32",
                     eng_gguf_file(g), t->name, eng_gguf_type_name(t->type), eng_gguf_type_name(to));
        return;
    }
}

static void print_result(const eng_gguf *g, eng_type type, const char *path) {
    const eng_tensor *t;
    int64_t counts[TYPES] = {0};
    for (int64_t i = 0; (t = eng_gguf_tensor_at(g, i)); i++) {
        eng_type to = eng_quantize_type(t, type);
        for (int k = 0; k < TYPES; k++) counts[k] += to == types[k];
        if (t->dims > 1 && !eng_gguf_type_bytes(type, t->dim[0]))
            printf("%s: rows of %lld are no multiple of 32, kept as %s\n", t->name, (long long)t->dim[0],
                   eng_gguf_type_name(to));
    }
    struct stat st;
    printf("%s:", path);
    for (int k = 0; k < TYPES; k++)
        if (counts[k]) printf(" %lld x %s,", (long long)counts[k], eng_gguf_type_name(types[k]));
    printf(" %lld bytes\n", stat(path, &st) == 0 ? (long long)st.st_size : 0);
}

static cli_exit quantize(const cli_options *o, const char *const *words, int count) {
    (void)count;
    progress shown = {.shown = isatty(STDERR_FILENO), .percent = -1};
    eng_quantize_options options = {.force = o->force, .progress = go_on, .progress_ctx = &shown};
    if (!o->type) return cli_usage("quantize", "--type TYPE is missing");
    if (!parse_type(o->type, &options.type))
        return cli_usage("quantize", "--type '%.40s': expected f32, f16, bf16, q8_0, q4_0 or q4_1", o->type);
    error err = {0};
    eng_gguf *g = NULL;
    status s = eng_gguf_open(words[0], &g, &err);
    if (s == ST_OK) {
        struct sigaction action = {.sa_handler = stop, .sa_flags = SA_RESTART};
        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        warn_of_rounding(g, options.type);
        s = eng_quantize_file(g, &options, words[1], &err);
    }
    if (s == ST_OK) print_result(g, options.type, words[1]);
    eng_gguf_close(g);
    return s == ST_OK ? CLI_OK : cli_complain(CLI_FAILED, "quantize: %s", err.text);
}
