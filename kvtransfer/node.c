/* node.c -- one process's end of every link: the thread, its loop, its timers.
 *
 * A turn of the loop: what epoll cannot see [look_at_streams]; wait for sockets; read and write them; end
 * what was revoked; carry out what senders asked for; look at the clocks; free dead links. Sockets come
 * before wishes, so that a send never joins a link whose end is already known.
 *
 * Timers: due_ms is a lower bound of every deadline of links and sends. Whoever sets a deadline lowers
 * it (kvt_node_due); when it has come, one sweep looks at all of them and finds the next. Progress only
 * moves deadlines away, so the bytes' path never touches a timer. Leases live in promise.c the same way.
 *
 * Other threads never touch a socket: they change state under the lock and write wake_fd. */
#include "kvtransfer/internal.h"
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { EVENTS_A_TURN = 64, ACCEPTS_A_TURN = 16, ACCEPT_PAUSE_MS = 100, PROMISES_MAX = 4096 };

static void *run(void *node);

/* ---- open, close ----------------------------------------------------------------------------- */

kvt_node *kvt_node_create(int promises_max, const char *pairing) {
    kvt_node *n = mem_zalloc(1, sizeof *n);
    if (!n) return NULL;
    n->epoll_fd = n->wake_fd = -1;
    n->transport = kvt_transports[0];
    n->now_ms = clock_now_ms();
    n->due_ms = INT64_MAX;
    snprintf(n->pairing, sizeof n->pairing, "%s", pairing ? pairing : "");
    pthread_mutex_init(&n->lock, NULL);
    n->promises = kvt_promises_create(promises_max > 0 ? promises_max : PROMISES_MAX);
    n->scratch = mem_alloc(KVT_SCRATCH_BYTES);
    if (n->promises && n->scratch) return n;
    kvt_node_destroy(n);
    return NULL;
}

static void close_fd(int fd) {
    if (fd >= 0) close(fd);
}

static void free_dead_links(kvt_node *n) {
    if (!n->links_dead) return;
    n->links_dead = false;
    for (int i = 0; i < KVT_LINKS_MAX; i++)
        if (n->links[i] && n->links[i]->state == LINK_DEAD) kvt_link_destroy(n->links[i]);
}

/* Everybody is told ST_CANCELED; afterwards nothing is left that could call back. */
static void end_all(kvt_node *n) {
    kvt_send_close_all(n);
    kvt_receive_close(n);
    for (int i = 0; i < KVT_LINKS_MAX; i++)
        if (n->links[i]) kvt_link_fail(n->links[i], ST_CANCELED, "node closes");
    free_dead_links(n);
}

/* The thread has ended, or never was: nobody but the caller knows the node now. */
void kvt_node_destroy(kvt_node *n) {
    if (n->promises && !n->running) end_all(n);
    if (n->listener) n->transport->close(n->listener);
    if (n->context) n->transport->context_destroy(n->context);
    close_fd(n->wake_fd);
    close_fd(n->epoll_fd);
    kvt_promises_destroy(n->promises);
    kvt_cipher_destroy(n->cipher);
    pthread_mutex_destroy(&n->lock);
    mem_free(n->scratch);
    mem_free(n);
}

static bool watch(kvt_node *n, int fd, void *mark) {
    struct epoll_event want = {.events = EPOLLIN, .data.ptr = mark};
    return fd < 0 || !epoll_ctl(n->epoll_fd, EPOLL_CTL_ADD, fd, &want);
}

static bool watch_all(kvt_node *n) {
    n->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    n->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return n->epoll_fd >= 0 && n->wake_fd >= 0 && watch(n, n->wake_fd, &n->wake_fd) &&
           (!n->context || watch(n, n->context->fd, &n->context)) &&
           (!n->listener || watch(n, n->listener->fd, &n->listener));
}

/* The thread takes no signals: those are for the threads that wait for them. */
static bool start(kvt_node *n) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&n->thread, NULL, run, n);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    n->running = rc == 0;
    errno = rc; /* which pthread_create() does not set */
    if (n->running) pthread_setname_np(n->thread, "kvt");
    return n->running;
}

status kvt_node_open(const kvt_options *o, kvt_node **out, error *err) {
    const kvt_transport *transport;
    status s = kvt_transport_find(o->transport, &transport, err);
    if (s != ST_OK) return s;
    if (o->pairing && strlen(o->pairing) > KVT_PAIRING_MAX)
        return error_set(err, ST_BAD_INPUT, "KV pairing has %zu bytes, expected at most %d",
                         strlen(o->pairing), KVT_PAIRING_MAX);
    kvt_node *n = kvt_node_create(o->promises_max, o->pairing);
    if (!n) return error_set(err, ST_NO_MEMORY, "no memory for a KV node");
    n->transport = transport;
    if (transport->context_create && (s = transport->context_create(o->listen, &n->context, err)) != ST_OK)
        goto destroy_node;
    if (o->listen && (s = transport->listen(n->context, o->listen, &n->listener, n->address, err)) != ST_OK)
        goto destroy_node;
    if (!watch_all(n) || !start(n)) {
        s = error_set(err, ST_IO, "KV node: no descriptor or thread: %s", strerror(errno));
        goto destroy_node;
    }
    kvt_receive_show();
    kvt_send_show();
    kvt_link_show();
    *out = n;
    return ST_OK;
destroy_node:
    kvt_node_destroy(n);
    return s;
}

const char *kvt_node_address(const kvt_node *n) { return n->address; }

bool kvt_node_leaves_machine(const kvt_node *n) { return !n->transport->stays; }

