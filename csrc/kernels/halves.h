// fp16 and bf16 to fp32 and back, without vectors: for what is no kernel.
#pragma once

#include <cstdint>
#include <cstring>

namespace ockham {

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float from_half(const void* from) {
    uint16_t half;
    std::memcpy(&half, from, 2);
    // The multiplication puts the exponent right, for subnormals too.
    const float magnitude = from_bits(static_cast<uint32_t>(half & 0x7fff) << 13) * 0x1p112f;
    return half & 0x8000 ? -magnitude : magnitude;
}

// To the nearest fp16, ties to even; too large becomes infinity.
inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
        const float shifted = from_bits(magnitude) + 0.5f;
        std::memcpy(&bits, &shifted, 4);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000;
    return static_cast<uint16_t>(sign | rounded >> 13);
}

inline float from_bf16(uint16_t brain) { return from_bits(static_cast<uint32_t>(brain) << 16); }

// To the nearest bf16, ties to even; of numbers.
inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + (bits >> 16 & 1) + 0x7fff) >> 16);
}

}  // namespace ockham
