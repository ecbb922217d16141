/* process.c -- a node as a process: opens everything, runs the engine thread, closes everything.
 *
 * The engine thread's loop is run_engine(): poll what arrived, admit, step, emit. While it runs, it alone
 * touches core, model and pages (but for pinned pages, see link.c, and eng_model_layers_done(), from any
 * thread); before and after, who opens and closes the node does. Events go to the loop together, one post
 * for a step's. */
#include "node/internal.h"
#include <assert.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const service_names[] = {"baton.node.v1.Node"};

/* ---- mailbox and outbox ---------------------------------------------------------------------------------- */

/* A session posts at most submit, cancel, pause and bye; its sequence has at most one landing or sending,
 * which posts at most two; the process posts a probe, a cancel_all and a stop. All of them stand in
 * objects that post each message once at a time, and sessions are bounded: so it can not be full. */
static size_t mail_capacity(int sessions_max) { return 6 * (size_t)sessions_max + 3; }

void node_process_post(node_process *p, node_message *m) {
    status st = mailbox_post(p->mail, m);
    assert(st == ST_OK);
}

/* Takes the whole half that the engine has filled. Loop thread. */
static void deliver(void *process) {
    node_process *p = process;
    node_outbox *o = &p->outbox;
    pthread_mutex_lock(&o->lock);
    node_letter *letters = o->filling;
    int count = o->count;
    o->filling = o->reading;
    o->reading = letters;
    o->count = 0;
    o->posted = false;
    pthread_cond_signal(&o->emptied);
    pthread_mutex_unlock(&o->lock);
    for (int i = 0; i < count; i++) {
        node_session_deliver(p, &letters[i]);
        if (letters[i].event.kind == NODE_RESERVED) kvt_key_wipe(&letters[i].event, sizeof letters[i].event);
    }
}

/* Tells the loop that there is something, once. Engine thread. */
static void flush_outbox(node_process *p) {
    node_outbox *o = &p->outbox;
    pthread_mutex_lock(&o->lock);
    bool post = o->count > 0 && !o->posted;
    if (post) o->posted = true;
    pthread_mutex_unlock(&o->lock);
    while (post && rpc_loop_post(p->loop, deliver, p) != ST_OK) usleep(1000);
}

static void emit(void *ctx, const node_event *e) {
    node_process *p = ctx;
    node_outbox *o = &p->outbox;
    pthread_mutex_lock(&o->lock);
    while (o->count == NODE_OUTBOX) {                      /* the loop is behind: it never waits for us */
        pthread_mutex_unlock(&o->lock);
        flush_outbox(p);
        pthread_mutex_lock(&o->lock);
        if (o->count == NODE_OUTBOX) pthread_cond_wait(&o->emptied, &o->lock);
    }
    node_letter *letter = &o->filling[o->count++];
    letter->event = *e;
    if (e->kind == NODE_RESERVED)
        letter->event.reserved.sealed = node_link_key(p, e->reserved.ticket, letter->event.reserved.key);
    letter->has_text = e->kind == NODE_END && e->end.text;
    if (letter->has_text) {
        snprintf(letter->text, sizeof letter->text, "%s", e->end.text);
        letter->event.end.text = NULL;
    }
    pthread_mutex_unlock(&o->lock);
}

/* ---- the engine thread ------------------------------------------------------------------------------------ */

static status step(void *ctx, const eng_rows *rows, int count, const float **logits) {
    node_process *p = ctx;
    error err;
    node_spent_on(p, NODE_SPENT_SCHEDULE);
    int64_t began_us = p->spent.at_us;
    status st = eng_step(p->rank.model, p->rank.kv, rows, count, logits, &err);
    node_spent_on_step(p);
    p->step_us = p->spent.at_us - began_us;
    p->spent.now = NODE_SPENT_SAMPLING;
    if (st != ST_OK && p->rank.group) node_rank_lost(&err);
    if (st != ST_OK) log_write(LOG_ERROR, NULL, "step.failed", "%s", err.text);
    return st;
}

static bool draws(void *ctx, eng_draw *d) { return eng_step_draws(((node_process *)ctx)->rank.model, d); }
static int64_t step_us(void *ctx) { return ((node_process *)ctx)->step_us; }
static void copy_page(void *ctx, int32_t dst, int32_t src, int32_t tokens) {
    eng_kv_copy(((node_process *)ctx)->rank.kv, dst, src, tokens);
}
static bool is_end_token(void *ctx, int32_t token) {
    return eng_vocab_is_stop(((node_process *)ctx)->vocab, token);
}

