/* config.c -- options by one table: a row is a flag, an environment variable, a YAML key, a default
 * and a line of help at once.
 *
 *   default  <  YAML file (--config FILE or BATON_CONFIG)  <  BATON_<NAME>  <  --name
 *
 * Flags:   `--name VALUE` or `--name=VALUE`, each at most once; a value that begins with `--` needs the
 *          second form. A switch is `--name` or `--no-name`. `--` ends the flags.
 * Variables: the name in capitals with _ for -; a variable set to the empty string counts as unset.
 * YAML:    one flat mapping of names to scalars. It is read event by event and the first nested
 *          collection, alias or second document is refused, so a file can neither nest deeply nor
 *          expand. Directives (%) are refused before parsing: libfyaml 0.7 loops for ever on bad ones.
 *
 * Every value goes through set(), whatever its source; `where` is how an error names that source. */
#include "base/base.h"
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <libfyaml.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (1 << 20)

typedef struct parse {
    const config_row *rows;
    int rows_count;
    arena *a;
    unsigned char *out;
    const char **given;          /* a row's value on the command line, NULL: not given */
    const char *file;            /* --config */
    error *err;
} parse;

/* ---- names ------------------------------------------------------------------------------------- */

static int find(const parse *p, const char *name, size_t bytes) {
    for (int i = 0; i < p->rows_count; i++)
        if (strlen(p->rows[i].name) == bytes && memcmp(p->rows[i].name, name, bytes) == 0) return i;
    return -1;
}

/* Levenshtein distance, one row of the matrix at a time; long words count as far. */
static int distance(const char *a, size_t a_bytes, const char *b) {
    int row[64];
    size_t b_bytes = strlen(b);
    if (a_bytes >= 64 || b_bytes >= 64) return 64;
    for (size_t j = 0; j <= b_bytes; j++) row[j] = (int)j;
    for (size_t i = 1; i <= a_bytes; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= b_bytes; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[b_bytes];
}

/* The known name nearest to what was typed, at most two edits away, or NULL. */
static const char *nearest(const parse *p, const char *name, size_t bytes) {
    const char *best = NULL;
    int best_distance = 3;
    for (int i = -2; i < p->rows_count; i++) {
        const char *known = i == -2 ? "config" : i == -1 ? "help" : p->rows[i].name;
        int d = distance(name, bytes, known);
        if (d < best_distance) best = known, best_distance = d;
    }
    return best;
}

static void variable_name(const char *name, char out[80]) {
    int used = snprintf(out, 80, "BATON_%s", name);
    assert(used < 80);
    for (char *c = out; *c; c++) *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

/* ---- values ------------------------------------------------------------------------------------ */

static bool in_range(const config_row *r, double value) {
    return (r->min == 0 && r->max == 0) || (value >= r->min && value <= r->max);
}

static status refuse_number(const parse *p, const config_row *r, const char *text,
                            const char *where) {
    const char *kind = r->kind == CONFIG_INT ? "whole number" : "number";
    if (r->min == 0 && r->max == 0)
        return error_set(p->err, ST_BAD_INPUT, "%s: '%.80s': expected a %s", where, text, kind);
    return error_set(p->err, ST_BAD_INPUT, "%s: '%.80s': expected a %s from %.15g to %.15g", where,
                     text, kind, r->min, r->max);
}

static status set_int(const parse *p, const config_row *r, const char *text, const char *where) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (isspace((unsigned char)*text) || end == text || *end || errno || !in_range(r, (double)value))
        return refuse_number(p, r, text, where);
    *(int64_t *)(p->out + r->offset) = value;
    return ST_OK;
}

static status set_real(const parse *p, const config_row *r, const char *text, const char *where) {
    char *end;
    double value = strtod(text, &end);
    if (isspace((unsigned char)*text) || end == text || *end || !isfinite(value) ||
        !in_range(r, value))
        return refuse_number(p, r, text, where);
    *(double *)(p->out + r->offset) = value;
    return ST_OK;
}

static status set_switch(const parse *p, const config_row *r, const char *text, const char *where) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (int i = 0; i < 8; i++)
        if (strcmp(text, words[i]) == 0) {
            *(bool *)(p->out + r->offset) = i % 2;
            return ST_OK;
        }
    return error_set(p->err, ST_BAD_INPUT, "%s: '%.80s': expected true or false", where, text);
}

