/* promise.c -- what a receiver has agreed to take: a pure table, no clock, no socket, no thread.
 *
 *   unknown --[kvt_promises_add]--> OPEN --[kvt_promises_remove | kvt_promises_expire]--> unknown
 *
 *   OPEN: every frame is held against it
 *     DATA inside and new      KVT_TAKE       marks the box landed, renews the lease [kvt_promises_judge]
 *     DATA otherwise           KVT_DUPLICATE / KVT_REFUSE_BOUNDS / KVT_REFUSE_TYPE, nothing changes
 *     END, rows of its heads missing           KVT_SHORT
 *     END, heads of other senders not ended    KVT_PART   marks its heads ended [kvt_promises_judge]
 *     END otherwise            KVT_DONE
 *     END, none of the heads   KVT_REFUSE_BOUNDS
 *     ABORT                    KVT_ABORTED, whoever sent it: what one sender lacks nobody can use
 *     another epoch            KVT_REFUSE_EPOCH
 *   unknown: KVT_REFUSE_TICKET
 *
 * Rules
 *   1. A box lands at most once: its bits are set before the caller copies, and a set bit refuses.
 *   2. What is not in this table does not land. Removing is therefore the first half of the fence;
 *      the second half is the caller's (receive.c): no copy of an earlier KVT_TAKE may be running.
 *   3. Every promise has a lease; only a box that lands renews it, so that a sender that keeps
 *      talking nonsense cannot hold pages.
 *   4. The owner pointer is never looked into. The caller frees it after the promise was removed.
 *   5. A frame's numbers are used only after the bounds check: before it, they are strangers.
 *   6. A head ends when all its rows have landed and an END named it. The promise is done when its last head
 *      ends and not when its last box lands: a sender whose END is on its way must find its ticket known. */
#include "kvtransfer/kvtransfer.h"
#include <assert.h>
#include <string.h>

typedef struct promise {
    struct promise *next;        /* of the same bucket */
    uint64_t ticket;
    uint32_t epoch;
    kvt_geometry g;
    uint32_t token_first, tokens;
    uint32_t lease_ms;
    int64_t expires_ms;
    void *owner;
    size_t words;                /* of one row of bits: tokens of one (layer, head) */
    uint64_t *ended;             /* behind landed: a bit a head */
    uint64_t landed[];           /* [layer][head][words] */
} promise;

struct kvt_promises {
    int count, count_max;
    int64_t earliest_ms;         /* no lease ends before: renewals leave it behind, expire catches up */
    size_t mask;                 /* buckets - 1 */
    promise *buckets[];
};

/* Bits of one promise: 64 MiB of table would be 2^29; more than any model's context needs. */
static const uint64_t BITS_MAX = UINT64_C(1) << 29;

const char *kvt_verdict_name(kvt_verdict v) {
    static const char *const names[KVT_VERDICTS] = {
        [KVT_TAKE] = "take",
        [KVT_DONE] = "done",
        [KVT_PART] = "part",
        [KVT_SHORT] = "short",
        [KVT_ABORTED] = "aborted",
        [KVT_DUPLICATE] = "duplicate",
        [KVT_REFUSE_TICKET] = "ticket",
        [KVT_REFUSE_EPOCH] = "epoch",
        [KVT_REFUSE_BOUNDS] = "bounds",
        [KVT_REFUSE_TYPE] = "type",
        [KVT_REFUSE_SEALING] = "sealing",
        [KVT_REFUSE_TAG] = "tag",
        [KVT_REFUSE_REPLAY] = "replay",
    };
    return (unsigned)v < KVT_VERDICTS ? names[v] : "unknown";
}

kvt_promises *kvt_promises_create(int count_max) {
    size_t buckets = 16;
    while (buckets < (size_t)count_max) buckets *= 2;
    kvt_promises *p = mem_zalloc(1, sizeof *p + buckets * sizeof p->buckets[0]);
    if (!p) return NULL;
    p->count_max = count_max;
    p->mask = buckets - 1;
    p->earliest_ms = INT64_MAX;
    return p;
}

void kvt_promises_destroy(kvt_promises *p) {
    if (!p) return;
    for (size_t i = 0; i <= p->mask; i++)
        for (promise *at = p->buckets[i], *next; at; at = next) {
            next = at->next;
            mem_free(at);
        }
    mem_free(p);
}

/* Tickets come from a peer through the coordinator: mixed, so that counting tickets do not share a
 * bucket. */
static promise **bucket(const kvt_promises *p, uint64_t ticket) {
    return (promise **)&p->buckets[mix64(ticket) & p->mask];
}

