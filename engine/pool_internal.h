/* pool_internal.h -- the pool's struct, shared by pool.c (who owns a page, who may be evicted) and
 * prefix.c (which page holds which tokens). The rules stand at the head of pool.c. */
#ifndef BATON_ENGINE_POOL_INTERNAL_H
#define BATON_ENGINE_POOL_INTERNAL_H

#include "engine/engine.h"

#define NO_PAGE (-1)

typedef struct eng_page {
    eng_page_state state;
    int32_t pins;
    int64_t used;                /* tick at which the last pin went: the LRU order */
    int32_t heap_at;             /* place in the pool's heap of evictable leaves, -1: not in it */
    /* while indexed: */
    bool indexed;
    uint64_t salt;
    uint64_t number;             /* of its prefix (prefix_number); 0: it is not indexed */
    int32_t parent;              /* page before it in the chain, NO_PAGE: the first */
    int32_t children;            /* indexed pages whose parent it is */
    int32_t busy_children;       /* of those, pinned ones or ones with a pinned page below */
    int32_t next_full;           /* chain of the bucket over all its tokens */
    int32_t next_first;          /* chain of the bucket over its first token */
    /* always: */
    bool changed;                /* in the pool's list */
} eng_page;

/* Belongs to the engine thread, from eng_pool_create() to eng_pool_destroy(). */
struct eng_pool {
    int32_t total, P;
    eng_page *pages;             /* (total) */
    int32_t *tokens;             /* (total, P): what an indexed page holds */
    int32_t *free_pages;         /* stack of counts[ENG_PAGE_FREE] */
    int32_t *heap;               /* cached leaves, least recently used on top */
    int32_t heap_count;
    int32_t *changed;            /* pages whose content went in or out of the index since it was told */
    int32_t changed_count;
    int32_t counts[ENG_PAGE_STATES];
    int32_t blocked;             /* cached pages above a pinned one: not to be had */
    int64_t tick;
    int32_t *full, *first;       /* (buckets): heads of the index's chains, NO_PAGE: empty */
    size_t buckets;              /* a power of two */
    uint64_t bucket_mask;        /* buckets - 1; a test sets 0, so that every hash collides */
};

/* For prefix.c, in pool.c: */
void eng_pool_pin(eng_pool *p, int32_t page);              /* one more pin, on a cached page too */
void eng_pool_adopt(eng_pool *p, int32_t child);           /* child was put into the index */
void eng_pool_orphan(eng_pool *p, int32_t child);          /* an unpinned leaf leaves the index */
void eng_pool_forget_all(eng_pool *p);                     /* the index is empty now */
void eng_pool_change(eng_pool *p, int32_t page, uint64_t number);    /* it holds the prefix of that number now */
/* For pool.c, in prefix.c: */
void eng_prefix_reset(eng_pool *p);                        /* every bucket empty */
void eng_prefix_remove(eng_pool *p, int32_t page);         /* takes page out of its buckets */

#endif
