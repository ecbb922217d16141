/* Tests engine/gguf.c: what a file says is what is read; what lies is refused by name. */
#include "tests/unit/tiny_gguf.h"
#include <setjmp.h>
#include <cmocka.h>
#include <unistd.h>

/* Files of hand-written parts: a header, then whatever the case appends. */
static void header(tiny_gguf *t, uint32_t version, uint64_t tensors, uint64_t keys) {
    *t = (tiny_gguf){0};
    tiny_put(t, "GGUF", 4);
    tiny_u32(t, version);
    tiny_u64(t, tensors);
    tiny_u64(t, keys);
}

static void key_head(tiny_gguf *t, const char *name, uint32_t type) {
    tiny_text(t, name);
    tiny_u32(t, type);
}

static void tensor(tiny_gguf *t, const char *name, uint32_t dims, uint64_t dim, uint32_t type,
                   uint64_t offset) {
    tiny_text(t, name);
    tiny_u32(t, dims);
    for (uint32_t i = 0; i < dims && i < 5; i++) tiny_u64(t, i ? 1 : dim);
    tiny_u32(t, type);
    tiny_u64(t, offset);
}

static void pad(tiny_gguf *t, size_t bytes) { tiny_put(t, NULL, (32 - t->bytes % 32) % 32 + bytes); }

static void short_file(tiny_gguf *t) { *t = (tiny_gguf){0}; tiny_put(t, "GGUF\3", 5); }
static void not_gguf(tiny_gguf *t) { *t = (tiny_gguf){0}; tiny_put(t, "PK\3\4 and what follows it..", 24); }
static void version_1(tiny_gguf *t) { header(t, 1, 0, 0); }
static void big_endian(tiny_gguf *t) { header(t, 0x03000000, 0, 0); }
static void many_tensors(tiny_gguf *t) { header(t, 3, UINT64_MAX, 0); }
static void many_keys(tiny_gguf *t) { header(t, 3, 0, 1u << 30); }
static void long_name(tiny_gguf *t) { header(t, 3, 0, 1); tiny_u64(t, UINT64_MAX); tiny_u64(t, 0); }
static void odd_name(tiny_gguf *t) { header(t, 3, 0, 1); key_head(t, "a\nb", 4); tiny_u32(t, 1); }
static void key_type(tiny_gguf *t) { header(t, 3, 0, 1); key_head(t, "k", 13); tiny_u32(t, 0); }
static void key_bool(tiny_gguf *t) { header(t, 3, 0, 1); key_head(t, "k", 7); tiny_put(t, "\2", 1); }
static void key_cut(tiny_gguf *t) { header(t, 3, 0, 1); key_head(t, "key", 10); tiny_u32(t, 0); }
static void nested(tiny_gguf *t) { header(t, 3, 0, 1); key_head(t, "k", 9); tiny_u32(t, 9); tiny_u64(t, 0); }
static void long_array(tiny_gguf *t) {
    header(t, 3, 0, 1); key_head(t, "k", 9); tiny_u32(t, 10); tiny_u64(t, UINT64_MAX / 8 + 2);
}
static void long_texts(tiny_gguf *t) {
    header(t, 3, 0, 1); key_head(t, "k", 9); tiny_u32(t, 8); tiny_u64(t, UINT64_MAX / 8 + 2);
}
static void twice_key(tiny_gguf *t) {
    header(t, 3, 0, 2);
    for (int i = 0; i < 2; i++) { key_head(t, "same", 4); tiny_u32(t, 1); }
}
static void alignment(tiny_gguf *t) { header(t, 3, 0, 1); key_head(t, "general.alignment", 4); tiny_u32(t, 48); }
static void dims_0(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 0, 0, 0, 0); pad(t, 64); }
static void dims_5(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 5, 4, 0, 0); pad(t, 64); }
static void dim_0(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 1, 0, 0, 0); pad(t, 64); }
static void dim_huge(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 1, UINT64_MAX, 0, 0); pad(t, 64); }
static void type_q4_k(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 1, 256, 12, 0); pad(t, 999); }
static void type_99(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 1, 256, 99, 0); pad(t, 999); }
static void row_33(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 1, 33, 2, 0); pad(t, 999); }
static void offset_odd(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 1, 4, 0, 16); pad(t, 999); }
static void offset_far(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 1, 4, 0, UINT64_MAX - 31); pad(t, 64); }
static void data_cut(tiny_gguf *t) { header(t, 3, 1, 0); tensor(t, "w", 1, 32, 0, 0); pad(t, 127); }
static void twice_tensor(tiny_gguf *t) {
    header(t, 3, 2, 0);
    for (int i = 0; i < 2; i++) tensor(t, "w", 1, 4, 0, 0);
    pad(t, 64);
}

