/* sample.cu -- eng_sample() on the device: one row of logits to one token, a block a token.
 *
 * The order of things is engine/sampler.c's: top-k, top-p of what that leaves, min-p of that, then the first token in
 * falling order at which the cumulative weight exceeds u of the mass; equal logits by token id. u is the same 53 bits of
 * Philox4x32-10. Nothing is sorted. A candidate is a key of 64 bits, logit above, inverted id below: falling keys are the
 * sampler's order and no two are equal. "The first key at which a sum exceeds a target" is then found byte by byte from
 * the top (radix selection), a histogram of the sums each; with weights of 1 that is top-k, and a cut is a least key.
 *
 * Sums must not depend on which thread comes first: a weight, exp((l - greatest) / temperature) in double, becomes an
 * integer, a multiple of 2^-bits with 2^bits V < 2^63, and integers add exactly. The sampler adds doubles; the two differ
 * where u of the mass, or p of it, falls within the roundings of a token's edge: V 2^-bits <= V^2 2^-62 of a mass that is
 * at least 1, so 2^-31 for V = 49152, at worst, for p; for u by the sum of that over tokens likely enough to be drawn.
 * With a weight below 2^-bits a token is never drawn.
 *
 * Candidates are at first those with a weight of at least e^-10; only when a cut or the draw lies beyond them are they
 * all of the vocabulary. That changes no result. */
#include "engine/cuda/device.cuh"
#include "engine/cuda/kernels.h"

enum { THREADS = 512, DIGITS = 256 };
static const unsigned ALL = 0xffffffffu;
typedef unsigned long long u64;

/* ---- numbers ------------------------------------------------------------------------------------------------- */

/* Orders as logits do, -0 as 0; of equals the smaller id is the greater. */
DEVICE u64 key_of(float logit, int id) {
    const unsigned u = __float_as_uint(logit == 0 ? 0 : logit);
    return (u64)(u >> 31 ? ~u : u | 0x80000000u) << 32 | (0xffffffffu - (unsigned)id);
}
DEVICE int id_of(u64 key) { return (int)(0xffffffffu - (unsigned)key); }
DEVICE float logit_of(u64 key) {
    const unsigned u = (unsigned)(key >> 32);
    return __uint_as_float(u >> 31 ? u & 0x7fffffffu : ~u);
}

/* e^x for x <= 0, within 2 units in the last place, 1 at 0: 2^n times a Taylor series of the rest, which is at most
 * ln 2 / 2. 0 below -700. */
DEVICE double exponential(double x) {
    if (!(x > -700)) return 0;
    const double shifted = fma(x, 1.4426950408889634, 6755399441055744.0), n = shifted - 6755399441055744.0;
    const double r = fma(n, -1.9082149292705877e-10, fma(n, -6.93147180369123816e-01, x));
    double p = 1.0 / 6227020800;
    p = fma(p, r, 1.0 / 479001600);
    p = fma(p, r, 1.0 / 39916800);
    p = fma(p, r, 1.0 / 3628800);
    p = fma(p, r, 1.0 / 362880);
    p = fma(p, r, 1.0 / 40320);
    p = fma(p, r, 1.0 / 5040);
    p = fma(p, r, 1.0 / 720);
    p = fma(p, r, 1.0 / 120);
    p = fma(p, r, 1.0 / 24);
    p = fma(p, r, 1.0 / 6);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    u64 bits;                            /* n stands in the low bits of what was shifted */
    double power;
    memcpy(&bits, &shifted, 8);
    bits = (bits + 1023) << 52;
    memcpy(&power, &bits, 8);
    return p * power;
}

/* engine/random.c: the upper 53 of 64 bits, which stand for u = bits / 2^64. */
DEVICE u64 uniform_bits(u64 seed, u64 position) {
    unsigned x0 = (unsigned)position, x1 = (unsigned)(position >> 32), x2 = 0, x3 = 0;
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 p0 = (u64)0xD2511F53u * x0, p1 = (u64)0xCD9E8D57u * x2;
        x0 = (unsigned)(p1 >> 32) ^ x1 ^ k0;
        x1 = (unsigned)p1;
        x2 = (unsigned)(p0 >> 32) ^ x3 ^ k1;
        x3 = (unsigned)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return ((u64)x1 << 32 | x0) >> 11 << 11;
}

