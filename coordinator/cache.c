/* cache.c -- the live view: which node's prefix cache holds which pages, by the numbers the nodes give (base/prefix.c).
 *
 *   node said "page 17 holds N"    nodes[node].page[17] = N, and node is a holder of N
 *   a prompt is matched            the number of each of its pages is looked up; its holders have it
 *
 * One table for all nodes: number -> holders. So a match costs as many look-ups as the prompt has pages, not times the
 * nodes. Up to FEW holders stand in the slot itself, more are a set of bits: the pages of a system prompt that everyone
 * has, of which there are few. Open addressing in SHARDS tables that grow one by one, so that growing never stops the
 * loop for long. Memory: 8 bytes for each page of a node, and a slot of 16 at most 3/4 full for each number.
 *
 * A prompt is looked at in at most COORD_LOOKS places, evenly [coord_cache_mark, once a prompt]: a longer one (2048
 * tokens are that many pages of 16) is known to within one part in so many. That a node that has a page has all pages
 * before it is nearly always so, since it evicts leaves first; in between two messages of one batch it may not be.
 *
 * All of it is a hint: a page that went meanwhile, two prefixes with one number, or no memory for a change costs time
 * somewhere, never a wrong byte. */
#include "coordinator/core_internal.h"
#include <assert.h>
#include <string.h>

enum { FEW = 4, SHARDS = 256, SLOTS_FIRST = 64, NOBODY = 0xFFFF, MANY = 0xFFFE };
static_assert((int)COORD_NODES_MAX < (int)MANY, "a node's number fits a slot");

typedef struct holders {
    uint64_t bit[COORD_NODES_MAX / 64];
} holders;

typedef struct slot {
    uint64_t number;             /* 0: empty */
    uint16_t node[FEW];          /* NOBODY behind the last; node[0] MANY: sets[set_of()] */
} slot;

typedef struct shard {
    slot *slots;
    uint32_t mask, count;        /* slots - 1; used */
} shard;

typedef struct pages {
    uint64_t *number;            /* (max) what each page holds, 0: nothing */
    int32_t max, used;
} pages;

struct coord_cache {
    shard shards[SHARDS];
    pages nodes[COORD_NODES_MAX];
    holders *sets;
    uint32_t sets_count, sets_max;
    uint32_t free_set;           /* first of a list through bit[0], NO_SET: none */
};

static const uint32_t NO_SET = UINT32_MAX;

coord_cache *coord_cache_create(void) {
    coord_cache *x = mem_zalloc(1, sizeof *x);
    if (x) x->free_set = NO_SET;
    return x;
}

void coord_cache_destroy(coord_cache *x) {
    if (!x) return;
    for (int i = 0; i < SHARDS; i++) mem_free(x->shards[i].slots);
    for (int i = 0; i < COORD_NODES_MAX; i++) mem_free(x->nodes[i].number);
    mem_free(x->sets);
    mem_free(x);
}

/* ---- slots --------------------------------------------------------------------------------------------- */

static int shard_of(uint64_t number) { return (int)(number >> 56); }

/* Where number is, or the empty slot where it would be. */
static slot *slot_at(const shard *h, uint64_t number) {
    uint32_t i = (uint32_t)number & h->mask;
    while (h->slots[i].number && h->slots[i].number != number) i = (i + 1) & h->mask;
    return &h->slots[i];
}

static bool grow(shard *h) {
    uint32_t slots = h->slots ? 2 * (h->mask + 1) : SLOTS_FIRST;
    shard bigger = {.slots = mem_zalloc(slots, sizeof(slot)), .mask = slots - 1, .count = h->count};
    if (!bigger.slots) return false;
    for (uint32_t i = 0; h->slots && i <= h->mask; i++)
        if (h->slots[i].number) *slot_at(&bigger, h->slots[i].number) = h->slots[i];
    mem_free(h->slots);
    *h = bigger;
    return true;
}

/* Backward shift: whoever sits after the hole and belongs at or before it moves into it. */
static void remove_slot(shard *h, slot *s) {
    uint32_t hole = (uint32_t)(s - h->slots);
    for (uint32_t i = (hole + 1) & h->mask; h->slots[i].number; i = (i + 1) & h->mask) {
        uint32_t home = (uint32_t)h->slots[i].number & h->mask;
        if (((i - home) & h->mask) < ((i - hole) & h->mask)) continue;
        h->slots[hole] = h->slots[i];
        hole = i;
    }
    h->slots[hole].number = 0;
    h->count--;
}

