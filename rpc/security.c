/* security.c -- who this process is, whom it lets in, and what its servers and channels get of that.
 *
 *   files -> rpc_pem, rpc_tokens   [load]     checked before gRPC sees them
 *   changed files                  [look]     at most every look_ms, when a connection or a call begins: the new ones if
 *                                             they are sound, else the old ones go on and a log line says why
 *   a certificate's end            [tell_end]  a gauge, and from 14 days before a log line, once a day: said by whoever
 *                                             looks, so there is no timer, and a process that nobody calls is silent
 *   server                         [fetch]    gRPC asks for certificates before each handshake
 *   channel                        [generation]  connects anew for the first call after a change (client.c)
 *
 * A server asks its clients for a certificate and takes connections without one: caller.c refuses their calls, with a
 * text, unless they have a token. A certificate that is not from the CA ends the handshake. Channels check the server's
 * role in its certificate and not its host name: nodes are where the registry says, and their role is what counts. Of a
 * server that is not baton's it is the host name. */
#include "rpc/internal.h"
#include <arpa/inet.h>
#include <assert.h>
#include <grpc/support/alloc.h>
#include <grpc/support/string_util.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum { CA, CERT, KEY, TOKENS, TOKEN, FILES };
enum { LOOK_MS = 1000, DAY_S = 24 * 3600, SOON_S = 14 * DAY_S };

#define NOT_AFTER(flag_) {.name = "baton_certificate_not_after_seconds", .labels = "flag=\"" flag_ "\"", .kind = METRIC_GAUGE, \
                          .help = "when this process's own certificate expires, in seconds of the Unix clock"}
static metric not_after = NOT_AFTER("tls-cert"), foreign_not_after = NOT_AFTER("etcd-cert");

/* Any thread. Born in rpc_security_open(), gone with the last of its servers and channels. */
struct rpc_security {
    atomic_int references;
    char *paths[FILES];          /* NULL: there is none */
    unsigned roles, peers;
    const rpc_access *access;
    int access_count;
    bool insecure;
    int look_ms;
    pthread_mutex_t lock;        /* guards all below: handshakes and calls run on any loop's thread */
    int64_t looked_ms;
    rpc_file_stamp stamps[FILES];
    uint64_t generation;         /* of pem, from 1 */
    int64_t tell_s;              /* of the Unix clock: its certificate's end is said then, if calls come */
    rpc_pem *pem;
    rpc_tokens *tokens;
    char *bearer;                /* "Bearer TOKEN" */
};

static rpc_security *current, *foreign; /* of what is opened from now on */

/* ---- files ---------------------------------------------------------------------------------------- */

static bool changed(rpc_security *s, int first, int last) {
    bool any = false;
    for (int i = first; i <= last; i++)
        if (s->paths[i]) any = rpc_file_look(s->paths[i], &s->stamps[i]) || any;
    return any;
}

/* Under the lock. */
static void tell_end(rpc_security *s) {
    int64_t now_s = (int64_t)time(NULL), end_s;
    struct tm tm;
    char day[40] = "";
    if (!s->pem || !s->pem->cert || now_s < s->tell_s) return;
    end_s = s->pem->not_after_s;
    if (gmtime_r(&(time_t){end_s}, &tm)) strftime(day, sizeof day, "%Y-%m-%d %H:%M:%S UTC", &tm);
    if (now_s < end_s)
        log_write(LOG_WARN, NULL, "security.expires", "'%.200s' expires on %s, in %lld days: no new connection with it from then on; "
                  "a new file is taken up without a restart", s->paths[CERT], day, (long long)((end_s - now_s) / DAY_S));
    else
        log_write(LOG_WARN, NULL, "security.expired", "'%.200s' expired on %s: no new connection with it; a new file is taken up "
                  "without a restart", s->paths[CERT], day);
    s->tell_s = now_s < end_s && end_s < now_s + DAY_S ? end_s : now_s + DAY_S;
}

static status load_pem(rpc_security *s, error *err) {
    rpc_pem_files files = {s->paths[CA], s->paths[CERT], s->paths[KEY]};
    rpc_pem *fresh;
    TRY(rpc_pem_load(&files, s->roles, &fresh, err));
    rpc_pem_free(s->pem);
    s->pem = fresh;
    s->generation++;
    if (!fresh->cert) return ST_OK;
    if (s->roles) metric_set(&not_after, fresh->not_after_s);
    else if (!s->peers) metric_set(&foreign_not_after, fresh->not_after_s);
    s->tell_s = fresh->not_after_s - SOON_S;
    tell_end(s);
    return ST_OK;
}

