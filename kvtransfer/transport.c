/* transport.c -- how bytes get to another process: one table.
 *
 * A transport hands out descriptors that epoll can wait for and that carry bytes in order; the frames
 * on top are the same for all. To add one: write its functions, add its row to kvt_transports[]; the
 * suite tests/unit/kvt_node.c then runs over it. Its raw peers are plain TCP sockets at HOST:PORT: a
 * transport that is not needs raw peers of its own there.
 *
 *   tcp   no socket buffer sizes are set: the kernel's own tuning goes higher than it lets us ask */
#include "kvtransfer/internal.h"
#include <errno.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BACKLOG = 128 };

static status tcp_resolve(const char *text, kvt_address *out, error *err) {
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

static bool name_bound(int fd, char bound[KVT_ADDRESS_MAX]) {
    kvt_address at = {.bytes = sizeof at.sa};
    char host[INET6_ADDRSTRLEN + 20], port[8];
    if (getsockname(fd, (struct sockaddr *)&at.sa, &at.bytes)) return false;
    if (getnameinfo((struct sockaddr *)&at.sa, at.bytes, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV))
        return false;
    snprintf(bound, KVT_ADDRESS_MAX, at.sa.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    return true;
}

static status tcp_listen(const char *text, int *out, char bound[KVT_ADDRESS_MAX], error *err) {
    kvt_address at;
    TRY(tcp_resolve(text, &at, err));
    int on = 1;
    int fd = socket(at.sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) goto fail;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at.sa, at.bytes) || listen(fd, BACKLOG) || !name_bound(fd, bound))
        goto fail;
    *out = fd;
    return ST_OK;
fail:
    error_set(err, ST_IO, "KV listen address \"%.80s\": %s", text, strerror(errno));
    if (fd >= 0) close(fd);
    return ST_IO;
}

static int tcp_accept(int listen_fd) {
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) tcp_tune(fd);
    return fd;
}

static int tcp_connect(const kvt_address *to) {
    int fd = socket(to->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    tcp_tune(fd);
    if (!connect(fd, (const struct sockaddr *)&to->sa, to->bytes) || errno == EINPROGRESS) return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

static int tcp_connected(int fd) {
    int why = 0;
    socklen_t bytes = sizeof why;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &bytes) ? errno : why;
}

static ssize_t tcp_read(int fd, void *out, size_t bytes) { return recv(fd, out, bytes, 0); }

static ssize_t tcp_write(int fd, const struct iovec *iov, int count) {
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
    return sendmsg(fd, &message, MSG_NOSIGNAL);
}

static int tcp_unsent(int fd) {
    int bytes;
    return ioctl(fd, SIOCOUTQ, &bytes) ? -1 : bytes;
}

const kvt_transport kvt_transports[] = {
    {"tcp", tcp_resolve, tcp_listen, tcp_accept, tcp_connect, tcp_connected, tcp_read, tcp_write,
     tcp_unsent},
};
const int kvt_transports_count = sizeof kvt_transports / sizeof kvt_transports[0];

status kvt_transport_find(const char *name, const kvt_transport **out, error *err) {
    char known[100] = "";
    size_t used = 0;
    for (int i = 0; i < kvt_transports_count; i++) {
        if (!name || !strcmp(name, kvt_transports[i].name)) {
            *out = &kvt_transports[i];
            return ST_OK;
        }
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "",
                                 kvt_transports[i].name);
    }
    return error_set(err, ST_UNSUPPORTED, "KV transport \"%.40s\" is unknown, expected one of: %s", name,
                     known);
}
