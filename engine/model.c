/* model.c -- a llama model from a GGUF file: shape, weights, scratch.
 *
 * The loader is the schema: load_weights() and load_layer() name every tensor with its shape, one a
 * line. What is missing, has another shape or is there besides is refused with what was found and
 * what was expected. Weights stay in the mapping, so that all processes of a machine share one copy;
 * a back end's own form of them is shared too (cache.c). */
#include "engine/model.h"
#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    LAYERS_MAX = 1024, WIDTH_MAX = 1 << 17, HEADS_MAX = 1024, VOCAB_MAX = 1 << 20,
    CONTEXT_MAX = 1 << 24, ROW_UNIT = 32, TOKENS_DEFAULT = 512, LOGITS_DEFAULT = 64,
};

typedef struct loader {
    eng_model *m;
    bool *used;                  /* of every tensor in the file */
    error *err;
} loader;

static status load_shape(eng_model *m, error *err);
static status load_rope(eng_model *m, const float *factors, error *err);
static status load_weights(loader *ld);
static status prepare_weights(eng_model *m, const eng_options *o, error *err);
static status alloc_scratch(eng_model *m, error *err);

/* ---- open and close ---------------------------------------------------------------------------- */

static status check_options(const eng_options *o, eng_model *m, error *err) {
    m->tokens_max = o->tokens_max ? o->tokens_max : TOKENS_DEFAULT;
    m->logits_max = o->logits_max ? o->logits_max : LOGITS_DEFAULT;
    if (m->tokens_max < 1 || m->tokens_max > 1 << 16)
        return error_set(err, ST_BAD_INPUT, "tokens_max is %d, expected 1 to 65536", o->tokens_max);
    if (m->logits_max < 1 || m->logits_max > m->tokens_max)
        m->logits_max = m->tokens_max;       /* more rows than a step has cannot be asked */
    return eng_ops_choose(o, &m->op, err);
}

/* The back end gets the options without defaults left in them. */
static status open_context(eng_model *m, const eng_options *o, error *err) {
    eng_options filled = *o;
    filled.tokens_max = m->tokens_max;
    filled.logits_max = m->logits_max;
    filled.group = m->group;
    return m->op->open(&filled, &m->shape, &m->c, err);
}

/* What did not fit, and how much room there is where it was to go. */
static status no_room(eng_model *m, const char *what, size_t bytes, error *err) {
    return error_set(err, ST_NO_MEMORY, "no memory for %s of %zu bytes (%zu MiB): %s", what, bytes, bytes >> 20,
                     m->op->room(m->c, (char[ENG_ROOM_BYTES]){0}));
}

/* The whole model, or this rank's share of it. */
static status take_share(eng_model *m, coll *group, error *err) {
    int ranks = group ? coll_ranks(group) : 1;
    TRY(eng_share_all(&m->shape, ranks, m->share, err));
    const eng_share *s = m->own_share = &m->share[group ? coll_rank(group) : 0];
    m->group = ranks > 1 ? group : NULL;
    m->own = m->shape;
    m->own.H = s->heads;
    m->own.K = s->kv;
    m->own.F = s->ffn;
    m->own.V = s->vocab;
    return ST_OK;
}

static status open_model(eng_model *m, const eng_options *o, error *err) {
    TRY(check_options(o, m, err));
    TRY(load_shape(m, err));
    TRY(take_share(m, o->group, err));
    TRY(open_context(m, o, err));
    loader ld = {.m = m, .err = err};
    ld.used = mem_zalloc((size_t)eng_gguf_tensor_count(m->g), sizeof *ld.used);
    if (!ld.used) return error_set(err, ST_NO_MEMORY, "no memory to load the model");
    status s = load_weights(&ld);
    mem_free(ld.used);
    TRY(s);
    TRY(prepare_weights(m, o, err));
    TRY(m->op->ready(m->c, err));
    TRY(alloc_scratch(m, err));
    return eng_ranks_open(m, err);
}

status eng_model_open(const eng_gguf *g, const eng_options *options, eng_model **out, error *err) {
    static const eng_options defaults;
    eng_model *m = mem_zalloc(1, sizeof *m);
    if (!m) return error_set(err, ST_NO_MEMORY, "no memory to load the model");
    m->g = g;
    status s = open_model(m, options ? options : &defaults, err);
    if (s != ST_OK) {
        eng_model_close(m);
        return s;
    }
    *out = m;
    return ST_OK;
}

