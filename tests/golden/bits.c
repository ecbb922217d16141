/* Tests that engine/cpu's back ends compute the bits of tests/golden/bits.txt, which is the same on every
 * machine: a hash of what each op writes for fixed inputs. It holds for every back end whose numerics are
 * "cpu-2". One that has to compute otherwise needs another name there, and the file is written anew:
 *     test_golden_bits --print > tests/golden/bits.txt
 * Skipped (77) where a machine has no such back end. */
#include "engine/cpu/act.h"
#include "engine/ops.h"
#include "tests/unit/tiny_gguf.h"

enum { T = 37, N = 53, C = 320, H = 6, K = 2, HEAD = 64, POSITIONS = 600, P = 16, CACHE = (POSITIONS + P - 1) / P,
       ROW = (H + 2 * K) * HEAD, REPORT = 4096 };

typedef struct bits {
    const eng_ops *op;
    eng_context *c;
    char *report;                            /* "op hash" a line */
    size_t used;
} bits;

/* FNV-1a. */
static void add_line(bits *b, const char *name, int kind, const void *data, size_t bytes) {
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < bytes; i++) h = (h ^ ((const unsigned char *)data)[i]) * 0x100000001b3;
    b->used += (size_t)snprintf(b->report + b->used, REPORT - b->used, "%s %d %016llx\n", name, kind,
                                (unsigned long long)h);
}

/* In [-1, 1), the same everywhere. */
static void fill(float *x, size_t count, unsigned seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525 + 1013904223;
        x[i] = (float)(int)(seed >> 8 & 0xffff) / 32768 - 1;
    }
}

/* Zeroed rows of activations: what no op writes is in the hash too. */
static void *new_rows(bits *b, int columns, size_t *bytes) {
    *bytes = (T + 11) / 16 * 16 * b->op->act_bytes(b->c, columns);
    return b->op->alloc(b->c, *bytes);
}

static void products(bits *b) {
#define X(name, number, block, bytes, file) ENG_##name,
    static const eng_type types[] = {ENG_TYPES(X)};
#undef X
    static float x[T * C], w[N * C], y[T * N];
    static uint8_t rows[N * C * 4];
    size_t bytes;
    void *act = new_rows(b, C, &bytes);
    fill(x, T * C, 1);
    fill(w, N * C, 2);
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        eng_matrix m = {.N = N, .C = C, .parts = 1};
        eng_quantize_row(types[k], w, N * C, rows);
        m.part[0].type = types[k];
        m.part[0].rows = N;
        m.part[0].row_bytes = eng_gguf_type_bytes(types[k], C);
        m.part[0].data = rows;
        size_t own_bytes = b->op->own_bytes(b->c, &m);
        void *own = own_bytes ? b->op->alloc(b->c, own_bytes) : NULL;
        if (own) b->op->prepare(b->c, &m, own);
        m.own = own;
        b->op->activate(b->c, act, x, T, C);
        b->op->matmul(b->c, y, act, &m, T);
        add_line(b, "matmul", (int)types[k], y, sizeof y);
        if (own) b->op->free(b->c, own);
    }
    b->op->free(b->c, act);
}

static void by_rows(bits *b) {
    static float x[2 * T * C], weight[C];
    fill(x, 2 * T * C, 3);
    fill(weight, C, 4);
    for (int op = 0; op < 4; op++) {
        static const char *const names[] = {"activate", "rmsnorm", "silu_mul", "add_rmsnorm"};
        size_t bytes;
        void *out = new_rows(b, C, &bytes);
        if (op == 0) b->op->activate(b->c, out, x, T, C);
        if (op == 1) b->op->rmsnorm(b->c, out, &(eng_norm){.x = x, .weight = weight, .eps = 1e-5f, .T = T, .D = C, .end = T});
        if (op == 2) b->op->silu_mul(b->c, out, x, T, C);
        if (op == 3) b->op->rmsnorm(b->c, out, &(eng_norm){.x = x, .y = (const float *[]){x + T * C}, .parts = 1, .weight = weight,
                                                   .eps = 1e-5f, .T = T, .D = C, .end = T});
        add_line(b, names[op], 0, out, bytes);
        b->op->free(b->c, out);
    }
    add_line(b, "add", 0, x, sizeof x);
}

