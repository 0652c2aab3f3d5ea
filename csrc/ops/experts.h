// Experts: the experts that Route chose for each row, a shared one where there is one, added to the
// residual stream.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct Experts final : Operation {
    int64_t layer = 0;
    std::vector<PackedMatrix> gate_up, down;
    std::vector<float> gate_up_bias, down_bias;  // of all experts, one after another
    Activation activation = Activation::silu;
    Stack shared_gate_up, shared_down, shared_gate;
    // Of what the experts read (none: what the router left), of what the chosen give together, and the
    // same of the shared expert.
    Norm norm, routed_norm, shared_norm, shared_post_norm;
    Norm post_norm;
    float residual_scale = 1.0f;
    Stack shortcut;
    bool gated = true;

    // How many values of a row come before the activation that makes `inner` of them.
    int64_t gates(int64_t inner) const { return gated ? 2 * inner : inner; }

    Experts() = default;
    explicit Experts(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
