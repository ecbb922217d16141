/* spent.c -- where the engine thread's time goes, for /metrics: every moment of it belongs to one part, so that the parts of all
 * nodes tell what they lack (idle), what they do, and what it costs to do it together (collective). Rank 0's. */
#include "node/internal.h"

#define PART(name_) {.name = "baton_node_engine_seconds_total", .labels = "part=\"" name_ "\"", .kind = METRIC_SECONDS, \
                     .help = "time of the engine thread: forming batches (with what proposers do), parts of the forward pass, "  \
                             "drawing and telling tokens, waiting for work"}
static metric parts[NODE_SPENTS] = {
    [NODE_SPENT_IDLE] = PART("idle"),
    [NODE_SPENT_SCHEDULE] = PART("schedule"),
    [NODE_SPENT_SAMPLING] = PART("sampling"),
    [NODE_SPENT_OTHER] = PART("other"),
};
static metric step_parts[ENG_SPENTS] = {
    [ENG_SPENT_ATTENTION] = PART("attention"), [ENG_SPENT_FFN] = PART("ffn"),       [ENG_SPENT_ENDS] = PART("embedding_logits"),
    [ENG_SPENT_GROUP] = PART("collective"),    [ENG_SPENT_DEVICE] = PART("device"),
};

static int64_t lap(node_process *p) {
    int64_t then_us = p->spent.at_us;
    p->spent.at_us = clock_now_us();
    return p->spent.at_us - then_us;
}

void node_spent_open(node_process *p) {
    for (int i = 0; i < NODE_SPENTS; i++) metric_show(&parts[i]);
    for (int i = 0; i < ENG_SPENTS; i++) metric_show(&step_parts[i]);
    p->spent.at_us = clock_now_us();
}

void node_spent_on(node_process *p, node_spent on) { metric_add(&parts[on], lap(p)); }

void node_spent_on_step(node_process *p) {
    const int64_t *now_us = eng_model_spent_us(p->rank.model);
    int64_t left_us = lap(p);
    for (int i = 0; i < ENG_SPENTS; i++) {
        int64_t us = now_us[i] - p->spent.step_us[i];
        p->spent.step_us[i] = now_us[i];
        metric_add(&step_parts[i], us);
        left_us -= us;
    }
    metric_add(&parts[NODE_SPENT_OTHER], left_us);
}
