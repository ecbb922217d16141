/* service.h -- what a role adds to the Node service: how its request is read and its events are written.
 * Internal to the node folders. Everything here runs on the rpc loop's thread and touches nothing but its
 * arguments. */
#ifndef BATON_NODE_SERVICE_H
#define BATON_NODE_SERVICE_H

#include "node/node.h"
#include "proto/node.pb-c.h"
#include "rpc/rpc.h"

/* What a request is judged by. Fixed from open to close. */
typedef struct node_facts {
    char digest[40], numerics[96], kv_layout[48], kv_type[8];      /* pairing */
    int32_t V, context, page_tokens, h;
    const char *kv_address;      /* of every rank, with commas */
} node_facts;

struct node_service {
    const char *path;            /* "/baton.node.v1.Node/Decode", a server stream */
    const ProtobufCMessageDescriptor *request, *reply;
    const node_role *role;
    void (*show)(void);          /* its metrics are there from now on, as 0; NULL: it has none */
    /* Checks every number of message and copies what it needs into r (zeroed, its arena set). */
    status (*read)(const node_facts *facts, const ProtobufCMessage *message, node_request *r, error *err);
    /* Sends e (never NODE_END) by rpc_call_send() and returns what that said. */
    status (*write)(const node_facts *facts, const node_event *e, rpc_call *call);
};

/* Pieces of read, by field; errors name the field, what stood there and what was expected. */
status node_service_pairing(const node_facts *facts, const Baton__Node__V1__Pairing *theirs, error *err);
/* What frames are to hold: the decode node's type. */
status node_service_kv_type(const node_facts *facts, const Baton__Node__V1__Pairing *theirs, eng_kv_type *out, error *err);
status node_service_tokens(const node_facts *facts, const int32_t *tokens, size_t count, int32_t prompt_count,
                           node_request *r, error *err);
status node_service_sampling(const node_facts *facts, const Baton__Node__V1__SamplingParams *m,
                             node_request *r, error *err);
status node_service_priority(int32_t priority, node_request *r, error *err);
status node_service_id(const char *id, node_request *r, error *err);
/* Copies ids of the vocabulary; field is their name in errors. */
status node_service_ids(const node_facts *facts, const char *field, const int32_t *ids, size_t count,
                        arena *a, const int32_t **out, error *err);

/* A token as a message, with room for its alternatives. */
typedef struct node_token_message {
    Baton__Node__V1__Token token;
    Baton__Node__V1__Alternative top[ENG_LOGPROBS_MAX];
    Baton__Node__V1__Alternative *tops[ENG_LOGPROBS_MAX];
} node_token_message;

void node_service_token(const node_event *e, node_token_message *out);

#endif
