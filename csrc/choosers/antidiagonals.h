// Sums of scores over antidiagonals, by which the rows of a query block choose together
// (ops/choosing_together.h).
//
// `stride` queries and as many keys have stride^2 scores; the sum of those on the antidiagonal is one
// product of stride * head_dim elements: of the queries, the last one first, with the keys. 16 keys lie
// element by element, a lane for each, and *turned* queries lie likewise, so that a lane's chain of fma over
// elements is the sum for its own key. The lanes of one stride are added last, in a fixed tree.
#pragma once

#include <cstdint>

#include "isa/isa.h"
#include "kernels/layer_kernels.h"

namespace ockham {

// The keys of a group as floats, [head_dim][16]. Behind `codes_bytes` of codes stand scales.
using WidenKeys = void(const void* group, Element element, int64_t head_dim, int64_t codes_bytes,
                       float* keys);
// Of `count` groups of turned queries q and the keys of `groups` groups, each [head_dim][16], the product of
// the lanes [stride * j, stride * (j + 1)) to scores[i * scores_stride + 16 / stride * g + j]. A stride is
// 8 or 16, or 1: a query that stands in all lanes is multiplied with each key by itself.
using SumAntidiagonals = void(const float* q, int64_t count, int64_t head_dim, const float* keys,
                              int64_t groups, int64_t stride, float* scores,
                              int64_t scores_stride);

struct Antidiagonals {
    WidenKeys* widen[isa_count];
    SumAntidiagonals* sum[isa_count];
};

extern const Antidiagonals antidiagonals;

}  // namespace ockham
