/* internal.h -- what the files of kvtransfer/ share: the node, its links, its sends, its receipts.
 *
 *   node.c       the thread: loop, timers, opening and closing       owns kvt_node
 *   link.c       one connection: bytes in, bytes out, HELLO           owns kvt_link
 *   receive.c    promises kept: judge, land, end                      owns kvt_receipt
 *   send.c       rows cut into frames, ended by ACK                   owns kvt_send
 *   seal.c       frames sealed and opened                             owns kvt_cipher
 *   transport.c  how bytes get to another process: tcp.c, shm.c, ucx.c
 *
 * Two domains, and no third:
 *   - what is marked [lock] is shared by all threads under node->lock;
 *   - everything else is touched by the node's thread only.
 * The lock is never held over a callback or a system call that may wait, so callbacks may call any
 * public function but kvt_node_close(). */
#ifndef KVTRANSFER_INTERNAL_H
#define KVTRANSFER_INTERNAL_H

#include "kvtransfer/kvtransfer.h"
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum {
    KVT_LINKS_MAX = 256,         /* both directions; more are refused */
    KVT_CONTROL_BYTES = 1 << 14, /* HELLO, END, ABORT, ACK waiting to be written on one link */
    KVT_SCRATCH_BYTES = 1 << 16, /* refused payload is read into here, piece by piece */
    KVT_ADDRESS_MAX = 300,       /* "host:port" as text */
    KVT_CONNECT_MS = 2000,       /* connect and HELLO, each */
    KVT_IDLE_MS = 30000,         /* a link nothing is sent on */
    KVT_LOOK_MS = 250,           /* how often a busy link is asked what its peer acknowledged */
    KVT_STALL_MS = 10000,        /* TCP gives a peer up that acknowledges nothing for so long */
    KVT_SENDERS_MAX = 32,        /* that seal for one promise; there are as many as the other node has ranks */
};

typedef struct kvt_link kvt_link;

typedef struct kvt_address {
    struct sockaddr_storage sa;
    socklen_t bytes;
} kvt_address;

/* ---- transport.c, tcp.c, shm.c, ucx.c: one row a transport ----------------------------------------
 *
 * Each gives a stream of bytes with a descriptor that never blocks and that epoll reports while read() has
 * bytes (read() is not called to the end at every turn). A transport whose bytes epoll cannot see has
 * ready(): its descriptor then only has to wake the loop. errno is as of sockets. A peer that vanished is the
 * transport's to notice, within KVT_STALL_MS: nothing else ends a link that is only listened to.
 * resolve() is called on the engine's thread: addresses, no lookups.
 *
 * A transport whose streams share something (a descriptor, queues, memory) has a context, one a node; its streams
 * then need no descriptor of their own.
 *
 * A transport that is memory may offer it (all four of reserve, commit, view, consume, or none): frames are
 * then packed into it and landed from it, without a copy between. */

typedef struct kvt_context {
    int fd;                      /* what epoll waits for; the transport's own fields follow */
} kvt_context;

typedef struct kvt_stream {
    int fd;                      /* what epoll waits for, -1: the context's; the transport's own fields follow */
} kvt_stream;