static void run_cancel_all(node_process *p, node_message *m) { (void)m, node_core_cancel_all(p->core); }
static void run_stop(node_process *p, node_message *m) { (void)m, p->stopping = true; }

static void *run_engine(void *process) {
    node_process *p = process;
    bool busy = false;
    node_spent_open(p);
    while (!p->stopping) {
        node_message *m = busy ? mailbox_take(p->mail) : mailbox_wait(p->mail, node_link_sleep_ms(p));
        if (!busy) node_spent_on(p, NODE_SPENT_IDLE);
        for (; m; m = mailbox_take(p->mail)) m->run(p, m);
        flush_outbox(p);                                   /* what was reserved need not wait for a step */
        node_spent_on(p, NODE_SPENT_OTHER);
        p->spent.now = NODE_SPENT_SCHEDULE;
        busy = node_core_step(p->core, p->spent.at_us);
        node_spent_on(p, p->spent.now);
        flush_outbox(p);
        busy = node_link_turn(p) || busy;
        node_gauges_set(p->core);
    }
    return NULL;
}

/* ---- open --------------------------------------------------------------------------------------------------- */

static int32_t or_default(int32_t value, int32_t fallback) { return value > 0 ? value : fallback; }

void node_limits_set(node_limits *l, const node_options *o) {
    *l = (node_limits){.pages = or_default(o->kv_pages, 512),
                              .page_tokens = or_default(o->page_tokens, 16),
                              .sequences_max = or_default(o->sequences_max, 64),
                              .step_tokens_max = or_default(o->step_tokens_max, 512),
                              .prefix_cache = o->prefix_cache,
                              .schedule = o->schedule,
                              .itl_target_us = (int64_t)o->itl_target_ms * 1000,
                              .preemption = o->preemption};
    l->chunk_tokens = or_default(o->chunk_tokens, l->step_tokens_max);
    l->logits_max = min32(l->step_tokens_max, 64);
}

static status open_engine(node_process *p, const node_options *o, error *err) {
    TRY(node_rank_open(&p->rank, o, &p->limits, err));
    TRY(eng_vocab_open(p->rank.gguf, &p->vocab, err));
    const eng_shape *shape = eng_model_shape(p->rank.model);
    p->limits.V = shape->V;
    p->limits.context = shape->context;
    p->limits.swap_pages = p->rank.swap_pages;
    return ST_OK;
}

static status open_core(node_process *p, const node_options *o, error *err) {
    node_io io = {.ctx = p,
                  .step = step,
                  .draws = draws,
                  .step_us = step_us,
                  .copy_page = copy_page,
                  .is_end_token = is_end_token,
                  .emit = emit,
                  .speculator = o->speculator};
    TRY(node_link_open(p, &io, err));
    p->core = node_core_create(&p->limits, &io);
    p->mail = mailbox_create(mail_capacity(p->sessions_max));
    p->outbox.filling = mem_zalloc(NODE_OUTBOX, sizeof(node_letter));
    p->outbox.reading = mem_zalloc(NODE_OUTBOX, sizeof(node_letter));
    p->cancel_all.run = run_cancel_all;
    p->stop.run = run_stop;
    if (!p->core || !p->mail || !p->outbox.filling || !p->outbox.reading)
        return error_set(err, ST_NO_MEMORY, "no memory for %d pages and %d sequences", p->limits.pages,
                         p->limits.sequences_max);
    return ST_OK;
}

/* What this node is, for requests and coordinators. Arithmetic, ranks and the pages' type decide bytes: numerics. */
static void fill_facts(node_process *p, const node_options *o) {
    const eng_shape *shape = eng_model_shape(p->rank.model);
    node_facts *f = &p->facts;
    size_t used = 0;
    /* What the pool can not hold is beyond the context here as in the core. */
    int64_t held = (int64_t)p->limits.pages * p->limits.page_tokens;
    f->V = shape->V;
    f->context = held < shape->context ? (int32_t)held : shape->context;
    f->page_tokens = p->limits.page_tokens;
    f->h = shape->h;
    snprintf(f->digest, sizeof f->digest, "%s", eng_gguf_digest(p->rank.gguf));
    snprintf(f->kv_type, sizeof f->kv_type, "%s", eng_kv_type_name(o->kv_type));
    snprintf(f->numerics, sizeof f->numerics, "%s/tp-%d/kv-%s", eng_model_numerics(p->rank.model), p->rank.count, f->kv_type);
    snprintf(f->kv_layout, sizeof f->kv_layout, "L%dK%dh%d%s%s", shape->L, shape->K, shape->h, o->kv_transport ? "/" : "",
             o->kv_transport ? o->kv_transport : "");
    for (int r = 0; r < p->rank.count; r++)
        used += (size_t)snprintf(p->kv_addresses + used, sizeof p->kv_addresses - used, "%s%s", r ? "," : "", p->rank.met[r].kv_address);
    f->kv_address = p->kv_addresses;
}

