/* template_lex.c -- a chat template cut into tokens, with the whitespace control of Jinja2 as
 * Hugging Face sets it (trim_blocks and lstrip_blocks on, keep_trailing_newline off).
 *
 *   {%- {{- {#-   blanks and newlines before the tag go
 *   -%} -}} -#}   blanks and newlines after it go
 *   {% {#         alone at the start of a line: the blanks before it go ({%+ keeps them)
 *   %} #}         one newline right after goes (+%} keeps it)
 *
 * Comments leave no token. */
#include "engine/template.h"
#include <string.h>

typedef struct lexer {
    const char *source;
    size_t bytes, at;
    arena *memory;
    eng_token *tokens;
    size_t count, room;
    bool line_starts; /* the last thing cut ended with a newline */
    error *err;
} lexer;

status eng_template_fail(const char *source, size_t bytes, uint32_t at, error *err, const char *fmt,
                         ...) {
    char what[300];
    int line = 1, column = 1;
    for (size_t i = 0; i < at && i < bytes; i++) {
        if (source[i] == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)source[i] & 0xC0) != 0x80) {
            column++;
        }
    }
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return error_set(err, ST_BAD_INPUT, "template line %d column %d: %s", line, column, what);
}

#define LEX_FAIL(x, at, ...)                                                                       \
    eng_template_fail((x)->source, (x)->bytes, (uint32_t)(at), (x)->err, __VA_ARGS__)

static status no_memory(lexer *x) { return error_set(x->err, ST_NO_MEMORY, "template: no memory"); }

static status push(lexer *x, eng_token t) {
    if (x->count == x->room) {
        size_t room = x->room ? x->room * 2 : 256;
        eng_token *more = arena_alloc(x->memory, room * sizeof *more);
        if (!more) return no_memory(x);
        if (x->count) memcpy(more, x->tokens, x->count * sizeof *more);
        x->tokens = more;
        x->room = room;
    }
    x->tokens[x->count++] = t;
    return ST_OK;
}

static bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool looks_at(const lexer *x, size_t at, const char *what) {
    size_t n = strlen(what);
    return x->bytes - at >= n && !memcmp(x->source + at, what, n);
}

static void skip_blanks(lexer *x) {
    while (x->at < x->bytes && is_blank(x->source[x->at])) x->at++;
}

/* ---- strings --------------------------------------------------------------------------------- */

static char *point_write(char *out, uint32_t c) {
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xC0 | c >> 6);
        *out++ = (char)(0x80 | (c & 0x3F));
    } else {
        if (c >= 0x10000) *out++ = (char)(0xF0 | c >> 18);
        *out++ = (char)(c >= 0x10000 ? 0x80 | (c >> 12 & 0x3F) : 0xE0 | c >> 12);
        *out++ = (char)(0x80 | (c >> 6 & 0x3F));
        *out++ = (char)(0x80 | (c & 0x3F));
    }
    return out;
}

static int digit_value(char c) {
    if (is_digit(c)) return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

/* Reads up to digits digits of a base at x->at. Returns how many were there. */
static int number_read(lexer *x, int base, int digits, uint32_t *out) {
    int n = 0;
    for (*out = 0; n < digits && x->at < x->bytes && digit_value(x->source[x->at]) < base; n++)
        *out = *out * (uint32_t)base + (uint32_t)digit_value(x->source[x->at++]);
    return n;
}

/* What follows a backslash at x->at, as Python reads it; unknown ones stay as they are. */
static status escape_read(lexer *x, char **out) {
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    size_t at = x->at - 1;
    char c = x->source[x->at];
    const char *known = c ? strchr(from, c) : NULL;
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t point;
    if (known) {
        x->at++;
        *(*out)++ = to[known - from];
    } else if (c == '\n') {
        x->at++;
    } else if (digits || (c >= '0' && c <= '7')) {
        if (digits) x->at++;
        int got = digits ? number_read(x, 16, digits, &point) : number_read(x, 8, 3, &point);
        if (got < digits || point == 0 || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000))
            return LEX_FAIL(x, at, "an escape that is no character");
        *out = point_write(*out, point);
    } else if (c == 'N') {
        return LEX_FAIL(x, at, "characters by name (\\N) are not supported");
    } else {
        *(*out)++ = '\\';
    }
    return ST_OK;
}

static status string_lex(lexer *x) {
    size_t at = x->at++;
    char quote = x->source[at];
    char *text = arena_alloc(x->memory, 16), *out;
    size_t end = x->at;
    while (end < x->bytes && x->source[end] != quote) end += x->source[end] == '\\' ? 2 : 1;
    if (end >= x->bytes) return LEX_FAIL(x, at, "a string that does not end");
    if (text) text = arena_alloc(x->memory, end - at);
    if (!text) return no_memory(x);
    out = text;
    while (x->at < end) {
        char c = x->source[x->at++];
        if (c == '\\')
            TRY(escape_read(x, &out));
        else
            *out++ = c;
    }
    x->at = end + 1;
    return push(x, (eng_token){ENG_TK_STRING, (uint32_t)at, text, (size_t)(out - text), 0});
}

/* ---- inside tags ----------------------------------------------------------------------------- */

static status int_lex(lexer *x) {
    size_t at = x->at;
    int64_t n = 0;
    for (; x->at < x->bytes && is_digit(x->source[x->at]); x->at++)
        if (__builtin_mul_overflow(n, 10, &n) ||
            __builtin_add_overflow(n, x->source[x->at] - '0', &n))
            return LEX_FAIL(x, at, "a number above 2^63-1");
    if (x->at + 1 < x->bytes && x->source[x->at] == '.' && is_digit(x->source[x->at + 1]))
        return LEX_FAIL(x, at, "decimal fractions are not supported");
    return push(x, (eng_token){ENG_TK_INT, (uint32_t)at, x->source + at, x->at - at, n});
}

