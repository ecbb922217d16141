/* core_internal.h -- what core.c, request.c and route.c of the coordinator's core share.
 *
 * core.c owns the tables (requests by number, queue, timers, nodes) and the order of one step,
 * request.c the life of one request, route.c the choice of a node. */
#ifndef BATON_COORD_CORE_INTERNAL_H
#define BATON_COORD_CORE_INTERNAL_H

#include "coordinator/coord.h"

/* A request talks to at most one node of each kind at a time: its two sides. */
typedef enum coord_side { SIDE_DECODE, SIDE_PREFILL, SIDES } coord_side;

typedef enum coord_request_state {
    REQUEST_QUEUED,              /* in the queue, or delayed until retry_ms */
    REQUEST_RESERVING,
    REQUEST_PREFILLING,
    REQUEST_MOVING,
    REQUEST_DECODING,
} coord_request_state;

/* Two heaps of requests: the queue by order of arrival, timers by the earliest time. */
typedef enum coord_heap_kind { HEAP_QUEUE, HEAP_TIMER, HEAPS } coord_heap_kind;

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
    int32_t prefilling;          /* tokens asked of the prefill node */
    bool apart;                  /* this attempt's prompt is read by prefill nodes alone: rule 6 */
    int64_t apart_until_ms;      /* until then it waits for one; 0: it does not wait */
    int prefer_node;
    int64_t deadline_ms, retry_ms;           /* INT64_MAX: none; not delayed */
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
    int64_t prefilling;          /* prompt tokens of ours it has not finished */
    int64_t avoid_ms, busy_ms;   /* not chosen before these times */
    coord_request *first[SIDES];
} coord_entry;

enum { COORD_FINISHES = 32, COORD_BUSY_MS = 50 };

struct coord_core {
    coord_limits limits;
    int64_t now_ms;
    coord_entry nodes[COORD_NODES_MAX];
    int nodes_end;               /* numbers seen so far are below it */
    unsigned turn;               /* rotates ties */
    uint64_t arrivals;
    coord_request **slots;       /* open addressing by request number */
    uint32_t slots_mask;
    int32_t requests, delayed;
    coord_heap heap[HEAPS];
    bool changed;                /* something may fit now that did not before */
    coord_request *forgotten;
    coord_action *actions;
    int actions_count, actions_max;
    int64_t finish_ms[COORD_FINISHES];       /* ring of the last answers' times */
    int64_t finishes, retries, disagreements;
    char text[240];              /* of a refusal */
};

/* core.c */
coord_action *coord_core_act(coord_core *c, coord_action_kind kind, const coord_request *r, int node);
bool coord_core_insert(coord_core *c, coord_request *r);
void coord_core_forget(coord_core *c, coord_request *r);
void coord_core_sit(coord_core *c, coord_request *r, coord_side side, int node);
void coord_core_leave(coord_core *c, coord_request *r, coord_side side);
void coord_core_enqueue(coord_core *c, coord_request *r, int64_t retry_ms);
void coord_core_dequeue(coord_core *c, coord_request *r);
int64_t coord_core_retry_after(const coord_core *c);

/* request.c: one arrow each, see the picture at its head */
void coord_request_submit(coord_core *c, const coord_event *e);
void coord_request_place(coord_core *c, coord_request *r, int node);
void coord_request_event(coord_core *c, coord_request *r, const coord_event *e);
void coord_request_due(coord_core *c, coord_request *r);
void coord_request_side_failed(coord_core *c, coord_request *r, coord_side side, status st,
                               const char *text);

/* route.c: pure choices over nodes[0..count), -1: none */
int coord_route_decode(const coord_entry *nodes, int count, int prefer_node, unsigned turn,
                       int64_t now_ms);
int coord_route_prefill(const coord_entry *nodes, int count, unsigned turn, int64_t now_ms);
typedef enum coord_outlook { OUTLOOK_NONE, OUTLOOK_AVOIDED, OUTLOOK_GOOD } coord_outlook;
/* What decode nodes there are at all, full ones included. */
coord_outlook coord_route_outlook(const coord_entry *nodes, int count, int64_t now_ms);
/* How many uncached tokens the decode node is told to compute itself. */
/* Prefill nodes, even if all are lost, have other numerics than this decode node. */
bool coord_route_apart(const coord_limits *limits, const coord_entry *nodes, int count, int decode_node);
int32_t coord_route_local_tokens(const coord_limits *limits, int prefill_node);

#endif