/* What makes weights of logits. */
struct softmax {
    double greatest, temperature, one;   /* one: the integer of a weight of 1 */
};
DEVICE double weight_of(const softmax &s, float logit) { return exponential(((double)logit - s.greatest) / s.temperature); }
DEVICE u64 units_of(const softmax &s, float logit) { return (u64)(weight_of(s, logit) * s.one); }

/* ---- a block's shared memory, and what it does together -------------------------------------------------------- */

struct shared {
    u64 histogram[DIGITS], warp[THREADS / 32], before;
    int digit, count;
};

/* Every thread gets the result. */
template <class F> DEVICE u64 reduce(shared &sh, u64 x, F combine) {
#pragma unroll
    for (int o = 16; o; o /= 2) x = combine(x, __shfl_xor_sync(ALL, x, o));
    __syncthreads();                     /* the last result has been read */
    if (threadIdx.x % 32 == 0) sh.warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = sh.warp[0];
    for (int i = 1; i < THREADS / 32; i++) x = combine(x, sh.warp[i]);
    return x;
}
DEVICE u64 sum_of(shared &sh, u64 x) {
    return reduce(sh, x, [](u64 a, u64 b) { return a + b; });
}
DEVICE u64 greatest_of(shared &sh, u64 x) {
    return reduce(sh, x, [](u64 a, u64 b) { return a > b ? a : b; });
}
DEVICE u64 least_of(shared &sh, u64 x) {
    return reduce(sh, x, [](u64 a, u64 b) { return a < b ? a : b; });
}

/* By one warp: from the top, the first digit at which the running sum exceeds target, and the sum before it. */
DEVICE void find_digit(shared &sh, u64 target) {
    enum { EACH = DIGITS / 32 };
    const int lane = threadIdx.x % 32, top = DIGITS - 1 - lane * EACH;
    u64 own = 0, before;
    for (int i = 0; i < EACH; i++) own += sh.histogram[top - i];
    u64 upto = own;
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
        const u64 x = __shfl_up_sync(ALL, upto, o);
        upto += lane >= o ? x : 0;
    }
    before = upto - own;
    if (before > target || upto <= target) return;         /* one lane goes on */
    int digit = top;
    while (before + sh.histogram[digit] <= target) before += sh.histogram[digit--];
    sh.digit = digit;
    sh.before = before;
}

/* Candidates of a row. */
struct candidates {
    const u64 *key;
    int count;
};

/* Of the candidates from cut on up, in falling order: the first at which the sum of units, or without s their number,
 * exceeds target. The sum of all must exceed it. */
DEVICE u64 find_key(shared &sh, const candidates &c, u64 cut, const softmax *s, u64 target) {
    u64 key = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < DIGITS; i += THREADS) sh.histogram[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < c.count; i += THREADS) {
            const u64 x = c.key[i];
            if (x >= cut && (shift == 56 || x >> (shift + 8) == key))
                atomicAdd(&sh.histogram[x >> shift & (DIGITS - 1)], s ? units_of(*s, logit_of(x)) : 1ull);
        }
        __syncthreads();
        if (threadIdx.x < 32) find_digit(sh, target);
        __syncthreads();
        key = key << 8 | (u64)sh.digit;
        target -= sh.before;
    }
    return key;
}

/* The keys of logits from edge on up, in any order. */
DEVICE candidates collect(shared &sh, u64 *list, const float *logits, int V, float edge) {
    __syncthreads();                     /* the old list has been read */
    if (threadIdx.x == 0) sh.count = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < V; i += THREADS)
        if (logits[i] >= edge && logits[i] > -INFINITY) list[atomicAdd(&sh.count, 1)] = key_of(logits[i], i);
    __syncthreads();
    return {list, sh.count};
}

DEVICE u64 mass_from(shared &sh, const candidates &c, const softmax &s, u64 cut) {
    u64 mass = 0;
    for (int i = threadIdx.x; i < c.count; i += THREADS)
        if (c.key[i] >= cut) mass += units_of(s, logit_of(c.key[i]));
    return sum_of(sh, mass);
}

