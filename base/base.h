/* base.h -- the vocabulary every folder speaks: status, error, arena, log, clock, mailbox, metrics,
 * config.
 *
 * It knows nothing of models, networks or clusters, and starts no thread. */
#ifndef BATON_BASE_H
#define BATON_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status: one closed list for the whole cluster, grouped by what breaks -------------------- */

/* The order is on the wire (`code` in kvtransfer/frame.c): a new row goes to the end. */
/*       name                text                      gRPC code (grpc/status.h)                    */
#define STATUS_LIST(X)                                                                              \
    /* nothing broke */                                                                             \
    X(ST_OK,           "ok",                           0  /* OK                  */)                \
    X(ST_AGAIN,        "full for now, try again",      8  /* RESOURCE_EXHAUSTED  */)                \
    /* this request */                                                                              \
    X(ST_BAD_INPUT,    "bad input",                    3  /* INVALID_ARGUMENT    */)                \
    X(ST_NOT_FOUND,    "not found",                    5  /* NOT_FOUND           */)                \
    X(ST_CANCELED,     "canceled",                     1  /* CANCELLED           */)                \
    X(ST_DEADLINE,     "deadline passed",              4  /* DEADLINE_EXCEEDED   */)                \
    X(ST_DENIED,       "permission denied",            7  /* PERMISSION_DENIED   */)                \
    X(ST_REFUSED,      "refused in this state",        9  /* FAILED_PRECONDITION */)                \
    X(ST_UNSUPPORTED,  "not supported",                12 /* UNIMPLEMENTED       */)                \
    /* this link */                                                                                 \
    X(ST_PEER_LOST,    "peer lost",                    14 /* UNAVAILABLE         */)                \
    X(ST_PEER_STALE,   "stale epoch or ticket",        10 /* ABORTED; the coordinator retries it:   \
                                                            no client sees it */)                   \
    X(ST_CORRUPT,      "data corrupt",                 15 /* DATA_LOSS           */)                \
    /* this node */                                                                                 \
    X(ST_NO_MEMORY,    "out of memory",                8  /* RESOURCE_EXHAUSTED  */)                \
    X(ST_IO,           "input/output error",           13 /* INTERNAL            */)                \
    X(ST_DEVICE,       "device error",                 13 /* INTERNAL            */)                \
    X(ST_INTERNAL,     "internal error",               13 /* INTERNAL            */)                \
    /* this request, again */                                                                       \
    X(ST_UNAUTHENTICATED, "no valid credential",       16 /* UNAUTHENTICATED     */)

typedef enum status {
#define X(name, text, code) name,
    STATUS_LIST(X)
#undef X
    ST_COUNT
} status;

const char *status_name(status s);      /* "ST_PEER_STALE" */
const char *status_text(status s);      /* "stale epoch or ticket" */
int status_to_grpc(status s);           /* the code of the table above */
status status_from_grpc(int code);      /* first row with that code; 13 and unknown codes: ST_INTERNAL */

/* Returns from the calling function when expr is not ST_OK. The only macro that hides a return. */
#define TRY(expr)                                                                                   \
    do {                                                                                            \
        status try_status_ = (expr);                                                                \
        if (try_status_ != ST_OK) return try_status_;                                               \
    } while (0)

/* What a user is told: what was wrong, what was expected, and where. Callers pass one down; the
 * function that detects the fault fills it once. `err` may be NULL everywhere. */
typedef struct error {
    status code;
    char text[400];
} error;

/* Fills err (if not NULL) and returns s, so that `return error_set(err, ST_BAD_INPUT, "...")` reads
 * well. Text longer than the buffer is cut. */
