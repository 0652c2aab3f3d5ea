#include "choosers/antidiagonals.h"

#ifdef OCKHAM_ISA_NAMESPACE

#include <cstring>

#include "kernels/lanes.h"

namespace ockham::OCKHAM_ISA_NAMESPACE {

namespace {

// Groups of turned queries whose sums stand in registers at once; groups of keys, and elements of them, that
// are gone through before the next ones are, so that all stay in the nearest cache.
constexpr int most_turned = 6;
constexpr int64_t most_groups = 16, most_elements = 32;

// What sum() does with half of its lanes.
inline __attribute__((always_inline)) float sum_half(const float* lanes) {
    const float four[4] = {lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6],
                           lanes[3] + lanes[7]};
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// Adds the products of some elements to the sums of QUERIES groups of queries with one group of keys.
template <int QUERIES>
inline __attribute__((always_inline)) void add_products(const float* q, int64_t q_floats,
                                                        const float* keys, int64_t floats,
                                                        float* sums) {
    Lanes found[QUERIES];
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i) found[i] = load(sums + i * lane_count);
    for (int64_t e = 0; e < floats; e += lane_count) {
        const Lanes k = load(keys + e);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; ++i) found[i] = fma(load(q + i * q_floats + e), k, found[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; ++i) store(sums + i * lane_count, found[i]);
}

template <int QUERIES>
inline void add_turned(const float* q, int64_t head_dim, const float* keys, int64_t groups,
                       int64_t stride, float* scores, int64_t scores_stride) {
    const int64_t floats = head_dim * lane_count, most = most_elements * lane_count;
    alignas(64) float sums[most_groups * QUERIES * lane_count] = {};
    for (int64_t e = 0; e < floats; e += most)
        for (int64_t g = 0; g < groups; ++g)
            add_products<QUERIES>(q + e, floats, keys + g * floats + e,
                                  floats - e < most ? floats - e : most,
                                  sums + g * QUERIES * lane_count);
    for (int64_t g = 0; g < groups; ++g)
        for (int i = 0; i < QUERIES; ++i) {
            const float* lanes = sums + (g * QUERIES + i) * lane_count;
            float* to = scores + i * scores_stride + g * lane_count / stride;
            if (stride == lane_count) {
                *to = sum(load(lanes));
            } else if (stride == 1) {
                store(to, load(lanes));
            } else {
                to[0] = sum_half(lanes);
                to[1] = sum_half(lanes + lane_count / 2);
            }
        }
}

template <int MOST>
inline void add_some(int64_t count, const float* q, int64_t head_dim, const float* keys,
                     int64_t groups, int64_t stride, float* scores, int64_t scores_stride) {
    if (count == MOST)
        add_turned<MOST>(q, head_dim, keys, groups, stride, scores, scores_stride);
    else if constexpr (MOST > 1)
        add_some<MOST - 1>(count, q, head_dim, keys, groups, stride, scores, scores_stride);
}

}  // namespace

void sum_antidiagonals(const float* q, int64_t count, int64_t head_dim, const float* keys,
                       int64_t groups, int64_t stride, float* scores, int64_t scores_stride) {
    const int64_t floats = head_dim * lane_count;
    for (int64_t g = 0; g < groups; g += most_groups)
        for (int64_t i = 0; i < count; i += most_turned)
            add_some<most_turned>(count - i < most_turned ? count - i : most_turned, q + i * floats,
                                  head_dim, keys + g * floats,
                                  groups - g < most_groups ? groups - g : most_groups, stride,
                                  scores + i * scores_stride + g * lane_count / stride,
                                  scores_stride);
}

void widen_keys(const void* group, Element element, int64_t head_dim, int64_t codes_bytes,
                float* keys) {
    constexpr int64_t lanes = lane_count;
    if (element == Element::fp32) {
        std::memcpy(keys, group, sizeof(float) * static_cast<size_t>(head_dim * lanes));
        return;
    }
    if (element == Element::bf16) {
        const auto* pairs = static_cast<const uint32_t*>(group);
        for (int64_t e = 0; e < head_dim; e += 2) {
            uint32_t bits[2 * lanes];
            for (int64_t lane = 0; lane < lanes; ++lane) {
                bits[lane] = pairs[e / 2 * lanes + lane] << 16;
                bits[lanes + lane] = pairs[e / 2 * lanes + lane] & 0xFFFF0000u;
            }
            const int64_t rows = head_dim - e < 2 ? 1 : 2;
            std::memcpy(keys + e * lanes, bits, sizeof(float) * static_cast<size_t>(rows * lanes));
        }
        return;
    }
    const auto* codes = static_cast<const uint8_t*>(group);
    const bool halves = element == Element::int4;
    float scales[lanes], zeros[lanes] = {};
    std::memcpy(scales, codes + codes_bytes, sizeof scales);
    for (int64_t lane = 0; halves && lane < lanes; ++lane) {
        uint32_t grid;
        std::memcpy(&grid, &scales[lane], sizeof grid);
        const uint32_t zero = grid << 16, scale = grid & 0xFFFF0000u;
        std::memcpy(&zeros[lane], &zero, sizeof zero);
        std::memcpy(&scales[lane], &scale, sizeof scale);
    }
    for (int64_t e = 0; e < head_dim; ++e)
        for (int64_t lane = 0; lane < lanes; ++lane) {
            int value;
            if (halves) {
                const uint8_t both = codes[(e / 8 * lanes + lane) * 4 + e % 4];
                value = e % 8 < 4 ? both & 15 : both >> 4;
            } else {
                value = static_cast<int8_t>(codes[(e / 2 * lanes + lane) * 2 + e % 2]);
            }
            keys[e * lanes + lane] = zeros[lane] + static_cast<float>(value) * scales[lane];
        }
}

}  // namespace ockham::OCKHAM_ISA_NAMESPACE

#else

#include "isa/each.h"

namespace ockham {

OCKHAM_DECLARE(WidenKeys widen_keys);
OCKHAM_DECLARE(SumAntidiagonals sum_antidiagonals);

const Antidiagonals antidiagonals{OCKHAM_EACH_ISA(widen_keys), OCKHAM_EACH_ISA(sum_antidiagonals)};

}  // namespace ockham

#endif
