/* core.c -- messages in, steps, events out: the part that a prefill and a decode node share.
 *
 * Pure but for its io table: no clock, no thread, no lock. The engine thread drives it in production
 * (process.c), tests and the simulator by hand. What a sequence does next is its role's to say
 * (prefill-node/prefill.c, decode-node/decode.c); what everyone shares is here: the list in order of
 * age, who may have pages, who gets rows.
 *
 *   submit ---> role.admit ----> runnable ----> batch ----> io.step ----> role.computed ---> ... ---> end
 *                   |               ^                                                        |
 *                   +--> waiting ---+ [resume_waiting] oldest first, when pages came back <--+ preempted
 *
 * Rules
 *   1. A sequence is in the list from node_core_submit() to node_seq_end(). The list is kept in the order of the
 *      schedule (schedule.h): who stands in front has pages and rows first, and may take them from who stands behind.
 *   2. Full is an answer: more than sequences_max at once are refused with ST_AGAIN, and so is a decode
 *      request without pages. A prefill request waits for pages in the list, and nobody behind is given
 *      pages while anyone waits.
 *   3. Every handle submitted gets exactly one NODE_END, its last event, and its pages are back by then.
 *   4. node_core_step() allocates nothing: all of a sequence's memory comes with its submit.
 *   5. Proposed tokens stand behind s->tokens[0, count) and their rows behind s->ready: they are nobody's tokens until
 *      the role has drawn the same, and what is not is written over by the rows of the next step. */
#include "node/core.h"
#include <assert.h>
#include <stdarg.h>

METRIC(metric_steps, "baton_node_steps_total", NULL, METRIC_COUNTER, "forward passes");
#define COMPUTED "tokens computed in forward passes, each time that they are: of prompts (prefill), and the last and the proposed " \
                 "ones of answers (decode)"
METRIC(metric_prefill, "baton_node_tokens_total", "kind=\"prefill\"", METRIC_COUNTER, COMPUTED);
METRIC(metric_decode, "baton_node_tokens_total", "kind=\"decode\"", METRIC_COUNTER, COMPUTED);
static const double step_rows[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
METRIC_BUCKETS(metric_rows, "baton_node_step_tokens", NULL, step_rows, "tokens computed in one forward pass");
METRIC(metric_landed, "baton_node_landed_tokens_total", NULL, METRIC_COUNTER, "prompt tokens whose KV came from a prefill node");
METRIC(metric_promoted, "baton_node_promotions_total", NULL, METRIC_COUNTER,
       "--schedule mlfq: requests that had waited for too long and went to the highest level");

#define DECODES(kind_, proposed_, name_, help_) {.name = name_, .labels = "proposed=\"" proposed_ "\"", .help = help_, .kind = kind_}
#define DECODE_TIME "time of forward passes that computed no prompt tokens, by whether speculation proposed tokens in them"
#define DECODE_SAID "answer tokens that came of forward passes without prompt tokens; divided by baton_node_decode_seconds_total: " \
                    "tokens a second, with and without speculation"
static metric metric_decode_time[] = {DECODES(METRIC_SECONDS, "no", "baton_node_decode_seconds_total", DECODE_TIME),
                                      DECODES(METRIC_SECONDS, "yes", "baton_node_decode_seconds_total", DECODE_TIME)};
static metric metric_decode_said[] = {DECODES(METRIC_COUNTER, "no", "baton_node_decoded_tokens_total", DECODE_SAID),
                                      DECODES(METRIC_COUNTER, "yes", "baton_node_decoded_tokens_total", DECODE_SAID)};

#define X(st_, text_, code_)                                                                             \
    {.name = "baton_node_requests_total", .labels = "status=\"" #st_ "\"", .kind = METRIC_COUNTER,       \
     .help = "requests ended, by status"},
static metric ended[ST_COUNT] = {STATUS_LIST(X)};
#undef X

/* ---- create, destroy ------------------------------------------------------------------------------ */

static void show_metrics(void) {
    metric *const all[] = {&metric_steps, &metric_prefill, &metric_decode, &metric_rows, &metric_landed, &metric_promoted};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) metric_show(all[i]);
    for (int i = 0; i < 2; i++) metric_show(&metric_decode_time[i]), metric_show(&metric_decode_said[i]);
    for (int i = 0; i < ST_COUNT; i++) metric_show(&ended[i]);
    node_seq_show();
}

