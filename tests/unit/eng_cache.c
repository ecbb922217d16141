/* Tests engine/cache.c with a back end that only prepares: whatever is in the directory, the weights are
 * the right ones, prepared no more often than needed. */
#include "engine/model.h"
#include "tests/unit/tiny_gguf.h"
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

enum { MATRICES = 5 };
#define DIGEST "0123456789abcdef0123456789abcdef"

/* ---- a back end that counts -------------------------------------------------------------------- */

static atomic_int *prepared;     /* shared with forked processes */
static int prepare_ms;

static void *fake_alloc(eng_context *c, size_t bytes) { return eng_ops_find("scalar")->alloc(c, bytes); }
static void fake_free(eng_context *c, void *memory) { eng_ops_find("scalar")->free(c, memory); }

/* The third matrix is used as it is; no other size is a multiple of 64. */
static size_t fake_own_bytes(const eng_context *c, const eng_matrix *m) {
    (void)c;
    return m->N == 3 ? 0 : (size_t)(m->N * 1000 + m->C);
}

static unsigned char fake_byte(const eng_matrix *m, size_t i) { return (unsigned char)(i * 31 + (size_t)m->N); }

static void fake_prepare(eng_context *c, const eng_matrix *m, void *own) {
    assert_int_equal((uintptr_t)own % 64, 0);
    for (size_t i = 0; i < fake_own_bytes(c, m); i++) ((unsigned char *)own)[i] = fake_byte(m, i);
    atomic_fetch_add(prepared, 1);
    usleep((useconds_t)prepare_ms * 1000);
}

static const char *fake_room(eng_context *c, char out[ENG_ROOM_BYTES]) { return eng_ops_find("scalar")->room(c, out); }

static const eng_ops fake = {.name = "fake", .alloc = fake_alloc, .free = fake_free, .room = fake_room, .shares = true, .form = "fake-1",
                             .own_bytes = fake_own_bytes, .prepare = fake_prepare};

/* ---- one directory a test ----------------------------------------------------------------------- */

typedef struct fixture {
    char dir[64], path[128];     /* the directory and the file that is made in it */
    eng_matrix matrix[MATRICES], *list[MATRICES];
    eng_cache_job job;
    eng_cache cache;
    double share;                /* of the work, as told last */
    int64_t live;
} fixture;

static void note(double share, void *ctx) {
    fixture *f = ctx;
    assert_true(share > 0 && share <= 1);
    f->share = share;
}

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    strcpy(f->dir, "/tmp/bt-cache-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof f->path, "%s/" DIGEST "-fake-1", f->dir);
    for (int i = 0; i < MATRICES; i++) {
        f->list[i] = &f->matrix[i];
        f->matrix[i].N = i + 1;
        f->matrix[i].C = 7;
    }
    f->job = (eng_cache_job){.op = &fake, .form = fake.form, .matrices = f->list, .count = MATRICES, .digest = DIGEST, .dir = f->dir,
                             .progress = note, .progress_ctx = f};
    f->live = mem_live();
    atomic_store(prepared, 0);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    struct dirent *e;
    DIR *d = opendir(f->dir);
    assert_non_null(d);
    while ((e = readdir(d)))
        if (e->d_name[0] != '.') unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    assert_int_equal(rmdir(f->dir), 0);
    assert_int_equal(mem_live(), f->live);
    free(f);
    return 0;
}

/* Every matrix points at its bytes, aligned; then all is given back. */
static void check_and_close(fixture *f, bool mapped) {
    for (int i = 0; i < MATRICES; i++) {
        const eng_matrix *m = &f->matrix[i];
        size_t bytes = fake_own_bytes(NULL, m);
        assert_true((m->own != NULL) == (bytes > 0));
        assert_int_equal((uintptr_t)m->own % 64, 0);
        for (size_t at = 0; at < bytes; at++)
            if (((const unsigned char *)m->own)[at] != fake_byte(m, at)) fail_msg("matrix %d differs at %zu", i, at);
    }
    assert_true((f->cache.map != NULL) == mapped && (f->cache.memory != NULL) == !mapped);
    eng_cache_close(&f->cache, &fake, NULL);
    assert_int_equal(mem_live(), f->live);
}

/* Opens, and says how often prepare() ran for it. */
static int open_counted(fixture *f, bool mapped) {
    error err = {.text = ""};
    f->share = 0;
    atomic_store(prepared, 0);
    assert_int_equal(eng_cache_open(&f->job, &f->cache, &err), ST_OK);
    check_and_close(f, mapped);
    assert_true(f->share == (atomic_load(prepared) ? 1 : 0));
    return atomic_load(prepared);
}

static bool exists(const fixture *f, const char *suffix) {
    char path[160];
    snprintf(path, sizeof path, "%s%s", f->path, suffix);
    return access(path, F_OK) == 0;
}

/* ---- tests -------------------------------------------------------------------------------------- */

