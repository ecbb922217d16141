/* template_value.c -- values of a chat template: truth, equality, order, membership, subscripts,
 * slices, as Python has them. Text counts in characters (code points).
 *
 * Every function that works on text or makes memory counts it (eng_run_spend, eng_run_take): what a
 * template can use up is bounded whatever it says. */
#include "engine/template_value.h"
#include <string.h>

enum { EQUAL_DEPTH_MAX = 16 };

status eng_run_spend(eng_run *r, const eng_node *n, size_t bytes) {
    r->steps += 1 + (int64_t)(bytes / 64);
    if (r->steps <= ENG_TEMPLATE_STEPS_MAX) return ST_OK;
    return ENG_RUN_FAIL(r, n, "more than %d steps", ENG_TEMPLATE_STEPS_MAX);
}

status eng_run_take(eng_run *r, const eng_node *n, size_t bytes, void **out) {
    TRY(eng_run_spend(r, n, bytes));
    if (bytes > ENG_TEMPLATE_SCRATCH_MAX - r->taken)
        return ENG_RUN_FAIL(r, n, "more than %d bytes of memory", ENG_TEMPLATE_SCRATCH_MAX);
    *out = arena_alloc(r->scratch, bytes);
    if (!*out) return error_set(r->err, ST_NO_MEMORY, "template: no memory");
    r->taken += bytes;
    return ST_OK;
}

status eng_builder_put(eng_run *r, const eng_node *n, eng_builder *b, const char *text,
                       size_t bytes) {
    if (bytes > ENG_TEMPLATE_OUTPUT_MAX - b->bytes)
        return ENG_RUN_FAIL(r, n, "a text of more than %d bytes", ENG_TEMPLATE_OUTPUT_MAX);
    TRY(eng_run_spend(r, n, bytes));
    if (b->bytes + bytes > b->room) {
        size_t room = 2 * b->room > b->bytes + bytes ? 2 * b->room : b->bytes + bytes;
        void *more;
        TRY(eng_run_take(r, n, room, &more));
        if (b->bytes) memcpy(more, b->text, b->bytes);
        b->text = more;
        b->room = room;
    }
    if (bytes) memcpy(b->text + b->bytes, text, bytes);
    b->bytes += bytes;
    return ST_OK;
}

static eng_value string_of(const char *text, size_t bytes) {
    return (eng_value){.kind = ENG_V_STRING, .text = bytes ? text : "", .bytes = bytes};
}

eng_value eng_builder_value(const eng_builder *b) { return string_of(b->text, b->bytes); }
eng_value eng_value_bool(bool yes) { return (eng_value){.kind = ENG_V_BOOL, .number = yes}; }
eng_value eng_value_int(int64_t number) { return (eng_value){.kind = ENG_V_INT, .number = number}; }
eng_value eng_value_text(const char *text) { return string_of(text, strlen(text)); }

bool eng_value_is(const eng_value *v, const char *text) {
    return v->kind == ENG_V_STRING && v->bytes == strlen(text) && !memcmp(v->text, text, v->bytes);
}

bool eng_value_true(const eng_value *v) {
    switch (v->kind) {
    case ENG_V_UNDEFINED:
    case ENG_V_NONE:
        return false;
    case ENG_V_BOOL:
    case ENG_V_INT:
        return v->number != 0;
    case ENG_V_STRING:
        return v->bytes > 0;
    case ENG_V_LIST:
        return v->list->count > 0;
    case ENG_V_DICT:
        return v->dict->count > 0;
    default:
        return true;
    }
}

status eng_value_string(eng_run *r, const eng_node *n, const eng_value *v, eng_value *out) {
    switch (v->kind) {
    case ENG_V_UNDEFINED:
        *out = eng_value_text("");
        return ST_OK;
    case ENG_V_NONE:
        *out = eng_value_text("None");
        return ST_OK;
    case ENG_V_BOOL:
        *out = eng_value_text(v->number ? "True" : "False");
        return ST_OK;
    case ENG_V_INT: {
        void *text;
        TRY(eng_run_take(r, n, 24, &text));
        *out = string_of(text, (size_t)snprintf(text, 24, "%lld", (long long)v->number));
        return ST_OK;
    }
    case ENG_V_STRING:
        *out = *v;
        return ST_OK;
    default:
        return ENG_RUN_FAIL(r, n, "a list or dict written as text is not supported, use tojson");
    }
}

