/* warp.cpp -- what the lanes of a warp do together: shuffles, votes, reductions, tensor cores, asynchronous copies.
 *
 * A collective is a meeting of the lanes its mask names, at one place of the program, with one operation. Lanes of a
 * warp may stand in several meetings at once if their masks are disjoint. The last to come works out everybody's
 * result. Refused, because a GPU hangs or gives garbage: a caller outside of its mask, a mask with lanes that have left
 * or do not exist, lanes of a mask at different places, a shuffle from a lane outside of the mask. */
#include "fibre.h"
#include "warp_ops.h"
#include <algorithm>
#include <cstring>

/* Lanes that wait for each other. */
struct Meeting {
    unsigned mask, arrived;                /* arrived 0: free */
    int op, line;
    const char *file;
};

enum { MEETINGS_MAX = 8 };
static Meeting meetings[EMU_WARPS_MAX][MEETINGS_MAX];
static unsigned exited[EMU_WARPS_MAX];

void emu_warp_begin() {
    memset(meetings, 0, sizeof meetings);
    memset(exited, 0, sizeof exited);
}

void emu_warp_exit(EmuFibre *me) {
    exited[me->warp] |= 1u << me->lane;
    for (Meeting &m : meetings[me->warp])
        if (m.arrived && (m.mask >> me->lane & 1))
            emu_fail("warp-collective", "lane %d of warp %d has exited; lane %d waits for it at %s:%d (mask 0x%08x)",
                     me->lane, me->warp, __builtin_ctz(m.arrived), m.file, m.line, m.mask);
}

/* The lanes of the warp that exist. */
static unsigned warp_lanes(const EmuFibre *me) {
    int n = std::min(32, emu_block.threads - me->warp * 32);
    return n == 32 ? ~0u : (1u << n) - 1;
}

static void caller_check(const EmuFibre *me, unsigned mask, int width, const char *file, int line) {
    unsigned lanes = warp_lanes(me), gone = mask & lanes & exited[me->warp];
    if (!(mask >> me->lane & 1))
        emu_fail("warp-collective", "%s:%d: the calling lane %d is not in the mask 0x%08x", file, line, me->lane, mask);
    if (width < 1 || width > 32 || (width & (width - 1)))
        emu_fail("warp-collective", "%s:%d: width %d, not a power of two up to 32", file, line, width);
    if (mask != ~0u && (mask & ~lanes))
        emu_fail("warp-collective", "%s:%d: the mask 0x%08x names lanes that do not exist", file, line, mask);
    if (gone)
        emu_fail("warp-collective", "%s:%d: lane %d, named in the mask 0x%08x, has exited", file, line,
                 __builtin_ctz(gone), mask);
}

/* The meeting this lane belongs to, perhaps a new one. */
static Meeting *meeting_find(const EmuFibre *me, int op, unsigned mask, const char *file, int line) {
    Meeting *free_one = nullptr;
    for (Meeting &m : meetings[me->warp]) {
        if (!m.arrived) {
            free_one = &m;
            continue;
        }
        if (m.mask == mask && m.op == op && m.line == line && !strcmp(m.file, file))
            return &m;
        if (m.mask & mask)
            emu_fail("warp-collective", "lane %d is at %s:%d (mask 0x%08x), lane %d at %s:%d (mask 0x%08x)", me->lane,
                     file, line, mask, __builtin_ctz(m.arrived), m.file, m.line, m.mask);
    }
    if (!free_one)
        emu_fail("unsupported", "%s:%d: more than %d groups of a warp meet at once", file, line, MEETINGS_MAX);
    *free_one = Meeting{mask, 0, op, line, file};
    return free_one;
}

/* Where lane i of a shuffle reads; itself where the source is outside of its segment. */
static int shuffle_source(const EmuFibre *f, int i, bool *inside) {
    int segment = i & ~(f->width - 1), from = i;
    switch (f->op) {
    case EMU_WARP_IDX: from = segment + (f->arg & (f->width - 1)); break;
    case EMU_WARP_XOR: from = i ^ f->arg; break;
    case EMU_WARP_UP: from = i - f->arg; break;
    case EMU_WARP_DOWN: from = i + f->arg; break;
    }
    /* xor may reach into an earlier segment, not into a later one */
    *inside = from < segment + f->width && (f->op == EMU_WARP_XOR ? from >= 0 : from >= segment);
    return *inside ? from : i;
}

static void shuffle(EmuFibre *lane, unsigned members, unsigned mask) {
    for (int i = 0; i < 32; i++) {
        if (!(members >> i & 1))
            continue;
        bool inside;
        int from = shuffle_source(&lane[i], i, &inside);
        if (!(members >> from & 1))
            emu_fail("warp-collective", "%s:%d: lane %d reads lane %d, which is not in the mask 0x%08x or does not exist",
                     lane[i].file, lane[i].line, i, from, mask);
        lane[i].result = lane[from].value;
        lane[i].predicate = inside;
    }
}

