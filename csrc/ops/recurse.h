// Recurse: which rows take one more pass through the layers that run several times.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"

namespace ockham::ops {

struct Recurse final : Operation {
    int64_t number = 0, group = 0, stop = 0;
    std::vector<float> router, bias;

    Recurse() = default;
    explicit Recurse(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
