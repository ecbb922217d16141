/* ptx_run.cpp -- runs a kernel's PTX, one thread of it in each fibre.
 *
 * EMU_PTX names the files. Every launch then runs nvcc's code and not g++'s; a kernel that no file has is an error.
 * Loads and stores go through race.cpp's checker. Shared memory has addresses from 0 as on the device: the arena's
 * begin is added. */
#include "fibre.h"
#include "ptx.h"
#include "warp_ops.h"
#include <cstdlib>
#include <cstring>
#include <sstream>

extern "C" void emu_mma_run(void *lanes[32], int form);
extern "C" void emu_ldmatrix_run(void *lanes[32], int form);
extern "C" int emu_warp_inside(void);

/* A thread of a kernel. */
struct Thread {
    const PtxKernel *k;
    uint64_t *r;
    const char *params;
    char *local;
    uintptr_t shared;                      /* where the arena begins */
    size_t next;                           /* instruction */
};

static std::map<std::string, PtxKernel> kernels;
static const PtxIns *at;                   /* the instruction that touches memory, for reports */

/* ---- memory ------------------------------------------------------------------------------------------ */

static uintptr_t address(const Thread &t, const PtxIns &i, int which, PtxSpace space) {
    uint64_t a = t.r[i.base[which]] + (uint64_t)i.offset[which];
    return space == PTX_SHARED ? t.shared + (uint32_t)a : a;
}

static void touch(const PtxIns &i, uintptr_t a, int bytes, bool write, bool atomic) {
    if (a % bytes)
        emu_fail("misaligned", "%s:%d: %s: %d bytes at %p", i.site, i.line, i.text.c_str(), bytes, (void *)a);
    at = &i;
    if (emu_race_access)
        emu_race_access(a, bytes, write, atomic, nullptr);
}

static uint64_t load(const PtxIns &i, const void *from) {
    uint64_t v = 0;
    memcpy(&v, from, i.type.bytes);
    return i.type.kind == 's' ? (uint64_t)ptx_signed(v, i.type.bytes) : v;
}

static uintptr_t checked_address(const Thread &t, const PtxIns &i, int count, bool write) {
    uintptr_t a = address(t, i, 0, i.space);
    int bytes = i.type.bytes * count;
    if (i.space == PTX_PARAM) {
        if (a + bytes > (uintptr_t)t.k->params_bytes)
            ptx_refuse(i, "beyond the parameters");
        return (uintptr_t)t.params + a;
    }
    if (i.space == PTX_LOCAL && (a < (uintptr_t)t.local || a + bytes > (uintptr_t)t.local + t.k->local_bytes))
        emu_fail("out-of-bounds", "%s:%d: %s: outside of the local arrays", i.site, i.line, i.text.c_str());
    touch(i, a, bytes, write, false);
    return a;
}

static void run_load(Thread &t, const PtxIns &i) {
    uintptr_t a = checked_address(t, i, i.dst_count, false);
    for (int n = 0; n < i.dst_count; n++)
        t.r[i.dst[n]] = load(i, (const void *)(a + n * i.type.bytes));
}

static void run_store(Thread &t, const PtxIns &i) {
    uintptr_t a = checked_address(t, i, i.src_count, true);
    for (int n = 0; n < i.src_count; n++)
        memcpy((void *)(a + n * i.type.bytes), &t.r[i.src[n]], i.type.bytes);
}

enum { ATOM_ADD, ATOM_EXCH, ATOM_MAX, ATOM_MIN, ATOM_AND, ATOM_OR, ATOM_XOR, ATOM_CAS, ATOM_INC };

static uint64_t atomic_result(const PtxIns &i, uint64_t old, uint64_t v, uint64_t swap) {
    static const PtxCode codes[] = {PTX_ADD, PTX_MOV, PTX_MAX, PTX_MIN, PTX_AND, PTX_OR, PTX_XOR};
    int w = i.type.bytes;
    if (i.word == ATOM_EXCH)
        return v;
    if (i.word == ATOM_CAS)
        return ptx_unsigned(old, w) == ptx_unsigned(v, w) ? swap : old;
    if (i.word == ATOM_INC)
        return ptx_unsigned(old, w) >= ptx_unsigned(v, w) ? 0 : old + 1;
    PtxIns op = {};
    op.code = codes[i.word];
    op.type = i.type;
    op.site = i.site;
    op.text = i.text;
    uint64_t sources[4] = {old, v, 0, 0}, second;
    return ptx_alu(op, sources, &second);
}

