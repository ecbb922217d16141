/* Tests engine/quantize.c: weights are rounded as ggml rounds them, all else is kept, and a file is
 * there whole or not at all. */
#include "engine/cpu/cpu.h"
#include "tests/golden/quantize.h"
#include "tests/unit/tiny_gguf.h"
#include <setjmp.h>
#include <cmocka.h>
#include <dirent.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* Each type with llama.cpp's file type and the most that rounding may move a weight, as a share of the
 * largest of its block: half a step and what F16 scales lose. Q4_0 reaches 8 steps to one side and 7
 * to the other, so that its worst is a whole step. */
static const struct { eng_type type; int file_type; float moves; } types[] = {
    {ENG_F32, 0, 0},           {ENG_F16, 1, 1 / 2048.f},           {ENG_BF16, 32, 1 / 256.f},
    {ENG_Q8_0, 7, 1 / 224.f},  {ENG_Q4_0, 2, 1 / 8.f + 1 / 1024.f}, {ENG_Q4_1, 3, 1 / 15.f + 1 / 512.f},
};
enum { TYPES = sizeof types / sizeof *types };

static char folder[] = "/tmp/baton-quantize-XXXXXX", out[64], in[64];

static int make_folder(void **state) {
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    if (!mkdtemp(folder)) return -1;
    snprintf(out, sizeof out, "%s/out.gguf", folder);
    snprintf(in, sizeof in, "%s/in.gguf", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    unlink(in);
    return rmdir(folder);
}

static int files(void) {
    int count = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    while (readdir(d)) count++;
    closedir(d);
    return count - 2; /* . and .. */
}

static eng_gguf *open_tiny(const tiny_options *o, tiny_gguf *t) {
    eng_gguf *g = NULL;
    *t = tiny_gguf_build(o);
    assert_int_equal(eng_gguf_open_memory(t->data, t->bytes, "tiny", &g, NULL), ST_OK);
    return g;
}

static status quantize(const eng_gguf *g, eng_type type, bool force, error *err) {
    return eng_quantize_file(g, &(eng_quantize_options){.type = type, .force = force}, out, err);
}

static void rows_are_rounded_as_ggml_does(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof quantized / sizeof *quantized; i++) {
        uint8_t rounded[128];
        float row[64];
        memcpy(row, quantized[i].weights, sizeof row);
        eng_quantize_row((eng_type)quantized[i].type, row, 64, rounded);
        assert_int_equal(eng_gguf_type_bytes((eng_type)quantized[i].type, 64), quantized[i].bytes);
        if (memcmp(rounded, quantized[i].rounded, (size_t)quantized[i].bytes))
            fail_msg("row %zu, type %d", i, quantized[i].type);
    }
}

/* Weights stay where they were, up to the rounding of the new type. */
static void compare_tensor(const eng_tensor *a, const eng_tensor *b, eng_type asked, float moves) {
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->dims, b->dims);
    assert_memory_equal(a->dim, b->dim, sizeof a->dim);
    assert_int_equal(b->type, eng_quantize_type(a, asked));
    if (a->type == b->type) assert_memory_equal(a->data, b->data, a->bytes);
    int n = (int)(a->dim[0] * (a->dims > 1 ? a->dim[1] : 1));
    float *x = calloc((size_t)n, sizeof *x), *y = calloc((size_t)n, sizeof *y);
    assert_true(x && y);
    eng_cpu_dequantize(a->type, a->data, n, x);
    eng_cpu_dequantize(b->type, b->data, n, y);
    for (int i = 0; i < n; i++) {
        float most = 0;
        for (int k = i - i % 32; k < n && k < i - i % 32 + 32; k++) most = fmaxf(most, fabsf(x[k]));
        if (fabsf(x[i] - y[i]) > moves * most)
            fail_msg("%s %d -> %d: weight %d is %g, was %g", a->name, a->type, b->type, i, (double)y[i], (double)x[i]);
    }
    free(x);
    free(y);
}

