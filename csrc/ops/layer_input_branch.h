// LayerInputBranch: what a layer is given beside the residual stream, gated by that, projected and added.
#pragma once

#include <cstdint>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct LayerInputBranch final : Operation {
    int64_t layer = 0;
    int64_t first = 0;  // of the layer's values among those of all layers
    Stack input_gate, input_projection;
    Activation activation = Activation::silu;
    Norm norm;

    LayerInputBranch() = default;
    explicit LayerInputBranch(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
