// The block types of GGUF files as kinds of packed matrices: the stored values to the bit, in the order
// in which the products read them.
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
//   kind        inputs  bits  then                                       meaning of a weight
//   q8_0            32     8  d[16]                                      d * code
//   q5_0            32     5  d[16]                                      d * (code - 16)
//   q4_1, q5_1      32   4/5  d[16], m[16]                               d * code + m
//   q4_k, q5_k     256   4/5  uint8 s[8][16], uint8 t[4][16][2],         d * s * code - m * t,
//                             d[16], m[16]                               s and t of 32 inputs
//   q6_k           256     6  int8 s[16][16], d[16]                      d * s * (code - 32), s of 16
//
// Inputs are quantised to int8 as Kind::int8 says: by row and 32 inputs for blocks of 32, else by row
// and 256. Block after block, from y = 0 (portable code rounds each product before it adds):
//
//   q8_0, q5_0   y = fma(float(sum of a * code), scale_x * d, y), code without its offset
//   q4_1, q5_1   the same, then y = fma(float(sum of a) * scale_x, m, y)
//   q4_k, q5_k   y = fma(float(sum of s * (sum of a * code)), scale_x * d, y), then
//                y = fma(float(sum of t * (sum of a)), -scale_x * m, y)
//   q6_k         y = fma(float(sum of s * (sum of a * (code - 32))), scale_x * d, y)
#pragma once

#include <cstdint>

#include "kernels/linear.h"

namespace ockham {

// How the blocks of a kind are made up; `bits` is 0 for the kinds that have none.
struct BlockShape {
    int64_t inputs = 0;
    int bits = 0;
    int64_t scale_group = 0;  // inputs that share a factor s; 0: there is none
    bool minima = false;

    constexpr int64_t codes_bytes() const { return inputs * bits * 2; }
    constexpr int64_t scales_at() const { return codes_bytes(); }
    constexpr int64_t minima_at() const {
        return scales_at() + (scale_group ? inputs / scale_group * 16 : 0);
    }
    constexpr int64_t halves_at() const { return minima_at() + (scale_group && minima ? inputs / 2 : 0); }
    constexpr int64_t bytes() const { return halves_at() + (minima ? 64 : 32); }
};

constexpr BlockShape block_shape(Kind kind) {
    switch (kind) {
        case Kind::q8_0:
            return {32, 8, 0, false};
        case Kind::q5_0:
            return {32, 5, 0, false};
        case Kind::q4_1:
            return {32, 4, 0, true};
        case Kind::q5_1:
            return {32, 5, 0, true};
        case Kind::q4_k:
            return {256, 4, 32, true};
        case Kind::q5_k:
            return {256, 5, 32, true};
        case Kind::q6_k:
            return {256, 6, 16, false};
        default:
            return {};
    }
}

// The first kind that reads its input as `kind` does.
constexpr Kind block_form(Kind kind) {
    return kind == Kind::q5_1 ? Kind::q4_1 : kind == Kind::q5_k ? Kind::q4_k : kind;
}

// Words of 32 bits that a prepared row has in `offsets` for each group of inputs with one scale:
// q8_0, q5_0: minus the code that means zero times the sum of the values; q4_1: their sum times the scale, a
// float; q4_k: 8 sums of 32 values, as int16; q6_k: 16 times -32 * the sum of 16 values.
constexpr int64_t block_offset_words(Kind form) {
    return form == Kind::q4_k ? 4 : form == Kind::q6_k ? 16 : 1;
}

// Row `output` of a matrix of blocks: the values that the `gguf` package gives, to the bit.
void unpack_block_row(const PackedMatrix& matrix, int64_t output, float* row);

}  // namespace ockham
