/* core_internal.h -- what the files of the coordinator's core share.
 *
 * core.c owns the tables (requests by number, queue, timers, nodes) and the order of one step, request.c the life of one
 * request, hold.c prompts that are read ahead, move.c answers that leave a node, slow.c pages that move slowly, tenant.c who
 * may wait and who goes first, cache.c what nodes hold, lapse.c who flaps, route.c the choice of a node, ask.c what it is
 * asked. */
#ifndef BATON_COORD_CORE_INTERNAL_H
#define BATON_COORD_CORE_INTERNAL_H

#include "coordinator/coord.h"

/* A request talks to at most one node of each kind at a time, and one may hold its prompt: its sides. */
typedef enum coord_side { SIDE_DECODE, SIDE_PREFILL, SIDE_HOLD, SIDES } coord_side;

typedef enum coord_request_state {
    REQUEST_QUEUED,              /* in the queue, or delayed until retry_ms */
    REQUEST_RESERVING,
    REQUEST_PREFILLING,
    REQUEST_MOVING,
    REQUEST_DECODING,
} coord_request_state;

/* Heaps of requests: the queue by start tag (tenant.c), those of the queue whose prompt should be read ahead alike, timers by
 * the earliest time. Equal keys go by arrival. */
typedef enum coord_heap_kind { HEAP_QUEUE, HEAP_UNREAD, HEAP_TIMER, HEAPS } coord_heap_kind;

enum { COORD_MARKS_MAX = 4, COORD_LOOKS = 128 };

/* A prompt, as the view is asked for it: the numbers of its first `step` pages, of twice as many, ..., of all. */
typedef struct coord_marks {
    uint64_t salt;
    int32_t P, pages, step, looks;
    uint64_t number[COORD_LOOKS];
} coord_marks;

typedef struct coord_request coord_request;

typedef struct coord_heap {
    coord_request **at;          /* (requests_max) */
    int32_t count;
} coord_heap;

/* A request's place in a node's list of open streams. */
typedef struct coord_seat {
    coord_request *next, *prev;
    int node;                    /* -1: no stream is open on this side */
} coord_seat;

/* One allocation: the struct, its tokens and its id. Born in coord_request_submit(), forgotten in
 * coord_core_forget(), freed at the start of the next step because actions point into it. */
struct coord_request {
    uint64_t number;
    const char *id;
    coord_request_state state;
    uint32_t attempt;            /* of the last placement; 0: never placed */
    int32_t failures;
    int32_t *tokens;             /* (prompt_count + max_tokens): prompt, then what was emitted */
    int32_t count, prompt_count, max_tokens;
    int32_t confirmed;           /* tokens that the decode node of this attempt knows of */
    int32_t prefilling, moving;  /* tokens the prefill node has to read, by the view; and to send */
    int32_t computing;           /* tokens of the prompt that the decode node is computing */
    uint32_t hold_attempt;       /* of its hold's stream */
    int32_t hold_tokens, hold_pages;         /* that are being read ahead, 0: they are; and are or will be held */
    bool hold_silent;            /* the token its node says is not the answer's */
    int reader;                  /* prefill node that read of it last, -1: none; as that process, until then */
    uint64_t reader_epoch;
    int64_t read_ms;
    int holder;                  /* decode node that it moves away from, as that process; -1: it does not move */
    uint64_t holder_epoch;
    uint64_t salt, arrival;
    int tenant;                  /* index in the core's */
    int64_t pages;               /* counted of its tenant's; 0: it is not placed */
    coord_request *held_next, *held_prev;        /* in its tenant's list of those held back */
    bool held;
    const coord_marks *marks;    /* (marks_count) what the view is asked for: one for each page size and salt */
    int32_t marks_count;
    coord_cost *costs;           /* (COORD_COSTS_MAX) of the last placement; NULL: nobody asks */
    int32_t costs_count;
    bool prompt_here;            /* its prompt is read by a decode node, uncached: rule 7 */
    bool apart;                  /* this attempt's prompt is read by prefill nodes alone: rule 6 */
    bool tries;                  /* this attempt shows whether a link is still slow: route.c */
    int64_t apart_until_ms;      /* until then it waits for one; 0: it does not wait */
    int prefer_node;
    int64_t deadline_ms, retry_ms;           /* INT64_MAX: none; not delayed */
    int64_t slow_ms;             /* when its pages have moved for too long; INT64_MAX: they do not move */
    int64_t moving_ms;           /* since when */
    double link_ms;              /* ms a token its link was known for when the decode node was chosen; INFINITY: no prefill node */
    int32_t slow_moves;          /* how often they have moved for too long */
    int slow_from, slow_to;      /* the nodes of the attempt that ended by that, until another has landed; -1: none did */
    int64_t queued_ms;           /* when it came into the queue, the last time */
    coord_seat seat[SIDES];
    int64_t key[HEAPS];
    int32_t place[HEAPS];        /* index in the heap, -1: not in it */
    coord_request *forgotten;    /* next of those freed by the next step */
    char text[240];              /* of the FINISH action */
};

