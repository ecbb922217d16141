/* weights.c -- matrices brought to the device.
 *
 * A matrix's own memory is its parts one after the other, each at a multiple of CUDA_ALIGN; but parts of one float
 * type are dense, so that they are one product (matmul.c):
 *
 *   quantised    cuda_repack()'s form
 *   float        rows, dense, as the file has them
 *   embed        rows, dense, of any type
 *
 * The file is a mapping, which the device cannot read at full speed: rows go through two pinned pieces, one being
 * filled by this thread while the other travels; quantised rows are repacked from the staging's device half, panel by
 * panel. */
#include "engine/cuda/cuda.h"
#include <assert.h>
#include <string.h>

bool cuda_is_float(eng_type type) { return type == ENG_F32 || type == ENG_F16 || type == ENG_BF16; }

bool cuda_is_dense(const eng_matrix *m) {
    for (int i = 0; i < m->parts; i++)
        if (!cuda_is_float(m->part[i].type) || m->part[i].type != m->part[0].type) return false;
    return true;
}

static size_t rows_bytes(const eng_matrix *m, int i) {
    return (size_t)m->part[i].rows * eng_gguf_type_bytes(m->part[i].type, m->C);
}

size_t cuda_part_bytes(const eng_matrix *m, int i) {
    size_t repacked = m->by_row ? 0 : cuda_repack_bytes(m->part[i].type, m->part[i].rows, m->C);
    size_t bytes = repacked ? repacked : rows_bytes(m, i);
    if (cuda_is_dense(m) && i < m->parts - 1) return bytes;
    return (bytes + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

size_t cuda_own_bytes(const eng_context *c, const eng_matrix *m) {
    size_t bytes = 0;
    (void)c;
    for (int i = 0; i < m->parts; i++) bytes += cuda_part_bytes(m, i);
    return bytes;
}

/* Rows of part i in file order, dense in pinned memory. */
static void fill(const eng_matrix *m, int i, int first, int count, size_t bytes, char *to) {
    size_t stride = m->part[i].row_bytes;
    const char *from = (const char *)m->part[i].data + (size_t)first * stride;
    if (stride == bytes) memcpy(to, from, (size_t)count * bytes);
    else
        for (int n = 0; n < count; n++) memcpy(to + (size_t)n * bytes, from + (size_t)n * stride, bytes);
}

/* Rows [first, first + count) of part i to where they belong in the part's memory. */
static bool bring_rows(eng_context *c, const eng_matrix *m, int i, int first, int count, char *part) {
    cuda_stage *s = &c->in;
    eng_type type = m->part[i].type;
    int k = s->turn ^= 1;
    size_t bytes = eng_gguf_type_bytes(type, m->C), repacked_before = m->by_row ? 0 : cuda_repack_bytes(type, first, m->C);
    bool as_is = m->by_row || cuda_is_float(type);
    char *to = as_is ? part + (size_t)first * bytes : s->device[k];
    if (!cuda_fine(c, cudaEventSynchronize(s->done[k]), "waiting for weights")) return false;
    fill(m, i, first, count, bytes, s->host[k]);
    cudaError_t e = cudaMemcpyAsync(to, s->host[k], (size_t)count * bytes, cudaMemcpyHostToDevice, s->stream);
    if (e == cudaSuccess && !as_is) e = cuda_repack(s->stream, part + repacked_before, type, to, bytes, count, m->C);
    if (e == cudaSuccess) e = cudaEventRecord(s->done[k], s->stream);
    return cuda_fine(c, e, "bringing weights");
}

/* By pieces of whole panels, as many as staging holds. */
static bool bring_part(eng_context *c, const eng_matrix *m, int i, char *to) {
    int rows = m->part[i].rows, piece = (int)(c->stage_bytes / eng_gguf_type_bytes(m->part[i].type, m->C));
    piece = piece / CUDA_PANEL * CUDA_PANEL;
    assert(piece > 0 && "open() refuses rows too wide for it");
    for (int n = 0; n < rows; n += piece)
        if (!bring_rows(c, m, i, n, rows - n < piece ? rows - n : piece, to)) return false;
    return true;
}

void cuda_prepare(eng_context *c, const eng_matrix *m, void *own) {
    char *to = own;
    for (int i = 0; i < m->parts; i++) {
        if (!m->by_row && cuda_is_float(m->part[i].type) && !c->gemm) {
            error why;
            if (cuda_gemm_open(c, &why) != ST_OK) {
                cuda_fail(c, why.code, "%s", why.text);
                return;
            }
        }
        if (!bring_part(c, m, i, to)) return;
        to += cuda_part_bytes(m, i);
    }
}
