/* tcp.c -- streams over TCP. No socket buffer sizes are set: the kernel's own tuning goes higher than it lets us
 * ask. */
#include "kvtransfer/internal.h"
#include <errno.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    BACKLOG = 128,
    /* Gathered, summed, received and landed while it stays in a core's second level cache (2 MiB here); with half of
     * it a receiver waits more often, with twice as much nothing overlaps in a transfer of 1 MB (bench/README.md). */
    FRAME_BYTES = 512 << 10,
    LOW_MAX = 256 << 10,         /* of a frame that comes so many bytes are awaited at once */
};

status kvt_tcp_resolve(const char *text, kvt_address *out, error *err) {
    char host[KVT_ADDRESS_MAX];
    const char *port;
    if (!address_split(text, host, sizeof host, &port))
        return error_set(err, ST_BAD_INPUT, "KV address \"%.80s\": expected host:port", text);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found;
    int rc = getaddrinfo(host, port, &hints, &found);
    if (rc)
        return error_set(err, ST_BAD_INPUT, "KV address \"%.80s\": %s", text, gai_strerror(rc));
    memcpy(&out->sa, found->ai_addr, found->ai_addrlen);
    out->bytes = found->ai_addrlen;
    freeaddrinfo(found);
    return ST_OK;
}

/* Small frames leave at once; a peer that vanished is known within KVT_STALL_MS, whether we were
 * sending (user timeout, which also ends a window that stays shut) or only listening (keepalive). */
static void tcp_tune(int fd) {
    int on = 1, stall_ms = KVT_STALL_MS, idle_s = 4, interval_s = 2, probes = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &stall_ms, sizeof stall_ms);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

bool kvt_tcp_name(const kvt_address *at, char out[KVT_ADDRESS_MAX]) {
    char host[INET6_ADDRSTRLEN + 20], port[8];
    if (getnameinfo((const struct sockaddr *)&at->sa, at->bytes, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV))
        return false;
    snprintf(out, KVT_ADDRESS_MAX, at->sa.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    return true;
}

bool kvt_tcp_is_loopback(const kvt_address *at) {
    if (at->sa.ss_family == AF_INET6) return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)&at->sa)->sin6_addr);
    return ntohl(((const struct sockaddr_in *)&at->sa)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

static bool name_bound(int fd, char bound[KVT_ADDRESS_MAX]) {
    kvt_address at = {.bytes = sizeof at.sa};
    return !getsockname(fd, (struct sockaddr *)&at.sa, &at.bytes) && kvt_tcp_name(&at, bound);
}

status kvt_tcp_bind(const char *text, bool reuse, int *out, char bound[KVT_ADDRESS_MAX], error *err) {
    kvt_address at;
    TRY(kvt_tcp_resolve(text, &at, err));
    int on = 1;
    int fd = socket(at.sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) goto fail;
    if (reuse) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at.sa, at.bytes) || !name_bound(fd, bound)) goto fail;
    *out = fd;
    return ST_OK;
fail:
    error_set(err, ST_IO, "KV listen address \"%.80s\": %s", text, strerror(errno));
    if (fd >= 0) close(fd);
    return ST_IO;
}

typedef struct tcp_stream {
    kvt_stream s;
    int low;                     /* SO_RCVLOWAT */
} tcp_stream;

/* Owns fd from here on; NULL: no memory, fd is closed. */
static kvt_stream *stream_of(int fd) {
    tcp_stream *x = mem_alloc(sizeof *x);
    if (!x) {
        close(fd);
        errno = ENOMEM;
        return NULL;
    }
    *x = (tcp_stream){.s.fd = fd, .low = 1};
    return &x->s;
}

static status tcp_listen(kvt_context *c, const char *text, kvt_stream **out, char bound[KVT_ADDRESS_MAX], error *err) {
    (void)c;
    int fd;
    TRY(kvt_tcp_bind(text, true, &fd, bound, err));
    if (listen(fd, BACKLOG)) {
        error_set(err, ST_IO, "KV listen address \"%.80s\": %s", text, strerror(errno));
        close(fd);
        return ST_IO;
    }
    *out = stream_of(fd);
    return *out ? ST_OK : error_set(err, ST_NO_MEMORY, "KV listen address \"%.80s\": no memory", text);
}

static kvt_stream *tcp_accept(kvt_stream *listener) {
    int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return NULL;
    tcp_tune(fd);
    return stream_of(fd);
}

static kvt_stream *tcp_connect(kvt_context *c, const kvt_address *to) {
    (void)c;
    int fd = socket(to->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return NULL;
    tcp_tune(fd);
    if (!connect(fd, (const struct sockaddr *)&to->sa, to->bytes) || errno == EINPROGRESS)
        return stream_of(fd);
    int why = errno;
    close(fd);
    errno = why;
    return NULL;
}

static int tcp_connected(kvt_stream *s) {
    int why = 0;
    socklen_t bytes = sizeof why;
    return getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &why, &bytes) ? errno : why;
}

static void tcp_close(kvt_stream *s) {
    close(s->fd);
    mem_free(s);
}

static ssize_t tcp_read(kvt_stream *s, void *out, size_t bytes) { return recv(s->fd, out, bytes, 0); }

static ssize_t tcp_write(kvt_stream *s, const struct iovec *iov, int count) {
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
    return sendmsg(s->fd, &message, MSG_NOSIGNAL);
}

/* Over loopback, and on a machine with idle cores, a sender pays more for waking its receiver than for the 64 KiB that
 * it wakes for. The end of the connection is reported whatever is awaited. */
static void tcp_expect(kvt_stream *s, size_t bytes) {
    tcp_stream *x = (tcp_stream *)s;
    int low = bytes < LOW_MAX ? (int)bytes : LOW_MAX;
    if (low != x->low && !setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low)) x->low = low;
}

static int tcp_unsent(kvt_stream *s) {
    int bytes;
    return ioctl(s->fd, SIOCOUTQ, &bytes) ? -1 : bytes;
}

const kvt_transport kvt_tcp = {
    .name = "tcp",
    .frame_bytes = FRAME_BYTES,
    .resolve = kvt_tcp_resolve,
    .listen = tcp_listen,
    .accept = tcp_accept,
    .connect = tcp_connect,
    .connected = tcp_connected,
    .close = tcp_close,
    .read = tcp_read,
    .write = tcp_write,
    .expect = tcp_expect,
    .unsent = tcp_unsent,
};