static promise *find(const kvt_promises *p, uint64_t ticket) {
    promise *at = *bucket(p, ticket);
    while (at && at->ticket != ticket) at = at->next;
    return at;
}

/* Afterwards every product of a box inside the promise fits 64 bits, and one token of one layer fits
 * one frame. */
static bool geometry_ok(const kvt_geometry *g, uint32_t tokens) {
    if (!g->layers || !g->heads || !g->row_bytes || !tokens) return false;
    if (g->head_first > UINT32_MAX - g->heads) return false;
    if ((uint64_t)g->heads * g->row_bytes > KVT_PAYLOAD_MAX / 2) return false;
    if ((uint64_t)g->layers * g->heads > BITS_MAX) return false;
    return (uint64_t)g->layers * g->heads * (((uint64_t)tokens + 63) / 64 * 64) <= BITS_MAX;
}

status kvt_promises_add(kvt_promises *p, uint64_t ticket, uint32_t epoch, const kvt_geometry *g,
                        uint32_t token_first, uint32_t token_end, uint32_t lease_ms, int64_t now_ms,
                        void *owner) {
    if (token_end <= token_first || !geometry_ok(g, token_end - token_first)) return ST_BAD_INPUT;
    if (find(p, ticket)) return ST_BAD_INPUT;
    if (p->count == p->count_max) return ST_AGAIN;
    size_t words = ((size_t)(token_end - token_first) + 63) / 64;
    size_t rows_words = (size_t)g->layers * g->heads * words, ended_words = ((size_t)g->heads + 63) / 64;
    promise *added =
        mem_zalloc(1, sizeof *added + (rows_words + ended_words) * sizeof added->landed[0]);
    if (!added) return ST_NO_MEMORY;
    added->ticket = ticket;
    added->epoch = epoch;
    added->g = *g;
    added->token_first = token_first;
    added->tokens = token_end - token_first;
    added->lease_ms = lease_ms;
    added->expires_ms = now_ms + lease_ms;
    added->owner = owner;
    added->words = words;
    added->ended = added->landed + rows_words;
    promise **head = bucket(p, ticket);
    added->next = *head;
    *head = added;
    p->count++;
    if (added->expires_ms < p->earliest_ms) p->earliest_ms = added->expires_ms;
    return ST_OK;
}

static bool inside(uint32_t first, uint32_t count, uint32_t bound_first, uint32_t bound_count) {
    return count && first >= bound_first &&
           (uint64_t)first + count <= (uint64_t)bound_first + bound_count;
}

/* One row's bits [first, first + count): is any set, or (set) set them all. */
static bool row_bits(uint64_t *row, uint32_t first, uint32_t count, bool set) {
    uint64_t seen = 0;
    for (uint32_t at = first, end = first + count; at < end;) {
        uint32_t bit = at % 64, n = 64 - bit < end - at ? 64 - bit : end - at;
        uint64_t bits = (n == 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1) << bit;
        seen |= row[at / 64] & bits;
        if (set) row[at / 64] |= bits;
        at += n;
    }
    return seen != 0;
}

/* h counts from the promise's first head. */
static uint64_t *row_of(promise *at, uint32_t l, uint32_t h) {
    return at->landed + ((size_t)l * at->g.heads + h) * at->words;
}

static bool box_bits(promise *at, const kvt_frame *f, bool set) {
    uint32_t first = f->head_first - at->g.head_first;
    for (uint32_t l = f->layer_first; l < f->layer_first + f->layers; l++)
        for (uint32_t h = first; h < first + f->heads; h++)
            if (row_bits(row_of(at, l, h), f->token_first - at->token_first, f->tokens, set) && !set)
                return true;
    return false;
}

/* Leading ones of a row, at most limit. */
static uint32_t row_prefix(const uint64_t *row, uint32_t limit) {
    for (uint32_t at = 0; at < limit; at += 64)
        if (~row[at / 64]) {
            uint32_t n = at + (uint32_t)__builtin_ctzll(~row[at / 64]);
            return n < limit ? n : limit;
        }
    return limit;
}

/* Those heads of an END that are the promise's, counted from its first. */
static void cut_heads(const promise *at, const kvt_frame *f, uint32_t *first, uint32_t *end) {
    uint64_t from = f->head_first, to = from + f->heads, base = at->g.head_first;
    if (from < base) from = base;
    if (to > base + at->g.heads) to = base + at->g.heads;
    *first = (uint32_t)(from - base);
    *end = to > from ? (uint32_t)(to - base) : *first;
}

