/* client.c -- requests, the answers a lone computation gives, and a check of every token and end. */
#include "tests/sim/sim.h"
#include <string.h>

/* The answer without a cluster: no pages, no batch, no faults; after the `emitted` tokens that stand. Read apart, the
 * prompt's rows but the last are a prefill node's. */
static void answer_alone(sim *s, sim_request *r) {
    uint64_t state = 0, cells[SIM_LAYERS], numerics = sim_numerics(s, false);
    float logits[SIM_V];
    int32_t count = r->prompt_count + r->emitted;
    for (int32_t i = 0; i < count; i++)
        sim_engine_row(&state, r->tokens[i], sim_numerics(s, r->apart && i < r->prompt_count - 1), cells);
    while (count < r->prompt_count + r->max_tokens) {
        eng_sampled sampled;
        sim_engine_logits(state, logits);
        if (eng_sample(s->sampler, &r->sampling, logits, r->tokens, r->prompt_count, count, &sampled) != ST_OK)
            sim_fail(s, "the reference can not be sampled");
        r->tokens[count++] = sampled.token;
        if (sampled.token == SIM_END_TOKEN && !r->ignore_eos) break;
        sim_engine_row(&state, sampled.token, numerics, cells);
    }
    r->answer_count = count - r->prompt_count;
}

static bool answered(const sim_request *r) {
    bool ended = r->emitted && r->tokens[r->prompt_count + r->emitted - 1] == SIM_END_TOKEN && !r->ignore_eos;
    return ended || r->emitted == r->max_tokens;
}

void sim_client_reread(sim *s, sim_request *r, bool apart) {
    if (r->apart == apart) return;
    r->apart = apart;
    if (!answered(r)) answer_alone(s, r);
}

static void submit(sim *s, sim_event *at) {
    sim_request *r = &s->requests[at->a];
    if (r->finished) return;
    if (s->apart && s->nodes[1].heard_life == 0) {           /* before it heard of a prefill node it knows of no border */
        sim_at(s, s->now_us + 1000, submit)->a = at->a;
        return;
    }
    coord_event e = {.kind = COORD_SUBMIT, .request = (uint64_t)at->a + 1};
    char id[16];
    snprintf(id, sizeof id, "r%d", (int)at->a);
    e.submit.id = id;
    e.submit.tokens = r->tokens;
    e.submit.prompt_count = r->prompt_count;
    e.submit.count = r->prompt_count + (r->emitted = r->had);
    e.submit.max_tokens = r->max_tokens;
    e.submit.deadline_ms = r->deadline_ms;
    e.submit.prefer_node = sim_chance(s, 0.2) ? (int)sim_range(s, 0, s->nodes_count - 1) : -1;
    e.submit.salt = r->salt;
    e.submit.tenant = r->salt;
    e.submit.explain = sim_chance(s, 0.2);
    sim_trace(s, "client: submit %s prompt=%d max=%d answer=%d", id, r->prompt_count, r->max_tokens,
              r->answer_count);
    r->live = true;
    sim_coordinator_step(s, &e);
}

static void finish(sim *s, sim_request *r) {
    r->live = false;
    r->finished = true;
    s->requests_left--;
}

static void cancel(sim *s, sim_event *at) {
    sim_request *r = &s->requests[at->a];
    if (r->finished) return;
    r->canceled = true;
    if (!r->live) {              /* it was refused and waits to come again */
        finish(s, r);
        return;
    }
    coord_event e = {.kind = COORD_CANCEL, .request = (uint64_t)at->a + 1};
    sim_coordinator_step(s, &e);
}

static void stop(sim *s, sim_event *at) {
    sim_request *r = &s->requests[at->a];
    if (!r->live) return;
    r->stopped = true;
    coord_event e = {.kind = COORD_STOP, .request = (uint64_t)at->a + 1};
    sim_coordinator_step(s, &e);
}

void sim_client_emit(sim *s, const coord_action *a) {
    int number = (int)a->request - 1;
    sim_request *r = &s->requests[number];
    if (!r->live || r->canceled || r->stopped) {
        sim_fail(s, "request %d: tokens after its end", number);
        return;
    }
    if (a->emit.index != r->prompt_count + r->emitted || a->emit.count < 1) {
        sim_fail(s, "request %d: %d tokens at index %d, expected at %d", number, a->emit.count,
                 a->emit.index, r->prompt_count + r->emitted);
        return;
    }
    if (r->emitted == r->had || r->first_attempt == r->hold_attempt) r->first_attempt = a->attempt;
    s->seen[SEEN_MIGRATED] += a->attempt != r->first_attempt && !r->migrated;
    r->migrated = r->migrated || a->attempt != r->first_attempt;
    for (int32_t i = 0; i < a->emit.count; i++) {
        int32_t index = r->prompt_count + r->emitted++;
        if (r->emitted > r->answer_count || a->emit.tokens[i] != r->tokens[index]) {
            sim_fail(s, "request %d: token %d at index %d, expected %d of %d answer tokens", number,
                     a->emit.tokens[i], index, r->tokens[index], r->answer_count);
            return;
        }
    }
    if (r->stop_after && r->emitted >= r->stop_after) sim_at(s, s->now_us, stop)->a = number;
}

