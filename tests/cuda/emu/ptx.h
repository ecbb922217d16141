/* ptx.h -- a kernel's PTX, decoded: what the parser, the arithmetic and the interpreter share.
 *
 * Every operand is a register: numbers, symbols and special registers have one each, filled when a thread begins
 * (PtxKernel::init, specials, shared). A register is 64 bits wide; an instruction takes as many of them as its type
 * says and ignores the rest. */
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

enum PtxCode : uint8_t {
    /* control */
    PTX_BRA, PTX_BRX, PTX_RET, PTX_TRAP, PTX_NOTHING,
    /* memory */
    PTX_LD, PTX_ST, PTX_ATOM, PTX_RED, PTX_CVTA, PTX_CP_ASYNC, PTX_CP_COMMIT, PTX_CP_WAIT, PTX_CP_WAIT_ALL, PTX_LDMATRIX,
    /* threads together */
    PTX_BAR, PTX_BAR_WARP, PTX_BAR_RED, PTX_SHFL, PTX_VOTE, PTX_MATCH, PTX_REDUX, PTX_MMA,
    /* arithmetic */
    PTX_MOV, PTX_CVT, PTX_SETP, PTX_SELP, PTX_ADD, PTX_SUB, PTX_MUL, PTX_MAD, PTX_DIV, PTX_REM, PTX_MIN, PTX_MAX, PTX_NEG,
    PTX_ABS, PTX_AND, PTX_OR, PTX_XOR, PTX_NOT, PTX_SHL, PTX_SHR, PTX_SHF, PTX_POPC, PTX_CLZ, PTX_BFIND, PTX_BREV, PTX_BFI,
    PTX_BFE, PTX_PRMT, PTX_LOP3, PTX_SAD, PTX_DP4A, PTX_SQRT, PTX_RSQRT, PTX_RCP, PTX_EX2, PTX_LG2, PTX_SIN, PTX_COS,
    PTX_TANH, PTX_COPYSIGN, PTX_TESTP
};

enum PtxSpace : uint8_t { PTX_GENERIC, PTX_GLOBAL, PTX_SHARED, PTX_LOCAL, PTX_PARAM };
enum PtxRound : uint8_t { PTX_RN, PTX_RZ, PTX_RM, PTX_RP };

/* s, u, b: integers; f: f32, f64; h: f16; g: bf16; p: predicate; lanes 2: f16x2, bf16x2. */
struct PtxType {
    char kind;
    uint8_t bytes, lanes;
    bool operator==(const PtxType &o) const { return kind == o.kind && bytes == o.bytes && lanes == o.lanes; }
};

enum { PTX_DST_MAX = 8, PTX_SRC_MAX = 12 };

struct PtxIns {
    PtxCode code;
    PtxType type, from;                    /* from: the second type of cvt, dp4a */
    PtxSpace space;
    PtxRound round;
    bool to_integral;                      /* .rni and its like: round is how */
    bool wide, hi, sat, nan, left, clamp, to, negated_source;
    uint8_t word;                          /* which of several: comparison, atomic, vote, shuffle, mma form ... */
    uint8_t combine;                       /* of setp: 0, or 'a', 'o', 'x' */
    int predicate;                         /* register, -1: none */
    bool predicate_not;
    int dst_count, src_count;
    int dst[PTX_DST_MAX], src[PTX_SRC_MAX];
    int base[2];                           /* address registers, and what is added */
    int64_t offset[2];
    int target;
    std::vector<int> targets;              /* of brx */
    const char *site;                      /* "rows.cu:41, rows.ptx" */
    int line;                              /* in the PTX */
    std::string text;
};

enum PtxCompare : uint8_t {
    PTX_EQ, PTX_NE, PTX_LT, PTX_LE, PTX_GT, PTX_GE, PTX_EQU, PTX_NEU, PTX_LTU, PTX_LEU, PTX_GTU, PTX_GEU, PTX_NUM, PTX_NAN
};

struct PtxSymbol {
    size_t bytes, align;
    bool dynamic;
    int reg;                               /* -1: not used by this kernel */
};

struct PtxKernel {
    std::string name, path;
    std::vector<std::pair<int, int>> params;     /* offset, bytes */
    int params_bytes, threads_max;               /* .maxntid, 0: not said */
    std::vector<PtxIns> code;
    std::vector<uint64_t> init;                  /* of the registers */
    std::vector<std::pair<int, int>> specials;   /* register, which */
    std::map<std::string, PtxSymbol> shared, local;
    size_t local_bytes;
};

/* The names of the special registers, in the order of PtxKernel::specials; ends with NULL. */
extern const char *const ptx_special_names[];

/* ptx_parse.cpp: adds a file's kernels; ends the process at anything it does not know, by name. */
void ptx_parse_file(const char *path, std::map<std::string, PtxKernel> *kernels);
/* ptx_decode.cpp: one instruction's text, without its predicate. */
void ptx_decode(PtxIns *i, const std::string &text);
PtxType ptx_type(const std::string &name);               /* kind 0: not a type */
/* ptx_alu.cpp: what an arithmetic instruction makes of its sources; second: setp's other result. */
uint64_t ptx_alu(const PtxIns &i, const uint64_t *src, uint64_t *second);
/* The value as signed, as unsigned, of so many bytes. */
inline int64_t ptx_signed(uint64_t v, int bytes) {
    return bytes >= 8 ? (int64_t)v : bytes == 4 ? (int32_t)v : bytes == 2 ? (int16_t)v : (int8_t)v;
}
inline uint64_t ptx_unsigned(uint64_t v, int bytes) { return bytes >= 8 ? v : v & ((1ull << (8 * bytes)) - 1); }
[[noreturn]] void ptx_refuse(const PtxIns &i, const char *why);
