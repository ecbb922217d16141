/* address.c -- "HOST:PORT". */
#include "base/base.h"
#include <string.h>

static bool is_port(const char *text) {
    unsigned value = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9' && value < 65536; at++) value = value * 10 + (unsigned)(*at - '0');
    return at > text && !*at && value < 65536;
}

bool address_split(const char *text, char *host, size_t host_bytes, const char **port) {
    const char *colon = strrchr(text, ':');
    if (!colon || !is_port(colon + 1)) return false;
    size_t bytes = (size_t)(colon - text);
    if (text[0] == '[') {
        if (bytes < 3 || text[bytes - 1] != ']') return false;
        text++;
        bytes -= 2;
    } else if (memchr(text, ':', bytes)) {
        return false;                /* a bare IPv6 address: where its port begins cannot be told */
    }
    if (bytes == 0 || bytes >= host_bytes) return false;
    memcpy(host, text, bytes);
    host[bytes] = 0;
    *port = colon + 1;
    return true;
}
