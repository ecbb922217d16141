/* sampler.c -- from one row of logits to one token.
 *
 *   logits -> repetition -> presence, frequency -> bias      the distribution logprobs speak of
 *          -> temperature -> top-k -> top-p -> min-p -> draw  what is left is renormalised by the draw
 *
 *   repetition   l / r where l > 0, else l * r, for tokens of prompt and answer (Keskar et al. 2019)
 *   presence     l - a for tokens of the answer;  frequency  l - b * times (OpenAI)
 *   top-k        the k most probable
 *   top-p        of those, the shortest head with at least p of their mass (Holtzman et al. 2020)
 *   min-p        of those, the ones with at least m times the greatest probability (Nguyen et al. 2024)
 *   draw         inverse of the cumulative distribution, most probable token first, at the uniform
 *                number of (seed, position): random.c
 *   temperature 0 takes the greatest logit after penalties and bias; no cut can change that.
 *
 * Equal logits are ordered by token id, sums run in a fixed order in double: the same arguments give
 * the same token. The vocabulary is never sorted: candidates stand in a heap and are popped, most
 * probable first, only as far as a cut or the draw needs them; and the long tail of unlikely tokens is
 * heaped only when the likely ones are used up, which changes no order. */
#include "engine/engine.h"
#include "engine/random.h"
#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

const eng_sampling eng_sampling_default = {
    .temperature = 0, .top_p = 1, .repetition = 1, .logprobs = -1};

/* Belongs to the engine thread. Between calls count is all 0. */
struct eng_sampler {
    int32_t V;
    float *logits;               /* (V) after penalties and bias */
    int32_t *count;              /* (V) 0: not in the history, 1 + times in the answer */
    int32_t *touched;            /* tokens with count > 0 */
    int32_t *heap;               /* (V) candidates not popped yet, most probable on top */
    int32_t heap_count;
    float edge;                  /* the heap began with logits >= edge; those below follow */
    bool tail_heaped;
    int32_t *popped;             /* (V) candidates in falling order */
    double *weight;              /* (V) of popped[i]: exp((l - greatest) / temperature) */
    int32_t popped_count;
};

eng_sampler *eng_sampler_create(int32_t V) {
    assert(V > 0);
    eng_sampler *s = mem_zalloc(1, sizeof *s);
    if (!s) return NULL;
    size_t n = (size_t)V;
    s->V = V;
    s->logits = mem_zalloc(n, sizeof *s->logits);
    s->count = mem_zalloc(n, sizeof *s->count);
    s->touched = mem_zalloc(n, sizeof *s->touched);
    s->heap = mem_zalloc(n, sizeof *s->heap);
    s->popped = mem_zalloc(n, sizeof *s->popped);
    s->weight = mem_zalloc(n, sizeof *s->weight);
    if (s->logits && s->count && s->touched && s->heap && s->popped && s->weight) return s;
    eng_sampler_destroy(s);
    return NULL;
}

void eng_sampler_destroy(eng_sampler *s) {
    if (!s) return;
    mem_free(s->logits);
    mem_free(s->count);
    mem_free(s->touched);
    mem_free(s->heap);
    mem_free(s->popped);
    mem_free(s->weight);
    mem_free(s);
}

/* ---- what a request may ask ----------------------------------------------------------------------- */

static status check_range(const char *field, double value, double least, bool above, double most,
                          error *err) {
    if ((above ? value > least : value >= least) && value <= most) return ST_OK;   /* false for NaN */
    return error_set(err, ST_BAD_INPUT, "%s is %g, expected a number %s %g and at most %g", field,
                     value, above ? "above" : "from", least, most);
}

static status check_bias(const eng_sampling *s, int32_t V, error *err) {
    if (s->bias_count < 0 || (s->bias_count > 0 && !s->bias))
        return error_set(err, ST_BAD_INPUT, "logit_bias has %d entries, expected a list",
                         s->bias_count);
    for (int32_t i = 0; i < s->bias_count; i++) {
        if (s->bias[i].token < 0 || s->bias[i].token >= V)
            return error_set(err, ST_BAD_INPUT, "logit_bias names token %d, expected 0 to %d",
                             s->bias[i].token, V - 1);
        TRY(check_range("logit_bias", s->bias[i].bias, -100, false, 100, err));
    }
    return ST_OK;
}

status eng_sampling_check(const eng_sampling *s, int32_t V, error *err) {
    TRY(check_range("temperature", s->temperature, 0, false, 100, err));
    TRY(check_range("top_k", s->top_k, 0, false, INT32_MAX, err));
    TRY(check_range("top_p", s->top_p, 0, true, 1, err));
    TRY(check_range("min_p", s->min_p, 0, false, 1, err));
    TRY(check_range("repetition_penalty", s->repetition, 0, true, 10, err));
    TRY(check_range("presence_penalty", s->presence, -2, false, 2, err));
    TRY(check_range("frequency_penalty", s->frequency, -2, false, 2, err));
    TRY(check_range("logprobs", s->logprobs, -1, false, ENG_LOGPROBS_MAX, err));
    return check_bias(s, V, err);
}

