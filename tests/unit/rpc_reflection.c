/* rpc_reflection.c -- tests rpc/reflection.c and rpc/health.c with one server that offers both.
 * With `--serve` it prints its address and serves until its input ends, for tests/client/. */
#include "rpc_fixture.h"
#include "proto/descriptors.h"
#include "proto/health.pb-c.h"
#include "proto/reflection.pb-c.h"
#include <pthread.h>

typedef Grpc__Reflection__V1__ServerReflectionRequest request;
typedef Grpc__Reflection__V1__ServerReflectionResponse response;
#define ASK(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name
#define GOT(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name
#define HEALTH(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

static const char *const services[] = {"baton.v1.Inference", "grpc.health.v1.Health"};

static const rpc_method info[] = {
    {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", RPC_BIDI,
     &grpc__reflection__v1__server_reflection_request__descriptor,
     &grpc__reflection__v1__server_reflection_response__descriptor, NULL},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", RPC_BIDI,
     &grpc__reflection__v1__server_reflection_request__descriptor,
     &grpc__reflection__v1__server_reflection_response__descriptor, NULL},
};
static const rpc_method health[] = {
    {"/grpc.health.v1.Health/Check", RPC_UNARY, &grpc__health__v1__health_check_request__descriptor,
     &grpc__health__v1__health_check_response__descriptor, NULL},
    {"/grpc.health.v1.Health/Watch", RPC_SERVER_STREAM, &grpc__health__v1__health_check_request__descriptor,
     &grpc__health__v1__health_check_response__descriptor, NULL},
};

typedef struct reply {
    answer a;                    /* ended, st; first, so that on_end() serves both */
    int kind, files, error_code, names;
    char name[100];              /* of the first file or service */
    int told[8], told_count;
} reply;

static void on_reflected(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    (void)s;
    reply *r = user;
    const response *p = (const response *)m;
    r->kind = p->message_response_case;
    if (r->kind == GOT(FILE_DESCRIPTOR_RESPONSE)) {
        const ProtobufCBinaryData *f = p->file_descriptor_response->file_descriptor_proto;
        r->files = (int)p->file_descriptor_response->n_file_descriptor_proto;
        snprintf(r->name, sizeof r->name, "%.*s", f->data[1], (const char *)f->data + 2); /* field 1 */
    } else if (r->kind == GOT(LIST_SERVICES_RESPONSE)) {
        r->names = (int)p->list_services_response->n_service;
        snprintf(r->name, sizeof r->name, "%s", p->list_services_response->service[0]->name);
    } else if (r->kind == GOT(ERROR_RESPONSE)) {
        r->error_code = p->error_response->error_code;
    }
}

static void on_health(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    (void)s;
    reply *r = user;
    if (r->told_count < 8) r->told[r->told_count] = ((const Grpc__Health__V1__HealthCheckResponse *)m)->status;
    r->told_count++;
}

static rpc_health *add_both(fixture *f) {
    error err;
    rpc_health *h;
    *f = (fixture){0};
    assert_int_equal(rpc_loop_create(&f->loop, &err), ST_OK);
    assert_int_equal(rpc_server_open(f->loop, "127.0.0.1:0", methods, 3, f, &f->server, &err), ST_OK);
    assert_int_equal(rpc_health_add(f->server, services, 2, &h), ST_OK);
    assert_int_equal(rpc_reflection_add(f->server, proto_descriptors, proto_descriptors_bytes, services, 2), ST_OK);
    rpc_server_start(f->server);
    assert_int_equal(rpc_channel_open(f->loop, rpc_server_address(f->server), &f->channel, &err), ST_OK);
    return h;
}

static reply reflect(fixture *f, int version, int asked, const char *text) {
    static const rpc_stream_events events = {on_reflected, on_end};
    reply r = {0};
    request q = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    q.message_request_case = asked;
    q.file_by_filename = (char *)(uintptr_t)text; /* all texts share the oneof's place */
    assert_int_equal(rpc_stream_start(f->channel, &info[version], &q.base, 5000, true, &events, &r, &r.a.stream), ST_OK);
    assert_true(run_until(f, is_true, &r.a.ended, 20000));
    assert_int_equal(r.a.st, ST_OK);
    return r;
}

static void reflection_finds_files_by_name_and_symbol(void **state) {
    (void)state;
    fixture f;
    add_both(&f);
    for (int v = 0; v < 2; v++) {
        reply r = reflect(&f, v, ASK(LIST_SERVICES), "");
        assert_int_equal(r.names, 2);
        assert_string_equal(r.name, "baton.v1.Inference");
        static const char *const symbols[][2] = {
            {"baton.v1.Inference", "baton.proto"}, {"baton.v1.Inference.Generate", "baton.proto"},
            {"baton.v1.GenerateRequest", "baton.proto"}, {"baton.v1.GenerateRequest.prompt", "baton.proto"},
            {"baton.v1.FinishReason", "baton.proto"}, {"grpc.health.v1.Health", "health.proto"},
            {"grpc.health.v1.HealthCheckResponse.ServingStatus", "health.proto"},
            {"grpc.reflection.v1alpha.ServerReflection", "reflection_v1alpha.proto"},
        };
        for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
            r = reflect(&f, v, ASK(FILE_CONTAINING_SYMBOL), symbols[i][0]);
            assert_int_equal(r.kind, GOT(FILE_DESCRIPTOR_RESPONSE));
            assert_int_equal(r.files, 1);
            assert_string_equal(r.name, symbols[i][1]);
        }
        r = reflect(&f, v, ASK(FILE_BY_FILENAME), "reflection.proto");
        assert_string_equal(r.name, "reflection.proto");
        assert_int_equal(reflect(&f, v, ASK(ALL_EXTENSION_NUMBERS_OF_TYPE), "baton.v1.Chat").kind,
                         GOT(ALL_EXTENSION_NUMBERS_RESPONSE));
    }
    fixture_close(&f);
}

