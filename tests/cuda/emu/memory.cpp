/* memory.cpp -- device and pinned memory: the address window.
 *
 * 8 TiB of addresses are reserved and nothing else is ever mapped there. An allocation is alone in its own pages, 16 MiB
 * or more from its neighbours, filled with 0xff (NaN), and its addresses are never given out again: whatever points
 * beside it, or into it after cudaFree, hits a page that nobody may touch. Device memory is closed to the host: its pages
 * are opened only while queued work runs (emu_window_open), so host code that follows a device pointer faults. Pinned
 * memory stays open. The fault's report says whose memory it was. */
#include "fibre.h"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

extern "C" {
void __asan_poison_memory_region(void const volatile *, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(void const volatile *, size_t) __attribute__((weak));
}

static const size_t WINDOW_BYTES = (size_t)8 << 40, GAP = 16 << 20, PAGE = 4096, EDGE = 256;
static const size_t FILL_MAX = (size_t)256 << 20;       /* larger ones are virtual and read as 0 */

std::recursive_mutex emu_engine;
static auto &allocs = *new std::map<uintptr_t, EmuAlloc>; /* by base, dead ones too; outlives the destructors */
static uintptr_t window_low, window_high, window_next;
static bool window_is_open;
static size_t device_used[16];
static struct sigaction old_action;

/* ---- faults ------------------------------------------------------------------------------------------ */

static void on_fault(int, siginfo_t *info, void *context) {
    uintptr_t a = (uintptr_t)info->si_addr;
    bool inside = a >= window_low && a < window_high;
    if (!inside && !emu_me) {
        sigaction(SIGSEGV, &old_action, nullptr);       /* not ours: fault again */
        return;
    }
    char site[400];
    emu_symbolize((void *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP], site, sizeof site);
    const EmuAlloc *m = inside ? emu_alloc_at((void *)a) : nullptr;
    const char *what = !inside ? "not device memory" : !m ? "beside every allocation" : !m->live ? "freed" : "device memory";
    const char *kind = !emu_me && m && m->live ? "host-dereference" : m && !m->live ? "use-after-free"
                       : inside                ? "out-of-bounds" : "fault";
    emu_fail(kind, "%s touches %p (%s) at %s", emu_me ? "kernel" : "host code", (void *)a, what, site);
}

/* Again and again, because test frameworks put theirs in its place. */
static void handler_install() {
    struct sigaction ours = {}, now;
    sigaction(SIGSEGV, nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault)
        return;
    static char stack[64 << 10];
    stack_t want = {}, have;
    want.ss_sp = stack;
    want.ss_size = sizeof stack;
    if (!sigaltstack(nullptr, &have) && (have.ss_flags & SS_DISABLE) && !__asan_poison_memory_region)
        sigaltstack(&want, nullptr);                    /* ASan has one of its own for each thread */
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &ours, &old_action);
}

/* ---- the window ------------------------------------------------------------------------------------------ */

static void window_protect(int how) {
    for (auto &k : allocs)
        if (k.second.live && !k.second.pinned)
            mprotect((void *)k.second.map, k.second.map_bytes, how);
}

void emu_window_open() {
    if (window_is_open)
        return;
    handler_install();
    window_protect(PROT_READ | PROT_WRITE);
    window_is_open = true;
}

void emu_window_close() {
    EmuLock lock(emu_engine);
    if (window_is_open)
        window_protect(PROT_NONE);
    window_is_open = false;
}

const EmuAlloc *emu_alloc_at(const void *p) {
    auto it = allocs.upper_bound((uintptr_t)p);
    if (it == allocs.begin())
        return nullptr;
    const EmuAlloc &a = (--it)->second;
    return (uintptr_t)p < a.base + a.bytes ? &a : nullptr;
}

