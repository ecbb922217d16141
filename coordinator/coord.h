/* coord.h -- the coordinator: admits requests, places each on a decode node and, where it pays, a
 * prefill node, and keeps every accepted one alive until it is finished.
 *
 * Two halves. The core decides: a state machine of values, time an argument, no I/O, no thread; the
 * simulator drives the same code (tests/sim). The service (coord_service_*) is gRPC around it: it
 * tokenises, starts and cancels the streams the core asks for and feeds their events back.
 *
 * One thread: the rpc loop of the service, or the simulator. It holds no pages. */
#ifndef BATON_COORD_H
#define BATON_COORD_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- core --------------------------------------------------------------------------------------- */

enum {
    COORD_NODES_MAX = 1024,
    COORD_ATTEMPTS_MAX = 16,
    COORD_APART_FAILURES = 8,
    COORD_CACHE_PAGES_MAX = 1 << 18,     /* of a node, in the view; higher page numbers are not looked at */
    COORD_COSTS_MAX = 16,                /* rows of an explanation */
    COORD_TENANTS_MAX = 1024,            /* with requests alive; one more is refused */
};

typedef enum coord_role { COORD_PREFILL = 1, COORD_DECODE = 2 } coord_role;

/* What the core knows of a node. `node` numbers are the caller's, 0 .. COORD_NODES_MAX-1. */
typedef struct coord_node {
    coord_role role;
    bool draining;
    uint64_t epoch;              /* of the process: a restarted node is a new one */
    uint64_t numerics;           /* equal: the same bytes */
    int32_t capacity;            /* requests it takes at most */
    int32_t pages_total, pages_available, page_tokens;
    uint64_t name;               /* a number for its id: the same to every coordinator */
    double prefill_tokens_per_s, decode_steps_per_s;     /* measured, 0: not yet */
} coord_node;

/* Why requests go where they go; compared and chosen in coordinator/route.c. */
typedef enum coord_route {
    COORD_ROUTE_COST,            /* where an answer is expected to take the least time, its own and others' */
    COORD_ROUTE_ROUND_ROBIN,
    COORD_ROUTE_LEAST_LOADED,
    COORD_ROUTE_PREFIX_HASH,     /* prompts that begin alike go to one node, as long as it is not crowded */
    COORD_ROUTES
} coord_route;
const char *coord_route_name(coord_route route);             /* "round-robin" */
bool coord_route_find(const char *name, coord_route *out);   /* false: no such policy */

typedef enum coord_prefill_policy {
    COORD_PREFILL_AUTO,          /* as the route's policy says */
    COORD_PREFILL_LOCAL,         /* always on the decode node */
    COORD_PREFILL_REMOTE,        /* on a prefill node whenever there is one and anything to send */
} coord_prefill_policy;

typedef struct coord_limits {
    int32_t queue_max;           /* requests waiting for a place; more are refused */
    int32_t requests_max;        /* requests alive at once, waiting or placed */
    int64_t queue_tokens_max;    /* prompt tokens of those that wait; a request beyond them is refused unless it is alone */
    int32_t tenant_requests_max; /* as requests_max, of one tenant */
    int64_t tenant_queue_tokens_max;
    int64_t tenant_pages_max;    /* KV pages that one tenant's placed requests may come to hold; who would exceed them waits */
    coord_route route;
    int32_t local_tokens_max;    /* AUTO: this few uncached tokens are computed on the decode node; by cost: what a
                                    decode step takes as long as, until rates were measured */
    int32_t avoid_ms;            /* how long a node that failed is avoided while others are there */
    int32_t apart_ms;            /* how long a prompt waits for a prefill node that alone may read it */
    coord_prefill_policy prefill;
} coord_limits;

extern const coord_limits coord_limits_default;

typedef struct coord_core coord_core;

coord_core *coord_core_create(const coord_limits *limits);           /* NULL: no memory */
void coord_core_destroy(coord_core *c);

