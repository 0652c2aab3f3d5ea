#include "ops/embed.h"

#include <algorithm>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"Embed", read<Embed>};

}  // namespace

Embed::Embed(const Fields& fields)
    : table(fields.matrix("table")), scale(fields.number("scale")) {}

void Embed::check(Program& program) const {
    require(program.latest<Embed>() == nullptr, "a program has one embedding.");
    program.hidden = table.inputs;
    program.vocabulary = table.outputs;
}

void Embed::run(Run& run) const {
    const StepView& step = run.step;
    const int64_t hidden = run.hidden;
    float* x = run.activations->x.take<float>(step.rows * hidden);
    for_rows(run.pool, step.rows, hidden, [&](int64_t row, int) {
        const int64_t own = step.embedding_of == nullptr ? -1 : step.embedding_of[row];
        if (own >= 0) {
            std::copy_n(step.embeddings + own * hidden, hidden, x + row * hidden);
            return;
        }
        unpack_row(table, step.ids[row], x + row * hidden);
        if (scale != 1.0f) run.kernels.multiply(x + row * hidden, scale, hidden);
    });
    run.embedded = true;
    keep_hidden(run, -1);
}

}  // namespace ockham::ops
