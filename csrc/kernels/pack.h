// Turning rows of weights into panels.
#pragma once

#include <cstdint>

#include "isa/isa.h"
#include "kernels/linear.h"

namespace ockham {

class ThreadPool;

// Turns [outputs][units] into [outputs / 16][units][16], in place, one panel after the other (a panel
// takes the same bytes in both orders). A unit is `unit_bytes` (1, 2, 4 or 8) that stay together: a
// float, a pair of bf16, four int8. `outputs` is a multiple of 16.
void to_panels(ThreadPool& pool, uint8_t* weight, int64_t outputs, int64_t units, int unit_bytes);

// Quantises `panels` panels of 16 rows of floats into the layout of Kind::int8 or Kind::int4; the
// pointers stand at the first of these panels.
void pack_int8(ThreadPool& pool, Isa isa, const float* rows, int64_t panels, int64_t inputs,
               uint8_t* weight, uint16_t* scale);
void pack_int4(ThreadPool& pool, Isa isa, const float* rows, int64_t panels, int64_t inputs,
               int64_t group, uint8_t* weight, uint16_t* scale);

// Codes 0 to 2 * middle - 1 and scales for `groups` groups of weights: w = (code - middle) * scale. Of
// the scales -extreme / d, for the group's weight of largest magnitude and each divisor d, the first with
// the least sum of squared errors is taken, as ockham/weights/scales.py says; `group` is a multiple
// of 16.
void search_codes(ThreadPool& pool, const float* weights, int64_t groups, int64_t group, int middle,
                  const float* divisors, int64_t divisor_count, uint8_t* codes, uint16_t* scale);

// Rows of a kind of blocks (see blocks.h) as GGUF files hold them: for each row its codes, one byte
// each, and for each of its blocks fp16 `scales` and `minima`, and factors of their groups. What a kind
// does not have is null.
struct BlockFields {
    const uint8_t* codes = nullptr;
    const uint8_t* scales = nullptr;
    const uint8_t* minima = nullptr;
    const uint8_t* group_scales = nullptr;
    const uint8_t* group_minima = nullptr;
};

// Packs `panels` panels of 16 such rows; `weight` stands at the first of these panels.
void pack_blocks(ThreadPool& pool, Kind kind, const BlockFields& rows, int64_t panels, int64_t inputs,
                 uint8_t* weight);

}  // namespace ockham
