// Embed: rows of the table, or of the step's own embeddings, become the residual stream.
#pragma once

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct Embed final : Operation {
    PackedMatrix table;
    float scale = 1.0f;

    Embed() = default;
    explicit Embed(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
};

}  // namespace ockham::ops
