/* base_log.c -- tests base/log.c and base/clock.c: a line's form, levels, and what cannot be written. */
#include "base/base.h"
#include <fcntl.h>
#include <regex.h>
#include <setjmp.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static char seen[4096];
static int saved = -1, ends[2];

static void capture_begin(void) {
    assert_int_equal(pipe(ends), 0);
    saved = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
}

static const char *capture_end(void) {
    dup2(saved, STDERR_FILENO);
    close(saved);
    ssize_t bytes = read(ends[0], seen, sizeof seen - 1);
    seen[bytes > 0 ? bytes : 0] = 0;
    close(ends[0]);
    return seen;
}

static void expect_match(const char *text, const char *pattern) {
    regex_t regex;
    assert_int_equal(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0);
    int rc = regexec(&regex, text, 0, NULL, 0);
    regfree(&regex);
    assert_int_equal(rc, 0);
}

static void a_line_has_its_form(void **state) {
    (void)state;
    log_setup("decode-1", LOG_INFO);
    capture_begin();
    log_write(LOG_INFO, "r7", "request.placed", "node=%s pages=%d", "d1", 3);
    log_write(LOG_DEBUG, "r7", "request.step", "not written");
    log_write(LOG_ERROR, NULL, "node.stops", "why=none");
    expect_match(capture_end(),
                 "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z INFO decode-1 "
                 "req=r7 request\\.placed node=d1 pages=3\n"
                 "[0-9TZ:.-]+ ERROR decode-1 node\\.stops why=none\n$");
}

static void one_event_is_one_line(void **state) {
    (void)state;
    char big[3000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    capture_begin();
    log_write(LOG_WARN, NULL, "peer.said", "text=%s", "a\nb\x1b[31m");
    log_write(LOG_WARN, NULL, "peer.said", "text=%s", big);
    const char *text = capture_end();
    int lines = 0;
    for (const char *c = text; *c; c++) lines += *c == '\n';
    assert_int_equal(lines, 2);
    assert_null(strchr(text, '\x1b'));
    assert_true(strlen(text) < 2200);
    assert_int_equal(text[strlen(text) - 1], '\n');
}

static void what_cannot_be_written_is_counted(void **state) {
    (void)state;
    int64_t before = log_dropped();
    saved = dup(STDERR_FILENO);
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    dup2(full, STDERR_FILENO);
    log_write(LOG_ERROR, NULL, "disk.full", "x=1");
    dup2(saved, STDERR_FILENO);
    close(saved), close(full);
    assert_int_equal(log_dropped() - before, 1);
}

static void levels_by_name(void **state) {
    (void)state;
    log_level level = LOG_ERROR;
    assert_true(log_level_parse("debug", &level));
    assert_int_equal(level, LOG_DEBUG);
    assert_false(log_level_parse("Debug", &level));
    assert_false(log_level_parse("", &level));
    assert_int_equal(level, LOG_DEBUG);
}

static void clock_goes_forward(void **state) {
    (void)state;
    int64_t ms = clock_now_ms(), us = clock_now_us();
    usleep(2000);
    assert_true(clock_now_us() - us >= 2000);
    assert_true(clock_now_ms() > ms);
    assert_true(us / 1000 - ms <= 100 && us / 1000 >= ms);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_has_its_form),
        cmocka_unit_test(one_event_is_one_line),
        cmocka_unit_test(what_cannot_be_written_is_counted),
        cmocka_unit_test(levels_by_name),
        cmocka_unit_test(clock_goes_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
