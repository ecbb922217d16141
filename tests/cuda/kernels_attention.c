/* Tests engine/cuda/attention.cu: prefill and decode against sums in double, and bits that depend on neither. */
#include "tests/cuda/kv_rig.h"

/* A row of a batch. */
typedef struct place {
    int sequence, position;
} place;

static const int every_length[] = {1, 15, 16, 17, 255, 256, 257, 600}, some_lengths[] = {17, 65, 130};
enum { EVERY = sizeof every_length / sizeof *every_length, SOME = sizeof some_lengths / sizeof *some_lengths };

static float scale_of(const rig *r) { return 1 / sqrtf((float)r->s.h); }

static const float *row_of(const rig *r, place at) {
    int t = at.position;
    for (int i = 0; i < at.sequence; i++) t += r->length[i];
    return r->qkv + (size_t)t * (size_t)r->row;
}

/* Floats, integers and scales of a row of act(T,C); what may follow is not written. */
static size_t used_bytes(const rig *r) {
    size_t C = (size_t)(r->s.H * r->s.h);
    return C * 6 + C / 32 * 8;
}

/* ---- the device ------------------------------------------------------------------------------------------- */

/* The places as a batch that ends in rows of nobody; tiles NULL: decode. Returns its activation rows. */
static char *attend(const rig *r, const place *at, int count, const eng_tile *tiles, int tiles_count, float scale,
                    int context) {
    size_t all = (size_t)(count + RIG_NOBODY), row = (size_t)r->row, bytes = all * cuda_act_bytes(r->s.H * r->s.h);
    int32_t position[256], blocks_at[256];
    float *qkv = malloc(all * row * sizeof *qkv);
    for (size_t i = 0; i < all; i++) {
        bool live = i < (size_t)count;
        position[i] = live ? at[i].position : -1;
        blocks_at[i] = live ? at[i].sequence * r->table + 1 : RIG_WILD;
        for (size_t d = 0; d < row; d++) qkv[i * row + d] = live ? row_of(r, at[i])[d] : NAN;
    }
    cuda_rows b = {.T = (int)all, .blocks = r->b.blocks};
    b.position = upload(position, all * sizeof *position);
    b.blocks_at = upload(blocks_at, all * sizeof *blocks_at);
    float *device_qkv = upload(qkv, all * row * sizeof *qkv);
    void *out = wild(bytes), *scratch = NULL, *device_tiles = NULL;
    if (tiles) {
        device_tiles = upload(tiles, (size_t)tiles_count * sizeof *tiles);
        OK(cuda_attention_prefill(stream, out, device_qkv, &r->device, 1, &b, device_tiles, tiles_count, r->s.H, scale));
    } else {
        scratch = wild(cuda_attention_scratch((int)all, r->s.H, r->s.h, context));
        OK(cuda_attention_decode(stream, out, device_qkv, &r->device, 1, &b, r->s.H, scale, context, scratch));
    }
    char *got = fetch(out, bytes);
    void *device[] = {(void *)(uintptr_t)b.position, (void *)(uintptr_t)b.blocks_at, device_qkv, out, scratch, device_tiles};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        if (device[i]) OK(cudaFree(device[i]));
    free(qkv);
    return got;
}

/* One tile a sequence: its last rows, up to 16. Returns how many rows. */
static int last_rows(const rig *r, place *at, eng_tile *tiles) {
    int count = 0;
    for (int i = 0; i < r->sequences; i++) {
        int rows = r->length[i] < ENG_TILE_ROWS ? r->length[i] : ENG_TILE_ROWS;
        tiles[i] = (eng_tile){.row = count, .count = rows};
        for (int n = 0; n < rows; n++) at[count++] = (place){i, r->length[i] - rows + n};
    }
    return count;
}

/* ---- the reference ---------------------------------------------------------------------------------------- */

static void read_row(const rig *r, place at, int position, int is_v, int head, float *out) {
    char row[ENG_ROW_BYTES_MAX];
    int page = r->rows[at.sequence].blocks[position / r->s.P];
    eng_row_read(&r->cpu, eng_page_block(&r->cpu, page, 1, is_v, head), is_v, position % r->s.P, row);
    eng_cpu_dequantize(eng_row_type(r->s.type), row, r->s.h, out);
}

/* One head of a row in double, from the CPU's pages. */
static void reference(const rig *r, place at, int head, float scale, double *out) {
    int h = r->s.h, kv_head = head / (r->s.H / r->s.K);
    const float *q = row_of(r, at) + head * h;
    float x[ENG_HEAD_MAX];
    double score[600], most = -INFINITY, sum = 0;
    for (int j = 0; j <= at.position; j++) {
        read_row(r, at, j, 0, kv_head, x);
        score[j] = 0;
        for (int d = 0; d < h; d++) score[j] += (double)q[d] * x[d];
        score[j] *= (double)scale;
        if (score[j] > most) most = score[j];
    }
    for (int d = 0; d < h; d++) out[d] = 0;
    for (int j = 0; j <= at.position; j++) {
        double p = exp(score[j] - most);
        read_row(r, at, j, 1, kv_head, x);
        sum += p;
        for (int d = 0; d < h; d++) out[d] += p * x[d];
    }
    for (int d = 0; d < h; d++) out[d] /= sum;
}

