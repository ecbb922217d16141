/* status.c -- names, texts and gRPC codes of the status list, and filling an error. */
#include "base/base.h"

static const struct {
    const char *name, *text;
    int grpc;
} table[ST_COUNT] = {
#define X(name, text, code) {#name, text, code},
    STATUS_LIST(X)
#undef X
};

static bool known(status s) { return (unsigned)s < ST_COUNT; }

const char *status_name(status s) { return known(s) ? table[s].name : "ST_?"; }
const char *status_text(status s) { return known(s) ? table[s].text : "unknown status"; }
int status_to_grpc(status s) { return known(s) ? table[s].grpc : table[ST_INTERNAL].grpc; }

status status_from_grpc(int code) {
    if (code == table[ST_INTERNAL].grpc) return ST_INTERNAL;
    for (int s = 0; s < ST_COUNT; s++)
        if (table[s].grpc == code) return (status)s;
    return ST_INTERNAL;
}

status error_set(error *err, status s, const char *fmt, ...) {
    if (!err) return s;
    va_list args;
    va_start(args, fmt);
    err->code = s;
    vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    return s;
}
