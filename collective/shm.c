/* shm.c -- ranks of one machine, over a segment of shared memory.
 *
 * Each rank has a seat: two slots that only it writes, a page beside each slot that says what lies where, and a
 * count of the rounds it has published. A round: write slot and page number k, count up, wait until all have
 * counted up, read the others' slots. What does not fit a slot takes more rounds: a page says whether its rank
 * has more, and while any has, all go on.
 *
 * Two slots are enough: who writes for round k + 2 has seen all others publish round k + 1, and they do that
 * when they have read round k.
 *
 * A rank waits by looking for a while, then lets others run between looks, then waits asleep on the other's count
 * (futex), and from time to time looks whether that process still is (pidfd), the group was given up, or the time is
 * over. Who gives up says so in the segment, so that nobody waits for the time-out.
 *
 * Windows (coll_window) are a second segment. */
#include "collective/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { VERSION = 1, SLOT_BYTES = 1 << 20, LOOKS = 4000, YIELDS = 1000, LOOK_MS = 20, OPEN_LOOK_US = 1000 };

typedef struct page {
    coll_call call;
    uint32_t more;
    uint32_t at[COLL_RANKS_MAX], bytes[COLL_RANKS_MAX];     /* of the slot: what is for rank r */
} page;

typedef struct seat {
    _Atomic uint32_t published;              /* rounds */
    _Atomic uint32_t sleepers;
    _Atomic int32_t pid;                     /* 0: not there yet */
    page page[2];
} __attribute__((aligned(128))) seat;

typedef struct segment {
    _Atomic uint32_t ready;                  /* VERSION once the rest is written */
    _Atomic uint32_t broken;                 /* 1 + the rank that gave up */
    uint64_t id;
    uint32_t ranks;
    seat seat[COLL_RANKS_MAX];
    uint8_t slot[] __attribute__((aligned(4096)));       /* [rank][2][SLOT_BYTES] */
} segment;

typedef struct shm {
    segment *s;
    size_t bytes;
    uint32_t rounds;
    int pidfd[COLL_RANKS_MAX];               /* -1: none */
    void *windows;                           /* coll_window() */
    size_t windows_bytes;
} shm;

static uint8_t *slot_of(const shm *l, int rank, uint32_t round) {
    return l->s->slot + ((size_t)rank * 2 + round % 2) * SLOT_BYTES;
}

/* ---- open and close ------------------------------------------------------------------------------ */

static void sleep_us(int us) { nanosleep(&(struct timespec){.tv_nsec = us * 1000L}, NULL); }

static status map_segment(shm *l, int fd, error *err) {
    void *at = mmap(NULL, l->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return error_set(err, ST_NO_MEMORY, "shared memory of ranks: %s", strerror(errno));
    l->s = at;
    return ST_OK;
}

static status create_segment(shm *l, const coll_options *o, const char *name, error *err) {
    int fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) return error_set(err, ST_IO, "shared memory %s of ranks: %s", name, strerror(errno));
    int why = posix_fallocate(fd, 0, (off_t)l->bytes);
    status s = why ? error_set(err, ST_NO_MEMORY, "shared memory %s of %zu bytes: %s", name, l->bytes, strerror(why))
                   : map_segment(l, fd, err);
    close(fd);
    if (s != ST_OK) {
        shm_unlink(name);
        return s;
    }
    l->s->id = o->id;
    l->s->ranks = (uint32_t)o->ranks;
    atomic_store(&l->s->ready, VERSION);
    return ST_OK;
}

/* Rank 0 may not be so far yet. */
static status find_segment(shm *l, const coll_options *o, const char *name, int64_t until_ms, error *err) {
    for (; coll_left_ms(until_ms); sleep_us(OPEN_LOOK_US)) {
        struct stat st;
        int fd = l->s ? -1 : shm_open(name, O_RDWR | O_CLOEXEC, 0);
        if (fd >= 0) {
            status s = ST_OK;
            if (fstat(fd, &st) == 0 && st.st_size == (off_t)l->bytes) s = map_segment(l, fd, err);
            else if (st.st_size) s = error_set(err, ST_REFUSED, "shared memory %s has %lld bytes, expected %zu for %d ranks",
                                               name, (long long)st.st_size, l->bytes, o->ranks);
            close(fd);
            if (s != ST_OK) return s;
        } else if (!l->s && errno != ENOENT) {
            return error_set(err, ST_IO, "shared memory %s of ranks: %s", name, strerror(errno));
        }
        uint32_t version = l->s ? atomic_load(&l->s->ready) : 0;
        if (!version) continue;
        if (version != VERSION || l->s->id != o->id || l->s->ranks != (uint32_t)o->ranks)
            return error_set(err, ST_REFUSED, "shared memory %s is of version %u with %u ranks, expected %d with %d", name,
                             version, l->s->ranks, VERSION, o->ranks);
        return ST_OK;
    }
    return error_set(err, ST_DEADLINE, "rank 0 of %d did not come within %d ms", o->ranks, o->open_ms);
}

