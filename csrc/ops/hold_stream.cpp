#include "ops/hold_stream.h"

#include <algorithm>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"HoldStream", read<HoldStream>};

}  // namespace

HoldStream::HoldStream(const Fields& fields)
    : layer(fields.integer("layer")), hidden_size(fields.integer("hidden_size")) {}

void HoldStream::check(Program& program) const {
    require(hidden_size == program.hidden,
            at("the stream that is held", layer) + " has another width than the program's.");
}

void HoldStream::run(Run& run) const {
    const int64_t hidden = run.hidden;
    const float* x = run.x();
    float* held = run.activations->held.take<float>(run.step.rows * hidden);
    for_rows(run.pool, run.active.count, hidden, [&](int64_t i, int) {
        const int64_t row = run.active.at(i);
        std::copy_n(x + row * hidden, hidden, held + row * hidden);
    });
}

}  // namespace ockham::ops
