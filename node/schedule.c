/* schedule.c -- see schedule.h. */
#include "node/schedule.h"
#include <string.h>

const node_schedule node_schedules[] = {
    {.name = "fcfs", .form = node_batch_in_order},
    {.name = "decode-first", .form = node_batch_decode_first},
    {.name = "mlfq", .form = node_batch_decode_first, .levels = true},
};
const int node_schedules_count = sizeof node_schedules / sizeof *node_schedules;

const node_schedule *node_schedule_find(const char *name) {
    for (int i = 0; i < node_schedules_count; i++)
        if (strcmp(node_schedules[i].name, name) == 0) return &node_schedules[i];
    return NULL;
}

bool node_schedule_before(const node_place *a, const node_place *b) {
    if (a->level != b->level) return a->level < b->level;
    return a->since_us != b->since_us ? a->since_us < b->since_us : a->number < b->number;
}

int64_t node_schedule_since(int64_t began_us, int32_t priority) {
    return began_us - (int64_t)priority * NODE_PRIORITY_US;
}

/* Level l is left when the quanta of levels 0 to l, q + 2q + ... + 2^l q, are used up. */
int32_t node_schedule_level(int64_t service_us, int32_t priority, bool promoted) {
    int32_t level = 0;
    while (level < NODE_LEVELS - 1 && service_us >= ((2LL << level) - 1) * NODE_QUANTUM_US) level++;
    if (!promoted || level > 0) level -= priority;
    return level < 0 ? 0 : level > NODE_LEVELS - 1 ? NODE_LEVELS - 1 : level;
}
