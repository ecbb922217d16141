/* step.c -- one forward pass over any mix of rows: prefill chunks, decode tokens, drafts to verify.
 *
 * A llama block is x += attention(norm(x)); x += ffn(norm(x)); the norm that follows does the adding. Every
 * call below is one op of the back end's table (ops.h), the shape of what it writes on the right; those of ranks.c are
 * ops, too, but of all ranks together. Nothing is allocated. */
#include "engine/model.h"
#include <assert.h>
#include <math.h>
#include <string.h>

static void gather_batch(eng_model *m, const eng_kv *kv, const eng_rows *rows, int count, eng_batch *b);

status eng_step(eng_model *m, eng_kv *kv, const eng_rows *rows, int count, const float **logits,
                error *err) {
    status s = ST_OK;
    for (int i = 0; i < count && s == ST_OK; i++) s = eng_check_rows(m, kv, &rows[i], err);
    if (m->group && s == ST_OK) s = eng_lead_step(m, rows, count, kv->pages.P, err);
    if (s == ST_OK) s = eng_step_here(m, kv, rows, count, logits, err);
    m->draws = NULL;
    return s;
}

bool eng_step_draws(eng_model *m, eng_draw *d) {
    const eng_sampling *p = d->sampling;
    if (!m->op->draws || m->group || p->repetition != 1 || p->presence != 0 || p->frequency != 0 || p->bias_count > 0 ||
        p->logprobs >= 0)
        return false;
    d->next = m->draws;
    m->draws = d;
    return true;
}

/* ---- where the time goes ------------------------------------------------------------------------- */

typedef struct lap { int64_t at_us, group_us; } lap;

static lap now(const eng_model *m) { return (lap){clock_now_us(), m->group ? coll_spent_us(m->group) : 0}; }

/* What passed since *l was spent on that, but for what the ranks spent on each other. */
static void spend(eng_model *m, eng_spent on, lap *l) {
    lap then = *l;
    *l = now(m);
    int64_t group_us = l->group_us - then.group_us;
    m->spent_us[m->op->queued ? ENG_SPENT_DEVICE : on] += l->at_us - then.at_us - group_us;
    m->spent_us[ENG_SPENT_GROUP] += group_us;
}

/* ---- the pass ------------------------------------------------------------------------------------- */

status eng_step_here(eng_model *m, eng_kv *kv, const eng_rows *rows, int count, const float **logits, error *err) {
    const eng_ops *op = m->op;
    eng_context *c = m->c;
    eng_scratch *s = &m->s;
    const eng_pages *pages = &kv->pages;
    int H = m->own.H, F = m->own.F, y = ENG_Y_NONE;                /* what x lacks    */
    float scale = (float)(1 / sqrt(m->shape.h));
    eng_batch b;
    lap last = now(m);
    gather_batch(m, kv, rows, count, &b);
    int T = b.T;
    eng_step_ranks r = eng_ranks_begin(m, T);

    op->begin(c, &b);
    eng_ranks_embed(m, &r, &b);                                    /* (T,D)           */
    spend(m, ENG_SPENT_ENDS, &last);
    for (int l = 0; l < m->shape.L; l++) {
        const eng_layer *w = &m->layer[l];
        TRY(eng_ranks_norm(m, &r, y, w->norm_attn, T, err));       /* act (T,D)       */
        op->matmul(c, s->qkv, r.xn, &w->qkv, T);                   /* (T,(H+2K)h)     */
        op->rope_append(c, s->qkv, pages, l, &b, H);               /* q; pages of k,v */
        op->attention(c, s->att, s->qkv, pages, l, &b, H, scale);  /* act (T,H*h)     */
        y = ENG_Y_ATTENTION;
        op->matmul(c, eng_ranks_y(m, y), s->att, &w->attn_out, T); /* (T,D)           */
        TRY(eng_ranks_sum(m, y, T, err));
        spend(m, ENG_SPENT_ATTENTION, &last);

        TRY(eng_ranks_norm(m, &r, y, w->norm_ffn, T, err));        /* act (T,D)       */
        op->matmul(c, s->gu, r.xn, &w->gate_up, T);                /* (T,2F)          */
        op->silu_mul(c, s->ff, s->gu, T, F);                       /* act (T,F)       */
        y = ENG_Y_FFN;
        op->matmul(c, eng_ranks_y(m, y), s->ff, &w->down, T);      /* (T,D)           */
        if (l + 1 < m->shape.L) TRY(eng_ranks_sum(m, y, T, err));
        spend(m, ENG_SPENT_FFN, &last);
        atomic_fetch_add_explicit(&m->layers_done, 1, memory_order_relaxed);
    }
    TRY(eng_ranks_logits(m, &r, &b, logits, err));                 /* (wanted,V)      */
    spend(m, ENG_SPENT_ENDS, &last);
    return ST_OK;
}

