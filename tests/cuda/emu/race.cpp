/* race.cpp -- memory and race checker.
 *
 * The .cu file is compiled with -fsanitize=thread, which puts a call before every load and store; the calls land here
 * and not in libtsan, so they know blocks, warps, barriers and address spaces. The PTX interpreter calls the same. For
 * each byte of shared memory it remembers the last write and the last read, for each byte of global memory the last
 * write: by which thread, after how many barriers.
 *
 * Two accesses are ordered if the thread is the same, if a block barrier lies between them, or if both threads are of one
 * warp and the later one has passed a __syncwarp since. Otherwise, if one of them writes and not both are atomic:
 *
 *   shared   read after write, write after write, write after read
 *   global   read after write, write after write; between blocks of a launch nothing is ever ordered
 *
 * A read before a write in global memory is not remembered; another order of threads turns it into the other case.
 * A race is reported once a place, the run goes on, and the process ends with status 87.
 *
 * Reported at once: access beside every allocation or shared array, to freed or to another device's memory, to host
 * memory, misaligned access, a read of shared memory that nobody wrote in this block. */
#include "emu.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <unistd.h>
#include <unordered_map>

extern char __executable_start[], end[];

struct Write {
    uint32_t launch, block, barrier, warp_sync;
    uint16_t thread;
    bool atomic;
};

struct Read {
    uint32_t barrier, warp_sync;
    uint16_t thread;
    bool several;                          /* other threads read it too, unordered with this one */
};

struct Page {
    Write write[4096];
};

/* One access, as its callback saw it. */
struct Access {
    EmuPos at;
    uintptr_t address;
    size_t bytes;
    bool write, atomic;
    const void *pc;
};

static std::unordered_map<uintptr_t, Page *> pages;
static Write *shared_write;
static Read *shared_read;
static auto &reported = *new std::set<std::pair<const void *, const char *>>; /* outlives the destructors */

__attribute__((destructor)) static void finish() {
    if (reported.empty())
        return;
    fprintf(stderr, "==EMU== %zu race(s)\n", reported.size());
    fflush(stderr);
    _exit(87);
}

/* pc is where the callback returns to; the access stands before it. */
static const char *site(const Access &x, char *buf, size_t bytes) {
    return emu_symbolize(x.pc ? (const char *)x.pc - 1 : nullptr, buf, bytes);
}

static void race(const Access &x, const char *kind, const char *space, uint32_t block, uint32_t thread) {
    char at[400], where[512], key[400];
    const void *place = x.pc;
    if (!place && emu_ptx_site(key, sizeof key))           /* of PTX every place has the same pc */
        place = (const void *)std::hash<std::string>()(key);
    if (!reported.insert({place, kind}).second)
        return;
    emu_where(where, sizeof where);
    fprintf(stderr, "\n==EMU== ERROR: race: %s in %s memory, %p, no barrier since thread %u of block %u touched it\n"
                    "==EMU==   at %s\n==EMU==   in %s\n",
            kind, space, (void *)x.address, thread, block, site(x, at, sizeof at), where);
}

static bool warp_ordered(const EmuPos &p, uint32_t thread, uint32_t warp_sync) {
    return thread / 32 == p.thread / 32 && warp_sync < p.warp_sync;
}

static bool ordered(const EmuPos &p, uint32_t thread, uint32_t barrier, uint32_t warp_sync) {
    return thread == p.thread || barrier < p.barrier || warp_ordered(p, thread, warp_sync);
}

static Write write_of(const Access &x) {
    return Write{x.at.launch, x.at.block, x.at.barrier, x.at.warp_sync, (uint16_t)x.at.thread, x.atomic};
}

/* ---- shared memory ------------------------------------------------------------------------------------------ */

static void shared_byte(const Access &x, Write *w, Read *r) {
    const EmuPos &p = x.at;
    bool written = w->barrier >= p.barrier0 && w->barrier;     /* in this block */
    char at[400];
    if ((!x.write || x.atomic) && !written)
        emu_fail("uninitialised", "read of shared memory that nobody wrote in this block, at %s", site(x, at, sizeof at));
    if (written && !ordered(p, w->thread, w->barrier, w->warp_sync) && !(x.atomic && w->atomic))
        race(x, x.write ? "write after write" : "read after write", "shared", p.block, w->thread);
    if (x.write) {
        bool just_read = r->barrier == p.barrier;
        bool safe = warp_ordered(p, r->thread, r->warp_sync) || (r->thread == p.thread && !r->several);
        if (just_read && !safe)
            race(x, "write after read", "shared", p.block, r->thread);
        *w = write_of(x);
        return;
    }
    r->several = r->barrier == p.barrier && (r->several || r->thread != p.thread) &&
                 !warp_ordered(p, r->thread, r->warp_sync);
    r->barrier = p.barrier;
    r->warp_sync = p.warp_sync;
    r->thread = (uint16_t)p.thread;
}

