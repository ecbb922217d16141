/* collective.c -- groups of ranks over every transport: sums in rank order whatever the size, uneven gathers,
 * broadcasts; a rank that dies, stops, does something else or gives up ends the group on all, and nothing is
 * left behind.
 *
 * Ranks are processes; once they are threads, for the thread sanitizer. */
#include "collective/collective.h"
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { RANKS = 3 };              /* of the longer tests: there they take five times as long */
#else
enum { RANKS = 5 };
#endif
enum { MOST = 1 << 20, OPEN_MS = 20000, TIMEOUT_MS = 1500, LONG_MS = 60000 /* where nothing goes wrong */ };

static const char *const transports[] = {"shm", "tcp"};
static uint64_t first_id, next_id;

/* What fails in a rank is said by it and seen by its exit code (or its thread's result). */
#define CHECK(expr)                                                                              \
    do {                                                                                         \
        if (!(expr)) {                                                                           \
            fprintf(stderr, "%s:%d: rank %d: %s\n", __FILE__, __LINE__, coll_rank(c), #expr);    \
            return 1;                                                                            \
        }                                                                                        \
    } while (0)

typedef int rank_work(coll *c);

typedef struct plan {
    coll_options options;
    rank_work *work;
    pthread_t thread;
    char address[40];
} plan;

/* An address of this process alone. */
static plan plan_of(const char *transport, int rank, int ranks, rank_work *work) {
    plan p = {.options = {.transport = transport, .rank = rank, .ranks = ranks, .open_ms = OPEN_MS,
                          .timeout_ms = LONG_MS, .id = next_id},
              .work = work};
    snprintf(p.address, sizeof p.address, "127.%d.%d.%d:7001", 1 + (getpid() >> 16 & 127), getpid() >> 8 & 255,
             1 + (getpid() & 127));
    return p;
}

static int be_rank(plan *p) {
    coll *c;
    error err = {.text = ""};
    p->options.address = p->address;
    if (coll_open(&p->options, &c, &err) != ST_OK) {
        fprintf(stderr, "rank %d: %s\n", p->options.rank, err.text);
        return 1;
    }
    int rc = coll_reserve(c, MOST, NULL) == ST_OK ? p->work(c) : 1;
    coll_close(c);
    return rc;
}

static void *thread_main(void *arg) { return (void *)(intptr_t)be_rank(arg); }

/* Exit code of each rank; one that was killed: 128 + signal. */
static void run_processes(const char *transport, int ranks, int timeout_ms, rank_work *work, int code[COLL_RANKS_MAX]) {
    pid_t pid[COLL_RANKS_MAX];
    next_id++;
    plan p = plan_of(transport, 0, ranks, work);
    p.options.timeout_ms = timeout_ms;
    for (p.options.rank = 0; p.options.rank < ranks; p.options.rank++)
        if (!(pid[p.options.rank] = fork())) _exit(be_rank(&p));
    for (int r = 0; r < ranks; r++) {
        int ended, got;
        while ((got = waitpid(pid[r], &ended, WUNTRACED)) == pid[r] && WIFSTOPPED(ended)) {
            /* It stays stopped until the others have ended. */
            for (int other = 0; other < ranks; other++)
                if (other > r) waitid(P_PID, (id_t)pid[other], &(siginfo_t){0}, WEXITED | WNOWAIT);
            kill(pid[r], SIGKILL);
        }
        assert_int_equal(got, pid[r]);
        code[r] = WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended);
    }
}

static void all_is_well(const char *transport, int ranks, rank_work *work) {
    int code[COLL_RANKS_MAX];
    run_processes(transport, ranks, LONG_MS, work, code);
    for (int r = 0; r < ranks; r++)
        if (code[r]) fail_msg("%s, rank %d of %d: exit code %d", transport, r, ranks, code[r]);
}

/* ---- what is computed ---------------------------------------------------------------------------- */

