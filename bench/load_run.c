/* load_run.c -- sends a plan's requests at their times and records what comes back.
 *
 *   planned -> open       [send]      its time has come; not-sent instead when streams_max are open
 *   open    -> answered, refused, failed, unfinished   [on_end]
 *
 *   the run: arrivals [arrive] -> waiting for the rest, at most wait_ms -> stopped [bench_load_stop] -> the loop ends
 *   when the last stream has
 *
 * Arrivals are driven by a timer of whole milliseconds and never wait for an answer. A request that leaves late (the
 * client had no core, say) is not moved: its latencies count from when it was meant to leave. */
#include "bench/load.h"
#include <assert.h>
#include <sys/resource.h>
#include <unistd.h>

enum { SLOW_READ_MS = 1000, SLOW_LOGPROBS = 20, TICK_MS = 1000 };
enum { QUIET_TICKS = 5 };         /* one line in so many seconds where stderr is no terminal, the first after one */

/* One open stream, from send() to on_end(). */
typedef struct job {
    bench_load *load;
    int64_t index;
    rpc_stream *stream;
    rpc_timer *resume;           /* slow readers */
    struct job *next, **link;
} job;

struct bench_load {
    const bench_load_plan *plan;
    bench_load_settings settings;
    bench_load_record *records;  /* (plan->count) */
    bench_histogram gaps;
    int32_t *tokens;             /* room for the longest prompt */
    rpc_loop *loop;
    rpc_channel *channel;
    rpc_timer *arrival, *tick, *wait;
    job *jobs;
    int64_t next;                /* request whose time comes next */
    int64_t open, open_slow;     /* streams; slow readers are in the second only */
    int64_t answered, refused, failed;
    int64_t start_us, end_us;
    double cpu_s;
    int ticks;
    bool stopped;
    char first_failure[300];
};

static const rpc_method generate = {
    .path = "/baton.v1.Inference/Generate",
    .kind = RPC_SERVER_STREAM,
    .request = &baton__v1__generate_request__descriptor,
    .reply = &baton__v1__generate_chunk__descriptor,
};

static int64_t now_us(const bench_load *b) { return clock_now_us() - b->start_us; }

static double cpu_used_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* ---- birth and death -------------------------------------------------------------------------------- */

status bench_load_create(const bench_load_plan *p, const bench_load_settings *s, bench_load **out, error *err) {
    bench_load *b = mem_zalloc(1, sizeof *b);
    int32_t longest = 0;
    for (int64_t i = 0; i < p->count; i++)
        if (p->requests[i].prompt > longest) longest = p->requests[i].prompt;
    if (b) b->records = mem_zalloc((size_t)p->count, sizeof *b->records);
    if (b) b->tokens = mem_zalloc((size_t)longest, sizeof *b->tokens);
    if (!b || !b->records || !b->tokens) {
        bench_load_destroy(b);
        return error_set(err, ST_NO_MEMORY, "no memory for %lld requests", (long long)p->count);
    }
    b->plan = p;
    b->settings = *s;
    *out = b;
    return ST_OK;
}

void bench_load_destroy(bench_load *b) {
    if (!b) return;
    assert(!b->jobs);
    mem_free(b->records);
    mem_free(b->tokens);
    mem_free(b);
}

/* ---- an answer -------------------------------------------------------------------------------------- */

static void resume(void *arg) {
    job *j = arg;
    j->resume = NULL;
    rpc_stream_resume(j->stream);
}

static void take_finish(bench_load_record *r, const Baton__V1__Finish *f) {
    r->attempts = f->attempts;
    if (f->usage) {
        r->cached = f->usage->cached_tokens;
        r->accepted = f->usage->accepted_tokens;
    }
    if (!f->timings) return;
    r->told = true;
    r->tokenise = f->timings->tokenise;
    r->queue = f->timings->queue;
    r->prefill = f->timings->prefill;
    r->transfer = f->timings->kv_transfer;
    r->ttft = f->timings->ttft;
    r->decode = f->timings->decode;
}

