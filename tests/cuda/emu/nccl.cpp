/* nccl.cpp -- libnccl.so.2 for tests: communicators, groups, errors. What moves the bytes is nccl_move.cpp.
 *
 * The unique id is the path of a file in /dev/shm, which every rank maps: ranks are processes of one machine or threads of
 * one process. As with the library, two ranks may not sit on one device; a rank that is gone is not noticed, its
 * collectives stay unfinished until ncclCommAbort(), which only ends this rank's part. A communicator made with
 * config.blocking = 0 answers ncclInProgress to every call until it is asked by ncclCommGetAsyncError().
 *
 * Wrong use ends the process: ranks that call different things, counts that differ, buffers that overlap, buffers that
 * are no device memory; and a wait of more than EMU_NCCL_TIMEOUT seconds (120). */
#include "nccl_move.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

static std::vector<std::unique_ptr<ncclComm>> comms;       /* all ever made: queued work has pointers to them */
static thread_local struct {
    int depth;
    std::vector<NcclTransfer> transfers;
    std::vector<std::function<cudaError_t()>> collectives;
    std::vector<ncclComm *> joining;
} group;

double nccl_now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

void nccl_waited(ncclComm *c, double since, const char *what) {
    int limit = emu_env("EMU_NCCL_TIMEOUT", 120);
    if (nccl_now() - since > limit)
        emu_fail("nccl-deadlock", "rank %d waited %d s in %s; the other ranks did not come", c->rank, limit, what);
}

/* ---- communicators ------------------------------------------------------------------------------------------ */

EMU_API ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int count;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/dev/shm/emu-nccl-%d-%d-%lx", (int)getpid(), count++,
             (unsigned long)(nccl_now() * 1e6));
    return ncclSuccess;
}

static NcclShared *shared_map(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(NcclShared))) {
        if (fd >= 0)
            close(fd);
        return nullptr;
    }
    void *p = mmap(nullptr, sizeof(NcclShared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return p == MAP_FAILED ? nullptr : (NcclShared *)p;
}

/* Whether every rank has come; the last thing that needs the file's name. */
static bool joined(ncclComm *c) {
    if (c->ready)
        return true;
    if (!nccl_all_met(c))
        return false;
    for (int a = 0; a < c->n; a++)
        for (int b = 0; b < a; b++)
            if (c->shared->device[a] == c->shared->device[b])
                c->error = ncclInvalidUsage;               /* two ranks on one device */
    unlink(c->path);
    return c->ready = true;
}

static ncclResult_t join_wait(ncclComm *c) {
    double since = nccl_now();
    while (!joined(c)) {
        nccl_waited(c, since, "ncclCommInitRank");
        usleep(100);
    }
    return c->error;
}

EMU_API ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int n, ncclUniqueId id, int rank, ncclConfig_t *config) {
    if (n < 1 || n > NCCL_RANKS_MAX || rank < 0 || rank >= n)
        return ncclInvalidArgument;
    if (emu_api("ncclCommInitRank"))
        return ncclUnhandledCudaError;
    NcclShared *shared = shared_map(id.internal);
    if (!shared)
        return ncclSystemError;
    ncclComm *c = new ncclComm{};
    c->shared = shared;
    c->rank = rank;
    c->n = n;
    c->device = emu_device;
    c->blocking = !config || config->blocking != 0;
    snprintf(c->path, sizeof c->path, "%s", id.internal);
    {
        EmuLock lock(emu_engine);
        comms.emplace_back(c);
    }
    shared->device[rank] = emu_device_physical(emu_device);
    nccl_meet(c);
    *out = c;
    if (!c->blocking)
        return ncclInProgress;
    if (group.depth) {
        group.joining.push_back(c);
        return ncclSuccess;
    }
    return join_wait(c);
}

EMU_API ncclResult_t ncclCommInitRank(ncclComm_t *out, int n, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(out, n, id, rank, nullptr);
}

static ncclResult_t comm_end(ncclComm_t c) {
    if (!c || c->ended)
        return ncclInvalidArgument;
    c->ended = true;                                       /* what is queued finds out */
    if (!c->ready)
        unlink(c->path);
    return ncclSuccess;
}

EMU_API ncclResult_t ncclCommFinalize(ncclComm_t c) { return c && !c->ended ? ncclSuccess : ncclInvalidArgument; }

EMU_API ncclResult_t ncclCommDestroy(ncclComm_t c) {
    emu_drain_device(c ? c->device : emu_device);          /* what was queued is done first */
    return comm_end(c);
}

EMU_API ncclResult_t ncclCommAbort(ncclComm_t c) { return comm_end(c); }

EMU_API ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *e) {
    if (!c || c->ended)
        return ncclInvalidArgument;
    *e = !joined(c) || c->unasked ? ncclInProgress : c->error;
    c->unasked = false;
    return ncclSuccess;
}

EMU_API ncclResult_t ncclCommCount(const ncclComm_t c, int *n) {
    *n = c->n;
    return ncclSuccess;
}

EMU_API ncclResult_t ncclCommUserRank(const ncclComm_t c, int *rank) {
    *rank = c->rank;
    return ncclSuccess;
}

