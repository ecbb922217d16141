/* node.c -- a process of the cluster: the shipped node core over simulated pages and a toy engine.
 *
 * What is checked here, at every access: rows are written only to pages that one sequence alone holds
 * and that no transfer may write to; and now and then that each page's pins are exactly the block
 * tables it stands in. */
#include "tests/sim/sim.h"
#include "engine/pool_internal.h"
#include <string.h>

/* ---- toy engine ---------------------------------------------------------------------------------- */

void sim_engine_fold(uint64_t *state, const uint64_t cells[SIM_LAYERS]) {
    for (int l = 0; l < SIM_LAYERS; l++) *state = sim_mix(*state, cells[l]);
}

uint64_t sim_numerics(const sim *s, bool prefill) { return s->mixed && prefill ? 2 : 1; }

/* The cells of one token from all that is before it, and the state with it. */
void sim_engine_row(uint64_t *state, int32_t token, uint64_t numerics, uint64_t cells[SIM_LAYERS]) {
    for (int l = 0; l < SIM_LAYERS; l++) cells[l] = sim_mix(*state + (uint64_t)l, numerics << 32 | (uint64_t)token);
    sim_engine_fold(state, cells);
}

void sim_engine_logits(uint64_t state, float *logits) {
    for (int v = 0; v < SIM_V; v++) logits[v] = (float)(sim_mix(state, (uint64_t)v + 1) >> 40) / 3e6f;
}

uint64_t *sim_node_cell(sim_node *n, int32_t page, int layer, int32_t at) {
    return &n->cells[((size_t)page * SIM_LAYERS + (size_t)layer) * (size_t)n->P + (size_t)at];
}

static void check_write(sim_node *n, int32_t page, const char *what) {
    if (n->page_ticket[page])
        sim_fail(n->s, "node %d: %s writes page %d, which is promised to a transfer", n->slot, what, page);
    if (eng_pool_pins(n->core->pool, page) != 1)
        sim_fail(n->s, "node %d: %s writes page %d, which has %d owners", n->slot, what, page,
                 eng_pool_pins(n->core->pool, page));
}

/* Rows that this sequence had before: its pages were taken from it in between. */
static void see_resumed(sim_node *n, const eng_rows *r) {
    const node_seq *q = n->core->first;
    while (q && q->blocks != r->blocks) q = q->next;
    if (!q || !q->request->apart) return;
    sim_stream *st = n->s->streams[q->request->handle - 1];
    n->s->seen[SEEN_APART_RESUMED] += r->position < st->rows_end;
    st->rows_end = r->position + (r->logits ? r->count - r->logits + 1 : r->count);      /* the others were proposed */
}

static float *compute(sim_node *n, const eng_rows *r, float *logits) {
    see_resumed(n, r);
    uint64_t state = 0, cells[SIM_LAYERS];
    for (int32_t i = 0; i < r->position; i++) {
        int32_t page = r->blocks[i / n->P];
        for (int l = 0; l < SIM_LAYERS; l++) cells[l] = *sim_node_cell(n, page, l, i % n->P);
        sim_engine_fold(&state, cells);
    }
    for (int32_t i = r->position; i < r->position + r->count; i++) {
        int32_t page = r->blocks[i / n->P];
        check_write(n, page, "a step");
        sim_engine_row(&state, r->tokens[i - r->position], n->numerics, cells);
        for (int l = 0; l < SIM_LAYERS; l++) *sim_node_cell(n, page, l, i % n->P) = cells[l];
        if (i < r->position + r->count - r->logits) continue;
        bool careless = n->s->bug == BUG_PROPOSED_ROWS && r->logits > 1 && i > r->position;
        if (careless) memcpy(logits, logits - SIM_V, SIM_V * sizeof *logits);
        else sim_engine_logits(state, logits);
        logits += SIM_V;
    }
    return logits;
}

static status io_step(void *ctx, const eng_rows *rows, int count, const float **logits) {
    sim_node *n = ctx;
    float *out = n->logits;
    n->step_us = sim_range(n->s, 50, 400);
    if (!n->s->healed && sim_chance(n->s, n->s->device)) return ST_DEVICE;
    for (int i = 0; i < count; i++) {
        out = compute(n, &rows[i], out);
        n->step_us += rows[i].count * 5;
    }
    *logits = n->logits;
    return ST_OK;
}

static int64_t io_step_us(void *ctx) { return ((sim_node *)ctx)->step_us; }

static void io_copy_page(void *ctx, int32_t dst, int32_t src, int32_t tokens) {
    sim_node *n = ctx;
    check_write(n, dst, "a copy");
    n->s->seen[SEEN_COPIED]++;
    if (n->s->bug == BUG_NO_COPY) return;
    for (int l = 0; l < SIM_LAYERS; l++)
        memcpy(sim_node_cell(n, dst, l, 0), sim_node_cell(n, src, l, 0), (size_t)tokens * sizeof(uint64_t));
}

