// 16 lanes as two AVX2 registers. The vocabulary is explained in simd_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace ockham::OCKHAM_ISA_NAMESPACE {

#define OCKHAM_INLINE static inline __attribute__((always_inline))

struct F {
    __m256 a, b;
};
struct I {
    __m256i a, b;
};

OCKHAM_INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
OCKHAM_INLINE F broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
OCKHAM_INLINE F load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
OCKHAM_INLINE F load(const float* from, int64_t lanes) {
    alignas(32) float all[16] = {};
    std::memcpy(all, from, sizeof(float) * lanes);
    return load(all);
}
OCKHAM_INLINE void store(float* to, F value) {
    _mm256_storeu_ps(to, value.a);
    _mm256_storeu_ps(to + 8, value.b);
}
OCKHAM_INLINE void store(float* to, F value, int64_t lanes) {
    alignas(32) float all[16];
    store(all, value);
    std::memcpy(to, all, sizeof(float) * lanes);
}
OCKHAM_INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
OCKHAM_INLINE F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
OCKHAM_INLINE F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
OCKHAM_INLINE F fma(F x, F y, F z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
OCKHAM_INLINE F from_half(const uint16_t* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
OCKHAM_INLINE uint16_t to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
OCKHAM_INLINE float half_value(uint16_t half) { return _cvtsh_ss(half); }

OCKHAM_INLINE I int_broadcast(int32_t value) {
    return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
}
OCKHAM_INLINE I int_add(I x, I y) {
    return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
OCKHAM_INLINE I int_min(I x, I y) {
    return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)};
}
OCKHAM_INLINE I int_max(I x, I y) {
    return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}
OCKHAM_INLINE F as_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
OCKHAM_INLINE I as_int(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
OCKHAM_INLINE I abs_bits(F x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    const I bits = as_int(x);
    return {_mm256_and_si256(bits.a, mask), _mm256_and_si256(bits.b, mask)};
}
OCKHAM_INLINE int32_t lanes_max(I x) {
    alignas(32) int32_t all[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(all), _mm256_max_epi32(x.a, x.b));
    int32_t most = all[0];
    for (int i = 1; i < 8; ++i) most = all[i] > most ? all[i] : most;
    return most;
}
OCKHAM_INLINE int32_t lanes_sum(I x) {
    alignas(32) int32_t all[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(all), _mm256_add_epi32(x.a, x.b));
    uint32_t sum = 0;  // sums wrap
    for (int i = 0; i < 8; ++i) sum += static_cast<uint32_t>(all[i]);
    return static_cast<int32_t>(sum);
}
OCKHAM_INLINE F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
OCKHAM_INLINE I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
OCKHAM_INLINE __m256i join_16(I x) {  // 16 lanes of 32 bits to 16 of 16, in order
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xd8);
}
OCKHAM_INLINE void store_int8(int8_t* to, I value) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(value.a, value.b), 0xd8);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(to),
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
OCKHAM_INLINE __m256i bf16_bits(__m256i bits) {
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
OCKHAM_INLINE void store_bf16(uint16_t* to, F value) {
    const I bits = as_int(value);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), join_16({bf16_bits(bits.a), bf16_bits(bits.b)}));
}

template <int HALF>
OCKHAM_INLINE __m256 butterfly(__m256 x) {
    const __m256 other = HALF == 1   ? _mm256_permute_ps(x, 0xb1)
                         : HALF == 2 ? _mm256_permute_ps(x, 0x4e)
                                     : _mm256_permute2f128_ps(x, x, 1);
    constexpr int lanes = HALF == 1 ? 0xaa : HALF == 2 ? 0xcc : 0xf0;
    return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), lanes);
}
template <int HALF>
OCKHAM_INLINE F butterfly(F x) {
    if constexpr (HALF == 8)
        return {_mm256_add_ps(x.a, x.b), _mm256_sub_ps(x.a, x.b)};
    else
        return {butterfly<HALF>(x.a), butterfly<HALF>(x.b)};
}

