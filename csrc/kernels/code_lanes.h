// Sixteen sums of 32-bit integers, and what enters them, for keys and values in codes: pairs of 16-bit
// integers, or fours of halves of bytes times bytes: signed ones (FourOfAll), or others (BytesOfAll).
// Integers are exact, so that all instruction sets have the same sums in whatever order.
//
// Sums of fours stand in FourSums while they are few, after which they go into IntLanes: no more than
// `few_fours` products of halves and of signed bytes that are not -128, or `few_bytes` of halves and
// bytes without a sign.
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
static inline Lanes to_float(IntLanes a) { return {_mm512_cvtepi32_ps(a.v)}; }
// 32 bytes as signed values.
static inline IntPairs signed_pairs(const uint8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
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
struct HalfFours {  // of each lane four
    __m512i v;
};
struct FourOfAll {  // four codes for all lanes
    __m512i v;
};
using FourSums = IntLanes;
constexpr int few_fours = 1 << 20, few_bytes = 1 << 20;

static inline FourSums few_zero() { return int_zero(); }

// The low and the high halves of 64 bytes.
static inline HalfFours low_fours(const uint8_t* p) {
    return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15))};
}
static inline HalfFours high_fours(const uint8_t* p) {
    return {_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), 4), _mm512_set1_epi8(15))};
}
static inline FourOfAll broadcast_four(const int8_t* p) {
    int32_t all;
    std::memcpy(&all, p, sizeof all);
    return {_mm512_set1_epi32(all)};
}
static inline IntLanes dot(FourOfAll a, HalfFours b, IntLanes sum) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(b.v), "v"(a.v));
    return sum;
}
struct BytesOfAll {
    __m512i v;
};
static inline BytesOfAll broadcast_bytes(const uint8_t* p) {
    int32_t all;
    std::memcpy(&all, p, sizeof all);
    return {_mm512_set1_epi32(all)};
}
static inline IntLanes dot(BytesOfAll a, HalfFours b, IntLanes sum) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
    return sum;
}
static inline IntLanes add_sums(IntLanes a, IntLanes b) { return {_mm512_add_epi32(a.v, b.v)}; }
// Rounds to the nearest integer (ties to even) and writes 16 bits, or 8, of each lane.
static inline void store_int16(int16_t* p, Lanes a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
static inline void store_uint8(uint8_t* p, Lanes a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
// The bf16 in the high and in the low halves of 16 words.
static inline Lanes high_halves(const uint8_t* p) {
    return {_mm512_castsi512_ps(
        _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
}
static inline Lanes low_halves(const uint8_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
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
static inline Lanes to_float(IntLanes x) {
    return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
static inline __m128i half_bytes(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
static inline IntPairs signed_pairs(const uint8_t* p) {
    return {_mm256_cvtepi8_epi16(half_bytes(p)), _mm256_cvtepi8_epi16(half_bytes(p + 16))};
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
static inline __m256i eight_words(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
struct HalfFours {
    __m256i a, b;
};
struct FourOfAll {
    __m256i v;
};
struct FourSums {  // of each lane two, of 16 bits
    __m256i a, b;
};
constexpr int few_fours = 8, few_bytes = 4;  // 8 * 2 * 15 * 127 and 4 * 2 * 15 * 255 fit

static inline FourSums few_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

static inline HalfFours low_fours(const uint8_t* p) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(eight_words(p), mask), _mm256_and_si256(eight_words(p + 32), mask)};
}
static inline HalfFours high_fours(const uint8_t* p) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(eight_words(p), 4), mask),
            _mm256_and_si256(_mm256_srli_epi16(eight_words(p + 32), 4), mask)};
}
static inline FourOfAll broadcast_four(const int8_t* p) {
    int32_t all;
    std::memcpy(&all, p, sizeof all);
    return {_mm256_set1_epi32(all)};
}
static inline FourSums dot(FourOfAll x, HalfFours y, FourSums sum) {
    return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(y.a, x.v)),
            _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(y.b, x.v))};
}
struct BytesOfAll {
    __m256i v;
};
static inline BytesOfAll broadcast_bytes(const uint8_t* p) {
    int32_t all;
    std::memcpy(&all, p, sizeof all);
    return {_mm256_set1_epi32(all)};
}
static inline FourSums dot(BytesOfAll x, HalfFours y, FourSums sum) {
    return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(x.v, y.a)),
            _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(x.v, y.b))};
}
static inline IntLanes add_sums(IntLanes x, FourSums y) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(x.a, _mm256_madd_epi16(y.a, ones)),
            _mm256_add_epi32(x.b, _mm256_madd_epi16(y.b, ones))};
}
static inline IntLanes add_sums(IntLanes x, IntLanes y) {
    return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
static inline __m256i sixteen_words(Lanes x) {
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    return _mm256_permute4x64_epi64(packed, 0xD8);
}
static inline void store_int16(int16_t* p, Lanes x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sixteen_words(x));
}
static inline void store_uint8(uint8_t* p, Lanes x) {
    const __m256i words = sixteen_words(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi16(_mm256_castsi256_si128(words),
                                      _mm256_extracti128_si256(words, 1)));
}
static inline Lanes high_halves(const uint8_t* p) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(eight_words(p), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(eight_words(p + 32), mask))};
}
static inline Lanes low_halves(const uint8_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(eight_words(p), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(eight_words(p + 32), 16))};
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
static inline Lanes to_float(IntLanes x) {
    const auto wide = [&](int i) { return __builtin_convertvector(x.v[i], Quad); };
    return {wide(0), wide(1), wide(2), wide(3)};
}
static inline IntPairs signed_pairs(const uint8_t* p) {
    IntPairs pairs;
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            pairs.even[i][j] = static_cast<int8_t>(p[8 * i + 2 * j]);
            pairs.odd[i][j] = static_cast<int8_t>(p[8 * i + 2 * j + 1]);
        }
    return pairs;
}
static inline IntPairOfAll broadcast_int_pair(const int16_t* p) { return {p[0], p[1]}; }
static inline IntLanes dot(IntPairOfAll x, IntPairs y, IntLanes sum) {
    for (int i = 0; i < 4; ++i) sum.v[i] += y.even[i] * x.even + y.odd[i] * x.odd;
    return sum;
}
struct HalfFours {
    QuadInt at[4][4];  // of each of the four
};
struct FourOfAll {
    int32_t at[4];
};
using FourSums = IntLanes;
constexpr int few_fours = 1 << 20, few_bytes = 1 << 20;

