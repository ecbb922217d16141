/* load_nodes.c -- where the nodes' time went while a load ran: what their engine threads count, after it less before it. */
#include "bench/load.h"
#include <string.h>

const char *const bench_load_roles[BENCH_LOAD_ROLES] = {"prefill", "decode"};

static void count_part(bench_load_nodes *n, int role, const char *labels, int64_t us) {
    char name[sizeof n->part[0].name];
    int i = 0;
    if (sscanf(labels, "part=\"%23[a-z_]\"", name) != 1) return;
    while (i < n->parts && strcmp(n->part[i].name, name) != 0) i++;
    if (i == BENCH_LOAD_PARTS_MAX) return;
    if (i == n->parts) snprintf(n->part[n->parts++].name, sizeof name, "%s", name);
    n->part[i].us[role] += us;
}

void bench_load_nodes_count(bench_load_nodes *n, const Baton__V1__TopologyResult *t, int sign) {
    for (size_t i = 0; i < t->n_nodes; i++) {
        const Baton__V1__Node *node = t->nodes[i];
        int role = 0;
        while (role < BENCH_LOAD_ROLES && strcmp(node->role, bench_load_roles[role]) != 0) role++;
        for (size_t k = 0; k < node->n_counters && role < BENCH_LOAD_ROLES; k++)
            if (strcmp(node->counters[k]->name, "baton_node_engine_seconds_total") == 0)
                count_part(n, role, node->counters[k]->labels, sign * node->counters[k]->value);
    }
}

int64_t bench_load_nodes_us(const bench_load_nodes *n, int role) {
    int64_t sum = 0;
    for (int i = 0; i < n->parts; i++) sum += n->part[i].us[role];
    return sum > 0 ? sum : 0;
}
