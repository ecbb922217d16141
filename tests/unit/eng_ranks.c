/* eng_ranks.c -- a model shared by ranks: every weight has its place, the logits are those of the model alone
 * within a bound, and the same bits however the rows come; what rank 0 does the others follow.
 *
 * Ranks are threads here, each with a model of its own over the same file. */
#include "collective/collective.h"
#include "engine/model.h"
#include "tests/unit/tiny_gguf.h"
#include <pthread.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <unistd.h>

enum { PAGES = 16, P = 16, COUNT = 70, V = 130, ROWS = 96, D = 192 };

/* ---- shares -------------------------------------------------------------------------------------- */

/* Each rank begins where the one before ends; K may repeat where ranks share a group. */
static void check_shares(const eng_shape *s, int ranks) {
    eng_share all[COLL_RANKS_MAX];
    error err = {.text = ""};
    int heads = 0, ffn = 0, vocab = 0;
    if (eng_share_all(s, ranks, all, &err) != ST_OK) fail_msg("%d ranks: %s", ranks, err.text);
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(all[r].rank, r);
        assert_int_equal(all[r].heads_first, heads);
        assert_int_equal(all[r].ffn_first, ffn);
        assert_int_equal(all[r].vocab_first, vocab);
        assert_true(all[r].heads >= 1 && all[r].ffn >= 32 && all[r].ffn % 32 == 0 && all[r].vocab % 16 == (r + 1 < ranks ? 0 : s->V % 16));
        eng_pages kv = {.K = all[r].kv, .group = s->H / s->K, .skip = all[r].heads_first - all[r].kv_first * (s->H / s->K)};
        for (int i = 0; i < all[r].heads; i++) {
            int k = (all[r].heads_first + i) / kv.group - all[r].kv_first;
            assert_in_range(k, 0, kv.K - 1);
            assert_in_range(i, eng_pages_head(&kv, k, all[r].heads), eng_pages_head(&kv, k + 1, all[r].heads) - 1);
        }
        heads += all[r].heads;
        ffn += all[r].ffn;
        vocab += all[r].vocab;
    }
    assert_true(heads == s->H && ffn == s->F && vocab == s->V);
}

static void shares_cover_the_model(void **state) {
    (void)state;
    static const eng_shape shapes[] = {
        {.L = 30, .D = 576, .H = 9, .K = 3, .h = 64, .F = 1536, .V = 49152},
        {.L = 32, .D = 4096, .H = 32, .K = 8, .h = 128, .F = 14336, .V = 128256},
        {.L = 2, .D = 2048, .H = 32, .K = 4, .h = 64, .F = 5632, .V = 32000},
        {.L = 2, .D = 512, .H = 16, .K = 1, .h = 32, .F = 1024, .V = 259},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int ranks = 1; ranks <= COLL_RANKS_MAX && ranks <= shapes[i].H; ranks++) check_shares(&shapes[i], ranks);
    /* Ranks meet between attention and FFN: each is shared as evenly as it can be. */
    eng_share all[2];
    assert_int_equal(eng_share_all(&shapes[0], 2, all, NULL), ST_OK);
    assert_true(all[0].heads == 4 && all[1].heads == 5 && all[0].kv == 2 && all[1].kv_first == 1 && all[0].ffn == all[1].ffn);
}

static void what_cannot_be_shared_is_refused(void **state) {
    (void)state;
    eng_share all[COLL_RANKS_MAX];
    error err;
    eng_shape s = {.L = 1, .D = 64, .H = 4, .K = 2, .h = 16, .F = 96, .V = 64};
    assert_int_equal(eng_share_all(&s, 5, all, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "heads"));
    assert_int_equal(eng_share_all(&s, 4, all, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "FFN"));
    assert_int_equal(eng_share_all(&s, 3, all, &err), ST_UNSUPPORTED);   /* a head of 16 columns */
    assert_non_null(strstr(err.text, "multiple of 32"));
    assert_int_equal(eng_share_all(&s, 2, all, &err), ST_OK);
}

