/* share.c -- which part of a model one rank of a tensor-parallel group has    (Megatron-LM, Shoeybi et al. 2019).
 *
 * Products whose outputs are split (q, k, v; gate, up; logits) are followed by one whose inputs are split the same
 * way (attn_out; down), so a block needs two sums over the ranks and nothing else.
 *
 *   heads    whole kv groups while there are as many as ranks; else ranks share a group's query heads, and each
 *            has a copy of its K and V
 *   FFN      what evens out the load of the heads, in blocks of 32 columns
 *   logits   the vocabulary, in panels of 16
 *
 * Counts need not divide: 9 heads in 3 groups are 3 and 6 heads for two ranks, and the FFN the other way. */
#include "engine/model.h"

enum { FFN_UNIT = 32, VOCAB_UNIT = 16 };

static void share_heads(const eng_shape *s, int ranks, eng_share *out) {
    int r = out->rank, group_heads = s->H / s->K;
    if (s->K >= ranks) {
        out->kv_first = s->K * r / ranks;
        out->kv = s->K * (r + 1) / ranks - out->kv_first;
        out->heads_first = out->kv_first * group_heads;
        out->heads = out->kv * group_heads;
        return;
    }
    int group = r * s->K / ranks;                        /* of this rank; the ranks of a group are neighbours */
    int first = (group * ranks + s->K - 1) / s->K, end = ((group + 1) * ranks + s->K - 1) / s->K;
    int from = group_heads * (r - first) / (end - first), to = group_heads * (r - first + 1) / (end - first);
    out->kv_first = group;
    out->kv = 1;
    out->heads_first = group * group_heads + from;
    out->heads = to - from;
}

/* Weights of a layer's attention, in columns of D. */
static int64_t attention_load(const eng_shape *s, const eng_share *of) {
    return (int64_t)(2 * of->heads + 2 * of->kv) * s->h;
}

/* Up to and with rank r, the ranks have their share of all of a layer's weights. */
static void share_ffn(const eng_shape *s, eng_share *all, int ranks) {
    int64_t load = 3 * (int64_t)s->F, before = 0;
    int units = s->F / FFN_UNIT, at = 0;
    for (int r = 0; r < ranks; r++) load += attention_load(s, &all[r]);
    for (int r = 0; r < ranks; r++) {
        before += attention_load(s, &all[r]);
        int64_t wanted = (load * (r + 1) / ranks - before + 3 * FFN_UNIT / 2) / (3 * FFN_UNIT);
        int least = at + 1, most = units - (ranks - 1 - r);
        int end = wanted < least ? least : wanted > most ? most : (int)wanted;
        if (r == ranks - 1) end = units;
        all[r].ffn_first = at * FFN_UNIT;
        all[r].ffn = (end - at) * FFN_UNIT;
        at = end;
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
