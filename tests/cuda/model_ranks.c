/* engine/cuda/ranks.c: ranks over NCCL compute what one GPU does, within a bound, and the same bits however rows come and
 * whichever way a sum takes; KV moves between tensor-parallel shapes; a rank that does not come hangs nobody.
 *
 * Ranks are threads, each with an emulated device of its own (EMU_DEVICES). */
#include "tests/cuda/model_rig.h"
#include <math.h>
#include <pthread.h>
#include <unistd.h>

enum { COUNT = 14 };

typedef struct job {
    int rank, chunk, timeout_ms;
    eng_type type;
    int H, K;                    /* 0: RIG_H, RIG_K */
    uint64_t id;
    bool shares;                 /* sums by shares, however few numbers */
    bool hangs;                  /* rank 1 joins and never answers */
    pthread_t thread;
    float logits[COUNT * RIG_V];
    char *wire;                  /* gets this rank's KV in canonical order, if not NULL */
    uint64_t launches;
    status s;
    error err;
} job;

static void number_pages(int32_t *blocks) {
    for (int i = 0; i < RIG_PAGES; i++) blocks[i] = RIG_PAGES - 1 - i;
}

static status lead(job *j, rig *r) {
    int32_t tokens[COUNT], blocks[RIG_PAGES];
    const float *logits;
    uint64_t before = cuda_graph_launches();
    rig_prompt(tokens, COUNT, 6);
    number_pages(blocks);
    for (int at = 0; at < COUNT; at += j->chunk) {
        int n = COUNT - at < j->chunk ? COUNT - at : j->chunk;
        eng_rows rows = {tokens + at, n, at, blocks, n};
        TRY(eng_step(r->m, r->kv, &rows, 1, &logits, &j->err));
        memcpy(j->logits + at * RIG_V, logits, (size_t)n * RIG_V * sizeof *logits);
    }
    j->launches = cuda_graph_launches() - before;
    return eng_dismiss(r->m, &j->err);
}

static void pack_all(job *j, rig *r) {
    int32_t blocks[RIG_PAGES];
    eng_kv_box box = {.layers = 2, .heads = r->kv->pages.K, .tokens = COUNT, .type = ENG_KV_F32};
    number_pages(blocks);
    eng_kv_pack(r->kv, blocks, &box, j->wire);
}

/* Hears rank 0's plan and does not do it; waits for the next. */
static status hang(job *j, coll *group) {
    int32_t head[2], plan[4 * COUNT], next[2];
    TRY(coll_broadcast(group, head, sizeof head, &j->err));
    TRY(coll_broadcast(group, plan, (size_t)head[1] * sizeof *plan, &j->err));
    return coll_broadcast(group, next, sizeof next, &j->err);
}

static void *be_rank(void *arg) {
    job *j = arg;
    rig r = {0};
    coll *group = NULL;
    coll_options ranks = {.transport = "shm", .rank = j->rank, .ranks = 2, .id = j->id,
                          .open_ms = 60000, .timeout_ms = j->timeout_ms};
    status s = coll_open(&ranks, &group, &j->err);
    if (s == ST_OK) s = rig_open(&(rig_options){.device = "cuda", .type = j->type, .H = j->H, .K = j->K, .kv = ENG_KV_F16, .group = group}, &r, &j->err);
    if (s == ST_OK && j->shares) r.m->c->sum_few = 0;
    if (s == ST_OK) s = j->rank == 0 ? lead(j, &r) : j->hangs ? hang(j, group) : eng_follow(r.m, r.kv, NULL, &j->err);
    if (s == ST_OK && j->wire) pack_all(j, &r);
    rig_close(&r);
    coll_close(group);
    j->s = s;
    return NULL;
}

static void run_group(job jobs[2], job like) {
    static uint64_t id;
    like.id = id += ((uint64_t)getpid() << 32) + 1;
    if (!like.timeout_ms) like.timeout_ms = 120000;
    for (int r = 0; r < 2; r++) {
        char *wire = jobs[r].wire;
        jobs[r] = like;
        jobs[r].rank = r;
        jobs[r].wire = wire;
        assert_int_equal(pthread_create(&jobs[r].thread, NULL, be_rank, &jobs[r]), 0);
    }
    for (int r = 0; r < 2; r++) assert_int_equal(pthread_join(jobs[r].thread, NULL), 0);
}