static void on_message(rpc_stream *s, const ProtobufCMessage *m, void *user) {
    const Baton__V1__GenerateChunk *c = (const Baton__V1__GenerateChunk *)m;
    job *j = user;
    bench_load *b = j->load;
    bench_load_record *r = &b->records[j->index];
    bool slow = b->plan->requests[j->index].slow;
    if (c->n_tokens > 0) {
        int64_t now = now_us(b);
        if (!r->first_us) r->first_us = now;
        else if (!slow) bench_histogram_add(&b->gaps, now - r->last_us);
        r->last_us = now;
        r->tokens += (int32_t)c->n_tokens;
    }
    if (c->finish) take_finish(r, c->finish);
    if (slow && !j->resume && !b->stopped &&
        rpc_timer_start(b->loop, SLOW_READ_MS, resume, j, &j->resume) == ST_OK)
        rpc_stream_pause(s);
}

static void settle(bench_load *b) {
    if (!b->stopped && b->next == b->plan->count && b->open == 0) bench_load_stop(b);
    else if (b->stopped && !b->jobs) rpc_loop_stop(b->loop);
}

static void conclude(bench_load *b, bench_load_record *r, status st, const char *text, int64_t retry_after_ms) {
    r->st = st;
    r->retry_after_ms = retry_after_ms;
    if (st == ST_OK) {
        r->outcome = LOAD_ANSWERED;
        b->answered++;
    } else if (st == ST_AGAIN) {
        r->outcome = LOAD_REFUSED;
        b->refused++;
    } else if (st == ST_CANCELED && b->stopped) {
        r->outcome = LOAD_UNFINISHED;
    } else {
        r->outcome = LOAD_FAILED;
        if (b->failed++ == 0) snprintf(b->first_failure, sizeof b->first_failure, "%s: %s", status_text(st), text);
    }
}

static void on_end(rpc_stream *s, status st, const char *text, int64_t retry_after_ms, void *user) {
    (void)s;
    job *j = user;
    bench_load *b = j->load;
    bench_load_record *r = &b->records[j->index];
    bool slow = b->plan->requests[j->index].slow;
    r->end_us = now_us(b);
    if (slow) r->outcome = st == ST_OK ? LOAD_ANSWERED : LOAD_UNFINISHED;
    else conclude(b, r, st, text, retry_after_ms);
    *(slow ? &b->open_slow : &b->open) -= 1;
    rpc_timer_cancel(j->resume);
    if ((*j->link = j->next)) j->next->link = j->link;
    mem_free(j);
    settle(b);
}

/* ---- arrivals --------------------------------------------------------------------------------------- */

static status start_stream(bench_load *b, int64_t index, job *j) {
    static const rpc_stream_events events = {on_message, on_end};
    const bench_load_request *r = &b->plan->requests[index];
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    Baton__V1__Sampling sampling = BATON__V1__SAMPLING__INIT;
    Baton__V1__Tokens tokens = BATON__V1__TOKENS__INIT;
    bench_load_plan_tokens(b->plan, index, b->settings.vocabulary, b->tokens);
    tokens.ids = b->tokens;
    tokens.n_ids = (size_t)r->prompt;
    request.input_case = BATON__V1__GENERATE_REQUEST__INPUT_TOKENS;
    request.tokens = &tokens;
    request.max_tokens_set_case = BATON__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS;
    request.max_tokens = r->answer;
    request.ignore_eos = true;
    request.sampling = &sampling;
    sampling.temperature = (float)b->settings.temperature;
    sampling.seed_set_case = BATON__V1__SAMPLING__SEED_SET_SEED;
    sampling.seed = b->plan->seed + (uint64_t)index;
    if (r->slow) {               /* large messages, so that the windows between us and the server fill */
        request.logprobs_set_case = BATON__V1__GENERATE_REQUEST__LOGPROBS_SET_LOGPROBS;
        request.logprobs = SLOW_LOGPROBS;
    }
    int64_t timeout_ms = r->slow ? 0 : b->settings.timeout_ms;
    if (timeout_ms > 0) timeout_ms -= (now_us(b) - r->at_us) / 1000;
    if (b->settings.timeout_ms > 0 && !r->slow && timeout_ms < 1) timeout_ms = 1;
    return rpc_stream_start(b->channel, &generate, &request.base, timeout_ms, false, &events, j, &j->stream);
}

