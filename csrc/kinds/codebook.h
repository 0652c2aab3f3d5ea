// Matrices whose rows have levels of their own: w = level[code] * scale, and what is missing of a few
// weights apart (SqueezeLLM, arXiv:2306.07629).
//
// Levels are integers of at most 63 in magnitude, and stored plus 64. A shuffle of bytes looks up a table of
// 16 bytes in each 16 bytes of a register, so that such 16 bytes hold inputs of one output, unlike in other
// kinds. Of a panel, byte lane l of the register r (there are four of 64 bytes) is output 4 l + r: the four
// sums of an output are added up for all 16 at once, and are in order then.
//
// weight, for each unit of 64 inputs:
//   4 bits: [2][4 r][4 l][16] bytes; byte i of the half h holds k = 32 h + i (low) and 32 h + 16 + i (high);
//   3 bits: [4 r][4 l][16] bytes; bits 2 j and 2 j + 1 of byte i are the low two of k = 16 j + i; then
//           [4 r][4 l][8] bytes; bit j of byte i is the third of k = 16 j + i, bit 4 + j of 16 j + 8 + i.
// scale, per panel: level + 64 [4 r][4 l][16]; float scale [16]; uint16 columns [n][16]; int16 extras [n][16],
// where n = ceil(K / 200).
//
// x is quantised by row and span of 128; the last may be shorter. From y = 0 (portable code rounds the
// product first): for each span y = fma(float(sum of a * level), scale_x * scale, y); then for each i of n
// y = fma(float(a[column] * extra), scale_x[of the column] * scale, y).
#pragma once

#include "kernels/linear.h"

namespace ockham {

constexpr int64_t codebook_unit = 64, codebook_span = 128;
constexpr int codebook_zero = 64;  // what is added to levels
constexpr int64_t table_bytes = 16 * panel_outputs;

constexpr int64_t unit_bytes(int bits) { return codebook_unit * panel_outputs * bits / 8; }

inline int64_t apart_of(const PackedMatrix& matrix) { return (matrix.inputs + 199) / 200; }

// Bytes of one panel of `scale`.
inline int64_t book_bytes(const PackedMatrix& matrix) {
    return table_bytes + panel_outputs * 4 + apart_of(matrix) * panel_outputs * 4;
}

}  // namespace ockham
