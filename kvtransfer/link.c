/* link.c -- one connection: a stream of frames each way.
 *
 * In: kvt_link_want() says where the next bytes of the stream belong, kvt_link_took() that they are
 * there. So payload goes from the socket straight into the link's one body buffer, its CRC taken piece
 * by piece while it is hot, and a test can feed bytes without a socket. Where the transport has a view,
 * payload is not moved: it is summed and landed in the transport's memory [land_view]; headers are copied
 * out all the same, for the peer may change what has been checked.
 *
 *   EXPECT_HEADER  --64 bytes--> decoded; a bad header ends the link
 *        sealed                   -> EXPECT_SEAL (24 bytes) -> as below, but for the CRC: the whole frame is opened with
 *                                    its ticket's key before anything becomes of it [kvt_receive_frame]
 *        DATA a promise wants     -> EXPECT_PAYLOAD -> CRC -> [kvt_receive_frame] -> EXPECT_HEADER
 *        DATA nobody wants        -> EXPECT_REFUSED (read into scratch, forgotten) -> EXPECT_HEADER
 *        HELLO                    -> EXPECT_PAYLOAD -> CRC -> [hello_taken]       -> EXPECT_HEADER
 *        END, ABORT, ACK          -> at once
 *
 * Out: one staged DATA frame and one buffer of control frames, written together by one sendmsg. A frame is staged
 * in the transport's memory, if it offers some; else as runs of the pages themselves, if its source can name them;
 * else packed into the link's buffer. The next one is staged only when both are empty and the socket takes bytes:
 * what has not left yet is still pages, not a queue. A staged frame goes before control, so that an END or ABORT
 * follows the rows it speaks of.
 *
 * A send's end does not wait for a frame of its pages that is half out: what is left of it is copied first
 * [kvt_link_keep], so that after ended() nobody reads the pages, and the peer still gets a whole frame.
 *
 * Memory a peer can make us hold: the struct (some 22 KB), and KVT_PAYLOAD_MAX once it sent a box that a
 * promise wanted. Both stay as long as the link: senders close theirs when idle, and freeing 1 MB
 * between frames would cost a page fault for each 4 KB landed. */
#include "kvtransfer/internal.h"
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

enum { TURN_BYTES = 4 << 20 }; /* read or written before other links have their turn */

METRIC(received_frames, "baton_kv_frames_received_total", NULL, METRIC_COUNTER,
       "KV frames received whose header was sound");
METRIC(links_open, "baton_kv_links", NULL, METRIC_GAUGE, "KV links open, both directions");

void kvt_link_show(void) {
    metric_show(&received_frames);
    metric_show(&links_open);
}

/* ---- birth and end --------------------------------------------------------------------------- */

static int free_slot(const kvt_node *n) {
    for (int i = 0; i < KVT_LINKS_MAX; i++)
        if (!n->links[i]) return i;
    return -1;
}

kvt_link *kvt_link_create(kvt_node *n, kvt_stream *stream, bool outgoing, const char *address) {
    int slot = free_slot(n);
    kvt_link *l = slot < 0 ? NULL : mem_zalloc(1, sizeof *l);
    if (!l) goto close_stream;
    *l = (kvt_link){.node = n, .stream = stream, .slot = slot, .outgoing = outgoing};
    l->state = outgoing ? LINK_CONNECTING : LINK_HELLO;
    l->wants_write = outgoing; /* connecting is waiting for the socket to take bytes */
    l->progress_ms = n->now_ms;
    l->deadline_ms = n->now_ms + KVT_CONNECT_MS;
    snprintf(l->address, sizeof l->address, "%s", address);
    struct epoll_event want = {.events = outgoing && !n->transport->ready ? EPOLLIN | EPOLLOUT : EPOLLIN,
                               .data.ptr = l};
    if (stream && stream->fd >= 0 && epoll_ctl(n->epoll_fd, EPOLL_CTL_ADD, stream->fd, &want)) goto free_link;
    n->links[slot] = l;
    metric_add(&links_open, 1);
    kvt_node_due(n, l->deadline_ms);
    return l;
free_link:
    mem_free(l);
close_stream:
    if (stream) n->transport->close(stream);
    return NULL;
}