void emu_check_dev(const char *what, const void *p, size_t bytes, int device) {
    EmuLock lock(emu_engine);
    if (!bytes)
        return;
    const EmuAlloc *a = emu_alloc_at(p);
    if (!a)
        emu_fail("bad-device-pointer", "%s: %p (%zu bytes) is not device memory", what, p, bytes);
    if (!a->live)
        emu_fail("use-after-free", "%s: %p is in a freed allocation of %zu bytes", what, p, a->bytes);
    if ((uintptr_t)p + bytes > a->base + a->bytes)
        emu_fail("out-of-bounds", "%s: %zu bytes at offset %zu of an allocation of %zu", what, bytes,
                 (size_t)((uintptr_t)p - a->base), a->bytes);
    if (!a->pinned && a->device != device && device >= 0)
        emu_fail("wrong-device", "%s: memory of device %d used on device %d", what, a->device, device);
}

/* ---- allocations ------------------------------------------------------------------------------------------ */

static void window_reserve() {
    void *p = mmap(nullptr, WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        emu_fail("host-memory", "cannot reserve %zu bytes of addresses", WINDOW_BYTES);
    window_low = (uintptr_t)p;
    window_high = window_low + WINDOW_BYTES;
    window_next = (window_low + GAP) & ~(GAP - 1);
}

static void *take(size_t bytes, bool pinned) {
    EmuLock lock(emu_engine);
    if (!window_low)
        window_reserve();
    handler_install();
    if (!pinned && device_used[emu_device] + bytes > emu_device_memory(emu_device))
        return nullptr;
    size_t map_bytes = (EDGE + bytes + PAGE) & ~(PAGE - 1);
    uintptr_t map = window_next, base = map + EDGE;
    if (map + map_bytes + 2 * GAP > window_high)
        emu_fail("unsupported", "the emulator's 8 TiB of addresses are used up: too many allocations in one process");
    window_next += (map_bytes + 2 * GAP) & ~(GAP - 1);
    mprotect((void *)map, map_bytes, PROT_READ | PROT_WRITE);
    if (bytes <= FILL_MAX)
        memset((void *)base, 0xff, bytes);
    if (__asan_poison_memory_region) {
        __asan_poison_memory_region((void *)map, EDGE);
        __asan_poison_memory_region((void *)(base + bytes), map + map_bytes - base - bytes);
    }
    allocs[base] = EmuAlloc{base, bytes, emu_device, true, pinned, false, map, map_bytes};
    if (!pinned)
        device_used[emu_device] += bytes;
    if (!pinned && !window_is_open)
        mprotect((void *)map, map_bytes, PROT_NONE);
    return (void *)base;
}

static void give(void *p, bool pinned) {
    EmuLock lock(emu_engine);
    auto it = allocs.find((uintptr_t)p);
    if (it == allocs.end() || it->second.registered)
        emu_fail("bad-free", "%p was not returned by an allocator", p);
    EmuAlloc &a = it->second;
    if (!a.live)
        emu_fail("double-free", "%p, %zu bytes", p, a.bytes);
    if (a.pinned != pinned)
        emu_fail("bad-free", "%p is %s memory", p, a.pinned ? "pinned host" : "device");
    a.live = false;
    if (!pinned)
        device_used[a.device] -= a.bytes;
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region((void *)a.map, a.map_bytes);
    madvise((void *)a.map, a.map_bytes, MADV_DONTNEED);
    mprotect((void *)a.map, a.map_bytes, PROT_NONE);
}

static cudaError_t malloc_any(void **p, size_t bytes, bool pinned) {
    if (!p)
        return emu_error(cudaErrorInvalidValue);
    *p = bytes ? take(bytes, pinned) : nullptr;
    return bytes && !*p ? emu_error(cudaErrorMemoryAllocation) : cudaSuccess;
}

#define FORBIDDEN_IN_CAPTURE()                                                                                         \
    if (cudaError_t e_ = emu_capture_forbids())                                                                        \
    return emu_error(e_)

EMU_API cudaError_t cudaMalloc(void **p, size_t bytes) {
    EMU_ENTER();
    FORBIDDEN_IN_CAPTURE();
    return malloc_any(p, bytes, false);
}

EMU_API cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t) {
    EMU_ENTER();
    FORBIDDEN_IN_CAPTURE();
    return malloc_any(p, bytes, false);
}

