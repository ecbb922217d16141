/* batch.c -- forms a step's batch: which sequence gets how many rows.
 *
 * Decode first (continuous batching with chunked prefill: Agrawal et al., "Sarathi-Serve", OSDI 2024; Holmes et al.,
 * "DeepSpeed-FastGen", 2024, call it split and fuse):
 *   1. Decode entries first, one row each: someone reads along. When there are more than fit, those of the lowest
 *      level go first, then those that had no row for the longest time; so every one comes round.
 *   2. Then the rows proposed by speculation, in order, from what decode rows may still take.
 *   3. Then prefill chunks, together at most prefill_tokens and what step_tokens_max has left. A prompt that is alone
 *      takes all of it. Where several want rows each takes at most a quarter (or a tile), in order, so that a short
 *      one does not wait for a long one; what is left then goes to the first of them.
 *   4. While any prompt wants rows, decode entries leave prompts room (at most half of the step, and a row in any case)
 *      and proposed rows leave them the logits of one; so do decode entries where a prompt wants those of every row. A
 *      crowd of decoders slows a prompt down and never starves it (but where a step has one row or logits of one only).
 * In order (first come, first served): each takes as many rows as it wants and the step has left. A long prompt holds
 * up everybody behind it.
 * Both: a row that samples costs one of logits_max. A chunk that would reach its prompt's end when too few are left
 * stops one row short of it: its last row then stands in line as a decode row.
 *
 * Which rows come together never changes a result (the kernels are batch-invariant), so this file is
 * free to choose for speed and fairness alone. */
#include "node/batch.h"
#include "base/base.h"
#include <assert.h>

static bool wants_all(const node_want *w) { return w->logits == w->rows; }

/* Up to `most` rows more of a prompt; returns how many. */
static int32_t extend_chunk(const node_want *w, node_share *s, int32_t most, int32_t *logits) {
    int32_t more = min32(w->rows - s->rows, most), seen = 0;
    bool last = more > 0 && s->rows + more == w->rows;
    if (wants_all(w)) seen = more = min32(more, *logits);
    else if (last && *logits > 0) seen = 1;
    else if (last) more--;
    s->rows += more;
    s->logits += seen;
    *logits -= seen;
    return more;
}

/* ---- decode first ----------------------------------------------------------------------------------- */

static bool goes_before(const node_want *a, const node_want *b) {
    return a->level != b->level ? a->level < b->level : a->last_step < b->last_step;
}

/* The decode entry without a share whose turn it is; -1: none is left. */
static int32_t next_decode(const node_want *wants, int32_t count, const node_share *shares) {
    int32_t best = -1;
    for (int32_t i = 0; i < count; i++) {
        if (!wants[i].decode || shares[i].rows) continue;
        if (best < 0 || goes_before(&wants[i], &wants[best])) best = i;
    }
    return best;
}

static int32_t share_decode(const node_want *wants, int32_t count, int32_t decoding, int32_t budget,
                            node_share *shares) {
    int32_t given = 0;
    if (decoding <= budget) {                              /* the usual case: all of them, no choice */
        for (int32_t i = 0; i < count; i++)
            if (wants[i].decode) shares[i] = (node_share){.rows = 1, .logits = 1};
        return decoding;
    }
    for (; given < budget; given++)
        shares[next_decode(wants, count, shares)] = (node_share){.rows = 1, .logits = 1};
    return given;
}

static int32_t share_proposed(const node_want *wants, int32_t count, int32_t budget, node_share *shares) {
    int32_t given = 0;
    for (int32_t i = 0; i < count && given < budget; i++) {
        if (!shares[i].rows) continue;
        int32_t more = min32(wants[i].rows - 1, budget - given);
        shares[i].rows += more;
        shares[i].logits += more;
        given += more;
    }
    return given;
}

/* rows: of all prompts together. */
static int32_t share_chunks(const node_budget *b, const node_want *wants, int32_t count, int32_t prompts, int32_t rows,
                            int32_t logits, node_share *shares) {
    int32_t given = 0, quantum = prompts > 1 ? max32(rows / 4, NODE_TILE_ROWS) : rows;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t i = 0; i < count && given < rows; i++) {
            if (wants[i].decode) continue;
            int32_t most = min32(b->chunk_tokens - shares[i].rows, rows - given);
            given += extend_chunk(&wants[i], &shares[i], pass ? most : min32(most, quantum), &logits);
        }
    return given;
}

int32_t node_batch_decode_first(const node_budget *b, const node_want *wants, int32_t count, node_share *shares) {
    assert(b->step_tokens_max > 0 && b->chunk_tokens > 0 && b->logits_max > 0 && b->prefill_tokens > 0);
    int32_t decoding = 0, kept = 0;
    for (int32_t i = 0; i < count; i++) {
        assert(wants[i].rows > 0 && (wants[i].logits == 1 || wants_all(&wants[i])) && (!wants[i].decode || wants_all(&wants[i])));
        decoding += wants[i].decode;
        if (!wants[i].decode && wants_all(&wants[i]) && b->logits_max > 1) kept = 1;
        shares[i] = (node_share){0};
    }
    int32_t prompts = count - decoding;
    int32_t chunks = min32(b->chunk_tokens, b->prefill_tokens);
    int32_t room = b->step_tokens_max - (prompts ? min32(chunks, b->step_tokens_max / 2) : 0);
    int32_t rows = share_decode(wants, count, decoding, min32(room, b->logits_max - kept), shares);
    rows += share_proposed(wants, count, min32(room, b->logits_max - (prompts > 0)) - rows, shares);
    int32_t left = b->step_tokens_max - rows;
    if (decoding) left = min32(left, b->prefill_tokens);
    return rows + share_chunks(b, wants, count, prompts, left, b->logits_max - rows, shares);
}

/* ---- in order --------------------------------------------------------------------------------------- */

int32_t node_batch_in_order(const node_budget *b, const node_want *wants, int32_t count, node_share *shares) {
    int32_t rows = 0, logits = b->logits_max;
    for (int32_t i = 0; i < count; i++) {
        int32_t left = b->step_tokens_max - rows;
        shares[i] = (node_share){0};
        if (wants[i].decode) {
            shares[i].rows = shares[i].logits = min32(wants[i].rows, min32(left, logits));
            logits -= shares[i].logits;
        } else {
            extend_chunk(&wants[i], &shares[i], min32(left, b->chunk_tokens), &logits);
        }
        rows += shares[i].rows;
    }
    return rows;
}
