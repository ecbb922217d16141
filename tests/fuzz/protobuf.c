/* protobuf.c -- bytes as a message off the wire: decoded as rpc/ decodes them, then read by whoever serves
 * that message. The first byte says which message. What was accepted must pack again. */
#include "coordinator/service.h"
#include "decode-node/decode.h"
#include "node/service.h"
#include "prefill-node/prefill.h"
#include "rpc/internal.h"
#include "tests/unit/tiny_gguf.h"
#include <assert.h>

static coord_model model;
static node_facts facts = {.digest = "d", .numerics = "n", .kv_layout = "k", .V = 288, .context = 256,
                           .page_tokens = 16, .kv_address = "127.0.0.1:1"};

static void open_model(void) {
    static tiny_gguf file;
    error err = {0};
    file = tiny_gguf_build(&(tiny_options){.vocab = true, .V = 288});
    if (eng_gguf_open_memory(file.data, file.bytes, "tiny", &model.gguf, &err) != ST_OK ||
        eng_vocab_open(model.gguf, &model.vocab, &err) != ST_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    snprintf(model.id, sizeof model.id, "tiny");
    model.context = 256;
}

static void serve_generate(const ProtobufCMessage *m, arena *a, error *err) {
    coord_job job = {0};
    if (coord_check_generate(&model, (const Baton__V1__GenerateRequest *)m, a, &job, err) != ST_OK) return;
    assert(job.count > 0 && job.max_tokens > 0 && job.count + job.max_tokens <= model.context);
    for (int32_t k = 0; job.seen && k < job.n; k++) {
        const coord_seen *s = &job.seen[k];
        coord_text text = {.vocab = model.vocab, .stops = job.stops, .stops_count = job.stops_count};
        if (s->count == 0) continue;
        assert(s->count >= job.count && s->count - job.count <= job.max_tokens);
        coord_text_replay(&text, s->tokens + job.count, s->count - job.count, false);
        coord_text_free(&text);
    }
}

static void serve_node(const node_service *service, const ProtobufCMessage *m, arena *a, error *err) {
    node_request r = {.memory = a};
    if (service->read(&facts, m, &r, err) != ST_OK) return;
    assert(r.prompt_count > 0 && r.prompt_count <= r.count && r.count <= facts.context);
    for (int32_t i = 0; i < r.count; i++) assert(r.tokens[i] >= 0 && r.tokens[i] < facts.V);
}

static void pack_again(const ProtobufCMessage *m) {
    grpc_byte_buffer *packed;
    if (rpc_message_pack(m, &packed) == ST_OK) grpc_byte_buffer_destroy(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const ProtobufCMessageDescriptor *const types[] = {
        &baton__v1__generate_request__descriptor,
        &baton__node__v1__decode_request__descriptor,
        &baton__node__v1__prefill_request__descriptor,
        &baton__v1__generate_chunk__descriptor,
        &baton__v1__generate_result__descriptor,
        &baton__v1__tokenize_request__descriptor,
        &baton__v1__detokenize_request__descriptor,
        &baton__v1__list_models_result__descriptor,
        &baton__v1__get_model_request__descriptor,
        &baton__v1__topology_result__descriptor,
        &baton__v1__node_request__descriptor,
        &baton__v1__set_role_request__descriptor,
        &baton__node__v1__decode_event__descriptor,
        &baton__node__v1__prefill_event__descriptor,
        &baton__node__v1__watch_request__descriptor,
        &baton__node__v1__node_state__descriptor,
        &baton__node__v1__control_request__descriptor,
    };
    if (!model.vocab) open_model();
    if (bytes == 0) return 0;
    const ProtobufCMessageDescriptor *type = types[data[0] % (sizeof types / sizeof *types)];
    ProtobufCMessage *m;
    if (rpc_message_read(type, data + 1, bytes - 1, &m) != ST_OK) return 0;
    arena *a = arena_create(4096);
    error err = {0};
    if (type == types[0]) serve_generate(m, a, &err);
    if (type == types[1]) serve_node(&decode_service, m, a, &err);
    if (type == types[2]) serve_node(&prefill_service, m, a, &err);
    assert(err.code == ST_OK || err.text[0]);
    arena_destroy(a);
    pack_again(m);
    rpc_message_free(m);
    return 0;
}
