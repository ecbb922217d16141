/* batch.c -- forms a step's batch: which sequence gets how many rows.
 *
 *   1. Decode entries first, one row each: someone reads along. When there are more than fit, those go first
 *      that had no row for the longest time, ties by age; so every one comes round.
 *   2. Then the rows proposed by speculation, in order of age, from what decode rows may still take.
 *   3. Then prefill chunks in order of age (first come, first served), each at most chunk_tokens, until
 *      step_tokens_max is full.
 *   4. While any prompt wants rows, decode entries leave it room for one chunk (at most half of the step) and
 *      proposed rows leave it the logits of one prompt: a crowd of decoders slows a prompt down and never
 *      starves it (but where a step has one row only).
 *   5. A row that samples costs one of logits_max. A chunk that would reach its prompt's end when too few are
 *      left stops one row short of it: its last row then stands in line as a decode row.
 *
 * Which rows come together never changes a result (the kernels are batch-invariant), so this file is
 * free to choose for speed and fairness alone. */
#include "node/batch.h"
#include <assert.h>

static int32_t min32(int32_t a, int32_t b) { return a < b ? a : b; }

/* The decode entry without a share that waited longest; -1: none is left. */
static int32_t longest_waiting(const node_want *wants, int32_t count, const node_share *shares) {
    int32_t best = -1;
    for (int32_t i = 0; i < count; i++) {
        if (!wants[i].decode || shares[i].rows) continue;
        if (best < 0 || wants[i].last_step < wants[best].last_step) best = i;
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
        shares[longest_waiting(wants, count, shares)] = (node_share){.rows = 1, .logits = 1};
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

int32_t node_batch_form(const node_budget *b, const node_want *wants, int32_t count, node_share *shares) {
    assert(b->step_tokens_max > 0 && b->chunk_tokens > 0 && b->logits_max > 0);
    int32_t decoding = 0;
    for (int32_t i = 0; i < count; i++) {
        assert(wants[i].rows > 0 && wants[i].logits > 0 && (!wants[i].decode || wants[i].logits == wants[i].rows));
        decoding += wants[i].decode;
        shares[i] = (node_share){0};
    }
    bool prompts = decoding < count;
    int32_t room = b->step_tokens_max - (prompts ? min32(b->chunk_tokens, b->step_tokens_max / 2) : 0);
    int32_t rows = share_decode(wants, count, decoding, min32(room, b->logits_max), shares);
    rows += share_proposed(wants, count, min32(room, b->logits_max - prompts) - rows, shares);
    int32_t logits = b->logits_max - rows;
    for (int32_t i = 0; i < count && rows < b->step_tokens_max; i++) {
        if (wants[i].decode) continue;
        int32_t chunk = min32(min32(wants[i].rows, b->chunk_tokens), b->step_tokens_max - rows);
        bool last = chunk == wants[i].rows;
        if (last && logits < wants[i].logits) chunk--, last = false;
        shares[i] = (node_share){.rows = chunk, .logits = last ? wants[i].logits : 0};
        logits -= shares[i].logits;
        rows += chunk;
    }
    return rows;
}
