/* utf8.h -- well-formed UTF-8, a byte at a time (The Unicode Standard, table 3-7). Internal to
 * engine/. */
#ifndef BATON_ENGINE_UTF8_H
#define BATON_ENGINE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of the character that lead begins; 0: no character begins with it. */
int eng_utf8_length(unsigned char lead);
/* Whether byte may follow held[0..count), the beginning of a character. count 0: may it begin one.
 */
bool eng_utf8_fits(const unsigned char *held, int count, unsigned char byte);
/* Offset of the first byte that is no part of well-formed UTF-8; bytes when all of it is. */
size_t eng_utf8_check(const char *text, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
