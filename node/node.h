/* node.h -- what a prefill node and a decode node have in common: sequences, pages, one step at a time.
 *
 * The core is single-threaded and pure but for its io table: messages in, steps, events out; time is
 * an argument. In production its thread is the engine thread (node/process.c); in the simulator
 * (tests/sim) the io table is a simulated network and engine. The two roles plug in by a table:
 * prefill-node/ (tokens in, pages out) and decode-node/ (pages in, tokens out). */
#ifndef BATON_NODE_H
#define BATON_NODE_H

#include "base/base.h"
#include "engine/engine.h"
#include "kvtransfer/kvtransfer.h"
#include "node/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct node_core node_core;
typedef struct node_seq node_seq;
typedef struct node_role node_role;

/* ---- messages into the core ---------------------------------------------------------------------- */

/* A request as it comes off the wire, checked for syntax. The core owns it (one arena) from
 * node_core_submit() on, whatever that returns. */
typedef struct node_request {
    arena *memory;               /* everything below lives here */
    uint64_t handle;             /* caller's number for this call; events carry it */
    const char *id;
    uint32_t epoch;
    const int32_t *tokens;       /* prompt, then answer tokens of earlier attempts */
    int32_t count, prompt_count;
    eng_sampling sampling;
    uint64_t salt;
    int32_t priority;            /* higher goes first: node/schedule.h; PRIORITY_MAX either side of 0 */
    /* decode */
    int32_t max_tokens;          /* answer tokens in all, those in tokens included */
    const int32_t *stop_tokens;
    int32_t stop_count;
    bool ignore_eos;
    int32_t local_tokens_max;
    bool apart;                  /* positions before the prompt's last are computed by prefill nodes only */
    uint32_t lease_ms;
    bool prompt_logprobs;        /* of the prompt's tokens from position prompt_first (1 or more) on, with so many alternatives */
    int32_t prompt_first, prompt_tops;
    /* prefill */
    uint64_t ticket;
    const char *kv_address;      /* of the receiving node's ranks, with commas */
    bool sealed;                 /* frames are, with: */
    unsigned char kv_key[KVT_KEY_BYTES];
    eng_kv_type kv_type;         /* of its pages */
    int32_t skip, send_end;
    bool hold;                   /* nothing is sent: the pages are kept until it is canceled */
    bool moved;                  /* of an answer that this node ran: its pages are wanted elsewhere */
} node_request;

static inline void node_request_free(node_request *r) {
    kvt_key_wipe(r->kv_key, sizeof r->kv_key);
    arena_destroy(r->memory);
}

/* ---- events out of the core ---------------------------------------------------------------------- */

typedef enum node_event_kind {
    NODE_RESERVED,               /* decode: pages promised */
    NODE_LANDED,                 /* decode: the transfer is over */
    NODE_PROMPT,                 /* decode: one token of the prompt, in order; all of them before the first answer token */
    NODE_TOKEN,                  /* decode: one answer token; its logprob is NaN when none was asked for */
    NODE_DONE,                   /* decode: reason and figures; NODE_END follows */
    NODE_FIRST_TOKEN,            /* prefill */
    NODE_SENT,                   /* prefill: the receiver has every page */
    NODE_END,                    /* last event of a handle: status and text */
} node_event_kind;

typedef struct node_event {
    node_event_kind kind;
    uint64_t handle;
    union {
        /* sealed and key: filled in where the promise was made, on its way out of the core. */
        struct { uint64_t ticket; int32_t cached, wanted; bool sealed; unsigned char key[KVT_KEY_BYTES]; } reserved;
        struct { int32_t tokens; int64_t wait_us; status st; } landed;
        struct { int32_t index; eng_sampled sampled; int32_t cached; int64_t prefill_us; } token; /* and FIRST_TOKEN, PROMPT */
        struct { int32_t reason; int32_t computed; int64_t prefill_us; int32_t proposed, accepted; int64_t draft_us; } done;
        struct { uint64_t bytes; int64_t wire_us, hidden_us; } sent;
        struct { status st; const char *text; } end;   /* text: NULL or borrowed until emit returns */
    };
} node_event;

/* ---- speculation: who proposes tokens to sequences that decode ------------------------------------- */

