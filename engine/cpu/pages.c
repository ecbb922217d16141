/* pages.c -- pages out and in: boxes of KV in canonical order, of any element type. */
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

/* One row between a block and the wire, rounded anew where the types differ. */
static void move_row(const eng_pages *kv, char *block, int is_v, int slot, eng_kv_type type, char *wire,
                     bool unpack) {
    char row[ENG_ROW_BYTES_MAX], *dense = type == kv->type ? wire : row;
    float values[ENG_HEAD_MAX];
    if (unpack && dense == row) {
        eng_cpu_dequantize(eng_row_type(type), wire, kv->h, values);
        eng_quantize_row(eng_row_type(kv->type), values, kv->h, row);
    }
    if (unpack) eng_row_write(kv, block, is_v, slot, dense);
    else eng_row_read(kv, block, is_v, slot, dense);
    if (!unpack && dense == row) {
        eng_cpu_dequantize(eng_row_type(kv->type), row, kv->h, values);
        eng_quantize_row(eng_row_type(type), values, kv->h, wire);
    }
}

/* Walks a box in canonical order. */
static void move_box(const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, char *wire,
                     bool unpack) {
    size_t row_bytes = eng_kv_row_bytes(box->type, kv->h);
    for (int l = box->layer_first; l < box->layer_first + box->layers; l++)
        for (int is_v = 0; is_v < 2; is_v++)
            for (int head = box->head_first; head < box->head_first + box->heads; head++)
                for (int32_t t = box->token_first; t < box->token_first + box->tokens; t++) {
                    char *block = eng_page_block(kv, blocks[t / kv->P], l, is_v, head);
                    move_row(kv, block, is_v, t % kv->P, box->type, wire, unpack);
                    wire += row_bytes;
                }
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