static status open_server(node_process *p, const node_options *o, const node_service *const *services,
                          int count, error *err) {
    p->methods[0] = (rpc_method){"/baton.node.v1.Node/Watch", RPC_SERVER_STREAM,
                                 &baton__node__v1__watch_request__descriptor,
                                 &baton__node__v1__node_state__descriptor, node_watch_on_watch};
    p->methods[1] = (rpc_method){"/baton.node.v1.Node/Control", RPC_UNARY,
                                 &baton__node__v1__control_request__descriptor,
                                 &baton__node__v1__node_state__descriptor, node_watch_on_control};
    TRY(rpc_loop_create(&p->loop, err));
    TRY(rpc_server_open(p->loop, o->listen, p->methods, 2, p, &p->server, err));
    node_session_show();
    for (int i = 0; i < count; i++) {
        node_table *t = &p->tables[i];
        if (services[i]->show) services[i]->show();
        *t = (node_table){p, services[i],
                          {services[i]->path, RPC_SERVER_STREAM, services[i]->request, services[i]->reply,
                           node_session_open}};
        if (rpc_server_add(p->server, &t->method, 1, t) != ST_OK)
            return error_set(err, ST_NO_MEMORY, "no memory for the methods");
    }
    if (rpc_health_add(p->server, service_names, 1, &p->health) != ST_OK)
        return error_set(err, ST_NO_MEMORY, "no memory for the health service");
    return ST_OK;
}

static status open_member(node_process *p, const node_options *o, error *err) {
    Baton__Node__V1__NodeRecord r = BATON__NODE__V1__NODE_RECORD__INIT;
    Baton__Node__V1__Pairing pairing;
    if (!o->registry) return ST_OK;
    node_watch_pairing(&p->facts, &pairing);
    r.id = p->id;
    r.role = p->role;
    r.epoch = p->epoch;
    r.address = (char *)(uintptr_t)node_process_address(p);
    r.kv_address = (char *)(uintptr_t)p->facts.kv_address;
    r.pairing = &pairing;
    r.ranks = p->rank.count;
    r.page_tokens = p->facts.page_tokens;
    r.pages = p->limits.pages;
    r.context = p->facts.context;
    r.capacity = p->limits.sequences_max;
    r.pid = getpid();
    return cluster_member_open(p->loop, o->registry, &r, o->displaced, o->displaced_ctx, &p->member, err);
}

static status start(node_process *p, error *err) {
    if (!node_watch_open(p)) return error_set(err, ST_NO_MEMORY, "no memory for %d pages' numbers", p->limits.pages);
    rpc_server_start(p->server);
    rpc_health_set(p->health, true);
    int rc = pthread_create(&p->engine, NULL, run_engine, p);
    if (rc != 0) return error_set(err, ST_NO_MEMORY, "cannot start the engine thread: %s", strerror(rc));
    pthread_setname_np(p->engine, "node-engine");
    p->engine_runs = true;
    if (rpc_loop_start(p->loop, "node-rpc") != ST_OK)
        return error_set(err, ST_NO_MEMORY, "cannot start the rpc thread");
    return ST_OK;
}

static void destroy(node_process *p) {
    if (p->engine_runs) {
        node_process_post(p, &p->stop);
        pthread_join(p->engine, NULL);
        eng_dismiss(p->rank.model, NULL);
    }
    kvt_node_close(p->rank.kvt);
    p->rank.kvt = NULL;
    if (p->member) cluster_member_leave(p->member, NULL, NULL);
    if (p->server) rpc_server_close(p->server, NULL, NULL);
    rpc_loop_destroy(p->loop);
    for (node_message *m; p->mail && (m = mailbox_take(p->mail));) m->run(p, m);
    mailbox_destroy(p->mail);
    node_link_close(p);
    node_core_destroy(p->core);
    if (p->vocab) eng_vocab_close(p->vocab);
    node_rank_close(&p->rank);
    node_watch_close(p);
    mem_free(p->outbox.filling);
    mem_free(p->outbox.reading);
    pthread_cond_destroy(&p->outbox.emptied);
    pthread_mutex_destroy(&p->outbox.lock);
    mem_free(p);
}

