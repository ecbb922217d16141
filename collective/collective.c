/* collective.c -- the calls, over a transport's exchange.
 *
 *   sum of few     everyone gets all and adds all itself: one exchange               (a decoded row)
 *   sum of many    rank r gets the r-th share of all, adds it, gives it to all: two exchanges, and each number
 *                  is added once                                                     (a prompt's chunk)
 *
 * Both add in rank order, so which of them it is does not show. */
#include "collective/internal.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { FEW = 4096 };                     /* floats */

static const coll_transport *const transports[] = {&coll_shm, &coll_tcp};

int64_t coll_left_ms(int64_t until_ms) {
    int64_t left = until_ms - clock_now_ms();
    return left > 0 ? left : 0;
}

status coll_check_call(const coll *c, const coll_call *ours, const coll_call *theirs, int rank, error *err) {
    if (ours->number == theirs->number && ours->kind == theirs->kind && ours->bytes == theirs->bytes) return ST_OK;
    return error_set(err, ST_INTERNAL, "rank %d is at call %u (kind %u, %llu bytes), rank %d at %u (%u, %llu)", rank,
                     theirs->number, theirs->kind, (unsigned long long)theirs->bytes, c->rank, ours->number, ours->kind,
                     (unsigned long long)ours->bytes);
}

/* ---- open and close ------------------------------------------------------------------------------ */

static status check(const coll_options *o, const coll_transport **out, error *err) {
    const char *name = o->transport ? o->transport : "single";
    *out = NULL;
    for (size_t i = 0; i < sizeof transports / sizeof *transports; i++)
        if (strcmp(name, transports[i]->name) == 0) *out = transports[i];
    if (!*out && strcmp(name, "single") != 0)
        return error_set(err, ST_UNSUPPORTED, "transport '%.40s' of ranks, expected single, shm or tcp", name);
    if (o->ranks < 1 || o->ranks > COLL_RANKS_MAX || (!*out && o->ranks != 1))
        return error_set(err, ST_BAD_INPUT, "%d ranks, expected 1%s", o->ranks, *out ? " to 16" : " without a transport");
    if (o->rank < 0 || o->rank >= o->ranks)
        return error_set(err, ST_BAD_INPUT, "rank %d of %d, expected 0 to %d", o->rank, o->ranks, o->ranks - 1);
    if (o->open_ms < 1 || o->timeout_ms < 1)
        return error_set(err, ST_BAD_INPUT, "time-outs of ranks: %d and %d ms, expected at least 1", o->open_ms,
                         o->timeout_ms);
    return ST_OK;
}

/* By hand no number is drawn: ranks of one address belong together. */
status coll_meet_at(const char *where, coll_options *o, error *err) {
    char host[256], *end;
    const char *port;
    o->address = where;
    if (address_split(where, host, sizeof host, &port)) {
        o->transport = "tcp";
        o->id = XXH3_64bits(where, strlen(where));
        return ST_OK;
    }
    o->transport = "shm";
    o->id = strtoull(where, &end, 16);
    return strlen(where) == 16 && !*end ? ST_OK : error_set(err, ST_BAD_INPUT, "--group '%.80s': expected HOST:PORT", where);
}

status coll_open(const coll_options *o, coll **out, error *err) {
    const coll_transport *transport;
    TRY(check(o, &transport, err));
    coll *c = mem_zalloc(1, sizeof *c);
    if (!c) return error_set(err, ST_NO_MEMORY, "no memory for a group of ranks");
    *c = (coll){.rank = o->rank, .ranks = o->ranks, .timeout_ms = o->timeout_ms};
    status s = ST_OK;
    if (o->ranks > 1) {
        s = transport->open(c, o, err);
        if (s == ST_OK) c->transport = transport;
    }
    if (s != ST_OK) {
        coll_close(c);
        return s;
    }
    *out = c;
    return ST_OK;
}

void coll_close(coll *c) {
    if (!c) return;
    if (c->transport) c->transport->close(c);
    mem_free(c->parts);
    mem_free(c);
}

