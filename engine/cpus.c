/* cpus.c -- how many threads fit this process, and on which CPUs they stay.
 *
 * hwloc knows which CPUs are hyperthreads of one core and numbers cores so that neighbours share
 * caches and memory; a run of cores in its order is what a node should have. The affinity and the
 * cgroup's cpuset are in the topology it loads; the cgroup's quota of CPU time is read here. */
#include "engine/cpus.h"
#include <ctype.h>
#include <hwloc.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static struct {
    int count;
    int cpu[ENG_CPUS_MAX];
} pinned;

/* ---- cores of a topology ------------------------------------------------------------------------- */

/* What this process may use. NULL: hwloc can not tell. */
static hwloc_topology_t load(void) {
    hwloc_topology_t t;
    if (hwloc_topology_init(&t) != 0) return NULL;
    hwloc_topology_set_flags(t, HWLOC_TOPOLOGY_FLAG_IS_THISSYSTEM | HWLOC_TOPOLOGY_FLAG_RESTRICT_TO_CPUBINDING);
    if (hwloc_topology_load(t) == 0) return t;
    hwloc_topology_destroy(t);
    return NULL;
}

/* Set of the CPUs of a topology that are in the list; NULL: no list, or no memory. */
static hwloc_bitmap_t usable_of(hwloc_topology_t t, const char *list) {
    hwloc_bitmap_t set = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(t));
    hwloc_bitmap_t named = *list ? hwloc_bitmap_alloc() : NULL;
    if (named && set && hwloc_bitmap_list_sscanf(named, list) == 0) {
        hwloc_bitmap_and(set, set, named);
    } else if (*list) {
        hwloc_bitmap_free(set);
        set = NULL;
    }
    hwloc_bitmap_free(named);
    return set;
}

/* Where a kernel does not say which CPUs make a core, each is one. */
static hwloc_obj_type_t core_type(hwloc_topology_t t) {
    return hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
}

/* The core with that index among those with a usable CPU; NULL: past the last. */
static hwloc_obj_t core_at(hwloc_topology_t t, hwloc_const_bitmap_t usable, int index) {
    hwloc_obj_t core = NULL;
    while ((core = hwloc_get_next_obj_by_type(t, core_type(t), core)))
        if (hwloc_bitmap_intersects(core->cpuset, usable) && index-- == 0) return core;
    return NULL;
}

static int count_cores(hwloc_topology_t t, hwloc_const_bitmap_t usable) {
    int count = 0;
    while (core_at(t, usable, count)) count++;
    return count;
}

int eng_cpus_cores(hwloc_topology_t t, const char *usable) {
    hwloc_bitmap_t set = usable_of(t, usable);
    int count = set ? count_cores(t, set) : 0;
    hwloc_bitmap_free(set);
    return count;
}

/* Adds up to wanted CPUs of cores [first, end) to the set: one of each core, then a second of each, and
 * so on. Returns how many are missing. */
static int choose(hwloc_topology_t t, hwloc_const_bitmap_t usable, int first, int end, int wanted,
                  hwloc_bitmap_t chosen) {
    bool found = true;
    for (int round = 0; found && wanted; round++) {
        found = false;
        for (int i = first; i < end && wanted; i++) {
            hwloc_obj_t core = core_at(t, usable, i);
            int cpu = -1, skip = round + 1;
            while (skip && (cpu = hwloc_bitmap_next(core->cpuset, cpu)) >= 0)
                skip -= hwloc_bitmap_isset(usable, (unsigned)cpu);
            if (cpu < 0) continue;
            hwloc_bitmap_set(chosen, (unsigned)cpu);
            found = true;
            wanted--;
        }
    }
    return wanted;
}

bool eng_cpus_split(hwloc_topology_t t, const char *usable, int nodes, int threads, eng_cpus_list *lists) {
    hwloc_bitmap_t set = usable_of(t, usable), chosen = hwloc_bitmap_alloc();
    int each = set && chosen ? count_cores(t, set) / nodes : 0;
    bool enough = each > 0;
    for (int n = 0; n < nodes && enough; n++) {
        hwloc_bitmap_zero(chosen);
        enough = choose(t, set, n * each, (n + 1) * each, threads, chosen) == 0 &&
                 hwloc_bitmap_list_snprintf(lists[n].text, ENG_CPUS_TEXT, chosen) < ENG_CPUS_TEXT;
    }
    for (int n = 0; n < nodes && !enough; n++) lists[n].text[0] = 0;
    hwloc_bitmap_free(chosen);
    hwloc_bitmap_free(set);
    return enough;
}

