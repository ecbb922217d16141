/* nccl_move.h -- a communicator of the emulated NCCL and the memory its ranks share. */
#pragma once
#include "emu.h"
#include <atomic>
#include <nccl.h>
#include <vector>

enum { NCCL_RANKS_MAX = 8 };
enum { NCCL_CHUNK_BYTES = 1 << 18, NCCL_PIECE_BYTES = 1 << 16 };

enum NcclOp { NCCL_ALL_REDUCE, NCCL_ALL_GATHER, NCCL_REDUCE_SCATTER, NCCL_BROADCAST, NCCL_REDUCE };
extern const char *const nccl_names[];

/* A collective as a rank calls it. count: what it contributes (all-gather), gets (reduce-scatter), or all. */
struct NcclCall {
    NcclOp op;
    ncclDataType_t type;
    ncclRedOp_t reduction;
    int root;
    size_t count;
};

/* From one rank to another: a piece at a time. */
struct NcclMail {
    std::atomic<uint64_t> full, empty;     /* pieces put in, taken out */
    ncclDataType_t type;
    size_t count, piece_bytes;
    char piece[NCCL_PIECE_BYTES];
};

struct NcclShared {
    std::atomic<int> failed;               /* a rank has found wrong use */
    int device[NCCL_RANKS_MAX];
    std::atomic<uint64_t> met[NCCL_RANKS_MAX];
    NcclCall call[NCCL_RANKS_MAX];
    NcclMail mail[NCCL_RANKS_MAX][NCCL_RANKS_MAX];
    char chunk[NCCL_RANKS_MAX][NCCL_CHUNK_BYTES];
};

struct ncclComm {
    NcclShared *shared;
    int rank, n, device;
    bool blocking, ready, ended, unasked;
    ncclResult_t error;
    uint64_t meetings;                     /* how often this rank came */
    char path[128];
};

struct NcclTransfer {
    ncclComm *comm;
    cudaStream_t stream;
    bool send;
    char *data;
    size_t count;
    ncclDataType_t type;
    int peer;
    size_t done;                           /* bytes */
    uint64_t last;                         /* number of the last piece put into the mail */
    bool finished;
};

size_t nccl_type_bytes(ncclDataType_t t);  /* 0: not emulated */
double nccl_now();
/* Ends the process if that was too long ago. */
void nccl_waited(ncclComm *c, double since, const char *what);
/* A meeting of all ranks: nccl_meet() comes, nccl_all_met() says whether the others have. */
void nccl_meet(ncclComm *c);
bool nccl_all_met(ncclComm *c);
EmuOp nccl_collective_op(const NcclCall &call, const void *send, void *recv, ncclComm *c);
EmuOp nccl_transfer_op(const std::vector<NcclTransfer> &transfers);
