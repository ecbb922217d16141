/* ptx_decode.cpp -- an opcode with its modifiers ("ld.global.nc.v4.u32") into a PtxIns.
 *
 * The table below is all the interpreter knows: each line an opcode, and the modifiers it may have. Anything else ends the
 * process with the instruction's name, so that nothing is ever ignored that matters. */
#include "emu.h"
#include "ptx.h"
#include "warp_ops.h"
#include <cstring>
#include <sstream>

struct Known {
    const char *opcode;
    PtxCode code;
    const char *modifiers;
};

#define MEMORY " global shared shared::cta local param const generic volatile relaxed acquire release gpu cta sys weak nc"
#define CACHE " ca cg cs cv lu wb wt v2 v4 evict_first evict_last no_allocate"
#define COMPARE " eq ne lt le gt ge equ neu ltu leu gtu geu num nan lo ls hi hs and or xor"

static const Known known[] = {
    {"bra", PTX_BRA, " uni"},
    {"brx", PTX_BRX, " idx uni"},
    {"ret", PTX_RET, " uni"},
    {"exit", PTX_RET, ""},
    {"trap", PTX_TRAP, ""},
    {"membar", PTX_NOTHING, " gl cta sys"},
    {"fence", PTX_NOTHING, " sc acq_rel gpu cta sys"},
    {"prefetch", PTX_NOTHING, " global L1 L2"},
    {"nanosleep", PTX_NOTHING, ""},
    {"ld", PTX_LD, MEMORY CACHE},
    {"st", PTX_ST, MEMORY CACHE},
    {"atom", PTX_ATOM, MEMORY " acq_rel add exch max min and or xor cas inc"},
    {"red", PTX_RED, MEMORY " acq_rel add max min and or xor inc"},
    {"cvta", PTX_CVTA, " to global shared local const param"},
    {"ldmatrix", PTX_LDMATRIX, " sync aligned m8n8 x1 x2 x4 trans shared shared::cta"},
    {"bar", PTX_BAR, " sync red warp cta popc and or"},
    {"barrier", PTX_BAR, " sync red aligned cta popc and or"},
    {"shfl", PTX_SHFL, " sync idx bfly up down"},
    {"vote", PTX_VOTE, " sync any all ballot"},
    {"match", PTX_MATCH, " any sync"},
    {"redux", PTX_REDUX, " sync add min max and or xor"},
    {"mma", PTX_MMA, " sync aligned m16n8k16 m16n8k32 row col"},
    {"mov", PTX_MOV, ""},
    {"cvt", PTX_CVT, " rn rz rm rp rni rzi rmi rpi ftz sat"},
    {"setp", PTX_SETP, COMPARE " ftz"},
    {"selp", PTX_SELP, ""},
    {"add", PTX_ADD, " rn rz rm rp ftz sat"},
    {"sub", PTX_SUB, " rn rz rm rp ftz sat"},
    {"mul", PTX_MUL, " rn rz rm rp ftz sat lo hi wide"},
    {"mad", PTX_MAD, " rn rz rm rp ftz sat lo hi wide"},
    {"fma", PTX_MAD, " rn rz rm rp ftz sat"},
    {"div", PTX_DIV, " rn rz rm rp ftz approx full"},
    {"rem", PTX_REM, ""},
    {"min", PTX_MIN, " ftz NaN"},
    {"max", PTX_MAX, " ftz NaN"},
    {"neg", PTX_NEG, " ftz"},
    {"abs", PTX_ABS, " ftz"},
    {"and", PTX_AND, ""},
    {"or", PTX_OR, ""},
    {"xor", PTX_XOR, ""},
    {"not", PTX_NOT, ""},
    {"shl", PTX_SHL, ""},
    {"shr", PTX_SHR, ""},
    {"shf", PTX_SHF, " l r wrap clamp"},
    {"popc", PTX_POPC, ""},
    {"clz", PTX_CLZ, ""},
    {"bfind", PTX_BFIND, ""},
    {"brev", PTX_BREV, ""},
    {"bfi", PTX_BFI, ""},
    {"bfe", PTX_BFE, ""},
    {"prmt", PTX_PRMT, ""},
    {"lop3", PTX_LOP3, ""},
    {"sad", PTX_SAD, ""},
    {"dp4a", PTX_DP4A, ""},
    {"sqrt", PTX_SQRT, " rn rz rm rp ftz approx"},
    {"rsqrt", PTX_RSQRT, " ftz approx"},
    {"rcp", PTX_RCP, " rn rz rm rp ftz approx"},
    {"ex2", PTX_EX2, " ftz approx"},
    {"lg2", PTX_LG2, " ftz approx"},
    {"sin", PTX_SIN, " ftz approx"},
    {"cos", PTX_COS, " ftz approx"},
    {"tanh", PTX_TANH, " approx"},
    {"copysign", PTX_COPYSIGN, ""},
    {"testp", PTX_TESTP, " finite infinite number notanumber normal subnormal"},
};

