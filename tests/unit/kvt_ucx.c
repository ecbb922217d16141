/* kvt_ucx.c -- what only ucx can suffer: messages in any order, more than were asked for, a machine without the library,
 * ports that UCX opens, a peer that is killed. UCX itself is there for the last two only; before, a table of functions of
 * ours stands for it. What all transports have to do is kvt_node.c's. */
#include "kvtransfer/ucx.h"
#include <dlfcn.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the library ----------------------------------------------------------------------------- */

static bool library_is_missing;
void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags) {
    return __real_dlopen(library_is_missing && name && strstr(name, "ucp") ? "libthat.is.not.here.so" : name, flags);
}

static bool here(error *err) {
    const kvt_transport *t;
    return kvt_transport_find("ucx", &t, err) == ST_OK;
}

/* The executable is whole without it; who asks for ucx is told what is missing, and may ask again. */
static void missing_library(void **state) {
    (void)state;
    kvt_node *n = NULL;
    error err = {0};
    library_is_missing = true;
    assert_int_equal(kvt_node_open(&(kvt_options){.transport = "ucx"}, &n, &err), ST_UNSUPPORTED);
    library_is_missing = false;
    assert_non_null(strstr(err.text, "libucp.so.0"));
    assert_non_null(strstr(err.text, "libucx0"));
    assert_null(n);
}

/* ---- messages by hand ------------------------------------------------------------------------ */

enum { PENDING_MAX = 16 };

/* What was asked of UCX and has not been completed. */
static struct {
    int sends, fetches, released, freed;
    bool holds;                  /* fetches are completed by the test */
    ucp_request_param_t send[PENDING_MAX], fetch[PENDING_MAX];
    uint32_t sequence[PENDING_MAX];
} asked;

static char request;             /* stands for any */

static ucs_status_ptr_t am_send(ucp_ep_h ep, unsigned id, const void *head, size_t head_bytes, const void *data,
                                size_t bytes, const ucp_request_param_t *how) {
    (void)ep, (void)id, (void)data, (void)bytes;
    assert_int_equal(head_bytes, sizeof(ucx_header));
    asked.sequence[asked.sends] = le32toh(((const ucx_header *)head)->sequence);
    asked.send[asked.sends++] = *how;
    return &request;
}

/* A descriptor is the byte that its message is made of. */
static ucs_status_ptr_t am_receive(ucp_worker_h worker, void *descriptor, void *into, size_t bytes,
                                   const ucp_request_param_t *how) {
    (void)worker;
    memset(into, *(unsigned char *)descriptor, bytes);
    asked.fetch[asked.fetches++] = *how;
    return asked.holds ? &request : NULL;
}

static void am_release(ucp_worker_h worker, void *descriptor) {
    (void)worker, (void)descriptor;
    asked.released++;
}

static void request_free(void *r) { asked.freed += r == &request; }

static const ucx_functions by_hand = {
    .am_send = am_send, .am_receive = am_receive, .am_release = am_release, .request_free = request_free,
};
static ucx_context context;
static int endpoint;

static ucx_stream *stream(void) {
    memset(&asked, 0, sizeof asked);
    context = (ucx_context){.ucx = &by_hand};
    ucx_stream *x = mem_zalloc(1, sizeof *x);
    *x = (ucx_stream){.s.fd = -1, .context = &context, .ep = (ucp_ep_h)&endpoint};
    context.streams = x;
    return x;
}

static void come_as(uint32_t kind, uint32_t sequence, size_t head_bytes, unsigned char *of, size_t bytes, bool rendezvous) {
    static unsigned char data[UCX_MESSAGE_BYTES + 1];
    struct {
        ucx_header h;
        uint32_t more;
    } head = {{htole32(kind), htole32(sequence)}, 0};
    ucp_am_recv_param_t param = {
        .recv_attr = UCP_AM_RECV_ATTR_FIELD_REPLY_EP | (rendezvous ? UCP_AM_RECV_ATTR_FLAG_RNDV : 0),
        .reply_ep = (ucp_ep_h)&endpoint,
    };
    memset(data, *of, bytes);
    kvt_ucx_on_message(&context, &head, head_bytes, rendezvous ? of : data, bytes, &param);
}

