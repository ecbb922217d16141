/* shm.c -- streams between two processes of one machine: two rings in memory that both have mapped.
 *
 * Addresses are host:port as tcp's, so that nodes publish, check and log one kind; the host must be this
 * machine's loopback. The listener binds that TCP port without listening (nobody else gets the port, and a
 * peer that comes by tcp is refused) and listens on the abstract Unix socket "baton-kv-PORT". Both kinds of
 * names live in the network namespace, so what 127.0.0.1 reaches is what this reaches.
 *
 *   connect  makes a memory file, sealed against any change of size, and sends it over the socket (one byte,
 *            the layout's version, and SCM_RIGHTS); maps it
 *   accept   takes it at the first read, checks size, seals and kind, maps it                     [attach]
 *   then     bytes go through the rings; over the socket only a byte now and then that wakes the other's loop
 *   close    closes the socket: its end is how a peer learns that the other is gone, however it died; what
 *            had been written before is read first
 *
 * A ring has one writer and one reader: head counts bytes written, tail bytes read, each stored by its owner
 * only. A ring is mapped twice, back to back, so that any frame in it is one piece: packed, summed and landed
 * where it lies.
 *
 * Waking (Dekker's pattern): who is about to sleep stores its wish, then looks once more; who has moved head
 * or tail looks for a wish. All four are sequentially consistent, so one of the two sees the other. A writer
 * sleeps until half of its ring is free, not until the next frame fits: fewer wakes.
 *
 * The peer may write anything anywhere at any time. Its counters are read once and checked (more than a
 * ring's bytes: EPROTO); our own are kept in private memory and only shown; nothing in the shared memory is
 * used as an address or an index. Sealed, the file cannot shrink under the mapping; on tmpfs a punched hole
 * reads as zeros. So a peer spoils its own stream and nothing else.
 *
 * Memory: RING_BYTES of pages a link once a ring's worth of rows has gone through, shared by both ends. */
#include "kvtransfer/internal.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

enum {
    BACKLOG = 128,
    LAYOUT = 1,                  /* of the file; told with it */
    CONTROL_BYTES = 1 << 16,     /* the counters; a page, whatever a page is */
    FRAME_BYTES = 256 << 10,     /* packed, summed and landed in a second level cache; with half of it receivers copy
                                    shorter runs and wake more often (bench/README.md) */
    RING_BYTES = 2 << 20,        /* from who connected */
    BACK_BYTES = 1 << 16,        /* to it */
    FILE_BYTES = CONTROL_BYTES + RING_BYTES + BACK_BYTES,
    MAP_BYTES = CONTROL_BYTES + 2 * RING_BYTES + 2 * BACK_BYTES,
};
static_assert((int)RING_BYTES > KVT_FRAME_BYTES + (int)KVT_PAYLOAD_MAX, "the largest frame fits in one piece");
static_assert((int)BACK_BYTES >= (int)KVT_CONTROL_BYTES, "control frames fit");

/* What both see of a ring: a line each. */
typedef struct counters {
    _Alignas(64) uint64_t head;  /* stored by the writer, as is */
    uint64_t writer_wants;       /* wakes it when so many bytes are free; 0: it is awake. Cleared by the reader */
    _Alignas(64) uint64_t tail;  /* stored by the reader, as is */
    uint64_t reader_waits;       /* wakes it when bytes come. Cleared by the writer */
} counters;

typedef struct ring {
    counters *shared;
    unsigned char *at;           /* bytes, and the same bytes again */
    size_t bytes;
    uint64_t own;                /* head of the ring we write, tail of the one we read */
    size_t need;                 /* what the last call lacked: less is not worth another call */
} ring;

typedef struct shm_stream {
    kvt_stream s;
    int port_fd;                 /* listener: holds the port; else -1 */
    unsigned char *map;          /* NULL: a listener, or the file has not come yet */
    ring in, out;
    bool gone;                   /* the peer has closed */
} shm_stream;

static shm_stream *of(kvt_stream *s) { return (shm_stream *)s; }

/* ---- rings ----------------------------------------------------------------------------------- */

/* false: the peer's counter cannot be. */
static bool ring_used(const ring *r, size_t *used) {
    *used = (size_t)(__atomic_load_n(&r->shared->head, __ATOMIC_SEQ_CST) - r->own);
    return *used <= r->bytes;
}

