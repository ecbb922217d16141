/* sim.c -- time and chance; one run; many runs.
 *
 *   sim --seed N [--trace] [--bug N]      one run, told in full
 *   sim --seeds FROM COUNT [--bug N]      many; stops at the first that fails
 *   sim --bugs COUNT                      every planted bug must be found within COUNT seeds
 *
 * Nothing but the seed decides: no clock, no address, no thread goes into a run. */
#include "tests/sim/sim.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- chance -------------------------------------------------------------------------------------- */

uint64_t sim_mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * 0x9E3779B97F4A7C15ull;
    h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9ull;
    return h ^ h >> 32;
}

uint64_t sim_random(sim *s) { return sim_mix(s->random += 0x9E3779B97F4A7C15ull, 0x5EED); }

int64_t sim_range(sim *s, int64_t least, int64_t most) {
    return least + (int64_t)(sim_random(s) % (uint64_t)(most - least + 1));
}

bool sim_chance(sim *s, double p) { return (double)(sim_random(s) >> 11) < p * 9007199254740992.0; }

int64_t sim_delay(sim *s) {
    if (!s->healed && sim_chance(s, 0.01)) return sim_range(s, 1000, 40000);
    return sim_range(s, 20, s->delay_max_us);
}

/* ---- time ---------------------------------------------------------------------------------------- */

void *sim_alloc(size_t bytes) {
    void *p = mem_zalloc(1, bytes);
    if (!p) abort();
    return p;
}

static bool sooner(const sim_event *a, const sim_event *b) {
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->order < b->order;
}

static void push(sim *s, sim_event *e) {
    if (s->heap_count == s->heap_room) {
        s->heap_room = s->heap_room ? 2 * s->heap_room : 256;
        s->heap = mem_realloc(s->heap, (size_t)s->heap_room * sizeof *s->heap);
        if (!s->heap) abort();
    }
    int i = s->heap_count++;
    for (; i > 0 && sooner(e, s->heap[(i - 1) / 2]); i = (i - 1) / 2) s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = e;
}

