/* engine/cuda/pages.c and weights.c: KV from and to the host in any type and any number of pieces, between back ends, and
 * in order with the steps. Streams are lazy in the emulator: what no event orders is not done in time. */
#include "tests/cuda/model_rig.h"
#include <math.h>
#include <pthread.h>

enum { COUNT = 40, BOX_MAX = 2 * 2 * RIG_K * COUNT * 32 * 4 };

static char wire[BOX_MAX], other[BOX_MAX];
static float logits[COUNT * RIG_V], again[COUNT * RIG_V];

static void number_pages(int32_t *blocks, int from) {
    for (int i = 0; i < RIG_PAGES; i++) blocks[i] = (from + 5 * i) % RIG_PAGES;
}

static eng_kv_box whole_box(eng_kv_type type) {
    return (eng_kv_box){.layers = 2, .heads = RIG_K, .tokens = COUNT, .type = type};
}

/* Staging for few rows only: a box is many pieces. */
static void make_small(rig *r) { r->m->c->stage_bytes = CUDA_STAGE_BLOCKS * sizeof(int32_t) + 1500; }

/* What is unpacked and packed again is what the specification makes of it, byte by byte, whatever the types; and a part
 * of it, by layer, head and token. */
static void boxes_are_the_specification_s(void **state) {
    (void)state;
    int32_t blocks[RIG_PAGES];
    number_pages(blocks, 3);
    rig spec = rig_of(&(rig_options){.type = ENG_Q4_0}), cuda = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q4_0});
    make_small(&cuda);
    for (int in = 0; in < 4; in++)
        for (int held = 0; held < 4; held++) {
            eng_kv_box box = whole_box((eng_kv_type)in), part = {1, 1, 1, 1, 7, 25, (eng_kv_type)(3 - in)};
            int P = held == 1 ? 5 : RIG_P;
            assert_int_equal(rig_pages(&spec, P, (eng_kv_type)held, NULL), ST_OK);
            assert_int_equal(rig_pages(&cuda, P, (eng_kv_type)held, NULL), ST_OK);
            size_t values = eng_kv_box_bytes(spec.kv, &(eng_kv_box){.layers = 2, .heads = RIG_K, .tokens = COUNT}) / 4;
            float *x = calloc(values, sizeof *x);
            for (size_t i = 0; i < values; i++) x[i] = (float)((int)(i * 2654435761u >> 8 & 0xffff) - 32768) / 4096;
            eng_type as[] = {ENG_F32, ENG_F16, ENG_BF16, ENG_Q8_0};
            eng_quantize_row(as[in], x, (int64_t)values, wire);
            eng_kv_unpack(spec.kv, blocks, &box, wire);
            eng_kv_unpack(cuda.kv, blocks, &box, wire);
            free(x);
            size_t bytes = eng_kv_box_bytes(spec.kv, &part);
            eng_kv_pack(spec.kv, blocks, &part, wire);
            eng_kv_pack(cuda.kv, blocks, &part, other);
            if (memcmp(wire, other, bytes)) fail_msg("a part: type %d into pages of %d", in, held);
            bytes = eng_kv_box_bytes(spec.kv, &box);
            eng_kv_pack(spec.kv, blocks, &box, wire);
            eng_kv_pack(cuda.kv, blocks, &box, other);
            if (memcmp(wire, other, bytes)) fail_msg("type %d into pages of %d", in, held);
        }
    rig_close(&spec);
    rig_close(&cuda);
}

/* A prompt of `rows` on one rig, its pages carried to another, which goes on. */
static void hand_off(rig *from, rig *to, const int32_t *tokens, int rows, float *out) {
    int32_t here[RIG_PAGES], there[RIG_PAGES];
    eng_kv_box box = {.layers = 2, .heads = RIG_K, .tokens = rows, .type = eng_kv_element(to->kv)};
    number_pages(here, 1);
    number_pages(there, 9);
    rig_step(from, &(eng_rows){tokens, rows, 0, here, 0}, 1);          /* without logits: it may still be under way */
    eng_kv_pack(from->kv, here, &box, wire);
    eng_kv_unpack(to->kv, there, &box, wire);
    for (int i = rows; i < COUNT; i++)
        memcpy(out + i * RIG_V, rig_step(to, &(eng_rows){tokens + i, 1, i, there, 1}, 1), RIG_V * sizeof *out);
}

/* Between two GPUs of unlike pages nothing changes; with a CPU on one side, no more than the back ends differ. */
static void a_prompt_goes_on_elsewhere(void **state) {
    (void)state;
    enum { ROWS = 27 };
    int32_t tokens[COUNT];
    rig_prompt(tokens, COUNT, 1);
    rig one = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q8_0, .kv = ENG_KV_F16});
    rig two = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q8_0, .kv = ENG_KV_F16, .P = 5});
    rig spec = rig_of(&(rig_options){.type = ENG_Q8_0, .kv = ENG_KV_F16, .P = 8});
    make_small(&one);
    make_small(&two);
    rig_run(&one, tokens, COUNT, COUNT, logits);
    hand_off(&one, &two, tokens, ROWS, again);
    assert_memory_equal(logits + ROWS * RIG_V, again + ROWS * RIG_V, (COUNT - ROWS) * RIG_V * sizeof *logits);
    rig *ways[][2] = {{&one, &spec}, {&spec, &two}};
    for (int w = 0; w < 2; w++) {
        float worst = 0, largest = 0;
        hand_off(ways[w][0], ways[w][1], tokens, ROWS, again);
        for (int i = ROWS * RIG_V; i < COUNT * RIG_V; i++) {
            worst = fmaxf(worst, fabsf(logits[i] - again[i]));
            largest = fmaxf(largest, fabsf(logits[i]));
        }
        if (!(worst <= 2e-3f * largest)) fail_msg("way %d: %g of %g", w, (double)worst, (double)largest);  /* model_step.c */
    }
    rig_close(&one);
    rig_close(&two);
    rig_close(&spec);
}

