/* Tests kvtransfer/seal.c and what receive.c makes of sealed frames: bytes put into a link by hand, no socket. What is not
 * whole, not of this key, not new or not sealed never lands, is counted by its reason, and closes the link or not as the
 * table at the head of frame.c says. */
#include "kvtransfer/internal.h"
#include <openssl/evp.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { L = 2, K = 2, ROW = 24, TOKENS = 16, PART = 4, BYTES = L * 2 * K * PART * ROW };     /* a frame of PART tokens */

static const kvt_geometry geometry = {.layers = L, .heads = K, .row_bytes = ROW, .type = 1};
static const unsigned char key[KVT_KEY_BYTES] = {1, 2, 3}, other_key[KVT_KEY_BYTES] = {1, 2, 4};

/* A frame as it stands on the wire. */
typedef struct wire {
    size_t bytes;
    unsigned char at[KVT_FRAME_BYTES + KVT_SEAL_BYTES + BYTES + 64];
} wire;

static unsigned char byte_of(uint64_t ticket, uint32_t token, int i) { return (unsigned char)(ticket * 31 + token * 7 + (unsigned)i * 13 + 5); }

static kvt_frame data(uint64_t ticket, uint32_t token) {
    return (kvt_frame){.kind = KVT_DATA, .ticket = ticket, .epoch = 1, .layers = L, .heads = K, .token_first = token, .tokens = PART,
                       .type = 1, .payload_bytes = BYTES};
}

static kvt_frame last(uint64_t ticket, kvt_frame_kind kind) {
    return (kvt_frame){.kind = kind, .ticket = ticket, .epoch = 1, .heads = K};
}

static kvt_cipher *cipher;       /* the senders' */

static int open_cipher(void **state) {
    (void)state;
    log_setup("test", LOG_ERROR);
    return (cipher = kvt_cipher_create()) ? 0 : -1;
}

static int close_cipher(void **state) {
    (void)state;
    kvt_cipher_destroy(cipher);
    return 0;
}

static kvt_sealing sender(const unsigned char *with) {
    kvt_sealing s;
    assert_true(kvt_sealing_begin(&s, with));
    return s;
}

static void fill(const kvt_frame *f, unsigned char *payload) {
    for (uint32_t i = 0; i < f->payload_bytes; i++) payload[i] = byte_of(f->ticket, f->token_first, (int)i);
}

static wire sealed(kvt_sealing *s, kvt_frame f) {
    wire w = {.bytes = KVT_FRAME_BYTES + KVT_SEAL_BYTES + f.payload_bytes};
    fill(&f, w.at + KVT_FRAME_BYTES + KVT_SEAL_BYTES);
    kvt_seal(cipher, s, &f, w.at);
    return w;
}

static wire clear(kvt_frame f) {
    wire w = {.bytes = KVT_FRAME_BYTES + f.payload_bytes};
    fill(&f, w.at + KVT_FRAME_BYTES);
    if (f.payload_bytes) f.payload_crc = kvt_crc32c(0, w.at + KVT_FRAME_BYTES, f.payload_bytes);
    kvt_frame_encode(&f, w.at);
    return w;
}

static bool opens(const wire *w, const unsigned char *with) {
    static unsigned char payload[KVT_PAYLOAD_MAX];       /* a damaged header may say so much */
    kvt_frame f;
    memcpy(payload, w->at + KVT_FRAME_BYTES + KVT_SEAL_BYTES, w->bytes - KVT_FRAME_BYTES - KVT_SEAL_BYTES);
    if (kvt_frame_decode(w->at, &f, NULL) != ST_OK) return false;
    return f.sealed && kvt_unseal(cipher, with, &f, w->at, w->at + KVT_FRAME_BYTES, payload);
}

/* The header says what it says with a right CRC. */
static void sum_header(wire *w) {
    uint32_t crc = kvt_crc32c(0, w->at, 60);
    for (int i = 0; i < 4; i++) w->at[60 + i] = (unsigned char)(crc >> 8 * i);
}

