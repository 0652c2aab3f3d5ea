// Attention over blocks of keys, once for all instruction sets; included by csrc/isa/layer_*.cpp.
//
// A prefill and a decode run the same code, and everything that a query's result depends on is
// ordered by logical index alone:
// - a score is a chain of fma over the elements of the head, from the first to the last, or with bf16
//   planes over pairs of them, the odd before the even (as vdpbf16ps does it), the query rounded to
//   bf16;
// - a block's scores are reduced to their largest and to the sum of their exponentials in one fixed
//   tree over its 64 keys, in which keys that the query does not see count as -infinity and 0;
// - a value's element is such a chain over the keys that the query sees, in order; with bf16 planes
//   weights are rounded to bf16 before they are summed and multiplied, so that they still add up.
// How many queries and groups share the registers changes no chain: it differs by instruction set.
// Keys and values in codes are in coded_attention_kernels.h.
#pragma once

#include "kernels/attention_tiles.h"
#include "kernels/coded_attention_kernels.h"
#include "kernels/functions.h"
#include "kernels/layer_kernels.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

// How keys and values are stored, and in which type queries and weights enter their products. A step
// of a product takes `step` elements of the key, or `step` keys: fma for one, dot() for two.
struct StoredFp32 {
    using T = float;
    static constexpr int step = 1;
    static Lanes load(const T* p) { return ockham::OCKHAM_ISA_NAMESPACE::load(p); }
    static Lanes load_one(const T* p, int) { return load(p); }
    static Lanes all(const T* p) { return broadcast(*p); }
    static Lanes product(Lanes factor, Lanes stored, Lanes sum) { return fma(factor, stored, sum); }
    static Lanes store(T* p, Lanes a) {
        ockham::OCKHAM_ISA_NAMESPACE::store(p, a);
        return a;
    }
};
struct StoredBf16 {
    using T = uint16_t;
    static constexpr int step = 2;
    static Pairs load(const T* p) { return load_pairs(p); }
    static Pairs load_one(const T* p, int key) { return only(load_pairs(p), key % 2 == 1); }
    static PairOfAll all(const T* p) { return broadcast_pair(p); }
    static Lanes product(PairOfAll factor, Pairs stored, Lanes sum) {
        return dot(factor, stored, sum);
    }
    static Lanes store(T* p, Lanes a) { return store_bf16(p, a); }
};

// The pointers of one block's groups. Those of groups that nobody sees are never read.
template <class S>
struct Block {
    const typename S::T* keys[block_groups];
    const typename S::T* values[block_groups];
    Ahead ahead;
};

