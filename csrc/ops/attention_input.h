// AttentionInput: norm, projection to queries, keys and values, norms of heads, rotation, and keys and
// values written to their slots.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"
#include "state/rope.h"

namespace ockham::ops {

struct AttentionInput final : Operation {
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

}  // namespace ockham::ops
