/* template_ops.c -- the filters, tests and methods a chat template may use: three tables at the
 * end.
 *
 * They do what Jinja2 3.1 and Python's str do, with these bounds: text changes case character by
 * character (no ß -> SS), tojson writes as Hugging Face's does (no HTML escapes, no indent),
 * keyword arguments are not taken. */
#include "engine/template_value.h"
#include <string.h>
#include <utf8proc.h>

enum { JSON_DEPTH_MAX = 32 };

typedef struct call {
    eng_run *r;
    const eng_node *n; /* where it stands; its text is the name */
    const eng_value *args;
    int count;
} call;

/* A row of a table: arguments between least and most; op does it. */
typedef struct op {
    const char *name;
    int least, most;
    status (*run)(const call *c, const eng_value *v, eng_value *out);
} op;

#define OP_FAIL(c, ...) ENG_RUN_FAIL((c)->r, (c)->n, __VA_ARGS__)

static status need_string(const call *c, const eng_value *v) {
    if (v->kind == ENG_V_STRING) return ST_OK;
    return OP_FAIL(c, "%.*s needs strings", (int)c->n->bytes, c->n->text);
}

static eng_value part(const char *text, size_t bytes) {
    return (eng_value){.kind = ENG_V_STRING, .text = text, .bytes = bytes};
}

/* ---- strip, trim ----------------------------------------------------------------------------- */

static bool is_space(utf8proc_int32_t c) { /* Python's str.isspace() */
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Bytes of the character at text; *point is -1 when it is none (one byte then). */
static size_t point_read(const char *text, size_t bytes, utf8proc_int32_t *point) {
    utf8proc_ssize_t n =
        utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, point);
    if (n > 0) return (size_t)n;
    *point = -1;
    return 1;
}

/* Whether the character at text goes: a blank, or one of chars. *size is how long it is. */
static bool goes(const eng_value *chars, const char *text, size_t bytes, size_t *size) {
    utf8proc_int32_t point;
    *size = point_read(text, bytes, &point);
    return chars ? memmem(chars->text, chars->bytes, text, *size) != NULL : is_space(point);
}

static status strip(const call *c, const eng_value *v, bool left, bool right, eng_value *out) {
    const eng_value *chars = c->count && c->args[0].kind != ENG_V_NONE ? &c->args[0] : NULL;
    TRY(need_string(c, v));
    if (chars) TRY(need_string(c, chars));
    TRY(eng_run_spend(c->r, c->n, v->bytes * (chars ? 1 + chars->bytes : 1)));
    size_t from = 0, to = v->bytes, size;
    while (left && from < to && goes(chars, v->text + from, to - from, &size)) from += size;
    while (right && to > from) {
        size_t last = to - 1;
        while (last > from && ((unsigned char)v->text[last] & 0xC0) == 0x80) last--;
        if (!goes(chars, v->text + last, to - last, &size)) break;
        to = last;
    }
    *out = part(v->text + from, to - from);
    return ST_OK;
}

static status do_strip(const call *c, const eng_value *v, eng_value *out) {
    return strip(c, v, true, true, out);
}
static status do_lstrip(const call *c, const eng_value *v, eng_value *out) {
    return strip(c, v, true, false, out);
}
static status do_rstrip(const call *c, const eng_value *v, eng_value *out) {
    return strip(c, v, false, true, out);
}

/* ---- case
 * -----------------------------------------------------------------------------------------------
 */

typedef utf8proc_int32_t (*letter_map)(utf8proc_int32_t);

static status change_case(const call *c, const eng_value *v, letter_map first, letter_map rest,
                          eng_value *out) {
    eng_builder b = {0};
    char piece[256];
    size_t filled = 0;
    TRY(need_string(c, v));
    for (size_t i = 0, n; i < v->bytes; i += n) {
        utf8proc_int32_t point;
        n = point_read(v->text + i, v->bytes - i, &point);
        if (point < 0)
            piece[filled++] = v->text[i];
        else
            filled += (size_t)utf8proc_encode_char((i ? rest : first)(point),
                                                   (utf8proc_uint8_t *)piece + filled);
        if (filled > sizeof piece - 8 || i + n == v->bytes) {
            TRY(eng_builder_put(c->r, c->n, &b, piece, filled));
            filled = 0;
        }
    }
    *out = eng_builder_value(&b);
    return ST_OK;
}