static status sit_down(coll *c, const shm *l, int open_ms, int64_t until_ms, error *err) {
    int32_t none = 0;
    if (!atomic_compare_exchange_strong(&l->s->seat[c->rank].pid, &none, getpid()))
        return error_set(err, ST_REFUSED, "rank %d is there twice (process %d)", c->rank, none);
    for (int r = 0; r < c->ranks; r++)
        while (!atomic_load(&l->s->seat[r].pid)) {
            if (!coll_left_ms(until_ms))
                return error_set(err, ST_DEADLINE, "rank %d of %d did not come within %d ms", r, c->ranks, open_ms);
            sleep_us(OPEN_LOOK_US);
        }
    return ST_OK;
}

static status shm_open_group(coll *c, const coll_options *o, error *err) {
    char name[40];
    int64_t until = clock_now_ms() + o->open_ms;
    shm *l = mem_zalloc(1, sizeof *l);
    if (!l) return error_set(err, ST_NO_MEMORY, "no memory for a group of ranks");
    l->bytes = sizeof(segment) + (size_t)o->ranks * 2 * SLOT_BYTES;
    for (int r = 0; r < COLL_RANKS_MAX; r++) l->pidfd[r] = -1;
    c->link = l;
    snprintf(name, sizeof name, "/baton-%016llx", (unsigned long long)o->id);
    status s = o->rank ? find_segment(l, o, name, until, err) : create_segment(l, o, name, err);
    if (s == ST_OK) s = sit_down(c, l, o->open_ms, until, err);
    if (o->rank == 0 && l->s) shm_unlink(name);
    if (s != ST_OK) {
        coll_shm.close(c);
        return s;
    }
    for (int r = 0; r < c->ranks; r++)
        if (r != c->rank) l->pidfd[r] = (int)syscall(SYS_pidfd_open, atomic_load(&l->s->seat[r].pid), 0);
    return ST_OK;
}

static void shm_close(coll *c) {
    shm *l = c->link;
    for (int r = 0; r < COLL_RANKS_MAX; r++)
        if (l->pidfd[r] >= 0) close(l->pidfd[r]);
    if (l->s) munmap(l->s, l->bytes);
    if (l->windows) munmap(l->windows, l->windows_bytes);
    mem_free(l);
    c->link = NULL;
}

/* ---- rounds -------------------------------------------------------------------------------------- */

