/* load_shape.c -- how long a prompt or an answer is: a distribution by its name, one draw from one number. */
#include "bench/load.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Reads a whole number from 1 on at *at and moves behind it. */
static bool take_length(const char **at, int32_t *out) {
    char *end;
    if (**at < '0' || **at > '9') return false;
    long n = strtol(*at, &end, 10);
    if (n < 1 || n > BENCH_LOAD_LENGTH_MAX) return false;
    *out = (int32_t)n;
    *at = end;
    return true;
}

static bool take_char(const char **at, char c) { return **at == c && ++*at; }

static bool take_range(const char **at, bench_load_shape *s) {
    return take_length(at, &s->min) && take_char(at, '-') && take_length(at, &s->max) && s->min <= s->max;
}

static bool take_list(const char **at, bench_load_shape *s, int most) {
    do {
        if (s->list_count == most || !take_length(at, &s->list[s->list_count++])) return false;
    } while (take_char(at, ','));
    return true;
}

static bool take_lognormal(const char **at, bench_load_shape *s) {
    int32_t median;
    char *end;
    s->kind = SHAPE_LOGNORMAL;
    if (!take_length(at, &median) || !take_char(at, ',') || **at < '0' || **at > '9') return false;
    s->median = median;
    s->sigma = strtod(*at, &end);
    *at = end;
    return s->sigma <= 10 && take_char(at, ',') && take_range(at, s);
}

static const char *after(const char *text, const char *word) {
    size_t bytes = strlen(word);
    return strncmp(text, word, bytes) == 0 ? text + bytes : NULL;
}

status bench_load_shape_parse(const char *flag, const char *text, bench_load_shape *out, error *err) {
    bench_load_shape s = {.kind = SHAPE_LIST};
    const char *at;
    bool good = false;
    if ((at = after(text, "fixed:"))) good = take_list(&at, &s, 1);
    else if ((at = after(text, "list:"))) good = take_list(&at, &s, BENCH_LOAD_LIST_MAX);
    else if ((at = after(text, "uniform:"))) s.kind = SHAPE_UNIFORM, good = take_range(&at, &s);
    else if ((at = after(text, "lognormal:"))) good = take_lognormal(&at, &s);
    if (!good || *at)
        return error_set(err, ST_BAD_INPUT, "%s '%.80s': expected fixed:N, uniform:A-B, lognormal:MEDIAN,SIGMA,A-B or "
                         "list:N,N,... with lengths from 1 to %d", flag, text, BENCH_LOAD_LENGTH_MAX);
    *out = s;
    return ST_OK;
}

/* The inverse of the normal distribution's cumulative function, by bisection of erfc: 60 halvings are exact enough,
 * and nobody draws often enough to wait for them. */
static double normal_at(double uniform) {
    double low = -9, high = 9;
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if (erfc(-middle / sqrt(2)) / 2 < uniform) low = middle;
        else high = middle;
    }
    return low;
}

int32_t bench_load_shape_draw(const bench_load_shape *s, double uniform) {
    if (s->kind == SHAPE_LIST) return s->list[(int)(uniform * s->list_count)];
    if (s->kind == SHAPE_UNIFORM) return s->min + (int32_t)(uniform * ((double)s->max - s->min + 1));
    double length = round(s->median * exp(s->sigma * normal_at(uniform)));
    return length < s->min ? s->min : length > s->max ? s->max : (int32_t)length;
}