static void run_atomic(Thread &t, const PtxIns &i) {
    uintptr_t a = address(t, i, 0, i.space);
    touch(i, a, i.type.bytes, true, true);
    uint64_t old = 0;
    memcpy(&old, (void *)a, i.type.bytes);
    uint64_t now = atomic_result(i, old, t.r[i.src[0]], i.src_count > 1 ? t.r[i.src[1]] : 0);
    memcpy((void *)a, &now, i.type.bytes);
    if (i.code == PTX_ATOM)
        t.r[i.dst[0]] = old;
}

static void run_cp_async(Thread &t, const PtxIns &i) {
    int bytes = (int)t.r[i.src[0]], from = i.src_count > 1 ? (int)t.r[i.src[1]] : bytes;
    at = &i;
    emu_cp_async((void *)address(t, i, 0, PTX_SHARED), (const void *)address(t, i, 1, PTX_GLOBAL), bytes, from, nullptr);
}

static void run_ldmatrix(Thread &t, const PtxIns &i) {
    EmuLdmatrix lane = {};
    uintptr_t a = address(t, i, 0, PTX_SHARED);
    if (emu_me->lane < 8 * (i.word / 2)) {
        touch(i, a, 16, false, false);
        memcpy(lane.row, (const void *)a, 16);
    }
    emu_warp_all(emu_ldmatrix_run, &lane, i.word + i.to, i.site, i.line);
    for (int n = 0; n < i.dst_count; n++)
        t.r[i.dst[n]] = lane.d[n];
}

/* Generic addresses are pointers; of shared ones the arena's begin is left out. */
static void run_cvta(Thread &t, const PtxIns &i) {
    uint64_t shift = i.space == PTX_SHARED ? t.shared : i.space == PTX_PARAM ? (uint64_t)t.params : 0;
    t.r[i.dst[0]] = i.to ? t.r[i.src[0]] - shift : t.r[i.src[0]] + shift;
}

/* ---- threads together ------------------------------------------------------------------------------------------ */

static void run_shuffle(Thread &t, const PtxIns &i) {
    uint64_t c = t.r[i.src[2]];
    int width = 32 - (int)(c >> 8 & 31);
    unsigned mask = (unsigned)t.r[i.src[3]];
    t.r[i.dst[0]] = (uint32_t)emu_warp(i.word, mask, (uint32_t)t.r[i.src[0]], (int)t.r[i.src[1]], width, i.site, i.line);
    if (i.dst_count > 1)
        t.r[i.dst[1]] = (uint64_t)emu_warp_inside();
}

static void run_vote(Thread &t, const PtxIns &i) {
    enum { BALLOT, ANY, ALL };
    unsigned mask = (unsigned)t.r[i.src[1]];
    bool p = (t.r[i.src[0]] != 0) != i.negated_source;
    unsigned yes = (unsigned)emu_warp(EMU_WARP_BALLOT, mask, i.word == ALL ? !p : p, 0, 32, i.site, i.line);
    t.r[i.dst[0]] = i.word == BALLOT ? yes : i.word == ANY ? yes != 0 : yes == 0;
}

static void run_redux(Thread &t, const PtxIns &i) {
    int op = EMU_WARP_ADD + i.word;
    if (i.type.kind == 'u' && (op == EMU_WARP_MIN || op == EMU_WARP_MAX))
        op += EMU_WARP_UMIN - EMU_WARP_MIN;
    t.r[i.dst[0]] = (uint32_t)emu_warp(op, (unsigned)t.r[i.src[1]], (uint32_t)t.r[i.src[0]], 0, 32, i.site, i.line);
}

static void run_mma(Thread &t, const PtxIns &i) {
    EmuMma lane;
    for (int n = 0; n < 4; n++) {
        lane.a[n] = (unsigned)t.r[i.src[n]];
        lane.d[n] = (unsigned)t.r[i.src[6 + n]];
    }
    for (int n = 0; n < 2; n++)
        lane.b[n] = (unsigned)t.r[i.src[4 + n]];
    emu_warp_all(emu_mma_run, &lane, i.word, i.site, i.line);
    for (int n = 0; n < 4; n++)
        t.r[i.dst[n]] = lane.d[n];
}

