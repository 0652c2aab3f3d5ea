// What attention does alike with every type of keys and values; included by attention_kernels.h.
#pragma once

#include "kernels/functions.h"
#include "kernels/layer_kernels.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

// Most queries whose sums stand in registers at once, and how many vectors each has there.
#if defined(__AVX512F__)
constexpr int tile_queries = 6;
template <int QUERIES>
constexpr int tile_vectors = 4;
#elif defined(__AVX2__)
constexpr int tile_queries = 6;
template <int QUERIES>
constexpr int tile_vectors = QUERIES == 1 ? 4 : QUERIES <= 3 ? 2 : 1;
#else
constexpr int tile_queries = 2;
template <int QUERIES>
constexpr int tile_vectors = QUERIES == 1 ? 2 : 1;
#endif

// Which keys of one block some queries of a tile see: query i those in [begin[i], end[i]), all of them
// together those in [least, most).
template <int QUERIES>
struct Seen {
    int begin[QUERIES], end[QUERIES];
    int least = block_keys, most = 0, common_begin = 0, common_end = block_keys;

    Seen(const AttentionTile& tile, int64_t first, int64_t block_start) {
        for (int i = 0; i < QUERIES; ++i) {
            const int64_t low = tile.low[first + i] - block_start;
            const int64_t high = tile.high[first + i] - block_start;
            begin[i] = low > 0 ? static_cast<int>(low) : 0;
            end[i] = high < block_keys ? static_cast<int>(high) : static_cast<int>(block_keys);
            least = begin[i] < least ? begin[i] : least;
            most = end[i] > most ? end[i] : most;
            common_begin = begin[i] > common_begin ? begin[i] : common_begin;
            common_end = end[i] < common_end ? end[i] : common_end;
        }
    }
};

// A block's scores of one query: softcap, and -infinity where the query sees no key.
static inline __attribute__((always_inline)) void load_scores(const float* scores, float softcap,
                                                              int first, int last, Lanes* s) {
    const Lanes unseen = broadcast(-__builtin_inff());
#pragma GCC unroll 8
    for (int g = 0; g < block_groups; ++g) {
        const int begin = g * static_cast<int>(group_keys), end = begin + lane_count;
        if (last <= begin || first >= end) {
            s[g] = unseen;
            continue;
        }
        s[g] = load(scores + begin);
        if (softcap != 0.0f) {
            const Lanes cap = broadcast(softcap);
            s[g] = hyperbolic_tangent(s[g] / cap) * cap;
        }
        if (first > begin || last < end) {
            const int low = first > begin ? first - begin : 0;
            const int high = last < end ? last - begin : lane_count;
            s[g] = select(lane_range(low, high), s[g], unseen);
        }
    }
}

// Shrinks what a query has summed, after its largest score has grown.
static inline void shrink_sums(const AttentionTile& tile, int64_t query, float factor,
                               float block_total) {
    tile.total[query] = tile.total[query] * factor + block_total;
    if (factor == 1.0f) return;
    float* out = tile.out + query * tile.width;
    const Lanes by = broadcast(factor);
    for (int64_t e = 0; e < tile.width; e += lane_count) store(out + e, load(out + e) * by);
}

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
