/* kv.c -- the memory of the pages.
 *
 * One allocation for all pages, made once; who owns which page is pool.c's business. How a page is
 * laid out inside is the back end's (engine/cpu/pages.h for the CPU); boxes in canonical order are
 * what others see, so page size, element type and layout may differ between two nodes. */
#include "engine/model.h"
#include <assert.h>
#include <string.h>

enum { PAGE_TOKENS_MAX = 1024 };

/* By eng_kv_type. A row of Q8_0 is blocks of 32 elements of a byte and a scale of two. */
static const struct {
    const char *name;
    int dims, bytes;             /* of a block */
} types[] = {{"f32", 1, 4}, {"f16", 1, 2}, {"bf16", 1, 2}, {"q8_0", 32, 34}};
enum { TYPES = sizeof types / sizeof types[0] };

const char *eng_kv_type_name(eng_kv_type type) { return types[type].name; }

bool eng_kv_type_find(const char *name, eng_kv_type *out) {
    for (int i = 0; i < TYPES; i++)
        if (strcmp(name, types[i].name) == 0) {
            *out = (eng_kv_type)i;
            return true;
        }
    return false;
}

bool eng_kv_type_fits(eng_kv_type type, int h) { return h % types[type].dims == 0; }

size_t eng_kv_row_bytes(eng_kv_type type, int h) {
    return (size_t)(h / types[type].dims) * (size_t)types[type].bytes;
}

static status check_type(const eng_model *m, eng_kv_type type, error *err) {
    if ((int)type < 0 || (int)type >= TYPES)
        return error_set(err, ST_BAD_INPUT, "KV type %d, expected 0 (F32), 1 (F16), 2 (BF16) or 3 (Q8_0)", (int)type);
    if (!eng_kv_type_fits(type, m->shape.h))
        return error_set(err, ST_UNSUPPORTED,
                         "KV of type %s: this model's heads are %d wide, expected a multiple of %d", types[type].name,
                         m->shape.h, types[type].dims);
    return ST_OK;
}

status eng_kv_create(const eng_model *m, int32_t pages, int32_t page_tokens, eng_kv_type type,
                     eng_kv **out, error *err) {
    const eng_shape *s = &m->own;
    if (pages < 1) return error_set(err, ST_BAD_INPUT, "%d pages, expected at least 1", pages);
    if (page_tokens < 1 || page_tokens > PAGE_TOKENS_MAX)
        return error_set(err, ST_BAD_INPUT, "%d tokens a page, expected 1 to %d", page_tokens,
                         PAGE_TOKENS_MAX);
    TRY(check_type(m, type, err));
    size_t page_bytes = 2 * (size_t)s->L * (size_t)s->K * (size_t)page_tokens * eng_kv_row_bytes(type, s->h), bytes;
    if (__builtin_mul_overflow(page_bytes, (size_t)pages, &bytes) || bytes > PTRDIFF_MAX)
        return error_set(err, ST_BAD_INPUT, "%d pages of %zu bytes are more than can be addressed", pages,
                         page_bytes);
    eng_kv *kv = mem_zalloc(1, sizeof *kv);
    if (!kv) return error_set(err, ST_NO_MEMORY, "no memory for %d KV pages", pages);
    kv->m = m;
    int group = m->shape.H / m->shape.K;
    kv->pages = (eng_pages){.pages = pages, .P = page_tokens, .L = s->L, .K = s->K,
                            .h = s->h, .group = group, .skip = m->own_share->heads_first - m->own_share->kv_first * group,
                            .type = type, .page_bytes = page_bytes};
    status st = m->op->pages_open(m->c, &kv->pages, err);
    if (st != ST_OK) {
        mem_free(kv);
        return st;
    }
    *out = kv;
    return ST_OK;
}

void eng_kv_destroy(eng_kv *kv) {
    if (!kv) return;
    kv->m->op->pages_close(kv->m->c, &kv->pages);
    mem_free(kv);
}

size_t eng_kv_page_bytes(const eng_kv *kv) { return kv->pages.page_bytes; }
eng_kv_type eng_kv_element(const eng_kv *kv) { return kv->pages.type; }

void eng_kv_copy(eng_kv *kv, int32_t dst, int32_t src, int32_t tokens) {
    const eng_pages *p = &kv->pages;
    assert(dst >= 0 && dst < p->pages && src >= 0 && src < p->pages && dst != src);
    assert(tokens >= 0 && tokens <= p->P);
    if (kv->m->group && coll_rank(kv->m->group) == 0) eng_lead_copy(kv->m->group, dst, src, tokens);
    kv->m->op->kv_copy(kv->m->c, p, dst, src, tokens);
}

size_t eng_kv_box_bytes(const eng_kv *kv, const eng_kv_box *box) {
    return 2 * (size_t)box->layers * (size_t)box->heads * (size_t)box->tokens *
           eng_kv_row_bytes(box->type, kv->pages.h);
}

/* Callers check what a peer sent against their own promise first; here a wrong box is our own bug. */
static void assert_box(const eng_pages *p, const int32_t *blocks, const eng_kv_box *b) {
    assert(b->layer_first >= 0 && b->layers >= 0 && b->layers <= p->L - b->layer_first);
    assert(b->head_first >= 0 && b->heads >= 0 && b->heads <= p->K - b->head_first);
    assert(b->token_first >= 0 && b->tokens >= 0 && b->tokens <= INT32_MAX - b->token_first);
    assert((int)b->type >= 0 && (int)b->type < TYPES && p->h % types[b->type].dims == 0);
    if (b->tokens == 0) return;
    for (int32_t i = b->token_first / p->P; i <= (b->token_first + b->tokens - 1) / p->P; i++)
        assert(blocks[i] >= 0 && blocks[i] < p->pages);
}

void eng_kv_pack(const eng_kv *kv, const int32_t *blocks, const eng_kv_box *box, void *out) {
    assert_box(&kv->pages, blocks, box);
    kv->m->op->kv_pack(kv->m->c, &kv->pages, blocks, box, out);
}

int eng_kv_runs(const eng_kv *kv, const int32_t *blocks, const eng_kv_box *box, void *scratch, struct iovec *runs,
                int runs_max) {
    assert_box(&kv->pages, blocks, box);
    return kv->m->op->kv_runs ? kv->m->op->kv_runs(kv->m->c, &kv->pages, blocks, box, scratch, runs, runs_max) : 0;
}

void eng_kv_unpack(eng_kv *kv, const int32_t *blocks, const eng_kv_box *box, const void *in) {
    assert_box(&kv->pages, blocks, box);
    kv->m->op->kv_unpack(kv->m->c, &kv->pages, blocks, box, in);
}
