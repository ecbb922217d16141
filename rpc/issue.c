/* issue.c -- certificates for the processes of a cluster, and the CA they come from; rpc/pem.c reads them.
 *
 *   CA      may sign certificates, and none of those may sign another
 *   others  baton://ROLE/NAME for each role and the hosts among the alternative names; a client of TLS all of them,
 *           a server those that listen: coordinators and nodes
 *
 * Keys are P-256, signatures ECDSA with SHA-256, serial numbers 127 random bits. */
#include "rpc/internal.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <unistd.h>

enum { NAMES_MAX = 2048 };

static status no_memory(error *err) {
    ERR_clear_error();
    return error_set(err, ST_NO_MEMORY, "no memory for a certificate");
}

/* ---- alternative names ---------------------------------------------------------------------------- */

static bool host_valid(const char *host, bool *is_ip) {
    unsigned char binary[16];
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-";
    *is_ip = inet_pton(AF_INET, host, binary) == 1 || inet_pton(AF_INET6, host, binary) == 1;
    size_t bytes = strlen(host);
    return *is_ip || (bytes > 0 && bytes < RPC_HOST_MAX && strspn(host, letters) == bytes && host[0] != '-' && host[0] != '.');
}

static status add_hosts(const char *hosts, char *names, size_t used, error *err) {
    while (*hosts) {
        char host[RPC_HOST_MAX];
        bool is_ip;
        size_t bytes = strcspn(hosts, ",");
        snprintf(host, sizeof host, "%.*s", (int)bytes, hosts);
        if (bytes >= sizeof host || !host_valid(host, &is_ip))
            return error_set(err, ST_BAD_INPUT, "host '%.100s': expected a DNS name or an IP address", host);
        used += (size_t)snprintf(names + used, NAMES_MAX - used, "%s%s:%s", used ? "," : "", is_ip ? "IP" : "DNS", host);
        if (used >= NAMES_MAX) return error_set(err, ST_BAD_INPUT, "hosts: expected at most %d bytes of them", NAMES_MAX);
        hosts += bytes + (hosts[bytes] == ',');
    }
    return ST_OK;
}

static status write_names(const rpc_issue_options *o, char names[NAMES_MAX], error *err) {
    size_t used = 0;
    for (unsigned role = 1; role <= RPC_ADMIN; role *= 2) {
        char text[32];
        if (!(o->roles & role)) continue;
        used += (size_t)snprintf(names + used, NAMES_MAX - used, "%sURI:baton://%s/%s", used ? "," : "",
                                 rpc_role_text(role, text, sizeof text), o->name);
    }
    return o->hosts ? add_hosts(o->hosts, names, used, err) : ST_OK;
}

/* ---- a certificate -------------------------------------------------------------------------------- */

static bool add_extension(X509 *x, X509 *issuer, int nid, const char *value) {
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
    X509_EXTENSION *e = X509V3_EXT_nconf_nid(NULL, &ctx, nid, value);
    bool fine = e && X509_add_ext(x, e, -1) == 1;
    X509_EXTENSION_free(e);
    return fine;
}

static bool add_extensions(X509 *x, X509 *issuer, const rpc_issue_options *o, const char *names) {
    bool ca = issuer == x, listens = o->roles & (RPC_COORDINATOR | RPC_NODE);
    bool fine = add_extension(x, issuer, NID_basic_constraints, ca ? "critical,CA:TRUE,pathlen:0" : "critical,CA:FALSE") &&
                add_extension(x, issuer, NID_key_usage, ca ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature") &&
                add_extension(x, issuer, NID_subject_key_identifier, "hash") &&
                add_extension(x, issuer, NID_authority_key_identifier, "keyid:always");
    if (!fine || ca) return fine;
    return add_extension(x, issuer, NID_ext_key_usage, listens ? "serverAuth,clientAuth" : "clientAuth") &&
           add_extension(x, issuer, NID_subject_alt_name, names);
}

static bool set_serial(X509 *x) {
    BIGNUM *n = BN_new();
    bool fine = n && BN_rand(n, 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) && BN_to_ASN1_INTEGER(n, X509_get_serialNumber(x));
    BN_free(n);
    return fine;
}

static bool set_subject(X509 *x, const char *name) {
    X509_NAME *subject = X509_get_subject_name(x);
    return X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_ASC, (const unsigned char *)"baton", -1, -1, 0) &&
           X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
}

