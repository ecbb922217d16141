/* shared.cpp -- shared memory of the block that runs.
 *
 * One arena, taken from its beginning by every block: the dynamic array first, then each SHARED_ARRAY when a thread first
 * comes to it. A kilobyte between arrays belongs to nobody: ASan has it poisoned, race.cpp asks emu_shared_has(). A new
 * block's arrays are filled with 0xff, which is NaN in every float format. */
#include "fibre.h"
#include <algorithm>
#include <cstring>
#include <sys/mman.h>

extern "C" {
void __asan_poison_memory_region(void const volatile *, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(void const volatile *, size_t) __attribute__((weak));
}

static const size_t ARENA_BYTES = 512 << 10, GAP_BYTES = 1024, STATIC_MAX = 48 << 10;
enum { ARRAYS_MAX = 65 };

struct Array {
    const void *key;
    char *at;
    size_t bytes;
};

static char *arena;
static size_t arena_used, static_bytes, dynamic_bytes, block_max;
static Array arrays[ARRAYS_MAX];           /* 0: the dynamic one */
static int array_count;

static char *array_take(const void *key, size_t bytes, size_t align) {
    size_t at = (arena_used + GAP_BYTES + align - 1) & ~(align - 1);
    if (at + bytes + GAP_BYTES > ARENA_BYTES || array_count == ARRAYS_MAX)
        emu_fail("shared-memory", "the arena of %zu bytes and %d arrays is full", ARENA_BYTES, ARRAYS_MAX);
    arena_used = at + bytes;
    arrays[array_count++] = Array{key, arena + at, bytes};
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region(arena + at, bytes);
    memset(arena + at, 0xff, bytes);
    return arena + at;
}

void emu_shared_begin(size_t dynamic, size_t max_bytes) {
    if (!arena)
        arena = (char *)mmap(nullptr, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (__asan_poison_memory_region)
        __asan_poison_memory_region(arena, ARENA_BYTES);
    arena_used = static_bytes = 0;
    array_count = 0;
    dynamic_bytes = dynamic;
    block_max = max_bytes;
    array_take(nullptr, dynamic, 1024);
}

void emu_shared_range(uintptr_t *low, uintptr_t *high) {
    *low = (uintptr_t)arena;
    *high = *low + ARENA_BYTES;
}

bool emu_shared_has(uintptr_t a, size_t bytes) {
    for (int i = 0; i < array_count; i++)
        if (a >= (uintptr_t)arrays[i].at && a + bytes <= (uintptr_t)arrays[i].at + arrays[i].bytes)
            return true;
    return false;
}

extern "C" void *emu_smem_dyn(size_t align) {
    if (!emu_me)
        emu_fail("misuse", "shared memory outside of a kernel");
    if (align > 1024)
        emu_fail("unsupported", "dynamic shared memory aligned to %zu", align);
    return arrays[0].at;
}

extern "C" void *emu_smem_static(const void *key, size_t bytes, size_t align, const char *name) {
    if (!emu_me)
        emu_fail("misuse", "shared memory %s outside of a kernel", name);
    for (int i = 1; i < array_count; i++)
        if (arrays[i].key == key)
            return arrays[i].at;
    static_bytes += bytes;
    if (static_bytes > STATIC_MAX)
        emu_fail("shared-memory", "%s: %zu bytes in SHARED_ARRAYs, a block has %zu", name, static_bytes, STATIC_MAX);
    if (static_bytes + dynamic_bytes > block_max)
        emu_fail("shared-memory", "%s: %zu static and %zu dynamic bytes, the kernel may have %zu", name, static_bytes,
                 dynamic_bytes, block_max);
    return array_take(key, bytes, std::max(align, (size_t)16));
}
