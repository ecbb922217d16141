/* share.c -- which part of a model one rank of a tensor-parallel group has    (Megatron-LM, Shoeybi et al. 2019).
 *
 * Products whose outputs are split (q, k, v; gate, up; logits) are followed by one whose inputs are split the same
 * way (attn_out; down), so a block needs two sums over the ranks and nothing else.
 *
 *   heads    query heads, evenly; a kv head goes to each rank that has a query head of its group, so the ranks at a
 *            border may both have it (whole groups, where the kv heads divide by the ranks)
 *   FFN      evenly, in blocks of 32 columns
 *   logits   the vocabulary, in panels of 16
 *
 * Counts need not divide: 9 heads in 3 groups are 4 and 5 heads for two ranks, the middle kv head on both. Whole
 * groups would be 3 and 6: a third of the KV less on one rank, but the ranks meet between attention and FFN, so that
 * all wait for the slower in each, and the FFN cannot make up for it (both measured: bench/README.md). */
#include "engine/model.h"

enum { FFN_UNIT = 32, VOCAB_UNIT = 16 };

static void share_heads(const eng_shape *s, int ranks, eng_share *out) {
    int r = out->rank, group = s->H / s->K;
    out->heads_first = s->H * r / ranks;
    out->heads = s->H * (r + 1) / ranks - out->heads_first;
    out->kv_first = out->heads_first / group;
    out->kv = (out->heads_first + out->heads - 1) / group + 1 - out->kv_first;
}

static void share_ffn(const eng_shape *s, eng_share *all, int ranks) {
    int units = s->F / FFN_UNIT;
    for (int r = 0; r < ranks; r++) {
        all[r].ffn_first = units * r / ranks * FFN_UNIT;
        all[r].ffn = units * (r + 1) / ranks * FFN_UNIT - all[r].ffn_first;
    }
}

status eng_share_all(const eng_shape *s, int ranks, eng_share *all, error *err) {
    if (ranks > s->H)
        return error_set(err, ST_BAD_INPUT, "%d ranks, expected at most %d, the heads of the model", ranks, s->H);
    if (ranks > s->F / FFN_UNIT)
        return error_set(err, ST_BAD_INPUT, "%d ranks, expected at most %d, the FFN's blocks of %d", ranks,
                         s->F / FFN_UNIT, FFN_UNIT);
    for (int r = 0; r < ranks; r++) {
        all[r] = (eng_share){.rank = r};
        share_heads(s, ranks, &all[r]);
        if (all[r].heads < 1 || all[r].heads * s->h % 32 || all[r].heads_first * s->h % 32)
            return error_set(err, ST_UNSUPPORTED, "%d ranks: rank %d would have %d heads of %d, expected a multiple of 32 "
                             "columns", ranks, r, all[r].heads, s->h);
        all[r].vocab_first = (int)((int64_t)s->V * r / ranks) / VOCAB_UNIT * VOCAB_UNIT;
    }
    for (int r = 0; r < ranks; r++)
        all[r].vocab = (r + 1 < ranks ? all[r + 1].vocab_first : s->V) - all[r].vocab_first;
    share_ffn(s, all, ranks);
    return ST_OK;
}