static status do_upper(const call *c, const eng_value *v, eng_value *out) {
    return change_case(c, v, utf8proc_toupper, utf8proc_toupper, out);
}

static status do_lower(const call *c, const eng_value *v, eng_value *out) {
    return change_case(c, v, utf8proc_tolower, utf8proc_tolower, out);
}

static status do_capitalize(const call *c, const eng_value *v, eng_value *out) {
    return change_case(c, v, utf8proc_totitle, utf8proc_tolower, out);
}

/* ---- parts of strings ------------------------------------------------------------------------ */

static status do_startswith(const call *c, const eng_value *v, eng_value *out) {
    TRY(need_string(c, v));
    TRY(need_string(c, &c->args[0]));
    const eng_value *with = &c->args[0];
    *out = eng_value_bool(with->bytes <= v->bytes && !memcmp(v->text, with->text, with->bytes));
    return eng_run_spend(c->r, c->n, with->bytes);
}

static status do_endswith(const call *c, const eng_value *v, eng_value *out) {
    TRY(need_string(c, v));
    TRY(need_string(c, &c->args[0]));
    const eng_value *with = &c->args[0];
    *out = eng_value_bool(with->bytes <= v->bytes &&
                          !memcmp(v->text + v->bytes - with->bytes, with->text, with->bytes));
    return eng_run_spend(c->r, c->n, with->bytes);
}

/* Takes the next piece of v from *at on; false: none is left. No separator: runs of blanks are one.
 */
static bool piece_next(const eng_value *v, const eng_value *separator, size_t *at,
                       eng_value *piece) {
    size_t size, end;
    if (separator) {
        if (*at > v->bytes) return false;
        const char *found =
            memmem(v->text + *at, v->bytes - *at, separator->text, separator->bytes);
        end = found ? (size_t)(found - v->text) : v->bytes;
        *piece = part(v->text + *at, end - *at);
        *at = found ? end + separator->bytes : v->bytes + 1;
        return true;
    }
    while (*at < v->bytes && goes(NULL, v->text + *at, v->bytes - *at, &size)) *at += size;
    for (end = *at; end < v->bytes && !goes(NULL, v->text + end, v->bytes - end, &size);)
        end += size;
    *piece = part(v->text + *at, end - *at);
    *at = end;
    return piece->bytes > 0;
}

static status do_split(const call *c, const eng_value *v, eng_value *out) {
    const eng_value *separator = c->count && c->args[0].kind != ENG_V_NONE ? &c->args[0] : NULL;
    TRY(need_string(c, v));
    if (separator) TRY(need_string(c, separator));
    if (separator && !separator->bytes) return OP_FAIL(c, "split by an empty string");
    TRY(eng_run_spend(c->r, c->n, v->bytes));
    int64_t count = 0;
    eng_value piece;
    for (size_t at = 0; piece_next(v, separator, &at, &piece);) count++;
    TRY(eng_value_list(c->r, c->n, count, out));
    size_t at = 0;
    for (int64_t i = 0; i < count; i++) piece_next(v, separator, &at, &out->list->items[i]);
    return ST_OK;
}

static status do_replace(const call *c, const eng_value *v, eng_value *out) {
    eng_builder b = {0};
    eng_value piece;
    TRY(need_string(c, v));
    TRY(need_string(c, &c->args[0]));
    TRY(need_string(c, &c->args[1]));
    if (!c->args[0].bytes) return OP_FAIL(c, "replacing an empty string is not supported");
    for (size_t at = 0, first = 1; piece_next(v, &c->args[0], &at, &piece); first = 0) {
        if (!first) TRY(eng_builder_put(c->r, c->n, &b, c->args[1].text, c->args[1].bytes));
        TRY(eng_builder_put(c->r, c->n, &b, piece.text, piece.bytes));
    }
    *out = eng_builder_value(&b);
    return ST_OK;
}

/* ---- lists and dicts ------------------------------------------------------------------------- */

