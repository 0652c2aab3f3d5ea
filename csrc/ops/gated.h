// The gated activation between the two products of a feed-forward: act(gate) * up.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/layer_kernels.h"
#include "ops/parts.h"
#include "ops/product.h"
#include "run.h"

namespace ockham::ops {

// `gate_up` holds `inner` gates and then `inner` ups.
inline void gate(const RowKernels& kernels, Activation activation, const float* gate_up,
                 int64_t inner, float* y) {
    if (activation == Activation::silu)
        kernels.gated_silu(gate_up, gate_up + inner, inner, y);
    else
        kernels.gated_gelu_tanh(gate_up, gate_up + inner, inner, y);
}

inline auto gated_rows(Run& run, Activation activation, const float* gate_up, int64_t inner,
                       int64_t count) {
    std::vector<Buffer>& scratch = run.activations->rows;
    for (Buffer& buffer : scratch) buffer.take<float>(inner);
    return Rows{count, 2 * inner,
                [&, activation, gate_up, inner](int64_t row, int thread) -> const float* {
                    float* y = scratch[thread].template get<float>();
                    gate(run.kernels, activation, gate_up + row * 2 * inner, inner, y);
                    return y;
                }};
}

}  // namespace ockham::ops
