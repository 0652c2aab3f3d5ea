// 16 lanes in the vector extension of GCC and Clang, which any compiler target lowers to what it has.
//
// This file is also the explanation of the vocabulary that simd_avx2.h and simd_avx512.h speak.
#pragma once

#include <cstdint>
#include <cstring>

namespace ockham::OCKHAM_ISA_NAMESPACE {

#define OCKHAM_INLINE static inline __attribute__((always_inline))

typedef float F __attribute__((vector_size(64)));     // 16 floats
typedef int32_t I __attribute__((vector_size(64)));   // 16 ints; sums wrap
typedef uint32_t U __attribute__((vector_size(64)));
typedef int16_t S __attribute__((vector_size(64)));   // the same as 32 halves

// Loads and stores need no alignment; those with `lanes` touch only the first of them and read
// zero for the others.
OCKHAM_INLINE F zero() { return F{}; }
// One word in all lanes, by way of 16 bytes: left to itself, GCC stores the word sixteen times and then
// waits for all of them to load a vector.
OCKHAM_INLINE U every_lane(uint32_t word) {
    typedef uint32_t Four __attribute__((vector_size(16)));
    const Four four = {word, word, word, word};
    U value;
    for (int i = 0; i < 4; ++i) std::memcpy(reinterpret_cast<char*>(&value) + 16 * i, &four, 16);
    return value;
}
OCKHAM_INLINE F broadcast(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return (F)every_lane(bits);
}
OCKHAM_INLINE F load(const float* from) {
    F value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
OCKHAM_INLINE F load(const float* from, int64_t lanes) {
    F value{};
    std::memcpy(&value, from, sizeof(float) * lanes);
    return value;
}
OCKHAM_INLINE void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
OCKHAM_INLINE void store(float* to, F value, int64_t lanes) {
    std::memcpy(to, &value, sizeof(float) * lanes);
}
OCKHAM_INLINE F add(F a, F b) { return a + b; }
OCKHAM_INLINE F sub(F a, F b) { return a - b; }
OCKHAM_INLINE F mul(F a, F b) { return a * b; }
// Pairs of lanes (a, b) that stand HALF apart, 1, 2, 4 or 8, as (a + b, a - b).
template <int HALF>
OCKHAM_INLINE F butterfly(F value) {
    F result{};
    for (int i = 0; i < 16; ++i) {
        const float other = value[i ^ HALF];
        result[i] = i & HALF ? other - value[i] : value[i] + other;
    }
    return result;
}
// a * b + c, rounded once where the processor can; here the product is rounded too.
OCKHAM_INLINE F fma(F a, F b, F c) { return a * b + c; }
// One fp16, to the nearest, ties to even; too large becomes infinity.
OCKHAM_INLINE uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
        float shifted;
        std::memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        std::memcpy(&bits, &shifted, 4);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000;
    return static_cast<uint16_t>(sign | rounded >> 13);
}
OCKHAM_INLINE float half_value(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude *= 5192296858534827628530496329220096.0f;
    return half & 0x8000 ? -magnitude : magnitude;
}

OCKHAM_INLINE I int_broadcast(int32_t value) { return (I)every_lane(static_cast<uint32_t>(value)); }
OCKHAM_INLINE I int_add(I a, I b) { return (I)((U)a + (U)b); }
OCKHAM_INLINE I int_min(I a, I b) { return a < b ? a : b; }
OCKHAM_INLINE I int_max(I a, I b) { return a > b ? a : b; }
OCKHAM_INLINE F as_float(I a) { return (F)a; }
OCKHAM_INLINE I as_int(F a) { return (I)a; }
// |a| as bits, which order like the values they stand for: NaN above infinity above all others.
OCKHAM_INLINE I abs_bits(F a) { return (I)a & 0x7fffffff; }
OCKHAM_INLINE int32_t lanes_max(I a) {
    int32_t most = a[0];
    for (int i = 1; i < 16; ++i) most = a[i] > most ? a[i] : most;
    return most;
}
OCKHAM_INLINE int32_t lanes_sum(I a) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += static_cast<uint32_t>(a[i]);
    return static_cast<int32_t>(sum);
}
OCKHAM_INLINE F to_float(I a) { return __builtin_convertvector(a, F); }
// To the nearest integer, ties to even, for |a| < 2^22: after the addition the integer stands in the
// low bits of the float.
OCKHAM_INLINE I to_int(F a) { return (I)(a + 12582912.0f) - 0x4b400000; }
// 16 values in [-127, 127] as bytes.
OCKHAM_INLINE void store_int8(int8_t* to, I value) {
    for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(value[i]);
}
// Rounded to bf16, nearest even; NaN stays NaN.
OCKHAM_INLINE void store_bf16(uint16_t* to, F value) {
    const U bits = (U)value;
    const U rounded = bits + ((bits >> 16) & 1) + 0x7fff;
    const U result = abs_bits(value) > 0x7f800000 ? bits | 0x00400000 : rounded;
    for (int i = 0; i < 16; ++i) to[i] = static_cast<uint16_t>(result[i] >> 16);
}
// 16 fp16 widened. Exponent and mantissa move into a float's places, where the exponent counts 112
// less; the multiplication by 2^112 puts that right, for subnormals too. Infinity and NaN do not
// occur: packing refuses them.
OCKHAM_INLINE F from_half(const uint16_t* from) {
    U bits{};
    for (int i = 0; i < 16; ++i) bits[i] = from[i];
    const F magnitude = (F)((bits & 0x7fff) << 13) * 5192296858534827628530496329220096.0f;
    return (F)((U)magnitude | (bits & 0x8000) << 16);
}

