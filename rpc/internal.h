/* internal.h -- what the files of rpc/ share: tags of the completion queue, packed messages, channel
 * options, certificates, and the structs of a server and a served call. Not for other folders. */
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
/* "host:port" or "[v6]:port" into host (without brackets, RPC_HOST_MAX bytes) and port.
 * what: how the text is called in the error, e.g. "listen address". ST_BAD_INPUT. */
enum { RPC_HOST_MAX = 256 };
status rpc_options_address(const char *what, const char *text, char *host, int *port, error *err);
/* gRPC's own lines stay off stderr unless GRPC_VERBOSITY asks for them. */
void rpc_options_quiet(void);

/* ---- file.c ------------------------------------------------------------------------------------- */

typedef struct rpc_file_stamp { int64_t mtime_ns, bytes; uint64_t inode; } rpc_file_stamp;

/* Whether path has changed since the look that wrote *stamp. */
bool rpc_file_look(const char *path, rpc_file_stamp *stamp);
/* The whole file as text. secret: others must not be able to read it. The error names the file. */
status rpc_file_read(const char *path, bool secret, char **out, error *err);
void rpc_file_free(char *text);          /* wipes it first */

/* ---- pem.c -------------------------------------------------------------------------------------- */

typedef struct rpc_pem_files { const char *ca, *cert, *key; } rpc_pem_files; /* cert and key may be NULL */
typedef struct rpc_pem {
    char *ca, *cert, *key;       /* the files' text */
    int64_t not_after_s;         /* cert's, of the Unix clock; 0: there is none */
} rpc_pem;

/* cert must have all roles of `wanted`. The error names the file and its fault. */
status rpc_pem_load(const rpc_pem_files *f, unsigned wanted, rpc_pem **out, error *err);
void rpc_pem_free(rpc_pem *p);
void *rpc_pem_certificates(const char *text);            /* STACK_OF(X509) *; NULL: none in there */
void *rpc_pem_key(const char *text);                     /* EVP_PKEY *; NULL: none in there */
/* The role of "baton://ROLE/NAME" and its name; 0: it is no such URI. */
unsigned rpc_role_read(const char *uri, char name[RPC_NAME_MAX]);

/* ---- tokens.c ----------------------------------------------------------------------------------- */

typedef struct rpc_caller { unsigned roles; char name[RPC_NAME_MAX]; } rpc_caller;
typedef struct rpc_tokens rpc_tokens;

status rpc_tokens_load(const char *path, rpc_tokens **out, error *err);
void rpc_tokens_free(rpc_tokens *t);
bool rpc_tokens_find(const rpc_tokens *t, const char *token, rpc_caller *out);

/* ---- security.c: s may be NULL, which is a process without certificates and tokens --------------- */

rpc_security *rpc_security_current(void);
rpc_security *rpc_security_foreign(void);
rpc_security *rpc_security_take(rpc_security *s);        /* a reference more; given back by rpc_security_close() */
status rpc_security_check_dial(const rpc_security *s, const char *address, const char *host, error *err);
struct rpc_server;
/* Borrows the server, whose security and generation it uses, until that is freed. */
grpc_server_credentials *rpc_security_server_credentials(struct rpc_server *server);
grpc_channel_credentials *rpc_security_channel_credentials(rpc_security *s, uint64_t *generation);
uint64_t rpc_security_generation(rpc_security *s);       /* changes when the certificates do */
bool rpc_security_header(rpc_security *s, grpc_metadata *out); /* the token of calls made; out->value is yours */
bool rpc_security_guards(const rpc_security *s);         /* calls need a credential */
void rpc_security_look(rpc_security *s);                 /* takes up new files, at most every look_ms */
bool rpc_security_token(rpc_security *s, const char *token, rpc_caller *out);
unsigned rpc_security_access(const rpc_security *s, const char *path);

/* ---- caller.c ----------------------------------------------------------------------------------- */

void rpc_caller_open(void);              /* its metrics are there from now on, as 0 */
/* authorization, tenant: headers or NULL. Log and metrics have what is refused. ST_UNAUTHENTICATED; ST_DENIED. */
status rpc_caller_find(rpc_security *s, grpc_call *call, grpc_slice path, const char *authorization, rpc_caller *out, error *err);
status rpc_caller_check(const rpc_security *s, grpc_call *call, const rpc_caller *c, const rpc_method *m, const char *tenant, error *err);

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
    rpc_security *security;
    uint64_t generation;         /* of the certificates that gRPC has; under security's lock */
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
