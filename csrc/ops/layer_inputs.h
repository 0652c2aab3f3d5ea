// LayerInputs: what each layer is given of a token beside the residual stream, of all layers at once.
#pragma once

#include <cstdint>

#include "ops/operation.h"
#include "ops/parts.h"

namespace ockham::ops {

struct LayerInputs final : Operation {
    PackedMatrix table;
    Stack projection;
    Norm norm;  // of the values of one layer
    float table_scale = 1.0f, projection_scale = 1.0f, scale = 1.0f;
    int64_t padding = 0;  // the row of the table for rows that are no tokens

    LayerInputs() = default;
    explicit LayerInputs(const Fields& fields);
    void check(Program& program) const override;
    void run(Run& run) const override;
    int64_t width() const { return static_cast<int64_t>(norm.weight.size()); }
};

}  // namespace ockham::ops
