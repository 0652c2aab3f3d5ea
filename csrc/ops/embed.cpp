#include "ops/embed.h"

#include <algorithm>
#include <vector>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/norms.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"Embed", read<Embed>};

}  // namespace

Embed::Embed(const Fields& fields)
    : table(fields.matrix("table")),
      scale(fields.number("scale")),
      positions(fields.matrix("positions")),
      types(fields.matrix("types")),
      norm(fields.norm("norm")) {}

void Embed::check(Program& program) const {
    require(program.latest<Embed>() == nullptr, "a program has one embedding.");
    program.hidden = table.inputs;
    program.vocabulary = table.outputs;
    program.positions = positions.outputs * std::max<int64_t>(1, types.outputs);
    require(positions.outputs == 0 || positions.inputs == table.inputs,
            "the positions have another width than the embeddings.");
    require(types.outputs == 0 || (types.inputs == table.inputs && positions.outputs > 0),
            "types have the width of the embeddings, and are told apart by positions.");
    check_norm(norm, table.inputs, "the norm of the embeddings");
}

void Embed::run(Run& run) const {
    const StepView& step = run.step;
    const int64_t hidden = run.hidden;
    float* x = run.activations->x.take<float>(step.rows * hidden);
    std::vector<Buffer>& scratch = run.activations->rows;
    for (Buffer& buffer : scratch) buffer.take<float>(hidden);
    for_rows(run.pool, step.rows, hidden, [&](int64_t row, int thread) {
        const int64_t own = step.embedding_of == nullptr ? -1 : step.embedding_of[row];
        float* to = x + row * hidden;
        if (own >= 0) {
            std::copy_n(step.embeddings + own * hidden, hidden, to);
        } else {
            unpack_row(table, step.ids[row], to);
            if (scale != 1.0f) run.kernels.multiply(to, scale, hidden);
        }
        const auto add = [&](const PackedMatrix& rows, int64_t which) {
            float* added = scratch[thread].get<float>();
            unpack_row(rows, which, added);
            run.kernels.add_scaled(to, added, 1.0f, hidden);
        };
        if (positions.outputs > 0) {
            const int64_t place = step.positions[row];
            if (types.outputs > 0) add(types, place / positions.outputs);
            add(positions, place % positions.outputs);
        }
        if (norm) normalise(run.kernels, norm, to, hidden, to);
    });
    run.embedded = true;
    keep_hidden(run, -1);
}

}  // namespace ockham::ops