/* ---- the batch --------------------------------------------------------------------------------- */

/* The caller owns pages and limits; only tokens come from outside. */
status eng_check_rows(const eng_model *m, const eng_kv *kv, const eng_rows *r, error *err) {
    assert(r->count >= 1 && r->position >= 0 && r->count <= INT32_MAX - r->position);
    assert(r->logits >= 0 && r->logits <= r->count);
    for (int32_t i = 0; i <= (r->position + r->count - 1) / kv->pages.P; i++)
        assert(r->blocks[i] >= 0 && r->blocks[i] < kv->pages.pages);
    for (int32_t i = 0; i < r->count; i++)
        if (r->tokens[i] < 0 || r->tokens[i] >= m->shape.V)
            return error_set(err, ST_BAD_INPUT, "token %d at position %d, expected 0 to %d", r->tokens[i],
                             r->position + i, m->shape.V - 1);
    return ST_OK;
}

/* cos and sin of every pair at one position. The angle is taken in double, so that far positions
 * keep their precision and the rounded result does not depend on the C library. */
static void turn(const eng_model *m, int32_t position, float *angles) {
    for (int i = 0; i < m->shape.h / 2; i++) {
        double a = position * m->inv_freq[i];
        double scale = m->inv_freq[i] ? m->angle_scale : 1;
        angles[2 * i] = (float)(cos(a) * scale);
        angles[2 * i + 1] = (float)(sin(a) * scale);
    }
}

/* One row a token: token, position, angles, whose it is, and whether its logits are asked. */
static void list_rows(eng_model *m, const eng_rows *r, int index, eng_batch *b) {
    eng_scratch *s = &m->s;
    for (int32_t i = 0; i < r->count; i++, b->T++) {
        s->token[b->T] = r->tokens[i];
        s->position[b->T] = r->position + i;
        s->rows_index[b->T] = index;
        turn(m, r->position + i, s->angles + (size_t)b->T * (size_t)m->shape.h);
        if (i >= r->count - r->logits) s->wanted[b->wanted_count++] = b->T;
        if (i % ENG_TILE_ROWS) s->tiles[b->tiles_count - 1].count++;
        else s->tiles[b->tiles_count++] = (eng_tile){.row = b->T, .count = 1, .rows_index = index};
    }
}

static void gather_batch(eng_model *m, const eng_kv *kv, const eng_rows *rows, int count, eng_batch *b) {
    eng_scratch *s = &m->s;
    assert(kv->m == m && count >= 1);
    *b = (eng_batch){.pages = &kv->pages, .rows = rows, .token = s->token, .position = s->position, .tiles = s->tiles,
                     .rows_index = s->rows_index, .angles = s->angles, .wanted = s->wanted, .draws = m->draws};
    int tokens = 0, wanted = 0;
    for (int i = 0; i < count; i++) {
        assert(rows[i].count <= m->tokens_max - tokens && rows[i].logits <= m->logits_max - wanted);
        tokens += rows[i].count;
        wanted += rows[i].logits;
    }
    for (int i = 0; i < count; i++) list_rows(m, &rows[i], i, b);
}