void coll_abort(coll *c) {
    atomic_store(&c->aborted, true);
    if (c->transport) c->transport->abort(c);
}

int coll_rank(const coll *c) { return c->rank; }
int coll_ranks(const coll *c) { return c->ranks; }
int coll_timeout_ms(const coll *c) { return c->timeout_ms; }
int64_t coll_spent_us(const coll *c) { return c->spent_us; }

void coll_set_timeout(coll *c, int timeout_ms) {
    assert(timeout_ms > 0);
    c->timeout_ms = timeout_ms;
}

status coll_reserve(coll *c, size_t count, error *err) {
    if (!c->transport || count <= c->reduce_max) return ST_OK;
    float *parts = mem_realloc(c->parts, (size_t)c->ranks * count * sizeof *parts);
    if (!parts) return error_set(err, ST_NO_MEMORY, "no memory for sums of %zu floats of %d ranks", count, c->ranks);
    c->parts = parts;
    c->reduce_max = count;
    return ST_OK;
}

/* ---- calls --------------------------------------------------------------------------------------- */

static status exchange(coll *c, enum coll_kind kind, uint64_t bytes, const span *out, const span *in, error *err) {
    if (c->failed.code == ST_OK) {
        coll_call call = {.number = ++c->calls, .kind = kind, .bytes = bytes};
        error why = {.text = ""};
        int64_t began_us = clock_now_us();
        why.code = c->transport->exchange(c, &call, out, in, &why);
        c->spent_us += clock_now_us() - began_us;
        if (why.code != ST_OK && atomic_load(&c->aborted)) error_set(&why, ST_CANCELED, "the group was given up");
        c->failed = why;
    }
    return c->failed.code == ST_OK ? ST_OK : error_set(err, c->failed.code, "%s", c->failed.text);
}

/* Without other ranks there is nothing to do, but to stop when told. */
static bool is_alone(coll *c, status *s, error *err) {
    if (c->transport) return false;
    *s = atomic_load(&c->aborted) ? error_set(err, ST_CANCELED, "the group was given up") : ST_OK;
    return true;
}

/* to (count) = sum over ranks; part[r] is what rank r has. to may be this rank's own part. */
static void add_up(const coll *c, float *to, const float *const *part, size_t count) {
    for (size_t i = 0; i < count; i++) {
        float sum = part[0][i];
        for (int r = 1; r < c->ranks; r++) sum += part[r][i];
        to[i] = sum;
    }
}

static status reduce_few(coll *c, float *x, size_t count, error *err) {
    span out[COLL_RANKS_MAX] = {{0}}, in[COLL_RANKS_MAX] = {{0}};
    const float *part[COLL_RANKS_MAX];
    for (int r = 0; r < c->ranks; r++) {
        float *theirs = c->parts + (size_t)r * c->reduce_max;
        out[r] = (span){x, count * sizeof *x};
        in[r] = (span){theirs, count * sizeof *x};
        part[r] = r == c->rank ? x : theirs;
    }
    TRY(exchange(c, COLL_REDUCE, count * sizeof *x, out, in, err));
    add_up(c, x, part, count);
    return ST_OK;
}

static status reduce_many(coll *c, float *x, size_t count, error *err) {
    span out[COLL_RANKS_MAX] = {{0}}, in[COLL_RANKS_MAX] = {{0}};
    const float *part[COLL_RANKS_MAX];
    size_t first[COLL_RANKS_MAX + 1] = {0};
    for (int r = 0; r <= c->ranks; r++) first[r] = count * (size_t)r / (size_t)c->ranks;
    size_t mine = first[c->rank + 1] - first[c->rank];
    for (int r = 0; r < c->ranks; r++) {
        float *theirs = c->parts + (size_t)r * c->reduce_max;
        out[r] = (span){x + first[r], (first[r + 1] - first[r]) * sizeof *x};
        in[r] = (span){theirs, mine * sizeof *x};
        part[r] = r == c->rank ? x + first[r] : theirs;
    }
    TRY(exchange(c, COLL_REDUCE, count * sizeof *x, out, in, err));
    add_up(c, x + first[c->rank], part, mine);
    for (int r = 0; r < c->ranks; r++) {
        in[r] = out[r];
        out[r] = (span){x + first[c->rank], mine * sizeof *x};
    }
    return exchange(c, COLL_REDUCE, count * sizeof *x, out, in, err);
}

