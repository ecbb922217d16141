/* cluster_access.c -- tests cluster/access.c and rpc/caller.c: every method of every service, with every kind of credential,
 * over TLS to a real server; methods come from the descriptors that protoc-c made. Of what is refused no method hears.
 *
 * The client is gRPC's own and knows no rule of ours: so it can show a certificate that ours would not load. */
#include "cluster/cluster.h"
#include "proto/baton.pb-c.h"
#include "proto/health.pb-c.h"
#include "proto/reflection.pb-c.h"
#include "rpc/internal.h"
#include "rpc_certs.h"
#include <grpc/support/time.h>
#include <stdatomic.h>

static const ProtobufCServiceDescriptor *const services[] = {
    &baton__v1__inference__descriptor, &baton__v1__cluster__descriptor, &baton__node__v1__node__descriptor,
    &grpc__health__v1__health__descriptor, &grpc__reflection__v1__server_reflection__descriptor};
enum { SERVICES = sizeof services / sizeof *services, METHODS_MAX = 64 };

static rpc_method methods[METHODS_MAX];
static char paths[METHODS_MAX][100];
static int methods_count;
static atomic_int served;
static char tenant[RPC_NAME_MAX + 1];

static void serve(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    (void)request, (void)ctx;
    served++;
    snprintf(tenant, sizeof tenant, "%s", rpc_call_tenant(call));
    rpc_call_finish(call, ST_OK, NULL, -1);
}

static void add_method(const char *service, const ProtobufCMethodDescriptor *m) {
    snprintf(paths[methods_count], sizeof paths[0], "/%s/%s", service, m->name);
    methods[methods_count] = (rpc_method){paths[methods_count], RPC_SERVER_STREAM, m->input, m->output, serve};
    methods_count++;
}

static void list_methods(void) {
    for (int i = 0; i < SERVICES; i++)
        for (unsigned k = 0; k < services[i]->n_methods; k++) add_method(services[i]->name, &services[i]->methods[k]);
    add_method("grpc.reflection.v1alpha.ServerReflection", services[SERVICES - 1]->methods); /* no C is made of that file */
    assert_true(methods_count >= 19 && methods_count < METHODS_MAX);
}

/* ---- the table ------------------------------------------------------------------------------------ */

static void every_method_has_a_row(void **state) {
    (void)state;
    for (int i = 0; i < methods_count; i++) {
        int rows = 0;
        for (int k = 0; k < cluster_access_count; k++) rows += strcmp(cluster_access[k].path, paths[i]) == 0;
        if (rows != 1) fail_msg("%s has %d rows in cluster/access.c: expected one", paths[i], rows);
    }
    assert_int_equal(cluster_access_count, methods_count);   /* and no row is for a method that is not there */
}

/* ---- calls ---------------------------------------------------------------------------------------- */

typedef struct credential {
    const char *what;
    const char *ca, *cert;       /* file names; cert "": none; ca "": no TLS at all */
    const char *header, *value;  /* NULL: none */
    unsigned roles;              /* what it is good for; 0: nothing */
    grpc_status_code refusal;    /* of a method that it is not good for */
    const char *tenant;
} credential;

