/* isa.h -- names and compiler settings of the files that are compiled once for each instruction set:
 * product.c, float.c, rope.c, rows.c, attention.c and table.c (engine/isa.cmake). CMake sets ISA (avx512,
 * avx2, neon, base); ISA_NAME(f) is then f_avx512 and so on, so that all of them stand in one executable;
 * ops.c picks at run time. */
#ifndef BATON_ENGINE_CPU_ISA_H
#define BATON_ENGINE_CPU_ISA_H

#include "engine/cpu/act.h"
#include "engine/cpu/cpu.h"
#include "engine/cpu/panel.h"

#define ISA_PASTE(name, isa) name##_##isa
#define ISA_EXPAND(name, isa) ISA_PASTE(name, isa)
#define ISA_NAME(name) ISA_EXPAND(name, ISA)
#define ISA_TEXT_OF(isa) #isa
#define ISA_TEXT_EXPAND(isa) ISA_TEXT_OF(isa)
#define ISA_TEXT ISA_TEXT_EXPAND(ISA)

/* What one instruction set offers to the tables in table.c and amx.c. */
#define ISA_FUNCTIONS(isa)                                                                           \
    status open_##isa(const eng_options *o, const eng_shape *shape, eng_context **out, error *err);  \
    void rmsnorm_##isa(eng_context *c, void *out, const eng_norm *n);                                \
    void silu_mul_##isa(eng_context *c, void *out, const float *gu, int T, int F);                    \
    void matmul_##isa(eng_context *c, float *y, const void *x, const eng_matrix *w, int T);           \
    void rope_append_##isa(eng_context *c, float *qkv, const eng_pages *kv, int l, const eng_batch *b, \
                           int H);                                                                   \
    void attention_##isa(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,     \
                         const eng_batch *b, int H, float scale);                                     \
    size_t attention_scratch_##isa(const eng_shape *shape);  /* floats a thread needs */              \
    void attend_##isa(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,         \
                      const eng_batch *b, int H, float scale);                                       \
    /* Rows from floats; x NULL: the floats stand in the rows already. */                             \
    void activate_##isa(eng_context *c, void *out, const float *x, int T, int C);
ISA_FUNCTIONS(base)
ISA_FUNCTIONS(avx2)
ISA_FUNCTIONS(avx512)
ISA_FUNCTIONS(neon)

/* The entries of an op table that do not depend on who multiplies. */
#define ISA_OPS(isa) ISA_OPS_OF(isa)
#define ISA_OPS_OF(isa)                                                                              \
    .open = open_##isa, .form = "panels-2", .own_bytes = panel_own_bytes, .prepare = panel_prepare,                      \
    .act_bytes = isa_act_bytes, .activate = activate_##isa, .rmsnorm = rmsnorm_##isa,                \
    .rope_append = rope_append_##isa, .attention = attend_##isa, .silu_mul = silu_mul_##isa

/* Every instruction set that multiplies and adds in one rounding computes the same bits; aarch64 always does. */
#if defined(__FMA__) || defined(__aarch64__)
#define ISA_NUMERICS "cpu-2"
#else
#define ISA_NUMERICS "cpu-2/nofma"
#endif

static inline size_t isa_act_bytes(const eng_context *c, int columns) {
    (void)c;
    return act_bytes(columns);
}

/* Rows that a task of an op by rows takes: all threads get some, and each gets the rows of which it has
 * neighbouring tasks in the other ops, attention's too, so that what it wrote is in its own cache. */
static inline int isa_rows_a_task(const eng_context *c, int T) {
    int rows = (T + eng_team_threads(c->team) - 1) / eng_team_threads(c->team);
    return rows < 1 ? 1 : rows < 8 ? rows : 8;
}

/* Floats a thread needs: sixteen rows of float weights, or amx.c's workplace, or what attention lays out. */
enum { ISA_WORKPLACE = 16384 };

static inline size_t isa_scratch(const eng_shape *shape, size_t attention) {
    size_t product = 16 * (size_t)eng_cpu_widest(shape) + ISA_WORKPLACE;
    return product > attention ? product : attention;
}

#endif