/* ---- the model ----------------------------------------------------------------------------------- */

typedef struct job {
    const tiny_gguf *file;
    const char *isa;
    int rank, ranks, chunk, heard;
    bool leaves;                 /* without a word */
    uint64_t id;
    pthread_t thread;
    float logits[COUNT * V];
    status s;
    error err;
} job;

static void told(void *ctx, const void *note, size_t bytes) {
    job *j = ctx;
    if (bytes == 5 && memcmp(note, "hello", 5) == 0) j->heard++;
}

static void asked(void *ctx, void *answer, size_t bytes) {
    job *j = ctx;
    if (bytes == 7) memcpy(answer, (char[7]){(char)j->rank, (char)j->heard}, 7);
}

/* Every rank has heard each hello, in order with the steps. */
static status talk(job *j, eng_model *m) {
    char answers[4 * 7];
    memset(answers, 9, sizeof answers);
    TRY(eng_tell(m, "hello", 5, &j->err));
    TRY(eng_ask(m, answers, 7, &j->err));
    for (int r = 1; r < j->ranks; r++)
        if (answers[r * 7] != r || answers[r * 7 + 1] != j->heard + 1 || answers[r * 7 + 6] != 0) return ST_INTERNAL;
    j->heard++;
    return answers[0] == 9 ? ST_OK : ST_INTERNAL;
}

static status run(job *j, eng_model *m, eng_kv *kv) {
    int32_t tokens[COUNT], blocks[PAGES];
    const float *logits;
    eng_ear ear = {j, told, asked};
    if (j->rank) return j->s = eng_follow(m, kv, &ear, &j->err);
    for (int i = 0; i < COUNT; i++) tokens[i] = (i * 37 + i * i % 7) % V;
    for (int i = 0; i < PAGES; i++) blocks[i] = PAGES - 1 - i;
    for (int at = 0; at < COUNT; at += j->chunk) {
        int n = COUNT - at < j->chunk ? COUNT - at : j->chunk;
        eng_rows rows = {tokens + at, n, at, blocks, n};
        TRY(eng_step(m, kv, &rows, 1, &logits, &j->err));
        memcpy(j->logits + (size_t)at * V, logits, (size_t)n * V * sizeof *logits);
        TRY(talk(j, m));
        if (at) continue;
        eng_kv_copy(kv, 0, blocks[0], P);        /* copy on write: the first page goes elsewhere */
        blocks[0] = 0;
        eng_rows wrong = {(int32_t[]){V}, 1, at + n, blocks, 1};
        if (eng_step(m, kv, &wrong, 1, &logits, &j->err) != ST_BAD_INPUT) return ST_INTERNAL;    /* nobody else hears of it */
    }
    return j->leaves ? ST_OK : eng_dismiss(m, &j->err);
}

static void *be_rank(void *arg) {
    job *j = arg;
    coll *group = NULL;
    eng_gguf *g = NULL;
    eng_model *m = NULL;
    eng_kv *kv = NULL;
    coll_options ranks = {.transport = j->ranks > 1 ? "shm" : "single", .rank = j->rank, .ranks = j->ranks, .id = j->id,
                          .open_ms = 20000, .timeout_ms = j->leaves ? 1000 : 60000};
    status s = coll_open(&ranks, &group, &j->err);
    eng_options o = {.isa = j->isa, .threads = 1, .tokens_max = ROWS, .logits_max = ROWS, .group = group};
    if (s == ST_OK) s = eng_gguf_open_memory(j->file->data, j->file->bytes, "tiny", &g, &j->err);
    if (s == ST_OK) s = eng_model_open(g, &o, &m, &j->err);
    if (s == ST_OK) s = eng_kv_create(m, PAGES, P, ENG_KV_F32, &kv, &j->err);
    if (s == ST_OK) s = run(j, m, kv);
    eng_kv_destroy(kv);
    eng_model_close(m);
    eng_gguf_close(g);
    coll_close(group);
    j->s = s;
    return NULL;
}

