/* eng_team.c -- tests engine/team.c: every task once, however many threads there are and whoever sleeps. */
#include "engine/team.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

enum { TASKS_MAX = 97, THREADS = 8 };

/* ---- pthread_create that fails (linked with --wrap) ----------------------------------------------- */

int __real_pthread_create(pthread_t *id, const pthread_attr_t *a, void *(*run)(void *), void *arg);
int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *a, void *(*run)(void *), void *arg);

static int create_fails_at;                  /* 1: the next; 0: none */

int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *a, void *(*run)(void *), void *arg) {
    if (create_fails_at && --create_fails_at == 0) return EAGAIN;
    return __real_pthread_create(id, a, run, arg);
}

/* ---- an op that counts ----------------------------------------------------------------------------- */

typedef struct op {
    int threads;
    int done[TASKS_MAX];                     /* plain: a task done twice at once is a race that TSan sees */
    _Atomic int inside[THREADS];             /* tasks at work now, by thread */
    int slow_thread;                         /* -1: none */
} op;

static void work(void *ctx, int task, int thread) {
    op *o = ctx;
    assert_in_range(thread, 0, o->threads - 1);
    assert_int_equal(atomic_fetch_add(&o->inside[thread], 1), 0);
    if (thread == o->slow_thread) usleep(200);
    o->done[task]++;
    atomic_fetch_sub(&o->inside[thread], 1);
}

static void run_and_check(eng_team *t, int tasks, int slow_thread) {
    op o = {.threads = eng_team_threads(t), .slow_thread = slow_thread};
    eng_team_run(t, tasks, work, &o);
    for (int i = 0; i < TASKS_MAX; i++) assert_int_equal(o.done[i], i < tasks);
}

static eng_team *open_team(int threads) {
    eng_team *t;
    error err;
    if (eng_team_create(threads, &t, &err) != ST_OK) fail_msg("%s", err.text);
    assert_int_equal(eng_team_threads(t), threads);
    return t;
}

/* ---- tests ------------------------------------------------------------------------------------------ */

/* In steps and outside, one op after the other and after sleeps; more threads than CPUs. */
static void each_task_is_done_once(void **state) {
    (void)state;
    for (int threads = 1; threads <= THREADS; threads++) {
        eng_team *t = open_team(threads);
        for (int i = 0; i < 2000; i++) {
            if (i % 50 == 10) eng_team_step_begin(t);
            run_and_check(t, i * 31 % (TASKS_MAX + 1), -1);
            if (i % 50 == 40) eng_team_step_end(t);
            if (i % 500 == 0) usleep(1000);  /* the workers fall asleep */
        }
        eng_team_destroy(t);
    }
}

static void a_slow_thread_loses_no_task(void **state) {
    (void)state;
    for (int slow = 0; slow < 4; slow++) {
        eng_team *t = open_team(4);
        eng_team_step_begin(t);
        for (int i = 0; i < 50; i++) run_and_check(t, 1 + i % 40, slow);
        eng_team_step_end(t);
        eng_team_destroy(t);
    }
}

/* Each op begins when the workers have just been told to rest, and while they fall asleep. */
static void no_wake_up_is_lost(void **state) {
    (void)state;
    eng_team *t = open_team(3);
    unsigned seed = 1;
    for (int i = 0; i < 5000; i++) {
        eng_team_step_begin(t);
        run_and_check(t, 3, -1);
        for (int pause = rand_r(&seed) % 3000; pause; pause--) __asm__ volatile("");
        run_and_check(t, 4, i % 500 == 0 ? 1 : -1);
        eng_team_step_end(t);
        for (int pause = rand_r(&seed) % 3000; pause; pause--) __asm__ volatile("");
    }
    eng_team_destroy(t);
}

static void steps_nest_and_may_be_empty(void **state) {
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        eng_team *t = open_team(threads);
        for (int i = 0; i < 200; i++) {
            eng_team_step_begin(t);
            eng_team_step_begin(t);
            run_and_check(t, i % 20, -1);
            eng_team_step_end(t);
            run_and_check(t, i % 20, -1);
            eng_team_step_end(t);
            eng_team_step_begin(t);
            eng_team_step_end(t);
        }
        eng_team_destroy(t);
    }
}

static void note_thread(void *ctx, int task, int thread) { ((int *)ctx)[task] = thread; }

/* Two tasks of which each waits for the other's thread: both run at once, so each thread has begun with
 * its own share. */
static void meet(void *ctx, int task, int thread) {
    _Atomic int *at = ctx;
    atomic_fetch_or(at, 1 << thread);
    while (atomic_load(at) != 3) sched_yield();
    note_thread((void *)(at + 1), task, thread);
}

static void threads_begin_with_their_own_share(void **state) {
    (void)state;
    eng_team *t = open_team(2);
    for (int i = 0; i < 100; i++) {
        struct { _Atomic int at; int thread[2]; } m = {0};
        eng_team_run(t, 2, meet, &m);
        assert_int_equal(m.thread[0] + m.thread[1], 1);
    }
    eng_team_destroy(t);
    t = open_team(1);
    int thread[5] = {-1, -1, -1, -1, -1};
    eng_team_run(t, 5, note_thread, thread);
    for (int i = 0; i < 5; i++) assert_int_equal(thread[i], 0);
    eng_team_destroy(t);
}