static void come(uint32_t kind, uint32_t sequence, unsigned char *of, size_t bytes, bool rendezvous) {
    come_as(kind, sequence, sizeof(ucx_header), of, bytes, rendezvous);
}

static unsigned char letters[] = "abcdefgh";

static void assert_reads(ucx_stream *x, const char *expected) {
    char out[40] = "";
    ssize_t n = kvt_ucx_read(&x->s, out, strlen(expected));
    assert_int_equal(n, strlen(expected));
    assert_string_equal(out, expected);
}

static void assert_ends(ucx_stream *x, int why) {
    char byte;
    errno = 0;
    assert_int_equal(kvt_ucx_read(&x->s, &byte, 1), why ? -1 : 0);
    assert_int_equal(errno, why);
}

/* Whatever the order they come in, bytes are read in the order they were written in, and BYE ends them. */
static void any_order(void **state) {
    (void)state;
    ucx_stream *x = stream();
    come(UCX_BYE, 3, letters, 0, false);
    come(UCX_BYTES, 2, letters + 2, 3, false);
    kvt_ucx_settle(x);
    assert_int_equal(kvt_ucx_ready(&x->s, EPOLLIN), 0);
    assert_ends(x, EAGAIN);
    come(UCX_BYTES, 0, letters, 2, false);
    assert_int_equal(kvt_ucx_ready(&x->s, EPOLLIN), EPOLLIN);
    assert_reads(x, "aa");
    assert_ends(x, EAGAIN);
    come(UCX_BYTES, 1, letters + 1, 1, true);
    kvt_ucx_settle(x);
    assert_reads(x, "b");
    assert_reads(x, "cc");
    assert_reads(x, "c");
    assert_ends(x, 0);
    kvt_ucx_stream_destroy(x);
}

/* What no sender of ours sends ends the stream, and what came before is still read. */
static void bad_messages(void **state) {
    (void)state;
    static const struct {
        uint32_t kind, sequence;
        size_t head_bytes, bytes;
        bool rendezvous;
    } rows[] = {
        {UCX_BYTES, 1, 0, 5, false},
        {UCX_BYTES, 1, 12, 5, false},
        {0, 1, 8, 5, false},
        {4, 1, 8, 5, false},
        {UCX_BYTES, 1, 8, 0, false},
        {UCX_BYTES, 1, 8, UCX_MESSAGE_BYTES + 1, true},
        {UCX_BYE, 1, 8, 1, false},
        {UCX_WELCOME, 1, 8, 0, false},   /* nobody is connecting */
        {UCX_BYTES, 0, 8, 5, false},     /* twice */
        {UCX_BYTES, UINT32_MAX, 8, 5, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ucx_stream *x = stream();
        come(UCX_BYTES, 0, letters, 2, false);
        come_as(rows[i].kind, rows[i].sequence, rows[i].head_bytes, letters, rows[i].bytes, rows[i].rendezvous);
        kvt_ucx_settle(x);
        assert_int_equal(x->error, EPROTO);
        assert_reads(x, "aa");
        assert_ends(x, EPROTO);
        assert_int_equal(asked.fetches, 0);
        kvt_ucx_stream_destroy(x);
    }
}

/* Who sends small messages and more of them than are read is stopped before they fill the memory. */
static void flood(void **state) {
    (void)state;
    ucx_stream *x = stream();
    uint32_t count = 0;
    while (!x->error && count < 1 << 20) come(UCX_BYTES, count++, letters, 1, false);
    assert_int_equal(x->error, EPROTO);
    assert_in_range(count * (sizeof(ucx_message) + 1), 1 << 20, 9 << 20);
    kvt_ucx_stream_destroy(x);
}

/* As many rendezvous are begun as there are places; the rest wait, and go with the stream. */
static void rendezvous_wait_for_a_place(void **state) {
    (void)state;
    static char out[UCX_MESSAGE_BYTES];
    ucx_stream *x = stream();
    for (uint32_t i = 0; i < 7; i++) come(UCX_BYTES, i, letters + i, UCX_MESSAGE_BYTES, true);
    kvt_ucx_settle(x);
    assert_int_equal(asked.fetches, UCX_WINDOW);
    assert_int_equal(kvt_ucx_read(&x->s, out, 1), 1);
    assert_int_equal(asked.fetches, UCX_WINDOW);
    assert_int_equal(kvt_ucx_read(&x->s, out, sizeof out), UCX_MESSAGE_BYTES - 1);
    assert_int_equal(asked.fetches, UCX_WINDOW + 1);
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(kvt_ucx_read(&x->s, out, sizeof out), sizeof out);
        assert_true(out[0] == letters[i] && out[sizeof out - 1] == letters[i]);
    }
    assert_int_equal(asked.fetches, UCX_WINDOW + 3);
    kvt_ucx_forget(x);
    assert_null(x->in);
    kvt_ucx_stream_destroy(x);
}