/* ---- penalties and bias --------------------------------------------------------------------------- */

/* A finite logit stays finite, whatever it is divided by; NaN and infinity stay for adjust() to see. */
static float bounded(double x, float was) {
    if (!isfinite(was)) return was;
    return (float)fmin(fmax(x, -FLT_MAX), FLT_MAX);
}

static void penalise(eng_sampler *s, const eng_sampling *p, const int32_t *history,
                     int32_t prompt_count, int32_t count) {
    int32_t touched = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t token = history[i];
        assert(token >= 0 && token < s->V);
        if (s->count[token] == 0) {
            s->touched[touched++] = token;
            s->count[token] = 1;
        }
        s->count[token] += i >= prompt_count;
    }
    for (int32_t i = 0; i < touched; i++) {
        int32_t token = s->touched[i], times = s->count[token] - 1;
        float *l = &s->logits[token];
        *l = bounded(*l > 0 ? (double)*l / p->repetition : (double)*l * p->repetition, *l);
        if (times > 0) *l = bounded(*l - p->presence - (double)p->frequency * times, *l);
        s->count[token] = 0;
    }
}

/* Fills s->logits; *greatest: the token with the greatest, the smallest id of equals. */
static status adjust(eng_sampler *s, const eng_sampling *p, const float *logits,
                     const int32_t *history, int32_t prompt_count, int32_t count,
                     int32_t *greatest) {
    memcpy(s->logits, logits, (size_t)s->V * sizeof *logits);
    if (p->repetition != 1 || p->presence != 0 || p->frequency != 0)
        penalise(s, p, history, prompt_count, count);
    for (int32_t i = 0; i < p->bias_count; i++) {
        assert(p->bias[i].token >= 0 && p->bias[i].token < s->V);
        float *l = &s->logits[p->bias[i].token];
        *l = bounded((double)*l + p->bias[i].bias, *l);
    }
    int32_t best = -1;
    float most = -INFINITY;
    for (int32_t i = 0; i < s->V; i++) {
        float l = s->logits[i];
        if (l <= most) continue;                           /* false for NaN */
        if (!(l < INFINITY)) return ST_DEVICE;
        best = i, most = l;
    }
    if (best < 0) return ST_DEVICE;
    *greatest = best;
    return ST_OK;
}

/* ---- logprobs ------------------------------------------------------------------------------------- */

static double log_of_mass(const eng_sampler *s, float greatest) {
    double mass = 0;
    for (int32_t i = 0; i < s->V; i++) mass += exp((double)s->logits[i] - greatest);
    return log(mass) + greatest;
}

static void report(const eng_sampler *s, const eng_sampling *p, int32_t greatest,
                   eng_sampled *out) {
    if (p->logprobs < 0) return;
    double mass = log_of_mass(s, s->logits[greatest]);
    int n = 0;
    for (int32_t i = 0; i < s->V && p->logprobs > 0; i++) {
        if (n == p->logprobs && s->logits[i] <= s->logits[out->top_token[n - 1]]) continue;
        if (s->logits[i] == -INFINITY) continue;
        int at = n < p->logprobs ? n++ : n - 1;
        for (; at > 0 && s->logits[i] > s->logits[out->top_token[at - 1]]; at--)
            out->top_token[at] = out->top_token[at - 1];
        out->top_token[at] = i;
    }
    for (int i = 0; i < n; i++)
        out->top_logprob[i] = (float)(s->logits[out->top_token[i]] - mass);
    out->top_count = n;
    out->logprob = (float)(s->logits[out->token] - mass);
}

/* ---- candidates in falling order ------------------------------------------------------------------ */

static bool before(const eng_sampler *s, int32_t a, int32_t b) {
    return s->logits[a] > s->logits[b] || (s->logits[a] == s->logits[b] && a < b);
}

static void sink(eng_sampler *s, int32_t at, int32_t token) {
    for (;;) {
        int64_t below = 2 * (int64_t)at + 1;
        if (below + 1 < s->heap_count && before(s, s->heap[below + 1], s->heap[below])) below++;
        if (below >= s->heap_count || !before(s, s->heap[below], token)) break;
        s->heap[at] = s->heap[below];
        at = (int32_t)below;
    }
    s->heap[at] = token;
}

