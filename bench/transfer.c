/* transfer.c -- measures each transport against a plain socket and memcpy, in turns.
 *
 * A transfer's time runs from kvt_send_open() to the ACK of its END: cutting, packing, CRC or sealing on both sides, landing.
 * The promise is made before, as a coordinator would have. */
#include "bench/transfer.h"
#include <string.h>
#include <time.h>

enum { SEND_TIMEOUT_MS = 10000, ROUND_BYTES = 512 << 20 };

const kvt_geometry bench_transfer_square = {.layers = 16, .heads = 8, .row_bytes = 256, .type = 1};
const kvt_geometry bench_transfer_smollm = {.layers = 30, .heads = 3, .row_bytes = 128, .type = 1};
const uint64_t bench_transfer_sizes[TRANSFER_SIZES] = {
    64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20,
};

bench_way bench_ways[TRANSFER_WAYS_MAX];
int bench_ways_count;

uint64_t bench_transfer_token_bytes(const kvt_geometry *g) {
    return (uint64_t)g->layers * 2 * g->heads * g->row_bytes;
}

typedef struct sending {
    struct bench *b;
    const kvt_geometry *g;
    uint32_t tokens;
    bool ended;                  /* under the lock */
    status s;
} sending;

typedef struct bench {
    bench_peer peer;
    kvt_node *nodes[TRANSFER_WAYS_MAX];
    unsigned char *memory, *copy;
    int rounds_max;
    double cpu_out[TRANSFER_WAYS_MAX + 2], cpu_in[TRANSFER_WAYS_MAX + 2]; /* of the rounds, seconds */
    uint64_t ticket;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bench_transfer_report *r;
    void (*progress)(const char *what, int size);
} bench;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- one transfer ------------------------------------------------------------------------------------ */

static void pack(void *ctx, const kvt_frame *box, void *out) {
    sending *x = ctx;
    bench_peer_copy(x->g, x->tokens, x->b->memory, box, out, false);
}

static int runs(void *ctx, const kvt_frame *box, void *scratch, struct iovec *out) {
    (void)scratch;
    sending *x = ctx;
    return bench_peer_runs(x->g, x->tokens, x->b->memory, box, out);
}

static void ended(void *ctx, status s, uint64_t bytes, int64_t wire_us, const char *why) {
    (void)bytes, (void)wire_us, (void)why;
    sending *x = ctx;
    pthread_mutex_lock(&x->b->lock);
    x->ended = true;
    x->s = s;
    pthread_cond_signal(&x->b->changed);
    pthread_mutex_unlock(&x->b->lock);
}

static status await(sending *x) {
    pthread_mutex_lock(&x->b->lock);
    while (!x->ended) pthread_cond_wait(&x->b->changed, &x->b->lock);
    pthread_mutex_unlock(&x->b->lock);
    return x->s;
}

static status transfer(bench *b, int way, kvt_node *n, const kvt_geometry *g, uint32_t tokens, double *s) {
    static const kvt_source source = {.pack = pack, .runs = runs, .ended = ended};
    sending x = {.b = b, .g = g, .tokens = tokens};
    kvt_send *send;
    uint64_t ticket = ++b->ticket;
    TRY(bench_peer_promise(&b->peer, way, ticket, g, tokens));
    double from = now_s();
    TRY(kvt_send_open(n, b->peer.address[way], ticket, 1, g, SEND_TIMEOUT_MS, bench_ways[way].key, &source, &x, &send));
    kvt_send_push(send, 0, tokens);
    kvt_send_end(send);
    status st = await(&x);
    *s = now_s() - from;
    kvt_send_close(send);
    if (st == ST_OK) st = bench_peer_await(&b->peer);
    return st;
}

/* One after another: 0 ... the ways, then the plain socket, then memcpy. */
static status run_row(bench *b, int row, const kvt_geometry *g, uint32_t tokens, double *s) {
    uint64_t bytes = bench_transfer_token_bytes(g) * tokens;
    if (row < bench_ways_count) return transfer(b, row, b->nodes[row], g, tokens, s);
    double from = now_s();
    status st = ST_OK;
    if (row == bench_ways_count) st = bench_peer_raw(&b->peer, b->memory, bytes);
    else memcpy(b->copy, b->memory, bytes);
    *s = now_s() - from;
    return st;
}

