/* tcp.c -- ranks of several machines: a TCP link between each two.
 *
 * Rank 0 listens at the group's address. The others listen where they reach it from, tell it the port, and get the
 * list of all; then rank i connects to ranks 1 .. i-1. First on every link is a HELLO, both ways. Once all are
 * there nobody listens any more.
 *
 *   HELLO     magic, version, ranks, rank, id, port      32 bytes, as everything little endian
 *   list      address[16], port                          20 bytes a rank; IPv4 as IPv6 (::ffff:a.b.c.d)
 *   message   magic, kind, number, 0, bytes of the call, bytes that follow         32 bytes, then the bytes
 *
 * In an exchange all links are sent on and read from as they are ready, so nobody waits for somebody who waits
 * for him. The time-out counts from the last byte that moved. */
#include "collective/internal.h"
#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { VERSION = 1, HEAD_BYTES = 32, ENTRY_BYTES = 20, MAGIC = 0x314c4342 /* "BCL1" */, RETRY_MS = 10 };

typedef struct tcp {
    int listener, told;                      /* told: readable once the group is given up */
    int fd[COLL_RANKS_MAX];                  /* -1: none */
    struct sockaddr_in6 at[COLL_RANKS_MAX];  /* where each rank listens */
} tcp;

/* Six numbers of 32 bits or three of 64: what stands in front of anything. */
typedef struct head {
    uint32_t magic, a, b, c;
    uint64_t d, e;
} head;

static void put_head(uint8_t to[HEAD_BYTES], head h) {
    h = (head){htole32(h.magic), htole32(h.a), htole32(h.b), htole32(h.c), htole64(h.d), htole64(h.e)};
    memcpy(to, &h, HEAD_BYTES);
}

static head get_head(const uint8_t from[HEAD_BYTES]) {
    head h;
    memcpy(&h, from, HEAD_BYTES);
    return (head){le32toh(h.magic), le32toh(h.a), le32toh(h.b), le32toh(h.c), le64toh(h.d), le64toh(h.e)};
}

/* ---- opening: one link after the other, within a time -------------------------------------------- */

static bool is_ready(int fd, short events, int64_t until_ms) {
    struct pollfd p = {.fd = fd, .events = events};
    return poll(&p, 1, (int)coll_left_ms(until_ms)) > 0;
}

/* Sends or takes all of data. */
static status move_all(int fd, bool sends, void *data, size_t bytes, int64_t until_ms, error *err) {
    for (size_t done = 0; done < bytes;) {
        char *at = (char *)data + done;
        ssize_t n = sends ? send(fd, at, bytes - done, MSG_NOSIGNAL) : recv(fd, at, bytes - done, 0);
        if (n > 0) done += (size_t)n;
        else if (n == 0) return error_set(err, ST_PEER_LOST, "a rank closed its link while the group was formed");
        else if (errno != EAGAIN && errno != EINTR)
            return error_set(err, ST_PEER_LOST, "a rank's link while the group was formed: %s", strerror(errno));
        else if (!is_ready(fd, sends ? POLLOUT : POLLIN, until_ms))
            return error_set(err, ST_DEADLINE, "a rank said nothing while the group was formed");
    }
    return ST_OK;
}