static void free_scratch(eng_model *m) {
    eng_scratch *s = &m->s;
    void *memory[] = {s->x, s->xn, s->qkv, s->att, s->gu, s->ff, s->last, s->lastn};
    void *host[] = {s->token, s->position, s->rows_index, s->wanted, s->tiles, s->angles};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) m->op->free(m->c, memory[i]);
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) mem_free(host[i]);
}

void eng_model_close(eng_model *m) {
    if (!m) return;
    if (m->c) {
        free_scratch(m);
        eng_ranks_close(m);
        for (int l = 0; m->layer && l < m->shape.L; l++) {
            eng_layer *w = &m->layer[l];
            m->op->free(m->c, w->norm_attn);
            m->op->free(m->c, w->norm_ffn);
        }
        m->op->free(m->c, m->norm_out);
        eng_cache_close(&m->cache, m->op, m->c);
        m->op->close(m->c);
    }
    mem_free(m->lead.plan);
    mem_free(m->lead.rows);
    mem_free(m->layer);
    mem_free(m->inv_freq);
    mem_free(m);
}

const eng_shape *eng_model_shape(const eng_model *m) { return &m->shape; }
status eng_model_heads(const eng_model *m, int ranks, int r, int *first, int *count, error *err) {
    eng_share all[COLL_RANKS_MAX];
    if (ranks < 1 || ranks > COLL_RANKS_MAX || r < 0 || r >= ranks)
        return error_set(err, ST_BAD_INPUT, "rank %d of %d, expected one of at most %d", r, ranks, COLL_RANKS_MAX);
    TRY(eng_share_all(&m->shape, ranks, all, err));
    *first = all[r].kv_first;
    *count = all[r].kv;
    return ST_OK;
}

const char *eng_model_numerics(const eng_model *m) { return m->op->numerics(m->c); }
const char *eng_model_place(const eng_model *m) { return m->op->place(m->c); }
size_t eng_model_scratch_bytes(const eng_model *m) { return m->scratch_bytes; }

size_t eng_model_panel_bytes(const eng_model *m, bool *is_private) {
    *is_private = !m->cache.map;
    return m->cache.bytes;
}

uint64_t eng_model_layers_done(const eng_model *m) {
    return atomic_load_explicit(&m->layers_done, memory_order_relaxed);
}

const int64_t *eng_model_spent_us(const eng_model *m) { return m->spent_us; }

/* ---- shape ------------------------------------------------------------------------------------- */

/* An integer key within [least, most]; fallback stands when it is absent (-1: it must be there). */
static status get_int(eng_model *m, const char *key, int64_t least, int64_t most, int fallback, int *out,
                      error *err) {
    int64_t v;
    status s = eng_gguf_int(m->g, key, &v, err);
    if (s == ST_NOT_FOUND && fallback >= 0) v = fallback;
    else if (s == ST_NOT_FOUND)
        return error_set(err, ST_BAD_INPUT, "key %s is absent, expected an integer", key);
    else TRY(s);
    if (v < least || v > most)
        return error_set(err, ST_BAD_INPUT, "key %s is %lld, expected %lld to %lld", key, (long long)v,
                         (long long)least, (long long)most);
    *out = (int)v;
    return ST_OK;
}

/* A finite real key within [least, most]; fallback stands when it is absent. */
static status get_real(eng_model *m, const char *key, double least, double most, double fallback,
                       double *out, error *err) {
    double v;
    status s = eng_gguf_real(m->g, key, &v, err);
    if (s == ST_NOT_FOUND) v = fallback;
    else TRY(s);
    if (!(v >= least && v <= most))
        return error_set(err, ST_BAD_INPUT, "key %s is %g, expected %g to %g", key, v, least, most);
    *out = v;
    return ST_OK;
}

static status check_architecture(eng_model *m, error *err) {
    const char *text;
    size_t bytes;
    int experts;
    status s = eng_gguf_text(m->g, "general.architecture", &text, &bytes, err);
    if (s == ST_NOT_FOUND)
        return error_set(err, ST_BAD_INPUT, "key general.architecture is absent, expected llama");
    TRY(s);
    if (bytes != 5 || memcmp(text, "llama", 5) != 0)
        return error_set(err, ST_UNSUPPORTED, "general.architecture is '%.*s', expected llama",
                         bytes > 40 ? 40 : (int)bytes, text);
    TRY(get_int(m, "llama.expert_count", 0, INT32_MAX, 0, &experts, err));
    if (experts)
        return error_set(err, ST_UNSUPPORTED, "llama.expert_count is %d, expected 0 (dense)", experts);
    return ST_OK;
}

