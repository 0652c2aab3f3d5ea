#include "ops/recurse.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/rows.h"
#include "ops/checks.h"
#include "ops/fields.h"
#include "program.h"
#include "run.h"
#include "state/planes.h"

namespace ockham::ops {

namespace {

const Added added{"Recurse", read<Recurse>};

// In double and in order: the same for a row whatever stands beside it.
double score(const float* router, const float* x, int64_t length) {
    double squares = 0.0, sum = 0.0;
    for (int64_t i = 0; i < length; ++i) {
        squares += static_cast<double>(x[i]) * x[i];
        sum += static_cast<double>(router[i]) * x[i];
    }
    return sum / std::sqrt(squares / static_cast<double>(length) + 1e-6);
}

}  // namespace

Recurse::Recurse(const Fields& fields)
    : number(fields.integer("number")),
      group(fields.integer("group")),
      stop(fields.integer("stop")),
      router(fields.floats("router")),
      bias(fields.floats("bias")) {}

void Recurse::check(Program& program) const {
    check_vector(router, program.hidden, "the router of a pass");
    require(!router.empty() && bias.size() == 1, "a pass has no router with a bias.");
    require(group >= 0 && group < static_cast<int64_t>(program.planes.groups().size()),
            "the layers of a pass are of no group.");
    const auto* before = program.latest<Recurse>();
    require(number == (before == nullptr ? 0 : before->number + 1),
            "the passes of a program are not in order.");
}

void Recurse::run(Run& run) const {
    const StepView& step = run.step;
    GroupRowsView& own = run.step.groups[group];
    if (!step.active.empty() || own.extra != nullptr)
        throw std::invalid_argument(
            "the rows of a step that choose their passes are of chains, and all run.");
    if (step.deeper != nullptr && number >= step.passes)
        throw std::invalid_argument("the step says nothing of pass " + std::to_string(number) +
                                    ".");
    std::vector<uint8_t> goes(static_cast<size_t>(step.rows), 0);
    for_rows(run.pool, run.active.count, 2 * run.hidden, [&](int64_t i, int) {
        const int64_t row = run.active.at(i);
        double found = score(router.data(), run.x() + row * run.hidden, run.hidden) + bias[0];
        if (step.deeper != nullptr) found += step.deeper[number * step.rows + row];
        goes[static_cast<size_t>(row)] = found > 0.0;
    });
    // The rows of a sequence that go on take the first of its rows' places.
    Passes::Pass& pass = run.passes.taken.emplace_back();
    pass.slots.assign(own.slots, own.slots + step.rows);
    pass.context.assign(own.context, own.context + step.rows);
    pass.rows.reserve(static_cast<size_t>(step.rows));  // never null: no rows are not all rows
    int64_t next = 0;
    for (int64_t row = 0; row < step.rows; ++row) {
        if (row == 0 || step.sequence[row] != step.sequence[row - 1]) next = row;
        if (!goes[static_cast<size_t>(row)]) continue;
        pass.rows.push_back(static_cast<int32_t>(row));
        pass.slots[static_cast<size_t>(row)] = own.slots[next];
        pass.context[static_cast<size_t>(row)] = own.context[next];
        ++next;
    }
    own.slots = pass.slots.data();
    own.context = pass.context.data();
    run.passes.stop = stop;
}

}  // namespace ockham::ops
