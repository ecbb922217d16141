/* Tests node/rank.c, transfer.c, link.c and follow.c: nodes of several ranks hand prompts to each other.
 *
 * Every rank is a thread of this process with a model of its own; groups, KV transfers and gRPC are the real ones. What
 * pages of a node hold is seen by asking it, as a prefill node, to send them to this test (read_rows). Where a rank may
 * end its process (node_rank_lost) it is a process of its own. */
#include "tests/unit/node_client.h"
#include "node/internal.h"
#include "node/note.h"
#include "tests/unit/tiny_gguf.h"
#include <math.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGES = 96, COUNT = 50, ANSWER = 12, RANKS = 3 };

static char model_path[] = "/tmp/baton-ranks-XXXXXX";

/* ---- faults ---------------------------------------------------------------------------------------------- */

/* Of the calling thread: engine threads of rank 0 and kvt threads leave it as it is. */
static _Thread_local int my_rank = 0;

enum { NOBODY = -2 };
static atomic_int promise_fails_on = NOBODY, promise_late_on = NOBODY; /* ranks */
static atomic_int send_fails_on = NOBODY, sends_before;                    /* a rank; that many of its sends are opened first */
static atomic_bool open_returns_late;

status __real_kvt_promise(kvt_node *n, uint64_t ticket, uint32_t epoch, const kvt_geometry *g, uint32_t first, uint32_t end,
                          uint32_t lease_ms, const unsigned char *key, const kvt_sink *sink, void *ctx);
status __wrap_kvt_promise(kvt_node *n, uint64_t ticket, uint32_t epoch, const kvt_geometry *g, uint32_t first, uint32_t end,
                          uint32_t lease_ms, const unsigned char *key, const kvt_sink *sink, void *ctx);
status __real_kvt_send_open(kvt_node *n, const char *address, uint64_t ticket, uint32_t epoch, const kvt_geometry *g,
                            uint32_t timeout_ms, const unsigned char *key, const kvt_source *source, void *ctx, kvt_send **out);
status __wrap_kvt_send_open(kvt_node *n, const char *address, uint64_t ticket, uint32_t epoch, const kvt_geometry *g,
                            uint32_t timeout_ms, const unsigned char *key, const kvt_source *source, void *ctx, kvt_send **out);

status __wrap_kvt_promise(kvt_node *n, uint64_t ticket, uint32_t epoch, const kvt_geometry *g, uint32_t first, uint32_t end,
                          uint32_t lease_ms, const unsigned char *key, const kvt_sink *sink, void *ctx) {
    if (my_rank == atomic_load(&promise_fails_on)) return ST_NO_MEMORY;
    if (my_rank == atomic_load(&promise_late_on)) usleep(50000);
    return __real_kvt_promise(n, ticket, epoch, g, first, end, lease_ms, key, sink, ctx);
}

status __wrap_kvt_send_open(kvt_node *n, const char *address, uint64_t ticket, uint32_t epoch, const kvt_geometry *g,
                            uint32_t timeout_ms, const unsigned char *key, const kvt_source *source, void *ctx, kvt_send **out) {
    if (my_rank == atomic_load(&send_fails_on) && atomic_fetch_sub(&sends_before, 1) == 0) return ST_NO_MEMORY;
    status st = __real_kvt_send_open(n, address, ticket, epoch, g, timeout_ms, key, source, ctx, out);
    if (atomic_load(&open_returns_late)) usleep(20000);
    return st;
}

/* A node's engine thread goes to sleep: then there must be nothing to compute and nothing to tell. */
static _Atomic(node_process *) watched;
static atomic_int slept_with_work;

void *__real_mailbox_wait(mailbox *m, int timeout_ms);
void *__wrap_mailbox_wait(mailbox *m, int timeout_ms);

void *__wrap_mailbox_wait(mailbox *m, int timeout_ms) {
    node_process *p = atomic_load(&watched);
    node_counts counts;
    if (p && p->mail == m && timeout_ms != 1) {
        node_core_counts(p->core, &counts);
        pthread_mutex_lock(&p->outbox.lock);
        if (counts.running > 0 || (p->outbox.count > 0 && !p->outbox.posted)) atomic_fetch_add(&slept_with_work, 1);
        pthread_mutex_unlock(&p->outbox.lock);
    }
    return __real_mailbox_wait(m, timeout_ms);
}

