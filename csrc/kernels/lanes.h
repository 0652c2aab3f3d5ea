// Sixteen fp32 lanes on every instruction set, for the row and attention kernels.
//
// Included only by what csrc/isa/*.cpp compile, inside the namespace of one instruction set. All
// operations round each lane once, as IEEE 754 says, so that results differ between instruction sets
// in `fma` alone, which portable code rounds twice. The build has -ffp-contract=off: nothing is
// fused that is not written as fma.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

constexpr int lane_count = 16;

#if defined(__AVX512F__)  // with the extensions that isa.h names

struct Lanes {
    __m512 v;
};
struct LaneMask {
    __mmask16 v;
};

static inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
static inline Lanes broadcast(float a) { return {_mm512_set1_ps(a)}; }
static inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Lanes abs(Lanes a) { return {_mm512_abs_ps(a.v)}; }
static inline LaneMask less(Lanes a, Lanes b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
// Lanes [low, high), for 0 <= low <= high <= 16.
static inline LaneMask lane_range(int low, int high) {
    return {static_cast<__mmask16>(((1u << high) - 1u) & ~((1u << low) - 1u))};
}
// a where the mask is set, b elsewhere.
static inline Lanes select(LaneMask m, Lanes a, Lanes b) {
    return {_mm512_mask_blend_ps(m.v, b.v, a.v)};
}
// The sign of `sign` on the magnitude of `a`.
static inline Lanes with_sign(Lanes a, Lanes sign) {
    const __m512i bit = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    return {_mm512_castsi512_ps(
        _mm512_or_si512(_mm512_andnot_si512(bit, _mm512_castps_si512(a.v)),
                        _mm512_and_si512(bit, _mm512_castps_si512(sign.v))))};
}
// Sixteen pairs of bf16, and a sum of their products with another sixteen pairs: for each lane
// fma(odd, odd, sum) and then fma(even, even, that). AVX-512 takes subnormal inputs and results for 0.
struct Pairs {
    __m512i v;
};
struct PairOfAll {  // one pair for all lanes
    __m512i v;
};
static inline Pairs load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
static inline PairOfAll broadcast_pair(const uint16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    return {_mm512_set1_epi32(both)};
}
// Zero in place of the odd or of the even values.
static inline Pairs only(Pairs a, bool odd) {
    return {_mm512_and_si512(a.v, _mm512_set1_epi32(odd ? static_cast<int>(0xFFFF0000u) : 0xFFFF))};
}
static inline Lanes dot(PairOfAll a, Pairs b, Lanes sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)b.v, (__m512bh)a.v)};
}
static inline Lanes dot(Pairs a, Pairs b, Lanes sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)b.v, (__m512bh)a.v)};
}
// Rounds to bf16 (nearest even; for numbers), writes the 16 bits of each lane, and gives them widened.
static inline Lanes store_bf16(uint16_t* p, Lanes a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF))), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(rounded, 16))};
}
// 2^n from the bits of n + 1.5 * 2^23.
static inline Lanes power_of_two(Lanes shifted) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3F800000)))};
}

#elif defined(__AVX2__)

struct Lanes {
    __m256 a, b;
};
struct LaneMask {
    __m256 a, b;
};

static inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, Lanes x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline Lanes broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Lanes operator+(Lanes x, Lanes y) {
    return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
static inline Lanes operator-(Lanes x, Lanes y) {
    return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
static inline Lanes operator*(Lanes x, Lanes y) {
    return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
static inline Lanes operator/(Lanes x, Lanes y) {
    return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
static inline Lanes fma(Lanes x, Lanes y, Lanes z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline Lanes max(Lanes x, Lanes y) {
    return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
static inline Lanes abs(Lanes x) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(bit, x.a), _mm256_andnot_ps(bit, x.b)};
}
static inline LaneMask less(Lanes x, Lanes y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
static inline LaneMask lane_range(int low, int high) {
    const __m256i first = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i second = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i below = _mm256_set1_epi32(low - 1), above = _mm256_set1_epi32(high);
    const auto in = [&](__m256i i) {
        return _mm256_castsi256_ps(
            _mm256_and_si256(_mm256_cmpgt_epi32(i, below), _mm256_cmpgt_epi32(above, i)));
    };
    return {in(first), in(second)};
}
static inline Lanes select(LaneMask m, Lanes x, Lanes y) {
    return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}
static inline Lanes with_sign(Lanes x, Lanes sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(bit, x.a), _mm256_and_ps(bit, sign.a)),
            _mm256_or_ps(_mm256_andnot_ps(bit, x.b), _mm256_and_ps(bit, sign.b))};
}
struct Pairs {
    __m256i a, b;
};
struct PairOfAll {
    __m256 even, odd;
};
static inline Pairs load_pairs(const uint16_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16))};
}
static inline __m256 even_values(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}
static inline __m256 odd_values(__m256i pairs) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
}
static inline PairOfAll broadcast_pair(const uint16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    const __m256i pairs = _mm256_set1_epi32(both);
    return {even_values(pairs), odd_values(pairs)};
}
static inline Pairs only(Pairs x, bool odd) {
    const __m256i mask = _mm256_set1_epi32(odd ? static_cast<int>(0xFFFF0000u) : 0xFFFF);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
static inline Lanes dot(PairOfAll x, Pairs y, Lanes sum) {
    sum.a = _mm256_fmadd_ps(x.odd, odd_values(y.a), sum.a);
    sum.b = _mm256_fmadd_ps(x.odd, odd_values(y.b), sum.b);
    sum.a = _mm256_fmadd_ps(x.even, even_values(y.a), sum.a);
    sum.b = _mm256_fmadd_ps(x.even, even_values(y.b), sum.b);
    return sum;
}
static inline Lanes dot(Pairs x, Pairs y, Lanes sum) {
    sum.a = _mm256_fmadd_ps(odd_values(x.a), odd_values(y.a), sum.a);
    sum.b = _mm256_fmadd_ps(odd_values(x.b), odd_values(y.b), sum.b);
    sum.a = _mm256_fmadd_ps(even_values(x.a), even_values(y.a), sum.a);
    sum.b = _mm256_fmadd_ps(even_values(x.b), even_values(y.b), sum.b);
    return sum;
}
static inline __m256i rounded_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7FFF))), 16);
}
static inline Lanes store_bf16(uint16_t* p, Lanes x) {
    const __m256i a = rounded_bf16(x.a), b = rounded_bf16(x.b);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
    return {even_values(a), even_values(b)};
}
static inline __m256 power_of_two_half(__m256 shifted) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3F800000)));
}
static inline Lanes power_of_two(Lanes shifted) {
    return {power_of_two_half(shifted.a), power_of_two_half(shifted.b)};
}

#else

// Four vectors of the 128 bits that every platform of ours has (SSE2, NEON), as GCC and Clang know
// them without intrinsics.
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadInt __attribute__((vector_size(16)));
typedef uint32_t QuadBits __attribute__((vector_size(16)));

struct Lanes {
    Quad a, b, c, d;
};
struct LaneMask {
    QuadInt a, b, c, d;
};