/* Values are below 2 in size, exponents below 16 in these cases. A score is up to 100 float additions to a sum of such
 * size, each off by 2^-25 of it when rounded: 100 * 16 * 2^-25 = 5e-5 at worst, by chance their root, 5e-6; a weight is
 * off by 0.7 times that and 2^-22 of the polynomial, and so, relative to 2, is the result. A term less of a float shows:
 * 2^-11 or 2^-16 of 16. Seen: 1.7e-6. */
#define BOUND 4e-6

static double worst;

static void compare(const rig *r, const place *at, int count, const char *got, float scale, const char *kernel) {
    int C = r->s.H * r->s.h;
    double want[ENG_HEAD_MAX];
    for (int i = 0; i < count; i++)
        for (int head = 0; head < r->s.H; head++) {
            const float *x = (const float *)(const void *)(got + (size_t)i * cuda_act_bytes(C)) + head * r->s.h;
            if (i % 5 && i + 1 < count) continue;          /* the reference takes its time */
            reference(r, at[i], head, scale, want);
            for (int d = 0; d < r->s.h; d++) {
                double off = fabs((double)x[d] - want[d]);
                worst = off > worst ? off : worst;
                if (!(off < BOUND))
                    fail_msg("%s, %s, heads %d wide, %d tokens a page: sequence %d, position %d, head %d, dim %d: %.8g, "
                             "expected %.8g", kernel, eng_kv_type_name(r->s.type), r->s.h, r->s.P, at[i].sequence,
                             at[i].position, head, d, (double)x[d], want[d]);
            }
        }
}

/* ---- tests ------------------------------------------------------------------------------------------------- */

static void compare_both(rig *r, float scale) {
    place at[ENG_TILE_ROWS * EVERY], last[EVERY];
    eng_tile tiles[EVERY];
    int count = last_rows(r, at, tiles), longest = 0;
    for (int i = 0; i < r->sequences; i++) {
        last[i] = (place){i, r->length[i] - 1};
        longest = r->length[i] > longest ? r->length[i] : longest;
    }
    char *prefill = attend(r, at, count, tiles, r->sequences, scale, 0);
    char *decode = attend(r, last, r->sequences, NULL, 0, scale, longest);
    compare(r, at, count, prefill, scale, "prefill");
    compare(r, last, r->sequences, decode, scale, "decode");
    for (int i = 0; i < r->sequences; i++) {               /* the last row of each tile */
        size_t row = (size_t)(tiles[i].row + tiles[i].count - 1), bytes = cuda_act_bytes(r->s.H * r->s.h);
        assert_memory_equal(prefill + row * bytes, decode + (size_t)i * bytes, used_bytes(r));
    }
    free(prefill);
    free(decode);
}

static void both_are_the_softmax(void **state) {
    (void)state;
    static const rig_shape shapes[] = {
        {3, 1, 64, 24, ENG_KV_F32}, {2, 2, 64, 4, ENG_KV_BF16}, {2, 1, 64, 1, ENG_KV_Q8_0}, {5, 1, 32, 16, ENG_KV_F16},
        {17, 1, 32, 4, ENG_KV_Q8_0}, {1, 1, 96, 16, ENG_KV_F32}, {2, 2, 96, 24, ENG_KV_F16}, {1, 1, 128, 16, ENG_KV_BF16},
        {1, 1, 128, 24, ENG_KV_F16}, {1, 1, 128, 4, ENG_KV_Q8_0}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        rig r = rig_open(shapes[i], some_lengths, SOME);
        rig_append(&r, 1);
        compare_both(&r, scale_of(&r));
        rig_close(&r);
    }
}

static void any_length(void **state) {
    (void)state;
    rig r = rig_open((rig_shape){2, 1, 64, 16, ENG_KV_F16}, every_length, EVERY);
    rig_append(&r, 1);
    compare_both(&r, scale_of(&r));
    rig_close(&r);
}

/* Queries beyond the largest half, keys near its smallest. */
static void queries_of_any_size(void **state) {
    (void)state;
    for (int type = ENG_KV_F16; type <= ENG_KV_BF16; type++) {
        rig r = rig_open((rig_shape){2, 2, 32, 16, (eng_kv_type)type}, some_lengths, 2);
        for (int t = 0; t < r.T; t++)
            for (int i = 0; i < (r.s.H + r.s.K) * r.s.h; i++) r.qkv[t * r.row + i] *= i < r.s.H * r.s.h ? 0x1p20f : 0x1p-20f;
        OK(cudaMemcpy(r.device_qkv, r.qkv, (size_t)(r.T * r.row) * sizeof(float), cudaMemcpyHostToDevice));
        rig_append(&r, 1);
        compare_both(&r, scale_of(&r));
        rig_close(&r);
    }
}

