// What the products of block_kernels.h need beside the vocabulary of simd_portable.h:
//
//   with_high<AT, WIDTH>(codes, plane)  4-bit codes with WIDTH more bits, which stand from bit AT on in the
//                                       bytes of a plane (16 lanes of four bytes)
//   code_sum_quads(bits)                the quads of such codes that a CodeSum may take
//   PartScale                           16 factors for CodeSums: unsigned_scale(bytes), signed_scale(bytes)
//   scaled_start(total, offset, scale)  a CodeSum to begin with, so that in the end scale * offset is added
//   add_scaled(total, part, scale)      total + scale * part
//   byte_pairs(bytes)                   16 lanes of two unsigned bytes
//   dot_pairs(sum, pairs, x)            sum + the lane's two times the two int16 in x
#pragma once

#include <cstdint>
#include <cstring>

namespace ockham::OCKHAM_ISA_NAMESPACE {

#if defined(__AVX512F__)

template <int AT, int WIDTH>
OCKHAM_INLINE Codes with_high(Codes low, const uint8_t* plane) {
    const __m512i bits = _mm512_loadu_si512(plane);
    const __m512i moved = AT < 4 ? _mm512_slli_epi16(bits, AT < 4 ? 4 - AT : 0)
                                 : _mm512_srli_epi16(bits, AT < 4 ? 0 : AT - 4);
    const __m512i mask = _mm512_set1_epi8(((1 << WIDTH) - 1) << 4);
    return _mm512_ternarylogic_epi32(low, moved, mask, 0xf8);  // low | (moved & mask)
}
constexpr int code_sum_quads(int) { return 8; }
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
OCKHAM_INLINE I byte_pairs(const uint8_t* from) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
OCKHAM_INLINE I dot_pairs(I sum, I pairs, int32_t x) {
    return _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(x));
}

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

template <int AT, int WIDTH>
OCKHAM_INLINE __m256i high_bits(const uint8_t* plane, int half) {
    const __m256i bits = byte_row(plane, half);
    const __m256i moved = AT < 4 ? _mm256_slli_epi16(bits, AT < 4 ? 4 - AT : 0)
                                 : _mm256_srli_epi16(bits, AT < 4 ? 0 : AT - 4);
    return _mm256_and_si256(moved, _mm256_set1_epi8(((1 << WIDTH) - 1) << 4));
}
template <int AT, int WIDTH>
OCKHAM_INLINE Codes with_high(Codes low, const uint8_t* plane) {
    return {_mm256_or_si256(low.a, high_bits<AT, WIDTH>(plane, 0)),
            _mm256_or_si256(low.b, high_bits<AT, WIDTH>(plane, 1))};
}
// A CodeSum counts in 16 bits: a quad adds at most 2 * 127 * (2^bits - 1).
constexpr int code_sum_quads(int bits) { return bits == 4 ? 8 : bits == 5 ? 4 : 2; }
using PartScale = I;  // in both halves of each lane
OCKHAM_INLINE __m256i in_both_halves(__m256i wide) {
    return _mm256_or_si256(_mm256_slli_epi32(wide, 16),
                           _mm256_and_si256(wide, _mm256_set1_epi32(0xffff)));
}
OCKHAM_INLINE PartScale unsigned_scale(const uint8_t* from) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {in_both_halves(_mm256_cvtepu8_epi32(all)),
            in_both_halves(_mm256_cvtepu8_epi32(_mm_srli_si128(all, 8)))};
}
OCKHAM_INLINE PartScale signed_scale(const uint8_t* from) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {in_both_halves(_mm256_cvtepi8_epi32(all)),
            in_both_halves(_mm256_cvtepi8_epi32(_mm_srli_si128(all, 8)))};
}
OCKHAM_INLINE I add_scaled(I total, CodeSum part, PartScale scale) {
    return int_add(total, {_mm256_madd_epi16(part.a, scale.a), _mm256_madd_epi16(part.b, scale.b)});
}
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

template <int AT, int WIDTH>
OCKHAM_INLINE Codes with_high(Codes low, const uint8_t* plane) {
    constexpr uint32_t mask = ((1u << WIDTH) - 1) * 0x00010001u;
    U bits;
    std::memcpy(&bits, plane, sizeof bits);
    return {low.even | (S)(((bits >> AT) & mask) << 4), low.odd | (S)(((bits >> (8 + AT)) & mask) << 4)};
}
constexpr int code_sum_quads(int bits) { return bits == 4 ? 8 : bits == 5 ? 4 : 2; }
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
