// What is added to the product of a matrix: the matrix's own corrections, for all rows, and then what
// adapters add for the rows that have one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "adapter.h"
#include "kernels/linear.h"
#include "ops/parts.h"
#include "run.h"

namespace ockham::ops {

// Rows of a product for which the same is added, ascending; `parts` is null where no adapter adds to it.
struct AdaptedRows {
    const std::vector<Adapter::Part>* parts;
    std::vector<int64_t> rows;
};

struct Additions {
    const std::vector<Adapter::Part>& own;  // of all rows
    std::vector<AdaptedRows> groups;        // all rows of the product
    int64_t width = 0;  // most ranks that a row's parts have together; 0: nothing is added

    bool adds(const AdaptedRows& group) const { return !own.empty() || group.parts != nullptr; }
    // Calls f with each part that is added to the rows of a group, in order.
    template <class F>
    void each(const AdaptedRows& group, F f) const {
        for (const Adapter::Part& part : own) f(part);
        if (group.parts == nullptr) return;
        for (const Adapter::Part& part : *group.parts) f(part);
    }
};

inline int64_t ranks_of(const std::vector<Adapter::Part>& parts) {
    int64_t ranks = 0;
    for (const Adapter::Part& part : parts) ranks += part.sum.rank;
    return ranks;
}

// The rows of a product with a matrix, by what is added to them. They are the active rows of the step
// from `first` on.
inline Additions additions(const Run& run, const Stack& matrix, int64_t count, int64_t first) {
    const StepView& step = run.step;
    const int64_t own = ranks_of(matrix.own);
    Additions result{matrix.own, {}, own};
    if (step.adapters.empty() || matrix.role.empty()) {
        result.groups.push_back({nullptr, std::vector<int64_t>(count)});
        std::iota(result.groups[0].rows.begin(), result.groups[0].rows.end(), int64_t{0});
        return result;
    }
    const Adapter* latest = nullptr;
    size_t group = 0;
    for (int64_t row = 0; row < count; ++row) {
        const Adapter* adapter = step.adapters[step.sequence[run.active.at(first + row)]];
        if (row == 0 || adapter != latest) {
            const auto* parts = adapter == nullptr ? nullptr : adapter->of(matrix.role);
            latest = adapter;
            group = 0;
            while (group < result.groups.size() && result.groups[group].parts != parts) ++group;
            if (group == result.groups.size()) {
                result.groups.push_back({parts, {}});
                if (parts != nullptr) result.width = std::max(result.width, own + ranks_of(*parts));
            }
        }
        result.groups[group].rows.push_back(row);
    }
    return result;
}

// t = scale * A x of rows [begin, end) of a group, at most low_rank_rows; x[i] is the i-th of them. Row
// r's stand from t + r * width on, those of one part after those of another.
inline void shrink_rows(const Run& run, const Additions& added, const AdaptedRows& group,
                        int64_t begin, int64_t end, const float* const* x, float* t) {
    float* to[low_rank_rows];
    for (int64_t i = begin; i < end; ++i) to[i - begin] = t + group.rows[i] * added.width;
    added.each(group, [&](const Adapter::Part& part) {
        run.low_rank.shrink(part.sum, x, end - begin, to);
        for (int64_t i = 0; i < end - begin; ++i) to[i] += part.sum.rank;
    });
}

// y += B t of the rows [row_begin, row_end) and the outputs [from, to).
inline void expand_rows(const Run& run, const Additions& added, const float* t, int64_t row_begin,
                        int64_t row_end, int64_t from, int64_t to, float* y, int64_t outputs) {
    for (const AdaptedRows& group : added.groups) {
        if (!added.adds(group)) continue;
        auto row = std::lower_bound(group.rows.begin(), group.rows.end(), row_begin);
        const auto last = std::lower_bound(row, group.rows.end(), row_end);
        while (row != last) {
            const int64_t count = std::min<int64_t>(low_rank_rows, last - row);
            int64_t at = 0;
            added.each(group, [&](const Adapter::Part& part) {
                const int64_t low = std::max(from, part.first);
                const int64_t high = std::min(to, part.first + part.sum.outputs);
                if (low < high) {
                    const float* factors[low_rank_rows];
                    float* sums[low_rank_rows];
                    for (int64_t i = 0; i < count; ++i) {
                        factors[i] = t + row[i] * added.width + at;
                        sums[i] = y + row[i] * outputs + low;
                    }
                    run.low_rank.expand(part.sum, factors, count, low - part.first,
                                        high - part.first, sums);
                }
                at += part.sum.rank;
            });
            row += count;
        }
    }
}

}  // namespace ockham::ops