kvt_link *kvt_link_to(kvt_node *n, const char *address, const kvt_address *peer, error *why) {
    for (int i = 0; i < KVT_LINKS_MAX; i++) {
        kvt_link *l = n->links[i];
        if (l && l->outgoing && l->state != LINK_DEAD && !strcmp(l->address, address)) return l;
    }
    kvt_stream *stream = n->transport->connect(n->context, peer);
    if (!stream) {
        error_set(why, ST_PEER_LOST, "connect to %s over %s: %s", address, n->transport->name, strerror(errno));
        return NULL;
    }
    kvt_link *l = kvt_link_create(n, stream, true, address);
    if (!l)
        error_set(why, ST_NO_MEMORY, "link to %s: no memory, or all %d links taken", address,
                  KVT_LINKS_MAX);
    return l;
}

/* Everything that hangs on the link learns of it before this returns; the struct itself lives until
 * the loop's turn is over, because callers up the stack still look at its state. */
void kvt_link_fail(kvt_link *l, status s, const char *why) {
    if (l->state == LINK_DEAD) return;
    l->state = LINK_DEAD;
    l->node->links_dead = true;
    metric_add(&links_open, -1);
    if (l->stream) l->node->transport->close(l->stream);
    if (l->direct) l->out = NULL; /* was the stream's */
    l->direct = false;
    l->run_at = l->runs = 0;
    l->gathered = NULL;
    l->stream = NULL;
    if (l->outgoing)
        kvt_send_link_lost(l, s, why);
    else
        kvt_receive_link_lost(l);
}

void kvt_link_destroy(kvt_link *l) {
    assert(l->state == LINK_DEAD && !l->sends);
    l->node->links[l->slot] = NULL;
    mem_free(l->body);
    mem_free(l->out);
    mem_free(l);
}

/* Bytes the peer's host acknowledged are progress even when the socket takes no new ones: a slow link
 * is not a dead one. */
static void look_at_progress(kvt_link *l, int64_t now_ms, int64_t *due_ms) {
    int unsent = l->node->transport->unsent(l->stream);
    if (unsent != l->unsent) l->progress_ms = now_ms;
    l->unsent = unsent;
    if (now_ms + KVT_LOOK_MS < *due_ms) *due_ms = now_ms + KVT_LOOK_MS;
}

void kvt_link_tick(kvt_link *l, int64_t now_ms, int64_t *due_ms) {
    int64_t at = INT64_MAX;
    char why[KVT_ADDRESS_MAX + 60];
    if (l->state == LINK_CONNECTING || l->state == LINK_HELLO) at = l->deadline_ms;
    else if (l->outgoing && !l->sends) at = l->progress_ms + KVT_IDLE_MS;
    else if (l->outgoing) look_at_progress(l, now_ms, due_ms);
    if (now_ms >= at) {
        snprintf(why, sizeof why, "%s over %s: %s", l->address, l->node->transport->name,
                 l->state == LINK_CONNECTING ? "no connection within 2 s"
                 : l->state == LINK_HELLO    ? "no HELLO within 2 s"
                                             : "idle");
        kvt_link_fail(l, ST_PEER_LOST, why);
    } else if (at < *due_ms) {
        *due_ms = at;
    }
}

/* ---- out ------------------------------------------------------------------------------------- */

static bool unwritten(const kvt_link *l) {
    return l->run_at < l->runs || l->control_sent < l->control_bytes;
}

void kvt_link_arm(kvt_link *l) {
    bool want = l->state == LINK_CONNECTING || unwritten(l) ||
                (l->state == LINK_READY && l->ready_head);
    if (l->state == LINK_DEAD || !l->stream || want == l->wants_write) return;
    l->wants_write = want;
    if (l->node->transport->ready) return; /* the loop asks the stream itself */
    struct epoll_event ev = {.events = want ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = l};
    epoll_ctl(l->node->epoll_fd, EPOLL_CTL_MOD, l->stream->fd, &ev);
}

/* A frame that was staged in the transport's memory leaves whole. */
static ssize_t commit(kvt_link *l) {
    size_t bytes = l->run[0].iov_len;
    l->node->transport->commit(l->stream, bytes);
    l->out = NULL;
    l->direct = false;
    l->runs = 0;
    l->progress_ms = l->node->now_ms;
    return (ssize_t)bytes;
}

