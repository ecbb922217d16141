/* cache.c -- prepared weights, kept in a file that maps.
 *
 * A back end may want the matrices in a form of its own (eng_ops.prepare). That form depends on the
 * model and on op->form alone, so the first process of a machine to need it writes it down, and it and
 * all others map the file read-only and shared: one copy in the page cache, however many nodes.
 *
 *   DIR/DIGEST-FORM          the file, mode 0600
 *   DIR/DIGEST-FORM.tmp      the same while it is written; renamed when it is whole
 *   DIR/DIGEST-FORM.lock     held (flock) by who writes; the others wait and then map
 *
 * The file, little-endian:
 *
 *     0  char magic[8]  "batonwgt"
 *     8  u32 version    1
 *    12  u32 count      matrices
 *    16  char digest[32]
 *    48  char form[32]  padded with 0
 *    80  u64 bytes      of the payload
 *    88  u8 hash[16]    XXH3-128 of the payload, canonical order
 *   104  u64 size[count]  of each matrix, a multiple of 64; 0: it has no form of its own
 *        padding to a multiple of 64, then the payload: the matrices in order
 *
 * Nothing in a file is used before its owner, its length, every field of the header and the hash were
 * compared with what they must be; if they are not that, the file is written anew. The hash is worth
 * its time (96 MiB, one core): 18 ms when the page cache has the file, 55 ms when it must be read, which
 * it must be anyway. Writing it to the disk (fsync) takes 52 ms, once. Reading weights from the mapping
 * is as fast as from private memory in huge pages (15.2 and 15.4 GB/s).
 *
 * The digest does not cover every byte of the model (engine.h). Who edits a model file in the middle of
 * a tensor must empty the directory; that is safe at any time.
 *
 * A device's form of the weights is its own memory: it is brought there by each process, and no file is written.
 *
 * A cache never fails the start: what goes wrong is logged, and the weights are prepared into private
 * memory. (A file that is cut while it is mapped faults on access; that cannot be defended here.) */
#include "engine/cache.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#define MAGIC "batonwgt"
enum {
    VERSION = 1, ALIGNMENT = 64, DIGEST_BYTES = 32, FORM_BYTES = 32, NAME_BYTES = DIGEST_BYTES + FORM_BYTES + 16,
    WAIT_MS = 120000, POLL_MS = 5,
};

typedef struct header {
    char magic[8];
    uint32_t version, count;
    char digest[DIGEST_BYTES], form[FORM_BYTES];
    uint64_t bytes;
    unsigned char hash[16];
    uint64_t size[];
} header;
static_assert(offsetof(header, size) == 104, "the file's layout");

/* A file of the cache, and how large it is to be. */
typedef struct place {
    const eng_cache_job *job;
    int dir;
    char name[NAME_BYTES - 8], temporary[NAME_BYTES];
    size_t head_bytes, bytes;
} place;

static status open_file(const eng_cache_job *job, size_t bytes, eng_cache *out, error *why);

/* ---- open and close ---------------------------------------------------------------------------- */

static size_t aligned(size_t bytes) { return (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1); }

static double mib(size_t bytes) { return (double)bytes / (1 << 20); }

static size_t size_of(const eng_cache_job *job, int i) {
    return aligned(job->op->own_bytes(job->c, job->matrices[i]));
}

static void set_own(const eng_cache_job *job, const char *payload) {
    for (int i = 0; i < job->count; i++) {
        size_t size = size_of(job, i);
        job->matrices[i]->own = size ? payload : NULL;
        payload += size;
    }
}

static void prepare_all(const eng_cache_job *job, char *payload, size_t bytes) {
    size_t done = 0;
    for (int i = 0; i < job->count; i++) {
        size_t size = size_of(job, i);
        if (size) job->op->prepare(job->c, job->matrices[i], payload + done);
        done += size;
        if (job->progress) job->progress((double)done / (double)bytes, job->progress_ctx);
    }
}

status eng_cache_open(const eng_cache_job *job, eng_cache *out, error *err) {
    size_t bytes = 0;
    for (int i = 0; i < job->count; i++) bytes += size_of(job, i);
    *out = (eng_cache){0};
    if (bytes == 0) {
        set_own(job, NULL);
        return ST_OK;
    }
    error why = {.text = "no directory was given"};
    const char *dir = job->op->shares ? job->dir : NULL;
    bool shared = dir && open_file(job, bytes, out, &why) == ST_OK;
    out->bytes = bytes;
    if (shared) return ST_OK;
    if (job->op->shares)
        log_write(dir ? LOG_WARN : LOG_INFO, NULL, "weights.private", "mib=%.1f not shared with other processes: %s",
                  mib(bytes), why.text);
    out->memory = job->op->alloc(job->c, bytes);
    if (!out->memory)
        return error_set(err, ST_NO_MEMORY, "no memory for %zu bytes (%zu MiB) of prepared weights: %s", bytes, bytes >> 20,
                         job->op->room(job->c, (char[ENG_ROOM_BYTES]){0}));
    prepare_all(job, out->memory, bytes);
    set_own(job, out->memory);
    return ST_OK;
}

