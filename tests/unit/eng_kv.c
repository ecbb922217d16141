/* Tests engine/kv.c: boxes of KV between pages of different size, type and back end. */
#include "tests/unit/tiny_gguf.h"
#include "engine/cpu/pages.h"
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>

enum { L = 2, K = 2, HEAD = 32, TOKENS = 41, TYPES = 4 };

typedef struct rig {
    tiny_gguf file;
    eng_gguf *g;
    eng_model *m;
} rig;

static rig open_rig(int H) {
    rig r = {.file = tiny_gguf_build(&(tiny_options){.type = ENG_F32, .D = 64, .H = H, .K = K})};
    error err = {.text = ""};
    if (eng_gguf_open_memory(r.file.data, r.file.bytes, "tiny", &r.g, &err) != ST_OK ||
        eng_model_open(r.g, &(eng_options){.threads = 1, .tokens_max = 64}, &r.m, &err) != ST_OK)
        fail_msg("%s", err.text);
    return r;
}

static void close_rig(rig *r) {
    eng_model_close(r->m);
    eng_gguf_close(r->g);
    tiny_gguf_free(&r->file);
}

static eng_kv *pages_of(rig *r, int page, eng_kv_type type, int32_t *blocks) {
    eng_kv *kv;
    int count = (TOKENS + page - 1) / page;
    assert_int_equal(eng_kv_create(r->m, count + 1, page, type, &kv, NULL), ST_OK);
    for (int i = 0; i < count; i++) blocks[i] = count - i;
    return kv;
}

/* A value that tells where it stands; below 2,048, so exact in F16. */
static float value(int l, int is_v, int head, int token, int d) {
    return (float)(((((l * 2 + is_v) * K + head) * TOKENS + token) * HEAD + d) % 2039);
}

static size_t fill_box(const eng_kv_box *b, float *out) {
    size_t n = 0;
    for (int l = b->layer_first; l < b->layer_first + b->layers; l++)
        for (int is_v = 0; is_v < 2; is_v++)
            for (int head = b->head_first; head < b->head_first + b->heads; head++)
                for (int t = b->token_first; t < b->token_first + b->tokens; t++)
                    for (int d = 0; d < HEAD; d++) out[n++] = value(l, is_v, head, t, d);
    return n;
}

static float wire[2][L * 2 * K * TOKENS * HEAD], back[L * 2 * K * TOKENS * HEAD];

/* In as one box, out as another page size and type, moved in pieces that begin and end inside pages. */
static void boxes_survive_any_pages(void **state) {
    (void)state;
    static const struct { int from, to, piece; eng_kv_type a, b, travel; } cases[] = {
        {16, 16, 16, ENG_KV_F16, ENG_KV_F16, ENG_KV_F16}, {16, 32, 7, ENG_KV_F16, ENG_KV_F16, ENG_KV_F16},
        {8, 5, 11, ENG_KV_F32, ENG_KV_F16, ENG_KV_F16},   {5, 16, 3, ENG_KV_F16, ENG_KV_F32, ENG_KV_F32},
        {1, 64, 41, ENG_KV_F32, ENG_KV_F32, ENG_KV_F16},
    };
    rig r = open_rig(2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t at[TOKENS], bt[TOKENS];
        eng_kv *a = pages_of(&r, cases[i].from, cases[i].a, at), *b = pages_of(&r, cases[i].to, cases[i].b, bt);
        eng_kv_box all = {0, L, 0, K, 0, TOKENS, ENG_KV_F32};
        assert_int_equal(eng_kv_box_bytes(a, &all), sizeof wire[0]);
        assert_int_equal(eng_kv_page_bytes(a), 2 * L * K * HEAD * cases[i].from * (cases[i].a ? 2 : 4));
        assert_int_equal(fill_box(&all, wire[0]) * sizeof(float), sizeof wire[0]);
        eng_kv_unpack(a, at, &all, wire[0]);
        for (int t = 0; t < TOKENS; t += cases[i].piece)
            for (int l = 0; l < L; l++)
                for (int head = 0; head < K; head++) {
                    int n = TOKENS - t < cases[i].piece ? TOKENS - t : cases[i].piece;
                    eng_kv_box piece = {l, 1, head, 1, t, n, cases[i].travel};
                    eng_kv_pack(a, at, &piece, wire[1]);
                    eng_kv_unpack(b, bt, &piece, wire[1]);
                }
        eng_kv_pack(b, bt, &all, back);
        assert_memory_equal(back, wire[0], sizeof back);
        eng_kv_destroy(a);
        eng_kv_destroy(b);
    }
    close_rig(&r);
}