/* ---- nodes ----------------------------------------------------------------------------------------------- */

typedef struct side {
    int ranks;
    int32_t page_tokens;
    eng_kv_type type;
} side;

typedef struct follower {
    node_options o;
    char group[20];
    pthread_t thread;
    status s;
    error err;
} follower;

static follower followers[2][COLL_RANKS_MAX];
static int ranks_of[2];

static void *follow(void *arg) {
    follower *f = arg;
    my_rank = f->o.rank;
    f->s = node_follow(&f->o, &f->err);
    return NULL;
}

/* A number for a group that no other has. */
static void name_group(char out[20]) {
    static uint32_t groups;
    snprintf(out, 20, "%08x%08x", (unsigned)getpid(), ++groups);
}

static node_options options_of(int node, const side *s, const char *group) {
    return (node_options){.id = node ? "decode-1" : "prefill-1", .role = node ? "decode" : "prefill", .model = model_path,
                          .listen = "127.0.0.1:0", .kv_listen = "127.0.0.1:0", .threads = 1, .ranks = s->ranks,
                          .group = group, .kv_pages = PAGES, .page_tokens = s->page_tokens, .kv_type = s->type,
                          .sequences_max = 8, .step_tokens_max = 32, .chunk_tokens = 16, .prefix_cache = true};
}

static void open_node(int i, const side *s) {
    static const node_service *const services[] = {&prefill_service, &decode_service};
    char group[20];
    error err;
    name_group(group);
    node_options o = options_of(i, s, group);
    for (int r = 1; r < s->ranks; r++) {
        follower *f = &followers[i][r];
        *f = (follower){.o = o};
        memcpy(f->group, group, sizeof group);
        f->o.group = f->group;
        f->o.rank = r;
        assert_int_equal(pthread_create(&f->thread, NULL, follow, f), 0);
    }
    ranks_of[i] = s->ranks;
    pages_of[i] = PAGES;
    if (node_process_open(&o, services, 2, &nodes[i], &err) != ST_OK) fail_msg("%s", err.text);
    assert_int_equal(rpc_channel_open(loop, node_process_address(nodes[i]), &channels[i], &err), ST_OK);
    watch(i, false);
}

static void open_nodes(const side *prefill, const side *decode) {
    error err;
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    open_node(0, prefill);
    open_node(1, decode);
}

/* The other ranks return when they are dismissed. */
static void close_node(int i) {
    rpc_channel_close(channels[i]);
    node_process_close(nodes[i], 0);
    for (int r = 1; r < ranks_of[i]; r++) {
        pthread_join(followers[i][r].thread, NULL);
        if (followers[i][r].s != ST_OK) fail_msg("rank %d: %s", r, followers[i][r].err.text);
    }
}

static void close_nodes(void) {
    for (int i = 0; i < 2; i++) close_node(i);
    rpc_loop_destroy(loop);
}

static void write_model(int K, uint64_t seed) {
    assert_true(tiny_gguf_write(&(tiny_options){.D = 192, .H = 6, .K = K, .F = 320, .vocab = true, .seed = seed}, model_path));
}

static void run(request *r) {
    start_decode(r);
    rpc_loop_run(loop);
}

static request apart(uint64_t seed) {
    request r = make_request(seed, COUNT, ANSWER);
    r.apart = true;
    return r;
}

static void assert_answered(const request *r) {
    if (r->end != ST_OK) fail_msg("%s: %s", status_name(r->end), r->text);
    assert_int_equal(r->answered, ANSWER);
}

/* ---- what pages hold ------------------------------------------------------------------------------------- */

/* One rank with all heads, for reading and for comparing. */
typedef struct alone {
    eng_gguf *gguf;
    eng_model *model;
    int32_t blocks[PAGES];
} alone;

static alone open_alone(void) {
    alone a = {0};
    error err;
    eng_options o = {.threads = 1, .tokens_max = 64, .logits_max = 1};
    assert_int_equal(eng_gguf_open(model_path, &a.gguf, &err), ST_OK);
    assert_int_equal(eng_model_open(a.gguf, &o, &a.model, &err), ST_OK);
    for (int32_t i = 0; i < PAGES; i++) a.blocks[i] = PAGES - 1 - i;
    return a;
}