void eng_cache_close(eng_cache *cache, const eng_ops *op, eng_context *c) {
    if (cache->map) munmap(cache->map, cache->map_bytes);
    op->free(c, cache->memory);
    *cache = (eng_cache){0};
}

/* ---- map --------------------------------------------------------------------------------------- */

static status check_file(const place *p, int fd, error *why) {
    struct stat s;
    if (fstat(fd, &s) != 0) return error_set(why, ST_IO, "%s", strerror(errno));
    if (!S_ISREG(s.st_mode)) return error_set(why, ST_DENIED, "is not a regular file");
    if (s.st_uid != geteuid() || s.st_mode & (S_IWGRP | S_IWOTH))
        return error_set(why, ST_DENIED, "is of user %u with mode %03o, expected user %u and no other writer",
                         (unsigned)s.st_uid, (unsigned)(s.st_mode & 0777), (unsigned)geteuid());
    if ((uint64_t)s.st_size != p->head_bytes + p->bytes)
        return error_set(why, ST_CORRUPT, "has %lld bytes, expected %zu", (long long)s.st_size,
                         p->head_bytes + p->bytes);
    return ST_OK;
}

static void hash_payload(const place *p, const header *h, unsigned char out[16]) {
    XXH128_canonical_t hash;
    XXH128_canonicalFromHash(&hash, XXH3_128bits((const char *)h + p->head_bytes, p->bytes));
    memcpy(out, hash.digest, sizeof hash.digest);
}

/* The file has the length that its header must tell. */
static status check_content(const place *p, const header *h, error *why) {
    const eng_cache_job *job = p->job;
    unsigned char hash[16];
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0 || h->version != VERSION)
        return error_set(why, ST_CORRUPT, "does not begin with " MAGIC " and version %d", VERSION);
    if (memcmp(h->digest, job->digest, DIGEST_BYTES) != 0)
        return error_set(why, ST_CORRUPT, "is of model %.32s, expected %.32s", h->digest, job->digest);
    if (strncmp(h->form, job->form, FORM_BYTES) != 0)
        return error_set(why, ST_CORRUPT, "has form %.32s, expected %s", h->form, job->form);
    if (h->bytes != p->bytes || h->count != (uint32_t)job->count)
        return error_set(why, ST_CORRUPT, "tells of %u matrices and %llu bytes, expected %d and %zu", h->count,
                         (unsigned long long)h->bytes, job->count, p->bytes);
    for (int i = 0; i < job->count; i++)
        if (h->size[i] != size_of(job, i))
            return error_set(why, ST_CORRUPT, "has %llu bytes for matrix %d, expected %zu",
                             (unsigned long long)h->size[i], i, size_of(job, i));
    hash_payload(p, h, hash);
    if (memcmp(h->hash, hash, sizeof hash) != 0)
        return error_set(why, ST_CORRUPT, "has content that does not fit its checksum");
    return ST_OK;
}

static void keep(const place *p, void *map, eng_cache *out) {
    out->map = map;
    out->map_bytes = p->head_bytes + p->bytes;
    set_own(p->job, (const char *)map + p->head_bytes);
}