status error_set(error *err, status s, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Of a request, either side of 0: what clients may ask for, and nodes are told. */
enum { PRIORITY_MAX = 100 };

/* ---- memory ----------------------------------------------------------------------------------- */

/* A request's memory: taken in pieces, dropped whole. One thread at a time. */
typedef struct arena arena;

arena *arena_create(size_t chunk_bytes);                   /* NULL: no memory */
void *arena_alloc(arena *a, size_t bytes);                 /* zeroed, 16-aligned; NULL: no memory */
char *arena_strndup(arena *a, const char *text, size_t bytes); /* NUL-terminated copy */
void arena_destroy(arena *a);                              /* NULL is fine */

/* Plain allocation. All of baton allocates through these, so that a test can make the N-th one
 * fail (mem_fail_at) and count what is still held. */
void *mem_alloc(size_t bytes);                             /* NULL: no memory */
void *mem_zalloc(size_t count, size_t size);               /* zeroed; NULL also on overflow */
void *mem_realloc(void *p, size_t bytes);
void mem_free(void *p);                                    /* NULL is fine */
char *mem_strdup(const char *text);

void mem_fail_at(int64_t nth);   /* test hook: the nth allocation from now fails; 0 turns it off */
int64_t mem_count(void);         /* allocations made by the process so far */
int64_t mem_live(void);          /* allocations not freed yet */

/* ---- numbers ---------------------------------------------------------------------------------- */

static inline int32_t min32(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t max32(int32_t a, int32_t b) { return a > b ? a : b; }
/* Spreads x over all 64 bits, one to one: the finisher of splitmix64 (Steele et al. 2014). 0 stays 0. */
static inline uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

/* ---- random ----------------------------------------------------------------------------------- */

uint64_t random_number(void);    /* from the kernel; not to be guessed */

/* ---- prefix ----------------------------------------------------------------------------------- */

/* A number for what came before (its number; a tenant's salt at first) and the next tokens; never 0. Not unique:
 * good for guessing who has a prefix, not for knowing. */
uint64_t prefix_number(uint64_t before, const int32_t *tokens, int32_t count);

/* ---- clock ------------------------------------------------------------------------------------ */

int64_t clock_now_ms(void);      /* monotonic; the only clock that decides anything */
int64_t clock_now_us(void);      /* monotonic */

/* A moment's rest in a loop that looks at memory until another core has written it. */
static inline void cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* ---- addresses -------------------------------------------------------------------------------- */

/* "host:port" or "[host]:port" into host and the port's text, which is 0 to 65535; false: it is neither, or host
 * does not fit. */
bool address_split(const char *text, char *host, size_t host_bytes, const char **port);

/* ---- log -------------------------------------------------------------------------------------- */

typedef enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG } log_level;

/* Name of this process in every line ("prefill-1"), and the least urgent level that is written.
 * Lines go to stderr: `2026-11-22T02:54:00.123Z INFO decode-1 req=ID event key=value ...`.
 * A line that cannot be written (disk full) is dropped and counted: log_dropped(), and in /metrics. */
void log_setup(const char *process, log_level level);
bool log_level_parse(const char *text, log_level *out);
int64_t log_dropped(void);

/* id: the request the line belongs to, or NULL. event: two or three plain words joined by a dot.
 * Never prompts, tokens' text or secrets. Any thread. */
void log_write(log_level level, const char *id, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- mailbox: how two threads meet ------------------------------------------------------------- */

/* Bounded queue of pointers, many senders, one receiver. Handing a pointer over hands over its
 * memory. */
typedef struct mailbox mailbox;

mailbox *mailbox_create(size_t capacity);                  /* NULL: no memory */
status mailbox_post(mailbox *m, void *message);            /* ST_AGAIN: full; any thread */
void *mailbox_take(mailbox *m);                            /* NULL: empty; the receiver's thread */
/* Sleeps until a message is there, mailbox_wake() is called, or timeout_ms passed (-1: for ever). */
void *mailbox_wait(mailbox *m, int timeout_ms);
void mailbox_wake(mailbox *m);
size_t mailbox_count(mailbox *m);
void mailbox_destroy(mailbox *m);                          /* must be empty */

/* ---- metrics ---------------------------------------------------------------------------------- */

/* A metric is a static variable that registers itself on first use; counters and gauges are one
 * relaxed atomic each. Names follow Prometheus: baton_*, units last. */
typedef enum metric_kind {
    METRIC_COUNTER,
    METRIC_GAUGE,
    METRIC_HISTOGRAM,
    METRIC_SECONDS,              /* a counter of microseconds, written in seconds */
} metric_kind;

typedef struct metric {
    const char *name;            /* "baton_kv_frames_refused_total" */
    const char *labels;          /* "reason=\"crc\"" or NULL */
    const char *help;
    metric_kind kind;
    const double *bounds;        /* histogram: upper bounds, ascending */
    int bounds_count;
    /* below: the registry's own */
    int64_t value;               /* counter, gauge; histogram: count */
    double sum;                  /* histogram */
    int64_t *buckets;
    struct metric *next;
    int registered;
} metric;

#define METRIC(var, name_, labels_, kind_, help_)                                                   \
    static metric var = {.name = name_, .labels = labels_, .help = help_, .kind = kind_}
#define METRIC_BUCKETS(var, name_, labels_, bounds_, help_)                                          \
    static metric var = {.name = name_, .labels = labels_, .help = help_, .kind = METRIC_HISTOGRAM, \
                         .bounds = bounds_, .bounds_count = sizeof bounds_ / sizeof *bounds_}

void metric_show(metric *m);                               /* it is there from now on, as 0 */
void metric_add(metric *m, int64_t n);
void metric_set(metric *m, int64_t value);
void metric_observe(metric *m, double value);              /* histogram */
int64_t metric_get(const metric *m);                      /* histogram: how many were observed */
double metric_sum(const metric *m);                       /* histogram: of what was */

/* Walks every metric registered so far. */
void metrics_each(void (*visit)(const metric *m, void *ctx), void *ctx);
/* Prometheus text format 0.0.4: all of them; one name's HELP and TYPE; m's series under another name and labels. */
void metrics_write(FILE *out);
void metric_write_head(FILE *out, const char *name, metric_kind kind, const char *help);
void metric_write_as(FILE *out, const metric *m, const char *name, const char *labels);

/* ---- config ----------------------------------------------------------------------------------- */

/* One row an option: `--kv-pages`, `BATON_KV_PAGES`, YAML key `kv-pages` and its place in the
 * caller's struct come from the same line. Later sources win: default, YAML file (--config),
 * environment, flag. */
typedef enum config_kind { CONFIG_TEXT, CONFIG_INT, CONFIG_REAL, CONFIG_SWITCH } config_kind;

typedef struct config_row {
    const char *name;            /* "kv-pages" */
    config_kind kind;
    size_t offset;               /* of a const char *, int64_t, double or bool: by CONFIG_AT */
    const char *fallback;        /* default as text; NULL: unset (text NULL, numbers 0, switch off) */
    double min, max;             /* numbers: accepted range, both 0: any */
    const char *value_name;      /* "FILE", "N"; NULL for a switch */
    const char *help;
} config_row;

/* offsetof for a row; compiles only for a field of that type, since values are stored through a cast. */
#define CONFIG_AT(type, in, field) _Generic(((in *)0)->field, type: offsetof(in, field))

/* Reads argv[1..] into *out by the rows; words that are no flags go to rest[] (at most rest_max).
 * Text values point into argv, the environment or arena. A row may not be repeated on the command
 * line. ST_BAD_INPUT names the flag, variable or key with its file and line, what it said and what
 * was expected. `--config FILE` is understood by itself. `--help` gives ST_CANCELED: print
 * config_help() and leave. */
status config_parse(const config_row *rows, int rows_count, int argc, char **argv, arena *a,
                    void *out, const char **rest, int rest_max, int *rest_count, error *err);
/* One line a row: flag, value, default, help, variable. */
void config_help(FILE *out, const config_row *rows, int rows_count);

#ifdef __cplusplus
}
#endif
#endif
