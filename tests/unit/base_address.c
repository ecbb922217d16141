/* base_address.c -- what is HOST:PORT and what is not. */
#include "base/base.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static void addresses(void **state) {
    (void)state;
    static const struct { const char *text, *host, *port; } good[] = {
        {"localhost:80", "localhost", "80"}, {"127.0.0.1:0", "127.0.0.1", "0"}, {"[::1]:65535", "::1", "65535"}};
    static const char *const bad[] = {"", ":", ":1", "host", "host:", "host:65536", "host:-1", "host:1x", "::1:80", "[::1]",
                                      "[::1:80", "[]:1", "host:99999999999"};
    char host[20];
    const char *port;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(address_split(good[i].text, host, sizeof host, &port));
        assert_string_equal(host, good[i].host);
        assert_string_equal(port, good[i].port);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (address_split(bad[i], host, sizeof host, &port)) fail_msg("'%s' was taken", bad[i]);
    assert_false(address_split("12345678901234567890:1", host, sizeof host, &port));
    assert_true(address_split("1234567890123456789:1", host, sizeof host, &port));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(addresses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
