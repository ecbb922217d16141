/* memory.c -- plain allocation with a failure hook and a count, and the request's arena. */
#include "base/base.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic int64_t fail_in;  /* 0: never; 1: the next one fails */
static _Atomic int64_t made, freed;

static bool fails_now(void) {
    if (atomic_load_explicit(&fail_in, memory_order_relaxed) == 0) return false;
    int64_t left = atomic_fetch_sub(&fail_in, 1);
    if (left == 1) return true; /* this one; the hook is off again (0) */
    if (left < 1) atomic_store(&fail_in, 0);
    return false;
}

void *mem_alloc(size_t bytes) {
    if (fails_now()) return NULL;
    void *p = malloc(bytes ? bytes : 1);
    if (p) atomic_fetch_add_explicit(&made, 1, memory_order_relaxed);
    return p;
}

void *mem_zalloc(size_t count, size_t size) {
    if (fails_now() || (size && count > SIZE_MAX / size)) return NULL;
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (p) atomic_fetch_add_explicit(&made, 1, memory_order_relaxed);
    return p;
}

void *mem_realloc(void *p, size_t bytes) {
    if (!p) return mem_alloc(bytes);
    if (fails_now()) return NULL;
    return realloc(p, bytes ? bytes : 1);
}

void mem_free(void *p) {
    if (!p) return;
    atomic_fetch_add_explicit(&freed, 1, memory_order_relaxed);
    free(p);
}

char *mem_strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = mem_alloc(bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

void mem_fail_at(int64_t nth) { atomic_store(&fail_in, nth); }
int64_t mem_count(void) { return atomic_load(&made); }
int64_t mem_live(void) { return atomic_load(&made) - atomic_load(&freed); }

/* ---- arena: a list of chunks; the newest is filled, all are freed together --------------------- */

typedef struct chunk {
    struct chunk *next;
    size_t used, size;
    _Alignas(16) unsigned char bytes[];
} chunk;

struct arena {
    chunk *newest;
    size_t chunk_bytes;
};

arena *arena_create(size_t chunk_bytes) {
    arena *a = mem_zalloc(1, sizeof *a);
    if (a) a->chunk_bytes = chunk_bytes;
    return a;
}

void *arena_alloc(arena *a, size_t bytes) {
    if (bytes > SIZE_MAX - 64) return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    chunk *c = a->newest;
    if (!c || c->size - c->used < bytes) {
        size_t size = bytes > a->chunk_bytes ? bytes : a->chunk_bytes;
        if (size > SIZE_MAX - sizeof *c || !(c = mem_alloc(sizeof *c + size))) return NULL;
        *c = (chunk){.next = a->newest, .size = size};
        a->newest = c;
    }
    void *p = c->bytes + c->used;
    c->used += bytes;
    return memset(p, 0, bytes);
}

char *arena_strndup(arena *a, const char *text, size_t bytes) {
    if (bytes == SIZE_MAX) return NULL;
    char *copy = arena_alloc(a, bytes + 1);
    if (copy && bytes) memcpy(copy, text, bytes);
    return copy;
}

void arena_destroy(arena *a) {
    if (!a) return;
    for (chunk *c = a->newest, *next; c; c = next) {
        next = c->next;
        mem_free(c);
    }
    mem_free(a);
}