static void shared_access(const Access &x, uintptr_t low, uintptr_t high) {
    char at[400];
    if (!emu_shared_has(x.address, x.bytes))
        emu_fail("out-of-bounds", "%s of %zu bytes outside of every shared array at %s", x.write ? "write" : "read",
                 x.bytes, site(x, at, sizeof at));
    if (!shared_write) {
        shared_write = (Write *)calloc(high - low, sizeof(Write));
        shared_read = (Read *)calloc(high - low, sizeof(Read));
    }
    for (size_t i = x.address - low; i < x.address - low + x.bytes; i++)
        shared_byte(x, &shared_write[i], &shared_read[i]);
}

/* ---- global memory ------------------------------------------------------------------------------------------ */

static Write *global_write(uintptr_t a, bool make) {
    auto it = pages.find(a >> 12);
    if (it == pages.end()) {
        if (!make)
            return nullptr;
        it = pages.emplace(a >> 12, (Page *)calloc(1, sizeof(Page))).first;
    }
    return &it->second->write[a & 4095];
}

static void global_access(const Access &x, const EmuAlloc *m) {
    char at[400];
    const char *verb = x.write ? "write" : "read";
    if (!m->live)
        emu_fail("use-after-free", "%s at %s", verb, site(x, at, sizeof at));
    if (x.address + x.bytes > m->base + m->bytes)
        emu_fail("out-of-bounds", "%s past the end of an allocation of %zu bytes at %s", verb, m->bytes,
                 site(x, at, sizeof at));
    if (!m->pinned && m->device != emu_device)
        emu_fail("wrong-device", "%s of memory of device %d on device %d at %s", verb, m->device, emu_device,
                 site(x, at, sizeof at));
    for (uintptr_t a = x.address; a < x.address + x.bytes; a++) {
        Write *w = global_write(a, x.write);
        if (!w)
            continue;
        bool same_launch = w->launch == x.at.launch, both_atomic = x.atomic && w->atomic;
        bool safe = w->block == x.at.block && ordered(x.at, w->thread, w->barrier, w->warp_sync);
        if (same_launch && !both_atomic && !safe)
            race(x, x.write ? "write after write" : "read after write", "global", w->block, w->thread);
        if (x.write)
            *w = write_of(x);
    }
}

/* ---- every access ------------------------------------------------------------------------------------------ */

static void access(const Access &x) {
    char at[400];
    uintptr_t low, high;
    emu_stack(&low, &high);
    if (x.address >= low && x.address < high)
        return;
    size_t align = x.bytes > 16 ? 16 : x.bytes;
    if (align && x.address % align)
        emu_fail("misaligned", "%s of %zu bytes at %p, at %s", x.write ? "write" : "read", x.bytes, (void *)x.address,
                 site(x, at, sizeof at));
    emu_shared_range(&low, &high);
    if (x.address >= low && x.address < high)
        return shared_access(x, low, high);
    if (const EmuAlloc *m = emu_alloc_at((void *)x.address))
        return global_access(x, m);
    bool own = x.address >= (uintptr_t)__executable_start && x.address < (uintptr_t)end;   /* constant tables */
    if (!own || x.write)
        emu_fail("bad-pointer", "kernel %s %p, which is not device memory, at %s", x.write ? "writes" : "reads",
                 (void *)x.address, site(x, at, sizeof at));
}

extern "C" void emu_race_access(uintptr_t a, size_t bytes, bool write, bool atomic, const void *pc) {
    Access x = {emu_pos(), a, bytes, write, atomic, pc};
    if (x.at.in_kernel)
        access(x);
}

extern "C" {
void emu_race_atomic(const void *p, size_t bytes) {
    emu_race_access((uintptr_t)p, bytes, true, true, __builtin_return_address(0));
}
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
#define CALLBACK(name, bytes, write)                                                                                   \
    void __tsan_##name(void *a) { emu_race_access((uintptr_t)a, bytes, write, false, __builtin_return_address(0)); }
#define CALLBACKS(bytes)                                                                                               \
    CALLBACK(read##bytes, bytes, false)                                                                                \
    CALLBACK(write##bytes, bytes, true)                                                                                \
    CALLBACK(unaligned_read##bytes, bytes, false)                                                                      \
    CALLBACK(unaligned_write##bytes, bytes, true)                                                                      \
    CALLBACK(volatile_read##bytes, bytes, false)                                                                       \
    CALLBACK(volatile_write##bytes, bytes, true)
CALLBACKS(1)
CALLBACKS(2)
CALLBACKS(4)
CALLBACKS(8)
CALLBACKS(16)
void __tsan_read_range(void *a, size_t n) { emu_race_access((uintptr_t)a, n, false, false, __builtin_return_address(0)); }
void __tsan_write_range(void *a, size_t n) { emu_race_access((uintptr_t)a, n, true, false, __builtin_return_address(0)); }
}
