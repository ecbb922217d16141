/* template_eval.c -- walks the tree of a chat template and writes its text.
 *
 * Variables live on one stack of scopes: the template's own, and one more for each round of a for
 * loop (what is set there is forgotten when the round ends; a namespace() outlives it). Names are
 * looked up from the innermost scope out; an unknown name is undefined, which is false, empty and
 * prints as nothing, but has no parts. Recursion is as deep as the tree, which the parser bounded.
 */
#include "engine/template_eval.h"
#include <string.h>

enum { VARIABLES_MAX = 1024, ARGUMENTS_MAX = 8 };

static status eval(eng_run *r, const eng_node *n, eng_value *out);
static status exec(eng_run *r, const eng_node *first, eng_builder *out);

/* ---- variables ------------------------------------------------------------------------------- */

static eng_value variable_get(const eng_run *r, int name) {
    for (int i = r->variables_count - 1; i >= 0; i--)
        if (r->variables[i].name == name) return r->variables[i].value;
    return (eng_value){.kind = ENG_V_UNDEFINED};
}

static status variable_set(eng_run *r, const eng_node *n, int name, const eng_value *v) {
    for (int i = r->scope; i < r->variables_count; i++)
        if (r->variables[i].name == name) {
            r->variables[i].value = *v;
            return ST_OK;
        }
    if (r->variables_count == VARIABLES_MAX)
        return ENG_RUN_FAIL(r, n, "more than %d variables", VARIABLES_MAX);
    r->variables[r->variables_count++] = (eng_variable){name, *v};
    return ST_OK;
}

/* The index of a name the template speaks of; -1: it does not. */
static int name_find(const eng_template *t, const char *name) {
    for (int i = 0; i < t->names_count; i++)
        if (t->names[i].bytes == strlen(name) && !memcmp(t->names[i].text, name, t->names[i].bytes))
            return i;
    return -1;
}

static status global_set(eng_run *r, const char *name, const eng_value *v) {
    static const eng_node nowhere;
    int index = name_find(r->t, name);
    return index < 0 ? ST_OK : variable_set(r, &nowhere, index, v);
}

/* ---- calls
 * ------------------------------------------------------------------------------------------------
 */

static status arguments(eng_run *r, const eng_node *n, eng_value args[ARGUMENTS_MAX], int *count) {
    *count = 0;
    for (const eng_node *a = n->items; a; a = a->next) {
        if (a->kind == ENG_N_PAIR)
            return ENG_RUN_FAIL(r, a, "arguments by name are not supported here");
        if (*count == ARGUMENTS_MAX)
            return ENG_RUN_FAIL(r, a, "more than %d arguments", ARGUMENTS_MAX);
        TRY(eval(r, a, &args[(*count)++]));
    }
    return ST_OK;
}

static status call_namespace(eng_run *r, const eng_node *n, eng_value *out) {
    TRY(eng_dict_create(r, n, ENG_V_NAMESPACE, 4, out));
    for (const eng_node *a = n->items; a; a = a->next) {
        if (a->kind != ENG_N_PAIR) return ENG_RUN_FAIL(r, a, "namespace() takes arguments by name");
        eng_value key = {.kind = ENG_V_STRING, .text = a->text, .bytes = a->bytes}, value;
        TRY(eval(r, a->b, &value));
        TRY(eng_dict_put(r, a, out->dict, &key, &value));
    }
    return ST_OK;
}

