#include "kernels/scores.h"

#include <algorithm>
#include <functional>

#include "kernels/layer_kernels.h"
#include "kernels/sampler.h"

namespace ockham {

TokenScore token_score(Isa isa, const float* logits, int64_t vocabulary, int64_t token, int64_t top,
                       std::vector<float>& largest) {
    const RowKernels& kernels = row_kernels(isa);
    const float peak = logits[kernels.argmax(logits, vocabulary)];
    float sums[2];
    kernels.exponential_sums(logits, peak, vocabulary, sums);
    const double log_of_sum = natural_log(sums[0]), log_sum = peak + log_of_sum;

    // A heap of the largest so far, whose first is the least of them: few values get past it.
    const int64_t count = std::min(top, vocabulary);
    largest.assign(logits, logits + count);
    std::make_heap(largest.begin(), largest.end(), std::greater<>());
    for (int64_t id = count; id < vocabulary; ++id) {
        if (logits[id] <= largest.front()) continue;
        std::pop_heap(largest.begin(), largest.end(), std::greater<>());
        largest.back() = logits[id];
        std::push_heap(largest.begin(), largest.end(), std::greater<>());
    }
    std::sort(largest.begin(), largest.end());
    double total = 0.0;
    for (const float value : largest) total += value;
    return {logits[token] - log_sum, log_sum - total / static_cast<double>(count),
            log_of_sum - sums[1] / static_cast<double>(sums[0])};
}

}  // namespace ockham