/* A stream is closed while UCX still fetches into it: the place is kept until UCX is done; one that was not begun is
 * let go. */
static void closed_while_fetching(void **state) {
    (void)state;
    ucx_stream *x = stream();
    asked.holds = true;
    for (uint32_t i = 0; i < UCX_WINDOW + 1; i++) come(UCX_BYTES, i, letters + i, 100000, true);
    kvt_ucx_settle(x);
    assert_int_equal(x->pending, UCX_WINDOW);
    asked.fetch[0].cb.recv_am(&request, UCS_OK, 100000, asked.fetch[0].user_data);
    kvt_ucx_forget(x);
    assert_int_equal(asked.released, 1);
    for (int i = 1; i < UCX_WINDOW; i++)
        asked.fetch[i].cb.recv_am(&request, UCS_ERR_CANCELED, 0, asked.fetch[i].user_data);
    assert_int_equal(x->pending, 0);
    assert_int_equal(asked.freed, UCX_WINDOW);
    kvt_ucx_stream_destroy(x);
}

/* A closed stream keeps nothing, but hears the peer's BYE, whatever came before it: then it need not wait any more. */
static void closed_hears_bye(void **state) {
    (void)state;
    ucx_stream *x = stream();
    x->closed = true;
    come(UCX_BYTES, 1, letters, 100, false);
    come(UCX_BYTES, 2, letters, 100000, true);
    assert_null(x->in);
    assert_false(x->ended);
    come(UCX_BYE, 3, letters, 0, false);
    assert_true(x->ended);
    kvt_ucx_stream_destroy(x);
}

