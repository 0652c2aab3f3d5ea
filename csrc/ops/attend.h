// Attend: the attention of the layer's queries over the keys that each row sees.
#pragma once

#include <cstdint>

#include "ops/operation.h"
#include "ops/paged_attention.h"
#include "step.h"

namespace ockham::ops {

struct Attend final : Operation {
    int64_t layer = 0, group = 0;
    int64_t reads = -1;  // the layer whose keys and values are read; -1: its own
    AttentionShape shape{};
    int64_t window = 0;  // 0: none
    bool causal = true;

    Attend() = default;
    explicit Attend(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
    // The layer whose keys and values are read.
    int64_t state_layer() const { return reads < 0 ? layer : reads; }

   private:
    void keep_queries(Run& run, const LayerRows& wanted) const;
};

}  // namespace ockham::ops
