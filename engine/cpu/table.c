/* table.c -- the op table of one instruction set. */
#include "engine/cpu/isa.h"

status ISA_NAME(open)(const eng_options *o, const eng_shape *shape, eng_context **out, error *err) {
    return eng_cpu_open(o->threads, isa_scratch(shape, ISA_NAME(attention_scratch)(shape)), ISA_NUMERICS, out, err);
}

void ISA_NAME(attend)(eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l,
                      const eng_batch *b, int H, float scale) {
    ISA_NAME(attention)(c, out, qkv, kv, l, b, H, scale);
    ISA_NAME(activate)(c, out, NULL, b->T, H * kv->h);
}

extern const eng_ops ISA_NAME(eng_cpu);
const eng_ops ISA_NAME(eng_cpu) = {
    .name = ISA_TEXT,
    ENG_CPU_SHARED_OPS,
    ISA_OPS(ISA),
    .matmul = ISA_NAME(matmul),
};
