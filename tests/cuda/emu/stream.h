/* stream.h -- streams, events and captures, as stream.cpp, event.cpp and graph.cpp see them. */
#pragma once
#include "emu.h"
#include <deque>
#include <string>
#include <thread>
#include <vector>

struct EmuWork {
    std::string name;
    EmuOp op;
};

/* A capture in progress, and afterwards the graph. */
struct CUgraph_st {
    std::vector<EmuWork> works;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    CUstream_st *origin;
    uint64_t id;
    bool broken;
};

struct CUstream_st {
    int id, device;
    bool blocking;                         /* ordered with the device's null stream */
    bool live, advancing;
    std::deque<EmuWork> queue;
    uint64_t queued, done;                 /* how many works ever */
    CUgraph_st *capture;                   /* NULL: not captured */
};

struct CUevent_st {
    int device;
    bool timing;
    CUstream_st *stream;                   /* where it was recorded last, NULL: never */
    uint64_t after;                        /* done when that stream has done so many works */
    uint64_t capture_id;                   /* recorded while capturing; 0: not */
    double *time_ms;                       /* written when it is done */
};

/* The stream behind a handle; ends the process if there is none. */
CUstream_st *emu_stream(cudaStream_t st);
/* Puts work into a queue, past capture and null stream. */
void emu_stream_push(CUstream_st *s, const char *name, EmuOp op);
/* Runs what stands first; false: nothing could be run. */
bool emu_stream_advance(CUstream_st *s);
/* Runs s until `works` works are done. Not to be called under the lock. */
void emu_stream_wait(CUstream_st *s, uint64_t works);
/* Work for s: nothing after it runs before t has done so many works. */
EmuOp emu_wait_op(CUstream_st *t, uint64_t works);
/* What the laziness setting wants done after a push. */
void emu_stream_progress(CUstream_st *s);
void emu_capture_break(CUstream_st *s);
bool emu_capture_any_blocking();
/* NULL: that capture has ended. */
CUgraph_st *emu_capture_by_id(uint64_t id);