status coll_all_reduce(coll *c, float *x, size_t count, error *err) {
    status s = ST_OK;
    if (is_alone(c, &s, err) || count == 0) return s;
    assert(count <= c->reduce_max);
    return count <= FEW ? reduce_few(c, x, count, err) : reduce_many(c, x, count, err);
}

status coll_all_gather(coll *c, const void *mine, void *all, const size_t *bytes, error *err) {
    span out[COLL_RANKS_MAX] = {{0}}, in[COLL_RANKS_MAX] = {{0}};
    size_t at = 0;
    status s = ST_OK;
    for (int r = 0; r < c->ranks; r++) {
        in[r] = (span){(char *)all + at, bytes[r]};
        out[r] = (span){(void *)(uintptr_t)mine, bytes[c->rank]};
        at += bytes[r];
    }
    if (!is_alone(c, &s, err)) s = exchange(c, COLL_GATHER, at, out, in, err);
    if (s == ST_OK) memmove(in[c->rank].data, mine, bytes[c->rank]);
    return s;
}

status coll_barrier(coll *c, error *err) {
    span out[COLL_RANKS_MAX], in[COLL_RANKS_MAX];
    char here = 1, there[COLL_RANKS_MAX];
    status s = ST_OK;
    if (is_alone(c, &s, err)) return s;
    for (int r = 0; r < c->ranks; r++) {
        out[r] = (span){&here, 1};
        in[r] = (span){&there[r], 1};
    }
    return exchange(c, COLL_BARRIER, 1, out, in, err);
}

/* All ranks learn whether it went well on all: a rank that could not map it must not be waited for. */
static status agree(coll *c, status mine, const error *why, error *err) {
    int32_t said = (int32_t)mine, all[COLL_RANKS_MAX];
    size_t bytes[COLL_RANKS_MAX];
    for (int r = 0; r < c->ranks; r++) bytes[r] = sizeof said;
    TRY(coll_all_gather(c, &said, all, bytes, err));
    if (mine != ST_OK) return error_set(err, mine, "%s", why->text);
    for (int r = 0; r < c->ranks; r++)
        if (all[r] != ST_OK) return error_set(err, (status)all[r], "rank %d has no memory that all ranks see", r);
    return ST_OK;
}

status coll_window(coll *c, size_t bytes, void *windows[COLL_RANKS_MAX], error *err) {
    enum { PAGE = 4096, STAGES = 3 };
    error why = {.text = ""};
    void *all = NULL;
    size_t each = (bytes + PAGE - 1) / PAGE * PAGE;
    windows[0] = NULL;
    if (!c->transport || !c->transport->share) return ST_OK;
    for (int stage = 0; stage < STAGES; stage++) {
        status s = c->transport->share(c, stage, each * (size_t)c->ranks, &all, &why);
        TRY(agree(c, s, &why, err));
    }
    for (int r = 0; r < c->ranks; r++) windows[r] = (char *)all + (size_t)r * each;
    return ST_OK;
}

status coll_broadcast(coll *c, void *data, size_t bytes, error *err) {
    span out[COLL_RANKS_MAX] = {{0}}, in[COLL_RANKS_MAX] = {{0}};
    status s = ST_OK;
    if (is_alone(c, &s, err)) return s;
    for (int r = 1; r < c->ranks && c->rank == 0; r++) out[r] = (span){data, bytes};
    if (c->rank) in[0] = (span){data, bytes};
    return exchange(c, COLL_BROADCAST, bytes, out, in, err);
}
