/* middle.h -- what a coordinator costs beside a relay that forwards the same messages: the parts of `bench_coordinator`.
 *
 *   stub.c     a prefill and a decode node that answer at once
 *   relay.c    a bare relay on gRPC's C core: the same three streams a request, no thought
 *   client.c   asks a coordinator, the relay, or the nodes themselves
 *
 * A request, whoever stands in the middle, n answer tokens:
 *   client -> Decode at D            D: Reserved
 *             then Prefill at P      P: FirstToken -> client, Sent
 *                                    D: Landed, n tokens (the first is known already, the others -> client), Done -> client
 * bench/coordinator.py starts the processes, takes turns and counts their CPU time. */
#ifndef BATON_BENCH_MIDDLE_H
#define BATON_BENCH_MIDDLE_H

#include "bench/histogram.h"
#include "rpc/rpc.h"

enum { MIDDLE_ANSWER_MAX = 256 };

/* "r17": how the parts find a request's other half. */
#define MIDDLE_ID "r%lld"

/* ---- stub.c: on their loop's thread --------------------------------------------------------------------- */

typedef struct stub_nodes stub_nodes;

/* Two servers on free ports of 127.0.0.1. digest: of the model that the coordinator serves; borrowed until close. */
status stub_nodes_open(rpc_loop *l, const char *digest, stub_nodes **out, error *err);
const char *stub_nodes_decode(const stub_nodes *s);          /* "127.0.0.1:4711" */
const char *stub_nodes_prefill(const stub_nodes *s);
/* Frees s and calls done(arg) when both servers are closed. */
void stub_nodes_close(stub_nodes *s, void (*done)(void *arg), void *arg);

/* What the relay and a client that asks directly send to a prefill node: the DecodeRequest again. */
extern const rpc_method stub_prefill_method;

/* ---- relay.c --------------------------------------------------------------------------------------------- */

/* Serves for ever, on this thread; prints "ready grpc=H:P" when it does. */
status relay_run(const char *decode, const char *prefill, error *err);

/* ---- client.c -------------------------------------------------------------------------------------------- */

typedef enum middle_kind { MIDDLE_COORDINATOR, MIDDLE_RELAY, MIDDLE_NONE } middle_kind;

typedef struct middle_options {
    middle_kind kind;
    const char *address;         /* of the coordinator, the relay, or the decode node */
    const char *prefill;         /* MIDDLE_NONE: of the prefill node */
    int64_t requests;
    int concurrency;             /* closed loop: so many at once */
    double rate;                 /* > 0: open loop instead, so many a second */
    int32_t prompt, answer;      /* tokens */
} middle_options;

typedef struct middle_report {
    int64_t answered, failed;
    double seconds;
    char first_failure[200];
    bench_histogram ttft, whole; /* from when a request was sent */
} middle_report;

/* Runs l until every request has ended. ST_IO: one failed or had another answer than it should. */
status middle_client_run(rpc_loop *l, const middle_options *o, middle_report *out, error *err);

#endif