static status load_vocab_size(eng_model *m, error *err) {
    eng_shape *s = &m->shape;
    const eng_tensor *t = eng_gguf_tensor(m->g, "token_embd.weight");
    if (!t || t->dims != 2 || t->dim[1] > VOCAB_MAX)
        return error_set(err, ST_BAD_INPUT, "tensor token_embd.weight is %s, expected (V, %d), V up to %d",
                         t ? "of another shape" : "absent", s->D, VOCAB_MAX);
    s->V = (int)t->dim[1];
    int said;
    TRY(get_int(m, "llama.vocab_size", s->V, s->V, s->V, &said, err));
    int64_t tokens;
    if (eng_gguf_array_count(m->g, "tokenizer.ggml.tokens", &tokens, NULL) == ST_OK && tokens != s->V)
        return error_set(err, ST_BAD_INPUT,
                         "tokenizer.ggml.tokens has %lld entries, token_embd.weight has %d rows",
                         (long long)tokens, s->V);
    return ST_OK;
}

static status load_shape(eng_model *m, error *err) {
    eng_shape *s = &m->shape;
    double eps;
    int value_length;
    TRY(check_architecture(m, err));
    TRY(get_int(m, "llama.block_count", 1, LAYERS_MAX, -1, &s->L, err));
    TRY(get_int(m, "llama.context_length", 1, CONTEXT_MAX, -1, &s->context, err));
    TRY(get_int(m, "llama.embedding_length", ROW_UNIT, WIDTH_MAX, -1, &s->D, err));
    TRY(get_int(m, "llama.feed_forward_length", ROW_UNIT, WIDTH_MAX, -1, &s->F, err));
    TRY(get_int(m, "llama.attention.head_count", 1, HEADS_MAX, -1, &s->H, err));
    TRY(get_int(m, "llama.attention.head_count_kv", 1, s->H, s->H, &s->K, err));
    TRY(get_int(m, "llama.attention.key_length", 2, ENG_HEAD_MAX, s->D / s->H, &s->h, err));
    TRY(get_int(m, "llama.attention.value_length", s->h, s->h, s->h, &value_length, err));
    TRY(get_real(m, "llama.attention.layer_norm_rms_epsilon", 1e-12, 1, 1e-5, &eps, err));
    m->eps = (float)eps;
    const struct { const char *what; int value, unit; } whole[] = {
        {"llama.attention.head_count", s->H, s->K}, {"llama.embedding_length", s->D, ROW_UNIT},
        {"llama.feed_forward_length", s->F, ROW_UNIT}, {"heads times head width", s->H * s->h, ROW_UNIT},
        {"head width", s->h, 2},
    };
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (whole[i].value % whole[i].unit)
            return error_set(err, ST_BAD_INPUT, "%s is %d, expected a multiple of %d", whole[i].what,
                             whole[i].value, whole[i].unit);
    return load_vocab_size(m, err);
}

/* ---- weights: the schema ----------------------------------------------------------------------- */

/* The tensor of that name with shape (rows, cols), rows 0: a vector. optional: NULL when absent. */
static status take(loader *ld, const char *name, int64_t rows, int64_t cols, bool optional,
                   const eng_tensor **out) {
    const eng_tensor *t = eng_gguf_tensor(ld->m->g, name);
    *out = t;
    if (!t && optional) return ST_OK;
    if (!t) return error_set(ld->err, ST_BAD_INPUT, "tensor %s is absent", name);
    ld->used[t - eng_gguf_tensor_at(ld->m->g, 0)] = true;
    if (t->dims != (rows ? 2 : 1) || t->dim[0] != cols || (rows && t->dim[1] != rows))
        return error_set(ld->err, ST_BAD_INPUT,
                         "tensor %s has %d dimensions (%lld, %lld), expected %d (%lld, %lld)", name, t->dims,
                         (long long)t->dim[0], (long long)t->dim[1], rows ? 2 : 1, (long long)cols,
                         (long long)rows);
    if (!rows && t->type != ENG_F32)
        return error_set(ld->err, ST_BAD_INPUT, "tensor %s has type %d, expected F32 (0)", name, t->type);
    return ST_OK;
}