static void close_alone(alone *a) {
    eng_model_close(a->model);
    eng_gguf_close(a->gguf);
}

static eng_kv *create_kv(const alone *a, eng_kv_type type) {
    eng_kv *kv;
    error err;
    assert_int_equal(eng_kv_create(a->model, PAGES, 4, type, &kv, &err), ST_OK);
    return kv;
}

/* Rows [0, tokens) in canonical order; the caller frees them. */
static void *pack_all(const alone *a, const eng_kv *kv, int32_t tokens, size_t *bytes) {
    const eng_shape *s = eng_model_shape(a->model);
    eng_kv_box box = {.layers = s->L, .heads = s->K, .tokens = tokens, .type = eng_kv_element(kv)};
    *bytes = eng_kv_box_bytes(kv, &box);
    void *out = malloc(*bytes);
    assert_non_null(out);
    eng_kv_pack(kv, a->blocks, &box, out);
    return out;
}

typedef struct reading {
    const alone *a;
    eng_kv *kv;
    atomic_int ended;            /* how often */
    status st;
} reading;

static void read_frame(void *ctx, const kvt_frame *f, const void *payload) {
    reading *r = ctx;
    eng_kv_box box = {.layer_first = (int32_t)f->layer_first, .layers = (int32_t)f->layers, .head_first = (int32_t)f->head_first,
                      .heads = (int32_t)f->heads, .token_first = (int32_t)f->token_first, .tokens = (int32_t)f->tokens,
                      .type = (eng_kv_type)f->type};
    eng_kv_unpack(r->kv, r->a->blocks, &box, payload);
}

static void read_ended(void *ctx, status s, uint32_t landed) {
    reading *r = ctx;
    (void)landed;
    r->st = s;
    atomic_fetch_add(&r->ended, 1);
}

static const kvt_sink reader_sink = {.land = read_frame, .ended = read_ended};

/* As a rank of a decode node listens. */
static kvt_node *open_reader(char pairing[120]) {
    kvt_node *reader;
    error err;
    snprintf(pairing, 120, "%s %s", told_by[1].digest, told_by[1].layout);
    kvt_options o = {.listen = "127.0.0.1:0", .pairing = pairing};
    assert_int_equal(kvt_node_open(&o, &reader, &err), ST_OK);
    return reader;
}

/* The first rows of r's prompt as the node has them, in the decode node's type. */
static void *read_rows(const alone *a, int node, const request *like, int32_t tokens, size_t *bytes) {
    const eng_shape *s = eng_model_shape(a->model);
    request r = *like;
    reading rows = {.a = a};
    eng_kv_type type;
    char pairing[120];
    assert_true(eng_kv_type_find(told_by[1].kv_type, &type));
    rows.kv = create_kv(a, type);
    kvt_node *reader = open_reader(pairing);
    kvt_geometry g = {.layers = (uint32_t)s->L, .heads = (uint32_t)s->K, .row_bytes = (uint32_t)eng_kv_row_bytes(type, s->h), .type = (uint32_t)type};
    assert_int_equal(kvt_promise(reader, 42, 1, &g, 0, (uint32_t)tokens, 20000, NULL, &reader_sink, &rows), ST_OK);
    Baton__Node__V1__Reserved room = BATON__NODE__V1__RESERVED__INIT;
    room.ticket = 42;
    room.kv_address = (char *)(uintptr_t)kvt_node_address(reader);
    room.wanted_tokens = tokens;
    start_prefill(node, &r, &room);
    rpc_loop_run(loop);
    kvt_node_close(reader);
    assert_int_equal(r.prefill_end, ST_OK);
    assert_int_equal(atomic_load(&rows.ended), 1);
    assert_int_equal(rows.st, ST_OK);
    if (node == 1) assert_true(r.prefill_cached >= tokens);            /* what landed, not what it would compute */
    void *out = pack_all(a, rows.kv, tokens, bytes);
    eng_kv_destroy(rows.kv);
    return out;
}

/* ---- tests ----------------------------------------------------------------------------------------------- */