/* text must live as long as the struct. */
static status set(const parse *p, const config_row *r, const char *text, const char *where) {
    switch (r->kind) {
    case CONFIG_INT: return set_int(p, r, text, where);
    case CONFIG_REAL: return set_real(p, r, text, where);
    case CONFIG_SWITCH: return set_switch(p, r, text, where);
    case CONFIG_TEXT: break;
    }
    *(const char **)(p->out + r->offset) = text;
    return ST_OK;
}

/* ---- sources ----------------------------------------------------------------------------------- */

static void set_unset(const parse *p, const config_row *r) {
    switch (r->kind) {
    case CONFIG_TEXT: *(const char **)(p->out + r->offset) = NULL; break;
    case CONFIG_INT: *(int64_t *)(p->out + r->offset) = 0; break;
    case CONFIG_REAL: *(double *)(p->out + r->offset) = 0; break;
    case CONFIG_SWITCH: *(bool *)(p->out + r->offset) = false; break;
    }
}

static status set_defaults(const parse *p) {
    for (int i = 0; i < p->rows_count; i++) {
        set_unset(p, &p->rows[i]);
        if (p->rows[i].fallback) TRY(set(p, &p->rows[i], p->rows[i].fallback, p->rows[i].name));
    }
    return ST_OK;
}

static status set_environment(const parse *p) {
    for (int i = 0; i < p->rows_count; i++) {
        char variable[80];
        variable_name(p->rows[i].name, variable);
        const char *text = getenv(variable);
        if (text && *text) TRY(set(p, &p->rows[i], text, variable));
    }
    return ST_OK;
}

static status set_flags(const parse *p) {
    for (int i = 0; i < p->rows_count; i++) {
        char where[80];
        snprintf(where, sizeof where, "--%s", p->rows[i].name);
        if (p->given[i]) TRY(set(p, &p->rows[i], p->given[i], where));
    }
    return ST_OK;
}

/* ---- YAML -------------------------------------------------------------------------------------- */

typedef struct yaml {
    const parse *p;
    bool document, mapping;      /* begun */
    int row;                     /* whose value comes next, -1: a key */
    char where[300];             /* file:line:column of the event in hand */
    bool *seen;
    char *complaint;             /* the parser's own first message */
} yaml;

static void keep_complaint(struct fy_diag *diag, void *user, const char *text, size_t bytes) {
    yaml *y = user;
    (void)diag;
    if (!y->complaint) y->complaint = arena_strndup(y->p->a, text, strcspn(text, "\n") < bytes
                                                                       ? strcspn(text, "\n")
                                                                       : bytes);
}

static status take_key(yaml *y, const char *text, size_t bytes) {
    y->row = find(y->p, text, bytes);
    int shown = bytes > 80 ? 80 : (int)bytes;
    if (y->row < 0) {
        const char *near = nearest(y->p, text, bytes);
        return error_set(y->p->err, ST_BAD_INPUT, "%s: unknown key '%.*s'%s%s%s", y->where, shown,
                         text, near ? ", did you mean '" : ": expected the name of an option",
                         near ? near : "", near ? "'?" : "");
    }
    if (y->seen[y->row])
        return error_set(y->p->err, ST_BAD_INPUT, "%s: key '%.*s' stands twice, expected once",
                         y->where, shown, text);
    y->seen[y->row] = true;
    return ST_OK;
}

static status take_value(yaml *y, const char *text, size_t bytes, bool plain) {
    const config_row *r = &y->p->rows[y->row];
    y->row = -1;
    if ((plain && !bytes) || memchr(text, 0, bytes))
        return error_set(y->p->err, ST_BAD_INPUT, "%s: '%s' has no value, expected %s", y->where,
                         r->name, r->value_name ? r->value_name : "true or false");
    char *copy = arena_strndup(y->p->a, text, bytes);
    if (!copy) return error_set(y->p->err, ST_NO_MEMORY, "%s: no memory", y->where);
    char where[400];
    snprintf(where, sizeof where, "%s: %s", y->where, r->name);
    return set(y->p, r, copy, where);
}

static status take_scalar(yaml *y, struct fy_token *token) {
    size_t bytes = 0;
    const char *text = fy_token_get_text(token, &bytes);
    bool plain = !token || fy_scalar_token_get_style(token) == FYSS_PLAIN;
    if (!text) text = "", bytes = 0;
    if (!y->mapping && plain && !bytes) return ST_OK;      /* an empty document sets nothing */
    if (!y->mapping)
        return error_set(y->p->err, ST_BAD_INPUT, "%s: expected a mapping, `name: value` a line",
                         y->where);
    return y->row < 0 ? take_key(y, text, bytes) : take_value(y, text, bytes, plain);
}