/* A window of messages leaves, and no more before one has arrived; large ones by rendezvous. */
static void window(void **state) {
    (void)state;
    static char data[2 * UCX_MESSAGE_BYTES];
    struct iovec large = {data, sizeof data}, little = {data, 64};
    ucx_stream *x = stream();
    assert_int_equal(kvt_ucx_write(&x->s, &little, 1), 64);
    for (int i = 1; i < UCX_WINDOW; i++) assert_int_equal(kvt_ucx_write(&x->s, &large, 1), UCX_MESSAGE_BYTES);
    assert_int_equal(kvt_ucx_write(&x->s, &little, 1), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(kvt_ucx_ready(&x->s, EPOLLOUT), 0);
    assert_int_equal(kvt_ucx_unsent(&x->s), 64 + (UCX_WINDOW - 1) * UCX_MESSAGE_BYTES);
    for (int i = 0; i < UCX_WINDOW; i++) {
        assert_int_equal(asked.sequence[i], i);
        assert_int_equal(asked.send[i].flags & (UCP_AM_SEND_FLAG_RNDV | UCP_AM_SEND_FLAG_EAGER),
                         i ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER);
    }
    asked.send[1].cb.send(&request, UCS_OK, asked.send[1].user_data);
    assert_int_equal(kvt_ucx_ready(&x->s, EPOLLOUT), EPOLLOUT);
    assert_int_equal(kvt_ucx_write(&x->s, &little, 1), 64);
    asked.send[0].cb.send(&request, UCS_ERR_CONNECTION_RESET, asked.send[0].user_data);
    assert_int_equal(kvt_ucx_write(&x->s, &little, 1), -1);
    assert_int_equal(errno, ECONNRESET);
    kvt_ucx_stream_destroy(x);
}

/* ---- the ports of a node --------------------------------------------------------------------- */

/* Sockets that listen, and how many of them other machines reach. */
static int listeners(int *open_to_all) {
    int count = 0, on;
    *open_to_all = 0;
    for (int fd = 0; fd < 1024; fd++) {
        kvt_address at = {.bytes = sizeof at.sa};
        socklen_t bytes = sizeof on;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &bytes) || !on) continue;
        count++;
        assert_int_equal(getsockname(fd, (struct sockaddr *)&at.sa, &at.bytes), 0);
        *open_to_all += !kvt_tcp_is_loopback(&at);
    }
    return count;
}

/* UCX opens ports beside the node's own: on loopback too, if that one is. */
static void loopback_stays_loopback(void **state) {
    (void)state;
    kvt_node *n = NULL;
    int open_to_all;
    unsetenv("UCX_NET_DEVICES");
    assert_int_equal(kvt_node_open(&(kvt_options){.listen = "127.0.0.1:0", .transport = "ucx"}, &n, NULL), ST_OK);
    assert_in_range(listeners(&open_to_all), 1, 100);
    assert_int_equal(open_to_all, 0);
    kvt_node_close(n);
    assert_int_equal(listeners(&open_to_all), 0);
}

/* ---- a peer that is killed ------------------------------------------------------------------- */

static const kvt_geometry geometry = {.layers = 2, .heads = 1, .row_bytes = 64, .type = 1};
enum { TOKENS = 512, BOX_BYTES = 2 * 2 * TOKENS / 2 * 64 };     /* two boxes are a ticket */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int lands, ended;         /* under the lock */
static uint32_t landed_tokens;
static status how;

static void land(void *ctx, const kvt_frame *box, const void *payload) {
    (void)ctx, (void)box, (void)payload;
    lands++;
}

