#include "ops/stream.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "kernels/rows.h"
#include "ops/norms.h"
#include "ops/product.h"

namespace ockham::ops {

void add_branch(Run& run, int64_t first, int64_t rows, float* branch, const Norm& post_norm,
                float residual_scale, const Norm& stream_norm) {
    const int64_t hidden = run.hidden;
    const RowKernels& kernels = run.kernels;
    float* x = run.x();
    for_rows(run.pool, rows, hidden, [&](int64_t row, int) {
        float* from = branch + row * hidden;
        if (post_norm) normalise(kernels, post_norm, from, hidden, from);
        float* to = x + run.active.at(first + row) * hidden;
        kernels.add_scaled(to, from, residual_scale, hidden);
        if (stream_norm) normalise(kernels, stream_norm, to, hidden, to);
    });
}

void turn_rows(Run& run, int64_t first, int64_t rows, const Stack& shortcut) {
    if (!shortcut) return;
    const int64_t hidden = run.hidden;
    float* turned = run.activations->turned.take<float>(rows * hidden);
    product(run, shortcut, stream_rows(run, {}, first, rows), turned);
    float* x = run.x();
    for_rows(run.pool, rows, hidden, [&](int64_t row, int) {
        std::copy_n(turned + row * hidden, hidden, x + run.active.at(first + row) * hidden);
    });
}

void keep_hidden(Run& run, int64_t layer) {
    const int64_t hidden = run.hidden;
    for (const LayerRows& wanted : run.step.wants_hidden) {
        if (wanted.layer != layer) continue;
        Floats kept{std::make_unique<Buffer>(), wanted.count, hidden};
        float* to = kept.memory->take<float>(wanted.count * hidden);
        for (int64_t i = 0; i < wanted.count; ++i)
            std::copy_n(run.x() + wanted.rows[i] * hidden, hidden, to + i * hidden);
        for (auto& [of, before] : run.hidden_states)
            if (of == layer) before = std::move(kept);
        if (kept.memory != nullptr) run.hidden_states.emplace_back(layer, std::move(kept));
    }
}

}  // namespace ockham::ops
