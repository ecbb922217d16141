/* rope.c -- RoPE, and the row's K and V on their way into the pages: compiled for each instruction set,
 * without contraction, with the same bytes as scalar.c (but for the payload of a NaN). */
#include "engine/cpu/isa.h"
#include "engine/cpu/lanes.h"
#include "engine/cpu/pages.h"

typedef uint16_t wide __attribute__((vector_size(W * 2), aligned(2), may_alias));
typedef int8_t narrow __attribute__((vector_size(W), aligned(1), may_alias));

/* ---- sixteen floats as elements ---------------------------------------------------------------- */

INLINE void put_halves(char *to, lanes x) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((void *)to, _mm512_cvtps_ph((__m512)x.v[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    UNROLL for (int i = 0; i < PARTS; i++)
        _mm_storeu_si128((void *)(to + i * 2 * W), _mm256_cvtps_ph((__m256)x.v[i], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    UNROLL for (int i = 0; i < PARTS; i++)
        vst1_u8((uint8_t *)to + i * 2 * W, (uint8x8_t)vcvt_f16_f32((float32x4_t)x.v[i]));
#else
    uint16_t half[LANES];
    for (int i = 0; i < LANES; i++) half[i] = eng_float_to_half(x.v[i / W][i % W]);
    memcpy(to, half, sizeof half);
#endif
}

/* Nearest, ties to even; a NaN stays one. */
INLINE void put_bf16(char *to, lanes x) {
    UNROLL for (int i = 0; i < PARTS; i++) {
        ivec u = (ivec)x.v[i], high = u >> 16, rounded = (u + 0x7fff + (high & 1)) >> 16;
        ivec nan = (u & 0x7fffffff) > 0x7f800000;
        *(wide *)(to + i * 2 * W) = __builtin_convertvector((nan & (high | 64)) | (~nan & rounded), wide);
    }
}

/* Nearest, ties away from zero, |x| <= 127: adding 1.5 * 2^23 rounds |x| to even; a tie that went down
 * is put up. */
INLINE void put_int8(char *to, lanes x) {
    lanes size = magnitude(x);
    UNROLL for (int i = 0; i < PARTS; i++) {
        vec even = (size.v[i] + 12582912.f) - 12582912.f;
        ivec tie = (size.v[i] - even) == 0.5f, negative = (ivec)x.v[i] < 0;
        ivec q = __builtin_convertvector(even, ivec) - tie;
        *(narrow *)(to + i * W) = __builtin_convertvector((q ^ negative) - negative, narrow);
    }
}

/* Scale and 32 elements, as eng_quantize_row() rounds them. */
INLINE void put_scaled(char *to, const float *x) {
    lanes a = load(x), b = load(x + LANES);
    float d = greatest(greater(magnitude(a), magnitude(b))) / 127, reciprocal = d != 0 ? 1 / d : 0;
    uint16_t half = eng_float_to_half(d);
    memcpy(to, &half, 2);
    put_int8(to + 2, times(a, reciprocal));
    put_int8(to + 2 + LANES, times(b, reciprocal));
}

static void encode(eng_kv_type type, const float *x, int h, char *row) {
    int d = 0;
    switch (type) {
    case ENG_KV_F32: break;
    case ENG_KV_F16: for (; d + LANES <= h; d += LANES) put_halves(row + 2 * d, load(x + d)); break;
    case ENG_KV_BF16: for (; d + LANES <= h; d += LANES) put_bf16(row + 2 * d, load(x + d)); break;
    case ENG_KV_Q8_0: for (; d < h; d += ENG_SCALE_DIMS) put_scaled(row + d / 32 * 34, x + d); break;
    }
    eng_quantize_row(eng_row_type(type), x + d, h - d, row + (size_t)d * eng_element_bytes(type));
}

/* ---- rotation ---------------------------------------------------------------------------------- */

/* Eight pairs. A pair and its (cos, sin) are moved within 64 bits, the first of them in the low half; the
 * plain loop of scalar.c would not do: gcc 12 makes fused operations of it, contraction or not. */
INLINE void rotate_lanes(float *v, const float *angles) {
    typedef uint64_t pairs __attribute__((vector_size(W * 4)));
    UNROLL for (int i = 0; i < LANES; i += W) {
        vec x = *(const vec *)(v + i);
        pairs angle = (pairs)*(const vec *)(angles + i), low = angle << 32 >> 32, high = angle >> 32;
        pairs cosine = low | low << 32, sine = (high | high << 32) ^ 0x80000000;
        pairs swapped = (pairs)x << 32 | (pairs)x >> 32;
        *(vec *)(v + i) = x * (vec)cosine + (vec)swapped * (vec)sine;
    }
}

static void rotate(float *v, const float *angles, int h) {
    float rest[LANES] = {0}, rest_angles[LANES] = {0};
    int i = 0;
    for (; i + LANES <= h; i += LANES) rotate_lanes(v + i, angles + i);
    memcpy(rest, v + i, (size_t)(h - i) * sizeof *v);
    memcpy(rest_angles, angles + i, (size_t)(h - i) * sizeof *v);
    rotate_lanes(rest, rest_angles);
    memcpy(v + i, rest, (size_t)(h - i) * sizeof *v);
}

/* ---- the op ------------------------------------------------------------------------------------ */

typedef struct append {
    float *qkv;
    const eng_pages *kv;
    const eng_batch *b;
    int l, H, rows_a_task;
} append;

static void append_row(const append *a, int t) {
    const eng_pages *kv = a->kv;
    eng_append r = eng_append_row(a->qkv, kv, a->b, a->H, t);
    char row[ENG_ROW_BYTES_MAX];
    for (int head = 0; head < a->H + kv->K; head++) rotate(r.q + head * kv->h, r.angles, kv->h);
    for (int is_v = 0; is_v < 2; is_v++)
        for (int head = 0; head < kv->K; head++) {
            encode(kv->type, (is_v ? r.v : r.k) + head * kv->h, kv->h, row);
            eng_row_write(kv, eng_page_block(kv, r.page, a->l, is_v, head), is_v, r.slot, row);
        }
}

static void append_task(void *ctx, int task, int thread) {
    const append *a = ctx;
    (void)thread;
    for (int t = task * a->rows_a_task; t < a->b->T && t < (task + 1) * a->rows_a_task; t++) append_row(a, t);
}

void ISA_NAME(rope_append)(eng_context *c, float *qkv, const eng_pages *kv, int l, const eng_batch *b, int H) {
    append a = {qkv, kv, b, l, H, isa_rows_a_task(c, b->T)};
    eng_team_run(c->team, (b->T + a.rows_a_task - 1) / a.rows_a_task, append_task, &a);
}
