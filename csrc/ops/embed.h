// Embed: rows of the table, or of the step's own embeddings, become the residual stream; learned
// positions and types may be added, and the sum normed.
#pragma once

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct Embed final : Operation {
    PackedMatrix table;
    float scale = 1.0f;
    PackedMatrix positions, types;  // of no outputs where there are none
    Norm norm;

    Embed() = default;
    explicit Embed(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