static void the_second_time_it_is_mapped(void **state) {
    fixture *f = *state;
    struct stat s;
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    assert_int_equal(open_counted(f, true), 0);
    assert_int_equal(stat(f->path, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0600);
    assert_false(exists(f, ".tmp"));
}

static void the_directory_is_made(void **state) {
    fixture *f = *state;
    char deep[128], middle[128], file[300];
    struct stat s;
    snprintf(middle, sizeof middle, "%s/a", f->dir);
    snprintf(deep, sizeof deep, "%s/a/b/", f->dir);
    f->job.dir = deep;
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    assert_int_equal(open_counted(f, true), 0);
    assert_int_equal(stat(deep, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0700);
    snprintf(file, sizeof file, "%s/" DIGEST "-fake-1", deep);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(unlink(strcat(file, ".lock")), 0);
    assert_int_equal(rmdir(deep), 0);
    assert_int_equal(rmdir(middle), 0);
}

static void models_and_forms_have_their_own_files(void **state) {
    fixture *f = *state;
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    f->job.digest = "fedcba9876543210fedcba9876543210";
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    f->job.form = "fake-2";
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    f->job.digest = DIGEST;
    f->job.form = fake.form;
    assert_int_equal(open_counted(f, true), 0);
}

static void nothing_to_prepare_makes_no_file(void **state) {
    fixture *f = *state;
    f->job.matrices = &f->list[2];
    f->job.count = 1;
    f->matrix[2].own = f;
    assert_int_equal(eng_cache_open(&f->job, &f->cache, NULL), ST_OK);
    assert_true(!f->cache.map && !f->cache.memory && !f->matrix[2].own && !exists(f, ""));
    eng_cache_close(&f->cache, &fake, NULL);
}

/* The layout of the head comment: every field, the payload's ends, and the length. */
static void another_content_is_written_anew(void **state) {
    fixture *f = *state;
    static const off_t flipped[] = {0, 8, 12, 16, 47, 48, 53, 80, 88, 103, 104, 136, 192, 200, -1, -64};
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    for (size_t i = 0; i < sizeof flipped / sizeof *flipped; i++) {
        unsigned char byte;
        int fd = open(f->path, O_RDWR);
        off_t at = lseek(fd, flipped[i], flipped[i] < 0 ? SEEK_END : SEEK_SET);
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
        if (open_counted(f, true) != MATRICES - 1) fail_msg("byte %lld was not missed", (long long)at);
        assert_int_equal(open_counted(f, true), 0);
    }
}

static void another_length_is_written_anew(void **state) {
    fixture *f = *state;
    struct stat s;
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    assert_int_equal(stat(f->path, &s), 0);
    const off_t lengths[] = {0, 1, 103, 4096, s.st_size - 1, s.st_size + 1};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        assert_int_equal(truncate(f->path, lengths[i]), 0);
        assert_int_equal(open_counted(f, true), MATRICES - 1);
        assert_int_equal(open_counted(f, true), 0);
    }
}

static void another_shape_is_written_anew(void **state) {
    fixture *f = *state;
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    f->matrix[0].N = 2;                                /* one byte sum, other sizes */
    f->matrix[1].N = 1;
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    f->job.count--;
    f->matrix[MATRICES - 1] = f->matrix[2];            /* not of the job any more */
    assert_int_equal(open_counted(f, true), MATRICES - 2);
}

static void only_a_file_of_our_own_is_used(void **state) {
    fixture *f = *state;
    char other[160];
    struct stat s;
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    assert_int_equal(chmod(f->path, 0622), 0);
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    if (geteuid() == 0) {
        assert_int_equal(chown(f->path, 12345, 0), 0);
        assert_int_equal(open_counted(f, true), MATRICES - 1);
    }
    snprintf(other, sizeof other, "%s/other", f->dir);
    assert_int_equal(rename(f->path, other), 0);
    assert_int_equal(symlink(other, f->path), 0);
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    assert_int_equal(lstat(f->path, &s), 0);
    assert_true(S_ISREG(s.st_mode));
    assert_int_equal(unlink(f->path), 0);
    assert_int_equal(mkfifo(f->path, 0600), 0);
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    assert_int_equal(open_counted(f, true), 0);
}

static void without_a_place_it_is_private_memory(void **state) {
    fixture *f = *state;
    char name[160];
    const char *const dirs[] = {NULL, "", "/dev/null", "/dev/null/below", "/proc/no-such-thing"};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        f->job.dir = dirs[i];
        assert_int_equal(open_counted(f, false), MATRICES - 1);
    }
    f->job.dir = f->dir;
    assert_int_equal(mkdir(f->path, 0700), 0);         /* cannot be renamed over */
    assert_int_equal(open_counted(f, false), 2 * (MATRICES - 1));
    assert_int_equal(rmdir(f->path), 0);
    snprintf(name, sizeof name, "%s.tmp", f->path);
    assert_int_equal(mkdir(name, 0700), 0);
    assert_int_equal(open_counted(f, false), MATRICES - 1);
    assert_int_equal(rmdir(name), 0);
    snprintf(name, sizeof name, "%s.lock", f->path);
    assert_int_equal(unlink(name), 0);
    assert_int_equal(symlink("/dev/null", name), 0);
    assert_int_equal(open_counted(f, false), MATRICES - 1);
}

