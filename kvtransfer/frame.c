/* frame.c -- the 64 bytes in front of everything that travels.
 *
 * All numbers are little endian; a box's numbers are layers, kv heads of the whole model (whatever ranks
 * share them) and token positions of the whole sequence, each counted from 0.
 *
 *   at  bytes  field
 *    0    4    magic "BKV1"
 *    4    1    version         2
 *    5    1    kind            1 HELLO, 2 DATA, 3 END, 4 ABORT, 5 ACK
 *    6    1    flags           1 sealed: DATA, END and ABORT of a ticket with a key
 *    7    1    zero
 *    8    8    ticket
 *   16    4    epoch           of the ticket: the coordinator's attempt at the request
 *   20    4    layer_first
 *   24    4    layers
 *   28    4    head_first      DATA: of the box; END, ABORT: of what the sender had to send
 *   32    4    heads
 *   36    4    token_first
 *   40    4    tokens
 *   44    4    type            DATA: of an element, as promised; nodes say eng_kv_type: 0 f32, 1 f16, 2 bf16,
 *                              3 q8_0
 *   48    4    code            ABORT, ACK: a status, by its index in STATUS_LIST (base.h)
 *   52    4    payload_bytes   DATA: 1..1 MiB, HELLO: 0..255, others: 0
 *   56    4    payload_crc     CRC32C of the payload that follows; sealed: number, of the send's frames from 0
 *   60    4    header_crc      CRC32C of bytes 0..59
 *  sealed only:
 *   64    8    salt            of the send
 *   72   16    tag             of bytes 0..59 and the payload that follows (seal.c)
 *
 * A field that a kind has no use for is sent as 0 and not looked at. A DATA payload is
 * [layer][K then V][head][token][row], a HELLO payload the pairing text. Of a sealed frame the payload is
 * encrypted, the header is not: who reads the wire learns tickets, sizes and when, and no row.
 *
 * The way of a ticket on the wire (-> by the sender, <- by the receiver):
 *   -> HELLO, <- HELLO                once per link; nothing else is sent before both agree
 *   -> DATA ... DATA END  <- ACK      code ST_OK, or ST_CORRUPT when rows of its heads were missing; other
 *                                     heads may come over other links, each with an END of its own
 *   -> DATA ABORT         <- ACK      code ST_CANCELED; other senders of the ticket are told ST_PEER_STALE
 *   -> DATA or END        <- ACK      code ST_PEER_STALE or ST_BAD_INPUT when refused; once for a run of
 *                                     DATA. A duplicate and the ABORT of what is unknown get no answer;
 *                                     a damaged payload closes the link
 *   -> DATA or END        <- ACK      code ST_REFUSED: sealed where the promise is not, or the reverse. The
 *                                     link stays, for other tickets; an ABORT of that kind gets no answer
 *   -> any, sealed                    a wrong tag, or a number that came before: no answer, the link is
 *                                     closed. The promise ends only if this link had brought it rows, for
 *                                     anybody who reads the wire can write a frame with its ticket
 *
 * An ACK is not sealed: who forges one ends a send, which cutting the link would do as well; what has
 * landed is decided by the receiver alone.
 *
 * Here only syntax is decided; whether a box may land is promise.c's. */
#include "kvtransfer/kvtransfer.h"
#include <assert.h>
#include <string.h>

enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_KIND = 5,
    AT_FLAGS = 6,
    AT_ZERO = 7,
    AT_TICKET = 8,
    AT_EPOCH = 16,
    AT_LAYER_FIRST = 20,
    AT_LAYERS = 24,
    AT_HEAD_FIRST = 28,
    AT_HEADS = 32,
    AT_TOKEN_FIRST = 36,
    AT_TOKENS = 40,
    AT_TYPE = 44,
    AT_CODE = 48,
    AT_PAYLOAD_BYTES = 52,
    AT_PAYLOAD_CRC = 56, /* or the number */
    AT_HEADER_CRC = 60,
};
static_assert(AT_HEADER_CRC + 4 == KVT_FRAME_BYTES, "one cache line on the wire");
static_assert(AT_TICKET % 8 == 0, "the only 8-byte field is aligned");

enum { FLAG_SEALED = 1 };

static const unsigned char magic[4] = {'B', 'K', 'V', '1'};

static void put32(unsigned char *out, uint32_t v) {
    for (int i = 0; i < 4; i++) out[i] = (unsigned char)(v >> (8 * i));
}