// bf16 pairs: 16 weights for each of two k, and a row's two values for all lanes.
struct PairWeights {
    F even, odd;
};
struct Pair {
    float even, odd;
};
OCKHAM_INLINE PairWeights pair_weights(const uint8_t* from) {
    U bits;
    std::memcpy(&bits, from, sizeof bits);
    return {(F)(bits << 16), (F)(bits & 0xffff0000u)};
}
OCKHAM_INLINE Pair pair(const uint8_t* from) {
    uint16_t halves[2];
    std::memcpy(halves, from, 4);
    const uint32_t even = static_cast<uint32_t>(halves[0]) << 16;
    const uint32_t odd = static_cast<uint32_t>(halves[1]) << 16;
    Pair value;
    std::memcpy(&value.even, &even, 4);
    std::memcpy(&value.odd, &odd, 4);
    return value;
}
// Odd first, as vdpbf16ps does it.
OCKHAM_INLINE F dot(F sum, PairWeights weights, Pair x) {
    sum = weights.odd * x.odd + sum;
    return weights.even * x.even + sum;
}

// Quads of bytes: 16 lanes of four unsigned weights times a row's four signed values. A product
// of two fits 16 bits (255 * -128 = -32640), so bytes at even and odd places are multiplied as halves.
struct QuadWeights {
    S even, odd;
};
struct Quad {
    S even, odd;
};
OCKHAM_INLINE QuadWeights quad_weights(const uint8_t* from) {
    U bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return {(S)(bytes & 0x00ff00ff), (S)((bytes >> 8) & 0x00ff00ff)};
}
OCKHAM_INLINE uint32_t halves(int8_t low, int8_t high) {
    return static_cast<uint16_t>(low) | static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16;
}
OCKHAM_INLINE Quad quad(const uint8_t* from) {
    int8_t x[4];
    std::memcpy(x, from, 4);
    return {(S)every_lane(halves(x[0], x[2])), (S)every_lane(halves(x[1], x[3]))};
}
OCKHAM_INLINE I add_halves(I sum, S products) {
    const I both = (I)products;
    return int_add(sum, ((I)((U)both << 16) >> 16) + (both >> 16));
}
OCKHAM_INLINE I dot_quad(I sum, QuadWeights weights, Quad x) {
    return add_halves(add_halves(sum, weights.even * x.even), weights.odd * x.odd);
}

// 4-bit codes: 64 bytes hold two quads of each lane, in their low and in their high halves. Sums of
// at most eight quads go through a CodeSum, which may be narrower than 32 bits:
// total = code_sum_finish(total, dot_codes(code_sum_start(total), ...)).
using Codes = QuadWeights;
using CodeQuad = Quad;
using CodeSum = S;
OCKHAM_INLINE void codes(const uint8_t* from, Codes& low, Codes& high) {
    U bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    low = {(S)(bytes & 0x000f000f), (S)((bytes >> 8) & 0x000f000f)};
    high = {(S)((bytes >> 4) & 0x000f000f), (S)((bytes >> 12) & 0x000f000f)};
}
OCKHAM_INLINE CodeQuad code_quad(const uint8_t* from) { return quad(from); }
OCKHAM_INLINE CodeSum code_sum_start(I) { return S{}; }
OCKHAM_INLINE CodeSum dot_codes(CodeSum sum, Codes weights, CodeQuad x) {
    return sum + weights.even * x.even + weights.odd * x.odd;
}
OCKHAM_INLINE I code_sum_finish(I sum, CodeSum part) { return add_halves(sum, part); }
// 16 zero points times a factor that fits 16 bits.
OCKHAM_INLINE I zero_points_times(const uint8_t* zeros, int32_t factor) {
    I value{};
    for (int i = 0; i < 16; ++i) value[i] = zeros[i] * factor;
    return value;
}

// Asks for a cache line: for the first-level cache, or for the second.
OCKHAM_INLINE void prefetch(const void* from) { __builtin_prefetch(from); }
OCKHAM_INLINE void prefetch_far(const void* from) { __builtin_prefetch(from, 0, 2); }

// How large a block of each format the registers hold, and up to which rows it waits for memory.
struct Fp32Block {
    static constexpr int rows = 2, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};
struct Bf16Block {
    static constexpr int rows = 2, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};
struct QuadBlock {
    static constexpr int rows = 2, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};
struct CodeBlock {
    static constexpr int rows = 2, waiting_rows = 2;
    static constexpr int panels(int64_t) { return 1; }
};

}  // namespace ockham::OCKHAM_ISA_NAMESPACE
