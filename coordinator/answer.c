/* answer.c -- what one branch has to tell its client and has not told yet: tokens, their log
 * probabilities, text; the prompt's, too, where they are wanted. Streaming empties it after every chunk, a
 * slow client or GenerateOnce lets it grow; it never holds more than one prompt and one answer. */
#include "coordinator/service.h"
#include <string.h>

/* Room for extra more elements of size bytes each. */
static status grow(void **at, int32_t count, int32_t extra, int32_t *max, size_t size) {
    if (count + extra <= *max) return ST_OK;
    int32_t wanted = *max ? *max : 16;
    while (wanted < count + extra) wanted *= 2;
    void *p = mem_realloc(*at, (size_t)wanted * size);
    if (!p) return ST_NO_MEMORY;
    *at = p;
    *max = wanted;
    return ST_OK;
}

static status push(coord_tokens *t, int32_t token, const Baton__Node__V1__Token *info) {
    int32_t tops = info && info->n_top < 1000 ? (int32_t)info->n_top : 0;
    TRY(grow((void **)&t->told, t->count, 1, &t->max, sizeof *t->told));
    TRY(grow((void **)&t->tops, t->tops_count, tops, &t->tops_max, sizeof *t->tops));
    coord_told *told = &t->told[t->count++];
    *told = (coord_told){.token = token, .top_first = t->tops_count, .top_count = tops};
    if (!info) return ST_OK;
    told->has_logprob = info->logprob_set_case == BATON__NODE__V1__TOKEN__LOGPROB_SET_LOGPROB;
    told->logprob = told->has_logprob ? info->logprob : 0;
    for (int32_t i = 0; i < tops; i++)
        t->tops[t->tops_count++] = (coord_top){info->top[i]->token, info->top[i]->logprob};
    return ST_OK;
}

status coord_answer_push(coord_answer *w, int32_t token, const Baton__Node__V1__Token *info,
                         bool silent) {
    TRY(push(&w->tokens, token, info));
    return coord_text_push(&w->text, token, silent);
}

status coord_answer_push_prompt(coord_answer *w, int32_t token, const Baton__Node__V1__Token *info) {
    return push(&w->prompt, token, info);
}

bool coord_answer_empty(const coord_answer *w) {
    return w->tokens.count == 0 && w->prompt.count == 0 && w->text.ready == 0;
}

/* A token by itself, whatever it is: control tokens are spelled, broken characters are U+FFFD. */
static char *spell(const coord_answer *w, int32_t token, arena *a) {
    eng_detok detok = {0};
    char *text = arena_alloc(a, eng_detok_max(w->text.vocab) + 17);
    if (!text) return NULL;
    size_t bytes = eng_detok_push(&detok, w->text.vocab, token, true, text);
    bytes += eng_detok_end(&detok, text + bytes);
    text[bytes] = 0;
    return text;
}

static bool fill_tops(const coord_answer *w, const coord_top *tops, const coord_told *told,
                      Baton__V1__TokenInfo *info, arena *a) {
    info->top = arena_alloc(a, (size_t)told->top_count * sizeof *info->top);
    if (!info->top) return false;
    info->n_top = (size_t)told->top_count;
    for (int32_t i = 0; i < told->top_count; i++) {
        const coord_top *top = &tops[told->top_first + i];
        Baton__V1__TokenLogprob *out = arena_alloc(a, sizeof *out);
        if (!out) return false;
        baton__v1__token_logprob__init(out);
        out->token = top->token;
        out->logprob = top->logprob;
        out->text = spell(w, top->token, a);
        if (!out->text) return false;
        info->top[i] = out;
    }
    return true;
}

Baton__V1__TokenInfo **coord_answer_infos(const coord_answer *w, const coord_tokens *t, arena *a) {
    Baton__V1__TokenInfo **infos = arena_alloc(a, ((size_t)t->count + 1) * sizeof *infos);
    for (int32_t i = 0; infos && i < t->count; i++) {
        const coord_told *told = &t->told[i];
        Baton__V1__TokenInfo *info = arena_alloc(a, sizeof *info);
        if (!info) return NULL;
        baton__v1__token_info__init(info);
        info->token = told->token;
        if (told->has_logprob) {
            info->logprob_set_case = BATON__V1__TOKEN_INFO__LOGPROB_SET_LOGPROB;
            info->logprob = told->logprob;
        }
        if (told->top_count && !fill_tops(w, t->tops, told, info, a)) return NULL;
        if (t == &w->prompt && !(info->text = spell(w, told->token, a))) return NULL;
        infos[i] = info;
    }
    return infos;
}

char *coord_answer_text(const coord_answer *w, arena *a) {
    return arena_strndup(a, w->text.data ? w->text.data : "", w->text.ready);
}

void coord_answer_sent(coord_answer *w) {
    w->tokens.count = w->tokens.tops_count = 0;
    w->prompt.count = w->prompt.tops_count = 0;
    if (w->text.ready) coord_text_drop(&w->text, w->text.ready);
}

static void free_tokens(coord_tokens *t) {
    mem_free(t->told);
    mem_free(t->tops);
    *t = (coord_tokens){0};
}

void coord_answer_free(coord_answer *w) {
    coord_text_free(&w->text);
    free_tokens(&w->tokens);
    free_tokens(&w->prompt);
}
