/* speculate.c -- speculation on a decode node: who proposes, how much, and what came of it.
 *
 *   join     the sequence gets the proposer's state; its odds begin as those of others were
 *   work     before a step: the draft reads prompts, also those whose pages are still in flight
 *   plan     how many rows are worth it (adapt.c), if the proposer has anything to propose
 *   propose  the tokens, for the rows that the scheduler granted
 *   judge    what the verifier (decode.c) took of them: odds, metrics
 *
 * Nothing here can change an answer: decode.c takes only what the target drew. */
#include "decode-node/draft.h"
#include <string.h>

METRIC(metric_drafts, "baton_node_speculated_steps_total", NULL, METRIC_COUNTER, "times that proposed tokens of a request were checked");
METRIC(metric_proposed, "baton_node_proposed_tokens_total", NULL, METRIC_COUNTER, "tokens that speculation proposed and the model checked");
#define AT(i) {.name = "baton_node_accepted_tokens_at_total", .labels = "position=\"" #i "\"", .kind = METRIC_COUNTER, \
               .help = "proposed tokens that the model chose, too, by their place among the proposed (0: the first)"}
static metric metric_accepted_at[] = {AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), AT(6), AT(7), AT(8), AT(9), AT(10), AT(11), AT(12), AT(13), AT(14)};
enum { ACCEPTED_AT = sizeof metric_accepted_at / sizeof *metric_accepted_at };
METRIC(metric_accepted, "baton_node_accepted_tokens_total", NULL, METRIC_COUNTER, "proposed tokens that the model chose, too: answers have them without a forward pass each");

/* After so many steps with proposed tokens one has none: what it would take without is measured again. */
enum { EAGER_MAX = 128 };
/* A sequence joins as if so many steps had gone without: its first chance is a probe, whatever others' odds were. */
enum { HOPE = 64 };
/* Slow start: one that is hoped for too much costs no more than a few rows. */
enum { START = 3 };
#define LEARN 0.1                /* what a step says of the sequences to come */

/* ---- sequences ---------------------------------------------------------------------------------------- */

static void join(void *ctx, node_seq *s) {
    decode_speculator *x = ctx;
    size_t own = x->proposer->bytes(x, s->tokens_max);
    decode_guess *g = arena_alloc(s->request->memory, sizeof *g);
    void *state = g ? arena_alloc(s->request->memory, own) : NULL;
    if (!state) return;                                    /* it decodes without */
    *g = (decode_guess){.seq = s, .own = state, .plain = HOPE, .prev = x->last};
    decode_odds_begin(&g->odds, x->expected);
    *(x->last ? &x->last->next : &x->first) = g;
    x->last = g;
    s->speculation = g;
}

static void leave(void *ctx, node_seq *s) {
    decode_speculator *x = ctx;
    decode_guess *g = s->speculation;
    if (x->proposer->leave) x->proposer->leave(x, g);
    *(g->prev ? &g->prev->next : &x->first) = g->next;
    *(g->next ? &g->next->prev : &x->last) = g->prev;
}

/* ---- steps -------------------------------------------------------------------------------------------- */

decode_outlook decode_speculate_outlook(const decode_speculator *x, const decode_guess *g, int32_t most) {
    const node_seq *s = g->seq;
    return (decode_outlook){.step = &x->step,
                            .draft = x->draft ? &x->draft->draw : NULL,
                            .read = x->draft ? &x->draft->read : NULL,
                            .odds = decode_odds_of(&g->odds),
                            .decoding = x->decoding > 0 ? x->decoding : 1,
                            .most = min32(min32(most, x->tokens_max), START + 2 * g->accepted),
                            .remaining = s->tokens_max - s->count,
                            .plain = g->plain};
}

static bool work(void *ctx) {
    decode_speculator *x = ctx;
    return x->proposer->work && x->proposer->work(x);
}

/* Where proposing takes no time acceptance is measured also while nothing is proposed: what would have been is compared with
 * what was drawn. */
static void note_unsaid(decode_speculator *x, decode_guess *g) {
    int32_t one = 1;
    node_seq *const seqs[] = {g->seq};
    x->proposer->propose(x, seqs, &one, 1);
    if (one == 1) g->unsaid = g->seq->tokens[g->seq->count], g->unsaid_at = g->seq->count;
}

static void judge_unsaid(decode_guess *g) {
    if (g->unsaid_at == 0 || g->seq->count <= g->unsaid_at) return;         /* it had no row */
    decode_odds_add(&g->odds, 1, g->seq->tokens[g->unsaid_at] == g->unsaid);
    g->unsaid_at = 0;
}

static int32_t plan(void *ctx, node_seq *s, int32_t most, int32_t decoding) {
    decode_speculator *x = ctx;
    decode_guess *g = s->speculation;
    judge_unsaid(g);
    x->decoding = decoding;
    if (x->eager >= EAGER_MAX && !x->fixed) return 0;
    int32_t ready = x->proposer->ready(x, g, min32(most, x->tokens_max));
    if (x->fixed) return ready;
    decode_outlook o = decode_speculate_outlook(x, g, ready);
    int32_t k = ready > 0 ? decode_adapt_length(&o) : 0;
    g->plain = k > 0 ? 0 : g->plain + 1;
    if (k == 0 && ready > 0 && !x->draft) note_unsaid(x, g);
    return k;
}

