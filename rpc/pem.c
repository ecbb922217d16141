/* pem.c -- who a process is and whom it trusts: three PEM files, read together and checked before gRPC sees them, which
 * would only say that a handshake failed.
 *
 *   ca     the certificates from which those of others must come
 *   cert   this process's own certificate, then those between it and the CA if there are any
 *   key    its private key, not encrypted; others than owner and group must not read it
 *
 * What a certificate's holder is in the cluster stands among the subject's alternative names, as a URI for each role:
 * baton://ROLE/NAME. A client's NAME is its tenant. rpc/issue.c writes such certificates. */
#include "rpc/internal.h"
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

/* ---- roles ---------------------------------------------------------------------------------------- */

static const struct { const char *name; unsigned role; } roles[] = {
    {"coordinator", RPC_COORDINATOR}, {"node", RPC_NODE}, {"client", RPC_CLIENT}, {"admin", RPC_ADMIN}};
enum { ROLES = sizeof roles / sizeof *roles };

bool rpc_name_valid(const char *name) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t bytes = strlen(name);
    return bytes > 0 && bytes < RPC_NAME_MAX && strspn(name, letters) == bytes && name[0] != '.' && name[0] != '-';
}

unsigned rpc_role_find(const char *name) {
    for (int i = 0; i < ROLES; i++)
        if (strcmp(roles[i].name, name) == 0) return roles[i].role;
    return 0;
}

const char *rpc_role_text(unsigned set, char *out, size_t bytes) {
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < ROLES; i++)
        if ((set & roles[i].role) && used < bytes)
            used += (size_t)snprintf(out + used, bytes - used, "%s%s", used ? "," : "", roles[i].name);
    return out;
}

unsigned rpc_role_read(const char *uri, char name[RPC_NAME_MAX]) {
    static const char scheme[] = "baton://";
    char role[16];
    if (strncmp(uri, scheme, sizeof scheme - 1) != 0) return 0;
    uri += sizeof scheme - 1;
    size_t bytes = strcspn(uri, "/");
    if (uri[bytes] != '/' || bytes >= sizeof role || !rpc_name_valid(uri + bytes + 1)) return 0;
    memcpy(role, uri, bytes);
    role[bytes] = 0;
    memcpy(name, uri + bytes + 1, strlen(uri + bytes + 1) + 1);
    return rpc_role_find(role);
}

static unsigned roles_of(const X509 *cert) {
    unsigned set = 0;
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);
        char uri[128], name[RPC_NAME_MAX];
        if (n->type != GEN_URI) continue;
        int bytes = ASN1_STRING_length(n->d.uniformResourceIdentifier);
        if (bytes <= 0 || (size_t)bytes >= sizeof uri) continue;
        memcpy(uri, ASN1_STRING_get0_data(n->d.uniformResourceIdentifier), (size_t)bytes);
        uri[bytes] = 0;
        if (strlen(uri) == (size_t)bytes) set |= rpc_role_read(uri, name);
    }
    GENERAL_NAMES_free(names);
    return set;
}

/* ---- reading PEM ---------------------------------------------------------------------------------- */

/* A key that needs a passphrase is not waited for: no terminal is asked. */
static int no_passphrase(char *buffer, int bytes, int writing, void *ctx) {
    (void)buffer, (void)bytes, (void)writing, (void)ctx;
    return 0;
}

void *rpc_pem_certificates(const char *text) {
    STACK_OF(X509) *all = sk_X509_new_null();
    BIO *in = BIO_new_mem_buf(text, -1);
    for (X509 *x; all && in && (x = PEM_read_bio_X509(in, NULL, no_passphrase, NULL));)
        if (!sk_X509_push(all, x)) X509_free(x);
    BIO_free(in);
    ERR_clear_error();               /* the end of the file is one */
    if (sk_X509_num(all) > 0) return all;
    sk_X509_free(all);
    return NULL;
}

void *rpc_pem_key(const char *text) {
    BIO *in = BIO_new_mem_buf(text, -1);
    EVP_PKEY *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_passphrase, NULL) : NULL;
    BIO_free(in);
    ERR_clear_error();
    return key;
}

/* ---- checking ------------------------------------------------------------------------------------- */

