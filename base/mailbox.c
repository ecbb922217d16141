/* mailbox.c -- a ring of pointers under a mutex. Messages are per request or per chunk, never per
 * token and row, so a lock-free ring would buy nothing that a profile shows. */
#include "base/base.h"
#include <assert.h>
#include <pthread.h>
#include <time.h>

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t there;
    size_t head, count, capacity;
    bool woken;                  /* mailbox_wake() since the last wait */
    void *slots[];
};

mailbox *mailbox_create(size_t capacity) {
    if (capacity > (SIZE_MAX - sizeof(mailbox)) / sizeof(void *)) return NULL;
    mailbox *m = mem_zalloc(1, sizeof *m + capacity * sizeof(void *));
    if (!m) return NULL;
    m->capacity = capacity;
    pthread_mutex_init(&m->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->there, &attr);
    pthread_condattr_destroy(&attr);
    return m;
}

status mailbox_post(mailbox *m, void *message) {
    assert(message);
    pthread_mutex_lock(&m->lock);
    bool full = m->count == m->capacity;
    if (!full) {
        m->slots[(m->head + m->count++) % m->capacity] = message;
        pthread_cond_signal(&m->there);
    }
    pthread_mutex_unlock(&m->lock);
    return full ? ST_AGAIN : ST_OK;
}

static void *take_locked(mailbox *m) {
    if (!m->count) return NULL;
    void *message = m->slots[m->head];
    m->head = (m->head + 1) % m->capacity;
    m->count--;
    return message;
}

void *mailbox_take(mailbox *m) {
    pthread_mutex_lock(&m->lock);
    void *message = take_locked(m);
    pthread_mutex_unlock(&m->lock);
    return message;
}

void *mailbox_wait(mailbox *m, int timeout_ms) {
    struct timespec until = {0};
    if (timeout_ms >= 0) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += timeout_ms / 1000;
        until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&m->lock);
    int rc = 0;
    while (!m->count && !m->woken && rc == 0)
        rc = timeout_ms < 0 ? pthread_cond_wait(&m->there, &m->lock)
                            : pthread_cond_timedwait(&m->there, &m->lock, &until);
    m->woken = false;
    void *message = take_locked(m);
    pthread_mutex_unlock(&m->lock);
    return message;
}

void mailbox_wake(mailbox *m) {
    pthread_mutex_lock(&m->lock);
    m->woken = true;
    pthread_cond_signal(&m->there);
    pthread_mutex_unlock(&m->lock);
}

size_t mailbox_count(mailbox *m) {
    pthread_mutex_lock(&m->lock);
    size_t count = m->count;
    pthread_mutex_unlock(&m->lock);
    return count;
}

void mailbox_destroy(mailbox *m) {
    if (!m) return;
    assert(m->count == 0);
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->there);
    mem_free(m);
}
