/* select.c -- which measurements are wanted: "prefill:512,decode,limits". */
#include "bench/bench.h"
#include <stdlib.h>
#include <string.h>

const char *const bench_part_names[BENCH_PARTS] = {"limits", "prefill", "decode", "attention", "ops"};

const int bench_sizes[BENCH_PARTS][BENCH_SIZES_MAX] = {
    [BENCH_PREFILL] = {128, 512, 2048},
    [BENCH_DECODE] = {1, 2, 4, 8, 16, 32},
    [BENCH_ATTENTION] = {128, 512, 2048, 8192},
};

/* "decode" or "decode:16", bytes long. */
static status take_item(const char *item, size_t bytes, bench_selection *s, error *err) {
    const char *colon = memchr(item, ':', bytes);
    size_t name_bytes = colon ? (size_t)(colon - item) : bytes;
    for (int part = 0; part < BENCH_PARTS; part++) {
        const char *name = bench_part_names[part];
        if (strlen(name) != name_bytes || memcmp(name, item, name_bytes) != 0) continue;
        if (!colon) s->sizes[part] = ~0u;
        for (int i = 0; colon && bench_sizes[part][i]; i++) {
            char size[16];
            size_t written = (size_t)snprintf(size, sizeof size, "%d", bench_sizes[part][i]);
            if (written != bytes - name_bytes - 1 || memcmp(size, colon + 1, written) != 0) continue;
            s->sizes[part] |= 1u << i;
            return ST_OK;
        }
        if (!colon) return ST_OK;
    }
    return error_set(err, ST_BAD_INPUT, "--only '%.*s': expected limits, prefill[:128|512|2048], "
                     "decode[:1|2|4|8|16|32], attention[:128|512|2048|8192] or ops",
                     bytes > 80 ? 80 : (int)bytes, item);
}

status bench_select_parse(const char *only, bool quick, bench_selection *out, error *err) {
    bench_selection s = {{0}};
    for (int part = 0; !only && part < BENCH_PARTS; part++) s.sizes[part] = quick ? 0x55555555u : ~0u;
    while (only) {
        size_t bytes = strcspn(only, ",");
        TRY(take_item(only, bytes, &s, err));
        only = only[bytes] ? only + bytes + 1 : NULL;
    }
    *out = s;
    return ST_OK;
}

bool bench_select_has(const bench_selection *s, bench_part part, int index) {
    return s->sizes[part] >> index & 1;
}