/* ---- holders ------------------------------------------------------------------------------------------- */

static uint32_t set_of(const slot *s) { return (uint32_t)s->node[2] << 16 | s->node[3]; }

static bool holds(const coord_cache *x, const slot *s, int node) {
    if (s->node[0] == MANY) return x->sets[set_of(s)].bit[node / 64] >> (node % 64) & 1;
    for (int i = 0; i < FEW; i++)
        if (s->node[i] == node) return true;
    return false;
}

static bool take_set(coord_cache *x, uint32_t *out) {
    if (x->free_set != NO_SET) {
        *out = x->free_set;
        x->free_set = (uint32_t)x->sets[*out].bit[0];
    } else if (x->sets_count < x->sets_max) {
        *out = x->sets_count++;
    } else {
        uint32_t max = x->sets_max ? 2 * x->sets_max : 16;
        holders *sets = mem_realloc(x->sets, max * sizeof *sets);
        if (!sets) return false;
        x->sets = sets;
        x->sets_max = max;
        *out = x->sets_count++;
    }
    memset(&x->sets[*out], 0, sizeof *x->sets);
    return true;
}

static bool add_holder(coord_cache *x, slot *s, int node) {
    uint32_t set;
    for (int i = 0; s->node[0] != MANY && i < FEW; i++)
        if (s->node[i] == NOBODY) {
            s->node[i] = (uint16_t)node;
            return true;
        }
    if (s->node[0] != MANY) {
        if (!take_set(x, &set)) return false;
        for (int i = 0; i < FEW; i++) x->sets[set].bit[s->node[i] / 64] |= 1ull << (s->node[i] % 64);
        *s = (slot){.number = s->number, .node = {MANY, 0, (uint16_t)(set >> 16), (uint16_t)set}};
    }
    x->sets[set_of(s)].bit[node / 64] |= 1ull << (node % 64);
    return true;
}

/* true: nobody is left. */
static bool remove_holder(coord_cache *x, slot *s, int node) {
    if (s->node[0] != MANY) {
        int at = 0, last = FEW - 1;
        while (s->node[at] != node) at++;
        while (s->node[last] == NOBODY) last--;
        s->node[at] = s->node[last];
        s->node[last] = NOBODY;
        return s->node[0] == NOBODY;
    }
    holders *set = &x->sets[set_of(s)];
    set->bit[node / 64] &= ~(1ull << (node % 64));
    for (size_t i = 0; i < sizeof set->bit / sizeof *set->bit; i++)
        if (set->bit[i]) return false;
    set->bit[0] = x->free_set;
    x->free_set = set_of(s);
    return true;
}

/* ---- changes ------------------------------------------------------------------------------------------- */

static void clear(coord_cache *x, int node, int32_t page) {
    pages *n = &x->nodes[node];
    uint64_t number = page < n->max ? n->number[page] : 0;
    if (!number) return;
    n->number[page] = 0;
    n->used--;
    shard *h = &x->shards[shard_of(number)];
    slot *s = slot_at(h, number);
    if (remove_holder(x, s, node)) remove_slot(h, s);
}

static bool make_room(pages *n, int32_t page) {
    if (page < n->max) return true;
    int32_t max = n->max ? n->max : 256;
    while (max <= page) max *= 2;
    uint64_t *number = mem_realloc(n->number, (size_t)max * sizeof *number);
    if (!number) return false;
    memset(number + n->max, 0, (size_t)(max - n->max) * sizeof *number);
    n->number = number;
    n->max = max;
    return true;
}

/* The same prefix on a page of another number: it moved, and the message that says so of the other is yet to come. */
static void forget_twin(pages *n, uint64_t number) {
    int32_t page = 0;
    while (n->number[page] != number) page++;
    n->number[page] = 0;
    n->used--;
}

static void set(coord_cache *x, int node, int32_t page, uint64_t number) {
    pages *n = &x->nodes[node];
    shard *h = &x->shards[shard_of(number)];
    if (!make_room(n, page)) return;
    if ((!h->slots || (uint64_t)(h->count + 1) * 4 > (uint64_t)(h->mask + 1) * 3) && !grow(h)) return;
    slot *s = slot_at(h, number);
    if (s->number && holds(x, s, node)) {
        forget_twin(n, number);
    } else {
        if (!s->number) {
            *s = (slot){.number = number, .node = {NOBODY, NOBODY, NOBODY, NOBODY}};
            h->count++;
        }
        if (!add_holder(x, s, node)) return;
    }
    n->number[page] = number;
    n->used++;
}

