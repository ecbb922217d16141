/* transfer_peer.c -- the process that receives: it promises when it is told to, lands rows in one flat memory,
 * and reads plain bytes into the same. It lives until its parent closes the pair of sockets between them. */
#include "bench/transfer.h"
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RAW_PIECE = 256 << 10, LEASE_MS = 60000 }; /* of pieces from 64 KiB to 1 MiB the fastest */

typedef enum order_kind { ORDER_PROMISE, ORDER_AWAIT, ORDER_RAW, ORDER_CPU } order_kind;

typedef struct order {
    order_kind kind;
    int way;
    uint32_t tokens;
    uint64_t ticket, bytes;
    kvt_geometry g;
} order;

/* What the child says first. */
typedef struct greeting {
    status s;
    in_port_t raw_port;
    char why[sizeof(((error *)0)->text)];
    char address[TRANSFER_WAYS_MAX][KVT_ADDRESS_MAX];
} greeting;

typedef struct child {
    int fd, raw_fd;
    unsigned char *memory;
    order now;                   /* the promise that is open */
    kvt_node *nodes[TRANSFER_WAYS_MAX];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool ended;
    status s;
} child;

static bool put(int fd, const void *from, size_t bytes) {
    while (bytes) {
        ssize_t n = send(fd, from, bytes < RAW_PIECE ? bytes : RAW_PIECE, MSG_NOSIGNAL);
        if (n <= 0) return false;
        from = (const char *)from + n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool get(int fd, void *into, size_t bytes) {
    while (bytes) {
        ssize_t n = recv(fd, into, bytes < RAW_PIECE ? bytes : RAW_PIECE, 0);
        if (n <= 0) return false;
        into = (char *)into + n;
        bytes -= (size_t)n;
    }
    return true;
}

int bench_peer_runs(const kvt_geometry *g, uint32_t tokens, unsigned char *memory, const kvt_frame *box, struct iovec *out) {
    int count = 0;
    if (box->layers * 2 * box->heads > KVT_RUNS_MAX) return 0;
    for (uint32_t l = box->layer_first; l < box->layer_first + box->layers; l++)
        for (uint32_t kv = 0; kv < 2; kv++)
            for (uint32_t h = box->head_first; h < box->head_first + box->heads; h++) {
                size_t row = ((size_t)l * 2 + kv) * g->heads + h;
                out[count++] = (struct iovec){memory + (row * tokens + box->token_first) * g->row_bytes,
                                              (size_t)box->tokens * g->row_bytes};
            }
    return count;
}

void bench_peer_copy(const kvt_geometry *g, uint32_t tokens, unsigned char *memory, const kvt_frame *box,
                     unsigned char *payload, bool into_memory) {
    struct iovec run[KVT_RUNS_MAX];
    int count = bench_peer_runs(g, tokens, memory, box, run);
    assert(count > 0);
    for (int i = 0; i < count; payload += run[i++].iov_len)
        memcpy(into_memory ? run[i].iov_base : payload, into_memory ? payload : run[i].iov_base, run[i].iov_len);
}

double bench_cpu_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- the child --------------------------------------------------------------------------------------- */

static void land(void *ctx, const kvt_frame *box, const void *payload) {
    child *c = ctx;
    bench_peer_copy(&c->now.g, c->now.tokens, c->memory, box, (unsigned char *)(uintptr_t)payload, true);
}

static void ended(void *ctx, status s, uint32_t landed) {
    child *c = ctx;
    pthread_mutex_lock(&c->lock);
    c->ended = true;
    c->s = s == ST_OK && landed != c->now.tokens ? ST_CORRUPT : s;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static status await(child *c) {
    pthread_mutex_lock(&c->lock);
    while (!c->ended) pthread_cond_wait(&c->changed, &c->lock);
    status s = c->s;
    pthread_mutex_unlock(&c->lock);
    return s;
}

static bool obey(child *c, const order *o) {
    static const kvt_sink sink = {land, ended};
    status s = ST_OK;
    switch (o->kind) {
    case ORDER_PROMISE:
        c->now = *o;
        c->ended = false;
        s = kvt_promise(c->nodes[o->way], o->ticket, 1, &o->g, 0, o->tokens, LEASE_MS, bench_ways[o->way].key, &sink, c);
        break;
    case ORDER_AWAIT: s = await(c); break;
    case ORDER_CPU: {
        double used = bench_cpu_now();
        return put(c->fd, &used, sizeof used);
    }
    case ORDER_RAW: return get(c->raw_fd, c->memory, o->bytes) && put(c->raw_fd, "", 1);
    }
    return put(c->fd, &s, sizeof s);
}

static int listen_raw(in_port_t *port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 1) ||
        getsockname(fd, (struct sockaddr *)&at, &bytes)) {
        close(fd);
        return -1;
    }
    *port = at.sin_port;
    return fd;
}

static status open_nodes(child *c, greeting *hello) {
    error err = {0};
    for (int i = 0; i < bench_ways_count; i++) {
        kvt_options o = {.listen = "127.0.0.1:0", .pairing = "bench", .transport = bench_ways[i].transport};
        if (kvt_node_open(&o, &c->nodes[i], &err) != ST_OK) {
            snprintf(hello->why, sizeof hello->why, "%s", err.text);
            return err.code;
        }
        snprintf(hello->address[i], sizeof hello->address[i], "%s", kvt_node_address(c->nodes[i]));
    }
    return ST_OK;
}

static void live(int fd, uint64_t memory_bytes) {
    static child c = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    static greeting hello;
    order o;
    c.fd = fd;
    c.memory = mem_alloc(memory_bytes);
    int listener = listen_raw(&hello.raw_port);
    hello.s = c.memory && listener >= 0 ? open_nodes(&c, &hello) : ST_NO_MEMORY;
    if (c.memory) memset(c.memory, 1, memory_bytes); /* page faults are not what is measured */
    if (!put(fd, &hello, sizeof hello) || hello.s != ST_OK) return;
    c.raw_fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    while (get(fd, &o, sizeof o) && obey(&c, &o)) {}
}

/* ---- the parent -------------------------------------------------------------------------------------- */

static bool connect_raw(bench_peer *p, in_port_t port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = port};
    int on = 1;
    p->raw_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (p->raw_fd < 0) return false;
    setsockopt(p->raw_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return !connect(p->raw_fd, (struct sockaddr *)&at, sizeof at);
}

status bench_peer_start(uint64_t memory_bytes, bench_peer *out, error *err) {
    int fds[2];
    static greeting hello;
    *out = (bench_peer){.fd = -1, .raw_fd = -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
        return error_set(err, ST_IO, "no pair of sockets: %s", strerror(errno));
    out->pid = fork();
    if (out->pid == 0) {
        close(fds[0]);
        live(fds[1], memory_bytes);
        _exit(0);
    }
    close(fds[1]);
    out->fd = fds[0];
    if (out->pid < 0) return error_set(err, ST_IO, "no second process: %s", strerror(errno));
    if (!get(out->fd, &hello, sizeof hello)) return error_set(err, ST_IO, "the second process ended");
    if (hello.s != ST_OK) return error_set(err, hello.s, "the second process: %s", hello.why);
    memcpy(out->address, hello.address, sizeof out->address);
    return connect_raw(out, hello.raw_port) ? ST_OK : error_set(err, ST_IO, "plain socket: %s", strerror(errno));
}

static status ask(bench_peer *p, const order *o) {
    status s;
    return put(p->fd, o, sizeof *o) && get(p->fd, &s, sizeof s) ? s : ST_PEER_LOST;
}

status bench_peer_promise(bench_peer *p, int way, uint64_t ticket, const kvt_geometry *g, uint32_t tokens) {
    return ask(p, &(order){.kind = ORDER_PROMISE, .way = way, .ticket = ticket, .tokens = tokens, .g = *g});
}

status bench_peer_cpu(bench_peer *p, double *s) {
    order o = {.kind = ORDER_CPU};
    return put(p->fd, &o, sizeof o) && get(p->fd, s, sizeof *s) ? ST_OK : ST_PEER_LOST;
}

status bench_peer_await(bench_peer *p) { return ask(p, &(order){.kind = ORDER_AWAIT}); }

status bench_peer_raw(bench_peer *p, const void *from, uint64_t bytes) {
    char done;
    order o = {.kind = ORDER_RAW, .bytes = bytes};
    return put(p->fd, &o, sizeof o) && put(p->raw_fd, from, bytes) && get(p->raw_fd, &done, 1) ? ST_OK : ST_PEER_LOST;
}

void bench_peer_stop(bench_peer *p) {
    if (p->raw_fd >= 0) close(p->raw_fd);
    if (p->fd >= 0) close(p->fd);
    if (p->pid > 0) waitpid(p->pid, NULL, 0);
}