template <class F>
static inline Lanes each(Lanes x, Lanes y, F f) {
    return {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)};
}
static inline Quad load_quad(const float* p) {
    Quad q;
    std::memcpy(&q, p, sizeof q);
    return q;
}
static inline Lanes load(const float* p) {
    return {load_quad(p), load_quad(p + 4), load_quad(p + 8), load_quad(p + 12)};
}
static inline void store(float* p, Lanes x) {
    std::memcpy(p, &x.a, 16);
    std::memcpy(p + 4, &x.b, 16);
    std::memcpy(p + 8, &x.c, 16);
    std::memcpy(p + 12, &x.d, 16);
}
static inline Lanes broadcast(float x) {
    const Quad q = {x, x, x, x};
    return {q, q, q, q};
}
static inline Lanes operator+(Lanes x, Lanes y) {
    return each(x, y, [](Quad p, Quad q) { return p + q; });
}
static inline Lanes operator-(Lanes x, Lanes y) {
    return each(x, y, [](Quad p, Quad q) { return p - q; });
}
static inline Lanes operator*(Lanes x, Lanes y) {
    return each(x, y, [](Quad p, Quad q) { return p * q; });
}
static inline Lanes operator/(Lanes x, Lanes y) {
    return each(x, y, [](Quad p, Quad q) { return p / q; });
}
static inline Lanes fma(Lanes x, Lanes y, Lanes z) { return x * y + z; }
static inline Lanes max(Lanes x, Lanes y) {
    return each(x, y, [](Quad p, Quad q) { return p > q ? p : q; });
}
static inline Quad from_bits(QuadBits bits) { return reinterpret_cast<Quad>(bits); }
static inline QuadBits to_bits(Quad x) { return reinterpret_cast<QuadBits>(x); }
static inline Lanes abs(Lanes x) {
    return each(x, x, [](Quad p, Quad) { return from_bits(to_bits(p) & 0x7FFFFFFFu); });
}
static inline LaneMask less(Lanes x, Lanes y) {
    return {x.a < y.a, x.b < y.b, x.c < y.c, x.d < y.d};
}
static inline LaneMask lane_range(int low, int high) {
    const auto in = [&](int32_t first) {
        const QuadInt i = {first, first + 1, first + 2, first + 3};
        return (i >= low) & (i < high);
    };
    return {in(0), in(4), in(8), in(12)};
}
static inline Lanes select(LaneMask m, Lanes x, Lanes y) {
    return {m.a ? x.a : y.a, m.b ? x.b : y.b, m.c ? x.c : y.c, m.d ? x.d : y.d};
}
static inline Lanes with_sign(Lanes x, Lanes sign) {
    return each(x, sign, [](Quad p, Quad s) {
        return from_bits((to_bits(p) & 0x7FFFFFFFu) | (to_bits(s) & 0x80000000u));
    });
}
struct Pairs {
    QuadBits a, b, c, d;
};
struct PairOfAll {
    Quad even, odd;
};
static inline QuadBits load_bits(const uint16_t* p) {
    QuadBits bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
}
static inline Pairs load_pairs(const uint16_t* p) {
    return {load_bits(p), load_bits(p + 8), load_bits(p + 16), load_bits(p + 24)};
}
static inline Quad even_values(QuadBits pairs) { return from_bits(pairs << 16); }
static inline Quad odd_values(QuadBits pairs) { return from_bits(pairs & 0xFFFF0000u); }
static inline PairOfAll broadcast_pair(const uint16_t* p) {
    uint32_t both;
    std::memcpy(&both, p, sizeof both);
    const QuadBits pairs = {both, both, both, both};
    return {even_values(pairs), odd_values(pairs)};
}
static inline Pairs only(Pairs x, bool odd) {
    const uint32_t mask = odd ? 0xFFFF0000u : 0xFFFFu;
    return {x.a & mask, x.b & mask, x.c & mask, x.d & mask};
}
static inline Quad dot_quad(PairOfAll x, QuadBits y, Quad sum) {
    sum = x.odd * odd_values(y) + sum;
    return x.even * even_values(y) + sum;
}
static inline Lanes dot(PairOfAll x, Pairs y, Lanes sum) {
    return {dot_quad(x, y.a, sum.a), dot_quad(x, y.b, sum.b), dot_quad(x, y.c, sum.c),
            dot_quad(x, y.d, sum.d)};
}
static inline Lanes dot(Pairs x, Pairs y, Lanes sum) {
    const auto of = [](QuadBits p) { return PairOfAll{even_values(p), odd_values(p)}; };
    return {dot_quad(of(x.a), y.a, sum.a), dot_quad(of(x.b), y.b, sum.b),
            dot_quad(of(x.c), y.c, sum.c), dot_quad(of(x.d), y.d, sum.d)};
}
static inline Quad store_bf16_quad(uint16_t* p, Quad x) {
    const QuadBits bits = to_bits(x);
    const QuadBits rounded = (bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16;
    for (int i = 0; i < 4; ++i) p[i] = static_cast<uint16_t>(rounded[i]);
    return from_bits(rounded << 16);
}
static inline Lanes store_bf16(uint16_t* p, Lanes x) {
    return {store_bf16_quad(p, x.a), store_bf16_quad(p + 4, x.b), store_bf16_quad(p + 8, x.c),
            store_bf16_quad(p + 12, x.d)};
}
static inline Lanes power_of_two(Lanes shifted) {
    return each(shifted, shifted, [](Quad p, Quad) {
        return from_bits((to_bits(p) << 23) + 0x3F800000u);
    });
}

#endif

static inline Lanes zero() { return broadcast(0.0f); }

// Fewer than 16 floats, the other lanes zero; and back, writing no more than `count`.
static inline Lanes load_some(const float* p, int64_t count) {
    float lanes[lane_count] = {};
    std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(float));
    return load(lanes);
}
static inline void store_some(float* p, Lanes a, int64_t count) {
    float lanes[lane_count];
    store(lanes, a);
    std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(float));
}

// The sum of 16 lanes as the tree (i + (i + 8)), + 4, + 2, + 1; and the largest lane.
#if defined(__AVX2__)
#if defined(__AVX512F__)
static inline __m256 low_half(Lanes a) { return _mm512_castps512_ps256(a.v); }
static inline __m256 high_half(Lanes a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
static inline __m256 low_half(Lanes a) { return a.a; }
static inline __m256 high_half(Lanes a) { return a.b; }
#endif
static inline float sum(Lanes a) {
    const __m256 eight = _mm256_add_ps(low_half(a), high_half(a));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float largest(Lanes a) {
    const __m256 eight = _mm256_max_ps(low_half(a), high_half(a));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
static inline float sum(Lanes a) {
    float lanes[lane_count];
    store(lanes, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
    return lanes[0];
}
static inline float largest(Lanes a) {
    float lanes[lane_count];
    store(lanes, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i)
            lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}
#endif

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