static status do_items(const call *c, const eng_value *v, eng_value *out) {
    if (v->kind != ENG_V_DICT) return OP_FAIL(c, "items needs a dict");
    TRY(eng_value_list(c->r, c->n, v->dict->count, out));
    for (int64_t i = 0; i < v->dict->count; i++) {
        eng_value pair;
        TRY(eng_value_list(c->r, c->n, 2, &pair));
        pair.list->items[0] = v->dict->entries[i].key;
        pair.list->items[1] = v->dict->entries[i].value;
        out->list->items[i] = pair;
    }
    return ST_OK;
}

static status do_get(const call *c, const eng_value *v, eng_value *out) {
    if (v->kind != ENG_V_DICT) return OP_FAIL(c, "get needs a dict");
    const eng_value *found = eng_dict_find(v->dict, &c->args[0]);
    *out = found ? *found : c->count > 1 ? c->args[1] : (eng_value){.kind = ENG_V_NONE};
    return ST_OK;
}

static status do_length(const call *c, const eng_value *v, eng_value *out) {
    int64_t count = 0;
    switch (v->kind) {
    case ENG_V_UNDEFINED:
        break;
    case ENG_V_LIST:
        count = v->list->count;
        break;
    case ENG_V_DICT:
        count = v->dict->count;
        break;
    case ENG_V_STRING:
        TRY(eng_run_spend(c->r, c->n, v->bytes));
        for (size_t i = 0; i < v->bytes; i++) count += ((unsigned char)v->text[i] & 0xC0) != 0x80;
        break;
    default:
        return OP_FAIL(c, "this has no length");
    }
    *out = eng_value_int(count);
    return ST_OK;
}

static status do_end(const call *c, const eng_value *v, int64_t index, eng_value *out) {
    eng_value key = eng_value_int(index);
    *out = (eng_value){.kind = ENG_V_UNDEFINED};
    if (v->kind == ENG_V_UNDEFINED) return ST_OK;
    if (v->kind != ENG_V_LIST && v->kind != ENG_V_STRING)
        return OP_FAIL(c, "first and last need a list");
    return eng_value_index(c->r, c->n, v, &key, out);
}

static status do_first(const call *c, const eng_value *v, eng_value *out) {
    return do_end(c, v, 0, out);
}
static status do_last(const call *c, const eng_value *v, eng_value *out) {
    return do_end(c, v, -1, out);
}

static status do_list(const call *c, const eng_value *v, eng_value *out) {
    eng_list items;
    TRY(eng_value_items(c->r, c->n, v, &items));
    TRY(eng_value_list(c->r, c->n, items.count, out));
    if (items.count)
        memcpy(out->list->items, items.items, (size_t)items.count * sizeof *items.items);
    return ST_OK;
}

static status do_join(const call *c, const eng_value *v, eng_value *out) {
    eng_list items;
    eng_builder b = {0};
    eng_value text;
    if (c->count) TRY(need_string(c, &c->args[0]));
    TRY(eng_value_items(c->r, c->n, v, &items));
    for (int64_t i = 0; i < items.count; i++) {
        if (i && c->count) TRY(eng_builder_put(c->r, c->n, &b, c->args[0].text, c->args[0].bytes));
        TRY(eng_value_string(c->r, c->n, &items.items[i], &text));
        TRY(eng_builder_put(c->r, c->n, &b, text.text, text.bytes));
    }
    *out = eng_builder_value(&b);
    return ST_OK;
}

/* ---- the rest -------------------------------------------------------------------------------- */

static status do_default(const call *c, const eng_value *v, eng_value *out) {
    bool absent = v->kind == ENG_V_UNDEFINED ||
                  (c->count > 1 && eng_value_true(&c->args[1]) && !eng_value_true(v));
    *out = !absent ? *v : c->count ? c->args[0] : eng_value_text("");
    return ST_OK;
}

static status do_string(const call *c, const eng_value *v, eng_value *out) {
    return eng_value_string(c->r, c->n, v, out);
}

static status do_same(const call *c, const eng_value *v, eng_value *out) {
    (void)c;
    *out = *v;
    return ST_OK;
}