/* Some rows of one sequence, their bits as computed in one way and page size. */
static const int probes[] = {0, 14, 15, 16, 31, 63, 64, 77, 129};
enum { PROBES = sizeof probes / sizeof *probes };

static void keep(const rig *r, char *kept, const char *got, int row) {
    memcpy(kept, got + (size_t)row * cuda_act_bytes(r->s.H * r->s.h), used_bytes(r));
}

/* Tiles of `rows` rows that begin `before` rows ahead of the probe, as far as the sequence goes. */
static void by_tiles(const rig *r, char *kept[PROBES], int before, int rows) {
    place at[ENG_TILE_ROWS * PROBES];
    eng_tile tiles[PROBES];
    int count = 0;
    for (int i = 0; i < PROBES; i++) {
        int first = probes[i] > before ? probes[i] - before : 0, end = first + rows < 130 ? first + rows : 130;
        tiles[i] = (eng_tile){.row = count, .count = end - first};
        for (int p = first; p < end; p++) at[count++] = (place){2, p};
    }
    char *got = attend(r, at, count, tiles, PROBES, scale_of(r), 0);
    for (int i = 0; i < PROBES; i++) keep(r, kept[i], got, tiles[i].row + (probes[i] > before ? before : probes[i]));
    free(got);
}

/* One row a probe, forward or backward, other sequences between them. */
static void by_decode(const rig *r, char *kept[PROBES], bool backward, int context) {
    place at[2 * PROBES];
    for (int i = 0; i < PROBES; i++) {
        at[2 * i] = (place){2, probes[backward ? PROBES - 1 - i : i]};
        at[2 * i + 1] = (place){1, i * 8};
    }
    char *got = attend(r, at, 2 * PROBES, NULL, 0, scale_of(r), context);
    for (int i = 0; i < PROBES; i++) keep(r, kept[backward ? PROBES - 1 - i : i], got, 2 * i);
    free(got);
}

static void bits_do_not_depend_on_the_way(void **state) {
    (void)state;
    static const int pages[] = {16, 1, 4, 24};
    for (int type = ENG_KV_F32; type <= ENG_KV_Q8_0; type++) {
        char *first[PROBES], *again[PROBES];
        for (int n = 0; n < 4; n++) {
            rig r = rig_open((rig_shape){2, 1, 32, pages[n], (eng_kv_type)type}, some_lengths, SOME);
            rig_append(&r, 1);
            for (int way = 0; way < 5; way++) {
                char **kept = n == 0 && way == 0 ? first : again;
                for (int i = 0; i < PROBES; i++) kept[i] = malloc(used_bytes(&r));
                switch (way) {
                case 0: by_decode(&r, kept, false, 130); break;
                case 1: by_decode(&r, kept, true, 1000); break;
                case 2: by_tiles(&r, kept, 0, 16); break;
                case 3: by_tiles(&r, kept, 15, 16); break;
                case 4: by_tiles(&r, kept, 5, 6); break;
                }
                for (int i = 0; i < PROBES && kept == again; i++) {
                    if (memcmp(again[i], first[i], used_bytes(&r)))
                        fail_msg("%s, %d tokens a page, way %d: position %d differs", eng_kv_type_name((eng_kv_type)type),
                                 pages[n], way, probes[i]);
                    free(again[i]);
                }
                if (n && way == 2) break;                  /* other page sizes: decode and a tile suffice */
            }
            rig_close(&r);
        }
        for (int i = 0; i < PROBES; i++) free(first[i]);
    }
}

static void other_widths_are_refused(void **state) {
    (void)state;
    eng_pages kv = {.P = 16, .L = 1, .K = 1, .h = 48, .type = ENG_KV_F16};
    cuda_rows b = {.T = 1};
    eng_tile tile = {0};
    assert_int_equal(cuda_attention_prefill(stream, NULL, NULL, &kv, 0, &b, &tile, 1, 1, 1), cudaErrorInvalidValue);
    assert_int_equal(cuda_attention_decode(stream, NULL, NULL, &kv, 0, &b, 1, 1, 1, NULL), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_are_the_softmax),
        cmocka_unit_test(any_length),
        cmocka_unit_test(queries_of_any_size),
        cmocka_unit_test(bits_do_not_depend_on_the_way),
        cmocka_unit_test(other_widths_are_refused),
    };
    int failed = cmocka_run_group_tests(tests, open_stream, close_stream);
    print_message("largest difference from the reference: %.2g\n", worst);
    return failed;
}
