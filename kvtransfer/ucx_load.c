/* ucx_load.c -- UCX opened at run time, and what is set for it unless its user has (UCX_... in the environment). */
#include "kvtransfer/ucx.h"
#include <dlfcn.h>
#include <stdlib.h>

#define UCX_NAME "libucp.so.0"

/* Read by the library when it is opened, and nowhere else to be set. */
static const struct setting {
    const char *name, *value;
} settings[] = {
    {"UCX_LOG_LEVEL", "fatal"},          /* a port that is taken, a peer that left: we say it ourselves */
    {"UCX_HANDLE_ERRORS", "none"},       /* no signal handlers */
    {"UCX_VFS_ENABLE", "n"},             /* no thread that shows its insides */
    {"UCX_MEM_EVENTS", "n"},             /* malloc() and mmap() stay what they are: this process has threads already */
    {"UCX_TCP_CM_REUSEADDR", "y"},       /* a node comes back at its address */
    {"UCX_KEEPALIVE_INTERVAL", "4s"},    /* a host that vanished is known within KVT_STALL_MS, as over tcp */
    {"UCX_TCP_KEEPIDLE", "4s"},
    {"UCX_TCP_KEEPINTVL", "2s"},
    {"UCX_TCP_KEEPCNT", "3"},
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static ucx_functions functions;

#define X(field, function) {#function, (void **)&table->field},
static status open_library(ucx_functions *table, error *err) {
    const struct {
        const char *name;
        void **at;
    } symbols[] = {UCX_FUNCTIONS(X)};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) setenv(settings[i].name, settings[i].value, 0);
    void *library = dlopen(UCX_NAME, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return error_set(err, ST_UNSUPPORTED, "KV transport \"ucx\" needs " UCX_NAME " (package libucx0), which cannot be "
                         "opened: %s", dlerror());
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        *symbols[i].at = dlsym(library, symbols[i].name);
        if (*symbols[i].at) continue;
        dlclose(library);
        return error_set(err, ST_UNSUPPORTED, "KV transport \"ucx\": " UCX_NAME " has no function %s, expected UCX %d.%d or "
                         "newer", symbols[i].name, UCP_API_MAJOR, UCP_API_MINOR);
    }
    return ST_OK;
}
#undef X

status kvt_ucx_load(const ucx_functions **out, error *err) {
    pthread_mutex_lock(&lock);
    status s = functions.status_text ? ST_OK : open_library(&functions, err);
    if (s != ST_OK) functions = (ucx_functions){0};
    *out = &functions;
    pthread_mutex_unlock(&lock);
    return s;
}
