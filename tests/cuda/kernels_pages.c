/* Tests engine/cuda/pages.cu: pages hold the bytes that the CPU's scalar back end writes, and so does the wire. */
#include "tests/cuda/kv_rig.h"

/* The type is set by the test. */
static const rig_shape shapes[] = {
    {3, 1, 64, 1, ENG_KV_F32}, {4, 2, 32, 4, ENG_KV_F32}, {2, 2, 96, 16, ENG_KV_F32}, {2, 1, 128, 24, ENG_KV_F32}};
static const int length[] = {1, 15, 17, 26};
enum { SHAPES = sizeof shapes / sizeof *shapes, SEQUENCES = sizeof length / sizeof *length };

static rig open_rig(int shape, eng_kv_type type) {
    rig_shape s = shapes[shape];
    s.type = type;
    return rig_open(s, length, SEQUENCES);
}

/* Ties, subnormals and what is too large, in places. */
static void set_odd(rig *r) {
    static const float odd[] = {0, -0.f, 65504, 65520, -70000, 0x1p-24f, 0x1p-25f, 0x1.8p-25f, 3e-5f, 1e-40f, 0.5f,
                                1.00390625f, 1.01171875f, 3e38f, -127, 126.5f, 2.5f, -0.5f, 1.5f, 127};
    for (int t = 0; t < 20; t++)
        for (int i = 0; i < r->row; i++) {
            int n = r->s.type == ENG_KV_Q8_0 && t ? 13 : 20;
            if (t < 10) r->qkv[t * r->row + i] = odd[(t * 7 + i) % n];
            else if (t < 15) r->qkv[t * r->row + i] = (float)(i % 255 - 127) * 0.5f;    /* in Q8_0 many are ties */
        }
    for (int t = 0; t < 20; t += 2)                        /* turned by nothing: as odd as they are */
        for (int i = 0; i < r->s.h; i++) r->angles[t * r->s.h + i] = i % 2 ? 0 : 1;
    OK(cudaMemcpy((void *)(uintptr_t)r->b.angles, r->angles, (size_t)(r->T * r->s.h) * sizeof(float), cudaMemcpyHostToDevice));
    OK(cudaMemcpy(r->device_qkv, r->qkv, (size_t)(r->T * r->row) * sizeof(float), cudaMemcpyHostToDevice));
}

/* Also: q is turned in place, k and v stay, rows of nobody are left alone. */
static void appended_rows_are_the_cpus(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (int type = ENG_KV_F32; type <= ENG_KV_Q8_0; type++) {
            rig r = open_rig(i, (eng_kv_type)type);
            set_odd(&r);
            size_t floats = (size_t)((r.T + RIG_NOBODY) * r.row), q = (size_t)(r.s.H * r.s.h);
            float *before = malloc(floats * sizeof *before);
            memcpy(before, r.qkv, floats * sizeof *before);
            rig_append(&r, 1);
            rig_compare_pages(&r);
            float *after = fetch(r.device_qkv, floats * sizeof *after);
            for (int t = 0; t < r.T + RIG_NOBODY; t++) {
                size_t at = (size_t)(t * r.row);
                assert_memory_equal(after + at, (t < r.T ? r.qkv : before) + at, q * sizeof *after);
                assert_memory_equal(after + at + q, before + at + q, ((size_t)r.row - q) * sizeof *after);
            }
            free(before);
            free(after);
            rig_close(&r);
        }
}

/* A box that begins and ends within pages, in every type on both sides. */
static void boxes_are_the_cpus(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (int type = ENG_KV_F32; type <= ENG_KV_Q8_0; type++) {
            rig r = open_rig(i, (eng_kv_type)type);
            rig_append_layers(&r);
            for (int wire = ENG_KV_F32; wire <= ENG_KV_Q8_0; wire++) {
                eng_kv_box from = {0, 2, r.s.K - 1, 1, 3, 22, (eng_kv_type)wire}, to = {0, 2, 0, 1, 4, 22, (eng_kv_type)wire};
                size_t bytes = 2 * 2 * 22 * eng_kv_row_bytes(from.type, r.s.h);
                char *packed = malloc(bytes + 1), *device = wild(bytes + 1);
                packed[bytes] = (char)0xff;
                r.op->kv_pack(r.c, &r.cpu, r.rows[3].blocks, &from, packed);
                OK(cuda_kv_pack(stream, &r.device, r.b.blocks + 3 * r.table + 1, &from, device));
                char *got = fetch(device, bytes + 1);
                assert_memory_equal(got, packed, bytes + 1);
                r.op->kv_unpack(r.c, &r.cpu, r.rows[3].blocks, &to, packed);
                OK(cuda_kv_unpack(stream, &r.device, r.b.blocks + 3 * r.table + 1, &to, device));
                rig_compare_pages(&r);
                OK(cudaFree(device));
                free(packed);
                free(got);
            }
            rig_close(&r);
        }
}

static void empty_boxes_are_nothing(void **state) {
    (void)state;
    rig r = open_rig(2, ENG_KV_F16);
    eng_kv_box box = {0, 2, 0, 2, 5, 0, ENG_KV_F16};
    OK(cuda_kv_pack(stream, &r.device, r.b.blocks, &box, NULL));
    OK(cuda_kv_unpack(stream, &r.device, r.b.blocks, &box, NULL));
    rig_compare_pages(&r);
    rig_close(&r);
}

static void copied_pages_are_the_cpus(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (int type = ENG_KV_F32; type <= ENG_KV_Q8_0; type++) {
            rig r = open_rig(i, (eng_kv_type)type);
            rig_append_layers(&r);
            int32_t src = r.rows[3].blocks[0], dst = r.cpu.pages - 1, tokens = (r.s.P + 1) / 2;
            r.op->kv_copy(r.c, &r.cpu, dst, src, tokens);
            OK(cuda_kv_copy(stream, &r.device, dst, src, tokens));
            rig_compare_pages(&r);
            rig_close(&r);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(appended_rows_are_the_cpus),
        cmocka_unit_test(boxes_are_the_cpus),
        cmocka_unit_test(empty_boxes_are_nothing),
        cmocka_unit_test(copied_pages_are_the_cpus),
    };
    return cmocka_run_group_tests(tests, open_stream, close_stream);
}
