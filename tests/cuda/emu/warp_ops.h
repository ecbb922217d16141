/* warp_ops.h -- names of the warp collectives, and the registers a lane brings to them: for kernels, interpreter and
 * emulator. */
#pragma once
enum {
    EMU_WARP_SYNC, EMU_WARP_IDX, EMU_WARP_XOR, EMU_WARP_UP, EMU_WARP_DOWN, EMU_WARP_BALLOT, EMU_WARP_ADD, EMU_WARP_MIN,
    EMU_WARP_MAX, EMU_WARP_UMIN, EMU_WARP_UMAX, EMU_WARP_AND, EMU_WARP_OR, EMU_WARP_XOR_ALL, EMU_WARP_MATCH, EMU_WARP_ALL
};

enum { EMU_MMA_F16, EMU_MMA_BF16, EMU_MMA_S8 };
struct EmuMma {
    unsigned d[4], a[4], b[2];
};
struct EmuLdmatrix {
    unsigned short row[8];                 /* what stands at the lane's address */
    unsigned d[4];
};
