/* tokens.c -- which bearer token belongs to whom, from a file:
 *
 *   TOKEN TENANT [admin]            # one a line; empty lines and what follows # are no tokens
 *
 * TOKEN is the token itself, at least TOKEN_MIN characters, or sha256: and the 64 hexadecimal digits of its SHA-256, so
 * that the file alone opens nothing. Only digests are kept in memory. Errors name the line and never what stands there. */
#include "rpc/internal.h"
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>

enum { TOKEN_MIN = 16, DIGEST_BYTES = 32 };

typedef struct row {
    uint8_t digest[DIGEST_BYTES];
    rpc_caller caller;
} row;

struct rpc_tokens {
    int count;
    row rows[];
};

static bool digest_of(const char *token, uint8_t out[DIGEST_BYTES]) {
    return EVP_Digest(token, strlen(token), out, NULL, EVP_sha256(), NULL) == 1;
}

static bool read_hex(const char *text, uint8_t out[DIGEST_BYTES]) {
    if (strlen(text) != 2 * DIGEST_BYTES || strspn(text, "0123456789abcdefABCDEF") != 2 * DIGEST_BYTES) return false;
    for (int i = 0; i < DIGEST_BYTES; i++) {
        unsigned byte;
        sscanf(text + 2 * i, "%2x", &byte);
        out[i] = (uint8_t)byte;
    }
    return true;
}

static const row *find(const rpc_tokens *t, const uint8_t digest[DIGEST_BYTES]) {
    const row *found = NULL;
    for (int i = 0; i < t->count; i++)
        if (CRYPTO_memcmp(t->rows[i].digest, digest, DIGEST_BYTES) == 0) found = &t->rows[i];
    return found;
}

static status read_line(rpc_tokens *t, char *line, const char *path, int number, error *err) {
    static const char hashed[] = "sha256:";
    char *save, *token, *tenant, *admin;
    row *r = &t->rows[t->count];
    line[strcspn(line, "#")] = 0;
    if (!(token = strtok_r(line, " \t\r", &save))) return ST_OK;
    tenant = strtok_r(NULL, " \t\r", &save);
    admin = tenant ? strtok_r(NULL, " \t\r", &save) : NULL;
    if (!tenant || !rpc_name_valid(tenant) || (admin && strcmp(admin, "admin") != 0) || strtok_r(NULL, " \t\r", &save))
        return error_set(err, ST_BAD_INPUT, "'%.200s' line %d: expected TOKEN TENANT [admin], TENANT of letters, digits, '.', '_', '-'",
                         path, number);
    bool is_digest = strncmp(token, hashed, sizeof hashed - 1) == 0;
    if (is_digest && !read_hex(token + sizeof hashed - 1, r->digest))
        return error_set(err, ST_BAD_INPUT, "'%.200s' line %d: expected 64 hexadecimal digits after sha256:", path, number);
    if (!is_digest && strlen(token) < TOKEN_MIN)
        return error_set(err, ST_BAD_INPUT, "'%.200s' line %d: expected a token of at least %d characters", path, number, TOKEN_MIN);
    if (!is_digest && !digest_of(token, r->digest)) return error_set(err, ST_NO_MEMORY, "no memory for tokens");
    if (find(t, r->digest)) return error_set(err, ST_BAD_INPUT, "'%.200s' line %d: an earlier line has this token", path, number);
    r->caller.roles = RPC_CLIENT | (admin ? RPC_ADMIN : 0);
    snprintf(r->caller.name, sizeof r->caller.name, "%s", tenant);
    t->count++;
    return ST_OK;
}

status rpc_tokens_load(const char *path, rpc_tokens **out, error *err) {
    char *text;
    size_t lines = 1;
    TRY(rpc_file_read(path, true, &text, err));
    size_t bytes = strlen(text);
    for (size_t i = 0; i < bytes; i++) lines += text[i] == '\n';
    rpc_tokens *t = mem_zalloc(1, sizeof *t + lines * sizeof *t->rows);
    status st = t ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory for %zu tokens", lines);
    int number = 1;
    for (char *line = text, *end; st == ST_OK && line; line = end, number++) {
        end = strchr(line, '\n');
        if (end) *end++ = 0;
        st = read_line(t, line, path, number, err);
    }
    OPENSSL_cleanse(text, bytes);    /* it has NULs now */
    mem_free(text);
    if (st == ST_OK) *out = t;
    else mem_free(t);
    return st;
}

void rpc_tokens_free(rpc_tokens *t) { mem_free(t); }

bool rpc_tokens_find(const rpc_tokens *t, const char *token, rpc_caller *out) {
    uint8_t digest[DIGEST_BYTES];
    const row *r = digest_of(token, digest) ? find(t, digest) : NULL;
    if (r) *out = r->caller;
    return r != NULL;
}
