/* fibre.h -- the running block and its threads, as fibre.cpp, warp.cpp, shared.cpp and report.cpp see them. */
#pragma once
#include "emu.h"
#include <deque>
#include <vector>

enum { EMU_THREADS_MAX = 1024, EMU_WARPS_MAX = EMU_THREADS_MAX / 32 };

enum EmuState : uint8_t { EMU_READY, EMU_AT_BARRIER, EMU_AT_WARP, EMU_DONE };

/* cp.async: a copy that lands when it is waited for. */
struct EmuAsyncCopy {
    char *to;
    const char *from;
    int bytes, from_bytes, group;
    const void *pc;
};

/* One thread of the block. */
struct EmuFibre {
    uint3 tid;
    int id, warp, lane;
    EmuState state;
    void *sp, *fake_stack;                 /* saved when it yields; the second is ASan's */
    char *stack;
    const char *file;                      /* where it waits */
    int line;
    int kind, predicate, *out;             /* at a block barrier */
    int op, arg, width;                    /* at a warp collective */
    unsigned long long value, result;
    void *registers;
    uint32_t warp_sync;
    std::vector<EmuAsyncCopy> copies;
    int copy_group;
};

/* The block that runs. */
struct EmuBlock {
    const EmuGrid *grid;
    uint32_t launch, index;                /* index: linear in the grid */
    int threads, done, waiting;            /* waiting: at the block barrier */
    uint32_t barrier, barrier0;
    int order[EMU_THREADS_MAX], place[EMU_THREADS_MAX];   /* who runs after whom, and the inverse */
};

extern EmuBlock emu_block;
extern __thread EmuFibre *emu_me;          /* the thread that runs; NULL: the host */
extern EmuFibre *emu_fibres;
extern "C" {
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
}

/* Lets another thread of the block run until this one is ready again. */
void emu_yield(EmuFibre *me);
void emu_warp_begin();                     /* of a block */
void emu_warp_exit(EmuFibre *me);          /* a thread left the kernel */
void emu_cp_async_exit(EmuFibre *me);
std::string emu_kernel_symbol(const void *kernel);   /* mangled name */
