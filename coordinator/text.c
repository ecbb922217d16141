/* text.c -- tokens of one answer to its text, which ends before the first stop string.
 *
 *   data:  [ given to the client, dropped ] [0 .. ready) [ready .. count)
 *                                            may go       may begin a stop string: held back
 *
 * Text arrives as whole characters (eng_detok), and a stop string begins with one, so whatever is
 * cut off at a stop string or held back for one leaves valid UTF-8 behind. */
#include "coordinator/service.h"
#include <string.h>

static status reserve(coord_text *t, size_t bytes) {
    if (t->count + bytes <= t->max) return ST_OK;
    size_t max = t->max ? t->max : 256;
    while (max < t->count + bytes) max *= 2;
    char *data = mem_realloc(t->data, max);
    if (!data) return ST_NO_MEMORY;
    t->data = data;
    t->max = max;
    return ST_OK;
}

/* How data[at..count) agrees with the stop strings: whole, so far, or not. */
typedef enum match { MATCH_NONE, MATCH_SO_FAR, MATCH_WHOLE } match;

static match match_at(const coord_text *t, size_t at) {
    match best = MATCH_NONE;
    for (int32_t i = 0; i < t->stops_count; i++) {
        size_t stop = strlen(t->stops[i]), left = t->count - at;
        if (memcmp(t->data + at, t->stops[i], stop < left ? stop : left) != 0) continue;
        if (stop <= left) return MATCH_WHOLE;
        best = MATCH_SO_FAR;
    }
    return best;
}

static void look_for_stops(coord_text *t) {
    for (; t->ready < t->count; t->ready++) {
        match m = match_at(t, t->ready);
        if (m == MATCH_SO_FAR) {
            /* A stop string that lies whole in what is held back comes first. */
            for (size_t at = t->ready + 1; at < t->count; at++)
                if (match_at(t, at) == MATCH_WHOLE) {
                    t->ready = at;
                    m = MATCH_WHOLE;
                    break;
                }
        }
        if (m == MATCH_WHOLE) {
            t->count = t->ready;
            t->stopped = true;
        }
        if (m != MATCH_NONE) return;
    }
}

status coord_text_push(coord_text *t, int32_t token, bool silent) {
    if (t->stopped || silent) return ST_OK;
    TRY(reserve(t, eng_detok_max(t->vocab)));
    t->count += eng_detok_push(&t->detok, t->vocab, token, false, t->data + t->count);
    look_for_stops(t);
    return ST_OK;
}

status coord_text_replay(coord_text *t, const int32_t *tokens, int32_t count, bool ends) {
    for (int32_t i = 0; i < count; i++) {
        if (t->stopped) return ST_BAD_INPUT;
        TRY(coord_text_push(t, tokens[i], ends && i == count - 1));
        if (t->ready) coord_text_drop(t, t->ready);
    }
    return ST_OK;
}

status coord_text_end(coord_text *t) {
    if (t->stopped) return ST_OK;
    TRY(reserve(t, 16));
    t->count += eng_detok_end(&t->detok, t->data + t->count);
    look_for_stops(t);
    t->ready = t->count;
    return ST_OK;
}

void coord_text_drop(coord_text *t, size_t bytes) {
    memmove(t->data, t->data + bytes, t->count - bytes);
    t->count -= bytes;
    t->ready -= bytes;
}

void coord_text_free(coord_text *t) {
    mem_free(t->data);
    t->data = NULL;
    t->ready = t->count = t->max = 0;
}
