/* rpc.h -- gRPC C core and protobuf-c, wrapped once.
 *
 * Only this folder calls grpc_*; others see methods, calls and messages (generated protobuf-c
 * structs). It knows no method of baton by name: servers bring tables.
 *
 * Threads: an rpc_loop is one thread with one completion queue. Every callback of a server, channel,
 * stream or timer runs on its loop; every function below must be called on it too, except where
 * "any thread" stands. Callbacks must not block.
 *
 * Flow control: nothing is queued without bound. rpc_call_send() says ST_AGAIN once RPC_WINDOW bytes
 * wait for a slow reader, and writable() tells when to go on; a client stream is read one message at a
 * time and can be paused. */
#ifndef BATON_RPC_H
#define BATON_RPC_H

#include "base/base.h"
#include <protobuf-c/protobuf-c.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    RPC_WINDOW = 64 * 1024,              /* bytes of messages waiting for a reader, per call */
    RPC_MESSAGE_MAX = 16 * 1024 * 1024,  /* default limit of one message received */
    RPC_POSTS_MAX = 16384,               /* functions waiting to run on a loop */
    RPC_HEADERS_MAX = 4,                 /* of a channel's own, sent with each call */
    RPC_CALLS_MAX = 16384,               /* calls of a server; more are refused with RESOURCE_EXHAUSTED */
};

/* ---- security: who this process is, and whom it lets in ------------------------------------------- */

/* What the holder of a credential is: in certificates a URI baton://ROLE/NAME of the alternative names, one for each role.
 * A bearer token stands for a client, and for an admin if its line says so. */
enum { RPC_COORDINATOR = 1, RPC_NODE = 2, RPC_CLIENT = 4, RPC_ADMIN = 8, RPC_NAME_MAX = 64 };

unsigned rpc_role_find(const char *name);                /* "node": RPC_NODE; 0: there is no such role */
const char *rpc_role_text(unsigned roles, char *out, size_t bytes);      /* "coordinator,node" */
bool rpc_name_valid(const char *name);                   /* letters, digits, '.', '_', '-': of a tenant or a certificate */

typedef struct rpc_access { const char *path; unsigned roles; } rpc_access; /* who may call a method */

typedef struct rpc_security_options {
    const char *ca, *cert, *key; /* PEM files. All NULL: no TLS; ca alone: a client that has a token or none */
    unsigned roles;              /* cert must have them all */
    unsigned peers;              /* servers that are called must have one of these; 0: their host name is checked instead */
    const char *tokens;          /* file of bearer tokens that are let in; NULL: none */
    const char *token;           /* file with the token that calls carry; NULL: none */
    const rpc_access *access;    /* borrowed for ever. With cert or tokens, a method that is not in it is called by nobody */
    int access_count;
    bool insecure;               /* without TLS beyond loopback, too */
    int look_ms;                 /* files are looked at again so often, when there are calls; below 0: every second */
} rpc_security_options;

typedef struct rpc_security rpc_security;

/* The error names the file and its fault: missing, readable by others, expired, another's key, from another CA, without
 * the role. */
status rpc_security_open(const rpc_security_options *o, rpc_security **out, error *err);
/* What servers and channels opened from now on have, as long as they live; NULL, as at first: no TLS, and servers on
 * loopback only. Not while another thread opens any. */
void rpc_security_use(rpc_security *s);
/* The same for channels to servers that are not baton's. */
void rpc_security_use_foreign(rpc_security *s);
void rpc_security_close(rpc_security *s);                /* NULL is fine; in use it lives on */
bool rpc_security_encrypts(void);                        /* servers that are opened now have TLS */
/* ST_DENIED: a server may not listen there: beyond loopback that takes TLS or --insecure. */
status rpc_security_check_listen(const char *listen, error *err);
/* ST_DENIED: bytes would travel there unencrypted, which only --insecure allows beyond loopback. what: as the error
 * calls it, e.g. "--kv-listen". Any thread. */
status rpc_security_check_clear(const char *what, const char *address, error *err);

typedef struct rpc_issue_options {
    const char *ca_cert, *ca_key;    /* files; NULL: what is made is a CA */
    const char *cert, *key;          /* files that are written; neither may be there */
    unsigned roles;
    const char *name;                /* the subject's, and of each role */
    const char *hosts;               /* "name,10.0.0.1": further alternative names; NULL: none */
    int64_t begins_s, ends_s;        /* of the Unix clock */
} rpc_issue_options;