static bool ring_free(const ring *r, size_t *room) {
    uint64_t used = r->own - __atomic_load_n(&r->shared->tail, __ATOMIC_SEQ_CST);
    *room = r->bytes - (size_t)used;
    return used <= r->bytes;
}

static unsigned char *ring_at(const ring *r) { return r->at + r->own % r->bytes; }

/* A full socket is one that will wake its reader anyway. */
static void wake(const shm_stream *x) { send(x->s.fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); }

static void written(shm_stream *x, size_t bytes) {
    counters *c = x->out.shared;
    x->out.own += bytes;
    __atomic_store_n(&c->head, x->out.own, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&c->reader_waits, __ATOMIC_SEQ_CST) &&
        __atomic_exchange_n(&c->reader_waits, 0, __ATOMIC_SEQ_CST))
        wake(x);
}

static void taken(shm_stream *x, size_t bytes) {
    counters *c = x->in.shared;
    size_t used = 0;
    x->in.own += bytes;
    __atomic_store_n(&c->tail, x->in.own, __ATOMIC_SEQ_CST);
    uint64_t wants = __atomic_load_n(&c->writer_wants, __ATOMIC_SEQ_CST);
    if (!wants || (ring_used(&x->in, &used) && x->in.bytes - used < wants)) return;
    if (__atomic_exchange_n(&c->writer_wants, 0, __ATOMIC_SEQ_CST)) wake(x);
}

/* ---- the file -------------------------------------------------------------------------------- */

static bool map_ring(unsigned char *at, size_t bytes, int fd, off_t offset) {
    for (int i = 0; i < 2; i++, at += bytes)
        if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset) == MAP_FAILED)
            return false;
    return true;
}

