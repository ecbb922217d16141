/* fibre.cpp -- how a grid runs: block after block, a block's threads as fibres on one host thread.
 *
 * A fibre has its own stack and runs until it waits: at a block barrier, in a warp collective, or because it is done.
 * Then the next ready one in the block's order goes on; when none is ready and not all are done, the block is
 * deadlocked, and the report says who stands where. Nothing is preempted, so between two waits a thread runs alone:
 * a missing barrier shows as a wrong value in one order or another, and as a race in race.cpp in all of them.
 *
 *   READY -> AT_BARRIER [emu_bar]    -> READY [barrier_release], when every thread came to the same one
 *   READY -> AT_WARP    [emu_warp]   -> READY when every lane of the mask came to the same one
 *   READY -> DONE       [fibre_main]
 *
 * Rule 5 of engine/cuda/device.cuh is enforced: a thread that has left does not count at a barrier.
 *
 * Switching is six pushes and a change of the stack pointer (x86-64). ASan is told of each switch. */
#include "fibre.h"
#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <sys/mman.h>

static const size_t STACK_BYTES = 128 << 10, ARGS_BYTES = 4096;

extern "C" {
void __sanitizer_start_switch_fiber(void **, const void *, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) __attribute__((weak));
void emu_fibre_swap(void **save_sp, void *to_sp);
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
}
asm(R"(.text
.globl emu_fibre_swap
emu_fibre_swap:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

EmuBlock emu_block;
__thread EmuFibre *emu_me;                  /* an operating-system thread's: others may be host code meanwhile */
EmuFibre *emu_fibres;

static struct {
    void *sp, *fake_stack;
    const void *stack_low;
    size_t stack_bytes;
} host;                                    /* the thread that runs the grid, while a fibre has its place */
static enum { FORWARD, REVERSE, RANDOM } schedule;
static std::mt19937 dice;

/* ---- switching ------------------------------------------------------------------------------------------ */

static void landed(void *fake_stack) {
    if (!__sanitizer_finish_switch_fiber)
        return;
    const void *low;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &low, &bytes);
    if (!host.stack_low) {                 /* the first switch of a grid comes from the host */
        host.stack_low = low;
        host.stack_bytes = bytes;
    }
}

static void switch_to(EmuFibre *f, void **save_sp, void **save_fake) {
    emu_me = f;
    threadIdx = f->tid;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(save_fake, f->stack, STACK_BYTES);
    emu_fibre_swap(save_sp, f->sp);
}

static void switch_to_host(EmuFibre *me) {
    emu_me = nullptr;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&me->fake_stack, host.stack_low, host.stack_bytes);
    emu_fibre_swap(&me->sp, host.sp);
}

void emu_yield(EmuFibre *me) {
    int place = emu_block.place[me->id];
    for (int i = 0; i < emu_block.threads; i++) {
        place = place + 1 == emu_block.threads ? 0 : place + 1;
        EmuFibre *f = &emu_fibres[emu_block.order[place]];
        if (f->state != EMU_READY)
            continue;
        if (f != me) {
            switch_to(f, &me->sp, &me->fake_stack);
            landed(me->fake_stack);
        }
        return;
    }
    switch_to_host(me);                    /* nobody is ready */
    landed(me->fake_stack);
}

/* ---- block barriers ------------------------------------------------------------------------------------------ */

static void order_shuffle() {
    int n = emu_block.threads;
    if (schedule == RANDOM)
        std::shuffle(emu_block.order, emu_block.order + n, dice);
    for (int i = 0; i < n; i++)
        emu_block.place[emu_block.order[i]] = i;
}

static void barrier_same(const EmuFibre *a, const EmuFibre *f) {
    if (f->line != a->line || strcmp(f->file, a->file) || f->kind != a->kind)
        emu_fail("divergent-barrier", "thread %d is at the barrier %s:%d, thread %d at %s:%d", a->id, a->file, a->line,
                 f->id, f->file, f->line);
}

/* Lets everybody go if everybody is there. */
static void barrier_release() {
    if (!emu_block.waiting || emu_block.waiting + emu_block.done < emu_block.threads)
        return;
    const EmuFibre *first = nullptr, *gone = nullptr;
    int count = 0, any = 0, all = 1;
    for (EmuFibre *f = emu_fibres; f < emu_fibres + emu_block.threads; f++) {
        if (f->state == EMU_DONE)
            gone = f;
        if (f->state != EMU_AT_BARRIER)
            continue;
        if (!first)
            first = f;
        barrier_same(first, f);
        count += f->predicate;
        any |= f->predicate;
        all &= f->predicate;
    }
    if (gone)
        emu_fail("divergent-barrier", "thread %d has exited, thread %d waits at the barrier %s:%d", gone->id, first->id,
                 first->file, first->line);
    for (EmuFibre *f = emu_fibres; f < emu_fibres + emu_block.threads; f++) {
        if (f->out)
            *f->out = f->kind == EMU_BAR_OR ? any : f->kind == EMU_BAR_AND ? all : count;
        f->state = EMU_READY;
    }
    emu_block.waiting = 0;
    emu_block.barrier++;
    order_shuffle();
}

extern "C" void emu_bar(int kind, int predicate, int *out, const char *file, int line) {
    EmuFibre *me = emu_me;
    if (!me)
        emu_fail("misuse", "%s:%d: a block barrier outside of a kernel", file, line);
    me->kind = kind;
    me->predicate = predicate;
    me->out = out;
    me->file = file;
    me->line = line;
    me->state = EMU_AT_BARRIER;
    emu_block.waiting++;
    barrier_release();
    emu_yield(me);                         /* the last to come is not the first to go */
}

