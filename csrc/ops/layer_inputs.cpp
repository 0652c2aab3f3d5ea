#include "ops/layer_inputs.h"

#include <algorithm>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"LayerInputs", read<LayerInputs>};

}  // namespace

LayerInputs::LayerInputs(const Fields& fields)
    : table(fields.matrix("table")),
      projection(fields.matrix("projection")),
      norm(fields.norm("norm")),
      table_scale(fields.number("table_scale")),
      projection_scale(fields.number("projection_scale")),
      scale(fields.number("scale")),
      padding(fields.integer("padding")) {}

void LayerInputs::check(Program& program) const {
    const int64_t values = projection.outputs();
    check_matrix(projection, values, program.hidden, "the projection of the layers' inputs");
    require(norm && !norm.centred && values % width() == 0,
            "the norm of the layers' inputs does not divide them.");
    require(table.inputs == values && table.outputs >= program.vocabulary,
            "the table of the layers' inputs has another shape than they and the vocabulary.");
    require(padding >= 0 && padding < table.outputs,
            "the row of the layers' inputs for what is no token is not in their table.");
}

void LayerInputs::run(Run& run) const {
    const StepView& step = run.step;
    const int64_t values = projection.outputs(), own = width();
    run.layer_input_values = values;
    Activations& memory = *run.activations;
    float* inputs = memory.layer_inputs.take<float>(step.rows * values);
    std::vector<Buffer>& scratch = memory.rows;
    for (int64_t first = 0; first < step.rows; first += most_rows) {
        const int64_t rows = std::min(most_rows, step.rows - first);
        product(run, projection, plain_rows(run.x() + first * run.hidden, run.hidden, rows),
                inputs + first * values);
    }
    for (Buffer& buffer : scratch) buffer.take<float>(values);
    for_rows(run.pool, step.rows, 4 * values, [&](int64_t row, int thread) {
        float* to = inputs + row * values;
        run.kernels.multiply(to, projection_scale, values);
        for (int64_t at = 0; at < values; at += own)
            run.kernels.rms_norm(to + at, norm.weight.data(), norm.eps, own, to + at);
        const bool token = step.embedding_of == nullptr || step.embedding_of[row] < 0;
        float* looked_up = scratch[thread].get<float>();
        unpack_row(table, token ? step.ids[row] : padding, looked_up);
        run.kernels.add_scaled(to, looked_up, table_scale, values);
        run.kernels.multiply(to, scale, values);
    });
}

}  // namespace ockham::ops