/* ---- rounds ------------------------------------------------------------------------------------------ */

typedef double samples[TRANSFER_WAYS_MAX + 2][TRANSFER_ROUNDS_MAX];

static status run_counted(bench *b, int row, const kvt_geometry *g, uint32_t tokens, double *s) {
    double in_before, in_after, out_before = bench_cpu_now();
    TRY(bench_peer_cpu(&b->peer, &in_before));
    TRY(run_row(b, row, g, tokens, s));
    TRY(bench_peer_cpu(&b->peer, &in_after));
    b->cpu_out[row] += bench_cpu_now() - out_before;
    b->cpu_in[row] += in_after - in_before;
    return ST_OK;
}

/* Every row once a round, after one round to warm up. */
static status run_rounds(bench *b, const kvt_geometry *g, uint32_t tokens, int rounds, samples s, error *err) {
    for (int round = -1; round < rounds; round++)
        for (int row = 0; row < b->r->rows_count; row++) {
            if (round <= 0) b->cpu_out[row] = b->cpu_in[row] = 0;
            status st = run_counted(b, row, g, tokens, &s[row][round < 0 ? 0 : round]);
            if (st != ST_OK)
                return error_set(err, st, "%s, %u tokens: %s", b->r->rows[row].name, tokens, status_text(st));
        }
    return ST_OK;
}

/* bytes a second, or the share of another row's of the same round. */
static bench_spread rate_of(const double *s, int rounds, double bytes) {
    double rate[TRANSFER_ROUNDS_MAX];
    for (int i = 0; i < rounds; i++) rate[i] = bytes / s[i];
    return bench_spread_of(rate, rounds);
}

static bench_spread ratio_of(const double *s, const double *to, int rounds) {
    double ratio[TRANSFER_ROUNDS_MAX];
    for (int i = 0; i < rounds; i++) ratio[i] = to[i] / s[i];
    return bench_spread_of(ratio, rounds);
}

static status measure_size(bench *b, int index, error *err) {
    static samples s;
    uint64_t bytes = bench_transfer_sizes[index];
    uint32_t tokens = (uint32_t)(bytes / bench_transfer_token_bytes(&bench_transfer_square));
    int rounds = (int)(ROUND_BYTES / bytes), raw = bench_ways_count, copy = raw + 1;
    if (rounds < TRANSFER_ROUNDS) rounds = TRANSFER_ROUNDS;
    if (rounds > b->rounds_max) rounds = b->rounds_max;
    if (b->progress) b->progress("payloads of KiB", (int)(bytes >> 10));
    TRY(run_rounds(b, &bench_transfer_square, tokens, rounds, s, err));
    for (int row = 0; row < b->r->rows_count; row++)
        b->r->rows[row].size[index] = (bench_transfer_point){.rate = rate_of(s[row], rounds, (double)bytes),
                                                             .of_raw = ratio_of(s[row], s[raw], rounds),
                                                             .of_copy = ratio_of(s[row], s[copy], rounds),
                                                             .cpu_out = b->cpu_out[row] * 1e9 / (double)bytes / rounds,
                                                             .cpu_in = b->cpu_in[row] * 1e9 / (double)bytes / rounds};
    for (int row = 1; row < b->r->rows_count; row++)
        if (b->r->rows[row].sealed) b->r->rows[row].size[index].of_clear = ratio_of(s[row], s[row - 1], rounds);
    return ST_OK;
}

static bench_spread in_ms(const double *s, int rounds) {
    double ms[TRANSFER_ROUNDS_MAX];
    for (int i = 0; i < rounds; i++) ms[i] = s[i] * 1e3;
    return bench_spread_of(ms, rounds);
}

