#include "ops/linear_attention.h"

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

const Added added{"LinearAttention", read<LinearAttention>};

}  // namespace

LinearAttention::LinearAttention(const Fields& fields)
    : features(fields.integer("features")),
      inputs(fields.dense("inputs", true)),
      out(fields.dense("out", false)),
      norm(fields.norm("norm")),
      eps(fields.number("eps")),
      residual_scale(fields.number("residual_scale")) {
    sizes.layer = fields.integer("layer");
    sizes.cells = fields.integer("cells");
    sizes.states = fields.integer("states");
    sizes.key_heads = sizes.value_heads = fields.integer("heads");
    sizes.key_dim = 1 + features + features * features;
    sizes.value_dim = fields.integer("value_dim") + 1;  // and what the weights add up to
}

void LinearAttention::check(Program& program) const {
    const int64_t hidden = program.hidden, layer = sizes.layer, heads = sizes.value_heads;
    require(features > 0 && value_dim() > 0,
            at("the recurrence", layer) + " has sizes that make no sense.");
    sizes.check(program);
    check_dense(program, inputs, heads * (2 * features + value_dim()), hidden,
                at("the recurrence's inputs", layer));
    check_dense(program, out, hidden, heads * value_dim(), at("the recurrence's output", layer));
    check_norm(norm, hidden, at("the norm", layer));
}

// The features whose product is the second-order Taylor polynomial of e^(q k / sqrt(features)).
void LinearAttention::map(const float* x, float* y) const {
    const float width = static_cast<float>(features);
    const float first = 1.0f / std::sqrt(std::sqrt(width)), second = 1.0f / std::sqrt(2.0f * width);
    *y++ = 1.0f;
    for (int64_t d = 0; d < features; ++d) *y++ = x[d] * first;
    for (int64_t d = 0; d < features; ++d)
        for (int64_t e = 0; e < features; ++e) *y++ = x[d] * x[e] * second;
}

// What goes into the recurrence, of a row's projection.
void LinearAttention::enter(const float* projected, float* y) const {
    const int64_t heads = sizes.value_heads;
    const float* values = projected + 2 * heads * features;
    for (int64_t head = 0; head < 2 * heads; ++head)
        map(projected + head * features, y + head * sizes.key_dim);
    y += 2 * sizes.keys();
    for (int64_t head = 0; head < heads; ++head, y += sizes.value_dim) {
        std::copy_n(values + head * value_dim(), value_dim(), y);
        y[value_dim()] = 1.0f;
    }
}

void LinearAttention::run(Run& run) const {
    const int64_t hidden = run.hidden, heads = sizes.value_heads, width = value_dim();
    if (run.active.count == 0) return;
    Recurrence recurrence(run, sizes, sizes.channels());
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first), wide = inputs.outputs();
        float* projected = run.activations->branch.take<float>(rows * wide);
        product(run, inputs, stream_rows(run, norm, first, rows), projected, {}, first);
        for_rows(run.pool, rows, sizes.channels(), [&](int64_t i, int) {
            enter(projected + i * wide, recurrence.projected(first + i));
        });
    }
    recurrence.compute(false, [&](int64_t i) {
        std::fill_n(recurrence.rates(i), heads, 1.0f);
        std::fill_n(recurrence.rates(i) + heads, heads, 0.0f);
    });
    for (int64_t first = 0; first < run.active.count; first += most_rows) {
        const int64_t rows = std::min(most_rows, run.active.count - first);
        float* values = run.activations->gate_up.take<float>(rows * heads * width);
        // Each head's values over what its weights add up to.
        for_rows(run.pool, rows, 2 * sizes.values(), [&](int64_t i, int) {
            const float* o = recurrence.given(first + i);
            float* y = values + i * heads * width;
            for (int64_t head = 0; head < heads; ++head, o += sizes.value_dim, y += width) {
                const float whole = o[width] + eps;
                for (int64_t d = 0; d < width; ++d) y[d] = o[d] / whole;
            }
        });
        float* branch = run.activations->branch.take<float>(rows * hidden);
        product(run, out, plain_rows(values, heads * width, rows), branch, {}, first);
        add_branch(run, first, rows, branch, Norm(), residual_scale, Norm());
    }
}

}  // namespace ockham::ops
