/* cublas.cpp -- libcublas.so.13 for tests: GemmEx and GemmStridedBatchedEx.
 *
 * Arguments are held to the documentation's rules and tables; then plain loops. As in the library, column-major, and the
 * kernel depends on the shape: the columns of a product are summed in more or fewer parts by how many there are, so a
 * row's bytes change with the batch (EMU_CUBLAS=fixed: always the same). What a product is right to count on is only
 * that equal calls give equal bytes. */
#include "emu.h"
#include <cstring>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector>

struct cublasContext {
    cudaStream_t stream;
    int device;
};

struct Operand {
    const char *data;
    cudaDataType_t type;
    int ld;
    long long stride;
    bool transposed;
};

struct Gemm {
    int m, n, k, batch;
    double alpha, beta;
    Operand a, b, c;
    cublasComputeType_t compute;
};

static size_t type_bytes(cudaDataType_t t) {
    switch (t) {
    case CUDA_R_8I: return 1;
    case CUDA_R_16F:
    case CUDA_R_16BF: return 2;
    case CUDA_R_32F:
    case CUDA_R_32I: return 4;
    default: return 0;
    }
}

static float element(const char *p, cudaDataType_t t, size_t i) {
    uint16_t bits;
    float f;
    switch (t) {
    case CUDA_R_32F: return ((const float *)p)[i];
    case CUDA_R_8I: return ((const int8_t *)p)[i];
    case CUDA_R_32I: return (float)((const int32_t *)p)[i];
    case CUDA_R_16F: {
        _Float16 h;
        memcpy(&h, p + 2 * i, 2);
        return (float)h;
    }
    default: {
        memcpy(&bits, p + 2 * i, 2);
        uint32_t wide = (uint32_t)bits << 16;
        memcpy(&f, &wide, 4);
        return f;
    }
    }
}

static void element_set(char *p, cudaDataType_t t, size_t i, double v) {
    switch (t) {
    case CUDA_R_32F: ((float *)p)[i] = (float)v; break;
    case CUDA_R_32I: ((int32_t *)p)[i] = (int32_t)v; break;
    case CUDA_R_16F: {
        _Float16 h = (_Float16)v;
        memcpy(p + 2 * i, &h, 2);
        break;
    }
    default: {
        __nv_bfloat16 b = __float2bfloat16((float)v);
        memcpy(p + 2 * i, (void *)&b, 2);
    }
    }
}

/* The combinations of cublasGemmEx's table that a language model uses. */
static bool supported(const Gemm &g) {
    cudaDataType_t a = g.a.type, c = g.c.type;
    if (a != g.b.type)
        return false;
    switch (g.compute) {
    case CUBLAS_COMPUTE_32I: return a == CUDA_R_8I && c == CUDA_R_32I && g.a.ld % 4 == 0 && g.b.ld % 4 == 0;
    case CUBLAS_COMPUTE_16F: return a == CUDA_R_16F && c == CUDA_R_16F;
    case CUBLAS_COMPUTE_32F:
    case CUBLAS_COMPUTE_32F_PEDANTIC:
    case CUBLAS_COMPUTE_32F_FAST_TF32:
        if (a == CUDA_R_16F || a == CUDA_R_16BF)
            return c == a || c == CUDA_R_32F;
        return a == CUDA_R_32F && c == CUDA_R_32F;
    default: return false;
    }
}

/* Row i of op(A), or column j of op(B), as floats. */
static void vector_read(float *out, const Operand &o, const char *data, int i, int k, bool strided) {
    for (int p = 0; p < k; p++)
        out[p] = element(data, o.type, strided ? (size_t)p * o.ld + i : (size_t)i * o.ld + p);
}

/* How many parts a sum is split into: what a real library chooses by shape, in its own way. */
static int parts_of(const Gemm &g) {
    if (emu_env_is("EMU_CUBLAS", "fixed") || g.k < 64)
        return 1;
    return g.n == 1 ? 4 : g.n < 16 ? 2 : 1;
}

static double dot(const float *x, const float *y, int k, int parts) {
    float total = 0;
    for (int part = 0; part < parts; part++) {
        int low = (int)((long long)k * part / parts), high = (int)((long long)k * (part + 1) / parts), p = low;
        float lane[8] = {0}, sum = 0;
        for (; p + 8 <= high; p += 8)
            for (int u = 0; u < 8; u++)
                lane[u] += x[p + u] * y[p + u];
        for (; p < high; p++)
            sum += x[p] * y[p];
        for (int u = 0; u < 8; u++)
            sum += lane[u];
        total += sum;
    }
    return total;
}

static size_t operand_bytes(const Operand &o, int rows, int columns) {
    return ((size_t)(columns - 1) * o.ld + rows) * type_bytes(o.type);
}

