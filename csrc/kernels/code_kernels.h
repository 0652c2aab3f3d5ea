// Rows of floats as codes, once for all instruction sets; included by row_kernels.h. Loops are plain,
// for the compiler to make vectors of.
#pragma once

#include <cstring>

#include "kernels/layer_kernels.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

static inline uint32_t bits_of_float(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// The largest magnitude of a row: 0 if all is less than 1e-30, NaN if anything is not finite.
static inline float magnitude_of(const float* x, int64_t length) {
    uint32_t most = 0;
    for (int64_t i = 0; i < length; ++i) {
        const uint32_t bits = bits_of_float(x[i]) & 0x7FFFFFFF;
        most = bits > most ? bits : most;
    }
    if (most >= 0x7F800000) return __builtin_nanf("");
    float magnitude;
    std::memcpy(&magnitude, &most, sizeof magnitude);
    return magnitude < 1e-30f ? 0.0f : magnitude;
}

// codes = x * factor + shift, to the nearest integer, ties to even. Adding 1.5 * 2^23 leaves it in
// the low bits; the magnitudes here are far below 2^22. A factor that is no number gives 0.
template <class T>
static inline void round_codes(const float* x, int64_t length, float factor, float shift,
                               T* codes) {
    if (factor == 0.0f || factor != factor) {
        for (int64_t i = 0; i < length; ++i) codes[i] = 0;
        return;
    }
    for (int64_t i = 0; i < length; ++i) {
        const float shifted = (x[i] * factor + shift) + 0x1.8p23f;
        codes[i] = static_cast<T>(static_cast<int32_t>(bits_of_float(shifted) - 0x4B400000u));
    }
}

static float to_int16(const float* x, int64_t length, int16_t* codes) {
    constexpr float most = static_cast<float>(most_code);
    const float magnitude = magnitude_of(x, length);
    round_codes(x, length, magnitude == 0.0f ? 0.0f : most / magnitude, 0.0f, codes);
    return magnitude / most;
}

static float to_int8(const float* x, int64_t length, int8_t* codes) {
    const float magnitude = magnitude_of(x, length);
    round_codes(x, length, magnitude == 0.0f ? 0.0f : 127.0f / magnitude, 0.0f, codes);
    return magnitude / 127.0f;
}

// The bits of a bf16, in the high half: the nearest (ties to even), and the next above a positive x.
static inline uint32_t nearest_bf16(float x) {
    const uint32_t bits = bits_of_float(x);
    return (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
}
static inline uint32_t bf16_above(float x) { return (bits_of_float(x) + 0xFFFF) & 0xFFFF0000u; }

static inline float float_of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t to_int4(const float* x, int64_t length, int8_t* codes) {
    constexpr uint32_t not_a_number = 0x7FC00000u;
    const float magnitude = magnitude_of(x, length);
    if (magnitude != magnitude || magnitude == 0.0f) {
        for (int64_t i = 0; i < length; ++i) codes[i] = 0;
        return magnitude == 0.0f ? 0 : not_a_number | not_a_number >> 16;
    }
    float least = x[0], most = x[0];
    for (int64_t i = 1; i < length; ++i) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    const float middle = 0.5f * least + 0.5f * most, reach = 0.5f * most - 0.5f * least;
    // Where all elements are one, their zero says it all.
    const uint32_t scale = reach < 1e-30f ? 0 : bf16_above(reach * (0.95f / 7.5f));
    const float step = float_of_bits(scale);
    const uint32_t zero = nearest_bf16(middle - 7.5f * step);
    const float first = float_of_bits(zero), factor = scale == 0 ? 0.0f : 1.0f / step;
    for (int64_t i = 0; i < length; ++i) {
        float code = (x[i] - first) * factor;
        code = code < 0.0f ? 0.0f : code;
        code = code > 15.0f ? 15.0f : code;
        codes[i] = static_cast<int8_t>(bits_of_float(code + 0x1.8p23f) & 15);
    }
    return scale | zero >> 16;
}

// 16 floats, which the compiler gives as many registers as it needs.
typedef float Sixteen __attribute__((vector_size(64)));
typedef int32_t SixteenInts __attribute__((vector_size(64)));

// (a + b, a - b) of the pairs whose places differ in the bit HALF.
template <int HALF>
static inline __attribute__((always_inline)) Sixteen butterfly_of_sixteen(Sixteen x) {
    const SixteenInts lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Sixteen other = __builtin_shufflevector(
        x, x, 0 ^ HALF, 1 ^ HALF, 2 ^ HALF, 3 ^ HALF, 4 ^ HALF, 5 ^ HALF, 6 ^ HALF, 7 ^ HALF,
        8 ^ HALF, 9 ^ HALF, 10 ^ HALF, 11 ^ HALF, 12 ^ HALF, 13 ^ HALF, 14 ^ HALF, 15 ^ HALF);
    return other + ((lanes & HALF) != 0 ? -x : x);
}

static void hadamard(float* x, int64_t length) {
    const int64_t block = length & -length;
    int64_t half = 1;
    if (block >= 16) {
        for (int64_t i = 0; i < length; i += 16) {
            Sixteen part;
            std::memcpy(&part, x + i, sizeof part);
            part = butterfly_of_sixteen<2>(butterfly_of_sixteen<1>(part));
            part = butterfly_of_sixteen<8>(butterfly_of_sixteen<4>(part));
            std::memcpy(x + i, &part, sizeof part);
        }
        half = 16;
    }
    for (; half < block; half *= 2)
        for (int64_t first = 0; first < length; first += 2 * half)
            for (int64_t i = first; i < first + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    const float by = 1.0f / __builtin_sqrtf(static_cast<float>(block));
    for (int64_t i = 0; i < length; ++i) x[i] = x[i] * by;
}

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
