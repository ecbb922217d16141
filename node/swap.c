/* swap.c -- host memory for the pages of preempted sequences: one rank's heads of them.
 *
 * One allocation of so many pages, made at the start; which of them is whose is the core's to know (seq.c). A page is
 * kept packed in the type of the pages themselves, so what comes back is what left, bit for bit. The engine thread's.
 *
 * On the CPU this is memory of the same kind as the pages: more pages serve it better, and 0 is the default. */
#include "node/rank.h"
#include <assert.h>

#define MOVED "KV of preempted requests that was moved to host memory (out) and back (in)"
METRIC(metric_out, "baton_node_swap_bytes_total", "direction=\"out\"", METRIC_COUNTER,
       MOVED);
METRIC(metric_in, "baton_node_swap_bytes_total", "direction=\"in\"", METRIC_COUNTER,
       MOVED);

status node_swap_open(node_rank *k, const node_options *o, const node_limits *l, error *err) {
    const eng_shape *s = eng_model_shape(k->model);
    int64_t page_bytes = 2LL * s->L * s->K * l->page_tokens * (int64_t)eng_kv_row_bytes(o->kv_type, s->h);
    if (o->swap_bytes == 0) return ST_OK;
    metric_show(&metric_out);
    metric_show(&metric_in);
    int64_t pages = o->swap_bytes / page_bytes;
    if (pages < 1 || pages > INT32_MAX)
        return error_set(err, ST_BAD_INPUT, "--swap-bytes is %lld: expected 0, or %lld (a page) to %lld", (long long)o->swap_bytes,
                         (long long)page_bytes, (long long)page_bytes * INT32_MAX);
    k->swap_pages = (int32_t)pages;
    k->swap = mem_alloc(node_swap_bytes(k));
    if (k->swap) return ST_OK;
    return error_set(err, ST_NO_MEMORY, "no memory for %d swapped pages (--swap-bytes)", k->swap_pages);
}

void node_swap_close(node_rank *k) {
    mem_free(k->swap);
    k->swap = NULL;
}

size_t node_swap_bytes(const node_rank *k) { return k->kv ? (size_t)k->swap_pages * eng_kv_page_bytes(k->kv) : 0; }

void node_swap_move(node_rank *k, bool out, const int32_t *blocks, const int32_t *slots, int32_t token_first, int32_t token_end) {
    int32_t P = k->page_tokens;
    eng_kv_box box = {.layers = eng_model_shape(k->model)->L, .heads = k->heads, .type = eng_kv_element(k->kv)};
    assert(token_first % P == 0);
    for (int32_t t = token_first; t < token_end; t += P) {
        box.token_first = t;
        box.tokens = token_end - t < P ? token_end - t : P;
        assert(slots[t / P] >= 0 && slots[t / P] < k->swap_pages);
        char *at = k->swap + (size_t)slots[t / P] * eng_kv_page_bytes(k->kv);
        if (out) eng_kv_pack(k->kv, blocks, &box, at);
        else eng_kv_unpack(k->kv, blocks, &box, at);
        metric_add(out ? &metric_out : &metric_in, (int64_t)eng_kv_box_bytes(k->kv, &box));
    }
}