/* One of a node, made by decode-node/speculate.h. What it proposes changes how many steps an answer takes, never its
 * bytes: decode-node/decode.c takes a token only where the target draws the same. Engine thread's. */
typedef struct node_speculator {
    void *ctx;
    void (*join)(void *ctx, node_seq *s);        /* sets s->speculation, in s's arena; NULL: nothing is proposed to s */
    void (*leave)(void *ctx, node_seq *s);       /* only after join() set it */
    bool (*work)(void *ctx);                     /* before each step, as a draft's prompt; false: there was nothing to do */
    /* How many tokens it would propose behind s->tokens[0, count): at most `most`. So many sequences decode in this step. */
    int32_t (*plan)(void *ctx, node_seq *s, int32_t most, int32_t decoding);
    /* Writes at most counts[i] tokens behind seqs[i]->tokens[0, count) and to counts[i] how many. */
    void (*propose)(void *ctx, node_seq *const *seqs, int32_t *counts, int n);
    /* Of `proposed` tokens the target drew the first `accepted`, and then the last of s->tokens. rest: the logits behind
     * each of the other proposed ones; NULL: the answer is over. */
    void (*judge)(void *ctx, node_seq *s, int32_t proposed, int32_t accepted, const float *rest);
    void (*stepped)(void *ctx, int32_t rows, int64_t took_us);       /* a step of decode entries only */
} node_speculator;

/* ---- io: everything the core does to the world ---------------------------------------------------- */

/* None of these may call back into the core: what they learn comes later, as a message. */
typedef struct node_io {
    void *ctx;
    /* One forward pass: eng_step(). */
    status (*step)(void *ctx, const eng_rows *rows, int count, const float **logits);
    /* eng_step_draws(). NULL: never. */
    bool (*draws)(void *ctx, eng_draw *d);
    /* How long the last step took. NULL: no time passes in a step. */
    int64_t (*step_us)(void *ctx);
    void (*copy_page)(void *ctx, int32_t dst, int32_t src, int32_t tokens);
    /* KV of tokens [token_first, token_end) from the pages in blocks to those of host memory in slots, or back; token_first
     * begins a page, both tables begin at token 0. Returns the microseconds it took. NULL: there is no such memory. */
    int64_t (*swap)(void *ctx, bool out, const int32_t *blocks, const int32_t *slots, int32_t token_first,
                    int32_t token_end);
    /* Receiving: kvt_promise()/kvt_revoke(). blocks stay valid and pinned until the core has been told
     * node_core_landed() for the ticket: the fence. */
    status (*promise)(void *ctx, node_seq *seq, uint64_t ticket, uint32_t epoch, int32_t token_first,
                      int32_t token_end, uint32_t lease_ms, const int32_t *blocks);
    void (*revoke)(void *ctx, uint64_t ticket);
    /* Sending: kvt_send_*(). The pages are pinned until node_core_sent() for the handle. */
    status (*send_open)(void *ctx, node_seq *seq, const char *kv_address, uint64_t ticket,
                        uint32_t epoch, const int32_t *blocks, void **send);
    void (*send_push)(void *ctx, void *send, int32_t token_first, int32_t tokens);
    void (*send_end)(void *ctx, void *send);
    void (*send_abort)(void *ctx, void *send);
    uint64_t (*random_ticket)(void *ctx);        /* unguessable, not 0 */
    bool (*is_end_token)(void *ctx, int32_t token);
    void (*emit)(void *ctx, const node_event *e);
    const node_speculator *speculator;           /* NULL: nothing is proposed */
} node_io;

/* What becomes of the KV of an answer that gives its pages up. */
typedef enum node_preemption {
    NODE_PREEMPT_AUTO,           /* whichever measured cheaper */
    NODE_PREEMPT_RECOMPUTE,      /* dropped and computed again, but for what the prefix cache still has */
    NODE_PREEMPT_SWAP,           /* kept in host memory while there is room */
} node_preemption;

typedef struct node_limits {
    int32_t V, context;
    int32_t pages, page_tokens;
    int32_t sequences_max;       /* alive at once; more are refused with ST_AGAIN */
    int32_t step_tokens_max;     /* rows of one step */
    int32_t chunk_tokens;        /* most rows of one sequence's prefill in a step */
    int32_t logits_max;
    bool prefix_cache;
    const node_schedule *schedule;           /* NULL: decode-first */
    int64_t itl_target_us;       /* of a step with decode rows in it; 0: by what those take alone */
    node_preemption preemption;
    int32_t swap_pages;          /* pages of host memory; 0: none */
} node_limits;

