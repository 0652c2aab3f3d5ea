// HiddenOutput: the hidden states that a program ends with, of the rows that want them.
#pragma once

#include <cstdint>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct HiddenOutput final : Operation {
    int64_t layer = 0;
    Norm norm;

    HiddenOutput() = default;
    explicit HiddenOutput(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
