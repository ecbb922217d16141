/* watch.c -- what a node says of itself: the Watch stream, and Control.
 *
 * While anyone watches, a timer ticks ten times a second: it asks the engine thread for its counts (one
 * probe at a time, through the mailbox) and sends the state to those watchers for whom it has changed or
 * whose heartbeat is due. A step may take long: as long as it gets through its layers the last counts are
 * sent again. With neither an answer nor a layer for STUCK_MS, heartbeats stop: a node whose engine hangs
 * is not alive, though its sockets are.
 *
 * A watcher that asks for it is told what the prefix cache holds, too: a number for each page's prefix. The answer to a
 * probe brings what changed; for each watcher there is a bit a page that says whether it was told. So its first
 * messages are the whole, the later ones changes, and one that reads slowly is told less often, not more at once.
 * A pool of any size costs a watcher NODE_CACHE_CHANGES pages a tick at most. */
#include "node/internal.h"
#include <string.h>
#include <unistd.h>

enum { TICK_MS = 100, STUCK_MS = 5000, HEARTBEAT_MS = 1000, COUNTERS_MAX = 256 };

/* One Watch stream. Loop's; from on_watch to on_free. */
struct node_watcher {
    node_watcher *next;
    node_process *p;
    rpc_call *call;              /* NULL: finished */
    int64_t heartbeat_ms, sent_ms;
    uint64_t version;            /* of the state sent last */
    bool blocked;                /* window full */
    uint64_t *untold;            /* (pages) a bit each; NULL: it does not ask */
    int32_t untold_count;
    uint64_t changes;            /* told: numbers them */
};

/* ---- the state as a message --------------------------------------------------------------------------- */

typedef struct state_message {
    Baton__Node__V1__NodeState state;
    Baton__Node__V1__Pairing pairing;
    int32_t pages[ENG_PAGE_STATES];
    Baton__Node__V1__StateCounter counters[COUNTERS_MAX];
    Baton__Node__V1__StateCounter *list[COUNTERS_MAX];
    Baton__Node__V1__RankState ranks[COLL_RANKS_MAX], *ranks_list[COLL_RANKS_MAX];
    Baton__Node__V1__CacheChange cache;
    int32_t cache_pages[NODE_CACHE_CHANGES];
    uint64_t cache_numbers[NODE_CACHE_CHANGES];
} state_message;

static void add_counter(const metric *x, void *ctx) {
    state_message *m = ctx;
    if ((x->kind != METRIC_COUNTER && x->kind != METRIC_SECONDS) || m->state.n_counters == COUNTERS_MAX) return;
    Baton__Node__V1__StateCounter *c = &m->counters[m->state.n_counters];
    baton__node__v1__state_counter__init(c);
    c->name = (char *)(uintptr_t)x->name;
    if (x->labels) c->labels = (char *)(uintptr_t)x->labels;
    c->value = metric_get(x);
    m->list[m->state.n_counters++] = c;
}

void node_watch_pairing(const node_facts *f, Baton__Node__V1__Pairing *out) {
    baton__node__v1__pairing__init(out);
    out->protocol = 1;
    out->model_digest = (char *)(uintptr_t)f->digest;
    out->numerics = (char *)(uintptr_t)f->numerics;
    out->kv_layout = (char *)(uintptr_t)f->kv_layout;
    out->kv_type = (char *)(uintptr_t)f->kv_type;
}

/* What ranks said when they were asked last. */
static void add_rank(const node_process *p, int r, state_message *m) {
    const node_rank_figures *f = &p->watch.ranks[r];
    Baton__Node__V1__RankState *s = m->ranks_list[r] = &m->ranks[r];
    baton__node__v1__rank_state__init(s);
    s->pid = p->rank.met[r].pid;
    s->group_ms = (double)f->group_us / 1e3;
    s->kv_bytes_in = f->bytes_in;
    s->kv_bytes_out = f->bytes_out;
    m->state.ranks = m->ranks_list;
    m->state.n_ranks = (size_t)r + 1;
}

/* Pointers in m look into p and m itself. */
static void fill_state(node_process *p, state_message *m) {
    const node_counts *c = &p->watch.counts;
    Baton__Node__V1__NodeState *s = &m->state;
    baton__node__v1__node_state__init(s);
    node_watch_pairing(&p->facts, &m->pairing);
    memcpy(m->pages, c->pages, sizeof m->pages);
    s->id = p->id;
    s->role = p->role;
    s->draining = p->draining;
    s->pid = getpid();
    s->epoch = p->epoch;
    s->kv_address = (char *)(uintptr_t)p->facts.kv_address;
    s->pairing = &m->pairing;
    s->page_tokens = p->facts.page_tokens;
    s->context = p->facts.context;
    s->pages = m->pages;
    s->n_pages = ENG_PAGE_STATES;
    s->running = c->running;
    s->waiting = c->waiting;
    s->capacity = p->limits.sequences_max;
    s->prefill_tokens_per_s = c->prefill_tokens_per_s;
    s->decode_steps_per_s = c->decode_steps_per_s;
    s->counters = m->list;
    metrics_each(add_counter, m);
    for (int r = 0; r < p->rank.count && p->rank.count > 1; r++) add_rank(p, r, m);
}

