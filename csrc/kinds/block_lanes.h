// What the products of block_kernels.h need beside the vocabulary of simd_portable.h:
//
//   plane_codes<AT, WIDTH>(plane)       codes of WIDTH bits, which stand from bit AT on in the bytes of a
//                                       plane (16 lanes of four bytes)
//   with_high<AT, WIDTH, TO>(codes, plane)  codes with such bits more, from their bit TO on
//   byte_codes(plane)                   the bytes of a plane as codes
//   looked_up(table, codes)             what stands for codes below 16 in a table of 16 bytes
//   code_sum_quads(top)                 the quads of codes up to `top` that a CodeSum may take; 0: none,
//                                       they are multiplied as Wide<top>
//   Wide<top>                           of(codes), values(x), dot(sum, codes, values): as Codes, CodeQuad and
//                                       dot_codes, with sums in 32 bits
//   PartScale                           16 factors for CodeSums: unsigned_scale(bytes), signed_scale(bytes)
//   scaled_start(total, offset, scale)  a CodeSum to begin with, so that in the end scale * offset is added
//   add_scaled(total, part, scale)      total + scale * part
//   add_wide(total, sum, scale)         the same of a sum in 32 bits
//   from_exponents(bytes)               16 times 2^(byte - 128)
//   from_small(bytes)                   16 times half of a float of 8 bits (E4M3: fp16's bits without the
//                                       lowest seven, 2^8 times as large)
//   divided(a, b)                       a / b
//   byte_pairs(bytes)                   16 lanes of two unsigned bytes
//   dot_pairs(sum, pairs, x)            sum + the lane's two times the two int16 in x
#pragma once

#include <cstdint>
#include <cstring>

namespace ockham::OCKHAM_ISA_NAMESPACE {

#if defined(__AVX512F__)

// What stands from bit AT on, from bit TO on.
template <int AT, int TO>
OCKHAM_INLINE __m512i moved_bits(const uint8_t* plane) {
    const __m512i bits = _mm512_loadu_si512(plane);
    return AT < TO ? _mm512_slli_epi16(bits, AT < TO ? TO - AT : 0)
                   : _mm512_srli_epi16(bits, AT < TO ? 0 : AT - TO);
}
template <int AT, int WIDTH>
OCKHAM_INLINE Codes plane_codes(const uint8_t* plane) {
    return _mm512_and_si512(moved_bits<AT, 0>(plane), _mm512_set1_epi8((1 << WIDTH) - 1));
}
template <int AT, int WIDTH, int TO>
OCKHAM_INLINE Codes with_high(Codes low, const uint8_t* plane) {
    const __m512i mask = _mm512_set1_epi8(((1 << WIDTH) - 1) << TO);
    return _mm512_ternarylogic_epi32(low, moved_bits<AT, TO>(plane), mask, 0xf8);  // low | (moved & mask)
}
OCKHAM_INLINE Codes byte_codes(const uint8_t* plane) { return _mm512_loadu_si512(plane); }
OCKHAM_INLINE Codes looked_up(const uint8_t* table, Codes codes) {
    const __m128i all = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(all), codes);
}
constexpr int code_sum_quads(int top) { return top < 64 ? 8 : 0; }
template <int>
struct Wide {
    using Weights = QuadWeights;
    OCKHAM_INLINE Weights of(Codes codes) { return codes; }
    OCKHAM_INLINE Quad values(const uint8_t* x) { return quad(x); }
    OCKHAM_INLINE I dot(I sum, Weights weights, Quad x) { return dot_quad(sum, weights, x); }
};
OCKHAM_INLINE F from_exponents(const uint8_t* from) {
    const __m512i e =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
    const __m512i subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    return as_float(_mm512_mask_mov_epi32(normal, _mm512_cmple_epi32_mask(e, one), subnormal));
}
using PartScale = __m512i;
OCKHAM_INLINE PartScale unsigned_scale(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
OCKHAM_INLINE PartScale signed_scale(const uint8_t* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
OCKHAM_INLINE CodeSum scaled_start(I&, int32_t offset, PartScale) { return int_broadcast(offset); }
OCKHAM_INLINE I add_scaled(I total, CodeSum part, PartScale scale) {
    return int_add(total, _mm512_mullo_epi32(part, scale));
}
OCKHAM_INLINE I add_wide(I total, I sum, PartScale scale) { return add_scaled(total, sum, scale); }
OCKHAM_INLINE I byte_pairs(const uint8_t* from) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
OCKHAM_INLINE I dot_pairs(I sum, I pairs, int32_t x) {
    return _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(x));
}
OCKHAM_INLINE F from_small(const uint8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m256i halves = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7);
    return mul(_mm512_cvtph_ps(halves), broadcast(128.0f));
}
OCKHAM_INLINE F divided(F a, F b) { return _mm512_div_ps(a, b); }

