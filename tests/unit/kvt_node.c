/* kvt_node.c -- nodes, links, promises and sends over every transport of the table: all arrives, what
 * is refused never lands, everybody is told exactly once, nothing is left behind.
 *
 * A `half` is one end of a ticket, receiver or sender, and checks the contract of its callbacks as they
 * come. Peers that misbehave write by hand to a stream of the transport ("raw"). */
#include "kvtransfer/internal.h"
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

static const kvt_transport *table;   /* of the run */
static const char *transport;        /* its name */
static const unsigned char *key;     /* of every ticket; NULL: nothing is sealed */
static kvt_cipher *raw_cipher;       /* of frames by hand, while key is there */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* ---- halves ---------------------------------------------------------------------------------- */

typedef struct half {
    uint64_t ticket;
    uint32_t epoch;
    kvt_geometry g;
    uint32_t first, tokens;
    unsigned char *memory;       /* receiver: [layer][K,V][head][token][row]; under lock while rows land */
    kvt_send *send;
    bool close_in_ended;         /* sender: let go inside the callback */
    int packs, lands;
    int ended;                   /* under lock: calls of ended() */
    status s;
    uint32_t landed;
    uint64_t bytes;
    char why[400];
} half;

static const kvt_geometry small = {.layers = 4, .heads = 2, .row_bytes = 32, .type = 1};
static const kvt_geometry smollm = {.layers = 30, .heads = 3, .row_bytes = 128, .type = 1};

/* What stands in every row: any mix-up of ticket, layer, K and V, head or token shows. */
static unsigned char pattern(uint64_t ticket, uint32_t l, uint32_t kv, uint32_t h, uint32_t t,
                             uint32_t b) {
    return (unsigned char)(ticket * 31 + l * 7 + kv * 101 + h * 13 + t * 3 + b);
}

static void pack(void *ctx, const kvt_frame *box, void *out) {
    half *s = ctx;
    unsigned char *at = out;
    assert(!s->ended && box->ticket == s->ticket);
    __atomic_fetch_add(&s->packs, 1, __ATOMIC_RELAXED); /* abort_in_the_middle looks at it */
    for (uint32_t l = box->layer_first; l < box->layer_first + box->layers; l++)
        for (uint32_t kv = 0; kv < 2; kv++)
            for (uint32_t h = box->head_first; h < box->head_first + box->heads; h++)
                for (uint32_t t = box->token_first; t < box->token_first + box->tokens; t++)
                    for (uint32_t b = 0; b < s->g.row_bytes; b++)
                        *at++ = pattern(s->ticket, l, kv, h, t, b);
    assert(at == (unsigned char *)out + box->payload_bytes);
}

static size_t row_at(const half *r, uint32_t l, uint32_t kv, uint32_t h, uint32_t t) {
    h -= r->g.head_first;
    return ((((size_t)l * 2 + kv) * r->g.heads + h) * r->tokens + (t - r->first)) * r->g.row_bytes;
}

/* K packed aside, V where it lies: in memory that sender_with_rows() made. */
static int runs(void *ctx, const kvt_frame *box, void *scratch, struct iovec *out) {
    half *s = ctx;
    int count = 0;
    size_t bytes = (size_t)box->tokens * s->g.row_bytes;
    assert(!s->ended && box->ticket == s->ticket);
    __atomic_fetch_add(&s->packs, 1, __ATOMIC_RELAXED);
    for (uint32_t l = box->layer_first; l < box->layer_first + box->layers; l++)
        for (uint32_t kv = 0; kv < 2; kv++)
            for (uint32_t h = box->head_first; h < box->head_first + box->heads; h++) {
                unsigned char *at = s->memory + row_at(s, l, kv, h, box->token_first);
                if (kv == 0) at = memcpy((unsigned char *)scratch + (size_t)count * bytes, at, bytes);
                out[count++] = (struct iovec){at, bytes};
            }
    return count;
}

static void land(void *ctx, const kvt_frame *box, const void *payload) {
    half *r = ctx;
    const unsigned char *from = payload;
    assert(!r->ended && box->ticket == r->ticket && box->epoch == r->epoch);
    pthread_mutex_lock(&lock);
    r->lands++;
    for (uint32_t l = box->layer_first; l < box->layer_first + box->layers; l++)
        for (uint32_t kv = 0; kv < 2; kv++)
            for (uint32_t h = box->head_first; h < box->head_first + box->heads; h++) {
                size_t bytes = (size_t)box->tokens * r->g.row_bytes;
                memcpy(r->memory + row_at(r, l, kv, h, box->token_first), from, bytes);
                from += bytes;
            }
    pthread_mutex_unlock(&lock);
    assert(from == (const unsigned char *)payload + box->payload_bytes);
}

static void told(half *x, status s) {
    pthread_mutex_lock(&lock);
    x->s = s;
    x->ended++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void sink_ended(void *ctx, status s, uint32_t landed) {
    half *r = ctx;
    r->landed = landed;
    told(r, s);
}

static void source_ended(void *ctx, status s, uint64_t bytes, int64_t wire_us, const char *why) {
    half *x = ctx;
    assert(wire_us >= 0);
    x->bytes = bytes;
    snprintf(x->why, sizeof x->why, "%s", why);
    if (x->close_in_ended) kvt_send_close(x->send);
    told(x, s);
}

static const kvt_sink sink = {land, sink_ended};
static const kvt_source source = {.pack = pack, .ended = source_ended};
static const kvt_source with_runs = {.pack = pack, .runs = runs, .ended = source_ended};

/* Waits at most a minute for ended() and returns its status. */
static status outcome(half *x) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&lock);
    while (!x->ended)
        if (pthread_cond_timedwait(&changed, &lock, &until)) break;
    int calls = x->ended;
    status s = x->s;
    pthread_mutex_unlock(&lock);
    assert_int_equal(calls, 1);
    return s;
}

static int calls(half *x) {
    pthread_mutex_lock(&lock);
    int n = x->ended;
    pthread_mutex_unlock(&lock);
    return n;
}

static half receiver(uint64_t ticket, uint32_t epoch, const kvt_geometry *g, uint32_t first,
                     uint32_t tokens) {
    half r = {.ticket = ticket, .epoch = epoch, .g = *g, .first = first, .tokens = tokens};
    r.memory = calloc(1, (size_t)g->layers * 2 * g->heads * tokens * g->row_bytes);
    return r;
}

static status promise(kvt_node *n, half *r, uint32_t lease_ms) {
    return kvt_promise(n, r->ticket, r->epoch, &r->g, r->first, r->first + r->tokens, lease_ms, key, &sink, r);
}

static status begin(kvt_node *n, const char *address, half *s, uint32_t timeout_ms) {
    return kvt_send_open(n, address, s->ticket, s->epoch, &s->g, timeout_ms, key, s->memory ? &with_runs : &source, s,
                         &s->send);
}

static half sender_of(const half *r) {
    return (half){.ticket = r->ticket, .epoch = r->epoch, .g = r->g, .first = r->first,
                  .tokens = r->tokens};
}

/* One whose rows are in memory, for transports that read them there. */
static half sender_with_rows(const half *r) {
    half s = sender_of(r);
    s.memory = malloc((size_t)s.g.layers * 2 * s.g.heads * s.tokens * s.g.row_bytes);
    for (uint32_t l = 0; l < s.g.layers; l++)
        for (uint32_t kv = 0; kv < 2; kv++)
            for (uint32_t h = 0; h < s.g.heads; h++)
                for (uint32_t t = 0; t < s.tokens; t++)
                    for (uint32_t b = 0; b < s.g.row_bytes; b++)
                        s.memory[row_at(&s, l, kv, s.g.head_first + h, s.first + t) + b] =
                            pattern(s.ticket, l, kv, s.g.head_first + h, s.first + t, b);
    return s;
}

/* A sender of some of its heads, counted over the model. */
static half part_of(const half *r, uint32_t head_first, uint32_t heads) {
    half s = sender_of(r);
    s.g.head_first = head_first;
    s.g.heads = heads;
    return s;
}