static status vector(loader *ld, const char *name, int64_t count, float **out) {
    const eng_tensor *t;
    TRY(take(ld, name, 0, count, false, &t));
    *out = ld->m->op->alloc(ld->m->c, t->bytes);
    if (!*out) return no_room(ld->m, name, t->bytes, ld->err);
    ld->m->op->copy_in(ld->m->c, *out, t->data, t->bytes);
    return ST_OK;
}

/* Those of `all` that this rank has: [first, first + count). */
typedef struct range {
    int all, first, count;
} range;

static range whole(int all) { return (range){all, 0, all}; }
static range some(int all, int first, int count) { return (range){all, first, count}; }

/* One more stack of rows for m: this rank's rows and columns of the tensor. */
static status part(loader *ld, const char *name, range rows, range cols, eng_matrix *m) {
    const eng_tensor *t;
    TRY(take(ld, name, rows.all, cols.all, false, &t));
    assert(m->parts < ENG_STACK_MAX && (m->parts == 0 || m->C == cols.count));
    size_t row_bytes = t->bytes / (size_t)rows.all;
    m->part[m->parts].type = t->type;
    m->part[m->parts].rows = rows.count;
    m->part[m->parts].row_bytes = row_bytes;
    m->part[m->parts].data = (const char *)t->data + (size_t)rows.first * row_bytes + eng_gguf_type_bytes(t->type, cols.first);
    m->parts++;
    m->N += rows.count;
    m->C = cols.count;
    return ST_OK;
}

static status load_layer(loader *ld, int l) {
    const eng_shape *s = &ld->m->shape;
    eng_layer *w = &ld->m->layer[l];
    const eng_share *own = ld->m->own_share;
    range D = whole(s->D), F = some(s->F, own->ffn_first, own->ffn);
    range Q = some(s->H * s->h, own->heads_first * s->h, own->heads * s->h);
    range KV = some(s->K * s->h, own->kv_first * s->h, own->kv * s->h);
    char name[64];
#define NAME(what) (snprintf(name, sizeof name, "blk.%d." what ".weight", l), name)
    TRY(vector(ld, NAME("attn_norm"), s->D, &w->norm_attn));           /* (D)       */
    TRY(part(ld, NAME("attn_q"), Q, D, &w->qkv));                      /* (H*h, D)  */
    TRY(part(ld, NAME("attn_k"), KV, D, &w->qkv));                     /* (K*h, D)  */
    TRY(part(ld, NAME("attn_v"), KV, D, &w->qkv));                     /* (K*h, D)  */
    TRY(part(ld, NAME("attn_output"), D, Q, &w->attn_out));            /* (D, H*h)  */
    TRY(vector(ld, NAME("ffn_norm"), s->D, &w->norm_ffn));             /* (D)       */
    TRY(part(ld, NAME("ffn_gate"), F, D, &w->gate_up));                /* (F, D)    */
    TRY(part(ld, NAME("ffn_up"), F, D, &w->gate_up));                  /* (F, D)    */
    TRY(part(ld, NAME("ffn_down"), D, F, &w->down));                   /* (D, F)    */
#undef NAME
    return ST_OK;
}

/* Whatever the schema did not ask for would change what the model computes: refused by name. */
static status refuse_rest(loader *ld) {
    for (int64_t i = 0; i < eng_gguf_tensor_count(ld->m->g); i++)
        if (!ld->used[i])
            return error_set(ld->err, ST_UNSUPPORTED, "tensor %s is not one of a llama model of %d layers",
                             eng_gguf_tensor_at(ld->m->g, i)->name, ld->m->shape.L);
    return ST_OK;
}