static void propose(void *ctx, node_seq *const *seqs, int32_t *counts, int n) {
    decode_speculator *x = ctx;
    x->proposer->propose(x, seqs, counts, n);
}

static void judge(void *ctx, node_seq *s, int32_t proposed, int32_t accepted, const float *rest) {
    decode_speculator *x = ctx;
    decode_guess *g = s->speculation;
    metric_add(&metric_drafts, 1);
    metric_add(&metric_proposed, proposed);
    metric_add(&metric_accepted, accepted);
    for (int32_t i = 0; i < accepted && i < ACCEPTED_AT; i++) metric_add(&metric_accepted_at[i], 1);
    if (!rest) return;                                     /* cut short by the answer's end: says nothing of the odds */
    decode_odds_add(&g->odds, proposed, accepted);
    g->accepted = accepted;
    x->expected += LEARN * (decode_odds_of(&g->odds) - x->expected);
    if (x->expected > x->proposer->odds) x->expected = x->proposer->odds;
    if (x->proposer->learn) x->proposer->learn(x, g, proposed, accepted, rest);
}

static void stepped(void *ctx, int32_t rows, int64_t took_us) {
    decode_speculator *x = ctx;
    decode_curve_add(&x->step, rows, took_us);
    x->eager = rows > x->decoding ? x->eager + 1 : 0;
}

/* ---- open, close -------------------------------------------------------------------------------------- */

status decode_speculator_create(const decode_proposer *proposer, int32_t tokens_max, decode_speculator **out, error *err) {
    decode_speculator *x = mem_zalloc(1, sizeof *x);
    if (!x) return error_set(err, ST_NO_MEMORY, "no memory for speculation");
    x->table = (node_speculator){.ctx = x, .join = join, .leave = leave, .work = work, .plan = plan,
                                 .propose = propose, .judge = judge, .stepped = stepped};
    x->proposer = proposer;
    x->expected = proposer->odds;
    x->tokens_max = tokens_max > 0 && tokens_max < DECODE_PROPOSED_MAX ? tokens_max : DECODE_PROPOSED_MAX;
    metric *const all[] = {&metric_drafts, &metric_proposed, &metric_accepted};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) metric_show(all[i]);
    for (int i = 0; i < ACCEPTED_AT && i < x->tokens_max; i++) metric_show(&metric_accepted_at[i]);
    *out = x;
    return ST_OK;
}

void decode_speculator_close(decode_speculator *x) {
    if (!x) return;
    decode_draft_destroy(x->draft);
    decode_draft_model_close(x->draft_model);
    eng_sampler_destroy(x->sampler);
    mem_free(x);
}

const node_speculator *decode_speculator_table(const decode_speculator *x) { return x ? &x->table : NULL; }

static const decode_proposer *find(const decode_speculate_options *o) {
    static const decode_proposer *const all[] = {&decode_propose_ngram, &decode_propose_draft, &decode_propose_lookahead};
    if (strcmp(o->mode, "auto") == 0) return o->draft ? &decode_propose_draft : &decode_propose_ngram;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(o->mode, all[i]->name) == 0) return all[i];
    return NULL;
}

/* As long as a row of logits. */
static status open_sampler(const decode_speculate_options *o, decode_speculator *x, error *err) {
    eng_gguf *g;
    TRY(eng_gguf_open(o->model, &g, err));
    const eng_tensor *t = eng_gguf_tensor(g, "token_embd.weight");
    x->V = t && t->dim[1] > 0 && t->dim[1] <= INT32_MAX ? (int32_t)t->dim[1] : 0;
    eng_gguf_close(g);
    if (x->V == 0) return error_set(err, ST_BAD_INPUT, "'%.200s': tensor token_embd.weight: expected a row for each token", o->model);
    x->sampler = eng_sampler_create(x->V);
    return x->sampler ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory for a vocabulary of %d", x->V);
}

static bool is_off(const decode_speculate_options *o) { return !o->mode || strcmp(o->mode, "off") == 0; }

status decode_speculate_check(const decode_speculate_options *o, error *err) {
    const decode_proposer *p = o->mode ? find(o) : NULL;
    if (!is_off(o) && !p)
        return error_set(err, ST_BAD_INPUT, "--speculate '%.40s': expected off, ngram, draft, lookahead or auto", o->mode);
    if (o->draft && p != &decode_propose_draft)
        return error_set(err, ST_BAD_INPUT, "--draft with --speculate %.40s: expected draft or auto", o->mode ? o->mode : "off");
    if (p == &decode_propose_draft && !o->draft)
        return error_set(err, ST_BAD_INPUT, "--speculate draft: --draft FILE is missing");
    return ST_OK;
}

status decode_speculator_open(const decode_speculate_options *o, decode_speculator **out, error *err) {
    decode_speculator *x = NULL;
    *out = NULL;
    TRY(decode_speculate_check(o, err));
    if (is_off(o)) return ST_OK;
    const decode_proposer *p = find(o);
    status st = decode_speculator_create(p, o->tokens_max, &x, err);
    if (st == ST_OK && o->draft) st = decode_draft_model_open(o, &x->draft_model, &x->draft, err);
    if (st == ST_OK && p == &decode_propose_lookahead) st = open_sampler(o, x, err);
    if (st != ST_OK) {
        decode_speculator_close(x);
        return st;
    }
    x->fixed = o->fixed;
    *out = x;
    return ST_OK;
}
