/* lead.c -- one rank of a group leads, the others follow.
 *
 * Rank 0 decides what is done; before it does it, it tells the others, who do the same to their share of the
 * model and their pages of the same numbers. What is told is a *plan*: its kind and length, then that many int32.
 *
 *   STEP    rows; of each: count, position, logits, blocks, then tokens and blocks
 *   COPY    dst, src, tokens of eng_kv_copy()
 *   NOTE    bytes and padding to 16, then that many bytes: eng_tell()
 *   ASK     bytes: everyone answers so many, which are gathered: eng_ask()
 *   LEAVE   nothing: the followers return
 *
 * A follower waits for a plan as long as a call of the group may take (coll_options.timeout_ms), so rank 0 has
 * to ask more often than that. Once the group has failed every plan fails the same way: who leads hears of it at
 * the next step at the latest. */
#include "engine/model.h"
#include <assert.h>
#include <string.h>

enum plan_kind { PLAN_STEP = 1, PLAN_COPY, PLAN_NOTE, PLAN_ASK, PLAN_LEAVE };
enum { ROW_HEAD = 4, NOTE_HEAD = 4, ANSWER_MAX = 1 << 16 };

static status make_room(eng_lead *l, size_t ints, error *err) {
    if (ints <= l->room) return ST_OK;
    size_t room = ints < 2 * l->room ? 2 * l->room : ints;
    int32_t *plan = mem_realloc(l->plan, room * sizeof *plan);
    if (!plan) return error_set(err, ST_NO_MEMORY, "no memory for a plan of %zu numbers", ints);
    l->plan = plan;
    l->room = room;
    return ST_OK;
}

static status tell(coll *group, enum plan_kind kind, int32_t *plan, size_t ints, error *err) {
    int32_t head[2] = {(int32_t)kind, (int32_t)ints};
    TRY(coll_broadcast(group, head, sizeof head, err));
    return ints ? coll_broadcast(group, plan, ints * sizeof *plan, err) : ST_OK;
}

/* ---- rank 0 -------------------------------------------------------------------------------------- */

static int32_t blocks_of(const eng_rows *r, int32_t page_tokens) { return (r->position + r->count - 1) / page_tokens + 1; }

status eng_lead_step(eng_model *m, const eng_rows *rows, int count, int32_t page_tokens, error *err) {
    size_t ints = 1, at = 0;
    for (int i = 0; i < count; i++) ints += ROW_HEAD + (size_t)rows[i].count + (size_t)blocks_of(&rows[i], page_tokens);
    TRY(make_room(&m->lead, ints, err));
    int32_t *plan = m->lead.plan;
    plan[at++] = count;
    for (int i = 0; i < count; i++) {
        const eng_rows *r = &rows[i];
        int32_t blocks = blocks_of(r, page_tokens);
        memcpy(plan + at, (int32_t[ROW_HEAD]){r->count, r->position, r->logits, blocks}, ROW_HEAD * sizeof *plan);
        memcpy(plan + at + ROW_HEAD, r->tokens, (size_t)r->count * sizeof *plan);
        memcpy(plan + at + ROW_HEAD + r->count, r->blocks, (size_t)blocks * sizeof *plan);
        at += ROW_HEAD + (size_t)r->count + (size_t)blocks;
    }
    assert(at == ints);
    return tell(m->group, PLAN_STEP, plan, ints, err);
}

void eng_lead_copy(coll *group, int32_t dst, int32_t src, int32_t tokens) {
    (void)tell(group, PLAN_COPY, (int32_t[3]){dst, src, tokens}, 3, NULL);       /* if it failed, the next step says so */
}

status eng_tell(eng_model *m, const void *note, size_t bytes, error *err) {
    size_t ints = NOTE_HEAD + (bytes + sizeof(int32_t) - 1) / sizeof(int32_t);
    if (!m->group) return ST_OK;
    assert(coll_rank(m->group) == 0 && bytes <= INT32_MAX);
    TRY(make_room(&m->lead, ints, err));
    m->lead.plan[ints - 1] = 0;
    memcpy(m->lead.plan, (int32_t[NOTE_HEAD]){(int32_t)bytes}, NOTE_HEAD * sizeof(int32_t));
    memcpy(m->lead.plan + NOTE_HEAD, note, bytes);
    return tell(m->group, PLAN_NOTE, m->lead.plan, ints, err);
}

/* all (ranks, bytes) = every rank's mine. */
static status gather_answers(eng_model *m, const void *mine, void *all, size_t bytes, error *err) {
    size_t each[COLL_RANKS_MAX];
    if (bytes == 0) return coll_barrier(m->group, err);      /* nothing would not travel */
    for (int r = 0; r < coll_ranks(m->group); r++) each[r] = bytes;
    return coll_all_gather(m->group, mine, all, each, err);
}