/* Each rank that wants a head gets it once. */
static uint64_t bytes_wanted(const alone *a, const side *decode, int32_t tokens) {
    const eng_shape *s = eng_model_shape(a->model);
    uint64_t heads = 0;
    error err;
    for (int r = 0; r < decode->ranks; r++) {
        int first, count;
        assert_int_equal(eng_model_heads(a->model, decode->ranks, r, &first, &count, &err), ST_OK);
        heads += (uint64_t)count;
    }
    return heads * (uint64_t)tokens * (uint64_t)s->L * 2 * eng_kv_row_bytes(decode->type, s->h);
}

/* The rows that one rank alone computes are these within a bound: every head came to its place. */
static void assert_near(const alone *a, const request *r, const float *rows, int32_t tokens) {
    eng_kv *kv = create_kv(a, ENG_KV_F32);
    const float *logits;
    error err;
    size_t bytes;
    float worst = 0, largest = 0;
    eng_rows all = {.tokens = r->prompt, .count = tokens, .blocks = a->blocks};
    assert_int_equal(eng_step(a->model, kv, &all, 1, &logits, &err), ST_OK);
    float *want = pack_all(a, kv, tokens, &bytes);
    for (size_t i = 0; i < bytes / sizeof *want; i++) {
        worst = fmaxf(worst, fabsf(rows[i] - want[i]));
        largest = fmaxf(largest, fabsf(want[i]));
    }
    if (!(largest > 0.1f && worst <= 1e-3f * largest)) fail_msg("off by %g of %g", (double)worst, (double)largest);
    free(want);
    eng_kv_destroy(kv);
}

static void hand_over(int K, const side *prefill, const side *decode) {
    write_model(K, 1);
    open_nodes(prefill, decode);
    alone a = open_alone();
    request r = apart(7), again = apart(7);
    run(&r);
    assert_answered(&r);
    assert_int_equal(r.landed_status, ST_OK);
    assert_int_equal(r.wanted, COUNT - 1);
    assert_int_equal(r.prefill_end, ST_OK);
    assert_int_equal(r.sent_bytes, bytes_wanted(&a, decode, COUNT - 1));
    int32_t full = (COUNT - 1) / decode->page_tokens * decode->page_tokens;
    size_t bytes, bytes_here;
    void *theirs = read_rows(&a, 0, &r, full, &bytes), *ours = read_rows(&a, 1, &r, full, &bytes_here);
    assert_int_equal(bytes, bytes_here);
    assert_memory_equal(theirs, ours, bytes);
    if (prefill->type == ENG_KV_F32 && decode->type == ENG_KV_F32) assert_near(&a, &r, ours, full);
    run(&again);                                           /* what is cached is not sent again */
    assert_answered(&again);
    assert_true(again.cached >= full && again.wanted == COUNT - 1);
    assert_memory_equal(again.answer, r.answer, ANSWER * sizeof *r.answer);
    free(theirs);
    free(ours);
    assert_quiet();
    close_alone(&a);
    close_nodes();
}

static void pages_arrive_whole(void **state) {
    (void)state;
    static const struct { int K; side prefill, decode; } layouts[] = {
        {3, {1, 8, ENG_KV_F16}, {2, 16, ENG_KV_F16}},
        {3, {2, 16, ENG_KV_F16}, {1, 8, ENG_KV_F16}},
        {3, {2, 8, ENG_KV_F32}, {3, 4, ENG_KV_F32}},
        {3, {3, 4, ENG_KV_F32}, {2, 16, ENG_KV_F32}},
        {3, {2, 8, ENG_KV_BF16}, {3, 8, ENG_KV_Q8_0}},
        {3, {3, 16, ENG_KV_Q8_0}, {1, 8, ENG_KV_F16}},
        /* fewer kv heads than ranks: some heads are in two ranks */
        {2, {3, 8, ENG_KV_F32}, {3, 8, ENG_KV_F32}},
        {2, {3, 8, ENG_KV_F16}, {1, 16, ENG_KV_F16}},
        {2, {1, 8, ENG_KV_F16}, {3, 4, ENG_KV_Q8_0}},
        {1, {2, 4, ENG_KV_F32}, {3, 8, ENG_KV_F32}},
    };
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        hand_over(layouts[i].K, &layouts[i].prefill, &layouts[i].decode);
}