static void heap_up(eng_sampler *s, bool tail) {
    s->heap_count = 0;
    for (int32_t i = 0; i < s->V; i++)
        if (tail ? s->logits[i] < s->edge && s->logits[i] != -INFINITY : s->logits[i] >= s->edge)
            s->heap[s->heap_count++] = i;
    for (int32_t at = s->heap_count / 2 - 1; at >= 0; at--) sink(s, at, s->heap[at]);
    s->tail_heaped = tail;
}

/* Likely: a weight of at least exp(-10). */
static void begin_candidates(eng_sampler *s, const eng_sampling *p, int32_t greatest) {
    s->edge = (float)((double)s->logits[greatest] - 10.0 * p->temperature);
    s->popped_count = 0;
    heap_up(s, false);
}

static double weigh(const eng_sampler *s, const eng_sampling *p, int32_t token, int32_t greatest) {
    return exp(((double)s->logits[token] - s->logits[greatest]) / p->temperature);
}

/* Moves the most probable candidate left to popped; false: none is left. */
static bool pop(eng_sampler *s, const eng_sampling *p, int32_t greatest) {
    if (s->heap_count == 0 && !s->tail_heaped) heap_up(s, true);
    if (s->heap_count == 0) return false;
    int32_t token = s->heap[0];
    if (--s->heap_count > 0) sink(s, 0, s->heap[s->heap_count]);
    s->weight[s->popped_count] = weigh(s, p, token, greatest);
    s->popped[s->popped_count++] = token;
    return true;
}

static double mass_of_popped(const eng_sampler *s) {
    double mass = 0;
    for (int32_t i = 0; i < s->popped_count; i++) mass += s->weight[i];
    return mass;
}

static double mass_of_all(const eng_sampler *s, const eng_sampling *p, int32_t greatest) {
    double mass = 0;
    for (int32_t i = 0; i < s->V; i++) mass += weigh(s, p, i, greatest);
    return mass;
}

/* ---- cuts and draw -------------------------------------------------------------------------------- */

/* Leaves in popped what top-k, top-p and min-p keep. At least one, for the greatest weighs 1. */
static void cut(eng_sampler *s, const eng_sampling *p, int32_t greatest) {
    double mass = 0, head = 0;
    int32_t k = p->top_k > 0 && p->top_k < s->V ? p->top_k : 0;
    while (s->popped_count < k && pop(s, p, greatest)) {
    }
    if (p->top_p < 1) {
        mass = k ? mass_of_popped(s) : mass_of_all(s, p, greatest);
        int32_t n = 0;
        while (head < p->top_p * mass && (n < s->popped_count || (!k && pop(s, p, greatest))))
            head += s->weight[n++];
        s->popped_count = n;
    } else if (!k) {
        while (pop(s, p, greatest) && s->weight[s->popped_count - 1] >= p->min_p) {
        }
    }
    while (s->popped_count > 1 && s->weight[s->popped_count - 1] < p->min_p) s->popped_count--;
}

/* The first candidate at which the cumulative weight exceeds u of the mass. Without a cut, candidates
 * are popped as they are needed. */
static int32_t draw(eng_sampler *s, const eng_sampling *p, int32_t greatest, double u) {
    begin_candidates(s, p, greatest);
    bool cuts = p->top_k > 0 || p->top_p < 1 || p->min_p > 0;
    if (cuts) cut(s, p, greatest);
    double mass = cuts ? mass_of_popped(s) : mass_of_all(s, p, greatest), sum = 0;
    int32_t token = greatest;
    for (int32_t i = 0; i < s->popped_count || (!cuts && pop(s, p, greatest)); i++) {
        if (s->weight[i] == 0) break;                      /* rounding left sum below u * mass */
        token = s->popped[i];
        sum += s->weight[i];
        if (sum > u * mass) break;
    }
    return token;
}

status eng_sample(eng_sampler *s, const eng_sampling *p, const float *logits, const int32_t *history,
                  int32_t prompt_count, int32_t count, eng_sampled *out) {
    assert(prompt_count >= 0 && prompt_count <= count);
    int32_t token;
    TRY(adjust(s, p, logits, history, prompt_count, count, &token));
    eng_sampled result = {.token = token};
    if (p->temperature > 0)
        result.token = draw(s, p, token, eng_random_uniform(p->seed, (uint64_t)count));
    report(s, p, token, &result);
    *out = result;
    return ST_OK;
}

status eng_sample_given(eng_sampler *s, const float *logits, int32_t token, int32_t tops, eng_sampled *out) {
    assert(token >= 0 && token < s->V && tops >= 0 && tops <= ENG_LOGPROBS_MAX);
    eng_sampling p = eng_sampling_default;
    eng_sampled result = {.token = token};
    int32_t greatest;
    p.logprobs = tops;
    TRY(adjust(s, &p, logits, NULL, 0, 0, &greatest));
    report(s, &p, greatest, &result);
    *out = result;
    return ST_OK;
}
