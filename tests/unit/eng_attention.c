/* Tests engine/cpu/attention.c and rope.c: every back end against the scalar one, and the same bits
 * however rows are cut into steps, whatever the page size and on any number of threads. */
#include "engine/cpu/pages.h"
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>
#include <math.h>

enum { LAYERS = 2, CONTEXT = 1200, SOME = 40 };        /* more than two splits of 512 */

typedef struct sizes {
    int H, K, h;
} sizes;

static const sizes all_sizes[] = {{6, 2, 64}, {4, 1, 32}, {3, 3, 96}, {14, 2, 16}, {2, 1, 20}};
enum { SIZES = sizeof all_sizes / sizeof *all_sizes };

/* How rows are computed: cut into chunks, threads, page size. */
typedef struct way {
    int chunk, threads, P;
} way;

static float noise(unsigned at) {
    at = (at ^ at >> 15) * 0x2c1b3c6d;
    at = (at ^ at >> 12) * 0x297a2d39;
    return (float)(int)(at >> 8 & 0xffff) / 16384 - 2;
}

typedef struct rig {
    const eng_ops *op;
    eng_context *c;
    eng_pages kv;
    int32_t blocks[CONTEXT];
    float *qkv, *angles, *out;
    int H;
    size_t row;
} rig;

static rig open_rig(const eng_ops *op, sizes s, way w, eng_kv_type type) {
    rig r = {.op = op, .H = s.H, .row = (size_t)((s.H + 2 * s.K) * s.h)};
    eng_shape shape = {.L = LAYERS, .D = s.H * s.h, .H = s.H, .K = s.K, .h = s.h, .F = s.H * s.h, .V = 32};
    error err = {.text = ""};
    if (op->open(&(eng_options){.threads = w.threads}, &shape, &r.c, &err) != ST_OK) fail_msg("%s", err.text);
    int pages = (CONTEXT + w.P - 1) / w.P;
    r.kv = (eng_pages){.pages = pages, .P = w.P, .L = LAYERS, .K = s.K, .h = s.h, .type = type};
    r.kv.page_bytes = 2 * LAYERS * (size_t)(s.K * w.P) * eng_kv_row_bytes(type, s.h);
    r.kv.data = op->alloc(r.c, (size_t)pages * r.kv.page_bytes);
    memset(r.kv.data, 0x7f, (size_t)pages * r.kv.page_bytes);        /* NaN of an older owner */
    for (int i = 0; i < pages; i++) r.blocks[i] = pages - 1 - i;
    r.qkv = op->alloc(r.c, CONTEXT * r.row * sizeof *r.qkv);
    r.angles = op->alloc(r.c, CONTEXT * (size_t)s.h * sizeof *r.angles);
    r.out = op->alloc(r.c, (CONTEXT + 16) * op->act_bytes(r.c, s.H * s.h));
    for (size_t i = 0; i < CONTEXT * r.row; i++) r.qkv[i] = noise((unsigned)i);
    for (int t = 0; t < CONTEXT; t++)
        for (int i = 0; i < s.h; i++) {
            float a = (float)t / (float)(1 + i / 2);
            r.angles[t * s.h + i] = i % 2 ? sinf(a) : cosf(a);
        }
    return r;
}

static void close_rig(rig *r) {
    r->op->free(r->c, r->kv.data);
    r->op->free(r->c, r->qkv);
    r->op->free(r->c, r->angles);
    r->op->free(r->c, r->out);
    r->op->close(r->c);
}

/* One op over rows [first, end) as a step; r->out begins with its floats. */
static void run_op(rig *r, bool attend, int first, int end) {
    int32_t position[CONTEXT], index[CONTEXT] = {0};
    eng_tile tiles[CONTEXT];
    eng_rows rows = {.count = end - first, .position = first, .blocks = r->blocks};
    eng_batch b = {.T = end - first, .rows = &rows, .position = position, .rows_index = index, .tiles = tiles,
                   .angles = r->angles + first * r->kv.h};
    for (int t = 0; t < b.T; t++) {
        position[t] = first + t;
        if (t % ENG_TILE_ROWS) tiles[b.tiles_count - 1].count++;
        else tiles[b.tiles_count++] = (eng_tile){.row = t, .count = 1};
    }
    float *qkv = r->qkv + (size_t)first * r->row;
    if (attend) r->op->attention(r->c, r->out, qkv, &r->kv, 1, &b, r->H, 1 / sqrtf((float)r->kv.h));
    else r->op->rope_append(r->c, qkv, &r->kv, 1, &b, r->H);
}

/* (CONTEXT, H*h), owned by the caller. The first rows are one step, then chunks as the way says. */
static float *compute(const eng_ops *op, sizes s, way w, eng_kv_type type) {
    rig r = open_rig(op, s, w, type);
    int row = s.H * s.h;
    float *all = malloc((size_t)(CONTEXT * row) * sizeof *all);
    for (int t = 0, end; t < CONTEXT; t = end) {
        end = t == 0 ? 1000 : t + w.chunk < CONTEXT ? t + w.chunk : CONTEXT;
        run_op(&r, false, t, end);
        run_op(&r, true, t, end);
        memcpy(all + t * row, r.out, (size_t)((end - t) * row) * sizeof *all);
    }
    close_rig(&r);
    return all;
}

