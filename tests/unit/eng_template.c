/* eng_template.c -- engine/template*.c: byte-equal to Jinja2 over golden/templates.json, places in
 * errors, bounds, and every allocation that can fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <pthread.h>
#include <string.h>
#include "engine/engine.h"

static const eng_message CHAT[] = {{"system", "Be brief."}, {"user", "Hi"}};

/* Renders source over CHAT. *text is from a. */
static status render(const char *source, arena *a, char **text, error *err) {
    eng_template *t;
    status s = eng_template_open(source, strlen(source), &t, err);
    if (s != ST_OK) return s;
    s = eng_template_render(t, CHAT, 2, true, "<bos>", "<eos>", a, text, err);
    eng_template_close(t);
    return s;
}

static void check_case(const json_t *c, const json_t *chat) {
    eng_message messages[16];
    size_t count = json_array_size(chat);
    const json_t *expected = json_object_get(c, "text");
    const char *source = json_string_value(json_object_get(c, "template"));
    assert_true(count <= 16);
    for (size_t i = 0; i < count; i++) {
        const json_t *m = json_array_get(chat, i);
        messages[i].role = json_string_value(json_object_get(m, "role"));
        messages[i].content = json_string_value(json_object_get(m, "content"));
    }
    arena *a = arena_create(4096);
    eng_template *t = NULL;
    error err = {0};
    char *text = NULL;
    status s = eng_template_open(source, strlen(source), &t, &err);
    if (s == ST_OK)
        s = eng_template_render(t, messages, (int)count, json_is_true(json_object_get(c, "prompt")),
                                "<bos>", "<eos>", a, &text, &err);
    if (json_is_null(expected)) {
        if (s != ST_BAD_INPUT || !strstr(err.text, "line "))
            fail_msg("not refused: %s\n%s", source, err.text);
    } else if (s != ST_OK) {
        fail_msg("refused: %s\n%s", source, err.text);
    } else if (strcmp(text, json_string_value(expected))) {
        fail_msg("template: %s\nexpected: %s\nfound:    %s", source, json_string_value(expected),
                 text);
    }
    eng_template_close(t);
    arena_destroy(a);
}

static void test_equal_to_jinja(void **state) {
    (void)state;
    json_error_t e;
    json_t *root = json_load_file(BATON_TESTS_DIR "/golden/templates.json", 0, &e), *c;
    if (!root) fail_msg("templates.json:%d: %s", e.line, e.text);
    const json_t *chats = json_object_get(root, "chats");
    size_t i;
    json_array_foreach(json_object_get(root, "cases"), i, c) check_case(
        c, json_array_get(chats, (size_t)json_integer_value(json_object_get(c, "chat"))));
    print_message("%zu cases\n", i);
    assert_true(i > 100);
    json_decref(root);
}

