/* http.h -- what operators and load balancers ask a process over HTTP:
 *
 *   GET /metrics   every metric of the process, Prometheus text format 0.0.4, and the vllm:* names for them
 *   GET /healthz   200 as long as this thread runs
 *   GET /readyz    200 when requests are taken, 503 and why not otherwise
 *
 * One thread of its own with libevent's evhttp: a slow client of it never holds up a loop or the engine. A connection is
 * closed after HTTP_IDLE_S without a byte; requests have no body. Nothing it says is a secret: no prompt, no request id. */
#ifndef BATON_HTTP_H
#define BATON_HTTP_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    HTTP_IDLE_S = 30,
    HTTP_HEADERS_MAX = 16 * 1024,        /* bytes of a request's line and headers; more is answered with 400 */
    HTTP_WHY_MAX = 200,
};

typedef struct http_options {
    const char *listen;          /* "127.0.0.1:8000"; port 0 takes a free one */
    const char *model;           /* label model_name of the vllm:* names; NULL: only baton's own */
    /* On http's thread. false: why[] says it in one line. */
    bool (*ready)(void *ctx, char why[HTTP_WHY_MAX]);
    void *ctx;
} http_options;

typedef struct http_service http_service;

/* Copies o's texts. ST_BAD_INPUT: listen is no address. ST_IO: it is taken, said with the address. */
status http_open(const http_options *o, http_service **out, error *err);
const char *http_address(const http_service *s);         /* as bound */
void http_close(http_service *s);                        /* joins its thread; NULL is fine */

/* ---- aliases.c -------------------------------------------------------------------------------------- */

/* Writes the metrics that vLLM has a name for under that name, for dashboards and autoscalers that know those. */
void http_aliases_write(FILE *out, const char *model);

#ifdef __cplusplus
}
#endif
#endif
