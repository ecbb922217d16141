/* ptx_alu.cpp -- arithmetic of PTX: sources in, result out, nothing else.
 *
 * f32 is computed in float and f64 in double, with the instruction's rounding; f16 and bf16 in double and rounded once.
 * The approximate instructions (ex2, lg2, rsqrt, sin, cos, tanh, div.full) are libm's, denormals are kept: a device
 * differs in the last bits. Integers wrap at their type's width; a result is stored zero-extended. */
#include "emu.h"
#include "ptx.h"
#include <cfenv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* ---- bits and numbers ------------------------------------------------------------------------------------------ */

static float as_float(uint64_t v) {
    uint32_t bits = (uint32_t)v;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static uint64_t float_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static double as_double(uint64_t v) {
    double d;
    memcpy(&d, &v, 8);
    return d;
}

static uint64_t double_bits(double d) {
    uint64_t v;
    memcpy(&v, &d, 8);
    return v;
}

/* A value of any float type as double: exact. */
static double number(PtxType t, uint64_t v) {
    if (t.kind == 'f')
        return t.bytes == 8 ? as_double(v) : as_float(v);
    if (t.kind == 'g')
        return as_float((v & 0xffff) << 16);
    uint16_t bits = (uint16_t)v;
    _Float16 h;
    memcpy(&h, &bits, 2);
    return (double)h;
}

static uint64_t number_bits(PtxType t, double d) {
    if (t.kind == 'f')
        return t.bytes == 8 ? double_bits(d) : float_bits((float)d);
    uint16_t bits;
    if (t.kind == 'g') {
        __nv_bfloat16 b = __double2bfloat16(d);
        memcpy(&bits, (void *)&b, 2);
    } else {
        _Float16 h = (_Float16)d;
        memcpy(&bits, &h, 2);
    }
    return bits;
}

static bool is_float(PtxType t) { return t.kind == 'f' || t.kind == 'h' || t.kind == 'g'; }

/* While one lives, floats round its way. */
struct Rounding {
    int before;
    explicit Rounding(PtxRound r) : before(fegetround()) {
        static const int ways[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
        if (r != PTX_RN)
            fesetround(ways[r]);
    }
    ~Rounding() { fesetround(before); }
};

/* ---- floats ------------------------------------------------------------------------------------------ */

template <class T> static T float_min_max(const PtxIns &i, T a, T b) {
    if (i.nan && (std::isnan(a) || std::isnan(b)))
        return (T)NAN;
    if (a == b)                                            /* -0 is below +0 */
        return std::signbit(a) == (i.code == PTX_MIN) ? a : b;
    return i.code == PTX_MIN ? std::fmin(a, b) : std::fmax(a, b);
}

template <class T> static T float_op(const PtxIns &i, T a, T b, T c) {
    volatile T x = a, y = b, z = c;                        /* not folded, not moved across fesetround() */
    Rounding round(i.round);
    switch (i.code) {
    case PTX_ADD: return x + y;
    case PTX_SUB: return x - y;
    case PTX_MUL: return x * y;
    case PTX_MAD: return std::fma((T)x, (T)y, (T)z);
    case PTX_DIV: return x / y;
    case PTX_SQRT: return std::sqrt((T)x);
    case PTX_RCP: return 1 / x;
    case PTX_NEG: return -x;
    case PTX_ABS: return std::fabs((T)x);
    case PTX_MIN:
    case PTX_MAX: return float_min_max<T>(i, a, b);
    case PTX_RSQRT: return (T)(1 / std::sqrt((double)a));
    case PTX_EX2: return std::exp2(a);
    case PTX_LG2: return std::log2(a);
    case PTX_SIN: return std::sin(a);
    case PTX_COS: return std::cos(a);
    case PTX_TANH: return std::tanh(a);
    case PTX_COPYSIGN: return std::copysign(b, a);         /* the sign is the first source's */
    default: ptx_refuse(i, "not for floats");
    }
}

static uint64_t float_alu(const PtxIns &i, PtxType t, uint64_t a, uint64_t b, uint64_t c) {
    if (t.kind == 'f' && t.bytes == 4) {
        float r = float_op<float>(i, as_float(a), as_float(b), as_float(c));
        return float_bits(!i.sat ? r : r > 1 ? 1.0f : r > 0 ? r : 0.0f);
    }
    return number_bits(t, float_op<double>(i, number(t, a), number(t, b), number(t, c)));
}

static uint64_t packed_alu(const PtxIns &i, uint64_t a, uint64_t b, uint64_t c) {
    PtxType each = {i.type.kind, 2, 1};
    uint64_t low = float_alu(i, each, a & 0xffff, b & 0xffff, c & 0xffff);
    uint64_t high = float_alu(i, each, a >> 16 & 0xffff, b >> 16 & 0xffff, c >> 16 & 0xffff);
    return low | high << 16;
}

static uint64_t float_test(const PtxIns &i, uint64_t a) {
    double x = number(i.type, a);
    int kind = i.type.bytes == 4 ? std::fpclassify((float)x) : std::fpclassify(x);
    const bool answers[] = {std::isfinite(x), std::isinf(x), !std::isnan(x), std::isnan(x), kind == FP_NORMAL,
                            kind == FP_SUBNORMAL};
    return answers[i.word];
}

/* ---- conversions ------------------------------------------------------------------------------------------ */

static uint64_t to_int(PtxType t, double x) {
    double low = t.kind == 's' ? -std::ldexp(1, 8 * t.bytes - 1) : 0;
    double end = std::ldexp(1, t.kind == 's' ? 8 * t.bytes - 1 : 8 * t.bytes);        /* the first that does not fit */
    if (std::isnan(x))
        return 0;
    if (x >= end)
        return t.kind == 's' ? (1ull << (8 * t.bytes - 1)) - 1 : ptx_unsigned(~0ull, t.bytes);
    if (x < low)
        x = low;
    return t.kind == 's' ? (uint64_t)(int64_t)x : (uint64_t)x;
}

static uint64_t int_to_int(const PtxIns &i, PtxType to, PtxType from, uint64_t v) {
    bool is_signed = from.kind == 's';
    int64_t s = ptx_signed(v, from.bytes);
    uint64_t u = ptx_unsigned(v, from.bytes);
    if (i.sat) {
        __int128 x = is_signed ? (__int128)s : (__int128)u;
        __int128 low = to.kind == 's' ? -((__int128)1 << (8 * to.bytes - 1)) : 0;
        __int128 high = ((__int128)1 << (8 * to.bytes - (to.kind == 's'))) - 1;
        return (uint64_t)(x < low ? low : x > high ? high : x);
    }
    return is_signed ? (uint64_t)s : u;
}

/* One rounding from any integer to any float. */
static uint64_t int_to_float(const PtxIns &i, PtxType to, PtxType from, uint64_t v) {
    Rounding round(i.round);
    volatile int64_t s = ptx_signed(v, from.bytes);
    volatile uint64_t u = ptx_unsigned(v, from.bytes);
    if (to.kind == 'f' && to.bytes == 4)
        return float_bits(from.kind == 's' ? (float)s : (float)u);
    return number_bits(to, from.kind == 's' ? (double)s : (double)u);
}

static uint64_t convert(const PtxIns &i, PtxType to, PtxType from, uint64_t v) {
    if (!is_float(from))
        return is_float(to) ? int_to_float(i, to, from, v) : int_to_int(i, to, from, v);
    volatile double x = number(from, v);
    Rounding round(i.round);
    if (i.to_integral || !is_float(to))
        x = std::nearbyint((double)x);
    if (!is_float(to))
        return to_int(to, x);
    if (i.sat)
        x = x > 1 ? 1 : x > 0 ? (double)x : 0;
    if (i.round != PTX_RN && !i.to_integral && to.kind != 'f')
        ptx_refuse(i, "this rounding to 16 bits");
    return number_bits(to, x);
}

static uint64_t cvt(const PtxIns &i, const uint64_t *s) {
    if (i.type.lanes == 2) {                               /* d, high, low */
        PtxType each = {i.type.kind, 2, 1};
        return convert(i, each, i.from, s[1]) | convert(i, each, i.from, s[0]) << 16;
    }
    return convert(i, i.type, i.from, s[0]);
}

/* ---- comparisons ------------------------------------------------------------------------------------------ */

template <class T> static bool compare(int how, T a, T b) {
    switch (how) {
    case PTX_EQ: return a == b;
    case PTX_NE: return a != b;
    case PTX_LT: return a < b;
    case PTX_LE: return a <= b;
    case PTX_GT: return a > b;
    default: return a >= b;
    }
}

static bool compare_any(const PtxIns &i, uint64_t a, uint64_t b) {
    PtxType t = i.type;
    if (is_float(t)) {
        double x = number(t, a), y = number(t, b);
        bool unordered = std::isnan(x) || std::isnan(y);
        if (i.word == PTX_NUM || i.word == PTX_NAN)
            return unordered == (i.word == PTX_NAN);
        if (unordered)
            return i.word >= PTX_EQU;
        return compare(i.word >= PTX_EQU ? i.word - PTX_EQU : (int)i.word, x, y);
    }
    if (t.kind == 's')
        return compare(i.word, ptx_signed(a, t.bytes), ptx_signed(b, t.bytes));
    return compare(i.word, ptx_unsigned(a, t.bytes), ptx_unsigned(b, t.bytes));
}

static uint64_t setp(const PtxIns &i, const uint64_t *s, uint64_t *second) {
    if (i.type.lanes == 2)
        ptx_refuse(i, "packed comparison");
    bool result = compare_any(i, s[0], s[1]), other = !result;
    if (i.combine) {
        bool c = (s[2] != 0) != i.negated_source;
        result = i.combine == 'a' ? result && c : i.combine == 'o' ? result || c : result != c;
        other = i.combine == 'a' ? other && c : i.combine == 'o' ? other || c : other != c;
    }
    *second = other;
    return result;
}

/* ---- integers ------------------------------------------------------------------------------------------ */

static uint64_t multiply(const PtxIns &i, uint64_t a, uint64_t b, uint64_t c) {
    int w = i.type.bytes;
    bool is_signed = i.type.kind == 's';
    uint64_t add = i.code == PTX_MAD ? c : 0;
    if (i.wide)
        return ptx_unsigned((is_signed ? (uint64_t)(ptx_signed(a, w) * ptx_signed(b, w))
                                       : ptx_unsigned(a, w) * ptx_unsigned(b, w)) + add, 2 * w);
    if (!i.hi)
        return a * b + add;
    if (is_signed)
        return (uint64_t)(((__int128)ptx_signed(a, w) * ptx_signed(b, w)) >> (8 * w)) + add;
    return (uint64_t)(((unsigned __int128)ptx_unsigned(a, w) * ptx_unsigned(b, w)) >> (8 * w)) + add;
}

static uint64_t divide(const PtxIns &i, uint64_t a, uint64_t b) {
    int w = i.type.bytes;
    int64_t x = ptx_signed(a, w), y = ptx_signed(b, w);
    uint64_t u = ptx_unsigned(a, w), v = ptx_unsigned(b, w);
    if (!v)
        emu_fail("division", "%s:%d: %s: division by zero", i.site, i.line, i.text.c_str());
    if (i.type.kind != 's')
        return i.code == PTX_DIV ? u / v : u % v;
    if (y == -1)
        return i.code == PTX_DIV ? (uint64_t)0 - (uint64_t)x : 0;
    return (uint64_t)(i.code == PTX_DIV ? x / y : x % y);
}

static uint64_t shift(const PtxIns &i, uint64_t a, uint64_t b) {
    int w = i.type.bytes, bits = 8 * w;
    uint32_t by = (uint32_t)b;
    if (i.code == PTX_SHL)
        return by >= (uint32_t)bits ? 0 : a << by;
    if (i.type.kind == 's')
        return (uint64_t)(ptx_signed(a, w) >> (by >= (uint32_t)bits ? bits - 1 : (int)by));
    return by >= (uint32_t)bits ? 0 : ptx_unsigned(a, w) >> by;
}

/* Two words as one, moved left or right; one word of it. */
static uint64_t funnel(const PtxIns &i, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t both = (b & 0xffffffff) << 32 | (a & 0xffffffff);
    uint32_t by = i.clamp ? ((uint32_t)c > 32 ? 32 : (uint32_t)c) : (uint32_t)c & 31;
    return i.left ? (by == 32 ? both : both << by >> 32) : both >> by;
}

static uint64_t low_bits(uint64_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

static uint64_t field_extract(const PtxIns &i, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t at = b & 255, count = c & 255, bits = 8 * i.type.bytes;
    a = i.type.kind == 's' ? (uint64_t)ptx_signed(a, i.type.bytes) : ptx_unsigned(a, i.type.bytes);
    uint64_t v = at >= bits ? (i.type.kind == 's' && (int64_t)a < 0 ? ~0ull : 0) : a >> at;
    v &= low_bits(count);
    uint64_t sign_at = at + count - 1 < bits - 1 ? at + count - 1 : bits - 1;
    if (i.type.kind == 's' && count && (a >> sign_at & 1))
        v |= ~low_bits(count);
    return v;
}

static uint64_t field_insert(uint64_t a, uint64_t b, uint64_t at, uint64_t count) {
    if ((at & 255) >= 64)
        return b;
    uint64_t mask = low_bits(count & 255) << (at & 255);
    return (b & ~mask) | (a << (at & 255) & mask);
}

static uint64_t permute(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t both = (b & 0xffffffff) << 32 | (a & 0xffffffff), r = 0;
    for (int k = 0; k < 4; k++) {
        unsigned select = (unsigned)(c >> (4 * k)) & 15;
        uint64_t byte = both >> (8 * (select & 7)) & 255;
        r |= (select & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * k);
    }
    return r;
}

/* Any function of three bits: the table's bit number abc. */
static uint64_t lop3(uint64_t a, uint64_t b, uint64_t c, uint64_t table) {
    uint64_t r = 0;
    for (int n = 0; n < 8; n++)
        if (table >> n & 1)
            r |= (n & 4 ? a : ~a) & (n & 2 ? b : ~b) & (n & 1 ? c : ~c);
    return r;
}

static uint64_t dp4a(const PtxIns &i, uint64_t a, uint64_t b, uint64_t c) {
    for (int k = 0; k < 4; k++) {
        uint64_t x = a >> (8 * k) & 255, y = b >> (8 * k) & 255;
        c += (uint64_t)((i.type.kind == 's' ? ptx_signed(x, 1) : (int64_t)x) *
                        (i.from.kind == 's' ? ptx_signed(y, 1) : (int64_t)y));
    }
    return c;
}

static uint64_t reverse(uint64_t a, int bits) {
    uint64_t r = 0;
    for (int k = 0; k < bits; k++)
        r |= (a >> k & 1) << (bits - 1 - k);
    return r;
}

/* The highest bit that is not the sign; 2^32 - 1: none. */
static uint64_t find_bit(const PtxIns &i, uint64_t a) {
    int64_t s = ptx_signed(a, i.type.bytes);
    uint64_t v = i.type.kind == 's' && s < 0 ? ~(uint64_t)s : ptx_unsigned(a, i.type.bytes);
    return v ? 63 - __builtin_clzll(v) : 0xffffffff;
}

static bool first_is_less(const PtxIns &i, uint64_t a, uint64_t b) {
    int w = i.type.bytes;
    return i.type.kind == 's' ? ptx_signed(a, w) < ptx_signed(b, w) : ptx_unsigned(a, w) < ptx_unsigned(b, w);
}

static uint64_t int_alu(const PtxIns &i, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    int w = i.type.bytes;
    if (i.sat)
        ptx_refuse(i, "saturating integers");
    switch (i.code) {
    case PTX_ADD: return a + b;
    case PTX_SUB: return a - b;
    case PTX_MUL:
    case PTX_MAD: return multiply(i, a, b, c);
    case PTX_DIV:
    case PTX_REM: return divide(i, a, b);
    case PTX_MIN: return first_is_less(i, a, b) ? a : b;
    case PTX_MAX: return first_is_less(i, a, b) ? b : a;
    case PTX_NEG: return 0 - a;
    case PTX_ABS: return (uint64_t)std::llabs(ptx_signed(a, w));
    case PTX_AND: return a & b;
    case PTX_OR: return a | b;
    case PTX_XOR: return a ^ b;
    case PTX_NOT: return ~a;
    case PTX_SHL:
    case PTX_SHR: return shift(i, a, b);
    case PTX_SHF: return funnel(i, a, b, c);
    case PTX_POPC: return (uint64_t)__builtin_popcountll(ptx_unsigned(a, w));
    case PTX_CLZ: return ptx_unsigned(a, w) ? (uint64_t)__builtin_clzll(ptx_unsigned(a, w)) - (64 - 8 * w) : 8 * w;
    case PTX_BFIND: return find_bit(i, a);
    case PTX_BREV: return reverse(a, 8 * w);
    case PTX_BFI: return field_insert(a, b, c, d);
    case PTX_BFE: return field_extract(i, a, b, c);
    case PTX_PRMT: return permute(a, b, c);
    case PTX_LOP3: return lop3(a, b, c, d);
    case PTX_SAD: return c + (first_is_less(i, a, b) ? b - a : a - b);
    case PTX_DP4A: return dp4a(i, a, b, c);
    default: ptx_refuse(i, "not for integers");
    }
}

/* Predicates are 0 or 1. */
static uint64_t logic(const PtxIns &i, bool a, bool b) {
    switch (i.code) {
    case PTX_AND: return a && b;
    case PTX_OR: return a || b;
    case PTX_XOR: return a != b;
    case PTX_NOT: return !a;
    default: ptx_refuse(i, "not for predicates");
    }
}

/* How wide the result is: wider than the sources for mul.wide, 32 bits for counts and dp4a. */
static int result_bytes(const PtxIns &i) {
    if (i.wide)
        return 2 * i.type.bytes;
    bool count = i.code == PTX_POPC || i.code == PTX_CLZ || i.code == PTX_BFIND;
    return count ? 4 : i.type.bytes;
}

uint64_t ptx_alu(const PtxIns &i, const uint64_t *s, uint64_t *second) {
    switch (i.code) {
    case PTX_MOV: return s[0];
    case PTX_CVT: return cvt(i, s);
    case PTX_SETP: return setp(i, s, second);
    case PTX_SELP: return (s[2] != 0) != i.negated_source ? s[0] : s[1];
    case PTX_TESTP: return float_test(i, s[0]);
    default: break;
    }
    if (i.type.kind == 'p')
        return logic(i, s[0] != 0, s[1] != 0);
    if (i.type.lanes == 2)
        return packed_alu(i, s[0], s[1], s[2]);
    if (is_float(i.type))
        return float_alu(i, i.type, s[0], s[1], s[2]);
    return ptx_unsigned(int_alu(i, s[0], s[1], s[2], s[3]), result_bytes(i));
}
