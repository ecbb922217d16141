/* sim.h -- a cluster in one process, one thread and one seed.
 *
 *   client.c       requests, what they must be answered, what was
 *   coordinator.c  the shipped coordinator core; streams to the nodes; heartbeats
 *   node.c         a process: the shipped node core, its pages and a toy engine
 *   speculator.c   tokens proposed to a node that decodes
 *   transfer.c     the shipped kvt_promises and frame codec; links between nodes
 *   fault.c        kill, pause, break, corrupt, ... and heal
 *   sim.c          time, chance, one run, many runs
 *
 * Shipped: every decision and all bookkeeping. Simulated: time, processes, wires, the model. A toy
 * KV cell holds a hash of all tokens up to its position, computed from the cells that are really
 * found in the pages; so a page that is missing, stale or someone else's changes the answer.
 *
 * In some runs the prefill nodes compute by other numerics than the decode nodes. What a cell holds depends on who
 * computed it, so a prompt's row computed on the wrong side, or found where it does not belong, changes the answer.
 *
 * Phase 1: requests and faults. Phase 2: all is healed, and everything accepted must be answered with
 * the tokens a lone computation gives, every page must come back, and no stream may be left. */
#ifndef BATON_TESTS_SIM_H
#define BATON_TESTS_SIM_H

#include "coordinator/coord.h"
#include "decode-node/decode.h"
#include "kvtransfer/kvtransfer.h"
#include "node/core.h"
#include "prefill-node/prefill.h"

enum {
    SIM_NODES_MAX = 5,
    SIM_REQUESTS_MAX = 16,
    SIM_LAYERS = 2,
    SIM_V = 32,
    SIM_TOKENS_MAX = 260,
    SIM_HEARTBEAT_US = 30000,
    SIM_END_TOKEN = 7,
    SIM_PATIENT_MS = 60000,      /* longer than any run */
};

/* Planted with --bug N: each breaks a rule in the glue around the shipped code, the way a careless
 * service would. */
#define SIM_BUGS(X)                                                                                 \
    X(BUG_FREE_IN_FLIGHT, "the core is told that a revoked transfer is over while frames still land") \
    X(BUG_NO_EPOCH_CHECK, "a frame of an older attempt counts as one of this attempt")              \
    X(BUG_NO_LEASE, "leases never end")                                                             \
    X(BUG_TOKEN_TWICE, "a token is sent twice, the second time under the next index")               \
    X(BUG_WRONG_BLOCKS, "frames land one page off")                                                 \
    X(BUG_LANDED_TOO_MUCH, "a broken transfer is reported as whole")                                \
    X(BUG_END_LOST, "the end of a Decode stream is not passed on")                                  \
    X(BUG_NODE_LOST_LOST, "nobody is told that a node is gone, and its successor has its epoch")    \
    X(BUG_CANCEL_LOST, "cancels do not reach the nodes")                                            \
    X(BUG_NO_CRC, "payload is not checked")                                                         \
    X(BUG_NO_COPY, "copy on write does not copy")                                                   \
    X(BUG_SENT_TOO_EARLY, "the core is told that an aborted send is over while pages are still read") \
    X(BUG_SHORT_IS_DONE, "a frame is dropped and END is taken for complete")                        \
    X(BUG_SEED_LOST, "a retry samples with another seed")                                           \
    X(BUG_WRONG_HINT, "the prefill node's first token is another one")                              \
    X(BUG_JUDGED_NOT, "frames land whatever the judge says")                                        \
    X(BUG_TOKEN_LOST, "one token message is dropped")                                               \
    X(BUG_ATTEMPT_MIXED, "events of an old attempt carry the number of the current one")            \
    X(BUG_NUMERICS_LOST, "the coordinator does not hear that the roles have different numerics")    \
    X(BUG_APART_LOST, "the decode node does not hear that the prompt is read apart")                \
    X(BUG_SALT_LOST, "prompts read apart and prompts read by decode nodes share pages")             \
    X(BUG_HINT_SAID, "the prefill node's first token is passed on as the decode node's")         \
    X(BUG_HOLD_KEPT, "a prefill node does not hear that a held prompt is wanted no more")           \
    X(BUG_PROPOSED_ROWS, "the rows of proposed tokens have the logits of the row before them")      \
    X(BUG_ROLE_DROPS, "a node that takes another role drops what it runs without a word")

