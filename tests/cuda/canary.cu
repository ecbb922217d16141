/* canary.cu -- classic CUDA bugs, each beside a correct twin: canaries.sh wants the bug caught and the twin passed.
 *
 *   canary NAME twin   runs the twin: 0
 *   canary NAME bug    runs the twin, then the bug: anything but 0, because the emulator ends the process, the API
 *                      answers with an error, or the two results differ
 *   canary NAME alone  the bug without its twin before it
 *   canary             prints the names */
#include "engine/cuda/device.cuh"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 256 };

/* What a canary works with. out is compared. */
struct Rig {
    float *x, *out;                        /* (2N) on the device; x is 0 .. 16 again and again, out 0 */
    float host[2 * N], pinned_copy[2 * N], *pinned;
    cudaStream_t st, other;
    cudaEvent_t event;
};

/* ---- barriers ------------------------------------------------------------------------------------------ */

/* Shared memory is written again before everybody has read it. */
KERNEL reuse(float *out, const float *x, int good) {
    SHARED_ARRAY(float, s, N);
    float sum = 0;
    for (int i = 0; i < 3; i++) {
        s[threadIdx.x] = x[threadIdx.x] + i;
        __syncthreads();
        sum += s[(threadIdx.x + 37) % N];
        if (good)
            __syncthreads();
    }
    out[threadIdx.x] = sum;
}

/* Neighbours of a warp meet in shared memory without __syncwarp. */
KERNEL neighbours(float *out, const float *x, int good) {
    SHARED_ARRAY(float, s, N);
    s[threadIdx.x] = x[threadIdx.x];
    if (good)
        __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}

KERNEL no_barrier(float *out, const float *x, int good) {
    SHARED_ARRAY(float, s, N);
    s[threadIdx.x] = x[threadIdx.x];
    if (good)
        __syncthreads();
    out[threadIdx.x] = s[N - 1 - threadIdx.x];
}

/* Two barriers in two branches of one block. */
KERNEL branches(float *out, int good) {
    SHARED_ARRAY(float, s, N);
    if (good || threadIdx.x < N / 2) {
        s[threadIdx.x] = 1;
        __syncthreads();
    } else {
        s[threadIdx.x] = 2;
        __syncthreads();
    }
    out[threadIdx.x] = s[N - 1 - threadIdx.x];
}

/* Half of a warp at the block's barrier, half at a shuffle. */
KERNEL deadlock(float *out, int good) {
    float v = (float)threadIdx.x;
    if (good || (threadIdx.x & 16))
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    else
        __syncthreads();
    out[threadIdx.x] = v;
}

/* One thread goes round once more. */
KERNEL trips(float *out, int good) {
    const int n = good ? 3 : 3 + (threadIdx.x == 7);
    for (int i = 0; i < n; i++)
        __syncthreads();
    out[threadIdx.x] = 1;
}

KERNEL leaves_early(float *out, int n, int good) {
    if (!good && (int)threadIdx.x >= n)
        return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

/* ---- warps ------------------------------------------------------------------------------------------ */

KERNEL mask_too_wide(float *out, int good) {
    float v = 1;
    if (threadIdx.x % 32 < 16)
        v += __shfl_down_sync(good ? 0xffffu : 0xffffffffu, v, 8, 16);
    out[threadIdx.x] = v;
}

KERNEL source_outside(float *out, int good) {
    float v = (float)threadIdx.x;
    if (threadIdx.x % 32 < 8)
        v = __shfl_sync(0xffu, v, good ? 7 : 8);
    out[threadIdx.x] = v;
}

/* ---- races in global memory ------------------------------------------------------------------------------------------ */

KERNEL sum(float *out, const float *x, int good) {
    if (good)
        atomicAdd(out, x[threadIdx.x]);
    else
        *out += x[threadIdx.x];
}

KERNEL same_place(float *out, int good) { out[good ? blockIdx.x * N + threadIdx.x : threadIdx.x] = (float)blockIdx.x; }

/* ---- bounds ------------------------------------------------------------------------------------------ */

KERNEL copy(float *out, const float *x) { out[threadIdx.x] = x[threadIdx.x] + 1; }

KERNEL vector_load(float *out, const float *x, int at) {
    const float4 v = *reinterpret_cast<const float4 *>(x + at);
    out[threadIdx.x] = v.x + v.w;
}

KERNEL dynamic(float *out, int n) {
    SHARED_DYN(float, s);
    s[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x == 0)
        s[n - 1] = 2;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}

/* The index is known when it runs. */
KERNEL shared_index(float *out, int i) {
    SHARED_ARRAY(float, a, 64);
    SHARED_ARRAY(float, b, 64);
    float *p = a;
    b[threadIdx.x] = 2;
    a[threadIdx.x] = 3;
    __syncthreads();
    p[i] = (float)threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 0)
        out[0] = p[i] + b[0];
}