/* The first `tokens` tokens hold the pattern. */
static void assert_whole(const half *r, uint32_t tokens) {
    for (uint32_t l = 0; l < r->g.layers; l++)
        for (uint32_t kv = 0; kv < 2; kv++)
            for (uint32_t h = r->g.head_first; h < r->g.head_first + r->g.heads; h++)
                for (uint32_t t = r->first; t < r->first + tokens; t++)
                    for (uint32_t b = 0; b < r->g.row_bytes; b++)
                        if (r->memory[row_at(r, l, kv, h, t) + b] != pattern(r->ticket, l, kv, h, t, b))
                            fail_msg("ticket %llu layer %u kv %u head %u token %u byte %u differs",
                                     (unsigned long long)r->ticket, l, kv, h, t, b);
}

static void assert_untouched(const half *r) {
    size_t bytes = (size_t)r->g.layers * 2 * r->g.heads * r->tokens * r->g.row_bytes, i = 0;
    pthread_mutex_lock(&lock); /* rows may land as soon as the test goes on */
    while (i < bytes && !r->memory[i]) i++;
    pthread_mutex_unlock(&lock);
    assert_int_equal(i, bytes);
}

/* ---- nodes, metrics, descriptors ------------------------------------------------------------- */

static kvt_node *node_open(const char *listen, const char *pairing) {
    kvt_node *n = NULL;
    error err = {0};
    kvt_options o = {.listen = listen, .pairing = pairing, .transport = transport};
    if (kvt_node_open(&o, &n, &err)) fail_msg("%s", err.text);
    return n;
}

static int promises_open(kvt_node *n) {
    pthread_mutex_lock(&n->lock);
    int count = kvt_promises_count(n->promises);
    pthread_mutex_unlock(&n->lock);
    return count;
}

typedef struct lookup {
    const char *name, *labels;
    int64_t value;
} lookup;

static void look(const metric *m, void *ctx) {
    lookup *l = ctx;
    if (!strcmp(m->name, l->name) && !strcmp(m->labels ? m->labels : "", l->labels)) l->value = metric_get(m);
}

static int64_t refused(const char *reason) {
    char labels[40];
    snprintf(labels, sizeof labels, "reason=\"%s\"", reason);
    lookup l = {"baton_kv_frames_refused_total", labels, 0};
    metrics_each(look, &l);
    return l.value;
}

static int64_t frames_received(void) {
    lookup l = {"baton_kv_frames_received_total", "", 0};
    metrics_each(look, &l);
    return l.value;
}

/* Of all nodes of this process, both ends. */
static int64_t links_open(void) {
    lookup l = {"baton_kv_links", "", -1};
    metrics_each(look, &l);
    return l.value;
}