static status call_range(eng_run *r, const eng_node *n, eng_value *out) {
    eng_value args[ARGUMENTS_MAX];
    int count;
    TRY(arguments(r, n, args, &count));
    if (count < 1 || count > 2) return ENG_RUN_FAIL(r, n, "range() takes 1 or 2 arguments");
    for (int i = 0; i < count; i++)
        if (args[i].kind != ENG_V_INT) return ENG_RUN_FAIL(r, n, "range() takes whole numbers");
    int64_t from = count == 2 ? args[0].number : 0, to = args[count - 1].number, length;
    if (__builtin_sub_overflow(to, from, &length) || length > ENG_TEMPLATE_STEPS_MAX)
        return ENG_RUN_FAIL(r, n, "range() of more than %d", ENG_TEMPLATE_STEPS_MAX);
    TRY(eng_value_list(r, n, length < 0 ? 0 : length, out));
    for (int64_t i = 0; i < length; i++) out->list->items[i] = eng_value_int(from + i);
    return ST_OK;
}

static status call_raise(eng_run *r, const eng_node *n) {
    eng_value args[ARGUMENTS_MAX], text = eng_value_text("");
    int count;
    TRY(arguments(r, n, args, &count));
    if (count) TRY(eng_value_string(r, n, &args[0], &text));
    return ENG_RUN_FAIL(r, n, "the template refuses this chat: %.*s",
                        text.bytes > 200 ? 200 : (int)text.bytes, text.text);
}

static status call(eng_run *r, const eng_node *n, eng_value *out) {
    const eng_node *of = n->a;
    if (of->kind == ENG_N_NAME) {
        const eng_name *name = &r->t->names[of->number];
        eng_value as_text = {.kind = ENG_V_STRING, .text = name->text, .bytes = name->bytes};
        if (eng_value_is(&as_text, "raise_exception")) return call_raise(r, n);
        if (eng_value_is(&as_text, "namespace")) return call_namespace(r, n, out);
        if (eng_value_is(&as_text, "range")) return call_range(r, n, out);
        return ENG_RUN_FAIL(r, n, "function '%.*s' is not supported",
                            name->bytes > 40 ? 40 : (int)name->bytes, name->text);
    }
    if (of->kind != ENG_N_ATTRIBUTE) return ENG_RUN_FAIL(r, n, "this is no function");
    eng_value self, args[ARGUMENTS_MAX];
    int count;
    TRY(eval(r, of->a, &self));
    TRY(arguments(r, n, args, &count));
    return eng_value_method(r, of, &self, args, count, out);
}

static status applied(eng_run *r, const eng_node *n, eng_value *out) {
    eng_value of, args[ARGUMENTS_MAX];
    int count;
    TRY(eval(r, n->a, &of));
    TRY(arguments(r, n, args, &count));
    if (n->kind == ENG_N_FILTER) return eng_value_filter(r, n, &of, args, count, out);
    bool yes = false;
    TRY(eng_value_test(r, n, &of, args, count, &yes));
    *out = eng_value_bool(yes != (n->number != 0));
    return ST_OK;
}

/* ---- operators ------------------------------------------------------------------------------- */

static status compare_one(eng_run *r, const eng_node *op, const eng_value *a, const eng_value *b,
                          bool *yes) {
    bool negated = false;
    switch (op->number) {
    case ENG_SIGN('!', '='):
        negated = true; /* fall through */
    case ENG_SIGN('=', '='):
        TRY(eng_value_equal(r, op, a, b, yes));
        break;
    case ENG_SIGN('>', '='):
        negated = true; /* fall through */
    case '<':
        TRY(eng_value_less(r, op, a, b, yes));
        break;
    case ENG_SIGN('<', '='):
        negated = true; /* fall through */
    case '>':
        TRY(eng_value_less(r, op, b, a, yes));
        break;
    case ENG_OP_NOT_IN:
        negated = true; /* fall through */
    default:
        TRY(eng_value_in(r, op, a, b, yes));
        break;
    }
    *yes = *yes != negated;
    return ST_OK;
}

static status compare(eng_run *r, const eng_node *n, eng_value *out) {
    eng_value left, right;
    bool yes = true;
    TRY(eval(r, n->a, &left));
    for (const eng_node *op = n->items; yes && op; op = op->next) {
        TRY(eval(r, op->a, &right));
        TRY(compare_one(r, op, &left, &right, &yes));
        left = right;
    }
    *out = eng_value_bool(yes);
    return ST_OK;
}