node_core *node_core_create(const node_limits *limits, const node_io *io) {
    assert(limits->pages > 0 && limits->page_tokens > 0 && limits->sequences_max > 0 && limits->context > 0);
    assert(limits->step_tokens_max > 0 && limits->chunk_tokens > 0 && limits->logits_max > 0);
    node_core *c = mem_zalloc(1, sizeof *c);
    if (!c) return NULL;
    c->limits = *limits;
    c->io = *io;
    if (!c->limits.schedule) c->limits.schedule = node_schedule_find("decode-first");
    if (!io->swap) c->limits.swap_pages = 0;
    /* What the pool can not hold is beyond the context: otherwise a sequence alone could starve itself. */
    int64_t held = (int64_t)limits->pages * limits->page_tokens;
    if (held < limits->context) c->limits.context = (int32_t)held;
    size_t n = (size_t)limits->sequences_max;
    c->pool = eng_pool_create(limits->pages, limits->page_tokens);
    c->sampler = eng_sampler_create(limits->V);
    c->batch = mem_zalloc(n, sizeof(node_seq *));
    c->wants = mem_zalloc(n, sizeof *c->wants);
    c->shares = mem_zalloc(n, sizeof *c->shares);
    c->rows = mem_zalloc(n, sizeof *c->rows);
    c->slots = mem_zalloc((size_t)c->limits.swap_pages + 1, sizeof *c->slots);
    c->guessing = mem_zalloc(n, sizeof(node_seq *));
    c->guesses = mem_zalloc(n, sizeof *c->guesses);
    c->draws = mem_zalloc((size_t)limits->logits_max, sizeof *c->draws);
    if (!c->pool || !c->sampler || !c->batch || !c->wants || !c->shares || !c->rows || !c->slots || !c->guessing || !c->guesses ||
        !c->draws) {
        node_core_destroy(c);
        return NULL;
    }
    while (c->slots_free < c->limits.swap_pages) c->slots[c->slots_free] = c->slots_free, c->slots_free++;
    show_metrics();
    return c;
}

void node_core_destroy(node_core *c) {
    if (!c) return;
    assert(c->count == 0);
    eng_pool_destroy(c->pool);
    eng_sampler_destroy(c->sampler);
    mem_free(c->batch);
    mem_free(c->wants);
    mem_free(c->shares);
    mem_free(c->rows);
    mem_free(c->slots);
    mem_free(c->guessing);
    mem_free(c->guesses);
    mem_free(c->draws);
    mem_free(c);
}

const node_limits *node_core_limits(const node_core *c) { return &c->limits; }
const node_io *node_core_io(const node_core *c) { return &c->io; }
node_seq *node_core_first(const node_core *c) { return c->first; }
void node_core_emit(node_core *c, const node_event *e) {
    c->said += e->kind == NODE_TOKEN;
    c->io.emit(c->io.ctx, e);
}

const char *node_core_text(node_core *c, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(c->text, sizeof c->text, fmt, args);
    va_end(args);
    return c->text;
}

bool node_core_waits(const node_seq *s) {
    for (const node_seq *v = s->prev; v; v = v->prev)
        if (v->waiting && !v->paused) return true;
    return false;
}

/* ---- order ---------------------------------------------------------------------------------------- */

/* Rows of its prompt that will be computed here. */
static int32_t rows_to_come(const node_core *c, const node_seq *s) {
    const node_request *r = s->request;
    int32_t rows = r->count;
    if (c->limits.prefix_cache) rows -= eng_pool_peek(c->pool, r->salt, r->tokens, node_seq_cacheable(s));
    bool remote = s->role->landed && (r->apart || rows > r->local_tokens_max);
    return remote ? 1 : rows;
}

/* As of now. */
static void set_level(node_core *c, node_seq *s, int64_t now_us) {
    if (!s->joined) {
        int32_t rows = rows_to_come(c, s);
        s->service_us = (int64_t)node_cost_prompt_us(&c->cost, s->count - rows, rows);
        s->joined = true;
    }
    if (s->place.level > 0 && now_us - s->served_us >= NODE_AGE_US) {
        s->service_us = 0;
        s->promoted = true;
        metric_add(&metric_promoted, 1);
    }
    s->place.level = node_schedule_level(s->service_us, s->request->priority, s->promoted);
}

static void move_behind(node_core *c, node_seq *s, node_seq *p) {
    s->prev->next = s->next;                               /* s is not the first: it moves to the front */
    *(s->next ? &s->next->prev : &c->last) = s->prev;
    s->prev = p;
    s->next = p ? p->next : c->first;
    s->next->prev = s;
    *(p ? &p->next : &c->first) = s;
}

