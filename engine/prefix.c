/* prefix.c -- which page holds which tokens: the index of the page pool (eng_pool_match, _peek,
 * _publish, _clear_cache).
 *
 * The index is a forest over page numbers. A node is a full page; its identity is (salt, parent page,
 * its P tokens), so by induction from the first page: salt and every token up to its end. Hashes only
 * choose a bucket: salt, parent and tokens are compared on every hit, so neither a collision nor
 * another tenant's salt ever matches.
 *
 *   full[]   bucket of (salt, parent, P tokens)      the next whole page of a prefix, O(1)
 *   first[]  bucket of (salt, parent, first token)   who may share a part of the page after it
 *
 * Both are chained through the page nodes, so the index never allocates and has room for every page.
 * A parent in the index outlives its children there (rule 5 of pool.c), so a parent's number never
 * names another page's content. */
#include "engine/pool_internal.h"
#include <assert.h>
#include <string.h>
#include <xxhash.h>

/* How many pages that share the first token are compared for a partial match, the newest first: a
 * bound on one match's time where thousands of prompts begin alike. */
#define TAIL_SCAN_MAX 256

static int32_t *tokens_of(const eng_pool *p, int32_t page) {
    return p->tokens + (size_t)page * (size_t)p->P;
}

static int32_t *bucket(const eng_pool *p, int32_t *heads, uint64_t salt, int32_t parent,
                       const int32_t *tokens, int32_t count) {
    uint64_t seed = salt ^ ((uint64_t)(uint32_t)parent + 1) * 0x9E3779B97F4A7C15u;
    return &heads[XXH3_64bits_withSeed(tokens, (size_t)count * sizeof *tokens, seed) &
                  p->bucket_mask];
}

static bool is_child(const eng_pool *p, int32_t page, uint64_t salt, int32_t parent) {
    return p->pages[page].salt == salt && p->pages[page].parent == parent;
}

static int32_t find_full(const eng_pool *p, uint64_t salt, int32_t parent, const int32_t *tokens) {
    size_t bytes = (size_t)p->P * sizeof *tokens;
    int32_t page = *bucket(p, p->full, salt, parent, tokens, p->P);
    while (page != NO_PAGE &&
           !(is_child(p, page, salt, parent) && memcmp(tokens_of(p, page), tokens, bytes) == 0))
        page = p->pages[page].next_full;
    return page;
}

/* The child of parent that shares the longest prefix, at least one token, at most P - 1, with
 * tokens[0..count). Of equals the newest. */
static int32_t find_tail(const eng_pool *p, uint64_t salt, int32_t parent, const int32_t *tokens,
                         int32_t count, int32_t *shared) {
    int32_t best = NO_PAGE, most = 0, limit = count < p->P ? count : p->P - 1;
    if (limit > 0) {
        int left = TAIL_SCAN_MAX;
        int32_t page = *bucket(p, p->first, salt, parent, tokens, 1);
        for (; page != NO_PAGE && left > 0 && most < limit; page = p->pages[page].next_first) {
            const int32_t *held = tokens_of(p, page);
            int32_t n = 0;
            if (!is_child(p, page, salt, parent)) continue;
            while (n < limit && held[n] == tokens[n]) n++;
            left -= n > 0;
            if (n > most) best = page, most = n;
        }
    }
    *shared = most;
    return best;
}

/* Follows tokens down the forest; pages (may be NULL) gets the full pages. *last: the lowest. */
static int32_t descend(const eng_pool *p, uint64_t salt, const int32_t *tokens, int32_t count,
                       int32_t *pages, int32_t *last) {
    int32_t n = 0;
    *last = NO_PAGE;
    for (; count - n * p->P >= p->P; n++) {
        int32_t page = find_full(p, salt, *last, tokens + n * p->P);
        if (page == NO_PAGE) break;
        if (pages) pages[n] = page;
        *last = page;
    }
    return n;
}

int32_t eng_pool_match(eng_pool *p, uint64_t salt, const int32_t *tokens, int32_t count,
                       int32_t *pages, int32_t *tail, int32_t *tail_tokens) {
    int32_t last, n = descend(p, salt, tokens, count, pages, &last);
    for (int32_t i = 0; i < n; i++) eng_pool_pin(p, pages[i]);
    *tail = find_tail(p, salt, last, tokens + n * p->P, count - n * p->P, tail_tokens);
    if (*tail != NO_PAGE) eng_pool_pin(p, *tail);
    return n;
}

int32_t eng_pool_peek(const eng_pool *p, uint64_t salt, const int32_t *tokens, int32_t count) {
    int32_t last, shared, n = descend(p, salt, tokens, count, NULL, &last);
    find_tail(p, salt, last, tokens + n * p->P, count - n * p->P, &shared);
    return n * p->P + shared;
}

static void insert(eng_pool *p, int32_t page, uint64_t salt, int32_t parent,
                   const int32_t *tokens) {
    eng_page *g = &p->pages[page];
    assert(g->pins > 0 && !g->indexed);
    assert(g->state == ENG_PAGE_RUNNING || g->state == ENG_PAGE_SENDING || g->state == ENG_PAGE_HELD);
    memcpy(tokens_of(p, page), tokens, (size_t)p->P * sizeof *tokens);
    int32_t *full = bucket(p, p->full, salt, parent, tokens, p->P);
    int32_t *first = bucket(p, p->first, salt, parent, tokens, 1);
    g->indexed = true;
    g->salt = salt;
    g->parent = parent;
    eng_pool_change(p, page, prefix_number(parent == NO_PAGE ? salt : p->pages[parent].number, tokens, p->P));
    g->next_full = *full;
    g->next_first = *first;
    *full = *first = page;
    eng_pool_adopt(p, page);
}

void eng_pool_publish(eng_pool *p, uint64_t salt, const int32_t *tokens, int32_t count,
                      const int32_t *pages) {
    int32_t last = NO_PAGE;
    for (int32_t n = 0; count - n * p->P >= p->P; n++) {
        const int32_t *held = tokens + n * p->P;
        int32_t page = find_full(p, salt, last, held);
        if (page == NO_PAGE) {
            page = pages[n];
            insert(p, page, salt, last, held);
        }
        last = page;
    }
}

void eng_prefix_remove(eng_pool *p, int32_t page) {
    eng_page *g = &p->pages[page];
    const int32_t *tokens = tokens_of(p, page);
    assert(g->indexed);
    int32_t *at = bucket(p, p->full, g->salt, g->parent, tokens, p->P);
    while (*at != page) at = &p->pages[*at].next_full;
    *at = g->next_full;
    at = bucket(p, p->first, g->salt, g->parent, tokens, 1);
    while (*at != page) at = &p->pages[*at].next_first;
    *at = g->next_first;
    g->indexed = false;
    eng_pool_change(p, page, 0);
}

void eng_prefix_reset(eng_pool *p) {
    for (size_t i = 0; i < p->buckets; i++) p->full[i] = p->first[i] = NO_PAGE;
}

void eng_pool_clear_cache(eng_pool *p) {
    eng_prefix_reset(p);
    eng_pool_forget_all(p);
}
