// Test-only memory and race checker: the .cu file is compiled with -fsanitize=thread, and THIS file,
// not libtsan, gives the __tsan_* callbacks. It knows blocks, warps, barriers and CUDA address spaces.
#include "emu.h"
#include <cstdio>
#include <cstring>
#include <unordered_map>
#include <unordered_set>
#include <cstdlib>
struct W { uint32_t launch, block, bar, wb; uint16_t thr; uint8_t atomic; };
struct R { uint32_t bar, wb; uint16_t thr; bool many; };
struct Page { W w[4096]; };
static std::unordered_map<uintptr_t, Page *> g_pages; static W *sw; static R *sr; static uintptr_t s_lo, s_hi; static std::unordered_set<uintptr_t> g_seen; static int g_bad;
extern char __executable_start[], end[];
static const char *sp_name(int s) { return s ? "shared" : "global"; }
static void race(const char *k, int space, uintptr_t a, uint32_t oblock, uint32_t othr, const void *pc) {
    if (!g_seen.insert((uintptr_t)pc ^ (uintptr_t)k).second) return; char b[320], w[400]; emu_where(w, sizeof w);
    fprintf(stderr, "\n==EMU== ERROR: race: %s on %s memory %p, no barrier since thread %u of block %u touched it\n==EMU==   at %s\n==EMU==   in %s\n", k, sp_name(space), (void *)a, othr, oblock, emu_symbolize((const char *)pc - 1, b, sizeof b), w);
    g_bad++;
}
__attribute__((destructor)) static void fin() { if (g_bad) { fprintf(stderr, "==EMU== %d race(s)\n", g_bad); fflush(stderr); _Exit(87); } }
// barrier or __syncwarp between the earlier access (o) and now?
static bool ordered(const EmuPos &p, uint32_t obar, uint32_t owb, uint32_t othr) { return othr == p.thread || obar < p.bar || (othr / 32 == p.thread / 32 && owb < p.warpbar); }
static void access(uintptr_t a, size_t n, bool wr, bool atomic, const void *pc) {
    EmuPos p = emu_pos(); if (!p.in_kernel) return;
    uintptr_t klo, khi; emu_regions(&s_lo, &s_hi, &klo, &khi);
    if (a >= klo && a < khi) return;
    if (a % (n > 16 ? 16 : n ? n : 1)) { char b[320]; emu_fail("misaligned", "%zu-byte access to %p at %s", n, (void *)a, emu_symbolize((const char *)pc - 1, b, sizeof b)); }
    if (a >= s_lo && a < s_hi) {
        char b[320]; if (!emu_smem_valid(a, n)) emu_fail("out-of-bounds", "%s of %zu bytes outside every shared array at %s", wr ? "write" : "read", n, emu_symbolize((const char *)pc - 1, b, sizeof b));
        if (!sw) { sw = (W *)calloc(s_hi - s_lo, sizeof(W)); sr = (R *)calloc(s_hi - s_lo, sizeof(R)); }
        for (size_t i = 0; i < n; i++) { W &w = sw[a - s_lo + i]; R &r = sr[a - s_lo + i]; bool inb = w.bar >= p.bar0;
            if (!wr && !inb) emu_fail("uninitialised", "read of shared memory nobody wrote in this block, at %s", emu_symbolize((const char *)pc - 1, b, sizeof b));
            if (inb && !ordered(p, w.bar, w.wb, w.thr) && !(atomic && w.atomic)) { race(wr ? "write after write" : "read after write", 1, a, p.block, w.thr, pc); }
            if (wr && r.bar >= p.bar0 && r.bar == p.bar && (r.many ? r.bar == p.bar && !(r.thr / 32 == p.thread / 32 && r.wb < p.warpbar) : !ordered(p, r.bar, r.wb, r.thr))) race("write after read", 1, a, p.block, r.thr, pc);
            if (wr) w = W{p.launch, p.block, p.bar, p.warpbar, (uint16_t)p.thread, atomic}; 
            else { if (r.bar == p.bar && r.thr != p.thread && !(r.thr / 32 == p.thread / 32 && r.wb < p.warpbar)) r.many = true; else r.many = false; r.bar = p.bar; r.wb = p.warpbar; r.thr = (uint16_t)p.thread; } }
        return;
    }
    static const EmuAlloc *last; const EmuAlloc *al = last && a >= last->base && a < last->base + last->size && last->live ? last : emu_find_alloc((void *)a); 
    if (al) { last = al; char b[320];
        if (!al->live) emu_fail("use-after-free", "%s at %s", wr ? "write" : "read", emu_symbolize((const char *)pc - 1, b, sizeof b));
        if (a + n > al->base + al->size) emu_fail("out-of-bounds", "%s past the end of an allocation of %zu bytes at %s", wr ? "write" : "read", al->size, emu_symbolize((const char *)pc - 1, b, sizeof b));
        if (!al->pinned && al->dev != emu_cur_device()) emu_fail("wrong-device", "memory of device %d used on device %d at %s", al->dev, emu_cur_device(), emu_symbolize((const char *)pc - 1, b, sizeof b));
        for (size_t i = 0; i < n; i++) { auto it = g_pages.find((a + i) >> 12); if (it == g_pages.end()) { if (!wr) continue; it = g_pages.emplace((a + i) >> 12, (Page *)calloc(1, sizeof(Page))).first; }
            W &w = it->second->w[(a + i) & 4095];
            if (w.launch == p.launch && !(atomic && w.atomic) && !(w.block == p.block && ordered(p, w.bar, w.wb, w.thr))) { race(wr ? "write after write" : "read after write", 0, a, w.block, w.thr, pc); }
            if (wr) w = W{p.launch, p.block, p.bar, p.warpbar, (uint16_t)p.thread, atomic}; }
        return; }
    char b[320];
    if (a >= (uintptr_t)__executable_start && a < (uintptr_t)end) { if (wr) emu_fail("bad-write", "kernel writes a host variable at %s", emu_symbolize((const char *)pc - 1, b, sizeof b)); return; }
    emu_fail("bad-pointer", "kernel %s %p, which is not device memory, at %s", wr ? "writes" : "reads", (void *)a, emu_symbolize((const char *)pc - 1, b, sizeof b));
}
extern "C" {
void emu_race_access(uintptr_t a, size_t n, bool wr, bool at, const void *pc) { access(a, n, wr, at, pc); }
void emu_race_atomic(int, const void *p, size_t n) { access((uintptr_t)p, n, true, true, __builtin_return_address(0)); }
void __tsan_init(void) {} void __tsan_func_entry(void *) {} void __tsan_func_exit(void) {}
#define H(N) void __tsan_read##N(void *a) { access((uintptr_t)a, N, false, false, __builtin_return_address(0)); } void __tsan_write##N(void *a) { access((uintptr_t)a, N, true, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##N(void *a) { access((uintptr_t)a, N, false, false, __builtin_return_address(0)); } void __tsan_unaligned_write##N(void *a) { access((uintptr_t)a, N, true, false, __builtin_return_address(0)); } \
  void __tsan_volatile_read##N(void *a) { access((uintptr_t)a, N, false, false, __builtin_return_address(0)); } void __tsan_volatile_write##N(void *a) { access((uintptr_t)a, N, true, false, __builtin_return_address(0)); }
H(1) H(2) H(4) H(8) H(16)
void __tsan_read_range(void *a, size_t n) { access((uintptr_t)a, n, false, false, __builtin_return_address(0)); }
void __tsan_write_range(void *a, size_t n) { access((uintptr_t)a, n, true, false, __builtin_return_address(0)); }
void __tsan_vptr_update(void *, void *) {} void __tsan_vptr_read(void *) {}
}