/* By insertion: most often nobody moves. */
static void put_in_order(node_core *c, int64_t now_us) {
    for (node_seq *s = c->first, *next; s; s = next) {
        node_seq *p = s->prev;
        next = s->next;
        if (s->paused || !(s->runnable || s->waiting)) s->served_us = now_us;
        if (c->limits.schedule->levels) set_level(c, s, now_us);
        while (p && node_schedule_before(&s->place, &p->place)) p = p->prev;
        if (p == s->prev) continue;
        move_behind(c, s, p);
        c->given_seen = -1;                                /* it may be its turn to have pages */
    }
}

/* ---- messages ------------------------------------------------------------------------------------- */

void node_core_count_end(status st) { metric_add(&ended[st], 1); }

static void refuse(node_core *c, node_request *r, status st, const char *text) {
    node_event e = {.kind = NODE_END, .handle = r->handle, .end = {st, text}};
    node_core_count_end(st);
    node_core_emit(c, &e);
    node_request_free(r);
}

void node_core_submit(node_core *c, const node_role *role, node_request *r, int64_t now_us) {
    int32_t max = c->limits.context;
    if (c->count == c->limits.sequences_max) {
        refuse(c, r, ST_AGAIN, node_core_text(c, "the node serves %d requests at once", c->count));
    } else if (r->count < 1 || r->prompt_count < 1 || r->prompt_count > r->count) {
        refuse(c, r, ST_BAD_INPUT,
               node_core_text(c, "tokens: %d with a prompt of %d, expected at least one of both", r->count,
                              r->prompt_count));
    } else if (r->count > max || r->prompt_count >= max) {
        refuse(c, r, ST_BAD_INPUT,
               node_core_text(c, "tokens: %d, expected at most %d (%d pages of %d tokens)", r->count, max - 1,
                              c->limits.pages, c->limits.page_tokens));
    } else {
        node_seq *s = node_seq_create(c, role, r, now_us);
        if (s) {
            put_in_order(c, now_us);
            role->admit(c, s, now_us);
        } else
            refuse(c, r, ST_NO_MEMORY, "no memory for the request");
    }
}

static node_seq *find(const node_core *c, uint64_t handle) {
    node_seq *s = c->first;
    while (s && s->request->handle != handle) s = s->next;
    return s;
}

void node_core_cancel(node_core *c, uint64_t handle) {
    node_seq *s = find(c, handle);
    if (s) s->role->stop(c, s, ST_CANCELED, NULL);
}

void node_core_cancel_all(node_core *c) {
    for (node_seq *s = c->first, *next; s; s = next) {
        next = s->next;
        s->role->stop(c, s, ST_CANCELED, "the node is shutting down");
    }
}

void node_core_pause(node_core *c, uint64_t handle, bool paused) {
    node_seq *s = find(c, handle);
    if (!s) return;
    s->paused = paused;
    c->given_seen = -1;                                    /* it may be this one's turn to resume */
}

void node_core_landing(node_core *c, uint64_t handle) {
    node_seq *s = find(c, handle);
    if (s && s->role->landing) s->role->landing(c, s);
}

void node_core_landed(node_core *c, uint64_t handle, status st, int32_t tokens, int64_t now_us) {
    node_seq *s = find(c, handle);
    if (st == ST_OK) metric_add(&metric_landed, tokens);
    if (s && s->role->landed) s->role->landed(c, s, st, tokens, now_us);
}

void node_core_sent(node_core *c, uint64_t handle, status st, uint64_t bytes, int64_t wire_us,
                    int64_t now_us) {
    node_seq *s = find(c, handle);
    if (s && s->role->sent) s->role->sent(c, s, st, bytes, wire_us, now_us);
}

/* ---- step ----------------------------------------------------------------------------------------- */

static void resume_waiting(node_core *c, int64_t now_us) {
    if (c->given == c->given_seen) return;
    c->given_seen = c->given;
    for (node_seq *s = c->first, *next; s; s = next) {
        next = s->next;                                    /* resume may end s */
        if (s->waiting && !s->paused && !s->role->resume(c, s, now_us)) return;
    }
}

/* Who wants rows, in order, so that who stands in front has its pages before who stands behind is asked. */
static int32_t gather(node_core *c) {
    int32_t n = 0;
    for (node_seq *s = c->first; s; s = s->next) {
        if (!s->runnable || s->paused || (s->role->prepare && !s->role->prepare(c, s))) continue;
        assert(s->ready < s->target && node_seq_pages(c, s->target) <= s->blocks_count);
        int32_t rows = s->target - s->ready;
        c->wants[n] = (node_want){.rows = rows, .logits = node_seq_tells(s) ? rows : 1, .decode = rows == 1,
                                  .last_step = s->last_step, .level = s->place.level};
        c->batch[n++] = s;
    }
    return n;
}