/* ---- seal and open -------------------------------------------------------------------------------------- */

static void what_was_sealed_opens(void **state) {
    (void)state;
    kvt_sealing s = sender(key), t = sender(key);
    wire one = sealed(&s, data(7, 0)), again = sealed(&s, data(7, 0)), others = sealed(&t, data(7, 0)), end = sealed(&s, last(7, KVT_END));
    unsigned char plain[BYTES], *payload = one.at + KVT_FRAME_BYTES + KVT_SEAL_BYTES;
    kvt_frame f;
    assert_true(opens(&one, key) && opens(&again, key) && opens(&others, key) && opens(&end, key));
    assert_int_equal(kvt_frame_decode(end.at, &f, NULL), ST_OK);
    assert_true(f.sealed && f.number == 2 && f.payload_crc == 0);
    fill(&(kvt_frame){.ticket = 7, .payload_bytes = BYTES}, plain);
    for (int i = 0; i + ROW <= BYTES; i++) assert_memory_not_equal(payload, plain + i, ROW);
    assert_memory_not_equal(payload, again.at + KVT_FRAME_BYTES + KVT_SEAL_BYTES, BYTES);      /* another nonce each */
    assert_memory_not_equal(payload, others.at + KVT_FRAME_BYTES + KVT_SEAL_BYTES, BYTES);
    assert_int_equal(kvt_frame_decode(one.at, &f, NULL), ST_OK);
    assert_true(kvt_unseal(cipher, key, &f, one.at, one.at + KVT_FRAME_BYTES, payload));
    assert_memory_equal(payload, plain, BYTES);
}

/* By the format at the head of seal.c, without seal.c. */
static void format_is_as_told(void **state) {
    (void)state;
    kvt_sealing s = sender(key);
    s.number = 0x01020304;
    wire w = sealed(&s, data(7, 4));
    unsigned char nonce[12] = {[8] = 4, 3, 2, 1}, plain[BYTES], expected[BYTES];
    int n;
    memcpy(nonce, w.at + 64, 8);
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    assert_int_equal(EVP_DecryptInit_ex(c, EVP_aes_256_gcm(), NULL, key, nonce), 1);
    assert_int_equal(EVP_DecryptUpdate(c, NULL, &n, w.at, 60), 1);
    assert_int_equal(EVP_DecryptUpdate(c, plain, &n, w.at + 88, BYTES), 1);
    assert_int_equal(EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, 16, w.at + 72), 1);
    assert_int_equal(EVP_DecryptFinal_ex(c, plain, &n), 1);
    EVP_CIPHER_CTX_free(c);
    fill(&(kvt_frame){.ticket = 7, .token_first = 4, .payload_bytes = BYTES}, expected);
    assert_memory_equal(plain, expected, BYTES);
}

static void every_flipped_bit_is_found(void **state) {
    (void)state;
    kvt_sealing s = sender(key);
    wire w = sealed(&s, data(7, 0)), end = sealed(&s, last(7, KVT_END));
    for (size_t bit = 0; bit < 8 * w.bytes; bit++) {
        wire hurt = w;
        hurt.at[bit / 8] ^= (unsigned char)(1 << bit % 8);
        if (bit / 8 < 60) sum_header(&hurt);
        assert_false(opens(&hurt, key));
    }
    for (size_t bit = 0; bit < 8 * end.bytes; bit++) {
        wire hurt = end;
        hurt.at[bit / 8] ^= (unsigned char)(1 << bit % 8);
        if (bit / 8 < 60) sum_header(&hurt);
        assert_false(opens(&hurt, key));
    }
    assert_false(opens(&w, other_key));
    assert_true(opens(&w, key));
}

static void keys_are_random(void **state) {
    (void)state;
    unsigned char a[KVT_KEY_BYTES] = {0}, b[KVT_KEY_BYTES] = {0}, none[KVT_KEY_BYTES] = {0};
    kvt_sealing s = sender(key), t = sender(key);
    assert_true(kvt_key_make(a) && kvt_key_make(b));
    assert_memory_not_equal(a, b, sizeof a);
    assert_memory_not_equal(s.salt, t.salt, sizeof s.salt);
    kvt_key_wipe(a, sizeof a);
    assert_memory_equal(a, none, sizeof a);
}