typedef struct coord_entry {
    coord_node state;            /* as last heard */
    bool known, alive;
    int32_t placed;              /* requests of ours with a Decode stream there */
    int64_t prefilling;          /* prefill node: prompt tokens of ours it has not finished */
    int32_t holds, held_pages;   /* prefill node: prompts of ours it holds or reads to hold */
    int64_t hold_ms;             /* prefill node: not asked to hold before this time */
    int64_t computing;           /* decode node: the same, of those that it reads itself */
    double light_steps_per_s;    /* as measured while a quarter full at most; else the most heard */
    int64_t avoid_ms, busy_ms;   /* not chosen before these times */
    int64_t held_out_ms;         /* others of its role are preferred before this time */
    int32_t lapses;              /* without a steady while in between */
    coord_request *first[SIDES];
} coord_entry;

enum { COORD_FINISHES = 32, COORD_TURNS = 16, COORD_BUSY_MS = 50, COORD_LINKS = 4096 };

/* One with requests alive. */
typedef struct coord_tenant {
    uint64_t number;
    int32_t alive, waiting;      /* requests; alive 0: free */
    int64_t waiting_tokens;
    int64_t finish_tag;          /* of its last request */
    int64_t pages;               /* that its placed requests may come to hold */
    coord_request *held_first, *held_last;       /* they wait for those, in the order of the queue */
} coord_tenant;

/* From a prefill node to a decode node: ms a token after the last row was computed. */
typedef struct coord_link {
    int16_t from, to;
    bool known;
    bool tried;                  /* since it got too old to be believed */
    float ms;
    int32_t trust_ms;            /* how long it is believed */
    int64_t since_ms;
} coord_link;

typedef struct coord_links {
    coord_link at[COORD_LINKS];  /* by a hash of the pair: the newest wins */
    double mean_ms;
    bool learned;
} coord_links;

typedef struct coord_cache coord_cache;

struct coord_core {
    coord_limits limits;
    int64_t now_ms;
    coord_entry nodes[COORD_NODES_MAX];
    int nodes_end;               /* numbers seen so far are below it */
    uint64_t turn;               /* placements made: seeds ties */
    coord_cache *cache;
    coord_links links;
    coord_tenant tenants[COORD_TENANTS_MAX];
    int tenants_end;             /* those in use are below it */
    int64_t virtual_tag;         /* start tag of the request placed last */
    int64_t waiting_tokens;      /* prompts of those that wait */
    double answer_tokens;        /* of an answer, on average */
    int32_t cached[COORD_NODES_MAX];         /* of the prompt in hand, by node */
    coord_cost rows[COORD_DECODE + 1][COORD_NODES_MAX];      /* candidates in hand, by role */
    uint64_t arrivals;
    coord_request **slots;       /* open addressing by request number */
    uint32_t slots_mask;
    int32_t requests, delayed, held;
    coord_heap heap[HEAPS];
    bool changed;                /* something may fit now that did not before */
    bool leaving;                /* a node that is to have no work may still run answers */
    coord_request *forgotten;
    coord_action *actions;
    int actions_count, actions_max;
    int64_t finish_ms[COORD_FINISHES];       /* ring of the last answers' times, and their prompts' tokens */
    int32_t finish_tokens[COORD_FINISHES];
    int64_t finishes;
    coord_counts counts;         /* what only grows: the rest is filled in by coord_core_counts() */
    int64_t turns, turn_at_ms;   /* placements of those that had waited, and when there was one */
    double turn_ms, turn_tokens; /* from one to the next while somebody waits, and of its prompt; on average */
    char text[240];              /* of a refusal */
};

/* core.c */
coord_action *coord_core_act(coord_core *c, coord_action_kind kind, const coord_request *r, int node);
/* Prefill of r's first count tokens; where they go is the caller's to fill in. */
coord_action *coord_core_prefill(coord_core *c, const coord_request *r, int node, int32_t count);
bool coord_core_insert(coord_core *c, coord_request *r);
void coord_core_forget(coord_core *c, coord_request *r);
void coord_core_sit(coord_core *c, coord_request *r, coord_side side, int node);
void coord_core_leave(coord_core *c, coord_request *r, coord_side side);
void coord_core_enqueue(coord_core *c, coord_request *r, int64_t retry_ms);
/* Wakes coord_slow_due() then; INT64_MAX: never. */
void coord_core_watch(coord_core *c, coord_request *r, int64_t slow_ms);
void coord_core_dequeue(coord_core *c, coord_request *r);
/* Its prompt should be read ahead, if it is in the queue; or should not. */
void coord_core_read_ahead(coord_core *c, coord_request *r, bool wanted);