KERNEL local_index(float *out, int i) {
    float a[8];
    for (int j = 0; j < 8; j++)
        a[j] = (float)j;
    out[threadIdx.x] = a[i];
}

KERNEL narrow_index(float *out, int block, int stride, int good) {
    if (good)
        out[(size_t)block * stride] = 1;
    else
        out[block * stride] = 1;
}

/* A page behind the block table's end. */
KERNEL page_of(float *out, const int *table, const float *pages, int t) {
    out[threadIdx.x] = pages[table[t / 16] * 16 + t % 16];
}

/* ---- the table ------------------------------------------------------------------------------------------ */

static cudaError_t one(Rig *r, void (*k)(float *, const float *, int), int good) {
    return launch(k, dim3(1), dim3(N), 0, r->st, r->out, (const float *)r->x, good);
}
static cudaError_t two(Rig *r, void (*k)(float *, int), int blocks, int good) {
    return launch(k, dim3(blocks), dim3(N), 0, r->st, r->out, good);
}
static cudaError_t plus_one(Rig *r, const float *from) { return launch(copy, dim3(1), dim3(N), 0, r->st, r->out, from); }

/* The result is brought to the host and back, so that it stands in out if it was seen. */
static cudaError_t seen(Rig *r) {
    cudaDeviceSynchronize();
    return cudaMemcpy(r->out, r->pinned_copy, sizeof(float) * N, cudaMemcpyHostToDevice);
}

static cudaError_t host_pointer(Rig *r, int good) { return plus_one(r, good ? r->x : r->host); }

static cudaError_t host_dereference(Rig *r, int good) { return plus_one(r, good || r->x[3] > 0 ? r->x : r->out); }

static cudaError_t dynamic_large(Rig *r, int good) {
    if (good)
        cudaFuncSetAttribute(dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10);
    return launch(dynamic, dim3(1), dim3(N), 100 << 10, r->st, r->out, N);
}

static cudaError_t no_sync(Rig *r, int good) {
    plus_one(r, r->x);
    cudaMemcpyAsync(r->pinned, r->out, sizeof(float) * N, cudaMemcpyDeviceToHost, r->st);
    if (good)
        cudaStreamSynchronize(r->st);
    memcpy(r->pinned_copy, r->pinned, sizeof(float) * N);
    return seen(r);
}

/* Compute on one stream, copy on another. */
static cudaError_t no_event(Rig *r, int good) {
    plus_one(r, r->x);
    if (good) {
        cudaEventRecord(r->event, r->st);
        cudaStreamWaitEvent(r->other, r->event, 0);
    }
    cudaMemcpyAsync(r->pinned, r->out, sizeof(float) * N, cudaMemcpyDeviceToHost, r->other);
    cudaStreamSynchronize(r->other);
    memcpy(r->pinned_copy, r->pinned, sizeof(float) * N);
    return seen(r);
}

/* The null stream does not wait for a non-blocking one. */
static cudaError_t null_stream(Rig *r, int good) {
    plus_one(r, r->x);
    if (good)
        cudaStreamSynchronize(r->st);
    cudaMemcpy(r->pinned_copy, r->out, sizeof(float) * N, cudaMemcpyDeviceToHost);
    return seen(r);
}

/* The staging buffer is filled again before its copy has run. */
static cudaError_t staging_reused(Rig *r, int good) {
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < N; k++)
            r->pinned[k] = (float)(i * 100 + k);
        cudaMemcpyAsync(r->out + i * N, r->pinned, sizeof(float) * N, cudaMemcpyHostToDevice, r->st);
        if (good)
            cudaStreamSynchronize(r->st);
    }
    return cudaSuccess;
}

