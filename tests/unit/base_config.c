/* base_config.c -- tests base/config.c: which source wins, and what each kind of bad input says. */
#include "base/base.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

typedef struct options {
    const char *model;
    int64_t kv_pages, any;
    double share;
    bool trace, prefix;
} options;

static const config_row rows[] = {
    {"model", CONFIG_TEXT, offsetof(options, model), NULL, 0, 0, "FILE", "model file"},
    {"kv-pages", CONFIG_INT, offsetof(options, kv_pages), "64", 1, 4096, "N", "pages of KV"},
    {"any", CONFIG_INT, offsetof(options, any), NULL, 0, 0, "N", "any whole number"},
    {"share", CONFIG_REAL, offsetof(options, share), "0.5", 0, 1, "X", "a share"},
    {"trace", CONFIG_SWITCH, offsetof(options, trace), NULL, 0, 0, NULL, "trace it"},
    {"prefix", CONFIG_SWITCH, offsetof(options, prefix), "true", 0, 0, NULL, "use the cache"},
};
enum { ROWS = sizeof rows / sizeof rows[0], WORDS_MAX = 12 };

static char yaml_path[] = "/tmp/baton_config_XXXXXX";
static options o;
static error err;
static const char *rest[2];
static int rest_count;
static arena *a;

static status parse(const char *const *words) {
    char *argv[WORDS_MAX + 1] = {(char *)"baton"};
    int argc = 1;
    for (; words[argc - 1]; argc++) argv[argc] = (char *)words[argc - 1];
    memset(&o, 0xAA, sizeof o);
    err = (error){0};
    arena_destroy(a);
    assert_non_null(a = arena_create(4096));
    return config_parse(rows, ROWS, argc, argv, a, &o, rest, 2, &rest_count, &err);
}
#define PARSE(...) parse((const char *const[WORDS_MAX]){__VA_ARGS__})

static void write_yaml(const char *text, size_t bytes) {
    FILE *f = fopen(yaml_path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, bytes, f), bytes);
    fclose(f);
}

/* The error's text, with the file's name taken off its front. */
static const char *yaml_error(const char *text) {
    write_yaml(text, strlen(text));
    assert_int_equal(PARSE("--config", yaml_path), ST_BAD_INPUT);
    assert_int_equal(strncmp(err.text, yaml_path, strlen(yaml_path)), 0);
    return err.text + strlen(yaml_path);
}

static void later_sources_win(void **state) {
    (void)state;
    assert_int_equal(PARSE(NULL), ST_OK);
    assert_null(o.model);
    assert_int_equal(o.kv_pages, 64);
    assert_int_equal(o.any, 0);
    assert_true(o.share == 0.5 && !o.trace && o.prefix);

    static const char yaml[] = "# comment\nkv-pages: 100\nshare: 0.25\nmodel: \"a b\"\ntrace: yes\n";
    write_yaml(yaml, sizeof yaml - 1);
    assert_int_equal(PARSE("--config", yaml_path), ST_OK);
    assert_int_equal(o.kv_pages, 100);
    assert_string_equal(o.model, "a b");
    assert_true(o.share == 0.25 && o.trace && o.prefix);

    setenv("BATON_KV_PAGES", "200", 1);
    setenv("BATON_PREFIX", "off", 1);
    setenv("BATON_SHARE", "", 1);                          /* empty counts as unset */
    setenv("BATON_CONFIG", yaml_path, 1);
    assert_int_equal(PARSE(NULL), ST_OK);
    assert_int_equal(o.kv_pages, 200);
    assert_true(o.share == 0.25 && !o.prefix);
    assert_int_equal(PARSE("--kv-pages=300", "--no-trace", "--prefix"), ST_OK);
    assert_int_equal(o.kv_pages, 300);
    assert_true(!o.trace && o.prefix);
    setenv("BATON_KV_PAGES", "0x10", 1);
    assert_int_equal(PARSE("--kv-pages=300"), ST_BAD_INPUT);
    assert_string_equal(err.text,
                        "BATON_KV_PAGES: '0x10': expected a whole number from 1 to 4096");
    unsetenv("BATON_KV_PAGES"), unsetenv("BATON_PREFIX");
    unsetenv("BATON_SHARE"), unsetenv("BATON_CONFIG");
}

