/* rank.h -- what every rank of a node has: its share of the model, its pages, its end of the KV transfers.
 * Internal to node/.
 *
 * A node is one rank, or a tensor-parallel group of several processes. Rank 0 owns service, scheduler and the
 * ownership of pages (process.c) and leads; the others follow (follow.c): steps by the engine's plans, transfers by
 * notes that travel with them. Page numbers are the same on all ranks; each holds its own heads of every page.
 *
 *   rank.c      opens and closes all this                              on every rank
 *   transfer.c  one rank's end of a transfer: its heads in or out      on every rank
 *   swap.c      its heads of preempted sequences' pages                on every rank
 *   link.c      the core's transfers, spread over the ranks            on rank 0
 *   follow.c    a rank that is not 0                                   on the others
 *
 * A rank that is lost ends its group: rank 0 leaves with exit code 1 like a process that was killed
 * (node_rank_lost), the others when their next call fails. Whoever asked places again. */
#ifndef BATON_NODE_RANK_H
#define BATON_NODE_RANK_H

#include "collective/collective.h"
#include "kvtransfer/kvtransfer.h"
#include "node/node.h"
#include <stdatomic.h>

typedef struct node_process node_process;
typedef struct node_message node_message;
typedef struct node_transfer node_transfer;

/* Something for rank 0's engine thread to do. It stands in the object it is about, so that posting allocates
 * nothing, and an object posts each of its messages at most once at a time. */
struct node_message {
    void (*run)(node_process *p, node_message *m);
};

enum { NODE_ADDRESS_MAX = 80, NODE_ADDRESSES_MAX = COLL_RANKS_MAX * NODE_ADDRESS_MAX, NODE_ID_MAX = 208 };
enum { NODE_BEAT_MS = 500, NODE_GROUP_TIMEOUT_MS = 4000 };       /* a lost rank is known within their sum */

typedef enum node_heard_kind { NODE_HEARD_FIRST = 1, NODE_HEARD_LANDED, NODE_HEARD_SENT } node_heard_kind;

/* What a rank says of a transfer; travels between processes of one build. */
typedef struct node_heard {
    uint64_t transfer;           /* its number on this node */
    int32_t kind, st;
    int64_t tokens;              /* LANDED */
    uint64_t bytes;              /* SENT */
    int64_t wire_us;
} node_heard;

typedef struct node_report {
    node_message message;        /* rank 0's travel by its mailbox */
    struct node_report *next;    /* a follower's wait to be asked for */
    node_heard heard;
} node_report;

/* A transfer as all ranks are told of it; what is for one direction only is zero in the other. */
typedef struct node_order {
    uint64_t transfer, ticket;
    uint32_t epoch;
    const char *id;              /* the request's, as are blocks: borrowed until the transfer was forgotten */
    const int32_t *blocks;
    int32_t token_first, token_end;          /* receiving */
    uint32_t lease_ms;
    const unsigned char *key;    /* the ticket's; NULL: frames are not sealed. Copied */
    const char *addresses;       /* sending: of the other node's ranks, "host:port,host:port" */
    eng_kv_type type;            /* sending: the other node's */
} node_order;

/* What ranks tell each other when all are open. */
typedef struct node_hello {
    char kv_address[NODE_ADDRESS_MAX];
    char same[160];              /* must be equal on all ranks */
    int64_t pid;
} node_hello;

/* Since it opened. */
typedef struct node_rank_figures {
    int64_t group_us;            /* in collectives */
    uint64_t bytes_in, bytes_out;            /* of KV */
} node_rank_figures;

/* One a process. Engine thread's, but for what transfer.c says. */
typedef struct node_rank {
    int index, count;
    int head_first, heads;       /* kv heads of the model in this rank's pages */
    coll *group;                 /* NULL: alone */
    eng_gguf *gguf;
    eng_model *model;
    eng_kv *kv;
    char *swap;                  /* (swap_pages) packed pages in host memory; NULL: none */
    int32_t swap_pages, page_tokens;         /* the same on all ranks */
    kvt_node *kvt;
    node_hello met[COLL_RANKS_MAX];
    node_transfer *transfers;
    void (*report)(void *ctx, node_report *r);       /* kvt thread; engine thread when nothing was to be done */
    void *ctx;
    atomic_uint_fast64_t bytes_in, bytes_out;        /* of KV */
} node_rank;

/* All ranks of the group call it; returns when all are open and have met. limits: what of the options the
 * engine sizes itself by. */
status node_rank_open(node_rank *k, const node_options *o, const node_limits *limits, error *err);
void node_rank_close(node_rank *k);
/* One term a line. more_bytes: what else the process holds, by its name. */
void node_rank_log_memory(const node_rank *k, const node_options *o, const node_limits *limits, const char *more,
                          size_t more_bytes);
/* process.c: sizes by the options, defaults filled in; V and context stay 0. */
void node_limits_set(node_limits *l, const node_options *o);
node_rank_figures node_rank_count(const node_rank *k);
/* Ends the process. */
void node_rank_lost(const error *err) __attribute__((noreturn));

/* transfer.c. Reports come once each: FIRST (if anything came), then LANDED; or SENT. */
status node_transfer_promise(node_rank *k, const node_order *o);
void node_transfer_revoke(node_rank *k, uint64_t ticket);
status node_transfer_send(node_rank *k, const node_order *o, error *err);
void node_transfer_push(node_rank *k, uint64_t transfer, int32_t token_first, int32_t tokens);
void node_transfer_end(node_rank *k, uint64_t transfer);
void node_transfer_abort(node_rank *k, uint64_t transfer);
void node_transfer_forget(node_rank *k, uint64_t transfer);      /* after LANDED or SENT */
void node_transfer_forget_all(node_rank *k);                     /* after the kvt node was closed */

/* swap.c. Makes room for o->swap_bytes less what does not fill a page of all ranks. */
status node_swap_open(node_rank *k, const node_options *o, const node_limits *l, error *err);
void node_swap_close(node_rank *k);
size_t node_swap_bytes(const node_rank *k);
/* This rank's heads of tokens [token_first, token_end): node_io.swap. */
void node_swap_move(node_rank *k, bool out, const int32_t *blocks, const int32_t *slots, int32_t token_first, int32_t token_end);

/* Addresses one by one: writes the next of *list, moves *list behind it; false: no more, or one too long. */
bool node_transfer_next_address(const char **list, char out[NODE_ADDRESS_MAX]);

#endif
