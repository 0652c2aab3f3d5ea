// 16 lanes as one AVX-512 register. The vocabulary is explained in simd_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace ockham::OCKHAM_ISA_NAMESPACE {

#define OCKHAM_INLINE static inline __attribute__((always_inline))

using F = __m512;
using I = __m512i;

OCKHAM_INLINE __mmask16 first_lanes(int64_t lanes) {
    return static_cast<__mmask16>((1u << lanes) - 1);
}

OCKHAM_INLINE F zero() { return _mm512_setzero_ps(); }
OCKHAM_INLINE F broadcast(float value) { return _mm512_set1_ps(value); }
OCKHAM_INLINE F load(const float* from) { return _mm512_loadu_ps(from); }
OCKHAM_INLINE F load(const float* from, int64_t lanes) {
    return _mm512_maskz_loadu_ps(first_lanes(lanes), from);
}
OCKHAM_INLINE void store(float* to, F value) { _mm512_storeu_ps(to, value); }
OCKHAM_INLINE void store(float* to, F value, int64_t lanes) {
    _mm512_mask_storeu_ps(to, first_lanes(lanes), value);
}
OCKHAM_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
OCKHAM_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
template <int HALF>
OCKHAM_INLINE F butterfly(F x) {
    const F other = HALF == 1   ? _mm512_permute_ps(x, 0xb1)
                    : HALF == 2 ? _mm512_permute_ps(x, 0x4e)
                    : HALF == 4 ? _mm512_shuffle_f32x4(x, x, 0xb1)
                                : _mm512_shuffle_f32x4(x, x, 0x4e);
    constexpr int lanes = HALF == 1 ? 0xaaaa : HALF == 2 ? 0xcccc : HALF == 4 ? 0xf0f0 : 0xff00;
    return _mm512_mask_sub_ps(_mm512_add_ps(x, other), lanes, other, x);
}
OCKHAM_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
OCKHAM_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
OCKHAM_INLINE F from_half(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
OCKHAM_INLINE uint16_t to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
OCKHAM_INLINE float half_value(uint16_t half) { return _cvtsh_ss(half); }

OCKHAM_INLINE I int_broadcast(int32_t value) { return _mm512_set1_epi32(value); }
OCKHAM_INLINE I int_add(I a, I b) { return _mm512_add_epi32(a, b); }
OCKHAM_INLINE I int_min(I a, I b) { return _mm512_min_epi32(a, b); }
OCKHAM_INLINE I int_max(I a, I b) { return _mm512_max_epi32(a, b); }
OCKHAM_INLINE I abs_bits(F a) {
    return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
}
OCKHAM_INLINE int32_t lanes_max(I a) { return _mm512_reduce_max_epi32(a); }
OCKHAM_INLINE int32_t lanes_sum(I a) { return _mm512_reduce_add_epi32(a); }
OCKHAM_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
OCKHAM_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }
OCKHAM_INLINE F as_float(I a) { return _mm512_castsi512_ps(a); }
OCKHAM_INLINE I as_int(F a) { return _mm512_castps_si512(a); }
OCKHAM_INLINE void store_int8(int8_t* to, I value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(value));
}
OCKHAM_INLINE void store_bf16(uint16_t* to, F value) {
    const I bits = as_int(value);
    const I even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    I rounded = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmpgt_epi32_mask(abs_bits(value), _mm512_set1_epi32(0x7f800000));
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x00400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

// bf16 pairs
using PairWeights = __m512i;
using Pair = __m512i;
OCKHAM_INLINE PairWeights pair_weights(const uint8_t* from) { return _mm512_loadu_si512(from); }
OCKHAM_INLINE Pair pair(const uint8_t* from) {
    int32_t bits;
    std::memcpy(&bits, from, 4);
    return _mm512_set1_epi32(bits);
}
OCKHAM_INLINE F dot(F sum, PairWeights weights, Pair x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(x));
}

// Quads of bytes
using QuadWeights = __m512i;
using Quad = __m512i;
OCKHAM_INLINE QuadWeights quad_weights(const uint8_t* from) { return _mm512_loadu_si512(from); }
OCKHAM_INLINE Quad quad(const uint8_t* from) { return pair(from); }
// Written as assembly because GCC 12 copies the sums of large blocks from register to register around
// its own intrinsic.
OCKHAM_INLINE I dot_quad(I sum, QuadWeights weights, Quad x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
    return sum;
}

// Quads of 4-bit codes
using Codes = __m512i;
using CodeQuad = __m512i;
using CodeSum = __m512i;
OCKHAM_INLINE void codes(const uint8_t* from, Codes& low, Codes& high) {
    const __m512i both = _mm512_loadu_si512(from);
    const __m512i mask = _mm512_set1_epi8(0x0f);
    low = _mm512_and_si512(both, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}
OCKHAM_INLINE CodeQuad code_quad(const uint8_t* from) { return pair(from); }
OCKHAM_INLINE CodeSum code_sum_start(I sum) { return sum; }
OCKHAM_INLINE CodeSum dot_codes(CodeSum sum, Codes weights, CodeQuad x) {
    return dot_quad(sum, weights, x);
}
OCKHAM_INLINE I code_sum_finish(I, CodeSum part) { return part; }
OCKHAM_INLINE I zero_points_times(const uint8_t* zeros, int32_t factor) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
    return _mm512_madd_epi16(_mm512_cvtepu8_epi32(narrow), _mm512_set1_epi32(factor & 0xffff));
}

// To the first-level cache, and to the second.
OCKHAM_INLINE void prefetch(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
}
OCKHAM_INLINE void prefetch_far(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);
}

// How large a block of each format the registers hold: most rows, and the panels (one or two) that so
// many rows of them take. Two panels share the loads of the rows' values; a single one is read as one
// stream from memory, which is faster where rows are so few that they wait for it, up to
// `waiting_rows`. (Chosen by measurement on Zen 4.)
struct Fp32Block {
    static constexpr int rows = 8, waiting_rows = 4;
    static constexpr int panels(int64_t rows) { return rows <= 2 ? 1 : 2; }
};
struct Bf16Block : Fp32Block {};
struct QuadBlock {
    static constexpr int rows = 12, waiting_rows = 4;
    static constexpr int panels(int64_t rows) { return rows <= 4 ? 1 : 2; }
};
struct CodeBlock {
    static constexpr int rows = 8, waiting_rows = 3;
    static constexpr int panels(int64_t rows) { return rows <= 4 ? 1 : 2; }
};

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
