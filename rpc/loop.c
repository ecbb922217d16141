/* loop.c -- one thread, one completion queue, timers and posts.
 *
 * Everything that happens on a loop is one of three things: gRPC finished an operation (its tag says
 * whom to tell), a timer is due, or another thread posted a function. The thread sleeps in
 * grpc_completion_queue_next() until the earliest timer; I/O makes progress only in there, so nothing on
 * a loop may block.
 *
 * A post wakes the sleeping thread by an empty batch on a call that goes nowhere (its channel is a
 * "lame" one): gRPC answers an empty batch by putting its tag on the queue at once, from any thread.
 * At most one such wake-up is on its way. */
#include "rpc/internal.h"
#include <assert.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <stdatomic.h>

typedef struct post {
    void (*fn)(void *arg);
    void *arg;
} post;

struct rpc_timer {
    rpc_loop *loop;
    int64_t due_ms;
    void (*fn)(void *arg);
    void *arg;
    size_t at;                   /* its index in the heap */
};

struct rpc_loop {
    grpc_completion_queue *queue;
    grpc_channel *lame;
    grpc_call *waker;
    rpc_tag wake;
    pthread_mutex_t lock;        /* guards posts, posts_head, posts_count, wake_sent */
    post *posts;                 /* a ring of RPC_POSTS_MAX */
    size_t posts_head, posts_count;
    bool wake_sent;
    atomic_bool stopping;
    rpc_timer **heap;            /* binary heap, earliest first */
    size_t timers, timers_max;
    int live;                    /* servers, channels, streams not freed yet */
    pthread_t thread;
    bool threaded;
};

grpc_completion_queue *rpc_loop_queue(rpc_loop *l) { return l->queue; }
void rpc_loop_join(rpc_loop *l) { l->live++; }
void rpc_loop_leave(rpc_loop *l) { assert(l->live > 0), l->live--; }

/* ---- posts -------------------------------------------------------------------------------------- */

static void wake_up(rpc_loop *l) {
    grpc_call_error rc = grpc_call_start_batch(l->waker, NULL, 0, &l->wake, NULL);
    assert(rc == GRPC_CALL_OK);
}

/* Runs what was posted before it began; what those functions post themselves comes with the next
 * wake-up, so that two loops posting to each other cannot starve I/O. */
static void run_posts(void *owner, bool ok) {
    (void)ok;
    rpc_loop *l = owner;
    pthread_mutex_lock(&l->lock);
    l->wake_sent = false;
    for (size_t left = l->posts_count; left > 0; left--) {
        post p = l->posts[l->posts_head];
        l->posts_head = (l->posts_head + 1) % RPC_POSTS_MAX;
        l->posts_count--;
        pthread_mutex_unlock(&l->lock);
        p.fn(p.arg);
        pthread_mutex_lock(&l->lock);
    }
    pthread_mutex_unlock(&l->lock);
}

status rpc_loop_post(rpc_loop *l, void (*fn)(void *arg), void *arg) {
    pthread_mutex_lock(&l->lock);
    bool full = l->posts_count == RPC_POSTS_MAX, wake = false;
    if (!full) {
        l->posts[(l->posts_head + l->posts_count++) % RPC_POSTS_MAX] = (post){fn, arg};
        wake = !l->wake_sent;
        l->wake_sent = true;
    }
    pthread_mutex_unlock(&l->lock);
    if (wake) wake_up(l);
    return full ? ST_AGAIN : ST_OK;
}

/* ---- timers: a binary heap ---------------------------------------------------------------------- */

static void put(rpc_loop *l, rpc_timer *t, size_t at) {
    l->heap[at] = t;
    t->at = at;
}

/* Moves t from its place, whose content may be overwritten, to where it belongs. */
static void sift(rpc_loop *l, rpc_timer *t, size_t at) {
    for (size_t up; at > 0 && l->heap[up = (at - 1) / 2]->due_ms > t->due_ms; at = up)
        put(l, l->heap[up], at);
    for (size_t down; (down = 2 * at + 1) < l->timers; at = down) {
        if (down + 1 < l->timers && l->heap[down + 1]->due_ms < l->heap[down]->due_ms) down++;
        if (l->heap[down]->due_ms >= t->due_ms) break;
        put(l, l->heap[down], at);
    }
    put(l, t, at);
}

static void take_out(rpc_loop *l, rpc_timer *t) {
    assert(l->heap[t->at] == t);
    rpc_timer *last = l->heap[--l->timers];
    if (last != t) sift(l, last, t->at);
}