/* ---- into a link ------------------------------------------------------------------------------------------ */

static int lands, ended, landed;
static status ended_as;
static kvt_node *node;

static void land(void *ctx, const kvt_frame *box, const void *payload) {
    const unsigned char *at = payload;
    (void)ctx;
    lands++;
    for (int i = 0; i < BYTES; i++) assert_int_equal(at[i], byte_of(box->ticket, box->token_first, i));
}

static void told(void *ctx, status s, uint32_t tokens) {
    (void)ctx;
    ended++;
    ended_as = s;
    landed = (int)tokens;
}

static const kvt_sink sink = {land, told};

static kvt_link *open_link(void) {
    kvt_link *l = kvt_link_create(node, NULL, false, "peer");
    assert_non_null(l);
    l->state = LINK_READY;
    return l;
}

/* Ticket 7 is promised with this key, 8 with the other, 9 with none. */
static kvt_link *begin(void) {
    lands = ended = landed = 0;
    node = kvt_node_create(8, "pair");
    assert_int_equal(kvt_promise(node, 7, 1, &geometry, 0, TOKENS, 60000, key, &sink, NULL), ST_OK);
    assert_int_equal(kvt_promise(node, 8, 1, &geometry, 0, TOKENS, 60000, other_key, &sink, NULL), ST_OK);
    assert_int_equal(kvt_promise(node, 9, 1, &geometry, 0, TOKENS, 60000, NULL, &sink, NULL), ST_OK);
    return open_link();
}

static void finish(void) { kvt_node_destroy(node); }

static void feed(kvt_link *l, const wire *w) {
    const unsigned char *from = w->at;
    for (size_t left = w->bytes; left && l->state != LINK_DEAD;) {
        void *into;
        size_t n = kvt_link_want(l, &into);
        if (n > left) n = left;
        memcpy(into, from, n);
        kvt_link_took(l, n);
        from += n;
        left -= n;
    }
}

/* What the link has answered since it was last asked; ST_COUNT: nothing. */
static status answered(kvt_link *l) {
    kvt_frame f;
    if (!l->control_bytes) return ST_COUNT;
    assert_int_equal(l->control_bytes, KVT_FRAME_BYTES);
    assert_int_equal(kvt_frame_decode(l->control, &f, NULL), ST_OK);
    assert_true(f.kind == KVT_ACK && !f.sealed);
    l->control_bytes = 0;
    return (status)f.code;
}

typedef struct lookup {
    const char *reason;
    int64_t of, all;
} lookup;

static void look(const metric *m, void *ctx) {
    lookup *x = ctx;
    if (strcmp(m->name, "baton_kv_frames_refused_total")) return;
    x->all += metric_get(m);
    if (strstr(m->labels, x->reason)) x->of = metric_get(m);
}

static lookup refused(const char *reason) {
    lookup x = {reason, 0, 0};
    metrics_each(look, &x);
    return x;
}

/* Feeds it: it is counted once, by this reason, and does not land. */
static void is_refused(kvt_link *l, const wire *w, const char *reason, bool closes) {
    lookup before = refused(reason);
    int was = lands;
    feed(l, w);
    lookup after = refused(reason);
    assert_int_equal(after.of - before.of, 1);
    assert_int_equal(after.all - before.all, 1);
    assert_int_equal(lands, was);
    assert_int_equal(l->state == LINK_DEAD, closes);
}

static void a_send_lands(void **state) {
    (void)state;
    kvt_link *l = begin();
    kvt_sealing s = sender(key);
    for (uint32_t t = 0; t < TOKENS; t += PART) {
        wire w = sealed(&s, data(7, t));
        feed(l, &w);
    }
    assert_int_equal(lands, TOKENS / PART);
    wire end = sealed(&s, last(7, KVT_END));
    feed(l, &end);
    assert_int_equal(answered(l), ST_OK);
    assert_int_equal(ended, 1);
    assert_true(ended_as == ST_OK && landed == TOKENS);
    finish();
}

