/* ranks.c -- what the ranks of a group do together in a step: sums, norms, logits.
 *
 * Each rank computes its heads and its part of the FFN for all rows; their outputs y are to be added up, in rank
 * order, into the residual stream x.
 *
 *   alone             nothing to add up
 *   over a transport  y is summed by the back end (coll_all_reduce(), NCCL) and every rank norms all rows of its own x;
 *                     of the last layer only the rows whose logits are asked are summed
 *   windows           ranks of one machine see each other's y (coll_window): the norm adds the parts itself, after a
 *                     barrier. With many rows each rank norms its share of them, in an x and an xn that all ranks have in
 *                     common, and a second barrier follows (sequence parallelism, Korthikanti et al. 2022). Attention and
 *                     FFN have a y each, so that nobody writes what another still reads: between two uses of
 *                     one lies the barrier of the other.
 *
 * Whichever it is, the same numbers are added in the same order: the bytes do not depend on it. */
#include "engine/model.h"
#include <string.h>

enum { SHARED_ROWS = 32 };       /* of a step: fewer are normed by every rank */

static int ranks_of(const eng_model *m) { return m->group ? coll_ranks(m->group) : 1; }
static int rank_of(const eng_model *m) { return m->group ? coll_rank(m->group) : 0; }

/* ---- memory ------------------------------------------------------------------------------------------- */

typedef struct sizes {
    size_t x, xn, y, logits;     /* bytes; the first two in rank 0's window only */
} sizes;

static size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

static sizes sizes_of(const eng_model *m) {
    size_t T = eng_whole_rows(m, m->tokens_max), D = (size_t)m->shape.D, wanted = eng_whole_rows(m, m->logits_max);
    int most = 0;
    for (int r = 0; r < ranks_of(m); r++)
        if (m->share[r].vocab > most) most = m->share[r].vocab;
    return (sizes){.x = rounded(T * D * sizeof(float)),
                   .xn = rounded(T * m->op->act_bytes(m->c, (int)D)),
                   .y = rounded(T * D * sizeof(float)),
                   .logits = rounded(wanted * (size_t)most * sizeof(float))};
}

static void *take(char **at, size_t bytes) {
    char *from = *at;
    *at += bytes;
    return from;
}

static void lay_out(eng_model *m, void *const windows[COLL_RANKS_MAX], const sizes *z) {
    eng_scratch *s = &m->s;
    char *at = windows[0];
    s->shared_x = take(&at, z->x);
    s->shared_xn = take(&at, z->xn);
    for (int r = 0; r < ranks_of(m); r++) {
        at = (char *)windows[r] + z->x + z->xn;
        s->y[ENG_Y_ATTENTION][r] = take(&at, z->y);
        s->y[ENG_Y_FFN][r] = take(&at, z->y);
        s->theirs[r] = take(&at, z->logits);
    }
    s->logits = s->theirs[rank_of(m)];
}

/* This rank's own: what alloc() gives, or its window. */
static bool own_memory(eng_model *m, const sizes *z) {
    eng_scratch *s = &m->s;
    s->y[ENG_Y_ATTENTION][0] = s->y[ENG_Y_FFN][0] = m->op->alloc(m->c, z->y);
    s->logits = m->op->alloc(m->c, z->logits);
    return s->y[0][0] && s->logits;
}

status eng_ranks_open(eng_model *m, error *err) {
    eng_scratch *s = &m->s;
    void *windows[COLL_RANKS_MAX] = {NULL};
    sizes z = sizes_of(m);
    size_t bytes = z.x + z.xn + 2 * z.y + z.logits, wanted = eng_whole_rows(m, m->logits_max) * sizeof(float);
    if (m->group && m->op->shares) TRY(coll_window(m->group, bytes, windows, err));
    m->windows = windows[0] != NULL;
    m->scratch_bytes += m->windows ? bytes : z.y + z.logits;
    if (m->windows) lay_out(m, windows, &z);
    bool fine = m->windows || own_memory(m, &z);
    int parts = m->windows ? ranks_of(m) : 1;
    for (int r = 0; r < parts && fine; r++) fine = (s->last_y[r] = m->op->alloc(m->c, wanted * (size_t)m->shape.D)) != NULL;
    m->scratch_bytes += (size_t)parts * wanted * (size_t)m->shape.D;
    if (m->group && fine) {
        fine = (s->whole = mem_zalloc(wanted, (size_t)m->shape.V)) && (m->windows || (s->gathered = mem_zalloc(wanted, (size_t)m->shape.V)));
        m->scratch_bytes += (m->windows ? 1 : 2) * wanted * (size_t)m->shape.V;
    }
    if (!fine)
        return error_set(err, ST_NO_MEMORY, "no memory for the sums and logits of a step of %d tokens: %s", m->tokens_max,
                         m->op->room(m->c, (char[ENG_ROOM_BYTES]){0}));
    return m->group && !m->windows ? coll_reserve(m->group, (size_t)m->tokens_max * (size_t)m->shape.D, err) : ST_OK;
}

void eng_ranks_close(eng_model *m) {
    eng_scratch *s = &m->s;
    for (int r = 0; r < COLL_RANKS_MAX; r++) m->op->free(m->c, s->last_y[r]);
    if (!m->windows) {
        m->op->free(m->c, s->y[0][0]);
        m->op->free(m->c, s->logits);
    }
    mem_free(s->whole);
    mem_free(s->gathered);
}

