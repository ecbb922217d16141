/* utf8.c -- what may stand where in UTF-8 (The Unicode Standard, table 3-7).
 *
 *   lead    second    then      excludes
 *   00..7F
 *   C2..DF  80..BF              C0, C1: longer than needed
 *   E0      A0..BF    80..BF    longer than needed
 *   ED      80..9F    80..BF    surrogates
 *   E1..EF  80..BF    80..BF
 *   F0      90..BF    80..BF*2  longer than needed
 *   F4      80..8F    80..BF*2  above U+10FFFF
 *   F1..F3  80..BF    80..BF*2
 *
 * Asked byte by byte, so that the check of a text and the cutting of a stream follow one table, and
 * a broken character ends where Unicode says it does (the maximal subpart of chapter 3.9). */
#include "engine/utf8.h"
#include <stdint.h>
#include <string.h>

int eng_utf8_length(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return 0;
    return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

bool eng_utf8_fits(const unsigned char *held, int count, unsigned char byte) {
    if (count == 0) return eng_utf8_length(byte) > 0;
    unsigned char low = 0x80, high = 0xBF;
    if (count == 1) {
        switch (held[0]) {
        case 0xE0:
            low = 0xA0;
            break;
        case 0xED:
            high = 0x9F;
            break;
        case 0xF0:
            low = 0x90;
            break;
        case 0xF4:
            high = 0x8F;
            break;
        default:
            break;
        }
    }
    return byte >= low && byte <= high;
}

/* How many bytes from text on are ASCII, found eight at a time. */
static size_t ascii_run(const char *text, size_t bytes) {
    size_t n = 0;
    for (uint64_t word; n + 8 <= bytes; n += 8) {
        memcpy(&word, text + n, 8);
        if (word & 0x8080808080808080u) break;
    }
    while (n < bytes && (unsigned char)text[n] < 0x80) n++;
    return n;
}

size_t eng_utf8_check(const char *text, size_t bytes) {
    const unsigned char *p = (const unsigned char *)text;
    for (size_t at = 0;;) {
        at += ascii_run(text + at, bytes - at);
        if (at == bytes) return bytes;
        int length = eng_utf8_length(p[at]);
        if (!length || bytes - at < (size_t)length) return at;
        for (int i = 1; i < length; i++)
            if (!eng_utf8_fits(p + at, i, p[at + i])) return at;
        at += (size_t)length;
    }
}
