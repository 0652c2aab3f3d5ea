// The norm of one row, of whichever kind it is.
#pragma once

#include <cstdint>

#include "kernels/layer_kernels.h"
#include "ops/parts.h"

namespace ockham::ops {

// y = norm(x) of `length` values; y may be x. `norm` is none that stands for None.
inline void normalise(const RowKernels& kernels, const Norm& norm, const float* x, int64_t length,
                      float* y) {
    if (norm.centred)
        kernels.layer_norm(x, norm.weight.data(), norm.bias.empty() ? nullptr : norm.bias.data(),
                           norm.eps, length, y);
    else
        kernels.rms_norm(x, norm.weight.data(), norm.eps, length, y);
    for (const Norm& next : norm.then) normalise(kernels, next, y, length, y);
}

}  // namespace ockham::ops
