/* table.c -- the op table of one instruction set. */
#include "engine/cpu/isa.h"

static status open_isa(int threads, const eng_shape *shape, eng_context **out, error *err) {
    size_t product = ISA_NAME(product_scratch)(shape), attention = ISA_NAME(attention_scratch)(shape);
    return eng_cpu_open(threads, product > attention ? product : attention, "cpu-1/" ISA_TEXT, out, err);
}

extern const eng_ops ISA_NAME(eng_cpu);
const eng_ops ISA_NAME(eng_cpu) = {
    .name = ISA_TEXT,
    .open = open_isa,
    ENG_CPU_SHARED_OPS,
    .rmsnorm = ISA_NAME(rmsnorm),
    .matmul = ISA_NAME(matmul),
    .attention = ISA_NAME(attention),
    .silu_mul = ISA_NAME(silu_mul),
    .add = ISA_NAME(add),
};
