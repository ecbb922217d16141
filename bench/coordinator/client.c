/* client.c -- sends requests in a closed or an open loop and looks at every answer.
 *
 * Arrivals of the open loop are Poisson; a thread sleeps to each one's time and posts it to the loop, whose own timers have
 * whole milliseconds. Latencies count from the moment a request is sent: what is measured is what stands in the middle, not
 * this client. */
#include "bench/coordinator/middle.h"
#include "proto/baton.pb-c.h"
#include "proto/node.pb-c.h"
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { TOKEN = 90, PROMPT_MAX = 8192 };

typedef struct client client;

typedef struct job {
    client *client;
    int64_t number, sent_us, first_us;
    int32_t tokens;              /* answer tokens that came; the relay's client counts messages */
    int streams;                 /* open */
    bool failed;
} job;

struct client {
    rpc_loop *loop;
    const middle_options *options;
    middle_report *report;
    rpc_channel *channel, *prefill;
    int32_t tokens[PROMPT_MAX];
    int64_t sent, open, start_us;
};

static const rpc_method generate = {.path = "/baton.v1.Inference/Generate",
                                    .kind = RPC_SERVER_STREAM,
                                    .request = &baton__v1__generate_request__descriptor,
                                    .reply = &baton__v1__generate_chunk__descriptor};
static const rpc_method decode = {.path = "/baton.node.v1.Node/Decode",
                                  .kind = RPC_SERVER_STREAM,
                                  .request = &baton__node__v1__decode_request__descriptor,
                                  .reply = &baton__node__v1__decode_event__descriptor};
/* Messages of both nodes come: this type knows no field, so it takes any. */
static const rpc_method relayed = {.path = "/baton.node.v1.Node/Decode",
                                   .kind = RPC_SERVER_STREAM,
                                   .request = &baton__node__v1__decode_request__descriptor,
                                   .reply = &baton__v1__topology_request__descriptor};

static void go_on(client *c);

/* ---- an answer --------------------------------------------------------------------------------------------- */

static void fail(job *j, const char *text) {
    if (!j->failed && j->client->report->failed++ == 0)
        snprintf(j->client->report->first_failure, sizeof j->client->report->first_failure, "request %lld: %s", (long long)j->number, text);
    j->failed = true;
}

static void on_end(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user) {
    (void)s, (void)retry_after_ms;
    job *j = user;
    client *c = j->client;
    const middle_options *o = c->options;
    if (st != ST_OK) fail(j, *text ? text : status_text(st));
    if (--j->streams > 0) return;
    int32_t expected = o->answer + (o->kind == MIDDLE_RELAY);        /* its Done is a message of its own */
    if (j->tokens != expected) fail(j, "another number of tokens than asked for");
    int64_t now = clock_now_us();
    if (!j->failed) {
        c->report->answered++;
        bench_histogram_add(&c->report->ttft, j->first_us - j->sent_us);
        bench_histogram_add(&c->report->whole, now - j->sent_us);
    }
    mem_free(j);
    c->open--;
    go_on(c);
}

static void count(job *j, int32_t tokens) {
    if (tokens > 0 && j->first_us == 0) j->first_us = clock_now_us();
    j->tokens += tokens;
}

static void on_chunk(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    (void)s;
    count(user, (int32_t)((const Baton__V1__GenerateChunk *)m)->n_tokens);
}

static void on_relayed(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    (void)s, (void)m;
    count(user, 1);
}

/* ---- without anyone in the middle --------------------------------------------------------------------------- */

static void fill(const client *c, const job *j, char *id, size_t bytes, Baton__Node__V1__DecodeRequest *r) {
    baton__node__v1__decode_request__init(r);
    snprintf(id, bytes, MIDDLE_ID, (long long)j->number);
    r->request_id = id;
    r->tokens = (int32_t *)(uintptr_t)c->tokens;
    r->n_tokens = (size_t)c->options->prompt;
    r->prompt_count = c->options->prompt;
    r->max_tokens = c->options->answer;
    r->epoch = 1;
    r->lease_ms = 30000;
    r->ignore_eos = true;
}

static void on_prefill(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    (void)s;
    job *j = user;
    bool first = ((const Baton__Node__V1__PrefillEvent *)m)->event_case == BATON__NODE__V1__PREFILL_EVENT__EVENT_FIRST_TOKEN;
    if (first && j->first_us == 0) j->first_us = clock_now_us();
}

static void on_decode(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    static const rpc_stream_events events = {on_prefill, on_end};
    (void)s;
    job *j = user;
    const Baton__Node__V1__DecodeEvent *e = (const Baton__Node__V1__DecodeEvent *)m;
    if (e->event_case == BATON__NODE__V1__DECODE_EVENT__EVENT_TOKENS) count(j, (int32_t)e->tokens->n_tokens);
    if (e->event_case != BATON__NODE__V1__DECODE_EVENT__EVENT_RESERVED) return;
    Baton__Node__V1__DecodeRequest r;
    rpc_stream *other;
    char id[32];
    fill(j->client, j, id, sizeof id, &r);
    if (rpc_stream_start(j->client->prefill, &stub_prefill_method, &r.base, 0, false, &events, j, &other) == ST_OK) j->streams++;
    else fail(j, "no memory");
}