#define NO_HEADER NULL, NULL
static const credential credentials[] = {
    {"no TLS", "", "", NO_HEADER, 0, GRPC_STATUS_UNAVAILABLE, ""},
    {"no TLS, a token", "", "", "authorization", "Bearer token-of-team-a-1", 0, GRPC_STATUS_UNAVAILABLE, ""},
    {"none", "ca", "", NO_HEADER, 0, GRPC_STATUS_UNAUTHENTICATED, ""},
    {"none, a tenant's name", "ca", "", "baton-tenant", "team-a", 0, GRPC_STATUS_UNAUTHENTICATED, ""},
    {"wrong: another CA", "ca", "stranger", NO_HEADER, 0, GRPC_STATUS_UNAVAILABLE, ""},
    {"wrong: a CA itself", "ca", "ca2", NO_HEADER, 0, GRPC_STATUS_UNAVAILABLE, ""},
    {"wrong: no role", "ca", "nobody", NO_HEADER, 0, GRPC_STATUS_UNAUTHENTICATED, ""},
    {"expired", "ca", "expired", NO_HEADER, 0, GRPC_STATUS_UNAVAILABLE, ""},
    {"not valid yet", "ca", "early", NO_HEADER, 0, GRPC_STATUS_UNAVAILABLE, ""},
    {"unknown token", "ca", "", "authorization", "Bearer token-of-nobody-1", 0, GRPC_STATUS_UNAUTHENTICATED, ""},
    {"empty token", "ca", "", "authorization", "Bearer ", 0, GRPC_STATUS_UNAUTHENTICATED, ""},
    {"token without Bearer", "ca", "", "authorization", "token-of-team-a-1", 0, GRPC_STATUS_UNAUTHENTICATED, ""},
    {"unknown token, an admin's certificate", "ca", "ops", "authorization", "Bearer x", 0, GRPC_STATUS_UNAUTHENTICATED, ""},
    {"other tenant's: certificate", "ca", "team-a", "baton-tenant", "team-b", 0, GRPC_STATUS_PERMISSION_DENIED, ""},
    {"client", "ca", "team-a", NO_HEADER, RPC_CLIENT, GRPC_STATUS_PERMISSION_DENIED, "team-a"},
    {"client that says its tenant", "ca", "team-a", "baton-tenant", "team-a", RPC_CLIENT, GRPC_STATUS_PERMISSION_DENIED, "team-a"},
    {"client's token", "ca", "", "authorization", "bearer token-of-team-a-1", RPC_CLIENT, GRPC_STATUS_PERMISSION_DENIED, "team-a"},
    {"client's token, a node's certificate", "ca", "n1", "authorization", "Bearer token-of-team-a-1", RPC_CLIENT,
     GRPC_STATUS_PERMISSION_DENIED, "team-a"},
    {"admin", "ca", "ops", NO_HEADER, RPC_ADMIN, GRPC_STATUS_PERMISSION_DENIED, "ops"},
    {"admin's token", "ca", "", "authorization", "Bearer token-of-root-0001", RPC_CLIENT | RPC_ADMIN, GRPC_STATUS_PERMISSION_DENIED, "root"},
    {"node", "ca", "n1", NO_HEADER, RPC_NODE, GRPC_STATUS_PERMISSION_DENIED, "n1"},
    {"coordinator", "ca", "c1", NO_HEADER, RPC_COORDINATOR, GRPC_STATUS_PERMISSION_DENIED, "c1"},
    {"coordinator and node", "ca", "both", NO_HEADER, RPC_COORDINATOR | RPC_NODE, GRPC_STATUS_PERMISSION_DENIED, "both"},
};

/* Said again here, by service, so that a slip in the table is seen. */
static unsigned allowed(const char *path) {
    if (strncmp(path, "/baton.v1.Inference/", 20) == 0) return RPC_CLIENT | RPC_ADMIN;
    if (strncmp(path, "/baton.v1.Cluster/", 18) == 0) return RPC_ADMIN;
    if (strncmp(path, "/baton.node.v1.Node/", 20) == 0) return RPC_COORDINATOR;
    if (strncmp(path, "/grpc.reflection.", 17) == 0) return RPC_CLIENT | RPC_ADMIN;
    if (strncmp(path, "/grpc.health.v1.", 16) == 0) return RPC_COORDINATOR | RPC_NODE | RPC_CLIENT | RPC_ADMIN;
    return 0;
}

static char *read_file(const char *path) {
    char *text;
    error err;
    if (rpc_file_read(path, false, &text, &err) != ST_OK) fail_msg("%s", err.text);
    return text;
}

static grpc_channel *dial(const rpc_server *server, const credential *c) {
    grpc_channel_credentials *how = NULL;
    if (*c->ca) {
        char *ca = read_file(certs_path(c->ca, ".crt")), *cert = NULL, *key = NULL;
        if (*c->cert) cert = read_file(certs_path(c->cert, ".crt")), key = read_file(certs_path(c->cert, ".key"));
        grpc_ssl_pem_key_cert_pair pair = {key, cert};
        how = grpc_ssl_credentials_create_ex(ca, cert ? &pair : NULL, NULL, NULL);
        rpc_file_free(ca), rpc_file_free(cert), rpc_file_free(key);
    } else {
        how = grpc_insecure_credentials_create();
    }
    grpc_channel *channel = grpc_channel_create(rpc_server_address(server), how, rpc_options_client());
    grpc_channel_credentials_release(how);
    return channel;
}