static cudaError_t buffer_gone(Rig *r, int good) {
    float *p = (float *)malloc(sizeof(float) * N);
    for (int i = 0; i < N; i++)
        p[i] = 3;
    cudaMemcpyAsync(r->out, p, sizeof(float) * N, cudaMemcpyHostToDevice, r->st);
    if (good)
        cudaStreamSynchronize(r->st);
    memset(p, 0xff, sizeof(float) * N);
    free(p);
    return cudaSuccess;
}

static cudaError_t after_free(Rig *r, int good) {
    float *p;
    cudaMalloc((void **)&p, sizeof(float) * N);
    cudaMemset(p, 0, sizeof(float) * N);
    if (!good)
        cudaFree(p);
    return plus_one(r, p);
}

static cudaError_t index_32_bits(Rig *r, int good) {
    static float *p;
    cudaError_t e = p ? cudaSuccess : cudaMalloc((void **)&p, (size_t)11 << 30);     /* addresses only */
    return e ? e : launch(narrow_index, dim3(1), dim3(1), 0, r->st, p, 20000, 131072, good);
}

static cudaError_t page_table(Rig *r, int good) {
    int table[4] = {1, 0, 2, -1000000}, *d;                        /* three pages are in use */
    cudaMalloc((void **)&d, sizeof table);
    cudaMemcpy(d, table, sizeof table, cudaMemcpyHostToDevice);
    return launch(page_of, dim3(1), dim3(1), 0, r->st, r->out, (const int *)d, (const float *)r->x, good ? 47 : 48);
}

static cudaError_t capture_sync(Rig *r, int good) {
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudaStreamBeginCapture(r->st, cudaStreamCaptureModeGlobal);
    plus_one(r, r->x);
    if (!good)
        cudaStreamSynchronize(r->st);
    cudaError_t e = cudaStreamEndCapture(r->st, &g);
    if (e)
        return e;
    cudaGraphInstantiate(&x, g, 0);
    cudaGraphLaunch(x, r->st);
    cudaGraphExecDestroy(x);
    return cudaGraphDestroy(g);
}

static cudaError_t capture_malloc(Rig *r, int good) {
    cudaGraph_t g;
    void *p = NULL;
    cudaStreamBeginCapture(r->st, cudaStreamCaptureModeThreadLocal);
    plus_one(r, r->x);
    if (!good)
        cudaMalloc(&p, 16);
    cudaError_t e = cudaStreamEndCapture(r->st, &g);
    return e ? e : cudaGraphDestroy(g);
}

static cudaError_t host_function_error;
static void calls_cuda(void *good) {
    int d;
    host_function_error = good ? cudaSuccess : cudaGetDevice(&d);
}
static cudaError_t host_function(Rig *r, int good) {
    cudaLaunchHostFunc(r->st, calls_cuda, good ? r : NULL);
    cudaStreamSynchronize(r->st);
    return host_function_error;
}

struct Canary {
    const char *name;
    cudaError_t (*run)(Rig *r, int good);
};

