/* cpu.c -- what the scalar and the fast CPU back ends have in common: memory, weights as they stand
 * in the file, looking rows up, RoPE on the way into the pages. Compiled without contraction, so that
 * its results are the same bits on every machine. */
#include "engine/cpu/cpu.h"
#include <assert.h>

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

/* 64-aligned: the address that was really allocated stands just before. */
void *eng_cpu_alloc(eng_context *c, size_t bytes) {
    (void)c;
    if (bytes > SIZE_MAX - 128) return NULL;
    char *raw = mem_zalloc(bytes + 64 + sizeof(void *), 1);
    if (!raw) return NULL;
    void **memory = (void **)(((uintptr_t)raw + sizeof(void *) + 63) & ~(uintptr_t)63);
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

/* ---- weights ----------------------------------------------------------------------------------- */

/* They are used where they are mapped. */
size_t eng_cpu_own_bytes(const eng_context *c, const eng_matrix *m) {
    (void)c, (void)m;
    return 0;
}

void eng_cpu_prepare(eng_context *c, const eng_matrix *m, void *own) { (void)c, (void)m, (void)own; }

size_t eng_cpu_act_bytes(const eng_context *c, int columns) {
    (void)c;
    return (size_t)columns * sizeof(float);
}

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

void eng_cpu_begin(eng_context *c, const eng_batch *b) { (void)c, (void)b; }

const float *eng_cpu_finish(eng_context *c, const float *logits, size_t count) {
    (void)c, (void)count;
    return logits;
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

/* ---- RoPE and append --------------------------------------------------------------------------- */

/* (a, b) of each pair becomes (a cos - b sin, a sin + b cos). */
static void rotate(float *v, const float *angles, int h) {
    for (int i = 0; i < h; i += 2) {
        float a = v[i], b = v[i + 1], cosine = angles[i], sine = angles[i + 1];
        v[i] = a * cosine - b * sine;
        v[i + 1] = a * sine + b * cosine;
    }
}

void eng_cpu_rope_append(eng_context *c, float *qkv, const eng_pages *kv, int l, const eng_batch *b,
                         int H) {
    (void)c;
    int K = kv->K, h = kv->h, P = kv->P;
    for (int t = 0; t < b->T; t++) {
        float *q = qkv + (size_t)t * (size_t)((H + 2 * K) * h), *k = q + H * h, *v = k + K * h;
        const float *angles = b->angles + (size_t)t * (size_t)h;
        const int32_t *blocks = b->rows[b->rows_index[t]].blocks;
        int slot = b->position[t] % P;
        char *page = eng_page(kv, blocks[b->position[t] / P]);
        for (int head = 0; head < H; head++) rotate(q + head * h, angles, h);
        for (int head = 0; head < K; head++) {
            size_t at_k = eng_page_block(kv, l, 0, head), at_v = eng_page_block(kv, l, 1, head);
            rotate(k + head * h, angles, h);
            for (int d = 0; d < h; d++) {
                eng_element_set(kv->type, page, at_k + (size_t)(d * P + slot), k[head * h + d]);
                eng_element_set(kv->type, page, at_v + (size_t)(slot * h + d), v[head * h + d]);
            }
        }
    }
}

/* ---- pages out and in -------------------------------------------------------------------------- */

typedef void (*move_element)(char *page_element, char *wire_element);

static void pack_same2(char *page, char *wire) { memcpy(wire, page, 2); }
static void pack_same4(char *page, char *wire) { memcpy(wire, page, 4); }
static void unpack_same2(char *page, char *wire) { memcpy(page, wire, 2); }
static void unpack_same4(char *page, char *wire) { memcpy(page, wire, 4); }

static void f16_to_f32(char *from, char *to) {
    float f = eng_half_to_float(u16_at(from));
    memcpy(to, &f, 4);
}

static void f32_to_f16(char *from, char *to) {
    float f;
    memcpy(&f, from, 4);
    uint16_t half = eng_float_to_half(f);
    memcpy(to, &half, 2);
}

static void unpack_f16_to_f32(char *page, char *wire) { f16_to_f32(wire, page); }
static void unpack_f32_to_f16(char *page, char *wire) { f32_to_f16(wire, page); }

/* By [unpack][type in the page][type on the wire]. */
static const move_element moves[2][2][2] = {
    {{pack_same4, f32_to_f16}, {f16_to_f32, pack_same2}},
    {{unpack_same4, unpack_f16_to_f32}, {unpack_f32_to_f16, unpack_same2}},
};

/* One (layer, K or V, head, token): h elements, stride apart in the page, dense on the wire. */
static inline void move_row(char *page, size_t stride, size_t element, char *wire, size_t wire_element,
                            int h, move_element move) {
    for (int d = 0; d < h; d++) move(page + (size_t)d * stride * element, wire + (size_t)d * wire_element);
}

/* Walks a box in canonical order. */
static void move_box(const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, char *wire,
                     bool unpack) {
    size_t element = kv->type == ENG_KV_F16 ? 2 : 4, wire_element = box->type == ENG_KV_F16 ? 2 : 4;
    move_element move = moves[unpack][kv->type][box->type];
    for (int l = box->layer_first; l < box->layer_first + box->layers; l++)
        for (int is_v = 0; is_v < 2; is_v++)
            for (int head = box->head_first; head < box->head_first + box->heads; head++)
                for (int32_t t = box->token_first; t < box->token_first + box->tokens; t++) {
                    size_t slot = (size_t)(t % kv->P), h = (size_t)kv->h;
                    size_t at = eng_page_block(kv, l, is_v, head) + (is_v ? slot * h : slot);
                    move_row(eng_page(kv, blocks[t / kv->P]) + at * element, is_v ? 1 : (size_t)kv->P,
                             element, wire, wire_element, kv->h, move);
                    wire += h * wire_element;
                }
}

void eng_cpu_kv_pack(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box,
                     void *out) {
    (void)c;
    move_box(kv, blocks, box, out, false);
}

void eng_cpu_kv_unpack(eng_context *c, const eng_pages *kv, const int32_t *blocks,
                       const eng_kv_box *box, const void *in) {
    (void)c;
    move_box(kv, blocks, box, (char *)(uintptr_t)in, true);
}

void eng_cpu_kv_copy(eng_context *c, const eng_pages *kv, int32_t dst, int32_t src, int32_t tokens) {
    (void)c;
    size_t element = kv->type == ENG_KV_F16 ? 2 : 4, P = (size_t)kv->P, h = (size_t)kv->h;
    size_t n = (size_t)tokens;
    for (int l = 0; l < kv->L; l++)
        for (int head = 0; head < kv->K; head++) {
            size_t k = eng_page_block(kv, l, 0, head), v = eng_page_block(kv, l, 1, head);
            char *to = eng_page(kv, dst), *from = eng_page(kv, src);
            for (size_t d = 0; d < h; d++)
                memcpy(to + (k + d * P) * element, from + (k + d * P) * element, n * element);
            memcpy(to + v * element, from + v * element, n * h * element);
        }
}