static status measure_handoff(bench *b, error *err) {
    static samples s;
    int rounds = b->rounds_max;
    if (b->progress) b->progress("a hand-off of tokens", TRANSFER_HANDOFF_TOKENS);
    TRY(run_rounds(b, &bench_transfer_smollm, TRANSFER_HANDOFF_TOKENS, rounds, s, err));
    for (int row = 0; row < b->r->rows_count; row++) {
        b->r->rows[row].handoff_ms = in_ms(s[row], rounds);
        b->r->rows[row].handoff_share = ratio_of(s[row], s[bench_ways_count], rounds);
        b->r->rows[row].handoff_copy = ratio_of(s[row], s[bench_ways_count + 1], rounds);
        if (b->r->rows[row].sealed) b->r->rows[row].handoff_clear = ratio_of(s[row], s[row - 1], rounds);
    }
    return ST_OK;
}

static status open_node(int way, kvt_node **out, error *err) {
    kvt_options o = {.pairing = "bench", .transport = bench_ways[way].transport};
    return kvt_node_open(&o, out, err);
}

/* A new node each time, so that there is no link yet. */
static status measure_first(bench *b, error *err) {
    if (b->progress) b->progress("new links", 0);
    for (int i = 0; i < bench_ways_count; i++) {
        double s[TRANSFER_ROUNDS_MAX];
        for (int round = 0; round < b->rounds_max; round++) {
            kvt_node *n;
            TRY(open_node(i, &n, err));
            status st = transfer(b, i, n, &bench_transfer_smollm, 1, &s[round]);
            kvt_node_close(n);
            if (st != ST_OK) return error_set(err, st, "%s, a new link: %s", bench_ways[i].name, status_text(st));
        }
        b->r->rows[i].first_ms = in_ms(s, b->rounds_max);
    }
    return ST_OK;
}

static status measure(bench *b, uint64_t memory_bytes, error *err) {
    b->memory = mem_alloc(memory_bytes);
    b->copy = mem_alloc(memory_bytes);
    if (!b->memory || !b->copy) return error_set(err, ST_NO_MEMORY, "no memory for %llu MiB twice",
                                                 (unsigned long long)(memory_bytes >> 20));
    memset(b->memory, 1, memory_bytes);
    memset(b->copy, 2, memory_bytes);
    for (int i = 0; i < bench_ways_count; i++) TRY(open_node(i, &b->nodes[i], err));
    TRY(measure_first(b, err));
    TRY(measure_handoff(b, err));
    for (int i = 0; i < b->r->sizes; i++) TRY(measure_size(b, i, err));
    return ST_OK;
}

static void add_way(bench_transfer_report *r, const char *transport, const unsigned char *key) {
    bench_way *w = &bench_ways[bench_ways_count++];
    *w = (bench_way){.transport = transport, .key = key};
    snprintf(w->name, sizeof w->name, "%s%s", transport, key ? " sealed" : "");
    r->rows[r->rows_count++] = (bench_transfer_row){.name = w->name, .sealed = key != NULL};
}

/* Before the second process is made: both then have the same. */
static void find_ways(bench_transfer_report *r) {
    static const unsigned char key[KVT_KEY_BYTES] = {1, 2, 3};
    bench_ways_count = 0;
    for (int i = 0; i < kvt_transports_count; i++) {
        const kvt_transport *t;
        if (kvt_transport_find(kvt_transports[i]->name, &t, &r->missing) != ST_OK) continue;
        add_way(r, t->name, NULL);
        if (!t->stays) add_way(r, t->name, key);
    }
}

status bench_transfer_run(bool quick, void (*progress)(const char *what, int size), bench_transfer_report *out,
                          error *err) {
    static bench b = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    *out = (bench_transfer_report){.sizes = quick ? TRANSFER_SIZES - 2 : TRANSFER_SIZES};
    find_ways(out);
    out->rows[out->rows_count++].name = "socket";
    out->rows[out->rows_count++].name = "memcpy";
    b.r = out;
    b.rounds_max = quick ? TRANSFER_ROUNDS : TRANSFER_ROUNDS_MAX;
    b.progress = progress;
    uint64_t memory_bytes = bench_transfer_sizes[out->sizes - 1];
    status s = bench_peer_start(memory_bytes, &b.peer, err);
    if (s == ST_OK) s = measure(&b, memory_bytes, err);
    for (int i = 0; i < bench_ways_count; i++) kvt_node_close(b.nodes[i]);
    bench_peer_stop(&b.peer);
    mem_free(b.memory);
    mem_free(b.copy);
    return s;
}
