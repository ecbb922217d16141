/* device.c -- which GPU a rank computes on, and what is said when there is none.
 *
 * Everything a machine may lack has a sentence of its own here: a driver, one that is new enough, the device that was
 * named, a device that the kernels were compiled for. */
#include "engine/cuda/cuda.h"
#include <stdlib.h>
#include <string.h>

enum { SM_LEAST = 80, DEVICES_MAX = 64 };

static int major_of(int version) { return version / 1000; }
static int minor_of(int version) { return version % 1000 / 10; }

/* CUDA's error is the same for no driver and for one that is too old; their versions tell which. */
static status count_devices(int *count, error *err) {
    int driver = 0, runtime = 0;
    cudaError_t e = cudaGetDeviceCount(count);
    if (e == cudaSuccess && *count > 0) return ST_OK;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (e == cudaErrorInsufficientDriver && driver == 0)
        return error_set(err, ST_UNSUPPORTED, "device cuda: this machine has no NVIDIA driver (libcuda.so.1), expected one "
                         "for CUDA %d.%d or newer", major_of(runtime), minor_of(runtime));
    if (e == cudaErrorInsufficientDriver)
        return error_set(err, ST_UNSUPPORTED, "device cuda: the NVIDIA driver is for CUDA %d.%d, expected %d.%d or newer",
                         major_of(driver), minor_of(driver), major_of(runtime), minor_of(runtime));
    if (e == cudaSuccess || e == cudaErrorNoDevice)
        return error_set(err, ST_UNSUPPORTED, "device cuda: the NVIDIA driver sees no GPU on this machine");
    return error_set(err, ST_DEVICE, "device cuda: GPUs cannot be counted: %s", cudaGetErrorString(e));
}

/* Entry `rank` of "cuda:0,2", from the front again past the end; "cuda": of all there are. */
static status pick(const char *device, int rank, int count, int *out, error *err) {
    int list[DEVICES_MAX], entries = 0;
    const char *at = device + strlen("cuda");
    while (*at) {
        char *end;
        long index = at[1] >= '0' && at[1] <= '9' ? strtol(at + 1, &end, 10) : -1;
        if (*at != (entries ? ',' : ':') || index < 0 || index > INT32_MAX || entries == DEVICES_MAX)
            return error_set(err, ST_BAD_INPUT, "device '%.40s', expected cpu, cuda or cuda:0,1 (by index)", device);
        if (index >= count)
            return error_set(err, ST_UNSUPPORTED, "device '%.40s': there is no device %ld, this machine has %d (0 to %d)",
                             device, index, count, count - 1);
        list[entries++] = (int)index;
        at = end;
    }
    *out = entries ? list[rank % entries] : rank % count;
    return ST_OK;
}

status cuda_device_choose(const char *device, int rank, eng_context *c, error *err) {
    int count = 0, driver = 0;
    struct cudaDeviceProp p;
    TRY(count_devices(&count, err));
    TRY(pick(device, rank, count, &c->device, err));
    cudaError_t e = cudaSetDevice(c->device);
    if (e == cudaSuccess) e = cudaGetDeviceProperties(&p, c->device);
    if (e != cudaSuccess)
        return error_set(err, ST_DEVICE, "device %d cannot be opened: %s", c->device, cudaGetErrorString(e));
    snprintf(c->place, sizeof c->place, "device %d (%.90s)", c->device, p.name);
    int sm = 10 * p.major + p.minor;
    if (sm < SM_LEAST)
        return error_set(err, ST_UNSUPPORTED, "%s is an sm_%d, expected sm_%d or newer", c->place, sm, SM_LEAST);
    /* Tensor cores of another generation add in another order. */
    snprintf(c->numerics, sizeof c->numerics, "cuda-2/sm_%d", sm);
    (void)cudaDriverGetVersion(&driver);
    log_write(LOG_INFO, NULL, "device.open", "%s sm=%d mib=%zu driver=%d.%d", c->place, sm, (size_t)p.totalGlobalMem >> 20,
              major_of(driver), minor_of(driver));
    return ST_OK;
}
