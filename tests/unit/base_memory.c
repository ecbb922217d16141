/* base_memory.c -- tests base/memory.c: the failing N-th allocation, the counts, the arena. */
#include "base/base.h"
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

static void nth_allocation_fails_once(void **state) {
    (void)state;
    int64_t live = mem_live();
    mem_fail_at(3);
    void *a = mem_alloc(8), *b = mem_zalloc(2, 4);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(mem_realloc(a, 64));                       /* a is still ours */
    void *c = mem_strdup("after");
    assert_string_equal(c, "after");
    assert_int_equal(mem_live() - live, 3);
    mem_fail_at(1);
    assert_null(mem_strdup("x"));
    mem_fail_at(0);
    mem_free(a), mem_free(b), mem_free(c), mem_free(NULL);
    assert_int_equal(mem_live(), live);
}

static void sizes_at_the_edges(void **state) {
    (void)state;
    volatile size_t huge = SIZE_MAX;                       /* not for the compiler to judge */
    assert_null(mem_zalloc(huge, 2));
    void *nothing = mem_alloc(0), *grown = mem_realloc(NULL, 4);
    assert_non_null(nothing);
    assert_non_null(grown);
    int64_t count = mem_count();
    assert_non_null(grown = mem_realloc(grown, 4096));
    assert_int_equal(mem_count(), count);                  /* the same one, longer */
    mem_free(nothing), mem_free(grown);
}

static void arena_pieces(void **state) {
    (void)state;
    int64_t live = mem_live();
    arena *a = arena_create(256);
    unsigned char *before = NULL;
    for (size_t bytes = 1; bytes < 2000; bytes += 37) {
        unsigned char *p = arena_alloc(a, bytes);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < bytes; i++) assert_int_equal(p[i], 0);
        memset(p, 0xFF, bytes);
        assert_ptr_not_equal(p, before);
        before = p;
    }
    char *copy = arena_strndup(a, "hello, all", 5);
    assert_string_equal(copy, "hello");
    assert_string_equal(arena_strndup(a, NULL, 0), "");
    assert_null(arena_alloc(a, SIZE_MAX));
    assert_null(arena_strndup(a, "x", SIZE_MAX));
    arena_destroy(a);
    arena_destroy(NULL);
    assert_int_equal(mem_live(), live);
}

static void arena_survives_no_memory(void **state) {
    (void)state;
    mem_fail_at(1);
    assert_null(arena_create(64));
    arena *a = arena_create(64);
    char *kept = arena_strndup(a, "kept", 4);
    mem_fail_at(1);
    assert_null(arena_alloc(a, 1000));
    mem_fail_at(0);
    assert_string_equal(kept, "kept");
    assert_non_null(arena_alloc(a, 1000));
    arena_destroy(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nth_allocation_fails_once),
        cmocka_unit_test(sizes_at_the_edges),
        cmocka_unit_test(arena_pieces),
        cmocka_unit_test(arena_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