/* A page at a time, as its cells are laid out in both. */
static int64_t io_swap(void *ctx, bool out, const int32_t *blocks, const int32_t *slots, int32_t first, int32_t end) {
    sim_node *n = ctx;
    for (int32_t t = first; t < end; t += n->P) {
        uint64_t *host = n->host + (size_t)slots[t / n->P] * SIM_LAYERS * (size_t)n->P;
        uint64_t *page = sim_node_cell(n, blocks[t / n->P], 0, 0);
        size_t bytes = (size_t)SIM_LAYERS * (size_t)n->P * sizeof *host;
        if (!out) check_write(n, blocks[t / n->P], "a swap");
        memcpy(out ? host : page, out ? page : host, bytes);
    }
    return sim_range(n->s, 1, 20) * (end - first);
}

/* Weak tickets are the same for every attempt of a request: then only the epoch keeps them apart. */
static uint64_t io_random_ticket(void *ctx) {
    sim_node *n = ctx;
    uint64_t strong = sim_random(n->s) | 1;
    if (!n->s->weak_tickets) return strong;
    uint64_t weak = sim_mix((uint64_t)n->begins, 3) | 1;
    return kvt_promises_owner(n->promises, weak) ? strong : weak;
}

static bool io_is_end_token(void *ctx, int32_t token) {
    (void)ctx;
    return token == SIM_END_TOKEN;
}

static void io_emit(void *ctx, const node_event *e) {
    sim_node *n = ctx;
    if (!n->dying) sim_coordinator_node_event(n->s, n, e);
}

/* ---- process ------------------------------------------------------------------------------------- */

void sim_node_create(sim *s, sim_node *n) {
    node_limits limits = {.V = SIM_V,
                          .context = SIM_TOKENS_MAX,
                          .pages = n->pages,
                          .page_tokens = n->P,
                          .sequences_max = n->sequences_max,
                          .step_tokens_max = (int32_t)sim_range(s, 8, 64),
                          .chunk_tokens = (int32_t)sim_range(s, 1, 48),
                          .logits_max = (int32_t)sim_range(s, 1, 16),
                          .prefix_cache = sim_chance(s, 0.8),
                          .schedule = &node_schedules[sim_range(s, 0, node_schedules_count - 1)],
                          .itl_target_us = sim_range(s, 0, 2) * 200,
                          .preemption = (node_preemption)sim_range(s, 0, 2),
                          .swap_pages = (int32_t)sim_range(s, 0, 2) * n->pages / 4};
    node_io io = {.ctx = n,
                  .step = io_step,
                  .step_us = io_step_us,
                  .copy_page = io_copy_page,
                  .swap = io_swap,
                  .promise = sim_transfer_promise,
                  .revoke = sim_transfer_revoke,
                  .send_open = sim_transfer_open,
                  .send_push = sim_transfer_push,
                  .send_end = sim_transfer_end,
                  .send_abort = sim_transfer_abort,
                  .random_ticket = io_random_ticket,
                  .is_end_token = io_is_end_token,
                  .emit = io_emit,
                  .speculator = sim_chance(s, 0.5) ? &n->speculator : NULL};
    sim_speculator_create(n);
    n->core = node_core_create(&limits, &io);
    n->promises = kvt_promises_create((int)sim_range(s, 2, 16));
    n->cells = sim_alloc((size_t)n->pages * SIM_LAYERS * (size_t)n->P * sizeof(uint64_t));
    n->host = sim_alloc(((size_t)limits.swap_pages + 1) * SIM_LAYERS * (size_t)n->P * sizeof(uint64_t));
    n->page_ticket = sim_alloc((size_t)n->pages * sizeof(uint64_t));
    n->life = ++s->lives;
    n->prefill = n->starts_prefill;
    n->numerics = sim_numerics(s, n->prefill);
    n->alive = true;
    n->paused = n->draining = n->dying = n->step_due = false;
    n->local_us = n->lease_event_us = n->deaf_us = 0;
    n->held = NULL;
    n->held_end = &n->held;
    sim_coordinator_hear(s, n);
}

/* A core can only be destroyed empty: what the machine would just forget is walked through here. */
static void empty_core(sim *s, sim_node *n) {
    n->dying = true;
    node_core_cancel_all(n->core);
    for (int i = 0; i < s->streams_count; i++) {
        sim_stream *st = s->streams[i];
        if (st->node != n->slot || st->life != n->life) continue;
        if (st->prefill)
            node_core_sent(n->core, st->handle, ST_CANCELED, 0, 0, s->now_us);
        else
            node_core_landed(n->core, st->handle, ST_CANCELED, 0, s->now_us);
    }
}

