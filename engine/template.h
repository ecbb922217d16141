/* template.h -- what lexer, parser and evaluator of chat templates share. Internal to engine/.
 *
 *   source --[template_lex.c]--> tokens --[template_parse.c]--> tree --[template_eval.c]--> text
 *
 * Values and what filters, tests and methods do to them are template_value.c. */
#ifndef BATON_ENGINE_TEMPLATE_H
#define BATON_ENGINE_TEMPLATE_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bounds of what a template may ask for; a message longer than the output bound cannot be rendered.
 */
enum {
    ENG_TEMPLATE_SOURCE_MAX = 256 << 10,
    ENG_TEMPLATE_DEPTH_MAX = 128,     /* of nesting, when parsed and when evaluated */
    ENG_TEMPLATE_NAMES_MAX = 256,     /* different variable names */
    ENG_TEMPLATE_STEPS_MAX = 4 << 20, /* nodes evaluated, and 64 bytes of text worked on each */
    ENG_TEMPLATE_OUTPUT_MAX = 4 << 20,
    ENG_TEMPLATE_SCRATCH_MAX = 32 << 20, /* memory of one rendering, the output among it */
};

/* Fills err with "template line L column C: ..." for the place at. Columns count characters. */
status eng_template_fail(const char *source, size_t bytes, uint32_t at, error *err, const char *fmt,
                         ...) __attribute__((format(printf, 5, 6)));

/* ---- tokens -------------------------------------------------------------------------------------
 */

typedef enum eng_token_kind {
    ENG_TK_END,
    ENG_TK_TEXT, /* outside tags; text is what is left after whitespace control */
    ENG_TK_TAG,  /* {% */
    ENG_TK_TAG_END,
    ENG_TK_PRINT, /* {{ */
    ENG_TK_PRINT_END,
    ENG_TK_NAME,
    ENG_TK_STRING, /* text is unescaped */
    ENG_TK_INT,
    ENG_TK_SIGN, /* number is the sign: '+', or ENG_SIGN('=', '=') */
} eng_token_kind;

#define ENG_SIGN(first, second) ((first) << 8 | (second))

typedef struct eng_token {
    eng_token_kind kind;
    uint32_t at; /* offset in the source */
    const char *text;
    size_t bytes;
    int64_t number;
} eng_token;

/* source: '\n' is its only line end, no NUL. *tokens is from a and ends with ENG_TK_END. */
status eng_template_lex(const char *source, size_t bytes, arena *a, eng_token **tokens, error *err);

/* ---- tree ---------------------------------------------------------------------------------------
 */

typedef enum eng_node_kind { /* what a, b, c, items, text and number are */
                             /* expressions */
                             ENG_N_STRING, /* text */
                             ENG_N_INT,    /* number */
                             ENG_N_BOOL,   /* number */
                             ENG_N_NONE,
                             ENG_N_NAME,      /* number: index into names */
                             ENG_N_LIST,      /* items */
                             ENG_N_DICT,      /* items: pairs */
                             ENG_N_PAIR,      /* a: key, b: value; a keyword argument: text, b */
                             ENG_N_ATTRIBUTE, /* a.text */
                             ENG_N_INDEX,     /* a[b] */
                             ENG_N_SLICE,     /* a[b:c:items], each may be NULL */
                             ENG_N_CALL,      /* a(items) */
                             ENG_N_FILTER,    /* a | text(items) */
                             ENG_N_TEST,      /* a is text(items); number: negated */
                             ENG_N_NOT,       /* a */
                             ENG_N_NEGATIVE,  /* a */
                             ENG_N_AND,       /* a, b */
                             ENG_N_OR,        /* a, b */
                             ENG_N_COMPARE,   /* a, items: operands */
                             ENG_N_SUM,       /* a, items: operands */
                             ENG_N_PRODUCT,   /* a, b; number: sign */
                             ENG_N_OPERAND,   /* number: sign, ENG_OP_IN or ENG_OP_NOT_IN; a */
                             ENG_N_JOIN,      /* items, joined as text (~) */
                             ENG_N_CHOICE,    /* b if a else c (may be NULL) */
                             /* statements */
                             ENG_N_TEXT,   /* text */
                             ENG_N_PRINT,  /* a */
                             ENG_N_IF,     /* items: branches */
                             ENG_N_BRANCH, /* a: condition, NULL for else; items: body */
                             ENG_N_FOR, /* items: targets, a: of what, b: filter or NULL; c: branch
                                           of the body, whose next is the branch of else or NULL */
                             ENG_N_SET, /* a: name or attribute, b: value */
                             ENG_N_BREAK,
                             ENG_N_CONTINUE,
} eng_node_kind;

enum { ENG_OP_IN = 1, ENG_OP_NOT_IN = 2 };

typedef struct eng_node {
    uint8_t kind;
    uint8_t depth; /* of the tree below, at most ENG_TEMPLATE_DEPTH_MAX */
    uint32_t at;
    struct eng_node *a, *b, *c, *items, *next;
    const char *text;
    size_t bytes;
    int64_t number;
} eng_node;

typedef struct eng_name {
    const char *text;
    size_t bytes;
} eng_name;

struct eng_template {
    arena *memory;
    const char *source; /* line ends normalized: places in errors refer to it */
    size_t bytes;
    eng_node *body;
    eng_name names[ENG_TEMPLATE_NAMES_MAX];
    int names_count;
};

/* Fills body and names from t->source. */
status eng_template_parse(eng_template *t, const eng_token *tokens, error *err);

#ifdef __cplusplus
}
#endif
#endif
