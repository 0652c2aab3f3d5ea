#include "sparing.h"

#include <algorithm>
#include <cmath>

#include "kernels/rows.h"
#include "run.h"

namespace ockham {

namespace {

// In double and in order: the same for a row whatever stands beside it.
double cosine(const float* x, const float* y, int64_t length) {
    double both = 0.0, one = 0.0, other = 0.0;
    for (int64_t i = 0; i < length; ++i) {
        both += static_cast<double>(x[i]) * y[i];
        one += static_cast<double>(x[i]) * x[i];
        other += static_cast<double>(y[i]) * y[i];
    }
    return both / std::sqrt(one * other);  // NaN, which is below any threshold, for a row of zeros
}

}  // namespace

int64_t Spared::layer_of(const SparingView& rules, int64_t operation) const {
    for (int64_t layer = 0; layer < rules.layers; ++layer)
        if (rules.starts[layer] <= operation && operation < rules.ends[layer]) return layer;
    return -1;
}

void Spared::before(Run& run, int64_t operation) {
    const SparingView& rules = run.step.sparing;
    if (rules.rows == nullptr) return;
    const int64_t layer = layer_of(rules, operation), rows = run.step.rows;
    if (layer < 0) return;
    if (operation == rules.starts[layer]) {
        left_.resize(static_cast<size_t>(rows));
        skipped.resize(static_cast<size_t>(rules.layers * rows));
        runs_.clear();
        deciding_.clear();
        for (int64_t i = 0; i < run.active.count; ++i) {
            const auto row = static_cast<int32_t>(run.active.at(i));
            const int32_t rule = rules.rows[row];
            if (rule >= 0 && rules.firsts[rule] <= layer && layer < rules.stops[rule]) {
                if (left_[row] > 0) {
                    --left_[row];
                    skipped[layer * rows + row] = 1;
                    continue;
                }
                deciding_.push_back(row);
            }
            runs_.push_back(row);
        }
        stream_.resize(deciding_.size() * static_cast<size_t>(run.hidden));
        for (size_t i = 0; i < deciding_.size(); ++i)
            std::copy_n(run.x() + deciding_[i] * run.hidden, run.hidden,
                        stream_.data() + i * run.hidden);
    }
    if (static_cast<int64_t>(runs_.size()) < run.active.count)
        run.active = {static_cast<int64_t>(runs_.size()), runs_.data()};
}

void Spared::after(Run& run, int64_t operation) {
    const SparingView& rules = run.step.sparing;
    if (rules.rows == nullptr || deciding_.empty()) return;
    const int64_t layer = layer_of(rules, operation);
    if (layer < 0 || operation + 1 != rules.ends[layer]) return;
    const auto count = static_cast<int64_t>(deciding_.size());
    for_rows(run.pool, count, 3 * run.hidden, [&](int64_t i, int) {
        const int32_t row = deciding_[i], rule = rules.rows[row];
        const double found =
            cosine(stream_.data() + i * run.hidden, run.x() + row * run.hidden, run.hidden);
        if (found >= rules.thresholds[rule]) left_[row] = rules.lengths[rule];
    });
}

}  // namespace ockham
