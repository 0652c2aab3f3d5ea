// Route: which experts each row goes to, and with which weights.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct Route final : Operation {
    int64_t layer = 0;
    Stack router;
    std::vector<float> bias;
    int64_t top_k = 0;
    bool normalise = false;
    Norm norm;
    std::vector<float> correction;
    bool sigmoid = false;  // of each score, in place of the softmax of all
    float scale = 1.0f;
    std::vector<float> expert_scales;
    // Experts are chosen in the `kept_groups` best of so many groups of neighbours, see route.cpp.
    int64_t groups = 1, kept_groups = 1, group_best = 1;

    Route() = default;
    explicit Route(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
