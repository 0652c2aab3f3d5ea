// Matrices with two levels of scales: an 8-bit integer s for each group of inputs under one float a row.
//
// w = level * s * scale, where a level is an integer of few bits. The integer s joins the sum of its
// group's products, so that a float is met once in a span of 128 inputs, not in every group (QServe's
// progressive groups, arXiv:2405.04532, section 4.1).
//
// Groups of `group` (a multiple of 32 that divides 128) consecutive k. weight: two 4-bit codes a byte,
// [P][K / 8][16][4]: byte i holds k = i in its low and k = 4 + i in its high half.
// scale: per panel, int8 s [K / group][16], then float scale [16]: [P][K / group * 16 + 64] bytes.
// x is quantised by row and span; the last span may be shorter. For each span:
// y = fma(float(sum over groups of s * (sum of a * level)), scale_x * scale, y) from y = 0 (portable code
// rounds the product first). Integer sums are exact: their size is bounded below.
#pragma once

#include "kernels/linear.h"

namespace ockham {

constexpr int64_t two_level_span = 128;  // inputs that share a scale_x
constexpr int64_t two_level_step = 32;   // inputs whose products a CodeSum holds

// Of the levels of a kind: what is added to each, so that none is negative, and the largest of either sign.
struct Levels {
    int zero;
    int most;
};

// The largest sum of a step's products.
constexpr int64_t most_of_step(Levels levels) { return two_level_step * 127 * levels.most; }

// Whether the sum of a step fits 16 bits.
constexpr bool step_fits(Levels levels) { return most_of_step(levels) < 1 << 15; }

// Whether half of a step fits 16 bits, which is how avx2 sums it, and a span 32.
constexpr bool sums_fit(Levels levels) {
    return most_of_step(levels) / 2 < 1 << 15 &&
           most_of_step(levels) * 128 * (two_level_span / two_level_step) < int64_t{1} << 31;
}

}  // namespace ockham
