/* rpc_security.c -- tests rpc/security.c with both ends of ours: TLS, roles of servers, tokens, what is refused off loopback,
 * and new files while calls go on. */
#include "rpc_fixture.h"
#include "rpc_certs.h"

static const rpc_access echo[] = {
    {"/test.Echo/Unary", RPC_CLIENT}, {"/test.Echo/Stream", RPC_CLIENT | RPC_COORDINATOR}, {"/test.Echo/Bidi", RPC_CLIENT}};

static rpc_security *secure(rpc_security_options o) {
    error err = {0};
    rpc_security *s;
    o.access = echo;
    o.access_count = 3;
    if (rpc_security_open(&o, &s, &err) != ST_OK) fail_msg("%s", err.text);
    return s;
}

/* A server with one end's options and a channel with the other's. */
static void open_pair(fixture *f, rpc_security_options server, rpc_security_options client) {
    error err;
    rpc_security *s = secure(server), *c = secure(client);
    *f = (fixture){0};
    assert_int_equal(rpc_loop_create(&f->loop, &err), ST_OK);
    rpc_security_use(s);
    assert_int_equal(rpc_server_open(f->loop, "127.0.0.1:0", methods, 3, f, &f->server, &err), ST_OK);
    rpc_server_start(f->server);
    rpc_security_use(c);
    assert_int_equal(rpc_channel_open(f->loop, rpc_server_address(f->server), &f->channel, &err), ST_OK);
    rpc_security_use(NULL);
    rpc_security_close(s);
    rpc_security_close(c);
}

/* Without waiting for a connection that may never be. */
static status ask_once(fixture *f, int method, const char *text, answer *a) {
    *a = (answer){0};
    assert_int_equal(ask(f, method, text, 0, false, a), ST_OK);
    assert_true(run_until(f, is_true, &a->ended, 20000));
    return a->st;
}

static int setup(void **state) {
    if (certs_setup(state) != 0) return -1;
    certs_make(NULL, "ca", 0, -1, 48);
    certs_make(NULL, "ca2", 0, -1, 48);
    certs_make("ca", "c1", RPC_COORDINATOR, -1, 1);
    certs_make("ca", "n1", RPC_NODE, -1, 1);
    certs_make("ca", "team-a", RPC_CLIENT, -1, 1);
    certs_make("ca2", "c2", RPC_COORDINATOR, -1, 1);
    certs_make("ca2", "team-b", RPC_CLIENT, -1, 1);
    certs_write(certs_path("tokens", ""), "token-of-team-a-1 team-a\n", 0600);
    certs_write(certs_path("token", ""), "token-of-team-a-1\n", 0600);
    return 0;
}

/* ---- what is written to stderr, and counted --------------------------------------------------------- */

static int saved_stderr;
static FILE *captured;

static void capture_begin(void) {
    assert_non_null(captured = tmpfile());
    saved_stderr = dup(STDERR_FILENO);
    dup2(fileno(captured), STDERR_FILENO);
}

static const char *capture_end(void) {
    static char text[16384];
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    rewind(captured);
    text[fread(text, 1, sizeof text - 1, captured)] = 0;
    fclose(captured);
    return text;
}

typedef struct wanted { const char *name, *labels; int64_t value; } wanted;

static void look_at(const metric *m, void *ctx) {
    wanted *w = ctx;
    if (strcmp(m->name, w->name) == 0 && (!w->labels || strcmp(m->labels, w->labels) == 0)) w->value = metric_get(m);
}

/* -1: /metrics has no such series. */
static int64_t value_of(const char *name, const char *labels) {
    wanted w = {name, labels, -1};
    metrics_each(look_at, &w);
    return w.value;
}

static int64_t refused(const char *labels) { return value_of("baton_calls_refused_total", labels); }

/* The first test: nothing was refused yet. Each kind is a series of its own, from the start; a flood makes few lines, and the
 * last of them accounts for all that had none. */