static const side two = {2, 8, ENG_KV_F16}, three = {3, 4, ENG_KV_F16}, one = {1, 8, ENG_KV_F16};

/* One rank has no room to promise: the others' promises end with it, and the core hears of one end. */
static void a_promise_that_one_rank_can_not_make(void **state) {
    (void)state;
    write_model(3, 1);
    open_nodes(&two, &three);
    for (int rank = 0; rank < RANKS; rank++) {
        atomic_store(&promise_fails_on, rank);
        request r = apart(20 + (uint64_t)rank), local = make_request(30 + (uint64_t)rank, COUNT, ANSWER);
        r.no_prefill = rank == 2;                          /* nobody else can end the promises before the test's time is up */
        r.lease_ms = 600000;
        run(&r);
        assert_int_equal(r.end, rank ? ST_PEER_STALE : ST_AGAIN);      /* what no memory is called by gRPC */
        assert_int_equal(r.answered, 0);
        run(&local);                                       /* not apart, it would read the prompt itself */
        if (rank) assert_answered(&local);
        assert_int_equal(rank ? local.landed_status : (int)local.end, rank ? ST_NO_MEMORY : ST_AGAIN);
        atomic_store(&promise_fails_on, NOBODY);
        assert_quiet();
    }
    request after = apart(40);
    run(&after);
    assert_answered(&after);
    assert_quiet();
    close_nodes();
}

static uint64_t bytes_out(void) { return atomic_load(&nodes[0]->rank.bytes_out); }

/* What rank 0 of the prefill node would send. */
static uint64_t bytes_of_rank_0(void) {
    const eng_shape *s = eng_model_shape(nodes[0]->rank.model);
    return (uint64_t)(COUNT - 1) * (uint64_t)s->L * 2 * eng_kv_row_bytes(ENG_KV_F16, s->h) * (uint64_t)nodes[0]->rank.heads;
}

/* One of a rank's sends can not be opened: the rank's others end before they send, and the other ranks' after the step
 * that is under way. */
static void a_send_that_one_rank_can_not_open(void **state) {
    (void)state;
    static const struct { int rank, before; } cases[2][3] = {{{0, 0}, {0, 1}, {0, 2}}, {{0, 0}, {0, 1}, {1, 0}}};
    write_model(3, 1);
    for (int ranks = 1; ranks <= 2; ranks++) {
        open_nodes(ranks == 1 ? &one : &two, &three);
        for (int i = 0; i < 3; i++) {
            request r = apart(50 + (uint64_t)(ranks * 3 + i));
            r.lease_ms = 300;
            atomic_store(&sends_before, cases[ranks - 1][i].before);
            atomic_store(&send_fails_on, cases[ranks - 1][i].rank);
            uint64_t before = bytes_out();
            run(&r);
            atomic_store(&send_fails_on, NOBODY);
            assert_int_equal(r.prefill_end, ST_AGAIN);     /* what no memory is called by gRPC */
            assert_int_equal(r.end, ST_PEER_STALE);
            assert_int_equal(r.sent_bytes, 0);
            assert_quiet();
            if (cases[ranks - 1][i].rank == 0) assert_int_equal(bytes_out(), before);
            else assert_true(bytes_out() - before < bytes_of_rank_0());
        }
        request after = apart(60);
        run(&after);
        assert_answered(&after);
        close_nodes();
    }
}

/* Nobody listens there; the link's thread may know before kvt_send_open() has returned. */
static void nobody_at_the_address(void **state) {
    (void)state;
    write_model(3, 1);
    open_nodes(&two, &one);
    for (int late = 0; late < 2; late++) {
        request r = apart(70 + (uint64_t)late);
        Baton__Node__V1__Reserved room = BATON__NODE__V1__RESERVED__INIT;
        room.ticket = 1;
        room.kv_address = (char *)(uintptr_t)"127.0.0.1:1";
        room.wanted_tokens = COUNT - 1;
        atomic_store(&open_returns_late, late);
        start_prefill(0, &r, &room);
        rpc_loop_run(loop);
        atomic_store(&open_returns_late, false);
        assert_int_equal(r.prefill_end, ST_PEER_LOST);
        assert_int_equal(r.sent_bytes, 0);
    }
    assert_quiet();
    close_nodes();
}