/* ---- comparing ------------------------------------------------------------------------------- */

static bool is_number(const eng_value *v) { return v->kind == ENG_V_BOOL || v->kind == ENG_V_INT; }

static bool same_text(const eng_value *a, const eng_value *b) {
    return a->bytes == b->bytes && !memcmp(a->text, b->text, a->bytes);
}

static status equal_at(eng_run *r, const eng_node *n, const eng_value *a, const eng_value *b,
                       int depth, bool *out) {
    *out = false;
    TRY(eng_run_spend(r, n, a->kind == ENG_V_STRING ? a->bytes : 0));
    if (is_number(a) && is_number(b)) {
        *out = a->number == b->number;
    } else if (a->kind != b->kind) {
        return ST_OK;
    } else if (a->kind == ENG_V_STRING) {
        *out = same_text(a, b);
    } else if (a->kind == ENG_V_LIST) {
        if (depth == EQUAL_DEPTH_MAX)
            return ENG_RUN_FAIL(r, n, "lists compared deeper than %d", EQUAL_DEPTH_MAX);
        *out = a->list->count == b->list->count;
        for (int64_t i = 0; *out && i < a->list->count; i++)
            TRY(equal_at(r, n, &a->list->items[i], &b->list->items[i], depth + 1, out));
    } else if (a->kind == ENG_V_DICT) {
        return ENG_RUN_FAIL(r, n, "comparing dicts is not supported");
    } else {
        *out = a->kind == ENG_V_UNDEFINED || a->kind == ENG_V_NONE || a->dict == b->dict;
    }
    return ST_OK;
}

status eng_value_equal(eng_run *r, const eng_node *n, const eng_value *a, const eng_value *b,
                       bool *out) {
    return equal_at(r, n, a, b, 0, out);
}

status eng_value_less(eng_run *r, const eng_node *n, const eng_value *a, const eng_value *b,
                      bool *out) {
    if (is_number(a) && is_number(b)) {
        *out = a->number < b->number;
        return ST_OK;
    }
    if (a->kind != ENG_V_STRING || b->kind != ENG_V_STRING)
        return ENG_RUN_FAIL(r, n, "only two numbers or two strings have an order");
    size_t common = a->bytes < b->bytes ? a->bytes : b->bytes;
    TRY(eng_run_spend(r, n, common));
    int order = memcmp(a->text, b->text, common); /* UTF-8 sorts as its code points do */
    *out = order ? order < 0 : a->bytes < b->bytes;
    return ST_OK;
}

status eng_value_in(eng_run *r, const eng_node *n, const eng_value *item, const eng_value *of,
                    bool *out) {
    *out = false;
    switch (of->kind) {
    case ENG_V_UNDEFINED:
        return ST_OK;
    case ENG_V_STRING:
        if (item->kind != ENG_V_STRING)
            return ENG_RUN_FAIL(r, n, "only a string can be in a string");
        TRY(eng_run_spend(r, n, of->bytes));
        *out = !item->bytes || memmem(of->text, of->bytes, item->text, item->bytes);
        return ST_OK;
    case ENG_V_LIST:
        for (int64_t i = 0; !*out && i < of->list->count; i++)
            TRY(eng_value_equal(r, n, item, &of->list->items[i], out));
        return ST_OK;
    case ENG_V_DICT:
        *out = eng_dict_find(of->dict, item) != NULL;
        return ST_OK;
    default:
        return ENG_RUN_FAIL(r, n, "'in' needs a string, a list or a dict on its right");
    }
}

/* ---- lists and dicts ------------------------------------------------------------------------- */

status eng_value_list(eng_run *r, const eng_node *n, int64_t count, eng_value *out) {
    void *list, *items;
    TRY(eng_run_take(r, n, sizeof(eng_list), &list));
    TRY(eng_run_take(r, n, (size_t)count * sizeof(eng_value), &items));
    *out = (eng_value){.kind = ENG_V_LIST, .list = list};
    *out->list = (eng_list){items, count};
    return ST_OK;
}