static inline FourSums few_zero() { return int_zero(); }

template <class F>
static inline HalfFours fours_of(const uint8_t* p, F value) {
    HalfFours fours;
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j)
            for (int n = 0; n < 4; ++n) fours.at[n][i][j] = value(p[16 * i + 4 * j + n]);
    return fours;
}
static inline HalfFours low_fours(const uint8_t* p) {
    return fours_of(p, [](uint8_t byte) { return byte & 15; });
}
static inline HalfFours high_fours(const uint8_t* p) {
    return fours_of(p, [](uint8_t byte) { return byte >> 4; });
}
static inline FourOfAll broadcast_four(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
using BytesOfAll = FourOfAll;
static inline BytesOfAll broadcast_bytes(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
static inline IntLanes dot(FourOfAll x, HalfFours y, IntLanes sum) {
    for (int n = 0; n < 4; ++n)
        for (int i = 0; i < 4; ++i) sum.v[i] += y.at[n][i] * x.at[n];
    return sum;
}
static inline IntLanes add_sums(IntLanes x, IntLanes y) {
    for (int i = 0; i < 4; ++i) x.v[i] += y.v[i];
    return x;
}
template <class T>
static inline void store_codes(T* p, Lanes x) {
    float lanes[lane_count];
    store(lanes, x);
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    for (int i = 0; i < lane_count; ++i) {
        const float shifted = lanes[i] + 0x1.8p23f;
        int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        p[i] = static_cast<T>(bits - 0x4B400000);
    }
}
static inline void store_int16(int16_t* p, Lanes x) { store_codes(p, x); }
static inline void store_uint8(uint8_t* p, Lanes x) { store_codes(p, x); }
template <class F>
static inline Lanes halves_of(const uint8_t* p, F bits_of) {
    uint32_t words[lane_count];
    std::memcpy(words, p, sizeof words);
    for (uint32_t& word : words) word = bits_of(word);
    float lanes[lane_count];
    std::memcpy(lanes, words, sizeof lanes);
    return load(lanes);
}
static inline Lanes high_halves(const uint8_t* p) {
    return halves_of(p, [](uint32_t word) { return word & 0xFFFF0000u; });
}
static inline Lanes low_halves(const uint8_t* p) {
    return halves_of(p, [](uint32_t word) { return word << 16; });
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