/* So many bytes of the staged frame have left; how many of n were others'. */
static size_t frame_left(kvt_link *l, size_t n) {
    for (; l->run_at < l->runs && n >= l->run[l->run_at].iov_len; l->run_at++) n -= l->run[l->run_at].iov_len;
    if (l->run_at == l->runs) {
        l->run_at = l->runs = 0;
        l->gathered = NULL;
        return n;
    }
    struct iovec *at = &l->run[l->run_at];
    *at = (struct iovec){(char *)at->iov_base + n, at->iov_len - n};
    return 0;
}

void kvt_link_keep(kvt_link *l) {
    unsigned char *kept = mem_alloc(KVT_FRAME_BYTES + KVT_PAYLOAD_MAX); /* of runs: not sealed */
    l->gathered = NULL;
    if (!kept) {
        kvt_link_fail(l, ST_NO_MEMORY, "no memory for the rest of a frame");
        return;
    }
    size_t bytes = 0;
    for (int i = l->run_at; i < l->runs; bytes += l->run[i++].iov_len)
        memcpy(kept + bytes, l->run[i].iov_base, l->run[i].iov_len);
    mem_free(l->out);
    l->out = kept;
    l->run[0] = (struct iovec){kept, bytes};
    l->run_at = 0;
    l->runs = 1;
}

/* Bytes written by one call: -1 the link is dead, 0 the socket is full. */
static ssize_t write_once(kvt_link *l) {
    if (l->direct) return commit(l);
    int count = l->runs - l->run_at;
    if (l->control_sent < l->control_bytes)
        l->run[l->run_at + count++] = (struct iovec){l->control + l->control_sent, l->control_bytes - l->control_sent};
    ssize_t n = !l->stream ? 0 : l->node->transport->write(l->stream, l->run + l->run_at, count);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) n = 0;
    if (n < 0) {
        char why[KVT_ADDRESS_MAX + 100];
        snprintf(why, sizeof why, "write to %s: %s", l->address, strerror(errno));
        kvt_link_fail(l, ST_PEER_LOST, why);
        return -1;
    }
    l->control_sent += frame_left(l, (size_t)n);
    if (l->control_sent == l->control_bytes) l->control_sent = l->control_bytes = 0;
    if (n) l->progress_ms = l->node->now_ms;
    return n;
}

/* Writes what is staged, staging more while the socket takes it. */
static void flush(kvt_link *l, bool stage) {
    for (size_t turn = 0; turn < TURN_BYTES;) {
        if (!unwritten(l) && !(stage && l->state == LINK_READY && kvt_send_fill(l))) break;
        if (l->state == LINK_DEAD) return;
        ssize_t n = write_once(l);
        if (n <= 0) break;
        turn += (size_t)n;
    }
    kvt_link_arm(l);
}

/* Room for bytes of control, writing old ones out if it must. NULL: the link is dead. */
static unsigned char *control_room(kvt_link *l, size_t bytes) {
    if (l->state == LINK_DEAD) return NULL;
    if (KVT_CONTROL_BYTES - l->control_bytes < bytes) flush(l, false);
    if (l->state == LINK_DEAD) return NULL;
    if (KVT_CONTROL_BYTES - l->control_bytes < bytes) {
        kvt_link_fail(l, ST_PEER_LOST, "peer does not read its answers");
        return NULL;
    }
    l->control_bytes += bytes;
    return l->control + l->control_bytes - bytes;
}

void kvt_link_say(kvt_link *l, kvt_frame *f, kvt_sealing *by) {
    unsigned char *at = control_room(l, KVT_FRAME_BYTES + (by ? KVT_SEAL_BYTES : 0));
    if (!at) return;
    if (by) kvt_seal(l->node->cipher, by, f, at);
    else kvt_frame_encode(f, at);
    kvt_link_arm(l);
}

static void say_hello(kvt_link *l) {
    const char *pairing = l->node->pairing;
    uint32_t bytes = (uint32_t)strlen(pairing);
    unsigned char *at = control_room(l, KVT_FRAME_BYTES + bytes);
    if (!at) return;
    kvt_frame_encode(&(kvt_frame){.kind = KVT_HELLO, .payload_bytes = bytes,
                                  .payload_crc = kvt_crc32c(0, pairing, bytes)}, at);
    memcpy(at + KVT_FRAME_BYTES, pairing, bytes);
    flush(l, false);
}

/* ---- in -------------------------------------------------------------------------------------- */