/* ---- what the prefix cache holds ----------------------------------------------------------------------- */

static void mark(node_watcher *w, int32_t page) {
    uint64_t bit = 1ull << (page % 64), *word = &w->untold[page / 64];
    w->untold_count += !(*word & bit);
    *word |= bit;
}

static void unmark(node_watcher *w, int32_t page) {
    w->untold[page / 64] &= ~(1ull << (page % 64));
    w->untold_count--;
}

/* The engine's answer becomes what is held, and untold to everyone. */
static void take_changes(node_watch *w) {
    for (int32_t i = 0; i < w->changes.count; i++) {
        int32_t page = w->changes.pages[i];
        w->held[page] = w->changes.numbers[i];
        for (node_watcher *to = w->first; to; to = to->next)
            if (to->untold) mark(to, page);
    }
}

/* A new watcher knows nothing. */
static bool ask_for_cache(node_process *p, node_watcher *w) {
    w->untold = mem_zalloc(((size_t)p->limits.pages + 63) / 64, sizeof *w->untold);
    for (int32_t i = 0; w->untold && i < p->limits.pages; i++)
        if (p->watch.held[i]) mark(w, i);
    return w->untold != NULL;
}

static bool has_untold(const node_watcher *w) { return w->untold && (w->untold_count > 0 || w->changes == 0); }

/* As much as one message takes. */
static void fill_cache(const node_watcher *w, state_message *m) {
    Baton__Node__V1__CacheChange *c = &m->cache;
    m->state.cache = NULL;
    if (!has_untold(w)) return;
    baton__node__v1__cache_change__init(c);
    c->number = w->changes + 1;
    c->whole = w->changes == 0;
    c->pages = m->cache_pages;
    c->numbers = m->cache_numbers;
    for (int32_t word = 0; c->n_pages < (size_t)w->untold_count && c->n_pages < NODE_CACHE_CHANGES; word++)
        for (uint64_t left = w->untold[word]; left && c->n_pages < NODE_CACHE_CHANGES; left &= left - 1) {
            int32_t page = word * 64 + __builtin_ctzll(left);
            c->pages[c->n_pages] = page;
            c->numbers[c->n_pages++] = w->p->watch.held[page];
        }
    c->n_numbers = c->n_pages;
    m->state.cache = c;
}

static void told_cache(node_watcher *w, const state_message *m) {
    if (!m->state.cache) return;
    w->changes++;
    for (size_t i = 0; i < m->cache.n_pages; i++) unmark(w, m->cache.pages[i]);
}

/* ---- probe: is the engine thread alive, and what does it count? ---------------------------------------- */

static void answered(void *process) {
    node_process *p = process;
    node_watch *w = &p->watch;
    w->probing = false;
    w->answered_ms = clock_now_ms();
    memcpy(w->ranks, w->ranks_answer, sizeof w->ranks);
    take_changes(w);
    if (memcmp(&w->answer, &w->counts, sizeof w->counts) == 0) return;
    w->counts = w->answer;
    w->version++;
}

static void run_probe(node_process *p, node_message *m) {
    (void)m;
    memset(&p->watch.answer, 0, sizeof p->watch.answer);   /* padding too: answers are compared as bytes */
    node_core_counts(p->core, &p->watch.answer);
    node_link_figures(p, p->watch.ranks_answer);
    p->watch.changes.count = node_core_cache_changes(p->core, NODE_CACHE_CHANGES, p->watch.changes.pages,
                                                     p->watch.changes.numbers);
    while (rpc_loop_post(p->loop, answered, p) != ST_OK) usleep(1000);
}

/* ---- watchers ------------------------------------------------------------------------------------------- */

static void send_state(node_watcher *w, state_message *m) {
    fill_cache(w, m);
    status st = rpc_call_send(w->call, &m->state.base);
    w->blocked = st == ST_AGAIN;
    if (st == ST_NO_MEMORY) return;                        /* still due: the next tick tries again */
    told_cache(w, m);
    w->sent_ms = clock_now_ms();
    w->version = w->p->watch.version;
}

static void send_due(node_process *p) {
    int64_t now = clock_now_ms();
    state_message m;
    bool filled = false;
    for (node_watcher *w = p->watch.first; w; w = w->next) {
        bool due = w->version != p->watch.version || has_untold(w) || now - w->sent_ms >= w->heartbeat_ms;
        if (!due || w->blocked || !w->call) continue;
        if (!filled) fill_state(p, &m);
        filled = true;
        send_state(w, &m);
    }
}

static bool is_stuck(node_process *p) {
    node_watch *w = &p->watch;
    uint64_t layers_done = eng_model_layers_done(p->rank.model);
    if (layers_done != w->layers_done) w->answered_ms = clock_now_ms();
    w->layers_done = layers_done;
    return w->probing && clock_now_ms() - w->answered_ms >= STUCK_MS;
}

