// What the kinds have in common that hold blocks with their scales inside, as GGUF files do: the stored
// values to the bit, in the order in which the products read them.
//
// A panel of 16 outputs is a row of blocks, one after another, and nothing else: a product reads one
// stream. A block holds so many inputs of the 16 outputs, first their codes in steps of 32 inputs:
//
//   4 bits: [4][16][4] bytes; byte i of the unit u holds inputs 8 u + i (low) and 8 u + 4 + i (high);
//   5 bits: the low four so, then [16][4] bytes: bit q of byte i belongs to input 4 q + i;
//   6 bits: the low four so, then [2][16][4] bytes: bits 2 q and 2 q + 1 of byte i of the unit v belong
//           to input 16 v + 4 q + i;
//   8 bits: [8][16][4] bytes, code + 128; byte i of the unit q is input 4 q + i.
//
// After all codes of the block follow, each for 16 outputs (d and m are fp16):
//
//   flat blocks of 32 inputs     d[16]; with minima m[16] too
//   nested blocks of 256 inputs  factors uint8 or int8 s[groups][16]; with minima uint8
//                                t[groups / 2][16][2]; d[16]; with minima m[16]
//
// Block after block, from y = 0 (portable code rounds each product before it adds; codes count from the
// one that means zero, where there are no minima):
//
//   flat             y = fma(float(sum of a * code), scale_x * d, y)
//   flat, minima     the same, then y = fma(float(sum of a) * scale_x, m, y)
//   nested           y = fma(float(sum of s * (sum of a * code)), scale_x * d, y)
//   nested, minima   the same, then y = fma(float(sum of t * (sum of a)), -scale_x * m, y)
#pragma once

#include <cstdint>

namespace ockham {

// How the blocks of a kind are made up.
struct BlockShape {
    int64_t inputs;
    int bits;
    int64_t scale_group = 0;  // inputs that share a factor s; 0: there is none
    bool minima = false;
    int zero = 0;  // the code that means zero, where there are no minima
    bool signed_scales = false;

    constexpr int64_t groups() const { return scale_group ? inputs / scale_group : 0; }
    constexpr int64_t codes_bytes() const { return inputs * bits * 2; }
    constexpr int64_t scales_at() const { return codes_bytes(); }
    constexpr int64_t minima_at() const { return scales_at() + groups() * 16; }
    constexpr int64_t halves_at() const { return minima_at() + (scale_group && minima ? inputs / 2 : 0); }
    constexpr int64_t bytes() const { return halves_at() + (minima ? 64 : 32); }
};

}  // namespace ockham