static float number(int rank, size_t i, unsigned round) {
    uint32_t u = (uint32_t)i * 2654435761u + (uint32_t)rank * 40503u + round * 7919u + 1;
    u ^= u >> 15;
    u *= 2246822519u;
    u ^= u >> 13;
    return ((float)(int32_t)u / 65536) * (rank % 2 ? 1e-4f : 1);         /* so that the order of adding shows */
}

static int check_sum(coll *c, size_t count, unsigned round) {
    float *x = malloc(count * sizeof *x + 4);
    for (size_t i = 0; i < count; i++) x[i] = number(coll_rank(c), i, round);
    error err = {.text = ""};
    CHECK(coll_all_reduce(c, x, count, &err) == ST_OK);
    for (size_t i = 0; i < count; i++) {
        float sum = number(0, i, round);
        for (int r = 1; r < coll_ranks(c); r++) sum += number(r, i, round);
        CHECK(memcmp(&sum, &x[i], sizeof sum) == 0);
    }
    free(x);
    return 0;
}

static int sum_all(coll *c) {
    static const size_t counts[] = {0, 1, 7, 576, 4096, 4097, 300001, MOST};
    for (unsigned round = 0; round < 2; round++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            if (check_sum(c, counts[i], round)) return 1;
    return 0;
}

static int check_gather(coll *c, size_t unit) {
    size_t bytes[COLL_RANKS_MAX], all = 0, at = 0;
    for (int r = 0; r < coll_ranks(c); r++) all += bytes[r] = unit * (size_t)(r * 5 % 4) + (size_t)(r == 2);
    size_t own = bytes[coll_rank(c)];
    unsigned char *mine = malloc(own + 1), *out = malloc(all + 1);
    memset(mine, 'a' + coll_rank(c), own + 1);
    memset(out, 0, all + 1);
    error err = {.text = ""};
    CHECK(coll_all_gather(c, mine, out, bytes, &err) == ST_OK);
    for (int r = 0; r < coll_ranks(c); r++)
        for (size_t i = 0; i < bytes[r]; i++) CHECK(out[at++] == 'a' + r);
    CHECK(out[all] == 0);
    free(mine);
    free(out);
    return 0;
}

static int check_broadcast(coll *c, size_t bytes) {
    unsigned char *data = malloc(bytes + 1);
    for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)(coll_rank(c) ? 0 : i * 7 + bytes);
    error err = {.text = ""};
    CHECK(coll_broadcast(c, data, bytes, &err) == ST_OK);
    for (size_t i = 0; i < bytes; i++) CHECK(data[i] == (unsigned char)(i * 7 + bytes));
    free(data);
    return 0;
}

static int move_all(coll *c) {
    static const size_t sizes[] = {0, 1, 1000, 1 << 20, 3000001};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (check_gather(c, sizes[i]) || check_broadcast(c, sizes[i])) return 1;
    return 0;
}

static int mix(coll *c) {
    unsigned seed = 5;
    for (int i = 0; i < 400; i++) {
        seed = seed * 1103515245 + 12345;
        size_t size = (seed >> 16) % (i % 50 ? 3000 : 200000);
        int rc = seed >> 8 & 1 ? check_sum(c, size, seed) : seed >> 9 & 1 ? check_gather(c, size) : check_broadcast(c, size);
        if (rc) return 1;
    }
    return 0;
}

static void the_same_on_all(void **state) {
    (void)state;
    for (size_t t = 0; t < 2; t++)
        for (int ranks = 2; ranks <= RANKS; ranks++) {
            all_is_well(transports[t], ranks, sum_all);
            all_is_well(transports[t], ranks, move_all);
            all_is_well(transports[t], ranks, mix);
        }
    all_is_well("single", 1, sum_all);
    all_is_well("single", 1, move_all);
    all_is_well("shm", 1, mix);
    all_is_well("shm", COLL_RANKS_MAX, mix);
    all_is_well("tcp", COLL_RANKS_MAX, mix);
}

static void ranks_may_be_threads(void **state) {
    (void)state;
    for (size_t t = 0; t < 2; t++) {
        plan p[3];
        void *rc;
        next_id++;
        for (int r = 0; r < 3; r++) {
            p[r] = plan_of(transports[t], r, 3, mix);
            assert_int_equal(pthread_create(&p[r].thread, NULL, thread_main, &p[r]), 0);
        }
        for (int r = 0; r < 3; r++) {
            assert_int_equal(pthread_join(p[r].thread, &rc), 0);
            assert_null(rc);
        }
    }
}

