/* launch.cpp -- launches: their limits, whose code runs, occupancy. */
#include "fibre.h"
#include "launch.h"
#include <cstdio>
#include <map>

static std::map<const void *, int> dynamic_max;            /* cudaFuncSetAttribute() */
static int ptx_launches;

__attribute__((destructor)) static void say_ptx() {
    if (ptx_launches)
        fprintf(stderr, "==EMU== %d launches ran PTX\n", ptx_launches);
}

static int opt_in_max() {
    int v = 0;
    cudaDeviceGetAttribute(&v, cudaDevAttrMaxSharedMemoryPerBlockOptin, emu_device);
    return v;
}

static int shared_max(const void *kernel) {
    auto it = dynamic_max.find(kernel);
    return it == dynamic_max.end() ? 48 << 10 : it->second;
}

EMU_API cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
        return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        emu_fail("unsupported", "cudaFuncSetAttribute: attribute %d", (int)attribute);
    if (value < 0 || value > opt_in_max())
        return emu_error(cudaErrorInvalidValue);
    dynamic_max[kernel] = value;
    return cudaSuccess;
}

/* By threads and shared memory alone: the emulator does not know registers (tests/cuda/gates.sh does). */
EMU_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads, size_t dynamic) {
    EMU_ENTER();
    if (threads < 1 || threads > EMU_THREADS_MAX)
        return emu_error(cudaErrorInvalidValue);
    cudaDeviceProp p;
    if (cudaError_t e = cudaGetDeviceProperties(&p, emu_device))
        return e;
    int by_threads = p.maxThreadsPerMultiProcessor / ((threads + 31) / 32 * 32);
    size_t by_shared = dynamic ? p.sharedMemPerMultiprocessor / (dynamic + 1024) : 32;
    *blocks = (size_t)by_threads < by_shared ? by_threads : (int)by_shared;
    return cudaSuccess;
}

static cudaError_t limits(const cudaLaunchConfig_t *c, const void *kernel, size_t args_bytes) {
    dim3 g = c->gridDim, b = c->blockDim;
    uint64_t threads = (uint64_t)b.x * b.y * b.z;
    if (!g.x || g.x > 0x7fffffff || !g.y || g.y > 65535 || !g.z || g.z > 65535 || !threads ||
        threads > EMU_THREADS_MAX || b.z > 64)
        return cudaErrorInvalidConfiguration;
    if (c->dynamicSmemBytes > (size_t)shared_max(kernel) || args_bytes > 4096)
        return cudaErrorInvalidValue;
    CUstream_st *st = c->stream;
    for (unsigned i = 0; i < c->numAttrs; i++)
        if (c->attrs[i].id != cudaLaunchAttributePriority)
            emu_fail("unsupported", "a launch with attribute %d", (int)c->attrs[i].id);
    return emu_stream_device(st) == emu_device ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

/* nvcc's code for this kernel, NULL if PTX is not wanted; found by its mangled name. */
static const PtxKernel *ptx_of(const void *kernel, const char **name) {
    static std::map<const void *, std::pair<const PtxKernel *, std::string>> found;
    if (!emu_ptx_on())
        return nullptr;
    auto it = found.find(kernel);
    if (it == found.end()) {
        std::string symbol = emu_kernel_symbol(kernel);
        const PtxKernel *k = emu_ptx_find(symbol.c_str());
        if (!k)
            emu_fail("ptx", "no file of EMU_PTX has the kernel %s", symbol.c_str());
        it = found.emplace(kernel, std::make_pair(k, symbol)).first;
    }
    *name = it->second.second.c_str();
    return it->second.first;
}

cudaError_t emu_launch(const cudaLaunchConfig_t *c, const void *kernel, void (*run)(const void *, void *), const void *args,
                       size_t args_bytes, const int *offset, const int *bytes, int count) {
    if (cudaError_t e = emu_api("cudaLaunchKernelExC"))
        return e;
    EmuLock lock(emu_engine);
    if (cudaError_t e = limits(c, kernel, args_bytes))
        return emu_error(e);
    EmuGrid g = {};
    g.kernel = kernel;
    g.grid = c->gridDim;
    g.block = c->blockDim;
    g.shared_bytes = c->dynamicSmemBytes;
    g.shared_max = c->dynamicSmemBytes > 48 << 10 ? opt_in_max() : 48 << 10;
    g.run = run;
    if (const PtxKernel *k = ptx_of(kernel, &g.name)) {
        g.kernel = k;
        g.run = emu_ptx_run;
        g.args = emu_ptx_args(k, (const char *)args, offset, bytes, count, c->blockDim);
        ptx_launches++;
    } else {
        g.args.assign((const char *)args, args_bytes);
    }
    return emu_enqueue(c->stream, "kernel", [g] {
        emu_grid_run(&g);
        return true;
    });
}

EMU_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *, void **) {
    emu_fail("unsupported", "cudaLaunchKernelExC: launch() of engine/cuda/device.cuh is the way");
}
