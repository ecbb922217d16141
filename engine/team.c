/* team.c -- threads that work on one op at a time.
 *
 * One 64-bit word says what is to do: its upper half numbers the op, its lower half says how many
 * tasks it has. Each thread has a share of them: tasks [tasks*i/threads, tasks*(i+1)/threads). It
 * works off its own and then helps with the others', so a thread that the system does not run at
 * the moment delays nobody; the caller waits only for tasks that were taken.
 *
 * A share has a word of its own: the number of the op it was last taken from, and how many of its
 * tasks are left. With another op's number it is untouched: all are left. So beginning an op is one
 * store, and taking a task one compare-and-swap in a line that mostly its owner uses.
 *
 * A thread that was held up can not take a task of a later op by mistake: it reads the share and then
 * sees that the op is still on; nobody ends an op whose shares have tasks left, so the share is as
 * read or the swap fails.
 *
 *   SLEEPING -> SPINNING   [wake]        an op, a step or the team's end was told
 *   SPINNING -> WORKING    [help]        a new op stands in the word: well under a microsecond
 *   WORKING  -> SPINNING   [help]        no share has a task left
 *   SPINNING -> SLEEPING   [sleep_on]    the step is over, or nothing came for SPINS rounds: then the
 *                                        caller is held up, perhaps because we are on its CPU
 *
 * The caller waits for the last tasks in the same way: SPINS rounds, then asleep [await]. Nobody
 * ever spins for longer, which is what lets several teams share CPUs: sched_yield would not, it
 * leaves a spinning thread as entitled to the CPU as one that has work.
 *
 * No wake-up is lost. A worker reads the bell, sets `sleeping` and then reads the word; the caller
 * writes the word, then reads `sleeping` and, if it is set, clears it and rings the bell. All is
 * sequentially consistent: either the worker sees the new word, or the caller sees `sleeping`, and the
 * kernel lets nobody sleep on a bell that has changed since it was read. `waiting` and `done` are the
 * same the other way round.
 *
 * work and ctx are plain fields: they are written before the word and read only by a thread that
 * holds a task of that very op, and the caller returns only when no task is held. */
#include "engine/team.h"
#include <assert.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 500, THREADS_MAX = ENG_CPUS_MAX, APART = 128 }; /* APART: two lines, fetched in pairs */

/* The lower half of the word. */
#define REST 0x80000000u                     /* no step is on */
#define LEAVE 0x40000000u
#define TASKS 0x3fffffffu

typedef struct seat {
    _Atomic uint64_t share;                  /* op number << 32 | tasks left */
    eng_team *team;
    int thread;
    pthread_t id;
    char apart[APART - 32];
} seat;

struct eng_team {
    char apart[APART];
    _Atomic uint64_t word;                   /* op number << 32 | REST, LEAVE or tasks */
    void (*work)(void *ctx, int task, int thread);
    void *ctx;
    char apart_done[APART];
    _Atomic uint32_t done;                   /* tasks that workers have finished, all ops together */
    _Atomic uint32_t waiting;                /* the caller sleeps on done */
    char apart_bell[APART];
    _Atomic uint32_t sleeping;               /* some worker sleeps on the bell, or is about to */
    _Atomic uint32_t bell;
    int threads;                             /* with the caller */
    int started;
    int steps;                               /* begun and not ended */
    uint32_t owed;                           /* what done will be when no worker holds a task */
    bool caller_stays;                       /* caller is on its CPU */
    pthread_t caller;
    char apart_seats[APART];
    seat seat[];
};

/* ---- sleep and wake ------------------------------------------------------------------------------ */