static grpc_status_code ask(grpc_channel *channel, const char *path, const credential *c) {
    grpc_completion_queue *queue = grpc_completion_queue_create_for_pluck(NULL);
    gpr_timespec deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(20, GPR_TIMESPAN));
    grpc_slice method = grpc_slice_from_copied_string(path);
    grpc_call *call = grpc_channel_create_call(channel, NULL, 0, queue, method, NULL, deadline, NULL);
    grpc_slice_unref(method);
    grpc_slice nothing = grpc_empty_slice(), text;
    grpc_byte_buffer *request = grpc_raw_byte_buffer_create(&nothing, 1), *reply = NULL;
    grpc_metadata_array initial, trailing;
    grpc_metadata header = {0};
    grpc_status_code code;
    grpc_op ops[6] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_SEND_MESSAGE}, {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA}, {.op = GRPC_OP_RECV_MESSAGE}, {.op = GRPC_OP_RECV_STATUS_ON_CLIENT}};
    grpc_metadata_array_init(&initial);
    grpc_metadata_array_init(&trailing);
    if (c->header) {
        header.key = grpc_slice_from_static_string(c->header);
        header.value = grpc_slice_from_static_string(c->value);
        ops[0].data.send_initial_metadata.count = 1;
        ops[0].data.send_initial_metadata.metadata = &header;
    }
    ops[1].data.send_message.send_message = request;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &initial;
    ops[4].data.recv_message.recv_message = &reply;
    ops[5].data.recv_status_on_client.status = &code;
    ops[5].data.recv_status_on_client.status_details = &text;
    ops[5].data.recv_status_on_client.trailing_metadata = &trailing;
    assert_int_equal(grpc_call_start_batch(call, ops, 6, call, NULL), GRPC_CALL_OK);
    grpc_event e = grpc_completion_queue_pluck(queue, call, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    assert_int_equal(e.type, GRPC_OP_COMPLETE);
    grpc_slice_unref(text);
    grpc_byte_buffer_destroy(request);
    grpc_byte_buffer_destroy(reply);
    grpc_metadata_array_destroy(&initial);
    grpc_metadata_array_destroy(&trailing);
    grpc_call_unref(call);
    grpc_completion_queue_shutdown(queue);
    grpc_completion_queue_destroy(queue);
    return code;
}

static void make_certificates(void) {
    certs_make(NULL, "ca", 0, -1, 48);
    certs_make(NULL, "ca2", 0, -1, 48);
    certs_make("ca2", "stranger", RPC_COORDINATOR | RPC_NODE | RPC_CLIENT | RPC_ADMIN, -1, 1);
    certs_make("ca", "expired", RPC_COORDINATOR | RPC_NODE | RPC_CLIENT | RPC_ADMIN, -2, -1);
    certs_make("ca", "early", RPC_COORDINATOR | RPC_NODE | RPC_CLIENT | RPC_ADMIN, 1, 2);
    certs_make("ca", "team-a", RPC_CLIENT, -1, 1);
    certs_make("ca", "ops", RPC_ADMIN, -1, 1);
    certs_make("ca", "n1", RPC_NODE, -1, 1);
    certs_make("ca", "c1", RPC_COORDINATOR, -1, 1);
    certs_make("ca", "both", RPC_COORDINATOR | RPC_NODE, -1, 1);
    certs_write(certs_path("tokens", ""), "token-of-team-a-1 team-a\ntoken-of-root-0001 root admin\n", 0600);
    certs_make_for("127.0.0.1", "ca", "here", RPC_COORDINATOR, -1, 1);
    certs_make_for("a.example", "ca", "nobody", 0, -1, 1);
}

static void close_server(void *server) { rpc_server_close(server, NULL, NULL); }

static void every_method_with_every_credential(void **state) {
    (void)state;
    error err = {0};
    rpc_loop *loop;
    rpc_server *server;
    rpc_security *s;
    make_certificates();
    rpc_security_options o = certs_options("ca", "here", RPC_COORDINATOR, 0);
    o.tokens = certs_path("tokens", "");
    o.access = cluster_access;
    o.access_count = cluster_access_count;
    if (rpc_security_open(&o, &s, &err) != ST_OK) fail_msg("%s", err.text);
    rpc_security_use(s);
    assert_int_equal(rpc_loop_create(&loop, &err), ST_OK);
    assert_int_equal(rpc_server_open(loop, "127.0.0.1:0", methods, methods_count, NULL, &server, &err), ST_OK);
    rpc_security_use(NULL);
    rpc_security_close(s);
    rpc_server_start(server);
    assert_int_equal(rpc_loop_start(loop, "server"), ST_OK);
    for (size_t k = 0; k < sizeof credentials / sizeof *credentials; k++) {
        const credential *c = &credentials[k];
        grpc_channel *channel = dial(server, c);
        for (int i = 0; i < methods_count; i++) {
            bool may = (c->roles & allowed(paths[i])) != 0;
            served = 0;
            grpc_status_code code = ask(channel, paths[i], c), expected = may ? GRPC_STATUS_OK : c->refusal;
            if (code != expected || served != may)
                fail_msg("%s with '%s': code %d, expected %d; served %d", paths[i], c->what, code, expected, (int)served);
            if (may) assert_string_equal(tenant, c->tenant);
        }
        /* What is there is said to nobody who has no credential. */
        grpc_status_code code = ask(channel, "/baton.v1.Inference/NoSuchMethod", c);
        assert_int_equal(code, c->roles || c->refusal == GRPC_STATUS_PERMISSION_DENIED ? GRPC_STATUS_UNIMPLEMENTED : c->refusal);
        grpc_channel_destroy(channel);
    }
    assert_int_equal(rpc_loop_post(loop, close_server, server), ST_OK);
    rpc_loop_destroy(loop);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_method_has_a_row), cmocka_unit_test(every_method_with_every_credential)};
    list_methods();
    return cmocka_run_group_tests(tests, certs_setup, certs_teardown);
}