static status load_tokens(rpc_security *s, error *err) {
    rpc_tokens *fresh;
    TRY(rpc_tokens_load(s->paths[TOKENS], &fresh, err));
    rpc_tokens_free(s->tokens);
    s->tokens = fresh;
    return ST_OK;
}

static status load_bearer(rpc_security *s, error *err) {
    char *text;
    TRY(rpc_file_read(s->paths[TOKEN], true, &text, err));
    size_t bytes = strcspn(text, " \t\r\n"), room = bytes + sizeof "Bearer ";
    bool one_word = bytes > 0 && text[bytes + strspn(text + bytes, " \t\r\n")] == 0;
    char *fresh = one_word ? mem_alloc(room) : NULL;
    status st = ST_OK;
    if (!one_word) st = error_set(err, ST_BAD_INPUT, "'%.200s': expected one token and nothing else", s->paths[TOKEN]);
    else if (!fresh) st = error_set(err, ST_NO_MEMORY, "no memory for a token");
    else snprintf(fresh, room, "Bearer %.*s", (int)bytes, text);
    rpc_file_free(text);
    if (st != ST_OK) return st;
    rpc_file_free(s->bearer);
    s->bearer = fresh;
    return ST_OK;
}

static void again(rpc_security *s, status (*load)(rpc_security *s, error *err), const char *what) {
    error err = {0};
    if (load(s, &err) == ST_OK) log_write(LOG_INFO, NULL, "security.reloaded", "what=%s", what);
    else log_write(LOG_WARN, NULL, "security.kept", "what=%s: the new one cannot be used: %s", what, err.text);
}

/* Under the lock. */
static void look(rpc_security *s) {
    int64_t now = clock_now_ms();
    if (now - s->looked_ms < s->look_ms) return;
    s->looked_ms = now;
    if (changed(s, CA, KEY)) again(s, load_pem, "certificate");
    if (changed(s, TOKENS, TOKENS)) again(s, load_tokens, "tokens");
    if (changed(s, TOKEN, TOKEN)) again(s, load_bearer, "token");
    tell_end(s);
}

