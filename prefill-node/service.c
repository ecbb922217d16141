/* service.c -- the Prefill method: PrefillRequest into a node_request, events into PrefillEvents. */
#include "node/rank.h"
#include "node/service.h"
#include "prefill-node/prefill.h"
#include <netdb.h>
#include <string.h>

/* "host:port" of every rank, with commas; hosts that need no lookup: the engine thread would wait for it. Decode
 * nodes tell addresses as bound, which are numeric. */
static bool are_numeric(const char *list) {
    char one[NODE_ADDRESS_MAX], host[NODE_ADDRESS_MAX];
    const char *port;
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST}, *found;
    int count = 0;
    for (; *list && count < COLL_RANKS_MAX; count++) {
        if (!node_transfer_next_address(&list, one) || !address_split(one, host, sizeof host, &port) ||
            getaddrinfo(host, NULL, &hints, &found) != 0)
            return false;
        freeaddrinfo(found);
    }
    return count > 0 && !*list;
}

/* A node without --insecure sends no KV page in the clear to another machine, whoever asks. Sealed ones go anywhere:
 * who told the address told the key, too. */
static status check_clear(const char *list, error *err) {
    char one[NODE_ADDRESS_MAX];
    while (node_transfer_next_address(&list, one)) TRY(rpc_security_check_clear("KV pages to", one, err));
    return ST_OK;
}

static status read_request(const node_facts *facts, const ProtobufCMessage *message, node_request *r,
                           error *err) {
    const Baton__Node__V1__PrefillRequest *m = (const Baton__Node__V1__PrefillRequest *)message;
    TRY(node_service_pairing(facts, m->pairing, err));
    TRY(node_service_id(m->request_id, r, err));
    TRY(node_service_tokens(facts, m->tokens, m->n_tokens, m->prompt_count, r, err));
    TRY(node_service_sampling(facts, m->sampling, r, err));
    TRY(node_service_priority(m->priority, r, err));
    if (m->skip < 0 || m->skip > m->send_end || (size_t)m->send_end > m->n_tokens)
        return error_set(err, ST_BAD_INPUT, "skip %d, send_end %d: expected 0 <= skip <= send_end <= %zu",
                         m->skip, m->send_end, m->n_tokens);
    if (m->hold && m->send_end > 0)
        return error_set(err, ST_BAD_INPUT, "hold and send_end %d: expected 0, nothing is sent", m->send_end);
    size_t bytes = strlen(m->kv_address);
    if (m->send_end > m->skip && (bytes == 0 || m->ticket == 0))
        return error_set(err, ST_BAD_INPUT, "kv_address and ticket: expected both where there are tokens to send");
    if (m->send_end > m->skip && !are_numeric(m->kv_address))
        return error_set(err, ST_BAD_INPUT, "kv_address '%.80s': expected HOST:PORT with a numeric host, of each of at most %d ranks",
                         m->kv_address, COLL_RANKS_MAX);
    if (m->kv_key.len != 0 && m->kv_key.len != KVT_KEY_BYTES)
        return error_set(err, ST_BAD_INPUT, "kv_key has %zu bytes, expected %d or none", m->kv_key.len, KVT_KEY_BYTES);
    if (m->send_end > m->skip && m->kv_key.len == 0) TRY(check_clear(m->kv_address, err));
    TRY(node_service_kv_type(facts, m->pairing, &r->kv_type, err));
    r->kv_address = arena_strndup(r->memory, m->kv_address, bytes);
    if (!r->kv_address) return error_set(err, ST_NO_MEMORY, "no memory for the kv_address");
    r->epoch = m->epoch;
    r->salt = m->salt;
    r->ticket = m->ticket;
    r->sealed = m->kv_key.len != 0;
    if (r->sealed) memcpy(r->kv_key, m->kv_key.data, sizeof r->kv_key);
    r->skip = m->skip;
    r->send_end = m->send_end;
    r->hold = m->hold;
    r->moved = m->moved;
    if (r->hold) r->priority = -PRIORITY_MAX;         /* what is to be sent now goes first */
    return ST_OK;
}

static status write_first_token(const node_event *e, rpc_call *call) {
    node_token_message token;
    Baton__Node__V1__FirstToken m = BATON__NODE__V1__FIRST_TOKEN__INIT;
    Baton__Node__V1__PrefillEvent out = BATON__NODE__V1__PREFILL_EVENT__INIT;
    node_service_token(e, &token);
    m.token = &token.token;
    m.cached_tokens = e->token.cached;
    m.prefill_ms = (double)e->token.prefill_us / 1000;
    out.event_case = BATON__NODE__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    out.first_token = &m;
    return rpc_call_send(call, &out.base);
}

static status write_sent(const node_event *e, rpc_call *call) {
    Baton__Node__V1__Sent m = BATON__NODE__V1__SENT__INIT;
    Baton__Node__V1__PrefillEvent out = BATON__NODE__V1__PREFILL_EVENT__INIT;
    m.bytes = e->sent.bytes;
    m.transfer_ms = (double)e->sent.wire_us / 1000;
    m.hidden_ms = (double)e->sent.hidden_us / 1000;
    out.event_case = BATON__NODE__V1__PREFILL_EVENT__EVENT_SENT;
    out.sent = &m;
    return rpc_call_send(call, &out.base);
}

static status write_event(const node_facts *facts, const node_event *e, rpc_call *call) {
    (void)facts;
    switch (e->kind) {
    case NODE_FIRST_TOKEN: return write_first_token(e, call);
    case NODE_SENT: return write_sent(e, call);
    default: return ST_INTERNAL; /* no such event of this role */
    }
}

const node_service prefill_service = {.path = "/baton.node.v1.Node/Prefill",
                                      .request = &baton__node__v1__prefill_request__descriptor,
                                      .reply = &baton__node__v1__prefill_event__descriptor,
                                      .role = &prefill_role,
                                      .show = prefill_show,
                                      .read = read_request,
                                      .write = write_event};
