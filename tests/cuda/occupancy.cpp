/* occupancy.cpp -- theoretical occupancy from NVIDIA's cuda_occupancy.h, which needs no GPU.
 *
 * Reads lines "kernel arch registers shared-bytes threads", prints the same with the share of a multiprocessor's threads
 * that can be resident, in percent. Dynamic shared memory is not known to ptxas: for kernels that use it the figure is
 * an upper bound. */
#include <cstdio>
#include <cstring>
#include <cuda_runtime_api.h>
#include <cuda_occupancy.h>

struct Device {
    int arch, major, shared_per_sm, shared_opt_in;         /* KiB; CUDA programming guide, compute capabilities */
};
static const Device devices[] = {{80, 8, 164, 163}, {90, 9, 228, 227}, {100, 10, 228, 227}};

static int percent(const Device &d, int registers, int shared, int threads) {
    cudaOccDeviceProp p;
    p.computeMajor = d.major;
    p.computeMinor = 0;
    p.maxThreadsPerBlock = 1024;
    p.maxThreadsPerMultiprocessor = 2048;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.warpSize = 32;
    p.sharedMemPerBlock = 48 << 10;
    p.sharedMemPerMultiprocessor = (size_t)d.shared_per_sm << 10;
    p.sharedMemPerBlockOptin = (size_t)d.shared_opt_in << 10;
    p.reservedSharedMemPerBlock = 1024;
    p.numSms = 100;
    cudaOccFuncAttributes a;
    memset((void *)&a, 0, sizeof a);
    a.maxThreadsPerBlock = 1024;
    a.numRegs = registers;
    a.sharedSizeBytes = (size_t)shared;
    a.partitionedGCConfig = PARTITIONED_GC_OFF;
    a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    a.maxDynamicSharedSizeBytes = (size_t)d.shared_opt_in << 10;
    a.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.cacheConfig = CACHE_PREFER_SHARED;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult r;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &state, threads, 0) != CUDA_OCC_SUCCESS)
        return -1;
    return r.activeBlocksPerMultiprocessor * threads * 100 / 2048;
}

int main() {
    char kernel[512];
    int arch, registers, shared, threads, bad = 0;
    while (scanf("%511s %d %d %d %d", kernel, &arch, &registers, &shared, &threads) == 5)
        for (const Device &d : devices)
            if (d.arch == arch) {
                int share = percent(d, registers, shared, threads);
                printf("%s %d %d %d %d %d\n", kernel, arch, registers, shared, threads, share);
                bad |= share <= 0;
            }
    return bad;
}
