// Turning rows of weights into panels, and weights into codes.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/isa.h"
#include "kernels/linear.h"

namespace ockham {

class ThreadPool;

// Lays out `panels` panels of 16 rows, from panel `first` on, in the arrays of `matrix`, which may be
// written to. fields[i]: the rows' values of LinearKind::fields, one row after another.
void pack_rows(ThreadPool& pool, const PackedMatrix& matrix, int64_t first, int64_t panels,
               const std::vector<const uint8_t*>& fields);

// Chooses codes and scales for rows of weights, where the matrix's kind does (LinearKind::quantise).
void quantise_rows(ThreadPool& pool, Isa isa, const PackedMatrix& matrix, const float* rows, int64_t count,
                   uint8_t* codes, uint16_t* scales);

// Codes 0 to 2 * middle - 1 and scales for `groups` groups of weights: w = (code - middle) * scale. Of
// the scales -extreme / d, for the group's weight of largest magnitude and each divisor d, the first with
// the least sum of squared errors is taken, as ockham/weights/scales.py says; `group` is a multiple
// of 16.
void search_codes(ThreadPool& pool, const float* weights, int64_t groups, int64_t group, int middle,
                  const float* divisors, int64_t divisor_count, uint8_t* codes, uint16_t* scale);

}  // namespace ockham