/* A stream that makes no sense cannot be followed any further. */
static void refuse_stream(kvt_link *l, const char *why) {
    kvt_receive_count_header();
    log_write(LOG_WARN, NULL, "kv.link", "closed: %s", why);
    kvt_link_fail(l, ST_PEER_LOST, why);
}

/* The connecting side has said nothing but HELLO yet, so a close here is never a reset and our own
 * HELLO arrives: both sides can name both pairings. */
static void hello_taken(kvt_link *l) {
    l->pairing[l->frame.payload_bytes] = 0;
    if (!l->outgoing) say_hello(l);
    if (l->state == LINK_DEAD) return;
    if (strlen(l->pairing) != l->frame.payload_bytes || strcmp(l->pairing, l->node->pairing)) {
        char why[2 * KVT_PAIRING_MAX + 60];
        snprintf(why, sizeof why, "pairing differs: ours is \"%s\", the peer's \"%s\"",
                 l->node->pairing, l->pairing);
        log_write(LOG_WARN, NULL, "kv.link", "refused: %s", why);
        kvt_link_fail(l, ST_REFUSED, why);
        return;
    }
    l->state = LINK_READY;
    if (l->outgoing) kvt_send_link_ready(l);
}

static void payload_taken(kvt_link *l, void *payload) {
    l->expects = EXPECT_HEADER;
    l->got = 0;
    if (!l->frame.sealed && l->crc != l->frame.payload_crc) {
        if (l->frame.kind == KVT_DATA)
            kvt_receive_corrupt(l, &l->frame);
        else
            refuse_stream(l, "CRC of HELLO differs");
        return;
    }
    if (l->frame.kind == KVT_HELLO) hello_taken(l);
    else kvt_receive_frame(l, &l->frame, payload);
}

/* Payload is read only for a box that a promise wants; the buffer is made for the first of them. */
static void expect_data(kvt_link *l) {
    l->expects = kvt_receive_check(l, &l->frame) == KVT_TAKE ? EXPECT_PAYLOAD : EXPECT_REFUSED;
    if (l->state == LINK_DEAD || l->expects == EXPECT_REFUSED || l->body || l->node->transport->view) return;
    l->body = mem_alloc(KVT_PAYLOAD_MAX);
    if (!l->body) {
        log_write(LOG_WARN, NULL, "kv.link", "closed: no memory for a payload buffer");
        kvt_link_fail(l, ST_NO_MEMORY, "no memory for a payload buffer");
    }
}

/* Which frames may come: HELLO first and only once; DATA, END and ABORT from who connected to us; ACK
 * from whom we connected to. */
static bool in_place(const kvt_link *l, kvt_frame_kind kind) {
    if (l->state == LINK_HELLO) return kind == KVT_HELLO;
    if (kind == KVT_HELLO) return false;
    return l->outgoing == (kind == KVT_ACK);
}

/* Header, and seal if it has one, are there. */
static void frame_begun(kvt_link *l) {
    l->expects = EXPECT_HEADER;
    l->got = 0;
    if (l->frame.kind == KVT_DATA) expect_data(l);
    else kvt_receive_frame(l, &l->frame, NULL);
}

static void header_taken(kvt_link *l) {
    error why;
    l->got = 0;
    l->crc = 0;
    if (kvt_frame_decode(l->header, &l->frame, &why)) {
        refuse_stream(l, why.text);
        return;
    }
    metric_add(&received_frames, 1);
    if (!in_place(l, l->frame.kind)) {
        refuse_stream(l, l->state == LINK_HELLO ? "first frame is no HELLO" : "frame out of place");
    } else if (l->frame.kind == KVT_HELLO) {
        l->expects = EXPECT_PAYLOAD;
        if (!l->frame.payload_bytes) payload_taken(l, NULL);
    } else if (l->frame.kind == KVT_ACK) {
        kvt_send_acked(l, &l->frame);
    } else if (l->frame.sealed) {
        l->expects = EXPECT_SEAL;
    } else {
        frame_begun(l);
    }
}

