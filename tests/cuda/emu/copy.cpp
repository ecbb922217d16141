/* copy.cpp -- copies and fills: work like any other, checked when queued and again when run.
 *
 * A copy from or to host memory runs as late as work does, pinned or not: the caller keeps its buffer until it has
 * synchronised. (CUDA may stage pageable memory earlier; a program that counts on it is slow, and refused here.) */
#include "emu.h"
#include <cstring>

struct Copy {
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, width, height;
    cudaMemcpyKind kind;
};

static bool on_device(const void *p) {
    const EmuAlloc *a = emu_alloc_at(p);
    return a && a->live && !a->pinned;
}

static size_t span(size_t pitch, const Copy &c) { return pitch * (c.height - 1) + c.width; }

static void host_side(const char *what, const void *p) {
    if (on_device(p))
        emu_fail("bad-copy", "the %s %p is device memory, the kind of copy says host", what, p);
}

/* A peer's memory may be copied: device -1 stands for any. */
static void copy_check(const Copy &c) {
    if (c.kind == cudaMemcpyHostToDevice || c.kind == cudaMemcpyDeviceToDevice)
        emu_check_dev("copy to", c.to, span(c.to_pitch, c), -1);
    else
        host_side("destination", c.to);
    if (c.kind == cudaMemcpyDeviceToHost || c.kind == cudaMemcpyDeviceToDevice)
        emu_check_dev("copy from", c.from, span(c.from_pitch, c), -1);
    else
        host_side("source", c.from);
}

static cudaError_t copy_queue(Copy c, cudaStream_t st) {
    EmuLock lock(emu_engine);
    if (!c.width || !c.height)
        return cudaSuccess;
    if (!c.to || !c.from || c.to_pitch < c.width || c.from_pitch < c.width)
        return emu_error(cudaErrorInvalidValue);
    if (c.kind == cudaMemcpyDefault)
        c.kind = on_device(c.to) ? (on_device(c.from) ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                                 : (on_device(c.from) ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
    copy_check(c);
    return emu_enqueue(st, "copy", [c] {
        copy_check(c);
        for (size_t row = 0; row < c.height; row++)
            memmove(c.to + row * c.to_pitch, c.from + row * c.from_pitch, c.width);
        return true;
    });
}

EMU_API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t st) {
    EMU_ENTER();
    return copy_queue(Copy{(char *)to, (const char *)from, bytes, bytes, bytes, 1, kind}, st);
}

EMU_API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    EMU_ENTER();
    if (cudaError_t e = emu_capture_forbids())
        return emu_error(e);
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return e ? e : cudaStreamSynchronize(nullptr);
}

EMU_API cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                      size_t height, cudaMemcpyKind kind, cudaStream_t st) {
    EMU_ENTER();
    return copy_queue(Copy{(char *)to, (const char *)from, to_pitch, from_pitch, width, height, kind}, st);
}

EMU_API cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                                 cudaMemcpyKind kind) {
    EMU_ENTER();
    if (cudaError_t e = emu_capture_forbids())
        return emu_error(e);
    cudaError_t e = cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, nullptr);
    return e ? e : cudaStreamSynchronize(nullptr);
}

EMU_API cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t bytes,
                                        cudaStream_t st) {
    EMU_ENTER();
    emu_check_dev("peer copy to", to, bytes, to_device);
    emu_check_dev("peer copy from", from, bytes, from_device);
    return copy_queue(Copy{(char *)to, (const char *)from, bytes, bytes, bytes, 1, cudaMemcpyDeviceToDevice}, st);
}

EMU_API cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t st) {
    EMU_ENTER();
    if (!bytes)
        return cudaSuccess;
    emu_check_dev("memset", to, bytes, -1);
    return emu_enqueue(st, "memset", [=] {
        emu_check_dev("memset", to, bytes, -1);
        memset(to, value, bytes);
        return true;
    });
}

EMU_API cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    EMU_ENTER();
    if (cudaError_t e = emu_capture_forbids())
        return emu_error(e);
    cudaError_t e = cudaMemsetAsync(to, value, bytes, nullptr);
    return e ? e : cudaStreamSynchronize(nullptr);
}
