/* team.c -- threads that work on one op at a time.
 *
 * An op is cut into tasks. One 64-bit word says what is to do: its upper half numbers the op, its
 * lower half counts the tasks nobody has taken yet. Taking a task is one compare-and-swap that lowers
 * the count; as the op's number is in the same word, a thread that slept through an op can never take
 * a task of another one by mistake. The caller works too and waits only for tasks that were taken:
 * a thread the system does not run at the moment delays nobody.
 *
 *   RUNNING  -> SPINNING   [worker]         no task is left
 *   SPINNING -> RUNNING    [take_one]       a new op stands in the word: some microseconds
 *   SPINNING -> SLEEPING   [sleep_till_op]  nothing came for SPINS rounds: the step is over
 *   SLEEPING -> SPINNING   [wake]           the next op has begun
 *
 * No wake-up is lost: a worker counts itself as sleeper and then looks at the word, the caller writes
 * the word and then looks at the sleepers, all sequentially consistent, so one of them sees the other.
 *
 * work and ctx are plain fields: they are written before the word and read only by a thread that
 * holds a task of that very op, and the caller returns only when no task is held. */
#include "engine/team.h"
#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SPINS = 3000, THREADS_MAX = 256 };

struct eng_team {
    _Atomic uint64_t word;                   /* op number << 32 | tasks not taken */
    char apart[64];                          /* word and done are written by all, each in its line */
    _Atomic int done;                        /* tasks of this op that are finished */
    char apart_too[64];
    _Atomic int sleepers;
    _Atomic bool leaving;
    void (*work)(void *ctx, int task, int thread);
    void *ctx;
    int threads;                             /* with the caller */
    int started;
    pthread_mutex_t lock;                    /* for sleeping only */
    pthread_cond_t op_begins;
    struct seat {
        eng_team *team;
        int thread;
        pthread_t id;
    } seat[];
};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Takes and does one task; false: none is left. */
static bool take_one(eng_team *t, int thread) {
    uint64_t word = atomic_load(&t->word);
    while ((uint32_t)word) {
        if (!atomic_compare_exchange_weak(&t->word, &word, word - 1)) continue;
        t->work(t->ctx, (int)(uint32_t)word - 1, thread);
        atomic_fetch_add(&t->done, 1);
        return true;
    }
    return false;
}

static bool idle(eng_team *t) {
    return (uint32_t)atomic_load(&t->word) == 0 && !atomic_load(&t->leaving);
}

static void sleep_till_op(eng_team *t) {
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleepers, 1);
    while (idle(t)) pthread_cond_wait(&t->op_begins, &t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
}

static void wake(eng_team *t) {
    if (atomic_load(&t->sleepers) == 0) return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->op_begins);
    pthread_mutex_unlock(&t->lock);
}

static void *worker(void *arg) {
    struct seat *seat = arg;
    eng_team *t = seat->team;
    for (int spins = 0; !atomic_load(&t->leaving);) {
        if (take_one(t, seat->thread)) {
            spins = 0;
        } else if (++spins < SPINS) {
            relax();
        } else {
            sleep_till_op(t);
            spins = 0;
        }
    }
    return NULL;
}

void eng_team_run(eng_team *t, int tasks, void (*work)(void *ctx, int task, int thread), void *ctx) {
    assert(tasks >= 0);
    if (t->threads == 1 || tasks <= 1) {
        for (int i = 0; i < tasks; i++) work(ctx, i, 0);
        return;
    }
    t->work = work;
    t->ctx = ctx;
    atomic_store(&t->done, 0);
    uint64_t op = (atomic_load(&t->word) >> 32) + 1;
    atomic_store(&t->word, op << 32 | (uint32_t)tasks);
    wake(t);
    while (take_one(t, 0)) {
    }
    for (int spins = 0; atomic_load(&t->done) != tasks; spins++) {
        if (spins < SPINS) relax();
        else sched_yield();
    }
}

int eng_team_threads(const eng_team *t) { return t->threads; }

status eng_team_create(int threads, eng_team **out, error *err) {
    if (threads == 0) threads = eng_team_threads_allowed();
    if (threads < 1 || threads > THREADS_MAX)
        return error_set(err, ST_BAD_INPUT, "threads is %d, expected 0 to %d", threads, THREADS_MAX);
    eng_team *t = mem_zalloc(1, sizeof *t + (size_t)threads * sizeof(struct seat));
    if (!t) return error_set(err, ST_NO_MEMORY, "no memory for a team of %d threads", threads);
    t->threads = threads;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->op_begins, NULL);
    for (int i = 1; i < threads; i++) {
        t->seat[i] = (struct seat){.team = t, .thread = i};
        int failed = pthread_create(&t->seat[i].id, NULL, worker, &t->seat[i]);
        if (failed) {
            t->started = i;
            eng_team_destroy(t);
            return error_set(err, ST_NO_MEMORY, "cannot start thread %d of %d: %s", i + 1, threads,
                             strerror(failed));
        }
        pthread_setname_np(t->seat[i].id, "engine-team");
        t->started = i + 1;
    }
    *out = t;
    return ST_OK;
}

void eng_team_destroy(eng_team *t) {
    if (!t) return;
    atomic_store(&t->leaving, true);
    wake(t);
    for (int i = 1; i < t->started; i++) pthread_join(t->seat[i].id, NULL);
    pthread_cond_destroy(&t->op_begins);
    pthread_mutex_destroy(&t->lock);
    mem_free(t);
}

/* ---- how many threads ---------------------------------------------------------------------------- */

/* CPUs of one cgroup's quota, rounded up; 0: none set. cpu.max holds "QUOTA PERIOD" or "max PERIOD"
 * (kernel.org, cgroup-v2.rst). */
static int quota_of(const char *folder) {
    char path[600];
    long long quota = 0, period = 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", folder);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    int fields = fscanf(f, "%lld %lld", &quota, &period);
    fclose(f);
    if (fields != 2 || quota <= 0 || period <= 0) return 0;
    long long cpus = (quota + period - 1) / period;
    return cpus > THREADS_MAX ? THREADS_MAX : (int)cpus;
}

/* The tightest quota from the process's cgroup up to the root. */
static int quota_allowed(void) {
    char line[512];
    int least = 0;
    FILE *f = fopen("/proc/self/cgroup", "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, "0::", 3) != 0) continue;
        char *folder = line + 3;
        folder[strcspn(folder, "\n")] = 0;
        for (;;) {
            int cpus = quota_of(folder);
            if (cpus && (!least || cpus < least)) least = cpus;
            char *slash = strrchr(folder, '/');
            if (!slash) break;
            *slash = 0;
        }
    }
    fclose(f);
    return least;
}

int eng_team_threads_allowed(void) {
    cpu_set_t set;
    int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    int quota = quota_allowed();
    if (quota && quota < cpus) cpus = quota;
    return cpus < 1 ? 1 : cpus > THREADS_MAX ? THREADS_MAX : cpus;
}
