#include "ops/gated_delta.h"

#include <algorithm>
#include <cmath>

#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"GatedDelta", read<GatedDelta>};

constexpr float length_eps = 1e-6f;

}  // namespace

GatedDelta::GatedDelta(const Fields& fields)
    : sizes(fields),
      inputs(fields.dense("inputs", true)),
      decay(fields.floats("decay")),
      decay_bias(fields.floats("decay_bias")),
      head_norm(fields.norm("head_norm")),
      out(fields.dense("out", false)),
      norm(fields.norm("norm")),
      residual_scale(fields.number("residual_scale")) {
    sizes.tiled = fields.flag("tiled");
}

void GatedDelta::check(Program& program) const {
    const int64_t hidden = program.hidden, layer = sizes.layer, heads = sizes.value_heads;
    sizes.check(program);
    require(static_cast<bool>(head_norm), at("the recurrence", layer) + " has no norm of its heads.");
    check_dense(program, inputs, sizes.channels() + sizes.values() + 2 * heads, hidden,
                at("the recurrence's inputs", layer));
    check_dense(program, out, hidden, sizes.values(), at("the recurrence's output", layer));
    check_norm(norm, hidden, at("the norm", layer));
    check_norm(head_norm, sizes.value_dim, at("the norm of heads", layer));
    check_vector(decay, heads, at("the decays", layer));
    check_vector(decay_bias, heads, at("the decays' bias", layer));
    require(!decay.empty() && !decay_bias.empty(), at("the recurrence", layer) + " has no decays.");
}

// Queries and keys of a row in their final form, and how fast its heads forget.
void GatedDelta::prepare(Run& run, const Recurrence& recurrence, int64_t i) const {
    const int64_t width = sizes.key_dim, heads = sizes.value_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    for (int64_t head = 0; head < sizes.key_heads; ++head) {
        float* q = recurrence.queries(i) + head * width;
        float* k = q + sizes.keys();
        float squares[2];
        run.kernels.dots(q, q, width, 1, width, squares);
        run.kernels.dots(k, k, width, 1, width, squares + 1);
        run.kernels.multiply(q, scale / std::sqrt(squares[0] + length_eps), width);
        run.kernels.multiply(k, 1.0f / std::sqrt(squares[1] + length_eps), width);
    }
    const float* b = recurrence.projected(i) + sizes.channels() + sizes.values();
    const float* a = b + heads;
    float* beta = recurrence.rates(i);
    std::copy_n(b, heads, beta);
    run.kernels.logistic(beta, heads);
    for (int64_t head = 0; head < heads; ++head) {
        const size_t at = static_cast<size_t>(head);
        beta[heads + head] = decay[at] * softplus(a[head] + decay_bias[at]);
    }
}

void GatedDelta::run(Run& run) const {
    const int64_t hidden = run.hidden, heads = sizes.value_heads, width = sizes.value_dim;
    if (run.active.count == 0) return;
    Recurrence recurrence(run, sizes, inputs.outputs());
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        product(run, inputs, stream_rows(run, norm, first, rows), recurrence.projected(first), {},
                first);
    }
    recurrence.compute(true, [&](int64_t i) { prepare(run, recurrence, i); });
    // Each head is normed, and gated by its part of z.
    for_rows(run.pool, run.active.count, 2 * sizes.values(), [&](int64_t i, int) {
        float* o = recurrence.given(i);
        for (int64_t head = 0; head < heads; ++head)
            normalise(run.kernels, head_norm, o + head * width, width, o + head * width);
        const float* z = recurrence.projected(i) + sizes.channels();
        run.kernels.gated[static_cast<int>(Activation::silu)](z, o, sizes.values(), o);
    });
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        float* branch = run.activations->branch.take<float>(rows * hidden);
        product(run, out, plain_rows(recurrence.given(first), sizes.values(), rows), branch, {}, first);
        add_branch(run, first, rows, branch, Norm(), residual_scale, Norm());
    }
}

}  // namespace ockham::ops