/* Sleeps unless *at is no longer seen; may return for no reason. */
static void futex_wait(_Atomic uint32_t *at, uint32_t seen) {
    syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *at) {
    syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void sleep_on(eng_team *t, uint64_t word) {
    uint32_t rung = atomic_load(&t->bell);
    atomic_store(&t->sleeping, 1);
    if (atomic_load(&t->word) == word) futex_wait(&t->bell, rung);
}

static void wake(eng_team *t) {
    if (!atomic_load(&t->sleeping)) return;
    atomic_store(&t->sleeping, 0);
    atomic_fetch_add(&t->bell, 1);
    futex_wake(&t->bell);
}

/* Everyone sees a new word: an op of so many tasks, or REST or LEAVE. */
static uint64_t tell(eng_team *t, uint32_t what) {
    uint64_t word = ((atomic_load_explicit(&t->word, memory_order_relaxed) >> 32) + 1) << 32 | what;
    atomic_store(&t->word, word);
    return word;
}

/* ---- work ---------------------------------------------------------------------------------------- */

static uint32_t share_begins(const eng_team *t, uint32_t tasks, int owner) {
    return (uint32_t)((uint64_t)tasks * (uint32_t)owner / (uint32_t)t->threads);
}

/* Does tasks of owner's share of the op until none is left; returns how many. */
static uint32_t work_off(eng_team *t, uint64_t word, int owner, int thread) {
    uint32_t tasks = (uint32_t)word & TASKS, did = 0;
    uint32_t first = share_begins(t, tasks, owner), end = share_begins(t, tasks, owner + 1);
    _Atomic uint64_t *share = &t->seat[owner].share;
    while (first < end) {
        uint64_t seen = atomic_load(share);
        if (atomic_load(&t->word) != word) break;          /* the op is over */
        uint32_t left = seen >> 32 == word >> 32 ? (uint32_t)seen : end - first;
        if (!left) break;
        uint64_t taken = (word >> 32) << 32 | (left - 1);
        if (!atomic_compare_exchange_weak(share, &seen, taken)) continue;
        t->work(t->ctx, (int)(end - left), thread);
        did++;
    }
    return did;
}

static void report(eng_team *t, uint32_t did) {
    atomic_fetch_add(&t->done, did);
    if (atomic_load(&t->waiting)) futex_wake(&t->done);
}

/* Its own share, then the others'. Returns how many tasks it did; a worker has reported them. */
static uint32_t help(eng_team *t, uint64_t word, int thread) {
    uint32_t sum = 0;
    for (int i = 0, owner = thread; i < t->threads; i++) {
        uint32_t did = work_off(t, word, owner, thread);
        if (did && thread) report(t, did);
        sum += did;
        if (++owner == t->threads) owner = 0;
    }
    return sum;
}

static void *worker(void *arg) {
    seat *s = arg;
    eng_team *t = s->team;
    uint64_t spent = 0;                      /* the word that has nothing more for us */
    for (int spins = 0;;) {
        uint64_t word = atomic_load(&t->word);
        if (word & LEAVE) return NULL;
        if (word != spent) {
            help(t, word, s->thread);
            spent = word;
            spins = 0;
        } else if (!(word & REST) && ++spins < SPINS) {
            cpu_relax();
        } else {
            sleep_on(t, word);
            spins = 0;
        }
    }
}

/* Until no worker holds a task. */
static void await(eng_team *t) {
    for (int spins = 0; atomic_load(&t->done) != t->owed;) {
        if (++spins < SPINS) {
            cpu_relax();
            continue;
        }
        atomic_store(&t->waiting, 1);
        uint32_t seen = atomic_load(&t->done);
        if (seen != t->owed) futex_wait(&t->done, seen);
        atomic_store(&t->waiting, 0);
    }
}

void eng_team_run(eng_team *t, int tasks, void (*work)(void *ctx, int task, int thread), void *ctx) {
    assert(tasks >= 0 && (uint32_t)tasks <= TASKS);
    if (t->threads == 1 || tasks <= 1) {
        for (int i = 0; i < tasks; i++) work(ctx, i, 0);
        return;
    }
    t->work = work;
    t->ctx = ctx;
    uint64_t word = tell(t, (uint32_t)tasks);
    wake(t);
    t->owed += (uint32_t)tasks - help(t, word, 0);
    await(t);
}

/* ---- steps --------------------------------------------------------------------------------------- */

static int stay(pthread_t id, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return pthread_setaffinity_np(id, sizeof set, &set);
}

/* Models are opened on one thread and stepped on another: the one that steps stays on the CPU. */
static void keep_caller(eng_team *t) {
    pthread_t self = pthread_self();
    int cpu = eng_cpus_pinned(0);
    if (cpu < 0 || (t->caller_stays && pthread_equal(t->caller, self))) return;
    if (stay(self, cpu) != 0) log_write(LOG_WARN, NULL, "cpu.lost", "cpu=%d the engine thread is not bound to it", cpu);
    t->caller = self;
    t->caller_stays = true;
}

void eng_team_step_begin(eng_team *t) {
    if (t->steps++) return;
    keep_caller(t);
    if (t->threads == 1) return;
    tell(t, 0);
    wake(t);
}

void eng_team_step_end(eng_team *t) {
    assert(t->steps > 0);
    if (--t->steps || t->threads == 1) return;
    tell(t, REST);
}

/* ---- create and destroy -------------------------------------------------------------------------- */

static int start(eng_team *t, int i) {
    seat *s = &t->seat[i];
    s->team = t;
    s->thread = i;
    int cpu = eng_cpus_pinned(i), failed = pthread_create(&s->id, NULL, worker, s);
    if (failed) return failed;
    t->started = i + 1;
    pthread_setname_np(s->id, "engine-team");
    return cpu >= 0 ? stay(s->id, cpu) : 0;
}

status eng_team_create(int threads, eng_team **out, error *err) {
    int pinned = eng_cpus_pinned_count();
    if (threads == 0) threads = pinned ? pinned : eng_cpus_allowed();
    if (threads < 1 || threads > THREADS_MAX)
        return error_set(err, ST_BAD_INPUT, "threads is %d, expected 0 to %d", threads, THREADS_MAX);
    if (pinned && threads > pinned)
        return error_set(err, ST_BAD_INPUT, "threads is %d, expected 0 to %d: so many CPUs are named by --pin",
                         threads, pinned);
    eng_team *t = mem_zalloc(1, sizeof *t + (size_t)threads * sizeof(seat));
    if (!t) return error_set(err, ST_NO_MEMORY, "no memory for a team of %d threads", threads);
    t->threads = threads;
    tell(t, REST);
    for (int i = 1; i < threads; i++) {
        int failed = start(t, i);
        if (!failed) continue;
        eng_team_destroy(t);
        return error_set(err, ST_NO_MEMORY, "cannot start thread %d of %d: %s", i + 1, threads,
                         strerror(failed));
    }
    *out = t;
    return ST_OK;
}

void eng_team_destroy(eng_team *t) {
    if (!t) return;
    tell(t, LEAVE);
    wake(t);
    for (int i = 1; i < t->started; i++) pthread_join(t->seat[i].id, NULL);
    mem_free(t);
}

int eng_team_threads(const eng_team *t) { return t->threads; }
