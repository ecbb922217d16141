/* session.c -- one Prefill or Decode call: between an rpc call on the loop and a sequence on the engine.
 *
 *   open ----submit----> engine                      events come back through the outbox
 *    | on_cancel: the call is finished at once, the engine is told, what still comes is dropped
 *    | rpc window full: events are held here, the engine is told to rest this sequence
 *    | on_writable: held events go first, then the engine may go on
 *    v
 *   ended (NODE_END came) and freed (on_free came) ----bye----> engine frees it
 *
 * What is held is bounded: the engine learns of the pause before its next step, so it is at most what the
 * outbox held when the window filled. */
#include "node/internal.h"
#include <assert.h>
#include <string.h>

METRIC(metric_paused, "baton_node_readers_slow_total", NULL, METRIC_COUNTER,
       "times a request rested because its reader did not keep up");

enum { RETRY_AFTER_MS = 100, CALL_ARENA_BYTES = 4096 };

void node_session_show(void) { metric_show(&metric_paused); }

typedef struct held {
    struct held *next;
    node_event event;
} held;

/* Loop's, from node_session_open() on. The engine never looks inside but for the messages and the two
 * atomics. Freed by the engine in run_bye(): bye is posted when the call is freed and NODE_END has come,
 * so nothing more can be posted; and because the mailbox is first come, first served, messages posted
 * before bye (a cancel that crossed NODE_END) have been run by then. Its address is the core's handle:
 * no event carries it after NODE_END, so it can not be mistaken for a later session at that address. */
typedef struct session {
    node_message submit, cancel, pause, bye;
    node_process *p;
    const node_service *service;
    node_request *request;       /* the core's from submit on */
    rpc_call *call;              /* NULL: finished */
    bool blocked;                /* window full */
    bool canceled, ended, freed;
    bool moved;                  /* as the request's */
    status end_status;
    char end_text[200];
    bool end_has_text;
    held *held_first, *held_last;
    atomic_bool pause_wanted, pause_posted;
    char id[];
} session;

/* ---- messages: on the engine thread ------------------------------------------------------------------ */

static session *session_of(node_message *m, size_t offset) { return (session *)((char *)m - offset); }

static void run_submit(node_process *p, node_message *m) {
    session *s = session_of(m, offsetof(session, submit));
    node_core_submit(p->core, s->service->role, s->request, clock_now_us());
}

static void run_cancel(node_process *p, node_message *m) {
    node_core_cancel(p->core, (uint64_t)(uintptr_t)session_of(m, offsetof(session, cancel)));
}

static void run_pause(node_process *p, node_message *m) {
    session *s = session_of(m, offsetof(session, pause));
    atomic_store(&s->pause_posted, false);                 /* first: a change after this posts again */
    node_core_pause(p->core, (uint64_t)(uintptr_t)s, atomic_load(&s->pause_wanted));
}

static void run_bye(node_process *p, node_message *m) {
    mem_free(session_of(m, offsetof(session, bye)));
    atomic_fetch_sub(&p->sessions, 1);
}

/* ---- on the loop -------------------------------------------------------------------------------------- */

static void want_pause(session *s, bool paused) {
    atomic_store(&s->pause_wanted, paused);
    if (!s->ended && !atomic_exchange(&s->pause_posted, true)) node_process_post(s->p, &s->pause);
}

static void want_cancel(session *s) {
    if (s->canceled || s->ended) return;
    s->canceled = true;
    node_process_post(s->p, &s->cancel);
}

/* A reserved event has a key in it. */
static void free_held(held *h) {
    kvt_key_wipe(&h->event, sizeof h->event);
    mem_free(h);
}

static void drop_held(session *s) {
    for (held *h; (h = s->held_first);) {
        s->held_first = h->next;
        free_held(h);
    }
}

/* on_free comes later, from the loop: s is good until the callback that called this returns. */
static void finish(session *s, status st, const char *text) {
    rpc_call *call = s->call;
    s->call = NULL;
    drop_held(s);
    log_write(LOG_INFO, s->id, "call.end", "method=%s status=%s", strrchr(s->service->path, '/') + 1,
              status_name(st));
    want_cancel(s);
    rpc_call_finish(call, st, text, st == ST_AGAIN ? RETRY_AFTER_MS : -1);
}

static void maybe_bye(session *s) {
    if (s->ended && s->freed) node_process_post(s->p, &s->bye);
}

static void log_event(const session *s, const node_event *e) {
    switch (e->kind) {
    case NODE_RESERVED:
        log_write(LOG_INFO, s->id, "decode.reserved", "cached=%d wanted=%d remote=%d", e->reserved.cached,
                  e->reserved.wanted, e->reserved.ticket != 0);
        break;
    case NODE_LANDED:
        log_write(LOG_INFO, s->id, "decode.landed", "tokens=%d status=%s wait_us=%lld", e->landed.tokens,
                  status_name(e->landed.st), (long long)e->landed.wait_us);
        break;
    case NODE_FIRST_TOKEN:
        log_write(LOG_INFO, s->id, "prefill.computed", "cached=%d us=%lld", e->token.cached,
                  (long long)e->token.prefill_us);
        break;
    case NODE_SENT:
        log_write(LOG_INFO, s->id, "prefill.sent", "bytes=%llu us=%lld hidden_us=%lld",
                  (unsigned long long)e->sent.bytes, (long long)e->sent.wire_us, (long long)e->sent.hidden_us);
        break;
    case NODE_DONE:
        log_write(LOG_INFO, s->id, "decode.done", "reason=%d computed=%d proposed=%d accepted=%d draft_us=%lld", e->done.reason,
                  e->done.computed, e->done.proposed, e->done.accepted, (long long)e->done.draft_us);
        break;
    case NODE_PROMPT:
    case NODE_TOKEN:
    case NODE_END: break;
    }
}

