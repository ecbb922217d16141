/* service.c -- gRPC around the core: opens and closes everything, feeds events in, carries actions
 * out.
 *
 *   node says something   view -> [on_state, on_lost]  -+
 *   stream to a node      leg.c                        -+-> coord_service_feed -> core -> [act]
 *   client's call         generate.c                   -+     DO_DECODE, _PREFILL, _CANCEL_*: leg.c
 *   time                  [on_tick]                    -+     DO_EMIT, DO_FINISH: generate.c
 *
 * A step's actions point into the core and are valid until the next step, so nothing may step
 * inside one. Whoever has something to tell the core while its actions are carried out (a stream
 * that did not start, a stop string found, a call to cancel) marks its branch due; the marks are
 * worked off after the step [coord_service_settle].
 *
 * Shutting down: new calls are refused, accepted ones run on for grace_ms, the rest is canceled. */
#include "coordinator/service.h"
#include "proto/descriptors.h"
#include <assert.h>
#include <pthread.h>
#include <string.h>
#include <xxhash.h>

static const rpc_method inference_methods[] = {
    {"/baton.v1.Inference/Generate", RPC_SERVER_STREAM, &baton__v1__generate_request__descriptor,
     &baton__v1__generate_chunk__descriptor, coord_generate_on_request},
    {"/baton.v1.Inference/GenerateOnce", RPC_UNARY, &baton__v1__generate_request__descriptor,
     &baton__v1__generate_result__descriptor, coord_generate_once_on_request},
    {"/baton.v1.Inference/Tokenize", RPC_UNARY, &baton__v1__tokenize_request__descriptor,
     &baton__v1__tokenize_result__descriptor, coord_tokens_tokenize},
    {"/baton.v1.Inference/Detokenize", RPC_UNARY, &baton__v1__detokenize_request__descriptor,
     &baton__v1__detokenize_result__descriptor, coord_tokens_detokenize},
    {"/baton.v1.Inference/ListModels", RPC_UNARY, &baton__v1__list_models_request__descriptor,
     &baton__v1__list_models_result__descriptor, coord_tokens_list_models},
    {"/baton.v1.Inference/GetModel", RPC_UNARY, &baton__v1__get_model_request__descriptor,
     &baton__v1__model__descriptor, coord_tokens_get_model},
};
enum { INFERENCE_METHODS = sizeof inference_methods / sizeof *inference_methods };

static const char *const service_names[] = {"baton.v1.Inference", "baton.v1.Cluster",
                                            "grpc.health.v1.Health"};

/* ---- branches by number ---------------------------------------------------------------------- */

#undef uthash_nonfatal_oom
#define uthash_nonfatal_oom(b) ((b)->number = 0)

coord_branch *coord_service_branch(coord_service *s, uint64_t number) {
    coord_branch *b = NULL;
    HASH_FIND(hh, s->branches, &number, sizeof number, b);
    return b;
}

bool coord_service_join(coord_service *s, coord_branch *b) {
    b->number = ++s->numbers;
    HASH_ADD(hh, s->branches, number, sizeof b->number, b);
    return b->number != 0;
}

void coord_service_leave(coord_service *s, coord_branch *b) {
    HASH_DELETE(hh, s->branches, b);
    b->number = 0;
}

/* ---- steps ----------------------------------------------------------------------------------- */

static void placed(coord_branch *b) {
    if (b->placed_us) return;
    b->placed_us = clock_now_us();
    coord_figures_queued(b, b->placed_us);
}

static void act(coord_service *s, const coord_action *a) {
    coord_branch *b = coord_service_branch(s, a->request);
    assert(b);
    switch (a->kind) {
    case COORD_DO_DECODE:
        placed(b);
        if (b->held_us && b->taken_us == 0) b->taken_us = clock_now_us();
        coord_generate_costs(b, a->decode.costs, a->decode.costs_count);
        coord_leg_start(b, LEG_DECODE, a);
        break;
    case COORD_DO_PREFILL:
        placed(b);
        coord_generate_costs(b, a->prefill.costs, a->prefill.costs_count);
        coord_leg_start(b, LEG_PREFILL, a);
        break;
    case COORD_DO_CANCEL_DECODE:
        coord_leg_cancel(b, LEG_DECODE, a->attempt);
        break;
    case COORD_DO_CANCEL_PREFILL:
        coord_leg_cancel(b, LEG_PREFILL, a->attempt);
        break;
    case COORD_DO_EMIT:
        coord_generate_emit(b, a);
        break;
    case COORD_DO_FINISH:
        coord_generate_finish(b, a);
        break;
    }
}