size_t kvt_link_want(kvt_link *l, void **into) {
    if (l->expects == EXPECT_HEADER) {
        *into = l->header + l->got;
        return KVT_FRAME_BYTES - l->got;
    }
    if (l->expects == EXPECT_SEAL) {
        *into = l->seal + l->got;
        return KVT_SEAL_BYTES - l->got;
    }
    uint32_t left = l->frame.payload_bytes - l->got;
    if (l->expects == EXPECT_REFUSED) {
        *into = l->node->scratch;
        return left < KVT_SCRATCH_BYTES ? left : KVT_SCRATCH_BYTES;
    }
    *into = l->frame.kind == KVT_HELLO ? (unsigned char *)l->pairing + l->got : l->body + l->got;
    return left;
}

void kvt_link_took(kvt_link *l, size_t n) {
    void *at;
    assert(n <= kvt_link_want(l, &at));
    kvt_link_want(l, &at);
    l->got += (uint32_t)n;
    if (l->expects == EXPECT_HEADER) {
        if (l->got == KVT_FRAME_BYTES) header_taken(l);
        return;
    }
    if (l->expects == EXPECT_SEAL) {
        if (l->got == KVT_SEAL_BYTES) frame_begun(l);
        return;
    }
    if (l->expects == EXPECT_PAYLOAD && !l->frame.sealed) l->crc = kvt_crc32c(l->crc, at, n);
    if (l->got < l->frame.payload_bytes) return;
    if (l->expects == EXPECT_PAYLOAD) {
        payload_taken(l, l->body);
    } else {
        l->expects = EXPECT_HEADER;
        l->got = 0;
    }
}

/* A box as it lies in the transport's memory. Its sender may change it after the CRC: then it spoils rows of
 * its own ticket, which it could have sent so in the first place. */
static ssize_t land_view(kvt_link *l) {
    const kvt_transport *t = l->node->transport;
    uint32_t bytes = l->frame.payload_bytes;
    const unsigned char *payload = t->view(l->stream, bytes);
    if (!payload) return errno ? -1 : 0;
    l->crc = kvt_crc32c(0, payload, bytes);
    assert(!l->frame.sealed); /* no promise of such a transport has a key */
    payload_taken(l, (void *)(uintptr_t)payload);
    if (l->state != LINK_DEAD) t->consume(l->stream, bytes);
    return bytes;
}

/* Reads into what is expected: -1: errno, 0: closed. */
static ssize_t read_once(kvt_link *l) {
    void *into;
    if (l->expects == EXPECT_PAYLOAD && l->frame.kind == KVT_DATA && l->node->transport->view)
        return land_view(l);
    size_t room = kvt_link_want(l, &into);
    ssize_t n = l->node->transport->read(l->stream, into, room);
    if (n > 0) kvt_link_took(l, (size_t)n);
    return n;
}

static void read_some(kvt_link *l) {
    for (size_t turn = 0; turn < TURN_BYTES && l->state != LINK_DEAD;) {
        ssize_t n = read_once(l);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
        if (n <= 0) {
            char why[KVT_ADDRESS_MAX + 100];
            snprintf(why, sizeof why, "%s closed the link%s%s", l->outgoing ? l->address : "peer",
                     n ? ": " : "", n ? strerror(errno) : "");
            kvt_link_fail(l, ST_PEER_LOST, why);
            return;
        }
        turn += (size_t)n;
    }
}

/* Bytes of a frame are of no use before the rest of it is there. */
static void read_turn(kvt_link *l) {
    void *into;
    read_some(l);
    if (l->state != LINK_DEAD && l->node->transport->expect)
        l->node->transport->expect(l->stream, kvt_link_want(l, &into));
}

static void connected(kvt_link *l) {
    int failed = l->node->transport->connected(l->stream);
    if (failed) {
        char why[KVT_ADDRESS_MAX + 100];
        snprintf(why, sizeof why, "connect to %s over %s: %s", l->address, l->node->transport->name,
                 strerror(failed));
        kvt_link_fail(l, ST_PEER_LOST, why);
        return;
    }
    l->state = LINK_HELLO;
    l->deadline_ms = l->node->now_ms + KVT_CONNECT_MS;
    kvt_node_due(l->node, l->deadline_ms);
    say_hello(l);
}

void kvt_link_event(kvt_link *l, uint32_t events) {
    if (l->state == LINK_DEAD) return; /* since this batch of events was fetched */
    if (l->state == LINK_CONNECTING) {
        connected(l);
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) read_turn(l);
    if (l->state != LINK_DEAD && (events & EPOLLOUT)) flush(l, true);
}
