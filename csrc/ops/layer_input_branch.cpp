#include "ops/layer_input_branch.h"

#include <algorithm>

#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/layer_inputs.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"LayerInputBranch", read<LayerInputBranch>};

}  // namespace

LayerInputBranch::LayerInputBranch(const Fields& fields)
    : layer(fields.integer("layer")),
      first(fields.integer("first")),
      input_gate(fields.dense("input_gate", true)),
      input_projection(fields.dense("input_projection", false)),
      activation(fields.activation("activation")),
      norm(fields.norm("norm")) {}

void LayerInputBranch::check(Program& program) const {
    const auto* inputs = program.latest<LayerInputs>();
    const int64_t own = input_gate.outputs();
    require(inputs != nullptr && own == inputs->width() && first >= 0 &&
                first + own <= inputs->projection.outputs(),
            at("the inputs", layer) + " are not among those of the layers.");
    check_dense(program, input_gate, own, program.hidden, at("the gate of the inputs", layer));
    check_dense(program, input_projection, program.hidden, own,
                at("the projection of the inputs", layer));
    check_norm(norm, program.hidden, at("the norm after the inputs", layer));
}

void LayerInputBranch::run(Run& run) const {
    const int64_t hidden = run.hidden, own = input_gate.outputs();
    const int64_t stride = run.layer_input_values;
    Activations& memory = *run.activations;
    const float* inputs = memory.layer_inputs.get<float>() + first;
    for (int64_t begin = 0; begin < run.active.count; begin += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - begin);
        float* gates = memory.qkv.take<float>(rows * own);
        product(run, input_gate, stream_rows(run, {}, begin, rows), gates, {}, begin);
        std::vector<Buffer>& scratch = memory.rows;
        for (Buffer& buffer : scratch) buffer.take<float>(own);
        const auto gated = [&, gates, begin](int64_t row, int thread) -> const float* {
            float* y = scratch[thread].get<float>();
            run.kernels.activated[static_cast<int>(activation)](gates + row * own, own, y);
            const float* of_row = inputs + run.active.at(begin + row) * stride;
            for (int64_t i = 0; i < own; ++i) y[i] *= of_row[i];
            return y;
        };
        float* branch = memory.branch.take<float>(rows * hidden);
        product(run, input_projection, Rows{rows, 2 * own, gated}, branch, {}, begin);
        add_branch(run, begin, rows, branch, norm, 1.0f, {});
    }
    keep_hidden(run, layer);
}

}  // namespace ockham::ops
