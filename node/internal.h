/* internal.h -- struct node_process, rank 0 of a node, shared by process.c (threads), session.c (calls), watch.c
 * (state) and link.c (transfers on all ranks). What every rank has is rank.h's.
 *
 * Three threads meet here:
 *   engine   core (and in it the batch), pool, kv, model    process.c
 *   loop     rpc server, sessions, watchers                 session.c, watch.c
 *   kvt      callbacks of transfers                         transfer.c
 * To the engine: node_messages in its mailbox. To the loop: events in the outbox, posts. The loop and the
 * kvt thread never wait for the engine; so the engine may wait for the loop (a full outbox). */
#ifndef BATON_NODE_INTERNAL_H
#define BATON_NODE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include "cluster/cluster.h"
#include "node/rank.h"
#include "node/service.h"

typedef struct node_link node_link;

void node_process_post(node_process *p, node_message *m);  /* any thread; never fails, never blocks */

/* An event on its way from the engine to the loop; text is NODE_END's, copied. */
typedef struct node_letter {
    node_event event;
    char text[200];
    bool has_text;
} node_letter;

enum { NODE_OUTBOX = 1024 };

/* Filled by the engine, emptied by the loop, which takes it whole and leaves the other half. */
typedef struct node_outbox {
    pthread_mutex_t lock;        /* guards count, filling, posted */
    pthread_cond_t emptied;
    node_letter *filling, *reading;          /* (NODE_OUTBOX) each */
    int count;                   /* in filling */
    bool posted;                 /* the loop has been told */
} node_outbox;

typedef struct node_watcher node_watcher;

enum { NODE_CACHE_CHANGES = 4096 };      /* in one message: 48 KiB at most, within the window of a call */

/* Loop's, but for probe: see watch.c. */
typedef struct node_watch {
    node_watcher *first;
    rpc_timer *timer;
    node_message probe;
    node_counts answer;          /* engine writes it and ranks_answer between probe and answered() */
    node_rank_figures ranks[COLL_RANKS_MAX], ranks_answer[COLL_RANKS_MAX];
    struct {                     /* the same */
        int32_t count, pages[NODE_CACHE_CHANGES];
        uint64_t numbers[NODE_CACHE_CHANGES];
    } changes;
    uint64_t *held;              /* (pages) what each page held as of the last answer */
    bool probing;
    int64_t answered_ms;         /* last sign of life of the engine */
    uint64_t layers_done;        /* as of the last tick */
    node_counts counts;          /* as of the last answer */
    uint64_t version;            /* rises when anything in the state changes */
} node_watch;

/* What the engine thread does outside of the forward pass. */
typedef enum node_spent {
    NODE_SPENT_IDLE,             /* waits for messages */
    NODE_SPENT_SCHEDULE,         /* forms a batch; the draft model or another proposer works for it */
    NODE_SPENT_SAMPLING,         /* from logits to tokens told */
    NODE_SPENT_OTHER,            /* messages, ranks, what comes with a pass */
    NODE_SPENTS
} node_spent;

typedef struct node_table {      /* one service's method and its context */
    node_process *p;
    const node_service *service;
    rpc_method method;
} node_table;

enum { NODE_SERVICES_MAX = 4 };

/* Born in node_process_open(), ended by node_process_close(), both on the caller's thread. */
struct node_process {
    /* fixed while it serves */
    char id[64];
    uint64_t epoch;
    node_facts facts;
    node_limits limits;
    int sessions_max;
    eng_vocab *vocab;
    char kv_addresses[NODE_ADDRESSES_MAX];
    /* engine's */
    node_rank rank;              /* transfer.c packs and unpacks pinned pages on the kvt thread */
    node_link *link;
    node_core *core;
    int64_t step_us;
    struct {                     /* spent.c */
        int64_t at_us;           /* until when all is counted */
        int64_t step_us[ENG_SPENTS];         /* of the model's, those that are */
        node_spent now;          /* what node_core_step() does */
    } spent;
    bool stopping;
    pthread_t engine;
    bool engine_runs;
    node_message cancel_all, stop;
    /* loop's */
    rpc_loop *loop;
    rpc_server *server;
    rpc_health *health;
    cluster_member *member;      /* NULL: not registered anywhere */
    node_table tables[NODE_SERVICES_MAX];
    rpc_method methods[2];       /* Watch, Control */
    char role[16];
    atomic_bool draining;        /* the loop writes, any thread reads */
    bool closing;                /* draining for good */
    node_watch watch;
    bool closed;                 /* server is closed; guarded by outbox.lock, tells node_process_close() */
    /* between them */
    mailbox *mail;
    node_outbox outbox;
    atomic_int sessions;         /* alive: counted up by the loop, down by the engine */
    atomic_int owed;             /* calls canceled while it drains, less those that came for the pages of a moved answer */
};

/* session.c */
void node_session_open(rpc_call *call, const ProtobufCMessage *message, void *table);   /* on_request */
void node_session_show(void);                /* its metrics are there from now on, as 0 */
void node_session_deliver(node_process *p, const node_letter *letter);
/* watch.c */
void node_watch_pairing(const node_facts *f, Baton__Node__V1__Pairing *out);     /* looks into f */
bool node_watch_open(node_process *p);       /* before the loop runs; false: no memory */
void node_watch_close(node_process *p);
void node_watch_on_watch(rpc_call *call, const ProtobufCMessage *message, void *process);
void node_watch_on_control(rpc_call *call, const ProtobufCMessage *message, void *process);
/* link.c */
bool node_link_key(const node_process *p, uint64_t ticket, unsigned char key[KVT_KEY_BYTES]);    /* false: it has none */
status node_link_open(node_process *p, node_io *io, error *err);
void node_link_close(node_process *p);
/* Between steps: hears the other ranks where a transfer waits for them or none has been told anything for long. true:
 * one had something to say, so there may be something to compute or to tell. */
bool node_link_turn(node_process *p);
void node_link_figures(const node_process *p, node_rank_figures out[COLL_RANKS_MAX]);     /* as of the last time they were heard */
void node_gauges_set(const node_core *c);                 /* gauges.c */
/* spent.c: what passed since the last of these calls was spent on that, or on a forward pass. */
void node_spent_open(node_process *p);
void node_spent_on(node_process *p, node_spent on);
void node_spent_on_step(node_process *p);
int node_link_sleep_ms(const node_process *p);           /* how long the engine thread may wait for a message */

#endif