/* What the step may take. Prompts are judged by the one that is furthest. */
static node_budget budget_of(const node_core *c, int32_t wanted) {
    const node_limits *l = &c->limits;
    node_budget b = {l->step_tokens_max, l->chunk_tokens, l->logits_max, l->step_tokens_max};
    int32_t decoding = 0, position = 0;
    for (int32_t i = 0; i < wanted; i++) {
        if (c->wants[i].decode) decoding += c->wants[i].rows;
        else if (c->batch[i]->ready > position) position = c->batch[i]->ready;
    }
    if (decoding) b.prefill_tokens = node_cost_prompt_rows(&c->cost, l->itl_target_us, decoding, position);
    return b;
}

/* Rows for tokens to be proposed. They get pages that nobody has to be asked for, or are fewer. */
static void plan_proposals(node_core *c, int32_t wanted) {
    const node_speculator *x = c->io.speculator;
    int32_t decoding = 0;
    for (int32_t i = 0; i < wanted; i++) decoding += c->wants[i].decode;
    for (int32_t i = 0; x && i < wanted; i++) {
        node_seq *s = c->batch[i];
        int32_t most = s->tokens_max - s->count - 1;       /* and one more is drawn after them */
        if (!c->wants[i].decode || !s->speculation || most < 1) continue;
        int32_t k = x->plan(x->ctx, s, most, decoding);
        while (s->blocks_count < node_seq_pages(c, s->target + k) && node_seq_grow(c, s) == ST_OK) {
        }
        k = min32(k, s->blocks_count * c->limits.page_tokens - s->target);
        c->wants[i].rows += k;
        c->wants[i].logits += k;
    }
}

/* The tokens themselves, for as many rows as were shared out; who proposes fewer takes fewer. */
static void propose(node_core *c, int32_t wanted) {
    const node_speculator *x = c->io.speculator;
    int32_t n = 0;
    for (int32_t i = 0; i < wanted; i++) {
        if (!c->wants[i].decode || c->shares[i].rows < 2) continue;
        c->guessing[n] = c->batch[i];
        c->guesses[n++] = c->shares[i].rows - 1;
    }
    if (n == 0) return;
    x->propose(x->ctx, c->guessing, c->guesses, n);
    for (int32_t i = 0, k = 0; i < wanted; i++) {
        if (!c->wants[i].decode || c->shares[i].rows < 2) continue;
        assert(c->guesses[k] >= 0 && c->guesses[k] < c->shares[i].rows);
        c->shares[i].rows = c->shares[i].logits = 1 + c->guesses[k++];
    }
}

/* Asks the model for the tokens after s's rows with logits; row: where those stand in the step's. All or none of them. */
static void ask_draws(node_core *c, node_seq *s, int32_t logits, int32_t row) {
    bool fine = c->io.draws && logits > 0 && !s->request->prompt_logprobs;
    s->draws = &c->draws[row];
    for (int32_t i = 0; i < logits && fine; i++) {
        s->draws[i] = (eng_draw){.row = row + i, .count = s->count + i, .sampling = &s->request->sampling,
                                 .shown = logits > 1};      /* proposers learn from them */
        fine = c->io.draws(c->io.ctx, &s->draws[i]);
    }
    if (!fine) s->draws = NULL;
}

/* Keeps the shares that got rows; returns how many. */
static int32_t fill_rows(node_core *c, int32_t wanted, int64_t now_us) {
    int32_t n = 0, logits = 0;
    for (int32_t i = 0; i < wanted; i++) {
        if (c->shares[i].rows == 0) continue;
        node_seq *s = c->batch[i];
        if (s->first_us == 0) s->first_us = now_us;
        s->last_step = c->figures.steps + 1;
        ask_draws(c, s, c->shares[i].logits, logits);
        logits += c->shares[i].logits;
        c->rows[n] = (eng_rows){.tokens = s->tokens + s->ready,
                                .count = c->shares[i].rows,
                                .position = s->ready,
                                .blocks = s->blocks,
                                .logits = c->shares[i].logits};
        c->batch[n++] = s;
    }
    return n;
}

/* Before its role has seen the rows. */
static bool is_decode(const node_seq *s, const eng_rows *r) { return r->position + 1 == s->target; }

/* What a step had. */
typedef struct step_sum {
    int32_t decode, prefill, logits;         /* rows */
    int64_t positions;                       /* of its prefill rows, added up */
} step_sum;

