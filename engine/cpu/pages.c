/* pages.c -- pages out and in: boxes of KV in canonical order, of any element type.
 *
 * V lies on a page as on the wire, K across it, for attention's sake (pages.h). So a box of the pages' own type goes
 * run by run, the tokens of one page at a time: V is copied, K transposed in tiles of 16 bytes a side. */
#include "engine/cpu/pages.h"

/* count elements, one every stride bytes of a block, dense in the row. */
static void gather(const char *from, size_t stride, size_t element, int count, char *row) {
    for (int i = 0; i < count; i++) memcpy(row + (size_t)i * element, from + (size_t)i * stride, element);
}

static void scatter(char *to, size_t stride, size_t element, int count, const char *row) {
    switch (element) {
    case 1: for (int i = 0; i < count; i++) to[(size_t)i * stride] = row[i]; return;
    case 2: for (int i = 0; i < count; i++) memcpy(to + (size_t)i * stride, row + 2 * i, 2); return;
    case 4: for (int i = 0; i < count; i++) memcpy(to + (size_t)i * stride, row + 4 * i, 4); return;
    }
}

/* A row of Q8_0 is blocks of a scale and its elements; a row of another type is its elements. */
void eng_row_read(const eng_pages *kv, char *block, int is_v, int slot, char *row) {
    size_t element = eng_element_bytes(kv->type), stride = is_v ? element : element * (size_t)kv->P;
    bool scaled = kv->type == ENG_KV_Q8_0;
    int dims = scaled ? ENG_SCALE_DIMS : kv->h;
    const char *from = block + (is_v ? slot * kv->h : slot) * (int)element;
    for (int d = 0; d < kv->h; d += dims) {
        if (scaled) memcpy(row, eng_page_scale(kv, block, is_v, slot, d / dims), 2), row += 2;
        gather(from + (size_t)d * stride, stride, element, dims, row);
        row += (size_t)dims * element;
    }
}

void eng_row_write(const eng_pages *kv, char *block, int is_v, int slot, const char *row) {
    size_t element = eng_element_bytes(kv->type), stride = is_v ? element : element * (size_t)kv->P;
    bool scaled = kv->type == ENG_KV_Q8_0;
    int dims = scaled ? ENG_SCALE_DIMS : kv->h;
    char *to = block + (is_v ? slot * kv->h : slot) * (int)element;
    for (int d = 0; d < kv->h; d += dims) {
        if (scaled) memcpy(eng_page_scale(kv, block, is_v, slot, d / dims), row, 2), row += 2;
        scatter(to + (size_t)d * stride, stride, element, dims, row);
        row += (size_t)dims * element;
    }
}

/* One row between a block and the wire, rounded anew: the types differ. */
static void move_row(const eng_pages *kv, char *block, int is_v, int slot, eng_kv_type type, char *wire,
                     bool unpack) {
    char row[ENG_ROW_BYTES_MAX];
    float values[ENG_HEAD_MAX];
    if (unpack) {
        eng_cpu_dequantize(eng_row_type(type), wire, kv->h, values);
        eng_quantize_row(eng_row_type(kv->type), values, kv->h, row);
        eng_row_write(kv, block, is_v, slot, row);
    } else {
        eng_row_read(kv, block, is_v, slot, row);
        eng_cpu_dequantize(eng_row_type(kv->type), row, kv->h, values);
        eng_quantize_row(eng_row_type(type), values, kv->h, wire);
    }
}

/* ---- runs: tokens of one page, of one head, of the pages' own type ------------------------------ */

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t halves8 __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));

