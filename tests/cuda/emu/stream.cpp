/* stream.cpp -- streams: queues of work that runs as late as the rules allow.
 *
 * A call only queues. Work runs when somebody has to wait for it: in cudaStreamSynchronize() and its like, and then only
 * that stream's, up to the place waited for, and what it waits for on other streams. So host code that forgets to
 * synchronise reads old bytes every time, and a missing event between a compute and a copy stream is a wrong value and not
 * a matter of luck. EMU_STREAMS=eager runs work at once; random (the default with EMU_SCHED=random) runs a random
 * stream's work now and then, by EMU_SEED.
 *
 * Work may answer "not yet": a collective whose other ranks have not come. Whoever waits asks again, without the lock
 * between, so that other threads go on. cudaStreamQuery() runs one work, cudaEventQuery() some, and both say NotReady: a
 * loop around them ends.
 *
 * Null stream: one a device; its work waits for that of all blocking streams queued before, and they for its. Streams made
 * with cudaStreamNonBlocking have nothing to do with it. */
#include "stream.h"
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <unistd.h>

static std::vector<std::unique_ptr<CUstream_st>> streams;   /* all ever made; a dead one still finishes its work */
static std::map<int, CUstream_st *> null_streams;           /* by device */
static std::mt19937 dice(emu_env("EMU_SEED", 1));
const char *emu_op_name;

enum Laziness { LAZY, EAGER, RANDOM };

static Laziness laziness() {
    static Laziness l = emu_env_is("EMU_STREAMS", "eager") ? EAGER
                        : emu_env_is("EMU_STREAMS", "lazy") ? LAZY
                        : emu_env_is("EMU_STREAMS", "random") || emu_env_is("EMU_SCHED", "random") ? RANDOM : LAZY;
    return l;
}

static CUstream_st *stream_new(bool blocking) {
    streams.emplace_back(new CUstream_st{});
    CUstream_st *s = streams.back().get();
    s->id = (int)streams.size();
    s->device = emu_device;
    s->blocking = blocking;
    s->live = true;
    return s;
}

static bool is_null(const CUstream_st *s) {
    auto it = null_streams.find(s->device);
    return it != null_streams.end() && it->second == s;
}

CUstream_st *emu_stream(cudaStream_t st) {
    if (st == cudaStreamPerThread)
        emu_fail("unsupported", "cudaStreamPerThread");
    if (!st || st == cudaStreamLegacy) {
        CUstream_st *&s = null_streams[emu_device];
        if (!s)
            s = stream_new(false);
        return s;
    }
    for (auto &s : streams)
        if (s.get() == st && s->live)
            return st;
    emu_fail("bad-stream", "%p is not a live stream", (void *)st);
}

/* ---- running ------------------------------------------------------------------------------------------ */

bool emu_stream_advance(CUstream_st *s) {
    if (s->queue.empty())
        return false;
    if (s->advancing)
        emu_fail("stream-deadlock", "stream %d waits for itself, through others", s->id);
    const int device = emu_device;
    const char *name = emu_op_name;
    s->advancing = true;
    emu_device = s->device;
    emu_op_name = s->queue.front().name.c_str();
    emu_window_open();
    bool done = s->queue.front().op();
    emu_op_name = name;
    emu_device = device;
    s->advancing = false;
    if (done) {
        s->queue.pop_front();
        s->done++;
    }
    return done;
}

void emu_stream_wait(CUstream_st *s, uint64_t works) {
    for (int idle = 0;;) {
        {
            EmuLock lock(emu_engine);
            while (s->done < works && emu_stream_advance(s))
                idle = 0;
            if (s->done >= works)
                break;
        }
        usleep(idle++ < 100 ? 20 : 200);
    }
    emu_window_close();
}

EmuOp emu_wait_op(CUstream_st *t, uint64_t works) {
    return [t, works] {
        while (t->done < works && emu_stream_advance(t))
            ;
        return t->done >= works;
    };
}

void emu_drain_device(int device) {
    std::vector<std::pair<CUstream_st *, uint64_t>> all;
    {
        EmuLock lock(emu_engine);
        for (auto &s : streams)
            if (s->device == device)
                all.push_back({s.get(), s->queued});
    }
    for (auto &s : all)
        emu_stream_wait(s.first, s.second);
}