/* issuer NULL: signs itself. */
static X509 *create(const rpc_issue_options *o, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key, const char *names) {
    X509 *x = X509_new();
    bool fine = x && X509_set_version(x, X509_VERSION_3) && set_serial(x) && set_subject(x, o->name) &&
                ASN1_TIME_set(X509_getm_notBefore(x), o->begins_s) && ASN1_TIME_set(X509_getm_notAfter(x), o->ends_s) &&
                X509_set_pubkey(x, key) && X509_set_issuer_name(x, X509_get_subject_name(issuer ? issuer : x)) &&
                add_extensions(x, issuer ? issuer : x, o, names) && X509_sign(x, issuer ? issuer_key : key, EVP_sha256());
    if (fine) return x;
    X509_free(x);
    return NULL;
}

/* ---- the CA --------------------------------------------------------------------------------------- */

typedef struct authority {
    STACK_OF(X509) *certs;
    EVP_PKEY *key;
} authority;

static status check_authority(const rpc_issue_options *o, const authority *a, error *err) {
    if (!a->certs) return error_set(err, ST_BAD_INPUT, "'%.200s': expected a certificate in PEM", o->ca_cert);
    if (!a->key) return error_set(err, ST_BAD_INPUT, "'%.200s': expected a private key in PEM, not encrypted", o->ca_key);
    X509 *x = sk_X509_value(a->certs, 0);
    time_t ends = (time_t)o->ends_s;
    if (X509_check_private_key(x, a->key) != 1)
        return error_set(err, ST_DENIED, "'%.200s' is not the key of '%.150s'", o->ca_key, o->ca_cert);
    if (X509_check_ca(x) != 1) return error_set(err, ST_DENIED, "'%.200s' is no CA's certificate", o->ca_cert);
    if (X509_cmp_time(X509_get0_notAfter(x), &ends) < 0)
        return error_set(err, ST_BAD_INPUT, "'%.200s' ends before the certificate would: expected fewer days", o->ca_cert);
    return ST_OK;
}

static status open_authority(const rpc_issue_options *o, authority *a, error *err) {
    char *cert = NULL, *key = NULL;
    if (!o->ca_cert) return ST_OK;
    status st = rpc_file_read(o->ca_cert, false, &cert, err);
    if (st == ST_OK) st = rpc_file_read(o->ca_key, true, &key, err);
    if (st == ST_OK) {
        a->certs = rpc_pem_certificates(cert);
        a->key = rpc_pem_key(key);
        st = check_authority(o, a, err);
    }
    rpc_file_free(cert);
    rpc_file_free(key);
    return st;
}

/* ---- files ---------------------------------------------------------------------------------------- */

static status open_new(const char *path, mode_t mode, FILE **out, error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd >= 0 && (*out = fdopen(fd, "w"))) return ST_OK;
    int cause = errno;
    if (fd >= 0) close(fd);
    if (cause == EEXIST) return error_set(err, ST_REFUSED, "'%.200s' is there already: nothing was written", path);
    return error_set(err, ST_IO, "'%.200s': %s", path, strerror(cause));
}

static status close_new(FILE *f, bool written, const char *path, error *err) {
    if (fclose(f) == 0 && written) return ST_OK;
    unlink(path);
    return error_set(err, ST_IO, "'%.200s' cannot be written: %s", path, strerror(errno));
}

static status write_files(const rpc_issue_options *o, X509 *x, EVP_PKEY *key, error *err) {
    FILE *f;
    if (access(o->cert, F_OK) == 0) return error_set(err, ST_REFUSED, "'%.200s' is there already: nothing was written", o->cert);
    TRY(open_new(o->key, 0600, &f, err));
    TRY(close_new(f, PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) == 1, o->key, err));
    status st = open_new(o->cert, 0644, &f, err);
    if (st == ST_OK) st = close_new(f, PEM_write_X509(f, x) == 1, o->cert, err);
    if (st != ST_OK) unlink(o->key);
    return st;
}

status rpc_issue(const rpc_issue_options *o, error *err) {
    char names[NAMES_MAX] = "";
    authority a = {0};
    EVP_PKEY *key = NULL;
    X509 *x = NULL;
    if (!rpc_name_valid(o->name))
        return error_set(err, ST_BAD_INPUT, "name '%.100s': expected at most %d letters, digits, '.', '_', '-'", o->name, RPC_NAME_MAX - 1);
    status st = write_names(o, names, err);
    if (st == ST_OK) st = open_authority(o, &a, err);
    if (st == ST_OK && !(key = EVP_EC_gen("P-256"))) st = no_memory(err);
    if (st == ST_OK && !(x = create(o, key, a.certs ? sk_X509_value(a.certs, 0) : NULL, a.key, names))) st = no_memory(err);
    if (st == ST_OK) st = write_files(o, x, key, err);
    X509_free(x);
    EVP_PKEY_free(key);
    EVP_PKEY_free(a.key);
    sk_X509_pop_free(a.certs, X509_free);
    return st;
}