typedef enum coord_event_kind {
    COORD_SUBMIT,                /* a client's request (or one of its n branches) */
    COORD_CANCEL,                /* the client left */
    COORD_STOP,                  /* the answer is complete by the service's judgement (stop string) */
    COORD_NODE_STATE,            /* a node is there; its figures changed */
    COORD_NODE_LOST,             /* stream broken or heartbeat overdue */
    COORD_NODE_FORGOTTEN,        /* its number will be another node's */
    COORD_NODE_CACHE,            /* what its prefix cache holds changed */
    COORD_RESERVED,              /* decode node: pages promised */
    COORD_LANDED,                /* decode node: KV is here as far as it will come */
    COORD_TOKENS,                /* decode node: answer tokens */
    COORD_DECODE_END,            /* the Decode stream ended */
    COORD_FIRST_TOKEN,           /* prefill node: the first answer token */
    COORD_SENT,                  /* prefill node: every page has been taken by the decode node */
    COORD_PREFILL_END,           /* the Prefill stream ended */
    COORD_TICK,                  /* time passed */
} coord_event_kind;

typedef struct coord_event {
    coord_event_kind kind;
    uint64_t request;            /* caller's number, unique among live requests, not 0 */
    uint32_t attempt;            /* of the stream that speaks; older ones are dropped */
    int node;                    /* NODE_STATE, NODE_LOST, NODE_CACHE */
    union {
        struct {
            const char *id;          /* for the log; copied */
            const int32_t *tokens;   /* prompt, then of the answer what the client has already; copied */
            int32_t count, prompt_count;
            int32_t max_tokens;      /* > count - prompt_count; prompt_count + max_tokens fit the context */
            int64_t deadline_ms;     /* monotonic; INT64_MAX: none */
            int prefer_node;         /* decode node that has just read this prompt, so caches it whatever the view
                                        says yet; -1: none */
            uint64_t salt;           /* of the tenant's prefix cache */
            uint64_t tenant;         /* a number for it; 0: the clients that named none */
            bool explain;            /* the actions tell the costs compared */
            bool prompt_here;        /* the decode node is to read the prompt, all of it: its log probabilities are wanted */
        } submit;
        coord_node node_state;
        /* page at[i] holds the prefix numbered numbers[i] now (prefix_number), 0: nothing. whole: and no other does. */
        struct { bool whole; const int32_t *at; const uint64_t *numbers; int32_t count; } cache;
        /* kv_key: for the prefill node; not looked at, nor kept. */
        struct { uint64_t ticket; const char *kv_address; const void *kv_key; size_t kv_key_bytes; int32_t cached, wanted; } reserved;
        struct { int32_t tokens; } landed;
        struct { double exposed_ms; } sent;  /* how long the transfer took after the last row was computed */
        /* also FIRST_TOKEN; index: position in the sequence, the first answer token's is the
         * prompt's count */
        struct { int32_t index; const int32_t *tokens; int32_t count; } tokens;
        struct { status st; const char *text; bool done; int32_t reason; int64_t retry_after_ms; } end;
    };
} coord_event;

typedef enum coord_action_kind {
    COORD_DO_DECODE,             /* start Decode on node */
    COORD_DO_PREFILL,            /* start Prefill on node */
    COORD_DO_CANCEL_DECODE,      /* cancel the streams of that attempt */
    COORD_DO_CANCEL_PREFILL,
    COORD_DO_EMIT,               /* give these tokens to the client */
    COORD_DO_FINISH,             /* last action of a request: it is forgotten */
} coord_action_kind;

/* What a node was expected to cost a request, in ms; a row of the table behind `generate --explain`. */
typedef struct coord_cost {
    int32_t node;
    int32_t cached;              /* tokens of the prompt it holds, by the view */
    coord_role role;
    bool chosen;
    float queue;                 /* until it begins with this prompt */
    float prefill;               /* a decode node: the prompt read where that is cheaper, and what others wait for it */
    float transfer;
    float decode;                /* the answer, as crowded as the node is */
    float total;
} coord_cost;

