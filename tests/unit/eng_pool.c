/* eng_pool.c -- tests engine/pool.c: states, pins, what can be had, and our own bugs caught. The
 * random test against a naive model, which covers eviction too, is in eng_prefix.c. */
#include "engine/engine.h"
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <fcntl.h>
#include <cmocka.h>

static void expect_counts(eng_pool *p, int32_t free, int32_t promised, int32_t landing,
                          int32_t running, int32_t sending, int32_t cached) {
    const int32_t expected[ENG_PAGE_STATES] = {free, promised, landing, running, sending, cached};
    int32_t counts[ENG_PAGE_STATES];
    eng_pool_counts(p, counts);
    assert_memory_equal(counts, expected, sizeof counts);
}

static void expect_held(eng_pool *p, int32_t held) {
    int32_t counts[ENG_PAGE_STATES];
    eng_pool_counts(p, counts);
    assert_int_equal(counts[ENG_PAGE_HELD], held);
}

static void pages_go_round(void **state) {
    (void)state;
    eng_pool *p = eng_pool_create(4, 2);
    const int32_t tokens[] = {1, 2, 3, 4, 5};
    int32_t pages[4];
    expect_counts(p, 4, 0, 0, 0, 0, 0);
    assert_int_equal(eng_pool_take(p, 3, ENG_PAGE_PROMISED, pages), ST_OK);
    expect_counts(p, 1, 3, 0, 0, 0, 0);
    assert_int_equal(eng_pool_take(p, 2, ENG_PAGE_RUNNING, pages + 2), ST_AGAIN);
    expect_counts(p, 1, 3, 0, 0, 0, 0);                    /* all or nothing */
    for (int i = 0; i < 3; i++) eng_pool_mark(p, pages[i], ENG_PAGE_LANDING);
    expect_counts(p, 1, 0, 3, 0, 0, 0);
    for (int i = 0; i < 3; i++) eng_pool_mark(p, pages[i], ENG_PAGE_RUNNING);
    eng_pool_publish(p, 7, tokens, 5, pages);              /* two full pages, the third is partial */
    eng_pool_share(p, pages[0]);
    assert_int_equal(eng_pool_pins(p, pages[0]), 2);
    eng_pool_mark(p, pages[1], ENG_PAGE_SENDING);
    eng_pool_mark(p, pages[1], ENG_PAGE_SENDING);          /* by each of its holders */
    expect_counts(p, 1, 0, 0, 2, 1, 0);
    eng_pool_mark(p, pages[1], ENG_PAGE_HELD);
    expect_held(p, 1);
    eng_pool_mark(p, pages[1], ENG_PAGE_SENDING);
    expect_counts(p, 1, 0, 0, 2, 1, 0);
    for (int i = 0; i < 3; i++) eng_pool_give(p, pages[i]);
    expect_counts(p, 2, 0, 0, 1, 0, 1);
    eng_pool_give(p, pages[0]);
    expect_counts(p, 2, 0, 0, 0, 0, 2);
    assert_int_equal(eng_pool_available(p), 4);
    assert_int_equal(eng_pool_take(p, 4, ENG_PAGE_RUNNING, pages), ST_OK);
    assert_int_equal(eng_pool_peek(p, 7, tokens, 5), 0);   /* evicted pages are found no more */
    for (int i = 0; i < 4; i++) eng_pool_give(p, pages[i]);
    expect_counts(p, 4, 0, 0, 0, 0, 0);
    assert_int_equal(eng_pool_total(p), 4);
    assert_int_equal(eng_pool_take(p, 0, ENG_PAGE_RUNNING, pages), ST_OK);
    eng_pool_destroy(p);
}

/* Leaves go first, the least recently given of them; a used parent outlives other chains. */
static void evicts_least_recently_used_leaf(void **state) {
    (void)state;
    eng_pool *p = eng_pool_create(4, 1);
    const int32_t chain[] = {1, 2}, other[] = {3}, another[] = {4};
    int32_t a[2], b, c, got;
    eng_pool_take(p, 2, ENG_PAGE_RUNNING, a);
    eng_pool_take(p, 1, ENG_PAGE_RUNNING, &b);
    eng_pool_take(p, 1, ENG_PAGE_RUNNING, &c);
    eng_pool_publish(p, 0, chain, 2, a);
    eng_pool_publish(p, 0, other, 1, &b);
    eng_pool_publish(p, 0, another, 1, &c);
    eng_pool_give(p, a[0]);
    eng_pool_give(p, a[1]);
    eng_pool_give(p, b);
    eng_pool_give(p, c);
    int32_t tail, shared, again;
    assert_int_equal(eng_pool_match(p, 0, chain, 1, &again, &tail, &shared), 1);
    eng_pool_give(p, again);                               /* the chain's first page: now the newest */
    eng_pool_take(p, 1, ENG_PAGE_RUNNING, &got);
    assert_int_equal(got, a[1]);
    eng_pool_take(p, 1, ENG_PAGE_RUNNING, &got);
    assert_int_equal(got, b);
    eng_pool_take(p, 1, ENG_PAGE_RUNNING, &got);
    assert_int_equal(got, c);
    eng_pool_take(p, 1, ENG_PAGE_RUNNING, &got);
    assert_int_equal(got, a[0]);
    for (int i = 0; i < 4; i++) eng_pool_give(p, i);
    eng_pool_destroy(p);
}