static const struct {
    const char *name;
    void (*make)(tiny_gguf *t);
    status s;
    const char *says;
} lies[] = {
    {"short", short_file, ST_BAD_INPUT, "version at offset 4 needs 4 bytes, the file has 1"},
    {"not gguf", not_gguf, ST_BAD_INPUT, "50 4b 03 04, expected GGUF"},
    {"version 1", version_1, ST_UNSUPPORTED, "version 1, expected 2 or 3"},
    {"big-endian", big_endian, ST_UNSUPPORTED, "big-endian"},
    {"many tensors", many_tensors, ST_BAD_INPUT, "more than a file of 24 bytes"},
    {"many keys", many_keys, ST_BAD_INPUT, "1073741824 keys"},
    {"long name", long_name, ST_BAD_INPUT, "name of a key at offset 32 needs 18446744073709551615"},
    {"odd name", odd_name, ST_BAD_INPUT, "expected 1 to 255 printable"},
    {"key type", key_type, ST_BAD_INPUT, "key k has value type 13, expected 0 to 12"},
    {"key bool", key_bool, ST_BAD_INPUT, "key k is 2, expected a bool"},
    {"key cut", key_cut, ST_BAD_INPUT, "key key holds 1 x u64, more than the 4 bytes left"},
    {"nested", nested, ST_BAD_INPUT, "nested array"},
    {"long array", long_array, ST_BAD_INPUT, "key k holds 2305843009213693953 x u64"},
    {"long texts", long_texts, ST_BAD_INPUT, "key k is an array of 2305843009213693953 texts"},
    {"key twice", twice_key, ST_BAD_INPUT, "key same is there twice"},
    {"alignment", alignment, ST_BAD_INPUT, "general.alignment is 48, expected a power of two"},
    {"dims 0", dims_0, ST_BAD_INPUT, "tensor w has 0 dimensions, expected 1 to 4"},
    {"dims 5", dims_5, ST_BAD_INPUT, "tensor w has 5 dimensions"},
    {"dim 0", dim_0, ST_BAD_INPUT, "tensor w has dimension 0"},
    {"dim huge", dim_huge, ST_BAD_INPUT, "tensor w has dimension 18446744073709551615"},
    {"Q4_K", type_q4_k, ST_BAD_INPUT, "tensor w has type 12 (Q4_K), expected F32"},
    {"type 99", type_99, ST_BAD_INPUT, "type 99 (unknown)"},
    {"row 33", row_33, ST_BAD_INPUT, "rows of 33, expected a multiple of 32 for Q4_0"},
    {"offset odd", offset_odd, ST_BAD_INPUT, "offset 16, expected a multiple of 32"},
    {"offset far", offset_far, ST_BAD_INPUT, "tensor w has 16 bytes at offset 18446744073709551584"},
    {"data cut", data_cut, ST_BAD_INPUT, "tensor w has 128 bytes at offset 0, the file's data has 127"},
    {"tensor twice", twice_tensor, ST_BAD_INPUT, "tensor w is there twice"},
};

static void lies_are_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        tiny_gguf t;
        lies[i].make(&t);
        unsigned char *exact = malloc(t.bytes); /* so that a sanitizer sees a read past the end */
        assert_non_null(exact);
        memcpy(exact, t.data, t.bytes);
        error err = {.text = ""};
        eng_gguf *g = NULL;
        status s = eng_gguf_open_memory(exact, t.bytes, "file.gguf", &g, &err);
        if (s != lies[i].s || !strstr(err.text, lies[i].says) || strncmp(err.text, "file.gguf: ", 11))
            fail_msg("%s: %s '%s', expected '%s'", lies[i].name, status_name(s), err.text, lies[i].says);
        assert_null(g);
        free(exact);
        tiny_gguf_free(&t);
    }
}

static void every_cut_of_a_file_is_refused(void **state) {
    (void)state;
    tiny_gguf t = tiny_gguf_build(&(tiny_options){.L = 1, .vocab = true});
    for (size_t bytes = 0; bytes < t.bytes; bytes += bytes < 12000 ? 1 : 997) {
        eng_gguf *g;
        assert_int_not_equal(eng_gguf_open_memory(t.data, bytes, "cut", &g, NULL), ST_OK);
    }
    tiny_gguf_free(&t);
}