/* tenant.c */
/* NULL: the SUBMIT event's request is welcome. Else why not, written into the core, and when to come back. room: it need
 * not wait. */
const char *coord_tenant_refusal(coord_core *c, const coord_event *e, bool room, int64_t *retry_after_ms);
/* It leaves the queue for a node. */
void coord_tenant_turn(coord_core *c, const coord_request *r);
/* One of its requests is alive; -1: too many tenants are. And no longer. */
int coord_tenant_join(coord_core *c, uint64_t tenant);
void coord_tenant_leave(coord_core *c, int tenant);
int64_t coord_tenant_start_tag(coord_core *c, int tenant, int64_t tokens);
void coord_tenant_wait(coord_core *c, const coord_request *r, int sign);     /* +1: it waits, -1: no longer */
/* NULL: some decode node's pages for so many tokens are within a tenant's. Else why not, written into the core. */
const char *coord_tenant_too_large(coord_core *c, int32_t prompt, int32_t answer);
/* The SUBMIT event's request would be held back, on whatever node. */
bool coord_tenant_would_hold(coord_core *c, const coord_event *e);
/* It is r's turn, on that node. true: its tenant has too many pages already; r is held back until some come back. */
bool coord_tenant_hold(coord_core *c, coord_request *r, int node);
void coord_tenant_unhold(coord_core *c, coord_request *r);
/* It is placed on a node, and no longer. */
void coord_tenant_take(coord_core *c, coord_request *r, int node);
void coord_tenant_give(coord_core *c, coord_request *r);

/* request.c: one arrow each, see the picture at its head */
void coord_request_submit(coord_core *c, const coord_event *e);
/* false: nobody has room for it. */
bool coord_request_place(coord_core *c, coord_request *r);
void coord_request_event(coord_core *c, coord_request *r, const coord_event *e);
void coord_request_due(coord_core *c, coord_request *r);
/* Rule 7, as long as nothing is answered: then all of the prompt was told. */
bool coord_request_prompt_here(const coord_request *r);
void coord_request_side_failed(coord_core *c, coord_request *r, coord_side side, status st,
                               const char *text);

/* Ends its attempt and puts it back into the queue. why: as in coord_counts.again. */
void coord_request_again(coord_core *c, coord_request *r, int why);

/* move.c */
bool coord_move_leaves(const coord_entry *n);                    /* a node whose running answers should be elsewhere */
void coord_move_away(coord_core *c);                             /* all of them that can be */

/* slow.c: its pages begin to move; and have moved for too long, if they still do */
void coord_slow_begin(coord_core *c, coord_request *r);
void coord_slow_due(coord_core *c, coord_request *r);

/* hold.c */
/* false: nobody can read anything ahead now. */
bool coord_hold_start(coord_core *c, coord_request *r);
void coord_hold_read(coord_core *c, coord_request *r);           /* its first token came */
void coord_hold_release(coord_core *c, coord_request *r);        /* if there is one */
/* Its stream is over; full: for want of room. again: another one may do better. */
void coord_hold_lost(coord_core *c, coord_request *r, bool full, bool again);

/* ask.c */
/* The page sizes and salts under which nodes may cache a prompt: seldom more than one. How many. */
int32_t coord_ask_marks(const coord_core *c, uint64_t salt, int32_t P[COORD_MARKS_MAX], uint64_t salts[COORD_MARKS_MAX]);
/* Prompts read apart are not cached as prompts read here: what decode nodes cache them under. A prefill node is known. */
uint64_t coord_ask_apart_salt(const coord_core *c, uint64_t salt);
double coord_ask_answer(const coord_core *c, const coord_request *r);        /* tokens of it that are still expected */

typedef struct coord_placement {
    int node;
    bool prefill_nodes;          /* there are some that may be asked */
    bool differ;                 /* their numerics are others than the node's */
    coord_reason reason;
    int32_t local_tokens_max;
} coord_placement;
/* false: nobody has room for it. */
bool coord_ask_decode(coord_core *c, coord_request *r, coord_placement *out);
/* Who reads or sends the prompt for a decode node that is chosen and wants so many tokens of it, and why; -1: nobody is
 * there. What it caches stands in c->cached then. */
