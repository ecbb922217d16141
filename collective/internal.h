/* internal.h -- what the files of collective/ share: the table of transports and its one primitive. */
#ifndef COLLECTIVE_INTERNAL_H
#define COLLECTIVE_INTERNAL_H

#include "collective/collective.h"
#include <stdatomic.h>

typedef struct span {
    void *data;
    size_t bytes;
} span;

/* The call that is under way; all ranks must say the same. */
typedef struct coll_call {
    uint32_t number;             /* from 1 */
    uint32_t kind;               /* enum coll_kind */
    uint64_t bytes;
} coll_call;

enum coll_kind { COLL_REDUCE = 1, COLL_GATHER, COLL_BROADCAST, COLL_BARRIER, COLL_KINDS };

typedef struct coll_transport {
    const char *name;
    /* Fills c->link. */
    status (*open)(coll *c, const coll_options *o, error *err);
    void (*close)(coll *c);
    void (*abort)(coll *c);      /* any thread */
    /* Sends out[r] to every other rank r and takes in[r] from it. in[r].bytes is what r sends here; an empty
     * span is not sent. Returns when all that this rank is to have is there and what it sent may be changed. */
    status (*exchange)(coll *c, const coll_call *call, const span *out, const span *in, error *err);
    /* Rank 0 makes memory of so many bytes under a name that follows from the group, the others find it, and rank 0
     * takes the name away: three calls with a barrier between. NULL: the transport has no such memory. */
    status (*share)(coll *c, int stage, size_t bytes, void **out, error *err);
} coll_transport;

extern const coll_transport coll_shm, coll_tcp;

struct coll {
    const coll_transport *transport;     /* NULL: single */
    int rank, ranks, timeout_ms;
    size_t reduce_max;           /* floats of the largest sum */
    int64_t spent_us;
    uint32_t calls;
    error failed;                /* code ST_OK: it has not */
    _Atomic bool aborted;
    float *parts;                /* (ranks, reduce_max) of the other ranks */
    void *link;                  /* the transport's */
};

int64_t coll_left_ms(int64_t until_ms);  /* never negative */
/* ST_INTERNAL: rank is at another call than ours. */
status coll_check_call(const coll *c, const coll_call *ours, const coll_call *theirs, int rank, error *err);

#endif
