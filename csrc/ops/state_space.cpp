#include "ops/state_space.h"

#include <algorithm>

#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/hold_stream.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"StateSpace", read<StateSpace>};

}  // namespace

StateSpace::StateSpace(const Fields& fields)
    : sizes(fields),
      inputs(fields.dense("inputs", true)),
      decay(fields.floats("decay")),
      step_bias(fields.floats("step_bias")),
      shortest_step(fields.number("shortest_step")),
      longest_step(fields.number("longest_step")),
      skip(fields.floats("skip")),
      norm_groups(fields.integer("norm_groups")),
      group_norm(fields.norm("group_norm")),
      norm_first(fields.flag("norm_first")),
      outputs(fields.dense("outputs", false)),
      norm(fields.norm("norm")),
      inputs_bias(fields.floats("inputs_bias")),
      out_bias(fields.floats("out_bias")),
      gate_scale(fields.number("gate_scale")),
      step_scale(fields.number("step_scale")),
      residual_scale(fields.number("residual_scale")),
      held(fields.flag("held")) {}

void StateSpace::check(Program& program) const {
    const int64_t hidden = program.hidden, layer = sizes.layer, heads = sizes.value_heads;
    const int64_t wide = sizes.channels() + sizes.values() + heads;
    sizes.check(program);
    check_dense(program, inputs, wide, hidden, at("the recurrence's inputs", layer));
    check_dense(program, outputs, hidden, sizes.values(), at("the recurrence's output", layer));
    check_norm(norm, hidden, at("the norm", layer));
    check_vector(inputs_bias, wide, at("the bias of the recurrence's inputs", layer));
    check_vector(out_bias, hidden, at("the bias of the recurrence's output", layer));
    check_vector(decay, heads, at("the decays", layer));
    check_vector(step_bias, heads, at("the steps' bias", layer));
    check_vector(skip, heads, at("the skips", layer));
    require(!decay.empty() && !step_bias.empty() && !skip.empty(),
            at("the recurrence", layer) + " has no decays, no steps or no skips.");
    require(norm_groups > 0 && sizes.values() % norm_groups == 0 && !group_norm.centred,
            at("the norm of groups", layer) + " does not divide what it norms.");
    check_norm(group_norm, sizes.values(), at("the norm of groups", layer));
    const auto* holder = program.latest<HoldStream>();
    require(!held || (holder != nullptr && holder->layer == layer),
            at("the recurrence", layer) + " reads a stream that was not held.");
}

// How long the step of each head is, and how fast it forgets.
void StateSpace::prepare(const Recurrence& recurrence, int64_t i) const {
    const int64_t heads = sizes.value_heads;
    const float* x = recurrence.projected(i) + sizes.channels() + sizes.values();
    float* step = recurrence.rates(i);
    for (int64_t head = 0; head < heads; ++head) {
        const size_t at = static_cast<size_t>(head);
        const float given = softplus(x[head] * step_scale + step_bias[at]);
        step[head] = std::clamp(given, shortest_step, longest_step);
        step[heads + head] = decay[at] * step[head];
    }
}

// Adds the values themselves, gates, and norms group by group, or norms before it gates.
void StateSpace::finish(Run& run, const Recurrence& recurrence, int64_t i) const {
    float* o = recurrence.given(i);
    for (int64_t head = 0; head < sizes.value_heads; ++head) {
        const int64_t at = head * sizes.value_dim;
        run.kernels.add_scaled(o + at, recurrence.values(i) + at, skip[static_cast<size_t>(head)],
                               sizes.value_dim);
    }
    float* z = recurrence.projected(i) + sizes.channels();
    if (gate_scale != 1.0f) run.kernels.multiply(z, gate_scale, sizes.values());
    const auto gate = [&] {
        run.kernels.gated[static_cast<int>(Activation::silu)](z, o, sizes.values(), o);
    };
    if (!norm_first) gate();
    const int64_t width = sizes.values() / norm_groups;
    for (int64_t at = 0; group_norm && at < sizes.values(); at += width)
        run.kernels.rms_norm(o + at, group_norm.weight.data() + at, group_norm.eps, width, o + at);
    if (norm_first) gate();
}

void StateSpace::run(Run& run) const {
    const int64_t hidden = run.hidden;
    if (run.active.count == 0) return;
    Recurrence recurrence(run, sizes, inputs.outputs());
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        product(run, inputs, stream_rows(run, norm, first, rows, held), recurrence.projected(first),
                inputs_bias, first);
    }
    recurrence.compute(false, [&](int64_t i) { prepare(recurrence, i); });
    for_rows(run.pool, run.active.count, 3 * sizes.values(),
             [&](int64_t i, int) { finish(run, recurrence, i); });
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        float* branch = run.activations->branch.take<float>(rows * hidden);
        product(run, outputs, plain_rows(recurrence.given(first), sizes.values(), rows), branch, out_bias,
                first);
        add_branch(run, first, rows, branch, Norm(), residual_scale, Norm());
    }
}

}  // namespace ockham::ops