/* ---- what goes wrong ----------------------------------------------------------------------------- */

/* The call fails as expected, soon enough, and so does every later one. */
static int check_end(coll *c, status a, status b, int64_t within_ms) {
    float x[8] = {0};
    error err = {.text = ""};
    int64_t began = clock_now_ms();
    status s = ST_OK;
    while (s == ST_OK) s = coll_all_reduce(c, x, 8, &err);
    fprintf(stderr, "rank %d: %s\n", coll_rank(c), err.text);
    CHECK(s == a || s == b);
    CHECK(clock_now_ms() - began <= within_ms);
    CHECK(err.text[0] && coll_broadcast(c, x, 8, &err) == s);
    return 0;
}

static int rank_1_dies(coll *c) {
    if (check_sum(c, 100, 1)) return 1;
    if (coll_rank(c) == 1) kill(getpid(), SIGKILL);
    return check_end(c, ST_PEER_LOST, ST_PEER_LOST, 5000);
}

static int rank_0_stops(coll *c) {
    if (check_sum(c, 100, 1)) return 1;
    if (coll_rank(c) == 0) kill(getpid(), SIGSTOP);
    return check_end(c, ST_DEADLINE, ST_PEER_LOST, 5000);      /* the second: another rank saw it first */
}

static int rank_2_does_something_else(coll *c) {
    float x[8] = {0};
    error err = {.text = ""};
    if (check_sum(c, 100, 1)) return 1;
    status s = coll_rank(c) == 2 ? coll_all_gather(c, x, (float[24]){0}, (size_t[]){32, 32, 32}, &err)
                                 : coll_all_reduce(c, x, 8, &err);
    CHECK(s == ST_INTERNAL || s == ST_PEER_LOST);
    return check_end(c, ST_INTERNAL, ST_PEER_LOST, 5000);
}

static int rank_1_ends(coll *c) { return coll_rank(c) == 1 ? 0 : check_end(c, ST_PEER_LOST, ST_PEER_LOST, 5000); }

static void *abort_soon(void *c) {
    usleep(100000);
    coll_abort(c);
    return NULL;
}

/* Rank 0 waits for rank 1, and is told to stop. */
static int rank_0_gives_up(coll *c) {
    pthread_t thread;
    if (coll_rank(c)) {
        usleep(200000);
        return check_end(c, ST_PEER_LOST, ST_PEER_LOST, 5000);
    }
    CHECK(pthread_create(&thread, NULL, abort_soon, c) == 0);
    int rc = check_end(c, ST_CANCELED, ST_CANCELED, 5000);
    CHECK(pthread_join(thread, NULL) == 0);
    return rc;
}

static void a_rank_lost_ends_the_group(void **state) {
    (void)state;
    static const struct { rank_work *work; int rank, code; } ways[] = {
        {rank_1_dies, 1, 128 + SIGKILL}, {rank_0_stops, 0, 128 + SIGKILL}, {rank_2_does_something_else, 0, 0},
        {rank_1_ends, 0, 0}, {rank_0_gives_up, 0, 0}};
    for (size_t t = 0; t < 2; t++)
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            int code[COLL_RANKS_MAX];
            run_processes(transports[t], 3, TIMEOUT_MS, ways[w].work, code);
            for (int r = 0; r < 3; r++)
                if (code[r] != (r == ways[w].rank ? ways[w].code : 0))
                    fail_msg("%s, way %zu: rank %d ended with %d", transports[t], w, r, code[r]);
        }
}

/* ---- opening ------------------------------------------------------------------------------------- */

static void refuse(coll_options o, status expected, const char *word) {
    coll *c = NULL;
    error err = {.text = ""};
    assert_int_equal(coll_open(&o, &c, &err), expected);
    assert_null(c);
    if (!strstr(err.text, word)) fail_msg("'%s' lacks '%s'", err.text, word);
}