static void refusals_are_told(void **state) {
    (void)state;
    enum { FLOOD = 20 };
    fixture f;
    answer a;
    rpc_security_options server = {.tokens = certs_path("tokens", "")}, wrong = {.token = certs_path("wrong-token", "")};
    certs_write(wrong.token, "token-of-nobody-1", 0600);
    open_pair(&f, server, wrong);
    const char *none = "reason=\"no_credential\"", *unknown = "reason=\"wrong_credential\"", *may_not = "reason=\"not_allowed\"";
    assert_true(refused(none) == 0 && refused(unknown) == 0 && refused(may_not) == 0);
    capture_begin();
    for (int i = 0; i < FLOOD; i++) ask_once(&f, UNARY, "echo", &a);
    usleep(1100000);
    ask_once(&f, STREAM, "echo", &a);
    const char *text = capture_end();
    int lines = 0, left_out = 0;
    for (const char *at = text; (at = strstr(at, "left_out=")); at++) lines++, left_out += atoi(at + 9);
    if (lines + left_out != FLOOD + 1 || lines < 2 || lines > FLOOD / 2) fail_msg("%d lines, %d left out:\n%s", lines, left_out, text);
    assert_non_null(strstr(text, "WARN baton call.refused peer=ipv4:127.0.0.1:"));
    assert_non_null(strstr(text, " method=/test.Echo/Unary reason=\"wrong_credential\" left_out=0: header authorization: expected Bearer"));
    assert_non_null(strstr(text, " method=/test.Echo/Stream reason=\"wrong_credential\" left_out="));
    assert_null(strstr(text, "token-of-nobody"));
    assert_true(refused(none) == 0 && refused(unknown) == FLOOD + 1 && refused(may_not) == 0);
    fixture_close(&f);
    open_pair(&f, server, (rpc_security_options){0});
    ask_once(&f, UNARY, "echo", &a);
    assert_true(refused(none) == 1 && refused(unknown) == FLOOD + 1 && refused(may_not) == 0);
    fixture_close(&f);
    open_pair(&f, certs_options("ca", "c1", RPC_COORDINATOR, 0), certs_options("ca", "n1", RPC_NODE, RPC_COORDINATOR));
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_DENIED);
    assert_true(refused(none) == 1 && refused(unknown) == FLOOD + 1 && refused(may_not) == 1);
    fixture_close(&f);
}

/* ---- who is let in ---------------------------------------------------------------------------------- */

static void both_show_certificates(void **state) {
    (void)state;
    fixture f;
    answer a;
    int64_t before = mem_live();
    open_pair(&f, certs_options("ca", "c1", RPC_COORDINATOR, 0), certs_options("ca", "team-a", 0, RPC_COORDINATOR));
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_OK);
    assert_int_equal(ask_once(&f, STREAM, "count 3", &a), ST_OK);
    assert_int_equal(a.messages, 3);
    fixture_close(&f);
    assert_int_equal(mem_live(), before);
}

static void a_token_instead(void **state) {
    (void)state;
    fixture f;
    answer a;
    rpc_security_options server = certs_options("ca", "c1", RPC_COORDINATOR, 0), client = certs_options("ca", "", 0, RPC_COORDINATOR);
    server.tokens = certs_path("tokens", "");
    open_pair(&f, server, client);
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_UNAUTHENTICATED);
    assert_non_null(strstr(a.text, "no credential"));
    assert_int_equal(f.served, 0);
    fixture_close(&f);
    client.token = certs_path("token", "");
    open_pair(&f, server, client);
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_OK);
    fixture_close(&f);
    server = (rpc_security_options){.tokens = certs_path("tokens", "")};     /* and without TLS, on loopback */
    client = (rpc_security_options){.token = certs_path("token", "")};
    open_pair(&f, server, client);
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_OK);
    assert_string_equal(f.credential, "team-a");
    fixture_close(&f);
    open_pair(&f, (rpc_security_options){0}, (rpc_security_options){0});     /* nobody asks for one */
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_OK);
    assert_string_equal(f.credential, "none");
    assert_string_equal(f.tenant, "");
    fixture_close(&f);
}

/* Whoever has a certificate of the CA is not yet a coordinator. */
static void servers_are_checked(void **state) {
    (void)state;
    fixture f;
    answer a;
    open_pair(&f, certs_options("ca", "n1", RPC_NODE, 0), certs_options("ca", "team-a", 0, RPC_COORDINATOR));
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_PEER_LOST);
    assert_non_null(strstr(a.text, "has role 'node': expected coordinator"));
    fixture_close(&f);
    open_pair(&f, certs_options("ca2", "c2", RPC_COORDINATOR, 0), certs_options("ca", "team-a", 0, RPC_COORDINATOR));
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_PEER_LOST);
    assert_non_null(strstr(a.text, "certificate verify failed"));
    fixture_close(&f);
    open_pair(&f, (rpc_security_options){0}, certs_options("ca", "team-a", 0, RPC_COORDINATOR));
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_PEER_LOST);
    assert_int_equal(f.served, 0);
    fixture_close(&f);
}