/* A page is copied, then written by the step, and the old one packed: all in order without anybody waiting. */
static void copies_are_in_order(void **state) {
    (void)state;
    int32_t tokens[COUNT], blocks[RIG_PAGES];
    eng_kv_box box = {.layers = 2, .heads = RIG_K, .tokens = RIG_P, .type = ENG_KV_F32};
    rig_prompt(tokens, COUNT, 2);
    number_pages(blocks, 0);
    rig r = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q4_1});
    make_small(&r);                              /* the staging is used again and again, so unpacking runs at once */
    size_t bytes = eng_kv_box_bytes(r.kv, &box);
    rig_step(&r, &(eng_rows){tokens, RIG_P, 0, blocks, 0}, 1);
    eng_kv_copy(r.kv, blocks[1], blocks[0], RIG_P);
    eng_kv_pack(r.kv, &blocks[1], &box, wire);
    eng_kv_pack(r.kv, &blocks[0], &box, other);
    assert_memory_equal(wire, other, bytes);
    rig_step(&r, &(eng_rows){tokens + 7, RIG_P, 0, blocks, 0}, 1);     /* writes page 0 again */
    eng_kv_unpack(r.kv, &blocks[0], &box, wire);                        /* after it: the step may not have the last word */
    eng_kv_copy(r.kv, blocks[2], blocks[0], RIG_P);
    eng_kv_pack(r.kv, &blocks[2], &box, other);
    assert_memory_equal(wire, other, bytes);
    rig_close(&r);
}

typedef struct carrier {
    rig *r;
    const int32_t *blocks;
} carrier;

static void *carry(void *arg) {
    const carrier *c = arg;
    eng_kv_box box = {.layers = 2, .heads = RIG_K, .tokens = 20, .type = ENG_KV_F16};
    for (int i = 0; i < 8; i++) {
        eng_kv_pack(c->r->kv, c->blocks, &box, wire);
        eng_kv_unpack(c->r->kv, c->blocks + 4, &box, wire);
        eng_kv_pack(c->r->kv, c->blocks + 4, &box, other);
        if (memcmp(wire, other, eng_kv_box_bytes(c->r->kv, &box))) return (void *)1;
    }
    return NULL;
}

/* Another thread packs and unpacks while steps run, and are captured. */
static void another_thread_may_carry(void **state) {
    (void)state;
    int32_t tokens[COUNT], blocks[RIG_PAGES];
    void *failed = (void *)1;
    pthread_t thread;
    rig_prompt(tokens, COUNT, 4);
    number_pages(blocks, 0);
    rig r = rig_of(&(rig_options){.device = "cuda", .type = ENG_Q4_1, .kv = ENG_KV_F16});
    make_small(&r);
    rig_step(&r, &(eng_rows){tokens, 20, 0, blocks, 0}, 1);
    carrier c = {&r, blocks};
    rig_run(&r, tokens, 3, 3, logits);                                  /* its pages are others: 0 .. in falling order */
    assert_int_equal(pthread_create(&thread, NULL, carry, &c), 0);
    for (int i = 0; i < 12; i++) {
        int32_t block = 23;
        memcpy(again + i * RIG_V, rig_step(&r, &(eng_rows){tokens + i, 1, i, &block, 1}, 1), RIG_V * sizeof *again);
    }
    assert_int_equal(pthread_join(thread, &failed), 0);
    assert_null(failed);
    rig_close(&r);
}

/* Weights that come in many pieces are those that came in one. */
static void weights_come_in_pieces(void **state) {
    (void)state;
    static const eng_type types[] = {ENG_Q4_1, ENG_Q8_0, ENG_F16};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        rig r = rig_of(&(rig_options){.device = "cuda", .type = types[t]});
        eng_matrix *all[] = {&r.m->embed, &r.m->output, &r.m->layer[1].qkv, &r.m->layer[0].down};
        r.m->c->stage_bytes = 32 * RIG_F * 4 + 100;
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
            size_t bytes = r.m->op->own_bytes(r.m->c, all[i]);
            void *second = r.m->op->alloc(r.m->c, bytes);
            char *a = malloc(bytes), *b = malloc(bytes);
            r.m->op->prepare(r.m->c, all[i], second);
            assert_int_equal(r.m->op->ready(r.m->c, NULL), ST_OK);
            assert_int_equal(cudaMemcpy(a, all[i]->own, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
            assert_int_equal(cudaMemcpy(b, second, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
            assert_memory_equal(a, b, bytes);
            free(a);
            free(b);
            r.m->op->free(r.m->c, second);
        }
        rig_close(&r);
    }
}

int main(void) {
    log_setup("test", LOG_WARN);
    const struct CMUnitTest tests[] = {cmocka_unit_test(boxes_are_the_specification_s),
                                       cmocka_unit_test(a_prompt_goes_on_elsewhere),
                                       cmocka_unit_test(copies_are_in_order),
                                       cmocka_unit_test(another_thread_may_carry),
                                       cmocka_unit_test(weights_come_in_pieces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