static void step(coord_service *s, const coord_event *e) {
    assert(!s->stepping);
    coord_actions actions;
    s->stepping = true;
    coord_core_step(s->core, e, clock_now_ms(), &actions);
    for (int i = 0; i < actions.count; i++) act(s, &actions.at[i]);
    s->stepping = false;
}

static void on_tick(void *arg) {
    coord_service *s = arg;
    coord_event e = {.kind = COORD_TICK};
    s->tick = NULL;
    s->tick_ms = INT64_MAX;
    coord_service_feed(s, &e);
}

static void set_tick(coord_service *s) {
    int64_t next = coord_core_next_tick_ms(s->core);
    if (next == s->tick_ms) return;
    if (s->tick) rpc_timer_cancel(s->tick);
    s->tick = NULL;
    s->tick_ms = INT64_MAX;
    if (next == INT64_MAX) return;
    int64_t delay_ms = next - clock_now_ms();
    if (rpc_timer_start(s->loop, delay_ms > 0 ? delay_ms : 0, on_tick, s, &s->tick) == ST_OK)
        s->tick_ms = next;
}

/* Without room in the table for a branch the request ends as the core would end it. */
static void submit(coord_service *s, coord_branch *b) {
    const coord_client *c = b->client;
    coord_event e = {.kind = COORD_SUBMIT};
    if (!coord_service_join(s, b)) {
        coord_generate_cancel(b->client, ST_NO_MEMORY, "no memory for another request");
        return;
    }
    e.request = b->number;
    e.submit.id = b->id;
    e.submit.tokens = b->tokens;
    e.submit.count = b->count;
    e.submit.prompt_count = c->job.count;
    e.submit.max_tokens = c->job.max_tokens;
    e.submit.deadline_ms = c->deadline_ms;
    e.submit.prefer_node = b->prefer_node;
    e.submit.tenant = c->tenant;
    e.submit.salt = c->tenant;
    e.submit.explain = c->job.explain;
    e.submit.prompt_here = coord_generate_wants_prompt(b);
    step(s, &e);
}

static void tell(coord_service *s, coord_branch *b) {
    for (int kind = 0; kind < 2; kind++) {
        coord_event e = {.kind = kind == LEG_DECODE ? COORD_DECODE_END : COORD_PREFILL_END};
        e.request = b->number;
        e.attempt = b->failed_attempt[kind];
        e.end.st = b->failed_status[kind];
        e.end.text = "its stream did not start";
        e.end.retry_after_ms = -1;
        b->failed_attempt[kind] = 0;
        if (e.attempt && b->number) step(s, &e);
    }
    bool stop = b->want_stop;
    if (b->number && (stop || b->want_cancel)) {
        coord_event e = {.kind = stop ? COORD_STOP : COORD_CANCEL, .request = b->number};
        b->want_stop = b->want_cancel = false;
        step(s, &e);
    }
}

void coord_service_due(coord_branch *b) {
    coord_service *s = b->client->service;
    if (b->due) return;
    b->due = true;
    b->due_next = s->due;
    s->due = b;
}

void coord_service_settle(coord_service *s) {
    if (s->stepping) return;
    for (coord_branch *b; (b = s->due);) {
        s->due = b->due_next;
        b->due = false;
        if (b->want_submit && !b->number && !b->finished) {
            b->want_submit = false;
            submit(s, b);
        } else {
            tell(s, b);
        }
    }
    set_tick(s);
    coord_figures_load(s->core, &s->shown);
}

void coord_service_feed(coord_service *s, const coord_event *e) {
    if (s->closed) return;
    step(s, e);
    coord_service_settle(s);
}

/* ---- nodes ----------------------------------------------------------------------------------- */

static coord_role role_of(const Baton__Node__V1__NodeState *state) {
    return strcmp(state->role, "prefill") == 0  ? COORD_PREFILL
           : strcmp(state->role, "decode") == 0 ? COORD_DECODE
                                                : (coord_role)0;
}