// As CodeBlock: most rows of a block, those up to which it waits for memory, and its panels.
struct FlatBlock {
    static constexpr int rows = 8, waiting_rows = 3;
    static constexpr int panels(int64_t rows) { return rows <= 4 ? 1 : 2; }
};
struct NestedBlock {
    static constexpr int rows = 8, waiting_rows = 3;
    static constexpr int panels(int64_t rows) { return rows <= 2 ? 1 : 2; }
};

#elif defined(__AVX2__)

// What stands from bit AT on, from bit TO on.
template <int AT, int WIDTH, int TO>
OCKHAM_INLINE __m256i moved_bits(const uint8_t* plane, int half) {
    const __m256i bits = byte_row(plane, half);
    const __m256i moved = AT < TO ? _mm256_slli_epi16(bits, AT < TO ? TO - AT : 0)
                                  : _mm256_srli_epi16(bits, AT < TO ? 0 : AT - TO);
    return _mm256_and_si256(moved, _mm256_set1_epi8(((1 << WIDTH) - 1) << TO));
}
template <int AT, int WIDTH>
OCKHAM_INLINE Codes plane_codes(const uint8_t* plane) {
    return {moved_bits<AT, WIDTH, 0>(plane, 0), moved_bits<AT, WIDTH, 0>(plane, 1)};
}
template <int AT, int WIDTH, int TO>
OCKHAM_INLINE Codes with_high(Codes low, const uint8_t* plane) {
    return {_mm256_or_si256(low.a, moved_bits<AT, WIDTH, TO>(plane, 0)),
            _mm256_or_si256(low.b, moved_bits<AT, WIDTH, TO>(plane, 1))};
}
OCKHAM_INLINE Codes byte_codes(const uint8_t* plane) { return {byte_row(plane, 0), byte_row(plane, 1)}; }
OCKHAM_INLINE Codes looked_up(const uint8_t* table, Codes codes) {
    const __m256i all =
        _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
    return {_mm256_shuffle_epi8(all, codes.a), _mm256_shuffle_epi8(all, codes.b)};
}
// A CodeSum counts in 16 bits: a quad adds at most 2 * 127 * top.
constexpr int code_sum_quads(int top) { return top < 16 ? 8 : top < 32 ? 4 : top < 64 ? 2 : 0; }
// A single quad of codes below 128 fits 16 bits; above, bytes are widened as in quad_weights().
template <int top, bool = (top < 128)>
struct Wide {
    using Weights = Codes;
    OCKHAM_INLINE Weights of(Codes codes) { return codes; }
    OCKHAM_INLINE CodeQuad values(const uint8_t* x) { return code_quad(x); }
    OCKHAM_INLINE I dot(I sum, const Weights& weights, CodeQuad x) {
        return code_sum_finish(
            sum, {_mm256_maddubs_epi16(weights.a, x), _mm256_maddubs_epi16(weights.b, x)});
    }
};
template <int top>
struct Wide<top, false> {
    using Weights = QuadWeights;
    OCKHAM_INLINE Weights of(Codes codes) {
        const __m256i low = _mm256_set1_epi16(0x00ff);
        return {{_mm256_and_si256(codes.a, low), _mm256_and_si256(codes.b, low)},
                {_mm256_srli_epi16(codes.a, 8), _mm256_srli_epi16(codes.b, 8)}};
    }
    OCKHAM_INLINE Quad values(const uint8_t* x) { return quad(x); }
    OCKHAM_INLINE I dot(I sum, const Weights& weights, Quad x) {
        return dot_quad(sum, weights, x);
    }
};
OCKHAM_INLINE __m256 from_exponents(__m256i e) {
    const __m256i one = _mm256_set1_epi32(1);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, one), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(subnormal, normal, _mm256_cmpgt_epi32(e, one)));
}
OCKHAM_INLINE F from_exponents(const uint8_t* from) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {from_exponents(_mm256_cvtepu8_epi32(all)),
            from_exponents(_mm256_cvtepu8_epi32(_mm_srli_si128(all, 8)))};
}
using PartScale = I;  // in both halves of each lane
OCKHAM_INLINE PartScale unsigned_scale(const uint8_t* from) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(all, all)),
            _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(all, all))};
}
OCKHAM_INLINE PartScale signed_scale(const uint8_t* from) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(all, all)),
            _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(all, all))};
}
OCKHAM_INLINE I add_scaled(I total, CodeSum part, PartScale scale) {
    return int_add(total, {_mm256_madd_epi16(part.a, scale.a), _mm256_madd_epi16(part.b, scale.b)});
}
OCKHAM_INLINE I add_wide(I total, I sum, PartScale scale) {
    return int_add(total, {_mm256_mullo_epi32(sum.a, _mm256_srai_epi32(scale.a, 16)),
                           _mm256_mullo_epi32(sum.b, _mm256_srai_epi32(scale.b, 16))});
}
OCKHAM_INLINE F from_small(const uint8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m256i halves = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7);
    const F values = {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                      _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
    return mul(values, broadcast(128.0f));
}
OCKHAM_INLINE F divided(F a, F b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
// `offset` is even, and half of it fits 16 bits.
OCKHAM_INLINE CodeSum scaled_start(I& total, int32_t offset, PartScale scale) {
    const __m256i halves = _mm256_set1_epi16(static_cast<int16_t>(offset / 2));
    total = add_scaled(total, {halves, halves}, scale);
    return int_broadcast(0);
}
OCKHAM_INLINE I byte_pairs(const uint8_t* from) {
    const __m128i* bytes = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtepu8_epi16(_mm_loadu_si128(bytes)),
            _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes + 1))};
}
OCKHAM_INLINE I dot_pairs(I sum, I pairs, int32_t x) {
    const __m256i wide = _mm256_set1_epi32(x);
    return int_add(sum, {_mm256_madd_epi16(pairs.a, wide), _mm256_madd_epi16(pairs.b, wide)});
}