static int count_entries(const char *folder) {
    int n = 0;
    DIR *d = opendir(folder);
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static void nap_ms(int ms) { poll(NULL, 0, ms); }

/* Waits until so many ends of links are left: the nodes have seen that the others are gone. */
static void await_links(int64_t count) {
    for (int i = 0; i < 1000 && links_open() != count; i++) nap_ms(5);
    assert_int_equal(links_open(), count);
}

/* ---- raw peers: frames by hand over the transport's streams ---------------------------------- */

enum { PATIENCE_MS = 5000 };

static kvt_context *raw_context;     /* of all raw streams, where the transport has such: there while one is open */
static int raw_streams;

static kvt_stream *raw_opened(kvt_stream *s) {
    raw_streams += s != NULL;
    return s;
}

static kvt_context *raw_open(void) {
    if (!raw_context && table->context_create)
        assert_int_equal(table->context_create("127.0.0.1:0", &raw_context, NULL), ST_OK);
    return raw_context;
}

static void raw_close(kvt_stream *s) {
    table->close(s);
    if (--raw_streams || !raw_context) return;
    table->context_destroy(raw_context);
    raw_context = NULL;
}

/* Waits until one of the events may hold; false: until_ms is over. */
static bool raw_await(kvt_stream *s, uint32_t events, int64_t until_ms) {
    for (int64_t left; (left = until_ms - clock_now_ms()) > 0;) {
        if (raw_context) table->context_turn(raw_context, clock_now_ms());
        if (table->ready && table->ready(s, events)) return true;
        if (raw_context && !table->context_sleep(raw_context)) continue;
        bool out = events & EPOLLOUT && !table->ready;
        struct pollfd p = {.fd = s->fd >= 0 ? s->fd : raw_context->fd, .events = out ? POLLIN | POLLOUT : POLLIN};
        if (poll(&p, 1, (int)left) <= 0) return false;
        if (!raw_context) return true;
    }
    return false;
}

/* NULL: the node closed at once, and the transport noticed while connecting. */
static kvt_stream *raw_try(const char *address) {
    kvt_address at;
    error err = {0};
    if (table->resolve(address, &at, &err)) fail_msg("%s", err.text);
    return raw_opened(table->connect(raw_open(), &at));
}

static kvt_stream *raw_connect(const char *address) {
    kvt_stream *s = raw_try(address);
    assert_non_null(s);
    return s;
}

static kvt_stream *raw_listen(char address[KVT_ADDRESS_MAX]) {
    kvt_stream *listener = NULL;
    assert_int_equal(table->listen(raw_open(), "127.0.0.1:0", &listener, address, NULL), ST_OK);
    return raw_opened(listener);
}

static kvt_stream *raw_accept(kvt_stream *listener) {
    assert_true(raw_await(listener, EPOLLIN, clock_now_ms() + PATIENCE_MS));
    return raw_opened(table->accept(listener));
}

static void raw_write(kvt_stream *s, const void *data, size_t bytes) {
    int64_t until_ms = clock_now_ms() + PATIENCE_MS;
    while (bytes) {
        struct iovec iov = {(void *)(uintptr_t)data, bytes};
        ssize_t n = table->write(s, &iov, 1);
        if (n < 0 && (errno == EAGAIN || errno == ENOTCONN) && raw_await(s, EPOLLOUT, until_ms)) continue;
        if (n <= 0) return; /* closed by the node: the test looks at that itself */
        data = (const char *)data + n;
        bytes -= (size_t)n;
    }
    for (; raw_context && table->unsent(s) > 0 && clock_now_ms() < until_ms; nap_ms(1))
        table->context_turn(raw_context, clock_now_ms()); /* it leaves while somebody looks after it */
}

/* What came of so many bytes until the stream closed (*closed) or patience ended. */
static size_t raw_read_bytes(kvt_stream *s, void *out, size_t bytes, bool *closed) {
    int64_t until_ms = clock_now_ms() + PATIENCE_MS;
    size_t done = 0;
    *closed = false;
    while (done < bytes && !*closed) {
        ssize_t n = table->read(s, (char *)out + done, bytes - done);
        if (n > 0) done += (size_t)n;
        else if (n < 0 && (errno == EAGAIN || errno == ENOTCONN)) {
            if (!raw_await(s, EPOLLIN, until_ms)) break;
        } else *closed = n == 0 || errno == ECONNRESET;
    }
    return done;
}

/* Each frame by a sender of its own, so that links need no order between them. */
static void raw_seal(kvt_frame *f, unsigned char *wire) {
    kvt_sealing s;
    assert_true(kvt_sealing_begin(&s, key));
    kvt_seal(raw_cipher, &s, f, wire);
}

static void raw_header(kvt_stream *fd, const kvt_frame *f) {
    unsigned char wire[KVT_FRAME_BYTES + KVT_SEAL_BYTES];
    kvt_frame copy = *f;
    bool seals = key && (f->kind == KVT_END || f->kind == KVT_ABORT);
    if (seals) raw_seal(&copy, wire);
    else kvt_frame_encode(f, wire);
    raw_write(fd, wire, KVT_FRAME_BYTES + (seals ? KVT_SEAL_BYTES : 0));
}

static kvt_frame raw_read(kvt_stream *fd) {
    unsigned char wire[KVT_FRAME_BYTES];
    kvt_frame f;
    bool closed;
    assert_int_equal(raw_read_bytes(fd, wire, sizeof wire, &closed), sizeof wire);
    assert_int_equal(kvt_frame_decode(wire, &f, NULL), ST_OK);
    return f;
}

static void raw_hello(kvt_stream *fd, const char *pairing) {
    uint32_t bytes = (uint32_t)strlen(pairing);
    raw_header(fd, &(kvt_frame){.kind = KVT_HELLO, .payload_bytes = bytes,
                                .payload_crc = kvt_crc32c(0, pairing, bytes)});
    raw_write(fd, pairing, bytes);
}

/* A sender's link, both HELLOs done. */
static kvt_stream *raw_link(kvt_node *n) {
    char pairing[KVT_PAIRING_MAX];
    bool closed;
    kvt_stream *fd = raw_connect(kvt_node_address(n));
    raw_hello(fd, "pair");
    kvt_frame f = raw_read(fd);
    assert_int_equal(f.kind, KVT_HELLO);
    assert_int_equal(raw_read_bytes(fd, pairing, f.payload_bytes, &closed), 4);
    return fd;
}

/* The node closes it in time. */
static void assert_closed(kvt_stream *fd) {
    char bytes[4096];
    bool closed = false;
    while (!closed && raw_read_bytes(fd, bytes, sizeof bytes, &closed) == sizeof bytes) {}
    assert_true(closed);
    raw_close(fd);
}

static void assert_ack(kvt_stream *fd, const kvt_frame *of, status code) {
    kvt_frame ack = raw_read(fd);
    assert_int_equal(ack.kind, KVT_ACK);
    assert_true(ack.ticket == of->ticket && ack.epoch == of->epoch);
    assert_string_equal(status_name((status)ack.code), status_name(code));
}

/* What was written to this link has been judged: an END of an unknown ticket is answered behind it. */
static void raw_sync(kvt_stream *fd) {
    kvt_frame unknown = {.kind = KVT_END, .ticket = 99, .epoch = 99};
    raw_header(fd, &unknown);
    assert_ack(fd, &unknown, ST_PEER_STALE);
}

static kvt_frame box_of(const half *r, uint32_t token, uint32_t tokens) {
    kvt_frame f = {.kind = KVT_DATA, .ticket = r->ticket, .epoch = r->epoch, .layers = r->g.layers,
                   .head_first = r->g.head_first, .heads = r->g.heads, .token_first = token,
                   .tokens = tokens, .type = r->g.type};
    f.payload_bytes = f.layers * 2 * f.heads * tokens * r->g.row_bytes;
    return f;
}

static kvt_frame plain(const half *r, kvt_frame_kind kind) {
    return (kvt_frame){.kind = kind, .ticket = r->ticket, .epoch = r->epoch,
                       .head_first = r->g.head_first, .heads = r->g.heads};
}

/* Fills payload with the pattern (as a sender would) and sets the frame's CRC. */
static unsigned char *filled(const half *r, kvt_frame *f) {
    half s = sender_of(r);
    unsigned char *payload = calloc(1, f->payload_bytes + 1);
    kvt_frame box = *f;
    box.ticket = r->ticket, box.layers = r->g.layers, box.heads = r->g.heads;
    if (f->payload_bytes == box.layers * 2 * box.heads * box.tokens * r->g.row_bytes)
        pack(&s, &box, payload);
    f->payload_crc = kvt_crc32c(0, payload, f->payload_bytes);
    return payload;
}

/* The whole frame as it travels. */
static unsigned char *raw_frame(const half *r, kvt_frame f, size_t *bytes) {
    unsigned char *payload = filled(r, &f);
    size_t head = KVT_FRAME_BYTES + (key ? KVT_SEAL_BYTES : 0);
    unsigned char *wire = malloc(*bytes = head + f.payload_bytes);
    memcpy(wire + head, payload, f.payload_bytes);
    if (key) raw_seal(&f, wire);
    else kvt_frame_encode(&f, wire);
    free(payload);
    return wire;
}

static void raw_data(kvt_stream *fd, const half *r, kvt_frame f) {
    size_t bytes;
    unsigned char *wire = raw_frame(r, f, &bytes);
    raw_write(fd, wire, bytes);
    free(wire);
}

/* ---- all arrives ----------------------------------------------------------------------------- */

enum { TICKETS = 24 };

typedef struct crowd {
    kvt_node *from, *to;
    uint64_t base;
    unsigned seed;
    half in[TICKETS], out[TICKETS];
} crowd;

/* Pushes every ticket's tokens in chunks of random length, the tickets in random turns. */
static void *crowd_run(void *ctx) {
    crowd *c = ctx;
    uint32_t at[TICKETS];
    for (int i = 0; i < TICKETS; i++) {
        kvt_geometry g = i % 3 ? small : smollm;
        uint32_t tokens = 1 + (uint32_t)(i * 37) % 300;
        c->in[i] = receiver(c->base + (uint64_t)i, 1, &g, (uint32_t)i * 16, tokens);
        c->out[i] = sender_of(&c->in[i]);
        at[i] = c->in[i].first;
        assert(promise(c->to, &c->in[i], 60000) == ST_OK);
        assert(begin(c->from, kvt_node_address(c->to), &c->out[i], 60000) == ST_OK);
    }
    for (int left = TICKETS; left;) {
        int i = (int)((unsigned)rand_r(&c->seed) % TICKETS);
        uint32_t end = c->in[i].first + c->in[i].tokens, n = 1 + (unsigned)rand_r(&c->seed) % 64;
        if (at[i] > end) continue;
        if (at[i] == end) {
            kvt_send_end(c->out[i].send);
            at[i]++, left--;
            continue;
        }
        if (n > end - at[i]) n = end - at[i];
        kvt_send_push(c->out[i].send, at[i], n);
        at[i] += n;
    }
    return NULL;
}

static void crowd_check(crowd *c) {
    for (int i = 0; i < TICKETS; i++) {
        half *in = &c->in[i], *out = &c->out[i];
        assert_string_equal(status_name(outcome(in)), "ST_OK");
        assert_string_equal(status_name(outcome(out)), "ST_OK");
        assert_int_equal(in->landed, in->tokens);
        assert_int_equal(out->bytes, (uint64_t)in->g.layers * 2 * in->g.heads * in->tokens *
                                         in->g.row_bytes);
        assert_whole(in, in->tokens);
        kvt_send_close(out->send);
        free(in->memory);
    }
}

static void many_tickets_both_ways(void **state) {
    (void)state;
    kvt_node *a = node_open("127.0.0.1:0", "pair"), *b = node_open("127.0.0.1:0", "pair");
    crowd *ab = calloc(1, sizeof *ab), *ba = calloc(1, sizeof *ba);
    *ab = (crowd){.from = a, .to = b, .base = 100, .seed = 1};
    *ba = (crowd){.from = b, .to = a, .base = 100, .seed = 2};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, crowd_run, ab), 0);
    crowd_run(ba);
    pthread_join(t, NULL);
    crowd_check(ab);
    crowd_check(ba);
    assert_int_equal(promises_open(a) + promises_open(b), 0);
    kvt_node_close(a);
    kvt_node_close(b);
    free(ab);
    free(ba);
}

/* Ranges out of order and one push larger than a frame: every cut is exact. */
static void large_and_out_of_order(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half in = receiver(5, 1, &smollm, 0, 4000), out = sender_of(&in);
    assert_string_equal(kvt_node_address(a), "");
    assert_int_equal(promise(b, &in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &out, 5000), ST_OK);
    kvt_send_push(out.send, 3000, 1000);
    for (uint32_t t = 0; t < 100; t += 2) kvt_send_push(out.send, t, 1);
    for (uint32_t t = 1; t < 100; t += 2) kvt_send_push(out.send, t, 1);
    kvt_send_push(out.send, 100, 2900);
    kvt_send_end(out.send);
    assert_int_equal(outcome(&out), ST_OK);
    assert_int_equal(outcome(&in), ST_OK);
    assert_whole(&in, in.tokens);
    kvt_send_close(out.send);
    kvt_node_close(a);
    kvt_node_close(b);
    free(in.memory);
}

/* Rows gathered from where they lie, in frames of every cut: one token of all layers, many of one. */
static void gathered_where_they_lie(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half in = receiver(5, 1, &smollm, 16, 1500), out = sender_with_rows(&in);
    assert_int_equal(promise(b, &in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &out, 5000), ST_OK);
    kvt_send_push(out.send, 1000, 516);
    for (uint32_t t = 16; t < 50; t++) kvt_send_push(out.send, t, 1);
    kvt_send_push(out.send, 50, 950);
    kvt_send_end(out.send);
    assert_int_equal(outcome(&out), ST_OK);
    assert_int_equal(outcome(&in), ST_OK);
    assert_whole(&in, in.tokens);
    kvt_send_close(out.send);
    kvt_node_close(a);
    kvt_node_close(b);
    free(in.memory), free(out.memory);
}

/* A send is aborted when the stream is full, so that a frame of its pages is half out. From ended() on the pages
 * are another's: what is still to come of the frame is what it was, and the link lives. */
