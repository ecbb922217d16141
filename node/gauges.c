/* gauges.c -- what a node has in hand, for /metrics. The engine thread sets it after each step and before it sleeps. */
#include "node/internal.h"

#define PAGES(state_, name_) [state_] = {.name = "baton_node_pages", .labels = "state=\"" name_ "\"",                     \
                                         .help = "KV pages by state", .kind = METRIC_GAUGE}
static metric pages[ENG_PAGE_STATES] = {
    PAGES(ENG_PAGE_FREE, "free"),       PAGES(ENG_PAGE_PROMISED, "promised"), PAGES(ENG_PAGE_LANDING, "landing"),
    PAGES(ENG_PAGE_RUNNING, "running"), PAGES(ENG_PAGE_SENDING, "sending"),   PAGES(ENG_PAGE_CACHED, "cached"),
    PAGES(ENG_PAGE_HELD, "held"),
};
#define REQUESTS "requests that tokens are computed for (running), and that wait for pages, or for KV from a prefill node (waiting)"
METRIC(running, "baton_node_requests", "state=\"running\"", METRIC_GAUGE, REQUESTS);
METRIC(waiting, "baton_node_requests", "state=\"waiting\"", METRIC_GAUGE, REQUESTS);
METRIC(swapped, "baton_node_swapped_pages", NULL, METRIC_GAUGE, "pages of host memory that hold KV of preempted answers");

void node_gauges_set(const node_core *c) {
    node_counts now;
    node_core_counts(c, &now);
    for (int i = 0; i < ENG_PAGE_STATES; i++) metric_set(&pages[i], now.pages[i]);
    metric_set(&running, now.running);
    metric_set(&waiting, now.waiting);
    metric_set(&swapped, now.swapped);
}
