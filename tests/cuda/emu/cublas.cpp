// Test-only cuBLAS subset: argument checks as strict as the documentation, then plain loops with float accumulation.
#include "emu.h"
#include <cublas_v2.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cstring>
#include <memory>
struct cublasContext { cudaStream_t s; cublasMath_t math; cublasPointerMode_t pm; };
static size_t esz(cudaDataType_t t) { switch (t) { case CUDA_R_8I: case CUDA_R_8F_E4M3: return 1; case CUDA_R_16F: case CUDA_R_16BF: return 2; case CUDA_R_32F: case CUDA_R_32I: return 4; case CUDA_R_64F: return 8; default: return 0; } }
// one element as float (bit tricks so that the loops vectorise)
static inline float bf(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }
static inline float hf(uint16_t b) { _Float16 h; memcpy(&h, &b, 2); return (float)h; }
static void row(float *d, const void *p, cudaDataType_t t, size_t off, size_t stride, size_t n) {
    switch (t) {
    case CUDA_R_32F: for (size_t i = 0; i < n; i++) d[i] = ((const float *)p)[off + i * stride]; break;
    case CUDA_R_16BF: if (stride == 1) for (size_t i = 0; i < n; i++) d[i] = bf(((const uint16_t *)p)[off + i]); else for (size_t i = 0; i < n; i++) d[i] = bf(((const uint16_t *)p)[off + i * stride]); break;
    case CUDA_R_16F: if (stride == 1) for (size_t i = 0; i < n; i++) d[i] = hf(((const uint16_t *)p)[off + i]); else for (size_t i = 0; i < n; i++) d[i] = hf(((const uint16_t *)p)[off + i * stride]); break;
    case CUDA_R_8I: for (size_t i = 0; i < n; i++) d[i] = ((const int8_t *)p)[off + i * stride]; break; default: emu_fail("cublas", "type %d", (int)t); }
}
static void put(void *p, cudaDataType_t t, size_t i, double v) { switch (t) { case CUDA_R_32F: ((float *)p)[i] = (float)v; break; case CUDA_R_16F: { _Float16 h = (_Float16)v; memcpy((uint16_t *)p + i, &h, 2); break; } case CUDA_R_16BF: { __nv_bfloat16 b = __float2bfloat16((float)v); memcpy((uint16_t *)p + i, &b, 2); break; } case CUDA_R_32I: ((int *)p)[i] = (int)v; break; default: emu_fail("cublas", "type %d", (int)t); } }
static double get(const void *p, cudaDataType_t t, size_t i) { float f; if (t == CUDA_R_32I) return ((const int *)p)[i]; row(&f, p, t, i, 1, 1); return f; }
static bool combo(cudaDataType_t a, cudaDataType_t b, cudaDataType_t c, cublasComputeType_t k) { // table of the cublasGemmEx page, the part an LLM engine needs
    if (a != b) return false;
    if (k == CUBLAS_COMPUTE_32I) return a == CUDA_R_8I && c == CUDA_R_32I;
    if (k == CUBLAS_COMPUTE_16F) return a == CUDA_R_16F && c == CUDA_R_16F;
    if (k == CUBLAS_COMPUTE_32F || k == CUBLAS_COMPUTE_32F_FAST_TF32) return (a == CUDA_R_16F || a == CUDA_R_16BF) ? (c == a || c == CUDA_R_32F) : a == CUDA_R_32F ? c == CUDA_R_32F : (a == CUDA_R_8I && c == CUDA_R_32F);
    return false;
}
static cublasStatus_t gemm(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void *al, const void *A, cudaDataType_t At, int lda, long long sa, const void *B, cudaDataType_t Bt, int ldb, long long sb, const void *be, void *C, cudaDataType_t Ct, int ldc, long long sc, int batch, cublasComputeType_t ct) {
    if (!h) return CUBLAS_STATUS_NOT_INITIALIZED;
    int ra = ta == CUBLAS_OP_N ? m : k, rb = tb == CUBLAS_OP_N ? k : n, ca = ta == CUBLAS_OP_N ? k : m, cb = tb == CUBLAS_OP_N ? n : k;
    if (m < 0 || n < 0 || k < 0 || batch < 0 || lda < (ra > 1 ? ra : 1) || ldb < (rb > 1 ? rb : 1) || ldc < (m > 1 ? m : 1)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!combo(At, Bt, Ct, ct)) return CUBLAS_STATUS_NOT_SUPPORTED; if (At == CUDA_R_8I && (lda % 4 || ldb % 4)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!m || !n || !batch) return CUBLAS_STATUS_SUCCESS;
    double alpha, beta; if (ct == CUBLAS_COMPUTE_32I) { alpha = *(const int *)al; beta = *(const int *)be; } else if (ct == CUBLAS_COMPUTE_16F) { alpha = hf(*(const uint16_t *)al); beta = hf(*(const uint16_t *)be); } else { alpha = *(const float *)al; beta = *(const float *)be; }
    return emu_enqueue(h->s, "gemm", [=] {
        for (int q = 0; q < batch; q++) { const char *a = (const char *)A + q * sa * (long long)esz(At), *b = (const char *)B + q * sb * (long long)esz(Bt); char *c = (char *)C + q * sc * (long long)esz(Ct);
            if (k) { emu_check_dev("gemm A", a, ((size_t)(ca - 1) * lda + ra) * esz(At)); emu_check_dev("gemm B", b, ((size_t)(cb - 1) * ldb + rb) * esz(Bt)); } emu_check_dev("gemm C", c, ((size_t)(n - 1) * ldc + m) * esz(Ct));
            std::unique_ptr<float[]> bb(new float[(size_t)n * k + 1]), ar(new float[k + 1]);
            for (int j = 0; j < n; j++) tb == CUBLAS_OP_N ? row(&bb[(size_t)j * k], b, Bt, (size_t)j * ldb, 1, k) : row(&bb[(size_t)j * k], b, Bt, j, ldb, k);
            for (int i = 0; i < m; i++) { ta == CUBLAS_OP_N ? row(ar.get(), a, At, i, lda, k) : row(ar.get(), a, At, (size_t)i * lda, 1, k);
                for (int j = 0; j < n; j++) { const float *x = ar.get(), *y = &bb[(size_t)j * k]; float s[16] = {0}; int p = 0; for (; p + 16 <= k; p += 16) for (int u = 0; u < 16; u++) s[u] += x[p + u] * y[p + u]; double t = 0; for (; p < k; p++) t += (double)x[p] * y[p]; for (int u = 0; u < 16; u++) t += s[u];
                    size_t at = (size_t)j * ldc + i; double v = alpha * t; if (beta != 0) v += beta * get(c, Ct, at); put(c, Ct, at, v); } } } // beta 0: C is not read, so NaN in it does no harm
    }) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
extern "C" {
cublasStatus_t cublasCreate_v2(cublasHandle_t *h) { *h = new cublasContext(); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasDestroy_v2(cublasHandle_t h) { delete h; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s) { h->s = s; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t m) { h->math = m; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *, size_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void *al, const void *A, cudaDataType At, int lda, const void *B, cudaDataType Bt, int ldb, const void *be, void *C, cudaDataType Ct, int ldc, cublasComputeType_t ct, cublasGemmAlgo_t) { return gemm(h, ta, tb, m, n, k, al, A, At, lda, 0, B, Bt, ldb, 0, be, C, Ct, ldc, 0, 1, ct); }
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void *al, const void *A, cudaDataType At, int lda, long long sa, const void *B, cudaDataType Bt, int ldb, long long sb, const void *be, void *C, cudaDataType Ct, int ldc, long long sc, int batch, cublasComputeType_t ct, cublasGemmAlgo_t) { return gemm(h, ta, tb, m, n, k, al, A, At, lda, sa, B, Bt, ldb, sb, be, C, Ct, ldc, sc, batch, ct); }
}