/* A limit on the length of files stands for a full disk. */
static void a_full_disk_is_no_fault(void **state) {
    fixture *f = *state;
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = (struct rlimit){.rlim_cur = 4096, .rlim_max = old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    int runs = open_counted(f, false);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(runs, MATRICES - 1);
    assert_true(!exists(f, "") && !exists(f, ".tmp"));
    assert_int_equal(open_counted(f, true), MATRICES - 1);
}

static void what_a_killed_process_left_is_replaced(void **state) {
    fixture *f = *state;
    char name[160];
    snprintf(name, sizeof name, "%s.tmp", f->path);
    int fd = open(name, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "half", 4), 4);
    close(fd);
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    assert_false(exists(f, ".tmp"));
}

static void processes_that_start_together_prepare_once(void **state) {
    fixture *f = *state;
    pid_t child[3];
    f->job.progress = NULL;
    prepare_ms = 20;
    for (int i = 0; i < 3; i++) {
        child[i] = fork();
        if (child[i] == 0) {
            status s = eng_cache_open(&f->job, &f->cache, NULL);
            _exit(s == ST_OK && f->cache.map && *(const unsigned char *)f->matrix[1].own == 2 ? 0 : 1);
        }
    }
    for (int i = 0; i < 3; i++) {
        int how = -1;
        assert_int_equal(waitpid(child[i], &how, 0), child[i]);
        assert_int_equal(how, 0);
    }
    prepare_ms = 0;
    assert_int_equal(atomic_load(prepared), MATRICES - 1);
}

static void any_allocation_may_fail(void **state) {
    fixture *f = *state;
    error err = {.text = ""};
    f->job.dir = NULL;
    mem_fail_at(1);
    status s = eng_cache_open(&f->job, &f->cache, &err);
    mem_fail_at(0);
    assert_int_equal(s, ST_NO_MEMORY);
    assert_non_null(strstr(err.text, "prepared weights"));
    assert_int_equal(mem_live(), f->live);
    eng_cache_close(&f->cache, &fake, NULL);
    f->job.dir = f->dir;                               /* the file needs none */
    mem_fail_at(1);
    assert_int_equal(open_counted(f, true), MATRICES - 1);
    assert_int_equal(open_counted(f, true), 0);
    mem_fail_at(0);
}

/* Every back end's own bytes are the same in private memory, written to a file, and mapped from it. */
static void a_models_weights_are_the_same_either_way(void **state) {
    fixture *f = *state;
    tiny_gguf t = tiny_gguf_build(&(tiny_options){.type = ENG_Q4_1});
    eng_gguf *g;
    error err = {.text = ""};
    assert_int_equal(eng_gguf_open_memory(t.data, t.bytes, "tiny", &g, &err), ST_OK);
    for (int i = 0; eng_ops_at(i); i++) {
        eng_options o = {.isa = eng_ops_at(i)->name, .threads = 2, .tokens_max = 8};
        eng_model *m[3];
        for (int k = 0; k < 3; k++) {
            o.cache_dir = k ? f->dir : NULL;
            if (eng_model_open(g, &o, &m[k], &err) != ST_OK) fail_msg("%s: %s", o.isa, err.text);
        }
        for (int k = 1; k < 3; k++) {
            const eng_matrix *one = &m[0]->layer[1].down, *other = &m[k]->layer[1].down;
            size_t bytes = m[0]->op->own_bytes(m[0]->c, one);
            assert_true((m[k]->cache.map != NULL) == (m[0]->cache.memory != NULL) && !m[k]->cache.memory);
            if (bytes) assert_memory_equal(one->own, other->own, bytes);
        }
        for (int k = 0; k < 3; k++) eng_model_close(m[k]);
    }
    eng_gguf_close(g);
    tiny_gguf_free(&t);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(the_second_time_it_is_mapped),
        TEST(the_directory_is_made),
        TEST(models_and_forms_have_their_own_files),
        TEST(nothing_to_prepare_makes_no_file),
        TEST(another_content_is_written_anew),
        TEST(another_length_is_written_anew),
        TEST(another_shape_is_written_anew),
        TEST(only_a_file_of_our_own_is_used),
        TEST(without_a_place_it_is_private_memory),
        TEST(a_full_disk_is_no_fault),
        TEST(what_a_killed_process_left_is_replaced),
        TEST(processes_that_start_together_prepare_once),
        TEST(any_allocation_may_fail),
        TEST(a_models_weights_are_the_same_either_way),
    };
    prepared = mmap(NULL, sizeof *prepared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (prepared == MAP_FAILED) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
