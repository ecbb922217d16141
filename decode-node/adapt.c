/* adapt.c -- how many tokens to propose: from measured times and measured acceptance.
 *
 *   With odds p a step with k proposed tokens gives E(k) = 1 + p + ... + p^k tokens. With n sequences doing the same it
 *   has n (1 + k) rows and takes step(n (1 + k)), and a draft takes k * draft(n) before it. So
 *
 *       gain(k) = E(k) * step(n) / (step(n (1 + k)) + k * draft(n))
 *
 *   A draft that is `behind` reads that many tokens first: that has to come back before the answer ends.
 *
 * Nobody tells what a step will cost, so it is measured: one moving average for each number of rows, of steps without
 * prefill chunks. Numbers not seen yet are guessed from their neighbours, low rather than high, so that they are tried and
 * seen. Where the gain is too small, k is 0; then no acceptance may be measured either, so PROBE tokens are proposed now
 * and then, as often as the time that may take allows. */
#include "decode-node/adapt.h"
#include "base/base.h"

enum { PROBE = 2, ODDS_MEMORY = 16, HORIZON = 256 };
#define ROW_GUESS 0.05           /* a row more, where none was measured: so much of the nearest measured one */
#define FALL 0.25                /* what else runs on the machine only ever adds time: so a lower time counts more */
#define RISE 0.05
#define SURPRISE 3.0             /* and none counts as more than so many times what was expected */

/* ---- times ------------------------------------------------------------------------------------------ */

void decode_curve_add(decode_curve *c, int32_t rows, int64_t us) {
    int32_t at = min32(rows, DECODE_ROWS_MAX);
    double now = (double)us;
    double expected = decode_curve_at(c, at);
    if (at < 1 || us <= 0) return;
    if (expected > 0 && now > SURPRISE * expected) now = SURPRISE * expected;
    if (!c->seen[at]) c->us[at] = now;
    c->seen[at] = true;
    c->us[at] += (now < c->us[at] ? FALL : RISE) * (now - c->us[at]);
}

double decode_curve_at(const decode_curve *c, int32_t rows) {
    int32_t at = min32(rows, DECODE_ROWS_MAX), low = at, high = at;
    while (low > 0 && !c->seen[low]) low--;
    while (high <= DECODE_ROWS_MAX && !c->seen[high]) high++;
    if (low > 0 && high <= DECODE_ROWS_MAX)
        return low == high ? c->us[at] : c->us[low] + (c->us[high] - c->us[low]) * (at - low) / (high - low);
    if (low > 0) return c->us[low] * (1 + ROW_GUESS * (at - low));
    return high <= DECODE_ROWS_MAX ? c->us[high] / (1 + ROW_GUESS * (high - at)) : 0;
}

/* ---- odds ------------------------------------------------------------------------------------------- */

void decode_odds_begin(decode_odds *o, double expected) { *o = (decode_odds){.tried = 3, .right = 3 * expected}; }

/* The first that was not accepted was tried, too; those behind it were not. */
void decode_odds_add(decode_odds *o, int32_t proposed, int32_t accepted) {
    o->tried += accepted + (accepted < proposed);
    o->right += accepted;
    if (o->tried <= ODDS_MEMORY) return;
    o->right *= ODDS_MEMORY / o->tried;
    o->tried = ODDS_MEMORY;
}

double decode_odds_of(const decode_odds *o) { return o->tried > 0 ? o->right / o->tried : 0; }

/* ---- the decision ----------------------------------------------------------------------------------- */

static double expected_tokens(double odds, int32_t k) {
    double sum = 1, likely = 1;
    for (int32_t i = 0; i < k; i++) sum += likely *= odds;
    return sum;
}

static double step_us(const decode_outlook *o, int32_t k) {
    double draft = o->draft ? k * decode_curve_at(o->draft, o->decoding) : 0;
    return decode_curve_at(o->step, o->decoding * (1 + k)) + draft;
}

double decode_adapt_gain(const decode_outlook *o, int32_t k) {
    double plain = step_us(o, 0), with = step_us(o, k);
    return with > 0 ? expected_tokens(o->odds, k) * plain / with : 1;
}

static int32_t best_length(const decode_outlook *o, double *gain) {
    int32_t best = 0;
    *gain = 1;
    for (int32_t k = 1; k <= min32(o->most, DECODE_PROPOSED_MAX); k++) {
        if (o->decoding * (1 + k) > DECODE_ROWS_MAX) break;
        double now = decode_adapt_gain(o, k);
        if (now > *gain) *gain = now, best = k;
    }
    return best;
}

static double reading_us(const decode_outlook *o) {
    enum { CHUNK = DECODE_ROWS_MAX };
    return o->read ? decode_curve_at(o->read, CHUNK) * o->behind / CHUNK : 0;
}

int32_t decode_adapt_length(const decode_outlook *o) {
    double gain, plain = step_us(o, 0);
    int32_t k = best_length(o, &gain), ahead = min32(o->remaining, HORIZON);
    double saved = ahead * plain * (1 - 1 / gain);
    if (gain >= DECODE_GAIN_LEAST && saved >= reading_us(o)) return k;
    int32_t probe = min32(o->most, PROBE);
    double cost = step_us(o, probe) - plain + reading_us(o);
    return plain > 0 && cost <= DECODE_PROBE_SHARE * plain * o->plain ? probe : 0;
}
