// StateSpace: a selective state space (Mamba 2) over a state of each head, in the place of attention.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operation.h"
#include "ops/parts.h"
#include "ops/recurrence.h"

namespace ockham::ops {

struct StateSpace final : Operation {
    RecurrentSizes sizes;
    Stack inputs;
    std::vector<float> decay, step_bias;  // of each head
    float shortest_step = 0.0f, longest_step = 0.0f;
    std::vector<float> skip;  // of each head
    int64_t norm_groups = 0;
    Norm group_norm;
    bool norm_first = false;  // or gated first
    Stack outputs;
    Norm norm;
    std::vector<float> inputs_bias, out_bias;
    float gate_scale = 1.0f, step_scale = 1.0f, residual_scale = 1.0f;
    bool held = false;  // whether it reads the stream that was held

    StateSpace() = default;
    explicit StateSpace(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;

   private:
    void prepare(const Recurrence& recurrence, int64_t i) const;
    void finish(Run& run, const Recurrence& recurrence, int64_t i) const;
};

}  // namespace ockham::ops