/* ---- sending ------------------------------------------------------------------------------------------------ */

static status start_generate(client *c, job *j, rpc_stream **out) {
    static const rpc_stream_events events = {on_chunk, on_end};
    Baton__V1__GenerateRequest r = BATON__V1__GENERATE_REQUEST__INIT;
    Baton__V1__Tokens tokens = BATON__V1__TOKENS__INIT;
    Baton__V1__Sampling sampling = BATON__V1__SAMPLING__INIT;
    char id[32];
    snprintf(id, sizeof id, MIDDLE_ID, (long long)j->number);
    tokens.ids = c->tokens;
    tokens.n_ids = (size_t)c->options->prompt;
    sampling.seed_set_case = BATON__V1__SAMPLING__SEED_SET_SEED;
    r.request_id = id;
    r.input_case = BATON__V1__GENERATE_REQUEST__INPUT_TOKENS;
    r.tokens = &tokens;
    r.sampling = &sampling;
    r.max_tokens_set_case = BATON__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS;
    r.max_tokens = c->options->answer;
    r.ignore_eos = true;
    return rpc_stream_start(c->channel, &generate, &r.base, 0, true, &events, j, out);
}

static status start_decode(client *c, job *j, rpc_stream **out) {
    static const rpc_stream_events direct = {on_decode, on_end}, through = {on_relayed, on_end};
    bool relay = c->options->kind == MIDDLE_RELAY;
    Baton__Node__V1__DecodeRequest r;
    char id[32];
    fill(c, j, id, sizeof id, &r);
    return rpc_stream_start(c->channel, relay ? &relayed : &decode, &r.base, 0, true, relay ? &through : &direct, j, out);
}

static void send(client *c) {
    job *j = mem_zalloc(1, sizeof *j);
    rpc_stream *s;
    if (!j) return;
    *j = (job){.client = c, .number = c->sent++, .sent_us = clock_now_us(), .streams = 1};
    c->open++;
    status st = c->options->kind == MIDDLE_COORDINATOR ? start_generate(c, j, &s) : start_decode(c, j, &s);
    if (st != ST_OK) on_end(NULL, st, "it did not start", -1, j);
}

static void arrive(void *arg) { send(arg); }

/* On a thread of its own. The loop runs until every request has ended, so it outlives this. */
static void *pace(void *arg) {
    client *c = arg;
    const middle_options *o = c->options;
    double at_us = (double)c->start_us;
    for (int64_t i = 0; i < o->requests; i++) {
        at_us -= log(1 - (double)(mix64((uint64_t)i + 1) >> 11) / (double)(1ll << 53)) * 1e6 / o->rate;
        struct timespec due = {.tv_sec = (time_t)(at_us / 1e6)};
        due.tv_nsec = (long)((at_us - (double)due.tv_sec * 1e6) * 1e3);
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        while (rpc_loop_post(c->loop, arrive, c) != ST_OK) cpu_relax();
    }
    return NULL;
}

static void go_on(client *c) {
    const middle_options *o = c->options;
    if (o->rate <= 0 && c->sent < o->requests) send(c);
    if (c->sent == o->requests && c->open == 0) rpc_loop_stop(c->loop);
}

status middle_client_run(rpc_loop *l, const middle_options *o, middle_report *out, error *err) {
    client *c = mem_zalloc(1, sizeof *c);
    *out = (middle_report){0};
    if (!c) return error_set(err, ST_NO_MEMORY, "no memory for a client");
    if (o->prompt < 2 || o->prompt > PROMPT_MAX || o->answer < 1 || o->answer > MIDDLE_ANSWER_MAX || o->requests < 1)
        return mem_free(c), error_set(err, ST_BAD_INPUT, "expected requests, 2 to %d prompt and 1 to %d answer tokens", PROMPT_MAX, MIDDLE_ANSWER_MAX);
    *c = (client){.loop = l, .options = o, .report = out, .start_us = clock_now_us()};
    for (int i = 0; i < o->prompt; i++) c->tokens[i] = TOKEN;
    status st = rpc_channel_open(l, o->address, &c->channel, err);
    if (st == ST_OK && o->prefill) st = rpc_channel_open(l, o->prefill, &c->prefill, err);
    pthread_t pacer;
    if (st == ST_OK && o->rate > 0 && pthread_create(&pacer, NULL, pace, c) != 0) st = error_set(err, ST_NO_MEMORY, "no thread");
    if (st == ST_OK) {
        for (int i = 0; o->rate <= 0 && i < o->concurrency && c->sent < o->requests; i++) send(c);
        rpc_loop_run(l);
        if (o->rate > 0) pthread_join(pacer, NULL);
        out->seconds = (double)(clock_now_us() - c->start_us) / 1e6;
        if (out->failed) st = error_set(err, ST_IO, "%lld requests failed, the first: %s", (long long)out->failed, out->first_failure);
    }
    if (c->prefill) rpc_channel_close(c->prefill);
    if (c->channel) rpc_channel_close(c->channel);
    mem_free(c);
    return st;
}