/* The field of its pairing that keeps a node from being used; NULL: none. */
static const char *mismatch(const coord_service *s, const Baton__Node__V1__NodeState *state,
                            const char **theirs, const char **expected) {
    const Baton__Node__V1__Pairing *p = state->pairing;
    *theirs = p ? p->model_digest : "none";
    *expected = s->model.digest;
    if (strcmp(*theirs, *expected) != 0) return "model_digest";
    *theirs = p->numerics;
    *expected = s->numerics[role_of(state)];
    return **expected && strcmp(*theirs, *expected) != 0 ? "numerics" : NULL;
}

bool coord_service_matches(const coord_service *s, const Baton__Node__V1__NodeState *state) {
    const char *theirs, *expected;
    return !mismatch(s, state, &theirs, &expected);
}

/* One node's part of it: states come ten times a second from each of many. */
static void count_ready(coord_service *s, int node) {
    const Baton__Node__V1__NodeState *state = cluster_view_state(s->view, node);
    bool is = cluster_view_alive(s->view, node) && !state->draining && coord_service_matches(s, state);
    coord_role was = s->ready_as[node], now = is ? role_of(state) : (coord_role)0;
    if (was == now) return;
    s->ready_as[node] = (unsigned char)now;
    if (was) __atomic_fetch_sub(&s->ready[was], 1, __ATOMIC_RELAXED);
    if (now) __atomic_fetch_add(&s->ready[now], 1, __ATOMIC_RELAXED);
    rpc_health_set(s->health, s->ready[COORD_DECODE] > 0 && !s->draining);
    coord_figures_ready(s->ready);
}

/* An answer that moves goes on with the same bytes only where the arithmetic is the same. So all
 * nodes of a role have the numerics of the one heard first, until none of those is left and no request
 * is under way. The two roles' may differ: coordinator/request.c, rule 6. */
static void choose_numerics(coord_service *s, const Baton__Node__V1__NodeState *state) {
    coord_role role = role_of(state);
    if (*s->numerics[role] && (s->ready[role] > 0 || s->clients_count > 0)) return;
    if (!role || !state->pairing || state->draining) return;
    if (strcmp(state->pairing->model_digest, s->model.digest) != 0) return;
    if (strcmp(s->numerics[role], state->pairing->numerics) == 0) return;
    snprintf(s->numerics[role], sizeof s->numerics[role], "%s", state->pairing->numerics);
    for (int i = 0; i < cluster_view_count(s->view); i++) count_ready(s, i); /* others may match now */
}

uint64_t coord_service_number(const char *text) { return XXH3_64bits(text, strlen(text)); }

const char *coord_service_node_name(const coord_service *s, int node) {
    if (node < 0) return "";
    const Baton__Node__V1__NodeState *state = cluster_view_state(s->view, node);
    return state ? state->id : cluster_view_address(s->view, node);
}

static void refuse_node(coord_service *s, int node, const Baton__Node__V1__NodeState *state) {
    const char *theirs, *expected, *field = mismatch(s, state, &theirs, &expected);
    coord_event e = {.kind = COORD_NODE_LOST, .node = node};
    coord_service_feed(s, &e); /* it may have been used until now */
    if (s->mismatch_epoch[node] == state->epoch) return;
    s->mismatch_epoch[node] = state->epoch;
    log_write(LOG_WARN, NULL, "node.mismatch", "node=%s role=%s has %s %s, expected %s: not used",
              state->id, state->role, field ? field : "role", field ? theirs : state->role,
              field ? expected : "prefill or decode");
}

static void on_state(void *ctx, int node, const Baton__Node__V1__NodeState *state) {
    coord_service *s = ctx;
    if (s->closed) return;
    choose_numerics(s, state);
    if (!coord_service_matches(s, state) || !role_of(state)) {
        refuse_node(s, node, state);
    } else {
        coord_event e = {.kind = COORD_NODE_STATE, .node = node};
        int64_t total = 0, pages[ENG_PAGE_STATES] = {0};
        for (size_t i = 0; i < state->n_pages && i < ENG_PAGE_STATES; i++)
            total += pages[i] = state->pages[i] > 0 ? state->pages[i] : 0;
        int64_t available = pages[ENG_PAGE_FREE] + pages[ENG_PAGE_CACHED];
        e.node_state = (coord_node){.role = role_of(state),
                                    .draining = state->draining,
                                    .epoch = state->epoch,
                                    .numerics = coord_service_number(state->pairing->numerics),
                                    .capacity = state->capacity,
                                    .pages_total = (int32_t)(total < INT32_MAX ? total : INT32_MAX),
                                    .pages_available =
                                        (int32_t)(available < INT32_MAX ? available : INT32_MAX),
                                    .page_tokens = state->page_tokens,
                                    .name = coord_service_number(state->id),
                                    .prefill_tokens_per_s = state->prefill_tokens_per_s,
                                    .decode_steps_per_s = state->decode_steps_per_s};
        coord_service_feed(s, &e);
    }
    count_ready(s, node);
    coord_cluster_changed(s);
}

