/* pretok.c -- pre-tokenizers by name: one regular expression each, matched by PCRE2 (compiled to
 * machine code where the system allows it).
 *
 * The patterns are the published ones of the models' tokenizer.json, with three classes by name, so
 * that they mean what the Hugging Face matcher (Oniguruma) means by them:
 *   SPACE is White_Space: PCRE2's \s also has U+180E, which left that class in Unicode 6.3.
 *   LETTER and NUMBER are PCRE2's tables of the general categories L and N, brought to Unicode 16
 *   by what was added since PCRE2 10.42, so that words do not depend on the library's age.
 *
 * smollm first cuts at every digit and then applies GPT-2's pattern to what lies between; here that is
 * one pattern: a digit is a word, and a digit ends a run of blanks as the end of the text does.
 *
 * Every repeat that nothing later could want a character back from is possessive (++), so the
 * matcher neither backtracks nor needs a stack that grows with the text. */
#include "engine/pretok.h"
#include <string.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define SPACE                                                                                      \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}"                                                                                    \
    "\\x{3000}"
#define LETTER                                                                                     \
    "\\p{L}"                                                                                       \
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"               \
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"         \
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}" \
    "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"          \
    "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}"         \
    "\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}"                     \
    "\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}"          \
    "\\x{31350}-\\x{323af}"
#define NUMBER                                                                                     \
    "\\p{N}"                                                                                       \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"         \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"         \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define LETTERS      "[" LETTER "]++"
#define OTHERS       " ?[^" SPACE LETTER NUMBER "]++"
#define BLANKS       "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]++"

#define GPT2 CONTRACTIONS "| ?" LETTERS "| ?[" NUMBER "]++|" OTHERS "|" BLANKS
#define SMOLLM                                                                                     \
    "[" NUMBER "]|" CONTRACTIONS "| ?" LETTERS "|" OTHERS "|[" SPACE "]+(?![^" SPACE NUMBER        \
    "])|[" SPACE "]++"
/* digits: how many of them stand together at most. */
#define LLAMA3(digits)                                                                             \
    "(?i:" CONTRACTIONS ")|[^\\r\\n" LETTER NUMBER "]?" LETTERS "|[" NUMBER "]" digits "|" OTHERS  \
    "[\\r\\n]*+|[" SPACE "]*[\\r\\n]++|" BLANKS

typedef struct row {
    const char *name, *pattern;
    bool keeps_words, adds_bos;
} row;

static const row ROWS[] = {
    {"smollm", SMOLLM, false, false},
    {"gpt-2", GPT2, false, false},
    {"llama-bpe", LLAMA3("{1,3}+"), true, true},
    {"llama3", LLAMA3("{1,3}+"), true, true},
    {"llama-v3", LLAMA3("{1,3}+"), true, true},
    {"qwen2", LLAMA3(""), false, false},
};
enum { ROW_COUNT = sizeof ROWS / sizeof ROWS[0] };

enum { STEPS_MAX = 50000000 }; /* the matcher's, for one word */

struct eng_pretok {
    const row *row;
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *code;
};

static void *take(PCRE2_SIZE bytes, void *ctx) {
    (void)ctx;
    return mem_alloc(bytes);
}
static void give(void *p, void *ctx) {
    (void)ctx;
    mem_free(p);
}

static const row *row_find(const char *name, size_t bytes) {
    for (int i = 0; i < ROW_COUNT; i++)
        if (strlen(ROWS[i].name) == bytes && !memcmp(ROWS[i].name, name, bytes)) return &ROWS[i];
    return NULL;
}

static status row_unknown(const char *name, size_t bytes, error *err) {
    char known[128] = "";
    for (int i = 0; i < ROW_COUNT; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", ROWS[i].name);
    }
    return error_set(err, ST_UNSUPPORTED,
                     "tokenizer.ggml.pre: '%.*s' is not supported, expected one of %s",
                     bytes > 64 ? 64 : (int)bytes, name, known);
}

status eng_pretok_open(const char *name, size_t bytes, eng_pretok **out, error *err) {
    const row *r = row_find(name, bytes);
    if (!r) return row_unknown(name, bytes, err);
    eng_pretok *p = mem_zalloc(1, sizeof *p);
    if (!p) return error_set(err, ST_NO_MEMORY, "pre-tokenizer %s: no memory", r->name);
    p->row = r;
    int code = PCRE2_ERROR_NOMEMORY;
    PCRE2_SIZE at = 0;
    p->memory = pcre2_general_context_create(take, give, NULL);
    if (p->memory) p->limits = pcre2_match_context_create(p->memory);
    if (p->limits) pcre2_set_match_limit(p->limits, STEPS_MAX);
    pcre2_compile_context *compile = p->memory ? pcre2_compile_context_create(p->memory) : NULL;
    if (p->limits && compile)
        p->code = pcre2_compile((PCRE2_SPTR)r->pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code,
                                &at, compile);
    pcre2_compile_context_free(compile);
    if (!p->code) {
        eng_pretok_close(p);
        return error_set(err, ST_NO_MEMORY, "pre-tokenizer %s: no memory (pcre2 %d)", r->name,
                         code);
    }
    /* Where machine code may not be made, the interpreter matches the same, only slower. */
    (void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
    *out = p;
    return ST_OK;
}

void eng_pretok_close(eng_pretok *p) {
    if (!p) return;
    pcre2_code_free(p->code);
    pcre2_match_context_free(p->limits);
    pcre2_general_context_free(p->memory);
    mem_free(p);
}

bool eng_pretok_keeps_words(const eng_pretok *p) { return p->row->keeps_words; }
bool eng_pretok_adds_bos(const eng_pretok *p) { return p->row->adds_bos; }

status eng_cut_open(const eng_pretok *p, eng_cut *cut) {
    pcre2_match_data *match = pcre2_match_data_create(1, p->memory);
    if (!match) return ST_NO_MEMORY;
    *cut = (eng_cut){.pretok = p, .match = match};
    return ST_OK;
}

void eng_cut_close(eng_cut *cut) { pcre2_match_data_free(cut->match); }

void eng_cut_begin(eng_cut *cut, const char *text, size_t bytes) {
    cut->text = text;
    cut->bytes = bytes;
    cut->at = 0;
}

status eng_cut_next(eng_cut *cut, const char **word, size_t *bytes, error *err) {
    *word = cut->text + cut->at;
    *bytes = 0;
    if (cut->at == cut->bytes) return ST_OK;
    int n = pcre2_match(cut->pretok->code, (PCRE2_SPTR)cut->text, cut->bytes, cut->at,
                        PCRE2_NO_UTF_CHECK, cut->match, cut->pretok->limits);
    if (n == PCRE2_ERROR_NOMEMORY)
        return error_set(err, ST_NO_MEMORY, "text: no memory to cut it into words");
    if (n < 0 && n != PCRE2_ERROR_NOMATCH)
        return error_set(err, ST_BAD_INPUT,
                         "text at byte %zu: too long a run to cut into words (pcre2 %d)", cut->at,
                         n);
    PCRE2_SIZE *span = pcre2_get_ovector_pointer(cut->match);
    size_t end = n < 0 ? cut->bytes : span[0] > cut->at ? span[0] : span[1];
    *bytes = end - cut->at;
    cut->at = end;
    return ST_OK;
}