typedef enum sim_bug {
    BUG_NONE,
#define X(name, text) name,
    SIM_BUGS(X)
#undef X
    BUGS_END
} sim_bug;

/* What happened, counted over many runs: a fault or a rescue that never fires proves nothing. */
#define SIM_SEEN(X)                                                                                 \
    X(SEEN_KILL, "kills") X(SEEN_PAUSE, "pauses") X(SEEN_STREAM, "streams broken")                  \
    X(SEEN_LINK, "links broken") X(SEEN_DEAF, "heartbeats lost") X(SEEN_DRAIN, "drains")            \
    X(SEEN_READER, "slow readers") X(SEEN_ROLE, "roles changed") X(SEEN_LEAVE, "nodes told to end") \
    X(SEEN_LEFT, "of them drained when they did") X(SEEN_HELD_OUT, "nodes held out, as they flap")   \
    X(SEEN_LOST, "nodes declared lost") X(SEEN_LEASE, "leases ended") \
    X(SEEN_DUPLICATE, "frames twice") X(SEEN_STALE_TICKET, "stale tickets refused")                 \
    X(SEEN_STALE_EPOCH, "stale epochs refused") X(SEEN_ABORT, "aborts taken")                       \
    X(SEEN_CORRUPT, "frames corrupt") X(SEEN_SHORT, "transfers with a hole")            \
    X(SEEN_PREEMPTED, "preemptions") X(SEEN_SWAPPED, "of them swapped to host memory") X(SEEN_COPIED, "pages copied") \
    X(SEEN_REMOTE, "prompts computed remotely") X(SEEN_RETRIED, "attempts failed")                  \
    X(SEEN_MIGRATED, "answers begun by one attempt and ended by another")                           \
    X(SEEN_AGAIN, "requests refused at the door") X(SEEN_AGAIN_TOKENS, "refused: too many tokens wait") \
    X(SEEN_AGAIN_TENANT, "refused: a tenant's cap or share") X(SEEN_ANSWERED, "answers compared")   \
    X(SEEN_CACHE, "pages told to the coordinator")                                                  \
    X(SEEN_CANCELED, "requests canceled") X(SEEN_LATE, "requests too late")                         \
    X(SEEN_APART, "apart: attempts") X(SEEN_APART_HIT, "apart: prefixes found in the cache")        \
    X(SEEN_APART_SHORT, "apart: prompts that did not come whole")                                   \
    X(SEEN_APART_PREEMPTED, "apart: prompts lost to an older request")                              \
    X(SEEN_APART_RESUMED, "apart: preempted, and the prompt was still there")                       \
    X(SEEN_APART_FAILOVER, "apart: answers continued by another node")                              \
    X(SEEN_APART_WAITED, "apart: requests that waited for a prefill node")                          \
    X(SEEN_APART_GAVE_UP, "apart: prompts read by a decode node after all")                         \
    X(SEEN_AHEAD, "prompts to be read ahead") X(SEEN_HELD, "of them held")                          \
    X(SEEN_HELD_FOUND, "of those sent: rows found where they were held")                            \
    X(SEEN_HELD_UNPINNED, "unpinned, as their pages were wanted") X(SEEN_UNHELD, "refused, or lost")\
    X(SEEN_APART_HELD, "apart: held") X(SEEN_MOVED, "running answers moved off a node that drains")  \
    X(SEEN_MOVED_FOUND, "of those: rows that node still had") X(SEEN_OTHER_HOLDER, "prompts sent by another decode node") \
    X(SEEN_HAD, "begun by another coordinator")                                                     \
    X(SEEN_ACCEPTED, "proposed tokens accepted") X(SEEN_REJECTED, "proposed tokens rejected")

typedef enum sim_seen {
#define X(name, text) name,
    SIM_SEEN(X)
#undef X
    SEEN_KINDS
} sim_seen;

typedef struct sim sim;
typedef struct sim_event sim_event;
typedef struct sim_node sim_node;

