/* internal.h -- what the files of rpc/ share: tags of the completion queue, packed messages, channel
 * options, and the structs of a server and a served call. Not for other folders. */
#ifndef BATON_RPC_INTERNAL_H
#define BATON_RPC_INTERNAL_H

#include "rpc/rpc.h"
#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

/* ---- loop.c: every operation given to gRPC carries one of these; it lives as long as the operation */

typedef struct rpc_tag {
    void (*fn)(void *owner, bool ok);    /* ok: gRPC's success flag of the batch */
    void *owner;
} rpc_tag;

grpc_completion_queue *rpc_loop_queue(rpc_loop *l);
/* Servers, channels and streams are counted, so that rpc_loop_destroy() can let them end. */
void rpc_loop_join(rpc_loop *l);
void rpc_loop_leave(rpc_loop *l);

/* ---- message.c ---------------------------------------------------------------------------------- */

/* ST_NO_MEMORY or ST_OK; *out is destroyed with grpc_byte_buffer_destroy(). */
status rpc_message_pack(const ProtobufCMessage *m, grpc_byte_buffer **out);
/* ST_CORRUPT: the bytes are no message of that type, or a string has a NUL in it. ST_NO_MEMORY. */
status rpc_message_unpack(const ProtobufCMessageDescriptor *type, grpc_byte_buffer *in,
                          ProtobufCMessage **out);

/* ---- options.c ---------------------------------------------------------------------------------- */

const grpc_channel_args *rpc_options_server(void);
const grpc_channel_args *rpc_options_client(void);
const grpc_channel_args *rpc_options_foreign(void);      /* a client of a server that is not baton's */
grpc_server_credentials *rpc_options_server_credentials(void);
grpc_channel_credentials *rpc_options_channel_credentials(void);
/* "host:port" or "[v6]:port" into host (without brackets, RPC_HOST_MAX bytes) and port.
 * what: how the text is called in the error, e.g. "listen address". ST_BAD_INPUT. */
enum { RPC_HOST_MAX = 256 };
status rpc_options_address(const char *what, const char *text, char *host, int *port, error *err);
/* gRPC's own lines stay off stderr unless GRPC_VERBOSITY asks for them. */
void rpc_options_quiet(void);

/* ---- server.c, call.c --------------------------------------------------------------------------- */

typedef struct rpc_table {
    const rpc_method *methods;
    int count;
    void *ctx;
    struct rpc_table *next;
} rpc_table;

typedef struct rpc_owned {       /* freed with the server */
    void (*destroy)(void *thing);
    void *thing;
    struct rpc_owned *next;
} rpc_owned;

/* On its loop's thread, from rpc_server_open() until done() of rpc_server_close(). */
struct rpc_server {
    rpc_loop *loop;
    grpc_server *grpc;
    rpc_table *tables;
    rpc_owned *owned;
    int calls;                   /* arrived and not freed yet */
    int armed;                   /* rpc_calls waiting for a call to arrive */
    bool started, closing, shut;
    rpc_tag shutdown;
    void (*done)(void *arg);
    void *done_arg;
    char address[RPC_HOST_MAX + 16];
};

status rpc_server_own(rpc_server *s, void *thing, void (*destroy)(void *thing));
const rpc_method *rpc_server_find(const rpc_server *s, grpc_slice path, void **ctx);
/* Keeps the number of armed calls up; false: no memory for another. */
bool rpc_server_arm(rpc_server *s);
/* A call was freed or a slot came back unused. */
void rpc_server_settle(rpc_server *s);

/* Hands an empty call to gRPC, which fills it when one arrives. ST_NO_MEMORY. */
status rpc_call_arm(rpc_server *s);

#endif
