/* eng_prefix.c -- tests engine/prefix.c and eviction: examples, then 100,000 random operations a page
 * size against a naive model that keeps every indexed page's whole prefix and searches them all. */
#include "engine/pool_internal.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void finds_longest_prefix_and_tail(void **state) {
    (void)state;
    eng_pool *p = eng_pool_create(8, 4);
    const int32_t held[] = {1, 2, 3, 4, 5, 6, 7, 8}, fork[] = {1, 2, 3, 4, 5, 9, 9, 9};
    int32_t a[2], b[2], got[2], tail, shared;
    eng_pool_take(p, 2, ENG_PAGE_RUNNING, a);
    eng_pool_publish(p, 1, held, 8, a);
    eng_pool_take(p, 2, ENG_PAGE_RUNNING, b);
    eng_pool_publish(p, 1, fork, 8, b);                    /* b[0] stays private */

    assert_int_equal(eng_pool_match(p, 1, held, 8, got, &tail, &shared), 2);
    assert_memory_equal(got, a, sizeof a);
    assert_int_equal(tail, -1);
    assert_int_equal(shared, 0);
    eng_pool_give(p, got[0]), eng_pool_give(p, got[1]);

    const int32_t partly[] = {1, 2, 3, 4, 5, 6, 0, 0};
    assert_int_equal(eng_pool_match(p, 1, partly, 8, got, &tail, &shared), 1);
    assert_int_equal(got[0], a[0]);
    assert_int_equal(tail, a[1]);                          /* two tokens, the fork shares one */
    assert_int_equal(shared, 2);
    assert_int_equal(eng_pool_pins(p, a[1]), 2);
    eng_pool_give(p, got[0]), eng_pool_give(p, tail);

    assert_int_equal(eng_pool_match(p, 1, held, 3, got, &tail, &shared), 0);
    assert_int_equal(tail, a[0]);                          /* never more than count */
    assert_int_equal(shared, 3);
    eng_pool_give(p, tail);
    assert_int_equal(eng_pool_peek(p, 1, held, 8), 8);
    assert_int_equal(eng_pool_peek(p, 1, partly, 8), 6);
    assert_int_equal(eng_pool_peek(p, 1, held, 0), 0);
    assert_int_equal(eng_pool_peek(p, 2, held, 8), 0);     /* another tenant */
    assert_int_equal(eng_pool_peek(p, 1, held + 4, 4), 0); /* the same tokens at another place */

    for (int i = 0; i < 2; i++) eng_pool_give(p, a[i]), eng_pool_give(p, b[i]);
    int32_t counts[ENG_PAGE_STATES];
    eng_pool_counts(p, counts);
    assert_int_equal(counts[ENG_PAGE_CACHED], 3);
    eng_pool_destroy(p);
}

static void clear_cache_forgets_pinned_pages_too(void **state) {
    (void)state;
    eng_pool *p = eng_pool_create(4, 1);
    const int32_t tokens[] = {1, 2, 3};
    int32_t pages[3];
    eng_pool_take(p, 3, ENG_PAGE_RUNNING, pages);
    eng_pool_publish(p, 0, tokens, 3, pages);
    eng_pool_give(p, pages[0]);
    eng_pool_give(p, pages[1]);
    eng_pool_clear_cache(p);
    assert_int_equal(eng_pool_peek(p, 0, tokens, 3), 0);
    assert_int_equal(eng_pool_available(p), 3);
    eng_pool_give(p, pages[2]);
    int32_t counts[ENG_PAGE_STATES];
    eng_pool_counts(p, counts);
    assert_int_equal(counts[ENG_PAGE_FREE], 4);
    eng_pool_destroy(p);
}

/* ---- the naive model ---------------------------------------------------------------------------- */

enum { PAGES = 40, CHAIN_MAX = 8, P_MAX = 16, TOKENS_MAX = CHAIN_MAX * P_MAX, SEQS = 8, OPS = 100000 };

typedef struct naive_page {
    eng_page_state state;
    int pins;
    long used;                   /* when the last pin went */
    bool indexed;
    uint64_t salt;
    int count;                   /* tokens from the start of its sequence to its end */
    int32_t prefix[TOKENS_MAX];
} naive_page;

typedef struct sequence {
    bool live;
    uint64_t salt;
    int count, pages_count;
    int32_t tokens[TOKENS_MAX], pages[CHAIN_MAX];
} sequence;

static naive_page model[PAGES];
static sequence seqs[SEQS];
static eng_pool *pool;
static int P;
static long now;
static uint64_t dice;

static int roll(int sides) { return (int)(mix64(dice += 0x9E3779B97F4A7C15u) % (uint64_t)sides); }     /* splitmix64 */

/* b holds all of a's tokens and then more, or exactly them. */
static bool extends(const naive_page *b, const naive_page *a) {
    return b->indexed && b->salt == a->salt && b->count >= a->count &&
           memcmp(b->prefix, a->prefix, (size_t)a->count * 4) == 0;
}