static void run_group(job *jobs, const tiny_gguf *file, const char *isa, int ranks, int chunk) {
    static uint64_t id;
    id += ((uint64_t)getpid() << 32) + 1;
    for (int r = 0; r < ranks; r++) {
        jobs[r] = (job){.file = file, .isa = isa, .rank = r, .ranks = ranks, .chunk = chunk, .id = id};
        assert_int_equal(pthread_create(&jobs[r].thread, NULL, be_rank, &jobs[r]), 0);
    }
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(pthread_join(jobs[r].thread, NULL), 0);
        if (jobs[r].s != ST_OK) fail_msg("rank %d of %d: %s", r, ranks, jobs[r].err.text);
    }
}

static void ranks_compute_what_one_does(void **state) {
    (void)state;
    static job alone[1], jobs[4], again[4];
    static const struct { eng_type type; int H, K; } models[] = {
        {ENG_F32, 6, 3}, {ENG_Q4_1, 6, 3}, {ENG_Q8_0, 6, 2}, {ENG_F16, 6, 1}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (int b = 0; eng_ops_at(b); b++) {
            const char *isa = eng_ops_at(b)->name;
            tiny_gguf file = tiny_gguf_build(&(tiny_options){.D = D, .H = models[i].H, .K = models[i].K, .F = 320, .V = V,
                                                             .type = models[i].type, .own_output = i & 1});
            run_group(alone, &file, isa, 1, COUNT);
            for (int ranks = 2; ranks <= 4; ranks++) {
                float worst = 0, largest = 0;
                run_group(jobs, &file, isa, ranks, COUNT);
                run_group(again, &file, isa, ranks, ranks == 3 ? 1 : 17);
                assert_memory_equal(jobs[0].logits, again[0].logits, sizeof jobs[0].logits);
                for (int k = 0; k < COUNT * V; k++) {
                    worst = fmaxf(worst, fabsf(jobs[0].logits[k] - alone[0].logits[k]));
                    largest = fmaxf(largest, fabsf(alone[0].logits[k]));
                }
                bool floats = models[i].type == ENG_F32 || models[i].type == ENG_F16;
                float bound = floats ? 2e-4f : models[i].type == ENG_Q8_0 ? 8e-3f : 2e-3f;       /* as in eng_step.c */
                if (!(largest > 0.1f && worst <= bound * largest))
                    fail_msg("%s, type %d, %d ranks: %g of %g", isa, models[i].type, ranks, (double)worst, (double)largest);
            }
            tiny_gguf_free(&file);
        }
}

/* Rank 0 goes: the others are told by the group. */
static void followers_notice_that_nobody_leads(void **state) {
    (void)state;
    static job jobs[3];
    tiny_gguf file = tiny_gguf_build(&(tiny_options){.D = D, .H = 6, .K = 3, .F = 320, .V = V});
    uint64_t id = ((uint64_t)getpid() << 32) + (1 << 30);
    for (int r = 0; r < 3; r++) {
        jobs[r] = (job){.file = &file, .isa = "auto", .rank = r, .ranks = 3, .chunk = 16, .id = id, .leaves = true};
        assert_int_equal(pthread_create(&jobs[r].thread, NULL, be_rank, &jobs[r]), 0);
    }
    for (int r = 0; r < 3; r++) assert_int_equal(pthread_join(jobs[r].thread, NULL), 0);
    assert_int_equal(jobs[0].s, ST_OK);
    for (int r = 1; r < 3; r++)
        if (jobs[r].s != ST_PEER_LOST && jobs[r].s != ST_DEADLINE) fail_msg("rank %d: %s", r, status_name(jobs[r].s));
    tiny_gguf_free(&file);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(shares_cover_the_model),
                                       cmocka_unit_test(what_cannot_be_shared_is_refused),
                                       cmocka_unit_test(ranks_compute_what_one_does),
                                       cmocka_unit_test(followers_notice_that_nobody_leads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