/* To so many bits, the last of which is at least 2^lowest. */
static float rounded(float v, int bits, int lowest) {
    int power;
    frexp(v, &power);
    double unit = ldexp(1, power - bits > lowest ? power - bits : lowest);
    return (float)(nearbyint(v / unit) * unit);
}

/* A value as a row of type keeps it, whose largest value is most. */
static float kept(eng_kv_type type, float v, float most) {
    switch (type) {
    case ENG_KV_F32: return v;
    case ENG_KV_F16: return rounded(v, 11, -24);
    case ENG_KV_BF16: return rounded(v, 8, -133);
    case ENG_KV_Q8_0: break;
    }
    float unit = most / 127, q = most > 0 ? roundf(v * (1 / unit)) : 0;
    return rounded(unit, 11, -24) * (float)(int)q;
}

/* From pages of one type, over the wire as another, into pages of a third: each time it is rounded to that
 * type, and not at all where the type stays the same. */
static void types_meet(void **state) {
    (void)state;
    rig r = open_rig(2);
    for (int n = 0; n < TYPES * TYPES * TYPES; n++) {
        eng_kv_type way[] = {(eng_kv_type)(n / 16), (eng_kv_type)(n / 4 % 4), (eng_kv_type)(n % 4)};
        int32_t at[TOKENS], bt[TOKENS];
        eng_kv *a = pages_of(&r, 16, way[0], at), *b = pages_of(&r, 7, way[2], bt);
        eng_kv_box all = {0, L, 0, K, 0, TOKENS, ENG_KV_F32}, travel = all;
        travel.type = way[1];
        size_t count = fill_box(&all, wire[0]);
        for (size_t i = 0; i < count; i++) wire[0][i] = sinf((float)i) * (float)(i / HEAD % 5);
        eng_kv_unpack(a, at, &all, wire[0]);
        assert_int_equal(eng_kv_box_bytes(a, &travel), count / HEAD * eng_kv_row_bytes(way[1], HEAD));
        eng_kv_pack(a, at, &travel, wire[1]);
        eng_kv_unpack(b, bt, &travel, wire[1]);
        eng_kv_pack(b, bt, &all, back);
        for (size_t row = 0; row < count; row += HEAD)
            for (int step = 0; step < 3; step++) {
                float *x = wire[0] + row, most = 0;
                for (int d = 0; d < HEAD; d++) most = fmaxf(most, fabsf(x[d]));
                bool anew = step == 0 || way[step] != way[step - 1];
                for (int d = 0; d < HEAD && anew; d++) x[d] = kept(way[step], x[d], most);
            }
        assert_memory_equal(back, wire[0], count * sizeof *back);
        eng_kv_destroy(a);
        eng_kv_destroy(b);
    }
    close_rig(&r);
}