/* Of two ranks of a decode node one is gone: the other is not sent what it could not use. */
static void one_of_two_addresses(void **state) {
    (void)state;
    write_model(3, 1);
    open_nodes(&one, &one);
    alone a = open_alone();
    const eng_shape *s = eng_model_shape(a.model);
    char pairing[120], addresses[120];
    int first, heads;
    error err;
    assert_int_equal(eng_model_heads(a.model, 2, 0, &first, &heads, &err), ST_OK);
    reading rows = {.a = &a, .kv = create_kv(&a, ENG_KV_F16)};
    kvt_node *reader = open_reader(pairing);
    kvt_geometry g = {.layers = (uint32_t)s->L, .heads = (uint32_t)heads, .row_bytes = (uint32_t)eng_kv_row_bytes(ENG_KV_F16, s->h), .type = ENG_KV_F16};
    assert_int_equal(kvt_promise(reader, 42, 1, &g, 0, COUNT - 1, 20000, NULL, &reader_sink, &rows), ST_OK);
    snprintf(addresses, sizeof addresses, "%s,127.0.0.1:1", kvt_node_address(reader));
    request r = apart(75);
    Baton__Node__V1__Reserved room = BATON__NODE__V1__RESERVED__INIT;
    room.ticket = 42;
    room.kv_address = addresses;
    room.wanted_tokens = COUNT - 1;
    uint64_t before = bytes_out();
    start_prefill(0, &r, &room);
    rpc_loop_run(loop);
    kvt_node_close(reader);
    assert_int_equal(r.prefill_end, ST_PEER_LOST);
    assert_int_equal(bytes_out(), before);
    assert_int_equal(rows.st, ST_CANCELED);
    eng_kv_destroy(rows.kv);
    close_alone(&a);
    assert_quiet();
    close_nodes();
}

/* A ticket is told when every rank has promised room for it: frames that came earlier would be refused. */
static void a_rank_that_promises_late(void **state) {
    (void)state;
    write_model(3, 1);
    open_nodes(&two, &three);
    request warm = make_request(80, COUNT, ANSWER), r = apart(80);
    warm.local_tokens_max = 0;
    run(&warm);                                            /* the prefill node has every page: it sends at once */
    close_node(1);
    open_node(1, &three);
    for (int rank = 1; rank < RANKS; rank++) {
        request x = r;
        x.count -= rank;
        atomic_store(&promise_late_on, rank);
        run(&x);
        atomic_store(&promise_late_on, NOBODY);
        assert_int_equal(x.landed_status, ST_OK);
        assert_answered(&x);
        close_node(1);
        open_node(1, &three);
    }
    close_nodes();
}

/* What the other ranks said last is acted upon at once, and not when the next beat is due. */
static void nobody_sleeps_with_work_to_do(void **state) {
    (void)state;
    write_model(3, 1);
    open_nodes(&two, &three);
    for (int i = 0; i < 2; i++)
        for (uint64_t k = 0; k < 4; k++) {
            request r = apart(90 + (uint64_t)i * 4 + k);
            atomic_store(&watched, nodes[i]);
            run(&r);
            atomic_store(&watched, NULL);
            assert_answered(&r);
        }
    assert_int_equal(atomic_load(&slept_with_work), 0);
    close_nodes();
}

static void canceled_at_any_event(void **state) {
    (void)state;
    enum { EVENTS = 8 };
    int canceled = 0;
    write_model(3, 1);
    open_nodes(&two, &three);
    for (int round = 0; round < 3; round++) {
        request r[EVENTS];
        for (int i = 0; i < EVENTS; i++) {
            r[i] = make_request((uint64_t)(100 + round * EVENTS + i), COUNT, 60);
            r[i].apart = i % 2;
            r[i].cancel_after = 1 + i;
            r[i].no_prefill = i % 4 == 3;
            r[i].lease_ms = r[i].no_prefill ? 100 : 5000;
            start_decode(&r[i]);
        }
        rpc_loop_run(loop);
        for (int i = 0; i < EVENTS; i++) canceled += r[i].end == ST_CANCELED;
        assert_quiet();
    }
    assert_true(canceled >= 10);
    request after = apart(130);
    run(&after);
    assert_answered(&after);
    close_nodes();
}