PtxType ptx_type(const std::string &s) {
    static const struct { const char *name; PtxType type; } types[] = {
        {"b8", {'b', 1, 1}},   {"u8", {'u', 1, 1}},    {"s8", {'s', 1, 1}},      {"b16", {'b', 2, 1}},
        {"u16", {'u', 2, 1}},  {"s16", {'s', 2, 1}},   {"b32", {'b', 4, 1}},     {"u32", {'u', 4, 1}},
        {"s32", {'s', 4, 1}},  {"b64", {'b', 8, 1}},   {"u64", {'u', 8, 1}},     {"s64", {'s', 8, 1}},
        {"f32", {'f', 4, 1}},  {"f64", {'f', 8, 1}},   {"f16", {'h', 2, 1}},     {"bf16", {'g', 2, 1}},
        {"f16x2", {'h', 4, 2}}, {"bf16x2", {'g', 4, 2}}, {"pred", {'p', 1, 1}},
    };
    for (auto &t : types)
        if (s == t.name)
            return t.type;
    return PtxType{0, 0, 0};
}

static bool listed(const char *list, const std::string &word) {
    return strstr((std::string(list) + " ").c_str(), (" " + word + " ").c_str()) != nullptr;
}

void ptx_refuse(const PtxIns &i, const char *why) {
    emu_fail("ptx-unsupported", "%s:%d: %s (%s)", i.site, i.line, i.text.c_str(), why);
}

/* The place of a word in a list, -1: not there. */
static int word_index(const char *const *list, const std::string &word) {
    for (int i = 0; list[i]; i++)
        if (word == list[i])
            return i;
    return -1;
}

static bool rounding(PtxIns *i, const std::string &w) {
    static const char *const plain[] = {"rn", "rz", "rm", "rp", nullptr};
    static const char *const integral[] = {"rni", "rzi", "rmi", "rpi", nullptr};
    int a = word_index(plain, w), b = word_index(integral, w);
    if (a >= 0)
        i->round = (PtxRound)a;
    if (b >= 0) {
        i->round = (PtxRound)b;
        i->to_integral = true;
    }
    return a >= 0 || b >= 0;
}

static void setp_word(PtxIns *i, const std::string &w) {
    static const char *const compares[] = {"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu",
                                           "num", "nan", nullptr};
    static const char *const unsigned_ones[] = {"lo", "ls", "hi", "hs", nullptr};
    int a = word_index(compares, w), b = word_index(unsigned_ones, w);
    if (a >= 0)
        i->word = (uint8_t)a;
    else if (b >= 0)
        i->word = (uint8_t)(PTX_LT + b);
    else if (w == "and" || w == "or" || w == "xor")
        i->combine = (uint8_t)w[0];
}