static void *use_a_team(void *arg) {
    (void)arg;
    eng_team *t = open_team(4);
    for (int i = 0; i < 300; i++) {
        eng_team_step_begin(t);
        for (int k = 0; k < 5; k++) run_and_check(t, 7, -1);
        eng_team_step_end(t);
    }
    eng_team_destroy(t);
    return NULL;
}

static void teams_share_a_machine(void **state) {
    (void)state;
    pthread_t id[3];
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&id[i], NULL, use_a_team, NULL), 0);
    for (int i = 0; i < 3; i++) pthread_join(id[i], NULL);
}

/* At once, asleep, after an op and within a step. */
static void teams_come_and_go(void **state) {
    (void)state;
    int64_t live = mem_live();
    for (int i = 0; i < 200; i++) {
        eng_team *t = open_team(1 + i % 5);
        if (i % 4 == 1) usleep(100);
        if (i % 4 == 2) run_and_check(t, 10, -1);
        if (i % 4 == 3) eng_team_step_begin(t);
        eng_team_destroy(t);
    }
    eng_team_destroy(NULL);
    assert_int_equal(mem_live(), live);
}

static void failures_leave_nothing_behind(void **state) {
    (void)state;
    eng_team *t = NULL;
    error err;
    int64_t live = mem_live();
    for (int n = 1; n <= 3; n++) {
        create_fails_at = n;
        assert_int_equal(eng_team_create(4, &t, &err), ST_NO_MEMORY);
        assert_non_null(strstr(err.text, "of 4: "));
        assert_int_equal(mem_live(), live);
    }
    create_fails_at = 0;
    mem_fail_at(1);
    assert_int_equal(eng_team_create(4, &t, &err), ST_NO_MEMORY);
    mem_fail_at(0);
    assert_int_equal(eng_team_create(-1, &t, &err), ST_BAD_INPUT);
    assert_int_equal(eng_team_create(ENG_CPUS_MAX + 1, &t, &err), ST_BAD_INPUT);
    assert_null(t);
    assert_int_equal(eng_team_create(0, &t, &err), ST_OK);
    assert_int_equal(eng_team_threads(t), eng_cpus_allowed());
    eng_team_destroy(t);
}

/* ---- CPUs that are named ---------------------------------------------------------------------------- */

static int cpu_of_thread(void) {
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    if (CPU_COUNT(&set) != 1) return -1;
    int cpu = 0;
    while (!CPU_ISSET(cpu, &set)) cpu++;
    return cpu;
}

static void meet_on_cpus(void *ctx, int task, int thread) {
    int *cpu = ctx;
    (void)task;
    cpu[thread] = cpu_of_thread();
}

/* On a thread of its own: it is bound from its first step on. */
static void *step_with_named_cpus(void *arg) {
    eng_team *t = arg;
    int cpu[2] = {-2, -2};
    assert_int_equal(cpu_of_thread(), -1);
    eng_team_step_begin(t);
    while (cpu[0] == -2 || cpu[1] == -2) eng_team_run(t, 16, meet_on_cpus, cpu);
    eng_team_step_end(t);
    for (int i = 0; i < 2; i++) assert_int_equal(cpu[i], eng_cpus_pinned(i));
    return NULL;
}

static void threads_stay_on_named_cpus(void **state) {
    (void)state;
    cpu_set_t set;
    error err;
    char list[40] = "";
    int found = 0;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    if (CPU_COUNT(&set) < 2) skip();
    for (int cpu = 0; found < 2; cpu++)
        if (CPU_ISSET(cpu, &set))
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%d", found++ ? "," : "", cpu);
    assert_int_equal(eng_cpus_pin(list, &err), ST_OK);
    assert_int_equal(eng_cpus_pinned_count(), 2);
    eng_team *t = NULL;
    assert_int_equal(eng_team_create(3, &t, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "--pin"));
    assert_int_equal(eng_team_create(0, &t, &err), ST_OK);
    assert_int_equal(eng_team_threads(t), 2);
    pthread_t id;
    assert_int_equal(pthread_create(&id, NULL, step_with_named_cpus, t), 0);
    pthread_join(id, NULL);
    eng_team_destroy(t);
    assert_int_equal(cpu_of_thread(), -1);   /* who opens is left alone */
    assert_int_equal(eng_cpus_pin("off", &err), ST_OK);
    assert_int_equal(eng_cpus_pinned(0), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_task_is_done_once),
        cmocka_unit_test(a_slow_thread_loses_no_task),
        cmocka_unit_test(no_wake_up_is_lost),
        cmocka_unit_test(steps_nest_and_may_be_empty),
        cmocka_unit_test(threads_begin_with_their_own_share),
        cmocka_unit_test(teams_share_a_machine),
        cmocka_unit_test(teams_come_and_go),
        cmocka_unit_test(failures_leave_nothing_behind),
        cmocka_unit_test(threads_stay_on_named_cpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
