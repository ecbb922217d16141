/* vocab.h -- what reading a vocabulary (vocab_read.c) and using it (vocab.c) share. Internal to
 * engine/. */
#ifndef BATON_ENGINE_VOCAB_H
#define BATON_ENGINE_VOCAB_H

#include "engine/engine.h"
#include "engine/pretok.h"

#ifdef __cplusplus
extern "C" {
#endif

/* tokenizer.ggml.token_type, the file's numbers. */
enum {
    ENG_TOKEN_NORMAL = 1,
    ENG_TOKEN_CONTROL = 3,
    ENG_TOKEN_USER = 4,
    ENG_TOKEN_TYPES = 6,
    ENG_TOKEN_TYPE = 7, /* mask of the type in flags */
    ENG_TOKEN_STOP = 8, /* ends a turn or the text */
};

/* A merge: open addressing, empty where rank is 0 (so ranks start at 1). */
typedef struct eng_vocab_pair {
    int32_t left, right;
    uint32_t rank;
    int32_t result;
} eng_vocab_pair;

struct eng_vocab {
    int32_t count, bos, eos;
    bool adds_bos;
    char *bytes;             /* all tokens, end to end */
    uint32_t *start;         /* count + 1 offsets into bytes */
    uint8_t *flags;          /* type and ENG_TOKEN_STOP */
    size_t bytes_max;        /* of one token */
    int32_t byte_token[256]; /* -1: none */
    eng_vocab_pair *pairs;
    uint32_t pair_mask;
    int32_t *words; /* token by bytes, open addressing, -1: empty */
    uint32_t word_mask;
    int32_t *specials; /* sorted by bytes; those that begin with b: first[b] .. first[b+1] */
    int32_t first[257];
    eng_pretok *pretok;
};

/* Fills *v, which is zeroed. On failure v holds what was made so far: eng_vocab_close() frees it.
 */
status eng_vocab_read(const eng_gguf *g, eng_vocab *v, error *err);

/* The slot of words[] that holds text, or the empty one where it belongs. */
uint32_t eng_vocab_word_slot(const eng_vocab *v, const char *text, size_t bytes);
/* The slot of pairs[] of that merge, or the empty one (rank 0) where it belongs. */
uint32_t eng_vocab_pair_slot(const eng_vocab *v, int32_t left, int32_t right);

#ifdef __cplusplus
}
#endif
#endif
