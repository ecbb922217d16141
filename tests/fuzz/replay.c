/* replay.c -- runs a fuzz entry over the files of its corpus folder, one by one, and then over
 * mutations of them: bytes flipped, cut, doubled, from a fixed seed. No fuzzer needed, so it runs in
 * every test run and under every sanitizer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { FILE_MAX = 1 << 20, MUTATIONS = 400 };

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random_next(void) { /* xorshift64*, Vigna 2016 */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1du;
}

/* Runs on an exact-size copy, so that a sanitizer sees a read past the end. */
static void run(const uint8_t *data, size_t bytes) {
    uint8_t *copy = malloc(bytes ? bytes : 1);
    if (!copy) abort();
    memcpy(copy, data, bytes);
    LLVMFuzzerTestOneInput(copy, bytes);
    free(copy);
}

static void mutate(uint8_t *data, size_t *bytes) {
    for (int edits = 1 + (int)(random_next() % 4); edits && *bytes; edits--) {
        size_t at = random_next() % *bytes;
        switch (random_next() % 4) {
        case 0: data[at] ^= (uint8_t)(1u << (random_next() % 8)); break;
        case 1: data[at] = (uint8_t)random_next(); break;
        case 2: *bytes = at; break;
        default: memset(data + at, (random_next() & 1) ? 0xff : 0, *bytes - at < 8 ? *bytes - at : 8);
        }
    }
}

static int replay_file(const char *path) {
    static uint8_t seed[FILE_MAX], work[FILE_MAX];
    FILE *f = fopen(path, "rb");
    if (!f) return 0;
    size_t bytes = fread(seed, 1, FILE_MAX, f);
    fclose(f);
    run(seed, bytes);
    for (int i = 0; i < MUTATIONS; i++) {
        size_t length = bytes;
        memcpy(work, seed, bytes);
        mutate(work, &length);
        run(work, length);
    }
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    DIR *dir = opendir(argv[1]);
    if (!dir) {
        fprintf(stderr, "%s: no corpus folder\n", argv[1]);
        return 1;
    }
    int files = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        char path[1024];
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], e->d_name);
        files += replay_file(path);
    }
    closedir(dir);
    printf("%s: %d files, %d mutations each\n", argv[1], files, MUTATIONS);
    return files ? 0 : 1; /* an empty corpus tests nothing */
}
