/* service.h -- what the files of the coordinator's service share. Not for other folders.
 *
 *   service.c   life of the service; events into the core, its actions out to nodes and clients
 *   leg.c       one Decode or Prefill stream to a node
 *   generate.c  one client's Generate or GenerateOnce call and its n branches
 *   branch.c    their birth: name, seed, what the client has of them already
 *   answer.c    tokens of one branch on their way to the client
 *   figures.c   what it counts, for /metrics
 *   series.c    those of its metrics that are one for each link or tenant
 *   text.c      tokens to text: whole characters, stop strings
 *   check.c     is a GenerateRequest one we can serve, and what exactly does it ask for
 *   model.c     tokenizer, template and figures of the model file
 *   tokens_service.c, cluster_service.c   the other methods
 *
 * Everything runs on the service's loop, but for coord_model_* and coord_check_*, which are pure. */
#ifndef BATON_COORD_SERVICE_H
#define BATON_COORD_SERVICE_H

#include "cluster/cluster.h"
#include "coordinator/coord.h"
#include "engine/engine.h"
#include "proto/baton.pb-c.h"
#include "proto/node.pb-c.h"
#include "rpc/rpc.h"

#define HASH_NONFATAL_OOM 1
#define uthash_malloc(bytes) mem_alloc(bytes)
#define uthash_free(p, bytes) mem_free(p)
#include <uthash.h>

/* ---- model.c ------------------------------------------------------------------------------------ */

typedef struct coord_model {
    eng_gguf *gguf;
    eng_vocab *vocab;
    eng_template *chat;          /* NULL: see chat_why */
    char *chat_source;           /* "" : the file has none */
    error chat_why;
    char id[COORD_MODEL_NAME_MAX];
    const char *digest;
    int32_t context;
} coord_model;

/* Metadata only: no weights are read. */
status coord_model_open(const char *path, coord_model *out, error *err);
void coord_model_close(coord_model *m);
/* "" and the served id are fine; ST_NOT_FOUND names the served one. */
status coord_model_find(const coord_model *m, const char *id, error *err);
/* Prompt text to tokens, as generation reads it: spellings of control tokens are control tokens, and
 * a BOS comes first if the vocabulary asks for one and the text does not begin with it. */
status coord_model_tokenize(const coord_model *m, const char *text, arena *a, int32_t **tokens,
                            int32_t *count, error *err);
/* A chat through the template, then as above: so a message's content may spell control tokens too. */
status coord_model_tokenize_chat(const coord_model *m, const Baton__V1__Chat *chat, arena *a,
                                 int32_t **tokens, int32_t *count, error *err);

/* ---- check.c ------------------------------------------------------------------------------------ */

enum {
    COORD_N_MAX = 16,
    COORD_STOPS_MAX = 16,
    COORD_STOP_BYTES_MAX = 256,
    COORD_STOP_TOKENS_MAX = 64,
    COORD_BIAS_MAX = 1024,
    COORD_ID_BYTES_MAX = 64,
};

/* What the client has of one of the answers, from a stream that broke. */
typedef struct coord_seen {
    int32_t *tokens;             /* the prompt, then those of the answer */
    int32_t count;               /* of both; 0: it has nothing */
    bool finished;               /* it has the end, too */
} coord_seen;

/* What a client asked for, checked. Lives in the arena given. */
typedef struct coord_job {
    const char *id;              /* "" : none given */
    int32_t *tokens;             /* prompt */
    int32_t count;
    int32_t max_tokens;          /* at least 1; count + max_tokens fit the context */
    int32_t n, priority;
    coord_seen *seen;            /* (n); NULL: it is asked for the first time */
    int32_t prompt_logprobs;     /* alternatives of each of the prompt's tokens; -1: none are wanted */
    eng_sampling sampling;
    bool has_seed;
    const char **stops;
    int32_t stops_count;
    int32_t *stop_tokens;
    int32_t stop_tokens_count;
    bool ignore_eos, explain;
} coord_job;

status coord_check_generate(const coord_model *m, const Baton__V1__GenerateRequest *r, arena *a,
                            coord_job *out, error *err);
/* The token ends the answer: none follows it, and it has no text. */
bool coord_check_ends(const coord_model *m, const coord_job *job, int32_t token);
/* Every id must be in the vocabulary; what: how the list is called in the error. */
status coord_check_tokens(const coord_model *m, const char *what, const int32_t *tokens,
                          size_t count, error *err);

