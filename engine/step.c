/* step.c -- one forward pass over any mix of rows: prefill chunks, decode tokens, drafts to verify.
 *
 * A llama block is x += attention(norm(x)); x += ffn(norm(x)); the norm that follows does the adding. Every
 * call below is one op of the back end's table (ops.h), the shape of what it writes on the right. Nothing is
 * allocated. */
#include "engine/model.h"
#include <assert.h>
#include <math.h>
#include <string.h>

static void gather_batch(eng_model *m, const eng_kv *kv, const eng_rows *rows, int count, eng_batch *b);
static status sum_ranks(eng_model *m, float *y, int T, error *err);
static status gather_logits(eng_model *m, int wanted, const float **logits, error *err);

status eng_step(eng_model *m, eng_kv *kv, const eng_rows *rows, int count, const float **logits,
                error *err) {
    for (int i = 0; i < count; i++) TRY(eng_check_rows(m, kv, &rows[i], err));
    if (m->group) TRY(eng_lead_step(m, rows, count, kv->pages.P, err));
    return eng_step_here(m, kv, rows, count, logits, err);
}

status eng_step_here(eng_model *m, eng_kv *kv, const eng_rows *rows, int count, const float **logits, error *err) {
    const eng_ops *op = m->op;
    eng_context *c = m->c;
    eng_scratch *s = &m->s;
    const eng_pages *pages = &kv->pages;
    int D = m->own.D, H = m->own.H, F = m->own.F;
    float eps = m->eps, scale = (float)(1 / sqrt(m->shape.h));
    eng_batch b;
    gather_batch(m, kv, rows, count, &b);
    int T = b.T;

    op->begin(c, &b);
    const float *y = NULL;                                         /* what x lacks    */
    op->embed(c, s->x, &m->embed, &b);                             /* (T,D)           */
    for (int l = 0; l < m->shape.L; l++) {
        const eng_layer *w = &m->layer[l];
        op->rmsnorm(c, s->xn, s->x, y, w->norm_attn, eps, T, D);   /* act (T,D)       */
        op->matmul(c, s->qkv, s->xn, &w->qkv, T);                  /* (T,(H+2K)h)     */
        op->rope_append(c, s->qkv, pages, l, &b, H);               /* q; pages of k,v */
        op->attention(c, s->att, s->qkv, pages, l, &b, H, scale);  /* act (T,H*h)     */
        op->matmul(c, s->y, s->att, &w->attn_out, T);              /* (T,D)           */
        TRY(sum_ranks(m, s->y, T, err));
        y = s->y;

        op->rmsnorm(c, s->xn, s->x, y, w->norm_ffn, eps, T, D);    /* act (T,D)       */
        op->matmul(c, s->gu, s->xn, &w->gate_up, T);               /* (T,2F)          */
        op->silu_mul(c, s->ff, s->gu, T, F);                       /* act (T,F)       */
        op->matmul(c, s->y, s->ff, &w->down, T);                   /* (T,D)           */
        TRY(sum_ranks(m, s->y, T, err));
        atomic_fetch_add_explicit(&m->layers_done, 1, memory_order_relaxed);
    }
    op->gather(c, s->last, s->x, &b, D);                           /* (wanted,D)      */
    op->gather(c, s->last_y, y, &b, D);                            /* (wanted,D)      */
    op->rmsnorm(c, s->lastn, s->last, s->last_y, m->norm_out, eps, b.wanted_count, D);
    op->matmul(c, s->logits, s->lastn, &m->output, b.wanted_count); /* (wanted,V)     */
    *logits = op->finish(c, s->logits, (size_t)b.wanted_count * (size_t)m->own.V);
    return m->group ? gather_logits(m, b.wanted_count, logits, err) : ST_OK;
}

/* ---- the other ranks --------------------------------------------------------------------------- */

/* y (T,D) = sum over ranks of y. */
static status sum_ranks(eng_model *m, float *y, int T, error *err) {
    return m->group ? coll_all_reduce(m->group, y, (size_t)T * (size_t)m->shape.D, err) : ST_OK;
}

/* Each rank's (wanted,V) side by side. */
static status gather_logits(eng_model *m, int wanted, const float **logits, error *err) {
    const float *from = m->s.gathered;
    size_t bytes[COLL_RANKS_MAX];
    int ranks = coll_ranks(m->group);
    for (int r = 0; r < ranks; r++) bytes[r] = (size_t)wanted * (size_t)m->share[r].vocab * sizeof *from;
    TRY(coll_all_gather(m->group, *logits, m->s.gathered, bytes, err));
    for (int r = 0; r < ranks; r++)
        for (int i = 0; i < wanted; i++, from += m->share[r].vocab)
            memcpy(m->s.whole + (size_t)i * (size_t)m->shape.V + m->share[r].vocab_first, from,
                   (size_t)m->share[r].vocab * sizeof *from);
    *logits = m->s.whole;
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
    *b = (eng_batch){.rows = rows, .token = s->token, .position = s->position, .tiles = s->tiles,
                     .rows_index = s->rows_index, .angles = s->angles, .wanted = s->wanted};
    int tokens = 0, wanted = 0;
    for (int i = 0; i < count; i++) {
        assert(rows[i].count <= m->tokens_max - tokens && rows[i].logits <= m->logits_max - wanted);
        tokens += rows[i].count;
        wanted += rows[i].logits;
    }
    for (int i = 0; i < count; i++) list_rows(m, &rows[i], i, b);
}
