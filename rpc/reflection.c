/* reflection.c -- grpc.reflection.v1 and v1alpha over an embedded FileDescriptorSet.
 *
 * The answers are pieces of that set, so nothing of it is decoded into structs: a walker over the wire
 * format finds names in it. The two versions have the same messages and share their methods' code.
 *
 *   FileDescriptorSet    1 file*
 *   FileDescriptorProto  1 name  2 package  3 dependency*  4 message*  5 enum*  6 service*
 *   DescriptorProto      1 name  2 field*   3 nested*      4 enum*     8 oneof*
 *   Enum, Service        1 name  2 value* or method*, whose name is their field 1
 */
#include "proto/reflection.pb-c.h"
#include "rpc/internal.h"
#include <string.h>

typedef Grpc__Reflection__V1__ServerReflectionRequest request_type;
typedef Grpc__Reflection__V1__ServerReflectionResponse response_type;

enum { FILES_MAX = 64 };

/* On its server's loop; freed with the server. */
typedef struct reflection {
    const char *const *services;
    int services_count;
    int files_count;
    ProtobufCBinaryData files[FILES_MAX];    /* looks into the caller's set */
} reflection;

/* ---- the walker --------------------------------------------------------------------------------- */

typedef ProtobufCBinaryData span;

static bool read_varint(span *s, uint64_t *out) {
    *out = 0;
    for (int shift = 0; shift < 64 && s->len; shift += 7) {
        uint8_t byte = *s->data++;
        s->len--;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return true;
    }
    return false;
}

/* The next length-delimited field of s, others skipped; false: no more, or not the wire format. */
static bool next_field(span *s, uint32_t *number, span *value) {
    for (uint64_t key, n; s->len && read_varint(s, &key);) {
        switch (key & 7) {
        case 0:
            if (!read_varint(s, &n)) return false;
            continue;
        case 1: n = 8; break;
        case 5: n = 4; break;
        case 2:
            if (!read_varint(s, &n)) return false;
            break;
        default: return false;
        }
        if (n > s->len) return false;
        *value = (span){n, s->data};
        *number = (uint32_t)(key >> 3);
        s->data += n;
        s->len -= n;
        if ((key & 7) == 2) return true;
    }
    return false;
}

/* The index-th field of that number; empty if there is none. */
static span field(span s, uint32_t wanted, int index) {
    span value;
    for (uint32_t number; next_field(&s, &number, &value);)
        if (number == wanted && index-- == 0) return value;
    return (span){0, NULL};
}

/* text without the leading "name." (or name itself, then ""); NULL: it does not begin so. */
static const char *after_name(const char *text, span name) {
    if (name.len == 0 || strncmp(text, (const char *)name.data, name.len) != 0) return NULL;
    if (text[name.len] == 0) return text + name.len;
    return text[name.len] == '.' && text[name.len + 1] ? text + name.len + 1 : NULL;
}

/* Whether the definitions in s (a file, message, enum or service), which stand under the field numbers
 * first..last, hold symbol, or one nested at most depth deep does. */
static bool defines(span s, uint32_t first, uint32_t last, const char *symbol, int depth) {
    span d;
    for (uint32_t number; next_field(&s, &number, &d);) {
        if (number < first || number > last) continue;
        const char *rest = after_name(symbol, field(d, 1, 0));
        if (!rest) continue;
        if (!*rest) return true;
        if (depth > 0 && defines(d, 2, 4, rest, depth - 1)) return true;
    }
    return false;
}

static int file_named(const reflection *r, span name) {
    for (int i = 0; i < r->files_count; i++) {
        span n = field(r->files[i], 1, 0);
        if (n.len == name.len && memcmp(n.data, name.data, n.len) == 0) return i;
    }
    return -1;
}

static int file_with(const reflection *r, const char *symbol) {
    for (int i = 0; i < r->files_count; i++) {
        const char *rest = after_name(symbol, field(r->files[i], 2, 0));
        if (rest && *rest && defines(r->files[i], 4, 6, rest, 8)) return i;
    }
    return -1;
}

/* ---- answers: they borrow from the request and the set, and leave packed --------------------------- */

static status send_error(rpc_call *call, response_type *reply, int code, const char *text) {
    Grpc__Reflection__V1__ErrorResponse e = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    e.error_code = code;
    e.error_message = (char *)(uintptr_t)text;
    reply->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    reply->error_response = &e;
    return rpc_call_send(call, &reply->base);
}

static status send_not_found(rpc_call *call, response_type *reply, const char *what) {
    return send_error(call, reply, status_to_grpc(ST_NOT_FOUND), what);
}