/* Not private: the processes are different ones. */
static void wake(seat *at) {
    if (atomic_load(&at->sleepers)) syscall(SYS_futex, &at->published, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static void give_up(const shm *l, int rank) {
    uint32_t nobody = 0;
    atomic_compare_exchange_strong(&l->s->broken, &nobody, (uint32_t)rank + 1);
    for (uint32_t r = 0; r < l->s->ranks; r++) wake(&l->s->seat[r]);
}

static void shm_abort(coll *c) { give_up(c->link, c->rank); }

static bool is_gone(const shm *l, int rank) {
    struct pollfd p = {.fd = l->pidfd[rank], .events = POLLIN};
    return p.fd >= 0 && poll(&p, 1, 0) > 0;
}

static bool has_published(seat *at, uint32_t round) { return (int32_t)(atomic_load(&at->published) - round) > 0; }

/* Until rank has published that round. On a busy machine one yield may take as long as others' turns do: their time is
 * bounded too, and counts. */
static status await(coll *c, uint32_t round, int rank, int64_t *until_ms, error *err) {
    const shm *l = c->link;
    seat *at = &l->s->seat[rank];
    for (int i = 0; i < LOOKS; i++) {
        if (has_published(at, round)) return ST_OK;
        cpu_relax();
    }
    int64_t now_ms = clock_now_ms(), yields_end_ms = now_ms + LOOK_MS;
    if (!*until_ms) *until_ms = now_ms + c->timeout_ms;
    for (int i = 0; i < YIELDS && clock_now_ms() < yields_end_ms; i++) {
        if (has_published(at, round)) return ST_OK;
        sched_yield();
    }
    for (;;) {
        atomic_fetch_add(&at->sleepers, 1);
        uint32_t seen = atomic_load(&at->published);
        if ((int32_t)(seen - round) <= 0 && !atomic_load(&l->s->broken))
            syscall(SYS_futex, &at->published, FUTEX_WAIT, seen, &(struct timespec){.tv_nsec = LOOK_MS * 1000000}, NULL, 0);
        atomic_fetch_sub(&at->sleepers, 1);
        if (has_published(at, round)) return ST_OK;
        uint32_t broken = atomic_load(&l->s->broken);
        if (broken) return error_set(err, ST_PEER_LOST, "rank %u gave the group up", broken - 1);
        if (is_gone(l, rank)) return error_set(err, ST_PEER_LOST, "rank %d has ended", rank);
        if (!coll_left_ms(*until_ms))
            return error_set(err, ST_DEADLINE, "rank %d did not answer within %d ms", rank, c->timeout_ms);
    }
}

/* Puts what is left of out, as much as fits, into this round's slot. Who gets the same as another shares it. */
static void publish(coll *c, const coll_call *call, const span *out, size_t sent, size_t step) {
    shm *l = c->link;
    seat *at = &l->s->seat[c->rank];
    page *p = &at->page[l->rounds % 2];
    uint8_t *to = slot_of(l, c->rank, l->rounds);
    size_t used = 0;
    int last = -1;
    p->call = *call;
    p->more = 0;
    for (int r = 0; r < c->ranks; r++) {
        size_t left = r != c->rank && out[r].bytes > sent ? out[r].bytes - sent : 0, now = left < step ? left : step;
        bool again = last >= 0 && out[r].data == out[last].data && out[r].bytes == out[last].bytes;
        p->bytes[r] = (uint32_t)now;
        p->more |= left > now;
        if (!now) continue;
        p->at[r] = again ? p->at[last] : (uint32_t)used;
        if (!again) memcpy(to + used, (const char *)out[r].data + sent, now);
        if (!again) used += now;
        last = r;
    }
    atomic_store(&at->published, l->rounds + 1);
    wake(at);
}

static status take(coll *c, const coll_call *call, const span *in, int from, size_t taken, size_t step, bool *more,
                   error *err) {
    const shm *l = c->link;
    const page *p = &l->s->seat[from].page[l->rounds % 2];
    size_t bytes = p->bytes[c->rank], at = p->at[c->rank];
    TRY(coll_check_call(c, call, &p->call, from, err));
    size_t left = in[from].bytes > taken ? in[from].bytes - taken : 0;
    if (bytes != (left < step ? left : step) || at + bytes > SLOT_BYTES)
        return error_set(err, ST_INTERNAL, "rank %d sent %zu bytes after %zu, rank %d expected %zu", from, bytes, taken,
                         c->rank, left < step ? left : step);
    if (bytes) memcpy((char *)in[from].data + taken, slot_of(l, from, l->rounds) + at, bytes);
    *more |= p->more != 0;
    return ST_OK;
}

static status shm_exchange(coll *c, const coll_call *call, const span *out, const span *in, error *err) {
    shm *l = c->link;
    size_t done = 0, step = SLOT_BYTES / (size_t)c->ranks;
    status s = ST_OK;
    for (bool more = true; more && s == ST_OK; done += step, l->rounds++) {
        int64_t until = 0;
        more = false;
        publish(c, call, out, done, step);
        for (int r = 0; r < c->ranks && s == ST_OK; r++)
            if (r != c->rank) s = await(c, l->rounds, r, &until, err);
        more |= l->s->seat[c->rank].page[l->rounds % 2].more != 0;
        for (int r = 0; r < c->ranks && s == ST_OK; r++)
            if (r != c->rank) s = take(c, call, in, r, done, step, &more, err);
    }
    if (s != ST_OK) give_up(l, c->rank);
    return s;
}

/* ---- windows ------------------------------------------------------------------------------------- */

static status map_windows(shm *l, int fd, size_t bytes, error *err) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return error_set(err, ST_NO_MEMORY, "shared memory of %zu bytes of ranks: %s", bytes, strerror(errno));
    l->windows = at;
    l->windows_bytes = bytes;
    return ST_OK;
}

static status shm_share(coll *c, int stage, size_t bytes, void **out, error *err) {
    shm *l = c->link;
    char name[48];
    snprintf(name, sizeof name, "/baton-%016llx-w", (unsigned long long)l->s->id);
    bool mine = stage == (c->rank ? 1 : 0);
    if (mine) {
        int fd = shm_open(name, O_RDWR | O_CLOEXEC | (c->rank ? 0 : O_CREAT | O_EXCL), 0600);
        if (fd < 0) return error_set(err, ST_IO, "shared memory %s of ranks: %s", name, strerror(errno));
        int why = c->rank ? 0 : posix_fallocate(fd, 0, (off_t)bytes);
        status s = why ? error_set(err, ST_NO_MEMORY, "shared memory %s of %zu bytes: %s", name, bytes, strerror(why))
                       : map_windows(l, fd, bytes, err);
        close(fd);
        if (s != ST_OK) {
            if (c->rank == 0) shm_unlink(name);
            return s;
        }
    }
    if (stage == 2 && c->rank == 0) shm_unlink(name);
    *out = l->windows;
    return ST_OK;
}

const coll_transport coll_shm = {"shm", shm_open_group, shm_close, shm_abort, shm_exchange, shm_share};