static status json_string(const call *c, const eng_value *v, eng_builder *b) {
    static const char plain[] = "\"\\\n\r\t\b\f", escaped[] = "\"\\nrtbf";
    TRY(eng_builder_put(c->r, c->n, b, "\"", 1));
    for (size_t i = 0, from = 0; i <= v->bytes; i++) {
        unsigned char byte = i < v->bytes ? (unsigned char)v->text[i] : 0;
        if (i < v->bytes && byte >= 0x20 && byte != '"' && byte != '\\') continue;
        TRY(eng_builder_put(c->r, c->n, b, v->text + from, i - from));
        from = i + 1;
        if (i == v->bytes) break;
        char text[8] = {'\\'};
        const char *known = byte ? strchr(plain, byte) : NULL;
        int n = known ? 2 : snprintf(text, sizeof text, "\\u%04x", byte);
        if (known) text[1] = escaped[known - plain];
        TRY(eng_builder_put(c->r, c->n, b, text, (size_t)n));
    }
    return eng_builder_put(c->r, c->n, b, "\"", 1);
}

static status json_word(const call *c, eng_builder *b, const char *word) {
    return eng_builder_put(c->r, c->n, b, word, strlen(word));
}

static status json_write(const call *c, const eng_value *v, int depth, eng_builder *b);

static status json_dict(const call *c, const eng_dict *d, int depth, eng_builder *b) {
    for (int64_t i = 0; i < d->count; i++) {
        eng_value key;
        TRY(json_word(c, b, i ? ", " : "{"));
        TRY(eng_value_string(c->r, c->n, &d->entries[i].key, &key));
        TRY(json_string(c, &key, b));
        TRY(json_word(c, b, ": "));
        TRY(json_write(c, &d->entries[i].value, depth + 1, b));
    }
    return json_word(c, b, d->count ? "}" : "{}");
}

static status json_list(const call *c, const eng_list *l, int depth, eng_builder *b) {
    for (int64_t i = 0; i < l->count; i++) {
        TRY(json_word(c, b, i ? ", " : "["));
        TRY(json_write(c, &l->items[i], depth + 1, b));
    }
    return json_word(c, b, l->count ? "]" : "[]");
}

static status json_write(const call *c, const eng_value *v, int depth, eng_builder *b) {
    eng_value text;
    if (depth > JSON_DEPTH_MAX) return OP_FAIL(c, "tojson deeper than %d", JSON_DEPTH_MAX);
    switch (v->kind) {
    case ENG_V_NONE:
        return json_word(c, b, "null");
    case ENG_V_BOOL:
        return json_word(c, b, v->number ? "true" : "false");
    case ENG_V_INT:
        TRY(eng_value_string(c->r, c->n, v, &text));
        return eng_builder_put(c->r, c->n, b, text.text, text.bytes);
    case ENG_V_STRING:
        return json_string(c, v, b);
    case ENG_V_LIST:
        return json_list(c, v->list, depth, b);
    case ENG_V_DICT:
        return json_dict(c, v->dict, depth, b);
    default:
        return OP_FAIL(c, "tojson of what is undefined");
    }
}

static status do_tojson(const call *c, const eng_value *v, eng_value *out) {
    eng_builder b = {0};
    TRY(json_write(c, v, 0, &b));
    *out = eng_builder_value(&b);
    return ST_OK;
}

/* ---- tables
 * ------------------------------------------------------------------------------------------------
 */

static const op FILTERS[] = {
    {"trim", 0, 1, do_strip},      {"length", 0, 0, do_length}, {"count", 0, 0, do_length},
    {"upper", 0, 0, do_upper},     {"lower", 0, 0, do_lower},   {"capitalize", 0, 0, do_capitalize},
    {"default", 0, 2, do_default}, {"d", 0, 2, do_default},     {"tojson", 0, 0, do_tojson},
    {"first", 0, 0, do_first},     {"last", 0, 0, do_last},     {"join", 0, 1, do_join},
    {"replace", 2, 2, do_replace}, {"string", 0, 0, do_string}, {"list", 0, 0, do_list},
    {"items", 0, 0, do_items},     {"safe", 0, 0, do_same},     {NULL, 0, 0, NULL},
};

