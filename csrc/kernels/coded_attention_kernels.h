// Attention over keys and values in codes, once for all instruction sets; included by
// attention_kernels.h.
//
// Products are of integers, and exact: a query is made codes of 16 bits, and so are the weights of a
// block's keys, each times its value's scale; of 8 bits beside keys, or values, of int4, whose own
// rounding is forty times as large. A result depends on what follows, by logical index:
// - a score is its sum of products, rounded to fp32, times the query's scale, times the key's; with
//   keys of int4 and one fma of the key's zero with the sum of the query's codes times its scale;
// - a block's scores are reduced as in attention_kernels.h;
// - the weights of a block have one scale, such that the largest of them has the largest code; keys
//   that the query does not see have the weight 0, which adds nothing. A value's element is then a
//   sum of products and one fma of it with that scale onto the blocks before. With values of int4 the
//   sum of the weights times their values' zeros, in 16 lanes and those as a tree, is added first.
#pragma once

#include "kernels/attention_tiles.h"
#include "kernels/code_lanes.h"

namespace ockham {
namespace OCKHAM_ISA_NAMESPACE {

// How codes lie in a row of bytes, as KeyGroup says: `parts` times `step` of each of 16 lanes. `step`
// codes of a query, or of weights, which are no larger than `most_weight`, are taken at a time; so few
// products fit into Sums.
struct CodedInt8 {
    using Query = int16_t;
    using Weight = int16_t;
    using Sums = IntLanes;
    static constexpr int parts = 1, step = 2, row_bytes = 32;
    static constexpr int few = 1 << 20, few_weights = 1 << 20, most_weight = 32767;
    static constexpr bool zeros = false;  // whether a row has one beside its scale
    static Sums nothing() { return int_zero(); }
    static IntPairOfAll of_query(const Query* p) { return broadcast_int_pair(p); }
    static IntPairOfAll of_weights(const Weight* p) { return broadcast_int_pair(p); }
    static void store(Weight* p, Lanes a) { store_int16(p, a); }
    static IntPairs load(const uint8_t* p, int) { return signed_pairs(p); }
    static Lanes scales_at(const uint8_t* p) {
        return ::ockham::OCKHAM_ISA_NAMESPACE::load(reinterpret_cast<const float*>(p));
    }
};
struct CodedInt4 {
    using Query = int8_t;
    using Weight = uint8_t;
    using Sums = FourSums;
    static constexpr int parts = 2, step = 4, row_bytes = 64;
    static constexpr int few = few_fours, few_weights = few_bytes, most_weight = 255;
    static constexpr bool zeros = true;
    static Sums nothing() { return few_zero(); }
    static FourOfAll of_query(const Query* p) { return broadcast_four(p); }
    static BytesOfAll of_weights(const Weight* p) { return broadcast_bytes(p); }
    static void store(Weight* p, Lanes a) { store_uint8(p, a); }
    static HalfFours load(const uint8_t* p, int part) {
        return part == 0 ? low_fours(p) : high_fours(p);
    }
    static Lanes scales_at(const uint8_t* p) { return high_halves(p); }
    static Lanes zeros_at(const uint8_t* p) { return low_halves(p); }
};

// The groups of one block. Those that nobody sees are never read.
struct CodedBlock {
    const uint8_t* keys[block_groups];
    const uint8_t* values[block_groups];
    int64_t key_scales, value_scales;  // where they stand in a group, in bytes
    Ahead ahead;