static void compare_models(const eng_gguf *a, const eng_gguf *b, int t) {
    uint64_t keys_a, keys_b;
    size_t bytes_a, bytes_b;
    const void *section_a = eng_gguf_keys(a, &keys_a, &bytes_a), *section_b = eng_gguf_keys(b, &keys_b, &bytes_b);
    int64_t number;
    assert_int_equal(keys_b, keys_a + 2);
    assert_true(bytes_b > bytes_a);
    assert_memory_equal(section_a, section_b, bytes_a);
    assert_int_equal(eng_gguf_int(b, "general.file_type", &number, NULL), ST_OK);
    assert_int_equal(number, types[t].file_type);
    assert_int_equal(eng_gguf_int(b, "general.quantization_version", &number, NULL), ST_OK);
    assert_int_equal(number, 2);
    assert_int_equal(eng_gguf_tensor_count(a), eng_gguf_tensor_count(b));
    for (int64_t i = 0; i < eng_gguf_tensor_count(a); i++)
        compare_tensor(eng_gguf_tensor_at(a, i), eng_gguf_tensor_at(b, i), types[t].type, types[t].moves);
}

/* A file quantised to the type that it has is the same file. */
static void check_again(const eng_gguf *g, eng_type type) {
    char digest[33];
    strcpy(digest, eng_gguf_digest(g));
    char again[80];
    eng_gguf *same;
    snprintf(again, sizeof again, "%s.again", out);
    assert_int_equal(eng_quantize_file(g, &(eng_quantize_options){.type = type}, again, NULL), ST_OK);
    assert_int_equal(eng_gguf_open(again, &same, NULL), ST_OK);
    assert_string_equal(eng_gguf_digest(same), digest);
    eng_gguf_close(same);
    unlink(again);
}

static void every_type_to_every_type(void **state) {
    (void)state;
    for (int from = 0; from < TYPES; from++)
        for (int to = 0; to < TYPES; to++) {
            tiny_gguf t;
            error err = {.text = ""};
            eng_gguf *a = open_tiny(&(tiny_options){.type = types[from].type, .own_output = from % 2,
                                                    .vocab = true, .rope_freqs = true}, &t), *b;
            if (quantize(a, types[to].type, false, &err) != ST_OK) fail_msg("%d to %d: %s", from, to, err.text);
            assert_int_equal(files(), 1);
            assert_int_equal(eng_gguf_open(out, &b, &err), ST_OK);
            compare_models(a, b, to);
            check_again(b, types[to].type);
            eng_model *m;
            if (eng_model_open(b, &(eng_options){.isa = "scalar", .tokens_max = 8}, &m, &err) != ST_OK)
                fail_msg("%s", err.text);
            eng_model_close(m);
            eng_gguf_close(b);
            eng_gguf_close(a);
            tiny_gguf_free(&t);
            unlink(out);
        }
}