static void tick(void *process) {
    node_process *p = process;
    node_watch *w = &p->watch;
    w->timer = NULL;
    if (!w->first) return;
    if (!is_stuck(p)) send_due(p);
    if (!w->probing) {
        w->probing = true;
        node_process_post(p, &w->probe);
    }
    if (rpc_timer_start(p->loop, TICK_MS, tick, p, &w->timer) != ST_OK)
        log_write(LOG_ERROR, NULL, "watch.stopped", "no memory for a timer: heartbeats end");
}

static void on_cancel(rpc_call *call, void *user) {
    node_watcher *w = user;
    w->call = NULL;
    rpc_call_finish(call, ST_CANCELED, NULL, -1);
}

static void on_writable(rpc_call *call, void *user) {
    (void)call;
    ((node_watcher *)user)->blocked = false;
}

static void on_free(rpc_call *call, void *user) {
    (void)call;
    node_watcher *w = user, **at = &w->p->watch.first;
    while (*at != w) at = &(*at)->next;
    *at = w->next;
    mem_free(w->untold);
    mem_free(w);
}

void node_watch_on_watch(rpc_call *call, const ProtobufCMessage *message, void *process) {
    static const rpc_call_events events = {.on_cancel = on_cancel, .on_writable = on_writable, .on_free = on_free};
    const Baton__Node__V1__WatchRequest *m = (const Baton__Node__V1__WatchRequest *)message;
    node_process *p = process;
    if (m->protocol != 1) {
        error err;
        error_set(&err, ST_REFUSED, "protocol is 1 on this node and %u in the request", m->protocol);
        rpc_call_finish(call, err.code, err.text, -1);
        return;
    }
    node_watcher *w = mem_zalloc(1, sizeof *w);
    if (w && m->cache && !ask_for_cache(p, w)) {
        mem_free(w);
        w = NULL;
    }
    if (!w) {
        rpc_call_finish(call, ST_NO_MEMORY, "no memory for a watcher", 1000);
        return;
    }
    w->p = p;
    w->call = call;
    w->heartbeat_ms = m->heartbeat_ms ? m->heartbeat_ms : HEARTBEAT_MS;
    w->next = p->watch.first;
    p->watch.first = w;
    rpc_call_watch(call, &events, w);
    state_message state;
    fill_state(p, &state);
    send_state(w, &state);
    if (p->watch.timer) return;
    if (!p->watch.probing) p->watch.answered_ms = clock_now_ms();
    tick(p);
}

/* ---- control -------------------------------------------------------------------------------------------- */

static status obey(node_process *p, const Baton__Node__V1__ControlRequest *m, error *err) {
    if (p->closing && m->action != BATON__NODE__V1__CONTROL_REQUEST__ACTION__NONE)
        return error_set(err, ST_REFUSED, "%s is shutting down and takes no orders", p->id);
    switch (m->action) {
    case BATON__NODE__V1__CONTROL_REQUEST__ACTION__NONE: return ST_OK;
    case BATON__NODE__V1__CONTROL_REQUEST__ACTION__DRAIN: p->draining = true; break;
    case BATON__NODE__V1__CONTROL_REQUEST__ACTION__UNDRAIN: p->draining = false; break;
    case BATON__NODE__V1__CONTROL_REQUEST__ACTION__ROLE:
        if (strcmp(m->role, "prefill") != 0 && strcmp(m->role, "decode") != 0)
            return error_set(err, ST_BAD_INPUT, "role '%.30s': expected prefill or decode", m->role);
        snprintf(p->role, sizeof p->role, "%s", m->role);
        break;
    default: return error_set(err, ST_BAD_INPUT, "action %d: expected 0 to 3", (int)m->action);
    }
    p->watch.version++;
    log_write(LOG_INFO, NULL, "node.control", "role=%s draining=%d", p->role, p->draining);
    return ST_OK;
}

void node_watch_on_control(rpc_call *call, const ProtobufCMessage *message, void *process) {
    node_process *p = process;
    error err;
    status st = obey(p, (const Baton__Node__V1__ControlRequest *)message, &err);
    if (st == ST_OK) {
        state_message m;
        fill_state(p, &m);
        if (rpc_call_send(call, &m.state.base) == ST_NO_MEMORY)
            st = error_set(&err, ST_NO_MEMORY, "obeyed, but there is no memory to tell the state");
    }
    rpc_call_finish(call, st, st == ST_OK ? NULL : err.text, -1);
}

bool node_watch_open(node_process *p) {
    p->watch.held = mem_zalloc((size_t)p->limits.pages, sizeof *p->watch.held);
    if (!p->watch.held) return false;
    memset(&p->watch.counts, 0, sizeof p->watch.counts);
    node_core_counts(p->core, &p->watch.counts);
    p->watch.probe.run = run_probe;
    p->watch.version = 1;
    p->watch.answered_ms = clock_now_ms();
    return true;
}

void node_watch_close(node_process *p) { mem_free(p->watch.held); }
