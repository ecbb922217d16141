// Test-only CUDA runtime emulator: memory, streams, events, graphs, kernel execution by fibres.
// Defines the libcudart symbols with NVIDIA's own prototypes. x86-64.
#include "emu.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <algorithm>
#include <random>
#include <chrono>
#include <sys/mman.h>
#include <unistd.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

extern "C" {
void __asan_poison_memory_region(void const volatile *, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(void const volatile *, size_t) __attribute__((weak));
void __sanitizer_start_switch_fiber(void **, const void *, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) __attribute__((weak));
void __sanitizer_print_stack_trace(void) __attribute__((weak));
void emu_race_atomic(int on, const void *p, size_t n) __attribute__((weak));
extern char __executable_start[];
uint3 threadIdx, blockIdx; dim3 blockDim, gridDim;
}
static int env(const char *n, int d) { const char *s = getenv(n); return s ? atoi(s) : d; }
static bool envis(const char *n, const char *v) { const char *s = getenv(n); return s && !strcmp(s, v); }

// ------------------------------------------------------------------ reports
bool emu_ptx_site(char *, size_t) __attribute__((weak)); static std::map<const void *, std::string> g_ptxname;
const char *emu_symbolize(const void *pc, char *buf, size_t n) {
    if (!pc && emu_ptx_site && emu_ptx_site(buf, n)) return buf; if (g_ptxname.count(pc)) { snprintf(buf, n, "%s (PTX)", g_ptxname[pc].c_str()); return buf; }
    char cmd[256], line[512]; snprintf(buf, n, "%p", pc);
    snprintf(cmd, sizeof cmd, "addr2line -Cfsie /proc/%d/exe 0x%lx 2>/dev/null", (int)getpid(), (unsigned long)pc - (*(uint16_t *)(__executable_start + 16) == 2 ? 0 : (unsigned long)__executable_start)); // ET_EXEC: absolute
    std::string out; FILE *f = popen(cmd, "r"); if (!f) return buf;
    while (fgets(line, sizeof line, f)) { line[strcspn(line, "\n")] = 0; out += out.empty() ? "" : " "; out += line; if (out.size() > 300) break; }
    pclose(f); if (!out.empty()) snprintf(buf, n, "%s", out.c_str()); return buf;
}
[[noreturn]] void emu_fail(const char *kind, const char *fmt, ...) {
    static int once; if (once++) _exit(86);
    char w[400]; fflush(stdout); fprintf(stderr, "\n==EMU== ERROR: %s: ", kind);
    va_list ap; va_start(ap, fmt); vfprintf(stderr, fmt, ap); va_end(ap);
    emu_where(w, sizeof w); fprintf(stderr, "\n==EMU==   in %s\n", w);
    if (__sanitizer_print_stack_trace) __sanitizer_print_stack_trace();
    fflush(stderr); _exit(86);
}

// ------------------------------------------------------------------ device memory
// Each allocation sits alone in its own mapping inside a huge reserved range, with poisoned red zones,
// far from its neighbours; contents start as 0xFF (NaN); inaccessible to the host outside device work.
static std::map<uintptr_t, EmuAlloc> g_al; static std::recursive_mutex g_mx;
static uintptr_t g_next; static uint64_t g_serial; static thread_local int t_dev; static int g_depth; static int g_protect = -1;
static const size_t GAP = 64u << 20;
int emu_cur_device() { return t_dev; }
static void on_segv(int, siginfo_t *, void *); static struct sigaction g_oldsegv; static uintptr_t g_res_lo, g_res_hi;
static std::recursive_mutex g_eng; static thread_local bool t_exec; // one engine: whoever drains a stream holds it
static void *dmalloc(size_t n, bool pinned) {
    std::lock_guard<std::recursive_mutex> le(g_eng), l(g_mx);
    if (!g_next) { size_t R = (size_t)4 << 40; void *p = mmap(nullptr, R, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); if (p == MAP_FAILED) { perror("mmap"); abort(); } g_next = ((uintptr_t)p + GAP) & ~(GAP - 1); g_res_lo = (uintptr_t)p; g_res_hi = g_res_lo + R;
        static char alt[64 << 10]; stack_t ss = {}; ss.ss_sp = alt; ss.ss_size = sizeof alt; stack_t os; if (!sigaltstack(nullptr, &os) && (os.ss_flags & SS_DISABLE) && !__asan_poison_memory_region) sigaltstack(&ss, nullptr); // ASan brings its own and frees it
        struct sigaction sa = {}; sa.sa_sigaction = on_segv; sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER; sigaction(SIGSEGV, &sa, &g_oldsegv); }
    if (g_protect < 0) g_protect = env("EMU_PROTECT", 1);
    size_t len = (n + 512 + 4095) & ~(size_t)4095; uintptr_t m = g_next; g_next += (len + 2 * GAP) & ~(GAP - 1);
    mprotect((void *)m, len, PROT_READ | PROT_WRITE);
    uintptr_t b = m + 256;
    if (n <= ((size_t)256 << 20)) memset((void *)b, 0xFF, n); // larger: virtual only, reads as 0
    if (__asan_poison_memory_region) { __asan_poison_memory_region((void *)m, 256); __asan_poison_memory_region((void *)(b + n), m + len - b - n > 4096 ? 4096 : m + len - b - n); }
    g_al[b] = EmuAlloc{b, n, t_dev, true, pinned, m, len, ++g_serial};
    if (g_protect && !pinned && !g_depth) mprotect((void *)m, len, PROT_NONE);
    return (void *)b;
}
const EmuAlloc *emu_find_alloc(const void *p) {
    auto it = g_al.upper_bound((uintptr_t)p); if (it == g_al.begin()) return nullptr; --it;
    const EmuAlloc &a = it->second; return (uintptr_t)p < a.base + (a.size ? a.size : 1) ? &a : nullptr;
}
void emu_check_dev(const char *what, const void *p, size_t n) {
    std::lock_guard<std::recursive_mutex> l(g_mx); if (!n) return;
    const EmuAlloc *a = emu_find_alloc(p);
    if (!a) emu_fail("bad-device-pointer", "%s: %p (%zu bytes) is not device memory", what, p, n);
    if (!a->live) emu_fail("use-after-free", "%s: %p is in a freed allocation of %zu bytes", what, p, a->size);
    if ((uintptr_t)p + n > a->base + a->size) emu_fail("out-of-bounds", "%s: %zu bytes at offset %zu of an allocation of %zu bytes", what, n, (size_t)((uintptr_t)p - a->base), a->size);
    if (!a->pinned && a->dev != t_dev) emu_fail("wrong-device", "%s: memory of device %d used on device %d", what, a->dev, t_dev);
}
void emu_dev_begin() { std::lock_guard<std::recursive_mutex> l(g_mx); if (g_depth++ == 0 && g_protect > 0) for (auto &k : g_al) if (k.second.live && !k.second.pinned) mprotect((void *)k.second.map, k.second.maplen, PROT_READ | PROT_WRITE); }
void emu_dev_end() { std::lock_guard<std::recursive_mutex> l(g_mx); if (--g_depth == 0 && g_protect > 0) for (auto &k : g_al) if (k.second.live && !k.second.pinned) mprotect((void *)k.second.map, k.second.maplen, PROT_NONE); }
static cudaError_t dfree(void *p, bool pinned) {
    if (!p) return cudaSuccess; std::lock_guard<std::recursive_mutex> l(g_mx); auto it = g_al.find((uintptr_t)p);
    if (it == g_al.end()) emu_fail("bad-free", "%p was not returned by an allocator", p);
    EmuAlloc &a = it->second; if (!a.live) emu_fail("double-free", "%p", p); if (a.pinned != pinned) emu_fail("bad-free", "wrong kind of free for %p", p);
    a.live = false; madvise((void *)a.map, a.maplen, MADV_DONTNEED); mprotect((void *)a.map, a.maplen, PROT_NONE); return cudaSuccess; // never reused
}

static bool g_in;
static void on_segv(int sig, siginfo_t *si, void *uc) {
    uintptr_t a = (uintptr_t)si->si_addr;
    if (a >= g_res_lo && a < g_res_hi) { const EmuAlloc *al = emu_find_alloc((void *)a); char w[320]; void *pc = (void *)((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP];
        emu_fail(!al ? "out-of-bounds" : !al->live ? "use-after-free" : g_in ? "fault" : "host-dereference", "%s touches %p (%s) at %s", g_in ? "kernel" : "host code", (void *)a, !al ? "between device allocations" : !al->live ? "freed device memory" : "device memory", emu_symbolize(pc, w, sizeof w)); }
    sigaction(SIGSEGV, &g_oldsegv, nullptr); (void)sig; // fault again, under the old handler
}
// ------------------------------------------------------------------ fibres
enum St : uint8_t { READY, WBAR, WWARP, DONE };
struct Fib { uint3 tid; void *sp; char *stk; void *fake; int warp, lane, id; St st; int kind, pred, *out; unsigned mask; int op, arg, width; unsigned long long val, res; const char *file; int line; uint32_t wb; };
static const size_t STK = 128 << 10; static const int MAXT = 1024;
static Fib *g_f; static int g_nt, g_ord[MAXT], g_pos[MAXT]; static Fib *g_me; static void *g_main_sp, *g_main_fake; static const void *g_main_bot; static size_t g_main_size;
static void (*g_tramp)(const void *, void *); static const std::vector<char> *g_args; static const void *g_kern; static uint32_t g_launch, g_block, g_bar, g_bar0; static int g_ndone, g_nbar;
static uint64_t g_switches; static std::mutex g_devlock; static int g_sched; static std::mt19937 g_rng;
// shared memory arena of the running block
static char *g_sm; static size_t g_smcap = 512 << 10, g_smtop, g_smuser; static struct { const void *key; char *p; size_t n; } g_ss[64]; static int g_nss; static char *g_dyn; static size_t g_dynn;
extern "C" void emu_swap(void **save, void *to);
asm(R"(.text
.globl emu_swap
emu_swap: pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi); movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret
)");
static void to_fib(Fib *f, void **save_sp, void **save_fake) {
    g_me = f; threadIdx = f->tid; g_switches++;
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(save_fake, f->stk, STK);
    emu_swap(save_sp, f->sp);
}
static void landed(void *fake) { if (__sanitizer_finish_switch_fiber) { const void *b; size_t n; __sanitizer_finish_switch_fiber(fake, &b, &n); if (!g_main_bot) { g_main_bot = b; g_main_size = n; } } }
static Fib *next_ready(Fib *f) { int p = f ? g_pos[f->id] : -1; for (int i = 1; i <= g_nt; i++) { if (++p == g_nt) p = 0; Fib *q = &g_f[g_ord[p]]; if (q->st == READY) return q; } return nullptr; }
static void yield_from(Fib *me) {
    Fib *n = next_ready(me); if (n == me) return;
    if (n) to_fib(n, &me->sp, &me->fake);
    else { g_me = nullptr; if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&me->fake, g_main_bot, g_main_size); emu_swap(&me->sp, g_main_sp); }
    landed(me->fake);
}
static void release_bar_if_full(); static void lane_exits(Fib *me);
static void fib_main() {
    landed(nullptr);
    for (;;) { Fib *me = g_me; alignas(16) char args[4096]; memcpy(args, g_args->data(), g_args->size()); g_tramp(g_kern, args); me->st = DONE; g_ndone++;
        lane_exits(me);
        release_bar_if_full(); yield_from(me); }
}
static void prep(Fib *f) { // fresh stack frame that enters fib_main
    void **sp = (void **)(f->stk + STK - (f->id * 5 % 63) * 64); *--sp = nullptr; *--sp = (void *)fib_main; for (int i = 0; i < 6; i++) *--sp = nullptr; f->sp = sp;
}
static void release_bar_if_full() {
    if (!g_nbar || g_nbar + g_ndone < g_nt) return;
    Fib *a = nullptr; int cnt = 0, any = 0, all = 1;
    for (int i = 0; i < g_nt; i++) { Fib *f = &g_f[i]; if (f->st != WBAR) continue; if (!a) a = f; cnt += f->pred; any |= f->pred; all &= f->pred;
        if (f->line != a->line || f->file != a->file || f->kind != a->kind) emu_fail("divergent-barrier", "thread %d is at the barrier %s:%d, thread %d at %s:%d", a->id, a->file, a->line, f->id, f->file, f->line); }
    if (g_ndone && !env("EMU_ALLOW_EXITED", 0)) { int e = 0; while (g_f[e].st != DONE) e++; emu_fail("divergent-barrier", "thread %d has exited, thread %d waits at the barrier %s:%d", e, a->id, a->file, a->line); }
    for (int i = 0; i < g_nt; i++) { Fib *f = &g_f[i]; if (f->st != WBAR) continue; if (f->out) *f->out = f->kind == 1 ? any : f->kind == 2 ? all : cnt; f->st = READY; }
    g_nbar = 0; g_bar++; if (g_sched == 2) { std::shuffle(g_ord, g_ord + g_nt, g_rng); for (int i = 0; i < g_nt; i++) g_pos[g_ord[i]] = i; }
}
extern "C" void emu_bar(int kind, int pred, int *out, const char *f, int l) {
    Fib *me = g_me; if (!me) emu_fail("misuse", "__syncthreads outside a kernel");
    me->kind = kind; me->pred = pred; me->out = out; me->file = f; me->line = l; me->st = WBAR; g_nbar++;
    release_bar_if_full(); yield_from(me); // the last to arrive does not go first
}
struct Grp { unsigned mask, arrived; int op; const char *file; int line; };
static Grp g_grp[MAXT / 32][4]; static unsigned g_exited[MAXT / 32];
extern "C" unsigned long long emu_warp(int op, unsigned mask, unsigned long long v, int a, int w, const char *file, int line) {
    Fib *me = g_me; if (!me) emu_fail("misuse", "warp collective outside a kernel");
    int base = me->warp * 32, n = std::min(32, g_nt - base); unsigned full = n == 32 ? 0xffffffffu : (1u << n) - 1, m = mask & full;
    if (!(mask >> me->lane & 1)) emu_fail("warp-collective", "%s:%d: the calling lane %d is not in the mask 0x%08x", file, line, me->lane, mask);
    if (w < 1 || w > 32 || (w & (w - 1))) emu_fail("warp-collective", "%s:%d: width %d", file, line, w);
    if (mask != m && mask != 0xffffffffu) emu_fail("warp-collective", "%s:%d: mask 0x%08x names lanes that do not exist", file, line, mask);
    if (m & g_exited[me->warp]) emu_fail("warp-collective", "%s:%d: lane %d, named in mask 0x%08x, has exited", file, line, __builtin_ctz(m & g_exited[me->warp]), mask);
    Grp *g = nullptr, *fr = nullptr;
    for (Grp &q : g_grp[me->warp]) { if (!q.arrived) { fr = &q; continue; } if (q.mask == mask && q.op == op && q.line == line && q.file == file) { g = &q; break; }
        if (q.mask & mask) emu_fail("warp-collective", "lane %d is at %s:%d (mask 0x%08x), lane %d at %s:%d (mask 0x%08x)", me->lane, file, line, mask, __builtin_ctz(q.arrived), q.file, q.line, q.mask); }
    if (!g) { if (!fr) emu_fail("unsupported", "more than 4 disjoint groups in a warp"); g = fr; *g = Grp{mask, 0, op, file, line}; }
    me->val = v; me->arg = a; me->width = w; me->file = file; me->line = line; me->mask = mask; me->st = WWARP; g->arrived |= 1u << me->lane;
    if (g->arrived != m) { yield_from(me); return me->res; }
    g->arrived = 0; Fib *f0 = &g_f[base];
    if (op == 0) { for (int i = 0; i < n; i++) if (m >> i & 1) { f0[i].wb++; f0[i].st = READY; } return 0; }
    if (op <= 4) {
        for (int i = 0; i < n; i++) if (m >> i & 1) { Fib *f = &f0[i]; int seg = i & ~(f->width - 1), src = op == 1 ? seg + (f->arg & (f->width - 1)) : op == 2 ? i ^ f->arg : op == 3 ? i - f->arg : i + f->arg; if (src < seg || src >= seg + f->width) src = i;
            if (!(m >> src & 1)) emu_fail("warp-collective", "%s:%d: lane %d reads lane %d, which is not in the mask 0x%08x or does not exist", file, line, i, src, mask);
            f->res = f0[src].val; f->st = READY; }
        return me->res; }
    unsigned bal = 0, sum = 0, andv = ~0u, orv = 0, xorv = 0, umn = ~0u, umx = 0; int mn = 0x7fffffff, mx = (int)0x80000000;
    for (int i = 0; i < n; i++) if (m >> i & 1) { unsigned u = (unsigned)f0[i].val; if (u) bal |= 1u << i; sum += u; andv &= u; orv |= u; xorv ^= u; mn = std::min(mn, (int)u); mx = std::max(mx, (int)u); umn = std::min(umn, u); umx = std::max(umx, u); }
    const unsigned r[] = {bal, sum, (unsigned)mn, (unsigned)mx, umn, umx, andv, orv, xorv};
    for (int i = 0; i < n; i++) if (m >> i & 1) { Fib *f = &f0[i]; if (op == 14) { unsigned q = 0; for (int j = 0; j < n; j++) if ((m >> j & 1) && f0[j].val == f->val) q |= 1u << j; f->res = q; } else f->res = r[op - 5]; f->st = READY; }
    return me->res;
}
static void lane_exits(Fib *me) { g_exited[me->warp] |= 1u << me->lane; for (Grp &q : g_grp[me->warp]) if (q.arrived && (q.mask >> me->lane & 1)) emu_fail("warp-collective", "lane %d of warp %d exited; lane %d waits for it at %s:%d (mask 0x%08x)", me->lane, me->warp, __builtin_ctz(q.arrived), q.file, q.line, q.mask); }
static char *sm_take(size_t n, size_t al) {
    size_t a = (g_smtop + 1024 + al - 1) & ~(al - 1); if (a + n + 1024 > g_smcap) emu_fail("shared-memory", "arena exhausted");
    g_smtop = a + n; char *p = g_sm + a; if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(p, n); memset(p, 0xFF, n);
    return p;
}
extern "C" void *emu_smem_dyn(size_t al) { if (!g_me) emu_fail("misuse", "shared memory outside a kernel"); (void)al; return g_dyn; }
extern "C" void *emu_smem_static(const void *key, size_t n, size_t al, const char *name) {
    for (int i = 0; i < g_nss; i++) if (g_ss[i].key == key) return g_ss[i].p;
    if (g_nss == 64) emu_fail("shared-memory", "too many arrays"); g_smuser += n;
    if (g_smuser > (48u << 10)) emu_fail("shared-memory", "%s: static shared memory above 48 KiB", name);
    g_ss[g_nss] = {key, sm_take(n, std::max(al, (size_t)16)), n}; return g_ss[g_nss++].p;
}
extern "C" void emu_atomic_lock(const void *p, size_t n) { if (emu_race_atomic) emu_race_atomic(1, p, n); }
extern "C" void emu_atomic_unlock(void) { }
EmuPos emu_pos() { Fib *f = t_exec ? g_me : nullptr; return f ? EmuPos{g_launch, g_block, (uint32_t)f->id, g_bar, g_bar0, f->wb, true} : EmuPos{0, 0, 0, 0, 0, 0, false}; }
void emu_regions(uintptr_t *a, uintptr_t *b, uintptr_t *c, uintptr_t *d) { *a = (uintptr_t)g_sm; *b = *a + g_smcap; *c = g_me ? (uintptr_t)g_me->stk : 0; *d = *c + STK; }
bool emu_smem_valid(uintptr_t a, size_t n) { if (g_dyn && a >= (uintptr_t)g_dyn && a + n <= (uintptr_t)g_dyn + g_dynn) return true; for (int i = 0; i < g_nss; i++) if (a >= (uintptr_t)g_ss[i].p && a + n <= (uintptr_t)g_ss[i].p + g_ss[i].n) return true; return false; }
void emu_where(char *buf, size_t n) {
    if (!g_in) { snprintf(buf, n, "host code"); return; } char k[300]; emu_symbolize(g_kern, k, sizeof k);
    snprintf(buf, n, "kernel %s, launch %u, block (%u,%u,%u), thread (%u,%u,%u)", k, g_launch, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
}
static std::map<const void *, int> g_fattr;
static void run_grid(const void *k, dim3 g, dim3 b, size_t smem, void (*tramp)(const void *, void *), const std::vector<char> &args) {
    std::lock_guard<std::mutex> l(g_devlock); t_exec = true;
    if (!g_f) { g_f = new Fib[MAXT](); size_t per = STK + 4096; char *m = (char *)mmap(nullptr, per * MAXT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (int i = 0; i < MAXT; i++) { mprotect(m + i * per, 4096, PROT_NONE); g_f[i].stk = m + i * per + 4096; g_f[i].id = i; g_f[i].warp = i / 32; g_f[i].lane = i % 32; }
        g_sm = (char *)mmap(nullptr, g_smcap, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        g_sched = envis("EMU_SCHED", "reverse") ? 1 : envis("EMU_SCHED", "random") ? 2 : 0; g_rng.seed((unsigned)env("EMU_SEED", 1)); }
    int nt = (int)(b.x * b.y * b.z); g_main_bot = nullptr; // may be called from several OS threads in turn
    g_tramp = tramp; g_args = &args; g_kern = k; g_launch++; g_in = true; g_nt = nt;
    for (int i = 0; i < nt; i++) { Fib *f = &g_f[i]; f->tid = make_uint3(i % b.x, i / b.x % b.y, i / (b.x * b.y)); } blockDim = b; gridDim = g;
    uint64_t nb = (uint64_t)g.x * g.y * g.z;
    for (uint64_t q = 0; q < nb; q++) {
        uint64_t bi = g_sched == 1 ? nb - 1 - q : q; g_block = (uint32_t)bi; blockIdx = make_uint3((unsigned)(bi % g.x), (unsigned)(bi / g.x % g.y), (unsigned)(bi / ((uint64_t)g.x * g.y)));
        if (__asan_poison_memory_region) __asan_poison_memory_region(g_sm, g_smcap); // everything not taken is a red zone
        g_smtop = 0; g_smuser = 0; g_nss = 0; g_dynn = smem; g_dyn = sm_take(smem, 1024); memset(g_grp, 0, sizeof g_grp[0] * ((nt + 31) / 32)); memset(g_exited, 0, sizeof g_exited); g_ndone = g_nbar = 0; g_bar0 = ++g_bar;
        for (int i = 0; i < nt; i++) g_ord[i] = g_sched == 1 ? nt - 1 - i : i;
        if (g_sched == 2) std::shuffle(g_ord, g_ord + nt, g_rng);
        for (int i = 0; i < nt; i++) { g_pos[g_ord[i]] = i; Fib *f = &g_f[i]; f->st = READY; f->wb++; if (!f->sp) prep(f); }
        to_fib(&g_f[g_ord[0]], &g_main_sp, &g_main_fake); landed(g_main_fake);
        if (g_ndone != nt) { // nobody can run
            std::string s; int shown = 0; std::map<std::string, std::pair<int, int>> where; for (int i = 0; i < nt; i++) { Fib *f = &g_f[i]; char t[300]; snprintf(t, sizeof t, f->st == DONE ? "exited" : "%s %s:%d", f->st == WBAR ? "__syncthreads" : "warp collective", f->file, f->line); auto &w = where[t]; if (!w.second++) w.first = i; }
            for (auto &w : where) { char t[400]; snprintf(t, sizeof t, "\n==EMU==   %d threads (first: %d) at %s", w.second.second, w.second.first, w.first.c_str()); s += t; if (++shown > 8) break; }
            emu_fail("deadlock", "no thread of the block can go on%s", s.c_str()); }
    }
    g_in = false; g_me = nullptr; t_exec = false;
}

// ------------------------------------------------------------------ streams, events, graphs
struct Op { std::string name; std::function<void()> fn; uint64_t wait_ev; };
struct CUstream_st { std::deque<std::pair<std::string, std::function<bool()>>> q; bool capturing = false; struct CUgraph_st *cap = nullptr; int dev = 0; bool busy = false; };
struct CUevent_st { uint64_t rec = 0, done = 0; CUstream_st *s = nullptr; double t = 0; };
struct CUgraph_st { std::vector<std::pair<std::string, std::function<void()>>> ops; };
struct CUgraphExec_st { std::vector<std::pair<std::string, std::function<void()>>> ops; };
static std::vector<CUstream_st *> g_streams; static CUstream_st g_null; static int g_lazy = -1; static thread_local cudaError_t t_err;
static CUstream_st *str(cudaStream_t s) { if (g_lazy < 0) g_lazy = !envis("EMU_STREAMS", "eager"); if (!s || s == cudaStreamLegacy) return &g_null; std::lock_guard<std::recursive_mutex> l(g_mx); if (std::find(g_streams.begin(), g_streams.end(), s) == g_streams.end()) emu_fail("bad-stream", "%p is not a live stream", (void *)s); return s; }
static bool g_draining;
// run s until empty, or until event e (generation gen) is complete; waits run the other stream as far as needed and no further
static void drain(CUstream_st *s, CUevent_st *e = nullptr, uint64_t gen = 0) {
    std::lock_guard<std::recursive_mutex> le(g_eng);
    if (s->busy) emu_fail("stream-deadlock", "streams wait for each other"); s->busy = true; int d = t_dev; t_dev = s->dev; bool top = !g_draining; g_draining = true;
    while (!s->q.empty() && !(e && e->done >= gen)) { auto op = std::move(s->q.front()); s->q.pop_front(); op.second(); }
    t_dev = d; s->busy = false; if (top) { g_draining = false; if (g_depth) emu_dev_end(); }
}
cudaError_t emu_enqueue(cudaStream_t st, const char *name, std::function<void()> fn) {
    std::lock_guard<std::recursive_mutex> le(g_eng); CUstream_st *s = str(st);
    if (s == &g_null) for (auto *o : g_streams) drain(o); // legacy default stream orders everything
    if (s->capturing) { s->cap->ops.push_back({name, fn}); return cudaSuccess; }
    if (s != &g_null && !g_null.q.empty()) drain(&g_null);
    s->dev = t_dev; bool cp = !strcmp(name, "copy"); s->q.push_back({name, [fn, cp] { if (!cp && !g_depth) emu_dev_begin(); fn(); return true; }}); if (!g_lazy) drain(s); return cudaSuccess;
}
static void drain_all() { std::lock_guard<std::recursive_mutex> le(g_eng); drain(&g_null); for (auto *s : std::vector<CUstream_st *>(g_streams)) drain(s); }
static cudaError_t err(cudaError_t e) { if (e) t_err = e; return e; }
EMU_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { std::lock_guard<std::recursive_mutex> l(g_mx); g_streams.push_back(*s = new CUstream_st()); (*s)->dev = t_dev; return cudaSuccess; }
EMU_API cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, 0); }
EMU_API cudaError_t cudaStreamSynchronize(cudaStream_t s) { CUstream_st *q = str(s); if (q->capturing) return err(cudaErrorStreamCaptureUnsupported); drain(q); return cudaSuccess; }
EMU_API cudaError_t cudaStreamDestroy(cudaStream_t s) { CUstream_st *q = str(s); drain(q); std::lock_guard<std::recursive_mutex> l(g_mx); g_streams.erase(std::find(g_streams.begin(), g_streams.end(), q)); delete q; return cudaSuccess; }
EMU_API cudaError_t cudaStreamQuery(cudaStream_t s) { CUstream_st *q = str(s); if (q->q.empty()) return cudaSuccess; auto op = std::move(q->q.front()); q->q.pop_front(); op.second(); if (g_depth) emu_dev_end(); return cudaErrorNotReady; }
EMU_API cudaError_t cudaDeviceSynchronize(void) { drain_all(); return cudaSuccess; }
EMU_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { *e = new CUevent_st(); return cudaSuccess; }
EMU_API cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
EMU_API cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; } // leaked: may still be queued
EMU_API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { CUstream_st *q = str(s); if (q->capturing) return cudaSuccess; uint64_t g = ++e->rec; e->s = q; q->q.push_back({"event", [e, g] { e->done = g; e->t = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); return true; }}); if (!g_lazy) drain(q); return cudaSuccess; }
EMU_API cudaError_t cudaEventSynchronize(cudaEvent_t e) { if (e->done < e->rec) drain(e->s, e, e->rec); return cudaSuccess; }
EMU_API cudaError_t cudaEventQuery(cudaEvent_t e) { if (e->done >= e->rec) return cudaSuccess; cudaStreamQuery(e->s == &g_null ? nullptr : e->s); return cudaErrorNotReady; }
EMU_API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { if (!a->done || !b->done) return err(cudaErrorNotReady); *ms = (float)(b->t - a->t); return cudaSuccess; }
EMU_API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) { CUstream_st *q = str(s); if (q->capturing) return cudaSuccess; uint64_t g = e->rec; q->q.push_back({"wait", [e, g] { if (e->done < g) drain(e->s, e, g); return true; }}); if (!g_lazy) drain(q); return cudaSuccess; }
EMU_API cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) { CUstream_st *q = str(s); if (q == &g_null) return err(cudaErrorStreamCaptureUnsupported); q->capturing = true; q->cap = new CUgraph_st(); return cudaSuccess; }
EMU_API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { CUstream_st *q = str(s); q->capturing = false; *g = q->cap; return cudaSuccess; }
EMU_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) { *x = new CUgraphExec_st{g->ops}; return cudaSuccess; }
EMU_API cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) { for (auto &o : x->ops) emu_enqueue(s, o.first.c_str(), o.second); return cudaSuccess; }
EMU_API cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return cudaSuccess; }
EMU_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) { delete x; return cudaSuccess; }