static void test_errors_say_where(void **state) {
    (void)state;
    static const struct {
        const char *source, *expected;
    } cases[] = {
        {"a\n{{ 1 2 }}", "template line 2 column 6: expected '}}', found '2'"},
        {"\n\n  {% macro f() %}", "template line 3 column 6: expected if, elif"},
        {"é{{ 'a' | reverse }}", "template line 1 column 11: filter 'reverse' is not supported"},
        {"{{ x() }}", "template line 1 column 5: function 'x' is not supported"},
        {"{{ raise_exception('no ' + 'way') }}", "the template refuses this chat: no way"},
        {"{% if 1 %}", "template line 1 column 11: expected {% elif %}, found the end"},
        {"{{ 1.5 }}", "decimal fractions are not supported"},
        {"{{ 'a' | tojson(indent=4) }}", "arguments by name are not supported"},
        {"{{ messages }}", "use tojson"},
        {"{{ @ }}", "byte 0x40 is no part of an expression"},
        {"{{ '\\x00' }}", "an escape that is no character"},
        {"\xff", "not UTF-8 at byte 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        arena *a = arena_create(4096);
        error err = {0};
        char *text;
        assert_int_equal(render(cases[i].source, a, &text, &err), ST_BAD_INPUT);
        if (!strstr(err.text, cases[i].expected)) fail_msg("%s: %s", cases[i].source, err.text);
        arena_destroy(a);
    }
}

static void refused(const char *source, const char *why) {
    arena *a = arena_create(4096);
    error err = {0};
    char *text;
    int64_t live = mem_live();
    assert_int_equal(render(source, a, &text, &err), ST_BAD_INPUT);
    if (!strstr(err.text, why)) fail_msg("%.60s: %s", source, err.text);
    assert_int_equal(mem_live(), live);
    arena_destroy(a);
}

/* before, part many times, middle, closing as often, after. */
static void repeated(const char *before, const char *part, const char *middle, const char *closing,
                     const char *after, int times, const char *why) {
    size_t bytes = strlen(before) + strlen(middle) + strlen(after) +
                   (strlen(part) + strlen(closing)) * (size_t)times;
    char *source = test_malloc(bytes + 1), *end = stpcpy(source, before);
    for (int i = 0; i < times; i++) end = stpcpy(end, part);
    end = stpcpy(end, middle);
    for (int i = 0; i < times; i++) end = stpcpy(end, closing);
    stpcpy(end, after);
    refused(source, why);
    test_free(source);
}

static void test_bounds(void **state) {
    (void)state;
    refused("{% set l = range(4000) %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
            "steps");
    refused("{% for a in range(999999999) %}{% endfor %}", "range() of more than");
    refused("{% for a in range(100000) %}{{ '0123456789012345678901234567890123456789012345678901' "
            "}}{% endfor %}",
            "a text of more than");
    refused("{% set n = namespace(x='0123456789') %}{% for i in range(99) %}{% set n.x = n.x + n.x "
            "%}{% endfor %}",
            "more than");
    refused("{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% "
            "endfor %}",
            "more than");
    refused("{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x] %}{% endfor "
            "%}{{ n.x | tojson }}",
            "deeper");
    refused("{% set n = namespace(x=[1], y=[1]) %}{% for i in range(99) %}{% set n.x = [n.x] %}{% "
            "set n.y = [n.y] %}"
            "{% endfor %}{{ n.x == n.y }}",
            "deeper");
    repeated("{{ ", "(", "1", ")", " }}", 100000, "nested deeper");
    repeated("{{ ", "[", "1", "]", " }}", 100000, "nested deeper");
    repeated("{{ ", "not ", "", "", "1 }}", 50000, "nested deeper");
    repeated("{{ ", "-", "", "", "1 }}", 50000, "nested deeper");
    repeated("{{ a", ".a", "", "", " }}", 50000, "nested deeper");
    repeated("{{ a", "|trim", "", "", " }}", 40000, "nested deeper");
    repeated("{{ a", " or a", "", "", " }}", 40000, "nested deeper");
    repeated("{{ a", " if a else a", "", "", " }}", 20000, "nested deeper");
    repeated("", "{% if 1 %}", "", "", "", 20000, "nested deeper");
    repeated("{{ ", "a", "", "", " }}", 300000, "at most 262144");
}

static void test_long_chains_are_flat(void **state) {
    (void)state;
    arena *a = arena_create(4096);
    error err = {0};
    char source[16 << 10] = "{{ ''", *text;
    for (int i = 0; i < 1000; i++) strcat(source, " + 'x'");
    strcat(source, " }}");
    if (render(source, a, &text, &err)) fail_msg("%s", err.text);
    assert_int_equal(strlen(text), 1000);
    arena_destroy(a);
}

/* Uses tags, scopes, filters and lists, so that there is much to fail. */
static const char BUSY[] =
    "{% set n = namespace(c=0) %}{% for m in messages[::-1] if m.content %}{% set n.c = n.c + 1 %}"
    "{{ (m.role | upper ~ loop.index) + m['content'].replace('e', 'EE') }}{{ m | tojson }}{{ "
    "'a,b'.split(',') | join('-') }}"
    "{% endfor %}{{ n.c }}{{ {'a': [1, 2]}.items() | length }}";

static void test_every_allocation_may_fail(void **state) {
    (void)state;
    for (int64_t n = 1;; n++) {
        int64_t live = mem_live();
        error err = {0};
        char *text = NULL;
        mem_fail_at(n);
        arena *a = arena_create(64);
        status s = a ? render(BUSY, a, &text, &err) : ST_NO_MEMORY;
        mem_fail_at(0);
        if (s == ST_OK)
            assert_string_equal(text,
                                "USER1Hi{\"role\": \"user\", \"content\": \"Hi\"}a-bSYSTEM2BEE"
                                " briEEf.{\"role\": \"system\", \"content\": \"Be brief.\"}a-b21");
        arena_destroy(a);
        assert_int_equal(mem_live(), live);
        if (s == ST_OK) break;
        assert_int_equal(s, ST_NO_MEMORY);
        assert_true(n < 1000);
    }
}

/* NULL when every rendering came out right, the template otherwise. */
static void *render_often(void *template) {
    for (int i = 0; i < 200; i++) {
        arena *a = arena_create(1024);
        char *text = NULL;
        if (eng_template_render(template, CHAT, 2, true, "", "", a, &text, NULL)) return template;
        bool equal = !strncmp(text, "USER1Hi", 7);
        arena_destroy(a);
        if (!equal) return template;
    }
    return NULL;
}

static void test_threads_share_one(void **state) {
    (void)state;
    eng_template *t;
    pthread_t threads[4];
    assert_int_equal(eng_template_open(BUSY, strlen(BUSY), &t, NULL), ST_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, render_often, t), 0);
    for (int i = 0; i < 4; i++) {
        void *failure;
        pthread_join(threads[i], &failure);
        assert_null(failure);
    }
    eng_template_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_to_jinja),
        cmocka_unit_test(test_errors_say_where),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_long_chains_are_flat),
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_threads_share_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