/* How a frame of tokens 4..7 is spoiled that follows a good one of tokens 0..3, by what is at `at` of it. */
static void changed_frames_close_the_link(void **state) {
    (void)state;
    static const int places[] = {36 /* token_first */, 56 /* number */, 64 /* salt */, 72 /* tag */, 87, 88 /* payload */, 87 + BYTES};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        kvt_link *l = begin();
        kvt_sealing s = sender(key);
        wire good = sealed(&s, data(7, 0)), bad = sealed(&s, data(7, 4));
        feed(l, &good);
        bad.at[places[i]] ^= 8; /* token_first 12: it would be a box that is wanted */
        sum_header(&bad);
        is_refused(l, &bad, "tag", true);
        assert_int_equal(ended, 1); /* this link has brought rows */
        assert_true(ended_as == ST_PEER_LOST && landed == PART);
        finish();
    }
}

static void other_keys_close_the_link(void **state) {
    (void)state;
    kvt_frame as_other = data(8, 4);
    kvt_link *l = begin();
    kvt_sealing s = sender(key), t = sender(other_key);
    wire good = sealed(&s, data(7, 0)), wrong = sealed(&t, data(7, 4));
    feed(l, &good);
    is_refused(l, &wrong, "tag", true);
    finish();
    l = begin();
    good = sealed(&s, data(7, 0));
    wrong = sealed(&s, as_other); /* of the other ticket, by the right sender of this one */
    feed(l, &good);
    is_refused(l, &wrong, "tag", true);
    assert_int_equal(ended, 1);   /* 7; 8 waits for its own sender */
    finish();
    l = begin();
    wrong = sealed(&t, data(8, 4));
    wrong.at[8] = 7;              /* a frame of that ticket's own sender, with this one's ticket written on it */
    sum_header(&wrong);
    is_refused(l, &wrong, "tag", true);
    finish();
}

/* Frames that came already, or before one that came. Also by another link: who recorded them has none of ours. */
static void replays_close_the_link(void **state) {
    (void)state;
    for (int by = 0; by < 2; by++) {
        kvt_link *l = begin(), *again = by ? open_link() : l;
        kvt_sealing s = sender(key);
        wire one = sealed(&s, data(7, 0)), two = sealed(&s, data(7, 4)), three = sealed(&s, data(7, 8));
        feed(l, &two);
        feed(l, &three);
        assert_int_equal(lands, 2);
        is_refused(l, &two, "duplicate", false); /* its rows have landed: it is not even opened */
        is_refused(again, &one, "replay", true);
        assert_int_equal(ended, by ? 0 : 1);     /* the link that carried its rows is another one */
        finish();
    }
    kvt_link *l = begin();
    kvt_sealing s = sender(key);
    kvt_frame half = last(7, KVT_END);
    half.heads = 1;
    wire rows[TOKENS / PART], end;
    for (uint32_t t = 0; t < TOKENS / PART; t++) {
        rows[t] = sealed(&s, data(7, t * PART));
        feed(l, &rows[t]);
    }
    end = sealed(&s, half);
    feed(l, &end);
    assert_int_equal(answered(l), ST_OK);
    is_refused(l, &end, "replay", true);
    assert_int_equal(ended, 0);   /* it has said its END */
    finish();
}

static void stale_frames_leave_the_link(void **state) {
    (void)state;
    kvt_link *l = begin();
    kvt_sealing s = sender(key);
    kvt_frame old = data(7, 0);
    old.epoch = 0;
    wire w = sealed(&s, old);
    is_refused(l, &w, "epoch", false);
    assert_int_equal(answered(l), ST_PEER_STALE);
    w = sealed(&s, data(7, 0));
    kvt_revoke(node, 7);
    is_refused(l, &w, "ticket", false);
    assert_int_equal(answered(l), ST_PEER_STALE);
    assert_int_equal(kvt_promise(node, 7, 1, &geometry, 0, TOKENS, 60000, other_key, &sink, NULL), ST_OK);
    is_refused(l, &w, "tag", true);       /* promised anew, with a key of its own */
    finish();
}