static void tune(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Tells who we are and hears who it is. *rank -1: any above ours. */
static status greet(const coll *c, const coll_options *o, int fd, int port, int *rank, int *their_port, int64_t until_ms,
                    error *err) {
    uint8_t out[HEAD_BYTES], in[HEAD_BYTES];
    put_head(out, (head){MAGIC, VERSION, (uint32_t)c->ranks, (uint32_t)c->rank, o->id, (uint64_t)port});
    TRY(move_all(fd, true, out, HEAD_BYTES, until_ms, err));
    TRY(move_all(fd, false, in, HEAD_BYTES, until_ms, err));
    head h = get_head(in);
    if (h.magic != MAGIC || h.a != VERSION)
        return error_set(err, ST_REFUSED, "a peer is no rank of version %d", VERSION);
    if (h.d != o->id || h.b != (uint32_t)c->ranks)
        return error_set(err, ST_REFUSED, "a peer is rank %u of %u of another group, expected one of %d", h.c, h.b, c->ranks);
    if (*rank >= 0 ? h.c != (uint32_t)*rank : h.c <= (uint32_t)c->rank || h.c >= (uint32_t)c->ranks)
        return error_set(err, ST_REFUSED, "a peer is rank %u, expected %d%s", h.c, *rank < 0 ? c->rank + 1 : *rank,
                         *rank < 0 ? " or above" : "");
    *rank = (int)h.c;
    *their_port = (int)h.e;
    return ST_OK;
}

static status resolve(const char *address, struct sockaddr_in6 *out, error *err) {
    char host[256];
    const char *port;
    if (!address || !address_split(address, host, sizeof host, &port))
        return error_set(err, ST_BAD_INPUT, "address of ranks \"%.80s\": expected HOST:PORT", address ? address : "");
    struct addrinfo hints = {.ai_family = AF_INET6, .ai_socktype = SOCK_STREAM}, *found;
    hints.ai_flags = AI_V4MAPPED | AI_NUMERICSERV;
    int rc = getaddrinfo(host, port, &hints, &found);
    if (rc) return error_set(err, ST_BAD_INPUT, "address of ranks \"%.80s\": %s", address, gai_strerror(rc));
    memcpy(out, found->ai_addr, sizeof *out);
    freeaddrinfo(found);
    return ST_OK;
}

/* Port 0: a free one. */
static status open_listener(tcp *l, const struct sockaddr_in6 *at, int *port, error *err) {
    struct sockaddr_in6 bound;
    socklen_t bytes = sizeof bound;
    int on = 1, off = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return error_set(err, ST_IO, "a socket for ranks: %s", strerror(errno));
    l->listener = fd;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, (const struct sockaddr *)at, sizeof *at) || listen(fd, COLL_RANKS_MAX) ||
        getsockname(fd, (struct sockaddr *)&bound, &bytes))
        return error_set(err, ST_IO, "the socket on which ranks listen: %s", strerror(errno));
    *port = ntohs(bound.sin6_port);
    return ST_OK;
}

/* Again and again: the other may not listen yet. */
static status connect_to(const struct sockaddr_in6 *at, int rank, int64_t until_ms, int *out, error *err) {
    int why = 0;
    for (; coll_left_ms(until_ms); poll(NULL, 0, RETRY_MS)) {
        int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) return error_set(err, ST_IO, "a socket for ranks: %s", strerror(errno));
        why = connect(fd, (const struct sockaddr *)at, sizeof *at) ? errno : 0;
        if (why == EINPROGRESS && is_ready(fd, POLLOUT, until_ms)) {
            socklen_t bytes = sizeof why;
            if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &bytes)) why = errno;
        }
        if (!why) {
            tune(fd);
            *out = fd;
            return ST_OK;
        }
        close(fd);
    }
    return error_set(err, ST_DEADLINE, "rank %d was not reached: %s", rank, strerror(why));
}

