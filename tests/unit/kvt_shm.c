/* kvt_shm.c -- what only shm can suffer: peers that bring a bad file, that write anything into what is shared, or
 * that come by another transport. What all transports have to do is kvt_node.c's. */
#include "kvtransfer/shm.c"
#include <dirent.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cmocka.h>

static const kvt_geometry geometry = {.layers = 2, .heads = 1, .row_bytes = 64, .type = 1};
enum { TOKENS = 32, BOX_BYTES = 2 * 2 * TOKENS * 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* One end of a ticket, and how it ended. */
typedef struct half {
    int ended;                   /* under the lock */
    status s;
    uint32_t landed;
    char why[400];
} half;

static void told(half *x, status s) {
    pthread_mutex_lock(&lock);
    x->s = s;
    x->ended++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void land(void *ctx, const kvt_frame *box, const void *payload) {
    (void)ctx;
    for (uint32_t i = 0; i < box->payload_bytes; i++) assert(((const unsigned char *)payload)[i] == 7);
}

static void sink_ended(void *ctx, status s, uint32_t landed) {
    ((half *)ctx)->landed = landed;
    told(ctx, s);
}

static void pack(void *ctx, const kvt_frame *box, void *out) {
    (void)ctx;
    memset(out, 7, box->payload_bytes);
}

static void source_ended(void *ctx, status s, uint64_t bytes, int64_t wire_us, const char *why) {
    (void)bytes, (void)wire_us;
    snprintf(((half *)ctx)->why, sizeof ((half *)ctx)->why, "%s", why);
    told(ctx, s);
}

static const kvt_sink sink = {land, sink_ended};
static const kvt_source source = {.pack = pack, .ended = source_ended};

/* Waits at most a minute. */
static status outcome(half *x) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&lock);
    while (!x->ended)
        if (pthread_cond_timedwait(&changed, &lock, &until)) break;
    assert_int_equal(x->ended, 1);
    pthread_mutex_unlock(&lock);
    return x->s;
}

static kvt_node *node_open(const char *transport, const char *listen) {
    kvt_node *n = NULL;
    error err = {0};
    if (kvt_node_open(&(kvt_options){.listen = listen, .pairing = "pair", .transport = transport}, &n, &err))
        fail_msg("%s", err.text);
    return n;
}

static bool here(const char *transport) {
    const kvt_transport *t;
    return kvt_transport_find(transport, &t, NULL) == ST_OK;
}

static void promise(kvt_node *n, uint64_t ticket, half *x) {
    assert_int_equal(kvt_promise(n, ticket, 1, &geometry, 0, TOKENS, 60000, NULL, &sink, x), ST_OK);
}

static kvt_send *send_all(kvt_node *n, const char *address, uint64_t ticket, half *x) {
    kvt_send *s = NULL;
    assert_int_equal(kvt_send_open(n, address, ticket, 1, &geometry, 5000, NULL, &source, x, &s), ST_OK);
    kvt_send_push(s, 0, TOKENS);
    kvt_send_end(s);
    return s;
}

