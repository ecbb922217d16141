/* options.c -- what is asked of gRPC for every server and channel, and addresses.
 *
 * Each row has its reason; the sum of flow control is: 64 KB of ours per call (RPC_WINDOW) plus one HTTP/2
 * stream window of 64 KB at the reader. */
#include "rpc/internal.h"
#include <grpc/impl/codegen/compression_types.h>
#include <grpc/support/log.h>
#include <stdlib.h>
#include <string.h>

#define INT_ARG(name, n) {.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)(name), .value = {.integer = (n)}}

/* Both sides. A compressed message could expand without bound, so only plain ones are spoken. */
#define COMMON_ARGS                                                                                 \
    INT_ARG(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, RPC_MESSAGE_MAX),                                  \
    INT_ARG(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),           \
    INT_ARG(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),                                            \
    INT_ARG(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),                                          \
    INT_ARG(GRPC_ARG_ENABLE_CHANNELZ, 0),                                                           \
    INT_ARG(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, RPC_WINDOW),                                     \
    INT_ARG(GRPC_ARG_HTTP2_BDP_PROBE, 0),              /* would enlarge that window */              \
    INT_ARG(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 3000),      /* also TCP_USER_TIMEOUT */                  \
    INT_ARG(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0)  /* a call may be quiet for minutes */

/* Between processes of baton: pings as often as gRPC lets them be. */
#define PING_ARGS                                                                                   \
    INT_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, 2000),                                                      \
    INT_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1)

static grpc_arg server_args[] = {
    COMMON_ARGS,
    PING_ARGS,
    INT_ARG(GRPC_ARG_ALLOW_REUSEPORT, 0),              /* a port in use is an error */
    INT_ARG(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 0),
    INT_ARG(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0),
    INT_ARG(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000),
    INT_ARG(GRPC_ARG_MAX_CONCURRENT_STREAMS, 8192),
};
#define CLIENT_ARGS                                                                                 \
    COMMON_ARGS,                                                                                    \
    INT_ARG(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),    /* channels share no connection */           \
    INT_ARG(GRPC_ARG_ENABLE_HTTP_PROXY, 0),                                                         \
    INT_ARG(GRPC_ARG_ENABLE_RETRIES, 0),               /* whoever calls decides on retries */       \
    INT_ARG(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),                                         \
    INT_ARG(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),                                            \
    INT_ARG(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000),  /* time for one attempt: two lost SYNs */    \
    INT_ARG(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000),                                               \
    INT_ARG(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000)

static grpc_arg client_args[] = {CLIENT_ARGS, PING_ARGS};
static grpc_arg foreign_args[] = {
    CLIENT_ARGS,
    INT_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, 6000),         /* etcd's limit is 5 s, and with calls only */
    INT_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0),
};

const grpc_channel_args *rpc_options_server(void) {
    static const grpc_channel_args args = {sizeof server_args / sizeof *server_args, server_args};
    return &args;
}

const grpc_channel_args *rpc_options_client(void) {
    static const grpc_channel_args args = {sizeof client_args / sizeof *client_args, client_args};
    return &args;
}

const grpc_channel_args *rpc_options_foreign(void) {
    static const grpc_channel_args args = {sizeof foreign_args / sizeof *foreign_args, foreign_args};
    return &args;
}

status rpc_options_address(const char *what, const char *text, char *host, int *port, error *err) {
    char name[RPC_HOST_MAX];
    const char *digits;
    if (!address_split(text, name, sizeof name, &digits) || strpbrk(name, "/@%?[] \t\r\n"))
        return error_set(err, ST_BAD_INPUT, "%s '%.100s': expected HOST:PORT, PORT 0 to 65535", what,
                         text);
    memcpy(host, name, strlen(name) + 1);
    *port = atoi(digits);
    return ST_OK;
}

static void drop_line(gpr_log_func_args *args) { (void)args; }

void rpc_options_quiet(void) {
    if (!getenv("GRPC_VERBOSITY")) gpr_set_log_function(drop_line);
}

#ifdef __SANITIZE_THREAD__
/* gRPC and its libraries are not built with ThreadSanitizer: it cannot see their locking by atomics, and
 * watching their memory calls alone gives false reports (and stalls them). Races between our own
 * threads are still found. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "ignore_noninstrumented_modules=1"; }
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) {
    return "race:libgrpc.so\nrace:libgpr.so\nrace:libabsl_\nrace:libupb.so\n";
}
#endif