// ------------------------------------------------------------------ launches
bool emu_ptx_on() __attribute__((weak)); const void *emu_ptx_find(const std::string &) __attribute__((weak)); void emu_ptx_layout(const void *, const char *, const std::vector<std::pair<int, int>> &, std::vector<char> &) __attribute__((weak)); void emu_ptx_exec(const void *, void *) __attribute__((weak)); static int g_ptx_launches;
__attribute__((destructor)) static void ptx_note() { if (g_ptx_launches) fprintf(stderr, "==EMU== %d launches ran PTX\n", g_ptx_launches); }
extern "C" cudaError_t emu_set_func_attr(const void *f, int a, int v) { if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) { if (v > 227 << 10) return err(cudaErrorInvalidValue); g_fattr[f] = v; } return cudaSuccess; }
cudaError_t emu_launch(const cudaLaunchConfig_t *c, const void *k, void (*tramp)(const void *, void *), const void *args, size_t pb, const int *off, const int *size, int count) {
    dim3 g = c->gridDim, b = c->blockDim; size_t sm = c->dynamicSmemBytes; uint64_t nt = (uint64_t)b.x * b.y * b.z;
    if (!g.x || !g.y || !g.z || !nt || nt > 1024 || b.z > 64 || g.y > 65535 || g.z > 65535) return err(cudaErrorInvalidConfiguration);
    int lim = g_fattr.count(k) ? g_fattr[k] : 48 << 10; if (sm > (size_t)lim) return err(cudaErrorInvalidValue); if (pb > 4096) return err(cudaErrorInvalidValue);
    std::vector<char> av((const char *)args, (const char *)args + pb);
    if (emu_ptx_on && emu_ptx_on()) { // run nvcc's code for this kernel, if there is some
        static std::map<const void *, const void *> found; auto it = found.find(k);
        if (it == found.end()) { char cmd[256], nm[1024] = ""; snprintf(cmd, sizeof cmd, "addr2line -fe /proc/%d/exe 0x%lx", (int)getpid(), (unsigned long)k - (*(uint16_t *)(__executable_start + 16) == 2 ? 0 : (unsigned long)__executable_start)); FILE *p = popen(cmd, "r"); if (p) { if (!fgets(nm, sizeof nm, p)) nm[0] = 0; pclose(p); } nm[strcspn(nm, "\n")] = 0; it = found.emplace(k, emu_ptx_find(nm)).first; if (it->second) g_ptxname[it->second] = nm; if (!it->second) fprintf(stderr, "==EMU== no PTX for %s\n", nm); }
        if (it->second) { std::vector<std::pair<int, int>> o; for (int i = 0; i < count; i++) o.push_back({off[i], size[i]}); std::vector<char> pv; emu_ptx_layout(it->second, (const char *)args, o, pv); const void *fn = it->second; g_ptx_launches++; return emu_enqueue(c->stream, "kernel", [=] { run_grid(fn, g, b, sm, emu_ptx_exec, pv); }); } }
    return emu_enqueue(c->stream, "kernel", [=] { run_grid(k, g, b, sm, tramp, av); });
}
EMU_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *, void **) { emu_fail("unsupported", "use the typed cudaLaunchKernelEx"); }
EMU_API uint64_t emu_switch_count(void) { return g_switches; }