static void write_day(const ASN1_TIME *t, char out[40]) {
    struct tm tm;
    if (!ASN1_TIME_to_tm(t, &tm) || strftime(out, 40, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0) snprintf(out, 40, "an unreadable date");
}

static int64_t seconds_of(const ASN1_TIME *t) {
    struct tm tm;
    return ASN1_TIME_to_tm(t, &tm) ? (int64_t)timegm(&tm) : 0;
}

static status check_dates(const char *path, const X509 *x, error *err) {
    char day[40];
    if (X509_cmp_current_time(X509_get0_notAfter(x)) < 0) {
        write_day(X509_get0_notAfter(x), day);
        return error_set(err, ST_DENIED, "'%.200s' expired on %s", path, day);
    }
    if (X509_cmp_current_time(X509_get0_notBefore(x)) > 0) {
        write_day(X509_get0_notBefore(x), day);
        return error_set(err, ST_DENIED, "'%.200s' is not valid before %s", path, day);
    }
    return ST_OK;
}

/* cert, with those that follow it, was issued by one of ca's. */
static status check_chain(const rpc_pem_files *f, STACK_OF(X509) *ca, STACK_OF(X509) *cert, error *err) {
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    status st = ST_OK;
    for (int i = 0; store && i < sk_X509_num(ca); i++) X509_STORE_add_cert(store, sk_X509_value(ca, i));
    if (!store || !ctx || !X509_STORE_CTX_init(ctx, store, sk_X509_value(cert, 0), cert))
        st = error_set(err, ST_NO_MEMORY, "no memory to check '%.200s'", f->cert);
    else if (X509_verify_cert(ctx) != 1)
        st = error_set(err, ST_DENIED, "'%.200s' does not come from the CA in '%.150s': %s", f->cert, f->ca,
                       X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx)));
    X509_STORE_CTX_free(ctx);
    X509_STORE_free(store);
    ERR_clear_error();
    return st;
}

static status check_roles(const rpc_pem_files *f, unsigned has, unsigned wanted, error *err) {
    char missing[64], there[64];
    if ((has & wanted) == wanted) return ST_OK;
    return error_set(err, ST_DENIED, "'%.200s' has role '%s', and not %s: expected baton://ROLE/NAME among its alternative names "
                     "(baton certs)", f->cert, rpc_role_text(has, there, sizeof there),
                     rpc_role_text(wanted & ~has, missing, sizeof missing));
}

static status check_identity(const rpc_pem_files *f, rpc_pem *p, STACK_OF(X509) *ca, unsigned wanted, error *err) {
    STACK_OF(X509) *cert = rpc_pem_certificates(p->cert);
    EVP_PKEY *key = rpc_pem_key(p->key);
    status st = ST_OK;
    if (!cert) st = error_set(err, ST_BAD_INPUT, "'%.200s': expected a certificate in PEM", f->cert);
    else if (!key) st = error_set(err, ST_BAD_INPUT, "'%.200s': expected a private key in PEM, not encrypted", f->key);
    else if (X509_check_private_key(sk_X509_value(cert, 0), key) != 1)
        st = error_set(err, ST_DENIED, "'%.200s' is not the key of '%.150s'", f->key, f->cert);
    if (st == ST_OK) st = check_dates(f->cert, sk_X509_value(cert, 0), err);
    if (st == ST_OK) st = check_chain(f, ca, cert, err);
    if (st == ST_OK) st = check_roles(f, roles_of(sk_X509_value(cert, 0)), wanted, err);
    if (st == ST_OK) p->not_after_s = seconds_of(X509_get0_notAfter(sk_X509_value(cert, 0)));
    ERR_clear_error();
    EVP_PKEY_free(key);
    sk_X509_pop_free(cert, X509_free);
    return st;
}

/* Of several CAs one may be past its time, while certificates of the next one are handed out. */
static status check_ca(const char *path, STACK_OF(X509) *ca, error *err) {
    status st = ST_OK;
    if (!ca) return error_set(err, ST_BAD_INPUT, "'%.200s': expected certificates in PEM", path);
    for (int i = 0; i < sk_X509_num(ca); i++)
        if ((st = check_dates(path, sk_X509_value(ca, i), err)) == ST_OK) break;
    return st;
}

status rpc_pem_load(const rpc_pem_files *f, unsigned wanted, rpc_pem **out, error *err) {
    rpc_pem *p = mem_zalloc(1, sizeof *p);
    STACK_OF(X509) *ca = NULL;
    if (!p) return error_set(err, ST_NO_MEMORY, "no memory for certificates");
    status st = rpc_file_read(f->ca, false, &p->ca, err);
    if (st == ST_OK && f->cert) st = rpc_file_read(f->cert, false, &p->cert, err);
    if (st == ST_OK && f->cert) st = rpc_file_read(f->key, true, &p->key, err);
    if (st == ST_OK) {
        ca = rpc_pem_certificates(p->ca);
        st = check_ca(f->ca, ca, err);
    }
    if (st == ST_OK && f->cert) st = check_identity(f, p, ca, wanted, err);
    sk_X509_pop_free(ca, X509_free);
    if (st == ST_OK) *out = p;
    else rpc_pem_free(p);
    return st;
}

void rpc_pem_free(rpc_pem *p) {
    if (!p) return;
    rpc_file_free(p->ca);
    rpc_file_free(p->cert);
    rpc_file_free(p->key);
    mem_free(p);
}