static kvt_verdict check_end(promise *at, const kvt_frame *f) {
    uint32_t first, end;
    cut_heads(at, f, &first, &end);
    if (first == end) return KVT_REFUSE_BOUNDS;
    for (uint32_t l = 0; l < at->g.layers; l++)
        for (uint32_t h = first; h < end; h++)
            if (row_prefix(row_of(at, l, h), at->tokens) < at->tokens) return KVT_SHORT;
    for (uint32_t h = 0; h < at->g.heads; h++)
        if ((h < first || h >= end) && !row_bits(at->ended, h, 1, false)) return KVT_PART;
    return KVT_DONE;
}

kvt_verdict kvt_promises_check(const kvt_promises *p, const kvt_frame *f, void **owner) {
    *owner = NULL;
    promise *at = find(p, f->ticket);
    if (!at) return KVT_REFUSE_TICKET;
    if (at->epoch != f->epoch) return KVT_REFUSE_EPOCH;
    *owner = at->owner;
    if (f->kind == KVT_END) return check_end(at, f);
    if (f->kind == KVT_ABORT) return KVT_ABORTED;
    assert(f->kind == KVT_DATA); /* HELLO and ACK are the link's */
    if (!inside(f->layer_first, f->layers, 0, at->g.layers) ||
        !inside(f->head_first, f->heads, at->g.head_first, at->g.heads) ||
        !inside(f->token_first, f->tokens, at->token_first, at->tokens))
        return KVT_REFUSE_BOUNDS;
    uint64_t bytes = (uint64_t)f->layers * 2 * f->heads * f->tokens * at->g.row_bytes;
    if (f->type != at->g.type || bytes != f->payload_bytes || bytes > KVT_PAYLOAD_MAX)
        return KVT_REFUSE_TYPE;
    return box_bits(at, f, false) ? KVT_DUPLICATE : KVT_TAKE;
}

kvt_verdict kvt_promises_judge(kvt_promises *p, const kvt_frame *f, int64_t now_ms, void **owner) {
    kvt_verdict v = kvt_promises_check(p, f, owner);
    if (v != KVT_TAKE && v != KVT_PART) return v;
    promise *at = find(p, f->ticket);
    if (v == KVT_PART) {
        uint32_t first, end;
        cut_heads(at, f, &first, &end);
        row_bits(at->ended, first, end - first, true);
        return v;
    }
    box_bits(at, f, true);
    at->expires_ms = now_ms + at->lease_ms;
    return v;
}

void *kvt_promises_owner(const kvt_promises *p, uint64_t ticket) {
    promise *at = find(p, ticket);
    return at ? at->owner : NULL;
}

static uint32_t landed(const promise *at) {
    uint32_t prefix = at->tokens;
    for (size_t row = 0; row < (size_t)at->g.layers * at->g.heads && prefix; row++)
        prefix = row_prefix(at->landed + row * at->words, prefix);
    return prefix;
}

uint32_t kvt_promises_landed(const kvt_promises *p, uint64_t ticket) {
    promise *at = find(p, ticket);
    return at ? landed(at) : 0;
}

bool kvt_promises_remove(kvt_promises *p, uint64_t ticket) {
    promise **link = bucket(p, ticket);
    while (*link && (*link)->ticket != ticket) link = &(*link)->next;
    promise *gone = *link;
    if (!gone) return false;
    *link = gone->next;
    mem_free(gone);
    if (--p->count == 0) p->earliest_ms = INT64_MAX;
    return true;
}

/* The first promise that is over, or NULL after having found out when the next one will be. */
static promise *overdue(kvt_promises *p, int64_t now_ms) {
    int64_t earliest = INT64_MAX;
    for (size_t i = 0; i <= p->mask; i++)
        for (promise *at = p->buckets[i]; at; at = at->next) {
            if (at->expires_ms <= now_ms) return at;
            if (at->expires_ms < earliest) earliest = at->expires_ms;
        }
    p->earliest_ms = earliest;
    return NULL;
}

bool kvt_promises_expire(kvt_promises *p, int64_t now_ms, uint64_t *ticket, void **owner,
                         uint32_t *landed_out) {
    if (now_ms < p->earliest_ms) return false;
    promise *at = overdue(p, now_ms);
    if (!at) return false;
    *ticket = at->ticket;
    *owner = at->owner;
    *landed_out = landed(at);
    return kvt_promises_remove(p, at->ticket);
}

int64_t kvt_promises_next_expiry(const kvt_promises *p) { return p->earliest_ms; }

int kvt_promises_count(const kvt_promises *p) { return p->count; }
