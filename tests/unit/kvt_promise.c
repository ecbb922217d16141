/* kvt_promise.c -- the table of what a receiver has agreed to take. */
#include "kvtransfer/kvtransfer.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { L = 3, K0 = 5, K = 3, ROW = 8, TYPE = 5, FIRST = 16, END = 216, LEASE = 1000 };
static const kvt_geometry geometry = {.layers = L, .head_first = K0, .heads = K, .row_bytes = ROW, .type = TYPE};
static int owner_mark;

static kvt_promises *one_promise(void) {
    kvt_promises *p = kvt_promises_create(4);
    assert_non_null(p);
    assert_int_equal(
        kvt_promises_add(p, 1, 2, &geometry, FIRST, END, LEASE, 0, &owner_mark), ST_OK);
    return p;
}

/* h counts from the promise's first head, here and in end_of(). */
static kvt_frame box(uint32_t l, uint32_t layers, uint32_t h, uint32_t heads, uint32_t t,
                     uint32_t tokens) {
    return (kvt_frame){.kind = KVT_DATA, .ticket = 1, .epoch = 2, .layer_first = l, .layers = layers,
                       .head_first = K0 + h, .heads = heads, .token_first = t, .tokens = tokens,
                       .type = TYPE, .payload_bytes = layers * 2 * heads * tokens * ROW};
}

static kvt_frame end_of(uint32_t h, uint32_t heads) {
    return (kvt_frame){.kind = KVT_END, .ticket = 1, .epoch = 2, .head_first = K0 + h, .heads = heads};
}

static kvt_verdict judge(kvt_promises *p, kvt_frame f) {
    void *owner;
    return kvt_promises_judge(p, &f, 0, &owner);
}

/* Every verdict, one row each; nothing of it changes the promise. */
static void verdicts(void **state) {
    (void)state;
    kvt_promises *p = one_promise();
    kvt_frame whole = box(0, L, 0, K, FIRST, END - FIRST);
    struct {
        kvt_frame f;
        kvt_verdict expected;
        bool owned;
    } rows[32];
    int n = 0;
#define ROW_OF(change, verdict, owned_)                                                             \
    do {                                                                                            \
        kvt_frame f = whole;                                                                        \
        change;                                                                                     \
        rows[n].f = f, rows[n].expected = verdict, rows[n++].owned = owned_;                        \
    } while (0)
    ROW_OF(f.ticket = 9, KVT_REFUSE_TICKET, false);
    ROW_OF(f.epoch = 1, KVT_REFUSE_EPOCH, false);
    ROW_OF(f.epoch = 3, KVT_REFUSE_EPOCH, false);
    ROW_OF((f.kind = KVT_END, f.epoch = 1), KVT_REFUSE_EPOCH, false);
    ROW_OF(f.kind = KVT_END, KVT_SHORT, true);
    ROW_OF((f.kind = KVT_END, f.heads = 0), KVT_REFUSE_BOUNDS, true);
    ROW_OF((f.kind = KVT_END, f.head_first = 0, f.heads = K0), KVT_REFUSE_BOUNDS, true);
    ROW_OF((f.kind = KVT_END, f.head_first = 0, f.heads = K0 + 1), KVT_SHORT, true);
    ROW_OF((f.kind = KVT_END, f.head_first = K0 + K), KVT_REFUSE_BOUNDS, true);
    ROW_OF((f.kind = KVT_END, f.head_first = K0 + K - 1, f.heads = UINT32_MAX), KVT_SHORT, true);
    ROW_OF(f.kind = KVT_ABORT, KVT_ABORTED, true);
    ROW_OF(f.layers = 0, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.heads = 0, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.tokens = 0, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.layers = L + 1, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.layer_first = 1, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.layer_first = UINT32_MAX, KVT_REFUSE_BOUNDS, true);
    ROW_OF((f.layer_first = UINT32_MAX, f.layers = 2), KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.heads = K + 1, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.head_first = UINT32_MAX, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.head_first = 0, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.head_first = K0 - 1, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.head_first = K0 + 1, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.token_first = FIRST - 1, KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.tokens = END - FIRST + 1, KVT_REFUSE_BOUNDS, true);
    ROW_OF((f.token_first = END, f.tokens = UINT32_MAX), KVT_REFUSE_BOUNDS, true);
    ROW_OF(f.type = TYPE + 1, KVT_REFUSE_TYPE, true);
    ROW_OF(f.payload_bytes--, KVT_REFUSE_TYPE, true);
    ROW_OF(f.payload_bytes++, KVT_REFUSE_TYPE, true);
    for (int i = 0; i < n; i++) {
        void *owner = &rows;
        kvt_verdict v = kvt_promises_judge(p, &rows[i].f, 0, &owner);
        assert_string_equal(kvt_verdict_name(v), kvt_verdict_name(rows[i].expected));
        assert_ptr_equal(owner, rows[i].owned ? &owner_mark : NULL);
        assert_int_equal(kvt_promises_landed(p, 1), 0);
    }
    assert_int_equal(judge(p, whole), KVT_TAKE);
    assert_int_equal(judge(p, whole), KVT_DUPLICATE);
    whole.kind = KVT_END;
    assert_int_equal(judge(p, whole), KVT_DONE);
    kvt_promises_destroy(p);
}

