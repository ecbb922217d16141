/* nccl_move.cpp -- the emulated NCCL's collectives, sends and receives, as work that never waits.
 *
 *   CALLED -> COMPARED   every rank has said what it calls; they agree
 *   COMPARED -> FILLED   my chunk is in shared memory
 *   FILLED -> TAKEN      everybody's is; I have combined them
 *   TAKEN -> FILLED      everybody has: the next chunk;   -> the end
 *
 * Each arrow is a meeting of all ranks; when the others have not come the work answers "not yet". Sums begin at another
 * rank every 1024 elements, as a ring's do: all ranks get the same bytes, in an order nobody may count on. */
#include "nccl_move.h"
#include <algorithm>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

const char *const nccl_names[] = {"nccl all-reduce", "nccl all-gather", "nccl reduce-scatter", "nccl broadcast", "nccl reduce"};

size_t nccl_type_bytes(ncclDataType_t t) {
    switch (t) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: return 0;
    }
}

void nccl_meet(ncclComm *c) { c->shared->met[c->rank] = ++c->meetings; }

bool nccl_all_met(ncclComm *c) {
    for (int r = 0; r < c->n; r++)
        if (c->shared->met[r] < c->meetings)
            return false;
    return true;
}

static void others_failed(ncclComm *c) {
    if (c->shared->failed)
        emu_fail("nccl", "rank %d: another rank has failed", c->rank);
}

/* ---- reductions ------------------------------------------------------------------------------------------ */

template <class T, class Wide> static Wide combine(Wide a, Wide b, ncclRedOp_t op) {
    Wide r = op == ncclProd ? a * b : op == ncclMax ? (a < b ? b : a) : op == ncclMin ? (b < a ? b : a) : a + b;
    return (Wide)(T)r;                                     /* rounded at every step, as on the wire */
}

template <class T, class Wide> static void reduce_as(char *out, NcclShared *s, int n, size_t first, size_t count, ncclRedOp_t op) {
    for (size_t i = 0; i < count; i++) {
        int start = (int)((first + i) / 1024 % n);
        Wide sum = 0;
        for (int k = 0; k < n; k++) {
            T v;
            memcpy((void *)&v, s->chunk[(start + k) % n] + i * sizeof(T), sizeof v);
            sum = k ? combine<T, Wide>(sum, (Wide)v, op) : (Wide)v;
        }
        T v = (T)(op == ncclAvg ? sum / (Wide)n : sum);
        memcpy(out + i * sizeof(T), (void *)&v, sizeof v);
    }
}

static void reduce(char *out, NcclShared *s, int n, size_t first, size_t count, ncclDataType_t t, ncclRedOp_t op) {
    switch (t) {
    case ncclFloat32: return reduce_as<float, float>(out, s, n, first, count, op);
    case ncclFloat64: return reduce_as<double, double>(out, s, n, first, count, op);
    case ncclFloat16: return reduce_as<__half, float>(out, s, n, first, count, op);
    case ncclBfloat16: return reduce_as<__nv_bfloat16, float>(out, s, n, first, count, op);
    case ncclInt8: return reduce_as<int8_t, int>(out, s, n, first, count, op);
    case ncclUint8: return reduce_as<uint8_t, int>(out, s, n, first, count, op);
    case ncclInt32: return reduce_as<int32_t, int32_t>(out, s, n, first, count, op);
    case ncclUint32: return reduce_as<uint32_t, uint32_t>(out, s, n, first, count, op);
    case ncclInt64: return reduce_as<int64_t, int64_t>(out, s, n, first, count, op);
    default: return reduce_as<uint64_t, uint64_t>(out, s, n, first, count, op);
    }
}

/* ---- collectives ------------------------------------------------------------------------------------------ */

struct Collective {
    NcclCall call;
    const char *send;
    char *recv;
    ncclComm *c;
    enum { BEGIN, CALLED, FILLED, TAKEN } state;
    size_t block, at;                      /* block: whose part of a reduce-scatter; at: elements done of it */
    double since;

    size_t bytes() const { return nccl_type_bytes(call.type); }
    bool sends() const { return call.op != NCCL_BROADCAST || c->rank == call.root; }
    bool receives() const { return call.op != NCCL_REDUCE || c->rank == call.root; }
    size_t blocks() const { return call.op == NCCL_REDUCE_SCATTER ? c->n : 1; }
    size_t part() const { return std::min(call.count - at, NCCL_CHUNK_BYTES / bytes()); }

    void check() {
        size_t send_bytes = call.count * bytes() * (call.op == NCCL_REDUCE_SCATTER ? c->n : 1);
        size_t recv_bytes = call.count * bytes() * (call.op == NCCL_ALL_GATHER ? c->n : 1);
        if (sends())
            emu_check_dev(nccl_names[call.op], send, send_bytes, emu_device);
        if (receives())
            emu_check_dev(nccl_names[call.op], recv, recv_bytes, emu_device);
        const char *in_place = call.op == NCCL_ALL_GATHER ? recv + c->rank * send_bytes : recv;
        if (call.op == NCCL_REDUCE_SCATTER)
            in_place = recv - c->rank * recv_bytes;
        bool overlap = sends() && receives() && send < recv + recv_bytes && recv < send + send_bytes;
        if (overlap && send != in_place)
            emu_fail("nccl", "%s: the buffers overlap, but not as the call allows in place", nccl_names[call.op]);
        if (emu_device != c->device)
            emu_fail("nccl", "%s: the stream is of device %d, the communicator of %d", nccl_names[call.op], emu_device, c->device);
    }