/* Kept of nodes that are not used, too: one may be later, and the stream tells the whole once. */
static void on_cache(void *ctx, int node, const Baton__Node__V1__CacheChange *change) {
    coord_event e = {.kind = COORD_NODE_CACHE, .node = node};
    e.cache.whole = change->whole;
    e.cache.at = change->pages;
    e.cache.numbers = change->numbers;
    e.cache.count = (int32_t)change->n_pages;
    coord_service_feed(ctx, &e);
}

static void on_lost(void *ctx, int node, const char *why) {
    (void)why;
    coord_service *s = ctx;
    if (s->closed) return;
    coord_event e = {.kind = COORD_NODE_LOST, .node = node};
    coord_service_feed(s, &e);
    e = (coord_event){.kind = COORD_NODE_CACHE, .node = node, .cache = {.whole = true}};
    coord_service_feed(s, &e);
    count_ready(s, node);
    coord_cluster_changed(s);
}

static void on_forgotten(void *ctx, int node) {
    coord_service *s = ctx;
    if (s->closed) return;
    coord_event e = {.kind = COORD_NODE_FORGOTTEN, .node = node};
    s->mismatch_epoch[node] = 0;
    coord_service_feed(s, &e);
}

/* ---- open ------------------------------------------------------------------------------------ */

static status copy_options(coord_service *s, const coord_options *o) {
    s->options = *o;
    const char **texts[] = {&s->options.id, &s->options.model, &s->options.listen,
                            &s->options.nodes};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        *texts[i] = arena_strndup(s->memory, *texts[i], strlen(*texts[i]));
        if (!*texts[i]) return ST_NO_MEMORY;
    }
    return ST_OK;
}

static status open_server(coord_service *s, error *err) {
    enum { SERVICES = sizeof service_names / sizeof *service_names };
    coord_figures_open(s->core);
    TRY(rpc_server_open(s->loop, s->options.listen, inference_methods, INFERENCE_METHODS, s,
                        &s->server, err));
    status st = rpc_server_add(s->server, coord_cluster_methods, coord_cluster_methods_count, s);
    if (st == ST_OK) st = rpc_health_add(s->server, service_names, 2, &s->health);
    if (st == ST_OK)
        st = rpc_reflection_add(s->server, proto_descriptors, proto_descriptors_bytes,
                                service_names, SERVICES);
    return st == ST_OK ? st : error_set(err, st, "the service's tables: %s", status_text(st));
}

static status open_view(coord_service *s, error *err) {
    static const cluster_view_events events = {.state = on_state, .lost = on_lost, .cache = on_cache, .forgotten = on_forgotten};
    const char *nodes = s->options.nodes;
    size_t bytes = strlen(nodes) + 16;
    char *spec = arena_alloc(s->memory, bytes);
    if (!spec) return error_set(err, ST_NO_MEMORY, "no memory for the list of nodes");
    snprintf(spec, bytes, "%s%s", strstr(nodes, "://") ? "" : "embedded:", nodes);
    return cluster_view_open(s->loop, spec, s->options.heartbeat_ms, &events, s, &s->view, err);
}

static void free_service(coord_service *s) {
    coord_core_destroy(s->core);
    coord_model_close(&s->model);
    arena_destroy(s->memory);
    mem_free(s);
}

static status start_loop(coord_service *s, error *err) {
    rpc_server_start(s->server);
    status st = rpc_loop_start(s->loop, "coordinator");
    return st == ST_OK ? st : error_set(err, st, "no thread for the coordinator");
}

