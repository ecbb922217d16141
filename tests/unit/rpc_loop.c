/* rpc_loop.c -- tests rpc/loop.c: timers in order, posts from many threads, full and empty. */
#include "rpc_fixture.h"
#include <pthread.h>

typedef struct record {
    rpc_loop *loop;
    int count, order[600];
} record;

typedef struct mark {
    record *r;
    int number;
} mark;

static void note(void *arg) {
    mark *m = arg;
    m->r->order[m->r->count++] = m->number;
}

static void stop(void *arg) { rpc_loop_stop(arg); }

static void timers_run_in_order_or_never(void **state) {
    (void)state;
    error err;
    record r = {0};
    mark marks[300];
    rpc_timer *timers[300], *last;
    assert_int_equal(rpc_loop_create(&r.loop, &err), ST_OK);
    srand(3);
    for (int i = 0; i < 300; i++) {
        int due = rand() % 50;
        marks[i] = (mark){&r, due};
        assert_int_equal(rpc_timer_start(r.loop, due, note, &marks[i], &timers[i]), ST_OK);
    }
    for (int i = 0; i < 300; i += 3) rpc_timer_cancel(timers[i]);
    int64_t began = clock_now_ms();
    assert_int_equal(rpc_timer_start(r.loop, 120, stop, r.loop, &last), ST_OK);
    rpc_loop_run(r.loop);
    assert_in_range(clock_now_ms() - began, 119, 60000);
    assert_int_equal(r.count, 200);
    for (int i = 1; i < r.count; i++) assert_true(r.order[i - 1] <= r.order[i] + 1);
    rpc_loop_destroy(r.loop);
}

/* ---- posts --------------------------------------------------------------------------------------- */

enum { POSTERS = 4, EACH = 5000 };

typedef struct poster {
    rpc_loop *loop;
    int next;                    /* the loop's thread: the number expected next from this poster */
    int wrong;
} poster;

typedef struct parcel {
    poster *from;
    int number;
} parcel;

static void open_parcel(void *arg) {
    parcel *p = arg;
    if (p->number != p->from->next++) p->from->wrong++;
    mem_free(p);
}

static void *post_all(void *arg) {
    poster *p = arg;
    for (int i = 0; i < EACH; i++) {
        parcel *m = mem_alloc(sizeof *m);
        *m = (parcel){p, i};
        while (rpc_loop_post(p->loop, open_parcel, m) == ST_AGAIN) sched_yield();
    }
    return NULL;
}

static void posts_of_many_threads_keep_their_order(void **state) {
    (void)state;
    error err;
    rpc_loop *l;
    pthread_t threads[POSTERS];
    poster posters[POSTERS];
    int64_t held = mem_live();
    assert_int_equal(rpc_loop_create(&l, &err), ST_OK);
    assert_int_equal(rpc_loop_start(l, "loop"), ST_OK);
    for (int i = 0; i < POSTERS; i++) {
        posters[i] = (poster){.loop = l};
        pthread_create(&threads[i], NULL, post_all, &posters[i]);
    }
    for (int i = 0; i < POSTERS; i++) pthread_join(threads[i], NULL);
    rpc_loop_destroy(l); /* runs what still waits */
    for (int i = 0; i < POSTERS; i++) {
        assert_int_equal(posters[i].next, EACH);
        assert_int_equal(posters[i].wrong, 0);
    }
    assert_int_equal(mem_live(), held);
}

static void full_is_an_answer(void **state) {
    (void)state;
    error err;
    rpc_loop *l;
    int n = 0;
    assert_int_equal(rpc_loop_create(&l, &err), ST_OK);
    while (rpc_loop_post(l, stop, l) == ST_OK) n++;
    assert_int_equal(n, RPC_POSTS_MAX);
    rpc_loop_run(l);
    rpc_loop_destroy(l);
}

static void no_memory_makes_no_loop(void **state) {
    (void)state;
    int64_t held = mem_live();
    for (int n = 1; n <= 2; n++) {
        rpc_loop *l = NULL;
        error err;
        mem_fail_at(n);
        assert_int_equal(rpc_loop_create(&l, &err), ST_NO_MEMORY);
        mem_fail_at(0);
        assert_null(l);
    }
    assert_int_equal(mem_live(), held);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(timers_run_in_order_or_never),
        cmocka_unit_test(posts_of_many_threads_keep_their_order),
        cmocka_unit_test(full_is_an_answer),
        cmocka_unit_test(no_memory_makes_no_loop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
