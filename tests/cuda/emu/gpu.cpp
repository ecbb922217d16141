/* gpu.cpp -- devices, their properties, versions, errors; and the errors a test asks for (emu_test.h). */
#include "emu.h"
#include "emu_test.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

thread_local int emu_device;
thread_local bool emu_in_host_func;
static thread_local cudaError_t last_error;
static size_t memory_limit[16];
static struct {
    long after;                            /* calls until then; negative: no fault is planned */
    cudaError_t error;
    bool fired;
} fault = {-1, cudaSuccess, false};

/* CUDA_VISIBLE_DEVICES as numbers; without it 0, 1, ... EMU_DEVICES - 1. */
static const std::vector<int> &devices() {
    static std::vector<int> list;
    static bool known;
    if (known)
        return list;
    known = true;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int count = emu_env("EMU_DEVICES", 1);
    for (int i = 0; !visible && i < count && i < 16; i++)
        list.push_back(i);
    for (const char *s = visible; s && *s;) {
        char *end;
        long d = strtol(s, &end, 10);
        if (end == s || d < 0 || d >= count)
            break;                         /* as CUDA: the rest is not seen */
        list.push_back((int)d);
        s = *end == ',' ? end + 1 : end;
    }
    return list;
}

int emu_device_count() { return (int)devices().size(); }
int emu_device_physical(int device) { return devices()[device]; }

size_t emu_device_memory(int device) {
    size_t set = memory_limit[device];
    return set ? set : (size_t)emu_env("EMU_MEMORY_MB", 16384) << 20;
}

/* ---- errors ------------------------------------------------------------------------------------------ */

cudaError_t emu_error(cudaError_t e) {
    if (e)
        last_error = e;
    return e;
}

cudaError_t emu_api(const char *name) {
    EmuLock lock(emu_engine);
    if (emu_in_host_func)
        return emu_error(cudaErrorNotPermitted);
    if (!emu_env("EMU_DRIVER", 1))
        return emu_error(cudaErrorInsufficientDriver);
    if (devices().empty())
        return emu_error(cudaErrorNoDevice);
    bool release = strstr(name, "Free") || strstr(name, "Destroy") || strstr(name, "Unregister");
    if (fault.after < 0 || release || fault.after-- > 0)
        return cudaSuccess;
    fault.fired = true;
    return emu_error(fault.error);
}

extern "C" void emu_test_fail_call(long after, cudaError_t error) {
    fault.after = after;
    fault.error = error;
    fault.fired = false;
}

extern "C" int emu_test_failed(void) { return fault.fired; }

extern "C" void emu_test_memory(int device, size_t bytes) { memory_limit[device] = bytes; }

EMU_API cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}

EMU_API cudaError_t cudaPeekAtLastError(void) { return last_error; }

#define ERRORS(X)                                                                                                      \
    X(cudaSuccess, "no error")                                                                                         \
    X(cudaErrorInvalidValue, "invalid argument")                                                                       \
    X(cudaErrorMemoryAllocation, "out of memory")                                                                      \
    X(cudaErrorInitializationError, "initialization error")                                                            \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                                                 \
    X(cudaErrorInsufficientDriver, "the driver is missing or older than the runtime")                                  \
    X(cudaErrorNoDevice, "no device")                                                                                  \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                                                \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                                       \
    X(cudaErrorIllegalState, "illegal state")                                                                          \
    X(cudaErrorNotReady, "not ready")                                                                                  \
    X(cudaErrorIllegalAddress, "an illegal memory access")                                                             \
    X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                                        \
    X(cudaErrorLaunchFailure, "unspecified launch failure")                                                            \
    X(cudaErrorNotPermitted, "operation not permitted")                                                                \
    X(cudaErrorNotSupported, "operation not supported")                                                                \
    X(cudaErrorStreamCaptureUnsupported, "not permitted when a stream is capturing")                                   \
    X(cudaErrorStreamCaptureInvalidated, "the capture was broken by an earlier error")                                 \
    X(cudaErrorStreamCaptureIsolation, "a dependency on work outside of the capture")                                  \
    X(cudaErrorStreamCaptureImplicit, "the null stream would depend on a capturing stream")                            \
    X(cudaErrorUnknown, "unknown error")

EMU_API const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
#define TEXT(value, text)                                                                                              \
    case value: return text;
        ERRORS(TEXT)
    default: return "an error the emulator has no text for";
    }
}

EMU_API const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
#define NAME(value, text)                                                                                              \
    case value: return #value;
        ERRORS(NAME)
    default: return "unrecognized error code";
    }
}

/* ---- devices ------------------------------------------------------------------------------------------ */

EMU_API cudaError_t cudaGetDeviceCount(int *n) {
    *n = 0;
    EMU_ENTER();
    *n = emu_device_count();
    return cudaSuccess;
}

EMU_API cudaError_t cudaSetDevice(int d) {
    EMU_ENTER();
    if (d < 0 || d >= emu_device_count())
        return emu_error(cudaErrorInvalidDevice);
    emu_device = d;
    return cudaSuccess;
}

EMU_API cudaError_t cudaInitDevice(int d, unsigned, unsigned) { return cudaSetDevice(d); }

EMU_API cudaError_t cudaGetDevice(int *d) {
    EMU_ENTER();
    *d = emu_device;
    return cudaSuccess;
}

EMU_API cudaError_t cudaSetDeviceFlags(unsigned) {
    EMU_ENTER();
    return cudaSuccess;
}

EMU_API cudaError_t cudaDeviceReset(void) {
    EMU_ENTER();
    emu_drain_device(emu_device);
    return cudaSuccess;
}

static int capability() { return emu_env("EMU_SM", 80); }

EMU_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    EMU_ENTER();
    if (device < 0 || device >= emu_device_count())
        return emu_error(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated device (no GPU)");
    p->major = capability() / 10;
    p->minor = capability() % 10;
    p->multiProcessorCount = 4;
    p->totalGlobalMem = emu_device_memory(device);
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = (capability() == 80 ? 163 : 227) << 10;
    p->sharedMemPerMultiprocessor = (capability() == 80 ? 164 : 228) << 10;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->l2CacheSize = 40 << 20;
    p->memoryBusWidth = 5120;
    p->unifiedAddressing = p->concurrentKernels = p->canMapHostMemory = 1;
    p->asyncEngineCount = 2;
    p->pciBusID = emu_device_physical(device) + 1;
    return cudaSuccess;
}

EMU_API cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaError_t e = cudaGetDeviceProperties(&p, device))
        return e;
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 0; break;
    default: emu_fail("unsupported", "cudaDeviceGetAttribute: attribute %d", (int)attribute);
    }
    return cudaSuccess;
}

EMU_API cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int device) {
    EMU_ENTER();
    if (device < 0 || device >= emu_device_count())
        return emu_error(cudaErrorInvalidDevice);
    snprintf(id, bytes, "0000:%02x:00.0", emu_device_physical(device) + 1);
    return cudaSuccess;
}

EMU_API cudaError_t cudaDeviceCanAccessPeer(int *yes, int a, int b) {
    EMU_ENTER();
    *yes = a != b;
    return cudaSuccess;
}

EMU_API cudaError_t cudaDriverGetVersion(int *v) {
    *v = emu_env("EMU_DRIVER", 1) ? CUDART_VERSION : 0;
    return cudaSuccess;
}

EMU_API cudaError_t cudaRuntimeGetVersion(int *v) {
    *v = CUDART_VERSION;
    return cudaSuccess;
}