status coord_service_open(const coord_options *o, coord_service **out, error *err) {
    coord_service *s = mem_zalloc(1, sizeof *s);
    if (!s) return error_set(err, ST_NO_MEMORY, "no memory for a coordinator");
    s->tick_ms = INT64_MAX;
    status st = ST_NO_MEMORY;
    if (!(s->memory = arena_create(1024)) || copy_options(s, o) != ST_OK ||
        !(s->core = coord_core_create(&o->limits))) {
        error_set(err, ST_NO_MEMORY, "no memory for a coordinator");
        goto free_service;
    }
    if ((st = coord_model_open(o->model, &s->model, err)) != ST_OK) goto free_service;
    if ((st = rpc_loop_create(&s->loop, err)) != ST_OK) goto free_service;
    if ((st = open_server(s, err)) != ST_OK) goto close_loop;
    if ((st = open_view(s, err)) != ST_OK) goto close_loop;
    if ((st = start_loop(s, err)) != ST_OK) goto close_loop;
    log_write(LOG_INFO, NULL, "coordinator.serving", "address=%s model=%s digest=%s context=%d",
              coord_service_address(s), s->model.id, s->model.digest, s->model.context);
    *out = s;
    return ST_OK;
close_loop:
    s->closed = true;
    cluster_view_close(s->view);
    if (s->server) rpc_server_close(s->server, NULL, NULL);
    rpc_loop_destroy(s->loop);
free_service:
    free_service(s);
    return st;
}

const char *coord_service_address(const coord_service *s) { return rpc_server_address(s->server); }

int coord_service_ready(const coord_service *s, coord_role role) {
    return __atomic_load_n(&s->ready[role], __ATOMIC_RELAXED);
}

/* ---- close ----------------------------------------------------------------------------------- */

/* Shared by the thread that closes and the loop. */
typedef struct closer {
    coord_service *service;
    int grace_ms;
    pthread_mutex_t lock;
    pthread_cond_t over;
    bool done;
} closer;

static void server_closed(void *arg) {
    closer *c = arg;
    pthread_mutex_lock(&c->lock);
    c->done = true;
    pthread_cond_signal(&c->over);
    pthread_mutex_unlock(&c->lock);
}

/* No call of ours is left, or the grace period is over. */
static void shut(coord_service *s) {
    if (s->closed) return;
    if (s->grace) rpc_timer_cancel(s->grace);
    s->grace = NULL;
    for (coord_client *c = s->clients; c; c = c->next)
        coord_generate_cancel(c, ST_PEER_LOST, "the coordinator was shut down");
    coord_service_settle(s);
    s->closed = true;
    if (s->tick) rpc_timer_cancel(s->tick);
    s->tick = NULL;
    coord_cluster_close(s);
    cluster_view_close(s->view);
    s->view = NULL;
    rpc_server_close(s->server, server_closed, s->closer);
}

static void grace_over(void *arg) {
    coord_service *s = arg;
    s->grace = NULL;
    shut(s);
}

void coord_service_client_left(coord_service *s) {
    if (s->draining && s->clients_count == 0 && s->grace) shut(s);
}

static void drain(void *arg) {
    closer *c = arg;
    coord_service *s = c->service;
    s->draining = true;
    s->closer = c;
    rpc_health_set(s->health, false);
    log_write(LOG_INFO, NULL, "coordinator.draining", "requests=%d grace_ms=%d", s->clients_count,
              c->grace_ms);
    if (s->clients_count == 0 || c->grace_ms <= 0 ||
        rpc_timer_start(s->loop, c->grace_ms, grace_over, s, &s->grace) != ST_OK)
        shut(s);
}

void coord_service_close(coord_service *s, int grace_ms) {
    if (!s) return;
    closer c = {.service = s, .grace_ms = grace_ms};
    pthread_mutex_init(&c.lock, NULL);
    pthread_cond_init(&c.over, NULL);
    struct timespec pause = {.tv_nsec = 1000000};
    while (rpc_loop_post(s->loop, drain, &c) != ST_OK) nanosleep(&pause, NULL);
    pthread_mutex_lock(&c.lock);
    while (!c.done) pthread_cond_wait(&c.over, &c.lock);
    pthread_mutex_unlock(&c.lock);
    rpc_loop_destroy(s->loop);
    pthread_mutex_destroy(&c.lock);
    pthread_cond_destroy(&c.over);
    free_service(s);
}