/* The least key from cut on up with a weight of at least min_p. */
DEVICE u64 cut_weights(shared &sh, const candidates &c, const softmax &s, u64 cut, float min_p) {
    u64 least = ~0ull;
    for (int i = threadIdx.x; i < c.count; i += THREADS)
        if (c.key[i] >= cut && c.key[i] < least && weight_of(s, logit_of(c.key[i])) >= min_p) least = c.key[i];
    return least_of(sh, least);
}

/* ---- a row ----------------------------------------------------------------------------------------------------- */

/* The greatest key; 0: a logit is NaN or infinite, or all are -inf. */
DEVICE u64 find_greatest(shared &sh, const float *logits, int V) {
    u64 most = 0;
    bool bad = false;
    for (int i = threadIdx.x; i < V; i += THREADS) {
        const float l = logits[i];
        bad |= !(l < INFINITY);
        if (l > -INFINITY && key_of(l, i) > most) most = key_of(l, i);
    }
    most = greatest_of(sh, most);
    return __syncthreads_or(bad) ? 0 : most;
}

/* The token's key; 0: the candidates are not all that matter. mass: of the whole vocabulary. */
DEVICE u64 choose(shared &sh, const candidates &c, bool all, const cuda_draw &d, const softmax &s, u64 mass, int V, u64 u) {
    const int k = d.top_k > 0 && d.top_k < V ? d.top_k : 0;
    u64 cut = 0, here = mass_from(sh, c, s, 0);
    if (k > c.count && !all) return 0;
    if (k && k < c.count) {
        cut = find_key(sh, c, 0, NULL, (u64)k - 1);
        here = mass_from(sh, c, s, cut);
    }
    if (k) mass = here;
    if (d.top_p < 1) {
        const u64 target = (u64)ceil((double)d.top_p * (double)mass) - 1;
        if (here <= target && !all && !k) return 0;
        if (here > target) cut = find_key(sh, c, cut, &s, target);
    }
    if (d.min_p > 0) {
        if (!k && !(d.top_p < 1) && !all && d.min_p < 5e-5f) return 0;     /* e^-10 = 4.54e-5 */
        cut = cut_weights(sh, c, s, cut, d.min_p);
    }
    if (cut) here = mass = mass_from(sh, c, s, cut);
    const u64 target = __umul64hi(u, mass);
    return here > target ? find_key(sh, c, cut, &s, target) : 0;
}

/* One block a processor is enough: without that number, registers are held to two and spill. */
KERNEL __launch_bounds__(THREADS, 1) sample(int32_t *token, const float *logits, const cuda_draw *draw, int V, double one,
                                         u64 *lists) {
    SHARED_ARRAY(shared, memory, 1);
    shared &sh = memory[0];
    const cuda_draw d = draw[blockIdx.x];
    u64 *const list = lists + blockIdx.x * (size_t)V;
    logits += (size_t)d.row * (size_t)V;
    const u64 best = find_greatest(sh, logits, V);
    u64 chosen = best;
    if (best && d.temperature > 0) {     /* the same for all threads */
        const softmax s = {logit_of(best), d.temperature, one};
        const u64 u = uniform_bits(d.seed, (u64)d.position);
        u64 mass = 0;
        for (int i = threadIdx.x; i < V; i += THREADS) mass += units_of(s, logits[i]);
        mass = sum_of(sh, mass);
        const float edge = (float)(s.greatest - 10.0 * s.temperature);
        candidates c = collect(sh, list, logits, V, edge);
        chosen = choose(sh, c, false, d, s, mass, V, u);
        if (!chosen) {
            c = collect(sh, list, logits, V, -INFINITY);
            chosen = choose(sh, c, true, d, s, mass, V, u);
        }
    }
    if (threadIdx.x == 0) token[blockIdx.x] = chosen ? id_of(chosen) : -1;
}

size_t cuda_sample_scratch(int draws, int V) { return (size_t)draws * (size_t)V * sizeof(u64); }

cudaError_t cuda_sample(cudaStream_t st, int32_t *token, const float *logits, const cuda_draw *draw, int draws, int V,
                        void *scratch) {
    if (draws == 0) return cudaSuccess;
    double one = 0x1p62;
    for (int64_t n = 1; n < V; n *= 2) one /= 2;
    return launch(sample, dim3((unsigned)draws), dim3(THREADS), 0, st, token, logits, draw, V, one, (u64 *)scratch);
}