static void come_again(sim *s, int number, const coord_action *a) {
    sim_request *r = &s->requests[number];
    int64_t wait_ms = a->finish.retry_after_ms > 0 ? a->finish.retry_after_ms : 50;
    r->live = false;
    s->seen[SEEN_AGAIN]++;
    s->seen[SEEN_AGAIN_TOKENS] += strstr(a->finish.text, "prompt tokens are waiting") != NULL;
    s->seen[SEEN_AGAIN_TENANT] += strstr(a->finish.text, "this tenant") != NULL;
    if (a->finish.st == ST_AGAIN && (wait_ms < 50 || wait_ms > 10000))
        sim_fail(s, "request %d: told to wait %lld ms", number, (long long)wait_ms);
    sim_at(s, s->now_us + wait_ms * 1000, submit)->a = number;
}

void sim_client_finish(sim *s, const coord_action *a) {
    int number = (int)a->request - 1;
    sim_request *r = &s->requests[number];
    status st = a->finish.st;
    if (!r->live) {
        sim_fail(s, "request %d: finished twice", number);
        return;
    }
    if (a->finish.attempts == 0 && r->emitted == r->had && (st == ST_AGAIN || st == ST_PEER_LOST)) {
        come_again(s, number, a);
        return;
    }
    bool right = st == ST_OK         ? r->stopped || r->emitted == r->answer_count
                 : st == ST_CANCELED ? r->canceled
                 : st == ST_DEADLINE ? s->now_us / 1000 >= r->deadline_ms
                                     : false;
    if (!right)
        sim_fail(s, "request %d: ended with %s (%s) after %d of %d tokens", number, status_name(st),
                 a->finish.text ? a->finish.text : "", r->emitted, r->answer_count);
    int32_t last = r->tokens[r->prompt_count + r->answer_count - 1];
    int32_t reason = r->stopped || (last == SIM_END_TOKEN && !r->ignore_eos) ? 1 : 2;
    if (st == ST_OK && a->finish.reason != reason)
        sim_fail(s, "request %d: ended for reason %d, expected %d", number, a->finish.reason, reason);
    s->seen[SEEN_HAD] += st == ST_OK && r->had > 0;
    s->seen[st == ST_OK ? SEEN_ANSWERED : st == ST_DEADLINE ? SEEN_LATE : SEEN_CANCELED]++;
    finish(s, r);
}

/* A conversation goes on: what was answer to an earlier request is prompt to this one. */
static const sim_request *earlier(sim *s, const sim_request *r, int32_t *shared) {
    const sim_request *q = &s->requests[sim_range(s, 0, SIM_REQUESTS_MAX - 1)];
    if (q >= r || !sim_chance(s, 0.7)) return NULL;
    *shared = q->prompt_count + (int32_t)sim_range(s, 0, q->answer_count);
    return q;
}

static void invent(sim *s, sim_request *r, int32_t bases[3][200], int longest) {
    const int32_t *base = bases[sim_range(s, 0, 2)];
    r->prompt_count = (int32_t)sim_range(s, 1, longest);
    int32_t shared = sim_chance(s, 0.7) ? (int32_t)sim_range(s, 0, r->prompt_count) : 0;
    const sim_request *before = earlier(s, r, &shared);
    if (before) base = before->tokens;
    if (before && r->prompt_count < shared) r->prompt_count = shared < 200 ? shared : 200;
    for (int32_t i = 0; i < r->prompt_count; i++)
        r->tokens[i] = i < shared ? base[i] : (int32_t)sim_range(s, 0, SIM_V - 1);
    r->max_tokens = (int32_t)sim_range(s, 1, sim_chance(s, 0.5) ? 8 : 40);
    r->sampling = eng_sampling_default;
    r->sampling.seed = sim_random(s);
    if (sim_chance(s, 0.5)) r->sampling.temperature = 1.0f;
    if (sim_chance(s, 0.2)) r->sampling.repetition = 1.3f;
    r->salt = before ? before->salt : (uint64_t)sim_range(s, 0, 1);
    r->apart = s->apart;
    r->decode_node = r->holder = -1;
    r->ignore_eos = sim_chance(s, 0.5);
    r->priority = sim_chance(s, 0.7) ? 0 : (int32_t)sim_range(s, -2, 2);
    r->deadline_ms = INT64_MAX;
    r->submit_us = sim_range(s, 1000, s->heal_us);
    r->cancel_us = sim_chance(s, 0.1) ? r->submit_us + sim_range(s, 0, 60000) : -1;
    if (sim_chance(s, 0.05)) r->deadline_ms = r->submit_us / 1000 + sim_range(s, 1, 100);
    if (sim_chance(s, 0.05)) r->stop_after = (int32_t)sim_range(s, 1, r->max_tokens);
}

/* Its client was told a part of the answer already. */
static void begin_elsewhere(sim_request *r) {
    uint64_t random = mix64(r->sampling.seed);
    if (random % 8 == 0 && r->answer_count > 1) r->had = 1 + (int32_t)(random / 8 % (uint64_t)(r->answer_count - 1));
}

void sim_client_create(sim *s) {
    int32_t bases[3][200];
    for (int b = 0; b < 3; b++)
        for (int i = 0; i < 200; i++) bases[b][i] = (int32_t)sim_range(s, 0, SIM_V - 1);
    int longest = sim_chance(s, 0.3) ? 200 : sim_chance(s, 0.5) ? 60 : 20;
    s->requests_count = (int)sim_range(s, 1, SIM_REQUESTS_MAX);
    for (int i = 0; i < s->requests_count; i++) {
        sim_request *r = &s->requests[i];
        invent(s, r, bases, longest);
        answer_alone(s, r);
        begin_elsewhere(r);
        sim_at(s, r->submit_us, submit)->a = i;
        if (r->cancel_us >= 0) sim_at(s, r->cancel_us, cancel)->a = i;
    }
    s->requests_left = s->requests_count;
}
