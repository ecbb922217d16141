/* cpu.h -- what the CPU back ends share: context, number formats. */
#ifndef BATON_ENGINE_CPU_H
#define BATON_ENGINE_CPU_H

#include "engine/ops.h"
#include "engine/team.h"
#include <string.h>

struct eng_context {
    eng_team *team;
    const char *numerics;
    float *panel;                /* per thread, panel_floats each */
    size_t panel_floats;
};

/* Opens a context with threads of panel_floats scratch each. */
status eng_cpu_open(int threads, size_t panel_floats, const char *numerics, eng_context **out,
                    error *err);
/* The entries of the table that do not depend on how fast numbers are multiplied. */
void eng_cpu_close(eng_context *c);
const char *eng_cpu_numerics(const eng_context *c);
void *eng_cpu_alloc(eng_context *c, size_t bytes);
void eng_cpu_free(eng_context *c, void *memory);
void eng_cpu_copy_in(eng_context *c, void *memory, const void *from, size_t bytes);
const char *eng_cpu_place(const eng_context *c);
const char *eng_cpu_room(eng_context *c, char out[ENG_ROOM_BYTES]);
status eng_cpu_ready(eng_context *c, error *err);
status eng_cpu_pages_open(eng_context *c, eng_pages *kv, error *err);
void eng_cpu_pages_close(eng_context *c, eng_pages *kv);
void eng_cpu_begin(eng_context *c, const eng_batch *b);
status eng_cpu_finish(eng_context *c, const float *logits, size_t count, const float **out, error *err);
status eng_cpu_sum(eng_context *c, coll *group, float *y, int T, int D, error *err);
void eng_cpu_embed(eng_context *c, float *x, const eng_matrix *w, const eng_batch *b);
void eng_cpu_gather(eng_context *c, float *out, const float *x, const eng_batch *b, int D);
void eng_cpu_kv_copy(eng_context *c, const eng_pages *kv, int32_t dst, int32_t src, int32_t tokens);
void eng_cpu_kv_pack(eng_context *c, const eng_pages *kv, const int32_t *blocks,
                     const eng_kv_box *box, void *out);
void eng_cpu_kv_unpack(eng_context *c, const eng_pages *kv, const int32_t *blocks,
                       const eng_kv_box *box, const void *in);
int eng_cpu_kv_runs(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, void *scratch,
                    struct iovec *runs, int runs_max);

#define ENG_CPU_SHARED_OPS                                                                          \
    .shares = true, .close = eng_cpu_close, .numerics = eng_cpu_numerics, .alloc = eng_cpu_alloc,    \
    .free = eng_cpu_free, .copy_in = eng_cpu_copy_in, .place = eng_cpu_place, .room = eng_cpu_room,  \
    .rows_whole = ENG_TILE_ROWS, .ready = eng_cpu_ready, .pages_open = eng_cpu_pages_open,           \
    .pages_close = eng_cpu_pages_close, .begin = eng_cpu_begin, .finish = eng_cpu_finish,            \
    .sum = eng_cpu_sum, .embed = eng_cpu_embed, .gather = eng_cpu_gather,                            \
    .kv_copy = eng_cpu_kv_copy, .kv_pack = eng_cpu_kv_pack, .kv_unpack = eng_cpu_kv_unpack,           \
    .kv_runs = eng_cpu_kv_runs

/* The widest row a product reads. */
static inline int eng_cpu_widest(const eng_shape *s) {
    int columns = s->D > s->F ? s->D : s->F;
    return columns > s->H * s->h ? columns : s->H * s->h;
}

/* n weights of a row from its start, exactly as ggml defines the types: Q8_0 d*q, Q4_0 d*(q-8),
 * Q4_1 d*q+m, each operation rounded to float. n is a multiple of the type's block. */
void eng_cpu_dequantize(eng_type type, const void *row, int n, float *out);
const void *eng_cpu_row(const eng_matrix *m, int n, eng_type *type);

/* ---- number formats ---------------------------------------------------------------------------- */

static inline float eng_bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t eng_float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* IEEE 754 binary16. Shifted into a float's place the exponent is 112 too small; multiplying by
 * 2^112 puts it right, subnormals included. Infinity and NaN land at 2^16 and up: their exponent is
 * set to all ones. Every step is exact, so any way to compute it gives the same bits. */
static inline float eng_half_to_float(uint16_t h) {
    uint32_t u = eng_float_bits(eng_bits_float((uint32_t)(h & 0x7fff) << 13) * 0x1p112f);
    if (u >= 0x47800000) u |= 0x7f800000;
    return eng_bits_float(u | (uint32_t)(h & 0x8000) << 16);
}

/* Nearest, ties to even; too large becomes infinity. */
static inline uint16_t eng_float_to_half(float f) {
    uint32_t u = eng_float_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff, half;
    if (a > 0x7f800000) half = 0x7e00;                           /* NaN */
    else if (a >= 0x477ff000) half = 0x7c00;                     /* rounds to 65536 or more */
    else if (a < 0x38800000)                                     /* subnormal: let the adder round */
        half = eng_float_bits(eng_bits_float(a) + 0.5f) - 0x3f000000;
    else half = (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
    return (uint16_t)(sign | half);
}

static inline float eng_bf16_to_float(uint16_t b) { return eng_bits_float((uint32_t)b << 16); }

/* e^x without the C library: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial of degree 6 for e^r
 * (Cephes expf, Moshier), times 2^n. Relative error below 2^-22; 0 below -87.3, infinity never for
 * the x <= 0 of a softmax. exp_lanes() of lanes.h does sixteen at once, by the same operations. */
static inline float eng_exp(float x) {
    float clamped = x < -87.3f ? -87.3f : x;
    clamped = clamped > 88.3f ? 88.3f : clamped;
    float shifted = clamped * 1.44269504f + 12582912.f;          /* 1.5 * 2^23: rounds to integer */
    float n = shifted - 12582912.f;
    float r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1);
    float power = eng_bits_float((eng_float_bits(shifted) << 23) + 0x3f800000);
    return x < -87.3f ? 0 : p * power;
}

/* silu(g) = g / (1 + e^-g). */
static inline float eng_silu(float g) { return g / (1 + eng_exp(-g)); }

#endif
