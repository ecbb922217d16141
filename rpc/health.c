/* health.c -- grpc.health.v1.Health: whether services serve, asked once (Check) or watched (Watch).
 *
 * All services of a server share one state. A watcher has what it was told last; one that reads
 * slowly is told the newest state when it has room again, never the ones between. */
#include "proto/health.pb-c.h"
#include "rpc/internal.h"
#include <string.h>

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;
#define STATUS(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

typedef struct watcher {
    rpc_call *call;
    rpc_health *health;
    struct watcher *next, **link;
    bool known, full, ended;
    serving_status told;
} watcher;

/* On its server's loop; freed with the server. */
struct rpc_health {
    const char *const *services;
    int count;
    bool serving;
    watcher *watchers;
};

static bool serves(const rpc_health *h, const char *service) {
    if (!*service) return true;
    for (int i = 0; i < h->count; i++)
        if (strcmp(h->services[i], service) == 0) return true;
    return false;
}

static status send_status(rpc_call *call, serving_status s) {
    Grpc__Health__V1__HealthCheckResponse r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    r.status = s;
    return rpc_call_send(call, &r.base);
}

static void check(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    const rpc_health *h = ctx;
    if (!serves(h, ((const Grpc__Health__V1__HealthCheckRequest *)request)->service)) {
        rpc_call_finish(call, ST_NOT_FOUND, "unknown service", -1);
        return;
    }
    status st = send_status(call, h->serving ? STATUS(SERVING) : STATUS(NOT_SERVING));
    rpc_call_finish(call, st == ST_AGAIN ? ST_OK : st, NULL, -1);
}

static void end_watch(watcher *w, status st, const char *text) {
    w->ended = true;                     /* on_free comes later; until then it is told nothing */
    rpc_call_finish(w->call, st, text, -1);
}

/* Tells w the state if it does not know it and reads. */
static void tell(watcher *w) {
    serving_status now = w->health->serving ? STATUS(SERVING) : STATUS(NOT_SERVING);
    if (!w->known) now = STATUS(SERVICE_UNKNOWN);
    if (w->ended || w->full || w->told == now) return;
    status st = send_status(w->call, now);
    w->full = st == ST_AGAIN;
    w->told = now;
    if (st == ST_NO_MEMORY) end_watch(w, st, "no memory to tell the state");
}

static void watch_canceled(rpc_call *call, void *user) {
    (void)call;
    end_watch(user, ST_CANCELED, NULL);
}

static void watch_writable(rpc_call *call, void *user) {
    (void)call;
    watcher *w = user;
    w->full = false;
    tell(w);
}

static void watch_free(rpc_call *call, void *user) {
    (void)call;
    watcher *w = user;
    if ((*w->link = w->next)) w->next->link = w->link;
    mem_free(w);
}

static void watch(rpc_call *call, const ProtobufCMessage *request, void *ctx) {
    static const rpc_call_events events = {watch_canceled, watch_writable, watch_free};
    rpc_health *h = ctx;
    watcher *w = mem_zalloc(1, sizeof *w);
    if (!w) {
        rpc_call_finish(call, ST_NO_MEMORY, "no memory for a watcher", 1000);
        return;
    }
    *w = (watcher){.call = call, .health = h, .next = h->watchers, .link = &h->watchers};
    if (w->next) w->next->link = &w->next;
    h->watchers = w;
    w->told = STATUS(UNKNOWN);
    w->known = serves(h, ((const Grpc__Health__V1__HealthCheckRequest *)request)->service);
    rpc_call_watch(call, &events, w);
    tell(w);
}

static const rpc_method health_methods[] = {
    {"/grpc.health.v1.Health/Check", RPC_UNARY, &grpc__health__v1__health_check_request__descriptor,
     &grpc__health__v1__health_check_response__descriptor, check},
    {"/grpc.health.v1.Health/Watch", RPC_SERVER_STREAM,
     &grpc__health__v1__health_check_request__descriptor,
     &grpc__health__v1__health_check_response__descriptor, watch},
};

status rpc_health_add(rpc_server *s, const char *const *services, int count, rpc_health **out) {
    rpc_health *h = mem_zalloc(1, sizeof *h);
    if (!h) return ST_NO_MEMORY;
    h->services = services;
    h->count = count;
    if (rpc_server_own(s, h, mem_free) != ST_OK) {
        mem_free(h);
        return ST_NO_MEMORY;
    }
    TRY(rpc_server_add(s, health_methods, 2, h)); /* the server owns h already */
    *out = h;
    return ST_OK;
}

void rpc_health_set(rpc_health *h, bool serving) {
    h->serving = serving;
    for (watcher *w = h->watchers; w; w = w->next) tell(w);
}