static void half_a_frame_outlives_its_pages(void **state) {
    (void)state;
    char address[KVT_ADDRESS_MAX];
    unsigned char *payload = malloc(KVT_PAYLOAD_MAX);
    kvt_stream *listener = raw_listen(address);
    kvt_node *a = node_open(NULL, "pair");
    half in = {.ticket = 1, .epoch = 1, .g = smollm, .tokens = 1500}, out = sender_with_rows(&in);
    size_t bytes = (size_t)smollm.layers * 2 * smollm.heads * in.tokens * smollm.row_bytes;
    assert_int_equal(begin(a, address, &out, 60000), ST_OK);
    kvt_stream *fd = raw_accept(listener);
    raw_hello(fd, "pair");
    kvt_frame f = raw_read(fd);
    bool closed;
    assert_int_equal(raw_read_bytes(fd, payload, f.payload_bytes, &closed), 4);
    for (int i = 0; i < 20; i++) kvt_send_push(out.send, 0, in.tokens); /* 690 MB in all */
    for (int before = -1, now = 0; now == 0 || before != now; nap_ms(50))
        before = now, now = __atomic_load_n(&out.packs, __ATOMIC_RELAXED);
    kvt_send_abort(out.send);
    assert_int_equal(outcome(&out), ST_CANCELED);
    memset(out.memory, 0xff, bytes);
    while ((f = raw_read(fd)).kind == KVT_DATA) {
        assert_int_equal(raw_read_bytes(fd, payload, f.payload_bytes, &closed), f.payload_bytes);
        assert_int_equal(kvt_crc32c(0, payload, f.payload_bytes), f.payload_crc);
    }
    assert_int_equal(f.kind, KVT_ABORT);
    kvt_send_close(out.send);
    kvt_node_close(a);
    raw_close(fd), raw_close(listener);
    free(out.memory), free(payload);
}

/* ---- what a receiver refuses ----------------------------------------------------------------- */

static void refusals_are_counted_and_told(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half r = receiver(7, 3, &small, 0, 32);
    assert_int_equal(promise(n, &r, 10000), ST_OK);
    kvt_stream *fd = raw_link(n);
    struct {
        const char *reason;
        kvt_frame f;
        status code;
    } rows[5] = {{"ticket", box_of(&r, 0, 8), ST_PEER_STALE}, {"epoch", box_of(&r, 0, 8), ST_PEER_STALE},
                 {"bounds", box_of(&r, 30, 8), ST_BAD_INPUT}, {"type", box_of(&r, 0, 8), ST_BAD_INPUT},
                 {"type", box_of(&r, 0, 8), ST_BAD_INPUT}};
    rows[0].f.ticket = 8;
    rows[1].f.epoch = 2;
    rows[3].f.type = 9;
    rows[4].f.payload_bytes -= 1;
    for (int i = 0; i < 5; i++) {
        int64_t before = refused(rows[i].reason);
        raw_data(fd, &r, rows[i].f);
        raw_data(fd, &r, rows[i].f); /* counted each time, answered once */
        assert_ack(fd, &rows[i].f, rows[i].code);
        raw_header(fd, &(kvt_frame){.kind = KVT_END, .ticket = 99, .epoch = (uint32_t)i});
        assert_ack(fd, &(kvt_frame){.ticket = 99, .epoch = (uint32_t)i}, ST_PEER_STALE);
        assert_int_equal(refused(rows[i].reason), before + (i ? 2 : 3)); /* END of 99: a ticket's */
    }
    assert_untouched(&r);
    int64_t duplicates = refused("duplicate");
    raw_data(fd, &r, box_of(&r, 0, 20));
    raw_data(fd, &r, box_of(&r, 19, 2));
    raw_data(fd, &r, box_of(&r, 20, 12));
    kvt_frame end = plain(&r, KVT_END);
    raw_header(fd, &end);
    assert_ack(fd, &end, ST_OK);
    assert_int_equal(outcome(&r), ST_OK);
    assert_int_equal(refused("duplicate"), duplicates + 1);
    assert_int_equal(r.lands, 2);
    assert_whole(&r, 32);
    raw_close(fd);
    kvt_node_close(n);
    free(r.memory);
}

static void short_end_is_corrupt(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half in = receiver(5, 1, &small, 0, 64), out = sender_of(&in);
    assert_int_equal(promise(b, &in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &out, 5000), ST_OK);
    kvt_send_push(out.send, 0, 48);
    kvt_send_end(out.send);
    assert_int_equal(outcome(&in), ST_CORRUPT);
    assert_int_equal(outcome(&out), ST_CORRUPT);
    assert_int_equal(in.landed, 48);
    kvt_send_close(out.send);
    kvt_node_close(a);
    kvt_node_close(b);
    free(in.memory);
}

/* One flipped bit in the payload: the sink never sees it, this ticket is corrupt, another ticket of the
 * same link lost its peer, one that no link touched goes on. */
static void flipped_payload_bit(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half r = receiver(7, 1, &small, 0, 32), other = receiver(8, 1, &small, 0, 32);
    half untouched = receiver(9, 1, &small, 0, 32);
    assert_int_equal(promise(n, &r, 10000), ST_OK);
    assert_int_equal(promise(n, &other, 10000), ST_OK);
    assert_int_equal(promise(n, &untouched, 10000), ST_OK);
    int64_t before = refused("crc");
    kvt_stream *fd = raw_link(n);
    raw_data(fd, &other, box_of(&other, 0, 5));
    kvt_frame f = box_of(&r, 0, 8);
    unsigned char *payload = filled(&r, &f);
    payload[100] ^= 4;
    raw_header(fd, &f);
    raw_write(fd, payload, f.payload_bytes);
    assert_int_equal(outcome(&r), ST_CORRUPT);
    assert_int_equal(outcome(&other), ST_PEER_LOST);
    assert_int_equal(other.landed, 5);
    assert_closed(fd);
    assert_int_equal(r.lands, 0);
    assert_untouched(&r);
    assert_int_equal(refused("crc"), before + 1);
    assert_int_equal(calls(&untouched), 0);
    kvt_node_close(n);
    assert_int_equal(outcome(&untouched), ST_CANCELED);
    free(payload);
    free(r.memory), free(other.memory), free(untouched.memory);
}

/* Header damaged (at), or lying with a right CRC about its length: the link ends, nothing lands. */
static void bad_header(int at, unsigned char flip, bool repair) {
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half r = receiver(7, 1, &small, 0, 32);
    assert_int_equal(promise(n, &r, 10000), ST_OK);
    int64_t before = refused("header");
    kvt_stream *fd = raw_link(n);
    raw_data(fd, &r, box_of(&r, 0, 4));
    unsigned char wire[KVT_FRAME_BYTES];
    kvt_frame f = box_of(&r, 4, 8);
    kvt_frame_encode(&f, wire);
    wire[at] ^= flip;
    uint32_t crc = kvt_crc32c(0, wire, 60);
    for (int b = 0; repair && b < 4; b++) wire[60 + b] = (unsigned char)(crc >> 8 * b);
    raw_write(fd, wire, sizeof wire);
    assert_int_equal(outcome(&r), ST_PEER_LOST);
    assert_int_equal(r.landed, 4);
    assert_closed(fd);
    assert_int_equal(refused("header"), before + 1);
    kvt_node_close(n);
    free(r.memory);
}

static void bad_headers(void **state) {
    (void)state;
    bad_header(0, 1, false);     /* magic */
    bad_header(4, 2, true);      /* version */
    bad_header(20, 8, false);    /* a number */
    bad_header(55, 0x80, true);  /* a length of 2 GB */
    bad_header(5, KVT_DATA ^ KVT_ACK, true); /* out of place, and with payload */
}

static void peer_closes_in_mid_frame(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half r = receiver(7, 1, &small, 0, 32);
    assert_int_equal(promise(n, &r, 10000), ST_OK);
    kvt_stream *fd = raw_link(n);
    raw_data(fd, &r, box_of(&r, 0, 11));
    kvt_frame f = box_of(&r, 11, 8);
    unsigned char *payload = filled(&r, &f);
    raw_header(fd, &f);
    raw_write(fd, payload, f.payload_bytes / 2);
    raw_close(fd);
    assert_int_equal(outcome(&r), ST_PEER_LOST);
    assert_int_equal(r.landed, 11);
    assert_int_equal(r.lands, 1);
    kvt_node_close(n);
    free(payload);
    free(r.memory);
}