/* ---- sums and norms ----------------------------------------------------------------------------------- */

static bool shares_rows(const eng_model *m, int T) { return m->windows && T >= SHARED_ROWS; }

eng_step_ranks eng_ranks_begin(const eng_model *m, int T) {
    const eng_scratch *s = &m->s;
    if (!shares_rows(m, T)) return (eng_step_ranks){.x = s->x, .xn = s->xn, .first = 0, .end = T};
    int tiles = (T + ENG_TILE_ROWS - 1) / ENG_TILE_ROWS, ranks = ranks_of(m), r = rank_of(m);
    int first = tiles * r / ranks * ENG_TILE_ROWS, end = tiles * (r + 1) / ranks * ENG_TILE_ROWS;
    return (eng_step_ranks){.x = s->shared_x, .xn = s->shared_xn, .first = first, .end = end < T ? end : T};
}

/* Only what it norms: a row of the common x has one writer. */
void eng_ranks_embed(eng_model *m, const eng_step_ranks *r, const eng_batch *b) {
    eng_batch own = *b;
    own.T = r->end - r->first;
    own.token += r->first;
    if (own.T) m->op->embed(m->c, r->x + (size_t)r->first * (size_t)m->shape.D, &m->embed, &own);
}

float *eng_ranks_y(const eng_model *m, int which) { return m->s.y[which][m->windows ? rank_of(m) : 0]; }

status eng_ranks_sum(eng_model *m, int which, int T, error *err) {
    if (m->windows) return coll_barrier(m->group, err);
    return m->group ? m->op->sum(m->c, m->group, m->s.y[which][0], T, m->shape.D, err) : ST_OK;
}

static eng_norm norm_of(const eng_model *m, float *x, float *const *y, const float *weight, int T) {
    return (eng_norm){.x = x, .y = (const float *const *)y, .parts = !y ? 0 : m->windows ? ranks_of(m) : 1, .weight = weight,
                      .eps = m->eps, .T = T, .D = m->shape.D, .end = T};
}

status eng_ranks_norm(eng_model *m, const eng_step_ranks *r, int which, const float *weight, int T, error *err) {
    eng_norm n = norm_of(m, r->x, which == ENG_Y_NONE ? NULL : m->s.y[which], weight, T);
    n.first = r->first;
    n.end = r->end;
    m->op->rmsnorm(m->c, r->xn, &n);
    return shares_rows(m, T) ? coll_barrier(m->group, err) : ST_OK;
}

/* ---- logits ------------------------------------------------------------------------------------------- */

/* Rank r's (wanted,V) beside those of the others. */
static void place(eng_model *m, const float *from, int r, int wanted) {
    size_t V = (size_t)m->shape.V, own = (size_t)m->share[r].vocab;
    for (int i = 0; i < wanted; i++)
        memcpy(m->s.whole + (size_t)i * V + m->share[r].vocab_first, from + (size_t)i * own, own * sizeof *from);
}

static status gather_logits(eng_model *m, const float *mine, int wanted, const float **logits, error *err) {
    int ranks = ranks_of(m);
    size_t bytes[COLL_RANKS_MAX];
    const float *from = m->s.gathered;
    for (int r = 0; r < ranks; r++) bytes[r] = (size_t)wanted * (size_t)m->share[r].vocab * sizeof *mine;
    if (m->windows) TRY(coll_barrier(m->group, err));
    else TRY(coll_all_gather(m->group, mine, m->s.gathered, bytes, err));
    for (int r = 0; r < ranks && rank_of(m) == 0; r++) {
        place(m, m->windows ? m->s.theirs[r] : from, r, wanted);
        if (!m->windows) from += bytes[r] / sizeof *mine;
    }
    *logits = m->s.whole;
    return ST_OK;
}

status eng_ranks_logits(eng_model *m, const eng_step_ranks *r, const eng_batch *b, const float **logits, error *err) {
    const eng_ops *op = m->op;
    eng_scratch *s = &m->s;
    int D = m->shape.D, wanted = b->wanted_count, parts = m->windows ? ranks_of(m) : 1;
    if (m->windows) TRY(coll_barrier(m->group, err));
    op->gather(m->c, s->last, r->x, b, D);                                     /* (wanted,D) */
    for (int p = 0; p < parts; p++) op->gather(m->c, s->last_y[p], s->y[ENG_Y_FFN][p], b, D);
    if (m->group && !m->windows) TRY(op->sum(m->c, m->group, s->last_y[0], wanted, D, err));
    eng_norm n = norm_of(m, s->last, s->last_y, m->norm_out, wanted);
    op->rmsnorm(m->c, s->lastn, &n);                                           /* act (wanted,D) */
    op->matmul(m->c, s->logits, s->lastn, &m->output, wanted);                 /* (wanted,V) of this rank */
    const float *mine;
    TRY(op->finish(m->c, s->logits, (size_t)wanted * (size_t)m->own.V, &mine, err));
    *logits = mine;
    return m->group ? gather_logits(m, mine, wanted, logits, err) : ST_OK;
}