static status take_event(yaml *y, struct fy_event *event) {
    const struct fy_mark *mark = fy_event_start_mark(event);
    if (mark)
        snprintf(y->where, sizeof y->where, "%.250s:%d:%d", y->p->file, mark->line + 1,
                 mark->column + 1);
    switch (event->type) {
    case FYET_DOCUMENT_START:
        if (y->document)
            return error_set(y->p->err, ST_BAD_INPUT, "%s: a second document, expected one",
                             y->where);
        y->document = true;
        return ST_OK;
    case FYET_MAPPING_START:
        if (y->mapping) break;
        y->mapping = true;
        return ST_OK;
    case FYET_SCALAR: return take_scalar(y, fy_event_get_token(event));
    case FYET_SEQUENCE_START:
    case FYET_ALIAS: break;
    default: return ST_OK;                                 /* ends of what was begun */
    }
    return error_set(y->p->err, ST_BAD_INPUT, "%s: expected a plain value: no list, no nested "
                     "mapping, no alias", y->where);
}

static status read_events(yaml *y, struct fy_parser *parser) {
    struct fy_event *event;
    while ((event = fy_parser_parse(parser))) {
        bool last = event->type == FYET_STREAM_END;
        status s = take_event(y, event);
        fy_parser_event_free(parser, event);
        if (s != ST_OK || last) return s;
    }
    return error_set(y->p->err, ST_BAD_INPUT, "%s: not readable as YAML: %s", y->p->file,
                     y->complaint ? y->complaint : "the parser gave no reason");
}

static status refuse_directives(const parse *p, const char *text, size_t bytes) {
    size_t mark = bytes >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    for (size_t i = mark, line = 1; i < bytes; i++) {
        bool starts = i == mark || text[i - 1] == '\n' || text[i - 1] == '\r';
        line += i > mark && text[i - 1] == '\n';
        if (starts && text[i] == '%')
            return error_set(p->err, ST_BAD_INPUT, "%.250s:%zu:1: a line begins with %%, expected "
                             "no YAML directives", p->file, line);
    }
    return ST_OK;
}

static status set_yaml(const parse *p, const char *text, size_t bytes) {
    TRY(refuse_directives(p, text, bytes));
    yaml y = {.p = p, .row = -1, .seen = arena_alloc(p->a, (size_t)p->rows_count + 1)};
    struct fy_diag_cfg how;
    fy_diag_cfg_default(&how);
    how.fp = NULL;
    how.output_fn = keep_complaint;
    how.user = &y;
    how.colorize = how.show_source = how.show_type = how.show_module = false;
    struct fy_diag *diag = fy_diag_create(&how);
    struct fy_parse_cfg cfg = {.diag = diag};
    struct fy_parser *parser = diag ? fy_parser_create(&cfg) : NULL;
    status s = ST_NO_MEMORY;
    if (parser && y.seen && fy_parser_set_string(parser, text, bytes) == 0)
        s = read_events(&y, parser);
    else
        error_set(p->err, s, "%s: no memory", p->file);
    if (parser) fy_parser_destroy(parser);
    if (diag) fy_diag_destroy(diag);
    return s;
}

static status set_file(const parse *p) {
    if (!p->file) return ST_OK;
    FILE *in = fopen(p->file, "re");
    if (!in)
        return error_set(p->err, ST_BAD_INPUT, "--config: '%s': %s, expected a readable YAML file",
                         p->file, strerror(errno));
    char *text = mem_alloc(FILE_BYTES_MAX + 1);
    status s = ST_OK;
    size_t bytes = text ? fread(text, 1, FILE_BYTES_MAX + 1, in) : 0;
    if (!text)
        s = error_set(p->err, ST_NO_MEMORY, "--config: no memory to read '%s'", p->file);
    else if (ferror(in))
        s = error_set(p->err, ST_BAD_INPUT, "--config: '%s': %s, expected a readable YAML file",
                      p->file, strerror(errno));
    else if (bytes > FILE_BYTES_MAX)
        s = error_set(p->err, ST_BAD_INPUT, "--config: '%s' is longer than %d bytes", p->file,
                      FILE_BYTES_MAX);
    else if (bytes)
        s = set_yaml(p, text, bytes);
    mem_free(text);
    fclose(in);
    return s;
}

/* ---- command line ------------------------------------------------------------------------------ */

static status refuse_flag(const parse *p, const char *word, const char *name, size_t bytes) {
    const char *near = nearest(p, name, bytes);
    if (near)
        return error_set(p->err, ST_BAD_INPUT, "unknown flag '%.80s', did you mean --%s?", word,
                         near);
    return error_set(p->err, ST_BAD_INPUT, "unknown flag '%.80s': --help lists the flags", word);
}