struct FlatBlock {
    static constexpr int rows = 4, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};
struct NestedBlock {
    static constexpr int rows = 2, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};

#else

// Bytes at even and at odd places, as halves.
template <int AT, int WIDTH, int TO>
OCKHAM_INLINE Codes moved_bits(const uint8_t* plane) {
    constexpr uint32_t mask = ((1u << WIDTH) - 1) * 0x00010001u;
    U bits;
    std::memcpy(&bits, plane, sizeof bits);
    return {(S)(((bits >> AT) & mask) << TO), (S)(((bits >> (8 + AT)) & mask) << TO)};
}
template <int AT, int WIDTH>
OCKHAM_INLINE Codes plane_codes(const uint8_t* plane) { return moved_bits<AT, WIDTH, 0>(plane); }
template <int AT, int WIDTH, int TO>
OCKHAM_INLINE Codes with_high(Codes low, const uint8_t* plane) {
    const Codes high = moved_bits<AT, WIDTH, TO>(plane);
    return {low.even | high.even, low.odd | high.odd};
}
OCKHAM_INLINE Codes byte_codes(const uint8_t* plane) { return quad_weights(plane); }
OCKHAM_INLINE Codes looked_up(const uint8_t* table, Codes codes) {
    for (int i = 0; i < 32; ++i) {
        codes.even[i] = table[codes.even[i]];
        codes.odd[i] = table[codes.odd[i]];
    }
    return codes;
}
constexpr int code_sum_quads(int top) { return top < 16 ? 8 : top < 32 ? 4 : top < 64 ? 2 : 0; }
template <int>
struct Wide {
    using Weights = QuadWeights;
    OCKHAM_INLINE Weights of(Codes codes) { return codes; }
    OCKHAM_INLINE Quad values(const uint8_t* x) { return quad(x); }
    OCKHAM_INLINE I dot(I sum, const Weights& weights, const Quad& x) {
        return dot_quad(sum, weights, x);
    }
};
OCKHAM_INLINE F from_exponents(const uint8_t* from) {
    U bits{};
    for (int i = 0; i < 16; ++i)
        bits[i] = from[i] < 2 ? 0x00200000u << from[i] : static_cast<uint32_t>(from[i] - 1) << 23;
    return (F)bits;
}
using PartScale = I;
OCKHAM_INLINE PartScale unsigned_scale(const uint8_t* from) {
    I wide{};
    for (int i = 0; i < 16; ++i) wide[i] = from[i];
    return wide;
}
OCKHAM_INLINE PartScale signed_scale(const uint8_t* from) {
    I wide{};
    for (int i = 0; i < 16; ++i) wide[i] = static_cast<int8_t>(from[i]);
    return wide;
}
OCKHAM_INLINE I add_scaled(I total, CodeSum part, PartScale scale) {
    return int_add(total, add_halves(I{}, part) * scale);
}
OCKHAM_INLINE I add_wide(I total, I sum, PartScale scale) { return int_add(total, sum * scale); }
OCKHAM_INLINE F from_small(const uint8_t* from) {
    uint16_t halves[16];
    for (int i = 0; i < 16; ++i) halves[i] = static_cast<uint16_t>(from[i] << 7);
    return mul(from_half(halves), broadcast(128.0f));
}
OCKHAM_INLINE F divided(F a, F b) { return a / b; }
OCKHAM_INLINE CodeSum scaled_start(I& total, int32_t offset, PartScale scale) {
    total = int_add(total, int_broadcast(offset) * scale);
    return S{};
}
OCKHAM_INLINE I byte_pairs(const uint8_t* from) {
    I pairs{};
    for (int i = 0; i < 16; ++i) pairs[i] = from[2 * i] | from[2 * i + 1] << 16;
    return pairs;
}
OCKHAM_INLINE I dot_pairs(I sum, I pairs, int32_t x) {
    const I low = (pairs & 0xffff) * static_cast<int32_t>(static_cast<int16_t>(x));
    return int_add(sum, int_add(low, (pairs >> 16) * (x >> 16)));
}

struct FlatBlock {
    static constexpr int rows = 2, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};
struct NestedBlock {
    static constexpr int rows = 2, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};

#endif

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
