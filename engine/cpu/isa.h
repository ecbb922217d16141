/* isa.h -- names and compiler settings of the files that are compiled once for each instruction set:
 * product.c, float.c, rows.c, attention.c and table.c. CMake sets ISA (avx512, avx2, base); ISA_NAME(f)
 * is then f_avx512 and so on, so that all of them stand in one executable; ops.c picks at run time. */
#ifndef BATON_ENGINE_CPU_ISA_H
#define BATON_ENGINE_CPU_ISA_H

#include "engine/cpu/cpu.h"

#define ISA_PASTE(name, isa) name##_##isa
#define ISA_EXPAND(name, isa) ISA_PASTE(name, isa)
#define ISA_NAME(name) ISA_EXPAND(name, ISA)
#define ISA_TEXT_OF(isa) #isa
#define ISA_TEXT_EXPAND(isa) ISA_TEXT_OF(isa)
#define ISA_TEXT ISA_TEXT_EXPAND(ISA)

/* What one instruction set offers to the tables in table.c and amx.c. */
#define ISA_FUNCTIONS(isa)                                                                           \
    void rmsnorm_##isa(eng_context *c, void *out, const float *x, const float *weight, float eps,     \
                       int T, int D);                                                                \
    void silu_mul_##isa(eng_context *c, void *out, const float *gu, int T, int F);                    \
    void add_##isa(eng_context *c, float *x, const float *y, int T, int D);                           \
    void matmul_##isa(eng_context *c, float *y, const void *x, const eng_matrix *w, int T);           \
    void attention_##isa(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,     \
                         const eng_batch *b, int H, float scale);                                     \
    size_t attention_scratch_##isa(const eng_shape *shape);  /* floats a thread needs */              \
    size_t product_scratch_##isa(const eng_shape *shape);
ISA_FUNCTIONS(base)
ISA_FUNCTIONS(avx2)
ISA_FUNCTIONS(avx512)

#endif