// ------------------------------------------------------------------ memory API
EMU_API cudaError_t cudaMalloc(void **p, size_t n) { *p = n ? dmalloc(n, false) : nullptr; return cudaSuccess; }
EMU_API cudaError_t cudaMallocHost(void **p, size_t n) { *p = n ? dmalloc(n, true) : nullptr; return cudaSuccess; }
EMU_API cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) { return cudaMallocHost(p, n); }
EMU_API cudaError_t cudaFree(void *p) { drain_all(); return dfree(p, false); }
EMU_API cudaError_t cudaFreeHost(void *p) { drain_all(); return dfree(p, true); }
static void chk_copy(const void *d, const void *s, size_t n, cudaMemcpyKind k) {
    if (k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice) emu_check_dev("copy destination", d, n);
    if (k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice) emu_check_dev("copy source", s, n);
    const EmuAlloc *a; if (k == cudaMemcpyHostToDevice && (a = emu_find_alloc(s)) && !a->pinned) emu_fail("bad-copy", "the source of a host-to-device copy is device memory");
    if (k == cudaMemcpyDeviceToHost && (a = emu_find_alloc(d)) && !a->pinned) emu_fail("bad-copy", "the destination of a device-to-host copy is device memory");
}
struct Open { const EmuAlloc *a; bool on; Open(const void *p) : a(emu_find_alloc(p)) { on = a && a->live && !a->pinned && g_protect > 0 && !g_depth; if (on) mprotect((void *)a->map, a->maplen, PROT_READ | PROT_WRITE); } ~Open() { if (on) mprotect((void *)a->map, a->maplen, PROT_NONE); } };
static cudaError_t copy(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st) { chk_copy(d, s, n, k); return emu_enqueue(st, "copy", [=] { chk_copy(d, s, n, k); Open a(d), b(s); memmove(d, s, n); }); }
EMU_API cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st) { return copy(d, s, n, k, st); }
EMU_API cudaError_t cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind k) { copy(d, s, n, k, nullptr); drain(&g_null); return cudaSuccess; }
EMU_API cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t st) { emu_check_dev("memset", d, n); return emu_enqueue(st, "copy", [=] { emu_check_dev("memset", d, n); Open a(d); memset(d, v, n); }); }
EMU_API cudaError_t cudaMemset(void *d, int v, size_t n) { cudaMemsetAsync(d, v, n, nullptr); drain(&g_null); return cudaSuccess; }
EMU_API cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *t = (size_t)80 << 30; size_t u = 0; for (auto &a : g_al) if (a.second.live && !a.second.pinned) u += a.second.size; *f = *t > u ? *t - u : 0; return cudaSuccess; }
// ------------------------------------------------------------------ device queries
EMU_API cudaError_t cudaGetDeviceCount(int *n) { *n = env("EMU_DEVICES", 1); return cudaSuccess; }
EMU_API cudaError_t cudaSetDevice(int d) { if (d < 0 || d >= env("EMU_DEVICES", 1)) return err(cudaErrorInvalidDevice); t_dev = d; return cudaSuccess; }
EMU_API cudaError_t cudaGetDevice(int *d) { *d = t_dev; return cudaSuccess; }
EMU_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) { memset(p, 0, sizeof *p); snprintf(p->name, sizeof p->name, "EMULATED (no GPU)"); p->major = 9; p->multiProcessorCount = 4; p->totalGlobalMem = (size_t)80 << 30; p->sharedMemPerBlock = 48 << 10; p->sharedMemPerBlockOptin = 227 << 10; p->warpSize = 32; p->maxThreadsPerBlock = 1024; return cudaSuccess; }
EMU_API cudaError_t cudaGetLastError(void) { cudaError_t e = t_err; t_err = cudaSuccess; return e; }
EMU_API cudaError_t cudaPeekAtLastError(void) { return t_err; }
EMU_API const char *cudaGetErrorString(cudaError_t e) { static char b[32]; snprintf(b, sizeof b, "cuda error %d", (int)e); return b; }
