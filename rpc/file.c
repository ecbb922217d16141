/* file.c -- small files that are read whole, and again when they have changed: certificates, keys, tokens.
 *
 * A file has changed when its time, its size or its place on the disk has. What is looked at is noted before the file
 * is read, so a change in between is seen by the next look. */
#include "rpc/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BYTES_MAX = 1 << 20 };

bool rpc_file_look(const char *path, rpc_file_stamp *stamp) {
    struct stat s;
    rpc_file_stamp now = {0};
    if (stat(path, &s) == 0)
        now = (rpc_file_stamp){(int64_t)s.st_mtim.tv_sec * 1000000000 + s.st_mtim.tv_nsec, (int64_t)s.st_size, (uint64_t)s.st_ino};
    bool same = now.mtime_ns == stamp->mtime_ns && now.bytes == stamp->bytes && now.inode == stamp->inode;
    *stamp = now;
    return !same;
}

static status check(int fd, const char *path, bool secret, size_t *bytes, error *err) {
    struct stat s;
    if (fstat(fd, &s) != 0) return error_set(err, ST_IO, "'%.200s': %s", path, strerror(errno));
    if (!S_ISREG(s.st_mode) || s.st_size > BYTES_MAX)
        return error_set(err, ST_BAD_INPUT, "'%.200s': expected a file of at most %d bytes", path, BYTES_MAX);
    if (secret && (s.st_mode & (S_IWGRP | S_IRWXO)))
        return error_set(err, ST_DENIED, "'%.200s' has mode %04o: expected 0600 or 0640, others must not read a secret", path,
                         (unsigned)(s.st_mode & 07777));
    *bytes = (size_t)s.st_size;
    return ST_OK;
}

static status read_whole(int fd, const char *path, char *text, size_t bytes, error *err) {
    size_t used = 0;
    for (ssize_t n; used < bytes && (n = read(fd, text + used, bytes - used)) != 0; used += (size_t)n) {
        if (n > 0) continue;
        if (errno != EINTR) return error_set(err, ST_IO, "'%.200s': %s", path, strerror(errno));
        n = 0;
    }
    text[used] = 0;
    if (strlen(text) != used) return error_set(err, ST_BAD_INPUT, "'%.200s': expected text, there is a NUL in it", path);
    return ST_OK;
}

status rpc_file_read(const char *path, bool secret, char **out, error *err) {
    size_t bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "'%.200s': %s", path, strerror(errno));
    char *text = NULL;
    status st = check(fd, path, secret, &bytes, err);
    if (st == ST_OK && !(text = mem_alloc(bytes + 1))) st = error_set(err, ST_NO_MEMORY, "no memory for '%.200s'", path);
    if (st == ST_OK) st = read_whole(fd, path, text, bytes, err);
    close(fd);
    if (st == ST_OK) *out = text;
    else rpc_file_free(text);
    return st;
}

void rpc_file_free(char *text) {
    if (text) OPENSSL_cleanse(text, strlen(text));
    mem_free(text);
}