/* Pages promised and pages on their way when the node closes: the ranks are dismissed when all of it is over. */
static void closed_in_the_middle(void **state) {
    (void)state;
    write_model(3, 1);
    open_nodes(&two, &three);
    request r[4];
    for (int i = 0; i < 4; i++) {
        r[i] = apart(140 + (uint64_t)i);
        r[i].no_prefill = i % 2;
        r[i].lease_ms = 60000;
        start_decode(&r[i]);
    }
    rpc_timer *timer;
    assert_int_equal(rpc_timer_start(loop, 20, (void (*)(void *))(void (*)(void))rpc_loop_stop, loop, &timer), ST_OK);
    rpc_loop_run(loop);
    close_node(1);
    if (running) rpc_loop_run(loop);
    for (int i = 1; i < 4; i += 2) assert_int_not_equal(r[i].end, ST_OK);
    open_node(1, &three);
    assert_quiet();
    close_nodes();
}

/* ---- in processes of their own --------------------------------------------------------------------------- */

typedef struct shared {
    atomic_int at, answered, ended;
} shared;

static shared *share(void) {
    shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(s != MAP_FAILED);
    return s;
}

/* The child's: the N-th allocation fails, on any thread of either node, until a request makes fewer. The first request
 * is spared: it makes room for plans, and a rank that ends without its process ending is noticed late. */
static void fail_from(shared *s) {
    request first = apart(999);
    open_nodes(&two, &two);
    run(&first);
    assert_answered(&first);
    for (;;) {
        int n = atomic_fetch_add(&s->at, 1) + 1;
        request r = apart((uint64_t)(1000 + n));
        r.lease_ms = 60;
        start_decode(&r);
        int64_t before = mem_count();
        mem_fail_at(n);
        rpc_loop_run(loop);
        mem_fail_at(0);
        if (r.end == ST_OK) assert_answered(&r);
        else assert_true(r.end == ST_NO_MEMORY || r.end == ST_AGAIN || r.end == ST_CANCELED || r.end == ST_PEER_STALE);
        atomic_fetch_add(r.end == ST_OK ? &s->answered : &s->ended, 1);
        if (r.end == ST_OK && mem_count() - before < n) break;
    }
    assert_quiet();
    close_nodes();
}

/* A failed allocation ends the request or, where the ranks would no longer hold the same, the node. */
static void every_allocation_may_fail(void **state) {
    (void)state;
    shared *s = share();
    int lost = 0, code = 1;
    write_model(3, 1);
    while (code == 1 && lost < 100) {
        pid_t child = fork();
        if (child == 0) {
            setenv("CMOCKA_TEST_ABORT", "1", 1);           /* a failed assertion ends this process */
            fail_from(s);
            _exit(0);
        }
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        if (!WIFEXITED(how)) fail_msg("allocation %d: ended by signal %d", atomic_load(&s->at), WTERMSIG(how));
        code = WEXITSTATUS(how);
        lost += code == 1;
    }
    assert_int_equal(code, 0);
    print_message("  %d allocations failed: %d answered, %d ended, %d took the node with them\n", atomic_load(&s->at),
                  atomic_load(&s->answered), atomic_load(&s->ended), lost);
    assert_true(atomic_load(&s->answered) > 0 && atomic_load(&s->ended) > 5 && lost > 0);
    munmap(s, sizeof *s);
}

typedef struct opening {
    node_options o;
    node_rank k;
    status s;
    error err;
    pthread_t thread;
} opening;

static void *open_rank(void *arg) {
    opening *x = arg;
    node_limits limits;
    node_limits_set(&limits, &x->o);
    x->s = node_rank_open(&x->k, &x->o, &limits, &x->err);
    return NULL;
}

/* Two ranks that are not the same: both say what each has. */
static void assert_refused(const node_options *first, const node_options *second, const char *of_first, const char *of_second) {
    opening x[2] = {{.o = *first}, {.o = *second}};
    for (int r = 0; r < 2; r++) {
        x[r].o.rank = r;
        assert_int_equal(pthread_create(&x[r].thread, NULL, open_rank, &x[r]), 0);
    }
    for (int r = 0; r < 2; r++) pthread_join(x[r].thread, NULL);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(x[r].s, ST_REFUSED);
        if (!strstr(x[r].err.text, of_first) || !strstr(x[r].err.text, of_second))
            fail_msg("\"%s\": expected %s and %s", x[r].err.text, of_first, of_second);
        node_rank_close(&x[r].k);
    }
}