status rpc_timer_start(rpc_loop *l, int64_t delay_ms, void (*fn)(void *arg), void *arg,
                       rpc_timer **out) {
    if (l->timers == l->timers_max) {
        size_t more = l->timers_max ? 2 * l->timers_max : 64;
        rpc_timer **heap = mem_realloc(l->heap, more * sizeof *heap);
        if (!heap) return ST_NO_MEMORY;
        l->heap = heap;
        l->timers_max = more;
    }
    rpc_timer *t = mem_alloc(sizeof *t);
    if (!t) return ST_NO_MEMORY;
    *t = (rpc_timer){.loop = l, .fn = fn, .arg = arg};
    t->due_ms = clock_now_ms() + (delay_ms > 0 ? delay_ms : 0);
    sift(l, t, l->timers++);
    *out = t;
    return ST_OK;
}

void rpc_timer_cancel(rpc_timer *t) {
    if (!t) return;
    take_out(t->loop, t);
    mem_free(t);
}

static void run_due(rpc_loop *l) {
    if (l->timers == 0) return;
    int64_t now = clock_now_ms();
    while (l->timers > 0 && l->heap[0]->due_ms <= now) {
        rpc_timer *t = l->heap[0];
        void (*fn)(void *) = t->fn;
        void *arg = t->arg;
        rpc_timer_cancel(t);
        fn(arg);
    }
}

/* ---- running ------------------------------------------------------------------------------------ */

/* clock_now_ms() and gRPC's monotonic clock are one: nothing has to be read to say when. */
static gpr_timespec next_due(const rpc_loop *l) {
    if (l->timers == 0) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    int64_t ms = l->heap[0]->due_ms;
    return (gpr_timespec){.tv_sec = ms / 1000, .tv_nsec = (int32_t)(ms % 1000) * 1000000, .clock_type = GPR_CLOCK_MONOTONIC};
}

static bool step(rpc_loop *l, gpr_timespec until) {
    grpc_event e = grpc_completion_queue_next(l->queue, until, NULL);
    if (e.type == GRPC_OP_COMPLETE) {
        rpc_tag *tag = e.tag;
        tag->fn(tag->owner, e.success != 0);
    }
    run_due(l);
    return e.type != GRPC_QUEUE_SHUTDOWN;
}

status rpc_loop_create(rpc_loop **out, error *err) {
    rpc_loop *l = mem_zalloc(1, sizeof *l);
    if (!l) goto fail;
    l->posts = mem_alloc(RPC_POSTS_MAX * sizeof *l->posts);
    if (!l->posts) goto free_loop;
    rpc_options_quiet();
    grpc_init();
    pthread_mutex_init(&l->lock, NULL);
    l->queue = grpc_completion_queue_create_for_next(NULL);
    l->lame = grpc_lame_client_channel_create("loop", GRPC_STATUS_UNAVAILABLE, "wakes a loop");
    l->waker = grpc_channel_create_call(l->lame, NULL, 0, l->queue,
                                        grpc_slice_from_static_string("/wake"), NULL,
                                        gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    l->wake = (rpc_tag){run_posts, l};
    *out = l;
    return ST_OK;
free_loop:
    mem_free(l);
fail:
    return error_set(err, ST_NO_MEMORY, "no memory for an event loop");
}

void rpc_loop_run(rpc_loop *l) {
    while (!atomic_load(&l->stopping)) step(l, next_due(l));
    atomic_store(&l->stopping, false);
}

static void *run_thread(void *arg) {
    rpc_loop_run(arg);
    return NULL;
}

status rpc_loop_start(rpc_loop *l, const char *name) {
    assert(!l->threaded);
    if (pthread_create(&l->thread, NULL, run_thread, l) != 0) return ST_NO_MEMORY;
    pthread_setname_np(l->thread, name); /* refused above 15 characters; then it keeps ours */
    l->threaded = true;
    return ST_OK;
}

static void nothing(void *arg) { (void)arg; }

void rpc_loop_stop(rpc_loop *l) {
    atomic_store(&l->stopping, true);
    rpc_loop_post(l, nothing, NULL); /* full: a wake-up is on its way anyhow */
}

void rpc_loop_destroy(rpc_loop *l) {
    if (!l) return;
    if (l->threaded) {
        rpc_loop_stop(l);
        pthread_join(l->thread, NULL);
    }
    while (l->live > 0) step(l, next_due(l)); /* the last streams end here */
    while (l->timers > 0) rpc_timer_cancel(l->heap[0]);
    run_posts(l, true);
    grpc_call_unref(l->waker);
    grpc_channel_destroy(l->lame);
    grpc_completion_queue_shutdown(l->queue);
    while (step(l, gpr_inf_future(GPR_CLOCK_MONOTONIC))) {}
    grpc_completion_queue_destroy(l->queue);
    pthread_mutex_destroy(&l->lock);
    mem_free(l->heap);
    mem_free(l->posts);
    mem_free(l);
    grpc_shutdown_blocking();
}
