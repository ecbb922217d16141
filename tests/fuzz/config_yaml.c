/* config_yaml.c -- fuzz entry of base/config.c: any bytes as the --config file. */
#include "base/base.h"
#include <sys/mman.h>
#include <unistd.h>

/* libfyaml 0.7 leaks a buffer of its own when it refuses a quoted scalar; ours are counted all the same. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libfyaml"; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef struct options {
    const char *model;
    int64_t pages;
    double share;
    bool trace;
} options;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const config_row rows[] = {
        {"model", CONFIG_TEXT, offsetof(options, model), NULL, 0, 0, "FILE", "model file"},
        {"pages", CONFIG_INT, offsetof(options, pages), "64", 1, 4096, "N", "pages"},
        {"share", CONFIG_REAL, offsetof(options, share), "0.5", 0, 1, "X", "a share"},
        {"trace", CONFIG_SWITCH, offsetof(options, trace), NULL, 0, 0, NULL, "trace it"},
    };
    char path[40], program[] = "baton", flag[] = "--config";
    char *argv[] = {program, flag, path};
    int fd = memfd_create("config", MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    arena *a = arena_create(4096);
    options out;
    error err;
    int rest_count;
    if (fd >= 0 && a && write(fd, data, bytes) == (ssize_t)bytes) {
        if (config_parse(rows, 4, 3, argv, a, &out, NULL, 0, &rest_count, &err) == ST_OK &&
            (out.pages < 1 || out.pages > 4096 || !(out.share >= 0 && out.share <= 1)))
            __builtin_trap();
    }
    arena_destroy(a);
    close(fd);
    return 0;
}
