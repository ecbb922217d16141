/* team.h -- threads that work on one op at a time. Internal to engine/. */
#ifndef BATON_ENGINE_TEAM_H
#define BATON_ENGINE_TEAM_H

#include "base/base.h"
#include "engine/cpus.h"

typedef struct eng_team eng_team;


/* threads counts the caller: 1 starts none. 0: one on each CPU that eng_cpus_pin() named, else
 * eng_cpus_allowed(). Where CPUs were named, thread i stays on the i-th of them: the caller from its
 * first step on. */
status eng_team_create(int threads, eng_team **out, error *err);
void eng_team_destroy(eng_team *t);
int eng_team_threads(const eng_team *t);

/* Runs work(ctx, task, thread) for every task in [0, tasks), in any order, on any threads, and
 * returns when all are done. thread is in [0, threads): no two tasks at the same time have the same.
 * Tasks are cut into one run of neighbours a thread, the same for the same count, so that a thread
 * tends to meet the same data again. Only one caller at a time. */
void eng_team_run(eng_team *t, int tasks, void (*work)(void *ctx, int task, int thread), void *ctx);

/* Between these many ops follow each other: the other threads wake up at the begin, wait for the next
 * op without sleep, and sleep at once after the end. They nest. Ops may be run outside, too. */
void eng_team_step_begin(eng_team *t);
void eng_team_step_end(eng_team *t);

#endif
