/* template_value.h -- values of a chat template's expressions, and what can be done to them.
 * Internal to engine/. Everything is taken from the run's scratch and lives until the rendering
 * ends. */
#ifndef BATON_ENGINE_TEMPLATE_VALUE_H
#define BATON_ENGINE_TEMPLATE_VALUE_H

#include "engine/template.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum eng_value_kind {
    ENG_V_UNDEFINED,
    ENG_V_NONE,
    ENG_V_BOOL,   /* number */
    ENG_V_INT,    /* number */
    ENG_V_STRING, /* text, bytes */
    ENG_V_LIST,
    ENG_V_DICT,
    ENG_V_NAMESPACE, /* a dict whose entries {% set ns.x = ... %} changes */
    ENG_V_LOOP,
} eng_value_kind;

typedef struct eng_value {
    eng_value_kind kind;
    union {
        int64_t number;
        struct {
            const char *text;
            size_t bytes;
        };
        struct eng_list *list;
        struct eng_dict *dict;
        struct eng_loop *loop;
    };
} eng_value;

typedef struct eng_list {
    eng_value *items;
    int64_t count;
} eng_list;

typedef struct eng_entry {
    eng_value key, value;
} eng_entry;

typedef struct eng_dict {
    eng_entry *entries;
    int64_t count, room;
} eng_dict;

typedef struct eng_loop {
    const eng_list *over;
    int64_t index; /* from 0 */
} eng_loop;

typedef struct eng_variable {
    int name;
    eng_value value;
} eng_variable;

/* One rendering. */
typedef struct eng_run {
    const eng_template *t;
    arena *scratch;
    size_t taken; /* from scratch */
    int64_t steps;
    eng_variable *variables;    /* innermost scope last */
    int variables_count, scope; /* scope: where the innermost begins */
    eng_node_kind leaving;      /* ENG_N_BREAK, ENG_N_CONTINUE, or 0 */
    error *err;
} eng_run;

/* Text being put together. */
typedef struct eng_builder {
    char *text;
    size_t bytes, room;
} eng_builder;

/* ST_BAD_INPUT at a node's place. */
#define ENG_RUN_FAIL(r, n, ...)                                                                    \
    eng_template_fail((r)->t->source, (r)->t->bytes, (n)->at, (r)->err, __VA_ARGS__)

/* Counts steps, and refuses when there were too many. bytes: of text that is worked on. */
status eng_run_spend(eng_run *r, const eng_node *n, size_t bytes);
/* Zeroed memory; ST_BAD_INPUT over the bound, ST_NO_MEMORY. */
status eng_run_take(eng_run *r, const eng_node *n, size_t bytes, void **out);
status eng_builder_put(eng_run *r, const eng_node *n, eng_builder *b, const char *text,
                       size_t bytes);
eng_value eng_builder_value(const eng_builder *b);

eng_value eng_value_bool(bool yes);
eng_value eng_value_int(int64_t number);
eng_value eng_value_text(const char *text); /* borrows a C string */
bool eng_value_true(const eng_value *v);
bool eng_value_is(const eng_value *v, const char *text); /* a string, and this one */
/* What {{ v }} writes, as a string. */
status eng_value_string(eng_run *r, const eng_node *n, const eng_value *v, eng_value *out);
status eng_value_equal(eng_run *r, const eng_node *n, const eng_value *a, const eng_value *b,
                       bool *out);
status eng_value_less(eng_run *r, const eng_node *n, const eng_value *a, const eng_value *b,
                      bool *out);
status eng_value_in(eng_run *r, const eng_node *n, const eng_value *item, const eng_value *of,
                    bool *out);
status eng_value_index(eng_run *r, const eng_node *n, const eng_value *of, const eng_value *key,
                       eng_value *out);
status eng_value_slice(eng_run *r, const eng_node *n, const eng_value *of,
                       const eng_value bounds[3], eng_value *out);
status eng_value_items(eng_run *r, const eng_node *n, const eng_value *of, eng_list *out);
status eng_value_list(eng_run *r, const eng_node *n, int64_t count,
                      eng_value *out); /* undefined items */
status eng_dict_create(eng_run *r, const eng_node *n, eng_value_kind kind, int64_t room,
                       eng_value *out);
status eng_dict_put(eng_run *r, const eng_node *n, eng_dict *d, const eng_value *key,
                    const eng_value *value);
const eng_value *eng_dict_find(const eng_dict *d, const eng_value *key); /* NULL: not in it */

/* n->text names it, args are its arguments without the value itself (template_ops.c). */
status eng_value_filter(eng_run *r, const eng_node *n, const eng_value *v, const eng_value *args,
                        int count, eng_value *out);
status eng_value_test(eng_run *r, const eng_node *n, const eng_value *v, const eng_value *args,
                      int count, bool *out);
status eng_value_method(eng_run *r, const eng_node *n, const eng_value *v, const eng_value *args,
                        int count, eng_value *out);

#ifdef __cplusplus
}
#endif
#endif