static status load_weights(loader *ld) {
    eng_model *m = ld->m;
    int L = m->shape.L, D = m->shape.D, V = m->shape.V, rotated;
    const eng_tensor *own, *factors;
    TRY(get_int(m, "llama.rope.dimension_count", 2, m->shape.h, m->shape.h, &rotated, ld->err));
    range rows = some(V, m->own_share->vocab_first, m->own_share->vocab);
    m->embed.by_row = true;
    TRY(part(ld, "token_embd.weight", whole(V), whole(D), &m->embed));          /* (V, D), of all */
    TRY(vector(ld, "output_norm.weight", D, &m->norm_out));                     /* (D)    */
    TRY(take(ld, "output.weight", V, D, true, &own));                           /* (V, D) or tied */
    TRY(part(ld, own ? "output.weight" : "token_embd.weight", rows, whole(D), &m->output));
    TRY(take(ld, "rope_freqs.weight", 0, rotated / 2, true, &factors));         /* (rotated / 2) */
    TRY(load_rope(m, factors ? factors->data : NULL, ld->err));
    m->layer = mem_zalloc((size_t)L, sizeof *m->layer);
    if (!m->layer) return error_set(ld->err, ST_NO_MEMORY, "no memory for %d layers", L);
    for (int l = 0; l < L; l++) TRY(load_layer(ld, l));
    return refuse_rest(ld);
}

/* The back end's own form of every matrix that is multiplied; embed is looked up by row, as it is in the file, or
 * as it is on a device. */
static status prepare_weights(eng_model *m, const eng_options *o, error *err) {
    int count = 0;
    eng_matrix **all = mem_zalloc((size_t)m->shape.L * 4 + 2, sizeof(eng_matrix *));
    if (!all) return error_set(err, ST_NO_MEMORY, "no memory for %d layers", m->shape.L);
    for (int l = 0; l < m->shape.L; l++) {
        eng_layer *w = &m->layer[l];
        all[count++] = &w->qkv;
        all[count++] = &w->attn_out;
        all[count++] = &w->gate_up;
        all[count++] = &w->down;
    }
    all[count++] = &m->output;
    if (!m->op->shares) all[count++] = &m->embed;
    char form[32];
    snprintf(form, sizeof form, "%s", m->op->form ? m->op->form : "none");
    if (m->group)                /* c: the third way to share a model out (share.c) */
        snprintf(form + strlen(form), sizeof form - strlen(form), "-%dof%dc", m->own_share->rank, coll_ranks(m->group));
    eng_cache_job job = {.form = form, .op = m->op, .c = m->c, .matrices = all, .count = count, .digest = eng_gguf_digest(m->g),
                         .dir = o->cache_dir, .progress = o->progress, .progress_ctx = o->progress_ctx};
    status s = eng_cache_open(&job, &m->cache, err);
    mem_free(all);
    if (s == ST_OK && o->progress) o->progress(1, o->progress_ctx);
    return s;
}

/* ---- rotary embedding -------------------------------------------------------------------------- */

typedef struct rope {
    double base, factor, beta_fast, beta_slow;
    int dims, original;
    bool yarn;
} rope;

