/* panel.cuh -- quantised weights as the products read them.
 *
 * cuda_repack() cuts a matrix into panels of 32 outputs, a panel into tiles of 32 columns: the block of the file, 32
 * times, no byte more. Lane 4g+t of a warp holds of a tile columns 8t .. 8t+7 of the outputs g, g+8, g+16 and g+24 ("r" =
 * 0 to 3): what it holds of operand a of mma.m16n8k32, whose columns may stand in any order if they do so in both
 * operands. Every load of a tile is 16 bytes a lane, side by side.
 *
 *     Q8_0   uint4 q[2][lane]: r = 0, 1, then r = 2, 3: int8 of columns 8t .. 8t+7         | half d[g][r]         1088 bytes
 *     Q4_0   uint4 q[lane]: word r: nibbles of columns 8t+i low, 8t+4+i high, in byte i    | half d[g][r]          576
 *     Q4_1   the same                                                                     | half (d, m)[g][r]     640
 *
 * Q4_0 has its nibbles as two's complement (8 less than in the file). Outputs that do not exist are 0. */
#ifndef BATON_ENGINE_CUDA_PANEL_CUH
#define BATON_ENGINE_CUDA_PANEL_CUH

#include "engine/cuda/device.cuh"
#include "engine/engine.h"

/* Bytes of a tile: quants, then scales. */
static __host__ __device__ constexpr int quant_bytes(eng_type type) { return type == ENG_Q8_0 ? 1024 : 512; }
static __host__ __device__ constexpr int tile_bytes(eng_type type) {
    return quant_bytes(type) + 32 * (type == ENG_Q4_1 ? 4 : 2);
}

/* ---- blocks of the file -------------------------------------------------------------------------------------- */

/* A block of the file: half d, for Q4_1 half m, then int8[32], or 16 bytes with column i low and 16+i high. */
static __host__ __device__ constexpr int block_bytes(eng_type type) {
    return type == ENG_Q8_0 ? 34 : type == ENG_Q4_0 ? 18 : 20;
}
static __host__ __device__ constexpr int quants_at(eng_type type) { return type == ENG_Q4_1 ? 4 : 2; }

DEVICE unsigned nibble(const uint8_t *quants, int column) { return quants[column % 16] >> (column < 16 ? 0 : 4) & 15; }

/* Word `half` of columns 8t .. 8t+7 of a block of the file, as a tile has it; Q4 has no second. */
template <eng_type type> DEVICE unsigned tile_word(const uint8_t *block, int t, int half) {
    const uint8_t *const quants = block + quants_at(type);
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (type == ENG_Q8_0) word |= (unsigned)quants[8 * t + 4 * half + i] << 8 * i;
        else word |= (nibble(quants, 8 * t + i) | nibble(quants, 8 * t + 4 + i) << 4) << 8 * i;
    }
    return type == ENG_Q4_0 ? word ^ 0x88888888u : word;
}

/* ---- tiles ---------------------------------------------------------------------------------------------------- */

/* A lane's part of a tile. */
template <eng_type type> struct lane_tile {
    uint4 q[type == ENG_Q8_0 ? 2 : 1];
};

template <eng_type type> DEVICE lane_tile<type> load_tile(const char *tile, int lane) {
    lane_tile<type> a;
#pragma unroll
    for (int i = 0; i < quant_bytes(type) / 512; i++) a.q[i] = __ldg((const uint4 *)(tile + i * 512) + lane);
    return a;
}

/* Columns 8t .. 8t+3 and 8t+4 .. 8t+7 of output r, int8; of Q4_0 16 times too large. */
template <eng_type type> DEVICE void unpack(const lane_tile<type> &a, int r, unsigned w[2]) {
    if constexpr (type == ENG_Q8_0) {
        const uint4 q = a.q[r / 2];
        w[0] = r % 2 ? q.z : q.x;
        w[1] = r % 2 ? q.w : q.y;
    } else {
        const unsigned q = r == 0 ? a.q[0].x : r == 1 ? a.q[0].y : r == 2 ? a.q[0].z : a.q[0].w;
        w[0] = type == ENG_Q4_0 ? q << 4 & 0xf0f0f0f0u : q & 0x0f0f0f0fu;
        w[1] = type == ENG_Q4_0 ? q & 0xf0f0f0f0u : q >> 4 & 0x0f0f0f0fu;
    }
}

/* (d, m) from the bits of half d, and above it of half m. */
template <eng_type type> DEVICE float2 scale_of(unsigned bits) {
    const float d = __half2float(__ushort_as_half((unsigned short)(bits & 0xffff)));
    if (type != ENG_Q4_1) return make_float2(type == ENG_Q4_0 ? d * 0.0625f : d, 0);
    return make_float2(d, __half2float(__ushort_as_half((unsigned short)(bits >> 16))));
}

/* Of the i-th output of a tile. */
template <eng_type type> DEVICE float2 load_scale(const char *tile, int i) {
    const char *const scales = tile + quant_bytes(type);
    return scale_of<type>(type == ENG_Q4_1 ? __ldg((const unsigned *)scales + i) : __ldg((const unsigned short *)scales + i));
}

/* The scales of a lane's four outputs stand side by side. */
template <eng_type type> DEVICE void load_scales(float2 scale[4], const char *tile, int g) {
    unsigned v[4];
    if constexpr (type == ENG_Q4_1) {
        const uint4 dm = __ldg((const uint4 *)(tile + quant_bytes(type)) + g);
        v[0] = dm.x, v[1] = dm.y, v[2] = dm.z, v[3] = dm.w;
    } else {
        const uint2 d = __ldg((const uint2 *)(tile + quant_bytes(type)) + g);
        v[0] = d.x & 0xffff, v[1] = d.x >> 16, v[2] = d.y & 0xffff, v[3] = d.y >> 16;
    }
#pragma unroll
    for (int r = 0; r < 4; r++) scale[r] = scale_of<type>(v[r]);
}

#endif
