#include "ops/scale_stream.h"

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"ScaleStream", read<ScaleStream>};

}  // namespace

ScaleStream::ScaleStream(const Fields& fields)
    : layer(fields.integer("layer")), scale(fields.floats("scale")) {}

void ScaleStream::check(Program&) const {
    require(scale.size() == 1, at("the scale", layer) + " is no single number.");
}

void ScaleStream::run(Run& run) const {
    const int64_t hidden = run.hidden;
    float* x = run.x();
    for_rows(run.pool, run.active.count, hidden, [&](int64_t row, int) {
        run.kernels.multiply(x + run.active.at(row) * hidden, scale.front(), hidden);
    });
    keep_hidden(run, layer);
}

}  // namespace ockham::ops
