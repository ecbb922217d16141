/* pretok.h -- cuts a text into the words that BPE merges within. Internal to engine/.
 *
 * Which cut a model was trained with is named by the file (tokenizer.ggml.pre); each name is one
 * row with one regular expression. A pretok is read-only after open and may be shared; a cut
 * belongs to one thread. */
#ifndef BATON_ENGINE_PRETOK_H
#define BATON_ENGINE_PRETOK_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct eng_pretok eng_pretok;

/* Text is taken as UTF-8 without a check. ST_UNSUPPORTED: no row has that name; the known are
 * listed. */
status eng_pretok_open(const char *name, size_t bytes, eng_pretok **out, error *err);
void eng_pretok_close(eng_pretok *p);
/* A word that is a token by itself is that token, whatever the merges would make of it. */
bool eng_pretok_keeps_words(const eng_pretok *p);
/* Whether a file that does not say so wants BOS in front. */
bool eng_pretok_adds_bos(const eng_pretok *p);

typedef struct eng_cut {
    const eng_pretok *pretok;
    void *match; /* the matcher's own */
    const char *text;
    size_t bytes, at;
} eng_cut;

/* Readies a cut; ST_NO_MEMORY. Then, text by text: eng_cut_begin(), eng_cut_next() until no word.
 */
status eng_cut_open(const eng_pretok *p, eng_cut *cut);
void eng_cut_close(eng_cut *cut);
void eng_cut_begin(eng_cut *cut, const char *text, size_t bytes);
/* The words in order; joined they are the text. *bytes 0: no more. ST_BAD_INPUT: the matcher's
 * bound on steps was met. */
status eng_cut_next(eng_cut *cut, const char **word, size_t *bytes, error *err);

#ifdef __cplusplus
}
#endif
#endif
