/* detok.c -- tokens back to text, as they come.
 *
 * A token's bytes may end inside a character. The beginning is held until the next token completes
 * it:
 *
 *   nothing held -> held       [eng_detok_push]   the bytes so far may still become a character
 *   held -> nothing held       [eng_detok_push]   complete: written; or impossible: U+FFFD is
 *   held -> nothing held       [eng_detok_end]    the text ends: U+FFFD
 *
 * One U+FFFD stands for one maximal subpart, as Unicode 3.9 recommends and as browsers, Python and
 * Rust do; so the pieces joined are the same text as all bytes decoded at once. */
#include "engine/engine.h"
#include "engine/utf8.h"
#include <string.h>

static const char REPLACEMENT[3] = "\xEF\xBF\xBD"; /* U+FFFD, no NUL */

static char *replacement(char *out) {
    memcpy(out, REPLACEMENT, sizeof REPLACEMENT);
    return out + sizeof REPLACEMENT;
}

static char *byte_push(eng_detok *d, unsigned char byte, char *out) {
    if (d->held_count && !eng_utf8_fits(d->held, d->held_count, byte)) {
        d->held_count = 0;
        out = replacement(out);
    }
    if (!eng_utf8_fits(d->held, d->held_count, byte)) return replacement(out);
    d->held[d->held_count++] = byte;
    if (d->held_count < eng_utf8_length(d->held[0])) return out;
    memcpy(out, d->held, (size_t)d->held_count);
    out += d->held_count;
    d->held_count = 0;
    return out;
}

size_t eng_detok_push(eng_detok *d, const eng_vocab *v, int32_t token, bool special, char *out) {
    if (token < 0 || token >= eng_vocab_count(v)) {
        size_t ended = eng_detok_end(d, out);
        return (size_t)(replacement(out + ended) - out);
    }
    if (eng_vocab_is_control(v, token) && !special) return 0;
    size_t bytes;
    const char *text = eng_vocab_bytes(v, token, &bytes);
    char *end = out;
    for (size_t i = 0; i < bytes; i++) end = byte_push(d, (unsigned char)text[i], end);
    return (size_t)(end - out);
}

size_t eng_detok_end(eng_detok *d, char *out) {
    if (!d->held_count) return 0;
    d->held_count = 0;
    return (size_t)(replacement(out) - out);
}