static void check_changes_nothing(void **state) {
    (void)state;
    kvt_promises *p = one_promise();
    kvt_frame f = box(0, L, 0, K, FIRST, 10);
    void *owner;
    for (int i = 0; i < 3; i++) assert_int_equal(kvt_promises_check(p, &f, &owner), KVT_TAKE);
    assert_int_equal(kvt_promises_landed(p, 1), 0);
    kvt_promises_destroy(p);
}

/* Boxes at random against a plain array: every verdict, the readable prefix, the end. */
static void random_boxes_against_model(void **state) {
    (void)state;
    srand(3);
    for (int round = 0; round < 60; round++) {
        bool landed[L][K][END - FIRST] = {0};
        uint32_t missing = L * K * (END - FIRST), missing_of[K];
        for (int h = 0; h < K; h++) missing_of[h] = L * (END - FIRST);
        kvt_promises *p = one_promise();
        for (int step = 0; missing && step < 4000; step++) {
            uint32_t l = (uint32_t)rand() % L, h = (uint32_t)rand() % K;
            uint32_t t = (uint32_t)rand() % (END - FIRST), layers = 1 + (uint32_t)rand() % (L - l);
            uint32_t heads = 1 + (uint32_t)rand() % (K - h);
            uint32_t tokens = 1 + (uint32_t)rand() % (step < 100 ? END - FIRST - t : 1);
            bool seen = false;
            for (uint32_t a = l; a < l + layers; a++)
                for (uint32_t b = h; b < h + heads; b++)
                    for (uint32_t c = t; c < t + tokens; c++) seen |= landed[a][b][c];
            assert_int_equal(judge(p, box(l, layers, h, heads, FIRST + t, tokens)),
                             seen ? KVT_DUPLICATE : KVT_TAKE);
            for (uint32_t a = l; !seen && a < l + layers; a++)
                for (uint32_t b = h; b < h + heads; b++) memset(&landed[a][b][t], 1, tokens);
            if (!seen) missing -= layers * heads * tokens;
            for (uint32_t b = h; !seen && b < h + heads; b++) missing_of[b] -= layers * tokens;
            uint32_t prefix = 0;
            for (bool whole = true; whole && prefix < END - FIRST; prefix += whole)
                for (int i = 0; i < L * K; i++) whole &= landed[i / K][i % K][prefix];
            assert_int_equal(kvt_promises_landed(p, 1), prefix);
            assert_int_equal(judge(p, end_of(0, K)), missing ? KVT_SHORT : KVT_DONE);
            bool lacks = false;
            for (uint32_t b = h; b < h + heads; b++) lacks |= missing_of[b] != 0;
            kvt_frame end = end_of(h, heads);
            void *owner;
            kvt_verdict v = kvt_promises_check(p, &end, &owner);
            assert_int_equal(v, lacks ? KVT_SHORT : heads < K ? KVT_PART : KVT_DONE);
        }
        kvt_promises_destroy(p);
    }
}