status eng_dict_create(eng_run *r, const eng_node *n, eng_value_kind kind, int64_t room,
                       eng_value *out) {
    void *dict, *entries;
    TRY(eng_run_take(r, n, sizeof(eng_dict), &dict));
    TRY(eng_run_take(r, n, (size_t)room * sizeof(eng_entry), &entries));
    *out = (eng_value){.kind = kind, .dict = dict};
    *out->dict = (eng_dict){entries, 0, room};
    return ST_OK;
}

const eng_value *eng_dict_find(const eng_dict *d, const eng_value *key) {
    for (int64_t i = 0; i < d->count; i++) {
        const eng_value *k = &d->entries[i].key;
        if (k->kind == key->kind &&
            (k->kind == ENG_V_STRING ? same_text(k, key) : k->number == key->number))
            return &d->entries[i].value;
    }
    return NULL;
}

status eng_dict_put(eng_run *r, const eng_node *n, eng_dict *d, const eng_value *key,
                    const eng_value *value) {
    if (key->kind != ENG_V_STRING && key->kind != ENG_V_INT)
        return ENG_RUN_FAIL(r, n, "a dict's key must be a string or a whole number");
    TRY(eng_run_spend(r, n, (size_t)d->count * sizeof *key));
    eng_value *have = (eng_value *)eng_dict_find(d, key);
    if (have) {
        *have = *value;
        return ST_OK;
    }
    if (d->count == d->room) {
        void *more;
        int64_t room = 2 * d->room + 4;
        TRY(eng_run_take(r, n, (size_t)room * sizeof(eng_entry), &more));
        if (d->count) memcpy(more, d->entries, (size_t)d->count * sizeof(eng_entry));
        d->entries = more;
        d->room = room;
    }
    d->entries[d->count++] = (eng_entry){*key, *value};
    return ST_OK;
}

/* What a for loop walks: a list's items, a dict's keys, nothing of what is undefined. */
status eng_value_items(eng_run *r, const eng_node *n, const eng_value *of, eng_list *out) {
    eng_value keys;
    switch (of->kind) {
    case ENG_V_UNDEFINED:
        *out = (eng_list){NULL, 0};
        return ST_OK;
    case ENG_V_LIST:
        *out = *of->list;
        return ST_OK;
    case ENG_V_DICT:
        TRY(eng_value_list(r, n, of->dict->count, &keys));
        for (int64_t i = 0; i < of->dict->count; i++)
            keys.list->items[i] = of->dict->entries[i].key;
        *out = *keys.list;
        return ST_OK;
    default:
        return ENG_RUN_FAIL(r, n, "expected a list to go through");
    }
}

/* ---- subscripts and slices ------------------------------------------------------------------- */

/* Bytes of the character at text, never past the end. */
static size_t character(const char *text, size_t bytes) {
    size_t n = 1;
    while (n < bytes && ((unsigned char)text[n] & 0xC0) == 0x80) n++;
    return n;
}

static int64_t characters(const char *text, size_t bytes) {
    int64_t count = 0;
    for (size_t i = 0; i < bytes; i += character(text + i, bytes - i)) count++;
    return count;
}

/* The offset of character index (at most bytes). */
static size_t offset_of(const eng_value *v, int64_t index) {
    size_t at = 0;
    for (; index > 0 && at < v->bytes; index--) at += character(v->text + at, v->bytes - at);
    return at;
}

static int64_t length_of(const eng_value *v) {
    return v->kind == ENG_V_LIST ? v->list->count : characters(v->text, v->bytes);
}

static status loop_attribute(const eng_loop *l, const eng_value *key, eng_value *out) {
    int64_t count = l->over->count, i = l->index;
    *out = (eng_value){.kind = ENG_V_UNDEFINED};
    if (eng_value_is(key, "index")) *out = eng_value_int(i + 1);
    if (eng_value_is(key, "index0")) *out = eng_value_int(i);
    if (eng_value_is(key, "revindex")) *out = eng_value_int(count - i);
    if (eng_value_is(key, "revindex0")) *out = eng_value_int(count - i - 1);
    if (eng_value_is(key, "first")) *out = eng_value_bool(i == 0);
    if (eng_value_is(key, "last")) *out = eng_value_bool(i == count - 1);
    if (eng_value_is(key, "length")) *out = eng_value_int(count);
    if (eng_value_is(key, "previtem") && i > 0) *out = l->over->items[i - 1];
    if (eng_value_is(key, "nextitem") && i + 1 < count) *out = l->over->items[i + 1];
    return ST_OK;
}