/* The fence: a frame that is half in when its promise is revoked never lands, nor any after it. A new
 * epoch may be promised at once, and takes only its own frames. */
static void late_frames_never_land(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half old = receiver(7, 1, &small, 0, 32), fresh = receiver(7, 2, &small, 0, 32);
    assert_int_equal(promise(n, &old, 10000), ST_OK);
    kvt_stream *fd = raw_link(n);
    kvt_frame f = box_of(&old, 0, 8);
    size_t bytes;
    unsigned char *wire = raw_frame(&old, f, &bytes);
    int64_t frames = frames_received();
    raw_write(fd, wire, bytes / 2);
    for (int i = 0; i < 1000 && frames_received() == frames; i++) nap_ms(5);
    nap_ms(50);                                                /* and has been checked */
    assert_int_equal(promise(n, &fresh, 10000), ST_BAD_INPUT); /* not before the old one is revoked */
    kvt_revoke(n, 7);
    assert_int_equal(promise(n, &fresh, 10000), ST_OK);
    assert_int_equal(outcome(&old), ST_CANCELED);
    int64_t before = refused("epoch");
    raw_write(fd, wire + bytes / 2, bytes - bytes / 2);
    assert_ack(fd, &f, ST_PEER_STALE);
    raw_data(fd, &old, box_of(&old, 8, 8));
    raw_data(fd, &fresh, box_of(&fresh, 0, 32));
    kvt_frame end = plain(&fresh, KVT_END);
    raw_header(fd, &end);
    assert_ack(fd, &end, ST_OK);
    assert_int_equal(outcome(&fresh), ST_OK);
    assert_int_equal(refused("epoch"), before + 2);
    assert_int_equal(old.lands, 0);
    assert_untouched(&old);
    assert_whole(&fresh, 32);
    raw_close(fd);
    kvt_node_close(n);
    free(wire);
    free(old.memory), free(fresh.memory);
}

/* A sender of an older attempt learns it while it still has rows to send. */
static void old_epoch_ends_the_sender(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half in = receiver(5, 2, &small, 0, 64), out = sender_of(&in);
    out.epoch = 1;
    assert_int_equal(promise(b, &in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &out, 5000), ST_OK);
    kvt_send_push(out.send, 0, 16);
    assert_int_equal(outcome(&out), ST_PEER_STALE);
    kvt_send_push(out.send, 16, 16); /* after ended(): nothing happens */
    kvt_send_end(out.send);
    kvt_send_abort(out.send);
    kvt_send_close(out.send);
    assert_int_equal(in.lands, 0);
    kvt_node_close(a);
    kvt_node_close(b);
    assert_int_equal(outcome(&in), ST_CANCELED);
    free(in.memory);
}

static void lease_ends(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half r = receiver(7, 1, &small, 0, 32);
    int64_t began = clock_now_ms();
    assert_int_equal(promise(n, &r, 300), ST_OK);
    kvt_stream *fd = raw_link(n);
    raw_data(fd, &r, box_of(&r, 0, 3));
    assert_int_equal(outcome(&r), ST_DEADLINE);
    assert_in_range(clock_now_ms() - began, 300, 60000);
    assert_int_equal(r.landed, 3);
    kvt_frame late = box_of(&r, 3, 3);
    raw_data(fd, &r, late);
    assert_ack(fd, &late, ST_PEER_STALE);
    assert_int_equal(r.lands, 1);
    raw_close(fd);
    kvt_node_close(n);
    free(r.memory);
}

/* ---- several senders of one promise ----------------------------------------------------------- */

static const kvt_geometry shared = {.layers = 4, .head_first = 2, .heads = 3, .row_bytes = 32, .type = 1};

/* Ranks of a prefill node, each a node with a head of its own, in any order. Who has ended may leave: its
 * link ends, the promise does not. */
static void ranks_send_in_any_order(void **state) {
    (void)state;
    static const uint32_t orders[6][3] = {{2, 3, 4}, {2, 4, 3}, {3, 2, 4}, {3, 4, 2}, {4, 2, 3}, {4, 3, 2}};
    kvt_node *b = node_open("127.0.0.1:0", "pair");
    for (uint32_t round = 0; round < 6; round++) {
        half in = receiver(round, 1, &shared, 16, 100);
        assert_int_equal(promise(b, &in, 10000), ST_OK);
        for (int i = 0; i < 3; i++) {
            half out = part_of(&in, orders[round][i], 1);
            kvt_node *a = node_open(NULL, "pair");
            assert_int_equal(begin(a, kvt_node_address(b), &out, 5000), ST_OK);
            kvt_send_push(out.send, 16, 100);
            kvt_send_end(out.send);
            assert_int_equal(outcome(&out), ST_OK);
            assert_int_equal(out.bytes, 4 * 2 * 100 * 32);
            kvt_send_close(out.send);
            kvt_node_close(a);
            await_links(0);
            if (i < 2) assert_int_equal(calls(&in), 0);
        }
        assert_int_equal(outcome(&in), ST_OK);
        assert_int_equal(in.landed, 100);
        assert_whole(&in, 100);
        free(in.memory);
    }
    kvt_node_close(b);
}

/* Two ranks at once, of one head and of two; the receiver wants only these of a model with more. */
static void ranks_send_at_once(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "pair"), *c = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half in = receiver(5, 1, &shared, 0, 3000), lower = part_of(&in, 2, 1), upper = part_of(&in, 3, 2);
    assert_int_equal(promise(b, &in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &lower, 5000), ST_OK);
    assert_int_equal(begin(c, kvt_node_address(b), &upper, 5000), ST_OK);
    for (uint32_t t = 0; t < 3000; t += 100) {
        kvt_send_push(upper.send, t, 100);
        kvt_send_push(lower.send, 2900 - t, 100);
    }
    kvt_send_end(lower.send);
    kvt_send_end(upper.send);
    assert_int_equal(outcome(&lower), ST_OK);
    assert_int_equal(outcome(&upper), ST_OK);
    assert_int_equal(outcome(&in), ST_OK);
    assert_whole(&in, 3000);
    kvt_send_close(lower.send), kvt_send_close(upper.send);
    kvt_node_close(a), kvt_node_close(b), kvt_node_close(c);
    free(in.memory);
}

/* Everything has landed before the first END: each sender is told all the same, the receiver at the last. */
static void ends_after_all_rows(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half r = receiver(7, 1, &shared, 0, 32), lower = part_of(&r, 2, 1), upper = part_of(&r, 3, 2);
    assert_int_equal(promise(n, &r, 10000), ST_OK);
    kvt_stream *first = raw_link(n), *second = raw_link(n);
    raw_data(first, &lower, box_of(&lower, 0, 32));
    raw_data(second, &upper, box_of(&upper, 0, 32));
    raw_sync(first);
    kvt_frame end = plain(&upper, KVT_END), other = plain(&lower, KVT_END), twice = box_of(&r, 3, 1);
    raw_header(second, &end);
    assert_ack(second, &end, ST_OK);
    int64_t duplicates = refused("duplicate");
    raw_data(second, &r, twice); /* no head is landed twice */
    raw_header(second, &end);
    assert_ack(second, &end, ST_OK);
    assert_int_equal(refused("duplicate"), duplicates + 1);
    assert_int_equal(calls(&r), 0);
    raw_header(first, &other);
    assert_ack(first, &other, ST_OK);
    assert_int_equal(outcome(&r), ST_OK);
    assert_int_equal(r.lands, 2);
    assert_whole(&r, 32);
    raw_close(first), raw_close(second);
    kvt_node_close(n);
    free(r.memory);
}

/* A rank whose link ends before its END takes the promise with it; the others' next frame is told so. */
static void rank_lost_before_its_end(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half r = receiver(7, 1, &shared, 0, 32), lower = part_of(&r, 2, 1), upper = part_of(&r, 3, 2);
    assert_int_equal(promise(n, &r, 10000), ST_OK);
    kvt_stream *done = raw_link(n), *lost = raw_link(n), *late = raw_link(n);
    raw_data(done, &lower, box_of(&lower, 0, 32));
    kvt_frame end = plain(&lower, KVT_END), stale = plain(&upper, KVT_END);
    raw_header(done, &end);
    assert_ack(done, &end, ST_OK);
    raw_data(lost, &upper, box_of(&upper, 0, 20));
    raw_close(lost);
    assert_int_equal(outcome(&r), ST_PEER_LOST);
    assert_int_equal(r.landed, 20);
    assert_whole(&r, 20);
    raw_header(late, &stale);
    assert_ack(late, &stale, ST_PEER_STALE);
    raw_close(done), raw_close(late);
    kvt_node_close(n);
    free(r.memory);
}

