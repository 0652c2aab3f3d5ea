// HoldStream: the residual stream kept for blocks of a layer that stand side by side.
#pragma once

#include <cstdint>

#include "ops/operation.h"

namespace ockham::ops {

struct HoldStream final : Operation {
    int64_t layer = 0, hidden_size = 0;

    HoldStream() = default;
    explicit HoldStream(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