static bool is_number(const eng_value *v) { return v->kind == ENG_V_INT || v->kind == ENG_V_BOOL; }

static status add_numbers(eng_run *r, const eng_node *op, const eng_value *right, eng_value *sum) {
    int64_t n;
    if (!is_number(right) || !is_number(sum))
        return ENG_RUN_FAIL(r, op, "'%c' needs two strings, two lists or two numbers",
                            (char)op->number);
    if (op->number == '+' ? __builtin_add_overflow(sum->number, right->number, &n)
                          : __builtin_sub_overflow(sum->number, right->number, &n))
        return ENG_RUN_FAIL(r, op, "a number beyond 64 bits");
    *sum = eng_value_int(n);
    return ST_OK;
}

static status add_lists(eng_run *r, const eng_node *op, const eng_list *right, eng_value *sum) {
    eng_list left = *sum->list;
    TRY(eng_value_list(r, op, left.count + right->count, sum));
    if (left.count) memcpy(sum->list->items, left.items, (size_t)left.count * sizeof *left.items);
    if (right->count)
        memcpy(sum->list->items + left.count, right->items,
               (size_t)right->count * sizeof *left.items);
    return ST_OK;
}

/* Strings are put together in one buffer, so that a message in the middle of a long sum is copied
 * once. */
static status sum(eng_run *r, const eng_node *n, eng_value *out) {
    eng_builder b = {0};
    eng_value right;
    TRY(eval(r, n->a, out));
    if (out->kind == ENG_V_STRING) TRY(eng_builder_put(r, n, &b, out->text, out->bytes));
    for (const eng_node *op = n->items; op; op = op->next) {
        TRY(eval(r, op->a, &right));
        if (out->kind == ENG_V_STRING && right.kind == ENG_V_STRING && op->number == '+')
            TRY(eng_builder_put(r, op, &b, right.text, right.bytes));
        else if (out->kind == ENG_V_LIST && right.kind == ENG_V_LIST && op->number == '+')
            TRY(add_lists(r, op, right.list, out));
        else
            TRY(add_numbers(r, op, &right, out));
    }
    if (out->kind == ENG_V_STRING) *out = eng_builder_value(&b);
    return ST_OK;
}

/* Division rounds down, as Python's. */
static status product(eng_run *r, const eng_node *n, eng_value *out) {
    eng_value a, b;
    int64_t m;
    TRY(eval(r, n->a, &a));
    TRY(eval(r, n->b, &b));
    if (!is_number(&a) || !is_number(&b) || n->number == '/' || n->number == ENG_SIGN('*', '*'))
        return ENG_RUN_FAIL(r, n, "only * // and %% of two whole numbers are supported");
    if (n->number == '*') {
        if (__builtin_mul_overflow(a.number, b.number, &m))
            return ENG_RUN_FAIL(r, n, "a number beyond 64 bits");
        *out = eng_value_int(m);
        return ST_OK;
    }
    if (b.number == 0 || (b.number == -1 && a.number == INT64_MIN))
        return ENG_RUN_FAIL(r, n, "division by zero");
    int64_t quotient = a.number / b.number, rest = a.number % b.number;
    if (rest && (rest < 0) != (b.number < 0)) {
        quotient--;
        rest += b.number;
    }
    *out = eng_value_int(n->number == '%' ? rest : quotient);
    return ST_OK;
}

static status negative(eng_run *r, const eng_node *n, eng_value *out) {
    TRY(eval(r, n->a, out));
    if (!is_number(out) || out->number == INT64_MIN)
        return ENG_RUN_FAIL(r, n, "'-' needs a number");
    *out = eng_value_int(-out->number);
    return ST_OK;
}

