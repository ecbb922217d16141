/* cpu.c -- what the scalar and the fast CPU back ends have in common: memory, weights as they stand
 * in the file, looking rows up. Compiled without contraction, so that its results are the same bits on
 * every machine. */
#include "engine/cpu/cpu.h"
#include "collective/collective.h"
#include <assert.h>
#include <sys/mman.h>

/* ---- context and memory ------------------------------------------------------------------------ */

status eng_cpu_open(int threads, size_t panel_floats, const char *numerics, eng_context **out,
                    error *err) {
    eng_context *c = mem_zalloc(1, sizeof *c);
    if (!c) return error_set(err, ST_NO_MEMORY, "no memory for a back end");
    c->numerics = numerics;
    c->panel_floats = (panel_floats + 15) & ~(size_t)15;
    status s = eng_team_create(threads, &c->team, err);
    if (s == ST_OK && panel_floats) {
        size_t bytes = c->panel_floats * sizeof(float) * (size_t)eng_team_threads(c->team);
        c->panel = eng_cpu_alloc(c, bytes);
        if (!c->panel) s = error_set(err, ST_NO_MEMORY, "no memory for %zu bytes of panels", bytes);
    }
    if (s != ST_OK) {
        eng_cpu_close(c);
        return s;
    }
    *out = c;
    return ST_OK;
}

void eng_cpu_close(eng_context *c) {
    if (!c) return;
    eng_team_destroy(c->team);
    eng_cpu_free(c, c->panel);
    mem_free(c);
}

const char *eng_cpu_numerics(const eng_context *c) { return c->numerics; }

enum { HUGE_PAGE = 2 << 20 };

/* 64-aligned: the address that was really allocated stands just before. */
void *eng_cpu_alloc(eng_context *c, size_t bytes) {
    (void)c;
    if (bytes > SIZE_MAX - 128) return NULL;
    char *raw = mem_zalloc(bytes + 64 + sizeof(void *), 1);
    if (!raw) return NULL;
    void **memory = (void **)(((uintptr_t)raw + sizeof(void *) + 63) & ~(uintptr_t)63);
    /* Weights and KV pages in pages of 2 MiB: walks of the page table cost a tenth of long attention. */
    uintptr_t first = ((uintptr_t)raw + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1), end = (uintptr_t)raw + bytes;
    if (end > first + HUGE_PAGE) madvise((void *)first, (end - first) & ~(size_t)(HUGE_PAGE - 1), MADV_HUGEPAGE);
    memory[-1] = raw;
    return memory;
}

void eng_cpu_free(eng_context *c, void *memory) {
    (void)c;
    if (memory) mem_free(((void **)memory)[-1]);
}

void eng_cpu_copy_in(eng_context *c, void *memory, const void *from, size_t bytes) {
    (void)c;
    memcpy(memory, from, bytes);
}

const char *eng_cpu_place(const eng_context *c) {
    (void)c;
    return "the host";
}

const char *eng_cpu_room(eng_context *c, char out[ENG_ROOM_BYTES]) {
    (void)c;
    snprintf(out, ENG_ROOM_BYTES, "the host has no more");
    return out;
}

status eng_cpu_ready(eng_context *c, error *err) {
    (void)c, (void)err;
    return ST_OK;
}

status eng_cpu_pages_open(eng_context *c, eng_pages *kv, error *err) {
    kv->data = eng_cpu_alloc(c, (size_t)kv->pages * kv->page_bytes);
    return kv->data ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory for %d KV pages of %zu bytes (%zu MiB)", kv->pages,
                                        kv->page_bytes, (size_t)kv->pages * kv->page_bytes >> 20);
}

void eng_cpu_pages_close(eng_context *c, eng_pages *kv) { eng_cpu_free(c, kv->data); }

/* ---- weights ----------------------------------------------------------------------------------- */

const void *eng_cpu_row(const eng_matrix *m, int n, eng_type *type) {
    int p = 0;
    while (n >= m->part[p].rows) n -= m->part[p++].rows;
    *type = m->part[p].type;
    return (const char *)m->part[p].data + (size_t)n * m->part[p].row_bytes;
}

static uint16_t u16_at(const void *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static void dequantize_q8_0(const uint8_t *b, float *out) { /* f16 d | i8 q[32] */
    float d = eng_half_to_float(u16_at(b));
    for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)b[2 + i];
}

static void dequantize_q4_0(const uint8_t *b, float *out) { /* f16 d | q[i] and q[i+16] in a byte */
    float d = eng_half_to_float(u16_at(b));
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b[2 + i] & 15) - 8);
        out[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void dequantize_q4_1(const uint8_t *b, float *out) { /* f16 d | f16 m | as Q4_0 */
    float d = eng_half_to_float(u16_at(b)), m = eng_half_to_float(u16_at(b + 2));
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b[4 + i] & 15) + m;
        out[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}

void eng_cpu_dequantize(eng_type type, const void *row, int n, float *out) {
    const uint8_t *b = row;
    switch (type) {
    case ENG_F32: memcpy(out, row, (size_t)n * sizeof *out); return;
    case ENG_F16: for (int i = 0; i < n; i++) out[i] = eng_half_to_float(u16_at(b + 2 * i)); return;
    case ENG_BF16: for (int i = 0; i < n; i++) out[i] = eng_bf16_to_float(u16_at(b + 2 * i)); return;
    case ENG_Q8_0: for (int i = 0; i < n; i += 32, b += 34) dequantize_q8_0(b, out + i); return;
    case ENG_Q4_0: for (int i = 0; i < n; i += 32, b += 18) dequantize_q4_0(b, out + i); return;
    case ENG_Q4_1: for (int i = 0; i < n; i += 32, b += 20) dequantize_q4_1(b, out + i); return;
    }
    assert(!"a weight type that gguf.c accepts");
}

/* ---- a step's ends ----------------------------------------------------------------------------- */

void eng_cpu_begin(eng_context *c, const eng_batch *b) {
    (void)b;
    eng_team_step_begin(c->team);
}

status eng_cpu_finish(eng_context *c, const float *logits, size_t count, const float **out, error *err) {
    (void)count, (void)err;
    eng_team_step_end(c->team);
    *out = logits;
    return ST_OK;
}

status eng_cpu_sum(eng_context *c, coll *group, float *y, int T, int D, error *err) {
    (void)c;
    return coll_all_reduce(group, y, (size_t)T * (size_t)D, err);
}

void eng_cpu_embed(eng_context *c, float *x, const eng_matrix *w, const eng_batch *b) {
    (void)c;
    for (int t = 0; t < b->T; t++) {
        eng_type type;
        const void *row = eng_cpu_row(w, b->token[t], &type);
        eng_cpu_dequantize(type, row, w->C, x + (size_t)t * (size_t)w->C);
    }
}

void eng_cpu_gather(eng_context *c, float *out, const float *x, const eng_batch *b, int D) {
    (void)c;
    for (int i = 0; i < b->wanted_count; i++)
        memcpy(out + (size_t)i * (size_t)D, x + (size_t)b->wanted[i] * (size_t)D, (size_t)D * sizeof *x);
}