/* An END that lacks rows of its own heads ends the promise, though others are still sending. */
static void rank_ends_short(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    half r = receiver(7, 1, &shared, 0, 32), lower = part_of(&r, 2, 1), upper = part_of(&r, 3, 2);
    assert_int_equal(promise(n, &r, 10000), ST_OK);
    kvt_stream *first = raw_link(n), *second = raw_link(n);
    raw_data(first, &lower, box_of(&lower, 0, 32));
    raw_sync(first);
    raw_data(second, &upper, box_of(&upper, 0, 31));
    kvt_frame end = plain(&upper, KVT_END), other = plain(&lower, KVT_END);
    raw_header(second, &end);
    assert_ack(second, &end, ST_CORRUPT);
    assert_int_equal(outcome(&r), ST_CORRUPT);
    assert_int_equal(r.landed, 31);
    raw_header(first, &other);
    assert_ack(first, &other, ST_PEER_STALE);
    raw_close(first), raw_close(second);
    kvt_node_close(n);
    free(r.memory);
}

static void one_rank_aborts(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "pair"), *c = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half in = receiver(5, 1, &shared, 0, 64), lower = part_of(&in, 2, 1), upper = part_of(&in, 3, 2);
    assert_int_equal(promise(b, &in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &lower, 5000), ST_OK);
    assert_int_equal(begin(c, kvt_node_address(b), &upper, 5000), ST_OK);
    kvt_send_push(upper.send, 0, 32);
    kvt_send_push(lower.send, 0, 16);
    while (!__atomic_load_n(&lower.packs, __ATOMIC_RELAXED)) nap_ms(1);
    kvt_send_abort(lower.send);
    assert_int_equal(outcome(&lower), ST_CANCELED);
    assert_int_equal(outcome(&in), ST_CANCELED);
    kvt_send_push(upper.send, 32, 32);
    kvt_send_end(upper.send);
    assert_int_equal(outcome(&upper), ST_PEER_STALE);
    kvt_send_close(lower.send), kvt_send_close(upper.send);
    kvt_node_close(a), kvt_node_close(b), kvt_node_close(c);
    free(in.memory);
}

/* ---- peers that are none --------------------------------------------------------------------- */

static void strangers_are_closed(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    unsigned char noise[4096];
    srand(7);
    for (int i = 0; i < 20; i++) {
        kvt_stream *fd = raw_connect(kvt_node_address(n));
        for (size_t b = 0; b < sizeof noise; b++) noise[b] = (unsigned char)rand();
        raw_write(fd, noise, sizeof noise);
        assert_closed(fd);
    }
    kvt_stream *fd = raw_connect(kvt_node_address(n)); /* a frame before any HELLO */
    raw_header(fd, &(kvt_frame){.kind = KVT_END, .ticket = 1});
    assert_closed(fd);
    int64_t began = clock_now_ms();            /* one that says nothing */
    fd = raw_connect(kvt_node_address(n));
    assert_closed(fd);
    assert_in_range(clock_now_ms() - began, KVT_CONNECT_MS - 100, KVT_CONNECT_MS + 60000);
    kvt_node_close(n);
}

static void links_are_bounded(void **state) {
    (void)state;
    enum { EXTRA = 4 };
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    kvt_stream *fds[KVT_LINKS_MAX];
    for (int i = 0; i < KVT_LINKS_MAX; i++) fds[i] = raw_link(n);
    for (int i = 0; i < EXTRA; i++) {
        kvt_stream *extra = raw_try(kvt_node_address(n));
        if (extra) assert_closed(extra);
    }
    for (int i = 0; i < KVT_LINKS_MAX; i++) raw_close(fds[i]);
    nap_ms(100);
    raw_close(raw_link(n)); /* there is room again */
    kvt_node_close(n);
}

/* A hundred, one after another: no descriptor and no memory of theirs stays, on either side. */
static void links_come_and_go(void **state) {
    (void)state;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    kvt_stream *stays = raw_link(n);
    raw_close(raw_link(n));
    await_links(1);
    nap_ms(50);
    int fds = count_entries("/proc/self/fd");
    int64_t live = mem_live();
    for (int i = 0; i < 100; i++) {
        raw_close(raw_link(n));
        await_links(1);
    }
    for (int i = 0; i < 1000 && (mem_live() != live || count_entries("/proc/self/fd") != fds); i++) {
        if (raw_context) table->context_turn(raw_context, clock_now_ms());
        nap_ms(5);
    }
    assert_int_equal(mem_live(), live);
    assert_int_equal(count_entries("/proc/self/fd"), fds);
    raw_sync(stays);
    raw_close(stays);
    kvt_node_close(n);
}

/* No descriptor left: the listener rests instead of spinning, and takes the peer when there is one. The node's
 * thread waits for its lock while the peer connects and the limit is set. */
static void descriptors_run_out(void **state) {
    (void)state;
    if (table->context_create) skip(); /* its library accepts, in a thread of its own */
    struct rlimit before, tight;
    struct timespec spent, later;
    kvt_node *n = node_open("127.0.0.1:0", "pair");
    getrlimit(RLIMIT_NOFILE, &before);
    tight = before;
    pthread_mutex_lock(&n->lock);
    kvt_node_wake(n);
    kvt_stream *fd = raw_connect(kvt_node_address(n));
    int spare = dup(0);          /* the lowest that is free */
    close(spare);
    tight.rlim_cur = (rlim_t)spare;
    setrlimit(RLIMIT_NOFILE, &tight);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    pthread_mutex_unlock(&n->lock);
    nap_ms(400);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &later);
    assert_int_equal(links_open(), 0);
    assert_true((later.tv_sec - spent.tv_sec) * 1000 + (later.tv_nsec - spent.tv_nsec) / 1000000 < 200);
    setrlimit(RLIMIT_NOFILE, &before);
    raw_hello(fd, "pair");
    assert_int_equal(raw_read(fd).kind, KVT_HELLO);
    raw_close(fd);
    kvt_node_close(n);
}

static void pairing_differs(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "model-a"), *b = node_open("127.0.0.1:0", "model-b");
    half in = receiver(5, 1, &small, 0, 64), out = sender_of(&in);
    assert_int_equal(promise(b, &in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &out, 5000), ST_OK);
    kvt_send_push(out.send, 0, 64);
    assert_int_equal(outcome(&out), ST_REFUSED);
    assert_non_null(strstr(out.why, "model-a"));
    assert_non_null(strstr(out.why, "model-b"));
    assert_int_equal(out.packs, 0);
    kvt_send_close(out.send);
    kvt_node_close(a);
    kvt_node_close(b);
    free(in.memory);
}

static void nobody_listens(void **state) {
    (void)state;
    char address[KVT_ADDRESS_MAX];
    kvt_node *a = node_open(NULL, "pair");
    half out = {.ticket = 1, .epoch = 1, .g = small};
    raw_close(raw_listen(address));
    assert_int_equal(begin(a, address, &out, 5000), ST_OK);
    assert_int_equal(outcome(&out), ST_PEER_LOST);
    if (!strstr(out.why, "refused") || !strstr(out.why, address)) fail_msg("%s", out.why);
    kvt_send_close(out.send);
    kvt_node_close(a);
}

/* A stopped process: its kernel takes the connection and a window full of bytes, then nothing. */
static void receiver_is_silent(void **state) {
    (void)state;
    char address[KVT_ADDRESS_MAX];
    kvt_stream *listener = raw_listen(address);
    kvt_node *a = node_open(NULL, "pair");
    half out = {.ticket = 1, .epoch = 1, .g = smollm};
    assert_int_equal(begin(a, address, &out, 600), ST_OK);
    kvt_stream *fd = raw_accept(listener);
    raw_hello(fd, "pair");
    for (uint32_t i = 0; i < 4000; i++) {
        int64_t before = clock_now_ms();
        kvt_send_push(out.send, i * 16, 16); /* 1.4 GB in all */
        assert_in_range(clock_now_ms() - before, 0, 60000);
    }
    int64_t began = clock_now_ms();
    assert_int_equal(outcome(&out), ST_DEADLINE);
    assert_in_range(clock_now_ms() - began, 300, 60000);
    assert_in_range(out.bytes, 1, 64 << 20); /* what was packed is what sockets hold, no more */
    kvt_send_close(out.send);
    kvt_node_close(a);
    raw_close(fd);
    raw_close(listener);
}