static void unlike_ranks_are_refused(void **state) {
    (void)state;
    char group[20], other[] = "/tmp/baton-other-XXXXXX", digest[2][16];
    write_model(3, 1);
    name_group(group);
    node_options a = options_of(0, &two, group), b = a;
    b.kv_pages = PAGES + 1;
    assert_refused(&a, &b, "pages=96 ", "pages=97 ");
    name_group(group);
    b = a;
    b.kv_type = ENG_KV_F32;
    assert_refused(&a, &b, " f16 ", " f32 ");
    int fd = mkstemp(other);
    assert_true(fd >= 0 && tiny_gguf_write(&(tiny_options){.D = 192, .H = 6, .K = 3, .F = 320, .vocab = true, .seed = 2}, other));
    close(fd);
    b = a;
    b.model = other;
    name_group(group);
    const char *paths[2] = {model_path, other};
    for (int i = 0; i < 2; i++) {
        eng_gguf *g;
        error err;
        assert_int_equal(eng_gguf_open(paths[i], &g, &err), ST_OK);
        snprintf(digest[i], sizeof digest[i], "%.12s", eng_gguf_digest(g));
        eng_gguf_close(g);
    }
    assert_refused(&a, &b, digest[0], digest[1]);
    unlink(other);
}

/* Rank 0 of another build says something else: the rank ends its process and says why. */
static void a_note_that_is_none_ends_a_rank(void **state) {
    (void)state;
    static const char *const words[] = {"note of 7 bytes", "note of kind 99"};
    write_model(3, 1);
    for (int which = 0; which < 2; which++) {
        char group[20], log[4000] = "";
        int out[2], how;
        name_group(group);
        opening x = {.o = options_of(0, &two, group)};
        assert_int_equal(pipe(out), 0);
        pid_t child = fork();
        if (child == 0) {
            dup2(out[1], STDERR_FILENO);
            x.o.rank = 1;
            _exit(node_follow(&x.o, &x.err) == ST_OK ? 0 : 2);
        }
        close(out[1]);
        open_rank(&x);
        if (x.s != ST_OK) fail_msg("%s", x.err.text);
        node_note n = {.kind = 99};
        assert_int_equal(eng_tell(x.k.model, which ? (const void *)&n : "unknown", which ? sizeof n : 7, &x.err), ST_OK);
        size_t used = 0;
        for (ssize_t got; used < sizeof log - 1 && (got = read(out[0], log + used, sizeof log - 1 - used)) > 0;) used += (size_t)got;
        close(out[0]);
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 1);
        if (!strstr(log, words[which])) fail_msg("it said \"%s\", expected \"%s\"", log, words[which]);
        node_rank_close(&x.k);
    }
}

static int set_up(void **state) {
    (void)state;
    my_rank = -1;
    log_setup("test", LOG_ERROR);
    int fd = mkstemp(model_path);
    return fd < 0 || close(fd) != 0;
}

static int tear_down(void **state) {
    (void)state;
    return unlink(model_path);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);         /* one test alone: its name */
    const struct CMUnitTest tests[] = {
        /* forks first: while this process has one thread */
        cmocka_unit_test(every_allocation_may_fail), cmocka_unit_test(a_note_that_is_none_ends_a_rank),
        cmocka_unit_test(unlike_ranks_are_refused), cmocka_unit_test(pages_arrive_whole),
        cmocka_unit_test(a_promise_that_one_rank_can_not_make), cmocka_unit_test(a_send_that_one_rank_can_not_open),
        cmocka_unit_test(nobody_at_the_address), cmocka_unit_test(one_of_two_addresses),
        cmocka_unit_test(a_rank_that_promises_late),
        cmocka_unit_test(nobody_sleeps_with_work_to_do), cmocka_unit_test(canceled_at_any_event), cmocka_unit_test(closed_in_the_middle)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