typedef struct kvt_transport {
    const char *name;
    bool stays;                  /* its bytes never leave the machine, so they are not sealed */
    uint32_t frame_bytes;        /* what DATA frames are cut to; one token of one layer may be more */
    status (*load)(error *err);  /* NULL: always there. Else ST_UNSUPPORTED says what this machine lacks */
    /* NULL: no context, listen() and connect() are given NULL. Else all four, and ready(). */
    status (*context_create)(const char *listen, kvt_context **out, error *err);       /* listen: as of kvt_options */
    void (*context_destroy)(kvt_context *c);          /* every stream has been closed; last words may take a moment */
    /* Moves what waits to be moved; called before streams are asked whether they are ready. Returns when it has to be
     * called again at the latest; INT64_MAX: when its descriptor says so. */
    int64_t (*context_turn)(kvt_context *c, int64_t now_ms);
    bool (*context_sleep)(kvt_context *c);            /* false: more has come, do not sleep; else fd will tell */

    status (*resolve)(const char *text, kvt_address *out, error *err);
    /* Listens and writes the address as bound. */
    status (*listen)(kvt_context *c, const char *text, kvt_stream **out, char bound[KVT_ADDRESS_MAX], error *err);
    kvt_stream *(*accept)(kvt_stream *listener);      /* NULL: errno says why */
    kvt_stream *(*connect)(kvt_context *c, const kvt_address *to);      /* on its way; NULL: errno */
    int (*connected)(kvt_stream *s);                  /* 0, or the errno of the attempt */
    void (*close)(kvt_stream *s);                     /* a listener too */
    ssize_t (*read)(kvt_stream *s, void *out, size_t bytes);     /* 0: closed; -1: errno */
    ssize_t (*write)(kvt_stream *s, const struct iovec *iov, int count);
    /* NULL, or: until so many bytes are there, read() has no use; the descriptor may stay silent before. */
    void (*expect)(kvt_stream *s, size_t bytes);
    int (*unsent)(kvt_stream *s);        /* written bytes the peer's host has not taken; -1: unknown */

    /* NULL: epoll tells. Else asked before every sleep: which of EPOLLIN and EPOLLOUT (want) hold now; when
     * none does, the descriptor will become readable as soon as one may. Of a listener without a descriptor too. */
    uint32_t (*ready)(kvt_stream *s, uint32_t want);
    unsigned char *(*reserve)(kvt_stream *s, size_t bytes);      /* room for so many; NULL: errno */
    void (*commit)(kvt_stream *s, size_t bytes);                 /* that much of it is filled: it leaves */
    /* The next bytes of the stream in one piece, NULL: errno as read()'s, 0: closed. The peer may still
     * change them: what must not change between two looks is copied. */
    const unsigned char *(*view)(kvt_stream *s, size_t bytes);
    void (*consume)(kvt_stream *s, size_t bytes);
} kvt_transport;

extern const kvt_transport kvt_tcp, kvt_shm, kvt_ucx;      /* ucx: where it was built */
extern const kvt_transport *const kvt_transports[];
extern const int kvt_transports_count;
/* NULL: the default. ST_UNSUPPORTED lists the known names, or says what the transport lacks. */
status kvt_transport_find(const char *name, const kvt_transport **out, error *err);
/* What other transports need of tcp.c, for addresses that are host:port: resolve(); as text; of this machine. */
status kvt_tcp_resolve(const char *text, kvt_address *out, error *err);
bool kvt_tcp_name(const kvt_address *at, char out[KVT_ADDRESS_MAX]);
bool kvt_tcp_is_loopback(const kvt_address *at);
/* A TCP socket bound to text, not listening. reuse: also while old connections of that port fade out. */
status kvt_tcp_bind(const char *text, bool reuse, int *out, char bound[KVT_ADDRESS_MAX], error *err);

/* ---- seal.c ---------------------------------------------------------------------------------- */

typedef struct kvt_cipher kvt_cipher;

/* How one send seals: its frames take number after number. */
typedef struct kvt_sealing {
    unsigned char key[KVT_KEY_BYTES], salt[KVT_SALT_BYTES];
    uint32_t number;                      /* the next one */
} kvt_sealing;

/* NULL: no memory. */
kvt_cipher *kvt_cipher_create(void);
void kvt_cipher_destroy(kvt_cipher *c);   /* NULL is fine */
bool kvt_sealing_begin(kvt_sealing *s, const unsigned char *key);    /* false: no randomness */
/* at: room for header and seal, then f's payload, which is encrypted where it lies. Numbers f. */
void kvt_seal(kvt_cipher *c, kvt_sealing *s, kvt_frame *f, unsigned char *at);
/* Decrypts the payload where it lies. false: the tag is not that of this key, header, salt and payload; then what
 * lies there is worth nothing. */
bool kvt_unseal(kvt_cipher *c, const unsigned char key[KVT_KEY_BYTES], const kvt_frame *f,
                const unsigned char header[KVT_FRAME_BYTES], const unsigned char seal[KVT_SEAL_BYTES], void *payload);

/* ---- receipt: the node's half of one promise ------------------------------------------------- */

/* One that seals for a promise. */
typedef struct kvt_sender {
    unsigned char salt[KVT_SALT_BYTES];
    uint64_t next;                        /* no frame below this number is taken any more */
} kvt_sender;

/* Born in kvt_promise(), ends on the node's thread right after sink->ended(). */
typedef struct kvt_receipt {
    struct kvt_receipt *next, *prev;      /* [lock] node->receipts or node->revoked */
    uint64_t ticket;
    const kvt_sink *sink;
    void *ctx;
    bool revoked;                         /* [lock] no longer in the table; ended() is owed */
    uint32_t landed;                      /* [lock] when it was revoked */
    uint64_t links[KVT_LINKS_MAX / 64];   /* slots of the links that carried its rows and not yet an END */
    bool sealed;
    unsigned char key[KVT_KEY_BYTES];
    kvt_sender senders[KVT_SENDERS_MAX];  /* whose frames had the right tag */
    int senders_count;
} kvt_receipt;