/* etcd, say: it has no role. */
static void others_are_checked_by_name(void **state) {
    (void)state;
    static const struct { const char *cert; status st; } rows[] = {{"named", ST_OK}, {"elsewhere", ST_PEER_LOST}, {"c1", ST_PEER_LOST}};
    certs_make_for("127.0.0.1", "ca", "named", RPC_NODE, -1, 1);
    certs_make_for("192.0.2.1,a.example", "ca", "elsewhere", RPC_NODE | RPC_COORDINATOR, -1, 1);
    for (int i = 0; i < 3; i++) {
        fixture f;
        answer a;
        error err;
        open_pair(&f, certs_options("ca", rows[i].cert, 0, 0), (rpc_security_options){0});
        rpc_channel_close(f.channel);
        rpc_security *s = secure(certs_options("ca", "team-a", 0, 0));
        rpc_security_use_foreign(s);
        assert_int_equal(rpc_channel_open_foreign(f.loop, rpc_server_address(f.server), &f.channel, &err), ST_OK);
        rpc_security_use_foreign(NULL);
        rpc_security_close(s);
        if (ask_once(&f, UNARY, "echo", &a) != rows[i].st) fail_msg("%s: %s %s", rows[i].cert, status_name(a.st), a.text);
        fixture_close(&f);
    }
}

static void beyond_loopback(void **state) {
    (void)state;
    error err;
    rpc_loop *loop;
    rpc_server *server = NULL;
    rpc_channel *channel = NULL;
    static const char *const far[] = {"127.example.com:1", "0.0.0.0:0", "[::]:0", "192.0.2.1:0", "host.example:0"};
    static const char *const near[] = {"127.255.255.254:0", "127.0.0.1:0", "127.9.9.9:0", "[::1]:0", "localhost:0"};
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    rpc_security *tls = secure(certs_options("ca", "c1", RPC_COORDINATOR, 0)), *insecure = secure((rpc_security_options){.insecure = true});
    rpc_security *token = secure((rpc_security_options){.token = certs_path("token", "")}), *ca = secure(certs_options("ca", "", 0, 0));
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        rpc_security_use(NULL);
        assert_int_equal(rpc_server_open(loop, far[i], methods, 3, NULL, &server, &err), ST_DENIED);
        assert_non_null(strstr(err.text, "--insecure"));
        assert_int_equal(rpc_security_check_listen(near[i], &err), ST_OK);
        assert_int_equal(rpc_security_check_clear("--kv-listen", far[i], &err), ST_DENIED);
        assert_non_null(strstr(err.text, "--kv-listen"));
        assert_int_equal(rpc_security_check_clear("--kv-listen", near[i], &err), ST_OK);
        rpc_security_use(token);
        assert_int_equal(rpc_server_open(loop, far[i], methods, 3, NULL, &server, &err), ST_DENIED);
        assert_int_equal(rpc_channel_open(loop, far[i], &channel, &err), ST_DENIED);
        assert_non_null(strstr(err.text, "a token would travel"));
        rpc_security_use(ca);
        assert_int_equal(rpc_security_check_listen(near[i], &err), ST_BAD_INPUT);
        rpc_security_use(tls);
        assert_int_equal(rpc_security_check_listen(far[i], &err), ST_OK);
        assert_int_equal(rpc_security_check_clear("--kv-listen", far[i], &err), ST_DENIED);
        rpc_security_use(insecure);
        assert_int_equal(rpc_security_check_listen(far[i], &err), ST_OK);
        assert_int_equal(rpc_security_check_clear("--kv-listen", far[i], &err), ST_OK);
    }
    assert_null(server);
    assert_null(channel);
    rpc_security_use(NULL);
    rpc_security_close(tls), rpc_security_close(insecure), rpc_security_close(token), rpc_security_close(ca);
    rpc_loop_destroy(loop);
}

static void flags_fit_together(void **state) {
    (void)state;
    error err;
    rpc_security *s;
    rpc_security_options rows[] = {{.cert = "x"}, {.key = "x"}, {.ca = "x", .cert = "x"}, {.cert = "x", .key = "x"}};
    for (int i = 0; i < 4; i++) assert_int_equal(rpc_security_open(&rows[i], &s, &err), ST_BAD_INPUT);
    assert_int_equal(rpc_security_open(&(rpc_security_options){.tokens = "/no/such/file"}, &s, &err), ST_NOT_FOUND);
    certs_write(certs_path("two", ""), "one-token-and another\n", 0600);
    assert_int_equal(rpc_security_open(&(rpc_security_options){.token = certs_path("two", "")}, &s, &err), ST_BAD_INPUT);
    certs_write(certs_path("two", ""), "\n", 0600);
    assert_int_equal(rpc_security_open(&(rpc_security_options){.token = certs_path("two", "")}, &s, &err), ST_BAD_INPUT);
    certs_write(certs_path("two", ""), "token-for-everyone", 0644);
    assert_int_equal(rpc_security_open(&(rpc_security_options){.token = certs_path("two", "")}, &s, &err), ST_DENIED);
}