static void values_are_read(void **state) {
    (void)state;
    tiny_gguf t = tiny_gguf_build(&(tiny_options){.vocab = true, .type = ENG_Q8_0});
    eng_gguf *g;
    error err;
    assert_int_equal(eng_gguf_open_memory(t.data, t.bytes, "dir/tiny.gguf", &g, &err), ST_OK);
    int64_t n;
    double real;
    bool flag;
    const char *text;
    size_t bytes;
    assert_int_equal(eng_gguf_int(g, "llama.block_count", &n, &err), ST_OK);
    assert_int_equal(n, 2);
    assert_int_equal(eng_gguf_real(g, "llama.rope.freq_base", &real, &err), ST_OK);
    assert_true(real == 10000);
    assert_int_equal(eng_gguf_int(g, "llama.rope.freq_base", &n, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "is f32, expected an integer"));
    assert_int_equal(eng_gguf_bool(g, "llama.block_count", &flag, &err), ST_BAD_INPUT);
    assert_int_equal(eng_gguf_text(g, "tokenizer.ggml.tokens", &text, &bytes, &err), ST_BAD_INPUT);
    assert_int_equal(eng_gguf_int(g, "absent", &n, &err), ST_NOT_FOUND);
    assert_int_equal(eng_gguf_array_count(g, "tokenizer.ggml.tokens", &n, &err), ST_OK);
    assert_int_equal(n, 288);
    for (int64_t i = 287; i >= 263; i--) {
        char expected[32];
        snprintf(expected, sizeof expected, "<unused%d>", (int)i);
        assert_int_equal(eng_gguf_array_text(g, "tokenizer.ggml.tokens", i, &text, &bytes, &err), ST_OK);
        assert_int_equal(bytes, strlen(expected));
        assert_memory_equal(text, expected, bytes);
    }
    assert_int_equal(eng_gguf_array_text(g, "tokenizer.ggml.tokens", 288, &text, &bytes, &err), ST_BAD_INPUT);
    assert_int_equal(eng_gguf_array_text(g, "tokenizer.ggml.tokens", -1, &text, &bytes, &err), ST_BAD_INPUT);
    assert_int_equal(eng_gguf_array_int(g, "tokenizer.ggml.token_type", 2, &n, &err), ST_OK);
    assert_int_equal(n, 3);
    const eng_tensor *w = eng_gguf_tensor(g, "blk.1.ffn_down.weight");
    assert_non_null(w);
    assert_true(w->dims == 2 && w->dim[0] == 96 && w->dim[1] == 64 && w->type == ENG_Q8_0);
    assert_int_equal(w->bytes, 64 * 3 * 34);
    assert_null(eng_gguf_tensor(g, "blk.2.ffn_down.weight"));
    assert_string_equal(eng_gguf_name(g), "tiny");
    assert_int_equal(strlen(eng_gguf_digest(g)), 32);
    eng_gguf_close(g);
    tiny_gguf_free(&t);
}

static void the_digest_tells_files_apart(void **state) {
    (void)state;
    char first[33] = "";
    for (uint64_t seed = 0; seed < 3; seed++) {
        tiny_gguf t = tiny_gguf_build(&(tiny_options){.seed = seed % 2});
        eng_gguf *g;
        assert_int_equal(eng_gguf_open_memory(t.data, t.bytes, "t", &g, NULL), ST_OK);
        if (seed == 0) strcpy(first, eng_gguf_digest(g));
        assert_int_equal(strcmp(first, eng_gguf_digest(g)) == 0, seed != 1);
        eng_gguf_close(g);
        tiny_gguf_free(&t);
    }
}

static void files_are_mapped(void **state) {
    (void)state;
    char path[] = "/tmp/eng_gguf_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    eng_gguf *g;
    error err;
    assert_int_equal(eng_gguf_open(path, &g, &err), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "0 bytes, expected a GGUF header"));
    assert_true(tiny_gguf_write(&(tiny_options){.skip = "general.name"}, path));
    assert_int_equal(eng_gguf_open(path, &g, &err), ST_OK);
    assert_string_equal(eng_gguf_name(g), path + 5);
    eng_gguf_close(g);
    unlink(path);
    assert_int_equal(eng_gguf_open(path, &g, &err), ST_NOT_FOUND);
    assert_int_equal(eng_gguf_open("/", &g, &err), ST_BAD_INPUT);
}

static void any_allocation_may_fail(void **state) {
    (void)state;
    tiny_gguf t = tiny_gguf_build(&(tiny_options){.vocab = true});
    int64_t live = mem_live();
    for (int64_t n = 1;; n++) {
        eng_gguf *g = NULL;
        error err;
        mem_fail_at(n);
        status s = eng_gguf_open_memory(t.data, t.bytes, "t", &g, &err);
        mem_fail_at(0);
        if (s == ST_OK) {
            assert_true(n > 5);
            eng_gguf_close(g);
            break;
        }
        assert_int_equal(s, ST_NO_MEMORY);
        assert_int_equal(mem_live(), live);
    }
    assert_int_equal(mem_live(), live);
    tiny_gguf_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lies_are_refused_by_name),   cmocka_unit_test(every_cut_of_a_file_is_refused),
        cmocka_unit_test(values_are_read),            cmocka_unit_test(the_digest_tells_files_apart),
        cmocka_unit_test(files_are_mapped),           cmocka_unit_test(any_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
