/* engine/cuda when something is missing or breaks: device.c, load.c and context.c say what it is; every failing call of
 * the runtime ends in an error, and everything is given back. dlopen() is wrapped (CMakeLists.txt). */
#include "tests/cuda/emu/emu_test.h"
#include "tests/cuda/model_rig.h"
#include <dlfcn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *missing;              /* a library that is not on this machine */

void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags) {
    return __real_dlopen(missing && name && strcmp(name, missing) == 0 ? "libthat.is.not.here.so" : name, flags);
}

static status open_model(const char *device, eng_type type, error *err) {
    rig r = {0};
    status s = rig_open(&(rig_options){.device = device, .type = type}, &r, err);
    rig_close(&r);
    return s;
}

/* In a process of its own, since a machine's devices do not change in one: the error's status and text. */
static status text_elsewhere(const char *variable, const char *value, const char *device, char text[400]) {
    int ends[2], code;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        error err = {.text = ""};
        if (variable) setenv(variable, value, 1);
        status s = open_model(device, ENG_Q4_0, &err);
        _exit(write(ends[1], err.text, sizeof err.text) == sizeof err.text ? (int)s : 99);
    }
    assert_true(child > 0);
    assert_int_equal(read(ends[0], text, 400), 400);
    assert_int_equal(waitpid(child, &code, 0), child);
    close(ends[0]);
    close(ends[1]);
    assert_true(WIFEXITED(code));
    return (status)WEXITSTATUS(code);
}

