/* prefix.c -- a number for a prefix of tokens, by which a node names its cached pages to coordinators.
 *
 *   number of a page = mix(number of the page before it, XXH3 of its own tokens); before the first stands the salt
 *
 * Only the mix depends on the page before: a processor computes many pages' XXH3 at once, which makes it twice as
 * fast over a long prompt as one hash seeded by the other. Two prefixes may have one number. So it says where to
 * look, never what is there: a node compares tokens (engine/prefix.c). */
#include "base/base.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t prefix_number(uint64_t before, const int32_t *tokens, int32_t count) {
    uint64_t x = XXH3_64bits(tokens, (size_t)count * sizeof *tokens);
    x = (x ^ (before << 23 | before >> 41)) * 0x9E3779B97F4A7C15u;
    x ^= x >> 32;
    return x ? x : 1;
}