/* Which scaling the file asks for. Absent or "none": factor 1. */
static status rope_scaling(eng_model *m, rope *r, error *err) {
    const char *type = "none";
    size_t bytes = 4;
    status s = eng_gguf_text(m->g, "llama.rope.scaling.type", &type, &bytes, err);
    if (s != ST_OK && s != ST_NOT_FOUND) return s;
    r->yarn = bytes == 4 && !memcmp(type, "yarn", 4);
    bool linear = bytes == 6 && !memcmp(type, "linear", 6);
    bool none = bytes == 4 && !memcmp(type, "none", 4);
    if (!r->yarn && !linear && !none)
        return error_set(err, ST_UNSUPPORTED, "llama.rope.scaling.type is '%.*s', expected none, linear "
                         "or yarn", bytes > 40 ? 40 : (int)bytes, type);
    if (s == ST_NOT_FOUND)           /* files from before the type had a key */
        return get_real(m, "llama.rope.scale_linear", 1e-3, 1e6, 1, &r->factor, err);
    r->factor = 1;
    if (none) return ST_OK;
    TRY(get_real(m, "llama.rope.scaling.factor", 1e-3, 1e6, 1, &r->factor, err));
    TRY(get_real(m, "llama.rope.scaling.attn_factor", 1e-3, 1e3, 1, &m->angle_scale, err));
    TRY(get_real(m, "llama.rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32, &r->beta_fast, err));
    TRY(get_real(m, "llama.rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1, &r->beta_slow, err));
    return get_int(m, "llama.rope.scaling.original_context_length", 1, CONTEXT_MAX, m->shape.context,
                   &r->original, err);
}

/* The pair that makes `turns` turns over the original context (YaRN, Peng et al. 2023, section 3.2). */
static double yarn_pair(const rope *r, double turns) {
    return r->dims * log(r->original / (turns * 2 * M_PI)) / (2 * log(r->base));
}

/* How much of pair i keeps its own frequency: 1 for fast pairs, 0 for slow ones, a ramp between. */
static double yarn_keeps(const rope *r, int i) {
    double low = fmax(0, floor(yarn_pair(r, r->beta_fast)));
    double high = fmin(r->dims - 1, ceil(yarn_pair(r, r->beta_slow)));
    double share = (i - low) / fmax(0.001, high - low);
    return 1 - fmin(1, fmax(0, share));
}

/* Pair i turns by base^(-2i/dims) radians a position (RoFormer, Su et al. 2021), divided by the
 * file's own factor of that pair (llama 3), by the scaling factor (linear), or by a mix (YaRN). */
static status load_rope(eng_model *m, const float *factors, error *err) {
    rope r = {0};
    m->angle_scale = 1;
    TRY(get_int(m, "llama.rope.dimension_count", 2, m->shape.h, m->shape.h, &r.dims, err));
    if (r.dims % 2)
        return error_set(err, ST_BAD_INPUT, "llama.rope.dimension_count is %d, expected an even number",
                         r.dims);
    TRY(get_real(m, "llama.rope.freq_base", 1.0001, 1e12, 10000, &r.base, err));
    TRY(rope_scaling(m, &r, err));
    m->inv_freq = mem_zalloc((size_t)m->shape.h / 2, sizeof *m->inv_freq);
    if (!m->inv_freq) return error_set(err, ST_NO_MEMORY, "no memory for rotary frequencies");
    if (r.yarn) m->angle_scale *= 1 + 0.1 * log(r.factor);
    for (int i = 0; i < r.dims / 2; i++) {
        double f = pow(r.base, -2.0 * i / r.dims);
        double own = factors ? factors[i] : 1, keeps = r.yarn ? yarn_keeps(&r, i) : 0;
        if (!(own > 0 && own < 1e9))
            return error_set(err, ST_BAD_INPUT, "rope_freqs.weight has %g at %d, expected above 0", own, i);
        m->inv_freq[i] = f / own * (keeps + (1 - keeps) / r.factor);
    }
    return ST_OK;
}

/* ---- scratch ----------------------------------------------------------------------------------- */

static void *memory(eng_model *m, size_t rows, size_t row_bytes) {
    m->scratch_bytes += rows * row_bytes;
    return m->op->alloc(m->c, rows * row_bytes);
}

static void *host(eng_model *m, size_t rows, size_t row_bytes) {
    m->scratch_bytes += rows * row_bytes;
    return mem_zalloc(rows, row_bytes);
}

static status alloc_scratch(eng_model *m, error *err) {
    const eng_shape *a = &m->own;
    eng_scratch *s = &m->s;
    size_t T = eng_whole_rows(m, m->tokens_max), wanted = eng_whole_rows(m, m->logits_max), f = sizeof(float);
    size_t D = (size_t)a->D, F = (size_t)a->F, pairs = (size_t)a->h / 2;
    size_t act_D = m->op->act_bytes(m->c, a->D), act_F = m->op->act_bytes(m->c, a->F);
    size_t act_att = m->op->act_bytes(m->c, a->H * a->h);
    bool fine = (s->x = memory(m, T, D * f)) && (s->xn = memory(m, T, act_D)) &&
                (s->qkv = memory(m, T, (size_t)(a->H + 2 * a->K) * (size_t)a->h * f)) &&
                (s->att = memory(m, T, act_att)) &&
                (s->gu = memory(m, T, 2 * F * f)) && (s->ff = memory(m, T, act_F)) &&
                (s->last = memory(m, wanted, D * f)) && (s->lastn = memory(m, wanted, act_D)) &&
                (s->token = host(m, T, sizeof *s->token)) &&
                (s->position = host(m, T, sizeof *s->position)) &&
                (s->rows_index = host(m, T, sizeof *s->rows_index)) &&
                (s->wanted = host(m, wanted, sizeof *s->wanted)) &&
                (s->tiles = host(m, T, sizeof *s->tiles)) &&
                (s->angles = host(m, T, pairs * 2 * sizeof *s->angles));
    if (fine) return ST_OK;
    char what[60];
    snprintf(what, sizeof what, "a step of %d tokens, the first part", m->tokens_max);
    return no_room(m, what, m->scratch_bytes, err);
}