/* Whichever allocation fails: an error, and nothing kept. */
static void memory_runs_out(void **state) {
    (void)state;
    rpc_security_options o = certs_options("ca", "c1", RPC_COORDINATOR, RPC_NODE);
    o.tokens = certs_path("tokens", "");
    o.token = certs_path("token", "");
    int64_t before = mem_live();
    status st = ST_NO_MEMORY;
    for (int n = 1; st != ST_OK; n++) {
        error err;
        rpc_security *s = NULL;
        assert_true(n < 50);
        mem_fail_at(n);
        st = rpc_security_open(&o, &s, &err);
        mem_fail_at(0);
        assert_true(st == ST_OK || st == ST_NO_MEMORY);
        rpc_security_close(s);
        assert_int_equal(mem_live(), before);
    }
}

/* ---- new files ------------------------------------------------------------------------------------ */

static void move(const char *from, const char *to) {
    static const char *const endings[] = {".crt", ".key"};
    for (int i = 0; i < 2; i++) {
        char *text;
        FILE *f = fopen(certs_path(from, endings[i]), "re");
        assert_non_null(f);
        assert_non_null(text = calloc(1, 8192));
        assert_true(fread(text, 1, 8191, f) > 0);
        fclose(f);
        certs_write(certs_path(to, endings[i]), text, 0600);
        free(text);
    }
}

/* Over a connection of its own. */
static status ask_anew(fixture *f, rpc_security_options client) {
    answer a;
    error err;
    rpc_channel *before = f->channel;
    rpc_security *s = secure(client);
    rpc_security_use(s);
    assert_int_equal(rpc_channel_open(f->loop, rpc_server_address(f->server), &f->channel, &err), ST_OK);
    rpc_security_use(NULL);
    rpc_security_close(s);
    status st = ask_once(f, UNARY, "echo", &a);
    rpc_channel_close(f->channel);
    f->channel = before;
    return st;
}

static bool serves_two(void *arg) { return ((fixture *)arg)->served == 2; }

static void certificates_are_renewed(void **state) {
    (void)state;
    fixture f;
    answer a, hanging = {0};
    move("ca", "live-ca"), move("c1", "live"), move("team-a", "live-client");
    rpc_security_options server = certs_options("live-ca", "live", RPC_COORDINATOR, 0);
    rpc_security_options client = certs_options("live-ca", "live-client", 0, RPC_COORDINATOR);
    open_pair(&f, server, client);
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_OK);
    assert_int_equal(ask(&f, STREAM, "hang", 0, false, &hanging), ST_OK);
    assert_true(run_until(&f, serves_two, &f, 20000));
    certs_write(certs_path("live", ".crt"), "broken", 0600);         /* half of a change: the old ones go on */
    assert_int_equal(ask_anew(&f, certs_options("ca", "team-a", 0, RPC_COORDINATOR)), ST_OK);
    assert_int_equal(ask_anew(&f, certs_options("ca2", "team-b", 0, RPC_COORDINATOR)), ST_PEER_LOST);
    move("ca2", "live-ca"), move("c2", "live"), move("team-b", "live-client");
    assert_string_equal(f.tenant, "team-a");
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_OK);        /* the same channel connects anew */
    assert_string_equal(f.tenant, "team-b");
    assert_string_equal(f.credential, "team-b");
    assert_int_equal(ask_anew(&f, certs_options("ca2", "team-b", 0, RPC_COORDINATOR)), ST_OK);
    assert_int_equal(ask_anew(&f, certs_options("ca", "team-a", 0, RPC_COORDINATOR)), ST_PEER_LOST);
    assert_false(hanging.ended);
    rpc_stream_cancel(hanging.stream);
    assert_true(run_until(&f, is_true, &hanging.ended, 20000));
    assert_int_equal(hanging.st, ST_CANCELED);
    fixture_close(&f);
}

