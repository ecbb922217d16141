/* amx.c -- products of many rows by AMX tiles; one row, and everything else, by the AVX-512 functions.
 *
 * A tile product takes 16 rows x 64 bytes of activations and 64 bytes x 16 outputs of weights. A block of a
 * group of activations (act.h) is just that: 32 high planes, then 32 low ones a row; the weights of a block
 * stand against it twice, times 16 and as they are, so that one product gives s = sum w (16 hi + lo). Weights
 * of 8 bits do not fit times 16: they take two products, one a plane. The sums are the integers that the other
 * kernels get, and go into the same float operations in the same order: the same bits.
 *
 *   tiles  0, 1  sums (16 x 16 int32) of blocks in turn; of the two planes for weights of 8 bits, whose
 *          6, 7  blocks take these in turn
 *          2, 3  activations, of blocks in turn, or the two planes of one
 *          4, 5  weights, of blocks in turn
 *
 * Tile configuration is a thread's own: set when a task begins, released when it ends, so that the system
 * has no tiles to save between tasks. */
#include "engine/cpu/dot.h"
#include "engine/cpu/product.h"

typedef uint32_t uvec __attribute__((vector_size(64)));

enum {
    TILE_BYTES = 1024,
    LEAST_ROWS = 6,              /* with fewer the AVX-512 kernel is faster */
    AHEAD = 16 << 10,            /* bytes of weights asked for before they are used */
};

/* palette 1 (Intel SDM volume 1, 18.3): bytes a row and rows of each tile. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((packed, aligned(64))) tile_config;

/* "memory": gcc 12's own intrinsics do not tell the compiler what the instructions read and write. */
#define TILE_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile :::"memory")
#define TILE_SIGNED_UNSIGNED(sum, a, b) \
    __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sum :::"memory")
#define TILE_SIGNED(sum, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum :::"memory")

static void configure(eng_type type, int height) {
    int plane = type == ENG_Q8_0 ? 32 : 64;      /* bytes of K a product takes */
    tile_config t = {.palette = 1};
    for (int i = 0; i < 2; i++) t.row_bytes[i] = 64, t.rows[i] = (uint8_t)height;
    for (int i = 2; i < 4; i++) t.row_bytes[i] = (uint16_t)plane, t.rows[i] = (uint8_t)height;
    for (int i = 6; i < 8; i++) t.row_bytes[i] = 64, t.rows[i] = (uint8_t)height;
    for (int i = 4; i < 6; i++) t.row_bytes[i] = 64, t.rows[i] = (uint8_t)(plane / 4);
    __asm__ volatile("ldtilecfg %0" ::"m"(t) : "memory");
}

/* Blocks of a panel's weights as tiles: 4 bits times 16, then as they are; 8 bits need no unpacking. */
INLINE void unpack_tiles(const uint8_t *lines, uint8_t *tiles, int from, int blocks) {
    lines += (size_t)from * 4 * PANEL_LINE;
    tiles += (size_t)from * TILE_BYTES;
    for (int b = 0; b < blocks; b++, lines += 4 * PANEL_LINE, tiles += TILE_BYTES)
        UNROLL for (int j = 0; j < 4; j++) {
            __builtin_prefetch(lines + AHEAD + j * PANEL_LINE);
            cvec both = load_line(lines + j * PANEL_LINE).v[0];
            *(cvec *)(tiles + j * 64) = (cvec)((uvec)both << 4) & 0xf0;
            *(cvec *)(tiles + (j + 4) * 64) = both & 0xf0;
            *(cvec *)(tiles + (j + 8) * 64) = both & 0x0f;
            *(cvec *)(tiles + (j + 12) * 64) = (cvec)((ivec)both >> 4) & 0x0f;
        }
}

/* Takes the sums of one block into acc. */
INLINE void take(eng_type type, lanes *acc, const int32_t *sums, const uint8_t *scales, const act_group *x, int b,
                 int rows) {
    const float *scale = act_scales(x, b), *sum = act_sums(x, b);
    const int32_t *total_of = act_totals(x, b);
    lanes d = halves(scales), m = type == ENG_Q4_1 ? halves(scales + 32) : spread(0);
    UNROLL for (int r = 0; r < rows; r++) {
        uvec s = *(const uvec *)(sums + r * 16);     /* unsigned: what stands in unused rows may overflow */
        if (type == ENG_Q8_0) s = s * 16 + *(const uvec *)(sums + 256 + r * 16);
        if (type == ENG_Q4_0) s -= 8 * (uint32_t)total_of[r];
        lanes f = {{__builtin_convertvector((ivec)s, vec) * d.v[0]}};
        acc[r] = add_product(acc[r], f, spread(scale[r]));
        if (type == ENG_Q4_1) acc[r] = add_product(acc[r], m, spread(sum[r]));
    }
}