/* What pages held goes before what they hold now comes: within a message a prefix may move from one to another. */
void coord_cache_change(coord_cache *x, int node, const int32_t *at, const uint64_t *numbers, int32_t count) {
    assert(node >= 0 && node < COORD_NODES_MAX);
    for (int32_t i = 0; i < count; i++)
        if (at[i] >= 0 && at[i] < COORD_CACHE_PAGES_MAX) clear(x, node, at[i]);
    for (int32_t i = 0; i < count; i++)
        if (at[i] >= 0 && at[i] < COORD_CACHE_PAGES_MAX && numbers[i]) {
            clear(x, node, at[i]);       /* a message that names a page twice */
            set(x, node, at[i], numbers[i]);
        }
}

void coord_cache_forget(coord_cache *x, int node) {
    pages *n = &x->nodes[node];
    for (int32_t page = 0; n->used > 0; page++) clear(x, node, page);
    mem_free(n->number);
    *n = (pages){0};
}

int32_t coord_cache_pages(const coord_cache *x, int node) { return x->nodes[node].used; }

/* ---- match --------------------------------------------------------------------------------------------- */

static void have(const holders *who, int32_t tokens, int32_t *cached) {
    for (int w = 0; w < COORD_NODES_MAX / 64; w++)
        for (uint64_t left = who->bit[w]; left; left &= left - 1) {
            int node = w * 64 + __builtin_ctzll(left);
            if (cached[node] < tokens) cached[node] = tokens;
        }
}

/* Keeps of who those that hold number; gone gets the others. false: nobody is left. */
static bool keep(const coord_cache *x, uint64_t number, holders *who, holders *gone) {
    const shard *h = &x->shards[shard_of(number)];
    const slot *s = h->slots ? slot_at(h, number) : NULL;
    holders here = {{0}};
    uint64_t any = 0;
    if (s && s->number && s->node[0] == MANY) here = x->sets[set_of(s)];
    else if (s && s->number)
        for (int i = 0; i < FEW && s->node[i] != NOBODY; i++) here.bit[s->node[i] / 64] |= 1ull << (s->node[i] % 64);
    for (int w = 0; w < COORD_NODES_MAX / 64; w++) {
        gone->bit[w] = who->bit[w] & ~here.bit[w];
        any |= who->bit[w] &= here.bit[w];
    }
    return any != 0;
}

/* Who of `who` does not hold number has the known tokens before it. false: nobody is left. */
static bool look(const coord_cache *x, uint64_t number, int32_t known, holders *who, int32_t *cached) {
    holders gone;
    bool more = keep(x, number, who, &gone);
    if (known) have(&gone, known, cached);
    return more;
}

void coord_cache_mark(uint64_t salt, const int32_t *tokens, int32_t count, int32_t P, coord_marks *out) {
    int32_t total = count / P;
    *out = (coord_marks){.salt = salt, .P = P, .pages = total, .step = (total + COORD_LOOKS - 1) / COORD_LOOKS};
    uint64_t number = salt;
    for (int32_t page = 0; page < total; page++) {
        number = prefix_number(number, tokens + (size_t)page * (size_t)P, P);
        if ((page + 1) % out->step == 0 || page + 1 == total) out->number[out->looks++] = number;
    }
}

static void expect(const coord_cache *x, uint64_t number) {
    const shard *h = &x->shards[shard_of(number)];
    if (h->slots) __builtin_prefetch(&h->slots[number & h->mask]);
}

void coord_cache_match(const coord_cache *x, const coord_marks *m, int32_t *cached) {
    enum { AHEAD = 8 };
    holders who;
    memset(&who, 0xFF, sizeof who);
    for (int32_t i = 0; i < m->looks && i < AHEAD; i++) expect(x, m->number[i]);
    for (int32_t i = 0; i < m->looks; i++) {
        if (i + AHEAD < m->looks) expect(x, m->number[i + AHEAD]);
        if (!look(x, m->number[i], i * m->step * m->P, &who, cached)) return;
    }
    if (m->looks) have(&who, m->pages * m->P, cached);
}