// bf16 pairs, widened: a bf16 is the high half of a float.
struct PairWeights {
    F even, odd;
};
struct Pair {
    __m256 even, odd;
};
OCKHAM_INLINE __m256i byte_row(const uint8_t* from, int half) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + half);
}
OCKHAM_INLINE __m256 even_bf16(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}
OCKHAM_INLINE __m256 odd_bf16(__m256i pairs) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}
OCKHAM_INLINE PairWeights pair_weights(const uint8_t* from) {
    const __m256i a = byte_row(from, 0), b = byte_row(from, 1);
    return {{even_bf16(a), even_bf16(b)}, {odd_bf16(a), odd_bf16(b)}};
}
OCKHAM_INLINE __m256i four_bytes(const uint8_t* from) {
    int32_t bits;
    std::memcpy(&bits, from, 4);
    return _mm256_set1_epi32(bits);
}
OCKHAM_INLINE Pair pair(const uint8_t* from) {
    const __m256i bits = four_bytes(from);
    return {even_bf16(bits), odd_bf16(bits)};
}
OCKHAM_INLINE F dot(F sum, PairWeights weights, Pair x) {
    sum = fma(weights.odd, {x.odd, x.odd}, sum);
    return fma(weights.even, {x.even, x.even}, sum);
}

// Quads of bytes. vpmaddubsw would saturate at 255 * 127 * 2, so bytes are widened to 16 bits: those
// at even and at odd places, each pair of which vpmaddwd multiplies and adds in 32 bits.
struct QuadWeights {
    I even, odd;
};
struct Quad {
    __m256i even, odd;
};
OCKHAM_INLINE QuadWeights quad_weights(const uint8_t* from) {
    const __m256i a = byte_row(from, 0), b = byte_row(from, 1);
    const __m256i low = _mm256_set1_epi16(0x00ff);
    return {{_mm256_and_si256(a, low), _mm256_and_si256(b, low)},
            {_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)}};
}
OCKHAM_INLINE Quad quad(const uint8_t* from) {
    const __m256i bytes = four_bytes(from);
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}
OCKHAM_INLINE I dot_quad(I sum, QuadWeights weights, Quad x) {
    sum.a = _mm256_add_epi32(sum.a, _mm256_add_epi32(_mm256_madd_epi16(weights.even.a, x.even),
                                                     _mm256_madd_epi16(weights.odd.a, x.odd)));
    sum.b = _mm256_add_epi32(sum.b, _mm256_add_epi32(_mm256_madd_epi16(weights.even.b, x.even),
                                                     _mm256_madd_epi16(weights.odd.b, x.odd)));
    return sum;
}

// Quads of 4-bit codes. Here vpmaddubsw cannot saturate, nor can eight of its sums in 16 bits:
// 15 * 128 * 2 * 8 = 30720. A CodeSum holds at most eight.
using Codes = I;
using CodeQuad = __m256i;
using CodeSum = I;
OCKHAM_INLINE void codes(const uint8_t* from, Codes& low, Codes& high) {
    const __m256i a = byte_row(from, 0), b = byte_row(from, 1);
    const __m256i mask = _mm256_set1_epi8(0x0f);
    low = {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)};
    high = {_mm256_and_si256(_mm256_srli_epi16(a, 4), mask),
            _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)};
}
OCKHAM_INLINE CodeQuad code_quad(const uint8_t* from) { return four_bytes(from); }
OCKHAM_INLINE CodeSum code_sum_start(I) { return int_broadcast(0); }
OCKHAM_INLINE CodeSum dot_codes(CodeSum sum, Codes weights, CodeQuad x) {
    return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(weights.a, x)),
            _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(weights.b, x))};
}
OCKHAM_INLINE I code_sum_finish(I sum, CodeSum part) {
    const __m256i ones = _mm256_set1_epi16(1);
    return int_add(sum, {_mm256_madd_epi16(part.a, ones), _mm256_madd_epi16(part.b, ones)});
}
OCKHAM_INLINE I zero_points_times(const uint8_t* zeros, int32_t factor) {
    const __m128i* narrow = reinterpret_cast<const __m128i*>(zeros);
    const __m128i all = _mm_loadu_si128(narrow);
    const __m256i by = _mm256_set1_epi32(factor & 0xffff);
    return {_mm256_madd_epi16(_mm256_cvtepu8_epi32(all), by),
            _mm256_madd_epi16(_mm256_cvtepu8_epi32(_mm_srli_si128(all, 8)), by)};
}

OCKHAM_INLINE void prefetch(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
}
OCKHAM_INLINE void prefetch_far(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);
}

// How large a block of each format the registers hold, and up to which rows it waits for memory.
struct Fp32Block {
    static constexpr int rows = 6, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};
struct Bf16Block {
    static constexpr int rows = 4, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};
struct QuadBlock {
    static constexpr int rows = 4, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};
struct CodeBlock {
    static constexpr int rows = 4, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