typedef struct coord_action {
    coord_action_kind kind;
    uint64_t request;
    uint32_t attempt;            /* also the epoch of the attempt's tickets */
    int node;
    union {
        /* tokens: prompt and what was emitted so far; borrowed until the next step. */
        struct { const int32_t *tokens; int32_t count, prompt_count, max_tokens, local_tokens_max; bool apart;
                 bool moved;                     /* the attempt before was ended to move it: coordinator/move.c */
                 uint64_t salt; const coord_cost *costs; int32_t costs_count; } decode;
        /* kv_address, kv_key: the RESERVED event's own, which is this step's. */
        struct { const int32_t *tokens; int32_t count, prompt_count; uint64_t ticket;
                 const char *kv_address; const void *kv_key; size_t kv_key_bytes; int32_t skip, send_end;
                 uint64_t salt; const coord_cost *costs; int32_t costs_count;
                 bool hold;                      /* nothing is to be sent: the pages are kept until it is canceled */
                 bool moved; } prefill;          /* of an answer that the node ran: it is asked though it drains */
        /* index as in the events; borrowed until the next step. */
        struct { int32_t index; const int32_t *tokens; int32_t count; } emit;
        struct { status st; int32_t reason; int64_t retry_after_ms; int32_t attempts;   /* retry_after_ms: -1: no hint */
                 const char *text; } finish;   /* text: for the client, NULL when ST_OK */
    };
} coord_action;

/* Filled by one step, valid until the next. */
typedef struct coord_actions {
    const coord_action *at;
    int count;
} coord_actions;

/* One event in, what to do out. Never fails: a request it has no memory for is finished with
 * ST_NO_MEMORY. now_ms must not go back. */
void coord_core_step(coord_core *c, const coord_event *e, int64_t now_ms, coord_actions *out);
/* When the next COORD_TICK is due; INT64_MAX: none. */
int64_t coord_core_next_tick_ms(const coord_core *c);

/* Why a request goes back to be placed again: a status, with which its attempt failed (ST_AGAIN: the node was full), or one
 * of these. */
enum {
    COORD_AGAIN_MOVED = ST_COUNT,    /* its node is to have no work any more: move.c */
    COORD_AGAIN_SLOW,                /* its pages moved too slowly: slow.c */
    COORD_AGAIN_NO_PREFILL,          /* every prefill node was gone when its prompt was to be read */
    COORD_AGAIN_CAUSES
};

/* Why a node was chosen. The first four: coord_route_reason() in route.c. */
typedef enum coord_reason {
    COORD_REASON_CACHE,
    COORD_REASON_LOAD,
    COORD_REASON_ONLY,
    COORD_REASON_POLICY,
    COORD_REASON_LOCAL,              /* no prefill node: the decode node reads the prompt, or has it */
    COORD_REASON_HOLDER,             /* it sends what it has read, or run, of this request; or caches what no prefill node does */
    COORD_REASONS
} coord_reason;

typedef struct coord_counts {
    int32_t waiting, placed;     /* requests */
    int64_t waiting_tokens;      /* of prompts */
    int64_t retries, moves, disagreements;       /* retries: attempts that failed */
    int64_t held_out;            /* times that a node was, because it flaps: lapse.c */
    int64_t again[COORD_AGAIN_CAUSES];
    int64_t chosen[COORD_DECODE + 1][COORD_REASONS];     /* Decode streams; Prefill streams, holds among them, and LOCAL */
} coord_counts;
coord_counts coord_core_counts(const coord_core *c);

/* ---- service ------------------------------------------------------------------------------------ */

typedef struct coord_service coord_service;

typedef struct coord_options {
    const char *id;              /* "coordinator-1" */
    const char *model;           /* path: tokenizer, template, digest, context */
    const char *listen;          /* "host:port" */
    const char *nodes;           /* "host:port,host:port", or etcd's address: cluster/cluster.h */
    int heartbeat_ms;            /* a node silent for three of these is lost */
    coord_limits limits;
} coord_options;

status coord_service_open(const coord_options *o, coord_service **out, error *err);
const char *coord_service_address(const coord_service *s);
/* Nodes that are ready, by role: what `baton up` waits for. Any thread. */
int coord_service_ready(const coord_service *s, coord_role role);
enum { COORD_MODEL_NAME_MAX = 128 };
/* How clients call the model: the file's name without .gguf. */
void coord_model_name(const char *path, char out[COORD_MODEL_NAME_MAX]);
/* Refuses new requests, lets accepted ones finish for up to grace_ms, then cancels them. Blocks. */
void coord_service_close(coord_service *s, int grace_ms);

#ifdef __cplusplus
}
#endif
#endif
