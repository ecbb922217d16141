/* resume.c -- a Generate call that outlives its coordinator: what came is kept, and when the stream breaks the next
 * coordinator is asked for the rest.
 *
 *   ask --> chunks come [take] --> the end
 *    ^          |
 *    +----------+ the stream broke [goes_on]: the request again, with its id, its seed, and what was seen of each answer
 *
 * No coordinator keeps anything for that (Seen in baton.proto). The caller is given each token once: of the prompt's log
 * probabilities, which are told anew while no answer has begun, those that it had are left out here.
 *
 * It ends when none of them could be reached for GIVE_UP_MS, at once if no answer has begun: then nothing is lost that the
 * caller could not ask for again. Once it has begun, one that is full only delays it, as its queue would. */
#include "cli/cli.h"
#include <string.h>
#include <time.h>

enum { ANSWERS_MAX = 16, ID_BYTES_MAX = 64, GIVE_UP_MS = 10000, PAUSE_MS = 250 };

typedef struct resume {
    cli_client *client;
    Baton__V1__GenerateRequest request;  /* the caller's, with what the stream told */
    Baton__V1__Sampling sampling;
    Baton__V1__Seen seen[ANSWERS_MAX], *list[ANSWERS_MAX];
    size_t room[ANSWERS_MAX];            /* of seen[].tokens */
    char id[ID_BYTES_MAX + 1];
    size_t prompt_had, prompt_at;        /* of the prompt's tokens: told to the caller, told by this stream */
    bool begun;                          /* a chunk came */
    bool news;                           /* tokens or ends, in this stream */
    bool failed;                         /* no memory to keep it */
    int64_t alive_ms;                    /* when a coordinator was there */
    void (*on_message)(const ProtobufCMessage *m, void *user);
    void *user;
} resume;

/* ---- what came -------------------------------------------------------------------------------- */

static bool keep(resume *r, int k, const Baton__V1__GenerateChunk *c) {
    Baton__V1__Seen *s = &r->seen[k];
    size_t count = s->n_tokens + c->n_tokens;
    while (r->room[k] < count) {
        size_t room = r->room[k] ? 2 * r->room[k] : 64;
        int32_t *more = mem_realloc(s->tokens, room * sizeof *more);
        if (!more) return false;
        s->tokens = more;
        r->room[k] = room;
    }
    for (size_t i = 0; i < c->n_tokens; i++) s->tokens[s->n_tokens++] = c->tokens[i]->token;
    s->finished = s->finished || c->finish;
    return true;
}

/* The first chunk of answer 0 tells what the server has chosen: the same again is the same answer. */
static void keep_names(resume *r, const Baton__V1__GenerateChunk *c) {
    if (c->index != 0 || !*c->request_id) return;
    snprintf(r->id, sizeof r->id, "%s", c->request_id);
    r->request.request_id = r->id;
    r->sampling.seed_set_case = BATON__V1__SAMPLING__SEED_SET_SEED;
    r->sampling.seed = c->seed;
}

static void take(const ProtobufCMessage *m, void *user) {
    resume *r = user;
    Baton__V1__GenerateChunk c = *(const Baton__V1__GenerateChunk *)m;
    if (c.index < 0 || c.index >= ANSWERS_MAX) return;
    r->begun = true;
    r->news = r->news || c.n_tokens > 0 || c.finish;
    keep_names(r, &c);
    r->failed = r->failed || !keep(r, c.index, &c);
    size_t known = r->prompt_had - r->prompt_at < c.n_prompt ? r->prompt_had - r->prompt_at : c.n_prompt;
    r->prompt_at += c.n_prompt;
    c.n_prompt -= known;
    c.prompt += known;
    r->prompt_had += c.n_prompt;
    r->on_message(&c.base, r->user);
}

/* ---- the request again ------------------------------------------------------------------------ */

static void name_seen(resume *r) {
    r->request.seen = r->list;
    r->request.n_seen = 0;
    for (int k = 0; k < ANSWERS_MAX; k++)
        if (r->seen[k].n_tokens > 0) r->list[r->request.n_seen++] = &r->seen[k];
    r->prompt_at = 0;
    r->news = false;
}

static bool goes_on(resume *r, status st) {
    int64_t now_ms = clock_now_ms();
    if (r->news || st == ST_AGAIN) r->alive_ms = now_ms;
    if (r->failed || !r->begun || cli_client_interrupted(r->client)) return false;
    return st == ST_AGAIN || (st == ST_PEER_LOST && now_ms - r->alive_ms < GIVE_UP_MS);
}

static void wait_ms(int64_t ms) { nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL); }

/* Before the next round. */
static void prepare(resume *r, status st, const char *why) {
    if (st == ST_AGAIN) cli_client_next(r->client);
    if (r->news) cli_complain(CLI_OK, "the stream broke: %s; %s is asked for the rest", why, cli_client_server(r->client));
    else wait_ms(PAUSE_MS);
}

status cli_resume_call(cli_client *c, const Baton__V1__GenerateRequest *request, int64_t timeout_ms,
                       void (*on_message)(const ProtobufCMessage *m, void *user), void *user, error *err,
                       int64_t *retry_after_ms) {
    resume r = {.client = c, .request = *request, .sampling = *request->sampling, .on_message = on_message, .user = user};
    int64_t end_ms = clock_now_ms() + timeout_ms;
    status st;
    r.request.sampling = &r.sampling;
    for (int k = 0; k < ANSWERS_MAX; k++) baton__v1__seen__init(&r.seen[k]), r.seen[k].index = k;
    for (;;) {
        int64_t left_ms = end_ms - clock_now_ms();
        if (timeout_ms > 0) timeout_ms = left_ms > 0 ? left_ms : 1;
        name_seen(&r);
        st = cli_client_call(c, &cli_generate_method, &r.request.base, timeout_ms, take, &r, err, retry_after_ms);
        if (st == ST_OK || !goes_on(&r, st)) break;
        prepare(&r, st, err->text);
    }
    for (int k = 0; k < ANSWERS_MAX; k++) mem_free(r.seen[k].tokens);
    return st;
}
