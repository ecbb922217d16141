/* kvt_stream.c -- bytes as the stream of a link that a stranger opened: no socket, the bytes are put
 * where the link wants them, in pieces of the input's choice.
 *
 * The first byte: bit 0 the link has had its HELLO, bit 1 headers' CRCs are repaired on the way, bit 2
 * payloads' too, bit 3 the link is ours (outgoing, with a send on it), bits 4.. how small the pieces
 * are. */
#include "kvtransfer/internal.h"
#include <assert.h>
#include <string.h>
#include <sys/epoll.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { TICKETS = 3, SEALED = 3, TOKENS = 40 }; /* no input has the tag for SEALED's key */
static const kvt_geometry geometry = {.layers = 2, .heads = 2, .row_bytes = 2, .type = 1};
static const unsigned char key[KVT_KEY_BYTES] = {7};
static int ended[TICKETS + 1];

static void land(void *ctx, const kvt_frame *box, const void *payload) {
    assert(box->ticket == (uint64_t)(uintptr_t)ctx && !ended[box->ticket]);
    assert(box->ticket != SEALED && !box->sealed);
    assert(box->token_first + box->tokens <= TOKENS && box->layer_first + box->layers <= 2);
    assert(kvt_crc32c(0, payload, box->payload_bytes) == box->payload_crc);
}

static void told(void *ctx, status s, uint32_t landed) {
    assert((uintptr_t)ctx != SEALED || s != ST_OK);
    assert(++ended[(uintptr_t)ctx] == 1 && landed <= TOKENS && (s != ST_OK || landed == TOKENS));
}

static const kvt_sink sink = {land, told};

static void pack(void *ctx, const kvt_frame *box, void *out) {
    (void)ctx;
    memset(out, 1, box->payload_bytes);
}

static void sent(void *ctx, status s, uint64_t bytes, int64_t wire_us, const char *why) {
    (void)bytes, (void)wire_us;
    assert(++*(int *)ctx == 1 && why);
    assert(s != ST_OK); /* an END never left, so nothing may count as acknowledged */
}

static const kvt_source source = {.pack = pack, .ended = sent};

/* Something for ACKs to hit: one send of ticket 1, epoch 1, its first frame staged. */
static kvt_send *begin_send(kvt_node *n, kvt_link *l, int *told_sender) {
    kvt_send *s;
    status opened =
        kvt_send_open(n, l->address, 1, 1, &geometry, 1000, NULL, &source, told_sender, &s);
    assert(opened == ST_OK);
    kvt_send_push(s, 0, TOKENS);
    kvt_send_end(s);
    kvt_send_dirty(n);
    kvt_link_event(l, EPOLLOUT);
    return s;
}

static void put32(unsigned char *at, uint32_t v) {
    for (int i = 0; i < 4; i++) at[i] = (unsigned char)(v >> 8 * i);
}

/* As if the sender had summed what it sends. */
static void repair(kvt_link *l, unsigned flags, const uint8_t *rest, size_t rest_bytes) {
    unsigned char *h = l->header;
    if (flags & 4) {
        uint32_t length = h[52] | h[53] << 8 | h[54] << 16;
        if (length <= rest_bytes) put32(h + 56, kvt_crc32c(0, rest, length));
    }
    memcpy(h, "BKV1\2", 5);
    h[6] &= 1;
    h[7] = 0;
    put32(h + 60, kvt_crc32c(0, h, 60));
}

static void feed(kvt_link *l, unsigned flags, const uint8_t *data, size_t bytes) {
    size_t piece = flags >> 4 ? flags >> 4 : 1 << 20;
    while (bytes && l->state != LINK_DEAD) {
        void *into;
        size_t n = kvt_link_want(l, &into);
        assert(n);
        if (n > piece) n = piece;
        if (n > bytes) n = bytes;
        memcpy(into, data, n);
        data += n, bytes -= n;
        if ((flags & 2) && l->expects == EXPECT_HEADER && l->got + n == KVT_FRAME_BYTES)
            repair(l, flags, data, bytes);
        kvt_link_took(l, n);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (!bytes) return 0;
    log_setup("fuzz", LOG_ERROR);
    memset(ended, 0, sizeof ended);
    kvt_node *n = kvt_node_create(4, "pair");
    for (uint64_t t = 1; t <= TICKETS; t++)
        kvt_promise(n, t, 1, &geometry, 0, TOKENS, 1000000, t == SEALED ? key : NULL, &sink, (void *)(uintptr_t)t);
    int told_sender = 0;
    bool outgoing = data[0] & 8;
    kvt_link *l = kvt_link_create(n, NULL, outgoing, "127.0.0.1:1");
    l->state = data[0] & 1 ? LINK_READY : LINK_HELLO;
    kvt_send *s = outgoing ? begin_send(n, l, &told_sender) : NULL;
    feed(l, data[0], data + 1, bytes - 1);
    assert(l->control_bytes <= KVT_CONTROL_BYTES);
    kvt_node_destroy(n);
    for (int t = 1; t <= TICKETS; t++) assert(ended[t] == 1);
    assert(told_sender == outgoing);
    if (s) kvt_send_close(s);
    return 0;
}