static unsigned long long reduce(const EmuFibre *lane, unsigned members, int op) {
    unsigned ballot = 0, sum = 0, all = ~0u, any = 0, odd = 0, low = ~0u, high = 0;
    int least = 0x7fffffff, most = -least - 1;
    for (int i = 0; i < 32; i++) {
        if (!(members >> i & 1))
            continue;
        unsigned v = (unsigned)lane[i].value;
        ballot |= (unsigned)(v != 0) << i;
        sum += v;
        all &= v;
        any |= v;
        odd ^= v;
        low = std::min(low, v);
        high = std::max(high, v);
        least = std::min(least, (int)v);
        most = std::max(most, (int)v);
    }
    switch (op) {
    case EMU_WARP_BALLOT: return ballot;
    case EMU_WARP_ADD: return sum;
    case EMU_WARP_MIN: return (unsigned)least;
    case EMU_WARP_MAX: return (unsigned)most;
    case EMU_WARP_UMIN: return low;
    case EMU_WARP_UMAX: return high;
    case EMU_WARP_AND: return all;
    case EMU_WARP_OR: return any;
    default: return odd;
    }
}

static void match(EmuFibre *lane, unsigned members) {
    for (int i = 0; i < 32; i++) {
        unsigned same = 0;
        for (int j = 0; j < 32; j++)
            if ((members >> j & 1) && lane[j].value == lane[i].value)
                same |= 1u << j;
        if (members >> i & 1)
            lane[i].result = same;
    }
}

/* Comes to the meeting; true: all are there and this lane is the last. */
static bool meet(EmuFibre *me, int op, unsigned mask, int width, const char *file, int line, unsigned *members) {
    if (!me)
        emu_fail("misuse", "%s:%d: a warp collective outside of a kernel", file, line);
    caller_check(me, mask, width, file, line);
    Meeting *m = meeting_find(me, op, mask, file, line);
    *members = mask & warp_lanes(me);
    me->op = op;
    me->width = width;
    me->file = file;
    me->line = line;
    me->state = EMU_AT_WARP;
    m->arrived |= 1u << me->lane;
    if (m->arrived != *members) {
        emu_yield(me);
        return false;
    }
    m->arrived = 0;
    for (int i = 0; i < 32; i++)
        if (*members >> i & 1)
            emu_fibres[me->warp * 32 + i].state = EMU_READY;
    return true;
}

extern "C" unsigned long long emu_warp(int op, unsigned mask, unsigned long long value, int arg, int width,
                                       const char *file, int line) {
    EmuFibre *me = emu_me;
    unsigned members;
    if (me) {
        me->value = value;
        me->arg = arg;
    }
    if (!meet(me, op, mask, width, file, line, &members))
        return me->result;
    EmuFibre *lane = &emu_fibres[me->warp * 32];
    if (op == EMU_WARP_SYNC) {
        for (int i = 0; i < 32; i++)
            if (members >> i & 1)
                lane[i].warp_sync++;
    } else if (op <= EMU_WARP_DOWN) {
        shuffle(lane, members, mask);
    } else if (op == EMU_WARP_MATCH) {
        match(lane, members);
    } else {
        unsigned long long r = reduce(lane, members, op);
        for (int i = 0; i < 32; i++)
            if (members >> i & 1)
                lane[i].result = r;
    }
    return me->result;
}

extern "C" int emu_warp_inside(void) { return emu_me->predicate; }

extern "C" void emu_warp_all(void (*fn)(void *lanes[32], int arg), void *mine, int arg, const char *file, int line) {
    EmuFibre *me = emu_me;
    unsigned members;
    if (me)
        me->registers = mine;
    if (!meet(me, EMU_WARP_ALL, ~0u, 32, file, line, &members))
        return;
    if (members != ~0u)
        emu_fail("warp-collective", "%s:%d: the warp has only %d lanes", file, line, __builtin_popcount(members));
    void *lanes[32];
    for (int i = 0; i < 32; i++)
        lanes[i] = emu_fibres[me->warp * 32 + i].registers;
    fn(lanes, arg);
}

/* ---- cp.async: a copy lands when it is waited for, so that a missing wait shows --------------------------------- */

static void copy_land(const EmuAsyncCopy *c) {
    if (emu_race_access) {
        if (c->from_bytes)
            emu_race_access((uintptr_t)c->from, c->from_bytes, false, false, c->pc);
        emu_race_access((uintptr_t)c->to, c->bytes, true, false, c->pc);
    }
    memcpy(c->to, c->from, c->from_bytes);
    memset(c->to + c->from_bytes, 0, c->bytes - c->from_bytes);
}

extern "C" void emu_cp_async(void *shared, const void *global, int bytes, int from_bytes, const void *pc) {
    if ((uintptr_t)shared % bytes || (uintptr_t)global % bytes)
        emu_fail("misaligned", "cp.async of %d bytes from %p to %p", bytes, global, shared);
    emu_me->copies.push_back({(char *)shared, (const char *)global, bytes, from_bytes, emu_me->copy_group, pc});
}

extern "C" void emu_cp_async_commit(void) { emu_me->copy_group++; }

/* All but the last groups_left committed groups have landed; -1: everything, committed or not. */
extern "C" void emu_cp_async_wait(int groups_left) {
    auto &q = emu_me->copies;
    size_t n = 0;
    while (n < q.size() && (groups_left < 0 || q[n].group < emu_me->copy_group - groups_left))
        copy_land(&q[n++]);
    q.erase(q.begin(), q.begin() + n);
}

void emu_cp_async_exit(EmuFibre *me) {
    for (auto &c : me->copies)
        copy_land(&c);
    me->copies.clear();
}
