/* event.cpp -- events: "so many works of that stream are done". */
#include "stream.h"
#include <chrono>
#include <memory>

enum { QUERY_WORKS = 16 };                              /* of one cudaEventQuery(): it does not wait for all */

static std::vector<std::unique_ptr<CUevent_st>> events;
static std::vector<std::unique_ptr<double>> times;      /* outlive their events: queued work writes them */

static CUevent_st *event_at(cudaEvent_t e) {
    for (auto &k : events)
        if (k.get() == e)
            return e;
    emu_fail("bad-event", "%p is not a live event", (void *)e);
}

static double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

EMU_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    events.emplace_back(new CUevent_st{});
    *e = events.back().get();
    (*e)->device = emu_device;
    (*e)->timing = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}

EMU_API cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }

EMU_API cudaError_t cudaEventDestroy(cudaEvent_t e) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    event_at(e);
    for (size_t i = 0; i < events.size(); i++)
        if (events[i].get() == e)
            events.erase(events.begin() + i);
    return cudaSuccess;
}

EMU_API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t st) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    CUstream_st *s = emu_stream(st);
    event_at(e);
    if (e->device != s->device)
        return emu_error(cudaErrorInvalidResourceHandle);
    e->capture_id = s->capture ? s->capture->id : 0;
    if (s->capture)
        return cudaSuccess;
    times.emplace_back(new double(0));
    double *time = e->time_ms = times.back().get();
    cudaError_t err = emu_enqueue(st, "event", [time] {
        *time = now_ms();
        return true;
    });
    e->stream = s;
    e->after = s->queued;
    return err;
}

EMU_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t st, unsigned) { return cudaEventRecord(e, st); }

EMU_API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    EMU_ENTER();
    CUstream_st *s;
    uint64_t after;
    {
        EmuLock lock(emu_engine);
        event_at(e);
        if (e->capture_id)
            return emu_error(cudaErrorCapturedEvent);
        s = e->stream;
        after = e->after;
    }
    if (s)
        emu_stream_wait(s, after);
    return cudaSuccess;
}

EMU_API cudaError_t cudaEventQuery(cudaEvent_t e) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    event_at(e);
    if (e->capture_id)
        return emu_error(cudaErrorCapturedEvent);
    if (!e->stream || e->stream->done >= e->after)
        return cudaSuccess;
    for (int works = 0; works < QUERY_WORKS && e->stream->done < e->after && emu_stream_advance(e->stream); works++)
        ;
    emu_window_close();
    return cudaErrorNotReady;
}

EMU_API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    event_at(a);
    event_at(b);
    if (!a->timing || !b->timing || !a->stream || !b->stream)
        return emu_error(cudaErrorInvalidResourceHandle);
    if (a->stream->done < a->after || b->stream->done < b->after)
        return emu_error(cudaErrorNotReady);
    *ms = (float)(*b->time_ms - *a->time_ms);
    return cudaSuccess;
}

EMU_API cudaError_t cudaStreamWaitEvent(cudaStream_t st, cudaEvent_t e, unsigned) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    CUstream_st *s = emu_stream(st);
    event_at(e);
    CUgraph_st *g = emu_capture_by_id(e->capture_id);
    if (g && !s->capture)
        s->capture = g;                    /* the stream joins the capture */
    if (s->capture && g == s->capture)
        return cudaSuccess;                /* works of a graph run in the order in which they were captured */
    if (s->capture) {
        emu_capture_break(s);
        return emu_error(cudaErrorStreamCaptureIsolation);
    }
    if (!e->stream)
        return cudaSuccess;
    return emu_enqueue(st, "wait for an event", emu_wait_op(e->stream, e->after));
}