static status joined(eng_run *r, const eng_node *n, eng_value *out) {
    eng_builder b = {0};
    for (const eng_node *i = n->items; i; i = i->next) {
        eng_value v, text;
        TRY(eval(r, i, &v));
        TRY(eng_value_string(r, i, &v, &text));
        TRY(eng_builder_put(r, i, &b, text.text, text.bytes));
    }
    *out = eng_builder_value(&b);
    return ST_OK;
}

/* ---- expressions ----------------------------------------------------------------------------- */

static status list(eng_run *r, const eng_node *n, eng_value *out) {
    int64_t count = 0;
    for (const eng_node *i = n->items; i; i = i->next) count++;
    TRY(eng_value_list(r, n, count, out));
    eng_value *to = out->list->items;
    for (const eng_node *i = n->items; i; i = i->next) TRY(eval(r, i, to++));
    return ST_OK;
}

static status dict(eng_run *r, const eng_node *n, eng_value *out) {
    TRY(eng_dict_create(r, n, ENG_V_DICT, 4, out));
    for (const eng_node *i = n->items; i; i = i->next) {
        eng_value key, value;
        TRY(eval(r, i->a, &key));
        TRY(eval(r, i->b, &value));
        TRY(eng_dict_put(r, i, out->dict, &key, &value));
    }
    return ST_OK;
}

static status part(eng_run *r, const eng_node *n, eng_value *out) {
    eng_value of, key = {.kind = ENG_V_STRING, .text = n->text, .bytes = n->bytes};
    TRY(eval(r, n->a, &of));
    if (n->kind == ENG_N_INDEX) TRY(eval(r, n->b, &key));
    return eng_value_index(r, n, &of, &key, out);
}

static status slice(eng_run *r, const eng_node *n, eng_value *out) {
    const eng_node *nodes[3] = {n->b, n->c, n->items};
    eng_value of, bounds[3] = {{.kind = ENG_V_NONE}, {.kind = ENG_V_NONE}, {.kind = ENG_V_NONE}};
    TRY(eval(r, n->a, &of));
    for (int i = 0; i < 3; i++)
        if (nodes[i]) TRY(eval(r, nodes[i], &bounds[i]));
    return eng_value_slice(r, n, &of, bounds, out);
}

/* and, or give the operand that decided, as Python does. */
static status logic(eng_run *r, const eng_node *n, eng_value *out) {
    TRY(eval(r, n->a, out));
    if (n->kind == ENG_N_NOT)
        *out = eng_value_bool(!eng_value_true(out));
    else if (eng_value_true(out) == (n->kind == ENG_N_AND))
        TRY(eval(r, n->b, out));
    return ST_OK;
}

static status choice(eng_run *r, const eng_node *n, eng_value *out) {
    TRY(eval(r, n->a, out));
    const eng_node *taken = eng_value_true(out) ? n->b : n->c;
    if (taken) return eval(r, taken, out);
    *out = (eng_value){.kind = ENG_V_UNDEFINED};
    return ST_OK;
}