void rpc_security_look(rpc_security *s) {
    pthread_mutex_lock(&s->lock);
    look(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- open, use, close ----------------------------------------------------------------------------- */

static bool copy_options(rpc_security *s, const rpc_security_options *o) {
    const char *from[FILES] = {[CA] = o->ca, [CERT] = o->cert, [KEY] = o->key, [TOKENS] = o->tokens, [TOKEN] = o->token};
    for (int i = 0; i < FILES; i++)
        if (from[i] && !(s->paths[i] = mem_strdup(from[i]))) return false;
    s->roles = o->roles;
    assert(o->peers < 2 * RPC_ADMIN);
    s->peers = o->peers;
    s->access = o->access;
    s->access_count = o->access_count;
    s->insecure = o->insecure;
    s->look_ms = o->look_ms >= 0 ? o->look_ms : LOOK_MS;
    return true;
}

static void give(rpc_security *s) {
    if (!s || atomic_fetch_sub(&s->references, 1) > 1) return;
    for (int i = 0; i < FILES; i++) mem_free(s->paths[i]);
    rpc_pem_free(s->pem);
    rpc_tokens_free(s->tokens);
    rpc_file_free(s->bearer);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

status rpc_security_open(const rpc_security_options *o, rpc_security **out, error *err) {
    if (!o->cert != !o->key) return error_set(err, ST_BAD_INPUT, "--tls-cert and --tls-key: expected both or none");
    if (o->cert && !o->ca)
        return error_set(err, ST_BAD_INPUT, "--tls-cert without --tls-ca: expected the CA whose certificates are trusted");
    rpc_security *s = mem_zalloc(1, sizeof *s);
    if (!s) return error_set(err, ST_NO_MEMORY, "no memory for certificates");
    atomic_init(&s->references, 1);
    pthread_mutex_init(&s->lock, NULL);
    status st = copy_options(s, o) ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory for certificates");
    if (st == ST_OK) {
        changed(s, 0, FILES - 1);
        s->looked_ms = clock_now_ms();
        if (o->ca) st = load_pem(s, err);
    }
    if (st == ST_OK && o->tokens) st = load_tokens(s, err);
    if (st == ST_OK && o->token) st = load_bearer(s, err);
    if (st == ST_OK) *out = s;
    else give(s);
    return st;
}

static void replace(rpc_security **at, rpc_security *s) {
    rpc_security *before = *at;
    *at = rpc_security_take(s);
    give(before);
}

void rpc_security_use(rpc_security *s) { replace(&current, s); }
void rpc_security_use_foreign(rpc_security *s) { replace(&foreign, s); }

void rpc_security_close(rpc_security *s) { give(s); }

rpc_security *rpc_security_current(void) { return current; }
rpc_security *rpc_security_foreign(void) { return foreign; }

rpc_security *rpc_security_take(rpc_security *s) {
    if (s) atomic_fetch_add(&s->references, 1);
    return s;
}

/* ---- what may be in the clear --------------------------------------------------------------------- */

/* An address by its number: a name like 127.example.com may be anywhere. */
static bool is_loopback(const char *host) {
    struct in_addr four;
    struct in6_addr six;
    if (inet_pton(AF_INET, host, &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, host, &six) == 1) return IN6_IS_ADDR_LOOPBACK(&six);
    return strcmp(host, "localhost") == 0;
}

bool rpc_security_encrypts(void) { return current && current->paths[CERT]; }

static bool may_be_clear(const rpc_security *s, const char *host) { return is_loopback(host) || (s && s->insecure); }

status rpc_security_check_clear(const char *what, const char *address, error *err) {
    char host[RPC_HOST_MAX];
    const char *port;
    if (!address_split(address, host, sizeof host, &port) || may_be_clear(current, host)) return ST_OK;
    return error_set(err, ST_DENIED, "%s %.100s: this travels unencrypted: expected a loopback address, or --insecure on a network "
                     "that nobody else reads", what, address);
}

status rpc_security_check_listen(const char *listen, error *err) {
    const rpc_security *s = current;
    char host[RPC_HOST_MAX];
    const char *port;
    if (!address_split(listen, host, sizeof host, &port)) return ST_OK; /* said by who opens the server */
    if (s && s->paths[CA] && !s->paths[CERT])
        return error_set(err, ST_BAD_INPUT, "listen address %.100s with --tls-ca: expected --tls-cert and --tls-key too", listen);
    if (rpc_security_encrypts() || may_be_clear(s, host)) return ST_OK;
    return error_set(err, ST_DENIED, "listen address %.100s is not loopback: expected --tls-ca, --tls-cert and --tls-key (baton certs), "
                     "or --insecure on a network that nobody else reaches", listen);
}

status rpc_security_check_dial(const rpc_security *s, const char *address, const char *host, error *err) {
    if (!s || !s->paths[TOKEN] || s->paths[CA] || may_be_clear(s, host)) return ST_OK;
    return error_set(err, ST_DENIED, "server address %.100s: a token would travel unencrypted: expected --tls-ca", address);
}

/* ---- a server ------------------------------------------------------------------------------------- */

static grpc_ssl_certificate_config_reload_status fetch(void *user_data, grpc_ssl_server_certificate_config **out) {
    rpc_server *server = user_data;
    rpc_security *s = server->security;
    grpc_ssl_certificate_config_reload_status answer = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    pthread_mutex_lock(&s->lock);
    look(s);
    if (server->generation != s->generation) {
        grpc_ssl_pem_key_cert_pair pair = {s->pem->key, s->pem->cert};
        *out = grpc_ssl_server_certificate_config_create(s->pem->ca, &pair, 1);
        server->generation = s->generation;
        answer = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
    }
    pthread_mutex_unlock(&s->lock);
    return answer;
}

grpc_server_credentials *rpc_security_server_credentials(rpc_server *server) {
    if (!server->security || !server->security->paths[CERT]) return grpc_insecure_server_credentials_create();
    return grpc_ssl_server_credentials_create_with_options(grpc_ssl_server_credentials_create_options_using_config_fetcher(
        GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY, fetch, server));
}

/* ---- a channel ------------------------------------------------------------------------------------ */

/* user_data: the roles one of which the server must have. */
static int verify(void *user_data, grpc_tls_custom_verification_check_request *request,
                  grpc_tls_on_custom_verification_check_done_cb callback, void *callback_arg, grpc_status_code *code, char **details) {
    (void)callback, (void)callback_arg;
    unsigned set = 0, peers = (unsigned)(uintptr_t)user_data;
    char name[RPC_NAME_MAX], has[64], wanted[64], text[256];
    for (size_t i = 0; i < request->peer_info.san_names.uri_names_size; i++)
        set |= rpc_role_read(request->peer_info.san_names.uri_names[i], name);
    *code = set & peers ? GRPC_STATUS_OK : GRPC_STATUS_UNAUTHENTICATED;
    if (set & peers) return 1;
    snprintf(text, sizeof text, "the server's certificate has role '%s': expected %s", rpc_role_text(set, has, sizeof has),
             rpc_role_text(peers, wanted, sizeof wanted));
    *details = gpr_strdup(text);
    return 1;
}

static void cancel(void *user_data, grpc_tls_custom_verification_check_request *request) { (void)user_data, (void)request; }
static void destruct(void *user_data) { (void)user_data; }

/* One for each set of roles: gRPC lets go of one when it likes, on a thread of its own. */
#define FOR(peers) {(void *)(uintptr_t)(peers), verify, cancel, destruct}
static grpc_tls_certificate_verifier_external verifiers[2 * RPC_ADMIN] = {
    FOR(0), FOR(1), FOR(2), FOR(3), FOR(4), FOR(5), FOR(6), FOR(7), FOR(8), FOR(9), FOR(10), FOR(11), FOR(12), FOR(13), FOR(14), FOR(15)};

static grpc_tls_certificate_verifier *create_verifier(unsigned peers) {
    if (!peers) return grpc_tls_certificate_verifier_host_name_create();
    return grpc_tls_certificate_verifier_external_create(&verifiers[peers]);
}

static grpc_channel_credentials *tls_credentials(const rpc_pem *pem, unsigned peers) {
    grpc_tls_certificate_verifier *check = create_verifier(peers);
    grpc_tls_identity_pairs *pairs = NULL;
    if (pem->cert) {
        pairs = grpc_tls_identity_pairs_create();
        grpc_tls_identity_pairs_add_pair(pairs, pem->key, pem->cert);
    }
    grpc_tls_certificate_provider *files = grpc_tls_certificate_provider_static_data_create(pem->ca, pairs);
    grpc_tls_credentials_options *o = grpc_tls_credentials_options_create();
    grpc_tls_credentials_options_set_certificate_provider(o, files);
    grpc_tls_credentials_options_watch_root_certs(o);
    if (pem->cert) grpc_tls_credentials_options_watch_identity_key_cert_pairs(o);
    grpc_tls_credentials_options_set_certificate_verifier(o, check);
    grpc_tls_credentials_options_set_check_call_host(o, 0);
    grpc_channel_credentials *c = grpc_tls_credentials_create(o);
    grpc_tls_certificate_provider_release(files);
    grpc_tls_certificate_verifier_release(check);
    return c;
}

grpc_channel_credentials *rpc_security_channel_credentials(rpc_security *s, uint64_t *generation) {
    if (!s || !s->paths[CA]) return grpc_insecure_credentials_create();
    pthread_mutex_lock(&s->lock);
    grpc_channel_credentials *c = tls_credentials(s->pem, s->peers);
    *generation = s->generation;
    pthread_mutex_unlock(&s->lock);
    return c;
}

uint64_t rpc_security_generation(rpc_security *s) {
    if (!s) return 0;
    pthread_mutex_lock(&s->lock);
    look(s);
    uint64_t generation = s->generation;
    pthread_mutex_unlock(&s->lock);
    return generation;
}

bool rpc_security_header(rpc_security *s, grpc_metadata *out) {
    if (!s || !s->paths[TOKEN]) return false;
    pthread_mutex_lock(&s->lock);
    memset(out, 0, sizeof *out);
    out->key = grpc_slice_from_static_string("authorization");
    out->value = grpc_slice_from_copied_string(s->bearer);
    pthread_mutex_unlock(&s->lock);
    return true;
}

/* ---- what caller.c asks ---------------------------------------------------------------------------- */

bool rpc_security_guards(const rpc_security *s) { return s && (s->paths[CERT] || s->paths[TOKENS]); }

bool rpc_security_token(rpc_security *s, const char *token, rpc_caller *out) {
    pthread_mutex_lock(&s->lock);
    bool found = s->tokens && rpc_tokens_find(s->tokens, token, out);
    pthread_mutex_unlock(&s->lock);
    return found;
}

unsigned rpc_security_access(const rpc_security *s, const char *path) {
    for (int i = 0; i < s->access_count; i++)
        if (strcmp(s->access[i].path, path) == 0) return s->access[i].roles;
    return 0;
}
