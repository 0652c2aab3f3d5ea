// The largest and the smallest value that each element has among 16 keys: an upper bound of every score
// (Tang et al. 2024, arXiv:2406.10774). summary: bf16 [largest, smallest][width]. A query is split
// into what is above 0 and what is below: bf16 [above, below][width]. Their product is the bound.
#include "choosers/chooser.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include "kernels/lanes.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

void score_bounds(const uint8_t* queries, int64_t query_count, int64_t width,
                  const KeyBook*, const uint8_t* const* summaries, int64_t count, float* scores, int64_t stride) {
    constexpr int64_t pairs = 2 * lane_count, ahead = 8;
    const int64_t bytes = 4 * width;
    for (int64_t g = 0; g < count; ++g) {
        if (g + ahead < count)
            for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(summaries[g + ahead] + i);
        const auto* bounds = reinterpret_cast<const uint16_t*>(summaries[g]);
        for (int64_t i = 0; i < query_count; ++i) {
            const auto* q = reinterpret_cast<const uint16_t*>(queries + i * bytes);
            Lanes products = zero();
            for (int64_t e = 0; e < 2 * width; e += pairs)
                products = dot(load_pairs(q + e), load_pairs(bounds + e), products);
            scores[i * stride + g] = sum(products);
        }
    }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include <algorithm>

#include "isa/each.h"
#include "kernels/halves.h"

namespace ockham {

OCKHAM_DECLARE(ScoreSummaries score_bounds);

namespace {

int64_t bytes_of(int64_t width) { return 4 * width; }

void summarise(const float* keys, int64_t width, const KeyBook*, uint8_t* summary) {
    auto* bounds = reinterpret_cast<uint16_t*>(summary);
    for (int64_t e = 0; e < width; ++e) {
        float most = keys[e], least = keys[e];
        for (int64_t key = 1; key < group_keys; ++key) {
            most = std::max(most, keys[key * width + e]);
            least = std::min(least, keys[key * width + e]);
        }
        bounds[e] = to_bf16(most);
        bounds[width + e] = to_bf16(least);
    }
}

void prepare(const float* q, int64_t width, uint8_t* query) {
    auto* halves = reinterpret_cast<uint16_t*>(query);
    for (int64_t e = 0; e < width; ++e) {
        halves[e] = to_bf16(std::max(q[e], 0.0f));
        halves[width + e] = to_bf16(std::min(q[e], 0.0f));
    }
}

const Chooser chooser{"bounds",  bytes_of, bytes_of,
                      summarise, prepare,  OCKHAM_EACH_ISA(score_bounds)};
const AddedChooser added{chooser};

}  // namespace

}  // namespace ockham

#endif