status node_process_open(const node_options *o, const node_service *const *services, int count,
                         node_process **out, error *err) {
    assert(count <= NODE_SERVICES_MAX);
    if (strcmp(o->role, "prefill") != 0 && strcmp(o->role, "decode") != 0)
        return error_set(err, ST_BAD_INPUT, "role '%.30s': expected prefill or decode", o->role);
    node_process *p = mem_zalloc(1, sizeof *p);
    if (!p) return error_set(err, ST_NO_MEMORY, "no memory for a node");
    pthread_mutex_init(&p->outbox.lock, NULL);
    pthread_cond_init(&p->outbox.emptied, NULL);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    p->epoch = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    snprintf(p->id, sizeof p->id, "%s", o->id);
    snprintf(p->role, sizeof p->role, "%s", o->role);
    node_limits_set(&p->limits, o);
    /* Beyond those that run: calls that are being refused, and ones whose last event is on its way. */
    p->sessions_max = 2 * p->limits.sequences_max + 64;
    status st = open_engine(p, o, err);
    if (st == ST_OK) st = open_core(p, o, err);
    if (st == ST_OK) {
        fill_facts(p, o);
        st = open_server(p, o, services, count, err);
    }
    if (st == ST_OK) {
        node_rank_log_memory(&p->rank, o, &p->limits, "memory.outbox", 2 * NODE_OUTBOX * sizeof(node_letter));
        st = open_member(p, o, err);
    }
    if (st == ST_OK) st = start(p, err);
    if (st != ST_OK) {
        destroy(p);
        return st;
    }
    log_write(LOG_INFO, NULL, "node.ready", "role=%s grpc=%s kv=%s", p->role, node_process_address(p),
              node_process_kv_address(p));
    *out = p;
    return ST_OK;
}

const char *node_process_address(const node_process *p) { return rpc_server_address(p->server); }
const char *node_process_kv_address(const node_process *p) { return p->facts.kv_address; }
bool node_process_draining(const node_process *p) { return atomic_load(&p->draining); }

/* ---- close ---------------------------------------------------------------------------------------------------- */

static void refuse_new(void *process) {
    node_process *p = process;
    p->draining = p->closing = true;
    p->watch.version++;
    rpc_health_set(p->health, false);
}

static void closed(void *process) {
    node_process *p = process;
    pthread_mutex_lock(&p->outbox.lock);
    p->closed = true;
    pthread_mutex_unlock(&p->outbox.lock);
}

static void close_server(void *process) {
    node_process *p = process;
    rpc_server *server = p->server;
    p->server = NULL;
    rpc_server_close(server, closed, p);
}

/* The registration goes last: until then the node has work, and its entry says where it is. */
static void leave(void *process) {
    node_process *p = process;
    cluster_member *member = p->member;
    p->member = NULL;
    if (member) cluster_member_leave(member, close_server, p);
    else close_server(p);
}

static bool is_closed(node_process *p) {
    pthread_mutex_lock(&p->outbox.lock);
    bool yes = p->closed;
    pthread_mutex_unlock(&p->outbox.lock);
    return yes;
}

static void post_to_loop(node_process *p, void (*fn)(void *)) {
    while (rpc_loop_post(p->loop, fn, p) != ST_OK) usleep(1000);
}

/* An answer that is moved away ends here first; then its pages are fetched, by a Prefill that is given FETCH_MS to come. (Who
 * cancels for another reason makes it wait as long.)
 * Fences stand between a cancel and the end of a session, so the wait for the last session is not
 * bounded by grace_ms; kvtransfer answers a revoke or an abort without its peer. */
void node_process_close(node_process *p, int grace_ms) {
    enum { FETCH_MS = 1500 };
    int64_t now_ms = clock_now_ms(), until_ms = now_ms + grace_ms, busy_ms = now_ms;
    post_to_loop(p, refuse_new);
    for (; now_ms < until_ms; now_ms = clock_now_ms()) {
        if (atomic_load(&p->sessions) > 0) busy_ms = now_ms;
        else if (atomic_load(&p->owed) <= 0 || now_ms - busy_ms >= FETCH_MS) break;
        usleep(5000);
    }
    log_write(LOG_INFO, NULL, "node.closing", "canceled=%d", atomic_load(&p->sessions));
    node_process_post(p, &p->cancel_all);
    post_to_loop(p, leave);
    while (atomic_load(&p->sessions) > 0 || !is_closed(p)) usleep(1000);
    destroy(p);
}
