/* amx.c -- products of many rows by AMX tiles; few rows, and everything else, by the AVX-512 functions.
 *
 * Within a segment of 256 columns a weight is a 16-bit integer W (panel.h) and an activation a 14-bit one
 * (act.h). Both are two planes of 8 bits, W = 256 high + low, and a tile product takes 16 rows x 64 columns of
 * one plane and 64 columns x 16 outputs of another. Four sums stay in tiles over the whole segment:
 *
 *   tiles  0, 1  sums (16 x 16 int32) of hi with high, hi with low
 *          2, 3                       of lo with high, lo with low
 *          4, 5  activations: hi, lo
 *          6, 7  weights: high, low
 *
 * They are the integers that the other kernels get by 4-bit weights and scales of blocks, and go into the same
 * float operations in the same order: the same bits.
 *
 * Tile configuration is a thread's own: set when a task begins, released when it ends, so that the system
 * has no tiles to save between tasks. */
#include "engine/cpu/dot.h"
#include "engine/cpu/product.h"
#include <assert.h>

typedef uint16_t words __attribute__((vector_size(64), may_alias));

enum {
    TILE_BYTES = 1024,
    SLAB_TILES = 2 * TILE_BYTES, /* a slab of weights: high, low */
    SLABS = ACT_SEGMENT / ACT_SLAB,
    SUM_BYTES = 4 * TILE_BYTES,
    LEAST_ROWS = 6,              /* with fewer the AVX-512 kernel is faster */
    AHEAD = 16 << 10,            /* bytes of weights asked for before they are used */
};

/* A thread's scratch: weights of this segment and the next, sums of a group, and what the rows have summed
 * up. */
typedef struct workplace {
    uint8_t tiles[2 * SLABS][SLAB_TILES];
    int32_t sums[SUM_BYTES / 4];
    float y[PRODUCT_ROWS][PANEL_OUTPUTS];
} workplace;
static_assert(sizeof(workplace) <= ISA_WORKPLACE * sizeof(float), "a thread's scratch holds it");

/* palette 1 (Intel SDM volume 1, 18.3): bytes a row and rows of each tile. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((packed, aligned(64))) tile_config;

/* "memory": gcc 12's own intrinsics do not tell the compiler what the instructions read and write. */
#define TILE_LOAD(tile, from) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)64) : "memory")
#define TILE_STORE(tile, to) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)64) : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile :::"memory")
#define TILE_SIGNED_UNSIGNED(sum, a, b) \
    __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sum :::"memory")
#define TILE_SIGNED(sum, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum :::"memory")

static void configure(int height) {
    tile_config t = {.palette = 1};
    for (int i = 0; i < 8; i++) t.row_bytes[i] = 64, t.rows[i] = (uint8_t)(i < 6 ? height : 16);
    __asm__ volatile("ldtilecfg %0" ::"m"(t) : "memory");
}

/* ---- weights ------------------------------------------------------------------------------------- */

/* W = d q + m of the even and the odd columns of a line, put into its rows of the two planes. */
INLINE void put_line(uint8_t *tiles, int row, words even, words odd, words d, words m) {
    even = even * d + m;
    odd = odd * d + m;
    *(words *)(tiles + row * 64) = (even >> 8) | (odd & 0xff00);
    *(words *)(tiles + TILE_BYTES + row * 64) = (even & 0xff) | (odd << 8);
}

/* Block b of a panel into its half of a slab's tiles. */
INLINE void unpack_block(eng_type type, const uint8_t *panel, int C, int b, uint8_t *tiles) {
    const uint8_t *lines = panel + panel_lines_at(type, C) + (size_t)b * panel_line_bytes(type);
    const uint8_t *scales = panel + panel_scales_at(C) + (size_t)b * panel_scale_bytes(type);
    int row = b % 2 * 8;
    uvec dm = panel_has_offset(type) ? (uvec)_mm512_loadu_si512(scales)
                                     : (uvec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)scales));
    words d = (words)((dm & 0xffff) | (dm << 16));
    words m = d * (uint16_t)-panel_zero(type);
    if (panel_has_offset(type)) m = (words)((dm >> 16) | (dm & 0xffff0000));
    UNROLL for (int j = 0; j < (int)panel_line_bytes(type) / PANEL_LINE; j++) {
        __builtin_prefetch(lines + AHEAD + j * PANEL_LINE, 0, 2);
        words q = (words)load_line(lines + j * PANEL_LINE).v[0];
        if (panel_is_wide(type)) {
            typedef int16_t signed_words __attribute__((vector_size(64)));
            put_line(tiles, row + j, (words)((signed_words)(q << 8) >> 8), (words)((signed_words)q >> 8), d, m);
        } else {
            put_line(tiles, row + j, q & 0x000f, (q >> 8) & 0x000f, d, m);
            put_line(tiles, row + j + 4, (q >> 4) & 0x000f, q >> 12, d, m);
        }
    }
}

/* A last slab of one block leaves the other half as it was: activations are 0 there. */
INLINE void unpack_slab(eng_type type, const uint8_t *panel, int C, int slab, workplace *at) {
    uint8_t *tiles = at->tiles[slab % (2 * SLABS)];
    if (slab >= act_slabs(C)) return;
    unpack_block(type, panel, C, 2 * slab, tiles);
    if (2 * slab + 1 < C / ACT_BLOCK) unpack_block(type, panel, C, 2 * slab + 1, tiles);
}

