// The activation between the two products of a feed-forward: act(gate) * up, or act(x).
#pragma once

#include <algorithm>
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

// Rows of `inner` values, made of rows of gates, which are multiplied by `scale`, and ups where `gated`,
// and then normed where there is a `norm`, which leaves zeros as they are. From value `used` on they are
// 0.
inline auto activated_rows(Run& run, Activation activation, bool gated, const Norm& norm,
                           const float* x, int64_t inner, int64_t count, int64_t used,
                           float scale = 1.0f) {
    std::vector<Buffer>& scratch = run.activations->rows;
    for (Buffer& buffer : scratch) buffer.take<float>(inner);
    const int64_t width = gated ? 2 * inner : inner;
    return Rows{count, 2 * inner,
                [&, activation, gated, x, inner, width, used, scale](
                    int64_t row, int thread) -> const float* {
                    float* y = scratch[thread].template get<float>();
                    const float* from = x + row * width;
                    const int which = static_cast<int>(activation);
                    const float* gates = from;
                    if (scale != 1.0f) {
                        std::copy_n(from, used, y);
                        run.kernels.multiply(y, scale, used);
                        gates = y;
                    }
                    if (gated)
                        run.kernels.gated[which](gates, from + inner, used, y);
                    else
                        run.kernels.activated[which](gates, used, y);
                    std::fill(y + used, y + inner, 0.0f);
                    if (norm) normalise(run.kernels, norm, y, inner, y);
                    return y;
                },
                used};
}

}  // namespace ockham::ops