EMU_API ncclResult_t ncclCommCuDevice(const ncclComm_t c, int *device) {
    *device = c->device;
    return ncclSuccess;
}

EMU_API ncclResult_t ncclGetVersion(int *v) {
    *v = NCCL_VERSION_CODE;
    return ncclSuccess;
}

EMU_API const char *ncclGetErrorString(ncclResult_t r) {
    static const char *const texts[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error",
                                        "invalid argument", "invalid usage", "remote process error", "in progress"};
    return r >= 0 && r <= ncclInProgress ? texts[r] : "unknown result code";
}

EMU_API const char *ncclGetLastError(ncclComm_t) { return ""; }

/* ---- collectives ------------------------------------------------------------------------------------------ */

static ncclResult_t answer(ncclComm *c, cudaError_t e) {
    if (e)
        return ncclUnhandledCudaError;
    if (c->blocking)
        return ncclSuccess;
    c->unasked = true;
    return ncclInProgress;
}

static ncclResult_t collective(const NcclCall &call, const void *send, void *recv, ncclComm *c, cudaStream_t st) {
    if (!c || c->ended || !nccl_type_bytes(call.type) || call.root < 0 || call.root >= c->n)
        return ncclInvalidArgument;
    if (!joined(c))
        return ncclInvalidUsage;
    auto queue = [=] { return emu_enqueue(st, nccl_names[call.op], nccl_collective_op(call, send, recv, c)); };
    if (!group.depth)
        return answer(c, queue());
    group.collectives.push_back(queue);
    return ncclSuccess;
}

EMU_API ncclResult_t ncclAllReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c,
                                   cudaStream_t st) {
    return collective(NcclCall{NCCL_ALL_REDUCE, t, op, 0, n}, send, recv, c, st);
}

EMU_API ncclResult_t ncclAllGather(const void *send, void *recv, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t st) {
    return collective(NcclCall{NCCL_ALL_GATHER, t, ncclSum, 0, n}, send, recv, c, st);
}

EMU_API ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op,
                                       ncclComm_t c, cudaStream_t st) {
    return collective(NcclCall{NCCL_REDUCE_SCATTER, t, op, 0, n}, send, recv, c, st);
}

EMU_API ncclResult_t ncclBroadcast(const void *send, void *recv, size_t n, ncclDataType_t t, int root, ncclComm_t c,
                                   cudaStream_t st) {
    return collective(NcclCall{NCCL_BROADCAST, t, ncclSum, root, n}, send, recv, c, st);
}

EMU_API ncclResult_t ncclReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op, int root,
                                ncclComm_t c, cudaStream_t st) {
    return collective(NcclCall{NCCL_REDUCE, t, op, root, n}, send, recv, c, st);
}

/* ---- sends and receives, groups ------------------------------------------------------------------------------------ */

static cudaError_t transfers_queue(std::vector<NcclTransfer> list) {
    while (!list.empty()) {                                /* one piece of work a communicator and stream */
        std::vector<NcclTransfer> same, others;
        for (const NcclTransfer &t : list)
            (t.comm == list[0].comm && t.stream == list[0].stream ? same : others).push_back(t);
        if (cudaError_t e = emu_enqueue(same[0].stream, "nccl send and receive", nccl_transfer_op(same)))
            return e;
        list = others;
    }
    return cudaSuccess;
}

static ncclResult_t transfer(bool send, void *p, size_t count, ncclDataType_t type, int peer, ncclComm *c, cudaStream_t st) {
    if (!c || c->ended || peer < 0 || peer >= c->n || !nccl_type_bytes(type))
        return ncclInvalidArgument;
    if (!joined(c))
        return ncclInvalidUsage;
    if (!count)
        return ncclSuccess;
    NcclTransfer t = {c, st, send, (char *)p, count, type, peer, 0, 0, false};
    if (!group.depth)
        return answer(c, transfers_queue({t}));
    group.transfers.push_back(t);
    return ncclSuccess;
}

EMU_API ncclResult_t ncclSend(const void *p, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t st) {
    return transfer(true, (void *)p, n, t, peer, c, st);
}

EMU_API ncclResult_t ncclRecv(void *p, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t st) {
    return transfer(false, p, n, t, peer, c, st);
}

EMU_API ncclResult_t ncclGroupStart(void) {
    group.depth++;
    return ncclSuccess;
}

EMU_API ncclResult_t ncclGroupEnd(void) {
    if (group.depth <= 0)
        return ncclInvalidUsage;
    if (--group.depth)
        return ncclSuccess;
    auto transfers = std::move(group.transfers);
    auto collectives = std::move(group.collectives);
    auto joining = std::move(group.joining);
    group.transfers.clear();
    group.collectives.clear();
    group.joining.clear();
    for (ncclComm *c : joining)
        if (ncclResult_t r = join_wait(c))
            return r;
    bool waits = false;                                    /* somebody has to ask ncclCommGetAsyncError() */
    for (NcclTransfer &t : transfers)
        waits |= answer(t.comm, cudaSuccess) == ncclInProgress;
    cudaError_t e = transfers_queue(transfers);
    for (auto &queue : collectives)
        if (!e)
            e = queue();
    return e ? ncclUnhandledCudaError : waits ? ncclInProgress : ncclSuccess;
}