status kvt_node_takes_key(kvt_node *n, const unsigned char *key) {
    if (!key || n->cipher) return ST_OK;
    if (n->transport->stays) return ST_UNSUPPORTED;
    n->cipher = kvt_cipher_create();
    return n->cipher ? ST_OK : ST_NO_MEMORY;
}

void kvt_node_close(kvt_node *n) {
    if (!n) return;
    assert(!pthread_equal(pthread_self(), n->thread));
    pthread_mutex_lock(&n->lock);
    n->closing = true; /* no new promise, no new send */
    kvt_node_wake(n);
    pthread_mutex_unlock(&n->lock);
    pthread_join(n->thread, NULL);
    kvt_node_destroy(n);
}

void kvt_node_wake(kvt_node *n) {
    if (n->woken) return;
    n->woken = true;
    uint64_t one = 1;
    if (n->wake_fd >= 0 && write(n->wake_fd, &one, sizeof one) < 0) n->woken = false;
}

void kvt_node_due(kvt_node *n, int64_t at_ms) {
    if (at_ms < n->due_ms) n->due_ms = at_ms;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Without descriptors left, accept() would make the loop spin: the listener rests a moment. */
static void accept_some(kvt_node *n) {
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        kvt_stream *s = n->transport->accept(n->listener);
        if (s) {
            if (!kvt_link_create(n, s, false, "peer"))
                log_write(LOG_WARN, NULL, "kv.link", "refused: no memory, or all %d links taken",
                          KVT_LINKS_MAX);
            continue;
        }
        if (errno == ECONNABORTED || errno == EINTR) continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK) return;
        log_write(LOG_WARN, NULL, "kv.accept", "pausing %d ms: %s", ACCEPT_PAUSE_MS, strerror(errno));
        if (n->listener->fd >= 0) epoll_ctl(n->epoll_fd, EPOLL_CTL_DEL, n->listener->fd, NULL);
        n->accept_again_ms = n->now_ms + ACCEPT_PAUSE_MS;
        kvt_node_due(n, n->accept_again_ms);
        return;
    }
}

static void woken(kvt_node *n) {
    uint64_t count;
    pthread_mutex_lock(&n->lock);
    n->woken = false;
    if (read(n->wake_fd, &count, sizeof count) < 0) assert(errno == EAGAIN);
    pthread_mutex_unlock(&n->lock);
}

/* Looks at every clock; the earliest of them is when the next look is due. */
static void sweep(kvt_node *n) {
    int64_t due = INT64_MAX;
    n->due_ms = INT64_MAX; /* ending something may set new deadlines meanwhile */
    if (n->accept_again_ms && n->now_ms >= n->accept_again_ms) {
        n->accept_again_ms = 0;
        watch(n, n->listener->fd, &n->listener);
    } else if (n->accept_again_ms) {
        due = n->accept_again_ms;
    }
    for (int i = 0; i < KVT_LINKS_MAX; i++)
        if (n->links[i]) kvt_link_tick(n->links[i], n->now_ms, &due);
    kvt_send_tick(n, n->now_ms, &due);
    kvt_node_due(n, due);
}

/* Milliseconds until the next clock; -1: none runs. *closing: the node is to end. */
static int sleep_ms(kvt_node *n, bool *closing) {
    pthread_mutex_lock(&n->lock);
    int64_t at = kvt_promises_next_expiry(n->promises);
    *closing = n->closing;
    pthread_mutex_unlock(&n->lock);
    if (n->due_ms < at) at = n->due_ms;
    if (at == INT64_MAX) return -1;
    int64_t left = at - clock_now_ms();
    return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}

static void dispatch(kvt_node *n, const struct epoll_event *e) {
    if (e->data.ptr == &n->wake_fd)
        woken(n);
    else if (e->data.ptr == &n->listener)
        accept_some(n);
    else if (e->data.ptr != &n->context) /* its turn comes before the next sleep */
        kvt_link_event(e->data.ptr, e->events);
}

/* What epoll cannot see. true: there was something, and there may be more. */
static bool look_at_streams(kvt_node *n) {
    bool any = false;
    if (!n->transport->ready) return false;
    if (n->context) kvt_node_due(n, n->transport->context_turn(n->context, n->now_ms));
    if (n->listener && n->listener->fd < 0 && !n->accept_again_ms && n->transport->ready(n->listener, EPOLLIN)) {
        accept_some(n);
        any = true;
    }
    for (int i = 0; i < KVT_LINKS_MAX; i++) {
        kvt_link *l = n->links[i];
        if (!l || l->state == LINK_DEAD) continue;
        uint32_t events = n->transport->ready(l->stream, EPOLLIN | (l->wants_write ? EPOLLOUT : 0));
        if (events) kvt_link_event(l, events);
        any |= events != 0;
    }
    return any || (n->context && !n->transport->context_sleep(n->context));
}

static void *run(void *node) {
    kvt_node *n = node;
    struct epoll_event events[EVENTS_A_TURN];
    for (;;) {
        bool closing, more = look_at_streams(n);
        int timeout_ms = sleep_ms(n, &closing);
        if (closing) break;
        if (more) timeout_ms = 0;
        int count = epoll_wait(n->epoll_fd, events, EVENTS_A_TURN, timeout_ms);
        n->now_ms = clock_now_ms();
        for (int i = 0; i < count; i++) dispatch(n, &events[i]);
        kvt_receive_revoked(n);
        kvt_send_dirty(n);
        if (n->now_ms >= n->due_ms) sweep(n);
        kvt_receive_expire(n, n->now_ms);
        free_dead_links(n);
    }
    end_all(n);
    return NULL;
}