static bool has_below(int page, bool pinned) {
    for (int i = 0; i < PAGES; i++)
        if (i != page && extends(&model[i], &model[page]) && (!pinned || model[i].pins)) return true;
    return false;
}

static int naive_available(void) {
    int n = 0;
    for (int i = 0; i < PAGES; i++)
        n += model[i].state == ENG_PAGE_FREE ||
             (model[i].state == ENG_PAGE_CACHED && !has_below(i, true));
    return n;
}

static int naive_victim(void) {
    int victim = -1;
    for (int i = 0; i < PAGES; i++)
        if (model[i].state == ENG_PAGE_CACHED && !has_below(i, false) &&
            (victim < 0 || model[i].used < model[victim].used))
            victim = i;
    return victim;
}

static int naive_find(uint64_t salt, const int32_t *tokens, int count) {
    for (int i = 0; i < PAGES; i++)
        if (model[i].indexed && model[i].salt == salt && model[i].count == count &&
            memcmp(model[i].prefix, tokens, (size_t)count * 4) == 0)
            return i;
    return -1;
}

/* How many tokens of page's own P go on where tokens[0..before) end, or 0. */
static int naive_shared(int page, uint64_t salt, const int32_t *tokens, int before, int count) {
    const naive_page *g = &model[page];
    if (!g->indexed || g->salt != salt || g->count != before + P ||
        memcmp(g->prefix, tokens, (size_t)before * 4) != 0)
        return 0;
    int n = 0;
    while (n < P && before + n < count && g->prefix[before + n] == tokens[before + n]) n++;
    return n;
}

static void naive_pin(int page) {
    if (model[page].pins++ == 0) model[page].state = ENG_PAGE_RUNNING;
}

static void give(int page) {
    eng_pool_give(pool, page);
    if (--model[page].pins) return;
    model[page].state = model[page].indexed ? ENG_PAGE_CACHED : ENG_PAGE_FREE;
    model[page].used = ++now;
}

static status take(int count, eng_page_state state, int32_t *pages) {
    bool enough = naive_available() >= count;
    status s = eng_pool_take(pool, count, state, pages);
    assert_int_equal(s, enough ? ST_OK : ST_AGAIN);
    for (int i = 0; i < count && enough; i++) {
        int free = 0;
        for (int j = 0; j < PAGES; j++) free += model[j].state == ENG_PAGE_FREE;
        if (free)
            assert_int_equal(model[pages[i]].state, ENG_PAGE_FREE);
        else
            assert_int_equal(pages[i], naive_victim());
        model[pages[i]] = (naive_page){.state = state, .pins = 1};
    }
    return s;
}

/* Matches and checks: equal pages, the longest tail, no token that differs. */
static int match(sequence *q) {
    int n = 0, best = 0;
    int32_t tail, shared;
    while ((n + 1) * P <= q->count && naive_find(q->salt, q->tokens, (n + 1) * P) >= 0) n++;
    for (int i = 0; i < PAGES; i++) {
        int s = naive_shared(i, q->salt, q->tokens, n * P, q->count);
        if (s > best) best = s;
    }
    assert_int_equal(eng_pool_peek(pool, q->salt, q->tokens, q->count), n * P + best);
    assert_int_equal(eng_pool_match(pool, q->salt, q->tokens, q->count, q->pages, &tail, &shared),
                     n);
    for (int i = 0; i < n; i++) {
        assert_int_equal(q->pages[i], naive_find(q->salt, q->tokens, (i + 1) * P));
        naive_pin(q->pages[i]);
    }
    assert_int_equal(shared, best);
    assert_int_equal(tail >= 0, best > 0);
    if (tail >= 0) {
        assert_int_equal(naive_shared(tail, q->salt, q->tokens, n * P, q->count), best);
        naive_pin(tail);
        give(tail);
    }
    return n;
}

static void end_sequence(sequence *q) {
    bool backwards = roll(2);
    for (int i = 0; i < q->pages_count; i++) give(q->pages[backwards ? q->pages_count - 1 - i : i]);
    q->live = false;
}

static void start_sequence(sequence *q) {
    *q = (sequence){.live = true, .salt = (uint64_t)roll(3), .count = 1 + roll(CHAIN_MAX * P)};
    int page_kind = 0;
    for (int i = 0; i < q->count; i++) {                   /* pages mostly alike, some fork inside */
        if (i % P == 0) page_kind = roll(4) ? 0 : roll(3);
        q->tokens[i] = roll(P * 4) ? page_kind : 7;
    }
    int n = match(q), needed = (q->count + P - 1) / P;
    bool promised = roll(2);
    q->pages_count = n;
    if (take(needed - n, promised ? ENG_PAGE_PROMISED : ENG_PAGE_RUNNING, q->pages + n) != ST_OK) {
        end_sequence(q);
        return;
    }
    q->pages_count = needed;
    if (promised && roll(4) == 0) {                        /* aborted before a frame came */
        end_sequence(q);
        return;
    }
    for (int i = n; i < needed && promised; i++) {
        eng_pool_mark(pool, q->pages[i], ENG_PAGE_LANDING);
        eng_pool_mark(pool, q->pages[i], ENG_PAGE_RUNNING);
        model[q->pages[i]].state = ENG_PAGE_RUNNING;
    }
}