/* A new P-256 key and its certificate; the key's file has mode 0600. */
status rpc_issue(const rpc_issue_options *o, error *err);

/* ---- loop --------------------------------------------------------------------------------------- */

typedef struct rpc_loop rpc_loop;
typedef struct rpc_timer rpc_timer;

status rpc_loop_create(rpc_loop **out, error *err);
/* Runs callbacks until rpc_loop_stop(). The calling thread is the loop's thread. */
void rpc_loop_run(rpc_loop *l);
status rpc_loop_start(rpc_loop *l, const char *name);    /* runs it on a thread of its own */
void rpc_loop_stop(rpc_loop *l);                         /* any thread */
/* After servers and channels on it are closed. Joins the thread of rpc_loop_start(). */
void rpc_loop_destroy(rpc_loop *l);
/* Any thread: runs fn(arg) on the loop soon, in order of posting. ST_AGAIN when RPC_POSTS_MAX wait. */
status rpc_loop_post(rpc_loop *l, void (*fn)(void *arg), void *arg);
/* One shot. Freed after fn ran or by rpc_timer_cancel(). */
status rpc_timer_start(rpc_loop *l, int64_t delay_ms, void (*fn)(void *arg), void *arg,
                       rpc_timer **out);
void rpc_timer_cancel(rpc_timer *t);                     /* fn will not run any more */

/* ---- server ------------------------------------------------------------------------------------- */

typedef struct rpc_server rpc_server;
typedef struct rpc_call rpc_call;        /* one call being served */

typedef enum rpc_kind { RPC_UNARY, RPC_SERVER_STREAM, RPC_BIDI } rpc_kind;

typedef struct rpc_method {
    const char *path;                    /* "/baton.v1.Inference/Generate" */
    rpc_kind kind;
    const ProtobufCMessageDescriptor *request;
    const ProtobufCMessageDescriptor *reply;
    /* Once for each request message (unary and server stream: exactly once). request is borrowed until
     * return. ctx: rpc_server_open's. A BIDI method gets NULL when the client has sent its last. */
    void (*on_request)(rpc_call *call, const ProtobufCMessage *request, void *ctx);
} rpc_method;

/* What a call tells whoever serves it. */
typedef struct rpc_call_events {
    /* The client canceled, its connection broke, or the deadline passed. Call rpc_call_finish() still. */
    void (*on_cancel)(rpc_call *call, void *user);
    /* The window has room again after ST_AGAIN. May be NULL. */
    void (*on_writable)(rpc_call *call, void *user);
    /* The call is over on both sides and about to be freed; last callback. May be NULL. */
    void (*on_free)(rpc_call *call, void *user);
} rpc_call_events;

/* methods: borrowed until close. listen: "host:port", port 0 takes a free one. Unknown methods answer
 * UNIMPLEMENTED; undecodable requests INVALID_ARGUMENT; calls without the credential for them UNAUTHENTICATED or
 * PERMISSION_DENIED, before any method hears of them. ST_IO: port in use, said with the address. ST_DENIED: not loopback
 * and not secured. */
status rpc_server_open(rpc_loop *l, const char *listen, const rpc_method *methods, int count,
                       void *ctx, rpc_server **out, error *err);
/* Another table on the same server, before the first rpc_server_start(). */
status rpc_server_add(rpc_server *s, const rpc_method *methods, int count, void *ctx);
void rpc_server_start(rpc_server *s);
const char *rpc_server_address(const rpc_server *s);     /* "127.0.0.1:50051", as bound */
int rpc_server_calls(const rpc_server *s);               /* calls not freed yet */
/* Takes no new calls, cancels what still runs (on_cancel), then calls done(arg) when all are freed.
 * Frees s. */
void rpc_server_close(rpc_server *s, void (*done)(void *arg), void *arg);

void rpc_call_watch(rpc_call *c, const rpc_call_events *events, void *user);
void *rpc_call_user(const rpc_call *c);
const char *rpc_call_peer(const rpc_call *c);            /* "ipv4:127.0.0.1:4711" */
/* Whose call it is: by its credential; where none is asked for, by the header baton-tenant; "": nobody said. */
const char *rpc_call_tenant(const rpc_call *c);
/* The name in its credential, which somebody here configured; NULL: none is asked for. */
const char *rpc_call_credential(const rpc_call *c);
/* Milliseconds until the client's deadline; INT64_MAX: none. */
int64_t rpc_call_time_left_ms(const rpc_call *c);
/* Value of an ASCII request header, NULL: absent. Valid while the call is. */
const char *rpc_call_header(const rpc_call *c, const char *name);
/* Packs and sends. ST_OK: taken. ST_AGAIN: taken too, but the window is now full: send nothing more
 * until on_writable (asserted: one message may overshoot). ST_CANCELED: call is canceled, nothing was
 * sent. ST_NO_MEMORY: nothing was sent, finish the call. A unary reply leaves with rpc_call_finish().
 * No initial metadata leaves before the first message. */
