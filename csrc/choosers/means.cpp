// The mean of 16 keys: what a query scores with them on average, which is a good guess of each of the
// scores where the keys are alike (Hooper et al. 2024, arXiv:2411.09688, whose
// centroids are the means of clusters of keys). summary: bf16 [width]. query: bf16 [width].
#include "choosers/chooser.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include "kernels/lanes.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void score_means(const uint8_t* queries, int64_t query_count, int64_t width,
                 const KeyBook*, const uint8_t* const* summaries, int64_t count, float* scores, int64_t stride) {
    constexpr int64_t pairs = 2 * lane_count, ahead = 8;
    const int64_t bytes = (2 * width + 63) / 64 * 64;
    for (int64_t g = 0; g < count; ++g) {
        if (g + ahead < count)
            for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(summaries[g + ahead] + i);
        const auto* mean = reinterpret_cast<const uint16_t*>(summaries[g]);
        for (int64_t i = 0; i < query_count; ++i) {
            const auto* q = reinterpret_cast<const uint16_t*>(queries + i * bytes);
            Lanes products = zero();
            for (int64_t e = 0; e < bytes / 2; e += pairs)
                products = dot(load_pairs(q + e), load_pairs(mean + e), products);
            scores[i * stride + g] = sum(products);
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include <algorithm>
#include <vector>

#include "isa/each.h"
#include "kernels/halves.h"

namespace ockham {

OCKHAM_DECLARE(ScoreSummaries score_means);

namespace {

// Whole cache lines, which are whole loads: what pads them is zero.
int64_t bytes_of(int64_t width) { return (2 * width + 63) / 64 * 64; }

void write(const float* values, int64_t width, uint8_t* to) {
    auto* halves = reinterpret_cast<uint16_t*>(to);
    for (int64_t e = 0; e < width; ++e) halves[e] = to_bf16(values[e]);
    std::fill(halves + width, halves + bytes_of(width) / 2, static_cast<uint16_t>(0));
}

void summarise(const float* keys, int64_t width, const KeyBook*, uint8_t* summary) {
    std::vector<float> mean(keys, keys + width);
    for (int64_t key = 1; key < group_keys; ++key)
        for (int64_t e = 0; e < width; ++e) mean[e] += keys[key * width + e];
    for (float& value : mean) value *= 1.0f / group_keys;
    write(mean.data(), width, summary);
}

const Chooser chooser{"means",   bytes_of, bytes_of,
                      summarise, write,    OCKHAM_EACH_ISA(score_means)};
const AddedChooser added{chooser};

}  // namespace

}  // namespace ockham

#endif