/* A square of N elements a side, 16 bytes a row, transposed: row i and row i + N/2 are zipped, log2 N times. */
#define TURN_TILE(name, vector, N, LOW, HIGH)                                                                  \
    static void name(char *to, size_t to_stride, const char *from, size_t from_stride) {                     \
        vector x[N], y[N];                                                                                   \
        for (int i = 0; i < N; i++) memcpy(&x[i], from + (size_t)i * from_stride, 16);                       \
        for (int round = N; round > 1; round /= 2) {                                                         \
            for (int i = 0; i < N / 2; i++) {                                                                \
                y[2 * i] = __builtin_shufflevector(x[i], x[i + N / 2], LOW);                                 \
                y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + N / 2], HIGH);                            \
            }                                                                                                \
            memcpy(x, y, sizeof x);                                                                          \
        }                                                                                                    \
        for (int i = 0; i < N; i++) memcpy(to + (size_t)i * to_stride, &x[i], 16);                           \
    }
#define LOW_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define LOW_8 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
#define LOW_4 0, 4, 1, 5
#define HIGH_4 2, 6, 3, 7
TURN_TILE(turn_bytes, bytes16, 16, LOW_16, HIGH_16)
TURN_TILE(turn_halves, halves8, 8, LOW_8, HIGH_8)
TURN_TILE(turn_words, words4, 4, LOW_4, HIGH_4)

/* to[c][r] = from[r][c]. */
static void turn(char *to, size_t to_stride, const char *from, size_t from_stride, size_t element, int rows, int columns) {
    int side = 16 / (int)element;
    for (int r = 0; r < rows; r += side)
        for (int c = 0; c < columns; c += side) {
            char *t = to + (size_t)c * to_stride + (size_t)r * element;
            const char *f = from + (size_t)r * from_stride + (size_t)c * element;
            bool whole = rows - r >= side && columns - c >= side;
            if (whole && element == 1) turn_bytes(t, to_stride, f, from_stride);
            else if (whole && element == 2) turn_halves(t, to_stride, f, from_stride);
            else if (whole) turn_words(t, to_stride, f, from_stride);
            else
                for (int i = 0; i < side && i < columns - c; i++)
                    for (int j = 0; j < side && j < rows - r; j++)
                        memcpy(t + (size_t)i * to_stride + (size_t)j * element,
                               f + (size_t)j * from_stride + (size_t)i * element, element);
        }
}

static void move(char *page, char *wire, size_t bytes, bool unpack) {
    memcpy(unpack ? page : wire, unpack ? wire : page, bytes);
}

/* Dims of V stand on the page as on the wire, those of K across. */
static void move_elements(const eng_pages *kv, char *block, int is_v, int slot, int tokens, int d, int dims, char *wire,
                          size_t row_bytes, bool unpack) {
    size_t element = eng_element_bytes(kv->type), stride = element * (size_t)kv->P;
    char *v = block + (size_t)(slot * kv->h + d) * element, *k = block + (size_t)(d * kv->P + slot) * element;
    if (is_v && row_bytes == (size_t)dims * element) move(v, wire, row_bytes * (size_t)tokens, unpack);
    else if (is_v)
        for (int t = 0; t < tokens; t++)
            move(v + (size_t)(t * kv->h) * element, wire + (size_t)t * row_bytes, (size_t)dims * element, unpack);
    else if (unpack) turn(k, stride, wire, row_bytes, element, tokens, dims);
    else turn(wire, row_bytes, k, stride, element, dims, tokens);
}

static void move_run(const eng_pages *kv, char *block, int is_v, int slot, int tokens, char *wire, bool unpack) {
    bool scaled = kv->type == ENG_KV_Q8_0;
    int dims = scaled ? ENG_SCALE_DIMS : kv->h;
    size_t row_bytes = eng_kv_row_bytes(kv->type, kv->h);
    for (int d = 0; d < kv->h; d += dims) {
        for (int t = 0; scaled && t < tokens; t++)
            move(eng_page_scale(kv, block, is_v, slot + t, d / dims), wire + (size_t)t * row_bytes, 2, unpack);
        if (scaled) wire += 2;
        move_elements(kv, block, is_v, slot, tokens, d, dims, wire, row_bytes, unpack);
        if (scaled) wire += dims;
    }
}

/* ---- boxes ---------------------------------------------------------------------------------------- */