EMU_API cudaError_t cudaMallocHost(void **p, size_t bytes) {
    EMU_ENTER();
    FORBIDDEN_IN_CAPTURE();
    return malloc_any(p, bytes, true);
}

EMU_API cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
    EMU_ENTER();
    FORBIDDEN_IN_CAPTURE();
    return malloc_any(p, bytes, true);
}

/* Waits for the device, as CUDA does. */
static cudaError_t free_any(void *p, bool pinned) {
    int device = emu_device;
    {
        EmuLock lock(emu_engine);
        const EmuAlloc *a = emu_alloc_at(p);
        if (a && !pinned)
            device = a->device;
    }
    emu_drain_device(device);
    if (p)
        give(p, pinned);
    return cudaSuccess;
}

EMU_API cudaError_t cudaFree(void *p) {
    EMU_ENTER();
    FORBIDDEN_IN_CAPTURE();
    return free_any(p, false);
}

EMU_API cudaError_t cudaFreeHost(void *p) {
    EMU_ENTER();
    FORBIDDEN_IN_CAPTURE();
    return free_any(p, true);
}

EMU_API cudaError_t cudaFreeAsync(void *p, cudaStream_t st) {
    EMU_ENTER();
    return emu_enqueue(st, "free", [p] {
        give(p, false);
        return true;
    });
}

EMU_API cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    if (!p || !bytes)
        return emu_error(cudaErrorInvalidValue);
    const EmuAlloc *a = emu_alloc_at(p);
    if (a && a->live)
        return emu_error(cudaErrorHostMemoryAlreadyRegistered);
    allocs[(uintptr_t)p] = EmuAlloc{(uintptr_t)p, bytes, emu_device, true, true, true, 0, 0};
    return cudaSuccess;
}

EMU_API cudaError_t cudaHostUnregister(void *p) {
    EMU_ENTER();
    emu_drain_device(emu_device);
    EmuLock lock(emu_engine);
    auto it = allocs.find((uintptr_t)p);
    if (it == allocs.end() || !it->second.registered)
        return emu_error(cudaErrorHostMemoryNotRegistered);
    allocs.erase(it);
    return cudaSuccess;
}

EMU_API cudaError_t cudaHostGetDevicePointer(void **d, void *p, unsigned) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    const EmuAlloc *a = emu_alloc_at(p);
    if (!a || !a->pinned)
        return emu_error(cudaErrorInvalidValue);
    *d = p;
    return cudaSuccess;
}

EMU_API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    *total = emu_device_memory(emu_device);
    *free_bytes = *total - device_used[emu_device];
    return cudaSuccess;
}

EMU_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *out, const void *p) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    const EmuAlloc *a = emu_alloc_at(p);
    bool known = a && a->live;
    *out = cudaPointerAttributes{};
    out->type = !known ? cudaMemoryTypeUnregistered : a->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    out->device = known ? a->device : -2;
    out->devicePointer = known ? (void *)p : nullptr;
    out->hostPointer = known && a->pinned ? (void *)p : nullptr;
    return cudaSuccess;
}

/* ---- what a process leaves behind ------------------------------------------------------------------------------------ */

__attribute__((destructor)) static void leaks() {
    if (!emu_env("EMU_LEAKS", 0))
        return;
    size_t count = 0, bytes = 0;
    for (auto &k : allocs)
        if (k.second.live) {
            count++;
            bytes += k.second.bytes;
        }
    if (!count)
        return;
    fprintf(stderr, "\n==EMU== ERROR: leak: %zu allocations, %zu bytes, were not freed\n", count, bytes);
    fflush(stderr);
    _exit(88);
}
