/* graph.cpp -- capture and replay.
 *
 *   cudaStreamBeginCapture: work put on the stream, and on streams that join it by an event, goes into the graph
 *   cudaStreamEndCapture:   the graph; NULL if something broke the capture
 *   cudaGraphLaunch:        copies of its works are queued, in the order in which they were captured
 *
 * While somebody captures in the global mode, no thread may call what synchronises or allocates; in the thread-local mode
 * only the capturing thread may not. */
#include "stream.h"
#include <algorithm>
#include <memory>

struct CUgraphExec_st {
    std::vector<EmuWork> works;
};

static std::vector<CUgraph_st *> captures;                 /* in progress */
static uint64_t captures_ever;
static std::vector<CUstream_st *> captured;                /* streams */

bool emu_capture_take(CUstream_st *s, const char *name, const EmuOp &op, cudaError_t *e) {
    if (!s->capture)
        return false;
    *e = s->capture->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    s->capture->works.push_back(EmuWork{name, op});
    if (std::find(captured.begin(), captured.end(), s) == captured.end())
        captured.push_back(s);
    return true;
}

void emu_capture_break(CUstream_st *s) { s->capture->broken = true; }

cudaError_t emu_capture_forbids() {
    EmuLock lock(emu_engine);
    for (CUgraph_st *g : captures) {
        bool mine = g->thread == std::this_thread::get_id();
        if (g->mode == cudaStreamCaptureModeRelaxed || (g->mode == cudaStreamCaptureModeThreadLocal && !mine))
            continue;
        g->broken = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    return cudaSuccess;
}

CUgraph_st *emu_capture_by_id(uint64_t id) {
    for (CUgraph_st *g : captures)
        if (g->id == id)
            return g;
    return nullptr;
}

bool emu_capture_any_blocking() {
    for (CUgraph_st *g : captures)
        if (g->origin->blocking)
            return g->broken = true;
    return false;
}

EMU_API cudaError_t cudaStreamBeginCapture(cudaStream_t st, cudaStreamCaptureMode mode) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    CUstream_st *s = emu_stream(st);
    if (!st || st == cudaStreamLegacy)
        return emu_error(cudaErrorStreamCaptureUnsupported);
    if (s->capture)
        return emu_error(cudaErrorIllegalState);
    CUgraph_st *g = new CUgraph_st{};
    g->id = ++captures_ever;
    g->mode = mode;
    g->thread = std::this_thread::get_id();
    g->origin = s;
    s->capture = g;
    captures.push_back(g);
    captured.push_back(s);
    return cudaSuccess;
}

EMU_API cudaError_t cudaStreamEndCapture(cudaStream_t st, cudaGraph_t *graph) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    CUstream_st *s = emu_stream(st);
    CUgraph_st *g = s->capture;
    *graph = nullptr;
    if (!g)
        return emu_error(cudaErrorIllegalState);
    if (g->origin != s)
        return emu_error(cudaErrorStreamCaptureUnmatched);
    if (g->mode != cudaStreamCaptureModeRelaxed && g->thread != std::this_thread::get_id())
        return emu_error(cudaErrorStreamCaptureWrongThread);
    for (size_t i = captured.size(); i--;)
        if (captured[i]->capture == g) {
            captured[i]->capture = nullptr;
            captured.erase(captured.begin() + i);
        }
    captures.erase(std::find(captures.begin(), captures.end(), g));
    if (g->broken) {
        delete g;
        return emu_error(cudaErrorStreamCaptureInvalidated);
    }
    *graph = g;
    return cudaSuccess;
}

EMU_API cudaError_t cudaStreamIsCapturing(cudaStream_t st, cudaStreamCaptureStatus *status) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    CUstream_st *s = emu_stream(st);
    *status = !s->capture          ? cudaStreamCaptureStatusNone
              : s->capture->broken ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

EMU_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *) {
    emu_fail("unsupported", "cudaThreadExchangeStreamCaptureMode");
}

EMU_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) {
    EMU_ENTER();
    if (!g)
        return emu_error(cudaErrorInvalidValue);
    *x = new CUgraphExec_st{g->works};
    return cudaSuccess;
}

EMU_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags) {
    return cudaGraphInstantiate(x, g, flags);
}

EMU_API cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
    EMU_ENTER();
    return cudaSuccess;
}

EMU_API cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t st) {
    EMU_ENTER();
    for (const EmuWork &w : x->works)
        if (cudaError_t e = emu_enqueue(st, w.name.c_str(), w.op))
            return e;
    return cudaSuccess;
}

EMU_API cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count) {
    EMU_ENTER();
    if (nodes)
        emu_fail("unsupported", "cudaGraphGetNodes: the nodes themselves");
    *count = g->works.size();
    return cudaSuccess;
}

EMU_API cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    EMU_ENTER();
    delete g;
    return cudaSuccess;
}

EMU_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) {
    EMU_ENTER();
    delete x;
    return cudaSuccess;
}
