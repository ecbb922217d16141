/* nodes.c -- baton nodes, drain, undrain, role: the operator's view of a cluster and orders to it.
 */
#include "cli/cli.h"
#include <jansson.h>
#include <string.h>

static cli_exit nodes(const cli_options *o, const char *const *words, int count);
static cli_exit drain(const cli_options *o, const char *const *words, int count);
static cli_exit undrain(const cli_options *o, const char *const *words, int count);
static cli_exit role(const cli_options *o, const char *const *words, int count);

static const config_row rows[] = {CLI_SERVER, CLI_CREDENTIAL, CLI_JSON};

const cli_command cli_nodes = {
    "nodes", "", "The nodes of a cluster, and of its coordinators the one that was asked: roles, states, pages.", CLI_ROWS(rows), 0, 0, nodes};
const cli_command cli_drain = {
    "drain", "NODE", "Gives a node no new work; its running answers move to another node, or finish.", CLI_ROWS(rows), 1,
    1,       drain};
const cli_command cli_undrain = {
    "undrain", "NODE", "Gives a drained node work again.", CLI_ROWS(rows), 1, 1, undrain};
const cli_command cli_role = {
    "role", "NODE ROLE", "Makes a node a prefill or a decode node.", CLI_ROWS(rows), 2, 2, role};

#define CLUSTER_METHOD(name, request_, reply_)                                                     \
    {                                                                                              \
        .path = "/baton.v1.Cluster/" name, .kind = RPC_UNARY, .request = &request_##__descriptor,  \
        .reply = &reply_##__descriptor                                                             \
    }

const rpc_method cli_topology_method =
    CLUSTER_METHOD("Topology", baton__v1__topology_request, baton__v1__topology_result);
static const rpc_method drain_method =
    CLUSTER_METHOD("Drain", baton__v1__node_request, baton__v1__node_result);
static const rpc_method undrain_method =
    CLUSTER_METHOD("Undrain", baton__v1__node_request, baton__v1__node_result);
static const rpc_method role_method =
    CLUSTER_METHOD("SetRole", baton__v1__set_role_request, baton__v1__node_result);

/* ---- printing -------------------------------------------------------------------------------- */

static json_t *node_json(const Baton__V1__Node *n) {
    json_t *counters = json_array();
    for (size_t i = 0; i < n->n_counters; i++)
        json_array_append_new(counters, json_pack("{s:s, s:s, s:I}", "name", n->counters[i]->name,
                                                  "labels", n->counters[i]->labels, "value",
                                                  (json_int_t)n->counters[i]->value));
    json_t *ranks = json_array();
    for (size_t i = 0; i < n->n_ranks; i++)
        json_array_append_new(ranks, json_pack("{s:I, s:f, s:I, s:I}", "pid", (json_int_t)n->ranks[i]->pid, "group_ms",
                                               n->ranks[i]->group_ms, "kv_bytes_in", (json_int_t)n->ranks[i]->kv_bytes_in,
                                               "kv_bytes_out", (json_int_t)n->ranks[i]->kv_bytes_out));
    json_t *j =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:i, s:i, s:I, s:s, s:o, s:o}", "id", n->id, "role",
                  n->role, "state", n->state, "why", n->why, "pid", (json_int_t)n->pid, "address", n->address,
                  "kv_address", n->kv_address, "running", n->running, "waiting", n->waiting,
                  "epoch", (json_int_t)n->epoch, "numerics", n->numerics, "counters", counters, "ranks",
                  ranks);
    const Baton__V1__PageCounts *p = n->pages;
    if (p)
        json_object_set_new(j, "pages",
                            json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "total", p->total,
                                      "free", p->free, "cached", p->cached, "pinned", p->pinned,
                                      "promised", p->promised, "landing", p->landing, "running",
                                      p->running, "sending", p->sending, "held", p->held));
    return j;
}