static void must_end_well(const job jobs[2]) {
    for (int r = 0; r < 2; r++)
        if (jobs[r].s != ST_OK) fail_msg("rank %d: %s", r, jobs[r].err.text);
}

static void two_ranks_compute_what_one_does(void **state) {
    (void)state;
    static const struct { eng_type type; int H, K; } models[] = {{ENG_Q4_1, 4, 2}, {ENG_F32, 6, 3}};     /* 3: ranks share the middle one */
    static job jobs[2], again[2];
    static float alone[COUNT * RIG_V];
    int32_t tokens[COUNT];
    rig_prompt(tokens, COUNT, 6);
    for (size_t t = 0; t < sizeof models / sizeof *models; t++) {
        eng_type type = models[t].type;
        rig r = rig_of(&(rig_options){.device = "cuda", .type = type, .H = models[t].H, .K = models[t].K, .kv = ENG_KV_F16});
        rig_run(&r, tokens, COUNT, COUNT, alone);
        rig_close(&r);
        run_group(jobs, (job){.type = type, .H = models[t].H, .K = models[t].K, .chunk = COUNT});
        must_end_well(jobs);
        float worst = 0, largest = 0;
        for (int i = 0; i < COUNT * RIG_V; i++) {
            worst = fmaxf(worst, fabsf(alone[i] - jobs[0].logits[i]));
            largest = fmaxf(largest, fabsf(alone[i]));
        }
        if (!(worst <= (type == ENG_F32 ? 2e-4f : 2e-3f) * largest))        /* as in model_step.c */
            fail_msg("type %d: %g of %g", type, (double)worst, (double)largest);
        run_group(again, (job){.type = type, .H = models[t].H, .K = models[t].K, .chunk = 1, .shares = t == 0});
        must_end_well(again);
        assert_memory_equal(jobs[0].logits, again[0].logits, sizeof jobs[0].logits);
        assert_true(again[0].launches >= COUNT - 1);                    /* both ranks' are counted */
    }
}

/* A sum's two ways, any count: the bits of ((x0 + x1)). */
typedef struct summing {
    int rank;
    uint64_t id;
    pthread_t thread;
    float few[RIG_ROWS * RIG_D], many[RIG_ROWS * RIG_D];
    status s;
    error err;
} summing;

static float value(int rank, int i) { return (float)((i * 37 + rank * 101) % 1009 - 500) / (float)(rank ? 7 : 1024); }

static status sum_both(summing *j, rig *r, coll *group) {
    const eng_ops *op = r->m->op;
    eng_context *c = r->m->c;
    static const int rows[] = {1, 3, RIG_ROWS};
    float *x[] = {j->few, j->many}, *y = op->alloc(c, sizeof j->few);
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++)
        for (int way = 0; way < 2; way++) {
            c->sum_few = way ? 0 : CUDA_SUM_FEW;
            for (int i = 0; i < RIG_ROWS * RIG_D; i++) x[way][i] = value(j->rank, i);
            op->copy_in(c, y, x[way], sizeof j->few);
            TRY(op->sum(c, group, y, rows[n], 31, &j->err));             /* 31: shares are of unlike use */
            if (cudaStreamSynchronize(c->compute) != cudaSuccess) return ST_DEVICE;
            if (cudaMemcpy(x[way], y, (size_t)rows[n] * 31 * 4, cudaMemcpyDeviceToHost) != cudaSuccess) return ST_DEVICE;
            for (int i = 0; i < rows[n] * 31; i++)
                if (x[way][i] != value(0, i) + value(1, i))
                    return error_set(&j->err, ST_INTERNAL, "%d rows, way %d, number %d", rows[n], way, i);
        }
    op->free(c, y);
    return ST_OK;
}

static void *sum_as_rank(void *arg) {
    summing *j = arg;
    rig r = {0};
    coll *group = NULL;
    coll_options ranks = {.transport = "shm", .rank = j->rank, .ranks = 2, .id = j->id,
                          .open_ms = 60000, .timeout_ms = 120000};
    j->s = coll_open(&ranks, &group, &j->err);
    if (j->s == ST_OK) j->s = rig_open(&(rig_options){.device = "cuda", .type = ENG_Q4_0, .group = group}, &r, &j->err);
    if (j->s == ST_OK) j->s = sum_both(j, &r, group);
    rig_close(&r);
    coll_close(group);
    return NULL;
}