static void words_and_forms(void **state) {
    (void)state;
    assert_int_equal(PARSE("one", "--any", "-5", "-", "--model=--x="), ST_OK);
    assert_int_equal(o.any, -5);
    assert_string_equal(o.model, "--x=");
    assert_int_equal(rest_count, 2);
    assert_string_equal(rest[0], "one");
    assert_string_equal(rest[1], "-");
    assert_int_equal(PARSE("--", "--any", "--help"), ST_OK);
    assert_string_equal(rest[1], "--help");
    assert_int_equal(PARSE("a", "b", "c"), ST_BAD_INPUT);
    assert_string_equal(err.text, "unexpected word 'c': at most 2 besides flags");
    assert_int_equal(PARSE("--any", "3", "--help"), ST_CANCELED);
    assert_int_equal(PARSE("--model="), ST_OK);
    assert_string_equal(o.model, "");
}

static void bad_flags_are_named(void **state) {
    (void)state;
    static const struct {
        const char *words[3], *text;
    } cases[] = {
        {{"--kv-page", "3"}, "unknown flag '--kv-page', did you mean --kv-pages?"},
        {{"--kvpagse"}, "unknown flag '--kvpagse': --help lists the flags"},
        {{"--hlep"}, "unknown flag '--hlep', did you mean --help?"},
        {{"-model"}, "unknown flag '-model', did you mean --model?"},
        {{"--no-model"}, "unknown flag '--no-model': --help lists the flags"},
        {{"--=3"}, "unknown flag '--=3': --help lists the flags"},
        {{"--model"}, "--model has no value, expected --model FILE"},
        {{"--model", "--trace"}, "--model has no value, expected --model FILE"},
        {{"--config"}, "--config has no value, expected --config FILE"},
        {{"--any=1", "--any", "1"}, "--any is given twice, expected once"},
        {{"--trace", "--no-trace"}, "--trace is given twice, expected once"},
        {{"--trace=true"}, "'--trace=true': a switch takes no value, expected --trace or --no-trace"},
        {{"--any", "1k"}, "--any: '1k': expected a whole number"},
        {{"--any", " 1"}, "--any: ' 1': expected a whole number"},
        {{"--any="}, "--any: '': expected a whole number"},
        {{"--any", "9223372036854775808"}, "--any: '9223372036854775808': expected a whole number"},
        {{"--kv-pages", "0"}, "--kv-pages: '0': expected a whole number from 1 to 4096"},
        {{"--kv-pages", "4097"}, "--kv-pages: '4097': expected a whole number from 1 to 4096"},
        {{"--share", "nan"}, "--share: 'nan': expected a number from 0 to 1"},
        {{"--share", "1e999"}, "--share: '1e999': expected a number from 0 to 1"},
        {{"--share", "1.0001"}, "--share: '1.0001': expected a number from 0 to 1"},
        {{"--share", "0.5x"}, "--share: '0.5x': expected a number from 0 to 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(PARSE(cases[i].words[0], cases[i].words[1], cases[i].words[2]),
                         ST_BAD_INPUT);
        assert_string_equal(err.text, cases[i].text);
        assert_int_equal(err.code, ST_BAD_INPUT);
    }
    assert_int_equal(PARSE("--config", "/nonexistent/x.yaml"), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "'/nonexistent/x.yaml': No such file"));
    assert_int_equal(PARSE("--config", "/tmp"), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "Is a directory"));
}