static status eval(eng_run *r, const eng_node *n, eng_value *out) {
    TRY(eng_run_spend(r, n, 0));
    switch (n->kind) {
    case ENG_N_STRING:
        *out = (eng_value){.kind = ENG_V_STRING, .text = n->text, .bytes = n->bytes};
        return ST_OK;
    case ENG_N_INT:
        *out = eng_value_int(n->number);
        return ST_OK;
    case ENG_N_BOOL:
        *out = eng_value_bool(n->number);
        return ST_OK;
    case ENG_N_NONE:
        *out = (eng_value){.kind = ENG_V_NONE};
        return ST_OK;
    case ENG_N_NAME:
        *out = variable_get(r, (int)n->number);
        return eng_run_spend(r, n, (size_t)r->variables_count * 8);
    case ENG_N_LIST:
        return list(r, n, out);
    case ENG_N_DICT:
        return dict(r, n, out);
    case ENG_N_ATTRIBUTE:
    case ENG_N_INDEX:
        return part(r, n, out);
    case ENG_N_SLICE:
        return slice(r, n, out);
    case ENG_N_CALL:
        return call(r, n, out);
    case ENG_N_FILTER:
    case ENG_N_TEST:
        return applied(r, n, out);
    case ENG_N_NOT:
    case ENG_N_AND:
    case ENG_N_OR:
        return logic(r, n, out);
    case ENG_N_NEGATIVE:
        return negative(r, n, out);
    case ENG_N_COMPARE:
        return compare(r, n, out);
    case ENG_N_SUM:
        return sum(r, n, out);
    case ENG_N_PRODUCT:
        return product(r, n, out);
    case ENG_N_JOIN:
        return joined(r, n, out);
    case ENG_N_CHOICE:
        return choice(r, n, out);
    default:
        return ENG_RUN_FAIL(r, n, "this is no expression");
    }
}

/* ---- statements ------------------------------------------------------------------------------ */

static status print(eng_run *r, const eng_node *n, eng_builder *out) {
    eng_value v, text;
    TRY(eval(r, n->a, &v));
    TRY(eng_value_string(r, n, &v, &text));
    return eng_builder_put(r, n, out, text.text, text.bytes);
}

static status set(eng_run *r, const eng_node *n) {
    eng_value v, space;
    TRY(eval(r, n->b, &v));
    if (n->a->kind == ENG_N_NAME) return variable_set(r, n, (int)n->a->number, &v);
    if (n->a->kind != ENG_N_ATTRIBUTE)
        return ENG_RUN_FAIL(r, n->a, "only a variable or a namespace's can be set");
    TRY(eval(r, n->a->a, &space));
    if (space.kind != ENG_V_NAMESPACE)
        return ENG_RUN_FAIL(r, n->a, "only a namespace's attributes can be set");
    eng_value key = {.kind = ENG_V_STRING, .text = n->a->text, .bytes = n->a->bytes};
    return eng_dict_put(r, n, space.dict, &key, &v);
}

static status branch(eng_run *r, const eng_node *n, eng_builder *out) {
    for (const eng_node *b = n->items; b; b = b->next) {
        eng_value condition = eng_value_bool(true);
        if (b->a) TRY(eval(r, b->a, &condition));
        if (eng_value_true(&condition)) return exec(r, b->items, out);
    }
    return ST_OK;
}

/* Binds a round's item to the loop's targets, taking it apart when there are several. */
static status bind(eng_run *r, const eng_node *n, const eng_value *item) {
    const eng_node *target = n->items;
    if (!target->next) return variable_set(r, n, (int)target->number, item);
    int64_t count = 0;
    for (const eng_node *t = target; t; t = t->next) count++;
    if (item->kind != ENG_V_LIST || item->list->count != count)
        return ENG_RUN_FAIL(r, n, "expected items of %lld parts", (long long)count);
    for (int64_t i = 0; target; target = target->next)
        TRY(variable_set(r, n, (int)target->number, &item->list->items[i++]));
    return ST_OK;
}

/* Keeps the items for which the loop's condition holds. */
static status keep(eng_run *r, const eng_node *n, eng_list *items) {
    eng_value kept;
    int64_t count = 0;
    TRY(eng_value_list(r, n, items->count, &kept));
    for (int64_t i = 0; i < items->count; i++) {
        eng_value yes;
        int outer = r->scope, mark = r->variables_count;
        r->scope = mark;
        TRY(bind(r, n, &items->items[i]));
        TRY(eval(r, n->b, &yes));
        r->scope = outer;
        r->variables_count = mark;
        if (eng_value_true(&yes)) kept.list->items[count++] = items->items[i];
    }
    *items = (eng_list){kept.list->items, count};
    return ST_OK;
}