/* Another sequence computed the same first page and published only what follows it: the indexed first
 * page is cached above a pinned one, so it can not be had until that one is given. */
static void parent_of_pinned_page_stays(void **state) {
    (void)state;
    eng_pool *p = eng_pool_create(3, 1);
    const int32_t tokens[] = {1, 2};
    int32_t first, twin[2], got;
    eng_pool_take(p, 1, ENG_PAGE_RUNNING, &first);
    eng_pool_take(p, 2, ENG_PAGE_RUNNING, twin);
    eng_pool_publish(p, 0, tokens, 1, &first);
    eng_pool_publish(p, 0, tokens, 2, twin);
    eng_pool_give(p, first);
    expect_counts(p, 0, 0, 0, 2, 0, 1);
    assert_int_equal(eng_pool_available(p), 0);
    assert_int_equal(eng_pool_take(p, 1, ENG_PAGE_RUNNING, &got), ST_AGAIN);
    eng_pool_give(p, twin[1]);
    assert_int_equal(eng_pool_available(p), 2);
    eng_pool_give(p, twin[0]);                             /* stayed private: free */
    expect_counts(p, 1, 0, 0, 0, 0, 2);
    eng_pool_destroy(p);
}

static void no_memory_is_answered(void **state) {
    (void)state;
    int64_t live = mem_live();
    eng_pool *p = NULL;
    int nth = 0;
    while (!p) {
        assert_int_equal(mem_live(), live);
        mem_fail_at(++nth);
        p = eng_pool_create(8, 16);
        mem_fail_at(0);
    }
    assert_true(nth > 5);
    eng_pool_destroy(p);
    assert_int_equal(mem_live(), live);
}

/* After create nothing allocates. */
static void allocates_nothing_later(void **state) {
    (void)state;
    eng_pool *p = eng_pool_create(8, 2);
    int32_t tokens[16] = {0}, pages[8], tail, shared;
    int64_t count = mem_count();
    eng_pool_take(p, 8, ENG_PAGE_RUNNING, pages);
    eng_pool_publish(p, 1, tokens, 16, pages);
    for (int i = 0; i < 8; i++) eng_pool_give(p, pages[i]);
    assert_int_equal(eng_pool_match(p, 1, tokens, 16, pages, &tail, &shared), 8);
    for (int i = 0; i < 8; i++) eng_pool_give(p, pages[i]);
    eng_pool_clear_cache(p);
    assert_int_equal(mem_count(), count);
    eng_pool_destroy(p);
}

/* ---- our own bugs -------------------------------------------------------------------------------- */

static int32_t one;              /* a page with one pin */
static const int32_t some[] = {5};

static void give_twice(eng_pool *p) { eng_pool_give(p, one), eng_pool_give(p, one); }
static void give_free(eng_pool *p) { eng_pool_give(p, 1); }
static void give_outside(eng_pool *p) { eng_pool_give(p, 2); }
static void share_free(eng_pool *p) { eng_pool_share(p, 1); }
static void mark_free(eng_pool *p) { eng_pool_mark(p, 1, ENG_PAGE_RUNNING); }
static void mark_cached(eng_pool *p) { eng_pool_mark(p, one, ENG_PAGE_CACHED); }
static void mark_back(eng_pool *p) { eng_pool_mark(p, one, ENG_PAGE_PROMISED); }
static void take_cached(eng_pool *p) { int32_t x; eng_pool_take(p, 1, ENG_PAGE_CACHED, &x); }
static void destroy_pinned(eng_pool *p) { eng_pool_destroy(p); }
static void publish_unpinned(eng_pool *p) {
    eng_pool_give(p, one);
    eng_pool_publish(p, 0, some, 1, &one);
}
static void publish_promised(eng_pool *p) {
    int32_t page;
    eng_pool_take(p, 1, ENG_PAGE_PROMISED, &page);
    eng_pool_publish(p, 0, some, 1, &page);
}

static void bugs_are_asserted(void **state) {
    (void)state;
    void (*const bugs[])(eng_pool *) = {
        give_twice, give_free,   give_outside,   share_free,       mark_free,       mark_cached,
        mark_back,  take_cached, destroy_pinned, publish_unpinned, publish_promised};
    for (size_t i = 0; i < sizeof bugs / sizeof bugs[0]; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            signal(SIGABRT, SIG_DFL);
            dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), STDERR_FILENO);
            eng_pool *p = eng_pool_create(2, 1);
            eng_pool_take(p, 1, ENG_PAGE_RUNNING, &one);
            bugs[i](p);
            _exit(0);
        }
        int end;
        assert_int_equal(waitpid(child, &end, 0), child);
        assert_true(WIFSIGNALED(end) && WTERMSIG(end) == SIGABRT);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_go_round),
        cmocka_unit_test(evicts_least_recently_used_leaf),
        cmocka_unit_test(parent_of_pinned_page_stays),
        cmocka_unit_test(no_memory_is_answered),
        cmocka_unit_test(allocates_nothing_later),
        cmocka_unit_test(bugs_are_asserted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
