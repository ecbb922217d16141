/* rank.c -- one rank of a node: its group, its share of the model, its pages, its KV port. */
#include "node/rank.h"
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN_MS = 30000, LOAD_MS = 600000 };    /* until all ranks are there; until all have read the model */

/* ---- the group ------------------------------------------------------------------------------------- */

static status open_group(node_rank *k, const node_options *o, error *err) {
    coll_options group = {.rank = o->rank, .ranks = o->ranks, .open_ms = OPEN_MS, .timeout_ms = LOAD_MS};
    TRY(coll_meet_at(o->group, &group, err));
    return coll_open(&group, &k->group, err);
}

/* Each rank says what must be the same, and where its pages arrive. */
static status meet(node_rank *k, const node_options *o, const node_limits *l, error *err) {
    size_t bytes[COLL_RANKS_MAX];
    node_hello mine = {.pid = getpid()};
    snprintf(mine.kv_address, sizeof mine.kv_address, "%s", kvt_node_address(k->kvt));
    snprintf(mine.same, sizeof mine.same, "%s %s %s pages=%d page-tokens=%d step-tokens=%d logits=%d swap=%d", eng_gguf_digest(k->gguf),
             eng_model_numerics(k->model), eng_kv_type_name(o->kv_type), l->pages, l->page_tokens, l->step_tokens_max, l->logits_max,
             k->swap_pages);
    k->met[k->index] = mine;
    if (!k->group) return ST_OK;
    for (int r = 0; r < k->count; r++) bytes[r] = sizeof mine;
    TRY(coll_all_gather(k->group, &mine, k->met, bytes, err));
    coll_set_timeout(k->group, NODE_GROUP_TIMEOUT_MS);
    for (int r = 0; r < k->count; r++)
        if (memcmp(k->met[r].same, mine.same, sizeof mine.same) != 0)
            return error_set(err, ST_REFUSED, "rank %d has %.150s, rank %d %.150s: expected the same", r, k->met[r].same, k->index,
                             mine.same);
    return ST_OK;
}

/* ---- open, close ----------------------------------------------------------------------------------- */

/* A model has one KV layout for all its ranks; which of them send to whom follows from the heads' numbers. */
static status open_kvt(node_rank *k, const node_options *o, const node_limits *l, error *err) {
    const eng_shape *s = eng_model_shape(k->model);
    char pairing[120];
    snprintf(pairing, sizeof pairing, "%s L%dK%dh%d", eng_gguf_digest(k->gguf), s->L, s->K, s->h);
    kvt_options options = {.listen = o->kv_listen, .transport = o->kv_transport, .pairing = pairing, .promises_max = l->sequences_max};
    TRY(kvt_node_open(&options, &k->kvt, err));
    if (strlen(kvt_node_address(k->kvt)) < NODE_ADDRESS_MAX) return ST_OK;
    return error_set(err, ST_BAD_INPUT, "--kv-listen: '%.100s' is longer than %d bytes", kvt_node_address(k->kvt), NODE_ADDRESS_MAX - 1);
}

status node_rank_open(node_rank *k, const node_options *o, const node_limits *l, error *err) {
    k->index = o->rank;
    k->count = o->ranks > 1 ? o->ranks : 1;
    k->page_tokens = l->page_tokens;
    if (k->count > 1) TRY(open_group(k, o, err));
    TRY(eng_gguf_open(o->model, &k->gguf, err));
    eng_options options = {.isa = o->isa,
                           .device = o->device,
                           .threads = o->threads,
                           .tokens_max = l->step_tokens_max,
                           .logits_max = l->logits_max,
                           .cache_dir = o->cache_dir,
                           .progress = o->progress,
                           .progress_ctx = o->progress_ctx,
                           .group = k->group};
    TRY(eng_model_open(k->gguf, &options, &k->model, err));
    TRY(eng_model_heads(k->model, k->count, k->index, &k->head_first, &k->heads, err));
    TRY(eng_kv_create(k->model, l->pages, l->page_tokens, o->kv_type, &k->kv, err));
    TRY(node_swap_open(k, o, l, err));
    TRY(open_kvt(k, o, l, err));
    return meet(k, o, l, err);
}

void node_rank_close(node_rank *k) {
    if (k->kvt) kvt_node_close(k->kvt);
    node_transfer_forget_all(k);
    node_swap_close(k);
    eng_kv_destroy(k->kv);
    eng_model_close(k->model);
    eng_gguf_close(k->gguf);
    coll_close(k->group);
}

node_rank_figures node_rank_count(const node_rank *k) {
    return (node_rank_figures){.group_us = k->group ? coll_spent_us(k->group) : 0,
                               .bytes_in = atomic_load(&k->bytes_in),
                               .bytes_out = atomic_load(&k->bytes_out)};
}

void node_rank_lost(const error *err) {
    log_write(LOG_ERROR, NULL, "group.lost", "this process ends: %s", err->text);
    _exit(1);
}

/* ---- memory ---------------------------------------------------------------------------------------- */

static double mib(size_t bytes) { return (double)bytes / (1 << 20); }

/* The weights are a mapping that other processes share. */
void node_rank_log_memory(const node_rank *k, const node_options *o, const node_limits *l, const char *more, size_t more_bytes) {
    struct stat file = {0};
    size_t weights = stat(o->model, &file) == 0 ? (size_t)file.st_size : 0;
    bool is_private;
    size_t panels = eng_model_panel_bytes(k->model, &is_private);
    size_t pool = eng_kv_page_bytes(k->kv) * (size_t)l->pages, scratch = eng_model_scratch_bytes(k->model);
    log_write(LOG_INFO, NULL, "memory.weights", "mib=%.1f mapped, shared between processes", mib(weights));
    log_write(LOG_INFO, NULL, "memory.panels", "mib=%.1f of repacked weights, %s", mib(panels),
              is_private ? "private" : "shared between processes");
    log_write(LOG_INFO, NULL, "memory.place", "repacked weights, pages and scratch are on %s", eng_model_place(k->model));
    log_write(LOG_INFO, NULL, "memory.pages", "mib=%.1f %d pages of %d tokens", mib(pool), l->pages, l->page_tokens);
    log_write(LOG_INFO, NULL, "memory.scratch", "mib=%.1f of a step of %d rows, %d of them with logits", mib(scratch),
              l->step_tokens_max, l->logits_max);
    if (k->swap) log_write(LOG_INFO, NULL, "memory.swap", "mib=%.1f %d pages of preempted answers", mib(node_swap_bytes(k)), k->swap_pages);
    if (more_bytes) log_write(LOG_INFO, NULL, more, "mib=%.1f", mib(more_bytes));
    log_write(LOG_INFO, NULL, "memory.sum", "mib=%.1f",
              mib(weights + panels + pool + scratch + node_swap_bytes(k) + more_bytes));
}
