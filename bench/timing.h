/* timing.h -- a table of ops that times another one. Internal to bench/. */
#ifndef BATON_BENCH_TIMING_H
#define BATON_BENCH_TIMING_H

#include "engine/model.h"

typedef enum bench_op_index {
    BENCH_OP_QKV, BENCH_OP_ATTN_OUT, BENCH_OP_GATE_UP, BENCH_OP_DOWN, BENCH_OP_OUTPUT,
    BENCH_OP_ATTENTION, BENCH_OP_RMSNORM, BENCH_OP_ROPE, BENCH_OP_SILU, BENCH_OP_EMBED,
    BENCH_OP_GATHER, BENCH_OP_COUNT
} bench_op_index;

extern const char *const bench_op_names[BENCH_OP_COUNT];

/* From now until stop the model's ops add up their time; one model at a time. */
void bench_timing_start(eng_model *m);
void bench_timing_stop(void);
void bench_timing_clear(void);
int64_t bench_timing_ns(bench_op_index op);

#endif
