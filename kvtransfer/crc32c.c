/* crc32c.c -- CRC32C (Castagnoli, reflected polynomial 0x82f63b78; RFC 3720 appendix B.4).
 *
 * Two ways to the same number, chosen once at run time:
 *   table      eight bytes a step through eight tables (Kounavis and Berry, "slicing-by-8", 2005)
 *   crc32 op   SSE4.2; the instruction takes 3 cycles but may start every cycle, so three lanes of
 *              LANE bytes run side by side. A lane's CRC is moved over the LANE bytes behind it with
 *              one more table, the operator "append LANE zero bytes", which is linear over GF(2). */
#include "kvtransfer/internal.h"
#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

enum { LANE = 1024 };

static uint32_t slice[8][256];   /* slice[k][b]: byte b followed by k zero bytes */
static uint32_t append[4][256];  /* append[k][b]: byte k of a CRC is b, moved over LANE zero bytes */
static uint32_t (*update)(uint32_t crc, const unsigned char *p, size_t bytes);
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint64_t load64(const unsigned char *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static uint32_t update_table(uint32_t crc, const unsigned char *p, size_t bytes) {
    for (; bytes >= 8; p += 8, bytes -= 8) {
        uint32_t lo = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                             (uint32_t)p[3] << 24);
        crc = slice[7][lo & 255] ^ slice[6][lo >> 8 & 255] ^ slice[5][lo >> 16 & 255] ^
              slice[4][lo >> 24] ^ slice[3][p[4]] ^ slice[2][p[5]] ^ slice[1][p[6]] ^ slice[0][p[7]];
    }
    for (; bytes; bytes--) crc = slice[0][(crc ^ *p++) & 255] ^ crc >> 8;
    return crc;
}

#if defined(__x86_64__)
static uint32_t over_lane(uint32_t crc) {
    return append[0][crc & 255] ^ append[1][crc >> 8 & 255] ^ append[2][crc >> 16 & 255] ^
           append[3][crc >> 24];
}

__attribute__((target("sse4.2"))) static uint32_t update_sse42(uint32_t crc, const unsigned char *p,
                                                               size_t bytes) {
    uint64_t a = crc;
    for (; bytes >= 3 * LANE; p += 3 * LANE, bytes -= 3 * LANE) {
        uint64_t b = 0, c = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            a = _mm_crc32_u64(a, load64(p + i));
            b = _mm_crc32_u64(b, load64(p + LANE + i));
            c = _mm_crc32_u64(c, load64(p + 2 * LANE + i));
        }
        a = over_lane(over_lane((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
    }
    for (; bytes >= 8; p += 8, bytes -= 8) a = _mm_crc32_u64(a, load64(p));
    for (; bytes; bytes--) a = _mm_crc32_u8((uint32_t)a, *p++);
    return (uint32_t)a;
}
#endif

static void setup(void) {
    static const unsigned char zeros[LANE];
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int i = 0; i < 8; i++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
        slice[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++)
            slice[k][b] = slice[0][slice[k - 1][b] & 255] ^ slice[k - 1][b] >> 8;
    for (int k = 0; k < 4; k++)
        for (uint32_t b = 0; b < 256; b++) append[k][b] = update_table(b << (8 * k), zeros, LANE);
    update = update_table;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) update = update_sse42;
#endif
}

uint32_t kvt_crc32c(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&once, setup);
    return ~update(~crc, data, bytes);
}

uint32_t kvt_crc32c_table(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&once, setup);
    return ~update_table(~crc, data, bytes);
}
