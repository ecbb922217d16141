/* engine/cuda on weights that were trained: the test model's first layers, of its real width, heads and types (9 heads in
 * 3 groups, Q4_1, the embedding Q8_0), against the specification. The vocabulary is cut too: its first rows embed the
 * prompt and are the output. Skipped where models/ is empty.
 *
 * The bound, 3e-4 of the largest logit, which is some 4 times their root mean square. What differs from the specification:
 * a product reads rows that are rounded to 14 bits for each 32 columns, an error of at most 2^-14 of the largest of the
 * 32, about 2.5 times their root mean square. Errors of columns are independent and spread evenly, so a product has them
 * at 2^-14 * 2.5 / sqrt(3) = 9e-5 of its own size. Nine products follow each other at most (four a layer, then the
 * logits): 9e-5 * sqrt(9) = 2.7e-4 of the root mean square. Four times that, the most of 3072 such errors, is 2.7e-4 of
 * the largest logit. */
#include "tests/cuda/model_rig.h"
#include <math.h>

enum { LAYERS = 2, VOCABULARY = 512, COUNT = 6 };

/* ---- the file ---------------------------------------------------------------------------------------------- */

static void put_key(tiny_gguf *t, const eng_gguf *g, const char *name, int cut) {
    double real;
    int64_t whole;
    if (eng_gguf_int(g, name, &whole, NULL) == ST_OK) tiny_key_int(t, &(tiny_options){0}, name, cut ? cut : (int)whole);
    else if (eng_gguf_real(g, name, &real, NULL) == ST_OK) tiny_key_real(t, &(tiny_options){0}, name, (float)real);
    else fail_msg("%s is absent", name);
}

static void put_keys(tiny_gguf *t, const eng_gguf *g) {
    static const char *const names[] = {"llama.context_length", "llama.embedding_length", "llama.feed_forward_length",
                                        "llama.attention.head_count", "llama.attention.head_count_kv", "llama.rope.freq_base",
                                        "llama.attention.layer_norm_rms_epsilon", "llama.rope.dimension_count"};
    tiny_key_text(t, &(tiny_options){0}, "general.architecture", "llama");
    put_key(t, g, "llama.block_count", LAYERS);
    put_key(t, g, "llama.vocab_size", VOCABULARY);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) put_key(t, g, names[i], 0);
}

/* Whether it is kept; *bytes of its beginning are. */
static bool keeps(const eng_tensor *t, eng_tensor *out) {
    int layer;
    *out = *t;
    if (strcmp(t->name, "token_embd.weight") == 0) {
        out->dim[1] = VOCABULARY;
        out->bytes = t->bytes / (size_t)t->dim[1] * VOCABULARY;
    }
    return sscanf(t->name, "blk.%d.", &layer) != 1 || layer < LAYERS;
}

static tiny_gguf cut_model(const eng_gguf *g) {
    tiny_gguf out = {.data = NULL};
    eng_tensor t;
    uint64_t offset = 0;
    tiny_put(&out, "GGUF\3\0\0\0", 8);
    tiny_put(&out, NULL, 16);                    /* both counts */
    put_keys(&out, g);
    for (int64_t i = 0; i < eng_gguf_tensor_count(g); i++) {
        if (!keeps(eng_gguf_tensor_at(g, i), &t)) continue;
        tiny_text(&out, t.name);
        tiny_u32(&out, (uint32_t)t.dims);
        for (int d = 0; d < t.dims; d++) tiny_u64(&out, (uint64_t)t.dim[d]);
        tiny_u32(&out, t.type);
        tiny_u64(&out, offset);
        offset += (t.bytes + 31) & ~(uint64_t)31;
        out.tensors++;
    }
    for (int64_t i = 0; i < eng_gguf_tensor_count(g); i++) {
        if (!keeps(eng_gguf_tensor_at(g, i), &t)) continue;
        tiny_put(&out, NULL, (32 - out.bytes % 32) % 32);
        tiny_put(&out, t.data, t.bytes);
    }
    memcpy(out.data + 8, &out.tensors, 8);
    memcpy(out.data + 16, &out.keys, 8);
    return out;
}

static rig open_cut(const eng_gguf *whole, const char *device) {
    rig r = {.file = cut_model(whole)};
    error err = {.text = ""};
    eng_options options = {.isa = "scalar", .device = device, .threads = 1, .tokens_max = COUNT, .logits_max = COUNT};
    if (eng_gguf_open_memory(r.file.data, r.file.bytes, "cut", &r.g, &err) != ST_OK ||
        eng_model_open(r.g, &options, &r.m, &err) != ST_OK || rig_pages(&r, RIG_P, ENG_KV_F32, &err) != ST_OK)
        fail_msg("%s", err.text);
    return r;
}

/* ---- the tests --------------------------------------------------------------------------------------------- */

/* Logits of all rows of a prompt, `chunk` a step. */
static void run(rig *r, int chunk, float *out) {
    static const int32_t tokens[COUNT] = {504, 260, 28, 351, 198, 30};
    int32_t block = 2;
    for (int at = 0; at < COUNT; at += chunk)
        memcpy(out + at * VOCABULARY,
               rig_step(r, &(eng_rows){.tokens = tokens + at, .count = chunk, .position = at, .blocks = &block, .logits = chunk}, 1),
               (size_t)chunk * VOCABULARY * sizeof *out);
}

static void the_first_layers_agree_with_the_specification(void **state) {
    static float want[COUNT * VOCABULARY], got[COUNT * VOCABULARY], rows[COUNT * VOCABULARY];
    float worst = 0, largest = 0;
    rig spec = open_cut(*state, NULL), cuda = open_cut(*state, "cuda");
    run(&spec, COUNT, want);
    run(&cuda, COUNT, got);
    run(&cuda, 1, rows);                         /* queued, captured, replayed */
    for (int i = 0; i < COUNT * VOCABULARY; i++) {
        worst = fmaxf(worst, fabsf(want[i] - got[i]));
        largest = fmaxf(largest, fabsf(want[i]));
    }
    print_message("%.2g of the largest logit, %.3g\n", (double)(worst / largest), (double)largest);
    assert_true(largest > 1 && worst > 0);
    assert_true(worst <= 3e-4f * largest);
    assert_memory_equal(got, rows, sizeof got);
    rig_close(&spec);
    rig_close(&cuda);
}

int main(void) {
    eng_gguf *whole = NULL;
    error err = {.text = ""};
    const char *model = BATON_MODEL;
    log_setup("test", LOG_WARN);
    if (eng_gguf_open(model, &whole, &err) != ST_OK) {
        print_message("skipped: %s\n", err.text);
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(the_first_layers_agree_with_the_specification, whole)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    eng_gguf_close(whole);
    return failed;
}
