// fp16 to fp32, without vectors: for what is no kernel.
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

}  // namespace ockham
