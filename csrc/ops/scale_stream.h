// ScaleStream: the residual stream of every row times a number, at the end of a layer.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"

namespace ockham::ops {

struct ScaleStream final : Operation {
    int64_t layer = 0;
    std::vector<float> scale;  // one number

    ScaleStream() = default;
    explicit ScaleStream(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
