/* message.c -- protobuf-c structs to and from gRPC's byte buffers.
 *
 * Both directions allocate through mem_alloc(). A peer's bytes can decode into far more memory than
 * they take on the wire (an empty submessage is 2 bytes there and about 90 here), so decoding draws on
 * a budget of DECODED_MAX bytes; what needs more is treated as undecodable. So is a string with a NUL
 * in it, which protobuf allows: decoded into a C string it would end there, and nobody would know. */
#include "rpc/internal.h"
#include <assert.h>
#include <grpc/byte_buffer_reader.h>
#include <string.h>

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

static uint64_t read_varint(const uint8_t **at, const uint8_t *end) {
    uint64_t value = 0;
    for (unsigned shift = 0; *at < end && shift < 64; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) break;
    }
    return value;
}

/* Whether a string field has a NUL in it. The bytes have been decoded as type, so they are well formed. */
static bool has_nul(const ProtobufCMessageDescriptor *type, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        uint64_t tag = read_varint(&at, end), bytes = 0;
        const ProtobufCFieldDescriptor *f =
            protobuf_c_message_descriptor_get_field(type, (unsigned)(tag >> 3));
        switch (tag & 7) {
        case PROTOBUF_C_WIRE_TYPE_VARINT: read_varint(&at, end); continue;
        case PROTOBUF_C_WIRE_TYPE_64BIT: bytes = 8; f = NULL; break;
        case PROTOBUF_C_WIRE_TYPE_32BIT: bytes = 4; f = NULL; break;
        default: bytes = read_varint(&at, end);
        }
        if (bytes > (uint64_t)(end - at)) return true;
        if (f && f->type == PROTOBUF_C_TYPE_STRING && memchr(at, 0, (size_t)bytes)) return true;
        if (f && f->type == PROTOBUF_C_TYPE_MESSAGE && has_nul(f->descriptor, at, at + bytes)) return true;
        at += bytes;
    }
    return false;
}

status rpc_message_read(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t count,
                        ProtobufCMessage **out) {
    budget b = {.left = DECODED_MAX};
    ProtobufCAllocator allocator = {take, give, &b};
    ProtobufCMessage *m = protobuf_c_message_unpack(type, &allocator, count, bytes);
    if (!m) return b.no_memory ? ST_NO_MEMORY : ST_CORRUPT;
    if (has_nul(type, bytes, bytes + count)) {
        rpc_message_free(m);
        return ST_CORRUPT;
    }
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
