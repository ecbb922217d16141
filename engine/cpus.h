/* cpus.h -- how many threads fit this process, and on which CPUs they stay.
 *
 * For team.c, and for who starts engines: a node says where its team may run before it opens the model;
 * `baton up` shares the machine's cores out among its nodes. Knows nothing of models.
 *
 * A CPU is what the system schedules on, numbered as in /proc/cpuinfo; a core has one or, with
 * hyperthreads, several. A list of CPUs is written as taskset and cgroups do: "0-3,8". */
#ifndef BATON_ENGINE_CPUS_H
#define BATON_ENGINE_CPUS_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hwloc_topology;

enum { ENG_CPUS_MAX = 256, ENG_CPUS_TEXT = 1200 };     /* threads of a team; bytes of a list */

typedef struct eng_cpus_list {
    char text[ENG_CPUS_TEXT];                /* "": none, the system places threads */
} eng_cpus_list;

/* Threads that pay: cores within the process's affinity, but no more than its cgroup's quota of CPU
 * time; at least 1. */
int eng_cpus_allowed(void);

/* Teams created from now on keep thread i on the i-th CPU of the list. NULL, "auto" and "off": the
 * system places them, as at the start. Process-wide: before models are opened. ST_BAD_INPUT: not a
 * list, or a CPU that this process may not use. */
status eng_cpus_pin(const char *list, error *err);
int eng_cpus_pinned_count(void);
int eng_cpus_pinned(int thread);             /* -1: nowhere */

/* Shares cores out among nodes on this machine, whole cores each, neighbours together. *threads 0 becomes
 * what each node gets of eng_cpus_allowed(), at least 1. lists[i] gets as many CPUs, no core in two of
 * them, hyperthreads only when cores do not suffice.
 *   pin "off"   no lists
 *   pin "auto"  lists if the nodes take the whole machine, one team's thread a core: with *threads given
 *               or a quota below the cores, others are meant to have the rest, and which CPUs those use
 *               is not known; with more nodes than cores there is nothing to share out
 *   pin a list  lists from these CPUs, ST_BAD_INPUT if they do not suffice */
status eng_cpus_share(const char *pin, int nodes, int *threads, eng_cpus_list *lists, error *err);

/* The pure part: of a topology, the CPUs in usable ("" for all). false: not enough of them. */
bool eng_cpus_split(struct hwloc_topology *topology, const char *usable, int nodes, int threads,
                    eng_cpus_list *lists);
int eng_cpus_cores(struct hwloc_topology *topology, const char *usable);

#ifdef __cplusplus
}
#endif
#endif
