/* pool.c -- who owns a page: states, pins, the free list and the order of eviction. Page memory is
 * kv.c's, what a page holds is prefix.c's.
 *
 *              take                mark              mark
 *   FREE/CACHED -----> PROMISED ---------> LANDING ---------> RUNNING <------> SENDING <------> HELD
 *        ^                 |                  |                  |     mark       |     mark      |
 *        +-----------------+------------------+------------------+----------------+---------------+
 *                            last give: CACHED if the index knows it, else FREE
 *
 *   FREE     -> PROMISED, RUNNING    [eng_pool_take]
 *   CACHED   -> PROMISED, RUNNING    [eng_pool_take]         evicted: it leaves the index first
 *   CACHED   -> RUNNING              [eng_pool_match]        found and pinned, content kept (prefix.c)
 *   PROMISED -> LANDING, RUNNING     [eng_pool_mark]         first frame; or computed here after all
 *   LANDING  -> RUNNING              [eng_pool_mark]         the transfer is over, however it went; what is
 *                                                          missing is computed here
 *   RUNNING <-> SENDING              [eng_pool_mark]         a receiver reads it; it has it
 *   RUNNING, SENDING <-> HELD        [eng_pool_mark]         its prompt waits for a receiver; of a page that several hold
 *                                                          the state is what the last of them said
 *   pinned   -> CACHED or FREE       [eng_pool_give]         the last pin
 *   CACHED   -> FREE                 [eng_pool_clear_cache]  (prefix.c)
 *
 * Rules:
 *   1. A page is in one state. Free and cached pages have no pin, all others have at least one.
 *   2. Page memory is touched only under a pin; whoever took, matched or shared gives once each.
 *   3. A PROMISED or LANDING page is given back only after its link can no longer write to it: after
 *      ended() of its promise (kvtransfer/receive.c), whatever ended it, or if it was never made. The caller
 *      answers for that; the pool can not see links.
 *   4. Only RUNNING, SENDING and HELD pages are published: all of their tokens are computed. From then on
 *      their content does not change, whoever holds pins.
 *   5. A page in the index has its parent in the index. So only leaves are evicted, and a cached page
 *      above a pinned one can not be had (it is `blocked`).
 *   6. An evicted page is out of the index before its new owner has it.
 *
 * Eviction takes the cached leaf whose last pin went longest ago. The leaves stand in a binary heap by
 * that tick, because a parent that becomes a leaf may belong anywhere in the order; all else is O(1),
 * but for walking up a chain when its lowest pinned page gets or loses its first pin. */
#include "engine/pool_internal.h"
#include <assert.h>

static bool in_pool(const eng_pool *p, int32_t page) { return page >= 0 && page < p->total; }

/* ---- create, destroy --------------------------------------------------------------------------- */

static void release(eng_pool *p) {
    mem_free(p->pages);
    mem_free(p->tokens);
    mem_free(p->free_pages);
    mem_free(p->heap);
    mem_free(p->changed);
    mem_free(p->full);
    mem_free(p->first);
    mem_free(p);
}

eng_pool *eng_pool_create(int32_t pages, int32_t page_tokens) {
    assert(pages > 0 && page_tokens > 0);
    eng_pool *p = mem_zalloc(1, sizeof *p);
    if (!p) return NULL;
    size_t buckets = 1, total = (size_t)pages;
    while (buckets < total) buckets *= 2;
    p->total = pages;
    p->P = page_tokens;
    p->buckets = buckets;
    p->bucket_mask = buckets - 1;
    p->pages = mem_zalloc(total, sizeof *p->pages);
    p->tokens = mem_zalloc(total, (size_t)page_tokens * sizeof *p->tokens);
    p->free_pages = mem_zalloc(total, sizeof *p->free_pages);
    p->heap = mem_zalloc(total, sizeof *p->heap);
    p->changed = mem_zalloc(total, sizeof *p->changed);
    p->full = mem_zalloc(buckets, sizeof *p->full);
    p->first = mem_zalloc(buckets, sizeof *p->first);
    if (!p->pages || !p->tokens || !p->free_pages || !p->heap || !p->changed || !p->full || !p->first) {
        release(p);
        return NULL;
    }
    for (int32_t i = 0; i < pages; i++) {
        p->pages[i] = (eng_page){.state = ENG_PAGE_FREE, .heap_at = -1, .parent = NO_PAGE};
        p->free_pages[i] = pages - 1 - i;                  /* page 0 is taken first */
    }
    p->counts[ENG_PAGE_FREE] = pages;
    eng_prefix_reset(p);
    return p;
}