/* Something that will happen. Aimed at a process (life > 0) it waits while that is paused, and is
 * handed to `dropped` instead when that life is over. data is freed after either. */
struct sim_event {
    int64_t at_us;
    uint64_t order;
    void (*run)(sim *s, sim_event *e);
    void (*dropped)(sim *s, sim_event *e);
    int node;
    uint32_t life;
    int64_t a, b;
    void *data;
    sim_event *next;             /* held by a paused node, or free */
};

typedef struct sim_stream {
    uint64_t handle;             /* index in streams + 1 */
    int request, node;
    uint32_t attempt, life;
    bool prefill, apart, hold, moved, broken, ended, done, canceled;
    int32_t reason;
    int32_t rows_end;            /* decode: positions below it were computed or are about to be */
    int32_t said;                /* decode: answer tokens */
    int64_t to_node_us, to_coord_us;         /* last delivery each way: streams keep their order */
    int64_t cancel_us;           /* when the cancel must have had its effect; 0: none */
} sim_stream;

typedef struct sim_receipt {
    struct sim_receipt *next;
    uint64_t ticket, handle;
    uint32_t epoch;
    bool landing;
    int32_t token_first, token_end;
    int64_t renewed_us;          /* added, or a frame landed */
    uint64_t links;              /* bit of each link that carried its frames */
    int32_t blocks[SIM_TOKENS_MAX];
} sim_receipt;

typedef struct sim_link {
    int from, to;
    uint32_t from_life, to_life;
    bool send_closed, recv_closed;
    int64_t last_us, back_us;
} sim_link;

typedef struct sim_send {
    struct sim_send *next;
    uint64_t handle, ticket;
    uint32_t epoch;
    int node, link;              /* -1: the address is nobody's */
    int32_t next_token, pushed_end, layer, count;
    bool end_asked, end_sent, ended, turn_due;
    int64_t active_us;
    int32_t blocks[SIM_TOKENS_MAX];
} sim_send;

struct sim_node {
    sim *s;
    int slot;
    bool prefill, starts_prefill;            /* what it is; what a new process of it is */
    bool alive, paused, draining, dying;
    uint64_t numerics;
    uint32_t life;               /* of the process; its epoch */
    node_core *core;
    kvt_promises *promises;
    int32_t pages, P, sequences_max;
    uint64_t *cells;             /* [page][layer][P] */
    uint64_t *host;              /* [page of host memory][layer][P] */
    uint64_t *page_ticket;       /* (pages) promised to this ticket until the core knows of the fence */
    sim_receipt *receipts;
    sim_send *sends;
    float logits[64 * SIM_V];
    node_speculator speculator;
    int64_t step_us, local_us, lease_event_us, paused_us;
    bool step_due;
    int begins;                  /* request that is submitted to the core */
    sim_event *held, **held_end;
    int64_t heard_us;            /* coordinator: last state; -1: lost */
    uint32_t heard_life;         /* whose it was */
    int64_t deaf_us;             /* heartbeats are lost until then */
};

typedef struct sim_request {
    int32_t tokens[SIM_TOKENS_MAX];          /* prompt and the right answer */
    int32_t prompt_count, answer_count, max_tokens;
    eng_sampling sampling;
    uint64_t salt;
    int32_t priority;
    bool ignore_eos;
    bool apart;                  /* tokens hold the answer to a prompt read apart */
    int decode_node;             /* of the last attempt */
    uint32_t hold_attempt;       /* that read its prompt ahead last */
    int holder;                  /* node that holds it, -1: none */
    int32_t asked;               /* tokens the decode node of the last attempt was given */
    int64_t submit_us, cancel_us, deadline_ms;           /* -1, INT64_MAX: none */
    int32_t stop_after;          /* tokens; 0: no */
    int32_t emitted;
    int32_t had;                 /* of them when it came, from a coordinator that died */
    uint32_t first_attempt;      /* that emitted a token */
    bool live, finished, canceled, stopped, migrated;
} sim_request;