static void publish(const sequence *q) {
    int count = roll(q->count + 1);
    eng_pool_publish(pool, q->salt, q->tokens, count, q->pages);
    for (int i = 0; (i + 1) * P <= count; i++) {
        if (naive_find(q->salt, q->tokens, (i + 1) * P) >= 0) continue;
        naive_page *g = &model[q->pages[i]];
        g->indexed = true;
        g->salt = q->salt;
        g->count = (i + 1) * P;
        memcpy(g->prefix, q->tokens, (size_t)g->count * 4);
    }
}

static void send(const sequence *q) {
    int page = q->pages[roll(q->pages_count)];
    eng_page_state to = roll(2) ? ENG_PAGE_SENDING : ENG_PAGE_RUNNING;
    eng_pool_share(pool, page);
    naive_pin(page);
    eng_pool_mark(pool, page, to);
    model[page].state = to;
    give(page);
}

static void clear_cache(void) {
    eng_pool_clear_cache(pool);
    for (int i = 0; i < PAGES; i++) {
        model[i].indexed = false;
        if (model[i].state == ENG_PAGE_CACHED) model[i].state = ENG_PAGE_FREE;
    }
}

static void check_all(void) {
    int32_t counts[ENG_PAGE_STATES], expected[ENG_PAGE_STATES] = {0}, sum = 0;
    eng_pool_counts(pool, counts);
    for (int i = 0; i < PAGES; i++) {
        expected[model[i].state]++;
        assert_int_equal(eng_pool_pins(pool, i), model[i].pins);
    }
    for (int s = 0; s < ENG_PAGE_STATES; s++) sum += counts[s];
    assert_int_equal(sum, PAGES);
    assert_memory_equal(counts, expected, sizeof counts);
    assert_int_equal(eng_pool_available(pool), naive_available());
}

/* What a watcher of the changes knows; it hears of them late, and not of all at once. */
static uint64_t told[PAGES];

static int hear_changes(int max) {
    int32_t pages[PAGES];
    uint64_t numbers[PAGES];
    int n = eng_pool_changes(pool, max, pages, numbers);
    for (int i = 0; i < n; i++) told[pages[i]] = numbers[i];
    return n;
}

static void check_told(void) {
    assert_in_range(hear_changes(PAGES), 0, PAGES);
    assert_int_equal(hear_changes(PAGES), 0);
    for (int i = 0; i < PAGES; i++) {
        uint64_t number = model[i].salt;
        for (int at = 0; at < model[i].count; at += P) number = prefix_number(number, model[i].prefix + at, P);
        assert_true(told[i] == (model[i].indexed ? number : 0));
    }
}

static void random_run(int page_tokens, uint64_t mask, uint64_t seed) {
    P = page_tokens;
    dice = seed;
    now = 0;
    memset(model, 0, sizeof model);
    memset(seqs, 0, sizeof seqs);
    memset(told, 0, sizeof told);
    assert_non_null(pool = eng_pool_create(PAGES, P));
    pool->bucket_mask &= mask;
    for (int op = 0; op < OPS; op++) {
        sequence *q = &seqs[roll(SEQS)];
        int what = roll(10);
        if (!q->live)
            start_sequence(q);
        else if (what < 4)
            publish(q);
        else if (what < 7)
            send(q);
        else
            end_sequence(q);
        if (roll(3000) == 0) clear_cache();
        check_all();
        if (roll(4) == 0) hear_changes(1 + roll(4));
        if (roll(200) == 0) check_told();
    }
    for (int i = 0; i < SEQS; i++)
        if (seqs[i].live) end_sequence(&seqs[i]);
    check_all();
    int32_t counts[ENG_PAGE_STATES];
    eng_pool_counts(pool, counts);
    assert_int_equal(counts[ENG_PAGE_FREE] + counts[ENG_PAGE_CACHED], PAGES);
    assert_int_equal(eng_pool_available(pool), PAGES);
    eng_pool_destroy(pool);
}

static void equals_naive_model(void **state) {
    (void)state;
    random_run(1, UINT64_MAX, 11);
    random_run(4, UINT64_MAX, 12);
    random_run(16, UINT64_MAX, 13);
}

/* Every page in one bucket: only the comparison keeps contents and tenants apart. */
static void equals_naive_model_when_all_hashes_collide(void **state) {
    (void)state;
    random_run(1, 0, 21);
    random_run(4, 0, 22);
    random_run(16, 0, 23);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_longest_prefix_and_tail),
        cmocka_unit_test(clear_cache_forgets_pinned_pages_too),
        cmocka_unit_test(equals_naive_model),
        cmocka_unit_test(equals_naive_model_when_all_hashes_collide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