static step_sum sum_step(const node_core *c, int32_t n) {
    step_sum sum = {0};
    for (int32_t i = 0; i < n; i++) {
        const eng_rows *r = &c->rows[i];
        sum.logits += r->logits;
        *(is_decode(c->batch[i], r) ? &sum.decode : &sum.prefill) += r->count;
        if (!is_decode(c->batch[i], r)) sum.positions += (int64_t)r->count * (r->position + r->count / 2);
    }
    return sum;
}

static void count_step(node_core *c, const step_sum *sum, int64_t took_us) {
    const node_speculator *x = c->io.speculator;
    c->figures.steps++;
    c->figures.prefill_tokens += sum->prefill;
    c->figures.decode_tokens += sum->decode;
    metric_add(&metric_steps, 1);
    metric_observe(&metric_rows, sum->prefill + sum->decode);
    metric_add(&metric_prefill, sum->prefill);
    metric_add(&metric_decode, sum->decode);
    if (took_us <= 0) return;
    if (sum->prefill) node_cost_average(&c->figures.prefill_tokens_per_s, (double)sum->prefill * 1e6 / (double)took_us);
    else node_cost_average(&c->figures.decode_steps_per_s, 1e6 / (double)took_us);
    if (!sum->prefill && x) x->stepped(x->ctx, sum->decode, took_us);
}

/* n sequences' rows without prompts' were computed, and what came of them told. */
static void count_decode(const step_sum *sum, int32_t n, int64_t took_us, int64_t said) {
    bool proposed = sum->decode > n;
    metric_add(&metric_decode_time[proposed], took_us);
    metric_add(&metric_decode_said[proposed], said);
}

/* What rows cost. Only of steps with logits: a device may still be at a step that had none. */
static void learn(node_core *c, const step_sum *sum, int32_t n, int64_t took_us) {
    int32_t position = sum->prefill ? (int32_t)(sum->positions / sum->prefill) : 0;
    if (sum->logits) node_cost_step(&c->cost, sum->decode, sum->prefill, position, took_us);
    for (int32_t i = 0; i < n; i++)
        if (is_decode(c->batch[i], &c->rows[i])) c->batch[i]->service_us += took_us * c->rows[i].count / (sum->decode + sum->prefill);
}

bool node_core_step(node_core *c, int64_t now_us) {
    const node_speculator *x = c->io.speculator;
    bool worked = x && x->work(x->ctx);
    int32_t wanted;
    put_in_order(c, now_us);
    do {                                                   /* again when gathering itself gave pages back */
        resume_waiting(c, now_us);
        wanted = gather(c);
    } while (wanted == 0 && c->given != c->given_seen);
    plan_proposals(c, wanted);
    node_budget budget = budget_of(c, wanted);
    if (c->limits.schedule->form(&budget, c->wants, wanted, c->shares) == 0) return worked;
    propose(c, wanted);
    int32_t n = fill_rows(c, wanted, now_us);

    const float *logits = NULL;
    status st = c->io.step(c->io.ctx, c->rows, n, &logits);
    int64_t took_us = c->io.step_us ? c->io.step_us(c->io.ctx) : 0, said = c->said;
    step_sum sum = {0};
    if (st == ST_OK) {
        sum = sum_step(c, n);
        count_step(c, &sum, took_us);
        learn(c, &sum, n, took_us);
    }

    for (int32_t i = 0; i < n; i++) {
        node_seq *s = c->batch[i];
        const eng_rows *r = &c->rows[i];
        if (st != ST_OK) {
            s->role->stop(c, s, st, "the forward pass failed");
            continue;
        }
        int32_t final = min32(r->count, s->target - s->ready);                   /* what follows was proposed */
        s->served_us = now_us + took_us;
        s->ready += final;
        if (s->count == s->request->count) s->computed += final;
        s->role->computed(c, s, r, r->logits ? logits : NULL, now_us + took_us);
        logits += (int64_t)r->logits * c->limits.V;
    }
    if (sum.decode && !sum.prefill) count_decode(&sum, n, took_us, c->said - said);
    return true;
}

int32_t node_core_cache_changes(node_core *c, int32_t max, int32_t *pages, uint64_t *numbers) {
    return eng_pool_changes(c->pool, max, pages, numbers);
}

void node_core_counts(const node_core *c, node_counts *out) {
    *out = c->figures;
    out->swapped = c->limits.swap_pages - c->slots_free;
    eng_pool_counts(c->pool, out->pages);
    out->running = out->waiting = 0;
    for (const node_seq *s = c->first; s; s = s->next) *(s->runnable ? &out->running : &out->waiting) += 1;
}