static uint32_t get32(const unsigned char *in) {
    return (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

static bool may_be_sealed(kvt_frame_kind kind) { return kind == KVT_DATA || kind == KVT_END || kind == KVT_ABORT; }

/* How much payload a kind may carry: the bound of everything a link buffers. */
static uint32_t payload_max(kvt_frame_kind kind) {
    return kind == KVT_DATA ? KVT_PAYLOAD_MAX : kind == KVT_HELLO ? KVT_PAIRING_MAX : 0;
}

void kvt_frame_encode(const kvt_frame *f, unsigned char out[KVT_FRAME_BYTES]) {
    assert(f->kind >= KVT_HELLO && f->kind <= KVT_ACK);
    assert(f->payload_bytes <= payload_max(f->kind));
    assert(!f->sealed || may_be_sealed(f->kind));
    memcpy(out + AT_MAGIC, magic, sizeof magic);
    out[AT_VERSION] = KVT_VERSION;
    out[AT_KIND] = (unsigned char)f->kind;
    out[AT_FLAGS] = f->sealed ? FLAG_SEALED : 0;
    out[AT_ZERO] = 0;
    put32(out + AT_TICKET, (uint32_t)f->ticket);
    put32(out + AT_TICKET + 4, (uint32_t)(f->ticket >> 32));
    put32(out + AT_EPOCH, f->epoch);
    put32(out + AT_LAYER_FIRST, f->layer_first);
    put32(out + AT_LAYERS, f->layers);
    put32(out + AT_HEAD_FIRST, f->head_first);
    put32(out + AT_HEADS, f->heads);
    put32(out + AT_TOKEN_FIRST, f->token_first);
    put32(out + AT_TOKENS, f->tokens);
    put32(out + AT_TYPE, f->type);
    put32(out + AT_CODE, f->code);
    put32(out + AT_PAYLOAD_BYTES, f->payload_bytes);
    put32(out + AT_PAYLOAD_CRC, f->sealed ? f->number : f->payload_crc);
    put32(out + AT_HEADER_CRC, kvt_crc32c(0, out, AT_HEADER_CRC));
}

/* The CRC comes after magic and version, so that a stranger or another version is named as such. */
static status check_envelope(const unsigned char *in, error *err) {
    if (memcmp(in + AT_MAGIC, magic, sizeof magic))
        return error_set(err, ST_CORRUPT, "frame magic is %02x%02x%02x%02x, expected \"BKV1\"", in[0],
                         in[1], in[2], in[3]);
    if (in[AT_VERSION] != KVT_VERSION)
        return error_set(err, ST_CORRUPT, "frame version is %u, expected %u", in[AT_VERSION],
                         KVT_VERSION);
    uint32_t crc = kvt_crc32c(0, in, AT_HEADER_CRC);
    if (get32(in + AT_HEADER_CRC) != crc)
        return error_set(err, ST_CORRUPT, "frame header CRC is %08x, expected %08x",
                         get32(in + AT_HEADER_CRC), crc);
    if (in[AT_KIND] < KVT_HELLO || in[AT_KIND] > KVT_ACK || in[AT_FLAGS] > FLAG_SEALED || in[AT_ZERO])
        return error_set(err, ST_CORRUPT, "frame kind is %u (then %02x%02x), expected %d to %d",
                         in[AT_KIND], in[AT_FLAGS], in[AT_ZERO], KVT_HELLO, KVT_ACK);
    if (in[AT_FLAGS] && !may_be_sealed((kvt_frame_kind)in[AT_KIND]))
        return error_set(err, ST_CORRUPT, "frame kind is %u, sealed: expected DATA, END or ABORT", in[AT_KIND]);
    return ST_OK;
}

status kvt_frame_decode(const unsigned char in[KVT_FRAME_BYTES], kvt_frame *out, error *err) {
    TRY(check_envelope(in, err));
    kvt_frame_kind kind = (kvt_frame_kind)in[AT_KIND];
    uint32_t bytes = get32(in + AT_PAYLOAD_BYTES);
    if (bytes > payload_max(kind) || (kind == KVT_DATA && !bytes))
        return error_set(err, ST_CORRUPT, "frame length is %u, expected at most %u for kind %d", bytes,
                         payload_max(kind), kind);
    *out = (kvt_frame){
        .kind = kind,
        .ticket = get32(in + AT_TICKET) | (uint64_t)get32(in + AT_TICKET + 4) << 32,
        .epoch = get32(in + AT_EPOCH),
        .layer_first = get32(in + AT_LAYER_FIRST),
        .layers = get32(in + AT_LAYERS),
        .head_first = get32(in + AT_HEAD_FIRST),
        .heads = get32(in + AT_HEADS),
        .token_first = get32(in + AT_TOKEN_FIRST),
        .tokens = get32(in + AT_TOKENS),
        .type = get32(in + AT_TYPE),
        .code = get32(in + AT_CODE),
        .payload_bytes = bytes,
        .sealed = in[AT_FLAGS] == FLAG_SEALED,
    };
    if (out->sealed) out->number = get32(in + AT_PAYLOAD_CRC);
    else out->payload_crc = get32(in + AT_PAYLOAD_CRC);
    return ST_OK;
}
