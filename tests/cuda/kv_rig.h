/* kv_rig.h -- the same sequences and pages on the device and for the CPU's scalar back end, the specification.
 *
 * Pages begin as bytes 0xff: NaN in every type, a NaN scale in Q8_0. Block tables have wild entries around those in use,
 * and the device's batch ends in rows of nobody. */
#ifndef BATON_TESTS_CUDA_KV_RIG_H
#define BATON_TESTS_CUDA_KV_RIG_H

#include "engine/cpu/pages.h"
#include "engine/cuda/kernels.h"
#include "tests/cuda/memory.h"
#include <math.h>

enum { RIG_LAYERS = 2, RIG_SEQUENCES = 12, RIG_NOBODY = 3, RIG_WILD = 0x7fffff00 };

static cudaStream_t stream;

static int open_stream(void **state) {
    (void)state;
    return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess;
}

static int close_stream(void **state) {
    (void)state;
    return cudaStreamDestroy(stream) != cudaSuccess;
}

/* What the stream left there, to be freed. */
static inline void *fetch(const void *from, size_t bytes) {
    void *to = malloc(bytes);
    download(stream, to, from, bytes);
    return to;
}

/* In [-2, 2). */
static inline float noise(unsigned at) {
    at = (at ^ at >> 15) * 0x2c1b3c6d;
    at = (at ^ at >> 12) * 0x297a2d39;
    return (float)(int)(at >> 8 & 0xffff) / 16384 - 2;
}

typedef struct rig_shape {
    int H, K, h, P;
    eng_kv_type type;
} rig_shape;

/* Sequences of `length` positions, all of them rows of one step, one sequence after the other. */
typedef struct rig {
    rig_shape s;
    int sequences, T, row;               /* row: floats of a row of qkv */
    const int *length;
    const eng_ops *op;                   /* scalar */
    eng_context *c;
    eng_pages cpu, device;
    int32_t *blocks, table;              /* blocks: sequence after sequence, `table` entries each */
    int32_t *position, *index, *blocks_at;
    eng_rows rows[RIG_SEQUENCES];
    float *qkv, *angles;                 /* of the CPU; qkv (T,row) */
    cuda_rows b;                         /* device memory, T + RIG_NOBODY rows */
    float *device_qkv;
} rig;

static inline void rig_tables(rig *r) {
    int32_t next = 0, longest = 0;
    for (int i = 0; i < r->sequences; i++) {
        longest = r->length[i] > longest ? r->length[i] : longest;
        r->cpu.pages += (r->length[i] + r->s.P - 1) / r->s.P;
        r->T += r->length[i];
    }
    r->cpu.pages += 2;                   /* never in a table */
    r->table = (longest + r->s.P - 1) / r->s.P + 2;
    r->blocks = malloc((size_t)(r->sequences * r->table) * sizeof *r->blocks);
    for (int i = 0; i < r->sequences * r->table; i++) r->blocks[i] = RIG_WILD;
    for (int i = 0; i < r->sequences; i++)             /* the highest number first: no page where its index says */
        for (int n = 0; n * r->s.P < r->length[i]; n++) r->blocks[i * r->table + 1 + n] = r->cpu.pages - 2 - next++;
}

static inline void rig_batch(rig *r) {
    size_t all = (size_t)(r->T + RIG_NOBODY);
    r->position = malloc(all * sizeof(int32_t));
    r->index = malloc(all * sizeof(int32_t));
    r->blocks_at = malloc(all * sizeof(int32_t));
    int t = 0;
    for (int i = 0; i < r->sequences; i++) {
        r->rows[i] = (eng_rows){.count = r->length[i], .blocks = r->blocks + i * r->table + 1};
        for (int p = 0; p < r->length[i]; p++, t++) {
            r->position[t] = p;
            r->index[t] = i;
            r->blocks_at[t] = i * r->table + 1;
        }
    }
    for (; t < (int)all; t++) r->position[t] = -1, r->blocks_at[t] = RIG_WILD;
    r->b = (cuda_rows){.T = (int)all};
    r->b.position = upload(r->position, all * sizeof(int32_t));
    r->b.blocks_at = upload(r->blocks_at, all * sizeof(int32_t));
    r->b.blocks = upload(r->blocks, (size_t)(r->sequences * r->table) * sizeof(int32_t));
}