static void one_byte_more_or_less(void **state) {
    (void)state;
    kvt_sealing s = sender(key);
    for (int by = -1; by <= 1; by += 2) {
        kvt_link *l = begin();            /* honestly sealed, of a size that its box does not have */
        kvt_frame f = data(7, 0);
        f.payload_bytes = (uint32_t)(BYTES + by);
        wire w = sealed(&s, f), next = sealed(&s, data(7, 4));
        is_refused(l, &w, "type", false);
        assert_int_equal(answered(l), ST_BAD_INPUT);
        feed(l, &next);                   /* the stream goes on behind it */
        assert_int_equal(lands, 1);
        finish();
    }
    kvt_link *l = begin();                /* lost on the way: the next frame's first byte is taken for the last */
    wire w = sealed(&s, data(7, 0)), next = sealed(&s, data(7, 4));
    w.bytes--;
    feed(l, &w);
    is_refused(l, &next, "tag", true);
    finish();
    l = begin();                          /* and one too many */
    w = sealed(&s, data(7, 0));
    w.at[w.bytes++] = 0;
    feed(l, &w);
    is_refused(l, &next, "header", true);
    assert_int_equal(lands, 1);
    finish();
}

static void unsealed_for_sealed_and_the_reverse(void **state) {
    (void)state;
    kvt_link *l = begin();
    kvt_sealing s = sender(key);
    wire w = clear(data(7, 0)), next = clear(data(7, 4));
    is_refused(l, &w, "sealing", false);
    assert_int_equal(answered(l), ST_REFUSED);
    is_refused(l, &next, "sealing", false);
    assert_int_equal(answered(l), ST_COUNT);             /* told once for a run */
    w = clear(last(7, KVT_END));
    is_refused(l, &w, "sealing", false);
    assert_int_equal(answered(l), ST_REFUSED);
    w = clear(last(7, KVT_ABORT));
    is_refused(l, &w, "sealing", false);
    assert_int_equal(answered(l), ST_COUNT);
    w = sealed(&s, data(9, 0));
    is_refused(l, &w, "sealing", false);
    assert_int_equal(answered(l), ST_REFUSED);
    w = sealed(&s, last(9, KVT_ABORT));
    is_refused(l, &w, "sealing", false);
    assert_int_equal(ended, 0);
    w = clear(data(9, 0));                               /* and the link still takes what is right */
    feed(l, &w);
    w = sealed(&s, data(7, 0));
    feed(l, &w);
    assert_int_equal(lands, 2);
    finish();
}

/* Who reads the wire knows the ticket. A link with a frame of it that is not the sender's closes, and that is all. */
static void forgers_end_nothing(void **state) {
    (void)state;
    static const kvt_frame_kind kinds[] = {KVT_DATA, KVT_END, KVT_ABORT};
    kvt_link *l = begin();
    kvt_sealing s = sender(key), forger = sender(other_key);
    wire w = sealed(&s, data(7, 0));
    feed(l, &w);
    for (int i = 0; i < 3; i++) {
        kvt_link *bad = open_link();
        w = sealed(&forger, kinds[i] == KVT_DATA ? data(7, 4) : last(7, kinds[i]));
        is_refused(bad, &w, "tag", true);
    }
    assert_int_equal(ended, 0);
    for (uint32_t t = PART; t < TOKENS; t += PART) {
        w = sealed(&s, data(7, t));
        feed(l, &w);
    }
    w = sealed(&s, last(7, KVT_END));
    feed(l, &w);
    assert_true(ended == 1 && ended_as == ST_OK);
    finish();
}

