#include "sparing.h"

#include <algorithm>
#include <cmath>

#include "kernels/rows.h"
#include "run.h"

namespace ockham {

namespace {

// Everything here is in double and in order: the same for a row whatever stands beside it.

double cosine(const float* x, const float* y, int64_t length) {
    double both = 0.0, one = 0.0, other = 0.0;
    for (int64_t i = 0; i < length; ++i) {
        both += static_cast<double>(x[i]) * y[i];
        one += static_cast<double>(x[i]) * x[i];
        other += static_cast<double>(y[i]) * y[i];
    }
    return both / std::sqrt(one * other);  // NaN, which is below any threshold, for a row of zeros
}

// The choice of a row in a layer: the first one of the largest scores.
int64_t choose(const RoutersView& routers, int64_t router, int64_t layer, const float* x,
               int64_t length) {
    double squares = 0.0;
    for (int64_t i = 0; i < length; ++i) squares += static_cast<double>(x[i]) * x[i];
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(length) + 1e-6);
    int64_t best = 0;
    double most = 0.0;
    for (int64_t choice = 0; choice < routers.choices; ++choice) {
        const int64_t at = (router * routers.layers + layer) * routers.choices + choice;
        const float* weights = routers.weights + at * length;
        double score = 0.0;
        for (int64_t i = 0; i < length; ++i) score += static_cast<double>(weights[i]) * x[i];
        score = score * scale + routers.biases[at];
        if (choice == 0 || score > most) {
            best = choice;
            most = score;
        }
    }
    return best;
}

constexpr int32_t skipped = -1;

}  // namespace

int64_t Spared::layer_of(const SparingView& rules, int64_t operation) const {
    for (int64_t layer = 0; layer < rules.layers; ++layer)
        if (rules.starts[layer] <= operation && operation < rules.ends[layer]) return layer;
    return -1;
}

void Spared::decide(Run& run, int64_t operation, int64_t layer) {
    const SparingView& rules = run.step.sparing;
    const int64_t rows = run.step.rows, hidden = run.hidden;
    const int64_t whole = run.program[operation].neurons();  // 0 where there are no widths
    left_.resize(static_cast<size_t>(rows));
    ran.resize(static_cast<size_t>(rules.layers * rows));
    int32_t* ran_here = ran.data() + layer * rows;
    if (rules.routed != nullptr)
        for_rows(run.pool, run.active.count, rules.routers.choices * hidden, [&](int64_t i, int) {
            const int64_t row = run.active.at(i);
            const int32_t router = rules.routed[row];
            if (router < 0) return;
            const int64_t choice = choose(rules.routers, router, layer, run.x() + row * hidden, hidden);
            ran_here[row] = rules.routers.widths[(router * rules.routers.layers + layer) *
                                                     rules.routers.choices +
                                                 choice];
        });
    groups_.clear();
    deciding_.clear();
    for (int64_t i = 0; i < run.active.count; ++i) {
        const auto row = static_cast<int32_t>(run.active.at(i));
        const int32_t rule = rules.rows[row];
        const bool routed = rules.routed != nullptr && rules.routed[row] >= 0;
        int32_t& neurons = ran_here[row];
        if (rule >= 0 && rules.firsts[rule] <= layer && layer < rules.stops[rule]) {
            if (left_[row] > 0) {
                --left_[row];
                neurons = skipped;
            } else {
                deciding_.push_back(row);
            }
        } else if (rules.told != nullptr && rule < 0 && !routed) {
            neurons = rules.told[layer * rows + row];
        }
        if (neurons > 0 && neurons >= whole) neurons = 0;
        if (neurons == skipped) continue;
        size_t at = 0;
        while (at < groups_.size() && groups_[at].neurons != neurons) ++at;
        if (at == groups_.size()) groups_.push_back({neurons, {}});
        groups_[at].rows.push_back(row);
    }
    whole_ = groups_.size() == 1 && groups_[0].neurons == 0 &&
             static_cast<int64_t>(groups_[0].rows.size()) == run.active.count;
    if (groups_.empty()) groups_.emplace_back();
    stream_.resize(deciding_.size() * static_cast<size_t>(hidden));
    for (size_t i = 0; i < deciding_.size(); ++i)
        std::copy_n(run.x() + deciding_[i] * hidden, hidden,
                    stream_.data() + static_cast<int64_t>(i) * hidden);
}

const std::vector<Spared::Group>* Spared::before(Run& run, int64_t operation) {
    const SparingView& rules = run.step.sparing;
    if (rules.rows == nullptr) return nullptr;
    const int64_t layer = layer_of(rules, operation);
    if (layer < 0) return nullptr;
    if (operation == rules.starts[layer]) decide(run, operation, layer);
    return whole_ ? nullptr : &groups_;
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
