/* device_math.h -- arithmetic that nvcc knows by itself, in kernels built by g++. device.h includes it.
 *
 * Single operations round as the device does. __expf, __logf, __fdividef and rsqrtf are approximations there and
 * correctly rounded or libm's here: tests allow for it. */
#pragma once

/* ---- integers ------------------------------------------------------------------------------------------ */

static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++)
        c += (signed char)(a >> (8 * i)) * (signed char)(b >> (8 * i));
    return c;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++)
        c += ((a >> (8 * i)) & 255u) * ((b >> (8 * i)) & 255u);
    return c;
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)((((unsigned long long)high << 32 | low) << (by & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (by & 31));
}
/* Four bytes out of eight, chosen by the low three bits of each nibble of s; bit 3 spreads the sign instead. */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    const unsigned long long v = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned byte = (unsigned)(v >> (8 * (s >> (4 * i) & 7))) & 255;
        r |= ((s >> (4 * i) & 8) ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return r;
}
static inline unsigned __vsub4(unsigned a, unsigned b) {
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8)
        r |= (((a >> i) - (b >> i)) & 255) << i;
    return r;
}
static inline unsigned __vadd4(unsigned a, unsigned b) {
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8)
        r |= (((a >> i) + (b >> i)) & 255) << i;
    return r;
}
static inline unsigned __vsubss4(unsigned a, unsigned b) {
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8) {
        const int d = (signed char)(a >> i) - (signed char)(b >> i);
        r |= (unsigned)((d > 127 ? 127 : d < -128 ? -128 : d) & 255) << i;
    }
    return r;
}

/* ---- bits of floats ------------------------------------------------------------------------------------------ */

#define EMU_BITS(name, to, from)                                                                                       \
    static inline to name(from v) {                                                                                    \
        to r;                                                                                                          \
        static_assert(sizeof r == sizeof v);                                                                           \
        memcpy(&r, &v, sizeof r);                                                                                      \
        return r;                                                                                                      \
    }
EMU_BITS(__float_as_int, int, float)
EMU_BITS(__int_as_float, float, int)
EMU_BITS(__float_as_uint, unsigned, float)
EMU_BITS(__uint_as_float, float, unsigned)
EMU_BITS(__double_as_longlong, long long, double)
EMU_BITS(__longlong_as_double, double, long long)
#undef EMU_BITS

/* ---- floats ------------------------------------------------------------------------------------------ */

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline float rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf(x) expf(x)                  /* glibc has these names for itself */
#define __logf(x) logf(x)
static inline float __saturatef(float x) { return x > 1 ? 1.0f : x > 0 ? x : 0.0f; }

/* The device's conversions saturate, and make 0 of NaN. */
template <class I, class F> static inline I emu_to_int(F x, I low, I high) {
    return x != x ? 0 : x <= (F)low ? low : x >= (F)high ? high : (I)x;
}
static inline int emu_int(float x) { return emu_to_int<int>(x, -0x7fffffff - 1, 0x7fffffff); }
static inline unsigned emu_uint(float x) { return emu_to_int<unsigned>(x, 0u, 0xffffffffu); }
static inline int __float2int_rn(float x) { return emu_int(rintf(x)); }
static inline int __float2int_rz(float x) { return emu_int(truncf(x)); }
static inline int __float2int_rd(float x) { return emu_int(floorf(x)); }
static inline int __float2int_ru(float x) { return emu_int(ceilf(x)); }
static inline unsigned __float2uint_rn(float x) { return emu_uint(rintf(x)); }
static inline unsigned __float2uint_rz(float x) { return emu_uint(truncf(x)); }
static inline int __double2int_rn(double x) { return emu_to_int<int>(rint(x), -0x7fffffff - 1, 0x7fffffff); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ull2float_rn(unsigned long long x) { return (float)x; }
static inline double __ull2double_rn(unsigned long long x) { return (double)x; }
static inline float __double2float_rn(double x) { return (float)x; }

#define EMU_MIN_MAX(T)                                                                                                 \
    static inline T min(T a, T b) { return b < a ? b : a; }                                                            \
    static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

/* ---- half and bfloat16: what NVIDIA's headers keep for nvcc; one rounding ------------------------------------------------ */

static inline __half __hfma(__half a, __half b, __half c) {
    return __double2half((double)__half2float(a) * __half2float(b) + __half2float(c));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return __half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __double2bfloat16((double)__bfloat162float(a) * __bfloat162float(b) + __bfloat162float(c));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return __nv_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline __half hexp(__half a) { return __float2half(expf(__half2float(a))); }
