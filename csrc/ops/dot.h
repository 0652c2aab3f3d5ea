// The product of two short rows, in one order of operations on every processor.
#pragma once

#include <cstdint>

namespace ockham::ops {

inline float dot(const float* a, const float* b, int64_t length) {
    float lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= length; i += 8)
        for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
    for (; i < length; ++i) lanes[i % 8] += a[i] * b[i];
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

}  // namespace ockham::ops