/* ---- the cgroup's quota -------------------------------------------------------------------------- */

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
    return cpus > ENG_CPUS_MAX ? ENG_CPUS_MAX : (int)cpus;
}

/* The tightest quota from the process's cgroup up to the root; 0: none. */
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

/* ---- this process -------------------------------------------------------------------------------- */

/* Cores, or CPUs where hwloc can not tell them apart. */
static int cores_of_process(hwloc_topology_t t) {
    cpu_set_t set;
    int cores = t ? eng_cpus_cores(t, "") : sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return cores < 1 ? 1 : cores > ENG_CPUS_MAX ? ENG_CPUS_MAX : cores;
}

static int below_quota(int cores) {
    int quota = quota_allowed();
    return quota && quota < cores ? quota : cores;
}

int eng_cpus_allowed(void) {
    hwloc_topology_t t = load();
    int cores = below_quota(cores_of_process(t));
    if (t) hwloc_topology_destroy(t);
    return cores;
}

static bool is_word(const char *pin) {
    return !pin || strcmp(pin, "auto") == 0 || strcmp(pin, "off") == 0;
}

static bool parse(const char *list, cpu_set_t *set) {
    CPU_ZERO(set);
    for (char *end;; list = end + 1) {
        if (!isdigit((unsigned char)*list)) return false;
        long from = strtol(list, &end, 10), to = from;
        if (*end == '-' && isdigit((unsigned char)end[1])) to = strtol(end + 1, &end, 10);
        if (to < from || to >= CPU_SETSIZE || (*end && *end != ',')) return false;
        for (long cpu = from; cpu <= to; cpu++) CPU_SET(cpu, set);
        if (!*end) return true;
    }
}

/* A list of CPUs that this process may use. */
static status check(const char *list, cpu_set_t *set, error *err) {
    cpu_set_t may;
    if (!parse(list, set) || CPU_COUNT(set) > ENG_CPUS_MAX)
        return error_set(err, ST_BAD_INPUT, "--pin '%.100s': expected auto, off or at most %d CPUs such as 0-3,8",
                         list, ENG_CPUS_MAX);
    if (sched_getaffinity(0, sizeof may, &may) != 0) CPU_ZERO(&may);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, set) && !CPU_ISSET(cpu, &may))
            return error_set(err, ST_BAD_INPUT, "--pin '%.100s': CPU %d is not one that this process may use", list,
                             cpu);
    return ST_OK;
}

status eng_cpus_pin(const char *list, error *err) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (!is_word(list)) TRY(check(list, &set, err));
    pinned.count = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) pinned.cpu[pinned.count++] = cpu;
    return ST_OK;
}

int eng_cpus_pinned_count(void) { return pinned.count; }
int eng_cpus_pinned(int thread) { return thread < pinned.count ? pinned.cpu[thread] : -1; }

/* ---- the nodes of a machine ---------------------------------------------------------------------- */

static status share_list(hwloc_topology_t t, const char *list, int nodes, int *threads, eng_cpus_list *lists,
                         error *err) {
    cpu_set_t set;
    TRY(check(list, &set, err));
    if (!t) return error_set(err, ST_NO_MEMORY, "--pin: this machine's cores can not be read");
    int cores = eng_cpus_cores(t, list);
    if (*threads == 0) *threads = cores / nodes > 0 ? cores / nodes : 1;
    if (eng_cpus_split(t, list, nodes, *threads, lists)) return ST_OK;
    return error_set(err, ST_BAD_INPUT, "--pin '%.100s' has %d cores: not enough for %d nodes of %d threads", list,
                     cores, nodes, *threads);
}

status eng_cpus_share(const char *pin, int nodes, int *threads, eng_cpus_list *lists, error *err) {
    hwloc_topology_t t = load();
    status st = ST_OK;
    for (int n = 0; n < nodes; n++) lists[n].text[0] = 0;
    if (!is_word(pin)) {
        st = share_list(t, pin, nodes, threads, lists, err);
    } else {
        int cores = cores_of_process(t), allowed = below_quota(cores);
        bool whole = *threads == 0 && allowed == cores;
        if (*threads == 0) *threads = allowed / nodes > 0 ? allowed / nodes : 1;
        if (t && whole && pin && strcmp(pin, "auto") == 0) eng_cpus_split(t, "", nodes, *threads, lists);
    }
    if (t) hwloc_topology_destroy(t);
    return st;
}