static void print_json(json_t *j) {
    if (j) json_dumpf(j, stdout, JSON_PRESERVE_ORDER | JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(j);
}

enum { COLUMNS = 8, CELL_MAX = 64 };

static void fill_cells(const Baton__V1__Node *n, char cells[COLUMNS][CELL_MAX]) {
    snprintf(cells[0], CELL_MAX, "%s", n->id);
    snprintf(cells[1], CELL_MAX, "%s", *n->role ? n->role : "-");
    snprintf(cells[2], CELL_MAX, "%s", n->state);
    snprintf(cells[3], CELL_MAX, "%lld", (long long)n->pid);
    snprintf(cells[4], CELL_MAX, "%s", n->address);
    snprintf(cells[5], CELL_MAX, "%d", n->running);
    snprintf(cells[6], CELL_MAX, "%d", n->waiting);
    if (n->pages)
        snprintf(cells[7], CELL_MAX, "%d free, %d cached, %d pinned of %d", n->pages->free,
                 n->pages->cached, n->pages->pinned, n->pages->total);
    else
        snprintf(cells[7], CELL_MAX, "-");
}

static void print_table(Baton__V1__Node *const *list, size_t count) {
    static const char *const heads[COLUMNS] = {"ID",      "ROLE",    "STATE",   "PID",
                                               "ADDRESS", "RUNNING", "WAITING", "PAGES"};
    char cells[COLUMNS][CELL_MAX];
    int width[COLUMNS];
    for (int k = 0; k < COLUMNS; k++) width[k] = (int)strlen(heads[k]);
    for (size_t i = 0; i < count; i++) {
        fill_cells(list[i], cells);
        for (int k = 0; k < COLUMNS; k++)
            if ((int)strlen(cells[k]) > width[k]) width[k] = (int)strlen(cells[k]);
    }
    for (int k = 0; k < COLUMNS; k++)
        printf("%-*s%s", k < COLUMNS - 1 ? width[k] : 0, heads[k], k < COLUMNS - 1 ? "  " : "\n");
    for (size_t i = 0; i < count; i++) {
        fill_cells(list[i], cells);
        for (int k = 0; k < COLUMNS; k++)
            printf("%-*s%s", k < COLUMNS - 1 ? width[k] : 0, cells[k],
                   k < COLUMNS - 1 ? "  " : "\n");
    }
    for (size_t i = 0; i < count; i++)
        if (*list[i]->why) printf("%s: %s\n", list[i]->id, list[i]->why);
}

static void on_topology(const ProtobufCMessage *m, void *user) {
    const Baton__V1__TopologyResult *t = (const Baton__V1__TopologyResult *)m;
    if (!((const cli_options *)user)->json) {
        print_table(t->nodes, t->n_nodes);
        return;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < t->n_nodes; i++) json_array_append_new(list, node_json(t->nodes[i]));
    print_json(list);
}

static void on_node(const ProtobufCMessage *m, void *user) {
    Baton__V1__Node *n = ((const Baton__V1__NodeResult *)m)->node;
    if (!n) return;
    if (((const cli_options *)user)->json)
        print_json(node_json(n));
    else
        print_table(&n, 1);
}

/* ---- commands -------------------------------------------------------------------------------- */

static cli_exit ask(const cli_options *o, const rpc_method *method, const ProtobufCMessage *request,
                    void (*on_message)(const ProtobufCMessage *m, void *user)) {
    enum { TIMEOUT_MS = 10000 };
    error err = {0};
    cli_client *c = NULL;
    int64_t retry_ms = -1;
    status st = cli_client_open(o, o->server, &c, &err);
    if (st != ST_OK) return cli_client_unopened(st, cli_nodes.name, &err);
    st = cli_client_call(c, method, request, TIMEOUT_MS, on_message, (void *)(uintptr_t)o, &err, &retry_ms);
    cli_client_close(c);
    return cli_client_report(st, &err, o->server, retry_ms, false);
}

static cli_exit nodes(const cli_options *o, const char *const *words, int count) {
    (void)words;
    (void)count;
    Baton__V1__TopologyRequest r = BATON__V1__TOPOLOGY_REQUEST__INIT;
    return ask(o, &cli_topology_method, &r.base, on_topology);
}

static cli_exit order(const cli_options *o, const rpc_method *method, const char *id) {
    Baton__V1__NodeRequest r = BATON__V1__NODE_REQUEST__INIT;
    r.id = (char *)(uintptr_t)id;
    return ask(o, method, &r.base, on_node);
}

static cli_exit drain(const cli_options *o, const char *const *words, int count) {
    (void)count;
    return order(o, &drain_method, words[0]);
}

static cli_exit undrain(const cli_options *o, const char *const *words, int count) {
    (void)count;
    return order(o, &undrain_method, words[0]);
}

static cli_exit role(const cli_options *o, const char *const *words, int count) {
    (void)count;
    if (strcmp(words[1], "prefill") != 0 && strcmp(words[1], "decode") != 0)
        return cli_usage("role", "role '%.40s': expected prefill or decode", words[1]);
    Baton__V1__SetRoleRequest r = BATON__V1__SET_ROLE_REQUEST__INIT;
    r.id = (char *)(uintptr_t)words[0];
    r.role = (char *)(uintptr_t)words[1];
    return ask(o, &role_method, &r.base, on_node);
}
