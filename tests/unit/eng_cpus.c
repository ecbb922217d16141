/* eng_cpus.c -- tests engine/cpus.c: nodes get cores of their own on machines of every shape. */
#include "engine/cpus.h"
#include <hwloc.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static hwloc_topology_t machine(const char *synthetic) {
    hwloc_topology_t t;
    assert_int_equal(hwloc_topology_init(&t), 0);
    assert_int_equal(hwloc_topology_set_synthetic(t, synthetic), 0);
    assert_int_equal(hwloc_topology_load(t), 0);
    return t;
}

typedef struct row {
    const char *machine, *usable;
    int cores;
    int nodes, threads;
    const char *lists[4];        /* none: not enough */
} row;

/* hwloc numbers PUs by `indexes`: here hyperthreads as Linux does, first one of every core. */
#define HYPERTHREADS "package:1 core:4 pu:2(indexes=0,4,1,5,2,6,3,7)"

static const row rows[] = {
    {"package:1 core:2 pu:1", "", 2, 2, 1, {"0", "1"}},
    {"package:1 core:2 pu:1", "", 2, 1, 2, {"0-1"}},
    {"package:1 core:2 pu:1", "", 2, 3, 1, {NULL}},
    {"package:1 core:2 pu:1", "", 2, 2, 2, {NULL}},
    {"package:1 core:1 pu:1", "", 1, 1, 1, {"0"}},
    /* an odd core stays free */
    {"package:1 core:5 pu:1", "", 5, 2, 2, {"0-1", "2-3"}},
    /* cores before hyperthreads, and never two nodes on one core */
    {HYPERTHREADS, "", 4, 2, 2, {"0-1", "2-3"}},
    {HYPERTHREADS, "", 4, 2, 3, {"0-1,4", "2-3,6"}},
    {HYPERTHREADS, "", 4, 2, 4, {"0-1,4-5", "2-3,6-7"}},
    {HYPERTHREADS, "", 4, 2, 5, {NULL}},
    {HYPERTHREADS, "", 4, 1, 8, {"0-7"}},
    {HYPERTHREADS, "", 4, 4, 1, {"0", "1", "2", "3"}},
    {HYPERTHREADS, "", 4, 5, 1, {NULL}},
    /* of a few CPUs */
    {HYPERTHREADS, "1-2,5", 2, 2, 1, {"1", "2"}},
    {HYPERTHREADS, "1-2,5", 2, 1, 3, {"1-2,5"}},
    {HYPERTHREADS, "1-2,5", 2, 2, 2, {NULL}},
    {HYPERTHREADS, "4,6", 2, 2, 1, {"4", "6"}},
    {HYPERTHREADS, "40", 0, 1, 1, {NULL}},
    /* CPUs that alternate between packages: a node's cores are of one */
    {"package:2 core:4 pu:1(indexes=0,2,4,6,1,3,5,7)", "", 8, 2, 4, {"0,2,4,6", "1,3,5,7"}},
    {"package:2 numa:1 core:4 pu:2", "", 8, 4, 2, {"0,2", "4,6", "8,10", "12,14"}},
};

static void nodes_get_cores_of_their_own(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const row *r = &rows[i];
        hwloc_topology_t t = machine(r->machine);
        eng_cpus_list lists[8];
        memset(lists, 'x', sizeof lists);
        assert_int_equal(eng_cpus_cores(t, r->usable), r->cores);
        assert_int_equal(eng_cpus_split(t, r->usable, r->nodes, r->threads, lists), r->lists[0] != NULL);
        for (int n = 0; n < r->nodes; n++) assert_string_equal(lists[n].text, r->lists[0] ? r->lists[n] : "");
        hwloc_topology_destroy(t);
    }
}

static int cpus_of_process(int *first) {
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    for (*first = 0; !CPU_ISSET(*first, &set);) ++*first;
    return CPU_COUNT(&set);
}

static void this_machine_is_shared_out(void **state) {
    (void)state;
    error err;
    int first, cpus = cpus_of_process(&first), allowed = eng_cpus_allowed(), threads = 0;
    eng_cpus_list lists[ENG_CPUS_MAX + 1];
    char list[20];
    assert_in_range(allowed, 1, cpus);
    assert_int_equal(eng_cpus_share("auto", 1, &threads, lists, &err), ST_OK);
    assert_int_equal(threads, allowed);
    /* more nodes than cores: none has CPUs of its own */
    threads = 0;
    assert_int_equal(eng_cpus_share("auto", cpus + 1, &threads, lists, &err), ST_OK);
    assert_int_equal(threads, 1);
    for (int n = 0; n <= cpus; n++) assert_string_equal(lists[n].text, "");
    /* neither when it is not wanted, or the user says how many threads */
    threads = 0;
    assert_int_equal(eng_cpus_share("off", 1, &threads, lists, &err), ST_OK);
    assert_string_equal(lists[0].text, "");
    threads = 1;
    assert_int_equal(eng_cpus_share("auto", 1, &threads, lists, &err), ST_OK);
    assert_string_equal(lists[0].text, "");
    /* a list is an order */
    snprintf(list, sizeof list, "%d", first);
    assert_int_equal(eng_cpus_share(list, 1, &threads, lists, &err), ST_OK);
    assert_string_equal(lists[0].text, list);
    assert_int_equal(eng_cpus_share(list, 2, &threads, lists, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "1 cores"));
}

static void lists_are_checked(void **state) {
    (void)state;
    static const char *const wrong[] = {"",    "on",   "0-",  "-1",   "0,",    ",0",      "0,,1",       "1-0",
                                        "0 1", "0x1",  "0--1", "auto0", "0-1-2", "1024",  "99999999999", "0-1023",
                                        "1023", "+0", " 0"};
    error err;
    int first;
    char list[20];
    cpus_of_process(&first);
    snprintf(list, sizeof list, "%d,%d-%d", first, first, first);
    assert_int_equal(eng_cpus_pin(list, &err), ST_OK);
    assert_int_equal(eng_cpus_pinned_count(), 1);
    assert_int_equal(eng_cpus_pinned(0), first);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (eng_cpus_pin(wrong[i], &err) != ST_BAD_INPUT) fail_msg("'%s' is accepted", wrong[i]);
        assert_non_null(strstr(err.text, "--pin"));
        assert_int_equal(eng_cpus_pinned_count(), 1);
    }
    assert_int_equal(eng_cpus_pin("auto", &err), ST_OK);
    assert_int_equal(eng_cpus_pinned_count(), 0);
    assert_int_equal(eng_cpus_pin(NULL, &err), ST_OK);
    assert_int_equal(eng_cpus_pinned(0), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nodes_get_cores_of_their_own),
        cmocka_unit_test(this_machine_is_shared_out),
        cmocka_unit_test(lists_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
