/* kvtransfer.h -- move KV pages from one node's memory into another's.
 *
 * It neither allocates pages nor looks inside them. The receiver promises room for one ticket; the
 * sender names ticket, epoch and a box of (layers x kv heads x tokens), never an address; the receiver
 * checks the box against that ticket's own promise and hands it to its sink, which decides where it
 * goes. The wire format is the table at the head of kvtransfer/frame.c, the life of a promise the
 * picture at the head of kvtransfer/promise.c.
 *
 * Threads: kvt_node owns one thread; every callback runs on it, one at a time, and must not block.
 * Functions of kvt_node may be called from any thread unless they say otherwise. */
#ifndef BATON_KVTRANSFER_H
#define BATON_KVTRANSFER_H

#include "base/base.h"
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- frame ----------------------------------------------------------------------------------- */

enum { KVT_VERSION = 2, KVT_FRAME_BYTES = 64, KVT_PAYLOAD_MAX = 1 << 20, KVT_PAIRING_MAX = 255, KVT_RUNS_MAX = 256 };
enum { KVT_SALT_BYTES = 8, KVT_TAG_BYTES = 16, KVT_SEAL_BYTES = KVT_SALT_BYTES + KVT_TAG_BYTES };

typedef enum kvt_frame_kind {
    KVT_HELLO = 1,               /* first frame of a link, both ways: version, pairing text */
    KVT_DATA = 2,                /* a box of KV */
    KVT_END = 3,                 /* sender: everything of this ticket's heads was sent */
    KVT_ABORT = 4,               /* sender: nothing more of this ticket will come */
    KVT_ACK = 5,                 /* receiver: END or ABORT taken, or refused; code says which */
} kvt_frame_kind;

/* Decoded header. Numbers were checked for syntax only, not against any promise. */
typedef struct kvt_frame {
    kvt_frame_kind kind;
    uint64_t ticket;
    uint32_t epoch;
    uint32_t layer_first, layers;
    uint32_t head_first, heads;
    uint32_t token_first, tokens;
    uint32_t type;               /* element type, opaque here */
    uint32_t code;               /* ABORT, ACK: status */
    uint32_t payload_bytes;
    uint32_t payload_crc;        /* CRC32C; 0: sealed */
    bool sealed;                 /* KVT_SEAL_BYTES of seal stand between header and payload */
    uint32_t number;             /* sealed: of the send's frames, from 0 */
} kvt_frame;

void kvt_frame_encode(const kvt_frame *f, unsigned char out[KVT_FRAME_BYTES]);
/* ST_CORRUPT with magic, version, kind, length or header CRC named. */
status kvt_frame_decode(const unsigned char in[KVT_FRAME_BYTES], kvt_frame *out, error *err);
uint32_t kvt_crc32c(uint32_t crc, const void *data, size_t bytes);   /* start with 0 */

/* ---- promise: what a receiver has agreed to take (pure; the simulator drives it too) --------- */

/* Heads are numbered over the whole model. A node of several ranks (tensor parallelism) has a kvt_node in
 * each: a rank promises the heads it wants, a rank that sends names those it has, and a promise may be
 * kept by several senders, each with heads of its own. */
typedef struct kvt_geometry {
    uint32_t layers;
    uint32_t head_first, heads;  /* what a complete token has; of a send: its part of that */
    uint32_t row_bytes;          /* of one (layer, K or V, head, token): of h elements */
    uint32_t type;
} kvt_geometry;

typedef struct kvt_promises kvt_promises;

/* What became of a frame. */
typedef enum kvt_verdict {
    KVT_TAKE,                    /* land it */
    KVT_DONE,                    /* END of the last heads: everything of the promise has landed */
    KVT_PART,                    /* END, its heads have landed, the END of other heads is still to come */
    KVT_SHORT,                   /* END, but rows of its heads are missing: ends ST_CORRUPT on both sides */
    KVT_ABORTED,                 /* ABORT taken */
    KVT_DUPLICATE,               /* box (or part of it) has landed already: drop it */
    KVT_REFUSE_TICKET,           /* nobody promised this: ST_PEER_STALE */
    KVT_REFUSE_EPOCH,            /* another epoch: ST_PEER_STALE */
    KVT_REFUSE_BOUNDS,           /* outside the promise; an END: none of its heads */
    KVT_REFUSE_TYPE,             /* other element type or payload size */
    KVT_REFUSE_SEALING,          /* sealed, and the promise is not, or the reverse: ST_REFUSED; receive.c's, as are: */
    KVT_REFUSE_TAG,              /* sealed with another key, or changed on its way: closes the link */
    KVT_REFUSE_REPLAY,           /* sealed, and it or one behind it was here before: closes the link */
    KVT_VERDICTS
} kvt_verdict;

