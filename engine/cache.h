/* cache.h -- the back end's own form of a model's matrices: in a file that all processes of a machine
 * map, or in private memory. Internal to engine/. */
#ifndef BATON_ENGINE_CACHE_H
#define BATON_ENGINE_CACHE_H

#include "engine/ops.h"

typedef struct eng_cache {
    void *map;                   /* the whole file, read-only; NULL: none */
    size_t map_bytes;
    void *memory;                /* of the back end; NULL: none */
    size_t bytes;                /* of the matrices, in either */
} eng_cache;

typedef struct eng_cache_job {
    const eng_ops *op;
    eng_context *c;
    const char *form;            /* of op, and of which share of the model */
    eng_matrix *const *matrices; /* all parts known, own not yet */
    int count;
    const char *digest;          /* the model's, eng_gguf_digest() */
    const char *dir;             /* made if it is not there; NULL: private memory */
    void (*progress)(double share, void *ctx);       /* while matrices are prepared; may be NULL */
    void *progress_ctx;
} eng_cache_job;

/* Sets own of every matrix of which the back end has a form of its own, NULL of the others. Whatever
 * is wrong with dir or a file in it is logged, never returned: then it is private memory. On success
 * own is valid until eng_cache_close(); ST_NO_MEMORY is the only failure. */
status eng_cache_open(const eng_cache_job *job, eng_cache *out, error *err);
/* A zeroed cache is fine. */
void eng_cache_close(eng_cache *cache, const eng_ops *op, eng_context *c);

#endif
