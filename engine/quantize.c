/* quantize.c -- a model file written again with its matrices in another weight type.
 *
 * Rounding is ggml's reference rounding, operation by operation: from the same F32 or F16 source the
 * tensors are byte for byte those that llama-quantize writes with token_embd and output as Q8_0. A
 * block is 32 weights:
 *
 *   Q8_0   d = max|x| / 127                      q = x / d, nearest, ties away from zero
 *   Q4_0   d = (the x of largest size) / -8      q = x / d + 8, nearest, at most 15
 *   Q4_1   m = min x, d = (max x - m) / 15       q = (x - m) / d, nearest, at most 15
 *
 * where x / d is x times the rounded reciprocal of d, and d and m are stored as F16 only afterwards.
 * Compiled without contraction: a fused multiply-add would round some weights the other way.
 *
 * The new file has the old one's keys byte for byte and in their order, but for the two that say how
 * it is quantised, which stand last; then the tensors in their order. Weights stream through one
 * small buffer: rows follow each other without a gap in every type, so a tensor is cut into pieces
 * wherever a block ends. */
#include "engine/engine.h"
#include "engine/cpu/cpu.h"
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 32, PIECE = 128 * BLOCK };

/* ---- rounding ---------------------------------------------------------------------------------- */

static uint16_t float_to_bf16(float v) { /* nearest, ties to even; a NaN stays one */
    uint32_t u = eng_float_bits(v);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 64);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* The integer part of v; where d was so small that its reciprocal is infinite v may be anything. */
static int integer(float v, int low, int high) {
    if (!(v > (float)low)) return low;
    return v < (float)high ? (int)v : high;
}

static void put_half(uint8_t *b, float v) {
    uint16_t half = eng_float_to_half(v);
    memcpy(b, &half, 2);
}

static void quantize_q8_0(const float *x, uint8_t *b) {
    float most = 0;
    for (int i = 0; i < BLOCK; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float d = most / 127, reciprocal = d != 0 ? 1 / d : 0;
    put_half(b, d);
    for (int i = 0; i < BLOCK; i++) b[2 + i] = (uint8_t)integer(roundf(x[i] * reciprocal), -128, 127);
}

/* Both 4-bit types: weight i is in the low half of byte i, weight i + 16 in its high half. The shift
 * by half a step makes the integer part the nearest. */
static void put_nibbles(const float *x, float zero, float reciprocal, float shift, uint8_t *b) {
    for (int i = 0; i < BLOCK / 2; i++) {
        int low = integer((x[i] - zero) * reciprocal + shift, 0, 15);
        int high = integer((x[i + BLOCK / 2] - zero) * reciprocal + shift, 0, 15);
        b[i] = (uint8_t)(low | high << 4);
    }
}

static void quantize_q4_0(const float *x, uint8_t *b) {
    float most = 0;
    for (int i = 0; i < BLOCK; i++) most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    float d = most / -8;
    put_half(b, d);
    put_nibbles(x, 0, d != 0 ? 1 / d : 0, 8.5f, b + 2);
}

static void quantize_q4_1(const float *x, uint8_t *b) {
    float min = FLT_MAX, max = -FLT_MAX;
    for (int i = 0; i < BLOCK; i++) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
    }
    float d = (max - min) / 15;
    put_half(b, d);
    put_half(b + 2, min);
    put_nibbles(x, min, d != 0 ? 1 / d : 0, 0.5f, b + 4);
}

void eng_quantize_row(eng_type type, const float *row, int64_t n, void *out) {
    uint8_t *b = out;
    uint16_t bf16;
    switch (type) {
    case ENG_F32: memcpy(out, row, (size_t)n * sizeof *row); return;
    case ENG_F16: for (int64_t i = 0; i < n; i++) put_half(b + 2 * i, row[i]); return;
    case ENG_BF16:
        for (int64_t i = 0; i < n; i++) bf16 = float_to_bf16(row[i]), memcpy(b + 2 * i, &bf16, 2);
        return;
    case ENG_Q8_0: for (int64_t i = 0; i < n; i += BLOCK, b += 34) quantize_q8_0(row + i, b); return;
    case ENG_Q4_0: for (int64_t i = 0; i < n; i += BLOCK, b += 18) quantize_q4_0(row + i, b); return;
    case ENG_Q4_1: for (int64_t i = 0; i < n; i += BLOCK, b += 20) quantize_q4_1(row + i, b); return;
    }
}

/* ---- which type a tensor gets ------------------------------------------------------------------ */