/* ---- products ------------------------------------------------------------------------------------ */

INLINE void multiply(const int8_t *planes, size_t lo_after, const uint8_t *tiles) {
    TILE_LOAD(4, planes);
    TILE_LOAD(6, tiles);
    TILE_LOAD(7, tiles + TILE_BYTES);
    TILE_SIGNED(0, 4, 6);
    TILE_SIGNED_UNSIGNED(1, 4, 7);
    TILE_LOAD(5, planes + lo_after);
    TILE_SIGNED(2, 5, 6);
    TILE_SIGNED_UNSIGNED(3, 5, 7);
}

/* The sums of a segment of a group on their way: y + what they amount to goes to `to`, rows N floats apart. */
typedef struct taking {
    int32_t *sums;
    const uint8_t *unit;
    const float *scale, *y;
    float *to;
    size_t N;
    __mmask16 not_first;         /* of a row's segments: y counts */
} taking;

INLINE void take(const taking *k, int rows) {
    lanes unit = bf16s(k->unit);
    UNROLL for (int r = 0; r < rows; r++) {
        const uvec *s = (const uvec *)k->sums + r;       /* unsigned: what stands in unused rows may overflow */
        ints hi = {{(ivec)(s[0] * 256 + s[16])}}, lo = {{(ivec)(s[32] * 256 + s[48])}};
        lanes y = {{(vec)_mm512_maskz_loadu_ps(k->not_first, k->y + r * PANEL_OUTPUTS)}};
        store(k->to + (size_t)r * k->N, add_segment(y, hi, lo, unit, k->scale[r]));
    }
}

/* All rows times one panel, segment by segment: its tiles stay in the L1 cache while the rows pass by. The
 * sums of a group are taken while the next is multiplied; the first group finds a slab's weights unpacked
 * while it multiplied the one before. */
INLINE void panel_times(eng_type type, const eng_product *p, const uint8_t *panel, int height, int outputs, float *y) {
    workplace *at = p->scratch;
    int slabs = act_slabs(p->C);
    bool whole_panel = outputs >= PANEL_OUTPUTS;
    taking last = {0};
    unpack_slab(type, panel, p->C, 0, at);
    for (int s = 0; s < act_segments(p->C); s++)
        for (int t = 0; t < p->T; t += ACT_ROWS) {
            act_group x = eng_product_group(p, t);
            size_t lo_after = act_lo_after(&x);
            taking now = {at->sums, panel + s * PANEL_UNITS, act_scales(&x, s), at->y[t], at->y[t],
                          PANEL_OUTPUTS, s ? 0xffff : 0};
            if (s + 1 == act_segments(p->C) && whole_panel && p->T - t >= height) {
                now.to = y + (size_t)t * p->N;
                now.N = p->N;                            /* rows far apart: no hardware sees them coming */
                for (int r = 0; r < height; r++) __builtin_prefetch(now.to + (size_t)r * p->N, 1);
            }
            TILE_ZERO(0);
            TILE_ZERO(1);
            TILE_ZERO(2);
            TILE_ZERO(3);
            for (int k = s * SLABS; k < (s + 1) * SLABS && k < slabs; k++) {
                if (t == 0) unpack_slab(type, panel, p->C, k + 1, at);
                multiply(act_hi(&x, 0, 2 * k), lo_after, at->tiles[k % (2 * SLABS)]);
            }
            if (last.sums) take(&last, height);
            TILE_STORE(0, now.sums);
            TILE_STORE(1, now.sums + 256);
            TILE_STORE(2, now.sums + 512);
            TILE_STORE(3, now.sums + 768);
            last = now;
        }
    take(&last, height);
    for (int t = whole_panel ? p->T / height * height : 0; t < p->T; t++)
        store_some(y + (size_t)t * p->N, load(at->y[t]), outputs);
}

INLINE void times_type(eng_type type, const eng_product *p) {
    size_t bytes = panel_bytes(type, p->C);
    int height = p->x_group.height;
    configure(height);
    for (int n = 0; n < p->outputs; n += PANEL_OUTPUTS) {
        const uint8_t *panel = p->panels + (size_t)(n / PANEL_OUTPUTS) * bytes;
        if (height > 8) panel_times(type, p, panel, 16, p->outputs - n, p->y + n);
        else panel_times(type, p, panel, 8, p->outputs - n, p->y + n);
    }
    __asm__ volatile("tilerelease" ::: "memory");
}

static void panels_times_amx(const eng_product *p) {
    if (p->T < LEAST_ROWS) {
        panels_times_avx512(p);
        return;
    }
    switch (p->type) {
    case ENG_Q8_0: times_type(ENG_Q8_0, p); return;
    case ENG_Q4_0: times_type(ENG_Q4_0, p); return;
    case ENG_Q4_1: times_type(ENG_Q4_1, p); return;
    case ENG_F32: case ENG_F16: case ENG_BF16: assert(!"a type that panel_has()");
    }
}

static void matmul_amx(eng_context *c, float *y, const void *x, const eng_matrix *w, int T) {
    product_run_avx512(c, y, x, w, T, panels_times_amx);
}

extern const eng_ops eng_cpu_amx;
const eng_ops eng_cpu_amx = {
    .name = "amx",
    ENG_CPU_SHARED_OPS,
    ISA_OPS(avx512),
    .matmul = matmul_amx,
};