void emu_stream_progress(CUstream_st *s) {
    if (laziness() == EAGER)
        while (emu_stream_advance(s))
            ;
    if (laziness() == RANDOM && dice() % 2) {
        CUstream_st *r = streams[dice() % streams.size()].get();
        for (unsigned n = dice() % 4; n && emu_stream_advance(r); n--)
            ;
    }
    emu_window_close();
}

/* ---- queueing ------------------------------------------------------------------------------------------ */

void emu_stream_push(CUstream_st *s, const char *name, EmuOp op) {
    s->queue.push_back(EmuWork{name, std::move(op)});
    s->queued++;
}

static void null_order(CUstream_st *s) {
    if (is_null(s)) {
        for (auto &o : streams)
            if (o->blocking && o->device == s->device && o->done < o->queued)
                emu_stream_push(s, "wait for a blocking stream", emu_wait_op(o.get(), o->queued));
    } else if (s->blocking) {
        auto it = null_streams.find(s->device);
        if (it != null_streams.end() && it->second->done < it->second->queued)
            emu_stream_push(s, "wait for the null stream", emu_wait_op(it->second, it->second->queued));
    }
}

cudaError_t emu_enqueue(cudaStream_t st, const char *name, EmuOp op) {
    EmuLock lock(emu_engine);
    CUstream_st *s = emu_stream(st);
    cudaError_t e = cudaSuccess;
    if (emu_capture_take(s, name, op, &e))
        return emu_error(e);
    if (is_null(s) && emu_capture_any_blocking())
        return emu_error(cudaErrorStreamCaptureImplicit);
    null_order(s);
    emu_stream_push(s, name, std::move(op));
    emu_stream_progress(s);
    return cudaSuccess;
}

/* ---- API ----------------------------------------------------------------------------------------------------------- */

EMU_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *st, unsigned flags, int) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    if (flags != cudaStreamDefault && flags != cudaStreamNonBlocking)
        return emu_error(cudaErrorInvalidValue);
    *st = stream_new(flags != cudaStreamNonBlocking);
    return cudaSuccess;
}

EMU_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *st, unsigned flags) {
    return cudaStreamCreateWithPriority(st, flags, 0);
}

EMU_API cudaError_t cudaStreamCreate(cudaStream_t *st) { return cudaStreamCreateWithPriority(st, 0, 0); }

EMU_API cudaError_t cudaStreamDestroy(cudaStream_t st) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    emu_stream(st)->live = false;          /* its work still runs, when somebody waits for it */
    return cudaSuccess;
}

EMU_API cudaError_t cudaStreamSynchronize(cudaStream_t st) {
    EMU_ENTER();
    CUstream_st *s;
    uint64_t works;
    {
        EmuLock lock(emu_engine);
        s = emu_stream(st);
        if (s->capture) {
            emu_capture_break(s);
            return emu_error(cudaErrorStreamCaptureUnsupported);
        }
        if (cudaError_t e = emu_capture_forbids())
            return emu_error(e);
        null_order(s);
        works = s->queued;
    }
    emu_stream_wait(s, works);
    return cudaSuccess;
}

EMU_API cudaError_t cudaStreamQuery(cudaStream_t st) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    CUstream_st *s = emu_stream(st);
    if (s->capture) {
        emu_capture_break(s);
        return emu_error(cudaErrorStreamCaptureUnsupported);
    }
    if (s->queue.empty())
        return cudaSuccess;
    emu_stream_advance(s);
    emu_window_close();
    return cudaErrorNotReady;
}

EMU_API cudaError_t cudaStreamGetPriority(cudaStream_t st, int *priority) {
    EMU_ENTER();
    EmuLock lock(emu_engine);
    emu_stream(st);
    *priority = 0;
    return cudaSuccess;
}

EMU_API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    EMU_ENTER();
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

EMU_API cudaError_t cudaDeviceSynchronize(void) {
    EMU_ENTER();
    if (cudaError_t e = emu_capture_forbids())
        return emu_error(e);
    emu_drain_device(emu_device);
    return cudaSuccess;
}

EMU_API cudaError_t cudaLaunchHostFunc(cudaStream_t st, cudaHostFn_t fn, void *data) {
    EMU_ENTER();
    return emu_enqueue(st, "host function", [fn, data] {
        emu_window_close();
        emu_in_host_func = true;           /* it may not call CUDA */
        fn(data);
        emu_in_host_func = false;
        emu_window_open();
        return true;
    });
}

int emu_stream_device(cudaStream_t st) {
    EmuLock lock(emu_engine);
    return emu_stream(st)->device;
}
