#include "ops/linear_gru.h"

#include <algorithm>

#include "ops/checks.h"
#include "ops/fields.h"
#include "ops/product.h"
#include "ops/stream.h"
#include "program.h"
#include "run.h"

namespace ockham::ops {

namespace {

const Added added{"LinearGru", read<LinearGru>};

constexpr int64_t channels_at_once = 256;

}  // namespace

LinearGru::LinearGru(const Fields& fields)
    : layer(fields.integer("layer")),
      cells(fields.integer("cells")),
      ends(fields.integer("ends")),
      input(fields.matrix("input")),
      forget(fields.matrix("forget")),
      gate(fields.matrix("gate")),
      out(fields.matrix("out")),
      inner_norm(fields.norm("inner_norm")),
      input_norm(fields.norm("input_norm")),
      forget_norm(fields.norm("forget_norm")),
      gate_norm(fields.norm("gate_norm")),
      out_norm(fields.norm("out_norm")),
      bound(fields.floats("bound")),
      residual_scale(fields.number("residual_scale")) {}

void LinearGru::check(Program& program) const {
    const int64_t hidden = program.hidden;
    require(program.planes.layer(layer, cells).row_floats == width() &&
                program.planes.layer(layer, ends).row_floats == width(),
            at("the planes", layer) + " have another shape than what its recurrence keeps.");
    check_matrix(input, width(), hidden, at("the recurrence's input", layer));
    check_matrix(forget, width(), hidden, at("the recurrence's forget gate", layer));
    check_matrix(gate, width(), hidden, at("the recurrence's output gate", layer));
    check_matrix(out, hidden, width(), at("the recurrence's output", layer));
    check_norm(input_norm, hidden, at("the norm of the recurrence's input", layer));
    check_norm(forget_norm, hidden, at("the norm of the forget gate", layer));
    check_norm(gate_norm, hidden, at("the norm of the output gate", layer));
    check_norm(inner_norm, width(), at("the norm behind the output gate", layer));
    check_norm(out_norm, width(), at("the norm of the recurrence's output", layer));
    require(static_cast<bool>(inner_norm), at("the output gate", layer) + " has no norm.");
    check_vector(bound, width(), at("the forget gate's bound", layer));
}

// What a row keeps of the state, from the forget gate's product, and what it adds to it.
void LinearGru::enter(const RowKernels& kernels, const float* x, float* f, float* made) const {
    kernels.logistic(f, width());
    if (!bound.empty())
        for (int64_t d = 0; d < width(); ++d) {
            const float b = bound[static_cast<size_t>(d)];
            f[d] = b + (1.0f - b) * f[d];
        }
    for (int64_t d = 0; d < width(); ++d) made[d] = 1.0f - f[d];
    kernels.gated[static_cast<int>(Activation::silu)](x, made, width(), made);
}

// The states behind the rows, in the place of what they add.
void LinearGru::scan(Run& run, const Chunks& chunks, const float* f, float* made) const {
    const int64_t tokens = chunks.tokens(), wide = width();
    const int64_t parts = (wide + channels_at_once - 1) / channels_at_once;
    const int64_t count = static_cast<int64_t>(chunks.sequences().size());
    run.pool.parallel(count * parts, [&](int64_t task, int) {
        const SequenceRows& own = chunks.sequences()[static_cast<size_t>(task / parts)];
        const int64_t begin = task % parts * channels_at_once;
        const int64_t end = std::min(wide, begin + channels_at_once);
        for (int64_t n = 0; n < own.count; ++n) {
            const PlacedRow& at = chunks.row(own.first + n);
            const float* before = nullptr;
            if (at.place > 0) {
                const int64_t latest = at.cell(at.place - 1);
                if (latest >= own.cell)
                    before = made + (own.first + latest - own.cell) * wide;
                else if (at.place % tokens != 0)
                    before = chunks.held(own, latest);
                else
                    before = chunks.end(own, at.place / tokens - 1);
            }
            float* s = made + (own.first + n) * wide;
            const float* kept = f + (own.first + n) * wide;
            if (before != nullptr)
                for (int64_t d = begin; d < end; ++d) s[d] = kept[d] * before[d] + s[d];
            if ((at.place + 1) % tokens != 0) continue;
            float* left = chunks.end(own, at.place / tokens);
            if (left != nullptr) std::copy(s + begin, s + end, left + begin);
        }
    });
    chunks.keep(run, made);
}

void LinearGru::run(Run& run) const {
    const int64_t hidden = run.hidden, wide = width(), count = run.active.count;
    if (count == 0) return;
    const Chunks chunks(run, layer, cells, ends);
    Activations& own = *run.activations;
    float* x = own.qkv.take<float>(3 * count * wide);
    float *f = x + count * wide, *g = f + count * wide;
    float* made = own.made.take<float>(count * wide);
    for (int64_t first = 0; first < count; first += most_rows) {
        const int64_t rows = std::min(most_rows, count - first);
        product(run, input, stream_rows(run, input_norm, first, rows), x + first * wide);
        product(run, forget, stream_rows(run, forget_norm, first, rows), f + first * wide);
        product(run, gate, stream_rows(run, gate_norm, first, rows), g + first * wide);
    }
    for_rows(run.pool, count, 4 * wide, [&](int64_t i, int) {
        enter(run.kernels, x + i * wide, f + i * wide, made + i * wide);
    });
    scan(run, chunks, f, made);
    for_rows(run.pool, count, 4 * wide, [&](int64_t i, int) {
        float* y = g + i * wide;
        normalise(run.kernels, inner_norm, y, wide, y);
        run.kernels.gated[static_cast<int>(Activation::silu)](made + i * wide, y, wide, y);
    });
    for (int64_t first = 0; first < count; first += most_rows) {
        const int64_t rows = std::min(most_rows, count - first);
        float* branch = own.branch.take<float>(rows * hidden);
        product(run, out, normed_rows(run, out_norm, g + first * wide, wide, rows), branch);
        add_branch(run, first, rows, branch, Norm(), residual_scale, Norm());
    }
}

}  // namespace ockham::ops
