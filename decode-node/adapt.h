/* adapt.h -- how many tokens to propose. Pure: counters and measured times in, a number out. */
#ifndef BATON_DECODE_ADAPT_H
#define BATON_DECODE_ADAPT_H

#include <stdbool.h>
#include <stdint.h>

enum { DECODE_ROWS_MAX = 64, DECODE_PROPOSED_MAX = 15 };

/* Microseconds by a number of rows, 1 .. DECODE_ROWS_MAX; larger numbers count as the largest. Starts zeroed. */
typedef struct decode_curve {
    double us[DECODE_ROWS_MAX + 1];          /* moving averages, of the lower half rather */
    bool seen[DECODE_ROWS_MAX + 1];
} decode_curve;

void decode_curve_add(decode_curve *c, int32_t rows, int64_t us);
/* What so many rows take: measured, or between two that were, or guessed low: who proposes finds out. 0: nothing was
 * ever measured. */
double decode_curve_at(const decode_curve *c, int32_t rows);

/* How often a proposed token is right, those before it being right; newer ones count more. */
typedef struct decode_odds { double tried, right; } decode_odds;

void decode_odds_begin(decode_odds *o, double expected);
void decode_odds_add(decode_odds *o, int32_t proposed, int32_t accepted);
double decode_odds_of(const decode_odds *o);

typedef struct decode_outlook {
    const decode_curve *step;    /* of the target, by rows */
    const decode_curve *draft;   /* of the draft, by sequences; NULL: proposing takes no time */
    const decode_curve *read;    /* of the draft, by rows of one chunk; NULL likewise */
    double odds;
    int32_t decoding;            /* sequences in the step: all are thought to do the same */
    int32_t most;                /* proposed tokens there is room for */
    int32_t behind;              /* tokens the draft has to read first */
    int32_t remaining;           /* tokens the answer may still have */
    int32_t plain;               /* steps since one with proposed tokens */
} decode_outlook;

/* Tokens a second with k proposed ones to those without. */
double decode_adapt_gain(const decode_outlook *o, int32_t k);
/* 0 .. most. It is not 0 where a gain of at least DECODE_GAIN_LEAST is expected, and now and then to see whether the
 * odds have changed: so rarely that it takes at most a share of DECODE_PROBE_SHARE of the time. */
int32_t decode_adapt_length(const decode_outlook *o);

#define DECODE_GAIN_LEAST 1.05
#define DECODE_PROBE_SHARE 0.01

#endif
