/* base_status.c -- tests base/status.c: the list's names, texts and gRPC codes, and error_set. */
#include "base/base.h"
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

static void rows_agree(void **state) {
    (void)state;
    for (int s = 0; s < ST_COUNT; s++) {
        assert_int_equal(strncmp(status_name((status)s), "ST_", 3), 0);
        assert_true(strlen(status_text((status)s)) > 1);
        int code = status_to_grpc((status)s);
        assert_in_range(code, 0, 16);
        assert_int_equal(status_to_grpc(status_from_grpc(code)), code);
    }
    assert_string_equal(status_name(ST_PEER_STALE), "ST_PEER_STALE");
    assert_string_equal(status_text(ST_PEER_STALE), "stale epoch or ticket");
    assert_int_equal(status_to_grpc(ST_AGAIN), 8);
    assert_int_equal(status_from_grpc(8), ST_AGAIN);       /* the first row, not ST_NO_MEMORY */
    assert_int_equal(status_from_grpc(13), ST_INTERNAL);   /* not ST_IO */
    assert_int_equal(status_from_grpc(2), ST_INTERNAL);
    assert_int_equal(status_from_grpc(-1), ST_INTERNAL);
}

static void unknown_values_are_safe(void **state) {
    (void)state;
    assert_string_equal(status_name((status)99), "ST_?");
    assert_non_null(status_text((status)99));
    assert_int_equal(status_to_grpc((status)99), 13);
}

static status passes(status s) {
    TRY(s);
    return ST_DENIED;
}

static void errors_are_filled_and_cut(void **state) {
    (void)state;
    error err;
    assert_int_equal(error_set(&err, ST_BAD_INPUT, "%s is %d", "top_k", -1), ST_BAD_INPUT);
    assert_int_equal(err.code, ST_BAD_INPUT);
    assert_string_equal(err.text, "top_k is -1");
    error_set(&err, ST_IO, "%0500d", 1);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    assert_int_equal(error_set(NULL, ST_IO, "x"), ST_IO);
    assert_int_equal(passes(ST_OK), ST_DENIED);
    assert_int_equal(passes(ST_AGAIN), ST_AGAIN);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_agree),
        cmocka_unit_test(unknown_values_are_safe),
        cmocka_unit_test(errors_are_filled_and_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
