// The forms in which matrices read their inputs, apart from the kinds that have one to themselves.
#pragma once

#include "kernels/linear.h"

namespace ockham {

// Rounded to bf16, to the nearest, ties to even.
extern const InputKind bf16_input;

// Quantised inputs are int8 by row and group: scale_x = max|x| / 127, a = round(x * (127 / max|x|)), ties
// to even; all zero where max|x| < 2^-100; a group with NaN or infinity has the scale NaN. The forms
// differ in what stands in PreparedInput::offsets for each group:

// One integer: minus InputForm::zero times the sum of the values.
extern const InputKind quantised_input;
// One float: the sum of the values times their scale.
extern const InputKind summed_input;
// Groups of 256: 8 sums of 32 values, as int16.
extern const InputKind summed_by_8_input;
// Groups of 256: 16 sums of 16 values, as int16.
extern const InputKind paired_by_16_input;
// Groups of 256: 16 integers, minus InputForm::zero times the sum of 16 values.
extern const InputKind summed_by_16_input;

}  // namespace ockham
