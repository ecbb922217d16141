/* load_figures.c -- what the records of a run come to.
 *
 * Goodput is DistServe's (Zhong et al., OSDI 2024) and AIPerf's: requests a second whose TTFT and TPOT both meet their
 * target. TPOT is the mean of an answer's own gaps, (last token - first token) / (tokens - 1); single gaps are a figure
 * of their own. What was refused, failed, not sent or not finished has met nothing. */
#include "bench/load.h"

const char *const bench_load_stage_names[STAGES] = {"late", "network", "tokenise", "queue", "wait", "prefill", "kv_transfer", "decode"};

static double tpot_us(const bench_load_record *r) {
    return r->tokens > 1 ? (double)(r->last_us - r->first_us) / (r->tokens - 1) : 0;
}

/* Late is the client's own doing. Tokenise, queue, prefill, transfer and decode are what the server said. A transfer overlaps
 * with the prefill that feeds it, so it is no part of the sum. Wait is the rest of the server's TTFT: standing in a node's
 * line, and the way there. Network is what the client waited beyond what the server saw, gRPC on both ends included. */
static void add_stages(bench_load_figures *f, const bench_load_record *r, int64_t at_us) {
    double wait = r->ttft - r->tokenise - r->queue - r->prefill, network = (double)(r->end_us - r->sent_us) / 1000 - r->ttft - r->decode;
    if (!r->told) return;
    f->told++;
    bench_histogram_add(&f->queue, (int64_t)(r->queue * 1000));
    f->stage_ms[STAGE_LATE] += (double)(r->sent_us - at_us) / 1000;
    f->stage_ms[STAGE_NETWORK] += network > 0 ? network : 0;
    f->stage_ms[STAGE_TOKENISE] += r->tokenise;
    f->stage_ms[STAGE_QUEUE] += r->queue;
    f->stage_ms[STAGE_WAIT] += wait > 0 ? wait : 0;
    f->stage_ms[STAGE_PREFILL] += r->prefill;
    f->stage_ms[STAGE_TRANSFER] += r->transfer;
    f->stage_ms[STAGE_DECODE] += r->decode;
}

static double later_s(double s, int64_t us) { return s * 1e6 > (double)us ? s : (double)us / 1e6; }

static bool add_answer(bench_load_figures *f, const bench_load_request *q, const bench_load_record *r) {
    double ttft_us = (double)(r->first_us - q->at_us);
    f->answered++;
    f->prompt_tokens += q->prompt;
    f->cached_tokens += r->cached;
    f->whole_tokens += r->tokens;
    f->accepted_tokens += r->accepted;
    f->short_answers += r->tokens < q->answer;
    f->retried += r->attempts > 1;
    bench_histogram_add(&f->ttft, r->first_us - q->at_us);
    bench_histogram_add(&f->e2e, r->end_us - q->at_us);
    if (r->tokens > 1) bench_histogram_add(&f->tpot, (int64_t)tpot_us(r));
    add_stages(f, r, q->at_us);
    bool met = r->tokens > 0 && ttft_us <= f->slo.ttft_ms * 1000 && tpot_us(r) <= f->slo.tpot_ms * 1000;
    f->met += met;
    f->seconds = later_s(f->seconds, r->end_us);
    if (met) f->good_seconds = later_s(f->good_seconds, r->end_us);
    return met;
}

static void add_refusal(bench_load_figures *f, const bench_load_request *q, const bench_load_record *r) {
    f->refused++;
    f->refused_with_hint += r->retry_after_ms >= 0;
    bench_histogram_add(&f->refusal, r->end_us - q->at_us);
}

static void add_slow(bench_load_figures *f, const bench_load_record *r) {
    f->slow++;
    f->slow_answered += r->outcome == LOAD_ANSWERED;
    f->slow_tokens += r->tokens;
}

static void add_request(bench_load_figures *f, const bench_load_request *q, const bench_load_record *r) {
    bench_load_piece *piece = &f->piece[(int)((double)q->at_us / 1e6 / f->piece_s)];
    f->planned++;
    if (r->outcome == LOAD_PLANNED) return;
    piece->arrived++;
    if (r->outcome != LOAD_NOT_SENT) {
        f->sent++;
        bench_histogram_add(&f->late, r->sent_us - q->at_us);
    }
    f->answer_tokens += r->tokens;
    switch (r->outcome) {
    case LOAD_ANSWERED:
        piece->met += add_answer(f, q, r);
        piece->answered++;
        break;
    case LOAD_REFUSED: add_refusal(f, q, r); break;
    case LOAD_NOT_SENT: f->not_sent++; break;
    case LOAD_FAILED:
        f->failed_count++;
        f->failed[r->st]++;
        break;
    default: f->unfinished++; break;
    }
}

/* Seconds, or pieces of a longer run. */
static void cut_time(bench_load_figures *f, int64_t end_us) {
    double seconds = (double)end_us / 1e6;
    f->piece_s = seconds < BENCH_LOAD_PIECES_MAX ? 1 : seconds / (BENCH_LOAD_PIECES_MAX - 1);
    f->pieces = (int)(seconds / f->piece_s) + 1;
}

void bench_load_figures_of(const bench_load_plan *p, const bench_load_record *records, const bench_histogram *gaps,
                           bench_load_slo slo, int64_t ran_us, double client_cpu_s, bench_load_figures *out) {
    int64_t end_us = p->end_us < ran_us ? p->end_us : ran_us;
    *out = (bench_load_figures){.slo = slo, .seconds = (double)end_us / 1e6, .good_seconds = (double)end_us / 1e6};
    cut_time(out, p->end_us);
    for (int64_t i = 0; i < p->count; i++) {
        if (p->requests[i].slow) add_slow(out, &records[i]);
        else add_request(out, &p->requests[i], &records[i]);
    }
    if (gaps) out->gap = *gaps;
    for (int i = 0; i < STAGES; i++) out->stage_ms[i] /= out->told ? (double)out->told : 1;
    out->client_cpu = ran_us > 0 ? client_cpu_s * 1e6 / (double)ran_us : 0;
}

double bench_load_goodput(const bench_load_figures *f) {
    return f->good_seconds > 0 ? (double)f->met / f->good_seconds : 0;
}

double bench_load_guessed(const bench_load_figures *f) {
    return f->whole_tokens > 0 ? (double)f->accepted_tokens / (double)f->whole_tokens : 0;
}
