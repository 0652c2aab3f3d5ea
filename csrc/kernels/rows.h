// Loops over the rows of a step, shared among threads where that is worth it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/threads.h"

namespace ockham {

// Below this many floats a loop over rows is not worth waking a thread for.
constexpr int64_t alone_floats = 16384;

// Calls f(row, thread) for all rows.
template <class F>
void for_rows(ThreadPool& pool, int64_t rows, int64_t floats_per_row, F f) {
    if (rows * floats_per_row < alone_floats) {
        for (int64_t row = 0; row < rows; ++row) f(row, 0);
        return;
    }
    const int64_t at_once = std::max<int64_t>(1, alone_floats / 4 / floats_per_row);
    pool.parallel((rows + at_once - 1) / at_once, [&](int64_t task, int thread) {
        const int64_t end = std::min(rows, (task + 1) * at_once);
        for (int64_t row = task * at_once; row < end; ++row) f(row, thread);
    });
}

}  // namespace ockham