static void unpack_touches_nothing_else(void **state) {
    (void)state;
    rig r = open_rig(2);
    int32_t blocks[TOKENS];
    eng_kv *kv = pages_of(&r, 16, ENG_KV_F32, blocks);
    eng_kv_box all = {0, L, 0, K, 0, TOKENS, ENG_KV_F32}, middle = {1, 1, 1, 1, 10, 13, ENG_KV_F32};
    fill_box(&all, wire[0]);
    eng_kv_unpack(kv, blocks, &all, wire[0]);
    memset(wire[1], 0, sizeof wire[1]);
    eng_kv_unpack(kv, blocks, &middle, wire[1]);
    eng_kv_pack(kv, blocks, &all, back);
    size_t n = 0, changed = 0;
    for (; n < sizeof back / sizeof *back; n++) changed += back[n] != wire[0][n];
    assert_int_equal(changed, 2 * 13 * HEAD);
    eng_kv_destroy(kv);
    close_rig(&r);
}

static void a_copied_page_has_its_first_rows(void **state) {
    (void)state;
    rig r = open_rig(2);
    for (int type = 0; type < TYPES; type++) {
        eng_kv *kv;
        int32_t one = 1, two = 2;
        assert_int_equal(eng_kv_create(r.m, 3, 16, (eng_kv_type)type, &kv, NULL), ST_OK);
        eng_kv_box page = {0, L, 0, K, 0, 16, ENG_KV_F32}, rows = page, rest = page;
        fill_box(&page, wire[0]);
        eng_kv_unpack(kv, &one, &page, wire[0]);
        rows.tokens = 5;
        rest.token_first = 5;
        rest.tokens = 11;
        eng_kv_copy(kv, 2, 1, 5);
        eng_kv_pack(kv, &two, &rows, back);
        size_t n = eng_kv_box_bytes(kv, &rows) / sizeof *back;
        eng_kv_pack(kv, &one, &rows, wire[1]);
        assert_memory_equal(back, wire[1], n * sizeof *back);
        eng_kv_pack(kv, &two, &rest, back);
        for (size_t i = 0; i < eng_kv_box_bytes(kv, &rest) / 4; i++) assert_true(back[i] == 0);
        eng_kv_destroy(kv);
    }
    close_rig(&r);
}

static void wrong_sizes_are_refused(void **state) {
    (void)state;
    static const struct { int pages, page; int type; status s; const char *says; } cases[] = {
        {0, 16, 1, ST_BAD_INPUT, "0 pages"},       {-1, 16, 1, ST_BAD_INPUT, "-1 pages"},
        {4, 0, 1, ST_BAD_INPUT, "0 tokens a page"}, {4, 4096, 1, ST_BAD_INPUT, "expected 1 to 1024"},
        {4, 16, 7, ST_BAD_INPUT, "KV type 7"},      {4, 16, 3, ST_UNSUPPORTED, "16 wide, expected a multiple of 32"},
    };
    rig r = open_rig(4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        eng_kv *kv = NULL;
        error err = {.text = ""};
        assert_int_equal(eng_kv_create(r.m, cases[i].pages, cases[i].page, (eng_kv_type)cases[i].type, &kv, &err),
                         cases[i].s);
        assert_non_null(strstr(err.text, cases[i].says));
        assert_null(kv);
    }
    for (int n = 1; n <= 2; n++) {
        eng_kv *kv;
        error err;
        mem_fail_at(n);
        assert_int_equal(eng_kv_create(r.m, 4, 16, ENG_KV_F16, &kv, &err), ST_NO_MEMORY);
        mem_fail_at(0);
        assert_non_null(strstr(err.text, "4 KV pages"));
    }
    close_rig(&r);
}