static void send(session *s, const node_event *e) {
    status st = s->service->write(&s->p->facts, e, s->call);
    if (st == ST_AGAIN) {
        s->blocked = true;
        metric_add(&metric_paused, 1);
        want_pause(s, true);
    } else if (st != ST_OK && st != ST_CANCELED) {         /* canceled: on_cancel is on its way */
        finish(s, st, "the answer could not be sent");
    }
}

static void hold(session *s, const node_event *e) {
    held *h = mem_alloc(sizeof *h);
    if (!h) {
        finish(s, ST_NO_MEMORY, "no memory to wait for a slow reader");
        return;
    }
    *h = (held){.event = *e};
    *(s->held_first ? &s->held_last->next : &s->held_first) = h;
    s->held_last = h;
}

/* Sends what is held, then the end, as far as the window goes. */
static void flush(session *s) {
    while (s->call && !s->blocked && s->held_first) {
        held *h = s->held_first;
        s->held_first = h->next;
        send(s, &h->event);
        free_held(h);
    }
    if (s->call && s->ended && !s->held_first)
        finish(s, s->end_status, s->end_has_text ? s->end_text : NULL);
}

void node_session_deliver(node_process *p, const node_letter *letter) {
    const node_event *e = &letter->event;
    session *s = (session *)(uintptr_t)e->handle;
    assert(s->p == p && !s->ended);
    log_event(s, e);
    if (e->kind == NODE_END) {
        s->ended = true;
        s->end_status = e->end.st;
        s->end_has_text = letter->has_text;
        memcpy(s->end_text, letter->text, sizeof s->end_text);
        if (s->call)
            flush(s);                                      /* on_free follows, and with it bye */
        else
            maybe_bye(s);
    } else if (s->call && (s->blocked || s->held_first)) {
        hold(s, e);
    } else if (s->call) {
        send(s, e);
    }
}

static void on_cancel(rpc_call *call, void *user) {
    session *s = user;
    if (s->call != call) return;
    if (s->p->draining && !s->moved) atomic_fetch_add(&s->p->owed, 1);
    finish(s, ST_CANCELED, NULL);
}

static void on_writable(rpc_call *call, void *user) {
    session *s = user;
    if (s->call != call) return;
    s->blocked = false;
    flush(s);
    if (s->call && !s->blocked) want_pause(s, false);
}

static void on_free(rpc_call *call, void *user) {
    (void)call;
    session *s = user;
    s->freed = true;
    maybe_bye(s);
}

/* ---- open --------------------------------------------------------------------------------------------- */

static status read_request(node_process *p, const node_service *service, const ProtobufCMessage *message,
                           node_request **out, error *err) {
    if (atomic_load(&p->sessions) >= p->sessions_max)
        return error_set(err, ST_AGAIN, "%s has %d calls open", p->id, p->sessions_max);
    arena *a = arena_create(CALL_ARENA_BYTES);
    node_request *r = a ? arena_alloc(a, sizeof *r) : NULL;
    status st = r ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory for the request");
    if (r) {
        r->memory = a;
        st = service->read(&p->facts, message, r, err);
    }
    if (st == ST_OK && p->draining && !r->moved) st = error_set(err, ST_AGAIN, "draining: %s takes no new requests", p->id);
    if (st == ST_OK)
        *out = r;
    else
        arena_destroy(a);
    return st;
}

void node_session_open(rpc_call *call, const ProtobufCMessage *message, void *table) {
    static const rpc_call_events events = {.on_cancel = on_cancel, .on_writable = on_writable, .on_free = on_free};
    node_table *t = table;
    node_request *r = NULL;
    error err;
    status st = read_request(t->p, t->service, message, &r, &err);
    if (st != ST_OK) {
        log_write(LOG_INFO, NULL, "call.refused", "status=%s why=\"%s\"", status_name(st), err.text);
        rpc_call_finish(call, st, err.text, st == ST_AGAIN ? RETRY_AFTER_MS : -1);
        return;
    }
    size_t id_bytes = strlen(r->id) + 1;
    session *s = mem_zalloc(1, sizeof *s + id_bytes);
    if (!s) {
        node_request_free(r);
        rpc_call_finish(call, ST_NO_MEMORY, "no memory for the call", RETRY_AFTER_MS);
        return;
    }
    s->submit.run = run_submit;
    s->cancel.run = run_cancel;
    s->pause.run = run_pause;
    s->bye.run = run_bye;
    s->p = t->p;
    s->service = t->service;
    s->request = r;
    s->moved = r->moved;
    s->call = call;
    memcpy(s->id, r->id, id_bytes);
    r->handle = (uint64_t)(uintptr_t)s;
    atomic_fetch_add(&t->p->sessions, 1);
    if (s->moved) atomic_fetch_sub(&t->p->owed, 1);
    log_write(LOG_INFO, s->id, "call.begin", "method=%s tokens=%d epoch=%u peer=%s",
              strrchr(s->service->path, '/') + 1, r->count, r->epoch, rpc_call_peer(call));
    rpc_call_watch(call, &events, s);
    node_process_post(s->p, &s->submit);
}