/* Three senders, a head each, their boxes and ENDs in any order: done at the last END and not before, though
 * all rows may have landed long ago. An END said twice is taken again, a row sent twice is not. */
static void ends_of_three_senders(void **state) {
    (void)state;
    static const int orders[6][K] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (int i = 0; i < 12; i++) {
        const int *order = orders[i % 6];
        bool rows_first = i >= 6;
        kvt_promises *p = one_promise();
        for (uint32_t h = 0; rows_first && h < K; h++)
            assert_int_equal(judge(p, box(0, L, h, 1, FIRST, END - FIRST)), KVT_TAKE);
        for (int at = 0; at < K; at++) {
            uint32_t h = (uint32_t)order[at];
            if (!rows_first) {
                assert_int_equal(judge(p, end_of(h, 1)), KVT_SHORT);
                assert_int_equal(kvt_promises_landed(p, 1), 0);
                assert_int_equal(judge(p, box(0, L, h, 1, FIRST, END - FIRST)), KVT_TAKE);
            }
            assert_int_equal(judge(p, box(L - 1, 1, h, 1, END - 1, 1)), KVT_DUPLICATE);
            assert_int_equal(judge(p, end_of(h, 1)), at == K - 1 ? KVT_DONE : KVT_PART);
            if (at < K - 1) assert_int_equal(judge(p, end_of(h, 1)), KVT_PART);
        }
        assert_int_equal(kvt_promises_landed(p, 1), END - FIRST);
        kvt_promises_destroy(p);
    }
}

/* Two senders whose heads are more than the promise's: an END counts for what lies inside. */
static void end_is_cut_with_the_promise(void **state) {
    (void)state;
    kvt_promises *p = one_promise();
    kvt_frame lower = {.kind = KVT_END, .ticket = 1, .epoch = 2, .heads = K0 + 1};
    kvt_frame upper = {.kind = KVT_END, .ticket = 1, .epoch = 2, .head_first = K0 + 1, .heads = 2 * K};
    assert_int_equal(judge(p, box(0, L, 0, 1, FIRST, END - FIRST)), KVT_TAKE);
    assert_int_equal(judge(p, upper), KVT_SHORT);
    assert_int_equal(judge(p, lower), KVT_PART);
    assert_int_equal(judge(p, box(0, L, 1, K - 1, FIRST, END - FIRST)), KVT_TAKE);
    assert_int_equal(judge(p, upper), KVT_DONE);
    kvt_promises_destroy(p);
}

/* Each END is checked before it is judged, and a check leaves no head ended. */
static void check_ends_no_head(void **state) {
    (void)state;
    kvt_promises *p = one_promise();
    kvt_frame first = end_of(0, 1), rest = end_of(1, K - 1);
    void *owner;
    assert_int_equal(judge(p, box(0, L, 0, K, FIRST, END - FIRST)), KVT_TAKE);
    assert_int_equal(kvt_promises_check(p, &first, &owner), KVT_PART);
    assert_ptr_equal(owner, &owner_mark);
    assert_int_equal(kvt_promises_check(p, &rest, &owner), KVT_PART);
    assert_int_equal(judge(p, first), KVT_PART);
    assert_int_equal(kvt_promises_check(p, &rest, &owner), KVT_DONE);
    kvt_promises_destroy(p);
}

