// Turning rows of weights into panels.
#pragma once

#include <cstdint>

namespace ockham {

class ThreadPool;

// Turns [outputs][units] into [outputs / 16][units][16], in place, one panel after the other (a panel
// takes the same bytes in both orders). A unit is `unit_bytes` (1, 2, 4 or 8) that stay together: a
// float, a pair of bf16, four int8. `outputs` is a multiple of 16.
void to_panels(ThreadPool& pool, uint8_t* weight, int64_t outputs, int64_t units, int unit_bytes);

}  // namespace ockham