/* ---- text.c ------------------------------------------------------------------------------------- */

/* Text of one answer. Plain value, starts zeroed but for the first three. */
typedef struct coord_text {
    const eng_vocab *vocab;
    const char *const *stops;
    int32_t stops_count;
    eng_detok detok;
    char *data;                  /* [0, ready) may be given; [ready, count) may begin a stop string */
    size_t ready, count, max;
    bool stopped;
} coord_text;

/* Appends what token adds; silent: its text is not part of the answer. When a stop string is
 * complete, text ends before it and stopped is set for good. ST_NO_MEMORY. */
status coord_text_push(coord_text *t, int32_t token, bool silent);
/* Pushes all of them, the last one silently if it ends the answer, and drops what is ready: it was given before.
 * ST_BAD_INPUT: a stop string was complete before the last. ST_NO_MEMORY. */
status coord_text_replay(coord_text *t, const int32_t *tokens, int32_t count, bool ends);
/* No token follows: everything held back is ready. */
status coord_text_end(coord_text *t);
void coord_text_drop(coord_text *t, size_t bytes);       /* of the ready ones, from the front */
void coord_text_free(coord_text *t);

/* ---- answer.c ----------------------------------------------------------------------------------- */

typedef struct coord_top { int32_t token; float logprob; } coord_top;

typedef struct coord_told {
    int32_t token;
    bool has_logprob;
    float logprob;
    int32_t top_first, top_count;        /* in tops */
} coord_told;

typedef struct coord_tokens {
    coord_told *told;
    int32_t count, max;
    coord_top *tops;
    int32_t tops_count, tops_max;
} coord_tokens;

/* What is not sent yet of one branch. Plain value, starts with text's first fields. */
typedef struct coord_answer {
    coord_text text;
    coord_tokens tokens, prompt; /* prompt: of which logprobs are wanted */
} coord_answer;

/* info: what the node said about the token, NULL: nothing. ST_NO_MEMORY. */
status coord_answer_push(coord_answer *w, int32_t token, const Baton__Node__V1__Token *info,
                         bool silent);
status coord_answer_push_prompt(coord_answer *w, int32_t token, const Baton__Node__V1__Token *info);
bool coord_answer_empty(const coord_answer *w);
/* Messages for what is not sent yet of w->tokens or w->prompt, from arena. NULL: no memory. */
Baton__V1__TokenInfo **coord_answer_infos(const coord_answer *w, const coord_tokens *t, arena *a);
char *coord_answer_text(const coord_answer *w, arena *a);
void coord_answer_sent(coord_answer *w);
void coord_answer_free(coord_answer *w);

/* ---- branch.c, generate.c, leg.c --------------------------------------------------------------------------- */

typedef struct coord_client coord_client;
typedef struct coord_leg coord_leg;

/* One of the n answers of a call: one request of the core. */
typedef struct coord_branch {
    coord_client *client;
    int32_t index;
    uint64_t number;             /* in the core; 0: not there */
    char id[COORD_ID_BYTES_MAX + 16];           /* "ID", "ID/2", ... */
    uint64_t seed;
    const int32_t *tokens;       /* prompt, then what the client has of the answer: what is submitted */
    int32_t count;
    coord_answer answer;
    coord_leg *legs;
    const Baton__Node__V1__Token *const *heard;  /* of the message in hand, for EMIT */
    size_t heard_count;
    bool opened;                 /* its first chunk was sent */
    bool finished, told;         /* the core is done with it; its Finish was sent */
    int32_t reason, attempts;
    /* figures */
    int64_t submitted_us;        /* of index 0: when the call came */
    int64_t placed_us, first_us, last_us;
    uint32_t decode_attempt;     /* of its last Decode */
    uint32_t piece_attempt;      /* that said its last piece; 0: none has, or who had read the prompt ahead */
    int32_t computed;            /* rows [0, this) were computed by an attempt; 0: none */
    int32_t computed_before;     /* by those before its last Decode */
    int32_t held_tokens;         /* rows that were read ahead, and by whom */
    int held_node;
    int64_t held_us, taken_us;   /* its prompt was read ahead; and then a decode node had room; 0: not */
    double prefill_ms, transfer_ms, draft_ms;
    double ahead_ms;             /* of the prefill, the part that was read ahead */
    int32_t ahead_cached;        /* tokens that were cached before that */
    int decode_node, prefill_node;               /* -1: none */
    coord_cost *costs;           /* (COORD_COSTS_MAX) of the last placement; NULL: nobody asks */
    int32_t costs_count;
    int32_t tokens_count;        /* of the answer, those that the client had before included */
    int32_t cached, proposed, accepted;
    int32_t prompt_told;         /* positions of the prompt whose logprobs were heard; the first has none */
    int32_t wanted;              /* tokens of a prefill node */
    bool moved;                  /* its last placement was a move: who read the prompt, and how, stays as it was */
    rpc_timer *again;            /* waits to be submitted again */
    /* what the core is to be told after the step in hand */
    bool due, want_submit, want_stop, want_cancel;
    uint32_t failed_attempt[2];  /* legs that did not start, by kind; 0: none */
    status failed_status[2];
    int prefer_node;
    struct coord_branch *due_next;
    UT_hash_handle hh;           /* in the service's table, by number */
} coord_branch;