/* ---- a grid ------------------------------------------------------------------------------------------ */

static void fibre_main() {
    landed(nullptr);
    for (;;) {                             /* once a block; the stack is used again */
        EmuFibre *me = emu_me;
        const EmuGrid *g = emu_block.grid;
        alignas(16) char args[ARGS_BYTES];
        memcpy(args, g->args.data(), g->args.size());
        g->run(g->kernel, args);
        emu_cp_async_exit(me);
        me->state = EMU_DONE;
        emu_block.done++;
        emu_warp_exit(me);
        barrier_release();
        emu_yield(me);
    }
}

/* Fresh stacks: below each lies a page that nobody may touch. Each begins at another offset, or all fibres would
 * share the same lines of the cache. */
static void fibres_create() {
    const size_t each = STACK_BYTES + 4096;
    char *all = (char *)mmap(nullptr, each * EMU_THREADS_MAX, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        emu_fail("host-memory", "no stacks for %d threads", EMU_THREADS_MAX);
    emu_fibres = new EmuFibre[EMU_THREADS_MAX]();
    for (int i = 0; i < EMU_THREADS_MAX; i++) {
        EmuFibre *f = &emu_fibres[i];
        mprotect(all + i * each, 4096, PROT_NONE);
        f->stack = all + i * each + 4096;
        f->id = i;
        f->warp = i / 32;
        f->lane = i % 32;
        void **sp = (void **)(f->stack + STACK_BYTES - (i * 5 % 63) * 64);
        *--sp = nullptr;                   /* fibre_main returns nowhere */
        *--sp = (void *)fibre_main;
        for (int k = 0; k < 6; k++)
            *--sp = nullptr;               /* the registers that emu_fibre_swap takes off */
        f->sp = sp;
    }
    schedule = emu_env_is("EMU_SCHED", "reverse") ? REVERSE : emu_env_is("EMU_SCHED", "random") ? RANDOM : FORWARD;
    dice.seed((unsigned)emu_env("EMU_SEED", 1));
}

static void deadlock_report() {
    std::map<std::string, std::pair<int, int>> where;     /* place -> how many threads, the first of them */
    for (int i = 0; i < emu_block.threads; i++) {
        const EmuFibre *f = &emu_fibres[i];
        std::string at = "an end of the kernel";
        if (f->state != EMU_DONE)
            at = (f->state == EMU_AT_BARRIER ? "the barrier " : "the warp collective ") + std::string(f->file) + ":" +
                 std::to_string(f->line);
        auto &w = where[at];
        if (!w.first++)
            w.second = i;
        if (f->state != EMU_DONE)
            emu_me = &emu_fibres[i];       /* for the report: one that waits */
    }
    std::string text;
    for (auto &w : where)
        text += "\n==EMU==   " + std::to_string(w.second.first) + " threads (first: " + std::to_string(w.second.second) +
                ") at " + w.first;
    emu_fail("deadlock", "no thread of block %u can go on%s", emu_block.index, text.c_str());
}

static void block_run(const EmuGrid *g, uint32_t index) {
    int n = emu_block.threads;
    emu_block.index = index;
    blockIdx = make_uint3(index % g->grid.x, index / g->grid.x % g->grid.y, index / (g->grid.x * g->grid.y));
    emu_block.done = emu_block.waiting = 0;
    emu_block.barrier0 = ++emu_block.barrier;
    emu_shared_begin(g->shared_bytes, g->shared_max);
    emu_warp_begin();
    for (int i = 0; i < n; i++) {
        emu_block.order[i] = schedule == REVERSE ? n - 1 - i : i;
        emu_fibres[i].state = EMU_READY;
        emu_fibres[i].warp_sync++;
        emu_fibres[i].copy_group = 0;
    }
    order_shuffle();
    switch_to(&emu_fibres[emu_block.order[0]], &host.sp, &host.fake_stack);
    landed(host.fake_stack);
    if (emu_block.done != n)
        deadlock_report();
}

void emu_grid_run(const EmuGrid *g) {
    if (!emu_fibres)
        fibres_create();
    host.stack_low = nullptr;              /* another host thread may have run the last one */
    emu_block.grid = g;
    emu_block.launch++;
    emu_block.threads = (int)(g->block.x * g->block.y * g->block.z);
    blockDim = g->block;
    gridDim = g->grid;
    for (int i = 0; i < emu_block.threads; i++)
        emu_fibres[i].tid = make_uint3(i % g->block.x, i / g->block.x % g->block.y, i / (g->block.x * g->block.y));
    uint64_t blocks = (uint64_t)g->grid.x * g->grid.y * g->grid.z;
    for (uint64_t i = 0; i < blocks; i++)
        block_run(g, (uint32_t)(schedule == REVERSE ? blocks - 1 - i : i));
    emu_me = nullptr;
}

EmuPos emu_pos() {
    if (!emu_me)
        return EmuPos{};
    return EmuPos{emu_block.launch, emu_block.index, (uint32_t)emu_me->id, emu_block.barrier, emu_block.barrier0,
                  emu_me->warp_sync, true};
}

void emu_stack(uintptr_t *low, uintptr_t *high) {
    *low = (uintptr_t)emu_me->stack;
    *high = *low + STACK_BYTES;
}