const char *kvt_verdict_name(kvt_verdict v);

kvt_promises *kvt_promises_create(int count_max);
void kvt_promises_destroy(kvt_promises *p);
/* Room for tokens [token_first, token_end) of every layer and of heads [head_first, head_first + heads). The
 * lease ends at now_ms + lease_ms unless a frame that lands renews it. ST_AGAIN: table full. ST_BAD_INPUT: a
 * geometry or range that cannot be, or the ticket is still promised (whatever its epoch): remove the old
 * promise first, then the newer epoch's may be added at once. */
status kvt_promises_add(kvt_promises *p, uint64_t ticket, uint32_t epoch, const kvt_geometry *g,
                        uint32_t token_first, uint32_t token_end, uint32_t lease_ms, int64_t now_ms,
                        void *owner);
/* Judges a DATA, END or ABORT frame and changes nothing. *owner is set for every verdict about a known
 * ticket of the right epoch, NULL otherwise. */
kvt_verdict kvt_promises_check(const kvt_promises *p, const kvt_frame *f, void **owner);
/* Judges alike; on KVT_TAKE the box counts as landed from here on and the lease is renewed, on KVT_PART the
 * heads count as ended. Nothing is removed: on KVT_DONE, KVT_SHORT and KVT_ABORTED the caller removes the promise. */
kvt_verdict kvt_promises_judge(kvt_promises *p, const kvt_frame *f, int64_t now_ms, void **owner);
/* Who was given to kvt_promises_add for this ticket; NULL: unknown. */
void *kvt_promises_owner(const kvt_promises *p, uint64_t ticket);
/* Tokens from token_first on of which every layer and head of the promise has landed: readable prefix. */
uint32_t kvt_promises_landed(const kvt_promises *p, uint64_t ticket);
/* Ends a promise; frames for it are refused from now on. false: unknown. */
bool kvt_promises_remove(kvt_promises *p, uint64_t ticket);
/* Removes one promise whose lease ended by now and gives its owner and what kvt_promises_landed() was;
 * false: none. */
bool kvt_promises_expire(kvt_promises *p, int64_t now_ms, uint64_t *ticket, void **owner,
                         uint32_t *landed);
/* No lease ends before this; INT64_MAX: no promise. */
int64_t kvt_promises_next_expiry(const kvt_promises *p);
int kvt_promises_count(const kvt_promises *p);

/* ---- node: one process's end of every link --------------------------------------------------- */

typedef struct kvt_node kvt_node;

typedef struct kvt_options {
    const char *listen;          /* "host:port", port 0: any; NULL: only sends */
    const char *pairing;         /* both ends must say the same (digest, numerics) in HELLO; at most
                                    KVT_PAIRING_MAX bytes; NULL: "" */
    const char *transport;       /* a name of kvt_transports (transport.c), NULL: the first; an unknown
                                    one is refused with the known ones. Both ends need the same: a peer
                                    that comes by another is refused */
    int promises_max;            /* 0: 4096 */
} kvt_options;

status kvt_node_open(const kvt_options *o, kvt_node **out, error *err);
const char *kvt_node_address(const kvt_node *n);     /* "host:port" as bound; "" when it only sends */
/* Whether its frames may leave the machine: then they can be sealed. */
bool kvt_node_leaves_machine(const kvt_node *n);
/* Ends the thread; every open promise and send has been told ST_CANCELED before it returns. A kvt_send
 * that was not closed still may be, and must be, afterwards. No other call on the node or its sends may
 * run meanwhile; not from a callback. */
void kvt_node_close(kvt_node *n);

/* ---- sealing: kvtransfer/seal.c -------------------------------------------------------------------------- */

enum { KVT_KEY_BYTES = 32 };     /* AES-256 */

/* Of one ticket. false: there is no randomness to be had. */
bool kvt_key_make(unsigned char key[KVT_KEY_BYTES]);
/* Keys are overwritten where they end. NULL is fine. */
void kvt_key_wipe(void *key, size_t bytes);