/* Both ends map the same; connected: we are who did. */
static bool map_file(shm_stream *x, int fd, bool connected) {
    unsigned char *map = mmap(NULL, MAP_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return false;
    unsigned char *rows = map + CONTROL_BYTES, *back = rows + 2 * RING_BYTES;
    if (mmap(map, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
        !map_ring(rows, RING_BYTES, fd, CONTROL_BYTES) ||
        !map_ring(back, BACK_BYTES, fd, CONTROL_BYTES + RING_BYTES)) {
        munmap(map, MAP_BYTES);
        return false;
    }
    counters *shared = (counters *)map;
    ring forth = {.shared = &shared[0], .at = rows, .bytes = RING_BYTES, .need = 1};
    ring answers = {.shared = &shared[1], .at = back, .bytes = BACK_BYTES, .need = 1};
    x->map = map;
    x->out = connected ? forth : answers;
    x->in = connected ? answers : forth;
    return true;
}

static int make_file(void) {
    int fd = memfd_create("baton-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    if (!ftruncate(fd, FILE_BYTES) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

/* Anything else could end in SIGBUS under our hands. */
static bool file_is_sound(int fd) {
    struct stat st;
    struct statfs fs;
    int seals = fcntl(fd, F_GET_SEALS), expected = F_SEAL_SHRINK | F_SEAL_GROW;
    return seals >= 0 && (seals & expected) == expected && !fstat(fd, &st) && st.st_size == FILE_BYTES &&
           !fstatfs(fd, &fs) && fs.f_type == TMPFS_MAGIC;
}

static bool send_file(int socket_fd, int fd) {
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof fd)];
    } control = {.bytes = {0}};
    unsigned char layout = LAYOUT;
    struct iovec iov = {&layout, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    return sendmsg(socket_fd, &m, MSG_NOSIGNAL) == 1;
}

/* The file that came with the first byte; -1: errno (0: the peer closed). Room for one (CMSG_SPACE would be
 * room for two): the kernel drops what else a peer sends along. */
static int receive_file(int socket_fd) {
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    unsigned char layout = 0;
    struct iovec iov = {&layout, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                       .msg_controllen = CMSG_LEN(sizeof(int))};
    ssize_t n = recvmsg(socket_fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n == 0) errno = 0;
    if (n <= 0) return -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    int fd = -1;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    if (fd >= 0 && layout == LAYOUT && file_is_sound(fd)) return fd;
    if (fd >= 0) close(fd);
    errno = EPROTO;
    return -1;
}

/* false: errno, as view()'s. */
static bool attach(shm_stream *x) {
    int fd = receive_file(x->s.fd);
    if (fd < 0) return false;
    bool mapped = map_file(x, fd, false);
    int why = errno;
    close(fd);
    errno = why;
    return mapped;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

/* Takes the bytes that woke us, and learns whether the peer is gone. */
static void drain(shm_stream *x) {
    char bytes[256];
    ssize_t n = recv(x->s.fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) x->gone = true;
}

/* Whether so many bytes are there; if not, errno as view()'s. What a peer wrote before it left still counts. */
static bool arrived(shm_stream *x, size_t bytes, size_t *used) {
    if (!x->map && !attach(x)) return false;
    for (int look = 0; look < 2; look++) {
        if (!ring_used(&x->in, used)) {
            errno = EPROTO;
            return false;
        }
        x->in.need = *used >= bytes ? 1 : bytes;
        if (*used >= bytes) return true;
        if (!look) drain(x);
    }
    errno = x->gone ? 0 : EAGAIN;
    return false;
}

static ssize_t shm_read(kvt_stream *s, void *out, size_t bytes) {
    shm_stream *x = of(s);
    size_t used;
    if (!arrived(x, 1, &used)) return errno ? -1 : 0;
    if (bytes > used) bytes = used;
    memcpy(out, ring_at(&x->in), bytes);
    taken(x, bytes);
    return (ssize_t)bytes;
}

static const unsigned char *shm_view(kvt_stream *s, size_t bytes) {
    size_t used;
    return arrived(of(s), bytes, &used) ? ring_at(&of(s)->in) : NULL;
}

static void shm_consume(kvt_stream *s, size_t bytes) { taken(of(s), bytes); }

/* Where so many bytes fit; else errno. */
static unsigned char *room_for(shm_stream *x, size_t bytes, size_t *room) {
    if (!x->map && !attach(x)) {
        if (!errno) errno = EPIPE;
        return NULL;
    }
    if (!ring_free(&x->out, room)) {
        errno = EPROTO;
        return NULL;
    }
    errno = EAGAIN;
    x->out.need = *room >= bytes ? 1 : bytes;
    return *room >= bytes ? ring_at(&x->out) : NULL;
}

static unsigned char *shm_reserve(kvt_stream *s, size_t bytes) {
    size_t room;
    return room_for(of(s), bytes, &room);
}

static void shm_commit(kvt_stream *s, size_t bytes) { written(of(s), bytes); }

static ssize_t shm_write(kvt_stream *s, const struct iovec *iov, int count) {
    shm_stream *x = of(s);
    size_t room, done = 0;
    unsigned char *at = room_for(x, 1, &room);
    if (!at) return -1;
    for (int i = 0; i < count && done < room; i++) {
        size_t n = iov[i].iov_len < room - done ? iov[i].iov_len : room - done;
        memcpy(at + done, iov[i].iov_base, n);
        done += n;
    }
    written(x, done);
    return (ssize_t)done;
}

static int shm_unsent(kvt_stream *s) {
    size_t room;
    return of(s)->map && ring_free(&of(s)->out, &room) ? (int)(of(s)->out.bytes - room) : -1;
}

/* Of a stream whose counters cannot be, everything is ready: read() and write() will say so. */
static uint32_t ready_now(shm_stream *x, uint32_t want) {
    size_t used, room;
    uint32_t events = 0;
    if (!ring_used(&x->in, &used) || used >= x->in.need) events |= EPOLLIN;
    if (!ring_free(&x->out, &room) || room >= x->out.need) events |= EPOLLOUT;
    return events & want;
}

static uint32_t shm_ready(kvt_stream *s, uint32_t want) {
    shm_stream *x = of(s);
    if (!x->map) return 0; /* the file is still to come, over the socket */
    uint32_t events = ready_now(x, want);
    if (events) return events;
    size_t half = x->out.bytes / 2, level = x->out.need > half ? x->out.need : half;
    __atomic_store_n(&x->in.shared->reader_waits, 1, __ATOMIC_SEQ_CST);
    if (want & EPOLLOUT) __atomic_store_n(&x->out.shared->writer_wants, level, __ATOMIC_SEQ_CST);
    return ready_now(x, want);
}

/* ---- open, close ----------------------------------------------------------------------------- */

static void shm_close(kvt_stream *s) {
    shm_stream *x = of(s);
    close(x->s.fd);
    if (x->port_fd >= 0) close(x->port_fd);
    if (x->map) munmap(x->map, MAP_BYTES);
    mem_free(x);
}

/* Owns fd from here on; NULL: no memory, fd is closed. */
static shm_stream *stream_of(int fd) {
    shm_stream *x = mem_zalloc(1, sizeof *x);
    if (x) {
        x->s.fd = fd;
        x->port_fd = -1;
    } else {
        close(fd);
        errno = ENOMEM;
    }
    return x;
}

/* 0: not an address of this machine's loopback. */
static in_port_t loopback_port(const kvt_address *at) {
    if (!kvt_tcp_is_loopback(at)) return 0;
    return at->sa.ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)&at->sa)->sin6_port
                                        : ((const struct sockaddr_in *)&at->sa)->sin_port;
}

/* The Unix socket's name. */
static kvt_address name_of(in_port_t port) {
    kvt_address out = {.bytes = 0};
    struct sockaddr_un *un = (struct sockaddr_un *)&out.sa;
    un->sun_family = AF_UNIX;
    int n = snprintf(un->sun_path + 1, sizeof un->sun_path - 1, "baton-kv-%u", ntohs(port));
    out.bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    return out;
}

static status shm_resolve(const char *text, kvt_address *out, error *err) {
    kvt_address at;
    TRY(kvt_tcp_resolve(text, &at, err));
    in_port_t port = loopback_port(&at);
    if (!port)
        return error_set(err, ST_BAD_INPUT, "KV address \"%.80s\": shm reaches this machine only, expected "
                         "127.0.0.1:PORT", text);
    *out = name_of(port);
    return ST_OK;
}

static status shm_listen(kvt_context *c, const char *text, kvt_stream **out, char bound[KVT_ADDRESS_MAX], error *err) {
    (void)c;
    kvt_address at;
    int port_fd, fd = -1;
    TRY(kvt_tcp_bind(text, false, &port_fd, bound, err));
    status s = shm_resolve(bound, &at, err);
    if (s != ST_OK) goto close_port;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at.sa, at.bytes) || listen(fd, BACKLOG)) {
        s = error_set(err, ST_IO, "KV listen address \"%.80s\" over shm: %s", text, strerror(errno));
        goto close_socket;
    }
    shm_stream *x = stream_of(fd);
    if (!x) {
        s = error_set(err, ST_NO_MEMORY, "KV listen address \"%.80s\": no memory", text);
        goto close_port;
    }
    x->port_fd = port_fd;
    *out = &x->s;
    return ST_OK;
