/* Tests engine/model.c: the loader is the schema. */
#include "tests/unit/tiny_gguf.h"
#include <setjmp.h>
#include <cmocka.h>

static status open_tiny(const tiny_options *o, const eng_options *options, eng_model **m, eng_gguf **g,
                        tiny_gguf *t, error *err) {
    *t = tiny_gguf_build(o);
    assert_int_equal(eng_gguf_open_memory(t->data, t->bytes, "tiny", g, err), ST_OK);
    return eng_model_open(*g, options, m, err);
}

static void what_is_not_the_schema_is_refused(void **state) {
    (void)state;
    static const struct { tiny_options o; status s; const char *says; } cases[] = {
        {{.skip = "blk.1.ffn_up.weight"}, ST_BAD_INPUT, "tensor blk.1.ffn_up.weight is absent"},
        {{.skip = "token_embd.weight"}, ST_BAD_INPUT, "token_embd.weight is absent"},
        {{.skip = "output_norm.weight"}, ST_BAD_INPUT, "tensor output_norm.weight is absent"},
        {{.skip = "llama.block_count"}, ST_BAD_INPUT, "key llama.block_count is absent"},
        {{.skip = "general.architecture"}, ST_BAD_INPUT, "key general.architecture is absent"},
        {{.architecture = "gemma"}, ST_UNSUPPORTED, "'gemma', expected llama"},
        {{.odd_shape = "blk.0.attn_k.weight"}, ST_BAD_INPUT,
         "blk.0.attn_k.weight has 2 dimensions (64, 33), expected 2 (64, 32)"},
        {{.odd_shape = "blk.0.attn_norm.weight"}, ST_BAD_INPUT, "(65, 0), expected 1 (64, 0)"},
        {{.odd_type = "blk.1.ffn_norm.weight"}, ST_BAD_INPUT, "blk.1.ffn_norm.weight has type 1, expected F32"},
        {{.extra = "blk.0.attn_q.bias"}, ST_UNSUPPORTED, "tensor blk.0.attn_q.bias is not one of a llama"},
        {{.extra = "blk.2.attn_norm.weight"}, ST_UNSUPPORTED, "blk.2.attn_norm.weight"},
        {{.H = 4, .K = 3}, ST_BAD_INPUT, "head_count is 4, expected a multiple of 3"},
        {{.D = 48, .F = 64}, ST_BAD_INPUT, "embedding_length is 48, expected a multiple of 32"},
        {{.rope_scaling = "longrope"}, ST_UNSUPPORTED, "'longrope', expected none, linear or yarn"},
        {{.odd_shape = "token_embd.weight", .vocab = true}, ST_BAD_INPUT, "tokenizer.ggml.tokens has 288"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        eng_model *m = NULL;
        eng_gguf *g;
        tiny_gguf t;
        error err = {.text = ""};
        int64_t live = mem_live();
        status s = open_tiny(&cases[i].o, NULL, &m, &g, &t, &err);
        if (s != cases[i].s || !strstr(err.text, cases[i].says))
            fail_msg("case %zu: %s '%s', expected '%s'", i, status_name(s), err.text, cases[i].says);
        assert_null(m);
        eng_gguf_close(g);
        tiny_gguf_free(&t);
        assert_int_equal(mem_live(), live);
    }
}

static void odd_options_are_refused(void **state) {
    (void)state;
    static const struct { eng_options o; const char *says; } cases[] = {
        {{.isa = "abacus"}, "isa 'abacus'"}, {{.threads = -1}, "threads is -1"},
        {{.tokens_max = -5}, "tokens_max is -5"},     {{.tokens_max = 1 << 20}, "tokens_max is 1048576"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        eng_model *m;
        eng_gguf *g;
        tiny_gguf t;
        error err = {.text = ""};
        assert_int_not_equal(open_tiny(&(tiny_options){0}, &cases[i].o, &m, &g, &t, &err), ST_OK);
        assert_non_null(strstr(err.text, cases[i].says));
        eng_gguf_close(g);
        tiny_gguf_free(&t);
    }
}

static void note(double share, void *ctx) { *(double *)ctx = share; }

static void the_shape_is_the_files(void **state) {
    (void)state;
    eng_model *m;
    eng_gguf *g;
    tiny_gguf t;
    error err = {.text = ""};
    double share = 0;
    eng_options o = {.isa = "scalar", .tokens_max = 8, .progress = note, .progress_ctx = &share};
    assert_int_equal(open_tiny(&(tiny_options){.own_output = true, .rope_freqs = true, .type = ENG_BF16}, &o, &m,
                               &g, &t, &err), ST_OK);
    const eng_shape *s = eng_model_shape(m);
    assert_true(s->L == 2 && s->D == 64 && s->H == 4 && s->K == 2 && s->h == 16 && s->F == 96 && s->V == 128);
    assert_int_equal(s->context, 2048);
    assert_true(share == 1);
    assert_string_equal(eng_model_numerics(m), "scalar-1");
    assert_in_range(eng_model_scratch_bytes(m), 8 * 64 * 4, 1 << 16);
    eng_model_close(m);
    eng_gguf_close(g);
    tiny_gguf_free(&t);
}

static void any_allocation_may_fail(void **state) {
    (void)state;
    tiny_gguf t = tiny_gguf_build(&(tiny_options){0});
    eng_gguf *g;
    assert_int_equal(eng_gguf_open_memory(t.data, t.bytes, "t", &g, NULL), ST_OK);
    int64_t live = mem_live();
    for (int64_t n = 1;; n++) {
        eng_model *m = NULL;
        error err;
        mem_fail_at(n);
        status s = eng_model_open(g, &(eng_options){.threads = 2}, &m, &err);
        mem_fail_at(0);
        if (s == ST_OK) {
            assert_true(n > 20);
            eng_model_close(m);
            break;
        }
        assert_int_equal(s, ST_NO_MEMORY);
        assert_int_equal(mem_live(), live);
    }
    assert_int_equal(mem_live(), live);
    eng_gguf_close(g);
    tiny_gguf_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_the_schema_is_refused),
        cmocka_unit_test(odd_options_are_refused),
        cmocka_unit_test(the_shape_is_the_files),
        cmocka_unit_test(any_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