    CodedBlock(const AttentionTile& tile, int64_t block_start, bool more = false)
        : ahead(tile, block_start, more) {
        const KeyGroup* groups = tile.groups + (block_start / group_keys - tile.first_group);
        for (int g = 0; g < block_groups; ++g) {
            keys[g] = static_cast<const uint8_t*>(groups[g].keys);
            values[g] = static_cast<const uint8_t*>(groups[g].values);
        }
        constexpr auto scales = group_keys * static_cast<int64_t>(sizeof(float));
        key_scales = tile.key_bytes - scales;
        value_scales = tile.value_bytes - scales;
    }
};

// Scores of QUERIES queries with GROUPS groups of keys: scores[query * 64 + key].
template <class K, int QUERIES, int GROUPS>
static inline __attribute__((always_inline)) void score_coded_groups(
    const AttentionTile& tile, int64_t first, const uint8_t* const* keys, const int64_t* ahead,
    int64_t scales, float* scores) {
    const auto* q = static_cast<const typename K::Query*>(tile.q) + first * tile.width;
    const int64_t width = tile.width;
    constexpr int64_t row = K::parts * K::step, few = K::few / K::parts * row;
    IntLanes sums[QUERIES][GROUPS];
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) sums[i][g] = int_zero();
    for (int64_t e = 0; e < width;) {
        const int64_t end = few < most_coded_dim && e + few < width ? e + few : width;
        typename K::Sums some[QUERIES][GROUPS];
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
            for (int g = 0; g < GROUPS; ++g) some[i][g] = K::nothing();
        for (; e < end; e += row) {
            const int64_t at = e / row * K::row_bytes;
            if (K::row_bytes == line_bytes || at % line_bytes == 0)
#pragma GCC unroll 8
                for (int g = 0; g < GROUPS; ++g) ask_for(keys[g] + at, ahead[g]);
#pragma GCC unroll 2
            for (int part = 0; part < K::parts; ++part) {
                decltype(K::load(keys[0], 0)) k[GROUPS];
#pragma GCC unroll 8
                for (int g = 0; g < GROUPS; ++g) k[g] = K::load(keys[g] + at, part);
#pragma GCC unroll 8
                for (int i = 0; i < QUERIES; ++i) {
                    const auto elements = K::of_query(q + i * width + e + K::step * part);
#pragma GCC unroll 8
                    for (int g = 0; g < GROUPS; ++g) some[i][g] = dot(elements, k[g], some[i][g]);
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
            for (int g = 0; g < GROUPS; ++g) sums[i][g] = add_sums(sums[i][g], some[i][g]);
    }
    Lanes key_scales[GROUPS], key_zeros[GROUPS];
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; ++g) {
        key_scales[g] = K::scales_at(keys[g] + scales);
        if constexpr (K::zeros) key_zeros[g] = K::zeros_at(keys[g] + scales);
    }
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i) {
        const float own_scale = tile.q_scales[first + i];
        const Lanes own = broadcast(own_scale);
        const Lanes own_sum = broadcast(own_scale * static_cast<float>(tile.q_sums[first + i]));
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) {
            Lanes score = to_float(sums[i][g]) * own * key_scales[g];
            if constexpr (K::zeros) score = fma(own_sum, key_zeros[g], score);
            store(scores + i * block_keys + g * group_keys, score);
        }
    }
}

template <class K, int QUERIES>
static void score_coded_block(const AttentionTile& tile, int64_t first, const CodedBlock& block,
                              int first_group, int last_group, float* scores) {
    constexpr int most = tile_vectors<QUERIES>;
    int g = first_group;
    for (; g + most <= last_group; g += most)
        score_coded_groups<K, QUERIES, most>(tile, first, block.keys + g, block.ahead.keys + g,
                                             block.key_scales, scores + g * group_keys);
    for (; g < last_group; ++g)
        score_coded_groups<K, QUERIES, 1>(tile, first, block.keys + g, block.ahead.keys + g,
                                          block.key_scales, scores + g * group_keys);
}

// The weights of a block's keys, for each query of some.
template <class V, int QUERIES>
struct CodedWeights {
    alignas(64) typename V::Weight codes[QUERIES * block_keys];
    float largest[QUERIES];  // before they were made codes
    float scales[QUERIES];
    float zeros[QUERIES];  // the sum of the weights times their values' zeros
};

// What the values of a block say beside their codes, by groups.
struct ValueGrids {
    Lanes scales[block_groups], zeros[block_groups];
};

// A query's weights times their values' scales, of the keys [first, last), and their own scale.
template <class V, int QUERIES>
static inline __attribute__((always_inline)) void scale_weights(
    const Lanes* weights, const ValueGrids& values, int first, int last, int query, Lanes* scaled,
    CodedWeights<V, QUERIES>& coded) {
    constexpr int group = static_cast<int>(group_keys);
    Lanes zeros[block_groups];
#pragma GCC unroll 8
    for (int g = 0; g < block_groups; ++g) {
        const int begin = g * group, low = first > begin ? first - begin : 0;
        const int high = last < begin + group ? last - begin : group;
        scaled[g] = zeros[g] = zero();
        if (low >= high) continue;
        scaled[g] = weights[g] * values.scales[g];
        if constexpr (V::zeros) zeros[g] = weights[g] * values.zeros[g];
        if (low == 0 && high == group) continue;
        scaled[g] = select(lane_range(low, high), scaled[g], zero());
        if constexpr (V::zeros) zeros[g] = select(lane_range(low, high), zeros[g], zero());
    }
    if constexpr (V::zeros)
        coded.zeros[query] = sum((zeros[0] + zeros[1]) + (zeros[2] + zeros[3]));
    coded.largest[query] = largest_of(scaled);
}

// Makes them codes.
template <class V, int QUERIES>
static inline __attribute__((always_inline)) void code_weights(const Lanes* scaled, int query,
                                                               CodedWeights<V, QUERIES>& coded) {
    constexpr int group = static_cast<int>(group_keys);
    constexpr float most = static_cast<float>(V::most_weight);
    const float largest = coded.largest[query];
    // What is so small adds nothing, and its reciprocal would overflow.
    const bool none = largest < 1e-30f;
    coded.scales[query] = none ? 0.0f : largest / most;
    const Lanes by = broadcast(none ? 0.0f : most / largest);
#pragma GCC unroll 8
    for (int g = 0; g < block_groups; ++g)
        V::store(coded.codes + query * block_keys + g * group, scaled[g] * by);
}

// out[query][0 .. 16 * VECTORS) += the products of weights and values of whole groups. The first
// vector is the part FIRST of its row.
template <class V, int QUERIES, int VECTORS, int FIRST>
static inline __attribute__((always_inline)) void add_coded_values(
    const AttentionTile& tile, const CodedWeights<V, QUERIES>& weights, const CodedBlock& block,
    int64_t element, int first_group, int last_group, float* out) {
    constexpr int group = static_cast<int>(group_keys);
    constexpr int few = V::few_weights / (group / V::step);  // groups
    const int64_t row_bytes = block.value_scales / (group / V::step);  // of V::step tokens
    const int64_t at = element / (16 * V::parts) * V::row_bytes;
    IntLanes sums[QUERIES][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
        for (int n = 0; n < VECTORS; ++n) sums[i][n] = int_zero();
    for (int g = first_group; g < last_group;) {
        const int end = few < block_groups && g + few < last_group ? g + few : last_group;
        typename V::Sums some[QUERIES][VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
            for (int n = 0; n < VECTORS; ++n) some[i][n] = V::nothing();
        for (; g < end; ++g) {
            const uint8_t* values = block.values[g] + at;
            const auto* codes = weights.codes + g * group;
            for (int j = 0; j < group; j += V::step, values += row_bytes) {
                // Lines that are shared with another part, or vector, are asked for once.
                constexpr int in_line = static_cast<int>(line_bytes) * V::parts / V::row_bytes;
#pragma GCC unroll 8
                for (int n = 0; n < VECTORS; n += in_line)
                    ask_for(values + (FIRST + n) / V::parts * V::row_bytes, block.ahead.values[g]);
                decltype(V::load(values, 0)) v[VECTORS];
#pragma GCC unroll 8
                for (int n = 0; n < VECTORS; ++n)
                    v[n] = V::load(values + (FIRST + n) / V::parts * V::row_bytes,
                                   (FIRST + n) % V::parts);
#pragma GCC unroll 8
                for (int i = 0; i < QUERIES; ++i) {
                    const auto weight = V::of_weights(codes + i * block_keys + j);
#pragma GCC unroll 8
                    for (int n = 0; n < VECTORS; ++n) some[i][n] = dot(weight, v[n], some[i][n]);
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 8
            for (int n = 0; n < VECTORS; ++n) sums[i][n] = add_sums(sums[i][n], some[i][n]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i) {
        const Lanes scale = broadcast(weights.scales[i]);
#pragma GCC unroll 8
        for (int n = 0; n < VECTORS; ++n) {
            float* to = out + i * tile.width + n * lane_count;
            Lanes before = load(to);
            if constexpr (V::zeros) before = before + broadcast(weights.zeros[i]);
            store(to, fma(scale, to_float(sums[i][n]), before));
        }
    }
}

template <class V, int QUERIES>
static void add_coded_block_values(const AttentionTile& tile,
                                   const CodedWeights<V, QUERIES>& weights, const CodedBlock& block,
                                   int first_group, int last_group, float* out) {
    constexpr int most = tile_vectors<QUERIES>;
    int64_t e = 0;
    for (; most > 1 && e + most * lane_count <= tile.width; e += most * lane_count)
        add_coded_values<V, QUERIES, most, 0>(tile, weights, block, e, first_group, last_group,
                                              out + e);
    for (; e < tile.width; e += lane_count)
        if (e / lane_count % V::parts == 0)
            add_coded_values<V, QUERIES, 1, 0>(tile, weights, block, e, first_group, last_group,
                                               out + e);
        else
            add_coded_values<V, QUERIES, 1, V::parts - 1>(tile, weights, block, e, first_group,
                                                          last_group, out + e);
}

// QUERIES queries from query `first` on against one block.
template <class K, class V, int QUERIES>
static void attend_coded_block(const AttentionTile& tile, int64_t first, int64_t block_start,
                               const CodedBlock& block) {
    alignas(64) float scores[QUERIES * block_keys];
    CodedWeights<V, QUERIES> weights;
    const Seen<QUERIES> seen(tile, first, block_start);
    constexpr int group = static_cast<int>(group_keys);
    const int first_group = seen.least / group, last_group = (seen.most + group - 1) / group;
    score_coded_block<K, QUERIES>(tile, first, block, first_group, last_group, scores);
    ValueGrids values;
    for (int g = first_group; g < last_group; ++g) {
        const uint8_t* grids = block.values[g] + block.value_scales;
        values.scales[g] = V::scales_at(grids);
        if constexpr (V::zeros) values.zeros[g] = V::zeros_at(grids);
    }

    // One step for all queries after the other: a query's own steps wait for each other.
    alignas(64) float change[lane_count] = {};  // old peak minus new, by query
    float block_total[QUERIES];
    bool changed = false;
    Lanes s[QUERIES][block_groups];
    for (int i = 0; i < QUERIES; ++i) {
        load_scores(scores + i * block_keys, tile.softcap, seen.begin[i], seen.end[i], s[i]);
        const float old_peak = tile.peak[first + i];
        const float block_peak = largest(max(max(s[i][0], s[i][1]), max(s[i][2], s[i][3])));
        const float peak = block_peak > old_peak ? block_peak : old_peak;
        change[i] = old_peak - peak;
        changed = changed || peak != old_peak;
        tile.peak[first + i] = peak;
    }
    for (int i = 0; i < QUERIES; ++i) {
        const Lanes shift = broadcast(tile.peak[first + i]);
#pragma GCC unroll 8
        for (int g = 0; g < block_groups; ++g) s[i][g] = exponential_of_negative(s[i][g] - shift);
        block_total[i] = sum((s[i][0] + s[i][1]) + (s[i][2] + s[i][3]));
    }
    Lanes scaled[QUERIES][block_groups];
    for (int i = 0; i < QUERIES; ++i)
        scale_weights<V>(s[i], values, seen.begin[i], seen.end[i], i, scaled[i], weights);
    for (int i = 0; i < QUERIES; ++i) code_weights<V>(scaled[i], i, weights);
    alignas(64) float shrink[lane_count];
    if (changed) store(shrink, exponential_of_negative(load(change)));
    for (int i = 0; i < QUERIES; ++i)
        shrink_sums(tile, first + i, changed ? shrink[i] : 1.0f, block_total[i]);
    add_coded_block_values<V, QUERIES>(tile, weights, block, first_group, last_group,
                                       tile.out + first * tile.width);
}

template <class K, class V, int MOST>
static inline void attend_coded_queries(int count, const AttentionTile& tile, int64_t first,
                                        int64_t block_start, const CodedBlock& block) {
    if (count == MOST)
        attend_coded_block<K, V, MOST>(tile, first, block_start, block);
    else if constexpr (MOST > 1)
        attend_coded_queries<K, V, MOST - 1>(count, tile, first, block_start, block);
}

template <class K, class V>
static void attend_coded(const AttentionTile& tile, int64_t first, int64_t last,
                         int64_t block_start, bool more) {
    CodedBlock block(tile, block_start, more);
    int64_t rounds = (last - first + tile_queries - 1) / tile_queries;
    for (; rounds > 0; --rounds) {
        const int64_t count = (last - first + rounds - 1) / rounds;
        attend_coded_queries<K, V, tile_queries>(static_cast<int>(count), tile, first, block_start,
                                                 block);
        first += count;
        block.ahead = {};
    }
}

// The queries [first, last), which all see keys of the block.
static void attend_coded_block_of_tile(const AttentionTile& tile, int64_t first, int64_t last,
                                       int64_t block_start, bool more) {
    const bool four = tile.values == Element::int4;
    if (tile.keys == Element::int8)
        (four ? attend_coded<CodedInt8, CodedInt4> : attend_coded<CodedInt8, CodedInt8>)(
            tile, first, last, block_start, more);
    else
        (four ? attend_coded<CodedInt4, CodedInt4> : attend_coded<CodedInt4, CodedInt8>)(
            tile, first, last, block_start, more);
}

// As AttentionKernels::probabilities, of a block that begins at the logical key `start`.
static void add_coded_probabilities(const AttentionTile& tile, int64_t start,
                                    float* probabilities) {
    const Seen<1> seen(tile, 0, start);
    const int first = seen.begin[0], last = seen.end[0];
    if (first >= last) return;
    alignas(64) float scores[block_keys];
    constexpr int group = static_cast<int>(group_keys);
    const int first_group = first / group, last_group = (last + group - 1) / group;
    const CodedBlock block(tile, start);
    if (tile.keys == Element::int8)
        score_coded_block<CodedInt8, 1>(tile, 0, block, first_group, last_group, scores);
    else
        score_coded_block<CodedInt4, 1>(tile, 0, block, first_group, last_group, scores);
    Lanes s[block_groups];
    load_scores(scores, tile.softcap, first, last, s);
    const Lanes peak = broadcast(tile.peak[0]), total = broadcast(tile.total[0]);
    for (int g = 0; g < block_groups; ++g)
        store(scores + g * group, exponential_of_negative(s[g] - peak) / total);
    for (int j = first; j < last; ++j) probabilities[j] = probabilities[j] + scores[j];
}

}  // namespace OCKHAM_ISA_NAMESPACE
}  // namespace ockham