static void add_refuses(void **state) {
    (void)state;
    static const struct {
        kvt_geometry g;
        uint32_t first, end;
    } bad[] = {
        {{0, 0, 1, 1, 0}, 0, 1}, {{1, 0, 0, 1, 0}, 0, 1}, {{1, 0, 1, 0, 0}, 0, 1}, {{1, 0, 1, 1, 0}, 5, 5},
        {{1, 0, 1, 1, 0}, 6, 5}, {{1, 0, 1, KVT_PAYLOAD_MAX, 0}, 0, 1}, {{UINT32_MAX, 0, 2, 1, 0}, 0, 1},
        {{UINT32_MAX, 0, UINT32_MAX, 1, 0}, 0, UINT32_MAX}, {{64, 0, 8, 256, 0}, 0, UINT32_MAX},
        {{1, UINT32_MAX, 1, 1, 0}, 0, 1},
    };
    kvt_promises *p = kvt_promises_create(2);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(kvt_promises_add(p, 1, 1, &bad[i].g, bad[i].first, bad[i].end, 1, 0, p),
                         ST_BAD_INPUT);
    assert_int_equal(kvt_promises_add(p, 1, 1, &geometry, 0, 9, 1, 0, p), ST_OK);
    for (uint32_t epoch = 0; epoch < 3; epoch++)
        assert_int_equal(kvt_promises_add(p, 1, epoch, &geometry, 0, 9, 1, 0, p), ST_BAD_INPUT);
    assert_int_equal(kvt_promises_add(p, 2, 1, &geometry, 0, 9, 1, 0, p), ST_OK);
    assert_int_equal(kvt_promises_add(p, 3, 1, &geometry, 0, 9, 1, 0, p), ST_AGAIN);
    assert_true(kvt_promises_remove(p, 1));
    assert_false(kvt_promises_remove(p, 1));
    assert_int_equal(kvt_promises_add(p, 1, 2, &geometry, 0, 9, 1, 0, p), ST_OK);
    assert_ptr_equal(kvt_promises_owner(p, 1), p);
    assert_null(kvt_promises_owner(p, 7));
    assert_int_equal(kvt_promises_count(p), 2);
    kvt_promises_destroy(p);
}

/* Only a box that lands renews; what expires says how much had landed. */
static void leases(void **state) {
    (void)state;
    uint64_t ticket;
    uint32_t landed;
    void *owner;
    kvt_promises *p = one_promise();
    kvt_frame f = box(0, L, 0, K, FIRST, 10), end = end_of(0, K);
    assert_int_equal(kvt_promises_next_expiry(p), LEASE);
    assert_int_equal(kvt_promises_judge(p, &f, 600, &owner), KVT_TAKE);
    assert_int_equal(kvt_promises_judge(p, &f, 900, &owner), KVT_DUPLICATE);
    assert_int_equal(kvt_promises_judge(p, &end, 900, &owner), KVT_SHORT);
    assert_false(kvt_promises_expire(p, 1599, &ticket, &owner, &landed));
    assert_int_equal(kvt_promises_next_expiry(p), 1600);
    assert_true(kvt_promises_expire(p, 1600, &ticket, &owner, &landed));
    assert_int_equal(ticket, 1);
    assert_int_equal(landed, 10);
    assert_ptr_equal(owner, &owner_mark);
    assert_int_equal(judge(p, box(0, 1, 0, 1, FIRST + 20, 1)), KVT_REFUSE_TICKET);
    assert_true(kvt_promises_next_expiry(p) == INT64_MAX);
    assert_int_equal(kvt_promises_count(p), 0);
    kvt_promises_destroy(p);
}

static void allocation_fails(void **state) {
    (void)state;
    int64_t live = mem_live();
    mem_fail_at(1);
    assert_null(kvt_promises_create(4));
    kvt_promises *p = kvt_promises_create(4);
    mem_fail_at(1);
    assert_int_equal(kvt_promises_add(p, 1, 1, &geometry, 0, 9, 1, 0, p), ST_NO_MEMORY);
    assert_int_equal(kvt_promises_count(p), 0);
    assert_int_equal(kvt_promises_add(p, 1, 1, &geometry, 0, 9, 1, 0, p), ST_OK);
    kvt_promises_destroy(p);
    assert_int_equal(mem_live(), live);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verdicts),    cmocka_unit_test(check_changes_nothing),
        cmocka_unit_test(add_refuses), cmocka_unit_test(random_boxes_against_model),
        cmocka_unit_test(leases),      cmocka_unit_test(allocation_fails),
        cmocka_unit_test(ends_of_three_senders),
        cmocka_unit_test(end_is_cut_with_the_promise),
        cmocka_unit_test(check_ends_no_head),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
