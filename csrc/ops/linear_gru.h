// LinearGru: a gated linear recurrence over a state of each channel, in the place of attention.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/chunks.h"
#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct LinearGru final : Operation {
    int64_t layer = 0, cells = 0, ends = 0;
    Stack input, forget, gate, out;
    Norm inner_norm, input_norm, forget_norm, gate_norm, out_norm;
    std::vector<float> bound;  // of each channel, or empty
    float residual_scale = 1.0f;

    LinearGru() = default;
    explicit LinearGru(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;

   private:
    int64_t width() const { return out.inputs(); }
    void enter(const RowKernels& kernels, const float* x, float* f, float* made) const;
    void scan(Run& run, const Chunks& chunks, const float* f, float* made) const;
};

}  // namespace ockham::ops
