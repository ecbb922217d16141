/* transfer.h -- how fast KV gets to another process: what `baton bench transfer` measures and how it is shown.
 *
 * Two processes of this machine, each transport of kvtransfer in turn, in the clear and sealed, rows copied out of one flat memory and
 * into another: no engine. Beside it what the machine could do: the same bytes through a plain TCP socket over
 * loopback, and by memcpy within one process. All are measured in turns, round by round; a ratio is the median
 * of the rounds' own ratios, so that a machine that is slow for a while is slow for both sides. CPU time of both
 * processes is counted as well: what a transfer costs, and how fast two free cores would do it. */
#ifndef BATON_BENCH_TRANSFER_H
#define BATON_BENCH_TRANSFER_H

#include "bench/bench.h"
#include "kvtransfer/internal.h"

enum {
    TRANSFER_SIZES = 7,
    TRANSFER_WAYS_MAX = 6,
    TRANSFER_ROUNDS = 9,         /* of the largest sizes; small ones have more */
    TRANSFER_ROUNDS_MAX = 41,
    TRANSFER_HANDOFF_TOKENS = 128,
};

/* 64 KiB a token, so that tokens are sizes; and SmolLM2-135M's with f16. */
extern const kvt_geometry bench_transfer_square, bench_transfer_smollm;
extern const uint64_t bench_transfer_sizes[TRANSFER_SIZES];

/* A transport of kvtransfer's that this machine has; and, right behind it, the same sealed, if it ever is. */
typedef struct bench_way {
    const char *transport;
    const unsigned char *key;    /* NULL: not sealed */
    char name[24];               /* "tcp", "tcp sealed" */
} bench_way;

extern bench_way bench_ways[TRANSFER_WAYS_MAX];
extern int bench_ways_count;

uint64_t bench_transfer_token_bytes(const kvt_geometry *g);

/* ---- transfer_peer.c: the process that receives ----------------------------------------------------- */

typedef struct bench_peer {
    int fd;                      /* orders go out, answers come back */
    int raw_fd;                  /* a plain TCP connection to it */
    pid_t pid;
    char address[TRANSFER_WAYS_MAX][KVT_ADDRESS_MAX];
} bench_peer;

/* Forks: call it while this process has one thread. memory_bytes: what the peer lands rows in. */
status bench_peer_start(uint64_t memory_bytes, bench_peer *out, error *err);
/* The peer promises ticket, epoch 1, tokens from 0 on. */
status bench_peer_promise(bench_peer *p, int way, uint64_t ticket, const kvt_geometry *g, uint32_t tokens);
/* Waits until that promise has ended: its status. */
status bench_peer_await(bench_peer *p);
/* Sends so many bytes through the plain socket, 1 MB a call, until the peer says that it has them. */
status bench_peer_raw(bench_peer *p, const void *from, uint64_t bytes);
/* CPU time that the peer has used, in seconds. */
status bench_peer_cpu(bench_peer *p, double *s);
double bench_cpu_now(void);      /* this process's */
void bench_peer_stop(bench_peer *p);
/* Rows between the flat memory, as canonical order has them, and a box: out of it, or into it. */
void bench_peer_copy(const kvt_geometry *g, uint32_t tokens, unsigned char *memory, const kvt_frame *box,
                     unsigned char *payload, bool into_memory);
/* Where a box's rows are in it: kvt_source's runs. */
int bench_peer_runs(const kvt_geometry *g, uint32_t tokens, unsigned char *memory, const kvt_frame *box, struct iovec *out);

/* ---- transfer.c ---------------------------------------------------------------------------------------- */

typedef struct bench_transfer_point {
    bench_spread rate;           /* bytes a second */
    bench_spread of_raw, of_copy; /* that, to the plain socket's and to memcpy's of the same round */
    bench_spread of_clear;       /* sealed: to the same transport's that is not */
    double cpu_out, cpu_in;      /* nanoseconds of CPU a byte, sender and receiver: the larger bounds the rate */
} bench_transfer_point;

typedef struct bench_transfer_row {
    const char *name;            /* of a way, "socket", "memcpy" */
    bool sealed;
    bench_transfer_point size[TRANSFER_SIZES];
    bench_spread first_ms;       /* ways: one token over a link that has to be made first */
    bench_spread handoff_ms;     /* TRANSFER_HANDOFF_TOKENS of SmolLM2 over a link that is there */
    bench_spread handoff_share;  /* of the plain socket's rate with that many bytes */
    bench_spread handoff_copy;   /* of memcpy's */
    bench_spread handoff_clear;  /* sealed: of the same transport's that is not */
} bench_transfer_row;

typedef struct bench_transfer_report {
    int sizes;                   /* measured, from the smallest */
    int rows_count;              /* the ways, then socket and memcpy */
    error missing;               /* code: not ST_OK, this machine lacks a transport; text says what of it */
    bench_transfer_row rows[TRANSFER_WAYS_MAX + 2];
} bench_transfer_report;

/* quick: without the two largest sizes, fewer rounds. progress: before each part; may be NULL. */
status bench_transfer_run(bool quick, void (*progress)(const char *what, int size), bench_transfer_report *out,
                          error *err);
void bench_transfer_text(const bench_transfer_report *r, FILE *out);
status bench_transfer_json(const bench_transfer_report *r, FILE *out, error *err);

#endif