static void which_type_a_tensor_gets(void **state) {
    (void)state;
    static const struct { eng_tensor t; eng_type asked, gets; } rows[] = {
        {{.name = "blk.0.attn_q.weight", .dims = 2, .dim = {64, 64}}, ENG_Q4_0, ENG_Q4_0},
        {{.name = "blk.0.attn_q.weight", .dims = 2, .dim = {48, 64}}, ENG_Q4_0, ENG_F16},
        {{.name = "blk.0.attn_q.weight", .dims = 2, .dim = {48, 64}}, ENG_BF16, ENG_BF16},
        {{.name = "blk.0.attn_norm.weight", .type = ENG_F16, .dims = 1, .dim = {64}}, ENG_Q4_0, ENG_F32},
        {{.name = "token_embd.weight", .dims = 2, .dim = {64, 99}}, ENG_Q4_0, ENG_Q8_0},
        {{.name = "output.weight", .dims = 2, .dim = {64, 99}}, ENG_Q4_1, ENG_Q8_0},
        {{.name = "output.weight", .dims = 2, .dim = {63, 99}}, ENG_Q4_1, ENG_F16},
        {{.name = "output.weight", .dims = 2, .dim = {64, 99}}, ENG_F16, ENG_F16},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(eng_quantize_type(&rows[i].t, rows[i].asked), rows[i].gets);
}

/* Rows of 40 weights, which no block divides, in a file whose own keys stand between others. */
static void odd_rows_and_odd_keys(void **state) {
    (void)state;
    tiny_gguf t = {0};
    tiny_put(&t, "GGUF\2\0\0\0", 8);
    tiny_u64(&t, 1);
    tiny_u64(&t, 5);
    const tiny_options o = {0};
    tiny_key_text(&t, &o, "first", "a text");
    tiny_key_text(&t, &o, "general.file_type", "of the wrong type");
    tiny_key_int(&t, &o, "general.alignment", 64);
    tiny_key_int(&t, &o, "general.quantization_version", 1);
    tiny_key_text(&t, &o, "last", "z");
    tiny_text(&t, "w");
    tiny_u32(&t, 2);
    tiny_u64(&t, 40);
    tiny_u64(&t, 3);
    tiny_u32(&t, ENG_F32);
    tiny_u64(&t, 0);
    tiny_put(&t, NULL, (64 - t.bytes % 64) % 64);
    for (int i = 0; i < 120; i++) tiny_f32(&t, (float)i / 4);
    eng_gguf *a, *b;
    assert_int_equal(eng_gguf_open_memory(t.data, t.bytes, "odd", &a, NULL), ST_OK);
    assert_int_equal(quantize(a, ENG_Q8_0, false, NULL), ST_OK);
    assert_int_equal(eng_gguf_open(out, &b, NULL), ST_OK);
    assert_int_equal(eng_gguf_tensor_at(b, 0)->type, ENG_F16);
    compare_tensor(eng_gguf_tensor_at(a, 0), eng_gguf_tensor_at(b, 0), ENG_Q8_0, 0);
    static const char *const order[] = {"first", "general.alignment", "last", "general.quantization_version",
                                        "general.file_type"};
    uint64_t count;
    size_t bytes;
    const char *at = eng_gguf_keys(b, &count, &bytes);
    assert_int_equal(count, 5);
    for (int i = 0; i < 5; i++, at += bytes) assert_ptr_equal(eng_gguf_key(b, order[i], &bytes), at);
    int64_t number;
    assert_int_equal(eng_gguf_int(b, "general.file_type", &number, NULL), ST_OK);
    assert_int_equal(number, 7);
    eng_gguf_close(b);
    eng_gguf_close(a);
    tiny_gguf_free(&t);
    unlink(out);
}

static bool no(double share, void *ctx) { return (*(double *)ctx = share) < 0.5; }

static void it_can_be_stopped(void **state) {
    (void)state;
    tiny_gguf t;
    double share = 0;
    eng_gguf *g = open_tiny(&(tiny_options){0}, &t);
    eng_quantize_options o = {.type = ENG_Q4_0, .progress = no, .progress_ctx = &share};
    assert_int_equal(eng_quantize_file(g, &o, out, NULL), ST_CANCELED);
    assert_true(share >= 0.5 && share < 1);
    assert_int_equal(files(), 0);
    eng_gguf_close(g);
    tiny_gguf_free(&t);
}

static void what_is_there_is_not_lost(void **state) {
    (void)state;
    const tiny_options o = {0};
    eng_gguf *g;
    error err;
    assert_true(tiny_gguf_write(&o, in));
    assert_int_equal(eng_gguf_open(in, &g, NULL), ST_OK);
    const eng_quantize_options force = {.type = ENG_F16, .force = true};
    static const struct { const char *path, *says; status s; } cases[] = {
        {in, "is the file that is read", ST_REFUSED},
        {"/dev/null", "/dev/null: not a regular file", ST_REFUSED},
        {folder, "not a regular file", ST_REFUSED},
        {"/no/such/folder/x", "cannot create: No such file or directory", ST_IO},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(eng_quantize_file(g, &force, cases[i].path, &err), cases[i].s);
        if (!strstr(err.text, cases[i].says)) fail_msg("case %zu: '%s'", i, err.text);
    }
    assert_int_equal(link(in, out), 0); /* the same file by another name */
    assert_int_equal(quantize(g, ENG_F16, true, &err), ST_REFUSED);
    unlink(out);
    assert_int_equal(quantize(g, ENG_F16, false, NULL), ST_OK);
    assert_int_equal(quantize(g, ENG_F32, false, &err), ST_REFUSED);
    assert_non_null(strstr(err.text, "out.gguf: exists, expected a new file or --force"));
    assert_int_equal(quantize(g, ENG_F32, true, NULL), ST_OK);
    assert_int_equal(files(), 2);
    eng_gguf_close(g);
    unlink(out);
    unlink(in);
}

static void what_is_not_finite_is_refused(void **state) {
    (void)state;
    static const struct { float a, b; eng_type type; const char *says; } cases[] = {
        {NAN, 0, ENG_F16, "weight 65 of 8192 is nan in the source"},
        {0, -INFINITY, ENG_Q8_0, "weight 66 of 8192 is -inf in the source"},
        {0, 70000, ENG_F16, "weight 66 of 8192 is inf as the new type holds it"},
        {1e7f, 0, ENG_Q8_0, "as the new type holds it"},
        {1e7f, 0, ENG_Q4_0, "as the new type holds it"},
        {FLT_MAX, -FLT_MAX, ENG_Q4_1, "as the new type holds it"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_gguf t;
        error err = {.text = ""};
        eng_gguf *g = open_tiny(&(tiny_options){.seed = 1, .F = 128}, &t);
        const eng_tensor *up = eng_gguf_tensor(g, "blk.1.ffn_up.weight");
        float *x = (float *)(uintptr_t)up->data;
        x[65] = cases[i].a, x[66] = cases[i].b;
        assert_int_equal(quantize(g, cases[i].type, false, &err), ST_BAD_INPUT);
        if (!strstr(err.text, cases[i].says) || !strstr(err.text, "tiny: tensor blk.1.ffn_up.weight"))
            fail_msg("case %zu: '%s'", i, err.text);
        assert_int_equal(files(), 0);
        eng_gguf_close(g);
        tiny_gguf_free(&t);
    }
}

static void any_allocation_may_fail(void **state) {
    (void)state;
    tiny_gguf t;
    eng_gguf *g = open_tiny(&(tiny_options){0}, &t);
    int64_t live = mem_live(), n = 1;
    for (status s = ST_NO_MEMORY; s != ST_OK; n++) {
        mem_fail_at(n);
        s = quantize(g, ENG_Q4_1, false, NULL);
        mem_fail_at(0);
        assert_true(s == ST_OK || s == ST_NO_MEMORY);
        assert_int_equal(files(), s == ST_OK);
        assert_int_equal(mem_live(), live);
    }
    assert_true(n > 2);
    eng_gguf_close(g);
    tiny_gguf_free(&t);
    unlink(out);
}

/* A file that may not grow beyond a limit is what a full disk looks like. */
static void a_full_disk_leaves_nothing(void **state) {
    (void)state;
    tiny_gguf t;
    struct stat st;
    struct rlimit before;
    eng_gguf *g = open_tiny(&(tiny_options){0}, &t);
    assert_int_equal(quantize(g, ENG_Q8_0, false, NULL), ST_OK);
    assert_int_equal(stat(out, &st), 0);
    getrlimit(RLIMIT_FSIZE, &before);
    for (off_t left = st.st_size; left >= 0; left = left > 5000 ? left - 5000 : left ? left / 2 : -1) {
        off_t limit = st.st_size - left;
        struct stat now;
        error err = {.text = ""};
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)limit, before.rlim_max});
        status s = quantize(g, ENG_Q8_0, true, &err);
        setrlimit(RLIMIT_FSIZE, &before);
        assert_int_equal(s, limit < st.st_size ? ST_IO : ST_OK);
        if (s == ST_IO) assert_non_null(strstr(err.text, "cannot write: File too large"));
        assert_int_equal(files(), 1);
        assert_int_equal(stat(out, &now), 0);
        assert_true(now.st_size == st.st_size && (now.st_ino == st.st_ino) == (s == ST_IO));
    }
    eng_gguf_close(g);
    tiny_gguf_free(&t);
    unlink(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_rounded_as_ggml_does),
        cmocka_unit_test(which_type_a_tensor_gets),
        cmocka_unit_test(every_type_to_every_type),
        cmocka_unit_test(odd_rows_and_odd_keys),
        cmocka_unit_test(it_can_be_stopped),
        cmocka_unit_test(what_is_there_is_not_lost),
        cmocka_unit_test(what_is_not_finite_is_refused),
        cmocka_unit_test(any_allocation_may_fail),
        cmocka_unit_test(a_full_disk_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
