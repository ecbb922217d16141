// Test-only NCCL among processes of one machine, through a file in /dev/shm. NVIDIA's own nccl.h gives the prototypes.
#include "emu.h"
#include <nccl.h>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <string>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <time.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
static const int MAXR = 8; static const size_t CH = 1 << 20, PCH = 1 << 16;
struct Desc { int op, type, red, root; size_t count; uint64_t seq; };
struct Mail { std::atomic<uint64_t> full, empty; size_t n; int type; size_t count; char d[PCH]; };
struct Sh { std::atomic<int> joined, dead; int nranks; std::atomic<uint64_t> arrive[MAXR]; Desc desc[MAXR]; Mail mail[MAXR][MAXR]; char data[MAXR][CH]; };
struct ncclComm { Sh *sh; int rank, n, dev; uint64_t gen, seq; };
struct P2P { bool send; char *buf; size_t bytes, done, count; int peer, type; ncclComm *c; cudaStream_t s; };
static thread_local int t_group; static thread_local std::vector<P2P> t_p2p; static thread_local std::vector<std::function<ncclResult_t()>> t_coll;
static double now() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static double limit() { const char *s = getenv("EMU_NCCL_TIMEOUT"); return s ? atof(s) : 20; }
static size_t tsize(ncclDataType_t t) { switch (t) { case ncclInt8: case ncclUint8: return 1; case ncclFloat16: case ncclBfloat16: return 2; case ncclInt32: case ncclUint32: case ncclFloat32: return 4; case ncclInt64: case ncclUint64: case ncclFloat64: return 8; default: return 0; } }
static const char *ON[] = {"allreduce", "allgather", "reducescatter", "broadcast", "reduce"};
static void relax(int &k, double t0, ncclComm *c, const char *what) {
    if (++k > 200) { usleep(20); if (c->sh->dead) emu_fail("nccl", "rank %d: another rank died during %s", c->rank, what); if (now() - t0 > limit()) { c->sh->dead = 1; emu_fail("nccl-deadlock", "rank %d waited %.0f s in %s (operation %llu); the other ranks did not come", c->rank, limit(), what, (unsigned long long)c->seq); } }
}
static void barrier(ncclComm *c, const char *what) { uint64_t g = ++c->gen; c->sh->arrive[c->rank] = g; double t0 = now(); int k = 0; for (int r = 0; r < c->n; r++) while (c->sh->arrive[r] < g) relax(k, t0, c, what); }
template <class T, class F> static void red(char *o, char *const *in, int n, size_t cnt, ncclRedOp_t op, F conv) {
    for (size_t i = 0; i < cnt; i++) { T a; memcpy((void *)&a, in[0] + i * sizeof(T), sizeof(T)); auto x = conv(a);
        for (int r = 1; r < n; r++) { T b; memcpy((void *)&b, in[r] + i * sizeof(T), sizeof(T)); auto y = conv(b); x = op == ncclSum || op == ncclAvg ? x + y : op == ncclProd ? x * y : op == ncclMax ? (x < y ? y : x) : (y < x ? y : x); x = conv(T(x)); } // rounded at every step, as on the wire
        if (op == ncclAvg) x = x / n; T z = T(x); memcpy(o + i * sizeof(T), (void *)&z, sizeof(T)); }
}
static void reduce(char *o, char *const *in, int n, size_t cnt, ncclDataType_t t, ncclRedOp_t op) {
    switch (t) {
    case ncclFloat32: red<float>(o, in, n, cnt, op, [](float x) { return x; }); break; case ncclFloat64: red<double>(o, in, n, cnt, op, [](double x) { return x; }); break;
    case ncclFloat16: red<__half>(o, in, n, cnt, op, [](__half x) { return __half2float(x); }); break; case ncclBfloat16: red<__nv_bfloat16>(o, in, n, cnt, op, [](__nv_bfloat16 x) { return __bfloat162float(x); }); break;
    case ncclInt32: red<int>(o, in, n, cnt, op, [](int x) { return x; }); break; case ncclInt64: red<int64_t>(o, in, n, cnt, op, [](int64_t x) { return x; }); break;
    case ncclInt8: red<int8_t>(o, in, n, cnt, op, [](int8_t x) { return (int)x; }); break; case ncclUint8: red<uint8_t>(o, in, n, cnt, op, [](uint8_t x) { return (int)x; }); break;
    default: emu_fail("nccl", "type %d is not emulated", (int)t); }
}
// count: elements each rank contributes (allgather, send side) or gets (reducescatter) or all (the others)
static ncclResult_t coll(int op, const void *sb, void *rb, size_t count, ncclDataType_t t, ncclRedOp_t ro, int root, ncclComm *c, cudaStream_t s) {
    if (!c || !tsize(t) || root < 0 || root >= c->n) return ncclInvalidArgument; size_t es = tsize(t);
    size_t sn = op == 2 ? count * c->n : count, rn = op == 1 ? count * c->n : count; bool sends = op != 3 || c->rank == root, recvs = op != 4 || c->rank == root;
    auto run = [=]() {
        if (sends) emu_check_dev(ON[op], sb, sn * es); if (recvs) emu_check_dev(ON[op], rb, rn * es);
        const char *a = (const char *)sb; char *b = (char *)rb; if (op == 1 && a != b + c->rank * count * es && a < b + rn * es && b < a + sn * es) emu_fail("nccl", "allgather: the buffers overlap, but not in place");
        Desc d{op, (int)t, (int)ro, root, count, ++c->seq}; c->sh->desc[c->rank] = d; barrier(c, ON[op]);
        for (int r = 0; r < c->n; r++) { Desc &e = c->sh->desc[r]; if (e.op != op || e.type != (int)t || e.red != (int)ro || e.root != root || e.count != count) { c->sh->dead = 1; emu_fail("nccl-mismatch", "operation %llu: rank %d does %s of %zu (type %d, op %d, root %d), rank %d does %s of %zu (type %d, op %d, root %d)", (unsigned long long)c->seq, c->rank, ON[op], count, (int)t, (int)ro, root, r, ON[e.op], e.count, e.type, e.red, e.root); } }
        size_t per = CH / es; char *in[MAXR]; for (int r = 0; r < c->n; r++) in[r] = c->sh->data[r];
        size_t blocks = op == 2 ? c->n : 1; // reducescatter: one block of `count` for each rank
        for (size_t k = 0; k < blocks; k++) for (size_t o = 0; o < count; o += per) { size_t n = std::min(per, count - o); 
            if (sends) memcpy(c->sh->data[c->rank], a + (k * count + o) * es, n * es); barrier(c, ON[op]);
            if (op == 0 || (op == 4 && recvs)) reduce(b + o * es, in, c->n, n, t, ro); else if (op == 2 && (int)k == c->rank) reduce(b + o * es, in, c->n, n, t, ro);
            else if (op == 1) for (int r = 0; r < c->n; r++) memcpy(b + (r * count + o) * es, in[r], n * es); else if (op == 3) memcpy(b + o * es, in[root], n * es);
            barrier(c, ON[op]); }
    };
    auto enq = [=]() { return emu_enqueue(s, ON[op], run) ? ncclUnhandledCudaError : ncclSuccess; };
    if (t_group) { t_coll.push_back(enq); return ncclSuccess; } return enq();
}
static void p2p_run(std::vector<P2P> v) {
    ncclComm *c = v[0].c; ++c->seq; double t0 = now(); int k = 0; size_t left = v.size(); for (auto &p : v) emu_check_dev(p.send ? "send" : "recv", p.buf, p.bytes);
    std::vector<bool> fin(v.size()); std::vector<uint64_t> mark(v.size()); // a send ends when its last piece was taken
    while (left) { bool moved = false;
        for (size_t i = 0; i < v.size(); i++) { P2P &p = v[i]; if (fin[i]) continue; bool earlier = false; for (size_t j = 0; j < i; j++) if (!fin[j] && v[j].peer == p.peer && v[j].send == p.send) earlier = true; if (earlier) continue;
            Mail &m = p.send ? c->sh->mail[c->rank][p.peer] : c->sh->mail[p.peer][c->rank];
            if (p.send) { if (p.done < p.bytes) { if (m.full == m.empty) { m.n = std::min(PCH, p.bytes - p.done); m.type = p.type; m.count = p.count; memcpy(m.d, p.buf + p.done, m.n); p.done += m.n; mark[i] = ++m.full; moved = true; } } else if (m.empty >= mark[i]) { fin[i] = true; left--; moved = true; } }
            else if (m.full > m.empty) { if (m.type != p.type || m.count != p.count) { c->sh->dead = 1; emu_fail("nccl-mismatch", "rank %d receives %zu (type %d) from %d, which sends %zu (type %d)", c->rank, p.count, p.type, p.peer, m.count, m.type); }
                memcpy(p.buf + p.done, m.d, m.n); p.done += m.n; ++m.empty; moved = true; if (p.done == p.bytes) { fin[i] = true; left--; } } }
        if (moved) { k = 0; t0 = now(); } else relax(k, t0, c, v[0].send ? "send" : "recv"); }
}
static ncclResult_t p2p(bool send, void *b, size_t count, ncclDataType_t t, int peer, ncclComm *c, cudaStream_t s) {
    if (!c || peer < 0 || peer >= c->n || !tsize(t)) return ncclInvalidArgument; P2P p{send, (char *)b, count * tsize(t), 0, count, peer, (int)t, c, s}; if (!count) return ncclSuccess;
    if (t_group) { t_p2p.push_back(p); return ncclSuccess; } std::vector<P2P> v{p}; emu_enqueue(s, "p2p", [v] { p2p_run(v); }); return ncclSuccess;
}
extern "C" {
ncclResult_t ncclGetVersion(int *v) { *v = NCCL_VERSION_CODE; return ncclSuccess; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) { memset(id, 0, sizeof *id); static int k; snprintf(id->internal, sizeof id->internal, "/dev/shm/emunccl-%d-%d-%lx", (int)getpid(), k++, (unsigned long)(now() * 1e6)); return ncclSuccess; }
ncclResult_t ncclCommInitRank(ncclComm_t *out, int n, ncclUniqueId id, int rank) {
    if (n < 1 || n > MAXR || rank < 0 || rank >= n) return ncclInvalidArgument;
    int fd = open(id.internal, O_RDWR | O_CREAT, 0600); if (fd < 0 || ftruncate(fd, sizeof(Sh))) return ncclSystemError;
    Sh *sh = (Sh *)mmap(nullptr, sizeof(Sh), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0); close(fd); if (sh == MAP_FAILED) return ncclSystemError;
    ncclComm *c = new ncclComm{sh, rank, n, emu_cur_device(), 0, 0}; int j = ++sh->joined; if (j > n) emu_fail("nccl", "more than %d ranks joined", n); barrier(c, "ncclCommInitRank"); if (rank == 0) unlink(id.internal); *out = c; return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t c) { munmap(c->sh, sizeof(Sh)); delete c; return ncclSuccess; }
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommAbort(ncclComm_t c) { c->sh->dead = 1; return ncclCommDestroy(c); }
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *e) { *e = c->sh->dead ? ncclRemoteError : ncclSuccess; return ncclSuccess; }
ncclResult_t ncclCommCount(const ncclComm_t c, int *n) { *n = c->n; return ncclSuccess; }
ncclResult_t ncclCommUserRank(const ncclComm_t c, int *r) { *r = c->rank; return ncclSuccess; }
ncclResult_t ncclCommCuDevice(const ncclComm_t c, int *d) { *d = c->dev; return ncclSuccess; }
const char *ncclGetErrorString(ncclResult_t r) { static char b[32]; snprintf(b, sizeof b, "nccl error %d", (int)r); return b; }
ncclResult_t ncclAllReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, ncclComm_t c, cudaStream_t st) { return coll(0, s, r, n, t, o, 0, c, st); }
ncclResult_t ncclAllGather(const void *s, void *r, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t st) { return coll(1, s, r, n, t, ncclSum, 0, c, st); }
ncclResult_t ncclReduceScatter(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, ncclComm_t c, cudaStream_t st) { return coll(2, s, r, n, t, o, 0, c, st); }
ncclResult_t ncclBroadcast(const void *s, void *r, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st) { return coll(3, s, r, n, t, ncclSum, root, c, st); }
ncclResult_t ncclReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t o, int root, ncclComm_t c, cudaStream_t st) { return coll(4, s, r, n, t, o, root, c, st); }
ncclResult_t ncclSend(const void *b, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t st) { return p2p(true, (void *)b, n, t, peer, c, st); }
ncclResult_t ncclRecv(void *b, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t st) { return p2p(false, b, n, t, peer, c, st); }
ncclResult_t ncclGroupStart(void) { t_group++; return ncclSuccess; }
ncclResult_t ncclGroupEnd(void) {
    if (t_group <= 0) return ncclInvalidUsage; if (--t_group) return ncclSuccess;
    if (!t_p2p.empty()) { auto v = t_p2p; t_p2p.clear(); for (auto &p : v) if (p.s != v[0].s || p.c != v[0].c) emu_fail("unsupported", "a group of sends and receives over several streams or communicators"); emu_enqueue(v[0].s, "p2p", [v] { p2p_run(v); }); }
    auto q = t_coll; t_coll.clear(); for (auto &f : q) { ncclResult_t r = f(); if (r) return r; } return ncclSuccess;
}
}
