/* message.c -- protobuf-c structs to and from gRPC's byte buffers.
 *
 * Both directions allocate through mem_alloc(). A peer's bytes can decode into far more memory than
 * they take on the wire (an empty submessage is 2 bytes there and about 90 here), so decoding draws on
 * a budget of DECODED_MAX bytes; what needs more is treated as undecodable. */
#include "rpc/internal.h"
#include <assert.h>
#include <grpc/byte_buffer_reader.h>

enum {
    DECODED_MAX = 6 * RPC_MESSAGE_MAX,   /* a full message of one-byte packed numbers needs 4 */
    SMALL = GRPC_SLICE_INLINED_SIZE,     /* gRPC keeps so much without allocating */
};

typedef struct budget {
    size_t left;
    bool no_memory;
} budget;

static void *take(void *data, size_t bytes) {
    budget *b = data;
    if (b && bytes > b->left) return NULL;
    void *p = mem_alloc(bytes);
    if (b && p) b->left -= bytes;
    if (b && !p) b->no_memory = true;
    return p;
}

static void give(void *data, void *p) {
    (void)data;
    mem_free(p);
}

status rpc_message_pack(const ProtobufCMessage *m, grpc_byte_buffer **out) {
    size_t bytes = protobuf_c_message_get_packed_size(m);
    grpc_slice slice;
    if (bytes <= SMALL) {
        uint8_t small[SMALL];
        size_t packed = protobuf_c_message_pack(m, small);
        assert(packed == bytes);
        slice = grpc_slice_from_copied_buffer((const char *)small, bytes);
    } else {
        uint8_t *p = mem_alloc(bytes);
        if (!p) return ST_NO_MEMORY;
        size_t packed = protobuf_c_message_pack(m, p);
        assert(packed == bytes);
        slice = grpc_slice_new(p, bytes, mem_free);
    }
    *out = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return ST_OK;
}

status rpc_message_read(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t count,
                        ProtobufCMessage **out) {
    budget b = {.left = DECODED_MAX};
    ProtobufCAllocator allocator = {take, give, &b};
    ProtobufCMessage *m = protobuf_c_message_unpack(type, &allocator, count, bytes);
    if (!m) return b.no_memory ? ST_NO_MEMORY : ST_CORRUPT;
    *out = m;
    return ST_OK;
}

status rpc_message_unpack(const ProtobufCMessageDescriptor *type, grpc_byte_buffer *in,
                          ProtobufCMessage **out) {
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, in)) return ST_CORRUPT;
    grpc_slice whole = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    status st = rpc_message_read(type, GRPC_SLICE_START_PTR(whole), GRPC_SLICE_LENGTH(whole), out);
    grpc_slice_unref(whole);
    return st;
}

void rpc_message_free(ProtobufCMessage *m) {
    ProtobufCAllocator allocator = {take, give, NULL};
    if (m) protobuf_c_message_free_unpacked(m, &allocator);
}
