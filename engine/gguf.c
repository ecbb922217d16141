/* gguf.c -- a GGUF model file, mapped and checked.
 *
 * It knows the container, not what a key or a tensor means: that is model.c and vocab.c. Nothing in
 * the file is trusted: every length is compared with what is left of the file before it is used, and
 * every product is taken with overflow checks. What passed open can be read without further checks.
 * (A file that is cut while it is mapped faults on access; that cannot be defended here.)
 *
 * The format, little-endian, versions 2 and 3 (github.com/ggml-org/ggml/blob/master/docs/gguf.md):
 *
 *   u32 magic "GGUF" | u32 version | u64 tensors | u64 keys
 *   keys x    { text name | u32 type | value }            text: u64 bytes | bytes
 *   tensors x { text name | u32 dims | u64 dim[dims] | u32 type | u64 offset }
 *   padding to general.alignment (32 when absent), then the data; offsets count from there
 *
 * An array value is u32 type | u64 count | values. Text arrays get a sparse index of offsets, one
 * entry for TEXT_STRIDE texts, so that any element is found in a bounded number of steps. */
#define XXH_STATIC_LINKING_ONLY
#include "engine/engine.h"
#include <fcntl.h>
#include <string.h>
#include <stdlib.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { TEXT_STRIDE = 16, NAME_MAX_BYTES = 255, DIGEST_SPAN = 4096, ALIGNMENT_MAX = 65536 };

enum value_type {
    VALUE_U8, VALUE_I8, VALUE_U16, VALUE_I16, VALUE_U32, VALUE_I32, VALUE_F32, VALUE_BOOL,
    VALUE_TEXT, VALUE_ARRAY, VALUE_U64, VALUE_I64, VALUE_F64, VALUE_TYPES
};