static void receiver_never_says_hello(void **state) {
    (void)state;
    char address[KVT_ADDRESS_MAX];
    kvt_stream *listener = raw_listen(address);
    kvt_node *a = node_open(NULL, "pair");
    half out = {.ticket = 1, .epoch = 1, .g = small};
    assert_int_equal(begin(a, address, &out, 10000), ST_OK);
    kvt_stream *fd = raw_accept(listener);
    assert_true(raw_await(fd, EPOLLIN, clock_now_ms() + PATIENCE_MS)); /* its HELLO */
    assert_int_equal(outcome(&out), ST_PEER_LOST);
    assert_non_null(strstr(out.why, "HELLO"));
    kvt_send_close(out.send);
    kvt_node_close(a);
    raw_close(fd), raw_close(listener);
}

/* A ticket acknowledged before its END, or with a code that is none, is no success. */
static void lying_acks(void **state) {
    (void)state;
    static const struct {
        uint32_t code;
        status expected;
    } rows[] = {{ST_OK, ST_CORRUPT}, {UINT32_MAX, ST_INTERNAL}};
    for (int i = 0; i < 2; i++) {
        char address[KVT_ADDRESS_MAX];
        kvt_stream *listener = raw_listen(address);
        kvt_node *a = node_open(NULL, "pair");
        half out = {.ticket = 1, .epoch = 1, .g = small};
        assert_int_equal(begin(a, address, &out, 5000), ST_OK);
        kvt_stream *fd = raw_accept(listener);
        raw_hello(fd, "pair");
        raw_header(fd, &(kvt_frame){.kind = KVT_ACK, .ticket = 1, .epoch = 2});
        raw_header(fd, &(kvt_frame){.kind = KVT_ACK, .ticket = 1, .epoch = 1, .code = rows[i].code});
        assert_int_equal(outcome(&out), rows[i].expected);
        kvt_send_close(out.send);
        kvt_node_close(a);
        raw_close(fd);
        raw_close(listener);
    }
}

/* ---- ends ------------------------------------------------------------------------------------ */

static void abort_in_the_middle(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half in = receiver(5, 1, &smollm, 0, 2000), out = sender_of(&in);
    assert_int_equal(promise(b, &in, 60000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &out, 5000), ST_OK);
    kvt_send_push(out.send, 0, 1000);
    while (!__atomic_load_n(&out.packs, __ATOMIC_RELAXED)) nap_ms(1);
    int64_t began = clock_now_ms();
    kvt_send_abort(out.send);
    assert_int_equal(outcome(&out), ST_CANCELED);
    assert_int_equal(outcome(&in), ST_CANCELED);
    assert_in_range(clock_now_ms() - began, 0, 60000);
    assert_whole(&in, in.landed);
    kvt_send_close(out.send);
    kvt_node_close(a);
    kvt_node_close(b);
    free(in.memory);
}

/* The receiver's process ends, another comes up at its address: the same sender node just goes on. */
static void peer_comes_back(void **state) {
    (void)state;
    char address[KVT_ADDRESS_MAX];
    kvt_node *a = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    snprintf(address, sizeof address, "%s", kvt_node_address(b));
    for (uint32_t round = 0; round < 3; round++) {
        half in = receiver(round, 1, &small, 0, 64), out = sender_of(&in);
        half lost_in = receiver(99, round, &small, 0, 64), lost = sender_of(&lost_in);
        assert_int_equal(promise(b, &in, 10000), ST_OK);
        assert_int_equal(begin(a, address, &out, 5000), ST_OK);
        kvt_send_push(out.send, 0, 64);
        kvt_send_end(out.send);
        assert_int_equal(outcome(&out), ST_OK);
        assert_int_equal(outcome(&in), ST_OK);
        assert_int_equal(promise(b, &lost_in, 10000), ST_OK);
        assert_int_equal(begin(a, address, &lost, 5000), ST_OK);
        kvt_send_push(lost.send, 0, 16);
        kvt_node_close(b);
        assert_int_equal(outcome(&lost_in), ST_CANCELED);
        assert_int_equal(outcome(&lost), ST_PEER_LOST);
        kvt_send_close(out.send);
        kvt_send_close(lost.send);
        b = node_open(address, "pair");
        free(in.memory), free(lost_in.memory);
    }
    kvt_node_close(a);
    kvt_node_close(b);
}

static void close_tells_everybody(void **state) {
    (void)state;
    int64_t live = mem_live();
    kvt_node *a = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half in[8], out[8];
    for (int i = 0; i < 8; i++) {
        in[i] = receiver((uint64_t)i, 1, &small, 0, 64);
        out[i] = sender_of(&in[i]);
        out[i].close_in_ended = i % 2;
        assert_int_equal(promise(b, &in[i], 10000), ST_OK);
        assert_int_equal(begin(a, kvt_node_address(b), &out[i], 5000), ST_OK);
        kvt_send_push(out[i].send, 0, 16);
    }
    kvt_node_close(a);
    kvt_node_close(b);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(calls(&out[i]), 1);
        assert_int_equal(out[i].s, ST_CANCELED);
        assert_int_equal(calls(&in[i]), 1);
        if (!out[i].close_in_ended) { /* outlives its node until it is closed */
            kvt_send_push(out[i].send, 16, 16);
            kvt_send_abort(out[i].send);
            kvt_send_close(out[i].send);
        }
        free(in[i].memory);
    }
    assert_int_equal(mem_live(), live);
}

/* One ticket there and back: afterwards link and buffers exist. */
static void transfer_one(kvt_node *a, kvt_node *b, uint64_t ticket) {
    half in = receiver(ticket, 1, &small, 0, 64), out = sender_of(&in);
    assert_int_equal(promise(b, &in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), &out, 5000), ST_OK);
    kvt_send_push(out.send, 0, 64);
    kvt_send_end(out.send);
    assert_int_equal(outcome(&out), ST_OK);
    assert_int_equal(outcome(&in), ST_OK);
    assert_whole(&in, 64);
    kvt_send_close(out.send);
    free(in.memory);
}

enum { REQUESTS = 500 };

/* One request ended by chance: finished, revoked, aborted, let go of unfinished, or left to the
 * caller; perhaps with both ends at once. */
static void random_request(kvt_node *a, kvt_node *b, half *in, half *out, unsigned *seed) {
    assert_int_equal(promise(b, in, 10000), ST_OK);
    assert_int_equal(begin(a, kvt_node_address(b), out, 5000), ST_OK);
    for (uint32_t t = 0; t < 64; t += 16)
        if (rand_r(seed) % 4) kvt_send_push(out->send, t, 16);
    if (rand_r(seed) % 8 == 0) nap_ms(1);
    int end = rand_r(seed) % 6;
    if (end == 0 || end == 5) kvt_send_end(out->send);
    if (end == 1 || end == 5) kvt_revoke(b, in->ticket);
    if (end == 2) kvt_send_abort(out->send);
    if (end == 3) {
        kvt_send_close(out->send);
        out->send = NULL;
    }
}

/* Afterwards nothing is left: no promise, no descriptor, no thread, no allocation of theirs. */
static void random_ends_leave_nothing(void **state) {
    (void)state;
    kvt_node *a = node_open(NULL, "pair"), *b = node_open("127.0.0.1:0", "pair");
    half *in = calloc(REQUESTS, sizeof *in), *out = calloc(REQUESTS, sizeof *out);
    unsigned seed = 11;
    transfer_one(a, b, REQUESTS);
    nap_ms(50);
    int fds = count_entries("/proc/self/fd"), threads = count_entries("/proc/self/task");
    int64_t live = mem_live();
    for (int i = 0; i < REQUESTS; i++) {
        in[i] = receiver((uint64_t)i, 1, &small, 0, 64);
        out[i] = sender_of(&in[i]);
        random_request(a, b, &in[i], &out[i], &seed);
    }
    for (int i = 0; i < REQUESTS; i++) {
        if (out[i].send) kvt_send_abort(out[i].send);
        if (i % 2) kvt_revoke(b, in[i].ticket); /* the others by the ABORT, or by its END */
    }
    for (int i = 0; i < REQUESTS; i++) {
        outcome(&out[i]);
        kvt_revoke(b, in[i].ticket); /* an END may have been overtaken by nothing but this */
        if (outcome(&in[i]) == ST_OK) assert_whole(&in[i], 64);
        if (out[i].send) kvt_send_close(out[i].send);
    }
    for (int i = 0; i < 100 && mem_live() > live; i++) nap_ms(10);
    assert_true(mem_live() <= live);             /* less: ucx was not done with the test before */
    assert_int_equal(promises_open(b), 0);
    assert_in_range(count_entries("/proc/self/fd"), 1, fds);
    assert_in_range(count_entries("/proc/self/task"), 1, threads);
    transfer_one(a, b, REQUESTS + 1);
    kvt_node_close(a);
    kvt_node_close(b);
    for (int i = 0; i < REQUESTS; i++) free(in[i].memory);
    free(in), free(out);
}