static void reflection_says_not_found(void **state) {
    (void)state;
    fixture f;
    add_both(&f);
    static const char *const unknown[] = {"", "baton", "baton.v1", "baton.v1.", "baton.v1.Infer", "baton.v1.Inference.",
                                          "baton.v1.Inference.Generate.x", "none.v1.Inference", "."};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        assert_int_equal(reflect(&f, 0, ASK(FILE_CONTAINING_SYMBOL), unknown[i]).error_code, 5);
    assert_int_equal(reflect(&f, 0, ASK(FILE_BY_FILENAME), "baton.prot").error_code, 5);
    assert_int_equal(reflect(&f, 0, ASK(ALL_EXTENSION_NUMBERS_OF_TYPE), "x.Y").error_code, 5);
    assert_int_equal(reflect(&f, 0, ASK(_NOT_SET), NULL).error_code, 3);
    fixture_close(&f);
}

static void start_health(fixture *f, int method, const char *service, reply *r) {
    static const rpc_stream_events events = {on_health, on_end};
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    q.service = (char *)(uintptr_t)service;
    *r = (reply){0};
    assert_int_equal(rpc_stream_start(f->channel, &health[method], &q.base, 0, true, &events, r, &r->a.stream), ST_OK);
}

static reply check_health(fixture *f, const char *service) {
    reply r;
    start_health(f, 0, service, &r);
    assert_true(run_until(f, is_true, &r.a.ended, 20000));
    return r;
}

static void health_is_asked_and_watched(void **state) {
    (void)state;
    fixture f;
    rpc_health *h = add_both(&f);
    assert_int_equal(check_health(&f, "").told[0], HEALTH(NOT_SERVING));
    reply known, unknown;
    start_health(&f, 1, "baton.v1.Inference", &known);
    start_health(&f, 1, "baton.v1.None", &unknown);
    run_until(&f, never, NULL, 100);
    rpc_health_set(h, true);
    rpc_health_set(h, true); /* no news */
    run_until(&f, never, NULL, 50);
    rpc_health_set(h, false);
    run_until(&f, never, NULL, 50);
    assert_int_equal(known.told_count, 3);
    assert_int_equal(known.told[0], HEALTH(NOT_SERVING));
    assert_int_equal(known.told[1], HEALTH(SERVING));
    assert_int_equal(known.told[2], HEALTH(NOT_SERVING));
    assert_int_equal(unknown.told_count, 1);
    assert_int_equal(unknown.told[0], HEALTH(SERVICE_UNKNOWN));
    rpc_health_set(h, true);
    assert_int_equal(check_health(&f, "grpc.health.v1.Health").told[0], HEALTH(SERVING));
    assert_int_equal(check_health(&f, "baton.v1.None").a.st, ST_NOT_FOUND);
    rpc_stream_cancel(unknown.a.stream);
    assert_true(run_until(&f, is_true, &unknown.a.ended, 20000));
    fixture_close(&f); /* a watcher still there is canceled */
}

typedef struct flips { fixture *f; rpc_health *h; int64_t at; bool serving, over; } flips;

/* Runs after each event of the loop, so between a watcher's cancel and its on_free too, and changes the state
 * in every second millisecond: in the others the loop gets to its sockets. */
static void flip(void *arg) {
    flips *x = arg;
    rpc_timer *t;
    if (x->over) return;
    if (clock_now_ms() / 2 != x->at) rpc_health_set(x->h, x->serving = !x->serving);
    x->at = clock_now_ms() / 2;
    assert_int_equal(rpc_timer_start(x->f->loop, 0, flip, x, &t), ST_OK);
}

static void a_watcher_may_leave_while_the_state_changes(void **state) {
    (void)state;
    fixture f;
    rpc_timer *t;
    flips x = {.f = &f, .h = add_both(&f)};
    assert_int_equal(rpc_timer_start(f.loop, 0, flip, &x, &t), ST_OK);
    for (int i = 0; i < 20; i++) {
        reply r;
        start_health(&f, 1, "", &r);
        run_until(&f, never, NULL, 20);
        rpc_stream_cancel(r.a.stream);
        assert_true(run_until(&f, all_freed, &f, 20000));
        assert_true(run_until(&f, is_true, &r.a.ended, 20000));       /* the two sides' ends come in any order */
    }
    x.over = true;
    run_until(&f, never, NULL, 5);
    fixture_close(&f);
}

static void *stop_at_end_of_input(void *loop) {
    while (getchar() != EOF) {}
    rpc_loop_stop(loop);
    return NULL;
}

static int serve_both(void) {
    fixture f;
    pthread_t reader;
    rpc_health_set(add_both(&f), true);
    printf("%s\n", rpc_server_address(f.server));
    fflush(stdout);
    pthread_create(&reader, NULL, stop_at_end_of_input, f.loop);
    rpc_loop_run(f.loop);
    pthread_join(reader, NULL);
    fixture_close(&f);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--serve") == 0) return serve_both();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reflection_finds_files_by_name_and_symbol),
        cmocka_unit_test(reflection_says_not_found),
        cmocka_unit_test(health_is_asked_and_watched),
        cmocka_unit_test(a_watcher_may_leave_while_the_state_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