/* barrier.sync 0; barrier.red.or.pred p, 0, q */
static void run_barrier(Thread &t, const PtxIns &i) {
    if (t.r[i.src[0]] != 0)
        ptx_refuse(i, "named barriers");
    if (i.code == PTX_BAR) {
        emu_bar(EMU_BAR_SYNC, 0, nullptr, i.site, i.line);
        return;
    }
    int out;
    bool p = (t.r[i.src[i.src_count - 1]] != 0) != i.negated_source;
    emu_bar(i.word, p, &out, i.site, i.line);
    t.r[i.dst[0]] = (uint32_t)out;
}

/* ---- one instruction ------------------------------------------------------------------------------------------ */

/* mov.b64 r, {low, high} and the other way round. */
static void run_mov(Thread &t, const PtxIns &i) {
    int parts = i.dst_count > i.src_count ? i.dst_count : i.src_count;
    int bytes = i.type.bytes / (parts > 1 ? parts : 1);
    if (i.dst_count > 1) {
        uint64_t v = t.r[i.src[0]];
        for (int n = 0; n < i.dst_count; n++)
            t.r[i.dst[n]] = ptx_unsigned(v >> (8 * bytes * n), bytes);
        return;
    }
    uint64_t v = 0;
    for (int n = 0; n < i.src_count; n++)
        v |= ptx_unsigned(t.r[i.src[n]], bytes) << (8 * bytes * n);
    t.r[i.dst[0]] = v;
}

static void run_alu(Thread &t, const PtxIns &i) {
    uint64_t s[4] = {0, 0, 0, 0}, second = 0;
    for (int n = 0; n < i.src_count && n < 4; n++)
        s[n] = t.r[i.src[n]];
    t.r[i.dst[0]] = ptx_alu(i, s, &second);
    if (i.dst_count > 1)
        t.r[i.dst[1]] = second;
}

static void branch_table(Thread &t, const PtxIns &i) {
    uint64_t n = (uint32_t)t.r[i.src[0]];
    if (n >= i.targets.size())
        emu_fail("out-of-bounds", "%s:%d: %s: entry %u of %zu", i.site, i.line, i.text.c_str(), (unsigned)n, i.targets.size());
    t.next = i.targets[n];
}

/* false: the thread is done. */
static bool step(Thread &t, const PtxIns &i) {
    switch (i.code) {
    case PTX_RET: return false;
    case PTX_BRA: t.next = i.target; break;
    case PTX_BRX: branch_table(t, i); break;
    case PTX_TRAP: emu_fail("trap", "%s:%d", i.site, i.line);
    case PTX_NOTHING: break;
    case PTX_LD: run_load(t, i); break;
    case PTX_ST: run_store(t, i); break;
    case PTX_ATOM:
    case PTX_RED: run_atomic(t, i); break;
    case PTX_CVTA: run_cvta(t, i); break;
    case PTX_CP_ASYNC: run_cp_async(t, i); break;
    case PTX_CP_COMMIT: emu_cp_async_commit(); break;
    case PTX_CP_WAIT: emu_cp_async_wait((int)t.r[i.src[0]]); break;
    case PTX_CP_WAIT_ALL: emu_cp_async_wait(-1); break;
    case PTX_LDMATRIX: run_ldmatrix(t, i); break;
    case PTX_BAR:
    case PTX_BAR_RED: run_barrier(t, i); break;
    case PTX_BAR_WARP: emu_warp(EMU_WARP_SYNC, (unsigned)t.r[i.src[0]], 0, 0, 32, i.site, i.line); break;
    case PTX_SHFL: run_shuffle(t, i); break;
    case PTX_VOTE: run_vote(t, i); break;
    case PTX_MATCH:
        t.r[i.dst[0]] = emu_warp(EMU_WARP_MATCH, (unsigned)t.r[i.src[1]], t.r[i.src[0]], 0, 32, i.site, i.line);
        break;
    case PTX_REDUX: run_redux(t, i); break;
    case PTX_MMA: run_mma(t, i); break;
    case PTX_MOV: run_mov(t, i); break;
    default: run_alu(t, i);
    }
    return true;
}

