// What the kinds share that lay out panels of rows: see PackedMatrix in kernels/linear.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/linear.h"

namespace ockham {

// Four bytes at once.
inline uint32_t four(const uint8_t* bytes) {
    uint32_t word;
    std::memcpy(&word, bytes, 4);
    return word;
}

// `units` words of each of 16 rows as [unit][16]: word(row, unit) makes one.
template <class Word>
void lay_words(const uint8_t* rows, int64_t row_bytes, int64_t units, uint8_t* to, Word word) {
    constexpr int64_t block = 16;  // a cache line of a row is read once
    for (int64_t begin = 0; begin < units; begin += block) {
        const int64_t end = begin + block < units ? begin + block : units;
        for (int64_t lane = 0; lane < panel_outputs; ++lane) {
            const uint8_t* row = rows + lane * row_bytes;
            for (int64_t unit = begin; unit < end; ++unit) {
                const uint32_t value = word(row, unit);
                std::memcpy(to + (unit * panel_outputs + lane) * 4, &value, 4);
            }
        }
    }
}

// `count` items of `bytes` bytes of each of 16 rows as [item][16].
inline void lay_items(const uint8_t* rows, int64_t row_bytes, int64_t count, int64_t bytes, uint8_t* to) {
    for (int64_t lane = 0; lane < panel_outputs; ++lane)
        for (int64_t item = 0; item < count; ++item)
            std::memcpy(to + (item * panel_outputs + lane) * bytes,
                        rows + lane * row_bytes + item * bytes, bytes);
}

// Two 4-bit codes a byte from two times four codes.
inline uint32_t nibbles(const uint8_t* codes) {
    return (four(codes) & 0x0f0f0f0f) | (four(codes + 4) & 0x0f0f0f0f) << 4;
}

}  // namespace ockham
