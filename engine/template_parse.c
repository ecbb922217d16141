/* template_parse.c -- tokens of a chat template to a tree, by recursive descent as Jinja2's parser
 * does:
 *
 *   choice  := or [if or [else choice]]       compare := sum {(== != < <= > >= | in | not in) sum}
 *   or      := and {or and}                   sum     := join {(+ | -) join}
 *   and     := not {and not}                  join    := product {~ product}
 *   not     := not not | compare              product := unary {(* | / | // | %) unary}
 *   unary   := (- | +) unary | primary, then .name [index] (call), then | filter, is test
 *
 * Chains of sums and joins are one node, however long. Every node knows how deep the tree below it
 * is, so that evaluation by recursion is bounded too. Names of filters, tests and methods are
 * looked up when they are evaluated: a template may name in a branch never taken what is not
 * supported. */
#include "engine/template.h"
#include <string.h>

typedef struct parser {
    eng_template *t;
    const eng_token *token;
    int depth;
    status status; /* of the first failure; parse functions give NULL from then on */
    error *err;
} parser;

static eng_node *choice(parser *p);
static eng_node *either(parser *p);
static eng_node *unary(parser *p, bool filtered);
static eng_node *body(parser *p, const char *const *ends);

/* ---- tokens and nodes ---------------------------------------------------------------------------
 */

