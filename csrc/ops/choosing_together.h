// Which blocks of keys the rows of a whole query block visit that choose together, in one layer.
//
// `stride` neighbouring queries and as many keys stand for each other by the sum of their scores on one
// antidiagonal, which passes through every row and every column (Xu et al. 2025,
// arXiv:2503.16428). For each query head, the softmax of those sums, divided by the stride, over all that
// the block sees is added up over its rows and over the keys of each block. Of the blocks in the order of
// these weights, summed over the query heads of one key-value head, as many are visited as make up the
// threshold, beside the first blocks and the block itself, which count in it.
//
// Or each key-value head has a rule of its own, and a share of the blocks that it visits (Jiang et
// al. 2024, arXiv:2407.02490): the latest blocks, those that matter most to each `stride`-th row (`lines`: what
// stands in a column or on a diagonal of the matrix of scores is seen by each of them), or those whose mean
// key has the highest scores with the mean query (`means`).
//
// Only the 64 rows of a block that are all in one step choose, so that what they choose follows from the
// text before the block's end, whatever else is computed. Other rows visit all that they see.
#pragma once

#include <cstdint>

#include "ops/choosing.h"

namespace ockham {

// Adds to `chosen`, which choose() has begun for this layer, and to `left_out`. q as for attend().
void choose_together(ThreadPool& pool, Isa isa, const StepView& step, const AttentionPlan& plan,
                     const AttentionShape& shape, const Planes& planes, int64_t layer,
                     const float* q, int64_t q_stride, ChosenBlocks& chosen, LeftOut& left_out);

}  // namespace ockham