/* ---- a thread ------------------------------------------------------------------------------------------ */

static uint64_t special(int which) {
    unsigned lane = emu_me->lane;
    const unsigned values[] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z, blockDim.x,
                               blockDim.y, blockDim.z, gridDim.x, gridDim.y, gridDim.z, lane, (unsigned)emu_me->warp,
                               1u << lane, (1u << lane) - 1, (2u << lane) - 1, ~((2u << lane) - 1), ~((1u << lane) - 1)};
    return values[which];
}

static void registers_fill(Thread &t) {
    memcpy(t.r, t.k->init.data(), t.k->init.size() * sizeof *t.r);
    for (auto &s : t.k->specials)
        t.r[s.first] = special(s.second);
    for (auto &s : t.k->shared) {
        const PtxSymbol &v = s.second;
        if (v.reg >= 0)
            t.r[v.reg] = (uintptr_t)(v.dynamic ? emu_smem_dyn(v.align)
                                               : emu_smem_static(&v, v.bytes, v.align, s.first.c_str())) - t.shared;
    }
    for (auto &s : t.k->local)
        if (s.second.reg >= 0)
            t.r[s.second.reg] = (uintptr_t)t.local + s.second.align;
}

void emu_ptx_run(const void *kernel, void *args) {
    const PtxKernel *k = (const PtxKernel *)kernel;
    uintptr_t high;
    Thread t = {k, nullptr, (const char *)args, nullptr, 0, 0};
    t.r = (uint64_t *)__builtin_alloca(k->init.size() * sizeof *t.r);
    t.local = (char *)__builtin_alloca_with_align(k->local_bytes + 16, 128);
    memset(t.local, 0xff, k->local_bytes);
    emu_shared_range(&t.shared, &high);
    registers_fill(t);
    while (t.next < k->code.size()) {
        const PtxIns &i = k->code[t.next++];
        if (i.predicate >= 0 && (t.r[i.predicate] != 0) == i.predicate_not)
            continue;
        if (!step(t, i))
            return;
    }
}

/* ---- for launch.cpp and report.cpp ----------------------------------------------------------------------------------------- */

static void files_load() {
    static bool loaded;
    if (loaded)
        return;
    loaded = true;
    const char *paths = getenv("EMU_PTX");
    std::istringstream list(paths ? paths : "");
    for (std::string path; getline(list, path, ':');)
        ptx_parse_file(strdup(path.c_str()), &kernels);
}

bool emu_ptx_on() {
    files_load();
    return !kernels.empty();
}

/* nvcc's name for a static kernel is that of one that is not: _ZL4rows... and _Z4rows... */
const PtxKernel *emu_ptx_find(const char *mangled) {
    std::string name = mangled;
    if (name.compare(0, 3, "_ZL") == 0)
        name.erase(2, 1);
    auto it = kernels.find(name);
    return it == kernels.end() ? nullptr : &it->second;
}

std::string emu_ptx_args(const PtxKernel *k, const char *args, const int *offset, const int *bytes, int count, dim3 block) {
    if (count != (int)k->params.size())
        emu_fail("ptx", "%s: %d parameters, the PTX has %zu", k->name.c_str(), count, k->params.size());
    if (k->threads_max && (int)(block.x * block.y * block.z) > k->threads_max)
        emu_fail("launch", "%s: %u threads a block, __launch_bounds__ says %d", k->name.c_str(), block.x * block.y * block.z,
                 k->threads_max);
    std::string out(k->params_bytes, 0);
    for (int i = 0; i < count; i++) {
        if (bytes[i] != k->params[i].second)
            emu_fail("ptx", "%s: parameter %d has %d bytes, in the PTX %d", k->name.c_str(), i, bytes[i], k->params[i].second);
        memcpy(&out[k->params[i].first], args + offset[i], bytes[i]);
    }
    return out;
}

bool emu_ptx_site(char *buf, size_t bytes) {
    if (!at)
        return false;
    snprintf(buf, bytes, "%s:%d: %s", at->site, at->line, at->text.c_str());
    return true;
}