/* The whole way with the N-th allocation failing, for N = 1, 2, ... until a run needed fewer. */
static bool way_with_failure(int64_t nth) {
    kvt_node *a = NULL, *b = NULL;
    kvt_options only_sends = {.pairing = "pair", .transport = transport};
    kvt_options listens = {.listen = "127.0.0.1:0", .pairing = "pair", .transport = transport};
    half in = receiver(1, 1, &small, 0, 64), out = sender_of(&in);
    int64_t before = mem_count();
    mem_fail_at(nth);
    bool opened = !kvt_node_open(&only_sends, &a, NULL) && !kvt_node_open(&listens, &b, NULL);
    bool promised = opened && !promise(b, &in, 10000);
    bool sends = promised && !begin(a, kvt_node_address(b), &out, 2000);
    if (sends) {
        kvt_send_push(out.send, 0, 64);
        kvt_send_end(out.send);
        outcome(&out);
        kvt_send_close(out.send);
    }
    if (promised) {
        kvt_revoke(b, 1);
        if (outcome(&in) == ST_OK) assert_whole(&in, 64);
    }
    bool all = sends && out.s == ST_OK && mem_count() - before < nth;
    mem_fail_at(0);
    kvt_node_close(a);
    kvt_node_close(b);
    free(in.memory);
    return all;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    int64_t live = mem_live(), nth = 1;
    while (!way_with_failure(nth)) {
        assert_int_equal(mem_live(), live);
        assert_true(++nth < 100);
    }
    assert_int_equal(mem_live(), live);
    assert_true(nth > 10); /* both nodes, promise, send, ranges, links and their buffers were hit */
}

static bool knows(const char *name) {
    int i = 0;
    while (i < kvt_transports_count && strcmp(kvt_transports[i]->name, name) != 0) i++;
    return i < kvt_transports_count;
}

static void open_refuses(void **state) {
    (void)state;
    kvt_node *n = NULL;
    error err = {0};
    char taken[KVT_ADDRESS_MAX], pairing[KVT_PAIRING_MAX + 2];
    kvt_stream *fd = raw_listen(taken);
    memset(pairing, 'x', sizeof pairing);
    pairing[sizeof pairing - 1] = 0;
    assert_int_equal(kvt_node_open(&(kvt_options){.transport = "pigeon"}, &n, &err), ST_UNSUPPORTED);
    assert_non_null(strstr(err.text, "pigeon"));
    assert_non_null(strstr(err.text, "tcp"));
    if (!knows("ucx")) {
        assert_int_equal(kvt_node_open(&(kvt_options){.transport = "ucx"}, &n, &err), ST_UNSUPPORTED);
        assert_non_null(strstr(err.text, "built without"));
    }
    assert_int_equal(kvt_node_open(&(kvt_options){.pairing = pairing}, &n, &err), ST_BAD_INPUT);
    assert_int_equal(kvt_node_open(&(kvt_options){.listen = taken, .transport = transport}, &n, &err), ST_IO);
    assert_non_null(strstr(err.text, taken));
    static const char *const bad[] = {"", "host", ":1", "h:", "127.0.0.1:x", "127.0.0.1:65536", "::1:5"};
    n = node_open(NULL, "pair");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        half s = {.ticket = 1, .g = small};
        kvt_node *none = NULL;
        kvt_options o = {.listen = bad[i], .transport = transport};
        assert_int_equal(kvt_node_open(&o, &none, &err), ST_BAD_INPUT);
        assert_int_equal(begin(n, bad[i], &s, 1), ST_BAD_INPUT);
    }
    kvt_node_close(n);
    kvt_node_close(NULL);
    raw_close(fd);
}

/* Every test over one transport of the table, which is `table` now. */
static int run(const kvt_transport *t) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_tickets_both_ways),
        cmocka_unit_test(large_and_out_of_order),
        cmocka_unit_test(gathered_where_they_lie),
        cmocka_unit_test(half_a_frame_outlives_its_pages),
        cmocka_unit_test(refusals_are_counted_and_told),
        cmocka_unit_test(short_end_is_corrupt),
        cmocka_unit_test(flipped_payload_bit),
        cmocka_unit_test(bad_headers),
        cmocka_unit_test(peer_closes_in_mid_frame),
        cmocka_unit_test(late_frames_never_land),
        cmocka_unit_test(old_epoch_ends_the_sender),
        cmocka_unit_test(lease_ends),
        cmocka_unit_test(ranks_send_in_any_order),
        cmocka_unit_test(ranks_send_at_once),
        cmocka_unit_test(ends_after_all_rows),
        cmocka_unit_test(rank_lost_before_its_end),
        cmocka_unit_test(rank_ends_short),
        cmocka_unit_test(one_rank_aborts),
        cmocka_unit_test(strangers_are_closed),
        cmocka_unit_test(links_are_bounded),
        cmocka_unit_test(links_come_and_go),
        cmocka_unit_test(descriptors_run_out),
        cmocka_unit_test(pairing_differs),
        cmocka_unit_test(nobody_listens),
        cmocka_unit_test(receiver_is_silent),
        cmocka_unit_test(receiver_never_says_hello),
        cmocka_unit_test(lying_acks),
        cmocka_unit_test(abort_in_the_middle),
        cmocka_unit_test(peer_comes_back),
        cmocka_unit_test(close_tells_everybody),
        cmocka_unit_test(random_ends_leave_nothing),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(open_refuses),
    };
    return cmocka_run_group_tests_name(t->name, tests, NULL, NULL);
}

static int take_key(void **state) {
    static const unsigned char some[KVT_KEY_BYTES] = {1, 2, 3};
    (void)state;
    key = some;
    raw_cipher = kvt_cipher_create();
    return raw_cipher ? 0 : -1;
}

static int drop_key(void **state) {
    (void)state;
    key = NULL;
    kvt_cipher_destroy(raw_cipher);
    return 0;
}

/* Those in which a payload travels and is not damaged on purpose, sealed. */
static int run_sealed(const kvt_transport *t) {
    char name[40];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_tickets_both_ways),
        cmocka_unit_test(large_and_out_of_order),
        cmocka_unit_test(gathered_where_they_lie),
        cmocka_unit_test(refusals_are_counted_and_told),
        cmocka_unit_test(short_end_is_corrupt),
        cmocka_unit_test(late_frames_never_land),
        cmocka_unit_test(ranks_send_in_any_order),
        cmocka_unit_test(ranks_send_at_once),
        cmocka_unit_test(ends_after_all_rows),
        cmocka_unit_test(rank_ends_short),
        cmocka_unit_test(one_rank_aborts),
        cmocka_unit_test(peer_comes_back),
        cmocka_unit_test(random_ends_leave_nothing),
        cmocka_unit_test(every_allocation_may_fail),
    };
    snprintf(name, sizeof name, "%s, sealed", t->name);
    return cmocka_run_group_tests_name(name, tests, take_key, drop_key);
}

int main(void) {
    int failed = 0;
    log_setup("test", LOG_ERROR);
    for (int i = 0; i < kvt_transports_count; i++) {
        error err = {0};
        const kvt_transport *t;
        if (kvt_transport_find(kvt_transports[i]->name, &t, &err) != ST_OK) {
            printf("skipped: %s\n", err.text);
            continue;
        }
        table = t;
        transport = t->name;
        failed += run(t);
        if (!t->stays) failed += run_sealed(t);
    }
    return failed;
}