static void sums_are_in_rank_order_either_way(void **state) {
    (void)state;
    static summing jobs[2];
    for (int r = 0; r < 2; r++) {
        jobs[r] = (summing){.rank = r, .id = ((uint64_t)getpid() << 32) + (1 << 29)};
        assert_int_equal(pthread_create(&jobs[r].thread, NULL, sum_as_rank, &jobs[r]), 0);
    }
    for (int r = 0; r < 2; r++) assert_int_equal(pthread_join(jobs[r].thread, NULL), 0);
    for (int r = 0; r < 2; r++)
        if (jobs[r].s != ST_OK) fail_msg("rank %d: %s", r, jobs[r].err.text);
}

/* Two ranks' heads into one GPU's pages: where it goes on, its logits are those of the two within their bound; and each
 * rank's share of its KV is what the ranks packed, so the way back is the same boxes. */
static void kv_moves_between_shapes(void **state) {
    (void)state;
    enum { HEAD = 2 * COUNT * 32 * 4 };          /* K and V of one head and layer */
    static job jobs[2];
    static char wire[2][2 * HEAD], back[2 * HEAD];
    int32_t tokens[COUNT], blocks[RIG_PAGES];
    rig_prompt(tokens, COUNT, 6);
    number_pages(blocks);
    for (int r = 0; r < 2; r++) jobs[r].wire = wire[r];
    run_group(jobs, (job){.type = ENG_Q8_0, .chunk = COUNT});
    must_end_well(jobs);
    rig one = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q8_0, .kv = ENG_KV_F16, .P = 8});
    for (int r = 0; r < 2; r++) {
        eng_kv_box box = {.layers = 2, .head_first = r, .heads = 1, .tokens = COUNT, .type = ENG_KV_F32};
        eng_kv_unpack(one.kv, blocks, &box, wire[r]);
    }
    const float *logits = rig_step(&one, &(eng_rows){tokens + COUNT - 1, 1, COUNT - 1, blocks, 1}, 1);
    float worst = 0, largest = 0;
    for (int i = 0; i < RIG_V; i++) {
        float there = jobs[0].logits[(COUNT - 1) * RIG_V + i];
        worst = fmaxf(worst, fabsf(logits[i] - there));
        largest = fmaxf(largest, fabsf(there));
    }
    if (!(worst <= 2e-3f * largest)) fail_msg("%g of %g", (double)worst, (double)largest);
    for (int r = 0; r < 2; r++) {                /* all but the last token, which was computed anew */
        eng_kv_box box = {.layers = 1, .head_first = r, .heads = 1, .tokens = COUNT - 1, .type = ENG_KV_F32};
        eng_kv_pack(one.kv, blocks, &box, back);
        assert_memory_equal(back, wire[r], (COUNT - 1) * 32 * 4);
    }
    rig_close(&one);
    for (int r = 0; r < 2; r++) jobs[r].wire = NULL;
}

/* Rank 1 is there and does not take part: rank 0's step ends after the time-out, and rank 1 hears of it. */
static void a_rank_that_hangs_is_given_up(void **state) {
    (void)state;
    static job jobs[2];
    run_group(jobs, (job){.type = ENG_Q4_0, .chunk = COUNT, .timeout_ms = 1500, .hangs = true});
    if (jobs[0].s != ST_DEADLINE) fail_msg("rank 0: %s", status_name(jobs[0].s));
    assert_non_null(strstr(jobs[0].err.text, "other ranks did not take part"));
    if (jobs[1].s != ST_PEER_LOST && jobs[1].s != ST_DEADLINE) fail_msg("rank 1: %s", status_name(jobs[1].s));
}

int main(void) {
    setenv("EMU_DEVICES", "2", 1);
    log_setup("test", LOG_WARN);
    const struct CMUnitTest tests[] = {cmocka_unit_test(two_ranks_compute_what_one_does),
                                       cmocka_unit_test(sums_are_in_rank_order_either_way),
                                       cmocka_unit_test(kv_moves_between_shapes),
                                       cmocka_unit_test(a_rank_that_hangs_is_given_up)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