void sim_node_destroy(sim *s, sim_node *n) {
    s->seen[SEEN_PREEMPTED] += (uint64_t)n->core->figures.preemptions;
    s->seen[SEEN_SWAPPED] += (uint64_t)n->core->figures.swaps;
    empty_core(s, n);
    sim_transfer_forget(s, n);
    node_core_destroy(n->core);
    kvt_promises_destroy(n->promises);
    mem_free(n->cells);
    mem_free(n->host);
    mem_free(n->page_ticket);
    n->core = NULL;
    n->promises = NULL;
    n->alive = false;
    for (sim_event *e = n->held, *next; e; e = next) {
        next = e->next;
        if (e->dropped) e->dropped(s, e);
        mem_free(e->data);
        e->next = s->spare;
        s->spare = e;
    }
    n->held = NULL;
}

/* What waited happens now, in the order it came. */
void sim_node_resume(sim *s, sim_node *n) {
    sim_event *e = n->held;
    n->held = NULL;
    n->held_end = &n->held;
    n->paused = false;
    while (e) {
        sim_event *next = e->next;
        sim_event *again = sim_at_node(s, s->now_us, n->slot, n->life, e->run);
        again->dropped = e->dropped;
        again->a = e->a;
        again->b = e->b;
        again->data = e->data;
        e->next = s->spare;
        s->spare = e;
        e = next;
    }
}

static void step(sim *s, sim_event *e) {
    sim_node *n = &s->nodes[e->node];
    n->step_due = false;
    if (!node_core_step(n->core, s->now_us)) return;
    n->step_due = true;
    sim_at_node(s, s->now_us + n->step_us, n->slot, n->life, step);
}

void sim_node_awake(sim *s, sim_node *n) {
    if (n->step_due) return;
    n->step_due = true;
    sim_at_node(s, s->now_us + 1, n->slot, n->life, step);
}

sim_event *sim_node_post(sim *s, sim_node *n, void (*run)(sim *, sim_event *)) {
    int64_t at_us = s->now_us + sim_range(s, 1, 200);
    n->local_us = at_us > n->local_us ? at_us : n->local_us + 1;
    return sim_at_node(s, n->local_us, n->slot, n->life, run);
}

/* ---- checks -------------------------------------------------------------------------------------- */

/* Pins are block tables, and no page serves two tenants. */
static void check_pins(sim *s, sim_node *n) {
    int32_t holders[512] = {0};
    uint64_t salts[512];
    for (const node_seq *q = n->core->first; q; q = q->next) {
        s->seen[SEEN_HELD_UNPINNED] += q->request->hold && !q->runnable && q->blocks_count == 0;
        for (int32_t i = 0; i < q->blocks_count; i++) {
            int32_t page = q->blocks[i];
            if (holders[page]++ > 0 && salts[page] != q->request->salt)
                sim_fail(s, "node %d: page %d serves two tenants", n->slot, page);
            salts[page] = q->request->salt;
        }
    }
    for (int32_t i = 0; i < n->pages; i++)
        if (holders[i] != eng_pool_pins(n->core->pool, i))
            sim_fail(s, "node %d: page %d has %d pins and %d holders", n->slot, i,
                     eng_pool_pins(n->core->pool, i), holders[i]);
}

static void check_leases(sim *s, const sim_node *n) {
    for (const sim_receipt *r = n->receipts; r; r = r->next) {
        int64_t end_us = r->renewed_us + (int64_t)s->lease_ms * 1000 + 2000;
        if (!n->paused && s->now_us > end_us && n->paused_us < end_us)
            sim_fail(s, "node %d: handle %llu holds pages %.1f ms past its lease", n->slot,
                     (unsigned long long)r->handle, (double)(s->now_us - end_us) / 1000);
    }
}

void sim_node_check(sim *s, sim_node *n, bool quiet) {
    if (!n->alive) return;
    int32_t counts[ENG_PAGE_STATES], total = 0;
    check_pins(s, n);
    check_leases(s, n);
    eng_pool_counts(n->core->pool, counts);
    for (int i = 0; i < ENG_PAGE_STATES; i++) total += counts[i];
    if (total != n->pages) sim_fail(s, "node %d: %d of %d pages are somewhere", n->slot, total, n->pages);
    node_counts figures;
    node_core_counts(n->core, &figures);
    if (quiet && figures.swapped) sim_fail(s, "node %d: %d pages of host memory leaked", n->slot, figures.swapped);
    if (quiet && counts[ENG_PAGE_FREE] + counts[ENG_PAGE_CACHED] != n->pages)
        sim_fail(s, "node %d: %d pages leaked", n->slot,
                 n->pages - counts[ENG_PAGE_FREE] - counts[ENG_PAGE_CACHED]);
}