static void senders_are_bounded(void **state) {
    (void)state;
    kvt_link *l = begin();
    for (int i = 0; i < KVT_SENDERS_MAX; i++) {        /* an END that names none of its heads: refused, but sealed */
        kvt_sealing s = sender(key);
        kvt_frame none = last(7, KVT_END);
        none.head_first = K;
        wire w = sealed(&s, none);
        is_refused(l, &w, "bounds", false);
        assert_int_equal(answered(l), ST_BAD_INPUT);
    }
    kvt_sealing s = sender(key);
    s.number = 1;                         /* none of those was so far */
    wire w = sealed(&s, data(7, 0));
    is_refused(l, &w, "replay", true);
    finish();
}

/* ---- a send ------------------------------------------------------------------------------------------------ */

static void pack(void *ctx, const kvt_frame *box, void *out) {
    (void)ctx;
    fill(box, out);
}

static void sent(void *ctx, status s, uint64_t bytes, int64_t wire_us, const char *why) {
    (void)bytes, (void)wire_us, (void)why;
    *(status *)ctx = s;
}

static void a_send_is_sealed_and_wiped(void **state) {
    (void)state;
    static const kvt_source source = {.pack = pack, .ended = sent};
    static const unsigned char nothing[sizeof(kvt_sealing)];
    kvt_send *s;
    status end = ST_COUNT;
    node = kvt_node_create(4, "pair");
    kvt_link *l = kvt_link_create(node, NULL, true, "127.0.0.1:1");
    l->state = LINK_READY;
    assert_int_equal(kvt_send_open(node, "127.0.0.1:1", 7, 1, &geometry, 1000, key, &source, &end, &s), ST_OK);
    kvt_send_push(s, 0, PART);
    kvt_send_dirty(node);
    assert_true(kvt_send_fill(l));
    wire w = {.bytes = l->run[0].iov_len};
    assert_true(l->runs == 1 && w.bytes == KVT_FRAME_BYTES + KVT_SEAL_BYTES + BYTES);
    memcpy(w.at, l->run[0].iov_base, w.bytes);
    assert_true(opens(&w, key));
    kvt_send_abort(s);
    kvt_send_dirty(node);
    assert_int_equal(end, ST_CANCELED);
    assert_int_equal(l->control_bytes, KVT_FRAME_BYTES + KVT_SEAL_BYTES);
    w.bytes = l->control_bytes;
    memcpy(w.at, l->control, w.bytes);
    assert_true(opens(&w, key));
    assert_memory_equal(&s->sealing, nothing, sizeof nothing);
    kvt_send_close(s);
    finish();
}

static void what_stays_on_the_machine_is_not_sealed(void **state) {
    (void)state;
    static const kvt_source source = {.pack = pack, .ended = sent};
    kvt_send *s;
    node = kvt_node_create(4, "pair");
    node->transport = &kvt_shm;
    assert_false(kvt_node_leaves_machine(node));
    assert_int_equal(kvt_promise(node, 7, 1, &geometry, 0, TOKENS, 60000, key, &sink, NULL), ST_UNSUPPORTED);
    assert_int_equal(kvt_send_open(node, "127.0.0.1:1", 7, 1, &geometry, 1000, key, &source, NULL, &s), ST_UNSUPPORTED);
    node->transport = &kvt_tcp;
    assert_true(kvt_node_leaves_machine(node));
    finish();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_sealed_opens),
        cmocka_unit_test(format_is_as_told),
        cmocka_unit_test(every_flipped_bit_is_found),
        cmocka_unit_test(keys_are_random),
        cmocka_unit_test(a_send_lands),
        cmocka_unit_test(changed_frames_close_the_link),
        cmocka_unit_test(other_keys_close_the_link),
        cmocka_unit_test(replays_close_the_link),
        cmocka_unit_test(stale_frames_leave_the_link),
        cmocka_unit_test(one_byte_more_or_less),
        cmocka_unit_test(unsealed_for_sealed_and_the_reverse),
        cmocka_unit_test(forgers_end_nothing),
        cmocka_unit_test(senders_are_bounded),
        cmocka_unit_test(a_send_is_sealed_and_wiped),
        cmocka_unit_test(what_stays_on_the_machine_is_not_sealed),
    };
    return cmocka_run_group_tests(tests, open_cipher, close_cipher);
}
