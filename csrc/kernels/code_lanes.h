// Sixteen sums of 32-bit integers, and pairs of 16-bit ones that enter them: for keys and values in
// codes. Integers are exact, so that all instruction sets have the same sums in whatever order.
// Included inside the namespace of one instruction set, as lanes.h.
#pragma once

#include "kernels/lanes.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

#if defined(__AVX512F__)

struct IntLanes {
    __m512i v;
};
struct IntPairs {  // of each lane two
    __m512i v;
};
struct IntPairOfAll {  // one pair for all lanes
    __m512i v;
};

static inline IntLanes int_zero() { return {_mm512_setzero_si512()}; }
static inline IntLanes int_lanes(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline IntLanes twice_less(IntLanes a, IntLanes b) {
    return {_mm512_sub_epi32(_mm512_add_epi32(a.v, a.v), b.v)};
}
static inline Lanes to_float(IntLanes a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline __m512i wide_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// 32 bytes as signed values; and the low and the high halves of 32 bytes.
static inline IntPairs signed_pairs(const uint8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline IntPairs low_pairs(const uint8_t* p) {
    return {_mm512_and_si512(wide_bytes(p), _mm512_set1_epi16(15))};
}
static inline IntPairs high_pairs(const uint8_t* p) {
    return {_mm512_srli_epi16(wide_bytes(p), 4)};
}
static inline IntPairOfAll broadcast_int_pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    return {_mm512_set1_epi32(both)};
}
// Written as assembly for the reason that simd_avx512.h gives.
static inline IntLanes dot(IntPairOfAll a, IntPairs b, IntLanes sum) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
    return sum;
}
// Rounds to the nearest integer (ties to even) and writes 16 bits of each lane.
static inline void store_int16(int16_t* p, Lanes a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
// The largest of 64 values without a sign, by their bits: NaN is above all, whatever its sign.
static inline float largest_of(const Lanes* s) {
    const auto bits = [&](int i) { return _mm512_castps_si512(s[i].v); };
    const __m512i most = _mm512_max_epu32(_mm512_max_epu32(bits(0), bits(1)),
                                          _mm512_max_epu32(bits(2), bits(3)));
    const uint32_t found = _mm512_reduce_max_epu32(most);
    float value;
    std::memcpy(&value, &found, sizeof value);
    return value;
}

#elif defined(__AVX2__)

struct IntLanes {
    __m256i a, b;
};
struct IntPairs {
    __m256i a, b;
};
struct IntPairOfAll {
    __m256i v;
};

static inline IntLanes int_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline IntLanes int_lanes(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline IntLanes twice_less(IntLanes x, IntLanes y) {
    return {_mm256_sub_epi32(_mm256_add_epi32(x.a, x.a), y.a),
            _mm256_sub_epi32(_mm256_add_epi32(x.b, x.b), y.b)};
}
static inline Lanes to_float(IntLanes x) {
    return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
static inline __m128i half_bytes(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
static inline IntPairs signed_pairs(const uint8_t* p) {
    return {_mm256_cvtepi8_epi16(half_bytes(p)), _mm256_cvtepi8_epi16(half_bytes(p + 16))};
}
static inline IntPairs low_pairs(const uint8_t* p) {
    const __m256i mask = _mm256_set1_epi16(15);
    return {_mm256_and_si256(_mm256_cvtepu8_epi16(half_bytes(p)), mask),
            _mm256_and_si256(_mm256_cvtepu8_epi16(half_bytes(p + 16)), mask)};
}
static inline IntPairs high_pairs(const uint8_t* p) {
    return {_mm256_srli_epi16(_mm256_cvtepu8_epi16(half_bytes(p)), 4),
            _mm256_srli_epi16(_mm256_cvtepu8_epi16(half_bytes(p + 16)), 4)};
}
static inline IntPairOfAll broadcast_int_pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    return {_mm256_set1_epi32(both)};
}
static inline IntLanes dot(IntPairOfAll x, IntPairs y, IntLanes sum) {
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(x.v, y.a)),
            _mm256_add_epi32(sum.b, _mm256_madd_epi16(x.v, y.b))};
}
static inline void store_int16(int16_t* p, Lanes x) {
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
static inline float largest_of(const Lanes* s) {
    const auto both = [&](int i) {
        return _mm256_max_epu32(_mm256_castps_si256(s[i].a), _mm256_castps_si256(s[i].b));
    };
    const __m256i eight = _mm256_max_epu32(_mm256_max_epu32(both(0), both(1)),
                                           _mm256_max_epu32(both(2), both(3)));
    const __m128i four =
        _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4E));
    const int32_t found = _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32(two, 0xB1)));
    float value;
    std::memcpy(&value, &found, sizeof value);
    return value;
}

#else

struct IntLanes {
    QuadInt v[4];
};
struct IntPairs {
    QuadInt even[4], odd[4];
};
struct IntPairOfAll {
    int32_t even, odd;
};

static inline IntLanes int_zero() { return {}; }
static inline IntLanes int_lanes(int32_t x) {
    const QuadInt q = {x, x, x, x};
    return {{q, q, q, q}};
}
static inline IntLanes twice_less(IntLanes x, IntLanes y) {
    IntLanes z;
    for (int i = 0; i < 4; ++i) z.v[i] = x.v[i] + x.v[i] - y.v[i];
    return z;
}
static inline Lanes to_float(IntLanes x) {
    const auto wide = [&](int i) { return __builtin_convertvector(x.v[i], Quad); };
    return {wide(0), wide(1), wide(2), wide(3)};
}
// The pairs of 16 lanes, from 32 bytes.
template <class F>
static inline IntPairs pairs_of(const uint8_t* p, F value) {
    IntPairs pairs;
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            pairs.even[i][j] = value(p[8 * i + 2 * j]);
            pairs.odd[i][j] = value(p[8 * i + 2 * j + 1]);
        }
    return pairs;
}
static inline IntPairs signed_pairs(const uint8_t* p) {
    return pairs_of(p, [](uint8_t byte) { return static_cast<int8_t>(byte); });
}
static inline IntPairs low_pairs(const uint8_t* p) {
    return pairs_of(p, [](uint8_t byte) { return byte & 15; });
}
static inline IntPairs high_pairs(const uint8_t* p) {
    return pairs_of(p, [](uint8_t byte) { return byte >> 4; });
}
static inline IntPairOfAll broadcast_int_pair(const int16_t* p) { return {p[0], p[1]}; }
static inline IntLanes dot(IntPairOfAll x, IntPairs y, IntLanes sum) {
    for (int i = 0; i < 4; ++i) sum.v[i] += y.even[i] * x.even + y.odd[i] * x.odd;
    return sum;
}
static inline void store_int16(int16_t* p, Lanes x) {
    float lanes[lane_count];
    store(lanes, x);
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    for (int i = 0; i < lane_count; ++i) {
        const float shifted = lanes[i] + 0x1.8p23f;
        int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        p[i] = static_cast<int16_t>(bits - 0x4B400000);
    }
}
static inline float largest_of(const Lanes* s) {
    uint32_t most = 0;
    for (int i = 0; i < 4; ++i) {
        uint32_t bits[lane_count];
        std::memcpy(bits, &s[i], sizeof bits);
        for (int lane = 0; lane < lane_count; ++lane) most = bits[lane] > most ? bits[lane] : most;
    }
    float value;
    std::memcpy(&value, &most, sizeof value);
    return value;
}

#endif

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