void eng_pool_destroy(eng_pool *p) {
    if (!p) return;
    assert(p->counts[ENG_PAGE_FREE] + p->counts[ENG_PAGE_CACHED] == p->total);
    release(p);
}

/* ---- heap of evictable leaves -------------------------------------------------------------------- */

static bool older(const eng_pool *p, int32_t a, int32_t b) { return p->pages[a].used < p->pages[b].used; }

static void heap_put(eng_pool *p, int32_t at, int32_t page) {
    p->heap[at] = page;
    p->pages[page].heap_at = at;
}

/* Finds the place of page from `at` upwards, then downwards, and puts it there. */
static void heap_settle(eng_pool *p, int32_t at, int32_t page) {
    while (at > 0 && older(p, page, p->heap[(at - 1) / 2])) {
        heap_put(p, at, p->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        int64_t below = 2 * (int64_t)at + 1;
        if (below + 1 < p->heap_count && older(p, p->heap[below + 1], p->heap[below])) below++;
        if (below >= p->heap_count || !older(p, p->heap[below], page)) break;
        heap_put(p, at, p->heap[below]);
        at = (int32_t)below;
    }
    heap_put(p, at, page);
}

static void heap_add(eng_pool *p, int32_t page) {
    assert(p->pages[page].heap_at < 0);
    heap_settle(p, p->heap_count++, page);
}

static void heap_remove(eng_pool *p, int32_t page) {
    int32_t at = p->pages[page].heap_at;
    if (at < 0) return;
    p->pages[page].heap_at = -1;
    int32_t last = p->heap[--p->heap_count];
    if (last != page) heap_settle(p, at, last);
}

/* ---- busy: pinned, or above a pinned page ------------------------------------------------------- */

static bool is_busy(const eng_page *g) { return g->pins > 0 || g->busy_children > 0; }

static bool is_evictable(const eng_page *g) {
    return g->state == ENG_PAGE_CACHED && g->children == 0;
}

static void set_state(eng_pool *p, int32_t page, eng_page_state state) {
    p->counts[p->pages[page].state]--;
    p->counts[state]++;
    p->pages[page].state = state;
}

/* page has become busy: so do the idle pages above it. The walk ends at the first that was so. */
static void block_above(eng_pool *p, int32_t page) {
    for (int32_t up = p->pages[page].parent; up != NO_PAGE; up = p->pages[up].parent) {
        bool was = is_busy(&p->pages[up]);
        p->pages[up].busy_children++;
        if (was) return;
        p->blocked++;
    }
}

/* page has become idle. */
static void unblock_above(eng_pool *p, int32_t page) {
    for (int32_t up = p->pages[page].parent; up != NO_PAGE; up = p->pages[up].parent) {
        p->pages[up].busy_children--;
        if (is_busy(&p->pages[up])) return;
        p->blocked--;
    }
}

void eng_pool_adopt(eng_pool *p, int32_t child) {
    int32_t parent = p->pages[child].parent;
    assert(p->pages[child].pins > 0);
    if (parent == NO_PAGE) return;
    p->pages[parent].children++;
    heap_remove(p, parent);
    block_above(p, child);
}

void eng_pool_orphan(eng_pool *p, int32_t child) {
    int32_t parent = p->pages[child].parent;
    assert(!is_busy(&p->pages[child]) && p->pages[child].children == 0);
    p->pages[child].parent = NO_PAGE;
    if (parent == NO_PAGE) return;
    assert(p->pages[parent].children > 0);
    p->pages[parent].children--;
    if (is_evictable(&p->pages[parent])) heap_add(p, parent);
}

/* ---- take, pin, give ----------------------------------------------------------------------------- */

static int32_t evict(eng_pool *p) {
    assert(p->heap_count > 0);
    int32_t page = p->heap[0];
    heap_remove(p, page);
    eng_prefix_remove(p, page);
    eng_pool_orphan(p, page);
    return page;
}

status eng_pool_take(eng_pool *p, int32_t count, eng_page_state state, int32_t *pages) {
    assert(count >= 0 && (state == ENG_PAGE_PROMISED || state == ENG_PAGE_RUNNING));
    if (count > eng_pool_available(p)) return ST_AGAIN;
    for (int32_t i = 0; i < count; i++) {
        int32_t left = p->counts[ENG_PAGE_FREE];
        int32_t page = left > 0 ? p->free_pages[left - 1] : evict(p);
        assert(p->pages[page].pins == 0 && !p->pages[page].indexed);
        p->pages[page].pins = 1;
        set_state(p, page, state);
        pages[i] = page;
    }
    return ST_OK;
}

void eng_pool_pin(eng_pool *p, int32_t page) {
    assert(in_pool(p, page));
    eng_page *g = &p->pages[page];
    assert(g->state != ENG_PAGE_FREE && g->pins < INT32_MAX);
    if (g->pins++ > 0) return;
    heap_remove(p, page);
    set_state(p, page, ENG_PAGE_RUNNING);
    if (g->busy_children > 0)
        p->blocked--;                                      /* those above are busy already */
    else
        block_above(p, page);
}

void eng_pool_share(eng_pool *p, int32_t page) {
    assert(in_pool(p, page) && p->pages[page].pins > 0);
    eng_pool_pin(p, page);
}

void eng_pool_give(eng_pool *p, int32_t page) {
    assert(in_pool(p, page));
    eng_page *g = &p->pages[page];
    assert(g->pins > 0);
    if (--g->pins > 0) return;
    if (!g->indexed) {
        p->free_pages[p->counts[ENG_PAGE_FREE]] = page;
        set_state(p, page, ENG_PAGE_FREE);
        return;
    }
    set_state(p, page, ENG_PAGE_CACHED);
    g->used = ++p->tick;
    if (g->busy_children > 0)
        p->blocked++;
    else
        unblock_above(p, page);
    if (is_evictable(g)) heap_add(p, page);
}

void eng_pool_mark(eng_pool *p, int32_t page, eng_page_state state) {
    static const bool allowed[ENG_PAGE_STATES][ENG_PAGE_STATES] = {
        [ENG_PAGE_PROMISED] = {[ENG_PAGE_LANDING] = true, [ENG_PAGE_RUNNING] = true},
        [ENG_PAGE_LANDING] = {[ENG_PAGE_RUNNING] = true},
        [ENG_PAGE_RUNNING] = {[ENG_PAGE_SENDING] = true, [ENG_PAGE_HELD] = true},
        [ENG_PAGE_SENDING] = {[ENG_PAGE_RUNNING] = true, [ENG_PAGE_HELD] = true},
        [ENG_PAGE_HELD] = {[ENG_PAGE_RUNNING] = true, [ENG_PAGE_SENDING] = true},
    };
    assert(in_pool(p, page) && p->pages[page].pins > 0 && (unsigned)state < ENG_PAGE_STATES);
    if (p->pages[page].state == state) return;             /* a shared page, marked by each holder */
    assert(allowed[p->pages[page].state][state]);
    set_state(p, page, state);
}

void eng_pool_forget_all(eng_pool *p) {
    for (int32_t i = 0; i < p->total; i++) {
        eng_page *g = &p->pages[i];
        if (g->indexed) eng_pool_change(p, i, 0);
        g->indexed = false;
        g->parent = NO_PAGE;
        g->children = g->busy_children = 0;
        g->heap_at = -1;
        if (g->state != ENG_PAGE_CACHED) continue;
        p->free_pages[p->counts[ENG_PAGE_FREE]] = i;
        set_state(p, i, ENG_PAGE_FREE);
    }
    p->heap_count = p->blocked = 0;
}

/* ---- changes of the index ------------------------------------------------------------------------ */

/* A page is in the list once, however often it changed: so the list is bounded, whoever reads it and when. */
void eng_pool_change(eng_pool *p, int32_t page, uint64_t number) {
    eng_page *g = &p->pages[page];
    g->number = number;
    if (g->changed) return;
    g->changed = true;
    p->changed[p->changed_count++] = page;
}

int32_t eng_pool_changes(eng_pool *p, int32_t max, int32_t *pages, uint64_t *numbers) {
    int32_t n = 0;
    for (; n < max && p->changed_count > 0; n++) {
        pages[n] = p->changed[--p->changed_count];
        numbers[n] = p->pages[pages[n]].number;
        p->pages[pages[n]].changed = false;
    }
    return n;
}

/* ---- look ---------------------------------------------------------------------------------------- */

int32_t eng_pool_pins(const eng_pool *p, int32_t page) {
    assert(in_pool(p, page));
    return p->pages[page].pins;
}

int32_t eng_pool_total(const eng_pool *p) { return p->total; }

int32_t eng_pool_available(const eng_pool *p) {
    return p->counts[ENG_PAGE_FREE] + p->counts[ENG_PAGE_CACHED] - p->blocked;
}

void eng_pool_counts(const eng_pool *p, int32_t counts[ENG_PAGE_STATES]) {
    for (int s = 0; s < ENG_PAGE_STATES; s++) counts[s] = p->counts[s];
}
