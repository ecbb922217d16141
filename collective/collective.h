/* collective.h -- what the ranks of one tensor-parallel group do together: sum, gather, broadcast.
 *
 * A rank is a process (or a thread: nothing here is shared between two groups but what they open). All
 * ranks call the same functions in the same order with the same sizes; each call carries its number and its
 * size, and a rank that calls something else is an error on all, not a hang or a wrong sum.
 *
 * A sum is taken in rising rank order, ((x0 + x1) + x2) + ..., each addition rounded to float, whichever way
 * the numbers travel and whoever adds. So its bytes depend neither on timing nor on the transport, and are the
 * same on all ranks.
 *
 * A rank that is gone, stopped or cut off ends the call on the others: ST_PEER_LOST when that was seen,
 * ST_DEADLINE after timeout_ms without it. A group that failed once is over: every later call returns the same
 * status, and the caller closes it. */
#ifndef BATON_COLLECTIVE_H
#define BATON_COLLECTIVE_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { COLL_RANKS_MAX = 16 };

typedef struct coll coll;

typedef struct coll_options {
    const char *transport;       /* "single" (one rank), "shm" (one machine), "tcp"; NULL: single */
    int rank, ranks;             /* 0 <= rank < ranks <= COLL_RANKS_MAX */
    uint64_t id;                 /* of this group, drawn anew for each: others are refused */
    const char *address;         /* tcp: HOST:PORT where rank 0 listens */
    int open_ms;                 /* within which all ranks are there */
    int timeout_ms;              /* of a call */
} coll_options;

/* Where ranks meet, as users say it: "HOST:PORT" is tcp, rank 0 listening there; 16 hex digits are shm and its id, for
 * ranks that one process started. Fills transport, id and address (borrowed). ST_BAD_INPUT: neither. */
status coll_meet_at(const char *where, coll_options *o, error *err);

/* Returns when all ranks are there. ST_BAD_INPUT names the option that is wrong; ST_DEADLINE the ranks that
 * did not come; ST_REFUSED a peer of another group, version or number of ranks. */
status coll_open(const coll_options *options, coll **out, error *err);
void coll_close(coll *c);        /* NULL is fine; the caller's thread */

int coll_rank(const coll *c);
int coll_ranks(const coll *c);
int coll_timeout_ms(const coll *c);      /* of a call */

/* How long a call may take from now on. */
void coll_set_timeout(coll *c, int timeout_ms);
/* Takes memory for sums of up to count floats; less than before changes nothing. */
status coll_reserve(coll *c, size_t count, error *err);
/* x (count) = sum over ranks of x; count was reserved. */
status coll_all_reduce(coll *c, float *x, size_t count, error *err);
/* all = the ranks' bytes one after the other, bytes[r] of rank r; mine is this rank's. */
status coll_all_gather(coll *c, const void *mine, void *all, const size_t *bytes, error *err);
/* Returns when all ranks have called it. */
status coll_barrier(coll *c, error *err);
/* Memory of the ranks that all of them see, where the transport has such: windows[r] (bytes, zeroed, page-aligned) is
 * what rank r takes for its own, until the group is closed. What was written before a call of the group is seen by the others
 * after it. At most once a group. *windows NULL on all ranks: the transport has none. */
status coll_window(coll *c, size_t bytes, void *windows[COLL_RANKS_MAX], error *err);
/* data (bytes) = rank 0's. */
status coll_broadcast(coll *c, void *data, size_t bytes, error *err);

/* Any thread: the call that is under way, and every later one, ends with ST_CANCELED here and with an error on
 * the other ranks. */
void coll_abort(coll *c);
/* How long this rank has waited for the others and exchanged with them, all calls together. */
int64_t coll_spent_us(const coll *c);

#ifdef __cplusplus
}
#endif

#endif
