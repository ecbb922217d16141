/* frame.c -- bytes as frame headers against a table with promises: whatever decodes is judged, and what
 * may land lies inside its promise and has the size the promise says. */
#include "kvtransfer/kvtransfer.h"
#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { L = 4, K = 2, ROW = 16, FIRST = 8, END = 150 };

/* A random header hardly ever has the right CRC: it is repaired unless the first bit says no, and so is
 * what else would stop every input at the door. */
static void repair(unsigned char wire[KVT_FRAME_BYTES]) {
    memcpy(wire, "BKV1\2", 5);
    wire[6] &= 1;
    wire[7] = 0;
    uint32_t crc = kvt_crc32c(0, wire, 60);
    for (int i = 0; i < 4; i++) wire[60 + i] = (unsigned char)(crc >> 8 * i);
}

static void judge(kvt_promises *p, const kvt_frame *f) {
    void *owner, *again;
    uint32_t before = kvt_promises_landed(p, f->ticket);
    kvt_verdict checked = kvt_promises_check(p, f, &owner);
    assert(kvt_promises_judge(p, f, 0, &again) == checked && owner == again);
    assert(kvt_promises_landed(p, f->ticket) >= before);
    if (checked != KVT_TAKE) return;
    assert(f->layer_first < L && f->layers <= L - f->layer_first);
    assert(f->head_first < K && f->heads <= K - f->head_first);
    assert(f->token_first >= FIRST && f->token_first < END && f->tokens <= END - f->token_first);
    assert(f->payload_bytes == f->layers * 2 * f->heads * f->tokens * ROW);
    assert(kvt_promises_check(p, f, &owner) == KVT_DUPLICATE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const kvt_geometry g = {.layers = L, .heads = K, .row_bytes = ROW, .type = 1};
    kvt_promises *p = kvt_promises_create(4);
    int owner;
    kvt_promises_add(p, 1, 1, &g, FIRST, END, 100, 0, &owner);
    kvt_promises_add(p, 2, 7, &g, FIRST, END, 100, 0, &owner);
    for (; bytes > KVT_FRAME_BYTES; data += KVT_FRAME_BYTES + 1, bytes -= KVT_FRAME_BYTES + 1) {
        unsigned char wire[KVT_FRAME_BYTES], again[KVT_FRAME_BYTES];
        kvt_frame f;
        memcpy(wire, data + 1, sizeof wire);
        if (!(data[0] & 1)) repair(wire);
        if (kvt_frame_decode(wire, &f, NULL) == ST_OK) {
            kvt_frame_encode(&f, again);
            assert(!memcmp(wire, again, sizeof wire)); /* one frame, one spelling */
            if (f.kind >= KVT_DATA && f.kind <= KVT_ABORT) judge(p, &f);
        }
        if (bytes <= KVT_FRAME_BYTES + 1) break;
    }
    kvt_promises_destroy(p);
    return 0;
}
