/* coord_story.h -- the coordinator's core told as a story: an event a line, and the actions it must give. Nodes are
 * chosen by load (story_limits): what a choice by cost depends on is coord_route.c's to test.
 *
 * Events, request 1 in its attempt 2 being "1.2"; every prompt has 10 tokens:
 *   node N D|P [cap=C] [epoch=E] [num=X] [page=TOKENS] [pages=N of 4] [drain]   lost N   at MS (a tick)
 *   cancel R   stop R
 *   submit R [max=M] [seen=S: the client has 1, 2, .. S of the answer] [prefer=N] [deadline=MS] [tenant=T]
 *            [here: the decode node is to read the prompt]
 *   reserved R.A CACHED/WANTED   landed R.A   sent R.A   tokens R.A @INDEX T,T   first R.A @INDEX T
 *   dend R.A STATUS|done         pend R.A STATUS
 * Actions, blank between them, "" for none:
 *   D1.1>0:10,L32   Decode of 10 tokens on node 0, local_tokens_max 32 (L* : all; a last A: its prompt is read apart)
 *   P1.1>2:0-9      Prefill on node 2, skip 0, send_end 9 (a last +2: two answer tokens go with the prompt; a last m: of an
 *                   answer that moves away from there)
 *   H1.1>2:10       Prefill of 10 tokens that are to be held there
 *   xD1.1>0 xP1.1>2 cancels      E1@10:7,8  emit      F1:ST_OK/2  finish, reason 2 */
#ifndef BATON_TESTS_COORD_STORY_H
#define BATON_TESTS_COORD_STORY_H

#include "coordinator/coord.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static inline coord_limits story_limits(void) {
    coord_limits l = coord_limits_default;
    l.route = COORD_ROUTE_LEAST_LOADED;
    return l;
}

typedef struct line {
    const char *event, *actions;
} line;

typedef struct told {
    coord_core *core;
    int64_t now_ms;
    char actions[2000];
} told;

static inline int number_after(const char *text, const char *word, int otherwise) {
    const char *at = strstr(text, word);
    return at ? atoi(at + strlen(word)) : otherwise;
}

static inline status status_named(const char *name) {
    for (int s = 0; s < ST_COUNT; s++)
        if (strcmp(status_name((status)s), name) == 0) return (status)s;
    fail_msg("no status is called %s", name);
    return ST_INTERNAL;
}

static inline void list_tokens(char *out, size_t room, const int32_t *tokens, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        size_t used = strlen(out);
        snprintf(out + used, room - used, "%s%d", i ? "," : "", tokens[i]);
    }
}

static inline void write_action(char *out, size_t room, const coord_action *a) {
    static const char *const heads[] = {"D", "P", "xD", "xP", "E", "F"};
    int r = (int)a->request;
    bool hold = a->kind == COORD_DO_PREFILL && a->prefill.hold;
    int used = snprintf(out, room, "%s%d", hold ? "H" : heads[a->kind], r);
    if (a->kind < COORD_DO_EMIT)
        used += snprintf(out + used, room - (size_t)used, ".%u>%d", a->attempt, a->node);
    out += used;
    room -= (size_t)used;
    const char *apart = a->kind == COORD_DO_DECODE && a->decode.apart ? "A" : "";
    if (a->kind == COORD_DO_DECODE && a->decode.local_tokens_max == INT32_MAX)
        snprintf(out, room, ":%d,L*%s", a->decode.count, apart);
    else if (a->kind == COORD_DO_DECODE)
        snprintf(out, room, ":%d,L%d%s", a->decode.count, a->decode.local_tokens_max, apart);
    else if (hold)
        snprintf(out, room, ":%d", a->prefill.count);
    else if (a->kind == COORD_DO_PREFILL && a->prefill.count > a->prefill.prompt_count)
        snprintf(out, room, ":%d-%d+%d%s", a->prefill.skip, a->prefill.send_end, a->prefill.count - a->prefill.prompt_count,
                 a->prefill.moved ? "m" : "");
    else if (a->kind == COORD_DO_PREFILL)
        snprintf(out, room, ":%d-%d", a->prefill.skip, a->prefill.send_end);
    else if (a->kind == COORD_DO_FINISH)
        snprintf(out, room, ":%s/%d", status_name(a->finish.st), a->finish.reason);
    else if (a->kind == COORD_DO_EMIT) {
        snprintf(out, room, "@%d:", a->emit.index);
        list_tokens(out, room, a->emit.tokens, a->emit.count);
    }
}

static inline void step(told *t, coord_event *e) {
    coord_actions actions;
    coord_core_step(t->core, e, t->now_ms, &actions);
    t->actions[0] = 0;
    for (int i = 0; i < actions.count; i++) {
        size_t used = strlen(t->actions);
        if (i) t->actions[used++] = ' ';
        write_action(t->actions + used, sizeof t->actions - used, &actions.at[i]);
    }
}

static inline void tell_node(coord_event *e, const char *text) {
    char role = 0;
    assert_int_equal(sscanf(text, "node %d %c", &e->node, &role), 2);
    e->kind = COORD_NODE_STATE;
    e->node_state.role = role == 'D' ? COORD_DECODE : COORD_PREFILL;
    e->node_state.capacity = number_after(text, "cap=", 4);
    e->node_state.epoch = (uint64_t)number_after(text, "epoch=", 1);
    e->node_state.numerics = (uint64_t)number_after(text, "num=", 0);
    e->node_state.pages_total = number_after(text, "pages=", 0);
    e->node_state.draining = strstr(text, "drain") != NULL;
    e->node_state.page_tokens = number_after(text, "page=", e->node_state.pages_total ? 4 : 0);
}