/* Receiving side. All three callbacks on the node's thread. */
typedef struct kvt_sink {
    /* A checked box: copy it into place now. box->payload_bytes bytes, canonical order, any alignment. */
    void (*land)(void *ctx, const kvt_frame *box, const void *payload);
    /* Once per promise, last call for it. After this no byte of this ticket can land: the fence.
     * ST_OK: everything landed, and every sender has said END. ST_PEER_LOST (a link that carried rows, before
     * its END) / ST_CORRUPT (payload damaged, or END came with rows missing) / ST_CANCELED (one sender
     * aborted, or revoked) / ST_DEADLINE (lease ended): the first
     * `landed` tokens from token_first are whole all the same. */
    void (*ended)(void *ctx, status s, uint32_t landed);
} kvt_sink;

/* Promises room. sink and ctx are borrowed until ended() was called. key: only frames sealed with it land; copied.
 * NULL: only frames that are not sealed. Errors: kvt_promises_add's, ST_CANCELED when the node is closing,
 * ST_UNSUPPORTED for a key where frames stay on the machine; ended() is not called then. */
status kvt_promise(kvt_node *n, uint64_t ticket, uint32_t epoch, const kvt_geometry *g,
                   uint32_t token_first, uint32_t token_end, uint32_t lease_ms, const unsigned char *key,
                   const kvt_sink *sink, void *ctx);
/* Asks to end a promise; ended(ST_CANCELED) tells when the fence stands. Frames are refused and the
 * ticket may be promised anew (newer epoch) from the return on. Unknown tickets: nothing. */
void kvt_revoke(kvt_node *n, uint64_t ticket);

/* Sending side: one kvt_send is one ticket's pages on their way to one address. The handle is the caller's until
 * kvt_send_close(): ended() may come at any moment on the node's thread, and pushing to, ending or
 * aborting a send that has ended does nothing. */
typedef struct kvt_send kvt_send;

typedef struct kvt_source {
    /* Fill out with the box's elements in canonical order, any alignment. The rows were pushed, so they are
     * final. */
    void (*pack)(void *ctx, const kvt_frame *box, void *out);
    /* NULL, or the same without a copy, for transports that read memory where it is: at most KVT_RUNS_MAX runs of
     * memory that are the box's elements in canonical order, together payload_bytes; how many is returned, 0: pack().
     * Elements that lie otherwise are packed into scratch (payload_bytes of room) and a run points there. The rest of
     * the runs is read until ended(). */
    int (*runs)(void *ctx, const kvt_frame *box, void *scratch, struct iovec *out);
    /* Once, last call: ST_OK the receiver has all rows of the send's heads; otherwise why not (ST_PEER_LOST,
     * ST_PEER_STALE the receiver knows this ticket no more, ST_REFUSED pairing differs, or one end seals and the
     * other does not, ST_BAD_INPUT outside
     * the promise, ST_CORRUPT it misses rows, ST_CANCELED, ST_DEADLINE, ST_NO_MEMORY). Pages may be unpinned
     * from here on. bytes and wire_us: payload sent, time from first push. why: a sentence, borrowed. */
    void (*ended)(void *ctx, status s, uint64_t bytes, int64_t wire_us, const char *why);
} kvt_source;

/* g names the heads that this send brings, some or all of the promise's. One send a ticket and address.
 * Links to one address ("host:port") are pooled and shared. timeout_ms: rows pushed, or an END, and no
 * progress for so long ends the send with ST_DEADLINE. source and ctx borrowed until ended(). A host
 * name is looked up here, on the caller's thread; ST_BAD_INPUT: the address cannot be. key: as of kvt_promise(). */
status kvt_send_open(kvt_node *n, const char *address, uint64_t ticket, uint32_t epoch,
                     const kvt_geometry *g, uint32_t timeout_ms, const unsigned char *key,
                     const kvt_source *source, void *ctx, kvt_send **out);
/* Rows [token_first, token_first + tokens) are final in every layer: they may leave. Never blocks. */
void kvt_send_push(kvt_send *s, uint32_t token_first, uint32_t tokens);
void kvt_send_end(kvt_send *s);                      /* no more pushes; ended() comes with the ACK */
void kvt_send_abort(kvt_send *s);                    /* ended(ST_CANCELED) comes, if nothing came yet */
/* The caller's last word on s, before ended() (aborts it), in it, or after; the node frees s then. */
void kvt_send_close(kvt_send *s);

#ifdef __cplusplus
}
#endif
#endif