node_core *node_core_create(const node_limits *limits, const node_io *io);   /* NULL: no memory */
void node_core_destroy(node_core *c);            /* no sequence may be left (asserted) */

/* Takes r (always). Refusals are a NODE_END event: ST_AGAIN no room now, ST_BAD_INPUT what is wrong. */
void node_core_submit(node_core *c, const node_role *role, node_request *r, int64_t now_us);
/* The caller left: NODE_END(ST_CANCELED) comes, at once or when the fence stands. Unknown: nothing. */
void node_core_cancel(node_core *c, uint64_t handle);
/* The caller's reader is slow (paused) or has room again: no row is computed for it meanwhile. */
void node_core_pause(node_core *c, uint64_t handle, bool paused);
void node_core_landing(node_core *c, uint64_t handle);       /* the first frame has come */
void node_core_landed(node_core *c, uint64_t handle, status st, int32_t tokens, int64_t now_us);
void node_core_sent(node_core *c, uint64_t handle, status st, uint64_t bytes, int64_t wire_us,
                    int64_t now_us);
/* Forms a batch and computes it. false: there was nothing to compute. */
bool node_core_step(node_core *c, int64_t now_us);
void node_core_cancel_all(node_core *c);

typedef struct node_counts {
    int32_t pages[ENG_PAGE_STATES];
    int32_t running, waiting;
    int64_t steps, prefill_tokens, decode_tokens;
    int64_t preemptions, swaps;  /* swaps: preemptions of which the KV went to host memory */
    int32_t swapped;             /* pages of host memory in use */
    double prefill_tokens_per_s, decode_steps_per_s;         /* moving averages, 0: not yet */
} node_counts;
void node_core_counts(const node_core *c, node_counts *out);
/* eng_pool_changes(). */
int32_t node_core_cache_changes(node_core *c, int32_t max, int32_t *pages, uint64_t *numbers);

/* ---- sequence and role: for prefill-node/ and decode-node/ only (node/seq.h has the verbs) --------- */

/* One sequence on this node. Engine thread's; born in node_core_submit(), ended by node_seq_end(). */
struct node_seq {
    node_seq *next, *prev;       /* in the core's list, oldest first */
    const node_role *role;
    node_request *request;       /* this struct lives in its arena too */
    int state;                   /* the role's own states */
    bool paused;                 /* its reader is slow */
    bool runnable;               /* its rows may be batched: set by the role */
    bool waiting;                /* has no pages and wants some: role->resume() is tried, oldest first */
    int32_t *tokens;             /* (tokens_max): request tokens, then sampled ones */
    int32_t count, tokens_max;
    int32_t ready;               /* positions [0, ready) have their KV in the pages */
    int32_t target;              /* positions [0, target) are to be computed before sampling: count */
    int32_t *blocks;             /* (blocks_max) pages held, one pin each */
    int32_t blocks_count, blocks_max;
    int32_t published;           /* leading pages offered to the prefix index */
    int32_t cached;              /* leading tokens found in the prefix cache */
    int32_t computed;            /* rows computed here before the first answer token */
    eng_draw *draws;             /* of the step under way: its tokens, drawn by the model; NULL: from its logits */
    int64_t last_step;           /* number of the step that had rows of it: who waited longest goes first */
    node_place place;            /* its list's order */
    int64_t service_us;          /* engine time its answer has used, and what its prompt was estimated to */
    int64_t served_us;           /* when it last had a row, or wanted none */
    bool joined, promoted;       /* its prompt was charged; brought up by aging */
    int32_t *slots;              /* (blocks_max) pages of host memory, where there are any */
    int32_t slots_count, swapped;            /* swapped: tokens whose KV is in them */
    int64_t began_us, first_us;  /* taken; first step with rows of it began */
    int64_t prefill_us;          /* from first_us until the prompt was computed */
    status ending;               /* why it ends, while its fence is awaited */
    const char *ending_text;
    void *send;                  /* prefill */
    int32_t pushed;              /* prefill: tokens of [skip, send_end) given to the send, from skip on */
    int64_t computed_us;         /* prefill: when the last row was computed */
    uint64_t ticket;             /* decode */
    int32_t told;                /* decode: positions of the prompt whose logprobs were said, or are not wanted, end here */
    void *speculation;           /* decode: the speculator's */
    int32_t proposed, accepted;  /* decode: tokens */
    int64_t draft_us;            /* decode: its part of the draft's time, the speculator's to count */
};

