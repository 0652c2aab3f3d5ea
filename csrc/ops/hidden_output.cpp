#include "ops/hidden_output.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/norms.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"HiddenOutput", read<HiddenOutput>};

}  // namespace

HiddenOutput::HiddenOutput(const Fields& fields)
    : layer(fields.integer("layer")), norm(fields.norm("norm")) {}

void HiddenOutput::check(Program& program) const {
    check_norm(norm, program.hidden, "the final norm");
}

void HiddenOutput::run(Run& run) const {
    const int64_t hidden = run.hidden;
    for (const LayerRows& wanted : run.step.wants_hidden) {
        if (wanted.layer != layer) continue;
        Floats kept{std::make_unique<Buffer>(), wanted.count, hidden};
        float* to = kept.memory->take<float>(wanted.count * hidden);
        for_rows(run.pool, wanted.count, hidden, [&](int64_t i, int) {
            const float* from = run.x() + wanted.rows[i] * hidden;
            if (norm)
                normalise(run.kernels, norm, from, hidden, to + i * hidden);
            else
                std::copy_n(from, hidden, to + i * hidden);
        });
        run.hidden_states.emplace_back(layer, std::move(kept));
    }
}

}  // namespace ockham::ops
