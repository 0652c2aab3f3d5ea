// AttentionInput: norm, projection to queries, keys and values, norms of heads, rotation, and keys and
// values written to their slots.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"
#include "run.h"
#include "state/rope.h"

namespace ockham::ops {

struct AttentionInput : Operation {
    int64_t layer = 0, group = 0, heads = 0, kv_heads = 0, head_dim = 0;
    Stack qkv;
    Norm norm;
    std::vector<float> bias;
    Norm q_norm, k_norm;
    bool norm_whole = false;
    Rope rope;
    std::vector<float> query_weight;
    Norm v_norm;
    bool values_are_keys = false;  // as projected; the matrix has no rows of values
    int64_t reads = -1;  // the layer whose keys and values its attention reads; -1: its own
    PackedMatrix beside;  // of no outputs where there is none
    Norm beside_norm;

    AttentionInput() = default;
    explicit AttentionInput(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

// The cosines and sines of a layer's own rope (R, 2, half), or null where it has none.
const float* rotations_of(Run& run, int64_t layer);

// Where runs of the active rows [first, first + count) begin, and where the last ends: the rows of a run
// are written to slots that follow one another in one group of 16.
void find_runs(const RowSet& active, const int64_t* slots, int64_t page_tokens, int64_t first,
               int64_t count, std::vector<int64_t>& runs);

}  // namespace ockham::ops