static int count_fds(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

/* ---- by hand --------------------------------------------------------------------------------- */

static shm_stream *dial(const char *address) {
    kvt_address at;
    assert_int_equal(shm_resolve(address, &at, NULL), ST_OK);
    kvt_stream *s = shm_connect(NULL, &at);
    assert_non_null(s);
    return of(s);
}

/* A frame, and the first bytes of its payload. */
static void say_part(shm_stream *x, const kvt_frame *f, const void *payload, size_t bytes) {
    unsigned char wire[KVT_FRAME_BYTES];
    kvt_frame_encode(f, wire);
    struct iovec iov[2] = {{wire, sizeof wire}, {(void *)(uintptr_t)payload, bytes}};
    assert_int_equal(shm_write(&x->s, iov, bytes ? 2 : 1), sizeof wire + bytes);
}

static void say(shm_stream *x, const kvt_frame *f, const void *payload) { say_part(x, f, payload, f->payload_bytes); }

static void say_hello(shm_stream *x) {
    say(x, &(kvt_frame){.kind = KVT_HELLO, .payload_bytes = 4, .payload_crc = kvt_crc32c(0, "pair", 4)}, "pair");
}

/* All of a ticket in one box; bytes: of it that are written. */
static void say_box(shm_stream *x, uint64_t ticket, size_t bytes) {
    unsigned char payload[BOX_BYTES];
    memset(payload, 7, sizeof payload);
    kvt_frame f = {.kind = KVT_DATA, .ticket = ticket, .epoch = 1, .layers = 2, .heads = 1, .tokens = TOKENS,
                   .type = 1, .payload_bytes = BOX_BYTES, .payload_crc = kvt_crc32c(0, payload, BOX_BYTES)};
    say_part(x, &f, payload, bytes);
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* Sends count files (2: the same twice) and a layout over a socket, and says whether they were taken. */
static bool taken_as_file(int file, int count, char layout) {
    int ends[2], files[2] = {file, file};
    char control[CMSG_SPACE(sizeof files)] = {0};
    struct cmsghdr head = {.cmsg_len = CMSG_LEN((size_t)count * sizeof file), .cmsg_level = SOL_SOCKET,
                           .cmsg_type = SCM_RIGHTS};
    struct iovec iov = {&layout, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = count ? control : NULL,
                       .msg_controllen = count ? CMSG_SPACE((size_t)count * sizeof file) : 0};
    memcpy(control, &head, sizeof head);
    memcpy(control + CMSG_LEN(0), files, (size_t)count * sizeof file);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    assert_int_equal(sendmsg(ends[0], &m, 0), 1);
    shm_stream *x = stream_of(ends[1]);
    bool taken_so = attach(x);
    if (!taken_so) assert_int_equal(errno, EPROTO);
    shm_close(&x->s);
    close(ends[0]);
    return taken_so;
}

/* A file that could shrink or has another size, one that is no memory, none, or another layout is refused, and no
 * descriptor stays. Of two at once one is never seen. */
static void bad_files(void **state) {
    (void)state;
    int good = make_file(), plain = open("/proc/self/exe", O_RDONLY);
    int unsealed = memfd_create("test", MFD_ALLOW_SEALING), small = memfd_create("test", MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(unsealed, FILE_BYTES) | ftruncate(small, FILE_BYTES - 4096), 0);
    assert_int_equal(fcntl(small, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    int before = count_fds();
    assert_true(taken_as_file(good, 1, LAYOUT));
    assert_true(taken_as_file(good, 2, LAYOUT));
    assert_false(taken_as_file(good, 1, LAYOUT + 1));
    assert_false(taken_as_file(good, 0, LAYOUT));
    assert_false(taken_as_file(unsealed, 1, LAYOUT));
    assert_false(taken_as_file(small, 1, LAYOUT));
    assert_false(taken_as_file(plain, 1, LAYOUT));
    assert_int_equal(count_fds(), before);
    close(good), close(unsealed), close(small), close(plain);
}

/* Both ends of a stream, without a node. */
static void pair(shm_stream **x, shm_stream **y) {
    int ends[2], file = make_file();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    *x = stream_of(ends[0]), *y = stream_of(ends[1]);
    assert_true(map_file(*x, file, true) && send_file(ends[0], file) && attach(*y));
    close(file);
}

/* More in a ring than it holds: every call says so, none touches the ring. */
static void counters_are_checked(void **state) {
    (void)state;
    shm_stream *x, *y;
    char byte = 0;
    pair(&x, &y);
    __atomic_store_n(&y->in.shared->head, RING_BYTES + 1, __ATOMIC_RELEASE);
    assert_int_equal(shm_read(&y->s, &byte, 1), -1);
    assert_int_equal(errno, EPROTO);
    assert_null(shm_view(&y->s, 1));
    assert_int_equal(errno, EPROTO);
    assert_int_equal(shm_ready(&y->s, EPOLLIN), EPOLLIN);
    __atomic_store_n(&x->out.shared->tail, 1, __ATOMIC_RELEASE);
    assert_null(shm_reserve(&x->s, 1));
    assert_int_equal(errno, EPROTO);
    assert_int_equal(shm_write(&x->s, &(struct iovec){&byte, 1}, 1), -1);
    assert_int_equal(errno, EPROTO);
    assert_int_equal(shm_ready(&x->s, EPOLLOUT), EPOLLOUT);
    shm_close(&x->s), shm_close(&y->s);
}

/* A ring goes round, in pieces that wrap anywhere; full is EAGAIN; last words are read after the close. */
static void ring_goes_round(void **state) {
    (void)state;
    enum { PIECE = 300007 };
    static unsigned char in[PIECE], out[PIECE];
    shm_stream *x, *y;
    pair(&x, &y);
    assert_int_equal(shm_ready(&y->s, EPOLLIN), 0);
    for (int round = 0; round < 40; round++) {
        for (int i = 0; i < PIECE; i++) in[i] = (unsigned char)(i * 7 + round);
        assert_int_equal(shm_write(&x->s, &(struct iovec){in, PIECE}, 1), PIECE);
        assert_int_equal(shm_ready(&y->s, EPOLLIN), EPOLLIN);
        const unsigned char *seen = shm_view(&y->s, PIECE);
        assert_non_null(seen);
        assert_memory_equal(seen, in, PIECE);
        assert_int_equal(shm_read(&y->s, out, PIECE), PIECE);
        assert_memory_equal(out, in, PIECE);
    }
    while (shm_write(&x->s, &(struct iovec){in, PIECE}, 1) > 0) {}
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(shm_unsent(&x->s), RING_BYTES);
    assert_int_equal(shm_ready(&x->s, EPOLLOUT), 0);
    shm_close(&x->s);
    size_t left = 0;
    for (ssize_t n; (n = shm_read(&y->s, out, PIECE)) > 0;) left += (size_t)n;
    assert_int_equal(left, RING_BYTES);
    assert_int_equal(shm_read(&y->s, out, 1), 0);
    shm_close(&y->s);
}

/* The file's size is what both rely on. */
static void file_cannot_shrink(void **state) {
    (void)state;
    int fd = make_file();
    assert_true(file_is_sound(fd));
    assert_int_equal(ftruncate(fd, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, FILE_BYTES + 4096), -1);
    close(fd);
}

/* A sender whose counters cannot be loses its link and its own ticket; another's goes on (its END is taken). */
static void sender_scribbles(void **state) {
    (void)state;
    static const uint64_t heads[] = {UINT64_MAX, RING_BYTES * 3ull, 0};
    kvt_node *b = node_open("shm", "127.0.0.1:0");
    half other = {0};
    promise(b, 99, &other);
    shm_stream *good = dial(kvt_node_address(b));
    say_hello(good);
    say_box(good, 99, BOX_BYTES);
    for (uint64_t i = 0; i < 3; i++) {
        half in = {0};
        promise(b, i, &in);
        shm_stream *x = dial(kvt_node_address(b));
        say_hello(x);
        say_box(x, i, BOX_BYTES);
        for (int k = 0; k < 1000 && __atomic_load_n(&x->out.shared->tail, __ATOMIC_ACQUIRE) != x->out.own; k++)
            poll(NULL, 0, 5);    /* the box has landed */
        memset(x->map, 0xff, sizeof(counters) * 2);
        __atomic_store_n(&x->out.shared->head, heads[i], __ATOMIC_RELEASE);
        wake(x);
        assert_int_equal(outcome(&in), ST_PEER_LOST);
        assert_int_equal(in.landed, TOKENS);
        shm_close(&x->s);
    }
    say(good, &(kvt_frame){.kind = KVT_END, .ticket = 99, .epoch = 1, .heads = 1}, NULL);
    shm_close(&good->s);         /* what was written before counts */
    assert_int_equal(outcome(&other), ST_OK);
    kvt_node_close(b);
}

/* A receiver that pretends to have read more than was written. */
static void receiver_scribbles(void **state) {
    (void)state;
    char address[KVT_ADDRESS_MAX];
    kvt_stream *listener;
    assert_int_equal(shm_listen(NULL, "127.0.0.1:0", &listener, address, NULL), ST_OK);
    kvt_node *a = node_open("shm", NULL);
    half out = {0};
    kvt_send *s = send_all(a, address, 1, &out);
    struct pollfd p = {.fd = listener->fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 10000), 1);
    shm_stream *x = of(shm_accept(listener));
    for (int i = 0; i < 1000 && !x->map && !attach(x); i++) poll(NULL, 0, 5);
    assert_non_null(x->map);
    __atomic_store_n(&x->in.shared->tail, RING_BYTES / 2, __ATOMIC_RELEASE);
    say_hello(x);
    assert_int_equal(outcome(&out), ST_PEER_LOST);
    kvt_send_close(s);
    kvt_node_close(a);
    shm_close(&x->s);
    shm_close(listener);
}

/* A process that is killed with half a box written: the kernel tells its end, and the half never lands. */
static void sender_is_killed(void **state) {
    (void)state;
    char address[KVT_ADDRESS_MAX] = "";
    int pipe_fds[2];
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (read(pipe_fds[0], address, sizeof address) != sizeof address) _exit(1);
        shm_stream *x = dial(address);
        say_hello(x);
        say_box(x, 1, BOX_BYTES / 2);
        raise(SIGKILL);
    }
    kvt_node *b = node_open("shm", "127.0.0.1:0");
    half in = {0};
    promise(b, 1, &in);
    snprintf(address, sizeof address, "%s", kvt_node_address(b));
    assert_int_equal(write(pipe_fds[1], address, sizeof address), sizeof address);
    assert_int_equal(outcome(&in), ST_PEER_LOST);
    assert_int_equal(in.landed, 0);
    int how = 0;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFSIGNALED(how));
    close(pipe_fds[0]), close(pipe_fds[1]);
    kvt_node_close(b);
}

/* Each names its transport, and nobody hangs. */
static void other_transport(void **state) {
    (void)state;
    static const char *const pairs[][3] = {
        {"tcp", "shm", "refused"}, {"shm", "tcp", "refused"}, {"ucx", "shm", "refused"},
        {"shm", "ucx", "refused"}, {"ucx", "tcp", "no connection"}, {"tcp", "ucx", "no HELLO"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (!here(pairs[i][0]) || !here(pairs[i][1])) continue;
        kvt_node *a = node_open(pairs[i][0], NULL), *b = node_open(pairs[i][1], "127.0.0.1:0");
        half out = {0};
        kvt_send *s = send_all(a, kvt_node_address(b), 1, &out);
        assert_int_equal(outcome(&out), ST_PEER_LOST);
        if (!strstr(out.why, pairs[i][0]) || !strstr(out.why, pairs[i][2])) fail_msg("%s to %s: %s", pairs[i][0], pairs[i][1], out.why);
        kvt_send_close(s);
        kvt_node_close(a), kvt_node_close(b);
    }
}

static void addresses(void **state) {
    (void)state;
    static const char *const far[] = {"192.0.2.1:5000", "0.0.0.0:5000", "[2001:db8::1]:5000"};
    kvt_address at;
    for (size_t i = 0; i < sizeof far / sizeof far[0]; i++) {
        error err = {0};
        assert_int_equal(shm_resolve(far[i], &at, &err), ST_BAD_INPUT);
        assert_non_null(strstr(err.text, far[i]));
        assert_non_null(strstr(err.text, "this machine"));
    }
    assert_int_equal(shm_resolve("[::1]:5000", &at, NULL), ST_OK);
    kvt_node *none = NULL;
    kvt_options far_listen = {.listen = "0.0.0.0:0", .transport = "shm"};
    assert_int_equal(kvt_node_open(&far_listen, &none, NULL), ST_BAD_INPUT);
    kvt_node *n = node_open("shm", "127.0.0.1:0");
    for (int i = 0; i < kvt_transports_count && here(kvt_transports[i]->name); i++) { /* its port is nobody else's, not even over tcp */
        kvt_options o = {.listen = kvt_node_address(n), .transport = kvt_transports[i]->name};
        assert_int_equal(kvt_node_open(&o, &none, NULL), ST_IO);
    }
    kvt_node_close(n);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_files),        cmocka_unit_test(file_cannot_shrink),
        cmocka_unit_test(ring_goes_round),  cmocka_unit_test(counters_are_checked),
        cmocka_unit_test(sender_scribbles), cmocka_unit_test(receiver_scribbles),
        cmocka_unit_test(other_transport),  cmocka_unit_test(addresses),
        cmocka_unit_test(sender_is_killed),
    };
    log_setup("test", LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