struct sim {
    uint64_t seed, random;
    sim_bug bug;
    bool trace, failed, healed;
    char why[400];
    int64_t now_us, heal_us;
    uint64_t order;
    sim_event **heap;
    int heap_count, heap_room;
    sim_event *spare;
    uint64_t events;
    coord_core *core;
    coord_limits limits;
    bool mixed, apart;           /* the roles' numerics differ; and prompts are read by prefill nodes alone */
    int64_t tick_us;
    sim_node nodes[SIM_NODES_MAX];
    int nodes_count;
    uint32_t lives;
    sim_request requests[SIM_REQUESTS_MAX];
    int requests_count, requests_left;
    sim_stream **streams;
    int streams_count, streams_room;
    sim_link links[64];
    int links_count;
    sim_send *sends_gone;        /* of processes that are gone; frames on the wire look at them */
    int delay_max_us, turn_max_us;
    uint32_t lease_ms;
    bool weak_tickets;
    double loss, refusal, device;            /* chances in phase 1 */
    eng_sampler *sampler;
    uint64_t seen[SEEN_KINDS];
};

/* sim.c */
uint64_t sim_random(sim *s);
int64_t sim_range(sim *s, int64_t least, int64_t most);      /* both included */
bool sim_chance(sim *s, double p);
int64_t sim_delay(sim *s);
sim_event *sim_at(sim *s, int64_t at_us, void (*run)(sim *, sim_event *));
sim_event *sim_at_node(sim *s, int64_t at_us, int node, uint32_t life, void (*run)(sim *, sim_event *));
void sim_fail(sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sim_trace(sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void *sim_alloc(size_t bytes);
uint64_t sim_mix(uint64_t h, uint64_t x);

/* client.c */
void sim_client_create(sim *s);
/* From here on the prompt was read apart, or was not: the answer changes from the next token on. */
void sim_client_reread(sim *s, sim_request *r, bool apart);
void sim_client_emit(sim *s, const coord_action *a);
void sim_client_finish(sim *s, const coord_action *a);

/* coordinator.c */
void sim_coordinator_create(sim *s);
void sim_coordinator_step(sim *s, coord_event *e);
void sim_coordinator_node_event(sim *s, sim_node *n, const node_event *e);
void sim_coordinator_break(sim *s, sim_stream *st);
void sim_coordinator_hear(sim *s, sim_node *n);          /* it began to send heartbeats */
void sim_coordinator_gone(sim *s, sim_node *n);          /* its process died */

/* node.c */
void sim_node_create(sim *s, sim_node *n);               /* a process starts */
void sim_node_destroy(sim *s, sim_node *n);              /* and is gone, with all it held */
void sim_node_resume(sim *s, sim_node *n);
void sim_node_awake(sim *s, sim_node *n);                /* something changed: step soon */
/* To its engine thread's mailbox: first in, first out. */
sim_event *sim_node_post(sim *s, sim_node *n, void (*run)(sim *, sim_event *));
void sim_node_check(sim *s, sim_node *n, bool quiet);
uint64_t *sim_node_cell(sim_node *n, int32_t page, int layer, int32_t at);
uint64_t sim_numerics(const sim *s, bool prefill);
void sim_engine_row(uint64_t *state, int32_t token, uint64_t numerics, uint64_t cells[SIM_LAYERS]);
void sim_engine_fold(uint64_t *state, const uint64_t cells[SIM_LAYERS]);
void sim_engine_logits(uint64_t state, float *logits);

/* speculator.c */
void sim_speculator_create(sim_node *n);

/* transfer.c: a node's io */
status sim_transfer_promise(void *ctx, node_seq *seq, uint64_t ticket, uint32_t epoch, int32_t first,
                            int32_t end, uint32_t lease_ms, const int32_t *blocks);
void sim_transfer_revoke(void *ctx, uint64_t ticket);
status sim_transfer_open(void *ctx, node_seq *seq, const char *address, uint64_t ticket, uint32_t epoch,
                         const int32_t *blocks, void **send);
void sim_transfer_push(void *ctx, void *send, int32_t first, int32_t tokens);
void sim_transfer_end(void *ctx, void *send);
void sim_transfer_abort(void *ctx, void *send);
void sim_transfer_break(sim *s, int link, bool sender_told, bool receiver_told);
void sim_transfer_forget(sim *s, sim_node *n);           /* its process is gone */

/* fault.c */
void sim_fault_create(sim *s);

#endif