static void sink_ended(void *ctx, status s, uint32_t landed) {
    (void)ctx;
    pthread_mutex_lock(&lock);
    how = s;
    landed_tokens = landed;
    ended++;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

static size_t say(unsigned char *at, const kvt_frame *f, const void *payload, size_t bytes) {
    kvt_frame_encode(f, at);
    if (bytes) memcpy(at + KVT_FRAME_BYTES, payload, bytes);
    return KVT_FRAME_BYTES + bytes;
}

/* Writes all, then reads so many bytes. */
static void talk(kvt_context *c, kvt_stream *s, unsigned char *wire, size_t bytes, size_t answer) {
    unsigned char in[200];
    for (int i = 0; (bytes || answer || kvt_ucx.unsent(s)) && i < 20000; i++) {
        kvt_ucx.context_turn(c, clock_now_ms());
        struct iovec iov = {wire, bytes};
        ssize_t n = bytes ? kvt_ucx.write(s, &iov, 1) : 0;
        if (n > 0) wire += n, bytes -= (size_t)n;
        n = answer ? kvt_ucx.read(s, in, answer < sizeof in ? answer : sizeof in) : 0;
        if (n > 0) answer -= (size_t)n;
        poll(NULL, 0, 1);
    }
}

/* As a sender does, but for the end: HELLO, a box that has surely landed (an END that nobody asked for is answered behind
 * it), half of another, then nothing more ever. */
static void send_half(const char *address) {
    static unsigned char wire[4 * KVT_FRAME_BYTES + BOX_BYTES], box[BOX_BYTES];
    kvt_context *c;
    kvt_address at;
    kvt_frame f = {.kind = KVT_DATA, .ticket = 1, .epoch = 1, .layers = 2, .heads = 1, .tokens = TOKENS / 2, .type = 1,
                   .payload_bytes = BOX_BYTES, .payload_crc = kvt_crc32c(0, box, BOX_BYTES)};
    size_t n = say(wire, &(kvt_frame){.kind = KVT_HELLO, .payload_bytes = 4, .payload_crc = kvt_crc32c(0, "pair", 4)}, "pair", 4);
    n += say(wire + n, &f, box, BOX_BYTES);
    n += say(wire + n, &(kvt_frame){.kind = KVT_END, .ticket = 99, .epoch = 99}, NULL, 0);
    if (kvt_ucx.context_create("127.0.0.1:0", &c, NULL) || kvt_ucx.resolve(address, &at, NULL)) _exit(1);
    kvt_stream *s = kvt_ucx.connect(c, &at);
    if (!s) _exit(2);
    talk(c, s, wire, n, KVT_FRAME_BYTES + 4 + KVT_FRAME_BYTES);
    f.token_first = TOKENS / 2;
    talk(c, s, wire, say(wire, &f, box, BOX_BYTES / 2), 0);
    raise(SIGKILL);
}

static void sender_is_killed(void **state) {
    (void)state;
    char address[KVT_ADDRESS_MAX] = "";
    int pipe_fds[2];
    error err = {0};
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (read(pipe_fds[0], address, sizeof address) != sizeof address) _exit(3);
        send_half(address);
    }
    kvt_node *b = NULL;
    static const kvt_sink sink = {land, sink_ended};
    if (kvt_node_open(&(kvt_options){.listen = "127.0.0.1:0", .pairing = "pair", .transport = "ucx"}, &b, &err))
        fail_msg("%s", err.text);
    assert_int_equal(kvt_promise(b, 1, 1, &geometry, 0, TOKENS, 60000, NULL, &sink, NULL), ST_OK);
    snprintf(address, sizeof address, "%s", kvt_node_address(b));
    assert_int_equal(write(pipe_fds[1], address, sizeof address), sizeof address);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 50;
    pthread_mutex_lock(&lock);
    while (!ended && !pthread_cond_timedwait(&changed, &lock, &until)) {}
    pthread_mutex_unlock(&lock);
    assert_int_equal(ended, 1);
    assert_int_equal(how, ST_PEER_LOST);
    assert_int_equal(lands, 1);
    assert_int_equal(landed_tokens, TOKENS / 2);
    int status_of = 0;
    assert_int_equal(waitpid(pid, &status_of, 0), pid);
    assert_true(WIFSIGNALED(status_of));
    close(pipe_fds[0]), close(pipe_fds[1]);
    kvt_node_close(b);
}

int main(void) {
    const struct CMUnitTest by_itself[] = {
        cmocka_unit_test(missing_library), cmocka_unit_test(any_order), cmocka_unit_test(bad_messages),
        cmocka_unit_test(flood),           cmocka_unit_test(window),    cmocka_unit_test(rendezvous_wait_for_a_place),
        cmocka_unit_test(closed_while_fetching), cmocka_unit_test(closed_hears_bye),
    };
    const struct CMUnitTest with_library[] = {cmocka_unit_test(sender_is_killed), cmocka_unit_test(loopback_stays_loopback)};
    error err = {0};
    log_setup("test", LOG_ERROR);
    int failed = cmocka_run_group_tests(by_itself, NULL, NULL);
    if (here(&err)) failed += cmocka_run_group_tests(with_library, NULL, NULL);
    else printf("skipped: %s\n", err.text);
    return failed;
}