close_socket:
    if (fd >= 0) close(fd);
close_port:
    close(port_fd);
    return s;
}

static kvt_stream *shm_accept(kvt_stream *listener) {
    int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    shm_stream *x = fd < 0 ? NULL : stream_of(fd);
    return x ? &x->s : NULL;
}

static kvt_stream *shm_connect(kvt_context *c, const kvt_address *to) {
    (void)c;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    shm_stream *x = fd < 0 ? NULL : stream_of(fd);
    if (!x) return NULL;
    int file = make_file();
    bool linked = file >= 0 && map_file(x, file, true) &&
                  !connect(fd, (const struct sockaddr *)&to->sa, to->bytes) && send_file(fd, file);
    int why = errno;
    if (file >= 0) close(file);
    if (linked) return &x->s;
    shm_close(&x->s);
    errno = why;
    return NULL;
}

static int shm_connected(kvt_stream *s) {
    (void)s;
    return 0;
}

const kvt_transport kvt_shm = {
    .name = "shm",
    .stays = true,
    .frame_bytes = FRAME_BYTES,
    .resolve = shm_resolve,
    .listen = shm_listen,
    .accept = shm_accept,
    .connect = shm_connect,
    .connected = shm_connected,
    .close = shm_close,
    .read = shm_read,
    .write = shm_write,
    .unsent = shm_unsent,
    .ready = shm_ready,
    .reserve = shm_reserve,
    .commit = shm_commit,
    .view = shm_view,
    .consume = shm_consume,
};
