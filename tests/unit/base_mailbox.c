/* base_mailbox.c -- tests base/mailbox.c: order, full, waiting and waking, many senders. */
#include "base/base.h"
#include <pthread.h>
#include <setjmp.h>
#include <cmocka.h>

static void keeps_order_and_says_full(void **state) {
    (void)state;
    int v[4];
    mailbox *m = mailbox_create(3);
    assert_null(mailbox_take(m));
    for (int round = 0; round < 5; round++) {              /* the ring goes round */
        for (int i = 0; i < 3; i++) assert_int_equal(mailbox_post(m, &v[i]), ST_OK);
        assert_int_equal(mailbox_post(m, &v[3]), ST_AGAIN);
        assert_int_equal(mailbox_count(m), 3);
        assert_ptr_equal(mailbox_take(m), &v[0]);
        assert_int_equal(mailbox_post(m, &v[3]), ST_OK);
        for (int i = 1; i < 4; i++) assert_ptr_equal(mailbox_wait(m, -1), &v[i]);
    }
    mailbox_destroy(m);
    mailbox_destroy(NULL);
    assert_null(mailbox_create(SIZE_MAX));
    mem_fail_at(1);
    assert_null(mailbox_create(1));
    mem_fail_at(0);
}

static void waits_no_longer_than_asked(void **state) {
    (void)state;
    mailbox *m = mailbox_create(1);
    int64_t before = clock_now_ms();
    assert_null(mailbox_wait(m, 30));
    assert_true(clock_now_ms() - before >= 29);
    assert_null(mailbox_wait(m, 0));
    mailbox_wake(m);                                       /* remembered: nobody was waiting */
    before = clock_now_ms();
    assert_null(mailbox_wait(m, 10000));
    assert_true(clock_now_ms() - before < 60000);
    mailbox_destroy(m);
}

static void *wake_it(void *m) {
    mailbox_wake(m);
    return NULL;
}

static void wake_ends_an_endless_wait(void **state) {
    (void)state;
    mailbox *m = mailbox_create(1);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, wake_it, m), 0);
    assert_null(mailbox_wait(m, -1));
    pthread_join(thread, NULL);
    mailbox_destroy(m);
}

enum { SENDERS = 4, MESSAGES = 5000 };

typedef struct message {
    int sender, number;
} message;

typedef struct sender {
    mailbox *m;
    int index;
} sender;

static void *send_all(void *ctx) {
    sender *s = ctx;
    for (int i = 0; i < MESSAGES; i++) {
        message *it = mem_alloc(sizeof *it);
        *it = (message){s->index, i};
        while (mailbox_post(s->m, it) == ST_AGAIN) sched_yield();
    }
    return NULL;
}

static void many_senders_one_receiver(void **state) {
    (void)state;
    mailbox *m = mailbox_create(16);
    pthread_t threads[SENDERS];
    sender senders[SENDERS];
    int next[SENDERS] = {0};
    int64_t live = mem_live();
    for (int i = 0; i < SENDERS; i++) {
        senders[i] = (sender){m, i};
        assert_int_equal(pthread_create(&threads[i], NULL, send_all, &senders[i]), 0);
    }
    for (int got = 0; got < SENDERS * MESSAGES;) {
        message *it = mailbox_wait(m, 1000);
        if (!it) continue;
        assert_int_equal(it->number, next[it->sender]++);  /* each sender's order is kept */
        mem_free(it);
        got++;
    }
    for (int i = 0; i < SENDERS; i++) pthread_join(threads[i], NULL);
    assert_int_equal(mem_live(), live);
    mailbox_destroy(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_order_and_says_full),
        cmocka_unit_test(waits_no_longer_than_asked),
        cmocka_unit_test(wake_ends_an_endless_wait),
        cmocka_unit_test(many_senders_one_receiver),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
