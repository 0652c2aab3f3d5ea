// The residual stream x: what a branch adds to it, and what a step wants to see of it.
#pragma once

#include <cstdint>

#include "ops/parts.h"
#include "run.h"

namespace ockham::ops {

// Rows of a branch computed together, where the branch has activations wider than the stream: bounds
// the memory of steps of many rows.
constexpr int64_t most_rows = 512;

// x = shortcut(x) for the active rows [first, first + rows); nothing where there is no shortcut.
void turn_rows(Run& run, int64_t first, int64_t rows, const Stack& shortcut);

// x += residual_scale * post_norm(branch) for the active rows [first, first + rows) and rows [0, rows) of
// the branch, which is overwritten; then x = stream_norm(x) for them, where there is one.
void add_branch(Run& run, int64_t first, int64_t rows, float* branch, const Norm& post_norm,
                float residual_scale, const Norm& stream_norm);

// Copies the rows of x that the step wants after a layer, or after the embedding, which is layer -1. The
// latest operation of a layer that does so has the last word.
void keep_hidden(Run& run, int64_t layer);

}  // namespace ockham::ops
