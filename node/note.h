/* note.h -- what rank 0 tells the other ranks of a node about transfers and swapped pages, and what they answer when asked.
 * Travels by eng_tell() and eng_ask() between processes of one build. Internal to node/. */
#ifndef BATON_NODE_NOTE_H
#define BATON_NODE_NOTE_H

#include "node/rank.h"

typedef enum node_note_kind {
    NODE_NOTE_PROMISE = 1,
    NODE_NOTE_REVOKE,            /* of a ticket */
    NODE_NOTE_SEND,
    NODE_NOTE_PUSH,
    NODE_NOTE_END,
    NODE_NOTE_ABORT,
    NODE_NOTE_SWAP_OUT,          /* blocks: those of the pages, then as many of host memory */
    NODE_NOTE_SWAP_IN,
} node_note_kind;

typedef struct node_note {
    int32_t kind, blocks_count;
    uint64_t transfer, ticket;
    uint32_t epoch, lease_ms;
    int32_t token_first, token_end;          /* PROMISE; PUSH; SWAP_OUT, SWAP_IN */
    int32_t type;                            /* SEND */
    int32_t sealed;                          /* PROMISE, SEND: */
    unsigned char key[KVT_KEY_BYTES];
    char id[NODE_ID_MAX];
    char addresses[NODE_ADDRESSES_MAX];      /* SEND */
    int32_t blocks[];
} node_note;

enum { NODE_ANSWER_HEARD = 32 };

typedef struct node_answer {
    int32_t count;               /* of heard; the rest comes the next time */
    node_heard heard[NODE_ANSWER_HEARD];
    node_rank_figures figures;
} node_answer;

#endif