/* ---- send: one ticket's pages on their way --------------------------------------------------- */

typedef struct kvt_range {
    uint32_t first, end;
} kvt_range;

/* Born in kvt_send_open(); freed when both ended() was called and the caller closed it. */
struct kvt_send {
    kvt_node *node;                       /* NULL: closed before the send was */
    uint64_t ticket;
    uint32_t epoch;
    kvt_geometry g;
    uint32_t timeout_ms;
    const kvt_source *source;
    void *ctx;
    bool sealed;
    kvt_sealing sealing;                  /* node's thread; wiped at its end */
    kvt_address peer;
    char address[KVT_ADDRESS_MAX];

    kvt_send *dirty_next;                 /* [lock] node->dirty */
    bool dirty, closed, ended;            /* [lock] */
    bool end_asked, abort_asked;          /* [lock] */
    bool out_of_memory;                   /* [lock] a push could not be kept */
    kvt_range *ranges;                    /* [lock] pushed, not yet taken */
    size_t ranges_count, ranges_room;     /* [lock] */
    int64_t pushed_us;                    /* [lock] first push */

    kvt_send *next, *prev;                /* node->sends */
    kvt_link *link;                       /* NULL: not begun, or ended */
    kvt_send *ready_next;                 /* link->ready, in the order of their turns */
    bool begun, ready, end_sent;
    kvt_range slab;                       /* tokens being sent, layer by layer */
    uint32_t slab_layer, slab_layers;     /* next layer; layers a frame */
    uint64_t bytes;                       /* payload sent */
    int64_t since_ms;                     /* it began to wait for the link or the ACK */
};

/* ---- link: one connection -------------------------------------------------------------------- */

/*   outgoing  CONNECTING -> HELLO -> READY -> dead
 *   incoming                HELLO -> READY -> dead
 *   CONNECTING -> HELLO  [link.c connected]     HELLO      -> READY  [link.c hello_taken]
 *   any        -> dead   [kvt_link_fail]        dead links are freed at the end of the loop's turn */
typedef enum kvt_link_state { LINK_CONNECTING, LINK_HELLO, LINK_READY, LINK_DEAD } kvt_link_state;

/* What the next bytes of the stream are. */
typedef enum kvt_link_expects { EXPECT_HEADER, EXPECT_SEAL, EXPECT_PAYLOAD, EXPECT_REFUSED } kvt_link_expects;

struct kvt_link {
    kvt_node *node;
    kvt_stream *stream;                   /* NULL: dead, or fed by hand (fuzzing) */
    int slot;                             /* in node->links */
    bool outgoing;
    kvt_link_state state;
    bool wants_write;                     /* waits until the stream takes bytes */
    char address[KVT_ADDRESS_MAX];        /* outgoing: the pool's key */
    int64_t deadline_ms;                  /* of CONNECTING and HELLO */
    int64_t progress_ms;                  /* bytes last left, or were last acknowledged */
    int unsent;                           /* transport->unsent when last looked at */

    kvt_link_expects expects;             /* receiving */
    unsigned char header[KVT_FRAME_BYTES], seal[KVT_SEAL_BYTES];
    kvt_frame frame;
    uint32_t got;                         /* bytes of the current part */
    uint32_t crc;                         /* of the payload so far */
    char pairing[KVT_PAIRING_MAX + 1];    /* the peer's */
    unsigned char *body;                  /* one payload; made for the first promised box, kept; not used
                                             where the transport has a view */
    bool told;                            /* a refusal was answered; the last one was of: */
    uint64_t told_ticket;
    uint32_t told_epoch;

    unsigned char control[KVT_CONTROL_BYTES];
    size_t control_bytes, control_sent;
    unsigned char *out;                   /* one DATA frame, header and payload; made for the first, or
                                             the transport's memory while direct */
    bool direct;                          /* out is the transport's, run[0] the whole frame */
    struct iovec run[KVT_RUNS_MAX + 2];   /* of the staged frame: header, payload; one more for control */
    int runs, run_at;                     /* run_at: the first that has not left whole; it begins where it goes on */
    kvt_send *gathered;                   /* whose pages some of the runs are */
    kvt_send *ready_head, *ready_tail;
    int sends;                            /* that live on this link */
};