/* The file and all it imports, each once. */
static status send_file(const reflection *r, rpc_call *call, response_type *reply, int index) {
    ProtobufCBinaryData files[FILES_MAX];
    bool taken[FILES_MAX] = {false};
    size_t count = 0;
    if (index < 0) return send_not_found(call, reply, "no such file or symbol");
    files[count++] = r->files[index];
    taken[index] = true;
    for (size_t i = 0; i < count; i++) {
        span name;
        for (int k = 0; (name = field(files[i], 3, k)).data; k++) {
            int at = file_named(r, name);
            if (at < 0 || taken[at]) continue;
            taken[at] = true;
            files[count++] = r->files[at];
        }
    }
    Grpc__Reflection__V1__FileDescriptorResponse f = GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    f.file_descriptor_proto = files;
    f.n_file_descriptor_proto = count;
    reply->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    reply->file_descriptor_response = &f;
    return rpc_call_send(call, &reply->base);
}

static status send_services(const reflection *r, rpc_call *call, response_type *reply) {
    Grpc__Reflection__V1__ServiceResponse services[FILES_MAX], *pointers[FILES_MAX];
    int count = r->services_count < FILES_MAX ? r->services_count : FILES_MAX;
    for (int i = 0; i < count; i++) {
        grpc__reflection__v1__service_response__init(&services[i]);
        services[i].name = (char *)(uintptr_t)r->services[i];
        pointers[i] = &services[i];
    }
    Grpc__Reflection__V1__ListServiceResponse l = GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    l.service = pointers;
    l.n_service = (size_t)count;
    reply->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    reply->list_services_response = &l;
    return rpc_call_send(call, &reply->base);
}

/* proto3 files have no extensions: a known type has none, an unknown one is not found. */
static status send_extensions(const reflection *r, rpc_call *call, response_type *reply,
                              const char *type) {
    if (file_with(r, type) < 0) return send_not_found(call, reply, "no such type");
    Grpc__Reflection__V1__ExtensionNumberResponse e =
        GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
    e.base_type_name = (char *)(uintptr_t)type;
    reply->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE;
    reply->all_extension_numbers_response = &e;
    return rpc_call_send(call, &reply->base);
}

#define ASKED(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name

static status answer(const reflection *r, rpc_call *call, const request_type *q) {
    response_type reply = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    reply.valid_host = q->host;
    reply.original_request = (request_type *)(uintptr_t)q; /* packed before return */
    switch (q->message_request_case) {
    case ASKED(FILE_BY_FILENAME): {
        span name = {strlen(q->file_by_filename), (uint8_t *)q->file_by_filename};
        return send_file(r, call, &reply, file_named(r, name));
    }
    case ASKED(FILE_CONTAINING_SYMBOL):
        return send_file(r, call, &reply, file_with(r, q->file_containing_symbol));
    case ASKED(FILE_CONTAINING_EXTENSION): return send_not_found(call, &reply, "no such extension");
    case ASKED(ALL_EXTENSION_NUMBERS_OF_TYPE):
        return send_extensions(r, call, &reply, q->all_extension_numbers_of_type);
    case ASKED(LIST_SERVICES): return send_services(r, call, &reply);
    default:
        return send_error(call, &reply, status_to_grpc(ST_BAD_INPUT),
                          "expected one of file_by_filename, file_containing_symbol, list_services");
    }
}

static void canceled(rpc_call *call, void *user) {
    (void)user;
    rpc_call_finish(call, ST_CANCELED, NULL, -1);
}

static void info(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    static const rpc_call_events events = {canceled, NULL, NULL};
    rpc_call_watch(call, &events, ctx);
    status st = request ? answer(ctx, call, (const request_type *)request) : ST_OK;
    if (!request || st == ST_NO_MEMORY) rpc_call_finish(call, st, NULL, -1);
}

static const rpc_method reflection_methods[] = {
    {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", RPC_BIDI,
     &grpc__reflection__v1__server_reflection_request__descriptor,
     &grpc__reflection__v1__server_reflection_response__descriptor, info},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", RPC_BIDI,
     &grpc__reflection__v1__server_reflection_request__descriptor,
     &grpc__reflection__v1__server_reflection_response__descriptor, info},
};

status rpc_reflection_add(rpc_server *s, const void *descriptor_set, size_t bytes,
                          const char *const *services, int count) {
    reflection *r = mem_zalloc(1, sizeof *r);
    if (!r) return ST_NO_MEMORY;
    r->services = services;
    r->services_count = count;
    span set = {bytes, (uint8_t *)(uintptr_t)descriptor_set}, file;
    for (uint32_t number; r->files_count < FILES_MAX && next_field(&set, &number, &file);)
        if (number == 1) r->files[r->files_count++] = file;
    if (set.len > 0) { /* more files than fit, or no FileDescriptorSet */
        mem_free(r);
        return ST_CORRUPT;
    }
    if (rpc_server_own(s, r, mem_free) != ST_OK) {
        mem_free(r);
        return ST_NO_MEMORY;
    }
    return rpc_server_add(s, reflection_methods, 2, r);
}
