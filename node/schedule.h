/* schedule.h -- in which order sequences stand for rows and pages: the table of schedules, and the order itself. Pure:
 * values in, values out.
 *
 *   fcfs          first come, first served. In order of arrival each gets all the rows it wants; a long prompt holds up
 *                 everybody behind it.
 *   decode-first  the default. In order of arrival for pages and prompts; decode rows come first and prompts get what
 *                 the ITL target leaves (node/batch.c, node/cost.h).
 *   mlfq          multi-level feedback queue, preemptive (Corbato et al., "An Experimental Time-Sharing System", 1962;
 *                 for language models with the level of the prompt's cost to begin on: Wu et al., "Fast Distributed
 *                 Inference Serving for Large Language Models", 2023). Rows as in decode-first, but short answers
 *                 first: whoever has used up a level's quantum of engine time goes one level down, the quantum
 *                 doubles from level to level. Where pages or rows are short the higher level has them.
 *
 * Priority: one step of it is worth a second of age in every schedule, and a level in mlfq. So a request is passed only
 * by those that came less than that many seconds after it, and nobody starves.
 * Aging: in mlfq whoever had no row for NODE_AGE_US though it wanted one goes to level 0 with a fresh quantum, whatever
 * its priority. There it stands in front of all who came after it, and those before it use up their quanta: so its wait
 * is bounded by NODE_AGE_US and what is left to those of level 0 who are older. */
#ifndef BATON_NODE_SCHEDULE_H
#define BATON_NODE_SCHEDULE_H

#include "node/batch.h"

enum { NODE_LEVELS = 10, NODE_PRIORITY_US = 1000000, NODE_QUANTUM_US = 100000, NODE_AGE_US = 2000000 };

typedef struct node_schedule {
    const char *name;
    int32_t (*form)(const node_budget *b, const node_want *wants, int32_t count, node_share *shares);
    bool levels;
} node_schedule;

extern const node_schedule node_schedules[];
extern const int node_schedules_count;
const node_schedule *node_schedule_find(const char *name);       /* NULL: no such */

/* Where a sequence stands. */
typedef struct node_place {
    int32_t level;
    int64_t since_us;            /* arrival, moved by the priority */
    int64_t number;              /* in order of arrival */
} node_place;

bool node_schedule_before(const node_place *a, const node_place *b);
int64_t node_schedule_since(int64_t began_us, int32_t priority);
/* By the engine time it has used. promoted: it was brought up by aging, so a low priority counts only from its second
 * quantum on. */
int32_t node_schedule_level(int64_t service_us, int32_t priority, bool promoted);

#endif