static inline void tell_submit(coord_event *e, const char *text) {
    static const int32_t tokens[14] = {100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 1, 2, 3, 4};
    e->kind = COORD_SUBMIT;
    e->request = (uint64_t)number_after(text, "submit ", 0);
    e->submit.id = "story";
    e->submit.tokens = tokens;
    e->submit.prompt_count = 10;
    e->submit.count = 10 + number_after(text, "seen=", 0);
    e->submit.max_tokens = number_after(text, "max=", 4);
    e->submit.prefer_node = number_after(text, "prefer=", -1);
    e->submit.tenant = (uint64_t)number_after(text, "tenant=", 0);
    e->submit.prompt_here = strstr(text, " here") != NULL;
    int deadline = number_after(text, "deadline=", 0);
    e->submit.deadline_ms = deadline ? deadline : INT64_MAX;
}

/* "word R.A rest" */
static inline void tell_stream(coord_event *e, const char *word, const char *text, int32_t *tokens) {
    static const struct { const char *word; coord_event_kind kind; } words[] = {
        {"reserved", COORD_RESERVED}, {"landed", COORD_LANDED},       {"sent", COORD_SENT},
        {"tokens", COORD_TOKENS},     {"first", COORD_FIRST_TOKEN},   {"dend", COORD_DECODE_END},
        {"pend", COORD_PREFILL_END}};
    size_t i = 0;
    while (i < 7 && strcmp(words[i].word, word) != 0) i++;
    if (i == 7) fail_msg("no event is called %s", word);
    int request, used = 0;
    assert_int_equal(sscanf(text, "%*s %d.%u %n", &request, &e->attempt, &used), 2);
    const char *rest = text + used;
    e->kind = words[i].kind;
    e->request = (uint64_t)request;
    if (e->kind == COORD_RESERVED) {
        assert_int_equal(sscanf(rest, "%d/%d", &e->reserved.cached, &e->reserved.wanted), 2);
        e->reserved.ticket = 77;
        e->reserved.kv_address = "d:1";
    } else if (e->kind == COORD_TOKENS || e->kind == COORD_FIRST_TOKEN) {
        e->tokens.index = number_after(rest, "@", -1);
        e->tokens.tokens = tokens;
        for (const char *at = strchr(rest, ' '); at; at = strchr(at + 1, ','))
            tokens[e->tokens.count++] = atoi(at + 1);
    } else if (e->kind == COORD_DECODE_END || e->kind == COORD_PREFILL_END) {
        e->end.done = strcmp(rest, "done") == 0;
        e->end.reason = e->end.done ? 2 : 0;
        e->end.st = e->end.done ? ST_OK : status_named(rest);
        e->end.text = e->end.done ? NULL : "told so";
    }
}

static inline void tell(told *t, const char *text) {
    char word[32];
    int32_t tokens[32];
    coord_event e = {0};
    sscanf(text, "%31s", word);
    if (strcmp(word, "node") == 0) {
        tell_node(&e, text);
    } else if (strcmp(word, "submit") == 0) {
        tell_submit(&e, text);
    } else if (strcmp(word, "at") == 0) {
        e.kind = COORD_TICK;
        t->now_ms = number_after(text, "at ", 0);
    } else if (strcmp(word, "lost") == 0) {
        e.kind = COORD_NODE_LOST;
        e.node = number_after(text, "lost ", 0);
    } else if (strcmp(word, "forgotten") == 0) {
        e.kind = COORD_NODE_FORGOTTEN;
        e.node = number_after(text, "forgotten ", 0);
    } else if (strcmp(word, "cancel") == 0 || strcmp(word, "stop") == 0) {
        e.kind = word[0] == 'c' ? COORD_CANCEL : COORD_STOP;
        e.request = (uint64_t)atoi(text + strlen(word));
    } else {
        tell_stream(&e, word, text, tokens);
    }
    step(t, &e);
}

static inline told story_begin(const coord_limits *limits) {
    told t = {.core = coord_core_create(limits)};
    assert_non_null(t.core);
    log_setup("story", LOG_ERROR);
    return t;
}

static inline void story_tell(told *t, const line *lines, size_t count) {
    for (size_t i = 0; i < count; i++) {
        tell(t, lines[i].event);
        if (strcmp(t->actions, lines[i].actions) != 0)
            fail_msg("after \"%s\": got \"%s\", expected \"%s\"", lines[i].event, t->actions,
                     lines[i].actions);
    }
}

/* A story from an empty core to its end, and what the core has counted by then. */
#define STORY_COUNTS(limits, counts, ...)                                                           \
    do {                                                                                            \
        static const line lines_[] = {__VA_ARGS__};                                                 \
        told t_ = story_begin(limits);                                                              \
        story_tell(&t_, lines_, sizeof lines_ / sizeof *lines_);                                    \
        *(counts) = coord_core_counts(t_.core);                                                     \
        coord_core_destroy(t_.core);                                                                \
    } while (0)
#define STORY(limits, ...) STORY_COUNTS(limits, &(coord_counts){0}, __VA_ARGS__)

/* Just so often, and for no other reason: of coord_counts.again or of a row of its chosen. */
static inline void story_counted(const int64_t *at, int count, int reason, int64_t times) {
    for (int i = 0; i < count; i++) assert_int_equal(at[i], i == reason ? times : 0);
}

#endif