static const struct {
    const char *name;
    uint64_t bytes;              /* 0: not of one size */
} value_types[VALUE_TYPES] = {
    {"u8", 1}, {"i8", 1}, {"u16", 2}, {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
    {"bool", 1}, {"text", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8},
};

/* ggml's numbering: those that are read, and the names of those that are not. */
static const struct {
    const char *name;
    uint32_t block, block_bytes;
} tensor_types[] = {
#define X(name, number, block, bytes, file) [number] = {#name, block, bytes},
    ENG_TYPES(X)
#undef X
    [6] = {"Q5_0", 0, 0},     [7] = {"Q5_1", 0, 0},    [9] = {"Q8_1", 0, 0},   [10] = {"Q2_K", 0, 0},
    [11] = {"Q3_K", 0, 0},    [12] = {"Q4_K", 0, 0},   [13] = {"Q5_K", 0, 0},  [14] = {"Q6_K", 0, 0},
    [15] = {"Q8_K", 0, 0},    [16] = {"IQ2_XXS", 0, 0}, [17] = {"IQ2_XS", 0, 0}, [18] = {"IQ3_XXS", 0, 0},
    [19] = {"IQ1_S", 0, 0},   [20] = {"IQ4_NL", 0, 0}, [21] = {"IQ3_S", 0, 0}, [22] = {"IQ2_S", 0, 0},
    [23] = {"IQ4_XS", 0, 0},  [24] = {"I8", 0, 0},     [25] = {"I16", 0, 0},   [26] = {"I32", 0, 0},
    [27] = {"I64", 0, 0},     [28] = {"F64", 0, 0},    [29] = {"IQ1_M", 0, 0},
};
enum { TENSOR_TYPES = sizeof tensor_types / sizeof tensor_types[0] };

typedef struct text {
    const char *at;              /* into the mapping, not NUL-terminated */
    uint64_t bytes;
} text;

typedef struct key {
    text name;
    uint32_t type;               /* enum value_type; of the elements for an array */
    bool array;
    uint64_t count;              /* elements; 1 for a scalar */
    const unsigned char *value;  /* first element */
    const unsigned char *end;    /* past the last */
    uint64_t *stride;            /* text arrays: offset of every TEXT_STRIDE-th element from value */
} key;

struct eng_gguf {
    const unsigned char *data;
    uint64_t bytes;
    bool mapped;
    char *file;                  /* as the caller named it, for errors */
    char *name;
    uint64_t keys_count, tensors_count;
    uint64_t keys_at, keys_end;  /* their bytes in the file */
    key *keys;                   /* sorted by name */
    eng_tensor *tensors;         /* in file order */
    const eng_tensor **by_name;  /* sorted by name */
    char *names;                 /* the tensors' names, NUL-terminated, one after the other */
    uint64_t alignment;
    char digest[33];
};

/* Reads on from `at`; what names the place for errors. */
typedef struct reader {
    eng_gguf *g;
    uint64_t at;
    error *err;
} reader;

static status parse(eng_gguf *g, error *err);
static const key *find_key(const eng_gguf *g, const char *name);

/* ---- open and close ---------------------------------------------------------------------------- */

status eng_gguf_open_memory(const void *data, size_t bytes, const char *name, eng_gguf **out,
                            error *err) {
    eng_gguf *g = mem_zalloc(1, sizeof *g);
    if (!g || !(g->file = mem_strdup(name))) {
        eng_gguf_close(g);
        return error_set(err, ST_NO_MEMORY, "%.200s: no memory to open it", name);
    }
    g->data = data;
    g->bytes = bytes;
    status s = parse(g, err);
    if (s != ST_OK) {
        eng_gguf_close(g);
        return s;
    }
    *out = g;
    return ST_OK;
}

status eng_gguf_open(const char *path, eng_gguf **out, error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%.200s: cannot open: %s", path,
                         strerror(errno));
    struct stat st;
    void *data = MAP_FAILED;
    status s = ST_OK;
    if (fstat(fd, &st) != 0)
        s = error_set(err, ST_IO, "%.200s: cannot stat: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        s = error_set(err, ST_BAD_INPUT, "%.200s: not a regular file, expected a GGUF file", path);
    else if (st.st_size < 24)
        s = error_set(err, ST_BAD_INPUT, "%.200s: %lld bytes, expected a GGUF header of 24", path,
                      (long long)st.st_size);
    else if ((data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        s = error_set(err, ST_IO, "%.200s: cannot map: %s", path, strerror(errno));
    close(fd);
    TRY(s);
    s = eng_gguf_open_memory(data, (size_t)st.st_size, path, out, err);
    if (s == ST_OK) (*out)->mapped = true;
    else munmap(data, (size_t)st.st_size);
    return s;
}

void eng_gguf_close(eng_gguf *g) {
    if (!g) return;
    for (uint64_t i = 0; g->keys && i < g->keys_count; i++) mem_free(g->keys[i].stride);
    if (g->mapped) munmap((void *)(uintptr_t)g->data, g->bytes);
    mem_free(g->keys);
    mem_free(g->tensors);
    mem_free(g->by_name);
    mem_free(g->names);
    mem_free(g->name);
    mem_free(g->file);
    mem_free(g);
}

/* ---- reading the container --------------------------------------------------------------------- */

#define BAD(r, ...) bad((r)->g, (r)->err, __VA_ARGS__)

/* "FILE: " and the rest. */
static status bad(const eng_gguf *g, error *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static status bad(const eng_gguf *g, error *err, const char *fmt, ...) {
    char rest[300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(rest, sizeof rest, fmt, ap);
    va_end(ap);
    return error_set(err, ST_BAD_INPUT, "%.200s: %s", g->file, rest);
}

/* Asks for `bytes` more; what is the part of the file that is being read. */
static status need(reader *r, uint64_t bytes, const char *what) {
    uint64_t left = r->g->bytes - r->at;
    if (bytes <= left) return ST_OK;
    return BAD(r, "%s at offset %llu needs %llu bytes, the file has %llu left", what,
               (unsigned long long)r->at, (unsigned long long)bytes, (unsigned long long)left);
}

static status read_u32(reader *r, uint32_t *out, const char *what) {
    TRY(need(r, 4, what));
    memcpy(out, r->g->data + r->at, 4);
    r->at += 4;
    return ST_OK;
}

static status read_u64(reader *r, uint64_t *out, const char *what) {
    TRY(need(r, 8, what));
    memcpy(out, r->g->data + r->at, 8);
    r->at += 8;
    return ST_OK;
}

static status read_text(reader *r, text *out, const char *what) {
    uint64_t bytes;
    TRY(read_u64(r, &bytes, what));
    TRY(need(r, bytes, what));
    *out = (text){(const char *)r->g->data + r->at, bytes};
    r->at += bytes;
    return ST_OK;
}

/* Names are short and printable, so that they can stand in errors and logs. */
static status read_name(reader *r, text *out, const char *what) {
    uint64_t start = r->at;
    TRY(read_text(r, out, what));
    bool fine = out->bytes >= 1 && out->bytes <= NAME_MAX_BYTES;
    for (uint64_t i = 0; fine && i < out->bytes; i++)
        fine = out->at[i] > 0x20 && out->at[i] < 0x7f;
    if (fine) return ST_OK;
    return BAD(r, "%s at offset %llu has %llu bytes, expected 1 to %d printable ASCII characters", what,
               (unsigned long long)start, (unsigned long long)out->bytes, NAME_MAX_BYTES);
}

static int compare_text(text a, text b) {
    int order = memcmp(a.at, b.at, a.bytes < b.bytes ? a.bytes : b.bytes);
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static int compare_keys(const void *a, const void *b) {
    return compare_text(((const key *)a)->name, ((const key *)b)->name);
}

static int compare_tensors(const void *a, const void *b) {
    return strcmp((*(const eng_tensor *const *)a)->name, (*(const eng_tensor *const *)b)->name);
}

/* Steps over a text array, noting where every TEXT_STRIDE-th element stands. */
static status read_text_array(reader *r, key *k) {
    if (k->count > (r->g->bytes - r->at) / 8)
        return BAD(r, "key %.*s is an array of %llu texts, more than the file has bytes for",
                   (int)k->name.bytes, k->name.at, (unsigned long long)k->count);
    k->stride = mem_zalloc(k->count / TEXT_STRIDE + 1, sizeof *k->stride);
    if (!k->stride) return error_set(r->err, ST_NO_MEMORY, "%.200s: no memory", r->g->file);
    uint64_t start = r->at;
    for (uint64_t i = 0; i < k->count; i++) {
        text t;
        if (i % TEXT_STRIDE == 0) k->stride[i / TEXT_STRIDE] = r->at - start;
        TRY(read_text(r, &t, "a text of an array"));
    }
    return ST_OK;
}

static status check_bools(reader *r, const key *k) {
    for (uint64_t i = 0; i < k->count; i++)
        if (k->value[i] > 1)
            return BAD(r, "key %.*s is %d, expected a bool of 0 or 1", (int)k->name.bytes, k->name.at,
                       k->value[i]);
    return ST_OK;
}

static status read_key(reader *r, key *k) {
    TRY(read_name(r, &k->name, "name of a key"));
    TRY(read_u32(r, &k->type, "type of a key"));
    k->count = 1;
    if (k->type == VALUE_ARRAY) {
        k->array = true;
        TRY(read_u32(r, &k->type, "type of an array"));
        TRY(read_u64(r, &k->count, "count of an array"));
    }
    if (k->type >= VALUE_TYPES || k->type == VALUE_ARRAY)
        return BAD(r, "key %.*s has %s type %u, expected 0 to 12%s", (int)k->name.bytes, k->name.at,
                   k->array ? "element" : "value", k->type, k->array ? " without 9 (nested array)" : "");
    k->value = r->g->data + r->at;
    text t;
    if (k->type == VALUE_TEXT) return k->array ? read_text_array(r, k) : read_text(r, &t, "a text");
    uint64_t bytes;
    if (__builtin_mul_overflow(k->count, value_types[k->type].bytes, &bytes) ||
        bytes > r->g->bytes - r->at)
        return BAD(r, "key %.*s holds %llu x %s, more than the %llu bytes left in the file",
                   (int)k->name.bytes, k->name.at, (unsigned long long)k->count,
                   value_types[k->type].name, (unsigned long long)(r->g->bytes - r->at));
    r->at += bytes;
    return k->type == VALUE_BOOL ? check_bools(r, k) : ST_OK;
}

static status read_keys(reader *r) {
    eng_gguf *g = r->g;
    if (!(g->keys = mem_zalloc(g->keys_count, sizeof *g->keys)))
        return error_set(r->err, ST_NO_MEMORY, "%.200s: no memory for keys", g->file);
    g->keys_at = r->at;
    for (uint64_t i = 0; i < g->keys_count; i++) {
        TRY(read_key(r, &g->keys[i]));
        g->keys[i].end = g->data + r->at;
    }
    g->keys_end = r->at;
    qsort(g->keys, g->keys_count, sizeof *g->keys, compare_keys);
    for (uint64_t i = 1; i < g->keys_count; i++)
        if (compare_keys(&g->keys[i - 1], &g->keys[i]) == 0)
            return BAD(r, "key %.*s is there twice", (int)g->keys[i].name.bytes, g->keys[i].name.at);
    return ST_OK;
}

static status read_alignment(reader *r) {
    int64_t a = 32;
    status s = eng_gguf_int(r->g, "general.alignment", &a, r->err);
    if (s != ST_OK && s != ST_NOT_FOUND) return s;
    if (a < 8 || a > ALIGNMENT_MAX || (a & (a - 1)))
        return BAD(r, "key general.alignment is %lld, expected a power of two from 8 to %d", (long long)a,
                   ALIGNMENT_MAX);
    r->g->alignment = (uint64_t)a;
    return ST_OK;
}

/* "F32, F16, ...": the types that are read, for an error. */
static const char *types_read(char out[400]) {
    size_t used = 0;
    for (uint32_t i = 0; i < TENSOR_TYPES; i++)
        if (tensor_types[i].block)
            used += (size_t)snprintf(out + used, 400 - used, "%s%s", used ? ", " : "", tensor_types[i].name);
    return out;
}

/* Dimensions and what their product needs in bytes. */
static status read_tensor_shape(reader *r, eng_tensor *t) {
    uint32_t dims, type;
    TRY(read_u32(r, &dims, "dimensions of a tensor"));
    if (dims < 1 || dims > 4)
        return BAD(r, "tensor %s has %u dimensions, expected 1 to 4", t->name, dims);
    uint64_t elements = 1;
    for (uint32_t i = 0; i < dims; i++) {
        uint64_t d;
        TRY(read_u64(r, &d, "dimension of a tensor"));
        if (d < 1 || __builtin_mul_overflow(elements, d, &elements) || elements > INT64_MAX / 8)
            return BAD(r, "tensor %s has dimension %llu, expected at least 1 and a product below 2^60",
                       t->name, (unsigned long long)d);
        t->dim[i] = (int64_t)d;
    }
    t->dims = (int)dims;
    TRY(read_u32(r, &type, "type of a tensor"));
    if (type >= TENSOR_TYPES || !tensor_types[type].block)
        return BAD(r, "tensor %s has type %u (%s), expected %s", t->name, type,
                   type < TENSOR_TYPES && tensor_types[type].name ? tensor_types[type].name : "unknown",
                   types_read((char[400]){0}));
    if (t->dim[0] % tensor_types[type].block)
        return BAD(r, "tensor %s has rows of %lld, expected a multiple of %u for %s", t->name,
                   (long long)t->dim[0], tensor_types[type].block, tensor_types[type].name);
    t->type = (eng_type)type;
    t->bytes = elements / tensor_types[type].block * tensor_types[type].block_bytes;
    return ST_OK;
}

/* Leaves the offset in t->data until place_tensors() knows where the data begins. */
static status read_tensor(reader *r, eng_tensor *t, char **names) {
    text name;
    uint64_t offset;
    TRY(read_name(r, &name, "name of a tensor"));
    memcpy(*names, name.at, name.bytes);
    t->name = *names;
    *names += name.bytes + 1;
    TRY(read_tensor_shape(r, t));
    TRY(read_u64(r, &offset, "offset of a tensor"));
    t->data = (const void *)(uintptr_t)offset;
    return ST_OK;
}

static status place_tensors(reader *r) {
    eng_gguf *g = r->g;
    uint64_t begin = (r->at + g->alignment - 1) & ~(g->alignment - 1);
    uint64_t room = begin < g->bytes ? g->bytes - begin : 0;
    for (uint64_t i = 0; i < g->tensors_count; i++) {
        eng_tensor *t = &g->tensors[i];
        uint64_t offset = (uintptr_t)t->data;
        if (offset % g->alignment)
            return BAD(r, "tensor %s has offset %llu, expected a multiple of %llu", t->name,
                       (unsigned long long)offset, (unsigned long long)g->alignment);
        if (offset > room || t->bytes > room - offset)
            return BAD(r, "tensor %s has %llu bytes at offset %llu, the file's data has %llu", t->name,
                       (unsigned long long)t->bytes, (unsigned long long)offset, (unsigned long long)room);
        t->data = g->data + begin + offset;
    }
    return ST_OK;
}

static status read_tensors(reader *r) {
    eng_gguf *g = r->g;
    uint64_t left = g->bytes - r->at;    /* bounds the sum of all names and their terminators */
    g->tensors = mem_zalloc(g->tensors_count, sizeof *g->tensors);
    g->by_name = mem_zalloc(g->tensors_count, sizeof(const eng_tensor *));
    uint64_t names_bytes = g->tensors_count * (NAME_MAX_BYTES + 1);
    g->names = mem_zalloc(names_bytes < left ? names_bytes : left, 1);
    if (!g->tensors || !g->by_name || !g->names)
        return error_set(r->err, ST_NO_MEMORY, "%.200s: no memory for tensors", g->file);
    char *names = g->names;
    for (uint64_t i = 0; i < g->tensors_count; i++) {
        TRY(read_tensor(r, &g->tensors[i], &names));
        g->by_name[i] = &g->tensors[i];
    }
    qsort(g->by_name, g->tensors_count, sizeof(const eng_tensor *), compare_tensors);
    for (uint64_t i = 1; i < g->tensors_count; i++)
        if (compare_tensors(&g->by_name[i - 1], &g->by_name[i]) == 0)
            return BAD(r, "tensor %s is there twice", g->by_name[i]->name);
    return place_tensors(r);
}

static status read_header(reader *r) {
    eng_gguf *g = r->g;
    uint32_t magic, version;
    TRY(read_u32(r, &magic, "magic"));
    if (magic != 0x46554747)
        return BAD(r, "begins with bytes %02x %02x %02x %02x, expected GGUF", g->data[0], g->data[1],
                   g->data[2], g->data[3]);
    TRY(read_u32(r, &version, "version"));
    if (version != 2 && version != 3)
        return error_set(r->err, ST_UNSUPPORTED, "%.200s: GGUF version %u%s, expected 2 or 3", g->file,
                         version, version && !(version & 0xffffff) ? " (big-endian)" : "");
    TRY(read_u64(r, &g->tensors_count, "count of tensors"));
    TRY(read_u64(r, &g->keys_count, "count of keys"));
    uint64_t keys = g->keys_count, tensors = g->tensors_count;
    if (tensors > g->bytes / 32 || keys > g->bytes / 13) {    /* the smallest entries */
        g->tensors_count = g->keys_count = 0;
        return BAD(r, "says %llu tensors and %llu keys, more than a file of %llu bytes can hold",
                   (unsigned long long)tensors, (unsigned long long)keys, (unsigned long long)g->bytes);
    }
    return ST_OK;
}

static void digest(eng_gguf *g, uint64_t head_bytes) {
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, g->data, head_bytes);
    XXH3_128bits_update(&state, &g->bytes, sizeof g->bytes);
    for (uint64_t i = 0; i < g->tensors_count; i++) {
        const eng_tensor *t = &g->tensors[i];
        size_t span = t->bytes < DIGEST_SPAN ? t->bytes : DIGEST_SPAN;
        XXH3_128bits_update(&state, t->data, span);
        XXH3_128bits_update(&state, (const char *)t->data + t->bytes - span, span);
    }
    XXH128_hash_t h = XXH3_128bits_digest(&state);
    snprintf(g->digest, sizeof g->digest, "%016llx%016llx", (unsigned long long)h.high64,
             (unsigned long long)h.low64);
}

/* general.name, else the last part of the file's path. */
static status set_name(eng_gguf *g, error *err) {
    const char *slash = strrchr(g->file, '/'), *name;
    size_t bytes;
    if (eng_gguf_text(g, "general.name", &name, &bytes, NULL) != ST_OK || bytes == 0 || bytes > 4096) {
        name = slash ? slash + 1 : g->file;
        bytes = strlen(name);
    }
    g->name = mem_zalloc(bytes + 1, 1);
    if (!g->name) return error_set(err, ST_NO_MEMORY, "%.200s: no memory", g->file);
    memcpy(g->name, name, bytes);
    return ST_OK;
}

static status parse(eng_gguf *g, error *err) {
    reader r = {.g = g, .err = err};
    TRY(read_header(&r));
    TRY(read_keys(&r));
    TRY(read_alignment(&r));
    TRY(read_tensors(&r));
    TRY(set_name(g, err));
    digest(g, r.at);
    return ST_OK;
}

/* ---- looking things up ------------------------------------------------------------------------- */

static int compare_tensor_name(const void *name, const void *entry) {
    return strcmp(name, (*(const eng_tensor *const *)entry)->name);
}

const eng_tensor *eng_gguf_tensor(const eng_gguf *g, const char *name) {
    const eng_tensor *const *found =
        bsearch(name, g->by_name, g->tensors_count, sizeof *found, compare_tensor_name);
    return found ? *found : NULL;
}

int64_t eng_gguf_tensor_count(const eng_gguf *g) { return (int64_t)g->tensors_count; }

const eng_tensor *eng_gguf_tensor_at(const eng_gguf *g, int64_t index) {
    return index >= 0 && (uint64_t)index < g->tensors_count ? &g->tensors[index] : NULL;
}

const char *eng_gguf_name(const eng_gguf *g) { return g->name; }
const char *eng_gguf_file(const eng_gguf *g) { return g->file; }
const char *eng_gguf_digest(const eng_gguf *g) { return g->digest; }

const void *eng_gguf_keys(const eng_gguf *g, uint64_t *count, size_t *bytes) {
    *count = g->keys_count;
    *bytes = g->keys_end - g->keys_at;
    return g->data + g->keys_at;
}

const void *eng_gguf_key(const eng_gguf *g, const char *name, size_t *bytes) {
    const key *k = find_key(g, name);
    if (!k) return NULL;
    const char *entry = k->name.at - 8;
    *bytes = (size_t)((const char *)k->end - entry);
    return entry;
}

uint64_t eng_gguf_alignment(const eng_gguf *g) { return g->alignment; }

const char *eng_gguf_type_name(eng_type type) { return tensor_types[type].name; }

size_t eng_gguf_type_bytes(eng_type type, int64_t n) {
    int64_t block = tensor_types[type].block;
    return n % block ? 0 : (size_t)(n / block) * tensor_types[type].block_bytes;
}

static const key *find_key(const eng_gguf *g, const char *name) {
    key wanted = {.name = {name, strlen(name)}};
    return bsearch(&wanted, g->keys, g->keys_count, sizeof *g->keys, compare_keys);
}

/* The key's element at index (array) or its value (scalar: index -1). */
static status element(const eng_gguf *g, const char *name, int64_t index, const key **out, error *err) {
    const key *k = find_key(g, name);
    if (!k) return error_set(err, ST_NOT_FOUND, "%.200s: key %.100s is absent", g->file, name);
    if (k->array != (index >= 0))
        return bad(g, err, "key %s is %s, expected %s", name, k->array ? "an array" : "a single value",
                   k->array ? "a single value" : "an array");
    if (k->array && (uint64_t)index >= k->count)
        return bad(g, err, "key %s has %llu elements, index %lld asked for", name,
                   (unsigned long long)k->count, (long long)index);
    *out = k;
    return ST_OK;
}

static status wrong_type(const eng_gguf *g, const key *k, const char *name, const char *expected,
                         error *err) {
    return bad(g, err, "key %s is %s, expected %s", name, value_types[k->type].name, expected);
}

#define LOAD(type_, at_) ({ type_ load_; memcpy(&load_, at_, sizeof load_); load_; })

static status to_int(const eng_gguf *g, const char *name, int64_t index, int64_t *out, error *err) {
    const key *k;
    TRY(element(g, name, index, &k, err));
    const unsigned char *v = k->value + (index < 0 ? 0 : (uint64_t)index) * value_types[k->type].bytes;
    switch (k->type) {
    case VALUE_U8: *out = LOAD(uint8_t, v); return ST_OK;
    case VALUE_I8: *out = LOAD(int8_t, v); return ST_OK;
    case VALUE_U16: *out = LOAD(uint16_t, v); return ST_OK;
    case VALUE_I16: *out = LOAD(int16_t, v); return ST_OK;
    case VALUE_U32: *out = LOAD(uint32_t, v); return ST_OK;
    case VALUE_I32: *out = LOAD(int32_t, v); return ST_OK;
    case VALUE_I64: *out = LOAD(int64_t, v); return ST_OK;
    case VALUE_U64: break;
    default: return wrong_type(g, k, name, "an integer", err);
    }
    uint64_t u = LOAD(uint64_t, v);
    if (u > INT64_MAX)
        return bad(g, err, "key %s is %llu, expected below 2^63", name, (unsigned long long)u);
    *out = (int64_t)u;
    return ST_OK;
}

static status to_real(const eng_gguf *g, const char *name, int64_t index, double *out, error *err) {
    const key *k;
    TRY(element(g, name, index, &k, err));
    const unsigned char *v = k->value + (index < 0 ? 0 : (uint64_t)index) * value_types[k->type].bytes;
    if (k->type == VALUE_F32) *out = LOAD(float, v);
    else if (k->type == VALUE_F64) *out = LOAD(double, v);
    else return wrong_type(g, k, name, "f32 or f64", err);
    return ST_OK;
}

status eng_gguf_int(const eng_gguf *g, const char *key_name, int64_t *out, error *err) {
    return to_int(g, key_name, -1, out, err);
}

status eng_gguf_real(const eng_gguf *g, const char *key_name, double *out, error *err) {
    return to_real(g, key_name, -1, out, err);
}

status eng_gguf_bool(const eng_gguf *g, const char *key_name, bool *out, error *err) {
    const key *k;
    TRY(element(g, key_name, -1, &k, err));
    if (k->type != VALUE_BOOL) return wrong_type(g, k, key_name, "a bool", err);
    *out = k->value[0] != 0;
    return ST_OK;
}

status eng_gguf_text(const eng_gguf *g, const char *key_name, const char **out, size_t *bytes,
                     error *err) {
    const key *k;
    TRY(element(g, key_name, -1, &k, err));
    if (k->type != VALUE_TEXT) return wrong_type(g, k, key_name, "a text", err);
    *bytes = LOAD(uint64_t, k->value);
    *out = (const char *)k->value + 8;
    return ST_OK;
}

status eng_gguf_array_count(const eng_gguf *g, const char *key_name, int64_t *count, error *err) {
    const key *k = find_key(g, key_name);
    if (!k) return error_set(err, ST_NOT_FOUND, "%.200s: key %.100s is absent", g->file, key_name);
    if (!k->array) return bad(g, err, "key %s is a single value, expected an array", key_name);
    *count = (int64_t)k->count;
    return ST_OK;
}

status eng_gguf_array_text(const eng_gguf *g, const char *key_name, int64_t index, const char **out,
                           size_t *bytes, error *err) {
    const key *k;
    TRY(element(g, key_name, index < 0 ? INT64_MAX : index, &k, err));
    if (k->type != VALUE_TEXT) return wrong_type(g, k, key_name, "texts", err);
    const unsigned char *v = k->value + k->stride[index / TEXT_STRIDE];
    for (int64_t i = index % TEXT_STRIDE; i; i--) v += 8 + LOAD(uint64_t, v);
    *bytes = LOAD(uint64_t, v);
    *out = (const char *)v + 8;
    return ST_OK;
}

status eng_gguf_array_int(const eng_gguf *g, const char *key_name, int64_t index, int64_t *out,
                          error *err) {
    return to_int(g, key_name, index < 0 ? INT64_MAX : index, out, err);
}

status eng_gguf_array_real(const eng_gguf *g, const char *key_name, int64_t index, double *out,
                           error *err) {
    return to_real(g, key_name, index < 0 ? INT64_MAX : index, out, err);
}