struct node_role {
    const char *name;            /* "prefill", "decode" */
    /* Decide on pages and the first state; may end the sequence. */
    void (*admit)(node_core *c, node_seq *s, int64_t now_us);
    /* It is s->waiting and pages came back: take what it needs. false: still too few. */
    bool (*resume)(node_core *c, node_seq *s, int64_t now_us);
    /* Before its rows are batched: see to the pages they are written to. false: not in this step. NULL:
     * always has them. */
    bool (*prepare)(node_core *c, node_seq *s);
    /* Rows r are computed; s->ready counts those up to s->target, and what follows was proposed. logits: of the last
     * r->logits of them, NULL if that is 0. May end the sequence. */
    void (*computed)(node_core *c, node_seq *s, const eng_rows *r, const float *logits, int64_t now_us);
    void (*landing)(node_core *c, node_seq *s);
    void (*landed)(node_core *c, node_seq *s, status st, int32_t tokens, int64_t now_us);
    void (*sent)(node_core *c, node_seq *s, status st, uint64_t bytes, int64_t wire_us, int64_t now_us);
    /* End with st: at once, or when the fence stands. */
    void (*stop)(node_core *c, node_seq *s, status st, const char *text);
    /* A sequence in front of it needs pages: give all back and wait. false: it can not now. NULL: never. */
    bool (*preempt)(node_core *c, node_seq *s);
};

/* ---- process: the core on its threads, behind gRPC (node/process.c) -------------------------------- */

typedef struct node_options {
    const char *id;              /* "prefill-1" */
    const char *role;            /* "prefill" or "decode": what it tells the coordinator it is for */
    const char *model;           /* path */
    const char *listen, *kv_listen;              /* "host:port", port 0: any */
    const char *kv_transport;    /* kvtransfer's; NULL: its first */
    const char *isa;             /* engine's; NULL: auto */
    const char *device;          /* engine's; NULL: cpu */
    int threads;                 /* of each rank; 0: what the machine allows */
    int rank, ranks;             /* of a tensor-parallel group; 0 and 1 ranks: alone */
    const char *group;           /* where its ranks meet: coll_meet_at() */
    int32_t kv_pages, page_tokens;
    eng_kv_type kv_type;
    int32_t sequences_max, step_tokens_max, chunk_tokens;        /* chunk_tokens 0: as many as a step takes */
    const node_schedule *schedule;
    int32_t itl_target_ms;
    node_preemption preemption;
    int64_t swap_bytes;          /* of host memory, all ranks together */
    bool prefix_cache;
    const node_speculator *speculator;           /* borrowed until close; NULL: none */
    const char *cache_dir;       /* engine's; NULL: no file of prepared weights */
    void (*progress)(double share, void *ctx);
    void *progress_ctx;
    const char *registry;        /* cluster.h's: where it registers; NULL: nowhere */
    /* A later process has its id: it should be closed. Any thread. */
    void (*displaced)(void *ctx, const char *why);
    void *displaced_ctx;
} node_options;

typedef struct node_process node_process;
typedef struct node_service node_service;        /* what a role adds to the Node service: node/service.h */

/* Every process serves every role's methods, so that it may change its role. Prints by log_write how its
 * memory adds up before it serves. */
status node_process_open(const node_options *o, const node_service *const *services, int count,
                         node_process **out, error *err);
const char *node_process_address(const node_process *p);
const char *node_process_kv_address(const node_process *p);
bool node_process_draining(const node_process *p);       /* any thread: it takes no new requests */
/* Refuses new work, lets running work finish or move for up to grace_ms, ends the rest, takes back its registration. Blocks. */
void node_process_close(node_process *p, int grace_ms);

/* A rank other than 0: follows it, on the calling thread. ST_OK: it was dismissed. */
status node_follow(const node_options *o, error *err);

#ifdef __cplusplus
}
#endif
#endif