static void open_refuses(void **state) {
    (void)state;
    plan p = plan_of("shm", 0, 2, NULL);
    coll_options o = p.options;
    o.address = p.address;
    o.open_ms = 100;
#define WITH(field, value) (o.field = (value), o)
    refuse(WITH(transport, "pigeon"), ST_UNSUPPORTED, "pigeon");
    refuse(WITH(transport, "single"), ST_BAD_INPUT, "2 ranks");
    o.transport = "shm";
    refuse(WITH(ranks, 17), ST_BAD_INPUT, "17 ranks");
    refuse(WITH(ranks, 0), ST_BAD_INPUT, "0 ranks");
    o.ranks = 2;
    refuse(WITH(rank, 2), ST_BAD_INPUT, "rank 2 of 2");
    refuse(WITH(rank, -1), ST_BAD_INPUT, "rank -1");
    o.rank = 0;
    refuse(WITH(timeout_ms, 0), ST_BAD_INPUT, "time-outs");
    o.timeout_ms = LONG_MS;
    o.id = ++next_id;
    for (size_t t = 0; t < 2; t++) {
        o.transport = transports[t];
        refuse(WITH(rank, 0), ST_DEADLINE, "rank 1");            /* did not come */
        refuse(WITH(rank, 1), ST_DEADLINE, "rank 0");
    }
    o.rank = 0;
    refuse(WITH(address, "localhost"), ST_BAD_INPUT, "HOST:PORT");
    refuse(WITH(address, NULL), ST_BAD_INPUT, "HOST:PORT");
#undef WITH
}

static void *open_one(void *arg) {
    plan *p = arg;
    coll *c = NULL;
    error err = {.text = ""};
    p->options.address = p->address;
    status s = coll_open(&p->options, &c, &err);
    coll_close(c);
    return (void *)(intptr_t)s;
}

/* Two ranks that do not fit each other: neither gets a group. */
static void strangers_are_refused(void **state) {
    (void)state;
    for (int way = 0; way < 2; way++) {
        plan p[2];
        void *got[2];
        next_id += 2;
        for (int r = 0; r < 2; r++) {
            p[r] = plan_of("tcp", r, 2, NULL);
            p[r].options.open_ms = 300;
            if (way == 0) p[r].options.id += (uint64_t)r;
            if (way == 1) p[r].options.ranks += r;
            assert_int_equal(pthread_create(&p[r].thread, NULL, open_one, &p[r]), 0);
        }
        for (int r = 0; r < 2; r++) assert_int_equal(pthread_join(p[r].thread, &got[r]), 0);
        for (int r = 0; r < 2; r++) {
            status s = (status)(intptr_t)got[r];
            if (s != ST_REFUSED && s != ST_PEER_LOST) fail_msg("way %d, rank %d: %s", way, r, status_name(s));
        }
    }
}

static int count_in(const char *folder, const char *prefix) {
    DIR *d = opendir(folder);
    int count = 0;
    for (struct dirent *e; d && (e = readdir(d));) count += strncmp(e->d_name, prefix, strlen(prefix)) == 0;
    if (d) closedir(d);
    return count;
}

static void nothing_is_left(void **state) {
    (void)state;
    int before = count_in("/proc/self/fd", "");
    int64_t live = mem_live();
    ranks_may_be_threads(NULL);
    open_refuses(NULL);
    assert_int_equal(count_in("/proc/self/fd", ""), before);
    assert_int_equal(mem_live(), live);
    char name[40];
    for (uint64_t id = first_id; id <= next_id; id++) {
        snprintf(name, sizeof name, "baton-%016llx", (unsigned long long)id);
        assert_int_equal(count_in("/dev/shm", name), 0);
    }
}

int main(void) {
    next_id = (uint64_t)getpid() << 32;
    first_id = next_id;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_on_all),       cmocka_unit_test(ranks_may_be_threads),
        cmocka_unit_test(a_rank_lost_ends_the_group), cmocka_unit_test(open_refuses),
        cmocka_unit_test(strangers_are_refused), cmocka_unit_test(nothing_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