status eng_ask(eng_model *m, void *answers, size_t bytes, error *err) {
    if (!m->group) return ST_OK;
    assert(coll_rank(m->group) == 0 && bytes <= ANSWER_MAX);
    TRY(tell(m->group, PLAN_ASK, (int32_t[1]){(int32_t)bytes}, 1, err));
    return gather_answers(m, answers, answers, bytes, err);
}

status eng_dismiss(eng_model *m, error *err) {
    assert(!m->group || coll_rank(m->group) == 0);
    return m->group ? tell(m->group, PLAN_LEAVE, NULL, 0, err) : ST_OK;
}

/* ---- the others ---------------------------------------------------------------------------------- */

/* Rank 0 is trusted to mean the same, but not to be the same program: what does not fit is refused. */
static status refuse_plan(const char *what, error *err) {
    return error_set(err, ST_INTERNAL, "rank 0's plan is not one of this version: %s", what);
}

static status follow_step(eng_model *m, eng_kv *kv, size_t ints, error *err) {
    eng_lead *l = &m->lead;
    size_t at = 1;
    int count = ints ? l->plan[0] : 0;
    const float *logits;
    if (count < 1 || count > m->tokens_max) return refuse_plan("count of rows", err);
    if (!l->rows && !(l->rows = mem_zalloc((size_t)m->tokens_max, sizeof *l->rows)))
        return error_set(err, ST_NO_MEMORY, "no memory for %d rows", m->tokens_max);
    for (int i = 0; i < count; i++) {
        const int32_t *p = l->plan + at;
        if (ints - at < ROW_HEAD || p[0] < 1 || p[1] < 0 || p[2] < 0 || p[3] < 1 ||
            ints - at - ROW_HEAD < (size_t)p[0] + (size_t)p[3])
            return refuse_plan("a row", err);
        l->rows[i] = (eng_rows){.tokens = p + ROW_HEAD, .count = p[0], .position = p[1], .logits = p[2],
                                .blocks = p + ROW_HEAD + p[0]};
        if (blocks_of(&l->rows[i], kv->pages.P) != p[3]) return refuse_plan("pages of a row", err);
        TRY(eng_check_rows(m, kv, &l->rows[i], err));
        at += ROW_HEAD + (size_t)p[0] + (size_t)p[3];
    }
    return at == ints ? eng_step_here(m, kv, l->rows, count, &logits, err) : refuse_plan("length", err);
}

/* The plan's memory serves for the answers: it was read. */
static status answer(eng_model *m, const eng_ear *ear, size_t bytes, error *err) {
    size_t ranks = (size_t)coll_ranks(m->group);
    if (bytes > ANSWER_MAX) return refuse_plan("what was asked", err);
    TRY(make_room(&m->lead, (ranks + 1) * (bytes / sizeof(int32_t) + 1), err));
    char *mine = (char *)m->lead.plan + ranks * bytes;
    memset(mine, 0, bytes);
    ear->asked(ear->ctx, mine, bytes);
    return gather_answers(m, mine, m->lead.plan, bytes, err);
}

static status follow_one(eng_model *m, eng_kv *kv, const eng_ear *ear, bool *leave, error *err) {
    int32_t head[2];
    TRY(coll_broadcast(m->group, head, sizeof head, err));
    if (head[1] < 0) return refuse_plan("length", err);
    TRY(make_room(&m->lead, (size_t)head[1], err));
    if (head[1]) TRY(coll_broadcast(m->group, m->lead.plan, (size_t)head[1] * sizeof(int32_t), err));
    const int32_t *p = m->lead.plan;
    switch ((enum plan_kind)head[0]) {
    case PLAN_STEP: return follow_step(m, kv, (size_t)head[1], err);
    case PLAN_COPY:
        if (head[1] != 3) return refuse_plan("a copy", err);
        eng_kv_copy(kv, p[0], p[1], p[2]);
        return ST_OK;
    case PLAN_NOTE:
        if (head[1] < NOTE_HEAD || p[0] < 0 || (size_t)p[0] > (size_t)(head[1] - NOTE_HEAD) * sizeof *p)
            return refuse_plan("a note", err);
        ear->told(ear->ctx, p + NOTE_HEAD, (size_t)p[0]);
        return ST_OK;
    case PLAN_ASK:
        if (head[1] != 1 || p[0] < 0) return refuse_plan("a question", err);
        return answer(m, ear, (size_t)p[0], err);
    case PLAN_LEAVE: *leave = true; return ST_OK;
    }
    return refuse_plan("kind", err);
}

status eng_follow(eng_model *m, eng_kv *kv, const eng_ear *ear, error *err) {
    bool leave = false;
    assert(m->group && coll_rank(m->group) > 0);
    while (!leave) TRY(follow_one(m, kv, ear, &leave, err));
    return ST_OK;
}
