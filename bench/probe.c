/* probe.c -- runs the probes: the machine's limits, measured beside the model on as many threads. */
#include "bench/probe.h"
#include "engine/team.h"
#include <assert.h>
#include <string.h>
#include <sys/mman.h>

enum { BUFFER_BYTES = 128 << 20, HUGE_BYTES = 2 << 20 };

static bool always(void) { return true; }
#if defined(__x86_64__)
static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool has_avx512f(void) { return __builtin_cpu_supports("avx512f"); }
static bool has_vnni(void) { return has_avx512f() && __builtin_cpu_supports("avx512vnni"); }
#endif

typedef struct probe {
    bench_kind kind;
    const char *name;
    bool (*supported)(void);
    double (*run)(const bench_job *job);
} probe;

static const probe table[] = {
#if defined(__x86_64__)
    {BENCH_INT8, "amx tdpbusd", bench_int8_has_amx, bench_int8_amx},
    {BENCH_INT8, "avx512 vpdpbusd", has_vnni, bench_int8_avx512},
    {BENCH_INT8, "avx2 vpmaddubsw", has_avx2, bench_int8_avx2},
#endif
    {BENCH_INT8, "portable C", always, bench_int8_portable},
#if defined(__x86_64__)
    {BENCH_FLOAT, "avx512 fma", has_avx512f, bench_float_avx512},
    {BENCH_FLOAT, "avx2 fma", has_avx2, bench_float_avx2},
#endif
    {BENCH_FLOAT, "portable C", always, bench_float_portable},
    {BENCH_READ, "1 stream", always, bench_read_1},
    {BENCH_READ, "4 streams, prefetch", always, bench_read_4},
    {BENCH_READ, "8 streams, prefetch", always, bench_read_8},
};
enum { TABLE_COUNT = sizeof table / sizeof *table };
static_assert(sizeof table / sizeof *table <= (size_t)BENCH_LIMITS_MAX, "a report holds them all");

typedef struct team_job {
    const probe *p;
    bench_job job;               /* of every thread, but for the buffer's start */
    double work[256];            /* by task */
} team_job;

static void run_task(void *ctx, int task, int thread) {
    team_job *t = ctx;
    bench_job mine = t->job;
    (void)thread;
    mine.buffer += (size_t)task * mine.bytes;
    t->work[task] = t->p->run(&mine);
}

/* 10^9 a second of all threads together; *ms: how long it took. */
static double run_team(eng_team *team, team_job *t, double *ms) {
    int64_t from = clock_now_us();
    double work = 0;
    eng_team_run(team, eng_team_threads(team), run_task, t);
    int64_t us = clock_now_us() - from;
    for (int i = 0; i < eng_team_threads(team); i++) work += t->work[i];
    *ms = (double)(us ? us : 1) / 1e3;
    return work / *ms / 1e6;
}

static bench_spread measure(eng_team *team, team_job *t, int ms_least) {
    double samples[BENCH_REPEATS], ms = 0;
    for (t->job.rounds = 1;; t->job.rounds *= 2) { /* warms up, too */
        run_team(team, t, &ms);
        if (ms >= ms_least) break;
    }
    for (int i = 0; i < BENCH_REPEATS; i++) samples[i] = run_team(team, t, &ms);
    return bench_spread_of(samples, BENCH_REPEATS);
}

status bench_probe_all(int threads, int ms, bench_limit *out, int *count, error *err) {
    eng_team *team;
    TRY(eng_team_create(threads, &team, err));
    char *memory = mem_alloc((size_t)BUFFER_BYTES + HUGE_BYTES);
    if (!memory) {
        eng_team_destroy(team);
        return error_set(err, ST_NO_MEMORY, "no memory for a buffer of %d bytes", BUFFER_BYTES);
    }
    char *buffer = memory + (HUGE_BYTES - (uintptr_t)memory % HUGE_BYTES) % HUGE_BYTES;
    madvise(buffer, BUFFER_BYTES, MADV_HUGEPAGE); /* a wish: the limit shall not be the page table's */
    memset(buffer, 1, BUFFER_BYTES);
    size_t each = (size_t)BUFFER_BYTES / (size_t)eng_team_threads(team) / 64 * 64;
    *count = 0;
    for (int i = 0; i < TABLE_COUNT; i++) {
        if (!table[i].supported()) continue;
        team_job t = {.p = &table[i], .job = {.buffer = buffer, .bytes = each}};
        out[(*count)++] = (bench_limit){table[i].kind, table[i].name, measure(team, &t, ms)};
    }
    mem_free(memory);
    eng_team_destroy(team);
    return ST_OK;
}