/* The same by the scalar back end, of every 40th row; it takes its time. */
static float *compute_some(sizes s, eng_kv_type type) {
    rig r = open_rig(eng_ops_find("scalar"), s, (way){.threads = 1, .P = 16}, type);
    int row = s.H * s.h;
    float *all = malloc((size_t)(CONTEXT * row) * sizeof *all);
    run_op(&r, false, 0, CONTEXT);
    for (int t = SOME - 1; t < CONTEXT; t += SOME) {
        run_op(&r, true, t, t + 1);
        memcpy(all + t * row, r.out, (size_t)row * sizeof *all);
    }
    close_rig(&r);
    return all;
}

/* Bound: values are below 2 in size and weights sum to 1; rounding of a score of h products and of
 * 1,200 sums stays below 1e-4. */
static void back_ends_agree_with_the_scalar_one(void **state) {
    (void)state;
    for (int i = 0; i < SIZES; i++)
        for (int type = ENG_KV_F32; type <= ENG_KV_Q8_0; type++) {
            if (type == ENG_KV_Q8_0 && all_sizes[i].h % 32) continue;
            way w = {.chunk = 200, .threads = 2, .P = i % 2 ? 32 : 16};
            float *spec = compute_some(all_sizes[i], (eng_kv_type)type), *fused = NULL;
            for (int b = 0; eng_ops_at(b); b++) {
                const eng_ops *op = eng_ops_at(b);
                if (strcmp(op->name, "scalar") == 0) continue;
                size_t row = (size_t)(all_sizes[i].H * all_sizes[i].h), count = CONTEXT * row;
                float *got = compute(op, all_sizes[i], w, (eng_kv_type)type);
                for (size_t j = 0; j < count; j++)
                    if (j / row % SOME == SOME - 1 && !(fabsf(got[j] - spec[j]) < 1e-4f))
                        fail_msg("%s, %s, heads %d wide: %g, expected %g at %zu", op->name,
                                 eng_kv_type_name((eng_kv_type)type), all_sizes[i].h, (double)got[j],
                                 (double)spec[j], j);
                bool fuses = strcmp(op->name, "base") != 0;
                if (fuses && fused) assert_memory_equal(got, fused, count * sizeof *got);
                if (fuses && !fused) fused = got;
                else free(got);
            }
            free(fused);
            free(spec);
        }
}

static void bits_do_not_depend_on_the_way(void **state) {
    (void)state;
    static const way ways[] = {{200, 1, 16}, {1, 1, 16}, {1, 3, 16}, {7, 2, 16}, {200, 3, 64}, {33, 2, 5}, {5, 3, 48}};
    for (int b = 0; eng_ops_at(b); b++)
        for (int i = 0; i < SIZES; i++) {
            if (strcmp(eng_ops_at(b)->name, "scalar") == 0) continue;
            eng_kv_type type = all_sizes[i].h % 32 ? ENG_KV_F16 : (eng_kv_type)(i + 1);
            float *first = compute(eng_ops_at(b), all_sizes[i], ways[0], type);
            for (size_t n = 1; n < sizeof ways / sizeof *ways; n++) {
                float *again = compute(eng_ops_at(b), all_sizes[i], ways[n], type);
                assert_memory_equal(again, first, (size_t)(CONTEXT * all_sizes[i].H * all_sizes[i].h) * sizeof *first);
                free(again);
            }
            free(first);
        }
}

/* What rope.c writes into a page is what scalar.c writes, bit by bit, ties and extremes included. */
static void pages_hold_the_same_bytes(void **state) {
    (void)state;
    static const float odd[] = {0, -0.f, 65504, 65520, -70000, 0x1p-24f, 0x1p-25f, 0x1.8p-25f, 3e-5f, 1e-40f, 0.5f,
                                1.00390625f, 1.01171875f, 3e38f, -127, 126.5f, 2.5f, -0.5f, 1.5f, 127};
    for (int type = ENG_KV_F32; type <= ENG_KV_Q8_0; type++)
        for (int b = 0; eng_ops_at(b); b++) {
            sizes s = {2, 2, 96};
            way w = {.threads = 2, .P = 16};
            rig r[2] = {open_rig(eng_ops_find("scalar"), s, w, (eng_kv_type)type),
                        open_rig(eng_ops_at(b), s, w, (eng_kv_type)type)};
            for (int n = 0; n < 2; n++) {
                for (size_t t = 0; t < 20; t++)
                    for (size_t j = 0; j < r[n].row; j++)
                        if (t < 10) r[n].qkv[t * r[n].row + j] = odd[(t * 7 + j) % (type == ENG_KV_Q8_0 && t ? 13 : 20)];
                run_op(&r[n], false, 0, 100);
            }
            assert_memory_equal(r[1].qkv, r[0].qkv, 100 * r[0].row * sizeof(float));
            assert_memory_equal(r[1].kv.data, r[0].kv.data, (size_t)r[0].kv.pages * r[0].kv.page_bytes);
            close_rig(&r[0]);
            close_rig(&r[1]);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_hold_the_same_bytes),
        cmocka_unit_test(back_ends_agree_with_the_scalar_one),
        cmocka_unit_test(bits_do_not_depend_on_the_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
