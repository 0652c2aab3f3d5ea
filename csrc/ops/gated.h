// The activation between the two products of a feed-forward: act(gate) * up, or act(x).
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
    kernels.gated[static_cast<int>(activation)](gate_up, gate_up + inner, inner, y);
}

// Rows of `inner` values, made of rows of gates and ups where `gated`.
inline auto activated_rows(Run& run, Activation activation, bool gated, const float* x,
                           int64_t inner, int64_t count) {
    std::vector<Buffer>& scratch = run.activations->rows;
    for (Buffer& buffer : scratch) buffer.take<float>(inner);
    const int64_t width = gated ? 2 * inner : inner;
    return Rows{count, 2 * inner,
                [&, activation, gated, x, inner, width](int64_t row, int thread) -> const float* {
                    float* y = scratch[thread].template get<float>();
                    if (gated)
                        gate(run.kernels, activation, x + row * width, inner, y);
                    else
                        run.kernels.activated[static_cast<int>(activation)](x + row * width, inner,
                                                                            y);
                    return y;
                }};
}

}  // namespace ockham::ops