static void tokens_are_taken_back(void **state) {
    (void)state;
    fixture f;
    answer a;
    rpc_security_options server = {.tokens = certs_path("live-tokens", "")}, client = {.token = certs_path("live-token", "")};
    certs_write(server.tokens, "token-of-team-a-1 team-a\n", 0600);
    certs_write(client.token, "token-of-team-a-1", 0600);
    open_pair(&f, server, client);
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_OK);
    certs_write(server.tokens, "token-of-team-b-22 team-b\n", 0600);
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_UNAUTHENTICATED);
    assert_int_equal(f.served, 1);
    certs_write(server.tokens, "no token", 0600);                    /* cannot be used: team-b's is kept */
    certs_write(client.token, "token-of-team-b-22", 0600);
    assert_int_equal(ask_once(&f, UNARY, "echo", &a), ST_OK);
    fixture_close(&f);
}

/* ---- a certificate's end -------------------------------------------------------------------------- */

static time_t ahead_s;           /* how far this process's wall clock goes ahead of the others' */

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec + ahead_s;
    return now.tv_sec + ahead_s;
}

/* What is logged by a call, hours from now, over a connection that is there already. */
static const char *said_in(fixture *f, int hours) {
    answer a;
    ahead_s = (time_t)hours * HOUR_S;
    capture_begin();
    assert_int_equal(ask_once(f, UNARY, "echo", &a), ST_OK);
    return capture_end();
}

static void an_end_is_told(void **state) {
    (void)state;
    enum { DAY = 24 };
    const char *name = "baton_certificate_not_after_seconds", *flag = "flag=\"tls-cert\"";
    fixture f;
    certs_make(NULL, "ca-y", 0, -1, 1000 * DAY);
    certs_make("ca-y", "ends", RPC_COORDINATOR, -1, 20 * DAY);
    certs_make("ca-y", "next", RPC_COORDINATOR, -1, 400 * DAY);
    certs_make("ca-y", "lasts", RPC_CLIENT, -1, 500 * DAY);
    capture_begin();
    open_pair(&f, certs_options("ca-y", "ends", RPC_COORDINATOR, 0), certs_options("ca-y", "lasts", 0, RPC_COORDINATOR));
    assert_string_equal(capture_end(), "");
    assert_string_equal(said_in(&f, 0), "");
    assert_string_equal(said_in(&f, 5 * DAY), "");
    const char *said = said_in(&f, 7 * DAY - 1);                     /* an hour short of whole days: seconds pass meanwhile */
    if (!strstr(said, "WARN baton security.expires '") || !strstr(said, "/ends.crt' expires on 2") || !strstr(said, ", in 13 days")) fail_msg("%s", said);
    assert_string_equal(said_in(&f, 8 * DAY - 2), "");
    assert_non_null(strstr(said_in(&f, 8 * DAY - 1), ", in 12 days"));
    assert_non_null(strstr(said_in(&f, 20 * DAY - 1), ", in 0 days"));
    said = said_in(&f, 20 * DAY);                                    /* an hour after the last line, and not a day */
    if (!strstr(said, "WARN baton security.expired '") || !strstr(said, "/ends.crt' expired on 2")) fail_msg("%s", said);
    assert_string_equal(said_in(&f, 20 * DAY + 1), "");
    int64_t ends_s = value_of(name, flag);
    assert_true(ends_s <= time(NULL) && ends_s > time(NULL) - 2 * HOUR_S);
    move("next", "ends");
    said = said_in(&f, 20 * DAY + 2);
    if (strstr(said, "WARN") || !strstr(said, "security.reloaded what=certificate")) fail_msg("%s", said);
    assert_true(value_of(name, flag) > ends_s + 379 * DAY * HOUR_S);
    fixture_close(&f);
    ahead_s = 0;
    certs_make("ca-y", "short", RPC_NODE, -1, 13 * DAY);
    capture_begin();
    rpc_security_close(secure(certs_options("ca-y", "short", 0, 0)));
    assert_non_null(strstr(capture_end(), "/short.crt' expires on 2"));     /* at once */
    assert_true(value_of(name, "flag=\"etcd-cert\"") < ends_s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals_are_told),
        cmocka_unit_test(both_show_certificates), cmocka_unit_test(a_token_instead),          cmocka_unit_test(servers_are_checked),
        cmocka_unit_test(beyond_loopback),        cmocka_unit_test(flags_fit_together),       cmocka_unit_test(certificates_are_renewed),
        cmocka_unit_test(tokens_are_taken_back),  cmocka_unit_test(others_are_checked_by_name),
        cmocka_unit_test(memory_runs_out),        cmocka_unit_test(an_end_is_told),
    };
    return cmocka_run_group_tests(tests, setup, certs_teardown);
}
