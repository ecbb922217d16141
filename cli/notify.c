/* notify.c -- tells systemd when the process serves and when it drains: a datagram to $NOTIFY_SOCKET, as sd_notify(3)
 * describes the protocol. Without that variable: nothing. Not by libsystemd: the protocol is stable, and it is one sendto. */
#include "cli/cli.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void cli_notify(const char *state) {
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t bytes = path ? strlen(path) : 0;
    if (bytes < 2 || bytes >= sizeof to.sun_path || (path[0] != '/' && path[0] != '@')) return;
    memcpy(to.sun_path, path, bytes);
    if (path[0] == '@') to.sun_path[0] = 0;                /* an abstract name */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    if (sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes)) < 0)
        log_write(LOG_WARN, NULL, "notify.unheard", "%s to %s", state, path);
    close(fd);
}
