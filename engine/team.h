/* team.h -- threads that work on one op at a time. Internal to engine/. */
#ifndef BATON_ENGINE_TEAM_H
#define BATON_ENGINE_TEAM_H

#include "base/base.h"

typedef struct eng_team eng_team;

/* What the process may use: the smaller of its CPU affinity and its cgroup's quota, at least 1. */
int eng_team_threads_allowed(void);

/* threads counts the caller: 1 starts none. 0: eng_team_threads_allowed(). */
status eng_team_create(int threads, eng_team **out, error *err);
void eng_team_destroy(eng_team *t);
int eng_team_threads(const eng_team *t);

/* Runs work(ctx, task, thread) for every task in [0, tasks), in any order, on any threads, and
 * returns when all are done. thread is in [0, threads): no two tasks at the same time have the same.
 * Only one caller at a time. */
void eng_team_run(eng_team *t, int tasks, void (*work)(void *ctx, int task, int thread), void *ctx);

#endif
