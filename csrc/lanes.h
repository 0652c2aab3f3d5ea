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

#if defined(__AVX512F__)

struct Lanes {
    __m512 v;
};
struct LaneMask {
    __mmask16 v;
};

static inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
static inline Lanes load_bf16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
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
static inline __m256 widen_bf16(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
static inline Lanes load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
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
static inline Quad widen_bf16(const uint16_t* p) {
    const QuadBits bits = {uint32_t{p[0]} << 16, uint32_t{p[1]} << 16, uint32_t{p[2]} << 16,
                           uint32_t{p[3]} << 16};
    return reinterpret_cast<Quad>(bits);
}
static inline Lanes load_bf16(const uint16_t* p) {
    return {widen_bf16(p), widen_bf16(p + 4), widen_bf16(p + 8), widen_bf16(p + 12)};
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