/* Tokens from t on that are on one page. */
static int32_t run_at(const eng_pages *kv, int32_t t, int32_t end) {
    int32_t left = kv->P - t % kv->P;
    return left < end - t ? left : end - t;
}

/* K or V of a box's first layer. */
static void move_half(const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, int is_v, char *wire, bool unpack) {
    size_t row_bytes = eng_kv_row_bytes(box->type, kv->h);
    int32_t end = box->token_first + box->tokens;
    for (int head = box->head_first; head < box->head_first + box->heads; head++)
        for (int32_t t = box->token_first, run; t < end; t += run, wire += (size_t)run * row_bytes) {
            char *block = eng_page_block(kv, blocks[t / kv->P], box->layer_first, is_v, head);
            int slot = t % kv->P;
            run = run_at(kv, t, end);
            if (box->type == kv->type) move_run(kv, block, is_v, slot, run, wire, unpack);
            else
                for (int i = 0; i < run; i++)
                    move_row(kv, block, is_v, slot + i, box->type, wire + (size_t)i * row_bytes, unpack);
        }
}

/* Walks a box in canonical order. */
static void move_box(const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, char *wire, bool unpack) {
    size_t half = (size_t)box->heads * (size_t)box->tokens * eng_kv_row_bytes(box->type, kv->h);
    eng_kv_box layer = *box;
    for (; layer.layer_first < box->layer_first + box->layers; layer.layer_first++)
        for (int is_v = 0; is_v < 2; is_v++, wire += half) move_half(kv, blocks, &layer, is_v, wire, unpack);
}

void eng_cpu_kv_pack(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box,
                     void *out) {
    (void)c;
    move_box(kv, blocks, box, out, false);
}

void eng_cpu_kv_unpack(eng_context *c, const eng_pages *kv, const int32_t *blocks,
                       const eng_kv_box *box, const void *in) {
    (void)c;
    move_box(kv, blocks, box, (char *)(uintptr_t)in, true);
}

/* K goes aside, packed; V's runs are the pages'. */
int eng_cpu_kv_runs(eng_context *c, const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, void *scratch,
                    struct iovec *runs, int runs_max) {
    int32_t first = box->token_first, end = first + box->tokens;
    size_t row_bytes = eng_kv_row_bytes(box->type, kv->h), half = (size_t)box->heads * (size_t)box->tokens * row_bytes;
    int pages = box->tokens ? (end - 1) / kv->P - first / kv->P + 1 : 0, count = 0;
    (void)c;
    if (box->type != kv->type || box->type == ENG_KV_Q8_0) return 0;
    if ((int64_t)box->layers * (1 + (int64_t)box->heads * pages) > runs_max) return 0;
    for (int l = box->layer_first; l < box->layer_first + box->layers; l++) {
        char *k = (char *)scratch + (size_t)(l - box->layer_first) * half;
        eng_kv_box layer = *box;
        layer.layer_first = l;
        move_half(kv, blocks, &layer, 0, k, false);
        runs[count++] = (struct iovec){k, half};
        for (int head = box->head_first; head < box->head_first + box->heads; head++)
            for (int32_t t = first, run; t < end; t += run) {
                run = run_at(kv, t, end);
                char *v = eng_page_block(kv, blocks[t / kv->P], l, 1, head);
                runs[count++] = (struct iovec){v + (size_t)(t % kv->P) * row_bytes, (size_t)run * row_bytes};
            }
    }
    return count;
}

void eng_cpu_kv_copy(eng_context *c, const eng_pages *kv, int32_t dst, int32_t src, int32_t tokens) {
    (void)c;
    char row[ENG_ROW_BYTES_MAX];
    for (int l = 0; l < kv->L; l++)
        for (int is_v = 0; is_v < 2; is_v++)
            for (int head = 0; head < kv->K; head++)
                for (int32_t slot = 0; slot < tokens; slot++) {
                    eng_row_read(kv, eng_page_block(kv, src, l, is_v, head), is_v, slot, row);
                    eng_row_write(kv, eng_page_block(kv, dst, l, is_v, head), is_v, slot, row);
                }
}