/* of[key] and of.key: what is not there is undefined; only of what is undefined itself nothing is
 * asked. */
status eng_value_index(eng_run *r, const eng_node *n, const eng_value *of, const eng_value *key,
                       eng_value *out) {
    *out = (eng_value){.kind = ENG_V_UNDEFINED};
    const eng_value *found;
    switch (of->kind) {
    case ENG_V_UNDEFINED:
        return ENG_RUN_FAIL(r, n, "a part of what is undefined");
    case ENG_V_LOOP:
        return loop_attribute(of->loop, key, out);
    case ENG_V_DICT:
    case ENG_V_NAMESPACE:
        TRY(eng_run_spend(r, n, (size_t)of->dict->count * sizeof *key));
        if ((found = eng_dict_find(of->dict, key))) *out = *found;
        return ST_OK;
    case ENG_V_STRING:
        TRY(eng_run_spend(r, n, of->bytes));
        break;
    case ENG_V_LIST:
        break;
    default:
        return ST_OK;
    }
    if (key->kind != ENG_V_INT) return ST_OK;
    int64_t length = length_of(of), i = key->number < 0 ? key->number + length : key->number;
    if (i < 0 || i >= length) return ST_OK;
    if (of->kind == ENG_V_LIST) {
        *out = of->list->items[i];
        return ST_OK;
    }
    size_t at = offset_of(of, i);
    *out = string_of(of->text + at, character(of->text + at, of->bytes - at));
    return ST_OK;
}

/* A slice's bound within 0 .. length (-1 .. length-1 when it walks down), as Python's
 * slice.indices(). */
static int64_t slice_bound(const eng_value *v, int64_t length, bool down, int64_t absent) {
    int64_t low = down ? -1 : 0, high = down ? length - 1 : length, i = v->number;
    if (v->kind != ENG_V_INT) return absent;
    if (i < 0) i += length;
    return i < low ? low : i > high ? high : i;
}

status eng_value_slice(eng_run *r, const eng_node *n, const eng_value *of,
                       const eng_value bounds[3], eng_value *out) {
    for (int i = 0; i < 3; i++)
        if (bounds[i].kind != ENG_V_NONE && bounds[i].kind != ENG_V_INT)
            return ENG_RUN_FAIL(r, n, "a slice's bounds must be whole numbers");
    if (of->kind != ENG_V_STRING && of->kind != ENG_V_LIST)
        return ENG_RUN_FAIL(r, n, "only a string or a list has slices");
    int64_t step = bounds[2].kind == ENG_V_INT ? bounds[2].number : 1;
    if (step == 0 || step == INT64_MIN) return ENG_RUN_FAIL(r, n, "a slice's step must not be 0");
    if (of->kind == ENG_V_STRING) TRY(eng_run_spend(r, n, of->bytes));
    int64_t length = length_of(of), down = step < 0;
    int64_t from = slice_bound(&bounds[0], length, down, down ? length - 1 : 0);
    int64_t to = slice_bound(&bounds[1], length, down, down ? -1 : length);
    if (of->kind == ENG_V_STRING) {
        if (step != 1)
            return ENG_RUN_FAIL(r, n, "slices of a string with a step are not supported");
        size_t begin = offset_of(of, from), end = from < to ? offset_of(of, to) : begin;
        *out = string_of(of->text + begin, end - begin);
        return ST_OK;
    }
    int64_t span = down ? from - to : to - from, stride = down ? -step : step;
    int64_t count = span > 0 ? (span - 1) / stride + 1 : 0;
    TRY(eng_value_list(r, n, count, out));
    for (int64_t i = 0; i < count; i++) out->list->items[i] = of->list->items[from + i * step];
    return ST_OK;
}