static status name_lex(lexer *x) {
    size_t at = x->at;
    while (x->at < x->bytes && (is_letter(x->source[x->at]) || is_digit(x->source[x->at]))) x->at++;
    return push(x, (eng_token){ENG_TK_NAME, (uint32_t)at, x->source + at, x->at - at, 0});
}

static status sign_lex(lexer *x) {
    static const char *const doubles[] = {"==", "!=", "<=", ">=", "//", "**"};
    size_t at = x->at;
    for (size_t i = 0; i < sizeof doubles / sizeof *doubles; i++)
        if (looks_at(x, at, doubles[i])) {
            x->at += 2;
            return push(x, (eng_token){ENG_TK_SIGN, (uint32_t)at, x->source + at, 2,
                                       ENG_SIGN(doubles[i][0], doubles[i][1])});
        }
    char c = x->source[at];
    if (!strchr("+-/*%~[](){}<>=.:|,;", c))
        return LEX_FAIL(x, at, "byte 0x%02x is no part of an expression", (unsigned char)c);
    x->at++;
    return push(x, (eng_token){ENG_TK_SIGN, (uint32_t)at, x->source + at, 1, c});
}

/* Takes the end of a tag or comment if it stands at x->at, and the whitespace it swallows. */
static bool end_lex(lexer *x, const char *end, bool swallows_newline) {
    size_t at = x->at;
    char sign = x->source[at];
    if ((sign == '-' || sign == '+') && looks_at(x, at + 1, end))
        at++;
    else if (looks_at(x, at, end))
        sign = 0;
    else
        return false;
    if (sign == '+' && !swallows_newline) return false; /* there is no +}} */
    x->at = at + 2;
    if (sign == '-')
        skip_blanks(x);
    else if (!sign && swallows_newline && x->at < x->bytes && x->source[x->at] == '\n')
        x->at++;
    x->line_starts = x->source[x->at - 1] == '\n';
    return true;
}

static status tag_lex(lexer *x, bool print) {
    size_t began = x->at - 2;
    int open = 0; /* brackets: a }} inside them is theirs */
    TRY(push(x, (eng_token){print ? ENG_TK_PRINT : ENG_TK_TAG, (uint32_t)began, x->source + began,
                            2, 0}));
    if (x->at < x->bytes && (x->source[x->at] == '-' || x->source[x->at] == '+')) x->at++;
    for (;;) {
        skip_blanks(x);
        if (x->at >= x->bytes) return LEX_FAIL(x, began, "a tag that does not end");
        size_t at = x->at;
        char c = x->source[at];
        if (!open && end_lex(x, print ? "}}" : "%}", !print))
            return push(x, (eng_token){print ? ENG_TK_PRINT_END : ENG_TK_TAG_END, (uint32_t)at,
                                       x->source + at, 2, 0});
        if (c == '\'' || c == '"')
            TRY(string_lex(x));
        else if (is_digit(c))
            TRY(int_lex(x));
        else if (is_letter(c))
            TRY(name_lex(x));
        else
            TRY(sign_lex(x));
        open += c == '(' || c == '[' || c == '{';
        open -= open > 0 && (c == ')' || c == ']' || c == '}');
    }
}

static status comment_lex(lexer *x) {
    size_t began = x->at - 2;
    if (x->at < x->bytes && (x->source[x->at] == '-' || x->source[x->at] == '+')) x->at++;
    for (; x->at < x->bytes; x->at++)
        if (end_lex(x, "#}", true)) return ST_OK;
    return LEX_FAIL(x, began, "a comment that does not end");
}

/* ---- outside tags ---------------------------------------------------------------------------- */

/* The text up to the tag at tag_at (or the end), less what the tag's whitespace control takes. */
static status text_lex(lexer *x, size_t tag_at) {
    size_t from = x->at, end = tag_at;
    char kind = tag_at + 1 < x->bytes ? x->source[tag_at + 1] : 0;
    char sign = tag_at + 2 < x->bytes ? x->source[tag_at + 2] : 0;
    if (tag_at < x->bytes && sign == '-') {
        while (end > from && is_blank(x->source[end - 1])) end--;
    } else if (tag_at < x->bytes && sign != '+' && kind != '{') {
        size_t line = end;
        while (line > from && x->source[line - 1] != '\n' && is_blank(x->source[line - 1])) line--;
        if (line > from ? x->source[line - 1] == '\n' : x->line_starts) end = line;
    }
    if (end == from) return ST_OK;
    return push(x, (eng_token){ENG_TK_TEXT, (uint32_t)from, x->source + from, end - from, 0});
}

/* The next {{, {% or {# from x->at on; the end when there is none. */
static size_t tag_find(const lexer *x) {
    for (size_t i = x->at; i + 1 < x->bytes; i++)
        if (x->source[i] == '{' && strchr("{%#", x->source[i + 1])) return i;
    return x->bytes;
}

status eng_template_lex(const char *source, size_t bytes, arena *a, eng_token **tokens,
                        error *err) {
    lexer x = {.source = source, .bytes = bytes, .memory = a, .line_starts = true, .err = err};
    while (x.at < bytes) {
        size_t tag_at = tag_find(&x);
        TRY(text_lex(&x, tag_at));
        if (tag_at == bytes) break;
        x.at = tag_at + 2;
        if (source[tag_at + 1] == '#')
            TRY(comment_lex(&x));
        else
            TRY(tag_lex(&x, source[tag_at + 1] == '{'));
    }
    TRY(push(&x, (eng_token){.kind = ENG_TK_END, .at = (uint32_t)bytes, .text = "", .bytes = 0}));
    *tokens = x.tokens;
    return ST_OK;
}