static void bad_yaml_is_placed(void **state) {
    (void)state;
    static const struct {
        const char *yaml, *text;
    } cases[] = {
        {"any: 1\n  \nkv-page: 3\n", ":3:1: unknown key 'kv-page', did you mean 'kv-pages'?"},
        {"zzzz: 3\n", ":1:1: unknown key 'zzzz': expected the name of an option"},
        {"any: 1\nany: 2\n", ":2:1: key 'any' stands twice, expected once"},
        {"any: 1\nkv-pages: many\n",
         ":2:11: kv-pages: 'many': expected a whole number from 1 to 4096"},
        {"trace: maybe\n", ":1:8: trace: 'maybe': expected true or false"},
        {"any: [1]\n", ":1:6: expected a plain value: no list, no nested mapping, no alias"},
        {"any: {a: 1}\n", ":1:6: expected a plain value: no list, no nested mapping, no alias"},
        {"any: &x 1\nkv-pages: *x\n",
         ":2:12: expected a plain value: no list, no nested mapping, no alias"},
        {"- any\n", ":1:1: expected a plain value: no list, no nested mapping, no alias"},
        {"any\n", ":1:1: expected a mapping, `name: value` a line"},
        {"any: 1\n%YAM\xcc 1.2\n", ":2:1: a line begins with %, expected no YAML directives"},
        {"--- {any: 1}\n--- {any: 2}\n", ":2:1: a second document, expected one"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_string_equal(yaml_error(cases[i].yaml), cases[i].text);
    assert_non_null(strstr(yaml_error("any:\n"), "'any' has no value, expected N"));
    assert_non_null(strstr(yaml_error("any: \"1\nshare: {"), ": not readable as YAML: "));
    assert_non_null(strstr(yaml_error("\tany: 1"), ": not readable as YAML: "));
    static const char *const empty[] = {"", "\n", "# only a comment\n", "---\n", "{}\n"};
    for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++) {
        write_yaml(empty[i], strlen(empty[i]));
        assert_int_equal(PARSE("--config", yaml_path), ST_OK);
        assert_int_equal(o.kv_pages, 64);
    }
}

/* Neither depth nor length of a file is the parser's problem. */
static void hostile_yaml_is_refused(void **state) {
    (void)state;
    size_t bytes = (1 << 20) + 1;
    char *text = malloc(bytes);
    memset(text, '[', bytes);
    write_yaml(text, bytes);
    assert_int_equal(PARSE("--config", yaml_path), ST_BAD_INPUT);
    assert_non_null(strstr(err.text, "longer than"));
    write_yaml(text, 200000);
    assert_int_equal(PARSE("--config", yaml_path), ST_BAD_INPUT);
    memcpy(text, "model: \"a\\0b\"\n", 14);
    write_yaml(text, 14);
    assert_int_equal(PARSE("--config", yaml_path), ST_BAD_INPUT);
    free(text);
}

static void no_memory_is_answered(void **state) {
    (void)state;
    static const char yaml[] = "model: text\nany: 3\n";
    write_yaml(yaml, sizeof yaml - 1);
    char *argv[] = {(char *)"baton", (char *)"--config", yaml_path};
    int64_t live = mem_live();
    status s = ST_NO_MEMORY;
    int64_t nth = 1;
    for (; s == ST_NO_MEMORY && nth < 100; nth++) {
        arena *tight = arena_create(1);                    /* every piece is an allocation */
        mem_fail_at(nth);
        s = config_parse(rows, ROWS, 3, argv, tight, &o, rest, 2, &rest_count, &err);
        mem_fail_at(0);
        arena_destroy(tight);
        assert_int_equal(mem_live(), live);
    }
    assert_int_equal(s, ST_OK);
    assert_true(nth > 4);
}

static void help_has_a_line_a_row(void **state) {
    (void)state;
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    config_help(out, rows, ROWS);
    fclose(out);
    assert_non_null(strstr(text, "--kv-pages N "));
    assert_non_null(strstr(text, "pages of KV [default: 64] [BATON_KV_PAGES]\n"));
    assert_non_null(strstr(text, "--[no-]trace "));
    int lines = 0;
    for (const char *c = text; *c; c++) lines += *c == '\n';
    assert_int_equal(lines, ROWS + 2);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(later_sources_win),      cmocka_unit_test(words_and_forms),
        cmocka_unit_test(bad_flags_are_named),    cmocka_unit_test(bad_yaml_is_placed),
        cmocka_unit_test(hostile_yaml_is_refused), cmocka_unit_test(no_memory_is_answered),
        cmocka_unit_test(help_has_a_line_a_row),
    };
    close(mkstemp(yaml_path));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(a);
    unlink(yaml_path);
    return failed;
}