/* A prompt of more than one split of attention (512) as one step. */
static void pages(bits *b, eng_kv_type type) {
    static float qkv[POSITIONS * ROW], angles[POSITIONS * HEAD];
    static int32_t blocks[CACHE], position[POSITIONS], index[POSITIONS];
    static eng_tile tiles[POSITIONS];
    eng_pages kv = {.pages = CACHE, .P = P, .L = 1, .K = K, .h = HEAD, .type = type,
                    .page_bytes = 2 * K * P * eng_kv_row_bytes(type, HEAD)};
    size_t bytes = CACHE * kv.page_bytes, out_bytes = (POSITIONS + 16) * b->op->act_bytes(b->c, H * HEAD);
    kv.data = b->op->alloc(b->c, bytes);
    void *out = b->op->alloc(b->c, out_bytes);
    eng_rows rows = {.count = POSITIONS, .blocks = blocks};
    eng_batch batch = {.T = POSITIONS, .rows = &rows, .position = position, .rows_index = index, .tiles = tiles,
                       .angles = angles};
    fill(qkv, POSITIONS * ROW, 5);
    fill(angles, POSITIONS * HEAD, 6);
    for (int i = 0; i < CACHE; i++) blocks[i] = CACHE - 1 - i;
    for (int t = 0; t < POSITIONS; t++) {
        position[t] = t;
        if (t % ENG_TILE_ROWS) tiles[batch.tiles_count - 1].count++;
        else tiles[batch.tiles_count++] = (eng_tile){.row = t, .count = 1};
    }
    b->op->rope_append(b->c, qkv, &kv, 0, &batch, H);
    add_line(b, "rope", (int)type, qkv, sizeof qkv);
    add_line(b, "pages", (int)type, kv.data, bytes);
    b->op->attention(b->c, out, qkv, &kv, 0, &batch, H, 0.125f);
    add_line(b, "attention", (int)type, out, out_bytes);
    b->op->free(b->c, out);
    b->op->free(b->c, kv.data);
}

/* The logits of a small model. */
static void model(bits *b, eng_type type) {
    tiny_gguf file = tiny_gguf_build(&(tiny_options){.type = type});
    int32_t token[T], blocks[(T + P - 1) / P];
    for (int i = 0; i < T; i++) token[i] = (i * 37 + i * i % 7) % 128, blocks[i / P] = i / P;
    eng_gguf *g;
    eng_model *m;
    eng_kv *kv;
    const float *logits;
    error err;
    eng_options options = {.isa = b->op->name, .threads = 2, .tokens_max = T, .logits_max = T};
    eng_rows rows = {token, T, 0, blocks, T};
    if (eng_gguf_open_memory(file.data, file.bytes, "tiny", &g, &err) != ST_OK ||
        eng_model_open(g, &options, &m, &err) != ST_OK || eng_kv_create(m, 8, P, ENG_KV_F16, &kv, &err) != ST_OK ||
        eng_step(m, kv, &rows, 1, &logits, &err) != ST_OK) {
        fprintf(stderr, "bits: %s: %s\n", b->op->name, err.text);
        exit(1);
    }
    add_line(b, "model", (int)type, logits, (size_t)T * 128 * sizeof *logits);
    eng_kv_destroy(kv);
    eng_model_close(m);
    eng_gguf_close(g);
    tiny_gguf_free(&file);
}

/* All lines of a back end. */
static void compute(bits *b) {
    products(b);
    by_rows(b);
    for (int type = ENG_KV_F32; type <= ENG_KV_Q8_0; type++) pages(b, (eng_kv_type)type);
    model(b, ENG_F32);
    model(b, ENG_Q4_1);
}

static bool compare(const char *name, const char *got, const char *expected) {
    if (strcmp(got, expected) == 0) return true;
    for (; *got && *expected; got += strcspn(got, "\n") + 1, expected += strcspn(expected, "\n") + 1)
        if (strcspn(got, "\n") != strcspn(expected, "\n") || strncmp(got, expected, strcspn(got, "\n")) != 0)
            fprintf(stderr, "bits: %s: %.*s, expected %.*s\n", name, (int)strcspn(got, "\n"), got,
                    (int)strcspn(expected, "\n"), expected);
    return false;
}

int main(int argc, char **argv) {
    static char expected[REPORT], report[REPORT];
    bool print = argc == 2 && strcmp(argv[1], "--print") == 0, same = true, any = false;
    FILE *f = print ? NULL : fopen(BATON_TESTS_DIR "/golden/bits.txt", "r");
    if (!print && (!f || fread(expected, 1, REPORT - 1, f) == 0)) {
        fprintf(stderr, "bits: cannot read %s\n", BATON_TESTS_DIR "/golden/bits.txt");
        return 1;
    }
    if (f) fclose(f);
    for (int i = 0; eng_ops_at(i); i++) {
        bits b = {.op = eng_ops_at(i), .report = report};
        eng_shape shape = {.L = 1, .D = C, .H = H, .K = K, .h = HEAD, .F = C, .V = 64};
        if (b.op->open(&(eng_options){.threads = 2}, &shape, &b.c, NULL) != ST_OK) return 1;
        if (strcmp(b.op->numerics(b.c), "cpu-2") == 0 && !(print && any)) {
            compute(&b);
            any = true;
            if (print) fputs(report, stdout);
            else same &= compare(b.op->name, report, expected);
            if (!print) printf("%s: compared\n", b.op->name);
        }
        b.op->close(b.c);
    }
    return !any ? 77 : same ? 0 : 1;
}
