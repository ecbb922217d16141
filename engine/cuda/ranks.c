/* ranks.c -- sums over the ranks of a group, between GPUs, by NCCL.
 *
 * The host's group (collective.h) is there first: over it rank 0 tells NCCL's unique id, and plans and logits travel
 * over it as ever. Only sums are NCCL's, and of NCCL only what moves numbers: its own AllReduce adds in an order that
 * depends on the message's size and the ranks' places, so adding is ours, in rising rank order, the same bits as
 * coll_all_reduce():
 *
 *   few numbers    everyone gets all (AllGather) and adds all                                     (decoded rows)
 *   many           rank r gets the r-th share of all (Send, Recv), adds it, gives it to all (AllGather)
 *
 * Both add in the same order, so which of them it is does not show. Shares are equal, the last one reaching up to
 * ranks - 1 floats beyond the end, where alloc() left room (CUDA_SLACK).
 *
 * A rank that is gone must not hang the others. The communicator does not block: every call of NCCL, and every wait
 * for the stream, asks for its state and looks at the clock. After the group's time-out, or an error that NCCL
 * reports, the communicator is aborted (what waits on the stream then ends), the host's group is given up, and the
 * step returns ST_DEADLINE or ST_PEER_LOST. Captured calls are waited for like others. */
#include "engine/cuda/cuda.h"
#include <assert.h>
#include <time.h>

enum { OPEN_MS = 60000, PAUSE_NS = 20000 };

static void give_up(eng_context *c, status s, const char *what, const char *why) {
    cuda_fail(c, s, "%s: %s", what, why);
    if (c->comm) c->nccl->abort(c->comm);
    c->comm = NULL;
    coll_abort(c->group);
}

static void pause_briefly(void) { nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL); }

/* What a call returned, once it is settled. */
static bool settle(eng_context *c, ncclResult_t r, int within_ms, const char *what) {
    int64_t until = clock_now_ms() + within_ms;
    while (r == ncclInProgress) {
        if (clock_now_ms() > until) {
            give_up(c, ST_DEADLINE, what, "other ranks did not take part in time");
            return false;
        }
        pause_briefly();
        ncclResult_t asked = c->nccl->async_error(c->comm, &r);
        if (asked != ncclSuccess) r = asked;
    }
    if (r != ncclSuccess) give_up(c, ST_PEER_LOST, what, c->nccl->error_text(r));
    return r == ncclSuccess;
}

bool cuda_ranks_wait(eng_context *c, cudaEvent_t e, const char *what) {
    if (!c->comm) return cuda_fine(c, cudaEventSynchronize(e), what);
    int64_t until = clock_now_ms() + coll_timeout_ms(c->group);
    for (;;) {
        cudaError_t ready = cudaEventQuery(e);
        if (ready != cudaErrorNotReady) return cuda_fine(c, ready, what);
        ncclResult_t r = ncclSuccess, asked = c->nccl->async_error(c->comm, &r);
        if (asked != ncclSuccess) r = asked;
        bool lost = r != ncclSuccess && r != ncclInProgress, late = clock_now_ms() > until;
        if (lost) give_up(c, ST_PEER_LOST, what, c->nccl->error_text(r));
        else if (late) give_up(c, ST_DEADLINE, what, "other ranks did not take part in time");
        if (lost || late) return false;
        pause_briefly();
    }
}

/* ---- open and close ------------------------------------------------------------------------------ */

static size_t largest_sum(const eng_context *c) {
    size_t rows = ((size_t)c->tokens_max + CUDA_SLAB - 1) / CUDA_SLAB * CUDA_SLAB;
    size_t many = rows * (size_t)c->shape.D, few = (size_t)c->ranks * (many < CUDA_SUM_FEW ? many : CUDA_SUM_FEW);
    return (many > few ? many : few) + (size_t)c->ranks;
}

status cuda_ranks_open(eng_context *c, error *err) {
    ncclUniqueId id = {{0}};
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t r = ncclSuccess;
    TRY(cuda_load_nccl(&c->nccl, err));
    if (c->rank == 0) r = c->nccl->get_unique_id(&id);
    if (r != ncclSuccess) return error_set(err, ST_DEVICE, "NCCL has no unique id: %s", c->nccl->error_text(r));
    TRY(coll_broadcast(c->group, &id, sizeof id, err));
    size_t floats = largest_sum(c);
    if (!(c->parts = cuda_alloc(c, floats * sizeof(float))))
        return error_set(err, ST_NO_MEMORY, "no memory for sums of %zu floats over ranks: %s", floats,
                         cuda_room(c, (char[ENG_ROOM_BYTES]){0}));
    config.blocking = 0;
    r = c->nccl->init_rank(&c->comm, c->ranks, id, c->rank, &config);
    return settle(c, r, OPEN_MS, "opening NCCL") ? ST_OK : cuda_status(c, err);
}

void cuda_ranks_close(eng_context *c) {
    if (c->comm && !c->broken && settle(c, c->nccl->finalize(c->comm), coll_timeout_ms(c->group), "closing NCCL"))
        c->nccl->destroy(c->comm);
    else if (c->comm) c->nccl->abort(c->comm);
    c->comm = NULL;
    cuda_free(c, c->parts);
}

/* ---- sums ---------------------------------------------------------------------------------------- */

static bool gather_all(eng_context *c, const float *mine, float *all, size_t count) {
    return settle(c, c->nccl->all_gather(mine, all, count, ncclFloat32, c->comm, c->compute), coll_timeout_ms(c->group),
                  "gathering over ranks");
}

static bool add(eng_context *c, float *y, size_t count) {
    return cuda_fine(c, cuda_add_ranks(c->compute, y, c->parts, count, c->ranks, count), "adding over ranks");
}

static bool sum_few(eng_context *c, float *y, size_t count) { return gather_all(c, y, c->parts, count) && add(c, y, count); }

/* Share r of mine goes to rank r; mine of all ranks' comes to parts. */
static bool exchange_shares(eng_context *c, const float *y, size_t share) {
    ncclResult_t r = c->nccl->group_start();
    for (int peer = 0; peer < c->ranks && r == ncclSuccess; peer++) {
        if (peer == c->rank) continue;
        r = c->nccl->send(y + (size_t)peer * share, share, ncclFloat32, peer, c->comm, c->compute);
        if (r == ncclSuccess || r == ncclInProgress)
            r = c->nccl->recv(c->parts + (size_t)peer * share, share, ncclFloat32, peer, c->comm, c->compute);
        if (r == ncclInProgress) r = ncclSuccess;            /* told at the group's end */
    }
    ncclResult_t ended = c->nccl->group_end();
    return settle(c, r != ncclSuccess ? r : ended, coll_timeout_ms(c->group), "exchanging over ranks");
}

static bool sum_many(eng_context *c, float *y, size_t count) {
    size_t share = (count + (size_t)c->ranks - 1) / (size_t)c->ranks, own = (size_t)c->rank * share;
    return exchange_shares(c, y, share) &&
           cuda_fine(c, cudaMemcpyAsync(c->parts + own, y + own, share * sizeof *y, cudaMemcpyDeviceToDevice, c->compute),
                     "adding over ranks") &&
           add(c, y + own, share) && gather_all(c, y + own, y, share);
}

status cuda_sum(eng_context *c, coll *group, float *y, int T, int D, error *err) {
    size_t count = (size_t)cuda_batch_rows(c, T) * (size_t)D;
    assert(group == c->group);
    if (!cuda_idle(c) && count) {
        if (count <= c->sum_few) sum_few(c, y, count);
        else sum_many(c, y, count);
    }
    return cuda_status(c, err);
}