static void what_is_missing_is_named(void **state) {
    (void)state;
    static const struct {
        const char *variable, *value, *device;
        status s;
        const char *text;
    } cases[] = {
        {"EMU_DRIVER", "0", "cuda", ST_UNSUPPORTED, "this machine has no NVIDIA driver"},
        {"EMU_DRIVER", "0", "cuda", ST_UNSUPPORTED, "for CUDA 13.0 or newer"},
        {"EMU_DEVICES", "0", "cuda", ST_UNSUPPORTED, "sees no GPU"},
        {"EMU_DEVICES", "2", "cuda:3", ST_UNSUPPORTED, "there is no device 3, this machine has 2 (0 to 1)"},
        {"EMU_DEVICES", "2", "cuda:1", ST_OK, ""},
        {NULL, NULL, "cuda:", ST_BAD_INPUT, "expected cpu, cuda or cuda:0,1"},
        {NULL, NULL, "cuda:0,", ST_BAD_INPUT, "expected cpu, cuda or cuda:0,1"},
        {NULL, NULL, "cuda:-1", ST_BAD_INPUT, "expected cpu, cuda or cuda:0,1"},
        {NULL, NULL, "cuda 0", ST_BAD_INPUT, "expected cpu, cuda or cuda:0,1"},
        {NULL, NULL, "gpu", ST_BAD_INPUT, "expected cpu, cuda or cuda:0,1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[400] = "";
        status s = text_elsewhere(cases[i].variable, cases[i].value, cases[i].device, text);
        if (s != cases[i].s || !strstr(text, cases[i].text))
            fail_msg("%s: %s, '%s', expected '%s'", cases[i].device, status_name(s), text, cases[i].text);
    }
}

static void a_missing_library_is_named(void **state) {
    (void)state;
    error err = {.text = ""};
    missing = "libcublas.so.13";
    assert_int_equal(open_model("cuda", ENG_F16, &err), ST_UNSUPPORTED);
    assert_non_null(strstr(err.text, "libcublas.so.13 is needed for weights of type F32, F16 or BF16"));
    assert_non_null(strstr(err.text, "libthat.is.not.here.so: cannot open"));
    assert_int_equal(open_model("cuda", ENG_Q4_1, &err), ST_OK);         /* who does not need it does not miss it */
    const cuda_nccl *nccl;
    missing = "libnccl.so.2";
    assert_int_equal(cuda_load_nccl(&nccl, &err), ST_UNSUPPORTED);
    assert_non_null(strstr(err.text, "libnccl.so.2 is needed for several ranks"));
    missing = NULL;
    assert_int_equal(open_model("cuda", ENG_F16, &err), ST_OK);
}

static void too_little_memory_is_said(void **state) {
    (void)state;
    static const char *const terms[] = {"prepared weights", "KV pages", "steps of", "a step of", "block tables"};
    size_t bytes = 8 << 20;
    int found = 0;
    error err = {.text = ""};
    emu_test_memory(0, bytes);
    for (; open_model("cuda", ENG_Q4_1, &err) != ST_OK; emu_test_memory(0, bytes += 128 << 10)) {
        if (err.code != ST_NO_MEMORY || !strstr(err.text, "MiB free")) fail_msg("%zu bytes: %s", bytes, err.text);
        for (int i = 0; i < 5; i++)
            if (strstr(err.text, terms[i])) found |= 1 << i;
        assert_true(bytes < (size_t)256 << 20);
    }
    emu_test_memory(0, 0);
    if (!(found & 1 << 2) || !(found & 1 << 1)) fail_msg("terms named: %x", found);
}

static void a_head_that_is_not_served_is_refused(void **state) {
    (void)state;
    tiny_gguf file = tiny_gguf_build(&(tiny_options){.D = 64, .H = 4});
    error err = {.text = ""};
    eng_gguf *g;
    eng_model *m;
    assert_int_equal(eng_gguf_open_memory(file.data, file.bytes, "tiny", &g, &err), ST_OK);
    assert_int_equal(eng_model_open(g, &(eng_options){.device = "cuda"}, &m, &err), ST_UNSUPPORTED);
    assert_non_null(strstr(err.text, "heads are 16 wide, expected a multiple of 32"));
    eng_gguf_close(g);
    tiny_gguf_free(&file);
}

/* Steps of every kind: a chunk without logits, one with, decoding until it is replayed. */
static status run_steps(rig *r, error *err) {
    int32_t tokens[24], block[2] = {1, 2};
    const float *logits;
    rig_prompt(tokens, 24, 0);
    TRY(eng_step(r->m, r->kv, &(eng_rows){tokens, 8, 0, block, 0}, 1, &logits, err));
    TRY(eng_step(r->m, r->kv, &(eng_rows){tokens + 8, 8, 8, block, 1}, 1, &logits, err));
    for (int i = 16; i < 20; i++) TRY(eng_step(r->m, r->kv, &(eng_rows){tokens + i, 1, i, block, 1}, 1, &logits, err));
    return ST_OK;
}

/* The n-th call fails, for n = 0, `stride`, ...: the error comes out, the same one again at every later step, and closing
 * gives everything back (the emulator ends a process that leaks or frees twice). */
static void every_failing_call_is_an_error(void **state) {
    (void)state;
    enum { STRIDE = 23 };
    for (long n = 0, ended = 0; !ended; n += STRIDE) {
        rig r = {0};
        error err = {.text = ""}, later = {.text = ""};
        const float *logits;
        int32_t token = 1, block = 0;
        emu_test_fail_call(n, cudaErrorIllegalAddress);
        status s = rig_open(&(rig_options){.device = "cuda", .type = ENG_Q4_1}, &r, &err);
        bool opened = s == ST_OK;
        if (opened) s = run_steps(&r, &err);
        ended = !emu_test_failed();
        emu_test_fail_call(-1, cudaSuccess);
        if (!ended && s == ST_OK) fail_msg("call %ld failed and nobody said so", n);
        if (!ended && opened) {
            assert_int_equal(eng_step(r.m, r.kv, &(eng_rows){&token, 1, 0, &block, 1}, 1, &logits, &later), s);
            assert_string_equal(later.text, err.text);
        }
        rig_close(&r);
    }
}

int main(void) {
    log_setup("test", LOG_ERROR);
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_missing_is_named),
                                       cmocka_unit_test(a_missing_library_is_named),
                                       cmocka_unit_test(too_little_memory_is_said),
                                       cmocka_unit_test(a_head_that_is_not_served_is_refused),
                                       cmocka_unit_test(every_failing_call_is_an_error)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
