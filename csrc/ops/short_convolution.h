// ShortConvolution: a gated causal convolution over the latest tokens, in the place of attention.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct ShortConvolution final : Operation {
    int64_t layer = 0;
    int64_t group = 0;
    int64_t length = 0;
    Stack inputs;
    std::vector<float> weight;  // [length][width], the newest token's last
    Stack out;
    Norm norm;
    std::vector<float> inputs_bias;
    std::vector<float> bias;
    std::vector<float> out_bias;
    float residual_scale = 1.0f;
    bool activated = false;  // inputs are what is kept and the gate, and the sum goes through silu

    ShortConvolution() = default;
    explicit ShortConvolution(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;

   private:
    // The sum over what the latest tokens left, the newest last, to `y`.
    void convolve(const float* const* sources, float* y) const;
};

}  // namespace ockham::ops
