// Head: logits for rows that want them, argmaxes and likeliest tokens for the others.
#pragma once

#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct Head final : Operation {
    PackedMatrix out;
    Norm norm;
    std::vector<float> bias;
    float scale = 1.0f;
    float softcap = 0.0f;  // 0: none

    Head() = default;
    explicit Head(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
