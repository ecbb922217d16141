/* cpus.c -- engine/cpus.h without hwloc, for the emulated tests: threads are placed by the system. */
#include "engine/cpus.h"
#include <sched.h>

int eng_cpus_allowed(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

int eng_cpus_pinned_count(void) { return 0; }

int eng_cpus_pinned(int thread) {
    (void)thread;
    return -1;
}
