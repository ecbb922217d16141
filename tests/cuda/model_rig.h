/* model_rig.h -- a tiny model on a back end: what the tests model_*.c share. */
#ifndef BATON_TESTS_CUDA_MODEL_RIG_H
#define BATON_TESTS_CUDA_MODEL_RIG_H

#include "engine/cuda/cuda.h"
#include "engine/model.h"
#include "tests/unit/tiny_gguf.h"
#include <setjmp.h>
#include <cmocka.h>

enum { RIG_D = 128, RIG_H = 4, RIG_K = 2, RIG_F = 160, RIG_V = 160, RIG_PAGES = 24, RIG_P = 16, RIG_ROWS = 80 };

typedef struct rig {
    tiny_gguf file;
    eng_gguf *g;
    eng_model *m;
    eng_kv *kv;
} rig;

typedef struct rig_options {
    const char *device;          /* "cuda"; NULL: the specification */
    eng_type type;
    eng_kv_type kv;
    int P;                       /* 0: RIG_P */
    int H, K;                    /* 0: RIG_H, RIG_K */
    coll *group;
} rig_options;

static inline tiny_options rig_model(const rig_options *o) {
    int H = o->H ? o->H : RIG_H;
    return (tiny_options){.D = 32 * H, .H = H, .K = o->K ? o->K : RIG_K, .F = RIG_F, .V = RIG_V, .type = o->type,
                          .own_output = o->type == ENG_Q8_0};
}

static inline status rig_pages(rig *r, int P, eng_kv_type type, error *err) {
    eng_kv_destroy(r->kv);
    r->kv = NULL;
    return eng_kv_create(r->m, RIG_PAGES * RIG_P / P, P, type, &r->kv, err);
}

static inline status rig_open(const rig_options *o, rig *r, error *err) {
    tiny_options model = rig_model(o);
    eng_options options = {.isa = "scalar", .device = o->device, .threads = 1, .tokens_max = RIG_ROWS, .logits_max = RIG_ROWS,
                           .group = o->group};
    *r = (rig){.file = tiny_gguf_build(&model)};
    TRY(eng_gguf_open_memory(r->file.data, r->file.bytes, "tiny", &r->g, err));
    TRY(eng_model_open(r->g, &options, &r->m, err));
    return rig_pages(r, o->P ? o->P : RIG_P, o->kv, err);
}

static inline void rig_close(rig *r) {
    eng_kv_destroy(r->kv);
    eng_model_close(r->m);
    eng_gguf_close(r->g);
    tiny_gguf_free(&r->file);
}

static inline rig rig_of(const rig_options *o) {
    rig r;
    error err = {.text = ""};
    if (rig_open(o, &r, &err) != ST_OK) fail_msg("%s", err.text);
    return r;
}

static inline const float *rig_step(rig *r, const eng_rows *rows, int count) {
    error err = {.text = ""};
    const float *logits;
    if (eng_step(r->m, r->kv, rows, count, &logits, &err) != ST_OK) fail_msg("%s", err.text);
    return logits;
}

static inline void rig_prompt(int32_t *tokens, int count, int salt) {
    for (int i = 0; i < count; i++) tokens[i] = (i * 37 + salt * 11 + i * i % 7) % RIG_V;
}

/* Logits of every row of the prompt, `chunk` rows a step, into out; pages in falling order. */
static inline void rig_run(rig *r, const int32_t *tokens, int count, int chunk, float *out) {
    int32_t blocks[RIG_PAGES * RIG_P];
    int P = r->kv->pages.P, pages = (count + P - 1) / P;
    for (int i = 0; i < pages; i++) blocks[i] = pages - 1 - i;
    for (int at = 0; at < count; at += chunk) {
        int n = count - at < chunk ? count - at : chunk;
        const float *logits = rig_step(r, &(eng_rows){tokens + at, n, at, blocks, n}, 1);
        memcpy(out + (size_t)at * RIG_V, logits, (size_t)n * RIG_V * sizeof *out);
    }
}

#define X(name, number, block, bytes, file) ENG_##name,
static const eng_type rig_types[] = {ENG_TYPES(X)};
#undef X
enum { RIG_TYPES = sizeof rig_types / sizeof *rig_types };

#endif