status rpc_call_send(rpc_call *c, const ProtobufCMessage *reply);
/* The call is about to be finished: what is sent from now on leaves with the status, in one go, unless it fills the window. */
void rpc_call_hold(rpc_call *c);
/* Bytes taken by rpc_call_send() and not yet handed to the transport. */
size_t rpc_call_waiting(const rpc_call *c);
/* Ends the call, after what is still waiting. retry_after_ms >= 0 adds grpc-retry-pushback-ms. c must not
 * be used after it (on_free comes later). text: NULL or what to tell the client. */
void rpc_call_finish(rpc_call *c, status s, const char *text, int64_t retry_after_ms);
bool rpc_call_canceled(const rpc_call *c);

/* grpc.health.v1.Health (Check, Watch) for the given services and "". Starts NOT_SERVING. */
typedef struct rpc_health rpc_health;
status rpc_health_add(rpc_server *s, const char *const *services, int count, rpc_health **out);
void rpc_health_set(rpc_health *h, bool serving);        /* tells every watcher */
/* grpc.reflection.v1 and v1alpha over a FileDescriptorSet (protoc --include_imports
 * --descriptor_set_out), borrowed until the server is closed. */
status rpc_reflection_add(rpc_server *s, const void *descriptor_set, size_t bytes,
                          const char *const *services, int count);

/* ---- messages that are kept --------------------------------------------------------------------- */

/* From plain bytes: ST_CORRUPT, they are no message of that type, or a string has a NUL in it. ST_NO_MEMORY. */
status rpc_message_read(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t count,
                        ProtobufCMessage **out);
void rpc_message_free(ProtobufCMessage *m);              /* NULL is fine */

/* ---- client ------------------------------------------------------------------------------------- */

typedef struct rpc_channel rpc_channel;
typedef struct rpc_stream rpc_stream;    /* one call made */

/* Never fails for want of a peer: calls do. address: "host:port". Keepalive finds a dead peer in
 * seconds, also while a call is quiet. */
status rpc_channel_open(rpc_loop *l, const char *address, rpc_channel **out, error *err);
/* The same to a server that is not baton's, which may take frequent pings for an attack (etcd: two within 5 s): a dead
 * peer is found in 10 s, and only while a call is open. */
status rpc_channel_open_foreign(rpc_loop *l, const char *address, rpc_channel **out, error *err);
/* Every call started from now on carries this header. Both are copied. ST_NO_MEMORY: also when RPC_HEADERS_MAX are there. */
status rpc_channel_add_header(rpc_channel *c, const char *name, const char *value);
void rpc_channel_close(rpc_channel *c);  /* its streams are canceled; on_end still comes */

typedef struct rpc_stream_events {
    /* message is borrowed until return. */
    void (*on_message)(rpc_stream *s, const ProtobufCMessage *message, void *user);
    /* Once, last callback: s is freed after it. text is the peer's status message ("" if none).
     * retry_after_ms: -1 unless the peer sent grpc-retry-pushback-ms. */
    void (*on_end)(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user);
} rpc_stream_events;

/* Unary and server-stream calls alike (a unary call gives one on_message). timeout_ms 0: none.
 * wait_for_ready: wait for the connection instead of failing at once (until timeout_ms).
 * request is packed before return. method: path and kind as served; reply decodes messages;
 * borrowed until on_end. */
status rpc_stream_start(rpc_channel *c, const rpc_method *method, const ProtobufCMessage *request,
                        int64_t timeout_ms, bool wait_for_ready, const rpc_stream_events *events,
                        void *user, rpc_stream **out);
void rpc_stream_cancel(rpc_stream *s);   /* on_end(ST_CANCELED) comes, soon */
void rpc_stream_pause(rpc_stream *s);    /* read no further message: the peer's window fills */
void rpc_stream_resume(rpc_stream *s);

#ifdef __cplusplus
}
#endif
#endif