/* Sets the failure and gives NULL. */
static eng_node *fail_at(parser *p, uint32_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static eng_node *fail_at(parser *p, uint32_t at, const char *fmt, ...) {
    char what[200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    p->status = eng_template_fail(p->t->source, p->t->bytes, at, p->err, "%s", what);
    return NULL;
}

/* "found X": the token that was not expected. */
static eng_node *unexpected(parser *p, const char *expected) {
    const eng_token *t = p->token;
    if (t->kind == ENG_TK_END) return fail_at(p, t->at, "expected %s, found the end", expected);
    return fail_at(p, t->at, "expected %s, found '%.*s'", expected,
                   t->bytes > 40 ? 40 : (int)t->bytes, t->text);
}

static bool at_sign(const parser *p, int64_t sign) {
    return p->token->kind == ENG_TK_SIGN && p->token->number == sign;
}

static bool at_name(const parser *p, const char *name) {
    return p->token->kind == ENG_TK_NAME && p->token->bytes == strlen(name) &&
           !memcmp(p->token->text, name, p->token->bytes);
}

static bool skip_sign(parser *p, int64_t sign) {
    if (!at_sign(p, sign)) return false;
    p->token++;
    return true;
}

static bool skip_name(parser *p, const char *name) {
    if (!at_name(p, name)) return false;
    p->token++;
    return true;
}

/* True when the sign was there; otherwise the failure is set. */
static bool expect_sign(parser *p, int64_t sign, const char *expected) {
    if (skip_sign(p, sign)) return true;
    unexpected(p, expected);
    return false;
}

static bool expect(parser *p, eng_token_kind kind, const char *expected) {
    if (p->token->kind == kind) {
        p->token++;
        return true;
    }
    unexpected(p, expected);
    return false;
}

static eng_node *make(parser *p, eng_node_kind kind, uint32_t at) {
    eng_node *n = arena_alloc(p->t->memory, sizeof *n);
    if (!n) {
        p->status = error_set(p->err, ST_NO_MEMORY, "template: no memory");
        return NULL;
    }
    n->kind = (uint8_t)kind;
    n->at = at;
    return n;
}

static int deeper(int depth, const eng_node *n) {
    for (; n; n = n->next)
        if (n->depth > depth) depth = n->depth;
    return depth;
}

/* Ends the making of n: its parts are in place. */
static eng_node *done(parser *p, eng_node *n) {
    int depth = n->a ? n->a->depth : 0;
    if (n->b && n->b->depth > depth) depth = n->b->depth;
    depth = 1 + deeper(deeper(depth, n->c), n->items);
    if (depth > ENG_TEMPLATE_DEPTH_MAX)
        return fail_at(p, n->at, "nested deeper than %d", ENG_TEMPLATE_DEPTH_MAX);
    n->depth = (uint8_t)depth;
    return n;
}

/* A node over a and b; NULL when one is needed and was not made. */
static eng_node *pair(parser *p, eng_node_kind kind, uint32_t at, eng_node *a, eng_node *b) {
    eng_node *n = p->status == ST_OK ? make(p, kind, at) : NULL;
    if (!n) return NULL;
    n->a = a;
    n->b = b;
    return done(p, n);
}

static eng_node *worded(parser *p, eng_node_kind kind, const eng_token *t) {
    eng_node *n = make(p, kind, t->at);
    if (!n) return NULL;
    n->text = t->text;
    n->bytes = t->bytes;
    return n;
}

/* Guards the functions through which all recursion goes. Paired with p->depth--. */
static bool enter(parser *p) {
    if (p->depth < ENG_TEMPLATE_DEPTH_MAX) {
        p->depth++;
        return true;
    }
    fail_at(p, p->token->at, "nested deeper than %d", ENG_TEMPLATE_DEPTH_MAX);
    return false;
}

/* The index of a variable's name. -1: failed. */
static int name_index(parser *p, const eng_token *t) {
    eng_template *u = p->t;
    for (int i = 0; i < u->names_count; i++)
        if (u->names[i].bytes == t->bytes && !memcmp(u->names[i].text, t->text, t->bytes)) return i;
    if (u->names_count == ENG_TEMPLATE_NAMES_MAX) {
        fail_at(p, t->at, "more than %d variables", ENG_TEMPLATE_NAMES_MAX);
        return -1;
    }
    u->names[u->names_count] = (eng_name){t->text, t->bytes};
    return u->names_count++;
}

/* ---- primary expressions --------------------------------------------------------------------- */

static eng_node *constant(parser *p, eng_node_kind kind, uint32_t at, int64_t number) {
    eng_node *n = make(p, kind, at);
    if (!n) return NULL;
    n->number = number;
    return done(p, n);
}

static eng_node *name(parser *p) {
    const eng_token *t = p->token;
    bool yes = at_name(p, "true") || at_name(p, "True"),
         no = at_name(p, "false") || at_name(p, "False");
    bool none = at_name(p, "none") || at_name(p, "None");
    if (t->kind != ENG_TK_NAME) return unexpected(p, "a name");
    p->token++;
    if (yes || no) return constant(p, ENG_N_BOOL, t->at, yes);
    if (none) return constant(p, ENG_N_NONE, t->at, 0);
    int index = name_index(p, t);
    return index < 0 ? NULL : constant(p, ENG_N_NAME, t->at, index);
}

/* Strings side by side are one. */
static eng_node *string(parser *p) {
    const eng_token *first = p->token;
    eng_node *n = worded(p, ENG_N_STRING, first);
    size_t bytes = 0;
    for (; p->token->kind == ENG_TK_STRING; p->token++) bytes += p->token->bytes;
    if (!n || p->token == first + 1) return n ? done(p, n) : NULL;
    char *text = arena_alloc(p->t->memory, bytes);
    if (!text) {
        p->status = error_set(p->err, ST_NO_MEMORY, "template: no memory");
        return NULL;
    }
    n->text = text;
    n->bytes = bytes;
    for (const eng_token *t = first; t < p->token; t++) {
        memcpy(text, t->text, t->bytes);
        text += t->bytes;
    }
    return done(p, n);
}

/* key: value of a dict */
static eng_node *dict_item(parser *p) {
    uint32_t at = p->token->at;
    eng_node *key = choice(p);
    if (!key || !expect_sign(p, ':', "':'")) return NULL;
    eng_node *value = choice(p);
    return value ? pair(p, ENG_N_PAIR, at, key, value) : NULL;
}

/* value or name=value of a call */
static eng_node *argument(parser *p) {
    const eng_token *t = p->token;
    if (t->kind != ENG_TK_NAME || t[1].kind != ENG_TK_SIGN || t[1].number != '=') return choice(p);
    p->token += 2;
    eng_node *n = worded(p, ENG_N_PAIR, t), *value = n ? choice(p) : NULL;
    if (!value) return NULL;
    n->b = value;
    return done(p, n);
}

/* Items separated by commas up to end, which is taken; one comma more is allowed. */
static bool items(parser *p, int end, const char *expected, eng_node *(*item)(parser *),
                  eng_node **out) {
    eng_node **last = out;
    for (*out = NULL; !skip_sign(p, end); last = &(*last)->next) {
        if (*out && !expect_sign(p, ',', expected)) return false;
        if (*out && skip_sign(p, end)) return true;
        if (!(*last = item(p))) return false;
    }
    return true;
}

static eng_node *listing(parser *p, eng_node_kind kind, int end, const char *expected,
                         eng_node *(*item)(parser *)) {
    eng_node *n = make(p, kind, p->token++->at);
    return n && items(p, end, expected, item, &n->items) ? done(p, n) : NULL;
}

/* (a) is a; (), (a,) and (a, b) are lists. */
static eng_node *parentheses(parser *p) {
    const eng_token *open = p->token++;
    if (at_sign(p, ')')) {
        p->token = open;
        return listing(p, ENG_N_LIST, ')', "')'", choice);
    }
    eng_node *first = choice(p);
    if (!first || skip_sign(p, ')')) return first;
    eng_node *list = expect_sign(p, ',', "',' or ')'") ? make(p, ENG_N_LIST, open->at) : NULL;
    if (!list || !items(p, ')', "',' or ')'", choice, &first->next)) return NULL;
    list->items = first;
    return done(p, list);
}

static eng_node *primary(parser *p) {
    switch (p->token->kind) {
    case ENG_TK_NAME:
        return name(p);
    case ENG_TK_STRING:
        return string(p);
    case ENG_TK_INT: {
        const eng_token *t = p->token++;
        return constant(p, ENG_N_INT, t->at, t->number);
    }
    default:
        break;
    }
    if (at_sign(p, '(')) return parentheses(p);
    if (at_sign(p, '[')) return listing(p, ENG_N_LIST, ']', "',' or ']'", choice);
    if (at_sign(p, '{')) return listing(p, ENG_N_DICT, '}', "',' or '}'", dict_item);
    return unexpected(p, "an expression");
}

/* ---- what follows a primary ------------------------------------------------------------------ */

/* One bound of a slice; absent: *out is NULL. */
static bool bound(parser *p, eng_node **out) {
    *out = NULL;
    if (at_sign(p, ':') || at_sign(p, ']')) return true;
    return (*out = choice(p)) != NULL;
}

static eng_node *subscript(parser *p, eng_node *of) {
    eng_node *n = make(p, ENG_N_INDEX, p->token++->at);
    if (!n || !bound(p, &n->b)) return NULL;
    n->a = of;
    if (!n->b && !at_sign(p, ':')) return unexpected(p, "an index");
    if (skip_sign(p, ':')) {
        n->kind = ENG_N_SLICE;
        if (!bound(p, &n->c)) return NULL;
        if (skip_sign(p, ':') && !bound(p, &n->items)) return NULL;
    }
    return expect_sign(p, ']', "']'") ? done(p, n) : NULL;
}

static eng_node *attribute(parser *p, eng_node *of) {
    const eng_token *t = ++p->token;
    if (t->kind == ENG_TK_INT) {
        p->token++;
        eng_node *index = constant(p, ENG_N_INT, t->at, t->number);
        return index ? pair(p, ENG_N_INDEX, t->at, of, index) : NULL;
    }
    if (t->kind != ENG_TK_NAME) return unexpected(p, "a name after '.'");
    p->token++;
    eng_node *n = worded(p, ENG_N_ATTRIBUTE, t);
    if (!n) return NULL;
    n->a = of;
    return done(p, n);
}

static eng_node *postfix(parser *p, eng_node *n) {
    while (n) {
        if (at_sign(p, '.')) {
            n = attribute(p, n);
        } else if (at_sign(p, '[')) {
            n = subscript(p, n);
        } else if (at_sign(p, '(')) {
            eng_node *call = make(p, ENG_N_CALL, n->kind == ENG_N_ATTRIBUTE ? n->at : p->token->at);
            p->token++;
            if (!call || !items(p, ')', "',' or ')'", argument, &call->items)) return NULL;
            call->a = n;
            n = done(p, call);
        } else {
            break;
        }
    }
    return n;
}

/* A test may have one argument without parentheses: is divisibleby 2. */
static bool test_has_argument(const parser *p) {
    switch (p->token->kind) {
    case ENG_TK_NAME:
        return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and");
    case ENG_TK_STRING:
    case ENG_TK_INT:
        return true;
    default:
        return at_sign(p, '[') || at_sign(p, '{');
    }
}

/* | name(arguments) and is [not] name(arguments): n is a filter's or a test's node over of. */
static eng_node *applied(parser *p, eng_node_kind kind, eng_node *of) {
    p->token++;
    bool negated = kind == ENG_N_TEST && skip_name(p, "not");
    if (p->token->kind != ENG_TK_NAME)
        return unexpected(p, kind == ENG_N_TEST ? "a test" : "a filter");
    eng_node *n = worded(p, kind, p->token++);
    if (!n) return NULL;
    n->a = of;
    n->number = negated;
    if (skip_sign(p, '(')) {
        if (!items(p, ')', "',' or ')'", argument, &n->items)) return NULL;
    } else if (kind == ENG_N_TEST && test_has_argument(p)) {
        eng_node *first = primary(p);
        if (!first || !(n->items = postfix(p, first))) return NULL;
    }
    return done(p, n);
}

static eng_node *unary(parser *p, bool filtered) {
    if (!enter(p)) return NULL;
    const eng_token *t = p->token;
    eng_node *n;
    if (skip_sign(p, '-')) {
        eng_node *of = unary(p, false);
        n = of ? pair(p, ENG_N_NEGATIVE, t->at, of, NULL) : NULL;
    } else {
        n = skip_sign(p, '+') ? unary(p, false) : primary(p);
    }
    n = postfix(p, n);
    while (n && filtered) {
        if (at_sign(p, '|'))
            n = applied(p, ENG_N_FILTER, n);
        else if (at_name(p, "is"))
            n = applied(p, ENG_N_TEST, n);
        else
            break;
    }
    p->depth--;
    return n;
}

/* ---- operators, tightest first --------------------------------------------------------------- */

static eng_node *product(parser *p) {
    eng_node *n = unary(p, true);
    while (n && (at_sign(p, '*') || at_sign(p, '/') || at_sign(p, '%') ||
                 at_sign(p, ENG_SIGN('/', '/')) || at_sign(p, ENG_SIGN('*', '*')))) {
        const eng_token *t = p->token++;
        eng_node *right = unary(p, true);
        n = right ? pair(p, ENG_N_PRODUCT, t->at, n, right) : NULL;
        if (n) n->number = t->number;
    }
    return n;
}

static eng_node *join(parser *p) {
    eng_node *first = product(p);
    if (!first || !at_sign(p, '~')) return first;
    eng_node *n = make(p, ENG_N_JOIN, p->token->at), *last = first;
    if (!n) return NULL;
    for (n->items = first; skip_sign(p, '~'); last = last->next)
        if (!(last->next = product(p))) return NULL;
    return done(p, n);
}

/* a op b op c as one node of the kind, its operands in a row. next_op takes an operator and gives
 * its number, 0 when none stands there. */
static eng_node *chain(parser *p, eng_node_kind kind, eng_node *(*part)(parser *),
                       int64_t (*next_op)(parser *)) {
    eng_node *first = part(p), *n = NULL, **last = NULL;
    for (;;) {
        uint32_t at = p->token->at;
        int64_t op = first ? next_op(p) : 0;
        if (!op) break;
        if (!n) {
            if (!(n = make(p, kind, at))) return NULL;
            n->a = first;
            last = &n->items;
        }
        eng_node *right = part(p);
        if (!right || !(*last = pair(p, ENG_N_OPERAND, at, right, NULL))) return NULL;
        (*last)->number = op;
        last = &(*last)->next;
    }
    return n ? done(p, n) : first;
}

static int64_t sum_op(parser *p) {
    return at_sign(p, '+') || at_sign(p, '-') ? p->token++->number : 0;
}

static eng_node *sum(parser *p) { return chain(p, ENG_N_SUM, join, sum_op); }

static int64_t compare_op(parser *p) {
    static const int64_t signs[] = {
        ENG_SIGN('=', '='), ENG_SIGN('!', '='), ENG_SIGN('<', '='), ENG_SIGN('>', '='), '<', '>'};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (skip_sign(p, signs[i])) return signs[i];
    if (skip_name(p, "in")) return ENG_OP_IN;
    if (!skip_name(p, "not")) return 0;
    if (skip_name(p, "in")) return ENG_OP_NOT_IN;
    p->token--;
    return 0;
}

static eng_node *negation(parser *p) {
    if (!enter(p)) return NULL;
    const eng_token *t = p->token;
    eng_node *n;
    if (skip_name(p, "not"))
        n = (n = negation(p)) ? pair(p, ENG_N_NOT, t->at, n, NULL) : NULL;
    else
        n = chain(p, ENG_N_COMPARE, sum, compare_op);
    p->depth--;
    return n;
}

static eng_node *both(parser *p) {
    eng_node *n = negation(p);
    for (const eng_token *t = p->token; n && skip_name(p, "and"); t = p->token) {
        eng_node *right = negation(p);
        n = right ? pair(p, ENG_N_AND, t->at, n, right) : NULL;
    }
    return n;
}

static eng_node *either(parser *p) {
    eng_node *n = both(p);
    for (const eng_token *t = p->token; n && skip_name(p, "or"); t = p->token) {
        eng_node *right = both(p);
        n = right ? pair(p, ENG_N_OR, t->at, n, right) : NULL;
    }
    return n;
}

static eng_node *choice(parser *p) {
    eng_node *n = either(p);
    while (n && at_name(p, "if")) {
        eng_node *node = make(p, ENG_N_CHOICE, p->token++->at);
        if (!node || !(node->a = either(p))) return NULL;
        node->b = n;
        if (skip_name(p, "else") && !(node->c = choice(p))) return NULL;
        n = done(p, node);
    }
    return n;
}

/* ---- statements ------------------------------------------------------------------------------ */

static bool tag_end(parser *p) { return expect(p, ENG_TK_TAG_END, "'%}'"); }

/* One branch: condition may be NULL; the body follows up to one of ends, which is not taken. */
static eng_node *branch(parser *p, uint32_t at, eng_node *condition, const char *const *ends) {
    if (p->status != ST_OK || !tag_end(p)) return NULL;
    eng_node *n = make(p, ENG_N_BRANCH, at);
    if (!n) return NULL;
    n->a = condition;
    n->items = body(p, ends);
    return p->status == ST_OK ? done(p, n) : NULL;
}

static eng_node *statement_if(parser *p) {
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last_ends[] = {
                                                                           "endif", NULL};
    eng_node *n = make(p, ENG_N_IF, p->token++->at), **last = n ? &n->items : NULL;
    if (!n || !(*last = branch(p, n->at, either(p), ends))) return NULL;
    for (;;) {
        uint32_t at = p->token->at;
        last = &(*last)->next;
        if (skip_name(p, "elif")) {
            if (!(*last = branch(p, at, either(p), ends))) return NULL;
        } else if (skip_name(p, "else")) {
            if (!(*last = branch(p, at, NULL, last_ends))) return NULL;
        } else {
            p->token++; /* endif */
            return tag_end(p) ? done(p, n) : NULL;
        }
    }
}

/* a in ..., or a, b in ... */
static bool targets(parser *p, eng_node **out) {
    for (;; out = &(*out)->next) {
        if (!(*out = name(p))) return false;
        if ((*out)->kind != ENG_N_NAME) {
            fail_at(p, (*out)->at, "expected a variable, found a constant");
            return false;
        }
        if (!skip_sign(p, ',')) break;
    }
    if (skip_name(p, "in")) return true;
    unexpected(p, "'in'");
    return false;
}

static eng_node *statement_for(parser *p) {
    static const char *const ends[] = {"else", "endfor", NULL}, *const last_ends[] = {"endfor",
                                                                                      NULL};
    eng_node *n = make(p, ENG_N_FOR, p->token++->at);
    if (!n || !targets(p, &n->items) || !(n->a = either(p))) return NULL;
    if (skip_name(p, "if") && !(n->b = choice(p))) return NULL;
    if (!(n->c = branch(p, n->at, NULL, ends))) return NULL;
    uint32_t at = p->token->at;
    if (skip_name(p, "else") && !(n->c->next = branch(p, at, NULL, last_ends))) return NULL;
    p->token++; /* endfor */
    return tag_end(p) ? done(p, n) : NULL;
}

static eng_node *statement_set(parser *p) {
    eng_node *n = make(p, ENG_N_SET, p->token++->at);
    if (!n || !(n->a = name(p))) return NULL;
    if (n->a->kind != ENG_N_NAME)
        return fail_at(p, n->a->at, "expected a variable, found a constant");
    if (at_sign(p, '.') && !(n->a = attribute(p, n->a))) return NULL;
    if (!expect_sign(p, '=', "'=' (set blocks are not supported)") || !(n->b = choice(p)))
        return NULL;
    return tag_end(p) ? done(p, n) : NULL;
}

static eng_node *statement_word(parser *p, eng_node_kind kind) {
    eng_node *n = constant(p, kind, p->token++->at, 0);
    return n && tag_end(p) ? n : NULL;
}

static eng_node *statement(parser *p) {
    if (at_name(p, "if")) return statement_if(p);
    if (at_name(p, "for")) return statement_for(p);
    if (at_name(p, "set")) return statement_set(p);
    if (at_name(p, "break")) return statement_word(p, ENG_N_BREAK);
    if (at_name(p, "continue")) return statement_word(p, ENG_N_CONTINUE);
    return unexpected(
        p,
        "if, elif, else, endif, for, endfor, set, break or continue (no other tag is supported)");
}

static eng_node *print(parser *p) {
    uint32_t at = p->token->at;
    eng_node *of = choice(p);
    if (!of || !expect(p, ENG_TK_PRINT_END, "'}}'")) return NULL;
    return pair(p, ENG_N_PRINT, at, of, NULL);
}

static bool at_any(const parser *p, const char *const *ends) {
    for (; *ends; ends++)
        if (at_name(p, *ends)) return true;
    return false;
}

/* Statements up to a tag that begins with one of ends: the tag's name is the current token then.
 * With no ends, up to the end of the template. NULL is an empty body too: see p->status. */
static eng_node *body(parser *p, const char *const *ends) {
    eng_node *first = NULL, **last = &first;
    if (!enter(p)) return NULL;
    while (p->status == ST_OK) {
        const eng_token *t = p->token;
        if (t->kind == ENG_TK_END) {
            if (*ends) fail_at(p, t->at, "expected {%% %s %%}, found the end", ends[0]);
            break;
        }
        p->token++;
        if (t->kind == ENG_TK_TAG && at_any(p, ends)) break;
        if (t->kind == ENG_TK_TEXT)
            *last = (*last = worded(p, ENG_N_TEXT, t)) ? done(p, *last) : NULL;
        else
            *last = t->kind == ENG_TK_TAG ? statement(p) : print(p);
        if (*last) last = &(*last)->next;
    }
    p->depth--;
    return first;
}

status eng_template_parse(eng_template *t, const eng_token *tokens, error *err) {
    static const char *const no_ends[] = {NULL};
    parser p = {.t = t, .token = tokens, .err = err};
    t->body = body(&p, no_ends);
    return p.status;
}
