/* matmul.c -- products: quantised weights by our own kernel (product.cu), F32, F16 and BF16 by cuBLAS.
 *
 * Same bytes. Our kernel computes a row in the same order however many rows there are. cuBLAS promises the same bits
 * for the same call on the same GPU and version, and chooses its kernel by the call's shape: so every matrix is only
 * ever called with one shape. Rows go in slabs of CUDA_SLAB, the last one padded, and a single decoded row is a
 * slab as well: the weights are read once either way, and that is what a decoded row costs. A long prompt pays with
 * reading the weights once a slab instead of once. What the padding rows hold does not matter, since a product's
 * columns do not meet.
 *
 *   split K         its order is that of the kernel, hence of the shape; atomics are forbidden by name, and so are
 *                   partial sums of less than FP32
 *   workspace       ours, of one size: cuBLAS chooses by it, too, and allocates nothing, so that calls can be captured
 *   alignment       each operand starts at the same multiple of 64 bytes in every call of a matrix
 *   TF32            off (the default math mode); F32 weights multiply as F32
 *
 * Not proven by documents: that a row's place in the slab does not show. Every tile of a dense kernel runs the same
 * loop over K, so it should not; deploy/gpu.md has the test that a GPU's owner runs.
 *
 * Strided batched products are not used: slabs as a batch would make the batch count part of the shape. Parts of one
 * float type stand dense (weights.c), so Q, K and V, or gate and up, are one product as they are.
 *
 * Activations are rounded to the weights' type before they are multiplied (cuda_act_floats); sums are FP32. */
#include "engine/cuda/cuda.h"
#include <string.h>

enum { WORKSPACE = 32 << 20 };           /* what NVIDIA advises for sm_90, enough for the others */

static cudaDataType_t cuda_type(eng_type type) {
    return type == ENG_F32 ? CUDA_R_32F : type == ENG_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

int cuda_widest(const eng_shape *s) {
    int columns = s->D > s->F ? s->D : s->F;
    return columns > s->H * s->h ? columns : s->H * s->h;
}

/* cublasSetStream() forgets the workspace, so it comes first. */
static status set_up(eng_context *c, error *err) {
    const cuda_blas *b = c->blas;
    int version = 0;
    cublasStatus_t s = b->set_stream(c->gemm, c->compute);
    if (s == CUBLAS_STATUS_SUCCESS) s = b->set_workspace(c->gemm, c->gemm_workspace, WORKSPACE);
    if (s == CUBLAS_STATUS_SUCCESS) s = b->set_atomics_mode(c->gemm, CUBLAS_ATOMICS_NOT_ALLOWED);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = b->set_math_mode(c->gemm, CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    if (s == CUBLAS_STATUS_SUCCESS) s = b->get_version(c->gemm, &version);
    if (s != CUBLAS_STATUS_SUCCESS) return error_set(err, ST_DEVICE, "cuBLAS cannot be set up: %s", b->status_text(s));
    size_t used = strlen(c->numerics);
    snprintf(c->numerics + used, sizeof c->numerics - used, "/cublas-%d", version);
    return ST_OK;
}

status cuda_gemm_open(eng_context *c, error *err) {
    TRY(cuda_load_blas(&c->blas, err));
    size_t x = CUDA_SLAB * (size_t)cuda_widest(&c->shape) * sizeof(float);
    c->gemm_workspace = cuda_alloc(c, WORKSPACE);
    c->gemm_x = cuda_alloc(c, x);
    if (!c->gemm_workspace || !c->gemm_x)
        return error_set(err, ST_NO_MEMORY, "no memory for cuBLAS's workspace of %d MiB: %s", WORKSPACE >> 20,
                         cuda_room(c, (char[ENG_ROOM_BYTES]){0}));
    cublasStatus_t s = c->blas->create(&c->gemm);
    if (s != CUBLAS_STATUS_SUCCESS) return error_set(err, ST_DEVICE, "cuBLAS cannot be opened: %s", c->blas->status_text(s));
    return set_up(c, err);
}

void cuda_gemm_close(eng_context *c) {
    if (c->gemm) c->blas->destroy(c->gemm);
    cuda_free(c, c->gemm_workspace);
    cuda_free(c, c->gemm_x);
}

/* ---- products ------------------------------------------------------------------------------------ */

/* y (T,N), rows ldy floats apart = x act(T,C) * w^T. cuBLAS counts by columns: what is a row here is a column there. */
static bool multiply_floats(eng_context *c, float *y, int ldy, const void *x, const cuda_matrix *w, int T) {
    const float one = 1, zero = 0;
    cudaDataType_t type = cuda_type(w->type);
    size_t act = cuda_act_bytes(w->C);
    for (int t = 0; t < T; t += CUDA_SLAB) {
        int rows = T - t < CUDA_SLAB ? T - t : CUDA_SLAB;
        const char *from = (const char *)x + (size_t)t * act;
        if (!cuda_fine(c, cuda_act_floats(c->compute, c->gemm_x, w->type, from, rows, w->C), "activations")) return false;
        cublasStatus_t s = c->blas->gemm_ex(c->gemm, CUBLAS_OP_T, CUBLAS_OP_N, w->N, CUDA_SLAB, w->C, &one, w->data, type, w->C,
                                            c->gemm_x, type, w->C, &zero, y + (size_t)t * (size_t)ldy, CUDA_R_32F, ldy,
                                            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        if (s != CUBLAS_STATUS_SUCCESS) return cuda_fail(c, ST_DEVICE, "a product of %d rows: %s", rows, c->blas->status_text(s));
    }
    return true;
}

void cuda_matmul(eng_context *c, float *y, const void *x, const eng_matrix *m, int T) {
    const char *at = m->own;
    int rows = cuda_batch_rows(c, T);
    if (cuda_idle(c) || rows == 0) return;
    if (cuda_is_dense(m)) {
        cuda_matrix all = {.type = m->part[0].type, .N = m->N, .C = m->C, .data = at};
        multiply_floats(c, y, m->N, x, &all, rows);
        return;
    }
    for (int i = 0; i < m->parts; i++) {
        cuda_matrix w = {.type = m->part[i].type, .N = m->part[i].rows, .C = m->C, .data = at};
        bool fine = cuda_is_float(w.type) ? multiply_floats(c, y, m->N, x, &w, rows)
                                          : cuda_fine(c, cuda_matmul_quantised(c->compute, y, m->N, x, &w, rows), "a product");
        if (!fine) return;
        at += cuda_part_bytes(m, i);
        y += w.N;
    }
}