static void send(bench_load *b, int64_t index) {
    bench_load_record *r = &b->records[index];
    bool slow = b->plan->requests[index].slow;
    r->sent_us = r->end_us = now_us(b);
    if (b->open + b->open_slow >= b->settings.streams_max) {
        r->outcome = LOAD_NOT_SENT;
        return;
    }
    job *j = mem_zalloc(1, sizeof *j);
    if (j) *j = (job){.load = b, .index = index};
    status st = j ? start_stream(b, index, j) : ST_NO_MEMORY;
    if (st != ST_OK) {
        mem_free(j);
        conclude(b, r, st, "the call did not start", -1);
        return;
    }
    if ((j->next = b->jobs)) j->next->link = &j->next;
    j->link = &b->jobs;
    b->jobs = j;
    r->outcome = LOAD_OPEN;
    *(slow ? &b->open_slow : &b->open) += 1;
}

static void arrive(void *arg);

static void give_up(void *arg) {
    bench_load *b = arg;
    b->wait = NULL;
    bench_load_stop(b);
}

/* Failing to start a timer ends the run: what it says would otherwise not be what was planned. */
static void start_timer(bench_load *b, int64_t delay_ms, void (*fn)(void *arg), rpc_timer **out) {
    if (rpc_timer_start(b->loop, delay_ms, fn, b, out) == ST_OK) return;
    conclude(b, &(bench_load_record){0}, ST_NO_MEMORY, "no timer", -1);
    bench_load_stop(b);
}

static void arrive(void *arg) {
    bench_load *b = arg;
    const bench_load_plan *p = b->plan;
    b->arrival = NULL;
    while (b->next < p->count && p->requests[b->next].at_us <= now_us(b)) send(b, b->next++);
    if (b->next < p->count)
        start_timer(b, (p->requests[b->next].at_us - now_us(b) + 999) / 1000, arrive, &b->arrival);
    else
        start_timer(b, b->settings.wait_ms, give_up, &b->wait);
    settle(b);
}

/* ---- progress --------------------------------------------------------------------------------------- */

static void print_progress(const bench_load *b, bool last) {
    bool terminal = isatty(STDERR_FILENO);
    if (!b->settings.progress || (!terminal && !last && b->ticks % QUIET_TICKS != 1)) return;
    fprintf(stderr, "%s%4lld s: %lld of %lld arrived, %lld open, %lld answered, %lld refused, %lld failed%s",
            terminal ? "\r" : "", (long long)(now_us(b) / 1000000), (long long)b->next, (long long)b->plan->count,
            (long long)b->open, (long long)b->answered, (long long)b->refused, (long long)b->failed,
            terminal && !last ? "  " : "\n");
    fflush(stderr);
}

static void tick(void *arg) {
    bench_load *b = arg;
    b->tick = NULL;
    b->ticks++;
    print_progress(b, false);
    start_timer(b, TICK_MS, tick, &b->tick);
}

/* ---- the run ---------------------------------------------------------------------------------------- */

void bench_load_stop(void *arg) {
    bench_load *b = arg;
    if (b->stopped) return;
    b->stopped = true;
    b->end_us = now_us(b);
    rpc_timer_cancel(b->arrival);
    rpc_timer_cancel(b->tick);
    rpc_timer_cancel(b->wait);
    b->arrival = b->tick = b->wait = NULL;
    for (job *j = b->jobs; j; j = j->next) rpc_stream_cancel(j->stream);
    settle(b);
}

status bench_load_run(bench_load *b, rpc_loop *loop, rpc_channel *channel, error *err) {
    b->loop = loop;
    b->channel = channel;
    b->cpu_s = cpu_used_s();
    b->start_us = clock_now_us();
    start_timer(b, 0, arrive, &b->arrival);
    if (!b->stopped) start_timer(b, TICK_MS, tick, &b->tick);
    rpc_loop_run(loop);
    b->cpu_s = cpu_used_s() - b->cpu_s;
    print_progress(b, true);
    if (b->failed > 0 && b->answered == 0)
        return error_set(err, ST_IO, "every request failed, the first with: %s", b->first_failure);
    if (b->failed > 0 && b->settings.progress) fprintf(stderr, "the first failure: %s\n", b->first_failure);
    return ST_OK;
}

void bench_load_take(const bench_load *b, bench_load_slo slo, bench_load_figures *out) {
    bench_load_figures_of(b->plan, b->records, &b->gaps, slo, b->end_us, b->cpu_s, out);
}
