// LinearAttention: attention by products of features of queries and keys, in the place of attention.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"
#include "ops/recurrence.h"

namespace ockham::ops {

struct LinearAttention final : Operation {
    RecurrentSizes sizes;
    int64_t features = 0;  // of a head's query and key, before they are mapped
    Stack inputs;
    Stack out;
    Norm norm;
    float eps = 0.0f;
    float residual_scale = 1.0f;

    LinearAttention() = default;
    explicit LinearAttention(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;

   private:
    int64_t value_dim() const { return sizes.value_dim - 1; }
    void map(const float* x, float* y) const;
    void enter(const float* projected, float* y) const;
};

}  // namespace ockham::ops