static void gemm_one(const Gemm &g, const char *a, const char *b, char *c) {
    if (g.k) {
        size_t a_bytes = g.a.transposed ? operand_bytes(g.a, g.k, g.m) : operand_bytes(g.a, g.m, g.k);
        size_t b_bytes = g.b.transposed ? operand_bytes(g.b, g.n, g.k) : operand_bytes(g.b, g.k, g.n);
        emu_check_dev("gemm: A", a, a_bytes, emu_device);
        emu_check_dev("gemm: B", b, b_bytes, emu_device);
    }
    emu_check_dev("gemm: C", c, operand_bytes(g.c, g.m, g.n), emu_device);
    std::vector<float> row(g.k + 1), columns((size_t)g.n * g.k + 1);
    for (int j = 0; j < g.n; j++)
        vector_read(&columns[(size_t)j * g.k], g.b, b, j, g.k, g.b.transposed);
    int parts = parts_of(g);
    for (int i = 0; i < g.m; i++) {
        vector_read(row.data(), g.a, a, i, g.k, !g.a.transposed);
        for (int j = 0; j < g.n; j++) {
            size_t at = (size_t)j * g.c.ld + i;
            double v = g.alpha * dot(row.data(), &columns[(size_t)j * g.k], g.k, parts);
            if (g.beta != 0)                               /* beta 0: C may hold anything */
                v += g.beta * element(c, g.c.type, at);
            element_set(c, g.c.type, at, v);
        }
    }
}

static double scalar(const void *p, cublasComputeType_t t) {
    if (t == CUBLAS_COMPUTE_32I)
        return *(const int32_t *)p;
    return t == CUBLAS_COMPUTE_16F ? element((const char *)p, CUDA_R_16F, 0) : *(const float *)p;
}

static int at_least_one(int v) { return v > 1 ? v : 1; }

static cublasStatus_t gemm_queue(cublasHandle_t h, Gemm g) {
    if (!h)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    int a_rows = g.a.transposed ? g.k : g.m, b_rows = g.b.transposed ? g.n : g.k;
    if (g.m < 0 || g.n < 0 || g.k < 0 || g.batch < 0 || g.a.ld < at_least_one(a_rows) || g.b.ld < at_least_one(b_rows) ||
        g.c.ld < at_least_one(g.m))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!supported(g))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!g.m || !g.n || !g.batch)
        return CUBLAS_STATUS_SUCCESS;
    cudaError_t e = emu_enqueue(h->stream, "cublas gemm", [g] {
        for (long long i = 0; i < g.batch; i++)
            gemm_one(g, g.a.data + i * g.a.stride * (long long)type_bytes(g.a.type),
                     g.b.data + i * g.b.stride * (long long)type_bytes(g.b.type),
                     (char *)g.c.data + i * g.c.stride * (long long)type_bytes(g.c.type));
        return true;
    });
    return e ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

EMU_API cublasStatus_t cublasCreate_v2(cublasHandle_t *h) {
    if (emu_api("cublasCreate"))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    *h = new cublasContext{nullptr, emu_device};
    return CUBLAS_STATUS_SUCCESS;
}

EMU_API cublasStatus_t cublasDestroy_v2(cublasHandle_t h) {
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

EMU_API cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t st) {
    h->stream = st;
    return CUBLAS_STATUS_SUCCESS;
}

EMU_API cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }

EMU_API cublasStatus_t cublasSetAtomicsMode(cublasHandle_t, cublasAtomicsMode_t) { return CUBLAS_STATUS_SUCCESS; }

EMU_API cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *p, size_t bytes) {
    emu_check_dev("cublasSetWorkspace", p, bytes, h->device);
    return (uintptr_t)p % 256 ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}

EMU_API cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int *version) {
    *version = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

EMU_API const char *cublasGetStatusString(cublasStatus_t s) {
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    default: return "another cuBLAS status";
    }
}

EMU_API cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                                                  int k, const void *alpha, const void *A, cudaDataType At, int lda,
                                                  long long sa, const void *B, cudaDataType Bt, int ldb, long long sb,
                                                  const void *beta, void *C, cudaDataType Ct, int ldc, long long sc,
                                                  int batch, cublasComputeType_t compute, cublasGemmAlgo_t) {
    return gemm_queue(h, Gemm{m, n, k, batch, scalar(alpha, compute), scalar(beta, compute),
                              Operand{(const char *)A, At, lda, sa, ta != CUBLAS_OP_N},
                              Operand{(const char *)B, Bt, ldb, sb, tb != CUBLAS_OP_N},
                              Operand{(const char *)C, Ct, ldc, sc, false}, compute});
}

EMU_API cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                                    const void *alpha, const void *A, cudaDataType At, int lda, const void *B,
                                    cudaDataType Bt, int ldb, const void *beta, void *C, cudaDataType Ct, int ldc,
                                    cublasComputeType_t compute, cublasGemmAlgo_t algo) {
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, A, At, lda, 0, B, Bt, ldb, 0, beta, C, Ct, ldc, 0, 1,
                                      compute, algo);
}
