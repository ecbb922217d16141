/* mma.cpp -- tensor cores and ldmatrix: a warp's registers in, a warp's registers out.
 *
 * d (16,8) += a (16,K) b (K,8), K = 16 for f16 and bf16, 32 for s8. With g = lane / 4 and t = lane % 4, a register holds
 * 4 / sizeof(element) = E elements:
 *   a[i]: row g + 8 (i % 2), columns E t + (K/2)(i / 2) ...
 *   b[i]: rows E t + (K/2) i ..., column g
 *   d[i]: row g + 8 (i / 2), column 2 t + i % 2
 * (PTX ISA, "Matrix Fragments for mma.m16n8k16" and "... m16n8k32".) Sums run over rising k with one rounding an
 * addition; products of f16 and of bf16 are exact in f32. A tensor core's own order is not documented. */
#include "emu.h"
#include "warp_ops.h"
#include <cstring>

static float half_to_float(uint16_t h) {
    _Float16 f;
    memcpy(&f, &h, 2);
    return (float)f;
}

/* All 65536, because the compiler's own conversion is a slow call. */
static const float *half_table() {
    static float *table;
    if (!table) {
        table = new float[65536];
        for (int i = 0; i < 65536; i++)
            table[i] = half_to_float((uint16_t)i);
    }
    return table;
}

static float element(unsigned reg, int i, bool bf16) {
    unsigned bits = reg >> (16 * i) & 0xffff;
    if (!bf16)
        return half_table()[bits];
    unsigned wide = bits << 16;
    float f;
    memcpy(&f, &wide, 4);
    return f;
}

static void mma_float(EmuMma **lane, bool bf16) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++)
        for (int e = 0; e < 2; e++) {
            int g = l / 4, t = l % 4;
            for (int i = 0; i < 4; i++)
                a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + e] = element(lane[l]->a[i], e, bf16);
            for (int i = 0; i < 2; i++)
                b[2 * t + 8 * i + e][g] = element(lane[l]->b[i], e, bf16);
        }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            float sum;
            memcpy(&sum, &lane[l]->d[i], 4);
            for (int k = 0; k < 16; k++)
                sum += a[l / 4 + 8 * (i / 2)][k] * b[k][2 * (l % 4) + i % 2];
            memcpy(&lane[l]->d[i], &sum, 4);
        }
}

static void mma_s8(EmuMma **lane) {
    int8_t a[16][32], b[32][8];
    for (int l = 0; l < 32; l++)
        for (int e = 0; e < 4; e++) {
            int g = l / 4, t = l % 4;
            for (int i = 0; i < 4; i++)
                a[g + 8 * (i % 2)][4 * t + 16 * (i / 2) + e] = (int8_t)(lane[l]->a[i] >> (8 * e));
            for (int i = 0; i < 2; i++)
                b[4 * t + 16 * i + e][g] = (int8_t)(lane[l]->b[i] >> (8 * e));
        }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 32; k++)
                lane[l]->d[i] += (unsigned)(a[l / 4 + 8 * (i / 2)][k] * b[k][2 * (l % 4) + i % 2]);
}

extern "C" void emu_mma_run(void *lanes[32], int form) {
    if (form == EMU_MMA_S8)
        mma_s8((EmuMma **)lanes);
    else
        mma_float((EmuMma **)lanes, form == EMU_MMA_BF16);
}

/* Matrix i is the rows of lanes 8i .. 8i+7; lane l gets elements 2(l % 4), +1 of row l / 4, transposed of column l / 4. */
extern "C" void emu_ldmatrix_run(void *lanes[32], int form) {
    EmuLdmatrix **lane = (EmuLdmatrix **)lanes;
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < form / 2; i++) {
            int g = l / 4, t = 2 * (l % 4);
            bool transposed = form % 2;
            unsigned low = transposed ? lane[8 * i + t]->row[g] : lane[8 * i + g]->row[t];
            unsigned high = transposed ? lane[8 * i + t + 1]->row[g] : lane[8 * i + g]->row[t + 1];
            lane[l]->d[i] = low | high << 16;
        }
}
