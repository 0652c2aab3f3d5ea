// AttentionOutput: the projection of what attention gave, added to the residual stream,
// which may be normed then.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct AttentionOutput final : Operation {
    int64_t layer = 0;
    Stack out;
    std::vector<float> bias;
    Norm post_norm;
    float residual_scale = 1.0f;
    Norm stream_norm;
    Stack shortcut;
    Stack gate;  // of what attention gave
    Norm gate_norm;
    Norm inner_norm;  // of what `out` multiplies
    std::vector<PackedMatrix> values;  // of each head, from what is attended to

    AttentionOutput() = default;
    explicit AttentionOutput(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
