/* speculator.c -- proposes tokens to the sequences of a node that decodes: the right ones, wrong ones, and fewer than were
 * planned, as the seed has it. What an answer is must not depend on any of that. */
#include "tests/sim/sim.h"

enum { PROPOSED_MAX = 6 };

static void join(void *ctx, node_seq *q) { q->speculation = ctx; }

static void leave(void *ctx, node_seq *q) { (void)ctx, q->speculation = NULL; }

static bool work(void *ctx) { return (void)ctx, false; }

static int32_t plan(void *ctx, node_seq *q, int32_t most, int32_t decoding) {
    sim_node *n = ctx;
    (void)q, (void)decoding;
    int32_t wanted = (int32_t)sim_range(n->s, 0, PROPOSED_MAX);
    return wanted < most ? wanted : most;
}

static void propose(void *ctx, node_seq *const *seqs, int32_t *counts, int count) {
    sim_node *n = ctx;
    sim *s = n->s;
    for (int i = 0; i < count; i++) {
        node_seq *q = seqs[i];
        const int32_t *right = s->requests[s->streams[q->request->handle - 1]->request].tokens + q->count;
        if (sim_chance(s, 0.2)) counts[i] = (int32_t)sim_range(s, 0, counts[i]);
        for (int32_t k = 0; k < counts[i]; k++)
            q->tokens[q->count + k] = sim_chance(s, 0.8) ? right[k] : (int32_t)sim_range(s, 0, SIM_V - 1);
    }
}

static void judge(void *ctx, node_seq *q, int32_t proposed, int32_t accepted, const float *rest) {
    sim_node *n = ctx;
    (void)q, (void)rest;
    if (accepted < 0 || accepted > proposed)
        sim_fail(n->s, "node %d: %d of %d proposed tokens were accepted", n->slot, accepted, proposed);
    n->s->seen[SEEN_ACCEPTED] += (uint64_t)accepted;
    n->s->seen[SEEN_REJECTED] += (uint64_t)(proposed - accepted);
}

static void stepped(void *ctx, int32_t rows, int64_t took_us) { (void)ctx, (void)rows, (void)took_us; }

void sim_speculator_create(sim_node *n) {
    n->speculator = (node_speculator){.ctx = n, .join = join, .leave = leave, .work = work, .plan = plan, .propose = propose,
                                      .judge = judge, .stepped = stepped};
}