/* Fails when every slot is taken or memory is short; then the stream is closed. */
kvt_link *kvt_link_create(kvt_node *n, kvt_stream *stream, bool outgoing, const char *address);
/* A link to address, pooled or new; NULL: why says what went wrong. */
kvt_link *kvt_link_to(kvt_node *n, const char *address, const kvt_address *peer, error *why);
void kvt_link_event(kvt_link *l, uint32_t events);
/* Where the next bytes of the stream belong, and how many fit; then: n of them are there. */
size_t kvt_link_want(kvt_link *l, void **into);
void kvt_link_took(kvt_link *l, size_t n);
/* Queues a frame without payload. A peer that does not read its own answers loses the link. by: seals it; NULL: it
 * is not sealed. */
void kvt_link_say(kvt_link *l, kvt_frame *f, kvt_sealing *by);
/* The staged frame is a copy from here on; no memory: the link ends. */
void kvt_link_keep(kvt_link *l);
void kvt_link_arm(kvt_link *l);           /* tells epoll whether there is something to write */
/* Ends the link and all that hangs on it. */
void kvt_link_fail(kvt_link *l, status s, const char *why);
void kvt_link_destroy(kvt_link *l);       /* a dead one */
void kvt_link_show(void);
/* Fails it when its time is over; otherwise lowers *due_ms to when that will be. */
void kvt_link_tick(kvt_link *l, int64_t now_ms, int64_t *due_ms);

/* ---- receive.c ------------------------------------------------------------------------------- */

kvt_verdict kvt_receive_check(kvt_link *l, const kvt_frame *f);   /* before any payload is read */
/* payload: decrypted in place if it is sealed. */
void kvt_receive_frame(kvt_link *l, const kvt_frame *f, void *payload);
void kvt_receive_corrupt(kvt_link *l, const kvt_frame *f);
void kvt_receive_link_lost(kvt_link *l);
void kvt_receive_expire(kvt_node *n, int64_t now_ms);
void kvt_receive_revoked(kvt_node *n);    /* ended() for what kvt_revoke() took out */
void kvt_receive_close(kvt_node *n);
void kvt_receive_count_header(void);      /* a header that is none */
void kvt_receive_show(void);              /* its metrics are there from now on, as 0 */

/* ---- send.c ---------------------------------------------------------------------------------- */

void kvt_send_dirty(kvt_node *n);         /* what other threads asked for */
void kvt_send_link_ready(kvt_link *l);
bool kvt_send_fill(kvt_link *l);          /* stages the next frame of the next send's turn */
void kvt_send_acked(kvt_link *l, const kvt_frame *ack);
void kvt_send_link_lost(kvt_link *l, status s, const char *why);
void kvt_send_tick(kvt_node *n, int64_t now_ms, int64_t *due_ms);
void kvt_send_close_all(kvt_node *n);
void kvt_send_show(void);

/* ---- node ------------------------------------------------------------------------------------ */

struct kvt_node {
    const kvt_transport *transport;
    kvt_context *context;                 /* NULL: the transport has none */
    char address[KVT_ADDRESS_MAX];
    char pairing[KVT_PAIRING_MAX + 1];
    kvt_stream *listener;                 /* NULL: only sends */
    int epoll_fd, wake_fd;
    bool running;                         /* the thread exists */
    pthread_t thread;
    pthread_mutex_t lock;

    bool closing, woken;                  /* [lock] */
    kvt_promises *promises;               /* [lock] */
    kvt_receipt *receipts, *revoked;      /* [lock] */
    kvt_send *dirty;                      /* [lock] */
    kvt_cipher *cipher;                   /* made [lock] with the first key, used by the node's thread */

    kvt_send *sends;
    kvt_link *links[KVT_LINKS_MAX];
    bool links_dead;                      /* some wait to be freed */
    int64_t now_ms;                       /* of this turn of the loop */
    int64_t due_ms;                       /* no timer of links and sends ends before */
    int64_t accept_again_ms;              /* accept() had no descriptor left; 0: accepting */
    unsigned char *scratch;
};

/* A node with neither thread nor sockets, and its end: kvt_node_open()'s first half, and what a fuzzer
 * hangs a link on. */
kvt_node *kvt_node_create(int promises_max, const char *pairing);
void kvt_node_destroy(kvt_node *n);
void kvt_node_wake(kvt_node *n);          /* [lock] held */
/* [lock] held. Whether a promise or a send with this key (NULL: none) may begin. */
status kvt_node_takes_key(kvt_node *n, const unsigned char *key);
void kvt_node_due(kvt_node *n, int64_t at_ms);

/* One of the ways to compute it, the table first; false: this machine has no such. For tests. */
bool kvt_crc32c_way(int way, uint32_t crc, const void *data, size_t bytes, uint32_t *out);

#endif
