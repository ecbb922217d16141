/* device_warp.h -- what the lanes of a warp do together, in kernels built by g++. device.h includes it. */
#pragma once
extern "C" {
unsigned long long emu_warp(int op, unsigned mask, unsigned long long value, int arg, int width, const char *file, int line);
void emu_warp_all(void (*fn)(void *lanes[32], int arg), void *mine, int arg, const char *file, int line);
void emu_mma_run(void *lanes[32], int form);
void emu_ldmatrix_run(void *lanes[32], int form);
void emu_cp_async(void *shared, const void *global, int bytes, int from_bytes, const void *pc);
void emu_cp_async_commit(void);
void emu_cp_async_wait(int groups_left);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_SITE) {
    emu_warp(EMU_WARP_SYNC, mask, 0, 0, 32, file_, line_);
}

template <class T>
static inline T emu_shuffle(int op, unsigned mask, T v, int arg, int width, const char *file, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle of up to 8 bytes");
    unsigned long long bits = 0;
    memcpy(&bits, &v, sizeof v);
    bits = emu_warp(op, mask, bits, arg, width, file, line);
    memcpy((void *)&v, &bits, sizeof v);
    return v;
}
template <class T> static inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32, EMU_SITE) {
    return emu_shuffle(EMU_WARP_IDX, mask, v, lane, width, file_, line_);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, EMU_SITE) {
    return emu_shuffle(EMU_WARP_XOR, mask, v, lanes, width, file_, line_);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_SITE) {
    return emu_shuffle(EMU_WARP_UP, mask, v, (int)by, width, file_, line_);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_SITE) {
    return emu_shuffle(EMU_WARP_DOWN, mask, v, (int)by, width, file_, line_);
}

static inline unsigned __ballot_sync(unsigned mask, int p, EMU_SITE) {
    return (unsigned)emu_warp(EMU_WARP_BALLOT, mask, p != 0, 0, 32, file_, line_);
}
static inline int __any_sync(unsigned mask, int p, EMU_SITE) {
    return emu_warp(EMU_WARP_BALLOT, mask, p != 0, 0, 32, file_, line_) != 0;
}
static inline int __all_sync(unsigned mask, int p, EMU_SITE) {
    return emu_warp(EMU_WARP_BALLOT, mask, p == 0, 0, 32, file_, line_) == 0;
}
static inline unsigned __match_any_sync(unsigned mask, unsigned v, EMU_SITE) {
    return (unsigned)emu_warp(EMU_WARP_MATCH, mask, v, 0, 32, file_, line_);
}
#define EMU_REDUCE(name, type, op)                                                                                     \
    static inline type name(unsigned mask, type v, EMU_SITE) {                                                         \
        return (type)emu_warp(op, mask, (unsigned)v, 0, 32, file_, line_);                                             \
    }
EMU_REDUCE(__reduce_add_sync, unsigned, EMU_WARP_ADD)
EMU_REDUCE(__reduce_add_sync, int, EMU_WARP_ADD)
EMU_REDUCE(__reduce_min_sync, unsigned, EMU_WARP_UMIN)
EMU_REDUCE(__reduce_min_sync, int, EMU_WARP_MIN)
EMU_REDUCE(__reduce_max_sync, unsigned, EMU_WARP_UMAX)
EMU_REDUCE(__reduce_max_sync, int, EMU_WARP_MAX)
EMU_REDUCE(__reduce_and_sync, unsigned, EMU_WARP_AND)
EMU_REDUCE(__reduce_or_sync, unsigned, EMU_WARP_OR)
EMU_REDUCE(__reduce_xor_sync, unsigned, EMU_WARP_XOR_ALL)
#undef EMU_REDUCE

/* ---- tensor cores: twins of the inline PTX in engine/cuda/device.cuh (mma.cpp) --------------------------------------- */

static inline void emu_mma(int form, void *d, const unsigned a[4], const unsigned b[2], const char *file, int line) {
    EmuMma lane;
    memcpy(lane.d, d, sizeof lane.d);
    memcpy(lane.a, a, sizeof lane.a);
    memcpy(lane.b, b, sizeof lane.b);
    emu_warp_all(emu_mma_run, &lane, form, file, line);
    memcpy(d, lane.d, sizeof lane.d);
}
static inline void emu_mma_m16n8k16_f16(float d[4], const unsigned a[4], const unsigned b[2], EMU_SITE) {
    emu_mma(EMU_MMA_F16, d, a, b, file_, line_);
}
static inline void emu_mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], EMU_SITE) {
    emu_mma(EMU_MMA_BF16, d, a, b, file_, line_);
}
static inline void emu_mma_m16n8k32_s8(int d[4], const unsigned a[4], const unsigned b[2], EMU_SITE) {
    emu_mma(EMU_MMA_S8, d, a, b, file_, line_);
}

/* ldmatrix.sync.aligned.m8n8.x(count)[.trans].shared.b16: row is the lane's address in shared memory. */
static inline void emu_ldmatrix(unsigned *d, const void *row, int count, bool transposed, EMU_SITE) {
    EmuLdmatrix lane = {};
    if ((int)(threadIdx.x % 32) < 8 * count)
        memcpy(lane.row, (const uint4 *)row, sizeof lane.row);
    emu_warp_all(emu_ldmatrix_run, &lane, count * 2 + transposed, file_, line_);
    memcpy(d, lane.d, sizeof(unsigned) * count);
}

/* cp.async.ca.shared.global: bytes land in shared memory, from_bytes of them from p, the rest 0. */
static inline void emu_copy_async(void *shared, const void *global, int bytes, int from_bytes) {
    emu_cp_async(shared, global, bytes, from_bytes, __builtin_return_address(0));
}