eng_type eng_quantize_type(const eng_tensor *t, eng_type type) {
    if (t->dims < 2) return ENG_F32;
    bool ends = strcmp(t->name, "token_embd.weight") == 0 || strcmp(t->name, "output.weight") == 0;
    if (ends && (type == ENG_Q4_0 || type == ENG_Q4_1)) type = ENG_Q8_0;
    return eng_gguf_type_bytes(type, t->dim[0]) ? type : ENG_F16;
}

static int64_t weights(const eng_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->dims; i++) n *= t->dim[i];
    return n;
}

/* general.file_type: llama.cpp's numbers (enum llama_ftype). */
static uint32_t file_type(eng_type type) {
    switch (type) {
#define X(name, number, block, bytes, file) case ENG_##name: return file;
        ENG_TYPES(X)
#undef X
    }
    return UINT32_MAX;
}

/* ---- the file that is written ------------------------------------------------------------------ */

typedef struct writer {
    const eng_gguf *g;
    const eng_quantize_options *options;
    const char *path;
    char *part;                  /* the name it has until it is whole */
    FILE *file;
    uint64_t at;                 /* bytes written */
    double done, total;          /* weights */
    error *err;
} writer;

static status cannot(writer *w, const char *verb) {
    return error_set(w->err, ST_IO, "%.200s: cannot %s: %s", w->part, verb, strerror(errno));
}

static status put(writer *w, const void *p, size_t bytes) {
    w->at += bytes;
    return fwrite(p, 1, bytes, w->file) == bytes ? ST_OK : cannot(w, "write");
}

static status put_u32(writer *w, uint32_t v) { return put(w, &v, sizeof v); }
static status put_u64(writer *w, uint64_t v) { return put(w, &v, sizeof v); }

static status put_text(writer *w, const char *text) {
    TRY(put_u64(w, strlen(text)));
    return put(w, text, strlen(text));
}

static uint64_t padded(const writer *w, uint64_t bytes) {
    uint64_t alignment = eng_gguf_alignment(w->g);
    return (bytes + alignment - 1) & ~(alignment - 1);
}

static status put_padding(writer *w) {
    while (w->at < padded(w, w->at)) TRY(put(w, "", 1));
    return ST_OK;
}

/* Who reads the file knows by these how it is quantised; as llama-quantize writes them. */
static const char *const own_keys[] = {"general.quantization_version", "general.file_type"};
enum { OWN_KEYS = 2, QUANTIZATION_VERSION = 2, VALUE_U32 = 4 };

/* All keys of the source but those, then those. */
static status put_keys(writer *w) {
    uint64_t count;
    size_t bytes, skip = 0;
    const char *at = eng_gguf_keys(w->g, &count, &bytes), *end = at + bytes;
    for (const char *cut = at; cut != end; at = cut + skip) {
        cut = end;
        for (int i = 0; i < OWN_KEYS; i++) {
            const char *entry = eng_gguf_key(w->g, own_keys[i], &bytes);
            if (entry && entry >= at && entry < cut) cut = entry, skip = bytes;
        }
        TRY(put(w, at, (size_t)(cut - at)));
    }
    const uint32_t values[OWN_KEYS] = {QUANTIZATION_VERSION, file_type(w->options->type)};
    for (int i = 0; i < OWN_KEYS; i++) {
        TRY(put_text(w, own_keys[i]));
        TRY(put_u32(w, VALUE_U32));
        TRY(put_u32(w, values[i]));
    }
    return ST_OK;
}

static status put_head(writer *w) {
    uint64_t keys, tensors = (uint64_t)eng_gguf_tensor_count(w->g), offset = 0;
    size_t bytes;
    eng_gguf_keys(w->g, &keys, &bytes);
    for (int i = 0; i < OWN_KEYS; i++) keys += !eng_gguf_key(w->g, own_keys[i], &bytes);
    TRY(put(w, "GGUF\3\0\0\0", 8));
    TRY(put_u64(w, tensors));
    TRY(put_u64(w, keys));
    TRY(put_keys(w));
    for (uint64_t i = 0; i < tensors; i++) {
        const eng_tensor *t = eng_gguf_tensor_at(w->g, (int64_t)i);
        eng_type type = eng_quantize_type(t, w->options->type);
        TRY(put_text(w, t->name));
        TRY(put_u32(w, (uint32_t)t->dims));
        for (int d = 0; d < t->dims; d++) TRY(put_u64(w, (uint64_t)t->dim[d]));
        TRY(put_u32(w, type));
        TRY(put_u64(w, offset));
        offset += padded(w, eng_gguf_type_bytes(type, weights(t)));
    }
    return put_padding(w);
}