/* Multiplies block b: its sums then stand in tile 0, or 1 if odd; of 8-bit weights in 0 and 1, or 6 and 7. */
INLINE void multiply(eng_type type, const act_group *x, const uint8_t *tiles, int b, int odd) {
    const int8_t *planes = act_planes(x, 0, b);
    const uint8_t *weights = tiles + (size_t)b * (type == ENG_Q8_0 ? TILE_BYTES / 2 : TILE_BYTES);
    if (type == ENG_Q8_0) {
        TILE_LOAD(2, planes, ACT_BLOCK_BYTES);
        TILE_LOAD(3, planes + ACT_BLOCK, ACT_BLOCK_BYTES);
        TILE_LOAD(4, weights, 64);
        UNROLL for (int i = 0; i < 8; i++) __builtin_prefetch(weights + AHEAD + i * 64);
        if (odd) {
            TILE_ZERO(6);
            TILE_ZERO(7);
            TILE_SIGNED(6, 2, 4);
            TILE_SIGNED(7, 3, 4);
        } else {
            TILE_ZERO(0);
            TILE_ZERO(1);
            TILE_SIGNED(0, 2, 4);
            TILE_SIGNED(1, 3, 4);
        }
    } else if (odd) {
        TILE_LOAD(3, planes, ACT_BLOCK_BYTES);
        TILE_LOAD(5, weights, 64);
        TILE_ZERO(1);
        TILE_SIGNED_UNSIGNED(1, 3, 5);
    } else {
        TILE_LOAD(2, planes, ACT_BLOCK_BYTES);
        TILE_LOAD(4, weights, 64);
        TILE_ZERO(0);
        TILE_SIGNED_UNSIGNED(0, 2, 4);
    }
}

INLINE void put_sums(eng_type type, int odd, int32_t *sums) {
    if (type == ENG_Q8_0 && odd) {
        TILE_STORE(6, sums, 64);
        TILE_STORE(7, sums + 256, 64);
    } else if (type == ENG_Q8_0) {
        TILE_STORE(0, sums, 64);
        TILE_STORE(1, sums + 256, 64);
    } else if (odd) {
        TILE_STORE(1, sums, 64);
    } else {
        TILE_STORE(0, sums, 64);
    }
}

/* A group of activations times one panel; `rows`, 8 or 16, are computed and `valid` of them written.
 *
 * Tile instructions run in their order, and a product is ready 52 cycles after it began: storing a block's
 * sums right after it would leave the tiles idle that long. So the next block is multiplied before a block's
 * sums are stored, and the one before is taken up meanwhile: a tenth faster; three blocks ahead is not better.
 * The first group unpacks the weights two blocks ahead (`packed`, else NULL); the others find them in tiles. */
INLINE void tile_rows(eng_type type, const eng_product *p, act_group x, float *y, int rows, int valid,
                      int outputs, const uint8_t *panel, const uint8_t *packed, uint8_t *tiles, int32_t *sums) {
    size_t scale_bytes = panel_scale_bytes(type);
    int last = x.blocks - 1;
    lanes acc[16];
    UNROLL for (int r = 0; r < rows; r++) acc[r] = spread(0);
    if (packed) unpack_tiles(packed, tiles, 0, last < 1 ? 1 : 2);
    multiply(type, &x, tiles, 0, 0);
    for (int b = 0; b <= last; b += 2, panel += 2 * scale_bytes) {
        if (packed) unpack_tiles(packed, tiles, b + 2, last - b - 1 < 2 ? last - b - 1 : 2);
        if (b + 1 <= last) multiply(type, &x, tiles, b + 1, 1);
        put_sums(type, 0, sums);
        if (b > 0) take(type, acc, sums + 512, panel - scale_bytes, &x, b - 1, rows);
        if (b + 2 <= last) multiply(type, &x, tiles, b + 2, 0);
        if (b + 1 <= last) put_sums(type, 1, sums + 512);
        take(type, acc, sums, panel, &x, b, rows);
    }
    if (last % 2) take(type, acc, sums + 512, panel - scale_bytes, &x, last, rows);
    UNROLL for (int r = 0; r < rows; r++)
        if (r < valid) store_some(y + (size_t)r * p->N, acc[r], outputs);
}

INLINE void times_type(eng_type type, const eng_product *p) {
    int C = p->C;
    size_t bytes = panel_bytes(type, C);
    int32_t *sums = p->scratch;
    uint8_t *tiles = (uint8_t *)p->scratch + 4 * TILE_BYTES;
    configure(type, p->x_group.height);
    for (int n = 0; n < p->outputs; n += PANEL_OUTPUTS) {
        const uint8_t *panel = p->panels + (size_t)(n / PANEL_OUTPUTS) * bytes, *weights = panel + panel_lines_at(type, C);
        for (int t = 0; t < p->T; t += 16) {
            act_group x = eng_product_group(p, t);
            float *y = p->y + (size_t)t * p->N + n;
            const uint8_t *packed = type == ENG_Q8_0 || t ? NULL : weights;
            uint8_t *from = type == ENG_Q8_0 ? (uint8_t *)(uintptr_t)weights : tiles;
            if (p->T - t > 8) tile_rows(type, p, x, y, 16, p->T - t, p->outputs - n, panel, packed, from, sums);
            else tile_rows(type, p, x, y, 8, p->T - t, p->outputs - n, panel, packed, from, sums);
        }
    }
    __asm__ volatile("tilerelease" ::: "memory");
}

static void panels_times_amx(const eng_product *p) {
    if (p->T < LEAST_ROWS) panels_times_avx512(p);
    else if (p->type == ENG_Q8_0) times_type(ENG_Q8_0, p);
    else if (p->type == ENG_Q4_0) times_type(ENG_Q4_0, p);
    else times_type(ENG_Q4_1, p);
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
