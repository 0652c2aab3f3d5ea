// FeedForward: norm, gate and up (or a single product), the activation, down, added to the residual
// stream, which may be normed then.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct FeedForward final : Operation {
    int64_t layer = 0;
    Stack gate_up;
    Stack down;
    Activation activation = Activation::silu;
    Norm norm;
    std::vector<float> gate_up_bias, down_bias;
    bool gated = true;
    Norm post_norm, stream_norm;
    Norm inner_norm;  // of what `down` multiplies
    Stack shortcut;
    float residual_scale = 1.0f, gate_scale = 1.0f;

    FeedForward() = default;
    explicit FeedForward(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
    int64_t neurons() const override { return down.inputs(); }
};

}  // namespace ockham::ops
