// An order of keys in which those that are alike stand together.
#pragma once

#include <cstdint>
#include <vector>

namespace ockham {

// Orders `count` keys, [count][width] floats with a width that 16 divides, which it normalises in place.
//
// Balanced 2-means, from above: the keys are parted in two halves, those in halves again, down to
// neighbourhoods of 16. A part begins as its first half and its second half by place; then, a few times,
// keys go to the side of whose mean direction they have more of. Halves are of whole blocks of 64 keys as
// long as there is more than one, so that a block is a neighbourhood too. In the last parts keys stand in
// the order of their places. Sums run in one fixed order, so that every machine finds the same.
std::vector<int32_t> alike(float* keys, int64_t count, int64_t width);

}  // namespace ockham