static sim_event *pop(sim *s) {
    sim_event *first = s->heap[0], *last = s->heap[--s->heap_count];
    int i = 0;
    for (int child; (child = 2 * i + 1) < s->heap_count; i = child) {
        if (child + 1 < s->heap_count && sooner(s->heap[child + 1], s->heap[child])) child++;
        if (!sooner(s->heap[child], last)) break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = last;
    return first;
}

sim_event *sim_at_node(sim *s, int64_t at_us, int node, uint32_t life, void (*run)(sim *, sim_event *)) {
    sim_event *e = s->spare;
    if (e)
        s->spare = e->next;
    else
        e = sim_alloc(sizeof *e);
    *e = (sim_event){.at_us = at_us, .order = s->order++, .run = run, .node = node, .life = life};
    push(s, e);
    return e;
}

sim_event *sim_at(sim *s, int64_t at_us, void (*run)(sim *, sim_event *)) {
    return sim_at_node(s, at_us, -1, 0, run);
}

static void release(sim *s, sim_event *e) {
    mem_free(e->data);
    e->next = s->spare;
    s->spare = e;
}

static void happen(sim *s, sim_event *e) {
    if (e->life) {
        sim_node *n = &s->nodes[e->node];
        if (!n->alive || n->life != e->life) {
            if (e->dropped) e->dropped(s, e);
            release(s, e);
            return;
        }
        if (n->paused) {
            e->next = NULL;
            *n->held_end = e;
            n->held_end = &e->next;
            return;
        }
    }
    e->run(s, e);
    release(s, e);
}

/* ---- words --------------------------------------------------------------------------------------- */

void sim_fail(sim *s, const char *fmt, ...) {
    if (s->failed) return;
    s->failed = true;
    va_list args;
    va_start(args, fmt);
    vsnprintf(s->why, sizeof s->why, fmt, args);
    va_end(args);
    sim_trace(s, "FAILED: %s", s->why);
}

void sim_trace(sim *s, const char *fmt, ...) {
    if (!s->trace) return;
    va_list args;
    va_start(args, fmt);
    printf("%9.3f ms  ", (double)s->now_us / 1000);
    vprintf(fmt, args);
    printf("\n");
    va_end(args);
}

/* ---- one run ------------------------------------------------------------------------------------- */

static void create(sim *s) {
    s->delay_max_us = sim_chance(s, 0.5) ? 300 : 3000;
    s->turn_max_us = sim_chance(s, 0.5) ? 60 : 3000;
    s->lease_ms = (uint32_t)sim_range(s, 40, 200);
    s->weak_tickets = sim_chance(s, 0.3);
    s->loss = sim_chance(s, 0.5) ? 0 : 0.02;
    s->refusal = sim_chance(s, 0.5) ? 0 : 0.1;
    s->device = sim_chance(s, 0.7) ? 0 : 0.005;
    s->heal_us = sim_range(s, 50, 400) * 1000;
    s->mixed = sim_chance(s, 0.4);
    s->limits = coord_limits_default;
    s->limits.prefill = (coord_prefill_policy)sim_range(s, 0, 2);
    s->apart = s->mixed && s->limits.prefill != COORD_PREFILL_LOCAL;
    s->sampler = eng_sampler_create(SIM_V);
    sim_client_create(s);
    sim_coordinator_create(s);
    sim_fault_create(s);
}

static bool quiet(const sim *s) {
    if (!s->healed || s->requests_left) return false;
    for (int i = 0; i < s->nodes_count; i++) {
        const sim_node *n = &s->nodes[i];
        if (!n->alive || n->core->count || kvt_promises_count(n->promises)) return false;
    }
    return true;
}

static void check_end(sim *s) {
    coord_counts counts = coord_core_counts(s->core);
    if (counts.waiting || counts.placed)
        sim_fail(s, "the coordinator still has %d waiting, %d placed requests", counts.waiting, counts.placed);
    if (counts.waiting_tokens) sim_fail(s, "the coordinator still counts %lld tokens of prompts that wait", (long long)counts.waiting_tokens);
    if (counts.disagreements) sim_fail(s, "%lld disagreements", (long long)counts.disagreements);
    for (int i = 0; i < s->nodes_count; i++) sim_node_check(s, &s->nodes[i], true);
}

static void stuck(sim *s) {
    char text[200];
    size_t used = 0;
    for (int i = 0; i < s->nodes_count && used < sizeof text; i++) {
        sim_node *n = &s->nodes[i];
        used += (size_t)snprintf(text + used, sizeof text - used, " %s%d: %d sequences, %d promises;",
                                 n->prefill ? "P" : "D", i, n->core ? n->core->count : -1,
                                 n->promises ? kvt_promises_count(n->promises) : -1);
    }
    sim_fail(s, "stuck after the cluster healed: %d requests left;%s", s->requests_left, text);
}

static void destroy(sim *s, uint64_t seen[SEEN_KINDS]) {
    for (int i = 0; i < s->nodes_count; i++)
        if (s->nodes[i].alive) sim_node_destroy(s, &s->nodes[i]);
    while (s->heap_count) release(s, pop(s));
    for (sim_event *e = s->spare, *next; e; e = next) {
        next = e->next;
        mem_free(e);
    }
    for (int i = 0; i < s->streams_count; i++) mem_free(s->streams[i]);
    for (sim_send *d = s->sends_gone, *next; d; d = next) {
        next = d->next;
        mem_free(d);
    }
    coord_counts counts = coord_core_counts(s->core);
    s->seen[SEEN_RETRIED] = (uint64_t)counts.retries;
    s->seen[SEEN_HELD_OUT] = (uint64_t)counts.held_out;
    memcpy(seen, s->seen, sizeof s->seen);
    coord_core_destroy(s->core);
    eng_sampler_destroy(s->sampler);
    mem_free(s->streams);
    mem_free(s->heap);
    mem_free(s);
}

typedef struct outcome {
    bool failed;
    char why[400];
    uint64_t events;
    int64_t end_us;
    uint64_t seen[SEEN_KINDS];
} outcome;

static outcome run(uint64_t seed, sim_bug bug, bool trace) {
    enum { HEALED_MAX_US = 20 * 1000 * 1000, EVENTS_MAX = 2000000 };
    int64_t live = mem_live();
    sim *s = sim_alloc(sizeof *s);
    s->seed = seed;
    s->random = sim_mix(seed, 0xBA7011);
    s->bug = bug;
    s->trace = trace;
    create(s);
    while (!s->failed && !quiet(s)) {
        sim_event *e = pop(s);
        s->now_us = e->at_us;
        if (s->now_us > s->heal_us + HEALED_MAX_US || s->events > EVENTS_MAX) {
            release(s, e);
            stuck(s);
            break;
        }
        happen(s, e);
        if (++s->events % 64 == 0)
            for (int i = 0; i < s->nodes_count; i++) sim_node_check(s, &s->nodes[i], false);
    }
    if (!s->failed) check_end(s);
    outcome o = {.failed = s->failed, .events = s->events, .end_us = s->now_us};
    memcpy(o.why, s->why, sizeof o.why);
    if (s->failed && bug) return o;  /* a planted bug may have ruined what destroy() relies on */
    destroy(s, o.seen);
    if (!o.failed && mem_live() != live) {
        o.failed = true;
        snprintf(o.why, sizeof o.why, "%lld allocations leaked", (long long)(mem_live() - live));
    }
    return o;
}

/* ---- many runs ----------------------------------------------------------------------------------- */

/* Enough runs must show everything there is to show. */
static int summary(uint64_t count, const outcome *sum) {
    static const char *const texts[SEEN_KINDS] = {
#define X(name, text) text,
        SIM_SEEN(X)
#undef X
    };
    int missing = 0;
    printf("%llu seeds passed: %llu events, %.0f simulated seconds\n", (unsigned long long)count,
           (unsigned long long)sum->events, (double)sum->end_us / 1e6);
    for (int i = 0; i < SEEN_KINDS; i++) {
        printf("%12llu %s\n", (unsigned long long)sum->seen[i], texts[i]);
        missing += sum->seen[i] == 0;
    }
    if (missing && count >= 5000) printf("%d of these never happened: the test proves too little\n", missing);
    return missing && count >= 5000;
}

static int run_many(uint64_t from, uint64_t count, sim_bug bug) {
    outcome sum = {0};
    for (uint64_t seed = from; seed < from + count; seed++) {
        outcome o = run(seed, bug, false);
        if (o.failed) {
            printf("seed %llu failed: %s\n", (unsigned long long)seed, o.why);
            printf("again, in full: sim --seed %llu --trace", (unsigned long long)seed);
            printf(bug ? " --bug %d\n" : "\n", bug);
            return 1;
        }
        sum.events += o.events;
        sum.end_us += o.end_us;
        for (int i = 0; i < SEEN_KINDS; i++) sum.seen[i] += o.seen[i];
    }
    return summary(count, &sum);
}

/* In a process of its own: a planted bug may as well end in an assertion. */
static bool found(sim_bug bug, uint64_t seeds, char *how, size_t room) {
    int out[2];
    if (pipe(out) != 0) return false;
    pid_t child = fork();
    if (child == 0) {
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        if (!freopen("/dev/null", "w", stderr)) exit(2);
        exit(run_many(1, seeds, bug));
    }
    close(out[1]);
    size_t used = 0;
    for (ssize_t n; used < room - 1 && (n = read(out[0], how + used, room - 1 - used)) > 0;) used += (size_t)n;
    how[used] = 0;
    how[strcspn(how, "\n")] = 0;
    close(out[0]);
    int st = 0;
    waitpid(child, &st, 0);
    if (WIFSIGNALED(st)) snprintf(how, room, "ended by signal %d: an assertion of the shipped code", WTERMSIG(st));
    return WIFSIGNALED(st) ? WTERMSIG(st) == SIGABRT : WEXITSTATUS(st) == 1;
}

static int find_bugs(uint64_t seeds) {
    static const char *const texts[] = {"",
#define X(name, text) text,
                                        SIM_BUGS(X)
#undef X
    };
    int missed = 0;
    for (int bug = 1; bug < BUGS_END; bug++) {
        char how[300];
        bool yes = found((sim_bug)bug, seeds, how, sizeof how);
        missed += !yes;
        printf("%s bug %2d: %s\n         %s\n", yes ? "found " : "MISSED", bug, texts[bug], how);
        fflush(stdout);
    }
    printf("%d of %d planted bugs found\n", BUGS_END - 1 - missed, BUGS_END - 1);
    return missed != 0;
}

int main(int argc, char **argv) {
    uint64_t seed = 1, count = 0, bugs = 0;
    int bug = 0;
    bool trace = false;
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--seed") == 0 && more) {
            seed = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seeds") == 0 && i + 2 < argc) {
            seed = strtoull(argv[++i], NULL, 10);
            count = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--bugs") == 0 && more) {
            bugs = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--bug") == 0 && more) {
            bug = atoi(argv[++i]);
        } else if (strcmp(argv[i], "--trace") == 0) {
            trace = true;
        } else {
            fprintf(stderr, "usage: sim [--seed N | --seeds FROM COUNT | --bugs COUNT] [--bug N] [--trace]\n");
            return 2;
        }
    }
    log_setup("sim", trace ? LOG_INFO : LOG_ERROR);
    if (bugs) return find_bugs(bugs);
    if (count) return run_many(seed, count, (sim_bug)bug);
    outcome o = run(seed, (sim_bug)bug, trace);
    printf("seed %llu: %s (%llu events, %.3f simulated seconds)\n", (unsigned long long)seed,
           o.failed ? o.why : "passed", (unsigned long long)o.events, (double)o.end_us / 1e6);
    return o.failed;
}