    void compare() {
        for (int r = 0; r < c->n; r++) {
            const NcclCall &o = c->shared->call[r];
            if (o.op == call.op && o.type == call.type && o.reduction == call.reduction && o.root == call.root &&
                o.count == call.count)
                continue;
            c->shared->failed = 1;
            emu_fail("nccl-mismatch", "rank %d calls %s of %zu (type %d, op %d, root %d), rank %d %s of %zu (type %d, op %d, "
                     "root %d)", c->rank, nccl_names[call.op], call.count, (int)call.type, (int)call.reduction, call.root,
                     r, nccl_names[o.op], o.count, (int)o.type, (int)o.reduction, o.root);
        }
    }

    void fill() {
        if (sends())
            memcpy(c->shared->chunk[c->rank], send + (block * call.count + at) * bytes(), part() * bytes());
    }

    void take() {
        size_t n = part() * bytes();
        if (call.op == NCCL_ALL_GATHER)
            for (int r = 0; r < c->n; r++)
                memcpy(recv + (r * call.count + at) * bytes(), c->shared->chunk[r], n);
        else if (call.op == NCCL_BROADCAST)
            memcpy(recv + at * bytes(), c->shared->chunk[call.root], n);
        else if (receives() && (call.op != NCCL_REDUCE_SCATTER || (int)block == c->rank))
            reduce(recv + at * bytes(), c->shared, c->n, at, part(), call.type, call.reduction);
    }

    bool more() {
        at += part();
        if (at < call.count)
            return true;
        at = 0;
        return ++block < blocks();
    }

    /* As far as it goes; true: the end. */
    bool run() {
        if (state == BEGIN) {
            check();
            since = nccl_now();
            c->shared->call[c->rank] = call;
            nccl_meet(c);
            state = CALLED;
        }
        while (!c->ended && nccl_all_met(c)) {
            since = nccl_now();
            if (state == CALLED)
                compare();
            if (state == FILLED) {
                take();
                state = TAKEN;
            } else if (state == TAKEN && !more()) {
                return true;
            } else {
                fill();
                state = FILLED;
            }
            nccl_meet(c);
        }
        if (c->ended)
            return true;
        others_failed(c);
        nccl_waited(c, since, nccl_names[call.op]);
        return false;
    }
};

EmuOp nccl_collective_op(const NcclCall &call, const void *send, void *recv, ncclComm *c) {
    Collective work = {call, (const char *)send, (char *)recv, c, Collective::BEGIN, 0, 0, 0};
    return [work]() mutable { return work.run(); };
}

/* ---- sends and receives ------------------------------------------------------------------------------------------ */

static bool send_some(NcclTransfer &t, NcclMail &m) {
    size_t bytes = t.count * nccl_type_bytes(t.type);
    if (t.done == bytes) {                                 /* a send ends when its last piece was taken */
        t.finished = m.empty >= t.last;
        return t.finished;
    }
    if (m.full != m.empty)
        return false;
    m.piece_bytes = std::min((size_t)NCCL_PIECE_BYTES, bytes - t.done);
    m.type = t.type;
    m.count = t.count;
    memcpy(m.piece, t.data + t.done, m.piece_bytes);
    t.done += m.piece_bytes;
    t.last = ++m.full;
    return true;
}

static bool receive_some(NcclTransfer &t, NcclMail &m) {
    if (m.full == m.empty)
        return false;
    if (m.type != t.type || m.count != t.count) {
        t.comm->shared->failed = 1;
        emu_fail("nccl-mismatch", "rank %d receives %zu (type %d) from %d, which sends %zu (type %d)", t.comm->rank, t.count,
                 (int)t.type, t.peer, m.count, (int)m.type);
    }
    memcpy(t.data + t.done, m.piece, m.piece_bytes);
    t.done += m.piece_bytes;
    ++m.empty;
    t.finished = t.done == t.count * nccl_type_bytes(t.type);
    return true;
}

struct Transfers {
    std::vector<NcclTransfer> list;
    double since;

    /* Of two with one peer in one direction the earlier goes first. */
    bool turn(size_t i) const {
        for (size_t k = 0; k < i; k++)
            if (!list[k].finished && list[k].peer == list[i].peer && list[k].send == list[i].send)
                return false;
        return true;
    }

    bool run() {
        ncclComm *c = list[0].comm;
        if (!since)
            for (NcclTransfer &t : list)
                emu_check_dev(t.send ? "nccl send" : "nccl receive", t.data, t.count * nccl_type_bytes(t.type), emu_device);
        for (bool moved = true; moved && !c->ended;) {
            moved = false;
            size_t left = 0;
            for (size_t i = 0; i < list.size(); i++) {
                NcclTransfer &t = list[i];
                NcclMail &m = t.send ? c->shared->mail[c->rank][t.peer] : c->shared->mail[t.peer][c->rank];
                if (!t.finished && turn(i))
                    moved |= t.send ? send_some(t, m) : receive_some(t, m);
                left += !t.finished;
            }
            if (!left)
                return true;
            if (moved || !since)
                since = nccl_now();
        }
        if (c->ended)
            return true;
        others_failed(c);
        nccl_waited(c, since, "a send or receive");
        return false;
    }
};

EmuOp nccl_transfer_op(const std::vector<NcclTransfer> &transfers) {
    Transfers work = {transfers, 0};
    return [work]() mutable { return work.run(); };
}
