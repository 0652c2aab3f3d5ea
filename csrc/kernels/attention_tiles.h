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

// How many bytes the keys and values of the block that is read next lie behind those of a block, by groups; 0 where
// nothing is to be asked for. A kernel asks for the next block's lines while it computes with the
// same lines of this one. Asked for all at once they would fill the queue of outstanding reads, and
// nothing would be computed until most of them had come. The processor's own prefetching stops at
// the end of each page of the planes.
struct Ahead {
    int64_t keys[block_groups] = {}, values[block_groups] = {};

    Ahead() = default;
    // `more`: whether the tile's next block follows; otherwise it is what the tile says.
    Ahead(const AttentionTile& tile, int64_t block_start, bool more) {
        const KeyGroup* groups = tile.groups + (block_start / group_keys - tile.first_group);
        const KeyGroup* next = more ? groups + block_groups : tile.next;
        if (next == nullptr) return;
        const int64_t start = more ? block_start + block_keys : tile.next_start;
        const int64_t unseen = tile.low[0] - start, seen = tile.high[tile.queries - 1] - start;
        const auto bytes_from = [](const void* here, const void* there) {
            return static_cast<int64_t>(reinterpret_cast<uintptr_t>(there) -
                                        reinterpret_cast<uintptr_t>(here));
        };
        for (int g = 0; g < block_groups && g * group_keys < seen; ++g) {
            if ((g + 1) * group_keys <= unseen) continue;
            keys[g] = bytes_from(groups[g].keys, next[g].keys);
            values[g] = bytes_from(groups[g].values, next[g].values);
        }
    }
};

// Asks for the line that lies `ahead` bytes behind p. It comes into the second-level cache: asked for
// into the first, it would take one of that cache's few places for outstanding reads.
static inline __attribute__((always_inline)) void ask_for(const void* p, int64_t ahead) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) +
                                                     static_cast<uintptr_t>(ahead)),
                       0, 2);
}
constexpr int64_t line_bytes = 64;

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