/* What a warp or block operation does. */
static void word_of(PtxIns *i, const std::string &w) {
    static const char *const shuffles[] = {"", "idx", "bfly", "up", "down", nullptr};
    static const char *const atomics[] = {"add", "exch", "max", "min", "and", "or", "xor", "cas", "inc", nullptr};
    static const char *const votes[] = {"ballot", "any", "all", nullptr};
    static const char *const reductions[] = {"add", "min", "max", "", "", "and", "or", "xor", nullptr};
    static const char *const blocks[] = {"", "or", "and", "popc", nullptr};
    static const char *const tests[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal", nullptr};
    int n = -1;
    switch (i->code) {
    case PTX_SHFL: n = word_index(shuffles, w); break;
    case PTX_ATOM:
    case PTX_RED: n = word_index(atomics, w); break;
    case PTX_VOTE: n = word_index(votes, w); break;
    case PTX_REDUX: n = word_index(reductions, w); break;
    case PTX_BAR:
        if (w == "warp")
            i->code = PTX_BAR_WARP;
        else if (w == "red")
            i->code = PTX_BAR_RED;
        break;
    case PTX_BAR_RED: n = word_index(blocks, w); break;
    case PTX_TESTP: n = word_index(tests, w); break;
    case PTX_LDMATRIX: n = w == "x4" ? 8 : w == "x2" ? 4 : w == "x1" ? 2 : -1; break;
    default: break;
    }
    if (n >= 0)
        i->word = (uint8_t)n;
}

static void modifier(PtxIns *i, const std::string &w) {
    if (rounding(i, w))
        return;
    if (w == "shared" || w == "shared::cta")
        i->space = PTX_SHARED;
    else if (w == "local")
        i->space = PTX_LOCAL;
    else if (w == "param")
        i->space = PTX_PARAM;
    else if (w == "global" || w == "const")
        i->space = PTX_GLOBAL;
    i->wide |= w == "wide";
    i->hi |= w == "hi";
    i->sat |= w == "sat";
    i->nan |= w == "NaN";
    i->left |= w == "l";
    i->clamp |= w == "clamp";
    i->to |= w == "to" || w == "trans";
    if (i->code == PTX_SETP)
        setp_word(i, w);
    else
        word_of(i, w);
}

/* mma is known by its whole name. */
static void mma_form(PtxIns *i, const std::string &name) {
    static const struct { const char *name; int form; } forms[] = {
        {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", EMU_MMA_F16},
        {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", EMU_MMA_BF16},
        {"mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", EMU_MMA_S8},
    };
    for (auto &f : forms)
        if (name == f.name) {
            i->word = (uint8_t)f.form;
            return;
        }
    ptx_refuse(*i, "this form of mma is not emulated");
}

/* cp.async is two words. */
static bool cp_async(PtxIns *i, const std::string &name) {
    static const struct { const char *name; PtxCode code; } forms[] = {
        {"cp.async.ca.shared.global", PTX_CP_ASYNC},      {"cp.async.cg.shared.global", PTX_CP_ASYNC},
        {"cp.async.commit_group", PTX_CP_COMMIT},         {"cp.async.wait_group", PTX_CP_WAIT},
        {"cp.async.wait_all", PTX_CP_WAIT_ALL},
    };
    std::string plain = name.substr(0, name.find(".L2::"));
    if (size_t cta = plain.find("shared::cta"); cta != std::string::npos)
        plain.erase(cta + 6, 5);
    for (auto &f : forms)
        if (plain == f.name) {
            i->code = f.code;
            return true;
        }
    return false;
}

void ptx_decode(PtxIns *i, const std::string &name) {
    if (cp_async(i, name))
        return;
    std::istringstream words(name);
    std::string w;
    getline(words, w, '.');
    const Known *k = nullptr;
    for (const Known &each : known)
        if (w == each.opcode)
            k = &each;
    if (!k)
        ptx_refuse(*i, "the interpreter does not know this opcode");
    i->code = k->code;
    if (w == "membar" || w == "fence" || w == "prefetch")
        return;
    while (getline(words, w, '.')) {
        PtxType t = ptx_type(w);
        if (t.kind) {
            i->from = t;                               /* the last one named */
            if (!i->type.kind)
                i->type = t;
        } else if (listed(k->modifiers, w) || w.find("L1::") == 0 || w.find("L2::") == 0) {
            modifier(i, w);
        } else {
            ptx_refuse(*i, ("the interpreter does not know ." + w + " here").c_str());
        }
    }
    if (i->code == PTX_MMA)
        mma_form(i, name);
}