static const op METHODS[] = {
    {"strip", 0, 1, do_strip},
    {"lstrip", 0, 1, do_lstrip},
    {"rstrip", 0, 1, do_rstrip},
    {"startswith", 1, 1, do_startswith},
    {"endswith", 1, 1, do_endswith},
    {"split", 0, 1, do_split},
    {"upper", 0, 0, do_upper},
    {"lower", 0, 0, do_lower},
    {"capitalize", 0, 0, do_capitalize},
    {"replace", 2, 2, do_replace},
    {"items", 0, 0, do_items},
    {"get", 1, 2, do_get},
    {NULL, 0, 0, NULL},
};

static bool named(const eng_node *n, const char *name) {
    return n->bytes == strlen(name) && !memcmp(n->text, name, n->bytes);
}

static status dispatch(const op *o, const char *what, const call *c, const eng_value *v,
                       eng_value *out) {
    int shown = c->n->bytes > 40 ? 40 : (int)c->n->bytes;
    while (o->name && !named(c->n, o->name)) o++;
    if (!o->name) return OP_FAIL(c, "%s '%.*s' is not supported", what, shown, c->n->text);
    if (c->count < o->least || c->count > o->most)
        return OP_FAIL(c, "%s '%s' takes %d to %d arguments, found %d", what, o->name, o->least,
                       o->most, c->count);
    return o->run(c, v, out);
}

/* Filters on text turn what is no string into one first, as Jinja2's do. */
status eng_value_filter(eng_run *r, const eng_node *n, const eng_value *v, const eng_value *args,
                        int count, eng_value *out) {
    static const char *const on_text[] = {"trim", "upper", "lower", "capitalize", "replace"};
    call c = {r, n, args, count};
    eng_value text = *v;
    for (size_t i = 0; i < sizeof on_text / sizeof *on_text; i++)
        if (named(n, on_text[i])) TRY(eng_value_string(r, n, v, &text));
    return dispatch(FILTERS, "filter", &c, &text, out);
}

status eng_value_method(eng_run *r, const eng_node *n, const eng_value *v, const eng_value *args,
                        int count, eng_value *out) {
    call c = {r, n, args, count};
    if (v->kind != ENG_V_STRING && v->kind != ENG_V_DICT)
        return ENG_RUN_FAIL(r, n, "only strings and dicts have methods");
    return dispatch(METHODS, "method", &c, v, out);
}

/* A test is true of the kinds whose bit is in mask. */
#define KIND(kind) (1u << ENG_V_##kind)

static const struct {
    const char *name;
    unsigned kinds;
} TESTS[] = {
    {"defined", ~KIND(UNDEFINED)},
    {"undefined", KIND(UNDEFINED)},
    {"none", KIND(NONE)},
    {"string", KIND(STRING)},
    {"number", KIND(INT) | KIND(BOOL)},
    {"integer", KIND(INT)},
    {"boolean", KIND(BOOL)},
    {"mapping", KIND(DICT)},
    {"iterable", KIND(STRING) | KIND(LIST) | KIND(DICT) | KIND(UNDEFINED) | KIND(LOOP)},
    {"sequence", KIND(STRING) | KIND(LIST) | KIND(DICT) | KIND(UNDEFINED)},
};

status eng_value_test(eng_run *r, const eng_node *n, const eng_value *v, const eng_value *args,
                      int count, bool *out) {
    if (count == 1 && (named(n, "eq") || named(n, "equalto")))
        return eng_value_equal(r, n, v, &args[0], out);
    if (count == 1 && named(n, "in")) return eng_value_in(r, n, v, &args[0], out);
    for (size_t i = 0; count == 0 && i < sizeof TESTS / sizeof *TESTS; i++)
        if (named(n, TESTS[i].name)) {
            *out = TESTS[i].kinds >> v->kind & 1;
            return ST_OK;
        }
    if (count == 0 && (named(n, "true") || named(n, "false"))) {
        *out = v->kind == ENG_V_BOOL && v->number == named(n, "true");
        return ST_OK;
    }
    if (count == 0 && (named(n, "odd") || named(n, "even")) &&
        (v->kind == ENG_V_INT || v->kind == ENG_V_BOOL)) {
        *out = (v->number & 1) == named(n, "odd");
        return ST_OK;
    }
    return ENG_RUN_FAIL(r, n, "test '%.*s' is not supported here",
                        n->bytes > 40 ? 40 : (int)n->bytes, n->text);
}
