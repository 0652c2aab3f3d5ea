// GatedDelta: the gated delta rule over a state of each value head, in the place of attention.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"
#include "ops/recurrence.h"

namespace ockham::ops {

struct GatedDelta final : Operation {
    RecurrentSizes sizes;
    Stack inputs;
    std::vector<float> decay, decay_bias;  // of each value head
    Norm head_norm;
    Stack out;
    Norm norm;
    float residual_scale = 1.0f;

    GatedDelta() = default;
    explicit GatedDelta(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;

   private:
    void prepare(Run& run, const Recurrence& recurrence, int64_t i) const;
};

}  // namespace ockham::ops