static inline void rig_floats(rig *r) {
    size_t h = (size_t)r->s.h, floats = (size_t)(r->T + RIG_NOBODY) * (size_t)r->row;
    r->qkv = malloc(floats * sizeof(float));
    r->angles = malloc((size_t)(r->T + RIG_NOBODY) * h * sizeof(float));
    for (size_t i = 0; i < floats; i++) r->qkv[i] = i / (size_t)r->row < (size_t)r->T ? noise((unsigned)i) : NAN;
    for (int t = 0; t < r->T + RIG_NOBODY; t++)
        for (size_t i = 0; i < h; i++) {
            float a = (float)r->position[t] / (float)(1 + i / 2);
            r->angles[(size_t)t * h + i] = i % 2 ? sinf(a) : cosf(a);
        }
    r->b.angles = upload(r->angles, (size_t)(r->T + RIG_NOBODY) * h * sizeof(float));
    r->device_qkv = upload(r->qkv, floats * sizeof(float));
}

static inline rig rig_open(rig_shape s, const int *length, int sequences) {
    rig r = {.s = s, .sequences = sequences, .length = length, .row = (s.H + 2 * s.K) * s.h};
    eng_shape shape = {.L = RIG_LAYERS, .D = s.H * s.h, .H = s.H, .K = s.K, .h = s.h, .F = s.H * s.h, .V = 32};
    error err = {.text = ""};
    r.op = eng_ops_find("scalar");
    if (r.op->open(&(eng_options){.threads = 1}, &shape, &r.c, &err) != ST_OK) fail_msg("%s", err.text);
    r.cpu = (eng_pages){.P = s.P, .L = RIG_LAYERS, .K = s.K, .h = s.h, .type = s.type};
    rig_tables(&r);
    r.cpu.page_bytes = 2 * RIG_LAYERS * (size_t)(s.K * s.P) * eng_kv_row_bytes(s.type, s.h);
    r.device = r.cpu;
    assert_int_equal(cuda_page_bytes(&r.device), r.cpu.page_bytes);
    r.cpu.data = malloc((size_t)r.cpu.pages * r.cpu.page_bytes);
    memset(r.cpu.data, 0xff, (size_t)r.cpu.pages * r.cpu.page_bytes);
    r.device.data = wild((size_t)r.cpu.pages * r.cpu.page_bytes);
    rig_batch(&r);
    rig_floats(&r);
    return r;
}

static inline void rig_close(rig *r) {
    void *device[] = {r->device.data, r->device_qkv, (void *)(uintptr_t)r->b.position, (void *)(uintptr_t)r->b.blocks_at,
                      (void *)(uintptr_t)r->b.blocks, (void *)(uintptr_t)r->b.angles};
    void *host[] = {r->cpu.data, r->blocks, r->position, r->index, r->blocks_at, r->qkv, r->angles};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) OK(cudaFree(device[i]));
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    r->op->close(r->c);
}

/* The rows' K and V into both pages; q is turned in both qkv. */
static inline void rig_append(rig *r, int l) {
    eng_batch b = {.T = r->T, .rows = r->rows, .position = r->position, .rows_index = r->index, .angles = r->angles};
    r->op->rope_append(r->c, r->qkv, &r->cpu, l, &b, r->s.H);
    OK(cuda_rope_append(stream, r->device_qkv, &r->device, l, &r->b, r->s.H));
}

/* All layers; the CPU turns k in place too, so layers differ. */
static inline void rig_append_layers(rig *r) {
    for (int l = 0; l < RIG_LAYERS; l++) {
        rig_append(r, l);
        OK(cudaStreamSynchronize(stream));
        OK(cudaMemcpy(r->device_qkv, r->qkv, (size_t)(r->T * r->row) * sizeof(float), cudaMemcpyHostToDevice));
    }
}

/* The device's pages must be the CPU's, byte for byte, what nobody wrote included: [page][layer][kv head][K then
 * V][token][dim]. */
static inline void rig_compare_pages(const rig *r) {
    size_t row_bytes = eng_kv_row_bytes(r->s.type, r->s.h);
    char *got = fetch(r->device.data, (size_t)r->cpu.pages * r->cpu.page_bytes), *at = got, row[ENG_ROW_BYTES_MAX];
    for (int page = 0; page < r->cpu.pages; page++)
        for (int l = 0; l < RIG_LAYERS; l++)
            for (int head = 0; head < r->s.K; head++)
                for (int is_v = 0; is_v < 2; is_v++)
                    for (int slot = 0; slot < r->s.P; slot++, at += row_bytes) {
                        eng_row_read(&r->cpu, eng_page_block(&r->cpu, page, l, is_v, head), is_v, slot, row);
                        if (memcmp(at, row, row_bytes))
                            fail_msg("%s, heads %d wide, %d tokens a page: page %d, layer %d, head %d, %s, token %d differs",
                                     eng_kv_type_name(r->s.type), r->s.h, r->s.P, page, l, head, is_v ? "V" : "K", slot);
                    }
    free(got);
}

#endif