static status round_run(eng_run *r, const eng_node *n, const eng_value *loop, int loop_name,
                        eng_builder *out) {
    int outer = r->scope, mark = r->variables_count;
    TRY(eng_run_spend(r, n, 0));
    r->scope = mark;
    if (loop_name >= 0) TRY(variable_set(r, n, loop_name, loop));
    TRY(bind(r, n, &loop->loop->over->items[loop->loop->index]));
    TRY(exec(r, n->c->items, out));
    r->scope = outer;
    r->variables_count = mark;
    return ST_OK;
}

static status loop_run(eng_run *r, const eng_node *n, eng_builder *out) {
    eng_value over, items;
    void *loop;
    TRY(eval(r, n->a, &over));
    TRY(eng_value_list(r, n, 0, &items));
    TRY(eng_value_items(r, n->a, &over, items.list));
    if (n->b) TRY(keep(r, n, items.list));
    if (!items.list->count) return n->c->next ? exec(r, n->c->next->items, out) : ST_OK;
    TRY(eng_run_take(r, n, sizeof(eng_loop), &loop));
    eng_value v = {.kind = ENG_V_LOOP, .loop = loop};
    *v.loop = (eng_loop){items.list, 0};
    int loop_name = name_find(r->t, "loop");
    for (; v.loop->index < items.list->count; v.loop->index++) {
        TRY(round_run(r, n, &v, loop_name, out));
        bool broken = r->leaving == ENG_N_BREAK;
        r->leaving = 0;
        if (broken) break;
    }
    return ST_OK;
}

static status exec(eng_run *r, const eng_node *first, eng_builder *out) {
    for (const eng_node *n = first; n && !r->leaving; n = n->next) {
        TRY(eng_run_spend(r, n, 0));
        switch (n->kind) {
        case ENG_N_TEXT:
            TRY(eng_builder_put(r, n, out, n->text, n->bytes));
            break;
        case ENG_N_PRINT:
            TRY(print(r, n, out));
            break;
        case ENG_N_IF:
            TRY(branch(r, n, out));
            break;
        case ENG_N_FOR:
            TRY(loop_run(r, n, out));
            break;
        case ENG_N_SET:
            TRY(set(r, n));
            break;
        default:
            r->leaving = n->kind;
            break;
        }
    }
    return ST_OK;
}

/* ---- from outside ---------------------------------------------------------------------------- */

static status messages_value(eng_run *r, const eng_message *messages, int count, eng_value *out) {
    static const eng_node nowhere;
    TRY(eng_value_list(r, &nowhere, count, out));
    for (int i = 0; i < count; i++) {
        eng_value *m = &out->list->items[i];
        eng_value role = eng_value_text("role"), content = eng_value_text("content");
        eng_value role_is = eng_value_text(messages[i].role),
                  content_is = eng_value_text(messages[i].content);
        TRY(eng_dict_create(r, &nowhere, ENG_V_DICT, 2, m));
        TRY(eng_dict_put(r, &nowhere, m->dict, &role, &role_is));
        TRY(eng_dict_put(r, &nowhere, m->dict, &content, &content_is));
    }
    return ST_OK;
}

status eng_template_eval(eng_run *r, const eng_template_chat *chat, eng_builder *out) {
    static const eng_node nowhere;
    eng_value messages, prompt = eng_value_bool(chat->add_generation_prompt);
    eng_value bos = eng_value_text(chat->bos), eos = eng_value_text(chat->eos);
    void *variables;
    TRY(eng_run_take(r, &nowhere, VARIABLES_MAX * sizeof *r->variables, &variables));
    r->variables = variables;
    TRY(messages_value(r, chat->messages, chat->count, &messages));
    TRY(global_set(r, "messages", &messages));
    TRY(global_set(r, "add_generation_prompt", &prompt));
    TRY(global_set(r, "bos_token", &bos));
    TRY(global_set(r, "eos_token", &eos));
    return exec(r, r->t->body, out);
}