static status keep_once(const parse *p, const char **slot, const char *value, const char *name) {
    if (*slot) return error_set(p->err, ST_BAD_INPUT, "--%s is given twice, expected once", name);
    *slot = value;
    return ST_OK;
}

/* argv[*at] begins with a dash; *at ends on the last word used. */
static status take_flag(parse *p, int argc, char **argv, int *at) {
    const char *word = argv[*at], *name = word + 2;
    if (word[1] != '-') return refuse_flag(p, word, word + 1, strlen(word + 1));
    const char *equals = strchr(name, '=');
    size_t bytes = equals ? (size_t)(equals - name) : strlen(name);
    bool config = bytes == 6 && memcmp(name, "config", 6) == 0;
    int i = find(p, name, bytes);
    bool no = i < 0 && bytes > 3 && memcmp(name, "no-", 3) == 0;
    if (no) i = find(p, name + 3, bytes - 3);
    bool is_switch = i >= 0 && p->rows[i].kind == CONFIG_SWITCH;
    if ((i < 0 && !config) || (no && !is_switch)) return refuse_flag(p, word, name, bytes);

    if (is_switch && equals)
        return error_set(p->err, ST_BAD_INPUT, "'%.80s': a switch takes no value, expected --%s or "
                         "--no-%s", word, p->rows[i].name, p->rows[i].name);
    if (is_switch) return keep_once(p, &p->given[i], no ? "false" : "true", p->rows[i].name);

    const char *value = equals ? equals + 1 : NULL;
    if (!value && *at + 1 < argc && strncmp(argv[*at + 1], "--", 2) != 0) value = argv[++*at];
    if (!value)
        return error_set(p->err, ST_BAD_INPUT, "%.80s has no value, expected %s %s", word, word,
                         config ? "FILE" : p->rows[i].value_name);
    if (config) TRY(keep_once(p, &p->file, value, "config"));
    return i < 0 ? ST_OK : keep_once(p, &p->given[i], value, p->rows[i].name);
}

static status take_words(parse *p, int argc, char **argv, const char **rest, int rest_max,
                         int *rest_count) {
    bool flags = true;
    int count = 0;
    for (int at = 1; at < argc; at++) {
        const char *word = argv[at];
        if (flags && strcmp(word, "--") == 0) {
            flags = false;
        } else if (flags && strcmp(word, "--help") == 0) {
            return ST_CANCELED;
        } else if (flags && word[0] == '-' && word[1]) {
            TRY(take_flag(p, argc, argv, &at));
        } else if (count < rest_max) {
            rest[count++] = word;
        } else {
            return error_set(p->err, ST_BAD_INPUT, "unexpected word '%.80s': at most %d besides "
                             "flags", word, rest_max);
        }
    }
    if (rest_count) *rest_count = count;
    return ST_OK;
}

status config_parse(const config_row *rows, int rows_count, int argc, char **argv, arena *a,
                    void *out, const char **rest, int rest_max, int *rest_count, error *err) {
    parse p = {.rows = rows, .rows_count = rows_count, .a = a, .out = out, .err = err};
    p.given = arena_alloc(a, ((size_t)rows_count + 1) * sizeof *p.given);
    if (!p.given) return error_set(err, ST_NO_MEMORY, "no memory for the options");
    TRY(take_words(&p, argc, argv, rest, rest_max, rest_count));
    const char *file = getenv("BATON_CONFIG");
    if (!p.file && file && *file) p.file = file;
    TRY(set_defaults(&p));
    TRY(set_file(&p));
    TRY(set_environment(&p));
    return set_flags(&p);
}

void config_help(FILE *out, const config_row *rows, int rows_count) {
    for (int i = 0; i < rows_count; i++) {
        const config_row *r = &rows[i];
        char flag[96], variable[80];
        if (r->kind == CONFIG_SWITCH)
            snprintf(flag, sizeof flag, "--[no-]%s", r->name);
        else
            snprintf(flag, sizeof flag, "--%s %s", r->name, r->value_name);
        variable_name(r->name, variable);
        fprintf(out, "  %-26s %s", flag, r->help);
        if (r->fallback) fprintf(out, " [default: %s]", r->fallback);
        fprintf(out, " [%s]\n", variable);
    }
    fprintf(out, "  %-26s %s\n", "--config FILE",
            "YAML file of `name: value` lines; variables and flags win [BATON_CONFIG]");
    fprintf(out, "  %-26s %s\n", "--help", "print this and leave");
}