// Scores of QUERIES queries with GROUPS groups of keys: scores[query * 64 + key].
template <class S, int QUERIES, int GROUPS>
static inline __attribute__((always_inline)) void score_groups(
    const typename S::T* q, int64_t head_dim, int64_t width, const typename S::T* const* keys,
    const int64_t* ahead, float* scores) {
    Lanes sums[QUERIES][GROUPS];
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) sums[i][g] = zero();
    for (int64_t e = 0; e < head_dim; e += S::step) {
        decltype(S::load(keys[0])) k[GROUPS];
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) {
            k[g] = S::load(keys[g] + e * group_keys);
            ask_for(keys[g] + e * group_keys, ahead[g]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; ++i) {
            const auto elements = S::all(q + i * width + e);
#pragma GCC unroll 8
            for (int g = 0; g < GROUPS; ++g) sums[i][g] = S::product(elements, k[g], sums[i][g]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g)
            store(scores + i * block_keys + g * group_keys, sums[i][g]);
}

template <class S, int QUERIES>
static void score_block(const AttentionTile& tile, int64_t first, const Block<S>& block,
                        int first_group, int last_group, float* scores) {
    constexpr int most = tile_vectors<QUERIES>;
    const auto* q = static_cast<const typename S::T*>(tile.q) + first * tile.width;
    int g = first_group;
    for (; g + most <= last_group; g += most)
        score_groups<S, QUERIES, most>(q, tile.head_dim, tile.width, block.keys + g,
                                       block.ahead.keys + g, scores + g * group_keys);
    for (; g < last_group; ++g)
        score_groups<S, QUERIES, 1>(q, tile.head_dim, tile.width, block.keys + g,
                                    block.ahead.keys + g, scores + g * group_keys);
}

// Where the values of key j of a block stand, or of the step of keys that begins there.
template <class S>
static inline const typename S::T* values_of(const Block<S>& block, int j, int64_t width) {
    constexpr int group = static_cast<int>(group_keys);
    return block.values[j / group] + j % group / S::step * S::step * width;
}

// out[query][0 .. 16 * VECTORS) += sum over keys [first, last) of weight * value, in order. Both are
// multiples of a step.
template <class S, int QUERIES, int VECTORS>
static inline __attribute__((always_inline)) void add_values(
    const typename S::T* weights, const Block<S>& block, int64_t element, int64_t width, int first,
    int last, float* out) {
    Lanes sums[QUERIES][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
        for (int n = 0; n < VECTORS; ++n) sums[i][n] = load(out + i * width + n * lane_count);
    for (int j = first; j < last;) {
        const int group_end = (j / static_cast<int>(group_keys) + 1) * static_cast<int>(group_keys);
        const int end = last < group_end ? last : group_end;
        const typename S::T* values = values_of(block, j, width) + element * S::step;
        const int64_t ahead = block.ahead.values[j / static_cast<int>(group_keys)];
        for (; j < end; j += S::step, values += width * S::step) {
            decltype(S::load(values)) v[VECTORS];
#pragma GCC unroll 8
            for (int n = 0; n < VECTORS; ++n) {
                v[n] = S::load(values + n * lane_count * S::step);
                ask_for(values + n * lane_count * S::step, ahead);
            }
#pragma GCC unroll 8
            for (int i = 0; i < QUERIES; ++i) {
                const auto weight = S::all(weights + i * block_keys + j);
#pragma GCC unroll 8
                for (int n = 0; n < VECTORS; ++n) sums[i][n] = S::product(weight, v[n], sums[i][n]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
        for (int n = 0; n < VECTORS; ++n) store(out + i * width + n * lane_count, sums[i][n]);
}

template <class S, int QUERIES>
static void add_block_values(const AttentionTile& tile, const typename S::T* weights,
                             const Block<S>& block, int first, int last, float* out) {
    constexpr int most = tile_vectors<QUERIES>;
    const int64_t step = most * lane_count;
    int64_t e = 0;
    for (; e + step <= tile.width; e += step)
        add_values<S, QUERIES, most>(weights, block, e, tile.width, first, last, out + e);
    for (; e < tile.width; e += lane_count)
        add_values<S, QUERIES, 1>(weights, block, e, tile.width, first, last, out + e);
}

// The same for one query and any keys. Of a step that the query sees in part the other values, which
// may be anything, are taken for zero.
template <class S>
static void add_query_values(const AttentionTile& tile, const typename S::T* weights,
                             const Block<S>& block, int first, int last, float* out) {
    const auto add_one = [&](int j) {
        const typename S::T* values = values_of(block, j, tile.width);
        const auto weight = S::all(weights + j / S::step * S::step);
        for (int64_t e = 0; e < tile.width; e += lane_count)
            store(out + e, S::product(weight, S::load_one(values + e * S::step, j), load(out + e)));
    };
    if (first % S::step && first < last) add_one(first++);
    const int whole = last / S::step * S::step;
    if (first < whole) add_block_values<S, 1>(tile, weights, block, first, whole, out);
    if (last % S::step && first < last) add_one(last - 1);
}

// QUERIES queries from query `first` on against one block.
template <class S, int QUERIES>
static void attend_block(const AttentionTile& tile, int64_t first, int64_t block_start,
                         const Block<S>& block) {
    alignas(64) float scores[QUERIES * block_keys];
    alignas(64) typename S::T weights[QUERIES * block_keys];
    const Seen<QUERIES> seen(tile, first, block_start);
    constexpr int group = static_cast<int>(group_keys);
    score_block<S, QUERIES>(tile, first, block, seen.least / group, (seen.most + group - 1) / group,
                            scores);

    alignas(64) float change[lane_count] = {};  // old peak minus new, by query
    float block_total[QUERIES];
    bool changed = false;
    for (int i = 0; i < QUERIES; ++i) {
        Lanes s[block_groups];
        load_scores(scores + i * block_keys, tile.softcap, seen.begin[i], seen.end[i], s);
        const float old_peak = tile.peak[first + i];
        const float block_peak = largest(max(max(s[0], s[1]), max(s[2], s[3])));
        const float peak = block_peak > old_peak ? block_peak : old_peak;
        const Lanes shift = broadcast(peak);
#pragma GCC unroll 8
        for (int g = 0; g < block_groups; ++g)
            s[g] = S::store(weights + i * block_keys + g * group,
                            exponential_of_negative(s[g] - shift));
        change[i] = old_peak - peak;
        changed = changed || peak != old_peak;
        tile.peak[first + i] = peak;
        block_total[i] = sum((s[0] + s[1]) + (s[2] + s[3]));
    }
    alignas(64) float shrink[lane_count];
    if (changed) store(shrink, exponential_of_negative(load(change)));
    for (int i = 0; i < QUERIES; ++i)
        shrink_sums(tile, first + i, changed ? shrink[i] : 1.0f, block_total[i]);

    // Whole steps that all queries see are added for all at once, the others one by one.
    float* out = tile.out + first * tile.width;
    const int common_begin = (seen.common_begin + S::step - 1) / S::step * S::step;
    const int common_end = seen.common_end / S::step * S::step;
    const bool together = common_begin < common_end;
    for (int i = 0; i < QUERIES; ++i)
        if (!together || seen.begin[i] < common_begin)
            add_query_values<S>(tile, weights + i * block_keys, block, seen.begin[i],
                                together ? common_begin : seen.end[i], out + i * tile.width);
    if (!together) return;
    add_block_values<S, QUERIES>(tile, weights, block, common_begin, common_end, out);
    for (int i = 0; i < QUERIES; ++i)
        if (seen.end[i] > common_end)
            add_query_values<S>(tile, weights + i * block_keys, block, common_end, seen.end[i],
                                out + i * tile.width);
}

template <class S, int MOST>
static inline void attend_queries(int count, const AttentionTile& tile, int64_t first,
                                  int64_t block_start, const Block<S>& block) {
    if (count == MOST)
        attend_block<S, MOST>(tile, first, block_start, block);
    else if constexpr (MOST > 1)
        attend_queries<S, MOST - 1>(count, tile, first, block_start, block);
}

// The queries [first, last), which all see keys of the block, shared out evenly to the registers.
template <class S>
static void attend_block_of_tile(const AttentionTile& tile, int64_t first, int64_t last,
                                 int64_t block_start, Block<S> block) {
    int64_t rounds = (last - first + tile_queries - 1) / tile_queries;
    for (; rounds > 0; --rounds) {
        const int64_t count = (last - first + rounds - 1) / rounds;
        attend_queries<S, tile_queries>(static_cast<int>(count), tile, first, block_start, block);
        first += count;
        block.ahead = {};
    }
}

// The pointers of the block that begins with the logical key block_start.
template <class S>
static inline Block<S> stored_block(const AttentionTile& tile, int64_t block_start,
                                    bool more = false) {
    Block<S> block;
    block.ahead = Ahead(tile, block_start, more);
    const KeyGroup* groups = tile.groups + (block_start / group_keys - tile.first_group);
    for (int g = 0; g < block_groups; ++g) {
        block.keys[g] = static_cast<const typename S::T*>(groups[g].keys);
        block.values[g] = static_cast<const typename S::T*>(groups[g].values);
    }
    return block;
}

static void attend(const AttentionTile& tile, int64_t first_block, int64_t last_block) {
    int64_t first = 0, last = 0;  // the queries that see keys of the block
    for (int64_t b = first_block; b < last_block; ++b) {
        const int64_t start = b * block_keys;
        while (first < tile.queries && tile.high[first] <= start) ++first;
        while (last < tile.queries && tile.low[last] < start + block_keys) ++last;
        if (first >= last) continue;
        const bool more = b + 1 < last_block;
        if (tile.keys == Element::bf16)
            attend_block_of_tile(tile, first, last, start, stored_block<StoredBf16>(tile, start, more));
        else if (tile.keys == Element::fp32)
            attend_block_of_tile(tile, first, last, start, stored_block<StoredFp32>(tile, start, more));
        else
            attend_coded_block_of_tile(tile, first, last, start, more);
    }
}

static void merge(int64_t queries, int64_t width, const float* part_peak, const float* part_total,
                  const float* part_out, float* peak, float* total, float* out) {
    for (int64_t i = 0; i < queries; ++i) {
        const float most = part_peak[i] > peak[i] ? part_peak[i] : peak[i];
        alignas(64) float shrink[lane_count] = {peak[i] - most, part_peak[i] - most};
        store(shrink, exponential_of_negative(load(shrink)));
        peak[i] = most;
        total[i] = total[i] * shrink[0] + part_total[i] * shrink[1];
        const Lanes before = broadcast(shrink[0]), after = broadcast(shrink[1]);
        for (int64_t e = i * width; e < (i + 1) * width; e += lane_count)
            store(out + e, load(out + e) * before + load(part_out + e) * after);
    }
}

static void finish(const float* out, float total, int64_t head_dim, float* a) {
    const Lanes by = broadcast(1.0f / total);
    int64_t e = 0;
    for (; e + lane_count <= head_dim; e += lane_count) store(a + e, load(out + e) * by);
    if (e < head_dim) store_some(a + e, load(out + e) * by, head_dim - e);
}

template <class S>
static void add_probabilities(const AttentionTile& tile, int64_t start, float* probabilities) {
    const int64_t low = tile.low[0] - start, high = tile.high[0] - start;
    const int first = low > 0 ? static_cast<int>(low) : 0;
    const int last = high < block_keys ? static_cast<int>(high) : static_cast<int>(block_keys);
    if (first >= last) return;
    alignas(64) float scores[block_keys];
    constexpr int group = static_cast<int>(group_keys);
    score_block<S, 1>(tile, 0, stored_block<S>(tile, start), first / group,
                      (last + group - 1) / group, scores);
    Lanes s[block_groups];
    load_scores(scores, tile.softcap, first, last, s);
    const Lanes peak = broadcast(tile.peak[0]), total = broadcast(tile.total[0]);
    typename S::T rounded[group_keys];
    for (int g = 0; g < block_groups; ++g)
        store(scores + g * group,
              S::store(rounded, exponential_of_negative(s[g] - peak)) / total);
    for (int j = first; j < last; ++j) probabilities[j] = probabilities[j] + scores[j];
}

static void probabilities(const AttentionTile& tile, int64_t block, float* sums) {
    if (tile.keys == Element::bf16)
        add_probabilities<StoredBf16>(tile, block * block_keys, sums);
    else if (tile.keys == Element::fp32)
        add_probabilities<StoredFp32>(tile, block * block_keys, sums);
    else
        add_coded_probabilities(tile, block * block_keys, sums);
}

const AttentionKernels attention_kernels = {attend, merge, finish, probabilities};

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