struct coord_client {
    coord_service *service;
    rpc_call *call;
    bool once;                   /* GenerateOnce */
    arena *memory;
    int64_t arrived_us;
    double tokenise_ms;          /* from then until the job was made */
    coord_job job;
    coord_branch *branches;      /* (job.n) */
    int32_t live;                /* branches not finished */
    bool fanned;                 /* branches 1.. were submitted */
    bool blocked;                /* the client reads slowly */
    bool ended;                  /* rpc_call_finish() was called */
    status st;                   /* of the call, once one branch failed */
    char text[300];
    int64_t retry_after_ms;
    int64_t deadline_ms;
    uint64_t tenant;             /* a number for its name, and the salt of its pages; 0: it named none */
    metric *figures;             /* its tenant's, of figures.c */
    coord_client *next, *prev;
};

/* All of c->job.n, none submitted. Those that are complete by what the client has are finished, and told if it has the end,
 * too. The caller frees them, also after a failure that left c->branches. */
status coord_branch_make(coord_client *c, error *err);
void coord_branch_free(coord_client *c);

void coord_generate_on_request(rpc_call *call, const ProtobufCMessage *request, void *ctx);
void coord_generate_once_on_request(rpc_call *call, const ProtobufCMessage *request, void *ctx);
/* The core's actions. */
void coord_generate_costs(coord_branch *b, const coord_cost *costs, int32_t count);
void coord_generate_emit(coord_branch *b, const coord_action *action);
/* The prompt's logprobs, as the decode node says them; what was heard before is not told again. */
void coord_generate_prompt(coord_branch *b, Baton__Node__V1__Token *const *tokens, size_t count);
bool coord_generate_wants_prompt(const coord_branch *b);     /* the branch's logprobs of the prompt are the client's */
void coord_generate_finish(coord_branch *b, const coord_action *action);
/* The decode node of a branch said its first token: the others may share its pages. */
void coord_generate_fan_out(coord_client *c, int node);
void coord_generate_cancel(coord_client *c, status st, const char *text);

typedef enum coord_leg_kind { LEG_DECODE, LEG_PREFILL } coord_leg_kind;

void coord_leg_start(coord_branch *b, coord_leg_kind kind, const coord_action *action);
void coord_leg_cancel(coord_branch *b, coord_leg_kind kind, uint32_t attempt);
/* The branch is over: its legs are canceled and not listened to any more. */
void coord_leg_drop(coord_branch *b);
void coord_leg_pause(coord_branch *b, bool paused);

/* ---- figures.c ----------------------------------------------------------------------------------- */

void coord_figures_open(const coord_core *core);     /* from now on all are listed: a rate needs their zero */
/* A tenant's; credential: rpc_call_credential(). */
metric *coord_figures_tenant(const char *credential);
/* It leaves the queue: a node works on it, or nobody ever did. */
void coord_figures_queued(const coord_branch *b, int64_t now_us);
/* Of that attempt. Before first_us, last_us and piece_attempt of the branch are set. */
void coord_figures_piece(const coord_branch *b, uint32_t attempt, int64_t now_us);
/* A Decode begins. */
void coord_figures_attempt(coord_branch *b, uint32_t attempt);
/* A node has rows [0, to) of it and computed [from, to). reader: that prefill node, -1: the decode node; hold: ahead. */
void coord_figures_computed(coord_branch *b, int reader, bool hold, int64_t from, int32_t to);
/* Its pages went from one node to another. The sender says so when all have arrived; who has answered by then does not ask. */
void coord_figures_sent(const char *from, const char *to, const Baton__Node__V1__Sent *sent);
void coord_figures_finish(const coord_branch *b, status st);
/* shown: what was at the last call. Most events of a request change nothing of it. */
void coord_figures_load(const coord_core *core, coord_counts *shown);
void coord_figures_ready(const int ready[COORD_DECODE + 1]);           /* nodes, by role */
/* There may be ever so many of this metric's series. */
bool coord_figures_many(const metric *m);