/* The same bytes, V's where the pages have them; refused when they are too many, of scaled types and of others. */
static void check_runs(const eng_pages *kv, const int32_t *blocks, const eng_kv_box *box, const char *packed) {
    static char scratch[1 << 20];
    struct iovec run[40];
    int32_t pages = (box->token_first + box->tokens - 1) / kv->P - box->token_first / kv->P + 1;
    int count = eng_cpu_kv_runs(NULL, kv, blocks, box, scratch, run, 40), expected = box->layers * (1 + box->heads * pages);
    eng_kv_box rounded = *box;
    rounded.type = kv->type == ENG_KV_F32 ? ENG_KV_F16 : ENG_KV_F32;
    assert_int_equal(eng_cpu_kv_runs(NULL, kv, blocks, &rounded, scratch, run, 40), 0);
    assert_int_equal(eng_cpu_kv_runs(NULL, kv, blocks, box, scratch, run, expected - 1), 0);
    assert_int_equal(count, kv->type == ENG_KV_Q8_0 ? 0 : expected);
    count = eng_cpu_kv_runs(NULL, kv, blocks, box, scratch, run, 40);
    for (int i = 0; i < count; packed += run[i++].iov_len) {
        const char *at = run[i].iov_base, *data = kv->data;
        assert_int_equal(at >= data && at < data + kv->page_bytes * (size_t)kv->pages, i % (1 + box->heads * pages) != 0);
        assert_memory_equal(packed, at, run[i].iov_len);
    }
}

/* Whole runs of a page go as its rows do one by one: heads of several scales, pages and boxes of any size. */
static void a_run_is_its_rows(void **state) {
    (void)state;
    enum { WIDE = 96, PAGES = 3 };
    static char data[PAGES * 2 * 2 * 2 * 40 * WIDE * 4], other[sizeof data], box_bytes[sizeof data], row[WIDE * 4];
    for (int n = 0; n < TYPES * 41; n++) {
        eng_pages kv = {.data = data, .pages = PAGES, .P = 1 + n % 40, .L = 2, .K = 2, .h = WIDE, .type = (eng_kv_type)(n % TYPES)};
        size_t row_bytes = eng_kv_row_bytes(kv.type, WIDE), at = 0;
        int32_t blocks[PAGES] = {2, 0, 1}, first = n % kv.P;
        kv.page_bytes = 2 * 2 * 2 * (size_t)kv.P * row_bytes;
        eng_pages copy = kv;
        copy.data = memset(other, 0, sizeof other);
        eng_kv_box box = {0, 2, 0, 2, first, PAGES * kv.P - first - n % 3, kv.type};
        for (size_t i = 0; i < sizeof data; i++) data[i] = (char)(i * i + i / 251 + (size_t)n);
        if (box.tokens < 1) continue;
        eng_cpu_kv_pack(NULL, &kv, blocks, &box, box_bytes);
        eng_cpu_kv_unpack(NULL, &copy, blocks, &box, box_bytes);
        check_runs(&kv, blocks, &box, box_bytes);
        for (int l = 0; l < 2; l++)
            for (int is_v = 0; is_v < 2; is_v++)
                for (int head = 0; head < 2; head++)
                    for (int32_t t = first; t < first + box.tokens; t++, at += row_bytes) {
                        eng_row_read(&kv, eng_page_block(&kv, blocks[t / kv.P], l, is_v, head), is_v, t % kv.P, row);
                        assert_memory_equal(box_bytes + at, row, row_bytes);
                        eng_row_read(&copy, eng_page_block(&copy, blocks[t / kv.P], l, is_v, head), is_v, t % kv.P, row);
                        assert_memory_equal(box_bytes + at, row, row_bytes);
                    }
    }
}

static void types_have_names(void **state) {
    (void)state;
    static const char *const names[TYPES] = {"f32", "f16", "bf16", "q8_0"};
    eng_kv_type type;
    for (int i = 0; i < TYPES; i++) {
        assert_true(eng_kv_type_find(names[i], &type) && (int)type == i);
        assert_string_equal(eng_kv_type_name(type), names[i]);
    }
    assert_false(eng_kv_type_find("f8", &type));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(boxes_survive_any_pages),
        cmocka_unit_test(types_meet),
        cmocka_unit_test(a_run_is_its_rows),
        cmocka_unit_test(types_have_names),
        cmocka_unit_test(unpack_touches_nothing_else),
        cmocka_unit_test(a_copied_page_has_its_first_rows),
        cmocka_unit_test(wrong_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
