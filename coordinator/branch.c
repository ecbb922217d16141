/* branch.c -- the birth of the n answers of a call: what each is called, its seed, and what the client has of it already.
 *
 * A stream that broke, with its coordinator or on the way, goes on here: the client names the tokens that came (Seen in
 * baton.proto) and this coordinator needs no more. The request is submitted with prompt + those tokens, as after the death
 * of a node (request.c, rule 3). The text goes on too, because it is a function of the tokens: they are replayed through the
 * text's state, half a character and the beginning of a stop string included, and what was ready is known to the client.
 *
 *   seen: nothing               submitted like a new one
 *   seen: a part                submitted with its tokens
 *   seen: all but the Finish    complete by its tokens: text that was held back and the Finish are told, nothing is submitted
 *   seen: finished              nothing is told */
#include "coordinator/service.h"
#include <inttypes.h>

/* Branch 0 keeps the seed, so that n = 1 is the n = 2 answer's first. */
static uint64_t branch_seed(uint64_t seed, int32_t index) {
    return index == 0 ? seed : mix64(seed + (uint64_t)index * 0x9E3779B97F4A7C15ull); /* splitmix64 */
}

static void name_branch(coord_branch *b, const char *id) {
    if (b->index == 0)
        snprintf(b->id, sizeof b->id, "%s", id);
    else
        snprintf(b->id, sizeof b->id, "%.*s/%d", COORD_ID_BYTES_MAX, id, b->index + 1);
}

/* Whether the answer is complete with the tokens that were seen, as a decode node would judge it. */
static int32_t reason_of(const coord_branch *b) {
    const coord_client *c = b->client;
    if (b->answer.text.stopped || coord_check_ends(&c->service->model, &c->job, b->tokens[b->count - 1]))
        return BATON__V1__FINISH_REASON__FINISH_REASON_STOP;
    return b->tokens_count >= c->job.max_tokens ? BATON__V1__FINISH_REASON__FINISH_REASON_LENGTH : 0;
}

static status go_on(coord_branch *b, const coord_seen *seen, error *err) {
    const coord_client *c = b->client;
    if (seen->count <= c->job.count) return ST_OK;
    b->tokens = seen->tokens;
    b->count = seen->count;
    b->tokens_count = seen->count - c->job.count;
    b->finished = b->told = seen->finished;
    log_write(LOG_INFO, b->id, "request.resumed", "seen=%d%s", b->tokens_count, b->finished ? " finished" : "");
    if (b->finished) return ST_OK;
    bool ends = coord_check_ends(&c->service->model, &c->job, b->tokens[b->count - 1]);
    status st = coord_text_replay(&b->answer.text, b->tokens + c->job.count, b->tokens_count, ends);
    if (st == ST_OK && (b->reason = reason_of(b))) {
        b->finished = true;
        st = coord_text_end(&b->answer.text);
    }
    if (st == ST_BAD_INPUT)
        return error_set(err, st, "seen[index %d].tokens: a stop string is complete before the last of them", b->index);
    return st == ST_OK ? st : error_set(err, st, "no memory for what was seen");
}

static status make(coord_client *c, coord_branch *b, const char *id, error *err) {
    const coord_job *job = &c->job;
    b->client = c;
    b->seed = branch_seed(job->sampling.seed, b->index);
    b->tokens = job->tokens;
    b->count = job->count;
    b->decode_node = b->prefill_node = b->prefer_node = b->held_node = -1;
    b->costs = job->explain ? arena_alloc(c->memory, COORD_COSTS_MAX * sizeof *b->costs) : NULL;
    if (job->explain && !b->costs) return error_set(err, ST_NO_MEMORY, "no memory for %d answers", job->n);
    b->answer.text = (coord_text){.vocab = c->service->model.vocab, .stops = job->stops, .stops_count = job->stops_count};
    name_branch(b, id);
    return job->seen ? go_on(b, &job->seen[b->index], err) : ST_OK;
}

status coord_branch_make(coord_client *c, error *err) {
    coord_job *job = &c->job;
    if (!job->has_seed) job->sampling.seed = random_number();
    char id[COORD_ID_BYTES_MAX + 1];
    snprintf(id, sizeof id, "%s", job->id);
    if (!*id) snprintf(id, sizeof id, "r-%016" PRIx64, random_number());
    c->branches = arena_alloc(c->memory, (size_t)job->n * sizeof *c->branches);
    if (!c->branches) return error_set(err, ST_NO_MEMORY, "no memory for %d answers", job->n);
    for (int32_t i = 0; i < job->n; i++) {
        c->branches[i].index = i;
        TRY(make(c, &c->branches[i], id, err));
        c->live += !c->branches[i].finished;
    }
    return ST_OK;
}

void coord_branch_free(coord_client *c) {
    for (int32_t i = 0; i < c->job.n; i++) coord_answer_free(&c->branches[i].answer);
}