static const Canary canaries[] = {
    {"reuse", [](Rig *r, int good) { return one(r, reuse, good); }},
    {"neighbours", [](Rig *r, int good) { return one(r, neighbours, good); }},
    {"no_barrier", [](Rig *r, int good) { return one(r, no_barrier, good); }},
    {"branches", [](Rig *r, int good) { return two(r, branches, 1, good); }},
    {"deadlock", [](Rig *r, int good) { return two(r, deadlock, 1, good); }},
    {"trips", [](Rig *r, int good) { return two(r, trips, 1, good); }},
    {"leaves_early", [](Rig *r, int g) { return launch(leaves_early, dim3(1), dim3(N), 0, r->st, r->out, N - 1, g); }},
    {"mask_too_wide", [](Rig *r, int good) { return two(r, mask_too_wide, 1, good); }},
    {"source_outside", [](Rig *r, int good) { return two(r, source_outside, 1, good); }},
    {"sum", [](Rig *r, int good) { return one(r, sum, good); }},
    {"same_place", [](Rig *r, int good) { return two(r, same_place, 2, good); }},
    {"misaligned", [](Rig *r, int g) {
         return launch(vector_load, dim3(1), dim3(32), 0, r->st, r->out, (const float *)r->x, g ? 4 : 1);
     }},
    {"past_the_end", [](Rig *r, int g) {
         return launch(vector_load, dim3(1), dim3(32), 0, r->st, r->out, (const float *)r->x, g ? 2 * N - 4 : 2 * N);
     }},
    {"dynamic_index", [](Rig *r, int g) {
         return launch(dynamic, dim3(1), dim3(N), N * 4, r->st, r->out, g ? N : N + 1);
     }},
    {"dynamic_large", dynamic_large},
    {"shared_index", [](Rig *r, int g) { return launch(shared_index, dim3(1), dim3(1), 0, r->st, r->out, g ? 63 : 64); }},
    {"shared_index_far", [](Rig *r, int g) { return launch(shared_index, dim3(1), dim3(1), 0, r->st, r->out, g ? 63 : 90); }},
    {"local_index", [](Rig *r, int g) { return launch(local_index, dim3(1), dim3(32), 0, r->st, r->out, g ? 7 : 8); }},
    {"threads_1025", [](Rig *r, int g) {
         return launch(copy, dim3(1), dim3(g ? N : 1025), 0, r->st, r->out, (const float *)r->x);
     }},
    {"index_32_bits", index_32_bits},
    {"page_table", page_table},
    {"host_pointer", host_pointer},
    {"host_dereference", host_dereference},
    {"after_free", after_free},
    {"copy_too_long", [](Rig *r, int g) {
         return cudaMemcpyAsync(r->out, r->host, sizeof r->host + (g ? 0 : 4), cudaMemcpyHostToDevice, r->st);
     }},
    {"no_sync", no_sync},
    {"no_event", no_event},
    {"null_stream", null_stream},
    {"staging_reused", staging_reused},
    {"buffer_gone", buffer_gone},
    {"capture_sync", capture_sync},
    {"capture_malloc", capture_malloc},
    {"host_function", host_function},
};

/* Runs it; result (2N) is what it left in out. */
static int run(const Canary *c, int good, float *result) {
    Rig *r = (Rig *)calloc(1, sizeof *r);
    for (int i = 0; i < 2 * N; i++)
        r->host[i] = (float)(i % 17);
    if (cudaMalloc((void **)&r->x, sizeof r->host) || cudaMalloc((void **)&r->out, sizeof r->host) ||
        cudaMallocHost((void **)&r->pinned, sizeof r->host) || cudaStreamCreateWithFlags(&r->st, cudaStreamNonBlocking) ||
        cudaStreamCreateWithFlags(&r->other, cudaStreamNonBlocking) ||
        cudaEventCreateWithFlags(&r->event, cudaEventDisableTiming) ||
        cudaMemcpy(r->x, r->host, sizeof r->host, cudaMemcpyHostToDevice) || cudaMemset(r->out, 0, sizeof r->host))
        return 3;
    memset(r->pinned, 0, sizeof r->host);
    cudaError_t e = c->run(r, good);
    if (!e)
        e = cudaDeviceSynchronize();
    if (!e)
        e = cudaGetLastError();
    if (e) {
        printf("%s: %s\n", c->name, cudaGetErrorName(e));
        return 2;
    }
    cudaMemcpy(result, r->out, sizeof r->host, cudaMemcpyDeviceToHost);
    free(r);
    return 0;
}

int main(int argc, char **argv) {
    static float want[2 * N], got[2 * N];
    const Canary *c = NULL;
    for (const Canary &each : canaries) {
        if (argc < 3)
            puts(each.name);
        else if (!strcmp(each.name, argv[1]))
            c = &each;
    }
    if (argc < 3)
        return 0;
    if (!c) {
        fprintf(stderr, "canary: no canary is called %s\n", argv[1]);
        return 0;                          /* counts as not caught */
    }
    int status = strcmp(argv[2], "alone") ? run(c, 1, want) : 0;
    if (status || !strcmp(argv[2], "twin"))
        return status;
    status = run(c, 0, got);
    if (!status && memcmp(want, got, sizeof want) && strcmp(argv[2], "alone")) {
        printf("%s: another result than the twin's\n", c->name);
        status = 1;
    }
    return status;
}