int coord_ask_prefill(coord_core *c, coord_request *r, int to, int32_t moved, coord_reason *reason);

typedef struct coord_holding {
    int node;                    /* -1: it is not worth it */
    bool apart;
    coord_reason reason;
} coord_holding;
/* Who reads the prompt ahead; false: nobody can now. */
bool coord_ask_hold(coord_core *c, coord_request *r, coord_holding *out);
int32_t coord_ask_pages(const coord_node *n, int32_t tokens);            /* of that node, for so many */

/* lapse.c: a node was lost; was heard again after that; failed an attempt */
void coord_lapse_lost(coord_core *c, coord_entry *n);
void coord_lapse_heard(coord_core *c, coord_entry *n);
void coord_lapse_failed(coord_core *c, coord_entry *n);

/* cache.c */
coord_cache *coord_cache_create(void);                       /* NULL: no memory */
void coord_cache_destroy(coord_cache *x);
/* Page at[i] of node holds the prefix numbered numbers[i] now, 0: nothing. */
void coord_cache_change(coord_cache *x, int node, const int32_t *at, const uint64_t *numbers, int32_t count);
void coord_cache_forget(coord_cache *x, int node);
int32_t coord_cache_pages(const coord_cache *x, int node);   /* that hold something */
void coord_cache_mark(uint64_t salt, const int32_t *tokens, int32_t count, int32_t P, coord_marks *out);
/* Raises cached[node] of the nodes that hold a prefix of what was marked. */
void coord_cache_match(const coord_cache *x, const coord_marks *m, int32_t *cached);

/* route.c */

/* What a choice depends on. */
typedef struct coord_ask {
    const coord_limits *limits;
    const coord_entry *nodes;
    int count;
    const coord_links *links;
    const int32_t *cached;       /* (count) tokens of the prompt each node holds; NULL: unknown */
    int32_t tokens;              /* to be read */
    double answer;               /* tokens expected of it */
    uint64_t key;                /* a number for how the prompt begins */
    uint64_t turn;
    int64_t now_ms;
    bool apart, tries;
    const coord_cost *prefill;   /* for a decode node: the best prefill node; NULL: there is none */
    int to;                      /* for a prefill node: the decode node, -1: not chosen yet */
    int32_t moved;               /* and the tokens it wants */
    /* coord_route_average() */
    double prefill_ms[COORD_DECODE + 1], step_ms;
} coord_ask;

void coord_route_average(coord_ask *a);
/* It serves in that role, and was not heard to be full. */
bool coord_route_has_room(const coord_entry *n, coord_role role, int64_t now_ms);
/* Nodes of a role that may be asked, in order of their numbers. */
int coord_route_candidates(const coord_ask *a, coord_role role, coord_cost *rows);
/* Fills their costs in and says which row is chosen; -1: there is none. */
int coord_route_choose(const coord_ask *a, coord_cost *rows, int count);
/* Why that row of so many was chosen. */
coord_reason coord_route_reason(const coord_limits *limits, const coord_cost *rows, int count, int chosen);
/* How many uncached tokens the decode node is told to compute itself, at most. */
int32_t coord_route_local_tokens(const coord_ask *a, int decode_node);
/* Until it has read the prompt, of which it has so many tokens; by cost only, else 0. */
double coord_route_here_ms(const coord_ask *a, int node, int32_t cached);
void coord_route_explain(const coord_cost *rows, int count, coord_role role, coord_cost *out, int32_t *out_count);
typedef enum coord_outlook { OUTLOOK_NONE, OUTLOOK_AVOIDED, OUTLOOK_GOOD } coord_outlook;
/* What decode nodes there are at all, full ones included. */
coord_outlook coord_route_outlook(const coord_entry *nodes, int count, int64_t now_ms);
/* Prefill nodes, even if all are lost, have other numerics than this decode node. */
bool coord_route_apart(const coord_limits *limits, const coord_entry *nodes, int count, int decode_node);
/* tries: for the request that coord_link_try() chose for it. */
double coord_link_ms(const coord_links *l, int from, int to, bool tries, int64_t now_ms);
void coord_link_learn(coord_links *l, int from, int to, double ms, int64_t now_ms);
/* It was waited for in vain: it is as slow as that, or as it was if that is slower, and the next one goes elsewhere. A guess,
 * so it is not in the average. */
void coord_link_gave_up(coord_links *l, int from, int to, double ms, int64_t now_ms);
void coord_link_forget(coord_links *l, int node);        /* those from it and to it */
/* A request is about to be sent over it. true: it tries a link that was slow, and others wait for what it finds. */
bool coord_link_try(coord_links *l, int from, int to, int64_t now_ms);

#endif