static status accept_one(const coll *c, const coll_options *o, int port, int64_t until_ms, error *err) {
    tcp *l = c->link;
    int rank = -1, their_port;
    struct sockaddr_in6 from = {0};
    socklen_t bytes = sizeof from;
    if (!is_ready(l->listener, POLLIN, until_ms)) {
        for (rank = c->rank + 1; l->fd[rank] >= 0; rank++) {
        }
        return error_set(err, ST_DEADLINE, "rank %d of %d did not come within %d ms", rank, c->ranks, o->open_ms);
    }
    int fd = accept4(l->listener, (struct sockaddr *)&from, &bytes, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return ST_OK;                                /* it went again; the caller still misses one */
    tune(fd);
    status s = greet(c, o, fd, port, &rank, &their_port, until_ms, err);
    if (s == ST_OK && l->fd[rank] >= 0) s = error_set(err, ST_REFUSED, "rank %d is there twice", rank);
    if (s != ST_OK) {
        close(fd);
        return s;
    }
    l->fd[rank] = fd;
    l->at[rank] = from;
    l->at[rank].sin6_port = htons((uint16_t)their_port);
    return ST_OK;
}

static status accept_above(const coll *c, const coll_options *o, int port, int64_t until_ms, error *err) {
    const tcp *l = c->link;
    for (int r = c->rank + 1; r < c->ranks;) {
        if (l->fd[r] >= 0) r++;
        else TRY(accept_one(c, o, port, until_ms, err));
    }
    return ST_OK;
}

static status connect_below(const coll *c, const coll_options *o, int rank, int port, int64_t until_ms, error *err) {
    tcp *l = c->link;
    int unused;
    TRY(connect_to(&l->at[rank], rank, until_ms, &l->fd[rank], err));
    return greet(c, o, l->fd[rank], port, &rank, &unused, until_ms, err);
}

/* The first link of every rank but the first: its address is the one that the others will come to. */
static status join_first(const coll *c, const coll_options *o, int *port, int64_t until_ms, error *err) {
    tcp *l = c->link;
    struct sockaddr_in6 here;
    socklen_t bytes = sizeof here;
    int first = 0, unused;
    TRY(connect_to(&l->at[0], 0, until_ms, &l->fd[0], err));
    if (getsockname(l->fd[0], (struct sockaddr *)&here, &bytes))
        return error_set(err, ST_IO, "the address that reaches rank 0: %s", strerror(errno));
    here.sin6_port = 0;
    TRY(open_listener(l, &here, port, err));
    return greet(c, o, l->fd[0], *port, &first, &unused, until_ms, err);
}

/* Rank 0's list of where the ranks listen. */
static status share_list(const coll *c, int64_t until_ms, error *err) {
    tcp *l = c->link;
    uint8_t list[COLL_RANKS_MAX * ENTRY_BYTES] = {0};
    for (int r = 0; r < c->ranks; r++) {
        memcpy(list + r * ENTRY_BYTES, &l->at[r].sin6_addr, 16);
        memcpy(list + r * ENTRY_BYTES + 16, &l->at[r].sin6_port, 2);
    }
    for (int r = 1; r < c->ranks && c->rank == 0; r++)
        TRY(move_all(l->fd[r], true, list, (size_t)c->ranks * ENTRY_BYTES, until_ms, err));
    if (c->rank == 0) return ST_OK;
    TRY(move_all(l->fd[0], false, list, (size_t)c->ranks * ENTRY_BYTES, until_ms, err));
    for (int r = 1; r < c->ranks; r++) {
        l->at[r] = (struct sockaddr_in6){.sin6_family = AF_INET6};
        memcpy(&l->at[r].sin6_addr, list + r * ENTRY_BYTES, 16);
        memcpy(&l->at[r].sin6_port, list + r * ENTRY_BYTES + 16, 2);
    }
    return ST_OK;
}

static status form(coll *c, const coll_options *o, error *err) {
    tcp *l = c->link;
    int64_t until = clock_now_ms() + o->open_ms;
    int port = 0;
    TRY(resolve(o->address, &l->at[0], err));
    if ((l->told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        return error_set(err, ST_IO, "an eventfd for ranks: %s", strerror(errno));
    if (c->rank) TRY(join_first(c, o, &port, until, err));
    if (c->rank == 0) {
        TRY(open_listener(l, &l->at[0], &port, err));
        TRY(accept_above(c, o, port, until, err));
    }
    TRY(share_list(c, until, err));
    for (int r = 1; r < c->rank; r++) TRY(connect_below(c, o, r, port, until, err));
    return c->rank ? accept_above(c, o, port, until, err) : ST_OK;
}

static void tcp_close(coll *c) {
    tcp *l = c->link;
    for (int r = 0; r < COLL_RANKS_MAX; r++)
        if (l->fd[r] >= 0) close(l->fd[r]);
    if (l->listener >= 0) close(l->listener);
    if (l->told >= 0) close(l->told);
    mem_free(l);
    c->link = NULL;
}

static status tcp_open(coll *c, const coll_options *o, error *err) {
    tcp *l = mem_zalloc(1, sizeof *l);
    if (!l) return error_set(err, ST_NO_MEMORY, "no memory for a group of ranks");
    l->listener = l->told = -1;
    for (int r = 0; r < COLL_RANKS_MAX; r++) l->fd[r] = -1;
    c->link = l;
    status s = form(c, o, err);
    if (s != ST_OK) {
        tcp_close(c);
        return s;
    }
    close(l->listener);
    l->listener = -1;
    return ST_OK;
}

static void tcp_abort(coll *c) {
    const tcp *l = c->link;
    uint64_t one = 1;
    if (write(l->told, &one, sizeof one) < 0) return;        /* it is readable already */
}

/* ---- exchange ------------------------------------------------------------------------------------ */

/* One direction of one link: a head, then the span. */
typedef struct flow {
    uint8_t head[HEAD_BYTES];
    span body;
    size_t done, bytes;                      /* of head and body; bytes 0: nothing is to move */
} flow;

static flow flow_of(const coll_call *call, span body) {
    flow f = {.body = body, .bytes = body.bytes ? HEAD_BYTES + body.bytes : 0};
    put_head(f.head, (head){MAGIC, call->kind, call->number, 0, call->bytes, body.bytes});
    return f;
}

/* What is left of a flow, as vectors for a system call. */
static int vectors(flow *f, struct iovec v[2]) {
    int count = 0;
    size_t body = f->done > HEAD_BYTES ? f->done - HEAD_BYTES : 0;
    if (f->done < HEAD_BYTES) v[count++] = (struct iovec){f->head + f->done, HEAD_BYTES - f->done};
    v[count++] = (struct iovec){(char *)f->body.data + body, f->body.bytes - body};
    return count;
}

static status check_head(const coll *c, const coll_call *call, const flow *f, int rank, error *err) {
    head h = get_head(f->head);
    coll_call theirs = {.number = h.b, .kind = h.a, .bytes = h.d};
    TRY(coll_check_call(c, call, &theirs, rank, err));
    if (h.magic == MAGIC && h.e == f->body.bytes) return ST_OK;
    return error_set(err, ST_INTERNAL, "rank %d sends %llu bytes, rank %d expected %zu", rank, (unsigned long long)h.e,
                     c->rank, f->body.bytes);
}

/* As much as goes now. The head of what comes is looked at before anything of its body is taken. */
static status move_some(const coll *c, const coll_call *call, flow *f, int rank, bool sends, error *err) {
    const tcp *l = c->link;
    while (f->done < f->bytes) {
        struct iovec v[2];
        struct msghdr m = {.msg_iov = v, .msg_iovlen = (size_t)vectors(f, v)};
        if (!sends && f->done < HEAD_BYTES) m.msg_iovlen = 1;
        ssize_t n = sends ? sendmsg(l->fd[rank], &m, MSG_NOSIGNAL) : recvmsg(l->fd[rank], &m, 0);
        if (n == 0) return error_set(err, ST_PEER_LOST, "rank %d closed its link", rank);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return ST_OK;
        if (n < 0) return error_set(err, ST_PEER_LOST, "rank %d: %s", rank, strerror(errno));
        f->done += (size_t)n;
        if (!sends && f->done == HEAD_BYTES) TRY(check_head(c, call, f, rank, err));
    }
    return ST_OK;
}

/* Waits until a link can move something. */
static status await(const coll *c, const flow *out, const flow *in, int64_t until_ms, error *err) {
    const tcp *l = c->link;
    struct pollfd p[COLL_RANKS_MAX + 1];
    int who[COLL_RANKS_MAX], count = 0;
    for (int r = 0; r < c->ranks; r++) {
        short events = (short)((out[r].done < out[r].bytes ? POLLOUT : 0) | (in[r].done < in[r].bytes ? POLLIN : 0));
        if (!events) continue;
        who[count] = r;
        p[count++] = (struct pollfd){.fd = l->fd[r], .events = events};
    }
    p[count] = (struct pollfd){.fd = l->told, .events = POLLIN};
    if (poll(p, (nfds_t)count + 1, (int)coll_left_ms(until_ms)) == 0)
        return error_set(err, ST_DEADLINE, "rank %d did not answer within %d ms", who[0], c->timeout_ms);
    return p[count].revents ? error_set(err, ST_CANCELED, "the group was given up") : ST_OK;
}

static status move_flows(coll *c, const coll_call *call, const span *out, const span *in, error *err) {
    flow sends[COLL_RANKS_MAX], takes[COLL_RANKS_MAX];
    int64_t until = clock_now_ms() + c->timeout_ms;
    size_t before = 0;
    for (int r = 0; r < c->ranks; r++) {
        span none = {0};
        sends[r] = flow_of(call, r == c->rank ? none : out[r]);
        takes[r] = flow_of(call, r == c->rank ? none : in[r]);
    }
    for (;;) {
        size_t moved = 0, left = 0;
        for (int r = 0; r < c->ranks; r++) {
            TRY(move_some(c, call, &sends[r], r, true, err));
            TRY(move_some(c, call, &takes[r], r, false, err));
            moved += sends[r].done + takes[r].done;
            left += sends[r].bytes + takes[r].bytes;
        }
        if (moved == left) return ST_OK;
        if (moved > before) until = clock_now_ms() + c->timeout_ms;
        before = moved;
        TRY(await(c, sends, takes, until, err));
    }
}

/* After a failure the links are of no more use: the others shall hear of it. */
static status tcp_exchange(coll *c, const coll_call *call, const span *out, const span *in, error *err) {
    const tcp *l = c->link;
    status s = move_flows(c, call, out, in, err);
    for (int r = 0; r < c->ranks && s != ST_OK; r++)
        if (l->fd[r] >= 0) shutdown(l->fd[r], SHUT_RDWR);
    return s;
}

const coll_transport coll_tcp = {"tcp", tcp_open, tcp_close, tcp_abort, tcp_exchange, NULL};
