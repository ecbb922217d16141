/* timing.c -- a table of ops that times another one: a copy of the model's, in which each function reads
 * the clock, does what the model's own does, and reads the clock again. Nothing in the engine knows.
 * A reading costs some 30 ns, a step of 30 layers has some 700; throughput is measured without. */
#include "bench/timing.h"
#include <assert.h>
#include <time.h>

const char *const bench_op_names[BENCH_OP_COUNT] = {
    "qkv", "attn_out", "gate_up", "down", "output", "attention",
    "rmsnorm", "rope_append", "silu_mul", "embed", "gather",
};

static struct {
    eng_model *m;
    const eng_ops *real;
    eng_ops table;
    int64_t ns[BENCH_OP_COUNT];
} timed;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Which product it is: the matrix lies in a layer at its field's offset, or is the output. */
static bench_op_index product_of(const eng_matrix *w) {
    if (w == &timed.m->output) return BENCH_OP_OUTPUT;
    switch ((size_t)((const char *)w - (const char *)timed.m->layer) % sizeof(eng_layer)) {
    case offsetof(eng_layer, qkv): return BENCH_OP_QKV;
    case offsetof(eng_layer, attn_out): return BENCH_OP_ATTN_OUT;
    case offsetof(eng_layer, gate_up): return BENCH_OP_GATE_UP;
    default: return BENCH_OP_DOWN;
    }
}

/* One function of the table: its name, what its time is added to, its parameters, what it passes on. */
#define TIMED(op, index, parameters, arguments)                                                     \
    static void timed_##op parameters {                                                             \
        int64_t from = now();                                                                       \
        timed.real->op arguments;                                                                   \
        timed.ns[index] += now() - from;                                                            \
    }

TIMED(embed, BENCH_OP_EMBED, (eng_context *c, float *x, const eng_matrix *w, const eng_batch *b),
      (c, x, w, b))
TIMED(gather, BENCH_OP_GATHER, (eng_context *c, float *out, const float *x, const eng_batch *b, int D),
      (c, out, x, b, D))
TIMED(rmsnorm, BENCH_OP_RMSNORM,
      (eng_context *c, void *out, const eng_norm *n), (c, out, n))
TIMED(matmul, product_of(w), (eng_context *c, float *y, const void *x, const eng_matrix *w, int T),
      (c, y, x, w, T))
TIMED(rope_append, BENCH_OP_ROPE,
      (eng_context *c, float *qkv, const eng_pages *kv, int l, const eng_batch *b, int H),
      (c, qkv, kv, l, b, H))
TIMED(attention, BENCH_OP_ATTENTION,
      (eng_context *c, void *out, const float *qkv, const eng_pages *kv, int l, const eng_batch *b, int H,
       float scale),
      (c, out, qkv, kv, l, b, H, scale))
TIMED(silu_mul, BENCH_OP_SILU, (eng_context *c, void *out, const float *gu, int T, int F),
      (c, out, gu, T, F))

void bench_timing_start(eng_model *m) {
    assert(!timed.m);
    timed.m = m;
    timed.real = m->op;
    timed.table = *m->op;
    timed.table.embed = timed_embed;
    timed.table.gather = timed_gather;
    timed.table.rmsnorm = timed_rmsnorm;
    timed.table.matmul = timed_matmul;
    timed.table.rope_append = timed_rope_append;
    timed.table.attention = timed_attention;
    timed.table.silu_mul = timed_silu_mul;
    m->op = &timed.table;
    bench_timing_clear();
}

void bench_timing_stop(void) {
    timed.m->op = timed.real;
    timed.m = NULL;
}

void bench_timing_clear(void) {
    for (int i = 0; i < BENCH_OP_COUNT; i++) timed.ns[i] = 0;
}

int64_t bench_timing_ns(bench_op_index op) { return timed.ns[op]; }