/* ---- series.c ------------------------------------------------------------------------------------ */

enum { COORD_ROW_METRICS = 3, COORD_ROWS_MAX = 1024, COORD_SLOTS = 2 * COORD_ROWS_MAX, COORD_LABELS_BYTES = 320 };

typedef struct coord_row {
    metric metrics[COORD_ROW_METRICS];
    char key[COORD_LABELS_BYTES], labels[COORD_ROW_METRICS][COORD_LABELS_BYTES];
} coord_row;

/* Static, for the registry keeps its rows. */
typedef struct coord_series {
    const metric *metrics;       /* (count) what a row has; their labels come after the row's own */
    int count, rows_max;
    const char *rest_labels;     /* of the row for all that have none */
    /* below: series.c's own */
    coord_row *slots[COORD_SLOTS], rest;         /* open addressing, by key */
    int rows;
} coord_series;

/* Appends name="value". */
void coord_series_label(char labels[COORD_LABELS_BYTES], const char *name, const char *value);
/* (s->count) counters; NULL: the rest's. Any thread. */
metric *coord_series_row(coord_series *s, const char *labels);

/* ---- service.c, cluster_service.c, tokens_service.c ------------------------------------------------ */

typedef struct coord_watcher coord_watcher;

struct coord_service {
    coord_options options;       /* texts point into memory */
    arena *memory;
    coord_model model;
    rpc_loop *loop;
    rpc_server *server;
    rpc_health *health;
    cluster_view *view;
    coord_core *core;
    rpc_timer *tick;
    int64_t tick_ms;             /* when tick fires; INT64_MAX: not set */
    bool stepping;
    coord_branch *branches;      /* uthash, by number */
    coord_branch *due;
    uint64_t numbers;
    coord_client *clients;
    int32_t clients_count;
    char numerics[COORD_DECODE + 1][256];        /* of the nodes that are used, by role; "": none was heard yet */
    uint64_t mismatch_epoch[CLUSTER_NODES_MAX];  /* of a process whose mismatch was logged */
    coord_watcher *watchers;
    rpc_timer *watch_timer;
    int ready[COORD_DECODE + 1]; /* by role; atomic */
    coord_counts shown;          /* on /metrics */
    unsigned char ready_as[CLUSTER_NODES_MAX];   /* the role each node is ready for, 0: it is not */
    bool draining, closed;
    rpc_timer *grace;
    void *closer;
};

/* An event into the core, and everything that follows from it. Not from inside a step. */
void coord_service_feed(coord_service *s, const coord_event *e);
/* The branch has something to tell the core after the step in hand, or now if there is none. */
void coord_service_due(coord_branch *b);
void coord_service_settle(coord_service *s);
coord_branch *coord_service_branch(coord_service *s, uint64_t number);
/* false: no memory. */
bool coord_service_join(coord_service *s, coord_branch *b);
void coord_service_leave(coord_service *s, coord_branch *b);
void coord_service_client_left(coord_service *s);
/* Is this node one of our model's? */
bool coord_service_matches(const coord_service *s, const Baton__Node__V1__NodeState *state);
uint64_t coord_service_number(const char *text);         /* for a name, the same in every coordinator */
const char *coord_service_node_name(const coord_service *s, int node);

extern const rpc_method coord_cluster_methods[];
extern const int coord_cluster_methods_count;
void coord_cluster_changed(coord_service *s);
void coord_cluster_close(coord_service *s);

void coord_tokens_tokenize(rpc_call *call, const ProtobufCMessage *request, void *ctx);
void coord_tokens_detokenize(rpc_call *call, const ProtobufCMessage *request, void *ctx);
void coord_tokens_list_models(rpc_call *call, const ProtobufCMessage *request, void *ctx);
void coord_tokens_get_model(rpc_call *call, const ProtobufCMessage *request, void *ctx);

#endif