/* ST_NOT_FOUND: there is no file. Any other failure: there is one that may not be used. */
static status map_file(const place *p, eng_cache *out, error *why) {
    size_t all = p->head_bytes + p->bytes;
    void *map = MAP_FAILED;
    int fd = openat(p->dir, p->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return error_set(why, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot be opened: %s", strerror(errno));
    status s = check_file(p, fd, why);
    if (s == ST_OK && (map = mmap(NULL, all, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        s = error_set(why, ST_IO, "cannot be mapped: %s", strerror(errno));
    close(fd);
    TRY(s);
    s = check_content(p, map, why);
    if (s != ST_OK) {
        munmap(map, all);
        return s;
    }
    keep(p, map, out);
    log_write(LOG_DEBUG, NULL, "weights.mapped", "mib=%.1f from %s/%s", mib(p->bytes), p->job->dir, p->name);
    return ST_OK;
}

/* ---- build ------------------------------------------------------------------------------------- */

static void fill_header(const place *p, header *h) {
    const eng_cache_job *job = p->job;
    h->version = VERSION;
    h->count = (uint32_t)job->count;
    h->bytes = p->bytes;
    memcpy(h->magic, MAGIC, sizeof h->magic);
    memcpy(h->digest, job->digest, DIGEST_BYTES);
    memcpy(h->form, job->form, strlen(job->form));
    for (int i = 0; i < job->count; i++) h->size[i] = size_of(job, i);
    hash_payload(p, h, h->hash);
}

/* Room is taken first: a full disk is an error here and not a fault in the middle of prepare(). */
static status fill_file(const place *p, int fd, header **out, error *why) {
    size_t all = p->head_bytes + p->bytes;
    int rc = posix_fallocate(fd, 0, (off_t)all);
    if (rc != 0) return error_set(why, ST_IO, "no room for %zu bytes: %s", all, strerror(rc));
    header *h = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (h == MAP_FAILED) return error_set(why, ST_IO, "cannot be mapped: %s", strerror(errno));
    prepare_all(p->job, (char *)h + p->head_bytes, p->bytes);
    fill_header(p, h);
    if (mprotect(h, all, PROT_READ) != 0 || fsync(fd) != 0) {
        status s = error_set(why, ST_IO, "cannot be written: %s", strerror(errno));
        munmap(h, all);
        return s;
    }
    *out = h;
    return ST_OK;
}

/* Under the lock. A temporary file that is there already was left by a process that was killed. */
static status build_file(const place *p, eng_cache *out, error *why) {
    header *h = NULL;
    int64_t began = clock_now_ms();
    unlinkat(p->dir, p->temporary, 0);
    int fd = openat(p->dir, p->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return error_set(why, ST_IO, "%s cannot be made: %s", p->temporary, strerror(errno));
    status s = fill_file(p, fd, &h, why);
    close(fd);
    if (s == ST_OK && renameat(p->dir, p->temporary, p->dir, p->name) != 0) {
        s = error_set(why, ST_IO, "%s cannot be renamed: %s", p->temporary, strerror(errno));
        munmap(h, p->head_bytes + p->bytes);
    }
    if (s != ST_OK) {
        unlinkat(p->dir, p->temporary, 0);
        return s;
    }
    keep(p, h, out);
    log_write(LOG_INFO, NULL, "weights.prepared", "mib=%.1f ms=%lld into %s/%s", mib(p->bytes),
              (long long)(clock_now_ms() - began), p->job->dir, p->name);
    return ST_OK;
}

/* ---- the directory and its lock ---------------------------------------------------------------- */

/* Makes what is missing of the path, for this user alone. */
static status open_dir(const char *dir, int *out, error *why) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path)
        return error_set(why, ST_IO, "'%.100s...' is too long for a path", dir);
    for (char *c = path; *c; c++) {
        if (*c != '/' || c == path) continue;
        *c = 0;
        mkdir(path, 0700);
        *c = '/';
    }
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return error_set(why, ST_IO, "directory '%.200s' cannot be made: %s", dir, strerror(errno));
    *out = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*out < 0) return error_set(why, ST_IO, "directory '%.200s' cannot be opened: %s", dir, strerror(errno));
    return ST_OK;
}

/* Waits while another process builds, but not for ever: that one may have been stopped. */
static status lock(const place *p, int *out, error *why) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.lock", p->name);
    int fd = openat(p->dir, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (fd < 0) return error_set(why, ST_IO, "%s cannot be opened: %s", name, strerror(errno));
    int64_t end = clock_now_ms() + WAIT_MS;
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        bool held = errno == EWOULDBLOCK || errno == EINTR;
        if (!held || clock_now_ms() > end) {
            status s = error_set(why, ST_IO, "%s is not to be had: %s", name,
                                 held ? "another process has held it for two minutes" : strerror(errno));
            close(fd);
            return s;
        }
        nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000}, NULL);
    }
    *out = fd;
    return ST_OK;
}

static status map_or_build(const place *p, eng_cache *out, error *why) {
    int held = -1;
    status s = map_file(p, out, why);
    if (s == ST_OK) return s;
    TRY(lock(p, &held, why));
    s = map_file(p, out, why);       /* another process may have built it meanwhile */
    if (s != ST_OK && s != ST_NOT_FOUND)
        log_write(LOG_WARN, NULL, "weights.refused", "%s/%s %s; it is written anew", p->job->dir, p->name, why->text);
    if (s != ST_OK) s = build_file(p, out, why);
    close(held);
    return s;
}

static status open_file(const eng_cache_job *job, size_t bytes, eng_cache *out, error *why) {
    place p = {.job = job, .bytes = bytes};
    p.head_bytes = aligned(sizeof(header) + (size_t)job->count * sizeof(uint64_t));
    assert(strlen(job->digest) == DIGEST_BYTES && strlen(job->form) < FORM_BYTES);
    snprintf(p.name, sizeof p.name, "%s-%s", job->digest, job->form);
    snprintf(p.temporary, sizeof p.temporary, "%s.tmp", p.name);
    TRY(open_dir(job->dir, &p.dir, why));
    status s = map_or_build(&p, out, why);
    close(p.dir);
    return s;
}