/* first: the number of x[0] in its tensor. */
static status check_finite(writer *w, const eng_tensor *t, const float *x, int64_t first, int n,
                           const char *what) {
    for (int i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return error_set(w->err, ST_BAD_INPUT,
                             "%.200s: tensor %s: weight %lld of %lld is %g %s, expected a finite one",
                             eng_gguf_file(w->g), t->name, (long long)(first + i),
                             (long long)weights(t), (double)x[i], what);
    return ST_OK;
}

/* Weights that stay of their type are copied as they are. */
static status put_piece(writer *w, const eng_tensor *t, int64_t first, int n) {
    eng_type type = eng_quantize_type(t, w->options->type);
    const char *from = (const char *)t->data + eng_gguf_type_bytes(t->type, first);
    size_t bytes = eng_gguf_type_bytes(type, n);
    if (type == t->type) return put(w, from, bytes);
    float x[PIECE];
    uint8_t out[PIECE * sizeof *x];
    eng_cpu_dequantize(t->type, from, n, x);
    TRY(check_finite(w, t, x, first, n, "in the source"));
    eng_quantize_row(type, x, n, out);
    eng_cpu_dequantize(type, out, n, x);
    TRY(check_finite(w, t, x, first, n, "as the new type holds it"));
    return put(w, out, bytes);
}

static status put_tensor(writer *w, const eng_tensor *t) {
    const eng_quantize_options *o = w->options;
    int64_t count = weights(t);
    for (int64_t first = 0; first < count; first += PIECE) {
        int n = count - first < PIECE ? (int)(count - first) : PIECE;
        TRY(put_piece(w, t, first, n));
        w->done += n;
        if (o->progress && !o->progress(w->done / w->total, o->progress_ctx))
            return error_set(w->err, ST_CANCELED, "%.200s: stopped, not written", w->path);
    }
    return put_padding(w);
}

static status put_all(writer *w) {
    int64_t tensors = eng_gguf_tensor_count(w->g);
    for (int64_t i = 0; i < tensors; i++) w->total += (double)weights(eng_gguf_tensor_at(w->g, i));
    TRY(put_head(w));
    for (int64_t i = 0; i < tensors; i++) TRY(put_tensor(w, eng_gguf_tensor_at(w->g, i)));
    return ST_OK;
}

/* ---- whole or not at all ----------------------------------------------------------------------- */

static status check_target(const eng_gguf *g, bool force, const char *path, error *err) {
    struct stat out, in;
    if (stat(path, &out) != 0) return ST_OK; /* why it cannot be written is said on open */
    if (!S_ISREG(out.st_mode))
        return error_set(err, ST_REFUSED, "%.200s: not a regular file, expected a new file's name", path);
    if (stat(eng_gguf_file(g), &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return error_set(err, ST_REFUSED, "%.200s: is the file that is read, expected another", path);
    return force ? ST_OK : error_set(err, ST_REFUSED, "%.200s: exists, expected a new file or --force", path);
}

static status writer_open(writer *w) {
    size_t room = strlen(w->path) + 32;
    if (!(w->part = mem_alloc(room))) return error_set(w->err, ST_NO_MEMORY, "no memory for a file's name");
    snprintf(w->part, room, "%s.%d.part", w->path, (int)getpid());
    int fd = open(w->part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return cannot(w, "create");
    if ((w->file = fdopen(fd, "w"))) return ST_OK;
    status s = cannot(w, "open");
    close(fd);
    unlink(w->part);
    return s;
}

/* Some file systems cannot rename without replacing: there a file that appeared meanwhile is lost. */
static status writer_publish(writer *w) {
    unsigned keep = w->options->force ? 0 : RENAME_NOREPLACE;
    if (fflush(w->file) != 0 || fsync(fileno(w->file)) != 0) return cannot(w, "write");
    if (renameat2(AT_FDCWD, w->part, AT_FDCWD, w->path, keep) == 0) return ST_OK;
    if (errno == EINVAL && rename(w->part, w->path) == 0) return ST_OK;
    return error_set(w->err, errno == EEXIST ? ST_REFUSED : ST_IO, "%.200s: cannot rename to %.100s: %s", w->part,
                     w->path, strerror(errno));
}

status eng_quantize_file(const eng_gguf *g, const eng_quantize_options *options, const char *path,
                         error *err) {
    writer w = {.g = g, .options = options, .path = path, .err = err};
    TRY(check_target(g, options->force, path, err));
    status s = writer_open(&w);
    if (s == ST_OK) {
        s = put_all(&w);
        if (s == ST_OK) s = writer_publish(&w);
        fclose(w.file); /* after a sync there is nothing left that could fail */
        if (s != ST_OK) unlink(w.part);
    }
    mem_free(w.part);
    return s;
}
